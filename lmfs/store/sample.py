"""The text of a store, as a sample to learn from and files to judge by.

Owns: what counts as text, families of files, and which files are held out. Imports lmfs.lmz and
lower. One thread.

A family is all files of one suffix. Each one has its share in the sample and among the held-out
files; which files these are is a matter of the seed alone.
"""

from __future__ import annotations

import bisect
import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ..codecs.choose import looks_like_text
from ..errors import LmfsError
from .content import open_frozen
from .marks import Marks, State
from .walk import regular_files

PIECE_BYTES = 16 << 10  # what is learned from at a time: a chunk
MIN_FILE_BYTES = 4 << 10  # smaller files are not worth freezing
HELD_OUT_SHARE = 0.15  # of a family's text, at most
# Of a held-out file its beginning counts, so that several files can be measured in little time.
HELD_OUT_FILE_BYTES = 256 << 10


@dataclass(frozen=True)
class TextFile:
    """A file of the store; `size` is in bytes as a reader sees them."""

    path: str
    size: int
    frozen: bool

    @property
    def family(self) -> str:
        """Its suffix, if that has letters: `log` for x.log and for x.log.3."""
        for part in reversed(os.path.basename(self.path).split(".")[1:]):
            if not part.isdigit():
                return part.lower()
        return ""


@dataclass(frozen=True)
class Split:
    """Files to learn from, and files that are held out; in the order in which they were drawn."""

    learned: list[TextFile]
    held_out: list[TextFile]
    family_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """Of all text."""
        return sum(self.family_bytes.values())


def text_files(
    marks: Marks, path: str = ".", progress: Callable[[int], None] | None = None
) -> list[TextFile]:
    """The files below `path` whose beginning looks like text; those that cannot be read are none.

    progress: called with 1 for each file looked at
    """
    found = []
    for name, status in regular_files(marks.store, path):
        if progress is not None:
            progress(1)
        try:
            facts = marks.facts_of_path(name, status)
            if facts.state is State.DAMAGED:
                continue
            file = TextFile(name, facts.size, facts.state is State.FROZEN)
            if file.size >= MIN_FILE_BYTES and looks_like_text(read(marks, file, 0, PIECE_BYTES)):
                found.append(file)
        except (LmfsError, OSError):
            continue
    return sorted(found, key=lambda file: file.path)


def read(marks: Marks, file: TextFile, offset: int, size: int) -> bytes:
    """Bytes of a file, decoded if it is frozen. raises: LmfsError, OSError"""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(file.path, flags, dir_fd=marks.store.root_fd)
    try:
        if not file.frozen:
            return os.pread(fd, size, offset)
        with open_frozen(fd, marks) as reader:
            return reader.pread(size, offset)
    finally:
        os.close(fd)


def split(files: Sequence[TextFile], seed: int, held_out_bytes: int) -> Split:
    """Hold files out: of every family that has two, as near to its share as whole files allow."""
    chance = random.Random(seed)
    families: dict[str, list[TextFile]] = {}
    for file in files:
        families.setdefault(file.family, []).append(file)
    family_bytes = {name: sum(f.size for f in members) for name, members in families.items()}
    total = sum(family_bytes.values())
    result = Split([], [], family_bytes)
    for name, members in sorted(families.items()):
        chance.shuffle(members)
        share = family_bytes[name] / total
        most = min(held_out_bytes * share, HELD_OUT_SHARE * family_bytes[name])
        taken = 0
        for number, file in enumerate(members):
            if number + 1 < len(members) and taken < most:
                taken += min(file.size, HELD_OUT_FILE_BYTES)
                result.held_out.append(file)
            else:
                result.learned.append(file)
    return result


def pieces(files: Sequence[TextFile], seed: int, most: int) -> list[tuple[TextFile, int]]:
    """At most so many places to learn from, in random order; none twice."""
    counts = [-(-file.size // PIECE_BYTES) for file in files]
    ends = list(itertools.accumulate(counts, initial=0))
    numbers = random.Random(seed).sample(range(ends[-1]), min(most, ends[-1]))
    places = []
    for number in numbers:
        k = bisect.bisect_right(ends, number) - 1
        places.append((files[k], (number - ends[k]) * PIECE_BYTES))
    return places


def texts(marks: Marks, places: Sequence[tuple[TextFile, int]]) -> Iterator[bytes]:
    """The text at these places; what cannot be read any more is left out."""
    for file, offset in places:
        try:
            piece = read(marks, file, offset, PIECE_BYTES)
        except (LmfsError, OSError):
            continue
        if piece:
            yield piece
