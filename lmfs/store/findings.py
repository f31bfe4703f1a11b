"""What a check of a store can find.

Owns: the kinds of findings, and which of them are errors. Imports nothing of lmfs. Any thread may
use it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.Enum):
    """What a finding is about; the names are for programs and stay."""

    STORE = "store"  # something in .lmfs/ that should not be there
    MODEL_DAMAGED = "model-damaged"
    MODEL_MISSING = "model-missing"
    MODEL_NOT_KEPT = "model-not-kept"  # here, but not in the store
    PRIMER_DAMAGED = "primer-damaged"
    PRIMER_MISSING = "primer-missing"  # or damaged: a file follows it
    MARKS = "marks"  # magic, trailer and xattr do not agree
    STRUCTURE = "structure"  # header, index, trailer, frame heads
    CONTENT = "content"  # chunks
    OVERLAY = "overlay-damaged"  # what was written to a frozen file
    OVERLAY_UNNAMED = "overlay-unnamed"
    UNREADABLE = "unreadable"
    PARITY_DAMAGED = "parity-damaged"  # of a file that is whole
    PARITY_MISSING = "parity-missing"  # where the store is set to have it
    PARITY_UNUSED = "parity-unused"
    HIDDEN = "hidden"  # a user's file under a name of the store's
    MARK_MISSING = "mark-missing"
    LEFTOVER = "leftover"

    @property
    def is_error(self) -> bool:
        """False for what harms nothing and needs nobody."""
        return self not in _HARMLESS


# What parity may heal.
DAMAGE = (Kind.MARKS, Kind.STRUCTURE, Kind.CONTENT, Kind.UNREADABLE)
_HARMLESS = (
    Kind.MARK_MISSING,
    Kind.LEFTOVER,
    Kind.OVERLAY_UNNAMED,
    Kind.PARITY_DAMAGED,
    Kind.PARITY_MISSING,
    Kind.PARITY_UNUSED,
)


@dataclass(frozen=True)
class Finding:
    """One thing found. path: relative to the store's root; offset: in the stored file.

    can_be_healed: a damaged file, and its parity was tried on it
    """

    kind: Kind
    path: str
    problem: str
    do: str
    offset: int | None = None
    model: bytes | None = None
    can_be_healed: bool = False
