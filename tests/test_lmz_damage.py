"""Damaged containers: an error or the right bytes, and every whole chunk is recovered."""

from __future__ import annotations

import io
import random
import time
import tracemalloc

import pytest
from containers import STORE, Planned, WholeChunks, blob_ranges, packed, reader, recovered, sample
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfs import lmz
from lmfs.container import CodecId, Coding
from lmfs.errors import (
    DamagedError,
    FormatError,
    LmfsError,
    UnknownModelError,
)
from lmfs.lmz.source import FileSource
from lmfs.profile import PROFILE_1

# ---------------------------------------------------------------------------------- damage


def answers(container: bytes, **options) -> list[bytes | LmfsError]:
    """What each way to read it gives: bytes, or an LmfsError; any other error fails the test."""
    found: list[bytes | LmfsError] = []

    def verified() -> bytes:
        with reader(container, **options) as whole:
            whole.verify()
            return whole.read()

    def at_random() -> bytes:
        with reader(container, **options) as whole:
            pieces = [whole.pread(100, at) for at in range(0, whole.size, 100)]
            return b"".join(pieces)

    ways = [verified, at_random]
    if "store_id" not in options:
        ways.append(lambda: lmz.decompress(container, **options))
    for way in ways:
        try:
            found.append(way())
        except LmfsError as error:
            found.append(error)
    return found


def check_damaged(container: bytes, data: bytes, *, allow_unnoticed: bool = False, **options):
    for answer in answers(container, **options):
        assert isinstance(answer, LmfsError) or answer == data
        assert isinstance(answer, LmfsError) or allow_unnoticed
    try:
        options.pop("store_id", None)
        for part in recovered(container, **options):
            if part.start is not None:
                assert data[part.start : part.start + len(part.data)] == part.data
            assert part.data in data
    except LmfsError:
        pass


@pytest.fixture(scope="module")
def mixed(tiny, data) -> tuple[bytes, bytes]:
    """Data of all four codecs, and its container."""
    text = (data / "alice29.txt").read_bytes()[1000:1500]
    whole = random.Random(5).randbytes(260) + b"ab" * 130 + text + text
    container = packed(whole, 260, chooser=Planned(tiny, "raw zstd mix lm", 600))
    with reader(container) as opened:
        assert opened.statistics().keys() == {"raw", "zstd", "mix", "lm"}
    return whole, container


@pytest.mark.parametrize("options", [{}, {"store_id": STORE}], ids=["archive", "frozen"])
def test_every_flipped_bit_is_noticed(options):
    data = sample(150)
    container = packed(data, 60, **options)
    blobs = blob_ranges(container, **options)
    for at in range(len(container)):
        in_blob = any(at in blob for blob in blobs)
        for bit in range(8):
            broken = bytearray(container)
            broken[at] ^= 1 << bit
            check_damaged(bytes(broken), data, allow_unnoticed=in_blob, **options)


def test_every_flipped_byte_of_a_member_with_a_model_is_noticed(mixed, tiny):
    _, container = mixed
    _, _, mix_blob, lm_blob, *_, last = blob_ranges(container)
    frames = [*range(mix_blob.start - 8, mix_blob.start + 12)]
    frames += range(lm_blob.start - 8, lm_blob.start + 12)
    frames += range(lm_blob.stop - 12, lm_blob.stop)
    for at in [*range(190), *frames, *range(last.stop, len(container))]:
        broken = bytearray(container)
        broken[at] ^= (1, 0x80, 0xFF)[at % 3]
        with pytest.raises(LmfsError):
            lmz.decompress(bytes(broken), model_search=[tiny.path])


def test_every_truncation_is_noticed():
    data = sample(400)
    container = packed(data)
    for length in range(len(container)):
        check_damaged(container[:length], data)


def test_every_truncation_yields_every_whole_chunk():
    data = random.Random(9).randbytes(640)
    container = packed(data)
    with reader(container) as whole:
        layout = whole.members[0].layout
        ends = list(map(sum, zip(layout.blob_offsets, layout.coded_sizes, strict=True)))
    for length in range(int(whole.members[0].layout.frame_offsets[0]), len(container)):
        parts = recovered(container[:length])
        assert len(parts) == sum(end <= length for end in ends)
        assert b"".join(part.data for part in parts) == data[: 64 * len(parts)]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_is_noticed(draw):
    data = sample(400)
    container = bytearray(packed(data, 100) + packed(data[:50], 100))
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(container)))
        junk = draw.draw(st.binary(max_size=20))
        container[at : at + draw.draw(st.integers(0, 30))] = junk
    check_damaged(bytes(container), data + data[:50], allow_unnoticed=True)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([0, 8, 24, 32]))
def test_any_bytes_at_all(junk, kept):
    data = sample(100)
    check_damaged(packed(data)[:kept] + junk, data, allow_unnoticed=True)


def test_damage_never_asks_for_much_memory():
    data = sample(600)
    container = packed(data, 1 << 24)
    tracemalloc.start()
    for at in range(len(container)):
        broken = bytearray(container)
        broken[at] |= 0xF0
        answers(bytes(broken))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


def test_chunks_that_changed_places_are_noticed():
    data = random.Random(4).randbytes(192)
    container = packed(data)
    with reader(container) as whole:
        (a, b, c) = whole.members[0].layout.frame_offsets.tolist()
    swapped = container[:a] + container[b:c] + container[a:b] + container[c:]
    with reader(swapped) as whole:
        assert whole.pread(64, 128) == data[128:]
        for offset in (0, 64):
            with pytest.raises(DamagedError, match="checksum"):
                whole.pread(64, offset)


def test_a_damaged_chunk_spoils_no_other(mixed, tiny):
    data = sample(64 * 40)
    container = bytearray(packed(data))
    with reader(bytes(container)) as whole:
        container[int(whole.members[0].layout.blob_offsets[20])] ^= 0xFF
    with reader(bytes(container)) as whole:
        for offset in range(0, len(data), 64):
            if offset == 20 * 64:
                with pytest.raises(DamagedError, match="bytes 1280 to 1344"):
                    whole.pread(64, offset)
            else:
                assert whole.pread(64, offset) == data[offset : offset + 64]
        with pytest.raises(DamagedError, match="bytes 1280 to 1344"):
            whole.verify()
    assert len(recovered(bytes(container))) == 39


def test_the_messages_say_what_to_do(tmp_path):
    path = tmp_path / "x.lmz"
    path.write_bytes(packed(sample(500))[:-1])
    with pytest.raises(DamagedError, match=r"x\.lmz.*lmfs recover"):
        lmz.LmzReader(path)
    path.write_bytes(b"plain text")
    with pytest.raises(FormatError, match=r"not an \.lmz.*x\.lmz.*expected 8b 4c"):
        lmz.LmzReader(path)
    for empty in (lambda: reader(b""), lambda: lmz.decompress(b"")):
        with pytest.raises(FormatError, match="no bytes"):
            empty()
    with pytest.raises(DamagedError, match="no container"):
        lmz.decompress(packed(b"x") + b"junk behind it")


def test_an_unknown_model_is_named_and_the_rest_readable():
    class Unknown(WholeChunks):
        def codings(self, primer):
            return (Coding(CodecId.RAW), Coding(CodecId.LM, b"\x77" * 16, PROFILE_1.id))

        def primer(self):
            return None

        def choose(self, chunks, primer):
            return [(i % 2, chunk) for i, chunk in enumerate(chunks)]

    data = sample(300)
    with reader(packed(data, chooser=Unknown())) as whole:
        assert whole.pread(64, 0) == data[:64]
        with pytest.raises(UnknownModelError, match="model 77777777"):
            whole.read()
        assert whole.pread(64, 128) == data[128:192]


# -------------------------------------------------------------------------------- recovery


def holes(container: bytes) -> list[tuple[int | None, int | None]]:
    found = lmz.recover(io.BytesIO(container))
    return [(part.start, part.size) for part in found if isinstance(part, lmz.Hole)]


@pytest.fixture(scope="module")
def large() -> tuple[bytes, bytes]:
    data = sample(100 * 2048, 7)
    return data, packed(data, 2048)


def pieces(container: bytes, data: bytes) -> int:
    """How many bytes are recovered; each is compared."""
    parts = recovered(container)
    for part in parts:
        assert part.start is not None
        assert data[part.start : part.start + len(part.data)] == part.data
    return sum(len(part.data) for part in parts)


def test_a_lost_header_is_found_in_the_index(large):
    data, container = large
    assert pieces(bytes(20) + container[20:], data) == len(data)
    assert holes(bytes(20) + container[20:]) == []


def test_a_lost_sector_costs_its_chunks(large):
    data, container = large
    broken = container[:20480] + bytes(4096) + container[24576:]
    got = pieces(broken, data)
    touched = [blob for blob in blob_ranges(container) if {*blob} & {*range(20480, 24576)}]
    assert got == len(data) - 2048 * len(touched)
    lost = holes(broken)
    assert sum(size for _, size in lost) == len(data) - got
    without_index = broken[:-200]
    assert pieces(without_index, data) == got
    (hole, _) = holes(without_index)
    assert hole == (lost[0][0], len(data) - got)


def test_a_lost_head_costs_its_chunk(large):
    data, container = large
    with reader(container) as whole:
        at = int(whole.members[0].layout.frame_offsets[30])
    for junk in (b"\xff\xff\xff", b"\x05\x05\x05", b"\x00\x81\x02"):
        broken = container[:at] + junk + container[at + 3 : -100]
        assert pieces(broken, data) >= len(data) - 2 * 2048
        assert holes(broken)[0][0] == 30 * 2048


def test_a_lost_middle_and_a_second_member(large):
    data, container = large
    junk = random.Random(8).randbytes(9000)
    second = b"second" * 100
    broken = container[:50000] + junk + container[60000:-10] + packed(second)
    touched = [blob for blob in blob_ranges(container) if {*blob} & {*range(50000, 60000)}]
    assert pieces(broken, data + second) == 2048 * (100 - len(touched)) + len(second)


@pytest.mark.parametrize("left", [0, 1, 2, 3, 40])
def test_a_lost_middle_of_a_file_that_ends_early(left):
    """So many bytes of its last frame are left."""
    data = random.Random(9).randbytes(640)
    container = packed(data)
    with reader(container) as whole:
        frames = whole.members[0].layout.frame_offsets.tolist()
    lost = frames[3] - frames[1]
    broken = container[: frames[1]] + b"\xff" * lost + container[frames[3] : frames[9] + left]
    assert [part.start for part in recovered(broken)] == [0, *range(192, 576, 64)]


@pytest.mark.parametrize("cut", [(0, 1), (3, 6), (10, 90), (98, 100)])
@pytest.mark.parametrize("end", [None, -200], ids=["index", "no index"])
def test_frames_cut_out_exactly_cost_no_others(large, cut, end):
    """What follows stands too early, though every head is whole; the checksums tell where."""
    data, container = large
    first, stop = cut
    with reader(container) as whole:
        layout = whole.members[0].layout
        places = [*layout.frame_offsets.tolist(), layout.end]
    broken = container[: places[first]] + container[places[stop] : end]
    lost = sum(layout.sizes.tolist()[first:stop])
    expected = len(data) - lost
    if end is None:
        assert pieces(broken, data) == expected
        assert holes(broken) == [(first * 2048, lost)]
    elif stop < 100:
        assert pieces(broken, data) >= expected - 2048  # the cut at the end may take one
        assert holes(broken)[0] == (first * 2048, lost)


def test_nothing_to_recover():
    for junk in (b"", b"x", bytes(100), random.Random(1).randbytes(5000)):
        with pytest.raises(FormatError):
            list(lmz.recover(io.BytesIO(junk)))


def test_the_source_counts_its_bytes():
    source = FileSource(io.BytesIO(b"abcdef"))
    assert source.pread(3, 2) == b"cde"
    for size, offset in ((7, 0), (1, 6), (-1, 0), (1, -1)):
        with pytest.raises(DamagedError):
            source.pread(size, offset)


def test_a_great_hole_is_passed_quickly(large):
    data, container = large
    broken = container[:20000] + bytes(8 << 20) + container[20000:-100]
    began = time.process_time()
    assert pieces(broken, data) >= len(data) - 2048
    assert time.process_time() - began < 20
