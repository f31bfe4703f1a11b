"""The power goes at every system call of an operation.

    python -m lmfs_tools.torture.power FOLDER [--scenario NAME]... [--every N]

Owns: the disk, and what may be found on it afterwards. Needs root, a loop device, mke2fs(8) and
strace(1). As `crash`, but the store lies on an ext4 filesystem of its own, in a file, and what is
looked at is a copy of that file at the moment of the kill: what only the page cache knew is lost,
as it is when the power goes. A disk that loses what it said it had written is not played.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import track

from .crash import SCENARIOS, Point, Result, Scenario, inspect, play, points_of
from .mounted import Difference

DISK_BYTES = 24 << 20


@contextlib.contextmanager
def disk(image: pathlib.Path, point: pathlib.Path) -> Iterator[None]:
    """The filesystem in a file, mounted; it writes nothing but what it is told to, or must."""
    point.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-o", "loop,commit=300,noatime", image, point], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", point], check=True)


def make_disk(image: pathlib.Path) -> None:
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    options = ["-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-I", "256"]
    subprocess.run(["mke2fs", *options, image], check=True)


def cut(scenario: Scenario, folder: pathlib.Path, point: Point | None) -> None:
    """Lose the power at a point, or when all is done, and look at what the disk has.

    raises: Difference
    """
    image, after, place = folder / "disk", folder / "after", folder / "point"
    make_disk(image)
    with disk(image, place):
        flush = ["sync", "--file-system", place]
        result = play(
            scenario, place / "run", point, prepared=lambda: subprocess.run(flush, check=True)
        )
        shutil.copyfile(image, after)
    if result.said == "done" and not scenario.durable:
        result = Result("killed", result.calls)
    with disk(after, place):
        inspect(scenario, place / "run", result, point)


def sweep(
    scenario: Scenario,
    folder: pathlib.Path,
    *,
    every: int = 1,
    show: Callable[[list[Point | None]], Iterator[Point | None]] = iter,
) -> tuple[collections.Counter[str], list[str]]:
    """Lose the power at each point of a scenario, or every `every`th: counts, and what differs."""
    folder.mkdir(parents=True)
    points: list[Point | None] = [*points_of(scenario, folder / "run"), None]
    counts = collections.Counter({"points": len(points)})
    wrong = []
    for point in show(points[::-every]):
        try:
            cut(scenario, folder, point)
        except Difference as difference:
            wrong.append(str(difference))
        counts["runs"] += 1
    shutil.rmtree(folder)
    return counts, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="new; removed afterwards")
    parser.add_argument("--scenario", action="append", choices=[*SCENARIOS])
    parser.add_argument("--every", type=int, default=1, help="only every Nth point")
    args = parser.parse_args()
    failed = False
    for name in args.scenario or SCENARIOS:
        counts, wrong = sweep(
            SCENARIOS[name],
            args.folder.resolve() / name,
            every=args.every,
            show=lambda points, name=name: track(points, name, console=Console(stderr=True)),
        )
        print(f"{name}: {dict(counts)}, {len(wrong)} wrong", flush=True)
        for difference in wrong:
            print(f"  {difference}", flush=True)
        failed = failed or bool(wrong)
    sys.exit(failed)


if __name__ == "__main__":
    main()
