"""`lmfs ctl`."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from ..errors import MountError
from ..store.control import Control, mount_of

app = typer.Typer(no_args_is_help=True, help="Talk to the process that serves a mount.")

_Mountpoint = Annotated[str, typer.Argument(help="Where it is mounted, or a path below.")]


@app.command(name="stats")
def stats(mountpoint: _Mountpoint) -> None:
    """Print what the mount has done so far, as JSON; sizes in bytes.

    SIGUSR1 to the process writes the same to its log.
    """
    with _control(mountpoint) as control:
        print(json.dumps(control.ask("stats"), indent=1))


@app.command(name="drop-caches")
def drop_caches(mountpoint: _Mountpoint) -> None:
    """Forget decoded chunks and computed states; the kernel keeps the pages that it has."""
    with _control(mountpoint) as control:
        control.ask("drop-caches")


@app.command(name="pause")
def pause(mountpoint: _Mountpoint) -> None:
    """Have `lmfs freeze`, wherever it runs on this store, wait before it begins the next file.

    Until `resume`, or until the mount ends.
    """
    with _control(mountpoint) as control:
        control.ask("pause")


@app.command(name="resume")
def resume(mountpoint: _Mountpoint) -> None:
    """Let freezing go on."""
    with _control(mountpoint) as control:
        control.ask("resume")


@app.command(name="thaw")
def thaw(file: Annotated[str, typer.Argument(help="A frozen file in a mount.")]) -> None:
    """Have the mount make a file plain; whoever reads it reads on. Waits until it is done."""
    path = os.path.realpath(file)
    with _control(file) as control:
        inner = control.mount.inner.strip("/")
        below = os.path.relpath(path, control.mount.mountpoint)
        control.ask("thaw", path=os.path.normpath(os.path.join(inner, below)))


@app.command(name="log-level")
def log_level(
    mountpoint: _Mountpoint,
    level: Annotated[str, typer.Argument(help="debug, info, warning (at first) or error.")],
) -> None:
    """Log more, or less, from now on."""
    with _control(mountpoint) as control:
        control.ask("log-level", level=level)


def _control(path: str) -> Control:
    mount = mount_of(os.path.realpath(path))
    if mount is None or not mount.is_lmfs:
        raise MountError(
            "not in an lmfs mount",
            where=path,
            do="`findmnt -t fuse.lmfs` lists those that there are",
        )
    return Control(mount)
