"""A progress bar for work that takes longer than two seconds, on a terminal, to stderr.

Owns: when it appears and how it looks. One thread.
"""

from __future__ import annotations

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_QUIET_S = 2.0


class ByteProgress:
    """Counts bytes of a known total."""

    _columns: tuple[type[ProgressColumn], ...] = (DownloadColumn, TransferSpeedColumn)

    def __init__(self, what: str, total_bytes: int) -> None:
        self._since = time.monotonic()
        self._shown = False
        self._wanted = sys.stderr.isatty()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *(column() for column in self._columns),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(what, total=total_bytes)

    def reach(self, done: int, total: int) -> None:
        """`done` bytes of `total` are done."""
        self._bar.update(self._task, completed=done, total=total)
        self.advance(0)

    def advance(self, count: int) -> None:
        """`count` bytes more are done."""
        self._bar.advance(self._task, count)
        if self._wanted and not self._shown and time.monotonic() - self._since > _QUIET_S:
            self._shown = True
            self._bar.start()

    def print(self, line: str) -> None:
        """A line of results, above the bar."""
        if self._shown:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._bar.stop()


class ShareProgress(ByteProgress):
    """Goes from nothing to all of some work."""

    _columns = (TaskProgressColumn,)
    _PARTS = 10_000

    def __init__(self, what: str) -> None:
        super().__init__(what, self._PARTS)
        self._reached = 0

    def reach_share(self, share: float) -> None:
        """So much of the work is done, 0 to 1."""
        parts = round(share * self._PARTS)
        self.advance(parts - self._reached)
        self._reached = parts
