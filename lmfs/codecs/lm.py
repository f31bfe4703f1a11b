"""The `lm` codec: a chunk is coded as tokens, predicted by a model and, with it, a mixer.

Owns: the slices that join tokenizer, engine and coder, in lanes. FORMAT.md, "lm chunks",
is its specification. The engine is loaded at first use, one a process and model, never
before a fork; codecs are thread-safe.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence
from typing import Any

from ..engines import engine_for
from ..errors import DamagedError
from ..models.package import ModelPackage
from ..native import Mixer, TokenDecoder, TokenEncoder
from ..profile import PROFILE_1, CoderProfile
from ..tokenizer import Tokenizer
from .primer import Primer
from .threads import Work, queue

MAX_LANES = 64
# Where chunks have copies of the state that they follow (profiles 2 to 8), these may take so much
# together; of large ones some are needed nevertheless.
STATES_BYTES, LEAST_CHUNKS = MAX_LANES << 20, 7
SLICE_TOKENS = 256  # of all lanes together, some 7 ms
ENCODE_WINDOW = 128  # tokens of a chunk, some 4 ms


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
        return [lane.blobs for lane in self._encode(chunks, afters)]

    def behind(self, primer: Primer, upto: int) -> Mixer:
        """The state of chunks that follow what is known and ends at or before `upto`."""
        tail_bytes = self.profile.model_tail_bytes
        if not tail_bytes:
            return primer.mixer(upto)
        return primer.led_mixer(upto, tail_bytes, self.lead)

    def encode_on(self, chunk: bytes, afters: Sequence[Mixer | None]) -> tuple[list[bytes], Mixer]:
        """A chunk's blobs, as of `encode_after`, but that the last one goes on with its state, and
        the state behind that one."""
        lane = _Encoding(self, chunk, afters, keep_mixer=True)
        queue().run([lane])
        assert lane.mixer is not None
        return lane.blobs, lane.mixer

    def lead(self, mixer: Mixer, texts: Sequence[bytes]) -> Mixer:
        """The state behind these texts, each seen as a chunk that the model codes.

        mixer: what they follow; not changed
        """
        for text in texts:
            _, mixer = self.encode_on(text, [mixer])
        return mixer

    def ideal_bits(self, chunks: Sequence[bytes]) -> list[float]:
        """What an ideal coder would need for each chunk, by the same predictions."""
        return [lane.ideal_bits[0] for lane in self._encode(chunks, [None])]

    def _encode(self, chunks: Sequence[bytes], afters: Sequence[Mixer | None]) -> list[_Encoding]:
        lanes = [_Encoding(self, chunk, afters) for chunk in chunks]
        queue().run(lanes)
        return lanes

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

    def decode_on(self, after: Mixer, blob: bytes, size: int) -> tuple[bytes, Mixer | None]:
        """The chunk, and the state behind it; None: no encoder cuts it into these tokens.

        raises: DamagedError
        """
        lane = _Decoding(self, engine_for(self.package), blob, size, after, keep_mixer=True)
        queue().run([lane])
        if lane.result is None:
            raise DamagedError("a chunk's coded bytes do not decode")
        return lane.result, lane.mixer

    def _decode_lanes(
        self, blobs: Sequence[bytes], sizes: Sequence[int], after: Mixer | None
    ) -> list[bytes | None]:
        start = after or self.mixer
        engine = engine_for(self.package)
        lanes = [
            _Decoding(self, engine, blob, size, start)
            for blob, size in zip(blobs, sizes, strict=True)
        ]
        queue().run(lanes)
        return [lane.result for lane in lanes]


class _Encoding(Work):
    """One chunk behind some states; alone, for the model takes many tokens of it at once."""

    def __init__(
        self,
        codec: LmCodec,
        chunk: bytes,
        afters: Sequence[Mixer | None],
        *,
        keep_mixer: bool = False,
    ) -> None:
        """keep_mixer: `mixer` is then the last one, which goes on with its state"""
        self._codec, self._chunk, self._afters = codec, chunk, afters
        self._keep_mixer = keep_mixer
        self.mixer: Mixer | None = None
        self._at = 0
        self._encoders: list[TokenEncoder] = []
        self.blobs: list[bytes] = []
        self.ideal_bits: list[float] = []

    def _begin(self) -> None:
        codec, size = self._codec, len(self._chunk)
        vocabulary, table = codec.tokenizer.vocabulary, codec.profile.table
        strands = codec.profile.strands_of(size)
        self._tokens, self._inputs = _in_strands(
            vocabulary.tokenize(self._chunk), strands, codec.package.start_token
        )
        self._engine = engine_for(codec.package)
        self._state = self._engine.start(strands, sequence=True)
        mixers = [after or codec.mixer for after in self._afters]
        branches = len(mixers) - self._keep_mixer
        mixers[:branches] = [mixer and mixer.branch(strands) for mixer in mixers[:branches]]
        self._encoders = [TokenEncoder(vocabulary, table, mixer, strands, size) for mixer in mixers]

    def advance(self, together: Sequence[Any], alone: bool) -> None:
        if not self._encoders:
            self._begin()
        strands = len(self._inputs)
        rounds = ENCODE_WINDOW // strands
        tokens = self._tokens[self._at * strands : (self._at + rounds) * strands]
        if tokens:
            inputs = array("q")
            for strand in self._inputs:
                inputs += strand[self._at : self._at + rounds]
            self._state = self._engine.encode(
                self._state, self._encoders, inputs, tokens, alone=alone
            )
        self._at += rounds
        if self._at * strands >= len(self._tokens):
            self.blobs = [encoder.finish() for encoder in self._encoders]
            self.ideal_bits = [encoder.ideal_bits for encoder in self._encoders]
            if self._keep_mixer:
                self.mixer = self._encoders[-1].mixer
            self._encoders = []  # and with them their mixers
            self.done = True


def _in_strands(
    tokens: memoryview, strands: int, start_token: int
) -> tuple[array[int], list[array[int]]]:
    """A chunk's tokens in the order of coding, and what the model is fed before them: for each
    strand, of one length. FORMAT.md, "Strands"."""
    rounds = -(-len(tokens) // strands)
    in_turns = array("H", tokens)
    inputs = []
    end = 0
    for k in range(strands):
        begin, end = end, end + len(range(k, len(tokens), strands))
        memoryview(in_turns)[k::strands] = tokens[begin:end]
        fed = array("q", [start_token])
        fed.extend(tokens[begin:end])
        inputs.append(fed[:rounds])
    return in_turns, inputs


class _Decoding(Work):
    """One chunk; advances with others of the same engine."""

    def __init__(
        self,
        codec: LmCodec,
        engine: Any,
        blob: bytes,
        size: int,
        start: Mixer | None,
        *,
        keep_mixer: bool = False,
    ) -> None:
        """keep_mixer: the chunk goes on with its state; `mixer` is then that behind the chunk, if
        an encoder came there as well"""
        self._keep_mixer = keep_mixer
        self.mixer: Mixer | None = None
        self.group = self._engine = engine
        self._strands = codec.profile.strands_of(size)
        self.most = max(1, engine.lanes // self._strands)
        if start is not None and codec.profile.lane_sizes is None:
            self.most = min(self.most, max(LEAST_CHUNKS, STATES_BYTES // start.used_bytes))
        self._codec, self._blob, self._size, self._start = codec, blob, size, start
        self._decoder: TokenDecoder | None = None
        self._tokens = array("q", [codec.package.start_token] * self._strands)
        self.result: bytes | None = None

    def _begin(self) -> None:
        if self._decoder is None:
            mixer = self._start
            if mixer is not None and not self._keep_mixer:
                mixer = mixer.branch(self._strands)
            self._decoder = TokenDecoder(
                self._codec.tokenizer.vocabulary, self._codec.profile.table, [self._blob],
                [self._size], None if mixer is None else [mixer], self._strands,
            )  # fmt: skip
            self._state = self._engine.start(self._strands)

    def advance(self, together: Sequence[_Decoding], alone: bool) -> None:
        for lane in together:
            lane._begin()
        lanes = [lane for lane in together if not lane._end()]
        if not lanes:
            return
        state = self._engine.join([lane._state for lane in lanes])
        tokens = array("q", itertools.chain.from_iterable(lane._tokens for lane in lanes))
        decoders = [lane._decoder for lane in lanes]
        steps = max(1, SLICE_TOKENS // len(tokens))
        state = self._engine.decode(state, decoders, tokens, steps, alone=alone)
        end = 0
        for lane in lanes:
            begin, end = end, end + lane._strands
            lane._tokens = tokens[begin:end]
            lane._state = self._engine.select(state, array("q", range(begin, end)))
            lane._end()

    def _end(self) -> bool:
        assert self._decoder is not None
        if not len(self._decoder.active):
            (self.result,) = self._decoder.chunks()
            if self._keep_mixer:
                self.mixer = self._decoder.take_mixer(0)
            self._decoder = None  # and with it the mixer
            self.done = True
        return self.done
