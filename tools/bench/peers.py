"""lmfs beside what one would use instead: ratio, speed, random access and memory, in one run.

    python -m lmfs_tools.bench.peers [FILE...]

Owns: the measuring and the files that it writes. For each file and in each round all programs
take their turn, in an order that changes, each with the commands that a user would type (see
lmfs_tools.bench.packers), in processes of their own:

  freeze    from the command to its end; lmfs decodes again, compares and fsyncs in that time
  read      from the command to the last byte; of a mount, from opening the file in a new mount
  4 KiB     a new mount, then a read, then others, each 4,096 aligned bytes from another 64 KiB of
            the file and at the same offsets for all; or unpacking from the start up to there

Programs and inputs are in the page cache, archives are put out of it, and a new mount has nothing
cached. Every byte that is read is compared; what is wrong, fails or takes too long is said
instead of measured. A work is not repeated when that would take it beyond its budget.

To have everything that is compared, on Debian: apt install xz-utils zstd bzip3 zpaq p7zip-full
squashfs-tools squashfuse fuse3; pip install ratarmount. What is absent is left out and listed.

Four files of 1 MB take about an hour on two cores; --bytes 262144 --rounds 1 a sixth of that.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fnmatch
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import lmfs
from lmfs.models import registry

from . import packers, picture, report
from .packers import Packer
from .processes import Cost, Failed, Mounted, mounted, run
from .speed import processor

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = [REPOSITORY / "tests" / "data" / name for name in ("dpkg.log", "alice29.txt")]
READ_BYTES, REGION_BYTES, PIECE_BYTES = 4096, 64 << 10, 128 << 10
KINDS = {
    "lmfs": "lmfs at its levels",
    "seek": "others with random access (squashfuse, ratarmount)",
    "whole": "unpacked from the start",
}
PICTURED_FILES = 2


@dataclass(frozen=True)
class Settings:
    bytes: int
    rounds: int
    reads: int
    threads: int
    limit_s: float
    budget_s: float
    date: str


@dataclass
class Works:
    """What a work took each time that it was done."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)

    def add(self, cost: Cost) -> None:
        self.wall_s.append(round(cost.wall_s, 4))
        self.cpu_s.append(round(cost.cpu_s, 3))
        self.peak_mb.append(round(cost.peak_mb, 1))


@dataclass
class Record:
    """One file with one packer, as lmfs_tools.bench.report describes a row."""

    file: str
    bytes: int
    packer: str
    kind: str
    archive_bytes: int = 0
    pack: Works = field(default_factory=Works)
    read: Works = field(default_factory=Works)
    open_s: list[float] = field(default_factory=list)
    rest_mb: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    random_s: list[float] = field(default_factory=list)
    failed: str = ""

    def row(self) -> dict[str, Any]:
        row = asdict(self)
        if not self.failed:
            del row["failed"]
        return row


def offsets(size: int, count: int, chance: random.Random) -> list[int]:
    """Where 4 KiB are to be read: aligned, each in another region, in random order."""
    regions = range(0, max(1, size - READ_BYTES + 1), REGION_BYTES)
    chosen = chance.sample(regions, min(count, len(regions)))
    ends = (min(start + REGION_BYTES, max(READ_BYTES, size)) for start in chosen)
    return [
        start + READ_BYTES * chance.randrange((end - start) // READ_BYTES)
        for start, end in zip(chosen, ends, strict=True)
    ]


class Contest:
    """One packer and one file: a folder, and what was measured so far."""

    def __init__(
        self, packer: Packer, name: str, data: bytes, folder: pathlib.Path, settings: Settings
    ) -> None:
        self.packer = packer
        self.record = Record(name, len(data), packer.name, packer.kind)
        self._data = data
        self._folder = folder
        self._settings = settings
        self._environment = environment(settings.threads)
        self._spent: dict[str, list[float]] = {}
        folder.mkdir(parents=True)
        (folder / "data").write_bytes(data)

    def take_turn(self, places: list[int]) -> None:
        """Pack, read all, read at these offsets; failing ends this contest only."""
        if self.record.failed:
            return
        try:
            self._within_budget("pack", self._pack)
            self._within_budget("read", self._read)
            self._within_budget("random", lambda: self._read_at(places))
        except (Failed, OSError) as error:
            self.record.failed = str(error)

    def _within_budget(self, name: str, work: Callable[[], None]) -> None:
        spent = self._spent.setdefault(name, [])
        if spent and sum(spent) + spent[-1] > self._settings.budget_s:
            return
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)

    def _run(self, command: str) -> Cost:
        return run(command, self._folder, self._environment, self._settings.limit_s)

    def _mounted(self) -> contextlib.AbstractContextManager[Mounted]:
        limit_s = self._settings.limit_s
        return mounted(self.packer.mount, self._folder, self._environment, limit_s)

    def _pack(self) -> None:
        if self.packer.prepare:
            self._run(self.packer.prepare)
        self.record.pack.add(self._run(self.packer.pack))
        self.record.archive_bytes = (self._folder / self.packer.archive).stat().st_size

    def _evict(self) -> None:
        """The archive out of the page cache: it is read from the disk again."""
        descriptor = os.open(self._folder / self.packer.archive, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)

    def _read(self) -> None:
        self._evict()
        if not self.packer.mount:
            cost = self._run(f"({self.packer.unpack}) > unpacked")
            self._check((self._folder / "unpacked").read_bytes(), 0, len(self._data))
        else:
            with self._mounted() as mount:
                self.record.open_s.append(round(mount.open_s, 4))
                self.record.rest_mb.append(round(mount.rest_mb(), 1))
                before, began = mount.cpu_s(), time.perf_counter()
                pieces = []
                with (mount.path / "data").open("rb", buffering=0) as file:
                    while piece := file.read(PIECE_BYTES):
                        pieces.append(piece)
                wall = time.perf_counter() - began
                cost = Cost(wall, mount.cpu_s() - before, mount.peak_mb())
            self._check(b"".join(pieces), 0, len(self._data))
        self.record.read.add(cost)

    def _read_at(self, places: list[int]) -> None:
        self._evict()
        reads = self._through_mount(places) if self.packer.mount else self._from_start(places)
        until = time.perf_counter() + self._settings.budget_s
        with contextlib.closing(reads):  # at once, also when interrupted: it holds a mount
            for number, seconds in enumerate(reads):
                first = number == 0 and bool(self.packer.mount)
                samples = self.record.first_s if first else self.record.random_s
                samples.append(round(seconds, 6))
                if time.perf_counter() > until and self.record.random_s:
                    break

    def _through_mount(self, places: list[int]) -> Generator[float, None, None]:
        with self._mounted() as mount:
            self.record.open_s.append(round(mount.open_s, 4))
            for place in places:
                began = time.perf_counter()
                with (mount.path / "data").open("rb", buffering=0) as file:
                    got = os.pread(file.fileno(), READ_BYTES, place)
                seconds = time.perf_counter() - began
                self._check(got, place, READ_BYTES)
                yield seconds

    def _from_start(self, places: list[int]) -> Generator[float, None, None]:
        for place in places:
            command = self.packer.piece.replace("{after}", str(place + 1))
            cost = self._run(f"({command}) > piece")
            self._check((self._folder / "piece").read_bytes(), place, READ_BYTES)
            yield cost.wall_s

    def _check(self, got: bytes, place: int, size: int) -> None:
        if got != self._data[place : place + size]:
            raise Failed(f"WRONG BYTES in {size:,} from {place:,} on")


def environment(threads: int) -> dict[str, str]:
    """That of all commands: the lmfs that is imported here is the one that they run."""
    scripts = pathlib.Path(sys.executable).parent
    package = pathlib.Path(lmfs.__file__).parents[1]
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(scripts), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]),
        "LMFS_THREADS": str(threads),
    }


def present(
    wanted: list[Packer], env: Mapping[str, str]
) -> tuple[list[Packer], list[dict[str, str]]]:
    """Those whose programs are here, and why the others are absent."""
    here, absent = [], []
    for packer in wanted:
        missing = [name for name in packer.programs if not shutil.which(name, path=env["PATH"])]
        if packer.mount and not os.path.exists("/dev/fuse"):
            missing.append("/dev/fuse")
        if missing:
            needs = f"{', '.join(missing)} ({packer.source})"
            absent.append({"packer": packer.name, "needs": needs})
        else:
            here.append(packer)
    return here, absent


def versions(here: list[Packer], env: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for program in packers.programs(here):
        command = packers.version_command(program).split()
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        found[program] = packers.version_in(done.stdout + done.stderr)
    if "lmfs" in found:
        found["lmfs"] += commit()
    return found | {"kernel": platform.release(), "Python": platform.python_version()}


def commit() -> str:
    """Which state of the repository this is, if it is one."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return f", commit {done.stdout.strip()}"
    return ""


def panels(result: Mapping[str, Any]) -> list[picture.Panel]:
    """Ratio against read speed and against random reads, of the first files."""
    found = []
    for file, rows in list(report.rows_of(result).items())[:PICTURED_FILES]:
        numbers = [(row, report.figures(row)) for row in rows.values() if "failed" not in row]

        def points(
            key: str, numbers: list[tuple[report.Row, dict[str, float | None]]] = numbers
        ) -> list[picture.Point]:
            return [
                picture.Point(_label(row["packer"]), row["kind"], number[key], number["ratio"])
                for row, number in numbers
                if number[key]
            ]

        found.append(
            picture.Panel(
                file, "sequential read, cold", "ratio", points("read_kb_s"), _kilobytes_a_second
            )
        )
        title = "read of 4 KiB at random, cold, median"
        found.append(
            picture.Panel(
                file, title, "ratio", points("random_p50_ms"), _milliseconds, less_is_better=True
            )
        )
    return found


def _label(name: str) -> str:
    for long, short in (("lmfs ", ""), ("squashfs", "sqfs"), ("ratarmount", "ratar")):
        name = name.replace(long, short)
    return name


def _kilobytes_a_second(value: float) -> str:
    return f"{value:g} KB/s" if value < 1000 else f"{value / 1000:g} MB/s"


def _milliseconds(value: float) -> str:
    return f"{value:g} ms" if value < 1000 else f"{value / 1000:g} s"


def write(result: Mapping[str, Any], out: pathlib.Path) -> None:
    """The raw measurements, the table, and the picture: OUT.json, OUT.md, OUT.svg."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(as_json(result))
    out.with_suffix(".md").write_text(report.markdown(result))
    drawn = panels(result)
    if drawn:
        caption = "Compression ratio against speed: lmfs and other programs"
        out.with_suffix(".svg").write_text(picture.svg(drawn, KINDS, caption))


def as_json(result: Mapping[str, Any]) -> str:
    """A line a row, so that it can be compared with the next run's."""
    head = {key: value for key, value in result.items() if key != "rows"}
    rows = ",\n".join(f"  {json.dumps(row)}" for row in result["rows"])
    return f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{rows}\n ]\n}}\n'


def measure(
    paths: list[pathlib.Path],
    chosen: list[Packer],
    settings: Settings,
    folder: pathlib.Path,
    progress: Progress,
) -> Iterator[list[Record]]:
    """The records of each file, when it is done."""
    task = progress.add_task("", total=len(paths) * settings.rounds * len(chosen))
    for path in paths:
        with path.open("rb") as file:
            data = file.read(settings.bytes)
        places = random.Random(path.name)
        contests = [
            Contest(packer, path.name, data, folder / path.name / str(number), settings)
            for number, packer in enumerate(chosen)
        ]
        for number in range(settings.rounds):
            began = time.perf_counter()
            somewhere = offsets(len(data), settings.reads, places)
            where = f"{path.name}, round {number + 1} of {settings.rounds}"
            for contest in random.Random(number).sample(contests, len(contests)):
                progress.update(task, description=f"{where}: {contest.packer.name}")
                contest.take_turn(somewhere)
                progress.advance(task)
                if contest.record.failed:
                    say = f"{path.name}: {contest.packer.name}: {contest.record.failed}"
                    progress.console.print(say, highlight=False, markup=False)
            took = time.perf_counter() - began
            progress.console.print(f"{where}: {took:.0f} s", highlight=False)
        shutil.rmtree(folder / path.name)
        yield [contest.record for contest in contests]


def interrupted(number: int, frame: object) -> None:
    """Once: the mounts are taken down on the way out, and a second ^C must not stop that."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lmfs_tools.bench.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("files", nargs="*", type=pathlib.Path, metavar="FILE", help="default: test fixtures")
    add("--out", type=pathlib.Path, metavar="OUT", help="writes OUT.json, OUT.md and OUT.svg")
    add("--bytes", type=int, default=1_000_000, help="of each file, from its start [1000000]")
    add("--rounds", type=int, default=3, help="[3]")
    add("--reads", type=int, default=12, help="at random, of each file in each round [12]")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="[all processors]")
    add("--limit", type=float, default=300.0, metavar="S", help="of one command [300]")
    add(
        "--budget",
        type=float,
        default=40.0,
        metavar="S",
        help="a work is repeated only within so many seconds a file [40]",
    )
    add("--levels", default="1-9", help="of lmfs, as 1-9 or 3,6 [1-9]")
    add("--only", default="*", metavar="PATTERN", help="of the other programs, as 'squash*'")
    add("--against", default="zpaq -m5", metavar="NAME", help="what '× faster' refers to")
    add("--note", default="", help="stands above the table")
    add("--folder", type=pathlib.Path, help="where archives are made [the system's for such]")
    return parser.parse_args()


def levels_in(text: str) -> list[int]:
    """`1-3,6` is 1, 2, 3 and 6."""
    found = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        found += range(int(first), int(last if dash else first) + 1)
    return found


def main() -> int:
    args = arguments()
    console = Console(stderr=True)
    settings = Settings(
        bytes=args.bytes,
        rounds=args.rounds,
        reads=args.reads,
        threads=args.threads,
        limit_s=args.limit,
        budget_s=args.budget,
        date=datetime.date.today().isoformat(),
    )
    env = environment(args.threads)
    seven_zip = "7zz" if shutil.which("7zz", path=env["PATH"]) else "7z"
    wanted = [
        packer
        for packer in packers.everything(levels_in(args.levels), args.threads, seven_zip)
        if packer.kind == "lmfs" or fnmatch.fnmatch(packer.name, args.only)
    ]
    here, absent = present(wanted, env)
    for one in absent:
        console.print(f"absent: {one['packer']}: needs {one['needs']}", highlight=False)
    package = registry.shipped()
    result: dict[str, Any] = {
        "note": args.note,
        "machine": processor(),
        "settings": asdict(settings),
        "against": args.against,
        "model": package.id.hex(),
        "model_bytes": package.size_bytes,
        "versions": versions(here, env),
        "absent": absent,
        "packers": [
            {"packer": p.name, "pack": p.pack, "unpack": p.unpack, "mount": p.mount} for p in here
        ],
        "rows": [],
    }
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, interrupted)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        tempfile.TemporaryDirectory(prefix="lmfs-bench-", dir=args.folder) as folder,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
    ):
        paths = args.files or FIXTURES
        for records in measure(paths, here, settings, pathlib.Path(folder), progress):
            result["rows"] += [record.row() for record in records]
            if args.out:
                write(result, args.out)
    print(report.markdown(result))
    return 1 if any("failed" in row for row in result["rows"]) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
