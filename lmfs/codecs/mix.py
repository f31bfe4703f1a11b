"""The `mix` codec: a chunk is coded as tokens, predicted by a mixer alone. No model runs.

Owns: nothing but the loop over chunks; the vocabulary is that of a model's package, the mixer the
coder profile's. FORMAT.md, "mix chunks". Codecs are thread-safe.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmfs.codecs.threads import in_parallel
from lmfs.errors import DamagedError
from lmfs.models.package import ModelPackage
from lmfs.native import Mixer
from lmfs.profile import CoderProfile


class MixCodec:
    """One vocabulary and one coder profile; satisfies lmfs.types.Codec."""

    def __init__(self, package: ModelPackage, profile: CoderProfile) -> None:
        if profile.mixer is None:
            raise ValueError("a coder profile without a mixer")
        self._start = Mixer(profile.mixer, package.tokenizer().vocabulary)

    def start(self) -> Mixer:
        """A mixer that has seen nothing."""
        return self._start.copy()

    def encode(self, chunks: Sequence[bytes], after: Mixer | None = None) -> list[bytes]:
        start = after or self._start
        return in_parallel(lambda chunk: start.copy().encode(chunk), chunks)

    def decode(
        self, blobs: Sequence[bytes], sizes: Sequence[int], after: Mixer | None = None
    ) -> list[bytes]:
        start = after or self._start

        def decode(lane: tuple[bytes, int]) -> bytes:
            return self.go_on(start.copy(), *lane)

        return in_parallel(decode, zip(blobs, sizes, strict=True))

    def go_on(self, mixer: Mixer, blob: bytes, size: int) -> bytes:
        """The chunk; the mixer has then seen it. raises: DamagedError, the mixer being spoilt"""
        chunk = mixer.decode(blob, size)
        if chunk is None:
            raise DamagedError("a chunk's coded bytes do not decode")
        return chunk
