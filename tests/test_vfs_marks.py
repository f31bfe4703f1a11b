"""Files that look like ours, filesystems without xattrs, bytes of any kind, and other users."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest
from backing import CHUNK, Backing, slurp, state, text
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lmfs.codecs.choose import Chooser
from lmfs.container import Kind
from lmfs.store.freeze import freeze, thaw
from lmfs.store.marks import PLAIN_MARK, State

DATA = text(20 * CHUNK + 5)


class TestUsersFilesThatLookLikeOurs:
    def copy_in(self, vfs, name, data, piece=1000):
        handle = vfs.create(name, os.O_WRONLY, 0o644)
        for at in range(0, len(data), piece):
            vfs.write(handle, data[at : at + piece], at)
        return handle

    @pytest.mark.parametrize("piece", [1, 1000])
    def test_a_raw_copy_of_a_frozen_file(self, backing, vfs, piece):
        raw = backing.write_frozen("f", DATA[: 3 * CHUNK]).read_bytes()
        handle = self.copy_in(vfs, "copy", raw, piece)
        # While it is open it is plain, marked as such before the first byte.
        assert vfs.attributes("copy").size == len(raw)
        assert slurp(vfs, "copy") == raw
        vfs.release(handle, "copy")
        # Closed, it is wrapped: no bytes of the user's stand where ours are looked for.
        assert backing.facts("copy")[:2] == (State.FROZEN, len(raw))
        assert PLAIN_MARK not in os.listxattr(backing.path / "copy")
        assert slurp(vfs, "copy") == raw

    def test_it_may_be_changed(self, backing, vfs):
        raw = backing.write_frozen("f", DATA[: 3 * CHUNK]).read_bytes()
        vfs.release(self.copy_in(vfs, "copy", raw), "copy")
        handle = vfs.open("copy", os.O_RDWR)
        vfs.write(handle, b"X", 100)
        vfs.release(handle, "copy")
        assert slurp(vfs, "copy") == raw[:100] + b"X" + raw[101:]
        handle = vfs.open("copy", os.O_RDWR)
        vfs.write(handle, b"hello", 0)
        vfs.release(handle, "copy")
        assert slurp(vfs, "copy") == b"hello" + raw[5:100] + b"X" + raw[101:]

    def test_only_the_magic(self, backing, vfs):
        vfs.release(self.copy_in(vfs, "m", Kind.FROZEN.value), "m")
        assert slurp(vfs, "m") == Kind.FROZEN.value
        assert state(vfs, "m") == b"frozen"

    def test_a_file_that_only_ends_as_ours_do(self, backing, vfs):
        raw = backing.write_frozen("f", DATA[: 3 * CHUNK]).read_bytes()
        handle = self.copy_in(vfs, "copy", b"X" + raw[1:])
        assert vfs.attributes("copy").size == vfs.attributes("copy", handle).size == len(raw)
        vfs.release(handle, "copy")
        assert slurp(vfs, "copy") == b"X" + raw[1:]

    def test_without_wrapping_it_stays_plain(self, backing, vfs):
        raw = backing.write_frozen("f", DATA[: 3 * CHUNK]).read_bytes()
        reader = self.copy_in(vfs, "copy", raw)
        second = vfs.open("copy", os.O_RDONLY)
        vfs.release(reader, "copy")  # cannot be wrapped, for it is open
        assert state(vfs, "copy") == b"hot"
        assert vfs.read(second, len(raw), 0, "copy") == raw
        vfs.release(second, "copy")
        assert slurp(vfs, "copy") == raw


class TestWithoutXattrs:
    """A backing filesystem that has none: magic and trailer must do."""

    @pytest.fixture
    def backing(self, tmp_path):
        backing = Backing(tmp_path / "b")
        backing.close()
        path = backing.path / ".lmfs" / "store.json"
        path.write_text(path.read_text().replace('"xattr_marks": true', '"xattr_marks": false'))
        backing = Backing(tmp_path / "b")
        assert not backing.store.xattr_marks
        yield backing
        backing.close()

    def test_freeze_read_write_thaw(self, backing, vfs):
        path = backing.write_frozen("f", DATA)
        assert os.listxattr(path) == []
        assert vfs.attributes("f").size == len(DATA)
        reader = vfs.open("f", os.O_RDONLY)
        assert vfs.read(reader, 3, 0, "f") == DATA[:3]
        writer = vfs.open("f", os.O_RDWR)
        vfs.write(writer, b"NEW", 0)
        assert vfs.read(reader, 6, 0, "f") == b"NEW" + DATA[3:6]
        vfs.release(writer, "f")
        vfs.release(reader, "f")
        assert path.read_bytes() == b"NEW" + DATA[3:]

    def test_damage_is_damage(self, backing, vfs):
        path = backing.write_frozen("f", DATA)
        os.truncate(path, path.stat().st_size - 1)
        assert state(vfs, "f") == b"damaged"

    def test_a_users_file_that_looks_like_ours_is_wrapped(self, backing, vfs):
        raw = backing.write_frozen("f", DATA).read_bytes()
        handle = vfs.create("copy", os.O_WRONLY, 0o644)
        vfs.write(handle, raw, 0)
        vfs.release(handle, "copy")
        assert slurp(vfs, "copy") == raw

    def test_what_a_crash_left_is_swept(self, backing, vfs):
        vfs.make_directory("d", 0o755)
        backing.write("d/" + backing.store.new_temporary_name(1), b"half a file")
        vfs.remove_directory("d")


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(min_size=1, max_size=3 * CHUNK))
@example(data=Kind.FROZEN.value)
@example(data=Kind.FROZEN.value + bytes(60) + Kind.FROZEN.trailer_magic)
def test_any_bytes(backing, vfs, data):
    """Written, frozen, read, thawed: the bytes stay, whatever they look like."""
    handle = vfs.create("f", os.O_WRONLY | os.O_EXCL, 0o644)
    vfs.write(handle, data, 0)
    vfs.release(handle)
    freeze(backing.marks, "f", Chooser(None), chunk_size=CHUNK, even_if_larger=True)
    assert backing.facts("f")[:2] == (State.FROZEN, len(data))
    assert slurp(vfs, "f") == data
    thaw(backing.marks, "f")
    assert (backing.path / "f").read_bytes() == data
    assert slurp(vfs, "f") == data
    vfs.remove_file("f")


AS_NOBODY = """
import os, pathlib, sys
from backing import Backing, text
from lmfs.vfs import Vfs

if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
data = text(40000)
backing = Backing(pathlib.Path(sys.argv[1]))
os.chmod(backing.write_frozen("f", data), 0o200)
vfs = Vfs(backing.store)
assert vfs.attributes("f").mode & 0o777 == 0o200
for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
    try:
        vfs.open("f", flags)
    except PermissionError:
        continue
    raise SystemExit(f"opened with {flags}")
try:
    vfs.truncate("f", 3)
    raise SystemExit("truncated")
except PermissionError:
    pass
vfs.change_mode("f", 0o600)
handle = vfs.open("f", os.O_RDWR)
assert vfs.read(handle, len(data), 0, "f") == data
vfs.release(handle, "f")
handle = vfs.create("g", os.O_WRONLY, 0o200)
vfs.write(handle, b"x", 0)
assert vfs.attributes("g", handle).size == 1
vfs.release(handle, "g")
"""


def test_what_may_not_be_read_is_not_written_to():
    """A frozen file whose marks we may not see must not be taken for a hot one."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, os.path.join(directory, "b")],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
