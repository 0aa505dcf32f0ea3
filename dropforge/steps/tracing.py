"""The traces that steps tell their work under; see `domain.traces`."""

from __future__ import annotations

from datetime import datetime

from dropforge import telemetry
from dropforge.domain.causes import Cause
from dropforge.domain.datasets import DatasetVersion
from dropforge.domain.runs import RunRecord, RunSpec
from dropforge.domain.traces import Trace, trace_of
from dropforge.ports import Json
from dropforge.wire import from_builtins

# The span of the training itself: the node's own spans, if its command tells any, lie under it.
JOB = "run training job"


def of_version(version: DatasetVersion) -> Trace:
    return trace_of(version.cause, version.dataset, version.version)


def of_run(spec: RunSpec, cause: Cause | None) -> Trace:
    return trace_of(cause, spec.dataset, spec.dataset_version)


def of_endpoint(head: Json) -> Trace:
    """That of what an endpoint's head is about: why it was deployed, or else the dataset version behind it."""
    cause = from_builtins(Cause, head["cause"]) if head.get("cause") else None
    # A deployment that was undone before anything else was there: what it undid.
    about = [*head["deployments"], *head.get("undone", [])]
    return trace_of(cause, head["pipeline"], about[0]["dataset_version"] if about else 0)


def came_in(cause: Cause, at: datetime, **attributes: telemetry.Value) -> None:
    """Tell what came in through a door. Told again, it is the same span."""
    telemetry.root(f"{cause.door} {cause.id}"[:200], trace_of(cause, "", 0), at, door=cause.door, **attributes)


def found(version: DatasetVersion) -> None:
    """Tell that files of which no event told became this version, as the door of its trace."""
    if version.cause is None:
        name, trace = f"reconcile {version.dataset}@{version.version}", of_version(version)
        telemetry.root(name, trace, version.created_at, door="reconcile", pipeline=version.dataset)


def job_ended(record: RunRecord) -> None:
    """Tell the training itself, from when its node started to when it ended."""
    spec, ended = record.spec, record.ended_at
    if ended is not None:
        telemetry.past(
            JOB,
            of_run(spec, record.cause),
            record.started_at or record.planned_at,
            ended,
            key=spec.run,
            error=record.reason if record.state.value == "failed" else None,
            pipeline=spec.pipeline,
            run=spec.run,
            target=str(spec.compute.get("target", "")),
            state=record.state.value,
        )
