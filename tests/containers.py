"""Small containers for tests, and the ways to read them."""

from __future__ import annotations

import io
import random

from lmfs import lmz
from lmfs.codecs.choose import Chooser

CHEAP = Chooser(zstd_level=3)
STORE = bytes(range(16))


def packed(data: bytes, chunk_size: int = 64, **options) -> bytes:
    out = io.BytesIO()
    with lmz.LmzWriter(out, chunk_size=chunk_size, **{"chooser": CHEAP, **options}) as writer:
        writer.write(data)
    return out.getvalue()


def reader(container: bytes, **options) -> lmz.LmzReader:
    return lmz.LmzReader(io.BytesIO(container), **options)


def recovered(container: bytes, **options) -> list[lmz.Recovered]:
    found = lmz.recover(io.BytesIO(container), **options)
    return [part for part in found if isinstance(part, lmz.Recovered)]


def sample(size: int, seed: int = 1) -> bytes:
    """Text, noise and repetition in turn, so that every codec has its chunks."""
    rng = random.Random(seed)
    words = ["cold ", "text ", "is ", "small ", "and ", "still ", "open ", "zwölf ", "\n"]
    parts, length = [], 0
    while length < size:
        kind = rng.randrange(3)
        if kind == 0:
            part = "".join(rng.choices(words, k=60)).encode()
        else:
            part = rng.randbytes(150) if kind == 1 else rng.randbytes(2) * 100
        parts.append(part)
        length += len(part)
    return b"".join(parts)[:size]


def blob_ranges(container: bytes, **options) -> list[range]:
    """Where the blobs lie: there a flip may leave the decoded bytes as they were."""
    with reader(container, **options) as whole:
        return [
            range(member.offset + start, member.offset + start + size)
            for member in whole.members
            for start, size in zip(
                member.layout.blob_offsets.tolist(),
                member.layout.coded_sizes.tolist(),
                strict=True,
            )
        ]
