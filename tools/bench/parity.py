"""What parity costs and what it heals, for frozen files of some sizes.

    python -m lmfs_tools.bench.parity [--trials 100] [--sizes 200000 5000000] [--percent 2 5]

Prints a table for tools/bench/results/README.md. The file's bytes are random, as a frozen file's
nearly are. A trial damages sectors of 512 bytes, one after another, anywhere in the file and in its
parity, until the blocks of some stripe are too many; that it is healed before the last one, to the
same bytes, and not after it, is tried each time.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import statistics
import time

from lmfs.errors import LmfsError
from lmfs.store import parity
from lmfs.store.healed import HealedSource
from lmfs.store.parity import BLOCK, Parity, Shape

STORE_ID = bytes(16)
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--sizes", type=int, nargs="+", default=[200_000, 5_000_000])
    parser.add_argument("--percent", type=int, nargs="+", default=[2, 5])
    chosen = parser.parse_args()
    print(
        "| file | parity | its bytes | made, s/MB | proved, s/MB | any | in one piece | at random |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for size in chosen.sizes:
        for percent in chosen.percent:
            print(row(size, percent, chosen.trials), flush=True)


def row(size: int, percent: int, trials: int) -> str:
    whole = random.Random(size).randbytes(size)
    shape = Shape.plan(size, percent)
    made, stored = timed(lambda: packed(whole, percent))
    proved, _ = timed(lambda: prove(stored, whole))
    chance = random.Random(percent)
    healed = sorted(most_sectors(whole, stored, shape, chance) for _ in range(trials))
    cells = [
        f"{size:,}",
        f"{percent} %",
        f"{len(stored):,} ({len(stored) / size:.1%})",
        f"{made / size * 1e6:.3f}",
        f"{proved / size * 1e6:.3f}",
        shape.checks,
        shape.checks * shape.stripes,
        f"{healed[0]} to {healed[-1]}, median {statistics.median(healed):.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def timed(call):
    """The median of the processor seconds that it takes, and what it gives."""
    seconds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        result = call()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds), result


def packed(whole: bytes, percent: int) -> bytes:
    out = io.BytesIO()
    parity.write(reader(whole), len(whole), STORE_ID, percent, out)
    return out.getvalue()


def prove(stored: bytes, whole: bytes) -> None:
    with opened(stored) as one:
        parity.prove(one, reader(whole), len(whole))


def reader(data):
    return lambda size, offset: bytes(data[offset : offset + size])


def opened(stored: bytes) -> Parity:
    fd = os.memfd_create("parity")
    os.write(fd, stored)
    return Parity(fd, "parity")


def most_sectors(whole: bytes, stored: bytes, shape: Shape, chance: random.Random) -> int:
    """How many damaged sectors are healed, of those that are damaged one after another."""
    sectors = [(0, at) for at in range(0, len(whole), BLOCK)]
    sectors += [(1, at) for at in range(0, len(stored), BLOCK)]
    chance.shuffle(sectors)
    lost = [0] * shape.stripes
    count = 0
    for target, at in sectors:
        number = at // BLOCK if target == 0 else shape.content + (at - shape.table_at) // BLOCK
        if target == 1 and at >= shape.parity_at:
            number = (at - shape.parity_at) // BLOCK
        if target == 0 or shape.table_at <= at < shape.list_at:
            lost[number % shape.stripes] += 1
        if max(lost) > shape.checks:
            break
        count += 1
    # Where a block of the table is lost as well, or both headers, it may be some fewer.
    while not is_healed(whole, stored, sectors[:count]):
        count -= 1
    assert not is_healed(whole, stored, sectors[: count + 1])
    return count


def is_healed(whole: bytes, stored: bytes, sectors: list[tuple[int, int]]) -> bool:
    damaged = bytearray(whole), bytearray(stored)
    for target, at in sectors:
        data = damaged[target]
        data[at : at + BLOCK] = bytes(byte ^ 0xA5 for byte in data[at : at + BLOCK])
    pieces: list[bytes] = []
    try:
        source = HealedSource(reader(damaged[0]), len(whole), opened(bytes(damaged[1])))
    except LmfsError:
        return False
    try:
        found = source.heal(pieces.append)
    finally:
        source.close()
    assert not found or b"".join(pieces) == whole
    return found


if __name__ == "__main__":
    main()
