"""FORMAT.md's structures, packed and parsed: what holds, and what unchecked bytes are answered."""

from __future__ import annotations

import contextlib
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lmfs
from lmfs import container, layout, zstd_blob
from lmfs.codecs.choose import Chooser
from lmfs.container import CodecId, Coding, Header, Kind, Trailer
from lmfs.errors import DamagedError, FormatError, LmfsError, UsageError, VersionError

MODEL = Coding(CodecId.LM, bytes(range(16)), bytes(range(16, 32)))
CODINGS = (Coding(CodecId.RAW), Coding(CodecId.ZSTD), MODEL)
HEADER = Header(Kind.ARCHIVE, 1000, CODINGS)
IDS = MODEL.model_id, MODEL.profile_id
PRIMED_CODINGS = (MODEL, Coding(CodecId.MIX, *IDS, 0x12345), Coding(CodecId.LM, *IDS, 0x12345))
PRIMED = Header(Kind.ARCHIVE, 1000, PRIMED_CODINGS)
FROZEN = Header(Kind.FROZEN, 1 << 24, CODINGS[:1], bytes(range(100, 116)))


def resealed(header: bytes) -> bytes:
    """The header with a checksum that holds, and the length that it has."""
    header = header[:12] + struct.pack("<I", len(header)) + header[16:]
    return header[:-4] + container.checksum(header[:-4]).to_bytes(4, "little")


def with_record(header: bytes, record: bytes) -> bytes:
    return resealed(header[:-4] + record + header[-4:])


@given(st.integers(0, (1 << 63) - 1))
def test_varints_come_back_and_are_minimal(value):
    packed = container.pack_varint(value)
    assert container.unpack_varint(packed + b"x", 0) == (value, len(packed))
    assert len(packed) == max(1, -(-value.bit_length() // 7))


@pytest.mark.parametrize("header", [HEADER, FROZEN, PRIMED, Header(Kind.ARCHIVE, 1, ())])
def test_headers_come_back(header):
    packed = header.pack()
    assert container.header_length(packed[:24]) == len(packed)
    assert container.parse_header(packed) == header


def test_a_header_is_laid_out_as_specified():
    packed = Header(Kind.ARCHIVE, 0x12345, (MODEL,)).pack()
    assert packed[:24].hex() == "8b4c4d5a0d0a1a0a01000000400000004523010001000000"
    assert packed[24:-4] == bytes([1, 34, 2, 5, *range(32)])
    primed = Header(Kind.ARCHIVE, 0x12345, PRIMED_CODINGS[1:]).pack()
    assert primed[24:-4] == b"".join(
        bytes([1, 38, codec, 13, *range(32), 0x45, 0x23, 1, 0]) for codec in (3, 2)
    )
    assert (PRIMED.primer_bytes, HEADER.primer_bytes) == (0x12345, 0)


@pytest.mark.parametrize("header", [HEADER, FROZEN, PRIMED])
def test_every_flipped_byte_of_a_header_is_noticed(header):
    packed = header.pack()
    for at in range(len(packed)):
        for flip in (1, 0x80, 0xFF):
            broken = bytearray(packed)
            broken[at] ^= flip
            with pytest.raises((DamagedError, FormatError)):
                container.parse_header(bytes(broken))
    for length in range(len(packed)):
        with pytest.raises((DamagedError, FormatError)):
            container.parse_header(packed[:length])


@pytest.mark.parametrize(
    ("at", "byte"),
    [
        pytest.param(8, 2, id="major version"),
        pytest.param(10, 1, id="flags"),
        pytest.param(11, 1, id="high flags"),
        pytest.param(21, 1, id="reserved"),
        pytest.param(23, 0x80, id="last reserved"),
        pytest.param(26, 4, id="unknown codec"),
        pytest.param(27, 0x80, id="unknown coding flag"),
    ],
)
def test_what_a_newer_lmfs_wrote_is_called_so(at, byte):
    packed = bytearray(HEADER.pack())
    packed[at] = byte
    with pytest.raises(VersionError):
        container.parse_header(resealed(bytes(packed)))


def test_a_higher_minor_version_is_read():
    packed = bytearray(HEADER.pack())
    packed[9] = 200
    assert container.parse_header(resealed(bytes(packed))) == HEADER


def test_unknown_records_are_skipped_unless_critical():
    packed = HEADER.pack()
    assert container.parse_header(with_record(packed, b"\x08\x03abc")) == HEADER
    with pytest.raises(VersionError):
        container.parse_header(with_record(packed, b"\x09\x03abc"))


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(b"\x08\x7fabc", id="too long"),
        pytest.param(b"\x08", id="no length"),
        pytest.param(b"\x08\x80\x00", id="length not minimal"),
        pytest.param(b"\x01\x01\x00", id="coding of one byte"),
        pytest.param(b"\x01\x03\x00\x00\x00", id="raw with more"),
        pytest.param(b"\x01\x02\x02\x00", id="lm without ids"),
        pytest.param(b"\x01\x22\x00\x05" + bytes(32), id="raw with ids"),
        pytest.param(b"\x01\x06\x00\x08\x01\0\0\0", id="raw with a primer"),
        pytest.param(b"\x01\x06\x01\x08\x01\0\0\0", id="zstd with a primer"),
        pytest.param(b"\x01\x02\x01\x08", id="zstd with a primer of no length"),
        pytest.param(b"\x01\x06\x03\x08\x01\0\0\0", id="mix without ids"),
        pytest.param(b"\x01\x22\x03\x0d" + bytes(32), id="a primer without a length"),
        pytest.param(b"\x01\x27\x03\x0d" + bytes(36) + b"\1", id="a primer with more"),
        pytest.param(b"\x01\x26\x03\x05" + bytes(36), id="a length without a primer"),
        pytest.param(b"\x01\x26\x03\x0d" + bytes(36), id="a primer of 0 bytes"),
        pytest.param(b"\x01\x26\x02\x0d" + bytes(32) + b"\1\0\0\1", id="a primer beyond 16 MiB"),
        pytest.param(b"\x01\x26\x02\x0d" + bytes(32) + b"\0\0\0\x80", id="a negative primer"),
        pytest.param(b"\x03\x10" + bytes(16), id="store in an archive"),
        pytest.param(b"\x01\x02\x00\x00" * 2, id="a coding too many for the bits"),
        pytest.param(b"\x01\x02\x00\x00" * 125, id="codings beyond count"),
    ],
)
def test_records_that_cannot_be_are_refused(record):
    packed = Header(Kind.ARCHIVE, 1000, CODINGS[:2]).pack()
    # One more coding would be welcome: the bits suffice for it.
    assert container.parse_header(with_record(packed, b"\x01\x02\x00\x00"))
    with pytest.raises(DamagedError):
        container.parse_header(with_record(packed, record))


def test_primers_up_to_16_mib_are_read():
    for length in (1, 16 << 20):
        header = Header(Kind.ARCHIVE, 1000, (Coding(CodecId.MIX, *IDS, length),))
        assert container.parse_header(header.pack()) == header


def test_parts_of_a_primer_are_primers_too():
    codings = [*PRIMED_CODINGS, Coding(CodecId.LM, *IDS, 0x12346), Coding(CodecId.LM, *IDS, 1)]
    header = Header(Kind.ARCHIVE, 1000, tuple(codings))
    assert container.parse_header(header.pack()) == header
    assert header.primer_bytes == 0x12346
    lengths = tuple(Coding(CodecId.LM, *IDS, k) for k in range(1, 10))
    assert container.parse_header(Header(Kind.ARCHIVE, 1000, lengths[:8]).pack())
    with pytest.raises(UsageError, match="8 lengths"):
        Header(Kind.ARCHIVE, 1000, lengths)


@pytest.mark.parametrize(
    "other",
    [
        Coding(CodecId.MIX, bytes(16), MODEL.profile_id, 0x12345),
        Coding(CodecId.LM, MODEL.model_id, bytes(16), 0x12345),
    ],
    ids=["model", "profile"],
)
def test_two_different_primers_are_refused(other):
    with pytest.raises(UsageError, match="primers"):
        Header(Kind.ARCHIVE, 1000, (*PRIMED_CODINGS[:2], other))
    one = Header(Kind.ARCHIVE, 1000, PRIMED_CODINGS[:2]).pack()
    another = Header(Kind.ARCHIVE, 1000, (other,)).pack()[24:-4]
    assert len(Header(Kind.ARCHIVE, 1000, PRIMED_CODINGS).pack()) == len(one) + len(another)
    with pytest.raises(DamagedError, match="primers"):
        container.parse_header(with_record(one, another))


@pytest.mark.parametrize("flags", [flag for flag in range(256) if flag & ~15])
def test_unknown_coding_flags_are_a_newer_lmfs(flags):
    """Whatever the codec, and however long the record is then."""
    for codec in CodecId:
        for size in (0, 4, 32, 36, 52):
            record = bytes([1, 2 + size, codec, flags]) + bytes(size)
            with pytest.raises(VersionError):
                container.parse_header(with_record(HEADER.pack(), record))


def test_headers_that_cannot_be_are_not_made():
    for make in (
        lambda: Header(Kind.ARCHIVE, 0, ()),
        lambda: Header(Kind.ARCHIVE, container.MAX_CHUNK_SIZE + 1, ()),
        lambda: Header(Kind.ARCHIVE, 1, (), bytes(16)),
        lambda: Header(Kind.FROZEN, 1, ()),
        lambda: Header(Kind.FROZEN, 1, (), bytes(15)),
        lambda: Header(Kind.ARCHIVE, 1, CODINGS[:1] * 128),
    ):
        with pytest.raises(UsageError):
            make()


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_for_a_header(data, resealing):
    packed = HEADER.pack()[:24] + data
    if resealing:
        packed = resealed(packed + bytes(4))
    try:
        header = container.parse_header(packed)
    except LmfsError:
        return
    assert container.parse_header(header.pack()) == header


TRAILERS = [
    Trailer(Kind.ARCHIVE, 12345, 1 << 40, 77, 0xDEADBEEF),
    Trailer(Kind.FROZEN, 12345, 0, 77, 0, bytes(range(16))),
]


@pytest.mark.parametrize("trailer", TRAILERS)
def test_trailers_come_back_and_flips_are_noticed(trailer):
    packed = trailer.pack()
    assert len(packed) == trailer.packed_bytes
    assert container.parse_trailer(bytes(30) + packed) == trailer
    for at in range(len(packed)):
        for flip in (1, 0x80, 0xFF, 0x1C):  # 0x1C turns one kind's magic into the other's
            broken = bytearray(packed)
            broken[at] ^= flip
            with pytest.raises(DamagedError):
                container.parse_trailer(bytes(broken))


frames = st.lists(
    st.one_of(
        st.tuples(st.just("chunk"), st.integers(0, 2), st.integers(1, 1000)),
        st.tuples(st.just("short"), st.integers(0, 2), st.integers(1, 999), st.data()),
        st.tuples(st.just("section"), st.integers(1, 9).map(lambda k: 2 * k), st.integers(0, 300)),
    ),
    max_size=12,
)


@given(frames)
def test_a_layout_says_where_everything_is(parts):
    heads, at, start = b"", 50, 0
    expected: list[tuple[int, ...]] = []
    sections = []
    for part in parts:
        if part[0] == "section":
            _, kind, size = part
            head = container.pack_varint(kind << 2 | 3) + container.pack_varint(size)
            sections.append((kind, at + len(head) + 4, size))
            coded = size
        else:
            size = 1000 if part[0] == "chunk" else part[2]
            coded = part[2] if part[0] == "chunk" else part[3].draw(st.integers(1, size))
            head = layout.pack_head(HEADER, part[1], size, coded)
            blob = at + len(head) + 4
            expected.append((start, size, part[1], coded, at, blob, len(heads)))
            start += size
        heads += head
        at += len(head) + 4 + coded
    found = layout.parse_heads(heads, HEADER, 50, at, None)
    columns = (
        found.starts,
        found.sizes,
        found.codings,
        found.coded_sizes,
        found.frame_offsets,
        found.blob_offsets,
        found.head_starts,
    )
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    assert rows == expected
    assert (found.size, found.end, list(found.sections)) == (start, at, sections)
    if parts:
        with pytest.raises(DamagedError):
            layout.parse_heads(heads, HEADER, 50, at - 1, None)


def heads_one_by_one(heads, header, limit):
    """FORMAT.md's "Frames" as it reads: (size, coding, coded size, frame, blob, head) of chunks."""
    rows, at, end = [], 0, 0
    while at < len(heads):
        begin = at
        word, at = container.unpack_varint(heads, at)
        coding, payload = word & header.escape, word >> header.coding_bits
        size: int | None = header.chunk_size
        if coding == header.escape:
            if payload == layout.FRAME_INDEX:
                raise ValueError("index")
            if payload != layout.FRAME_SHORT_CHUNK:
                kind, size = payload, None
                payload, at = container.unpack_varint(heads, at)
                if kind % 2:
                    raise ValueError("critical section")
            else:
                size, at = container.unpack_varint(heads, at)
                word, at = container.unpack_varint(heads, at)
                coding, payload = word & header.escape, word >> header.coding_bits
                if not 0 < size < header.chunk_size:
                    raise ValueError("short chunk")
        blob = end + at - begin + 4
        if size is not None:
            if not 0 < payload <= size or coding >= len(header.codings):
                raise ValueError("chunk")
            rows.append((size, coding, payload, end, blob, begin))
        end = blob + payload
    if end > limit:
        raise ValueError("limit")
    return rows


heads_or_bytes = st.one_of(
    st.binary(max_size=40),
    st.lists(
        st.one_of(
            st.integers(0, 40), st.integers(0, (1 << 63) - 1), st.integers(1000 << 2, 1001 << 2)
        ).map(container.pack_varint),
        max_size=12,
    ).map(b"".join),
)


@settings(max_examples=500)
@given(heads_or_bytes, st.sampled_from([HEADER, FROZEN]), st.sampled_from([300, 1 << 40, 1 << 62]))
def test_any_heads_are_read_as_the_format_says(heads, header, limit):
    try:
        rows = heads_one_by_one(heads, header, limit)
    except ValueError:
        rows = None
    try:
        found = layout.parse_heads(heads, header, 0, limit, None)
    except LmfsError:
        assert rows is None
        return
    columns = (
        found.sizes,
        found.codings,
        found.coded_sizes,
        found.frame_offsets,
        found.blob_offsets,
        found.head_starts,
    )
    assert list(zip(*columns, strict=True)) == rows


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_for_heads(heads):
    try:
        found = layout.parse_heads(heads, HEADER, 0, 1 << 40, None)
    except LmfsError:
        return
    assert found.size == sum(found.sizes)
    assert len(heads) < found.end <= 1 << 40 or not heads


@pytest.mark.parametrize(
    ("heads", "error"),
    [
        pytest.param([3], DamagedError, id="index within"),
        pytest.param([7], DamagedError, id="short chunk cut off"),
        pytest.param([7, 5], DamagedError, id="short chunk without head"),
        pytest.param([7, 5, 3], DamagedError, id="short chunk with an escape"),
        pytest.param([7, 0, 4], DamagedError, id="short chunk of no bytes"),
        pytest.param([7, 1000, 4], DamagedError, id="short chunk that is not short"),
        pytest.param([7, 5, 6 << 2], DamagedError, id="coded longer than it is"),
        pytest.param([0], DamagedError, id="coded as nothing"),
        pytest.param([1001 << 2], DamagedError, id="coded longer than a chunk"),
        pytest.param([11], DamagedError, id="section cut off"),
        pytest.param([11, 5000], DamagedError, id="section beyond the end"),
        pytest.param([11, (1 << 63) - 1], DamagedError, id="section beyond all"),
        pytest.param([15, 1], VersionError, id="critical section"),
    ],
)
def test_heads_that_cannot_be(heads, error):
    with pytest.raises(error):
        layout.parse_heads(b"".join(map(container.pack_varint, heads)), HEADER, 0, 4000, None)


def test_no_heads_where_not_even_those_fit():
    assert layout.parse_heads(b"", HEADER, 50, 50, None).end == 50
    with pytest.raises(DamagedError):
        layout.parse_heads(b"", HEADER, 50, 49, None)


def test_an_undeclared_coding():
    two = Header(Kind.ARCHIVE, 1000, CODINGS[:2])
    assert two.coding_bits == 2
    with pytest.raises(DamagedError):
        layout.parse_heads(bytes([5 << 2 | 2]), two, 0, 4000, None)


@given(st.binary(min_size=1, max_size=3000), st.integers(1, 19))
def test_zstd_blobs_come_back(data, level):
    blob = zstd_blob.compress(data, level)
    assert zstd_blob.decompress(blob, len(data)) == data
    for size in (len(data) + 1, len(data) - 1):
        if size >= 0:
            with pytest.raises(DamagedError):
                zstd_blob.decompress(blob, size)
    with pytest.raises(DamagedError):
        zstd_blob.decompress(blob + b"x", len(data))


@given(st.binary(max_size=100), st.integers(0, 5000))
def test_any_bytes_for_a_zstd_blob(blob, size):
    with contextlib.suppress(DamagedError):
        assert len(zstd_blob.decompress(blob, size)) == size


def test_a_zstd_blob_may_not_ask_for_memory():
    blob = zstd_blob.compress(b"abc" * 1000, 19)
    with pytest.raises(DamagedError, match="window"):
        zstd_blob.decompress(bytes([17 << 3]) + blob[1:], 3000)


def test_the_example_in_the_specification_is_a_container():
    text = (Path(lmfs.__file__).parent / "FORMAT.md").read_text()
    lines = text.split("```example\n")[1].split("```")[0].splitlines()
    example = bytes.fromhex(" ".join(re.match("[0-9a-f ]*?(?=  |$)", line)[0] for line in lines))
    assert example == lmfs.compress(b"lmz\n", chooser=Chooser())
