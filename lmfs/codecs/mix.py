"""The `mix` codec: a chunk is coded as tokens, predicted by a mixer alone. No model runs.

Owns: nothing but the loop over chunks; the vocabulary is that of a model's package, the mixer the
coder profile's. FORMAT.md, "mix chunks". Codecs are thread-safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmfs.codecs.primer import SLICE_TOKENS, Primer
from lmfs.codecs.threads import Work, queue
from lmfs.errors import DamagedError
from lmfs.models.package import ModelPackage
from lmfs.native import MixDecoder, MixEncoder, Mixer
from lmfs.profile import CoderProfile


class _Lane(Work):
    """One chunk behind a state, or one that goes on with it."""

    def __init__(self, mixer: Mixer, *, goes_on: bool = False) -> None:
        self._mixer, self._goes_on = mixer, goes_on
        self._coder: MixEncoder | MixDecoder | None = None

    def _start(self, mixer: Mixer) -> MixEncoder | MixDecoder:
        raise NotImplementedError

    def advance(self, together: Sequence[Any], alone: bool) -> None:
        if self._coder is None:
            self._coder = self._start(self._mixer if self._goes_on else self._mixer.branch())
        if not self._coder.go_on(SLICE_TOKENS):
            self.result = self._end(self._coder)
            self._coder = None  # and with it the branch
            self.done = True

    def _end(self, coder: Any) -> bytes | None:
        raise NotImplementedError


class _Encoding(_Lane):
    def __init__(self, mixer: Mixer, chunk: bytes, *, goes_on: bool = False) -> None:
        super().__init__(mixer, goes_on=goes_on)
        self._chunk = chunk

    def _start(self, mixer: Mixer) -> MixEncoder:
        return MixEncoder(mixer, self._chunk)

    def _end(self, coder: MixEncoder) -> bytes:
        return coder.finish()


class _Decoding(_Lane):
    def __init__(self, mixer: Mixer, blob: bytes, size: int, *, goes_on: bool = False) -> None:
        super().__init__(mixer, goes_on=goes_on)
        self._blob, self._size = blob, size

    def _start(self, mixer: Mixer) -> MixDecoder:
        return MixDecoder(mixer, self._blob, self._size)

    def _end(self, coder: MixDecoder) -> bytes | None:
        return coder.chunk()


class MixCodec:
    """One vocabulary and one coder profile; satisfies lmfs.types.Codec."""

    def __init__(self, package: ModelPackage, profile: CoderProfile) -> None:
        if profile.mixer is None:
            raise ValueError("a coder profile without a mixer")
        self.vocabulary = package.tokenizer().vocabulary
        self._start = Mixer(profile.mixer, self.vocabulary)

    def start(self) -> Mixer:
        """A mixer that has seen nothing."""
        return self._start.copy()

    def behind(self, primer: Primer, upto: int) -> Mixer:
        """The state of chunks that follow what is known and ends at or before `upto`."""
        return primer.mixer(upto)

    def encode(self, chunks: Sequence[bytes], after: Mixer | None = None) -> list[bytes]:
        lanes = [_Encoding(after or self._start, chunk) for chunk in chunks]
        queue().run(lanes)
        return [lane.result or b"" for lane in lanes]

    def decode(
        self, blobs: Sequence[bytes], sizes: Sequence[int], after: Mixer | None = None
    ) -> list[bytes]:
        lanes = [
            _Decoding(after or self._start, blob, size)
            for blob, size in zip(blobs, sizes, strict=True)
        ]
        queue().run(lanes)
        return [_whole(lane.result) for lane in lanes]

    def encode_on(self, chunk: bytes, mixer: Mixer) -> bytes:
        """The blob of a chunk that goes on with this state, which becomes the one behind it."""
        lane = _Encoding(mixer, chunk, goes_on=True)
        queue().run([lane])
        return lane.result or b""

    def decode_on(self, mixer: Mixer, blob: bytes, size: int) -> tuple[bytes, Mixer]:
        """The chunk that goes on with this state, and that state, which is now behind it.

        raises: DamagedError; the state is then spoilt
        """
        lane = _Decoding(mixer, blob, size, goes_on=True)
        queue().run([lane])
        return _whole(lane.result), mixer


def _whole(chunk: bytes | None) -> bytes:
    if chunk is None:
        raise DamagedError("a chunk's coded bytes do not decode")
    return chunk
