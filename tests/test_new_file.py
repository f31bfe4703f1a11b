"""A new file: whole, under its name, or not there."""

from __future__ import annotations

import errno
import os

import pytest

from lmfs.store import system
from lmfs.store.new_file import NewFile


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def test_it_gets_its_name_last(tmp_path):
    target = tmp_path / "a"
    with NewFile(target) as new:
        new.file.write(b"some")
        with new.reopen() as written:
            assert written.read() == b"some"
        assert not target.exists()
        assert os.fstat(new.fileno()).st_mode & 0o777 == 0o600
        new.file.write(b" more")
    assert target.read_bytes() == b"some more"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(("links", "renames"), [(True, True), (False, True), (False, False)])
def test_nothing_is_overwritten_unasked(tmp_path, monkeypatch, links, renames):
    """Whatever the filesystem can do; nor by who comes between the last look and the naming."""

    def no_link(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    def no_flags(source, target, **options):
        raise OSError(errno.EINVAL, "Invalid argument")

    if not links:
        monkeypatch.setattr(os, "link", no_link)
        monkeypatch.setattr(os.path, "lexists", lambda path: False)
    if not renames:
        monkeypatch.setattr(system, "rename", no_flags)
    target = tmp_path / "a"
    new = NewFile(target)
    new.file.write(b"new")
    target.write_bytes(b"old")  # meanwhile
    with pytest.raises(FileExistsError), new:
        pass
    assert target.read_bytes() == b"old"
    with NewFile(target, overwrite=True) as new:
        new.file.write(b"new")
    assert target.read_bytes() == b"new"
    with NewFile(tmp_path / "b") as new:
        new.file.write(b"other")
    assert (tmp_path / "b").read_bytes() == b"other"
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path, error):
    new = NewFile(tmp_path / "a")
    new.file.write(b"some")
    with pytest.raises(error), new:
        raise error
    assert names(tmp_path) == []


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"), NewFile(tmp_path / "a") as new:
        new.file.write(b"some")
    assert names(tmp_path) == []


def test_a_name_as_long_as_names_may_be(tmp_path):
    name = "ä" * 127
    with NewFile(tmp_path / name) as new:
        new.file.write(b"x")
    assert names(tmp_path) == [name]
