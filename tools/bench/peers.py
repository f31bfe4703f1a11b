"""lmfs beside what one would use instead: ratio, speed, random access and memory, in one run.

    python -m lmfs_tools.bench.peers [FILE...]

Owns: the measuring and the files that it writes. For each file and in each round all programs
take their turn, in an order that changes, each with the commands that a user would type (see
lmfs_tools.bench.packers), in processes of their own:

  freeze    from the command to its end; lmfs decodes again, compares and fsyncs in that time
  read      from the command to the last byte; of a mount, from opening the file in a new mount
  4 KiB     a new mount, then opening the file and a read (the first), then others while it stays
            open, each 4,096 aligned bytes from another 64 KiB of the file and at the same offsets
            for all; or unpacking from the start up to there

Programs and inputs are in the page cache, archives are put out of it, and a new mount has nothing
cached. Every byte that is read is compared; what is wrong, fails or takes too long is said
instead of measured. A work is not repeated when that would take it beyond its budget.

To have everything that is compared, on Debian: apt install xz-utils zstd bzip3 zpaq p7zip-full
squashfs-tools squashfuse fuse3; pip install ratarmount. What is absent is left out and listed.

Four files of 1 MB take about an hour on two cores; --rounds 1 --budget 5 --levels 3,6,9 ten
minutes. ^C ends it and leaves no mount behind; with --out, the files that are done are kept.
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
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lmfs.models import registry

from . import packers, picture, report
from .contest import Contest, Record, Settings, environment, offsets
from .packers import Packer
from .processes import unmount_below
from .speed import processor

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = [REPOSITORY / "tests" / "data" / name for name in ("dpkg.log", "alice29.txt")]
KINDS = {
    "lmfs": "lmfs at its levels",
    "seek": "others with random access (squashfuse, ratarmount)",
    "whole": "unpacked from the start",
}
PICTURED_FILES = 2


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
    files: Mapping[str, bytes],
    chosen: list[Packer],
    settings: Settings,
    folder: pathlib.Path,
    progress: Progress,
) -> Iterator[list[Record]]:
    """The records of each file, when it is done."""
    task = progress.add_task("", total=len(files) * settings.rounds * len(chosen))
    for name, data in files.items():
        chance = random.Random(name)
        contests = [
            Contest(packer, name, data, folder / name / str(number), settings)
            for number, packer in enumerate(chosen)
        ]
        for number in range(settings.rounds):
            began = time.perf_counter()
            places = offsets(len(data), settings.reads, chance)
            where = f"{name}, round {number + 1} of {settings.rounds}"
            for contest in random.Random(number).sample(contests, len(contests)):
                if not contest.record.failed:
                    progress.update(task, description=f"{where}: {contest.packer.name}")
                    contest.take_turn(places)
                    if contest.record.failed:
                        failed = f"{where}: {contest.packer.name}: {contest.record.failed}"
                        progress.console.print(failed, highlight=False, markup=False)
                progress.advance(task)
            took = time.perf_counter() - began
            progress.console.print(f"{where}: {took:.0f} s", highlight=False, markup=False)
        shutil.rmtree(folder / name)
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
    add(
        *("--out", "-o"),
        type=pathlib.Path,
        metavar="OUT",
        help="write OUT.json, OUT.md and OUT.svg; the latter shows the first two files",
    )
    add("--bytes", type=_count, default=1_000_000, metavar="N", help="of each file [1000000]")
    add("--rounds", type=_count, default=3, metavar="N", help="turns of each program [3]")
    add("--reads", type=_count, default=12, metavar="N", help="at random in each round [12]")
    threads = len(os.sched_getaffinity(0))
    add("--threads", type=_count, default=threads, metavar="N", help=f"where known [{threads}]")
    add("--limit", type=_count, default=300, metavar="S", help="seconds of one command [300]")
    add(
        "--budget",
        type=_count,
        default=40,
        metavar="S",
        help="repeat freezing, reading, reading at random only within so many seconds each [40]",
    )
    add("--levels", type=levels_in, default="1-9", help="of lmfs, as 1-9 or 3,6 [1-9]")
    add("--only", default="*", metavar="PATTERN", help="of the other programs, as 'squash*'")
    add(
        "--against",
        default="zpaq -m5",
        metavar="NAME",
        help="what '× faster' is measured against, by its name in the table [zpaq -m5]",
    )
    add("--note", default="", metavar="TEXT", help="stands above the table")
    add("--folder", type=pathlib.Path, help="where archives are made [the system's temporary]")
    args = parser.parse_args()
    try:
        args.files = read_files(args.files or FIXTURES, args.bytes)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return args


def _count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text}")
    return int(text)


def levels_in(text: str) -> list[int]:
    """`1-3,6` is 1, 2, 3 and 6."""
    if not re.fullmatch(r"[1-9](-[1-9])?(,[1-9](-[1-9])?)*", text):
        raise argparse.ArgumentTypeError(f"expected levels from 1 to 9, as 1-9 or 3,6, got {text}")
    found: list[int] = []
    for part in text.split(","):
        found += range(int(part[0]), int(part[-1]) + 1)
    return sorted(set(found))


def read_files(paths: list[pathlib.Path], limit: int) -> dict[str, bytes]:
    """The beginning of each file, by its name.

    raises: OSError; ValueError for what cannot be compared
    """
    found: dict[str, bytes] = {}
    for path in paths:
        if path.name in found:
            raise ValueError(f"{path}: expected another name, got a second {path.name}")
        with path.open("rb") as file:
            found[path.name] = file.read(limit)
        if not found[path.name]:
            raise ValueError(f"{path}: expected some bytes, got an empty file")
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
        for packer in packers.everything(args.levels, args.threads, seven_zip)
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
        tempfile.TemporaryDirectory(prefix="lmfs-bench-", dir=args.folder) as name,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
    ):
        folder = pathlib.Path(name)
        try:
            for records in measure(args.files, here, settings, folder, progress):
                result["rows"] += [record.row() for record in records]
                if args.out:
                    write(result, args.out)
        finally:
            unmount_below(folder)
    print(report.markdown(result))
    return 1 if any("failed" in row for row in result["rows"]) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
