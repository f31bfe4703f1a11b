"""The error tree: what can go wrong, the errno a mount answers, the exit code a command gives.

    LmfsError                 1   anything a caller of lmfs can meet
    +- UsageError             2   an argument makes no sense
    +- FormatError            3   not an .lmz, or not a store
    +- VersionError           4   written by a newer lmfs
    +- DamagedError           5   bytes that do not match their checksums, or end too early
    +- UnknownModelError      6   the model that a file needs is not here
    +- ModelError             7   a model package that is not what it says, or not exact
    +- EngineError            8   nothing here can run the model
    +- StoreError             9   a store cannot do what was asked
    +- BusyError             10   somebody else has the file or the store open
    +- VerifyError           11   what was written did not decode to what was read
    +- MountError            12   FUSE cannot mount or unmount

Owns: these classes, their errno and exit codes (both unique). Imports nothing of lmfs.
An OSError from the operating system (disk full, no permission) is not wrapped.
"""

from __future__ import annotations

import errno


class LmfsError(Exception):
    """Anything a caller of lmfs can meet; shown as `what: where: expected X, got Y; do Z`."""

    errno = errno.EREMOTEIO
    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        got: object = None,
        do: str | None = None,
    ) -> None:
        self.what, self.where, self.expected, self.got, self.do = what, where, expected, got, do
        message = what if where is None else f"{what}: {where}"
        parts = []
        if expected is not None:
            parts.append(f"expected {expected}")
        if got is not None:
            parts.append(f"got {got}")
        if parts:
            message += ": " + ", ".join(parts)
        if do is not None:
            message += f"; {do}"
        super().__init__(message)


class UsageError(LmfsError):
    """An argument makes no sense."""

    errno, exit_code = errno.EINVAL, 2


class FormatError(LmfsError):
    """Not an .lmz, or not a store."""

    errno, exit_code = errno.EMEDIUMTYPE, 3


class VersionError(LmfsError):
    """Written by a newer lmfs, or with a critical section that this one does not know."""

    errno, exit_code = errno.EPROTONOSUPPORT, 4


class DamagedError(LmfsError):
    """Bytes that do not match their checksums, or that end too early."""

    errno, exit_code = errno.EIO, 5


class UnknownModelError(LmfsError):
    """The model that a file needs is not here."""

    errno, exit_code = errno.ENOPKG, 6


class ModelError(LmfsError):
    """A model package that is not what it says, or that is not exact."""

    errno, exit_code = errno.ELIBBAD, 7


class EngineError(LmfsError):
    """Nothing here can run the model."""

    errno, exit_code = errno.ELIBACC, 8


class StoreError(LmfsError):
    """A store cannot do what was asked."""

    errno, exit_code = errno.EBADFD, 9


class BusyError(LmfsError):
    """Somebody else has the file or the store open."""

    errno, exit_code = errno.EBUSY, 10


class VerifyError(LmfsError):
    """What was written did not decode to what was read; nothing was published."""

    errno, exit_code = errno.EBADE, 11


class MountError(LmfsError):
    """FUSE cannot mount or unmount."""

    errno, exit_code = errno.ENODEV, 12
