"""A progress bar for work that takes longer than two seconds, on a terminal, to stderr.

Owns: when it appears and how it looks. One thread.
"""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_QUIET_S = 2.0


class ByteProgress:
    """Counts bytes of a known total."""

    def __init__(self, what: str, total_bytes: int) -> None:
        self._since = time.monotonic()
        self._shown = False
        self._wanted = sys.stderr.isatty()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
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

    def __enter__(self) -> ByteProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._bar.stop()
