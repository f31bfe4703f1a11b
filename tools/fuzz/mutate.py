"""Containers and model packages taken apart, changed, and put together with checksums that hold.

Owns: the mutations. A fuzzer that only turns bytes never gets past a checksum; here every checksum
and length is computed anew behind a change, unless it is the one that was to be wrong. Everything
is a function of the bytes and of the random numbers given. One thread.
"""

from __future__ import annotations

import io
import json
import lzma
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from lmfs import zstd_blob
from lmfs.codecs.primer import Primer
from lmfs.container import (
    HEADER_PREFIX,
    Header,
    checksum,
    header_length,
    pack_varint,
    parse_header,
    parse_trailer,
    unpack_varint,
)
from lmfs.errors import LmfsError
from lmfs.layout import FRAME_INDEX, FRAME_SHORT_CHUNK, index_body
from lmfs.lmz.frames import Frame, FrameDecoder

EDGES = [0, 1, 2, 3, 4, 63, 64, 127, 128, 255, 1 << 14, (1 << 16) - 1, 1 << 20, (1 << 24) - 1]
EDGES += [1 << 24, (1 << 24) + 1, (1 << 31) - 1, 1 << 32, 1 << 46, 1 << 60, 1 << 62, (1 << 63) - 1]
MOST_BYTES = 1 << 16  # of an input


# ------------------------------------------------------------------------------- containers


@dataclass
class FrameParts:
    """A frame: the numbers of its head, the checksum as stored, and the blob or the payload."""

    numbers: list[int]
    checksum: int
    blob: bytes


@dataclass
class MemberParts:
    """A member. `wrong` holds what is to replace a computed number, by name."""

    magic: bytes
    version: tuple[int, int]
    flags: int
    chunk_size: int
    bits: int
    reserved: bytes
    records: list[tuple[int, bytes]]
    frames: list[FrameParts]
    index_flags: int
    content_hash: bytes
    body: bytes | None = None  # of the index; None: the heads of the frames
    store_id: bytes = b""  # in the trailer
    wrong: dict[str, int] = field(default_factory=dict)

    @property
    def escape(self) -> int:
        return (1 << self.bits) - 1

    def header(self) -> bytes:
        records = b"".join(
            bytes([kind]) + pack_varint(len(payload)) + payload for kind, payload in self.records
        )
        length = HEADER_PREFIX.size + len(records) + 4
        prefix = HEADER_PREFIX.pack(
            self.magic, *self.version, self.flags, self.wrong.get("header", length) & 0xFFFFFFFF,
            self.chunk_size & 0xFFFFFFFF, self.bits & 0xFF, self.reserved,
        )  # fmt: skip
        return prefix + records + self._sum("header sum", prefix + records)

    def pack(self) -> bytes:
        header = self.header()
        heads = b"".join(b"".join(map(pack_varint, f.numbers)) for f in self.frames)
        frames = b"".join(
            b"".join(map(pack_varint, f.numbers)) + f.checksum.to_bytes(4, "little") + f.blob
            for f in self.frames
        )
        body = heads if self.body is None else self.body
        if self.index_flags & 2 and self.body is None:
            body = header + body
        lengths = pack_varint(self.wrong.get("body", len(body)))
        if self.index_flags & 1 and body:
            body = zstd_blob.compress(body, 1)
            lengths += pack_varint(self.wrong.get("stored body", len(body)))
        index = pack_varint(self.wrong.get("index", self.escape))
        index += bytes([self.index_flags & 0xFF]) + self.content_hash + lengths + body
        index += self._sum("index sum", index)
        trailer_bytes = 40 + len(self.store_id)
        fields = self.store_id + struct.pack(
            "<QQQI",
            self.wrong.get("member", len(header + frames + index) + trailer_bytes),
            self.wrong.get("size", sum(map(self.decoded_bytes, self.frames)) % (1 << 64)),
            self.wrong.get("index bytes", len(index)),
            self.wrong.get("binding", int.from_bytes(header[-4:], "little")),
        )
        trailer = fields + self._sum("trailer sum", fields) + self.magic[::-1]
        return header + frames + index + trailer

    def decoded_bytes(self, frame: FrameParts) -> int:
        """Of a chunk; 0 for a section, and for what became one number of a short chunk's."""
        if frame.numbers[0] & self.escape != self.escape:
            return self.chunk_size
        is_short = frame.numbers[0] >> self.bits == FRAME_SHORT_CHUNK and len(frame.numbers) > 1
        return frame.numbers[1] if is_short else 0

    def _sum(self, name: str, data: bytes) -> bytes:
        return (checksum(data) ^ self.wrong.get(name, 0) & 0xFFFFFFFF).to_bytes(4, "little")


def take_apart(data: bytes) -> list[MemberParts]:
    """The members. raises: ValueError, LmfsError, IndexError if they are not sound enough."""
    members = []
    at = 0
    while at < len(data):
        member, at = _member(data, at)
        members.append(member)
    return members


def _member(data: bytes, begin: int) -> tuple[MemberParts, int]:
    at = begin + header_length(data[begin : begin + HEADER_PREFIX.size])
    raw = data[begin:at]
    header = parse_header(raw)
    magic, major, minor, flags, _, chunk_size, bits, reserved = HEADER_PREFIX.unpack_from(raw)
    records, record = [], HEADER_PREFIX.size
    while record < len(raw) - 4:
        length, payload = unpack_varint(raw, record + 1)
        records.append((raw[record], raw[payload : payload + length]))
        record = payload + length
    frames = []
    while True:
        index_at = at
        word, at = unpack_varint(data, at)
        numbers = [word]
        if word & header.escape == header.escape:
            if word >> bits == FRAME_INDEX:
                break
            number, at = unpack_varint(data, at)
            numbers.append(number)
            length = number
            if word >> bits == FRAME_SHORT_CHUNK:
                number, at = unpack_varint(data, at)
                numbers.append(number)
                length = number >> bits
        else:
            length = word >> bits
        stored = int.from_bytes(data[at : at + 4], "little")
        blob = data[at + 4 : at + 4 + length]
        if len(blob) != length:
            raise ValueError("a frame is cut off")
        frames.append(FrameParts(numbers, stored, blob))
        at += 4 + length
    size, end = unpack_varint(data, index_at + 34)
    if data[index_at + 1] & 1:
        size, end = unpack_varint(data, end)
    end += size + 4
    index_flags, content_hash, _ = index_body(data[index_at:end], len(data), None)
    trailer = parse_trailer(data[end : end + 40 + (16 if header.store_id else 0)])
    member = MemberParts(
        magic, (major, minor), flags, chunk_size, bits, reserved, records, frames,
        index_flags, content_hash, store_id=trailer.store_id or b"",
    )  # fmt: skip
    return member, end + trailer.packed_bytes


def settle(member: MemberParts, search: Sequence[Path]) -> None:
    """Make the chunks' checksums and the content's hash those of what the blobs decode to."""
    try:
        header = parse_header(member.header())
    except LmfsError:
        return
    decoder = FrameDecoder(search)
    primer = decoder.primer(header)
    content, start = blake3(), 0
    for frame in member.frames:
        size = member.decoded_bytes(frame)
        if not size:
            frame.checksum = checksum(frame.blob)
            continue
        chunk = _decode(member, header, frame, start, decoder, primer)
        if chunk is None:
            return
        frame.checksum = checksum(chunk, start)
        content.update(chunk)
        start += size
    member.content_hash = content.digest()


def _decode(
    member: MemberParts, header: Header, frame: FrameParts, start: int,
    decoder: FrameDecoder, primer: Primer,
) -> bytes | None:  # fmt: skip
    size, number = member.decoded_bytes(frame), frame.numbers[-1] & member.escape
    if number >= len(header.codings) or not 0 < size <= MOST_BYTES:
        return None
    parts = Frame(header.codings[number], size, start, 0, frame.blob, 0)
    try:
        (chunk,) = decoder.decode_unchecked([parts], primer)
        if not isinstance(chunk, bytes) or len(chunk) != size:
            return None
        # Again with the checksum it has now, for the primer to see it.
        decoder.decode([parts._replace(checksum=checksum(chunk, start))], primer)
    except LmfsError:
        return None
    return chunk


def _number(rng: random.Random, old: int) -> int:
    """Another number: near, an edge, or a bit turned."""
    way = rng.randrange(4)
    if way == 0:
        return rng.choice(EDGES)
    if way == 1:
        return max(0, old + rng.choice((-2, -1, 1, 2, 64)))
    if way == 2:
        return old ^ 1 << rng.randrange(24)
    return rng.randrange(1 << rng.randrange(1, 20))


def flipped(rng: random.Random, data: bytes) -> bytes:
    """Some bytes turned, cut out, doubled or put in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(out) + 1)
        way = rng.randrange(5)
        if way <= 1 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif way == 2:
            del out[at : at + rng.choice((1, 2, 8, 64))]
        elif way == 3:
            out[at:at] = out[at : at + rng.randrange(64)]
        else:
            out[at:at] = rng.randbytes(rng.choice((1, 2, 8)))
    return bytes(out)


def _change_header(rng: random.Random, member: MemberParts) -> None:
    way = rng.randrange(8)
    if way == 0:
        # What a model makes of 16 MiB takes minutes; that is no hang, and not looked for here.
        member.chunk_size = min(_number(rng, member.chunk_size), 1 << 16)
    elif way == 1:
        member.bits = rng.randrange(9)
    elif way == 2:
        member.flags = rng.choice((0, 1, 0x8000))
    elif way == 3:
        member.version = (rng.randrange(3), rng.randrange(3))
    elif way == 4:
        member.reserved = rng.randbytes(3)
    elif way == 5:
        member.records.insert(
            rng.randrange(len(member.records) + 1), (rng.randrange(256), rng.randbytes(3))
        )
    elif member.records:
        at = rng.randrange(len(member.records))
        kind, payload = member.records[at]
        if way == 6:
            member.records[at] = (kind, flipped(rng, payload))
        elif rng.random() < 0.5:
            member.records.insert(rng.randrange(len(member.records) + 1), (kind, payload))
        else:
            del member.records[at]


def _change_coding(rng: random.Random, member: MemberParts) -> None:
    """Codec, flags and primers of a coding."""
    codings = [i for i, (kind, payload) in enumerate(member.records) if kind == 1 and len(payload)]
    if not codings:
        return
    at = rng.choice(codings)
    payload = bytearray(member.records[at][1])
    if len(payload) < 2 or rng.random() < 0.5:
        payload[0] = rng.randrange(5)
    elif rng.random() < 0.5:
        payload[1] ^= 1 << rng.randrange(5)
    elif payload[1] & 8:
        payload[-4:] = (_number(rng, 64) & 0xFFFFFFFF).to_bytes(4, "little")
    member.records[at] = (1, bytes(payload))


def _change_frames(rng: random.Random, member: MemberParts) -> None:
    way = rng.randrange(6)
    if way == 0 or not member.frames:
        payload = rng.randbytes(rng.randrange(20))
        numbers = [rng.randrange(2, 8) << member.bits | member.escape, len(payload)]
        frame = FrameParts(numbers, checksum(payload), payload)
        member.frames.insert(rng.randrange(len(member.frames) + 1), frame)
        return
    at = rng.randrange(len(member.frames))
    frame = member.frames[at]
    if way == 1:
        del member.frames[at]
    elif way == 2:
        twin = FrameParts(list(frame.numbers), frame.checksum, frame.blob)
        member.frames.insert(rng.randrange(len(member.frames) + 1), twin)
    elif way == 3:
        other = rng.randrange(len(member.frames))
        member.frames[at], member.frames[other] = member.frames[other], frame
    elif way == 4:
        place = rng.randrange(len(frame.numbers))
        frame.numbers[place] = _number(rng, frame.numbers[place])
    else:
        word = frame.numbers[-1]
        frame.numbers[-1] = word >> member.bits << member.bits | rng.randrange(1 << member.bits)


def _change_blob(rng: random.Random, member: MemberParts) -> None:
    """Other coded bytes, of a length that the head says."""
    if not member.frames:
        return
    frame = rng.choice(member.frames)
    frame.blob = flipped(rng, frame.blob) or b"\0"
    is_section = len(frame.numbers) == 2
    number = frame.numbers[-1]
    frame.numbers[-1] = (
        len(frame.blob) if is_section else len(frame.blob) << member.bits | number & member.escape
    )


def _change_index(rng: random.Random, member: MemberParts) -> None:
    way = rng.randrange(5)
    if way == 0:
        member.index_flags = rng.randrange(8) if rng.random() < 0.2 else rng.randrange(4)
    elif way == 1:
        member.content_hash = flipped(rng, member.content_hash)[:32].ljust(32, b"\0")
    elif way == 2:
        heads = [n for frame in member.frames for n in frame.numbers]
        if heads:
            at = rng.randrange(len(heads))
            heads[at] = _number(rng, heads[at])
        body = b"".join(map(pack_varint, heads))
        member.body = member.header() + body if member.index_flags & 2 else body
    elif way == 3:
        member.body = flipped(rng, member.body or member.header())
    else:
        member.wrong[rng.choice(("body", "stored body", "index"))] = rng.choice(EDGES)


def _change_trailer(rng: random.Random, member: MemberParts) -> None:
    name = rng.choice(("member", "size", "index bytes", "binding", "store"))
    if name == "store":
        member.store_id = rng.choice((b"", bytes(16), rng.randbytes(16)))
    elif name == "binding":
        member.wrong[name] = rng.randrange(1 << 32)
    else:
        member.wrong[name] = _number(rng, 300)


def _break_a_sum(rng: random.Random, member: MemberParts) -> None:
    name = rng.choice(("header sum", "index sum", "trailer sum", "header"))
    member.wrong[name] = rng.randrange(1, 1 << 16)


_CHANGES: tuple[Callable[[random.Random, MemberParts], None], ...] = (
    _change_header,
    _change_coding,
    _change_frames,
    _change_frames,
    _change_blob,
    _change_blob,
    _change_index,
    _change_trailer,
    _break_a_sum,
)


def mutated_container(
    data: bytes, rng: random.Random, search: Sequence[Path], others: Sequence[bytes] = ()
) -> bytes:
    """Another container, or what is left of one. search: for models and primers"""
    way = rng.random()
    if way < 0.15:
        return flipped(rng, data)
    if way < 0.2:
        return data[: rng.randrange(len(data) + 1)]
    if way < 0.25 and others:
        other = rng.choice(others)
        cut = rng.randrange(len(data) + 1)
        return data[:cut] + other[rng.randrange(len(other)) :] if way < 0.22 else data + other
    try:
        members = take_apart(data)
    except (LmfsError, ValueError, IndexError, struct.error):
        return flipped(rng, data)
    if not members:
        return flipped(rng, data)
    member = rng.choice(members)
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice(_CHANGES)(rng, member)
    if rng.random() < 0.7:
        settle(member, search)
    if len(members) > 1 and rng.random() < 0.2:
        rng.shuffle(members)
    try:
        return b"".join(m.pack() for m in members)
    except (ValueError, OverflowError, struct.error, LmfsError):
        return flipped(rng, data)


# --------------------------------------------------------------------------- model packages


def mutated_package(data: bytes, rng: random.Random) -> bytes:
    """Another model package: a part changed and zipped anew, or the zip itself changed."""
    if rng.random() < 0.25:
        tail = max(0, len(data) - 1200)  # where a zip says what is in it
        return data[:tail] + flipped(rng, data[tail:])
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = {info.filename: archive.read(info) for info in archive.infolist()}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError,
            RuntimeError, OSError, struct.error, lzma.LZMAError):  # fmt: skip
        return flipped(rng, data)
    if not parts:
        return flipped(rng, data)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(parts))
        if name.endswith(".json") and rng.random() < 0.7:
            parts[name] = _changed_json(rng, parts[name])
        elif name.endswith(".onnx"):
            head = rng.choice((64, 2000, len(parts[name])))
            parts[name] = flipped(rng, parts[name][:head]) + parts[name][head:]
        elif rng.random() < 0.2:
            parts[rng.choice(("/etc/x", "../x", "graph/../../x.onnx", name + "\0"))] = parts.pop(
                name
            )
        else:
            parts[name] = flipped(rng, parts[name])
    out = io.BytesIO()
    kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    try:
        with zipfile.ZipFile(out, "w", kind) as archive:
            for name, part in parts.items():
                archive.writestr(name, part)
    except (ValueError, OSError):
        return flipped(rng, data)
    return out.getvalue()


_JSON: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 1 << 31, 1 << 70, "", "x", [], {}, [[]], {"kind": 1}, float("nan"),
    "00", ["00"], 255, 256, 32, 33,
)  # fmt: skip


def _changed_json(rng: random.Random, text: bytes) -> bytes:
    if rng.random() < 0.05:
        return b"[" * 100_000
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return flipped(rng, text)
    at = document
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            break
        key = rng.choice(keys)
        if isinstance(at[key], (dict, list)) and rng.random() < 0.8:
            at = at[key]
            continue
        if rng.random() < 0.3:
            del at[key]
        else:
            at[key] = rng.choice(_JSON)
        break
    return json.dumps(document).encode()
