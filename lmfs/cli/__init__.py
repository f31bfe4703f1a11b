"""The command line: where an error becomes a message and an exit code.

Owns: that one place (lmfs.errors says which code). With the modules here, the only code that
prints or exits. One thread.
"""

from __future__ import annotations

import contextlib
import os
import sys

from ..errors import LmfsError

DEBUG_VARIABLE = "LMFS_DEBUG"
_INTERRUPTED = 130
_OS_ERROR = 1
_BUG = 70


def exit_code(error: BaseException) -> int:
    """What the process answers with when this error ends it."""
    if isinstance(error, LmfsError):
        return error.exit_code
    return _OS_ERROR


def message(error: BaseException) -> str:
    """The error in one line."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename!s}: " if error.filename else ""
        return printable(f"{where}{error.strerror}")
    return printable(str(error) or type(error).__name__)


def printable(text: str) -> str:
    """Text that somebody else may have chosen, without what a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class OutputError(OSError):
    """Standard output takes no more."""


def finish_output() -> None:
    """Write what is left of standard output.

    raises: OutputError, BrokenPipeError. What is left is then dropped; else Python would try again
        on its way out, complain in its own words and exit with 120.
    """
    if sys.stdout is None:  # closed by who started this
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(error.errno, error.strerror, "standard output") from None


def _drop_output() -> None:
    with contextlib.suppress(OSError):
        finish_output()


def main() -> None:
    """The console script `lmfs`."""
    from .app import app  # typer and rich: not for `lmz`, which starts often

    try:
        try:
            app(prog_name="lmfs")
        except SystemExit:  # by which it leaves when all is well, too
            finish_output()
            raise
    except BrokenPipeError:
        _drop_output()
        sys.exit(_OS_ERROR)
    except (LmfsError, OSError) as error:
        _drop_output()
        print(f"lmfs: {message(error)}", file=sys.stderr)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            import traceback

            traceback.print_exc()
        print(
            f"lmfs: this is a bug, please report it with what {DEBUG_VARIABLE}=1 makes of it: "
            f"{error!r}",
            file=sys.stderr,
        )
        sys.exit(_BUG)
