"""The levels 1 to 9: what is tried for a chunk at each, and how long primers are.

Owns: the table. What its numbers mean for a chunk is `choose`'s; reading never asks for a level.
Everything here is constant: any thread may use it.
"""

from __future__ import annotations

from dataclasses import dataclass


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
    # Who reads what follows a primer waits for all of it. So one that the mixer leaves much of has
    # so many bytes at most, and one that the model codes so many; for whole chunks to fit into
    # these, the first ones have so many bytes at most (None: as all others).
    dense_primer_bytes: int | None = None
    model_primer_bytes: int | None = None
    first_chunk_bytes: int | None = None
    # A chunk of the primer that the model codes follows so much of it, or twice, four times, ...
    # so much, as far as that is before it; None: nothing of it.
    first_step_bytes: int | None = None
    # With a model, a chunk follows its file's beginning only if that saves so much.
    primer_gain: float = 0.01
    # And if that saves so much of all chunks of a batch: one that follows makes its reader wait for
    # the primer, a second where the model codes that.
    primer_gain_of_all: float = 0.0
    # A mixer that remembers long primers, in tens of megabytes. Else the model's chunks are made
    # for who reads at random, twice as quick and 1 % longer, and a member has the profile that was
    # learned from texts like it.
    large: bool = False


def _with_model(primer_bytes: int, *, model_from: float, model_gain: float) -> Level:
    return Level(
        *(19, primer_bytes),
        mixer=True,
        model=True,
        dense_primer_bytes=128 << 10,
        model_primer_bytes=32 << 10,
        first_chunk_bytes=16 << 10,
        primer_gain_of_all=0.005,
        model_from=model_from,
        model_gain=model_gain,
    )


LEVELS = {
    1: Level(3),
    2: Level(19),
    3: Level(19, 64 << 10, mixer=True),
    4: Level(19, 256 << 10, mixer=True, dense_primer_bytes=128 << 10),
    5: _with_model(256 << 10, model_from=0.12, model_gain=0.15),
    6: _with_model(256 << 10, model_from=0.06, model_gain=0.03),
    7: _with_model(256 << 10, model_from=0.03, model_gain=0.01),
    8: _with_model(512 << 10, model_from=0.03, model_gain=0.01),
    9: Level(
        *(22, 1024 << 10),
        mixer=True,
        model=True,
        model_from=0.03,
        first_step_bytes=64 << 10,
        primer_gain=0.003,
        large=True,
    ),
}
DEFAULT_LEVEL = 6
