"""Kill an operation, or have the kernel refuse it something, at every system call it makes.

    python -m lmfs_tools.torture.crash FOLDER [--scenario NAME]... [--every N] [--errors E,E,...]

Owns: the scenarios, and what may be found afterwards. Needs strace(1). Each run is a process that
makes a store in FOLDER, waits until strace has it, and does one thing to a file of the store, while
strace kills it before its Nth call of some kind, or has that call return an error. Then another
process looks: every file is what it was or what it was to become; a reported error left it what it
was; after the sweep that every mount does, nothing is left over and fsck finds nothing.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import track

from lmfs.codecs.choose import Chooser, default_chooser
from lmfs.container import Kind
from lmfs.errors import LmfsError
from lmfs.models import registry
from lmfs.store.freeze import Action, freeze, thaw
from lmfs.store.marks import Marks
from lmfs.store.primers import Primers
from lmfs.store.store import Store
from lmfs.store.system import RENAME_EXCHANGE
from lmfs.store.walk import sweep_tree
from lmfs.vfs import Vfs

from .mounted import Difference, leftovers, opened, require_clean

ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EROFS")
# Calls that look into a store or change it.
CALLS = (
    *("open", "openat", "creat", "close", "dup", "dup2", "dup3", "read", "pread64", "readv"),
    *("write", "pwrite64", "writev", "copy_file_range", "sendfile", "lseek", "fsync", "fdatasync"),
    *("sync_file_range", "fadvise64", "fallocate", "truncate", "ftruncate", "flock", "fcntl"),
    *("stat", "lstat", "fstat", "newfstatat", "statx", "fstatfs", "getdents64", "readlinkat"),
    *("rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "symlinkat"),
    *("mkdir", "mkdirat", "mknodat", "rmdir", "chmod", "fchmod", "fchmodat", "chown", "fchown"),
    *("fchownat", "utimensat", "setxattr", "fsetxattr", "getxattr", "fgetxattr", "listxattr"),
    *("flistxattr", "removexattr", "fremovexattr", "mmap", "faccessat", "ioctl"),
)
CHUNK_SIZE = 4096

Tree = dict[str, bytes]  # what is in the files, by path


def _text(size: int, seed: int) -> bytes:
    chance = random.Random(seed)
    words = [b"cold", b"text", b"lies", b"still", b"until", b"somebody", b"reads", b"it"]
    return b" ".join(chance.choices(words, k=size // 3))[:size]


FIRST, SECOND = _text(30_000, 1), _text(20_000, 2)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """An operation on a store: what is there before, and what may be there after a crash.

    act: True if it did what was asked, False if it says that it did not
    trees: what may be found; the first is what was before, the last what was asked for
    after_error: how many of them may be found when it reported an error
    durable: True if what was asked for must be on the disk when it is done
    """

    name: str
    prepare: Callable[[Marks, pathlib.Path], None]
    act: Callable[[Store, Marks], bool]
    trees: Sequence[Tree]
    after_error: int = 1
    durable: bool = False


# --------------------------------------------------------------------------------- scenarios


class _TooLate(Exception):
    """An error of fsync or close: the bytes are written, and perhaps not on the disk."""


def _freeze(marks: Marks, path: str) -> bool:
    outcome = freeze(marks, path, Chooser(None, 1), chunk_size=CHUNK_SIZE)
    return outcome.action is Action.FROZEN


def _hot(marks: Marks, root: pathlib.Path) -> None:
    (root / "d").mkdir()
    for name, data in (("f", FIRST), ("g", SECOND)):
        (root / "d" / name).write_bytes(data)
    os.chmod(root / "d" / "f", 0o640)
    os.setxattr(root / "d" / "f", "user.note", b"mine")
    os.utime(root / "d" / "f", ns=(1_000_000_001, 2_000_000_002))


def _frozen(marks: Marks, root: pathlib.Path) -> None:
    _hot(marks, root)
    for name in ("d/f", "d/g"):
        if not _freeze(marks, name):
            raise AssertionError(f"{name} was not frozen")


def _freeze_with_model(store: Store, marks: Marks) -> bool:
    outcome = freeze(marks, "d/f", default_chooser(4), model=registry.shipped())
    return outcome.action is Action.FROZEN


def _keep_primer(store: Store, marks: Marks) -> bool:
    primers, package = Primers(store), registry.shipped()
    kept = primers.keep(SECOND, primers.packed(SECOND, package), package)
    primers.prove(kept)
    return True


@contextlib.contextmanager
def _vfs(store: Store) -> Iterator[Vfs]:
    vfs = Vfs(store)
    yield vfs
    with contextlib.suppress(OSError):  # nobody is told any more
        vfs.close()


def _write(flags: int, data: bytes, offset: int) -> Callable[[Store, Marks], bool]:
    def act(store: Store, marks: Marks) -> bool:
        with _vfs(store) as vfs:
            handle = vfs.open("d/f", flags)
            wrote = 0
            try:
                wrote = vfs.write(handle, data, offset)
                vfs.sync(handle)
                vfs.flush(handle)
            except OSError as error:
                if wrote:
                    raise _TooLate(str(error)) from error
                raise
            finally:
                with contextlib.suppress(OSError):  # the kernel does not listen
                    vfs.release(handle, "d/f")
        return wrote == len(data)

    return act


def _with_vfs(do: Callable[[Vfs], None]) -> Callable[[Store, Marks], bool]:
    def act(store: Store, marks: Marks) -> bool:
        with _vfs(store) as vfs:
            do(vfs)
        return True

    return act


def _change_attributes(vfs: Vfs) -> None:
    vfs.change_times("d/f", 5, 6)
    vfs.set_xattr("d/f", "user.x", b"1")
    vfs.change_owner("d/f", 0, 0)


def _change_attributes(vfs: Vfs) -> None:
    vfs.change_times("d/f", 5, 6)
    vfs.set_xattr("d/f", "user.x", b"1")
    vfs.change_owner("d/f", 0, 0)


OLD: Tree = {"d/f": FIRST, "d/g": SECOND}
MAGIC = Kind.FROZEN.value + b" is how it begins"

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("freeze", _hot, lambda _, marks: _freeze(marks, "d/f"), [OLD]),
        Scenario("freeze-model", _hot, _freeze_with_model, [OLD]),
        Scenario("primer", _hot, _keep_primer, [OLD]),
        Scenario(
            "thaw",
            _frozen,
            lambda _, marks: thaw(marks, "d/f").action is Action.THAWED,
            [OLD],
        ),
        Scenario(
            "write",
            _frozen,
            _write(os.O_RDWR, b"changed", 9000),
            [OLD, OLD | {"d/f": FIRST[:9000] + b"changed" + FIRST[9007:]}],
            durable=True,
        ),
        Scenario(
            "append",
            _frozen,
            _write(os.O_WRONLY | os.O_APPEND, b"more", len(FIRST)),
            [OLD, OLD | {"d/f": FIRST + b"more"}],
            durable=True,
        ),
        Scenario(
            "magic",
            _frozen,
            _write(os.O_RDWR, MAGIC, 0),
            [OLD, OLD | {"d/f": MAGIC + FIRST[len(MAGIC) :]}],
            durable=True,
        ),
        Scenario(
            "empty",
            _frozen,
            _write(os.O_WRONLY | os.O_TRUNC, b"new", 0),
            [OLD, OLD | {"d/f": b""}, OLD | {"d/f": b"new"}],
            after_error=2,
            durable=True,
        ),
        Scenario(
            "cut",
            _frozen,
            _with_vfs(lambda vfs: vfs.truncate("d/f", 10_000)),
            [OLD, OLD | {"d/f": FIRST[:10_000]}],
            after_error=2,  # its bytes are changed before its times are
        ),
        Scenario(
            "extend",
            _frozen,
            _with_vfs(lambda vfs: vfs.truncate("d/f", 40_000)),
            [OLD, OLD | {"d/f": FIRST + bytes(40_000 - len(FIRST))}],
            after_error=2,  # its bytes are changed before its times are
        ),
        Scenario(
            "rename",
            _frozen,
            _with_vfs(lambda vfs: vfs.rename("d/f", "d/g")),
            [OLD, {"d/g": FIRST}],
        ),
        Scenario(
            "exchange",
            _frozen,
            _with_vfs(lambda vfs: vfs.rename("d/f", "d/g", RENAME_EXCHANGE)),
            [OLD, {"d/f": SECOND, "d/g": FIRST}],
        ),
        Scenario(
            "link",
            _frozen,
            _with_vfs(lambda vfs: vfs.link("d/f", "h")),
            [OLD, OLD | {"h": FIRST}],
        ),
        Scenario(
            "attributes",
            _frozen,
            _with_vfs(_change_attributes),
            [OLD],
        ),
    )
}


# ---------------------------------------------------------------------------------- processes


@dataclasses.dataclass(frozen=True)
class Point:
    """The `number`th call (from 1) of its name in its thread; `error` instead of a kill."""

    call: str
    number: int
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.error or 'kill'} at {self.call} {self.number}"

    @property
    def injection(self) -> str:
        what = f"error={self.error}" if self.error else "signal=SIGKILL"
        return f"{self.call}:{what}:when={self.number}"


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended: "killed", "done", "refused", "error: ...", "late: ...", "bug: ..."."""

    said: str
    calls: list[str]


def _in_child(work: Callable[[], str]) -> tuple[int, int]:
    """Run it in a fork that writes what it says into a pipe: process and the pipe's end."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid:
        os.close(theirs)
        return pid, ours
    try:
        os.close(ours)
        said = work()
    except BaseException:
        said = f"bug: {traceback.format_exc()}"
    os.write(theirs, said.encode(errors="replace")[:60_000])
    os._exit(0)


def _said(pid: int, pipe: int) -> str:
    with open(pipe, "rb") as file:
        said = file.read().decode()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return "killed"
    if status:
        return f"bug: status {status}"
    return said


def _play(scenario: Scenario, root: pathlib.Path) -> str:
    root.mkdir()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    with Store.create(root) as store:
        marks = Marks(store)
        scenario.prepare(marks, root)
        marks.close()
    (root.parent / "numbers").write_text(json.dumps(_numbers(root)))
    (root.parent / "ready").touch()
    signal.sigwait({signal.SIGUSR1})
    try:
        store = Store.open(root)
        done = scenario.act(store, Marks(store))
    except _TooLate as error:
        return f"late: {error!r}"
    except (OSError, LmfsError) as error:
        where = traceback.extract_tb(error.__traceback__)[-3:]
        return f"error: {error!r} at {[f'{f.name}:{f.lineno}' for f in where]}"
    return "done" if done else "refused"


def play(
    scenario: Scenario,
    folder: pathlib.Path,
    point: Point | None,
    prepared: Callable[[], object] = lambda: None,
) -> Result:
    """One run, from a new store on; raises: Difference if strace fails

    prepared: called when the store is there, and nothing was done to it yet
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    root = folder / "store"
    pid, pipe = _in_child(lambda: _play(scenario, root))
    while not (folder / "ready").exists():
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise Difference(f"{scenario.name}: preparing failed: {_said(pid, pipe)}")
        time.sleep(0.002)
    prepared()
    log = folder / "calls"
    inject = ["-e", f"inject={point.injection}"] if point else []
    trace = ["-e", "trace=" + ",".join(f"?{call}" for call in CALLS)]
    strace = subprocess.Popen(
        ["strace", "-f", "-y", "-s", "200", "-o", log, *trace, *inject, "-p", str(pid)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert strace.stderr is not None
    first = strace.stderr.readline()
    if "attached" not in first:
        os.kill(pid, signal.SIGKILL)
        raise Difference(f"strace: {first}{strace.stderr.read()}")
    os.kill(pid, signal.SIGUSR1)
    said = _said(pid, pipe)
    strace.stderr.read()
    strace.stderr.close()
    strace.wait()
    return Result(said, log.read_text(errors="replace").splitlines())


_LINE = re.compile(r"^(\d+)\s+(\w+)\(")


def points_of(scenario: Scenario, folder: pathlib.Path) -> list[Point]:
    """The calls of an undisturbed run that have to do with the store. raises: Difference"""
    result = play(scenario, folder, None)
    if result.said != "done":
        raise Difference(f"{scenario.name}: undisturbed it said {result.said}")
    inspect(scenario, folder, result, None)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    found: dict[Point, None] = {}
    store = str(folder / "store")
    for line in result.calls:
        match = _LINE.match(line)
        if match is None:
            continue
        counts[match[1], match[2]] += 1
        if store in line:
            found[Point(match[2], counts[match[1], match[2]])] = None
    return list(found)


# ----------------------------------------------------------------------------------- looking


def _tree(root: pathlib.Path) -> tuple[Tree, dict[str, tuple[int, ...]]]:
    """The files of a store as a mount shows them, and what of their attributes must not change."""
    tree: Tree = {}
    attributes: dict[str, tuple[int, ...]] = {}

    def walk(vfs: Vfs, directory: str) -> None:
        for entry in list(vfs.list_directory(directory)):
            path = entry.name if directory == "." else f"{directory}/{entry.name}"
            if entry.mode & 0o170000 == 0o040000:
                walk(vfs, path)
                continue
            handle = vfs.open(path, os.O_RDONLY)
            size = vfs.attributes(path).size
            tree[path] = vfs.read(handle, size + 1, 0, path)
            vfs.release(handle, path)
            found = vfs.attributes(path)
            attributes[path] = (found.inode, found.mode, found.uid, found.gid)

    with Store.open(root) as store, _vfs(store) as vfs:
        walk(vfs, ".")
    return tree, attributes


def _numbers(root: pathlib.Path) -> dict[str, int]:
    """The inode number that each file shows, by the SHA-256 of its bytes: a rename keeps it."""
    tree, attributes = _tree(root)
    return {hashlib.sha256(data).hexdigest(): attributes[path][0] for path, data in tree.items()}


def _look(scenario: Scenario, root: pathlib.Path, may_be: Sequence[Tree]) -> str:
    """What is wrong with a store after a run; empty if nothing is."""
    tree, attributes = _tree(root)
    if tree not in may_be:
        sizes = {path: len(data) for path, data in tree.items()}
        known = [i for i, other in enumerate(scenario.trees) if other == tree]
        return f"wrong content: {sizes}, the scenario's trees {known}"
    if "d/f" in tree and tree["d/f"] == FIRST and attributes["d/f"][1] & 0o7777 != 0o640:
        return f"wrong mode: {attributes['d/f'][1]:o}"
    numbers = _numbers(root)
    for digest, number in json.loads((root.parent / "numbers").read_text()).items():
        if numbers.get(digest, number) != number:
            return f"wrong inode: expected {number}, got {numbers[digest]}"
    lay = leftovers(root)
    with opened(root) as marks:
        sweep_tree(marks)
        if found := leftovers(root):
            return f"left over after the sweep: {found}"
        require_clean(marks)
    again = _tree(root)
    if again != (tree, attributes):
        return "the sweep changed a file"
    return f"left: {len(lay)}" if lay else ""


def inspect(scenario: Scenario, folder: pathlib.Path, result: Result, point: Point | None) -> bool:
    """True if temporaries lay there before the sweep. raises: Difference"""
    trees = scenario.trees
    if result.said == "done":
        trees = trees[-1:]
    elif result.said.startswith(("refused", "error")):
        if point is None or point.call != "fsync":  # then nobody knows what the disk has
            trees = trees[: scenario.after_error]
    elif not result.said.startswith(("killed", "late")):
        raise Difference(f"{scenario.name}, {point}: {result.said}")
    wrong = _said(*_in_child(lambda: _look(scenario, folder / "store", trees)))
    if wrong and not wrong.startswith("left:"):
        last = "\n  ".join(result.calls[-15:])
        raise Difference(
            f"{scenario.name}, {point}: it said {result.said!r}; {wrong}; its last calls:\n  {last}"
        )
    return bool(wrong)


def sweep(
    scenario: Scenario,
    folder: pathlib.Path,
    *,
    kinds: Sequence[str | None] = (None, *ERRORS),
    every: int = 1,
    show: Callable[[list[Point]], Iterator[Point]] = iter,
) -> tuple[collections.Counter[str], list[str]]:
    """Run a scenario with each injection, or `every`th one: how the runs ended, and what differs.

    kinds: None for a kill, and names of errors
    """
    points = points_of(scenario, folder)
    runs = [dataclasses.replace(p, error=kind) for kind in kinds for p in points]
    counts = collections.Counter({"points": len(points)})
    wrong = []
    for point in show(runs[::every]):
        result = play(scenario, folder, point)
        counts["runs"] += 1
        counts[result.said.split(":")[0]] += 1
        try:
            counts["left"] += inspect(scenario, folder, result, point)
        except Difference as difference:
            wrong.append(str(difference))
    shutil.rmtree(folder)
    return counts, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="new; removed afterwards")
    parser.add_argument("--scenario", action="append", choices=[*SCENARIOS])
    parser.add_argument("--every", type=int, default=1, help="only every Nth run")
    parser.add_argument("--errors", default="kill," + ",".join(ERRORS))
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    kinds = [None if kind == "kill" else kind for kind in args.errors.split(",")]
    failed = False
    rows = {}
    for name in args.scenario or SCENARIOS:
        counts, wrong = sweep(
            SCENARIOS[name],
            args.folder.resolve() / name,
            kinds=kinds,
            every=args.every,
            show=lambda runs, name=name: track(runs, name, console=Console(stderr=True)),
        )
        rows[name] = dict(counts)
        print(f"{name}: {dict(counts)}, {len(wrong)} wrong", flush=True)
        for difference in wrong:
            print(f"  {difference}", flush=True)
        failed = failed or bool(wrong)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
