"""Bytes to tokens and back, by the vocabulary in a model package.

Owns the vocabulary's file form and the names of its errors; the loops are `lmfs.native`. Imports
errors and native only, no engine and no package. A Tokenizer never changes: threads may share it.
"""

from __future__ import annotations

import binascii
import json
from array import array
from typing import TYPE_CHECKING

from lmfs.errors import ModelError
from lmfs.native import Vocabulary

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Tokenizing takes as many steps a byte as a token may be long; the longest used has 16 bytes.
MAX_TOKEN_BYTES = 256


class Tokenizer:
    """Greedy longest-match tokens over a sorted vocabulary that can spell any bytes."""

    def __init__(self, spellings: list[bytes]) -> None:
        """spellings: strictly sorted by bytes, all single bytes among them, at most 65,536 tokens.

        raises: ModelError where they are not so
        """
        try:
            self.vocabulary = Vocabulary(spellings)
        except (ValueError, TypeError) as error:
            raise ModelError(
                "the tokenizer is not one that lmfs can use",
                expected="a sorted vocabulary with every single byte in it",
                got=str(error),
                do="export the model again, or fetch its package anew",
            ) from error

    @classmethod
    def from_json(cls, data: bytes) -> Tokenizer:
        """Read `{"tokens": [hex, ...]}`, the spellings in the order of their token ids.

        raises: ModelError for anything else
        """
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _not_a_tokenizer(f"no JSON ({error})") from error
        if not isinstance(document, dict) or document.keys() != {"tokens"}:
            raise _not_a_tokenizer("other JSON")
        tokens = document["tokens"]
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise _not_a_tokenizer("tokens that are not a list of strings")
        try:
            spellings = [binascii.unhexlify(token) for token in tokens]
            if max(map(len, spellings), default=0) > MAX_TOKEN_BYTES:
                raise _not_a_tokenizer(f"a token of more than {MAX_TOKEN_BYTES} bytes")
        except ValueError as error:
            raise _not_a_tokenizer(f"a token that is not hexadecimal ({error})") from error
        return cls(spellings)

    def to_json(self) -> bytes:
        """The file form: the same bytes for the same vocabulary."""
        spellings = [self.spell(array("H", [token])).hex() for token in range(len(self))]
        return json.dumps({"tokens": spellings}, separators=(",", ":")).encode("ascii") + b"\n"

    def __len__(self) -> int:
        return len(self.vocabulary)

    def tokenize(self, data: bytes) -> memoryview:
        """Any bytes to tokens, uint16 (n,), each the longest that fits."""
        return self.vocabulary.tokenize(data)

    def spell(self, tokens: Buffer) -> bytes:
        """The bytes of tokens, uint16 (n,); ModelError for one outside the vocabulary."""
        try:
            return self.vocabulary.spell(tokens)
        except ValueError as error:
            raise ModelError(
                "a token outside the vocabulary",
                expected=f"0 to {len(self) - 1}",
                got=str(error),
                do="use the tokenizer of the model that the tokens are from",
            ) from error


def _not_a_tokenizer(got: str) -> ModelError:
    return ModelError(
        "the tokenizer file is damaged or of another kind",
        expected='{"tokens": [hex, ...]}',
        got=got,
        do="export the model again, or fetch its package anew",
    )
