"""Random operations on a mount, each compared with what the file must be.

    python -m lmfs_tools.torture.fsx FOLDER [--operations N] [--processes P] [--seed S]

Owns: the operations and the model. FOLDER gets a store and its mount. Each process works on files
of its own and knows every byte of them; one more freezes and thaws all of them at random behind
their backs, and all append to one file that they share. Now and then everything is closed, the
mount ended, every second time by a kill, the store checked with fsck to the last chunk, mounted
again and compared as a whole.
At a difference: exit code 1, the seed, the last operations, and the folder stays as it is.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import errno
import functools
import mmap
import multiprocessing
import os
import pathlib
import random
import shutil
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from rich.console import Console
from rich.progress import Progress

from lmfs.codecs.choose import Chooser, default_chooser
from lmfs.container import Kind
from lmfs.errors import BusyError
from lmfs.models import registry
from lmfs.store.freeze import Action, freeze, thaw
from lmfs.store.marks import Marks
from lmfs.store.system import RENAME_EXCHANGE, RENAME_NOREPLACE, rename

from .mounted import Difference, Mounted, leftovers, opened, require_clean

NAMES = "abcdef"
DIRECTORIES = 2
MAX_FILE_BYTES = 200_000
CHUNK_SIZE = 4096
MAX_HANDLES = 4
SHARED = "shared.log"
RECORD = struct.Struct("<II24s")  # process, number, padding
ROUND_OPERATIONS = 2500  # of each process, between two unmounts
HISTORY = 40
# How far a filesystem's clock may be behind.
CLOCK_NS = 50_000_000

# The mount's attributes may be so old.
SETTLE_S = 1.2

_FALLOC_KEEP_SIZE = 1
_FALLOC_PUNCH_HOLE = 2


@functools.cache
def texts() -> bytes:
    """Half a megabyte of lines, nowhere the same; zstd makes them smaller."""
    chance = random.Random(1)
    words = [bytes(chance.choices(b"abcdefghij", k=chance.randrange(2, 9))) for _ in range(300)]
    lines = (b" ".join(chance.choices(words, k=9)) + b"\n" for _ in range(8000))
    return b"".join(lines)


@dataclasses.dataclass(eq=False)
class Known:
    """What a file must be. `mtime_ns` is None where only a bound, `not_before_ns`, is known."""

    mode: int
    data: bytearray = dataclasses.field(default_factory=bytearray)
    names: set[tuple[int, str]] = dataclasses.field(default_factory=set)
    inode: int | None = None
    mtime_ns: int | None = None
    not_before_ns: int = 0
    note: bytes | None = None
    # The kernel knows each name of a file for itself, and another's news after a second only.
    settled: float = 0.0

    def touched(self, before_ns: int) -> None:
        self.mtime_ns, self.not_before_ns = None, before_ns - CLOCK_NS


@dataclasses.dataclass
class Handle:
    """An open file; `flags` tell what it may do."""

    fd: int
    file: Known
    flags: int

    @property
    def reads(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writes(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY


class Worker:
    """One process's files, and what may be done to them. `root` is the mount."""

    def __init__(self, number: int, root: pathlib.Path, backing: pathlib.Path, seed: int) -> None:
        self.number = number
        self.chance = random.Random(f"{seed}/{number}")
        self.history: collections.deque[str] = collections.deque(maxlen=HISTORY)
        self.done: collections.Counter[str] = collections.Counter()
        self._texts = texts()
        self._root = root
        self._backing = backing
        self._directories = [f"w{number}/d{d}" for d in range(DIRECTORIES)]
        self._renamed = DIRECTORIES
        self._files: dict[tuple[int, str], Known] = {}
        self._handles: list[Handle] = []
        self._sent = 0
        self._slow: Chooser | None = None
        for directory in self._directories:
            (root / directory).mkdir(parents=True, exist_ok=True)
        self.operations: dict[Callable[[], str | None], int] = {
            self.read: 20,
            self.read_whole: 5,
            self.write: 14,
            self.append: 6,
            self.truncate: 3,
            self.truncate_handle: 3,
            self.map_read: 4,
            self.map_write: 4,
            self.allocate: 3,
            self.rename: 4,
            self.rename_directory: 1,
            self.link: 1,
            self.unlink: 2,
            self.create: 4,
            self.empty: 2,
            self.open: 8,
            self.close: 10,
            self.sync: 3,
            self.freeze: 12,
            self.thaw: 3,
            self.chmod: 2,
            self.times: 2,
            self.xattr: 2,
            self.stat: 6,
            self.drop: 2,
            self.share: 4,
            self.look_at_shared: 1,
        }

    # ------------------------------------------------------------------------------ running

    def step(self, marks: Marks) -> None:
        """One operation. raises: Difference, OSError"""
        self._marks = marks
        operations = list(self.operations)
        (operation,) = self.chance.choices(operations, self.operations.values())
        self.history.append(f"{operation.__name__}: begun")
        did = operation()
        self.history[-1] = f"{operation.__name__}: {did or 'nothing to do'}"
        self.done[operation.__name__] += did is not None

    def close_all(self) -> None:
        while self._handles:
            self.history.append("close all")
            os.close(self._handles.pop().fd)

    def compare_all(self) -> None:
        """raises: Difference if a name is too many, or any file is not what it must be"""
        inodes: dict[int, Known] = {}
        for d, directory in enumerate(self._directories):
            names = set(os.listdir(self._root / directory))
            expected = {name for where, name in self._files if where == d}
            if names != expected:
                raise Difference(f"names in {directory}: expected {expected}, got {names}")
        for key, file in self._files.items():
            path = self._path(key)
            self._check_status(os.stat(path), file, path)
            self._check_bytes(pathlib.Path(path).read_bytes(), file, 0, path)
            assert file.inode is not None
            if inodes.setdefault(file.inode, file) is not file:
                raise Difference(f"{path} and another file show inode {file.inode}")

    # ---------------------------------------------------------------------------- comparing

    def _check_bytes(self, got: bytes, file: Known, offset: int, where: str) -> None:
        expected = bytes(file.data[offset : offset + len(got)])
        if offset + len(got) > len(file.data):
            expected = expected.ljust(len(got), b"?")
        if got == expected:
            return
        at = next(i for i in range(len(got)) if got[i] != expected[i])
        wrong = sum(a != b for a, b in zip(got, expected, strict=True))
        raise Difference(
            f"{where}: {wrong} of {len(got)} bytes read from {offset} differ, the first at "
            f"{offset + at}: expected {expected[at : at + 40]!r}, got {got[at : at + 40]!r}; "
            f"the file has {len(file.data)} bytes"
        )

    def _check_status(self, status: os.stat_result, file: Known, where: str) -> None:
        if status.st_size != len(file.data):
            raise Difference(f"{where}: size: expected {len(file.data)}, got {status.st_size}")
        if status.st_mode & 0o7777 != file.mode:
            raise Difference(f"{where}: mode: expected {file.mode:o}, got {status.st_mode:o}")
        if file.inode is None:
            file.inode = status.st_ino
        if status.st_ino != file.inode:
            raise Difference(f"{where}: inode: expected {file.inode}, got {status.st_ino}")
        if file.names and status.st_nlink != len(file.names):
            raise Difference(f"{where}: links: expected {len(file.names)}, got {status.st_nlink}")
        if file.mtime_ns is None:
            if status.st_mtime_ns < file.not_before_ns:
                raise Difference(
                    f"{where}: mtime is before the last write: expected at least "
                    f"{file.not_before_ns}, got {status.st_mtime_ns}"
                )
            file.mtime_ns = status.st_mtime_ns
        elif status.st_mtime_ns != file.mtime_ns:
            raise Difference(f"{where}: mtime: expected {file.mtime_ns}, got {status.st_mtime_ns}")

    # ------------------------------------------------------------------------------ choosing

    def _path(self, key: tuple[int, str]) -> str:
        return f"{self._root}/{self._directories[key[0]]}/{key[1]}"

    def _inner(self, key: tuple[int, str]) -> str:
        return f"{self._directories[key[0]]}/{key[1]}"

    def _is_open(self, file: Known) -> bool:
        return any(handle.file is file for handle in self._handles)

    def _is_linked_and_open(self, file: Known) -> bool:
        """Then libfuse would keep the name that is removed under another one."""
        return _is_linked(file) and self._is_open(file)

    def _any_key(self) -> tuple[int, str]:
        return self.chance.randrange(DIRECTORIES), self.chance.choice(NAMES)

    def _some_file(self) -> tuple[tuple[int, str], Known] | None:
        now = time.monotonic()
        keys = [k for k, file in self._files.items() if _is_linked(file) or file.settled < now]
        if not keys:
            return None
        key = self.chance.choice(keys)
        return key, self._files[key]

    @contextlib.contextmanager
    def _some_handle(self, *, writes: bool) -> Iterator[Handle | None]:
        """An open handle, or one opened for this operation only."""
        now = time.monotonic()
        fit = [h for h in self._handles if (h.writes if writes else h.reads)]
        fit = [h for h in fit if _is_linked(h.file) or h.file.settled < now]
        if fit and self.chance.random() < 0.6:
            yield self.chance.choice(fit)
            return
        found = self._some_file()
        if found is None:
            yield None
            return
        key, file = found
        flags = os.O_RDWR if writes else os.O_RDONLY
        handle = Handle(os.open(self._path(key), flags), file, flags)
        try:
            yield handle
        finally:
            os.close(handle.fd)

    def _bytes(self, limit: int) -> bytes:
        size = max(0, min(int(self.chance.paretovariate(0.5) * 20), limit))
        if self.chance.random() < 0.1:
            return self.chance.randbytes(size)
        start = self.chance.randrange(len(self._texts) - size)
        return self._texts[start : start + size]

    # ------------------------------------------------------------------------------ operations

    def read(self) -> str | None:
        with self._some_handle(writes=False) as handle:
            if handle is None:
                return None
            size = len(handle.file.data)
            offset = self.chance.randrange(size + 100)
            count = self.chance.choice((1, 100, CHUNK_SIZE, 30_000))
            got = os.pread(handle.fd, count, offset)
            expected = max(0, min(count, size - offset))
            if len(got) != expected:
                raise Difference(
                    f"read {len(got)} bytes, not {expected}, from {offset} of {size} bytes"
                )
            self._check_bytes(got, handle.file, offset, "read")
            return f"{count} from {offset} of {size}: {self._called(handle.file)}"

    def read_whole(self) -> str | None:
        found = self._some_file()
        if found is None:
            return None
        key, file = found
        got = pathlib.Path(self._path(key)).read_bytes()
        if len(got) != len(file.data):
            raise Difference(f"{self._inner(key)}: read {len(got)} bytes, not {len(file.data)}")
        self._check_bytes(got, file, 0, self._inner(key))
        return self._inner(key)

    def write(self) -> str | None:
        with self._some_handle(writes=True) as handle:
            if handle is None:
                return None
            size = len(handle.file.data)
            if handle.flags & os.O_APPEND:
                offset = size  # whatever pwrite says
            else:
                beyond = self.chance.randrange(5000) if self.chance.random() < 0.05 else 0
                offset = min(self.chance.randrange(size + 1) + beyond, MAX_FILE_BYTES)
                if self.chance.random() < 0.1:
                    offset = 0
            return self._write_at(handle, offset)

    def append(self) -> str | None:
        found = self._some_file()
        if found is None:
            return None
        key, file = found
        flags = os.O_WRONLY | os.O_APPEND
        handle = Handle(os.open(self._path(key), flags), file, flags)
        try:
            return self._write_at(handle, len(file.data))
        finally:
            os.close(handle.fd)

    def _write_at(self, handle: Handle, offset: int) -> str | None:
        data = self._bytes(MAX_FILE_BYTES - offset)
        if offset == 0 and self.chance.random() < 0.2:
            data = Kind.FROZEN.value[: self.chance.randrange(1, 9)] + data
        if not data:
            return None
        before = time.time_ns()
        wrote = os.pwrite(handle.fd, data, offset)
        file = handle.file
        if offset > len(file.data):
            file.data.extend(bytes(offset - len(file.data)))
        file.data[offset : offset + wrote] = data[:wrote]
        file.touched(before)
        return f"{wrote} at {offset}: {self._called(file)}"

    def _cut(self, file: Known, size: int, before: int) -> None:
        del file.data[size:]
        file.data.extend(bytes(size - len(file.data)))
        file.touched(before)

    def _new_size(self, size: int) -> int:
        if self.chance.random() < 0.85:
            return self.chance.randrange(size + 1)
        return min(size + self.chance.randrange(3000), MAX_FILE_BYTES)

    def truncate(self) -> str | None:
        found = self._some_file()
        if found is None:
            return None
        key, file = found
        size, before = self._new_size(len(file.data)), time.time_ns()
        os.truncate(self._path(key), size)
        self._cut(file, size, before)
        return f"to {size}: {self._inner(key)}"

    def truncate_handle(self) -> str | None:
        with self._some_handle(writes=True) as handle:
            if handle is None:
                return None
            size, before = self._new_size(len(handle.file.data)), time.time_ns()
            os.ftruncate(handle.fd, size)
            self._cut(handle.file, size, before)
            return f"to {size}: {self._called(handle.file)}"

    def map_read(self) -> str | None:
        with self._some_handle(writes=False) as handle:
            if handle is None or not handle.file.data or not _is_settled(handle.file):
                return None
            with mmap.mmap(handle.fd, 0, prot=mmap.PROT_READ) as mapped:
                offset = self.chance.randrange(len(mapped))
                self._check_bytes(mapped[offset : offset + 9000], handle.file, offset, "mmap")
            return f"from {offset}: {self._called(handle.file)}"

    def map_write(self) -> str | None:
        found = self._some_file()
        if found is None or not found[1].data or not _is_settled(found[1]):
            return None
        key, file = found
        fd = os.open(self._path(key), os.O_RDWR)
        try:
            before = time.time_ns()
            with mmap.mmap(fd, 0) as mapped:
                offset = self.chance.randrange(len(mapped))
                data = self._bytes(len(mapped) - offset)
                mapped[offset : offset + len(data)] = data
                if self.chance.random() < 0.5:
                    mapped.flush()
            file.data[offset : offset + len(data)] = data
        finally:
            os.close(fd)
        file.touched(before)
        return f"{len(data)} at {offset}: {self._inner(key)}"

    def allocate(self) -> str | None:
        with self._some_handle(writes=True) as handle:
            if handle is None:
                return None
            size = len(handle.file.data)
            offset = self.chance.randrange(size + 1)
            count = self.chance.randrange(1, 6000)
            mode = self.chance.choice((0, 0, _FALLOC_KEEP_SIZE, 3))
            before = time.time_ns()
            try:
                _fallocate(handle.fd, mode, offset, count)
            except OSError as error:
                if not mode or error.errno != errno.EOPNOTSUPP:
                    raise
                return f"mode {mode} refused: {self._called(handle.file)}"
            file = handle.file
            if mode & _FALLOC_PUNCH_HOLE:
                end = min(size, offset + count)
                file.data[offset:end] = bytes(end - offset)
            elif not mode and offset + count > size:
                file.data.extend(bytes(offset + count - size))
            # Whether the times move where nothing changes is the backing filesystem's affair.
            file.touched(before if len(file.data) != size else file.not_before_ns + CLOCK_NS)
            return f"mode {mode}, {count} from {offset}: {self._called(file)}"

    def _forget(self, key: tuple[int, str]) -> None:
        file = self._files.pop(key, None)
        if file is not None:
            if _is_linked(file):
                file.settled = time.monotonic() + SETTLE_S
            file.names.discard(key)

    def rename(self) -> str | None:
        found = self._some_file()
        if found is None:
            return None
        key, file = found
        target = self._any_key()
        kind = self.chance.choice((0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE))
        other = self._files.get(target)
        if other is file and key != target:
            return None  # rename(2) leaves both; libfuse hides one that is open
        if other is not None and self._is_linked_and_open(other):
            return None
        what = f"{self._inner(key)} to {self._inner(target)}, flags {kind}"
        try:
            if kind:
                rename(self._path(key), self._path(target), flags=kind)
            else:
                os.rename(self._path(key), self._path(target))
        except OSError as error:
            refused = {RENAME_NOREPLACE: errno.EEXIST, RENAME_EXCHANGE: errno.ENOENT}
            if error.errno != refused.get(kind) or (kind == RENAME_NOREPLACE) != bool(other):
                raise
            return f"{what}: refused"
        if kind == RENAME_NOREPLACE and other is not None:
            raise Difference(f"{what}: replaced it")
        if other is file:
            return what
        if kind == RENAME_EXCHANGE:
            assert other is not None
            self._files[key] = other
            other.names.symmetric_difference_update({key, target})
        else:
            self._forget(target)
            del self._files[key]
            file.names.discard(key)
        self._files[target] = file
        file.names.discard(key)
        file.names.add(target)
        return what

    def rename_directory(self) -> str:
        d = self.chance.randrange(DIRECTORIES)
        new = f"w{self.number}/d{self._renamed}"
        self._renamed += 1
        os.rename(self._root / self._directories[d], self._root / new)
        what = f"{self._directories[d]} to {new}"
        self._directories[d] = new
        return what

    def link(self) -> str | None:
        found = self._some_file()
        target = self._any_key()
        if found is None or target in self._files:
            return None
        key, file = found
        if self._is_open(file):
            return None  # what was opened while it had one name, the kernel caches by that name
        try:
            os.link(self._path(key), self._path(target))
        except OSError as error:
            # It is thawed first, and the kernel tells the mount of a close when it likes.
            if error.errno != errno.EBUSY:
                raise
            return f"{self._inner(key)} to {self._inner(target)}: busy"
        self._files[target] = file
        file.names.add(target)
        return f"{self._inner(key)} to {self._inner(target)}"

    def unlink(self) -> str | None:
        found = self._some_file()
        if found is None or self._is_linked_and_open(found[1]):
            return None
        os.unlink(self._path(found[0]))
        self._forget(found[0])
        return self._inner(found[0])

    def create(self) -> str | None:
        key = self._any_key()
        if key in self._files:
            return None
        mode, flags = self.chance.choice((0o600, 0o644, 0o666)), os.O_RDWR | os.O_CREAT | os.O_EXCL
        before = time.time_ns()
        fd = os.open(self._path(key), flags, mode)
        file = Known(mode & ~_UMASK, names={key})
        file.touched(before)
        self._files[key] = file
        handle = Handle(fd, file, flags)
        if self.chance.random() < 0.8:
            size = self.chance.randrange(20_000, 120_000)
            start = self.chance.randrange(len(self._texts) - size)
            wrote = os.write(fd, self._texts[start : start + size])
            file.data[:] = self._texts[start : start + wrote]
        self._keep(handle)
        return f"{self._inner(key)}, {len(file.data)} bytes"

    def empty(self) -> str | None:
        found = self._some_file()
        if found is None:
            return None
        key, file = found
        before, flags = time.time_ns(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        handle = Handle(os.open(self._path(key), flags, 0o600), file, flags)
        self._cut(file, 0, before)
        size = self.chance.randrange(50_000)
        start = self.chance.randrange(len(self._texts) - size)
        if size:
            file.data[:] = self._texts[
                start : start + os.write(handle.fd, self._texts[start:][:size])
            ]
        self._keep(handle)
        return f"and write {size}: {self._inner(key)}"

    def _keep(self, handle: Handle) -> None:
        if len(self._handles) < MAX_HANDLES and self.chance.random() < 0.4:
            self._handles.append(handle)
        else:
            os.close(handle.fd)

    def open(self) -> str | None:
        found = self._some_file()
        if found is None or len(self._handles) >= MAX_HANDLES:
            return None
        key, file = found
        flags = self.chance.choice(
            (os.O_RDONLY, os.O_RDONLY, os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND)
        )
        self._handles.append(Handle(os.open(self._path(key), flags), file, flags))
        return f"flags {flags:o}: {self._inner(key)}"

    def close(self) -> str | None:
        if not self._handles:
            return None
        handle = self._handles.pop(self.chance.randrange(len(self._handles)))
        os.close(handle.fd)
        return self._called(handle.file)

    def sync(self) -> str | None:
        with self._some_handle(writes=True) as handle:
            if handle is None:
                return None
            self.chance.choice((os.fsync, os.fdatasync))(handle.fd)
            return self._called(handle.file)

    def freeze(self) -> str | None:
        found = self._some_file()
        if found is None:
            return None
        key, chooser, model = found[0], Chooser(None, 1), None
        if self.chance.random() < 0.03:
            self._slow = self._slow or default_chooser(4)
            chooser, model = self._slow, registry.shipped()
        path = self._inner(key)
        outcome = freeze(self._marks, path, chooser, model=model, chunk_size=CHUNK_SIZE)
        self.done[f"frozen {outcome.action is Action.FROZEN}"] += 1
        return f"{self._inner(key)}: {outcome.action.value}, {outcome.reason}"

    def thaw(self) -> str | None:
        found = self._some_file()
        if found is None:
            return None
        try:
            outcome = thaw(self._marks, self._inner(found[0]))
        except BusyError:  # open for writing: what is patched stays so until it is closed
            self.done["busy"] += 1
            return f"{self._inner(found[0])}: busy"
        return f"{self._inner(found[0])}: {outcome.action.value}"

    def chmod(self) -> str | None:
        found = self._some_file()
        if found is None:
            return None
        key, file = found
        mode = self.chance.choice((0o600, 0o644, 0o660, 0o755, 0o4755))
        os.chmod(self._path(key), mode)
        file.mode = mode
        return f"{mode:o}: {self._inner(key)}"

    def times(self) -> str | None:
        found = self._some_file()
        if found is None:
            return None
        key, file = found
        when = self.chance.randrange(1 << 60)
        os.utime(self._path(key), ns=(when, when))
        file.mtime_ns = when
        return f"{when}: {self._inner(key)}"

    def xattr(self) -> str | None:
        found = self._some_file()
        if found is None:
            return None
        key, file = found
        with contextlib.suppress(OSError):
            if (got := os.getxattr(self._path(key), "user.note")) != file.note:
                raise Difference(f"{self._inner(key)}: xattr: expected {file.note!r}, got {got!r}")
        if file.note is not None and "user.note" not in os.listxattr(self._path(key)):
            raise Difference(f"{self._inner(key)}: the xattr {file.note!r} is gone")
        note = self.chance.randbytes(self.chance.randrange(1, 20))
        os.setxattr(self._path(key), "user.note", note)
        file.note = note
        return self._inner(key)

    def stat(self) -> str | None:
        if self._handles and self.chance.random() < 0.3:
            handle = self.chance.choice(self._handles)
            if handle.file.names and _is_settled(handle.file):
                self._check_status(os.fstat(handle.fd), handle.file, "fstat")
            return self._called(handle.file)
        found = self._some_file()
        if found is None or _is_linked(found[1]):
            return None
        self._check_status(os.stat(self._path(found[0])), found[1], self._inner(found[0]))
        return self._inner(found[0])

    def drop(self) -> str | None:
        with self._some_handle(writes=False) as handle:
            if handle is None:
                return None
            os.posix_fadvise(handle.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            return self._called(handle.file)

    def share(self) -> str:
        fd = os.open(self._root / SHARED, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            for _ in range(self.chance.randrange(1, 4)):
                os.write(fd, RECORD.pack(self.number, self._sent, b"x" * 24))
                self._sent += 1
        finally:
            os.close(fd)
        return f"up to {self._sent}"

    def look_at_shared(self) -> str | None:
        path = self._root / SHARED
        if not self._sent:
            return None
        data = path.read_bytes()
        whole = data[: len(data) // RECORD.size * RECORD.size]
        mine = [number for who, number, _ in RECORD.iter_unpack(whole) if who == self.number]
        if mine != list(range(self._sent)):
            at = next((i for i, number in enumerate(mine) if number != i), len(mine))
            raise Difference(
                f"{SHARED}: expected {self._sent} records of mine in order, got {len(mine)}; "
                f"the first that is not the next is at {at}"
            )
        return f"{self._sent} records of {len(data) // RECORD.size}"

    def _called(self, file: Known) -> str:
        return ", ".join(sorted(self._inner(key) for key in file.names)) or "(removed)"


def _is_linked(file: Known) -> bool:
    return len(file.names) > 1


def _is_settled(file: Known) -> bool:
    return not _is_linked(file) and file.settled < time.monotonic()


def _fallocate(fd: int, mode: int, offset: int, size: int) -> None:
    if not mode:
        os.posix_fallocate(fd, offset, size)
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(fd, mode, offset, size):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_UMASK = 0o022


# -------------------------------------------------------------------------------- processes


def _work(
    number: int, root: pathlib.Path, backing: pathlib.Path, seed: int, orders: Connection
) -> None:
    """Answer ("step", N), ("close", 0) and ("compare", 0), each with None or what differs."""
    os.umask(_UMASK)
    worker = Worker(number, root, backing, seed)
    while True:
        try:
            order, count = orders.recv()
        except EOFError:
            return
        answer: str | None = None
        try:
            if order == "step":
                with opened(backing) as marks:
                    for _ in range(count):
                        worker.step(marks)
            elif order == "close":
                worker.close_all()
            elif order == "compare":
                worker.compare_all()
        except Exception as error:
            what = str(error) if isinstance(error, Difference) else traceback.format_exc()
            last = "\n  ".join(worker.history)
            answer = f"process {number}: {what}\nits last operations:\n  {last}"
        orders.send((answer, dict(worker.done)))
        if answer is not None:
            return


def _disturb(backing: pathlib.Path, seed: int, orders: Connection) -> None:
    """Freeze and thaw anything, from outside of the mount, until told to stop."""
    chance = random.Random(f"{seed}/freezer")
    chooser = Chooser(None, 1)
    done: collections.Counter[str] = collections.Counter()
    answer: str | None = None
    path = ""
    while _received(orders):
        try:
            with opened(backing) as marks:
                while not orders.poll():
                    paths = [
                        os.path.relpath(os.path.join(directory, name), backing)
                        for directory, _, names in os.walk(backing)
                        for name in names
                        if ".lmfs" not in directory and not name.startswith(".lmfs-")
                    ]
                    chance.shuffle(paths)
                    for path in paths[:8]:
                        with contextlib.suppress(FileNotFoundError, BusyError):
                            if chance.random() < 0.6:
                                outcome = freeze(marks, path, chooser, chunk_size=CHUNK_SIZE)
                            else:
                                outcome = thaw(marks, path)
                            done[outcome.action.value] += 1
                    time.sleep(chance.random() * 0.05)
        except Exception:
            answer = f"the freezer, at {path}: {traceback.format_exc()}"
        if not _received(orders):
            return
        orders.send((answer, dict(done)))


def _received(orders: Connection) -> bool:
    """Wait for an order; False when nobody will give one any more."""
    try:
        orders.recv()
    except EOFError:
        return False
    return True


class _Process:
    """A process that takes orders."""

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.orders, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(*arguments, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def answer(self) -> tuple[str | None, dict[str, int]]:
        try:
            answer, done = self.orders.recv()
        except EOFError:
            self._process.join(5)
            # -7, SIGBUS: reading a mapped page failed
            return f"a process died: exit code {self._process.exitcode}", {}
        return answer, done

    def end(self) -> None:
        self.orders.close()
        self._process.join(5)
        self._process.kill()
        self._process.join()


class _Crew:
    """The workers and the freezer."""

    def __init__(self, mounted: Mounted, processes: int, seed: int) -> None:
        point, backing = mounted.point, mounted.backing
        self.workers = [_Process(_work, n, point, backing, seed) for n in range(processes)]
        self._freezer = _Process(_disturb, backing, seed)
        self._counts: dict[int, dict[str, int]] = {}

    @property
    def done(self) -> collections.Counter[str]:
        total: collections.Counter[str] = collections.Counter()
        for counts in self._counts.values():
            total.update(counts)
        return total

    def order(self, what: str, count: int = 0) -> None:
        """Have all workers do it. raises: Difference with all that differs"""
        if what == "step":
            self._freezer.orders.send("go")
        for worker in self.workers:
            worker.orders.send((what, count))
        answers = [worker.answer() for worker in self.workers]
        if what == "step":
            self._freezer.orders.send("stop")
            answers.append(self._freezer.answer())
        for number, (_, done) in enumerate(answers):
            self._counts[number] = done
        wrong = [answer for answer, _ in answers if answer is not None]
        if wrong:
            raise Difference("\n".join(wrong))

    def end(self) -> None:
        for process in [*self.workers, self._freezer]:
            process.end()


def run(
    folder: pathlib.Path,
    operations: int,
    *,
    processes: int = 3,
    seed: int = 1,
    round_operations: int = ROUND_OPERATIONS,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Do so many operations in all; what was done, by name.

    raises: Difference
    """
    mounted = Mounted(folder, "cachesize=2")
    mounted.mount()
    crew = _Crew(mounted, processes, seed)
    left, rounds = -(-operations // processes), 0
    try:
        while left:
            count = min(left, round_operations)
            crew.order("step", count)
            left -= count
            advance(count * processes)
            mounted.ask("drop-caches")
            crew.order("close")
            time.sleep(SETTLE_S)
            crew.order("compare")
            rounds += 1
            if rounds % 2:
                mounted.unmount()
            else:
                mounted.crash()
            with opened(mounted.backing) as marks:
                require_clean(marks)
            if found := leftovers(mounted.backing):
                raise Difference(f"left over: {found}")
            mounted.mount()
            crew.order("compare")
        return dict(crew.done)
    finally:
        crew.end()
        mounted.give_up()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="new or empty; removed if all is well")
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    args = parser.parse_args()
    if args.folder.exists() and any(args.folder.iterdir()):
        parser.error(f"{args.folder} is not empty")
    print(f"seed {args.seed}", flush=True)
    begin = time.monotonic()
    console = Console(stderr=True)
    try:
        with Progress(console=console) as progress:
            task = progress.add_task("operations", total=args.operations)

            def advance(operations: int) -> None:
                progress.advance(task, operations)
                if not console.is_terminal:
                    console.print(f"{progress.tasks[task].completed:.0f} operations")

            done = run(
                args.folder,
                args.operations,
                processes=args.processes,
                seed=args.seed,
                advance=advance,
            )
    except Difference as difference:
        print(f"seed {args.seed}, {args.processes} processes: {difference}")
        print(f"the store is left in {args.folder}")
        sys.exit(1)
    shutil.rmtree(args.folder)
    for name, count in sorted(done.items()):
        print(f"{count:8}  {name}")
    seconds = time.monotonic() - begin
    print(f"{args.operations} operations without a difference in {seconds:.0f} s")


if __name__ == "__main__":
    main()
