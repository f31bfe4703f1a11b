"""The token coder once more, from its specification: slow, in Python's integers, nothing shared.

Where lmfs.native keeps a 32-bit window and carries into bytes already written, this keeps the whole
interval as numbers of any length; where lmfs.native sums blocks, this sums everything; where it
tells from the coder's last state whether a blob is the right one, this encodes again and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.int16]
Table = NDArray[np.uint32]


def tokenize(spellings: Sequence[bytes], data: bytes) -> list[int]:
    """Greedy longest match."""
    ids = {spelling: token for token, spelling in enumerate(spellings)}
    longest = max(map(len, spellings))
    tokens = []
    while data:
        length = next(n for n in range(longest, 0, -1) if data[:n] in ids and n <= len(data))
        tokens.append(ids[data[:length]])
        data = data[length:]
    return tokens


def cumulative(logits: Logits, table: Table) -> list[int]:
    """(vocab,) -> vocab + 1 sums."""
    largest, last = max(map(int, logits)), len(table) - 1
    sums = [0]
    for logit in logits:
        sums.append(sums[-1] + int(table[min(largest - int(logit), last)]))
    return sums


def walk(sums: Sequence[int], decide: Callable[[int, int], bool]) -> int:
    """Root to leaf; decide(middle, p1) -> the bit. Returns the token."""
    low, high = 0, len(sums) - 1
    while high - low > 1:
        middle = (low + high) // 2
        ratio = ((sums[high] - sums[middle]) << 22) // (sums[high] - sums[low])
        if decide(middle, min(max(ratio, 1), (1 << 22) - 1)):
            low = middle
        else:
            high = middle
    return low


class Interval:
    """[low, low + range) in units of 256^-(shifts + 4)."""

    def __init__(self) -> None:
        self.low, self.range, self.shifts = 0, (1 << 32) - 1, 0

    def bound(self, p1: int) -> int:
        return self.range * p1 >> 22

    def narrow(self, bit: bool, p1: int) -> None:
        bound = self.bound(p1)
        if bit:
            self.range = bound
        else:
            self.low += bound
            self.range -= bound
        while self.range < 1 << 24:
            self.low <<= 8
            self.range <<= 8
            self.shifts += 1

    def blob(self) -> bytes:
        """The number inside with the most zero bits among its last 32 or 24, without these."""
        last = self.low + self.range - 1
        for bits in (32, 24):
            number = last >> bits
            if number << bits >= self.low:
                return number.to_bytes(self.shifts + (32 - bits) // 8, "big")
        raise AssertionError("a range is at least 2^24 wide")

    def offset_of(self, blob: bytes) -> int:
        """The blob's number, zeros after its end, less low."""
        size = self.shifts + 4
        return int.from_bytes(blob[:size].ljust(size, b"\0"), "big") - self.low


def encode(logits: Sequence[Logits], table: Table, tokens: Sequence[int]) -> bytes:
    interval = Interval()
    for row, token in zip(logits, tokens, strict=True):
        encode_token(interval, row, table, token)
    return interval.blob()


def encode_token(interval: Interval, row: Logits, table: Table, token: int) -> None:
    def decide(middle: int, p1: int) -> bool:
        interval.narrow(token >= middle, p1)
        return token >= middle

    assert walk(cumulative(row, table), decide) == token


def decode_tokens(blob: bytes, rows: Iterator[Logits], table: Table) -> Iterator[int]:
    """Tokens without end, from any bytes whose number is inside the first interval."""
    interval = Interval()
    for row in rows:

        def decide(_middle: int, p1: int) -> bool:
            bit = interval.offset_of(blob) < interval.bound(p1)
            interval.narrow(bit, p1)
            return bit

        yield walk(cumulative(row, table), decide)


def decode(
    spellings: Sequence[bytes], table: Table, blob: bytes, size: int, rows: Sequence[Logits]
) -> bytes | None:
    """The chunk of this size, or None where no chunk is coded as exactly this blob."""
    if Interval().offset_of(blob) >= Interval().range:
        return None
    tokens: list[int] = []
    chunk = b""
    decoded = decode_tokens(blob, iter(rows), table)
    while len(chunk) < size:
        tokens.append(next(decoded))
        chunk += spellings[tokens[-1]]
    whole = len(chunk) == size and encode(rows[: len(tokens)], table, tokens) == blob
    return chunk if whole else None
