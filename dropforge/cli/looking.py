"""Commands that look: status, runs, models, logs, why, report."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from dropforge.cli import shown
from dropforge.cli.app import INTERRUPTED, AsJson, MaybeName, Name, State, app, client, failed
from dropforge.cli.shown import ago, count, facts, out, row, show, table
from dropforge.client import Client, with_query
from dropforge.domain.errors import NotFound

T = TypeVar("T")
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")]

# A file that was dropped a moment ago is announced within a second or two.
_IDLE_SECONDS = 3.0
_LOOK_SECONDS = 0.25
OVER = ("succeeded", "failed", "cancelled")
# Bytes of a log's end.
_TAIL = 65536
# Signs that say where a text goes on in another: less may be alike by chance.
_HEAD = 100


def first(found: Iterator[T], limit: int) -> list[T]:
    """At most so many of them; any number will do."""
    return list(islice(found, min(limit, sys.maxsize)))


# ------------------------------------------------------------------------------------------------ status
@app.command()
def status(
    name: MaybeName = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on showing it; ends when nothing is left to do.")
    ] = False,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """How a pipeline stands: files, dataset version, run, verdict, what answers."""
    asked = client(state)
    if name is None:
        show(list(asked.each("pipelines", "pipelines", limit=200)), as_json, _pipelines)
    elif watch:
        _watch(asked, name, as_json)
    else:
        show(asked.get(f"pipelines/{name}/status"), as_json, _status)


def _watch(asked: Client, name: str, as_json: bool) -> None:
    idle_since: float | None = None
    told = asked.get(f"pipelines/{name}/status")
    try:
        with Live(console=out, refresh_per_second=8, transient=False) as live:
            while idle_since is None or time.monotonic() - idle_since < _IDLE_SECONDS:
                told = asked.get(f"pipelines/{name}/status")
                if not as_json:
                    live.update(_status(told))
                if _busy(told):
                    idle_since = None
                elif idle_since is None:
                    idle_since = time.monotonic()
                time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        failed(INTERRUPTED)
    if as_json:
        show(told, True, lambda _: None)


def _busy(told: dict[str, Any]) -> bool:
    return bool(told["files"]["pending"] or told["live_run"] or any(told["busy"].values()))


def _pipelines(lines: list[dict[str, Any]]) -> RenderableType:
    if not lines:
        return "No pipeline yet; `dropforge init NAME` makes one."
    made = table("pipeline", "#revision", "drop", "#dataset", "live run", "#champion", "")
    for each in lines:
        note = "paused" if each["paused"] else each["trouble"] or ""
        cells = [each[key] for key in ("pipeline", "revision", "drop", "dataset_version", "live_run", "champion")]
        row(made, *cells, Text(note, style="yellow" if each["paused"] else "red"))
    return made


def _status(told: dict[str, Any]) -> RenderableType:
    files, dataset = told["files"], told["dataset"]
    lines: list[tuple[str, object]] = [
        ("pipeline", f"{told['pipeline']} (revision {told['revision']}), drop into {told['drop']}"),
        ("files", ", ".join(f"{number:,} {state}" for state, number in files.items() if number) or "none yet"),
    ]
    if dataset:
        made = f"version {dataset['version']}: {count(dataset['files'], 'file')}, {count(dataset['rows'], 'row')}"
        lines.append(("dataset", f"{made} ({dataset['total_rows']:,} in all)"))
    answering = f"version {told['champion']}" if told["champion"] else "no model yet"
    lines += [("run", _live(told)), ("champion", answering + _endpoint_note(told["endpoint"]))]
    return Group(facts(*lines), *_notes(told), *([_runs(told["runs"])] if told["runs"] else []))


def _live(told: dict[str, Any]) -> str:
    if not told["live_run"]:
        return "none live"
    planned = next((each["planned_at"] for each in told["runs"] if each["run"] == told["live_run"]), None)
    if planned is None:
        return str(told["live_run"])
    seconds = (datetime.now(UTC) - datetime.fromisoformat(planned)).total_seconds()
    return f"{told['live_run']}, for {max(seconds, 0):.0f} s"


def _endpoint_note(endpoint: dict[str, Any] | None) -> str:
    if endpoint is None:
        return ""
    ready = sum(each["ready"] for each in endpoint["replicas"])
    note = f", endpoint {endpoint['endpoint']} {endpoint['state']}, {ready}/{len(endpoint['replicas'])} replicas ready"
    return note + (f" ({endpoint['reason']})" if endpoint.get("reason") else "")


def _notes(told: dict[str, Any]) -> list[Text]:
    """What somebody should look at, each on a line of its own."""
    notes = []
    held, name = told["control"], told["pipeline"]
    if told["trouble"]:
        notes.append(Text.assemble(("trouble ", "red"), told["trouble"]))
    if held.get("breaker"):
        notes.append(Text.assemble(("stopped ", "red"), held["breaker"]["reason"]))
    for each in held.get("holds") or []:
        end = "its alert is resolved" if each.get("until") == "resolved" else f"dropforge resume {name}"
        why = f"by {each['by']}, {ago(each['at'])}: {each['reason']} -> {end}"
        notes.append(Text.assemble(("paused ", "yellow"), why))
    refused = (held.get("refused") or [])[:3]
    notes += [Text.assemble(("refused ", "yellow"), f"{ago(each['at'])}: {each['reason']}") for each in refused]
    for each in told["quarantined"]:
        file = unquote(each["url"].rsplit("/", 1)[-1])
        notes.append(Text.assemble(("quarantined ", "yellow"), f"{file} ({each['id']}): {each['reason']}"))
    more = told["files"]["quarantined"] - len(told["quarantined"])
    if more > 0:
        notes.append(Text.assemble(("quarantined ", "yellow"), f"{count(more, 'more file')}"))
    for each in told["questions"]:
        left = f"open {shown.until(each['expires_at'])}, then {each['default']}"
        # On a line of its own, to be copied.
        how = f"\n  -> dropforge approve {name} {each['run']}"
        notes.append(Text.assemble(("question ", "cyan"), f"{each['question']} ({left})", how))
    return notes


# ------------------------------------------------------------------------------------------------ runs, models
@app.command()
def runs(name: Name, limit: Limit = 20, state: State = None, as_json: AsJson = False) -> None:
    """The runs of a pipeline, those on the newest data first."""
    found = client(state).each(f"pipelines/{name}/runs", "runs", limit=min(limit, 200))
    show(first(found, limit), as_json, lambda lines: _runs(lines) if lines else "No run yet.")


def _runs(lines: list[dict[str, Any]]) -> RenderableType:
    made = table("run", "data", "state", "verdict", "model", "outcome")
    for each in lines:
        model = f"v{each['model_version']}" if each["model_version"] else "-"
        words = each["summary"] or each["reason"] or ""
        row(made, each["run"], f"v{each['dataset_version']}", shown.state(each["state"]), words, model, _outcome(each))
    return made


def _outcome(run: dict[str, Any]) -> Text:
    if run["outcome"] == "kept_champion":
        return Text(f"not promoted: {run['decision_reason']}")
    return shown.state(run["outcome"]) if run["outcome"] else Text("")


@app.command()
def models(name: Name, limit: Limit = 20, state: State = None, as_json: AsJson = False) -> None:
    """Model versions of a pipeline, newest first."""

    def text(lines: list[dict[str, Any]]) -> RenderableType:
        if not lines:
            return "No model yet."
        made = table("version", "", "verdict", "data", "run", "sha256", "made")
        for each in lines:
            row(
                made,
                f"v{each['version']}",
                Text("champion" if each["champion"] else "", style="green"),
                shown.state(each["verdict"]),
                f"v{each['dataset_version']}",
                each["run"],
                each["sha256"][:12],
                ago(each["created_at"]),
            )
        return made

    found = client(state).each(f"pipelines/{name}/models", "models", limit=min(limit, 200))
    show(first(found, limit), as_json, text)


# ------------------------------------------------------------------------------------------------ logs
@app.command()
def logs(
    name: Name,
    run: Annotated[str | None, typer.Argument(help="The run. Default: the newest.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """What a training run printed."""
    asked = client(state)
    chosen = run or _newest(asked, name)
    printed = ""
    try:
        while True:
            over = asked.get(f"pipelines/{name}/runs/{chosen}")["state"] in OVER
            path = with_query(f"pipelines/{name}/runs/{chosen}/logs", {"tail": _TAIL})
            text = asked.request("GET", path).decode(errors="replace")
            if follow:
                # Half a character, at either end of what there is so far, becomes a whole one, or none, with the next look.
                text = text.replace("\ufffd", "")
            if not as_json:
                sys.stdout.write(_after(printed, text))
                sys.stdout.flush()
            printed = text
            if over or not follow:
                break
            time.sleep(0.5)
    except KeyboardInterrupt:
        failed(INTERRUPTED)
    if as_json:
        show({"run": chosen, "log": printed}, True, lambda _: None)


def _newest(asked: Client, name: str) -> str:
    """The run that is live, or the one that was planned last."""
    told = asked.get(f"pipelines/{name}/status")
    if told["live_run"]:
        return str(told["live_run"])
    if not told["runs"]:
        raise NotFound(f"pipeline {name!r} has no run yet")
    return str(max(told["runs"], key=lambda each: str(each["planned_at"]))["run"])


def _after(before: str, text: str) -> str:
    """What is new in the text since the one before; both are the end of one log that grows, at most `_TAIL` bytes of it.

    While the log is not longer than that, the text begins with the one before. Later it begins somewhere in it: as far in
    front as it can, for that much is known to be no news. If it does not, it is all news: the log of another attempt, or
    more than the tail at once. Repetitions are news as well, up to where the whole tail is nothing else.
    """
    if text.startswith(before):
        return text[len(before) :]
    head = text[:_HEAD]
    place = before.find(head) if head else -1
    while place >= 0 and not text.startswith(before[place:]):
        place = before.find(head, place + 1)
    return text[len(before) - place :] if place >= 0 else text


# ------------------------------------------------------------------------------------------------ why
@app.command()
def why(
    name: Name,
    version: Annotated[int | None, typer.Argument(min=1, help="The model version. Default: the champion.")] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """From a model version back to the events, the files, the code, the run, the verdict and the answer behind it."""
    show(client(state).get(f"pipelines/{name}/why", version=version), as_json, _why)


_MOST_LINES = 10
# Where a listing came first, no event is the cause.
_FOUND = "storage: files that were found before an event told of them"


def _why(told: dict[str, Any]) -> RenderableType:
    model, run, dataset, asked = told["model"], told["run"], told["dataset"], told["approval"]
    lineage = model["lineage"]
    lines: list[tuple[str, object]] = [
        ("model", f"{model['model']} v{model['version']}, sha256 {model['sha256']}"),
        ("run", f"{run['run']}, seed {lineage['seed']}, {run['seconds'] or 0:.1f} s"),
        ("verdict", run["summary"] or "-"),
        ("decision", run["decision_reason"] or "-"),
    ]
    if asked is not None:
        given = f"{asked['answer']} by {asked['by']}, {ago(asked['answered_at'])}" if asked["answer"] else "none yet"
        lines.append(("answer", given + (f": {asked['reason']}" if asked["reason"] else "")))
    lines += [
        ("code", f"{lineage['code']}, sha256 {lineage['code_sha256']}"),
        ("dataset", f"version {dataset['version']}, {count(dataset['total_rows'], 'row')}"),
        ("manifest", f"{dataset['manifest']}, sha256 {dataset['manifest_sha256']}"),
        *_several("made of", [_part(each) for each in told["made_of"]], newest=True),
        *_several("files", [_file(each) for each in told["files"]], newest=False),
        *_several("because", [_cause(each) for each in told["causes"]] or [_FOUND], newest=True),
    ]
    return facts(*lines)


def _several(name: str, lines: list[str], *, newest: bool) -> list[tuple[str, object]]:
    """Several lines under one name; of very many the newest (or the first), and how many more there are."""
    left = len(lines) - _MOST_LINES
    if left > 0:
        note = f"… and {left} {'earlier' if newest else 'more'} (--json shows them)"
        lines = [note, *lines[-_MOST_LINES:]] if newest else [*lines[:_MOST_LINES], note]
    return [(name if not number else "", line) for number, line in enumerate(lines)]


def _part(each: dict[str, Any]) -> str:
    return f"version {each['version']}: {count(each['files'], 'file')}, {count(each['rows'], 'row')}"


def _file(each: dict[str, Any]) -> str:
    name = unquote(each["url"].rsplit("/", 1)[-1])
    event = f", event {each['event']}" if each["event"] else ", found before an event told of it"
    return f"{name}, {count(each['rows'], 'row')}, sha256 {each['sha256'][:12]}{event}"


def _cause(each: dict[str, Any]) -> str:
    cause = each["cause"]
    more = f", correlation {cause['correlation']}" if cause["correlation"] else ""
    hops = f", {count(cause['hops'], 'hop')} from where it began" if cause["hops"] else ""
    return f"{each['what']}: {cause['door']} {cause['id']}{more}{hops}"


# ------------------------------------------------------------------------------------------------ files
@app.command()
def report(
    name: Name,
    arrival: Annotated[str, typer.Argument(help="Id of the file.")],
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Why a file is in quarantine: which rows broke which rule."""

    def text(told: dict[str, Any]) -> RenderableType:
        made = table("rule", "column", "problem", "rows", "found")
        for each in told["problems"]:
            rows = ", ".join(map(str, each["rows"][:10])) + (", …" if each["count"] > 10 else "")
            row(made, each["rule"], each["column"] or "", each["message"], rows, ", ".join(each["values"][:5]))
        return Group(Text(f"{unquote(told['url'])} ({count(told['rows'], 'row')})"), made)

    show(client(state).get(f"pipelines/{name}/arrivals/{arrival}/report"), as_json, text)
