"""Kept inode numbers: a file shows the same number before, while and after it is frozen.

Owns: `.lmfs/inodes` and the xattr that carries a kept number. Imports `system` only. Any thread may
call it; several processes may append at once.

Freezing and thawing put a new inode under the old name; who tells files apart by number
(`tail -F`, log shippers, backup programs) would take it for another file. So a replaced file
keeps the number that it showed, in an xattr that also names the real inode (a copy of the xattr
on another inode means nothing). The filesystem gives the freed number to another file sooner or
later, and two files must not show one number (`cmp` would call them equal unread): therefore
every kept number is written down in `.lmfs/inodes`, before it is freed, and a file whose real
number is taken shows the next number of the form `real + k * 2**48` that is not.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import threading

from .system import open_own

KEPT_MARK = "user.lmfs.inode"

_JOURNAL = (".lmfs", "inodes")
_MOST_BYTES = 64 << 20  # of the journal, which is kept in memory, ten times as large there
_ENTRY = struct.Struct("<Q")
_MARK = struct.Struct("<QQ")  # the number shown, the real inode
_STRIDE = 1 << 48


class KeptInodes:
    """The numbers that replaced files of one store show."""

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._lock = threading.Lock()
        self._kept: set[int] = set()
        self._read_bytes = 0
        self._fd: int | None = None

    def close(self) -> None:
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def shown(self, real: int, mark: bytes | None) -> int:
        """The number that an inode shows; `mark` is its xattr KEPT_MARK."""
        if mark is not None and len(mark) == _MARK.size:
            shown, owner = _MARK.unpack(mark)
            if owner == real and shown:
                return int(shown)
        with self._lock:
            self._refresh()
            while real in self._kept:
                real = (real + _STRIDE) % (1 << 64)
        return real

    def mark(self, shown: int, real: int) -> bytes:
        """The value of KEPT_MARK that makes inode `real` show `shown`."""
        return _MARK.pack(shown, real)

    def keep(self, shown: int) -> None:
        """Write a number down, durably; to be done before its inode can be freed."""
        with self._lock:
            self._refresh()
            if shown in self._kept:
                return
            fd = open_own(self._root_fd, *_JOURNAL, flags=os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                size = os.fstat(fd).st_size
                if size % _ENTRY.size:  # a crash tore the last entry, whose number was not freed
                    os.ftruncate(fd, size - size % _ENTRY.size)
                os.write(fd, _ENTRY.pack(shown))
                os.fsync(fd)
            finally:
                os.close(fd)

    def _refresh(self) -> None:
        if self._fd is None:
            with contextlib.suppress(FileNotFoundError):
                self._fd = open_own(self._root_fd, *_JOURNAL)
            if self._fd is None:
                return
        size = os.fstat(self._fd).st_size
        if size > _MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), "/".join(_JOURNAL))
        size -= size % _ENTRY.size
        while self._read_bytes < size:
            data = os.pread(self._fd, min(size - self._read_bytes, 1 << 20), self._read_bytes)
            self._kept.update(number for (number,) in _ENTRY.iter_unpack(data))
            self._read_bytes += len(data)
