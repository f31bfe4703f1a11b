"""What POSIX and Linux promise of a filesystem's calls, as assertions about a directory.

Owns: the table, by classes named after the call they are about, and how one assertion is checked.
It says for each call what comes back (0 or an error's name) and what stat shows afterwards, for
every kind of file, for owners and strangers, in sticky and plain directories. The classes and most
of the assertions are those of the conformance suite pjdfstest (tests/README.md), without chflags
and what only FreeBSD has. One thread; needs root, for it calls as other users.

    python tests/posix_table.py DIRECTORY [CLASS...]      prints what fails, then a count a class
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import pathlib
import shutil
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

KINDS = ("regular", "dir", "fifo", "block", "char", "socket", "symlink")
NO_LINKS = KINDS[:-1]
FILES = tuple(kind for kind in KINDS if kind != "dir")
NODES = tuple(kind for kind in FILES if kind != "symlink")
OWNER, OTHER, THIRD = 65534, 65533, 65532
NAP_S = 0.02  # longer than the step of the kernel's clock of files
NAME_MAX, PATH_MAX = 255, 4096
_TYPES = {
    stat.S_IFREG: "regular",
    stat.S_IFDIR: "dir",
    stat.S_IFIFO: "fifo",
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "char",
    stat.S_IFSOCK: "socket",
    stat.S_IFLNK: "symlink",
}
_SYS_SETGROUPS, _SYS_SETRESUID, _SYS_SETRESGID = 116, 117, 119  # x86-64
if os.uname().machine == "aarch64":
    _SYS_SETGROUPS, _SYS_SETRESUID, _SYS_SETRESGID = 159, 147, 149
_libc = ctypes.CDLL(None, use_errno=True)
_BAD = ctypes.c_void_p(0xDEADC0DE)


@contextlib.contextmanager
def acting_as(uid: int | None, gids: tuple[int, ...]) -> Iterator[None]:
    """Be another user for a call; of this thread only, which the wrappers of libc cannot do."""
    if uid is None:
        yield
        return
    groups = (ctypes.c_uint * len(gids))(*gids)
    for call in (
        (_SYS_SETGROUPS, len(gids), groups),
        (_SYS_SETRESGID, -1, gids[0], -1),
        (_SYS_SETRESUID, -1, uid, -1),
    ):
        assert _libc.syscall(*call) == 0, call
    try:
        yield
    finally:
        for call in (
            (_SYS_SETRESUID, -1, 0, -1),
            (_SYS_SETRESGID, -1, 0, -1),
            (_SYS_SETGROUPS, 0, None),
        ):
            assert _libc.syscall(*call) == 0, call


class Place:
    """A directory, the working directory while it is checked, and what was found in it."""

    def __init__(self, kinds: tuple[str, ...] = FILES) -> None:
        """kinds: which of FILES to take where every pair of them is tried many times"""
        self.kinds = kinds
        self.count = 0
        self.failures: list[str] = []
        self.about = ""

    def check(self, right: object, what: str) -> None:
        self.count += 1
        if not right:
            self.failures.append(f"{self.about}: {what}")

    def expect(
        self,
        wanted: str,
        call: Callable[..., object],
        *arguments: object,
        uid: int | None = None,
        gids: tuple[int, ...] | None = None,
        umask: int = 0,
    ) -> None:
        """The call must end as `wanted` says: "0", or names of errors with | between them."""
        old = os.umask(umask)
        try:
            with acting_as(uid, gids or (uid or 0,)):
                call(*arguments)
            got = "0"
        except OSError as error:
            got = errno.errorcode[error.errno or 0]
        finally:
            os.umask(old)
        short = [a if len(str(a)) < 60 else f"{str(a)[:20]}...({len(str(a))})" for a in arguments]
        who = "" if uid is None else f" as {uid}:{gids or uid}"
        self.check(got in wanted.split("|"), f"{call.__name__}{tuple(short)}{who}: {wanted}, {got}")

    def shows(self, path: str, *, follow: bool = False, **wanted: object) -> None:
        """stat must show these: type, mode, nlink, uid, gid, size, inode, rdev."""
        try:
            status = os.stat(path, follow_symlinks=follow)
        except OSError as error:
            self.check(False, f"stat({path}): {wanted}, {error.strerror}")
            return
        shown = {
            "type": _TYPES[stat.S_IFMT(status.st_mode)],
            "mode": oct(stat.S_IMODE(status.st_mode)),
            "inode": status.st_ino,
            **{name: getattr(status, f"st_{name}") for name in ("nlink", "uid", "gid", "size")},
            "rdev": status.st_rdev,
        }
        wanted = {n: oct(v) if n == "mode" else v for n, v in wanted.items()}  # type: ignore[arg-type]
        got = {name: shown[name] for name in wanted}
        self.check(got == wanted, f"stat({path}): {wanted}, {got}")

    def absent(self, path: str) -> None:
        self.check(not os.path.lexists(path), f"{path} is there")

    @contextlib.contextmanager
    def moves(self, path: str, *times: str, to: str | None = None) -> Iterator[None]:
        """What is done inside must move these times of `path` on, and no other of mtime, ctime.

        to: where it is found afterwards
        """
        before = os.lstat(path)
        time.sleep(NAP_S)
        yield
        after = os.lstat(to or path)
        for name in ("mtime", "ctime"):
            old, new = (getattr(status, f"st_{name}_ns") for status in (before, after))
            if name in times:
                self.check(new > old, f"{name} of {path} moves on")
            else:
                self.check(new == old, f"{name} of {path} stays")

    def make(
        self,
        kind: str,
        path: str,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
    ) -> None:
        self.expect("0", MAKERS[kind], path)
        if mode is not None and kind != "symlink":
            self.expect("0", os.chmod, path, mode)
        if uid is not None:
            self.expect("0", os.lchown, path, uid, uid if gid is None else gid)

    def remove(self, path: str) -> None:
        if not os.path.lexists(path):
            self.check(False, f"{path[:40]} is not there")
            return
        is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
        self.expect("0", os.rmdir if is_directory else os.unlink, path)


# ------------------------------------------------------------------------------------- the calls


def create(path: str, mode: int = 0o644) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def opens(path: str, flags: int, mode: int = 0o644) -> None:
    os.close(os.open(path, flags, mode))


def mkdir(path: str, mode: int = 0o755) -> None:
    os.mkdir(path, mode)


def mkfifo(path: str, mode: int = 0o644) -> None:
    os.mkfifo(path, mode)


def mkchar(path: str, mode: int = 0o644) -> None:
    os.mknod(path, stat.S_IFCHR | mode, os.makedev(1, 2))


def mkblock(path: str, mode: int = 0o644) -> None:
    os.mknod(path, stat.S_IFBLK | mode, os.makedev(1, 2))


def mksocket(path: str, mode: int = 0o644) -> None:
    os.mknod(path, stat.S_IFSOCK | mode)


def bind(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)


def symlink(path: str) -> None:
    os.symlink("test", path)


def chmod(path: str) -> None:
    os.chmod(path, 0o642)


def chown(path: str) -> None:
    os.chown(path, OWNER, OWNER)


def truncate(path: str, size: int = 123) -> None:
    _raw("truncate", path, ctypes.c_long(size))


def ftruncate(path: str, size: int = 123, flags: int = os.O_RDWR) -> None:
    fd = os.open(path, flags)
    try:
        _raw("ftruncate", fd, ctypes.c_long(size))
    finally:
        os.close(fd)


def utimes(path: str, ns: tuple[int, int] | None = None) -> None:
    os.utime(path, ns=ns) if ns else os.utime(path)


def link_to(path: str) -> None:
    """A second name `path` for the file beside the tests' directories."""
    os.link("linked", path)


def rename_to(path: str) -> None:
    os.rename("renamed", path)


def rename_from(path: str) -> None:
    os.rename(path, "other")


def link_from(path: str) -> None:
    os.link(path, "other", follow_symlinks=False)


def allocate(path: str, offset: int = 0, size: int = 567) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(fd, offset, size)
    finally:
        os.close(fd)


def _raw(name: str, *arguments: object) -> None:
    """A call of libc as it is, with what Python would not let through."""
    converted = [os.fsencode(a) if isinstance(a, str) else a for a in arguments]
    ctypes.set_errno(0)
    if getattr(_libc, name)(*converted) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def raw(name: str, *arguments: object) -> None:
    _raw(name, *arguments)


MAKERS: dict[str, Callable[..., None]] = {
    "regular": create,
    "dir": mkdir,
    "fifo": mkfifo,
    "block": mkblock,
    "char": mkchar,
    "socket": bind,
    "symlink": symlink,
}
# Calls that make a name, and calls on what is there; each takes a path first.
MAKING = (create, mkdir, mkfifo, mkchar, mkblock, mksocket, symlink, link_to)
CHANGING = (
    *(chmod, chown, os.lchown, truncate, os.unlink, os.rmdir, utimes),
    *(opens, link_from, rename_from),
)


def _call(place: Place, wanted: str, call: Callable[..., object], path: str, **who: object) -> None:
    more: tuple[object, ...] = ()
    if call is os.lchown:
        more = (OWNER, OWNER)
    elif call is opens:
        more = (os.O_RDONLY,)
    place.expect(wanted, call, path, *more, **who)  # type: ignore[arg-type]


# ------------------------------------------------------------------------- errors of any path


def path_enotdir(place: Place) -> None:
    """A part of the way that is no directory."""
    create("linked")
    create("renamed")
    for kind in NODES:
        place.make(kind, "n0")
        for call in (*MAKING, *CHANGING, rename_to):
            _call(place, "ENOTDIR", call, "n0/test")
        place.remove("n0")


def path_enametoolong(place: Place) -> None:
    """A name of 255 bytes, and of 256."""
    long, longer = "x" * NAME_MAX, "x" * (NAME_MAX + 1)
    create("linked")
    create("renamed")
    for call in MAKING:
        place.expect("0", call, long)
        place.check(os.path.lexists(long), f"{call.__name__} made it")
        place.remove(long)
        place.expect("ENAMETOOLONG", call, longer)
    place.make("regular", long)
    for call in (chmod, chown, truncate, utimes):
        _call(place, "0", call, long)
    _call(place, "0", opens, long)
    place.expect("0", os.rename, long, "short")
    place.expect("0", os.rename, "short", long)
    place.expect("0", rename_to, long)
    place.remove(long)
    for call in CHANGING:
        _call(place, "ENAMETOOLONG", call, longer)
    create("renamed")
    place.expect("ENAMETOOLONG", rename_to, longer)
    deepest = 1023 * 4  # a path of 4,095 bytes is the longest
    names = ["y" * 99] * (deepest // 100)
    at = "."
    made = []
    for name in names[:20]:
        at = f"{at}/{name}"
        os.mkdir(at)
        made.append(at)
    place.check(os.path.isdir(at), f"a path of {len(at)} bytes")
    too_long = f"{at}/{at}/{'z' * 200}/{'z' * 200}"
    for call in (*MAKING, *CHANGING):
        _call(place, "ENAMETOOLONG", call, too_long)
    for path in reversed(made):
        os.rmdir(path)


def path_enoent(place: Place) -> None:
    """A part of the way that is not there, or the file."""
    create("linked")
    create("renamed")
    place.make("dir", "n0")
    for call in (*MAKING, rename_to):
        _call(place, "ENOENT", call, "n0/n1/test")
    for call in CHANGING:
        _call(place, "ENOENT", call, "n0/n1/test")
        _call(place, "ENOENT", call, "n0/n1")
    os.symlink("nowhere", "n0/dangling")
    for call in (chmod, chown, truncate, utimes, opens):
        _call(place, "ENOENT", call, "n0/dangling")


def path_eacces(place: Place) -> None:
    """Search denied on the way; writing denied in the directory."""
    create("linked")
    os.chown("linked", OWNER, OWNER)
    place.make("dir", "n0", uid=OWNER)
    os.rename("linked", "n0/linked")
    os.chdir("n0")
    os.chown(".", OWNER, OWNER)
    place.make("dir", "n1", uid=OWNER)
    place.make("regular", "n1/file", uid=OWNER)
    place.make("dir", "n1/dir", uid=OWNER)
    create("renamed")
    os.chown("renamed", OWNER, OWNER)
    for mode in (0o644, 0o600, 0o200):  # no search
        place.expect("0", os.chmod, "n1", mode)
        for call in (*MAKING, rename_to):
            if call not in (mkblock, mkchar):  # those need a right that strangers lack
                _call(place, "EACCES", call, "n1/test", uid=OWNER)
        for call in CHANGING:
            _call(place, "EACCES", call, "n1/file", uid=OWNER)
    place.expect("0", os.chmod, "n1", 0o555)  # no writing
    for call in (*MAKING, rename_to):
        if call not in (mkblock, mkchar):
            _call(place, "EACCES", call, "n1/test", uid=OWNER)
    for call in (os.unlink, rename_from):
        _call(place, "EACCES", call, "n1/file", uid=OWNER)
    _call(place, "EACCES", os.rmdir, "n1/dir", uid=OWNER)
    for call in (chmod, truncate, utimes, opens):
        _call(place, "0", call, "n1/file", uid=OWNER)
    place.expect("0", os.chmod, "n1", 0o755)
    for call in (mkdir, mkfifo, create, symlink):
        _call(place, "EACCES", call, "n1/test", uid=OTHER)
        _call(place, "0", call, "n1/test", uid=OWNER)
        place.remove("n1/test")


def path_eloop(place: Place) -> None:
    """Symlinks that lead in a circle."""
    create("linked")
    create("renamed")
    place.expect("0", os.symlink, "n0", "n1")
    place.expect("0", os.symlink, "n1", "n0")
    for start in ("n0", "n1"):
        for call in (*MAKING, *CHANGING, rename_to):
            _call(place, "ELOOP", call, f"{start}/test")
        for call in (chmod, chown, truncate, utimes, opens):
            _call(place, "ELOOP", call, start)
    place.remove("n0")
    place.remove("n1")


def path_efault(place: Place) -> None:
    """Addresses that are none."""
    create("test")
    for bad in (_BAD, ctypes.c_void_p(None)):
        for name, *more in (
            *(("mkdir", 0o755), ("rmdir",), ("unlink",), ("mkfifo", 0o644), ("chmod", 0o644)),
            *(("chown", 1, 1), ("lchown", 1, 1), ("truncate", 0), ("open", 0)),
        ):
            place.expect("EFAULT", raw, name, bad, *more)
        for name in ("link", "symlink", "rename"):
            place.expect("EFAULT", raw, name, bad, "test")
            place.expect("EFAULT", raw, name, "test", bad)


def path_eexist(place: Place) -> None:
    """Names that are taken, whatever by."""
    create("linked")
    for kind in KINDS:
        place.make(kind, "n0")
        for call in (*MAKING, bind):
            _call(place, "EADDRINUSE" if call is bind else "EEXIST", call, "n0")
        place.shows("n0", type=kind)
        place.remove("n0")


# -------------------------------------------------------------------------------------- chmod


def chmod_changes(place: Place) -> None:
    for kind in NO_LINKS:
        place.make(kind, "n0")
        place.expect("0", os.chmod, "n0", 0o111)
        place.shows("n0", mode=0o111)
        place.expect("0", os.symlink, "n0", "n1")
        link_mode = stat.S_IMODE(os.lstat("n1").st_mode)
        with place.moves("n0", "ctime"):
            place.expect("0", os.chmod, "n1", 0o222)
        place.shows("n0", mode=0o222)
        place.shows("n1", follow=True, mode=0o222)
        place.shows("n1", mode=link_mode)
        place.remove("n1")
        with place.moves("n0"):
            place.expect("EPERM", os.chmod, "n0", 0o111, uid=OWNER)
        place.remove("n0")


def chmod_set_bits(place: Place) -> None:
    place.make("regular", "n0", 0o755, OWNER)
    place.expect("0", os.chmod, "n0", 0o2755, uid=OWNER)
    place.shows("n0", mode=0o2755)
    place.expect("0", os.chmod, "n0", 0o755, uid=OWNER)
    place.expect("0", os.chmod, "n0", 0o2755, uid=OWNER, gids=(OTHER,))  # of another group
    place.shows("n0", mode=0o755)
    place.expect("0", os.chmod, "n0", 0o2755, uid=OWNER, gids=(OTHER, OWNER))
    place.shows("n0", mode=0o2755)
    place.remove("n0")
    for kind in NO_LINKS:  # the sticky bit
        place.make(kind, "n0")
        place.expect("0", os.chmod, "n0", 0o1621)
        place.shows("n0", mode=0o1621)
        place.expect("0", os.chown, "n0", OWNER, OWNER)
        place.expect("0", os.chmod, "n0", 0o1644, uid=OWNER)
        place.shows("n0", mode=0o1644)
        place.remove("n0")
    for bits in (0o4000, 0o2000, 0o6000):  # writing takes them away
        for flags in (os.O_WRONLY, os.O_RDWR):
            place.expect("0", create, "n0", 0o777 | bits)
            place.shows("n0", mode=0o777 | bits)
            with acting_as(OWNER, (OWNER,)):
                fd = os.open("n0", flags)
                os.write(fd, b"x")
                mode = stat.S_IMODE(os.fstat(fd).st_mode)
                os.close(fd)
            place.check(mode == 0o777, f"fstat after writing: 0o777, {oct(mode)}")
            place.shows("n0", mode=0o777)
            place.remove("n0")
        for change in (truncate, ftruncate):
            place.expect("0", create, "n0", 0o777 | bits)
            place.expect("0", change, "n0", uid=OWNER)
            place.shows("n0", mode=0o777)
            place.remove("n0")


def chmod_strangers(place: Place) -> None:
    """Only the owner and root."""
    for kind in NO_LINKS:
        place.make(kind, "n0", 0o644, OWNER)
        place.expect("0", os.chmod, "n0", 0o642, uid=OWNER)
        place.shows("n0", mode=0o642)
        place.expect("EPERM", os.chmod, "n0", 0o641, uid=OTHER)
        place.expect("EPERM", os.chmod, "n0", 0o641, uid=OTHER, gids=(OWNER,))
        place.shows("n0", mode=0o642)
        place.expect("0", os.chown, "n0", 0, 0)
        place.expect("EPERM", os.chmod, "n0", 0o641, uid=OWNER)
        place.remove("n0")


# -------------------------------------------------------------------------------------- chown


def _owners(kind: str) -> Iterator[tuple[Callable[..., None], str, bool]]:
    """Ways to a file's owner: itself, through a symlink, as the symlink that it is."""
    if kind != "symlink":
        yield os.chown, "n0", True
        yield os.chown, "n1", True
    yield os.lchown, "n0", False


def chown_changes(place: Place) -> None:
    for kind in KINDS:
        for call, path, follow in _owners(kind):
            place.make(kind, "n0")
            if path == "n1":
                place.expect("0", os.symlink, "n0", "n1")
            with place.moves("n0", "ctime"):
                place.expect("0", call, path, 123, 456)
            place.shows("n0", uid=123, gid=456)
            place.shows(path, follow=follow, uid=123, gid=456)
            place.expect("0", call, path, 0, 0)
            place.shows("n0", uid=0, gid=0)
            # The owner may give it to groups of his.
            place.expect("0", call, path, OWNER, OTHER)
            place.expect("0", call, path, -1, THIRD, uid=OWNER, gids=(THIRD, 65531))
            place.shows("n0", uid=OWNER, gid=THIRD)
            with place.moves("n0", "ctime"):
                place.expect("0", call, path, OWNER, 65531, uid=OWNER, gids=(THIRD, 65531))
            place.shows("n0", uid=OWNER, gid=65531)
            place.expect("EPERM", call, path, -1, OTHER, uid=OWNER, gids=(THIRD, 65531))
            place.expect("EPERM", call, path, OTHER, -1, uid=OWNER)
            place.shows("n0", uid=OWNER, gid=65531)
            # Nobody may change what is another's; nothing to change is nothing.
            place.expect("0", call, path, 0, 0)
            place.expect("0", call, path, -1, -1, uid=OWNER)
            with place.moves("n0"):
                place.expect("EPERM", call, path, OWNER, -1, uid=OWNER)
                place.expect("EPERM", call, path, -1, OWNER, uid=OWNER)
                place.expect("EPERM", call, path, OWNER, OWNER, uid=OWNER)
            place.shows("n0", uid=0, gid=0)
            if path == "n1":
                place.shows("n1", uid=0, gid=0)
                place.remove("n1")
            place.remove("n0")


def chown_set_bits(place: Place) -> None:
    for kind in NO_LINKS:
        for call, path, _ in _owners(kind):
            kept = 0o6555 if kind == "dir" else 0o555  # Linux leaves those of directories
            place.make(kind, "n0", uid=OWNER, gid=OTHER)
            if path == "n1":
                place.expect("0", os.symlink, "n0", "n1")
            for uid, gid, new_gid in ((OWNER, THIRD, THIRD), (-1, OTHER, OTHER)):
                place.expect("0", os.chmod, "n0", 0o6555)
                place.expect("0", call, path, uid, gid, uid=OWNER, gids=(OTHER, THIRD))
                place.shows("n0", mode=kept, uid=OWNER, gid=new_gid)
            place.expect("0", os.chmod, "n0", 0o6555)
            place.expect("0", call, path, THIRD, 65531)  # by root
            place.shows("n0", mode=kept, uid=THIRD, gid=65531)
            if path == "n1":
                place.remove("n1")
            place.remove("n0")
    # Of files that no group may execute the set-group-id bit stays: it is not one.
    place.make("regular", "n0", uid=OWNER, gid=OTHER)
    place.expect("0", os.chmod, "n0", 0o6745)
    place.expect("0", os.chown, "n0", OWNER, THIRD, uid=OWNER, gids=(OTHER, THIRD))
    place.shows("n0", mode=0o2745 if _keeps_mandatory_bit() else 0o745)
    place.remove("n0")


def _keeps_mandatory_bit() -> bool:
    """Whether this kernel leaves set-group-id alone where the group may not execute."""
    with contextlib.ExitStack() as stack:
        path = pathlib.Path("/dev/shm") / f"lmfs-probe-{os.getpid()}"
        path.touch()
        stack.callback(path.unlink)
        os.chown(path, OWNER, OTHER)
        path.chmod(0o6745)
        with acting_as(OWNER, (OTHER, THIRD)):
            os.chown(path, OWNER, THIRD)
        return bool(path.stat().st_mode & stat.S_ISGID)


# ------------------------------------------------------------------------- truncate, ftruncate


def truncate_sizes(place: Place) -> None:
    for call in (truncate, ftruncate):
        place.make("regular", "n0")
        for size in (567, 123, 0, 5000, 1, 1 << 33, 17):
            place.expect("0", call, "n0", size)
            place.shows("n0", size=size)
        pathlib.Path("n0").write_bytes(os.urandom(2000))
        kept = pathlib.Path("n0").read_bytes()
        place.expect("0", call, "n0", 1000)
        place.expect("0", call, "n0", 3000)
        place.check(pathlib.Path("n0").read_bytes() == kept[:1000] + bytes(2000), "zeros follow")
        with place.moves("n0", "mtime", "ctime"):
            place.expect("0", call, "n0", 5)
        with place.moves("n0"):
            place.expect("EINVAL", call, "n0", -1)
            place.expect("EINVAL", call, "n0", -(1 << 40))
            place.expect("EFBIG|EINVAL", call, "n0", (1 << 63) - 1)
            place.expect("EACCES", call, "n0", 1, uid=OWNER)
        place.shows("n0", size=5)
        place.expect("0", os.chmod, "n0", 0o666)
        place.expect("0", call, "n0", 6, uid=OWNER)
        place.shows("n0", size=6)
        place.remove("n0")
    place.make("regular", "n0")
    place.expect("EINVAL", ftruncate, "n0", 4, os.O_RDONLY)
    place.expect("0", os.chmod, "n0", 0o000)
    place.expect("EACCES", truncate, "n0", 4, uid=OWNER)
    place.remove("n0")
    place.make("regular", "n0", 0o666, OWNER)
    fd = os.open("n0", os.O_RDWR)  # what was opened may be cut, whatever its mode is now
    os.chmod("n0", 0)
    with acting_as(OTHER, (OTHER,)):
        place.expect("0", os.ftruncate, fd, 99)
    os.close(fd)
    place.shows("n0", size=99)
    place.remove("n0")
    place.make("dir", "n0")
    place.expect("EISDIR", truncate, "n0")
    place.expect("EISDIR", ftruncate, "n0")
    place.remove("n0")
    for kind in ("fifo", "socket"):
        place.make(kind, "n0")
        place.expect("EINVAL", truncate, "n0")
        place.remove("n0")


def running_programs(place: Place) -> None:
    """A program that runs may not be written to."""
    shutil.copy(shutil.which("sleep") or "/bin/sleep", "n0")
    with subprocess.Popen(["./n0", "30"]) as process:
        try:
            time.sleep(0.1)
            place.expect("ETXTBSY", truncate, "n0")
            place.expect("ETXTBSY", ftruncate, "n0")
            place.expect("ETXTBSY", opens, "n0", os.O_WRONLY)
            place.expect("ETXTBSY", opens, "n0", os.O_RDWR)
            place.expect("ETXTBSY", opens, "n0", os.O_RDONLY | os.O_TRUNC)
            place.expect("0", opens, "n0", os.O_RDONLY)
        finally:
            process.kill()
    place.remove("n0")


# --------------------------------------------------------------------------------------- link


def link_names(place: Place) -> None:
    for kind in (*NODES, "symlink"):
        place.make(kind, "n0")
        place.shows("n0", type=kind, nlink=1)
        inode = os.lstat("n0").st_ino
        with place.moves("n0", "ctime"), place.moves(".", "mtime", "ctime"):
            place.expect("0", raw, "link", "n0", "n1")
        place.expect("0", raw, "link", "n1", "n2")
        for name in ("n0", "n1", "n2"):
            place.shows(name, type=kind, nlink=3, inode=inode)
        if kind != "symlink":
            place.expect("0", os.chmod, "n1", 0o201)
            place.shows("n0", mode=0o201)
            place.shows("n2", mode=0o201)
        place.expect("0", os.lchown, "n1", OWNER, OTHER)
        for name in ("n0", "n1", "n2"):
            place.shows(name, type=kind, nlink=3, uid=OWNER, gid=OTHER)
        with place.moves("n1", "ctime"), place.moves(".", "mtime", "ctime"):
            place.expect("0", os.unlink, "n0")
        place.absent("n0")
        place.shows("n1", nlink=2)
        place.shows("n2", nlink=2)
        place.expect("0", os.unlink, "n2")
        place.shows("n1", nlink=1, inode=inode)
        place.expect("0", os.unlink, "n1")
        for name in ("n0", "n1", "n2"):
            place.absent(name)
    place.make("regular", "n0", uid=OWNER)
    with place.moves("n0"), place.moves("."):
        place.expect("EACCES", raw, "link", "n0", "n1", uid=OWNER)
    place.remove("n0")
    place.make("dir", "n0")
    place.expect("EPERM", raw, "link", "n0", "n1")
    place.remove("n0")
    place.make("regular", "n0")
    pathlib.Path("n0").write_bytes(b"1234")
    os.link("n0", "n1")
    with open("n0", "rb", buffering=0) as reader:
        place.check(reader.read() == b"1234", "bytes before")
        _append("n1", b"5678")
        place.check(os.pread(reader.fileno(), 9, 0) == b"12345678", "both names have the bytes")
        with open("n1", "r+b") as file:
            file.write(b"abcd")
        place.check(os.pread(reader.fileno(), 9, 0) == b"abcd5678", "both names have new bytes")
    place.shows("n0", size=8)
    place.expect("EXDEV", raw, "link", "n0", "/dev/shm/n1")


# -------------------------------------------------------------- mkdir, mkfifo, mknod, symlink


def making(place: Place) -> None:
    """Modes with every umask, owners, groups, times of the new file and of its directory."""
    kinds = {create: "regular", mkdir: "dir", mkfifo: "fifo", mkchar: "char", mkblock: "block"}
    kinds[mksocket] = "socket"
    for call, kind in kinds.items():
        for mode, umask, shown in (
            *((0o755, 0, 0o755), (0o151, 0, 0o151), (0o151, 0o77, 0o100)),
            *((0o345, 0o70, 0o305), (0o345, 0o501, 0o244), (0o666, 0o22, 0o644)),
        ):
            place.expect("0", call, "n0", mode, umask=umask)
            place.shows("n0", type=kind, mode=shown)
            place.remove("n0")
        place.expect("0", call, "n0", 0o644)
        if kind in ("char", "block"):
            place.shows("n0", rdev=os.makedev(1, 2))
        place.remove("n0")
    for call, kind in (*kinds.items(), (symlink, "symlink")):
        before = time.time_ns()
        with place.moves(".", "mtime", "ctime"):
            place.expect("0", call, "n0")
        status = os.lstat("n0")
        for name in ("atime", "mtime", "ctime"):
            moved = getattr(status, f"st_{name}_ns") > before
            place.check(moved, f"{name} of a new {kind}")
        place.shows("n0", type=kind, nlink=2 if kind == "dir" else 1)
        place.remove("n0")
        if kind in ("char", "block"):
            place.expect("0", os.mkdir, "d", 0o777)
            place.expect("EPERM", call, "d/n0", uid=OWNER)
            place.remove("d")
            continue
        place.make("dir", "d", 0o755, OWNER)
        place.expect("0", call, "d/n0", uid=OWNER)
        place.shows("d/n0", uid=OWNER, gid=OWNER)
        place.remove("d/n0")
        place.expect("0", call, "d/n0", uid=OWNER, gids=(OTHER, 7))
        place.shows("d/n0", uid=OWNER, gid=OTHER)
        place.remove("d/n0")
        place.expect("0", os.chmod, "d", 0o2777)  # new files have its group, directories its bit
        place.expect("0", call, "d/n0", uid=OTHER, gids=(THIRD,))
        place.shows("d/n0", uid=OTHER, gid=OWNER)
        if kind == "dir":
            place.shows("d/n0", mode=0o2755)
        place.remove("d/n0")
        place.remove("d")
    place.make("dir", "d", 0o2777)
    place.expect("0", create, "d/n0", 0o2755, uid=OTHER)  # set-group-id of a group not his
    place.shows("d/n0", mode=0o755)
    place.remove("d/n0")
    place.remove("d")


def symlinks(place: Place) -> None:
    place.make("regular", "n0")
    place.expect("0", os.symlink, "n0", "n1")
    place.shows("n1", type="symlink", size=2)
    place.shows("n1", follow=True, type="regular")
    place.remove("n0")
    place.expect("ENOENT", opens, "n1", os.O_RDONLY)
    place.remove("n1")
    place.make("dir", "n0")
    place.expect("0", os.symlink, "n0", "n1")
    place.shows("n1/.", type="dir")
    place.remove("n0")
    place.remove("n1")
    for size in (1, 59, 60, 255, 1000, 4000, 4095):
        target = "t" * size
        # Some filesystems keep less than PATH_MAX; what they keep they give back.
        with contextlib.suppress(OSError):
            os.symlink(target, "n0")
            place.check(os.readlink("n0") == target, f"a target of {size} bytes")
            place.shows("n0", size=size)
            place.remove("n0")
    place.expect("ENAMETOOLONG", os.symlink, "t" * 4096, "n0")
    place.expect("ENOENT", os.symlink, "", "n0")
    os.symlink(b"\xff\xfe/\n \xe4", b"n0")
    place.check(os.readlink(b"n0") == b"\xff\xfe/\n \xe4", "a target of any bytes")
    place.remove("n0")


# --------------------------------------------------------------------------------------- open


def open_modes(place: Place) -> None:
    place.make("dir", "d", 0o755, OWNER)
    os.chdir("d")
    readers = {os.O_RDONLY: 4, os.O_WRONLY: 2, os.O_RDWR: 6}
    for kind in ("regular", "fifo", "dir"):
        place.make(kind, "n0", uid=OWNER)
        for uid, gid, shift in ((OWNER, OWNER, 6), (OTHER, OWNER, 3), (OTHER, OTHER, 0)):
            for bits in range(8):
                mode = 0o777 & ~(7 << shift) | bits << shift
                place.expect("0", os.chmod, "n0", mode, uid=OWNER)
                for flags, needed in readers.items():
                    denied = bits & needed != needed
                    wanted = "EACCES" if denied else "0"
                    if kind == "dir" and flags != os.O_RDONLY:
                        wanted = "EISDIR"
                    if kind == "fifo" and flags == os.O_WRONLY and not denied:
                        wanted = "ENXIO"  # nobody reads
                    place.expect(wanted, opens, "n0", flags | os.O_NONBLOCK, uid=uid, gids=(gid,))
                if kind == "regular":
                    wanted = "0" if bits & 6 == 6 else "EACCES"
                    flags = os.O_RDONLY | os.O_TRUNC
                    place.expect(wanted, opens, "n0", flags, uid=uid, gids=(gid,))
        place.remove("n0")
    os.chown(".", 0, 0)
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        place.expect("EACCES", opens, "n0", flags | os.O_CREAT, uid=OWNER)
    place.absent("n0")


def open_creates(place: Place) -> None:
    with place.moves(".", "mtime", "ctime"):
        place.expect("0", opens, "n0", os.O_CREAT | os.O_WRONLY)
    with place.moves("."), place.moves("n0"):
        place.expect("0", opens, "n0", os.O_CREAT | os.O_RDONLY)
    with place.moves("."), place.moves("n0"):
        place.expect("EEXIST", opens, "n0", os.O_CREAT | os.O_EXCL)
    pathlib.Path("n0").write_bytes(b"test\n")
    with place.moves("n0", "mtime", "ctime"), place.moves("."):
        place.expect("0", opens, "n0", os.O_WRONLY | os.O_TRUNC)
    place.shows("n0", size=0)
    with place.moves("n0", "mtime", "ctime"):
        _append("n0", b"x")
    place.remove("n0")
    for kind in KINDS:
        place.make(kind, "n0")
        place.expect("EEXIST", opens, "n0", os.O_CREAT | os.O_EXCL)
        place.remove("n0")
    # A mode without rights does not hinder who makes the file.
    place.make("dir", "d", 0o777)
    place.expect("0", opens, "d/n0", os.O_CREAT | os.O_RDWR, 0, uid=OWNER)
    place.shows("d/n0", mode=0, uid=OWNER)
    place.expect("EACCES", opens, "d/n0", os.O_RDONLY, uid=OWNER)
    place.remove("d/n0")
    place.remove("d")


def open_kinds(place: Place) -> None:
    place.make("dir", "n0")
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_CREAT):
        place.expect("EISDIR", opens, "n0", flags)
    place.expect("0", opens, "n0", os.O_RDONLY | os.O_DIRECTORY)
    place.remove("n0")
    place.make("fifo", "n0")
    place.expect("ENXIO", opens, "n0", os.O_WRONLY | os.O_NONBLOCK)
    place.expect("0", opens, "n0", os.O_RDONLY | os.O_NONBLOCK)
    place.remove("n0")
    place.make("socket", "n0")
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        place.expect("ENXIO", opens, "n0", flags)
    place.remove("n0")
    place.make("regular", "n0")
    place.expect("ENOTDIR", opens, "n0", os.O_RDONLY | os.O_DIRECTORY)
    place.expect("0", os.symlink, "n0", "n1")
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_CREAT | os.O_RDONLY):
        place.expect("ELOOP", opens, "n1", flags | os.O_NOFOLLOW)
        place.expect("0", opens, "n1", flags)
    place.expect("0", opens, "n0", os.O_RDONLY | os.O_NOATIME)
    place.expect("EPERM", opens, "n0", os.O_RDONLY | os.O_NOATIME, uid=OWNER)
    place.remove("n0")
    place.remove("n1")
    before = os.stat(".")
    place.expect("0", opens, ".", os.O_TMPFILE | os.O_RDWR) if _has_tmpfile() else None
    place.check(os.stat(".").st_nlink == before.st_nlink, "links of the directory")


def _has_tmpfile() -> bool:
    try:
        os.close(os.open(".", os.O_TMPFILE | os.O_RDWR))
    except OSError:
        return False
    return True


def open_unlinked(place: Place) -> None:
    place.make("regular", "n0")
    fd = os.open("n0", os.O_RDWR)
    os.write(fd, b"Hello, World!")
    place.expect("0", os.unlink, "n0")
    place.absent("n0")
    place.check(os.fstat(fd).st_nlink == 0, f"nlink of it: 0, {os.fstat(fd).st_nlink}")
    place.check(os.pread(fd, 99, 0) == b"Hello, World!", "its bytes")
    place.expect("0", os.ftruncate, fd, 5)
    place.check(os.fstat(fd).st_size == 5, "its size")
    place.expect("0", os.fchmod, fd, 0o600)
    place.check(stat.S_IMODE(os.fstat(fd).st_mode) == 0o600, "its mode")
    place.expect("0", os.fchown, fd, OWNER, OTHER)
    place.check(os.fstat(fd).st_uid == OWNER, "its owner")
    place.expect("0", utime_of, fd, 5, 6)
    place.check(os.fstat(fd).st_mtime_ns == 6, "its times")
    place.make("regular", "n0")  # another file under the name is another file
    os.write(fd, b"more")
    place.shows("n0", size=0)
    os.close(fd)
    place.remove("n0")
    place.make("dir", "d")
    with open("d/n0", "w+b", buffering=0) as file, open("d/n1", "w+b"):
        for name in ("n0", "n1"):
            place.expect("0", os.unlink, f"d/{name}")
        place.check(os.listdir("d") == [], f"nothing is left of it: {os.listdir('d')}")
        place.expect("0", os.rmdir, "d")
        file.write(b"1234")
        fd = file.fileno()
        place.check(os.pread(fd, 9, 0) == b"1234", "bytes without a directory")
        place.expect("0", os.posix_fallocate, fd, 0, 100)
        place.check(len(os.pread(fd, 200, 0)) == 100, "allocated without a directory")
        place.expect("0", os.fsync, fd)
        for call, *arguments in (
            *((os.fstat,), (os.ftruncate, 2), (utime_of, 3, 4), (os.fchmod, 0o611)),
            *((os.fchown, OWNER, OTHER), (os.setxattr, "user.a", b"1")),
        ):
            place.expect("0", call, fd, *arguments)
    for way in ("unlink", "rename"):
        pathlib.Path("n0").write_bytes(b"old")
        with open("n0", "rb") as file:
            if way == "unlink":
                os.unlink("n0")
                pathlib.Path("n0").write_bytes(b"newer")
            else:
                pathlib.Path("n1").write_bytes(b"newer")
                os.rename("n1", "n0")
            status = os.fstat(file.fileno())
            place.check(status.st_nlink == 0, f"nlink after {way}: 0, {status.st_nlink}")
            place.check(status.st_size == 3, f"size after {way}: 3, {status.st_size}")
            place.check(file.read() == b"old", f"bytes after {way}")
        place.check(pathlib.Path("n0").read_bytes() == b"newer", "bytes of the new one")
        place.remove("n0")


def utime_of(fd: int, atime: int, mtime: int) -> None:
    os.utime(fd, ns=(atime, mtime))


def _append(path: str, data: bytes) -> None:
    with open(path, "ab", buffering=0) as file:
        file.write(data)


def open_appends(place: Place) -> None:
    """O_APPEND writes at the end, wherever the descriptor is and whoever wrote since."""
    place.make("regular", "n0")
    one, two = (os.open("n0", os.O_RDWR | os.O_APPEND) for _ in range(2))
    for i in range(20):
        os.write(one if i % 2 else two, b"%02d" % i)
        os.lseek(one, 0, os.SEEK_SET)
    wanted = b"".join(b"%02d" % i for i in range(20))
    place.check(os.pread(one, 99, 0) == wanted, "all of it, in order")
    os.ftruncate(two, 3)
    os.write(one, b"end")
    place.check(pathlib.Path("n0").read_bytes() == b"000end", "after a truncation")
    os.close(one)
    os.close(two)
    place.remove("n0")


def open_direct(place: Place) -> None:
    """O_DIRECT is honoured, or refused at open; bytes are those that others see."""
    pathlib.Path("n0").write_bytes(b"a" * 8192)
    try:
        fd = os.open("n0", os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        place.check(error.errno == errno.EINVAL, f"refused: {error}")
        return
    with mmap.mmap(-1, 4096) as aligned:
        place.check(os.preadv(fd, [aligned], 4096) == 4096, "a read")
        place.check(aligned[:] == b"a" * 4096, "bytes read")
        aligned[:] = b"b" * 4096
        place.check(os.pwritev(fd, [aligned], 4096) == 4096, "a write")
    place.check(pathlib.Path("n0").read_bytes() == b"a" * 4096 + b"b" * 4096, "bytes written")
    with open("n0", "r+b") as file:
        file.write(b"c" * 10)
    with mmap.mmap(-1, 4096) as aligned:
        place.check(os.preadv(fd, [aligned], 0) == 4096, "a read after a write of another")
        place.check(aligned[:10] == b"c" * 10, "bytes of another")
    os.close(fd)
    place.remove("n0")


def mapping(place: Place) -> None:
    """Maps, shared and private, show what is written and write what they are given."""
    pathlib.Path("n0").write_bytes(b"a" * 10_000)
    with open("n0", "r+b") as file:
        with (
            mmap.mmap(file.fileno(), 0) as shared,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as reader,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as private,
        ):
            private[5:8] = b"xyz"
            place.check(reader[5:8] == b"aaa", "a private map is private")
            shared[4095:4098] = b"123"
            place.check(reader[4095:4098] == b"123", "shared maps share")
            os.pwrite(file.fileno(), b"789", 9000)
            place.check(reader[9000:9003] == b"789", "a map shows what is written")
            shared.flush()
        place.check(os.pread(file.fileno(), 3, 4095) == b"123", "a read shows the map's bytes")
    data = pathlib.Path("n0").read_bytes()
    place.check(len(data) == 10_000, "size after maps")
    place.check(data[4094:4099] == b"a123a", "the map's bytes are there afterwards")
    place.remove("n0")


def sparse(place: Place) -> None:
    """Holes take no blocks, read as zeros, and are found where the filesystem can tell."""
    step = 1 << 16
    with open("n0", "w+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"x" * 4096, 4 * step)
        os.pwrite(file.fileno(), b"y" * 4096, 9 * step)
        os.ftruncate(file.fileno(), 20 * step)
        os.fsync(file.fileno())
        place.shows("n0", size=20 * step)
        place.check(os.stat("n0").st_blocks <= 64, f"blocks: {os.stat('n0').st_blocks}")
        place.check(os.pread(file.fileno(), 9, step) == bytes(9), "zeros")
        fd = file.fileno()
        found = os.lseek(fd, 0, os.SEEK_DATA)
        place.check(found == 4 * step, f"first data: {4 * step}, {found}")
        found = os.lseek(fd, found, os.SEEK_HOLE)
        place.check(found == 4 * step + 4096, f"hole behind it: {found}")
        found = os.lseek(fd, found, os.SEEK_DATA)
        place.check(found == 9 * step, f"next data: {found}")
        found = os.lseek(fd, 10 * step, os.SEEK_HOLE)
        place.check(found == 10 * step, f"a hole: {found}")
        place.expect("ENXIO", os.lseek, fd, 10 * step, os.SEEK_DATA)
        place.expect("ENXIO", os.lseek, fd, 20 * step, os.SEEK_HOLE)
    place.remove("n0")


def locking(place: Place) -> None:
    """flock and record locks keep other processes out, and are gone with who held them."""
    pathlib.Path("n0").write_bytes(b"x" * 100)

    def elsewhere(lock: Callable[..., None], *arguments: int) -> str:
        """What another process gets: "free" or "locked"."""
        child = os.fork()
        if child == 0:
            try:
                with open("n0", "r+b") as file:
                    lock(file, arguments[0] | fcntl.LOCK_NB, *arguments[1:])
                os._exit(0)
            except BlockingIOError:
                os._exit(1)
            finally:
                os._exit(2)
        return ("free", "locked", "failed")[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]

    def check(wanted: str, lock: Callable[..., None], *arguments: int) -> None:
        got = elsewhere(lock, *arguments)
        place.check(got == wanted, f"{lock.__name__}{arguments}: {wanted}, {got}")

    for lock in (fcntl.flock, fcntl.lockf):
        with open("n0", "r+b") as file:
            lock(file, fcntl.LOCK_EX)
            check("locked", lock, fcntl.LOCK_EX)
            check("locked", lock, fcntl.LOCK_SH)
            lock(file, fcntl.LOCK_SH)
            check("free", lock, fcntl.LOCK_SH)
            check("locked", lock, fcntl.LOCK_EX)
        check("free", lock, fcntl.LOCK_EX)
    with open("n0", "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 50)
        check("free", fcntl.lockf, fcntl.LOCK_EX, 50)
        check("locked", fcntl.lockf, fcntl.LOCK_EX, 1, 59)
        check("free", fcntl.lockf, fcntl.LOCK_EX, 1, 60)
    place.remove("n0")


def names(place: Place) -> None:
    """Names are bytes: any but NUL and the slash."""
    made = {bytes([byte]) for byte in range(1, 256) if byte not in b"/."}
    made |= {b"\xff\xfe \xe4", b"...", b" ", b"-", b"a\nb", "ä€😀".encode(), b"\xed\xa0\x80"}
    for name in made:
        with open(name, "wb") as file:
            file.write(name)
    place.check(set(os.listdir(b".")) == made, "all are listed")
    for name in sorted(made):
        with open(name, "rb") as file:
            place.check(file.read() == name, f"bytes of {name!r}")
        os.rename(name, b"x" + name)
    place.check(set(os.listdir(b".")) == {b"x" + name for name in made}, "renamed ones are listed")
    for name in made:
        os.unlink(b"x" + name)
    for i in range(300):
        os.mkdir(f"d{i}")
    place.check(len(os.listdir()) == 300, "a directory of many")
    for entry in os.scandir():  # removed while they are listed
        os.rmdir(entry)
    place.check(os.listdir() == [], "all gone")


# ----------------------------------------------------------------------------- posix_fallocate


def allocating(place: Place) -> None:
    place.make("regular", "n0")
    with place.moves("n0", "mtime", "ctime"):
        place.expect("0", allocate, "n0", 0, 567)
    place.shows("n0", size=567)
    place.expect("0", allocate, "n0", 20_000, 3_456)
    place.shows("n0", size=23_456)
    place.expect("0", allocate, "n0", 0, 10)
    place.shows("n0", size=23_456)
    place.check(os.stat("n0").st_blocks > 0, "blocks")
    place.expect("EINVAL", allocate, "n0", 0, 0)
    place.expect("EINVAL", allocate, "n0", -1, 10)
    place.expect("EFBIG|EINVAL", allocate, "n0", (1 << 63) - 10, 9)
    place.remove("n0")
    place.make("dir", "d", 0o777)
    place.expect("0", create, "d/n0", 0, uid=OWNER)
    place.remove("d/n0")
    place.remove("d")


# ------------------------------------------------------------------------------------- rename


def rename_names(place: Place) -> None:
    for kind in KINDS:
        place.make(kind, "n0", 0o644)
        inode = os.lstat("n0").st_ino
        with place.moves(".", "mtime", "ctime"):
            place.expect("0", os.rename, "n0", "n1")
        place.absent("n0")
        place.shows("n1", type=kind, inode=inode)
        if kind != "dir":
            place.expect("0", raw, "link", "n1", "n0")
            place.expect("0", os.rename, "n1", "n2")
            place.absent("n1")
            place.shows("n0", type=kind, inode=inode, nlink=2)
            place.shows("n2", type=kind, inode=inode, nlink=2)
            place.expect("0", os.rename, "n0", "n2")  # one file: nothing is done
            place.shows("n0", inode=inode, nlink=2)
            place.remove("n0")
            place.expect("0", os.rename, "n2", "n1")
        with place.moves("n1"), place.moves("."):
            place.expect("EACCES", os.rename, "n1", "n0", uid=OWNER)
        with place.moves("n1", "ctime", to="n0"):
            place.expect("0", os.rename, "n1", "n0")
        place.expect("0", os.rename, "n0", "n0")
        place.remove("n0")


def rename_replaces(place: Place) -> None:
    for source in FILES:
        for target in FILES:
            place.make(source, "n0")
            place.make(target, "n1")
            os.link("n1", "n2", follow_symlinks=False)
            inode = os.lstat("n0").st_ino
            with place.moves("n2", "ctime"):  # it lost a name
                place.expect("0", os.rename, "n0", "n1")
            place.absent("n0")
            place.shows("n1", type=source, inode=inode, nlink=1)
            place.shows("n2", type=target, nlink=1)
            place.remove("n1")
            place.remove("n2")
    for kind in FILES:
        place.make("dir", "n0")
        place.make(kind, "n1")
        place.expect("ENOTDIR", os.rename, "n0", "n1")
        place.expect("EISDIR", os.rename, "n1", "n0")
        place.shows("n0", type="dir")
        place.shows("n1", type=kind)
        place.remove("n0")
        place.remove("n1")
    for kind in KINDS:  # into a directory that holds something
        place.make("dir", "n0")
        place.make("dir", "n1")
        place.make(kind, "n1/n2")
        place.expect("EEXIST|ENOTEMPTY", os.rename, "n0", "n1")
        place.remove("n1/n2")
        place.expect("0", os.rename, "n0", "n1")
        place.absent("n0")
        place.remove("n1")


def rename_directories(place: Place) -> None:
    place.make("dir", "n0")
    place.make("dir", "n0/n1")
    place.make("dir", "n3")
    place.expect("EINVAL", os.rename, "n0", "n0/n1")
    place.expect("EINVAL", os.rename, "n0", "n0/n1/n2")
    place.expect("EEXIST|ENOTEMPTY", os.rename, "n0/n1", "n0")
    for path in ("n0/.", "n0/.."):
        place.expect("EINVAL|EBUSY", os.rename, path, "n4")
    place.shows("n0", nlink=3)
    place.shows("n3", nlink=2)
    place.shows("n0/n1/..", inode=os.stat("n0").st_ino)
    place.expect("0", os.rename, "n0/n1", "n3/n4")
    place.shows("n0", nlink=2)
    place.shows("n3", nlink=3)
    place.shows("n3/n4/..", inode=os.stat("n3").st_ino)
    place.expect("EXDEV", os.rename, "n3", "/dev/shm/n3")
    for path in ("n3/n4", "n3", "n0"):
        place.remove(path)
    place.make("dir", "a", 0o777)
    place.make("dir", "b", 0o777)
    place.make("dir", "a/n0", 0o700)
    place.expect("0", os.rename, "a/n0", "a/n1", uid=OWNER)
    place.expect("EACCES", os.rename, "a/n1", "b/n1", uid=OWNER)  # its .. would change
    place.remove("a/n1")
    place.make("regular", "a/n0")
    place.expect("0", os.rename, "a/n0", "b/n1", uid=OWNER)
    place.remove("b/n1")
    place.remove("a")
    place.remove("b")


def rename_flags(place: Place) -> None:
    def at(flags: int) -> Callable[[str, str], None]:
        def renameat2(old: str, new: str) -> None:
            _raw("renameat2", -100, old, -100, new, ctypes.c_uint(flags))

        return renameat2

    noreplace, exchange, whiteout = at(1), at(2), at(4)
    for one in KINDS:
        for two in KINDS:
            place.make(one, "n0")
            place.make(two, "n1")
            place.expect("EEXIST", noreplace, "n0", "n1")
            place.shows("n0", type=one)
            place.shows("n1", type=two)
            first, second = os.lstat("n0").st_ino, os.lstat("n1").st_ino
            place.expect("0", exchange, "n0", "n1")
            place.shows("n0", type=two, inode=second)
            place.shows("n1", type=one, inode=first)
            place.remove("n0")
            place.expect("0", noreplace, "n1", "n0")
            place.shows("n0", type=one, inode=first)
            place.absent("n1")
            place.remove("n0")
    place.make("regular", "n0")
    place.expect("ENOENT", exchange, "n0", "n1")
    place.expect("EINVAL", at(3), "n0", "n1")
    place.expect("EINVAL", at(8), "n0", "n1")
    place.expect("EINVAL|0", whiteout, "n0", "n1")
    with contextlib.suppress(OSError):
        os.unlink("n0")


def _sticky() -> Iterator[tuple[int, int, bool]]:
    """Who owns a sticky directory and a file in it, and whether OWNER may take the file away."""
    for owner in (OWNER, 0, OTHER):
        for file_owner in (OWNER, 0, OTHER):
            yield owner, file_owner, OWNER in (owner, file_owner)


def rename_sticky(place: Place) -> None:
    for sticky in ("source", "target"):
        place.make("dir", "s", 0o1777 if sticky == "source" else 0o777, OWNER)
        place.make("dir", "t", 0o1777 if sticky == "target" else 0o777, OWNER)
        there = "s" if sticky == "source" else "t"
        for owner, file_owner, allowed in _sticky():
            os.chown(there, owner, owner)
            for kind in place.kinds:
                for other in (None, *place.kinds):
                    if sticky == "target" and other is None:
                        continue
                    source_owner = file_owner if sticky == "source" else OWNER
                    target_owner = OWNER if sticky == "source" else file_owner
                    place.make(kind, "s/n", uid=source_owner)
                    inode = os.lstat("s/n").st_ino
                    if other is not None:
                        place.make(other, "t/n", uid=target_owner)
                    wanted = "0" if allowed else "EACCES|EPERM"
                    place.expect(wanted, os.rename, "s/n", "t/n", uid=OWNER)
                    if allowed:
                        place.absent("s/n")
                        place.shows("t/n", inode=inode, uid=source_owner, gid=source_owner)
                    else:
                        place.shows("s/n", inode=inode, uid=source_owner, gid=source_owner)
                        place.remove("s/n")
                        if other is None:
                            place.absent("t/n")
                            continue
                        place.shows("t/n", type=other, uid=target_owner, gid=target_owner)
                    place.remove("t/n")
            # A directory that is another's does not go elsewhere: its .. would change.
            source_owner = file_owner if sticky == "source" else OWNER
            place.make("dir", "s/n", 0o755, source_owner)
            if sticky == "target":
                place.make("dir", "t/n", 0o755, file_owner)
            may = allowed and source_owner == OWNER
            wanted = "0" if may else "EACCES|EPERM"
            place.expect(wanted, os.rename, "s/n", "t/n", uid=OWNER)
            for path in ("s/n", "t/n"):
                if os.path.lexists(path):
                    place.remove(path)
        place.remove("s")
        place.remove("t")


# ------------------------------------------------------------------------------ unlink, rmdir


def removing(place: Place) -> None:
    for kind in FILES:
        place.make(kind, "n0")
        with place.moves(".", "mtime", "ctime"):
            place.expect("0", os.unlink, "n0")
        place.absent("n0")
        place.expect("ENOENT", os.unlink, "n0")
        place.make(kind, "n0", uid=OWNER)
        with place.moves("n0"), place.moves("."):
            place.expect("EACCES", os.unlink, "n0", uid=OWNER)
        place.expect("ENOTDIR", os.rmdir, "n0")
        place.remove("n0")
    place.make("dir", "n0")
    place.expect("EISDIR", os.unlink, "n0")
    for kind in KINDS:
        place.make(kind, "n0/n1")
        place.expect("EEXIST|ENOTEMPTY", os.rmdir, "n0")
        place.remove("n0/n1")
    place.expect("EINVAL", os.rmdir, "n0/.")
    place.expect("ENOTEMPTY|EINVAL", os.rmdir, "n0/..")
    place.shows(".", nlink=3)
    with place.moves(".", "mtime", "ctime"):
        place.expect("0", os.rmdir, "n0")
    place.shows(".", nlink=2)
    place.absent("n0")
    place.make("dir", "n0", uid=OWNER)
    with place.moves("n0"), place.moves("."):
        place.expect("EACCES", os.rmdir, "n0", uid=OWNER)
    place.remove("n0")
    place.make("dir", "s", 0o1777)
    for owner, file_owner, allowed in _sticky():
        os.chown("s", owner, owner)
        for kind in KINDS:
            place.make(kind, "s/n", uid=file_owner)
            place.shows("s/n", type=kind, uid=file_owner, gid=file_owner)
            remove = os.rmdir if kind == "dir" else os.unlink
            place.expect("0" if allowed else "EACCES|EPERM", remove, "s/n", uid=OWNER)
            if allowed:
                place.absent("s/n")
            else:
                place.shows("s/n", type=kind, uid=file_owner, gid=file_owner)
                place.remove("s/n")
    place.remove("s")


# ---------------------------------------------------------------------------------- utimensat

_NOW, _OMIT = (1 << 30) - 1, (1 << 30) - 2


def utimensat(
    path: str, atime: int, atime_ns: int, mtime: int, mtime_ns: int, flags: int = 0
) -> None:
    times = (ctypes.c_long * 4)(atime, atime_ns, mtime, mtime_ns)
    _raw("utimensat", -100, path, times, flags)


def times_of_files(place: Place) -> None:
    one, two = 1_900_000_000, 1_950_000_000

    def shown(path: str, atime: int | None, mtime: int | None) -> None:
        status = os.lstat(path)
        for name, want in (("atime", atime), ("mtime", mtime)):
            got = getattr(status, f"st_{name}_ns")
            if want is None:
                place.check(abs(got - time.time_ns()) < 60e9, f"{name} of {path}: now, {got}")
            else:
                place.check(got == want, f"{name} of {path}: {want}, {got}")

    for kind in KINDS:
        flags = 0x100  # AT_SYMLINK_NOFOLLOW
        place.make(kind, "n0")
        with place.moves("n0", "mtime", "ctime"):
            place.expect("0", utimensat, "n0", one, 1, two, 999_999_999, flags)
        shown("n0", one * 10**9 + 1, two * 10**9 + 999_999_999)
        place.expect("0", utimensat, "n0", 0, _OMIT, one, 5, flags)
        shown("n0", one * 10**9 + 1, one * 10**9 + 5)
        place.expect("0", utimensat, "n0", two, 7, 0, _OMIT, flags)
        shown("n0", two * 10**9 + 7, one * 10**9 + 5)
        with place.moves("n0"):
            place.expect("0", utimensat, "n0", 0, _OMIT, 0, _OMIT, flags)
        place.expect("0", utimensat, "n0", 0, _NOW, 0, _OMIT, flags)
        shown("n0", None, one * 10**9 + 5)
        place.expect("0", utimensat, "n0", one, 0, 0, _NOW, flags)
        shown("n0", one * 10**9, None)
        place.expect("0", utimensat, "n0", -5, 0, -1, 0, flags)
        shown("n0", -5 * 10**9, -(10**9))
        place.expect("0", utimensat, "n0", 0, 0, 1 << 31, 1, flags)
        shown("n0", 0, (1 << 31) * 10**9 + 1)
        place.expect("EINVAL", utimensat, "n0", 0, 10**9, 0, 0, flags)
        place.expect("EINVAL", utimensat, "n0", 0, 0, 0, -1, flags)
        place.remove("n0")
    place.make("regular", "n0")
    place.expect("0", os.symlink, "n0", "n1")
    before = os.lstat("n1").st_mtime_ns
    place.expect("0", utimensat, "n1", one, 0, two, 0)
    shown("n0", one * 10**9, two * 10**9)
    place.check(os.lstat("n1").st_mtime_ns == before, "mtime of the symlink stays")
    place.remove("n1")
    # Writing is enough for "now"; other times are the owner's.
    for who, mode, now, then in (
        *((OTHER, 0o644, "EACCES", "EPERM"), (OTHER, 0o666, "0", "EPERM")),
        *((OWNER, 0o444, "0", "0"), (OWNER, 0o000, "0", "0")),
    ):
        os.chown("n0", OWNER, OWNER)
        os.chmod("n0", mode)
        place.expect(now, utimensat, "n0", 0, _NOW, 0, _NOW, uid=who)
        place.expect(then, utimensat, "n0", one, 0, two, 0, uid=who)
        place.expect(then, utimensat, "n0", one, 0, 0, _OMIT, uid=who)
        place.expect(then, utimensat, "n0", 0, _OMIT, two, 0, uid=who)
        place.expect(then, utimensat, "n0", 0, _NOW, 0, _OMIT, uid=who)
        place.expect("0", utimensat, "n0", 0, _OMIT, 0, _OMIT, uid=who)
    place.remove("n0")


# --------------------------------------------------------------------------------- POSIX ACLs

_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def _acl(*entries: tuple[int, int, int]) -> bytes:
    """Entries of (tag, rights, id) as the kernel has them."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _acl_for(user: int, rights: int, *, others: int = 0) -> bytes:
    """rwx for the owner, r-x for the group, `rights` for a user, mask rwx."""
    nobody = 0xFFFFFFFF
    return _acl(
        *((1, 7, nobody), (2, rights, user), (4, 5, nobody), (16, 7, nobody)),
        (32, others, nobody),
    )


def acls(place: Place) -> None:
    place.make("regular", "n0", 0o600)
    os.setxattr("n0", _ACCESS, _acl_for(OTHER, 4))
    place.shows("n0", mode=0o770)  # the mask stands where the group's rights stand
    place.expect("0", opens, "n0", os.O_RDONLY, uid=OTHER)
    place.expect("EACCES", opens, "n0", os.O_WRONLY, uid=OTHER)
    place.expect("EACCES", opens, "n0", os.O_RDONLY, uid=THIRD)
    place.expect("0", os.chmod, "n0", 0o700)  # clears the mask
    place.expect("EACCES", opens, "n0", os.O_RDONLY, uid=OTHER)
    place.expect("0", os.chmod, "n0", 0o740)
    place.expect("0", opens, "n0", os.O_RDONLY, uid=OTHER)
    place.check(_ACCESS in os.listxattr("n0"), "is listed")
    place.expect("EPERM", os.setxattr, "n0", _ACCESS, _acl_for(OTHER, 7), uid=OTHER)
    place.expect("0", os.removexattr, "n0", _ACCESS)
    place.expect("EACCES", opens, "n0", os.O_RDONLY, uid=OTHER)
    place.expect("EACCES", os.setxattr, "n0", _DEFAULT, _acl_for(OTHER, 7))
    place.expect("EINVAL", os.setxattr, "n0", _ACCESS, b"\2\0\0\0\1")
    place.remove("n0")
    # A default ACL is what new files get instead of the umask.
    for umask in (0, 0o22, 0o77):
        place.make("dir", "d", 0o755)
        os.setxattr("d", _DEFAULT, _acl_for(OTHER, 6, others=4))
        for call in (create, mkdir, mkfifo):
            for mode in (0o666, 0o640, 0o600):
                place.expect("0", call, "d/n0", mode, umask=umask)
                place.shows("d/n0", mode=mode & 0o774)
                place.check(_ACCESS in os.listxattr("d/n0"), f"{call.__name__} inherits")
                if call is create:
                    wanted = "0" if mode & 0o040 else "EACCES"
                    place.expect(wanted, opens, "d/n0", os.O_RDONLY, uid=OTHER)
                    wanted = "0" if mode & 0o020 else "EACCES"
                    place.expect(wanted, opens, "d/n0", os.O_WRONLY, uid=OTHER)
                if call is mkdir:
                    place.check(_DEFAULT in os.listxattr("d/n0"), "and hands on")
                place.remove("d/n0")
        os.symlink("x", "d/n0")
        place.remove("d/n0")
        place.expect("0", os.removexattr, "d", _DEFAULT)
        place.expect("0", create, "d/n0", 0o666, umask=umask)
        place.shows("d/n0", mode=0o666 & ~umask)
        place.remove("d/n0")
        place.remove("d")
    # Who sets an ACL on a file of a group not his loses its set-group-id bit.
    place.make("regular", "n0", 0o2755, OWNER, OTHER)
    os.chmod("n0", 0o2755)
    place.expect("0", os.setxattr, "n0", _ACCESS, _acl_for(OTHER, 4), uid=OWNER)
    place.shows("n0", mode=0o770)
    place.remove("n0")


def xattrs(place: Place) -> None:
    for kind in ("regular", "dir"):
        place.make(kind, "n0", 0o644, OWNER)
        place.expect("ENODATA", os.getxattr, "n0", "user.a")
        place.expect("ENODATA", os.setxattr, "n0", "user.a", b"1", os.XATTR_REPLACE)
        place.expect("0", os.setxattr, "n0", "user.a", b"1", os.XATTR_CREATE)
        place.expect("EEXIST", os.setxattr, "n0", "user.a", b"2", os.XATTR_CREATE)
        place.check(os.getxattr("n0", "user.a") == b"1", "value")
        place.expect("0", os.setxattr, "n0", "user.a", b"\0\xff" * 500, os.XATTR_REPLACE)
        place.check(os.getxattr("n0", "user.a") == b"\0\xff" * 500, "longer value")
        place.expect("0", os.setxattr, "n0", "user.b", b"")
        place.check(os.getxattr("n0", "user.b") == b"", "empty value")
        place.check(sorted(os.listxattr("n0")) == ["user.a", "user.b"], "list")
        place.expect("EACCES", os.setxattr, "n0", "user.c", b"", uid=OTHER)
        place.expect("EPERM", os.setxattr, "n0", "trusted.c", b"", uid=OWNER)
        place.expect("0", os.setxattr, "n0", "trusted.c", b"1")
        place.expect("0", os.chmod, "n0", 0o600)
        place.expect("EACCES", os.getxattr, "n0", "user.a", uid=OTHER)
        place.expect("ENOTSUP", os.setxattr, "n0", "nonsense.a", b"")
        place.expect("ERANGE|ENOTSUP", os.setxattr, "n0", "user." + "x" * 300, b"")
        place.expect("0", os.removexattr, "n0", "user.a")
        place.expect("ENODATA", os.removexattr, "n0", "user.a")
        place.remove("n0")
    for kind in ("fifo", "symlink", "char"):
        place.make(kind, "n0")

        def set_user(path: str) -> None:
            os.setxattr(path, "user.a", b"1", follow_symlinks=False)

        def set_trusted(path: str) -> None:
            os.setxattr(path, "trusted.a", b"1", follow_symlinks=False)

        place.expect("EPERM", set_user, "n0")
        place.expect("0", set_trusted, "n0")
        place.remove("n0")


# ---------------------------------------------------------------------------------- reading etc.


def times_of_access(place: Place) -> None:
    """Reading changes neither bytes nor their times; writing does; directories as their names."""
    place.make("regular", "n0")
    with place.moves("n0", "mtime", "ctime"), open("n0", "wb", buffering=0) as file:
        file.write(b"x" * 10)
    with place.moves("n0"):
        pathlib.Path("n0").read_bytes()
    with place.moves("n0", "ctime"):
        os.setxattr("n0", "user.test", b"1")
    with place.moves("n0", "ctime"):
        os.removexattr("n0", "user.test")
    fd = os.open("n0", os.O_RDWR)
    with place.moves("n0", "mtime", "ctime"):
        os.pwrite(fd, b"y", 4)
    with place.moves("n0", "mtime", "ctime"):
        os.ftruncate(fd, 4)
    with place.moves("n0", "mtime", "ctime"):
        os.ftruncate(fd, 8)
    place.shows("n0", size=8)
    os.close(fd)
    place.make("dir", "d")
    with place.moves("d"), place.moves(".", "mtime", "ctime"):
        os.rename("n0", "n1")
    with place.moves("d", "mtime", "ctime"), place.moves(".", "mtime", "ctime"):
        os.rename("n1", "d/n1")
    with place.moves("d"):
        os.listdir("d")
    with place.moves("d", "mtime", "ctime"):
        os.unlink("d/n1")
    place.remove("d")


CLASSES: dict[str, list[Callable[[Place], None]]] = {
    "path": [
        *(path_enotdir, path_enametoolong, path_enoent, path_eacces),
        *(path_eloop, path_efault, path_eexist),
    ],
    "chmod": [chmod_changes, chmod_set_bits, chmod_strangers],
    "chown": [chown_changes, chown_set_bits],
    "truncate": [truncate_sizes, running_programs],
    "link": [link_names],
    "make": [making],
    "symlink": [symlinks],
    "open": [open_modes, open_creates, open_kinds, open_unlinked, open_appends, open_direct],
    "data": [mapping, sparse, locking, names],
    "xattr": [xattrs, acls],
    "fallocate": [allocating],
    "rename": [rename_names, rename_replaces, rename_directories, rename_flags, rename_sticky],
    "remove": [removing],
    "utimensat": [times_of_files, times_of_access],
}


def check(
    directory: str | os.PathLike[str],
    function: Callable[[Place], None],
    kinds: tuple[str, ...] = FILES,
) -> Place:
    """Run one function of the table in a new directory inside `directory`."""
    place = Place(kinds)
    place.about = function.__name__
    home = os.getcwd()
    inner = pathlib.Path(directory, function.__name__)
    inner.mkdir()
    try:
        os.chdir(inner)
        os.chmod(".", 0o755)
        function(place)
    finally:
        os.chdir(home)
        shutil.rmtree(inner, ignore_errors=True)
    return place


def main() -> None:
    directory, *wanted = sys.argv[1:]
    counts: collections.Counter[str] = collections.Counter()
    failed: collections.Counter[str] = collections.Counter()
    for name, functions in CLASSES.items():
        if wanted and name not in wanted:
            continue
        for function in functions:
            place = check(directory, function)
            counts[name] += place.count
            failed[name] += len(place.failures)
            print(*place.failures, sep="\n", end="\n" if place.failures else "")
    for name, count in counts.items():
        print(f"{name:10} {count:6} assertions, {failed[name]} failed")
    print(f"{'all':10} {counts.total():6} assertions, {failed.total()} failed")


if __name__ == "__main__":
    main()
