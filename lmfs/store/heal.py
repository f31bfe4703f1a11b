"""Healing a frozen file in its place.

Owns: what is proved before a healed file takes the name of a damaged one, and that the damaged one
is kept. Imports `freeze`, `publish` and lower. Any thread may call it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import NamedTuple

from ..codecs.threads import Priority, Urgency, working
from ..errors import DamagedError, LmfsError, VerifyError
from .content import open_frozen
from .healed import HealedSource
from .inodes import KEPT_MARK
from .marks import FROZEN_MARK, Marks, frozen_mark, patched_by, read_ends
from .overlays import has_writers
from .parity import digest_of
from .publish import Replacement, Source, reached


class Verdict(NamedTuple):
    """What the parity of this name says of a damaged file; blocks are of 512 bytes."""

    parity: str
    damaged_blocks: int
    can_be_healed: bool


def judge(marks: Marks, fd: int) -> Verdict | None:
    """Whether an open damaged file can be healed, tried in memory; None if it has no parity.

    raises: OSError
    """
    found = _healed(marks, fd)
    if found is None:
        return None
    with contextlib.closing(found[1]) as healed:
        return Verdict(found[0], healed.damaged_blocks(), healed.heal(len))


def heal(marks: Marks, path: str, put_aside: Callable[[], Callable[[], None]]) -> bool:
    """Put a healed file in the place of a damaged one; False if it has no parity.

    put_aside: gives the damaged file a second name, and returns how that is undone
    The healed file is written beside it, synced, read back and decoded, all of it, before that.
    raises: DamagedError if more is damaged than can be healed, BusyError if somebody writes to it,
    VerifyError, OSError; then the file is as it was
    """
    take_back = put_aside()
    try:
        with Source(marks.store, path, wait=True) as source:
            found = _healed(marks, source.fd)
            if found is None:
                take_back()
                return False
            name, healed = found
            with contextlib.closing(healed):
                _replace(marks, source, healed, name)
    except BaseException:
        take_back()
        raise
    return True


def _healed(marks: Marks, fd: int) -> tuple[str, HealedSource] | None:
    size = os.fstat(fd).st_size
    return marks.parities.healed(
        lambda size, offset: os.pread(fd, size, offset), size, thorough=True
    )


def _replace(marks: Marks, source: Source, healed: HealedSource, name: str) -> None:
    path = source.store.shown_path(source.path)
    with Replacement(source, marks, _shown_inode(marks, source)) as new:
        with open(os.dup(new.fd), "wb") as file:
            if not healed.heal(file.write):
                raise DamagedError(
                    "more is damaged than the parity heals",
                    where=path,
                    do="restore it from a backup, or `lmfs recover` what is whole of it",
                )
        new.describe(_marks_of(marks, source, new))
        new.sync()
        _verify(marks, path, new, healed)
        with marks.overlays.commit():
            new.publish(None, lambda: source.has_changed() or has_writers(source.fd))
        # What healed it may be the parity of another file of the same bytes, and stays that one's.
        stem, _, _ = name.rpartition("-")
        marks.parities.follow(f"{stem}-{source.status.st_ino:x}", new.fd)


def _shown_inode(marks: Marks, source: Source) -> int:
    try:
        return marks.facts_of_fd(source.fd).inode
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    kept = None  # an end of it cannot be read
    with contextlib.suppress(OSError):
        kept = os.getxattr(source.fd, KEPT_MARK)
    return marks.inodes.shown(source.status.st_ino, kept)


def _marks_of(marks: Marks, source: Source, new: Replacement) -> dict[str, bytes]:
    """The xattr that the healed file has: the damaged one's, if that names an overlay."""
    _, trailer = read_ends(new.fd, os.fstat(new.fd).st_size)
    if trailer is None or not marks.store.xattr_marks:
        return {}
    mark = frozen_mark(marks.store.id, trailer.size)
    with contextlib.suppress(OSError):
        own = os.getxattr(source.fd, FROZEN_MARK)
        if patched_by(marks.store.id, own) is not None and own[8:] == mark[8:]:
            mark = own
    return {FROZEN_MARK: mark}


def _verify(marks: Marks, path: str, new: Replacement, healed: HealedSource) -> None:
    fd = new.reopen()
    try:
        size = os.fstat(fd).st_size
        if digest_of(lambda count, offset: os.pread(fd, count, offset), size) == healed.digest:
            with (
                open_frozen(fd, marks, heal=False) as reader,
                working(Urgency(Priority.BACKGROUND)),
            ):
                reader.verify()
            reached("verified")
            return
        got: object = "other bytes than were written"
    except LmfsError as error:
        got = error
    finally:
        os.close(fd)
    raise VerifyError(
        "the healed file cannot be read back",
        where=path,
        got=got,
        do="check the disk; the damaged file was left as it is",
    )
