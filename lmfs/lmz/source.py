"""Bytes of a file at any offset, from many threads at once.

Owns: how a Python file object is read without moving anybody's position, and how a section is
compared with its checksum. Imports only `errors` and `container`.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
from typing import BinaryIO

import xxhash

from lmfs.container import CHECKSUM_BYTES
from lmfs.errors import DamagedError

_PIECE_BYTES = 1 << 20


class FileSource:
    """A file of a fixed size, read by offset. Any thread may call `pread`."""

    def __init__(self, file: BinaryIO | str | os.PathLike[str]) -> None:
        self._fd: int | None = None
        self._file: BinaryIO | None = None
        self._lock = threading.Lock()
        if isinstance(file, (str, os.PathLike)):
            self.name = os.fspath(file)
            if stat.S_ISFIFO(os.stat(file).st_mode):  # else it would be waited for
                raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE), self.name)
            self._fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        else:
            name = getattr(file, "name", None)
            self.name = name if isinstance(name, str) else ""
            self._adopt(file)
        try:
            self.size = self._measure()
        except BaseException:
            self.close()
            raise

    def _adopt(self, file: BinaryIO) -> None:
        # Only of the plain file types do we know that their descriptor holds what they read.
        if isinstance(file, (io.BufferedReader, io.BufferedRandom)):
            raw: object = file.raw
        else:
            raw = file
        if isinstance(raw, io.FileIO):
            if isinstance(file, io.BufferedRandom):
                file.flush()
            self._fd = os.dup(raw.fileno())
        else:
            self._file = file

    def _measure(self) -> int:
        if self._fd is not None:
            status = os.fstat(self._fd)
            if stat.S_ISREG(status.st_mode):
                return status.st_size
            return os.lseek(self._fd, 0, os.SEEK_END)  # of a disk; a pipe refuses
        assert self._file is not None
        return self._file.seek(0, os.SEEK_END)

    def pread(self, size: int, offset: int) -> bytes:
        """Exactly these bytes; DamagedError if the file ends before them."""
        if size < 0 or offset < 0 or offset + size > self.size:
            raise DamagedError("the file is too short", where=self.name or None)
        pieces = []
        left = size
        while left:
            piece = self._read(left, offset + size - left)
            if not piece:
                raise DamagedError("the file shrank while it was read", where=self.name or None)
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def _read(self, size: int, offset: int) -> bytes:
        if self._fd is not None:
            return os.pread(self._fd, size, offset)
        if self._file is None:
            raise ValueError("read of a closed file")
        with self._lock:
            self._file.seek(offset)
            return self._file.read(size)

    def close(self) -> None:
        """Give the descriptor back; a file object that the caller opened stays open."""
        fd, self._fd, self._file = self._fd, None, None
        if fd is not None:
            os.close(fd)


def section_holds(source: FileSource, at: int, size: int, head: bytes = b"") -> bool:
    """Whether the payload of `size` bytes at `at` has its checksum before it; kept in pieces.

    head: which is to stand before both
    """
    if source.pread(len(head), at - CHECKSUM_BYTES - len(head)) != head:
        return False
    digest = xxhash.xxh3_64()
    for begin in range(at, at + size, _PIECE_BYTES):
        digest.update(source.pread(min(_PIECE_BYTES, at + size - begin), begin))
    stored = source.pread(CHECKSUM_BYTES, at - CHECKSUM_BYTES)
    return digest.intdigest() & 0xFFFFFFFF == int.from_bytes(stored, "little")
