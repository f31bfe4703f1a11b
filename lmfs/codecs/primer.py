"""What chunks follow: the beginning of their member, and a mixer that has seen it.

Owns: the order in which a member's first chunks become a state (FORMAT.md, "Primers"). A state is
only ever computed, never stored. Any thread may use a primer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from lmfs.codecs.threads import Turn

if TYPE_CHECKING:
    from lmfs.native import Mixer

STATE_BYTES = 5 << 19  # of a mixer behind 256 KiB


class Primer:
    """The chunks that end at or before byte `limit` of a member, as they become known.

    start: gives a mixer that has seen nothing; called once, if a state is ever asked for
    """

    def __init__(self, limit: int, start: Callable[[], Mixer]) -> None:
        self.limit = limit
        self.end = 0  # so many bytes are known
        self.complete = limit == 0
        self._start = start
        self._mixer: Mixer | None = None
        self._chunks: dict[int, bytes] = {}
        self._unseen: list[bytes] = []  # known, but not yet seen by the mixer
        self._lock = threading.Lock()
        self.growing = Turn()  # of whoever decodes what is to be fed

    def wants(self, start: int) -> bool:
        """Whether the chunk that begins at `start` is the next one to `feed`."""
        return not self.complete and start == self.end

    def feed(self, chunk: bytes, mixer: Mixer | None = None) -> None:
        """The next chunk of the member; mixer: the state behind it, where that is known."""
        with self._lock:
            if self.end + len(chunk) > self.limit:
                self.complete = True
                return
            self._chunks[self.end] = chunk
            self.end += len(chunk)
            self.complete = self.end == self.limit
            if mixer is not None:
                self._mixer, self._unseen = mixer, []
            else:
                self._unseen.append(chunk)

    def shorten(self, limit: int) -> None:
        """Let it end there, which is not before what is known."""
        with self._lock:
            assert self.end <= limit <= self.limit
            self.limit = limit
            self.complete = self.end == limit

    def lost(self, start: int, size: int) -> None:
        """The chunk that is there cannot be had; nothing follows it if it ends behind the limit."""
        with self._lock:
            if start == self.end and start + size > self.limit:
                self.complete = True

    def chunk_at(self, start: int) -> bytes | None:
        """The known chunk that begins there."""
        return self._chunks.get(start)

    def mixer(self) -> Mixer:
        """The state behind all that is known. Not to be changed: `copy` it."""
        with self._lock:
            if self._mixer is None:
                self._mixer = self._start()
            elif self._unseen:
                self._mixer = self._mixer.copy()  # others may be using it
            for chunk in self._unseen:
                self._mixer.prime(chunk, len(chunk))
            self._unseen = []
            return self._mixer

    def serves(self, start: int) -> bool:
        """Whether everything is known that the chunk at `start` follows."""
        return self.complete or start == self.end

    @property
    def used_bytes(self) -> int:
        """Of memory, about."""
        return self.end + (STATE_BYTES if self._mixer is not None else 0)


class RecentPrimers:
    """The primers used last, of files that are open: at most so many bytes, and the last one."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._primers: OrderedDict[Hashable, Primer] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: Hashable, make: Callable[[], Primer]) -> Primer:
        """The primer of this key, made if it is not here any more."""
        with self._lock:
            primer = self._primers.get(key) or make()
            self._primers[key] = primer
            self._primers.move_to_end(key)
            # They grow while they are used: all are counted anew.
            while len(self._primers) > 1 and self._used_bytes() > self.max_bytes:
                self._primers.popitem(last=False)
            return primer

    def clear(self) -> None:
        """Forget them all; who uses one keeps it."""
        with self._lock:
            self._primers.clear()

    def forget(self, key: Hashable) -> None:
        """Drop the primer of this key, if it is here."""
        with self._lock:
            self._primers.pop(key, None)

    @property
    def used_bytes(self) -> int:
        """Of memory, about."""
        with self._lock:
            return self._used_bytes()

    def _used_bytes(self) -> int:
        return sum(primer.used_bytes for primer in self._primers.values())


recent_primers = RecentPrimers(48 << 20)
