"""The tree as a mount shows it, without a mount."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time

import pytest
from backing import CHUNK, slurp, state, text

from lmfs.errors import DamagedError
from lmfs.store import handles
from lmfs.store.freeze import thaw
from lmfs.store.overlays import SWITCH
from lmfs.store.store import Store
from lmfs.store.system import RENAME_EXCHANGE, RENAME_NOREPLACE
from lmfs.vfs import Maker, Vfs

DATA = text(20 * CHUNK + 5)


class TestAttributes:
    def test_a_frozen_file_looks_as_before_but_for_its_blocks(self, backing, vfs):
        path = backing.write("f", DATA)
        before = vfs.attributes("f")
        backing.freeze("f")
        after = vfs.attributes("f")
        assert after.blocks < before.blocks
        assert after.blocks == path.stat().st_blocks
        same = before._replace(blocks=0, ctime_ns=0, atime_ns=0)
        assert after._replace(blocks=0, ctime_ns=0, atime_ns=0) == same

    def test_they_do_not_thaw(self, backing, vfs):
        backing.write_frozen("f", DATA)
        vfs.change_mode("f", 0o600)
        vfs.change_owner("f", 12, -1)
        vfs.change_owner("f", -1, 34)
        vfs.change_times("f", 5, None)
        vfs.change_times("f", None, 7)
        vfs.set_xattr("f", "user.note", b"x")
        vfs.rename("f", "g")
        found = vfs.attributes("g")
        assert (stat.S_IMODE(found.mode), found.uid, found.gid) == (0o600, 12, 34)
        assert (found.atime_ns, found.mtime_ns) == (5, 7)
        assert vfs.get_xattr("g", "user.note") == b"x"
        assert state(vfs, "g") == b"frozen"
        assert slurp(vfs, "g") == DATA

    def test_a_damaged_file_still_has_attributes(self, backing, vfs):
        path = backing.write_frozen("f", DATA)
        os.truncate(path, 99)
        assert vfs.attributes("f").size == len(DATA)
        assert state(vfs, "f") == b"damaged"

    def test_own_xattrs_are_hidden_and_refused(self, backing, vfs):
        backing.write_frozen("f", DATA)
        assert vfs.list_xattrs("f") == []
        for name in ("user.lmfs.frozen", "user.lmfs.inode"):
            with pytest.raises(OSError, match="No data") as raised:
                vfs.get_xattr("f", name)
            assert raised.value.errno == errno.ENODATA
            with pytest.raises(PermissionError):
                vfs.set_xattr("f", name, b"")
            with pytest.raises(PermissionError):
                vfs.remove_xattr("f", name)
        vfs.set_xattr("f", "user.a", b"1")
        assert vfs.list_xattrs("f") == ["user.a"]
        vfs.remove_xattr("f", "user.a")
        assert vfs.list_xattrs("f") == []


class TestNames:
    def test_own_names_do_not_exist(self, backing, vfs):
        name = backing.store.new_temporary_name(1)
        backing.write(name, b"")
        backing.write("f", b"1")
        assert [e.name for e in vfs.list_directory(".")] == ["f"]
        for path in (".lmfs", ".lmfs/store.json", name):
            for look in (vfs.attributes, vfs.remove_file, vfs.list_xattrs, vfs.remove_directory):
                with pytest.raises(FileNotFoundError):
                    look(path)
            with pytest.raises(FileNotFoundError):
                vfs.open(path, os.O_RDONLY)
            with pytest.raises(FileNotFoundError):
                vfs.truncate(path, 0)
            with pytest.raises(FileNotFoundError):
                vfs.rename(path, "x")
            with pytest.raises(PermissionError):
                vfs.rename("f", path)
            with pytest.raises(PermissionError):
                vfs.create(path, os.O_WRONLY, 0o600)
            with pytest.raises(PermissionError):
                vfs.make_directory(path, 0o700)
            with pytest.raises(PermissionError):
                vfs.link("f", path)
            with pytest.raises(PermissionError):
                vfs.make_symlink("f", path)
        assert slurp(vfs, "f") == b"1"

    def test_entries_have_types(self, backing, vfs):
        backing.write("f", b"")
        os.mkdir(backing.path / "d")
        os.symlink("f", backing.path / "l")
        os.mkfifo(backing.path / "p")
        types = {e.name: e.mode for e in vfs.list_directory(".")}
        assert types == {
            "f": stat.S_IFREG,
            "d": stat.S_IFDIR,
            "l": stat.S_IFLNK,
            "p": stat.S_IFIFO,
        }

    def test_new_files_belong_to_their_makers(self, backing, vfs):
        owner = Maker(1234, 4321)
        vfs.make_directory("d", 0o755, owner)
        vfs.make_symlink("x", "l", owner)
        vfs.make_node("p", stat.S_IFIFO | 0o600, 0, owner)
        vfs.release(vfs.create("f", os.O_WRONLY, 0o4755, owner))
        for name in ("d", "l", "p", "f"):
            found = vfs.attributes(name)
            assert (found.uid, found.gid) == (1234, 4321)
        assert stat.S_IMODE(vfs.attributes("f").mode) & stat.S_ISUID
        assert vfs.read_link("l") == "x"

    def test_a_set_group_id_directory_keeps_its_group(self, backing, vfs):
        vfs.make_directory("d", 0o755)
        os.chown(backing.path / "d", 0, 77)
        vfs.change_mode("d", 0o2755)
        vfs.release(vfs.create("d/f", os.O_WRONLY, 0o644, Maker(1234, 4321)))
        assert vfs.attributes("d/f")[3:5] == (1234, 77)

    def test_the_umask_stands_back_for_a_default_acl(self, backing, vfs):
        maker = Maker(umask=0o077)
        vfs.make_directory("d", 0o755, maker)
        vfs.make_directory("e", 0o755)
        entries = "01000700ffffffff04000700ffffffff20000500ffffffff"
        acl = bytes.fromhex("02000000" + entries)
        os.setxattr(backing.path / "e", "system.posix_acl_default", acl)
        for directory, mode in (("d", 0o600), ("e", 0o664)):
            vfs.release(vfs.create(f"{directory}/f", os.O_WRONLY, 0o666, maker))
            vfs.make_node(f"{directory}/p", stat.S_IFIFO | 0o666, 0, maker)
            for name in ("f", "p"):
                assert stat.S_IMODE(vfs.attributes(f"{directory}/{name}").mode) == mode

    def test_an_open_file_that_is_replaced_is_never_missing(self, backing, vfs):
        path, other = backing.write("d/f", DATA), backing.write("g", b"new")
        handle = vfs.open("d/f", os.O_RDONLY)
        assert vfs.hide("d/f", "d/hidden1")
        assert path.read_bytes() == DATA  # and so it is after a crash
        vfs.rename("g", "d/f")
        assert (path.read_bytes(), other.exists()) == (b"new", False)
        time.sleep(0.2)
        assert path.read_bytes() == b"new"
        assert vfs.read(handle, len(DATA), 0, "d/hidden1") == DATA
        assert vfs.attributes("d/hidden1").size == len(DATA)
        assert vfs.attributes("d/hidden1").links == 0
        vfs.release(handle, "d/hidden1")
        vfs.remove_file("d/hidden1")
        with pytest.raises(FileNotFoundError):
            vfs.attributes("d/hidden1")

    @pytest.mark.parametrize("look", ["d/f", "d", ".", "later"])
    def test_an_open_file_that_is_removed_is_gone(self, backing, vfs, look):
        path = backing.write("d/f", DATA)
        handle = vfs.open("d/f", os.O_RDWR)
        assert vfs.hide("d/f", "d/hidden1")
        if look == "later":
            time.sleep(0.5)
        else:
            with contextlib.suppress(FileNotFoundError):
                vfs.attributes(look)
        assert not path.exists()
        vfs.remove_directory("d")
        vfs.change_mode("d/hidden1", 0o611)
        vfs.change_owner("d/hidden1", 5, 6)
        vfs.change_times("d/hidden1", None, 7)
        vfs.set_xattr("d/hidden1", "user.a", b"1")
        vfs.truncate("d/hidden1", 3)
        found = vfs.attributes("d/hidden1")
        assert (stat.S_IMODE(found.mode), found.uid, found.gid) == (0o611, 5, 6)
        assert (found.size, found.mtime_ns != 7) == (3, True)
        assert vfs.list_xattrs("d/hidden1") == ["user.a"]
        vfs.release(handle)

    def test_a_removed_file_that_another_process_thaws_does_not_come_back(self, backing, vfs):
        """In the moment before its name goes it becomes another inode."""
        path = backing.write_frozen("f", DATA)
        handle = vfs.open("f", os.O_RDONLY)
        assert vfs.hide("f", "hidden1")
        thaw(backing.marks, "f")
        with contextlib.suppress(FileNotFoundError):
            vfs.attributes("f")
        assert not path.exists()
        assert vfs.read(handle, len(DATA), 0, "hidden1") == DATA

    @pytest.mark.parametrize("how", ["removed", "replaced", "at once", "soon"])
    def test_who_read_before_another_process_thawed_reads_what_was_written_since(
        self, backing, vfs, how
    ):
        """Its name, by which alone it could be found, goes before anybody read again."""
        backing.write_frozen("f", DATA)
        reader = vfs.open("f", os.O_RDONLY)
        thaw(backing.marks, "f")
        writer = vfs.open("f", os.O_WRONLY | os.O_TRUNC)
        vfs.write(writer, b"NEW", 0)
        name = "f"
        if how == "at once":
            vfs.remove_file("f")
        else:
            name = "hidden1"
            assert vfs.hide("f", name)
        if how == "replaced":
            backing.write("g", b"another")
            vfs.rename("g", "f")
        elif how == "removed":
            vfs.list_directory(".")
            time.sleep(0.5)
        assert vfs.attributes(name, reader).size == 3
        assert vfs.read(reader, 100, 0, name) == b"NEW"
        assert name == "f" or vfs.attributes(name).size == 3

    def test_what_took_the_name_of_a_removed_file_is_not_opened(self, backing, vfs):
        """A FIFO would hold the reader up, a device would do something."""
        backing.write_frozen("f", DATA)
        reader = vfs.open("f", os.O_RDONLY)
        assert vfs.hide("f", "hidden1")
        vfs.list_xattrs(".")
        time.sleep(0.5)
        os.mkfifo(backing.path / "f")
        got = []
        thread = threading.Thread(
            target=lambda: got.append(vfs.read(reader, 100, 0, "hidden1")), daemon=True
        )
        thread.start()
        thread.join(5)
        assert got == [DATA[:100]]

    def test_who_could_not_follow_gets_no_old_bytes(self, backing, vfs):
        """Another mount wrote and removed it; nobody told this one."""
        other = Vfs(Store.open(backing.path))
        backing.write_frozen("f", DATA)
        reader = vfs.open("f", os.O_RDONLY)
        other.thaw("f")
        (backing.path / "f").write_bytes(b"NEW")
        other.remove_file("f")
        with pytest.raises(OSError, match="Stale"):
            vfs.read(reader, 100, 0, "f")
        other.close()

    def test_a_file_without_a_name_is_there_while_its_handles_come_and_go(self, backing, vfs):
        backing.write("f", DATA)
        handles = [vfs.open("f", os.O_RDWR) for _ in range(3)]
        assert vfs.hide("f", "hidden1")
        for handle in handles:
            vfs.release(handle, "hidden1")
            assert vfs.attributes("hidden1").size == len(DATA)
        vfs.remove_file("hidden1")
        assert vfs.statistics()["open_files"] == 0

    def test_a_handle_that_is_closed_meanwhile_is_not_turned(self, backing, vfs, monkeypatch):
        """Its descriptor's number may be that of another file by then."""
        backing.write_frozen("f", DATA)
        backing.write("g", b"another")
        handle = vfs.open("f", os.O_RDONLY)
        look, opened = vfs._files._open_handle, []

        def meanwhile(*arguments):
            found = look(*arguments)
            if not opened:
                opened.append(None)
                vfs.release(handle)
                opened[0] = vfs.open("g", os.O_RDONLY)
            return found

        monkeypatch.setattr(vfs._files, "_open_handle", meanwhile)
        vfs.thaw("f")
        assert vfs.read(opened[0], 100, 0, "g") == b"another"

    @pytest.mark.parametrize("by_handle", [False, True])
    def test_the_size_of_a_file_that_is_thawed_this_moment(
        self, backing, vfs, by_handle, monkeypatch
    ):
        """What it is, is asked after what it measures: both must be of one inode."""
        path = backing.write_frozen("f", DATA)
        handle = vfs.open("f", os.O_RDONLY)
        look, thawed = vfs.marks.facts_of_path, []
        facts = vfs._files.facts

        def meanwhile(*arguments):
            if not thawed:
                thawed.append(True)
                vfs.thaw("f")
                assert path.read_bytes() == DATA
            return (facts if by_handle else look)(*arguments)

        target = (vfs._files, "facts") if by_handle else (vfs.marks, "facts_of_path")
        monkeypatch.setattr(*target, meanwhile)
        assert vfs.attributes("f", handle if by_handle else None).size == len(DATA)
        assert thawed == [True]
        vfs.release(handle)

    def test_closed_files_are_not_hidden(self, backing, vfs):
        path = backing.write("f", DATA)
        assert not vfs.hide("f", "hidden1")
        assert path.exists()

    def test_linking_thaws(self, backing, vfs):
        backing.write_frozen("f", DATA)
        inode = vfs.attributes("f").inode
        vfs.link("f", "g")
        assert vfs.attributes("g").inode == vfs.attributes("f").inode == inode
        assert vfs.attributes("f").links == 2
        assert state(vfs, "f") == b"hot"
        assert slurp(vfs, "g") == DATA

    def test_rename_flags(self, backing, vfs):
        backing.write("a", b"a")
        backing.write("b", b"b")
        with pytest.raises(FileExistsError):
            vfs.rename("a", "b", RENAME_NOREPLACE)
        vfs.rename("a", "b", RENAME_EXCHANGE)
        assert (slurp(vfs, "a"), slurp(vfs, "b")) == (b"b", b"a")
        with pytest.raises(OSError, match="Invalid"):
            vfs.rename("a", "b", RENAME_EXCHANGE | RENAME_NOREPLACE)

    def test_what_a_crash_left_keeps_no_directory(self, backing, vfs):
        vfs.make_directory("d", 0o755)
        backing.write("d/" + backing.store.new_temporary_name(1), b"")
        vfs.remove_directory("d")
        assert not (backing.path / "d").exists()
        backing.write("e/x", b"")
        with pytest.raises(OSError, match="not empty"):
            vfs.remove_directory("e")

    def test_symlinks_do_not_lead_outside(self, backing, vfs, tmp_path):
        outside = tmp_path / "outside"
        outside.write_bytes(b"secret")
        os.symlink(outside, backing.path / "l")
        with pytest.raises(OSError, match="symbolic"):
            vfs.open("l", os.O_RDONLY)
        vfs.change_owner("l", 5, 5)
        vfs.change_times("l", 1, 2)
        assert outside.stat().st_uid == 0
        assert outside.stat().st_mtime_ns != 2


class TestReading:
    def test_any_place(self, backing, vfs):
        backing.write_frozen("f", DATA)
        handle = vfs.open("f", os.O_RDONLY)
        for offset, size in [(0, 1), (CHUNK - 1, 2), (5 * CHUNK, CHUNK), (len(DATA) - 3, 100)]:
            assert vfs.read(handle, size, offset, "f") == DATA[offset : offset + size]
        assert vfs.read(handle, 10, len(DATA), "f") == b""
        assert vfs.read(handle, 10, len(DATA) * 2, "f") == b""
        vfs.release(handle, "f")

    def test_only_what_is_touched_is_decoded(self, backing, vfs):
        backing.write_frozen("f", DATA)
        handle = vfs.open("f", os.O_RDONLY)
        vfs.read(handle, 10, 7 * CHUNK, "f")
        assert vfs.cache.used_bytes <= 2 * CHUNK
        vfs.release(handle, "f")

    def test_two_handles_share_a_reader_and_its_chunks(self, backing, vfs):
        backing.write_frozen("f", DATA)
        first, second = vfs.open("f", os.O_RDONLY), vfs.open("f", os.O_RDONLY)
        vfs.read(first, len(DATA), 0, "f")
        misses = vfs.cache.misses
        assert vfs.read(second, len(DATA), 0, "f") == DATA
        assert vfs.cache.misses == misses
        vfs.release(first)
        assert vfs.read(second, len(DATA), 0, "f") == DATA
        vfs.release(second)

    def test_a_damaged_chunk_spares_the_others(self, backing, vfs):
        path = backing.write_frozen("f", DATA)
        stored = bytearray(path.read_bytes())
        stored[len(stored) // 2] ^= 1
        path.write_bytes(stored)
        handle = vfs.open("f", os.O_RDONLY)
        damaged = 0
        for offset in range(0, len(DATA), CHUNK):
            try:
                got = vfs.read(handle, CHUNK, offset, "f")
                assert got == DATA[offset : offset + CHUNK]
            except DamagedError:
                damaged += 1
        assert damaged == 1
        vfs.release(handle)

    def test_disagreeing_marks_are_not_opened(self, backing, vfs):
        path = backing.write_frozen("f", DATA)
        os.truncate(path, 1000)
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            with pytest.raises(DamagedError, match="restore it from a backup"):
                vfs.open("f", flags)
        vfs.release(vfs.open("f", os.O_WRONLY | os.O_TRUNC), "f")
        assert slurp(vfs, "f") == b""

    def test_a_removed_file_is_still_read(self, backing, vfs):
        backing.write_frozen("f", DATA)
        handle = vfs.open("f", os.O_RDONLY)
        vfs.remove_file("f")
        assert vfs.read(handle, len(DATA), 0, "f") == DATA
        backing.write("f", b"another")
        assert vfs.read(handle, len(DATA), 0) == DATA
        assert vfs.attributes("f", None).size == len(b"another")
        vfs.release(handle)


class TestWriting:
    @pytest.fixture(autouse=True, params=["0", "1"], ids=["thawed", "overlays"])
    def overlays_on(self, request, monkeypatch):
        monkeypatch.setenv(SWITCH, request.param)
        return request.param == "1"

    def test_a_frozen_file_stays_frozen(self, backing, vfs, monkeypatch):
        monkeypatch.setenv(SWITCH, "1")
        path = backing.write_frozen("f", DATA)
        stored, inode = path.read_bytes(), vfs.attributes("f").inode
        handle = vfs.open("f", os.O_WRONLY)
        assert state(vfs, "f") == b"frozen"  # until it is written to
        assert vfs.write(handle, b"NEW", 5) == 3
        vfs.sync(handle)
        vfs.sync(handle, data_only=True)
        vfs.flush(handle)
        vfs.release(handle, "f")
        assert path.read_bytes() == stored
        assert state(vfs, "f") == b"patched"
        assert slurp(vfs, "f") == DATA[:5] + b"NEW" + DATA[8:]
        assert vfs.attributes("f").inode == inode

    def test_truncating_on_open_decodes_nothing(self, backing, vfs):
        path = backing.write_frozen("f", DATA)
        stored = bytearray(path.read_bytes())
        stored[100:-100] = bytes(len(stored) - 200)  # nothing left that could be decoded
        path.write_bytes(stored)
        handle = vfs.open("f", os.O_WRONLY | os.O_TRUNC)
        vfs.write(handle, b"new", 0)
        vfs.release(handle, "f")
        assert slurp(vfs, "f") == b"new"

    @pytest.mark.parametrize("size", [0, 1, CHUNK * 3 + 1, len(DATA), len(DATA) + 100])
    def test_truncating(self, backing, vfs, size):
        backing.write_frozen("f", DATA)
        vfs.truncate("f", size)
        assert slurp(vfs, "f") == (DATA + bytes(100))[:size]

    def test_truncating_by_handle(self, backing, vfs):
        backing.write("f", DATA)
        handle = vfs.open("f", os.O_RDWR)
        vfs.truncate("f", 3, handle)
        assert vfs.attributes("f", handle).size == 3
        vfs.allocate(handle, 0, 0, 10)
        assert vfs.attributes("f", handle).size == 10
        with pytest.raises(OSError, match="not supported"):
            vfs.allocate(handle, 1, 0, 10)
        vfs.release(handle, "f")

    def test_readers_see_what_writers_write(self, backing, vfs):
        backing.write_frozen("f", DATA)
        reader = vfs.open("f", os.O_RDONLY)
        assert vfs.read(reader, 3, 0, "f") == DATA[:3]
        writer = vfs.open("f", os.O_RDWR)
        vfs.write(writer, b"NEW", 0)
        assert vfs.read(reader, 3, 0, "f") == b"NEW"
        assert vfs.read(writer, 3, 0, "f") == b"NEW"
        assert vfs.attributes("f", reader).size == len(DATA)
        vfs.release(writer, "f")
        vfs.release(reader, "f")

    def test_a_reader_follows_a_thaw_by_another_process(self, backing, vfs):
        backing.write_frozen("f", DATA)
        reader = vfs.open("f", os.O_RDONLY)
        thaw(backing.marks, "f")
        (backing.path / "f").write_bytes(b"NEW")
        assert vfs.read(reader, 100, 0, "f") == b"NEW"
        vfs.release(reader, "f")

    def test_a_reader_does_not_follow_another_file(self, backing, vfs):
        backing.write_frozen("f", DATA)
        reader = vfs.open("f", os.O_RDONLY)
        backing.write("g", b"other")
        os.rename(backing.path / "g", backing.path / "f")
        assert vfs.read(reader, 4, 0) == DATA[:4]
        # The kernel would keep what it reads with the other file's pages.
        with pytest.raises(OSError, match="Stale file handle"):
            vfs.read(reader, 4, 0, "f")
        vfs.release(reader, "f")

    def test_an_open_file_is_not_frozen(self, backing, vfs):
        backing.write("f", DATA)
        handle = vfs.open("f", os.O_RDONLY)
        assert "open" in backing.freeze("f").reason
        vfs.release(handle, "f")
        assert backing.freeze("f").reason is None

    @pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
    def test_a_file_replaced_while_it_is_opened(self, backing, vfs, monkeypatch, flags):
        """The race that loses data: the old inode is opened, then another takes its name."""
        backing.write("f", b"old")
        backing.write("g", b"new")
        real_open = os.open

        def slow_open(path, *arguments, **options):
            fd = real_open(path, *arguments, **options)
            if path == "f" and (backing.path / "g").exists():
                os.rename(backing.path / "g", backing.path / "f")
            return fd

        monkeypatch.setattr(os, "open", slow_open)
        handle = vfs.open("f", flags)
        assert vfs.read(handle, 10, 0, "f") == b"new"
        if flags != os.O_RDONLY:
            vfs.write(handle, b"N", 0)
            assert (backing.path / "f").read_bytes() == b"New"
        vfs.release(handle, "f")

    @pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY | os.O_TRUNC])
    def test_a_file_frozen_while_it_is_opened(self, backing, vfs, monkeypatch, flags):
        """Hot when it was looked at, frozen by another process before the open."""
        path = backing.write("f", DATA)
        real, calls = handles.Handles._open_handle, []

        def freeze_first(*arguments):
            if not calls:
                assert backing.freeze("f").reason is None
            calls.append(1)
            return real(*arguments)

        monkeypatch.setattr(handles.Handles, "_open_handle", freeze_first)
        handle = vfs.open("f", flags)
        vfs.write(handle, b"NEW", 0)
        vfs.release(handle, "f")
        assert slurp(vfs, "f") == (b"NEW" if flags & os.O_TRUNC else b"NEW" + DATA[3:])
        thaw(backing.marks, "f")
        assert path.read_bytes() == (b"NEW" if flags & os.O_TRUNC else b"NEW" + DATA[3:])

    def test_creating(self, backing, vfs):
        backing.write_frozen("f", DATA)
        with pytest.raises(FileExistsError):
            vfs.create("f", os.O_WRONLY | os.O_EXCL, 0o644)
        handle = vfs.create("f", os.O_WRONLY, 0o644)
        vfs.write(handle, b"NEW", 0)
        vfs.release(handle, "f")
        assert slurp(vfs, "f")[:4] == b"NEW" + DATA[3:4]

    def test_appending(self, backing, vfs):
        backing.write_frozen("f", DATA)
        handle = vfs.open("f", os.O_WRONLY | os.O_APPEND)
        vfs.write(handle, b"end", len(DATA))
        vfs.release(handle, "f")
        assert slurp(vfs, "f") == DATA + b"end"

    def test_a_wrong_handle(self, vfs):
        for call in (
            lambda: vfs.read(99, 1, 0),
            lambda: vfs.write(99, b"", 0),
            lambda: vfs.flush(99),
        ):
            with pytest.raises(OSError, match="descriptor") as raised:
                call()
            assert raised.value.errno == errno.EBADF
