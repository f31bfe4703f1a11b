"""The codec that changes nothing: what no other codec makes smaller is stored as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmfs.errors import DamagedError

if TYPE_CHECKING:
    from lmfs.native import Mixer


class RawCodec:
    """A blob is the chunk. Any thread may use one."""

    def encode(self, chunks: Sequence[bytes], after: Mixer | None = None) -> list[bytes]:
        return list(chunks)

    def decode(
        self, blobs: Sequence[bytes], sizes: Sequence[int], after: Mixer | None = None
    ) -> list[bytes]:
        for blob, size in zip(blobs, sizes, strict=True):
            if len(blob) != size:
                raise DamagedError("raw blob", expected=f"{size} bytes", got=len(blob))
        return list(blobs)
