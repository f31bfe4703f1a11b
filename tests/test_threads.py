"""The queue: urgent work first, in slices; any order gives the same bytes, and no error spreads."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import threading
import time

import pytest

from lmfs.codecs import lm, mix, primer, threads
from lmfs.codecs.lm import LmCodec
from lmfs.codecs.mix import MixCodec
from lmfs.codecs.threads import (
    Cancelled,
    Priority,
    Queue,
    Turn,
    Urgency,
    Work,
    in_parallel,
    limit_threads,
    thread_count,
    working,
)
from lmfs.errors import DamagedError, EngineError
from lmfs.native import Mixer
from lmfs.profile import profile_by_number

WAIT_S = 30


class Counted(Work):
    """So many slices, each noted in a log, and held up by a gate where there is one."""

    def __init__(self, name, slices, log, *, group=None, most=1, gate=None, fail_at=0):
        self.name, self.left, self.log, self.gate = name, slices, log, gate
        self.group, self.most, self.fail_at = group, most, fail_at
        self.begun = threading.Event()

    def advance(self, together, alone):
        self.begun.set()
        if self.gate is not None:
            assert self.gate.wait(WAIT_S)
        self.log.append([work.name for work in together])
        for work in together:
            work.left -= 1
            if work.left == work.fail_at - 1:
                raise ZeroDivisionError(work.name)
            work.done = not work.left


class Waiter(threading.Thread):
    """Has the queue do some work, and keeps what comes of it."""

    def __init__(self, queue, works, urgency):
        super().__init__(daemon=True)
        self.queue, self.works, self.urgency = queue, works, urgency
        self.error = None
        self.start()

    def run(self):
        try:
            with working(self.urgency):
                self.queue.run(self.works)
        except Exception as error:
            self.error = error

    def end(self):
        self.join(WAIT_S)
        assert not self.is_alive(), "a deadlock"
        return self.error


@pytest.fixture
def one():
    """A queue of one thread."""
    queue = Queue(1)
    yield queue
    queue._stop()


def until(condition):
    limit = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


def test_a_reader_waits_for_one_slice_of_the_background(one):
    log, gate = [], threading.Event()
    slow = Counted("slow", 50, log, gate=gate)
    background = Waiter(one, [slow], Urgency(Priority.BACKGROUND))
    assert slow.begun.wait(WAIT_S)
    ahead = Waiter(one, [Counted("ahead", 2, log)], Urgency(Priority.AHEAD))
    until(lambda: len(one._waiting) == 1)
    read = Waiter(one, [Counted("read", 3, log)], Urgency(Priority.READ))
    until(lambda: len(one._waiting) == 2)
    gate.set()
    assert [waiter.end() for waiter in (read, ahead, background)] == [None] * 3
    order = [name for (name,) in log]
    assert order == ["slow", *["read"] * 3, *["ahead"] * 2, *["slow"] * 49]
    assert one.slices == {Priority.READ: 3, Priority.AHEAD: 2, Priority.BACKGROUND: 50}


class Endless(Counted):
    """Done only when others are."""

    def __init__(self, name, log, others):
        super().__init__(name, 1 << 30, log)
        self.others = others

    def advance(self, together, alone):
        super().advance(together, alone)
        self.done = all(other.done for other in self.others)


def test_what_is_urgent_cannot_starve_the_rest(one):
    log, gate = [], threading.Event()
    first = Counted("first", 1, log, gate=gate)
    waiters = [Waiter(one, [first], Urgency())]
    assert first.begun.wait(WAIT_S)
    ahead, background = Counted("ahead", 40, log), Counted("background", 3, log)
    reading = Endless("read", log, [ahead, background])
    for work, priority in (
        (background, Priority.BACKGROUND),
        (ahead, Priority.AHEAD),
        (reading, Priority.READ),
    ):
        waiters.append(Waiter(one, [work], Urgency(priority)))
        until(lambda: len(one._waiting) == len(waiters) - 1)
    gate.set()
    assert [waiter.end() for waiter in waiters] == [None] * 4
    order = [name for (name,) in log[1:]]
    # A reader waits for one slice of each at most, and they for so many of more urgent work.
    assert order[: threads.MOST_PASSED + 3] == [
        *["read"] * threads.MOST_PASSED,
        "ahead",
        "background",
        "read",
    ]
    for name in ("ahead", "background"):
        places = [-1, *(place for place, run in enumerate(order) if run == name)]
        waits = [after - before - 1 for before, after in itertools.pairwise(places)]
        assert max(waits) <= threads.MOST_PASSED + 1
    assert (order.count("ahead"), order.count("background")) == (40, 3)


def test_work_becomes_urgent_when_somebody_needs_it(one):
    log, gate = [], threading.Event()
    first = Counted("first", 1, log, gate=gate)
    waiters = [Waiter(one, [first], Urgency())]
    assert first.begun.wait(WAIT_S)
    urgencies = [Urgency(Priority.BACKGROUND) for _ in range(2)]
    for number, urgency in enumerate(urgencies):
        waiters.append(Waiter(one, [Counted(number, 1, log)], urgency))
        until(lambda number=number: len(one._waiting) == number + 1)
    urgencies[1].raise_to(Priority.READ)
    urgencies[1].raise_to(Priority.AHEAD)  # never less urgent again
    gate.set()
    assert [waiter.end() for waiter in waiters] == [None] * 3
    assert log == [["first"], [1], [0]]


def test_lanes_join_and_leave_between_slices(one):
    log, gate = [], threading.Event()
    first = Counted("a", 4, log, group="g", most=3, gate=gate)
    waiters = [Waiter(one, [first], Urgency())]
    assert first.begun.wait(WAIT_S)
    others = [Counted(name, 1, log, group="g", most=3) for name in "bcd"]
    waiters.append(Waiter(one, [*others, Counted("x", 1, log, group="h")], Urgency()))
    until(lambda: len(one._waiting) == 4)
    gate.set()
    assert [waiter.end() for waiter in waiters] == [None] * 2
    assert log == [["a"], ["a", "b", "c"], ["a", "d"], ["a"], ["x"]]


def test_two_threads_do_each_lane_once():
    queue, log, gate = Queue(2), [], threading.Event()
    blockers = [Counted("b", 1, log, gate=gate) for _ in range(2)]
    waiters = [Waiter(queue, [blocker], Urgency()) for blocker in blockers]
    assert all(blocker.begun.wait(WAIT_S) for blocker in blockers)
    lanes = [Counted(number, 1, log, group="g", most=16) for number in range(8)]
    waiters.append(Waiter(queue, lanes, Urgency()))
    until(lambda: len(queue._waiting) == 8)
    gate.set()
    assert [waiter.end() for waiter in waiters] == [None] * 3
    done = [name for together in log for name in together if name != "b"]
    assert sorted(done) == list(range(8))
    queue._stop()


def test_an_error_is_that_of_its_own_work(one):
    log = []
    bad = Waiter(one, [Counted("bad", 5, log, fail_at=3)], Urgency())
    good = Waiter(one, [Counted("good", 5, log)], Urgency())
    assert isinstance(bad.end(), ZeroDivisionError)
    assert good.end() is None
    assert log.count(["bad"]) == 3
    one.run([Counted("later", 1, log)])  # the threads are still there


def test_cancelled_work_is_left(one):
    log, gate = [], threading.Event()
    begun = Counted("begun", 1000, log, gate=gate)
    urgencies = [Urgency(), Urgency()]
    waiters = [Waiter(one, [begun], urgencies[0])]
    assert begun.begun.wait(WAIT_S)
    waiters.append(Waiter(one, [Counted("never", 1, log)], urgencies[1]))
    until(lambda: len(one._waiting) == 1)
    for urgency in urgencies:
        urgency.cancel()
    gate.set()
    assert all(isinstance(waiter.end(), Cancelled) for waiter in waiters)
    assert log == [["begun"]]


def test_who_has_the_turn_becomes_as_urgent_as_who_waits():
    turn = Turn()
    urgencies = {
        name: Urgency(priority)
        for name, priority in (
            ("holder", Priority.BACKGROUND), ("second", Priority.AHEAD), ("third", Priority.AHEAD)
        )
    }  # fmt: skip
    got, release = [], threading.Event()

    def hold(name):
        with working(urgencies[name]), turn:
            got.append(name)
            assert release.wait(WAIT_S)

    holders = [threading.Thread(target=hold, args=[name], daemon=True) for name in urgencies]
    holders[0].start()
    until(lambda: got)
    for holder in holders[1:]:
        holder.start()
    until(lambda: urgencies["holder"].priority is Priority.AHEAD)
    until(lambda: urgencies["third"]._behind is urgencies["holder"])
    urgencies["third"].raise_to(Priority.READ)  # by who waits for what waits
    assert urgencies["holder"].priority is Priority.READ
    release.set()
    for holder in holders:
        holder.join(WAIT_S)
    assert sorted(got) == sorted(urgencies)


class TestThreadCount:
    def test_it_is_what_the_environment_says(self, monkeypatch):
        monkeypatch.setenv("LMFS_THREADS", "3")
        assert thread_count() == threads.queue().threads == 3
        monkeypatch.delenv("LMFS_THREADS")
        assert thread_count() == len(os.sched_getaffinity(0))

    def test_a_limit_outranks_it(self, monkeypatch):
        monkeypatch.setenv("LMFS_THREADS", "3")
        limit_threads(1)
        try:
            seen = set(in_parallel(lambda _: threading.get_ident(), range(20)))
        finally:
            limit_threads(None)
        assert len(seen) == 1
        assert thread_count() == 3

    @pytest.mark.parametrize("value", ["0", "257", "-1", "two"])
    def test_nonsense_is_refused(self, monkeypatch, value):
        monkeypatch.setenv("LMFS_THREADS", value)
        with pytest.raises(EngineError, match=f"LMFS_THREADS.*got {value}"):
            thread_count()


def test_a_fork_has_threads_of_its_own():
    code = (
        "import os\n"
        "from lmfs.codecs.threads import in_parallel\n"
        "assert in_parallel(abs, [-1, -2]) == [1, 2]\n"
        "child = os.fork()\n"
        "assert in_parallel(abs, [-3, -4]) == [3, 4]\n"
        "if child:\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("slice_tokens", [1, 7, 1 << 20])
def test_priming_in_slices_gives_the_same_state(tiny, data, monkeypatch, slice_tokens):
    text = (data / "alice29.txt").read_bytes()[:900]
    expected = Mixer(profile_by_number(2).mixer, tiny.tokenizer().vocabulary)
    got = expected.copy()
    expected.prime(text, 300)
    monkeypatch.setattr(primer, "SLICE_TOKENS", slice_tokens)
    queue = Queue(1)
    monkeypatch.setattr(primer, "queue", lambda: queue)
    primer.prime(got, [text[at : at + 300] for at in (0, 300, 600)])
    tokens = sum(len(tiny.tokenizer().tokenize(text[at : at + 300])) for at in (0, 300, 600))
    assert sum(queue.slices.values()) >= tokens / slice_tokens
    assert got.adaptive() == expected.adaptive()
    assert got.encode(text[100:400]) == expected.encode(text[100:400])
    queue._stop()


def test_a_state_is_behind_what_was_asked_for(tiny, data, monkeypatch):
    """Though chunks are fed while it is made, with a state of their own or without."""
    text = (data / "alice29.txt").read_bytes()[:1000]
    start = Mixer(profile_by_number(2).mixer, tiny.tokenizer().vocabulary)
    known = primer.Primer(1000, start.copy)
    known.feed(text[:250])
    real = primer.prime

    def interrupted(mixer, texts):
        real(mixer, texts)
        if known.end == 250:
            known.feed(text[250:500])
            newer = start.copy()
            newer.prime(text[:750], 250)
            known.feed(text[500:750], newer)

    monkeypatch.setattr(primer, "prime", interrupted)
    for upto in (250, 500, 750, 250):
        expected = start.copy()
        expected.prime(text[:upto], 250)
        got = known.mixer(upto).copy()
        assert got.encode(text[750:]) == expected.encode(text[750:])


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("slice_tokens", [1, 7, 128])
def test_any_order_gives_the_same_bytes(tiny, data, monkeypatch, count, slice_tokens):
    """Many readers, of all priorities, some raised, some called off, some damaged, some freezing:
    every chunk is what decoding it by itself gives."""
    text = (data / "alice29.txt").read_bytes()
    lm_codec, mix_codec = LmCodec(tiny, profile_by_number(2)), MixCodec(tiny, profile_by_number(2))
    primed = Mixer(profile_by_number(2).mixer, tiny.tokenizer().vocabulary)
    primed.prime(text[:500], 500)
    chunks = [text[at : at + 20 + at % 170] for at in range(1000, 9000, 500)]
    cases = [
        (codec, after, codec.encode(chunks, after))
        for codec in (lm_codec, mix_codec)
        for after in (None, primed)
    ]
    monkeypatch.setattr(lm, "SLICE_TOKENS", slice_tokens)
    monkeypatch.setattr(lm, "ENCODE_WINDOW", slice_tokens)
    monkeypatch.setattr(mix, "SLICE_TOKENS", slice_tokens)
    limit_threads(count)
    wrong, outcomes = [], []

    def read(seed):
        chance = random.Random(seed)
        codec, after, blobs = chance.choice(cases)
        picked = chance.sample(range(len(chunks)), chance.randrange(1, 6))
        sizes = [len(chunks[i]) for i in picked]
        urgency = Urgency(chance.choice(list(Priority)))
        action = chance.choice(["read", "read", "raise", "cancel", "damage", "encode"])
        time.sleep(chance.random() * 0.05)
        if action in ("raise", "cancel"):
            call = urgency.cancel if action == "cancel" else lambda: urgency.raise_to(Priority.READ)
            threading.Timer(chance.random() * 0.02, call).start()
        try:
            with working(urgency):
                if action == "encode":
                    right = codec.encode([chunks[i] for i in picked], after) == [
                        blobs[i] for i in picked
                    ]
                elif action == "damage":
                    # Too short by half: no blob of this size.
                    broken = [blobs[i][: len(blobs[i]) // 2] for i in picked]
                    right = codec.decode(broken, sizes, after) != [chunks[i] for i in picked]
                else:
                    right = codec.decode([blobs[i] for i in picked], sizes, after) == [
                        chunks[i] for i in picked
                    ]
        except DamagedError:
            right = action == "damage"
        except Cancelled:
            right = action == "cancel"
        except Exception as error:
            right, action = False, repr(error)
        outcomes.append(action)
        if not right:
            wrong.append((seed, action))

    try:
        readers = [threading.Thread(target=read, args=[seed], daemon=True) for seed in range(40)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(WAIT_S)
            assert not reader.is_alive(), "a deadlock"
    finally:
        limit_threads(None)
    assert wrong == []
    assert {"read", "raise", "cancel", "damage", "encode"} <= set(outcomes)


def test_a_damaged_chunk_in_a_merged_batch_fails_its_own_reader_only(tiny, data, monkeypatch):
    count = 4  # lanes that any engine takes together
    text = (data / "alice29.txt").read_bytes()
    codec = LmCodec(tiny, profile_by_number(2))
    chunks = [text[k * 300 : k * 300 + 300] for k in range(count)]
    blobs = codec.encode(chunks)
    blobs[2] = blobs[2][:40]
    limit_threads(1)
    gate, log = threading.Event(), []
    try:
        blocker = Counted("blocker", 1, log, gate=gate)
        waiters = [Waiter(threads.queue(), [blocker], Urgency())]
        assert blocker.begun.wait(WAIT_S)
        found = {}

        def read(k):
            try:
                (found[k],) = codec.decode([blobs[k]], [300])
            except DamagedError as error:
                found[k] = error

        together = []
        advance = lm._Decoding.advance
        monkeypatch.setattr(
            lm._Decoding,
            "advance",
            lambda self, lanes, alone: together.append(len(lanes)) or advance(self, lanes, alone),
        )
        readers = [threading.Thread(target=read, args=[k], daemon=True) for k in range(count)]
        for reader in readers:
            reader.start()
        until(lambda: len(threads.queue()._waiting) == count)
        gate.set()
        for reader in readers:
            reader.join(WAIT_S)
        assert waiters[0].end() is None
    finally:
        limit_threads(None)
    assert max(together) == count
    assert isinstance(found.pop(2), DamagedError)
    assert found == {k: chunks[k] for k in range(count) if k != 2}
