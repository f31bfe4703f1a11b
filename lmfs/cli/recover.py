"""`lmfs recover`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.filesize import decimal

from ..errors import DamagedError, UsageError
from ..lmz.recovery import Hole, Recovered, recover

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
    with open(output, "xb") as target:
        try:
            saved = _save(recover(file, model_search=model or []), target)
        except BaseException:
            if not target.tell():
                output.unlink()
            raise
    print(f"{output}: {decimal(saved.whole_bytes)} saved, {saved.holes} holes")
    if saved.unsure:
        print("lmfs: behind a hole of unknown size bytes may stand too early", file=sys.stderr)
    if saved.holes:
        raise typer.Exit(DamagedError.exit_code)


@dataclass
class _Saved:
    """What was saved, and how many losses there were; `unsure` if a place was guessed."""

    whole_bytes: int = 0
    holes: int = 0
    unsure: bool = False


def _save(pieces: Iterator[Recovered | Hole], target: BinaryIO) -> _Saved:
    saved = _Saved()
    at = 0
    for piece in pieces:
        at = at if piece.start is None else piece.start
        if isinstance(piece, Hole):
            _report(piece)
            saved.holes += 1
            saved.unsure |= piece.size is None
            at += piece.size or 0
        else:
            target.seek(at)
            target.write(piece.data)
            saved.whole_bytes += len(piece.data)
            at += len(piece.data)
    target.truncate(at)
    target.flush()
    os.fsync(target.fileno())
    return saved


def _report(hole: Hole) -> None:
    start = "at an unknown place" if hole.start is None else f"from byte {hole.start:,}"
    size = "an unknown number of bytes" if hole.size is None else f"{hole.size:,} bytes"
    print(f"lmfs: lost: {size} {start}: {hole.reason}", file=sys.stderr)
