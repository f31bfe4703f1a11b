"""Containers as files: what was written comes back, damaged ones answer with an error."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import random
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lmfs
from lmfs import lmz
from lmfs.codecs.choose import Chooser
from lmfs.container import CodecId, Coding, checksum, pack_varint
from lmfs.errors import (
    DamagedError,
    FormatError,
    LmfsError,
    UnknownModelError,
    UsageError,
    VersionError,
)
from lmfs.lmz.source import FileSource

CHEAP = Chooser(zstd_level=3)
STORE = bytes(range(16))


def packed(data: bytes, chunk_size: int = 64, **options) -> bytes:
    out = io.BytesIO()
    with lmz.LmzWriter(out, chunk_size=chunk_size, **{"chooser": CHEAP, **options}) as writer:
        writer.write(data)
    return out.getvalue()


def reader(container: bytes, **options) -> lmz.LmzReader:
    return lmz.LmzReader(io.BytesIO(container), **options)


def recovered(container: bytes, **options) -> list[lmz.Recovered]:
    found = lmz.recover(io.BytesIO(container), **options)
    return [part for part in found if isinstance(part, lmz.Recovered)]


def sample(size: int, seed: int = 1) -> bytes:
    """Text, noise and repetition in turn, so that every codec has its chunks."""
    rng = random.Random(seed)
    words = ["cold ", "text ", "is ", "small ", "and ", "still ", "open ", "zwölf ", "\n"]
    parts, length = [], 0
    while length < size:
        kind = rng.randrange(3)
        if kind == 0:
            part = "".join(rng.choices(words, k=60)).encode()
        else:
            part = rng.randbytes(150) if kind == 1 else rng.randbytes(2) * 100
        parts.append(part)
        length += len(part)
    return b"".join(parts)[:size]


# ------------------------------------------------------------------------------ round trips


@settings(max_examples=60, deadline=None)
@given(
    data=st.binary(max_size=700),
    chunk_size=st.integers(1, 300),
    batch_chunks=st.integers(1, 5),
    cuts=st.lists(st.integers(0, 700), max_size=4),
)
def test_any_bytes_come_back(data, chunk_size, batch_chunks, cuts):
    out = io.BytesIO()
    with lmz.LmzWriter(
        out, chunk_size=chunk_size, batch_chunks=batch_chunks, chooser=CHEAP
    ) as writer:
        for a, b in itertools.pairwise([0, *sorted(cuts), len(data)]):
            writer.write(data[a:b])
        assert writer.tell() == len(data)
    container = out.getvalue()
    assert lmz.decompress(container) == data
    with reader(container) as whole:
        assert whole.read() == data
        assert whole.size == len(data)
        whole.verify()
    assert b"".join(part.data for part in recovered(container)) == data


@settings(max_examples=30, deadline=None)
@given(
    data=st.binary(min_size=1, max_size=500),
    reads=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 300)), max_size=8),
    chunk_size=st.integers(1, 100),
)
def test_any_bytes_at_any_offset(data, reads, chunk_size):
    with reader(packed(data, chunk_size) + packed(data, chunk_size + 1)) as whole:
        for offset, size in reads:
            assert whole.pread(size, offset) == (data + data)[offset : offset + size]


@settings(max_examples=25, deadline=None)
@given(words=st.text(max_size=200), chunk_size=st.integers(1, 40))
def test_the_model_codes_any_text_cut_anywhere(tiny, words, chunk_size):
    data = words.encode("utf-8", "surrogatepass")
    chooser = Chooser(tiny)
    chooser._may_wake_model = lambda chunk, best: True
    container = packed(data, chunk_size, chooser=chooser)
    with reader(container, model_search=[tiny.path.parent]) as whole:
        assert whole.read() == data


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 64 * 64 - 1, 64 * 64, 64 * 64 + 1, 9000])
def test_sizes_around_chunks_and_batches(size):
    data = sample(size)
    container = packed(data)
    assert lmz.decompress(container) == data
    assert reader(container).read() == data
    assert reader(container).chunk_count == -(-size // 64)


def test_the_packages_functions(tmp_path):
    data = sample(3000)
    assert lmfs.decompress(lmfs.compress(data, chooser=CHEAP, chunk_size=100)) == data
    with lmfs.open(tmp_path / "x.lmz", "wb", chooser=CHEAP) as writer:
        writer.write(data)
    with lmfs.open(tmp_path / "x.lmz") as whole:
        assert whole.read() == data
    with pytest.raises(UsageError):
        lmfs.open(tmp_path / "x.lmz", "r")


def test_the_shipped_model_is_the_default(tiny, monkeypatch, data):
    monkeypatch.setattr("lmfs.models.registry.shipped", lambda: tiny)
    monkeypatch.setenv("LMFS_MODEL_PATH", str(tiny.path))
    text = (data / "alice29.txt").read_bytes()[2000:4000]
    container = lmfs.compress(text)
    assert reader(container).statistics().keys() == {"lm"}
    assert lmfs.decompress(container) == text


def test_what_a_small_member_declares_and_costs():
    assert [coding.codec for coding in reader(packed(b"x")).members[0].codings] == [CodecId.RAW]
    assert reader(packed(b"")).members[0].codings == ()
    assert len(packed(b"")) <= 110
    assert len(packed(b"x", 16384)) <= 125
    assert len(reader(packed(sample(64 * 64 + 1))).members[0].codings) == 2


@pytest.mark.parametrize("ratio", [2, 5])
def test_overhead_of_a_chunk(ratio):
    """At 16 KiB: heads, checksums, index, header and trailer together."""

    class Fake:
        """As a model codes them: sizes vary."""

        codings = (*Chooser().codings, Coding(CodecId.LM, bytes(16), bytes(16)))

        def choose(self, chunks):
            rng = random.Random(len(chunks))
            sizes = (int(rng.gauss(1, 0.15) * 16384 / ratio) for _ in chunks)
            return [(2, bytes(max(1, min(16384, size)))) for size in sizes]

    chunks = 640
    container = packed(bytes(16384 * chunks), 16384, chooser=Fake())
    with reader(container) as whole:
        coded = whole.statistics()["lm"].bytes_after
    overhead = (len(container) - coded) / chunks
    assert overhead < (8.3 if ratio == 5 else 10.3)


def test_writing_reports_progress_and_its_sums():
    steps: list[int] = []
    out = io.BytesIO()
    data = sample(20000)
    with lmz.LmzWriter(out, chooser=CHEAP, chunk_size=64, progress=steps.append) as writer:
        writer.write(memoryview(bytearray(data)))
    assert sum(steps) == len(data)
    assert len(steps) > 1
    assert writer.written_bytes == len(out.getvalue())
    assert writer.content_hash == reader(out.getvalue()).members[0].content_hash


def test_an_exception_leaves_no_trailer(tmp_path):
    path = tmp_path / "x.lmz"
    with pytest.raises(TypeError), lmz.LmzWriter(path, chooser=CHEAP) as writer:
        writer.write([sample(5000), "no bytes"])
    assert path.read_bytes() == b""
    writer = lmz.LmzWriter(path, chooser=CHEAP, chunk_size=10)
    writer.write(sample(5000))
    del writer
    with pytest.raises(DamagedError):
        lmz.LmzReader(path)


class Miser(io.RawIOBase):
    """A raw file that takes a few bytes at a time."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.data += bytes(data[:7])
        return min(7, len(data))


def test_partial_writes_are_finished():
    miser = Miser()
    with lmz.LmzWriter(miser, chooser=CHEAP, chunk_size=64) as writer:
        writer.write(sample(1000))
    assert lmz.decompress(bytes(miser.data)) == sample(1000)
    with pytest.raises(ValueError, match="finished"):
        writer.write(b"more")


def test_bad_arguments_are_refused():
    for options in ({"chunk_size": 0}, {"chunk_size": (1 << 24) + 1}, {"batch_chunks": 0}):
        with pytest.raises(UsageError):
            lmz.LmzWriter(io.BytesIO(), chooser=CHEAP, **options)
    with pytest.raises(UsageError):
        lmz.ChunkCache(-1)
    with reader(packed(b"abc")) as whole:
        for call in (
            lambda: whole.pread(1, -1),
            lambda: whole.seek(-1),
            lambda: whole.seek(0, 9),
            lambda: whole.read_chunks([1]),
            lambda: whole.read_chunks([-1]),
        ):
            with pytest.raises(UsageError):
                call()


# --------------------------------------------------------------------------------- reading


def test_it_is_a_file_object():
    text = "eine Zeile über uns\nnoch eine\n\nund die letzte".encode()
    container = packed(text, 7)
    assert io.TextIOWrapper(reader(container), "utf-8").read() == text.decode()
    assert list(reader(container)) == text.splitlines(keepends=True)
    with reader(container) as whole:
        assert (whole.readable(), whole.seekable(), whole.writable()) == (True, True, False)
        assert whole.seek(-7, os.SEEK_END) == len(text) - 7
        assert whole.read(3) == text[-7:-4]
        assert whole.tell() == len(text) - 4
        assert whole.seek(1, os.SEEK_CUR) == len(text) - 3
        assert whole.read1() == text[-3:]
        assert whole.read() == whole.peek() == whole.read1() == b""
        whole.seek(5)
        assert whole.peek() == text[5:7]
        buffer = bytearray(4)
        assert whole.readinto1(buffer) == 2
        assert whole.readinto(buffer) == 4
        assert bytes(buffer) == text[7:11]
        assert whole.seek(10**12) == 10**12
        assert whole.read() == b""
    with pytest.raises(ValueError, match="closed"):
        whole.read()
    with pytest.raises(ValueError, match="closed"):
        whole.pread(1, 0)


def test_members_are_concatenated():
    parts = [sample(500, 1), b"", sample(3, 2), sample(700, 3)]
    container = b"".join(packed(part, 50 + i) for i, part in enumerate(parts))
    whole = b"".join(parts)
    assert lmz.decompress(container) == whole
    with reader(container) as joined:
        assert joined.read() == whole
        joined.verify()
        assert [member.size for member in joined.members] == [500, 0, 3, 700]
        assert [member.start for member in joined.members] == [0, 500, 500, 503]
        last = joined.chunk_count - 1
        assert joined.read_chunks([last, 0]) == [parts[3][13 * 53 :], parts[0][:50]]
    assert b"".join(part.data for part in recovered(container)) == whole


def test_statistics_and_layout():
    noise = random.Random(1).randbytes(100)
    with reader(packed(noise + bytes(200), 100)) as whole:
        statistics = whole.statistics()
        assert statistics["raw"] == lmz.CodecStatistics(1, 100, 100)
        assert statistics["zstd"].bytes_before == 200
        assert statistics["zstd"].bytes_after < 30
        layout = whole.members[0].layout
        assert layout.starts.tolist() == [0, 100, 200]
        assert layout.codings.tolist() == [0, 1, 1]


def test_reading_ahead_doubles_while_reading_is_sequential():
    data = sample(64 * 200)
    batches: list[int] = []
    with reader(packed(data), cache=lmz.ChunkCache(1 << 20)) as whole:
        decode = whole._chunks.decode
        whole._chunks.decode = lambda indices: batches.append(len(indices)) or decode(indices)
        for offset in range(0, len(data), 32):
            assert whole.pread(32, offset) == data[offset : offset + 32]
        assert batches == [1, 2, 4, 8, 16, 32, 32, 32, 32, 32, 9]
        batches.clear()
        whole._cache.clear()
        for chunk in (100, 50, 150):
            whole.pread(1, chunk * 64)
        assert batches == [1, 1, 1]


def test_reading_ahead_stays_within_the_cache():
    data = sample(64 * 100)
    cache = lmz.ChunkCache(64 * 10)
    with reader(packed(data), cache=cache) as whole:
        for offset in range(0, len(data), 64):
            assert whole.pread(64, offset) == data[offset : offset + 64]
            assert cache.used_bytes <= cache.max_bytes
        assert cache.misses < 40
        assert whole.pread(3000, 1000) == data[1000:4000]
    assert cache.used_bytes == 0


def test_a_cache_smaller_than_a_chunk_is_no_hindrance():
    data = sample(1000)
    with reader(packed(data), cache=lmz.ChunkCache(0)) as whole:
        assert whole.read() == data
        assert whole.read_chunks([3, 3, 1]) == [data[192:256], data[192:256], data[64:128]]


def test_a_cache_is_shared_and_keeps_what_was_used_last():
    cache = lmz.ChunkCache(64 * 4)
    one, two = reader(packed(bytes(640)), cache=cache), reader(packed(b"x" * 640), cache=cache)
    assert (one.pread(2, 0), two.pread(2, 0)) == (b"\0\0", b"xx")
    cache.add(99, 1, b"a" * 64)
    cache.add(99, 2, b"b" * 64)
    assert cache.find(99, [1]) == {1: b"a" * 64}
    for chunk in (3, 4, 5):
        cache.add(99, chunk, b"c" * 64)
    assert cache.find(99, [1, 2]) == {1: b"a" * 64}
    cache.add(99, 7, bytes(1000))
    assert not cache.holds(99, 7)
    assert cache.used_bytes == 256
    cache.forget(99)
    assert cache.used_bytes == 0


def test_many_threads_read_one_reader(tmp_path):
    data = sample(64 * 300)
    path = tmp_path / "x.lmz"
    path.write_bytes(packed(data))
    rng = random.Random(3)
    wanted = [(rng.randrange(len(data)), rng.randrange(500)) for _ in range(300)]
    for source in (path, io.BytesIO(path.read_bytes())):
        with (
            lmz.LmzReader(source, cache=lmz.ChunkCache(64 * 50)) as whole,
            ThreadPoolExecutor(8) as pool,
        ):
            found = pool.map(lambda ask: whole.pread(ask[1], ask[0]), wanted)
            assert list(found) == [data[o : o + n] for o, n in wanted]


def test_the_file_below_stays_as_it_was(tmp_path):
    path = tmp_path / "x.lmz"
    path.write_bytes(packed(sample(500)))
    with open(path, "rb") as file:
        file.seek(5)
        with lmz.LmzReader(file) as whole:
            assert whole.read() == sample(500)
            assert whole.name == str(path)
        assert file.tell() == 5
    with open(path, "rb") as file:
        whole = lmz.LmzReader(file)
    assert whole.read() == sample(500)
    whole.close()
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(FormatError):
            lmz.LmzReader(__file__)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_file_that_shrinks_is_damaged(tmp_path):
    path = tmp_path / "x.lmz"
    path.write_bytes(packed(random.Random(1).randbytes(5000)))
    with lmz.LmzReader(path) as whole:
        os.truncate(path, 1000)
        assert len(whole.pread(64, 0)) == 64
        with pytest.raises(DamagedError):
            whole.pread(64, 4000)


def test_a_pipe_is_written_and_read():
    data = sample(300_000)
    read_end, write_end = os.pipe()

    def write() -> None:
        with open(write_end, "wb", buffering=0) as file, lmz.LmzWriter(file, chooser=CHEAP) as out:
            out.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    with open(read_end, "rb", buffering=0) as file:
        found = b"".join(lmz.stream_decode(file))
    thread.join()
    assert found == data


# --------------------------------------------------------------------------- kinds, sections


def test_frozen_files_are_for_their_store_alone():
    frozen, archive = packed(b"abc" * 50, store_id=STORE), packed(b"abc" * 50)
    with reader(frozen, store_id=STORE) as whole:
        assert whole.read() == b"abc" * 50
        assert whole.members[0].store_id == STORE
    for container, store in ((frozen, None), (frozen, bytes(16)), (archive, STORE)):
        with pytest.raises(FormatError):
            reader(container, store_id=store)
    with pytest.raises(FormatError):
        lmz.decompress(frozen)
    with pytest.raises(FormatError):
        reader(archive + frozen)
    assert frozen[:8] != archive[:8]
    assert frozen[-8:] != archive[-8:]
    assert [part.data for part in recovered(frozen)] == [
        b"abc" * 21 + b"a",
        b"bc" + b"abc" * 20 + b"ab",
        b"c" + b"abc" * 7,
    ]


def with_section(container: bytes, kind: int, payload: bytes) -> bytes:
    """The one-member container with a section before its first chunk."""
    from lmfs.container import Trailer, header_length, parse_header
    from lmfs.layout import pack_index

    with reader(container) as whole:
        (member,) = whole.members
    length = header_length(container)
    header = parse_header(container[:length])
    head = pack_varint(kind << header.coding_bits | header.escape) + pack_varint(len(payload))
    section = head + checksum(payload).to_bytes(4, "little") + payload
    body = container[:length] + section + container[length : member.layout.end]
    index = pack_index(header, head + member.layout.heads, member.content_hash)
    trailer = Trailer(
        header.kind,
        len(body) + len(index) + header.trailer_bytes,
        member.size,
        len(index),
        int.from_bytes(container[length - 4 : length], "little"),
    )
    return body + index + trailer.pack()


def test_unknown_sections_are_skipped_unless_critical():
    data = sample(300)
    ancillary = with_section(packed(data), 4, b"something new" * 9)
    assert lmz.decompress(ancillary) == data
    with reader(ancillary) as whole:
        assert whole.read() == data
        whole.verify()
        ((kind, offset, size),) = whole.members[0].layout.sections
        assert (kind, ancillary[offset : offset + size]) == (4, b"something new" * 9)
    assert b"".join(part.data for part in recovered(ancillary)) == data
    assert b"".join(part.data for part in recovered(ancillary[:-60])) == data
    critical = with_section(packed(data), 5, b"something new")
    with pytest.raises(VersionError):
        lmz.decompress(critical)
    with pytest.raises(VersionError):
        reader(critical)
    broken = ancillary.replace(b"something new", b"something now", 1)
    with pytest.raises(DamagedError):
        lmz.decompress(broken)
    with reader(broken) as whole:
        assert whole.read() == data
        with pytest.raises(DamagedError):
            whole.verify()


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
    """Data of all three codecs, and its container."""
    text = (data / "alice29.txt").read_bytes()[1000:1500]
    whole = random.Random(5).randbytes(260) + b"ab" * 130 + text
    chooser = Chooser(tiny)
    chooser._may_wake_model = lambda chunk, best: b"the" in chunk
    container = packed(whole, 260, chooser=chooser)
    with reader(container) as opened:
        assert opened.statistics().keys() == {"raw", "zstd", "lm"}
    return whole, container


def blob_ranges(container: bytes, **options) -> list[range]:
    """Where the blobs lie: there a flip may leave the decoded bytes as they were."""
    with reader(container, **options) as whole:
        return [
            range(member.offset + start, member.offset + start + size)
            for member in whole.members
            for start, size in zip(
                member.layout.blob_offsets.tolist(),
                member.layout.coded_sizes.tolist(),
                strict=True,
            )
        ]


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
    lm_blob = blob_ranges(container)[-1]
    frame = range(lm_blob.start - 8, lm_blob.start + 12)
    for at in [*range(120), *frame, *range(lm_blob.stop - 12, len(container))]:
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
        ends = whole.members[0].layout.blob_offsets + whole.members[0].layout.coded_sizes
    for length in range(int(whole.members[0].layout.frame_offsets[0]), len(container)):
        parts = recovered(container[:length])
        assert len(parts) == int((ends <= length).sum())
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
    class Unknown:
        codings = (Coding(CodecId.RAW), Coding(CodecId.LM, b"\x77" * 16, b"\x88" * 16))

        def choose(self, chunks):
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
    broken = container[:50000] + junk + container[60000:-10] + packed(b"second" * 100)
    parts = recovered(broken)
    assert b"".join(part.data for part in parts[-10:]) == b"second" * 100
    got = {part.start: part.data for part in parts if part.start is not None}
    assert all(data[start : start + len(chunk)] == chunk for start, chunk in got.items())
    touched = [blob for blob in blob_ranges(container) if {*blob} & {*range(50000, 60000)}]
    assert 2048 * (100 - len(touched)) == sum(map(len, got.values()))


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


@pytest.mark.parametrize(
    ("name", "options"), [("archive", {}), ("frozen", {"store_id": STORE}), ("model", {})]
)
def test_golden_files_decode_for_ever(data, name, options):
    """Written by version 1.0. They are never written anew: a new version adds its own."""
    expected = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(20)) + bytes(500)
    expected += (data / "alice29.txt").read_bytes()[1000:1500]
    container = (data / f"golden-1.0-{name}.lmz").read_bytes()
    with reader(container, model_search=[data], **options) as whole:
        assert whole.read() == expected
        whole.verify()
        codecs = {"raw", "zstd"} | ({"lm"} if name == "model" else set())
        assert whole.statistics().keys() == codecs
