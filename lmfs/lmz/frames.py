"""Chunks out of frames: decoded in batches, checked one by one.

Owns: the step from a frame's blob to bytes that are known to be right. Any thread may call it.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from lmfs.codecs import open_codec
from lmfs.codecs.primer import Primer
from lmfs.container import CodecId, Coding, Header, checksum
from lmfs.errors import DamagedError
from lmfs.lmz.shared import shared_mixer
from lmfs.types import Codec

if TYPE_CHECKING:
    from lmfs.codecs.lm import LmCodec
    from lmfs.codecs.mix import MixCodec
    from lmfs.native import Mixer

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

    @property
    def follows(self) -> int:
        """Of its member, it follows all chunks that end at or before this byte."""
        return self.coding.follows(self.start)


class FrameDecoder:
    """Turns frames into chunks; opens each codec once, when it is first needed."""

    def __init__(self, model_search: Sequence[Path] = (), where: object = None) -> None:
        self._model_search = tuple(model_search)
        self._where = where
        self._codecs: dict[Coding, Codec] = {}
        self._lock = threading.Lock()

    def primer(self, header: Header, *, in_order: bool = False) -> Primer:
        """What the chunks of a member follow, nothing of it known yet.

        in_order: they will be decoded in their order, once: no state is kept for later
        """

        def start() -> Mixer:
            coding = next(coding for coding in header.codings if coding.primer_bytes)
            # The vocabulary and the profile are all that counts, and with a model the same.
            return self._start(dataclasses.replace(coding, codec=CodecId.MIX))

        lengths = set() if in_order else {coding.primer_bytes for coding in header.codings}
        return Primer(header.primer_bytes, start, lengths)

    def decode(self, frames: Sequence[Frame], primer: Primer) -> list[bytes | DamagedError]:
        """For each frame its chunk, or what is wrong with it.

        frames: of one member, ascending
        primer: that member's; chunks that belong to it are fed to it
        raises: UnknownModelError, ModelError, EngineError, VersionError where a codec cannot be had
        """
        chunks: list[bytes | DamagedError] = []
        while len(chunks) < len(frames):
            rest = frames[len(chunks) :]
            if self._leads_on(rest[0], primer):
                chunks.append(self._decode_next(rest[0], primer))
                continue
            # Up to the first that follows one of those before it.
            stop = 1
            while stop < len(rest) and primer.serves(rest[stop].follows):
                stop += 1
            decoded = self.decode_unchecked(rest[:stop], primer)
            for frame, chunk in zip(rest, decoded, strict=False):
                checked = self._checked(frame, chunk)
                chunks.append(checked)
                if isinstance(checked, DamagedError):
                    primer.lost(frame.start, frame.size)
                elif primer.wants(frame.start):
                    primer.feed(checked)
        return chunks

    def _leads_on(self, frame: Frame, primer: Primer) -> bool:
        """Whether the mixer behind this chunk is the primer's."""
        if frame.start >= frame.coding.primer_bytes:
            return False
        if not primer.wants(frame.start):
            return False
        if frame.coding.codec is CodecId.MIX:
            return True
        profile = cast("LmCodec", self._codec(frame.coding)).profile
        return frame.start + frame.size <= profile.model_tail_bytes

    def _decode_next(self, frame: Frame, primer: Primer) -> bytes | DamagedError:
        """A chunk of the primer that follows those before it, and leads the mixer on."""
        codec = cast("LmCodec | MixCodec", self._codec(frame.coding))
        is_mix = frame.coding.codec is CodecId.MIX
        after = primer.take(frame.size) if is_mix else codec.behind(primer, frame.start)
        decoded, state = _decode_on(codec, after, frame)
        chunk = self._checked(frame, decoded)
        if isinstance(chunk, bytes):
            if is_mix:
                primer.feed(chunk, state)
            else:
                primer.feed(chunk, led=state)
        else:
            primer.lost(frame.start, frame.size)
        return chunk

    def decode_unchecked(
        self, frames: Sequence[Frame], primer: Primer
    ) -> list[bytes | DamagedError]:
        """What each frame's codec makes of it, not yet compared with its checksum."""
        chunks: list[bytes | DamagedError] = [b""] * len(frames)
        for coding, follows in dict.fromkeys((frame.coding, frame.follows) for frame in frames):
            lanes = [i for i, f in enumerate(frames) if (f.coding, f.follows) == (coding, follows)]
            try:
                after = self._state(coding, follows, primer)
            except DamagedError as damage:
                for i in lanes:
                    chunks[i] = damage
                continue
            if follows < coding.primer_bytes:
                assert after is not None
                codec = cast("LmCodec | MixCodec", self._codec(coding))
                for i in lanes:
                    chunks[i], _ = _decode_on(codec, after.copy(), frames[i])
            else:
                self._decode_lanes(self._codec(coding), frames, lanes, chunks, after)
        return chunks

    def _state(self, coding: Coding, follows: int, primer: Primer) -> Mixer | None:
        """What chunks follow. raises: DamagedError if that is lost"""
        if coding.primer_bytes:
            if not primer.serves(follows):
                raise DamagedError("what it follows, the file's beginning, is lost")
            return cast("LmCodec | MixCodec", self._codec(coding)).behind(primer, follows)
        if coding.shared_id is not None:
            return shared_mixer(coding, self._model_search)
        return None

    def _start(self, coding: Coding) -> Mixer:
        """What the member's first chunk follows."""
        if coding.shared_id is not None:
            return shared_mixer(coding, self._model_search).copy()
        return self._mix_codec(coding).start()

    def _codec(self, coding: Coding) -> Codec:
        with self._lock:
            if coding not in self._codecs:
                self._codecs[coding] = open_codec(coding, self._model_search)
            return self._codecs[coding]

    def _mix_codec(self, coding: Coding) -> MixCodec:
        return cast("MixCodec", self._codec(coding))

    def _decode_lanes(
        self,
        codec: Codec,
        frames: Sequence[Frame],
        lanes: Sequence[int],
        chunks: list[bytes | DamagedError],
        after: Mixer | None,
    ) -> None:
        blobs, sizes = [frames[i].blob for i in lanes], [frames[i].size for i in lanes]
        try:
            decoded = codec.decode(blobs, sizes, after)
        except DamagedError as damage:
            # A codec refuses the batch for one bad lane: halves find it without decoding the
            # good ones one at a time.
            if len(lanes) == 1:
                chunks[lanes[0]] = damage
                return
            half = len(lanes) // 2
            self._decode_lanes(codec, frames, lanes[:half], chunks, after)
            self._decode_lanes(codec, frames, lanes[half:], chunks, after)
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


def _decode_on(
    codec: LmCodec | MixCodec, after: Mixer, frame: Frame
) -> tuple[bytes | DamagedError, Mixer | None]:
    """A chunk of the primer, which goes on with the state that it follows, and what is behind it.

    after: may be that, then
    """
    try:
        return codec.decode_on(after, frame.blob, frame.size)
    except DamagedError as damage:
        return damage, None
