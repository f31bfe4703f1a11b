"""Choose the tokenizer's vocabulary from the training corpus.

Owns: which byte strings are tokens. Byte pair encoding (Sennrich et al. 2016, by
the `tokenizers` library) proposes them; every single byte and every pair of digits
is always in. How text is cut into them is `lmfs.tokenizer`'s: longest match, so
merges are not kept.

    python -m lmfs_tools.vocabulary CORPUS_DIR OUT.json [--size 2048]
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from .corpus import WEIGHTS, training_text

# One pre-token: a word with at most one space before it, one or two digits, a run of
# one punctuation style, a line break with the indentation after it, other white space.
PRE_TOKEN = (
    r" ?[\p{L}\p{M}]+|'(?:s|t|re|ve|m|ll|d)\b|\p{N}{1,2}| ?[^\s\p{L}\p{M}\p{N}]{1,6}"
    r"|\n[ \t]*|[ \t]+|\s"
)


def samples(corpus: pathlib.Path, total_bytes: int, seed: int = 1) -> list[str]:
    """Draw 16 KiB pieces of each source in proportion to its training weight."""
    rng = random.Random(seed)
    pieces: list[str] = []
    for name, weight in WEIGHTS.items():
        data = training_text(corpus, name)
        for _ in range(int(total_bytes * weight) // 16384):
            start = rng.randrange(max(1, len(data) - 16384))
            pieces.append(data[start : start + 16384].decode("utf-8", "ignore"))
    rng.shuffle(pieces)
    return pieces


def choose(texts: list[str], size: int) -> list[bytes]:
    """Return `size` distinct byte strings, sorted, every single byte among them."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pre = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKEN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, max_token_length=16)
    )
    byte_of = _byte_of_character()
    ranked = sorted(bpe.get_vocab().items(), key=lambda item: item[1])
    spelled = [bytes(byte_of[c] for c in token) for token, _ in ranked]
    always = [bytes([b]) for b in range(256)]
    always += [b"%d%d" % (a, b) for a in range(10) for b in range(10)]
    chosen = set(always)
    for token in spelled:
        if len(chosen) == size:
            break
        chosen.add(token)
    return sorted(chosen)


def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: a printable character for every byte."""
    keep = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in keep}
    for shift, b in enumerate(b for b in range(256) if b not in keep):
        table[chr(256 + shift)] = b
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Choose the tokenizer's vocabulary.")
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--sample-mb", type=int, default=40)
    args = parser.parse_args()
    tokens = choose(samples(args.corpus, args.sample_mb << 20), args.size)
    args.out.write_text(json.dumps({"tokens": [t.hex() for t in tokens]}) + "\n")
    print(f"{len(tokens)} tokens -> {args.out}")


if __name__ == "__main__":
    main()
