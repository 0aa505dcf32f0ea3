"""Commands that ask for something: each is given once, under a key of its own, however often it has to be sent."""

from __future__ import annotations

import getpass
import time
from typing import Annotated, Any

import typer

from dropforge.cli.app import INTERRUPTED, AsJson, Name, State, app, client, failed
from dropforge.cli.here import folder_of
from dropforge.cli.looking import OVER
from dropforge.cli.shown import count, err, show
from dropforge.client import Client
from dropforge.domain.errors import BadInput, NotFound

Reason = Annotated[str | None, typer.Option("--reason", "-r", help="Why; kept beside it.")]
By = Annotated[str | None, typer.Option(help="Who asks. Default: you.")]
Wait = Annotated[bool, typer.Option("--wait", "-w", help="Go on until it is done; 1 when it came to nothing.")]
Run = Annotated[str | None, typer.Argument(help="The run that asks. Default: the only one that does.")]

# What became of a run or a deployment that did what it was for.
_GOOD = ("promoted", "kept_champion", "evaluated", "live")
_LOOK_SECONDS = 0.5


def _ask(asked: Client, path: str, by: str | None = None, **arguments: object) -> dict[str, Any]:
    told: dict[str, Any] = asked.post(path, by=by or _me(), **arguments)
    return told


def _me() -> str:
    try:
        return getpass.getuser()
    # A user of a container has no entry; up to Python 3.12 that is a KeyError.
    except (OSError, KeyError):
        return "somebody without a name"


def _settle(asked: Client, told: dict[str, Any], wait: bool, as_json: bool, text: str) -> None:
    """Show what was accepted; with `wait`, what became of it, and end with 1 when that is not what it was for."""
    if not wait:
        show(told, as_json, lambda _: text)
        return
    found = _waited(asked, told, text)
    work = found["work"]
    if work is None:
        show(found, as_json, lambda _: text)
        return
    reason = f": {work['reason']}" if work["reason"] else ""
    show(found, as_json, lambda _: f"{work['id']}: {work['state'].replace('_', ' ')}{reason}")
    if work["state"] not in _GOOD:
        failed()


def _waited(asked: Client, told: dict[str, Any], text: str) -> dict[str, Any]:
    """The command once the work that it set going is over."""
    try:
        with err.status(text) as spinner:
            while True:
                found: dict[str, Any] = asked.get(f"commands/{told['id']}", pipeline=told["pipeline"])
                work = found["work"]
                if work is None or work["over"]:
                    return found
                spinner.update(f"{work['id']}: {work['state'].replace('_', ' ')}")
                time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        failed(INTERRUPTED)


# ------------------------------------------------------------------------------------------------ runs
@app.command()
def train(name: Name, wait: Wait = False, by: By = None, state: State = None, as_json: AsJson = False) -> None:
    """Train on the newest dataset version, also when it has been trained on before."""
    asked = client(state)
    told = _ask(asked, f"pipelines/{name}/train", by)
    _settle(asked, told, wait, as_json, f"A run of {name} is asked for{_waits(told)}.")


@app.command()
def evaluate(
    name: Name,
    version: Annotated[int | None, typer.Argument(min=1, help="The model version. Default: the newest.")] = None,
    wait: Wait = False,
    by: By = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Compare a model version with the champion on the newest data; nothing is promoted."""
    asked = client(state)
    told = _ask(asked, f"pipelines/{name}/evaluate", by, version=version)
    _settle(asked, told, wait, as_json, f"An evaluation of {name} is asked for{_waits(told)}.")


def _waits(told: dict[str, Any]) -> str:
    why = told["result"].get("waits_for")
    return f"; it waits: {why}" if why else ""


@app.command()
def cancel(
    name: Name, run: Annotated[str, typer.Argument(help="The run.")], state: State = None, as_json: AsJson = False
) -> None:
    """End a training run with all its processes."""
    asked = client(state)
    before = asked.get(f"pipelines/{name}/runs/{run}")["state"]
    told = _ask(asked, f"pipelines/{name}/runs/{run}/cancel")
    text = f"{run} had ended already: {before}." if before in OVER else f"{run} is being ended."
    show(told, as_json, lambda _: text)


# ------------------------------------------------------------------------------------------------ what answers
@app.command()
def promote(
    name: Name,
    version: Annotated[int, typer.Argument(min=1, help="Model version.")],
    wait: Wait = False,
    by: By = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Put a model version behind the pipeline's endpoint, by hand."""
    asked = client(state)
    told = _ask(asked, f"pipelines/{name}/promote", by, version=version)
    _settle(asked, told, wait, as_json, f"Version {told['result']['version']} is being deployed.")


@app.command()
def rollback(name: Name, wait: Wait = False, by: By = None, state: State = None, as_json: AsJson = False) -> None:
    """Put the champion before this one back."""
    asked = client(state)
    told = _ask(asked, f"pipelines/{name}/rollback", by)
    _settle(asked, told, wait, as_json, f"Version {told['result']['version']} is being put back.")


# ------------------------------------------------------------------------------------------------ questions
@app.command()
def approve(
    name: Name,
    run: Run = None,
    reason: Reason = None,
    wait: Wait = False,
    by: By = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Answer a run's question: promote its model."""
    _answer(client(state), name, run, "approve", reason, wait, by, as_json)


@app.command()
def reject(
    name: Name,
    run: Run = None,
    reason: Reason = None,
    by: By = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Answer a run's question: keep the champion."""
    _answer(client(state), name, run, "reject", reason, False, by, as_json)


def _answer(
    asked: Client,
    name: str,
    run: str | None,
    given: str,
    reason: str | None,
    wait: bool,
    by: str | None,
    as_json: bool,
) -> None:
    chosen = run or _only_question(asked, name)
    told = _ask(asked, f"pipelines/{name}/approvals/{chosen}", by, answer=given, reason=reason)
    _settle(asked, told, wait, as_json, f"{chosen}: {told['result']['answer']}.")


def _only_question(asked: Client, name: str) -> str:
    found = [each["run"] for each in asked.each(f"pipelines/{name}/approvals", "approvals")]
    if not found:
        raise NotFound(f"no run of {name} asks anything")
    if len(found) > 1:
        raise BadInput(f"{len(found)} runs of {name} ask: name one of {', '.join(found)}")
    return str(found[0])


# ------------------------------------------------------------------------------------------------ files and events
@app.command()
def replay(
    name: Name,
    arrival: Annotated[str | None, typer.Argument(help="Id of the quarantined file. Default: all of them.")] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Put quarantined files back in line, to be checked again; a changed folder is applied first."""
    asked = client(state)
    folder = folder_of(name)
    if folder is not None:
        asked.apply(name, folder)
    told = _ask(asked, f"pipelines/{name}/replay", arrival=arrival)
    number, left = len(told["result"]["replayed"]), told["result"].get("left", 0)
    more = f" {count(left, 'more file')} wait for the next replay." if left else ""
    text = f"{count(number, 'file')} put back in line.{more}" if number else "Nothing is in quarantine."
    show(told, as_json, lambda _: text)


@app.command()
def reconcile(name: Name, state: State = None, as_json: AsJson = False) -> None:
    """Compare the drop folder with the ledger, and take in what events missed."""
    told = _ask(client(state), f"pipelines/{name}/reconcile")
    found = told["result"]
    text = f"{count(found['listed'], 'file')} listed: {found['found']:,} were missed, {found['gone']:,} are gone."
    show(told, as_json, lambda _: text)


@app.command()
def pause(name: Name, reason: Reason = None, by: By = None, state: State = None, as_json: AsJson = False) -> None:
    """Hold a pipeline: what arrives is written down, nothing is cut, trained or promoted by itself."""
    told = _ask(client(state), f"pipelines/{name}/pause", by, reason=reason)
    show(told, as_json, lambda _: f"{name} is paused; `dropforge resume {name}` lets it go on.")


@app.command()
def resume(name: Name, by: By = None, state: State = None, as_json: AsJson = False) -> None:
    """Let a pipeline go on with what has been waiting; a breaker is reset."""
    told = _ask(client(state), f"pipelines/{name}/resume", by)
    show(told, as_json, lambda _: f"{name} goes on.")
