"""Zstandard frames without what the container already knows.

Owns: FORMAT.md's "zstd blob": one Zstandard frame (RFC 8878) whose first five bytes, the magic
number and a frame header descriptor of zero, are left out. Imports nothing of lmfs but `errors`.
Pure functions: any thread may call them.
"""

from __future__ import annotations

import zstandard

from lmfs.errors import DamagedError

PREFIX = bytes.fromhex("28b52ffd00")


def compress(data: bytes, level: int) -> bytes:
    """`data`, which is not empty, as a zstd blob."""
    compressor = zstandard.ZstdCompressor(
        level=level, write_content_size=False, write_checksum=False, write_dict_id=False
    )
    frame = compressor.compress(data)
    assert frame.startswith(PREFIX)
    return frame[len(PREFIX) :]


def decompress(blob: bytes, size: int) -> bytes:
    """The `size` bytes that a blob stands for; allocates no more than about twice that.

    raises: DamagedError
    """
    # A descriptor of zero declares neither content size nor dictionary, so the window, which
    # zstd allocates, is all that a hostile blob can ask for: it may not exceed what is needed.
    if not blob or _window_bytes(blob[0]) > max(1024, 1 << (size - 1).bit_length()):
        raise DamagedError("zstd blob", expected="a window no larger than the chunk")
    try:
        data = zstandard.ZstdDecompressor().decompress(
            PREFIX + blob, max_output_size=size, allow_extra_data=False
        )
    except zstandard.ZstdError as reason:
        raise DamagedError("zstd blob", got=str(reason)) from None
    if len(data) != size:
        raise DamagedError("zstd blob", expected=f"{size} bytes", got=len(data))
    return data


def _window_bytes(descriptor: int) -> int:
    base = 1 << (10 + (descriptor >> 3))
    return base + (base >> 3) * (descriptor & 7)
