"""The vocabulary of lmfs.native: greedy tokens, their spelling, and what is no vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
import reference_coder as reference
from hypothesis import given
from hypothesis import strategies as st

from lmfs.native import Vocabulary

SINGLE = [bytes([byte]) for byte in range(256)]

spellings = st.builds(
    lambda extra: sorted({*SINGLE, *extra}),
    st.lists(
        st.binary(min_size=2, max_size=5) | st.text("abc", min_size=2).map(str.encode), max_size=40
    ),
)


@given(spellings, st.binary(max_size=60) | st.text("abc", max_size=60).map(str.encode))
def test_tokenize_is_greedy_and_spell_inverts_it(spelled: list[bytes], data: bytes) -> None:
    vocabulary = Vocabulary(spelled)
    tokens = vocabulary.tokenize(data)
    assert tokens.format == "H"
    assert tokens.tolist() == reference.tokenize(spelled, data)
    assert vocabulary.spell(tokens) == data


def test_the_longest_token_is_taken_and_a_longer_one_that_fails_is_not() -> None:
    spelled = sorted([*SINGLE, b"ab", b"abcde", b"abcdefgh"])
    vocabulary = Vocabulary(spelled)
    for data, tokens in [
        (b"abcd!", [b"ab", b"c", b"d", b"!"]),
        (b"abcdefg", [b"abcde", b"f", b"g"]),
        (b"abcdefghab", [b"abcdefgh", b"ab"]),
    ]:
        assert vocabulary.tokenize(data).tolist() == [spelled.index(token) for token in tokens]


def test_the_largest_vocabulary() -> None:
    pairs = [bytes([a, b]) for a in range(256) for b in range(256)][: 65536 - 256]
    spelled = sorted(SINGLE + pairs)
    vocabulary = Vocabulary(spelled)
    assert len(vocabulary) == 65536
    data = bytes(range(256)) * 2
    assert vocabulary.tokenize(data).tolist() == reference.tokenize(spelled, data)
    with pytest.raises(ValueError, match="more than 65536"):
        Vocabulary([*spelled, b"\xff\xff\xff"])


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ([], "the byte 0"),
        (SINGLE[:-1], "the byte 255"),
        (SINGLE[:65] + SINGLE[66:], "the byte 65"),
        ([b"", *SINGLE], "token 0 is not 1 to 65535"),
        (SINGLE[:255] + [b"\xff"] * 2, "token 256 is not after"),
        ([*SINGLE, b"ab"], "token 256 is not after"),
        ([*SINGLE, b"\xff" * 65536], "token 256 is not 1 to 65535"),
    ],
)
def test_what_is_no_vocabulary(spelled: list[bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary(spelled)


def test_a_vocabulary_of_something_else_than_bytes() -> None:
    with pytest.raises(TypeError):
        Vocabulary(["a"])  # type: ignore[list-item]


def test_spell_refuses_unknown_tokens_and_other_types() -> None:
    vocabulary = Vocabulary(SINGLE)
    with pytest.raises(ValueError, match="token 256"):
        vocabulary.spell(np.array([len(SINGLE)], np.uint16))
    with pytest.raises(TypeError):
        vocabulary.spell(np.array([1], np.int64))  # type: ignore[arg-type]
