"""The training text: which source weighs how much, and all of it as tokens.

    python -m lmfs_tools.corpus CORPUS VOCAB.json WORK

reads CORPUS/train and CORPUS/dev (plain or .xz) and writes WORK/tokens/NAME.npy (uint16)
and WORK/dev/NAME.npz: the first 256 KiB of three dev files as 16 KiB chunks, each
tokenized by itself, to watch the training by.
"""

from __future__ import annotations

import argparse
import lzma
import pathlib

import numpy as np

from lmfs.native import Vocabulary
from lmfs.tokenizer import Tokenizer

WEIGHTS = {
    "wiki.txt": 0.32,
    "books.txt": 0.41,
    "code.py.txt": 0.13,
    "logs.txt": 0.02,
    "json.txt": 0.02,
    "man.txt": 0.04,
    "pod.txt": 0.03,
    "debian-handbook.html": 0.01,
    "foldoc.txt": 0.02,
}
WATCHED = ("wiki.txt", "books.txt", "code.py.txt")
WATCHED_BYTES = 256 << 10
CHUNK_BYTES = 16 << 10


def read(folder: pathlib.Path, name: str) -> bytes:
    plain = folder / name
    if plain.exists():
        return plain.read_bytes()
    return lzma.decompress((folder / f"{name}.xz").read_bytes())


def chunk_tokens(
    vocabulary: Vocabulary, data: bytes, chunk_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """uint16 (chunks, longest), zero-padded, and int64 (chunks,) of how many tokens count."""
    rows = [
        vocabulary.tokenize(data[start : start + chunk_bytes])
        for start in range(0, len(data), chunk_bytes)
    ]
    lengths = np.array([len(row) for row in rows])
    table = np.zeros((len(rows), lengths.max()), np.uint16)
    for k, row in enumerate(rows):
        table[k, : len(row)] = row
    return table, lengths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("vocab", type=pathlib.Path)
    parser.add_argument("work", type=pathlib.Path)
    args = parser.parse_args()
    vocabulary = Tokenizer.from_json(args.vocab.read_bytes()).vocabulary
    for folder in ("tokens", "dev"):
        (args.work / folder).mkdir(parents=True, exist_ok=True)
    for name in WEIGHTS:
        data = read(args.corpus / "train", name)
        tokens = vocabulary.tokenize(data)
        np.save(args.work / "tokens" / f"{name}.npy", tokens)
        print(f"{name}: {len(data):,} bytes, {len(tokens):,} tokens", flush=True)
    for name in WATCHED:
        data = read(args.corpus / "dev", name)[:WATCHED_BYTES]
        table, lengths = chunk_tokens(vocabulary, data, CHUNK_BYTES)
        np.savez(args.work / "dev" / name, tokens=table, lengths=lengths, bytes=len(data))


if __name__ == "__main__":
    main()
