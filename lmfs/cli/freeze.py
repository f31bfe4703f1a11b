"""`lmfs freeze`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.filesize import decimal

from ..codecs.choose import DEFAULT_LEVEL, LEVELS, Chooser
from ..container import DEFAULT_CHUNK_SIZE
from ..store.families import Families
from ..store.freeze import Outcome, freeze
from ..store.freezing import freezing_model
from ..store.marks import Marks
from . import files

app = typer.Typer()


@app.command(name="freeze")
def command(
    paths: Annotated[list[str], typer.Argument(help="Files, and directories with all in them.")],
    model: Annotated[
        bool, typer.Option(help="Use the language model; without it zstd does what it can.")
    ] = True,
    level: Annotated[
        int,
        typer.Option(
            min=1,
            max=9,
            help="1 and 2: zstd only. 3 and 4: prediction without the model, for logs. 5 to 9: "
            "with the model, where it saves 15 %, 3 %, 1 %, or anything at all.",
        ),
    ] = DEFAULT_LEVEL,
    chunk_size: Annotated[
        int, typer.Option(help="Bytes a chunk: smaller reads faster, larger packs better.")
    ] = DEFAULT_CHUNK_SIZE,
    shared: Annotated[
        bool,
        typer.Option(
            "--shared/--no-shared",
            help="Let small files that are alike follow a common text, kept once in the store, "
            "where that pays.",
        ),
    ] = True,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="A line a file.")] = False,
) -> None:
    """Make files small, while they stay readable through the mount.

    Paths may lie below a mount or in a backing directory, mounted or not; a directory that is
    no store yet becomes one. A file is replaced only after its frozen form was read back from the
    disk and found equal. Left alone are files that are open, that have several hard links, that
    are sparse, and those that would not become smaller.
    """
    plans: list[Families] = []

    def begin(marks: Marks, found: list[tuple[str, os.stat_result]]) -> files.Job:
        package = freezing_model(marks.store) if model and LEVELS[level].mixer else None
        chooser = Chooser(package, level)
        families = Families(marks, found, chooser, package, chunk_size=chunk_size)
        plans.append(families)

        def job(marks: Marks, path: str, progress: Callable[[int], None]) -> Outcome:
            marks.store.wait_while_paused(_say_paused)
            return freeze(
                marks,
                path,
                families.chooser(path) if shared else chooser,
                model=package,
                primers=families.primers,
                chunk_size=chunk_size,
                progress=progress,
            )

        return job

    def made() -> list[str]:
        sizes = [size for families in plans for size in families.made.values()]
        if not sizes:
            return []
        some = "1 shared primer" if len(sizes) == 1 else f"{len(sizes)} shared primers"
        return [f"and made {some}, {decimal(sum(sizes))}, which many of them follow"]

    files.run("froze", paths, begin, create=True, verbose=verbose, also=made)


def _say_paused() -> None:
    print("lmfs: paused; `lmfs ctl resume` lets it go on", file=sys.stderr)
