"""Stores whose files are coded with a model, through a real mount: the whole path at once."""

from __future__ import annotations

import errno
import os
import random
import shutil

import pytest
from backing import Backing, mount, run_lmfs, unmount

from lmfs import vfs
from lmfs.codecs.choose import Chooser
from lmfs.errors import UnknownModelError
from lmfs.models import registry
from lmfs.store.account import Account
from lmfs.store.content import open_frozen
from lmfs.store.freeze import Action, freeze, thaw

CHUNK = 2048


@pytest.fixture(scope="module")
def text(data) -> bytes:
    return (data / "alice29.txt").read_bytes()[3000 : 3000 + 12 * CHUNK + 77]


@pytest.fixture
def backing(tmp_path, tiny, text):
    """A store with one file, frozen with the tiny model, which is pinned and nowhere else."""
    backing = Backing(tmp_path / "b")
    backing.write("alice", text)
    chooser = Chooser(tiny, 8, primer_bytes=CHUNK)
    outcome = freeze(backing.marks, "alice", chooser, model=tiny, chunk_size=CHUNK)
    assert outcome.action is Action.FROZEN, outcome
    yield backing
    backing.close()


@pytest.fixture
def point(tmp_path, backing):
    point = tmp_path / "m"
    point.mkdir()
    mount(backing.path, point)
    yield point
    unmount(point)


def statistics(backing: Backing):
    fd = os.open(backing.path / "alice", os.O_RDONLY)
    try:
        with open_frozen(fd, backing.marks) as reader:
            return reader.statistics()
    finally:
        os.close(fd)


def test_the_model_wins_and_is_pinned(backing, tiny, text):
    codecs = statistics(backing)
    assert codecs["lm"].chunks >= 10
    assert (backing.path / "alice").stat().st_size < 0.6 * len(text)
    assert registry.find(tiny.id, [backing.store.models]).path.parent == backing.store.models
    with pytest.raises(UnknownModelError):
        registry.find(tiny.id)


def test_a_mount_begins_with_the_engine_of_its_only_model(backing, tiny, monkeypatch):
    found = []
    monkeypatch.setattr(vfs, "make_ahead", lambda find: found.append(find().path))
    tree = vfs.Vfs(backing.store)
    try:
        tree.make_engine_ahead()
        assert found == [backing.store.models / registry.file_name(tiny)]
        # With two of them nobody knows which is read first.
        backing.store.pin_model(registry.shipped().id, registry.shipped().path)
        tree.make_engine_ahead()
        assert len(found) == 1
    finally:
        tree.close()


def test_reading_through_the_mount(point, text):
    assert (point / "alice").read_bytes() == text
    chance = random.Random(2)
    with open(point / "alice", "rb", buffering=0) as file:
        for _ in range(20):
            offset, size = chance.randrange(len(text)), chance.randrange(5000)
            assert os.pread(file.fileno(), size, offset) == text[offset : offset + size]


def test_writing(backing, point, text):
    with open(point / "alice", "r+b") as file:
        file.seek(5000)
        file.write(b"CHANGED")
    wanted = text[:5000] + b"CHANGED" + text[5007:]
    assert (point / "alice").read_bytes() == wanted
    thaw(backing.marks, "alice")
    assert (backing.path / "alice").read_bytes() == wanted


def test_a_damaged_chunk_is_an_error_and_the_rest_reads(backing, point, text):
    path = backing.path / "alice"
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x10]))
    bad = []
    with open(point / "alice", "rb", buffering=0) as file:
        for at in range(0, len(text), CHUNK):
            try:
                got = os.pread(file.fileno(), CHUNK, at)
            except OSError as error:
                bad.append((at // CHUNK, error.errno))
                continue
            assert got == text[at : at + CHUNK]
    assert 1 <= len(bad) <= 2  # the kernel reads whole pages, which two chunks share
    assert bad[-1][0] - bad[0][0] == len(bad) - 1
    assert {number for _, number in bad} == {errno.EIO}


def test_without_its_model_a_file_is_refused_and_comes_back_with_it(backing, tiny, text):
    (pinned,) = backing.store.models.glob("*.lmm")
    aside = backing.path / "aside"
    shutil.move(pinned, aside)
    with pytest.raises(UnknownModelError, match=tiny.id.hex()):
        thaw(backing.marks, "alice")
    done = run_lmfs("thaw", backing.path / "alice")
    assert done.returncode == UnknownModelError.exit_code
    assert tiny.id.hex() in done.stderr
    shutil.move(aside, pinned)
    assert thaw(backing.marks, "alice").action is Action.THAWED
    assert (backing.path / "alice").read_bytes() == text


def test_a_missing_model_is_an_error_in_the_mount(backing, tmp_path, tiny, text):
    (pinned,) = backing.store.models.glob("*.lmm")
    shutil.move(pinned, tmp_path / "aside")
    point = tmp_path / "m"
    point.mkdir()
    mount(backing.path, point)
    try:
        assert (point / "alice").stat().st_size == len(text)
        with pytest.raises(OSError, match="installed") as caught:
            (point / "alice").read_bytes()
        assert caught.value.errno == UnknownModelError.errno
    finally:
        unmount(point)


def test_the_account_counts_the_model(backing, tiny, text):
    account = Account()
    account.add(backing.marks, ".")
    assert account.models == {tiny.id: tiny.size_bytes}
    assert account.frozen_before == len(text)
    assert account.codecs["lm"].chunks >= 10
    share = account.codecs["lm"]
    saved = 1 - share.after / share.before
    assert account.break_even_bytes() == pytest.approx(tiny.size_bytes / saved, rel=0.01)
    shown = run_lmfs("status", backing.path)
    assert shown.returncode == 0
    assert "lm" in shown.stdout


def test_the_commands_freeze_with_the_shipped_model(tmp_path, text):
    """`lmfs freeze` in a mount and `lmfs thaw` behind it."""
    backing = tmp_path / "b"
    backing.mkdir()
    (backing / "t").write_bytes(text[:9000])
    mount(backing)
    try:
        done = run_lmfs("freeze", backing)
        assert done.returncode == 0, done.stderr
        assert os.getxattr(backing / "t", "user.lmfs.state") == b"frozen"
        assert (backing / "t").read_bytes() == text[:9000]
    finally:
        unmount(backing)
    assert (backing / "t").stat().st_size < 4500
    assert run_lmfs("thaw", backing).returncode == 0
    assert (backing / "t").read_bytes() == text[:9000]
