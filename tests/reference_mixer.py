"""The mixer once more, from its specification: slow, in Python's integers.

Where lmfs.native keeps what it knows of words, columns and fields as bytes arrive, this looks the
text up again before every token; where lmfs.native has arrays of slots, this has dictionaries;
where it tells from the coder's last state whether a blob is the right one, this writes the blob of
the same decisions and compares. Nothing is shared but the numbers below and the profile's data.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import mul

import numpy as np
from numpy.typing import NDArray
from reference_coder import Interval, Logits, Table, cumulative, tokenize

# What lmfs/native/mixer.hpp fixes, and what tools/mixer.py lays out; to be changed with them.
CONTEXTS = 24
RUN_CONTEXTS = (1, 2, 4, 8, 9, 3, 5, 10, 11, 7)  # the context of each run
RUNS_OF_NODES = 5
MIN_MATCH = (5, 2)  # tokens, of each match
RUNS, MATCHES = len(RUN_CONTEXTS), len(MIN_MATCH)
VOTES = MATCHES + RUNS
INPUTS = 2 * CONTEXTS + MATCHES + RUNS_OF_NODES + 1
GUESS_INPUTS = 16
GUESS_CONSTANT = 256
GUESS_FROM = 1 << 30  # of a vote's counter
RUNS_OF_SET = 8
SETS = 3
LEVELS_OF_SLOT = 3
GROUPS = 4
SIZES = (17, 14, 15)  # powers of two: slots, runs of a context, places of a match; profile 2's
MAX_STRETCH = 2047
WEIGHT_BITS = 13
KNOTS = 33
COUNT_LIMIT = 255
LONGEST_COMMON = 32
BEFORE = 8  # tokens 0 that stand before the first; that many stand before each strand

TABLES = np.dtype(
    [
        ("stretch", "<i2", 3 * 4096),
        ("squash", "<u4", 4096),
        ("reciprocal", "<u2", 1024),
        ("next", "u1", (2, 256)),
        ("seen", "u1", 256),
    ]
)
ADAPTIVE = np.dtype(
    [
        ("history", "<u4", (CONTEXTS, GROUPS, 256)),
        ("match", "<u4", (MATCHES, 16, 8)),
        ("run", "<u4", (RUNS_OF_NODES, 2, 256)),
        ("vote_match", "<u4", (MATCHES, 16, 8)),
        ("vote_run", "<u4", (RUNS, 256)),
        ("guess_match", "<u4", (MATCHES, 2, 16, 8)),
        ("guess_run", "<u4", (RUNS, 2, 256)),
        ("by_vote", "<i2", (2, VOTES, 16, GUESS_INPUTS)),
        ("by_count", "<i2", (2, 12, 12, GUESS_INPUTS)),
        ("by_voters", "<i2", (2, 2, 1 << RUNS_OF_SET, GUESS_INPUTS)),
        ("by_guess", "<u2", (1024, KNOTS)),
        ("by_against", "<u2", (VOTES, 16, KNOTS)),
        ("by_match", "<i2", (2, 16, GROUPS, 2, INPUTS)),
        ("by_order", "<i2", (2, 6, 8, GROUPS, INPUTS)),
        ("by_level", "<i2", (16, CONTEXTS + 1, 2, INPUTS)),
        ("final", "<i2", (2, 16, 4, SETS + 1)),
        ("by_node", "<u2", (2048, KNOTS)),
        ("by_expected", "<u2", (16, 2, 16, KNOTS)),
        ("by_token", "<u2", (1024, KNOTS)),
    ]
)
COUNTERS = ("history", "match", "run", "vote_match", "vote_run", "guess_match", "guess_run")
WEIGHTS = ("by_match", "by_order", "by_level", "final", "by_vote", "by_count", "by_voters")
MAPS = ("by_node", "by_expected", "by_token", "by_guess", "by_against")

# (other, p1, whether it is a guess) -> the bit: is the token `other`; or that or one behind it?
Decide = Callable[[int, int, bool], bool]


def answer(token: int, other: int, guess: bool) -> bool:
    return token == other if guess else token >= other


def split(data: bytes) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """A profile's data as tables and adaptive state, both copies of shape ()."""
    tables = np.frombuffer(data[: TABLES.itemsize], TABLES)[0].copy()
    return tables, np.frombuffer(data[TABLES.itemsize :], ADAPTIVE)[0].copy()


def clamp(value: int, low: int, high: int) -> int:
    return low if value < low else high if value > high else value


def hash32(a: int, b: int) -> int:
    h = (a * 0x9E3779B1 ^ (b + 0x7F4A7C15) * 0x85EBCA6B) & 0xFFFFFFFF
    h = (h ^ h >> 15) * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ h >> 13


def hashed(seed: int, values: bytes | Sequence[int]) -> int:
    for value in values:
        seed = hash32(seed, value)
    return seed


def in_word(byte: int) -> bool:
    return byte >= 128 or chr(byte).isalnum()


def length_class(length: int) -> int:
    """0 to 7 each, then two of 4, two of 8, one each up to 64, 128 and 256, and the rest."""
    if length < 8:
        return length
    return 8 + sum(length >= step for step in (12, 16, 24, 32, 64, 128, 256))


def four_bytes(text: bytes | bytearray, at: int, end: int) -> int:
    return int.from_bytes(text[at : min(at + 4, max(at, end))], "little")


def shape(text: bytes | bytearray) -> int:
    """The hash of a text in which every number is one digit."""
    return hashed(0, re.sub(rb"[0-9]+", b"0", text))


@dataclass
class Slot:
    check: int = 0
    history: list[int] = field(default_factory=lambda: [0] * 7)


@dataclass
class Run:
    check: int = 0
    history: int = 0
    token: int = 0


@dataclass
class Match:
    at: int = 0
    length: int = 0
    misses: int = 0


@dataclass
class Voter:
    """Something that expects a token, for as long as the path leads there."""

    token: int
    counter: list[list[int]]  # by what `row` gives for a level; then by `place`
    row: Callable[[int], int]
    place: int
    holds: bool


@dataclass
class Vote:
    """What is expected of the whole token, and what was learned of such votes."""

    token: int
    right: list[int]  # counters of such votes being right
    guesses: list[list[int]]  # of guesses being right, by whether the vote agrees with them
    place: int  # in each of these
    holds: bool


@dataclass(eq=False)
class Strand:
    """A text that goes on beside others: what is not common to all of them."""

    text: bytearray
    end: int  # the number of its next token
    matches: list[Match]


class Mixer:
    """data: a profile's tables and adaptive state; spellings: the vocabulary's, sorted"""

    def __init__(
        self, data: bytes, spellings: Sequence[bytes], sizes: tuple[int, int, int] = SIZES
    ) -> None:
        tables, adaptive = split(data)
        self.slot_bits, self.run_bits, self.place_bits = sizes
        self.spellings = spellings
        self.tables = {name: tables[name].tolist() for name in TABLES.names or ()}
        self.state = {name: adaptive[name].tolist() for name in ADAPTIVE.names or ()}
        self.behind: Mixer | None = None  # what is not found here is looked for there
        self.evictions = 0  # of slots that had been used
        self.fetched = 0  # slots and runs, from behind
        self.saturations = 0  # of weights
        self.guesses = [0, 0]  # wrong and right
        self.forget()

    def forget(self) -> None:
        self.slots: dict[int, Slot] = {}
        self.runs: dict[tuple[int, int], Run] = {}
        self.places: list[dict[int, int]] = [{} for _ in MIN_MATCH]
        self.strands = [Strand(bytearray(b"\n"), BEFORE, [Match() for _ in MIN_MATCH])]
        self.strand = self.strands[0]  # whose turn it is
        self.tokens: defaultdict[int, int] = defaultdict(int)  # by their numbers, of all strands
        self.contradicts = False  # some path led to what had just been denied

    def branch(self, lane: tuple[int, int, int], strands: int = 1) -> Mixer:
        """What one chunk that follows this is coded with. It does not change this."""
        other = copy.copy(self)
        other.state = copy.deepcopy(self.state)
        other.forget()
        other.strands = copy.deepcopy(self.strands)
        (other.strand,) = other.strands
        other.tokens = self.tokens.copy()
        more = (strands - 1).bit_length()
        other.slot_bits, other.run_bits, other.place_bits = (bits + more for bits in lane)
        other.behind = self
        return other

    @property
    def text(self) -> bytearray:
        return self.strand.text

    @property
    def matches(self) -> list[Match]:
        return self.strand.matches

    def last(self, k: int) -> int:
        """The k-th last token; 1 is the one just before."""
        return self.tokens[self.strand.end - k]

    def split(self, strands: int, size: int) -> None:
        """A chunk of so many bytes begins, in so many strands."""
        (one,) = self.strands
        room = size // strands + 1 + BEFORE
        for k in range(1, strands):
            end = one.end + k * room
            for before in range(1, BEFORE + 1):
                self.tokens[end - before] = self.last(before)
            self.strands.append(
                Strand(bytearray(one.text), end, [replace(match) for match in one.matches])
            )

    def join(self) -> None:
        """The chunk is over; what follows goes on behind its last strand."""
        self.strand = self.strands[-1]
        self.strands = [self.strand]
        for number in [k for k in self.tokens if k >= self.strand.end]:
            del self.tokens[number]

    def adaptive(self) -> bytes:
        """What was learned, as the profile would store it."""
        result = np.zeros((), ADAPTIVE)
        for name, values in self.state.items():
            result[name] = values
        return result.tobytes()

    # -- contexts, from nothing but the text and the tokens

    def contexts(self, guessed: int | None = None) -> list[int]:
        """guessed: the wrong guess, if there was one"""
        text = self.text
        line = text.rfind(b"\n") + 1
        above = text.rfind(b"\n", 0, line - 1) + 1
        fields, fields_above = self.fields(line, len(text)), self.fields(above, line)
        number = len(fields) - 1
        offset = len(text) - fields[-1]
        over = 0  # what stands above, at this place of the same field
        if number < len(fields_above):
            over = four_bytes(text, fields_above[number] + offset, line)
        # A field's hash begins with what separates it from the one before.
        begins = text[fields[-1] - 1] if number else 0
        this_field = hashed(begins, text[fields[-1] :])
        first_field = hashed(0, text[line : fields[1] - 1]) if number else 0
        word, word_before = self.words()
        this_shape, shape_before, shape_before_that = self.shapes()

        last = [self.last(k) + 1 for k in range(1, 7)]
        by_order = [hashed(0, last[:k]) for k in range(7)]
        found = [
            *by_order[:5],
            by_order[6],
            hash32(hash32(shape_before, shape_before_that), this_shape),
            hash32(word, word_before),
            hash32(over, last[0]),
            hash32(over & 0xFFFFFF, hash32(number, this_field)),
            hash32(hash32(this_field, number), first_field),
            hash32(shape(text[line:]), 1),
        ]
        wrong = 0 if guessed is None else guessed + 1
        found += [
            hash32(wrong, last[0]),
            hash32(hash32(wrong, number), this_field),
            hash32(wrong, shape(text[line:])),
            hash32(hash32(wrong, last[0]), last[1]),
            hash32(wrong, first_field),
            hash32(wrong, hash32(word, word_before)),
            hash32(hash32(wrong, number), first_field),
            hash32(hash32(shape_before, this_shape), number),
            hash32(wrong, 1),
            hash32(hash32(wrong, last[1]), last[2]),
            hash32(last[0], last[2]),
            hash32(last[1], last[2]),
        ]
        return [hash32(h, 0x9E37 * (k + 1)) for k, h in enumerate(found)]

    def fields(self, begin: int, end: int) -> list[int]:
        """Where the fields of a line begin: at its beginning and behind what is in no word."""
        line = self.text[begin:end].rstrip(b"\n")
        return [begin] + [begin + i + 1 for i, byte in enumerate(line) if not in_word(byte)]

    def words(self) -> tuple[int, int]:
        """Hashes of the word that the text ends with and of the last one that is over."""
        found: list[int] = []
        end = len(self.text)
        while len(found) < 2:
            begin = end
            while begin > 0 and in_word(self.text[begin - 1]):
                begin -= 1
            if begin < end or not found:  # only the word at the text's end may be of no bytes
                found.append(hashed(0, bytes(byte | 32 for byte in self.text[begin:end])))
            if begin == 0:
                break
            end = begin - 1
        return found[0], found[1] if len(found) > 1 else 0

    def shapes(self) -> tuple[int, int, int]:
        """Those of the field that the text ends in and of the two before it, wherever their lines.

        What ends a field is part of its shape.
        """
        end = len(self.text)
        begins = [end]
        while len(begins) < 4:
            begin = begins[-1] - (len(begins) > 1)  # behind what ends the field, then before it
            while begin > 1 and in_word(self.text[begin - 1]):
                begin -= 1
            begins.append(max(begin, 1))  # the text's own first byte belongs to nothing
        pieces = [self.text[begin:end] for end, begin in itertools.pairwise(begins)]
        return shape(pieces[0]), shape(pieces[1]), shape(pieces[2])

    # -- what is looked up

    def slot(self, h: int) -> Slot:
        check = max(h & 255, 1)
        places = [h >> 32 - self.slot_bits ^ other for other in (0, 1, 2)]
        near = [self.slots.get(place) or self.slots.setdefault(place, Slot()) for place in places]
        for slot in near:
            if slot.check == check:
                return slot
        least = min(near, key=lambda slot: int(self.tables["seen"][slot.history[0]]))
        self.evictions += least.check != 0
        least.check, least.history = check, [0] * 7
        if self.behind:
            start = h >> 32 - self.behind.slot_bits
            for place in (start, start ^ 1, start ^ 2):
                known = self.behind.slots.get(place)
                if known and known.check == check:
                    least.history = known.history.copy()
                    self.fetched += 1
                    break
        return least

    def run(self, k: int, context: int) -> Run:
        h = hash32(context, 77)
        run = self.runs.setdefault((k, h >> 32 - self.run_bits), Run())
        if run.check != h & 255 or not run.history:
            run.check, run.history, run.token = h & 255, 0, 0
            known = self.behind and self.behind.runs.get((k, h >> 32 - self.behind.run_bits))
            if known and known.check == h & 255:
                run.history, run.token = known.history, known.token
                self.fetched += 1
        return run

    # -- arithmetic

    def stretch(self, p16: int) -> int:
        if p16 < 4096:
            place = 4096 + p16
        elif p16 >= 65536 - 4096:
            place = 8192 + 65535 - p16
        else:
            place = p16 // 16
        return int(self.tables["stretch"][place])

    def squash(self, stretched: int) -> int:
        return int(self.tables["squash"][stretched + MAX_STRETCH + 1])

    def count(self, counters: list[int], place: int, bit: bool) -> None:
        p, seen = counters[place] >> 10, counters[place] & 1023
        target = (1 << 22) - 1 if bit else 0
        p += (target - p) * int(self.tables["reciprocal"][seen]) >> 16
        counters[place] = p << 10 | min(seen + 1, COUNT_LIMIT)

    def weight(self, value: int) -> int:
        saturated = clamp(value, -32768, 32767)
        self.saturations += saturated != value
        return saturated

    # -- a token

    def token(self, decide: Decide, sums: Sequence[int] | None = None) -> int:
        """The next one. sums: the model's cumulative frequencies, where a model runs."""
        contexts = self.contexts()
        runs = [self.run(k, contexts[context]) for k, context in enumerate(RUN_CONTEXTS)]
        votes = self.votes(runs)
        counters = [vote.right[vote.place] if vote.holds else 0 for vote in votes]
        best = counters.index(max(counters))
        token = None
        if counters[best] >= GUESS_FROM:
            token = votes[best].token
            right = self.guess(votes, best, runs, decide, sums)
            self.guesses[right] += 1
            if not right:
                guessed, token = token, self.path(votes, token, decide, sums)
                self.contradicts = self.contradicts or token == guessed
        else:
            token = self.path(votes, None, decide, sums)
        for vote in votes:
            if vote.holds:
                self.count(vote.right, vote.place, vote.token == token)
        for run in runs:
            same = run.history == 0 or run.token == token
            run.history, run.token = self.tables["next"][same][run.history], token
        self.remember(token)
        turn = self.strands.index(self.strand)
        self.strand = self.strands[(turn + 1) % len(self.strands)]
        return token

    def votes(self, runs: Sequence[Run]) -> list[Vote]:
        state = self.state
        found = []
        for k, match in enumerate(self.matches):
            found.append(
                Vote(
                    self.tokens[match.at],
                    state["vote_match"][k][length_class(match.length)],
                    [same[length_class(match.length)] for same in state["guess_match"][k]],
                    min(match.misses, 7),
                    match.at != 0,
                )
            )
        if self.matches[0].at == self.matches[1].at:
            found[1].holds = False
        for k, run in enumerate(runs):
            found.append(
                Vote(
                    run.token,
                    state["vote_run"][k],
                    state["guess_run"][k],
                    run.history,
                    run.history != 0,
                )
            )
        return found

    def guess(
        self,
        votes: Sequence[Vote],
        best: int,
        runs: Sequence[Run],
        decide: Decide,
        sums: Sequence[int] | None,
    ) -> bool:
        """Whether the token is the one of the vote `best`."""
        state = self.state
        token = votes[best].token
        same = [vote.holds and vote.token == token for vote in votes]
        against = sum(vote.holds for vote in votes) - sum(same)
        inputs = [
            self.stretch(vote.guesses[same[k]][vote.place] >> 16) if vote.holds else 0
            for k, vote in enumerate(votes)
        ]
        said = 0
        if sums is not None:
            said = self.stretch(min((sums[token + 1] - sums[token] << 16) // sums[-1], 65535))
        inputs += [GUESS_CONSTANT, said]
        inputs += [0] * (GUESS_INPUTS - len(inputs))

        family = int(sums is not None)
        length = length_class(self.matches[0].length) if votes[0].holds else 0
        voters = sum(1 << k for k in range(RUNS_OF_SET) if same[MATCHES + k])
        weights = [
            state["by_vote"][family][best][length],
            state["by_count"][family][min(sum(same), 11)][min(against, 11)],
            state["by_voters"][family][same[0]][voters],
        ]
        mixed = [self.mixed(sum(map(mul, chosen, inputs))) for chosen in weights]
        stretched = sum(mixed) * 21845 >> 16
        maps = [
            state["by_guess"][hash32(token, self.last(1)) & 1023],
            state["by_against"][best][min(against, 15)],
        ]
        hit = decide(token, self.refine(stretched, maps), True)

        self.learn_weights(weights, mixed, inputs, hit)
        self.learn_maps(maps, stretched, hit)
        for k, vote in enumerate(votes):
            if vote.holds:
                self.count(vote.guesses[same[k]], vote.place, hit)
        return hit

    def mixed(self, total: int) -> int:
        return clamp(total >> WEIGHT_BITS, -MAX_STRETCH, MAX_STRETCH)

    def refine(self, stretched: int, maps: Sequence[Sequence[int]]) -> int:
        knot, part = divmod(stretched + MAX_STRETCH + 1, 128)
        refined = [m[knot] * (128 - part) + m[knot + 1] * part >> 1 for m in maps]
        return clamp(2 * self.squash(stretched) + sum(refined) >> 2, 1, (1 << 22) - 1)

    def learn_maps(self, maps: Sequence[list[int]], stretched: int, bit: bool) -> None:
        knot, part = divmod(stretched + MAX_STRETCH + 1, 128)
        for m in maps:
            m[knot + (part >= 64)] += (65535 * bit - m[knot + (part >= 64)]) >> 6

    def learn_weights(
        self,
        weights: Sequence[list[int]],
        mixed: Sequence[int],
        inputs: Sequence[int],
        bit: bool,
    ) -> None:
        target = (1 << 22) - 1 if bit else 0
        for chosen, m in zip(weights, mixed, strict=True):
            error = target - self.squash(m) >> 7
            for i, x in enumerate(inputs):
                if x:  # nothing moves without it
                    step = (x * 2 * error >> 16) + 1 >> 1
                    chosen[i] = self.weight(chosen[i] + step)

    def path(
        self,
        votes: Sequence[Vote],
        guessed: int | None,
        decide: Decide,
        sums: Sequence[int] | None,
    ) -> int:
        """From the root to a leaf, which is not `guessed`."""
        state = self.state
        contexts = self.contexts(guessed)
        if sums is not None and guessed is not None:
            without = sums[guessed + 1] - sums[guessed]
            sums = [c - without if at > guessed else c for at, c in enumerate(sums)]
        classes = [length_class(match.length) for match in self.matches]
        matches = [
            Voter(
                vote.token,
                state["match"][k],
                lambda _level, k=k: classes[k],  # type: ignore[misc]
                vote.place,
                vote.holds and vote.token != guessed,
            )
            for k, vote in enumerate(votes[:MATCHES])
        ]
        voters = matches + [
            Voter(
                vote.token,
                state["run"][k],
                lambda level: int(level > 3),
                vote.place,
                vote.holds and vote.token != guessed,
            )
            for k, vote in enumerate(votes[MATCHES : MATCHES + RUNS_OF_NODES])
        ]

        family = int(sums is not None)
        low, high = 0, len(self.spellings)
        path = 1
        order = 0
        level = 0
        slots: list[Slot] = []
        while high - low > 1:
            group = min(level // LEVELS_OF_SLOT, GROUPS - 1)
            within = level % LEVELS_OF_SLOT
            if within == 0:
                place = path * 0x2545F491 & 0xFFFFFFFF
                slots = [self.slot(hash32(context, place)) for context in contexts]
                if level == 0:
                    order = max(i for i in range(6) if i == 0 or slots[i].history[0])
            in_slot = (1 << within) - 1 + (path & (1 << within) - 1)
            middle = (low + high) // 2

            # What is predicted.
            before = [slot.history[in_slot] for slot in slots]
            maps = state["history"]
            p16 = [maps[i][group][h] >> 16 if h else None for i, h in enumerate(before)]
            inputs = [0 if p is None else self.stretch(p) for p in p16]
            inputs += [0 if p is None else (p - 32768) >> 7 for p in p16]
            voting = [voter.holds for voter in voters]
            for voter in voters:
                sure = self.stretch(voter.counter[voter.row(level)][voter.place] >> 16)
                inputs.append(0 if not voter.holds else sure if voter.token >= middle else -sure)
            said = 0
            if sums is not None:
                ratio = (sums[high] - sums[middle] << 22) // (sums[high] - sums[low])
                said = self.stretch(clamp(ratio >> 6, 0, 65535))
            inputs.append(said)

            # Mixed.
            matched = min(classes[0] + 1, 15) if matches[0].holds else 0
            known = sum(h != 0 for h in before)
            shallow = min(level, 15)
            weights = [
                state["by_match"][family][matched][group][int(matches[1].holds)],
                state["by_order"][family][order][min(abs(said) // 96, 7)][group],
                state["by_level"][shallow][known][family],
            ]
            final = state["final"][family][shallow][2 * matches[0].holds + (order > 2)]
            mixed = [self.mixed(sum(map(mul, chosen, inputs))) for chosen in weights]
            stretched = self.mixed(sum(final[k] * mixed[k] for k in range(SETS)))

            # Refined.
            above = int(matches[0].token >= middle)
            refining = [
                state["by_node"][path & 2047],
                state["by_expected"][matched][above][shallow]
                if matches[0].holds
                else state["by_token"][hash32(self.last(1), path) & 1023],
            ]
            bit = decide(middle, self.refine(stretched, refining), False)

            # Learned.
            self.learn_weights(weights, mixed, inputs, bit)
            error = ((1 << 22) - 1 if bit else 0) - self.squash(stretched) >> 7
            for k in range(SETS):
                step = mixed[k] * error + (1 << 16) >> 17
                final[k] = self.weight(final[k] + step)
            self.learn_maps(refining, stretched, bit)
            for i, slot in enumerate(slots):
                if before[i]:
                    self.count(maps[i][group], before[i], bit)
                # Two contexts may have come to the same slot: then it moves twice.
                slot.history[in_slot] = self.tables["next"][bit][slot.history[in_slot]]
            for voter, votes in zip(voters, voting, strict=True):
                if votes:
                    voter.holds = (voter.token >= middle) == bit
                    self.count(voter.counter[voter.row(level)], voter.place, voter.holds)

            low, high = (middle, high) if bit else (low, middle)
            path = 2 * path + bit
            level += 1

        return low

    def remember(self, token: int) -> None:
        self.strand.text += self.spellings[token]
        end = self.strand.end
        self.tokens[end] = token
        end = self.strand.end = end + 1
        for k, needed in enumerate(MIN_MATCH):
            match = self.matches[k]
            if match.at:
                if self.tokens[match.at] == token:
                    match.length += 1
                    if match.length >= 16:
                        match.misses = 0
                else:
                    match.length = 0
                    match.misses += 1
                match.at += 1
            h = hashed(k, [self.last(i + 1) for i in range(needed)])
            key = h >> 32 - self.place_bits
            place = self.places[k].get(key, 0)
            self.places[k][key] = end
            if match.length:
                continue
            common = self.common(place, end)
            if common < needed and self.behind:
                other = self.behind.places[k].get(h >> 32 - self.behind.place_bits, 0)
                if self.common(other, end) > common:
                    place, common = other, self.common(other, end)
            if common >= needed or (common and not match.at):
                match.at, match.length, match.misses = place, common, min(match.misses, 3)
            elif match.misses > 8:
                match.at = match.length = match.misses = 0

    def common(self, one: int, other: int) -> int:
        """How many tokens before these two places are the same."""
        if one == 0:
            return 0
        most = max(0, min(LONGEST_COMMON, one - BEFORE, other - BEFORE))
        pairs = range(1, most + 1)
        return next((n - 1 for n in pairs if self.tokens[one - n] != self.tokens[other - n]), most)

    # -- chunks

    def prime(self, data: bytes, piece: int) -> None:
        for at in range(0, len(data), piece):
            for token in tokenize(self.spellings, data[at : at + piece]):
                self.token(
                    lambda other, _p1, guess, token=token: answer(token, other, guess)  # type: ignore[misc]
                )

    def encode(self, chunk: bytes) -> bytes:
        return encode_tokens(self, tokenize(self.spellings, chunk))

    def decode(self, blob: bytes, size: int) -> bytes | None:
        tokens = decode_tokens(self, blob, size)
        if tokens is None:
            return None
        chunk = b"".join(self.spellings[token] for token in tokens)
        return chunk if tokens == tokenize(self.spellings, chunk) else None


def _sums(
    rows: Sequence[Logits] | None, table: Table | None, count: int
) -> Iterator[list[int] | None]:
    for i in range(count):
        yield None if rows is None or table is None else cumulative(rows[i], table)


def encode_tokens(
    mixer: Mixer,
    tokens: Sequence[int],
    rows: Sequence[Logits] | None = None,
    table: Table | None = None,
) -> bytes:
    """These tokens' blob: with a row of a model's logits for each, or with the mixer alone."""
    interval = Interval()
    for token, sums in zip(tokens, _sums(rows, table, len(tokens)), strict=True):

        def decide(other: int, p1: int, guess: bool, token: int = token) -> bool:
            bit = answer(token, other, guess)
            interval.narrow(bit, p1)
            return bit

        assert mixer.token(decide, sums) == token
    return interval.blob()


def decode_tokens(
    mixer: Mixer,
    blob: bytes,
    size: int,
    rows: Sequence[Logits] | None = None,
    table: Table | None = None,
) -> list[int] | None:
    """The tokens of a chunk of this size, or None where no such tokens have this very blob."""
    interval = Interval()
    if interval.offset_of(blob) >= interval.range:
        return None

    def decide(_other: int, p1: int, _guess: bool) -> bool:
        bit = interval.offset_of(blob) < interval.bound(p1)
        interval.narrow(bit, p1)
        return bit

    tokens: list[int] = []
    left = size
    every_sums = _sums(rows, table, size)
    while left > 0:
        tokens.append(mixer.token(decide, next(every_sums)))
        if mixer.contradicts:
            return None
        left -= len(mixer.spellings[tokens[-1]])
    return tokens if left == 0 and interval.blob() == blob else None
