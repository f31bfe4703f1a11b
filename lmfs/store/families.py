"""Which files of a store are alike, and the shared primer that pays for itself among them.

Owns: families, the sample that becomes a shared primer, and the measuring by which one is made or
followed. Nothing here is needed to read. Imports `primers` and lower. One plan is for one thread.

A family are files of one directory whose names differ in digits only (rotated logs); where these
are too few, those of one directory with the same suffix; then those of the whole run. Its primer
is a sample: the beginnings of every other file. It is kept if what is measured on some files, in
and not in the sample, brings more over the whole family than the primer's own bytes. Files that
come later follow the primer that frozen files beside them follow, if that makes them smaller.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..codecs.choose import MIN_PREDICTED_BYTES, Chooser, looks_like_text
from ..container import DEFAULT_CHUNK_SIZE, ID_BYTES
from ..errors import LmfsError
from ..lmz.shared import PIECE_BYTES, shared_mixer
from ..models.package import ModelPackage
from ..native import Mixer
from .marks import Marks, State
from .primers import Primers
from .publish import open_quietly

# Of larger files their own beginning says more, and who opens one would wait for two primers.
MAX_FILE_BYTES = 1 << 20
MIN_FILES, MIN_FAMILY_BYTES = 4, 64 << 10
# A file follows a primer only if it saves so much of the file's beginning.
MIN_GAIN = 0.02

_SAMPLE_BYTES = 8 << 10, 64 << 10  # of a file: at least, at most
_TRIED_FILES = 8
_SIBLINGS = 8
_DIGITS = re.compile(r"\d+")

Status = os.stat_result
Shared = tuple[bytes, Mixer]  # a shared primer's id, and the state behind it


@dataclass
class _Offer:
    """What a family could follow; the sample `text` of the files `of`, unless it has an id."""

    mixer: Mixer
    shared_id: bytes | None
    text: bytes = b""
    of: set[str] = field(default_factory=set)
    stored: bytes = b""


@dataclass
class _Family:
    """Files that are alike, by path; `shared_id` is known once it was tried to find one."""

    paths: list[str] = field(default_factory=list)
    size: int = 0
    tried: bool = False
    shared_id: bytes | None = None

    def add(self, path: str, size: int) -> None:
        self.paths.append(path)
        self.size += size

    def to_try(self, count: int) -> list[str]:
        """Some of them, half of which may be in a sample."""
        return _spread(self.paths[::2], count // 2) + _spread(self.paths[1::2], count // 2)

    @property
    def is_large(self) -> bool:
        return len(self.paths) >= MIN_FILES and self.size >= MIN_FAMILY_BYTES


class Families:
    """The files of one run of freezing, and the chooser for each."""

    def __init__(
        self,
        marks: Marks,
        files: Sequence[tuple[str, Status]],
        chooser: Chooser,
        package: ModelPackage | None,
        *,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
    ) -> None:
        """files: all that are to be frozen; package: what `chooser` codes with"""
        self._marks = marks
        self.primers = Primers(marks.store)
        self._chooser = chooser
        self._package = package if chooser.primer_bytes else None
        self._chunk_size = chunk_size
        self._of: dict[str, _Family] = {}
        self._seen: dict[str, list[bytes]] = {}  # what frozen files of a directory follow
        self.made: dict[bytes, int] = {}  # primers of this run, and their stored bytes
        if self._package is not None:
            small = [(path, status) for path, status in files if _is_small(status)]
            self._group([(path, status) for path, status in small if self._is_hot(path, status)])

    def _is_hot(self, path: str, status: Status) -> bool:
        try:
            return self._marks.facts_of_path(path, status).state is State.HOT
        except OSError:
            return False

    def _group(self, files: Sequence[tuple[str, Status]]) -> None:
        rest = list(files)
        for key in (_stem, _suffix_here, _suffix):
            families: dict[str, _Family] = {}
            for path, status in rest:
                families.setdefault(key(path), _Family()).add(path, status.st_size)
            for family in families.values():
                if family.is_large:
                    self._of |= dict.fromkeys(family.paths, family)
            rest = [(path, status) for path, status in rest if path not in self._of]

    def chooser(self, path: str) -> Chooser:
        """For this file: one that follows a shared primer, if that makes the file smaller.

        A primer that pays is made when the first file of its family is asked for.
        raises: OSError, LmfsError
        """
        beginning = self._beginning(path, self._chunk_size) if self._package is not None else b""
        if not beginning:
            return self._chooser
        family = self._of.get(path)
        if family is None:
            ids = self._followed_beside(path)
        else:
            if not family.tried:
                family.tried = True
                family.shared_id = self._best(family, self._load(self._followed_beside(path)))
            ids = [] if family.shared_id is None else [family.shared_id]
        offered = self._load(ids)
        ((alone, *after),) = self._chooser.sizes([beginning], [m for _, m in offered], model=False)
        for shared, size in zip(offered, after, strict=True):
            if size + ID_BYTES < (1 - MIN_GAIN) * alone:
                return self._chooser.following(shared)
        return self._chooser

    # ------------------------------------------------------------------- primers that are there

    def _followed_beside(self, path: str) -> list[bytes]:
        """What frozen files of the same directory follow, those of the same stem first."""
        key = _stem(path)
        if key not in self._seen:
            self._seen[key] = self._look_beside(path)
        return self._seen[key]

    def _look_beside(self, path: str) -> list[bytes]:
        directory = os.path.dirname(path)
        try:
            names = sorted(os.listdir(self._marks.store.real_path(directory or ".")))
        except OSError:
            return []
        beside = [other for name in names if (other := os.path.join(directory, name)) != path]
        found = []
        for alike in (_stem, _suffix):
            others = [other for other in beside if alike(other) == alike(path)]
            ids = [self.primers.followed_by(other) for other in _spread(others, _SIBLINGS)]
            found += [i for i in dict.fromkeys(ids) if i is not None and i not in found][:1]
        return found

    def _load(self, ids: Sequence[bytes]) -> list[Shared]:
        """Those that can be had. Few states are kept, by `shared_mixer`: they are large."""
        shared = []
        for shared_id in ids:
            # What is damaged `fsck` tells; nothing new is to follow it.
            with contextlib.suppress(LmfsError):
                self.primers.prove(shared_id)
                coding = self._chooser.shared_coding(shared_id)
                mixer = shared_mixer(coding, self._marks.store.search)
                shared.append((shared_id, mixer))
        return shared

    # -------------------------------------------------------------------------------- new ones

    def _best(self, family: _Family, there: list[Shared]) -> bytes | None:
        """What the family is to follow: a primer that is there, or a new one if that pays."""
        assert self._package is not None
        limit = min(self._chooser.primer_bytes, family.size // 2)
        offers = [_Offer(mixer, shared_id) for shared_id, mixer in there]
        offers += [o for size in (limit, limit // 4) if (o := self._sample(family, size))]
        best, most = None, 0.0
        for offer, saving in zip(offers, self._savings(family, offers), strict=True):
            if saving <= most:
                continue
            if offer.shared_id is None:
                offer.stored = self.primers.packed(offer.text, self._package)
                if saving - len(offer.stored) <= most:
                    continue
            best, most = offer, saving
            if offer.stored:
                # What is tried are beginnings only: a larger one that pays brings more than that.
                break
        if best is None:
            return None
        if best.shared_id is not None:
            return best.shared_id
        shared_id = self.primers.keep(best.text, best.stored, self._package)
        self.made[shared_id] = len(best.stored)
        return shared_id

    def _sample(self, family: _Family, size: int) -> _Offer | None:
        """The beginnings of every other file, so many bytes in all."""
        least, most = _SAMPLE_BYTES
        others = family.paths[::2]
        each = min(most, max(least, size // len(others)))
        text, sampled = b"", set()
        for path in _spread(others, max(1, size // each)):
            if piece := self._beginning(path, min(each, size - len(text))):
                text += piece
                sampled.add(path)
        if len(text) < least:
            return None
        mixer = self._chooser.start()
        mixer.prime(text, PIECE_BYTES)
        return _Offer(mixer, None, text, sampled)

    def _savings(self, family: _Family, offers: Sequence[_Offer]) -> list[float]:
        """By how many bytes all files of the family would get smaller, as far as tried."""
        count = max(2, min(2 * _TRIED_FILES, len(family.paths) // 2))
        tried = {path: self._beginning(path, self._chunk_size) for path in family.to_try(count)}
        tried = {path: beginning for path, beginning in tried.items() if beginning}
        mixers = [offer.mixer for offer in offers]
        if not tried or not mixers:
            return [0.0] * len(offers)
        sizes = self._chooser.sizes(list(tried.values()), mixers, model=True)
        savings = []
        for k, offer in enumerate(offers, 1):
            # A beginning that gets larger will not follow it.
            each = [max(0, found[0] - found[k] - ID_BYTES) for found in sizes]
            new = [saving for path, saving in zip(tried, each, strict=True) if path not in offer.of]
            known = [saving for path, saving in zip(tried, each, strict=True) if path in offer.of]
            outside = sum(new) / len(new) if new else 0
            inside = sum(known) / len(known) if known else outside
            count = len(offer.of)
            savings.append(outside * (len(family.paths) - count) + inside * count)
        return savings

    def _beginning(self, path: str, size: int) -> bytes:
        """The first bytes of a small hot file that is text; else none."""
        try:
            fd = open_quietly(path, self._marks.store.root_fd)
        except OSError:
            return b""
        try:
            if not _is_small(os.fstat(fd)):
                return b""
            if self._marks.facts_of_fd(fd).state is not State.HOT:
                return b""
            data = os.pread(fd, size, 0)
        except OSError:
            return b""
        finally:
            os.close(fd)
        return data if len(data) >= MIN_PREDICTED_BYTES and looks_like_text(data) else b""


def _is_small(status: Status) -> bool:
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_nlink == 1
        and MIN_PREDICTED_BYTES <= status.st_size <= MAX_FILE_BYTES
        and status.st_blocks * 512 > status.st_blksize
    )


def _stem(path: str) -> str:
    directory, name = os.path.split(path)
    return os.path.join(directory, _DIGITS.sub("0", name))


def _suffix_here(path: str) -> str:
    return os.path.join(os.path.dirname(path), _suffix(path))


def _suffix(path: str) -> str:
    return _DIGITS.sub("0", os.path.splitext(path)[1])


def _spread(items: Sequence[str], count: int) -> list[str]:
    """At most so many of them, evenly spread, in order."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
