"""Types of the compiled module.

Arrays are anything with a buffer, contiguous, of exactly the type that is named; nothing is
converted. Results are memoryviews, but for logits: only who asks for those loads numpy.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

PROBABILITY_BITS: int

class Vocabulary:
    """Token ids in the byte order of their spellings. Never changes; threads may share it.

    spellings: strictly sorted by bytes, every single byte among them, at most 65,536 tokens of at
        most 65,535 bytes
    raises: ValueError where they are not so
    """

    def __init__(self, spellings: Sequence[bytes]) -> None: ...
    def __len__(self) -> int: ...
    def tokenize(self, data: bytes) -> memoryview:
        """uint16: the longest token at each place, greedily; any bytes at all can be tokenized."""

    def spell(self, tokens: Buffer) -> bytes:
        """The bytes of these tokens (uint16); ValueError for one that is not in the vocabulary."""

class MixerProfile:
    """The constant part of a mixer: tables, and what its weights and maps start from.

    data: BYTES bytes, laid out as FORMAT.md ("Mixer") says
    sizes: of what a state remembers: slots of all contexts, runs of a context, places of a match,
        as powers of two from 2 to 24
    lane: likewise, what each strand of a chunk has of its own in front of the state that it
        follows; None: a chunk has a copy of that
    raises: ValueError for another length or size
    """

    BYTES: int

    def __init__(
        self,
        data: bytes,
        sizes: tuple[int, int, int],
        lane: tuple[int, int, int] | None = None,
    ) -> None: ...

class Mixer:
    """Predicts tokens from those before them, and learns while coding: one chunk's state.

    Nothing that is done to a copy changes another. Threads may use one, one after the other.

    used_bytes: of memory, about, without what a branch shares; the profile's sizes say most of it
    """

    used_bytes: int

    def __init__(self, profile: MixerProfile, vocabulary: Vocabulary) -> None: ...
    def copy(self) -> Mixer: ...
    def branch(self, strands: int = 1) -> Mixer:
        """What one chunk of so many strands that follows this is coded with.

        It shares what this remembers, and has small tables of its own in front of that, if the
        profile says so; else it is a copy. ValueError for a branch of a branch.
        """

    def forget(self) -> None:
        """Forget all text, keep what was learned of weights and maps. For training only."""

    def prime(self, data: bytes, piece: int) -> float:
        """Go on behind these bytes, cut into pieces of `piece` bytes that are tokenized alone.

        Returns what coding them would have cost, in bits (measurement only).
        """

    def encode(self, chunk: bytes) -> bytes:
        """The blob of a `mix` chunk that follows what was seen; it has then been seen, too."""

    def decode(self, blob: bytes, size: int) -> bytes | None:
        """The chunk of `size` bytes, None where `blob` is not one that `encode` writes.

        The chunk has then been seen; after None the mixer is of no use.
        """

    def adaptive(self) -> bytes:
        """What was learned of weights and maps, as in a MixerProfile's data."""

class MixEncoder:
    """`Mixer.encode` in slices; between them nobody else may use the mixer."""

    def __init__(self, mixer: Mixer, chunk: bytes) -> None: ...
    def go_on(self, tokens: int) -> bool:
        """Code at most so many more; whether there are more still."""

    def finish(self) -> bytes:
        """The blob; to be asked for once, at the end."""

class MixDecoder:
    """`Mixer.decode` in slices; between them nobody else may use the mixer."""

    def __init__(self, mixer: Mixer, blob: bytes, size: int) -> None: ...
    def go_on(self, tokens: int) -> bool:
        """Decode at most so many more; False at the end, and where the blob is found damaged."""

    def chunk(self) -> bytes | None:
        """The chunk; None before the end, and where the blob is not one that `encode` writes."""

class TokenEncoder:
    """Codes one chunk.

    mixer: refines the model's probabilities; it is copied
    strands: that the chunk is coded in (FORMAT.md, "Strands")
    size: of the chunk in bytes, needed for strands
    table: uint32 (n,), n at most 65,536: the frequency of a token by its logit's distance below
        the step's largest; never rising, at most 2^24, at least 1; the last entry serves any
        larger distance
    raises: ValueError where it is not so
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        table: Buffer,
        mixer: Mixer | None = None,
        strands: int = 1,
        size: int = 0,
    ) -> None: ...
    @property
    def mixer(self) -> Mixer | None:
        """A copy of the mixer as it now is."""

    def push(self, logits: NDArray[np.int16], tokens: Buffer) -> None:
        """Code tokens, uint16 (time,), under logits (time, vocab), whose rows must be contiguous.

        Of strands, the first token of each comes first, then the second of each.

        raises: ValueError for another shape, a token outside the vocabulary, or after finish()
        """

    def finish(self) -> bytes:
        """The blob; can be asked for once."""

    @property
    def ideal_bits(self) -> float:
        """The sum of -log2 of the node probabilities coded so far. For measurement only."""

class TokenDecoder:
    """Decodes many chunks in lockstep; a lane here is a chunk.

    blobs, sizes: one a lane; sizes are the chunks' in bytes
    mixers: one a lane, copied; None where the model's probabilities are not mixed
    strands: that each is coded in
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        table: Buffer,
        blobs: Sequence[bytes],
        sizes: Sequence[int],
        mixers: Sequence[Mixer] | None = None,
        strands: int = 1,
    ) -> None: ...
    @property
    def strands(self) -> int: ...
    @property
    def active(self) -> memoryview:
        """int64: the numbers of the lanes that are not finished, ascending."""

    def step(self, logits: NDArray[np.int16]) -> NDArray[np.int64]:
        """Decode a token in every strand of every active lane: logits (active * strands, vocab) ->
        tokens (active * strands,), 0 for a strand whose turn does not come any more.

        Lanes that this token finishes or shows to be damaged are gone from `active` afterwards.
        raises: ValueError for another shape
        """

    def take_mixer(self, lane: int) -> Mixer | None:
        """The state behind a lane's chunk; given away, so that it can be had once.

        None where the chunk is not whole, or where an encoder would have cut it into other tokens.
        raises: ValueError for a lane that there is not
        """

    def chunks(self) -> list[bytes | None]:
        """The chunk of every lane, None where the blob is not one that the encoder would write.

        Meant for when no lane is active; before, a chunk is what there is of it.
        """

class Lanes:
    """The state of some lanes of one Engine's model. Belongs to one caller at a time."""

    def __len__(self) -> int: ...
    def select(self, lanes: Buffer) -> Lanes:
        """Copies of these lanes (int64), in this order; ValueError for one that is not here."""

    @staticmethod
    def join(parts: Sequence[Lanes]) -> Lanes:
        """Copies of all their lanes, in this order; ValueError for none, or of other sizes."""

class Engine:
    """A model of the architecture "gated-recurrence-1". Does not change; threads may share it.

    weights: int8 and float32 arrays by the names that the package gives them; not kept
    isa: one of usable_isas(), or "" for the best
    threads: of the processor, the calling one included; they start when there is work for them
    raises: ValueError for tensors that are missing, of another shape, or not provably exact
    """

    def __init__(
        self,
        *,
        vocab: int,
        width: int,
        layers: int,
        hidden: int,
        hash_rows: int,
        weights: Mapping[str, Buffer],
        isa: str = "",
        threads: int = 1,
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def products(self) -> int:
        """Multiplications of one token."""

    def start(self, lanes: int) -> Lanes:
        """Lanes before their first token."""

    def run(
        self,
        lanes: Lanes,
        tokens: NDArray[np.int64],
        alone: bool = False,
    ) -> NDArray[np.int16]:
        """tokens (lanes, time) move the lanes; logits (lanes, time, vocab).

        alone: by the calling thread only
        raises: ValueError for another shape or a token outside the vocabulary; nothing moved then
        """

def encode(
    engine: Engine,
    lanes: Lanes,
    encoders: Sequence[TokenEncoder],
    inputs: Buffer,
    tokens: Buffer,
    alone: bool,
) -> None:
    """Move the strands of a chunk, a lane each, and code their tokens; see lmfs.types.Engine.

    raises: ValueError where these do not fit each other
    """

def parse_heads(
    heads: bytes, *, chunk_size: int, coding_bits: int, codings: int, first: int, limit: int
) -> tuple[tuple[bytes, ...], list[tuple[int, int, int]], int, int]:
    """What lmfs.layout.Layout is made of: its columns, each int64; sections; size; end.

    raises: ValueError that says what is wrong with the heads
    """

def advance(
    engine: Engine,
    lanes: Lanes,
    decoders: Sequence[TokenDecoder],
    tokens: Buffer,
    steps: int,
    alone: bool,
) -> int:
    """At most `steps` steps of the lanes with decoders of one chunk each; how many were done.

    tokens: int64 (lanes,) the last token of each; replaced by the newest
    Ends where a chunk does. raises: ValueError where these do not fit, or a chunk is done
    """

def usable_isas() -> list[str]:
    """The instruction sets that engines can use here, the best first; the last is "portable"."""
