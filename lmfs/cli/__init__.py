"""The command line: `lmfs COMMAND`, one module a command, imported when it is called.

Owns: the list of commands, and the one place where an error becomes a message and an exit code
(lmfs.errors says which). With `cli.lmz`, the only code that prints or exits. One thread.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import LmfsError

COMMANDS = ("mount", "umount", "freeze", "thaw", "status", "recover", "model")

_INTERRUPTED = 130
_OS_ERROR = 1
_BUG = 70

_EPILOG = """[bold]A first round[/bold]

  lmfs mount ~/notes            the directory, mounted over itself
  lmfs freeze ~/notes           every file that gets smaller by it
  lmfs status ~/notes           what that brought
  lmfs umount ~/notes           as it was, but for the frozen files
  lmfs thaw ~/notes             plain files again

A frozen file is read and written through the mount like any other; only its place on the disk is
smaller. Single files that are to be sent or kept are for [bold]lmz[/bold], which works like gzip.

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
        module = importlib.import_module(f"{__name__}.{cmd_name}")
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
        print(f"lmfs {importlib.metadata.version('lmfs')}")
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


def exit_code(error: BaseException) -> int:
    """What the process answers with when this error ends it."""
    if isinstance(error, LmfsError):
        return error.exit_code
    return _OS_ERROR


def message(error: BaseException) -> str:
    """The error in one line."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename!s}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return str(error) or type(error).__name__


def main() -> None:
    """The console script `lmfs`."""
    try:
        app(prog_name="lmfs")
    except (LmfsError, OSError) as error:
        print(f"lmfs: {message(error)}", file=sys.stderr)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except Exception as error:
        import traceback

        traceback.print_exc()
        print(f"lmfs: this is a bug, please report it: {error!r}", file=sys.stderr)
        sys.exit(_BUG)
