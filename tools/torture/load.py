"""Many readers and writers on one mount with a small cache, while files are frozen and thawed.

    python -m lmfs_tools.torture.load FOLDER [--seconds N] [--readers R] [--writers W]

Owns: the load, and what is measured under it. Readers read at random and compare; writers write,
read back and compare; from outside of the mount everything is frozen and thawed again and again.
Exit code 1 at any wrong byte or error, or if the mount's memory grows after the first minute.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import statistics
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

from lmfs.codecs.choose import Chooser, default_chooser
from lmfs.store.freeze import freeze
from lmfs.store.marks import Marks

from .fsx import texts
from .mounted import Difference, Mounted, check, opened
from .programs import freezing

FILES = 16
FILE_BYTES = 300_000
# Of these the mixer codes every eighth, so that decoding takes its time.
MIXED = 8
READ_BYTES = (100, 4096, 65_536)
THREADS = 8  # of one process
CACHE = "cachesize=1"
# The memory may grow by so much after the first minute: allocators keep what is fragmented.
GROWTH_KB = 16 << 10
WARM_S = 60.0


def content(number: int) -> bytes:
    """What is in a reader's file."""
    start = number * 3_001
    return texts()[start : start + FILE_BYTES]


class Client:
    """What all clients of a process share: counts, times in seconds, and what went wrong."""

    def __init__(self, root: pathlib.Path, until: float) -> None:
        self.root = root
        self.until = until
        self.times: list[float] = []
        self.wrong: list[str] = []

    def guarded(self, work: Any, number: int) -> None:
        try:
            work(random.Random(number), number)
        except Exception:
            self.wrong.append(f"{work.__name__} {number}: {traceback.format_exc()}")

    def read(self, chance: random.Random, _: int) -> None:
        expected = {n: content(n) for n in range(FILES)}
        while time.time() < self.until:
            number = chance.randrange(FILES)
            begin = time.perf_counter()
            fd = os.open(self.root / f"r{number}", os.O_RDONLY)
            self.times.append(time.perf_counter() - begin)
            try:
                for _ in range(8):
                    if chance.random() < 0.3:
                        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                    size, offset = chance.choice(READ_BYTES), chance.randrange(FILE_BYTES)
                    begin = time.perf_counter()
                    got = os.pread(fd, size, offset)
                    self.times.append(time.perf_counter() - begin)
                    if got != expected[number][offset : offset + size]:
                        raise Difference(f"r{number}: wrong bytes from {offset}")
            finally:
                os.close(fd)

    def write(self, chance: random.Random, number: int) -> None:
        path, pool, data = self.root / f"w{number}", texts(), bytearray()
        path.touch()
        while time.time() < self.until:
            size = chance.randrange(1, 20_000)
            piece = pool[(start := chance.randrange(len(pool) - size)) : start + size]
            offset = chance.randrange(len(data) + 1)
            begin = time.perf_counter()
            with path.open("r+b", buffering=0) as file:
                os.pwrite(file.fileno(), piece, offset)
            self.times.append(time.perf_counter() - begin)
            data[offset : offset + size] = piece
            if (got := path.read_bytes()) != data:
                again = path.read_bytes() == data
                raise Difference(
                    f"w{number}: not what was written, {size} bytes from {offset}: {len(got)} of "
                    f"{len(data)} bytes, different {_differences(got, data)}; again: {again}"
                )
            if len(data) > FILE_BYTES:
                os.truncate(path, 0)
                data.clear()


def _differences(got: bytes, expected: bytes) -> list[tuple[int, int]]:
    """Where bytes differ, from and to; the first few places, what is near being one."""
    places: list[tuple[int, int]] = []
    for at in range(min(len(got), len(expected))):
        if got[at] != expected[at]:
            if places and at < places[-1][1] + 64:
                places[-1] = places[-1][0], at + 1
            else:
                places.append((at, at + 1))
    return places[:8]


def _clients(kind: str, numbers: range, root: pathlib.Path, orders: Connection) -> None:
    texts()
    orders.send("ready")
    client = Client(root, orders.recv())
    work = client.read if kind == "read" else client.write
    threads = [threading.Thread(target=client.guarded, args=(work, n)) for n in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    orders.send((kind, client.times, client.wrong))


def _prepare(marks: Marks, backing: pathlib.Path) -> None:
    slow = default_chooser(4)
    for number in range(FILES):
        (backing / f"r{number}").write_bytes(content(number))
        if number % 2:
            freeze(marks, f"r{number}", slow if number % MIXED == 1 else Chooser(None, 1))


def run(
    folder: pathlib.Path, seconds: float, *, readers: int = 32, writers: int = 8
) -> dict[str, Any]:
    """Load a mount for so long; milliseconds of calls, memory in KB. raises: Difference"""
    counts: dict[str, int] = {}
    context = multiprocessing.get_context("spawn")
    with Mounted(folder, CACHE) as mounted:
        with opened(mounted.backing) as marks:
            _prepare(marks, mounted.backing)
        memory, minutes = {"start_kb": mounted.memory_kb()}, []
        ours, processes = [], []
        for kind, count in (("read", readers), ("write", writers)):
            for first in range(0, count, THREADS):
                orders, theirs = context.Pipe()
                numbers = range(first, min(first + THREADS, count))
                arguments = (kind, numbers, mounted.point, theirs)
                processes.append(context.Process(target=_clients, args=arguments, daemon=True))
                processes[-1].start()
                theirs.close()
                ours.append(orders)
        for orders in ours:
            orders.recv()
        begin = time.time()
        for orders in ours:
            orders.send(begin + seconds)
        with freezing(mounted, counts):
            time.sleep(min(WARM_S, seconds / 2))
            memory["minute_kb"] = mounted.memory_kb()
            while time.time() + WARM_S < begin + seconds:
                time.sleep(WARM_S)
                minutes.append(mounted.memory_kb())
            answers = [orders.recv() for orders in ours]
        took = time.time() - begin
        for process in processes:
            process.join()
        memory["end_kb"] = mounted.memory_kb()
        told = mounted.ask("stats")
        mounted.ask("drop-caches")
        memory["dropped_kb"] = mounted.memory_kb()
    with opened(mounted.backing) as marks:
        found = check(marks)
    wrong = [error for _, _, errors in answers for error in errors] + [str(f) for f in found]
    result: dict[str, Any] = {"seconds": round(took), **memory, "minutes_kb": minutes}
    result |= {"frozen": counts, "calls": told["calls"]}
    for kind in ("read", "write"):
        times = sorted(1e3 * t for k, found, _ in answers if k == kind for t in found) or [0.0]
        result[kind] = {
            "calls": len(times),
            "p50_ms": round(statistics.median(times), 3),
            "p99_ms": round(times[len(times) * 99 // 100], 3),
            "max_ms": round(times[-1], 1),
        }
    if told["refused"] or told["bugs"]:
        wrong.append(f"the mount refused {told['refused']}, bugs {told['bugs']}")
    if seconds > 2 * WARM_S and memory["end_kb"] > memory["minute_kb"] + GROWTH_KB:
        wrong.append(f"memory grew, each minute: {minutes}")
    if wrong:
        raise Difference("\n".join([*wrong[:10], json.dumps(result)]))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="new; removed if all is well")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--readers", type=int, default=32)
    parser.add_argument("--writers", type=int, default=8)
    args = parser.parse_args()
    try:
        result = run(args.folder, args.seconds, readers=args.readers, writers=args.writers)
    except Difference as difference:
        print(f"{difference}\nthe store is left in {args.folder}")
        sys.exit(1)
    shutil.rmtree(args.folder)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
