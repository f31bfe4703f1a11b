"""Files whose chunks follow their beginning: read in any order, damaged, concatenated, forgotten.

What a chunk follows is written down once more in tests/containers.py (`Planned`), which uses
nothing of lmfs.codecs.primer.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from containers import Planned, WholeChunks, packed, reader, recovered

from lmfs import lmz
from lmfs import profile as profiles
from lmfs.codecs import choose
from lmfs.codecs import primer as primer_module
from lmfs.codecs.choose import Chooser
from lmfs.codecs.levels import LEVELS
from lmfs.codecs.lm import LmCodec
from lmfs.codecs.primer import Primer, recent_primers
from lmfs.container import CodecId, Coding, Header, Kind, checksum, header_length, parse_header
from lmfs.errors import DamagedError, LmfsError, UnknownModelError, UsageError
from lmfs.lmz.frames import FrameDecoder
from lmfs.profile import PROFILE_1, CoderProfile, profile_by_number

CHUNK = 120
NOISE = random.Random(1).randbytes(20 * CHUNK)


@pytest.fixture(scope="module")
def text(data) -> bytes:
    log, prose = (data / "dpkg.log").read_bytes(), (data / "alice29.txt").read_bytes()
    return b"".join(log[i : i + 300] + prose[i : i + 300] for i in range(0, 8000, 800))


@pytest.fixture(scope="module")
def search(tiny) -> dict:
    return {"model_search": [tiny.path.parent]}


def cut(data: bytes, size: int = CHUNK) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


MIXED = "mix lm+ mix raw zstd mix lm mix lm+"
PARTS = "mix lm+ lm- mix- raw lm+ lm- mix mix- lm-"
SHAPES = {  # in chunks: primer, size
    "whole chunks": (4, 10),
    "not whole chunks": (4.3, 10.2),
    "longer than the file": (800, 6.9),
    "shorter than a chunk": (0.9, 4),
    "one chunk": (1, 4),
    "one byte": (0, 3),
    "a file of one chunk": (3, 0.9),
}


def shaped(shape: str, size: int) -> tuple[int, int]:
    """The primer's length and the file's, for chunks of this size."""
    primer, length = SHAPES[shape]
    return int(primer * size) or 1, int(length * size)


def check_reading(container: bytes, data: bytes, size: int, **search) -> None:
    """Every way to read it gives its bytes."""
    chunks = cut(data, size)
    order = list(range(len(chunks)))
    random.Random(len(data)).shuffle(order)
    with reader(container, cache=lmz.ChunkCache(0), **search) as one:
        for i in order:
            with reader(container, **search) as fresh:
                assert fresh.read_chunks([i]) == [chunks[i]]
            assert one.pread(size, i * size) == chunks[i]
        one.verify()
        assert one.read_chunks(order) == [chunks[i] for i in order]
    with reader(container, **search) as fresh:
        assert fresh.read_chunks(order[:4]) == [chunks[i] for i in order[:4]]
    assert list(lmz.stream_decode(io.BytesIO(container), **search)) == chunks
    assert [part.data for part in recovered(container, **search)] == chunks


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("plan", ["mix", MIXED, PARTS])
@pytest.mark.parametrize("number", [2, 9])
def test_chunks_in_any_order(tiny, text, search, number, shape, plan):
    primer, length = shaped(shape, CHUNK)
    chooser = Planned(tiny, plan, primer, profile_by_number(number))
    container = packed(text[:length], CHUNK, chooser=chooser)
    check_reading(container, text[:length], CHUNK, **search)


def cut_short(four: CoderProfile) -> CoderProfile:
    """Profile 4, but with a small mixer and a short tail: two chunks and a half."""
    sizes, tail_bytes = profile_by_number(2).mixer_sizes, 5 * CHUNK // 2
    return dataclasses.replace(four, mixer_sizes=sizes, model_tail_bytes=tail_bytes)


@pytest.fixture(scope="module")
def tailed() -> CoderProfile:
    profile = cut_short(profile_by_number(4))
    assert profile.id == profile_by_number(4).id
    return profile


@pytest.fixture(scope="module")
def stranded() -> CoderProfile:
    """Profile 8, but with strands of short chunks."""
    profile = dataclasses.replace(profile_by_number(8), strands_from_bytes=CHUNK)
    assert profile.id == profile_by_number(8).id
    return profile


@pytest.fixture(scope="module")
def branched() -> CoderProfile:
    """Profile 10, but with strands of short chunks, and little room in front of a state."""
    ten = profile_by_number(10)
    profile = dataclasses.replace(ten, strands_from_bytes=CHUNK, lane_sizes=(7, 3, 4))
    assert profile.id == ten.id
    return profile


@pytest.fixture(scope="module", params=["tailed", "stranded", "branched"])
def led(request) -> CoderProfile:
    return request.getfixturevalue(request.param)


def stand_in(monkeypatch, profile) -> None:
    """For the profile with this id, to whoever writes and whoever reads."""

    def by_number(number: int) -> CoderProfile:
        real = profile_by_number(number)
        return profile if real.id == profile.id else real

    monkeypatch.setattr(profiles, "profile_by_number", by_number)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("plan", [MIXED, PARTS])
def test_the_end_of_a_primer_is_seen_with_the_model(
    tiny, text, search, monkeypatch, led, shape, plan
):
    stand_in(monkeypatch, led)
    primer, length = shaped(shape, CHUNK)
    container = packed(text[:length], CHUNK, chooser=Planned(tiny, plan, primer, led))
    check_reading(container, text[:length], CHUNK, **search)


@pytest.mark.parametrize("profile", ["stranded", "branched"])
@pytest.mark.parametrize(
    ("plan", "seen"),
    [
        ("lm+", []),
        ("lm+ lm+ lm+ mix lm+ lm+ lm+", [1]),
        ("lm lm+ lm+ lm+ lm+ lm+ lm+", [1]),
        ("raw lm+ lm lm+ lm+ lm+ lm+", [1, 1]),
    ],
)
def test_decoding_the_primer_leaves_its_state_behind(
    tiny, text, search, monkeypatch, request, profile, plan, seen
):
    """Only of what was not coded behind the chunks before it a state is made once more."""
    profile = request.getfixturevalue(profile)
    stand_in(monkeypatch, profile)
    data = text[: 7 * CHUNK]
    container = packed(data, CHUNK, chooser=Planned(tiny, plan, 4 * CHUNK, profile))
    texts, real = [], LmCodec.lead
    monkeypatch.setattr(
        *(LmCodec, "lead"),
        lambda codec, mixer, some: texts.append(len(some)) or real(codec, mixer, some),
    )
    for ask in ([6], [5, 6], [4, 0], range(7)):
        texts.clear()
        with reader(container, cache=lmz.ChunkCache(0), **search) as fresh:
            assert fresh.read_chunks(ask) == [cut(data)[i] for i in ask]
            assert [count for count in texts if count] == seen
            assert fresh.read_chunks([5]) == [cut(data)[5]]
            assert [count for count in texts if count] == seen


@pytest.mark.parametrize("bad", range(4))
def test_what_follows_a_damaged_chunk_of_a_led_primer_is_lost(
    tiny, text, search, monkeypatch, led, bad
):
    stand_in(monkeypatch, led)
    data, size = text[: 7 * CHUNK], CHUNK
    plan = "lm+ lm+ lm+ lm+ lm+ lm lm+"
    container = bytearray(packed(data, size, chooser=Planned(tiny, plan, 4 * size, led)))
    with reader(bytes(container)) as whole:
        layout = whole.members[0].layout
        container[int(layout.blob_offsets[bad]) + 3] ^= 4
    for order in ([6, 3, 5, 1, 0, 2, 4], range(7)):
        with reader(bytes(container), cache=lmz.ChunkCache(0), **search) as broken:
            for i in order:
                if i < bad or i == 5:
                    assert broken.read_chunks([i]) == [cut(data)[i]]
                else:
                    with pytest.raises(DamagedError):
                        broken.read_chunks([i])


def test_a_file_of_large_chunks_whose_first_ones_are_short(tiny, data, search, monkeypatch):
    """One of 16 KiB is the primer of chunks of 40 KiB."""
    prose = (data / "alice29.txt").read_bytes()
    level = dataclasses.replace(
        LEVELS[6], model_from=0.0, model_gain=-9.0, primer_gain=-9.0, primer_gain_of_all=-9.0
    )
    monkeypatch.setitem(LEVELS, 6, level)
    monkeypatch.setattr(choose, "MIN_MODEL_LEAD", -9.0)
    container = packed(prose, 40 << 10, chooser=Chooser(tiny, 6))
    sizes = [16 << 10, 16 << 10, 8 << 10, 16 << 10, 16 << 10, 8 << 10, 40 << 10]
    starts = [*itertools.accumulate(sizes, initial=0)]
    chunks = [prose[a:b] for a, b in itertools.pairwise([*starts, len(prose)])]
    order = random.Random(5).sample(range(len(chunks)), len(chunks))
    with reader(container, cache=lmz.ChunkCache(0), **search) as whole:
        layout, codings = whole.members[0].layout, whole.members[0].codings
        assert layout.sizes.tolist() == [*map(len, chunks)]
        follow = [codings[coding].primer_bytes for coding in layout.codings]
        assert follow == [16 << 10] * len(chunks)
        assert [whole.read_chunks([i])[0] for i in order] == [chunks[i] for i in order]
        assert whole.pread(30_000, 50_000) == prose[50_000:80_000]
        whole.verify()
    assert lmz.decompress(container, model_search=[tiny.path.parent]) == prose
    found = recovered(container[: int(layout.blob_offsets[-1])], **search)
    assert b"".join(part.data for part in found) == prose[: starts[-1]]
    damaged = bytearray(container)
    damaged[int(layout.blob_offsets[0]) + 9] ^= 1
    assert recovered(bytes(damaged), **search) == []


def test_chunks_of_a_byte(tiny, search):
    container = packed(b"a\nb\nc\nd\n", 1, chooser=Planned(tiny, MIXED, 3))
    check_reading(container, b"a\nb\nc\nd\n", 1, **search)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_chooser_writes(tiny, text, search, shape):
    """Noise among the text; whatever the batches, every blob is that of the specification."""
    size = 280
    primer, length = shaped(shape, size)
    primer = min(primer, 16 << 10)  # no longer than one that the model codes
    data = text[: 2 * size] + NOISE[:size] + text[2 * size : max(length - size, 0)]
    data, chunks = data[:length], cut(data[:length], size)
    chooser = Chooser(tiny, 9, primer_bytes=primer)
    planned = Planned(tiny, "mix", primer, profile_by_number(12))
    for batch_chunks in (1, 3, 64):
        container = packed(data, size, chooser=chooser, batch_chunks=batch_chunks)
        with reader(container) as whole:
            layout, codings = whole.members[0].layout, whole.members[0].codings
            assert {"mix", "lm"} & whole.statistics().keys() or len(data) < size
            for i in range(len(chunks)):
                number = planned.codings([]).index(codings[layout.codings[i]])
                at = int(layout.blob_offsets[i])
                blob = container[at : at + int(layout.coded_sizes[i])]
                assert blob == planned.blob(number, chunks[i], chunks[:i])
        check_reading(container, data, size, **search)


def test_following_makes_chunks_smaller(tiny, data):
    log = (data / "dpkg.log").read_bytes()[:6000]
    sizes = [
        len(packed(log, 300, chooser=Chooser(tiny, 4, primer_bytes=primer)))
        for primer in (0, 300, 3000)
    ]
    assert sizes[0] > 1.1 * sizes[1] > 1.2 * sizes[2]


def test_members_follow_their_own_beginning(tiny, text, search):
    parts = [
        (text[:700], Planned(tiny, "mix", 300)),
        (text[700:1300], Planned(tiny, "lm+ mix", 3 * CHUNK)),
        (b"", Planned(tiny, "mix", 5)),
        (text[:700], Planned(tiny, MIXED, 100_000)),
        (text[:300], Chooser()),
    ]
    container = b"".join(packed(data, CHUNK, chooser=chooser) for data, chooser in parts)
    data = b"".join(data for data, _ in parts)
    chunks = [chunk for data, _ in parts for chunk in cut(data)]
    order = list(range(len(chunks)))
    for seed in range(3):
        random.Random(seed).shuffle(order)
        with reader(container, cache=lmz.ChunkCache(0), **search) as whole:
            assert [whole.read_chunks([i])[0] for i in order] == [chunks[i] for i in order]
            assert whole.read_chunks(order) == [chunks[i] for i in order]
            whole.verify()
    assert list(lmz.stream_decode(io.BytesIO(container), **search)) == chunks
    assert b"".join(part.data for part in recovered(container, **search)) == data
    without_index = container[:-60]
    assert b"".join(part.data for part in recovered(without_index, **search)) == data


def test_many_readers_at_once(tiny, text, search, monkeypatch):
    """More than there are states kept: one thrown out is only computed again."""
    state_bytes = Planned(tiny, "mix", 0).state([], 0).used_bytes
    monkeypatch.setattr(recent_primers, "max_bytes", 5 * state_bytes)
    parts = [text[at : at + 7 * CHUNK] for at in range(0, 20 * 50, 50)]
    containers = [
        packed(part, CHUNK, chooser=Planned(tiny, "mix mix mix mix lm+", 4 * CHUNK))
        for part in parts
    ]
    readers = [reader(container, cache=lmz.ChunkCache(0), **search) for container in containers]
    for number in (6, 2, 4, 0):
        for part, one in zip(parts, readers, strict=True):
            assert one.read_chunks([number]) == [cut(part)[number]]
        # The last one had nothing yet when room was made for it.
        assert state_bytes < recent_primers.used_bytes <= 7 * (state_bytes + 16 * CHUNK)
    for one in readers:
        one.close()
    assert recent_primers.used_bytes == 0


@pytest.mark.parametrize("primer", [4 * CHUNK, 100_000])
def test_many_threads_on_one_reader(tiny, text, search, primer):
    data = text[: 10 * CHUNK]
    chunks = cut(data)
    container = packed(data, CHUNK, chooser=Planned(tiny, "mix mix lm+ zstd", primer))
    rng = random.Random(2)
    for _ in range(3):
        wanted = [rng.sample(range(10), rng.randrange(1, 4)) for _ in range(20)]
        with (
            reader(container, cache=lmz.ChunkCache(0), **search) as whole,
            ThreadPoolExecutor(6) as pool,
        ):
            found = pool.map(whole.read_chunks, wanted)
            assert list(found) == [[chunks[i] for i in ask] for ask in wanted]
            offsets = [rng.randrange(len(data)) for _ in range(20)]
            pieces = pool.map(lambda offset: whole.pread(150, offset), offsets)
            assert list(pieces) == [data[offset : offset + 150] for offset in offsets]


def test_a_primer_reads_a_chunk_in_one_piece(tiny, text):
    state = Planned(tiny, "mix", 0).state
    primer = Primer(1 << 20, lambda: state([], 0))
    chunks = [text[:5500], text[:1]]
    for chunk in chunks:
        primer.feed(chunk)
    assert primer.mixer(primer.end).adaptive() == state(chunks, 1 << 20).adaptive()


def test_a_state_is_computed_once_in_whatever_order_it_is_asked_for(tiny, text, monkeypatch):
    """Else a file whose chunks follow this and that in turn would be primed for each of them."""
    state, primed = Planned(tiny, "mix", 0).state, []
    real = primer_module.prime
    monkeypatch.setattr(
        primer_module, "prime", lambda mixer, texts: primed.extend(texts) or real(mixer, texts)
    )
    lengths = [CHUNK * k for k in (1, 2, 4, 8)]
    primer = Primer(8 * CHUNK, lambda: state([], 0), lengths)
    chunks = cut(text[: 8 * CHUNK])
    for chunk in chunks:
        primer.feed(chunk)
    for length in (*lengths, *lengths[::-1], *lengths):
        expected = state(chunks[: length // CHUNK], length)
        assert primer.mixer(length).adaptive() == expected.adaptive()
    assert primed == chunks


def test_a_state_with_the_model_is_made_once_as_well(tiny, text, tailed):
    planned, led = Planned(tiny, "mix", 0, tailed), []
    lm = LmCodec(tiny, tailed)

    def lead(mixer, texts):
        led.append(len(texts))
        return lm.lead(mixer, texts)

    lengths = [CHUNK * k for k in (1, 2, 4, 8)]
    primer = Primer(8 * CHUNK, lambda: planned.state([], 0), lengths)
    chunks = cut(text[: 8 * CHUNK])
    for chunk in chunks:
        primer.feed(chunk)
    for length in (*lengths[::-1], *lengths, *lengths[::-1]):
        state = primer.led_mixer(length, tailed.model_tail_bytes, lead)
        expected = planned.state(chunks, length, tailed.model_tail_bytes)
        assert state.adaptive() == expected.adaptive()
        assert primer.mixer(length).adaptive() == planned.state(chunks, length).adaptive()
    assert led == [2, 2, 2, 1]
    assert primer.used_bytes >= 8 * primer.mixer(0).used_bytes


def test_a_stream_keeps_no_state_for_later(tiny, text, search, tailed, monkeypatch):
    """Those of profile 4 are 43 MB each, and of many lengths; nobody comes back in a pipe."""
    monkeypatch.setattr("lmfs.profile.profile_by_id", lambda _id: tailed)
    held, real = [], Primer.led_mixer

    def counted(primer, *arguments):
        mixer = real(primer, *arguments)
        held.append(primer.used_bytes // mixer.used_bytes)
        return mixer

    monkeypatch.setattr(Primer, "led_mixer", counted)
    codings = [Coding(CodecId.LM, tiny.id, tailed.id, CHUNK * k) for k in (1, 2, 4, 8)]
    chunks = cut(text[: 10 * CHUNK])
    for in_order in (True, False):
        decoder = FrameDecoder(**search)
        primer = decoder.primer(Header(Kind.ARCHIVE, CHUNK, tuple(codings)), in_order=in_order)
        lm = LmCodec(tiny, tailed)
        for chunk in chunks:
            primer.feed(chunk)
        for coding in codings:
            lm.behind(primer, coding.primer_bytes)
    assert max(held[:4]) <= 3
    assert held[7] > max(held[:4])


def test_a_primer_takes_chunks_in_order_only(tiny):
    start = Planned(tiny, "mix", 0).state
    primer = Primer(10, lambda: start([], 0))
    assert primer.wants(0)
    assert not primer.wants(4)
    primer.feed(b"abcd")
    early = primer.mixer(primer.end)
    assert (primer.wants(0), primer.wants(4), primer.complete) == (False, True, False)
    assert [primer.serves(at) for at in (0, 4, 5)] == [True, True, False]
    primer.feed(b"efgh")
    late = primer.mixer(primer.end)
    primer.feed(b"ijkl")
    assert primer.complete
    assert primer.end == 8
    expected = start([b"abcd", b"efgh"], 8).adaptive()
    assert primer.mixer(8).adaptive() == late.adaptive() == expected
    assert primer.mixer(7).adaptive() == early.adaptive()
    assert early.adaptive() == start([b"abcd"], 8).adaptive()
    assert [primer.chunk_at(at) for at in (0, 4, 8)] == [b"abcd", b"efgh", None]
    assert [primer.serves(at) for at in (8, 10, 11)] == [True, True, False]


# --------------------------------------------------------------------------------------- damage


def spoilt(container: bytes, *numbers: int, checksums: bool = False) -> bytes:
    """With damage in the blobs of these chunks, or in their checksums."""
    broken = bytearray(container)
    with reader(container) as whole:
        layout = whole.members[0].layout
        for i in numbers:
            at = -1 if checksums else int(layout.coded_sizes[i]) // 2
            broken[int(layout.blob_offsets[i]) + at] ^= 0x10
    return bytes(broken)


def frames_end(container: bytes) -> int:
    with reader(container) as whole:
        return whole.members[0].layout.end


def check_lost(container: bytes, chunks: list[bytes], lost: set[int], **search) -> None:
    """Recovered is what is not lost, each in its place; what is lost is a hole or in one."""
    found = list(lmz.recover(io.BytesIO(container), **search))
    holes = [part for part in found if isinstance(part, lmz.Hole)]
    for part in found:
        if isinstance(part, lmz.Recovered):
            assert part.start is not None
            assert part.data == chunks[part.start // CHUNK]
    starts = {part.start // CHUNK for part in found if isinstance(part, lmz.Recovered)}
    assert starts == set(range(len(chunks))) - lost
    for i in lost:
        assert any(
            hole.start <= i * CHUNK and (hole.size is None or i * CHUNK < hole.start + hole.size)
            for hole in holes
        )


def check_lost_everywhere(container: bytes, chunks: list[bytes], lost: set[int], **search) -> None:
    check_lost(container, chunks, lost, **search)
    check_lost(container[: frames_end(container)], chunks, lost, **search)
    for i, chunk in enumerate(chunks):
        with reader(container, **search) as whole:
            if i in lost:
                with pytest.raises(DamagedError):
                    whole.read_chunks([i])
            else:
                assert whole.read_chunks([i]) == [chunk]
    if lost:
        with reader(container, **search) as whole, pytest.raises(DamagedError):
            whole.verify()
        stream = lmz.stream_decode(io.BytesIO(container), **search)
        whole_chunks = []
        with pytest.raises(DamagedError):
            whole_chunks.extend(stream)
        assert chunks[: len(whole_chunks)] == whole_chunks


#        0   1   2   3   4    5   6    7  8   9  10  11
PLAN = "mix lm+ raw mix zstd mix lm+ mix lm raw mix lm+"
FOLLOWING = {0, 1, 3, 5, 6, 7, 10, 11}


@pytest.fixture(scope="module")
def parted(tiny, text) -> tuple[bytes, list[bytes]]:
    """Likewise; four chunks are its primer, two of them half of it."""
    data = text[: 9 * CHUNK]
    plan = "mix lm lm- mix- lm+ lm- mix mix- lm+"
    return packed(data, CHUNK, chooser=Planned(tiny, plan, 4 * CHUNK)), cut(data)


@pytest.mark.parametrize(
    ("number", "more"),
    [(0, {2, 3, 4, 5, 6, 7, 8}), (1, {2, 3, 4, 5, 6, 7, 8}), (2, {4, 6, 8}), (3, {4, 6, 8})]
    + [(number, set()) for number in range(4, 9)],
)
def test_damage_costs_those_only_that_follow_it(parted, search, number, more):
    container, chunks = parted
    check_lost_everywhere(spoilt(container, number), chunks, {number} | more, **search)


@pytest.fixture(scope="module")
def followed(tiny, text) -> tuple[bytes, list[bytes]]:
    """A container as PLAN says, whose primer is its first five chunks; and its chunks."""
    data = text[: 12 * CHUNK]
    container = packed(data, CHUNK, chooser=Planned(tiny, PLAN, 5 * CHUNK))
    names = [*PLAN.split()]
    with reader(container) as whole:
        member = whole.members[0]
        for i, name in enumerate(names):
            coding = member.codings[member.layout.codings[i]]
            assert (coding.primer_bytes > 0) == (i in FOLLOWING), name
    return container, cut(data)


@pytest.mark.parametrize("number", range(5))
def test_damage_in_the_primer_costs_what_follows_it(followed, search, number):
    container, chunks = followed
    lost = {number} | {i for i in FOLLOWING if i > number}
    check_lost_everywhere(spoilt(container, number), chunks, lost, **search)


@pytest.mark.parametrize("numbers", [{5}, {6}, {8}, {10, 11}, {6, 9}], ids=str)
def test_damage_behind_the_primer_costs_nothing_else(followed, search, numbers):
    container, chunks = followed
    check_lost_everywhere(spoilt(container, *numbers), chunks, numbers, **search)


def test_damage_in_the_primer_and_behind_it(followed, search):
    container, chunks = followed
    lost = {2, 9} | {i for i in FOLLOWING if i > 2}
    check_lost_everywhere(spoilt(container, 2, 9), chunks, lost, **search)


@pytest.mark.parametrize("number", [2, 5, 7])
def test_damage_in_a_chunk_that_ends_behind_the_primer(tiny, text, search, number):
    """Chunk 5 begins in the primer and ends behind it: nothing follows it."""
    chunks = cut(text[: 9 * CHUNK])
    container = packed(
        b"".join(chunks), CHUNK, chooser=Planned(tiny, "mix mix lm+", 5 * CHUNK + 50)
    )
    lost = set(range(2, 9)) if number == 2 else {number}
    check_lost_everywhere(spoilt(container, number), chunks, lost, **search)


@pytest.mark.parametrize("checksums", [False, True])
def test_reading_goes_on_behind_damage(followed, search, checksums):
    """One reader: what it could not have once, it tries again, and never takes for known."""
    container, chunks = followed
    broken = spoilt(container, 3, checksums=checksums)
    with reader(broken, cache=lmz.ChunkCache(0), **search) as whole:
        for i in (11, 0, 5, 1, 3, 11, 4, 2, 8, 9, 7, 0):
            if i == 3 or (i > 3 and i in FOLLOWING):
                with pytest.raises(DamagedError):
                    whole.read_chunks([i])
            else:
                assert whole.read_chunks([i]) == [chunks[i]]


def test_every_truncation_yields_every_whole_chunk(followed, search):
    container, chunks = followed
    with reader(container) as whole:
        layout = whole.members[0].layout
        ends = list(map(sum, zip(layout.blob_offsets, layout.coded_sizes, strict=True)))
        first = int(layout.frame_offsets[0])
    for length in sorted({*range(first, len(container), 211), *ends, *(end - 1 for end in ends)}):
        parts = recovered(container[:length], **search)
        assert [part.data for part in parts] == chunks[: sum(end <= length for end in ends)]


def test_lost_frames_in_the_primer(followed, search):
    """Bytes are gone, so that frames must be searched for: nothing wrong is found."""
    container, chunks = followed
    with reader(container) as whole:
        _, begin, _, end = whole.members[0].layout.frame_offsets[:4]
    for broken in (
        container[: begin + 20] + container[end:],
        container[:begin] + bytes(end - begin) + container[end:],
        container[:begin] + NOISE[: end - begin] + container[end : frames_end(container) - 5],
    ):
        found = {part.start: part.data for part in recovered(broken, **search)}
        assert found.items() <= {i * CHUNK: chunk for i, chunk in enumerate(chunks)}.items()
        assert {0, 4 * CHUNK, 8 * CHUNK, 9 * CHUNK} <= found.keys()


def test_what_follows_a_lost_beginning_hides_nothing_else(tiny, text, search):
    """More chunks that cannot be had than a search tries to decode, and then some that can."""
    plan = ["mix"] * 80 + ["lm"] * 30
    chunks = cut(text[: len(plan) * 40], 40)
    chooser = Planned(tiny, " ".join(plan), 70 * 40)
    container = packed(b"".join(chunks), 40, chooser=chooser)
    broken = spoilt(container, 0)[: frames_end(container)]
    with reader(container) as whole:  # a chunk or two may be raw, that the mixer made no smaller
        free = [
            chunk
            for chunk, coding in zip(chunks, whole.members[0].layout.codings, strict=True)
            if chooser.codings([])[coding].codec is not CodecId.MIX
        ]
    assert len(free) < 35
    assert [part.data for part in recovered(broken, **search)] == free


@pytest.mark.parametrize("codec", [CodecId.LM, CodecId.MIX])
def test_without_the_model_the_rest_is_readable(tiny, text, codec):
    ids = b"\x77" * 16, profile_by_number(2).id

    class Unknown(WholeChunks):
        def codings(self, primer):
            return (Coding(CodecId.RAW), Coding(codec, *ids, 3 * CHUNK))

        def primer(self):
            return None

        def choose(self, chunks, primer):
            return [(i % 2, chunk) for i, chunk in enumerate(chunks)]

    container = packed(text[: 6 * CHUNK], CHUNK, chooser=Unknown())
    for number in (2, 0, 4):
        with reader(container) as whole:
            assert whole.read_chunks([number]) == [cut(text)[number]]
    for number in (1, 5):
        with reader(container) as whole, pytest.raises(UnknownModelError):
            whole.read_chunks([number])


# -------------------------------------------------------------------------------------- headers


def decoded_chunks(container: bytes, **search) -> tuple[list[bytes], LmfsError | None]:
    chunks: list[bytes] = []
    try:
        chunks.extend(lmz.stream_decode(io.BytesIO(container), **search))
    except LmfsError as error:
        return chunks, error
    return chunks, None


@pytest.fixture(scope="module")
def small(tiny, text) -> tuple[bytes, list[bytes]]:
    data = text[: 4 * 100]
    return packed(data, 100, chooser=Planned(tiny, "mix lm+ mix", 200)), cut(data, 100)


def test_every_flipped_bit_of_the_header_is_noticed(small, search):
    container, _ = small
    for at in range(header_length(container)):
        for bit in range(8):
            broken = bytearray(container)
            broken[at] ^= 1 << bit
            chunks, error = decoded_chunks(bytes(broken), **search)
            assert not chunks
            assert error is not None
            with pytest.raises(LmfsError):
                reader(bytes(broken), **search)


def test_a_header_that_says_something_else(small, search):
    """Its checksum holds, so that only what it leads to can be noticed."""
    container, expected = small
    length = header_length(container)
    for at in range(length - 4):
        for bit in range(8):
            header = bytearray(container[: length - 4])
            header[at] ^= 1 << bit
            broken = bytes(header) + checksum(bytes(header)).to_bytes(4, "little")
            chunks, error = decoded_chunks(broken + container[length:], **search)
            assert error is not None
            assert chunks == expected[: len(chunks)]


def test_a_lost_header_is_recovered_with_its_primer(tiny, text, search):
    data = random.Random(2).randbytes(80_000) + text[:3000]
    container = packed(data, 800, chooser=Chooser(tiny, 4, primer_bytes=81_600))
    with reader(container) as whole:
        assert "mix" in whole.statistics()
    broken = bytes(30) + container[30:]
    assert b"".join(part.data for part in recovered(broken, **search)) == data


@pytest.mark.parametrize("codec", [CodecId.LM, CodecId.MIX])
def test_a_profile_without_a_mixer_has_no_primer(tiny, text, search, codec):
    """A file may name any profile that there is: that is no reason for a traceback."""

    class Wrong(WholeChunks):
        def codings(self, primer):
            return (Coding(codec, tiny.id, PROFILE_1.id, 2 * CHUNK),)

        def primer(self):
            return None

        def choose(self, chunks, primer):
            return [(0, chunk[:9]) for chunk in chunks]

    container = packed(text[: 3 * CHUNK], CHUNK, chooser=Wrong())
    chunks, error = decoded_chunks(container, **search)
    assert (chunks, error is None) == ([], False)
    for number in range(3):
        with pytest.raises(LmfsError), reader(container, **search) as whole:
            whole.read_chunks([number])


def test_primers_that_no_reader_would_take_are_not_written(tiny):
    ids = tiny.id, profile_by_number(2).id
    for coding in (
        Coding(CodecId.MIX, *ids, (16 << 20) + 1),
        Coding(CodecId.LM, *ids, 1 << 33),
        Coding(CodecId.LM, *ids, -1),
        Coding(CodecId.RAW, None, None, 5),
        Coding(CodecId.ZSTD, None, None, 5),
    ):
        with pytest.raises(UsageError):
            Header(Kind.ARCHIVE, 100, (coding,))
    longest = Header(Kind.ARCHIVE, 100, (Coding(CodecId.MIX, *ids, 16 << 20),))
    assert parse_header(longest.pack()) == longest
