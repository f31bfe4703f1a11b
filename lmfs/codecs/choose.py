"""Which codec each chunk gets: the one that makes it smallest, without waking the model in vain.

Owns: that choice, and the codings that a writer declares for it. Reading never asks this module.
A Chooser may be shared by threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmfs.codecs.raw import RawCodec
from lmfs.codecs.zstd import ZstdCodec
from lmfs.container import CodecId, Coding
from lmfs.types import Codec

if TYPE_CHECKING:
    from lmfs.models.package import ModelPackage

# Below this a model saves fewer bytes than declaring it costs.
MIN_MODEL_BYTES = 256
# Chunks that zstd makes smaller than this live on their own repetition, which a model that starts
# anew in each chunk cannot see.
REPETITIVE = 0.12
# Of text, at most this share is neither printable ASCII nor valid UTF-8 (old 8-bit texts pass).
MAX_STRANGE = 0.10

_TEXT = bytes([9, 10, 12, 13, 27, *range(32, 127), *range(128, 256)])


class Chooser:
    """Codes batches of chunks, each with the codec that makes it smallest."""

    def __init__(self, model: ModelPackage | None = None, *, zstd_level: int = 19) -> None:
        self.codings: list[Coding] = [Coding(CodecId.RAW), Coding(CodecId.ZSTD)]
        self._codecs: list[Codec] = [RawCodec(), ZstdCodec(zstd_level)]
        if model is not None:
            from lmfs.codecs.lm import LmCodec
            from lmfs.profile import PROFILE_1

            self.codings.append(Coding(CodecId.LM, model.id, PROFILE_1.id))
            self._codecs.append(LmCodec(model, PROFILE_1))

    def choose(self, chunks: Sequence[bytes]) -> list[tuple[int, bytes]]:
        """For each chunk (none is empty) the number of its coding in `codings`, and its blob.

        A blob is never empty and never longer than its chunk.
        """
        best = [(0, chunk) for chunk in chunks]
        for number in range(1, len(self._codecs)):
            is_model = self.codings[number].codec is CodecId.LM
            trial = [
                i
                for i, chunk in enumerate(chunks)
                if not is_model or self._may_wake_model(chunk, len(best[i][1]))
            ]
            if not trial:
                continue
            blobs = self._codecs[number].encode([chunks[i] for i in trial])
            for i, blob in zip(trial, blobs, strict=True):
                if 0 < len(blob) < len(best[i][1]):
                    best[i] = (number, blob)
        return best

    def _may_wake_model(self, chunk: bytes, best_bytes: int) -> bool:
        return (
            len(chunk) >= MIN_MODEL_BYTES
            and best_bytes >= REPETITIVE * len(chunk)
            and looks_like_text(chunk)
        )


def looks_like_text(chunk: bytes) -> bool:
    """A cheap guess, with no false "no" for UTF-8 text."""
    if b"\0" in chunk:
        return False
    strange = len(chunk.translate(None, _TEXT))
    if not chunk.isascii():
        strange += len(chunk) - len(chunk.decode("utf-8", "ignore").encode())
    return strange <= MAX_STRANGE * len(chunk)


def default_chooser() -> Chooser:
    """All codecs, with the model that lmfs ships.

    raises: ModelError if that model is not what it should be
    """
    from lmfs.models import registry

    return Chooser(registry.shipped())
