"""Whether a model that was learned from a store is worth its bytes.

Owns: the measurement on held-out files and the verdict. Knows nothing of how a model learns.
Imports lmfs.lmz and lower. One thread.

Held-out files are frozen, to nowhere, with both models at the level that is asked for: every byte
of a frozen file counts; shared primers are not used. What that saves a byte of a family is taken
for what it saves on all text of that family: an extrapolation, and said to be one. Families
without a held-out file count as if nothing were saved on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..codecs.choose import Chooser
from ..container import DEFAULT_CHUNK_SIZE
from ..lmz import LmzWriter
from .marks import Marks
from .sample import HELD_OUT_FILE_BYTES, Split, TextFile, read

if TYPE_CHECKING:
    from ..models.package import ModelPackage


@dataclass(frozen=True)
class Measured:
    """One held-out file: what was read of it, and what it takes frozen with each model."""

    path: str
    family: str
    text_bytes: int
    before_bytes: int
    after_bytes: int


@dataclass(frozen=True)
class Verdict:
    """The bill of a learned model; sizes in bytes."""

    measured: tuple[Measured, ...]
    family_bytes: dict[str, int]
    package_bytes: int

    @property
    def text_bytes(self) -> int:
        """Of the held-out files, as measured."""
        return sum(one.text_bytes for one in self.measured)

    @property
    def before_bytes(self) -> int:
        return sum(one.before_bytes for one in self.measured)

    @property
    def after_bytes(self) -> int:
        return sum(one.after_bytes for one in self.measured)

    @property
    def store_bytes(self) -> int:
        """Of all text of the store."""
        return sum(self.family_bytes.values())

    @property
    def saving_bytes(self) -> int:
        """On all text of the store, extrapolated; less than 0 where the model makes it larger."""
        saving = 0.0
        for family, size in self.family_bytes.items():
            members = [one for one in self.measured if one.family == family]
            text = sum(one.text_bytes for one in members)
            if text:
                saved = sum(one.before_bytes - one.after_bytes for one in members)
                saving += size * saved / text
        return round(saving)

    @property
    def break_even_bytes(self) -> int | None:
        """From how much such text on the package is paid for; None if never."""
        if self.saving_bytes <= 0:
            return None
        return -(-self.package_bytes * self.store_bytes // self.saving_bytes)

    @property
    def pays(self) -> bool:
        return self.saving_bytes > self.package_bytes


def held_out_texts(marks: Marks, files: Sequence[TextFile]) -> list[bytes]:
    """What counts of each held-out file. raises: LmfsError, OSError"""
    return [read(marks, file, 0, HELD_OUT_FILE_BYTES) for file in files]


def judge(
    marks: Marks,
    divided: Split,
    now: ModelPackage,
    learned: ModelPackage,
    *,
    level: int,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    progress: Callable[[int], None] | None = None,
) -> Verdict:
    """Freeze the held-out files with both models.

    progress: called with the bytes coded since its last call; in all twice those of the texts
    raises: LmfsError, OSError
    """
    texts = held_out_texts(marks, divided.held_out)
    sizes = []
    for package in (now, learned):
        chooser = Chooser(package, level)
        sizes.append([_frozen_bytes(text, chooser, chunk_size, progress) for text in texts])
    measured = tuple(
        Measured(file.path, file.family, len(text), before, after)
        for file, text, before, after in zip(divided.held_out, texts, *sizes, strict=True)
    )
    return Verdict(measured, divided.family_bytes, learned.size_bytes)


class _Nowhere:
    """Takes what is written."""

    def write(self, data: bytes) -> int:
        return len(data)


def _frozen_bytes(
    text: bytes, chooser: Chooser, chunk_size: int, progress: Callable[[int], None] | None
) -> int:
    """What a file of this text takes when it is frozen."""
    writer = LmzWriter(
        _Nowhere(),  # type: ignore[arg-type]
        chunk_size=chunk_size,
        chooser=chooser,
        store_id=bytes(16),
        progress=progress,
    )
    with writer:
        writer.write(text)
    return writer.written_bytes
