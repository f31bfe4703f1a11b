"""lmfs at work on real text: mount, write, freeze, read back, compare, and what it saved.

    python -m lmfs_tools.demo [FILE...]

Owns: the demonstration that README's first command runs. Everything goes through the
commands and the mount that a user has; nothing is called from inside lmfs but its reader,
for the figures. Leaves nothing behind.
"""

from __future__ import annotations

import argparse
import contextlib
import lzma
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import zstandard
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lmfs.lmz import DEFAULT_CHUNK_SIZE

FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "tests" / "data"
DEFAULT_FILES = ("alice29.txt", "dpkg.log")
RANDOM_READS = 12
READ_BYTES = 4096
SCRIPTS = pathlib.Path(sys.executable).parent

console = Console()


def lmfs(*arguments: str | pathlib.Path) -> str:
    """Run the `lmfs` command; its complaint and exit code end the demonstration."""
    done = subprocess.run(
        [SCRIPTS / "lmfs", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"lmfs {arguments[0]}: exit {done.returncode}\n{done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def mounted(backing: pathlib.Path, mountpoint: pathlib.Path) -> Iterator[None]:
    lmfs("mount", backing, mountpoint)
    try:
        yield
    finally:
        lmfs("umount", mountpoint)


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Show that something is under way, and how long it took."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=None)
        yield
        progress.update(task, total=1, completed=1)


def drop_kernel_cache(backing: pathlib.Path, mountpoint: pathlib.Path) -> None:
    """A new mount has nothing cached: neither decoded chunks nor the kernel's pages."""
    lmfs("umount", mountpoint)
    lmfs("mount", backing, mountpoint)


def read_whole(mountpoint: pathlib.Path, originals: dict[str, bytes]) -> float:
    """Compare every byte; returns bytes a second."""
    began = time.perf_counter()
    for name, data in originals.items():
        if (mountpoint / name).read_bytes() != data:
            raise SystemExit(f"WRONG BYTES in {name}: please report this")
    return sum(map(len, originals.values())) / (time.perf_counter() - began)


def read_at_random(mountpoint: pathlib.Path, originals: dict[str, bytes]) -> list[float]:
    """Compare 4 KiB pieces at random offsets; returns the seconds of each read."""
    chance = random.Random(1)
    seconds = []
    for _ in range(RANDOM_READS):
        name, data = chance.choice(sorted(originals.items()))
        offset = chance.randrange(max(1, len(data) - READ_BYTES))
        began = time.perf_counter()
        with (mountpoint / name).open("rb", buffering=0) as file:
            got = os.pread(file.fileno(), READ_BYTES, offset)
        seconds.append(time.perf_counter() - began)
        if got != data[offset : offset + READ_BYTES]:
            raise SystemExit(f"WRONG BYTES in {name} at {offset}: please report this")
    return seconds


def in_chunks(data: bytes, size: int, compress: Callable[[bytes], bytes]) -> int:
    return sum(len(compress(data[at : at + size])) for at in range(0, len(data), size))


def xz(data: bytes) -> bytes:
    return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)


def report(backing: pathlib.Path, originals: dict[str, bytes], chunk_size: int) -> Table:
    zstd = zstandard.ZstdCompressor(level=19).compress
    table = Table(
        title=f"bytes kept; lmfs in {chunk_size >> 10} KiB chunks",
        box=box.SIMPLE,
        padding=(0, 0, 0, 1),
    )
    at_size = f"@{chunk_size >> 10}K"
    columns = ("bytes", "lmfs", "ratio", "xz -9e", "zstd -19", f"xz {at_size}", f"zstd {at_size}")
    table.add_column("file", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, data in originals.items():
        ours = (backing / name).stat().st_size
        others = [
            len(xz(data)),
            len(zstd(data)),
            in_chunks(data, chunk_size, xz),
            in_chunks(data, chunk_size, zstd),
        ]
        cells = [f"{len(data):,}", f"{ours:,}", f"{len(data) / ours:.2f}"]
        table.add_row(name, *cells, *(f"{size:,}" for size in others))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=pathlib.Path, help="text to use instead")
    args = parser.parse_args()
    files = args.files or [FIXTURES / name for name in DEFAULT_FILES]
    originals = {path.name: path.read_bytes() for path in files}
    folder = pathlib.Path(tempfile.mkdtemp(prefix="lmfs-demo-"))
    backing, mountpoint = folder / "backing", folder / "mnt"
    backing.mkdir()
    mountpoint.mkdir()
    try:
        with mounted(backing, mountpoint):
            with step("Writing through the mount"):
                for name, data in originals.items():
                    (mountpoint / name).write_bytes(data)
            with step("Freezing (encode, fsync, decode again, compare, rename)"):
                began = time.perf_counter()
                lmfs("freeze", mountpoint)
                freeze_speed = sum(map(len, originals.values())) / (time.perf_counter() - began)
            drop_kernel_cache(backing, mountpoint)
            with step(f"Reading {READ_BYTES >> 10} KiB at {RANDOM_READS} random offsets"):
                seconds = read_at_random(mountpoint, originals)
            drop_kernel_cache(backing, mountpoint)
            with step("Reading everything, comparing"):
                read_speed = read_whole(mountpoint, originals)
            console.print(lmfs("status", mountpoint))
        with step("What the others make of it"):
            table = report(backing, originals, DEFAULT_CHUNK_SIZE)
        console.print(table)
        console.print(
            f"every byte equal; freezing {freeze_speed / 1e3:.0f} KB/s, reading "
            f"{read_speed / 1e3:.0f} KB/s, {len(seconds)} random {READ_BYTES >> 10} KiB reads: "
            f"median {statistics.median(seconds) * 1e3:.0f} ms, slowest {max(seconds):.1f} s"
        )
    finally:
        if os.path.ismount(mountpoint):
            subprocess.run(["fusermount3", "-u", "-z", mountpoint], check=False)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
