"""The engine for processors: exact models in compiled integer code, without any runtime.

Owns: how a package becomes an Engine of lmfs.native. It knows ARCHITECTURES by their formulas,
which the kind names and the model id covers; graphs are not read. A state belongs to one caller at
a time; the engine may be shared by threads. Its own threads start with the first step that has work
for two: fork before that or not at all. numpy loads only with `step` and `sequence`, which coding
does without.

LMFS_ISA names the instruction set (lmfs.native.usable_isas); the best one is the default.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import EngineError, ModelError
from ..models.package import ModelPackage
from ..models.weights import read_weights
from ..native import Engine, Lanes, TokenDecoder, TokenEncoder, advance, encode, usable_isas

if TYPE_CHECKING:
    from array import array

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

ARCHITECTURES = ("gated-recurrence-1",)
ISA_VARIABLE = "LMFS_ISA"
MAX_SIZE = 1 << 32  # of anything in a card; the Engine has bounds of its own


class NativeEngine:
    """One model, packed for this processor; satisfies lmfs.types.Engine.

    raises: ModelError for a model that is not exact, EngineError for an unusable LMFS_ISA
    """

    def __init__(
        self, package: ModelPackage, *, threads: int | None = None, isa: str | None = None
    ) -> None:
        """threads: all that this process may use if None; isa: what LMFS_ISA says if None."""
        self.package = package
        wanted = os.environ.get(ISA_VARIABLE, "") if isa is None else isa
        if wanted and wanted not in usable_isas():
            raise EngineError(
                "instruction set", where=ISA_VARIABLE, expected=" or ".join(usable_isas()),
                got=wanted,
            )  # fmt: skip
        sizes = _sizes(package)
        self.vocab = sizes["vocab"]
        if not 0 <= package.start_token < self.vocab:
            raise ModelError(
                "start token", where=package.path, expected=f"below {self.vocab}",
                got=package.start_token,
            )  # fmt: skip
        try:
            self.core = Engine(
                **sizes,
                weights=read_weights(package.weights),
                isa=wanted,
                threads=threads or len(os.sched_getaffinity(0)),
            )
        except ValueError as error:
            raise ModelError("the model is refused", where=package.path, got=error) from error
        # The mixers' states compete for the caches: no more than share the loading of weights.
        self.lanes = 4 if self.core.isa == "avx512vnni" else 8

    def start(self, lanes: int, *, sequence: bool = False) -> Lanes:
        """Zeros: what every lane starts from; steps and sequences share one kind of state."""
        return self.core.start(lanes)

    def step(self, state: Lanes, tokens: NDArray[np.int64]) -> tuple[NDArray[np.int16], Lanes]:
        """tokens (lanes,) -> logits (lanes, vocab); same state."""
        return self.core.run(state, tokens[:, None].copy())[:, 0], state

    def sequence(
        self, state: Lanes, tokens: NDArray[np.int64], *, alone: bool = False
    ) -> tuple[NDArray[np.int16], Lanes]:
        """tokens (lanes, time) -> logits (lanes, time, vocab); same state."""
        return self.core.run(state, tokens.copy(), alone), state

    def encode(
        self,
        state: Lanes,
        encoders: Sequence[TokenEncoder],
        inputs: Buffer,
        tokens: Buffer,
        *,
        alone: bool = False,
    ) -> Lanes:
        """A sequence of one chunk and its encoders; see lmfs.types.Engine."""
        encode(self.core, state, encoders, inputs, tokens, alone)
        return state

    def decode(
        self,
        state: Lanes,
        decoders: Sequence[TokenDecoder],
        tokens: array[int],
        steps: int,
        *,
        alone: bool = False,
    ) -> Lanes:
        """Steps of all lanes and their decoders; see lmfs.types.Engine."""
        advance(self.core, state, decoders, tokens, steps, alone)
        return state

    def join(self, states: Sequence[Lanes]) -> Lanes:
        return Lanes.join(states)

    def select(self, state: Lanes, lanes: Buffer) -> Lanes:
        return state.select(lanes)


def _sizes(package: ModelPackage) -> dict[str, int]:
    architecture: dict[str, Any] = package.card["architecture"]
    if architecture["kind"] not in ARCHITECTURES:
        raise EngineError(
            "the native engine cannot run this model", where=package.path,
            expected=" or ".join(ARCHITECTURES), got=architecture["kind"],
            do="set LMFS_ENGINE=ort",
        )  # fmt: skip
    sizes = {}
    for name in ("vocab", "width", "layers", "hidden", "hash_rows"):
        size = architecture.get(name)
        if not isinstance(size, int) or not 1 <= size < MAX_SIZE:
            raise ModelError("model card", where=f"{package.path}: {name}", got=size)
        sizes[name] = size
    return sizes
