"""Files that are alike follow a shared primer: when one is made, found, proved, or left alone."""

from __future__ import annotations

import dataclasses
import os
import random

import pytest
from backing import Backing, text

from lmfs.codecs.choose import Chooser
from lmfs.codecs.levels import LEVELS
from lmfs.container import CodecId
from lmfs.errors import DamagedError, LmfsError
from lmfs.lmz import shared
from lmfs.store import families, primers
from lmfs.store.account import Account
from lmfs.store.content import open_frozen
from lmfs.store.families import Families
from lmfs.store.freeze import Action, freeze, thaw
from lmfs.store.fsck import Check
from lmfs.store.marks import Marks, State
from lmfs.store.primers import Primers
from lmfs.store.store import Store
from lmfs.store.walk import regular_files, sweep_tree

PIECE = 20_000
LEVEL = 4


@pytest.fixture(scope="module")
def log(data) -> list[bytes]:
    """Pieces of one log, as rotation makes them."""
    whole = (data / "dpkg.log").read_bytes()
    return [whole[at : at + PIECE] for at in range(0, len(whole) - PIECE, PIECE)]


@pytest.fixture(autouse=True)
def nothing_is_at_hand():
    shared.forget_states()


def plan(backing: Backing, tiny, path: str = ".", level: int = LEVEL) -> Families:
    files = list(regular_files(backing.store, path))
    return Families(backing.marks, files, Chooser(tiny, level), tiny)


def freeze_all(backing: Backing, tiny, path: str = ".", level: int = LEVEL) -> Families:
    families = plan(backing, tiny, path, level)
    for name, _ in regular_files(backing.store, path):
        chooser = families.chooser(name)
        freeze(backing.marks, name, chooser, model=tiny, primers=families.primers)
    return families


def followed(backing: Backing, name: str) -> bytes | None:
    return Primers(backing.store).followed_by(name)


def findings(backing: Backing) -> list:
    found: list = []
    check = Check(backing.marks, found.append)
    check.own_directory()
    for path, _ in check.files():
        check.structure(path)
    for path in check.frozen:
        found += check.content(path, lambda _: None)
    return found


def write_logs(backing: Backing, log, directory: str = "", names: str = "app.log.{}") -> list[str]:
    paths = [os.path.join(directory, names.format(i)) for i in range(len(log))]
    for path, piece in zip(paths, log, strict=True):
        backing.write(path, piece)
    return paths


@pytest.mark.parametrize("level", [4, 6, 8])
def test_rotated_logs_share_a_primer_that_pays(tmp_path, backing, tiny, log, level):
    paths = write_logs(backing, log)
    made = freeze_all(backing, tiny, level=level).made
    ((shared_id, size),) = made.items()
    assert backing.store.kept_primers() == {shared_id: size}
    assert backing.store.pinned_models().keys() == {tiny.id}
    assert {followed(backing, path) for path in paths} == {shared_id}
    alone = Backing(tmp_path / "alone")
    write_logs(alone, log)
    for path in paths:
        freeze(alone.marks, path, Chooser(tiny, level), model=tiny)
    without = sum((alone.path / path).stat().st_size for path in paths)
    alone.close()
    assert sum((backing.path / path).stat().st_size for path in paths) + size < 0.85 * without
    shared.forget_states()
    assert findings(backing) == []
    for path, piece in zip(paths, log, strict=True):
        assert thaw(backing.marks, path).action is Action.THAWED
        assert (backing.path / path).read_bytes() == piece


def test_chunks_that_the_model_codes_follow_it_as_well(backing, tiny, data, monkeypatch):
    level = dataclasses.replace(LEVELS[9], model_from=0.0, model_gain=0.0)
    monkeypatch.setitem(LEVELS, 9, level)
    prose = (data / "alice29.txt").read_bytes()
    paths = write_logs(backing, [prose[i : i + 30_000] for i in range(0, 150_000, 30_000)])
    text = prose[:60_000]
    store = backing.store
    kept = Primers(store)
    shared_id = kept.keep(text, kept.packed(text, tiny), tiny)
    coder = Chooser(tiny, 9)
    after = shared.shared_mixer(coder.shared_coding(shared_id), store.search)
    freeze(backing.marks, paths[4], coder.following((shared_id, after)), model=tiny)
    fd = os.open(backing.path / paths[4], os.O_RDONLY)
    with open_frozen(fd, backing.marks) as reader:
        (member,) = reader.members
        codings = [member.codings[n] for n in set(member.layout.codings.tolist())]
        shared.forget_states()
        assert reader.read() == prose[120_000:150_000]
    os.close(fd)
    assert (CodecId.LM, 0, shared_id) in {(c.codec, c.primer_bytes, c.shared_id) for c in codings}


def test_what_is_tried_is_about_what_is_coded(tiny, log):
    """What is tried is coded in a lane, the first chunk of a primer goes on with a state."""
    chooser = Chooser(tiny, 6)
    mixer = chooser.start()
    mixer.prime(log[0], shared.PIECE_BYTES)
    following = chooser.following((bytes(16), mixer))
    chunk = log[1][:8000]
    ((alone, after),) = chooser.sizes([chunk], [mixer], model=True)
    for coder, size in ((chooser, alone), (following, after)):
        ((_, blob),) = coder.choose([chunk], coder.primer())
        assert len(blob) == pytest.approx(size, rel=0.02)
    assert after < 0.9 * alone


def test_nothing_is_made_where_it_does_not_pay(backing, tiny, data):
    prose = (data / "alice29.txt").read_bytes()
    # Each file has letters and words of its own.
    rng = random.Random(1)
    for i in range(5):
        letters = rng.sample(range(97, 123), 12)
        words = [bytes(rng.choices(letters, k=7)) for _ in range(3000)]
        backing.write(f"own.{i}", b" ".join(rng.choices(words, k=2500)))
        backing.write(f"noise.{i}", rng.randbytes(PIECE))
    backing.write("few.1", prose[:PIECE])
    backing.write("few.2", prose[PIECE : 2 * PIECE])
    assert freeze_all(backing, tiny).made == {}
    assert not backing.store.primers.exists()


@pytest.mark.parametrize("unfit", ["few", "large", "linked", "frozen"])
def test_who_is_no_family(backing, tiny, log, unfit, monkeypatch):
    paths = write_logs(backing, log[: 3 if unfit == "few" else 8])
    if unfit == "large":
        monkeypatch.setattr(families, "MAX_FILE_BYTES", PIECE - 1)
    for path in paths:
        if unfit == "linked":
            os.link(backing.path / path, backing.path / f"other-{path}")
        if unfit == "frozen":
            freeze(backing.marks, path, Chooser(tiny, LEVEL), model=tiny)
    freeze_all(backing, tiny)
    assert backing.store.kept_primers() == {}


def test_a_file_that_comes_later_follows_its_likes(backing, tiny, log):
    write_logs(backing, log[:6], "logs")
    (shared_id,) = freeze_all(backing, tiny).made
    backing.write("logs/app.log.77", log[7])
    backing.write("logs/noise.log.3", random.Random(1).randbytes(PIECE))
    backing.write("elsewhere/app.log.77", log[7])
    for path in ("logs/app.log.77", "logs/noise.log.3", "elsewhere/app.log.77"):
        assert freeze_all(backing, tiny, path).made == {}
    assert followed(backing, "logs/app.log.77") == shared_id
    assert followed(backing, "logs/noise.log.3") is None
    assert followed(backing, "elsewhere/app.log.77") is None
    # A name of another stem, with the same suffix.
    backing.write("logs/other.log.1", log[8])
    freeze_all(backing, tiny, "logs/other.log.1")
    assert followed(backing, "logs/other.log.1") == shared_id


def test_a_family_that_comes_later_makes_no_second_primer(backing, tiny, log):
    write_logs(backing, log[:5])
    (shared_id,) = freeze_all(backing, tiny).made
    later = write_logs(backing, log[5:], names="app.log.9{}")
    assert freeze_all(backing, tiny).made == {}
    assert {followed(backing, path) for path in later} == {shared_id}


def test_files_of_many_directories_are_a_family_at_last(backing, tiny, log):
    for i, piece in enumerate(log):
        backing.write(f"host{'abcdefghijk'[i]}/messages", piece)
    assert len(freeze_all(backing, tiny).made) == 1


def test_nothing_new_follows_a_damaged_primer(backing, tiny, log):
    write_logs(backing, log[:6])
    (shared_id,) = freeze_all(backing, tiny).made
    path = backing.store.primers / shared.file_name(shared_id)
    stored = path.read_bytes()
    path.write_bytes(stored[:300] + bytes([stored[300] ^ 4]) + stored[301:])
    shared.forget_states()
    backing.write("app.log.50", log[7])
    freeze_all(backing, tiny, "app.log.50")
    assert backing.facts("app.log.50").state is State.FROZEN
    assert followed(backing, "app.log.50") is None
    assert {finding.kind.value for finding in findings(backing)} == {
        "primer-damaged",
        "primer-missing",
    }


def test_recovery_finds_what_the_store_keeps(run, backing, tiny, log, tmp_path):
    paths = write_logs(backing, log)
    freeze_all(backing, tiny)
    shared.forget_states()
    code, _, _ = run("recover", backing.path / paths[3], "-o", tmp_path / "out")
    assert code == 0
    assert (tmp_path / "out").read_bytes() == log[3]


class TestKeeping:
    TEXT = text(40_000)

    @pytest.fixture
    def kept(self, backing) -> Primers:
        return Primers(backing.store)

    def test_it_is_proved_once_and_again_when_it_changed(self, backing, tiny, kept, monkeypatch):
        shared_id = kept.keep(self.TEXT, kept.packed(self.TEXT, tiny), tiny)
        read = []
        monkeypatch.setattr(
            primers, "find_text", lambda *args: read.append(1) or shared.find_text(*args)
        )
        kept.prove(shared_id)
        kept.prove(shared_id)
        assert len(read) == 1
        path = backing.store.primers / shared.file_name(shared_id)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(DamagedError, match=shared_id.hex()):
            kept.prove(shared_id)
        path.unlink()
        with pytest.raises(DamagedError, match=shared_id.hex()):
            kept.prove(shared_id)

    def test_a_damaged_one_is_replaced(self, backing, tiny, kept):
        stored = kept.packed(self.TEXT, tiny)
        shared_id = kept.keep(self.TEXT, stored, tiny)
        path = backing.store.primers / shared.file_name(shared_id)
        path.write_bytes(stored[:-5])
        assert kept.keep(self.TEXT, stored, tiny) == shared_id
        assert path.read_bytes() == stored

    def test_what_does_not_read_back_is_not_kept(self, backing, tiny, kept):
        stored = bytearray(kept.packed(self.TEXT, tiny))
        stored[200] ^= 1
        with pytest.raises(LmfsError):
            kept.keep(self.TEXT, bytes(stored), tiny)
        other = kept.packed(self.TEXT[1:], tiny)
        with pytest.raises(DamagedError, match="content"):
            kept.keep(self.TEXT, other, tiny)
        assert list(backing.store.primers.iterdir()) == []

    @pytest.mark.parametrize("step", ["fsync", "rename"])
    def test_a_crash_leaves_nothing_under_its_name(self, backing, tiny, kept, step, monkeypatch):
        backing.store.pin_model(tiny.id, tiny.path)
        backing.store.primers.mkdir()
        stored = kept.packed(self.TEXT, tiny)
        pid = os.fork()
        if not pid:
            monkeypatch.setattr(os, step, lambda *_, **__: os._exit(9))
            kept.keep(self.TEXT, stored, tiny)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        (left,) = backing.store.primers.iterdir()
        assert backing.store.temporary_inode(left.name) is not None
        assert [finding.kind.value for finding in findings(backing)] == ["leftover"]
        assert sweep_tree(backing.marks) == [f".lmfs/primers/{left.name}"]
        assert list(backing.store.primers.iterdir()) == []


def test_the_command(run, backing, tiny, log, monkeypatch):
    monkeypatch.setattr("lmfs.models.registry.shipped", lambda: tiny)
    write_logs(backing, log)
    code, out, _ = run("freeze", "--level", LEVEL, backing.path)
    assert code == 0
    assert "made 1 shared primer, " in out
    code, out, _ = run("status", backing.path)
    assert code == 0
    assert "shared primers" in out
    with Store.open(backing.path) as store:
        account = Account()
        account.add(Marks(store), ".")
        assert account.primers == store.kept_primers()
    run("thaw", backing.path)
    (path,) = backing.store.primers.iterdir()
    path.unlink()
    code, out, _ = run("freeze", "--level", LEVEL, "--no-shared", backing.path)
    assert code == 0
    assert "shared primer" not in out
    assert backing.store.kept_primers() == {}
