"""lmfs.profile: the table against another arithmetic, and the ids that files carry for ever."""

from __future__ import annotations

import re
from array import array
from decimal import ROUND_HALF_UP, Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
import reference_mixer
import zstandard

from lmfs import profile as profiles
from lmfs.container import MAX_PRIMER_BYTES
from lmfs.errors import DamagedError, VersionError
from lmfs.profile import (
    ID_BYTES,
    PROFILE_1,
    CoderProfile,
    profile_by_id,
    profile_by_number,
)

# Until they are released their data may be learned anew; then these constants change with it:
#     python -c "from lmfs.profile import *; print(profile_by_number(2).id.hex())"
PROFILE_2_ID = "e0ce3dbeedb1099104273b491ca3cfdc"
PROFILE_3_ID = "e017c81bddc117541fa2f9abd1aa176e"
PROFILE_4_ID = "6f169bed8fdf4aff07ff25667b5f621e"
PROFILE_5_ID = "a8a1a335bb50880a636659eeac339115"
PROFILE_6_ID = "3af33992685b45b268146ae2648da1aa"
PROFILE_7_ID = "e311a10bc191db5a0ac574d404b36dcd"
PROFILE_8_ID = "845da1312226af8da98221721661537c"
PROFILE_9_ID = "d79e5b7764efc115fcd434b74b5084d0"
PROFILE_10_ID = "4109b466ddbe530c1724c1bd0a00a5d7"
PROFILE_11_ID = "5eb9b64a8d9ec6ab2fef9cc029d24520"
PROFILE_12_ID = "eef953c6e2a1e76781fda51bcf12d45f"


def test_the_table_is_the_rounded_exponential() -> None:
    expected = []
    with localcontext() as context:
        context.prec = 60
        while not expected or expected[-1] > 1:
            exact = (Decimal(-len(expected)) / 64).exp() * 2**24
            # No rounding is a close call that an error in either arithmetic could turn.
            assert abs(exact % 1 - Decimal("0.5")) > Decimal("1e-9")
            expected.append(int(exact.to_integral_value(ROUND_HALF_UP)))
    assert PROFILE_1.table.format == "I"
    assert PROFILE_1.table.tolist() == expected
    assert len(expected) == 1040


def test_the_id_is_the_released_one() -> None:
    """Golden: with another id here, files written so far name a profile that is gone."""
    assert PROFILE_1.id.hex() == "4dc27f4314ca0a564d4379ad4c97b01e"
    assert len(PROFILE_1.id) == ID_BYTES
    assert profile_by_id(PROFILE_1.id) is PROFILE_1


def test_the_id_of_profile_2() -> None:
    """Golden, likewise: all else of the mixer's data is compared with nothing."""
    assert profile_by_number(2).id.hex() == PROFILE_2_ID
    assert profile_by_id(profile_by_number(2).id) is profile_by_number(2)


def test_profile_2_is_profile_1_with_a_mixer() -> None:
    profile = profile_by_number(2)
    assert profile.table is PROFILE_1.table
    assert (PROFILE_1.mixer, PROFILE_1.mixer_data) == (None, b"")
    assert profile.mixer is not None
    assert profile.description.splitlines()[2:] == PROFILE_1.description.splitlines()[2:]
    assert "mixer: 2" in profile.description
    assert "coder profile 2" in profile.description


def test_profile_3_remembers_more() -> None:
    before, profile = profile_by_number(2), profile_by_number(3)
    assert profile.id.hex() == PROFILE_3_ID
    assert profile_by_id(profile.id) is profile
    assert (profile.table, profile.mixer_data) == (before.table, before.mixer_data)
    lines = zip(before.description.splitlines(), profile.description.splitlines(), strict=True)
    assert len([one for one, other in lines if one != other]) == 2
    said = ", ".join(re.findall(r"2\^\d+ (?:slots|runs|places)", profile.description))
    assert said == "2^{} slots, 2^{} runs, 2^{} places".format(*profile.mixer_sizes)
    assert before.mixer_sizes == reference_mixer.SIZES


def test_profile_4_sees_the_end_of_a_primer_with_the_model() -> None:
    before, profile = profile_by_number(3), profile_by_number(4)
    assert profile.id.hex() == PROFILE_4_ID
    assert profile_by_id(profile.id) is profile
    assert (profile.table, profile.mixer_data) == (before.table, before.mixer_data)
    assert profile.mixer_sizes == before.mixer_sizes
    assert before.model_tail_bytes == 0
    assert f" {profile.model_tail_bytes} bytes" in profile.description


def test_profile_5_has_strands() -> None:
    before, profile = profile_by_number(2), profile_by_number(5)
    assert profile.id.hex() == PROFILE_5_ID
    assert profile_by_id(profile.id) is profile
    assert (profile.table, profile.mixer_data) == (before.table, before.mixer_data)
    assert (profile.mixer_sizes, profile.model_tail_bytes) == (before.mixer_sizes, 0)
    assert f"{profile.strands_from_bytes} bytes and more has {profile.strands} strands" in (
        profile.description
    )
    assert [profile.strands_of(size) for size in (1, 8191, 8192, 1 << 24)] == [1, 1, 4, 4]
    for other in (PROFILE_1, profile_by_number(2), profile_by_number(3), profile_by_number(4)):
        assert {other.strands_of(size) for size in (1, 8192, 1 << 24)} == {1}


@pytest.mark.parametrize(("number", "id"), [(6, PROFILE_6_ID), (7, PROFILE_7_ID)])
def test_profiles_6_and_7_are_profile_5_with_other_data(number, id) -> None:
    before, profile = profile_by_number(5), profile_by_number(number)
    assert profile.id.hex() == id
    assert profile_by_id(profile.id) is profile
    assert profile.description == before.description.replace("profile 5", f"profile {number}")
    assert profile.table is before.table
    same = ("mixer_sizes", "model_tail_bytes", "strands", "strands_from_bytes")
    assert all(getattr(profile, name) == getattr(before, name) for name in same)
    tables = [reference_mixer.split(each.mixer_data)[0] for each in (before, profile)]
    assert tables[0].tobytes() == tables[1].tobytes()
    assert profile.mixer_data != before.mixer_data


def test_profile_8_is_profile_6_with_primers_seen_with_the_model() -> None:
    before, profile = profile_by_number(6), profile_by_number(8)
    assert profile.id.hex() == PROFILE_8_ID
    assert profile_by_id(profile.id) is profile
    assert profile.table is before.table
    tables = [reference_mixer.split(each.mixer_data)[0] for each in (before, profile)]
    assert tables[0].tobytes() == tables[1].tobytes()
    assert profile.mixer_data != before.mixer_data
    same = ("mixer_sizes", "strands", "strands_from_bytes")
    assert all(getattr(profile, name) == getattr(before, name) for name in same)
    assert profile.model_tail_bytes > MAX_PRIMER_BYTES
    assert "chunks of its member that it follows are seen with the model" in profile.description


@pytest.mark.parametrize(
    ("number", "id", "before"),
    [(9, PROFILE_9_ID, 7), (10, PROFILE_10_ID, 8), (11, PROFILE_11_ID, 9), (12, PROFILE_12_ID, 10)],
)
def test_profiles_whose_chunks_share_what_they_follow(number, id, before) -> None:
    profile, before = profile_by_number(number), profile_by_number(before)
    assert profile.id.hex() == id
    assert profile_by_id(profile.id) is profile
    assert (profile.table, profile.mixer_data) == (before.table, before.mixer_data)
    assert profile.model_tail_bytes == before.model_tail_bytes
    assert profile.lane_sizes is not None
    (line,) = re.findall("^mixer: .*$", profile.description, re.M)
    said = [int(bits) for bits in re.findall(r"2\^(\d+)", line)]
    default = profile.mixer_sizes == CoderProfile.mixer_sizes
    assert said == [*(() if default else profile.mixer_sizes), *profile.lane_sizes]
    long = 1 if number == 12 else 4
    sizes = (8191, 8192, 16384, 16385, 1 << 24)
    assert [profile.strands_of(size) for size in sizes] == [1, 4, 4, long, long]
    if number == 12:
        assert "8192 to 16384 bytes has 4 strands" in profile.description


@pytest.mark.parametrize("damage", ["a bit of the data", "the frame", "all of it"])
def test_damaged_data_code_nothing(monkeypatch, tmp_path, damage) -> None:
    """What they coded could be read by this very lmfs alone, and after its repair by none."""
    right = Path(profiles.__file__).with_name("profiles") / "mixer-6.zst"
    data = bytearray(zstandard.ZstdDecompressor().decompress(right.read_bytes()))
    data[len(data) // 2] ^= 1
    packed = {
        "a bit of the data": zstandard.ZstdCompressor().compress(bytes(data)),
        "the frame": right.read_bytes()[:-1000],
        "all of it": b"",
    }
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "mixer-6.zst").write_bytes(packed[damage])
    monkeypatch.setattr(profiles, "__file__", str(tmp_path / "profile.py"))
    for make in (lambda: profile_by_number.__wrapped__(6), lambda: profiles._mixer_data(6)):
        with pytest.raises(DamagedError, match="install lmfs anew"):
            make()


@pytest.mark.parametrize("number", [2, 6, 7, 8])
def test_what_the_mixers_tables_hold(number) -> None:
    """What arithmetic without overflow, and a mixture that means something, rest on."""
    tables, adaptive = reference_mixer.split(profile_by_number(number).mixer_data)
    stretch = tables["stretch"].astype(int)
    by_p16, below, above = np.split(stretch, 3)
    for rising in (by_p16, below, above[::-1]):
        assert np.all(np.diff(rising) >= 0)
    assert below[-1] <= by_p16[256]
    assert by_p16[-257] <= above[-1]
    assert np.abs(stretch).max() <= reference_mixer.MAX_STRETCH
    squash = tables["squash"].astype(int)
    assert np.all(np.diff(squash) >= 0)
    assert 1 <= squash[0] < squash[-1] <= (1 << 22) - 1
    exact = np.clip(np.rint((1 << 22) / (1 + np.exp((2048 - np.arange(4096)) / 128))), 1, None)
    assert np.abs(squash - exact).max() <= 1
    counts = np.arange(1024) + 1.5
    assert np.abs(tables["reciprocal"] * counts - 65536).max() < 1100
    assert np.all(tables["next"][:, 0] > 0)  # what has been seen is not forgotten at once
    for name in reference_mixer.COUNTERS:
        assert int((adaptive[name] & 1023).max()) <= reference_mixer.COUNT_LIMIT


def test_the_id_covers_description_table_and_mixer() -> None:
    table = memoryview(array("I", PROFILE_1.table))
    assert CoderProfile(PROFILE_1.description, table).id == PROFILE_1.id
    assert CoderProfile(PROFILE_1.description + " ", table).id != PROFILE_1.id
    mixed = profile_by_number(2)
    assert CoderProfile(mixed.description, mixed.table, mixed.mixer_data).id == mixed.id
    changed = bytes([*mixed.mixer_data[:-1], mixed.mixer_data[-1] ^ 1])
    assert CoderProfile(mixed.description, mixed.table, changed).id != mixed.id
    table[5] += 1
    assert CoderProfile(PROFILE_1.description, table).id != PROFILE_1.id


def test_a_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError, match="read-only"):
        PROFILE_1.table[0] = 1


def test_an_unknown_id_names_both_sides() -> None:
    with pytest.raises(VersionError) as caught:
        profile_by_id(bytes(range(16)))
    assert "000102030405060708090a0b0c0d0e0f" in str(caught.value)
    assert PROFILE_1.id.hex() in str(caught.value)
    assert "newer lmfs" in str(caught.value)
