"""A damaged frozen file, read with its parity as it was.

Owns: which blocks are taken for damaged, and how they are healed. Imports `parity`, `erasure` and
lower. Any thread may use a `HealedSource`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import blake3

from ..container import checksum
from ..errors import DamagedError
from ..lmz.source import FileSource
from .erasure import checks_left, fill, solve
from .parity import BLOCK, CHECK, Parity, Pread, pieces, read_or_none

_TOGETHER = 64  # blocks that are read at once


class HealedSource(FileSource):
    """A frozen file as it was, read with its parity; and by that, how it is damaged.

    What is damaged is healed where that is possible, and what was healed is remembered.
    """

    def __init__(self, pread: Pread, size: int, parity: Parity) -> None:
        """
        pread: gives so many bytes from an offset of the damaged file
        size: the damaged file's length, which may be another than it was
        parity: its own from now on
        """
        self.name = parity.where
        self.size = parity.shape.size
        self._pread = pread
        self._there = size
        self._parity = parity
        self._shape = parity.shape
        self._lock = threading.Lock()
        self._healed: dict[int, bytes] = {}
        tables = [parity.table_block(i) for i in range(parity.shape.table)]
        self._unknown = {i for i, data in enumerate(tables) if data is None}
        self._table = bytearray(b"".join(data or bytes(BLOCK) for data in tables))
        self._heal_table()

    def close(self) -> None:
        self._parity.close()

    def pread(self, size: int, offset: int) -> bytes:
        """Exactly these bytes as they were; DamagedError where they cannot be healed."""
        if size < 0 or offset < 0 or offset + size > self.size:
            raise DamagedError("the file is too short", where=self.name)
        if not size:
            return b""
        first, last = offset // BLOCK, (offset + size - 1) // BLOCK
        stored = self._stored(first, last + 1 - first)
        blocks = []
        for number, block in enumerate(stored, first):
            if block is None or not self._holds(number, block):
                block = self._healed_block(number)
            blocks.append(block)
        begin = offset - first * BLOCK
        return b"".join(blocks)[begin : begin + size]

    def damaged_blocks(self) -> int:
        """How many blocks of the file are damaged; it may be some more if the table is."""
        count = 0
        for first in range(0, self._shape.content, _TOGETHER):
            width = min(_TOGETHER, self._shape.content - first)
            stored = self._stored(first, width)
            count += sum(b is None or not self._holds(n, b) for n, b in enumerate(stored, first))
        return count

    @property
    def digest(self) -> bytes:
        """The BLAKE3 of the file as it was."""
        return self._parity.header.digest

    def heal(self, write: Callable[[bytes], object]) -> bool:
        """Give all of the file as it was to `write`; False if that is not all, or not that."""
        hasher = blake3.blake3()
        try:
            for piece in pieces(self.pread, self.size):
                hasher.update(piece)
                write(piece)
        except DamagedError:
            return False
        return hasher.digest() == self.digest

    def likeness(self, most: int = 64) -> float:
        """The share of some blocks, spread over the file, that are those of the parity's file."""
        step = max(1, self._shape.content // most)
        numbers = range(0, self._shape.content, step)
        return sum(self._right(number) is not None for number in numbers) / len(numbers)

    def _right(self, number: int) -> bytes | None:
        """A block of the file; None if it is damaged."""
        (block,) = self._stored(number, 1)
        return block if block is not None and self._holds(number, block) else None

    def _stored(self, first: int, count: int) -> list[bytes | None]:
        """Blocks as they stand in the damaged file; None for those that it no longer reaches."""
        at = first * BLOCK
        end = min((first + count) * BLOCK, self.size, self._there)
        data = read_or_none(self._pread, end - at, at) if end > at else b""
        if data is None:
            if count == 1:
                return [None]
            return [self._stored(number, 1)[0] for number in range(first, first + count)]
        blocks: list[bytes | None] = []
        for number in range(first, first + count):
            begin = (number - first) * BLOCK
            needed = min(BLOCK, self.size - number * BLOCK)
            block = data[begin : begin + BLOCK]
            blocks.append(block.ljust(BLOCK, b"\0") if len(block) == needed else None)
        return blocks

    def _holds(self, number: int, block: bytes) -> bool:
        """False if a block is not what the table says. Where that is lost nobody knows better."""
        if self._is_unknown(number):
            return True
        at = number * CHECK.size
        content = block[: min(BLOCK, self.size - number * BLOCK)]
        return bool(checksum(content) == CHECK.unpack_from(self._table, at)[0])

    def _healed_block(self, number: int) -> bytes:
        with self._lock:
            known = self._healed.get(number)
            if known is not None:
                return known
            healed = self._heal_stripe(number % self._shape.stripes)
            if healed is None or not all(
                self._holds(n, b) for n, b in healed.items() if n < self._shape.content
            ):
                raise DamagedError(
                    "more is damaged than the parity heals",
                    where=self.name,
                    expected=f"at most {self._shape.checks} blocks of any {self._shape.rows}",
                    do="restore the file from a backup, or `lmfs recover` what is whole of it",
                )
            self._healed.update(healed)
            return healed[number]

    def _heal_table(self) -> None:
        """Heal the table's own blocks, as far as that goes.

        Blocks whose checksums are lost are taken to be whole, or all but one of them, each in turn;
        which of that was right is seen from the result, whose checksum is in the list.
        """
        before = len(self._unknown) + 1
        while 0 < len(self._unknown) < before:
            before = len(self._unknown)
            for stripe in {(self._shape.content + i) % self._shape.stripes for i in self._unknown}:
                numbers, rows = self._stripe(stripe)
                lost = [i for i, row in enumerate(rows) if row is None]
                guesses = [[i] for i, n in enumerate(numbers) if self._is_unknown(n) and rows[i]]
                left = checks_left(rows, self._shape.checks)
                for guess in ([], *guesses):
                    if len(lost) + len(guess) > self._shape.checks:
                        break
                    guessed = [row if i in guess else None for i, row in enumerate(rows)]
                    more = checks_left(guessed, len(lost) + 1) if guess else [0] * len(lost)
                    failed = [a ^ b for a, b in zip(left, more, strict=False)]
                    wanted = sorted(lost + guess)
                    healed = solve(failed, wanted, len(rows), BLOCK)
                    if self._accept_table([numbers[i] for i in wanted], healed):
                        break

    def _accept_table(self, numbers: list[int], blocks: list[bytes]) -> bool:
        """Take those that are lost blocks of the table; False if none is what it must be."""
        before = len(self._unknown)
        for number, block in zip(numbers, blocks, strict=True):
            i = number - self._shape.content
            if i in self._unknown and self._parity.is_table_block(i, block):
                self._table[i * BLOCK : (i + 1) * BLOCK] = block
                self._unknown.remove(i)
        return len(self._unknown) < before

    def _is_unknown(self, number: int) -> bool:
        """True for a block of the file whose checksum is lost."""
        return number < self._shape.content and number * CHECK.size // BLOCK in self._unknown

    def _heal_stripe(self, stripe: int) -> dict[int, bytes] | None:
        """The damaged blocks of a stripe, by number; None if they are too many."""
        numbers, rows = self._stripe(stripe)
        lost = [number for number, row in zip(numbers, rows, strict=True) if row is None]
        if len(lost) > self._shape.checks:
            return None
        return dict(zip(lost, fill(rows, BLOCK), strict=True))

    def _stripe(self, stripe: int) -> tuple[list[int], list[bytes | None]]:
        """The blocks of a stripe and their numbers, parity counted on behind the rest.

        None are those that are damaged.
        """
        shape = self._shape
        numbers = list(range(stripe, (shape.rows + shape.checks) * shape.stripes, shape.stripes))
        rows: list[bytes | None] = []
        for row, number in enumerate(numbers):
            block: bytes | None = bytes(BLOCK)  # behind the last
            if row >= shape.rows:
                block = self._parity.parity_block(number - shape.rows * shape.stripes)
            elif number < shape.content:
                block = self._right(number)
            elif number < shape.blocks:
                at = (number - shape.content) * BLOCK
                lost = number - shape.content in self._unknown
                block = None if lost else bytes(self._table[at : at + BLOCK])
            rows.append(block)
        return numbers, rows
