"""Talking to a mount while it runs, and what it does when its own code fails."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from backing import CHUNK, Backing, run_lmfs, text, unmount

DATA = text(20 * CHUNK + 5)
# A mount whose symlinks and whose truncation fail as a bug would make them.
BROKEN = """
import sys
from lmfs.cli import main
from lmfs.vfs import Vfs

def fail(error):
    def failing(*args):
        raise error
    return failing

Vfs.read_link = fail(RuntimeError("a bug"))
Vfs.truncate = fail(SystemExit(3))
main()
"""


@pytest.fixture
def served(tmp_path):
    """A mount of a store with a frozen file, its log in JSON: (backing, point, process, log)."""
    backing, point, log = Backing(tmp_path / "b"), tmp_path.resolve() / "m", tmp_path / "log"
    point.mkdir()
    backing.write_frozen("f", DATA)
    os.symlink("f", backing.path / "link")
    options = f"logfile={log},logformat=json"
    arguments = ["mount", "-f", "-o", options, backing.path, point]
    process = subprocess.Popen(
        [sys.executable, "-c", BROKEN, *arguments], stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert "mounted" in process.stdout.readline()
            yield backing, point, process, log
        finally:
            unmount(point)
            process.kill()
            backing.close()


def stats(point):
    done = run_lmfs("ctl", "stats", point)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def lines(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_bug_is_eio_and_the_mount_stays(served):
    _, point, process, log = served
    for act in (lambda: os.readlink(point / "link"), lambda: os.truncate(point / "f", 3)):
        with pytest.raises(OSError, match="Input/output error") as raised:
            act()
        assert raised.value.errno == errno.EIO
    assert process.poll() is None
    assert (point / "f").read_bytes() == DATA
    first, second = lines(log)
    assert (first["operation"], first["path"], first["level"]) == ("readlink", "/link", "error")
    assert "RuntimeError: a bug" in first["traceback"]
    assert "SystemExit" in second["traceback"]
    assert stats(point)["bugs"] == 2


def test_statistics_caches_and_signals(served):
    _, point, process, log = served
    with open(point / "f", "rb") as file:
        assert file.read() == DATA
        before = stats(point)
    assert (before["pid"], before["mountpoint"]) == (process.pid, str(point))
    assert before["calls"]["read"] > 0
    assert before["cache_bytes"] > 0
    assert run_lmfs("ctl", "drop-caches", point).returncode == 0
    assert stats(point)["cache_bytes"] == 0
    process.send_signal(signal.SIGUSR1)
    for _ in range(100):
        if log.read_text().endswith("\n"):
            break
        time.sleep(0.05)
    assert lines(log)[-1]["statistics"]["pid"] == process.pid
    assert (point / "f").read_bytes() == DATA


def test_thaw_and_log_level(served):
    backing, point, _, _ = served
    assert run_lmfs("ctl", "thaw", point / "f").returncode == 0
    assert (backing.path / "f").read_bytes() == DATA
    assert run_lmfs("ctl", "log-level", point, "debug").returncode == 0
    done = run_lmfs("ctl", "log-level", point, "loud")
    assert (done.returncode, "log level" in done.stderr) == (2, True)
    assert run_lmfs("ctl", "thaw", point / "none").returncode == 1
    assert run_lmfs("ctl", "stats", "/").returncode == 12


def test_own_xattrs(served):
    _, point, _, _ = served
    found = {n: os.getxattr(point / "f", f"user.lmfs.{n}") for n in ("state", "codecs", "model")}
    assert found["state"] == b"frozen"
    assert b"zstd=" in found["codecs"]
    assert found["model"] == b"none"
    assert 0 < float(os.getxattr(point / "f", "user.lmfs.ratio")) < 1
    assert os.listxattr(point / "f") == []
    with pytest.raises(PermissionError):
        os.setxattr(point / "f", "user.lmfs.ratio", b"1")


class TestPause:
    def freezing(self, path):
        return subprocess.Popen(
            [sys.executable, "-m", "lmfs", "freeze", "--no-model", path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def test_freezing_waits(self, served):
        backing, point, _, _ = served
        backing.write("g", DATA)
        assert run_lmfs("ctl", "pause", point).returncode == 0
        assert run_lmfs("ctl", "pause", point).returncode == 0  # again is nothing
        assert stats(point)["paused"]
        with self.freezing(backing.path / "g") as process:
            assert "lmfs ctl resume" in process.stderr.readline()
            time.sleep(0.3)
            assert process.poll() is None
            assert backing.facts("g").state.value == "hot"
            assert run_lmfs("ctl", "resume", point).returncode == 0
            assert process.wait(60) == 0
        assert backing.facts("g").state.value == "frozen"
        assert not stats(point)["paused"]

    def test_the_end_of_the_mount_ends_it(self, served):
        backing, point, mounted, _ = served
        backing.write("g", DATA)
        assert run_lmfs("ctl", "pause", point).returncode == 0
        with self.freezing(backing.path / "g") as process:
            process.stderr.readline()
            mounted.kill()
            assert process.wait(60) == 0

    def test_two_mounts(self, served, tmp_path):
        backing, point, _, _ = served
        other = tmp_path.resolve() / "other"
        other.mkdir()
        assert run_lmfs("mount", backing.path, other).returncode == 0
        try:
            assert run_lmfs("ctl", "pause", point).returncode == 0
            done = run_lmfs("ctl", "pause", other)
            assert (done.returncode, "another mount" in done.stderr) == (10, True)
        finally:
            unmount(other)
