"""Every lowering gives the same integers, whatever lanes and threads."""

from __future__ import annotations

import io

import numpy as np
import pytest

from lmfs.engines.ort import CPU, OrtEngine
from lmfs.engines.walk import walk as walk_engine
from lmfs.errors import ModelError
from lmfs.models import registry
from lmfs.models.package import ModelPackage

LOWERINGS = ("step-uint8", "step-float32", "sequence-uint8", "sequence-float32")


def engine(package: ModelPackage, lowering: str, threads: int = 2) -> OrtEngine:
    return OrtEngine(
        package,
        providers=[CPU],
        threads=threads,
        lowering_step=lowering,
        lowering_sequence=lowering,
    )


def walk(package: ModelPackage, lowering: str, tokens: np.ndarray, threads: int = 2) -> np.ndarray:
    stepwise = lowering.startswith("step")
    return walk_engine(engine(package, lowering, threads), tokens, stepwise=stepwise)


def random_tokens(package: ModelPackage, lanes: int, steps: int, seed: int = 7) -> np.ndarray:
    vocab = package.card["architecture"]["vocab"]
    tokens = np.random.default_rng(seed).integers(0, vocab, (lanes, steps))
    tokens[: lanes // 3] = tokens[: lanes // 3, :1]  # the same token for ever reaches the clips
    return tokens


@pytest.fixture(scope="module")
def walked(tiny: ModelPackage) -> tuple[np.ndarray, np.ndarray]:
    tokens = random_tokens(tiny, 6, 300)
    return tokens, walk(tiny, "step-uint8", tokens)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("threads", [1, 2])
def test_lowerings_and_threads_agree_on_a_long_walk(tiny, walked, lowering, threads):
    tokens, logits = walked
    assert np.array_equal(walk(tiny, lowering, tokens, threads), logits)
    assert len(np.unique(logits)) > 100  # it is not a constant that agrees with itself


def test_lane_order_and_batch_size_do_not_matter(tiny, walked):
    tokens, logits = walked
    order = np.array([4, 0, 5, 2, 1, 3])
    assert np.array_equal(walk(tiny, "step-uint8", tokens[order]), logits[order])
    assert np.array_equal(walk(tiny, "step-uint8", tokens[2:3]), logits[2:3])
    many = np.repeat(tokens[:, :40], 20, 0)
    assert np.array_equal(walk(tiny, "sequence-uint8", many), np.repeat(logits[:, :40], 20, 0))


def test_selecting_lanes_in_the_middle_changes_nothing(tiny, walked):
    tokens, logits = walked
    one = engine(tiny, "step-uint8")
    state = one.start(len(tokens))
    for t in range(10):
        one.step(state, tokens[:, t].copy())
    kept = np.array([5, 1])
    state = one.select(state, kept)
    for t in range(10, 20):
        got, state = one.step(state, tokens[kept, t])
        assert np.array_equal(got, logits[kept, t])


def test_sequence_windows_equal_one_sequence(tiny, walked):
    tokens, logits = walked
    one = engine(tiny, "sequence-uint8")
    state = one.start(len(tokens))
    at = 0
    for size in (1, 2, 7, 90, 200):
        got, state = one.sequence(state, tokens[:, at : at + size])
        assert np.array_equal(got, logits[:, at : at + size])
        at += size


@pytest.mark.parametrize("name", ["tiny", "shipped"])
def test_golden_vectors(tiny, name):
    package = tiny if name == "tiny" else registry.shipped()
    with np.load(io.BytesIO(package.golden())) as golden:
        got = walk(package, "step-uint8", golden["tokens"])
        assert np.array_equal(got[:, :: int(golden["every"])], golden["logits"])


def test_a_model_that_is_not_exact_is_refused(tiny, tmp_path, monkeypatch):
    graph = tiny.graph("step-float32").replace(b"Floor", b"Round")
    monkeypatch.setattr(ModelPackage, "graph", lambda self, name: graph)
    with pytest.raises(ModelError, match="not exact everywhere"):
        engine(tiny, "step-float32").start(1)
