"""The `dropforge` command: one machine's host, and everything a person asks of the platform."""

from __future__ import annotations

import getpass
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dropforge.client import Client, connect, drop_file, find_state
from dropforge.domain.errors import BadInput, DropforgeError, NotFound, Unavailable
from dropforge.domain.names import checked_name

app = typer.Typer(
    name="dropforge",
    help="Drop data, get a proven better model in production.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)

State = Annotated[
    Path | None,
    typer.Option("--state", help="State folder of the host on this machine. Default: the nearest .dropforge."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text for people.")]
Name = Annotated[str, typer.Argument(help="The pipeline's name.")]

T = TypeVar("T")

# Exit codes that scripts can rely on.
REFUSED, NOT_RUNNING = 1, 3


def main() -> None:
    """Run the command; our errors are one sentence on stderr, never a traceback."""
    try:
        app(standalone_mode=True)
    except Unavailable as error:
        _complain(error)
        sys.exit(NOT_RUNNING)
    except DropforgeError as error:
        _complain(error)
        sys.exit(REFUSED)


def _complain(error: DropforgeError) -> None:
    err.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)


def _client(state: Path | None) -> Client:
    return Client(connect(state.absolute() if state else None))


def _show(value: T, as_json: bool, show: Callable[[T], RenderableType | None]) -> None:
    if as_json:
        sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
        return
    shown = show(value)
    if shown is not None:
        out.print(shown)


def _row(table: Table, *cells: object) -> None:
    """A row of plain text: what others wrote is shown as it is, brackets and all."""
    table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells))


def _facts(*facts: tuple[str, object]) -> Table:
    """Names in bold, and what they are."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, fact in facts:
        _row(table, Text(name, style="bold"), fact)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


# ------------------------------------------------------------------------------------------------ up, init, drop
@app.command()
def up(
    state: State = None,
    port: Annotated[int, typer.Option(help="Port of the host; the inference server takes the next one.")] = 7071,
    app_dir: Annotated[Path | None, typer.Option("--app", help="Folder of function_app.py.")] = None,
    record: Annotated[Path | None, typer.Option(help="Record every episode of a flow here, to replay it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say addresses and keys as one JSON object.")] = False,
) -> None:
    """Run the whole platform on this machine until Ctrl-C: host, flows, training, inference."""
    from dropforge.machine import run

    sys.exit(run((state or find_state()).absolute(), port, app_dir, record, as_json=as_json))


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Name of the new pipeline; a folder of that name is made here.")],
    folder: Annotated[Path | None, typer.Option("--folder", help="Where to make it instead.")] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Make a pipeline: a folder with pipeline.yaml and a training script that works on any table."""
    checked_name(name, "pipeline")
    target = (folder or Path(name)).absolute()
    if target.exists() and any(target.iterdir()):
        raise BadInput(f"{target} exists and is not empty; choose another name or --folder")
    template = Path(__file__).parent / "scaffold"
    target.mkdir(parents=True, exist_ok=True)
    made = []
    for source in sorted(template.iterdir()):
        if source.is_file() and source.suffix in (".yaml", ".py", ".md") and source.name != "__init__.py":
            text = source.read_text(encoding="utf-8").replace("{name}", name)
            (target / source.name).write_text(text, encoding="utf-8")
            made.append(source.name)
    applied = _applied(state, name, target)
    value = {"pipeline": name, "folder": str(target), "files": made, "applied": applied}
    _show(
        value,
        as_json,
        lambda _: (
            f"Made [bold]{target}[/] ({', '.join(made)})"
            + (" and applied it to the running host.\n" if applied else ".\n")
            + f"Next: dropforge drop {name} data.csv && dropforge status {name} --watch"
        ),
    )


def _applied(state: Path | None, name: str, folder: Path) -> bool:
    try:
        _client(state).apply(name, folder)
    except Unavailable:
        return False
    return True


@app.command()
def apply(
    name: Name,
    folder: Annotated[
        Path | None, typer.Argument(help="Its folder. Default: ./<name>, then ./examples/<name>.")
    ] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Make the pipeline what its folder says; new code is trained on the data that is there."""
    where = folder or _folder_of(name)
    if where is None:
        raise NotFound(f"no folder ./{name} with a pipeline.yaml; name it: dropforge apply {name} FOLDER")
    _show(_client(state).apply(name, where), as_json, lambda told: f"{name} is at revision {told['revision']}.")


def _folder_of(name: str) -> Path | None:
    for folder in (Path(name), Path("examples") / name):
        if (folder / "pipeline.yaml").is_file():
            return folder
    return None


@app.command()
def drop(
    name: Name,
    files: Annotated[list[Path], typer.Argument(help="Files to drop.")],
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Drop files for a pipeline. If its folder lies here and has changed, it is applied first."""
    client = _client(state)
    if client.connection.state is None:
        raise BadInput(
            "this command drops into a host on this machine; elsewhere, upload to the drop container instead"
        )
    folder = _folder_of(name)
    if folder is not None:
        client.apply(name, folder)
    prefix = client.get(f"pipelines/{name}")["drop"]
    dropped = []
    for file in files:
        target, written = drop_file(client.connection.state, prefix, file)
        dropped.append({"file": str(file), "dropped": str(target), "written": written})
    _show(dropped, as_json, lambda told: "\n".join(_dropped_line(each) for each in told))


def _dropped_line(each: dict[str, Any]) -> str:
    name = Path(each["dropped"]).name
    return f"Dropped {name}." if each["written"] else f"{name} lies there already, byte for byte; nothing to do."


# ------------------------------------------------------------------------------------------------ how it stands
@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="The pipeline; without it, one line for each.")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on showing it; ends when nothing is left to do.")
    ] = False,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """How a pipeline stands: files, dataset version, run, verdict, what answers."""
    client = _client(state)
    if name is None:
        _show(client.get("pipelines"), as_json, lambda told: _pipelines(told["pipelines"]))
        return
    if not watch:
        _show(client.get(f"pipelines/{name}"), as_json, _status)
        return
    _watch(client, name, as_json)


def _watch(client: Client, name: str, as_json: bool) -> None:
    idle_since: float | None = None
    told = client.get(f"pipelines/{name}")
    with Live(console=out, refresh_per_second=8, transient=False) as live:
        while True:
            told = client.get(f"pipelines/{name}")
            if not as_json:
                live.update(_status(told))
            # A file that was dropped a moment ago is announced within a second or two.
            if _busy(told):
                idle_since = None
            elif idle_since is None:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > 3:
                break
            time.sleep(0.25)
    if as_json:
        _show(told, True, lambda _: None)


def _busy(told: dict[str, Any]) -> bool:
    return bool(told["files"]["pending"] or told["live_run"] or any(told["busy"].values()))


def _pipelines(lines: list[dict[str, Any]]) -> RenderableType:
    if not lines:
        return "No pipeline yet; `dropforge init NAME` makes one."
    table = _table("pipeline", "revision", "drop", "dataset", "live run", "champion", "trouble")
    for each in lines:
        _row(table, *(value if value is not None else "-" for value in each.values()))
    return table


def _status(told: dict[str, Any]) -> RenderableType:
    files, dataset = told["files"], told["dataset"]
    facts = [
        ("pipeline", f"{told['pipeline']} (revision {told['revision']}), drop into {told['drop']}"),
        ("files", ", ".join(f"{count} {state}" for state, count in files.items() if count) or "none yet"),
    ]
    if dataset:
        made = f"version {dataset['version']}: {dataset['files']} files, {dataset['rows']:,} rows"
        facts.append(("dataset", f"{made} ({dataset['total_rows']:,} in all)"))
    answering = f"version {told['champion']}" if told["champion"] else "no model yet"
    facts += [("run", told["live_run"] or "none live"), ("champion", answering + _endpoint_note(told["endpoint"]))]
    parts: list[RenderableType] = [_facts(*facts)]
    if told["trouble"]:
        parts.append(Text.assemble(("trouble: ", "red"), told["trouble"]))
    for each in told["quarantined"]:
        name = each["url"].rsplit("/", 1)[-1]
        parts.append(Text.assemble(("quarantined ", "yellow"), f"{name} ({each['id']}): {each['reason']}"))
    for each in told["questions"]:
        how = f"dropforge answer {told['pipeline']} {each['run']} approve"
        parts.append(Text.assemble(("question ", "cyan"), f"{each['question']} -> {how}"))
    if told["runs"]:
        parts.append(_runs(told["runs"]))
    return Group(*parts)


def _endpoint_note(endpoint: dict[str, Any] | None) -> str:
    if endpoint is None:
        return ""
    ready = sum(each["ready"] for each in endpoint["replicas"])
    note = f", endpoint {endpoint['endpoint']} {endpoint['state']}, {ready}/{len(endpoint['replicas'])} replicas ready"
    return note + (f" ({endpoint['reason']})" if endpoint.get("reason") else "")


@app.command()
def runs(name: Name, state: State = None, as_json: AsJson = False) -> None:
    """Every run of a pipeline, newest first."""
    _show(_client(state).get(f"pipelines/{name}/runs")["runs"], as_json, _runs)


def _runs(lines: list[dict[str, Any]]) -> RenderableType:
    table = _table("run", "data", "state", "verdict", "model", "outcome")
    for each in lines:
        model = f"v{each['model_version']}" if each["model_version"] else "-"
        _row(
            table,
            each["run"],
            f"v{each['dataset_version']}",
            each["state"],
            each["summary"] or each["reason"] or "",
            model,
            _outcome(each),
        )
    return table


def _outcome(run: dict[str, Any]) -> str:
    if run["outcome"] == "kept_champion":
        return f"not promoted: {run['decision_reason']}"
    return (run["outcome"] or "").replace("_", " ")


@app.command()
def models(name: Name, state: State = None, as_json: AsJson = False) -> None:
    """Model versions of a pipeline, newest first."""

    def show(lines: list[dict[str, Any]]) -> RenderableType:
        table = _table("version", "champion", "verdict", "data", "run", "sha256", "made")
        for each in lines:
            _row(
                table,
                f"v{each['version']}",
                "champion" if each["champion"] else "",
                each["verdict"].replace("_", " "),
                f"v{each['dataset_version']}",
                each["run"],
                each["sha256"][:12],
                _ago(each["created_at"]),
            )
        return table

    _show(_client(state).get(f"pipelines/{name}/models")["models"], as_json, show)


def _ago(when: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(when)).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


@app.command()
def logs(
    name: Name,
    run: Annotated[str | None, typer.Argument(help="The run. Default: the newest.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """What a training run printed."""
    client = _client(state)
    newest = client.get(f"pipelines/{name}/runs")["runs"]
    if run is None and not newest:
        raise NotFound(f"pipeline {name!r} has no run yet")
    chosen = run or newest[0]["run"]
    printed = ""
    while True:
        over = client.get(f"pipelines/{name}/runs/{chosen}")["state"] in ("succeeded", "failed", "cancelled")
        text = client.request("GET", f"pipelines/{name}/runs/{chosen}/logs").decode(errors="replace")
        # The answer is the log's end: past its size only what follows the last line shown is new.
        if not as_json:
            sys.stdout.write(_after(printed, text))
            sys.stdout.flush()
        printed = text
        if over or not follow:
            break
        time.sleep(0.5)
    if as_json:
        _show({"run": chosen, "log": printed}, True, lambda _: None)


def _after(shown: str, text: str) -> str:
    """What follows the lines shown before. The API answers with the end of the log, so their beginning may be gone."""
    mark = shown[-500:]
    place = text.rfind(mark) if mark else -1
    return text[place + len(mark) :] if place >= 0 else text


@app.command()
def why(
    name: Name,
    version: Annotated[int | None, typer.Argument(help="The model version. Default: the champion.")] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """From a model version back to the run, the verdict, the code and the files behind it."""

    def show(told: dict[str, Any]) -> RenderableType:
        model, run, dataset = told["model"], told["run"], told["dataset"]
        lineage = model["lineage"]
        return _facts(
            ("model", f"{model['model']} v{model['version']}, sha256 {model['sha256']}"),
            ("run", f"{run['run']}, seed {lineage['seed']}, {run['seconds'] or 0:.1f} s"),
            ("verdict", run["summary"] or "-"),
            ("code", f"{lineage['code']}, sha256 {lineage['code_sha256']}"),
            ("dataset", f"version {dataset['version']}, {dataset['total_rows']:,} rows"),
            ("manifest", f"{dataset['manifest']}, sha256 {dataset['manifest_sha256']}"),
            *(
                ("", f"version {each['version']}: {each['files']} files, {each['rows']:,} rows")
                for each in told["made_of"]
            ),
        )

    _show(_client(state).get(f"pipelines/{name}/why", version=version), as_json, show)


# ------------------------------------------------------------------------------------------------ what people do
@app.command()
def replay(
    name: Name,
    arrival: Annotated[str | None, typer.Argument(help="Id of the quarantined file. Default: all of them.")] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Put quarantined files back in line, to be checked again; a changed folder is applied first."""
    client = _client(state)
    folder = _folder_of(name)
    if folder is not None:
        client.apply(name, folder)
    told = client.post(f"pipelines/{name}/replay", arrival=arrival)
    count = len(told["replayed"])
    _show(
        told,
        as_json,
        lambda _: (
            f"{count} file{'s' if count != 1 else ''} put back in line." if count else "Nothing is in quarantine."
        ),
    )


@app.command()
def report(
    name: Name,
    arrival: Annotated[str, typer.Argument(help="Id of the file.")],
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Why a file is in quarantine: which rows broke which rule."""

    def show(told: dict[str, Any]) -> RenderableType:
        table = _table("rule", "column", "problem", "rows", "found")
        for each in told["problems"]:
            rows = ", ".join(map(str, each["rows"][:10])) + (", …" if each["count"] > 10 else "")
            _row(table, each["rule"], each["column"] or "", each["message"], rows, ", ".join(each["values"][:5]))
        return Group(Text(f"{told['url']} ({told['rows']:,} rows)"), table)

    _show(_client(state).get(f"pipelines/{name}/arrivals/{arrival}/report"), as_json, show)


@app.command()
def promote(
    name: Name,
    version: Annotated[int, typer.Argument(help="Model version.")],
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Put a model version behind the pipeline's endpoint, by hand."""
    told = _client(state).post(f"pipelines/{name}/promote", version=version)
    _show(told, as_json, lambda _: f"Version {told['version']} is being deployed.")


@app.command()
def rollback(name: Name, state: State = None, as_json: AsJson = False) -> None:
    """Put the champion before this one back."""
    told = _client(state).post(f"pipelines/{name}/rollback")
    _show(told, as_json, lambda _: f"Version {told['version']} is being put back.")


@app.command()
def cancel(
    name: Name, run: Annotated[str, typer.Argument(help="The run.")], state: State = None, as_json: AsJson = False
) -> None:
    """End a training run with all its processes."""
    told = _client(state).post(f"pipelines/{name}/runs/{run}/cancel")
    _show(told, as_json, lambda _: f"{run} is being ended.")


@app.command()
def answer(
    name: Name,
    run: Annotated[str, typer.Argument(help="The run that asks.")],
    given: Annotated[str, typer.Argument(help="approve or reject")],
    by: Annotated[str | None, typer.Option(help="Who answers. Default: you.")] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Answer the question that a run asks before its model is promoted."""
    told = _client(state).post(f"pipelines/{name}/runs/{run}/answer", answer=given, by=by or getpass.getuser())
    _show(told, as_json, lambda _: f"{run}: {told['answer']}, by {told['by']}.")


if __name__ == "__main__":
    main()
