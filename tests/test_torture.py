"""A short part of what lmfs_tools.torture does; and that it finds what is wrong.

Whole runs, and their figures: tools/torture/README.md.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess

import pytest
from lmfs_tools.torture import crash, fsx, load, power, programs
from lmfs_tools.torture.mounted import Difference, opened

TREE = pathlib.Path(json.__file__).parent
# Of every scenario's kills and errors; a prime, so that the runs are of all kinds.
EVERY = 47


@pytest.fixture
def folder(tmp_path):
    """Where a store and its mount may lie."""
    return tmp_path.resolve() / "torture"


class TestOperations:
    def test_ten_thousand_at_random(self, folder):
        done = fsx.run(folder, 10_000, processes=3, seed=20)
        assert done["frozen True"] > 100, "nearly nothing was frozen: this tests little"
        assert done["thaw"] > 100

    @pytest.fixture
    def worker(self, tmp_path):
        """One without a mount, and so without freezing, after some operations."""
        worker = fsx.Worker(0, tmp_path, tmp_path, seed=1)
        worker.operations |= {worker.freeze: 0, worker.thaw: 0}
        with opened(tmp_path) as marks:
            for _ in range(300):
                worker.step(marks)
            worker.close_all()
            worker.compare_all()
            yield worker, max(tmp_path.rglob("d*/?"), key=lambda path: path.stat().st_size)

    def test_a_changed_byte_is_found(self, worker):
        worker, path = worker
        data, status = bytearray(path.read_bytes()), path.stat()
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(Difference, match=f"1 of {len(data)} bytes read from 0 differ"):
            worker.compare_all()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda path: os.truncate(path, 1), "size: expected"),
            (lambda path: os.chmod(path, 0o604), "mode: expected"),
            (lambda path: os.utime(path, ns=(7, 7)), "mtime"),
            (lambda path: os.rename(path, path.with_name("x")), "names in"),
        ],
    )
    def test_what_else_changed_is_found(self, worker, change, message):
        worker, path = worker
        change(path)
        with pytest.raises(Difference, match=message):
            worker.compare_all()


def _in_place(store, marks):
    with open(os.open("d/f", os.O_WRONLY | os.O_TRUNC, dir_fd=store.root_fd), "wb") as file:
        file.write(b"new")
    return True


def _not_synced(store, marks):
    root = store.root_fd
    with open(os.open("d/new", os.O_WRONLY | os.O_CREAT, dir_fd=root), "wb") as file:
        file.write(b"new")
    os.rename("d/new", "d/f", src_dir_fd=root, dst_dir_fd=root)
    return True


CARELESS = dataclasses.replace(
    crash.SCENARIOS["freeze"],
    name="careless",
    trees=[crash.OLD, crash.OLD | {"d/f": b"new"}],
    durable=True,
)


class TestKillsAndErrors:
    @pytest.mark.parametrize("name", crash.SCENARIOS)
    def test_old_or_new(self, folder, name):
        counts, wrong = crash.sweep(crash.SCENARIOS[name], folder, every=EVERY)
        assert wrong == []
        assert counts["runs"] == -(-5 * counts["points"] // EVERY)

    def test_what_is_not_atomic_is_found(self, folder):
        careless = dataclasses.replace(CARELESS, act=_in_place)
        _, wrong = crash.sweep(careless, folder, kinds=[None])
        assert any("kill at write 1: " in text and "'d/f': 0" in text for text in wrong), wrong

    def test_what_is_left_over_is_found(self, folder):
        def act(store, marks):
            os.close(os.open(".lmfs/junk", os.O_CREAT | os.O_WRONLY, dir_fd=store.root_fd))
            return True

        careless = dataclasses.replace(CARELESS, act=act, trees=[crash.OLD])
        with pytest.raises(Difference, match="nothing that lmfs made"):
            crash.sweep(careless, folder)

    @pytest.mark.parametrize("name", ["freeze", "freeze-model", "thaw"])
    def test_nothing_is_renamed_before_it_is_on_the_disk(self, folder, name):
        """write, fsync, rename, fsync of the directory, unlink: in this order."""
        calls = crash.play(crash.SCENARIOS[name], folder, None).calls
        lines = [re.sub(r"^\d+ +", "", line) for line in calls]

        def places(pattern):
            return [i for i, line in enumerate(lines) if re.match(pattern, line)]

        temporary = r'[^"]*/d/\.lmfs-[^">]*\.tmp>'
        (rename,) = places(r'renameat2\(.*"\.lmfs-.*RENAME_EXCHANGE\) = 0')
        (sync,) = places(rf"fsync\(\d+<{temporary}")
        (directory,) = places(r"fsync\(\d+<[^>]*/d>\)")
        (unlink,) = places(r'unlinkat\(.*"\.lmfs-')
        last_write = places(rf"p?write(64|v)?\(\d+<{temporary}")[-1]
        assert last_write < sync < rename < directory < unlink
        if name.startswith("freeze"):  # else the number was kept before
            (journal_write,) = places(r"write\(\d+<[^>]*/\.lmfs/inodes>")
            (journal_sync,) = places(r"fsync\(\d+<[^>]*/\.lmfs/inodes>")
            assert journal_write < journal_sync < rename
        # what is read back is what the disk has
        (drop,) = places(rf"fadvise64\(\d+<{temporary}.*DONTNEED")
        assert sync < drop < places(rf"p?read(64)?\(\d+<{temporary}")[-1] < rename
        if name == "freeze-model":
            model = r"[^>]*/models/\.lmfs-[^>]*\.tmp>"
            assert places(rf"write\(\d+<{model}")[-1] < places(rf"fsync\(\d+<{model}")[0] < rename
            assert places(r"fsync\(\d+<[^>]*/models>\)")[0] < rename


def has_loop_devices() -> bool:
    done = subprocess.run(["losetup", "--find"], capture_output=True, check=False)
    return os.geteuid() == 0 and done.returncode == 0


@pytest.mark.skipif(not has_loop_devices(), reason="needs root and a loop device")
class TestPowerLoss:
    @pytest.mark.parametrize("name", ["freeze", "thaw", "append"])
    def test_old_or_new(self, folder, name):
        counts, wrong = power.sweep(crash.SCENARIOS[name], folder, every=29)
        assert wrong == []
        assert counts["runs"] >= 3

    def test_what_is_not_synced_is_found(self, folder):
        careless = dataclasses.replace(CARELESS, act=_not_synced)
        folder.mkdir()
        with pytest.raises(Difference, match="wrong content"):
            power.cut(careless, folder, None)


class TestPrograms:
    @pytest.mark.parametrize("name", programs.PROGRAMS)
    def test_they_find_nothing_wrong(self, folder, name):
        print(programs.run(name, folder, tree=TREE))


class TestLoad:
    def test_many_readers_and_writers(self, folder):
        result = load.run(folder, 5)
        assert result["read"]["calls"] > 100
        assert result["write"]["calls"] > 10

    def test_a_wrong_byte_is_found(self, tmp_path):
        for number in range(load.FILES):
            (tmp_path / f"r{number}").write_bytes(load.content(number)[::-1])
        client = load.Client(tmp_path, until=float("inf"))
        client.guarded(client.read, 0)
        assert "wrong bytes" in client.wrong[0]
