"""Dataset version in, verdict and model version out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from dropforge.domain.datasets import DatasetVersion
from dropforge.domain.errors import BadInput, Conflict, NotFound, RunFailed
from dropforge.domain.events import DomainEvent
from dropforge.domain.gate import Action, decide
from dropforge.domain.models import CHAMPION, Lineage
from dropforge.domain.names import NAME, id_of
from dropforge.domain.runs import (
    ENDED,
    ChampionRef,
    EvaluationPlan,
    RunOutcome,
    RunRecord,
    RunResult,
    RunSpec,
    RunState,
)
from dropforge.domain.verdicts import Evidence, Verdict, judge, summary
from dropforge.ports import Insert, Json, Ports, Replace, Row
from dropforge.settings import Settings
from dropforge.steps import books, control, lanes, outbox
from dropforge.steps.books import Pipeline
from dropforge.wire import from_builtins, from_json, to_builtins

LANE = "train"
DAY = timedelta(days=1)


def run_key(run: str) -> str:
    return f"run/{run}"


def record(ports: Ports, pipeline: str, run: str) -> RunRecord:
    """The ledger's record of a run. Raises `NotFound`."""
    row = ports.ledger.get(books.partition_of(pipeline), run_key(run))
    if row is None:
        raise NotFound(f"pipeline {pipeline!r} has no run {run!r}", run=run, pipeline=pipeline)
    return from_builtins(RunRecord, row.value)


def records(ports: Ports, pipeline: str) -> list[RunRecord]:
    """Every run of the pipeline, newest first."""
    rows = books.every(ports.ledger, books.partition_of(pipeline), "run/")
    return sorted((from_builtins(RunRecord, row.value) for row in rows), key=lambda each: each.planned_at, reverse=True)


def _put(ports: Ports, value: RunRecord, also: Sequence[Insert] = ()) -> RunRecord:
    builtins = to_builtins(value)
    partition = books.partition_of(value.spec.pipeline)
    books.change(ports.ledger, partition, run_key(value.spec.run), lambda _: builtins, lambda _: also)
    return value


# ------------------------------------------------------------------------------------------------ when to train
def wake_training(ports: Ports, name: str, *, changed: bool = False) -> Json | None:
    """The training flow to start, when the newest dataset version (or newer code) has not been trained on yet.

    `changed`: the pipeline was applied; a flow that waits for its budget looks again.
    """
    pipeline = books.pipeline(ports.ledger, name)
    if not _wanted(ports, pipeline):
        return None
    epoch = lanes.enter(ports.ledger, pipeline.partition, LANE)
    idle = books.head(ports.ledger, pipeline.partition).value["run"] is None
    return {
        "flow": "train",
        "id": f"train-{name}-{epoch}",
        "input": {"pipeline": name, "epoch": epoch},
        "signal": "changed" if changed and idle else None,
    }


def _wanted(ports: Ports, pipeline: Pipeline) -> bool:
    head = books.head(ports.ledger, pipeline.partition).value
    if head["run"] is not None:
        return True
    if control.is_paused(ports.ledger, pipeline.partition):
        return False
    return bool(head["version"] and head["considered"] != [head["version"], pipeline.training_key])


def sweep(ports: Ports) -> list[Json]:
    """Training flows that should live; one that lives already is started again in vain."""
    flows = (wake_training(ports, each.name) for each in books.pipelines(ports.ledger))
    return [flow for flow in flows if flow is not None]


# Azure ML says these of a run that is over. A failed or cancelled one may send no event at all.
OVER = {"Completed", "Failed", "Canceled"}


def flow_waiting_for(ports: Ports, event_type: str, data: Json) -> str | None:
    """The flow that waits for the run an Azure ML event is about; None when it is not over, or nobody waits."""
    if event_type not in (
        "Microsoft.MachineLearningServices.RunCompleted",
        "Microsoft.MachineLearningServices.RunStatusChanged",
    ):
        return None
    if data.get("runStatus", "Completed") not in OVER:
        return None
    pipeline = str(data.get("runId", "")).rsplit("-", 2)[0]
    if not NAME.fullmatch(pipeline):
        return None
    epoch = lanes.live_epoch(ports.ledger, books.partition_of(pipeline), LANE)
    return f"train-{pipeline}-{epoch}" if epoch is not None else None


def leave_training(ports: Ports, name: str, epoch: int) -> bool:
    """Whether the training flow may end; see `lanes.leave`."""
    books.note_trouble(ports.ledger, name, None)

    def more() -> bool:
        return _wanted(ports, books.pipeline(ports.ledger, name))

    return lanes.leave(ports.ledger, books.partition_of(name), LANE, epoch, more)


def plan_run(ports: Ports, name: str, settings: Settings, now: datetime) -> Json:
    """What the training flow should do: `run` a run, `wait` until a time (over budget), or nothing (`none`).

    At most one run of a pipeline is live: one that is, is returned again.
    """
    pipeline = books.pipeline(ports.ledger, name)
    while True:
        head = books.head(ports.ledger, pipeline.partition)
        if head.value["run"] is not None:
            return {"action": "run", "run": head.value["run"], "poll_seconds": settings.run_poll_seconds}
        if not _wanted(ports, pipeline):
            return {"action": "none"}
        try:
            return _plan(ports, pipeline, head, settings, now)
        except Conflict:
            continue  # somebody else planned; look again


def _plan(ports: Ports, pipeline: Pipeline, head: Row, settings: Settings, now: datetime) -> Json:
    version = books.dataset_version(ports.ledger, pipeline.partition, int(head.value["version"]))
    considered = {**head.value, "considered": [version.version, pipeline.training_key]}
    known = ports.ledger.get(pipeline.partition, run_key(_run_id(pipeline, version)))
    # A run of that id means: trained on with this code before (the code was changed, and changed back).
    if known is not None or version.total_rows < pipeline.spec.training.min_rows:
        ports.ledger.commit(pipeline.partition, [Replace("head", considered, head.etag)])
        return {"action": "none"}
    until = _budget_free_at(ports, pipeline, now)
    if until is not None:
        return {"action": "wait", "until": until.isoformat()}
    planned = _planned(ports, pipeline, version, settings, now)
    run = planned.spec.run
    ports.ledger.commit(
        pipeline.partition,
        [Replace("head", {**considered, "run": run}, head.etag), Insert(run_key(run), to_builtins(planned))],
    )
    return {"action": "run", "run": run, "poll_seconds": settings.run_poll_seconds}


def _budget_free_at(ports: Ports, pipeline: Pipeline, now: datetime) -> datetime | None:
    """None when the day's budget allows another run; otherwise when it will."""
    budget = pipeline.spec.budget
    recent = [each for each in records(ports, pipeline.name) if each.planned_at > now - DAY]
    minutes = sum(each.seconds or 0.0 for each in recent) / 60
    if len(recent) < budget.runs_per_day and minutes < budget.training_minutes_per_day:
        return None
    return min(each.planned_at for each in recent) + DAY if recent else now + DAY


def _run_id(pipeline: Pipeline, version: DatasetVersion) -> str:
    return f"{pipeline.name}-{version.version}-{pipeline.training_key[:6]}"


def _planned(ports: Ports, pipeline: Pipeline, version: DatasetVersion, settings: Settings, now: datetime) -> RunRecord:
    spec, batch = pipeline.spec, books.batch(ports.ledger, pipeline.partition, version.batch)
    champion = None
    alias = ports.registry.alias(pipeline.name, CHAMPION)
    if alias is not None:
        model = ports.registry.get(pipeline.name, alias.version)
        champion = ChampionRef(model.model, model.version, model.artifact, model.sha256)
    label = spec.dataset.label
    if label is None:
        # Without a word about it, the last column of the first file is the label.
        own = [each.name for each in version.columns if not each.name.startswith("_")]
        label = own[-1]
    run = RunSpec(
        run=_run_id(pipeline, version),
        pipeline=pipeline.name,
        dataset=version.dataset,
        dataset_version=version.version,
        table_uri=version.table_uri,
        table_version=version.table_version,
        code=pipeline.code,
        code_sha256=pipeline.code_sha256,
        command=tuple(spec.training.command),
        label=label,
        event_time=spec.dataset.event_time,
        features=tuple(spec.training.features),
        evaluation=EvaluationPlan(
            metric=spec.evaluation.metric,
            block=spec.evaluation.block,
            holdout_blocks=spec.evaluation.holdout_blocks,
            slices=tuple(spec.evaluation.slices),
        ),
        seed=spec.training.seed,
        timeout_seconds=int(spec.training.compute.timeout.total_seconds()),
        parameters=dict(spec.training.parameters),
        environment=dict(spec.training.environment),
        compute=spec.training.compute.model_dump(mode="json"),
        champion=champion,
        tracking_uri=settings.tracking_uri,
    )
    return RunRecord(run, planned_at=now, due_at=batch.due_at, newest_at=batch.newest_at, cause=version.cause)


# ------------------------------------------------------------------------------------------------ the run
def submit_run(ports: Ports, pipeline: str, run: str) -> None:
    """Hand the run to the compute; a run handed over before is not started again."""
    found = record(ports, pipeline, run)
    if found.state in ENDED:
        return
    try:
        ports.compute.submit(found.spec)
    except BadInput as error:
        _put(ports, replace(found, state=RunState.FAILED, reason=error.message, outcome=RunOutcome.NO_MODEL))


def check_run(ports: Ports, pipeline: str, run: str, now: datetime) -> bool:
    """Look at the run; whether it has ended."""
    found = record(ports, pipeline, run)
    if found.state in ENDED:
        return True
    try:
        status = ports.compute.status(run)
    except NotFound:
        ended = replace(
            found, state=RunState.FAILED, reason="the compute does not know this run any more", ended_at=now
        )
        _put(ports, ended)
        return True
    _put(
        ports,
        replace(
            found,
            state=status.state,
            reason=status.reason,
            started_at=status.started_at,
            ended_at=status.ended_at,
        ),
    )
    return status.state in ENDED


def cancel_run(ports: Ports, pipeline: str, run: str) -> None:
    """End a run; the pipeline goes on without its model. No effect on a run that has ended."""
    if record(ports, pipeline, run).state not in ENDED:
        ports.compute.cancel(run)


def judge_run(ports: Ports, pipeline_name: str, run: str, now: datetime) -> Json:
    """Judge an ended run by its evidence, register its model, and say what the pipeline's gate does with it.

    Every model that could be judged is registered, the refused ones too: the registry is the memory, the alias the door.
    """
    pipeline = books.pipeline(ports.ledger, pipeline_name)
    found = record(ports, pipeline_name, run)
    if found.decision is not None:
        return _decided(found)
    try:
        result = ports.compute.result(run)
    except (RunFailed, NotFound) as error:
        state = found.state if found.state in (RunState.FAILED, RunState.CANCELLED) else RunState.FAILED
        failed = replace(found, state=state, reason=error.message, decision="none", outcome=RunOutcome.NO_MODEL)
        return _decided(_put(ports, failed))
    evidence = from_json(Evidence, ports.artifacts.read(result.evidence))
    verdict = judge(
        evidence,
        confidence=pipeline.spec.evaluation.confidence,
        min_improvement=pipeline.spec.gate.min_improvement,
        seed=found.spec.seed,
    )
    decision = decide(verdict, books.policy(pipeline), first=found.spec.champion is None)
    version = ports.registry.register(
        pipeline_name, result.model, _lineage(ports, pipeline, found.spec, result, verdict), now
    )
    judged = replace(
        found,
        seconds=result.seconds,
        metrics=result.metrics,
        verdict=to_builtins(verdict),
        verdict_summary=summary(verdict),
        decision=decision.action.value,
        decision_reason=decision.reason,
        model_version=version.version,
        outcome=RunOutcome.WAITING_FOR_ANSWER if decision.action is Action.ASK else None,
    )
    told = _event("ModelRegistered", f"models/{pipeline_name}/versions/{version.version}", judged, now)
    _put(ports, judged, [outbox.entry(told)])
    outbox.flush(ports, pipeline.partition)
    return _decided(judged)


def _decided(found: RunRecord) -> Json:
    return {"action": found.decision, "model_version": found.model_version}


def _lineage(ports: Ports, pipeline: Pipeline, spec: RunSpec, result: RunResult, verdict: Verdict) -> Lineage:
    version = books.dataset_version(ports.ledger, pipeline.partition, spec.dataset_version)
    return Lineage(
        pipeline=pipeline.name,
        run=spec.run,
        dataset=spec.dataset,
        dataset_version=spec.dataset_version,
        manifest=version.manifest,
        manifest_sha256=version.manifest_sha256,
        code=spec.code,
        code_sha256=spec.code_sha256,
        environment=result.environment,
        parameters=spec.parameters,
        seed=spec.seed,
        metrics=result.metrics,
        verdict=to_builtins(verdict),
        evidence=result.evidence,
    )


def conclude_run(ports: Ports, pipeline: str, run: str, outcome: str | None, now: datetime) -> None:
    """Write down what became of the run, and free the pipeline for the next one."""
    found = record(ports, pipeline, run)
    if outcome is not None:
        live_at = now if outcome == RunOutcome.PROMOTED.value and found.live_at is None else found.live_at
        found = _put(ports, replace(found, outcome=RunOutcome(outcome), live_at=live_at))
    books.change(
        ports.ledger,
        books.partition_of(pipeline),
        "head",
        lambda row: {**row, "run": None} if row["run"] == run else None,
        lambda _: [outbox.entry(_event("RunFinished", f"pipelines/{pipeline}/runs/{run}", found, now))],
    )
    outbox.flush(ports, books.partition_of(pipeline))


def _event(kind: str, subject: str, record: RunRecord, now: datetime) -> DomainEvent:
    run = record.spec.run
    data: Json = {"run": run, "outcome": record.outcome.value if record.outcome else None}
    return DomainEvent(id_of(kind, run), kind, subject, now, data, cause=record.cause)
