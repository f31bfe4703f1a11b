"""The native engine gives the integers of ONNX Runtime: on every instruction set, however run.

tests/test_training.py compares it with PyTorch.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import os
import pathlib
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lmfs import engines
from lmfs.codecs.lm import LmCodec
from lmfs.engines.native import NativeEngine
from lmfs.engines.ort import CPU, OrtEngine
from lmfs.engines.walk import walk
from lmfs.errors import EngineError, ModelError
from lmfs.models import certificate, registry
from lmfs.models.package import WEIGHTS, ModelPackage
from lmfs.models.weights import read_weights
from lmfs.native import usable_isas

ISAS = usable_isas()


def with_weights(package: ModelPackage, tensors: dict[str, np.ndarray]) -> ModelPackage:
    """The package with other weights; its graphs still are the tiny model's."""
    model = onnx.ModelProto()
    for name, array in tensors.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    stored = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(package.stored)) as old, zipfile.ZipFile(stored, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) if name != WEIGHTS else model.SerializeToString())
    return dataclasses.replace(package, stored=stored.getvalue(), id=os.urandom(16))


def tensors_of(package: ModelPackage) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in read_weights(package.weights).items()}


def wild(package: ModelPackage, seed: int) -> ModelPackage:
    """Random weights over their whole range, mostly at its ends, so that every clip is reached."""
    random = np.random.default_rng(seed)
    tensors = tensors_of(package)
    for name, array in tensors.items():
        if name.endswith((".now", ".past")):
            tensors[name] = (random.integers(-127, 128, array.shape) / 64).astype(np.float32)
        elif name.endswith(".weight"):
            ends = random.choice(np.array([-64, 63], np.int8), array.shape)
            any_weight = random.integers(-64, 64, array.shape).astype(np.int8)
            kept = random.random(array.shape) < (0.5, 0.9, 1.0)[seed % 3]
            tensors[name] = np.where(kept, ends, any_weight)
            if seed % 2:  # outputs as large as they get
                tensors[name][:, ::3] = np.where(random.random(array.shape[0]) < 0.5, -64, 63)[
                    :, None
                ]
        elif name.endswith(".scale"):
            tensors[name] = np.ldexp(np.float32(1), random.integers(-9, 1, array.shape))
        elif name.endswith(".bias"):
            whole = random.integers(-300, 300, array.shape) + 0.5
            tensors[name] = whole.astype(np.float32)
        else:
            tensors[name] = random.choice(np.array([-127, -5, 3, 127], np.int8), array.shape)
    return with_weights(package, tensors)


def random_tokens(package: ModelPackage, lanes: int, steps: int, seed: int = 7) -> np.ndarray:
    vocab = package.card["architecture"]["vocab"]
    tokens = np.random.default_rng(seed).integers(0, vocab, (lanes, steps))
    tokens[: lanes // 3] = tokens[: lanes // 3, :1]  # the same token for ever reaches the clips
    return tokens


def reference(package: ModelPackage, tokens: np.ndarray) -> np.ndarray:
    engine = OrtEngine(package, providers=[CPU], threads=1)
    return walk(engine, tokens, stepwise=False)


@pytest.fixture(scope="module")
def walked(tiny: ModelPackage) -> tuple[np.ndarray, np.ndarray]:
    tokens = random_tokens(tiny, 64, 300)
    return tokens, reference(tiny, tokens)


def test_no_instruction_set_is_left_out():
    """One whose results differ from the portable ones would be missing, and not be tested."""
    assert ISAS[-1] == "portable"
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    for flag, isa in (("avx2", "avx2"), ("avx512_vnni", "avx512vnni")):
        assert (isa in ISAS) == (flag in flags)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("lanes", [1, 3, 16, 64])
def test_a_long_walk_equals_onnx_runtime(tiny, walked, isa, threads, lanes):
    tokens, logits = walked[0][:lanes], walked[1][:lanes]
    engine = NativeEngine(tiny, threads=threads, isa=isa)
    assert engine.core.isa == isa
    assert engine.core.threads == threads
    for stepwise in (True, False):
        assert np.array_equal(walk(engine, tokens, stepwise=stepwise), logits)
    assert len(np.unique(logits)) > 100  # it is not a constant that agrees with itself


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("seed", range(6))
def test_wild_models_equal_onnx_runtime(tiny, isa, seed):
    package = wild(tiny, seed)
    certificate.prove(package.graph("step-float32"))
    tokens = random_tokens(package, 9, 120, seed)
    logits = reference(package, tokens)
    assert {-32767, 32767} & set(np.unique(logits).tolist())
    engine = NativeEngine(package, threads=2, isa=isa)
    for stepwise in (True, False):
        assert np.array_equal(walk(engine, tokens, stepwise=stepwise), logits)


@pytest.mark.parametrize("isa", ISAS)
def test_golden_vectors_and_a_walk_of_the_shipped_model(isa):
    package = registry.shipped()
    engine = NativeEngine(package, threads=2, isa=isa)
    with np.load(io.BytesIO(package.golden())) as golden:
        for stepwise in (True, False):
            got = walk(engine, golden["tokens"], stepwise=stepwise)
            assert np.array_equal(got[:, :: int(golden["every"])], golden["logits"])
    tokens = random_tokens(package, 5, 200)
    logits = reference(package, tokens)
    assert np.array_equal(walk(engine, tokens, stepwise=False), logits)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("seed", [1, 2])
def test_steps_sequences_and_selections_in_any_order(tiny, walked, isa, seed):
    tokens, logits = walked
    random = np.random.default_rng(seed)
    engine = NativeEngine(tiny, threads=2, isa=isa)
    lanes = np.arange(len(tokens))
    state, at = engine.start(len(lanes), sequence=True), 0
    while at < 290:
        if random.random() < 0.3:
            chosen = random.integers(0, len(lanes), random.integers(1, 40))
            state, lanes = engine.select(state, chosen), lanes[chosen]
        time = int(random.integers(1, 40)) if random.random() < 0.3 else 1
        time = min(time, 300 - at)
        if time == 1:
            got, state = engine.step(state, tokens[lanes, at])
            assert np.array_equal(got, logits[lanes, at])
        else:
            got, state = engine.sequence(state, tokens[lanes, at : at + time])
            assert np.array_equal(got, logits[lanes, at : at + time])
        at += time


def test_threads_may_share_an_engine(tiny, walked):
    tokens, logits = walked
    engine = NativeEngine(tiny, threads=2)
    right = []

    def run(part: slice) -> None:
        for _ in range(3):
            got = walk(engine, tokens[part], stepwise=True)
            right.append(np.array_equal(got, logits[part]))

    pool = [threading.Thread(target=run, args=(slice(k, k + 9),)) for k in (0, 10, 40)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    assert right == [True] * 9


def test_a_token_outside_the_vocabulary_moves_nothing(tiny, walked):
    tokens, logits = walked
    engine = NativeEngine(tiny)
    state = engine.start(2)
    for wrong in (-1, engine.vocab):
        with pytest.raises(ValueError, match="vocabulary"):
            engine.step(state, np.array([0, wrong]))
    for shape in ((3,), (2, 0, 1)):
        with pytest.raises((ValueError, TypeError)):
            engine.step(state, np.zeros(shape, np.int64))
    with pytest.raises(ValueError, match="lane 2 of 2"):
        engine.select(state, np.array([2]))
    got, _ = engine.step(state, tokens[:2, 0])
    assert np.array_equal(got, logits[:2, 0])


@pytest.fixture
def choose(monkeypatch):
    """Choose the engine of this process anew."""

    def choose(**environment: str) -> None:
        monkeypatch.setattr(engines, "_engines", collections.OrderedDict())
        for name in ("LMFS_ENGINE", "LMFS_ISA", "LMFS_THREADS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return choose


def test_what_one_engine_writes_the_other_reads(tiny, data, choose):
    text = (data / "alice29.txt").read_bytes()
    chunks = [text[at : at + size] for at, size in ((0, 3000), (9000, 700), (500, 1), (70, 2222))]
    sizes = [len(chunk) for chunk in chunks]
    codec = LmCodec(tiny)
    blobs = {}
    for name in ("native", "ort"):
        choose(LMFS_ENGINE=name)
        blobs[name] = codec.encode(chunks)
    assert blobs["native"] == blobs["ort"]
    for name in ("native", "ort"):
        choose(LMFS_ENGINE=name)
        assert codec.decode(blobs["native"], sizes) == chunks


def test_which_engine_is_chosen(tiny, choose):
    choose(LMFS_THREADS="3")
    engine = engines.engine_for(tiny)
    assert isinstance(engine, NativeEngine)
    assert engine.core.isa == ISAS[0]
    assert engine.core.threads == 3
    assert engines.engine_for(tiny) is engine
    for isa in ISAS:
        choose(LMFS_ISA=isa)
        assert engines.engine_for(tiny).core.isa == isa
    choose(LMFS_ENGINE="ort", LMFS_THREADS="1")
    engine = engines.engine_for(tiny)
    assert isinstance(engine, OrtEngine)
    assert (engine.providers, engine.threads) == ([CPU], 1)


def test_an_engine_that_is_made_ahead_is_the_one_that_is_asked_for(tiny, choose, monkeypatch):
    choose()
    made, asked = threading.Event(), []
    make = engines._make

    def slowly(package):
        asked.append(threading.current_thread().name)
        assert made.wait(10)
        return make(package)

    monkeypatch.setattr(engines, "_make", slowly)
    engines.make_ahead(lambda: tiny)
    threading.Timer(0.05, made.set).start()
    while not asked:
        time.sleep(0.001)
    engine = engines.engine_for(tiny)  # waits for it
    assert asked == ["lmfs-engine"]
    assert engines.engine_for(tiny) is engine


def test_what_fails_ahead_is_told_to_who_asks(tiny, choose, capfd):
    choose(LMFS_ENGINE="abacus")
    engines.make_ahead(lambda: tiny)
    engines.make_ahead(lambda: 1 // 0)
    for thread in threading.enumerate():
        if thread.name == "lmfs-engine":
            thread.join()
    assert capfd.readouterr() == ("", "")
    with pytest.raises(EngineError, match="abacus"):
        engines.engine_for(tiny)


def test_an_architecture_that_it_does_not_know_goes_to_onnx_runtime(tiny, choose):
    architecture = {**tiny.card["architecture"], "kind": "another-1"}
    other = dataclasses.replace(tiny, card={**tiny.card, "architecture": architecture})
    choose()
    assert isinstance(engines.engine_for(other), OrtEngine)
    choose(LMFS_ENGINE="native")
    with pytest.raises(EngineError, match="another-1"):
        engines.engine_for(other)


@pytest.mark.parametrize(
    "environment",
    [
        {"LMFS_ENGINE": "abacus"},
        {"LMFS_ISA": "avx9"},
        {"LMFS_THREADS": "0"},
        {"LMFS_THREADS": "257"},
        {"LMFS_THREADS": "two"},
    ],
    ids=str,
)
def test_settings_that_make_no_sense(tiny, choose, environment):
    choose(**environment)
    ((name, value),) = environment.items()
    with pytest.raises(EngineError, match=f"{name}.*got {value}"):
        engines.engine_for(tiny)


def test_the_gpu_is_used_or_refused(tiny, choose):
    import onnxruntime

    choose(LMFS_ENGINE="cuda")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        assert engines.engine_for(tiny).providers[0][0] == "CUDAExecutionProvider"
    else:
        with pytest.raises(EngineError, match="no GPU"):
            engines.engine_for(tiny)


def edit(name: str, change):
    def apply(tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = change(tensors[name])

    return apply


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda tensors: tensors.pop("layer1.up.bias"), "layer1.up.bias: missing"),
        (lambda tensors: tensors.update(extra=np.zeros(3, np.int8)), "tensors, got"),
        (edit("head.weight", lambda w: w[:-1]), "head.weight: unexpected shape"),
        (edit("head.weight", lambda w: w.astype(np.float32)), "head.weight: expected int8"),
        (edit("head.bias", lambda b: b.astype(np.int8)), "head.bias: expected float32"),
        (edit("layer0.in.weight", lambda w: w - 64), "outside"),
        (edit("layer0.in.weight", lambda w: w * 0 + 64), "outside"),
        (edit("layer0.out.scale", lambda s: s * 3), "power of two"),
        (edit("layer0.out.scale", lambda s: -s), "power of two"),
        (edit("layer0.out.scale", lambda s: s * 0), "power of two"),
        (edit("layer0.out.scale", lambda s: s * np.nan), "power of two"),
        (edit("layer0.up.bias", lambda b: b + 2.0**25), "24 bits"),
        (edit("layer0.up.bias", lambda b: b + np.inf), "24 bits"),
        (edit("layer0.up.bias", lambda b: b + np.nan), "grid"),
        (edit("layer0.up.bias", lambda b: b * 0 + 0.1), "24 bits|grid"),
        (edit("layer0.down.scale", lambda s: s * 0 + 2.0**12), "24 bits"),
        (edit("layer0.shift_time.past", lambda p: p * 0 + 0.01), "multiples of 1/64"),
        (edit("layer0.shift_time.past", lambda p: p * 0 + 2), "multiples of 1/64"),
        (edit("layer0.shift_time.past", lambda p: p * np.nan), "multiples of 1/64"),
    ],
)
def test_models_that_are_not_what_they_say_are_refused(tiny, change, complaint):
    tensors = tensors_of(tiny)
    change(tensors)
    with pytest.raises(ModelError, match=complaint):
        NativeEngine(with_weights(tiny, tensors))


@pytest.mark.parametrize("field", ["vocab", "width", "layers", "hidden", "hash_rows"])
@pytest.mark.parametrize("value", [None, 0, -1, "7", 3, 1 << 40, 1 << 80])
def test_cards_that_are_not_what_they_say_are_refused(tiny, field, value):
    architecture = {**tiny.card["architecture"], field: value}
    other = dataclasses.replace(tiny, card={**tiny.card, "architecture": architecture})
    with pytest.raises(ModelError):
        NativeEngine(other)


@pytest.mark.parametrize("name", ["tiny", "shipped"])
def test_weights_are_read_as_onnx_reads_them(tiny, name):
    package = tiny if name == "tiny" else registry.shipped()
    wanted = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.ModelProto.FromString(package.weights).graph.initializer
    }
    got = read_weights(package.weights)
    assert got.keys() == wanted.keys()
    for key, array in wanted.items():
        assert np.asarray(got[key]).dtype == array.dtype
        assert np.array_equal(got[key], array)


def test_damaged_weights_are_refused_or_read(tiny):
    data = tiny.weights
    random = np.random.default_rng(3)
    for at in [*range(200), *random.integers(0, len(data), 300)]:
        damaged = data[:at] + bytes([data[at] ^ (1 << random.integers(8))]) + data[at + 1 :]
        try:
            read_weights(damaged)
        except ModelError:
            continue
    for length in random.integers(1, len(data), 50):
        with pytest.raises(ModelError):
            read_weights(data[:length])


def test_neither_onnx_nor_its_runtime_is_needed():
    code = (
        "import sys\n"
        "for name in ('onnx', 'onnxruntime', 'google.protobuf'): sys.modules[name] = None\n"
        "import lmfs\n"
        "from lmfs.codecs.lm import LmCodec\n"
        "from lmfs.models import registry, verify\n"
        "codec = LmCodec(registry.shipped())\n"
        "text = b'All of this is text of some words, and of some others.'\n"
        "assert codec.decode(codec.encode([text]), [len(text)]) == [text]\n"
        "findings = verify.verify(registry.shipped().path)\n"
        "assert not any(finding.ok is False for finding in findings)\n"
        "print(*(finding.what for finding in findings if finding.ok is None))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "lowerings\n"
    assert done.stderr == ""


def test_onnx_runtime_where_it_is_not_installed(tiny):
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "import lmfs, lmfs.engines, lmfs.models.registry\n"
        "try:\n"
        "    lmfs.engines.engine_for(lmfs.models.registry.shipped())\n"
        "except lmfs.EngineError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LMFS_ENGINE": "ort"},
    )
    assert "install lmfs[cpu]" in done.stdout
