"""Zstandard, each chunk a frame of its own, without the bytes that the container repeats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmfs import zstd_blob

if TYPE_CHECKING:
    from lmfs.native import Mixer


class ZstdCodec:
    """A blob is a zstd blob (FORMAT.md). Keeps no state: any thread may use one."""

    def __init__(self, level: int = 19) -> None:
        self._level = level

    def encode(self, chunks: Sequence[bytes], after: Mixer | None = None) -> list[bytes]:
        return [zstd_blob.compress(chunk, self._level) for chunk in chunks]

    def decode(
        self, blobs: Sequence[bytes], sizes: Sequence[int], after: Mixer | None = None
    ) -> list[bytes]:
        return [zstd_blob.decompress(blob, size) for blob, size in zip(blobs, sizes, strict=True)]
