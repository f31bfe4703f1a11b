"""Real mounts: what a program sees, and what happens when something goes wrong."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import pathlib
import random
import shutil
import socket
import sqlite3
import stat
import struct
import subprocess
import tempfile
import threading
import time

import pytest
from backing import CHUNK, Backing, mount, run_lmfs, text, unmount
from lmfs_tools.torture import tail

from lmfs.store.control import Control, mount_of
from lmfs.store.freeze import thaw
from lmfs.store.marks import State

DATA = text(40 * CHUNK + 5)
NOBODY = 65534


@pytest.fixture(scope="module")
def mounted():
    """A mounted store, as (backing, mountpoint), where other users may come."""
    base = pathlib.Path(tempfile.mkdtemp(prefix="lmfs-test-")).resolve()
    os.chmod(base, 0o755)
    backing, point = Backing(base / "b"), base / "m"
    point.mkdir()
    os.chmod(backing.path, 0o755)
    mount(backing.path, point, "-o", "allow_other")
    try:
        yield backing, point
    finally:
        unmount(point)
        backing.close()
        shutil.rmtree(base)


@pytest.fixture
def place(mounted, request):
    """A directory of a test's own: (backing, path in the mount, path in the store)."""
    backing, point = mounted
    name = request.node.name.replace("/", "-")
    (point / name).mkdir()
    return backing, point / name, name


@contextlib.contextmanager
def watched(directory):
    """What names the directory loses and gains by renames and removals meanwhile, in order."""
    kinds = {0x40: "moved away", 0x80: "moved here", 0x200: "removed"}
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(fd, bytes(directory), sum(kinds)) >= 0
    events = []
    try:
        yield events
        with contextlib.suppress(BlockingIOError):
            while data := os.read(fd, 1 << 16):
                while data:
                    _, mask, _, size = struct.unpack_from("iIII", data)
                    events.append(f"{kinds[mask]} {data[16 : 16 + size].decode().strip(chr(0))}")
                    data = data[16 + size :]
    finally:
        os.close(fd)


class TestLinks:
    """The kernel caches each name of a file for itself, and believes what stat said for a second"""

    def test_what_one_name_is_given_the_other_shows_at_once(self, place):
        _, path, _ = place
        (path / "a").write_bytes(b"a" * 9000)
        os.link(path / "a", path / "b")
        (path / "b").stat()
        for number in range(10):
            assert len((path / "b").read_bytes()) == 9000 + 4 * number
            (path / "b").stat()
            with open(path / "a", "r+b") as file:
                file.write(b"%d" % number)
            assert (path / "b").read_bytes()[:2] == b"%da" % number
            with open(path / "b", "rb", buffering=0) as reader, open(path / "a", "ab") as file:
                file.write(b"more")
                file.flush()
                assert os.pread(reader.fileno(), 99, 9000 + 4 * number) == b"more"

    def test_a_name_that_was_alone_again(self, place):
        _, path, _ = place
        (path / "a").write_bytes(b"a" * 9000)
        (path / "a").read_bytes()
        os.link(path / "a", path / "b")
        (path / "a").stat()
        with open(path / "b", "r+b") as file:
            file.write(b"b")
        (path / "b").unlink()
        assert (path / "a").read_bytes()[:2] == b"ba"

    def test_who_had_it_open_before_it_had_another_name(self, place):
        _, path, _ = place
        (path / "a").write_bytes(b"a" * 9000)
        with open(path / "a", "rb", buffering=0) as reader:
            reader.read()
            os.link(path / "a", path / "b")
            for number in range(20):
                with open(path / "b", "r+b", buffering=0) as file:
                    file.write(b"%02d" % number)
                    assert os.pread(reader.fileno(), 3, 0) == b"%02da" % number
                    file.truncate(9000 - number)
                    assert len(os.pread(reader.fileno(), 9999, 0)) == 9000 - number
                with open(path / "b", "ab", buffering=0) as file:
                    file.write(b"b" * (2 * number))
                    expected = b"%02d" % number + b"a" * (8998 - number) + b"b" * (2 * number)
                    seen = os.pread(reader.fileno(), 9999, 0)
                    assert seen[: 9000 - number] == expected[: 9000 - number]
                    assert seen == expected
                    file.truncate(8000)
                    file.write(b"a" * 1000)


class TestPages:
    """What the kernel keeps of a file, and for how long; lmfs.pages says why."""

    @pytest.fixture
    def reads(self, mounted):
        """How often the mount was asked for bytes."""
        found = mount_of(str(mounted[1]))

        def ask():
            with Control(found) as control:
                return control.ask("stats")["calls"].get("read", 0)

        return ask

    @pytest.mark.parametrize("frozen", [False, True])
    def test_what_is_written_here_costs_no_pages(self, place, reads, frozen):
        backing, path, name = place
        (backing.write_frozen if frozen else backing.write)(f"{name}/f", DATA)
        assert (path / "f").read_bytes() == DATA
        expected = bytearray(DATA)
        before = reads()
        for at in (0, 5000, len(DATA) - 3, len(DATA)):
            with open(path / "f", "r+b", buffering=0) as file:
                file.seek(at)
                file.write(b"12345")
            expected[at : at + 5] = b"12345"
            os.utime(path / "f", ns=(at, at))
            (path / "f").stat()
            assert (path / "f").read_bytes() == bytes(expected)
        with open(path / "f", "ab") as file:
            file.write(b"end")
        assert (path / "f").read_bytes() == bytes(expected) + b"end"
        os.truncate(path / "f", 70000)
        assert (path / "f").read_bytes() == bytes(expected)[:70000]
        assert reads() - before <= 2, "a read at the end of the file asks where that is"

    def test_freezing_costs_no_pages(self, place, reads):
        backing, path, name = place
        (path / "f").write_bytes(DATA)
        assert (path / "f").read_bytes() == DATA
        before = reads()
        assert backing.freeze(f"{name}/f").reason is None
        assert (path / "f").read_bytes() == DATA
        assert reads() == before

    def test_pages_go_with_their_names(self, place, reads):
        _, path, _ = place
        (path / "d").mkdir()
        for name, data in (("d/f", DATA), ("g", DATA[::-1])):
            (path / name).write_bytes(data)
            assert (path / name).read_bytes() == data
        before = reads()
        os.rename(path / "d", path / "e")
        assert (path / "e/f").read_bytes() == DATA
        os.rename(path / "e/f", path / "g")
        assert (path / "g").read_bytes() == DATA
        assert reads() == before

    def test_what_is_written_below_shows_to_who_has_it_open(self, place):
        backing, path, name = place
        below = backing.write(f"{name}/f", DATA)
        with open(path / "f", "rb", buffering=0) as reader:
            assert reader.read() == DATA
            for number in range(3):
                with open(below, "r+b") as file:
                    file.write(b"%d below" % number)
                deadline = time.monotonic() + 10
                while os.pread(reader.fileno(), 7, 0) != b"%d below" % number:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            with open(below, "ab") as file:
                file.write(b"more")
            while len(seen := os.pread(reader.fileno(), 99, len(DATA) - 5)) == 5:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert seen == DATA[-5:] + b"more"

    def test_a_file_put_below_in_place_of_another_of_its_time_and_size(self, place):
        backing, path, name = place
        for number, data in enumerate((DATA, DATA[::-1])):
            os.utime(backing.write(f"{name}/{number}", data), ns=(5, 5))
        assert [(path / f).read_bytes() for f in "01"] == [DATA, DATA[::-1]]
        os.rename(backing.path / name / "1", backing.path / name / "0")
        assert (path / "0").read_bytes() == DATA[::-1]

    @pytest.mark.parametrize("past", [0, 1, 4])
    def test_a_file_that_others_append_to_ends_where_its_bytes_do(self, place, past):
        """past: so many of them append to it in the backing directory"""
        backing, path, name = place
        below = backing.path / name / "log"
        reads, wrong = tail.run(path / "log", 4, readers=3, writers=4, below=below, past=past)
        assert not wrong
        assert reads > 100


class TestReading:
    def test_freeze_and_read(self, place):
        backing, path, name = place
        (path / "f").write_bytes(DATA)
        before = (path / "f").stat()
        assert backing.freeze(f"{name}/f").reason is None
        after = (path / "f").stat()
        for field in ("st_ino", "st_size", "st_mtime_ns", "st_mode", "st_uid", "st_gid"):
            assert getattr(after, field) == getattr(before, field), field
        assert (path / "f").read_bytes() == DATA
        assert os.getxattr(path / "f", "user.lmfs.state") == b"frozen"

    def test_random_reads(self, place):
        backing, path, name = place
        backing.write_frozen(f"{name}/f", DATA)
        chance = random.Random(5)
        with open(path / "f", "rb", buffering=0) as file:
            for _ in range(50):
                offset, size = chance.randrange(len(DATA)), chance.randrange(3 * CHUNK)
                assert os.pread(file.fileno(), size, offset) == DATA[offset : offset + size]

    def test_many_readers(self, place):
        backing, path, name = place
        backing.write_frozen(f"{name}/f", DATA)
        wrong = []

        def read():
            if (path / "f").read_bytes() != DATA:
                wrong.append(1)

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_mmap(self, place):
        backing, path, name = place
        backing.write_frozen(f"{name}/f", DATA)
        with open(path / "f", "rb") as file, mmap.mmap(file.fileno(), 0, prot=1) as mapped:
            assert mapped[CHUNK * 7 : CHUNK * 7 + 9] == DATA[CHUNK * 7 : CHUNK * 7 + 9]
            assert mapped.find(DATA[-50:]) == DATA.find(DATA[-50:])

    def test_frozen_files_have_no_holes(self, place):
        backing, path, name = place
        backing.write_frozen(f"{name}/f", DATA)
        with open(path / "f", "rb", buffering=0) as file:
            for offset in (0, CHUNK + 1, len(DATA) - 1):
                assert os.lseek(file.fileno(), offset, os.SEEK_DATA) == offset
                assert os.lseek(file.fileno(), offset, os.SEEK_HOLE) == len(DATA)
            with pytest.raises(OSError, match="No such device or address"):
                os.lseek(file.fileno(), len(DATA), os.SEEK_DATA)

    def test_direct_reads_of_frozen_files(self, place):
        backing, path, name = place
        backing.write_frozen(f"{name}/f", DATA)
        fd = os.open(path / "f", os.O_RDONLY | os.O_DIRECT)
        with open(fd, "rb", buffering=0), mmap.mmap(-1, 4 * CHUNK) as aligned:
            for offset in (0, 8 * CHUNK):
                assert os.preadv(fd, [aligned], offset) == 4 * CHUNK
                assert aligned[:] == DATA[offset : offset + 4 * CHUNK]

    def test_a_damaged_chunk_is_eio_and_the_rest_is_read(self, place):
        backing, path, name = place
        stored_path = backing.write_frozen(f"{name}/f", DATA)
        stored = bytearray(stored_path.read_bytes())
        stored[len(stored) // 2] ^= 1
        stored_path.write_bytes(stored)
        failed = []
        with open(path / "f", "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for offset in range(0, len(DATA), CHUNK):
                try:
                    got = os.pread(file.fileno(), CHUNK, offset)
                    assert got == DATA[offset : offset + CHUNK]
                except OSError as error:
                    failed.append(error.errno)
        assert failed == [errno.EIO]

    def test_a_second_read_decodes_nothing(self, place):
        """The kernel has the bytes: what lies below may be spoilt meanwhile."""
        backing, path, name = place
        stored_path = backing.write_frozen(f"{name}/f", DATA)
        assert (path / "f").read_bytes() == DATA
        before = stored_path.stat()
        stored = bytearray(stored_path.read_bytes())
        stored[len(stored) // 2] ^= 1
        stored_path.write_bytes(stored)
        os.utime(stored_path, ns=(before.st_atime_ns, before.st_mtime_ns))
        time.sleep(1.1)  # the kernel asks for attributes again
        assert (path / "f").read_bytes() == DATA
        with open(path / "f", "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with pytest.raises(OSError, match="Input/output error"):
            (path / "f").read_bytes()

    def test_what_changed_below_is_read_anew(self, place):
        backing, path, name = place
        (backing.path / name / "f").write_bytes(DATA)
        assert (path / "f").read_bytes() == DATA
        (backing.path / name / "f").write_bytes(DATA[::-1])
        time.sleep(1.1)
        assert (path / "f").read_bytes() == DATA[::-1]

    def test_a_cut_off_file_is_eio_not_short(self, place):
        backing, path, name = place
        stored_path = backing.write_frozen(f"{name}/f", DATA)
        os.truncate(stored_path, stored_path.stat().st_size - 1)
        assert (path / "f").stat().st_size == len(DATA)
        with pytest.raises(OSError, match="Input/output error"):
            (path / "f").read_bytes()

    def test_own_names_are_hidden(self, place):
        backing, path, _ = place
        point = path.parent
        assert ".lmfs" not in os.listdir(point)
        assert not (point / ".lmfs").exists()
        with pytest.raises(PermissionError):
            (point / ".lmfs").mkdir()
        temporary = backing.store.new_temporary_name(1)
        with pytest.raises(PermissionError):
            (path / temporary).touch()


class TestWriting:
    def test_plain_files(self, place):
        _, path, _ = place
        (path / "f").write_bytes(DATA)
        with open(path / "f", "r+b") as file:
            file.seek(100)
            file.write(b"middle")
        with open(path / "f", "ab") as file:
            file.write(b"end")
        os.truncate(path / "f", len(DATA) + 1)
        assert (path / "f").read_bytes() == DATA[:100] + b"middle" + DATA[106:] + b"e"

    def test_writing_to_frozen_files(self, place):
        backing, path, name = place
        for way in ("append", "overwrite", "truncate", "replace"):
            backing.write_frozen(f"{name}/{way}", DATA)
        inode = (path / "append").stat().st_ino
        with open(path / "append", "ab") as file:
            file.write(b"end")
        with open(path / "overwrite", "r+b") as file:
            file.seek(5)
            file.write(b"NEW")
        os.truncate(path / "truncate", 7)
        (path / "replace").write_bytes(b"short")
        assert (path / "append").read_bytes() == DATA + b"end"
        assert (path / "overwrite").read_bytes() == DATA[:5] + b"NEW" + DATA[8:]
        assert (path / "truncate").read_bytes() == DATA[:7]
        assert (path / "replace").read_bytes() == b"short"
        assert (path / "append").stat().st_ino == inode
        for way, kind in (("append", b"patched"), ("overwrite", b"patched"), ("replace", b"hot")):
            assert os.getxattr(path / way, "user.lmfs.state") == kind
        assert run_lmfs("thaw", path / "append").returncode == 0
        assert os.getxattr(path / "append", "user.lmfs.state") == b"hot"
        assert (backing.path / name / "append").read_bytes() == DATA + b"end"

    def test_a_reader_sees_what_is_written_to_a_frozen_file(self, place):
        backing, path, name = place
        backing.write_frozen(f"{name}/f", DATA)
        with open(path / "f", "rb", buffering=0) as reader:
            assert reader.read(3) == DATA[:3]
            with open(path / "f", "r+b", buffering=0) as writer:
                writer.write(b"NEW")
                assert os.pread(reader.fileno(), 6, 0) == b"NEW" + DATA[3:6]

    def test_mmap_writes(self, place):
        _, path, _ = place
        (path / "f").write_bytes(DATA)
        with open(path / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[10:13] = b"NEW"
            mapped.flush()
        assert (path / "f").read_bytes() == DATA[:10] + b"NEW" + DATA[13:]

    def test_a_file_replaced_while_it_is_open_is_never_missing(self, place):
        """Neither for others nor in the store, where a crash would leave it missing."""
        backing, path, name = place
        (path / "f").write_bytes(b"0")
        (path / "linked").touch()
        os.link(path / "linked", path / "h")
        (path / "h").stat()  # from now on the kernel asks at every stat
        (path / "linked").unlink()
        (path / "h").unlink()
        stop, missing = threading.Event(), []

        def look():
            while not stop.is_set():
                try:
                    (path / "f").stat()
                except OSError as error:
                    missing.append(error)

        thread = threading.Thread(target=look)
        with watched(backing.path / name) as events:
            thread.start()
            try:
                for i in range(100):
                    with open(path / "f", "rb", buffering=0) as reader:
                        (path / "g").write_bytes(b"%d" % (i + 1))
                        os.rename(path / "g", path / "f")
                        assert reader.read() == b"%d" % i
                        assert (path / "f").read_bytes() == b"%d" % (i + 1)
                        assert os.fstat(reader.fileno()).st_nlink == 0
            finally:
                stop.set()
                thread.join()
        assert missing == []
        assert events == ["moved away g", "moved here f"] * 100
        assert os.listdir(backing.path / name) == ["f"]

    def test_names_that_libfuse_gives_are_a_users_as_well(self, place):
        _, path, _ = place
        for name in (".fuse_hidden0000001d00000003", ".fuse_hidden0000001d7fffffff"):
            (path / "f").write_bytes(b"1")
            (path / "f").rename(path / name)
            assert (path / name).read_bytes() == b"1"
            with open(path / name, "ab") as file:
                file.write(b"2")
            time.sleep(0.1)
            assert (path / name).read_bytes() == b"12"
        with open(path / name, "rb"):
            (path / name).rename(path / (name + "0"))
            time.sleep(0.1)
            assert (path / (name + "0")).read_bytes() == b"12"

    def test_unlinked_files_live_on(self, place):
        backing, path, name = place
        backing.write_frozen(f"{name}/f", DATA)
        with open(path / "f", "rb", buffering=0) as file:
            os.unlink(path / "f")
            assert not (path / "f").exists()
            assert file.read(10) == DATA[:10]
            assert os.fstat(file.fileno()).st_size == len(DATA)

    def test_metadata_does_not_thaw(self, place):
        backing, path, name = place
        backing.write_frozen(f"{name}/f", DATA)
        os.chmod(path / "f", 0o640)
        os.chown(path / "f", 12, 34)
        os.utime(path / "f", ns=(1_000_000_007, 2_000_000_009))
        os.setxattr(path / "f", "user.note", b"x")
        os.rename(path / "f", path / "g")
        found = (path / "g").stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, 12, 34)
        assert found.st_atime_ns == 1_000_000_007
        assert found.st_mtime_ns == 2_000_000_009
        assert os.getxattr(path / "g", "user.note") == b"x"
        assert os.listxattr(path / "g") == ["user.note"]
        assert backing.facts(f"{name}/g").state is State.FROZEN
        assert (path / "g").read_bytes() == DATA

    def test_times_that_are_now_or_left_alone(self, place):
        _, path, _ = place
        (path / "f").touch()
        os.utime(path / "f", ns=(5_000_000_000, 6_000_000_000))
        subprocess.run(["touch", "-a", path / "f"], check=True)
        assert (path / "f").stat().st_mtime_ns == 6_000_000_000
        assert abs((path / "f").stat().st_atime - time.time()) < 60
        os.utime(path / "f")
        assert abs((path / "f").stat().st_mtime - time.time()) < 60

    def test_a_hard_link_thaws(self, place):
        backing, path, name = place
        backing.write_frozen(f"{name}/f", DATA)
        os.link(path / "f", path / "g")
        assert (path / "f").stat().st_ino == (path / "g").stat().st_ino
        assert (path / "g").stat().st_nlink == 2
        assert (path / "g").read_bytes() == DATA
        assert "hard links" in backing.freeze(f"{name}/f").reason

    @pytest.mark.parametrize("flag", [1, 2, 4])
    def test_rename_flags_are_honoured_or_refused(self, place, flag):
        _, path, _ = place
        (path / "a").write_bytes(b"a")
        (path / "b").write_bytes(b"b")
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.renameat2(-100, bytes(path / "a"), -100, bytes(path / "b"), flag)
        number = ctypes.get_errno() if failed else 0
        assert number == {1: errno.EEXIST, 2: 0, 4: errno.EINVAL}[flag]
        expected = (b"b", b"a") if flag == 2 else (b"a", b"b")
        assert ((path / "a").read_bytes(), (path / "b").read_bytes()) == expected

    def test_a_raw_copy_of_a_frozen_file_stays_what_it_is(self, place):
        backing, path, name = place
        raw = backing.write_frozen(f"{name}/f", DATA).read_bytes()
        (path / "copy").write_bytes(raw)
        assert (path / "copy").read_bytes() == raw
        with open(path / "copy", "ab") as file:
            file.write(b"more")
        assert (path / "copy").read_bytes() == raw + b"more"

    def test_special_files(self, place):
        _, path, _ = place
        os.mkfifo(path / "p")
        os.symlink("target", path / "l")
        os.mknod(path / "d", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        assert stat.S_ISFIFO((path / "p").stat().st_mode)
        assert os.readlink(path / "l") == "target"
        assert (path / "d").stat().st_rdev == os.makedev(1, 3)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path / "s"))
            assert stat.S_ISSOCK((path / "s").stat().st_mode)

    def test_names_that_are_not_utf8(self, place):
        _, path, _ = place
        name = bytes(path) + b"/\xff\xfe \xe4"
        with open(name, "wb") as file:
            file.write(b"1")
        assert os.listdir(bytes(path)) == [b"\xff\xfe \xe4"]
        with open(name, "rb") as file:
            assert file.read() == b"1"

    def test_other_users(self, place):
        _, path, _ = place
        os.chmod(path, 0o777)
        (path / "mine").write_bytes(b"secret")
        os.chmod(path / "mine", 0o600)
        script = (
            f"umask 027; echo x > {path}/theirs; mkdir {path}/dir; ln -s x {path}/link;"
            f" cat {path}/mine; chmod 777 {path}/mine"
        )
        done = subprocess.run(
            ["sh", "-c", script], user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True
        )
        assert b"secret" not in done.stdout
        assert done.stderr.count(b"ermission denied") + done.stderr.count(b"not permitted") == 2
        for name, mode in (("theirs", 0o640), ("dir", 0o750)):
            found = (path / name).stat()
            assert (found.st_uid, found.st_gid) == (NOBODY, NOBODY)
            assert stat.S_IMODE(found.st_mode) == mode
        assert (path / "link").lstat().st_uid == NOBODY
        assert stat.S_IMODE((path / "mine").stat().st_mode) == 0o600

    def test_writing_takes_set_user_id_away(self, place):
        _, path, _ = place
        os.chmod(path, 0o777)
        (path / "f").write_bytes(b"x")
        os.chmod(path / "f", 0o4777)
        done = subprocess.run(["sh", "-c", f"echo y >> {path}/f"], user=NOBODY, group=NOBODY)
        assert done.returncode == 0
        assert not (path / "f").stat().st_mode & stat.S_ISUID

    def test_acls(self, place):
        _, path, _ = place
        acl = bytes.fromhex(
            "02000000 01000600ffffffff 02000400feff0000 04000000ffffffff 10000400ffffffff"
            " 20000000ffffffff"
        )
        (path / "f").write_bytes(b"secret")
        os.chmod(path, 0o755)
        os.chmod(path / "f", 0o600)
        command = ["cat", path / "f"]
        options = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "capture_output": True}
        assert subprocess.run(command, **options, check=False).returncode != 0
        os.setxattr(path / "f", "system.posix_acl_access", acl)
        assert subprocess.run(command, **options, check=False).stdout == b"secret"

    def test_sqlite(self, place):
        backing, path, name = place
        with sqlite3.connect(path / "db") as database:
            database.execute("create table t (a integer primary key, b text)")
            database.executemany(
                "insert into t (b) values (?)", [(text(50, i).decode(),) for i in range(500)]
            )
        database.close()
        assert backing.freeze(f"{name}/db").reason is None
        with sqlite3.connect(path / "db") as database:
            assert database.execute("select count(*) from t").fetchone() == (500,)
            database.execute("update t set b = 'x' where a % 2")
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        database.close()

    def test_free_space(self, place):
        backing, path, _ = place
        ours, theirs = os.statvfs(path), os.statvfs(backing.path)
        assert (ours.f_blocks, ours.f_bsize) == (theirs.f_blocks, theirs.f_bsize)


def test_random_operations_against_a_model(place):
    """Reads, writes, truncations, freezing and thawing: the file is always what it must be."""
    backing, path, name = place
    file, chance = path / "f", random.Random(11)
    model = bytearray(DATA)
    file.write_bytes(model)
    frozen = 0
    for step in range(120):
        action = chance.choice(
            ["read", "read", "write", "append", "truncate", "freeze", "freeze", "thaw"]
        )
        if action == "read":
            offset = chance.randrange(len(model) + 1)
            with open(file, "rb") as opened:
                opened.seek(offset)
                assert opened.read(3 * CHUNK) == model[offset : offset + 3 * CHUNK], step
        elif action == "write":
            offset, data = chance.randrange(len(model) + 1), text(chance.randrange(1, 9000), step)
            with open(file, "r+b") as opened:
                opened.seek(offset)
                opened.write(data)
            model[offset : offset + len(data)] = data
        elif action == "append":
            data = text(chance.randrange(1, 9000), step)
            with open(file, "ab") as opened:
                opened.write(data)
            model += data
        elif action == "truncate":
            size = chance.randrange(len(model) * 3 // 4, len(model) + 1)
            os.truncate(file, size)
            del model[size:]
        elif action == "freeze":
            frozen += backing.freeze(f"{name}/f").reason is None
        else:
            thaw(backing.marks, f"{name}/f")
        assert file.stat().st_size == len(model), step
    assert file.read_bytes() == model
    assert frozen > 10


def test_hammering_while_it_is_frozen_and_thawed(place):
    """Appenders through the mount, freezers beside it: no append is ever lost."""
    backing, path, name = place
    start = DATA[: 3 * CHUNK]
    (path / "f").write_bytes(start)
    stop = threading.Event()
    outcomes = []

    def freezer():
        while not stop.is_set():
            outcomes.append(backing.freeze(f"{name}/f").reason)
            time.sleep(0.005)

    thread = threading.Thread(target=freezer)
    thread.start()
    try:
        for i in range(60):
            with open(path / "f", "ab") as file:
                file.write(b"line %d\n" % i)
            time.sleep(0.02 * (i % 5))
    finally:
        stop.set()
        thread.join()
    assert (path / "f").read_bytes() == start + b"".join(b"line %d\n" % i for i in range(60))
    assert None in outcomes


def test_fusermount_is_here():
    """The tests above would prove little without it."""
    assert shutil.which("fusermount3")
