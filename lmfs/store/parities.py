"""The parity files of a store: `.lmfs/parity/`.

Owns: which of them belongs to which frozen file, how one gets there and goes, and the store's
configuration key "parity". `parity` owns what is in them. Imports lmfs.lmz and lower. Any thread
may call it.

A parity file is named after the frozen file's two ends, as `Ends` has them, and after its inode. It
follows no name of the file, and survives renaming. Either end finds it, and where both are damaged
its blocks do. The inode tells whose it is among files of the same bytes, each of which has its own;
it matters only for what is removed. A copy of the store, where the inodes are others, finds the
same parity files, and loses them only to the sweep.

The protocol, each step named as `reached` is told it; it stands between `verified` and `checked` of
`publish`:

    proved      the parity is on the disk, was read back and heals; it has its name after that
    dropped     the parity of a file that was replaced, thawed or removed is gone

Losing a parity file is losing no byte. A crash leaves one that no file has, which the sweep removes
(`walk`), or a file that has none, which fsck says where the store is set to have them.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import stat
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from ..errors import DamagedError, LmfsError
from ..lmz.source import FileSource
from .healed import HealedSource
from .parity import MAX_FILE_BYTES, MOST_PERCENT, Ends, Parity, Pread, Shape, prove, write
from .store import Store
from .system import clock_tick_ns, open_own, own_directory

PARITY_KEY = "parity"

_log = logging.getLogger(__name__)

_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})-[0-9a-f]{1,16}")
_NO_DIRECTORY = (FileNotFoundError, NotADirectoryError)
_LEAST_LIKENESS = 0.5
_IN_MEMORY_BYTES = 1 << 24
_DISK_BLOCK = 4096


def reached(step: str) -> None:
    """Told at every step of the protocol; does nothing. Tests put a crash here."""


def wanted_percent(store: Store) -> int | None:
    """How much parity files get that are frozen in this store; None for none.

    raises: DamagedError
    """
    percent = store.config.get(PARITY_KEY)
    if percent is None:
        return None
    if not isinstance(percent, int) or not 1 <= percent <= MOST_PERCENT:
        raise DamagedError(
            "store description",
            where=store.path,
            expected=f"a parity of 1 to {MOST_PERCENT} per cent",
            got=percent,
            do="set it again with `lmfs freeze --parity PERCENT`, or to 0",
        )
    return percent


def want_percent(store: Store, percent: int) -> None:
    """Give so much parity to files that are frozen from now on; 0 for none. raises: OSError"""
    if store.config.get(PARITY_KEY) != (percent or None):
        store.configure(PARITY_KEY, percent or None)


class Known:
    """Names of parity files, to be looked up by the ends of frozen files."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_end: dict[str, set[str]] = defaultdict(set)
        for name in names:
            tail, head, _ = name.split("-")
            self._by_end[f"{tail}-"].add(name)
            self._by_end[f"-{head}"].add(name)

    def __bool__(self) -> bool:
        return bool(self._by_end)

    def of_both(self, ends: Ends) -> set[str]:
        """Those of files with these ends."""
        return self._of_tail(ends) & self._of_head(ends)

    def of(self, ends: Ends) -> set[str]:
        """Those of files with these ends; with one of these ends, if none has both."""
        return self.of_both(ends) or self._of_tail(ends) | self._of_head(ends)

    def _of_tail(self, ends: Ends) -> set[str]:
        return self._by_end.get(f"{ends.tail.hex()}-", set())

    def _of_head(self, ends: Ends) -> set[str]:
        return self._by_end.get(f"-{ends.head.hex()}", set())


class Parities:
    """The parity files of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._looked_up: tuple[tuple[int, ...], Known] | None = None  # and the directory then

    def path(self, name: str) -> str:
        """Where a parity file lies, relative to the store's root."""
        return f"{self._store.parity_path}/{name}"

    def is_name(self, name: str) -> bool:
        """True for what a parity file of ours could be called."""
        return _NAME.fullmatch(name) is not None

    def inode(self, name: str) -> int:
        """The number of the inode that a parity file was made for."""
        return int(name.rpartition("-")[2], 16)

    def names(self) -> list[str]:
        with contextlib.suppress(*_NO_DIRECTORY), self._directory() as fd:
            return sorted(name for name in os.listdir(fd) if self.is_name(name))
        return []

    def known(self) -> Known:
        """All of them, listed anew only if there are others."""
        with contextlib.suppress(*_NO_DIRECTORY), self._directory() as fd:
            status = os.fstat(fd)
            stamp = (status.st_dev, status.st_ino, status.st_mtime_ns)
            if self._looked_up is not None and self._looked_up[0] == stamp:
                return self._looked_up[1]
            known = Known(filter(self.is_name, os.listdir(fd)))
            # What came in the same tick of its filesystem's clock would not be seen later.
            if time.time_ns() - status.st_mtime_ns > clock_tick_ns(status.st_mtime_ns):
                self._looked_up = stamp, known
            return known
        return Known(())

    def stat(self, name: str) -> os.stat_result:
        """raises: FileNotFoundError, OSError"""
        with self._directory() as fd:
            return os.stat(name, dir_fd=fd, follow_symlinks=False)

    def open(self, name: str) -> Parity:
        """raises: DamagedError, VersionError, OSError"""
        where = self._store.shown_path(self.path(name))
        parity = Parity(open_own(self._store.root_fd, *self.path(name).split("/")), where)
        if parity.header.store_id != self._store.id:
            parity.close()
            raise DamagedError("parity of another store", where=where)
        return parity

    def planned_bytes(self, size: int, percent: int | None) -> int:
        """What the parity of a frozen file of `size` bytes takes on the disk, about."""
        if percent is None or size > MAX_FILE_BYTES:
            return 0
        return -(-Shape.plan(size, percent).bytes // _DISK_BLOCK) * _DISK_BLOCK

    # --------------------------------------------------------------------------- coming, going

    @contextlib.contextmanager
    def kept(self, fd: int, percent: int | None) -> Iterator[None]:
        """Have the parity of an open frozen file in the store, before what is done meanwhile.

        It is on the disk, and proved; it goes again if what is done fails. percent: None for none;
        files of more than MAX_FILE_BYTES get none either
        raises: VerifyError if what was written does not heal the file, OSError
        """
        if percent is None or os.fstat(fd).st_size > MAX_FILE_BYTES:
            yield
            return
        self._store.make_own_directory(self._store.parity_path)
        with self._directory() as directory:
            # A sweep must not take it for one that no file has.
            fcntl.flock(directory, fcntl.LOCK_SH)
            name = self._make(fd, percent)
            try:
                yield
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=directory)
                raise

    def drop(self, fd: int) -> None:
        """Remove the parity of an open file that is replaced, or that has lost its name."""
        # Where there is no parity nothing is read; where it cannot be removed the sweep does it.
        with contextlib.suppress(OSError, DamagedError), self._directory() as directory:
            os.unlink(_name(fd), dir_fd=directory)
        reached("dropped")

    @contextlib.contextmanager
    def dropped_with(self, path: str) -> Iterator[None]:
        """The parity of what is under this name goes if what is done meanwhile removes that."""
        fd = None
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError), self._directory():
                root = self._store.root_fd
                if stat.S_ISREG(os.stat(path, dir_fd=root, follow_symlinks=False).st_mode):
                    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                    fd = os.open(path, flags, dir_fd=root)
                    held.callback(os.close, fd)
            yield
            if fd is not None and not os.fstat(fd).st_nlink:
                self.drop(fd)

    def remove(self, name: str) -> None:
        """raises: OSError"""
        with self._directory() as fd:
            os.unlink(name, dir_fd=fd)

    def are_being_made(self) -> bool:
        """True if somebody makes one right now, or if that cannot be told."""
        try:
            with self._directory() as directory:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        return False

    def remove_unused(self, names: Iterable[str], is_sure: Callable[[], bool]) -> list[str]:
        """Remove these, unless somebody makes one right now; the names removed.

        is_sure: asked when nobody can begin to, whether no file has them
        """
        removed = []
        with contextlib.suppress(OSError), self._directory() as directory:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in names if is_sure() else ():
                os.unlink(name, dir_fd=directory)
                removed.append(name)
        return removed

    def follow(self, name: str, fd: int) -> None:
        """A frozen file was healed, and is the open file now: its parity is that one's."""
        stem, _, _ = name.rpartition("-")
        with contextlib.suppress(OSError), self._directory() as directory:
            new = f"{stem}-{os.fstat(fd).st_ino:x}"
            os.rename(name, new, src_dir_fd=directory, dst_dir_fd=directory)

    # --------------------------------------------------------------------------------- finding

    def of(self, fd: int) -> set[str]:
        """The parity of an open frozen file that is whole; of files of the same bytes, if that is
        made for another.
        """
        own = _name(fd)
        with contextlib.suppress(*_NO_DIRECTORY):
            self.stat(own)
            return {own}
        return self.known().of_both(ends_of(fd))

    def healed(
        self, pread: Pread, size: int, *, known: Known | None = None, thorough: bool = False
    ) -> tuple[str, HealedSource] | None:
        """The name of a damaged file's parity, and the file read with it; None if it has none.

        known: what is there, if it was looked up already
        thorough: look through all of them where no end is whole
        raises: OSError
        """
        if known is None:
            known = self.known()
        if not known or not size:
            return None
        found = self._best(known.of(Ends.of(pread, size)), pread, size)
        if found is None and thorough:
            found = self._best(self.names(), pread, size)
        return found

    def heal_reading(self, damaged: FileSource) -> FileSource | None:
        """For `LmzReader`: a file read with its parity."""
        try:
            found = self.healed(damaged.pread, damaged.size)
        except (LmfsError, OSError) as error:
            _log.warning("parity cannot be used: %s", error)
            return None
        if found is None:
            return None
        _log.warning(
            "a file is damaged, and read with its parity %s; `lmfs repair` heals it", found[0]
        )
        return found[1]

    def _best(
        self, names: Iterable[str], pread: Pread, size: int
    ) -> tuple[str, HealedSource] | None:
        best: tuple[str, HealedSource] | None = None
        likeness = _LEAST_LIKENESS
        for name in sorted(names):
            try:
                parity = self.open(name)
            except (LmfsError, OSError):
                continue
            source = HealedSource(pread, size, parity)
            alike = source.likeness()
            if alike < likeness or (best is not None and alike == likeness):
                source.close()
                continue
            if best is not None:
                best[1].close()
            best, likeness = (name, source), alike
        return best

    # ---------------------------------------------------------------------------------- making

    def _make(self, fd: int, percent: int) -> str:
        pread, size = _of(fd)
        status = os.fstat(fd)
        name = _name(fd)

        def check(path: Path) -> None:
            with Parity(os.open(path, os.O_RDONLY | os.O_CLOEXEC), str(path)) as parity:
                prove(parity, pread, size)
            with contextlib.suppress(PermissionError):
                os.chown(path, status.st_uid, status.st_gid)
            reached("proved")

        with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as spooled:
            out = cast(BinaryIO, spooled)
            write(pread, size, self._store.id, percent, out)
            out.seek(0)
            # Who may not read the file may not read what it could be computed from.
            self._store.put(self._store.parity_path, name, out, check, mode=0o600)
        return name

    @contextlib.contextmanager
    def _directory(self) -> Iterator[int]:
        """`.lmfs/parity`, and nothing that a symlink leads to. raises: OSError"""
        with own_directory(self._store.root_fd, *self._store.parity_path.split("/")) as fd:
            yield fd


def _of(fd: int) -> tuple[Pread, int]:
    return lambda size, offset: os.pread(fd, size, offset), os.fstat(fd).st_size


def ends_of(fd: int) -> Ends:
    """Those of an open frozen file. raises: OSError"""
    return Ends.of(*_of(fd))


def _name(fd: int) -> str:
    tail, head = ends_of(fd)
    return f"{tail.hex()}-{head.hex()}-{os.fstat(fd).st_ino:x}"
