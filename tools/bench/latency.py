"""How long one waits at a real mount: for the first bytes, for the last, for any.

    python -m lmfs_tools.bench.latency [--bytes N] [--reads N] [--json PATH] FILE...

Owns: the latencies of tools/bench/results. Each file is frozen at the default level into a store
of its own; each measurement begins with a mount that has read nothing yet, so that neither the
kernel nor lmfs has anything of the file, and the model is loaded anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from lmfs_tools.bench.speed import processor, seconds
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lmfs.codecs.choose import default_chooser
from lmfs.container import DEFAULT_CHUNK_SIZE
from lmfs.models import registry
from lmfs.store.freeze import freeze
from lmfs.store.marks import Marks
from lmfs.store.store import Store

READ_BYTES = 4096


class Mount:
    """A mount, served by a process of its own, and the one file in it."""

    def __init__(self, store: pathlib.Path, point: pathlib.Path, pid: int) -> None:
        self.file = next(path for path in point.iterdir())
        self.pid = pid

    def memory_mb(self, field: str) -> float:
        """VmRSS (now) or VmHWM (at most so far) of the mount's process."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        (kilobytes,) = re.findall(rf"^{field}:\s+(\d+) kB", status, re.M)
        return round(int(kilobytes) / 1024, 1)

    def run(self, *command: str) -> float:
        """Milliseconds of a program that reads the file."""
        with open(self.file, "rb") as file:
            # Not to /dev/null: grep stops at the first match where nobody looks.
            return 1e3 * seconds(
                lambda: subprocess.run(command, stdin=file, stdout=subprocess.PIPE, check=True)
            )


@contextlib.contextmanager
def mounted(store: pathlib.Path, point: pathlib.Path) -> Iterator[Mount]:
    server = subprocess.Popen(
        [sys.executable, "-m", "lmfs", "mount", "-f", store, point], stdout=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        if not server.stdout.readline():
            raise SystemExit("the mount failed")
        yield Mount(store, point, server.pid)
    finally:
        subprocess.run(["fusermount3", "-u", point], check=True)
        server.wait()


def random_reads(mount: Mount, reads: int) -> dict[str, float]:
    """Each of another chunk; the first finds no state, the others that which it left."""
    size = mount.file.stat().st_size
    # From the last chunk on, which follows all that any other follows.
    chunks = list(range(size // DEFAULT_CHUNK_SIZE))
    first = chunks.pop()
    random.Random(1).shuffle(chunks)
    fd = os.open(mount.file, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    try:
        cold, *warm = (
            1e3 * seconds(lambda chunk=chunk: os.pread(fd, READ_BYTES, chunk * DEFAULT_CHUNK_SIZE))
            for chunk in [first, *chunks[:reads]]
        )
    finally:
        os.close(fd)
    warm.sort()
    return {
        "random_cold_ms": cold,
        "random_p50_ms": statistics.median(warm),
        "random_p99_ms": warm[min(len(warm) - 1, len(warm) * 99 // 100)],
    }


def sequential(mount: Mount) -> dict[str, float]:
    size = mount.file.stat().st_size
    first = mount.run("cat")
    return {
        "cat_kb_s": size / first,
        "second_cat_ms": mount.run("cat"),
        "decoding_mb": mount.memory_mb("VmHWM"),
    }


def measure(path: pathlib.Path, folder: pathlib.Path, limit: int, reads: int) -> dict[str, object]:
    """One file: milliseconds, unless the name says something else."""
    backing, point = folder / f"{path.name}.store", folder / f"{path.name}.mount"
    backing.mkdir()
    point.mkdir()
    with path.open("rb") as file:
        (backing / path.name).write_bytes(file.read(limit))
    store = Store.create(backing)
    marks = Marks(store)
    outcome = freeze(marks, path.name, default_chooser(), model=registry.shipped())
    marks.close()
    store.close()
    if outcome.reason is not None:
        raise SystemExit(f"{path}: not frozen: {outcome.reason}")

    found: dict[str, float] = {}
    parts: list[Callable[[Mount], dict[str, float]]] = [
        lambda mount: {"rest_mb": mount.memory_mb("VmRSS"), "head_ms": mount.run("head", "-c100")},
        lambda mount: {"tail_ms": mount.run("tail", "-n10")},
        lambda mount: {"grep_ms": mount.run("grep", "-c", "a")},
        sequential,
        lambda mount: random_reads(mount, reads),
    ]
    for part in parts:
        with mounted(backing, point) as mount:
            found |= part(mount)
    return {"file": path.name, **{name: round(value, 1) for name, value in found.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--bytes", type=int, default=1 << 20, help="of each file, from its start")
    parser.add_argument("--reads", type=int, default=50, help="at random")
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    for path in track(args.files, description="Measuring", console=Console(stderr=True)):
        rounds = []
        for _ in range(args.rounds):
            with tempfile.TemporaryDirectory(prefix="lmfs-bench-") as folder:
                rounds.append(measure(path, pathlib.Path(folder), args.bytes, args.reads))
        rows.append(
            {
                name: value
                if isinstance(value, str)
                else statistics.median(r[name] for r in rounds)  # type: ignore[misc]
                for name, value in rounds[0].items()
            }
        )
    table = Table(title=f"medians of {args.rounds} rounds, first {args.bytes:,} bytes")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "file" else "right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=160).print(table)
    if args.json:
        result = {"processor": processor(), "taken": time.strftime("%Y-%m-%d"), "rows": rows}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
