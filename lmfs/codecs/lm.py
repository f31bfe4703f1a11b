"""The `lm` codec: a chunk is coded as tokens, predicted by a model and, with it, a mixer.

Owns: the loop that joins tokenizer, engine and coder, in lanes. FORMAT.md, "lm chunks",
is its specification. The engine is loaded at first use, one a process and model, never
before a fork; codecs are thread-safe.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..engines import engine_for
from ..errors import DamagedError
from ..models.package import ModelPackage
from ..native import Mixer, TokenDecoder, TokenEncoder
from ..profile import PROFILE_1, CoderProfile
from ..tokenizer import Tokenizer
from .threads import in_parallel

MAX_LANES = 64
ENCODE_LANES = 16
ENCODE_WINDOW = 128  # tokens a lane: with 16 lanes and 2,048 tokens, 8 MiB of logits


class LmCodec:
    """One model and one coder profile; satisfies lmfs.types.Codec."""

    def __init__(self, package: ModelPackage, profile: CoderProfile = PROFILE_1) -> None:
        self.package, self.profile = package, profile
        self._mixer: Mixer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        return self.package.tokenizer()

    @property
    def mixer(self) -> Mixer | None:
        """A mixer that has seen nothing, if the profile has one."""
        if self._mixer is None and self.profile.mixer is not None:
            self._mixer = Mixer(self.profile.mixer, self.tokenizer.vocabulary)
        return self._mixer

    def encode(self, chunks: Sequence[bytes], after: Mixer | None = None) -> list[bytes]:
        """One blob a chunk, whatever the other chunks of the batch are."""
        return [blobs[0] for blobs in self.encode_after(chunks, [after])]

    def encode_after(
        self, chunks: Sequence[bytes], afters: Sequence[Mixer | None]
    ) -> list[list[bytes]]:
        """For each chunk a blob behind each of these states; the model runs once."""
        blobs: list[list[bytes]] = []
        for start in range(0, len(chunks), ENCODE_LANES):
            encoders = self.encoders(chunks[start : start + ENCODE_LANES], afters)
            blobs += [[encoder.finish() for encoder in lane] for lane in encoders]
        return blobs

    def encoders(
        self, chunks: Sequence[bytes], afters: Sequence[Mixer | None] = (None,)
    ) -> list[list[TokenEncoder]]:
        """For each chunk and state an encoder with all tokens pushed, not finished."""
        vocabulary, table = self.tokenizer.vocabulary, self.profile.table
        rows = [vocabulary.tokenize(chunk) for chunk in chunks]
        encoders = [
            [TokenEncoder(vocabulary, table, after or self.mixer) for after in afters]
            for _ in chunks
        ]
        lanes = np.arange(len(rows))
        engine = engine_for(self.package)
        state = engine.start(len(lanes), sequence=True)
        at, longest = 0, max(map(len, rows), default=0)
        while at < longest:
            left = np.array([len(rows[lane]) > at for lane in lanes])
            if not left.all():
                state, lanes = engine.select(state, np.flatnonzero(left)), lanes[left]
            window = min(ENCODE_WINDOW, longest - at)
            inputs = self._inputs([rows[lane] for lane in lanes], at, window)
            logits, state = engine.sequence(state, inputs)
            pushes = [
                (encoder, logits[row], rows[lane][at : at + window])
                for row, lane in enumerate(lanes)
                for encoder in encoders[lane]
            ]
            in_parallel(lambda push: push[0].push(push[1][: len(push[2])], push[2]), pushes)
            at += window
        return encoders

    def _inputs(
        self, rows: Sequence[NDArray[np.uint16]], at: int, window: int
    ) -> NDArray[np.int64]:
        """What the model is fed for tokens at..at+window: the token before each; then zeros."""
        inputs = np.zeros((len(rows), window), np.int64)
        for k, row in enumerate(rows):
            fed = row[max(at - 1, 0) : at + window - 1]
            shift = 1 if at == 0 else 0
            inputs[k, shift : shift + len(fed)] = fed
        if at == 0:
            inputs[:, 0] = self.package.start_token
        return inputs

    def decode(
        self, blobs: Sequence[bytes], sizes: Sequence[int], after: Mixer | None = None
    ) -> list[bytes]:
        """The chunks; raises DamagedError naming the first blob of the batch that cannot be one.

        A blob with a flipped bit usually decodes to something: compare checksums.
        """
        chunks: list[bytes] = []
        for start in range(0, len(blobs), MAX_LANES):
            part = slice(start, start + MAX_LANES)
            for k, chunk in enumerate(self._decode_lanes(blobs[part], sizes[part], after)):
                if chunk is None:
                    raise DamagedError(
                        "a chunk's coded bytes do not decode", where=f"blob {start + k} of a batch"
                    )
                chunks.append(chunk)
        return chunks

    def _decode_lanes(
        self, blobs: Sequence[bytes], sizes: Sequence[int], after: Mixer | None
    ) -> list[bytes | None]:
        start = after or self.mixer
        mixers = None if start is None else [start] * len(blobs)
        decoder = TokenDecoder(self.tokenizer.vocabulary, self.profile.table, blobs, sizes, mixers)
        engine = engine_for(self.package)
        lanes = decoder.active
        state = engine.start(len(lanes))
        tokens = np.full(len(lanes), self.package.start_token, np.int64)
        while len(lanes):
            logits, state = engine.step(state, tokens)
            tokens = decoder.step(logits)
            active = decoder.active
            if len(active) != len(lanes):
                kept = np.flatnonzero(np.isin(lanes, active))
                state, tokens = engine.select(state, kept), tokens[kept]
            lanes = active
        return decoder.chunks()
