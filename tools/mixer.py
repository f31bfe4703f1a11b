"""What a mixer starts from: tables, and weights and maps learned on the training corpus.

    python -m lmfs_tools.mixer WORK OUTPUT [--package X.lmm] [--of KIND] [--led]

WORK is what lmfs_tools.corpus prepared; OUTPUT becomes the data of a coder profile
(lmfs/profile.py): of profile 6 where KIND is prose, of profile 7 where it is logs, of profile 8
with --of prose --led. The layout is that of `Tables` and `Adaptive` in
lmfs/native/mixer_profile.hpp. Floating point is used here freely: the profile stores what came out.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
import zstandard
from numpy.typing import NDArray

from lmfs.codecs.lm import LmCodec
from lmfs.engines import engine_for
from lmfs.models import registry
from lmfs.models.package import ModelPackage
from lmfs.native import Mixer, MixerProfile, TokenEncoder, Vocabulary
from lmfs.profile import PROFILE_1, CoderProfile, profile_by_number

from .corpus import MARKED_UP, WEIGHTS
from .debian_texts import KINDS

STRETCH_UNITS = 128  # a nat
CONTEXTS, MATCHES, RUNS, RUNS_OF_NODES = 24, 2, 10, 5
VOTES = MATCHES + RUNS
INPUTS, GUESS_INPUTS = 56, 16
WEIGHT_ONE = 1 << 13
KNOTS = 33
PIECE = 16 << 10
LOGS = ("logs.txt", "json.txt")
NOT_YET_THERE = (*KINDS, f"wiki.txt{MARKED_UP}")  # when what is shipped was learned
SOURCES = {
    "all": tuple(WEIGHTS),
    "prose": tuple(name for name in WEIGHTS if name not in (*LOGS, *NOT_YET_THERE)),
    "logs": LOGS,
}

TABLES = np.dtype(
    [
        ("stretch", "<i2", 3 * 4096),
        ("squash", "<u4", 4096),
        ("reciprocal", "<u2", 1024),
        ("next", "u1", (2, 256)),
        ("seen", "u1", 256),
    ]
)
ADAPTIVE = np.dtype(
    [
        ("history", "<u4", (CONTEXTS, 4, 256)),
        ("match", "<u4", (MATCHES, 16, 8)),
        ("run", "<u4", (RUNS_OF_NODES, 2, 256)),
        ("vote_match", "<u4", (MATCHES, 16, 8)),
        ("vote_run", "<u4", (RUNS, 256)),
        ("guess_match", "<u4", (MATCHES, 2, 16, 8)),
        ("guess_run", "<u4", (RUNS, 2, 256)),
        ("by_vote", "<i2", (2, VOTES, 16, GUESS_INPUTS)),
        ("by_count", "<i2", (2, 12, 12, GUESS_INPUTS)),
        ("by_voters", "<i2", (2, 2, 256, GUESS_INPUTS)),
        ("by_guess", "<u2", (1024, KNOTS)),
        ("by_against", "<u2", (VOTES, 16, KNOTS)),
        ("by_match", "<i2", (2, 16, 4, 2, INPUTS)),
        ("by_order", "<i2", (2, 6, 8, 4, INPUTS)),
        ("by_level", "<i2", (16, CONTEXTS + 1, 2, INPUTS)),
        ("final", "<i2", (2, 16, 4, 4)),
        ("by_node", "<u2", (2048, KNOTS)),
        ("by_expected", "<u2", (16, 2, 16, KNOTS)),
        ("by_token", "<u2", (1024, KNOTS)),
    ]
)
COUNTERS = tuple(name for name in ADAPTIVE.names or () if ADAPTIVE[name].base == np.dtype("<u4"))
_COUNT_BITS = 10  # of a counter, below its probability


# ------------------------------------------------------------------------------ bit histories

# Counts of zeros and ones, of which the smaller allows the larger so much; the last bit is kept
# where both have been seen.
_LARGEST = (48, 20, 10, 7, 6, 6)
_FORGOTTEN = (0, 1, 2, 2, 3, 3, 4, 4)


def _is_history(zeros: int, ones: int) -> bool:
    less, more = sorted((zeros, ones))
    return less < len(_LARGEST) and more <= _LARGEST[less]


def _forget(count: int) -> int:
    """What a surprise leaves of the other bit's count."""
    return _FORGOTTEN[count] if count < len(_FORGOTTEN) else 5 if count < 16 else 6


def histories() -> list[tuple[int, int, int]]:
    """Every history (zeros, ones, last bit) by its number; number 0 has seen nothing."""
    result = []
    for total in range(_LARGEST[0] + 1):
        for zeros in range(total + 1):
            if _is_history(zeros, total - zeros):
                result.append((zeros, total - zeros, 0))
                if zeros and total - zeros:
                    result.append((zeros, total - zeros, 1))
    assert len(result) <= 256
    return result


def _after(history: tuple[int, int, int], bit: int) -> tuple[int, int, int]:
    counts = list(history[:2])
    counts[bit] += 1
    if counts[1 - bit] > 2:
        counts[1 - bit] = _forget(counts[1 - bit])
    while not _is_history(*counts):
        counts[bit] -= 1
    return counts[0], counts[1], bit if counts[0] and counts[1] else 0


# ------------------------------------------------------------------------------ before learning


def tables() -> NDArray[np.void]:
    result = np.zeros((), TABLES)

    def stretched(p: NDArray[np.float64]) -> NDArray[np.int16]:
        return np.rint(STRETCH_UNITS * np.log(p / (1 - p))).astype(np.int16)

    edge = stretched(np.maximum(np.arange(4096), 0.5) / 65536)
    result["stretch"] = np.concatenate([stretched((np.arange(4096) + 0.5) / 4096), edge, -edge])
    x = (np.arange(4096) - 2048) / STRETCH_UNITS
    result["squash"] = np.clip(np.rint((1 << 22) / (1 + np.exp(-x))), 1, (1 << 22) - 1)
    result["reciprocal"] = 65536 / (np.arange(1024) + 1.5)
    every = histories()
    number = {history: i for i, history in enumerate(every)}
    for i, history in enumerate(every):
        for bit in (0, 1):
            result["next"][bit, i] = number[_after(history, bit)]
        result["seen"][i] = history[0] + history[1]
    return result


def unlearned() -> NDArray[np.void]:
    def counters(p: NDArray[np.float64]) -> NDArray[np.uint32]:
        return np.clip(np.rint(p * (1 << 22)), 1, (1 << 22) - 1).astype(np.uint32) << 10

    result = np.zeros((), ADAPTIVE)
    counts = np.zeros((256, 2))
    counts[: len(histories())] = [history[:2] for history in histories()]
    result["history"] = counters((counts[:, 1] + 0.4) / (counts.sum(1) + 0.8))
    by_length = 1 - 0.5 / (np.arange(16) + 2)
    by_history = (counts[:, 1] + 0.3) / (counts.sum(1) + 0.6)
    result["match"] = result["vote_match"] = counters(by_length)[:, None]
    result["run"] = result["vote_run"] = counters(by_history)
    result["guess_match"][:, 0] = counters(1 - by_length)[:, None]
    result["guess_match"][:, 1] = counters(by_length)[:, None]
    result["guess_run"][:, 0] = counters((1 - by_history) / 2)
    result["guess_run"][:, 1] = counters(by_history)
    for name in ("by_match", "by_order", "by_level"):
        result[name][..., :CONTEXTS] = int(0.15 * WEIGHT_ONE)
        result[name][..., 2 * CONTEXTS : 2 * CONTEXTS + MATCHES] = int(0.3 * WEIGHT_ONE)
        result[name][..., 2 * CONTEXTS + MATCHES : -1] = int(0.1 * WEIGHT_ONE)
        result[name][..., -1] = int(0.3 * WEIGHT_ONE)
    for name in ("by_vote", "by_count", "by_voters"):
        result[name][..., :VOTES] = int(0.2 * WEIGHT_ONE)
        result[name][..., VOTES + 1] = int(0.3 * WEIGHT_ONE)
    result["final"][..., :3] = WEIGHT_ONE // 3
    knots = (np.arange(KNOTS) * 128 - 2048) / STRETCH_UNITS
    for name in ("by_node", "by_expected", "by_token", "by_guess", "by_against"):
        result[name] = np.rint(65535 / (1 + np.exp(-knots)))
    return result


def rested(adaptive: NDArray[np.void], most: int) -> NDArray[np.void]:
    """The same with no counter above `most`, so that it goes on learning quickly."""
    result = adaptive.copy()
    for name in COUNTERS:
        counters = result[name]
        result[name] = counters & ~np.uint32(1023) | np.minimum(counters & 1023, most)
    return result


class Mean:
    """Of what was learned at different times: each time knows the last text best."""

    def __init__(self) -> None:
        self._sums = {name: np.zeros(ADAPTIVE[name].shape) for name in ADAPTIVE.names or ()}
        self._count = 0

    def add(self, adaptive: NDArray[np.void]) -> None:
        self._count += 1
        for name, total in self._sums.items():
            total += adaptive[name] >> _COUNT_BITS if name in COUNTERS else adaptive[name]

    def of(self, last: NDArray[np.void]) -> NDArray[np.void]:
        """With the counts of the last one."""
        result = last.copy()
        for name, total in self._sums.items():
            mean = np.rint(total / self._count).astype(last[name].dtype)
            if name in COUNTERS:
                mean = mean << _COUNT_BITS | last[name] & 1023
            result[name] = mean
        return result


# ------------------------------------------------------------------------------ learning


def samples(
    work: pathlib.Path, vocabulary: Vocabulary, sources: tuple[str, ...], count: int
) -> list[list[bytes]]:
    """Runs of chunks from these sources in turn: `count` from each, of 8 chunks."""
    result = []
    for k in range(count):
        for name in sources:
            tokens = np.load(work / "tokens" / f"{name}.npy", mmap_mode="r")
            start = (2 * k + 1) * len(tokens) // (2 * count)
            some = np.array(tokens[start : start + 4 * PIECE], np.uint16)
            run = vocabulary.spell(some)[: 8 * PIECE]
            result.append([run[i : i + PIECE] for i in range(0, len(run) - PIECE + 1, PIECE)])
    return [run for run in result if run]


def learn(
    data: bytes, package: ModelPackage, runs: list[list[bytes]], with_model: bool
) -> NDArray[np.void]:
    """One pass over the runs, each a primer for some of its chunks, which a model may code, too.

    The mean of what there is behind each run of the last two thirds.
    """
    profile = MixerProfile(data, CoderProfile.mixer_sizes)
    vocabulary = package.tokenizer().vocabulary
    mixer = Mixer(profile, vocabulary)
    mean, bits, total = Mean(), 0.0, 0.0
    engine = engine_for(package) if with_model else None
    for number, run in enumerate(runs):
        mixer.forget()
        # From no primer to a long one.
        primed = (0, 1, 3, 7)[number % 4] % len(run)
        for k, chunk in enumerate(run):
            if engine is None or k < primed or k >= primed + 2:
                bits += mixer.prime(chunk, PIECE)
            else:
                tokens = vocabulary.tokenize(chunk)
                encoder = TokenEncoder(vocabulary, PROFILE_1.table, mixer)
                state = engine.start(1, sequence=True)
                inputs = np.concatenate([[package.start_token], tokens[:-1]]).astype(np.int64)
                for at in range(0, len(tokens), 512):
                    logits, state = engine.sequence(state, inputs[None, at : at + 512])
                    encoder.push(logits[0], tokens[at : at + 512])
                bits += encoder.ideal_bits
                mixer = encoder.mixer
            total += len(chunk)
        if number >= len(runs) // 3:
            mean.add(_adaptive(mixer))
    print(f"{total / 1e6:.1f} MB learned from, {bits / total:.4f} bits a byte", flush=True)
    return mean.of(_adaptive(mixer))


def learn_led(package: ModelPackage, runs: list[list[bytes]]) -> NDArray[np.void]:
    """One pass more behind profile 6's data, all of it with the model and in strands.

    The mean as of `learn`; the weights for where no model runs stay as they were.
    """
    before = profile_by_number(6)
    codec = LmCodec(package, before)
    assert before.mixer is not None
    mixer = Mixer(before.mixer, package.tokenizer().vocabulary)
    mean = Mean()
    for number, run in enumerate(runs):
        mixer.forget()
        mixer = codec.lead(mixer, run[: (8, 3, 5, 2)[number % 4]])
        if number >= len(runs) // 3:
            mean.add(_adaptive(mixer))
    learned = mean.of(_adaptive(mixer))
    alone = np.frombuffer(before.mixer_data[TABLES.itemsize :], ADAPTIVE)[0]
    for name in ("by_vote", "by_count", "by_voters", "by_match", "by_order", "final"):
        learned[name][0] = alone[name][0]
    learned["by_level"][:, :, 0] = alone["by_level"][:, :, 0]
    return learned


def _adaptive(mixer: Mixer) -> NDArray[np.void]:
    return np.frombuffer(mixer.adaptive(), ADAPTIVE)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--package", type=pathlib.Path)
    parser.add_argument("--of", choices=SOURCES, default="all", help="learn from these texts")
    parser.add_argument("--runs", type=int, default=540, help="of all sources together")
    parser.add_argument("--rest", type=int, default=12, help="the largest count to start from")
    parser.add_argument("--without-model", action="store_true")
    parser.add_argument("--led", action="store_true", help="all with the model, behind profile 6")
    args = parser.parse_args()
    package = ModelPackage.load(args.package) if args.package else registry.shipped()
    sources = SOURCES[args.of]
    vocabulary = package.tokenizer().vocabulary
    runs = samples(args.work, vocabulary, sources, args.runs // len(sources))
    if args.led:
        learned = learn_led(package, runs)
    else:
        start = tables().tobytes() + unlearned().tobytes()
        learned = learn(start, package, runs, with_model=not args.without_model)
    data = tables().tobytes() + rested(learned, args.rest).tobytes()
    args.output.write_bytes(zstandard.ZstdCompressor(19).compress(data))
    print(f"{args.output}: {args.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
