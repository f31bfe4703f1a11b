"""The tree as a mount shows it.

Owns: names, attributes and xattrs. A frozen file stays frozen whatever is done to it: what is
written goes to its overlay, and mode, owner, times and names are its own; but a second name, and
cutting it to nothing, make a plain file of it. Knows no FUSE: paths
are relative to the store's root ("." is the root), errors are OSError and LmfsError. Imports the
store and lower. Any number of threads may call it at once.

The store's own files are not in this tree: looked up, they do not exist; made, they are refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from .codecs.primer import recent_primers
from .engines import make_ahead
from .errors import DamagedError
from .lmz import ChunkCache
from .lmz.shared import forget_states
from .models import registry
from .pages import Seen, Version
from .store.handles import Handles
from .store.marks import PREFIX, Facts, Marks, State
from .store.publish import drop_overlay, sweep
from .store.store import Store
from .store.system import rename, set_times

DEFAULT_CACHE_BYTES = 64 << 20
STATE_XATTR = "user.lmfs.state"
# Beside the state, for frozen files: stored by decoded bytes; chunks by codec; ids; bytes or none.
OWN_XATTRS = (STATE_XATTR, *(PREFIX + name for name in ("ratio", "codecs", "model", "primer")))

_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)

_R = TypeVar("_R")
_DEFAULT_ACL = "system.posix_acl_default"
# A name that is not replaced by then is removed: looked at so often, with pauses that are 0.25 s
# together where the processor is not short, and longer where who would replace it waits as well.
_LEAVING_LOOKS, _LEAVING_PAUSE_S = 100, 0.0025


class Attributes(NamedTuple):
    """What stat shows; times in nanoseconds, `blocks` of 512 bytes as they are on disk."""

    mode: int
    inode: int
    links: int
    uid: int
    gid: int
    device: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class Maker(NamedTuple):
    """Who makes a file: its owner and group, None for those of this process; and the umask."""

    uid: int | None = None
    gid: int | None = None
    umask: int = 0


class _Hidden(NamedTuple):
    """An open file without a name: the inode number it shows, and a handle of our own.

    path: where it was, and still is for a moment, in which another process may replace it
    """

    inode: int
    handle: int
    path: str


class _Leaving(NamedTuple):
    """A name that is to go: the inode number it shows, and which thread asked."""

    inode: int
    thread: int


class Entry(NamedTuple):
    """A directory's entry; `mode` holds the file type only."""

    name: str
    mode: int


_OURSELVES = Maker()


class Vfs:
    """A store's tree, to be read and written; close it to give everything back."""

    def __init__(self, store: Store, *, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.store = store
        self.marks = Marks(store)
        self.cache = ChunkCache(cache_bytes)
        self._files = Handles(self.marks, self.cache)
        # Open files without a name, by the last part of the one that stands for it; and by path,
        # those that are still to lose theirs.
        self._hidden: dict[str, _Hidden] = {}
        self._leaving: dict[str, _Leaving] = {}
        self._leaving_lock = threading.Lock()

    def close(self) -> None:
        self._settle(".", wait=False)
        self._files.close()
        self.marks.close()

    def statistics(self) -> dict[str, int]:
        """Counts, and sizes in bytes."""
        return self._files.statistics() | {
            "cache_hits": self.cache.hits,
            "cache_misses": self.cache.misses,
            "cache_bytes": self.cache.used_bytes,
            "cache_max_bytes": self.cache.max_bytes,
        }

    def drop_caches(self) -> None:
        """Forget decoded chunks, what is computed from primers, and what marks said."""
        self.cache.clear()
        recent_primers.clear()
        forget_states()
        self.marks.forget()

    def make_engine_ahead(self) -> None:
        """Begin with the engine of the model that the store's files need, if they need just one."""
        pinned = self.store.pinned_models()
        if len(pinned) == 1:
            model_id = next(iter(pinned))
            make_ahead(lambda: registry.find(model_id, self.store.search))

    def thaw(self, path: str) -> None:
        """Make a frozen file plain; who reads it meanwhile reads on. raises: OSError, LmfsError"""
        self._refuse_private(path)
        self._files.thaw(path)

    # ------------------------------------------------------------------------------- attributes

    def attributes(self, path: str | None, handle: int | None = None) -> Attributes:
        """The attributes of a path, or of the file that a handle has open, if it has no path."""
        if path is None:
            if handle is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            return self._describe_open(os.fstat(self._files.descriptor(handle)), handle)
        hidden = self._hidden_handle(path)
        if hidden is None:
            self._refuse_private(path)
        else:
            handle = hidden
        if handle is not None:
            found = self._attributes_of(handle, path)
            if hidden is not None:
                self._files.descriptor(hidden)  # not closed meanwhile: so it was that file's
            if found is not None:
                return found
        return _describe(*self.marks.look(path))

    def _attributes_of(self, handle: int, path: str) -> Attributes | None:
        """Those of an open file; None if what its path says is newer."""
        self._files.follow(handle, self._known_as(handle, path))
        fd = self._files.descriptor(handle)
        status = os.fstat(fd)
        # Without a name it was replaced or removed.
        if status.st_nlink or not self._exists(path):
            try:
                return self._describe_open(status, handle)
            except DamagedError:
                if os.fstat(fd).st_nlink:
                    raise
                # Replaced this moment, and its overlay went with its name.
        return None

    def _describe_open(self, status: os.stat_result, handle: int) -> Attributes:
        is_file = stat.S_ISREG(status.st_mode)
        return _describe(status, self._files.facts(handle) if is_file else None)

    def version(self, path: str, handle: int | None = None) -> Seen:
        """Which version of a file this is, by its path or by a handle that has it open.

        raises: OSError, LmfsError
        """
        if handle is not None:
            status, size = self._files.status(handle)
            if status.st_nlink:
                version = Version(self._files.inode(handle), status.st_mtime_ns, size)
                return Seen(version, status.st_nlink)
        found = self.attributes(path, handle)
        return Seen(Version(found.inode, found.mtime_ns, found.size), found.links)

    def list_directory(self, path: str) -> Iterator[Entry]:
        self._refuse_private(path)
        fd = self._open_directory(path)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if not self.store.is_private(_join(path, entry.name)):
                        yield Entry(entry.name, _entry_type(entry))
        finally:
            os.close(fd)

    def read_link(self, path: str) -> str:
        self._refuse_private(path)
        return os.readlink(path, dir_fd=self.store.root_fd)

    def change_mode(self, path: str, mode: int) -> None:
        if (handle := self._hidden_handle(path)) is not None:
            with self._files.duplicate(handle) as hidden:
                os.fchmod(hidden, mode)
            return
        self._refuse_private(path)
        # chmod(2) follows symlinks; the kernel sends none, and a race must not lead outside.
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.store.root_fd)
        try:
            os.chmod(f"/proc/self/fd/{fd}", mode)
        finally:
            os.close(fd)

    def change_owner(self, path: str, uid: int, gid: int) -> None:
        """-1 leaves the owner, or the group, as it is."""
        if (handle := self._hidden_handle(path)) is not None:
            with self._files.duplicate(handle) as hidden:
                os.fchown(hidden, uid, gid)
            return
        self._refuse_private(path)
        os.chown(path, uid, gid, dir_fd=self.store.root_fd, follow_symlinks=False)
        if self.marks.is_patched(path):
            overlay = self.marks.facts_of_path(path, self._stat(path)).overlay
            if overlay is not None:
                self.marks.overlays.change_owner(overlay, uid, gid)

    def change_times(self, path: str, atime_ns: int | None, mtime_ns: int | None) -> None:
        """None leaves a time as it is."""
        if (handle := self._hidden_handle(path)) is not None:
            with self._files.duplicate(handle) as hidden:
                set_times(hidden, atime_ns, mtime_ns, self.store.root_fd)
            return
        self._refuse_private(path)
        set_times(path, atime_ns, mtime_ns, self.store.root_fd)

    def filesystem(self) -> os.statvfs_result:
        return os.fstatvfs(self.store.root_fd)

    # ----------------------------------------------------------------------------------- xattrs

    def list_xattrs(self, path: str) -> list[str]:
        self._refuse_private(path)
        names = self._on_xattrs(os.listxattr, path)
        return [name for name in names if not name.startswith(PREFIX)]

    def get_xattr(self, path: str, name: str) -> bytes:
        """An xattr, one of the store's own (OWN_XATTRS) among them.

        No list shows those: whoever copies all xattrs (cp -a, rsync -X) would put what is true of
        this file here on a file elsewhere, and fail to put it on a file of this mount.
        """
        self._refuse_private(path)
        if name in OWN_XATTRS:
            value = self._own_xattr(path, name)
            if value is not None:
                return value
        if name.startswith(PREFIX):
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA), path)
        return self._on_xattrs(os.getxattr, path, name)

    def _own_xattr(self, path: str, name: str) -> bytes | None:
        _, facts = self.marks.look(path)
        if facts is None:
            return None
        if name == STATE_XATTR:
            return facts.state.value.encode()
        if facts.state is not State.FROZEN:
            return None
        handle = self._files.open(path, os.O_RDONLY)
        try:
            described = self._files.describe(handle)
        finally:
            self._files.release(handle)
        return None if described is None else described[name.removeprefix(PREFIX)].encode()

    def set_xattr(self, path: str, name: str, value: bytes, flags: int = 0) -> None:
        self._refuse_private(path)
        _refuse_own_xattr(path, name)
        self._on_xattrs(os.setxattr, path, name, value, flags)

    def remove_xattr(self, path: str, name: str) -> None:
        self._refuse_private(path)
        _refuse_own_xattr(path, name)
        self._on_xattrs(os.removexattr, path, name)

    def _on_xattrs(self, call: Callable[..., _R], path: str, *arguments: object) -> _R:
        if (handle := self._hidden_handle(path)) is not None:
            with self._files.duplicate(handle) as hidden:
                return call(hidden, *arguments)
        return call(self.store.real_path(path), *arguments, follow_symlinks=False)

    # ------------------------------------------------------------------------------------ names

    def make_directory(self, path: str, mode: int, maker: Maker = _OURSELVES) -> None:
        self._refuse_to_make(path)
        os.mkdir(path, self._masked(path, mode, maker), dir_fd=self.store.root_fd)
        self._give(path, maker)

    def make_node(self, path: str, mode: int, device: int, maker: Maker = _OURSELVES) -> None:
        self._refuse_to_make(path)
        os.mknod(path, self._masked(path, mode, maker), device, dir_fd=self.store.root_fd)
        self._give(path, maker)

    def make_symlink(self, target: str, path: str, maker: Maker = _OURSELVES) -> None:
        self._refuse_to_make(path)
        os.symlink(target, path, dir_fd=self.store.root_fd)
        self._give(path, maker)

    def link(self, source: str, path: str) -> None:
        """A second name; a frozen file is thawed first: two names cannot be replaced at once.

        raises: BusyError also where somebody writes to the frozen file
        """
        self._refuse_private(source)
        self._refuse_to_make(path)
        self._files.link(source, path)

    def rename(self, source: str, target: str, flags: int = 0) -> None:
        """`flags` are those of renameat2(2); what the backing filesystem cannot do is refused."""
        self._refuse_private(source)
        with self._leaving_lock:
            self._leaving.pop(target, None)  # replaced, so its name is never missing
        self._refuse_to_make(target)
        root = self.store.root_fd
        with self._losing_its_name(target):
            try:
                rename(source, target, flags=flags, source_fd=root, target_fd=root)
            except OSError as error:
                if flags or error.errno not in _NOT_EMPTY or not self._swept(target):
                    raise
                rename(source, target, source_fd=root, target_fd=root)

    def hide(self, path: str, name: str) -> bool:
        """Let a file that is open lose its name; from now on `name` stands for it.

        False if it is not open; then nothing was done. Who calls does so before it removes the
        file as well as before it renames another one over it; which, only the next call tells. A
        name that is to be replaced must never be missing, neither for others nor after a crash:
        so it goes when it is replaced, or before the next call that could see it, or soon. Until
        then another mount of the store finds it; what is written to it there goes with it.
        """
        self._refuse_private(path)
        inode = self._files.shown_inode(path)
        number = None if inode is None else self._files.keep_open(inode)
        if inode is None or number is None:
            return False
        with self._leaving_lock:
            self._hidden[os.path.basename(name)] = _Hidden(inode, number, path)
            self._leaving[path] = _Leaving(inode, threading.get_ident())
        threading.Thread(target=self._settle, args=(path,), daemon=True).start()
        return True

    def _settle(self, path: str, *, wait: bool = True) -> None:
        """Take away the names at `path` and below that are to go."""
        if not self._leaving:
            return
        below = "" if path == "." else path + "/"
        for name in [n for n in self._leaving.copy() if n == path or n.startswith(below)]:
            looks = 0
            while (entry := self._leaving.get(name)) is not None:
                # What replaces it comes from the same thread. Who looks in another one in the very
                # moment may not make a name vanish that is to be replaced.
                if wait and looks < _LEAVING_LOOKS and entry.thread != threading.get_ident():
                    time.sleep(_LEAVING_PAUSE_S)
                    looks += 1
                    continue
                with self._leaving_lock:
                    if self._leaving.get(name) is not entry:
                        continue
                    with contextlib.suppress(OSError):
                        # Frozen or thawed meanwhile it is another inode, but shows the same.
                        if self._files.shown_inode(name) == entry.inode:
                            with self._losing_its_name(name):
                                os.unlink(name, dir_fd=self.store.root_fd)
                    del self._leaving[name]

    def _hidden_handle(self, path: str, *, to_write: bool = False) -> int | None:
        """A handle of the file that `path` stands for since it lost its name; None if of none."""
        found = self._hidden.get(os.path.basename(path)) if self._hidden else None
        if found is None:
            return None
        number = self._files.number_of(found.inode) if to_write else None
        return found.handle if number is None else number

    def _former(self, path: str) -> str:
        """Where a file is, or was before it lost its name, for those who have it open."""
        found = self._hidden.get(os.path.basename(path)) if self._hidden else None
        return path if found is None else found.path

    def _known_as(self, handle: int, path: str) -> str:
        """As `_former`. raises: OSError (ESTALE) if another mount gave its name to another file"""
        former = self._former(path)
        if former == path:
            self._files.require_named(handle, path)
        return former

    def remove_file(self, path: str) -> None:
        found = self._hidden.pop(os.path.basename(path), None)
        if found is not None:  # closed: so it was not replaced, or long ago
            leaving = self._leaving.copy().items()
            for name in [n for n, entry in leaving if entry.inode == found.inode]:
                self._settle(name, wait=False)
            self._files.release(found.handle)
            return
        self._refuse_private(path)
        with self._losing_its_name(path):
            os.unlink(path, dir_fd=self.store.root_fd)

    @contextlib.contextmanager
    def _losing_its_name(self, path: str) -> Iterator[None]:
        """Whoever has a file open that loses its name reads on, and reads its newest bytes.

        The overlay of a patched file goes with the name.
        """
        with contextlib.ExitStack() as afterwards, contextlib.ExitStack() as held:
            afterwards.enter_context(self.marks.parities.dropped_with(path))
            inode = self._open_inode(path)
            if inode is not None:
                held.enter_context(self.marks.overlays.commit())
                self._files.catch_up(path, inode)
            if self.marks.is_patched(path):
                fd = os.open(path, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.store.root_fd)
                afterwards.callback(os.close, fd)
                self._files.keep_overlay(fd)
                afterwards.callback(self._drop_overlay, fd)
            yield

    def _open_inode(self, path: str) -> int | None:
        """The number that a file shows which somebody has open; None for any other."""
        try:
            inode = self._files.shown_inode(path)
        except FileNotFoundError:
            return None
        return None if inode is None or self._files.number_of(inode) is None else inode

    def _drop_overlay(self, fd: int) -> None:
        if not os.fstat(fd).st_nlink:
            drop_overlay(self.marks, fd)

    def remove_directory(self, path: str) -> None:
        self._refuse_private(path)
        try:
            os.rmdir(path, dir_fd=self.store.root_fd)
        except OSError as error:
            if error.errno not in _NOT_EMPTY or not self._swept(path):
                raise
            os.rmdir(path, dir_fd=self.store.root_fd)

    def _swept(self, path: str) -> bool:
        """True if there was something in a directory that a crash left and nobody can see."""
        with contextlib.suppress(OSError):
            return bool(sweep(self.marks, path))
        return False

    # ------------------------------------------------------------------------------- open files

    def open(self, path: str, flags: int) -> int:
        """A handle; writing to it leaves a frozen file frozen. raises: OSError, LmfsError"""
        self._refuse_private(path)
        return self._files.open(path, flags)

    def create(self, path: str, flags: int, mode: int, maker: Maker = _OURSELVES) -> int:
        """Make a file and open it; a file that is there already is opened, unless O_EXCL."""
        self._refuse_to_make(path)
        try:
            handle = self._files.create(path, flags, self._masked(path, mode, maker))
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            return self._files.open(path, flags)
        try:
            self._give(path, maker)
        except BaseException:
            self._files.release(handle)
            raise
        return handle

    def read(self, handle: int, size: int, offset: int, path: str | None = None) -> bytes:
        """At most `size` bytes from `offset`; fewer only at the end of the file.

        path: where the file is now, if it has a name; lets the handle follow a replaced file
        """
        known_as = None if path is None else self._known_as(handle, path)
        return self._files.read(handle, size, offset, known_as)

    def write(self, handle: int, data: bytes, offset: int, path: str | None = None) -> int:
        """How many bytes were written. path: as for `read`"""
        if path is not None:
            self._known_as(handle, path)
        return self._files.write(handle, data, offset)

    def truncate(self, path: str, size: int, handle: int | None = None) -> None:
        if handle is None:
            handle = self._hidden_handle(path, to_write=True)
        elif path:
            self._known_as(handle, path)
        if handle is None:
            self._refuse_private(path)
        self._files.truncate(path, size, handle)

    def allocate(
        self, handle: int, mode: int, offset: int, size: int, path: str | None = None
    ) -> None:
        """fallocate(2) without flags; the others are refused. path: as for `read`"""
        if mode:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if path is not None:
            self._known_as(handle, path)
        self._files.allocate(handle, offset, size)

    def seek(self, handle: int, offset: int, whence: int, path: str | None = None) -> int:
        """lseek(2) for data (SEEK_DATA) or a hole (SEEK_HOLE); frozen files have no holes.

        path: as for `read`
        """
        known_as = None if path is None else self._known_as(handle, path)
        return self._files.seek(handle, offset, whence, known_as)

    def flush(self, handle: int) -> None:
        self._files.flush(handle)

    def sync(self, handle: int, *, data_only: bool = False) -> None:
        self._files.sync(handle, data_only=data_only)

    def sync_directory(self, path: str) -> None:
        self._settle(path)
        fd = self._open_directory(path)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def release(self, handle: int, path: str | None = None) -> None:
        """Close a handle. A user's file at `path` that now looks like a frozen one is wrapped."""
        if path is not None and os.path.basename(path) in self._hidden:
            path = None
        self._files.release(handle, path)

    # ------------------------------------------------------------------------------ small parts

    def _stat(self, path: str) -> os.stat_result:
        return os.stat(path, dir_fd=self.store.root_fd, follow_symlinks=False)

    def _exists(self, path: str) -> bool:
        try:
            self._stat(path)
        except FileNotFoundError:
            return False
        return True

    def _open_directory(self, path: str) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        return os.open(path, flags, dir_fd=self.store.root_fd)

    def _masked(self, path: str, mode: int, maker: Maker) -> int:
        """A new file's mode; a default ACL of the directory stands for the umask (acl(5))."""
        if maker.umask:
            try:
                os.getxattr(self.store.real_path(os.path.dirname(path)), _DEFAULT_ACL)
            except OSError:  # it has none, or the filesystem knows none
                return mode & ~maker.umask
        return mode

    def _give(self, path: str, maker: Maker) -> None:
        """Give a new file to who made it; a set-group-id directory keeps its group."""
        uid, gid, _ = maker
        if uid is None or gid is None:
            return
        parent = self._stat(os.path.dirname(path) or ".")
        status = self._stat(path)
        if parent.st_mode & stat.S_ISGID:
            gid = parent.st_gid
        if (status.st_uid, status.st_gid) == (uid, gid):
            return
        self.change_owner(path, uid, gid)
        # chown clears set-user-id and set-group-id, which the maker may have asked for.
        if status.st_mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISLNK(status.st_mode):
            self.change_mode(path, stat.S_IMODE(status.st_mode))

    def _refuse_private(self, path: str) -> None:
        self._settle(path)
        if self.store.is_private(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def _refuse_to_make(self, path: str) -> None:
        self._settle(path)
        if self.store.is_private(path):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)


def _describe(status: os.stat_result, facts: Facts | None) -> Attributes:
    """facts: a regular file's. The size is theirs: `status` may be of what was there before."""
    return Attributes(
        mode=status.st_mode,
        inode=status.st_ino if facts is None else facts.inode,
        links=status.st_nlink,
        uid=status.st_uid,
        gid=status.st_gid,
        device=status.st_rdev,
        size=status.st_size if facts is None else facts.size,
        blocks=status.st_blocks + (0 if facts is None else facts.overlay_blocks),
        atime_ns=status.st_atime_ns,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
    )


def _join(directory: str, name: str) -> str:
    return name if directory == "." else f"{directory}/{name}"


def _entry_type(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)


def _refuse_own_xattr(path: str, name: str) -> None:
    if name.startswith(PREFIX):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
