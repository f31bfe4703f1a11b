"""Reads a container front to back from anything that can `read`, a pipe for one.

Owns: the order in which a member's parts arrive, and the proof at its end that all came. Keeps
no more than a batch of chunks and the frame heads in memory. One stream is for one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import xxhash
from blake3 import blake3

from lmfs.container import (
    CHECKSUM_BYTES,
    HASH_BYTES,
    HEADER_PREFIX,
    Header,
    Kind,
    header_length,
    pack_varint,
    parse_header,
    parse_trailer,
    sniff,
)
from lmfs.errors import DamagedError, FormatError
from lmfs.layout import (
    FRAME_INDEX,
    FRAME_SHORT_CHUNK,
    INDEX_COMPRESSED,
    MAX_HEAD_NUMBERS,
    MAX_INDEX_BYTES,
    check_section,
    parse_index,
)
from lmfs.lmz.frames import BATCH_BYTES, BATCH_CHUNKS, Frame, FrameDecoder

_FIRST_BATCH_CHUNKS = 4
_PIECE_BYTES = 64 * 1024


class _Pipe:
    """Counts and gathers what a file gives, however small its pieces."""

    def __init__(self, file: BinaryIO, where: object) -> None:
        self._read = getattr(file, "read1", file.read)
        self._buffer = bytearray()
        self._where = where
        self.position = 0

    def take(self, size: int) -> bytes:
        """Exactly `size` bytes. raises: DamagedError if the file ends before"""
        while len(self._buffer) < size:
            piece = self._read(_PIECE_BYTES)
            if not piece:
                raise DamagedError(
                    "the end is missing",
                    where=self._where,
                    got=f"{self.position + len(self._buffer)} bytes only",
                    do="`lmfs recover` saves every whole chunk",
                )
            self._buffer += piece
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        self.position += size
        return taken

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end."""
        while len(self._buffer) < size:
            piece = self._read(_PIECE_BYTES)
            if not piece:
                break
            self._buffer += piece
        return bytes(self._buffer[:size])

    def varint(self) -> tuple[int, bytes]:
        """A varint and the bytes it was made of."""
        value, taken = 0, b""
        while len(taken) < 9:
            byte = self.take(1)
            value |= (byte[0] & 0x7F) << (7 * len(taken))
            taken += byte
            if byte[0] < 0x80:
                if taken != pack_varint(value):
                    break
                return value, taken
        raise DamagedError("a varint is malformed", where=self._where, got=taken.hex(" "))


def stream_decode(
    file: BinaryIO, *, model_search: Sequence[Path] = (), name: str | None = None
) -> Iterator[bytes]:
    """The chunks of a container, each checked before it is yielded.

    Whoever uses them before the iterator has ended uses bytes that are right, of a whole that
    may still turn out to be cut off.

    raises: FormatError, VersionError, DamagedError, UnknownModelError
    """
    pipe = _Pipe(file, name)
    header_length(pipe.peek(HEADER_PREFIX.size), name)
    decoder = FrameDecoder(model_search, name)
    while True:
        yield from _Member(pipe, decoder, name).chunks()
        following = pipe.peek(HEADER_PREFIX.size)
        if not following:
            return
        if sniff(following) is None:
            raise DamagedError(
                "bytes behind the end that are no container", where=name, got=following[:8].hex(" ")
            )


class _Member:
    """One member as it comes in."""

    def __init__(self, pipe: _Pipe, decoder: FrameDecoder, where: str | None) -> None:
        self._pipe, self._decoder, self._where = pipe, decoder, where
        self._begin = pipe.position
        self._header_bytes = pipe.take(header_length(pipe.peek(HEADER_PREFIX.size), where))
        self._header: Header = parse_header(self._header_bytes, where)
        if self._header.kind is Kind.FROZEN:
            raise FormatError(
                "a frozen file of a store, not an archive",
                where=where,
                do="read it through its mount, or `lmfs thaw` it",
            )
        self._primer = decoder.primer(self._header, in_order=True)
        self._heads = bytearray()
        self._head_numbers = 0
        self._size = 0
        self._hash = blake3()

    def chunks(self) -> Iterator[bytes]:
        """The member's chunks; then its index and trailer are read and compared."""
        most = max(1, min(BATCH_CHUNKS, BATCH_BYTES // self._header.chunk_size))
        limit = min(_FIRST_BATCH_CHUNKS, most)
        batch: list[Frame] = []
        while True:
            frame = self._frame()
            if frame is not None:
                batch.append(frame)
            if frame is None or len(batch) == limit:
                for chunk in self._decoder.decode(batch, self._primer):
                    if isinstance(chunk, DamagedError):
                        raise chunk
                    self._hash.update(chunk)
                    yield chunk
                batch = []
                limit = min(2 * limit, most)
            if frame is None:
                return self._finish()

    def _frame(self) -> Frame | None:
        """The next chunk's frame, None where the index begins."""
        header, pipe = self._header, self._pipe
        while True:
            offset = pipe.position
            word, head = pipe.varint()
            coding, payload = word & header.escape, word >> header.coding_bits
            size = header.chunk_size
            if coding == header.escape:
                if payload == FRAME_INDEX:
                    self._index_head = head
                    return None
                if payload != FRAME_SHORT_CHUNK:
                    self._skip_section(payload, head)
                    continue
                size, size_bytes = pipe.varint()
                word, word_bytes = pipe.varint()
                head += size_bytes + word_bytes
                coding, payload = word & header.escape, word >> header.coding_bits
                if not 0 < size < header.chunk_size:
                    raise DamagedError("a short chunk's size", where=self._where, got=size)
            if coding >= len(header.codings) or not 0 < payload <= size:
                raise DamagedError(
                    "frame head", where=self._where, got=f"{head.hex(' ')} at {offset}"
                )
            self._remember(head)
            stored = int.from_bytes(pipe.take(CHECKSUM_BYTES), "little")
            start, self._size = self._size, self._size + size
            return Frame(header.codings[coding], size, start, stored, pipe.take(payload), offset)

    def _skip_section(self, kind: int, head: bytes) -> None:
        check_section(kind, self._where)
        size, size_bytes = self._pipe.varint()
        self._remember(head + size_bytes)
        stored = int.from_bytes(self._pipe.take(CHECKSUM_BYTES), "little")
        digest = xxhash.xxh3_64()
        while size:
            piece = self._pipe.take(min(size, _PIECE_BYTES))
            digest.update(piece)
            size -= len(piece)
        if digest.intdigest() & 0xFFFFFFFF != stored:
            raise DamagedError(f"section of type {kind}", where=self._where)

    def _remember(self, head: bytes) -> None:
        self._heads += head
        self._head_numbers += sum(byte < 0x80 for byte in head)
        if self._head_numbers > MAX_HEAD_NUMBERS:
            raise DamagedError(
                "too many frames in a member", where=self._where, expected=MAX_HEAD_NUMBERS
            )

    def _finish(self) -> None:
        pipe, where = self._pipe, self._where
        end = pipe.position - len(self._index_head) - self._begin
        section = self._index_head + pipe.take(1 + HASH_BYTES)
        size, lengths = pipe.varint()
        if section[1] & INDEX_COMPRESSED:
            size, more = pipe.varint()
            lengths += more
        # Heads and header, compressed or not, are no longer than what they describe.
        most = min(end, MAX_INDEX_BYTES)
        if size > most:
            raise DamagedError("index length", where=where, expected=f"{most} at most", got=size)
        section += lengths + pipe.take(size + CHECKSUM_BYTES)
        index = parse_index(section, self._header, self._header_bytes, end, where)
        if index.layout.heads != self._heads:
            raise DamagedError("the index and the frames differ", where=where)
        if index.content_hash != self._hash.digest():
            raise DamagedError("content hash", where=where)
        trailer = parse_trailer(pipe.take(self._header.trailer_bytes), where)
        if (
            trailer.kind is not self._header.kind
            or trailer.store_id != self._header.store_id
            or trailer.member_bytes != pipe.position - self._begin
            or trailer.index_bytes != len(section)
            or trailer.size != self._size
            or trailer.header_checksum != int.from_bytes(self._header_bytes[-4:], "little")
        ):
            raise DamagedError("the trailer belongs to another member", where=where)
