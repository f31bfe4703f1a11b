"""The queue: all coding of this process, in slices, by a few threads; what is urgent comes first.

Owns: how many threads code (LMFS_THREADS, `limit_threads`), and the order in which work gets them.
Knows neither chunks nor files. Any thread may call it, except that a slice must not wait for the
queue. Threads start with the first work, never before a fork.

Work is cut into *slices* of some milliseconds; between two of them it may be put off for what is
more urgent, but not for ever: after MOST_PASSED slices of more urgent work it has one of its own.
Pieces of work that advance together (lanes of one engine) join and part. None of this can change a
result.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import enum
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from lmfs.errors import EngineError

THREADS_VARIABLE = "LMFS_THREADS"
MAX_THREADS = 256
# A tenth of a second, about, and a seventeenth of the processors.
MOST_PASSED = 16

_In = TypeVar("_In")
_Out = TypeVar("_Out")

_limit: int | None = None


def limit_threads(count: int | None) -> None:
    """Code with so many threads, whatever LMFS_THREADS says; None: what that says."""
    global _limit
    _limit = count


def thread_count() -> int:
    """How many threads may code; as many as there are processors unless something says otherwise.

    raises: EngineError for an LMFS_THREADS that makes no sense
    """
    if _limit is not None:
        return _limit
    text = os.environ.get(THREADS_VARIABLE) or str(len(os.sched_getaffinity(0)))
    if not text.isdecimal() or not 1 <= int(text) <= MAX_THREADS:
        raise EngineError(
            "number of threads", where=THREADS_VARIABLE, expected=f"1 to {MAX_THREADS}", got=text
        )
    return int(text)


class Priority(enum.IntEnum):
    """Who waits for a piece of work."""

    READ = 0  # a reader, now
    AHEAD = 1  # a reader, soon
    BACKGROUND = 2  # nobody


class Cancelled(Exception):
    """Nobody wants this work any more. Never leaves the code that cancelled it."""


class Urgency:
    """How urgent all work is that is done under it; others may raise it or call the work off."""

    def __init__(self, priority: Priority = Priority.READ) -> None:
        self.priority = priority
        self.cancelled = False
        self._behind: Urgency | None = None

    def raise_to(self, priority: Priority) -> None:
        """At least so urgent, and with it what it waits for."""
        self.priority = min(self.priority, priority)
        if (behind := self._behind) is not None:
            behind.raise_to(self.priority)

    def wait_behind(self, other: Urgency | None) -> None:
        """Nothing of this goes on before that of the other."""
        self._behind = other
        self.raise_to(self.priority)

    def cancel(self) -> None:
        """What has not begun is left; what has stops at its next slice."""
        self.cancelled = True

    def check(self) -> None:
        """raises: Cancelled"""
        if self.cancelled:
            raise Cancelled


_current: contextvars.ContextVar[Urgency | None] = contextvars.ContextVar("urgency", default=None)


def current_urgency() -> Urgency:
    """That of the calling thread's work; a reader's if nothing else was said."""
    return _current.get() or Urgency()


@contextlib.contextmanager
def working(urgency: Urgency) -> Iterator[None]:
    """What this thread does inside is so urgent."""
    token = _current.set(urgency)
    try:
        yield
    finally:
        _current.reset(token)


class Work:
    """Something to be done in slices.

    group: pieces of work with equal groups, not None, may advance together, up to `most` of them
    """

    group: object = None
    most = 1

    def advance(self, together: Sequence[Any], alone: bool) -> None:
        """One slice of all of `together`, of which this is the first; sets `done` of each at its
        end. alone: the other threads are busy, start none. An error is that of all of them."""
        raise NotImplementedError

    done = False


class _Call(Work, Generic[_Out]):
    """A call, in one slice."""

    def __init__(self, call: Callable[[], _Out]) -> None:
        self._call = call

    def advance(self, together: Sequence[Any], alone: bool) -> None:
        self.result = self._call()
        self.done = True


class _Entry:
    """A piece of work in the queue."""

    def __init__(self, order: int, work: Work, urgency: Urgency, left: _Left) -> None:
        self.order, self.work, self.urgency, self.left = order, work, urgency, left


class _Left:
    """What somebody waits for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.ended = threading.Event()
        self.error: BaseException | None = None

    def end(self, error: BaseException | None) -> None:
        """One less; called with the queue's lock held."""
        self.error = self.error or error
        self.count -= 1
        if not self.count:
            self.ended.set()


class Queue:
    """Some threads and the work that waits for them; the process's own is `queue()`."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.slices = dict.fromkeys(Priority, 0)  # so many have run, by their priority
        self._waiting: list[_Entry] = []
        # While work of this priority waited, so many slices of more urgent work have begun.
        self._passed = dict.fromkeys(Priority, 0)
        self._running = 0
        self._stopped = False
        self._process = os.getpid()
        self._workers: list[threading.Thread] = []
        self._orders = itertools.count()
        self._changed = threading.Condition()

    def run(self, works: Sequence[Work]) -> None:
        """Do all of this; returns when all has ended.

        raises: the first error of any; Cancelled
        """
        if not works:
            return
        urgency, left = current_urgency(), _Left(len(works))
        with self._changed:
            self._waiting += [_Entry(next(self._orders), work, urgency, left) for work in works]
            self._start_threads()
            self._changed.notify(len(works))
        left.ended.wait()
        if left.error is not None:
            raise left.error

    def _start_threads(self) -> None:
        wanted = min(self.threads, self._running + len(self._waiting))
        if not self._workers and wanted:
            atexit.register(self._stop)
        while len(self._workers) < wanted:
            name = f"lmfs-codec-{len(self._workers) + 1}"
            self._workers.append(threading.Thread(target=self._serve, name=name, daemon=True))
            self._workers[-1].start()

    def _stop(self) -> None:
        """End the threads, lest they are in the midst of something when the interpreter ends."""
        if os.getpid() != self._process:
            return  # a fork has neither them nor, perhaps, anybody who would free the lock
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()

    def _serve(self) -> None:
        with self._changed:
            while not self._stopped:
                taken = self._take()
                if not taken:
                    self._changed.wait()
                    continue
                self._running += 1
                self.slices[taken[0].urgency.priority] += 1
                alone = self._running == self.threads or bool(self._waiting)
                self._changed.release()
                try:
                    error = _advance([entry.work for entry in taken], alone)
                finally:
                    self._changed.acquire()
                self._running -= 1
                for entry in taken:
                    if error is not None or entry.work.done:
                        entry.left.end(error)
                    else:
                        self._waiting.append(entry)
                del taken, entry, error  # what is done is nobody's any more
                if len(self._waiting) > 1:
                    self._changed.notify(len(self._waiting) - 1)

    def _take(self) -> list[_Entry]:
        """The most urgent work, with a fair share of what may advance with it."""
        for entry in [entry for entry in self._waiting if entry.urgency.cancelled]:
            self._waiting.remove(entry)
            entry.left.end(Cancelled())
        if not self._waiting:
            return []
        # Others may raise an urgency meanwhile: it is looked at once.
        priorities = {entry: entry.urgency.priority for entry in self._waiting}
        priority = self._next_priority(set(priorities.values()))
        first = min(
            (entry for entry in self._waiting if priorities[entry] == priority),
            key=lambda entry: entry.order,
        )
        taken = [first]
        if first.work.group is not None:
            mates = [
                entry
                for entry in self._waiting
                if entry.work.group == first.work.group and priorities[entry] == priority
            ]
            idle = self.threads - self._running
            share = min(-(-len(mates) // idle), first.work.most)
            taken = sorted(mates, key=lambda entry: entry.order)[:share]
        self._waiting = [entry for entry in self._waiting if entry not in taken]
        return taken

    def _next_priority(self, waiting: set[Priority]) -> Priority:
        """The most urgent of those that wait, unless another was passed too often."""
        overdue = [priority for priority in waiting if self._passed[priority] >= MOST_PASSED]
        chosen = min(overdue or waiting)
        for priority in Priority:
            if priority == chosen or priority not in waiting:
                self._passed[priority] = 0
            elif priority > chosen:
                self._passed[priority] += 1
        return chosen


def _advance(works: Sequence[Work], alone: bool) -> BaseException | None:
    try:
        works[0].advance(works, alone)
    except BaseException as error:
        return error
    return None


@functools.cache
def _queue(process: int, threads: int) -> Queue:
    del process  # a fork has its parent's cache, but none of its threads
    return Queue(threads)


def queue() -> Queue:
    """The one of this process. raises: EngineError for an LMFS_THREADS that makes no sense"""
    return _queue(os.getpid(), thread_count())


def in_parallel(work: Callable[[_In], _Out], items: Iterable[_In]) -> list[_Out]:
    """`work` of each item, in their order; each a slice."""
    calls = [_Call(functools.partial(work, item)) for item in items]
    queue().run(calls)
    return [call.result for call in calls]


class Turn:
    """A lock whose holder becomes as urgent as whoever waits for it. Not to be taken twice."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: Urgency | None = None

    def __enter__(self) -> None:
        mine = current_urgency()
        with self._changed:
            while self._holder is not None:
                mine.wait_behind(self._holder)
                self._changed.wait()
            mine.wait_behind(None)
            self._holder = mine

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._holder = None
            self._changed.notify_all()
