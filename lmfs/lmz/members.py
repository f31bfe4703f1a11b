"""The members of a file, and their chunks by number.

Owns: how members are found from a file's end, and the way from a chunk's number to its bytes.
No cache and no position: any thread may use what is here.
"""

from __future__ import annotations

import contextlib
import itertools
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lmfs.codecs.primer import recent_primers
from lmfs.container import (
    CHECKSUM_BYTES,
    HEADER_PREFIX,
    MAX_TRAILER_BYTES,
    Coding,
    Header,
    Kind,
    Trailer,
    header_length,
    parse_header,
    parse_trailer,
)
from lmfs.errors import DamagedError
from lmfs.layout import MAX_HEAD_NUMBERS, MAX_INDEX_BYTES, Layout, parse_index
from lmfs.lmz.frames import BATCH_BYTES, BATCH_CHUNKS, Frame, FrameDecoder
from lmfs.lmz.source import FileSource

MAX_MEMBERS = 1 << 16
MAX_CHUNKS = 2 * MAX_HEAD_NUMBERS  # of all members


@dataclass(frozen=True)
class Member:
    """One member of a file; offsets in `layout` count from `offset`."""

    header: Header
    layout: Layout
    content_hash: bytes
    offset: int  # of the member in the file
    stored_bytes: int
    start: int = 0  # of its decoded bytes in the whole
    first_chunk: int = 0  # the number, in the whole, of its first chunk

    @property
    def kind(self) -> Kind:
        return self.header.kind

    @property
    def store_id(self) -> bytes | None:
        return self.header.store_id

    @property
    def codings(self) -> tuple[Coding, ...]:
        return self.header.codings

    @property
    def size(self) -> int:
        return self.layout.size


def read_members(source: FileSource) -> list[Member]:
    """The members of a file, found from its end.

    raises: FormatError, VersionError, DamagedError
    """
    where = source.name or None
    header_length(source.pread(min(source.size, HEADER_PREFIX.size), 0), where)
    found = FoundMembers(where)
    end = source.size
    while end:
        end = found.add(_read_member(source, end, where))
    return found.in_order()


class FoundMembers:
    """Members as they are found from a file's end, no more than a reader can remember."""

    def __init__(self, where: object) -> None:
        self._where = where
        self._found: list[Member] = []
        self._chunks = 0

    def add(self, member: Member) -> int:
        """Returns where the member before it ends. raises: DamagedError if they are too many"""
        self._chunks += len(member.layout.starts)
        if self._chunks > MAX_CHUNKS or len(self._found) == MAX_MEMBERS:
            raise DamagedError(
                "more than can be read at random",
                where=self._where,
                expected=f"at most {MAX_MEMBERS:,} members with {MAX_CHUNKS:,} chunks",
                do="`lmz -dc` reads an archive from its beginning to its end",
            )
        self._found.append(member)
        return member.offset

    def in_order(self) -> list[Member]:
        return in_order(self._found[::-1])


def in_order(members: Sequence[Member]) -> list[Member]:
    """These members, one behind the other: each with its place in the whole."""
    placed: list[Member] = []
    start = first_chunk = 0
    for member in members:
        placed.append(replace(member, start=start, first_chunk=first_chunk))
        start += member.size
        first_chunk += len(member.layout.starts)
    return placed


def read_trailer(source: FileSource, end: int, where: object) -> Trailer:
    """The trailer that ends at `end`; the lengths it states fit into the file.

    raises: DamagedError
    """
    tail = min(end, MAX_TRAILER_BYTES)
    trailer = parse_trailer(source.pread(tail, end - tail), where)
    least = HEADER_PREFIX.size + trailer.index_bytes + trailer.packed_bytes
    if not least <= trailer.member_bytes <= end:
        raise DamagedError(
            "member length", where=where, expected=f"{least} to {end}", got=trailer.member_bytes
        )
    if trailer.index_bytes > MAX_INDEX_BYTES:
        raise DamagedError(
            "index length", where=where, expected=f"to {MAX_INDEX_BYTES}", got=trailer.index_bytes
        )
    return trailer


def _read_member(source: FileSource, end: int, where: object) -> Member:
    trailer = read_trailer(source, end, where)
    offset = end - trailer.member_bytes
    length = header_length(source.pread(HEADER_PREFIX.size, offset), where)
    frames_end = trailer.member_bytes - trailer.packed_bytes - trailer.index_bytes
    if length > frames_end:
        raise DamagedError("header length", where=where, expected=f"to {frames_end}", got=length)
    header_bytes = source.pread(length, offset)
    header = parse_header(header_bytes, where)
    section = source.pread(trailer.index_bytes, offset + frames_end)
    return matched_member(trailer, header, header_bytes, section, offset, where)


def matched_member(
    trailer: Trailer,
    header: Header,
    header_bytes: bytes,
    section: bytes,
    offset: int,
    where: object,
) -> Member:
    """A member of parts that must belong together.

    raises: DamagedError, VersionError
    """
    if (
        header.kind is not trailer.kind
        or header.store_id != trailer.store_id
        or int.from_bytes(header_bytes[-CHECKSUM_BYTES:], "little") != trailer.header_checksum
    ):
        raise DamagedError("header and trailer are not of one member", where=where)
    frames_end = trailer.member_bytes - trailer.packed_bytes - trailer.index_bytes
    index = parse_index(section, header, header_bytes, frames_end, where)
    if index.layout.size != trailer.size:
        raise DamagedError(
            "decoded size", where=where, expected=trailer.size, got=index.layout.size
        )
    return Member(header, index.layout, index.content_hash, offset, trailer.member_bytes)


class Chunks:
    """All chunks of a file's members, by number; decodes them in batches."""

    def __init__(
        self,
        source: FileSource,
        members: Sequence[Member],
        model_search: Sequence[Path] = (),
        *,
        trust_index: bool = False,
    ) -> None:
        """
        trust_index: decode a chunk even where its frame's head and the index differ
        """
        self._source = source
        self._members = members
        self._trust_index = trust_index
        self._key = object()  # of this file among all
        self._decoder = FrameDecoder(model_search, source.name or None)
        if len(members) == 1:
            self.starts, self.sizes = members[0].layout.starts, members[0].layout.sizes
        else:
            starts, sizes = array("q"), array("q")
            for member in members:
                starts.extend(start + member.start for start in member.layout.starts)
                sizes.extend(member.layout.sizes)
            self.starts, self.sizes = memoryview(starts), memoryview(sizes)
        self._first_chunks = [member.first_chunk for member in members]
        self.size = sum(member.size for member in members)
        self.largest = max((m.header.chunk_size for m in members), default=1)
        self._batch_chunks = max(1, min(BATCH_CHUNKS, BATCH_BYTES // self.largest))

    def close(self) -> None:
        """Give back what is kept for this file; whoever still decodes it computes that again."""
        for number in range(len(self._members)):
            recent_primers.forget((self._key, number))

    def __len__(self) -> int:
        return len(self.sizes)

    def at(self, offset: int) -> int:
        """The number of the chunk that holds this byte of the whole."""
        return bisect_right(self.starts, offset) - 1

    def batches(self, indices: Sequence[int]) -> Iterator[Sequence[int]]:
        """These numbers, in batches that fit in memory."""
        for at in range(0, len(indices), self._batch_chunks):
            yield indices[at : at + self._batch_chunks]

    def decode(self, indices: Sequence[int]) -> list[bytes | DamagedError]:
        """These chunks, or what is wrong with each."""
        found: dict[int, bytes | DamagedError] = {}
        for number, group in itertools.groupby(sorted(set(indices)), self._member_number):
            found.update(self._decode_in(number, list(group)))
        return [found[i] for i in indices]

    def _decode_in(self, number: int, indices: list[int]) -> dict[int, bytes | DamagedError]:
        """These chunks of one member, ascending, and those that they follow if not yet known."""
        member = self._members[number]
        header = member.header
        primer = self._decoder.primer(header)
        if primer.limit:
            primer = recent_primers.find((self._key, number), lambda: self._decoder.primer(header))
        with contextlib.nullcontext() if primer.complete else primer.growing:
            starts = member.layout.starts
            found: dict[int, bytes | DamagedError] = {}
            follows = 0  # all chunks that end at or before it must be known
            for i in indices:
                start = starts[i - member.first_chunk]
                known = primer.chunk_at(start)
                if known is not None:
                    found[i] = known
                else:
                    coding = member.codings[member.layout.codings[i - member.first_chunk]]
                    follows = max(follows, coding.follows(start))
            wanted = [i for i in indices if i not in found]
            if not primer.serves(follows):
                known_chunks = bisect_left(starts, primer.end)
                stop = bisect_left(starts, follows)
                before = range(member.first_chunk + known_chunks, member.first_chunk + stop)
                wanted = sorted({*wanted, *before})
            frames = self._read_frames(wanted)
            whole = [frame for frame in frames if isinstance(frame, Frame)]
            decoded = iter(self._decoder.decode(whole, primer))
            for i, frame in zip(wanted, frames, strict=True):
                if isinstance(frame, Frame):
                    found[i] = next(decoded)
                else:
                    found[i] = frame
                    place = i - member.first_chunk
                    primer.lost(starts[place], member.layout.sizes[place])
        return found

    def _member_number(self, index: int) -> int:
        """Of the member that has this chunk; the last of several, for one may have none."""
        return bisect_right(self._first_chunks, index) - 1

    def _read_frames(self, indices: Sequence[int]) -> list[Frame | DamagedError]:
        frames: list[Frame | DamagedError] = []
        at = 0
        while at < len(indices):
            # Frames that lie side by side are read at once.
            stop = at + 1
            while stop < len(indices) and self._adjoin(indices[stop - 1], indices[stop]):
                stop += 1
            first, last = self._extent(indices[at])[0], self._extent(indices[stop - 1])[1]
            stored = self._source.pread(last - first, first)
            frames += [self._parse_frame(i, stored, first) for i in indices[at:stop]]
            at = stop
        return frames

    def _extent(self, index: int) -> tuple[int, int]:
        """Where a chunk's frame begins and ends in the file."""
        member = self._members[self._member_number(index)]
        i = index - member.first_chunk
        blob = member.layout.blob_offsets[i]
        return (
            member.offset + member.layout.frame_offsets[i],
            member.offset + blob + member.layout.coded_sizes[i],
        )

    def _adjoin(self, one: int, other: int) -> bool:
        return self._extent(one)[1] == self._extent(other)[0]

    def _parse_frame(self, index: int, stored: bytes, first: int) -> Frame | DamagedError:
        member = self._members[self._member_number(index)]
        layout, i = member.layout, index - member.first_chunk
        begin, end = (offset - first for offset in self._extent(index))
        blob_at = member.offset + layout.blob_offsets[i] - first
        head_at = layout.head_starts[i]
        head = stored[begin : blob_at - CHECKSUM_BYTES]
        if not self._trust_index and head != layout.heads[head_at : head_at + len(head)]:
            return self._decoder.damage(
                self.starts[index],
                layout.sizes[i],
                first + begin,
                "the frame's head and the index differ",
            )
        return Frame(
            coding=member.codings[layout.codings[i]],
            size=layout.sizes[i],
            start=layout.starts[i],
            checksum=int.from_bytes(stored[blob_at - CHECKSUM_BYTES : blob_at], "little"),
            blob=stored[blob_at:end],
            offset=first + begin,
        )
