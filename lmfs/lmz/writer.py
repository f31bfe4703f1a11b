"""Writes a member, to anything that can `write`.

Owns: the order of a member's parts. Never seeks, so a pipe will do. One writer is for one thread.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, BinaryIO

from blake3 import blake3

from lmfs.codecs.choose import Chooser, default_chooser
from lmfs.container import (
    CHECKSUM_BYTES,
    DEFAULT_CHUNK_SIZE,
    MAX_CHUNK_SIZE,
    Coding,
    Header,
    Kind,
    Trailer,
    checksum,
)
from lmfs.errors import UsageError
from lmfs.layout import MAX_HEAD_NUMBERS, pack_head, pack_index
from lmfs.lmz.frames import BATCH_BYTES, BATCH_CHUNKS

# A member at least this long repeats its header in its index, lest one bad sector at its
# beginning hides which codings all its chunks have.
HEADER_COPY_FROM_BYTES = 64 * 1024


class LmzWriter(io.BufferedIOBase):
    """A binary file object that writes one member.

    `close` finishes the member; it does not close the file below unless it was opened for this
    writer. Without `close` (an exception inside `with`, or a writer merely forgotten) the member
    has no trailer, and no reader will take it for whole.
    """

    def __init__(
        self,
        file: BinaryIO | str | os.PathLike[str],
        *,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        chooser: Chooser | None = None,
        store_id: bytes | None = None,
        batch_chunks: int = BATCH_CHUNKS,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """
        file: only its `write` is used; a path is created or truncated
        chooser: how chunks are coded; by default by all codecs, with the model that lmfs ships
        store_id: 16 bytes; makes a frozen file of this store instead of an archive
        batch_chunks: so many chunks are coded together
        progress: called with the number of bytes coded since its last call
        """
        self._finished = True  # nothing to finish before there is a file
        if not 1 <= chunk_size <= MAX_CHUNK_SIZE:
            raise UsageError("chunk size", expected=f"1 to {MAX_CHUNK_SIZE} bytes", got=chunk_size)
        if batch_chunks < 1:
            raise UsageError("chunks in a batch", expected="1 or more", got=batch_chunks)
        self._kind = Kind.ARCHIVE if store_id is None else Kind.FROZEN
        self._store_id = store_id
        self._chunk_size = chunk_size
        self._batch_bytes = chunk_size * min(batch_chunks, max(1, BATCH_BYTES // chunk_size))
        self._chooser = default_chooser() if chooser is None else chooser
        self._primer = self._chooser.primer()
        self._progress = progress
        self._header: Header | None = None
        self._header_bytes = b""
        self._numbers: dict[int, int] = {}
        self._pending = bytearray()
        self._heads = bytearray()
        self._head_numbers = 0
        self._hash = blake3()
        self._size = 0
        self._written = 0
        self._owned = isinstance(file, (str, os.PathLike))
        self._file: Any = io.FileIO(file, "wb") if isinstance(file, (str, os.PathLike)) else file
        self._finished = False

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        """How many bytes have been written into the member, before coding."""
        return self._size + len(self._pending)

    @property
    def content_hash(self) -> bytes:
        """BLAKE3 of everything coded so far; of everything, once closed."""
        return self._hash.digest()

    @property
    def written_bytes(self) -> int:
        """How long the member is so far."""
        return self._written

    def write(self, data: Any) -> int:
        """Add bytes to the member; they are coded when a batch is full."""
        if self._finished:
            raise ValueError("write to a finished .lmz")
        view = memoryview(data).cast("B")
        for at in range(0, len(view), self._batch_bytes):
            self._pending += view[at : at + self._batch_bytes]
            # A full batch waits for the byte behind it: the first one, if it is the last one as
            # well, declares only the codings that it uses.
            while len(self._pending) > self._batch_bytes:
                self._code(bytes(self._pending[: self._batch_bytes]), last=False)
                del self._pending[: self._batch_bytes]
        return len(view)

    def _code(self, data: bytes, *, last: bool) -> None:
        """Code what ends with a whole chunk, or the member."""
        size = self._chunk_size
        chunks = self._chooser.cut(data, self._size, size)
        chosen = self._chooser.choose(chunks, self._primer) if chunks else []
        if self._header is None:
            codings = self._chooser.codings(self._primer)
            self._begin(codings, sorted({n for n, _ in chosen} if last else range(len(codings))))
        assert self._header is not None
        out = bytearray()
        for chunk, (number, blob) in zip(chunks, chosen, strict=True):
            head = pack_head(self._header, self._numbers[number], len(chunk), len(blob))
            self._head_numbers += 1 if len(chunk) == size else 3
            if self._head_numbers > MAX_HEAD_NUMBERS:
                raise UsageError(
                    "too many chunks in one .lmz",
                    expected=f"{MAX_HEAD_NUMBERS:,} at most",
                    do="code it with larger chunks",
                )
            out += head
            out += checksum(chunk, self._size).to_bytes(CHECKSUM_BYTES, "little")
            out += blob
            self._heads += head
            self._size += len(chunk)
        self._hash.update(data)
        self._emit(out)
        if self._progress is not None and data:
            self._progress(len(data))

    def _begin(self, known: list[Coding], used: list[int]) -> None:
        codings = tuple(known[number] for number in used)
        self._numbers = {number: place for place, number in enumerate(used)}
        self._header = Header(self._kind, self._chunk_size, codings, self._store_id)
        self._header_bytes = self._header.pack()
        self._emit(self._header_bytes)

    def _emit(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        while len(view):
            written = self._file.write(view)
            # Raw files may take less than they are given; buffered ones take it all.
            taken = len(view) if written is None else written
            self._written += taken
            view = view[taken:]

    def close(self) -> None:
        """Finish the member: the rest of the chunks, the index, the trailer."""
        if self._finished:
            return
        try:
            self._code(bytes(self._pending), last=True)
            self._pending.clear()
            self._finish()
        finally:
            self.abandon()

    def _finish(self) -> None:
        assert self._header is not None
        copy = self._header_bytes if self._written >= HEADER_COPY_FROM_BYTES else None
        index = pack_index(self._header, bytes(self._heads), self._hash.digest(), copy)
        trailer = Trailer(
            self._kind,
            self._written + len(index) + self._header.trailer_bytes,
            self._size,
            len(index),
            int.from_bytes(self._header_bytes[-CHECKSUM_BYTES:], "little"),
            self._store_id,
        )
        self._emit(index + trailer.pack())
        flush = getattr(self._file, "flush", None)
        if flush is not None:
            flush()

    def abandon(self) -> None:
        """Stop without finishing: what was written stays, and is no whole member."""
        if not self._finished:
            self._finished = True
            if self._owned:
                self._file.close()
        super().close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def __del__(self) -> None:
        # io's own finalizer would close, and so bless whatever an error left behind.
        self.abandon()
