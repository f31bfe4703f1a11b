"""What the store needs of the C library and Python does not wrap.

renameat2, utimensat that leaves a time as it is, leases, malloc_trim.

Owns: the ctypes binding and the meaning of its flags, and how a store's own files are opened.
Imports nothing of lmfs. Any thread may call it. Everything raises OSError.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import stat
import struct
from collections.abc import Iterator

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_UTIME_OMIT = (1 << 30) - 2
_F_SETSIG = 10
_LOCK = struct.Struct("hhqqi4x")  # struct flock where off_t has 64 bits
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)

_libc = ctypes.CDLL(None, use_errno=True)


def return_memory() -> None:
    """Give the system what glibc keeps of freed memory; takes some 20 ms."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def clock_tick_ns(time_ns: int) -> int:
    """So long after this time of a file another change may give it the same time.

    Some filesystems count seconds; the others take the kernel's clock, which ticks 100 times in
    a second or more.
    """
    return 2_000_000_000 if time_ns % 1_000_000_000 == 0 else 20_000_000


def set_times(
    path: str | int, atime_ns: int | None, mtime_ns: int | None, dir_fd: int | None = None
) -> None:
    """utimensat(2) without following a symlink, or futimens(2); None leaves a time as it is."""
    if atime_ns is not None and mtime_ns is not None:
        if isinstance(path, int):
            os.utime(path, ns=(atime_ns, mtime_ns))
        else:
            os.utime(path, ns=(atime_ns, mtime_ns), dir_fd=dir_fd, follow_symlinks=False)
        return
    times = (ctypes.c_long * 4)()  # two timespecs
    for k, time_ns in enumerate((atime_ns, mtime_ns)):
        seconds, nanoseconds = (0, _UTIME_OMIT) if time_ns is None else divmod(time_ns, 10**9)
        times[2 * k], times[2 * k + 1] = seconds, nanoseconds
    if isinstance(path, int):
        failed = _libc.futimens(path, times)
    else:
        here = _AT_FDCWD if dir_fd is None else dir_fd
        failed = _libc.utimensat(here, os.fsencode(path), times, _AT_SYMLINK_NOFOLLOW)
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def rename(
    source: str,
    target: str,
    *,
    flags: int = 0,
    source_fd: int | None = None,
    target_fd: int | None = None,
) -> None:
    """renameat2(2): RENAME_NOREPLACE and RENAME_EXCHANGE are honoured or refused, never ignored."""
    if flags == 0:
        os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)
        return
    call = getattr(_libc, "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), source)
    failed = call(
        _AT_FDCWD if source_fd is None else source_fd,
        os.fsencode(source),
        _AT_FDCWD if target_fd is None else target_fd,
        os.fsencode(target),
        ctypes.c_uint(flags),
    )
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), source, None, target)


def exchange_or_rename(source: str, target: str, *, dir_fd: int) -> bool:
    """Swap two names of one directory; where the filesystem cannot, rename `source` over `target`.

    returns: True if the old target now has the name `source`, False if it is gone
    """
    try:
        rename(source, target, flags=RENAME_EXCHANGE, source_fd=dir_fd, target_fd=dir_fd)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        os.rename(source, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        return False
    return True


@contextlib.contextmanager
def own_directory(root_fd: int, *names: str) -> Iterator[int]:
    """A descriptor of a directory below `root_fd`, by one name after another, none a symlink.

    Who made the store may not be who uses it: a symlink in it would lead the latter elsewhere.
    """
    fd = os.dup(root_fd)
    try:
        for name in names:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(name, flags, dir_fd=fd)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def open_own(root_fd: int, *names: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> int:
    """Open a regular file below `root_fd`, none of the names a symlink; never waits for a FIFO."""
    with own_directory(root_fd, *names[:-1]) as directory:
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(names[-1], flags, mode, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ENOTSUP, "not a regular file", "/".join(names))
    return fd


def lock_byte(fd: int, kind: int, byte: int, *, wait: bool = False) -> None:
    """Lock one byte of an open file, for its open file description; other flocks do not matter.

    kind: fcntl.F_RDLCK (fd must be open for reading), F_WRLCK (for writing) or F_UNLCK
    raises: BlockingIOError if another description has it and we are not to wait, OSError
    """
    command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    fcntl.fcntl(fd, command, _LOCK.pack(kind, os.SEEK_SET, byte, 1, 0))


def is_byte_locked(fd: int, byte: int) -> bool:
    """True if another open file description has a lock of any kind on this byte of the file."""
    asked = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
    return int(_LOCK.unpack(answer)[0]) != fcntl.F_UNLCK


class Lease:
    """A write lease on an open file: while it holds, nobody else has the file open.

    Who opens the file meanwhile waits until the lease is given back. `supported` is False where
    the filesystem knows no leases or we may not take them; then nothing is promised.
    """

    def __init__(self, fd: int) -> None:
        """raises: BlockingIOError if somebody else has the file open"""
        self._fd = fd
        self.supported = True
        # SIGIO, the default, would end the process; SIGURG is ignored where nobody asked for it.
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except BlockingIOError:
            raise
        except OSError:
            self.supported = False

    @property
    def wanted(self) -> bool:
        """True if somebody waits in open() for this file."""
        return self.supported and fcntl.fcntl(self._fd, fcntl.F_GETLEASE) != fcntl.F_WRLCK

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        if self.supported:
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
