"""`mount.lmfs`: what mount(8) runs for `mount -t lmfs STORE MOUNTPOINT` and for /etc/fstab.

Owns: mount(8)'s way of calling a helper, and the exit codes that it wants. One thread.
"""

from __future__ import annotations

import getopt
import sys

import typer

from ..errors import LmfsError, UsageError
from . import message
from .mount import mount, parse_options

_USAGE, _FAILED = 1, 32
_HELP = "usage: mount.lmfs STORE|FILE.lmz MOUNTPOINT [-fnsv] [-o OPTIONS]; see `lmfs mount --help`"


def main() -> None:
    """The console script `mount.lmfs`."""
    try:
        flags, places = getopt.gnu_getopt(sys.argv[1:], "fhnsvo:t:", ["help"])
    except getopt.GetoptError as error:
        _refuse(str(error), _USAGE)
    if any(flag in ("-h", "--help") for flag, _ in flags):
        print(_HELP)
        return
    if len(places) != 2:
        _refuse(_HELP, _USAGE)
    names = [flag for flag, _ in flags]
    try:
        given = ",".join(value for flag, value in flags if flag == "-o")
        settings = parse_options(given, sloppy="-s" in names)
        if "-f" not in names:
            mount(places[0], places[1], settings)
    except UsageError as error:
        _refuse(message(error), _USAGE)
    except (LmfsError, OSError) as error:
        _refuse(message(error), _FAILED)
    except typer.Exit as error:  # told already, by the process that tried
        sys.exit(_FAILED if error.exit_code else 0)


def _refuse(text: str, code: int) -> None:
    print(f"mount.lmfs: {text}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
