"""Hot, frozen, damaged: no damage to a frozen file makes it hot, no user's file becomes ours."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time

import pytest
from backing import CHUNK, Backing, text

from lmfs.codecs.choose import Chooser
from lmfs.container import MAX_TRAILER_BYTES, Kind
from lmfs.errors import DamagedError, LmfsError
from lmfs.lmz import compress
from lmfs.store.content import open_frozen
from lmfs.store.freeze import freeze, thaw
from lmfs.store.marks import FROZEN_MARK, PLAIN_MARK, State, gives_magic

DATA = text(5 * CHUNK + 17)


@pytest.fixture
def frozen(backing):
    return backing.write_frozen("f", DATA)


def whole(backing, name="f"):
    """What the frozen file decodes to."""
    fd = os.open(backing.path / name, os.O_RDONLY)
    try:
        with open_frozen(fd, backing.marks) as reader:
            return reader.read()
    finally:
        os.close(fd)


def test_hot_and_frozen(backing, frozen):
    backing.write("h", DATA)
    assert backing.facts("h")[:2] == (State.HOT, len(DATA))
    assert backing.facts("f")[:2] == (State.FROZEN, len(DATA))
    assert frozen.stat().st_size < len(DATA) / 2


def test_a_mark_that_cannot_be_read_is_not_taken_for_none(backing, frozen, monkeypatch):
    """Else a file whose bytes are damaged as well would be shown as it is."""

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    backing.marks.forget()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getxattr", fail)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            backing.facts("f")
    assert backing.facts("f").state is State.FROZEN


def test_what_a_file_was_like_is_not_remembered(backing):
    """One that is written to for days would fill the memory."""
    path = backing.write("h", DATA)
    for number in range(20):
        os.utime(path, ns=(number, number))
        time.sleep(0.03)  # until its times are no longer the clock's
        assert backing.facts("h").size == len(DATA)
    assert len(backing.marks._facts) == 1
    assert backing.marks.facts_of_path("h", path.stat()).state is State.HOT


@pytest.mark.parametrize("size", [0, 1, 7, 8, 55, 56, 57])
def test_short_files_are_hot(backing, size):
    backing.write("h", b"\xff" * size)
    assert backing.facts("h").state is State.HOT


def test_an_archive_is_a_users_file(backing):
    backing.write("a.lmz", compress(DATA, chooser=Chooser(None)))
    assert backing.facts("a.lmz").state is State.HOT


def test_lost_xattrs_lose_nothing(backing, frozen):
    shutil.copyfile(frozen, backing.path / "restored")
    assert os.listxattr(backing.path / "restored") == []
    assert backing.facts("restored")[:2] == (State.FROZEN, len(DATA))
    assert whole(backing, "restored") == DATA


def test_every_byte_of_the_ends_flipped(backing, frozen):
    """A flipped byte leaves the file frozen or makes it damaged; it never makes it hot."""
    stored = bytearray(frozen.read_bytes())
    for at in [*range(64), *range(len(stored) - MAX_TRAILER_BYTES - 8, len(stored))]:
        stored[at] ^= 0x10
        frozen.write_bytes(stored)
        facts = backing.facts("f")
        assert facts.state is not State.HOT, at
        if facts.state is State.FROZEN:
            with contextlib.suppress(LmfsError):
                assert whole(backing) == DATA
        stored[at] ^= 0x10


def test_every_truncation_is_damaged(backing, frozen):
    stored = frozen.read_bytes()
    for size in [*range(80), *range(80, len(stored), 97), len(stored) - 1]:
        os.truncate(frozen, size)
        facts = backing.facts("f")
        assert facts.state is State.DAMAGED, size
        assert facts.size == len(DATA)  # from the xattr, for want of anything better
        frozen.write_bytes(stored)
    assert backing.facts("f").state is State.FROZEN


def test_truncated_without_xattr_is_damaged_as_long_as_its_magic_stands(backing, frozen):
    os.removexattr(frozen, FROZEN_MARK)
    os.truncate(frozen, 100)
    assert backing.facts("f").state is State.DAMAGED
    with pytest.raises(DamagedError, match="no whole trailer"):
        backing.marks.require_frozen_or_hot(backing.facts("f"), "f")


def test_bytes_behind_the_end_are_damage(backing, frozen):
    with open(frozen, "ab") as file:
        file.write(b"x")
    assert backing.facts("f").state is State.DAMAGED


def test_another_stores_file_is_named(backing, frozen, tmp_path):
    other = Backing(tmp_path / "other")
    shutil.copyfile(frozen, other.path / "f")
    facts = other.facts("f")
    assert facts.state is State.DAMAGED
    assert backing.store.id.hex() in facts.problem
    other.close()


def test_an_xattr_of_another_file(backing, frozen):
    other = backing.write_frozen("g", text(9 * CHUNK))
    os.setxattr(frozen, FROZEN_MARK, os.getxattr(other, FROZEN_MARK))
    assert backing.facts("f").state is State.DAMAGED
    os.setxattr(frozen, FROZEN_MARK, b"nonsense")
    assert backing.facts("f").state is State.DAMAGED


def test_the_xattr_alone_is_damage(backing):
    path = backing.write("h", DATA)
    os.setxattr(path, FROZEN_MARK, b"anything")
    assert backing.facts("h").state is State.DAMAGED


def test_a_plain_mark_keeps_a_users_file_the_users(backing, frozen):
    shutil.copyfile(frozen, backing.path / "raw")
    os.setxattr(backing.path / "raw", PLAIN_MARK, b"1")
    assert backing.facts("raw")[:2] == (State.HOT, frozen.stat().st_size)


def test_a_users_file_that_looks_frozen_survives_freeze_and_thaw(backing, frozen):
    shutil.copyfile(frozen, backing.path / "raw")
    os.setxattr(backing.path / "raw", PLAIN_MARK, b"1")
    raw = frozen.read_bytes()
    freeze(backing.marks, "raw", Chooser(None), even_if_larger=True)
    assert PLAIN_MARK not in os.listxattr(backing.path / "raw")
    assert backing.facts("raw")[:2] == (State.FROZEN, len(raw))
    assert whole(backing, "raw") == raw
    thaw(backing.marks, "raw")
    assert backing.facts("raw")[:2] == (State.HOT, len(raw))
    assert (backing.path / "raw").read_bytes() == raw


def test_the_cache_notices_a_change(backing, frozen):
    assert backing.facts("f").state is State.FROZEN
    stored = frozen.read_bytes()
    frozen.write_bytes(b"\0" * 8 + stored[8:])
    assert backing.facts("f").state is State.DAMAGED


def test_which_writes_give_a_file_our_beginning():
    magic = Kind.FROZEN.value
    assert gives_magic(magic + b"more", 0)
    assert gives_magic(magic[3:] + b"more", 3)
    assert gives_magic(magic[:2], 0)
    assert not gives_magic(b"text", 0)
    assert not gives_magic(magic, 8)
    assert not gives_magic(b"", 0)


def test_damage_is_eio():
    assert DamagedError.errno == errno.EIO
