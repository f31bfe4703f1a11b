"""Freezing and thawing one file.

Owns: which files are fit to be frozen, and what is compared; `content` owns what they hold,
`publish` how the result takes the file's place. Imports lmfs.lmz and lower. Any thread, and any
number of processes, may freeze and thaw at once: a file's flock lets one at a time have it.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import blake3

from ..codecs.threads import Priority, Urgency, working
from ..container import DEFAULT_CHUNK_SIZE
from ..errors import BusyError, DamagedError, LmfsError, VerifyError
from ..lmz import LmzReader, LmzWriter
from .content import Pread, Progress, blocks, digest_of, open_content, open_frozen, write_content
from .freezing import pin
from .marks import FROZEN_MARK, PLAIN_MARK, Facts, Marks, State, frozen_mark, looks_frozen
from .overlays import has_writers
from .parities import wanted_percent
from .primers import Primers
from .publish import Replacement, Source, reached
from .system import Lease, clock_tick_ns

if TYPE_CHECKING:
    from ..codecs.choose import Chooser
    from ..models.package import ModelPackage

_SHORT_S = 0.02
_QUIET_S = 5.0  # without a tick of its clock in which a file was not changed
_LEASE_ATTEMPTS = 5
_LEASE_PAUSE_S = 0.02


class Action(enum.Enum):
    """What was done with a file."""

    FROZEN = "frozen"
    THAWED = "thawed"
    COPIED = "copied"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Outcome:
    """What was done, and why not; `before` and `after` are bytes on disk.

    inodes: of a thawed file, the number on the disk of what was replaced, and of what replaced it
    """

    path: str
    action: Action
    size_bytes: int
    before_bytes: int
    after_bytes: int
    reason: str | None = None
    inodes: tuple[int, int] | None = None


_Times = tuple[int, int, int]


class _Unfit(Exception):
    """A file that is not to be frozen; never leaves this module."""


def freeze(
    marks: Marks,
    path: str,
    chooser: Chooser,
    *,
    model: ModelPackage | None = None,
    primers: Primers | None = None,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    even_if_larger: bool = False,
    known_hot_inode: int | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Freeze one file of the store, if it is fit for it; a patched one anew, as it is now.

    With parity, if the store is set to have it; a frozen file that has none is given that.

    model: the package that `chooser` codes with; copied into the store before it is needed
    primers: those of the store, where many files are frozen; remembers which were proved
    known_hot_inode: the file, if it is this one, is a user's own, whatever it looks like
    raises: DamagedError if its marks do not agree, VerifyError, OSError; the file is unchanged
    """
    store = marks.store
    status = os.stat(path, dir_fd=store.root_fd, follow_symlinks=False)
    on_disk = status.st_blocks * 512
    try:
        _check_kind(status)
        with Source(store, path, wait=False) as source, _unless_moved(source):
            facts, overlay_times = _facts_to_read(marks, source)
            _check_kind(source.status)  # it may have got a second name by now
            if source.status.st_ino == known_hot_inode:
                facts = Facts(State.HOT, source.status.st_size, facts.inode)
            marks.require_frozen_or_hot(facts, path)
            percent = wanted_percent(store)
            if facts.state is State.FROZEN:
                if percent is not None and not marks.parities.of(source.fd):
                    give_parity(marks, source.fd, percent)
                    raise _Unfit("frozen already, and now with parity")
                raise _Unfit("frozen already")
            on_disk += facts.overlay_blocks * 512
            if not facts.size:
                raise _Unfit("empty")
            if not even_if_larger and on_disk <= status.st_blksize:
                raise _Unfit("takes one block already")
            with Replacement(source, marks, facts.inode) as new:
                with open_content(marks, source, facts) as (pread, is_sparse):
                    if is_sparse:
                        raise _Unfit("sparse")
                    with working(Urgency(Priority.BACKGROUND)):
                        digest = _encode(source, pread, new.fd, chooser, chunk_size, progress)
                if model is not None and _uses_model(new, marks):
                    pin(store, model)
                own = {FROZEN_MARK: frozen_mark(store.id, facts.size)}
                new.describe(own if store.xattr_marks else {})
                new.sync()
                status = os.fstat(new.fd)
                after = status.st_blocks * 512
                after += marks.parities.planned_bytes(status.st_size, percent)
                if after >= on_disk and not even_if_larger:
                    raise _Unfit("would not take fewer blocks")
                _verify_frozen(marks, path, new, digest, primers or Primers(store))
                with marks.parities.kept(new.fd, percent):
                    moved = functools.partial(_was_written_to, marks, source, facts, overlay_times)
                    _publish_alone(marks, source, facts, new, moved)
                if facts.state is not State.HOT:
                    marks.parities.drop(source.fd)
        return Outcome(path, Action.FROZEN, status.st_size, on_disk, after)
    except _Unfit as unfit:
        reason = str(unfit)
    except BusyError as busy:
        reason = f"in use ({busy.got})"
    return Outcome(path, Action.SKIPPED, status.st_size, on_disk, on_disk, reason)


def thaw(
    marks: Marks,
    path: str,
    *,
    keep_bytes: int | None = None,
    wait: bool = True,
    progress: Progress | None = None,
) -> Outcome:
    """Make a frozen file a plain one again, with what was written to it since.

    keep_bytes: cut it to this size on the way; 0 decodes nothing and works on damaged files too
    wait: for another who freezes or thaws it right now
    raises: DamagedError, UnknownModelError, OSError; BusyError also if somebody has it open for
    writing, or began to write while it was read; then the file is unchanged
    """
    store = marks.store
    status = os.stat(path, dir_fd=store.root_fd, follow_symlinks=False)
    on_disk = status.st_blocks * 512
    if not stat.S_ISREG(status.st_mode):
        reason = "not a regular file"
        return Outcome(path, Action.SKIPPED, status.st_size, on_disk, on_disk, reason)
    with Source(store, path, wait=wait) as source, _unless_moved(source):
        facts, overlay_times = _facts_to_read(marks, source)
        on_disk += facts.overlay_blocks * 512
        if keep_bytes != 0:
            marks.require_frozen_or_hot(facts, path)
        if facts.state is State.HOT:
            return Outcome(path, Action.SKIPPED, facts.size, on_disk, on_disk, "not frozen")
        size = facts.size if keep_bytes is None else min(keep_bytes, facts.size)
        with Replacement(source, marks, facts.inode) as new:
            digest = write_content(marks, source, facts, new.fd, size, progress)
            is_own_like = store.xattr_marks and looks_frozen(new.fd)
            new.describe({PLAIN_MARK: b"1"} if is_own_like else {})
            if keep_bytes is not None:
                os.utime(new.fd)  # cutting is writing
            new.sync()
            _verify_thawed(marks, path, new, digest)
            written = os.fstat(new.fd)
            moved = functools.partial(_was_written_to, marks, source, facts, overlay_times)
            with marks.overlays.commit():
                new.publish(None, moved, facts.overlay)
            marks.parities.drop(source.fd)
    inodes = source.status.st_ino, written.st_ino
    return Outcome(path, Action.THAWED, size, on_disk, written.st_blocks * 512, inodes=inodes)


def give_parity(marks: Marks, fd: int, percent: int) -> None:
    """Give an open frozen file parity, after all of it was decoded.

    raises: DamagedError, UnknownModelError, VerifyError, OSError
    """
    with (
        open_frozen(fd, marks, heal=False) as reader,
        working(Urgency(Priority.BACKGROUND)),
    ):
        reader.verify()
    with marks.parities.kept(fd, percent):
        pass


def _check_kind(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _Unfit("not a regular file")
    if status.st_nlink > 1:
        raise _Unfit(f"has {status.st_nlink} hard links")
    if not status.st_size:
        raise _Unfit("empty")


def _facts_to_read(marks: Marks, source: Source) -> tuple[Facts, _Times | None]:
    """The facts of the source, whose times tell from now on whether it is written to.

    So do those of its overlay, if it has one: they are the second.
    """
    deadline = time.monotonic() + _QUIET_S
    while True:
        facts = marks.facts_of_fd(source.fd)
        if facts.state is State.FROZEN:
            return facts, None  # an overlay will tell
        overlay_times = _overlay_times(marks, facts)
        latest = max(source.status.st_ctime_ns, overlay_times[-1] if overlay_times else 0)
        if abs(time.time_ns() - latest) >= clock_tick_ns(latest):
            return facts, overlay_times
        if time.monotonic() > deadline:
            raise BusyError(
                "file is in use",
                where=source.store.shown_path(source.path),
                got="somebody who writes to it all the time",
                do="try again later",
            )
        # Written to again in this tick of its filesystem's clock it would show the same times.
        time.sleep(_SHORT_S)
        source.status = os.fstat(source.fd)


def _overlay_times(marks: Marks, facts: Facts) -> _Times | None:
    """The size of a patched file's overlay, and when it was changed; None for any other."""
    if facts.overlay is None:
        return None
    try:
        status = marks.overlays.stat(facts.overlay)
    except FileNotFoundError:  # the facts say so as well, or will
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextlib.contextmanager
def _unless_moved(source: Source) -> Iterator[None]:
    """With its name a patched file loses its overlay; who removes it holds no lock on it."""
    try:
        yield
    except DamagedError as error:
        if not source.has_moved():
            raise
        raise BusyError(
            "file is in use",
            where=source.store.shown_path(source.path),
            got="somebody who removes or replaces it",
        ) from error


def _was_written_to(
    marks: Marks, source: Source, facts: Facts, overlay_times: _Times | None
) -> bool:
    """True if a source is no longer what was read; if it is frozen it stays so under the commit
    lock, for which its overlay is looked at as well: a write may not have set the source's times.
    """
    if facts.state is State.HOT:
        return source.has_changed()
    if source.has_moved() or has_writers(source.fd):
        return True
    if facts.overlay is None:
        return marks.facts_of_fd(source.fd).overlay is not None
    return source.has_changed() or _overlay_times(marks, facts) != overlay_times


def _encode(
    source: Source,
    pread: Pread,
    target: int,
    chooser: Chooser,
    chunk_size: int,
    progress: Progress | None,
) -> bytes:
    """Write the frozen form; the digest of what was read."""
    hasher = blake3.blake3()
    with (
        open(os.dup(target), "wb") as file,
        LmzWriter(
            file,
            chunk_size=chunk_size,
            chooser=chooser,
            store_id=source.store.id,
            progress=progress,
        ) as writer,
    ):
        for block in blocks(pread):
            hasher.update(block)
            writer.write(block)
    return hasher.digest()


@contextlib.contextmanager
def _read_back(new: Replacement, marks: Marks) -> Iterator[LmzReader]:
    """A reader of its own, with a cache of its own, of what is on the disk."""
    fd = new.reopen()
    try:
        reader = open_frozen(fd, marks, heal=False)
    finally:
        os.close(fd)
    with reader:
        yield reader


def _uses_model(new: Replacement, marks: Marks) -> bool:
    with _read_back(new, marks) as reader:
        return any(c.model_id is not None for m in reader.members for c in m.codings)


def _verify_frozen(
    marks: Marks, path: str, new: Replacement, digest: bytes, primers: Primers
) -> None:
    try:
        with _read_back(new, marks) as reader:
            with working(Urgency(Priority.BACKGROUND)):
                reader.verify()
            (member,) = reader.members
            # The state was perhaps at hand: what counts is that the disk has the text.
            for shared_id in {c.shared_id for c in member.codings if c.shared_id is not None}:
                primers.prove(shared_id)
    except LmfsError as error:
        raise VerifyError(
            "the frozen form cannot be read back",
            where=marks.store.shown_path(path),
            got=error,
            do="report this; the file was left as it is",
        ) from error
    _compare(marks, path, member.content_hash, digest)


def _verify_thawed(marks: Marks, path: str, new: Replacement, digest: bytes) -> None:
    fd = new.reopen()
    try:
        got = digest_of(fd)
    finally:
        os.close(fd)
    _compare(marks, path, got, digest)


def _compare(marks: Marks, path: str, got: bytes, expected: bytes) -> None:
    if got != expected:
        raise VerifyError(
            "what was written is not what was read",
            where=marks.store.shown_path(path),
            expected=f"content {expected.hex()[:16]}",
            got=got.hex()[:16],
            do="check the disk; the file was left as it is",
        )
    reached("verified")


def _publish_alone(
    marks: Marks, source: Source, facts: Facts, new: Replacement, moved: Callable[[], bool]
) -> None:
    """Publish under a lease, so that nobody has the source open while it is replaced.

    And under the commit lock, so that nobody writes to what replaced it before that is certain.
    """
    for attempt in range(_LEASE_ATTEMPTS):
        if attempt:
            # A mount opens files for microseconds to see what they are: that is no use.
            time.sleep(_LEASE_PAUSE_S)
        # The lock before the lease: who holds it may be opening the file, and waits for that.
        with marks.overlays.commit():
            try:
                lease = Lease(source.fd)
            except BlockingIOError:
                continue
            with lease:
                new.publish(lease, moved, facts.overlay)
                return
    raise BusyError(
        "file is in use",
        where=source.store.shown_path(source.path),
        got="somebody has it open",
        do="try again later",
    )
