"""`lmfs recover`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from ..errors import DamagedError, LmfsError, UsageError
from ..lmz.recovery import Hole, save_whole
from ..store.locate import kept_beside, locate
from ..store.marks import FROZEN_MARK, Marks
from ..store.repair import lay_over

app = typer.Typer()


@app.command(name="recover")
def command(
    file: Annotated[Path, typer.Argument(help="An .lmz or a frozen file, damaged or cut off.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where what is whole goes; must not exist.")
    ],
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="A model package, or a folder of models or shared primers, to look in before "
            "those of the store that the file lies in."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The map of the holes, for programs.")
    ] = False,
) -> None:
    """Save every whole chunk of a damaged file, each at its place.

    Lost bytes become a hole of zeros where their number is known, and nothing where it is not;
    every loss is listed. Exits with 5 if anything is lost. What was written to a frozen file since
    it was frozen is taken from its store, if the file still lies in it.
    """
    if output.exists():
        raise UsageError("file exists", where=output, do="name another one, nothing is overwritten")
    with open(output, "xb") as target:
        try:
            search = [*(model or []), *kept_beside(file)]
            saved = save_whole(file, target, model_search=search)
            target.flush()
            _lay_over(file, target.fileno())
        except BaseException:
            if not target.tell():
                output.unlink()
            raise
    for hole in saved.holes:
        _report(hole)
    if as_json:
        print(json.dumps(asdict(saved), indent=1))
    else:
        print(f"{output}: {decimal(saved.whole_bytes)} saved, {len(saved.holes)} holes")
    if saved.unsure:
        print("lmfs: behind a hole of unknown size bytes may stand too early", file=sys.stderr)
    if saved.holes:
        raise typer.Exit(DamagedError.exit_code)


def _lay_over(file: Path, target: int) -> None:
    """Write what was written to a frozen file over what was saved of it, if its store has that."""
    try:
        if FROZEN_MARK not in os.listxattr(file):  # no mount shows it
            return
        place = locate(str(file))
    except (OSError, LmfsError):  # no xattrs, no store, or one that cannot be opened
        return
    with place.store, open(file, "rb") as source:
        marks = Marks(place.store)
        try:
            if lay_over(marks, source.fileno(), target):
                print(f"lmfs: {file}: with what was written to it since", file=sys.stderr)
        except (OSError, LmfsError) as error:
            print(f"lmfs: {file}: without what was written to it since: {error}", file=sys.stderr)
        finally:
            marks.close()


def _report(hole: Hole) -> None:
    start = "at an unknown place" if hole.start is None else f"from byte {hole.start:,}"
    size = "an unknown number of bytes" if hole.size is None else f"{hole.size:,} bytes"
    print(f"lmfs: lost: {size} {start}: {hole.reason}", file=sys.stderr)
