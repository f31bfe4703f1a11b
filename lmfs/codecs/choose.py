"""Which codec each chunk gets: the one that makes it smallest, without waking the model in vain.

Owns: that choice, and the codings that a writer declares for it. Reading never asks this module.
A Chooser may be shared by threads.
"""

from __future__ import annotations

import copy
import itertools
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmfs.codecs.primer import Primer
from lmfs.codecs.threads import in_parallel
from lmfs.codecs.zstd import ZstdCodec
from lmfs.container import MAX_PRIMER_LENGTHS, CodecId, Coding

if TYPE_CHECKING:
    from lmfs.codecs.lm import LmCodec
    from lmfs.codecs.mix import MixCodec
    from lmfs.models.package import ModelPackage
    from lmfs.native import Mixer

# Below this predictions save fewer bytes than declaring them costs.
MIN_PREDICTED_BYTES = 256
# Where the model would code fewer of so many chunks than this share, it codes none: who reads such
# a text, a log mostly, is not to wait for the model because of its first chunk.
MIN_MODEL_CHUNKS, MIN_MODEL_SHARE = 8, 0.25
# The second half of a text's beginning shows how long its primer may be: a short one if the model
# makes that smaller by so much, half of it where the mixer leaves so much, which takes long as well.
LEAD_BYTES, MIN_MODEL_LEAD, DENSE_SHARE = 64 << 10, 0.05, 0.15
# Of so many chunks, one shows whether any of them is to follow the primer.
SAMPLE_EVERY = 8
# Of text, at most this share is neither printable ASCII nor valid UTF-8 (old 8-bit texts pass).
MAX_STRANGE = 0.10

# In `codings`: the last is the first of those that follow a part of the primer, and behind these
# comes the one that follows the shared primer alone.
_RAW, _ZSTD, _MIX, _LM, _LM_PRIMED, _LM_STEPS = range(6)

_TEXT = bytes([9, 10, 12, 13, 27, *range(32, 127), *range(128, 256)])


@dataclass(frozen=True)
class Level:
    """What is tried for a chunk."""

    zstd: int  # zstd's own level
    primer_bytes: int = 0  # every chunk follows so much of its file's beginning
    mixer: bool = False
    model: bool = False
    # Of what the mixer alone makes smaller than this share, the model is not tried: such chunks
    # live on their own repetition.
    model_from: float = 0.0
    # The model must make a chunk smaller by so much to be worth the time that reading it takes.
    model_gain: float = 0.0
    # The primer's length where the model codes it, or one chunk: who reads what follows waits for
    # all of it.
    model_primer_bytes: int | None = None
    # A chunk of the primer that the model codes follows so much of it, or twice, four times, ...
    # so much, as far as that is before it; None: nothing of it.
    first_step_bytes: int | None = None
    # With a model, a chunk follows its file's beginning only if that saves so much.
    primer_gain: float = 0.01
    # And if that saves so much of all chunks of a batch: one that follows makes its reader wait for
    # the primer, a second where the model codes that.
    primer_gain_of_all: float = 0.0
    large: bool = False  # a mixer that remembers long primers, in tens of megabytes
    # The model's chunks are made for who reads at random: twice as quick, 1 % longer.
    strands: bool = False


def _with_model(*, model_from: float, model_gain: float) -> Level:
    return Level(
        *(19, 256 << 10),
        mixer=True,
        model=True,
        model_primer_bytes=32 << 10,
        primer_gain_of_all=0.005,
        strands=True,
        model_from=model_from,
        model_gain=model_gain,
    )


LEVELS = {
    1: Level(3),
    2: Level(19),
    3: Level(19, 64 << 10, mixer=True),
    4: Level(19, 256 << 10, mixer=True),
    5: _with_model(model_from=0.12, model_gain=0.15),
    6: _with_model(model_from=0.06, model_gain=0.03),
    7: _with_model(model_from=0.03, model_gain=0.01),
    8: Level(19, 512 << 10, mixer=True, model=True, first_step_bytes=64 << 10),
    9: Level(
        *(22, 1024 << 10),
        mixer=True,
        model=True,
        first_step_bytes=64 << 10,
        primer_gain=0.003,
        large=True,
    ),
}
DEFAULT_LEVEL = 6


class Chooser:
    """Codes batches of chunks, each with the codec that makes it smallest."""

    def __init__(
        self,
        model: ModelPackage | None = None,
        level: int = DEFAULT_LEVEL,
        *,
        zstd_level: int | None = None,
        primer_bytes: int | None = None,
        shared: tuple[bytes, Mixer] | None = None,
    ) -> None:
        """
        model: None: raw and zstd only
        level: a key of LEVELS
        zstd_level, primer_bytes: instead of the level's
        shared: the shared primer that chunks follow, its id and the state behind it
        """
        self._level = LEVELS[level]
        self._zstd = ZstdCodec(self._level.zstd if zstd_level is None else zstd_level)
        self._primer_bytes = self._level.primer_bytes if primer_bytes is None else primer_bytes
        self._shared = shared
        self._mix: MixCodec | None = None
        self._lm: LmCodec | None = None
        self._ids: tuple[bytes, bytes] | None = None  # of the model and the profile
        if model is not None and self._level.mixer:
            from lmfs.codecs.mix import MixCodec
            from lmfs.profile import profile_2, profile_4, profile_5

            small = profile_5 if self._level.strands else profile_2
            profile = profile_4() if self._level.large else small()
            self._mix = MixCodec(model, profile)
            self._ids = model.id, profile.id
            if self._level.model:
                from lmfs.codecs.lm import LmCodec

                self._lm = LmCodec(model, profile)

    def codings(self, primer: Primer) -> list[Coding]:
        """Those that `choose` names by number, for a member with this primer."""
        codings = [Coding(CodecId.RAW), Coding(CodecId.ZSTD)]
        if self._ids is not None:
            follows = (primer.limit, self._shared[0] if self._shared else None)
            codings.append(Coding(CodecId.MIX, *self._ids, *follows))
            if self._lm is not None:
                codings.append(Coding(CodecId.LM, *self._ids))
                codings.append(Coding(CodecId.LM, *self._ids, *follows))
                codings += [
                    Coding(CodecId.LM, *self._ids, step, follows[1]) for step in self._steps(primer)
                ]
                if self._shared:
                    codings.append(Coding(CodecId.LM, *self._ids, 0, self._shared[0]))
        return codings

    def _steps(self, primer: Primer) -> list[int]:
        """The lengths of the parts of the primer that are followed as well, ascending."""
        step = self._level.first_step_bytes
        steps: list[int] = []
        while step is not None and step < primer.limit and len(steps) < MAX_PRIMER_LENGTHS - 1:
            steps.append(step)
            step *= 2
        return steps

    @property
    def primer_bytes(self) -> int:
        """How much of its member's beginning a chunk follows; 0 without a mixer."""
        return self._primer_bytes if self._mix else 0

    def following(self, shared: tuple[bytes, Mixer]) -> Chooser:
        """This chooser, for members whose chunks follow this shared primer."""
        other = copy.copy(self)
        other._shared = shared
        return other

    def primer(self) -> Primer:
        """What the chunks of a new member follow, for `choose`."""
        return Primer(self.primer_bytes, self.start)

    def start(self) -> Mixer:
        """What a new member's chunks follow, to be changed at will; only with a mixer."""
        assert self._mix is not None
        return self._shared[1].copy() if self._shared else self._mix.start()

    def sizes(
        self, beginnings: Sequence[bytes], mixers: Sequence[Mixer], *, model: bool
    ) -> list[list[int]]:
        """How many bytes each chunk gets: following nothing, then what each mixer has seen.

        beginnings: of different members, none empty
        model: whether the model may be tried as well; without it this is quick
        """
        assert self._mix is not None
        afters = [None, *mixers]
        zstd = [len(blob) for blob in self._zstd.encode(beginnings)]
        found = [[size] * len(afters) for size in zstd]
        for k, after in enumerate(afters):
            for sizes, blob in zip(found, self._mix.encode(beginnings, after), strict=True):
                sizes[k] = min(sizes[k], len(blob))
        if model and self._lm is not None:
            lanes = self._lm.encode_after(beginnings, afters)
            for sizes, lane in zip(found, lanes, strict=True):
                for k, blob in enumerate(lane):
                    least = min(len(lane[0]), len(blob))
                    if least <= (1 - self._level.model_gain) * sizes[k]:
                        sizes[k] = least
        return found

    def shared_coding(self, shared_id: bytes) -> Coding:
        """That of a chunk which follows this shared primer and is coded by the mixer."""
        assert self._ids is not None
        return Coding(CodecId.MIX, *self._ids, 0, shared_id)

    def choose(self, chunks: Sequence[bytes], primer: Primer) -> list[tuple[int, bytes]]:
        """For each chunk (none is empty) the number of its coding in `codings`, and its blob.

        chunks: of one member, in order, with no gap to those of the call before
        primer: that member's; with its first chunks it is decided how long it will be
        A blob is never empty and never longer than its chunk.
        """
        head = self._head(chunks, primer)
        tried = self._try(chunks[:head], primer)
        # Of a log the model codes the very beginning, where there is nothing yet to repeat.
        with_it, without = (sum(len(b) for _, b in some[head // 2 :]) for some in tried)
        if head and with_it <= (1 - MIN_MODEL_LEAD) * without:
            head = self._shorten(chunks, primer)
        elif without > DENSE_SHARE * sum(map(len, chunks[head // 2 : head])):
            primer.shorten(max(primer.end, primer.limit // 2))
        rest = self._try(chunks[head:], primer)
        best, without_model = (some[:head] + more for some, more in zip(tried, rest, strict=True))
        predicted = sum(number >= _MIX for number, _ in best)
        if self._level.model_gain and predicted >= MIN_MODEL_CHUNKS:
            modelled = sum(number >= _LM for number, _ in best)
            if modelled < MIN_MODEL_SHARE * predicted:
                return without_model
        return best

    def _head(self, chunks: Sequence[bytes], primer: Primer) -> int:
        """How many chunks show whether the primer is to be short."""
        limit = self._level.model_primer_bytes
        if self._lm is None or limit is None or limit >= primer.limit:
            return 0
        if primer.end or not chunks:
            return 0
        ends = itertools.accumulate(map(len, chunks))
        return max(1, sum(end <= LEAD_BYTES for end in ends))

    def _shorten(self, chunks: Sequence[bytes], primer: Primer) -> int:
        """Make the primer one that the model codes; how many of these chunks are in it."""
        limit = self._level.model_primer_bytes
        assert limit is not None
        primer.shorten(min(primer.limit, max(limit, len(chunks[0]))))
        ends = itertools.accumulate(map(len, chunks))
        return sum(end <= primer.limit for end in ends)

    def _try(
        self, chunks: Sequence[bytes], primer: Primer
    ) -> tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]]:
        """What `choose` returns, with the model and without it."""
        best = [(_RAW, chunk) for chunk in chunks]

        def offer(i: int, number: int, blob: bytes) -> None:
            if 0 < len(blob) < len(best[i][1]):
                best[i] = number, blob

        zstd = in_parallel(lambda chunk: self._zstd.encode([chunk])[0], chunks)
        for i, blob in enumerate(zstd):
            offer(i, _ZSTD, blob)
        if self._mix is None:
            return best, list(best)
        texts = [
            i
            for i, chunk in enumerate(chunks)
            if len(chunk) >= MIN_PREDICTED_BYTES and looks_like_text(chunk)
        ]
        starts = [*itertools.accumulate(map(len, chunks), initial=primer.end)]
        primed = self._mix_all(chunks, texts, primer, offer)
        without_model = list(best)
        if self._lm is None:
            return best, without_model
        worth = [i for i in texts if len(best[i][1]) >= self._level.model_from * len(chunks[i])]
        # Within the primer a chunk that the model codes follows a part of it at most: whoever
        # reads what is behind would wait for one chunk after the other.
        steps = self._steps(primer)
        places = {i: bisect_right(steps, starts[i]) for i in worth if i not in primed}
        alone = [self._shared[1]] if self._shared else []
        trials = [([i for i in places if not places[i]], _LM_STEPS + len(steps), alone)]
        for k, step in enumerate(steps):
            inside = [i for i in places if places[i] == k + 1]
            behind = [self._lm.behind(primer, step)] if inside else []
            trials.append((inside, _LM_STEPS + k, behind))
        behind_all = [i for i in worth if i in primed]
        behind = [self._lm.behind(primer, primer.limit)] if behind_all else []
        trials.append((behind_all, _LM_PRIMED, behind))
        for trial, following, afters in trials:
            if not trial:
                continue
            whole = following == _LM_PRIMED
            blobs = self._code([chunks[i] for i in trial], afters, whole=whole)
            follow = self._worth_following(blobs, whole=whole)
            for i, lane, follows in zip(trial, blobs, follow, strict=True):
                most = (1 - self._level.model_gain) * len(best[i][1])
                number, blob = (following, lane[1]) if follows else (_LM, lane[0])
                if len(blob) <= most:
                    offer(i, number, blob)
        return best, without_model

    def _code(
        self, chunks: Sequence[bytes], afters: Sequence[Mixer], *, whole: bool
    ) -> list[list[bytes]]:
        """For each chunk a blob of the model that follows nothing, and one behind `afters`.

        The latter only of some chunks where these show that none is to follow the whole primer.
        """
        assert self._lm is not None
        for_all = whole and self._level.primer_gain_of_all
        if not for_all or len(chunks) < 2 * SAMPLE_EVERY:
            return self._lm.encode_after(chunks, [None, *afters])
        sample = self._lm.encode_after(chunks[::SAMPLE_EVERY], [None, *afters])
        more = afters if any(self._worth_following(sample, whole=True)) else []
        others = [chunk for i, chunk in enumerate(chunks) if i % SAMPLE_EVERY]
        coded = self._lm.encode_after(others, [None, *more])
        for k, lane in enumerate(sample):
            coded.insert(k * SAMPLE_EVERY, lane)
        return coded

    def _worth_following(self, lanes: Sequence[Sequence[bytes]], *, whole: bool) -> list[bool]:
        """Which chunks that the model codes are to follow their file's beginning.

        lanes: of each chunk its blob, and behind it the one that follows, if there is such
        whole: whether that is the whole primer
        """
        # A chunk that follows nothing survives what happens to what others follow.
        least = 1 - self._level.primer_gain
        follow = [len(lane) > 1 and len(lane[1]) <= least * len(lane[0]) for lane in lanes]
        if whole:
            alone = sum(len(lane[0]) for lane in lanes)
            chosen = sum(len(lane[follows]) for lane, follows in zip(lanes, follow, strict=True))
            if chosen > (1 - self._level.primer_gain_of_all) * alone:
                return [False] * len(lanes)
        return follow

    def _mix_all(
        self,
        chunks: Sequence[bytes],
        texts: Sequence[int],
        primer: Primer,
        offer: Callable[[int, int, bytes], None],
    ) -> Sequence[int]:
        """Code the chunks that are text with the mixer, and feed the primer.

        Which of them follow the whole primer.
        """
        assert self._mix is not None
        primed = texts
        for i, chunk in enumerate(chunks):
            if primer.complete:
                break
            primed = [k for k in texts if k > i]
            if i not in texts:
                primer.feed(chunk)
                continue
            mixer = primer.mixer(primer.end).copy()
            offer(i, _MIX, self._mix.encode_on(mixer, chunk))
            primer.feed(chunk, mixer)
        after = primer.mixer(primer.limit) if primed else None
        mixed = self._mix.encode([chunks[i] for i in primed], after)
        for i, blob in zip(primed, mixed, strict=True):
            offer(i, _MIX, blob)
        return primed


def looks_like_text(chunk: bytes) -> bool:
    """A cheap guess, with no false "no" for UTF-8 text."""
    if b"\0" in chunk:
        return False
    strange = len(chunk.translate(None, _TEXT))
    if not chunk.isascii():
        strange += len(chunk) - len(chunk.decode("utf-8", "ignore").encode())
    return strange <= MAX_STRANGE * len(chunk)


def default_chooser(level: int = DEFAULT_LEVEL) -> Chooser:
    """All codecs of a level, with the model that lmfs ships where the level has use for it.

    raises: ModelError if that model is not what it should be
    """
    if not LEVELS[level].mixer:
        return Chooser(None, level)
    from lmfs.models import registry

    return Chooser(registry.shipped(), level)
