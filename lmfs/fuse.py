"""The mount: a protocol adapter between libfuse and `lmfs.vfs`, and nothing else.

Owns: the translation of FUSE's calls, times, flags and errors, and the options of a mount. The
only importer of mfusepy. libfuse calls the operations from threads of its own, many at once; no
thread of ours is started before the process that serves the mount has forked.

On a crash do not unmount for the user: an empty mountpoint looks to rsync like a deleted mirror.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import json
import logging
import os
import pathlib
import re
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from .archive import Archive
from .errors import DamagedError, LmfsError, MountError, UsageError
from .pages import PageCache, Seen, Use, Version
from .store.control import ControlServer
from .store.freezing import NO_WISHES, Wishes
from .store.store import Store
from .store.system import return_memory
from .store.walk import sweep_tree
from .vfs import DEFAULT_CACHE_BYTES, Attributes, Maker, Vfs

# The binding would load libfuse 2 where both are installed.
os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")
try:
    import mfusepy
except OSError as error:
    raise MountError(
        "libfuse3 is not installed",
        got=error,
        do="install it: `apt install fuse3`, `dnf install fuse3` or what your system has",
    ) from error

FILESYSTEM_TYPE = "fuse.lmfs"
MAX_REQUEST_BYTES = 1 << 20
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

_CAP_DONT_MASK = 1 << 6
_CAP_AUTO_INVAL_DATA = 1 << 12
_CAP_POSIX_ACL = 1 << 19
_CAP_HANDLE_KILLPRIV = 1 << 20
_RENAME_EXCHANGE = 0b10
_RENAME_KNOWN = 0b11  # and RENAME_NOREPLACE
# How libfuse calls a file that is removed or replaced while it is open: the last 8 digits count.
_HIDDEN = re.compile(r"\.fuse_hidden[0-9a-f]{8,16}([0-9a-f]{8})")
_HIDE_TRIES = 10
_GONE_NAMES = 1000
_NOT_THERE = (errno.ENOENT, errno.EBADF)
_UTIME_NOW = (1 << 30) - 1
_UTIME_OMIT = (1 << 30) - 2
_UNKNOWN_INODE = 0xFFFFFFFF
_ATTRIBUTE_SECONDS = 1.0
_THREADS = 10
_RETURN_MEMORY_S = 10.0
_ENDED_BY_SIGNAL = 8  # fuse_main(3); it has unmounted by then

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True)
class MountOptions:
    """How to mount. `extra` are options that libfuse or the kernel know, like allow_other.

    wishes: for `lmfs freeze`, when it works through this mount
    """

    read_only: bool = False
    cache_bytes: int = DEFAULT_CACHE_BYTES
    wishes: Wishes = NO_WISHES
    extra: dict[str, str | bool] = field(default_factory=dict)


def serve(
    content: Store | Archive, mountpoint: str, options: MountOptions, on_ready: Callable[[], None]
) -> None:
    """Mount a store, or an archive, and answer until it is unmounted; closes what is mounted.

    mountpoint: absolute, for libfuse changes the working directory
    on_ready: called from another thread once the mount answers
    raises: MountError
    """
    operations = _Operations(content, mountpoint, options, on_ready)
    _tell_on_signal(operations)
    try:
        _Fuse(
            operations,
            mountpoint,
            encoding=sys.getfilesystemencoding(),
            foreground=True,
            fsname=content.path.replace("\\", "\\\\").replace(",", "\\,"),
            subtype="lmfs",
            default_permissions=True,
            use_ino=True,
            attr_timeout=_ATTRIBUTE_SECONDS,
            entry_timeout=_ATTRIBUTE_SECONDS,
            max_read=MAX_REQUEST_BYTES,
            **_library_options(),
            **({"ro": True} if options.read_only else {}),
            **options.extra,
        )
    except RuntimeError as error:
        if operations.ready and error.args == (_ENDED_BY_SIGNAL,):
            return
        raise MountError(
            "libfuse could not mount",
            where=mountpoint,
            got=f"status {error}",
            do="see its message above; as a user, allow_other needs /etc/fuse.conf",
        ) from error
    finally:
        operations.close()


def _tell_on_signal(operations: _Operations) -> None:
    """Log statistics at SIGUSR1.

    The main thread is inside libfuse and runs no Python handlers; but the signal's number is
    written to the wakeup descriptor wherever it arrives, and a thread reads it there.
    """
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)

    def wait() -> None:
        while numbers := os.read(ours, 16):
            if signal.SIGUSR1 in numbers:
                now = operations.statistics()
                _log.critical("statistics: %s", json.dumps(now), extra={"statistics": now})

    threading.Thread(target=wait, name="lmfs-signal", daemon=True).start()


def _library_options() -> dict[str, int]:
    """What only some versions of libfuse know; without it 3.12 and later print a warning."""
    version = (mfusepy.fuse_version_major, mfusepy.fuse_version_minor)
    if version < (3, 12):
        return {}
    return {"max_threads": _THREADS, "max_idle_threads": _THREADS}


def _boundary(
    method: Callable[Concatenate[_Operations, _P], _R],
) -> Callable[Concatenate[_Operations, _P], _R]:
    """What libfuse calls: every error leaves as an OSError, the unexpected as EIO."""

    @functools.wraps(method)
    def call(self: _Operations, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        name = method.__name__
        about = {"operation": name, "path": args[0] if args else None}
        self.counts[name] = self.counts.get(name, 0) + 1
        try:
            return method(self, *args, **kwargs)
        except OSError as error:
            if error.errno in _NOT_THERE and args and self._is_gone(args[0]):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), args[0]) from error
            raise
        except LmfsError as error:
            self.refused += 1
            level = logging.ERROR if isinstance(error, DamagedError) else logging.WARNING
            _log.log(level, "%s %r: %s", name, args[:1], error, extra=about)
            raise OSError(error.errno, str(error)) from error
        except BaseException as error:
            # The binding would end the mount for what is no Exception (SystemExit, say).
            self.bugs += 1
            _log.exception("%s %r: %r", name, args[:1], error, extra=about)
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error

    return call


def _inside(path: str) -> str:
    return path[1:] or "."


def _inside_if_any(path: str | None) -> str | None:
    """Of an open file's path: None once neither it nor its directory has a name."""
    return None if path is None else _inside(path)


class _Operations:
    """One method a FUSE call; paths arrive as "/a/b"."""

    use_ns = True

    def __init__(
        self,
        content: Store | Archive,
        mountpoint: str,
        options: MountOptions,
        on_ready: Callable[[], None],
    ) -> None:
        self._store = content if isinstance(content, Store) else None
        self._vfs: Vfs | Archive
        if isinstance(content, Store):
            self._vfs = Vfs(content, cache_bytes=options.cache_bytes)
            self._vfs.make_engine_ahead()
        else:
            self._vfs = content
        self._mountpoint = mountpoint
        self._read_only = options.read_only
        self._wishes = options.wishes
        self._on_ready = on_ready
        self._is_root = os.geteuid() == 0
        self._control: ControlServer | None = None
        self.ready = False
        self._since = time.monotonic()
        self._hidden_count = 0
        self._gone: dict[str, Attributes | None] = {}  # by the names that libfuse gave, by age
        self._paused: int | None = None
        self._pause_lock = threading.Lock()
        self._ended = threading.Event()
        self._library_config: Any = None  # libfuse's own, read by it at every answer
        self._library: int | None = None
        self._pages = PageCache(self._seen, self._drop_pages)
        # Of calls; a count may miss one where two threads count at once.
        self.counts: dict[str, int] = {}
        self.refused = 0
        self.bugs = 0

    def close(self) -> None:
        self._ended.set()
        self._pages.close()
        if self._control is not None:
            self._control.close()
        if self._paused is not None:
            self._pause(on=False)
        self._vfs.close()
        if self._store is not None:
            self._store.close()

    @property
    def _writable(self) -> Vfs:
        """The tree, for a change. raises: OSError where there is none to be made"""
        if isinstance(self._vfs, Archive):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return self._vfs

    def init_with_config(self, connection: Any, config: Any) -> None:
        connection.max_write = MAX_REQUEST_BYTES
        connection.max_read = MAX_REQUEST_BYTES  # must equal the option
        # Where a directory has a default ACL there is no umask: we know, the kernel does not.
        connection.want |= connection.capable & (_CAP_POSIX_ACL | _CAP_DONT_MASK)
        # Else we would have to clear set-user-id at every write; the kernel does it well.
        connection.want &= ~_CAP_HANDLE_KILLPRIV
        # It would drop pages for what was written through them: see pages.py.
        connection.want &= ~_CAP_AUTO_INVAL_DATA
        self._library_config = config
        self._library = mfusepy._libfuse.fuse_get_context().contents.fuse
        if isinstance(self._vfs, Vfs):
            self._pages.start()
        threading.Thread(target=self._announce, name="lmfs-ready", daemon=True).start()
        threading.Thread(target=self._return_memory, name="lmfs-memory", daemon=True).start()

    def _return_memory(self) -> None:
        """What many threads allocate and free stays with the process, more and more, else."""
        seen = 0
        while not self._ended.wait(_RETURN_MEMORY_S):
            calls = sum(list(self.counts.values()))
            if calls != seen:
                return_memory()
            seen = calls

    def _announce(self) -> None:
        """Say that the mount answers, when it has answered; then tidy up after old crashes."""
        try:
            device = os.stat(self._mountpoint).st_dev
        except OSError:
            _log.exception("%s does not answer", self._mountpoint)
            return
        try:
            self._control = ControlServer(
                device, self._store, self._mountpoint, self._request, self._wishes
            )
        except OSError:
            _log.exception("no control socket for %s", self._mountpoint)
        self.ready = True
        self._on_ready()
        if not self._read_only:
            with contextlib.suppress(OSError):  # unmounted meanwhile
                sweep_tree(self._writable.marks)

    def _request(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer a request of `lmfs ctl`. raises: UsageError, OSError, LmfsError"""
        do = asked.get("do")
        if do == "stats":
            return self.statistics()
        if do == "drop-caches":
            self._vfs.drop_caches()
            return_memory()
            return {}
        if do == "thaw":
            path = os.path.normpath(str(asked.get("path")))
            if self._read_only:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
            if os.path.isabs(path) or path.split("/")[0] == "..":
                raise UsageError("path", expected="one inside the mount", got=path)
            self._writable.thaw(path)
            return {}
        if do in ("pause", "resume"):
            self._pause(on=do == "pause")
            return {}
        if do == "log-level":
            level = str(asked.get("level")).upper()
            if level not in LOG_LEVELS:
                raise UsageError("log level", expected=", ".join(LOG_LEVELS).lower(), got=level)
            logging.getLogger().setLevel(level)
            return {}
        raise UsageError("request", got=do, do="update lmfs, or mount again")

    def _pause(self, *, on: bool) -> None:
        """Have freezing in this store wait, until told otherwise or unmounted."""
        if self._store is None:
            raise UsageError("nothing to pause", where=self._mountpoint, expected="a store's mount")
        with self._pause_lock:
            if on and self._paused is None:
                self._paused = self._store.pause()
            elif not on and self._paused is not None:
                os.close(self._paused)
                self._paused = None

    def statistics(self) -> dict[str, Any]:
        """What this mount has done so far; sizes in bytes, memory as it is now."""
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
        return {
            "mountpoint": self._mountpoint,
            "pid": os.getpid(),
            "seconds": round(time.monotonic() - self._since),
            "memory_bytes": int(pages) * os.sysconf("SC_PAGE_SIZE"),
            "calls": dict(sorted(self.counts.copy().items())),
            "paused": self._paused is not None,
            "freezing": self._wishes.as_dict(),
            "refused": self.refused,
            "bugs": self.bugs,
        } | self._vfs.statistics()

    def _maker(self) -> Maker:
        """Who calls: a new file's owner and group if they are ours to give, and its umask."""
        context = mfusepy._libfuse.fuse_get_context().contents  # the wrapper leaves umask out
        if not self._is_root:
            return Maker(None, None, context.umask)
        return Maker(context.uid, context.gid, context.umask)

    def _seen(self, path: str, handle: int | None) -> Seen:
        """Which version of a file is there now. raises: OSError, LmfsError"""
        return self._writable.version(_inside(path), handle)

    def _drop_pages(self, path: str) -> None:
        status = mfusepy._libfuse.fuse_invalidate_path(
            ctypes.c_void_p(self._library), os.fsencode(path)
        )
        if status not in (0, -errno.ENOENT):  # which it has no pages of
            _log.warning("the kernel may keep old pages of %r: status %d", path, status)

    def _stop_caching_attributes(self) -> bool:
        """Let the kernel ask for attributes at every stat.

        To libfuse and the kernel each name of a file is a file of its own, with attributes and
        pages of its own. So once a file with several names is seen, none is believed any longer:
        what is done by one name then shows by the others.

        returns: True if it has been so before
        """
        before = bool(self._library_config.attr_timeout == 0)
        self._library_config.attr_timeout = 0.0
        return before

    # ------------------------------------------------------------------------------- attributes

    @_boundary
    def getattr(self, path: str | None, handle: int | None = None) -> dict[str, int]:
        found = self._look_at(path, handle)
        if found.links > 1 and not stat.S_ISDIR(found.mode):
            self._stop_caching_attributes()
        return {
            "st_mode": found.mode,
            "st_ino": found.inode,
            "st_nlink": found.links,
            "st_uid": found.uid,
            "st_gid": found.gid,
            "st_rdev": found.device,
            "st_size": found.size,
            "st_blocks": found.blocks,
            "st_atime": found.atime_ns,
            "st_mtime": found.mtime_ns,
            "st_ctime": found.ctime_ns,
        }

    def _look_at(self, path: str | None, handle: int | None) -> Attributes:
        if path is None:
            return self._vfs.attributes(None, handle)
        found: Attributes | None = None

        def look() -> Version:
            nonlocal found
            found = self._vfs.attributes(_inside(path), handle)
            return Version(found.inode, found.mtime_ns, found.size)

        try:
            self._pages.looked_at(path, look)
        except OSError:
            found = self._gone.get(path)
            if found is None:
                raise
        assert found is not None
        return found

    @_boundary
    def chmod(self, path: str, mode: int) -> None:
        self._writable.change_mode(_inside(path), stat.S_IMODE(mode))

    @_boundary
    def chown(self, path: str, uid: int, gid: int) -> None:
        self._writable.change_owner(_inside(path), uid, gid)

    @_boundary
    def utimens(self, path: str, times: tuple[int | None, int | None]) -> None:
        with self._pages.changing(path):
            self._writable.change_times(_inside(path), *times)

    @_boundary
    def statfs(self, path: str) -> dict[str, int]:
        found = self._vfs.filesystem()
        names = ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail")
        numbers = {f"f_{name}": getattr(found, f"f_{name}") for name in names}
        return numbers | {"f_namemax": found.f_namemax}

    @_boundary
    def listxattr(self, path: str) -> list[str]:
        return self._vfs.list_xattrs(_inside(path))

    @_boundary
    def getxattr(self, path: str, name: str) -> bytes:
        return self._vfs.get_xattr(_inside(path), name)

    @_boundary
    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        self._writable.set_xattr(_inside(path), name, value, flags)

    @_boundary
    def removexattr(self, path: str, name: str) -> None:
        self._writable.remove_xattr(_inside(path), name)

    # ------------------------------------------------------------------------------------ names

    def readdir(self, path: str, handle: int) -> Iterator[tuple[str, dict[str, int], int]]:
        for name in (".", ".."):
            yield name, {"st_mode": stat.S_IFDIR, "st_ino": _UNKNOWN_INODE}, 0
        for entry in self._entries(path):
            # What a file's number is would cost an open of it; who wants it asks for it.
            yield entry.name, {"st_mode": entry.mode, "st_ino": _UNKNOWN_INODE}, 0

    @_boundary
    def _entries(self, path: str) -> list[Any]:
        return list(self._vfs.list_directory(_inside(path)))

    @_boundary
    def readlink(self, path: str) -> str:
        return self._vfs.read_link(_inside(path))

    @_boundary
    def mkdir(self, path: str, mode: int) -> None:
        self._writable.make_directory(_inside(path), mode, self._maker())

    @_boundary
    def mknod(self, path: str, mode: int, device: int) -> None:
        self._writable.make_node(_inside(path), mode, device, self._maker())

    @_boundary
    def symlink(self, path: str, target: str) -> None:
        self._writable.make_symlink(target, _inside(path), self._maker())

    @_boundary
    def link(self, path: str, source: str) -> None:
        if not self._stop_caching_attributes():
            # What the kernel knows of the first name it may believe for so long. Once a mount.
            time.sleep(_ATTRIBUTE_SECONDS)
        self._writable.link(_inside(source), _inside(path))

    @_boundary
    def rename(self, old: str, new: str, flags: int) -> None:
        if flags & ~_RENAME_KNOWN:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), old)
        hides = not flags and self._hides(new)
        if not (hides and self._writable.hide(_inside(old), _inside(new))):
            self._writable.rename(_inside(old), _inside(new), flags)
        self._pages.renamed(old, new, exchanged=bool(flags & _RENAME_EXCHANGE))

    def _hides(self, path: str) -> bool:
        """Whether libfuse means to hide an open file; no user would give that name by accident."""
        match = _HIDDEN.fullmatch(os.path.basename(path))
        number = int(match[1], 16) if match else 0
        if not self._hidden_count < number <= self._hidden_count + _HIDE_TRIES:
            return False
        self._hidden_count = number
        return True

    @_boundary
    def unlink(self, path: str) -> None:
        if _HIDDEN.fullmatch(os.path.basename(path)):
            self._gone[path] = None
            with contextlib.suppress(OSError, LmfsError):
                self._gone[path] = self._vfs.attributes(_inside(path))._replace(links=0)
            for oldest in list(self._gone)[:-_GONE_NAMES]:
                self._gone.pop(oldest, None)
        self._writable.remove_file(_inside(path))
        self._pages.removed(path)

    def _is_gone(self, path: object) -> bool:
        """Whether it stood for an open file that had lost its name, and is closed by now.

        Who found that file by its name before, and asks after, is told what it was, or is to look
        the name up again, where another file is now: for ESTALE the kernel does so once, ENOENT
        would be the user's answer.
        """
        return path in self._gone

    @_boundary
    def rmdir(self, path: str) -> None:
        self._writable.remove_directory(_inside(path))

    # ------------------------------------------------------------------------------- open files

    @_boundary
    def open(self, path: str, flags: int) -> tuple[int, Use]:
        if isinstance(self._vfs, Archive):
            return self._vfs.open(_inside(path), flags), Use.KEEP
        if flags & os.O_TRUNC:
            with self._pages.changing(path):
                handle = self._vfs.open(_inside(path), flags)
        else:
            handle = self._vfs.open(_inside(path), flags)
        return self._with_pages(path, handle)

    @_boundary
    def create(self, path: str, mode: int, flags: int) -> tuple[int, Use]:
        handle = self._writable.create(_inside(path), flags, mode, self._maker())
        return self._with_pages(path, handle)

    def _with_pages(self, path: str, handle: int) -> tuple[int, Use]:
        try:
            return handle, self._pages.opened(path, handle)
        except BaseException:
            self._vfs.release(handle)
            raise

    @_boundary
    def read(self, path: str | None, size: int, offset: int, handle: int) -> bytes:
        return self._vfs.read(handle, size, offset, _inside_if_any(path))

    @_boundary
    def write(self, path: str | None, data: bytes, offset: int, handle: int) -> int:
        with self._pages.changing(path, handle):
            return self._writable.write(handle, data, offset, _inside_if_any(path))

    @_boundary
    def truncate(self, path: str | None, size: int, handle: int | None = None) -> None:
        with self._pages.changing(path, handle):
            self._writable.truncate(_inside_if_any(path) or "", size, handle)

    @_boundary
    def fallocate(self, path: str | None, mode: int, offset: int, size: int, handle: int) -> None:
        with self._pages.changing(path, handle):
            self._writable.allocate(handle, mode, offset, size, _inside_if_any(path))

    @_boundary
    def lseek(self, path: str | None, offset: int, whence: int, handle: int) -> int:
        return self._vfs.seek(handle, offset, whence, _inside_if_any(path))

    @_boundary
    def flush(self, path: str, handle: int) -> None:
        self._vfs.flush(handle)

    @_boundary
    def fsync(self, path: str, data_only: int, handle: int) -> None:
        self._vfs.sync(handle, data_only=bool(data_only))

    @_boundary
    def fsyncdir(self, path: str, data_only: int, handle: int) -> None:
        self._vfs.sync_directory(_inside(path))

    @_boundary
    def release(self, path: str | None, handle: int) -> None:
        self._pages.released(handle)
        self._vfs.release(handle, _inside_if_any(path))


class _Fuse(mfusepy.FUSE):  # type: ignore[misc]
    """The binding, with the calls that lose arguments on their way put right."""

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        # The binding drops the flags: an exchange would destroy its target.
        self.operations.rename(os.fsdecode(old), os.fsdecode(new), flags)
        return 0

    def utimens_fuse_3(self, path: bytes, times: Any, info: Any) -> int:
        # The binding adds the marks for "now" and "leave it" up as if they were nanoseconds.
        both = (times.contents.actime, times.contents.modtime) if times else (None, None)
        now = time.time_ns()
        self.operations.utimens(os.fsdecode(path), tuple(_nanoseconds(t, now) for t in both))
        return 0

    def open(self, path: bytes, info: Any) -> int:
        return _answer_open(self.operations.open(os.fsdecode(path), info.contents.flags), info)

    def truncate_fuse_3(self, path: bytes | None, size: int, info: Any) -> int:
        # The binding drops the handle: by its path alone another file might be cut.
        name = None if path is None else os.fsdecode(path)
        self.operations.truncate(name, size, info.contents.fh if info else None)
        return 0

    def lseek(self, path: bytes | None, offset: int, whence: int, info: Any) -> int:
        # The binding has no such method, though it knows the call.
        name = None if path is None else os.fsdecode(path)
        found: int = self.operations.lseek(name, offset, whence, info.contents.fh)
        return found

    def create(self, path: bytes, mode: int, info: Any) -> int:
        flags = info.contents.flags
        return _answer_open(self.operations.create(os.fsdecode(path), mode, flags), info)


def _answer_open(opened: tuple[int, Use], info: Any) -> int:
    info.contents.fh, use = opened
    info.contents.direct_io = use is Use.PAST  # it refuses shared maps then
    info.contents.keep_cache = use is not Use.DROP
    return 0


def _nanoseconds(when: Any, now: int) -> int | None:
    if when is None or when.tv_nsec == _UTIME_NOW:
        return now
    if when.tv_nsec == _UTIME_OMIT:
        return None
    return int(when.tv_sec) * 1_000_000_000 + int(when.tv_nsec)
