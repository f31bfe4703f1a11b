"""`lmfs recover`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from ..errors import DamagedError, UsageError
from ..lmz.recovery import Hole, recover

app = typer.Typer()


@app.command(name="recover")
def command(
    file: Annotated[Path, typer.Argument(help="An .lmz or a frozen file, damaged or cut off.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where what is whole goes; must not exist.")
    ],
    model: Annotated[
        list[Path] | None, typer.Option(help="A model package, or a folder of them, to look in.")
    ] = None,
) -> None:
    """Save every whole chunk of a damaged file, each at its place.

    Lost bytes become a hole of zeros where their number is known, and nothing where it is not;
    every loss is listed. Exits with 5 if anything is lost.
    """
    if output.exists():
        raise UsageError("file exists", where=output, do="name another one, nothing is overwritten")
    whole = lost = 0
    at = 0
    unsure = False
    with open(output, "xb") as target:
        for piece in recover(file, model_search=model or []):
            if isinstance(piece, Hole):
                lost += 1
                _report(piece)
                unsure |= piece.size is None
                if piece.size is not None:
                    at = (at if piece.start is None else piece.start) + piece.size
                continue
            at = at if piece.start is None else piece.start
            target.seek(at)
            target.write(piece.data)
            at += len(piece.data)
            whole += len(piece.data)
        target.truncate(at)
        target.flush()
        os.fsync(target.fileno())
    print(f"{output}: {decimal(whole)} saved, {lost} holes")
    if unsure:
        print("lmfs: behind a hole of unknown size bytes may stand too early", file=sys.stderr)
    if lost:
        raise typer.Exit(DamagedError.exit_code)


def _report(hole: Hole) -> None:
    start = "at an unknown place" if hole.start is None else f"from byte {hole.start:,}"
    size = "an unknown number of bytes" if hole.size is None else f"{hole.size:,} bytes"
    print(f"lmfs: lost: {size} {start}: {hole.reason}", file=sys.stderr)
