"""A parity file: what heals a frozen file whose sectors were damaged on the disk.

Owns: its layout (FORMAT.md, "Parity"), and how it is computed and proved. `parities` owns where
parity files lie, `healed` how a damaged file is read with one. Imports lmfs.container and lower,
and `erasure`. A `Parity` may be read by any thread.

The frozen file is cut into blocks of 512 bytes, as disks lose them. Behind them are counted the
blocks of the *table*, which has a checksum of each, so that a damaged block is found and counts as
lost. Every so many-th block, from each place, belongs to one *stripe*; a stripe has as many blocks
of parity as it may lose of all its blocks. Neighbours are in different stripes: what is damaged in
one piece is spread over many of them. The table is healed like the rest; the checksums of its
blocks and of the parity, and the few numbers that say how all this lies, are there twice, at both
ends of the parity file.
"""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import blake3

from ..container import DO_UPDATE, HASH_BYTES, ID_BYTES, checksum
from ..errors import DamagedError, VerifyError, VersionError
from .erasure import MOST_ROWS, checks_left, fill

BLOCK = 512
VERSION = 1
MOST_PERCENT = 100
MAX_FILE_BYTES = 1 << 34  # of the frozen file; its table, which a reader keeps, has 1/128 of that

Pread = Callable[[int, int], bytes]

_MAGIC = b"\x8bLMP\r\n\x1a\n"
_HEADER = struct.Struct("<8s16s8s8sQ32sIIIIII")
CHECK = struct.Struct("<I")
_HEADER_BYTES = _HEADER.size + CHECK.size
_DISK_BLOCK = 4096
_WINDOW = 64  # stripes that are computed together
_END_BYTES = 64  # the trailer, and before it the checksum of the index
_END_ID_BYTES = 8


class Ends(NamedTuple):
    """What a frozen file is found by: either of its ends tells, and one is enough."""

    tail: bytes
    head: bytes

    @classmethod
    def of(cls, pread: Pread, size: int) -> Ends:
        """Those of a file of `size` bytes. raises: OSError, DamagedError"""
        tail = read_or_none(pread, min(_END_BYTES, size), max(0, size - _END_BYTES))
        head = read_or_none(pread, min(BLOCK, size), 0)
        return cls(_end_id(tail or b""), _end_id(head or b""))


class Shape(NamedTuple):
    """How a parity file lies, as it follows from three numbers. All but `size` count blocks.

    size: bytes of the frozen file; checks: blocks of parity a stripe
    """

    size: int
    stripes: int
    checks: int

    @classmethod
    def plan(cls, size: int, percent: int) -> Shape:
        """One whose stripes may lose at least `percent` of what they hold.

        What is left of the last block of the disk is used for more.
        """
        blocks = cls(size, 1, 0).blocks
        stripes = _divided_up(blocks, MOST_ROWS * 100 // (100 + percent))
        rows = _divided_up(blocks, stripes)
        shape = cls(size, stripes, max(1, _divided_up(rows * percent, 100)))
        room = _divided_up(shape.bytes, _DISK_BLOCK) * _DISK_BLOCK
        while shape.rows + shape.checks < MOST_ROWS:
            larger = shape._replace(checks=shape.checks + 1)
            if larger.bytes > room:
                break
            shape = larger
        return shape

    @property
    def content(self) -> int:
        """Of the frozen file."""
        return _divided_up(self.size, BLOCK)

    @property
    def table(self) -> int:
        return _divided_up(self.content * CHECK.size, BLOCK)

    @property
    def blocks(self) -> int:
        """Of the frozen file and the table: what is protected."""
        return self.content + self.table

    @property
    def rows(self) -> int:
        """Of a stripe, those of parity not counted."""
        return _divided_up(self.blocks, self.stripes)

    @property
    def parity(self) -> int:
        return self.stripes * self.checks

    @property
    def list_bytes(self) -> int:
        """The checksums of table and parity."""
        return (self.table + self.parity) * CHECK.size

    @property
    def table_at(self) -> int:
        """Where in the parity file, in bytes, as those that follow."""
        return _divided_up(_HEADER_BYTES + self.list_bytes, BLOCK) * BLOCK

    @property
    def parity_at(self) -> int:
        return self.table_at + self.table * BLOCK

    @property
    def list_at(self) -> int:
        """The second copy of the list; the first is behind the first header."""
        return self.parity_at + self.parity * BLOCK

    @property
    def bytes(self) -> int:
        """The length of the parity file."""
        return self.list_at + self.list_bytes + _HEADER_BYTES


@dataclass(frozen=True)
class Header:
    """What a parity file says of itself and of the frozen file."""

    store_id: bytes
    ends: Ends
    digest: bytes
    percent: int  # that was asked for
    shape: Shape
    list_checksum: int

    def pack(self) -> bytes:
        size, stripes, checks = self.shape
        fields = _HEADER.pack(
            _MAGIC,
            self.store_id,
            *self.ends,
            size,
            self.digest,
            BLOCK,
            stripes,
            checks,
            self.percent,
            VERSION,
            self.list_checksum,
        )
        return fields + CHECK.pack(checksum(fields))


def parse_header(data: bytes, where: object = None) -> Header:
    """raises: DamagedError, VersionError"""
    if len(data) != _HEADER_BYTES or data[: len(_MAGIC)] != _MAGIC:
        raise DamagedError(
            "no parity file", where=where, expected="its header", got=data[:8].hex(" ")
        )
    fields, (stored,) = data[: _HEADER.size], CHECK.unpack_from(data, _HEADER.size)
    if checksum(fields) != stored:
        raise DamagedError("parity header checksum", where=where)
    _, store_id, tail, head, size, digest, *numbers, listed = _HEADER.unpack(fields)
    block, stripes, checks, percent, version = numbers
    if version > VERSION:
        raise VersionError(
            "parity version", where=where, expected=VERSION, got=version, do=DO_UPDATE
        )
    if version != VERSION or block != BLOCK or not 1 <= percent <= MOST_PERCENT:
        raise DamagedError(
            "parity header",
            where=where,
            expected=f"version {VERSION}, blocks of {BLOCK}, 1 to {MOST_PERCENT} per cent",
            got=f"version {version}, blocks of {block}, {percent} per cent",
        )
    shape = Shape(size, stripes, checks)
    if not (
        1 <= size <= MAX_FILE_BYTES
        and 1 <= stripes <= shape.blocks
        and 1 <= checks <= MOST_ROWS - shape.rows
    ):
        raise DamagedError(
            "parity header",
            where=where,
            expected=f"1 to {MAX_FILE_BYTES} bytes in stripes of at most {MOST_ROWS} blocks",
            got=f"{size} bytes, {stripes} stripes, {checks} checks",
        )
    return Header(store_id, Ends(tail, head), digest, percent, shape, listed)


class Parity:
    """An open parity file, none of whose own blocks are trusted unread."""

    def __init__(self, fd: int, where: str) -> None:
        """fd: its own from now on. raises: DamagedError if neither header is whole, VersionError"""
        self._fd = fd
        self.where = where
        self.flaws: list[str] = []  # what is damaged, and is not needed while its copy is whole
        try:
            self.header, self._list = self._read_ends()
        except BaseException:
            os.close(fd)
            raise
        self.shape = self.header.shape

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Parity:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def table_block(self, number: int) -> bytes | None:
        """One of the table's; None if it is damaged."""
        return self._block(number, self.shape.table_at + number * BLOCK)

    def parity_block(self, number: int) -> bytes | None:
        """One of the parity's, by stripe and then by check; None if it is damaged."""
        at = self.shape.parity_at + number * BLOCK
        return self._block(self.shape.table + number, at)

    def is_table_block(self, number: int, data: bytes) -> bool:
        """True if these bytes are that block of the table."""
        return checksum(data) == self._listed(number)

    def damaged_blocks(self) -> int:
        """How many blocks of table and parity are damaged."""
        table = sum(self.table_block(i) is None for i in range(self.shape.table))
        return table + sum(self.parity_block(i) is None for i in range(self.shape.parity))

    def _block(self, listed: int, at: int) -> bytes | None:
        data = read_or_none(self._pread, BLOCK, at)
        whole = data is not None and checksum(data) == self._listed(listed)
        return data if whole else None

    def _pread(self, size: int, offset: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def _listed(self, number: int) -> int:
        return int(CHECK.unpack_from(self._list, number * CHECK.size)[0])

    def _read_ends(self) -> tuple[Header, bytes]:
        size = os.fstat(self._fd).st_size
        wrong: DamagedError | None = None
        found: tuple[Header, bytes] | None = None
        for end, at in (("first", 0), ("last", max(0, size - _HEADER_BYTES))):
            try:
                data = read_or_none(self._pread, _HEADER_BYTES, at) or b""
                header = parse_header(data, self.where)
                if header.shape.bytes != size:
                    raise DamagedError(
                        "parity file", where=self.where, expected=header.shape.bytes, got=size
                    )
                list_at = _HEADER_BYTES if at == 0 else header.shape.list_at
                listed = read_or_none(self._pread, header.shape.list_bytes, list_at) or b""
                if checksum(listed) != header.list_checksum:
                    raise DamagedError("parity's list of checksums", where=self.where)
                found = found or (header, listed)
            except DamagedError as error:
                wrong = error
                self.flaws.append(f"its {end} header or list is damaged")
        if found is None:
            assert wrong is not None
            raise wrong
        return found


# ----------------------------------------------------------------------------------- making


def write(pread: Pread, size: int, store_id: bytes, percent: int, out: BinaryIO) -> None:
    """Write the parity file of a frozen file of `size` bytes. raises: OSError"""
    shape = Shape.plan(size, percent)
    digest, table = _hashed(pread, shape)
    sums = bytearray(shape.parity * CHECK.size)
    out.seek(shape.parity_at)
    for first, width, rows in _windows(pread, shape, table):
        lost: list[bytes | None] = [None] * shape.checks
        for check, row in enumerate(fill([*rows, *lost], width * BLOCK)):
            at = check * shape.stripes + first
            out.seek(shape.parity_at + at * BLOCK)
            out.write(row)
            for number, block in enumerate(_blocks(row), at):
                CHECK.pack_into(sums, number * CHECK.size, checksum(block))
    listed = b"".join(CHECK.pack(checksum(block)) for block in _blocks(table)) + sums
    ends = Ends.of(pread, size)
    header = Header(store_id, ends, digest, percent, shape, checksum(listed)).pack()
    out.seek(0)
    out.write(header + listed)
    out.write(bytes(shape.table_at - len(header) - len(listed)))
    out.write(table)
    out.seek(shape.list_at)
    out.write(listed + header)


def prove(parity: Parity, pread: Pread, size: int) -> None:
    """Make sure that a parity file, as it was read back, heals this frozen file.

    Every stripe must be a codeword, so that as many of its blocks as it has checks can be computed
    from the others; and for some stripes of each window that is done. raises: VerifyError
    """
    wrong = _what_is_wrong(parity, pread, size)
    if wrong is not None:
        raise VerifyError(
            "the parity that was written does not heal the file",
            where=parity.where,
            got=wrong,
            do="check the disk; the file was left as it is",
        )


def _what_is_wrong(parity: Parity, pread: Pread, size: int) -> str | None:
    shape = parity.shape
    if parity.flaws or parity.damaged_blocks():
        return "damaged blocks"
    table = b"".join(parity.table_block(i) or b"" for i in range(shape.table))
    if shape.size != size or (parity.header.digest, table) != _hashed(pread, shape):
        return "the checksums of another file"
    for first, width, rows in _windows(pread, shape, table):
        for check in range(shape.checks):
            numbers = range(check * shape.stripes + first, check * shape.stripes + first + width)
            rows.append(b"".join(parity.parity_block(number) or b"" for number in numbers))
        lost = random.sample(range(len(rows)), shape.checks)
        left = [None if i in lost else row[:BLOCK] for i, row in enumerate(rows)]
        healed = fill(left, BLOCK)
        if any(checks_left(rows, shape.checks)) or healed != [
            rows[i][:BLOCK] for i in sorted(lost)
        ]:
            return f"stripes {first} to {first + width}, which are none"
    return None


def digest_of(pread: Pread, size: int) -> bytes:
    """The BLAKE3 of a file of `size` bytes. raises: OSError"""
    hasher = blake3.blake3()
    for piece in pieces(pread, size):
        hasher.update(piece)
    return hasher.digest()


def _hashed(pread: Pread, shape: Shape) -> tuple[bytes, bytes]:
    """The hash of the frozen file, and its table."""
    hasher, table = blake3.blake3(), bytearray()
    for piece in pieces(pread, shape.size):
        hasher.update(piece)
        for block in _blocks(piece):
            table += CHECK.pack(checksum(block))
    return hasher.digest(), bytes(table).ljust(shape.table * BLOCK, b"\0")


def _windows(pread: Pread, shape: Shape, table: bytes) -> Iterator[tuple[int, int, list[bytes]]]:
    """Some stripes at a time: the first, how many, and their rows without parity, each joined."""
    for first in range(0, shape.stripes, _WINDOW):
        width = min(_WINDOW, shape.stripes - first)
        yield (
            first,
            width,
            [
                _protected(pread, shape, table, row * shape.stripes + first, width)
                for row in range(shape.rows)
            ],
        )


def _protected(pread: Pread, shape: Shape, table: bytes, first: int, count: int) -> bytes:
    """Blocks of the frozen file, of the table behind it, and of nothing behind that."""
    content = max(0, min(count, shape.content - first))
    data = b""
    if content:
        at = first * BLOCK
        data = pread(min(content * BLOCK, shape.size - at), at).ljust(content * BLOCK, b"\0")
    at = max(0, first - shape.content) * BLOCK
    return (data + table[at : at + (count - content) * BLOCK]).ljust(count * BLOCK, b"\0")


def pieces(pread: Pread, size: int) -> Iterator[bytes]:
    """All of a file, in whole blocks. raises: DamagedError if it shrinks, OSError"""
    piece = BLOCK * 256
    for at in range(0, size, piece):
        data = pread(min(piece, size - at), at)
        if len(data) != min(piece, size - at):
            raise DamagedError("the file shrank while it was read")
        yield data


def read_or_none(pread: Pread, size: int, at: int) -> bytes | None:
    """So many bytes, fewer at the end; None if the disk cannot read them. raises: OSError"""
    try:
        return pread(size, at)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None


def _blocks(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), BLOCK):
        yield data[at : at + BLOCK]


def _divided_up(a: int, b: int) -> int:
    return -(-a // b)


def _end_id(data: bytes) -> bytes:
    return blake3.blake3(data).digest(length=_END_ID_BYTES)


assert _HEADER.size == 8 + ID_BYTES + 2 * _END_ID_BYTES + 8 + HASH_BYTES + 6 * 4
