"""What `freeze`, `thaw` and `cp` have in common: a job for each regular file of some paths.

Owns: the loop, its per-file errors, and the summary. One thread.
"""

from __future__ import annotations

import collections
import os
import shlex
import sys
from collections.abc import Callable, Sequence

import typer
from rich.filesize import decimal

from ..errors import LmfsError
from ..store.freeze import Action, Outcome
from ..store.locate import Place, locate
from ..store.marks import Marks
from ..store.publish import sweep
from ..store.walk import regular_files, sweep_tree
from . import exit_code, message, printable
from .progress import ByteProgress

Job = Callable[[Marks, str, Callable[[int], None]], Outcome]
# Told of all files of a path, and of the path itself, before the first is done.
Begin = Callable[[Marks, list[tuple[str, os.stat_result]], Place], Job]


class _Tally:
    """What was done so far."""

    def __init__(self) -> None:
        self.done: list[Outcome] = []
        self.reasons: collections.Counter[str] = collections.Counter()
        self.first_error: BaseException | None = None
        self.unmounted: set[str] = set()  # stores with files frozen, whose mount was not used

    def summary(self, verb: str) -> str:
        before = sum(outcome.before_bytes for outcome in self.done)
        after = sum(outcome.after_bytes for outcome in self.done)
        text = f"{verb} {len(self.done)} file{'' if len(self.done) == 1 else 's'}"
        if self.done:
            text += f": {decimal(before)} on disk before, {decimal(after)} after"
        for reason, count in self.reasons.most_common():
            text += f"\nleft {count}: {reason}"
        return text


def run(
    verb: str,
    paths: list[str],
    begin: Begin,
    *,
    create: bool,
    verbose: bool,
    also: Callable[[], Sequence[str]] = list,
) -> None:
    """Do the job for every file; exits with the first error's code if there was one.

    also: more lines for the summary
    """
    tally = _Tally()
    for path in paths:
        try:
            place = locate(path, create=create)
        except (LmfsError, OSError) as error:
            _report(tally, path, error)
            continue
        with place.store:
            _run_place(verb, place, path, begin, tally, verbose)
    print(tally.summary(verb))
    for line in also():
        print(line)
    for root in sorted(tally.unmounted):
        print(f"read them through a mount: lmfs mount {shlex.quote(root)}")
    if tally.first_error is not None:
        raise typer.Exit(exit_code(tally.first_error))


def _run_place(
    verb: str, place: Place, shown: str, begin: Begin, tally: _Tally, verbose: bool
) -> None:
    marks = Marks(place.store)
    files = list(regular_files(place.store, place.path))
    total = sum(status.st_size for _, status in files)
    try:
        _sweep(marks, place.path)
        job = begin(marks, files, place)
        with ByteProgress(verb, total) as progress:
            for file, _ in files:
                name = shown if file == place.path else f"{shown}/{below(file, place.path)}"
                try:
                    outcome = job(marks, file, progress.advance)
                except (LmfsError, OSError) as error:
                    _report(tally, name, error)
                    continue
                if outcome.action is Action.SKIPPED:
                    tally.reasons[outcome.reason or ""] += 1
                else:
                    tally.done.append(outcome)
                if outcome.action is Action.FROZEN and place.mountpoint is None:
                    tally.unmounted.add(place.store.path)
                if verbose or (outcome.action is Action.SKIPPED and file == place.path):
                    progress.print(printable(_line(name, outcome)))
    finally:
        marks.close()


def _sweep(marks: Marks, path: str) -> None:
    """Remove what crashes left, where the user sent us and nowhere else."""
    if os.path.isdir(marks.store.real_path(path)):
        sweep_tree(marks, path)
    else:
        sweep(marks, os.path.dirname(path) or ".")


def below(path: str, directory: str) -> str:
    """A path of a store, as it is seen from a directory above it."""
    return path if directory == "." else path[len(directory) + 1 :]


def _line(name: str, outcome: Outcome) -> str:
    if outcome.action is Action.SKIPPED:
        return f"{name}: left as it is: {outcome.reason}"
    sizes = f"{decimal(outcome.before_bytes)} -> {decimal(outcome.after_bytes)}"
    return f"{name}: {outcome.action.value}, {sizes}"


def _report(tally: _Tally, name: str, error: BaseException) -> None:
    tally.first_error = tally.first_error or error
    text = message(error)
    name = printable(name)
    print(f"lmfs: {text}" if name in text else f"lmfs: {name}: {text}", file=sys.stderr)
