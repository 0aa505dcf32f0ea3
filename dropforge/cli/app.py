"""The command's entry: options that many commands share, exit codes, and errors as one sentence with a hint.

Exit codes that scripts can rely on:

    0   done
    1   refused, or failed
    2   used wrongly: an unknown option, a missing argument
    3   nobody answers
    4   not allowed: no key, a wrong one, or one whose role is not enough
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from dropforge.cli.shown import err
from dropforge.client import Answered, Client, connect
from dropforge.domain.errors import DropforgeError, Unavailable

REFUSED, NOT_RUNNING, NOT_ALLOWED = 1, 3, 4
INTERRUPTED = 130

app = typer.Typer(
    name="dropforge",
    help="Drop data, get a proven better model in production.",
    epilog="Exit codes: 0 done, 1 refused or failed, 2 used wrongly, 3 nobody answers, 4 not allowed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command; our errors are one sentence on stderr with a hint, never a traceback."""
    try:
        app(standalone_mode=True)
    except DropforgeError as error:
        err.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        hint = _hint(error)
        if hint:
            err.print(f"[cyan]hint:[/] {escape(hint)}", highlight=False, soft_wrap=True)
        sys.exit(exit_code(error))
    except BrokenPipeError:
        # Who reads has seen enough (`dropforge runs | head`). Nothing more may be written, not even at the very end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(REFUSED)
    except OSError as error:
        # A file that may not be read, a folder that may not be written to, a name that is too long.
        if error.filename is None:
            raise
        err.print(f"[red]error:[/] {escape(f'{error.filename}: {error.strerror}')}", highlight=False, soft_wrap=True)
        sys.exit(REFUSED)


def exit_code(error: DropforgeError) -> int:
    """The exit code of what went wrong."""
    if isinstance(error, Unavailable):
        return NOT_RUNNING
    if isinstance(error, Answered) and error.status in (401, 403):
        return NOT_ALLOWED
    return REFUSED


def _hint(error: DropforgeError) -> str | None:
    if isinstance(error, Unavailable):
        return "`dropforge up` runs the platform on this machine; DROPFORGE_URL and DROPFORGE_KEY name another one"
    if not isinstance(error, Answered):
        return None
    if error.status == 401:
        return "set DROPFORGE_KEY (or DROPFORGE_AUDIENCE, to sign in to Entra), or name the state folder of the host with --state"
    if error.status == 403:
        return "use a key that has the role: DROPFORGE_KEY, or `host_keys` in the state folder's connection.json"
    if error.status == 404 and "no pipeline" in str(error):
        return "`dropforge status` lists the pipelines"
    if error.status >= 500:
        return "the host's log says more: <state>/logs/host.jsonl here, Application Insights on Azure"
    return None


def failed(code: int = REFUSED) -> NoReturn:
    """End the command; what went wrong has been shown."""
    raise typer.Exit(code)


# ------------------------------------------------------------------------------------------------ shared options
def _pipelines(incomplete: str) -> list[str]:
    """Names for the shell to complete; none when the host does not answer at once."""
    try:
        found = Client(connect(), timeout_seconds=2).get("pipelines", limit=200)["pipelines"]
    except DropforgeError:
        return []
    return [each["pipeline"] for each in found if each["pipeline"].startswith(incomplete)]


State = Annotated[
    Path | None,
    typer.Option("--state", help="State folder of the host on this machine. Default: the nearest .dropforge."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text for people.")]
Name = Annotated[str, typer.Argument(help="The pipeline's name.", autocompletion=_pipelines)]
MaybeName = Annotated[
    str | None, typer.Argument(help="The pipeline; without it, all of them.", autocompletion=_pipelines)
]


def client(state: Path | None) -> Client:
    """The client of the host that is meant. Raises `Unavailable` when none is running."""
    return Client(connect(state.absolute() if state else None))
