"""Training: the PyTorch forward is the exported graph bit for bit, and learning works.

Needs torch (tests/conftest.py).
"""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from lmfs_tools import exact_model as em
from lmfs_tools import export, mixer, train
from lmfs_tools.graphs import LOWERINGS

from lmfs.engines.native import NativeEngine
from lmfs.engines.ort import CPU, OrtEngine
from lmfs.engines.walk import walk
from lmfs.models.verify import verify
from lmfs.native import MixerProfile, usable_isas
from lmfs.profile import CoderProfile, profile_by_number
from lmfs.tokenizer import Tokenizer

SHAPE = em.Shape(vocab=320, width=32, layers=2, hidden=64, hash_rows=64)


def test_a_mixer_that_learned_with_the_model_is_what_it_was_without(tiny, data):
    prose = (data / "alice29.txt").read_bytes()
    runs = [[prose[i : i + 1500] for i in range(at, at + 4500, 1500)] for at in (0, 9000, 30000)]
    learned = mixer.learn_led(tiny, runs)
    data = profile_by_number(6).mixer_data[mixer.TABLES.itemsize :]
    before = np.frombuffer(data, mixer.ADAPTIVE)[0]
    for name in ("by_vote", "by_count", "by_voters", "by_match", "by_order", "final"):
        assert np.array_equal(learned[name][0], before[name][0])
        assert not np.array_equal(learned[name][1], before[name][1])
    assert np.array_equal(learned["by_level"][:, :, 0], before["by_level"][:, :, 0])
    assert not np.array_equal(learned["by_node"], before["by_node"])
    stored = mixer.tables().tobytes() + mixer.rested(learned, 12).tobytes()
    MixerProfile(stored, CoderProfile.mixer_sizes)  # accepted


def vocabulary(size: int) -> bytes:
    single = [bytes([b]) for b in range(256)]
    pairs = [bytes([a, b]) for a in b"abcdefgh" for b in b"abcdefgh"]
    return Tokenizer(sorted((single + pairs)[:size])).to_json()


def random_model(seed: int, spread: float) -> em.ExactModel:
    """Random weights; a large spread drives every quantiser into its clips."""
    torch.manual_seed(seed)
    model = em.ExactModel(SHAPE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(spread * torch.rand_like(parameter).exp())
    return model


@pytest.mark.parametrize(("seed", "spread"), [(1, 1.0), (2, 3.0), (3, 0.1)])
def test_pytorch_equals_every_lowering_on_a_long_walk(tmp_path, seed, spread):
    model = random_model(seed, spread)
    package = export.export(model, vocabulary(SHAPE.vocab), tmp_path / "m.lmm", {"name": "m"})
    tokens = np.random.default_rng(seed).integers(0, SHAPE.vocab, (5, 700))
    tokens[0] = tokens[0, 0]
    logits = export.torch_logits(model, tokens)
    for lowering in LOWERINGS:
        engine = OrtEngine(
            package, providers=[CPU], lowering_step=lowering, lowering_sequence=lowering
        )
        got = walk(engine, tokens, stepwise=lowering.startswith("step"))
        assert np.array_equal(got, logits), lowering
    for isa in usable_isas():
        for stepwise in (True, False):
            got = walk(NativeEngine(package, isa=isa), tokens, stepwise=stepwise)
            assert np.array_equal(got, logits), isa
    assert all(finding.ok for finding in verify(tmp_path / "m.lmm"))


@pytest.mark.parametrize("quantised", [False, True])
def test_products_in_bfloat16_learn_the_same(monkeypatch, quantised):
    """Forward to the bit where it is quantised, and gradients that point where they did."""
    tokens = torch.from_numpy(np.random.default_rng(9).integers(0, SHAPE.vocab, (2, 65)))
    found = []
    for in_bfloat16 in (False, True):
        monkeypatch.setattr(em.Linear, "in_bfloat16", in_bfloat16)
        model = random_model(9, 1.0)
        n, _ = model(tokens[:, :-1], model.initial_state(2), quantised)
        em.code_length_nats(model, n, tokens[:, 1:], quantised).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((n.detach(), gradient))
    (plain, wanted), (half, got) = found
    assert torch.equal(plain, half) if quantised else torch.allclose(plain, half, atol=0.2)
    assert torch.nn.functional.cosine_similarity(wanted, got, 0) > 0.99


def test_training_can_go_on_from_a_package(tmp_path):
    model = random_model(8, 1.0)
    package = export.export(model, vocabulary(SHAPE.vocab), tmp_path / "m.lmm", {"name": "m"})
    again = export.model_of(package)
    tokens = np.random.default_rng(8).integers(0, SHAPE.vocab, (2, 100))
    assert np.array_equal(export.torch_logits(again, tokens), export.torch_logits(model, tokens))
    twice = export.export(again, vocabulary(SHAPE.vocab), tmp_path / "n.lmm", {"name": "n"})
    assert twice.id == package.id


def test_the_mean_of_two_models():
    torch.manual_seed(3)
    one, other = em.ExactModel(SHAPE), em.ExactModel(SHAPE)
    wanted = {
        name: 0.7 * one.state_dict()[name] + 0.3 * p for name, p in other.state_dict().items()
    }
    mixed = export.mean(one, other, 0.7)
    assert set(wanted) == {name for name, _ in mixed.named_parameters()}  # nothing is left out
    for name, p in mixed.named_parameters():
        assert torch.allclose(p, wanted[name], atol=1e-6)


def test_export_refuses_a_model_that_differs_from_pytorch(tmp_path, monkeypatch):
    model = random_model(4, 1.0)
    right = export.torch_logits
    monkeypatch.setattr(export, "torch_logits", lambda m, t: right(m, t) + np.int16(1))
    with pytest.raises(SystemExit, match="differs from PyTorch"):
        export.export(model, vocabulary(SHAPE.vocab), tmp_path / "m.lmm", {"name": "m"})


def test_quantised_values_are_integers_on_their_grids():
    model = random_model(5, 1.0)
    weight, bias, _ = model.layers[0].up.integers()
    assert weight.min() >= em.WEIGHT_MIN
    assert weight.max() <= em.WEIGHT_MAX
    assert torch.equal(weight, weight.round())
    assert torch.equal(bias, bias.round())
    assert weight.abs().amax(1).min() >= 31  # a row uses its seven bits
    n, state = model(torch.randint(0, SHAPE.vocab, (2, 40)), model.initial_state(2), True)
    assert torch.equal(n * 16, (n * 16).round())
    h = state[0][1] * 2.0**em.STATE_BITS
    assert torch.equal(h, h.round())
    assert h.abs().max() <= em.STATE_MAX


def test_state_carried_over_equals_one_long_window():
    model = random_model(6, 1.0)
    tokens = torch.randint(0, SHAPE.vocab, (3, 50))
    whole, _ = model(tokens, model.initial_state(3), True)
    first, state = model(tokens[:, :17], model.initial_state(3), True)
    second, _ = model(tokens[:, 17:], state, True)
    assert torch.equal(torch.cat([first, second], 1), whole)


def test_gradients_of_the_recurrence_and_the_head():
    """The C kernels against differences, in the middle of the clips."""
    torch.manual_seed(0)
    u = (torch.rand(2, 6, 3) * 0.5 + 0.2).requires_grad_()
    c = torch.randn(2, 6, 3).requires_grad_()
    h0 = torch.randn(2, 3)

    def plain(u, c):
        h, rows = h0, []
        for t in range(u.shape[1]):
            h = h + u[:, t] ** 2 * (c[:, t] - h)
            rows.append(h)
        return torch.stack(rows, 1)

    weights = torch.randn(2, 6, 3)
    wanted = torch.autograd.grad((plain(u, c) * weights).sum(), (u, c))
    got = torch.autograd.grad((em._Scan.apply(u, c, h0, False) * weights).sum(), (u, c))
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-5)

    model = em.ExactModel(SHAPE)
    n = torch.randn(2, 5, SHAPE.width, requires_grad=True)
    target = torch.randint(0, SHAPE.vocab, (2, 5))
    logits = model.head(n, False)
    wanted_loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), target.flatten(), reduction="sum"
    )
    loss = em.code_length_nats(model, n, target, False)
    assert torch.allclose(loss, wanted_loss, rtol=1e-5)
    parameters = (n, model.head.weight, model.head.bias)
    for a, b in zip(
        torch.autograd.grad(loss, parameters),
        torch.autograd.grad(wanted_loss, parameters),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-4)


def test_clip_lets_gradients_in_but_not_out():
    x = torch.tensor([-2.0, 0.3, 2.0, 2.0], requires_grad=True)
    y = em.clip(x, 5, -32, 32, True)
    assert y.tolist() == [-1.0, 0.3125, 1.0, 1.0]
    y.backward(torch.tensor([1.0, 1.0, -1.0, 1.0]))
    assert x.grad.tolist() == [0.0, 1.0, 0.0, 1.0]


def test_a_unit_that_is_silent_can_rise_again():
    z = torch.tensor([0.0, 0.5, 2.0], requires_grad=True)
    r = em._Square.apply(z)
    assert r.tolist() == [0.0, 0.25, 4.0]
    r.sum().backward()
    assert z.grad[0] > 0
    assert z.grad[1:].tolist() == pytest.approx([1.0, 4.0], rel=0.01)


def test_dead_units_begin_anew_and_the_model_stays_what_it_was():
    model = em.ExactModel(SHAPE)
    for layer in model.layers:
        layer.down.weight.data.normal_()
    dead = [torch.randperm(SHAPE.hidden)[: 5 * (k + 1)] for k in range(SHAPE.layers)]
    with torch.no_grad():
        for layer, units in zip(model.layers, dead, strict=True):
            layer.up.bias[units] = -100.0
    tokens = torch.randint(0, SHAPE.vocab, (3, 200))
    before, _ = model(tokens, model.initial_state(3))
    assert train.revive(model, tokens) == [len(units) for units in dead]
    after, _ = model(tokens, model.initial_state(3))
    assert torch.equal(before, after)
    assert train.revive(model, tokens) == [0] * SHAPE.layers


def test_more_rows_for_pairs_of_tokens_change_nothing_at_first():
    model = em.ExactModel(SHAPE)
    tokens = torch.randint(0, SHAPE.vocab, (3, 200))
    before, _ = model(tokens, model.initial_state(3), True)
    train.widen(model, 4 * SHAPE.hash_rows)
    assert model.embed_pair.shape[0] == model.shape.hash_rows == 4 * SHAPE.hash_rows
    after, _ = model(tokens, model.initial_state(3), True)
    assert torch.equal(before, after)
    train.widen(model, 4 * SHAPE.hash_rows + 1)  # no multiple: left as it is
    assert model.shape.hash_rows == 4 * SHAPE.hash_rows


def test_token_shifts_are_brought_back_to_one():
    model = em.ExactModel(SHAPE)
    with torch.no_grad():
        for layer in model.layers:
            layer.shift_time.now.mul_(0.05), layer.shift_time.past.mul_(0.05)
            layer.shift_channel.now.mul_(0.2), layer.shift_channel.past.mul_(0.2)
    tokens = torch.randint(0, SHAPE.vocab, (3, 200))
    before, _ = model(tokens, model.initial_state(3))
    assert train.balance(model) == 2 * SHAPE.layers
    for layer in model.layers:
        for shift in (layer.shift_time, layer.shift_channel):
            largest = torch.cat([shift.now, shift.past]).abs().max().item()
            assert largest == pytest.approx(1.0)
    after, _ = model(tokens, model.initial_state(3))
    assert torch.allclose(before, after, atol=1e-4)
    assert train.balance(model) == 0


@pytest.fixture
def work(tmp_path, data):
    """A prepared folder: one source, tokenized, and a dev sample."""
    vocab = Tokenizer.from_json(vocabulary(SHAPE.vocab)).vocabulary
    text = (data / "alice29.txt").read_bytes()
    (tmp_path / "tokens").mkdir()
    (tmp_path / "dev").mkdir()
    for name in train.WEIGHTS:
        np.save(tmp_path / "tokens" / f"{name}.npy", vocab.tokenize(text))
    row = np.array(vocab.tokenize(text[:2000]))
    np.savez(tmp_path / "dev" / "a", tokens=row[None], lengths=np.array([len(row)]), bytes=2000)
    return tmp_path


def run(work, monkeypatch, *more):
    arguments = [
        "train", str(work), "--vocab", "320", "--width", "32", "--layers", "1", "--hidden", "64",
        "--hash-rows", "64", "--rows", "2", "--micro-rows", "1", "--threads", "1", *more,
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", arguments)
    train.main()
    log = work / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [line["dev"]["a"] for line in lines if "dev" in line]


def test_training_learns_resumes_and_ends_quantised(work, monkeypatch, tmp_path):
    run(work, monkeypatch, "--tokens", "40000", "--stop-after", "0")
    assert (work / "checkpoint.pt").exists()
    assert not (work / "best.pt").exists()
    in_float, exact = run(work, monkeypatch, "--tokens", "80000", "--quantise-from", "0.5")
    assert exact < 5.5  # eight bits a byte untrained
    assert abs(exact - in_float) < 0.2
    model = export.load_model(work / "best.pt")
    assert model.shape == em.Shape(vocab=320, width=32, layers=1, hidden=64, hash_rows=64)
    export.export(model, vocabulary(320), tmp_path / "m.lmm", {"name": "m"})


def test_learning_rate_rises_stays_and_falls_to_zero():
    s = train.Settings(tokens=100.0, decay_from=0.5, warmup_steps=10)
    assert train.rate(0, 0, s) == pytest.approx(0.1)
    assert train.rate(40, 50, s) == 1.0
    assert train.rate(75, 90, s) == pytest.approx(0.5)
    assert train.rate(100, 120, s) == 0.0


def test_streams_start_every_piece_with_the_start_token(work):
    streams = train.Streams(work / "tokens", 3, 1)
    seen = copy.copy(streams.at)
    for _ in range(2 * train.WINDOWS_PER_PIECE):
        tokens, fresh = streams.next()
        assert tokens.shape == (3, train.WINDOW + 1)
        for row in range(3):
            if fresh[row]:
                assert tokens[row, 0] == em.START_TOKEN
                assert seen[row] % train.WINDOWS_PER_PIECE == 0
            seen[row] += 1
