"""Repairing a store: what a check found, made good by adding and moving aside, never otherwise.

Owns: what is done about each kind of finding. No file of a user is changed or removed, and none is
replaced but by what it was before it was damaged, as its parity proves: then the damaged one goes
to `.lmfs/aside/`, as leftovers do. Without parity it stays, and what is whole of it is written
beside it. Imports `findings`, `heal` and lower. One thread.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict

from ..errors import LmfsError
from ..lmz.recovery import Saved, save_whole
from ..models import registry
from .findings import Finding, Kind
from .freeze import give_parity
from .freezing import pin
from .heal import heal
from .marks import FROZEN_MARK, Marks, State, frozen_mark, patched_by
from .parities import wanted_percent
from .publish import Source, open_quietly
from .store import DIRECTORY
from .system import RENAME_NOREPLACE, own_directory, rename

ASIDE = "aside"
RECOVERED = ".recovered"
MAP = ".recovered.json"

_DEFAULT_PERCENT = 2


def lay_over(marks: Marks, fd: int, target: int) -> bool:
    """Write what was written to a patched file over what was saved of the frozen one.

    fd, target: the patched file, and the file that holds what was saved, at its offsets
    returns: False if there is no overlay. raises: DamagedError, OSError
    """
    overlay_id = None
    with contextlib.suppress(OSError):
        overlay_id = patched_by(marks.store.id, os.getxattr(fd, FROZEN_MARK))
    names = [] if overlay_id is None else marks.overlays.of_id(overlay_id)
    for name in names:
        with marks.overlays.open(name, fd, lambda size, offset: b"") as overlay:
            os.ftruncate(target, overlay.size)
            for offset, data in overlay.own_pieces():
                os.pwrite(target, data, offset)
    return bool(names)


class Repair:
    """Deals with findings, one after another."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._store = marks.store
        self._recovered: dict[str, str | None] = {}
        self._healed: dict[str, str | None] = {}
        self._ways: dict[Kind, Callable[[Finding], str | None]] = {
            Kind.STORE: self._move_aside,
            Kind.LEFTOVER: self._move_aside,
            Kind.HIDDEN: self._show,
            Kind.MARK_MISSING: self._mark,
            Kind.MODEL_NOT_KEPT: self._keep_model,
            Kind.PARITY_DAMAGED: self._make_parity,
            Kind.MARKS: self._recover,
            Kind.STRUCTURE: self._recover,
            Kind.CONTENT: self._recover,
        }

    def settle(self, finding: Finding) -> tuple[bool, str | None]:
        """Whether the finding is settled, and what was done about it. raises: OSError, LmfsError

        A damaged file is not settled by what was saved of it: that may not be all.
        """
        way = self._heal if finding.can_be_healed else self._ways.get(finding.kind)
        if way is None:
            return False, None
        done = way(finding)
        return done is not None and way != self._recover, done

    def _move_aside(self, finding: Finding) -> str:
        if finding.path == DIRECTORY:
            raise OSError("a symlink instead of the store's directory is not ours to move")
        with self._aside() as aside:
            name = self._move(finding.path, _aside_name(finding.path), aside)
            return f"moved to {DIRECTORY}/{ASIDE}/{name}"

    @contextlib.contextmanager
    def _aside(self) -> Iterator[int]:
        with own_directory(self._store.root_fd, DIRECTORY) as own:
            with contextlib.suppress(FileExistsError):
                os.mkdir(ASIDE, 0o700, dir_fd=own)
            with own_directory(own, ASIDE) as aside:
                yield aside

    def _show(self, finding: Finding) -> str:
        head, name = os.path.split(finding.path)
        shown = os.path.join(head, "found-" + name.removeprefix(".lmfs-").removesuffix(".tmp"))
        return f"renamed to {self._move(finding.path, shown, self._store.root_fd)}"

    def _move(self, path: str, target: str, target_fd: int) -> str:
        """Rename, never over anything; the new name, below `target_fd`, also durable."""
        root = self._store.root_fd
        for name in _numbered(target):
            try:
                rename(path, name, flags=RENAME_NOREPLACE, source_fd=root, target_fd=target_fd)
            except FileExistsError:
                continue
            with self._store.parent(path) as (directory, _):
                os.fsync(directory)
            if target_fd != root:
                os.fsync(target_fd)
            return name
        raise FileExistsError(f"{target}: a thousand names are taken")

    def _mark(self, finding: Finding) -> str | None:
        """Set an xattr again that the header and the trailer prove."""
        fd = open_quietly(finding.path, self._store.root_fd)
        try:
            facts = self._marks.facts_of_fd(fd)
            if facts.state is not State.FROZEN:
                return None
            os.setxattr(fd, FROZEN_MARK, frozen_mark(self._store.id, facts.size), os.XATTR_CREATE)
        finally:
            os.close(fd)
        return f"set {FROZEN_MARK}"

    def _keep_model(self, finding: Finding) -> str:
        assert finding.model is not None
        package = registry.find(finding.model, [self._store.models])
        pin(self._store, package)
        return f"copied model {finding.model.hex()} into the store"

    def _heal(self, finding: Finding) -> str | None:
        """Put the file as it was in the place of the damaged one, which goes aside."""
        path = finding.path
        if path not in self._healed:
            self._healed[path] = self._heal_file(path)
        return self._healed[path]

    def _heal_file(self, path: str) -> str | None:
        kept = ""

        def put_aside() -> Callable[[], None]:
            nonlocal kept
            kept = self._link_aside(path)
            return lambda: self._unlink_aside(kept)

        if not heal(self._marks, path, put_aside):
            return None
        return f"healed; as it was damaged it is kept as {DIRECTORY}/{ASIDE}/{kept}"

    def _link_aside(self, path: str) -> str:
        """A second name for a file, durable, so that it is still there when it is replaced."""
        root = self._store.root_fd
        with self._aside() as aside:
            for target in _numbered(_aside_name(path)):
                with contextlib.suppress(FileExistsError):
                    os.link(path, target, src_dir_fd=root, dst_dir_fd=aside, follow_symlinks=False)
                    os.fsync(aside)
                    return target
        raise FileExistsError(f"{path}: a thousand names are taken")

    def _unlink_aside(self, name: str) -> None:
        with self._aside() as aside:
            os.unlink(name, dir_fd=aside)

    def _make_parity(self, finding: Finding) -> str | None:
        """Make a file's parity anew, of the whole file; the damaged one goes aside."""
        parities = self._marks.parities
        with Source(self._store, finding.path, wait=True) as source:
            names = parities.of(source.fd)
            percent = wanted_percent(self._store) or _DEFAULT_PERCENT
            for name in names:
                with contextlib.suppress(LmfsError), parities.open(name) as parity:
                    percent = parity.header.percent
            kept = [self._link_aside(parities.path(name)) for name in names]
            try:
                give_parity(self._marks, source.fd, percent)
            except BaseException:  # the file is damaged as well: the old parity may heal it
                for name in kept:
                    self._unlink_aside(name)
                raise
            for name in names - parities.of(source.fd):
                parities.remove(name)
        return "made its parity anew; the damaged one is kept in .lmfs/aside"

    def _recover(self, finding: Finding) -> str | None:
        if finding.path not in self._recovered:
            self._recovered[finding.path] = self._recover_file(finding.path)
        return self._recovered[finding.path]

    def _recover_file(self, path: str) -> str | None:
        """Write what is whole of a damaged file beside it, with a map of what is not."""
        root = self._store.root_fd
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        source = open_quietly(path, root)
        try:
            status = os.fstat(source)
            target = os.open(path + RECOVERED, flags, 0o600, dir_fd=root)
            try:
                with (
                    open(source, "rb", buffering=0, closefd=False) as damaged,
                    open(target, "wb", closefd=False) as file,
                ):
                    saved = save_whole(damaged, file, model_search=self._store.search)
                lay_over(self._marks, source, target)
                os.fchown(target, status.st_uid, status.st_gid)
                os.fchmod(target, status.st_mode & 0o777)
            except BaseException:
                os.unlink(path + RECOVERED, dir_fd=root)
                raise
            finally:
                os.close(target)
        except FileExistsError:
            return f"{path}{RECOVERED} is there already"
        except LmfsError as error:
            return f"nothing could be saved: {error}"
        finally:
            os.close(source)
        self._write_map(path, saved)
        return f"{saved.whole_bytes:,} bytes saved in {path}{RECOVERED}, {len(saved.holes)} holes"

    def _write_map(self, path: str, saved: Saved) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(path + MAP, flags, 0o600, dir_fd=self._store.root_fd)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(asdict(saved), file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        with self._store.parent(path) as (directory, _):
            os.fsync(directory)


def _aside_name(path: str) -> str:
    return path.replace("%", "%25").replace("/", "%2F")[-200:]


def _numbered(name: str) -> Iterator[str]:
    """A name, and others that are tried if it is taken."""
    yield name
    for number in range(1, 1000):
        yield f"{name}.{number}"
