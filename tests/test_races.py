"""What another process does between two system calls of one of ours.

Each test forces one interleaving, by patching the call that stands at that place, and then looks at
what a user would see. What the load and the crash tools found is in test_store_overlays.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from types import SimpleNamespace

import pytest
from backing import CHUNK, mount, slurp, state, text, unmount

from lmfs.errors import BusyError, DamagedError
from lmfs.lmz import LmzReader
from lmfs.store import freeze as freeze_module
from lmfs.store import handles, overlays, publish
from lmfs.store import marks as marks_module
from lmfs.store.freeze import thaw
from lmfs.store.handles import Handles
from lmfs.store.marks import FROZEN_MARK, State
from lmfs.store.overlays import BLOCK, OVERLAYS
from lmfs.store.store import Store
from lmfs.vfs import Vfs

SIZE = 20 * CHUNK + 5
DATA = text(SIZE)
HIDDEN = ".fuse_hidden0000000100000001"


@pytest.fixture(autouse=True)
def _overlays(monkeypatch):
    monkeypatch.delenv(overlays.SWITCH, raising=False)


@pytest.fixture
def frozen(backing):
    return backing.write_frozen("f", DATA)


@pytest.fixture
def other(backing):
    """Another mount of the same store."""
    other = Vfs(Store.open(backing.path))
    yield other
    other.close()


def patch(vfs, name, *writes):
    handle = vfs.open(name, os.O_RDWR)
    for data, offset in writes:
        assert vfs.write(handle, data, offset) == len(data)
    vfs.release(handle, name)


class TestThaw:
    @pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
    def test_handles_are_turned_to_the_thawed_file_only(
        self, backing, vfs, frozen, other, flags, monkeypatch
    ):
        """Another file may have taken the name since."""
        handle = vfs.open("f", flags)
        if flags == os.O_RDWR:
            vfs.write(handle, b"x", 0)
        backing.write("x", text(5000, seed=9))
        thaw_now = handles.thaw

        def meanwhile(*arguments, **options):
            other.rename("x", "f")
            return thaw_now(*arguments, **options)

        monkeypatch.setattr(handles, "thaw", meanwhile)
        vfs.thaw("f")
        if flags == os.O_RDWR:
            assert vfs.write(handle, b"y", 0) == 1
            assert vfs.read(handle, 10, 0) == b"y" + DATA[1:10]
        else:
            assert vfs.read(handle, 100, 0) == DATA[:100]
        vfs.release(handle)

    @pytest.mark.parametrize("killed", [False, True])
    def test_what_was_replaced_keeps_a_name_for_a_moment(
        self, vfs, frozen, other, killed, monkeypatch
    ):
        """That of the temporary: for the fsync of the directory, or until the next sweep."""
        reader = vfs.open("f", os.O_RDONLY)
        steps, seen = [], []
        sync = os.fsync

        def look():
            seen.extend([vfs.read(reader, 3, 0, "f"), vfs.attributes("f", reader).size])

        def fsync(fd):
            if steps == ["swapped"]:
                steps.append("written to")
                patch(vfs, "f", (b"NEW", 0), (b"tail", SIZE))
                if killed:
                    raise KeyboardInterrupt
                look()
            return sync(fd)

        monkeypatch.setattr(publish, "reached", lambda s: s == "swapped" and steps.append(s))
        monkeypatch.setattr(os, "fsync", fsync)
        with contextlib.suppress(KeyboardInterrupt):
            thaw(other.marks, "f")
        if killed:
            look()
        assert seen == [b"NEW", SIZE + 4]
        vfs.release(reader)

    def test_a_write_whose_time_could_not_be_set(self, vfs, frozen, other, monkeypatch):
        patch(vfs, "f", (b"one", 0))
        time.sleep(0.05)
        set_time = os.utime

        def fail(fd, *arguments, **options):
            if not arguments and not options:
                raise PermissionError(errno.EACCES, "no")
            return set_time(fd, *arguments, **options)

        def look(step):
            if step == "verified":
                monkeypatch.setattr(os, "utime", fail)
                patch(vfs, "f", (b"two", 0))
                monkeypatch.setattr(os, "utime", set_time)

        monkeypatch.setattr(freeze_module, "reached", look)
        with contextlib.suppress(BusyError):
            thaw(other.marks, "f")
        assert slurp(vfs, "f")[:3] == b"two"


class TestFreeze:
    def test_thawing_waits_for_no_clock(self, vfs, frozen, monkeypatch):
        """What tells of a write to a file without an overlay is its overlay."""
        monkeypatch.setattr(freeze_module, "clock_tick_ns", lambda time_ns: 10**18 * 9)
        vfs.thaw("f")
        assert state(vfs, "f") == b"hot"

    @pytest.mark.parametrize("tick_ns", [4_000_000, 1_000_000_000])
    def test_a_write_in_the_tick_in_which_it_was_read(self, backing, vfs, tick_ns, monkeypatch):
        """With times as coarse as those of a kernel before 6.13, or of an old filesystem."""
        status_of = os.fstat

        def fstat(fd):
            status = status_of(fd)
            fields = {name: getattr(status, name) for name in dir(status) if name[:3] == "st_"}
            for name in ("st_mtime_ns", "st_ctime_ns"):
                fields[name] -= fields[name] % tick_ns
            return SimpleNamespace(**fields)

        blocks_of = freeze_module.blocks
        for number in range(6 if tick_ns < 10**9 else 1):
            name, written = f"f{number}", []
            backing.write(name, DATA)

            def blocks(pread, name=name, written=written):
                found = list(blocks_of(pread))
                if not written:
                    written.append(True)
                    with open(backing.path / name, "r+b") as file:
                        file.write(b"NEW")
                yield from found

            with monkeypatch.context() as patched:
                patched.setattr(freeze_module, "blocks", blocks)
                patched.setattr(os, "fstat", fstat)
                backing.freeze(name)
            assert written
            assert slurp(vfs, name)[:3] == b"NEW"

    def test_a_file_that_is_always_written_to_is_left(self, backing, monkeypatch):
        backing.write("f", DATA)
        monkeypatch.setattr(freeze_module, "_QUIET_S", 0.1)
        monkeypatch.setattr(freeze_module, "clock_tick_ns", lambda time_ns: 10**18 * 9)
        assert "all the time" in backing.freeze("f").reason

    def test_a_write_to_what_is_swapped_back(self, backing, vfs, other, monkeypatch):
        """Who opens the frozen file in the moment in which it has the name."""
        backing.write("f", DATA)
        swap, opened = publish.exchange_or_rename, []

        def meanwhile(*arguments, **options):
            result = swap(*arguments, **options)
            if not opened:
                begun = threading.Thread(
                    target=lambda: opened.append(other.open("f", os.O_RDWR)), daemon=True
                )
                opened.append(begun)
                begun.start()
                begun.join(0.2)
                monkeypatch.setattr(publish.Lease, "wanted", property(lambda lease: True))
            return result

        monkeypatch.setattr(publish, "exchange_or_rename", meanwhile)
        assert backing.freeze("f").reason
        monkeypatch.undo()
        opened[0].join()
        other.write(opened[1], b"NEW", 0)
        other.release(opened[1], "f")
        assert slurp(vfs, "f")[:3] == b"NEW"


class TestLink:
    def test_a_second_name_before_the_swap(self, backing, vfs, monkeypatch):
        backing.write("f", DATA)
        files = backing.path / "f", backing.path / "g"
        monkeypatch.setattr(publish, "reached", lambda s: s == "checked" and os.link(*files))
        assert backing.freeze("f").reason
        monkeypatch.undo()
        patch(vfs, "f", (b"NEW", 0))
        assert slurp(vfs, "g")[:3] == b"NEW"

    @pytest.mark.parametrize("at", ["locked", "waiting"])
    def test_a_second_name_before_it_is_read(self, backing, vfs, at, monkeypatch):
        """After the first look at it, or while the freezer waits for a tick of the clock."""
        backing.write("f", DATA)
        linked = []

        def link():
            if not linked:
                linked.append(os.link(backing.path / "f", backing.path / "g"))

        source, sleep = freeze_module.Source, time.sleep
        if at == "locked":
            monkeypatch.setattr(freeze_module, "Source", lambda *a, **k: link() or source(*a, **k))
        else:
            monkeypatch.setattr(time, "sleep", lambda seconds: link() or sleep(seconds))
        assert "2 hard links" in backing.freeze("f").reason
        monkeypatch.undo()
        assert linked
        patch(vfs, "f", (b"NEW", 0))
        assert slurp(vfs, "g")[:3] == b"NEW"

    def test_frozen_again_before_it_has_a_second_name(self, backing, vfs, frozen, monkeypatch):
        link = os.link

        def meanwhile(*arguments, **options):
            backing.freeze("f")
            return link(*arguments, **options)

        monkeypatch.setattr(os, "link", meanwhile)
        vfs.link("f", "g")
        monkeypatch.undo()
        assert state(vfs, "f") == b"hot"
        patch(vfs, "f", (b"NEW", 0))
        assert slurp(vfs, "g")[:3] == b"NEW"

    def test_while_it_is_frozen(self, backing, vfs, monkeypatch):
        """The link waits for the lease, and then sees what was replaced."""
        backing.write("f", DATA)
        readable = marks_module._readable
        looking, swapped, linking = threading.Event(), threading.Event(), []

        @contextlib.contextmanager
        def slowly(fd):
            if threading.current_thread() in linking:
                looking.set()
                swapped.wait(5)
            with readable(fd) as found:
                yield found

        def reached(step):
            if step == "checked" and not linking:
                linking.append(threading.Thread(target=vfs.link, args=("f", "g")))
                linking[0].start()
                looking.wait(5)
            elif step == "swapped":
                swapped.set()
                time.sleep(0.1)

        monkeypatch.setattr(marks_module, "_readable", slowly)
        monkeypatch.setattr(publish, "reached", reached)
        backing.freeze("f")
        linking[0].join()
        assert (backing.path / "g").stat().st_nlink == 2
        assert state(vfs, "f") == b"hot"

    def test_an_overlay_stays_while_its_file_has_a_name(self, backing, vfs, frozen, monkeypatch):
        patch(vfs, "f", (b"NEW", 0))
        time.sleep(0.05)
        root = backing.store.root_fd

        def give_it_a_name(fd):
            os.link(f"/proc/self/fd/{fd}", "g", dst_dir_fd=root, follow_symlinks=True)

        monkeypatch.setattr(publish, "say_replaced", give_it_a_name)
        thaw(backing.marks, "f")
        monkeypatch.undo()
        assert state(vfs, "g") == b"patched"
        assert slurp(vfs, "g")[:3] == b"NEW"

    def test_what_is_linked_is_linked(self, backing, vfs, monkeypatch):
        """Though closing it fails afterwards."""
        backing.write("f", DATA)
        close, link, linked = os.close, os.link, []

        def failing(fd):
            close(fd)
            if linked:
                raise OSError(errno.EIO, "no")

        monkeypatch.setattr(os, "close", failing)
        monkeypatch.setattr(os, "link", lambda *a, **k: linked.append(link(*a, **k)))
        vfs.link("f", "g")
        monkeypatch.undo()
        assert os.stat(backing.path / "g").st_nlink == 2

    @pytest.mark.parametrize("kind", ["fifo", "symlink"])
    def test_what_is_no_file(self, backing, vfs, kind):
        if kind == "fifo":
            os.mkfifo(backing.path / "f")
        else:
            os.symlink("nowhere", backing.path / "f")
        vfs.link("f", "g")
        assert os.lstat(backing.path / "g").st_nlink == 2


class TestOverlay:
    def test_blocks_of_a_writer_that_was_killed(self, backing, vfs, frozen, other, monkeypatch):
        """Who opens the file for writing undoes them, between a reader's two looks."""
        patch(vfs, "f", (b"z", SIZE))
        (name,) = os.listdir(backing.path / OVERLAYS)
        with open(backing.path / OVERLAYS / name, "r+b") as file:
            file.seek(BLOCK + 5)
            file.write(b"\2")
        reader = vfs.open("f", os.O_RDONLY)
        look, opened = overlays.has_writers, []

        def meanwhile(fd):
            monkeypatch.setattr(overlays, "has_writers", look)
            opened.append(other.open("f", os.O_RDWR))
            return look(fd)

        monkeypatch.setattr(overlays, "has_writers", meanwhile)
        assert vfs.read(reader, 10, 5 * BLOCK, "f") == DATA[5 * BLOCK :][:10]
        other.release(opened[0])
        vfs.release(reader)

    def test_what_another_mount_removes_after_it_was_opened(self, vfs, frozen, other):
        patch(other, "f", (b"NEW", 0))
        reader = vfs.open("f", os.O_RDONLY)
        other.remove_file("f")
        assert vfs.read(reader, 3, 0, "f") == b"NEW"
        vfs.release(reader)

    def test_a_cut_while_it_is_read(self, vfs, frozen, other, monkeypatch):
        patch(other, "f", (b"t" * 10_000, SIZE))
        reader = vfs.open("f", os.O_RDONLY)
        base, cut = overlays.Overlay._base, []

        def meanwhile(overlay, start, end):
            if not cut:
                cut.append(True)
                handle = other.open("f", os.O_RDWR)
                other.truncate("f", 10 * CHUNK, handle)
                other.release(handle, "f")
            return base(overlay, start, end)

        monkeypatch.setattr(overlays.Overlay, "_base", meanwhile)
        assert vfs.read(reader, SIZE + 10_000, 0, "f") == DATA[: 10 * CHUNK]
        vfs.release(reader)

    def test_what_was_forgotten_does_not_come_back(self, vfs, frozen, monkeypatch):
        reader = vfs.open("f", os.O_RDONLY)
        writer = vfs.open("f", os.O_RDWR)
        vfs.write(writer, b"ONE", 0)
        lock = overlays.lock_byte

        def fail(fd, kind, byte, *, wait=False):
            if wait:
                raise OSError(errno.ENOLCK, "no locks")
            return lock(fd, kind, byte, wait=wait)

        monkeypatch.setattr(overlays, "lock_byte", fail)
        vfs.release(writer, "f")
        monkeypatch.setattr(overlays, "lock_byte", lock)
        before = vfs.read(reader, 3, 0, "f")
        patch(vfs, "f", (b"x", 9 * BLOCK))
        assert vfs.read(reader, 3, 0, "f") == before
        vfs.release(reader)

    def test_the_first_write_where_the_mark_was_lost(self, vfs, frozen, other, monkeypatch):
        """As in a backup without xattrs; nobody may take the overlay for somebody's lost one."""
        os.removexattr(frozen, FROZEN_MARK)
        seen = []

        def look(step):
            if step == "made":
                other.marks.forget()
                seen.append(state(other, "f"))
                other.release(other.open("f", os.O_RDONLY), "f")

        monkeypatch.setattr(overlays, "reached", look)
        patch(vfs, "f", (b"NEW", 0))
        assert seen == [b"frozen"]
        assert slurp(other, "f")[:3] == b"NEW"

    @pytest.mark.parametrize("patched", [False, True])
    def test_marks_that_may_not_be_read_any_more(self, vfs, frozen, patched, monkeypatch):
        """A mount that is not root's, and a chmod 000 of an open file."""
        if patched:
            patch(vfs, "f", (b"NEW", 0), (b"t" * 100, SIZE))
        time.sleep(0.05)
        size = SIZE + (100 if patched else 0)
        reader = vfs.open("f", os.O_RDONLY)
        assert vfs.attributes("f").size == size
        vfs.change_mode("f", 0)

        def refused(*arguments):
            raise PermissionError(errno.EACCES, "no")

        monkeypatch.setattr(marks_module, "_readable", refused)
        monkeypatch.setattr(marks_module, "_get_xattr", refused)
        assert vfs.read(reader, 3, 0, "f") == (b"NEW" if patched else DATA[:3])
        assert vfs.attributes("f", reader).size == size
        assert vfs.attributes("f").size == size
        assert vfs.attributes("f").inode == vfs.attributes("f", reader).inode
        vfs.release(reader)


class TestHandles:
    def test_a_handle_that_is_closed_is_not_cut(self, backing, vfs, monkeypatch):
        """Any handle of a hidden file will do to cut it; its number may be another file's."""
        backing.write("f", DATA)
        backing.write("y", DATA)
        opened = [vfs.open("f", os.O_RDWR) for _ in range(2)]
        assert vfs.hide("f", HIDDEN)
        vfs._settle("f", wait=False)
        cut = Handles._cut

        def meanwhile(files, handle, size):
            number = next(n for n, h in files._handles.items() if h is handle)
            opened.remove(number)
            files.release(number)
            opened.append(vfs.open("y", os.O_RDWR))
            return cut(files, handle, size)

        monkeypatch.setattr(Handles, "_cut", meanwhile)
        with contextlib.suppress(OSError):
            vfs.truncate(HIDDEN, 10)
        assert (backing.path / "y").stat().st_size == SIZE
        for number in opened:
            vfs.release(number)

    def test_hidden_while_it_is_turned(self, vfs, frozen, other, monkeypatch):
        patch(other, "f", (b"t" * 100, SIZE))
        reader = vfs.open("f", os.O_RDONLY)
        thaw(other.marks, "f")
        patch(other, "f", (b"u" * 100, SIZE + 100))
        turn, hiding = os.dup2, []

        def meanwhile(*arguments, **options):
            turned = turn(*arguments, **options)
            if not hiding:
                hiding.append(threading.Thread(target=vfs.hide, args=("f", HIDDEN)))
                hiding[0].start()
                hiding[0].join(0.2)
            return turned

        monkeypatch.setattr(os, "dup2", meanwhile)
        vfs.read(reader, 1, 0, "f")
        hiding[0].join()
        hidden = vfs._hidden[HIDDEN].handle
        assert vfs.read(hidden, 300, SIZE) == b"t" * 100 + b"u" * 100
        assert vfs.attributes(HIDDEN).size == SIZE + 200
        vfs.release(reader)
        vfs.remove_file(HIDDEN)

    def test_touching_one_time_leaves_the_other(self, backing, vfs, other, monkeypatch):
        path = backing.write("f", DATA)
        vfs.change_times("f", 10**18, 10**18)
        handle = other.open("f", os.O_RDWR)
        set_times, written = os.utime, []

        def meanwhile(*arguments, **options):
            if not written:
                written.append(other.write(handle, b"NEW", 0))
            return set_times(*arguments, **options)

        monkeypatch.setattr(os, "utime", meanwhile)
        vfs.change_times("f", 2 * 10**18, None)
        monkeypatch.undo()
        if not written:
            other.write(handle, b"NEW", 0)
        status = path.stat()
        assert (status.st_atime_ns, status.st_mtime_ns != 10**18) == (2 * 10**18, True)
        vfs.change_times("f", None, 3 * 10**18)
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (2 * 10**18, 3 * 10**18)
        os.symlink("nowhere", backing.path / "s")
        vfs.change_times("s", None, 10**18)
        assert os.lstat(backing.path / "s").st_mtime_ns == 10**18
        with pytest.raises(FileNotFoundError):
            vfs.change_times("none", None, 1)
        other.release(handle)

    def test_a_fifo_that_takes_the_name_meanwhile(self, backing, vfs, monkeypatch):
        backing.write("f", DATA)
        os.mkfifo(backing.path / "p")
        status_of, done = os.stat, []

        def meanwhile(path, **options):
            found = status_of(path, **options)
            if path == "f" and not done:
                done.append(True)
                os.rename(backing.path / "p", backing.path / "f")
            return found

        monkeypatch.setattr(os, "stat", meanwhile)
        looking = threading.Thread(target=lambda: done.append(vfs.attributes("f")), daemon=True)
        looking.start()
        looking.join(5)
        assert not looking.is_alive()


class TestStarved:
    """The processor is short, or the process stopped, between the two halves of a rename."""

    def test_a_name_that_is_to_be_replaced_stays(self, backing, vfs, monkeypatch):
        backing.write("f", b"old")
        backing.write("g", b"new")
        reader = vfs.open("f", os.O_RDONLY)
        asleep = time.sleep
        monkeypatch.setattr(time, "sleep", lambda s: asleep(s + 0.02))
        assert vfs.hide("f", HIDDEN)
        looker = threading.Thread(target=vfs.attributes, args=("f",))
        looker.start()  # who looks waits, and does not take it away
        asleep(0.8)
        assert (backing.path / "f").read_bytes() == b"old"
        vfs.rename("g", "f")
        looker.join()
        assert (backing.path / "f").read_bytes() == b"new"
        assert vfs.read(reader, 9, 0, HIDDEN) == b"old"
        vfs.release(reader)
        vfs.remove_file(HIDDEN)


class TestTwoMounts:
    """Renamed over by one mount, a file that is open in the other."""

    @pytest.mark.parametrize("is_frozen", [False, True])
    def test_its_bytes_do_not_get_into_the_other_files_pages(self, backing, tmp_path, is_frozen):
        pages = 64
        backing.write("f", text(pages * BLOCK))
        backing.write("x", b"X" * pages * BLOCK)
        if is_frozen:
            backing.freeze("f")
        points = [tmp_path / "m1", tmp_path / "m2"]
        for point in points:
            point.mkdir()
            mount(backing.path, point)
        opened = []

        def open_one(point):
            opened.append(os.open(point / "f", os.O_RDWR))
            os.posix_fadvise(opened[-1], 0, 0, os.POSIX_FADV_RANDOM)
            return opened[-1]

        try:
            old = open_one(points[0])
            assert os.pread(old, 1, 0) == DATA[:1]
            os.rename(points[1] / "x", points[1] / "f")
            time.sleep(1.2)  # what the kernel knows of attributes
            new = open_one(points[0])
            assert os.pread(new, 1, 0) == b"X"
            for call in (
                lambda: os.pread(old, 1, 50 * BLOCK),
                lambda: os.pwrite(old, b"w", 1),
                lambda: os.ftruncate(old, 1),
                lambda: os.posix_fallocate(old, 0, 65 * BLOCK),
            ):
                with pytest.raises(OSError, match="Stale file handle"):
                    call()
            assert os.pread(new, 1, 50 * BLOCK) == b"X"
            assert (points[0] / "f").read_bytes() == b"X" * pages * BLOCK
        finally:
            for fd in opened:
                os.close(fd)
            for point in points:
                unmount(point)

    def test_a_removed_file_is_read_on(self, vfs, frozen, other):
        reader = vfs.open("f", os.O_RDONLY)
        other.remove_file("f")
        assert vfs.read(reader, 100, 0, "f") == DATA[:100]
        vfs.release(reader)

    @pytest.mark.parametrize("number", [errno.EACCES, errno.ENOTDIR, errno.EIO])
    def test_a_name_that_cannot_be_looked_at(self, vfs, frozen, number, monkeypatch):
        """A parent that may not be searched any more, say, in a mount that is not root's."""
        handle = vfs.open("f", os.O_RDWR)

        status_of = os.stat

        def refused(path, **options):
            if path == "f":
                raise OSError(number, os.strerror(number))
            return status_of(path, **options)

        monkeypatch.setattr(os, "stat", refused)
        assert vfs.read(handle, 9, 0, "f") == DATA[:9]
        assert vfs.write(handle, b"x", 0, "f") == 1
        assert vfs.attributes("f", handle).size == SIZE
        monkeypatch.undo()
        vfs.release(handle)

    def test_damage_of_a_removed_file_is_met_once(self, backing, vfs, frozen, monkeypatch):
        data = bytearray(frozen.read_bytes())
        data[600] ^= 1
        frozen.write_bytes(data)
        reader = vfs.open("f", os.O_RDONLY)
        assert vfs.hide("f", HIDDEN)
        vfs._settle("f", wait=False)
        decode, decoded = LmzReader._decode, []

        def counting(self, indices):
            decoded.append(indices)
            return decode(self, indices)

        monkeypatch.setattr(LmzReader, "_decode", counting)
        with pytest.raises(DamagedError):
            vfs.read(reader, SIZE, 0, HIDDEN)
        assert 1 <= len(decoded) <= 2
        vfs.release(reader)
        vfs.remove_file(HIDDEN)

    @pytest.mark.parametrize(
        "what", ["read", "write", "seek", "attributes", "truncate", "allocate"]
    )
    def test_what_is_refused(self, backing, vfs, frozen, other, what):
        handle = vfs.open("f", os.O_RDWR)
        other.rename("f", "g")
        backing.write("f", b"new")
        do = {
            "read": lambda: vfs.read(handle, 1, 0, "f"),
            "write": lambda: vfs.write(handle, b"x", 0, "f"),
            "seek": lambda: vfs.seek(handle, 0, os.SEEK_HOLE, "f"),
            "attributes": lambda: vfs.attributes("f", handle),
            "truncate": lambda: vfs.truncate("f", 1, handle),
            "allocate": lambda: vfs.allocate(handle, 0, 0, SIZE + 1, "f"),
        }
        with pytest.raises(OSError, match="Stale file handle"):
            do[what]()
        assert vfs.read(handle, 5, 0, "g") == DATA[:5]
        vfs.release(handle)
        assert backing.facts("g").state in (State.FROZEN, State.PATCHED)
