"""lmfs.native's mixer against tests/reference_mixer.py, and against blobs that nobody wrote."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import reference_mixer as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmfs.native import Mixer, MixerProfile, TokenDecoder, TokenEncoder, Vocabulary
from lmfs.profile import PROFILE_1, profile_by_number

SINGLE = [bytes([byte]) for byte in range(256)]
WORDS = """
the|the |th|he|and |ing|er|in|ed |  |, |Alice|said|to |a |of|was |it|on|ll|ou|status |install|2013-
lib|amd64|un|ck|:|ü|0.|1.
""".strip()
ENGLISH = sorted({*SINGLE, *(word.encode() for word in re.split(r"[|\n]", WORDS))})
PAIRS = sorted(SINGLE + [bytes([a, b]) for a in range(256) for b in range(255)])  # depth 16
TABLE = np.array(PROFILE_1.table)
DATA = profile_by_number(2).mixer_data

Rows = NDArray[np.int16]


def native(
    spellings: list[bytes] = ENGLISH,
    data: bytes = DATA,
    sizes: tuple[int, int, int] = reference.SIZES,
    lane: tuple[int, int, int] | None = None,
) -> Mixer:
    return Mixer(MixerProfile(data, sizes, lane), Vocabulary(spellings))


def with_adaptive(adaptive: NDArray[np.void]) -> bytes:
    """A profile's data with this to start from, but for what every profile must hold."""
    adaptive["history"][:, :, 0] = 32768 << 16  # what has seen nothing says nothing
    return DATA[: reference.TABLES.itemsize] + adaptive.tobytes()


def unlikely(seed: int) -> bytes:
    """A profile whose every weight, counter and map is noise: no training would give it."""
    noise = np.random.default_rng(seed).bytes(reference.ADAPTIVE.itemsize)
    return with_adaptive(np.frombuffer(noise, reference.ADAPTIVE)[0].copy())


def extreme(seed: int) -> bytes:
    """Likewise, every weight being next to where it saturates."""
    rng = np.random.default_rng(seed)
    adaptive = reference.split(unlikely(seed))[1]
    for name in reference.WEIGHTS:
        adaptive[name] = rng.choice([-32768, -32700, 32700, 32767], adaptive[name].shape)
    return with_adaptive(adaptive)


# --------------------------------------------------------------------------- the same arithmetic


def log_lines(count: int) -> bytes:
    rng = random.Random(3)
    lines = []
    for i in range(count):
        name = rng.choice(["libc6", "bash", "zlib1g"])
        lines.append(f"2013-04-{i // 9 + 1:02} 11:0{i % 9}:41 status installed {name}:amd64 0.{i}")
    return "\n".join(lines).encode()


def altered(block: bytes, times: int) -> bytes:
    """A block over and over, every time with other bytes changed: matches that miss and recover."""
    rng = random.Random(4)
    parts = []
    for _ in range(times):
        part = bytearray(block)
        for _ in range(3):
            part[rng.randrange(len(part))] = rng.randrange(256)
        parts.append(bytes(part))
    return b"".join(parts)


def noise(size: int) -> bytes:
    return random.Random(5).randbytes(size)


def changing_over() -> bytes:
    """What was followed turns out wrong, and another place has long been the same."""
    one, long, other = noise(66)[:6], noise(66)[6:46], noise(66)[46:52]
    return b"".join([one, long, b"x", other, long, b"yz", other[::-1], one, long, b"yz", other])


@dataclass(frozen=True)
class Case:
    """What a chunk is coded with."""

    chunk: bytes
    spellings: list[bytes]
    primer: bytes = b""
    piece: int = 1 << 20
    data: bytes = DATA
    sizes: tuple[int, int, int] = reference.SIZES


ALICE = b"""Alice was beginning to get very tired of sitting by her sister
on the bank, and of having nothing to do: once or twice she had
peeped into the book her sister was reading, but it had no
pictures or conversations in it, `and what is the use of a book,'
thought Alice `without pictures or conversation?'
"""
CASES = {
    "text": Case(ALICE, ENGLISH),
    "logs": Case(log_lines(8), ENGLISH),
    "lines": Case(b"a,b\n\n\n,,\n1,22,333\r\n1,22,,333\n\xff\xfe,\n" * 3 + b"\n", ENGLISH),
    "noise": Case(noise(600), SINGLE),
    "one token for long": Case(b"b" + b"a" * 290, SINGLE),
    "two tokens for long": Case(b"ab" * 40 + b"ba" * 20, sorted([*SINGLE, b"aa", b"ab", b"ba"])),
    "a long repetition": Case(noise(280) * 2, SINGLE),
    "repetitions that miss": Case(altered(noise(30), 9), SINGLE),
    "a match that changes over": Case(changing_over(), SINGLE),
    "a deep vocabulary": Case(ALICE[:120] + noise(30) + ALICE[:60], PAIRS),
    "primed": Case(ALICE[150:], ENGLISH, primer=ALICE[:150]),
    "primed in pieces": Case(log_lines(3), ENGLISH, primer=log_lines(5), piece=37),
    "little memory": Case(ALICE + log_lines(9), ENGLISH, primer=log_lines(4), sizes=(9, 4, 2)),
    "much memory": Case(ALICE + log_lines(9), ENGLISH, primer=log_lines(4), sizes=(22, 17, 18)),
    "unlikely weights": Case(ALICE[:200], ENGLISH, data=unlikely(1)),
    "extreme weights": Case(noise(40) + bytes(60) + b"\xff" * 60, SINGLE, data=extreme(2)),
}
references: dict[str, tuple[reference.Mixer, bytes]] = {}


def of_reference(name: str) -> tuple[reference.Mixer, bytes]:
    """The reference behind a case's chunk, and its blob: run once, it is slow."""
    if name not in references:
        case = CASES[name]
        mixer = reference.Mixer(case.data, case.spellings, case.sizes)
        mixer.prime(case.primer, case.piece)
        references[name] = mixer, mixer.encode(case.chunk)
    return references[name]


@pytest.mark.parametrize("name", CASES)
def test_blob_and_state_equal_the_references(name: str) -> None:
    case = CASES[name]
    expected, blob = of_reference(name)
    encoding = native(case.spellings, case.data, case.sizes)
    encoding.prime(case.primer, case.piece)
    decoding = encoding.copy()
    assert encoding.encode(case.chunk) == blob
    assert encoding.adaptive() == expected.adaptive()
    assert decoding.decode(blob, len(case.chunk)) == case.chunk
    assert decoding.adaptive() == expected.adaptive()
    # What a state is made of beyond that shows in what it makes of the next chunk.
    assert encoding.encode(case.chunk[::-1]) == decoding.encode(case.chunk[::-1])


def test_the_cases_go_where_they_should() -> None:
    """Slots thrown out, counters and weights at their limits, guesses: or nothing is compared."""
    assert of_reference("noise")[0].evictions > 5
    assert of_reference("little memory")[0].evictions > 1000
    blobs = [of_reference(f"{size} memory")[1] for size in ("little", "much")]
    assert len(blobs[1]) < 0.99 * len(blobs[0])
    mixer, _ = of_reference("one token for long")
    assert mixer.guesses[True] > 200
    guesses = [mixer.guesses for mixer, _ in map(of_reference, CASES)]
    assert sum(wrong for wrong, _ in guesses) > 100
    every = [
        np.frombuffer(of_reference(name)[0].adaptive(), reference.ADAPTIVE)[0] for name in CASES
    ]
    for name in reference.COUNTERS:
        counts = [int((adaptive[name] & 1023).max()) for adaptive in every[:-2]]  # not the noise
        # Matches and runs are right and wrong in guesses; on paths they are rare.
        assert max(counts) >= (80 if "match" in name or name == "run" else reference.COUNT_LIMIT), (
            name
        )
    assert max(match.length for match in of_reference("a long repetition")[0].matches) > 256
    assert of_reference("extreme weights")[0].saturations > 100
    depths = {(len(case.spellings) - 1).bit_length() for case in CASES.values()}
    assert {8, 9, 16} <= depths


@pytest.mark.parametrize("name", ["primed in pieces", "extreme weights"])
def test_the_reference_decodes_likewise(name: str) -> None:
    case = CASES[name]
    mixer = reference.Mixer(case.data, case.spellings, case.sizes)
    mixer.prime(case.primer, case.piece)
    expected, blob = of_reference(name)
    assert mixer.decode(blob, len(case.chunk)) == case.chunk
    assert mixer.adaptive() == expected.adaptive()


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.binary(min_size=2, max_size=4) | st.text("ab \n", min_size=2).map(str.encode)),
    st.text("ab \n,", max_size=30).map(str.encode) | st.binary(max_size=20),
    st.text("ab \n,", max_size=30).map(str.encode) | st.binary(max_size=20),
    st.integers(1, 9),
)
def test_any_bytes_with_any_vocabulary(
    extra: list[bytes], primer: bytes, chunk: bytes, piece: int
) -> None:
    spellings = sorted({*SINGLE, *extra})
    mixer, expected = native(spellings), reference.Mixer(DATA, spellings)
    mixer.prime(primer, piece)
    expected.prime(primer, piece)
    assert mixer.encode(chunk) == expected.encode(chunk)
    assert mixer.adaptive() == expected.adaptive()


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=8), st.integers(0, 6))
def test_any_bytes_decode_as_the_reference_says(blob: bytes, size: int) -> None:
    got = native().decode(blob, size)
    assert got == reference.Mixer(DATA, ENGLISH).decode(blob, size)


# ------------------------------------------------------------------------------------- branches


BRANCHED = {
    "text": Case(ALICE, ENGLISH, primer=ALICE),
    "logs": Case(log_lines(5), ENGLISH, primer=log_lines(7), piece=100),
    "behind nothing": Case(ALICE, ENGLISH),
    "a small one behind": Case(log_lines(6), ENGLISH, primer=log_lines(6), sizes=(9, 4, 2)),
    "repetitions that miss": Case(altered(noise(30), 6), SINGLE, primer=altered(noise(30), 3)),
    "a match that goes on": Case(noise(280)[100:], SINGLE, primer=noise(280)[:140]),
    "unlikely": Case(ALICE[:200], ENGLISH, primer=ALICE, data=unlikely(3)),
}
LANES = [(11, 6, 7), (6, 2, 2)]


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("name", BRANCHED)
def test_a_branch_equals_the_reference(name: str, lane: tuple[int, int, int]) -> None:
    case = BRANCHED[name]
    start = native(case.spellings, case.data, case.sizes, lane)
    start.prime(case.primer, case.piece)
    behind = reference.Mixer(case.data, case.spellings, case.sizes)
    behind.prime(case.primer, case.piece)
    before = start.adaptive()
    expected = behind.branch(lane)
    blob = expected.encode(case.chunk)
    encoding, decoding = start.branch(), start.branch()
    assert encoding.encode(case.chunk) == blob
    assert encoding.adaptive() == expected.adaptive()
    assert decoding.decode(blob, len(case.chunk)) == case.chunk
    assert decoding.adaptive() == expected.adaptive()
    assert start.adaptive() == before
    # Behind it all is as if nobody had followed.
    assert start.copy().encode(case.chunk) == behind.encode(case.chunk)
    # And it is worth something: there is much to find, and much that there is no room for.
    if case.primer and name != "unlikely":
        assert expected.fetched > 20
    if lane == LANES[1]:
        assert expected.evictions > 50


def test_a_branch_without_a_size_is_a_copy() -> None:
    start = native()
    start.prime(ALICE, 50)
    assert start.branch().encode(ALICE[9:]) == start.copy().encode(ALICE[9:])
    assert start.branch(4).used_bytes == start.used_bytes


def test_a_branch_needs_little_memory_and_is_nearly_as_good(data: Path) -> None:
    log = (data / "dpkg.log").read_bytes()
    start = native(sizes=(17, 14, 15), lane=(13, 9, 10))
    start.prime(log[:30_000], 1000)
    branch, whole = start.branch(), start.copy()
    assert branch.used_bytes < start.used_bytes / 2.5
    assert start.branch(4).used_bytes > branch.used_bytes + 3 * (8 << 13)
    chunk = log[30_000:36_000]
    sizes = [len(mixer.encode(chunk)) for mixer in (branch, whole, native())]
    assert sizes[0] < 1.1 * sizes[1]
    assert sizes[0] < 0.8 * sizes[2]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("cbep"), st.integers(0, 5))))
def test_nothing_done_to_a_mixer_changes_another(steps: list[tuple[int, str, int]]) -> None:
    """Copies and branches share memory until one of them changes it: nobody may see that."""
    lane = (6, 3, 3)
    pieces = [ALICE[i * 40 : i * 40 + 60] for i in range(3)] + [log_lines(1), b"", noise(30)]
    start = native(sizes=(9, 4, 5), lane=lane)
    mixers, histories = [start], [""]  # a history is what to do to a new mixer to have the same

    def replayed(history: str) -> Mixer:
        mixer = native(sizes=(9, 4, 5), lane=lane)
        for step in history:
            if step == "b":
                mixer = mixer.branch()
            else:
                mixer.encode(pieces[int(step)])
        return mixer

    for number, what, piece in steps:
        which = number % len(mixers)
        if what in "cb":
            if what == "b" and "b" in histories[which]:
                with pytest.raises(ValueError, match="branch"):
                    mixers[which].branch()
                continue
            mixers.append(mixers[which].branch() if what == "b" else mixers[which].copy())
            histories.append(histories[which] + ("b" if what == "b" else ""))
        else:
            mixers[which].encode(pieces[piece])
            histories[which] += str(piece)
    for mixer, history in zip(mixers, histories, strict=True):
        assert mixer.encode(ALICE[:90]) == replayed(history).encode(ALICE[:90])


def test_threads_that_share_what_is_behind() -> None:
    start = native(sizes=(12, 6, 7), lane=(8, 4, 4))
    start.prime(log_lines(20), 100)
    chunk = log_lines(30)[700:]
    branched, on = start.branch().encode(chunk), start.copy().encode(chunk)

    def one(number: int) -> bytes:
        if number % 3 == 0:
            return start.copy().encode(chunk)
        branch = start.branch()
        return branch.copy().encode(chunk) if number % 3 == 1 else branch.encode(chunk)

    with ThreadPool(4) as pool:
        found = pool.map(one, range(60))
    assert found == [on if number % 3 == 0 else branched for number in range(60)]


# --------------------------------------------------------------------------------- with a model


def logits(seed: int, time: int, width: int, scale: float = 200) -> Rows:
    rng = np.random.default_rng(seed)
    return rng.normal(0, scale, (time, width)).clip(-32768, 32767).astype(np.int16)


@pytest.mark.parametrize(
    ("primer", "scale", "data"),
    [(b"", 200, DATA), (ALICE[:120], 2000, DATA), (b"", 32768, extreme(7)), (b"", 0, DATA)],
    ids=["alone", "primed", "unlikely", "flat"],
)
def test_model_and_mixer_equal_the_reference(primer: bytes, scale: float, data: bytes) -> None:
    start, expected = native(ENGLISH, data), reference.Mixer(data, ENGLISH)
    start.prime(primer, 50)
    expected.prime(primer, 50)
    vocabulary = Vocabulary(ENGLISH)
    chunk = ALICE[120:200]
    tokens = vocabulary.tokenize(chunk)
    rows = logits(1, len(tokens), len(ENGLISH), scale)
    rows[::3, tokens[::3]] = 32767  # the model is right now and then
    encoder = TokenEncoder(vocabulary, TABLE, start)
    encoder.push(rows[:7], tokens[:7])
    encoder.push(rows[7:], tokens[7:])
    blob = encoder.finish()
    assert blob == reference.encode_tokens(expected, tokens.tolist(), list(rows), TABLE)
    assert encoder.mixer is not None
    assert encoder.mixer.adaptive() == expected.adaptive()
    assert encoder.ideal_bits - 8 <= 8 * len(blob) <= encoder.ideal_bits * 1.001 + 64

    decoder = TokenDecoder(vocabulary, TABLE, [blob], [len(chunk)], [start])
    for row in rows:
        decoder.step(row[None])
    assert decoder.chunks() == [chunk]


def test_the_reference_decodes_with_a_model() -> None:
    vocabulary = Vocabulary(ENGLISH)
    tokens = vocabulary.tokenize(ALICE[:60])
    rows = logits(2, len(tokens), len(ENGLISH))
    encoder = TokenEncoder(vocabulary, TABLE, native())
    encoder.push(rows, tokens)
    mixer = reference.Mixer(DATA, ENGLISH)
    got = reference.decode_tokens(mixer, encoder.finish(), 60, list(rows), TABLE)
    assert got == tokens.tolist()


# --------------------------------------------------------------------------------------- strands


def in_turns(tokens: list[int], strands: int) -> list[int]:
    """FORMAT.md, "Strands": the strands' first tokens, then their second ones, ..."""
    sizes = [len(tokens[k::strands]) for k in range(strands)]
    ends = list(itertools.accumulate(sizes))
    parts = [iter(tokens[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    return [next(parts[k % strands]) for k in range(len(tokens))]


@dataclass(frozen=True)
class Stranded:
    chunk: bytes
    strands: int
    primer: bytes = b""
    scale: float = 200.0
    data: bytes = DATA
    lane: tuple[int, int, int] | None = None


STRANDED = {
    "two": Stranded(ALICE, 2),
    "four": Stranded(ALICE + log_lines(3), 4, ALICE[30:150]),
    "one that is behind": Stranded(ALICE[:90] * 4, 4),  # each begins in a match with the one before
    "repetition across": Stranded(noise(70) * 4, 3, noise(9)),
    "the second has the first's end": Stranded(noise(60) + ALICE[:40] + noise(60), 2),
    "tokens at the front of the memory": Stranded(b"ab" * 60 + noise(30) + b"ab" * 60, 5, scale=0),
    "lines": Stranded(b"a,b\n\n\n,,\n1,22,333\r\n1,22,,333\n\xff\xfe,\n" * 5, 4, log_lines(2)),
    "fewer tokens than strands": Stranded(b"the", 4),
    "one token more": Stranded(b"\x00\x01\x02\x03\x04", 4),
    "one strand": Stranded(ALICE[:80], 1, ALICE[80:160]),
    "unlikely": Stranded(ALICE[:200], 4, data=extreme(9)),
    "a branch": Stranded(ALICE + log_lines(3), 4, ALICE[30:150], lane=(6, 3, 3)),
    "a branch of three": Stranded(noise(70) * 4, 3, noise(9) + noise(70), lane=(8, 4, 2)),
    "a branch of nothing": Stranded(ALICE[:90] * 4, 4, lane=(6, 3, 3)),
}


@pytest.mark.parametrize("name", STRANDED)
def test_strands_equal_the_reference(name: str) -> None:
    case = STRANDED[name]
    start = native(ENGLISH, case.data, lane=case.lane)
    expected = reference.Mixer(case.data, ENGLISH)
    start.prime(case.primer, 50)
    expected.prime(case.primer, 50)
    if case.lane:
        start = start.branch(case.strands)
        expected = expected.branch(case.lane, case.strands)
    vocabulary = Vocabulary(ENGLISH)
    tokens = in_turns(list(vocabulary.tokenize(case.chunk)), case.strands)
    rows = logits(4, len(tokens), len(ENGLISH), case.scale)
    encoder = TokenEncoder(vocabulary, TABLE, start, case.strands, len(case.chunk))
    for k in range(0, len(tokens), 7 * case.strands):
        part = slice(k, k + 7 * case.strands)
        encoder.push(rows[part], np.array(tokens[part], np.uint16))
    blob = encoder.finish()
    expected.split(case.strands, len(case.chunk))
    assert blob == reference.encode_tokens(expected, tokens, list(rows), TABLE)
    assert encoder.mixer is not None
    assert encoder.mixer.adaptive() == expected.adaptive()

    # Beside damaged lanes.
    decoder = TokenDecoder(
        *(vocabulary, TABLE, [blob, blob + b"\x55" * 9, b"\1\2"], [len(case.chunk)] * 2 + [300]),
        [start] * 3,
        case.strands,
    )
    assert decoder.strands == case.strands
    spare = np.zeros((case.strands, len(ENGLISH)), np.int16)
    for k in range(0, len(tokens), case.strands):
        own = np.concatenate([rows[k : k + case.strands], spare])[: case.strands]
        said = decoder.step(np.concatenate([own] * len(decoder.active)))
        own_tokens = said[: case.strands].tolist()
        wanted = tokens[k : k + case.strands]
        assert own_tokens == wanted + [0] * (case.strands - len(wanted))
    assert decoder.chunks()[0] == case.chunk


def test_strands_learn_from_each_other() -> None:
    """What one has seen the next one need not learn again: hardly longer than in one."""
    vocabulary = Vocabulary(SINGLE)
    tokens = list(vocabulary.tokenize(log_lines(60)))
    rows = np.zeros((len(tokens), 256), np.int16)
    sizes = []
    for strands in (1, 4):
        encoder = TokenEncoder(vocabulary, TABLE, native(SINGLE), strands, len(tokens))
        encoder.push(rows, np.array(in_turns(tokens, strands), np.uint16))
        sizes.append(len(encoder.finish()))
    quarters = sum(
        len(native(SINGLE).encode(bytes(tokens[k : k + 800]))) for k in range(0, 3200, 800)
    )
    assert sizes[1] < 0.7 * quarters
    assert sizes[1] < 1.4 * sizes[0]


def test_no_strands_are_refused() -> None:
    vocabulary = Vocabulary(ENGLISH)
    with pytest.raises(ValueError, match="no strands"):
        TokenEncoder(vocabulary, TABLE, native(), 0)
    with pytest.raises(ValueError, match="no strands"):
        TokenDecoder(vocabulary, TABLE, [b""], [1], [native()], 0)
    with pytest.raises(ValueError, match="expected 4 rows"):
        TokenDecoder(vocabulary, TABLE, [b""], [1], [native()], 4).step(
            np.zeros((1, len(ENGLISH)), np.int16)
        )


def test_a_lane_depends_on_its_own_state_only() -> None:
    """Other lanes, other states, and a lane that is damaged, change nothing."""
    vocabulary = Vocabulary(ENGLISH)
    starts = [native() for _ in range(5)]
    for k, start in enumerate(starts):
        start.prime(log_lines(k), 100)
    chunks = [ALICE[10 * k : 40 + 13 * k] for k in range(5)]
    rows = logits(3, 200, len(ENGLISH))

    def encoded(start: Mixer, chunk: bytes) -> bytes:
        tokens = vocabulary.tokenize(chunk)
        encoder = TokenEncoder(vocabulary, TABLE, start)
        encoder.push(rows[: len(tokens)], tokens)
        return encoder.finish()

    def decoded(lanes: list[int]) -> list[bytes | None]:
        decoder = TokenDecoder(
            vocabulary,
            TABLE,
            [blobs[i] for i in lanes],
            [len(chunks[i]) for i in lanes],
            [starts[i] for i in lanes],
        )
        time = 0
        while len(active := decoder.active):
            decoder.step(rows[[time] * len(active)])
            time += 1
        return decoder.chunks()

    before = [start.adaptive() for start in starts]
    blobs = [encoded(start, chunk) for start, chunk in zip(starts, chunks, strict=True)]
    assert len(set(blobs)) == 5
    assert decoded([0, 1, 2, 3, 4]) == chunks
    assert decoded([3, 1, 3]) == [chunks[3], chunks[1], chunks[3]]
    blobs[2] += b"\x55" * 9
    assert decoded([4, 2, 0, 1, 3]) == [chunks[4], None, chunks[0], chunks[1], chunks[3]]
    assert [start.adaptive() for start in starts] == before


# ------------------------------------------------------------------------------------- lossless


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=300) | st.text(max_size=100).map(str.encode),
    st.binary(max_size=300) | st.text(max_size=100).map(str.encode),
)
def test_any_bytes_come_back(primer: bytes, chunk: bytes) -> None:
    start = native()
    start.prime(primer, 70)
    for data in (chunk, primer, chunk + primer):
        blob = start.copy().encode(data)
        assert start.copy().decode(blob, len(data)) == data


def test_long_chunks_come_back() -> None:
    """Far beyond what the slots hold."""
    chunk = noise(40_000) + ALICE * 100
    mixer = native()
    blob = mixer.encode(chunk)
    assert native().decode(blob, len(chunk)) == chunk
    assert len(blob) < 40_000 * 1.02 + 1500


def test_priming_is_coding_without_a_blob() -> None:
    pieces = [ALICE[at : at + 50] for at in range(0, len(ALICE), 50)]
    primed, one_by_one, coded = native(), native(), native()
    bits = primed.prime(ALICE, 50)
    blobs = [coded.encode(piece) for piece in pieces]
    again = native()
    for piece, blob in zip(pieces, blobs, strict=True):
        one_by_one.prime(piece, len(piece))
        assert again.decode(blob, len(piece)) == piece
    states = [primed, one_by_one, coded, again]
    assert len({mixer.adaptive() for mixer in states}) == 1
    assert len({mixer.encode(log_lines(9)) for mixer in states}) == 1
    coded_bits = 8 * len(native().encode(ALICE))
    assert 0.9 * coded_bits < bits < 1.1 * coded_bits


def test_what_is_learned_is_used() -> None:
    chunk = ALICE[100:]
    primed = native()
    primed.prime(ALICE, len(ALICE))
    assert len(primed.encode(chunk)) * 3 < len(native().encode(chunk))


def test_copies_are_independent() -> None:
    start = native()
    start.prime(ALICE, 100)
    before, copy = start.adaptive(), start.copy()
    blob = copy.encode(log_lines(5))
    assert start.adaptive() == before != copy.adaptive()
    copy.forget()
    assert start.copy().encode(log_lines(5)) == blob
    start.prime(b"something else", 5)
    assert copy.copy().encode(ALICE) == copy.encode(ALICE)


def test_what_is_forgotten_and_what_is_kept() -> None:
    mixer = native()
    mixer.prime(ALICE + log_lines(5), 60)  # in the middle of a line, a word and a number
    learned = mixer.adaptive()
    mixer.forget()
    assert mixer.adaptive() == learned != native().adaptive()
    fresh = native(data=DATA[: reference.TABLES.itemsize] + learned)
    again = b"0," + log_lines(5) + ALICE
    assert mixer.encode(again) == fresh.encode(again)
    assert mixer.adaptive() == fresh.adaptive()


def test_threads_that_share_start_states() -> None:
    starts = [native() for _ in range(3)]
    for k, start in enumerate(starts):
        start.prime(log_lines(4 * k), 100)
    chunks = [ALICE, log_lines(9), noise(300)]
    lanes = [(start, chunk) for start in starts for chunk in chunks]
    expected = [start.copy().encode(chunk) for start, chunk in lanes]

    def work(lane: tuple[Mixer, bytes]) -> bytes:
        start, chunk = lane
        blob = start.copy().encode(chunk)
        assert start.copy().decode(blob, len(chunk)) == chunk
        return blob

    with ThreadPool(4) as pool:
        assert pool.map(work, lanes * 10, chunksize=1) == expected * 10


def test_threads_on_one_mixer_wait_for_each_other() -> None:
    shared, alone = native(), native()
    with ThreadPool(4) as pool:
        blobs = pool.map(lambda _: shared.encode(ALICE), range(20), chunksize=1)
    assert sorted(blobs) == sorted(alone.encode(ALICE) for _ in range(20))
    assert shared.adaptive() == alone.adaptive()


# --------------------------------------------------------------------------------------- damage


def check_any_blob(start: Mixer, blob: bytes, size: int) -> bytes | None:
    """Nothing, or the only chunk that has this blob."""
    got = start.copy().decode(blob, size)
    if got is not None:
        assert len(got) == size
        assert start.copy().encode(got) == blob
    return got


@pytest.mark.parametrize("primer", [b"", ALICE], ids=["alone", "primed"])
def test_damaged_blobs(primer: bytes) -> None:
    start = native()
    start.prime(primer, 100)
    chunk = log_lines(2)
    blob = start.copy().encode(chunk)
    rng = random.Random(11)
    wrong = 0
    for _ in range(1000):
        broken = bytearray(blob)
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        if broken == blob:
            continue
        got = check_any_blob(start, bytes(broken), len(chunk))
        assert got != chunk
        wrong += got is not None
    assert wrong  # what protects is the checksum above this layer
    for length in range(len(blob)):
        assert check_any_blob(start, blob[:length], len(chunk)) != chunk
    for tail in (b"\0", b"\x80", b"\xff" * 9, bytes(2000)):
        assert check_any_blob(start, blob + tail, len(chunk)) != chunk
    for size in (0, 1, len(chunk) - 1, len(chunk) + 1, 1 << 20):
        check_any_blob(start, blob, size)  # it may well be that of another chunk


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 300))
def test_any_bytes_at_all(blob: bytes, size: int) -> None:
    check_any_blob(native(), blob, size)


@pytest.mark.parametrize("kind", ["noise", "zeros", "ones"])
def test_a_mixer_that_is_noise_itself(kind: str) -> None:
    """Whatever a state is, it decodes what it coded and survives what it did not."""
    data = unlikely(9)
    if kind != "noise":
        byte = {"zeros": b"\0", "ones": b"\xff"}[kind]
        same = np.frombuffer(byte * reference.ADAPTIVE.itemsize, reference.ADAPTIVE)
        data = with_adaptive(same[0].copy())
    start = native(data=data)
    for chunk in (ALICE, noise(500), bytes(500)):
        blob = start.copy().encode(chunk)
        assert start.copy().decode(blob, len(chunk)) == chunk
        check_any_blob(start, noise(100), len(chunk))


def test_only_the_greedy_tokens_are_a_chunks() -> None:
    spellings = sorted([*SINGLE, b"ab", b"abc"])
    greedy = [spellings.index(b"abc"), spellings.index(b"d")]
    for other in ([b"ab", b"c", b"d"], [b"a", b"b", b"c", b"d"], [b"a", b"b", b"c", b"d"]):
        tokens = [spellings.index(spelling) for spelling in other]
        blob = reference.encode_tokens(reference.Mixer(DATA, spellings), tokens)
        # The blob is in order but for that: these are its tokens.
        assert reference.decode_tokens(reference.Mixer(DATA, spellings), blob, 4) == tokens
        assert native(spellings).decode(blob, 4) is None
    blob = reference.encode_tokens(reference.Mixer(DATA, spellings), greedy)
    assert native(spellings).decode(blob, 4) == b"abcd"


# ------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize("length", [0, 1, MixerProfile.BYTES - 1, MixerProfile.BYTES + 1])
def test_a_profile_of_another_length(length: int) -> None:
    with pytest.raises(ValueError, match=f"expected {MixerProfile.BYTES} bytes, got {length}"):
        MixerProfile(bytes(length), reference.SIZES)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("stretch", 2048, 1, "one half is not stretched to 0"),
        ("stretch", 7000, reference.MAX_STRETCH + 1, "stretched probability is too large"),
        ("stretch", 0, -reference.MAX_STRETCH - 1, "stretched probability is too large"),
        ("squash", 4095, 1 << 22, "a probability is too large"),
        ("history", (reference.CONTEXTS - 1, 3, 0), 1 << 31 | 1 << 16, "history 0"),
        ("history", (0, 0, 0), 0, "history 0"),
    ],
)
def test_a_profile_that_would_lead_astray(
    name: str, place: int | tuple[int, ...], value: int, message: str
) -> None:
    tables, adaptive = reference.split(DATA)
    (tables if name in (reference.TABLES.names or ()) else adaptive)[name][place] = value
    with pytest.raises(ValueError, match=message):
        MixerProfile(tables.tobytes() + adaptive.tobytes(), reference.SIZES)


@pytest.mark.parametrize("sizes", [(1, 14, 15), (17, 25, 15), (17, 14, -1), (32, 14, 15)])
def test_sizes_that_would_lead_astray(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="sizes"):
        MixerProfile(DATA, sizes)
    with pytest.raises(ValueError, match="sizes"):
        MixerProfile(DATA, reference.SIZES, sizes)


def test_a_branch_is_of_a_state_between_chunks() -> None:
    start = native(lane=(6, 3, 3))
    start.prime(ALICE, 50)
    with pytest.raises(ValueError, match="branch"):
        start.branch().branch()
    with pytest.raises(ValueError, match="strands"):
        start.branch(0)
    encoder = TokenEncoder(Vocabulary(ENGLISH), TABLE, start, 3, 100)
    assert encoder.mixer is not None
    with pytest.raises(ValueError, match="branch"):
        encoder.mixer.branch()


def test_the_reference_has_the_native_layout() -> None:
    sizes = reference.TABLES.itemsize, reference.ADAPTIVE.itemsize
    assert sum(sizes) == MixerProfile.BYTES == len(DATA)
    assert len(native().adaptive()) == sizes[1]
    assert native().adaptive() == DATA[sizes[0] :]


def test_wrong_arguments() -> None:
    mixer, vocabulary = native(), Vocabulary(ENGLISH)
    wrong: list[Callable[[], object]] = [
        lambda: MixerProfile("x", reference.SIZES),  # type: ignore[arg-type]
        lambda: Mixer(None, vocabulary),  # type: ignore[arg-type]
        lambda: Mixer(MixerProfile(DATA, reference.SIZES), None),  # type: ignore[arg-type]
        lambda: mixer.encode("x"),  # type: ignore[arg-type]
        lambda: mixer.decode(b"", -1),
        lambda: mixer.decode(bytearray(), 1),  # type: ignore[arg-type]
        lambda: mixer.prime(b"x", -1),
        lambda: TokenEncoder(vocabulary, TABLE, 5),  # type: ignore[arg-type]
    ]
    for call in wrong:
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError, match="pieces of no bytes"):
        mixer.prime(b"x", 0)
    with pytest.raises(ValueError, match="as many mixers as blobs"):
        TokenDecoder(vocabulary, TABLE, [b"", b""], [1, 1], [mixer])
    assert mixer.encode(b"") == b""
    assert mixer.decode(b"", 0) == b""
    assert mixer.decode(b"\0", 0) is None
    assert mixer.prime(b"", 1) == 0
    assert mixer.adaptive() == native().adaptive()


def test_a_mixer_of_another_vocabulary_is_refused() -> None:
    """Its tokens would be looked up among logits that are not there."""
    other, vocabulary = native(SINGLE), Vocabulary(ENGLISH)
    with pytest.raises(ValueError, match="vocabulary"):
        TokenEncoder(vocabulary, TABLE, other)
    with pytest.raises(ValueError, match="vocabulary"):
        TokenDecoder(vocabulary, TABLE, [b""], [1], [other])
