"""The engine for processors: exact models in compiled integer code, without any runtime.

Owns: how a package becomes an Engine of lmfs.native, and the buffers for its logits. It knows
ARCHITECTURES by their formulas, which the kind names and the model id covers; graphs are not
read. A state belongs to one caller at a time; the engine may be shared by threads. Its own
threads start with the first step that has work for two: fork before that or not at all.

LMFS_ISA names the instruction set (lmfs.native.usable_isas); the best one is the default.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, ModelError
from ..models.package import ModelPackage
from ..models.weights import read_weights
from ..native import Engine, Lanes, TokenDecoder, advance, usable_isas

ARCHITECTURES = ("gated-recurrence-1",)
ISA_VARIABLE = "LMFS_ISA"
MAX_SIZE = 1 << 32  # of anything in a card; the Engine has bounds of its own


class LaneState:
    """The recurrent state of some lanes, and room for one step's logits."""

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.logits: NDArray[np.int16] | None = None


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

    def start(self, lanes: int, *, sequence: bool = False) -> LaneState:
        """Zeros: what every lane starts from; steps and sequences share one kind of state."""
        return LaneState(self.core.start(lanes))

    def step(
        self, state: LaneState, tokens: NDArray[np.int64]
    ) -> tuple[NDArray[np.int16], LaneState]:
        """tokens (lanes,) -> logits (lanes, vocab), valid until the next step; same state."""
        if state.logits is None:
            state.logits = np.empty((len(state.lanes), 1, self.vocab), np.int16)
        self.core.run(state.lanes, np.ascontiguousarray(tokens)[:, None], state.logits)
        return state.logits[:, 0], state

    def sequence(
        self, state: LaneState, tokens: NDArray[np.int64], *, alone: bool = False
    ) -> tuple[NDArray[np.int16], LaneState]:
        """tokens (lanes, time) -> logits (lanes, time, vocab); same state."""
        logits = np.empty((*tokens.shape, self.vocab), np.int16)
        self.core.run(state.lanes, np.ascontiguousarray(tokens), logits, alone)
        return logits, state

    def decode(
        self,
        state: LaneState,
        decoders: Sequence[TokenDecoder],
        tokens: NDArray[np.int64],
        steps: int,
        *,
        alone: bool = False,
    ) -> LaneState:
        """Steps of all lanes and their decoders; see lmfs.types.Engine."""
        advance(self.core, state.lanes, decoders, tokens, steps, alone)
        return state

    def join(self, states: Sequence[LaneState]) -> LaneState:
        return LaneState(Lanes.join([state.lanes for state in states]))

    def select(self, state: LaneState, lanes: NDArray[np.int64]) -> LaneState:
        return LaneState(state.lanes.select(np.ascontiguousarray(lanes)))


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
