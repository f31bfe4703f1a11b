"""Reads a container at any offset.

Owns: members, the mapping of offsets to chunks, who waits for which chunk (each is decoded once,
for all who want it), and verifying. Needs a file that can seek (`stream` reads the others).
`pread`, `read_chunks` and the properties are for any thread; `read`, `seek` and `tell` share one
position and are for one thread at a time.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from blake3 import blake3

from lmfs.codecs.threads import Cancelled, Priority, Urgency, current_urgency, working
from lmfs.container import Kind
from lmfs.errors import DamagedError, FormatError, LmfsError, UsageError
from lmfs.layout import pack_section_head
from lmfs.lmz.ahead import Streams, pool
from lmfs.lmz.cache import ChunkCache
from lmfs.lmz.members import Chunks, Member, read_members
from lmfs.lmz.source import FileSource, section_holds

DEFAULT_CACHE_BYTES = 32 * 1024 * 1024

_reader_numbers = itertools.count()


@dataclass(frozen=True)
class CodecStatistics:
    """What one codec made of its chunks."""

    chunks: int = 0
    bytes_before: int = 0
    bytes_after: int = 0


class LmzReader(io.BufferedIOBase):
    """A seekable binary file object over a container."""

    def __init__(
        self,
        file: BinaryIO | str | os.PathLike[str],
        *,
        store_id: bytes | None = None,
        model_search: Sequence[Path] = (),
        cache: ChunkCache | None = None,
        heal: Callable[[FileSource], FileSource | None] | None = None,
    ) -> None:
        """
        file: a path, or a file object that can seek; its position may move, it is not closed
        store_id: read a frozen file of this store; without it, only archives are read
        model_search: where to look for models, before the usual places, and for shared primers
        cache: decoded chunks, shared with other readers; by default one of 32 MiB
        heal: for a damaged file, another source of the same file to read what is damaged from;
            what it gives is checked like the file itself
        raises: FormatError, VersionError, DamagedError, OSError
        """
        self._number = next(_reader_numbers)
        self._cache = ChunkCache(DEFAULT_CACHE_BYTES) if cache is None else cache
        self._heal = heal
        self._source = FileSource(file)
        self._healed_source: FileSource | None = None
        try:
            self._members = self._read_members()
            self._check_kind(store_id)
        except BaseException:
            self._close_sources()
            raise
        self.name = self._source.name
        self._where = self.name or None
        self._model_search = model_search
        self._chunks = Chunks(self._source, self._members, model_search)
        self._healed_chunks: Chunks | None = None
        self._healing = threading.Lock()  # held while a second source is looked for
        self._position = 0
        self._lock = threading.Lock()  # of what follows
        self._streams = Streams()
        self._pending: dict[int, _Pending] = {}
        self._users = 1  # we, until we are closed, and whoever decodes ahead

    def _read_members(self) -> list[Member]:
        try:
            return read_members(self._source)
        except (DamagedError, FormatError, OSError):
            healed = None if self._heal is None else self._heal(self._source)
            if healed is None:
                raise
            self._healed_source = healed
            return read_members(healed)

    def _check_kind(self, store_id: bytes | None) -> None:
        where = self._source.name or None
        for member in self._members:
            if store_id is None and member.kind is Kind.FROZEN:
                raise FormatError(
                    "a frozen file of a store, not an archive",
                    where=where,
                    do="read it through its mount, or `lmfs thaw` it",
                )
            if store_id is not None and member.store_id != store_id:
                raise FormatError(
                    "not a frozen file of this store",
                    where=where,
                    expected=f"store {store_id.hex()}",
                    got="an archive" if member.store_id is None else member.store_id.hex(),
                )

    # -- what is in it

    @property
    def size(self) -> int:
        """Decoded bytes."""
        return self._chunks.size

    @property
    def stored_bytes(self) -> int:
        """The length of the file."""
        return self._source.size

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(self._members)

    @property
    def chunk_count(self) -> int:
        return len(self._chunks)

    def statistics(self) -> dict[str, CodecStatistics]:
        """For each codec that is used ("raw", "zstd", "lm"): chunks, bytes before and after."""
        totals: dict[str, list[int]] = {}
        for member in self._members:
            layout = member.layout
            of_coding = [
                totals.setdefault(coding.codec.name.lower(), [0, 0, 0]) for coding in member.codings
            ]
            for coding, size, coded_size in zip(
                layout.codings, layout.sizes, layout.coded_sizes, strict=True
            ):
                total = of_coding[coding]
                total[0] += 1
                total[1] += size
                total[2] += coded_size
        return {name: CodecStatistics(*total) for name, total in totals.items() if total[0]}

    # -- chunks

    def _decode(self, indices: Sequence[int]) -> list[bytes | DamagedError]:
        """These chunks, or what is wrong with each; from the healed source where that helps."""
        chunks: list[bytes | DamagedError] = []
        failed: Exception | None = None
        try:
            chunks = self._chunks.decode(indices)
            if all(isinstance(chunk, bytes) for chunk in chunks):
                return chunks
        except (DamagedError, OSError) as error:  # cut off, or the disk cannot read it
            failed = error
        healed = self._chunks_to_heal_with()
        if healed is not None:
            return healed.decode(indices)
        if failed is not None:
            raise failed
        return chunks

    def _chunks_to_heal_with(self) -> Chunks | None:
        """The chunks as they come from the other source, with primers of their own."""
        with self._healing:
            if self._healed_chunks is None and self._heal is not None:
                if self._healed_source is None:
                    self._healed_source = self._heal(self._source)
                if self._healed_source is None:
                    self._heal = None
                else:
                    self._healed_chunks = Chunks(
                        self._healed_source, self._members, self._model_search
                    )
            return self._healed_chunks

    def read_chunks(self, indices: Sequence[int]) -> list[bytes]:
        """These chunks of the whole file, decoded together.

        raises: DamagedError for the first one that is damaged
        """
        for i in indices:
            if not 0 <= i < self.chunk_count:
                raise UsageError("chunk number", expected=f"0 to {self.chunk_count - 1}", got=i)
        found = self._cache.find(self._number, dict.fromkeys(indices))
        missing = [i for i in dict.fromkeys(indices) if i not in found]
        for batch in self._chunks.batches(missing):
            for i, chunk in zip(batch, self._decode(batch), strict=True):
                found[i] = _or_raise(chunk)
                self._cache.add(self._number, i, found[i])
        return [found[i] for i in indices]

    # -- bytes

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`, fewer only at the end; moves no position.

        raises: DamagedError if a chunk that is needed is damaged; UnknownModelError
        """
        self._check_open()
        if offset < 0:
            raise UsageError("offset", expected="0 or more", got=offset)
        end = self._chunks.size if size < 0 else min(self._chunks.size, offset + size)
        if offset >= end:
            return b""
        first = self._chunks.at(offset)
        last = self._chunks.at(end - 1) + 1
        pieces = []
        for batch in self._chunks.batches(range(first, last)):
            for i, chunk in zip(batch, self._load(batch), strict=True):
                start = self._chunks.starts[i]
                pieces.append(chunk[max(0, offset - start) : end - start])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _load(self, wanted: Sequence[int]) -> list[bytes]:
        """Chunks that follow each other, from the cache or decoded; begins those behind them."""
        urgency = current_urgency()
        found = self._cache.find(self._number, wanted)
        own, others = self._claim([i for i in wanted if i not in found], urgency)
        self._begin_ahead(wanted, urgency)
        while own or others:
            if own:
                try:
                    with working(urgency):
                        decoded = self._decode(own)
                except BaseException:
                    self._deliver(dict.fromkeys(own))
                    raise
                chunks = dict(zip(own, decoded, strict=True))
                self._deliver(chunks)
                found.update((i, _or_raise(chunk)) for i, chunk in chunks.items())
            given_up = []
            for i, pending in others.items():
                pending.ended.wait()
                if pending.chunk is None:
                    given_up.append(i)
                else:
                    found[i] = _or_raise(pending.chunk)
            own, others = self._claim(given_up, urgency)
        return [found[i] for i in wanted]

    def _claim(
        self, missing: Sequence[int], urgency: Urgency
    ) -> tuple[list[int], dict[int, _Pending]]:
        """Which of these the caller is to decode, and which are being decoded or are there."""
        own, others = [], {}
        with self._lock:
            for i in missing:
                pending = self._pending.get(i)
                if pending is None:
                    pending = _Pending(urgency)
                    # It may have come since the caller looked.
                    come = self._cache.holds(self._number, i)
                    chunk = self._cache.find(self._number, [i]).get(i) if come else None
                    if chunk is None:
                        self._pending[i] = pending
                        own.append(i)
                        continue
                    pending.end(chunk)
                pending.urgency.raise_to(urgency.priority)
                others[i] = pending
        return own, others

    def _deliver(self, chunks: Mapping[int, bytes | DamagedError | None]) -> None:
        """Give chunks, or None for what was given up, to all who wait for them."""
        for i, chunk in chunks.items():
            if isinstance(chunk, bytes):
                self._cache.add(self._number, i, chunk)
            with self._lock:
                pending = self._pending.pop(i)
            pending.end(chunk)

    def _begin_ahead(self, wanted: Sequence[int], urgency: Urgency) -> None:
        """Where reading has been sequential, begin to decode what is behind these chunks."""
        # Two batches, that which is read and that which is decoded, and as much for others.
        most = self._cache.max_bytes // 4 // self._chunks.largest
        with self._lock:
            for i in self._streams.follow(wanted[0], wanted[-1] + 1, most):
                if i >= self.chunk_count:
                    break
                if i in self._pending or self._cache.holds(self._number, i):
                    continue
                ahead = Urgency(max(urgency.priority, Priority.AHEAD))
                self._pending[i] = pending = _Pending(ahead, is_ahead=True)
                self._users += 1
                pool().submit(self._decode_ahead, i, pending)

    def _decode_ahead(self, i: int, pending: _Pending) -> None:
        chunk: bytes | DamagedError | None = None
        # Whoever wants the chunk meets the error by trying it, and then it has somebody to go to.
        with contextlib.suppress(LmfsError, OSError, Cancelled):
            try:
                pending.urgency.check()
                with working(pending.urgency):
                    (chunk,) = self._decode([i])
            finally:
                self._deliver({i: chunk})
                self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
        self._close_sources()
        self._chunks.close()
        if self._healed_chunks is not None:
            self._healed_chunks.close()
        self._cache.forget(self._number)

    def _close_sources(self) -> None:
        self._source.close()
        if self._healed_source is not None:
            self._healed_source.close()

    def verify(self, progress: Callable[[int], None] | None = None) -> None:
        """Decode everything, past the cache, and compare with what the container says of it.

        progress: called with the number of bytes decoded since its last call
        raises: DamagedError for the first thing that is wrong
        """
        self._check_open()
        for member in self._members:
            content = blake3()
            count = len(member.layout.starts)
            for batch in self._chunks.batches(
                range(member.first_chunk, member.first_chunk + count)
            ):
                for chunk in self._decode(batch):
                    content.update(_or_raise(chunk))
                    if progress is not None:
                        progress(len(_or_raise(chunk)))
            if content.digest() != member.content_hash:
                raise DamagedError("content hash", where=self._where)
            self._verify_sections(member)

    def _verify_sections(self, member: Member) -> None:
        for kind, offset, size in member.layout.sections:
            head = pack_section_head(member.header, kind, size)
            if not section_holds(self._source, member.offset + offset, size, head):
                raise DamagedError(f"section of type {kind}", where=self._where)

    # -- file object

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_open()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._chunks.size}
        if whence not in bases or bases[whence] + offset < 0:
            raise UsageError("seek", expected="a position of 0 or more", got=(offset, whence))
        self._position = bases[whence] + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        data = self.pread(-1 if size is None else size, self._position)
        self._position += len(data)
        return data

    def read1(self, size: int = -1) -> bytes:
        """Up to `size` bytes, of one chunk."""
        data = self.peek()
        data = data if size < 0 else data[:size]
        self._position += len(data)
        return data

    def peek(self, size: int = 0) -> bytes:
        """The rest of the chunk at the position, at least a byte except at the end."""
        self._check_open()
        if self._position >= self._chunks.size:
            return b""
        chunk = self._chunks.at(self._position)
        end = self._chunks.starts[chunk] + self._chunks.sizes[chunk]
        return self.pread(end - self._position, self._position)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def readinto1(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read1(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed and hasattr(self, "_users"):
            with self._lock:
                for pending in self._pending.values():
                    if pending.is_ahead:
                        pending.urgency.cancel()
            self._leave()
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("operation on a closed .lmz")


class _Pending:
    """A chunk that somebody decodes; `chunk` is None then if it was given up."""

    def __init__(self, urgency: Urgency, *, is_ahead: bool = False) -> None:
        self.urgency = urgency
        self.is_ahead = is_ahead
        self.ended = threading.Event()
        self.chunk: bytes | DamagedError | None = None

    def end(self, chunk: bytes | DamagedError | None) -> None:
        self.chunk = chunk
        self.ended.set()


def _or_raise(chunk: bytes | DamagedError) -> bytes:
    if isinstance(chunk, DamagedError):
        raise chunk
    return chunk
