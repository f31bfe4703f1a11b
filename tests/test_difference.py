"""Packages that are a difference to another model: what they hold, where their base is found, and
the store that keeps both."""

from __future__ import annotations

import collections
import importlib.util
import io
import json
import shutil
import zipfile

import numpy as np
import pytest
from backing import Backing
from onnx import ModelProto, numpy_helper

from lmfs.cli import learn as cli_learn
from lmfs.codecs.choose import Chooser
from lmfs.engines.native import NativeEngine
from lmfs.engines.walk import walk
from lmfs.errors import DamagedError, EngineError, ModelError, UnknownModelError
from lmfs.lmz import LmzReader
from lmfs.models import registry
from lmfs.models.difference import apply_difference, read_arrays
from lmfs.models.package import ModelPackage, write_difference
from lmfs.models.verify import logits_digest, verify
from lmfs.models.weights import replace_weights
from lmfs.native import usable_isas
from lmfs.store import sample
from lmfs.store.freeze import freeze, thaw
from lmfs.store.freezing import freezing_model, use_model
from lmfs.store.fsck import Check, Finding, Kind
from lmfs.store.learning import Measured, Verdict
from lmfs.store.repair import Repair
from lmfs.store.store import Store

RANDOM = np.random.default_rng(11)


def initializers(tensors: dict[str, np.ndarray]) -> bytes:
    model = ModelProto()
    for name, array in tensors.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model.SerializeToString()


def factors(rows: int, columns: int, rank: int = 2) -> tuple[np.ndarray, np.ndarray]:
    left = RANDOM.integers(-60, 60, (rows, rank)).astype(np.int8)
    return left, RANDOM.integers(-20, 20, (rank, columns)).astype(np.int8)


def some_difference(base: ModelPackage) -> bytes:
    shape = read_arrays(base.weights)["head.weight"].shape
    left, right = factors(*shape)
    add = RANDOM.integers(-50, 50, shape[1]).astype(np.int8)
    return initializers(
        {"head.weight.left": left, "head.weight.right": right, "head.bias.add": add}
    )


def write(path, base: ModelPackage, difference: bytes | None = None, **card: object):
    difference = some_difference(base) if difference is None else difference
    with np.load(io.BytesIO(base.golden())) as golden:
        tokens = golden["tokens"]
    said = {
        "name": "other",
        "architecture": base.card["architecture"],
        "certificate": base.card["certificate"],
    }
    write_difference(path, card=said, base=base, difference=difference)
    package = ModelPackage.load(path, lambda _: base)
    said["golden"] = logits_digest(walk(NativeEngine(package), tokens, stepwise=True))
    write_difference(path, card=said | card, base=base, difference=difference)
    return path


def forget() -> None:
    """As in a new process: a package that was read once stays whole in memory."""
    registry._load_unchanged.cache_clear()


@pytest.fixture
def folder(tiny, tmp_path):
    """A folder with the tiny model, and a difference to it."""
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(tiny.path, folder / registry.file_name(tiny))
    write(folder / "other.lmm", tiny)
    return folder


@pytest.fixture
def other(folder) -> ModelPackage:
    return registry.load(folder / "other.lmm")


class TestWeights:
    def test_every_number_is_as_specified(self, tiny):
        """Against the specification's formula, in whole numbers of Python."""
        old = read_arrays(tiny.weights)
        left, right = factors(*old["layer0.out.weight"].shape, rank=3)
        right *= 6
        add = RANDOM.integers(-100, 100, old["head.bias"].shape).astype(np.int8)
        said = {
            "layer0.out.weight.left": left,
            "layer0.out.weight.right": right,
            "head.bias.add": add,
        }
        new = read_arrays(apply_difference(tiny.weights, initializers(said)))
        assert list(new) == list(old)
        for name in set(old) - {"layer0.out.weight", "head.bias"}:
            assert np.array_equal(new[name], old[name])
        assert np.array_equal(new["head.bias"], old["head.bias"] + add)
        matrix, clipped = old["layer0.out.weight"].tolist(), 0
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                product = sum(int(left[i, k]) * int(right[k, j]) for k in range(3))
                wanted = value + (product + 128) // 256
                clipped += not -64 <= wanted <= 63
                assert new["layer0.out.weight"][i, j] == max(-64, min(63, wanted))
        assert clipped

    def test_no_difference_is_the_same_file(self, tiny):
        assert apply_difference(tiny.weights, initializers({})) == tiny.weights

    @pytest.mark.parametrize(
        ("said", "complaint"),
        [
            ({"head.nothing.add": np.zeros(3, np.int8)}, "difference to nothing"),
            ({"head.weight.times": np.zeros(3, np.int8)}, "difference to nothing"),
            ({"head.bias.add": np.zeros(512, np.float32)}, "int8"),
            ({"head.bias.add": np.zeros(511, np.int8)}, "a sum"),
            ({"head.weight.add": np.zeros((64, 512), np.int8)}, "a sum"),
            ({"head.weight.left": np.zeros((64, 1), np.int8)}, "one factor without"),
            (
                {
                    "head.weight.left": np.zeros((64, 2), np.int8),
                    "head.weight.right": np.zeros((1, 512), np.int8),
                },
                "factors",
            ),
            (
                {
                    "head.bias.left": np.zeros((512, 1), np.int8),
                    "head.bias.right": np.zeros((1, 1), np.int8),
                },
                "factors",
            ),
            (
                {
                    "head.weight.left": np.zeros((64, 257), np.int8),
                    "head.weight.right": np.zeros((257, 512), np.int8),
                },
                "factors",
            ),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, tiny, said, complaint):
        with pytest.raises(ModelError, match=complaint):
            apply_difference(tiny.weights, initializers(said))

    def test_tensors_are_replaced_by_their_like_only(self, tiny):
        for wrong in (np.zeros(512, np.int8), np.zeros(511, np.float32)):
            with pytest.raises(ModelError, match="expected float32"):
                replace_weights(tiny.weights, {"head.bias": wrong})
        with pytest.raises(ModelError, match="no such tensor"):
            replace_weights(tiny.weights, {"nothing": np.zeros(1, np.int8)})


class TestPackage:
    def test_it_is_small_has_an_id_of_its_own_and_is_exact(self, tiny, other):
        assert other.id != tiny.id
        assert other.base is not None
        assert [package.id for package in other.together] == [tiny.id, other.id]
        assert other.size_bytes < 6000
        assert other.tokenizer_json == tiny.tokenizer_json
        findings = verify(other.path)
        assert len(findings) == 3 + 2 * len(usable_isas()) + 2 * 4
        wrong = [f for f in findings if not f.ok and not f.what.startswith("certificate")]
        assert not wrong  # the certificates on the card are the base's

    def test_verify_finds_a_wrong_digest(self, tiny, folder):
        write(folder / "bad.lmm", tiny, golden="0" * 64)
        bad = [f.what for f in verify(folder / "bad.lmm") if not f.ok]
        assert any(what.startswith("golden vectors native") for what in bad)
        assert any(what == "golden vectors step-uint8" for what in bad)

    def test_the_id_is_that_of_the_same_weights_in_a_whole_package(self, tiny, other, tmp_path):
        with zipfile.ZipFile(tiny.path) as source, zipfile.ZipFile(tmp_path / "w", "w") as whole:
            for name in source.namelist():
                same = name != "weights.onnx"
                whole.writestr(name, source.read(name) if same else other.weights)
        assert ModelPackage.load(tmp_path / "w").id == other.id

    def test_it_is_found_by_its_id_and_its_base_beside_it(self, other, folder, tiny):
        found = registry.find(other.id, [folder])
        assert found.base is not None
        assert found.base.path.parent == folder
        assert registry.find(tiny.id, [folder]).base is None

    def test_without_its_base_it_is_unknown(self, other, folder, tiny):
        forget()
        (folder / registry.file_name(tiny)).unlink()
        with pytest.raises(UnknownModelError, match=tiny.id.hex()):
            registry.load(folder / "other.lmm")
        with pytest.raises(UnknownModelError, match=other.id.hex()):
            registry.find(other.id, [folder])
        shutil.move(folder / "other.lmm", folder / registry.file_name(other))
        with pytest.raises(UnknownModelError, match=tiny.id.hex()):
            registry.find(other.id, [folder])

    def test_it_does_not_hide_others(self, folder, tiny, other):
        """Looking for any other model does not stumble over a difference without its base."""
        (folder / registry.file_name(tiny)).rename(folder / "zzz.lmm")
        assert registry.find(tiny.id, [folder]).id == tiny.id
        assert registry.find(other.id, [folder]).id == other.id
        (folder / "zzz.lmm").unlink()
        assert registry.find(registry.shipped().id, [folder]).name == registry.DEFAULT_MODEL

    def test_a_difference_to_a_difference_is_refused(self, folder, other, tiny):
        said = {"name": "third", "architecture": tiny.card["architecture"]}
        third = folder / "third.lmm"
        write_difference(third, card=said, base=other, difference=some_difference(other))
        with pytest.raises(UnknownModelError, match=other.id.hex()):
            registry.load(folder / "third.lmm")
        with pytest.raises(ModelError, match="cannot be one to"):
            ModelPackage.load(folder / "third.lmm", lambda _: other)
        with pytest.raises(ModelError, match="not a whole one"):
            ModelPackage.load(folder / "third.lmm")

    def test_a_base_of_another_architecture_is_refused(self, folder, tiny):
        architecture = {**tiny.card["architecture"], "layers": 1}
        write(folder / "bad.lmm", tiny, architecture=architecture)
        with pytest.raises(ModelError, match="cannot be one to"):
            registry.load(folder / "bad.lmm")

    @pytest.mark.parametrize("base", [7, "x", "00", None])
    def test_a_card_with_a_bad_base(self, folder, tiny, other, base):
        card = {**other.card, "base": base}
        with zipfile.ZipFile(folder / "bad.lmm", "w") as archive:
            archive.writestr("card.json", json.dumps(card))
        with pytest.raises(ModelError, match="unreadable model card"):
            registry.load(folder / "bad.lmm")

    def test_every_damaged_byte_is_noticed_or_harmless(self, folder, other):
        whole, path = other.path.read_bytes(), folder / "damaged.lmm"
        for at in range(0, len(whole), max(1, len(whole) // 200)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
            try:
                package = registry.load(path)
            except (ModelError, UnknownModelError):
                continue
            assert package.id == other.id
        for length in range(0, len(whole), max(1, len(whole) // 50)):
            path.write_bytes(whole[:length])
            with pytest.raises(ModelError):
                registry.load(path)


CHUNK = 2048


@pytest.fixture
def text(data) -> bytes:
    return (data / "alice29.txt").read_bytes()[3000 : 3000 + 6 * CHUNK + 77]


@pytest.fixture
def backing(tmp_path, other, text):
    """A store that freezes with the difference, and a file frozen with it."""
    backing = Backing(tmp_path / "b")
    use_model(backing.store, other)
    backing.write("alice", text)
    chooser = Chooser(freezing_model(backing.store), 8, primer_bytes=CHUNK)
    outcome = freeze(backing.marks, "alice", chooser, model=other, chunk_size=CHUNK)
    assert outcome.reason is None
    yield backing
    backing.close()


def check(backing: Backing) -> list[Finding]:
    findings: list[Finding] = []
    pass_ = Check(backing.marks, findings.append)
    pass_.own_directory()
    for path, _ in pass_.files():
        pass_.structure(path)
    return findings


class TestStore:
    def test_both_packages_are_kept(self, backing, tiny, other, folder):
        assert set(backing.store.pinned_models()) == {tiny.id, other.id}
        shutil.rmtree(folder)
        assert registry.find(other.id, [backing.store.models]).id == other.id
        assert check(backing) == []

    @pytest.mark.parametrize("engine", ["native", "ort"])
    def test_every_engine_reads_what_was_frozen(self, backing, text, engine, monkeypatch):
        monkeypatch.setenv("LMFS_ENGINE", engine)
        monkeypatch.setattr("lmfs.engines._engines", collections.OrderedDict())
        with (
            open(backing.path / "alice", "rb") as file,
            LmzReader(file, store_id=backing.store.id, model_search=backing.store.search) as reader,
        ):
            assert reader.statistics()["lm"].chunks
            assert reader.pread(len(text), 0) == text

    def test_a_lost_base_is_reported_and_what_needs_it_is_refused(self, backing, tiny, text):
        pinned = backing.store.models / registry.file_name(tiny)
        aside = pinned.read_bytes()
        pinned.unlink()
        forget()
        missing = [f for f in check(backing) if f.kind is Kind.MODEL_MISSING]
        assert {f.path for f in missing} >= {"alice", ".lmfs/store.json"}
        assert tiny.id in {f.model for f in missing}
        with pytest.raises(UnknownModelError, match=tiny.id.hex()):
            thaw(backing.marks, "alice")
        with pytest.raises(UnknownModelError, match="--use base-8"):
            freezing_model(backing.store)
        pinned.write_bytes(aside)
        assert check(backing) == []
        thaw(backing.marks, "alice")
        assert (backing.path / "alice").read_bytes() == text

    def test_a_lost_base_that_is_here_is_put_back(self, backing, tiny, folder, monkeypatch):
        (backing.store.models / registry.file_name(tiny)).unlink()
        monkeypatch.setattr(registry, "SHIPPED_FOLDER", folder)
        (finding,) = check(backing)
        assert (finding.kind, finding.model) == (Kind.MODEL_NOT_KEPT, tiny.id)
        assert finding.path.startswith(".lmfs/models/")
        assert Repair(backing.marks).settle(finding)[0]
        assert check(backing) == []

    def test_a_damaged_base_or_difference_never_gives_wrong_bytes(self, backing, tiny, other):
        for package in (tiny, other):
            pinned = backing.store.models / registry.file_name(package)
            whole = pinned.read_bytes()
            for at in range(40, len(whole), len(whole) // 12):
                pinned.write_bytes(whole[:at] + bytes([whole[at] ^ 0x08]) + whole[at + 1 :])
                try:
                    assert registry.find(other.id, [backing.store.models]).id == other.id
                except (ModelError, UnknownModelError):
                    assert any(f.kind.is_error for f in check(backing))
            pinned.write_bytes(whole)
        assert check(backing) == []

    def test_configuring_is_lasting_and_keeps_the_rest(self, tmp_path):
        root = tmp_path / "c"
        root.mkdir()
        with Store.create(root) as store:
            before = json.loads((root / ".lmfs/store.json").read_text())
            store.configure("model", "ab" * 16)
            store.configure("x", 5)
            assert dict(store.config) == {"model": "ab" * 16, "x": 5}
            store.configure("x", None)
        with Store.open(root) as store:
            assert dict(store.config) == {"model": "ab" * 16}
            store.configure("model", None)
        assert json.loads((root / ".lmfs/store.json").read_text()) == before
        assert [path.name for path in (root / ".lmfs").iterdir()] == ["store.json"]

    def test_a_configured_model_that_is_no_id(self, backing):
        backing.store.configure("model", "nonsense")
        with pytest.raises(DamagedError, match="nonsense"):
            freezing_model(backing.store)
        assert [f.kind for f in check(backing)] == [Kind.MODEL_MISSING]

    def test_the_command_freezes_with_the_stores_model(self, backing, other, text, run):
        backing.write("again", text)
        code, _, err = run("freeze", "--level", "8", backing.path / "again")
        assert code == 0, err
        with (
            open(backing.path / "again", "rb") as file,
            LmzReader(file, store_id=backing.store.id, model_search=backing.store.search) as reader,
        ):
            assert {c.model_id for c in reader.members[0].codings if c.model_id} == {other.id}


class TestSample:
    @pytest.fixture
    def files(self, backing):
        for k in range(12):
            backing.write(f"d/{k}.txt", b"some words of text\n" * (300 + 50 * k))
            backing.write(f"log.{k}", b"Nov 23 host: event\n" * 500)
            backing.write(f"{k}.bin", bytes(range(256)) * 40)
        backing.write("only.md", b"# one of its kind\n" * 400)
        backing.write("small.txt", b"too small")
        return sample.text_files(backing.marks)

    def test_text_of_all_kinds_is_found_and_nothing_else(self, files, text):
        names = {file.path for file in files}
        assert names == {
            "alice",
            "only.md",
            *(f"d/{k}.txt" for k in range(12)),
            *(f"log.{k}" for k in range(12)),
        }
        alice = next(file for file in files if file.path == "alice")
        assert (alice.frozen, alice.size) == (True, len(text))
        assert {file.family for file in files} == {"", "md", "txt"}

    def test_a_frozen_file_is_read_through_the_reader(self, backing, files, text):
        alice = next(file for file in files if file.path == "alice")
        assert sample.read(backing.marks, alice, 5000, 700) == text[5000:5700]

    def test_every_family_of_two_has_files_held_out_that_are_not_learned(self, files):
        divided = sample.split(files, 1, 1 << 20)
        assert {file.family for file in divided.held_out} == {"", "txt"}
        assert not set(divided.held_out) & set(divided.learned)
        assert {*divided.held_out, *divided.learned} == set(files)
        for family in ("", "txt"):
            held = sum(file.size for file in divided.held_out if file.family == family)
            largest = max(file.size for file in files if file.family == family)
            assert held <= 0.15 * divided.family_bytes[family] + largest
        assert divided == sample.split(files, 1, 1 << 20)
        assert divided.held_out != sample.split(files, 2, 1 << 20).held_out

    def test_pieces_are_distinct_and_within_their_files(self, files):
        places = sample.pieces(files, 3, 10_000)
        assert len(set(places)) == len(places) == sum(-(-f.size // 16384) for f in files)
        assert all(0 <= at < file.size for file, at in places)
        assert sample.pieces(files, 3, 5) == sample.pieces(files, 3, 5)
        assert len(sample.pieces(files, 3, 5)) == 5
        assert sample.pieces([], 3, 5) == []

    def test_a_file_that_is_gone_is_left_out(self, backing, files):
        places = sample.pieces(files, 3, 10_000)
        (backing.path / "only.md").unlink()
        got = list(sample.texts(backing.marks, places))
        assert len(got) == len(places) - 1


class TestVerdict:
    def verdict(self, before: int, after: int, package: int) -> Verdict:
        one = Measured("a.txt", "txt", 1000, before, after)
        return Verdict((one,), {"txt": 100_000, "md": 900_000}, package)

    def test_families_that_were_not_measured_count_for_nothing(self):
        verdict = self.verdict(200, 190, 999)
        assert verdict.saving_bytes == 1000
        assert verdict.pays
        assert verdict.break_even_bytes == 999_000

    def test_the_package_is_on_the_bill(self):
        verdict = self.verdict(200, 190, 1000)
        assert not verdict.pays
        assert verdict.break_even_bytes == 1_000_000

    def test_what_saves_nothing_never_pays(self):
        assert self.verdict(200, 200, 10).break_even_bytes is None
        assert not self.verdict(200, 210, 0).pays
        assert self.verdict(200, 210, 0).saving_bytes == -1000


class TestCommand:
    def test_without_torch_it_says_what_to_install(self, tmp_path, run, monkeypatch):
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
        )
        code, out, err = run("learn", tmp_path)
        assert code == EngineError.exit_code
        assert "no torch" in err
        assert "pip install 'lmfs[train]'" in err
        assert not out

    def test_without_a_compiler_it_says_so(self, monkeypatch):
        monkeypatch.setattr(cli_learn, "NEEDED", ())
        monkeypatch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(EngineError, match="C compiler"):
            cli_learn.load_trainer()

    def test_too_little_text(self, tmp_path, run, monkeypatch):
        monkeypatch.setattr(cli_learn, "load_trainer", lambda: None)
        (tmp_path / "one.txt").write_bytes(b"alone\n" * 2000)
        code, _, err = run("learn", tmp_path)
        assert code == 9
        assert "too little text to learn from" in err

    def test_a_part_of_a_store(self, backing, run):
        (backing.path / "d").mkdir()
        code, _, err = run("learn", backing.path / "d")
        assert code == 2
        assert "a part of a store" in err

    def test_use_what_is_not_there(self, backing, run):
        code, _, err = run("learn", backing.path, "--use", "ab" * 16)
        assert code == UnknownModelError.exit_code
        assert "ab" * 16 in err
        code, _, err = run("learn", backing.path, "--use", "no-such")
        assert code == ModelError.exit_code
        assert "base-8" in err
