"""fsck finds whatever is wrong and names its place; repair adds and moves aside, nothing else."""

from __future__ import annotations

import json
import os
import random
import threading

import pytest
from backing import CHUNK, Backing, mount, text, unmount
from containers import reader

import lmfs.cli
from lmfs.codecs.choose import Chooser
from lmfs.container import CodecId
from lmfs.errors import LmfsError
from lmfs.lmz import shared
from lmfs.store import publish
from lmfs.store.content import open_frozen
from lmfs.store.findings import Finding, Kind
from lmfs.store.freeze import freeze, thaw
from lmfs.store.fsck import Check
from lmfs.store.marks import FROZEN_MARK, State
from lmfs.store.repair import Repair

DATA = text(20 * CHUNK + 5)


def check(backing, *, deep=True) -> list[Finding]:
    found: list[Finding] = []
    one = Check(backing.marks, found.append)
    one.own_directory()
    for path, _ in list(one.files()):
        one.structure(path)
    one.unused_parity()
    if deep:
        for path in list(one.frozen):
            found += one.content(path, lambda _: None)
    return found


def kinds(backing, **options) -> list[Kind]:
    return [finding.kind for finding in check(backing, **options)]


def flip(path, at, bit=0x10):
    stored = bytearray(path.read_bytes())
    stored[at] ^= bit
    path.write_bytes(stored)


def everything(root):
    """Every user's file's bytes, and what only root sees."""
    return {p: p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


class TestFindings:
    def test_a_whole_store(self, backing):
        backing.write_frozen("a/f", DATA)
        backing.write("h", DATA)
        assert check(backing) == []

    def test_the_places_of_damage(self, backing):
        path = backing.write_frozen("f", DATA)
        os.removexattr(path, FROZEN_MARK)  # else flips of the ends are told from the marks
        size = path.stat().st_size
        stored = path.read_bytes()
        for at, kind, offset in (
            (30, Kind.STRUCTURE, 0),
            (size - 60, Kind.STRUCTURE, None),
            (size // 2, Kind.CONTENT, None),
        ):
            flip(path, at)
            (finding,) = [f for f in check(backing) if f.kind.is_error]
            assert (finding.kind, finding.path) == (kind, "f"), at
            if offset is not None:
                assert finding.offset == offset
            else:
                assert at - 2 * CHUNK < finding.offset <= at
            assert "lmfs repair" in finding.do
            path.write_bytes(stored)

    def test_marks(self, backing):
        path = backing.write_frozen("f", DATA)
        os.truncate(path, 99)
        (finding,) = check(backing)
        assert (finding.kind, finding.problem) == (Kind.MARKS, "no whole trailer")

    def test_without_deep_only_the_structure_is_read(self, backing):
        path = backing.write_frozen("f", DATA)
        flip(path, path.stat().st_size // 2)
        assert kinds(backing, deep=False) == []
        assert kinds(backing) == [Kind.CONTENT]

    def test_two_damaged_chunks_are_two_findings(self, backing):
        path = backing.write_frozen("f", DATA)
        size = path.stat().st_size
        flip(path, size // 3)
        flip(path, 2 * size // 3)
        assert kinds(backing) == [Kind.CONTENT] * 2

    def test_a_lost_xattr_is_a_note(self, backing):
        os.removexattr(backing.write_frozen("f", DATA), FROZEN_MARK)
        (finding,) = check(backing)
        assert (finding.kind, finding.kind.is_error) == (Kind.MARK_MISSING, False)

    def test_leftovers_and_hidden_files(self, backing):
        backing.write("d/" + backing.store.new_temporary_name(7), b"")
        backing.write(backing.store.new_temporary_name(12345), b"yours")
        assert kinds(backing) == [Kind.HIDDEN, Kind.LEFTOVER]

    @pytest.mark.parametrize("step", ["created", "synced", "checked", "swapped", "durable"])
    def test_what_is_being_written_is_no_leftover(self, backing, monkeypatch, step):
        seen, steps = [], []

        def reached(name):
            steps.append(name)
            if name == step:
                seen.extend(check(backing))

        monkeypatch.setattr(publish, "reached", reached)
        backing.write("f", DATA)
        backing.freeze("f")
        assert step in steps
        assert seen == []

    def test_what_does_not_belong(self, backing, tmp_path):
        (backing.path / ".lmfs" / "junk").touch()
        os.symlink(tmp_path, backing.path / ".lmfs" / "primers")
        found = check(backing)
        assert {f.path for f in found} >= {".lmfs/junk", ".lmfs/primers"}

    def test_a_damaged_primer(self, backing):
        primers = backing.path / ".lmfs" / "primers"
        primers.mkdir()
        good = lmfs.compress(DATA, chooser=Chooser(None))
        primer = primers / shared.file_name(shared.primer_id(DATA))
        primer.write_bytes(good)
        assert kinds(backing) == []
        for wrong in (good[:-1], lmfs.compress(DATA[1:], chooser=Chooser(None))):
            primer.write_bytes(wrong)
            assert kinds(backing) == [Kind.PRIMER_DAMAGED]
        primer.rename(primers / "no name.lmz")
        assert kinds(backing) == [Kind.PRIMER_DAMAGED]


@pytest.fixture
def primed(tmp_path, tiny, data):
    """A store with a file that follows a shared primer; the primer's place; the content."""
    log = (data / "dpkg.log").read_bytes()
    primer, shared_id = log[:20_000], shared.primer_id(log[:20_000])
    backing = Backing(tmp_path / "b")
    backing.store.primers.mkdir()
    place = backing.path / ".lmfs" / "primers" / shared.file_name(shared_id)
    place.write_bytes(lmfs.compress(primer, chooser=Chooser(None)))
    backing.store.pin_model(tiny.id, tiny.path)
    backing.write("log", log[40_000:52_000])
    chooser = Chooser(tiny, 4, primer_bytes=0)
    mixer = shared.shared_mixer(chooser.shared_coding(shared_id), backing.store.search)
    chooser = chooser.following((shared_id, mixer))
    assert freeze(backing.marks, "log", chooser, model=tiny, chunk_size=500).reason is None
    yield backing, place, log[40_000:52_000]
    backing.close()


class TestSharedPrimers:
    def test_whole(self, primed):
        backing, _, _ = primed
        shared.forget_states()
        assert check(backing) == []

    def test_missing(self, primed, tmp_path, run):
        """Named for each file, though this process has the state behind it."""
        backing, place, _ = primed
        place.rename(tmp_path / "aside")
        (finding,) = check(backing)
        assert (finding.kind, finding.path) == (Kind.PRIMER_MISSING, "log")
        assert place.stem in finding.problem
        assert place.name in finding.do
        before = everything(backing.path)
        assert run("repair", "--deep", backing.path)[0] == 4
        assert everything(backing.path) == before
        (tmp_path / "aside").rename(place)
        assert check(backing) == []

    def test_damaged(self, primed):
        backing, place, _ = primed
        flip(place, 200)
        assert kinds(backing) == [Kind.PRIMER_DAMAGED, Kind.PRIMER_MISSING]

    def test_what_is_whole_behind_it_is_saved(self, primed, run):
        backing, _, before = primed
        path = backing.path / "log"
        flip(path, path.stat().st_size // 2)
        shared.forget_states()
        assert kinds(backing) == [Kind.CONTENT]
        assert run("repair", "--deep", backing.path)[0] == 4
        (hole,) = json.loads((backing.path / "log.recovered.json").read_text())["holes"]
        end = hole["start"] + hole["size"]
        assert hole["size"] < len(before)
        expected = before[: hole["start"]] + bytes(hole["size"]) + before[end:]
        assert (backing.path / "log.recovered").read_bytes() == expected


@pytest.fixture
def modelled(tmp_path, tiny, data):
    """A store with a file that needs a model."""
    backing = Backing(tmp_path / "b")
    backing.write("alice", (data / "alice29.txt").read_bytes()[3000:11000])
    chooser = Chooser(tiny, 8, primer_bytes=2048)
    assert freeze(backing.marks, "alice", chooser, model=tiny, chunk_size=2048).reason is None
    yield backing
    backing.close()


class TestModels:
    def test_missing(self, modelled, tiny):
        assert check(modelled) == []
        (pinned,) = modelled.store.models.iterdir()
        pinned.unlink()
        (finding,) = check(modelled)
        assert (finding.kind, finding.path, finding.model) == (
            *(Kind.MODEL_MISSING, "alice"),
            tiny.id,
        )

    def test_missing_but_known_is_copied(self, modelled, tiny, monkeypatch):
        (pinned,) = modelled.store.models.iterdir()
        pinned.unlink()
        monkeypatch.setenv("LMFS_MODEL_PATH", str(tiny.path.parent))
        (finding,) = check(modelled)
        assert finding.kind is Kind.MODEL_NOT_KEPT
        assert Repair(modelled.marks).settle(finding)[0]
        monkeypatch.delenv("LMFS_MODEL_PATH")
        assert check(modelled) == []

    def test_damaged(self, modelled):
        (pinned,) = modelled.store.models.iterdir()
        os.truncate(pinned, pinned.stat().st_size // 2)
        assert Kind.MODEL_DAMAGED in kinds(modelled)


class TestRepair:
    def test_a_damaged_file_stays_and_what_is_whole_is_beside_it(self, backing, run):
        path = backing.write_frozen("f", DATA)
        flip(path, path.stat().st_size // 2)
        before = everything(backing.path)
        code, out, _ = run("repair", "--deep", backing.path)
        assert code == 4
        assert "f.recovered" in out
        after = everything(backing.path)
        assert {p: after[p] for p in before} == before
        (hole,) = json.loads((backing.path / "f.recovered.json").read_text())["holes"]
        end = hole["start"] + hole["size"]
        expected = DATA[: hole["start"]] + bytes(hole["size"]) + DATA[end:]
        assert (backing.path / "f.recovered").read_bytes() == expected
        code, out, _ = run("repair", "--deep", backing.path)
        assert code == 4
        assert "is there already" in out

    @pytest.mark.parametrize("at", [2, 30, -3, -60])
    def test_damage_at_the_ends_costs_nothing(self, backing, run, at):
        data = random.Random(1).randbytes(100_000).hex().encode()  # so large: a header's copy
        path = backing.write_frozen("f", data)
        flip(path, at)
        assert run("repair", backing.path)[0] == 4
        assert (backing.path / "f.recovered").read_bytes() == data

    def test_notes_and_hidden_files(self, backing, run):
        path = backing.write_frozen("d/f", DATA)
        os.removexattr(path, FROZEN_MARK)
        backing.write("d/" + backing.store.new_temporary_name(7), b"")
        backing.write("d/" + backing.store.new_temporary_name(12345), b"yours")
        code, _, _ = run("repair", backing.path)
        assert code == 1
        assert check(backing) == []
        (found,) = (backing.path / "d").glob("found-*")
        assert found.read_bytes() == b"yours"
        assert len(list((backing.path / ".lmfs" / "aside").iterdir())) == 1
        assert backing.facts("d/f").state is State.FROZEN
        assert run("repair", backing.path)[0] == 0


class TestCommand:
    def test_clean(self, backing, run):
        backing.write_frozen("f", DATA)
        code, out, err = run("fsck", "--deep", backing.path)
        assert (code, err) == (0, "")
        assert "1 frozen and 0 hot files decoded: 0 errors, 0 notes" in out

    def test_damage(self, backing, run):
        path = backing.write_frozen("f", DATA)
        flip(path, path.stat().st_size // 2)
        code, out, _ = run("fsck", "--deep", "--json", backing.path)
        assert code == 4
        found = json.loads(out)
        (finding,) = found["findings"]
        assert (found["errors"], finding["kind"], finding["path"]) == (1, "content", "f")
        assert 0 < finding["offset"] < path.stat().st_size
        assert run("fsck", "--deep", path)[0] == 4  # a part of the store

    def test_no_store_and_no_description(self, backing, run, tmp_path):
        code, _, err = run("fsck", tmp_path)
        assert code == 8
        assert "not in a store" in err
        (backing.path / ".lmfs" / "store.json").write_bytes(b"{")
        code, _, err = run("fsck", backing.path)
        assert code == 4
        assert "store description" in err

    def test_state_needs_deep(self, backing, run, tmp_path):
        assert run("fsck", "--state", tmp_path / "s", backing.path)[0] == 2

    def test_an_interrupted_deep_check_goes_on(self, backing, run, tmp_path, monkeypatch):
        for name in "abcd":
            backing.write_frozen(name, DATA)
        flip(backing.path / "a", 1000)
        looked, content = [], Check.content

        def interrupted(self, path, progress):
            if path == "c" and "c" not in looked:
                looked.append("c")
                raise KeyboardInterrupt
            looked.append(path)
            return content(self, path, progress)

        monkeypatch.setattr(Check, "content", interrupted)
        state = tmp_path / "state"
        arguments = ("fsck", "--deep", "--state", state, backing.path)
        assert run(*arguments)[0] == 32
        assert state.exists()
        code, out, _ = run(*arguments)
        assert code == 4
        assert "error: a at byte" in out
        assert looked == ["a", "b", "c", "c", "d"]
        assert not state.exists()

    def test_a_mounted_store(self, backing, run, tmp_path):
        backing.write_frozen("f", DATA)
        path = backing.path.resolve()
        mount(path)
        try:
            assert run("fsck", "--deep", path)[0] == 0
            assert (path / "f").read_bytes() == DATA
        finally:
            unmount(path)


def test_beside_a_freezer(backing):
    """Files that are frozen and thawed meanwhile are never called damaged."""
    backing.write("f", DATA)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            backing.freeze("f")
            thaw(backing.marks, "f")

    worker = threading.Thread(target=work)
    worker.start()
    try:
        found = [finding for _ in range(40) for finding in check(backing)]
    finally:
        stop.set()
        worker.join()
    assert [f for f in found if f.kind.is_error] == []


def read_in_pieces(backing, name, size, step):
    """Each piece of the file: its bytes, or None where reading it was refused."""
    fd = os.open(backing.path / name, os.O_RDONLY)
    try:
        facts = backing.marks.facts_of_fd(fd)
        backing.marks.require_frozen_or_hot(facts, name)
        assert facts.state is State.FROZEN
        pieces = []
        with open_frozen(fd, backing.marks) as reader:
            for at in range(0, size, step):
                try:
                    pieces.append(reader.pread(step, at))
                except LmfsError:
                    pieces.append(None)
            return pieces
    except LmfsError:
        return [None] * len(range(0, size, step))
    finally:
        os.close(fd)


def rot(backing, name, whole, step, other, flips):
    """Flip bits anywhere in a frozen file, and every eighth in what it needs."""
    path = backing.path / name
    originals = {path: path.read_bytes(), other: other.read_bytes()}
    chance = random.Random(flips)
    found = harmless = partly = 0
    for number in range(flips):
        target = other if number % 8 == 0 else path
        stored = bytearray(originals[target])
        at = chance.randrange(len(stored))
        stored[at] ^= 1 << chance.randrange(8)
        target.write_bytes(stored)
        shared.forget_states()
        pieces = read_in_pieces(backing, name, len(whole), step)
        for i, piece in enumerate(pieces):
            assert piece in (None, whole[step * i : step * (i + 1)]), (number, at)
        errors = [f for f in check(backing) if f.kind.is_error]
        if None in pieces:
            assert errors, (number, at)
            found += 1
            partly += any(pieces)
        else:
            harmless += not errors
        if target is path and not errors:
            assert None not in pieces
        target.write_bytes(originals[target])
    print(f"\n{flips} flips: {found} refused ({partly} in a part), {harmless} harmless")
    assert check(backing) == []
    assert found > flips // 2


def test_bit_rot(modelled, data, request):
    """Random flips anywhere in a frozen file or its model: found, or harmless; never wrong bytes.

    --flips N sets how many.
    """
    (model,) = modelled.store.models.iterdir()
    whole = (data / "alice29.txt").read_bytes()[3000:11000]
    rot(modelled, "alice", whole, 2048, model, request.config.getoption("--flips"))


def test_bit_rot_in_strands(modelled, tiny, data, request):
    """The others behind the first, which is seen with the model."""
    whole = (data / "alice29.txt").read_bytes()[3000:20000]
    modelled.write("strands", whole)
    chooser = Chooser(tiny, primer_bytes=8192)
    outcome = freeze(modelled.marks, "strands", chooser, model=tiny, chunk_size=8192)
    assert outcome.reason is None
    stored = (modelled.path / "strands").read_bytes()
    with reader(stored, store_id=modelled.store.id) as frozen:
        (member,) = frozen.members
        codings = [member.codings[number] for number in member.layout.codings]
        assert {coding.codec for coding in codings} == {CodecId.LM}
        assert [coding.primer_bytes for coding in codings] == [8192] * 3
    (model,) = modelled.store.models.iterdir()
    rot(modelled, "strands", whole, 4096, model, request.config.getoption("--flips"))


def test_bit_rot_behind_a_shared_primer(primed, request):
    backing, place, whole = primed
    rot(backing, "log", whole, 500, place, request.config.getoption("--flips"))
