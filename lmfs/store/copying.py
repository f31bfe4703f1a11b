"""Copying one file out of a store: to a plain file that needs nothing of the store any more.

Owns: what a copy is. What is shown of a file, and how it is decoded, is `content`'s. Any
thread, and any number of processes, may copy.
"""

from __future__ import annotations

import os

from ..errors import UsageError, VerifyError
from .content import Progress, digest_of, write_content
from .freeze import Action, Outcome
from .marks import Marks
from .new_file import NewFile
from .publish import Source, copy_metadata


def copy_out(marks: Marks, path: str, target: str, *, progress: Progress | None = None) -> Outcome:
    """Copy a file of the store, frozen or not, with what was written to it since.

    target: in an existing directory, outside of the store; mode, times, xattrs and, for root, the
        owner are those of the file. It is read back before it gets this name.
    raises: UsageError if there is something of that name; DamagedError, UnknownModelError,
        BusyError, VerifyError, OSError: then there is no copy
    """
    if os.path.lexists(target):
        raise _exists(target)
    with Source(marks.store, path, wait=True) as source:
        facts = marks.facts_of_fd(source.fd)
        marks.require_frozen_or_hot(facts, path)
        try:
            with NewFile(target) as new:
                digest = write_content(marks, source, facts, new.fileno(), facts.size, progress)
                copy_metadata(source.fd, new.fileno(), owner=os.geteuid() == 0)
                with new.reopen() as written:
                    if digest_of(written.fileno()) != digest:
                        raise VerifyError(
                            "what was written is not what was read",
                            where=target,
                            do="check the disk; there is no copy",
                        )
                after = os.fstat(new.fileno()).st_blocks
        except FileExistsError:
            raise _exists(target) from None
        before = source.status.st_blocks + facts.overlay_blocks
    return Outcome(path, Action.COPIED, facts.size, before * 512, after * 512)


def _exists(target: str) -> UsageError:
    return UsageError("file exists", where=target, do="name another one, nothing is overwritten")
