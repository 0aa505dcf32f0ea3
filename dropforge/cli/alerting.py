"""Commands about alerts: what came in, and what the rules do, or would have done."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from dropforge.cli import shown
from dropforge.cli.app import AsJson, MaybeName, State, app, client
from dropforge.cli.looking import Limit, first
from dropforge.cli.shown import ago, count, row, show, table
from dropforge.client import with_query
from dropforge.domain.errors import BadInput, NotFound
from dropforge.wire import from_json

_MOST_LINES = 40


@app.command()
def alerts(name: MaybeName = None, limit: Limit = 20, state: State = None, as_json: AsJson = False) -> None:
    """The alerts that came in, newest first, and what was done about them."""

    def text(lines: list[dict[str, Any]]) -> RenderableType:
        if not lines:
            return "No alert yet."
        made = table("fired", "rule", "severity", "state", "what was done")
        for each in lines:
            done = "; ".join(_response(one) for one in each["responses"]) or "no rule fits: kept and shown"
            when = ago(each["fired_at"] or each["received_at"])
            row(made, when, each["rule"], each["severity"], shown.state(each["state"]), done)
        return made

    found = client(state).each("alerts", "alerts", pipeline=name, limit=min(limit, 200))
    show(first(found, limit), as_json, text)


def _response(told: dict[str, Any]) -> str:
    detail = f" ({told['detail']})" if told["detail"] else ""
    return f"{told['pipeline']}: {told['action']} {told['state']}{detail}"


@app.command()
def rules(
    name: MaybeName = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the rules would have done with what was recorded.")
    ] = False,
    days: Annotated[int, typer.Option(min=1, max=366, help="How many days to look back.")] = 7,
    file: Annotated[Path | None, typer.Option(help="A pipeline.yaml to try before it is applied.")] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """The alert rules of a pipeline; with --dry-run, what they would have done. Nothing is changed."""
    asked = client(state)
    if not dry_run:
        if file is not None:
            raise BadInput("--file is tried by --dry-run; without it, the rules that are applied are shown")
        names = [name] if name else [each["pipeline"] for each in asked.each("pipelines", "pipelines")]
        show({each: _rules_in(asked.get(f"pipelines/{each}")["text"]) for each in names}, as_json, _rules)
        return
    path = with_query("rules/dry-run", {"pipeline": name, "days": days})
    if file is None:
        told = from_json(dict, asked.request("GET", path))
    else:
        if not file.is_file():
            raise NotFound(f"{file} is not a file")
        told = from_json(dict, asked.request("POST", path, file.read_bytes(), {"content-type": "application/yaml"}))
    show(told, as_json, _dry_run)


def _rules_in(text: str) -> list[dict[str, Any]]:
    # Half a second, for one command.
    from dropforge.spec.load import parse

    return [each.model_dump(mode="json") for each in parse(text).alerts]


def _rules(told: dict[str, list[dict[str, Any]]]) -> RenderableType:
    lines = [(name, each) for name, listed in told.items() for each in listed]
    if not lines:
        return "No alert rules; `alerts` in pipeline.yaml holds them."
    made = table("pipeline", "alert rule", "severity", "dimensions", "action")
    for name, each in lines:
        dimensions = ", ".join(f"{key}={value}" for key, value in each["dimensions"].items())
        until = f" until {each['until']}" if each.get("until") else ""
        row(made, name, each["rule"], ", ".join(each["severity"]) or "any", dimensions or "any", each["action"] + until)
    return made


def _dry_run(told: dict[str, Any]) -> RenderableType:
    parts: list[RenderableType] = [Text(f"The last {count(told['days'], 'day')}; nothing was changed.", style="bold")]
    for each in told["pipelines"]:
        events = ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in each["events"].items() if number)
        held = ", ".join(f"{number} by {by.replace('_', ' ')}" for by, number in each["held_by"].items())
        line = f"{events or 'nothing was recorded'} -> {count(each['runs'], 'run')}"
        parts.append(Text.assemble((f"\n{each['pipeline']} ", "bold"), line + (f"; held: {held}" if held else "")))
        if each["rules"]:
            parts.append(_rule_counts(each["rules"]))
        if each["log"]:
            parts.append(_log(each["log"]))
    return Group(*parts)


def _rule_counts(lines: list[dict[str, Any]]) -> RenderableType:
    made = table("alert rule", "action", "#matched", "what became of it")
    for each in lines:
        counts = {key: value for key, value in each.items() if key not in ("rule", "action", "matched")}
        came = ", ".join(f"{number} {result}" for result, number in counts.items())
        row(made, each["rule"], each["action"], each["matched"], came)
    return made


def _log(lines: list[dict[str, Any]]) -> RenderableType:
    made = table("when", "event", "action", "result", "")
    for each in lines[-_MOST_LINES:]:
        event = f"{each['event']} {each['rule']}" if each["rule"] else each["event"]
        row(made, each["at"][:19], event, each["action"], shown.state(each["result"]), each["detail"])
    return made
