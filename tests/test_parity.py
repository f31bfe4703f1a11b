"""Parity: what is damaged on the disk is healed to the same bytes, or said not to be."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import pathlib
import random
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import tracemalloc

import pytest
import reedsolo
from backing import CHUNK, Backing, SweepsBeside, mount, run_lmfs, slurp, text, unmount
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fsck import check, everything, kinds
from test_hostile import outside  # noqa: F401

from lmfs.container import checksum
from lmfs.errors import DamagedError, LmfsError, VerifyError, VersionError
from lmfs.lmz.recovery import save_whole
from lmfs.store import freeze as freeze_module
from lmfs.store import parities, parity, publish
from lmfs.store.content import open_frozen
from lmfs.store.erasure import MOST_ROWS, checks_left, fill
from lmfs.store.findings import Kind
from lmfs.store.freeze import freeze, thaw
from lmfs.store.healed import HealedSource
from lmfs.store.marks import FROZEN_MARK, State
from lmfs.store.parities import want_percent
from lmfs.store.parity import BLOCK, MAX_FILE_BYTES, Parity, Shape
from lmfs.store.walk import sweep_tree
from lmfs.vfs import Vfs

DATA = text(200_000)
STORE_ID = bytes(range(16))


# ---------------------------------------------------------------------------------- the code


class TestCode:
    @pytest.mark.parametrize(("rows", "checks"), [(2, 1), (10, 3), (255, 5), (255, 127), (40, 39)])
    def test_it_is_that_of_another_library(self, rows, checks):
        data = [os.urandom(4) for _ in range(rows - checks)]
        parity = fill([*data, *[None] * checks], 4)
        for column in range(4):
            encoded = reedsolo.RSCodec(checks).encode(bytes(row[column] for row in data))
            assert bytes(encoded) == bytes(row[column] for row in [*data, *parity])

    @given(st.randoms(use_true_random=False))
    @settings(max_examples=20, deadline=None)
    def test_any_rows_may_be_lost(self, chance):
        rows = chance.randint(2, MOST_ROWS)
        checks = chance.randint(1, min(rows - 1, 20))
        data = [chance.randbytes(3) for _ in range(rows - checks)]
        whole = [*data, *fill([*data, *[None] * checks], 3)]
        assert not any(checks_left(whole, checks))
        lost = sorted(chance.sample(range(rows), chance.randint(1, checks)))
        left = [None if i in lost else row for i, row in enumerate(whole)]
        assert fill(left, 3) == [whole[i] for i in lost]


# ----------------------------------------------------------------------------- a parity file


class Case:
    """A file, its parity, and what becomes of them on a bad disk."""

    def __init__(self, tmp_path: pathlib.Path, size: int, percent: int) -> None:
        self.whole = random.Random(size).randbytes(size)
        self.path = tmp_path / "parity"
        out = io.BytesIO()
        parity.write(reader(self.whole), size, STORE_ID, percent, out)
        self.parity = out.getvalue()
        self.shape = Shape.plan(size, percent)
        assert len(self.parity) == self.shape.bytes

    def open(self, data: bytes | None = None) -> Parity:
        self.path.write_bytes(self.parity if data is None else data)
        return Parity(os.open(self.path, os.O_RDONLY), str(self.path))

    def healed(self, damaged: bytes, data: bytes | None = None, pread=None) -> bytes | None:
        source = HealedSource(pread or reader(damaged), len(damaged), self.open(data))
        pieces: list[bytes] = []
        try:
            return b"".join(pieces) if source.heal(pieces.append) else None
        finally:
            source.close()

    def blocks_of(self, stripe: int) -> list[int]:
        """Those of the file in a stripe."""
        return list(range(stripe, self.shape.content, self.shape.stripes))


def reader(data):
    return lambda size, offset: bytes(data[offset : offset + size])


def with_damaged(
    data: bytes, blocks, chance=random, start: int = 0, *, whole: bool = False
) -> bytes:
    """These blocks of 512 bytes, from `start` on, each with a byte or all of it changed.

    whole: all of each, for a single byte may be one of the filling
    """
    changed = bytearray(data)
    for block in blocks:
        begin = start + block * BLOCK
        end = min(begin + BLOCK, len(changed))
        if not whole and chance.random() < 0.5:
            changed[chance.randrange(begin, end)] ^= 1 << chance.randrange(8)
        else:
            changed[begin:end] = bytes(b ^ 0x55 for b in changed[begin:end])
    return bytes(changed)


SIZES = [1, 511, 512, 513, 5_000, 170_000]


class TestFile:
    @pytest.mark.parametrize("percent", [1, 5, 30])
    @pytest.mark.parametrize("size", SIZES)
    def test_what_is_promised_is_healed(self, tmp_path, size, percent):
        case, chance = Case(tmp_path, size, percent), random.Random(percent)
        with case.open() as opened:
            parity.prove(opened, reader(case.whole), size)
        assert case.shape.rows + case.shape.checks <= MOST_ROWS
        assert case.shape.checks * 100 >= case.shape.rows * percent
        for _ in range(2):
            lost: list[int] = []
            for stripe in range(case.shape.stripes):
                blocks = case.blocks_of(stripe)
                lost += chance.sample(blocks, min(len(blocks), case.shape.checks))
            damaged = with_damaged(case.whole, lost, chance)
            assert damaged != case.whole
            assert case.healed(damaged) == case.whole

    @pytest.mark.parametrize("size", [60_000, 300_000])
    def test_one_block_more_is_not(self, tmp_path, size):
        case = Case(tmp_path, size, 2)
        for stripe in range(case.shape.stripes):
            lost = case.blocks_of(stripe)[: case.shape.checks + 1]
            damaged = with_damaged(case.whole, lost)
            assert case.healed(damaged) is None
            source = HealedSource(reader(damaged), size, case.open())
            assert source.damaged_blocks() == len(lost)
            for block in range(case.shape.content):
                at = block * BLOCK
                count = min(BLOCK, size - at)
                if block in lost:
                    with pytest.raises(DamagedError, match="more is damaged"):
                        source.pread(count, at)
                else:
                    assert source.pread(count, at) == case.whole[at : at + count]
            source.close()

    def test_a_piece_of_the_disk(self, tmp_path):
        """As many blocks side by side as there are of parity, wherever they begin."""
        case = Case(tmp_path, 300_000, 2)
        burst = case.shape.stripes * case.shape.checks
        assert burst >= case.shape.content * 0.02
        for first in (0, 7, case.shape.content - burst):
            damaged = with_damaged(case.whole, range(first, first + burst))
            assert case.healed(damaged) == case.whole

    @pytest.mark.parametrize("change", [-3000, -1, 1, 3000])
    def test_a_file_that_was_cut_or_has_grown(self, tmp_path, change):
        case = Case(tmp_path, 60_000, 20)
        damaged = (case.whole + bytes(5000))[: 60_000 + change]
        assert case.healed(damaged) == case.whole
        assert case.healed(case.whole[:30_000]) is None

    def test_blocks_that_the_disk_refuses_to_read(self, tmp_path):
        case = Case(tmp_path, 60_000, 10)
        bad = range(40, 48)

        def pread(size, offset):
            if any(offset < (b + 1) * BLOCK and offset + size > b * BLOCK for b in bad):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return case.whole[offset : offset + size]

        assert case.healed(case.whole, pread=pread) == case.whole

    def test_damage_to_the_parity_file(self, tmp_path):
        """Any of its blocks, and a block of the file beside it."""
        case = Case(tmp_path, 70_000, 5)
        for block in range(-(-len(case.parity) // BLOCK)):
            damaged_parity = with_damaged(case.parity, [block], whole=True)
            damaged = with_damaged(case.whole, [block % case.shape.content])
            with case.open(damaged_parity) as opened, pytest.raises(VerifyError):
                parity.prove(opened, reader(case.whole), len(case.whole))
            assert case.healed(case.whole, damaged_parity) == case.whole, block
            assert case.healed(damaged, damaged_parity) == case.whole, block

    def test_both_headers_and_all_of_the_table(self, tmp_path):
        case = Case(tmp_path, 60_000, 5)
        ends = with_damaged(case.parity, [0], whole=True)
        ends = ends[:-4] + bytes(4)
        with pytest.raises(DamagedError):
            case.open(ends)
        table = range(case.shape.table)
        no_table = with_damaged(case.parity, table, start=case.shape.table_at)
        assert case.healed(case.whole, no_table) == case.whole
        damaged = with_damaged(case.whole, range(case.shape.checks + 1))
        assert case.healed(damaged, no_table) is None

    def test_random_damage_to_both(self, tmp_path):
        case, chance = Case(tmp_path, 60_000, 5), random.Random(9)
        healed = 0
        for _ in range(60):
            damaged, damaged_parity = bytearray(case.whole), bytearray(case.parity)
            for _ in range(chance.randint(1, 12)):
                target = chance.choice([damaged, damaged_parity])
                target[chance.randrange(len(target))] ^= 1 << chance.randrange(8)
            try:
                found = case.healed(bytes(damaged), bytes(damaged_parity))
            except LmfsError:
                found = None
            assert found in (None, case.whole)
            healed += found is not None
        assert 30 < healed < 60

    def test_its_bytes_stay_as_they_are(self, tmp_path):
        """Parity that was written once must be understood for ever."""
        case = Case(tmp_path, 60_000, 5)
        assert hashlib.sha256(case.parity).hexdigest() == (
            "95505005a3a27039e1837c8509e341f87e6a3fb82441b8733264e72e7b4ae753"
        )

    def test_a_proof_that_can_fail(self, tmp_path):
        case = Case(tmp_path, 60_000, 5)
        with case.open() as opened, pytest.raises(VerifyError, match="another file"):
            parity.prove(opened, reader(case.whole[:-1] + b"\0"), 60_000)
        # One block of parity is wrong, and every checksum says that it is right.
        at = case.shape.parity_at + 3 * BLOCK
        lie = with_damaged(case.parity, [0], start=at)
        lie = resealed(lie, case.shape)
        with case.open(lie) as opened:
            assert opened.damaged_blocks() == 0
            with pytest.raises(VerifyError, match="stripes"):
                parity.prove(opened, reader(case.whole), 60_000)
        assert case.healed(with_damaged(case.whole, case.blocks_of(0)[:4]), lie) is None


def resealed(data: bytes, shape: Shape, **changes) -> bytes:
    """A parity file whose lists and headers fit its blocks again; and with a header that lies."""
    blocks = range(shape.table_at, shape.list_at, BLOCK)
    listed = b"".join(struct.pack("<I", checksum(data[at : at + BLOCK])) for at in blocks)
    names = [
        "magic",
        "store",
        "tail",
        "head",
        "size",
        "digest",
        "block",
        "stripes",
        "checks",
        "percent",
        "version",
        "listed",
    ]
    layout = struct.Struct("<8s16s8s8sQ32sIIIIII")
    fields = dict(zip(names, layout.unpack_from(data), strict=True))
    fields |= {"listed": checksum(listed)} | changes
    header = layout.pack(*fields.values())
    header += struct.pack("<I", checksum(header))
    front = (header + listed).ljust(shape.table_at, b"\0")
    return front + data[shape.table_at : shape.list_at] + listed + header


class TestHostile:
    LIES = (
        {"size": 0},
        {"size": 1 << 63},
        {"size": MAX_FILE_BYTES + 1},
        {"stripes": 0},
        {"stripes": 1 << 31},
        {"checks": 0},
        {"checks": 200},
        {"checks": (1 << 32) - 1},
        {"percent": 0},
        {"percent": 1000},
        {"block": 1},
        {"block": 1 << 31},
        {"version": 0},
    )

    @pytest.mark.parametrize("lie", LIES, ids=str)
    def test_a_header_that_lies_is_refused(self, tmp_path, lie):
        case = Case(tmp_path, 60_000, 5)
        with pytest.raises(DamagedError):
            case.open(resealed(case.parity, case.shape, **lie))

    def test_a_lie_that_only_the_hash_shows(self, tmp_path):
        case = Case(tmp_path, 60_000, 5)
        assert case.healed(case.whole, resealed(case.parity, case.shape)) == case.whole
        assert case.healed(case.whole, resealed(case.parity, case.shape, size=59_000)) is None
        assert case.healed(case.whole, resealed(case.parity, case.shape, digest=bytes(32))) is None

    def test_a_newer_version(self, tmp_path):
        case = Case(tmp_path, 60_000, 5)
        with pytest.raises(VersionError):
            case.open(resealed(case.parity, case.shape, version=2))

    def test_memory_is_bounded_by_what_is_there(self, tmp_path):
        """Whatever the header claims of a file, its length is compared before anything is read."""
        case = Case(tmp_path, 60_000, 5)
        largest = resealed(case.parity, case.shape, size=MAX_FILE_BYTES, stripes=1 << 18)
        tracemalloc.start()
        try:
            with pytest.raises(DamagedError):
                case.open(largest)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()

    @given(st.data())
    @settings(max_examples=100, deadline=None)
    def test_any_bytes(self, tmp_path_factory, data):
        case = Case(tmp_path_factory.mktemp("hostile"), 3_000, 5)
        changed = bytearray(case.parity)
        for _ in range(data.draw(st.integers(1, 5))):
            at = data.draw(st.integers(0, len(changed) - 1))
            changed[at] = data.draw(st.integers(0, 255))
        changed = changed[: data.draw(st.integers(0, len(changed)))] or changed
        damaged = with_damaged(case.whole, [2])
        with contextlib.suppress(LmfsError):
            assert case.healed(damaged, bytes(changed)) in (None, case.whole)

    def test_no_symlink_is_followed(self, backing, outside, run):  # noqa: F811
        os.symlink(outside, backing.path / ".lmfs" / "parity")
        want_percent(backing.store, 5)
        backing.write("f", DATA)
        with pytest.raises(NotADirectoryError):
            backing.freeze("f")
        assert backing.facts("f").state is State.HOT
        want_percent(backing.store, 0)
        assert backing.freeze("f").reason is None
        thaw(backing.marks, "f")
        with pytest.raises(NotADirectoryError):
            sweep_tree(backing.marks)
        assert Kind.STORE in kinds(backing)
        assert run("status", backing.path)[0] == 0

    def test_what_is_no_parity_is_not_read(self, protected, run):
        path = protected.write_frozen("f", DATA)
        (name,) = protected.marks.parities.names()
        own = protected.path / ".lmfs" / "parity" / name
        for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)):
            own.unlink() if not own.is_dir() else own.rmdir()
            make(own)
            flip_blocks(path, [3])
            assert not [f for f in check(protected) if f.can_be_healed]
            with pytest.raises(DamagedError):
                read(protected, "f")
            flip_blocks(path, [3])


# ------------------------------------------------------------------------------------ stores


@pytest.fixture
def protected(backing):
    """A store whose files get parity."""
    want_percent(backing.store, 5)
    return backing


def flip_blocks(path, blocks, bit=0x10):
    """Flip a bit in each of these blocks of 512 bytes; twice is as before. Leaves the times.

    In the first block it is one of the magic, in the last one of the trailer.
    """
    status = path.stat()
    with open(path, "r+b") as file:
        for block in blocks:
            is_last = (block + 1) * BLOCK >= status.st_size
            at = status.st_size - 20 if is_last else block * BLOCK + 7
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ bit]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def read(backing, name):
    fd = os.open(backing.path / name, os.O_RDONLY)
    try:
        with open_frozen(fd, backing.marks) as reader:
            return reader.pread(-1, 0)
    finally:
        os.close(fd)


def sweep(backing):
    """Sweeps until nothing changes: parity stays while a directory changes, if only by that."""
    time.sleep(0.05)
    removed = sweep_tree(backing.marks)
    time.sleep(0.05)
    return removed + sweep_tree(backing.marks)


def parity_names(backing):
    return backing.marks.parities.names()


class TestKeeping:
    def test_freezing_and_thawing(self, protected):
        path = protected.write("d/f", DATA)
        os.chown(path, 1234, 4321)
        outcome = protected.freeze("d/f")
        (name,) = parity_names(protected)
        own = protected.path / ".lmfs" / "parity" / name
        status = own.stat()
        assert name.endswith(f"-{path.stat().st_ino:x}")
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o600, 1234, 4321)
        assert outcome.after_bytes == (path.stat().st_blocks + status.st_blocks) * 512
        assert check(protected) == []
        os.rename(path, protected.path / "g")
        assert check(protected) == []
        thaw(protected.marks, "g")
        assert parity_names(protected) == []

    def test_a_store_that_is_not_set_to(self, backing):
        backing.write_frozen("f", DATA)
        assert not (backing.path / ".lmfs" / "parity").exists()

    def test_the_setting(self, backing, run):
        for nonsense in ("-1", "101", "2.5", "all"):
            assert run("freeze", "--parity", nonsense, backing.path)[0] == 2
        backing.write("f", DATA)
        assert run("freeze", "--level", "1", "--parity", "7", backing.path)[0] == 0
        (name,) = parity_names(backing)
        with backing.marks.parities.open(name) as opened:
            assert opened.header.percent == 7
        backing.write("g", text(90_000, 2))
        assert run("freeze", "--level", "1", backing.path)[0] == 0
        assert len(parity_names(backing)) == 2
        backing.write("h", text(90_000, 3))
        assert run("freeze", "--level", "1", "--parity", "0", backing.path)[0] == 0
        assert len(parity_names(backing)) == 2
        description = json.loads((backing.path / ".lmfs" / "store.json").read_text())
        assert description["config"] == {}

    def test_a_setting_that_is_nonsense(self, backing, run):
        backing.store.configure("parity", "much")
        backing.write("f", DATA)
        code, _, err = run("freeze", "--level", "1", backing.path)
        assert code == 5
        assert "--parity" in err
        assert run("fsck", backing.path)[0] == 0
        assert run("freeze", "--level", "1", "--parity", "5", backing.path)[0] == 0
        assert len(parity_names(backing)) == 1

    def test_files_that_are_frozen_already(self, backing, run):
        path = backing.write_frozen("f", DATA)
        damaged = backing.write_frozen("g", text(90_000, 2))
        flip_blocks(damaged, [3])
        code, out, err = run("freeze", "--level", "1", "--parity", "5", backing.path)
        assert code == 5
        assert "frozen already, and now with parity" in out
        assert "g: damaged chunk" in err or "damaged" in err
        (name,) = parity_names(backing)
        assert name.endswith(f"-{path.stat().st_ino:x}")
        assert "left 1: frozen already\n" in run("freeze", "--level", "1", backing.path)[1] + "\n"

    def test_files_of_the_same_bytes_have_their_own(self, protected):
        for name in "fg":
            protected.write_frozen(name, DATA)
        assert len(parity_names(protected)) == 2
        thaw(protected.marks, "f")
        (left,) = parity_names(protected)
        assert left.endswith(f"-{(protected.path / 'g').stat().st_ino:x}")
        flip_blocks(protected.path / "g", [5])
        assert read(protected, "g") == DATA

    def test_it_goes_with_the_last_name(self, protected):
        vfs = Vfs(protected.store)
        try:
            for name in "fghi":
                protected.write_frozen(name, text(90_000, ord(name)))
            vfs.remove_file("f")
            assert len(parity_names(protected)) == 3
            vfs.rename("g", "h")  # h is replaced
            assert len(parity_names(protected)) == 2
            vfs.truncate("i", 0)
            assert len(parity_names(protected)) == 1
            assert slurp(vfs, "h") == text(90_000, ord("g"))
            assert check(protected) == []
        finally:
            vfs.close()

    def test_a_patched_file_that_is_frozen_anew(self, protected, monkeypatch):
        monkeypatch.setenv("LMFS_OVERLAYS", "1")
        path = protected.write_frozen("f", DATA)
        (before,) = parity_names(protected)
        vfs = Vfs(protected.store)
        try:
            handle = vfs.open("f", os.O_RDWR)
            vfs.write(handle, b"new", 5)
            vfs.release(handle)
            assert protected.facts("f").state is State.PATCHED
            flip_blocks(path, [9])
            expected = DATA[:5] + b"new" + DATA[8:]
            assert slurp(vfs, "f") == expected
            protected.freeze("f")
            (after,) = parity_names(protected)
            assert after != before
            assert slurp(vfs, "f") == expected
        finally:
            vfs.close()
        assert check(protected) == []

    def test_a_disk_that_is_full(self, small_disk):
        backing = Backing(small_disk)
        try:
            want_percent(backing.store, 50)
            path = backing.write("f", os.urandom(150_000).hex().encode())
            rest = backing.write("rest", os.urandom(570_000))
            with pytest.raises(OSError, match="No space"):
                backing.freeze("f")
            assert backing.facts("f").state is State.HOT
            assert path.stat().st_size == 300_000
            assert backing.leftovers() == []
            assert os.listdir(backing.path / ".lmfs" / "parity") == []
            want_percent(backing.store, 0)
            assert backing.freeze("f").reason is None  # the parity it was that had no room
            assert rest.stat().st_size == 570_000
        finally:
            backing.close()

    def test_a_disk_that_errs_publishes_nothing(self, protected, monkeypatch):
        def erring(rows, width):
            return [bytes(len(row)) for row in fill(rows, width)]

        monkeypatch.setattr(parity, "fill", erring)
        path = protected.write("f", DATA)
        with pytest.raises(VerifyError, match="does not heal"):
            protected.freeze("f")
        assert path.read_bytes() == DATA
        assert os.listdir(protected.path / ".lmfs" / "parity") == []

    def test_nothing_is_left_when_publishing_fails(self, protected, monkeypatch):
        def reached(step):
            if step == "checked":
                raise OSError(errno.EIO, "no")

        protected.write("f", DATA)
        monkeypatch.setattr(publish, "reached", reached)
        with pytest.raises(OSError, match="no"):
            protected.freeze("f")
        assert parity_names(protected) == []


KILLER = """
import os, signal, sys
from lmfs.codecs.choose import Chooser
from lmfs.store import freeze as freeze_module, heal as heal_module, parities, publish
from lmfs.store.marks import Marks
from lmfs.store.store import Store

seen = []

def reached(step):
    seen.append(step)
    if step == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

parities.reached = publish.reached = freeze_module.reached = heal_module.reached = reached
marks = Marks(Store.open(sys.argv[1]))
if sys.argv[2] == "freeze":
    freeze_module.freeze(marks, "f", Chooser(None), chunk_size=4096)
elif sys.argv[2] == "thaw":
    freeze_module.thaw(marks, "f")
else:
    from lmfs.store.findings import Finding, Kind
    from lmfs.store.repair import Repair
    Repair(marks).settle(Finding(Kind.CONTENT, "f", "", "", can_be_healed=True))
print(*seen)
"""

STEPS = [line.split()[0] for line in publish.__doc__.splitlines() if line.startswith("    ")]


def kill_at(backing, what, step):
    command = [sys.executable, "-c", KILLER, backing.path, what, step]
    return subprocess.run(command, capture_output=True, text=True, check=False)


class TestCrashes:
    def test_the_steps(self, protected):
        protected.write("f", DATA)
        done = kill_at(protected, "freeze", "none")
        verified = STEPS.index("verified") + 1
        assert done.stdout.split() == [*STEPS[:verified], "proved", *STEPS[verified:]]
        done = kill_at(protected, "thaw", "none")
        assert done.stdout.split() == [*STEPS, "dropped"]

    @pytest.mark.parametrize("step", ["proved", "checked", "swapped", "durable", "removed"])
    def test_freezing(self, protected, step):
        path = protected.write("f", DATA)
        assert kill_at(protected, "freeze", step).returncode == -signal.SIGKILL
        swapped = step in ("swapped", "durable", "removed")
        assert protected.facts("f").state is (State.FROZEN if swapped else State.HOT)
        sweep(protected)
        assert protected.leftovers() == []
        assert len(parity_names(protected)) == swapped
        assert [f for f in check(protected) if f.kind.is_error] == []
        if swapped:
            flip_blocks(path, [3])
            assert read(protected, "f") == DATA
        else:
            assert path.read_bytes() == DATA

    @pytest.mark.parametrize("step", ["swapped", "removed", "dropped"])
    def test_thawing(self, protected, step):
        path = protected.write_frozen("f", DATA)
        assert kill_at(protected, "thaw", step).returncode == -signal.SIGKILL
        assert path.read_bytes() == DATA
        if step != "dropped":
            assert Kind.PARITY_UNUSED in kinds(protected)
        sweep(protected)
        assert parity_names(protected) == []
        assert check(protected) == []

    @pytest.mark.parametrize("step", STEPS)
    def test_healing(self, protected, run, step):
        path = protected.write_frozen("f", DATA)
        whole = path.read_bytes()
        flip_blocks(path, [3])
        damaged = path.read_bytes()
        assert kill_at(protected, "heal", step).returncode == -signal.SIGKILL
        assert path.read_bytes() == (
            whole if step in ("swapped", "durable", "removed") else damaged
        )
        (aside,) = (protected.path / ".lmfs" / "aside").iterdir()
        assert aside.read_bytes() == damaged
        sweep_tree(protected.marks)
        assert protected.leftovers() == []
        assert read(protected, "f") == DATA
        run("repair", "--deep", protected.path)
        assert path.read_bytes() == whole
        assert len(parity_names(protected)) == 1


class TestSweep:
    def test_what_is_being_made_stays(self, protected, monkeypatch):
        protected.write("f", DATA)
        sweeps = SweepsBeside(protected.marks)
        for module in (publish, parities, freeze_module):
            monkeypatch.setattr(module, "reached", sweeps)
        assert protected.freeze("f").reason is None
        assert "proved" in sweeps.steps
        assert sweeps.finish() == []
        assert len(parity_names(protected)) == 1

    def test_a_file_that_was_removed_behind_our_back(self, protected):
        protected.write_frozen("f", DATA)
        protected.write_frozen("g", text(90_000, 2))
        (protected.path / "f").unlink()
        assert kinds(protected) == [Kind.PARITY_UNUSED]
        assert len(sweep(protected)) == 1
        assert check(protected) == []
        assert len(parity_names(protected)) == 1

    def test_that_of_a_damaged_file_stays(self, protected):
        """Also if it cannot be told whose it is without reading all of them."""
        path = protected.write_frozen("f", DATA)
        last = path.stat().st_size // BLOCK
        inode = path.stat().st_ino
        (name,) = parity_names(protected)
        # As after a copy: the inode tells nothing.
        own = protected.path / ".lmfs" / "parity"
        (own / name).rename(own / name.replace(f"-{inode:x}", "-77"))
        flip_blocks(path, [0])
        assert sweep(protected) == []
        flip_blocks(path, [last])
        assert sweep(protected) == []
        assert len(parity_names(protected)) == 1
        assert kinds(protected) == [Kind.MARKS]

    def test_a_copy_of_the_store(self, protected, tmp_path):
        names = {f"{i}": text(90_000, i) for i in range(4)}
        names["same"] = names["1"]
        for name, data in names.items():
            protected.write_frozen(name, data)
        copy = tmp_path / "copy"
        subprocess.run(["cp", "-a", "--reflink=never", protected.path, copy], check=True)
        other = Backing(copy)
        try:
            assert check(other) == []
            for name, data in names.items():
                flip_blocks(copy / name, [2, 30])
                assert read(other, name) == data
                flip_blocks(copy / name, [2, 30])
            assert sweep(other) == []
            inodes = {f"{(copy / name).stat().st_ino:x}" for name in names}
            assert {name.split("-")[2] for name in parity_names(other)} == inodes
            thaw(other.marks, "1")
            thaw(other.marks, "same")
            assert len(parity_names(other)) == 3
        finally:
            other.close()


# ----------------------------------------------------------------------------------- healing


class TestReading:
    def test_a_damaged_chunk_and_a_damaged_index(self, protected):
        path = protected.write_frozen("f", DATA)
        last = path.stat().st_size // BLOCK
        for blocks in ([1], [2, 30], [last - 1], [last], [0]):
            flip_blocks(path, blocks)
            assert read(protected, "f") == DATA, blocks
            flip_blocks(path, blocks)

    def test_more_than_can_be_healed_is_refused(self, protected):
        path = protected.write_frozen("f", DATA)
        (name,) = parity_names(protected)
        with protected.marks.parities.open(name) as opened:
            shape = opened.shape
        lost = range(3 * shape.stripes, (4 + shape.checks) * shape.stripes, shape.stripes)
        flip_blocks(path, lost)
        with pytest.raises(DamagedError):
            read(protected, "f")
        flip_blocks(path, lost[:1])
        assert read(protected, "f") == DATA

    def test_a_file_that_was_cut(self, protected):
        path = protected.write_frozen("f", DATA)
        size = path.stat().st_size
        os.truncate(path, size - BLOCK)
        assert read(protected, "f") == DATA

    def test_thawing_heals(self, protected):
        path = protected.write_frozen("f", DATA)
        flip_blocks(path, [5])
        thaw(protected.marks, "f")
        assert path.read_bytes() == DATA

    def test_through_a_mount(self, protected, tmp_path):
        path, other = protected.write_frozen("f", DATA), protected.write_frozen("g", DATA)
        flip_blocks(path, [9, 10])
        flip_blocks(other, [other.stat().st_size // BLOCK])  # its trailer: the marks
        point = tmp_path / "m"
        point.mkdir()
        mount(protected.path, point)
        try:
            assert (point / "f").read_bytes() == DATA
            with pytest.raises(OSError, match="Input/output"):
                (point / "g").read_bytes()
            done = run_lmfs("repair", "--deep", point)
            assert done.returncode == 1, done
            assert done.stdout.count("healed; as it was damaged") == 2
            assert (point / "g").read_bytes() == DATA
            assert run_lmfs("fsck", "--deep", point).returncode == 0
            (point / "g").unlink()
            until = time.monotonic() + 10  # if the kernel has not closed it yet, it goes then
            while len(parity_names(protected)) > 1 and time.monotonic() < until:
                time.sleep(0.05)
            (left,) = parity_names(protected)
            assert left.endswith(f"-{path.stat().st_ino:x}")
        finally:
            unmount(point)


class TestRepair:
    def test_random_damage_anywhere(self, protected, run):
        """Header, chunks, index and trailer; healed, or said not to be, never something else."""
        path = protected.write_frozen("f", DATA)
        whole, status = path.read_bytes(), path.stat()
        inode = protected.facts("f").inode
        (name,) = parity_names(protected)
        with protected.marks.parities.open(name) as opened:
            checks, stripes = opened.shape.checks, opened.shape.stripes
        assert stripes == 1
        chance = random.Random(4)
        everywhere = range(len(whole) // BLOCK + 1)
        for number in range(12):
            count = checks + (number % 3 == 2)
            ends = {everywhere[0] if number % 8 else everywhere[-1]} if number % 4 == 0 else set()
            blocks = {*chance.sample(everywhere[1:-1], count - len(ends)), *ends}
            flip_blocks(path, blocks)
            code, out, _ = run("repair", "--deep", protected.path)
            if count > checks:
                assert code == 4
                assert "more than its parity heals" in out
                flip_blocks(path, blocks)
                for beside in protected.path.glob("f.recovered*"):
                    beside.unlink()
                continue
            assert code == 1, out
            assert path.read_bytes() == whole
            now = path.stat()
            assert (now.st_mode, now.st_mtime_ns) == (status.st_mode, status.st_mtime_ns)
            assert protected.facts("f")[:3] == (State.FROZEN, len(DATA), inode)
            assert run("fsck", "--deep", protected.path)[0] == 0

    def test_what_fsck_says_and_what_is_kept(self, protected, run):
        path = protected.write_frozen("d/f", DATA)
        whole = path.read_bytes()
        flip_blocks(path, [4])
        damaged = path.read_bytes()
        before = everything(protected.path)
        code, out, _ = run("fsck", "--deep", protected.path)
        assert code == 4
        assert "damaged blocks of 512 bytes: 1, which can be healed; `lmfs repair` heals it" in out
        assert everything(protected.path) == before
        code, out, _ = run("fsck", "--deep", "--json", protected.path)
        (finding,) = json.loads(out)["findings"]
        assert finding["can_be_healed"]
        code, out, _ = run("repair", "--deep", protected.path)
        assert code == 1
        assert "healed; as it was damaged it is kept as .lmfs/aside/d%2Ff" in out
        assert path.read_bytes() == whole
        aside = protected.path / ".lmfs" / "aside" / "d%2Ff"
        assert aside.read_bytes() == damaged
        assert not list(protected.path.rglob("*.recovered*"))
        assert path.stat().st_nlink == 1

    def test_without_xattrs_and_both_ends(self, protected, run):
        """Only the blocks tell whose parity it is."""
        path = protected.write_frozen("f", DATA)
        protected.write_frozen("g", text(200_000, 7))
        whole = path.read_bytes()
        flip_blocks(path, [0, path.stat().st_size // BLOCK])
        assert protected.facts("f").state is State.DAMAGED
        assert run("repair", protected.path)[0] == 1
        assert path.read_bytes() == whole
        os.removexattr(path, FROZEN_MARK)
        flip_blocks(path, [0])
        assert run("repair", protected.path)[0] == 1
        assert path.read_bytes() == whole
        assert os.getxattr(path, FROZEN_MARK)

    @pytest.mark.parametrize("where", ["first", "middle", "last"])
    def test_sectors_that_the_disk_refuses_to_read(self, protected, run, monkeypatch, where):
        path = protected.write_frozen("f", DATA)
        whole, inode = path.read_bytes(), path.stat().st_ino
        shown = protected.facts("f").inode
        block = {"first": 0, "middle": 20, "last": len(whole) // BLOCK}[where]
        pread = os.pread

        def failing(fd, size, offset):
            begin, end = block * BLOCK, (block + 1) * BLOCK
            if os.fstat(fd).st_ino == inode and offset < end and offset + size > begin:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return pread(fd, size, offset)

        monkeypatch.setattr(os, "pread", failing)
        protected.marks.forget()
        assert read(protected, "f") == DATA
        code, out, _ = run("fsck", "--deep", protected.path)
        assert code == 4
        assert "damaged blocks of 512 bytes: 1, which can be healed" in out
        code, out, _ = run("repair", "--deep", protected.path)
        assert code == 1, out
        assert path.read_bytes() == whole
        assert protected.facts("f").inode == shown
        assert run("fsck", "--deep", protected.path)[0] == 0

    def test_lost_parity(self, protected, run):
        path = protected.write_frozen("f", DATA)
        (name,) = parity_names(protected)
        (protected.path / ".lmfs" / "parity" / name).unlink()
        assert read(protected, "f") == DATA
        code, out, _ = run("fsck", "--deep", protected.path)
        assert code == 0
        assert "note: f: no parity" in out
        flip_blocks(path, [4])
        code, out, _ = run("fsck", "--deep", protected.path)
        assert code == 4
        assert "healed" not in out
        flip_blocks(path, [4])
        assert run("freeze", "--level", "1", protected.path)[0] == 0
        assert check(protected) == []

    @pytest.mark.parametrize("block", [0, 1, 3, -1, None])
    def test_damaged_parity_is_made_anew(self, protected, run, block):
        path = protected.write_frozen("f", DATA)
        (name,) = parity_names(protected)
        own = protected.path / ".lmfs" / "parity" / name
        before = own.read_bytes()
        if block is None:
            own.write_bytes(b"")
        else:
            flip_blocks(own, [block % -(-len(before) // BLOCK)])
        assert read(protected, "f") == DATA
        code, out, _ = run("fsck", "--deep", protected.path)
        assert code == 0
        assert f"note: f: its parity .lmfs/parity/{name}" in out
        assert run("repair", "--deep", protected.path)[0] == 1
        assert own.read_bytes() == before
        assert check(protected) == []
        assert path.stat().st_nlink == 1

    def test_damaged_parity_that_still_heals_is_kept(self, protected, run):
        """Without --deep it is not known that the file is damaged, too."""
        path = protected.write_frozen("f", DATA)
        whole = path.read_bytes()
        (name,) = parity_names(protected)
        flip_blocks(protected.path / ".lmfs" / "parity" / name, [0])
        flip_blocks(path, [20])
        code, out, _ = run("repair", protected.path)
        assert code == 0
        assert "could not be repaired" in out
        assert parity_names(protected) == [name]
        assert not list((protected.path / ".lmfs" / "aside").iterdir())
        assert run("repair", "--deep", protected.path)[0] == 1
        assert path.read_bytes() == whole

    def test_parity_of_another_file_is_not_used(self, protected, run):
        """A lie: the name says that it is this file's."""
        path = protected.write_frozen("f", DATA)
        protected.write_frozen("g", text(200_000, 7))
        mine, other = (
            next(
                n
                for n in parity_names(protected)
                if n.endswith(f"-{(protected.path / x).stat().st_ino:x}")
            )
            for x in "fg"
        )
        own = protected.path / ".lmfs" / "parity"
        shutil.copy(own / other, own / mine)
        assert Kind.PARITY_DAMAGED in kinds(protected)
        flip_blocks(path, [4])
        damaged = path.read_bytes()
        with pytest.raises(DamagedError):
            read(protected, "f")
        assert run("repair", "--deep", protected.path)[0] == 4
        assert path.read_bytes() == damaged

    def test_a_healed_file_that_does_not_decode_is_not_published(self, protected, run, monkeypatch):
        path = protected.write_frozen("f", DATA)
        flip_blocks(path, [4])
        damaged = path.read_bytes()

        def verify(self, progress=None):
            raise DamagedError("as if")

        monkeypatch.setattr("lmfs.lmz.LmzReader.verify", verify)
        code, out, _ = run("repair", "--deep", protected.path)
        assert code == 4
        assert "cannot be read back" in out
        assert path.read_bytes() == damaged
        assert path.stat().st_nlink == 1
        assert protected.leftovers() == []

    def test_a_patched_file(self, protected, run, monkeypatch):
        monkeypatch.setenv("LMFS_OVERLAYS", "1")
        path = protected.write_frozen("f", DATA)
        vfs = Vfs(protected.store)
        try:
            handle = vfs.open("f", os.O_RDWR)
            vfs.write(handle, b"new", 5)
            vfs.release(handle)
            flip_blocks(path, [4])
            assert run("repair", "--deep", protected.path)[0] == 1
            assert protected.facts("f").state is State.PATCHED
            assert slurp(vfs, "f") == DATA[:5] + b"new" + DATA[8:]
        finally:
            vfs.close()
        assert [f for f in check(protected) if f.kind.is_error] == []


def test_recover_reads_a_file_with_parity_as_ever(protected):
    path = protected.write_frozen("f", DATA)
    flip_blocks(path, [4])
    with open(protected.path / "out", "w+b") as target:
        saved = save_whole(path, target)
    assert len(saved.holes) == 1


def test_status_counts_it(protected, run):
    for name in "fg":
        protected.write_frozen(name, DATA)
    code, out, _ = run("status", "--json", protected.path)
    assert code == 0
    found = json.loads(out)
    names = parity_names(protected)
    assert found["parity_files"] == len(names) == 2
    assert found["parity_bytes"] == sum(protected.marks.parities.stat(n).st_size for n in names)
    assert found["parity_on_disk"] >= found["parity_bytes"]
    _, out, _ = run("status", protected.path)
    assert "of parity" in out
    assert run("status", "--json", protected.path / "f")[1].count('"parity_files": 1') == 1


def test_help_teaches(run):
    out = run("freeze", "--help")[1]
    assert "--parity" in out
    assert "per cent" in out
    assert "parity" in run("repair", "--help")[1]


def test_a_frozen_file_is_small_and_so_is_its_parity(protected):
    path = protected.write_frozen("f", DATA)
    (name,) = parity_names(protected)
    assert path.stat().st_size > 7 * CHUNK
    assert protected.marks.parities.stat(name).st_size < 0.13 * path.stat().st_size
    assert freeze is freeze_module.freeze
