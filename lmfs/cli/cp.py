"""`lmfs cp`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated

import typer

from ..errors import UsageError
from ..store.copying import copy_out
from ..store.freeze import Outcome
from ..store.locate import Place
from ..store.marks import Marks
from . import files

app = typer.Typer()


@app.command(name="cp")
def command(
    sources: Annotated[
        list[str], typer.Argument(help="Files, and directories with all files in them.")
    ],
    target: Annotated[
        str, typer.Argument(help="A directory to copy into, or what the one copy is to be called.")
    ],
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="A line a file.")] = False,
) -> None:
    """Copy files out of a store, as plain files that need nothing of it any more.

    A frozen file that is copied otherwise needs the models and the shared primers of its store.
    Sources may lie below a mount or in a backing directory, mounted or not. Mode, times, extended
    attributes and, for root, the owner are copied; each copy is read back before it gets its name,
    and nothing is overwritten. Symlinks and special files are left.
    """
    into = os.path.isdir(target)
    if not into and len(sources) > 1:
        raise UsageError("several sources", where=target, expected="a directory to copy them into")

    def begin(marks: Marks, found: list[tuple[str, os.stat_result]], place: Place) -> files.Job:
        name = os.path.basename(place.path) if place.path != "." else _name_of(place)
        top = os.path.join(target, name) if into else target

        def job(marks: Marks, path: str, progress: Callable[[int], None]) -> Outcome:
            copy = top
            if path != place.path:
                copy = os.path.join(top, files.below(path, place.path))
                os.makedirs(os.path.dirname(copy), exist_ok=True)
            return copy_out(marks, path, copy, progress=progress)

        return job

    files.run("copied", sources, begin, create=False, verbose=verbose)


def _name_of(place: Place) -> str:
    """What a whole store is called."""
    return os.path.basename(place.mountpoint or place.store.path)
