"""The frozen files that are open: a reader each, and an overlay once the file has one.

Owns: who shares them, and when they are closed. All handles of one inode, and whoever uses one of
them meanwhile, share what is here; the last to give it back closes it. Imports the rest of the
store and lower; knows no handles. Any thread may call it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..lmz import ChunkCache, LmzReader
from .content import open_frozen
from .marks import FROZEN_MARK, Marks, frozen_mark, is_marked, patched_mark
from .overlays import Overlay


class Frozen:
    """What all handles of one frozen inode share: a reader, and the overlay if there is one."""

    def __init__(self, key: tuple[int, int], reader: LmzReader) -> None:
        self.key = key
        self.reader = reader
        self.overlay: Overlay | None = None
        self.lock = threading.Lock()  # held while the overlay is looked for or made
        self.users = 0  # guarded by the lock of FrozenFiles

    def close(self) -> None:
        if self.overlay is not None:
            self.overlay.close()
        self.reader.close()


class FrozenFiles:
    """Those of one mounted store, by device and inode."""

    def __init__(self, marks: Marks, cache: ChunkCache) -> None:
        self._marks = marks
        self._cache = cache
        self._files: dict[tuple[int, int], Frozen] = {}
        self._lock = threading.Lock()  # of the table and the counts; never held during I/O

    def __len__(self) -> int:
        with self._lock:
            return len(self._files)

    def take(self, fd: int, status: os.stat_result) -> Frozen:
        """That of the frozen file open as `fd`; to be given back."""
        if (frozen := self._find(status)) is not None:
            return frozen
        key = (status.st_dev, status.st_ino)
        # Opened without the lock, for it reads the index; the loser of a race is closed again.
        reader = open_frozen(fd, self._marks, cache=self._cache)
        with self._lock:
            frozen = self._files.setdefault(key, Frozen(key, reader))
            frozen.users += 1
        if frozen.reader is not reader:
            reader.close()
        return frozen

    def share(self, frozen: Frozen) -> Frozen:
        """One more user of what has one that does not give it back meanwhile."""
        with self._lock:
            frozen.users += 1
        return frozen

    def give_back(self, frozen: Frozen | None) -> None:
        """One user less; without any it is closed."""
        if frozen is None:
            return
        with self._lock:
            frozen.users -= 1
            if frozen.users:
                return
            if self._files.get(frozen.key) is frozen:
                del self._files[frozen.key]
        frozen.close()

    @contextmanager
    def known(self, fd: int) -> Iterator[Frozen | None]:
        """That of the file open as `fd`, if somebody has it; nobody closes it meanwhile."""
        frozen = self._find(os.fstat(fd))
        try:
            yield frozen
        finally:
            self.give_back(frozen)

    def _find(self, status: os.stat_result) -> Frozen | None:
        """As `take`; None if nobody has it."""
        with self._lock:
            frozen = self._files.get((status.st_dev, status.st_ino))
            if frozen is not None:
                frozen.users += 1
        return frozen

    # ------------------------------------------------------------------------------ overlays

    def overlay(self, frozen: Frozen, fd: int) -> Overlay | None:
        """The overlay of the frozen file open as `fd`, which another process may have made."""
        if frozen.overlay is not None:
            return frozen.overlay
        facts = self._marks.facts_to_show(fd)
        if facts.overlay is None:
            return None
        own = os.dup(fd)  # `fd` may have been turned to another file, and may be at any moment
        try:
            status = os.fstat(own)
            if (status.st_dev, status.st_ino) != frozen.key:
                return None
            with frozen.lock:
                if frozen.overlay is None:
                    pread = frozen.reader.pread
                    frozen.overlay = self._marks.overlays.open(facts.overlay, own, pread)
                return frozen.overlay
        finally:
            os.close(own)

    def overlay_to_write(self, frozen: Frozen, fd: int) -> Overlay:
        """As `overlay`; made if there is none. fd: open for writing"""
        overlay = self.overlay(frozen, fd)
        if overlay is not None:
            return overlay
        overlays = self._marks.overlays

        def mark(overlay_id: bytes) -> None:
            os.setxattr(fd, FROZEN_MARK, patched_mark(overlay_id, frozen.reader.size))

        with overlays.commit():
            overlay = self.overlay(frozen, fd)  # made meanwhile
            if overlay is not None:
                return overlay
            if not is_marked(fd):
                # Where the mark was lost an overlay that nobody names would be taken for damage.
                os.setxattr(fd, FROZEN_MARK, frozen_mark(self._marks.store.id, frozen.reader.size))
            name = overlays.create(fd, frozen.reader.size, mark)
            with frozen.lock:
                if frozen.overlay is None:
                    frozen.overlay = overlays.open(name, fd, frozen.reader.pread)
                return frozen.overlay
