"""Copying one file out of a store: to a plain file that needs nothing of the store any more.

Owns: how the copy gets its name, which is last: a crash leaves no half a copy under it. What is
shown of a file, and how it is decoded, is `freeze`'s. Any thread, any number of processes may copy.
"""

from __future__ import annotations

import contextlib
import os
import tempfile

from ..errors import UsageError, VerifyError
from .freeze import Action, Outcome, Progress, digest_of, write_content
from .marks import Marks
from .publish import Source, copy_metadata
from .system import RENAME_NOREPLACE, UNSUPPORTED, rename


def copy_out(marks: Marks, path: str, target: str, *, progress: Progress | None = None) -> Outcome:
    """Copy a file of the store, frozen or not, with what was written to it since.

    target: in an existing directory, outside of the store; mode, times, xattrs and, for root, the
        owner are those of the file. It is read back before it gets this name.
    raises: UsageError if there is something of that name; DamagedError, UnknownModelError,
        BusyError, VerifyError, OSError: then there is no copy
    """
    if os.path.lexists(target):
        raise _exists(target)
    directory, name = os.path.split(os.path.abspath(target))
    with Source(marks.store, path, wait=True) as source:
        facts = marks.facts_of_fd(source.fd)
        marks.require_frozen_or_hot(facts, path)
        fd, temporary = tempfile.mkstemp(prefix=f".{name[:100]}.", dir=directory)
        try:
            digest = write_content(marks, source, facts, fd, facts.size, progress)
            copy_metadata(source.fd, fd, owner=os.geteuid() == 0)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if digest_of(fd) != digest:
                raise VerifyError(
                    "what was written is not what was read",
                    where=target,
                    do="check the disk; there is no copy",
                )
            _give_name(temporary, target)
            written = os.fstat(fd)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        finally:
            os.close(fd)
        before = source.status.st_blocks + facts.overlay_blocks
    _sync(directory)
    return Outcome(path, Action.COPIED, facts.size, before * 512, written.st_blocks * 512)


def _give_name(temporary: str, target: str) -> None:
    """If nothing has it meanwhile."""
    try:
        rename(temporary, target, flags=RENAME_NOREPLACE)
    except FileExistsError:
        raise _exists(target) from None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        os.link(temporary, target)
        os.unlink(temporary)


def _exists(target: str) -> UsageError:
    return UsageError("file exists", where=target, do="name another one, nothing is overwritten")


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
