"""`lmfs freeze`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from ..codecs.choose import Chooser
from ..codecs.levels import DEFAULT_LEVEL, LEVELS
from ..container import DEFAULT_CHUNK_SIZE
from ..store.families import Families
from ..store.freeze import Outcome, freeze
from ..store.freezing import Wishes, freezing_model, model_called
from ..store.locate import Place
from ..store.marks import Marks
from ..store.parities import want_percent
from ..store.parity import MOST_PERCENT
from ..store.store import Store
from . import files

if TYPE_CHECKING:
    from ..models.package import ModelPackage

app = typer.Typer()


@app.command(name="freeze")
def command(
    paths: Annotated[list[str], typer.Argument(help="Files, and directories with all in them.")],
    model: Annotated[
        bool | None,
        typer.Option(
            "--model/--no-model",
            help="Use the store's language model; without one zstd does what it can. "
            "[default: --model]",
            show_default=False,
        ),
    ] = None,
    level: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=9,
            help="1 and 2: zstd only. 3 and 4: prediction without the model, for logs. 5 to 9: "
            "with the model, where it saves 15 %, 3 %, or 1 %. "
            f"[default: {DEFAULT_LEVEL}]",
        ),
    ] = None,
    chunk_size: Annotated[
        int | None,
        typer.Option(
            help="Bytes a chunk: smaller reads faster, larger packs better. "
            f"[default: {DEFAULT_CHUNK_SIZE}]"
        ),
    ] = None,
    shared: Annotated[
        bool,
        typer.Option(
            "--shared/--no-shared",
            help="Let small files that are alike follow a common text, kept once in the store, "
            "where that pays.",
        ),
    ] = True,
    parity: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MOST_PERCENT,
            metavar="PERCENT",
            help="Keep so much Reed-Solomon parity of each frozen file, which heals it when "
            "sectors of the disk go bad. The store remembers it; 0 ends it.",
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="A line a file.")] = False,
) -> None:
    """Make files small, while they stay readable through the mount.

    Paths may lie below a mount or in a backing directory, mounted or not; a directory that is
    no store yet becomes one. A file is replaced only after its frozen form was read back from the
    disk and found equal. Left alone are files that are open, that have several hard links, that
    are sparse, and those that would not become smaller. What is not said here a mount may have
    been told: `lmfs mount -o level=N,model=NAME,chunk=BYTES`.

    With --parity 2 two per cent of a file's sectors may be lost, wherever they lie together, and
    `lmfs repair` heals it; reading it heals as well. It takes 3 per cent of the frozen files, and
    a block of the disk a file (4 KiB) at least. Files that are frozen already get it, too.
    """
    plans: list[Families] = []

    def begin(marks: Marks, found: list[tuple[str, os.stat_result]], place: Place) -> files.Job:
        wishes = place.wishes
        if parity is not None:
            want_percent(marks.store, parity)
        chosen = level or wishes.level or DEFAULT_LEVEL
        size = DEFAULT_CHUNK_SIZE if wishes.chunk is None else wishes.chunk
        size = size if chunk_size is None else chunk_size
        package = _model(marks.store, model, wishes) if LEVELS[chosen].mixer else None
        chooser = Chooser(package, chosen)
        families = Families(marks, found, chooser, package, chunk_size=size)
        plans.append(families)

        def job(marks: Marks, path: str, progress: Callable[[int], None]) -> Outcome:
            marks.store.wait_while_paused(_say_paused)
            return freeze(
                marks,
                path,
                families.chooser(path) if shared else chooser,
                model=package,
                primers=families.primers,
                chunk_size=size,
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


def _model(store: Store, asked: bool | None, wishes: Wishes) -> ModelPackage | None:
    if asked is False:
        return None
    if asked is None and wishes.model is not None:
        return model_called(store, wishes.model)
    return freezing_model(store)


def _say_paused() -> None:
    print("lmfs: paused; `lmfs ctl resume` lets it go on", file=sys.stderr)
