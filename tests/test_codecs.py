"""Every codec keeps the protocol; each chunk gets the codec that makes it smallest."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfs.codecs import open_codec
from lmfs.codecs.choose import Chooser, looks_like_text
from lmfs.codecs.levels import LEVELS
from lmfs.codecs.lm import LmCodec
from lmfs.codecs.mix import MixCodec
from lmfs.codecs.raw import RawCodec
from lmfs.codecs.zstd import ZstdCodec
from lmfs.container import CodecId, Coding
from lmfs.errors import DamagedError, UnknownModelError, VersionError
from lmfs.profile import PROFILE_1, profile_by_number
from lmfs.types import Codec

CODECS = {
    "raw": lambda package: RawCodec(),
    "zstd": lambda package: ZstdCodec(),
    "lm": LmCodec,
    "lm and mixer": lambda package: LmCodec(package, profile_by_number(2)),
    "mix": lambda package: MixCodec(package, profile_by_number(2)),
}


@pytest.fixture(scope="module", params=CODECS)
def codec(request, tiny) -> Codec:
    return CODECS[request.param](tiny)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=200), max_size=5))
def test_any_chunks_come_back_in_any_batch(codec, chunks):
    blobs = codec.encode(chunks)
    assert codec.decode(blobs, [len(chunk) for chunk in chunks]) == chunks
    assert codec.encode(chunks[::-1]) == blobs[::-1]
    for chunk, blob in zip(chunks, blobs, strict=True):
        assert codec.encode([chunk]) == [blob]
        assert codec.decode([blob], [len(chunk)]) == [chunk]


def test_chunks_that_follow_a_state_come_back(codec, tiny, text):
    mixing = isinstance(codec, MixCodec) or getattr(codec, "profile", PROFILE_1) is not PROFILE_1
    after = MixCodec(tiny, profile_by_number(2)).start()
    after.prime(text[:2000], 500)
    before = after.adaptive()
    chunks = [text[1500:2300], text[3000:3100], b"\0\xff" * 50]
    sizes = [len(chunk) for chunk in chunks]
    blobs = codec.encode(chunks, after if mixing else None)
    assert codec.decode(blobs, sizes, after if mixing else None) == chunks
    assert [codec.encode([chunk], after if mixing else None)[0] for chunk in chunks] == blobs
    assert after.adaptive() == before
    assert (len(blobs[0]) < 0.6 * len(codec.encode(chunks)[0])) == mixing


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
    mix = Coding(CodecId.MIX, tiny.id, profile_by_number(2).id, 5)
    assert isinstance(open_codec(mix, [tiny.path.parent]), MixCodec)
    with pytest.raises(UnknownModelError, match="77777777"):
        open_codec(Coding(CodecId.LM, b"\x77" * 16, PROFILE_1.id))
    with pytest.raises(VersionError, match="profile"):
        open_codec(Coding(CodecId.LM, tiny.id, bytes(16)), [tiny.path.parent])


@pytest.fixture(scope="module")
def text(data) -> bytes:
    return (data / "alice29.txt").read_bytes()


def replace(chooser: Chooser, **codecs: object) -> None:
    for coders in (chooser._prose, chooser._log):
        for name, codec in codecs.items():
            setattr(coders, name, codec)


def choose(chooser: Chooser, chunks: list[bytes]) -> list[tuple[int, bytes]]:
    return chooser.choose(chunks, chooser.primer())


def test_each_chunk_gets_the_smallest(tiny, text):
    noise = random.Random(1).randbytes(2000)
    chunks = [noise, b"a\0b" * 700, text[5000:7000], b"x", text[:300], b"the same again. " * 500]
    chosen = choose(Chooser(tiny, 9, primer_bytes=0), chunks)
    ids = profile_by_number(LEVELS[9].profiles[1])
    codecs = [RawCodec(), ZstdCodec(), MixCodec(tiny, ids), LmCodec(tiny, ids)]
    for chunk, (number, blob) in zip(chunks, chosen, strict=True):
        assert codecs[number].decode([blob], [len(chunk)]) == [chunk]
        assert 0 < len(blob) <= len(chunk)
    assert [number for number, _ in chosen[:2]] == [0, 1]
    assert chosen[3] == (0, b"x")
    for i in (2, 4, 5):
        sizes = [len(codec.encode([chunks[i]])[0]) for codec in codecs]
        # Of what the mixer leaves next to nothing of, the model is not asked.
        assert len(chosen[i][1]) == min(sizes[: 3 if i == 5 else 4])


@pytest.mark.parametrize("level", LEVELS)
def test_what_a_level_tries(tiny, text, level):
    chooser = Chooser(tiny, level)
    codings = chooser.codings(chooser.primer())
    codecs = {coding.codec for coding in codings}
    assert codecs == {*CodecId} - ({CodecId.LM} if level < 5 else set()) - (
        {CodecId.MIX} if level < 3 else set()
    )
    number = {3: 9, 4: 9, 9: 12}.get(level, 10)
    assert {coding.profile_id for coding in codings} <= {None, profile_by_number(number).id}
    primers = {coding.primer_bytes for coding in codings if coding.codec is CodecId.MIX}
    assert primers == ({LEVELS[level].primer_bytes} if level >= 3 else set())
    for number, blob in choose(chooser, [text[:2000]]):
        assert codings[number].codec in codecs
        assert len(blob) < 1200
    alone = Chooser(None, level)
    codecs = {coding.codec for coding in alone.codings(alone.primer())}
    assert codecs == {CodecId.RAW, CodecId.ZSTD}


class Recorder:
    """Stands for a codec that predicts, and remembers what it was asked to code with a model."""

    profile = profile_by_number(2)

    def __init__(self, answer: bytes = b"tiny") -> None:
        self.asked: list[bytes] = []
        self.answer = answer

    def encode_after(self, chunks, afters):
        self.asked += chunks
        return [[self.answer] * len(afters) for _ in chunks]

    def encode(self, chunks, after=None):
        return [self.answer] * len(chunks)

    def start(self):
        return None

    def behind(self, primer, upto):
        return primer.mixer(upto)


def test_the_model_is_woken_for_text_only(tiny, text):
    chooser = Chooser(tiny)
    recorder = Recorder()
    replace(chooser, lm=recorder)
    for left_asleep in (
        random.Random(2).randbytes(5000),
        text[:255],
        b"the same again. " * 500,
        text[:5000].decode().encode("utf-16-le"),
        bytes(5000),
    ):
        choose(chooser, [left_asleep])
        assert recorder.asked == []
    german = (
        "Habe nun, ach! Philosophie, Juristerei und Medizin, und leider auch Theologie durchaus "
        "studiert, mit heißem Bemühn. Da steh ich nun, ich armer Tor! und bin so klug als wie "
        "zuvor; heiße Magister, heiße Doktor gar und ziehe schon an die zehen Jahr herauf, herab "
        "und quer und krumm meine Schüler an der Nase herum."
    ).encode()
    woken_by = [text[:256], text[:5000], german]
    for chunk in woken_by:
        choose(chooser, [chunk])
    assert recorder.asked == woken_by
    assert choose(chooser, [text[:300], b"x"]) == [(3, b"tiny"), (0, b"x")]


def test_a_blob_is_never_empty(tiny, text):
    chooser = Chooser(tiny, primer_bytes=0)
    replace(chooser, lm=Recorder(b""))
    assert choose(chooser, [text[:1000]])[0][0] == 2
    replace(chooser, mix=Recorder(b""))
    assert choose(chooser, [text[:1000]])[0][0] == 1


@given(st.text(alphabet=st.characters(exclude_categories=("Cc", "Cs")), min_size=1))
def test_utf8_looks_like_text(words):
    assert looks_like_text(words.encode())


def test_text_cut_inside_a_character_looks_like_text():
    russian = "Съешь же ещё этих мягких французских булок".encode()
    assert looks_like_text(russian[1:-1])
    assert not looks_like_text(russian.decode().encode("koi8-r"))


class Sparing(Recorder):
    """Makes only these chunks small."""

    def __init__(self, *small: bytes) -> None:
        super().__init__()
        self.small = small

    def encode_after(self, chunks, afters):
        return [[b"tiny" if chunk in self.small else chunk] * len(afters) for chunk in chunks]


@pytest.mark.parametrize(("chunks", "small", "level"), [(8, 2, 6), (8, 1, 6), (7, 1, 6), (8, 1, 9)])
def test_the_model_does_not_code_a_few_of_many_chunks(tiny, text, chunks, small, level):
    chooser = Chooser(tiny, level)
    texts = [text[i * 600 : (i + 1) * 600] for i in range(chunks)]
    replace(chooser, lm=Sparing(*texts[:small]))
    numbers = [number for number, _ in choose(chooser, texts)]
    codings = chooser.codings(chooser.primer())
    coded = sum(codings[number].codec is CodecId.LM for number in numbers)
    assert coded == (0 if (chunks, small) == (8, 1) else small)


@pytest.mark.parametrize(
    ("level", "modelled", "limit"),
    [
        *((6, range(8), 16), (6, range(4, 8), 16), (6, range(4), 80), (6, range(0), 80)),
        *((5, range(8), 16), (7, range(8), 16), (8, range(8), 16), (9, range(8), 16)),
    ],
)
def test_a_primer_that_the_model_codes_is_short(tiny, text, level, modelled, limit):
    """The second half of 64 KiB decides, and what of that is behind the primer follows it."""
    chooser = Chooser(tiny, level)
    chunks = [text[i * 8192 : (i + 1) * 8192] for i in range(16)]
    replace(chooser, lm=Sparing(*(chunks[i] for i in modelled), *chunks[8:]))
    primer = chooser.primer()
    numbers = [number for number, _ in chooser.choose(chunks, primer)]
    assert primer.limit == limit << 10
    mix = chooser.codings(primer)[2]
    assert (mix.codec, mix.primer_bytes) == (CodecId.MIX, limit << 10)
    assert [i for i in range(8) if numbers[i] >= 3] == [*modelled]
    assert primer.end == min(limit << 10, 16 * 8192)
    assert primer.complete == (limit <= 128)  # so long is the text


def test_a_log_has_a_profile_of_its_own(tiny, text, data):
    """It is coded as a level codes it that has no model, which is tried where it was of use."""
    log = (data / "dpkg.log").read_bytes()

    class Counting(Sparing):
        def encode_after(self, chunks, afters):
            self.asked += chunks
            return super().encode_after(chunks, afters)

    for content, small, expected in ((text, 7, 10), (log, 2, 9)):
        chooser, without = Chooser(tiny), Chooser(tiny, 4)
        chunks = [content[i * 8192 : (i + 1) * 8192] for i in range(7)]
        counting = Counting(*chunks[:small])
        replace(chooser, lm=counting)
        primer = chooser.primer()
        chosen = chooser.choose(chunks, primer)
        ids = {coding.profile_id for coding in chooser.codings(primer)[2:]}
        assert ids == {profile_by_number(expected).id}
        assert [chunk for _, chunk in chosen[:small]] == [b"tiny"] * small
        if expected == 9:
            assert chosen[small:] == choose(without, chunks)[small:]
            assert counting.asked[-small:] == chunks[:small]
            assert all(counting.asked.count(chunk) <= 1 for chunk in chunks[small:])


@pytest.mark.parametrize(
    ("level", "digits", "limit"),
    [
        *((6, 1, 256), (6, 9, 96), (4, 1, 256), (4, 9, 96), (3, 9, 64)),
        *((8, 1, 272), (8, 9, 96)),
    ],
)
def test_a_primer_that_takes_long_to_read_is_not_as_long(tiny, level, digits, limit):
    """The mixer's time goes into what it did not guess."""
    rng = random.Random(3)
    lines = (b"%d: went in\n" % rng.randrange(10**digits) for _ in range(9000))
    log = b"".join(lines)
    chooser = Chooser(tiny, level)
    if LEVELS[level].model:
        replace(chooser, lm=Sparing())
    primer = chooser.primer()
    chooser.choose([log[i : i + 8192] for i in range(0, 80_000, 8192)], primer)
    assert primer.limit == limit << 10


@pytest.mark.parametrize("size", [8, 16, 24, 40, 64, 72])
def test_a_primer_that_the_model_codes_is_as_short_before_large_chunks(tiny, text, size):
    chooser = Chooser(tiny)
    chunks = chooser.cut(text, 0, size << 10)
    replace(chooser, lm=Sparing(*chunks))
    primer = chooser.primer()
    chooser.choose(chunks, primer)
    assert (primer.limit, primer.end) == (16 << 10, 16 << 10)


@pytest.mark.parametrize("level", [4, 6, 9])
@pytest.mark.parametrize("content", ["prose", "log"])
def test_a_primer_that_was_asked_for_is_as_long(tiny, text, data, level, content):
    """However long one waits for it; and a log is a log nevertheless."""
    whole = text if content == "prose" else (data / "dpkg.log").read_bytes()
    chooser = Chooser(tiny, level, primer_bytes=100 << 10)
    chunks = [whole[i * 8192 : (i + 1) * 8192] for i in range(16)]
    if level > 4:
        replace(chooser, lm=Sparing(*(chunks if content == "prose" else [])))
    primer = chooser.primer()
    chosen = chooser.choose(chunks, primer)
    assert len(chosen) == 16
    assert (primer.limit, primer.end) == (100 << 10, 96 << 10)
    number = LEVELS[level].profiles[content == "prose" and level > 4]
    assert primer.coders.ids == (tiny.id, profile_by_number(number).id)


@pytest.mark.parametrize("primer", [None, 1 << 20])
def test_a_primer_longer_than_the_text_is_followed_if_it_was_asked_for(tiny, text, primer):
    """Nothing is behind it, and who asked for it wants it small."""
    chooser = Chooser(tiny, 6, primer_bytes=primer)
    replace(chooser, lm=Leading(40))
    member = chooser.primer()
    chunks = [text[i * 8192 : (i + 1) * 8192] for i in range(2)]
    codings = chooser.codings(member)
    numbers = [number for number, _ in chooser.choose(chunks, member)]
    assert [codings[n].primer_bytes > 0 for n in numbers] == [primer is not None] * 2


@given(
    level=st.sampled_from([2, 4, 6, 9]),
    size=st.sampled_from([1, 5, 8 << 10, 16 << 10, 24 << 10, 40 << 10, 64 << 10, 200 << 10]),
    chunks=st.lists(st.integers(1, 5), max_size=3),
    rest=st.integers(0, 300 << 10),
)
def test_only_the_first_chunks_and_the_last_one_are_short(level, size, chunks, rest):
    """However a member comes; and the first ones only where the model codes what others follow."""
    lengths = [*(count * size for count in chunks), min(rest, 40 * size)]
    data = bytes(sum(lengths))
    cut, start = [], 0
    for length in lengths:
        cut += Chooser(None, level).cut(data[start : start + length], start, size)
        start += length
    assert cut == Chooser(None, level).cut(data, 0, size)
    assert b"".join(cut) == data
    ends = [*itertools.accumulate(map(len, cut))]
    first = 64 << 10 if level >= 6 else 0
    for begin, end in itertools.pairwise([0, *ends]):
        assert end - begin <= (min(size, 16 << 10) if begin < first else size)
        assert end % size == 0 or end == len(data) or begin < first


@pytest.mark.parametrize(
    ("level", "saved", "following"),
    [
        *((6, [0] * 9 + [40], 0), (6, [0] * 8 + [40] * 2, 2), (6, [8] * 10, 0)),
        *((9, [0] * 9 + [40], 0), (5, [0] * 9 + [40], 0)),
    ],
)
def test_a_few_chunks_do_not_make_their_readers_wait_for_the_primer(
    tiny, text, level, saved, following
):
    """Blobs of 1,000 bytes, of which following the primer saves so many."""

    class Following(Recorder):
        def encode_after(self, chunks, afters):
            return [
                [bytes(1000), *(bytes(1000 - saved[i]) for _ in afters)]
                for i, _ in enumerate(chunks)
            ]

    chooser = Chooser(tiny, level, primer_bytes=1 << 14)
    replace(chooser, lm=Following())
    chunks = [text[i * 8192 : (i + 1) * 8192] for i in range(12)]
    primer = chooser.primer()
    codings = chooser.codings(primer)
    chosen = chooser.choose(chunks, primer)
    assert [codings[number].codec for number, _ in chosen[2:]] == [CodecId.LM] * 10
    assert sum(codings[number].primer_bytes > 0 for number, _ in chosen[2:]) == following


class Leading(Sparing):
    """Codes whatever is behind something in fewer bytes; states are said by what they have seen."""

    profile = profile_by_number(8)

    def __init__(self, saved: int) -> None:
        super().__init__()
        self.saved = saved
        self.led: list[bytes] = []

    def encode_after(self, chunks, afters):
        blob = bytes(1000)
        return [[blob, *(blob[self.saved :] for _ in afters[1:])] for _ in chunks]

    def encode_on(self, chunk, afters):
        assert len(afters) == 2
        self.led.append(chunk)
        (blobs,) = self.encode_after([chunk], afters)
        return blobs, "behind"

    def behind(self, primer, upto):
        return primer.led_mixer(upto, self.profile.model_tail_bytes, self.lead)

    def lead(self, mixer, texts):
        assert not texts
        return mixer


@pytest.mark.parametrize("batches", [[14], [2, 2, 10]])
@pytest.mark.parametrize(("saved", "led"), [(40, 4), (1, 0)])
def test_the_primer_is_coded_in_order_if_anything_follows_it(tiny, text, saved, led, batches):
    """Then its state is there when it is decoded. If nothing does, its chunks need no others."""
    chooser = Chooser(tiny, 6)
    leading = Leading(saved)
    replace(chooser, lm=leading)
    chunks = [text[i * 4096 : (i + 1) * 4096] for i in range(14)]
    primer = chooser.primer()
    rest, numbers = iter(chunks), []
    for count in batches:
        batch = [next(rest) for _ in range(count)]
        numbers += [number for number, _ in chooser.choose(batch, primer)]
    follow = [chooser.codings(primer)[number].primer_bytes > 0 for number in numbers]
    # What was coded before it was known stays as it is.
    assert follow == [bool(led) and batches == [14]] * 4 + [bool(led)] * 10
    assert leading.led == chunks[:4]


@pytest.mark.parametrize(("level", "saved", "tried"), [(6, 0, 5), (6, 40, 33), (9, 0, 5)])
def test_some_chunks_show_whether_any_is_to_follow_the_primer(tiny, text, level, saved, tried):
    """The others are then coded once, or twice; what is chosen is as if all had been."""

    class Counting(Recorder):
        def encode_after(self, chunks, afters):
            self.asked += [chunk for chunk in chunks if len(afters) > 1]
            blobs = [b"%d" % chunks_of[chunk] * 1000 for chunk in chunks]
            return [[blob[:1000], *(blob[: 1000 - saved] for _ in afters[1:])] for blob in blobs]

    chooser = Chooser(tiny, level, primer_bytes=1 << 13)
    recorder = Counting()
    replace(chooser, lm=recorder)
    chunks = [text[i * 4096 : (i + 1) * 4096] for i in range(35)]
    chunks_of = {chunk: i for i, chunk in enumerate(chunks)}
    primer = chooser.primer()
    chosen = chooser.choose(chunks, primer)
    behind = chunks[2:]  # the primer
    assert sorted(recorder.asked) == sorted(behind[::8] if tried == 5 else behind)
    codings = chooser.codings(primer)
    assert sum(codings[number].primer_bytes > 0 for number, _ in chosen[2:]) == (33 if saved else 0)
    assert all(blob.startswith(b"%d" % i * 2) for i, (_, blob) in enumerate(chosen[2:], 2))
