"""What lies between a member's header and its trailer: frame heads and the index section.

Owns: FORMAT.md's "Frames" and "Index section", and where every chunk lies. Imports nothing of
lmfs but `errors`, `container`, `native` and `zstd_blob`; does no I/O. Everything here is pure or
immutable: any thread may call it. As in `container`, every parser takes unchecked bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lmfs import native, zstd_blob
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
_NOT_LAST = bytes(range(128, 256))  # of a varint's bytes


def pack_head(header: Header, coding: int, size: int, coded_size: int) -> bytes:
    """The head of a chunk's frame: `size` bytes coded as `coded_size` bytes."""
    word = pack_varint(coded_size << header.coding_bits | coding)
    if size == header.chunk_size:
        return word
    return pack_varint(FRAME_SHORT_CHUNK << header.coding_bits | header.escape) + (
        pack_varint(size) + word
    )


def pack_section_head(header: Header, kind: int, size: int) -> bytes:
    """The head of a section's frame: a payload of `size` bytes."""
    return pack_varint(kind << header.coding_bits | header.escape) + pack_varint(size)


class SectionFrame(NamedTuple):
    """A typed section between the chunks: `offset` is its payload's, from the member's start."""

    kind: int
    offset: int
    size: int


@dataclass(frozen=True)
class Layout:
    """Where everything in a member lies: one entry (int64) a chunk, offsets from the member's
    start."""

    starts: memoryview  # of the decoded bytes
    sizes: memoryview  # decoded
    codings: memoryview
    coded_sizes: memoryview
    frame_offsets: memoryview
    blob_offsets: memoryview  # behind the head and its checksum
    head_starts: memoryview  # of the frame's head within `heads`
    heads: bytes
    sections: tuple[SectionFrame, ...]
    size: int  # decoded bytes of the member
    end: int  # where the index section begins


def parse_heads(heads: bytes, header: Header, first: int, limit: int, where: object) -> Layout:
    """The layout that a member's frame heads, in order, describe.

    first: where the first frame begins; limit: the frames must end at or before it.
    raises: DamagedError, VersionError
    """
    if len(heads.translate(None, _NOT_LAST)) > MAX_HEAD_NUMBERS:
        raise DamagedError(f"index: more than {MAX_HEAD_NUMBERS} varints", where=where)
    try:
        columns, sections, size, end = native.parse_heads(
            heads,
            chunk_size=header.chunk_size,
            coding_bits=header.coding_bits,
            codings=len(header.codings),
            first=first,
            limit=limit,
        )
    except ValueError as reason:
        raise DamagedError(f"index: {reason}", where=where) from None
    for kind, _, _ in sections:
        check_section(kind, where)
    numbers = (memoryview(column).cast("q") for column in columns)
    starts, sizes, codings, coded_sizes, frame_offsets, blob_offsets, head_starts = numbers
    return Layout(
        starts=starts,
        sizes=sizes,
        codings=codings,
        coded_sizes=coded_sizes,
        frame_offsets=frame_offsets,
        blob_offsets=blob_offsets,
        head_starts=head_starts,
        heads=heads,
        sections=tuple(SectionFrame(*section) for section in sections),
        size=size,
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
