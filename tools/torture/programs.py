"""Other people's programs on a mount whose files are frozen under them.

    python -m lmfs_tools.torture.programs FOLDER [--only NAME] [--scale N] [--tree DIRECTORY]

Owns: what they do, and how it is compared. FOLDER gets a store and its mount, and what is compared
with. Each program works through the mount; then everything that is fit is frozen, it is mounted
anew, and the program, or its own checker, looks again. Scale 1 takes seconds, 20 minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

from lmfs.codecs.choose import Chooser
from lmfs.errors import BusyError
from lmfs.store.freeze import Action, freeze, thaw
from lmfs.store.walk import regular_files

from .mounted import Difference, Mounted, leftovers, opened, require_clean


def command(*arguments: object, cwd: pathlib.Path | None = None) -> str:
    """What a command printed. raises: Difference if it fails"""
    done = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        shown = (done.stdout + done.stderr)[-3000:]
        raise Difference(f"{' '.join(map(str, arguments))}: status {done.returncode}: {shown}")
    return done.stdout


def freeze_all(mounted: Mounted) -> int:
    """Freeze what is fit, from outside of the mount; how many files are frozen now."""
    frozen = 0
    with opened(mounted.backing) as marks:
        for path, _ in list(regular_files(marks.store)):
            outcome = freeze(marks, path, Chooser(None, 1))
            frozen += outcome.action is Action.FROZEN or outcome.reason == "frozen already"
    return frozen


def mount_anew(mounted: Mounted) -> None:
    """Unmount, have fsck look at everything, and mount again. raises: Difference"""
    mounted.unmount()
    with opened(mounted.backing) as marks:
        require_clean(marks)
    if found := leftovers(mounted.backing):
        raise Difference(f"left over: {found}")
    mounted.mount()


@contextlib.contextmanager
def freezing(mounted: Mounted, counts: dict[str, int]) -> Iterator[None]:
    """A thread freezes and thaws whatever it can, again and again. raises: what went wrong there"""
    stop, wrong, chance = threading.Event(), [], random.Random(1)

    def work() -> None:
        with opened(mounted.backing) as marks:
            while not stop.wait(0.01):
                with contextlib.suppress(FileNotFoundError):
                    for path, _ in list(regular_files(marks.store)):
                        with contextlib.suppress(FileNotFoundError, BusyError):
                            if chance.random() < 0.7:
                                outcome = freeze(marks, path, Chooser(None, 1))
                            else:
                                outcome = thaw(marks, path)
                            name = outcome.action.value
                            counts[name] = counts.get(name, 0) + 1

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            wrong.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if wrong:
        raise wrong[0]


# ---------------------------------------------------------------------------------- programs


def fio(mounted: Mounted, scale: int, tree: pathlib.Path) -> str:
    """Random writes, each block with a checksum; verified when it is frozen."""
    job = (
        *("--name=job", f"--directory={mounted.point}", f"--size={4 * scale}m", "--bs=4k"),
        *("--rw=randwrite", "--numjobs=2", "--ioengine=psync", "--verify=crc32c", "--randseed=7"),
        *("--verify_fatal=1", "--buffer_compress_percentage=70", "--refill_buffers", "--minimal"),
        *("--verify_state_save=0", "--fallocate=none", "--end_fsync=1"),
    )
    command("fio", *job, "--do_verify=1")
    frozen = freeze_all(mounted)
    mount_anew(mounted)
    if frozen < 2:
        raise Difference(f"fio's files were not frozen: {frozen} of 2")
    command("fio", *job, "--verify_only")
    return f"2 files of {4 * scale} MB written at random, frozen, verified through a new mount"


def git(mounted: Mounted, scale: int, tree: pathlib.Path) -> str:
    """A clone, changed and packed while the freezer runs."""
    origin, clone = mounted.point.parent / "origin", mounted.point / "clone"
    origin.mkdir()
    shutil.copytree(tree, origin / "tree", symlinks=True, ignore=shutil.ignore_patterns(".git"))
    settings = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
    command("git", "init", "-q", "-b", "main", cwd=origin)
    command("git", "add", "-A", "-f", cwd=origin)
    command("git", *settings, "commit", "-q", "-m", "first", cwd=origin)
    counts: dict[str, int] = {}
    command("git", "clone", "-q", "--no-local", origin, clone)
    with freezing(mounted, counts):
        for number in range(3 * scale):
            for path in sorted(clone.rglob("*.py"))[number :: 3 * scale][:50]:
                with path.open("a") as file:
                    file.write(f"# change {number}\n")
            command(
                "git", *settings, "commit", "-q", "-a", "--allow-empty", "-m", number, cwd=clone
            )
        command("git", "gc", "-q", cwd=clone)
        command("git", "fsck", "--full", "--strict", cwd=clone)
    frozen = freeze_all(mounted)
    mount_anew(mounted)
    command("git", "fsck", "--full", "--strict", cwd=clone)
    if left := command("git", "status", "--porcelain", cwd=clone):
        raise Difference(f"git status: {left}")
    command("git", "push", "-q", "origin", "HEAD:refs/heads/back", cwd=clone)
    command("git", "fsck", "--full", "--strict", cwd=origin)
    return f"{3 * scale} commits with {counts}, {frozen} files frozen at the end, fsck and status"


def sqlite(mounted: Mounted, scale: int, tree: pathlib.Path) -> str:
    """Databases that are opened, written to and closed while the freezer runs."""
    counts: dict[str, int] = {}
    chance = random.Random(2)
    rows = {"delete": 0, "wal": 0, "truncate": 0}
    until = time.monotonic() + 2 * scale
    with freezing(mounted, counts):
        while time.monotonic() < until:
            for mode in rows:
                with contextlib.closing(sqlite3.connect(mounted.point / f"{mode}.db")) as base:
                    base.execute(f"pragma journal_mode={mode}")
                    base.execute("create table if not exists t (n integer primary key, s text)")
                    for _ in range(3):
                        with base:
                            for _ in range(50):
                                text = "a cold row of text " * chance.randrange(1, 9)
                                base.execute("insert into t (s) values (?)", (text,))
                                rows[mode] += 1
                            base.execute(
                                "update t set s = 'changed' where n = ?",
                                (chance.randrange(1, rows[mode] + 1),),
                            )
                    _check_database(base, rows[mode])
                time.sleep(0.02)
    frozen = freeze_all(mounted)
    mount_anew(mounted)
    for mode, count in rows.items():
        with contextlib.closing(sqlite3.connect(mounted.point / f"{mode}.db")) as base:
            _check_database(base, count)
    return f"{sum(rows.values())} rows with {counts}, {frozen} files frozen at the end"


def _check_database(base: sqlite3.Connection, rows: int) -> None:
    found = base.execute("pragma integrity_check").fetchall()
    if found != [("ok",)]:
        raise Difference(f"integrity_check: {found}")
    (count,) = base.execute("select count(*) from t").fetchone()
    if count != rows:
        raise Difference(f"expected {rows} rows, got {count}")


def rsync(mounted: Mounted, scale: int, tree: pathlib.Path) -> str:
    """A tree with links, ACLs, xattrs and odd files copied in, frozen, and copied out again."""
    source, back = mounted.point.parent / "source", mounted.point.parent / "back"
    shutil.copytree(tree, source, symlinks=True)
    _odd_files(source)
    target = mounted.point / "tree"
    command("rsync", "-aHAX", f"{source}/", f"{target}/")
    _same(source, target)
    frozen = freeze_all(mounted)
    # The directories' times are those of the last file that was frozen there.
    _same(source, target, "--omit-dir-times")
    mount_anew(mounted)
    _same(source, target, "--omit-dir-times")
    command("rsync", "-aHAX", f"{target}/", f"{back}/")
    _same(source, back, "--omit-dir-times")
    names = sum(len(files) for _, _, files in os.walk(source))
    return f"{names} names in and out, {frozen} files frozen between"


def _odd_files(root: pathlib.Path) -> None:
    text = b"some cold text\n" * 5000
    odd = root / "odd"
    odd.mkdir()
    (odd / "one").write_bytes(text)
    os.link(odd / "one", odd / "two")
    os.symlink("one", odd / "symlink")
    os.symlink("nowhere", odd / "dangling")
    os.mkfifo(odd / "fifo")
    (odd / "empty").touch()
    with (odd / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(text)
    (odd / os.fsdecode(b"\xff\xfe odd \n name")).write_bytes(text)
    special = odd / "special"
    special.write_bytes(text)
    os.setxattr(special, "user.note", b"\0binary")
    os.setxattr(
        special,
        "system.posix_acl_access",
        bytes.fromhex(
            "02000000 01000600ffffffff 02000400d2040000 04000400ffffffff 10000400ffffffff"
            " 20000000ffffffff"
        ),
    )
    if os.geteuid() == 0:
        os.chown(odd / "one", 1234, 4321)
    os.chmod(odd / "one", 0o4755)
    os.utime(special, ns=(1, 1_234_567_890_123_456_789))


def _same(one: pathlib.Path, other: pathlib.Path, *options: str) -> None:
    for source, target in ((one, other), (other, one)):
        arguments = ("-aHAXn", *options, "--checksum", "--delete", "--itemize-changes")
        if found := command("rsync", *arguments, f"{source}/", f"{target}/"):
            raise Difference(f"rsync from {source} to {target} would change: {found[:3000]}")


def tar(mounted: Mounted, scale: int, tree: pathlib.Path) -> str:
    """A source tree unpacked on the mount while the freezer runs, and compared."""
    archive = mounted.point.parent / "tree.tar"
    command("tar", "-cf", archive, "-C", tree, ".")
    counts: dict[str, int] = {}
    target = mounted.point / "unpacked"
    target.mkdir()
    with freezing(mounted, counts):
        command("tar", "-xf", archive, "-C", target)
        command("diff", "-r", "--no-dereference", tree, target)
    frozen = freeze_all(mounted)
    command("diff", "-r", "--no-dereference", tree, target)
    mount_anew(mounted)
    command("diff", "-r", "--no-dereference", tree, target)
    command("tar", "--compare", "-f", archive, "-C", target)
    return f"{archive.stat().st_size >> 20} MB with {counts}, {frozen} files frozen at the end"


PROGRAMS: dict[str, Callable[[Mounted, int, pathlib.Path], str]] = {
    program.__name__: program for program in (fio, git, sqlite, rsync, tar)
}


def run(name: str, folder: pathlib.Path, *, scale: int = 1, tree: pathlib.Path) -> str:
    """Run one program in a new folder; what it did. tree: what is cloned, copied and unpacked

    raises: Difference
    """
    with Mounted(folder, "cachesize=4") as mounted:
        return PROGRAMS[name](mounted, scale, tree)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="new; removed afterwards")
    parser.add_argument("--only", action="append", choices=[*PROGRAMS])
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--tree", type=pathlib.Path, default=pathlib.Path(os.__file__).parent)
    args = parser.parse_args()
    failed = False
    for name in args.only or PROGRAMS:
        begin = time.monotonic()
        folder = args.folder / name
        try:
            print(f"{name}: {run(name, folder, scale=args.scale, tree=args.tree)}", end="")
            print(f", {time.monotonic() - begin:.0f} s", flush=True)
            shutil.rmtree(folder)
        except Difference as difference:
            failed = True
            print(f"{name}: {difference}\nthe store is left in {folder}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
