"""The table of posix_table.py at a real mount: what fails there must fail without it as well."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import tempfile

import posix_table
import pytest
from backing import Backing, mount, unmount

# What a mount does not do, and why.
KNOWN = {
    # setxattr arrives without the caller's groups; the kernel's flag for it (FUSE_SETXATTR_EXT) is
    # not in libfuse 3.14. Only root could have set the bit on a file of a group not the owner's.
    "acls: stat(n0): {'mode': '0o770'}, {'mode': '0o2770'}",
    # An open file whose directory was removed: its bytes are read, written, cut and flushed by
    # its handle; for these calls the kernel names no handle, and libfuse has no path any longer.
    "open_unlinked: fstat(#,): 0, ESTALE",
    "open_unlinked: utime_of(#, 3, 4): 0, ESTALE",
    "open_unlinked: fchmod(#, 393): 0, ESTALE",
    "open_unlinked: fchown(#, 65534, 65533): 0, ESTALE",
    "open_unlinked: setxattr(#, 'user.a', b'1'): 0, ESTALE",
}


@pytest.fixture(scope="module")
def mounted():
    """(mountpoint, a directory of the same filesystem without a mount)"""
    base = pathlib.Path(tempfile.mkdtemp(prefix="lmfs-test-")).resolve()
    base.chmod(0o755)
    backing, point, plain = Backing(base / "b"), base / "m", base / "plain"
    for path in (point, plain):
        path.mkdir()
    backing.path.chmod(0o755)
    mount(backing.path, point, "-o", "allow_other")
    try:
        yield point, plain
    finally:
        unmount(point)
        backing.close()
        shutil.rmtree(base)


@pytest.mark.skipif(os.geteuid() != 0, reason="calls as other users")
@pytest.mark.parametrize(
    "function",
    [function for functions in posix_table.CLASSES.values() for function in functions],
    ids=lambda function: function.__name__,
)
def test_as_without_a_mount(mounted, function):
    point, plain = mounted
    place = posix_table.check(point, function, ("regular", "symlink"))
    assert place.count > 3
    failures = [failure for failure in place.failures if _without_descriptor(failure) not in KNOWN]
    if failures:  # of this filesystem perhaps, not of ours
        known = set(map(_without_numbers, posix_table.check(plain, function).failures))
        assert [f for f in failures if _without_numbers(f) not in known] == []


def _without_numbers(failure: str) -> str:
    return re.sub(r"\d{4,}", "#", failure)


def _without_descriptor(failure: str) -> str:
    return re.sub(r"(\w\()\d+,", r"\1#,", failure)
