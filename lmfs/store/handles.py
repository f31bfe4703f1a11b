"""Open files of a store, hot and frozen alike.

Owns: handles, the readers that they share, and what happens to a handle when its file is frozen
or thawed. Imports the rest of the store and lower; knows no FUSE. Any thread may call it.

A hot file's handle is a descriptor of the backing file and nothing else. A frozen file's handle
is a reader, shared by all handles of the same inode. Freezing and thawing, by us or by another
process, put a new inode under the name; so after every open, and at every read, an inode without
a name (st_nlink == 0) means: look again under the name.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import stat
import threading
from collections.abc import Iterator

from ..codecs.choose import Chooser
from ..errors import BusyError, LmfsError
from ..lmz import ChunkCache, LmzReader
from .freeze import Action, freeze, open_frozen, thaw
from .marks import PLAIN_MARK, Facts, Marks, State, gives_magic, looks_frozen

_log = logging.getLogger(__name__)

_OPEN_TRIES = 100
# What the kernel has dealt with, or what would make the backing descriptor behave otherwise.
_DROPPED_FLAGS = os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_DIRECT | os.O_NOATIME


class _Handle:
    """An open file. `reader` is set while it reads a frozen file; `inode` is the shown one."""

    def __init__(self, fd: int, inode: int, *, writable: bool) -> None:
        self.fd = fd
        self.inode = inode
        self.writable = writable
        self.reader: _SharedReader | None = None
        self.lock = threading.Lock()  # held while the handle is turned to another file


class _SharedReader:
    """One reader for all handles of one frozen inode."""

    def __init__(self, key: tuple[int, int], reader: LmzReader) -> None:
        self.key = key
        self.reader = reader
        self.users = 0


class Handles:
    """The open files of one mounted store, by number. Paths are relative to the store's root."""

    def __init__(self, marks: Marks, cache: ChunkCache) -> None:
        self._marks = marks
        self._store = marks.store
        self._cache = cache
        self._numbers = itertools.count(1)
        self._handles: dict[int, _Handle] = {}
        self._readers: dict[tuple[int, int], _SharedReader] = {}
        self._lock = threading.Lock()  # of the tables and the counts; never held during I/O

    def close(self) -> None:
        for number in list(self._handles):
            self.release(number)

    def statistics(self) -> dict[str, int]:
        """How many files are open now."""
        with self._lock:
            return {"open_files": len(self._handles), "frozen_open": len(self._readers)}

    def describe(self, number: int) -> dict[str, str] | None:
        """What a frozen file is coded with, in words; None if the handle reads no frozen file."""
        with self._borrowed_reader(self._handle(number)) as reader:
            if reader is None:
                return None
            used = [
                member.codings[coding]
                for member in reader.members
                for coding in sorted(set(member.layout.codings.tolist()))
            ]
            models = {coding.model_id.hex() for coding in used if coding.model_id is not None}
            primer = max((coding.primer_bytes for coding in used), default=0)
            codecs = reader.statistics().items()
            return {
                "ratio": f"{reader.stored_bytes / reader.size:.4f}" if reader.size else "-",
                "codecs": " ".join(f"{name}={numbers.chunks}" for name, numbers in codecs),
                "model": " ".join(sorted(models)) or "none",
                "primer": f"own {primer}" if primer else "none",
            }

    # ---------------------------------------------------------------------------- open, release

    def open(self, path: str, flags: int) -> int:
        """A handle; opening a frozen file for writing thaws it. raises: OSError, LmfsError"""
        if _writes(flags):
            self.thaw(path, keep_bytes=0 if flags & os.O_TRUNC else None)
        return self._register(self._open_handle(path, flags))

    def create(self, path: str, flags: int, mode: int) -> int:
        """Make a file and open it. raises: FileExistsError and any OSError"""
        flags = _backing_flags(flags) | os.O_CREAT | os.O_EXCL
        fd = os.open(path, flags, mode, dir_fd=self._store.root_fd)
        try:
            inode = self._marks.inodes.shown(os.fstat(fd).st_ino, None)
            handle = _Handle(fd, inode, writable=True)
        except BaseException:
            os.close(fd)
            raise
        return self._register(handle)

    def _open_handle(self, path: str, flags: int) -> _Handle:
        writable = _writes(flags)
        for _ in range(_OPEN_TRIES):
            fd = os.open(path, _backing_flags(flags), dir_fd=self._store.root_fd)
            try:
                status = os.fstat(fd)
                if status.st_nlink:
                    facts = self._facts(fd, status)
                    self._marks.require_frozen_or_hot(facts, path)
                    handle = _Handle(fd, facts.inode, writable=writable)
                    if facts.state is State.HOT:
                        return handle
                    if not writable:
                        handle.reader = self._reader_of(fd, status)
                        return handle
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            if writable:  # frozen since we thawed it
                self.thaw(path)
        raise BusyError(
            "file is replaced again and again",
            where=self._store.shown_path(path),
            do="see what else works in this directory",
        )

    def _facts(self, fd: int, status: os.stat_result) -> Facts:
        if stat.S_ISREG(status.st_mode):
            return self._marks.facts_of_fd(fd)
        return Facts(State.HOT, status.st_size, status.st_ino)

    def _register(self, handle: _Handle) -> int:
        if handle.writable:
            self._marks.begin_writing(handle.fd, handle.inode)
        with self._lock:
            number = next(self._numbers)
            self._handles[number] = handle
        return number

    def _handle(self, number: int) -> _Handle:
        with self._lock:
            handle = self._handles.get(number)
        if handle is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return handle

    def descriptor(self, number: int) -> int:
        """The backing file's descriptor; the handle's, not the caller's to close."""
        return self._handle(number).fd

    def number_of(self, inode: int) -> int | None:
        """An open handle of the backing file with this inode number, for writing if possible."""
        with self._lock:
            handles = list(self._handles.items())
        found = None
        for number, handle in handles:
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.fstat(handle.fd).st_ino == inode:
                    found = number
                    if handle.writable:
                        break
        return found

    def release(self, number: int, path: str | None = None) -> None:
        """Close a handle; `path` lets a user's file that looks frozen be wrapped."""
        with self._lock:
            handle = self._handles.pop(number)
        with handle.lock:
            self._drop_reader(handle)
            inode = os.fstat(handle.fd).st_ino
            wrap = handle.writable and _must_wrap(handle.fd)
            if handle.writable:
                self._marks.end_writing(handle.fd)
            os.close(handle.fd)
        if wrap and path is not None:
            self._wrap(path, inode)

    # ------------------------------------------------------------------------------------ bytes

    def read(self, number: int, size: int, offset: int, path: str | None = None) -> bytes:
        """At most `size` bytes from `offset`; fewer only at the end of the file."""
        handle = self._handle(number)
        if not handle.writable and path is not None and not os.fstat(handle.fd).st_nlink:
            self._follow(handle, path)
        with self._borrowed_reader(handle) as reader:
            if reader is None:
                return os.pread(handle.fd, size, offset)
            return reader.pread(size, offset)

    def write(self, number: int, data: bytes, offset: int) -> int:
        handle = self._handle(number)
        if gives_magic(data, offset) and self._store.xattr_marks:
            # Said before the bytes can say otherwise, so that a crash between leaves it said.
            os.setxattr(handle.fd, PLAIN_MARK, b"1")
        return os.pwrite(handle.fd, data, offset)

    def seek(self, number: int, offset: int, whence: int) -> int:
        """Where data (SEEK_DATA) or a hole (SEEK_HOLE) begins, from `offset` on."""
        handle = self._handle(number)
        with self._borrowed_reader(handle) as reader:
            if reader is None:
                return os.lseek(handle.fd, offset, whence)
            if not 0 <= offset < reader.size:
                raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
            return offset if whence == os.SEEK_DATA else reader.size

    def truncate(self, path: str, size: int, number: int | None = None) -> None:
        """Cut or extend; of a frozen file only what remains is decoded."""
        if number is not None and self._handle(number).writable:
            os.ftruncate(self._handle(number).fd, size)
            return
        if self.thaw(path, keep_bytes=size) == size:
            return
        handle = self._open_handle(path, os.O_WRONLY)
        try:
            os.ftruncate(handle.fd, size)
        finally:
            with contextlib.suppress(OSError):  # it is cut, whatever comes of this
                os.close(handle.fd)

    # --------------------------------------------------------------------------- frozen and hot

    def thaw(self, path: str, keep_bytes: int | None = None) -> int | None:
        """Make a frozen file plain, and turn the handles that read it to the plain one.

        returns: its size in bytes now; None if it was not frozen
        """
        status = os.stat(path, dir_fd=self._store.root_fd, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            return None
        if self._marks.facts_of_path(path, status).state is State.HOT:
            return None
        outcome = thaw(self._marks, path, keep_bytes=keep_bytes)
        with self._lock:
            readers = [handle for handle in self._handles.values() if handle.reader is not None]
        for handle in readers:
            # A handle that is closed meanwhile has no descriptor to ask.
            with contextlib.suppress(OSError):
                if os.fstat(handle.fd).st_ino == status.st_ino:
                    self._follow(handle, path, certain=True)
        return outcome.size_bytes if outcome.action is Action.THAWED else None

    def _follow(self, handle: _Handle, path: str, *, certain: bool = False) -> None:
        """Turn a handle for reading to what replaced its file, if that is the same file."""
        try:
            successor = self._open_handle(path, os.O_RDONLY)
        except (OSError, LmfsError):
            return  # removed, not replaced: its bytes remain readable
        with handle.lock:
            if certain or successor.inode == handle.inode:
                # The descriptor's number stays, so that a read in another thread stays valid.
                os.dup2(successor.fd, handle.fd, inheritable=False)
                with self._lock:
                    old, handle.reader = handle.reader, successor.reader
                self._give_back(old)
            else:
                self._drop_reader(successor)
        os.close(successor.fd)

    def _reader_of(self, fd: int, status: os.stat_result) -> _SharedReader:
        key = (status.st_dev, status.st_ino)
        with self._lock:
            shared = self._readers.get(key)
            if shared is not None:
                shared.users += 1
                return shared
        # Opened without the lock, for it reads the index; the loser of a race is closed again.
        reader = open_frozen(fd, self._marks, cache=self._cache)
        with self._lock:
            shared = self._readers.setdefault(key, _SharedReader(key, reader))
            shared.users += 1
        if shared.reader is not reader:
            reader.close()
        return shared

    @contextlib.contextmanager
    def _borrowed_reader(self, handle: _Handle) -> Iterator[LmzReader | None]:
        """The handle's reader, which nobody closes meanwhile."""
        with self._lock:
            shared = handle.reader
            if shared is not None:
                shared.users += 1
        try:
            yield None if shared is None else shared.reader
        finally:
            self._give_back(shared)

    def _give_back(self, shared: _SharedReader | None) -> None:
        if shared is None:
            return
        with self._lock:
            shared.users -= 1
            if shared.users:
                return
            if self._readers.get(shared.key) is shared:
                del self._readers[shared.key]
        shared.reader.close()

    def _drop_reader(self, handle: _Handle) -> None:
        with self._lock:
            shared, handle.reader = handle.reader, None
        self._give_back(shared)

    def _wrap(self, path: str, inode: int) -> None:
        """Freeze a user's file that looks like one of ours; left plain if somebody has it open."""
        try:
            freeze(self._marks, path, Chooser(None), even_if_larger=True, known_hot_inode=inode)
        except (OSError, LmfsError) as error:
            _log.warning("%s stays unwrapped: %s", self._store.shown_path(path), error)


def _writes(flags: int) -> bool:
    return flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)


def _backing_flags(flags: int) -> int:
    return flags & ~_DROPPED_FLAGS | os.O_NOFOLLOW | os.O_CLOEXEC


def _must_wrap(fd: int) -> bool:
    try:
        return bool(os.fstat(fd).st_nlink) and looks_frozen(fd)
    except OSError:  # not readable
        return False
