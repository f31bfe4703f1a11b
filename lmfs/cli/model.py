"""`lmfs model`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from ..errors import ModelError
from ..models import registry
from ..models.verify import verify
from . import printable

app = typer.Typer(no_args_is_help=True, help="Look at models.")

WORDS = {True: "ok    ", False: "FAILED", None: "--    "}


@app.command(name="list")
def list_models() -> None:
    """List the models that came with lmfs."""
    for path in sorted(registry.SHIPPED_FOLDER.glob("*.lmm")):
        package = registry.shipped(path.stem)
        print(f"{package.id.hex()}  {decimal(package.size_bytes)}  {printable(package.name)}")


@app.command(name="verify")
def verify_package(
    path: Annotated[Path, typer.Argument(help="A model package (.lmm).")],
) -> None:
    """Prove anew that a model is exact, and that it gives its golden logits here.

    Exits with 7 if a check fails.
    """
    findings = verify(path)
    for finding in findings:
        print(f"{WORDS[finding.ok]}  {printable(f'{finding.what}: {finding.detail}')}")
    failed = sum(finding.ok is False for finding in findings)
    if failed:
        raise ModelError(
            "model package",
            where=path,
            expected="every check to hold",
            got=f"{failed} of {len(findings)} failed",
            do="do not use it: what it codes might not decode elsewhere",
        )
