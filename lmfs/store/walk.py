"""Walking a store's tree: its regular files, and what crashes left between them and in `.lmfs/`.

Owns: which directories are entered. Imports the store and lower. Any thread may call it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator

from ..errors import LmfsError
from .marks import FROZEN_MARK, Marks, State, patched_by
from .parities import Known, ends_of
from .publish import open_quietly, sweep
from .store import DIRECTORY, Store
from .system import clock_tick_ns


def directories(
    store: Store, path: str = ".", unreadable: Callable[[str, OSError], None] | None = None
) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Every directory from `path` down, with its entries, sorted by name.

    unreadable: told of those that cannot be read

    Left out are the store's own names, other stores inside this one, other filesystems, and what
    may not be read. The entries may be asked for their type, not for their status.
    """
    device = os.fstat(store.root_fd).st_dev
    pending = [path]
    while pending:
        current = pending.pop()
        try:
            entries = _entries(store, current, device)
        except OSError as error:
            if unreadable is not None:
                unreadable(current, error)
            continue
        if entries is None:
            continue
        yield current, entries
        below = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
        pending += [join(current, name) for name in reversed(below)]


def regular_files(store: Store, path: str = ".") -> Iterator[tuple[str, os.stat_result]]:
    """The regular file `path`, or those below the directory `path`. raises: OSError for `path`"""
    status = os.stat(path, dir_fd=store.root_fd, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        yield path, status
        return
    for directory, entries in directories(store, path):
        for entry in entries:
            name = join(directory, entry.name)
            if entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    yield name, os.stat(name, dir_fd=store.root_fd, follow_symlinks=False)


def sweep_tree(marks: Marks, path: str = ".") -> list[str]:
    """Remove what crashes left below a directory, and in `.lmfs/`; the paths removed.

    Overlays that no file names, and parity that no file has, are removed only if the directory is
    the root.
    """
    store = marks.store
    removed = []
    for directory, _ in directories(store, path):
        with contextlib.suppress(OSError):
            removed += [join(directory, name) for name in sweep(marks, directory)]
    removed += store.sweep_own()
    if path == ".":
        removed += sweep_overlays(marks)
        removed += sweep_parity(marks)
    return removed


def sweep_overlays(marks: Marks) -> list[str]:
    """Remove the overlays that no file names; the paths removed.

    A file that is renamed while the tree is walked may be missed, and its overlay must not be
    lost: nothing is removed unless every directory can be read and none changes meanwhile.
    """
    overlays = marks.overlays
    with overlays.commit():  # else one could be there that is not named yet
        candidates = overlays.names()
    if not candidates:
        return []
    before = _directory_times(marks.store)
    if before is None:
        return []
    named = set()
    try:
        for name, _ in regular_files(marks.store):
            overlay_id = _overlay_id(marks.store, name)
            if overlay_id is not None:
                named.add(overlay_id.hex())
    except OSError:
        return []
    removed = []
    with overlays.commit():
        if _directory_times(marks.store) == before:
            for name in candidates:
                if name.split("-")[0] not in named and overlays.is_name(name):
                    overlays.remove(name)
                    removed.append(overlays.path(name))
    return removed


def sweep_parity(marks: Marks) -> list[str]:
    """Remove parity that no file has; the paths removed.

    As above, nothing is removed while anything changes; nor while there is a damaged file whose
    parity is not known by its ends, for any may be that one's.
    """
    store, parities = marks.store, marks.parities
    names = parities.names()
    before = _directory_times(store) if names else None
    if before is None:
        return []
    try:
        marked = {s.st_ino for p, s in regular_files(store) if _is_marked(store, p)}
        unused = [name for name in names if parities.inode(name) not in marked]
        # Now files must be read: after a copy of the store or a crash, or where xattrs are lost.
        if unused and (parities.are_being_made() or _find_owners(marks, unused)):
            return []
    except (OSError, LmfsError):
        return []
    removed = parities.remove_unused(unused, lambda: _directory_times(store) == before)
    return [parities.path(name) for name in removed]


def _find_owners(marks: Marks, names: list[str]) -> bool:
    """Take the names from the list that some file has; True if there is a file that may have any.

    A whole file's are named after its inode from then on.
    """
    known = Known(names)
    for path, status in regular_files(marks.store):
        if not names:
            break
        facts = marks.facts_of_path(path, status)
        if facts.state is State.HOT:
            continue
        fd = open_quietly(path, marks.store.root_fd)
        try:
            ends = ends_of(fd)
            if facts.state is not State.DAMAGED:
                for name in sorted(known.of_both(ends).intersection(names))[:1]:
                    names.remove(name)
                    marks.parities.follow(name, fd)
            elif not marks.parities.known().of(ends):
                return True
            else:
                names[:] = [name for name in names if name not in known.of(ends)]
        finally:
            os.close(fd)
    return False


def _is_marked(store: Store, path: str) -> bool:
    try:
        os.getxattr(store.real_path(path), FROZEN_MARK, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOENT, errno.ENOTSUP):
            return False
        raise
    return True


def _overlay_id(store: Store, path: str) -> bytes | None:
    """The overlay that a file's mark names. raises: OSError if that cannot be told"""
    try:
        mark = os.getxattr(store.real_path(path), FROZEN_MARK, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOENT, errno.ENOTSUP):
            return None
        raise
    return patched_by(store.id, mark)


def _directory_times(store: Store) -> dict[str, int] | None:
    """When each directory last changed; None if one may have, by its clock, just now."""
    failed = []
    times = {}
    for path, _ in directories(store, unreadable=lambda path, error: failed.append(path)):
        try:
            times[path] = os.stat(path, dir_fd=store.root_fd, follow_symlinks=False).st_ctime_ns
        except OSError:
            return None
    latest = max(times.values(), default=0)
    return None if failed or abs(time.time_ns() - latest) < clock_tick_ns(latest) else times


def join(directory: str, name: str) -> str:
    """A path relative to the root; "." is the root."""
    return name if directory == "." else f"{directory}/{name}"


def _entries(store: Store, path: str, device: int) -> list[os.DirEntry[str]] | None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    fd = os.open(path, flags, dir_fd=store.root_fd)
    try:
        if os.fstat(fd).st_dev != device or (path != "." and _is_store(fd)):
            return None
        with os.scandir(fd) as found:
            entries = [e for e in found if not store.is_private(join(path, e.name))]
    finally:
        os.close(fd)
    return sorted(entries, key=lambda entry: entry.name)


def _is_store(fd: int) -> bool:
    try:
        os.stat(f"{DIRECTORY}/store.json", dir_fd=fd)
    except OSError:
        return False
    return True
