"""`lmfs repair`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ..errors import LmfsError
from ..store.locate import locate
from ..store.marks import Marks
from ..store.repair import Repair
from . import message, printable
from .fsck import CLEAN, ERRORS_LEFT, REPAIRED, Target, check_place, guarded, plain, show

app = typer.Typer()


@app.command(name="repair")
def command(
    path: Target,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every frozen file to find damage.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Check, and make good what can be made good without risk.

    Adds and moves aside; removes no file of yours. What interrupted work left goes to .lmfs/aside.
    Missing xattrs are set again, models that are here are copied into the store.

    A damaged file that has parity (`lmfs freeze --parity`) is healed, if that is enough for the
    damage: the file as it was is written beside it, decoded and compared, and takes its place; the
    damaged one goes to .lmfs/aside. Any other stays as it is, and what is whole of it is written
    beside it: NAME.recovered, with zeros for what is lost and a map of that in
    NAME.recovered.json.

    Exit codes, as fsck(8) has them: 0 nothing found, 1 everything found was repaired, 4 errors are
    left, 8 the check could not be done, 32 interrupted.
    """
    results: list[dict[str, Any]] = []
    errors_left = 0
    with guarded():
        place = locate(path)
        with place.store:
            marks = Marks(place.store)
            try:
                on_finding = None if as_json else show
                found = check_place(marks, place, deep=deep, state=None, on_finding=on_finding)
                repair = Repair(marks)
                for finding in found.findings:
                    try:
                        settled, done = repair.settle(finding)
                    except (LmfsError, OSError) as error:
                        settled, done = False, f"could not be repaired: {message(error)}"
                    errors_left += finding.kind.is_error and not settled
                    results.append(plain(finding) | {"settled": settled, "done": done})
            finally:
                marks.close()
    if as_json:
        print(json.dumps(found.plain() | {"errors_left": errors_left, "findings": results}))
    else:
        lines = dict.fromkeys(printable(f"{r['path']}: {r['done']}") for r in results if r["done"])
        print(*lines, found.summary(), f"{errors_left} errors left", sep="\n")
    settled_any = any(result["settled"] for result in results)
    raise typer.Exit(ERRORS_LEFT if errors_left else REPAIRED if settled_any else CLEAN)
