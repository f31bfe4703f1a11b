"""One file and one packer under measurement: packing, reading, reading at random, all compared.

Owns: what one turn is and what is recorded of it. One thread.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field
from typing import Any

import lmfs

from .packers import Packer
from .processes import Cost, Failed, Mounted, mounted, run

READ_BYTES, REGION_BYTES, PIECE_BYTES = 4096, 64 << 10, 128 << 10


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
            began = time.perf_counter()
            with (mount.path / "data").open("rb", buffering=0) as file:
                for place in places:
                    got = os.pread(file.fileno(), READ_BYTES, place)
                    seconds = time.perf_counter() - began
                    self._check(got, place, READ_BYTES)
                    yield seconds
                    began = time.perf_counter()

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
