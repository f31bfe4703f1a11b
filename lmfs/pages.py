"""What the kernel's pages of each name are of, and when they are to be dropped.

Owns: for each name that was opened, the version of the file that the kernel's pages hold. Knows
neither FUSE nor the store: it is told how to look at a file, and how to drop a name's pages.

What is written through the mount is in the kernel's pages already, so they stay. Left to itself the
kernel compares times and drops them after every write, and that is no mere waste: a write is copied
to a page before it is sent, and if the page goes before the write arrives, a read that overtakes it
is short, the rest of the new page is zeros, and the write's answer makes the file grow over them.
Who appends to a file that others read would so have them see zeros. So the kernel is told not to
compare, and it is done here: the version that the last open found moves on with what is changed
through the mount, and any other that is seen was made by others, past the mount or by another mount
of the store. An open has the pages dropped then; a stat, or the look that is taken every second at
what is open, has it done a moment later.

Where a file grows past the mount the kernel itself lets it grow over the zeros of its last page,
for a moment, before it drops that. So what others have changed a moment ago is opened past the
pages: it costs time, and shared maps are refused. Who has it open from before uses them still: two
such readers may see those zeros, and what one of them appends may be seen at the wrong place.

The kernel keeps the pages of each name for itself. A file with several names is opened past them;
what is written to it by one name is dropped from those of the others before the write is answered.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .errors import LmfsError

MAX_NAMES = 1 << 14
RESTLESS_SECONDS = 10.0  # so long is what others changed opened past the pages
LOOK_SECONDS = 1.0
_LOCKS = 1 << 10
_DROP_SECONDS = 0.5  # a page that is being read or written is waited for; who waits may be needed

_log = logging.getLogger(__name__)


class Version(NamedTuple):
    """What tells two contents of a file apart. inode: the number that is shown; size: in bytes"""

    inode: int
    mtime_ns: int
    size: int


class Use(enum.Enum):
    """What a handle does with the pages: reads them, has them dropped first, or passes them by."""

    KEEP = enum.auto()
    DROP = enum.auto()
    PAST = enum.auto()


class Seen(NamedTuple):
    """A file as it is now. links: how many names it has"""

    version: Version
    links: int


class _Pages:
    """Of one name. `kept`: what they hold, None if they are to be dropped; `seen`: what is there"""

    def __init__(self, name: str, version: Version) -> None:
        self.name = name
        self.kept: Version | None = None
        self.seen = version
        self.handles = 0  # open ones that read and write through them
        self.restless_until = 0.0  # by time.monotonic()


class PageCache:
    """Of one mount. Any thread may call it; `close` ends its own.

    look: the file that a handle has open, or that has a name; raises OSError or LmfsError
    drop: has the kernel drop its pages of a name; may wait for requests that we are to answer
    """

    def __init__(
        self, look: Callable[[str, int | None], Seen], drop: Callable[[str], None]
    ) -> None:
        self._look = look
        self._drop = drop
        self._names: dict[str, _Pages] = {}
        self._open: dict[int, _Pages] = {}
        self._lock = threading.Lock()  # of the tables; never held while a file is looked at
        # Each held while files with some inode numbers change, and are looked at to compare.
        self._changing = [threading.Lock() for _ in range(_LOCKS)]
        self._to_drop: queue.SimpleQueue[tuple[str, threading.Event] | None] = queue.SimpleQueue()
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin to drop, and to look at what is open; not before the serving process has forked."""
        for target in (self._drop_pages, self._watch):
            threading.Thread(target=target, name="lmfs-pages", daemon=True).start()

    def close(self) -> None:
        self._ended.set()
        self._to_drop.put(None)

    # -------------------------------------------------------------------------------- open files

    def opened(self, name: str, handle: int) -> Use:
        """A file is open by this name: what the handle may do with its pages.

        raises: OSError, LmfsError
        """
        inode = self._look(name, handle).version.inode
        with self._lock_of(inode):
            version, links = self._look(name, handle)
            with self._lock:
                pages = self._names.pop(name, None) or _Pages(name, version)
                self._names[name] = pages  # the newest comes last
                self._forget_oldest()
                if version != pages.seen:
                    pages.restless_until = time.monotonic() + RESTLESS_SECONDS
                past = links > 1 or time.monotonic() < pages.restless_until
                keeps = pages.kept == version
                pages.seen = version
                pages.kept = None if past else version
                if past:
                    return Use.PAST
                self._open[handle] = pages
                pages.handles += 1
        return Use.KEEP if keeps else Use.DROP

    def released(self, handle: int) -> None:
        with self._lock:
            pages = self._open.pop(handle, None)
            if pages is not None:
                pages.handles -= 1

    def _forget_oldest(self) -> None:
        if len(self._names) > MAX_NAMES:
            for name in [n for n, pages in self._names.items() if not pages.handles][
                : MAX_NAMES // 8
            ]:
                del self._names[name]

    # ----------------------------------------------------------------------------------- changes

    @contextlib.contextmanager
    def changing(self, name: str | None, handle: int | None = None) -> Iterator[None]:
        """A file is changed meanwhile through the mount, by a handle or by its name."""
        with contextlib.ExitStack() as held:
            pages = None
            if name is not None:
                with contextlib.suppress(OSError, LmfsError):
                    held.enter_context(self._lock_of(self._inode(name, handle)))
                    before = self._look(name, handle)
                    pages = self._names.get(name)
                    if pages is not None and before.version != pages.seen:
                        self._changed_by_others(pages, before.version)
            yield
            if name is not None:
                with contextlib.suppress(OSError, LmfsError):
                    self._changed(name, handle, pages, self._look(name, handle))

    def _changed(self, name: str, handle: int | None, pages: _Pages | None, now: Seen) -> None:
        if pages is not None:
            pages.seen = now.version
            if pages.kept is not None:
                pages.kept = now.version
        if now.links < 2:
            return
        through = self._open.get(handle) if handle is not None else None
        with self._lock:
            of_file = [p for p in self._names.values() if p.seen.inode == now.version.inode]
        others = [other for other in of_file if other is not through]
        for other in others:
            other.kept, other.seen = None, now.version
        done = [self._drop_soon(other) for other in others if other.handles]
        for event in done:
            event.wait(_DROP_SECONDS)

    def looked_at(self, name: str, look: Callable[[], Version]) -> None:
        """Compare what is there with what is known, unless it is being changed this moment.

        raises: what `look` raises
        """
        pages = self._names.get(name)
        lock = None if pages is None else self._lock_of(pages.seen.inode)
        if pages is None or lock is None or not lock.acquire(blocking=False):
            look()
            return
        try:
            version = look()
            if version != pages.seen:
                self._changed_by_others(pages, version)
        finally:
            lock.release()

    def _changed_by_others(self, pages: _Pages, version: Version) -> None:
        pages.kept, pages.seen = None, version
        pages.restless_until = time.monotonic() + RESTLESS_SECONDS
        if pages.handles:
            self._drop_soon(pages)

    # ------------------------------------------------------------------------------------- names

    def renamed(self, old: str, new: str, *, exchanged: bool = False) -> None:
        """Names, and those below if they are directories', are others now."""
        with self._lock:
            moved = self._taken(old)
            replaced = self._taken(new)
            for pages in moved:
                pages.name = new + pages.name.removeprefix(old)
            if exchanged:
                for pages in replaced:
                    pages.name = old + pages.name.removeprefix(new)
                moved += replaced
            for pages in moved:
                self._names[pages.name] = pages

    def removed(self, name: str) -> None:
        with self._lock:
            self._names.pop(name, None)

    def _taken(self, name: str) -> list[_Pages]:
        """Out of the table: what has this name, or one below it."""
        pages = self._names.pop(name, None)
        if pages is not None:
            return [pages]  # a file, so there is nothing below
        below = name + "/"
        return [self._names.pop(n) for n in [n for n in self._names if n.startswith(below)]]

    # ------------------------------------------------------------------------------- small parts

    def _lock_of(self, inode: int) -> threading.Lock:
        return self._changing[inode % _LOCKS]

    def _inode(self, name: str, handle: int | None) -> int:
        """By which to lock. A name's may be another file's by now; then nothing is kept of it."""
        pages = self._names.get(name) if handle is None else self._open.get(handle)
        return self._look(name, handle).version.inode if pages is None else pages.seen.inode

    def _drop_soon(self, pages: _Pages) -> threading.Event:
        done = threading.Event()
        self._to_drop.put((pages.name, done))
        return done

    def _drop_pages(self) -> None:
        while (asked := self._to_drop.get()) is not None:
            name, done = asked
            try:
                self._drop(name)
            except Exception:
                _log.exception("the kernel may keep old pages of %r", name)
            done.set()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            with self._lock:
                opened = [(pages, handle) for handle, pages in self._open.items()]
                # One handle each; what was removed or replaced has its name no longer.
                watched = {p.name: h for p, h in opened if self._names.get(p.name) is p}
            for name, handle in watched.items():
                # Closed meanwhile, removed or damaged: who reads it is told.
                with contextlib.suppress(OSError, LmfsError):
                    self.looked_at(name, lambda n=name, h=handle: self._look(n, h).version)  # type: ignore[misc]
