"""The .lmz container: headers, trailers, varints and checksums, to and from bytes.

Owns: what FORMAT.md says of a member's two ends (`layout` owns what is between). Imports nothing
of lmfs but `errors`; does no I/O and decides no policy (which codec, which chunk size).
Everything here is pure or immutable: any thread may call it.

Every parser takes bytes that nobody has checked yet. It answers with a structure that holds all
of FORMAT.md's rules, or raises FormatError, VersionError or DamagedError; it never allocates more
than a small multiple of the bytes it was given.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from lmfs.errors import DamagedError, FormatError, UsageError, VersionError

FORMAT_MAJOR = 1
FORMAT_MINOR = 0
DEFAULT_CHUNK_SIZE = 16 * 1024  # measured: tools/bench/results/README.md
MAX_CHUNK_SIZE = 16 * 1024 * 1024
MAX_PRIMER_BYTES = 16 * 1024 * 1024
MAX_PRIMER_LENGTHS = 8  # a reader keeps a state for each
MAX_HEADER_BYTES = 64 * 1024
MAX_CODING_BITS = 7
ID_BYTES = 16
HASH_BYTES = 32
MAGIC_BYTES = 8
CHECKSUM_BYTES = 4

HEADER_PREFIX = struct.Struct("<8sBBHIIB3s")
TRAILER_TAIL = struct.Struct("<QQQII8s")
MAX_TRAILER_BYTES = TRAILER_TAIL.size + ID_BYTES

_IDS = 1 | 4  # a coding's flags: the ids of a model and of a coder profile
_SHARED_PRIMER = 2
_OWN_PRIMER = 8

_RECORD_CODING = 1
_RECORD_STORE = 3

DO_UPDATE = "install a newer lmfs"


class Kind(enum.Enum):
    """What a member is: a value's bytes are its header's magic."""

    ARCHIVE = b"\x8bLMZ\r\n\x1a\n"
    FROZEN = b"\x8bLMF\r\n\x1a\n"

    @property
    def trailer_magic(self) -> bytes:
        """The last eight bytes of a member: the header's magic backwards."""
        return self.value[::-1]


class CodecId(enum.IntEnum):
    """How the chunks of a coding are coded."""

    RAW = 0
    ZSTD = 1
    LM = 2
    MIX = 3

    @property
    def predicts(self) -> bool:
        """Whether tokens are coded with predictions of a model, a mixer or both."""
        return self in (CodecId.LM, CodecId.MIX)


def sniff(prefix: bytes) -> Kind | None:
    """The kind of container that begins with these bytes (8 or more), None if none does."""
    for kind in Kind:
        if prefix[:MAGIC_BYTES] == kind.value:
            return kind
    return None


def checksum(data: bytes | memoryview, seed: int = 0) -> int:
    """The low 32 bits of XXH3-64."""
    return xxhash.xxh3_64_intdigest(data, seed=seed) & 0xFFFFFFFF


# ---------------------------------------------------------------------------------- varints


def pack_varint(value: int) -> bytes:
    """LEB128: seven bits a byte, lowest first, high bit set on all but the last byte."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def unpack_varint(data: bytes, at: int) -> tuple[int, int]:
    """The varint at `at` and the offset behind it; ValueError if it is cut or not minimal."""
    value = 0
    for length in range(10):
        if at + length >= len(data):
            raise ValueError("a varint is cut off")
        byte = data[at + length]
        value |= (byte & 0x7F) << (7 * length)
        if byte < 0x80:
            if length and not byte:
                raise ValueError("a varint is longer than it must be")
            if value >= 1 << 63:
                raise ValueError("a varint is too large")
            return value, at + length + 1
    raise ValueError("a varint is longer than ten bytes")


# ----------------------------------------------------------------------------------- header


@dataclass(frozen=True)
class Coding:
    """One way to code a chunk; a header declares the ones that its member uses.

    primer_bytes: chunks follow this much of the member's beginning; 0: nothing of it
    shared_id: chunks follow this text of their store, before all else; None: none
    """

    codec: CodecId
    model_id: bytes | None = None
    profile_id: bytes | None = None
    primer_bytes: int = 0
    shared_id: bytes | None = None

    def follows(self, start: int) -> int:
        """Of its member, a chunk that begins there follows those that end at or before this."""
        return min(start, self.primer_bytes)


@dataclass(frozen=True)
class Header:
    """What stands at the beginning of a member."""

    kind: Kind
    chunk_size: int
    codings: tuple[Coding, ...]
    store_id: bytes | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.chunk_size <= MAX_CHUNK_SIZE:
            raise UsageError(
                "chunk size", expected=f"1 to {MAX_CHUNK_SIZE} bytes", got=self.chunk_size
            )
        if len(self.codings) > (1 << MAX_CODING_BITS) - 1:
            raise UsageError("codings in one member", expected="127 at most", got=len(self.codings))
        if (self.kind is Kind.FROZEN) != (self.store_id is not None):
            raise UsageError("only a frozen file carries a store's id, and always")
        for coding in self.codings:
            most = MAX_PRIMER_BYTES if coding.codec.predicts else 0
            if not 0 <= coding.primer_bytes <= most:
                raise UsageError("primer", expected=f"0 to {most} bytes", got=coding.primer_bytes)
            if coding.shared_id is not None and not (
                self.kind is Kind.FROZEN
                and coding.codec.predicts
                and len(coding.shared_id) == ID_BYTES
            ):
                raise UsageError(
                    "shared primer", expected="16 bytes, in a frozen file's mix and lm"
                )
        if not _one_primer(self.codings):
            raise UsageError(
                "primers in one member",
                expected=f"one of each kind, and {MAX_PRIMER_LENGTHS} lengths at most",
            )
        if self.store_id is not None and len(self.store_id) != ID_BYTES:
            raise UsageError("store id", expected="16 bytes", got=f"{len(self.store_id)}")

    @property
    def primer_bytes(self) -> int:
        """How much of the member's beginning is followed at most."""
        return max((coding.primer_bytes for coding in self.codings), default=0)

    @property
    def coding_bits(self) -> int:
        """The low bits of a frame's first varint that hold its coding's number."""
        return max(1, len(self.codings).bit_length())

    @property
    def escape(self) -> int:
        """The coding number that means: not an ordinary chunk."""
        return (1 << self.coding_bits) - 1

    @property
    def trailer_bytes(self) -> int:
        return TRAILER_TAIL.size + (ID_BYTES if self.kind is Kind.FROZEN else 0)

    def pack(self) -> bytes:
        """The header's bytes, checksum included."""
        records = b"".join(_record(_RECORD_CODING, _pack_coding(c)) for c in self.codings)
        if self.store_id is not None:
            records += _record(_RECORD_STORE, self.store_id)
        length = HEADER_PREFIX.size + len(records) + CHECKSUM_BYTES
        prefix = HEADER_PREFIX.pack(
            self.kind.value,
            FORMAT_MAJOR,
            FORMAT_MINOR,
            0,
            length,
            self.chunk_size,
            self.coding_bits,
            bytes(3),
        )
        return prefix + records + checksum(prefix + records).to_bytes(CHECKSUM_BYTES, "little")


def _one_primer(codings: Sequence[Coding]) -> bool:
    own = {(c.model_id, c.profile_id, c.shared_id) for c in codings if c.primer_bytes}
    shared = {(c.model_id, c.profile_id, c.shared_id) for c in codings if c.shared_id is not None}
    lengths = {c.primer_bytes for c in codings if c.primer_bytes}
    return len(own) < 2 and len(shared) < 2 and len(lengths) <= MAX_PRIMER_LENGTHS


def _record(kind: int, payload: bytes) -> bytes:
    return bytes([kind]) + pack_varint(len(payload)) + payload


def _pack_coding(coding: Coding) -> bytes:
    flags = _IDS if coding.codec.predicts else 0
    primer = b""
    if coding.primer_bytes:
        flags |= _OWN_PRIMER
        primer = coding.primer_bytes.to_bytes(4, "little")
    if coding.shared_id is not None:
        flags |= _SHARED_PRIMER
    ids = (coding.model_id or b"") + (coding.shared_id or b"") + (coding.profile_id or b"")
    return bytes([coding.codec, flags]) + ids + primer


def header_length(prefix: bytes, where: object = None) -> int:
    """The length of the header that begins with `prefix` (24 bytes or more are needed).

    raises: FormatError if this is no container, DamagedError if the length cannot be.
    """
    if sniff(prefix) is None:
        raise FormatError(
            "not an .lmz",
            where=where,
            expected="8b 4c 4d 5a 0d 0a 1a 0a at the beginning",
            got=prefix[:MAGIC_BYTES].hex(" ") or "no bytes",
        )
    if len(prefix) < HEADER_PREFIX.size:
        raise DamagedError(
            "header cut off", where=where, expected=f"{HEADER_PREFIX.size} bytes", got=len(prefix)
        )
    length = int.from_bytes(prefix[12:16], "little")
    if not HEADER_PREFIX.size + CHECKSUM_BYTES <= length <= MAX_HEADER_BYTES:
        raise DamagedError(
            "header length", where=where, expected=f"28 to {MAX_HEADER_BYTES}", got=length
        )
    return length


def parse_header(data: bytes, where: object = None) -> Header:
    """The header that is `data`, all of it and no more.

    raises: FormatError, DamagedError, and VersionError where a newer lmfs wrote it.
    """
    length = header_length(data, where)
    if length != len(data):
        raise DamagedError("header cut off", where=where, expected=f"{length} bytes", got=len(data))
    magic, major, minor, flags, _, chunk_size, bits, reserved = HEADER_PREFIX.unpack_from(data)
    stored = int.from_bytes(data[-CHECKSUM_BYTES:], "little")
    if checksum(data[:-CHECKSUM_BYTES]) != stored:
        raise DamagedError("header checksum", where=where, do="try `lmfs recover`")
    if major != FORMAT_MAJOR:
        raise VersionError(
            "format version",
            where=where,
            expected=FORMAT_MAJOR,
            got=f"{major}.{minor}",
            do=DO_UPDATE,
        )
    if flags or any(reserved):
        raise VersionError("reserved header bits are set", where=where, do=DO_UPDATE)
    codings, store_id = _parse_records(data, where)
    if not 1 <= chunk_size <= MAX_CHUNK_SIZE:
        raise DamagedError(
            "chunk size", where=where, expected=f"1 to {MAX_CHUNK_SIZE}", got=chunk_size
        )
    kind = Kind(magic)
    if (kind is Kind.FROZEN) != (store_id is not None):
        raise DamagedError("store record", where=where, expected="one, in frozen files only")
    if len(codings) > (1 << MAX_CODING_BITS) - 1:
        raise DamagedError("codings", where=where, expected="127 at most", got=len(codings))
    if kind is Kind.ARCHIVE and any(coding.shared_id is not None for coding in codings):
        raise VersionError("an archive with a shared primer", where=where, do=DO_UPDATE)
    if not _one_primer(codings):
        raise DamagedError("primers", where=where, expected="one of each kind at most")
    header = Header(kind, chunk_size, tuple(codings), store_id)
    if bits != header.coding_bits:
        raise DamagedError("coding bits", where=where, expected=header.coding_bits, got=bits)
    return header


def _parse_records(data: bytes, where: object) -> tuple[list[Coding], bytes | None]:
    codings: list[Coding] = []
    store_id: bytes | None = None
    at, end = HEADER_PREFIX.size, len(data) - CHECKSUM_BYTES
    while at < end:
        kind = data[at]
        try:
            length, at = unpack_varint(data[:end], at + 1)
        except ValueError as reason:
            raise DamagedError(f"header record: {reason}", where=where) from None
        payload = data[at : at + length]
        if length > end - at:
            raise DamagedError("header record", where=where, expected=length, got=end - at)
        at += length
        if kind == _RECORD_CODING:
            codings.append(_parse_coding(payload, where))
        elif kind == _RECORD_STORE:
            if store_id is not None or length != ID_BYTES:
                raise DamagedError("store record", where=where, expected="one, of 16 bytes")
            store_id = payload
        elif kind & 1:
            raise VersionError(f"critical header record of type {kind}", where=where, do=DO_UPDATE)
    return codings, store_id


def _parse_coding(payload: bytes, where: object) -> Coding:
    if len(payload) < 2:
        raise DamagedError("coding record", where=where, expected="2 bytes or more")
    number, flags = payload[0], payload[1]
    if number not in tuple(CodecId) or flags & ~(_IDS | _SHARED_PRIMER | _OWN_PRIMER):
        raise VersionError(
            "coding",
            where=where,
            expected="raw, zstd, lm or mix",
            got=f"codec {number}, flags {flags:#x}",
            do=DO_UPDATE,
        )
    codec = CodecId(number)
    if flags & _IDS != (_IDS if codec.predicts else 0):
        raise DamagedError("coding record", where=where, expected="ids for lm and mix, only there")
    primers = flags & (_SHARED_PRIMER | _OWN_PRIMER)
    ids = (2 if codec.predicts else 0) + (1 if flags & _SHARED_PRIMER else 0)
    length = 2 + ids * ID_BYTES + (4 if flags & _OWN_PRIMER else 0)
    if len(payload) != length or (primers and not codec.predicts):
        raise DamagedError("coding record", where=where, expected=f"{length} bytes")
    if not codec.predicts:
        return Coding(codec)
    primer = int.from_bytes(payload[2 + ids * ID_BYTES :], "little")
    if flags & _OWN_PRIMER and not 0 < primer <= MAX_PRIMER_BYTES:
        raise DamagedError("primer", where=where, expected=f"1 to {MAX_PRIMER_BYTES}", got=primer)
    shared = payload[18:34] if flags & _SHARED_PRIMER else None
    profile = payload[34:50] if flags & _SHARED_PRIMER else payload[18:34]
    return Coding(codec, payload[2:18], profile, primer, shared)


# ---------------------------------------------------------------------------------- trailer


@dataclass(frozen=True)
class Trailer:
    """What stands at the end of a member."""

    kind: Kind
    member_bytes: int
    size: int  # decoded
    index_bytes: int
    header_checksum: int
    store_id: bytes | None = None

    def pack(self) -> bytes:
        fields = (self.store_id or b"") + struct.pack(
            "<QQQI", self.member_bytes, self.size, self.index_bytes, self.header_checksum
        )
        return fields + struct.pack("<I", checksum(fields)) + self.kind.trailer_magic

    @property
    def packed_bytes(self) -> int:
        return TRAILER_TAIL.size + (ID_BYTES if self.store_id is not None else 0)


def parse_trailer(data: bytes, where: object = None) -> Trailer:
    """The trailer at the end of `data`, which should hold its last 56 bytes.

    raises: DamagedError
    """
    for kind in Kind:
        if data.endswith(kind.trailer_magic):
            break
    else:
        raise DamagedError(
            "the end is missing",
            where=where,
            expected=f"{Kind.ARCHIVE.trailer_magic.hex(' ')} at the end",
            got=data[-MAGIC_BYTES:].hex(" ") or "no bytes",
            do="`lmfs recover` saves every whole chunk",
        )
    length = TRAILER_TAIL.size + (ID_BYTES if kind is Kind.FROZEN else 0)
    if len(data) < length:
        raise DamagedError("trailer", where=where, expected=f"{length} bytes", got=len(data))
    data = data[-length:]
    member, size, index, header, stored, _ = TRAILER_TAIL.unpack_from(
        data, length - TRAILER_TAIL.size
    )
    if checksum(data[: -MAGIC_BYTES - CHECKSUM_BYTES]) != stored:
        raise DamagedError("trailer checksum", where=where, do="try `lmfs recover`")
    if max(member, size, index) >= 1 << 63:
        raise DamagedError("trailer", where=where, expected="lengths below 2^63")
    store_id = data[:ID_BYTES] if kind is Kind.FROZEN else None
    return Trailer(kind, member, size, index, header, store_id)
