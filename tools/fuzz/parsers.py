"""Fuzzing of all that parses containers and model packages, in Python.

    python -m lmfs_tools.fuzz.parsers FOLDER [--seconds N] [--seed N] [--guided]

Owns: the first inputs, what must hold of every input, and the runs. Without --guided, inputs are
mutations of the first ones (`mutate`), the same for the same seed. With it, libFuzzer keeps those
that reach something new (needs `pip install atheris`). Either way an input that breaks a promise
is written to FOLDER, and the run ends.

Of every input must hold:

- whatever reads it gives bytes, or raises LmfsError; nothing else, and within MOST_SECONDS
- memory stays below MOST_MEMORY, of the whole process
- what is read through is what the hash in the container says; the stream, the reader, the
  inspection and the recovery agree with each other
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pathlib
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from blake3 import blake3

import lmfs
from lmfs import lmz
from lmfs.codecs.choose import Chooser
from lmfs.container import Kind, sniff
from lmfs.engines.native import NativeEngine
from lmfs.errors import LmfsError
from lmfs.lmz import shared
from lmfs.lmz.inspect import Inspection
from lmfs.lmz.recovery import Recovered
from lmfs.models import certificate
from lmfs.models.package import ModelPackage, write_package
from lmfs.store.freeze import Action, freeze, thaw
from lmfs.store.fsck import Check, Finding
from lmfs.store.marks import Marks
from lmfs.store.repair import Repair
from lmfs.store.store import Store
from lmfs.types import Engine

from . import mutate

MOST_SECONDS = 20.0  # of the processor
MOST_MEMORY = 4 << 30  # of addresses
MOST_CONTENT = 1 << 22  # of decoded bytes that are looked at
STORE = bytes(range(16))
_DATA = pathlib.Path(lmfs.__file__).parents[1] / "tests" / "data"


class Broken(Exception):
    """A promise that an input breaks."""


def make_search(folder: pathlib.Path) -> list[pathlib.Path]:
    """A folder with a small model and a shared primer, for readers to look in."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(_DATA / "tiny.lmm", folder)
    text = _primer_text()
    archive = lmfs.compress(text, chooser=Chooser(None, zstd_level=3))
    (folder / shared.file_name(shared.primer_id(text))).write_bytes(archive)
    return [folder]


def _primer_text() -> bytes:
    return (_DATA / "dpkg.log").read_bytes()[:2000]


def containers(search: Sequence[pathlib.Path]) -> list[bytes]:
    """First inputs: archives and frozen files of every coding."""
    tiny = ModelPackage.load(search[0] / "tiny.lmm")
    log, prose = (_DATA / "dpkg.log").read_bytes(), (_DATA / "alice29.txt").read_bytes()
    noise = random.Random(1).randbytes(100)
    plain = Chooser(None, zstd_level=3)
    modelled = Chooser(tiny, 8, primer_bytes=600)
    shared_id = shared.primer_id(_primer_text())
    coding = Chooser(tiny, 4).shared_coding(shared_id)
    follows = shared_id, shared.shared_mixer(coding, search)
    found = [
        _packed(b"", plain, 64),
        _packed(b"lmz\n", plain, 64),
        _packed(log[:300] + noise, plain, 64),
        _packed(prose[3000:4500] + noise, modelled, 300),
        _packed(log[:900], modelled, 300),
        _packed(log[:800] + noise, plain, 128, store_id=STORE),
        _packed(prose[3000:4000], modelled, 300, store_id=STORE),
        # In strands, the last one behind the first.
        _packed(prose[3000:18000], Chooser(tiny, 6, primer_bytes=8192), 8192),
    ]
    for primer in (0, 600):
        chooser = Chooser(tiny, 4, primer_bytes=primer, shared=follows)
        found.append(_packed(log[2000:3100], chooser, 300, store_id=STORE))
    return [*found, found[1] + found[2], found[3] + found[0] + found[2]]


def _packed(data: bytes, chooser: Chooser, chunk_size: int, **options: bytes) -> bytes:
    out = io.BytesIO()
    with lmz.LmzWriter(out, chunk_size=chunk_size, chooser=chooser, **options) as writer:
        writer.write(data)
    return out.getvalue()


def packages(search: Sequence[pathlib.Path]) -> list[bytes]:
    """First inputs: a model package, deflated, and with its weights in a Zstandard frame."""
    tiny = ModelPackage.load(search[0] / "tiny.lmm")
    written = search[0].parent / "written.lmm"
    names = tiny.graph_names()
    graphs = {name: tiny.graph(name).removesuffix(tiny.weights) for name in names}
    write_package(
        written,
        card=tiny.card,
        tokenizer=tiny.tokenizer_json,
        weights=tiny.weights,
        graphs=graphs,
        golden=tiny.golden(),
    )
    return [tiny.stored, written.read_bytes()]


# ------------------------------------------------------------------------- what must hold


def check_container(data: bytes, search: Sequence[pathlib.Path]) -> str:
    """Read it in every way; raises Broken. Returns what became of it, in a word."""
    streamed = _streamed(data, search)
    read = _read(data, search)
    recovered = _recovered(data, search)
    problems = _inspected(data, search)
    if sniff(data) is Kind.FROZEN:
        if streamed is not None:
            raise Broken("a frozen file was read as an archive")
    elif isinstance(read, bytes) != (streamed is not None):
        raise Broken(f"stream {_brief(streamed)}, reader {_brief(read)}")
    if not isinstance(read, bytes):
        return "refused" if read is None else "in part"
    if streamed is not None and streamed != read:
        raise Broken("the stream and the reader give other bytes")
    if problems:
        raise Broken(f"it reads, but the inspection finds {problems[0]}")
    if b"".join(p.data for p in recovered) != read or len(recovered) != _pieces(recovered):
        raise Broken("it reads, but the recovery gives something else")
    return "read"


def _pieces(found: Sequence[lmz.Recovered | lmz.Hole]) -> int:
    return sum(isinstance(piece, Recovered) for piece in found)


def _brief(found: object) -> str:
    return f"{len(found)} bytes" if isinstance(found, bytes) else "refused it"


def _streamed(data: bytes, search: Sequence[pathlib.Path]) -> bytes | None:
    with contextlib.suppress(LmfsError):
        return b"".join(_some(lmz.stream_decode(io.BytesIO(data), model_search=search), len))
    return None


def _read(data: bytes, search: Sequence[pathlib.Path]) -> bytes | int | None:
    """All bytes, proved; or how many could be read of a damaged one; None if it was refused."""
    store_id = STORE if sniff(data) is Kind.FROZEN else None
    cache = lmz.ChunkCache(1 << 20)
    try:
        reader = lmz.LmzReader(
            io.BytesIO(data), store_id=store_id, model_search=search, cache=cache
        )
    except LmfsError:
        return None
    with reader:
        pieces = _at_random(reader, random.Random(len(data)))
        if reader.size > MOST_CONTENT:
            raise TooLarge
        try:
            content = reader.read()
            reader.verify()
        except LmfsError:
            return sum(map(len, pieces.values()))
        if len(content) != reader.size:
            raise Broken(f"{len(content)} bytes instead of {reader.size}")
        for (start, _), piece in pieces.items():
            if content[start : start + len(piece)] != piece:
                raise Broken(f"bytes from {start} on are other ones when they are read alone")
        for member in reader.members:
            part = content[member.start : member.start + member.size]
            if blake3(part).digest() != member.content_hash or member.content_hash not in data:
                raise Broken("content that is not what its hash says")
        return content


def _at_random(reader: lmz.LmzReader, rng: random.Random) -> dict[tuple[int, int], bytes]:
    """Some reads, those that were not refused."""
    pieces = {}
    for _ in range(4):
        start = rng.randrange(min(reader.size, MOST_CONTENT) + 1)
        size = rng.choice((1, 100, 5000))
        with contextlib.suppress(LmfsError):
            piece = pieces[start, size] = reader.pread(size, start)
            if len(piece) != min(size, reader.size - start):
                raise Broken(f"{len(piece)} bytes from {start} on, of {size}")
    return pieces


def _recovered(data: bytes, search: Sequence[pathlib.Path]) -> list[lmz.Recovered | lmz.Hole]:
    with contextlib.suppress(LmfsError):
        found = lmz.recover(io.BytesIO(data), model_search=search)
        return list(_some(found, lambda p: len(p.data) if isinstance(p, Recovered) else 0))
    return []


def _inspected(data: bytes, search: Sequence[pathlib.Path]) -> list[str]:
    with Inspection(io.BytesIO(data)) as inspection:
        found = [*inspection.problems, *inspection.frames()]
        inspection.models()
        inspection.primers()
        if inspection.size <= MOST_CONTENT:
            with contextlib.suppress(LmfsError):
                found += inspection.content(search)
    return [problem.what for problem in found]


class TooLarge(Exception):
    """An input whose content is too large to be looked at; no harm in that."""


def _some(pieces: Iterator[Any], size: Callable[[Any], int]) -> Iterator[Any]:
    total = 0
    for piece in pieces:
        total += size(piece)
        if total > MOST_CONTENT:
            raise TooLarge
        yield piece


def check_package(data: bytes, folder: pathlib.Path) -> str:
    """Load, prove and run it; raises Broken. Returns what became of it, in a word."""
    path = folder / "package.lmm"
    path.write_bytes(data)
    try:
        package = ModelPackage.load(path)
        package.tokenizer()
    except LmfsError:
        return "refused"
    done = "read"
    for name in package.graph_names():
        with contextlib.suppress(LmfsError):
            certificate.prove(package.graph(name))
    try:
        engine: Engine = NativeEngine(package, threads=1)
        state = engine.start(2)
        for token in (package.start_token, 1):
            engine.step(state, np.full(2, token, np.int64))
        done = "run"
    except LmfsError:
        pass
    return done


# ---------------------------------------------------------------------------------- stores


def make_store(folder: pathlib.Path, search: Sequence[pathlib.Path]) -> None:
    """A store with a hot file and frozen ones that need a model and a shared primer."""
    folder.mkdir()
    tiny = ModelPackage.load(search[0] / "tiny.lmm")
    log = (_DATA / "dpkg.log").read_bytes()
    text = _primer_text()
    shared_id = shared.primer_id(text)
    with Store.create(folder) as store:
        store.primers.mkdir()
        shutil.copy(search[0] / shared.file_name(shared_id), folder / ".lmfs" / "primers")
        marks = Marks(store)
        coding = Chooser(tiny, 4).shared_coding(shared_id)
        follows = shared_id, shared.shared_mixer(coding, search)
        for name, chooser in (
            ("plain", Chooser(None, zstd_level=3)),
            ("modelled", Chooser(tiny, 4, primer_bytes=2000)),
            ("primed", Chooser(tiny, 4, primer_bytes=0, shared=follows)),
        ):
            (folder / name).write_bytes(log[3000:15000])
            store.pin_model(tiny.id, tiny.path)
            done = freeze(marks, name, chooser, model=tiny, chunk_size=1000)
            if done.reason is not None:
                raise Broken(f"{name}: {done.reason}")
        (folder / "hot").write_bytes(log[:5000])
        marks.close()


def check_store(folder: pathlib.Path) -> str:
    """Check it, read and thaw what it has; raises Broken. Returns what became of it, in a word."""
    wanted = (_DATA / "dpkg.log").read_bytes()[3000:15000]
    findings: list[Finding] = []
    try:
        store = Store.open(folder)
    except (LmfsError, OSError):
        return "refused"
    with store:
        shared.forget_states()
        marks = Marks(store)
        try:
            check = Check(marks, findings.append)
            check.own_directory()
            for name, _ in list(check.files()):
                check.structure(name)
            for name in list(check.frozen):
                findings += check.content(name, lambda _: None)
            repair = Repair(marks)
            for finding in findings:
                with contextlib.suppress(LmfsError, OSError):
                    repair.settle(finding)
            for name in ("plain", "modelled", "primed"):
                with contextlib.suppress(LmfsError, OSError):
                    if thaw(marks, name).action is not Action.THAWED:
                        continue
                    if (folder / name).read_bytes() != wanted:
                        raise Broken(f"{name}: other bytes")
        except OSError:
            return "refused"
        finally:
            marks.close()
    return "found" if findings else "clean"


def _changed_store(folder: pathlib.Path, rng: random.Random) -> str:
    """One thing in a store changed; which, and how."""
    path = rng.choice([p for p in sorted(folder.rglob("*")) if p.name != "hot"])
    way = rng.choice(("flip", "cut", "gone", "link", "fifo", "folder", "name"))
    if path.is_dir():
        if way in ("link", "fifo"):
            path.rename(folder.parent / "moved")
            os.symlink("../../moved", path) if way == "link" else os.mkfifo(path)
        else:
            (path / "junk").write_bytes(b"x")
        return f"{way} {path.name}"
    data = path.read_bytes()
    if way == "flip":
        path.write_bytes(mutate.flipped(rng, data))
    elif way == "cut":
        os.truncate(path, rng.randrange(len(data) + 1))
    elif way == "name":
        path.rename(path.with_name("other"))
    else:
        path.rename(folder.parent / "moved")
        if way == "link":
            os.symlink(os.path.relpath(folder.parent / "moved", path.parent), path)
        elif way == "fifo":
            os.mkfifo(path)
        elif way == "folder":
            path.mkdir()
    return f"{way} {path.name}"


def run_store(target: Target, rng: random.Random, most: int) -> dict[str, int]:
    """Stores with one thing changed; how many of each outcome. raises: Broken and others"""
    counts: dict[str, int] = {}
    whole = target.folder / "whole"
    if not whole.exists():
        make_store(whole, target.search)
    for _ in range(most):
        with tempfile.TemporaryDirectory(dir=target.folder) as scratch:
            folder = pathlib.Path(scratch) / "store"
            _copy(whole, folder)
            how = _changed_store(folder, rng)
            outside = {p.name: p.read_bytes() for p in folder.parent.iterdir() if p.is_file()}
            try:
                outcome = check_store(folder)
            except BaseException:
                print(f"broken by a store: {how}", file=sys.stderr)
                raise
            now = {p.name: p.read_bytes() for p in folder.parent.iterdir() if p.is_file()}
            if now != outside:
                raise Broken(f"a file outside the store was changed: {how}")
        counts[outcome] = counts.get(outcome, 0) + 1
    return counts


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    shutil.copytree(source, target, copy_function=shutil.copy2)  # with extended attributes


# ----------------------------------------------------------------------------------- runs


class Target:
    """All that is fuzzed. An input's first byte says what the rest is."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.search = make_search(folder / "search")
        self.seeds = [b"c" + data for data in containers(self.search)]
        self.containers = [seed[1:] for seed in self.seeds]
        self.seeds += [b"m" + data for data in packages(self.search)]

    def mutated(self, data: bytes, rng: random.Random) -> bytes:
        kind, rest = data[:1], data[1:]
        if kind == b"m":
            return kind + mutate.mutated_package(rest, rng)
        return b"c" + mutate.mutated_container(rest, rng, self.search, self.containers)

    def check(self, data: bytes) -> str:
        """raises: Broken, and whatever else an input makes happen that must not."""
        began = time.process_time()
        try:
            if data[:1] == b"m":
                return check_package(data[1:], self.folder)
            return check_container(data[1:], self.search)
        except TooLarge:
            return "too large"
        finally:
            took = time.process_time() - began
            if took > MOST_SECONDS and sys.exc_info()[0] is None:
                raise Broken(f"{took:.1f} s of the processor")

    def keep(self, data: bytes) -> pathlib.Path:
        path = self.folder / f"broken-{blake3(data).hexdigest()[:12]}"
        path.write_bytes(data)
        return path


def run(target: Target, seed: int, seconds: float, most: int | None = None) -> dict[str, int]:
    """Mutations of the first inputs; how many of each outcome. raises: as Target.check"""
    rng = random.Random(seed)
    counts: dict[str, int] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end and (most is None or sum(counts.values()) < most):
        # Packages take longer, and are mostly refused for one of a few reasons.
        seeds = target.seeds if rng.random() >= 0.95 else target.seeds[: len(target.containers)]
        data = rng.choice(seeds)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            data = target.mutated(data, rng)
        try:
            outcome = target.check(data)
        except BaseException:
            print(f"broken by {target.keep(data)}", file=sys.stderr)
            raise
        counts[outcome] = counts.get(outcome, 0) + 1
    return counts


def _stores(target: Target, seed: int, seconds: float) -> Iterator[dict[str, int]]:
    rng, end = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < end:
        yield run_store(target, rng, 20)


def guided(target: Target, seconds: float) -> None:
    """libFuzzer's loop; does not come back."""
    import atheris  # type: ignore[import-not-found]

    inputs = target.folder / "inputs"
    inputs.mkdir(exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (inputs / f"seed-{number}").write_bytes(seed)

    def other(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, most))
        return target.mutated(data, rng)[:most]

    options = [
        f"-max_total_time={seconds:.0f}", "-max_len=300000", "-timeout=60", "-rss_limit_mb=3000",
        f"-artifact_prefix={target.folder}/broken-", "-print_final_stats=1", str(inputs),
    ]  # fmt: skip
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *options], lambda data: target.check(data), custom_mutator=other)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guided", action="store_true")
    parser.add_argument("--again", type=pathlib.Path, help="only this input, which was kept")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    os.environ["LMFS_THREADS"] = "1"
    target = Target(args.folder)
    if args.again:
        print(target.check(args.again.read_bytes()))
    elif args.guided:
        guided(target, args.seconds)
    else:
        half = args.seconds / 2
        print(run(target, args.seed, half), *_stores(target, args.seed, half))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"at most {peak / 1024:.0f} MiB of memory")


if __name__ == "__main__":
    main()
