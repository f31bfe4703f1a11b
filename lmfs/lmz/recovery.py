"""Every whole chunk of a damaged or truncated container.

Owns: the search for frames where header, index or trailer are gone. Yields nothing whose
checksum does not hold. One recovery is for one thread.

Members are first looked for from the end of the file: where trailer and index are whole, every
chunk's place is known, whatever happened to the header and the frames. What lies before the last
such member is walked from the front, frame by frame. Where the walk is lost, the next frame is
searched for: a chain of plausible frame heads whose first chunk's checksum holds.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lmfs.codecs.primer import Primer
from lmfs.container import (
    CHECKSUM_BYTES,
    HASH_BYTES,
    HEADER_PREFIX,
    MAGIC_BYTES,
    CodecId,
    Header,
    Kind,
    checksum,
    header_length,
    parse_header,
    unpack_varint,
)
from lmfs.errors import DamagedError, FormatError, LmfsError
from lmfs.layout import (
    FRAME_INDEX,
    FRAME_SHORT_CHUNK,
    INDEX_COMPRESSED,
    INDEX_HEADER_COPY,
    MAX_INDEX_BYTES,
    index_body,
    parse_heads,
)
from lmfs.lmz.frames import BATCH_BYTES, BATCH_CHUNKS, Frame, FrameDecoder
from lmfs.lmz.members import Chunks, FoundMembers, Member, matched_member, read_trailer
from lmfs.lmz.source import FileSource, section_holds

# So many plausible heads in a row are found in random bytes about once in 10^6 places.
_CHAIN = 24
# A model decodes about one chunk a second alone: at most so many guesses for each lost place.
_MODEL_GUESSES = 64
_NEXT_GUESSES = 8  # of them for chunks that follow all before the lost place
# So much may have been cut out of a file, frames and all, and what is behind it is still placed.
_MISSING_CHUNKS = 4096
_MISSING_BYTES = 256 << 20
_WINDOW_BYTES = 1 << 20
# A search reads and hashes on trial what may be a frame: in a file that was made for it at every
# place, and up to the end. So much in all, beside the bytes of the file a thousand times.
_TRIAL_BYTES = 1 << 34
_TRIALS_A_BYTE = 1 << 10
_TRIAL_COST = 1 << 12  # of any
_LONGEST_HEAD = 30
_MAGICS = frozenset(kind.value for kind in Kind)


@dataclass(frozen=True)
class Recovered:
    """A chunk that is right. `start` is None where it is not known how much is lost before."""

    start: int | None
    data: bytes


@dataclass(frozen=True)
class Hole:
    """Bytes that are lost: from `start` on, `size` of them, where these are known."""

    start: int | None
    size: int | None
    reason: str


def recover(
    file: BinaryIO | str | os.PathLike[str], *, model_search: Sequence[Path] = ()
) -> Iterator[Recovered | Hole]:
    """What can be had of a container of any kind, in order, and what is lost between.

    file: a path, or a file object that can seek
    raises: FormatError if nothing in it looks like a container; UnknownModelError, OSError
    """
    source = FileSource(file)
    try:
        indexed = _indexed_members(source)
        end = indexed[0].offset if indexed else source.size
        walk = _Walk(source, end, model_search)
        yield from walk.run()
        if not walk.members and not indexed:
            raise FormatError("nothing that looks like an .lmz", where=source.name or None)
        base = walk.start
        chunks = Chunks(source, indexed, model_search, trust_index=True)
        for batch in chunks.batches(range(len(chunks))):
            for i, chunk in zip(batch, chunks.decode(batch), strict=True):
                start = None if base is None else base + chunks.starts[i]
                if isinstance(chunk, bytes):
                    yield Recovered(start, chunk)
                else:
                    yield Hole(start, chunks.sizes[i], str(chunk.got))
    finally:
        source.close()


@dataclass(frozen=True)
class Saved:
    """What `save_whole` wrote; `unsure` if behind a hole of unknown size bytes may be misplaced."""

    whole_bytes: int
    unsure: bool
    holes: list[Hole]


def save_whole(
    file: BinaryIO | str | os.PathLike[str], target: BinaryIO, *, model_search: Sequence[Path] = ()
) -> Saved:
    """Write every whole chunk at its place, zeros where bytes are lost; durably.

    target: empty, seekable
    raises: as `recover`
    """
    holes: list[Hole] = []
    whole_bytes = at = 0
    for piece in recover(file, model_search=model_search):
        at = at if piece.start is None else piece.start
        if isinstance(piece, Hole):
            holes.append(piece)
            at += piece.size or 0
        else:
            target.seek(at)
            target.write(piece.data)
            whole_bytes += len(piece.data)
            at += len(piece.data)
    target.truncate(at)
    target.flush()
    os.fsync(target.fileno())
    return Saved(whole_bytes, any(hole.size is None for hole in holes), holes)


# ------------------------------------------------------------------------------ from the end


def _indexed_members(source: FileSource) -> list[Member]:
    found = FoundMembers(None)
    end = source.size
    while end:
        try:
            end = found.add(_indexed_member(source, end))
        except LmfsError:
            break
    return found.in_order()


def _indexed_member(source: FileSource, end: int) -> Member:
    trailer = read_trailer(source, end, None)
    offset = end - trailer.member_bytes
    frames_end = trailer.member_bytes - trailer.packed_bytes - trailer.index_bytes
    section = source.pread(trailer.index_bytes, offset + frames_end)
    try:
        length = header_length(source.pread(HEADER_PREFIX.size, offset))
        header_bytes = source.pread(length, offset)
        header = parse_header(header_bytes)
    except (FormatError, DamagedError):
        flags, _, body = index_body(section, trailer.member_bytes, None)
        if not flags & INDEX_HEADER_COPY:
            raise
        header_bytes = body[: header_length(body)]
        header = parse_header(header_bytes)
    return matched_member(trailer, header, header_bytes, section, offset, None)


# ---------------------------------------------------------------------------- from the front


class _Head(NamedTuple):
    """A chunk's frame as its head describes it."""

    coding: int
    size: int  # decoded
    coded_size: int
    offset: int  # of the frame
    blob: int  # where the blob begins
    end: int


class _Skip(NamedTuple):
    """A section that holds no chunk."""

    end: int


class _End(NamedTuple):
    """An index section whose checksum holds: the frames are over."""

    end: int
    size: int | None  # decoded, of the member


class _Cut(NamedTuple):
    """A plausible frame that goes on behind the end of the file."""

    size: int


class _Walk:
    """From frame to frame, from the beginning of a file to `end`."""

    def __init__(self, source: FileSource, end: int, model_search: Sequence[Path]) -> None:
        self._source = source
        self._end = end
        self._decoder = FrameDecoder(model_search, source.name or None)
        self._primer: Primer  # of the member being read
        self._window = b""
        self._window_at = 0
        self._trials_left = _TRIAL_BYTES + _TRIALS_A_BYTE * end
        self.members = 0
        self.start: int | None = 0  # in the whole, of the member being read; None: not known

    def run(self) -> Iterator[Recovered | Hole]:
        """All that can be had before the end."""
        at = 0
        while at < self._end:
            found = self._find_header(at)
            offset = self._end if found is None else found[0]
            if offset > at:
                yield Hole(self.start, None, f"no container in bytes {at} to {offset}")
                self.start = None
            if found is None:
                return
            self.members += 1
            at = yield from self._member(found[1], found[2])

    def _find_header(self, at: int) -> tuple[int, Header, int] | None:
        """The first place from `at` on where a header is whole, that header, and its end."""
        while at < self._end:
            window = self._bytes(at, _WINDOW_BYTES)
            places = [window.find(kind.value) for kind in Kind]
            hit = min((place for place in places if place >= 0), default=-1)
            if hit < 0:
                at += max(1, len(window) - MAGIC_BYTES + 1)
                continue
            at += hit
            try:
                length = header_length(self._bytes(at, HEADER_PREFIX.size))
                return at, parse_header(self._bytes(at, length)), at + length
            except (FormatError, DamagedError):
                at += 1
        return None

    def _member(self, header: Header, at: int) -> Generator[Recovered | Hole, None, int]:
        """A member's chunks, its first frame being at `at`; returns where it ends."""
        self._primer = self._decoder.primer(header)
        base, start = self.start, 0  # in the whole, and of the next chunk in the member

        def whole(offset: int) -> int | None:
            return None if base is None else base + offset

        while True:
            heads, stop = self._heads(header, at)
            chunks = self._decode(header, heads, start)
            # A chunk that fails before one that holds is damaged and no more. Those that fail
            # behind the last that holds may come of a damaged head that led the walk astray, or
            # of frames that are missing before them: then the sizes do not add up in the end.
            good = len(heads)
            adds_up = isinstance(stop, _End) and stop.size == start + sum(h.size for h in heads)
            while not adds_up and good and chunks[good - 1] is None:
                good -= 1
            for head, chunk in zip(heads[:good], chunks, strict=False):
                if chunk is None:
                    yield Hole(whole(start), head.size, "damaged chunk")
                else:
                    yield Recovered(whole(start), chunk)
                start += head.size
                at = head.end
            if good == len(heads):
                if stop is None and heads:
                    continue
                if isinstance(stop, _Cut):
                    yield Hole(whole(start), None, "the end is missing")
                    self.start = None
                    return self._end
            if isinstance(stop, _End) and good == len(heads):
                found: tuple[int, int] | _End | None = stop
            else:
                found = self._search(header, at, start)
            if found is None:
                yield Hole(whole(start), None, f"no more frames from byte {at} on")
                self.start = None
                following = self._find_header(at)
                return self._end if following is None else following[0]
            next_start = found.size if isinstance(found, _End) else found[1]
            if next_start is None or next_start != start:
                size = None if next_start is None else next_start - start
                yield Hole(whole(start), size, "lost chunks")
            if isinstance(found, _End):
                self.start = None if found.size is None else whole(found.size)
                return found.end
            at, start = found

    def _heads(
        self, header: Header, at: int, most: int | None = None
    ) -> tuple[list[_Head], _End | _Cut | str | None]:
        """Frame heads from `at` on, a batch at most, and what ended them (None: enough)."""
        if most is None:
            most = max(1, min(BATCH_CHUNKS, BATCH_BYTES // header.chunk_size))
        heads: list[_Head] = []
        while len(heads) < most:
            part = self._part(header, at)
            if isinstance(part, _Head):
                heads.append(part)
            elif not isinstance(part, _Skip):
                return heads, part
            at = part.end
        return heads, None

    def _part(self, header: Header, at: int) -> _Head | _Skip | _End | _Cut | str:
        """What stands at `at`, or why nothing can."""
        data = self._bytes(at, _LONGEST_HEAD)
        try:
            word, used = unpack_varint(data, 0)
            size = header.chunk_size
            if word & header.escape == header.escape:
                kind = word >> header.coding_bits
                if kind == FRAME_INDEX:
                    return self._index(header, at)
                size, used = unpack_varint(data, used)
                if kind != FRAME_SHORT_CHUNK:
                    return self._section(at + used, size)
                if not 0 < size < header.chunk_size:
                    return "a short chunk's size"
                word, used = unpack_varint(data, used)
        except ValueError as reason:
            if at + len(data) == self._end and len(data) < _LONGEST_HEAD:
                return _Cut(header.chunk_size)
            return str(reason)
        coding, coded_size = word & header.escape, word >> header.coding_bits
        # Zeros, which lost sectors read as, would else be frames without end.
        if coding >= len(header.codings) or not 0 < coded_size <= size:
            return "a frame's head"
        if header.codings[coding].codec is CodecId.RAW and coded_size != size:
            return "a raw chunk's length"
        blob = at + used + CHECKSUM_BYTES
        if blob + coded_size > self._end:
            return _Cut(size)
        return _Head(coding, size, coded_size, at, blob, blob + coded_size)

    def _section(self, at: int, size: int) -> _Skip | str:
        if size > self._end - at - CHECKSUM_BYTES:
            return "a section's length"
        self._trials_left -= size
        if not section_holds(self._source, at + CHECKSUM_BYTES, size):
            return "a section's checksum"
        return _Skip(at + CHECKSUM_BYTES + size)

    def _index(self, header: Header, at: int) -> _End | _Cut | str:
        fixed = 2 + HASH_BYTES
        data = self._bytes(at, fixed + 20)
        known = INDEX_COMPRESSED | INDEX_HEADER_COPY
        if len(data) > 1 and data[1] & ~known:
            return "an index section's flags"
        try:
            size, used = unpack_varint(data, fixed)
            if data[1] & INDEX_COMPRESSED:
                size, used = unpack_varint(data, used)
        except (ValueError, IndexError):
            return "an index section"
        end = at + used + size + CHECKSUM_BYTES
        if size > MAX_INDEX_BYTES:
            return "an index section's length"
        if end > self._end:
            return _Cut(0)
        self._trials_left -= size
        try:
            flags, _, heads = index_body(self._source.pread(end - at, at), at, None)
            if flags & INDEX_HEADER_COPY:
                heads = heads[header_length(heads) :]
            # Bytes before it may be missing: no limit but what can be counted.
            layout = parse_heads(heads, header, 0, 1 << 62, None)
        except (FormatError, DamagedError):
            return "an index section"
        return _End(min(self._end, end + header.trailer_bytes), layout.size)

    def _frame(self, header: Header, head: _Head, start: int) -> Frame:
        stored = self._bytes(head.blob - CHECKSUM_BYTES, CHECKSUM_BYTES + head.coded_size)
        return Frame(
            header.codings[head.coding],
            head.size,
            start,
            int.from_bytes(stored[:CHECKSUM_BYTES], "little"),
            stored[CHECKSUM_BYTES:],
            head.offset,
        )

    def _decode(self, header: Header, heads: list[_Head], start: int) -> list[bytes | None]:
        frames = []
        for head in heads:
            frames.append(self._frame(header, head, start))
            start += head.size
        decoded = self._decoder.decode(frames, self._primer)
        return [chunk if isinstance(chunk, bytes) else None for chunk in decoded]

    def _search(self, header: Header, begin: int, start: int) -> tuple[int, int] | _End | None:
        """Where frames go on from `begin` on: the place, and the decoded offset there.

        The offset is found by trial: it is part of what a chunk's checksum covers.
        """
        guesses, next_guesses = _MODEL_GUESSES, _NEXT_GUESSES
        at = begin - 1
        while (at := self._nonzero(at + 1)) < self._end and self._trials_left > 0:
            if self._bytes(at, MAGIC_BYTES) in _MAGICS:
                return None
            heads, stop = self._heads(header, at, _CHAIN)
            if isinstance(stop, _End) and not heads:
                return stop
            ends_well = stop is None or isinstance(stop, (_End, _Cut))
            if not heads or not ends_well:
                continue
            frame = self._frame(header, heads[0], start)
            if not self._primer.serves(frame.coding.primer_bytes):
                # Mostly what it follows is lost; but it may be the very next one.
                if not next_guesses or not self._primer.serves(frame.follows):
                    continue
                next_guesses -= 1
            if frame.coding.codec.predicts:
                if not guesses:
                    continue
                guesses -= 1
            chunk = self._decoder.decode_unchecked([frame], self._primer)[0]
            self._trials_left -= _TRIAL_COST + frame.size
            if isinstance(chunk, DamagedError):
                continue
            # A lost chunk took at least five bytes; or it is gone with its bytes.
            most = max((at - begin) // 5 + 2, min(_MISSING_CHUNKS, _MISSING_BYTES // len(chunk)))
            most = min(most, max(1, self._trials_left // (_TRIAL_COST + len(chunk))))
            for lost in range(most):
                self._trials_left -= _TRIAL_COST + len(chunk)
                if checksum(chunk, start + lost * header.chunk_size) == frame.checksum:
                    return at, start + lost * header.chunk_size
        return None

    def _nonzero(self, at: int) -> int:
        """The first place from `at` on without a zero byte: no frame begins with one."""
        while at < self._end and self._bytes(at, 1) == b"\0":
            offset = at - self._window_at
            zeros = len(self._window) - offset - len(self._window[offset:].lstrip(b"\0"))
            at += zeros
        return at

    def _bytes(self, at: int, size: int) -> bytes:
        """Up to `size` bytes, fewer at the end."""
        size = min(size, self._end - at)
        offset = at - self._window_at
        if not 0 <= offset <= len(self._window) - size:
            self._trials_left -= _WINDOW_BYTES
            self._window_at, offset = at, 0
            self._window = self._source.pread(min(max(size, _WINDOW_BYTES), self._end - at), at)
        return self._window[offset : offset + size]
