"""What chunks follow: the beginning of their member, and a mixer that has seen it.

Owns: the order in which a member's first chunks become a state (FORMAT.md, "Primers"). A state is
only ever computed, never stored. Any thread may use a primer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from lmfs.codecs.threads import Turn, Work, queue
from lmfs.native import MixEncoder, Mixer

SLICE_TOKENS = 2048  # of a mixer, some 7 ms
STATE_BYTES = 5 << 19  # of a mixer behind 256 KiB


class _Priming(Work):
    """A mixer on its way behind some texts: it encodes them, and the blobs are dropped."""

    def __init__(self, mixer: Mixer, texts: Sequence[bytes]) -> None:
        self._mixer, self._texts = mixer, iter(texts)
        self._coder: MixEncoder | None = None

    def advance(self, together: Sequence[Any], alone: bool) -> None:
        if self._coder is None:
            text = next(self._texts, None)
            if text is None:
                self.done = True
                return
            self._coder = MixEncoder(self._mixer, text)
        if not self._coder.go_on(SLICE_TOKENS):
            self._coder = None


def prime(mixer: Mixer, texts: Sequence[bytes]) -> None:
    """Lead a mixer through texts, each tokenized by itself; raises Cancelled, the mixer spoilt."""
    if texts:
        queue().run([_Priming(mixer, texts)])


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
        self._learning = Turn()  # of whoever makes the state
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
                self._unseen = [*self._unseen, chunk]

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
        with self._learning:
            while True:
                with self._lock:
                    before, unseen = self._mixer, self._unseen
                    if before is not None and not unseen:
                        return before
                # Copied, for others may be using it.
                mixer = self._start() if before is None else before.copy()
                prime(mixer, unseen)
                with self._lock:
                    if self._mixer is before:  # else somebody fed a newer one
                        self._mixer, self._unseen = mixer, self._unseen[len(unseen) :]
                        if not self._unseen:
                            return mixer

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
