"""Overlays: what is written to a frozen file, beside it, until it is frozen again.

Owns: `.lmfs/overlays/`, the layout of the files in it, who may write to them, and the store's
commit lock. Imports lmfs.lmz and lower, and not `marks`. An `Overlay` is for any number of
threads; several processes may have the same one open.

A *patched* file is a frozen file, left as it is under its name, whose FROZEN_MARK (see `marks`)
names an overlay: one file with a header, a map and the data, at the offsets that they have in the
patched file (FORMAT.md, "Overlays", has the bytes). The frozen file's content is the *base*.

From `limit` on, which is the base's size or, once the file has been cut, less, all bytes are the
overlay's (the tail). Before it, a block of 4096 bytes is the overlay's if its map byte says so:

    0   the base's
    1   the overlay's; its bytes were on the disk before this was written
    2   the overlay's, as long as somebody has the file open for writing; else as 0

So an append or a cut decodes nothing, and a write to a part of a block decodes the chunk that the
rest of the block is in. A block is written as a whole, then its 2; `sync` has the disk hold the
data, then writes the 1, then has the disk hold that. After a power cut, whatever order the disk
wrote in, a synced block is new and another one old or new, and none is neither; a killed process
leaves 2s that nobody vouches for (the page cache may have gone with them: a stick pulled out), and
who opens the file for writing next and is alone clears them. What nobody syncs or closes is made 1
after SETTLE_SECONDS. `limit` sinks only before a cut file
grows again, and only when the disk holds the cut; otherwise a power cut could bring back bytes
that were cut off.

Who may write. Who opens a frozen or patched file for writing takes an OFD read lock on byte 1 of
the frozen file, for as long as it is open; a process writes under an OFD write lock on byte 0 of
the overlay. Several mounts may write to one file at once: each sees at once what the others write.
Thawing and freezing again replace the frozen file only while nobody has that lock, and only if no
overlay was made and nothing was written since they began to read (every write sets the frozen
file's times); they fail with BusyError otherwise. The *commit lock*, a flock on `.lmfs`, is held
while a file is opened for writing, an overlay is made and named or removed, a file is replaced: for
moments, and for two fsyncs in the last case. Failure modes: where one of two mounts is killed, the
other's kernel may go on to show from its cache what was undone; where the backing filesystem is
shared by machines whose locks do not reach each other, two of them must not write to one file; and
a program that changes backing files by hand is not seen by any lock.

The protocol of the first write, each step named as `reached` is told it:

    made        the overlay is written, empty, and the disk holds it and its name
    named       the frozen file's mark names it

and of the removal, after the frozen file was replaced (`publish`) or lost its name:

    dropped     the overlay is gone

A crash before `named`, or between an unlink and `dropped`, leaves an overlay that nobody names.
`sweep_overlays` in `walk` removes those, if no directory changed while it looked for names.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import re
import secrets
import struct
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import blake3

from ..container import checksum
from ..errors import DamagedError, VersionError
from .store import DIRECTORY, Store
from .system import is_byte_locked, lock_byte, own_directory

OVERLAYS = f"{DIRECTORY}/overlays"
SWITCH = "LMFS_OVERLAYS"  # "0" has a frozen file thawed before it is written to
BLOCK = 4096
SETTLE_SECONDS = 5.0
VERSION = 1

_log = logging.getLogger(__name__)

_MAGIC = b"\x8bLMO\r\n\x1a\n"
_HEADER = struct.Struct("<8s16s8s8sQQI")
_CHECK = struct.Struct("<I")
_LIMIT = struct.Struct("<QQ")
_LIMIT_AT = _HEADER.size + _CHECK.size
_MAP_AT = BLOCK
_ALL = (1 << 64) - 1
_ID_BYTES = 8
_IDENTITY_BYTES = 64
_SYNCED, _WRITTEN = 1, 2
_WRITE_BYTE = 0  # of the overlay, locked while it is written to
_WRITERS_BYTE = 1  # of the frozen file, locked by all who have it open for writing
_MOST_UNSYNCED_BLOCKS = 1 << 16
_SCAN_BYTES = 1 << 20
_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}")
_NOT_TO_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS)

ReadBase = Callable[[int, int], bytes]


def reached(step: str) -> None:
    """Told at every step of the protocol; does nothing. Tests put a crash here."""


class Header(NamedTuple):
    """What an overlay says of itself."""

    store_id: bytes
    id: bytes
    base_id: bytes
    base_size: int
    owner: int

    def pack(self) -> bytes:
        fields = _HEADER.pack(_MAGIC, *self, VERSION)
        return fields + _CHECK.pack(checksum(fields))


def parse_header(data: bytes, where: object) -> Header:
    """raises: DamagedError, VersionError"""
    if len(data) < _LIMIT_AT or data[: len(_MAGIC)] != _MAGIC:
        raise DamagedError("no overlay", where=where, expected="its header", got=data[:8].hex(" "))
    fields, (stored,) = data[: _HEADER.size], _CHECK.unpack_from(data, _HEADER.size)
    if checksum(fields) != stored:
        raise DamagedError("overlay header checksum", where=where, do="restore it from a backup")
    _, *header, version = _HEADER.unpack(fields)
    if version > VERSION:
        raise VersionError(
            "overlay version", where=where, expected=VERSION, got=version, do="update lmfs"
        )
    return Header(*header)


def data_start(base_size: int) -> int:
    """Where an overlay's data begin."""
    return _MAP_AT + -(-_blocks(base_size) // BLOCK) * BLOCK


def identity(fd: int, size: int) -> bytes:
    """The base id of an open frozen file of `size` bytes: of its trailer and index checksum."""
    return blake3.blake3(os.pread(fd, _IDENTITY_BYTES, max(0, size - _IDENTITY_BYTES))).digest(
        length=_ID_BYTES
    )


def begin_writing(fd: int) -> None:
    """Count among those who write to a frozen file, until `end_writing`.

    fd: the frozen file's, open for reading at least; needs the commit lock. raises: OSError
    """
    lock_byte(fd, fcntl.F_RDLCK, _WRITERS_BYTE)


def end_writing(fd: int) -> None:
    lock_byte(fd, fcntl.F_UNLCK, _WRITERS_BYTE)


def has_writers(fd: int) -> bool:
    """True if another descriptor than this one, here or elsewhere, writes to the frozen file."""
    return is_byte_locked(fd, _WRITERS_BYTE)


class Overlays:
    """The overlays of one store, by their names in `.lmfs/overlays`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @contextlib.contextmanager
    def commit(self) -> Iterator[None]:
        """The commit lock; not to be taken twice by one thread, nor with a lease in hand."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        fd = os.open(DIRECTORY, flags, dir_fd=self._store.root_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def usable(self) -> bool:
        """True if overlays are wanted and can be made: by xattrs, in a store we may write to.

        Without, a frozen file is thawed before it is written to. Overlays that are there are read
        and taken in all the same.
        """
        if os.environ.get(SWITCH) == "0" or not self._store.xattr_marks:
            return False
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(OVERLAYS, 0o755, dir_fd=self._store.root_fd)
            with self._directory() as fd:
                return os.access(f"/proc/self/fd/{fd}", os.W_OK | os.X_OK, effective_ids=True)
        except OSError as error:
            if error.errno not in _NOT_TO_WRITE:
                raise
            return False

    def path(self, name: str) -> str:
        """Where an overlay lies, relative to the store's root."""
        return f"{OVERLAYS}/{name}"

    def name(self, overlay_id: bytes, base_id: bytes) -> str:
        return f"{overlay_id.hex()}-{base_id.hex()}"

    def names(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError), self._directory() as fd:
            return sorted(os.listdir(fd))
        return []

    def is_name(self, name: str) -> bool:
        """True for what an overlay of ours could be called."""
        return _NAME.fullmatch(name) is not None

    def of_id(self, overlay_id: bytes) -> list[str]:
        """The overlay with this id, if it is there, whatever it was made for."""
        return [name for name in self.names() if name.startswith(f"{overlay_id.hex()}-")]

    def of_base(self, base_id: bytes) -> list[str]:
        """The overlays that were made for frozen files that end like this."""
        return [name for name in self.names() if name.endswith(f"-{base_id.hex()}")]

    def stat(self, name: str) -> os.stat_result:
        """raises: FileNotFoundError, OSError"""
        with self._directory() as fd:
            return os.stat(name, dir_fd=fd, follow_symlinks=False)

    def header(self, name: str) -> Header:
        """raises: DamagedError, VersionError, OSError"""
        fd = self._open(name, os.O_RDONLY)
        try:
            return self._read_header(fd, name)
        finally:
            os.close(fd)

    def create(self, frozen: int, base_size: int, mark: Callable[[bytes], None]) -> str:
        """Make an overlay for an open frozen file, and have its mark name it; the overlay's name.

        mark: given the overlay's id, sets the frozen file's xattr
        Needs the commit lock. raises: OSError; then the file is as it was.
        """
        status = os.fstat(frozen)
        header = Header(
            self._store.id,
            secrets.token_bytes(_ID_BYTES),
            identity(frozen, status.st_size),
            base_size,
            status.st_ino,
        )
        name = self.name(header.id, header.base_id)
        fd = self._open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            mine = os.fstat(fd)
            if (mine.st_uid, mine.st_gid) != (status.st_uid, status.st_gid):
                with contextlib.suppress(PermissionError):
                    os.fchown(fd, status.st_uid, status.st_gid)
            os.pwrite(fd, header.pack() + _LIMIT.pack(base_size, base_size ^ _ALL), 0)
            os.ftruncate(fd, data_start(base_size) + base_size)
            os.fsync(fd)
            self._sync_directory()
            reached("made")
            mark(header.id)
        except BaseException:
            self.remove(name)
            raise
        finally:
            os.close(fd)
        reached("named")
        return name

    def open(self, name: str, frozen: int, read_base: ReadBase) -> Overlay:
        """The overlay of the frozen file that is open as `frozen`.

        read_base: gives up to so many bytes of the frozen file's content from an offset
        raises: DamagedError, VersionError, OSError
        """
        try:
            try:
                fd = self._open(name, os.O_RDWR)
            except OSError as error:
                if error.errno not in _NOT_TO_WRITE:
                    raise
                fd = self._open(name, os.O_RDONLY)
        except FileNotFoundError as error:
            raise DamagedError(
                "the overlay of a patched file is missing",
                where=self._store.shown_path(self.path(name)),
                do="restore it from a backup of the store",
            ) from error
        try:
            header = self._read_header(fd, name)
            own = os.open(f"/proc/self/fd/{frozen}", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(fd)
            raise
        return Overlay(fd, own, header, read_base, self._store.shown_path(self.path(name)))

    def change_owner(self, name: str, uid: int, gid: int) -> None:
        """An overlay is its file's owner's, for quotas, and for who works on the store as a user"""
        with contextlib.suppress(FileNotFoundError), self._directory() as fd:
            os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)

    def drop(self, name: str, owner: int) -> None:
        """Remove an overlay, if it was made for this inode: a copy of the mark may name it too.

        Needs the commit lock.
        """
        with contextlib.suppress(FileNotFoundError, DamagedError):
            if self.header(name).owner == owner:
                self.remove(name)
        reached("dropped")

    def remove(self, name: str) -> None:
        """Remove an overlay that nobody names. Needs the commit lock."""
        with self._directory() as fd:
            os.unlink(name, dir_fd=fd)

    @contextlib.contextmanager
    def _directory(self) -> Iterator[int]:
        """`.lmfs/overlays`, and nothing that a symlink leads to. raises: OSError"""
        with own_directory(self._store.root_fd, DIRECTORY, os.path.basename(OVERLAYS)) as fd:
            yield fd

    def _open(self, name: str, flags: int) -> int:
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with self._directory() as fd:
            return os.open(name, flags, 0o600, dir_fd=fd)

    def _read_header(self, fd: int, name: str) -> Header:
        where = self._store.shown_path(self.path(name))
        header = parse_header(os.pread(fd, _LIMIT_AT, 0), where)
        if header.store_id != self._store.id or self.name(header.id, header.base_id) != name:
            raise DamagedError(
                "an overlay of another file",
                where=where,
                expected=f"{name} of store {self._store.id.hex()}",
                got=f"{self.name(header.id, header.base_id)} of store {header.store_id.hex()}",
                do="restore it from a backup",
            )
        return header

    def _sync_directory(self) -> None:
        with self._directory() as fd:
            os.fsync(fd)
        fd = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._store.root_fd)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class Overlay:
    """An open overlay, laid over its base. Offsets and sizes are those of the file as it is shown.

    Only who has called `begin_writing` may change it.
    """

    def __init__(
        self, fd: int, frozen: int, header: Header, read_base: ReadBase, where: str
    ) -> None:
        """fd, frozen: descriptors of the overlay and of the frozen file, its own from now on"""
        self.owner = header.owner
        self._fd = fd
        self._frozen = frozen
        self._start = data_start(header.base_size)
        self._base_size = header.base_size
        self._read_base = read_base
        self._where = where
        self._lock = threading.Lock()
        self._closed = False
        self._unsynced: set[int] = set()  # blocks that are not known to be on the disk
        self._sync_failed = False
        self._timer: threading.Timer | None = None

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            os.close(self._fd)
            os.close(self._frozen)

    def __enter__(self) -> Overlay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------- reads

    @property
    def size(self) -> int:
        """The file's length."""
        return max(0, os.fstat(self._fd).st_size - self._start)

    @property
    def blocks(self) -> int:
        """What the overlay takes on the disk, in units of 512 bytes."""
        return os.fstat(self._fd).st_blocks

    def check(self) -> None:
        """raises: DamagedError if the limit or the map cannot be"""
        self._limit()
        for _ in self._pieces(0, self._base_size):
            pass

    def has_hole(self) -> bool:
        """True if the tail has a hole, as far as the filesystem tells."""
        end = self._start + self.size
        start = min(self._start + self._limit(), end)
        try:
            return start < end and os.lseek(self._fd, start, os.SEEK_HOLE) < end
        except OSError:
            return False

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`, fewer only at the end. raises: DamagedError, OSError"""
        total = self.size
        end = min(total, offset + size)
        if offset >= end:
            return b""
        limit = min(self._limit(), end)
        parts = []
        for start, stop, is_own in self._pieces(offset, limit):
            parts.append(self._data(start, stop) if is_own else self._base(start, stop))
        if end > max(offset, limit):
            parts.append(self._data(max(offset, limit), end))
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return data[: max(0, self.size - offset)]  # cut while it was read

    def own_pieces(self) -> Iterator[tuple[int, bytes]]:
        """All that comes from the overlay: offsets and bytes."""
        size = self.size
        limit = min(self._limit(), size)
        tail = [(limit, size, True)]
        for start, end, is_own in itertools.chain(self._pieces(0, limit), tail):
            for at in range(start, end if is_own else start, _SCAN_BYTES):
                yield at, self._data(at, min(end, at + _SCAN_BYTES))

    def _pieces(self, offset: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Runs of bytes before the limit: from, to, and whether they are the overlay's."""
        while offset < end:
            stop = min(end, (offset // BLOCK + _SCAN_BYTES) * BLOCK)
            at = offset
            for is_own, run in itertools.groupby(self._owned(offset, stop)):
                to = min(stop, (at // BLOCK + sum(1 for _ in run)) * BLOCK)
                yield at, to, is_own
                at = to
            offset = stop

    def _owned(self, offset: int, end: int) -> list[bool]:
        """For each block of these bytes, which must be before the limit: is it the overlay's?"""
        states = self._map(offset, end)
        written = _WRITTEN in states and has_writers(self._frozen)
        if _WRITTEN in states:
            # Whoever wrote them may have ended this moment, and has called them synced before; or
            # been killed, and whoever began to write this moment has undone them before.
            states = self._map(offset, end)
        return [state == _SYNCED or (state == _WRITTEN and written) for state in states]

    def _map(self, offset: int, end: int) -> bytes:
        first, count = offset // BLOCK, _blocks(end) - offset // BLOCK
        states = os.pread(self._fd, count, _MAP_AT + first)
        if len(states) != count or max(states, default=0) > _WRITTEN:
            raise self._damaged("map", f"{count} bytes of 0 to 2", states[:16].hex(" "))
        return states

    def _limit(self) -> int:
        limit, complement = _LIMIT.unpack(os.pread(self._fd, _LIMIT.size, _LIMIT_AT))
        if limit ^ complement != _ALL or limit > self._base_size:
            raise self._damaged("limit", "a number and its complement", (limit, complement))
        return int(limit)

    def _base(self, start: int, end: int) -> bytes:
        data = self._read_base(end - start, start)
        if len(data) != end - start:
            raise self._damaged("base", f"{end - start} bytes at {start}", len(data))
        return data

    def _data(self, start: int, end: int) -> bytes:
        parts, at = [], start
        while at < end and (part := os.pread(self._fd, end - at, self._start + at)):
            parts.append(part)
            at += len(part)
        if at < end:  # cut while it was read
            parts.append(bytes(end - at))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # ------------------------------------------------------------------------------------ writes

    def write(self, data: bytes, offset: int, *, append: bool = False) -> int:
        """How many bytes were written, fewer than all only where the disk is full."""
        if not data:
            return 0
        with self._writing():
            total = self.size
            if append:
                offset = total
            end = offset + len(data)
            if end > total:
                self._prepare_growth(total)
            limit = self._limit()
            if offset >= limit:
                return os.pwrite(self._fd, data, self._start + offset)
            try:
                self._write_before(limit, max(total, end), data, offset)
            except BaseException:
                if self.size > total:
                    os.ftruncate(self._fd, self._start + total)
                raise
            if len(self._unsynced) > _MOST_UNSYNCED_BLOCKS:
                self._sync()
            elif self._unsynced and self._timer is None:
                self._timer = threading.Timer(SETTLE_SECONDS, self._settle_in_time)
                self._timer.daemon = True
                self._timer.start()
        return len(data)

    def _write_before(self, limit: int, total: int, data: bytes, offset: int) -> None:
        """Write bytes that begin before the limit: whole blocks, then the map."""
        end = offset + len(data)
        last = min(end, limit)
        owned = self._owned(offset, last)
        first_block, block_count = offset // BLOCK, len(owned)
        start, stop = offset, end
        if not owned[0]:
            start = first_block * BLOCK
        if not owned[-1]:
            stop = max(end, min((first_block + block_count) * BLOCK, limit, total))
        if start < offset or end < stop:
            data = self._base(start, offset) + data + self._base(end, stop)
        at = 0
        while at < len(data):
            at += os.pwrite(self._fd, memoryview(data)[at:], self._start + start + at)
        states = self._map(offset, last)
        if any(state != _SYNCED for state in states):
            new = bytes(_SYNCED if state == _SYNCED else _WRITTEN for state in states)
            if new != states:
                self._pwrite(new, _MAP_AT + first_block)
            # Those that another process wrote, and has not synced, count as ours as well; not
            # those that the map could not be told of: they were not written.
            self._unsynced.update(
                first_block + i for i, state in enumerate(states) if state != _SYNCED
            )

    def truncate(self, size: int) -> None:
        with self._writing():
            total = self.size
            if size > total:
                self._prepare_growth(total)
            os.ftruncate(self._fd, self._start + size)
            self._unsynced = {block for block in self._unsynced if block * BLOCK < size}

    def allocate(self, offset: int, size: int) -> None:
        """As fallocate(2) without flags."""
        with self._writing():
            total = self.size
            if offset + size > total:
                self._prepare_growth(total)
            os.posix_fallocate(self._fd, self._start + offset, size)

    def sync(self) -> None:
        """Have the disk hold all that was written."""
        if self._unsynced:
            with self._writing():
                self._sync()
        os.fdatasync(self._fd)

    def settle(self) -> None:
        """See to it that what was written stays, though nobody has the file open any longer."""
        if self._unsynced:
            with self._writing():
                self._sync()

    def _settle_in_time(self) -> None:
        """As the kernel writes back what nobody syncs, so that a crash undoes seconds, not hours"""
        try:
            with self._writing():
                self._timer = None
                self._sync()
        except (OSError, DamagedError) as error:
            if not self._closed:
                _log.error("%s: what was written last may be lost: %s", self._where, error)

    def _sync(self) -> None:
        if self._sync_failed:
            raise OSError(errno.EIO, os.strerror(errno.EIO), self._where)
        try:
            os.fdatasync(self._fd)
        except OSError:
            # The system says so once; asked again it would call bytes written that are lost.
            self._sync_failed = True
            raise
        blocks = sorted(self._unsynced)
        for _, run in itertools.groupby(enumerate(blocks), lambda pair: pair[1] - pair[0]):
            numbers = [block for _, block in run]
            self._pwrite(bytes([_SYNCED]) * len(numbers), _MAP_AT + numbers[0])
        self._unsynced.clear()

    def forget_unsynced(self) -> None:
        """Give up what a process that was killed had written; only while there are no writers."""
        with self._writing():
            self._unsynced.clear()
            end = _blocks(self._base_size)
            for at in range(0, end, _SCAN_BYTES):
                states = os.pread(self._fd, min(_SCAN_BYTES, end - at), _MAP_AT + at)
                if _WRITTEN in states:
                    self._pwrite(states.replace(bytes([_WRITTEN]), b"\0"), _MAP_AT + at)

    def _prepare_growth(self, total: int) -> None:
        """What was cut off must not come back when the file grows again."""
        if self._limit() > total:
            os.fdatasync(self._fd)  # the cut
            self._pwrite(_LIMIT.pack(total, total ^ _ALL), _LIMIT_AT)
            os.fdatasync(self._fd)

    def _pwrite(self, data: bytes, offset: int) -> None:
        at = 0
        while at < len(data):
            at += os.pwrite(self._fd, data[at:], offset + at)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One thread of one process writes."""
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF), self._where)
            lock_byte(self._fd, fcntl.F_WRLCK, _WRITE_BYTE, wait=True)
            try:
                yield
            finally:
                # What was done is done; closing the file gives the lock back as well.
                with contextlib.suppress(OSError):
                    lock_byte(self._fd, fcntl.F_UNLCK, _WRITE_BYTE)

    def _damaged(self, what: str, expected: object, got: object) -> DamagedError:
        return DamagedError(
            f"overlay {what}",
            where=self._where,
            expected=expected,
            got=got,
            do="restore it from a backup of the store",
        )


def _blocks(size: int) -> int:
    return -(-size // BLOCK)
