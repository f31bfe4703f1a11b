"""Freezing and thawing: same bytes, same metadata, and nothing lost whatever happens."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest
from backing import CHUNK, Backing, SweepsBeside, text

from lmfs.codecs.choose import Chooser
from lmfs.errors import BusyError, DamagedError, VerifyError
from lmfs.lmz import LmzWriter
from lmfs.store import freeze as freeze_module
from lmfs.store import publish
from lmfs.store.freeze import Action, freeze, thaw
from lmfs.store.marks import State
from lmfs.store.walk import sweep_tree

DATA = text(20 * CHUNK + 5)


def blank(status):
    return (
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_nlink,
    )


class TestRoundTrip:
    def test_bytes_and_metadata(self, backing):
        path = backing.write("d/f", DATA)
        os.chown(path, 1234, 4321)
        os.chmod(path, 0o2751)
        os.setxattr(path, "user.note", b"mine")
        os.utime(path, ns=(1_000_000_001, 1_234_567_890_123_456_789))
        before, inode = path.stat(), backing.facts("d/f").inode
        outcome = backing.freeze("d/f")
        assert outcome.action is Action.FROZEN
        assert outcome.before_bytes > outcome.after_bytes == path.stat().st_blocks * 512
        assert blank(path.stat()) == blank(before)
        assert os.getxattr(path, "user.note") == b"mine"
        assert backing.facts("d/f")[:4] == (State.FROZEN, len(DATA), inode, None)
        outcome = thaw(backing.marks, "d/f")
        assert outcome.action is Action.THAWED
        assert path.read_bytes() == DATA
        assert blank(path.stat()) == blank(before)
        assert os.getxattr(path, "user.note") == b"mine"
        assert backing.facts("d/f")[:4] == (State.HOT, len(DATA), inode, None)
        assert backing.leftovers() == []

    def test_a_posix_acl_and_no_inherited_one(self, backing):
        acl = bytes.fromhex(  # u::rw- u:1234:r-- g::r-- m::r-- o::---
            "02000000 01000600ffffffff 02000400d2040000 04000400ffffffff 10000400ffffffff"
            " 20000000ffffffff"
        )
        path = backing.write("f", DATA)
        os.setxattr(path, "system.posix_acl_access", acl)
        other = backing.write("g", DATA)
        os.setxattr(backing.path, "system.posix_acl_default", acl)
        mode = path.stat().st_mode
        backing.freeze("f")
        backing.freeze("g")
        assert os.getxattr(path, "system.posix_acl_access") == acl
        assert path.stat().st_mode == mode
        assert "system.posix_acl_access" not in os.listxattr(other)

    def test_progress_adds_up(self, backing):
        backing.write("f", DATA)
        counts = []
        backing.freeze("f", progress=counts.append)
        assert sum(counts) == len(DATA)
        counts.clear()
        thaw(backing.marks, "f", progress=counts.append)
        assert sum(counts) == len(DATA)

    @pytest.mark.parametrize("keep", [0, 1, CHUNK, CHUNK + 1, len(DATA), len(DATA) + 1])
    def test_thawing_a_part(self, backing, keep):
        path = backing.write_frozen("f", DATA)
        before = path.stat().st_mtime_ns
        thaw(backing.marks, "f", keep_bytes=keep)
        assert path.read_bytes() == DATA[:keep]
        assert path.stat().st_mtime_ns > before

    def test_freezing_again_after_a_change(self, backing):
        path = backing.write_frozen("f", DATA)
        thaw(backing.marks, "f")
        path.write_bytes(DATA * 2)
        assert backing.freeze("f").action is Action.FROZEN
        thaw(backing.marks, "f")
        assert path.read_bytes() == DATA * 2

    def test_two_files_never_show_one_number(self, backing):
        """The filesystem gives freed numbers away; the mount must not."""
        seen = {}
        for i in range(12):
            backing.write(f"f{i}", text(2 * CHUNK, i))
            seen[f"f{i}"] = backing.facts(f"f{i}").inode
            if i % 2:
                backing.freeze(f"f{i}")
            if i % 4 == 3:
                thaw(backing.marks, f"f{i}")
        assert {name: backing.facts(name).inode for name in seen} == seen
        assert len(set(seen.values())) == len(seen)


class TestLeftAlone:
    def skipped(self, backing, reason, name="f"):
        before = (backing.path / name).lstat()
        outcome = backing.freeze(name)
        assert outcome.action is Action.SKIPPED
        assert reason in outcome.reason
        assert outcome.before_bytes == outcome.after_bytes
        after = (backing.path / name).lstat()
        assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
        assert backing.leftovers() == []

    def test_hard_links(self, backing):
        os.link(backing.write("f", DATA), backing.path / "g")
        self.skipped(backing, "2 hard links")

    def test_sparse(self, backing):
        path = backing.write("f", DATA)
        os.truncate(path, 1 << 20)
        self.skipped(backing, "sparse")

    def test_empty(self, backing):
        backing.write("f", b"")
        self.skipped(backing, "empty")

    def test_small(self, backing):
        backing.write("f", b"a" * 4096)
        self.skipped(backing, "one block")

    def test_incompressible(self, backing):
        backing.write("f", os.urandom(8 * CHUNK))
        self.skipped(backing, "fewer blocks")

    def test_frozen_already(self, backing):
        backing.write_frozen("f", DATA)
        self.skipped(backing, "frozen already")

    def test_not_regular(self, backing):
        os.symlink("/etc/services", backing.path / "f")
        self.skipped(backing, "not a regular file")
        os.mkfifo(backing.path / "p")
        self.skipped(backing, "not a regular file", "p")

    @pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY])
    def test_open(self, backing, flags):
        fd = os.open(backing.write("f", DATA), flags)
        try:
            self.skipped(backing, "has it open")
        finally:
            os.close(fd)
        assert backing.freeze("f").action is Action.FROZEN

    def test_locked(self, backing):
        with open(backing.write("f", DATA), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.skipped(backing, "lock")

    def test_skipping_does_not_change_the_number(self, backing):
        backing.write("f", os.urandom(8 * CHUNK))
        inode = backing.facts("f").inode
        backing.freeze("f")
        assert backing.facts("f").inode == inode

    def test_thawing_what_is_not_frozen(self, backing):
        backing.write("f", DATA)
        assert thaw(backing.marks, "f").reason == "not frozen"
        os.symlink("f", backing.path / "l")
        assert thaw(backing.marks, "l").reason == "not a regular file"


class TestMeanwhile:
    """Somebody does something while a file is being frozen."""

    def at(self, monkeypatch, step, action):
        def reached(name):
            if name == step:
                action()

        for module in (publish, freeze_module):
            monkeypatch.setattr(module, "reached", reached)

    @pytest.mark.parametrize("step", ["created", "described", "verified"])
    def test_a_write(self, backing, monkeypatch, step):
        path = backing.write("f", DATA)

        def write():
            with open(path, "ab") as file:
                file.write(b"more")

        self.at(monkeypatch, step, write)
        assert backing.freeze("f").action is Action.SKIPPED
        assert path.read_bytes() == DATA + b"more"
        assert backing.leftovers() == []

    def test_a_removal(self, backing, monkeypatch):
        path = backing.write("f", DATA)
        self.at(monkeypatch, "synced", path.unlink)
        assert backing.freeze("f").action is Action.SKIPPED
        assert not path.exists()
        assert backing.leftovers() == []

    @pytest.mark.parametrize("step", ["synced", "checked"])
    def test_another_file_under_the_name(self, backing, monkeypatch, step):
        path, other = backing.write("f", DATA), backing.write("g", b"other")
        self.at(monkeypatch, step, lambda: os.rename(other, path))
        assert backing.freeze("f").action is Action.SKIPPED
        assert path.read_bytes() == b"other"
        assert backing.leftovers() == []

    def test_another_file_survives_a_swap_back_that_fails(self, backing, monkeypatch):
        """It stands under our temporary's name then, and is not ours to remove."""
        path, other = backing.write("f", DATA), backing.write("g", b"other")
        swap, calls = publish.exchange_or_rename, []

        def failing(*arguments, **options):
            calls.append(arguments)
            if len(calls) > 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return swap(*arguments, **options)

        self.at(monkeypatch, "checked", lambda: os.rename(other, path))
        monkeypatch.setattr(publish, "exchange_or_rename", failing)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            backing.freeze("f")
        (name,) = backing.leftovers()
        assert (backing.path / name).read_bytes() == b"other"
        sweep_tree(backing.marks)
        assert (backing.path / name).read_bytes() == b"other"

    def test_a_rename_in_the_last_moment(self, backing, monkeypatch):
        path = backing.write("f", DATA)
        self.at(monkeypatch, "checked", lambda: os.rename(path, backing.path / "g"))
        assert backing.freeze("f").action is Action.SKIPPED
        assert (backing.path / "g").read_bytes() == DATA
        assert not path.exists()
        assert backing.leftovers() == []

    @pytest.mark.parametrize("step", ["described", "checked"])
    @pytest.mark.parametrize("direction", ["freeze", "thaw"])
    def test_a_new_mode_is_not_lost(self, backing, monkeypatch, step, direction):
        path = backing.write("f", DATA)
        if direction == "thaw":
            backing.freeze("f")
        self.at(monkeypatch, step, lambda: os.chmod(path, 0o600))
        if direction == "thaw":
            thaw(backing.marks, "f")
        else:
            backing.freeze("f")
        assert path.stat().st_mode & 0o777 == 0o600

    def test_the_number_stays_when_it_comes_to_nothing(self, backing, monkeypatch):
        """It is kept by then, and who has a kept number without a mark shows another."""
        path = backing.write("f", DATA)
        inode = backing.facts("f").inode

        def step_aside():
            os.rename(path, backing.path / "g")

        self.at(monkeypatch, "checked", step_aside)
        assert backing.freeze("f").action is Action.SKIPPED
        assert backing.facts("g").inode == inode

    @pytest.mark.parametrize("direction", ["freeze", "thaw"])
    def test_what_is_done_right_after_the_swap_is_not_undone(self, backing, monkeypatch, direction):
        path = backing.write("f", DATA)
        os.utime(path, ns=(1, 1))
        if direction == "thaw":
            backing.freeze("f")

        def change():
            os.chmod(path, 0o600)
            os.utime(path, ns=(2, 2))
            os.setxattr(path, "user.note", b"mine")

        self.at(monkeypatch, "swapped", change)
        if direction == "thaw":
            thaw(backing.marks, "f")
        else:
            backing.freeze("f")
        status = path.stat()
        assert (status.st_mode & 0o777, status.st_mtime_ns) == (0o600, 2)
        assert os.getxattr(path, "user.note") == b"mine"

    @pytest.mark.parametrize("call", ["listxattr", "unlink"])
    def test_an_error_after_the_swap_is_no_failure(self, backing, monkeypatch, call):
        """The file has been cut by then: who asked for it must not hear that it was not."""
        path = backing.write_frozen("f", DATA)

        def fail(*_, **__):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            self.at(patch, "swapped", lambda: patch.setattr(os, call, fail))
            assert thaw(backing.marks, "f", keep_bytes=100).action is Action.THAWED
        assert path.read_bytes() == DATA[:100]
        sweep_tree(backing.marks)
        assert backing.leftovers() == []

    def test_an_opener_waits_and_wins(self, backing, monkeypatch):
        """Who opens the file under the lease gets the file that stays under the name."""
        path = backing.write("f", DATA)
        opened = []

        def opener():
            with open(path, "ab") as file:
                file.write(b"more")
                opened.append(os.fstat(file.fileno()).st_nlink)

        thread = threading.Thread(target=opener)

        def start():
            thread.start()
            lease_wanted.wait(0.3)

        lease_wanted = threading.Event()
        self.at(monkeypatch, "checked", start)
        assert backing.freeze("f").action is Action.SKIPPED
        thread.join()
        assert opened == [1]
        assert path.read_bytes() == DATA + b"more"

    def test_two_at_once(self, backing):
        backing.write("f", DATA)
        actions = []
        threads = [
            threading.Thread(target=lambda: actions.append(backing.freeze("f").action))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert actions.count(Action.FROZEN) == 1
        assert backing.leftovers() == []
        thaw(backing.marks, "f")
        assert (backing.path / "f").read_bytes() == DATA

    def test_two_thaw_at_once(self, backing):
        backing.write_frozen("f", DATA)
        actions = []
        threads = [
            threading.Thread(target=lambda: actions.append(thaw(backing.marks, "f").action))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(a.value for a in actions) == ["skipped"] * 3 + ["thawed"]


class TestWrong:
    def test_a_coder_that_errs_publishes_nothing(self, backing, monkeypatch):
        path = backing.write("f", DATA)
        honest = LmzWriter.write
        monkeypatch.setattr(
            LmzWriter, "write", lambda self, data: honest(self, bytes(data).replace(b"e", b"a"))
        )
        with pytest.raises(VerifyError, match="not what was read"):
            backing.freeze("f")
        assert path.read_bytes() == DATA
        assert backing.leftovers() == []

    def test_a_disk_that_errs_publishes_nothing(self, backing, monkeypatch):
        path = backing.write("f", DATA)

        def reached(step):
            if step == "synced":
                (name,) = backing.leftovers()
                with open(backing.path / name, "r+b") as file:
                    file.seek(200)
                    file.write(b"\0\0\0\0")

        monkeypatch.setattr(publish, "reached", reached)
        with pytest.raises(VerifyError, match="cannot be read back"):
            backing.freeze("f")
        assert path.read_bytes() == DATA
        assert backing.leftovers() == []

    def test_a_damaged_chunk_is_not_thawed(self, backing):
        path = backing.write_frozen("f", DATA)
        stored = bytearray(path.read_bytes())
        stored[len(stored) // 2] ^= 1
        path.write_bytes(stored)
        with pytest.raises(DamagedError):
            thaw(backing.marks, "f")
        assert path.read_bytes() == stored
        assert backing.leftovers() == []

    def test_cutting_to_nothing_works_on_damaged_files(self, backing):
        path = backing.write_frozen("f", DATA)
        os.truncate(path, 70)
        with pytest.raises(DamagedError):
            thaw(backing.marks, "f")
        with pytest.raises(DamagedError):
            thaw(backing.marks, "f", keep_bytes=1)
        thaw(backing.marks, "f", keep_bytes=0)
        assert path.read_bytes() == b""
        assert backing.facts("f").state is State.HOT

    def test_freezing_a_damaged_file(self, backing):
        path = backing.write_frozen("f", DATA)
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(DamagedError):
            thaw(backing.marks, "f")
        os.truncate(path, 9000)
        with pytest.raises(DamagedError):
            freeze(backing.marks, "f", Chooser(None), even_if_larger=True)


class TestDiskFull:
    def test_freezing(self, small_disk):
        backing = Backing(small_disk)
        path = backing.write("f", os.urandom(300_000).hex().encode())
        backing.write("rest", os.urandom(350_000))
        try:
            with pytest.raises(OSError, match="No space") as raised:
                backing.freeze("f")
            assert raised.value.errno == errno.ENOSPC
            assert path.stat().st_size == 600_000
            assert backing.facts("f").state is State.HOT
            assert backing.leftovers() == []
        finally:
            backing.close()

    def test_thawing(self, small_disk):
        backing = Backing(small_disk)
        data = text(600_000)
        path = backing.write_frozen("f", data)
        rest = backing.write("rest", os.urandom(500_000))
        try:
            with pytest.raises(OSError, match="No space"):
                thaw(backing.marks, "f")
            assert backing.facts("f").state is State.FROZEN
            assert backing.leftovers() == []
            rest.unlink()
            thaw(backing.marks, "f")
            assert path.read_bytes() == data
        finally:
            backing.close()


KILLER = """
import os, signal, sys
from lmfs.codecs.choose import Chooser
from lmfs.store import freeze as freeze_module, publish
from lmfs.store.marks import Marks
from lmfs.store.store import Store

def reached(step):
    if step == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

publish.reached = freeze_module.reached = reached
marks = Marks(Store.open(sys.argv[1]))
if sys.argv[2] == "freeze":
    freeze_module.freeze(marks, "f", Chooser(None), chunk_size=4096)
else:
    freeze_module.thaw(marks, "f")
"""

STEPS = [line.split()[0] for line in publish.__doc__.splitlines() if line.startswith("    ")]


def test_the_steps_are_those_of_the_protocol(backing, monkeypatch):
    seen = []
    for module in (publish, freeze_module):
        monkeypatch.setattr(module, "reached", seen.append)
    backing.write_frozen("f", DATA)
    assert seen == STEPS
    seen.clear()
    thaw(backing.marks, "f")
    assert seen == STEPS


@pytest.mark.parametrize("direction", ["freeze", "thaw"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_at(backing, direction, step):
    """kill -9 at any step leaves the whole file, old or new, and nothing that stays."""
    path = backing.write("f", DATA)
    inode = backing.facts("f").inode
    if direction == "thaw":
        backing.freeze("f")
    done = subprocess.run(
        [sys.executable, "-c", KILLER, backing.path, direction, step], check=False
    )
    assert done.returncode == -signal.SIGKILL
    swapped = STEPS.index(step) >= STEPS.index("swapped")
    expected = State.FROZEN if (direction == "freeze") == swapped else State.HOT
    assert backing.facts("f")[:2] == (expected, len(DATA))
    if not swapped and step != "checked":
        assert backing.facts("f").inode == inode
    left = 0 if step in ("locked", "removed") else 1
    assert len(backing.leftovers()) == left
    assert len(sweep_tree(backing.marks)) == left
    assert backing.leftovers() == []
    thaw(backing.marks, "f")
    assert path.read_bytes() == DATA


class TestSweep:
    def test_a_temporary_in_use_stays(self, backing, monkeypatch):
        backing.write("f", DATA)
        sweeps = SweepsBeside(backing.marks)
        monkeypatch.setattr(publish, "reached", sweeps)
        assert backing.freeze("f").action is Action.FROZEN
        assert sweeps.finish() == []
        assert "swapped" in sweeps.steps

    def test_a_strangers_file_stays(self, backing):
        name = backing.store.new_temporary_name(12345)
        backing.write(name, b"not ours, though its name is")
        backing.write(".lmfs-00000000-1-00000000.tmp", b"of another store")
        assert sweep_tree(backing.marks) == []
        assert len(backing.leftovers()) == 2


def test_a_file_that_is_being_replaced_is_busy(backing):
    backing.write("f", DATA)
    with publish.Source(backing.store, "f", wait=False), pytest.raises(BusyError, match="lock"):
        publish.Source(backing.store, "f", wait=False)
