"""A single .lmz as a tree: a file, a tar of every kind of member, and tars that lie."""

from __future__ import annotations

import io
import os
import pathlib
import random
import shutil
import stat
import subprocess
import tarfile

import pytest
from backing import mount, run_lmfs, text, unmount

import lmfs
from lmfs.archive import Archive
from lmfs.codecs.choose import Chooser
from lmfs.errors import DamagedError, FormatError, LmfsError

DATA = text(100_000)


def pack(path: pathlib.Path, data: bytes) -> pathlib.Path:
    with lmfs.open(path, "wb", chunk_size=4096, chooser=Chooser(None)) as file:
        file.write(data)
    return path


def slurp(archive: Archive, path: str) -> bytes:
    handle = archive.open(path, os.O_RDONLY)
    return archive.read(handle, archive.attributes(path).size + 10, 0)


def tar_of(*members: tuple[str, bytes] | tarfile.TarInfo, **options: object) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


@pytest.fixture
def tree(tmp_path):
    """A directory with a file of each kind, and what else a tar can carry."""
    root = tmp_path / "tree"
    (root / "dir" / "empty").mkdir(parents=True)
    (root / "dir" / "f").write_bytes(DATA)
    (root / "dir" / "f").chmod(0o4751)
    os.chown(root / "dir" / "f", 1234, 4321)
    os.link(root / "dir" / "f", root / "linked")
    (root / ("long" * 50)).write_bytes(b"1")
    (root / "symlink").symlink_to("../dir/" + "t" * 150)
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with open(bytes(root) + b"/\xff\xfe", "wb") as file:
        file.write(b"name of any bytes")
    with open(root / "sparse", "wb") as file:
        for offset in (1 << 20, 5 << 20):
            file.seek(offset)
            file.write(DATA[:9000])
        file.truncate(8 << 20)
    (root / "nothing").touch()
    os.setxattr(root / "dir" / "f", "user.note", b"\xff\x00")
    os.utime(root / "dir" / "f", ns=(1_000_000_007, 2_000_000_009))
    return root


def tarred(tree: pathlib.Path, *options: str) -> bytes:
    done = subprocess.run(
        ["tar", "-C", tree, *options, "-cf", "-", "."], stdout=subprocess.PIPE, check=True
    )
    return done.stdout


class TestFile:
    def test_one_file(self, tmp_path):
        path = pack(tmp_path / "book.txt.lmz", DATA)
        path.chmod(0o640)
        archive = Archive(str(path))
        assert [entry.name for entry in archive.list_directory(".")] == ["book.txt"]
        found = archive.attributes("book.txt")
        assert (found.mode, found.size) == (stat.S_IFREG | 0o440, len(DATA))
        assert found.mtime_ns == path.stat().st_mtime_ns
        assert slurp(archive, "book.txt") == DATA
        handle = archive.open("book.txt", os.O_RDONLY)
        assert archive.read(handle, 100, 5000) == DATA[5000:5100]
        with pytest.raises(OSError, match="Read-only"):
            archive.open("book.txt", os.O_WRONLY)
        with pytest.raises(FileNotFoundError):
            archive.attributes("book.txt/x")
        archive.close()

    def test_no_lmz(self, tmp_path):
        (tmp_path / "f").write_bytes(DATA)
        with pytest.raises(FormatError):
            Archive(str(tmp_path / "f"))

    def test_a_damaged_chunk(self, tmp_path):
        path = pack(tmp_path / "f.lmz", DATA)
        stored = bytearray(path.read_bytes())
        stored[len(stored) // 2] ^= 1
        path.write_bytes(stored)
        archive = Archive(str(path))
        with pytest.raises(DamagedError):
            slurp(archive, "f")
        archive.close()


class TestTar:
    @pytest.mark.parametrize("form", ["gnu", "pax", "posix"])
    def test_every_kind_of_member(self, tree, tmp_path, form):
        options = ["--sparse", f"--format={form}"]
        if form != "gnu":
            options.append("--xattrs")
        path = pack(tmp_path / "t.tar.lmz", tarred(tree, *options))
        archive = Archive(str(path))
        names = [os.fsdecode(bytes(p)[len(bytes(tree)) + 1 :]) for p in tree.rglob("*")]
        for name in names:
            want, got = (tree / name).lstat(), archive.attributes(name)
            assert got.mode == want.st_mode, name
            assert (got.uid, got.gid) == (want.st_uid, want.st_gid), name
            assert got.device == want.st_rdev, name
            assert got.links == want.st_nlink, name
            exact = want.st_mtime_ns if form != "gnu" else want.st_mtime_ns // 10**9 * 10**9
            assert got.mtime_ns == exact, name
            if stat.S_ISREG(want.st_mode):
                assert got.size == want.st_size, name
                assert slurp(archive, name) == (tree / name).read_bytes(), name
        for directory in (".", "dir", "dir/empty"):
            listed = {entry.name for entry in archive.list_directory(directory)}
            assert listed == set(os.listdir(tree / directory))
        assert archive.read_link("symlink") == os.readlink(tree / "symlink")
        assert archive.attributes("linked").inode == archive.attributes("dir/f").inode
        assert archive.attributes("sparse").blocks < 100
        if form != "gnu":
            assert archive.list_xattrs("linked") == ["user.note"]
            assert archive.get_xattr("dir/f", "user.note") == b"\xff\x00"
        handle = archive.open("sparse", os.O_RDONLY)
        data = archive.seek(handle, 0, os.SEEK_DATA)
        assert 0 < data <= 1 << 20
        assert archive.seek(handle, 0, os.SEEK_HOLE) == 0
        hole = archive.seek(handle, data, os.SEEK_HOLE)
        assert (1 << 20) + 9000 <= hole < 2 << 20
        assert archive.seek(handle, hole, os.SEEK_DATA) > 4 << 20
        assert archive.read(handle, 20, (1 << 20) - 10) == bytes(10) + DATA[:10]
        with pytest.raises(OSError, match="No such device"):
            archive.seek(handle, 7 << 20, os.SEEK_DATA)
        archive.close()

    def test_known_by_its_content(self, tmp_path):
        path = pack(tmp_path / "backup.lmz", tar_of(("a/b", b"1")))
        archive = Archive(str(path))
        assert slurp(archive, "a/b") == b"1"
        assert archive.attributes("a").mode == stat.S_IFDIR | 0o755  # the tar does not name it
        archive.close()

    def test_later_members_replace_earlier_ones(self, tmp_path):
        link = tarfile.TarInfo("c")
        link.type, link.linkname = tarfile.LNKTYPE, "a"
        tar = tar_of(("a", b"old"), link, ("a", b"new"), ("b", b"file"), ("b/c", b"in it"))
        archive = Archive(str(pack(tmp_path / "t.tar.lmz", tar)))
        assert slurp(archive, "a") == b"new"
        assert slurp(archive, "c") == b"old"
        assert archive.attributes("c").links == 1
        assert slurp(archive, "b/c") == b"in it"
        archive.close()

    @pytest.mark.parametrize("name", ["../x", "a/../../x", "a/..", "x" * 256, "y/" * 3000])
    def test_names_that_lead_elsewhere_are_left_out(self, tmp_path, name):
        tar = tar_of((name, b"evil"), ("/abs//./f", b"good"), format=tarfile.PAX_FORMAT)
        archive = Archive(str(pack(tmp_path / "t.tar.lmz", tar)))
        assert [entry.name for entry in archive.list_directory(".")] == ["abs"]
        assert slurp(archive, "abs/f") == b"good"
        archive.close()

    def test_links_to_nowhere_are_left_out(self, tmp_path):
        members = []
        for name, target in (("a", "none"), ("b", "../f"), ("c", "."), ("d", "d")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.LNKTYPE, target
            members.append(link)
        archive = Archive(str(pack(tmp_path / "t.tar.lmz", tar_of(*members, ("f", b"1")))))
        assert [entry.name for entry in archive.list_directory(".")] == ["f"]
        archive.close()

    def test_cut_off(self, tmp_path):
        tar = tar_of(("a", DATA), ("b", DATA))
        for size in (600, 3000, len(DATA) + 1500, len(DATA) + 3000):
            path = pack(tmp_path / f"{size}.tar.lmz", tar[:size])
            with pytest.raises(FormatError, match="recover"):
                Archive(str(path))

    def test_no_tar_at_all(self, tmp_path):
        with pytest.raises(FormatError, match="another name"):
            Archive(str(pack(tmp_path / "t.tar.lmz", DATA)))

    def test_a_header_that_lies_makes_no_memory_full(self, tmp_path):
        info = tarfile.TarInfo("PaxHeader")
        info.type, info.size = tarfile.XHDTYPE, 1 << 33
        tar = info.tobuf(tarfile.USTAR_FORMAT if info.size < 1 << 33 else tarfile.GNU_FORMAT)
        with pytest.raises(FormatError, match="a header of"):
            Archive(str(pack(tmp_path / "t.tar.lmz", tar + bytes(5000))))

    def test_mutations_never_crash(self, tmp_path, tree):
        """Any bytes in the headers: an archive of some kind, or an error of ours."""
        tar, chance = tarred(tree, "--sparse", "--format=pax", "--xattrs"), random.Random(3)
        for _ in range(150):
            bad = bytearray(tar)
            for _ in range(3):
                at = chance.randrange(len(bad) // 512) * 512 + chance.randrange(512)
                bad[at] = chance.choice(b"\0\x80\xff019/")
            path = tmp_path / "m.tar.lmz"
            path.write_bytes(lmfs.compress(bytes(bad), chooser=Chooser(None, 1)))
            try:
                archive = Archive(str(path))
            except LmfsError:
                continue
            pending = ["."]
            while pending:
                directory = pending.pop()
                for entry in archive.list_directory(directory):
                    inner = f"{directory}/{entry.name}"
                    archive.attributes(inner)
                    if stat.S_ISDIR(entry.mode):
                        pending.append(inner)
                    elif stat.S_ISREG(entry.mode):
                        archive.read(archive.open(inner, os.O_RDONLY), 5000, 0)
            archive.close()


@pytest.fixture
def point(tmp_path):
    point = tmp_path.resolve() / "m"
    point.mkdir()
    yield point
    unmount(point)


class TestMounted:
    def test_a_tar_as_tar_itself_unpacks_it(self, tree, tmp_path, point):
        path = pack(tmp_path / "t.tar.lmz", tarred(tree, "--sparse", "--format=pax", "--xattrs"))
        mount(path, point)
        again = subprocess.run(
            ["tar", "-C", point, "--format=pax", "--sort=name", "-cf", "-", "."],
            stdout=subprocess.PIPE,
            check=True,
        )
        for root, data in ((tmp_path / "one", again.stdout), (tmp_path / "two", tarred(tree))):
            root.mkdir()
            subprocess.run(["tar", "-C", root, "-xpf", "-"], input=data, check=True)
        if shutil.which("rsync"):
            done = subprocess.run(
                ["rsync", "-aHAcni", "--delete", f"{tmp_path}/one/", f"{tmp_path}/two/"],
                capture_output=True,
                check=True,
            )
            assert done.stdout == b""
        subprocess.run(["cmp", tmp_path / "one/dir/f", tree / "dir/f"], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (point / "x").touch()
        assert os.statvfs(point).f_bavail == 0
        assert os.getxattr(point / "linked", "user.note") == b"\xff\x00"

    def test_one_file(self, tmp_path, point):
        path = pack(tmp_path / "book.txt.lmz", DATA)
        mount(path, point)
        assert os.listdir(point) == ["book.txt"]
        assert (point / "book.txt").read_bytes() == DATA
        with open(point / "book.txt", "rb") as file:
            os.fsync(file.fileno())
        done = run_lmfs("freeze", point)
        assert done.returncode == 9
        assert "an archive, not a store" in done.stderr
        assert run_lmfs("ctl", "stats", point).returncode == 0
        assert run_lmfs("ctl", "drop-caches", point).returncode == 0
        done = run_lmfs("umount", point)
        assert (done.returncode, done.stderr) == (0, "")

    def test_refusals(self, tmp_path, point):
        path = pack(tmp_path / "t.tar.lmz", DATA)
        done = run_lmfs("mount", path, point)
        assert done.returncode == 3
        assert "tar in it cannot be read" in done.stderr
        done = run_lmfs("mount", path)
        assert (done.returncode, "name an empty directory" in done.stderr) == (2, True)
        (tmp_path / "plain").write_bytes(DATA)
        done = run_lmfs("mount", tmp_path / "plain", point)
        assert done.returncode == 3
        assert "Traceback" not in done.stderr
