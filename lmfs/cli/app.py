"""The app `lmfs COMMAND`: the list of commands, one module each, imported when it is called.

Owns: the list, and the help that shows them together. Errors are lmfs.cli's. One thread.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import lmfs as package

COMMANDS = (
    "mount",
    "umount",
    "freeze",
    "thaw",
    "cp",
    "status",
    "fsck",
    "repair",
    "recover",
    "ctl",
    "learn",
    "model",
)

_EPILOG = """[bold]A first round[/bold]

  lmfs mount ~/notes            the directory, mounted over itself
  lmfs freeze ~/notes           every file that gets smaller by it
  lmfs status ~/notes           what that brought
  lmfs umount ~/notes           as it was, but for the frozen files
  lmfs thaw ~/notes             plain files again

A frozen file is read and written through the mount like any other; only its place on the disk is
smaller. Single files that are to be sent or kept are for [bold]lmz[/bold], which works like gzip.

`lmfs fsck` and `lmfs repair` answer as fsck(8) does; their help says how. The others:

Exit codes: 0 done, 1 the system refused, 2 usage, 3 no store or no .lmz, 4 newer format,
5 damaged, 6 model missing, 7 model not exact, 8 no engine, 9 store, 10 in use, 11 not verified,
12 cannot mount, 70 a bug, 130 interrupted."""


class _Commands(TyperGroup):
    """The commands, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"lmfs.cli.{cmd_name}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG.replace("\n", "\n\n").replace("\n\n\n\n", "\n\n"),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lmfs {package.__version__}")
        raise typer.Exit


@app.callback()
def lmfs(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say it.")
    ] = False,
) -> None:
    """Keep cold text small, and still open.

    A directory is a [bold]store[/bold]: hot files in it are plain files, cold ones are
    [bold]frozen[/bold] with a language model and stay readable at any place through a mount.
    """
