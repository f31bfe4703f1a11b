"""The protocols between the layers. Imports nothing of lmfs, nothing heavy.

A *lane* is a text being coded: a chunk, or one of the strands that it is coded in. Engines and
codecs take many lanes in lockstep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from array import array

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer


class Engine(Protocol):
    """Runs one model: integer logits for the next token, for many lanes at once.

    lanes: so many of one thread are decoded together best; more are hardly quicker a token
    """

    lanes: int

    def start(self, lanes: int, *, sequence: bool = False) -> Any:
        """The state of `lanes` lanes before their first token; which of the two runs first."""

    def step(self, state: Any, tokens: NDArray[np.int64]) -> tuple[NDArray[np.int16], Any]:
        """tokens (lanes,) -> logits (lanes, vocab) in 1/64 nat, and the state after them."""

    def sequence(
        self, state: Any, tokens: NDArray[np.int64], *, alone: bool = False
    ) -> tuple[NDArray[np.int16], Any]:
        """tokens (lanes, time) -> logits (lanes, time, vocab), and the state; equals `step`.

        alone: use the calling thread only, where the engine can
        """

    def encode(
        self,
        state: Any,
        encoders: Sequence[Any],
        inputs: Buffer,
        tokens: Buffer,
        *,
        alone: bool = False,
    ) -> Any:
        """A `sequence` of one chunk whose logits go to TokenEncoders; the state after it.

        state: a lane for each strand of the chunk
        inputs: int64 (strands * time,), for each strand the tokens before those to be coded
        tokens: uint16, those in the order of coding; at the end of the chunk there may be fewer of
            them than inputs, by less than the strands
        """

    def decode(
        self,
        state: Any,
        decoders: Sequence[Any],
        tokens: array[int],
        steps: int,
        *,
        alone: bool = False,
    ) -> Any:
        """Steps of all lanes and of TokenDecoders of one chunk each; the state after them.

        state: a lane for each strand of each chunk
        tokens: int64 (lanes,) the last token of each, replaced by the newest
        steps: at most so many; fewer where a chunk ends
        """

    def join(self, states: Sequence[Any]) -> Any:
        """The state of all lanes of these, in this order."""

    def select(self, state: Any, lanes: Buffer) -> Any:
        """The state of these lanes (int64) only, in this order."""


class Codec(Protocol):
    """Chunk bytes to a blob and back; always a batch of chunks.

    after: the state of a mixer (lmfs.native.Mixer) that every chunk of the batch follows; it is
        not changed. None: they follow nothing. Codecs without a mixer ignore it.
    """

    def encode(self, chunks: Sequence[bytes], after: Any = None) -> list[bytes]:
        """One blob a chunk. Chunks are not empty."""

    def decode(
        self, blobs: Sequence[bytes], sizes: Sequence[int], after: Any = None
    ) -> list[bytes]:
        """The chunks of `sizes` bytes each; raises DamagedError where a blob cannot be one."""
