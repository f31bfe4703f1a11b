"""`lmfs mount`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import sys
from typing import Annotated, Any

import typer

from ..codecs.threads import MAX_THREADS, limit_threads, thread_count
from ..container import MAX_CHUNK_SIZE
from ..errors import LmfsError, MountError, UsageError
from ..lmz.ahead import MAX_AHEAD, limit_ahead
from ..store.control import mount_of
from ..store.freezing import LEVEL_NUMBERS, Wishes, model_called
from ..store.store import Store
from . import exit_code, finish_output, message
from .logs import start_logging
from .progress import ByteProgress

app = typer.Typer()

# Passed on to libfuse and the kernel, which know them.
_PASSED = (
    *("allow_other", "allow_root", "auto_unmount", "noatime", "nodiratime", "relatime", "sync"),
    *("dirsync", "nosuid", "suid", "nodev", "dev", "noexec", "exec"),
)
# What /etc/fstab may say to mount(8), and what is so anyway.
_IGNORED = (
    *("rw", "defaults", "default_permissions", "auto", "noauto", "user", "users", "nouser"),
    *("owner", "group", "nofail", "_netdev", "async", "atime", "diratime"),
)
_IGNORED_NAMES = ("comment", "user")  # with a value
_NUMBERS = {
    "cachesize": range(1 << 20),
    "threads": range(1, MAX_THREADS + 1),
    "readahead": range(MAX_AHEAD + 1),
    "uid": range((1 << 32) - 1),
    "gid": range((1 << 32) - 1),
    "level": LEVEL_NUMBERS,
    "chunk": range(1, MAX_CHUNK_SIZE + 1),
}
_UMASK = re.compile(r"0?[0-7]{1,3}")
# What one may look for here, and where it is.
_ELSEWHERE = {
    "remount": "unmount it and mount it again",
    "bind": "bind the mountpoint once it is mounted",
}


@app.command(name="mount")
def command(
    backing: Annotated[
        str, typer.Argument(help="The directory whose files are stored; or one .lmz, to read it.")
    ],
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
            help="ro, allow_other, auto_unmount, uid=N, gid=N, umask=OCTAL, noatime, noexec, ... "
            "as mount(8) has them; cachesize=MB, threads=N, readahead=CHUNKS (0 to 16), "
            "logfile=PATH, logformat=json; level=1 to 9, model=NAME|ID|none, chunk=BYTES, for "
            "`lmfs freeze` on this mount where it is not told otherwise.",
        ),
    ] = None,
    cache_mb: Annotated[
        int | None, typer.Option(help="Memory for decoded chunks, in MB. [default: 64]")
    ] = None,
) -> None:
    """Show a directory with its frozen files as if they were plain.

    The directory becomes a store (it gets a hidden .lmfs/); its files stay where and as they are.
    Without a mountpoint it is mounted over itself, so that every path stays the same. Returns
    when the mount answers. With auto_unmount nothing stays mounted if its process dies; without,
    the mountpoint then refuses everything, and no program takes it for an empty directory.

    An .lmz is shown as the file in it; a .tar.lmz as the tree in it, read-only.
    """
    given = ",".join(options or [])
    if cache_mb is not None:
        given += f",cachesize={cache_mb}"
    mount(backing, mountpoint, parse_options(given), foreground=foreground)


def mount(
    backing: str,
    mountpoint: str | None,
    settings: dict[str, str | bool],
    *,
    foreground: bool = False,
) -> None:
    """Mount and return when the mount answers, or in the foreground when it is unmounted.

    settings: as parse_options gives them
    raises: MountError, UsageError, whatever opening what is mounted raises, typer.Exit
    """
    backing = os.path.realpath(backing)
    target = backing if mountpoint is None else os.path.realpath(mountpoint)
    content: Store | str
    settings = dict(settings)
    wishes = _take_wishes(settings)
    if os.path.isfile(backing):
        if mountpoint is None:
            raise UsageError("no mountpoint", where=backing, do="name an empty directory")
        _check(backing, target)
        content, settings = backing, settings | {"ro": True}
    else:
        _check(backing, target)
        content = Store.create(backing) if "ro" not in settings else Store.open(backing)
        if wishes.model is not None:
            model_called(content, wishes.model)  # refused now rather than when files are frozen
    if foreground:
        start_logging(settings, background=False)
        _serve(content, target, settings, wishes, lambda: _announce(target))
    else:
        _serve_in_background(content, target, settings, wishes)


def _announce(target: str) -> None:
    """That it is mounted, to whoever listens; it is all the same if nobody does."""
    with contextlib.suppress(OSError):
        print(f"lmfs: mounted on {target}")
        finish_output()


def _take_wishes(settings: dict[str, str | bool]) -> Wishes:
    """Take what is said about freezing out of the settings."""
    numbers = {name: settings.pop(name, None) for name in ("level", "chunk")}
    model = settings.pop("model", None)
    return Wishes(
        model=None if model is None else str(model),
        **{name: None if value is None else int(value) for name, value in numbers.items()},
    )


def parse_options(text: str, *, sloppy: bool = False) -> dict[str, str | bool]:
    """The options of a mount: lmfs's own (cachesize in MB), and those that are passed on.

    sloppy: leave out what nobody knows
    raises: UsageError
    """
    settings: dict[str, str | bool] = {}
    for option in text.split(","):
        name, _, value = option.partition("=")
        if not name or option in _IGNORED or name.lower().startswith("x-"):
            continue
        if value and name in _IGNORED_NAMES:
            continue
        if option in _PASSED or option == "ro":
            settings[name] = True
        elif _is_number(name, value):
            settings[name] = value
        elif name == "logfile" and value:
            settings[name] = os.path.abspath(value)
        elif (name == "model" and value) or option in ("logformat=plain", "logformat=json"):
            settings[name] = value
        elif not sloppy:
            raise UsageError(
                "mount option",
                expected=f"ro, cachesize=MB, threads=1 to {MAX_THREADS}, readahead=0 to "
                f"{MAX_AHEAD} (chunks), uid=N, gid=N, umask=OCTAL, logfile=PATH, "
                f"logformat=plain|json, level=1 to 9, model=NAME|ID|none, chunk=1 to "
                f"{MAX_CHUNK_SIZE}, {', '.join(_PASSED)}",
                got=option,
                do=_ELSEWHERE.get(name),
            )
    return settings


def _is_number(name: str, value: str) -> bool:
    if name == "umask":
        return _UMASK.fullmatch(value) is not None
    return name in _NUMBERS and value.isdecimal() and int(value) in _NUMBERS[name]


def _check(backing: str, target: str) -> None:
    if not os.path.isfile(backing):
        _check_directory("backing directory", backing)
    _check_directory("mountpoint", target)
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


def _serve(
    content: Store | str,
    target: str,
    settings: dict[str, str | bool],
    wishes: Wishes,
    on_ready: Any,
) -> None:
    # Loads libfuse, numpy and more, some of which start threads: never before the fork.
    from ..archive import Archive
    from ..fuse import MountOptions, serve
    from ..vfs import DEFAULT_CACHE_BYTES

    extra = dict(settings)
    read_only = bool(extra.pop("ro", False))
    size = extra.pop("cachesize", None)
    extra.pop("logfile", None)
    extra.pop("logformat", None)
    if "threads" in extra:
        limit_threads(int(extra.pop("threads")))
    if "readahead" in extra:
        limit_ahead(int(extra.pop("readahead")))
    thread_count()  # nonsense in the environment is refused now, not at the first read
    cache = DEFAULT_CACHE_BYTES if size is None else int(size) << 20
    options = MountOptions(read_only=read_only, cache_bytes=cache, wishes=wishes, extra=extra)
    # Modes are the kernel's to mask, with the umask of who makes a file.
    os.umask(0)
    if isinstance(content, Store):
        serve(content, target, options, on_ready)
        return
    with ByteProgress("reading the index", 0) as progress:
        archive = Archive(content, cache_bytes=options.cache_bytes, progress=progress.reach)
    serve(archive, target, options, on_ready)


def _serve_in_background(
    content: Store | str, target: str, settings: dict[str, str | bool], wishes: Wishes
) -> None:
    """Fork; return when the mount answers, raise what the child raised."""
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.close(ours)
        os._exit(_be_child(content, target, settings, wishes, theirs))
    os.close(theirs)
    if isinstance(content, Store):
        content.close()
    with open(ours, "rb") as pipe:
        answer = pipe.read()
    if answer == b"ready":
        return
    if not answer:
        raise MountError("the mount's process died", where=target, do="mount it with -f to see why")
    failed = json.loads(answer)
    print(f"lmfs: {failed['message']}", file=sys.stderr)
    raise typer.Exit(failed["exit_code"])


def _be_child(
    content: Store | str,
    target: str,
    settings: dict[str, str | bool],
    wishes: Wishes,
    pipe: int,
) -> int:
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
        _serve(content, target, settings, wishes, on_ready)
    except (LmfsError, OSError) as error:
        if not answered:
            said = {"message": message(error), "exit_code": exit_code(error)}
            os.write(pipe, json.dumps(said).encode())
        return exit_code(error)
    return 0
