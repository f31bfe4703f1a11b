"""What is read next: which chunks a reader decodes before they are asked for.

Owns: telling sequential reads from others, how far ahead of one is decoded, and the threads in
which that waits (the work itself is the queue's, lmfs.codecs.threads). Streams belong to one
thread at a time.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

# So many chunks are begun at once, the first time that a read goes on where one ended, the second
# time, and so on: the first bytes of a file are to come as quickly as any others.
RAMP = (1, 2, 4, 16)
_STREAMS = 4
MAX_AHEAD = RAMP[-1]
_most = MAX_AHEAD
_THREADS = 2 * RAMP[-1]


def limit_ahead(chunks: int) -> None:
    """Begin at most so many chunks at once behind a sequential read, in this process; 0 is none."""
    global _most
    _most = min(chunks, MAX_AHEAD)


class _Stream:
    """Reads that follow each other; numbers of chunks."""

    def __init__(self, at: int) -> None:
        self.at = at  # the reads have come up to here
        self.begun = at  # chunks before this are begun
        self.next_from = at  # a read behind this chunk's beginning begins the next ones
        self.batches = 0


class Streams:
    """The places at which one file is being read."""

    def __init__(self) -> None:
        self._streams: list[_Stream] = []  # the one used last is the last

    def follow(self, first: int, stop: int, most: int = RAMP[-1]) -> range:
        """Chunks to begin, at most so many, when those from `first` to before `stop` are read."""
        stream = next((s for s in self._streams if s.at - 1 <= first <= s.at <= stop), None)
        if stream is None:
            self._streams = [*self._streams[1 - _STREAMS :], _Stream(stop)]
            return range(0)
        self._streams.remove(stream)
        self._streams.append(stream)
        if stop == stream.at:  # still in the same chunk
            return range(0)
        stream.at = stop
        if stop <= stream.next_from:
            return range(0)
        start = max(stop, stream.begun)
        stream.next_from = start
        stream.begun = start + min(RAMP[min(stream.batches, len(RAMP) - 1)], most, _most)
        stream.batches += 1
        return range(start, stream.begun)


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor  # most programs never read ahead

    del process  # a fork has its parent's cache, but none of its threads
    return ThreadPoolExecutor(_THREADS, "lmfs-ahead")


def pool() -> ThreadPoolExecutor:
    """Threads that wait for what is decoded ahead, a chunk each."""
    return _pool(os.getpid())
