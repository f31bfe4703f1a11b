"""lmfs.native against tests/reference_coder.py, and against what no caller should get away with."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import repeat

import numpy as np
import pytest
import reference_coder as reference
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmfs.native import PROBABILITY_BITS, TokenDecoder, TokenEncoder, Vocabulary
from lmfs.profile import PROFILE_1

SINGLE = [bytes([byte]) for byte in range(256)]
ENGLISH = sorted([*SINGLE, b"the", b"the ", b"th", b"and", b"ing", b"  ", b"\xc3\xa9", b"\xff\xfe"])
TABLE = np.array(PROFILE_1.table)

Rows = NDArray[np.int16]

spellings = st.builds(
    lambda extra: sorted({*SINGLE, *extra}),
    st.lists(
        st.binary(min_size=2, max_size=5) | st.text("abc", min_size=2).map(str.encode), max_size=40
    ),
)
tables = st.one_of(
    st.just(TABLE),
    st.sampled_from([[1], [1 << 24], [1 << 24, 1], [1 << 24] * 65535 + [1], [3, 2, 2, 1]]).map(
        lambda values: np.array(values, np.uint32)
    ),
    st.lists(st.integers(1, 1 << 24), min_size=1, max_size=50).map(
        lambda values: np.array(sorted(values, reverse=True), np.uint32)
    ),
)
styles = st.sampled_from(["any", "narrow", "flat", "sharp", "ends"])
seeds = st.integers(0, 2**32 - 1)


def make_logits(style: str, seed: int, shape: tuple[int, ...]) -> Rows:
    rng = np.random.default_rng(seed)
    if style == "any":
        return rng.integers(-32768, 32768, shape).astype(np.int16)
    if style == "narrow":
        return rng.normal(0, 150, shape).clip(-32768, 32767).astype(np.int16)
    if style == "flat":
        return np.full(shape, rng.integers(-32768, 32768), np.int16)
    if style == "sharp":
        logits = np.full(shape, -32768, np.int16)
        np.put_along_axis(logits, rng.integers(0, shape[-1], (*shape[:-1], 1)), 32767, axis=-1)
        return logits
    return rng.choice(np.array([-32768, 32767], np.int16), shape)


def encode(
    vocabulary: Vocabulary, table: NDArray[np.uint32], logits: Rows, tokens: object
) -> bytes:
    encoder = TokenEncoder(vocabulary, table)
    encoder.push(logits, np.asarray(tokens, np.uint16))
    return encoder.finish()


def decode(
    vocabulary: Vocabulary,
    table: NDArray[np.uint32],
    blobs: list[bytes],
    sizes: list[int],
    logits: Callable[[NDArray[np.int64], int], Rows],
) -> list[bytes | None]:
    """logits(lanes, time) -> (lanes, vocab)"""
    decoder = TokenDecoder(vocabulary, table, blobs, sizes)
    time = 0
    while len(lanes := decoder.active):
        assert len(decoder.step(logits(lanes, time))) == len(lanes)
        time += 1
    return decoder.chunks()


# Coder


@settings(max_examples=60, deadline=None)
@given(spellings, tables, styles, seeds, st.lists(st.integers(0, 65535), max_size=12))
def test_blobs_equal_the_references_and_decode(
    spelled: list[bytes], table: NDArray[np.uint32], style: str, seed: int, raw: list[int]
) -> None:
    vocabulary = Vocabulary(spelled)
    tokens = np.array([token % len(spelled) for token in raw], np.uint16)
    logits = make_logits(style, seed, (len(tokens), len(spelled)))
    blob = encode(vocabulary, table, logits, tokens)
    assert blob == reference.encode(list(logits), table, tokens.tolist())

    chunk = vocabulary.spell(tokens)
    again = decode(vocabulary, table, [blob], [len(chunk)], lambda _, time: logits[time : time + 1])
    assert again == [chunk]


@settings(max_examples=60, deadline=None)
@given(tables, styles, seeds, st.binary(max_size=12), st.integers(0, 8))
@example(TABLE, "flat", 0, b"\xff\xff\xff\xff", 3)
@example(TABLE, "flat", 0, b"", 0)
@example(TABLE, "flat", 0, b"\0", 0)
@example(TABLE, "sharp", 0, b"", 8)
def test_any_bytes_decode_as_the_reference_says(
    table: NDArray[np.uint32], style: str, seed: int, blob: bytes, size: int
) -> None:
    logits = make_logits(style, seed, (size, len(ENGLISH)))
    got = decode(Vocabulary(ENGLISH), table, [blob], [size], lambda _, t: logits[t : t + 1])
    assert got == [reference.decode(ENGLISH, table, blob, size, list(logits))]


@settings(max_examples=25, deadline=None)
@given(styles, seeds)
def test_a_blob_is_the_only_one_for_its_chunk(style: str, seed: int) -> None:
    vocabulary = Vocabulary(ENGLISH)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, len(ENGLISH), 6)
    logits = make_logits(style, seed, (200, len(ENGLISH)))
    blob = encode(vocabulary, TABLE, logits[:6], tokens)
    chunk = vocabulary.spell(tokens.astype(np.uint16))

    others = [blob[:n] for n in range(len(blob))]
    others += [blob + tail for tail in (b"\0", b"\x80", b"\0" * 9, b"\xff" * 9)]
    for i in range(8 * len(blob)):
        flipped = bytearray(blob)
        flipped[i // 8] ^= 1 << i % 8
        others.append(bytes(flipped))
    sizes = [len(chunk)] * len(others)
    chunks = decode(vocabulary, TABLE, others, sizes, lambda lanes, t: logits[[t] * len(lanes)])
    for other, got in zip(others, chunks, strict=True):
        assert got != chunk
        if got is not None:
            assert len(got) == len(chunk)
            assert got == reference.decode(ENGLISH, TABLE, other, len(chunk), list(logits))


@pytest.mark.parametrize("prefix", [b"\x80", b"\x01", b"\x00\x00\x01", b"\x37\x00\x00\x00\x05"])
@pytest.mark.parametrize("style", ["narrow", "flat"])
def test_a_carry_runs_through_all_that_was_written(prefix: bytes, style: str) -> None:
    """The tokens hold the interval across one number, so that what is written is that number less
    a little, in 0xFF; the last token takes it above that number."""
    vocabulary = Vocabulary(ENGLISH)
    row = make_logits(style, 5, (1, len(ENGLISH)))[0]
    decoded = reference.decode_tokens(prefix, repeat(row), TABLE)
    tokens = [next(decoded) for _ in range(60)]

    interval = reference.Interval()
    for token in tokens:
        reference.encode_token(interval, row, TABLE, token)
    written = (interval.low >> 32).to_bytes(interval.shifts, "big")
    assert b"\xff" * 16 in written
    reference.encode_token(interval, row, TABLE, 0)  # the uppermost leaf
    tokens.append(0)
    blob = interval.blob()
    assert blob.startswith(prefix + bytes(16))

    logits = np.tile(row, (len(tokens), 1))
    assert encode(vocabulary, TABLE, logits, tokens) == blob
    chunk = vocabulary.spell(np.array(tokens, np.uint16))
    assert decode(vocabulary, TABLE, [blob], [len(chunk)], lambda _, t: logits[:1]) == [chunk]


@pytest.mark.parametrize(("scale", "seed"), [(0, 1), (60, 2), (300, 3), (2000, 4)])
def test_coded_size_is_the_ideal_size(scale: int, seed: int) -> None:
    vocabulary, time = Vocabulary(ENGLISH), 4000
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (time, len(ENGLISH))).clip(-32768, 32767).astype(np.int16)
    exact = np.exp(logits / 64 - logits.max(axis=1, keepdims=True) / 64)
    exact /= exact.sum(axis=1, keepdims=True)
    tokens = (rng.random((time, 1)) > exact.cumsum(axis=1)).sum(axis=1).clip(0, len(ENGLISH) - 1)
    encoder = TokenEncoder(vocabulary, TABLE)
    encoder.push(logits, tokens.astype(np.uint16))
    coded_bits = 8 * len(encoder.finish())
    assert encoder.ideal_bits - 8 <= coded_bits <= encoder.ideal_bits * 1.001 + 64
    # The node probabilities themselves lose next to nothing against the model's.
    model_bits = -np.log2(exact[np.arange(time), tokens]).sum()
    assert encoder.ideal_bits <= model_bits * 1.001 + 8


def test_coded_size_of_the_worst_tokens() -> None:
    """Every decision of the least probability there is: rounding costs most there, and is small."""
    vocabulary, time = Vocabulary(ENGLISH), 1000
    logits = np.full((time, len(ENGLISH)), -32768, np.int16)
    logits[:, 0] = 32767
    encoder = TokenEncoder(vocabulary, np.array([1 << 24] + [1] * 65535, np.uint32))
    encoder.push(logits, np.full(time, len(ENGLISH) - 1, np.uint16))
    assert encoder.ideal_bits > time * PROBABILITY_BITS
    assert 8 * len(encoder.finish()) <= encoder.ideal_bits * 1.005 + 64


@pytest.mark.parametrize("split", [[12], [1] * 12, [0, 5, 0, 7]])
def test_pushing_in_parts_changes_nothing(split: list[int]) -> None:
    vocabulary = Vocabulary(ENGLISH)
    logits = make_logits("narrow", 1, (12, len(ENGLISH)))
    tokens = np.arange(12, dtype=np.uint16) * 20
    encoder = TokenEncoder(vocabulary, TABLE)
    start = 0
    for size in split:
        encoder.push(logits[start : start + size], tokens[start : start + size])
        start += size
    assert encoder.finish() == encode(vocabulary, TABLE, logits, tokens)


def test_the_largest_sums() -> None:
    """65,536 tokens of frequency 2^24: cumulative sums of 2^40, the most there can be."""
    pairs = [bytes([a, b]) for a in range(256) for b in range(256)][: 65536 - 256]
    vocabulary = Vocabulary(sorted(SINGLE + pairs))
    tokens = np.array([0, 65535, 32768, 32767, 12345], np.uint16)
    flat = np.zeros((5, 65536), np.int16)
    table = np.array([1 << 24], np.uint32)
    blob = encode(vocabulary, table, flat, tokens)
    assert blob == reference.encode(list(flat), table, tokens.tolist())
    chunk = vocabulary.spell(tokens)
    assert decode(vocabulary, table, [blob], [len(chunk)], lambda _, t: flat[:1]) == [chunk]


def test_no_tokens_are_no_bytes() -> None:
    vocabulary = Vocabulary(ENGLISH)
    assert TokenEncoder(vocabulary, TABLE).finish() == b""
    decoder = TokenDecoder(vocabulary, TABLE, [b"", b"x"], [0, 0])
    assert decoder.active.tolist() == []
    assert decoder.chunks() == [b"", None]


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(1, 9), st.randoms(use_true_random=False))
def test_a_lane_does_not_depend_on_its_neighbours(seed: int, count: int, order: object) -> None:
    vocabulary = Vocabulary(ENGLISH)
    rng = np.random.default_rng(seed)
    logits = make_logits("narrow", seed, (count, 64, len(ENGLISH)))
    tokens = [rng.integers(0, len(ENGLISH), rng.integers(1, 8)) for _ in range(count)]
    blobs = [
        encode(vocabulary, TABLE, rows[: len(t)], t) for rows, t in zip(logits, tokens, strict=True)
    ]
    sizes = [len(vocabulary.spell(t.astype(np.uint16))) for t in tokens]
    damaged = int(rng.integers(count))
    blobs[damaged] += b"\x55" * 9

    def alone(lane: int) -> bytes | None:
        rows = logits[lane]
        return decode(
            vocabulary, TABLE, [blobs[lane]], [sizes[lane]], lambda _, t: rows[t : t + 1]
        )[0]

    lanes = list(range(count))
    order.shuffle(lanes)  # type: ignore[attr-defined]
    together = decode(
        vocabulary,
        TABLE,
        [blobs[lane] for lane in lanes],
        [sizes[lane] for lane in lanes],
        lambda active, t: logits[np.array(lanes)[active], t],
    )
    assert together == [alone(lane) for lane in lanes]
    assert together[lanes.index(damaged)] is None
    assert together.count(None) == 1


def test_step_gives_a_token_for_every_lane_that_was_active() -> None:
    vocabulary = Vocabulary(ENGLISH)
    logits = make_logits("narrow", 7, (3, len(ENGLISH)))
    chunks = [[5, 6, 7], [8], [9, 10]]
    blobs = [encode(vocabulary, TABLE, logits[: len(tokens)], tokens) for tokens in chunks]
    sizes = [len(vocabulary.spell(np.array(tokens, np.uint16))) for tokens in chunks]
    decoder = TokenDecoder(vocabulary, TABLE, blobs, sizes)
    for time, (active, tokens) in enumerate(
        [([0, 1, 2], [5, 8, 9]), ([0, 2], [6, 10]), ([0], [7])]
    ):
        assert decoder.active.tolist() == active
        assert decoder.step(logits[[time] * len(active)]).tolist() == tokens
    assert decoder.active.tolist() == []
    assert decoder.step(np.zeros((0, len(ENGLISH)), np.int16)).tolist() == []


def test_a_token_that_is_too_long_for_its_lane_ends_it() -> None:
    vocabulary = Vocabulary(ENGLISH)
    logits = np.zeros((1, len(ENGLISH)), np.int16)
    blob = encode(vocabulary, TABLE, logits, [ENGLISH.index(b"the ")])
    assert decode(
        vocabulary, TABLE, [blob] * 2, [3, 4], lambda lanes, _: logits[[0] * len(lanes)]
    ) == [
        None,
        b"the ",
    ]


def test_a_blob_that_is_cut_off_ends_its_lane_early() -> None:
    """Damage must not make the model run on to the end of a large chunk."""
    vocabulary = Vocabulary(ENGLISH)
    logits = make_logits("flat", 1, (1, len(ENGLISH)))
    decoder = TokenDecoder(vocabulary, TABLE, [b"", b"\x12\x34\x56"], [1 << 20, 1 << 20])
    steps = 0
    while len(active := decoder.active):
        decoder.step(logits[[0] * len(active)])
        steps += 1
    assert steps < 8
    assert decoder.chunks() == [None, None]


def test_rows_may_lie_apart_but_not_be_scattered() -> None:
    vocabulary = Vocabulary(ENGLISH)
    logits = make_logits("narrow", 1, (4, 3, len(ENGLISH)))
    tokens = np.arange(4, dtype=np.uint16)
    expected = encode(vocabulary, TABLE, np.ascontiguousarray(logits[:, 1]), tokens)
    assert encode(vocabulary, TABLE, logits[:, 1], tokens) == expected
    assert encode(vocabulary, TABLE, logits[::-1, 1], tokens) == encode(
        vocabulary, TABLE, np.ascontiguousarray(logits[::-1, 1]), tokens
    )
    with pytest.raises(ValueError, match="a row is not contiguous"):
        encode(vocabulary, TABLE, np.asfortranarray(logits[:, 1]), tokens)


def test_wrong_arguments() -> None:
    vocabulary = Vocabulary(ENGLISH)
    row, token = np.zeros((1, len(ENGLISH)), np.int16), np.zeros(1, np.uint16)
    encoder = TokenEncoder(vocabulary, TABLE)
    with pytest.raises(TypeError):
        encoder.push(row.astype(np.int32), token)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        encoder.push(row, token.astype(np.int64))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected 1 rows, got 2"):
        encoder.push(np.repeat(row, 2, axis=0), token)
    with pytest.raises(ValueError, match="expected 264 columns, got 263"):
        encoder.push(row[:, 1:], token)
    with pytest.raises(ValueError, match="token 264 is not in the vocabulary"):
        encoder.push(np.repeat(row, 2, axis=0), np.array([0, 264], np.uint16))
    assert encoder.finish() == b""  # none of these coded anything
    with pytest.raises(ValueError, match="finish after finish"):
        encoder.finish()
    with pytest.raises(ValueError, match="push after finish"):
        encoder.push(row, token)

    with pytest.raises(ValueError, match="as many sizes"):
        TokenDecoder(vocabulary, TABLE, [b""], [1, 2])
    with pytest.raises(ValueError, match="size is negative"):
        TokenDecoder(vocabulary, TABLE, [b""], [-1])
    for blobs, sizes in ([None], [1]), ([b""], ["1"]), ([b""], [1.5]), ([b""], [1 << 64]):
        with pytest.raises(TypeError):
            TokenDecoder(vocabulary, TABLE, blobs, sizes)  # type: ignore[arg-type]
    decoder = TokenDecoder(vocabulary, TABLE, [b""], [1])
    with pytest.raises(ValueError, match="expected 1 rows, got 2"):
        decoder.step(np.repeat(row, 2, axis=0))
    with pytest.raises(ValueError, match="expected 264 columns"):
        decoder.step(row[:, 1:])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "1 to 65536 entries"),
        ([1] * 65537, "1 to 65536 entries"),
        ([(1 << 24) + 1, 1], "above 2\\^24"),
        ([2, 3], "above the one before"),
        ([2, 1, 0], "an entry is 0"),
    ],
)
def test_what_is_no_frequency_table(values: list[int], message: str) -> None:
    vocabulary = Vocabulary(ENGLISH)
    table = np.array(values, np.uint32)
    with pytest.raises(ValueError, match=message):
        TokenEncoder(vocabulary, table)
    with pytest.raises(ValueError, match=message):
        TokenDecoder(vocabulary, table, [], [])


def test_threads_on_their_own_objects_and_on_one() -> None:
    vocabulary = Vocabulary(ENGLISH)
    logits = make_logits("narrow", 3, (300, len(ENGLISH)))
    tokens = np.random.default_rng(3).integers(0, len(ENGLISH), 300).astype(np.uint16)
    expected = encode(vocabulary, TABLE, logits, tokens)
    shared = TokenEncoder(vocabulary, TABLE)
    blobs: list[bytes] = []

    def work() -> None:
        for _ in range(5):
            blobs.append(encode(vocabulary, TABLE, logits, tokens))
            shared.push(logits[:1], tokens[:1])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert blobs == [expected] * 20
    assert shared.finish() == encode(vocabulary, TABLE, logits[[0] * 20], tokens[[0] * 20])


def test_the_bytes_that_were_once_written() -> None:
    """Golden: a change here makes every file written so far unreadable."""
    vocabulary = Vocabulary(ENGLISH)
    text = b"the thing and the other \xff\xfe caf\xc3\xa9"
    tokens = vocabulary.tokenize(text)
    time, token = np.ogrid[: len(tokens), : len(ENGLISH)]
    logits = ((time * 7919 + token * token * 104729) % 1601 - 800).astype(np.int16)
    blob = encode(vocabulary, TABLE, logits, tokens)
    assert blob.hex() == (
        "754351c915e6f935dde85cda8e18e6675c4e386cb52fc11de275bacf001330e57efbe927d51c45bf049f1b737239"
    )
