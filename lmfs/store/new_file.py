"""A new file that gets its name last: whole and on the disk, or not at all.

Owns: the temporary beside it, and that nothing is overwritten unasked. Imports `system`, and that
only where there are no links: a filter starts often. An object belongs to one thread.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import BinaryIO

_MAX_NAME_BYTES = 200  # of the temporary's 255


class NewFile:
    """Write to `file`, in a `with`: at its end the file gets its name, after an error none has it.

    Nobody but its owner may read it, unless who writes gives it another mode.
    """

    def __init__(self, target: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """raises: OSError"""
        self._target = os.path.abspath(target)
        self._overwrite = overwrite
        self._directory, name = os.path.split(self._target)
        short = os.fsdecode(os.fsencode(name)[:_MAX_NAME_BYTES])
        self._temporary = os.path.join(self._directory, f".{short}.{time.time_ns():x}.tmp")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.file: BinaryIO = os.fdopen(os.open(self._temporary, flags, 0o600), "wb")

    def fileno(self) -> int:
        """The descriptor of `file`, for reading and writing."""
        return self.file.fileno()

    def reopen(self) -> BinaryIO:
        """What has been written, read back from the disk; the caller closes it."""
        self._sync()
        os.posix_fadvise(self.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return open(self._temporary, "rb")

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """raises: FileExistsError if the name is taken, and is not to be; OSError"""
        try:
            if kind is None:
                self._sync()
                self._give_name()
        finally:
            # Closing writes what is buffered, and fails again where writing failed.
            try:
                self.file.close()
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._temporary)
        if kind is None:
            _sync_directory(self._directory)

    def _sync(self) -> None:
        self.file.flush()
        os.fsync(self.fileno())

    def _give_name(self) -> None:
        if self._overwrite:
            os.replace(self._temporary, self._target)
            return
        try:
            # Unlike a rename, it fails if the name has been taken since somebody looked.
            os.link(self._temporary, self._target)
        except FileExistsError:
            raise
        except OSError:
            self._rename_without_links()

    def _rename_without_links(self) -> None:
        from .system import RENAME_NOREPLACE, UNSUPPORTED, rename

        try:
            rename(self._temporary, self._target, flags=RENAME_NOREPLACE)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            # It cannot do that either: the name is taken first, by an empty file of our own.
            os.close(os.open(self._target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            os.replace(self._temporary, self._target)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
