"""Everything that is wrong with a container, and where in the file.

Owns: the order of the checks: both ends and the index, then every frame's head, then, if asked
for, every chunk's bytes. Readers stop at the first thing that is wrong; this does not. One
inspection is for one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from blake3 import blake3

from lmfs.container import (
    CHECKSUM_BYTES,
    HEADER_PREFIX,
    MAX_TRAILER_BYTES,
    Coding,
    header_length,
    parse_header,
)
from lmfs.errors import DamagedError, LmfsError
from lmfs.layout import pack_section_head
from lmfs.lmz.members import Chunks, FoundMembers, Member, matched_member, read_trailer
from lmfs.lmz.source import FileSource, section_holds


class Problem(NamedTuple):
    """Something wrong at `offset` of the file."""

    offset: int
    what: str


class Inspection:
    """One container; close it to give the file back."""

    def __init__(self, file: BinaryIO | str | os.PathLike[str]) -> None:
        """Read the ends and the index of every member. raises: OSError

        `members` are all if `problems` is empty, else those behind the first problem.
        """
        self._source = FileSource(file)
        self.problems: list[Problem] = []
        self.members: list[Member] = []
        try:
            self._read_members()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> Inspection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Decoded bytes of the members."""
        return sum(member.size for member in self.members)

    def models(self) -> set[bytes]:
        """The ids of the models that chunks need."""
        return {coding.model_id for coding in self._used() if coding.model_id is not None}

    def primers(self) -> set[bytes]:
        """The ids of the shared primers that chunks follow."""
        return {coding.shared_id for coding in self._used() if coding.shared_id is not None}

    def _used(self) -> Iterator[Coding]:
        for member in self.members:
            for number in sorted(set(member.layout.codings)):
                yield member.codings[number]

    def frames(self) -> Iterator[Problem]:
        """Compare every frame's head with the index, and sections with their checksums."""
        for member in self.members:
            layout = member.layout
            for start, frame, blob in zip(
                layout.head_starts.tolist(),
                layout.frame_offsets.tolist(),
                layout.blob_offsets.tolist(),
                strict=True,
            ):
                at, length = member.offset + frame, blob - frame - CHECKSUM_BYTES
                if self._source.pread(length, at) != layout.heads[start : start + length]:
                    yield Problem(at, "a frame's head and the index differ")
            for kind, offset, size in layout.sections:
                head = pack_section_head(member.header, kind, size)
                if not section_holds(self._source, member.offset + offset, size, head):
                    yield Problem(member.offset + offset, f"section of type {kind}")

    def content(
        self,
        model_search: Sequence[Path] = (),
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[Problem]:
        """Decode every chunk, and compare each with its checksum and all with the hash.

        progress: called with the number of decoded bytes since its last call
        raises: UnknownModelError, ModelError, EngineError, VersionError, OSError
        """
        chunks = Chunks(self._source, self.members, model_search)
        for member in self.members:
            hasher, whole = blake3(), True
            last = member.first_chunk + len(member.layout.starts)
            for batch in chunks.batches(range(member.first_chunk, last)):
                for i, chunk in zip(batch, chunks.decode(batch), strict=True):
                    if isinstance(chunk, bytes):
                        hasher.update(chunk)
                    else:
                        whole = False
                        start, size = chunks.starts[i], chunks.sizes[i]
                        yield Problem(
                            member.offset + member.layout.frame_offsets[i - member.first_chunk],
                            f"damaged chunk, bytes {start} to {start + size}: {chunk.got}",
                        )
                    if progress is not None:
                        progress(chunks.sizes[i])
            if whole and hasher.digest() != member.content_hash:
                yield Problem(member.offset, "every chunk is right, but not the hash of the whole")

    def _read_members(self) -> None:
        end = self._source.size
        found = FoundMembers(None)
        first = True
        while end or first:
            try:
                end = self._read_member(end, found)
            except LmfsError:
                break
            first = False
        self.members = found.in_order()

    def _read_member(self, end: int, found: FoundMembers) -> int:
        """The member that ends at `end`; where it begins. What is wrong goes to `problems`."""
        at = max(0, end - MAX_TRAILER_BYTES)
        try:
            trailer = read_trailer(self._source, end, None)
            offset = at = end - trailer.member_bytes
            frames_end = trailer.member_bytes - trailer.packed_bytes - trailer.index_bytes
            length = header_length(self._source.pread(HEADER_PREFIX.size, offset))
            if length > frames_end:
                raise DamagedError("header length", expected=f"to {frames_end}", got=length)
            header_bytes = self._source.pread(length, offset)
            header = parse_header(header_bytes)
            at = offset + frames_end
            section = self._source.pread(trailer.index_bytes, at)
            return found.add(matched_member(trailer, header, header_bytes, section, offset, None))
        except LmfsError as error:
            self.problems.append(Problem(at, str(error)))
            raise
