"""The store: a backing directory and the `.lmfs/` in its root.

Owns: `.lmfs/store.json` (id, version, marks, configuration), `.lmfs/models/` (copies of every model
that a file of the store needs), how files get there durably, and the names that are the store's
own. Knows nothing of freezing and nothing of mounts. Imports lmfs.errors and `system` only.
Any thread may call it.

A store is addressed by a directory descriptor, never by its path: the directory may be mounted
over itself, and then its path leads into the mount. Paths inside are relative, "." is the root.

Who made a store may not be who uses it: nothing in `.lmfs/` is reached through a symlink.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, TextIO

from ..errors import BusyError, DamagedError, FormatError, StoreError, VersionError
from .system import open_own, own_directory

DIRECTORY = ".lmfs"
VERSION = 1
STORE_ID_BYTES = 16

_DESCRIPTION = "store.json"
_MODELS = "models"
_PRIMERS = "primers"
_PARITY = "parity"
_MODEL_SUFFIX = ".lmm"
_PRIMER_SUFFIX = ".lmz"
_PROBE = "user.lmfs.probe"
_PAUSE_ATTEMPTS, _PAUSE_STEP_S = 20, 0.02
_TEMPORARY = re.compile(r"\.lmfs-([0-9a-f]{8})-([0-9a-f]+)-[0-9a-f]{8}\.tmp")


class Store:
    """One backing directory; `id` is 16 bytes, `root_fd` the directory's descriptor."""

    def __init__(self, root_fd: int, path: str, description: Mapping[str, Any]) -> None:
        self.root_fd = root_fd
        self.path = path
        self.id = bytes.fromhex(description["id"])
        self.xattr_marks = bool(description["xattr_marks"])
        self.config: Mapping[str, Any] = MappingProxyType(dict(description.get("config", {})))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Store:
        """The store whose root is `path`; raises FormatError if that is none, and OSError."""
        return cls._at_path(path, create=False)

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Store:
        """The store whose root is `path`, made if it is none yet; raises StoreError, OSError."""
        return cls._at_path(path, create=True)

    @classmethod
    def open_fd(cls, fd: int, path: str) -> Store:
        """The store at this directory descriptor, which it owns from now on."""
        return cls(fd, path, _read_description(fd, path))

    @classmethod
    def _at_path(cls, path: str | os.PathLike[str], *, create: bool) -> Store:
        name = os.path.abspath(path)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if create and not _exists(f"{DIRECTORY}/{_DESCRIPTION}", fd):
                _create_description(fd, name)
            return cls.open_fd(fd, name)
        except BaseException:
            os.close(fd)
            raise

    def configure(self, key: str, value: Any) -> None:
        """Set a value of `config`, durably; None removes the key. raises: DamagedError, OSError

        Stores that others have open keep what they read when they opened.
        """
        temporary = f"{_DESCRIPTION}.{secrets.token_hex(4)}.tmp"
        with own_directory(self.root_fd, DIRECTORY) as directory:
            fcntl.flock(directory, fcntl.LOCK_EX)  # one reads and replaces at a time
            description = _read_description(self.root_fd, self.path)
            config = {**description.get("config", {}), key: value}
            description["config"] = {k: v for k, v in config.items() if v is not None}
            try:
                with open(_create(temporary, directory), "w", encoding="utf-8") as file:
                    _write_description(file, description)
                os.rename(temporary, _DESCRIPTION, src_dir_fd=directory, dst_dir_fd=directory)
                os.fsync(directory)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=directory)
                raise
        self.config = MappingProxyType(description["config"])

    def close(self) -> None:
        if self.root_fd >= 0:
            os.close(self.root_fd)
            self.root_fd = -1

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def real_path(self, path: str) -> str:
        """A path for calls that take no directory descriptor; valid in this process only."""
        return f"/proc/self/fd/{self.root_fd}/{path}"

    def shown_path(self, path: str) -> str:
        """The path as messages name it."""
        return self.path if path == "." else os.path.join(self.path, path)

    @contextlib.contextmanager
    def parent(self, path: str) -> Iterator[tuple[int, str]]:
        """The directory that holds `path`, as a descriptor, and the name in it."""
        head, name = os.path.split(path)
        fd = os.open(head or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.root_fd)
        try:
            yield fd, name
        finally:
            os.close(fd)

    # ------------------------------------------------------------------------------ own names

    def new_temporary_name(self, shown_inode: int) -> str:
        """A name for a file that is to replace the file that shows this inode number."""
        return f".lmfs-{self.id[:4].hex()}-{shown_inode:x}-{secrets.token_hex(4)}.tmp"

    def temporary_inode(self, name: str) -> int | None:
        """The inode number in a temporary's name; None if this is no name of this store's."""
        match = _TEMPORARY.fullmatch(name)
        if match is None or match[1] != self.id[:4].hex():
            return None
        return int(match[2], 16)

    def is_private(self, path: str) -> bool:
        """True for what the mounted tree neither shows nor lets be made."""
        parts = path.split("/")
        return parts[0] == DIRECTORY or self.temporary_inode(parts[-1]) is not None

    # ------------------------------------------------------------------------------- pausing

    def pause(self) -> int:
        """Have whoever freezes files of this store wait, until the descriptor given is closed.

        It is closed with the process, too: nobody waits for one that died.
        raises: BusyError if somebody else has it paused, OSError
        """
        fd = self._open_root()
        for attempt in range(_PAUSE_ATTEMPTS):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Whoever looks has it for a moment; whoever pauses, for long.
                if attempt + 1 < _PAUSE_ATTEMPTS:
                    time.sleep(_PAUSE_STEP_S)
            else:
                return fd
        os.close(fd)
        raise BusyError(
            "paused already",
            where=self.path,
            got="another mount of the store did it",
            do="`lmfs ctl resume` that one",
        )

    def wait_while_paused(self, waiting: Callable[[], None]) -> None:
        """Return when nobody has the store paused; `waiting` is told if that takes time."""
        fd = self._open_root()
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)

    def _open_root(self) -> int:
        """The root, to lock it: unlike the description it is never replaced."""
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.root_fd)

    # --------------------------------------------------------------------------------- models

    @property
    def models_path(self) -> str:
        """Where the store keeps its models, relative to its root."""
        return f"{DIRECTORY}/{_MODELS}"

    @property
    def models(self) -> Path:
        """Where the store keeps its models; valid in this process only."""
        return Path(self.real_path(self.models_path))

    @property
    def primers(self) -> Path:
        """Where the store keeps its shared primers; valid in this process only."""
        return Path(self.real_path(f"{DIRECTORY}/{_PRIMERS}"))

    @property
    def primers_path(self) -> str:
        """Where the store keeps its shared primers, relative to its root."""
        return f"{DIRECTORY}/{_PRIMERS}"

    @property
    def parity_path(self) -> str:
        """Where the store keeps what heals its frozen files, relative to its root."""
        return f"{DIRECTORY}/{_PARITY}"

    @property
    def search(self) -> list[Path]:
        """Where readers of its files look for models and shared primers."""
        places = [self.models, self.primers]
        return [p for p in places if not (p.parent.is_symlink() or p.is_symlink())]

    def pinned_models(self) -> dict[bytes, int]:
        """The ids of the models kept in the store, and their packages' sizes in bytes."""
        return self._kept(self.models_path, _MODEL_SUFFIX)

    def kept_primers(self) -> dict[bytes, int]:
        """The ids of the shared primers kept in the store, and their files' sizes in bytes."""
        return self._kept(self.primers_path, _PRIMER_SUFFIX)

    def _kept(self, directory: str, wanted: str) -> dict[bytes, int]:
        found = {}
        for entry in _scan(directory, self.root_fd):
            stem, suffix = os.path.splitext(entry.name)
            if suffix == wanted and len(stem) == 32:
                with contextlib.suppress(ValueError):
                    found[bytes.fromhex(stem)] = entry.stat(follow_symlinks=False).st_size
        return found

    def pin_model(self, model_id: bytes, package: str | os.PathLike[str]) -> None:
        """Copy a model package into the store, durably; nothing to do if it is there."""
        name = f"{model_id.hex()}{_MODEL_SUFFIX}"
        if _exists(f"{self.models_path}/{name}", self.root_fd):
            return
        with open(package, "rb") as source:
            self.put(self.models_path, name, source)

    def put(
        self,
        directory: str,
        name: str,
        source: BinaryIO,
        check: Callable[[Path], None] | None = None,
        mode: int = 0o644,
    ) -> None:
        """Write a file of the store's own, durably; one that has the name is replaced.

        directory: directly below `.lmfs/`; made if need be
        check: told where the bytes are, on the disk, before they get their name; may raise
        """
        self.make_own_directory(directory)
        temporary = self.new_temporary_name(0)
        with own_directory(self.root_fd, *directory.split("/")) as own:
            try:
                with open(_create(temporary, own, mode), "wb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    shutil.copyfileobj(source, file)
                    file.flush()
                    os.fsync(file.fileno())
                    if check is not None:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                        check(Path(f"/proc/self/fd/{own}/{temporary}"))
                    os.rename(temporary, name, src_dir_fd=own, dst_dir_fd=own)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=own)
                raise
            os.fsync(own)

    def make_own_directory(self, directory: str) -> None:
        """Make a directory directly below `.lmfs/`, durably; nothing to do if it is there."""
        head, name = os.path.split(directory)
        with own_directory(self.root_fd, head) as own, contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=own)
            os.fsync(own)

    def sweep_own(self) -> list[str]:
        """Remove what a crash left half-written in `.lmfs/`; the paths removed."""
        left = [
            f"{directory}/{entry.name}"
            for directory in (self.models_path, self.primers_path, self.parity_path)
            for entry in _scan(directory, self.root_fd)
            if self.temporary_inode(entry.name) is not None
        ]
        return [path for path in left if _remove_unlocked(path, self.root_fd)]


def _remove_unlocked(path: str, root_fd: int) -> bool:
    *directories, name = path.split("/")
    try:
        with (
            own_directory(root_fd, *directories) as own,
            open(open_own(own, name), "rb") as file,
        ):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=own)
    except OSError:  # gone, or still being written
        return False
    return True


def _exists(path: str, dir_fd: int) -> bool:
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _scan(directory: str, root_fd: int) -> Iterator[os.DirEntry[str]]:
    with (
        contextlib.suppress(FileNotFoundError),
        own_directory(root_fd, *directory.split("/")) as own,
        os.scandir(own) as entries,
    ):
        yield from entries


def _create(path: str, dir_fd: int, mode: int = 0o644) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=dir_fd)


def _create_description(root_fd: int, path: str) -> None:
    """Write `.lmfs/store.json`; where two processes try at once, the first one wins."""
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(DIRECTORY, 0o755, dir_fd=root_fd)
        with own_directory(root_fd, DIRECTORY) as own:
            _write_first_description(own)
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise _no_directory(path) from error
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise StoreError(
            "cannot make a store here",
            where=path,
            expected="a directory that can be written to",
            got=error.strerror,
            do="give its owner's rights, or choose another directory",
        ) from error
    os.fsync(root_fd)


def _write_first_description(own: int) -> None:
    temporary = f"{_DESCRIPTION}.{secrets.token_hex(4)}.tmp"
    fd = _create(temporary, own)
    try:
        description = {
            "version": VERSION,
            "id": secrets.token_hex(STORE_ID_BYTES),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "xattr_marks": _supports_xattrs(fd),
            "config": {},
        }
        with open(fd, "w", encoding="utf-8") as file:
            _write_description(file, description)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, _DESCRIPTION, src_dir_fd=own, dst_dir_fd=own)
    finally:
        os.unlink(temporary, dir_fd=own)
    os.fsync(own)


def _no_directory(path: str) -> FormatError:
    return FormatError(
        "not a store",
        where=path,
        expected=f"{DIRECTORY}/ as a directory, not as a symlink or a file",
        do=f"see who made it, and remove {DIRECTORY}",
    )


def _write_description(file: TextIO, description: Mapping[str, Any]) -> None:
    json.dump(description, file, indent=1)
    file.write("\n")
    file.flush()
    os.fsync(file.fileno())


def _supports_xattrs(fd: int) -> bool:
    try:
        os.setxattr(fd, _PROBE, b"1")
        os.removexattr(fd, _PROBE)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EACCES):
            raise
        return False
    return True


def _read_description(root_fd: int, path: str) -> dict[str, Any]:
    where = os.path.join(path, DIRECTORY, _DESCRIPTION)
    try:
        fd = open_own(root_fd, DIRECTORY, _DESCRIPTION)
    except FileNotFoundError:
        raise FormatError(
            "not a store",
            where=path,
            expected=f"a directory with {DIRECTORY}/{_DESCRIPTION}",
            do="make it one with `lmfs mount` or `lmfs freeze`",
        ) from None
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise _no_directory(path) from error
        if error.errno in (errno.ELOOP, errno.ENOTSUP, errno.ENXIO):
            raise FormatError("not a store", where=where, expected="a regular file") from error
        raise
    with open(fd, "rb") as file:
        text = file.read(1 << 20)
    try:
        description = json.loads(text)
        version = description["version"]
        if isinstance(version, int) and version > VERSION:
            raise VersionError(
                "store version", where=where, expected=VERSION, got=version, do="update lmfs"
            )
        store_id = bytes.fromhex(description["id"])
        if version != VERSION or len(store_id) != STORE_ID_BYTES:
            raise ValueError("version or id")
        if not isinstance(description["xattr_marks"], bool):
            raise ValueError("xattr_marks")
        if not isinstance(description.get("config", {}), dict):
            raise ValueError("config")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(
            "store description",
            where=where,
            expected="JSON with version, id, xattr_marks",
            got=f"{type(error).__name__}: {error}",
            do="restore it from a backup: without its id no frozen file of the store is trusted",
        ) from error
    return dict(description)
