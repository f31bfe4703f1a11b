"""What lies between a member's header and its trailer: frame heads and the index section.

Owns: FORMAT.md's "Frames" and "Index section", and where every chunk lies. Imports nothing of
lmfs but `errors`, `container` and `zstd_blob`; does no I/O. Everything here is pure or immutable:
any thread may call it. As in `container`, every parser takes unchecked bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmfs import zstd_blob
from lmfs.container import (
    CHECKSUM_BYTES,
    DO_UPDATE,
    HASH_BYTES,
    Header,
    checksum,
    pack_varint,
    unpack_varint,
)
from lmfs.errors import DamagedError, VersionError

FRAME_INDEX = 0
FRAME_SHORT_CHUNK = 1

INDEX_COMPRESSED = 1
INDEX_HEADER_COPY = 2
INDEX_LEVEL = 19

# What a reader keeps of a member is in proportion to the numbers in its heads, and these may be a
# thousand times as many as the bytes of the file that hold them.
MAX_HEAD_NUMBERS = 1 << 22  # a chunk of full size has one
MAX_INDEX_BYTES = 1 << 26


def unpack_varints(data: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All varints of `data`: their values (n,) and the offsets behind them (n,).

    raises: ValueError if one is cut, not minimal, or 2^63 or more, or if they are too many.
    """
    octets = np.frombuffer(data, dtype=np.uint8)
    if not len(octets):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    last = octets < 0x80
    if not last[-1]:
        raise ValueError("a varint is cut off")
    if np.count_nonzero(last) > MAX_HEAD_NUMBERS:
        raise ValueError(f"more than {MAX_HEAD_NUMBERS} varints")
    ends = np.flatnonzero(last) + 1
    starts = np.concatenate(([0], ends[:-1]))
    lengths = ends - starts
    if lengths.max() > 9:
        raise ValueError("a varint is longer than nine bytes")
    if np.any((octets[ends - 1] == 0) & (lengths > 1)):
        raise ValueError("a varint is longer than it must be")
    values = np.zeros(len(ends), np.int64)
    for place in range(int(lengths.max())):
        has = np.flatnonzero(lengths > place)
        values[has] |= (octets[starts[has] + place] & 0x7F).astype(np.int64) << (7 * place)
    return values, ends


def pack_head(header: Header, coding: int, size: int, coded_size: int) -> bytes:
    """The head of a chunk's frame: `size` bytes coded as `coded_size` bytes."""
    word = pack_varint(coded_size << header.coding_bits | coding)
    if size == header.chunk_size:
        return word
    return pack_varint(FRAME_SHORT_CHUNK << header.coding_bits | header.escape) + (
        pack_varint(size) + word
    )


class SectionFrame(NamedTuple):
    """A typed section between the chunks: `offset` is its payload's, from the member's start."""

    kind: int
    offset: int
    size: int


@dataclass(frozen=True)
class Layout:
    """Where everything in a member lies: one entry a chunk, offsets from the member's start."""

    starts: NDArray[np.int64]  # of the decoded bytes
    sizes: NDArray[np.int64]  # decoded
    codings: NDArray[np.int64]
    coded_sizes: NDArray[np.int64]
    frame_offsets: NDArray[np.int64]
    blob_offsets: NDArray[np.int64]  # behind the head and its checksum
    head_starts: NDArray[np.int64]  # of the frame's head within `heads`
    heads: bytes
    sections: tuple[SectionFrame, ...]
    size: int  # decoded bytes of the member
    end: int  # where the index section begins


def parse_heads(heads: bytes, header: Header, first: int, limit: int, where: object) -> Layout:
    """The layout that a member's frame heads, in order, describe.

    first: where the first frame begins; limit: the frames must end at or before it.
    raises: DamagedError, VersionError
    """
    try:
        values, ends = unpack_varints(heads)
    except ValueError as reason:
        raise DamagedError(f"index: {reason}", where=where) from None
    begins = ends - np.diff(ends, prepend=0)
    codings = values & header.escape
    payloads = values >> header.coding_bits
    sizes = np.full(len(values), header.chunk_size, np.int64)
    opens = np.arange(len(values))  # for a frame's last varint: the number of its first one
    is_chunk = np.ones(len(values), bool)
    is_last = np.ones(len(values), bool)
    following = 0
    section_at: list[tuple[int, int]] = []
    section_bytes = 0
    for i in np.flatnonzero(codings == header.escape).tolist():
        if i < following:
            continue
        kind = int(payloads[i])
        if kind == FRAME_INDEX or i + (2 if kind == FRAME_SHORT_CHUNK else 1) >= len(values):
            raise DamagedError("index: a frame is cut off", where=where)
        if kind == FRAME_SHORT_CHUNK:
            following = i + 3
            sizes[i + 2] = values[i + 1]
            if codings[i + 2] == header.escape:
                raise DamagedError("index: a short chunk without a coding", where=where)
            if not 0 < values[i + 1] < header.chunk_size:
                raise DamagedError("index: a short chunk's size", where=where)
            opens[i + 2] = i
        else:
            following = i + 2
            check_section(kind, where)
            if values[i + 1] > limit:
                raise DamagedError("index: a section's length", where=where)
            section_at.append((i + 1, kind))
            section_bytes += int(values[i + 1])
            opens[i + 1] = i
            payloads[i + 1] = values[i + 1]
        is_last[i : following - 1] = False
    is_chunk &= is_last
    is_chunk[[i for i, _ in section_at]] = False
    chunk = np.flatnonzero(is_chunk)
    if np.any(codings[chunk] >= len(header.codings)):
        raise DamagedError("index: an undeclared coding", where=where)
    if np.any((payloads[chunk] > sizes[chunk]) | (payloads[chunk] < 1)):
        raise DamagedError("index: a chunk's coded length", where=where)
    if section_bytes > limit:
        raise DamagedError("index: lengths", where=where)
    stored = np.where(is_last, payloads + CHECKSUM_BYTES, 0)
    after = first + ends + np.cumsum(stored)
    end = int(after[-1]) if len(after) else first
    if end > limit:
        raise DamagedError("index: frames", where=where, expected=f"up to {limit}", got=end)
    blobs = after - payloads
    head_starts = begins[opens[chunk]]
    chunk_sizes = sizes[chunk]
    starts = np.cumsum(chunk_sizes) - chunk_sizes
    return Layout(
        starts=starts,
        sizes=chunk_sizes,
        codings=codings[chunk],
        coded_sizes=payloads[chunk],
        frame_offsets=blobs[chunk] - CHECKSUM_BYTES - (ends[chunk] - head_starts),
        blob_offsets=blobs[chunk],
        head_starts=head_starts,
        heads=heads,
        sections=tuple(
            SectionFrame(kind, int(blobs[i]), int(payloads[i])) for i, kind in section_at
        ),
        size=int(chunk_sizes.sum()),
        end=end,
    )


def check_section(kind: int, where: object) -> None:
    """Refuse a critical section, for this version knows none; an ancillary one may be skipped."""
    if kind & 1:
        raise VersionError(f"critical section of type {kind}", where=where, do=DO_UPDATE)


# ---------------------------------------------------------------------------- index section


@dataclass(frozen=True)
class Index:
    """A parsed index section."""

    content_hash: bytes
    layout: Layout


def pack_index(
    header: Header, heads: bytes, content_hash: bytes, header_copy: bytes | None = None
) -> bytes:
    """The index section of a member with these frame heads."""
    body = (header_copy or b"") + heads
    flags = INDEX_HEADER_COPY if header_copy is not None else 0
    stored = zstd_blob.compress(body, INDEX_LEVEL) if body else body
    lengths = pack_varint(len(body))
    if len(stored) < len(body):
        flags |= INDEX_COMPRESSED
        lengths += pack_varint(len(stored))
        body = stored
    section = bytes([header.escape, flags]) + content_hash + lengths + body
    return section + checksum(section).to_bytes(CHECKSUM_BYTES, "little")


def index_body(section: bytes, limit: int, where: object) -> tuple[int, bytes, bytes]:
    """An index section's flags, content hash and body; the body is at most `limit` bytes long.

    raises: DamagedError, VersionError
    """
    fixed = 2 + HASH_BYTES
    if len(section) < fixed + 1 + CHECKSUM_BYTES:
        raise DamagedError("index section cut off", where=where)
    stored_checksum = int.from_bytes(section[-CHECKSUM_BYTES:], "little")
    section = section[:-CHECKSUM_BYTES]
    if checksum(section) != stored_checksum:
        raise DamagedError("index checksum", where=where, do="try `lmfs recover`")
    flags = section[1]
    if flags & ~(INDEX_COMPRESSED | INDEX_HEADER_COPY):
        raise VersionError("reserved index bits are set", where=where, do=DO_UPDATE)
    try:
        size, at = unpack_varint(section, fixed)
        stored_size = size
        if flags & INDEX_COMPRESSED:
            stored_size, at = unpack_varint(section, at)
    except ValueError as reason:
        raise DamagedError(f"index: {reason}", where=where) from None
    if size > min(limit, MAX_INDEX_BYTES) or stored_size != len(section) - at:
        raise DamagedError("index length", where=where)
    if flags & INDEX_COMPRESSED and stored_size >= size:
        raise DamagedError("index: compressed, but not shorter", where=where)
    body = section[at:]
    if flags & INDEX_COMPRESSED:
        body = zstd_blob.decompress(body, size)
    return flags, section[2:fixed], body


def parse_index(
    section: bytes, header: Header, header_bytes: bytes, end: int, where: object = None
) -> Index:
    """The index section that begins `end` bytes after the member does, behind its frames.

    raises: DamagedError, VersionError
    """
    flags, content_hash, body = index_body(section, end, where)
    if section[0] != header.escape:
        raise DamagedError("index section", where=where)
    if flags & INDEX_HEADER_COPY:
        if not body.startswith(header_bytes):
            raise DamagedError("the header and its copy in the index differ", where=where)
        body = body[len(header_bytes) :]
    layout = parse_heads(body, header, len(header_bytes), end, where)
    if layout.end != end:
        raise DamagedError("index: frames", where=where, expected=f"up to {end}", got=layout.end)
    return Index(content_hash, layout)
