"""Marks: how a regular file of a store is told to be hot, frozen, patched or damaged.

Owns: the xattrs `user.lmfs.frozen`, `user.lmfs.plain` and `user.lmfs.replaced` (on an inode that
another one has replaced, for those who have it open), and the rules below. Imports
`overlays`, `parities`, lmfs.container and lower. Any thread may call it.

A frozen file carries three marks: the magic of a frozen container at its beginning; a checked
trailer at its end that names its store and fits its length; and the xattr FROZEN_MARK (half of
the store's id and the decoded size: with KEPT_MARK it just fits into an ext4 inode, and costs no
block). No single damage, and no lost xattrs, makes a frozen file look hot:

    magic     trailer   FROZEN_MARK        the file is
    no        no        absent             hot
    yes       yes       agrees, or absent  frozen (backups may lose xattrs)
    anything else                          damaged: EIO, its bytes are never shown as they are
    anything            absent, and PLAIN_MARK   hot: a user's own file that looks like one of ours

The decoded size comes from the trailer, that is from inside the container.

A FROZEN_MARK that begins with something else than the store's id agrees as well: the file is
patched, and this is the id of its overlay (`overlays`), which must be there, or the file is
damaged. A lmfs that knows no overlays takes it for damaged, and so does this one a frozen file
that has no FROZEN_MARK while there is an overlay made for it: it was patched, and was restored
without its xattrs.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import errno
import os
import stat
import struct
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from ..container import MAGIC_BYTES, MAX_TRAILER_BYTES, Kind, Trailer, parse_trailer, sniff
from ..errors import DamagedError
from .inodes import KEPT_MARK, KeptInodes
from .overlays import Overlays, data_start, identity
from .parities import Parities
from .store import Store
from .system import clock_tick_ns

FROZEN_MARK = "user.lmfs.frozen"
PLAIN_MARK = "user.lmfs.plain"
REPLACED_MARK = "user.lmfs.replaced"
PREFIX = "user.lmfs."

_VALUE = struct.Struct("<8sQ")
_LOOKS = 5  # at a file that is being replaced
_CACHED_FILES = 1 << 16
_NO_XATTR = (errno.ENODATA, errno.ENOTSUP, errno.EPERM, errno.EACCES)


class State(enum.Enum):
    """What a regular file of a store is."""

    HOT = "hot"
    FROZEN = "frozen"
    PATCHED = "patched"  # frozen, and written to since
    DAMAGED = "damaged"


class Facts(NamedTuple):
    """What the marks say: `size` in bytes as a reader sees it, `inode` as the mount shows it.

    overlay: the name of a patched file's overlay, and `overlay_blocks` what that takes on the
    disk, in units of 512 bytes; `base_size` is what the frozen file itself decodes to
    """

    state: State
    size: int
    inode: int
    problem: str | None = None
    overlay: str | None = None
    overlay_blocks: int = 0
    base_size: int = 0


class Marks:
    """Reads marks, and remembers what they said for as long as the file does not change."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.inodes = KeptInodes(store.root_fd)
        self.overlays = Overlays(store)
        self.parities = Parities(store)
        self._lock = threading.Lock()
        # (device, real inode) -> what the file was like then, and its facts; one a file, for a
        # file that is written to again and again is like another one each time
        self._facts: collections.OrderedDict[tuple[int, int], tuple[tuple[int, ...], Facts]] = (
            collections.OrderedDict()
        )
        # (device, real inode) -> shown inodes, one for each handle that has it open for writing
        self._written: dict[tuple[int, int], list[int]] = {}

    def close(self) -> None:
        self.inodes.close()

    def look(self, path: str) -> tuple[os.stat_result, Facts | None]:
        """What is under a path and, of a regular file, its facts; raises OSError.

        With its name a patched file that is replaced loses its overlay: whoever looks at it a
        moment later would see damage, and the size that it had before it was written to.
        """
        for _ in range(_LOOKS):
            status = os.stat(path, dir_fd=self.store.root_fd, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                return status, None
            facts = self.facts_of_path(path, status)
            if facts.state is not State.DAMAGED:
                break
            now = os.stat(path, dir_fd=self.store.root_fd, follow_symlinks=False)
            if (now.st_ino, now.st_ctime_ns) == (status.st_ino, status.st_ctime_ns):
                break
        return status, facts

    def facts_of_path(self, path: str, status: os.stat_result) -> Facts:
        """The facts of a regular file that `status` was just taken of; raises OSError."""
        known = self._known(status)
        if known is not None:
            return known
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.store.root_fd)
        try:
            now = os.fstat(fd)
            if not stat.S_ISREG(now.st_mode):  # that moment: a FIFO would be waited for
                return Facts(State.HOT, now.st_size, now.st_ino)
            return self.facts_to_show(fd)
        finally:
            os.close(fd)

    def facts_to_show(self, fd: int) -> Facts:
        """The facts of an open regular file; one whose marks we may not read is shown as hot.

        Where only its mode has changed since they could be read, as it was then.
        """
        try:
            return self.facts_of_fd(fd)
        except PermissionError:
            status = os.fstat(fd)
            *before, _ = key = _key(status)
            with self._lock:
                known, facts = self._facts.get(key[:2], (None, None))
            if known is not None and facts is not None and list(known[:-1]) == before:
                return self._with_overlay(facts)
            return Facts(State.HOT, status.st_size, status.st_ino)

    def facts_of_fd(self, fd: int) -> Facts:
        """The facts of an open regular file, in whatever way it is open.

        raises: PermissionError if we may not read it; then it must not be written to either
        """
        status = os.fstat(fd)
        known = self._known(status)
        if known is not None:
            return known
        with _readable(fd) as readable:
            facts = self._read(readable, status)
        # A file written to while it was read, or within one tick of its filesystem's clock after,
        # would be remembered wrongly.
        key = _key(status)
        if (
            time.time_ns() - status.st_ctime_ns > clock_tick_ns(status.st_ctime_ns)
            and _key(os.fstat(fd)) == key
        ):
            with self._lock:
                self._facts[key[:2]] = key, facts
                if len(self._facts) > _CACHED_FILES:
                    self._facts.popitem(last=False)
        return self._with_overlay(facts)

    def forget(self) -> None:
        """Read marks anew from now on."""
        with self._lock:
            self._facts.clear()

    def begin_writing(self, fd: int, shown_inode: int) -> None:
        """The file is hot until `end_writing`, whatever is being written into it."""
        status = os.fstat(fd)
        with self._lock:
            self._written.setdefault((status.st_dev, status.st_ino), []).append(shown_inode)

    def end_writing(self, fd: int) -> None:
        """One of those who write to the file no longer does."""
        status = os.fstat(fd)
        with self._lock:
            handles = self._written[status.st_dev, status.st_ino]
            handles.pop()
            if not handles:
                del self._written[status.st_dev, status.st_ino]

    def _known(self, status: os.stat_result) -> Facts | None:
        key = _key(status)
        with self._lock:
            written = self._written.get((status.st_dev, status.st_ino))
            if written is not None:
                return Facts(State.HOT, status.st_size, written[0])
            known, facts = self._facts.get(key[:2], (None, None))
            if known != key or facts is None:
                return None
            self._facts.move_to_end(key[:2])
        return self._with_overlay(facts)

    def _with_overlay(self, facts: Facts) -> Facts:
        """A patched file's facts with what its overlay says at this moment."""
        if facts.overlay is None:
            return facts
        try:
            status = self.overlays.stat(facts.overlay)
        except FileNotFoundError:
            problem = f"no overlay {self.overlays.path(facts.overlay)}"
            return facts._replace(state=State.DAMAGED, problem=problem)
        size = max(0, status.st_size - data_start(facts.base_size))
        return facts._replace(size=size, overlay_blocks=status.st_blocks)

    def _read(self, fd: int, status: os.stat_result) -> Facts:
        names = _xattr_names(fd)
        kept = _get_xattr(fd, KEPT_MARK) if KEPT_MARK in names else None
        frozen = _get_xattr(fd, FROZEN_MARK) if FROZEN_MARK in names else None
        inode = self.inodes.shown(status.st_ino, kept)
        magic, trailer = read_ends(fd, status.st_size)
        hot = Facts(State.HOT, status.st_size, inode)
        if frozen is None and (PLAIN_MARK in names or not (magic or trailer)):
            return hot
        problem = _contradiction(self.store.id, magic, trailer, frozen)
        if trailer is not None and problem is None:
            overlay, problem = self._find_overlay(fd, status, frozen)
            if problem is None:
                state = State.FROZEN if overlay is None else State.PATCHED
                return Facts(state, trailer.size, inode, None, overlay, 0, trailer.size)
        size = status.st_size
        if trailer is not None:
            size = trailer.size
        elif frozen is not None and len(frozen) == _VALUE.size:
            size = min(_VALUE.unpack(frozen)[1], (1 << 63) - 1)
        return Facts(State.DAMAGED, size, inode, problem)

    def _find_overlay(
        self, fd: int, status: os.stat_result, frozen: bytes | None
    ) -> tuple[str | None, str | None]:
        """The overlay that a frozen file's xattr names, or what is wrong with that."""
        overlay_id = patched_by(self.store.id, frozen)
        if overlay_id is not None:
            return self.overlays.name(overlay_id, identity(fd, status.st_size)), None
        if frozen is None and self.store.xattr_marks:
            for lost in self.overlays.of_base(identity(fd, status.st_size)):
                return None, f"no xattr, but an overlay {self.overlays.path(lost)}"
        return None, None

    def is_patched(self, path: str) -> bool:
        """True if what is under a name has the xattr of a patched file; a call, and no more."""
        try:
            mark = os.getxattr(self.store.real_path(path), FROZEN_MARK, follow_symlinks=False)
        except OSError:
            return False
        return patched_by(self.store.id, mark) is not None

    def require_frozen_or_hot(self, facts: Facts, path: str) -> None:
        """raises: DamagedError for a damaged file, with what its marks say"""
        if facts.state is State.DAMAGED:
            raise DamagedError(
                "the marks of a frozen file do not agree",
                where=self.store.shown_path(path),
                expected="magic, trailer and xattr of this store, or none of them",
                got=facts.problem,
                do="`lmfs repair` heals it, if it has parity, or saves its whole chunks beside it; "
                "or restore it from a backup",
            )


def frozen_mark(store_id: bytes, size: int) -> bytes:
    """The value of FROZEN_MARK for a file of `size` decoded bytes."""
    return _VALUE.pack(store_id[:8], size)


def patched_mark(overlay_id: bytes, size: int) -> bytes:
    """The value of FROZEN_MARK for a file of `size` decoded bytes that has an overlay.

    As long as the other, so that it needs no block that a full disk does not have.
    """
    return _VALUE.pack(overlay_id, size)


def patched_by(store_id: bytes, frozen: bytes | None) -> bytes | None:
    """The id of the overlay that a FROZEN_MARK names, if it names one."""
    if frozen is None or len(frozen) != _VALUE.size or frozen[:8] == store_id[:8]:
        return None
    return frozen[:8]


@contextlib.contextmanager
def _readable(fd: int) -> Iterator[int]:
    """The same file, open for reading, and read without leaving an access time where we may."""
    path = f"/proc/self/fd/{fd}"
    try:
        readable = os.open(path, os.O_RDONLY | os.O_NOATIME)
    except PermissionError:
        readable = os.open(path, os.O_RDONLY)
    try:
        yield readable
    finally:
        os.close(readable)


def read_ends(fd: int, size: int) -> tuple[bool, Trailer | None]:
    """Whether a file of `size` bytes begins as a frozen one does, and the trailer if it ends so."""
    magic = sniff(os.pread(fd, MAGIC_BYTES, 0)) is Kind.FROZEN
    tail = os.pread(fd, MAX_TRAILER_BYTES, max(0, size - MAX_TRAILER_BYTES))
    if not tail.endswith(Kind.FROZEN.trailer_magic):
        return magic, None
    try:
        trailer = parse_trailer(tail)
    except DamagedError:
        return magic, None
    return magic, trailer if trailer.member_bytes == size else None


def is_marked(fd: int) -> bool:
    """True if an open file has FROZEN_MARK. raises: OSError"""
    return _get_xattr(fd, FROZEN_MARK) is not None


def gives_magic(data: bytes, offset: int) -> bool:
    """True if writing this can give a file the beginning of a frozen one."""
    part = Kind.FROZEN.value[offset : offset + len(data)]
    return bool(part) and data[: len(part)] == part


def say_replaced(fd: int) -> None:
    """Mark an inode whose name another one has taken over; where that cannot be, it is not."""
    with contextlib.suppress(OSError):
        os.setxattr(fd, REPLACED_MARK, b"1")


def was_replaced(fd: int) -> bool:
    """True if what is true of the file since may not be true of this inode. raises: OSError"""
    return _get_xattr(fd, REPLACED_MARK) is not None


def looks_frozen(fd: int) -> bool:
    """True if an open plain file's bytes would be taken for a mark. raises: OSError"""
    with _readable(fd) as readable:
        magic, trailer = read_ends(readable, os.fstat(readable).st_size)
    return magic or trailer is not None


def _contradiction(
    store_id: bytes, magic: bool, trailer: Trailer | None, frozen: bytes | None
) -> str | None:
    if trailer is None:
        return "no whole trailer" if magic else "neither magic nor trailer, but the xattr"
    if trailer.store_id != store_id:
        other = trailer.store_id.hex() if trailer.store_id else "none"
        return f"store {other}, not {store_id.hex()}"
    if not magic:
        return "no magic at the beginning"
    if frozen is not None and (
        len(frozen) != _VALUE.size or _VALUE.unpack(frozen)[1] != trailer.size
    ):
        return "an xattr of another file"
    return None


def _key(status: os.stat_result) -> tuple[int, int, int, int, int]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _xattr_names(fd: int) -> list[str]:
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno not in _NO_XATTR:
            raise
        return []


def _get_xattr(fd: int, name: str) -> bytes | None:
    try:
        return os.getxattr(fd, name)
    except OSError as error:
        if error.errno not in _NO_XATTR:
            raise
        return None
