"""What people are shown: how a pipeline stands, what it holds, and why."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeAlias

from dropforge.domain.arrivals import Arrival, ArrivalState
from dropforge.domain.causes import Cause
from dropforge.domain.datasets import DatasetVersion, Manifest
from dropforge.domain.endpoints import Deployment
from dropforge.domain.errors import NotFound
from dropforge.domain.models import CHAMPION, ModelVersion
from dropforge.domain.runs import ENDED, RunRecord
from dropforge.ports import Json, Ledger, Ports, Row
from dropforge.steps import approvals, asked, books, commands, control, lanes, train, views
from dropforge.steps import arrivals as arrival_rows
from dropforge.steps.books import Pipeline
from dropforge.wire import from_builtins, from_json, to_builtins

# A page of a list, and where the next one begins; None: this is the last.
Page: TypeAlias = tuple[list[Json], str | None]

# Rows that one page looks at in search of those that are asked for; then it ends, full or not.
LOOKED_AT = 5_000
# How many of them `status` and `why` name.
SHOWN = 20
SHOWN_FILES = 100


def health(ports: Ports) -> None:
    """Returns when the ledger answers. Raises what the ledger raises when it does not."""
    ports.ledger.scan(books.PIPELINES, "pipeline/", limit=1)


# ------------------------------------------------------------------------------------------------ pages
def _page(
    ledger: Ledger, partition: str, prefix: str, after: str, limit: int, keep: Callable[[Json], bool] = lambda _: True
) -> tuple[list[Row], str | None]:
    """Rows in key order. `after` is where the page before ended; it may end before it is full, and there be more."""
    found: list[Row] = []
    looked = 0
    while looked < LOOKED_AT:
        wanted = min(1000, LOOKED_AT - looked)
        rows = ledger.scan(partition, prefix, prefix + after if after else "", limit=wanted)
        for row in rows:
            after = row.key.removeprefix(prefix)
            if keep(row.value):
                found.append(row)
                if len(found) == limit:
                    return found, after
        if len(rows) < wanted:
            return found, None
        looked += len(rows)
    return found, after


def _number(after: str) -> int:
    """Where a list that goes by numbers goes on. Raises `NotFound`."""
    if not re.fullmatch("[0-9]{1,9}", after):
        raise NotFound(f"no page of this list begins at {after!r}")
    return int(after)


def pipelines(ports: Ports, limit: int = 1000, after: str = "") -> Page:
    """A line for each pipeline, by name."""
    rows, following = _page(ports.ledger, books.PIPELINES, "pipeline/", after, limit)
    return [_pipeline_line(ports, books.pipeline(ports.ledger, row.value["name"])) for row in rows], following


def _pipeline_line(ports: Ports, pipeline: Pipeline) -> Json:
    head = books.head(ports.ledger, pipeline.partition).value
    alias = ports.registry.alias(pipeline.name, CHAMPION)
    line = views.PipelineLine(
        pipeline=pipeline.name,
        revision=pipeline.revision,
        drop=pipeline.spec.dataset.drop,
        dataset_version=head["version"] or None,
        live_run=head["run"],
        champion=alias.version if alias else None,
        trouble=head.get("trouble") or control.trouble(ports.ledger, pipeline.partition),
        paused=control.is_paused(ports.ledger, pipeline.partition),
    )
    return _json(line)


def definition(ports: Ports, name: str) -> Json:
    """A pipeline as it was last applied."""
    pipeline = books.pipeline(ports.ledger, name)
    return _json(
        views.PipelineDefinition(
            pipeline=name,
            revision=pipeline.revision,
            applied_at=pipeline.applied_at.isoformat(),
            drop=pipeline.spec.dataset.drop,
            endpoint=books.endpoint_name(pipeline),
            code=pipeline.code,
            code_sha256=pipeline.code_sha256,
            text=pipeline.text,
        )
    )


def arrivals(ports: Ports, name: str, state: str | None = None, limit: int = 1000, after: str = "") -> Page:
    """The files that arrived, in the order of their ids; of one state when it is given."""
    pipeline = books.pipeline(ports.ledger, name)
    rows, following = _page(
        ports.ledger,
        pipeline.partition,
        "arrival/",
        after,
        limit,
        lambda value: state in (None, value["state"]),
    )
    return [_json(from_builtins(Arrival, row.value)) for row in rows], following


def datasets(ports: Ports, name: str, limit: int = 1000, after: str = "") -> Page:
    """The dataset versions, newest first."""
    pipeline = books.pipeline(ports.ledger, name)
    newest = _number(after) - 1 if after else int(books.head(ports.ledger, pipeline.partition).value["version"])
    if newest < 1:
        return [], None
    # Numbers have no gaps, so the newest are a range of keys.
    oldest = max(1, newest - limit + 1)
    rows = ports.ledger.scan(pipeline.partition, "dataset/", books.dataset_key(oldest - 1), limit=newest - oldest + 1)
    found = [_json(from_builtins(DatasetVersion, row.value)) for row in reversed(rows)]
    return found, str(oldest) if oldest > 1 else None


def runs(ports: Ports, name: str, limit: int = 1000, after: str = "") -> Page:
    """A line for each run: those on the newest dataset version first, and of these the one planned last."""
    pipeline = books.pipeline(ports.ledger, name)
    begin, _, last = after.partition("/")
    newest = _number(begin) if begin else int(books.head(ports.ledger, pipeline.partition).value["version"])
    oldest = max(1, newest - LOOKED_AT // 10)
    found: list[Json] = []
    for version in range(newest, oldest - 1, -1):
        for each in _after(_runs_on(ports, pipeline, version), last):
            if len(found) == limit:
                return found, f"{found[-1]['dataset_version']}/{found[-1]['run']}"
            found.append(run_line(each))
        last = ""
    return found, f"{oldest - 1}/" if oldest > 1 else None


def _after(found: list[RunRecord], last: str) -> list[RunRecord]:
    """Those behind the run named `last`; all of them when it is not named, or is gone."""
    ids = [each.spec.run for each in found]
    return found[ids.index(last) + 1 :] if last in ids else found


def _runs_on(ports: Ports, pipeline: Pipeline, version: int) -> list[RunRecord]:
    """The runs on a dataset version, newest first; their ids begin alike."""
    rows = books.every(ports.ledger, pipeline.partition, books.run_key(f"{pipeline.name}-{version}-"))
    return sorted((from_builtins(RunRecord, row.value) for row in rows), key=lambda run: run.planned_at, reverse=True)


def models(ports: Ports, name: str, limit: int = 1000, after: str = "") -> Page:
    """A line for each model version, newest first."""
    books.pipeline(ports.ledger, name)
    alias = ports.registry.alias(name, CHAMPION)
    if after:
        newest = _number(after) - 1
        found = [ports.registry.get(name, number) for number in range(newest, max(0, newest - limit), -1)]
    else:
        found = ports.registry.list(name, limit)
    lines = [_model_line(each, alias is not None and alias.version == each.version) for each in found]
    last = found[-1].version if found else 1
    return lines, str(last) if last > 1 else None


def _model_line(model: ModelVersion, champion: bool) -> Json:
    line = views.ModelLine(
        version=model.version,
        champion=champion,
        run=model.lineage.run,
        dataset_version=model.lineage.dataset_version,
        verdict=model.lineage.verdict["outcome"],
        sha256=model.sha256,
        created_at=model.created_at.isoformat(),
    )
    return _json(line)


def endpoints(ports: Ports, limit: int = 1000, after: str = "") -> Page:
    """The endpoints that were ever deployed to, by the name of their pipeline."""
    rows, following = _page(ports.ledger, books.PIPELINES, "pipeline/", after, limit)
    found = (endpoint_of(ports, books.pipeline(ports.ledger, row.value["name"])) for row in rows)
    return [each for each in found if each is not None], following


def questions(ports: Ports, name: str | None, state: str = "open", limit: int = 1000, after: str = "") -> Page:
    """Questions put to people: the open ones, or all; of one pipeline, or of all of them."""
    if name is not None:
        partition = books.pipeline(ports.ledger, name).partition
        prefix = "asking/" if state == "open" else "approval/"
        rows, following = _page(ports.ledger, partition, prefix, after, limit)
        return [approvals.question(ports, name, row.key.removeprefix(prefix)) for row in rows], following
    return _open_questions(ports, limit, after)


def _open_questions(ports: Ports, limit: int, after: str) -> Page:
    """Of all pipelines. `after`: a pipeline that has been seen to, or `<pipeline>/<run>`: one up to that run."""
    begin, _, last = after.partition("/")
    rows, following = _page(ports.ledger, books.PIPELINES, "pipeline/", begin, limit)
    begun = [books.pipeline(ports.ledger, begin).name] if last else []
    found: list[Json] = []
    for name in (*begun, *(row.value["name"] for row in rows)):
        waiting, more = _page(ports.ledger, books.partition_of(name), "asking/", last, limit - len(found))
        found += [approvals.question(ports, name, row.key.removeprefix("asking/")) for row in waiting]
        # Also when it is full.
        if more is not None:
            return found, f"{name}/{more}"
        last = ""
    return found, following


# ------------------------------------------------------------------------------------------------ one thing
def quarantine(ports: Ports, name: str, arrival: str) -> Json:
    """Why a file is in quarantine: every broken rule, with rows and values."""
    found = books.arrival(ports.ledger, books.partition_of(name), arrival)
    if found.report is None:
        raise NotFound(f"file {found.url} was never in quarantine; it is {found.state.value}", arrival=arrival)
    report: Json = json.loads(ports.artifacts.read(found.report))
    return report


def manifest(ports: Ports, name: str, version: int) -> Json:
    """A dataset version and the files that made it."""
    found = books.dataset_version(ports.ledger, books.partition_of(name), version)
    made_of = from_json(Manifest, ports.artifacts.read(found.manifest))
    partition = books.partition_of(name)
    gone = tuple(
        from_builtins(views.GoneLine, each) for each in arrival_rows.gone_of(ports.ledger, partition, found.batch)
    )
    return _json(views.Dataset(found, made_of, gone))


def run_logs(ports: Ports, name: str, run: str, tail_bytes: int = 65536) -> str:
    """The end of what a run printed."""
    train.record(ports, name, run)
    return ports.compute.logs(run, tail_bytes)


def model(ports: Ports, name: str, version: int) -> Json:
    """A model version with its lineage."""
    books.pipeline(ports.ledger, name)
    return _json(ports.registry.get(name, version))


def aliases(ports: Ports, name: str) -> list[Json]:
    """The aliases of a pipeline's model."""
    books.pipeline(ports.ledger, name)
    alias = ports.registry.alias(name, CHAMPION)
    return [_json(views.AliasLine(alias.name, alias.version, alias.history))] if alias else []


def endpoint(ports: Ports, name: str) -> Json:
    """What the endpoint should serve, and what its replicas say they do. Raises `NotFound`."""
    for pipeline in books.pipelines(ports.ledger):
        if books.endpoint_name(pipeline) == name:
            found = endpoint_of(ports, pipeline)
            if found is not None:
                return found
            raise NotFound(f"endpoint {name!r} serves nothing yet", endpoint=name)
    raise NotFound(f"no pipeline has an endpoint {name!r}", endpoint=name)


def endpoint_of(ports: Ports, pipeline: Pipeline) -> Json | None:
    """The endpoint of a pipeline; None when nothing was deployed to it yet."""
    name = books.endpoint_name(pipeline)
    row = books.endpoint_head(ports.ledger, name)
    if row is None:
        return None
    found = views.Endpoint(
        endpoint=name,
        pipeline=pipeline.name,
        revision=row.value["revision"],
        state=row.value["state"],
        reason=row.value.get("reason"),
        deployments=tuple(from_builtins(Deployment, each) for each in row.value["deployments"]),
        replicas=tuple(ports.serving.observe(name)),
    )
    return _json(found)


def command(ports: Ports, id_: str, pipeline: str | None = None) -> Json:
    """A command, and how the work that it set going stands. Without a pipeline it is looked for in all of them."""
    found = _command(ports, id_, pipeline)
    outcome: Json = found["outcome"] or {"state": "working", "result": None, "error": None}
    shown = views.CommandView(
        id=found["id"],
        command=found["command"],
        pipeline=found["pipeline"],
        arguments=found["arguments"],
        by=found["by"],
        cause=from_builtins(Cause, found["cause"]),
        asked_at=found["asked_at"],
        state=outcome["state"],
        result=outcome["result"],
        error=outcome["error"],
        work=_work(ports, found["pipeline"], outcome["result"] or {}),
    )
    return _json(shown)


def _command(ports: Ports, id_: str, pipeline: str | None) -> Json:
    if pipeline is not None:
        return commands.record(ports, pipeline, id_)
    for each in books.pipelines(ports.ledger):
        try:
            return commands.record(ports, each.name, id_)
        except NotFound:
            continue
    raise NotFound(f"no pipeline was ever given a command {id_!r}", command=id_)


def _work(ports: Ports, name: str, result: Json) -> views.Work | None:
    if result.get("flow"):
        return _deployment(ports, name, result["flow"])
    run = result.get("run")
    if result.get("request"):
        run = asked.run_of(ports, name, result["request"])
        if run is None:
            return views.Work("run", result["request"], over=False, state="waiting", reason=result.get("waits_for"))
    return _run_work(train.record(ports, name, run)) if run is not None else None


def _run_work(run: RunRecord) -> views.Work:
    outcome = run.outcome.value if run.outcome else None
    over = run.state in ENDED and outcome not in (None, "waiting_for_answer")
    return views.Work("run", run.spec.run, over, outcome or run.state.value, run.decision_reason or run.reason)


def _deployment(ports: Ports, name: str, token: str) -> views.Work:
    """How far the deployment of that token has come, as far as the endpoint remembers it."""
    partition = books.endpoint_partition(books.endpoint_name(books.pipeline(ports.ledger, name)))
    row = ports.ledger.get(partition, "head")
    value = row.value if row is not None else {}
    if value.get("token") == token:
        return views.Work("deployment", token, value["state"] == "live", value["state"], value.get("reason"))
    if value.get("token") == f"{token}-rolled-back":
        return views.Work("deployment", token, True, "rolled_back", value.get("reason"))
    if ports.ledger.get(partition, books.token_key(token)) is not None:
        return views.Work("deployment", token, True, "superseded", "another deployment has the endpoint since")
    return views.Work("deployment", token, False, "waiting", "another deployment has the endpoint now")


# ------------------------------------------------------------------------------------------------ status
def status(ports: Ports, name: str) -> Json:
    """Everything `dropforge status` shows of a pipeline."""
    pipeline = books.pipeline(ports.ledger, name)
    partition = pipeline.partition
    head = books.head(ports.ledger, partition).value
    alias = ports.registry.alias(name, CHAMPION)
    counts, quarantined = _counted(ports.ledger, partition)
    found = endpoint_of(ports, pipeline)
    recent, _ = runs(ports, name, limit=10)
    shown = views.Status(
        pipeline=name,
        revision=pipeline.revision,
        drop=pipeline.spec.dataset.drop,
        files=counts,
        quarantined=quarantined,
        batch=head["open"],
        dataset=_version_line(ports, partition, head["version"]),
        live_run=head["run"],
        trouble=head.get("trouble") or control.trouble(ports.ledger, partition),
        runs=tuple(from_builtins(views.RunLine, each) for each in recent[:10]),
        champion=alias.version if alias else None,
        endpoint=from_builtins(views.Endpoint, found) if found is not None else None,
        questions=tuple(from_builtins(views.Question, each) for each in approvals.open_questions(ports, name)),
        busy={
            lane: lanes.live_epoch(ports.ledger, partition, lane) is not None
            for lane in (arrival_rows.LANE, train.LANE)
        },
        control=control.read(ports.ledger, partition),
    )
    return _json(shown)


Counted: TypeAlias = tuple[views.FileCounts, tuple[views.QuarantinedLine, ...]]
# Counting reads every arrival. What took long is kept for so many times as long as it took.
_KEEP_FACTOR = 20
_KEEP_FROM_SECONDS = 0.1
_kept: dict[tuple[int, str], tuple[float, Counted]] = {}


def _counted(ledger: Ledger, partition: str) -> Counted:
    """Files by state, and the first of those in quarantine. Of very many files the figures may be some seconds old."""
    place = (id(ledger), partition)
    until, counted = _kept.get(place, (0.0, None))
    began = time.monotonic()
    if counted is not None and began < until:
        return counted
    states: Counter[str] = Counter()
    quarantined: list[views.QuarantinedLine] = []
    for row in books.every(ledger, partition, "arrival/"):
        value = row.value
        states[value["state"]] += 1
        if value["state"] == ArrivalState.QUARANTINED.value and len(quarantined) < SHOWN:
            quarantined.append(
                views.QuarantinedLine(value["id"], value["url"], value.get("reason"), value.get("report"))
            )
    counted = (views.FileCounts(**{each.value: states[each.value] for each in ArrivalState}), tuple(quarantined))
    took = time.monotonic() - began
    if took >= _KEEP_FROM_SECONDS:
        _kept[place] = (began + took * (_KEEP_FACTOR + 1), counted)
    else:
        _kept.pop(place, None)
    return counted


def _version_line(ports: Ports, partition: str, version: int) -> views.DatasetLine | None:
    if not version:
        return None
    found = books.dataset_version(ports.ledger, partition, version)
    return views.DatasetLine(found.version, found.files, found.rows, found.total_rows, found.created_at.isoformat())


def run_line(found: RunRecord) -> Json:
    """A run on one line, as lists of runs show it."""
    line = views.RunLine(
        run=found.spec.run,
        dataset_version=found.spec.dataset_version,
        state=found.state.value,
        reason=found.reason,
        seconds=found.seconds,
        verdict=found.verdict["outcome"] if found.verdict else None,
        summary=found.verdict_summary,
        decision=found.decision,
        decision_reason=found.decision_reason,
        model_version=found.model_version,
        outcome=found.outcome.value if found.outcome else None,
        planned_at=found.planned_at.isoformat(),
        live_at=found.live_at.isoformat() if found.live_at else None,
    )
    return _json(line)


# ------------------------------------------------------------------------------------------------ why
def why(ports: Ports, name: str, version: int | None) -> Json:
    """From a model version (default: the champion) back to everything behind it."""
    pipeline = books.pipeline(ports.ledger, name)
    if version is None:
        alias = ports.registry.alias(name, CHAMPION)
        if alias is None:
            raise NotFound(f"pipeline {name!r} has no champion yet", pipeline=name)
        version = alias.version
    made = ports.registry.get(name, version)
    run = train.record(ports, name, made.lineage.run)
    versions = list(_made_of(ports.ledger, pipeline.partition, made.lineage.dataset_version))
    found = from_json(Manifest, ports.artifacts.read(versions[-1].manifest))
    try:
        asked = from_builtins(views.Question, approvals.question(ports, name, run.spec.run))
    except NotFound:
        asked = None
    shown = views.Why(
        model=made,
        run=from_builtins(views.RunLine, run_line(run)),
        champion_then=run.spec.champion,
        dataset=versions[-1],
        files=tuple(_source_lines(ports.ledger, pipeline.partition, found)),
        made_of=tuple(views.MadeOf(each.version, each.files, each.rows, each.manifest) for each in versions),
        causes=tuple(_causes(ports, pipeline, versions, run, version)),
        approval=asked,
    )
    return _json(shown)


def _made_of(ledger: Ledger, partition: str, version: int) -> Iterator[DatasetVersion]:
    rows = books.every(ledger, partition, "dataset/")
    return (from_builtins(DatasetVersion, row.value) for row in islice(rows, version))


def _source_lines(ledger: Ledger, partition: str, found: Manifest) -> Iterator[views.SourceLine]:
    for source in found.sources[:SHOWN_FILES]:
        row = ledger.get(partition, f"arrival/{source.arrival}")
        cause = row.value.get("cause") if row is not None else None
        event = cause["id"] if cause else None
        at = source.arrived_at.isoformat()
        yield views.SourceLine(source.arrival, source.url, source.sha256, source.rows, at, event)


def _causes(
    ports: Ports, pipeline: Pipeline, versions: list[DatasetVersion], run: RunRecord, version: int
) -> Iterator[views.CauseLine]:
    """What came in through a door and led to this model, or to its being what answers."""
    for each in versions[-SHOWN:]:
        if each.cause is not None:
            yield views.CauseLine(f"dataset version {each.version}", each.created_at.isoformat(), each.cause)
    if run.cause is not None:
        yield views.CauseLine(f"run {run.spec.run}", run.planned_at.isoformat(), run.cause)
    row = books.endpoint_head(ports.ledger, books.endpoint_name(pipeline))
    if row is not None and row.value.get("cause") and version in [each["version"] for each in row.value["deployments"]]:
        cause = from_builtins(Cause, row.value["cause"])
        yield views.CauseLine(f"deployment of version {version}", row.value["written_at"], cause)


def _json(value: object) -> Json:
    # Lists, as they come back from JSON: a step's caller must not see whether there was HTTP between.
    return {key: list(each) if isinstance(each, tuple) else each for key, each in to_builtins(value).items()}
