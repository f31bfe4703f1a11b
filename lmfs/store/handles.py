"""Open files of a store, hot and frozen alike.

Owns: handles, and what happens to one when its file is frozen or thawed. Imports the rest of the
store and lower; knows no FUSE. Any thread may call it.

A hot file's handle is a descriptor of the backing file and nothing else. A frozen file's handle
is a descriptor and what all handles of the same inode share (`frozen`): a reader, and an overlay
once the file has one. The first write makes the overlay; until then a file that is open for
writing stays as it is.

Freezing and thawing, by us or by another process, put a new inode under the name; so after every
open, and at every read, an inode without a name (st_nlink == 0), or one that is marked as replaced
(it keeps the temporary's name for a moment), means: look again under the name. If another file has
the name by then, which only another mount does to an open file, who has the old one open gets
ESTALE: the kernel keeps the pages of both in one place. A frozen file is not replaced while anybody
has it open for writing (`overlays`).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from ..codecs.choose import Chooser
from ..errors import BusyError, DamagedError, LmfsError
from ..lmz import ChunkCache
from .freeze import freeze, thaw
from .frozen import Frozen, FrozenFiles
from .marks import (
    PLAIN_MARK,
    Facts,
    Marks,
    State,
    gives_magic,
    looks_frozen,
    was_replaced,
)
from .overlays import begin_writing, end_writing, has_writers

_log = logging.getLogger(__name__)

_OPEN_TRIES = 100
_LOOK_AGAIN_S = 0.01
# What the kernel has dealt with, or what would make the backing descriptor behave otherwise.
_DROPPED_FLAGS = os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_DIRECT | os.O_NOATIME

_T = TypeVar("_T")


class _Handle:
    """An open file. `frozen` is set while its file is frozen; `inode` is the shown one."""

    def __init__(self, fd: int, inode: int, flags: int) -> None:
        self.fd = fd
        self.inode = inode
        self.writable = _writes(flags)
        self.appends = bool(flags & os.O_APPEND)
        self.frozen: Frozen | None = None
        self.closed = False
        self.lock = threading.Lock()  # held while it is turned to another file, and closed
        self.turns = 0  # counts their beginnings and ends


class Handles:
    """The open files of one mounted store, by number. Paths are relative to the store's root."""

    def __init__(self, marks: Marks, cache: ChunkCache) -> None:
        self._marks = marks
        self._store = marks.store
        self._numbers = itertools.count(1)
        self._handles: dict[int, _Handle] = {}
        self._frozen = FrozenFiles(marks, cache)
        self._lock = threading.Lock()  # of the tables and the counts; never held during I/O

    def close(self) -> None:
        for number in list(self._handles):
            self.release(number)

    def statistics(self) -> dict[str, int]:
        """How many files are open now."""
        return {"open_files": len(self._handles), "frozen_open": len(self._frozen)}

    def describe(self, number: int) -> dict[str, str] | None:
        """What a frozen file is coded with, in words; None if the handle reads no frozen file."""
        with self._borrowed(self._handle(number)) as frozen:
            if frozen is None:
                return None
            reader = frozen.reader
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
        """A handle; a frozen file stays frozen until it is written to. raises: OSError, LmfsError

        Cut to nothing it becomes a plain file, unless somebody writes to it.
        """
        if flags & os.O_TRUNC and self._thawed_empty(path):
            return self._register(self._open_handle(path, flags))
        handle = self._open_handle(path, flags)
        number = self._register(handle)
        if flags & os.O_TRUNC and handle.frozen is not None:
            try:
                self._cut(handle, 0)
            except BaseException:
                self.release(number)
                raise
        return number

    def create(self, path: str, flags: int, mode: int) -> int:
        """Make a file and open it. raises: FileExistsError and any OSError"""
        backing_flags = _backing_flags(flags) | os.O_CREAT | os.O_EXCL
        fd = os.open(path, backing_flags, mode, dir_fd=self._store.root_fd)
        try:
            inode = self._marks.inodes.shown(os.fstat(fd).st_ino, None)
            handle = _Handle(fd, inode, flags | os.O_RDWR)
        except BaseException:
            os.close(fd)
            raise
        return self._register(handle)

    def _open_handle(self, path: str, flags: int) -> _Handle:
        for _ in range(_OPEN_TRIES):
            # O_TRUNC would cut a frozen file's stored form: only what is known to be hot is cut.
            fd = os.open(path, _backing_flags(flags) & ~os.O_TRUNC, dir_fd=self._store.root_fd)
            try:
                status = os.fstat(fd)
                if status.st_nlink:
                    facts = self._facts(fd, status)
                    self._marks.require_frozen_or_hot(facts, path)
                    handle = _Handle(fd, facts.inode, flags)
                    if facts.state is State.HOT:
                        if flags & os.O_TRUNC and stat.S_ISREG(status.st_mode):
                            os.truncate(f"/proc/self/fd/{fd}", 0)
                        return handle
                    if not handle.writable:
                        handle.frozen = self._frozen.take(fd, status)
                        try:
                            # Now, for it goes with the name of a file that is removed.
                            self._frozen.overlay(handle.frozen, fd)
                        except BaseException:
                            self._drop_frozen(handle)
                            raise
                        return handle
            except DamagedError:
                replaced = not os.fstat(fd).st_nlink  # and its overlay went with its name
                os.close(fd)
                if not replaced:
                    raise
                continue
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            if status.st_nlink and _writes(flags):
                to_write = self._open_to_patch(path, flags)
                if to_write is not None:
                    return to_write
        raise self._restless(path)

    def _open_to_patch(self, path: str, flags: int) -> _Handle | None:
        """A handle that writes to a frozen file; None if it is none any longer."""
        overlays = self._marks.overlays
        if overlays.usable():
            with overlays.commit():
                handle = self._try_to_patch(path, flags)
            if handle is not None:
                return handle
        self.thaw(path)
        return None

    def _try_to_patch(self, path: str, flags: int) -> _Handle | None:
        """As `_open_to_patch`, under the commit lock; None also if the overlay is not ours."""
        flags_to_open = _backing_flags(flags) & ~(os.O_ACCMODE | os.O_APPEND | os.O_TRUNC)
        fd = os.open(path, flags_to_open | os.O_RDWR, dir_fd=self._store.root_fd)
        handle: _Handle | None = None
        try:
            status = os.fstat(fd)
            facts = self._facts(fd, status)
            if facts.state in (State.FROZEN, State.PATCHED):
                handle = _Handle(fd, facts.inode, flags)
                handle.frozen = self._frozen.take(fd, status)
                overlay = self._frozen.overlay(handle.frozen, fd)
                if overlay is not None and overlay.owner != status.st_ino:
                    # A restored or copied file: another may name the same overlay.
                    self._frozen.give_back(handle.frozen)
                    handle = None
                else:
                    if overlay is not None and not has_writers(fd):
                        overlay.forget_unsynced()
                    begin_writing(fd)
        except BaseException:
            if handle is not None:
                self._frozen.give_back(handle.frozen)
            os.close(fd)
            raise
        if handle is None:
            os.close(fd)
        return handle

    def _facts(self, fd: int, status: os.stat_result) -> Facts:
        if stat.S_ISREG(status.st_mode):
            return self._marks.facts_of_fd(fd)
        return Facts(State.HOT, status.st_size, status.st_ino)

    def _register(self, handle: _Handle) -> int:
        if handle.writable and handle.frozen is None:
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

    @contextlib.contextmanager
    def duplicate(self, number: int) -> Iterator[int]:
        """A descriptor of our own meanwhile, for handles that another thread may close."""
        with self._lock:  # who is among the handles is not closed before we are done
            handle = self._handles.get(number)
            fd = None if handle is None else os.dup(handle.fd)
        if fd is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        try:
            yield fd
        finally:
            os.close(fd)

    def keep_open(self, inode: int) -> int | None:
        """One more handle, for reading, of a file that is open; None if none shows this number."""
        with self._lock:
            # Who is among the handles is not closed before we are done.
            handle = next((h for h in self._handles.values() if h.inode == inode), None)
            if handle is None:
                return None
            kept = _Handle(os.dup(handle.fd), inode, os.O_RDONLY)
            if handle.frozen is not None:
                kept.frozen = self._frozen.share(handle.frozen)
            number = next(self._numbers)
            self._handles[number] = kept
        return number

    def shown_inode(self, path: str) -> int | None:
        """The number that a regular file shows; None for anything else. raises: OSError"""
        status = os.stat(path, dir_fd=self._store.root_fd, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            return None
        return self._marks.facts_of_path(path, status).inode

    def number_of(self, inode: int) -> int | None:
        """An open handle of the file that shows this inode number, for writing if possible."""
        with self._lock:
            handles = list(self._handles.items())
        found = None
        for number, handle in handles:
            if handle.inode == inode:
                found = number
                if handle.writable:
                    break
        return found

    def facts(self, number: int) -> Facts:
        """The facts of an open regular file; also if it, and its overlay, have no name any more."""
        handle = self._handle(number)

        def look() -> Facts:
            with self._borrowed(handle) as frozen:
                facts = self._marks.facts_to_show(handle.fd)
                overlay = None if frozen is None else self._frozen.overlay(frozen, handle.fd)
                if overlay is not None:
                    facts = facts._replace(
                        state=State.PATCHED,
                        size=overlay.size,
                        overlay_blocks=overlay.blocks,
                        inode=handle.inode,
                    )
                elif frozen is not None and facts.state is State.HOT:  # not ours to read any more
                    facts = Facts(State.FROZEN, frozen.reader.size, handle.inode)
            return facts

        return _steadily(handle, look)

    def status(self, number: int) -> tuple[os.stat_result, int]:
        """Of the backing file that is open, and the size that is shown."""
        handle = self._handle(number)

        def look() -> tuple[os.stat_result, int]:
            with self._borrowed(handle) as frozen:
                status = os.fstat(handle.fd)
                if frozen is None:
                    return status, status.st_size
                overlay = self._frozen.overlay(frozen, handle.fd)
                return status, frozen.reader.size if overlay is None else overlay.size

        return _steadily(handle, look)

    def inode(self, number: int) -> int:
        """The number that an open file shows."""
        return self._handle(number).inode

    def release(self, number: int, path: str | None = None) -> None:
        """Close a handle; `path` lets a user's file that looks frozen be wrapped."""
        with self._lock:
            handle = self._handles.pop(number)
        with handle.lock:
            inode = os.fstat(handle.fd).st_ino
            wrap = False
            if handle.writable and handle.frozen is None:
                wrap = _must_wrap(handle.fd)
                self._marks.end_writing(handle.fd)
            elif handle.frozen is not None and handle.writable:
                self._end_patching(handle, handle.frozen)
            self._drop_frozen(handle)
            handle.closed = True
            os.close(handle.fd)
        if wrap and path is not None:
            self._wrap(path, inode)

    def _end_patching(self, handle: _Handle, frozen: Frozen) -> None:
        if frozen.overlay is not None:
            try:
                frozen.overlay.settle()
            except (OSError, LmfsError) as error:
                _log.error("what was written last may be lost: %s", error)
        end_writing(handle.fd)

    # ------------------------------------------------------------------------------------ bytes

    def read(self, number: int, size: int, offset: int, path: str | None = None) -> bytes:
        """At most `size` bytes from `offset`; fewer only at the end of the file.

        path: where the file is, or was before it lost its name
        """
        handle = self._handle(number)

        def read() -> bytes:
            with self._borrowed(handle) as frozen:
                if frozen is None:
                    return os.pread(handle.fd, size, offset)
                overlay = self._frozen.overlay(frozen, handle.fd)
                if overlay is None:
                    return frozen.reader.pread(size, offset)
                return overlay.pread(size, offset)

        return self._currently(handle, path, read)

    def _currently(self, handle: _Handle, path: str | None, look: Callable[[], _T]) -> _T:
        """What is seen of a handle's file, or of what has replaced it."""
        while True:
            self._stay_current(handle, path)
            turns = handle.turns
            try:
                return _steadily(handle, look)
            except DamagedError:
                # Replaced this moment, and its overlay went with its name?
                if handle.writable or path is None or not self._is_replaced(handle, path):
                    raise
                self._stay_current(handle, path)
                if handle.turns == turns:
                    raise

    def follow(self, number: int, path: str) -> None:
        """Turn a handle whose file was replaced to what replaced it, which is under `path`.

        raises: OSError (ESTALE) if that was removed behind our back
        """
        self._stay_current(self._handle(number), path)

    def _stay_current(self, handle: _Handle, path: str | None) -> None:
        """As `follow`; without a path only an error where it is needed."""
        if handle.writable or not self._is_replaced(handle, path):
            return
        if path is not None:
            self._follow(handle, path)
        if self._is_replaced(handle, path) and was_replaced(handle.fd):
            # What was written to what replaced it is lost to us: not to be shown without that.
            _log.error("%s was replaced and is gone: who has it open gets no bytes", path)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)

    def _is_replaced(self, handle: _Handle, path: str | None) -> bool:
        """True if a handle's file has lost its name, or is about to; or the handle is closed.

        path: the name; what is replaced has another one for a moment, or for longer after a crash
        """
        try:
            status = os.fstat(handle.fd)
            if not status.st_nlink:
                return True
            if path is None or not was_replaced(handle.fd):
                return False
        except PermissionError:  # its mode is another one since it was opened
            return False
        except OSError:
            return True
        try:
            named = os.stat(path, dir_fd=self._store.root_fd, follow_symlinks=False)
        except OSError:
            return True
        return (named.st_dev, named.st_ino) != (status.st_dev, status.st_ino)

    def require_named(self, number: int, path: str) -> None:
        """Refuse a handle whose file lost this name, where another file has it now.

        The kernel keeps the pages of both in one place: who has the other one open would get this
        one's bytes, and for as long as they are kept. Only another mount of the store, or who works
        on it by hand, does that to an open file; NFS refuses it likewise. raises: OSError (ESTALE)
        """
        handle = self._handle(number)
        if not self._store.xattr_marks:
            return  # frozen or thawed a file may show another number
        try:
            status = os.fstat(handle.fd)
            named = os.stat(path, dir_fd=self._store.root_fd, follow_symlinks=False)
            if (named.st_dev, named.st_ino) == (status.st_dev, status.st_ino):
                return
            shown = self.shown_inode(path)
        except OSError:
            return  # not there, or not ours to look at
        if shown is not None and shown != handle.inode:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)

    def write(self, number: int, data: bytes, offset: int) -> int:
        handle = self._handle(number)
        with self._borrowed(handle) as frozen:
            if frozen is not None:
                overlay = self._frozen.overlay_to_write(frozen, handle.fd)
                count = overlay.write(data, offset, append=handle.appends)
                _touch(handle)
                return count
        if gives_magic(data, offset) and self._store.xattr_marks:
            # Said before the bytes can say otherwise, so that a crash between leaves it said.
            os.setxattr(handle.fd, PLAIN_MARK, b"1")
        return os.pwrite(handle.fd, data, offset)

    def seek(self, number: int, offset: int, whence: int, path: str | None = None) -> int:
        """Where data (SEEK_DATA) or a hole (SEEK_HOLE) begins, from `offset` on.

        A frozen file shows no holes, whatever was written to it since. path: as for `read`
        """
        handle = self._handle(number)

        def look() -> int:
            with self._borrowed(handle) as frozen:
                if frozen is None:
                    return os.lseek(handle.fd, offset, whence)
                overlay = self._frozen.overlay(frozen, handle.fd)
                size = frozen.reader.size if overlay is None else overlay.size
                if not 0 <= offset < size:
                    raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
                return offset if whence == os.SEEK_DATA else size

        return self._currently(handle, path, look)

    def allocate(self, number: int, offset: int, size: int) -> None:
        """As fallocate(2) without flags."""
        handle = self._handle(number)
        with self._borrowed(handle) as frozen:
            if frozen is None:
                os.posix_fallocate(handle.fd, offset, size)
                return
            self._frozen.overlay_to_write(frozen, handle.fd).allocate(offset, size)
            _touch(handle)

    def truncate(self, path: str, size: int, number: int | None = None) -> None:
        """Cut or extend; nothing of a frozen file is decoded."""
        if number is not None and self._handle(number).writable:
            self._cut(self._handle(number), size)
            return
        if not size and self._thawed_empty(path):
            return
        number = self._register(self._open_handle(path, os.O_WRONLY))
        try:
            self._cut(self._handle(number), size)
        finally:
            self.release(number)

    def _cut(self, handle: _Handle, size: int) -> None:
        # It may be anybody's handle of the file: its number is another file's once it is closed.
        with handle.lock, self._borrowed(handle) as frozen:
            if handle.closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            if frozen is None:
                os.ftruncate(handle.fd, size)
                return
            self._frozen.overlay_to_write(frozen, handle.fd).truncate(size)
            _touch(handle)

    def _thawed_empty(self, path: str) -> bool:
        """Make an empty file of a frozen or damaged one; False if it is hot, or in use."""
        try:
            return self.thaw(path, keep_bytes=0)
        except BusyError:
            return False

    def flush(self, number: int) -> None:
        """What close(2) is to report."""
        handle = self._handle(number)
        with self._borrowed(handle) as frozen:
            if frozen is not None and frozen.overlay is not None and handle.writable:
                frozen.overlay.settle()
        # Closing a duplicate reports what the backing filesystem reports at close (quota, NFS).
        os.close(os.dup(handle.fd))

    def sync(self, number: int, *, data_only: bool) -> None:
        """fsync(2) or fdatasync(2)."""
        handle = self._handle(number)
        with self._borrowed(handle) as frozen:
            if frozen is not None and frozen.overlay is not None:
                frozen.overlay.sync()
                data_only = False  # the mark that names the overlay counts as data
        (os.fdatasync if data_only else os.fsync)(handle.fd)

    def catch_up(self, path: str, inode: int) -> None:
        """Turn handles whose file was replaced to what shows their number under its name now.

        Before it loses that name, by which alone they would find it. Needs the commit lock, so
        that it is not replaced once more.
        """
        with self._lock:
            handles = [handle for handle in self._handles.values() if handle.inode == inode]
        for handle in handles:
            if not handle.writable and self._is_replaced(handle, path):
                self._follow(handle, path)

    def keep_overlay(self, fd: int) -> None:
        """Have the handles of a file that loses its name know its overlay, while that has one."""
        with self._frozen.known(fd) as frozen:
            if frozen is not None:
                self._frozen.overlay(frozen, fd)

    # --------------------------------------------------------------------------- frozen and hot

    def thaw(self, path: str, keep_bytes: int | None = None) -> bool:
        """Make a frozen file plain, and turn the handles that read it to the plain one.

        keep_bytes: 0 to make an empty file of it
        returns: False if it is hot already
        raises: BusyError if somebody has it open for writing, OSError, LmfsError
        """
        status = os.stat(path, dir_fd=self._store.root_fd, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            return False
        if self._marks.facts_of_path(path, status).state is State.HOT:
            return False
        outcome = thaw(self._marks, path, keep_bytes=keep_bytes, wait=keep_bytes is None)
        if outcome.inodes is None:
            return False
        before, after = outcome.inodes
        with self._lock:
            handles = [h for h in self._handles.values() if h.frozen is not None and not h.writable]
        for handle in handles:
            # A handle that is closed meanwhile has no descriptor to ask.
            with contextlib.suppress(OSError):
                if os.fstat(handle.fd).st_ino == before:
                    self._follow(handle, path, certain=after)
        return True

    def link(self, source: str, path: str) -> None:
        """Give a file a second name; a frozen one is thawed first.

        raises: BusyError, OSError, LmfsError
        """
        root = self._store.root_fd
        for _ in range(_OPEN_TRIES):
            self.thaw(source)
            status = os.stat(source, dir_fd=root, follow_symlinks=False)
            try:
                if not stat.S_ISREG(status.st_mode):
                    raise PermissionError  # nor is it ours to open
                # While we have it open nobody freezes it (`Lease`).
                fd = os.open(source, _backing_flags(os.O_RDONLY | os.O_NONBLOCK), dir_fd=root)
            except PermissionError:
                os.link(source, path, src_dir_fd=root, dst_dir_fd=root, follow_symlinks=False)
                return
            except BlockingIOError:  # somebody does this moment
                time.sleep(_LOOK_AGAIN_S)
                continue
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    continue
                if status.st_nlink and self._marks.facts_of_fd(fd).state is State.HOT:
                    os.link(f"/proc/self/fd/{fd}", path, dst_dir_fd=root, follow_symlinks=True)
                    return
            finally:
                with contextlib.suppress(OSError):  # what is linked is linked
                    os.close(fd)
        raise self._restless(source)

    def _restless(self, path: str) -> BusyError:
        return BusyError(
            "file is replaced again and again",
            where=self._store.shown_path(path),
            do="see what else works in this directory",
        )

    def _follow(self, handle: _Handle, path: str, *, certain: int | None = None) -> None:
        """Turn a handle for reading to what replaced its file, if that is the same file.

        certain: what replaced it has this number on the disk, whatever it shows
        """
        try:
            # Looked at first: a FIFO or a device that has the name by now is not to be opened.
            if certain is None and self.shown_inode(path) != handle.inode:
                return
            successor = self._open_handle(path, os.O_RDONLY)
        except (OSError, LmfsError):
            return  # removed, not replaced: its bytes remain readable
        with handle.lock:
            is_same = successor.inode == handle.inode or os.fstat(successor.fd).st_ino == certain
            # A closed one's number may be another's by now.
            if not handle.closed and is_same:
                # The descriptor's number stays; who reads meanwhile begins anew (`_steadily`).
                handle.turns += 1
                try:
                    with self._lock:  # `keep_open` takes both or none
                        os.dup2(successor.fd, handle.fd, inheritable=False)
                        old, handle.frozen = handle.frozen, successor.frozen
                finally:
                    handle.turns += 1
                self._frozen.give_back(old)
            else:
                self._drop_frozen(successor)
        os.close(successor.fd)

    @contextlib.contextmanager
    def _borrowed(self, handle: _Handle) -> Iterator[Frozen | None]:
        """What the handle of a frozen file shares, and nobody closes meanwhile."""
        with self._lock:
            frozen = None if handle.frozen is None else self._frozen.share(handle.frozen)
        try:
            yield frozen
        finally:
            self._frozen.give_back(frozen)

    def _drop_frozen(self, handle: _Handle) -> None:
        with self._lock:
            frozen, handle.frozen = handle.frozen, None
        self._frozen.give_back(frozen)

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


def _steadily(handle: _Handle, look: Callable[[], _T]) -> _T:
    """What is seen of a handle's file by one that was not turned to another meanwhile."""
    while True:
        turns = handle.turns
        if turns % 2:
            with handle.lock:  # until it is turned
                continue
        try:
            seen = look()
        except (OSError, LmfsError):
            if handle.turns == turns:
                raise
            continue
        if handle.turns == turns:
            return seen


def _touch(handle: _Handle) -> None:
    """What was written is written: that its time cannot be set is no error of the write."""
    try:
        os.utime(handle.fd)
    except OSError as error:
        _log.warning("a file was written to, but has its old time: %s", error)


def _must_wrap(fd: int) -> bool:
    try:
        return bool(os.fstat(fd).st_nlink) and looks_frozen(fd)
    except OSError:  # not readable
        return False
