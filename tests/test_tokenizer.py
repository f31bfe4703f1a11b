"""lmfs.tokenizer: the file form, its errors, and that any bytes survive it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmfs.errors import ModelError
from lmfs.tokenizer import Tokenizer

SINGLE = [bytes([byte]) for byte in range(256)]
SPELLINGS = sorted([*SINGLE, b"the", b" the", b"\xc3\xa9", b"\n\n", b"caf"])


def as_json(spellings: list[bytes]) -> bytes:
    return json.dumps({"tokens": [spelling.hex() for spelling in spellings]}).encode()


def test_json_and_back() -> None:
    tokenizer = Tokenizer.from_json(as_json(SPELLINGS))
    assert len(tokenizer) == len(SPELLINGS)
    written = tokenizer.to_json()
    assert json.loads(written) == {"tokens": [spelling.hex() for spelling in SPELLINGS]}
    assert Tokenizer.from_json(written).to_json() == written


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_survive(data: bytes) -> None:
    tokenizer = Tokenizer(SPELLINGS)
    tokens = tokenizer.tokenize(data)
    assert tokens.format == "H"
    assert tokenizer.spell(tokens) == data


def test_long_tokens_are_used() -> None:
    tokenizer = Tokenizer(SPELLINGS)
    assert tokenizer.tokenize("\n\n the café".encode()).tolist() == [
        SPELLINGS.index(spelling) for spelling in (b"\n\n", b" the", b" ", b"caf", b"\xc3\xa9")
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "other JSON"),
        (b"{}", "other JSON"),
        (b'{"tokens": [], "more": 1}', "other JSON"),
        (b'{"tokens": 5}', "not a list of strings"),
        (b'{"tokens": [1, 2]}', "not a list of strings"),
        (b'{"tokens": ["0"]}', "not hexadecimal"),
        (b'{"tokens": ["0g"]}', "not hexadecimal"),
        (b'{"tokens": ["61 62"]}', "not hexadecimal"),
        ('{"tokens": ["é1"]}'.encode(), "not hexadecimal"),
        (b'{"tokens": []}', "no token spells the byte 0"),
        (as_json(SPELLINGS[1:]), "no token spells the byte 0"),
        (as_json(SPELLINGS[::-1]), "not after the one before it"),
        (as_json([b"", *SPELLINGS]), "not 1 to 65535 bytes"),
    ],
)
def test_what_is_no_tokenizer(data: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        Tokenizer.from_json(data)
    assert caught.value.do is not None


def test_spellings_that_are_not_bytes() -> None:
    with pytest.raises(ModelError, match="not one that lmfs can use"):
        Tokenizer(["a"])  # type: ignore[list-item]


def test_tokens_of_another_vocabulary() -> None:
    with pytest.raises(ModelError, match="token 261 is not in the vocabulary"):
        Tokenizer(SPELLINGS).spell(np.array([len(SPELLINGS)], np.uint16))
