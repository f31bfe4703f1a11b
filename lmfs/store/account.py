"""What freezing brought: per codec, and with the models' own size on the bill.

Owns: the counting. Imports lmfs.lmz and lower. One thread an account.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field

from ..errors import LmfsError
from .content import open_frozen
from .marks import Marks, State
from .walk import regular_files


@dataclass
class CodecShare:
    """One codec's part: `before` and `after` are bytes of chunks, headers and index not counted."""

    files: int = 0
    chunks: int = 0
    before: int = 0
    after: int = 0


@dataclass
class Account:
    """The state of some files of a store; sizes in bytes."""

    codecs: dict[str, CodecShare] = field(default_factory=dict)
    hot_files: int = 0
    hot_bytes: int = 0
    frozen_files: int = 0
    frozen_before: int = 0  # as a reader sees them
    frozen_after: int = 0  # the containers, with headers and indexes
    frozen_on_disk: int = 0
    patched_files: int = 0  # of the frozen ones, those that were written to since
    patched_on_disk: int = 0  # their overlays
    damaged: dict[str, str] = field(default_factory=dict)
    models: dict[bytes, int] = field(default_factory=dict)
    primers: dict[bytes, int] = field(default_factory=dict)  # shared ones; they are coded data
    parity_files: int = 0
    parity_bytes: int = 0
    parity_on_disk: int = 0

    def __post_init__(self) -> None:
        self._counted: set[str] = set()  # parity; a copy of a store may have one for two files

    def add(self, marks: Marks, path: str) -> None:
        """Count a file, or all below a directory. raises: OSError for `path`"""
        self.models |= marks.store.pinned_models()
        self.primers |= marks.store.kept_primers()
        for name, _ in regular_files(marks.store, path):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                while not self._add_file(marks, name):
                    pass

    def _add_file(self, marks: Marks, name: str) -> bool:
        """Count a file; False if it was replaced meanwhile, and nothing counted."""
        status, facts = marks.look(name)
        if facts is None:
            return True
        if facts.state is State.HOT:
            self.hot_files += 1
            self.hot_bytes += status.st_size
            return True
        if facts.state is State.DAMAGED:
            self.damaged[name] = facts.problem or "its marks do not agree"
            return True
        try:
            self._add_frozen(marks, name, status)
        except LmfsError as error:
            now = os.stat(name, dir_fd=marks.store.root_fd, follow_symlinks=False)
            if now.st_ino != status.st_ino:
                return False
            self.damaged[name] = str(error)
        if facts.overlay is not None:
            self.patched_files += 1
            self.patched_on_disk += facts.overlay_blocks * 512
        return True

    def _add_frozen(self, marks: Marks, name: str, status: os.stat_result) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=marks.store.root_fd)
        try:
            with open_frozen(fd, marks) as reader:
                statistics, size = reader.statistics(), reader.size
            self._add_parity(marks, fd)
        finally:
            os.close(fd)
        self.frozen_files += 1
        self.frozen_before += size
        self.frozen_after += status.st_size
        self.frozen_on_disk += status.st_blocks * 512
        for codec, numbers in statistics.items():
            share = self.codecs.setdefault(codec, CodecShare())
            share.files += 1
            share.chunks += numbers.chunks
            share.before += numbers.bytes_before
            share.after += numbers.bytes_after

    def _add_parity(self, marks: Marks, fd: int) -> None:
        for name in marks.parities.of(fd) - self._counted:
            self._counted.add(name)
            with contextlib.suppress(OSError):
                status = marks.parities.stat(name)
                self.parity_files += 1
                self.parity_bytes += status.st_size
                self.parity_on_disk += status.st_blocks * 512

    @property
    def primer_bytes(self) -> int:
        """What files follow besides their own bytes; lies in the store once."""
        return sum(self.primers.values())

    @property
    def model_bytes(self) -> int:
        """The description that a decoder needs besides the coded data."""
        return sum(self.models.values())

    @property
    def predicted(self) -> CodecShare:
        """The part of all chunks that cannot be decoded without a model's package."""
        shares = [self.codecs[name] for name in ("lm", "mix") if name in self.codecs]
        total = CodecShare()
        total.after += self.primer_bytes
        for share in shares:
            total.chunks += share.chunks
            total.before += share.before
            total.after += share.after
        return total

    def break_even_bytes(self) -> int | None:
        """How much text must be frozen like this until the models are paid for; None if never."""
        share = self.predicted
        if share.after >= share.before:
            return None
        saved = 1 - share.after / share.before
        return round(self.model_bytes / saved)
