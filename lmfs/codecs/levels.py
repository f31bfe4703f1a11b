"""The levels 1 to 9: what is tried for a chunk at each, and how long primers are.

Owns: the table. What its numbers mean for a chunk is `choose`'s; reading never asks for a level.
Everything here is constant: any thread may use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Level:
    """What is tried for a chunk."""

    zstd: int  # zstd's own level
    primer_bytes: int = 0  # every chunk follows so much of its file's beginning
    mixer: bool = False
    model: bool = False
    # Of what the mixer alone makes smaller than this share, the model is not tried: such chunks
    # live on their own repetition.
    model_from: float = 0.0
    # The model must make a chunk smaller by so much to be worth the time that reading it takes.
    model_gain: float = 0.0
    # Who reads what follows a primer waits for all of it. So one that the model codes has so many
    # bytes at most; for whole chunks to fit into it, and into one that the mixer needs long for
    # (`choose`), a file's first ones have so many bytes at most (None: as all others).
    model_primer_bytes: int | None = None
    first_chunk_bytes: int | None = None
    # With a model, a chunk follows its file's beginning only if that saves so much.
    primer_gain: float = 0.01
    # And if that saves so much of all chunks of a batch: one that follows makes its reader wait for
    # the primer, a second where the model codes that.
    primer_gain_of_all: float = 0.0
    # The coder profiles of what is like a log, and of prose and source.
    profiles: tuple[int, int] = (9, 10)


def _with_model(
    primer_bytes: int, *, model_from: float, model_gain: float, zstd: int = 19, **others: Any
) -> Level:
    return Level(
        *(zstd, primer_bytes),
        mixer=True,
        model=True,
        model_primer_bytes=16 << 10,
        first_chunk_bytes=16 << 10,
        primer_gain_of_all=0.005,
        model_from=model_from,
        model_gain=model_gain,
        **others,
    )


LEVELS = {
    1: Level(3),
    2: Level(19),
    3: Level(19, 64 << 10, mixer=True),
    4: Level(19, 256 << 10, mixer=True),
    5: _with_model(256 << 10, model_from=0.12, model_gain=0.15),
    6: _with_model(256 << 10, model_from=0.06, model_gain=0.03),
    7: _with_model(256 << 10, model_from=0.03, model_gain=0.01),
    8: _with_model(320 << 10, model_from=0.03, model_gain=0.01, profiles=(11, 10)),
    # Chunks of prose of more than 16 KiB are smaller and read half as fast.
    9: _with_model(320 << 10, model_from=0.03, model_gain=0.01, profiles=(11, 12), zstd=22),
}
DEFAULT_LEVEL = 6
