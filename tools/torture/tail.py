"""A file that some processes append to, opening it each time, while others read it whole.

    python -m lmfs_tools.torture.tail FOLDER [--seconds N] [--readers R] [--writers W] [--past P]

Owns: the records, and what a reader may see of them: each writer's, whole, in order. With --plain
in a directory without lmfs. Exit code 1 if a reader saw what nobody wrote.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pathlib
import random
import shutil
import sys
import time

from .fsx import RECORD
from .mounted import Mounted

_PADDING = b"x" * 24


def _append(path: pathlib.Path, writer: int, seconds: float) -> None:
    chance = random.Random(writer)
    number, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        for _ in range(chance.randrange(1, 4)):
            os.write(fd, RECORD.pack(writer, number, _PADDING))
            number += 1
        os.close(fd)
        time.sleep(chance.random() * 0.02)


def _look(path: pathlib.Path, seconds: float, found: multiprocessing.Queue[list[str]]) -> None:
    wrong, end, reads = [], time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = path.read_bytes()
        reads += 1
        numbers: dict[int, int] = {}
        for at in range(0, len(data) // RECORD.size * RECORD.size, RECORD.size):
            writer, number, padding = RECORD.unpack_from(data, at)
            if padding != _PADDING or number != numbers.get(writer, 0):
                seen = data[at : at + RECORD.size].hex()
                wrong.append(f"read {reads}: at {at} of {len(data)}: {seen}")
                break
            numbers[writer] = number + 1
    found.put([f"{reads} reads", *wrong])


def run(
    path: pathlib.Path,
    seconds: float,
    *,
    readers: int,
    writers: int,
    below: pathlib.Path | None = None,
    past: int = 0,
) -> tuple[int, list[str]]:
    """How often it was read, and what was seen that nobody wrote.

    below: the same file in the backing directory, which the last `past` writers append to
    """
    path.write_bytes(b"")
    found: multiprocessing.Queue[list[str]] = multiprocessing.Queue()
    below = below or path
    places = [path] * (writers - past) + [below] * past
    work = [(_append, (place, k, seconds)) for k, place in enumerate(places)]
    looks = [(_look, (path, seconds, found))] * readers
    processes = [multiprocessing.Process(target=f, args=a) for f, a in (*work, *looks)]
    for process in processes:
        process.start()
    seen = [found.get() for _ in range(readers)]
    for process in processes:
        process.join()
    return sum(int(s[0].split()[0]) for s in seen), [wrong for s in seen for wrong in s[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path, help="new or empty; removed afterwards")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--past", type=int, default=0, help="writers in the backing directory")
    parser.add_argument("--plain", action="store_true", help="without lmfs")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.plain:
        reads, wrong = run(
            args.folder / "log", args.seconds, readers=args.readers, writers=args.writers
        )
    else:
        mounted = Mounted(args.folder)
        mounted.mount()
        try:
            reads, wrong = run(
                mounted.point / "log",
                args.seconds,
                readers=args.readers,
                writers=args.writers,
                below=mounted.backing / "log",
                past=args.past,
            )
        finally:
            mounted.unmount()
    for line in wrong:
        print(line)
    print(f"{reads} reads, {len(wrong)} wrong")
    shutil.rmtree(args.folder)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
