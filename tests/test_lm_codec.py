"""The lm codec gives back every byte, in any batch, within the coder's promise."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import reference_mixer
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfs.codecs import lm
from lmfs.codecs.lm import MAX_LANES, LmCodec
from lmfs.engines.native import NativeEngine
from lmfs.engines.ort import OrtEngine
from lmfs.errors import DamagedError
from lmfs.native import TokenDecoder
from lmfs.profile import CoderProfile, profile_by_number


@pytest.fixture(scope="module")
def codec(tiny) -> LmCodec:
    return LmCodec(tiny)


@pytest.fixture(scope="module")
def text(data) -> bytes:
    return (data / "alice29.txt").read_bytes()


def round_trip(codec: LmCodec, chunks: list[bytes]) -> list[bytes]:
    blobs = codec.encode(chunks)
    assert codec.decode(blobs, [len(chunk) for chunk in chunks]) == chunks
    return blobs


@settings(max_examples=60, deadline=None)
@given(chunks=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5))
def test_any_bytes_come_back(codec, chunks):
    round_trip(codec, chunks)


@settings(max_examples=30, deadline=None)
@given(st.text(min_size=1, max_size=200), st.integers(0, 3))
def test_chunks_cut_inside_characters_come_back(codec, words, cut):
    whole = words.encode("utf-8", "surrogatepass")
    at = min(len(whole) - 1, cut)
    round_trip(codec, [part for part in (whole[:at], whole[at:]) if part])


def test_a_blob_does_not_depend_on_its_batch(codec, text):
    chunks = [text[k * 700 : k * 700 + 300 + 13 * k] for k in range(20)]
    blobs = round_trip(codec, chunks)
    assert [codec.encode([chunk])[0] for chunk in chunks[:4]] == blobs[:4]
    assert codec.encode(chunks[::-1]) == blobs[::-1]
    for k in (0, 7, 19):
        assert codec.decode([blobs[k]], [len(chunks[k])]) == [chunks[k]]


def test_more_chunks_than_lanes(codec, text):
    round_trip(codec, [text[k * 40 : k * 40 + 40] for k in range(MAX_LANES + 9)])


@pytest.mark.parametrize("size", [100, 16 << 10])
@pytest.mark.parametrize("number", [2, 7, 8])
def test_the_mixers_of_all_lanes_take_a_megabyte_each(tiny, number, size):
    """Chunks in strands fill the lanes; of others, which have a mixer each, fewer go together."""
    codec = LmCodec(tiny, profile_by_number(number))
    engine = SimpleNamespace(lanes=MAX_LANES)
    work = lm._Decoding(codec, engine, b"", size, codec.mixer)
    assert work.most * codec.profile.strands_of(size) <= MAX_LANES
    assert 8 << 20 < work.most * codec.mixer.used_bytes <= MAX_LANES << 20


@pytest.mark.parametrize("size", [100, 16 << 10, 64 << 10])
@pytest.mark.parametrize(("number", "most"), [(9, 1.1), (10, 1.1), (11, 1.4), (12, 1.4)])
def test_a_lane_has_a_megabyte_in_front_of_what_it_follows(tiny, text, number, most, size):
    """However much that is, which all of them share."""
    codec = LmCodec(tiny, profile_by_number(number))
    engine = SimpleNamespace(lanes=MAX_LANES)
    after = codec.mixer.copy()
    after.prime(text * 20, 16 << 10)
    assert after.used_bytes > 2 << 20
    strands = codec.profile.strands_of(size)
    assert lm._Decoding(codec, engine, b"", size, after).most == MAX_LANES // strands
    branch = after.branch(strands)
    branch.encode(text[:2000])
    assert 0.5e6 < branch.used_bytes / strands < most * (1 << 20)
    assert after.branch().used_bytes < most * (1 << 20)  # a mix chunk's


def test_of_large_mixers_some_go_together(tiny):
    codec = LmCodec(tiny, profile_by_number(4))
    engine = SimpleNamespace(lanes=MAX_LANES)
    assert lm._Decoding(codec, engine, b"", 65536, codec.mixer).most == 7


@pytest.fixture(scope="module")
def stranded(tiny) -> LmCodec:
    """As under profile 5, but with shorter chunks."""
    before = profile_by_number(2)
    profile = CoderProfile("", before.table, before.mixer_data, strands=3, strands_from_bytes=90)
    return LmCodec(tiny, profile)


def reference(codec: LmCodec) -> reference_mixer.Mixer:
    vocabulary = codec.tokenizer.vocabulary
    spellings = [vocabulary.spell(np.array([k], np.uint16)) for k in range(len(vocabulary))]
    return reference_mixer.Mixer(codec.profile.mixer_data, spellings)


def in_strands(codec: LmCodec, chunk: bytes, mixer: reference_mixer.Mixer) -> bytes:
    """The blob of a chunk as FORMAT.md says it, one step and one token at a time."""
    vocabulary, strands = codec.tokenizer.vocabulary, codec.profile.strands_of(len(chunk))
    tokens = list(vocabulary.tokenize(chunk))
    ends = list(itertools.accumulate(len(tokens[k::strands]) for k in range(strands)))
    engine = NativeEngine(codec.package)
    parts: list[list[tuple[int, np.ndarray]]] = []
    for begin, end in itertools.pairwise([0, *ends]):
        state, last, part = engine.start(1), codec.package.start_token, []
        for token in tokens[begin:end]:
            row, state = engine.step(state, np.array([last], np.int64))
            part.append((token, row[0].copy()))
            last = token
        parts.append(part)
    coded = [one for turn in itertools.zip_longest(*parts) for one in turn if one is not None]
    mixer.split(strands, len(chunk))
    numbers, rows = zip(*coded, strict=True)
    blob = reference_mixer.encode_tokens(mixer, numbers, rows, np.array(codec.profile.table))
    mixer.join()
    return blob


def test_strands_are_what_the_format_says(stranded, text):
    primer, chunk = text[:70], text[500:720]
    after = stranded.mixer.copy()
    after.prime(primer, len(primer))
    (blob,) = stranded.encode([chunk], after)
    mixer = reference(stranded)
    mixer.prime(primer, len(primer))
    assert blob == in_strands(stranded, chunk, mixer)
    assert stranded.decode([blob], [len(chunk)], after) == [chunk]


def test_a_chunk_goes_on_behind_the_strands_of_the_one_before(stranded, text):
    """With what was learned in them, from the end of the last; whether it was coded or decoded."""
    sizes = [220, 40, 150, 91, 93]
    ends = [300 + end for end in itertools.accumulate(sizes, initial=0)]
    chunks = [text[begin:end] for begin, end in itertools.pairwise(ends)]
    mixer, coding, decoding = reference(stranded), stranded.mixer, stranded.mixer
    for chunk in chunks:
        expected = in_strands(stranded, chunk, mixer)
        (_, blob), coding = stranded.encode_on(chunk, [None, coding])
        assert blob == expected
        decoded, decoding = stranded.decode_on(decoding, blob, len(chunk))
        assert decoded == chunk
        assert coding.adaptive() == decoding.adaptive() == mixer.adaptive()
    assert stranded.lead(stranded.mixer, chunks).adaptive() == mixer.adaptive()
    # And without a model.
    last = text[900:1000]
    assert coding.encode(last) == decoding.encode(last) == mixer.encode(last)


@settings(max_examples=40, deadline=None)
@given(chunks=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=4))
def test_coding_and_decoding_any_bytes_lead_to_one_state(stranded, text, chunks):
    coding, decoding = stranded.mixer, stranded.mixer
    for chunk in chunks:
        (blob,), coding = stranded.encode_on(chunk, [coding])
        decoded, decoding = stranded.decode_on(decoding, blob, len(chunk))
        assert decoded == chunk
    behind = [*chunks, text[900:1100]]
    assert stranded.encode(behind, coding) == stranded.encode(behind, decoding)
    for chunk in behind:
        assert coding.encode(chunk) == decoding.encode(chunk)


def test_nothing_goes_on_behind_tokens_that_no_encoder_writes(stranded, text, monkeypatch):
    """Who knows the chunk alone cuts it into the longest ones, and comes to another state."""
    chunk = text[500:720]
    vocabulary = stranded.tokenizer.vocabulary
    pieces = memoryview(b"".join(bytes(vocabulary.tokenize(bytes([byte]))) for byte in chunk))
    monkeypatch.setattr(lm, "_in_strands", partial(cut_otherwise, lm._in_strands, pieces.cast("H")))
    (blob,), _ = stranded.encode_on(chunk, [stranded.mixer])
    monkeypatch.undo()
    assert stranded.decode_on(stranded.mixer, blob, len(chunk)) == (chunk, None)
    (blob,), behind = stranded.encode_on(chunk, [stranded.mixer])
    found, mixer = stranded.decode_on(stranded.mixer, blob, len(chunk))
    assert (found, mixer.adaptive()) == (chunk, behind.adaptive())


def cut_otherwise(real, pieces, tokens, strands, start_token):
    return real(pieces, strands, start_token)


def test_a_decoder_gives_its_mixer_once(stranded, text):
    chunk = text[500:720]
    vocabulary, profile = stranded.tokenizer.vocabulary, stranded.profile
    (blob,) = stranded.encode([chunk])
    broken = bytes([blob[0] ^ 1]) + blob[1:]
    blobs, sizes = [blob, broken, blob], [len(chunk), len(chunk), len(chunk) + 1]
    decoder = TokenDecoder(vocabulary, profile.table, blobs, sizes, [stranded.mixer] * 3, 3)
    assert decoder.take_mixer(0) is None  # not yet
    engine = NativeEngine(stranded.package)
    state, tokens = engine.start(9), np.full(9, stranded.package.start_token)
    active = list(decoder.active)
    while active:
        logits, state = engine.step(state, tokens)
        tokens, before, active = decoder.step(logits), active, list(decoder.active)
        kept = np.array([3 * before.index(k) + strand for k in active for strand in range(3)], int)
        state, tokens = engine.select(state, kept), tokens[kept]
    assert [decoder.take_mixer(lane) is None for lane in (0, 1, 2, 0)] == [False, True, True, True]
    assert decoder.chunks() == [chunk, None, None]
    with pytest.raises(ValueError, match="no such lane"):
        decoder.take_mixer(3)


def test_strands_in_any_batch_and_engine(stranded, text, monkeypatch):
    """Chunks of one strand and of three, of every length modulo three; windows and their ends."""
    sizes = [1, 89, *range(90, 99), 700, 1500, 1501, 1502, 1503, 1504]
    chunks = [text[200 * k : 200 * k + size] for k, size in enumerate(sizes)]
    blobs = round_trip(stranded, chunks)
    assert round_trip(stranded, chunks[::-1]) == blobs[::-1]
    single = LmCodec(stranded.package, profile_by_number(2))
    assert [a == b for a, b in zip(blobs, single.encode(chunks), strict=True)][:3] == [1, 1, 0]
    monkeypatch.setattr("lmfs.codecs.lm.engine_for", lambda package: OrtEngine(package, threads=1))
    assert round_trip(stranded, chunks) == blobs


@settings(max_examples=40, deadline=None)
@given(chunks=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5))
def test_any_bytes_come_back_in_strands(stranded, chunks):
    round_trip(stranded, chunks)


def test_damaged_strands_never_crash(stranded, text):
    chunk = text[:400]
    (blob,) = stranded.encode([chunk])
    random = np.random.default_rng(4)
    for _ in range(60):
        broken = bytearray(blob)
        broken[random.integers(len(broken))] ^= 1 << int(random.integers(8))
        size = len(chunk) + int(random.integers(-3, 4))
        with contextlib.suppress(DamagedError):
            (got,) = stranded.decode([bytes(broken)], [size])
            assert len(got) == size


MANY = """
import resource, sys
from pathlib import Path
from lmfs.codecs.lm import LmCodec
from lmfs.models.package import ModelPackage
from lmfs.profile import profile_by_number
codec = LmCodec(ModelPackage.load(Path(sys.argv[1])), profile_by_number(2))
chunks = [b"some text, and more of it" for _ in range(60)]
def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
codec.encode_after(chunks[:4], [None, codec.mixer])
before = most()
codec.encode_after(chunks, [None, codec.mixer])
print(most() - before)
"""


def test_a_chunk_that_is_coded_keeps_no_mixer(tiny):
    """Some megabytes each, tens of them at level 9: a batch took gigabytes."""
    code = [sys.executable, "-c", MANY, str(tiny.path)]
    said = subprocess.run(code, check=True, capture_output=True, text=True).stdout
    assert int(said) < 60


def test_coded_size_is_the_models_code_length(codec, text):
    chunks = [text[:16384], text[16384:20000], b"\x00\xff" * 500, b"e"]
    for bits, blob in zip(codec.ideal_bits(chunks), codec.encode(chunks), strict=True):
        assert len(blob) * 8 <= bits * 1.001 + 64
        assert len(blob) * 8 >= bits - 8


def test_the_model_predicts_text(codec, text):
    """A codec that ignored its model would need 9 bits a token of about two bytes."""
    (blob,) = codec.encode([text[:8192]])
    assert len(blob) < 0.5 * 8192


def test_damaged_blobs_never_crash(codec, text):
    chunk = text[:500]
    (blob,) = codec.encode([chunk])
    random = np.random.default_rng(3)
    wrong = 0
    for _ in range(60):
        broken = bytearray(blob)
        broken[random.integers(len(broken))] ^= 1 << int(random.integers(8))
        try:
            (got,) = codec.decode([bytes(broken)], [len(chunk)])
        except DamagedError:
            continue
        assert len(got) == len(chunk)
        wrong += got != chunk
    assert wrong  # so that the checksum above this layer is what protects
    for length in range(0, len(blob), 7):
        try:
            (got,) = codec.decode([blob[:length]], [len(chunk)])
        except DamagedError:
            continue
        assert len(got) == len(chunk)
