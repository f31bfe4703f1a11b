"""Learning from a store: what is trained, the package that comes of it, and whether it is kept.

Needs torch (tests/conftest.py); tests/test_difference.py has what does not.
"""

from __future__ import annotations

import json
import math
import random
import shutil

import numpy as np
import pytest
import torch
from backing import Backing
from lmfs_tools import export, learn
from lmfs_tools.export import model_of

from lmfs.cli import learn as cli_learn
from lmfs.models import registry
from lmfs.models.difference import read_arrays
from lmfs.models.verify import verify
from lmfs.store import sample
from lmfs.store.content import open_frozen
from lmfs.store.store import Store

PIECE = 4096


def styled_text(size: int, seed: int) -> bytes:
    """Text of one style in a vocabulary of its own: what a small model can learn in a minute."""
    letters = random.Random(7)
    words = ["".join(letters.choices("aeiourstlnkm", k=letters.randint(3, 9))) for _ in range(60)]
    chance = random.Random(seed)
    lines = []
    while sum(map(len, lines)) < size:
        line = " ".join(chance.choices(words, range(1, 61), k=9))
        lines.append(f"{chance.choice('ABC')}: {line}.\n")
    return "".join(lines).encode()[:size]


@pytest.fixture
def beside(tiny, tmp_path, monkeypatch):
    """A folder with the tiny model in it, for differences to lie beside it."""
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(tiny.path, folder / registry.file_name(tiny))
    monkeypatch.setattr(registry, "SHIPPED_FOLDER", folder)
    shutil.copy(tiny.path, folder / f"{registry.DEFAULT_MODEL}.lmm")
    return folder


@pytest.fixture(scope="module")
def learned(tiny):
    text = styled_text(80 * PIECE, 1)
    pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
    told: list[float] = []
    learned = learn.fine_tune(tiny, pieces, len(text), seconds=3600, rank=1, progress=told.append)
    assert len(told) == 20
    assert told == sorted(told)
    assert told[-1] == 1
    return learned


def bits(model, text: bytes, vocabulary) -> float:
    with torch.no_grad():
        losses = learn._losses(model, [np.asarray(vocabulary.tokenize(text)).astype(np.int64)])
        return sum(loss.item() for loss, _ in losses) / math.log(2)


def test_it_learns_and_says_what_that_cost(tiny, learned):
    assert learned.text_bytes == 80 * PIECE
    assert learned.compared_bytes == 5 * 4 * PIECE  # of twenty batches every fourth
    assert learned.prequential_bits / 80 == pytest.approx(learned.after_bits / 20, rel=0.05)
    assert learned.after_bits < 0.97 * learned.before_bits
    unseen, vocabulary = styled_text(3 * PIECE, 99), tiny.tokenizer().vocabulary
    assert bits(learned.model, unseen, vocabulary) < 0.9 * bits(model_of(tiny), unseen, vocabulary)


def test_nothing_learned_is_the_base(tiny, beside, tmp_path):
    """The first loss is the base's, and a difference of nothing has the base's id."""
    text = styled_text(PIECE, 1)
    still = learn.fine_tune(tiny, [], 1, seconds=10, rank=1)
    vocabulary = tiny.tokenizer().vocabulary
    assert bits(still.model, text, vocabulary) == bits(model_of(tiny), text, vocabulary)
    package = learn.export_difference(tiny, still.model, beside / "same.lmm", {"name": "same"})
    assert package.id == tiny.id


def test_time_ends_learning(tiny):
    pieces = [styled_text(PIECE, 1)] * 400
    short = learn.fine_tune(tiny, pieces, 400 * PIECE, seconds=0.3, rank=1)
    assert 0 < short.text_bytes < 400 * PIECE


def test_what_was_learned_is_an_exact_package(tiny, learned, beside):
    package = learn.export_difference(tiny, learned.model, beside / "new.lmm", {"name": "new"})
    assert package.id != tiny.id
    assert package.base is not None
    assert package.base.id == tiny.id
    assert package.size_bytes < tiny.size_bytes / 2
    findings = verify(package.path)
    assert all(finding.ok for finding in findings), findings
    assert sum(finding.what.startswith("certificate") for finding in findings) == 4
    old, new = read_arrays(tiny.weights), read_arrays(package.weights)
    assert {name for name in old if not np.array_equal(old[name], new[name])} == {
        *(name for name in old if name.endswith(".weight")),
        "head.bias",
    }


def test_export_refuses_a_package_that_differs_from_pytorch(tiny, learned, beside, monkeypatch):
    right = learn.torch_logits
    monkeypatch.setattr(learn, "torch_logits", lambda m, t: right(m, t) + np.int16(1))
    with pytest.raises(SystemExit, match="differs from PyTorch"):
        learn.export_difference(tiny, learned.model, beside / "new.lmm", {"name": "new"})


def test_a_bias_steps_by_whole_units_of_the_accumulator(tiny):
    """Also where one unit of the accumulator is several of a logit."""
    model = model_of(tiny)
    with torch.no_grad():
        model.head.weight[0] *= 2.0**9
    learn.adapt(model, 1)
    with torch.no_grad():
        model.head.bias_logits.fill_(100.0)
    units = model.head.integers()[1]
    assert torch.equal(units, units.round())
    assert model.head.bias_steps()[0] != 100
    assert model.head.bias_steps()[1:].eq(100).all()
    tensors = learn.weight_tensors(model)
    again = export.model_from_tensors(model.shape, tensors)
    assert torch.equal(again.head.integers()[1], units)


@pytest.fixture
def store(tmp_path):
    """Much text of one style in small files, which have little to learn from in themselves."""
    root = tmp_path / "store"
    root.mkdir()
    for number in range(300):
        (root / f"{number}.txt").write_bytes(styled_text(5000, number))
    return root


@pytest.fixture
def trained(learned, monkeypatch):
    """`lmfs learn` gets at once what it would have learned."""
    monkeypatch.setattr(learn, "fine_tune", lambda *_, **__: learned)


def chosen(root) -> str | None:
    with Store.open(root) as store:
        return store.config.get("model")


def kept_models(root) -> set[str]:
    return {path.stem for path in (root / ".lmfs").glob("models/*.lmm")}


LEARN = ("--minutes", "60", "--level", "8")


def test_a_model_that_pays_is_kept_used_and_given_up_again(store, beside, tiny, run, monkeypatch):
    """Real learning on real files: kept, frozen with, read back, and the way back."""
    monkeypatch.setattr(cli_learn, "PIECES_A_MINUTE", 80 / 60)
    read, texts = set(), sample.texts

    def watched(marks, places):
        read.update(file.path for file, _ in places)
        return texts(marks, places)

    monkeypatch.setattr(sample, "texts", watched)
    code, out, err = run("learn", store, *LEARN, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["kept"], out
    assert report["extrapolated_saving_bytes"] > report["package_bytes"]
    assert report["break_even_bytes"] < report["store_text_bytes"] == 300 * 5000
    assert report["learned_bytes"] == 80 * 5000
    held_out = {one["path"] for one in report["held_out"]}
    assert 40 <= len(held_out) <= 50
    assert len(read) == 80
    assert not read & held_out
    assert chosen(store) == report["model"]
    assert kept_models(store) == {report["model"], tiny.id.hex()}

    assert run("freeze", store / "1.txt", store / "2.txt", "--level", "8")[0] == 0
    backing = Backing(store)
    with open(store / "1.txt", "rb") as file, open_frozen(file.fileno(), backing.marks) as reader:
        used = {c.model_id.hex() for c in reader.members[0].codings if c.model_id}
        assert used == {report["model"]}
        assert reader.pread(5000, 0) == styled_text(5000, 1)
    backing.close()
    assert run("fsck", store, "--deep")[0] == 0

    code, out, _ = run("learn", store, "--use", "base-8")
    assert code == 0
    assert "tiny" in out
    assert chosen(store) is None
    assert run("learn", store, "--use", report["model"])[0] == 0
    assert chosen(store) == report["model"]
    assert run("thaw", store / "1.txt", store / "2.txt")[0] == 0
    assert (store / "2.txt").read_bytes() == styled_text(5000, 2)


def test_a_dry_run_keeps_nothing(store, beside, trained, run):
    Store.create(store).close()
    code, out, _ = run("learn", store, *LEARN, "--dry-run")
    assert code == 0
    assert "it would be kept" in out
    assert chosen(store) is None
    assert not kept_models(store)


def test_a_model_that_does_not_pay_is_not_kept(store, beside, trained, run):
    """The same model and the same kind of text, but little of it."""
    for number in range(20, 300):
        (store / f"{number}.txt").unlink()
    code, out, _ = run("learn", store, *LEARN)
    assert code == 0
    assert "not kept: it would pay from" in out
    assert chosen(store) is None
    assert not kept_models(store)


def test_other_text_is_not_helped(store, beside, trained, run):
    """What was learned of one style makes another one larger, and is not kept."""
    for number in range(300):
        text = styled_text(5000, number).translate(bytes.maketrans(b"aeiourst", b"XQZJKWVY"))
        (store / f"{number}.txt").write_bytes(text)
    code, out, _ = run("learn", store, *LEARN)
    assert code == 0
    assert "not kept: " in out
    assert chosen(store) is None
