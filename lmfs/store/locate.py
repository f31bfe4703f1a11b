"""From a path that a user names to a store and the path inside it.

Owns: the search, through a mount or up the tree. Imports the store and lower.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import FormatError, StoreError, UsageError
from .control import Control, mount_of
from .freezing import NO_WISHES, Wishes
from .store import DIRECTORY, Store


@dataclass(frozen=True)
class Place:
    """A path inside a store; `mountpoint` is set if the user named it through a mount.

    wishes: how that mount wants files to be frozen
    """

    store: Store
    path: str
    mountpoint: str | None
    wishes: Wishes = NO_WISHES


def locate(path: str, *, create: bool = False) -> Place:
    """The store that holds `path`, opened; the caller closes it.

    create: if there is none, make one of the directory, or of the file's directory
    raises: FormatError if there is none, MountError, OSError if `path` does not exist; StoreError
        if somebody else made it in a directory that is not his
    """
    absolute = _resolved(path)
    status = os.lstat(absolute)
    mount = mount_of(absolute)
    if mount is not None and mount.is_lmfs:
        with Control(mount) as control:
            store = control.open_store()
        inner = mount.inner.strip("/")
        below = os.path.relpath(absolute, mount.mountpoint)
        inside = os.path.normpath(os.path.join(inner, below))
        return Place(store, inside, mount.mountpoint, control.wishes)
    is_directory = os.path.isdir(absolute) and not os.path.islink(absolute)
    first = absolute if is_directory else os.path.dirname(absolute)
    root = _find_root(first, status.st_dev)
    if root is None:
        if not create:
            raise FormatError(
                "not in a store",
                where=path,
                expected=f"a {DIRECTORY}/ in this directory or above it, or an lmfs mount",
                do="`lmfs mount` or `lmfs freeze` makes a directory a store",
            )
        store = Store.create(first)
        return Place(store, os.path.relpath(absolute, first), None)
    inside = os.path.relpath(absolute, root)
    if inside.split("/")[0] == DIRECTORY:
        raise UsageError("this is the store's own", where=path, do="leave it alone")
    return Place(Store.open(root), inside, None)


def kept_beside(path: str | os.PathLike[str]) -> list[Path]:
    """Where the store of a file in a backing directory keeps what the file needs; may be none.

    For files that are looked at as they are: no store is opened, whatever state it is in.
    """
    absolute = _resolved(os.fspath(path))
    with contextlib.suppress(OSError):
        root = _find_root(os.path.dirname(absolute), os.lstat(absolute).st_dev)
        if root is not None:
            return [Path(root, DIRECTORY, name) for name in ("models", "primers")]
    return []


def _resolved(path: str) -> str:
    """Absolute and without symlinks, but for the last name: a symlink is not its target."""
    absolute = os.path.abspath(path)
    if not os.path.islink(absolute):
        return os.path.realpath(absolute)
    head, name = os.path.split(absolute)
    return os.path.join(os.path.realpath(head), name)


def _find_root(directory: str, device: int) -> str | None:
    while True:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(os.path.join(directory, DIRECTORY, "store.json"))
            _check_owner(directory)
            return directory
        above = os.path.dirname(directory)
        if above == directory or os.stat(above).st_dev != device:
            return None
        directory = above


def _check_owner(root: str) -> None:
    """Refuse a store that somebody made in another one's directory.

    Where everybody may write, as in /tmp, anybody can make a store of what others have below. Who
    owns it can take away the models and primers that their files would then need.
    """
    store, directory = os.lstat(os.path.join(root, DIRECTORY)), os.stat(root)
    if store.st_uid not in (0, os.geteuid(), directory.st_uid):
        raise StoreError(
            "a store of somebody else, in a directory that is not his",
            where=root,
            expected=f"{DIRECTORY}/ of user {directory.st_uid}, who owns the directory",
            got=f"user {store.st_uid}",
            do="see who made it; a directory below becomes a store of its own by `lmfs mount`",
        )
