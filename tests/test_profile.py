"""lmfs.profile: the table against another arithmetic, and the ids that files carry for ever."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal, localcontext

import numpy as np
import pytest

from lmfs.errors import VersionError
from lmfs.profile import ID_BYTES, PROFILE_1, CoderProfile, profile_by_id


def test_the_table_is_the_rounded_exponential() -> None:
    expected = []
    with localcontext() as context:
        context.prec = 60
        while not expected or expected[-1] > 1:
            exact = (Decimal(-len(expected)) / 64).exp() * 2**24
            # No rounding is a close call that an error in either arithmetic could turn.
            assert abs(exact % 1 - Decimal("0.5")) > Decimal("1e-9")
            expected.append(int(exact.to_integral_value(ROUND_HALF_UP)))
    assert PROFILE_1.table.dtype == np.uint32
    assert PROFILE_1.table.tolist() == expected
    assert len(expected) == 1040


def test_the_id_is_the_released_one() -> None:
    """Golden: with another id here, files written so far name a profile that is gone."""
    assert PROFILE_1.id.hex() == "4dc27f4314ca0a564d4379ad4c97b01e"
    assert len(PROFILE_1.id) == ID_BYTES
    assert profile_by_id(PROFILE_1.id) is PROFILE_1


def test_the_id_covers_description_and_table() -> None:
    table = PROFILE_1.table.copy()
    assert CoderProfile(PROFILE_1.description, table).id == PROFILE_1.id
    assert CoderProfile(PROFILE_1.description + " ", table).id != PROFILE_1.id
    table = table.copy()
    table[5] += 1
    assert CoderProfile(PROFILE_1.description, table).id != PROFILE_1.id


def test_a_table_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        PROFILE_1.table[0] = 1


def test_an_unknown_id_names_both_sides() -> None:
    with pytest.raises(VersionError) as caught:
        profile_by_id(bytes(range(16)))
    assert "000102030405060708090a0b0c0d0e0f" in str(caught.value)
    assert PROFILE_1.id.hex() in str(caught.value)
    assert "newer lmfs" in str(caught.value)
