"""Writing to frozen files: what a reader sees, what is decoded, and what is left of a crash."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from backing import CHUNK, Backing, mount, run_lmfs, slurp, state, text, unmount

from lmfs.errors import BusyError, DamagedError
from lmfs.lmz import LmzReader
from lmfs.store import freeze as freeze_module
from lmfs.store import overlays, publish
from lmfs.store.account import Account
from lmfs.store.freeze import Action, thaw
from lmfs.store.marks import FROZEN_MARK, State, frozen_mark
from lmfs.store.overlays import BLOCK, OVERLAYS, Overlays, data_start
from lmfs.store.store import Store
from lmfs.store.walk import sweep_overlays, sweep_tree
from lmfs.vfs import Vfs

HIDDEN = ".fuse_hidden0000000100000001"
SIZE = 20 * CHUNK + 5
DATA = text(SIZE)


def patch(vfs, name, *writes, sync=False):
    """Write (bytes, offset) through a handle of its own."""
    handle = vfs.open(name, os.O_RDWR)
    for data, offset in writes:
        assert vfs.write(handle, data, offset) == len(data)
    if sync:
        vfs.sync(handle)
    vfs.release(handle, name)


def overlay_names(backing):
    try:
        return sorted(os.listdir(backing.path / OVERLAYS))
    except FileNotFoundError:
        return []


def overlay_path(backing):
    (name,) = overlay_names(backing)
    return backing.path / OVERLAYS / name


def laid_over(data, *writes):
    result = bytearray(data)
    for new, offset in writes:
        result.extend(bytes(max(0, offset - len(result))))
        result[offset : offset + len(new)] = new
    return bytes(result)


@pytest.fixture(autouse=True)
def switched_on(monkeypatch):
    """Also for the commands that tests start."""
    monkeypatch.setenv(overlays.SWITCH, "1")


@pytest.fixture
def frozen(backing):
    return backing.write_frozen("f", DATA)


@pytest.fixture
def decoded(monkeypatch):
    """The ranges of frozen files that are asked for."""
    asked = []
    real = LmzReader.pread

    def pread(self, size, offset):
        asked.append((offset, size))
        return real(self, size, offset)

    monkeypatch.setattr(LmzReader, "pread", pread)
    return asked


class TestWriting:
    @pytest.mark.parametrize(
        "writes",
        [
            [(b"x", 0)],
            [(b"NEW", 5), (b"ER", 7)],
            [(b"x" * 20, BLOCK - 10)],
            [(b"x" * (3 * BLOCK), BLOCK)],
            [(b"x" * (3 * BLOCK), BLOCK - 1)],
            [(b"x" * SIZE, 0)],
            [(b"x" * (SIZE + 1), 0)],
            [(b"x" * 10, SIZE - 10)],
            [(b"x" * 10, SIZE - 5)],
            [(b"end", SIZE)],
            [(b"far", SIZE + 3 * BLOCK)],
            [(b"far", SIZE + 3 * BLOCK), (b"near", SIZE - 2)],
            [(b"end", SIZE), (b"x" * 4, SIZE - 2), (b"y", SIZE - 4)],
        ],
    )
    def test_what_is_read_afterwards(self, backing, vfs, frozen, writes):
        stored, inode = frozen.read_bytes(), vfs.attributes("f").inode
        expected = laid_over(DATA, *writes)
        handle = vfs.open("f", os.O_RDWR)
        for data, offset in writes:
            assert vfs.write(handle, data, offset) == len(data)
        assert vfs.read(handle, len(expected) + 9, 0) == expected
        assert vfs.attributes("f", handle).size == len(expected)
        vfs.release(handle, "f")
        assert slurp(vfs, "f") == expected
        found = vfs.attributes("f")
        assert (found.size, found.inode, found.links) == (len(expected), inode, 1)
        on_disk = frozen.stat().st_blocks + overlay_path(backing).stat().st_blocks
        assert found.blocks == on_disk
        assert frozen.read_bytes() == stored
        assert backing.facts("f").state is State.PATCHED
        outcome = thaw(backing.marks, "f")
        assert (outcome.action, outcome.before_bytes) == (Action.THAWED, on_disk * 512)
        assert frozen.read_bytes() == expected
        assert vfs.attributes("f").inode == inode
        assert overlay_names(backing) == []

    def test_every_range_can_be_read(self, vfs, frozen):
        writes = [(b"x" * 5, 3), (b"y" * BLOCK, 2 * BLOCK), (b"z" * 9, 5 * BLOCK - 4), (b"e", SIZE)]
        patch(vfs, "f", *writes)
        expected = laid_over(DATA, *writes)
        handle, chance = vfs.open("f", os.O_RDONLY), random.Random(3)
        for _ in range(300):
            offset, size = chance.randrange(SIZE + 9), chance.randrange(1, 4 * BLOCK)
            assert vfs.read(handle, size, offset, "f") == expected[offset : offset + size]
        vfs.release(handle)

    def test_a_time_that_cannot_be_set_fails_no_write(self, vfs, frozen, monkeypatch):
        def fail(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        handle = vfs.open("f", os.O_RDWR)
        monkeypatch.setattr(os, "utime", fail)
        assert vfs.write(handle, b"end", SIZE) == 3
        vfs.truncate("f", SIZE + 2, handle)
        vfs.allocate(handle, 0, SIZE, 5)
        assert vfs.read(handle, 9, SIZE) == b"en\0\0\0"
        vfs.release(handle, "f")

    def test_a_write_that_failed_does_not_come_later(self, vfs, frozen, monkeypatch):
        """The bytes are there, but the map could not be told of them."""
        calls = []

        def fail_second(*arguments, real=os.pwrite):
            calls.append(arguments)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments)

        patch(vfs, "f", (b"x", 0))
        handle = vfs.open("f", os.O_RDWR)
        monkeypatch.setattr(os, "pwrite", fail_second)
        with pytest.raises(OSError, match="No space"):
            vfs.write(handle, b"y" * BLOCK, 2 * BLOCK)
        vfs.sync(handle)
        vfs.release(handle, "f")
        assert len(calls) == 2
        assert slurp(vfs, "f") == laid_over(DATA, (b"x", 0))

    def test_an_append_decodes_nothing(self, vfs, frozen, decoded):
        handle = vfs.open("f", os.O_WRONLY | os.O_APPEND)
        assert vfs.write(handle, b"one", 0) == 3
        assert vfs.write(handle, b"two", 0) == 3
        vfs.sync(handle)
        vfs.release(handle, "f")
        assert decoded == []
        assert slurp(vfs, "f") == DATA + b"onetwo"

    def test_whole_blocks_and_cuts_decode_nothing(self, vfs, frozen, decoded):
        patch(vfs, "f", (b"x" * 2 * BLOCK, BLOCK))
        vfs.truncate("f", 5 * BLOCK + 7)
        vfs.truncate("f", SIZE * 3)
        assert decoded == []

    def test_a_part_of_a_block_decodes_the_rest_of_it(self, vfs, frozen, decoded):
        patch(vfs, "f", (b"x", 7 * BLOCK + 100))
        assert sorted(decoded) == [(7 * BLOCK, 100), (7 * BLOCK + 101, BLOCK - 101)]
        decoded.clear()
        patch(vfs, "f", (b"y", 7 * BLOCK + 300))
        assert decoded == []

    def test_opening_alone_changes_nothing(self, backing, vfs, frozen):
        before = frozen.stat()
        vfs.release(vfs.open("f", os.O_RDWR), "f")
        assert frozen.stat().st_ctime_ns == before.st_ctime_ns
        assert overlay_names(backing) == []
        assert state(vfs, "f") == b"frozen"

    def test_times_change_with_every_write_and_can_be_set(self, vfs, frozen):
        handle = vfs.open("f", os.O_RDWR)
        for change in (
            lambda: vfs.write(handle, b"x", 0),
            lambda: vfs.truncate("f", 100, handle),
            lambda: vfs.allocate(handle, 0, 0, 200),
        ):
            vfs.change_times("f", 5, 7)
            change()
            assert vfs.attributes("f", handle).mtime_ns > 7
        vfs.change_times("f", 5, 7)
        vfs.sync(handle)
        vfs.release(handle, "f")
        assert vfs.attributes("f").mtime_ns == 7

    def test_an_overlay_is_its_files_owners_and_no_one_elses(self, backing, vfs, frozen):
        os.chmod(frozen, 0o666)
        os.chown(frozen, 12, 34)
        patch(vfs, "f", (b"x", 0))
        found = overlay_path(backing).stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (12, 34, 0o600)
        vfs.change_owner("f", 56, -1)
        found = overlay_path(backing).stat()
        assert (found.st_uid, found.st_gid) == (56, 34)

    def test_metadata_and_a_rename_leave_it_patched(self, vfs, frozen):
        patch(vfs, "f", (b"NEW", 5))
        vfs.change_mode("f", 0o600)
        vfs.set_xattr("f", "user.note", b"x")
        vfs.rename("f", "g")
        assert state(vfs, "g") == b"patched"
        assert vfs.list_xattrs("g") == ["user.note"]
        assert slurp(vfs, "g") == laid_over(DATA, (b"NEW", 5))

    def test_allocation(self, vfs, frozen):
        handle = vfs.open("f", os.O_RDWR)
        vfs.allocate(handle, 0, 0, SIZE)
        assert vfs.attributes("f").size == SIZE
        vfs.allocate(handle, 0, SIZE - 5, 5000)
        vfs.release(handle, "f")
        assert slurp(vfs, "f") == DATA + bytes(4995)

    def test_two_handles_and_a_reader(self, vfs, frozen):
        reader = vfs.open("f", os.O_RDONLY)
        one, two = vfs.open("f", os.O_RDWR), vfs.open("f", os.O_WRONLY | os.O_APPEND)
        assert vfs.read(reader, 9, 0, "f") == DATA[:9]
        vfs.write(one, b"NEW", 5)
        vfs.write(two, b"end", 0)
        expected = laid_over(DATA, (b"NEW", 5)) + b"end"
        for handle in (reader, one):
            assert vfs.read(handle, SIZE + 9, 0, "f") == expected
        vfs.release(one, "f")
        vfs.write(two, b"!", 0)
        vfs.release(two, "f")
        assert vfs.read(reader, SIZE + 9, 0, "f") == expected + b"!"
        vfs.release(reader, "f")

    def test_threads_that_write_do_not_lose_each_others_bytes(self, vfs, frozen):
        handle = vfs.open("f", os.O_RDWR)

        def write(number):
            for at in range(number, SIZE, 8 * 97):
                vfs.write(handle, bytes([number]), at)

        threads = [threading.Thread(target=write, args=(n * 97,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writes = [(bytes([n]), at) for n in (0, 97) for at in range(n, SIZE, 8 * 97)]
        assert vfs.read(handle, SIZE, 0) == laid_over(DATA, *writes)
        vfs.release(handle, "f")


class TestTurning:
    """A handle is turned to what replaced its file while another thread reads through it."""

    def test_from_patched_to_plain(self, backing, vfs, frozen, monkeypatch):
        handle = vfs.open("f", os.O_RDONLY)
        with contextlib.closing(Vfs(Store.open(backing.path))) as other:
            patch(other, "f", (b"x" * BLOCK, BLOCK))  # the handle knows of no overlay
        expected = laid_over(DATA, (b"x" * BLOCK, BLOCK))
        turned = []

        def turn_first(fd, real=vfs.marks.facts_to_show):
            if not turned:
                turned.append(True)
                thaw(backing.marks, "f")
                assert vfs.read(handle, SIZE, 0, "f") == expected  # the other thread
            return real(fd)

        monkeypatch.setattr(vfs.marks, "facts_to_show", turn_first)
        assert vfs.read(handle, SIZE, 0, "f") == expected
        assert turned
        vfs.release(handle, "f")

    def test_blocks_whose_writer_ends_meanwhile(self, vfs, frozen, monkeypatch):
        """It calls them synced and goes, between the look at the map and that for writers."""
        writer, reader = vfs.open("f", os.O_RDWR), vfs.open("f", os.O_RDONLY)
        vfs.write(writer, b"x" * BLOCK, BLOCK)

        def end_first(fd, real=overlays.has_writers):
            monkeypatch.undo()
            vfs.release(writer, "f")
            return real(fd)

        monkeypatch.setattr(overlays, "has_writers", end_first)
        assert vfs.read(reader, BLOCK, BLOCK, "f") == b"x" * BLOCK
        vfs.release(reader, "f")


class TestCutting:
    @pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, 3 * BLOCK + 1, SIZE - 1, SIZE])
    @pytest.mark.parametrize("patched", [False, True])
    def test_what_was_cut_off_does_not_come_back(self, vfs, frozen, size, patched):
        expected = DATA
        if patched:
            writes = [(b"x" * 10, size - 1), (b"y" * 3 * BLOCK, 2 * BLOCK), (b"end", SIZE)]
            patch(vfs, "f", *writes)
            expected = laid_over(DATA, *writes)
        vfs.truncate("f", size)
        expected = expected[:size]
        assert slurp(vfs, "f") == expected
        vfs.truncate("f", SIZE + 100)
        expected += bytes(SIZE + 100 - size)
        assert slurp(vfs, "f") == expected
        patch(vfs, "f", (b"new", size + 1), (b"old", 0))
        expected = laid_over(expected, (b"new", size + 1), (b"old", 0))
        assert slurp(vfs, "f") == expected
        vfs.truncate("f", size)
        patch(vfs, "f", (b"more", size + BLOCK))
        assert slurp(vfs, "f") == expected[:size] + bytes(BLOCK) + b"more"

    @pytest.mark.parametrize("patched", [False, True])
    def test_to_nothing_gives_a_plain_file(self, backing, vfs, frozen, decoded, patched):
        if patched:
            patch(vfs, "f", (b"x" * BLOCK, 0))
        inode = vfs.attributes("f").inode
        handle = vfs.open("f", os.O_WRONLY | os.O_TRUNC)
        vfs.write(handle, b"new", 0)
        vfs.release(handle, "f")
        assert frozen.read_bytes() == b"new"
        assert vfs.attributes("f").inode == inode
        assert (overlay_names(backing), decoded) == ([], [])

    def test_to_nothing_while_somebody_writes(self, backing, vfs, frozen):
        writer = vfs.open("f", os.O_RDWR)
        vfs.write(writer, b"x", 7)
        handle = vfs.open("f", os.O_WRONLY | os.O_TRUNC)
        assert vfs.attributes("f", writer).size == 0
        vfs.write(handle, b"new", 0)
        vfs.truncate("f", 0)
        vfs.write(writer, b"more", 2)
        assert slurp(vfs, "f") == b"\0\0more"
        vfs.release(handle, "f")
        vfs.release(writer, "f")
        thaw(backing.marks, "f")
        assert frozen.read_bytes() == b"\0\0more"


class TestNames:
    def test_removing_a_patched_file_removes_its_overlay(self, backing, vfs, frozen):
        patch(vfs, "f", (b"x", 0))
        vfs.remove_file("f")
        assert overlay_names(backing) == []

    @pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
    @pytest.mark.parametrize("how", ["remove", "replace"])
    def test_who_has_it_open_reads_on(self, backing, vfs, frozen, flags, how):
        handle = vfs.open("f", flags)
        other = Vfs(Store.open(backing.path))  # so that the handle has not met the overlay
        patch(other, "f", (b"NEW", 5))
        other.close()
        if how == "remove":
            vfs.remove_file("f")
        else:
            backing.write("g", b"other")
            assert vfs.hide("f", HIDDEN)  # as libfuse does first with a file that is open
            vfs.rename("g", "f")
            assert slurp(vfs, "f") == b"other"
        assert overlay_names(backing) == []
        expected = laid_over(DATA, (b"NEW", 5))
        assert vfs.read(handle, SIZE, 0, HIDDEN if how == "replace" else None) == expected
        if flags == os.O_RDWR:
            vfs.write(handle, b"x", 0)
            assert vfs.read(handle, 9, 0) == b"x" + expected[1:9]
            assert vfs.attributes("f", handle if how == "remove" else None).links <= 1
        vfs.release(handle)
        if how == "replace":
            vfs.remove_file(HIDDEN)

    def test_exchanging_removes_nothing(self, backing, vfs, frozen):
        patch(vfs, "f", (b"NEW", 5))
        backing.write("g", b"other")
        vfs.rename("f", "g", 2)
        assert slurp(vfs, "g") == laid_over(DATA, (b"NEW", 5))
        assert slurp(vfs, "f") == b"other"

    def test_a_second_name_thaws(self, backing, vfs, frozen):
        patch(vfs, "f", (b"NEW", 5))
        reader = vfs.open("f", os.O_RDONLY)
        vfs.link("f", "g")
        assert state(vfs, "g") == b"hot"
        assert frozen.read_bytes() == laid_over(DATA, (b"NEW", 5))
        patch(vfs, "g", (b"x", 0))
        assert vfs.read(reader, 3, 0, "f") == b"x" + DATA[1:3]
        vfs.release(reader)
        assert overlay_names(backing) == []

    def test_no_second_name_while_somebody_writes(self, vfs, frozen):
        handle = vfs.open("f", os.O_RDWR)
        with pytest.raises(BusyError):
            vfs.link("f", "g")
        vfs.release(handle, "f")
        vfs.link("f", "g")


class TestFoldingIn:
    """Freezing a patched file."""

    def test_it_is_frozen_as_it_is(self, backing, vfs, frozen):
        writes = [(b"NEW", 5), (text(5 * BLOCK, 4), SIZE)]
        patch(vfs, "f", *writes)
        os.setxattr(frozen, "user.note", b"mine")
        os.chmod(frozen, 0o640)
        before = vfs.attributes("f")
        outcome = backing.freeze("f")
        assert outcome.action is Action.FROZEN
        assert outcome.before_bytes == before.blocks * 512
        assert outcome.after_bytes < outcome.before_bytes
        after = vfs.attributes("f")
        assert after._replace(blocks=0, ctime_ns=0, atime_ns=0) == before._replace(
            blocks=0, ctime_ns=0, atime_ns=0
        )
        assert (state(vfs, "f"), overlay_names(backing)) == (b"frozen", [])
        assert os.getxattr(frozen, FROZEN_MARK) == frozen_mark(backing.store.id, after.size)
        assert os.getxattr(frozen, "user.note") == b"mine"
        assert slurp(vfs, "f") == laid_over(DATA, *writes)
        assert backing.leftovers() == []

    def test_a_small_one_that_grew(self, backing, vfs):
        backing.write_frozen("f", b"x" * 8 * CHUNK)
        assert (backing.path / "f").stat().st_blocks <= 8
        patch(vfs, "f", (DATA, 0), (DATA, SIZE))
        assert backing.freeze("f").reason is None
        assert slurp(vfs, "f") == DATA * 2

    @pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
    def test_not_while_somebody_has_it_open(self, backing, vfs, frozen, flags):
        patch(vfs, "f", (b"NEW", 5))
        handle = vfs.open("f", flags)
        assert "open" in backing.freeze("f").reason
        if flags == os.O_RDWR:
            with pytest.raises(BusyError):
                thaw(backing.marks, "f")
            vfs.write(handle, b"more", SIZE)
        vfs.release(handle, "f")
        assert backing.freeze("f").reason is None
        assert slurp(vfs, "f")[:9] == laid_over(DATA, (b"NEW", 5))[:9]

    def test_a_reader_follows_a_thaw(self, backing, vfs, frozen):
        patch(vfs, "f", (b"NEW", 5))
        reader = vfs.open("f", os.O_RDONLY)
        assert vfs.read(reader, 3, 5, "f") == b"NEW"
        thaw(backing.marks, "f")
        frozen.write_bytes(b"plain")
        assert vfs.read(reader, 100, 0, "f") == b"plain"
        vfs.release(reader)

    @pytest.mark.parametrize("step", ["created", "described", "verified"])
    @pytest.mark.parametrize("direction", ["freeze", "thaw"])
    @pytest.mark.parametrize("patched", [False, True])
    @pytest.mark.parametrize("open_still", [False, True])
    def test_a_write_meanwhile_is_not_lost(
        self, backing, vfs, frozen, monkeypatch, step, direction, patched, open_still
    ):
        if direction == "freeze" and not patched:
            return  # is frozen already
        writes = [(b"NEW", 5)] if patched else []
        if patched:
            patch(vfs, "f", *writes)
        handles = []

        def write():
            handles.append(vfs.open("f", os.O_RDWR))
            vfs.write(handles[0], b"more", 50)
            if not open_still:
                vfs.release(handles[0])

        def reached(name):
            if name == step and not handles:
                write()

        for module in (publish, freeze_module):
            monkeypatch.setattr(module, "reached", reached)
        if direction == "freeze":
            assert backing.freeze("f").action is Action.SKIPPED
        else:
            with pytest.raises(BusyError):
                thaw(backing.marks, "f")
        if open_still:
            vfs.release(handles[0])
        assert slurp(vfs, "f") == laid_over(DATA, *writes, (b"more", 50))
        assert backing.leftovers() == []

    def test_what_cannot_be_folded_stays(self, backing, vfs, frozen):
        patch(vfs, "f", (b"far", SIZE + (8 << 20)))
        assert backing.freeze("f").reason == "sparse"
        expected = laid_over(DATA, (b"far", SIZE + (8 << 20)))
        assert slurp(vfs, "f") == expected
        thaw(backing.marks, "f")
        assert frozen.read_bytes() == expected
        assert frozen.stat().st_blocks * 512 < 4 << 20  # a hole still

    def test_empty(self, backing, vfs, frozen):
        handle = vfs.open("f", os.O_RDWR)
        vfs.truncate("f", 0, handle)
        vfs.release(handle, "f")
        assert backing.freeze("f").reason == "empty"
        assert vfs.attributes("f").size == 0
        thaw(backing.marks, "f")
        assert frozen.read_bytes() == b""


class TestTwoMounts:
    @pytest.fixture
    def other(self, backing):
        other = Vfs(Store.open(backing.path))
        yield other
        other.close()

    def test_each_sees_what_the_other_writes(self, vfs, other, frozen):
        reader = other.open("f", os.O_RDONLY)
        assert other.read(reader, 9, 0, "f") == DATA[:9]
        writer = vfs.open("f", os.O_RDWR)
        vfs.write(writer, b"NEW", 5)
        assert other.read(reader, 9, 0, "f") == laid_over(DATA, (b"NEW", 5))[:9]
        second = other.open("f", os.O_WRONLY | os.O_APPEND)
        other.write(second, b"end", 0)
        other.write(second, b"x", 9)
        expected = laid_over(DATA, (b"NEW", 5)) + b"endx"
        assert vfs.read(writer, SIZE + 9, 0) == expected
        assert other.read(reader, SIZE + 9, 0, "f") == expected
        assert vfs.attributes("f").size == other.attributes("f").size == len(expected)
        vfs.release(writer)
        assert other.read(reader, SIZE + 9, 0, "f") == expected
        other.release(second)
        other.release(reader)
        assert slurp(vfs, "f") == slurp(other, "f") == expected

    def test_writes_to_one_block_do_not_undo_each_other(self, vfs, other, frozen):
        one, two = vfs.open("f", os.O_RDWR), other.open("f", os.O_RDWR)
        vfs.write(one, b"one", 100)
        other.write(two, b"two", 200)
        vfs.write(one, b"three", 300)
        other.sync(two)
        expected = laid_over(DATA, (b"one", 100), (b"two", 200), (b"three", 300))
        assert vfs.read(one, SIZE, 0) == other.read(two, SIZE, 0) == expected
        vfs.release(one)
        other.release(two)
        assert slurp(vfs, "f") == expected

    def test_a_sync_covers_what_the_other_began(self, backing, vfs, other, frozen):
        """A block that the other process has not synced is synced with our bytes in it."""
        one, two = vfs.open("f", os.O_RDWR), other.open("f", os.O_RDWR)
        vfs.write(one, b"one", 100)
        other.write(two, b"two", 200)
        other.sync(two)
        with open(overlay_path(backing), "rb") as file:
            assert os.pread(file.fileno(), 1, BLOCK) == b"\1"
        vfs.release(one)
        other.release(two)

    def test_no_thaw_while_the_other_writes(self, vfs, other, frozen):
        handle = other.open("f", os.O_RDWR)
        with pytest.raises(BusyError):
            vfs.thaw("f")
        other.release(handle)
        vfs.thaw("f")
        assert state(vfs, "f") == state(other, "f") == b"hot"


class TestTrust:
    """What must not be taken for the file's bytes."""

    def test_an_older_lmfs_refuses_it(self, backing, vfs, frozen):
        """It takes a FROZEN_MARK that is not of this store and size for damage."""
        patch(vfs, "f", (b"x", 0))
        assert os.getxattr(frozen, FROZEN_MARK) != frozen_mark(backing.store.id, SIZE)

    def test_a_missing_overlay_is_damage(self, backing, vfs, frozen):
        patch(vfs, "f", (b"x", 0))
        overlay_path(backing).unlink()
        assert backing.facts("f").state is State.DAMAGED
        for flags in (os.O_RDONLY, os.O_RDWR):
            with pytest.raises(DamagedError, match="no overlay"):
                vfs.open("f", flags)
        with pytest.raises(DamagedError):
            thaw(backing.marks, "f")
        vfs.truncate("f", 0)
        assert slurp(vfs, "f") == b""

    def test_a_lost_xattr_is_damage(self, backing, vfs, frozen):
        patch(vfs, "f", (b"x", 0))
        os.removexattr(frozen, FROZEN_MARK)
        facts = backing.facts("f")
        assert facts.state is State.DAMAGED
        assert "but an overlay" in facts.problem

    @pytest.mark.parametrize("at", [*range(0, 80, 7), BLOCK])
    def test_a_damaged_overlay_is_eio(self, backing, vfs, frozen, at):
        patch(vfs, "f", (b"x", 0), (b"end", SIZE))
        with open(overlay_path(backing), "r+b") as file:
            byte = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 0x44]), at)
        with pytest.raises(DamagedError):
            slurp(vfs, "f")

    def test_an_overlay_of_another_base_is_not_laid_over(self, backing, vfs, frozen):
        patch(vfs, "f", (b"x", 0))
        other = backing.write_frozen("g", text(9 * CHUNK, 2))
        mark = os.getxattr(frozen, FROZEN_MARK)
        os.setxattr(other, FROZEN_MARK, mark)
        assert backing.facts("g").state is State.DAMAGED
        os.setxattr(other, FROZEN_MARK, mark[:8] + os.getxattr(other, FROZEN_MARK)[8:])
        assert backing.facts("g").state is State.DAMAGED

    def test_a_symlink_leads_nowhere(self, backing, vfs, frozen, tmp_path):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        os.symlink(elsewhere, backing.path / OVERLAYS)
        with pytest.raises(OSError, match="Not a directory"):
            patch(vfs, "f", (b"x", 0))
        assert os.listdir(elsewhere) == []

    def test_a_copied_file_is_thawed_before_it_is_written_to(self, backing, vfs, frozen):
        """A restored store has other inodes; a copy by hand names the overlay of the first one."""
        patch(vfs, "f", (b"NEW", 5))
        subprocess.run(["cp", "-a", frozen, backing.path / "g"], check=True)
        expected = laid_over(DATA, (b"NEW", 5))
        assert slurp(vfs, "g") == expected
        patch(vfs, "g", (b"x", 0))
        assert (backing.path / "g").read_bytes() == b"x" + expected[1:]
        assert slurp(vfs, "f") == expected
        subprocess.run(["cp", "-a", frozen, backing.path / "h"], check=True)
        vfs.remove_file("h")
        assert slurp(vfs, "f") == expected


class TestSweep:
    def leave(self, backing, vfs):
        """A patched file, and an overlay that nobody names."""
        patch(vfs, "f", (b"NEW", 5))
        (kept,) = overlay_names(backing)
        backing.write_frozen("d/g", DATA[:-1])
        patch(vfs, "d/g", (b"x", 5))
        os.unlink(backing.path / "d" / "g")  # by hand
        return kept

    def test_what_nobody_names_is_removed(self, backing, vfs, frozen):
        kept = self.leave(backing, vfs)
        time.sleep(0.05)
        (removed,) = sweep_tree(backing.marks)
        assert kept not in removed
        assert overlay_names(backing) == [kept]
        assert slurp(vfs, "f") == laid_over(DATA, (b"NEW", 5))

    def test_nothing_is_removed_while_files_move(self, backing, vfs, frozen, monkeypatch):
        kept = self.leave(backing, vfs)
        time.sleep(0.05)
        from lmfs.store import walk

        real = walk.regular_files

        def move_first(store):
            found = list(real(store))
            os.rename(frozen, backing.path / "d" / "elsewhere")
            return [file for file in found if file[0] != "f"]

        monkeypatch.setattr(walk, "regular_files", move_first)
        assert sweep_overlays(backing.marks) == []
        assert kept in overlay_names(backing)

    def test_nothing_is_removed_where_directories_have_just_changed(self, backing, vfs, frozen):
        self.leave(backing, vfs)
        backing.write("new", b"")
        assert sweep_overlays(backing.marks) == []


class TestTools:
    def test_status_and_fsck(self, backing, vfs, frozen, run):
        patch(vfs, "f", (b"x", 0))
        code, output, _ = run("status", backing.path)
        assert code == 0
        assert "patched: 1 of them" in output
        assert run("fsck", "--deep", backing.path)[0] == 0
        os.unlink(overlay_path(backing))
        assert run("status", backing.path)[0] == DamagedError.exit_code
        code, output, _ = run("fsck", backing.path)
        assert code == 4
        assert "no overlay" in output

    def test_fsck_finds_a_damaged_overlay(self, backing, vfs, frozen, run):
        patch(vfs, "f", (b"x", 0))
        with open(overlay_path(backing), "r+b") as file:
            os.pwrite(file.fileno(), b"\x99", BLOCK + 3)
        code, output, _ = run("fsck", backing.path)
        assert code == 4
        assert "overlay map" in output

    def test_fsck_names_an_overlay_that_nobody_has(self, backing, vfs, frozen, run):
        patch(vfs, "f", (b"x", 0))
        frozen.unlink()
        code, output, _ = run("fsck", backing.path)
        assert code == 0
        assert "an overlay that no file has" in output

    def test_freeze_and_thaw_without_a_mount(self, backing, vfs, frozen):
        patch(vfs, "f", (b"NEW", 5))
        assert run_lmfs("freeze", "--no-model", backing.path).returncode == 0
        assert state(vfs, "f") == b"frozen"
        patch(vfs, "f", (b"x", 0))
        done = run_lmfs("thaw", backing.path)
        assert done.returncode == 0, done
        assert frozen.read_bytes() == laid_over(DATA, (b"NEW", 5), (b"x", 0))
        assert overlay_names(backing) == []

    @pytest.mark.parametrize("damaged", [False, True])
    def test_recover_lays_the_overlay_over(self, backing, vfs, frozen, run, tmp_path, damaged):
        writes = [(b"NEW", 5), (b"end", SIZE)]
        patch(vfs, "f", *writes)
        expected = laid_over(DATA, *writes)
        if damaged:
            stored = frozen.read_bytes()
            with open(frozen, "r+b") as file:
                os.pwrite(file.fileno(), bytes([stored[len(stored) // 2] ^ 1]), len(stored) // 2)
        code, _, errors = run("recover", frozen, "-o", tmp_path / "saved")
        saved = (tmp_path / "saved").read_bytes()
        assert code == (DamagedError.exit_code if damaged else 0)
        assert "written to it since" in errors
        assert len(saved) == len(expected)
        lost = sum(a != b for a, b in zip(saved, expected, strict=True))
        assert 0 < lost <= CHUNK if damaged else lost == 0


def test_a_full_disk(small_disk):
    backing = Backing(small_disk)
    vfs = Vfs(backing.store)
    data = text(400_000)
    backing.write_frozen("f", data)
    model = bytearray(data)
    chance = random.Random(2)
    failed = 0
    try:
        handle = vfs.open("f", os.O_RDWR)
        for step in range(200):
            new = text(chance.randrange(1, 30_000), step)
            offset = len(model) if step % 3 == 0 else chance.randrange(len(model))
            try:
                count = vfs.write(handle, new, offset)
            except OSError as error:
                failed += 1
                if error.errno != errno.ENOSPC:
                    raise
            else:
                model.extend(bytes(max(0, offset + count - len(model))))
                model[offset : offset + count] = new[:count]
                continue
            # A write that failed may have changed what it was to change, and nothing else.
            assert vfs.attributes("f", handle).size == len(model)
            now = vfs.read(handle, len(model), 0)
            assert now[:offset] == model[:offset]
            assert now[offset + len(new) :] == model[offset + len(new) :]
            model[:] = now
            if failed == 5:
                break
        vfs.release(handle, "f")
        assert failed == 5
        assert slurp(vfs, "f") == model
        with pytest.raises(OSError, match="No space"):
            thaw(backing.marks, "f")
        assert slurp(vfs, "f") == model
    finally:
        vfs.close()
        backing.close()


def test_no_room_for_an_overlay_at_all(small_disk):
    backing = Backing(small_disk)
    vfs = Vfs(backing.store)
    backing.write_frozen("f", DATA)
    free = os.statvfs(small_disk)
    backing.write("rest", bytes(free.f_bavail * free.f_bsize))
    try:
        handle = vfs.open("f", os.O_RDWR)
        with pytest.raises(OSError, match="No space"):
            vfs.write(handle, b"x", 0)
        assert overlay_names(backing) == []
        assert vfs.read(handle, SIZE, 0) == DATA
        assert state(vfs, "f") == b"frozen"
        vfs.release(handle, "f")
    finally:
        vfs.close()
        backing.close()


KILLER = """
import os, signal, sys
from lmfs.codecs.choose import Chooser
from lmfs.store import freeze as freeze_module, overlays, publish
from lmfs.store.store import Store
from lmfs.vfs import Vfs

def reached(step):
    if step == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

publish.reached = freeze_module.reached = overlays.reached = reached
vfs = Vfs(Store.open(sys.argv[1]))
what = sys.argv[2]
if what == "write":
    handle = vfs.open("f", os.O_RDWR)
    vfs.write(handle, b"SYNCED", 4090)
    vfs.write(handle, b"tail", 81925)
    vfs.sync(handle)
    reached("synced-by-user")
    vfs.write(handle, b"unsynced", 40000)
    vfs.write(handle, b"in it", 4000)
    reached("unsynced")
    vfs.release(handle)
    reached("closed")
elif what == "freeze":
    freeze_module.freeze(vfs.marks, "f", Chooser(None), chunk_size=4096)
elif what == "thaw":
    freeze_module.thaw(vfs.marks, "f")
elif what == "remove":
    vfs.remove_file("f")
else:
    vfs.rename("g", "f")
"""


def killed(backing, what, step):
    done = subprocess.run([sys.executable, "-c", KILLER, backing.path, what, step], check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("step", ["made", "named", "synced-by-user", "unsynced", "closed"])
def test_killed_while_writing(backing, frozen, step):
    """What was synced, or closed, is there; the rest is old or new."""
    killed(backing, "write", step)
    synced = [(b"SYNCED", 4090), (b"tail", SIZE)]
    old_or_new = {
        "made": [[]],
        "named": [[]],
        "synced-by-user": [synced],
        "unsynced": [[*synced, (b"in it", 4000)]],  # in a synced block; the other one is undone
        "closed": [[*synced, (b"unsynced", 40000), (b"in it", 4000)]],
    }[step]
    vfs = Vfs(Store.open(backing.path))
    assert slurp(vfs, "f") in [laid_over(DATA, *writes) for writes in old_or_new]
    before = slurp(vfs, "f")
    # Who writes next does not bring back what was undone.
    patch(vfs, "f", (b"next", 40100))
    assert slurp(vfs, "f") == laid_over(before, (b"next", 40100))
    vfs.close()
    time.sleep(0.05)
    assert len(sweep_overlays(backing.marks)) == (step == "made")
    assert backing.freeze("f").reason is None
    assert run_lmfs("fsck", "--deep", backing.path).returncode == 0


FOLD_STEPS = [
    *[line.split()[0] for line in publish.__doc__.splitlines() if line.startswith("    ")],
    "dropped",
]


def test_the_steps_are_those_of_the_protocol(backing, vfs, frozen, monkeypatch):
    seen = []
    for module in (publish, freeze_module, overlays):
        monkeypatch.setattr(module, "reached", seen.append)
    patch(vfs, "f", (b"x", 0))
    assert seen == ["made", "named"]
    for job in (lambda: backing.freeze("f"), lambda: thaw(backing.marks, "f")):
        seen.clear()
        job()
        assert sorted(seen) == sorted(FOLD_STEPS)
        assert seen.index("dropped") < seen.index("removed")
        thaw(backing.marks, "f")
        backing.freeze("f")
        patch(vfs, "f", (b"x", 0))


@pytest.mark.parametrize("what", ["freeze", "thaw"])
@pytest.mark.parametrize("step", FOLD_STEPS)
def test_killed_while_it_is_folded_in(backing, vfs, frozen, what, step):
    writes = [(b"NEW", 5), (text(2 * CHUNK, 7), SIZE)]
    patch(vfs, "f", *writes)
    killed(backing, what, step)
    expected = laid_over(DATA, *writes)
    again = Vfs(Store.open(backing.path))
    assert slurp(again, "f") == expected
    again.close()
    time.sleep(0.05)
    sweep_tree(backing.marks)
    assert backing.leftovers() == []
    assert len(overlay_names(backing)) == (backing.facts("f").state is State.PATCHED)
    thaw(backing.marks, "f")
    assert frozen.read_bytes() == expected
    assert overlay_names(backing) == []


@pytest.mark.parametrize("what", ["open", "read", "attributes", "attributes of a handle"])
def test_who_looks_while_it_is_folded_in_sees_no_damage(backing, vfs, frozen, what, monkeypatch):
    """With its name a patched file loses its overlay, which is no damage to who just found it."""
    other = Vfs(Store.open(backing.path))
    handle = vfs.open("f", os.O_RDONLY)
    patch(other, "f", (b"NEW", 5))
    time.sleep(0.05)
    facts_of_fd, folded = vfs.marks.facts_of_fd, []

    def meanwhile(fd):
        if not folded:
            folded.append(thaw(other.marks, "f"))
        return facts_of_fd(fd)

    monkeypatch.setattr(vfs.marks, "facts_of_fd", meanwhile)
    expected = laid_over(DATA, (b"NEW", 5))
    if what == "open":
        assert slurp(vfs, "f") == expected
    elif what == "read":
        assert vfs.read(handle, SIZE, 0, "f") == expected
    else:
        assert vfs.attributes("f", handle if "handle" in what else None).size == SIZE
    assert folded
    vfs.release(handle, "f")
    other.close()


@pytest.mark.parametrize("what", ["attributes", "attributes of a handle", "state", "account"])
@pytest.mark.parametrize("looks", [0, 1, 2, 3])
def test_what_is_seen_of_a_file_that_is_folded_in_meanwhile(
    backing, vfs, frozen, what, looks, monkeypatch
):
    """Its overlay goes after so many looks at it: then there is neither damage nor an old size."""
    other = Vfs(Store.open(backing.path))
    handle = vfs.open("f", os.O_RDONLY)
    patch(other, "f", (text(100), SIZE))
    time.sleep(0.05)
    stat_overlay, seen = Overlays.stat, []

    def meanwhile(overlays, name):
        if overlays is vfs.marks.overlays:
            if len(seen) == looks:
                thaw(other.marks, "f")
            seen.append(name)
        return stat_overlay(overlays, name)

    monkeypatch.setattr(Overlays, "stat", meanwhile)
    if what == "state":
        assert state(vfs, "f") in (b"patched", b"hot")
    elif what == "account":
        account = Account()
        account.add(vfs.marks, ".")
        assert account.damaged == {}
    else:
        assert vfs.attributes("f", handle if "handle" in what else None).size == SIZE + 100
    assert seen
    vfs.release(handle, "f")
    other.close()


@pytest.mark.parametrize("at", ["open", "look"])
def test_holes_of_a_file_that_was_folded_in(backing, vfs, frozen, at, monkeypatch):
    """Who copies what is not a hole would copy what the file was before, and zeros for the rest."""
    other = Vfs(Store.open(backing.path))
    handle = vfs.open("f", os.O_RDONLY)
    patch(other, "f", (text(100), SIZE))
    if at == "open":
        thaw(other.marks, "f")
        patch(other, "f", (text(200), SIZE))
        assert vfs.seek(handle, 0, os.SEEK_HOLE, "f") == SIZE + 200
    else:
        stat_overlay, seen = Overlays.stat, []

        def meanwhile(overlays, name):
            if overlays is vfs.marks.overlays and not seen:
                seen.append(thaw(other.marks, "f"))
            return stat_overlay(overlays, name)

        monkeypatch.setattr(Overlays, "stat", meanwhile)
        assert vfs.seek(handle, 0, os.SEEK_HOLE, "f") == SIZE + 100
        assert seen
    vfs.release(handle, "f")
    other.close()


@pytest.mark.parametrize("what", ["remove", "rename"])
def test_killed_while_it_loses_its_name(backing, vfs, frozen, what):
    backing.write("g", b"other")
    patch(vfs, "f", (b"NEW", 5))
    killed(backing, what, "dropped")
    assert overlay_names(backing) == []
    assert frozen.exists() == (what == "rename")


class TestPowerCut:
    """What the disk may hold: any mixture of what was written since the last sync."""

    def test_a_block_whose_map_came_first(self, backing, vfs, frozen):
        """The 2 is on the disk, the bytes are not: the old bytes stand."""
        handle = vfs.open("f", os.O_RDWR)
        vfs.write(handle, b"SYNCED", 3 * BLOCK)
        vfs.sync(handle)
        vfs.write(handle, b"x" * BLOCK, BLOCK)
        image = overlay_path(backing).read_bytes()
        vfs.release(handle, "f")
        start = data_start(SIZE)
        assert image[BLOCK : BLOCK + 5] == b"\0\2\0\1\0"
        cut = bytearray(image)
        cut[start + BLOCK : start + 2 * BLOCK] = bytes(BLOCK)
        overlay_path(backing).write_bytes(cut)
        assert slurp(vfs, "f") == laid_over(DATA, (b"SYNCED", 3 * BLOCK))

    def test_the_data_are_synced_before_the_map_says_so(self, backing, vfs, frozen, monkeypatch):
        calls = []
        real_pwrite, real_sync = os.pwrite, os.fdatasync
        monkeypatch.setattr(
            os, "pwrite", lambda fd, data, at: calls.append(at) or real_pwrite(fd, data, at)
        )
        monkeypatch.setattr(os, "fdatasync", lambda fd: calls.append("sync") or real_sync(fd))
        handle = vfs.open("f", os.O_RDWR)
        vfs.write(handle, b"x" * BLOCK, BLOCK)
        calls.clear()
        vfs.sync(handle)
        assert calls == ["sync", BLOCK + 1, "sync"]
        vfs.truncate("f", BLOCK, handle)
        calls.clear()
        vfs.write(handle, b"y", 3 * BLOCK)
        assert calls == ["sync", 64, "sync", data_start(SIZE) + 3 * BLOCK]
        vfs.release(handle, "f")

    @pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
    def test_any_descriptor_syncs(self, backing, vfs, frozen, flags):
        """As sync(1) does, which opens files for reading."""
        writer = vfs.open("f", os.O_RDWR)
        vfs.write(writer, b"x", 0)
        handle = vfs.open("f", flags)
        vfs.sync(handle)
        assert overlay_path(backing).read_bytes()[BLOCK] == 1
        vfs.release(handle)
        vfs.release(writer)

    def test_what_nobody_syncs_is_settled_in_time(self, backing, vfs, frozen, monkeypatch):
        monkeypatch.setattr(overlays, "SETTLE_SECONDS", 0.2)
        handle = vfs.open("f", os.O_RDWR)
        for number in range(2):
            vfs.write(handle, b"x", number * BLOCK)
            assert overlay_path(backing).read_bytes()[BLOCK + number] == 2
            until = time.monotonic() + 20
            while overlay_path(backing).read_bytes()[BLOCK + number] != 1:
                assert time.monotonic() < until
                time.sleep(0.02)
        vfs.release(handle)

    def test_what_could_not_be_synced_is_never_called_synced(
        self, backing, vfs, frozen, monkeypatch
    ):
        """A disk that fails once: the next sync would succeed, though the bytes are lost."""

        def fail(fd):
            monkeypatch.undo()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        handle = vfs.open("f", os.O_RDWR)
        vfs.write(handle, b"x" * BLOCK, BLOCK)
        monkeypatch.setattr(os, "fdatasync", fail)
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output"):
                vfs.sync(handle)
        with pytest.raises(OSError, match="Input/output"):
            vfs.flush(handle)
        vfs.release(handle)
        assert slurp(vfs, "f") == DATA

    def test_an_overlay_is_on_the_disk_before_it_is_named(self, vfs, frozen, monkeypatch):
        calls = []
        real_sync, real_set = os.fsync, os.setxattr
        monkeypatch.setattr(os, "fsync", lambda fd: calls.append("sync") or real_sync(fd))
        monkeypatch.setattr(os, "setxattr", lambda *a: calls.append("mark") or real_set(*a))
        handle = vfs.open("f", os.O_RDWR)
        vfs.write(handle, b"x", 0)
        assert calls == ["sync", "sync", "sync", "mark"]  # the overlay, its directory, that's name
        calls.clear()
        vfs.sync(handle, data_only=True)
        assert calls == ["sync"]  # the mark
        vfs.release(handle, "f")


def test_without_xattrs_a_frozen_file_is_thawed(tmp_path):
    Backing(tmp_path / "b").close()
    path = tmp_path / "b" / ".lmfs" / "store.json"
    path.write_text(path.read_text().replace('"xattr_marks": true', '"xattr_marks": false'))
    backing = Backing(tmp_path / "b")
    vfs = Vfs(backing.store)
    frozen = backing.write_frozen("f", DATA)
    patch(vfs, "f", (b"NEW", 5))
    assert frozen.read_bytes() == laid_over(DATA, (b"NEW", 5))
    vfs.close()
    backing.close()


class TestThroughAMount:
    @pytest.fixture
    def point(self, backing, tmp_path):
        point = tmp_path / "m"
        point.mkdir()
        mount(backing.path, point)
        yield point
        unmount(point)

    def test_a_file_and_its_attributes(self, backing, frozen, point):
        file = point / "f"
        inode = file.stat().st_ino
        with open(file, "ab") as opened:
            opened.write(b"end")
        with open(file, "r+b", buffering=0) as opened:
            opened.seek(BLOCK - 2)
            opened.write(b"border")
            os.posix_fallocate(opened.fileno(), 0, SIZE + 10)
            os.fsync(opened.fileno())
        expected = laid_over(DATA, (b"end", SIZE), (b"border", BLOCK - 2)) + bytes(7)
        assert file.read_bytes() == expected
        found = file.stat()
        assert (found.st_ino, found.st_size, found.st_nlink) == (inode, len(expected), 1)
        assert found.st_blocks == frozen.stat().st_blocks + overlay_path(backing).stat().st_blocks
        assert os.getxattr(file, "user.lmfs.state") == b"patched"
        os.truncate(file, 3 * BLOCK + 1)
        os.truncate(file, 5 * BLOCK)
        expected = expected[: 3 * BLOCK + 1] + bytes(2 * BLOCK - 1)
        assert file.read_bytes() == expected
        os.rename(file, point / "g")
        os.link(point / "g", point / "h")
        assert (point / "h").read_bytes() == expected
        assert os.getxattr(point / "h", "user.lmfs.state") == b"hot"

    def test_mapped_writes(self, backing, frozen, point):
        with open(point / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[10:13] = b"NEW"
            mapped[5 * BLOCK - 1 : 5 * BLOCK + 2] = b"XYZ"
            mapped.flush()
        expected = laid_over(DATA, (b"NEW", 10), (b"XYZ", 5 * BLOCK - 1))
        assert (point / "f").read_bytes() == expected
        unmount(point)
        mount(backing.path, point)
        assert (point / "f").read_bytes() == expected
        assert os.getxattr(point / "f", "user.lmfs.state") == b"patched"

    def test_an_unlinked_file_that_is_written_to(self, backing, frozen, point):
        with open(point / "f", "r+b", buffering=0) as file:
            file.write(b"NEW")
            os.unlink(point / "f")
            os.pwrite(file.fileno(), b"end", SIZE)
            assert os.pread(file.fileno(), SIZE + 9, 0) == laid_over(
                DATA, (b"NEW", 0), (b"end", SIZE)
            )
        time.sleep(0.2)
        assert os.listdir(point) == []
        assert overlay_names(backing) == []

    def test_one_file_over_another(self, backing, frozen, point):
        with open(point / "f", "ab") as file:
            file.write(b"end")
        (point / "g").write_bytes(b"other")
        os.replace(point / "g", point / "f")
        assert (point / "f").read_bytes() == b"other"
        assert overlay_names(backing) == []

    def test_a_log_that_is_written_read_and_frozen(self, backing, frozen, point):
        """A writer, a reader and a freezer at once: no line is lost, none is read wrongly."""
        stop = threading.Event()
        outcomes, wrong = [], []

        def freezer():
            while not stop.is_set():
                outcomes.append(backing.freeze("f").reason)
                time.sleep(0.003)

        def reader():
            while not stop.is_set():
                data = (point / "f").read_bytes()
                if data[:SIZE] != DATA or data[SIZE:].replace(b"line\n", b""):
                    wrong.append(data)

        threads = [threading.Thread(target=job) for job in (freezer, reader)]
        for thread in threads:
            thread.start()
        try:
            for i in range(60):
                with open(point / "f", "ab") as file:
                    file.write(b"line\n")
                time.sleep(0.01 * (i % 4))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert (point / "f").read_bytes() == DATA + b"line\n" * 60
        assert wrong == []
        assert len(overlay_names(backing)) <= 1


ACTIONS = [
    *["open", "close", "read", "write"] * 3,
    *["append", "cut", "grow", "allocate", "sync", "stat"],
    *["freeze", "thaw", "thaw-path", "remount"],
]


@pytest.mark.parametrize("seed", range(4))
def test_random_operations_against_a_model(backing, frozen, seed):
    """Anything in any order, with freezing, thawing, second mounts and new ones in between."""
    chance = random.Random(seed)
    model = bytearray(DATA)
    mounts = [Vfs(Store.open(backing.path)) for _ in range(2)]
    handles = []
    for step in range(600):
        vfs = chance.choice(mounts)
        action = chance.choice(ACTIONS)
        own = [handle for owner, handle in handles if owner is vfs]
        data = text(chance.choice([1, 7, 300, BLOCK, 3 * BLOCK + 5]), step)
        offset = chance.randrange(len(model) + 1)
        if chance.random() < 0.3:
            offset -= offset % BLOCK
        if action == "open" and len(handles) < 5:
            flags = chance.choice([os.O_RDONLY, os.O_RDWR, os.O_RDWR])
            handles.append((vfs, vfs.open("f", flags)))
        elif action == "close" and handles:
            owner, handle = handles.pop(chance.randrange(len(handles)))
            owner.release(handle, "f")
        elif action in ("write", "append"):
            offset = offset if action == "write" else len(model)
            handle = vfs.open("f", os.O_RDWR if action == "write" else os.O_WRONLY | os.O_APPEND)
            assert vfs.write(handle, data, offset) == len(data)
            vfs.release(handle, "f")
            model[offset : offset + len(data)] = data
        elif action in ("cut", "grow"):
            size = offset if action == "cut" else min(len(model) + len(data), 4 * SIZE)
            vfs.truncate("f", size)
            del model[size:]
            model.extend(bytes(size - len(model)))
        elif action == "allocate":
            handle = vfs.open("f", os.O_RDWR)
            vfs.allocate(handle, 0, offset, len(data))
            vfs.release(handle, "f")
            model.extend(bytes(max(0, offset + len(data) - len(model))))
        elif action == "sync" and own:
            vfs.sync(chance.choice(own))
        elif action == "freeze":
            backing.freeze("f", even_if_larger=True)
        elif action in ("thaw", "thaw-path"):
            try:
                if action == "thaw":
                    thaw(backing.marks, "f")
                else:
                    vfs.thaw("f")
            except BusyError:
                pass
        elif action == "remount":
            handles = [pair for pair in handles if pair[0] is not vfs]
            vfs.close()
            vfs.store.close()
            mounts[mounts.index(vfs)] = Vfs(Store.open(backing.path))
        elif action == "stat":
            assert vfs.attributes("f").size == len(model), step
        elif own:
            handle = chance.choice(own)
            assert vfs.read(handle, len(model) + 9, 0, "f") == model, (step, action)
            assert vfs.attributes("f", handle).size == len(model), step
        if len(model) < BLOCK:
            model.extend(DATA[len(model) :])
            patch(mounts[0], "f", (bytes(model), 0))
        assert slurp(mounts[0], "f") == model, (step, action)
    for vfs in mounts:
        vfs.close()
        vfs.store.close()
    thaw(backing.marks, "f")
    assert frozen.read_bytes() == model
    assert overlay_names(backing) == []
