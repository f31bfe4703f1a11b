"""Chunks out of frames: decoded in batches, checked one by one.

Owns: the step from a frame's blob to bytes that are known to be right. Any thread may call it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lmfs.codecs import open_codec
from lmfs.container import Coding, checksum
from lmfs.errors import DamagedError
from lmfs.types import Codec

# A batch is bounded by both: lanes that decode in lockstep, and memory.
BATCH_CHUNKS = 64
BATCH_BYTES = 32 * 1024 * 1024


class Frame(NamedTuple):
    """One chunk as a container holds it."""

    coding: Coding
    size: int  # decoded
    start: int  # of the decoded bytes within the member
    checksum: int  # as stored
    blob: bytes
    offset: int  # of the frame in the file, for messages


class FrameDecoder:
    """Turns frames into chunks; opens each codec once, when it is first needed."""

    def __init__(self, model_search: Sequence[Path] = (), where: object = None) -> None:
        self._model_search = tuple(model_search)
        self._where = where
        self._codecs: dict[Coding, Codec] = {}
        self._lock = threading.Lock()

    def decode(self, frames: Sequence[Frame]) -> list[bytes | DamagedError]:
        """For each frame its chunk, or what is wrong with it.

        raises: UnknownModelError, ModelError, EngineError, VersionError where a codec cannot be had
        """
        chunks = self.decode_unchecked(frames)
        return [self._checked(f, c) for f, c in zip(frames, chunks, strict=True)]

    def decode_unchecked(self, frames: Sequence[Frame]) -> list[bytes | DamagedError]:
        """What each frame's codec makes of it, not yet compared with its checksum."""
        chunks: list[bytes | DamagedError] = [b""] * len(frames)
        for coding in dict.fromkeys(frame.coding for frame in frames):
            lanes = [i for i, frame in enumerate(frames) if frame.coding == coding]
            self._decode_lanes(self._codec(coding), frames, lanes, chunks)
        return chunks

    def _codec(self, coding: Coding) -> Codec:
        with self._lock:
            if coding not in self._codecs:
                self._codecs[coding] = open_codec(coding, self._model_search)
            return self._codecs[coding]

    def _decode_lanes(
        self,
        codec: Codec,
        frames: Sequence[Frame],
        lanes: Sequence[int],
        chunks: list[bytes | DamagedError],
    ) -> None:
        try:
            decoded = codec.decode([frames[i].blob for i in lanes], [frames[i].size for i in lanes])
        except DamagedError as damage:
            # A codec refuses the batch for one bad lane: halves find it without decoding the
            # good ones one at a time.
            if len(lanes) == 1:
                chunks[lanes[0]] = damage
                return
            half = len(lanes) // 2
            self._decode_lanes(codec, frames, lanes[:half], chunks)
            self._decode_lanes(codec, frames, lanes[half:], chunks)
            return
        for i, chunk in zip(lanes, decoded, strict=True):
            chunks[i] = chunk

    def _checked(self, frame: Frame, chunk: bytes | DamagedError) -> bytes | DamagedError:
        if isinstance(chunk, DamagedError):
            reason = str(chunk)
        elif len(chunk) != frame.size:
            reason = f"{len(chunk)} bytes for {frame.size}"
        elif checksum(chunk, frame.start) != frame.checksum:
            reason = "wrong checksum"
        else:
            return chunk
        return self.damage(frame.start, frame.size, frame.offset, reason)

    def damage(self, start: int, size: int, offset: int, reason: str) -> DamagedError:
        """The error for one chunk that cannot be had."""
        return DamagedError(
            f"damaged chunk (bytes {start} to {start + size}, stored at {offset})",
            where=self._where,
            got=reason,
            do="`lmfs recover` saves the other chunks",
        )
