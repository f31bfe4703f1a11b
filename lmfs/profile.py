"""The coder profile: what beside model and primer determines a chunk's bytes, and its id.

Owns the profiles that this lmfs can code with. A released profile is never changed and never
removed: files name it by its id for ever. Everything here is constant: any thread may use it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import struct
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import blake3
import zstandard

from lmfs.errors import DamagedError, VersionError
from lmfs.native import MixerProfile

ID_BYTES = 16

# Hashed into the id as it stands: to the byte, never to be edited.
_DESCRIPTION_1 = """\
lmfs coder profile 1
mixer: none
first model input: token 0
frequency of a token: table[min(largest logit - its logit, last index)]
order of tokens: by the bytes of their spellings
tree: node [low, high) splits at (low + high) div 2; bit 1 is the upper half
probability of bit 1: (upper frequencies * 2^22) div (all frequencies), at least 1, at most 2^22 - 1
coder: binary range coder, 32 bits, bit 1 takes the lower part, bytewise below 2^24, shortest flush
table: round(2^24 * exp(-index / 64)), down to the first 1; uint32 little-endian follows
"""

_DESCRIPTION_2 = _DESCRIPTION_1.replace("coder profile 1", "coder profile 2").replace(
    "mixer: none", "mixer: 2, as FORMAT.md specifies it; its data follows the table"
)

_DESCRIPTION_3 = _DESCRIPTION_2.replace("coder profile 2", "coder profile 3").replace(
    "its data follows the table",
    "2^22 slots, 2^17 runs of a context, 2^18 places of a match; its data follows the table",
)

_DESCRIPTION_4 = _DESCRIPTION_3.replace("coder profile 3", "coder profile 4").replace(
    "its data follows the table",
    "before an lm chunk, chunks of its member's last 131072 bytes that it follows are seen with the"
    " model; its data follows the table",
)

_DESCRIPTION_5 = _DESCRIPTION_2.replace("coder profile 2", "coder profile 5").replace(
    "its data follows the table",
    "an lm chunk of 8192 bytes and more has 4 strands; its data follows the table",
)

_DESCRIPTION_6 = _DESCRIPTION_5.replace("coder profile 5", "coder profile 6")

_DESCRIPTION_7 = _DESCRIPTION_5.replace("coder profile 5", "coder profile 7")

_DESCRIPTION_8 = _DESCRIPTION_6.replace("coder profile 6", "coder profile 8").replace(
    "its data follows the table",
    "before an lm chunk, chunks of its member that it follows are seen with the model; its data"
    " follows the table",
)

_DESCRIPTION_9 = _DESCRIPTION_7.replace("coder profile 7", "coder profile 9").replace(
    "its data follows the table",
    "2^18 slots, 2^15 runs of a context, 2^16 places of a match, and in front of them for each"
    " strand of a chunk 2^15, 2^11, 2^13; its data follows the table",
)

_DESCRIPTION_10 = _DESCRIPTION_8.replace("coder profile 8", "coder profile 10").replace(
    "its data follows the table",
    "in front of its memory, for each strand of a chunk, 2^15 slots, 2^11 runs of a context, 2^13"
    " places of a match; its data follows the table",
)

_LONG_MEMORY = (
    "2^19 slots, 2^16 runs of a context, 2^17 places of a match, and in front of them for each"
    " strand of a chunk 2^16, 2^11, 2^13; its data follows the table"
)

_DESCRIPTION_11 = _DESCRIPTION_7.replace("coder profile 7", "coder profile 11").replace(
    "its data follows the table", _LONG_MEMORY
)

_DESCRIPTION_12 = (
    _DESCRIPTION_8.replace("coder profile 8", "coder profile 12")
    .replace("of 8192 bytes and more", "of 8192 to 16384 bytes")
    .replace("its data follows the table", _LONG_MEMORY)
)

# BLAKE3 of the mixers' data that were released, by their numbers.
_DATA = {
    2: "a7322666168932cc8da669f96ba7b5ba7273c4219910e682e9c615935dfc15a5",
    6: "db858ca2d2ea7241c2d5df051a1cf49f956339e7b8fc4e7c440dcc54379dfc08",
    7: "4585c404b9569fc97dbbc5c90fc80a84e33a4eea62cdd8c21e451184dd0be682",
    8: "af35609bc1e510e7aecb57882e09c58150fc64214b2bd7e9ae7f843520b7f6b7",
}

_ALL = 1 << 32  # bytes: more than any primer or chunk has
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


PROFILE_1 = CoderProfile(_DESCRIPTION_1, _exponential_table())


@functools.cache
def profile_2() -> CoderProfile:
    """Profile 1 with a mixer."""
    return CoderProfile(_DESCRIPTION_2, PROFILE_1.table, _mixer_data(2))


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


@functools.cache
def profile_3() -> CoderProfile:
    """Profile 2 with a mixer that remembers more: for long primers, of a megabyte."""
    before = profile_2()
    return CoderProfile(_DESCRIPTION_3, before.table, before.mixer_data, (22, 17, 18))


@functools.cache
def profile_4() -> CoderProfile:
    """Profile 3 with weights that know of the model when a chunk begins behind a primer."""
    before = profile_3()
    return CoderProfile(
        _DESCRIPTION_4,
        before.table,
        before.mixer_data,
        before.mixer_sizes,
        model_tail_bytes=128 << 10,
    )


@functools.cache
def profile_5() -> CoderProfile:
    """Profile 2 with chunks whose quarters the model codes side by side, in half the time."""
    return _with_strands(_DESCRIPTION_5, profile_2().mixer_data)


@functools.cache
def profile_6() -> CoderProfile:
    """Profile 5 with data of its own: for prose and source, learned from such alone."""
    return _with_strands(_DESCRIPTION_6, _mixer_data(6))


@functools.cache
def profile_7() -> CoderProfile:
    """Profile 5 with data of its own: for logs, learned from such alone."""
    return _with_strands(_DESCRIPTION_7, _mixer_data(7))


@functools.cache
def profile_8() -> CoderProfile:
    """Profile 6 with weights that know of the model when a chunk begins behind a primer, and with
    data of its own: learned with the model."""
    return _with_strands(_DESCRIPTION_8, _mixer_data(8), _ALL)


@functools.cache
def profile_9() -> CoderProfile:
    """Profile 7 with twice the memory, which all chunks share that follow it."""
    return dataclasses.replace(
        profile_7(),
        description=_DESCRIPTION_9,
        mixer_sizes=(18, 15, 16),
        lane_sizes=(15, 11, 13),
    )


@functools.cache
def profile_10() -> CoderProfile:
    """Profile 8 with memory that all chunks share that follow it."""
    return dataclasses.replace(profile_8(), description=_DESCRIPTION_10, lane_sizes=(15, 11, 13))


@functools.cache
def profile_11() -> CoderProfile:
    """Profile 9 with more memory, for longer primers."""
    return dataclasses.replace(
        profile_9(),
        description=_DESCRIPTION_11,
        mixer_sizes=(19, 16, 17),
        lane_sizes=(16, 11, 13),
    )


@functools.cache
def profile_12() -> CoderProfile:
    """Profile 10 with more memory, and with chunks that the model codes as a whole, but for the
    short ones."""
    return dataclasses.replace(
        profile_10(),
        description=_DESCRIPTION_12,
        mixer_sizes=(19, 16, 17),
        lane_sizes=(16, 11, 13),
        strands_to_bytes=16 << 10,
    )


def _with_strands(description: str, mixer_data: bytes, model_tail_bytes: int = 0) -> CoderProfile:
    return CoderProfile(
        description,
        PROFILE_1.table,
        mixer_data,
        model_tail_bytes=model_tail_bytes,
        strands=4,
        strands_from_bytes=8 << 10,
    )


# By their numbers; the ids, so that none is read but the one that is wanted.
_MAKERS: dict[int, tuple[str, Callable[[], CoderProfile]]] = {
    1: ("4dc27f4314ca0a564d4379ad4c97b01e", lambda: PROFILE_1),
    2: ("e0ce3dbeedb1099104273b491ca3cfdc", profile_2),
    3: ("e017c81bddc117541fa2f9abd1aa176e", profile_3),
    4: ("6f169bed8fdf4aff07ff25667b5f621e", profile_4),
    5: ("a8a1a335bb50880a636659eeac339115", profile_5),
    6: ("3af33992685b45b268146ae2648da1aa", profile_6),
    7: ("e311a10bc191db5a0ac574d404b36dcd", profile_7),
    8: ("845da1312226af8da98221721661537c", profile_8),
    9: ("d79e5b7764efc115fcd434b74b5084d0", profile_9),
    10: ("4109b466ddbe530c1724c1bd0a00a5d7", profile_10),
    11: ("5eb9b64a8d9ec6ab2fef9cc029d24520", profile_11),
    12: ("eef953c6e2a1e76781fda51bcf12d45f", profile_12),
}


PROFILES = tuple(_MAKERS)


def profile(number: int) -> CoderProfile:
    """The profile with this number, which is one of this lmfs. raises: DamagedError"""
    return _MAKERS[number][1]()


def profile_by_id(id: bytes) -> CoderProfile:
    """The profile with this id; VersionError where this lmfs does not know it, DamagedError."""
    for known, make in _MAKERS.values():
        if bytes.fromhex(known) == id:
            return make()
    raise VersionError(
        "the file was coded with a coder profile that this lmfs does not know",
        expected=" or ".join(known for known, _ in _MAKERS.values()),
        got=id.hex(),
        do="install a newer lmfs",
    )
