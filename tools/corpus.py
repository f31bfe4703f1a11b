"""The training text: which source weighs how much, and all of it as tokens.

    python -m lmfs_tools.corpus CORPUS VOCAB.json WORK

reads CORPUS/train and CORPUS/dev (plain or .xz) and writes WORK/tokens/NAME.npy (uint16)
and WORK/dev/NAME.npz: the first 256 KiB of three dev files as 16 KiB chunks, each
tokenized by itself, to watch the training by.

Prose of which each paragraph is one line is there a second time, in lines of some width as mails,
manuals and most plain books have them, and articles as pages of a wiki (markup.py). What
debian_texts.py wrote to WORK/train is read as CORPUS/train is.
"""

from __future__ import annotations

import argparse
import lzma
import pathlib
import random
import re
from collections.abc import Iterator

import numpy as np

from lmfs.native import Vocabulary
from lmfs.tokenizer import Tokenizer

from .debian_texts import KINDS
from .markup import marked_up

WEIGHTS = {
    "wiki.txt": 0.15,
    "wiki.txt wrapped": 0.04,
    "wiki.txt marked up": 0.08,
    "books.txt": 0.15,
    "books.txt wrapped": 0.15,
    "code.py.txt": 0.09,
    "logs.txt": 0.012,
    "json.txt": 0.015,
    "man.txt": 0.035,
    "pod.txt": 0.025,
    "debian-handbook.html": 0.005,
    "foldoc.txt": 0.02,
    "c.txt": 0.05,
    "cpp.txt": 0.012,
    "java.txt": 0.02,
    "go.txt": 0.015,
    "rust.txt": 0.015,
    "javascript.txt": 0.02,
    "php.txt": 0.012,
    "ruby.txt": 0.008,
    "lisp.txt": 0.015,
    "erlang.txt": 0.005,
    "tex.txt": 0.012,
    "html.txt": 0.045,
    "markdown.txt": 0.025,
    "settings.txt": 0.015,
    "languages.json": 0.006,
}
WRAPPED = " wrapped"  # behind the name of what is in lines then
MARKED_UP = " marked up"  # likewise, of what is made pages of a wiki
STYLE_BYTES = 100_000  # of text, about, in lines of one style
WATCHED = ("wiki.txt", "books.txt", "code.py.txt")
WATCHED_BYTES = 256 << 10
CHUNK_BYTES = 16 << 10


def read(folder: pathlib.Path, name: str) -> bytes:
    plain = folder / name
    if plain.exists():
        return plain.read_bytes()
    return lzma.decompress((folder / f"{name}.xz").read_bytes())


def training_text(folder: pathlib.Path, name: str) -> bytes:
    """The text of one of WEIGHTS."""
    data = read(folder, name.removesuffix(WRAPPED).removesuffix(MARKED_UP))
    if name.endswith(WRAPPED):
        return wrapped(data)
    if name.endswith(MARKED_UP):
        return "".join(marked_up(data.decode("utf-8", "replace"))).encode()
    return data


def wrapped(data: bytes, seed: int = 1) -> bytes:
    """The paragraphs of a text, one a line, in lines; every now and then in another style."""
    styles = random.Random(seed)
    parts: list[bytes] = []
    left = 0
    for paragraph in data.splitlines():
        if left <= 0:
            left, style = STYLE_BYTES, _Style(styles)
        left -= len(paragraph)
        parts += style.lines(paragraph)
    return b"".join(parts)


class _Style:
    """How somebody sets lines."""

    def __init__(self, styles: random.Random) -> None:
        self.width = styles.choice([60, 64, 65, 66, 68, 70, 72, 72, 74, 75, 76, 78, 79])
        self.end = styles.choice([b"\n", b"\n", b"\r\n"])
        self.keeps_space = styles.random() < 0.2  # where a line was broken
        self.indent = styles.choice([0, 0, 0, 0, 2, 3, 4, 5])  # of a paragraph
        self.hanging = styles.choice([0, 0, 0, 0, 0, 4, 8])  # of all lines
        self.closed = styles.random() < 0.2  # no empty lines
        self.wide_stops = styles.random() < 0.4  # two spaces behind a sentence

    def lines(self, paragraph: bytes) -> Iterator[bytes]:
        paragraph = re.sub(rb"^#+ ", b"", paragraph.strip())
        if not paragraph:
            if not self.closed:
                yield self.end
            return
        if self.wide_stops:
            paragraph = re.sub(rb"([.!?][\"')]*) (?=[A-Z\"'])", rb"\1  ", paragraph)
        margin = b" " * self.hanging
        line = margin + b" " * self.indent
        empty = True
        for word in paragraph.split(b" "):
            if not empty and len(line) + 1 + len(word) > self.width:
                yield line.rstrip() + (b" " if self.keeps_space else b"") + self.end
                line, empty = margin, True
            line, empty = (line + word if empty else line + b" " + word), empty and not word
        yield line + self.end


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
        own = (args.work / "train" / name).exists()
        try:
            data = training_text((args.work if own else args.corpus) / "train", name)
        except FileNotFoundError as missing:
            where = "lmfs_tools.debian_texts writes it" if name in KINDS else "expected in CORPUS"
            raise SystemExit(f"corpus: {missing.filename} is not there: {where}") from None
        tokens = vocabulary.tokenize(data)
        np.save(args.work / "tokens" / f"{name}.npy", tokens)
        print(f"{name}: {len(data):,} bytes, {len(tokens):,} tokens", flush=True)
    for name in WATCHED:
        data = read(args.corpus / "dev", name)[:WATCHED_BYTES]
        table, lengths = chunk_tokens(vocabulary, data, CHUNK_BYTES)
        np.savez(args.work / "dev" / name, tokens=table, lengths=lengths, bytes=len(data))


if __name__ == "__main__":
    main()
