"""Which codec each chunk gets: the one that makes it smallest, without waking the model in vain.

Owns: that choice, and the codings that a writer declares for it. Reading never asks this module.
A Chooser may be shared by threads.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lmfs.codecs.levels import DEFAULT_LEVEL, LEVELS
from lmfs.codecs.primer import Primer
from lmfs.codecs.threads import in_parallel
from lmfs.codecs.zstd import ZstdCodec
from lmfs.container import CodecId, Coding

if TYPE_CHECKING:
    from lmfs.codecs.lm import LmCodec
    from lmfs.codecs.mix import MixCodec
    from lmfs.models.package import ModelPackage
    from lmfs.native import Mixer
    from lmfs.profile import CoderProfile

# Below this predictions save fewer bytes than declaring them costs.
MIN_PREDICTED_BYTES = 256
# Where the model would code fewer of so many chunks than this share, it codes none: who reads such
# a text, a log mostly, is not to wait for the model because of its first chunk.
MIN_MODEL_CHUNKS, MIN_MODEL_SHARE = 8, 0.25
# The second half of a text's beginning shows what it is: prose, if the model makes that smaller by
# so much, which has a short primer, else a log.
LEAD_BYTES, MIN_MODEL_LEAD = 64 << 10, 0.05
# What is in a primer that the mixer codes: its tokens, and for each coded byte so many more. So
# much takes a quarter of a second to decode, on one core of a server of 2021.
COST_OF_CODED_BYTE, MAX_PRIMER_COST = 9, 256_000
# Of so many chunks, one shows whether any of them is to follow the primer.
SAMPLE_EVERY = 8
# A chunk of the primer goes on with what is before it if that makes it longer by this at most: who
# reads what follows then has to decode it only.
MAX_LEADING = 1.005
# Of text, at most this share is neither printable ASCII nor valid UTF-8 (old 8-bit texts pass).
MAX_STRANGE = 0.10

# In `codings`; the last one follows the shared primer alone.
_RAW, _ZSTD, _MIX, _LM, _LM_PRIMED, _LM_SHARED = range(6)

_TEXT = bytes([9, 10, 12, 13, 27, *range(32, 127), *range(128, 256)])


@dataclass
class _Coders:
    """What predicted chunks of a member are coded with; nothing: there are none."""

    ids: tuple[bytes, bytes] | None = None  # of the model and the profile
    mix: MixCodec | None = None
    lm: LmCodec | None = None


class _Tried(NamedTuple):
    """What was tried for a chunk: the numbers of its coding, and its blobs."""

    best: tuple[int, bytes]
    without_model: tuple[int, bytes]
    # Of a chunk of the primer, the model's blob behind what is before it: when such chunks are
    # decoded, the state of those that follow the primer is there.
    leading: bytes | None = None


class MemberPrimer(Primer):
    """What the chunks of a new member follow, and what they are coded with."""

    def __init__(self, limit: int, start: Callable[[], Mixer], coders: _Coders) -> None:
        super().__init__(limit, start)
        self.coders = coders


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
        zstd_level: instead of the level's
        primer_bytes: likewise, however long a reader then waits
        shared: the shared primer that chunks follow, its id and the state behind it, which is that
            of a level's `shared_coding`
        """
        self._level = LEVELS[level]
        self._zstd = ZstdCodec(self._level.zstd if zstd_level is None else zstd_level)
        self._is_bounded = primer_bytes is None
        self._primer_bytes = self._level.primer_bytes if primer_bytes is None else primer_bytes
        self._shared = shared
        self._prose = self._log = _Coders()  # the log's: also of what follows a shared primer
        if model is not None and self._level.mixer:
            from lmfs.profile import profile_by_number

            made = [profile_by_number(number) for number in self._level.profiles]
            self._prose = self._log = self._coders(model, made[0])
            if self._level.model:
                self._prose = self._coders(model, made[1])

    def _coders(self, model: ModelPackage, profile: CoderProfile) -> _Coders:
        from lmfs.codecs.mix import MixCodec

        lm = None
        if self._level.model:
            from lmfs.codecs.lm import LmCodec

            lm = LmCodec(model, profile)
        return _Coders((model.id, profile.id), MixCodec(model, profile), lm)

    def codings(self, primer: MemberPrimer) -> list[Coding]:
        """Those that `choose` names by number, for a member with this primer."""
        codings = [Coding(CodecId.RAW), Coding(CodecId.ZSTD)]
        if (ids := primer.coders.ids) is not None:
            follows = (primer.limit, self._shared[0] if self._shared else None)
            codings.append(Coding(CodecId.MIX, *ids, *follows))
            if primer.coders.lm is not None:
                codings.append(Coding(CodecId.LM, *ids))
                codings.append(Coding(CodecId.LM, *ids, *follows))
                if self._shared:
                    codings.append(Coding(CodecId.LM, *ids, 0, self._shared[0]))
        return codings

    @property
    def primer_bytes(self) -> int:
        """How much of its member's beginning a chunk follows; 0 without a mixer."""
        return self._primer_bytes if self._log.mix else 0

    def following(self, shared: tuple[bytes, Mixer]) -> Chooser:
        """This chooser, for members whose chunks follow this shared primer."""
        other = copy.copy(self)
        other._shared = shared
        return other

    def primer(self) -> MemberPrimer:
        """What the chunks of a new member follow, for `choose`."""
        if self._shared:
            return MemberPrimer(self.primer_bytes, self._shared[1].copy, self._log)
        return MemberPrimer(self.primer_bytes, lambda: _start(self._prose), self._prose)

    def start(self) -> Mixer:
        """What a shared primer is seen by, to be changed at will; only with a mixer."""
        return _start(self._log)

    def sizes(
        self, beginnings: Sequence[bytes], mixers: Sequence[Mixer], *, model: bool
    ) -> list[list[int]]:
        """How many bytes, about, each chunk gets: following nothing, then what each mixer has seen.

        beginnings: of different members, none empty
        model: whether the model may be tried as well; without it this is quick
        """
        afters = [None, *mixers]
        zstd = [len(blob) for blob in self._zstd.encode(beginnings)]
        found = [[size] * len(afters) for size in zstd]
        # What follows nothing is coded as whichever it is.
        behind = [(self._log, afters)]
        if self._prose is not self._log:
            behind.append((self._prose, [None]))
        for coders, each in behind:
            assert coders.mix is not None
            for k, after in enumerate(each):
                for sizes, blob in zip(found, coders.mix.encode(beginnings, after), strict=True):
                    sizes[k] = min(sizes[k], len(blob))
        for coders, each in behind:
            if not model or coders.lm is None:
                continue
            lanes = coders.lm.encode_after(beginnings, each)
            for sizes, lane in zip(found, lanes, strict=True):
                for k, blob in enumerate(lane):
                    least = min(len(lane[0]), len(blob))
                    if least <= (1 - self._level.model_gain) * sizes[k]:
                        sizes[k] = least
        return found

    def shared_coding(self, shared_id: bytes) -> Coding:
        """That of a chunk which follows this shared primer and is coded by the mixer."""
        assert self._log.ids is not None
        return Coding(CodecId.MIX, *self._log.ids, 0, shared_id)

    def cut(self, data: bytes, start: int, chunk_size: int) -> list[bytes]:
        """The chunks of what comes next in a member.

        start: so many bytes are before it; all chunks end at multiples of the chunk size, but for
            the last one and some of the first
        """
        first = min(chunk_size, self._level.first_chunk_bytes or chunk_size)
        chunks: list[bytes] = []
        at = 0
        while at < len(data):
            place = start + at
            size = chunk_size - place % chunk_size
            if place < LEAD_BYTES:
                size = min(size, first)
            chunks.append(data[at : at + size])
            at += size
        return chunks

    def choose(self, chunks: Sequence[bytes], primer: MemberPrimer) -> list[tuple[int, bytes]]:
        """For each chunk (none is empty) the number of its coding in `codings`, and its blob.

        chunks: of one member, in order, with no gap to those of the call before
        primer: that member's; with its first chunks it is decided how long it will be, and what
            all are coded with
        A blob is never empty and never longer than its chunk.
        """
        head = self._head(chunks, primer)
        tried = self._try(chunks[:head], primer)
        # Of a log the model codes the very beginning, where there is nothing yet to repeat.
        with_it = sum(len(each.best[1]) for each in tried[head // 2 :])
        without = sum(len(each.without_model[1]) for each in tried[head // 2 :])
        if head and with_it <= (1 - MIN_MODEL_LEAD) * without:
            tried = tried[: self._shorten(chunks, primer)]
        elif head:
            tried = self._as_log(chunks[:head], primer, tried)
            if self._is_bounded:
                most = self._most_primer_bytes(chunks[head // 2 : head], without, primer)
                most -= most % max(map(len, chunks))
                primer.shorten(max(primer.end, min(primer.limit, most)))
        tried += self._try(chunks[len(tried) :], primer)
        best = [each.best for each in tried]
        if not self._is_bounded or any(number == _LM_PRIMED for number, _ in best):
            for i, (number, blob) in enumerate(best):
                leading = tried[i].leading
                if leading and number == _LM and len(leading) <= MAX_LEADING * len(blob):
                    best[i] = _LM_PRIMED, leading
        predicted = sum(number >= _MIX for number, _ in best)
        if self._level.model_gain and predicted >= MIN_MODEL_CHUNKS:
            modelled = sum(number >= _LM for number, _ in best)
            if modelled < MIN_MODEL_SHARE * predicted:
                return [each.without_model for each in tried]
        return best

    def _head(self, chunks: Sequence[bytes], primer: MemberPrimer) -> int:
        """How many chunks show whether the primer is to be short."""
        limit = LEAD_BYTES if primer.coders.lm is None else self._level.model_primer_bytes
        if limit is None or limit >= primer.limit:
            return 0
        if primer.end or not chunks:
            return 0
        ends = itertools.accumulate(map(len, chunks))
        return max(1, sum(end <= LEAD_BYTES for end in ends))

    @staticmethod
    def _most_primer_bytes(chunks: Sequence[bytes], coded: int, primer: MemberPrimer) -> int:
        """How long the primer may be of a member that has these chunks, coded in so many bytes."""
        assert primer.coders.mix is not None
        vocabulary = primer.coders.mix.vocabulary
        tokens = sum(len(vocabulary.tokenize(chunk)) for chunk in chunks)
        cost = tokens + COST_OF_CODED_BYTE * coded
        return MAX_PRIMER_COST * sum(map(len, chunks)) // cost

    def _shorten(self, chunks: Sequence[bytes], primer: Primer) -> int:
        """Make the primer one that the model codes; how many of the first chunks are in it."""
        limit = self._level.model_primer_bytes
        if self._is_bounded and limit is not None:
            primer.shorten(min(primer.limit, limit))
        ends = itertools.accumulate(map(len, chunks))
        return sum(end <= primer.limit for end in ends)

    def _as_log(
        self, chunks: Sequence[bytes], primer: MemberPrimer, tried: list[_Tried]
    ) -> list[_Tried]:
        """The member's first chunks once more, coded as a log is, if they are not yet."""
        if primer.coders is self._log:
            return tried
        primer.coders = self._log
        primer.restart(lambda: _start(self._log))
        return self._try(chunks, primer, [each.best[0] >= _LM for each in tried])

    def _try(
        self, chunks: Sequence[bytes], primer: MemberPrimer, modelled: Sequence[bool] | None = None
    ) -> list[_Tried]:
        """What is tried for each of these chunks, which are `choose`'s.

        modelled: for which chunks the model is tried at all; None: any
        """
        mix, lm = primer.coders.mix, primer.coders.lm
        best = [(_RAW, chunk) for chunk in chunks]

        def offer(i: int, number: int, blob: bytes) -> None:
            if 0 < len(blob) < len(best[i][1]):
                best[i] = number, blob

        zstd = in_parallel(lambda chunk: self._zstd.encode([chunk])[0], chunks)
        for i, blob in enumerate(zstd):
            offer(i, _ZSTD, blob)
        if mix is None:
            return [_Tried(each, each) for each in best]
        texts = [
            i
            for i, chunk in enumerate(chunks)
            if len(chunk) >= MIN_PREDICTED_BYTES and looks_like_text(chunk)
        ]
        starts = [*itertools.accumulate(map(len, chunks), initial=primer.end)]
        primed = _mix_all(mix, chunks, texts, primer, offer)
        without_model = list(best)
        if lm is None:
            return [_Tried(each, each) for each in best]
        worth = [
            i
            for i in texts
            if (modelled is None or modelled[i])
            and len(best[i][1]) >= self._level.model_from * len(chunks[i])
        ]

        def offer_model(i: int, number: int, blob: bytes) -> None:
            if len(blob) <= (1 - self._level.model_gain) * len(best[i][1]):
                offer(i, number, blob)

        inside = [i for i in worth if i not in primed]
        leading: dict[int, bytes] = {}
        led = [i for i in inside if self._leads(lm, starts[i], starts[i + 1])]
        for i in led:
            blob, leading[i] = self._lead(lm, chunks[i], starts[i], primer)
            offer_model(i, _LM, blob)
        # Within the primer a chunk that the model codes otherwise follows nothing of it: whoever
        # reads what is behind would wait for one chunk after the other.
        others = [i for i in inside if i not in led]
        alone = [self._shared[1]] if self._shared else []
        trials = [(others, _LM_SHARED, alone)]
        behind_all = [i for i in worth if i in primed]
        behind = [lm.behind(primer, primer.limit)] if behind_all else []
        trials.append((behind_all, _LM_PRIMED, behind))
        for trial, following, afters in trials:
            if not trial:
                continue
            whole = following == _LM_PRIMED
            blobs = self._code(lm, [chunks[i] for i in trial], afters, whole=whole)
            follow = self._worth_following(blobs, whole=whole)
            for i, lane, follows in zip(trial, blobs, follow, strict=True):
                if follows:
                    offer_model(i, following, lane[1])
                else:
                    offer_model(i, _LM, lane[0])
        return [_Tried(each, without_model[i], leading.get(i)) for i, each in enumerate(best)]

    def _leads(self, lm: LmCodec, start: int, end: int) -> bool:
        """Whether a chunk there, in the primer, stays in it if that becomes short, and has a state
        behind it that is the primer's."""
        limit = self._level.model_primer_bytes
        if limit is None or end > lm.profile.model_tail_bytes:
            return False
        return start == 0 or end <= limit or not self._is_bounded

    @staticmethod
    def _lead(lm: LmCodec, chunk: bytes, start: int, primer: Primer) -> tuple[bytes, bytes]:
        """The model's blobs of the primer's chunk that begins there: following nothing, then going
        on with what is before it. The primer then knows the state behind it."""
        (alone, leading), led = lm.encode_on(chunk, [None, lm.behind(primer, start)])
        primer.led(start + len(chunk), led)
        return alone, leading

    def _code(
        self, lm: LmCodec, chunks: Sequence[bytes], afters: Sequence[Mixer], *, whole: bool
    ) -> list[list[bytes]]:
        """For each chunk a blob of the model that follows nothing, and one behind `afters`.

        The latter only of some chunks where these show that none is to follow the whole primer.
        """
        for_all = whole and self._level.primer_gain_of_all
        if not for_all or len(chunks) < 2 * SAMPLE_EVERY:
            return lm.encode_after(chunks, [None, *afters])
        sample = lm.encode_after(chunks[::SAMPLE_EVERY], [None, *afters])
        more = afters if any(self._worth_following(sample, whole=True)) else []
        others = [chunk for i, chunk in enumerate(chunks) if i % SAMPLE_EVERY]
        coded = lm.encode_after(others, [None, *more])
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


def _start(coders: _Coders) -> Mixer:
    assert coders.mix is not None
    return coders.mix.start()


def _mix_all(
    mix: MixCodec,
    chunks: Sequence[bytes],
    texts: Sequence[int],
    primer: Primer,
    offer: Callable[[int, int, bytes], None],
) -> Sequence[int]:
    """Code the chunks that are text with the mixer, and feed the primer.

    Which of them follow the whole primer.
    """
    primed = texts
    for i, chunk in enumerate(chunks):
        if primer.complete:
            break
        primed = [k for k in texts if k > i]
        if i not in texts:
            primer.feed(chunk)
            continue
        mixer = primer.take(len(chunk))
        offer(i, _MIX, mix.encode_on(chunk, mixer))
        primer.feed(chunk, mixer)
    after = primer.mixer(primer.limit) if primed else None
    mixed = mix.encode([chunks[i] for i in primed], after)
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


def default_chooser(level: int = DEFAULT_LEVEL, *, primer_bytes: int | None = None) -> Chooser:
    """All codecs of a level, with the model that lmfs ships where the level has use for it.

    primer_bytes: as of Chooser

    raises: ModelError if that model is not what it should be
    """
    if not LEVELS[level].mixer:
        return Chooser(None, level)
    from lmfs.models import registry

    return Chooser(registry.shipped(), level, primer_bytes=primer_bytes)
