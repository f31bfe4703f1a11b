"""The backing directory: its description, its own names, its models, its inode numbers."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

import pytest
from backing import text

from lmfs.errors import BusyError, DamagedError, FormatError, StoreError, UsageError, VersionError
from lmfs.store.inodes import KeptInodes
from lmfs.store.locate import locate
from lmfs.store.store import Store
from lmfs.store.walk import regular_files, sweep_tree


def description(path):
    return path / ".lmfs" / "store.json"


class TestPausing:
    def test_it_outlives_a_new_configuration(self, backing):
        paused = backing.store.pause()
        backing.store.configure("x", 5)
        told = []
        with Store.open(backing.path) as other:
            with pytest.raises(BusyError):
                other.pause()
            other.wait_while_paused(lambda: told.append(os.close(paused)))
            assert len(told) == 1
            os.close(other.pause())


class TestDescription:
    def test_a_store_keeps_its_id(self, backing):
        assert len(backing.store.id) == 16
        with Store.open(backing.path) as again, Store.create(backing.path) as created:
            assert again.id == created.id == backing.store.id
            assert again.xattr_marks == backing.store.xattr_marks

    def test_two_stores_have_two_ids(self, tmp_path, backing):
        (tmp_path / "c").mkdir()
        with Store.create(tmp_path / "c") as other:
            assert other.id != backing.store.id

    def test_a_directory_is_no_store_until_it_is_made_one(self, tmp_path):
        with pytest.raises(FormatError, match="not a store"):
            Store.open(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_creating_leaves_nothing_else(self, backing):
        assert [p.name for p in (backing.path / ".lmfs").iterdir()] == ["store.json"]

    def test_a_newer_store_is_refused(self, backing):
        path = description(backing.path)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
        with pytest.raises(VersionError, match="expected 1, got 2"):
            Store.open(backing.path)

    @pytest.mark.parametrize(
        "change",
        [{"id": "zz"}, {"id": "00"}, {"id": 5}, {"xattr_marks": 1}, {"version": 0}, {"config": 3}],
    )
    def test_a_wrong_description_is_damaged(self, backing, change):
        path = description(backing.path)
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(DamagedError, match="store description"):
            Store.open(backing.path)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
    def test_no_description_at_all(self, backing, content):
        description(backing.path).write_bytes(content)
        with pytest.raises(DamagedError):
            Store.open(backing.path)

    def test_a_missing_or_wrong_directory(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            Store.create(tmp_path / "nowhere")
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError):
            Store.create(tmp_path / "file")

    def test_a_directory_that_cannot_be_written_to(self, tmp_path):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path], check=True)
        try:
            with pytest.raises(StoreError, match=r"cannot make a store here.*Read-only"):
                Store.create(tmp_path)
        finally:
            subprocess.run(["umount", "-l", tmp_path], check=True)


class TestNames:
    def test_own_names(self, backing):
        store = backing.store
        name = store.new_temporary_name(77)
        assert store.temporary_inode(name) == 77
        assert store.is_private(".lmfs")
        assert store.is_private(".lmfs/models/x")
        assert store.is_private(f"a/b/{name}")
        for ordinary in (".", "a", "a/.lmfs", ".lmfsx", f"x{name}", f"{name}x"):
            assert not store.is_private(ordinary)

    def test_another_stores_temporaries_are_not_ours(self, tmp_path, backing):
        (tmp_path / "c").mkdir()
        with Store.create(tmp_path / "c") as other:
            assert backing.store.temporary_inode(other.new_temporary_name(1)) is None


class TestModels:
    def test_a_model_is_kept_once(self, backing, tmp_path):
        package = tmp_path / "m.lmm"
        package.write_bytes(b"model")
        backing.store.pin_model(b"\1" * 16, package)
        package.write_bytes(b"other")
        backing.store.pin_model(b"\1" * 16, package)
        assert backing.store.pinned_models() == {b"\1" * 16: 5}
        assert (backing.store.models / f"{'01' * 16}.lmm").read_bytes() == b"model"

    def test_a_missing_package_leaves_nothing(self, backing, tmp_path):
        with pytest.raises(FileNotFoundError):
            backing.store.pin_model(b"\1" * 16, tmp_path / "none")
        assert [p.name for p in (backing.path / ".lmfs").iterdir()] == ["store.json"]

    def test_half_a_copy_is_swept(self, backing, tmp_path):
        package = tmp_path / "m.lmm"
        package.write_bytes(b"model")
        backing.store.pin_model(b"\1" * 16, package)
        half = backing.store.models / backing.store.new_temporary_name(0)
        half.write_bytes(b"mo")
        assert [os.path.basename(p) for p in sweep_tree(backing.marks)] == [half.name]
        assert backing.store.pinned_models() == {b"\1" * 16: 5}


class TestInodes:
    def test_a_kept_number_is_not_shown_twice(self, backing):
        inodes = backing.marks.inodes
        assert inodes.shown(5, None) == 5
        inodes.keep(5)
        assert inodes.shown(5, inodes.mark(9, 5)) == 9
        second = inodes.shown(5, None)
        assert second == 5 + (1 << 48)
        inodes.keep(second)
        assert inodes.shown(5, None) == 5 + (2 << 48)

    def test_a_copied_mark_means_nothing(self, backing):
        inodes = backing.marks.inodes
        assert inodes.shown(6, inodes.mark(9, 5)) == 6
        assert inodes.shown(6, b"short") == 6

    def test_a_torn_entry_does_not_shift_the_others(self, backing):
        backing.marks.inodes.keep(5)
        with open(backing.path / ".lmfs" / "inodes", "ab") as journal:
            journal.write(b"\7\7\7")
        backing.marks.inodes.keep(6)
        fresh = KeptInodes(backing.store.root_fd)
        assert [fresh.shown(number, None) >> 48 for number in (5, 6, 7)] == [1, 1, 0]
        fresh.close()

    def test_another_process_learns_of_it(self, backing):
        other = KeptInodes(backing.store.root_fd)
        assert other.shown(5, None) == 5
        backing.marks.inodes.keep(5)
        assert other.shown(5, None) != 5
        other.close()


class TestWalk:
    def test_what_is_walked(self, backing, tmp_path):
        for name in ("b", "a/x", "a/y", "c/z"):
            backing.write(name, b"1")
        backing.write(backing.store.new_temporary_name(3), b"")
        os.symlink("b", backing.path / "link")
        os.mkfifo(backing.path / "fifo")
        Store.create(backing.path / "c").close()
        assert [name for name, _ in regular_files(backing.store)] == ["b", "a/x", "a/y"]
        assert [name for name, _ in regular_files(backing.store, "a")] == ["a/x", "a/y"]
        assert [name for name, _ in regular_files(backing.store, "a/y")] == ["a/y"]

    def test_a_path_that_is_not_there(self, backing):
        with pytest.raises(FileNotFoundError):
            list(regular_files(backing.store, "nothing"))


class TestLocate:
    def test_up_the_tree(self, backing):
        backing.write("a/b/file", b"1")
        for path, inside in (("", "."), ("a/b", "a/b"), ("a/b/file", "a/b/file")):
            place = locate(str(backing.path / path))
            with place.store:
                assert (place.store.id, place.path) == (backing.store.id, inside)
                assert place.mountpoint is None

    def test_a_symlink_is_itself(self, backing):
        os.symlink("/etc", backing.path / "link")
        place = locate(str(backing.path / "link"))
        with place.store:
            assert place.path == "link"

    def test_outside(self, tmp_path):
        with pytest.raises(FormatError, match="not in a store"):
            locate(str(tmp_path))
        with pytest.raises(FileNotFoundError):
            locate(str(tmp_path / "nothing"), create=True)

    def test_create(self, tmp_path):
        (tmp_path / "file").write_bytes(text(10))
        place = locate(str(tmp_path / "file"), create=True)
        with place.store:
            assert place.path == "file"
        assert description(tmp_path).exists()

    def test_the_stores_own(self, backing):
        with pytest.raises(UsageError, match="store's own"):
            locate(str(description(backing.path)))


HOARDED = """
import ctypes, threading
from lmfs.store.system import return_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
kept = []
def work():
    taken = []
    for _ in range(250):  # what is kept lies behind what is freed: no heap can shrink
        taken.append(libc.malloc(60_000))
        ctypes.memset(taken[-1], 1, 60_000)
        kept.append(libc.malloc(100))
    for address in taken:
        libc.free(ctypes.c_void_p(address))
threads = [threading.Thread(target=work) for _ in range(4)]
before = resident()
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
hoarded = resident() - before
return_memory()
print(hoarded, resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_memory_of_threads_goes_back_to_the_system():
    code = [sys.executable, "-c", HOARDED]
    said = subprocess.run(code, check=True, capture_output=True, text=True).stdout
    hoarded, left = map(int, said.split())
    assert hoarded > 10
    assert left < hoarded / 2
