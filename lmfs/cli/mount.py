"""`lmfs mount`."""

from __future__ import annotations

import json
import os
import stat
import sys
from typing import Annotated, Any

import typer

from ..codecs.threads import MAX_THREADS, limit_threads, thread_count
from ..errors import LmfsError, MountError, UsageError
from ..store.control import mount_of
from ..store.store import Store
from . import exit_code, message
from .logs import start_logging

app = typer.Typer()

# Passed on to libfuse and the kernel, which know them.
_PASSED = (
    *("allow_other", "allow_root", "noatime", "nodiratime", "relatime", "sync", "dirsync"),
    *("nosuid", "suid", "nodev", "dev", "noexec", "exec"),
)
# What /etc/fstab may say to mount(8), and what is so anyway.
_IGNORED = (
    *("rw", "defaults", "default_permissions", "auto", "noauto", "user", "users", "nouser"),
    *("nofail", "_netdev", "async", "atime", "diratime"),
)
_NUMBERS = {"cachesize": range(1 << 20), "threads": range(1, MAX_THREADS + 1)}


@app.command(name="mount")
def command(
    backing: Annotated[str, typer.Argument(help="The directory whose files are stored.")],
    mountpoint: Annotated[
        str | None, typer.Argument(help="Where it is shown; by default over itself.")
    ] = None,
    foreground: Annotated[
        bool, typer.Option("-f", "--foreground", help="Stay; ^C unmounts.")
    ] = False,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            help="ro, allow_other, cachesize=MB, threads=N, logfile=PATH, logformat=json, "
            "noexec, ..., as mount(8) has it.",
        ),
    ] = None,
    cache_mb: Annotated[
        int | None, typer.Option(help="Memory for decoded chunks, in MB. [default: 64]")
    ] = None,
) -> None:
    """Show a directory with its frozen files as if they were plain.

    The directory becomes a store (it gets a hidden .lmfs/); its files stay where and as they are.
    Without a mountpoint it is mounted over itself, so that every path stays the same. Returns
    when the mount answers.
    """
    given = ",".join(options or [])
    if cache_mb is not None:
        given += f",cachesize={cache_mb}"
    settings = parse_options(given)
    backing = os.path.realpath(backing)
    target = backing if mountpoint is None else os.path.realpath(mountpoint)
    _check(backing, target)
    store = Store.create(backing) if "ro" not in settings else Store.open(backing)
    if foreground:
        start_logging(settings, background=False)
        _serve(store, target, settings, lambda: print(f"lmfs: mounted on {target}", flush=True))
    else:
        _serve_in_background(store, target, settings)


def parse_options(text: str) -> dict[str, str | bool]:
    """The options of a mount: lmfs's own (cachesize in MB), and those that are passed on.

    raises: UsageError
    """
    settings: dict[str, str | bool] = {}
    for option in text.split(","):
        name, _, value = option.partition("=")
        if not name or option in _IGNORED or name.startswith("x-"):
            continue
        if option in _PASSED or option == "ro":
            settings[name] = True
        elif name in _NUMBERS and value.isdecimal() and int(value) in _NUMBERS[name]:
            settings[name] = value
        elif name == "logfile" and value:
            settings[name] = os.path.abspath(value)
        elif option in ("logformat=plain", "logformat=json"):
            settings[name] = value
        else:
            raise UsageError(
                "mount option",
                expected=f"ro, cachesize=MB, threads=1 to {MAX_THREADS}, logfile=PATH, "
                f"logformat=plain|json, {', '.join(_PASSED)}",
                got=option,
            )
    return settings


def _check(backing: str, target: str) -> None:
    for what, path in (("backing directory", backing), ("mountpoint", target)):
        _check_directory(what, path)
    mount = mount_of(target)
    if mount is not None and mount.is_lmfs:
        if mount.mountpoint == target:
            raise MountError(
                "something is mounted here already", where=target, do=f"`lmfs umount {target}`"
            )
        raise MountError("a mount inside an lmfs mount", where=target, do="mount it elsewhere")
    inner = mount_of(backing)
    if inner is not None and inner.is_lmfs:
        raise MountError(
            "the backing directory is an lmfs mount itself",
            where=backing,
            expected="the directory behind it",
        )
    if target != backing:
        if target.startswith(backing.rstrip("/") + "/"):
            raise UsageError(
                "the mountpoint lies inside the backing directory",
                where=target,
                do="mount it elsewhere, or over itself",
            )
        if os.listdir(target):
            raise MountError(
                "the mountpoint is not empty",
                where=target,
                do="choose an empty directory: what is in it would be hidden",
            )
    if not os.path.exists("/dev/fuse"):
        raise MountError(
            "no FUSE on this machine",
            where="/dev/fuse",
            do="`modprobe fuse`; in a container: --device /dev/fuse --cap-add SYS_ADMIN",
        )


def _check_directory(what: str, path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise MountError(f"{what} does not exist", where=path, do=f"`mkdir -p {path}`") from None
    if not stat.S_ISDIR(mode):
        raise MountError(f"{what} is not a directory", where=path)


def _serve(store: Store, target: str, settings: dict[str, str | bool], on_ready: Any) -> None:
    # Loads libfuse, numpy and more, some of which start threads: never before the fork.
    from ..fuse import MountOptions, serve

    extra = dict(settings)
    read_only = bool(extra.pop("ro", False))
    size = extra.pop("cachesize", None)
    extra.pop("logfile", None)
    extra.pop("logformat", None)
    if "threads" in extra:
        limit_threads(int(extra.pop("threads")))
    thread_count()  # nonsense in the environment is refused now, not at the first read
    if size is None:
        options = MountOptions(read_only=read_only, extra=extra)
    else:
        options = MountOptions(read_only=read_only, cache_bytes=int(size) << 20, extra=extra)
    # Modes are the kernel's to mask, with the umask of who makes a file.
    os.umask(0)
    serve(store, target, options, on_ready)


def _serve_in_background(store: Store, target: str, settings: dict[str, str | bool]) -> None:
    """Fork; return when the mount answers, raise what the child raised."""
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.close(ours)
        os._exit(_be_child(store, target, settings, theirs))
    os.close(theirs)
    store.close()
    with open(ours, "rb") as pipe:
        answer = pipe.read()
    if answer == b"ready":
        return
    if not answer:
        raise MountError("the mount's process died", where=target, do="mount it with -f to see why")
    failed = json.loads(answer)
    print(f"lmfs: {failed['message']}", file=sys.stderr)
    raise typer.Exit(failed["exit_code"])


def _be_child(store: Store, target: str, settings: dict[str, str | bool], pipe: int) -> int:
    answered = False

    def on_ready() -> None:
        nonlocal answered
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nothing, fd)
        os.close(nothing)
        start_logging(settings, background=True)
        answered = True
        os.write(pipe, b"ready")
        os.close(pipe)

    os.setsid()
    try:
        _serve(store, target, settings, on_ready)
    except (LmfsError, OSError) as error:
        if not answered:
            said = {"message": message(error), "exit_code": exit_code(error)}
            os.write(pipe, json.dumps(said).encode())
        return exit_code(error)
    return 0
