"""`lmfs thaw`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from ..store.freeze import Outcome, thaw
from ..store.marks import Marks
from . import files

app = typer.Typer()


@app.command(name="thaw")
def command(
    paths: Annotated[list[str], typer.Argument(help="Files, and directories with all in them.")],
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="A line a file.")] = False,
) -> None:
    """Make frozen files plain again.

    Paths may lie below a mount or in a backing directory, mounted or not. Owner, mode, times and
    extended attributes stay. A file that is damaged is left as it is, and named.
    """

    def job(marks: Marks, path: str, progress: Callable[[int], None]) -> Outcome:
        return thaw(marks, path, progress=progress)

    files.run("thawed", paths, lambda *_: job, create=False, verbose=verbose)
