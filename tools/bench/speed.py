"""How fast lmfs freezes and reads, and where the time goes.

    python -m lmfs_tools.bench.speed [--bytes N] [--rounds N] FILE...

Owns: the speed table of tools/bench/results. A frozen file is made in a temporary store and
read by the store's own reader: all of it in order with read-ahead, then 4 KiB at random offsets
with an empty cache. Medians over rounds; all threads and one take turns, and "times" is the median
of what each round gains by them. "Engine" and "coder" are shares of a decoding's time.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lmfs.codecs.lm import LmCodec
from lmfs.codecs.threads import limit_threads
from lmfs.engines import engine_for
from lmfs.lmz import ChunkCache, LmzReader, LmzWriter
from lmfs.models import registry
from lmfs.native import TokenDecoder
from lmfs.profile import profile_by_number

RANDOM_READS, READ_BYTES = 15, 4096
PROFILE_LANES = (1, 16, 64)
PROSE_PROFILE = 10  # the default level's


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def write(path: pathlib.Path, data: bytes) -> None:
    with path.open("wb") as file, LmzWriter(file) as writer:
        writer.write(data)


def verify(path: pathlib.Path) -> None:
    with LmzReader(path) as reader:
        reader.verify()


def read_all(path: pathlib.Path) -> None:
    with LmzReader(path) as reader:
        while reader.read(1 << 17):
            pass


def alone(path: pathlib.Path) -> float:
    """Seconds to read it with one thread."""
    limit_threads(1)
    try:
        return seconds(lambda: read_all(path))
    finally:
        limit_threads(None)


def read_somewhere(path: pathlib.Path, size: int, chance: random.Random) -> None:
    with LmzReader(path, cache=ChunkCache(1 << 20)) as reader:
        reader.pread(READ_BYTES, chance.randrange(max(1, size - READ_BYTES)))


def measure(path: pathlib.Path, target: pathlib.Path, limit: int, rounds: int) -> dict[str, object]:
    """One file: KB/s of encoding, freezing and reading, ms of random reads."""
    data = path.read_bytes()[:limit]
    chance = random.Random(1)

    def median_of(work: Callable[[], object]) -> float:
        return statistics.median(seconds(work) for _ in range(rounds))

    encode = median_of(lambda: write(target, data))
    check = median_of(lambda: verify(target))
    reads = [(seconds(lambda: read_all(target)), alone(target)) for _ in range(rounds)]
    somewhere = sorted(
        seconds(lambda: read_somewhere(target, len(data), chance)) for _ in range(RANDOM_READS)
    )
    kilobytes = len(data) / 1e3
    return {
        "file": path.name,
        "bytes": len(data),
        "encode_kb_s": round(kilobytes / encode, 1),
        "freeze_kb_s": round(kilobytes / (encode + check), 1),
        "read_kb_s": round(kilobytes / statistics.median(all_ for all_, _ in reads), 1),
        "read_1_kb_s": round(kilobytes / statistics.median(one for _, one in reads), 1),
        "times": round(statistics.median(one / all_ for all_, one in reads), 2),
        "random_p50_ms": round(statistics.median(somewhere) * 1e3),
        "random_max_ms": round(somewhere[-1] * 1e3),
    }


def profile(codec: LmCodec, data: bytes, lanes: int) -> dict[str, float]:
    """Microseconds a token of engine and coder, decoding `lanes` copies of one chunk."""
    chunk = data[:2048]
    blobs = codec.encode([chunk]) * lanes
    vocabulary = codec.tokenizer.vocabulary
    assert codec.mixer is not None
    mixers = [codec.mixer.branch() for _ in range(lanes)]
    sizes = [len(chunk)] * lanes
    decoder = TokenDecoder(vocabulary, codec.profile.table, blobs, sizes, mixers)
    engine = engine_for(codec.package)
    state = engine.start(lanes)
    tokens = np.full(lanes, codec.package.start_token, np.int64)
    spent = {"engine": 0.0, "coder": 0.0}
    steps = 0
    while len(decoder.active):
        began = time.perf_counter()
        logits, state = engine.step(state, tokens)
        middle = time.perf_counter()
        tokens = decoder.step(logits)
        spent["engine"] += middle - began
        spent["coder"] += time.perf_counter() - middle
        steps += 1
    return {name: value / steps / lanes * 1e6 for name, value in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--bytes", type=int, default=1_000_000, help="of each file, from its start")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    console = Console()
    codec = LmCodec(registry.shipped(), profile_by_number(PROSE_PROFILE))
    engine_for(codec.package)
    codec.decode(codec.encode([b"warm up"]), [7])
    with tempfile.TemporaryDirectory(prefix="lmfs-bench-") as folder:
        target = pathlib.Path(folder) / "frozen.lmz"
        rows = [
            measure(path, target, args.bytes, args.rounds)
            for path in track(args.files, description="Measuring", console=console)
        ]
    table = Table(title=f"medians of {args.rounds} rounds, first {args.bytes:,} bytes")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "file" else "right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)
    data = args.files[0].read_bytes()
    shares = {lanes: profile(codec, data, lanes) for lanes in PROFILE_LANES}
    for lanes, spent in shares.items():
        each = ", ".join(
            f"{name} {value:.1f} us ({value / sum(spent.values()):.0%})"
            for name, value in spent.items()
        )
        console.print(f"a token at {lanes} lanes: {each}")
    if args.json:
        engine = type(engine_for(codec.package)).__name__
        result = {
            "processor": processor(),
            "engine": engine,
            "rows": rows,
            "us_a_token": shares,
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def processor() -> str:
    """The machine in words, as far as it says."""
    names = re.findall(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
    flags = "AVX-512 VNNI" if "avx512_vnni" in pathlib.Path("/proc/cpuinfo").read_text() else "AVX2"
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {names[0] if names else platform.machine()}, {flags}"


if __name__ == "__main__":
    main()
