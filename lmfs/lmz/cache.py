"""Decoded chunks, kept while they are likely to be read again.

Owns: the least-recently-used order and the bound on bytes. Any thread may call it; it never
calls out while it holds its lock.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from lmfs.errors import UsageError


class ChunkCache:
    """At most `max_bytes` of decoded chunks, of any number of readers.

    A key is (reader's number, chunk's number). `hits` and `misses` count look-ups.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise UsageError("cache size", expected="0 bytes or more", got=max_bytes)
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self._bytes = 0
        self._chunks: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        return self._bytes

    def find(self, reader: int, chunks: Iterable[int]) -> dict[int, bytes]:
        """Those of a reader's chunks that are here."""
        found = {}
        with self._lock:
            for chunk in chunks:
                data = self._chunks.get((reader, chunk))
                if data is None:
                    self.misses += 1
                else:
                    self.hits += 1
                    self._chunks.move_to_end((reader, chunk))
                    found[chunk] = data
        return found

    def holds(self, reader: int, chunk: int) -> bool:
        """Whether a chunk is here; counts as no look-up."""
        return (reader, chunk) in self._chunks

    def add(self, reader: int, chunk: int, data: bytes) -> None:
        """Keep a chunk; the least recently used make room. One larger than all is not kept."""
        if len(data) > self.max_bytes:
            return
        with self._lock:
            self._drop((reader, chunk))
            self._chunks[reader, chunk] = data
            self._bytes += len(data)
            while self._bytes > self.max_bytes:
                self._drop(next(iter(self._chunks)))

    def forget(self, reader: int) -> None:
        """Drop all chunks of one reader."""
        with self._lock:
            for key in [key for key in self._chunks if key[0] == reader]:
                self._drop(key)

    def clear(self) -> None:
        """Drop everything; the counters stay."""
        with self._lock:
            self._chunks.clear()
            self._bytes = 0

    def _drop(self, key: tuple[int, int]) -> None:
        self._bytes -= len(self._chunks.pop(key, b""))
