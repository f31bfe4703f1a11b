"""Every codec keeps the protocol; each chunk gets the codec that makes it smallest."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfs.codecs import open_codec
from lmfs.codecs.choose import Chooser, looks_like_text
from lmfs.codecs.lm import LmCodec
from lmfs.codecs.raw import RawCodec
from lmfs.codecs.zstd import ZstdCodec
from lmfs.container import CodecId, Coding
from lmfs.errors import DamagedError, UnknownModelError, VersionError
from lmfs.profile import PROFILE_1
from lmfs.types import Codec


@pytest.fixture(scope="module", params=["raw", "zstd", "lm"])
def codec(request, tiny) -> Codec:
    return {"raw": RawCodec(), "zstd": ZstdCodec(), "lm": LmCodec(tiny)}[request.param]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=200), max_size=5))
def test_any_chunks_come_back_in_any_batch(codec, chunks):
    blobs = codec.encode(chunks)
    assert codec.decode(blobs, [len(chunk) for chunk in chunks]) == chunks
    assert codec.encode(chunks[::-1]) == blobs[::-1]
    for chunk, blob in zip(chunks, blobs, strict=True):
        assert codec.encode([chunk]) == [blob]
        assert codec.decode([blob], [len(chunk)]) == [chunk]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=50), st.integers(1, 100))
def test_any_bytes_for_a_blob(codec, blob, size):
    try:
        (chunk,) = codec.decode([blob], [size])
    except DamagedError:
        return
    assert len(chunk) == size


def test_codings_open_their_codecs(tiny):
    assert isinstance(open_codec(Coding(CodecId.RAW)), RawCodec)
    assert isinstance(open_codec(Coding(CodecId.ZSTD)), ZstdCodec)
    lm = Coding(CodecId.LM, tiny.id, PROFILE_1.id)
    assert isinstance(open_codec(lm, [tiny.path.parent]), LmCodec)
    with pytest.raises(UnknownModelError, match="77777777"):
        open_codec(Coding(CodecId.LM, b"\x77" * 16, PROFILE_1.id))
    with pytest.raises(VersionError, match="profile"):
        open_codec(Coding(CodecId.LM, tiny.id, bytes(16)), [tiny.path.parent])


@pytest.fixture(scope="module")
def text(data) -> bytes:
    return (data / "alice29.txt").read_bytes()


def test_each_chunk_gets_the_smallest(tiny, text):
    noise = random.Random(1).randbytes(2000)
    chunks = [noise, b"ab" * 1000, text[5000:7000], b"x", text[:300]]
    chooser = Chooser(tiny)
    chosen = chooser.choose(chunks)
    codecs = [RawCodec(), ZstdCodec(), LmCodec(tiny)]
    for chunk, (number, blob) in zip(chunks, chosen, strict=True):
        assert codecs[number].decode([blob], [len(chunk)]) == [chunk]
        assert 0 < len(blob) <= len(chunk)
    assert [number for number, _ in chosen[:2]] == [0, 1]
    assert chosen[3] == (0, b"x")
    for i in (2, 4):
        sizes = [len(codec.encode([chunks[i]])[0]) for codec in codecs]
        assert len(chosen[i][1]) == min(sizes)


class Recorder:
    """Stands for the model codec, and remembers what it was asked to code."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def encode(self, chunks):
        self.asked += chunks
        return [b"tiny"] * len(chunks)

    def decode(self, blobs, sizes):
        raise AssertionError


def test_the_model_is_woken_for_text_only(tiny, text):
    chooser = Chooser(tiny)
    recorder = Recorder()
    chooser._codecs[2] = recorder
    for left_asleep in (
        random.Random(2).randbytes(5000),
        text[:255],
        b"the same again. " * 500,
        text[:5000].decode().encode("utf-16-le"),
        bytes(5000),
    ):
        chooser.choose([left_asleep])
        assert recorder.asked == []
    german = (
        "Habe nun, ach! Philosophie, Juristerei und Medizin, und leider auch Theologie durchaus "
        "studiert, mit heißem Bemühn. Da steh ich nun, ich armer Tor! und bin so klug als wie "
        "zuvor; heiße Magister, heiße Doktor gar und ziehe schon an die zehen Jahr herauf, herab "
        "und quer und krumm meine Schüler an der Nase herum."
    ).encode()
    woken_by = [text[:256], text[:5000], german]
    for chunk in woken_by:
        chooser.choose([chunk])
    assert recorder.asked == woken_by
    assert chooser.choose([text[:300], b"x"]) == [(2, b"tiny"), (0, b"x")]


def test_a_blob_is_never_empty(tiny, text):
    chooser = Chooser(tiny)
    recorder = Recorder()
    recorder.encode = lambda chunks: [b""] * len(chunks)
    chooser._codecs[2] = recorder
    assert chooser.choose([text[:1000]])[0][0] == 1


@given(st.text(alphabet=st.characters(exclude_categories=("Cc", "Cs")), min_size=1))
def test_utf8_looks_like_text(words):
    assert looks_like_text(words.encode())


def test_text_cut_inside_a_character_looks_like_text():
    russian = "Съешь же ещё этих мягких французских булок".encode()
    assert looks_like_text(russian[1:-1])
    assert not looks_like_text(russian.decode().encode("koi8-r"))
