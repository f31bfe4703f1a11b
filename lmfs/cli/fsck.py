"""`lmfs fsck`, and the run of a check that `lmfs repair` shares with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DamagedError, LmfsError, UsageError
from ..store.findings import Finding, Kind
from ..store.fsck import Check
from ..store.locate import Place, locate
from ..store.marks import Marks
from . import message, printable
from .progress import ByteProgress

app = typer.Typer()

Target = Annotated[str, typer.Argument(help="A store, or a part of it, mounted or not.")]
CLEAN, REPAIRED, ERRORS_LEFT, NOT_DONE, CANCELLED = 0, 1, 4, 8, 32


@app.command(name="fsck")
def command(
    path: Target,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every frozen file and compare its bytes.")
    ] = False,
    state: Annotated[
        Path | None,
        typer.Option(
            help="Keep how far --deep came in this file, and go on from there the next time. "
            "It is removed at the end."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Look for damage; change nothing.

    Without --deep every frozen file's marks, header, index, trailer and frame heads are looked
    at, the models that files need, and what crashes left. With it every chunk is decoded as well.
    Each finding names the file, the offset in its stored form, and what to do. Of a damaged file
    that was frozen with parity it says whether that heals it: this was tried, in memory.

    Exit codes, as fsck(8) has them: 0 no errors, 4 errors, 8 the check could not be done, 32
    interrupted. A leftover, a missing xattr, or parity that is lost is no error.
    """
    if state is not None and not deep:
        raise UsageError("--state", expected="--deep with it", do="without it nothing takes long")
    with guarded():
        found = run(path, deep=deep, state=state, on_finding=None if as_json else show)
    if as_json:
        print(json.dumps(found.plain(), indent=1))
    else:
        print(found.summary())
    raise typer.Exit(ERRORS_LEFT if found.errors else CLEAN)


class guarded:
    """Ends the process with fsck(8)'s codes where a check cannot be done."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            raise typer.Exit(CANCELLED) from None
        if isinstance(error, (LmfsError, OSError)) and not isinstance(error, UsageError):
            print(f"lmfs: {message(error)}", file=sys.stderr)
            # Of what is checked, only the store's own description is met as an error.
            damaged = isinstance(error, DamagedError)
            raise typer.Exit(ERRORS_LEFT if damaged else NOT_DONE) from None


@dataclass
class Found:
    """What a check found."""

    store_id: str
    hot_files: int = 0
    frozen_files: int = 0
    frozen_bytes: int = 0  # decoded
    deep: bool = False
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> int:
        return sum(finding.kind.is_error for finding in self.findings)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "store": self.store_id,
            "hot_files": self.hot_files,
            "frozen_files": self.frozen_files,
            "frozen_bytes": self.frozen_bytes,
            "deep": self.deep,
            "errors": self.errors,
            "findings": [plain(finding) for finding in self.findings],
        }

    def summary(self) -> str:
        files = f"{self.frozen_files:,} frozen and {self.hot_files:,} hot files"
        notes = len(self.findings) - self.errors
        depth = "decoded" if self.deep else "looked at, not decoded"
        return f"{files} {depth}: {self.errors} errors, {notes} notes"


def plain(finding: Finding) -> dict[str, Any]:
    """For JSON."""
    return {
        "kind": finding.kind.value,
        "error": finding.kind.is_error,
        "path": finding.path,
        "offset": finding.offset,
        "problem": finding.problem,
        "do": finding.do,
        "model": finding.model.hex() if finding.model else None,
        "can_be_healed": finding.can_be_healed,
    }


def show(finding: Finding) -> None:
    """A line on standard output."""
    word = "error" if finding.kind.is_error else "note"
    at = "" if finding.offset is None else f" at byte {finding.offset:,}"
    print(printable(f"{word}: {finding.path}{at}: {finding.problem}; {finding.do}"))


def run(
    path: str, *, deep: bool, state: Path | None, on_finding: Callable[[Finding], None] | None
) -> Found:
    """Check what lies at `path`. raises: LmfsError, OSError"""
    place = locate(path)
    with place.store:
        marks = Marks(place.store)
        try:
            return check_place(marks, place, deep=deep, state=state, on_finding=on_finding)
        finally:
            marks.close()


def check_place(
    marks: Marks,
    place: Place,
    *,
    deep: bool,
    state: Path | None,
    on_finding: Callable[[Finding], None] | None,
) -> Found:
    """Check a place in a store. raises: LmfsError, OSError"""
    found = Found(place.store.id.hex(), deep=deep)

    def report(finding: Finding) -> None:
        found.findings.append(finding)
        if on_finding is not None:
            on_finding(finding)

    check = Check(marks, report)
    check.own_directory()
    files = list(check.files(place.path))
    with ByteProgress("looking at files", sum(size for _, size in files)) as progress:
        for file, size in files:
            check.structure(file)
            progress.advance(size)
    if place.path == ".":
        check.unnamed_overlays()
        check.unused_parity()
    found.hot_files, found.frozen_files = check.hot_files, len(check.frozen)
    found.frozen_bytes = sum(check.frozen.values())
    if deep:
        _check_content(check, place, state, report)
    return found


def _check_content(
    check: Check, place: Place, state: Path | None, report: Callable[[Finding], None]
) -> None:
    with _Progress(state, place) as kept:
        for file in kept.done.keys() & check.frozen.keys():
            for finding in kept.done[file]:
                report(finding)
        files = {file: size for file, size in check.frozen.items() if file not in kept.done}
        with ByteProgress("decoding", sum(files.values())) as progress:
            for file in files:
                findings = check.content(file, progress.advance)
                for finding in findings:
                    report(finding)
                kept.add(file, findings)
    if state is not None:
        state.unlink()


class _Progress:
    """How far a deep check came: a line of JSON for each file, appended when it is done.

    The first line says of what; a last line that a crash tore is not counted.
    """

    def __init__(self, path: Path | None, place: Place) -> None:
        self.done: dict[str, list[Finding]] = {}
        self._file = None
        if path is None:
            return
        what = json.dumps({"store": place.store.id.hex(), "path": place.path}) + "\n"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        if lines and lines[0] != what:
            raise UsageError("the state is not of this check", where=path, do="name another file")
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
        for line in lines[1:]:
            entry = json.loads(line)
            self.done[entry["path"]] = [_finding(one) for one in entry["findings"]]
        self._file = open(path, "w")  # noqa: SIM115
        self._file.write("".join(lines) or what)
        self._file.flush()

    def add(self, path: str, findings: list[Finding]) -> None:
        """A file is done."""
        if self._file is not None:
            entry = {"path": path, "findings": [plain(finding) for finding in findings]}
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _finding(entry: dict[str, Any]) -> Finding:
    return Finding(
        Kind(entry["kind"]),
        entry["path"],
        entry["problem"],
        entry["do"],
        entry["offset"],
        can_be_healed=entry.get("can_be_healed", False),
    )
