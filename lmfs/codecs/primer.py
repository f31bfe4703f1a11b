"""What chunks follow: the beginning of their member, and a mixer that has seen it.

Owns: the order in which a member's first chunks become a state (FORMAT.md, "Primers"). A state is
only ever computed, never stored. Any thread may use a primer.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any

from lmfs.codecs.threads import Turn, Work, queue
from lmfs.native import MixEncoder, Mixer

SLICE_TOKENS = 2048  # of a mixer, some 7 ms


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

    start: gives a mixer that has seen nothing, to be changed at will
    lengths: the states behind so many bytes are kept, once they are asked for
    """

    def __init__(
        self, limit: int, start: Callable[[], Mixer], lengths: Collection[int] = ()
    ) -> None:
        self.limit = limit
        self._start = start
        self._lengths = lengths
        self._ends = [0]  # of the known chunks
        self._chunks: dict[int, bytes] = {}
        self._reach = 0  # all chunks that end at or before it are known
        self._states: dict[int, Mixer] = {}  # by how much they have seen
        self._kept: set[int] = set()  # of these
        self._led: dict[int, Mixer] = {}  # likewise, the last bytes seen with the model
        self._lock = threading.Lock()
        self._learning = Turn()  # of whoever makes a state
        self._leading = Turn()  # and of whoever makes one with the model
        self.growing = Turn()  # of whoever decodes what is to be fed

    @property
    def end(self) -> int:
        """So many bytes are known."""
        return self._ends[-1]

    @property
    def complete(self) -> bool:
        """Whether all is known that can be."""
        return self._reach >= self.limit

    def wants(self, start: int) -> bool:
        """Whether the chunk that begins at `start` is the next one to `feed`."""
        return not self.complete and start == self.end

    def feed(self, chunk: bytes, mixer: Mixer | None = None, led: Mixer | None = None) -> None:
        """The next chunk of the member; mixer: the state behind it, where that is known.

        led: likewise, all of it seen with the model
        """
        with self._lock:
            end = self.end + len(chunk)
            self._reach = min(end, self.limit)
            if end > self.limit:
                return
            self._chunks[self.end] = chunk
            self._ends.append(end)
            if mixer is not None:
                self._keep(end, mixer)
            if led is not None:
                self._keep_led(end, led)

    def led(self, end: int, mixer: Mixer) -> None:
        """The state behind the chunk that ends there, all of it seen with the model."""
        with self._lock:
            self._keep_led(end, mixer)

    def shorten(self, limit: int) -> None:
        """Let it end there, before anything follows it; what was known behind that is forgotten."""
        with self._lock:
            assert limit <= self.limit
            self.limit = limit
            self._reach = min(self._reach, limit)
            self._ends = self._ends[: bisect_right(self._ends, limit)]
            self._chunks = {at: self._chunks[at] for at in self._ends[:-1]}
            self._states = {e: mixer for e, mixer in self._states.items() if e <= self.end}
            self._led = {e: mixer for e, mixer in self._led.items() if e <= self.end}

    def restart(self, start: Callable[[], Mixer]) -> None:
        """Let it begin with another mixer, before anything follows it; nothing is known then."""
        with self._lock:
            self._start = start
            self._ends, self._chunks, self._reach = [0], {}, 0
            self._states.clear()
            self._led.clear()

    def lost(self, start: int, size: int) -> None:
        """The chunk that is there cannot be had; nothing follows it that ends before it does."""
        with self._lock:
            if start == self.end:
                self._reach = max(self._reach, min(start + size - 1, self.limit))

    def chunk_at(self, start: int) -> bytes | None:
        """The known chunk that begins there."""
        return self._chunks.get(start)

    def serves(self, upto: int) -> bool:
        """Whether all chunks are known that end at or before this byte."""
        return self._reach >= upto

    def mixer(self, upto: int, *, once: bool = False) -> Mixer:
        """The state behind what is known and ends at or before `upto`. Not to be changed.

        once: nobody will ask for it again
        """
        with self._learning:
            with self._lock:
                place = bisect_right(self._ends, upto) - 1
                end = self._ends[place]
                seen = max((seen for seen in self._states if seen <= end), default=0)
                mixer = self._states.get(seen)
                unseen = [self._chunks[start] for start in self._ends[:place] if start >= seen]
            if mixer is None:
                mixer = self._start()
            elif unseen:
                mixer = mixer.copy()  # others may be using it
            prime(mixer, unseen)
            with self._lock:
                if upto in self._lengths and not once:
                    self._kept.add(end)
                self._keep(end, mixer)
            return mixer

    def take(self, size: int) -> Mixer:
        """The state behind all that is known, to become the one behind the next chunk.

        size: of that chunk, which is to be fed with the state behind it
        """
        mixer = self.mixer(self.end, once=True).copy()
        with self._lock:
            if self.end + size <= self.limit and self.end not in self._kept:
                self._states.pop(self.end, None)  # so that no copy need be made
        return mixer

    def led_mixer(
        self, upto: int, tail_bytes: int, lead: Callable[[Mixer, Sequence[bytes]], Mixer]
    ) -> Mixer:
        """As `mixer`, but the chunks that begin in the last `tail_bytes` are seen with the model.

        lead: the state behind these texts, seen with the model, which changes no mixer
        """
        with self._leading:
            with self._lock:
                place = bisect_right(self._ends, upto) - 1
                end = self._ends[place]
                led = self._led.get(end)
                # Where all of it is seen with the model, so is what leads there.
                seen = max((e for e in self._led if e <= end <= tail_bytes), default=0)
                on_the_way = self._led.get(seen)
                starts = [s for s in self._ends[:place] if s >= max(seen, end - tail_bytes)]
                texts = [self._chunks[start] for start in starts]
            if led is None:
                before = starts[0] if starts else end
                led = lead(on_the_way or self.mixer(before, once=True), texts)
            with self._lock:
                if upto not in self._lengths:  # a writer comes back to none
                    self._led.clear()
                self._led[end] = led
            return led

    def _keep_led(self, end: int, led: Mixer) -> None:
        """This one, and those that are asked for."""
        self._led = {e: mixer for e, mixer in self._led.items() if e in self._lengths} | {end: led}

    def _keep(self, end: int, mixer: Mixer) -> None:
        """Besides those that are kept, the one that has seen most, and this one."""
        stay = {*self._kept, max([end, *self._states])}
        self._states = {e: m for e, m in self._states.items() if e in stay} | {end: mixer}

    @property
    def used_bytes(self) -> int:
        """Of memory, about."""
        mixers = [*self._states.values(), *self._led.values()]
        return self.end + sum(mixer.used_bytes for mixer in mixers)


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
