"""Dataset version in, verdict and model version out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from dropforge import telemetry
from dropforge.domain.causes import Cause
from dropforge.domain.datasets import DatasetVersion
from dropforge.domain.errors import BadInput, Conflict, NotFound, Refused, RunFailed
from dropforge.domain.events import DomainEvent
from dropforge.domain.gate import Action, decide
from dropforge.domain.limits import Limits, Started, held
from dropforge.domain.models import Lineage
from dropforge.domain.names import NAME, id_of
from dropforge.domain.runs import ENDED, RunOutcome, RunRecord, RunResult, RunSpec, RunState
from dropforge.domain.verdicts import Evidence, Verdict, judge, summary
from dropforge.ports import Insert, Json, Ports, Replace, Row, Write
from dropforge.settings import Settings
from dropforge.steps import asked, books, control, lanes, outbox, tracing
from dropforge.steps.asked import EVALUATE, TRAIN
from dropforge.steps.books import Pipeline
from dropforge.steps.run_specs import run_spec
from dropforge.wire import from_builtins, from_json, to_builtins

LANE = "train"


def record(ports: Ports, pipeline: str, run: str) -> RunRecord:
    """The ledger's record of a run. Raises `NotFound`."""
    row = ports.ledger.get(books.partition_of(pipeline), books.run_key(run))
    if row is None:
        books.pipeline(ports.ledger, pipeline)
        raise NotFound(f"pipeline {pipeline!r} has no run {run!r}", run=run, pipeline=pipeline)
    return from_builtins(RunRecord, row.value)


def records(ports: Ports, pipeline: str) -> list[RunRecord]:
    """Every run of the pipeline, newest first."""
    rows = books.every(ports.ledger, books.partition_of(pipeline), books.run_key(""))
    return sorted((from_builtins(RunRecord, row.value) for row in rows), key=lambda each: each.planned_at, reverse=True)


def _put(ports: Ports, value: RunRecord, also: Sequence[Insert] = ()) -> RunRecord:
    builtins = to_builtins(value)
    partition = books.partition_of(value.spec.pipeline)
    books.change(ports.ledger, partition, books.run_key(value.spec.run), lambda _: builtins, lambda _: also)
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
    return head["run"] is not None or bool(_waiting(ports, pipeline, head))


def _waiting(ports: Ports, pipeline: Pipeline, head: Json) -> list[Json]:
    """The runs that are wanted and that nobody holds, in their order: those that were asked for, then what is new."""
    holds = control.read(ports.ledger, pipeline.partition)
    if holds["paused"] is not None or not head["version"]:
        return []
    broken = holds["breaker"] is not None
    line = [each for each in head.get("asked", []) if not (broken and each["kind"] == TRAIN)]
    is_new = head["considered"] != [head["version"], pipeline.training_key]
    # A training that was asked for takes in what is new.
    if is_new and not broken and not any(each["kind"] == TRAIN for each in line):
        line.append({"key": None, "kind": TRAIN, "version": None})
    return line


def sweep(ports: Ports) -> list[Json]:
    """Training flows that should live; one that lives already is started again in vain."""
    flows = (wake_training(ports, each.name) for each in books.pipelines(ports.ledger))
    return [flow for flow in flows if flow is not None]


# Azure ML says these of a run that is over, in either case. A failed or cancelled one may send no event at all.
OVER = {"completed", "failed", "canceled"}


def flow_waiting_for(ports: Ports, event_type: str, data: Json) -> str | None:
    """The flow that waits for the run an Azure ML event is about; None when it is not over, or nobody waits."""
    if event_type not in (
        "Microsoft.MachineLearningServices.RunCompleted",
        "Microsoft.MachineLearningServices.RunStatusChanged",
    ):
        return None
    if str(data.get("runStatus") or "completed").lower() not in OVER:
        return None
    run, _, part = str(data.get("runId", "")).partition("_")
    pipeline = run.rsplit("-", 2)[0]
    if not NAME.fullmatch(pipeline) or _is_trial(ports, pipeline, run, part):
        return None
    epoch = lanes.live_epoch(ports.ledger, books.partition_of(pipeline), LANE)
    return f"train-{pipeline}-{epoch}" if epoch is not None else None


def _is_trial(ports: Ports, pipeline: str, run: str, part: str) -> bool:
    """Whether the job is a trial of a sweep, whose end is not the run's: a flow listens once, and would then only poll.

    A trial is called `<run>_<n>`, or `<run>_a2_<n>` in a second attempt. Without a sweep, `<run>_2` is that attempt.
    """
    if not part.rpartition("_")[2].isdigit():
        return False
    row = ports.ledger.get(books.partition_of(pipeline), books.run_key(run))
    return row is not None and from_builtins(RunRecord, row.value).spec.sweep is not None


def leave_training(ports: Ports, name: str, epoch: int) -> bool:
    """Whether the training flow may end; see `lanes.leave`."""
    books.note_trouble(ports.ledger, name, None)

    def more() -> bool:
        return _wanted(ports, books.pipeline(ports.ledger, name))

    return lanes.leave(ports.ledger, books.partition_of(name), LANE, epoch, more)


# ------------------------------------------------------------------------------------------------ asking for a run
def ask(ports: Ports, name: str, token: str, cause: Cause, now: datetime) -> Json:
    """Train on the newest dataset version, also when it has been trained on: `{"request", "run", "state", "waits_for",
    "start": [flows]}`.

    The same `token` again is the same request. Who asks while another training waits joins it (`joined`); the run is of
    the data that is newest when it starts. Over budget or in the cool-down the request waits; `run` is None until it
    starts. Raises `Refused` when the pipeline is held, has no data, or the cause came round too often.
    """
    return _ask(ports, name, TRAIN, None, token, cause, now)


def ask_evaluation(ports: Ports, name: str, version: int | None, token: str, cause: Cause, now: datetime) -> Json:
    """Measure a model version (None: the newest) against the champion on the newest dataset version; the champion itself
    against the constant baseline. The verdict is recorded with the run; nothing is registered or promoted.

    As `ask`, but an open breaker does not hold it. Raises `NotFound` for a version there is none of.
    """
    return _ask(ports, name, EVALUATE, version, token, cause, now)


def _ask(ports: Ports, name: str, kind: str, version: int | None, token: str, cause: Cause, now: datetime) -> Json:
    pipeline = books.pipeline(ports.ledger, name)
    request, found = asked.put(ports, pipeline, kind, version, token, cause, now)
    flow = wake_training(ports, name)
    return {
        "request": request,
        "run": found["run"],
        "state": "joined" if found["joined"] else "accepted",
        "waits_for": None if found["run"] is not None else _waits_for(ports, pipeline, now, trains=kind == TRAIN),
        "start": [flow] if flow is not None else [],
    }


def _waits_for(ports: Ports, pipeline: Pipeline, now: datetime, *, trains: bool) -> str | None:
    """What a run that was asked for waits for, if it is known."""
    live = books.head(ports.ledger, pipeline.partition).value["run"]
    if live is not None:
        return f"run {live} goes first"
    limit = held(limits_of(pipeline), _started(ports, pipeline), now, trains=trains)
    return f"budget.{limit.by} holds it until {limit.until.isoformat()}" if limit is not None else None


# ------------------------------------------------------------------------------------------------ planning
def plan_run(ports: Ports, name: str, settings: Settings, now: datetime) -> Json:
    """What the training flow should do: `run` a run, `wait` until a time (over budget), or nothing (`none`).

    At most one run of a pipeline is live: one that is, is returned again.
    """
    pipeline = books.pipeline(ports.ledger, name)
    while True:
        head = books.head(ports.ledger, pipeline.partition)
        if head.value["run"] is not None:
            return {"action": "run", "run": head.value["run"], "poll_seconds": settings.run_poll_seconds}
        waiting = _waiting(ports, pipeline, head.value)
        if not waiting:
            return {"action": "none"}
        try:
            return _plan(ports, pipeline, head, waiting, settings, now)
        except Conflict:
            continue  # somebody else planned; look again


def _plan(ports: Ports, pipeline: Pipeline, head: Row, waiting: list[Json], settings: Settings, now: datetime) -> Json:
    """The first of them that may start now, or when one may."""
    version = books.dataset_version(ports.ledger, pipeline.partition, int(head.value["version"]))
    before, until = _started(ports, pipeline), []
    for wanted in waiting:
        if wanted["key"] is None and not _worth_it(ports, pipeline, version, settings, now):
            considered = {**head.value, "considered": [version.version, pipeline.training_key]}
            ports.ledger.commit(pipeline.partition, [Replace("head", considered, head.etag)])
            return {"action": "none"}
        limit = held(limits_of(pipeline), before, now, trains=wanted["kind"] == TRAIN)
        if limit is None:
            run = _start(ports, pipeline, head, version, wanted, settings, now)
            return {"action": "run", "run": run, "poll_seconds": settings.run_poll_seconds}
        until.append(limit.until)
    return {"action": "wait", "until": min(until).isoformat()}


def _worth_it(ports: Ports, pipeline: Pipeline, version: DatasetVersion, settings: Settings, now: datetime) -> bool:
    """Whether what is new is trained on by itself."""
    # A run of that id means: trained on with this code before (the code was changed, and changed back).
    if ports.ledger.get(pipeline.partition, books.run_key(_run_id(pipeline, version))) is not None:
        return False
    if version.total_rows < pipeline.spec.training.min_rows:
        return False
    try:
        control.admit(ports, pipeline.name, version.cause, now, settings.max_hops)
    except Refused:
        return False
    return True


def _start(
    ports: Ports,
    pipeline: Pipeline,
    head: Row,
    version: DatasetVersion,
    wanted: Json,
    settings: Settings,
    now: datetime,
) -> str:
    """The run, planned in one commit with the head that names it and the request that it answers."""
    partition, key = pipeline.partition, wanted["key"]
    run = _run_id(pipeline, version) if key is None else _asked_run_id(ports, pipeline, version, key)
    batch = books.batch(ports.ledger, partition, version.batch)
    cause = version.cause if key is None else from_builtins(Cause, wanted["cause"])
    planned = RunRecord(
        run_spec(ports, pipeline, version, run, settings, wanted["version"], cause),
        planned_at=now,
        due_at=batch.due_at,
        newest_at=batch.newest_at,
        cause=cause,
    )
    after: Json = {**head.value, "run": run}
    if wanted["kind"] == TRAIN:
        after["considered"] = [version.version, pipeline.training_key]
    writes: list[Write] = [Insert(books.run_key(run), to_builtins(planned))]
    if key is not None:
        after["asked"] = [each for each in head.value["asked"] if each["key"] != key]
        row = ports.ledger.get(partition, key)
        assert row is not None
        writes.append(Replace(key, {**row.value, "run": run}, row.etag))
    ports.ledger.commit(partition, [Replace("head", after, head.etag), *writes])
    return run


def limits_of(pipeline: Pipeline) -> Limits:
    """The pipeline's budget."""
    budget = pipeline.spec.budget
    return Limits(budget.runs_per_day, budget.training_minutes_per_day, budget.cool_down, budget.max_failures)


def started(found: RunRecord) -> Started:
    """A run as the budget counts it."""
    return Started(found.planned_at, (_seconds(found) or 0.0) / 60, found.spec.challenger is None)


def _started(ports: Ports, pipeline: Pipeline) -> list[Started]:
    return [started(each) for each in records(ports, pipeline.name)]


def _seconds(found: RunRecord) -> float | None:
    """What a run took: as its node says, or, when it left nothing to say so, as the compute does."""
    if found.seconds is None and found.started_at is not None and found.ended_at is not None:
        return (found.ended_at - found.started_at).total_seconds()
    return found.seconds


def _run_id(pipeline: Pipeline, version: DatasetVersion) -> str:
    return f"{pipeline.name}-{version.version}-{pipeline.training_key[:6]}"


def _asked_run_id(ports: Ports, pipeline: Pipeline, version: DatasetVersion, key: str) -> str:
    """The id of a run that was asked for; six digits may be taken, so the next is tried."""
    attempt = 0
    while True:
        run = f"{pipeline.name}-{version.version}-{id_of(pipeline.training_key, key, str(attempt))[:6]}"
        if ports.ledger.get(pipeline.partition, books.run_key(run)) is None:
            return run
        attempt += 1


# ------------------------------------------------------------------------------------------------ the run
def submit_run(ports: Ports, pipeline: str, run: str) -> None:
    """Hand the run to the compute; a run handed over before is not started again."""
    found = record(ports, pipeline, run)
    if found.state in ENDED:
        return
    trace = tracing.of_run(found.spec, found.cause)
    try:
        with telemetry.span("submit run", trace, run, pipeline=pipeline, run=run):
            ports.compute.submit(found.spec)
    except BadInput as error:
        _put(ports, replace(found, state=RunState.FAILED, reason=error.message, outcome=RunOutcome.NO_MODEL))
    else:
        # Whoever cancels writes that down before he looks for the run a second time: one of the two finds the other.
        if record(ports, pipeline, run).state is RunState.CANCELLED:
            ports.compute.cancel(run)


def check_run(ports: Ports, pipeline: str, run: str, now: datetime) -> bool:
    """Look at the run; whether it has ended."""
    found = record(ports, pipeline, run)
    if found.state in ENDED and found.ended_at is not None:
        return True
    try:
        status = ports.compute.status(run)
    except NotFound:
        if found.state not in ENDED:
            reason = "the compute does not know this run any more"
            _put(ports, replace(found, state=RunState.FAILED, reason=reason, ended_at=now))
        return True
    if found.state in ENDED and status.state not in ENDED:
        return False  # it was cancelled while it was being started, and goes down
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
    """End a run, also one that has not reached the compute yet; the pipeline goes on without its model. No effect on a
    run that has ended."""
    found = record(ports, pipeline, run)
    if found.state in ENDED:
        return
    try:
        ports.compute.cancel(run)
    except NotFound:
        _put(ports, replace(found, state=RunState.CANCELLED, reason="cancelled before it started"))
        with suppress(NotFound):
            ports.compute.cancel(run)


def judge_run(ports: Ports, pipeline_name: str, run: str, now: datetime) -> Json:
    """Judge an ended run by its evidence, register its model, and say what the pipeline's gate does with it.

    Every model that could be judged is registered, the refused ones too: the registry is the memory, the alias the door.
    """
    pipeline = books.pipeline(ports.ledger, pipeline_name)
    found = record(ports, pipeline_name, run)
    if found.decision is not None:
        return _decided(found)
    began = time.time_ns()
    try:
        result = ports.compute.result(run)
        verdict = _verdict(ports, pipeline, found, result)
    except (RunFailed, NotFound, BadInput) as error:
        # Also of evidence that nobody can judge: the same evidence is no better the next time.
        ended = found.state in (RunState.FAILED, RunState.CANCELLED)
        failed = replace(
            found,
            state=found.state if ended else RunState.FAILED,
            reason=found.reason if ended and found.reason else error.message,
            seconds=_seconds(found),
            decision="none",
            outcome=RunOutcome.NO_MODEL,
        )
        return _decided(_put(ports, failed))
    judged = replace(
        found,
        seconds=result.seconds,
        metrics=result.metrics,
        verdict=to_builtins(verdict),
        verdict_summary=summary(verdict),
    )
    trace, said = tracing.of_run(found.spec, found.cause), judged.verdict_summary
    telemetry.done("judge run", trace, began, key=run, pipeline=pipeline_name, run=run, verdict=said)
    if found.spec.challenger is not None:
        return _decided(_put(ports, _measured(judged, found.spec.challenger.version)))
    decision = decide(verdict, books.policy(pipeline), first=found.spec.champion is None)
    version = ports.registry.register(
        pipeline_name, result.model, _lineage(ports, pipeline, found.spec, result, verdict), now
    )
    judged = replace(
        judged,
        decision=decision.action.value,
        decision_reason=decision.reason,
        model_version=version.version,
        outcome=RunOutcome.WAITING_FOR_ANSWER if decision.action is Action.ASK else None,
    )
    told = _event("ModelRegistered", f"models/{pipeline_name}/versions/{version.version}", judged, now)
    _put(ports, judged, [outbox.entry(told)])
    outbox.flush(ports, pipeline.partition)
    return _decided(judged)


def _verdict(ports: Ports, pipeline: Pipeline, found: RunRecord, result: RunResult) -> Verdict:
    """Raises `BadInput` for evidence that cannot be judged."""
    try:
        return judge(
            from_json(Evidence, ports.artifacts.read(result.evidence)),
            confidence=pipeline.spec.evaluation.confidence,
            min_improvement=pipeline.spec.gate.min_improvement,
            seed=found.spec.seed,
        )
    except BadInput as error:
        raise BadInput(
            f"the evidence of the run cannot be judged: {error.message}; look for labels or predictions beyond all measure"
        ) from error


def _measured(judged: RunRecord, version: int) -> RunRecord:
    """A run that only measures: its verdict is recorded, and that is all."""
    reason = f"Version {version} was measured because somebody asked for it; nothing is promoted."
    return replace(judged, decision="evaluated", decision_reason=reason, model_version=version)


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
        # Of a sweep: what the best trial added to what was asked.
        parameters=result.environment.get("parameters", spec.parameters),
        seed=spec.seed,
        metrics=result.metrics,
        verdict=to_builtins(verdict),
        evidence=result.evidence,
        golden=result.golden,
        features=result.features or spec.features,
    )


def conclude_run(ports: Ports, pipeline: str, run: str, outcome: str | None, now: datetime) -> None:
    """Write down what became of the run, and free the pipeline for the next one."""
    found = record(ports, pipeline, run)
    if outcome is not None:
        live_at = now if outcome == RunOutcome.PROMOTED.value and found.live_at is None else found.live_at
        found = _put(ports, replace(found, outcome=RunOutcome(outcome), live_at=live_at))
    tracing.job_ended(found)
    telemetry.count("dropforge.runs", pipeline=pipeline, outcome=found.outcome.value if found.outcome else "cancelled")
    if (took := _seconds(found)) is not None:
        telemetry.seconds("dropforge.run.duration", took, pipeline=pipeline)
    if found.live_at is not None and found.newest_at is not None:
        telemetry.seconds(
            "dropforge.drop_to_live", (found.live_at - found.newest_at).total_seconds(), pipeline=pipeline
        )
    # Before the pipeline is free for the next: what opens the breaker must hold it.
    if found.spec.challenger is None and found.state is not RunState.CANCELLED:
        control.count_run(ports, pipeline, run, found.outcome is RunOutcome.NO_MODEL, found.reason, now)
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
    data: Json = {
        "pipeline": record.spec.pipeline,
        "run": run,
        "dataset_version": record.spec.dataset_version,
        "state": record.state.value,
        "reason": record.reason,
        "verdict": record.verdict_summary,
        "decision": record.decision,
        "model_version": record.model_version,
        "outcome": record.outcome.value if record.outcome else None,
    }
    return DomainEvent(id_of(kind, run), kind, subject, now, data, cause=record.cause)
