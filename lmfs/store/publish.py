"""Putting a new file under an old file's name, so that a crash at any point loses nothing.

Owns: temporaries, the copying of metadata, the swap, and the removal of what a crash left. Does
not know what is in the files. Imports the store and lower. Objects belong to one thread.

The protocol (FILESYSTEM.md, "Durability"), each step named as `reached` is told it:

    locked      the source has an exclusive flock: nobody else of us replaces it
    created     a temporary of our own name stands beside it, locked as well
    written     the new bytes are in it
    described   owner, mode, xattrs, ACLs and times are copied
    synced      fsync; its pages are dropped
    verified    it was read back from the disk and is what it must be
    checked     the source is what it was when it was read, and still under its name
    swapped     the two names changed places (where the filesystem can; else renamed over)
    durable     fsync of the directory
    removed     the source is gone, and before it the overlay that it may have had

Swapping instead of renaming over tells us *afterwards* what stood under the name: a file that
somebody put there in the last microsecond is swapped back and nothing is lost.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Callable
from typing import NamedTuple

from ..errors import BusyError
from .inodes import KEPT_MARK
from .marks import PREFIX, Marks, say_replaced
from .store import Store
from .system import Lease, exchange_or_rename

_log = logging.getLogger(__name__)

_UNTOUCHABLE = (errno.ENOTSUP, errno.EPERM, errno.EACCES)


def reached(step: str) -> None:
    """Told at every step of the protocol; does nothing. Tests put a crash here."""


class Source:
    """The file that is to be replaced: open, locked, and what it was at the beginning."""

    def __init__(self, store: Store, path: str, *, wait: bool) -> None:
        """raises: BusyError if another process replaces it right now (unless `wait`), OSError"""
        self.store = store
        self.path = path
        try:
            while not self._open_and_lock(wait):
                os.close(self.fd)  # replaced while we waited for the lock
        except BlockingIOError:
            raise BusyError(
                "file is in use",
                where=store.shown_path(path),
                got="a lock on it",
                do="try again later",
            ) from None
        reached("locked")

    def _open_and_lock(self, wait: bool) -> bool:
        self.fd = open_quietly(self.path, self.store.root_fd)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            self.status = os.fstat(self.fd)
            return self.status.st_nlink > 0 and self._is_under_its_name()
        except BaseException:
            os.close(self.fd)
            raise

    def _is_under_its_name(self) -> bool:
        try:
            named = os.stat(self.path, dir_fd=self.store.root_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (named.st_dev, named.st_ino) == (self.status.st_dev, self.status.st_ino)

    def has_moved(self) -> bool:
        """True if another file has the name now, or there is a second name."""
        return os.fstat(self.fd).st_nlink != self.status.st_nlink or not self._is_under_its_name()

    def has_changed(self) -> bool:
        """True if it moved, or if its bytes or anything else about it changed since."""
        now = os.fstat(self.fd)
        return self.has_moved() or any(
            getattr(now, field) != getattr(self.status, field)
            for field in ("st_size", "st_mtime_ns", "st_ctime_ns")
        )

    def close(self) -> None:
        _close(self.fd)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Replacement:
    """A temporary beside the source; without `publish` it is removed when it is closed."""

    def __init__(self, source: Source, marks: Marks, shown_inode: int) -> None:
        """shown_inode: the number that the source shows, and that this file is to show"""
        self.source = source
        self.published = False
        self._marks = marks
        self._shown_inode = shown_inode
        head, self._name = os.path.split(source.path)
        flags = os.O_RDONLY | os.O_DIRECTORY
        self._directory = os.open(head or ".", flags, dir_fd=source.store.root_fd)
        try:
            self._temporary, self.fd = _create_temporary(marks, shown_inode, self._directory)
        except BaseException:
            os.close(self._directory)
            raise
        reached("created")

    def describe(self, marks: dict[str, bytes]) -> None:
        """Copy the source's metadata, and set our own xattrs. raises: OSError"""
        reached("written")
        for name, value in marks.items():
            os.setxattr(self.fd, name, value)
        self._copied = copy_metadata(self.source.fd, self.fd)
        reached("described")

    def sync(self) -> None:
        """Have the disk hold it, and the page cache not."""
        os.fsync(self.fd)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        reached("synced")

    def reopen(self) -> int:
        """A second descriptor, for reading back; the caller closes it."""
        return os.open(self._temporary, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._directory)

    def publish(
        self, lease: Lease | None, moved: Callable[[], bool], overlay: str | None = None
    ) -> None:
        """Take the source's name; the temporary must be synced and verified.

        lease: taken on the source, if nobody else may have it open
        moved: tells whether the source is no longer what was read
        overlay: the source's, to be removed with it
        Needs the commit lock.
        raises: BusyError if the source moved or somebody wants it; OSError. Then nothing changed,
        unless it was the fsync of the directory that failed: then nobody knows.
        """
        source = self.source
        if moved() or (lease is not None and lease.wanted):
            raise self._changed()
        if source.store.xattr_marks:
            self._keep_number()
        reached("checked")
        try:
            displaced = exchange_or_rename(self._temporary, self._name, dir_fd=self._directory)
        except FileNotFoundError:  # removed or renamed in the last microsecond
            raise self._changed() from None
        if displaced:
            old = os.stat(self._temporary, dir_fd=self._directory, follow_symlinks=False)
            same = (old.st_ino, old.st_nlink) == (source.status.st_ino, source.status.st_nlink)
            if not same or (lease is not None and lease.wanted):
                exchange_or_rename(self._temporary, self._name, dir_fd=self._directory)
                raise self._changed()
        self.published = True
        reached("swapped")
        say_replaced(source.fd)
        self._catch_up()
        os.fsync(self._directory)
        reached("durable")
        if displaced:
            with contextlib.suppress(OSError):  # then the next sweep does it
                os.unlink(self._temporary, dir_fd=self._directory)
        if overlay is not None:
            # Last: who finds no overlay any more sees that the file has no name any more.
            with contextlib.suppress(OSError):
                if not os.fstat(source.fd).st_nlink:
                    self._marks.overlays.drop(overlay, source.status.st_ino)
        reached("removed")

    def _keep_number(self) -> None:
        """Write the number down, and on the source first: it would show another if we stop here.

        Where we may not write on the source (a user's own file that is read-only), it does.
        """
        source, inodes = self.source, self._marks.inodes
        with contextlib.suppress(PermissionError):
            os.setxattr(source.fd, KEPT_MARK, inodes.mark(self._shown_inode, source.status.st_ino))
        inodes.keep(self._shown_inode)

    def _catch_up(self) -> None:
        """What was done to the metadata since they were copied was done to the old inode.

        The new one has the name already: what was done to it since must stay, so only what
        changed is copied; and its bytes are the right ones, so no error may say that they are not.
        """
        try:
            now = Metadata.of(self.source.fd)
            if now != self._copied:
                now.give(self.fd, self._copied)
        except OSError as error:
            _log.warning(
                "%s: the last change of its mode, owner, xattrs or times may be lost: %s",
                self.source.store.shown_path(self.source.path),
                error,
            )

    def close(self) -> None:
        try:
            if not self.published:
                self._remove_own()
        finally:
            _close(self.fd)
            _close(self._directory)

    def _remove_own(self) -> None:
        # After a swap that could not be undone, somebody's file has the temporary's name.
        with contextlib.suppress(FileNotFoundError):
            named = os.stat(self._temporary, dir_fd=self._directory, follow_symlinks=False)
            if named.st_ino == os.fstat(self.fd).st_ino:
                os.unlink(self._temporary, dir_fd=self._directory)

    def __enter__(self) -> Replacement:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _changed(self) -> BusyError:
        return BusyError(
            "file is in use",
            where=self.source.store.shown_path(self.source.path),
            got="a change, or somebody who opened it, while it was being replaced",
            do="try again later",
        )


def _close(fd: int) -> None:
    """What was written is synced, or not wanted: that close fails says nothing about it."""
    with contextlib.suppress(OSError):
        os.close(fd)


class Metadata(NamedTuple):
    """What a replacement takes over; `xattrs` hold the ACLs, and none of `user.lmfs.*`."""

    uid: int
    gid: int
    mode: int
    atime_ns: int
    mtime_ns: int
    xattrs: dict[str, bytes]

    @classmethod
    def of(cls, fd: int) -> Metadata:
        """Those of an open file. raises: OSError"""
        found = os.fstat(fd)
        times = (found.st_atime_ns, found.st_mtime_ns)
        return cls(found.st_uid, found.st_gid, found.st_mode, *times, _xattrs(fd))

    def give(self, target: int, known: Metadata) -> None:
        """Set on the target what differs from `known`. raises: OSError if it cannot be set"""
        if (self.uid, self.gid) != (known.uid, known.gid):
            os.fchown(target, self.uid, self.gid)
        for name in known.xattrs.keys() - self.xattrs.keys():
            os.removexattr(target, name)
        for name, value in self.xattrs.items():
            if known.xattrs.get(name) != value:
                os.setxattr(target, name, value)
        # After the owner, which clears set-user-id, and after the ACL, whose mask is in the mode.
        if self.mode != os.fstat(target).st_mode:
            os.fchmod(target, self.mode & 0o7777)
        if self.mtime_ns != known.mtime_ns:
            os.utime(target, ns=(self.atime_ns, self.mtime_ns))


def copy_metadata(source: int, target: int, *, owner: bool = True) -> Metadata:
    """Make the target's owner, mode, xattrs, ACLs and times those of the source, and return them.

    owner: False leaves the target's as it is
    Our own xattrs (`user.lmfs.*`) are left alone. raises: OSError if one cannot be set.
    """
    wanted, known = Metadata.of(source), Metadata.of(target)
    if not owner:
        wanted = wanted._replace(uid=known.uid, gid=known.gid)
    wanted.give(target, known)
    return wanted


def _xattrs(fd: int) -> dict[str, bytes]:
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno not in _UNTOUCHABLE:
            raise
        return {}
    return {name: os.getxattr(fd, name) for name in names if not name.startswith(PREFIX)}


def open_quietly(path: str, root_fd: int) -> int:
    """Open for reading without leaving an access time, where we may."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags | os.O_NOATIME, dir_fd=root_fd)
    except PermissionError:
        return os.open(path, flags, dir_fd=root_fd)


def _create_temporary(marks: Marks, shown_inode: int, directory: int) -> tuple[str, int]:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    while True:
        name = marks.store.new_temporary_name(shown_inode)
        fd = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not os.fstat(fd).st_nlink:  # a sweep came between
                os.close(fd)
                continue
            if marks.store.xattr_marks:
                mark = marks.inodes.mark(shown_inode, os.fstat(fd).st_ino)
                os.setxattr(fd, KEPT_MARK, mark)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
            os.close(fd)
            raise
        return name, fd


def drop_overlay(marks: Marks, fd: int) -> None:
    """Remove the overlay of an open file, in whatever way it is open, that is gone or to go."""
    overlay = marks.facts_of_fd(fd).overlay
    if overlay is not None:
        with marks.overlays.commit():
            marks.overlays.drop(overlay, os.fstat(fd).st_ino)


def sweep(marks: Marks, directory: str) -> list[str]:
    """Remove what crashes left in a directory (not below it); the names removed.

    A temporary's name holds the inode number that its source shows, and so does the temporary
    show from its first byte on. Removed is only what has such a name, shows that number, and is
    locked by nobody: a temporary, or the source that changed places with one. Another file that
    got there, by a rename in the very moment of a swap and a crash after it, shows another number.
    """
    store = marks.store
    removed = []
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY, dir_fd=store.root_fd)
    try:
        for name in os.listdir(fd):
            number = store.temporary_inode(name)
            if number is not None and _remove_leftover(marks, fd, name, number):
                removed.append(name)
    finally:
        os.close(fd)
    return removed


def _remove_leftover(marks: Marks, directory: int, name: str, number: int) -> bool:
    try:
        leftover = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return False
    try:
        fcntl.flock(leftover, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if marks.store.xattr_marks and os.fstat(leftover).st_size:
            shown = marks.facts_of_fd(leftover).inode
            # Between the journal's entry and the swap the source has no mark of its own.
            if number not in (shown, os.fstat(leftover).st_ino):
                return False
            drop_overlay(marks, leftover)
        os.unlink(name, dir_fd=directory)
    except OSError:  # locked by who writes it
        return False
    finally:
        os.close(leftover)
    return True
