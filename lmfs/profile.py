"""The coder profile: what beside model and primer determines a chunk's bytes, and its id.

Owns the profiles that this lmfs can code with. A released profile is never changed and never
removed: files name it by its id for ever. Everything here is constant: any thread may use it.
"""

from __future__ import annotations

import contextlib
import functools
import struct
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blake3
import zstandard

from lmfs.errors import DamagedError, VersionError
from lmfs.native import MixerProfile

ID_BYTES = 16

_ALL = 1 << 32  # bytes: more than any primer or chunk has

# Hashed into the id as they stand, these texts: to the byte, never to be edited.
_DESCRIPTION = """\
lmfs coder profile {number}
mixer: {mixer}
first model input: token 0
frequency of a token: table[min(largest logit - its logit, last index)]
order of tokens: by the bytes of their spellings
tree: node [low, high) splits at (low + high) div 2; bit 1 is the upper half
probability of bit 1: (upper frequencies * 2^22) div (all frequencies), at least 1, at most 2^22 - 1
coder: binary range coder, 32 bits, bit 1 takes the lower part, bytewise below 2^24, shortest flush
table: round(2^24 * exp(-index / 64)), down to the first 1; uint32 little-endian follows
"""


class _Clause:
    """What a description may say of a mixer besides, and the fields of CoderProfile for it."""

    def __init__(self, text: str, **fields: Any) -> None:
        self.text, self.fields = text, fields


_MUCH_MEMORY = _Clause(
    "2^22 slots, 2^17 runs of a context, 2^18 places of a match", mixer_sizes=(22, 17, 18)
)
_END_LED = _Clause(
    "before an lm chunk, chunks of its member's last 131072 bytes that it follows are seen with the"
    " model",
    model_tail_bytes=128 << 10,
)
_LED = _Clause(
    "before an lm chunk, chunks of its member that it follows are seen with the model",
    model_tail_bytes=_ALL,
)
_STRANDS = _Clause(
    "an lm chunk of 8192 bytes and more has 4 strands", strands=4, strands_from_bytes=8 << 10
)
_SHORT_STRANDS = _Clause(
    "an lm chunk of 8192 to 16384 bytes has 4 strands",
    strands=4,
    strands_from_bytes=8 << 10,
    strands_to_bytes=16 << 10,
)
_LANES = _Clause(
    "in front of its memory, for each strand of a chunk, 2^15 slots, 2^11 runs of a context, 2^13"
    " places of a match",
    lane_sizes=(15, 11, 13),
)
_MORE_AND_LANES = _Clause(
    "2^18 slots, 2^15 runs of a context, 2^16 places of a match, and in front of them for each"
    " strand of a chunk 2^15, 2^11, 2^13",
    mixer_sizes=(18, 15, 16),
    lane_sizes=(15, 11, 13),
)
_MOST_AND_LANES = _Clause(
    "2^19 slots, 2^16 runs of a context, 2^17 places of a match, and in front of them for each"
    " strand of a chunk 2^16, 2^11, 2^13",
    mixer_sizes=(19, 16, 17),
    lane_sizes=(16, 11, 13),
)

# By their numbers: the id, what the mixer starts from (2: all kinds of text; 6, 8: prose and
# source, 8 learned with the model; 7: logs), and what is said of it besides.
_RELEASED: dict[int, tuple[str, int | None, tuple[_Clause, ...]]] = {
    1: ("4dc27f4314ca0a564d4379ad4c97b01e", None, ()),
    2: ("e0ce3dbeedb1099104273b491ca3cfdc", 2, ()),
    3: ("e017c81bddc117541fa2f9abd1aa176e", 2, (_MUCH_MEMORY,)),
    4: ("6f169bed8fdf4aff07ff25667b5f621e", 2, (_MUCH_MEMORY, _END_LED)),
    5: ("a8a1a335bb50880a636659eeac339115", 2, (_STRANDS,)),
    6: ("3af33992685b45b268146ae2648da1aa", 6, (_STRANDS,)),
    7: ("e311a10bc191db5a0ac574d404b36dcd", 7, (_STRANDS,)),
    8: ("845da1312226af8da98221721661537c", 8, (_STRANDS, _LED)),
    9: ("d79e5b7764efc115fcd434b74b5084d0", 7, (_STRANDS, _MORE_AND_LANES)),
    10: ("4109b466ddbe530c1724c1bd0a00a5d7", 8, (_STRANDS, _LED, _LANES)),
    11: ("5eb9b64a8d9ec6ab2fef9cc029d24520", 7, (_STRANDS, _MOST_AND_LANES)),
    12: ("eef953c6e2a1e76781fda51bcf12d45f", 8, (_SHORT_STRANDS, _LED, _MOST_AND_LANES)),
}
PROFILES = tuple(_RELEASED)

# BLAKE3 of the mixers' data that were released, by their numbers.
_DATA = {
    2: "a7322666168932cc8da669f96ba7b5ba7273c4219910e682e9c615935dfc15a5",
    6: "db858ca2d2ea7241c2d5df051a1cf49f956339e7b8fc4e7c440dcc54379dfc08",
    7: "4585c404b9569fc97dbbc5c90fc80a84e33a4eea62cdd8c21e451184dd0be682",
    8: "af35609bc1e510e7aecb57882e09c58150fc64214b2bd7e9ae7f843520b7f6b7",
}

_TABLE_TOP_BITS = 24
_LOGIT_UNITS_PER_NAT = 64


@dataclass(frozen=True, eq=False)
class CoderProfile:
    """One profile.

    table: uint32 (n,): a token's frequency by its logit's distance below the largest
    mixer_data: the mixer's tables and what it starts from; empty: predictions are not mixed
    mixer_sizes: how many slots, runs and places it has, as powers of two
    lane_sizes: likewise, those that each strand of a chunk has of its own in front of the state
        that the chunk follows; None: it has a copy of that
    model_tail_bytes: of what a chunk that the model codes follows of its member, the chunks that
        begin in so many last bytes are seen with the model
    strands, strands_from_bytes, strands_to_bytes: a chunk that the model codes, and that has so
        many bytes, is coded in so many strands; others in one
    """

    description: str
    table: memoryview
    mixer_data: bytes = b""
    mixer_sizes: tuple[int, int, int] = (17, 14, 15)
    lane_sizes: tuple[int, int, int] | None = None
    model_tail_bytes: int = 0
    strands: int = 1
    strands_from_bytes: int = 0
    strands_to_bytes: int = _ALL
    id: bytes = field(init=False)
    mixer: MixerProfile | None = field(init=False)

    def __post_init__(self) -> None:
        table = struct.pack(f"<{len(self.table)}I", *self.table)
        content = self.description.encode("utf-8") + table + self.mixer_data
        object.__setattr__(self, "id", blake3.blake3(content).digest(length=ID_BYTES))
        mixer = None
        if self.mixer_data:
            mixer = MixerProfile(self.mixer_data, self.mixer_sizes, self.lane_sizes)
        object.__setattr__(self, "mixer", mixer)

    def strands_of(self, size: int) -> int:
        """In so many strands the model codes a chunk of so many bytes."""
        return self.strands if self.strands_from_bytes <= size <= self.strands_to_bytes else 1


@functools.cache
def _exponential_table() -> memoryview:
    """round(2^24 * exp(-d / 64)) for d = 0, 1, ... up to the first that is 1.

    In integers, because a C library's exp may differ in its last bit from another's. The fixed
    point has so many bits that the truncation of some 1,000 products stays far below what could
    move a rounding.
    """
    precision_bits = 256
    one = 1 << precision_bits
    step, term, k = one, one, 0  # step -> exp(-1 / 64), by its series
    while term:
        k += 1
        term //= _LOGIT_UNITS_PER_NAT * k
        step += term if k % 2 == 0 else -term

    shift = precision_bits - _TABLE_TOP_BITS
    half = 1 << (shift - 1)
    values: list[int] = []
    power = one
    while not values or values[-1] > 1:
        values.append((power + half) >> shift)
        power = power * step >> precision_bits
    return memoryview(array("I", values)).toreadonly()


@functools.cache
def profile_by_number(number: int) -> CoderProfile:
    """A profile of this lmfs, one of PROFILES. raises: DamagedError"""
    _, data, clauses = _RELEASED[number]
    mixer, mixer_data, fields = "none", b"", {}
    if data is not None:
        texts = [clause.text for clause in clauses]
        mixer = "; ".join(["2, as FORMAT.md specifies it", *texts, "its data follows the table"])
        mixer_data = _mixer_data(data)
        fields = {name: value for clause in clauses for name, value in clause.fields.items()}
    description = _DESCRIPTION.format(number=number, mixer=mixer)
    return CoderProfile(description, _exponential_table(), mixer_data, **fields)


def profile_by_id(id: bytes) -> CoderProfile:
    """The profile with this id; VersionError where this lmfs does not know it, DamagedError."""
    for number, (known, *_) in _RELEASED.items():
        if bytes.fromhex(known) == id:
            return profile_by_number(number)
    raise VersionError(
        "the file was coded with a coder profile that this lmfs does not know",
        expected=" or ".join(known for known, *_ in _RELEASED.values()),
        got=id.hex(),
        do="install a newer lmfs",
    )


def _mixer_data(number: int) -> bytes:
    """raises: DamagedError: what was coded with other data no other lmfs could read"""
    path = Path(__file__).with_name("profiles") / f"mixer-{number}.zst"
    data = b""
    with contextlib.suppress(zstandard.ZstdError):
        data = zstandard.ZstdDecompressor().decompress(path.read_bytes(), MixerProfile.BYTES)
    got = blake3.blake3(data).hexdigest()
    if got != _DATA[number]:
        raise DamagedError(
            "a part of lmfs is damaged",
            where=path,
            expected=f"content {_DATA[number][:16]}",
            got=got[:16],
            do="install lmfs anew",
        )
    return data


PROFILE_1 = profile_by_number(1)
