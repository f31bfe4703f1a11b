"""What a token costs in the native engine and in ONNX Runtime, side by side.

    python -m lmfs_tools.bench.engine [--rounds N] [--threads N] [--busy] [--json OUT] [MODEL.lmm]

Owns: the engine table of tools/bench/results. Both engines get the same tokens, of English text,
and threads, in turns, so that other work on the machine disturbs both; figures are medians over
rounds, ratios those of the medians. "In each thread" is how lmfs decodes: every thread advances
lanes of its own, where ONNX Runtime has all lanes in one call. "Rate" counts the multiplications of
the matrices, those that are left out because they are by zero as well, but all of a step's time; it
is held against ONNX Runtime's MatMulInteger alone, at a batch of 512. On a machine with other work,
--busy counts one thread's own processor time instead.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import threading
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from lmfs.engines.native import NativeEngine
from lmfs.engines.ort import CPU, OrtEngine
from lmfs.models import registry
from lmfs.models.package import ModelPackage
from lmfs.native import Lanes

from .speed import processor

LANES = (1, 4, 16, 32, 64)
ENCODE_LANES, ENCODE_WINDOW = 16, 128  # what lmfs.codecs.lm encodes with
BATCH = 512
PAUSE_S = 0.1  # ONNX Runtime spins for some 0.054
TEXT = pathlib.Path(__file__).parents[2] / "tests" / "data" / "alice29.txt"


Clock = Callable[[], float]


def medians(clock: Clock, rounds: int, *works: Callable[[], object]) -> list[float]:
    """Seconds of each, in turns.

    Each turn begins with a pause, in which the other engine's threads cease to spin for more work
    (a processor that they hold is none for ours), and a run that does not count.
    """
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for work, spent in zip(works, times, strict=True):
            time.sleep(PAUSE_S)
            work()
            began = clock()
            work()
            spent.append(clock() - began)
    return [statistics.median(spent) for spent in times]


def text_tokens(package: ModelPackage, lanes: int, count: int) -> NDArray[np.int64]:
    """(lanes, count) tokens of text, each lane from somewhere else."""
    tokens = np.array(package.tokenizer().vocabulary.tokenize(TEXT.read_bytes()), np.int64)
    starts = np.random.default_rng(1).integers(0, len(tokens) - count, lanes)
    return np.stack([tokens[start : start + count] for start in starts])


def steps(engine: NativeEngine | OrtEngine, lanes: int, repeat: int) -> Callable[[], object]:
    state = engine.start(lanes)
    tokens = text_tokens(engine.package, lanes, repeat).T.copy()

    def work() -> None:
        for column in tokens:
            engine.step(state, column)

    return work


def steps_in_threads(
    engine: NativeEngine, lanes: int, repeat: int, threads: int
) -> Callable[[], object]:
    """So many lanes in each thread."""
    columns = text_tokens(engine.package, lanes, repeat).T[:, :, None].copy()

    def one(state: Lanes) -> None:
        for column in columns:
            engine.core.run(state, column, True)

    states = [engine.start(lanes) for _ in range(threads)]

    def work() -> None:
        others = [threading.Thread(target=one, args=(state,)) for state in states[1:]]
        for other in others:
            other.start()
        one(states[0])
        for other in others:
            other.join()

    return work


def windows(engine: NativeEngine | OrtEngine, lanes: int) -> Callable[[], object]:
    state = engine.start(lanes, sequence=True)
    tokens = text_tokens(engine.package, lanes, ENCODE_WINDOW)
    return lambda: engine.sequence(state, tokens)


def matmul_integer(inputs: int, outputs: int, threads: int) -> Callable[[], object]:
    """uint8 (BATCH, inputs) x int8 (inputs, outputs), the weights constant as in a model."""
    random = np.random.default_rng(1)
    weights = helper.make_tensor(
        "w", TensorProto.INT8, (inputs, outputs),
        random.integers(-64, 64, inputs * outputs).astype(np.int8).tobytes(), raw=True,
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, (BATCH, inputs))],
        [helper.make_tensor_value_info("y", TensorProto.INT32, (BATCH, outputs))],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    x = random.integers(0, 256, (BATCH, inputs)).astype(np.uint8)
    return lambda: session.run(None, {"x": x})


def measure(package: ModelPackage, threads: int, rounds: int, clock: Clock) -> dict[str, object]:
    native = NativeEngine(package, threads=threads)
    ort = OrtEngine(package, providers=[CPU], threads=threads)
    products = native.core.products
    rows = []

    def row(what: str, tokens: int, native_s: float, ort_s: float) -> None:
        rows.append(
            {
                "what": what,
                "native_us_a_token": round(native_s / tokens * 1e6, 2),
                "ort_us_a_token": round(ort_s / tokens * 1e6, 2),
                "times_faster": round(ort_s / native_s, 2),
                "native_gmac_s": round(products * tokens / native_s / 1e9, 1),
            }
        )

    for lanes in LANES:
        repeat = max(16, 512 // lanes)
        both = medians(clock, rounds, steps(native, lanes, repeat), steps(ort, lanes, repeat))
        row(f"step, {lanes} lanes", lanes * repeat, *both)
    if threads > 1:
        lanes, repeat = native.lanes, 512  # far beyond what starting a thread takes
        both = medians(
            clock,
            rounds,
            steps_in_threads(native, lanes, repeat, threads),
            steps(ort, lanes * threads, repeat),
        )
        row(f"step, {lanes} lanes in each thread", lanes * threads * repeat, *both)
    for lanes in (1, ENCODE_LANES):
        both = medians(clock, rounds, windows(native, lanes), windows(ort, lanes))
        row(f"sequence, {lanes} x {ENCODE_WINDOW}", lanes * ENCODE_WINDOW, *both)
    width, vocab = (package.card["architecture"][name] for name in ("width", "vocab"))
    (seconds,) = medians(clock, 4 * rounds, matmul_integer(width, vocab, threads))
    rate = BATCH * width * vocab / seconds / 1e9
    for entry in rows:
        entry["of_matmul_integer"] = round(float(entry["native_gmac_s"]) / rate, 2)
    return {
        "processor": processor(),
        "model": package.name,
        "isa": native.core.isa,
        "threads": threads,
        "clock": clock.__name__,
        "rounds": rounds,
        "products_a_token": products,
        "matmul_integer_gmac_s": round(rate, 1),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--busy", action="store_true", help="processor time, of one thread")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    package = ModelPackage.load(args.model) if args.model else registry.shipped()
    if args.busy:
        args.threads = 1
    clock = time.process_time if args.busy else time.perf_counter
    result = measure(package, args.threads, args.rounds, clock)
    console = Console()
    table = Table(title=f"{package.name}, {result['isa']}, {args.threads} threads")
    for column in result["rows"][0]:
        table.add_column(column, justify="left" if column == "what" else "right")
    for entry in result["rows"]:
        table.add_row(*map(str, entry.values()))
    console.print(table)
    console.print(f"MatMulInteger at {BATCH}: {result['matmul_integer_gmac_s']} GMAC/s")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
