"""Containers as files: what was written comes back, at any offset, in order and from pipes."""

from __future__ import annotations

import io
import itertools
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from containers import (
    CHEAP,
    STORE,
    Planned,
    WholeChunks,
    blob_ranges,
    packed,
    reader,
    recovered,
    sample,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import lmfs
from lmfs import lmz
from lmfs.codecs.threads import Priority, current_urgency
from lmfs.container import CodecId, Coding, checksum, header_length, pack_varint
from lmfs.errors import (
    DamagedError,
    FormatError,
    LmfsError,
    UsageError,
    VersionError,
)
from lmfs.lmz.ahead import Streams
from lmfs.lmz.inspect import Inspection

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
    container = packed(data, chunk_size, chooser=Planned(tiny, "lm mix lm+", 3 * chunk_size))
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

    class Fake(WholeChunks):
        """As a model codes them: sizes vary."""

        def codings(self, primer):
            return [
                *(Coding(CodecId.RAW), Coding(CodecId.ZSTD)),
                Coding(CodecId.LM, bytes(16), bytes(16)),
            ]

        def primer(self):
            return None

        def choose(self, chunks, primer):
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


def test_reading_ahead_grows_while_reading_is_sequential():
    data = sample(64 * 200)
    decoded: list[int] = []
    with reader(packed(data), cache=lmz.ChunkCache(1 << 20)) as whole:
        decode, streams = whole._chunks.decode, whole._streams
        follow, begun = streams.follow, []
        whole._chunks.decode = lambda indices: decoded.extend(indices) or decode(indices)
        streams.follow = lambda *read: begun.append(follow(*read)) or begun[-1]
        for offset in range(0, len(data), 32):
            assert whole.pread(32, offset) == data[offset : offset + 32]
        assert [len(batch) for batch in begun if batch][:6] == [1, 2, 4, 16, 16, 16]
        # Every chunk once, by whoever came first, and a batch begins when the one before it is
        # reached, not when it is used up.
        assert sorted(decoded) == list(range(200))
        assert [batch[0] for batch in begun if batch][:5] == [2, 3, 5, 9, 25]
        decoded.clear()
        whole._cache.clear()
        for chunk in (100, 50, 150, 149, 100, 100):
            whole.pread(1, chunk * 64)
        assert decoded == [100, 50, 150, 149]


def test_two_who_read_in_turns_are_both_sequential():
    streams = Streams()
    assert [len(streams.follow(at, at + 1)) for at in (0, 50, 1, 51, 2, 52, 99, 3, 53)] == [
        *(0, 0, 1, 1, 2, 2, 0, 4, 4)
    ]


def test_reading_does_not_wait_for_what_is_decoded_ahead(monkeypatch):
    data = sample(64 * 20)
    gate = threading.Event()
    with reader(packed(data), cache=lmz.ChunkCache(1 << 20)) as whole:
        decode = whole._chunks.decode

        def held_up(indices):
            if threading.current_thread().name.startswith("lmfs-ahead"):
                assert gate.wait(30)
            return decode(indices)

        whole._chunks.decode = held_up
        assert whole.pread(64, 0) + whole.pread(64, 64) == data[:128]
        pending = whole._pending[2]
        assert pending.urgency.priority is Priority.AHEAD
        threading.Timer(0.05, gate.set).start()
        assert whole.pread(64, 128) == data[128:192]  # waits for that one, and urges it
        assert pending.urgency.priority is Priority.READ


def test_a_closed_file_is_not_decoded(monkeypatch):
    data = sample(64 * 60)
    gate, decoded = threading.Event(), []
    cache = lmz.ChunkCache(1 << 20)
    whole = reader(packed(data), cache=cache)
    decode = whole._chunks.decode

    def held_up(indices):
        if threading.current_thread().name.startswith("lmfs-ahead"):
            decoded.extend(indices)
            assert gate.wait(30)
            current_urgency().check()
        return decode(indices)

    whole._chunks.decode = held_up
    for chunk in range(2):
        whole.pread(64, chunk * 64)
    while not decoded:
        time.sleep(0.001)
    source = whole._source
    whole.close()
    assert source._file is not None  # not closed under who reads it
    gate.set()
    while whole._users:
        time.sleep(0.001)
    assert decoded == [2]
    assert source._file is None
    assert cache.used_bytes == 0


def test_a_damaged_chunk_decoded_ahead_is_met_where_it_is_read():
    data = sample(64 * 40)
    container = bytearray(packed(data))
    container[blob_ranges(bytes(container))[20].start] ^= 0xFF
    with reader(bytes(container), cache=lmz.ChunkCache(1 << 20)) as whole:
        for chunk in range(40):
            if chunk == 20:
                with pytest.raises(DamagedError, match="bytes 1280 to 1344"):
                    whole.pread(64, chunk * 64)
            else:
                assert whole.pread(64, chunk * 64) == data[chunk * 64 : chunk * 64 + 64]


def test_reading_ahead_stays_within_the_cache():
    data = sample(64 * 100)
    cache, decoded = lmz.ChunkCache(64 * 16), []
    with reader(packed(data), cache=cache) as whole:
        decode = whole._chunks.decode
        whole._chunks.decode = lambda indices: decoded.extend(indices) or decode(indices)
        for offset in range(0, len(data), 64):
            assert whole.pread(64, offset) == data[offset : offset + 64]
            assert cache.used_bytes <= cache.max_bytes
            assert len(whole._pending) <= 8
        assert sorted(decoded) == list(range(100))  # none was pushed out unread
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
    from lmfs.container import Trailer, parse_header
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


def test_every_flipped_bit_of_a_section_is_noticed_by_all_who_look_at_it():
    """Its head before it, too: the index has the same again."""
    data, payload = sample(100), b"new"
    container = with_section(packed(data), 4, payload)
    with reader(container) as whole:
        (section,) = whole.members[0].layout.sections
    begin = header_length(container)
    assert section.offset == begin + 2 + 4
    for at in range(begin, section.offset + len(payload)):
        for bit in range(8):
            broken = bytearray(container)
            broken[at] ^= 1 << bit
            with pytest.raises(LmfsError):
                lmz.decompress(bytes(broken))
            with reader(bytes(broken)) as whole, pytest.raises(DamagedError):
                whole.verify()
            with Inspection(io.BytesIO(broken)) as inspection:
                assert len(list(inspection.frames())) == 1
