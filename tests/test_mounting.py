"""Mounting and unmounting: every way, every refusal, and what a crash leaves."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from backing import CHUNK, Backing, mount, run_lmfs, text, unmount

from lmfs.cli.mount import LEVEL_NUMBERS
from lmfs.codecs.levels import LEVELS
from lmfs.errors import ModelError, UsageError
from lmfs.store.control import Control, mount_of, mounts, runtime_directory
from lmfs.store.freezing import Wishes

DATA = text(40 * CHUNK + 5)


@pytest.fixture
def fresh(tmp_path):
    """A store and a mountpoint that a test mounts itself."""
    backing, point = Backing(tmp_path.resolve() / "b"), tmp_path.resolve() / "m"
    point.mkdir()
    try:
        yield backing, point
    finally:
        unmount(point)
        unmount(backing.path)
        backing.close()


class TestMounting:
    def test_over_itself(self, fresh):
        backing, _ = fresh
        backing.write_frozen("f", DATA)
        backing.write("h", DATA)
        mount(backing.path)
        assert (backing.path / "f").read_bytes() == DATA
        assert sorted(os.listdir(backing.path)) == ["f", "h"]
        done = run_lmfs("freeze", "--no-model", "-v", backing.path / "h")
        assert done.returncode == 0, done
        assert "froze 1 file:" in done.stdout
        assert os.getxattr(backing.path / "h", "user.lmfs.state") == b"frozen"
        assert (backing.path / "h").read_bytes() == DATA
        done = run_lmfs("thaw", backing.path)
        assert "thawed 2 files" in done.stdout, done
        assert (backing.path / "f").read_bytes() == DATA
        done = run_lmfs("umount", backing.path)
        assert done.returncode == 0, done
        assert (backing.path / ".lmfs").is_dir()
        assert (backing.path / "f").read_bytes() == DATA

    def test_a_new_directory_becomes_a_store(self, tmp_path):
        directory = tmp_path.resolve() / "new"
        directory.mkdir()
        try:
            mount(directory)
            (directory / "f").write_bytes(DATA)
        finally:
            unmount(directory)
        assert (directory / "f").read_bytes() == DATA
        assert (directory / ".lmfs" / "store.json").is_file()

    @pytest.mark.parametrize("buffered", ["", "1"])
    def test_in_the_foreground_nobody_need_listen(self, fresh, buffered):
        backing, point = fresh
        with (
            open("/dev/full", "w") as full,
            subprocess.Popen(
                [sys.executable, "-m", "lmfs", "mount", "-f", backing.path, point],
                env=os.environ | {"PYTHONUNBUFFERED": buffered},
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
            ) as server,
        ):
            until = time.monotonic() + 20
            while not any(m.mountpoint == str(point) for m in mounts()):
                assert time.monotonic() < until
                time.sleep(0.05)
            (point / "f").write_bytes(DATA)
            unmount(point)
            assert (server.wait(20), server.stderr.read()) == (0, "")

    def test_commands_through_the_mount(self, fresh):
        backing, point = fresh
        mount(backing.path, point)
        (point / "d").mkdir()
        (point / "d" / "f").write_bytes(DATA)
        assert run_lmfs("freeze", "--no-model", "d", cwd=point).returncode == 0
        done = run_lmfs("status", "d/f", cwd=point)
        assert done.returncode == 0, done
        assert "zstd" in done.stdout
        with open(point / "d" / "f", "r+b") as file:
            file.write(b"NEW")
        copies = backing.path.parent / "copies"
        assert run_lmfs("cp", "d", copies, cwd=point).returncode == 0
        assert (copies / "f").read_bytes() == b"NEW" + DATA[3:]
        assert run_lmfs("cp", "d/f", point / "d" / "g", cwd=point).returncode == 0
        assert (point / "d" / "g").read_bytes() == b"NEW" + DATA[3:]
        (point / "d" / "g").unlink()
        assert run_lmfs("thaw", point).returncode == 0
        assert (backing.path / "d" / "f").read_bytes() == b"NEW" + DATA[3:]

    def test_read_only(self, fresh):
        backing, point = fresh
        backing.write_frozen("f", DATA)
        mount(backing.path, point, "-o", "ro")
        assert (point / "f").read_bytes() == DATA
        for act in (
            lambda: (point / "g").touch(),
            lambda: os.truncate(point / "f", 0),
            lambda: os.chmod(point / "f", 0o600),
        ):
            with pytest.raises(OSError, match="Read-only"):
                act()

    def test_unmounting_waits_and_cleans_up(self, fresh):
        backing, point = fresh
        mount(backing.path, point)
        (mounted,) = (m for m in mounts() if m.mountpoint == str(point))
        socket_path = pathlib.Path(runtime_directory(0), f"{mounted.device}.sock")
        assert socket_path.is_socket()
        with Control(mounted) as control, control.open_store() as store:
            assert store.id == backing.store.id
            assert store.path == str(backing.path)
        done = run_lmfs("umount", point)
        assert (done.returncode, done.stderr) == (0, "")
        assert not socket_path.exists()
        assert os.listdir(point) == []

    def test_a_busy_mount_stays(self, fresh):
        backing, point = fresh
        backing.write("f", b"1")
        mount(backing.path, point)
        with open(point / "f", "rb"):
            done = run_lmfs("umount", point)
            assert done.returncode == 10
            assert "busy" in done.stderr
        assert run_lmfs("umount", point).returncode == 0

    def test_foreground_ends_on_interrupt(self, fresh):
        backing, point = fresh
        backing.write("f", b"1")
        process = subprocess.Popen(
            [sys.executable, "-m", "lmfs", "mount", "-f", backing.path, point],
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                assert process.stdout.readline() == f"lmfs: mounted on {point}\n"
                assert (point / "f").read_bytes() == b"1"
                process.send_signal(signal.SIGINT)
                assert process.wait(20) == 0
            finally:
                process.kill()
        assert not any(m.mountpoint == str(point) for m in mounts())

    def test_a_killed_mount_is_unmounted_and_mounted_again(self, fresh):
        backing, point = fresh
        backing.write_frozen("f", DATA)
        process = subprocess.Popen(
            [sys.executable, "-m", "lmfs", "mount", "-f", backing.path, point],
            stdout=subprocess.PIPE,
        )
        with process:
            process.stdout.readline()
            (point / "g").write_bytes(b"kept")
            process.kill()
        with pytest.raises(OSError, match="not connected"):
            os.listdir(point)
        done = run_lmfs("umount", point)
        assert done.returncode == 0, done
        mount(backing.path, point)
        assert (point / "f").read_bytes() == DATA
        assert (point / "g").read_bytes() == b"kept"

    def test_what_a_crash_left_is_removed(self, fresh):
        backing, point = fresh
        left = backing.write("d/" + backing.store.new_temporary_name(1), b"")
        mount(backing.path, point)
        for _ in range(100):
            if not left.exists():
                break
            time.sleep(0.05)
        assert not left.exists()

    def test_mounted_twice(self, fresh, tmp_path):
        backing, point = fresh
        other = tmp_path.resolve() / "m2"
        other.mkdir()
        backing.write_frozen("f", DATA)
        mount(backing.path, point)
        try:
            mount(backing.path, other)
            assert (other / "f").read_bytes() == (point / "f").read_bytes() == DATA
            with open(other / "f", "ab") as file:
                file.write(b"end")
            time.sleep(1.1)  # the kernel may keep attributes for a second
            assert (point / "f").read_bytes() == DATA + b"end"
        finally:
            unmount(other)


class TestOptions:
    """As users type them."""

    def test_owners_and_modes_for_all(self, fresh):
        backing, point = fresh
        backing.write("f", b"1").chmod(0o604)
        mount(backing.path, point, "-o", "uid=123,gid=456,umask=027,noatime,exec")
        found = (point / "f").stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (123, 456, 0o750)
        assert (backing.path / "f").stat().st_uid == os.getuid()

    def test_numbers(self, fresh):
        backing, point = fresh
        backing.write_frozen("f", DATA)
        mount(backing.path, point, "-o", "cachesize=1", "-o", "threads=1,readahead=0")
        assert (point / "f").read_bytes() == DATA
        (mounted,) = (m for m in mounts() if m.mountpoint == str(point))
        with Control(mounted) as control:
            assert control.ask("stats")["cache_max_bytes"] == 1 << 20

    @pytest.mark.parametrize(
        "option", ["uid=root", "umask=9", "umask=", "threads=0", "readahead=17", "cachesize=x"]
    )
    def test_nonsense(self, tmp_path, option):
        done = run_lmfs("mount", tmp_path, "-o", option)
        assert done.returncode == 2
        assert f"got {option}" in done.stderr
        assert not (tmp_path / ".lmfs").exists()

    def test_what_freezing_is_told(self, fresh):
        """How files are frozen through a mount, unless the command says otherwise."""
        backing, point = fresh
        data = text(100_000)
        for name in "abcd":
            backing.write(name, data)
        mount(backing.path, point, "-o", "level=3,model=none,chunk=8192")
        with Control(mount_of(str(point))) as control:
            assert control.ask("stats")["freezing"] == {"level": 3, "model": "none", "chunk": 8192}

        def codecs(name, *options):
            assert run_lmfs("freeze", *options, point / name).returncode == 0
            return os.getxattr(point / name, "user.lmfs.codecs").decode()

        assert codecs("a") == "zstd=13"
        assert codecs("b", "--chunk-size=50000") == "zstd=2"
        assert codecs("c", "--model") == "mix=13"
        unmount(point)
        assert run_lmfs("freeze", "--no-model", backing.path / "d").returncode == 0
        mount(backing.path, point)
        assert os.getxattr(point / "d", "user.lmfs.codecs") == b"zstd=7"

    @pytest.mark.parametrize("option", ["level=10", "level=0", "chunk=0", "chunk=64K", "model="])
    def test_what_freezing_cannot_be_told(self, tmp_path, option):
        done = run_lmfs("mount", tmp_path, "-o", option)
        assert done.returncode == 2
        assert "level=1 to 9, model=NAME|ID|none, chunk=1 to" in done.stderr

    def test_a_model_that_is_not_here(self, tmp_path):
        for name, code in (("base-0", ModelError.exit_code), ("0" * 32, 6)):
            done = run_lmfs("mount", tmp_path, "-o", f"model={name}")
            assert done.returncode == code
            assert name in done.stderr

    @pytest.mark.parametrize(
        "said", [{"level": 11}, {"level": "6"}, {"level": True}, {"chunk": -1}, {"model": 3}]
    )
    def test_a_mount_of_another_version(self, said):
        with pytest.raises(UsageError):
            Wishes.read(said)

    def test_wishes(self):
        assert list(LEVEL_NUMBERS) == list(LEVELS)
        assert Wishes.read(None) == Wishes.read({"later": 1}) == Wishes()
        wishes = Wishes(3, "none", 5)
        assert Wishes.read(wishes.as_dict()) == wishes

    def test_auto_unmount(self, fresh):
        """fusermount3 leaves a mount alone that does not answer ENOTCONN yet, but ECONNABORTED: so
        it does where it looks while the killed process is still closing its files."""
        backing, point = fresh
        backing.write("f", b"1")
        for _ in range(3):
            command = [sys.executable, "-m", "lmfs", "mount", "-f", "-o", "auto_unmount"]
            with subprocess.Popen(
                [*command, backing.path, point], stdout=subprocess.PIPE
            ) as server:
                server.stdout.readline()
                assert (point / "f").read_bytes() == b"1"
                server.kill()
            until = time.monotonic() + 10
            while time.monotonic() < until:
                if not any(m.mountpoint == str(point) for m in mounts()):
                    with contextlib.suppress(OSError):  # not connected, on its way out
                        assert os.listdir(point) == []
                        return
                time.sleep(0.05)
            subprocess.run(["umount", "-l", point], check=True)
        pytest.fail("it is still mounted")

    def test_a_store_that_cannot_be_written_to(self, fresh, tmp_path):
        backing, point = fresh
        backing.write_frozen("f", DATA)
        shown = tmp_path.resolve() / "ro"
        shown.mkdir()
        subprocess.run(["mount", "--bind", backing.path, shown], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", shown], check=True)
            mount(shown, point, "-o", "ro")
            assert (point / "f").read_bytes() == DATA
            unmount(point)
        finally:
            subprocess.run(["umount", "-l", shown], check=True)


HELPER = f"""#!/bin/sh
exec {sys.executable} -m lmfs.cli.mount_lmfs "$@"
"""


@pytest.fixture
def by_mount(fresh, tmp_path):
    """Runs a script that may use mount(8), with our helper where mount(8) looks for it.

    In a mount namespace of its own, for nothing is to be left in /sbin.
    """
    backing, point = fresh
    helpers = tmp_path / "helpers"
    helpers.mkdir()
    for name in ("mount.lmfs", "mount.fuse.lmfs"):
        (helpers / name).write_text(HELPER)
        (helpers / name).chmod(0o755)

    def run(script):
        lines = ["set -e", f"mount -t overlay none -o lowerdir={helpers}:/usr/sbin /usr/sbin"]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", "\n".join([*lines, script])],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done

    return backing, point, run


class TestMount8:
    """`mount -t lmfs` and /etc/fstab."""

    @pytest.mark.parametrize("kind", ["lmfs", "fuse.lmfs"])
    def test_type(self, by_mount, kind):
        backing, point, run = by_mount
        backing.write_frozen("f", DATA)
        done = run(
            f"mount -t {kind} {backing.path} {point} -o ro,noexec,cachesize=1\n"
            f"findmnt -n -o SOURCE,FSTYPE,OPTIONS {point}\n"
            f"cmp {point}/f {backing.path}/f >&2 || true\n"
            f"head -c 9 {point}/f; touch {point}/g || true\n"
            f"umount {point}; ls {point}"
        )
        assert done.returncode == 0, done
        source, shown, options = done.stdout.splitlines()[0].split()
        assert (source, shown) == (str(backing.path), "fuse.lmfs")
        assert {"ro", "noexec", "nosuid", "nodev"} <= set(options.split(","))
        assert done.stdout.endswith("\n" + DATA[:9].decode())
        assert "Read-only" in done.stderr

    def test_fstab(self, by_mount, tmp_path):
        backing, point, run = by_mount
        backing.write_frozen("f", DATA)
        table = tmp_path / "fstab"
        options = "defaults,noatime,allow_other,nofail,_netdev,x-systemd.automount,threads=1"
        table.write_text(f"{backing.path} {point} lmfs {options} 0 0\n")
        done = run(
            f"mount -T {table} {point}; mount -T {table} -a; findmnt -n -o TARGET {point}\n"
            f"cat {point}/f; umount {point}"
        )
        assert done.returncode == 0, done
        assert done.stdout == f"{point}\n" + DATA.decode()

    def test_refusals(self, by_mount):
        backing, point, run = by_mount
        done = run(f"mount -t lmfs {backing.path} {point} -o ro,nonsense")
        assert done.returncode == 1
        assert "mount.lmfs: mount option" in done.stderr
        done = run(f"mount -s -t lmfs {backing.path} {point} -o ro,nonsense; umount {point}")
        assert done.returncode == 0, done
        done = run(f"mount -t lmfs {backing.path}/none {point}")
        assert done.returncode == 32
        assert "does not exist" in done.stderr
        backing.write_frozen("f", DATA)
        (backing.path / ".lmfs" / "store.json").unlink()
        done = run(f"mount -t lmfs {backing.path} {point} -o ro")
        assert done.returncode == 32
        assert "not a store" in done.stderr


class TestRefusals:
    def refused(self, code, *words, args):
        done = run_lmfs("mount", *args)
        assert done.returncode == code, done
        assert done.stderr.startswith("lmfs: ")
        assert "Traceback" not in done.stderr
        for word in words:
            assert word in done.stderr, done.stderr
        return done

    def test_no_backing(self, tmp_path):
        self.refused(12, "does not exist", "mkdir -p", args=[tmp_path / "none"])

    def test_backing_is_a_file(self, tmp_path):
        (tmp_path / "f").touch()
        self.refused(2, "name an empty directory", args=[tmp_path / "f"])
        (tmp_path / "m").mkdir()
        self.refused(3, ".lmz", args=[tmp_path / "f", tmp_path / "m"])
        os.mkfifo(tmp_path / "p")
        self.refused(12, "not a directory", args=[tmp_path / "p", tmp_path / "m"])

    def test_no_mountpoint(self, tmp_path):
        self.refused(12, "mountpoint does not exist", args=[tmp_path, tmp_path / "none"])

    def test_mountpoint_not_empty(self, tmp_path):
        (tmp_path / "b").mkdir()
        (tmp_path / "m" / "x").mkdir(parents=True)
        self.refused(12, "not empty", args=[tmp_path / "b", tmp_path / "m"])

    def test_mountpoint_inside_the_backing_directory(self, tmp_path):
        (tmp_path / "m").mkdir()
        self.refused(2, "inside the backing directory", args=[tmp_path, tmp_path / "m"])
        assert not (tmp_path / ".lmfs").exists()

    def test_unknown_option(self, tmp_path):
        self.refused(2, "mount option", "got nonsense", args=[tmp_path, "-o", "ro,nonsense"])

    def test_not_writable(self, tmp_path):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path], check=True)
        try:
            self.refused(9, "cannot make a store", "Read-only", args=[tmp_path])
        finally:
            subprocess.run(["umount", "-l", tmp_path], check=True)

    def test_read_only_needs_a_store(self, tmp_path):
        self.refused(3, "not a store", args=[tmp_path, "-o", "ro"])

    def test_a_newer_store(self, fresh):
        backing, point = fresh
        path = backing.path / ".lmfs" / "store.json"
        path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
        self.refused(4, "store version", args=[backing.path, point])

    def test_mounted_already(self, fresh):
        backing, point = fresh
        mount(backing.path, point)
        self.refused(12, "mounted here already", "lmfs umount", args=[backing.path, point])
        self.refused(12, "is an lmfs mount itself", args=[point, backing.path])

    def test_no_libfuse(self, fresh):
        backing, point = fresh
        environment = os.environ | {"FUSE_LIBRARY_NAME": "no-such-library"}
        done = run_lmfs("mount", backing.path, point, env=environment)
        assert done.returncode == 12
        assert "apt install fuse3" in done.stderr

    def test_umount_of_something_else(self, tmp_path):
        done = run_lmfs("umount", tmp_path)
        assert done.returncode == 12
        assert "not an lmfs mount" in done.stderr
