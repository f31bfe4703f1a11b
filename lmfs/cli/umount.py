"""`lmfs umount`."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Annotated

import typer

from ..errors import BusyError, MountError
from ..store.control import Control, Mount, mounts

app = typer.Typer()

_PATIENCE_S = 60.0


@app.command(name="umount")
def command(
    mountpoint: Annotated[str, typer.Argument(help="Where it is mounted.")],
    lazy: Annotated[
        bool, typer.Option("-l", "--lazy", help="Vanish now, end when nobody uses it any more.")
    ] = False,
) -> None:
    """Unmount, and return when everything is on the disk."""
    mount = _find(mountpoint)
    try:
        control = Control(mount)
    except MountError:  # its process is dead, or another user's: then there is nothing to wait for
        _unmount(mount, lazy)
        return
    with control:
        _unmount(mount, lazy)
        if not lazy and not control.wait_for_end(_PATIENCE_S):
            raise BusyError(
                "unmounted, but its process still works",
                where=mountpoint,
                do="wait before you move the backing directory",
            )


def _find(mountpoint: str) -> Mount:
    # A mount whose process died cannot be looked at; its parent can.
    head, name = os.path.split(os.path.abspath(mountpoint))
    path = os.path.join(os.path.realpath(head), name)
    for mount in reversed(mounts()):
        if mount.mountpoint == path or mount.mountpoint == os.path.abspath(mountpoint):
            if mount.is_lmfs:
                return mount
            break
    raise MountError(
        "not an lmfs mount",
        where=mountpoint,
        do="`findmnt -t fuse.lmfs` lists those that there are",
    )


def _unmount(mount: Mount, lazy: bool) -> None:
    program = shutil.which("fusermount3") or shutil.which("umount")
    if program is None:
        raise MountError("fusermount3 is not installed", do="install it: `apt install fuse3`")
    flags = ["-u"] if program.endswith("fusermount3") else []
    if lazy:
        flags.append("-z" if flags else "-l")
    done = subprocess.run(
        [program, *flags, mount.mountpoint], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BusyError(
            "cannot unmount",
            where=mount.mountpoint,
            got=done.stderr.strip() or f"status {done.returncode}",
            do="see who uses it: `fuser -m`; or unmount it with --lazy",
        )
