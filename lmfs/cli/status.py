"""`lmfs status`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from ..errors import DamagedError
from ..store.account import Account
from ..store.locate import locate
from ..store.marks import Marks
from . import printable

app = typer.Typer()

_WIDTH_IN_A_PIPE = 100


@app.command(name="status")
def command(
    paths: Annotated[list[str] | None, typer.Argument(help="Files and directories.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what is frozen, with which codecs, and what it brought.

    The account counts the models as part of the data, for nothing can be decoded without them,
    and says from how much text on they are paid for. Exits with 5 if a file is damaged.
    """
    account = Account()
    for path in paths or ["."]:
        place = locate(path)
        with place.store:
            marks = Marks(place.store)
            try:
                account.add(marks, place.path)
            finally:
                marks.close()
    if as_json:
        print(json.dumps(_plain(account), indent=1))
    else:
        _print(account)
    if account.damaged:
        raise typer.Exit(DamagedError.exit_code)


def _plain(account: Account) -> dict[str, Any]:
    plain = asdict(account)
    for name, kept in (("models", account.models), ("primers", account.primers)):
        plain[name] = {known.hex(): size for known, size in kept.items()}
    return plain | {"break_even_bytes": account.break_even_bytes()}


def _print(account: Account) -> None:
    console = Console(highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for name in ("codec", "files", "chunks", "before", "after", "ratio"):
        table.add_column(name, justify="left" if name == "codec" else "right")
    for codec, share in sorted(account.codecs.items()):
        table.add_row(
            codec,
            f"{share.files:,}",
            f"{share.chunks:,}",
            decimal(share.before),
            decimal(share.after),
            _ratio(share.after, share.before),
        )
    coded = sum(share.after for share in account.codecs.values())
    overhead = account.frozen_after - coded
    table.add_row("headers, indexes", "", "", "", decimal(overhead), "")
    if account.primers:
        table.add_row("shared primers", "", "", "", decimal(account.primer_bytes), "")
    if account.parity_files:
        table.add_row(
            "parity", f"{account.parity_files:,}", "", "", decimal(account.parity_bytes), ""
        )
    after = account.frozen_after + account.primer_bytes + account.parity_bytes
    table.add_row(
        "all frozen",
        f"{account.frozen_files:,}",
        f"{sum(share.chunks for share in account.codecs.values()):,}",
        decimal(account.frozen_before),
        decimal(after),
        _ratio(after, account.frozen_before),
        style="bold",
    )
    if account.frozen_files:
        console.print(table, width=None if console.is_terminal else _WIDTH_IN_A_PIPE)
        on_disk = decimal(account.frozen_on_disk)
        if account.parity_files:
            on_disk += f", and {decimal(account.parity_on_disk)} of parity"
        console.print(f"on disk: {on_disk}")
    if account.patched_files:
        console.print(
            f"patched: {account.patched_files:,} of them, {decimal(account.patched_on_disk)} on "
            "disk were written to them since; freezing them again takes that in"
        )
    files = "file" if account.hot_files == 1 else "files"
    console.print(f"hot: {account.hot_files:,} {files}, {decimal(account.hot_bytes)}")
    _print_models(account, console)
    for name, problem in sorted(account.damaged.items()):
        console.print(printable(f"damaged: {name}: {problem}"), style="red", markup=False)


def _print_models(account: Account, console: Console) -> None:
    if not account.models:
        return
    coded = account.frozen_after + account.primer_bytes + account.parity_bytes
    whole = coded + account.model_bytes
    console.print(
        f"models: {len(account.models)}, {decimal(account.model_bytes)}; coded data and models: "
        f"{decimal(whole)}, ratio {_ratio(whole, account.frozen_before)}"
    )
    break_even = account.break_even_bytes()
    if break_even is not None:
        frozen = account.predicted.before
        state = "reached" if frozen >= break_even else "not reached yet"
        console.print(
            f"the models are paid for from {decimal(break_even)} of such text on; "
            f"here are {decimal(frozen)}: {state}"
        )


def _ratio(after: int, before: int) -> str:
    return f"{after / before:.3f}" if before else "-"
