"""Reed–Solomon over GF(2^8): rows of bytes that are lost, computed from the rows that are left.

Owns: the arithmetic. Imports nothing of lmfs; does no I/O. Everything here is pure: any thread
may call it.

A *column* of n rows, one byte of each, n at most 255, is a codeword: with row 0 standing for the
highest power, it is a polynomial of degree below n with the roots 2^0, 2^1, ... 2^(checks - 1) in
the field of the polynomial 0x11d. As many rows as there are checks may be lost, whichever they
are, for the values of the rest at the roots are then as many equations for them. The rows that are
stored for that are the last ones, and to compute these is to have lost just these.

That is the code of the library reedsolo, which the tests compare with this: so what is here can be
undone by others. It is not used itself because it takes a byte at a time (some 1 to 1.5 s a
megabyte, and 0.3 to 0.6 s of the interpreter's lock for each healed row of 512); a row is
multiplied here by one `bytes.translate`, and added by one xor of two large integers. zfec would be
as fast, but is under the GPL.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

MOST_ROWS = 255

_POLYNOMIAL = 0x11D


def _powers() -> list[int]:
    """The powers of 2 in the field, from the 0th to the 254th."""
    powers = [1]
    while len(powers) < 255:
        doubled = powers[-1] << 1
        powers.append(doubled ^ _POLYNOMIAL if doubled > 255 else doubled)
    return powers


_EXP = _powers()
_LOG = {value: power for power, value in enumerate(_EXP)}


def checks_left(rows: Sequence[bytes | None], checks: int) -> list[int]:
    """By what the rows fail each of the checks, a byte a column: all 0 if they are whole.

    rows: all of one length; None counts as zeros
    """
    left = [0] * checks
    for power, row in enumerate(reversed(rows)):
        if row is None:
            continue
        for check in range(checks):
            product = row.translate(_times(power * check % 255))
            left[check] ^= int.from_bytes(product, "little")
    return left


def fill(rows: Sequence[bytes | None], width: int) -> list[bytes]:
    """The rows that are None, in their order; there must be at least as many checks.

    width: the length of a row in bytes
    """
    lost = [i for i, row in enumerate(rows) if row is None]
    return solve(checks_left(rows, len(lost)), lost, len(rows), width)


def solve(left: Sequence[int], lost: Sequence[int], count: int, width: int) -> list[bytes]:
    """The lost ones of `count` rows, from what the others fail as many checks by."""
    sums = [value.to_bytes(width, "little") for value in left[: len(lost)]]
    found = []
    for factors in _solution(tuple(count - 1 - i for i in lost)):
        value = 0
        for factor, known in zip(factors, sums, strict=True):
            if factor:
                value ^= int.from_bytes(known.translate(_times(_LOG[factor])), "little")
        found.append(value.to_bytes(width, "little"))
    return found


@functools.cache
def _times(power: int) -> bytes:
    """The products of all bytes and 2^power, for `bytes.translate`."""
    return bytes([0, *(_EXP[(_LOG[value] + power) % 255] for value in range(1, 256))])


def _product(a: int, b: int) -> int:
    return _EXP[(_LOG[a] + _LOG[b]) % 255] if a and b else 0


@functools.lru_cache(maxsize=256)
def _solution(powers: tuple[int, ...]) -> list[list[int]]:
    """For each lost row the factors of the checks whose sum it is.

    With x[q] = 2^powers[q], check j is the sum of y[q] * x[q]^j. The polynomial that is 1 at x[r]
    and 0 at all others (Lagrange) takes the same sum of the checks, with its coefficients, to y[r].
    """
    points = [_EXP[power] for power in powers]
    whole = [1]  # the product of all (x - x[q]), the lowest coefficient first
    for point in points:
        shifted = [0, *whole]
        for i, coefficient in enumerate(whole):
            shifted[i] ^= _product(coefficient, point)
        whole = shifted
    solution = []
    for point in points:
        quotient = [0] * len(points)  # whole / (x - point)
        carried = value = 0
        for i in range(len(points), 0, -1):
            carried = whole[i] ^ _product(carried, point)
            quotient[i - 1] = carried
        for coefficient in reversed(quotient):
            value = coefficient ^ _product(value, point)
        inverse = _EXP[-_LOG[value] % 255]
        solution.append([_product(coefficient, inverse) for coefficient in quotient])
    return solution
