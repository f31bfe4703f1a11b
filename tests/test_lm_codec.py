"""The lm codec gives back every byte, in any batch, within the coder's promise."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfs.codecs.lm import MAX_LANES, LmCodec
from lmfs.errors import DamagedError


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


MANY = """
import resource, sys
from pathlib import Path
from lmfs.codecs.lm import LmCodec
from lmfs.models.package import ModelPackage
from lmfs.profile import profile_2
codec = LmCodec(ModelPackage.load(Path(sys.argv[1])), profile_2())
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
