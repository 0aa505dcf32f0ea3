"""What people are shown: how a pipeline stands, what it holds, and why."""

from __future__ import annotations

import json

from dropforge.domain.arrivals import Arrival, ArrivalState
from dropforge.domain.datasets import DatasetVersion
from dropforge.domain.errors import BadInput, NotFound
from dropforge.domain.models import CHAMPION
from dropforge.domain.runs import RunRecord
from dropforge.ports import Json, Ports
from dropforge.steps import approvals, books, intake, lanes, train
from dropforge.wire import from_builtins, to_builtins


def health(ports: Ports) -> None:
    """Returns when the ledger answers. Raises what the ledger raises when it does not."""
    ports.ledger.scan(books.PIPELINES, "pipeline/", limit=1)


def pipelines(ports: Ports) -> list[Json]:
    """A line for each pipeline."""
    lines = []
    for pipeline in books.pipelines(ports.ledger):
        head = books.head(ports.ledger, pipeline.partition).value
        alias = ports.registry.alias(pipeline.name, CHAMPION)
        lines.append(
            {
                "pipeline": pipeline.name,
                "revision": pipeline.revision,
                "drop": pipeline.spec.dataset.drop,
                "dataset_version": head["version"] or None,
                "live_run": head["run"],
                "champion": alias.version if alias else None,
                "trouble": head.get("trouble"),
            }
        )
    return lines


def arrivals(ports: Ports, name: str, state: str | None) -> list[Json]:
    """The files that arrived, oldest first; of one state when it is given."""
    states = [each.value for each in ArrivalState]
    if state is not None and state not in states:
        raise BadInput(f"state {state!r} is not one of {', '.join(states)}")
    pipeline = books.pipeline(ports.ledger, name)
    rows = [row.value for row in books.every(ports.ledger, pipeline.partition, "arrival/")]
    chosen = [row for row in rows if state in (None, row["state"])]
    return sorted(chosen, key=lambda row: (str(row["arrived_at"]), str(row["url"])))


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
    return {"dataset": to_builtins(found), "manifest": json.loads(ports.artifacts.read(found.manifest))}


def runs(ports: Ports, name: str) -> list[Json]:
    """A line for each run, newest first."""
    books.pipeline(ports.ledger, name)
    return [run_line(each) for each in train.records(ports, name)]


def run_logs(ports: Ports, name: str, run: str) -> str:
    """The end of what a run printed."""
    train.record(ports, name, run)
    return ports.compute.logs(run)


def models(ports: Ports, name: str) -> list[Json]:
    """Model versions, newest first, with the aliases that point at them."""
    books.pipeline(ports.ledger, name)
    alias = ports.registry.alias(name, CHAMPION)
    return [
        {
            "version": each.version,
            "champion": alias is not None and alias.version == each.version,
            "run": each.lineage.run,
            "dataset_version": each.lineage.dataset_version,
            "verdict": each.lineage.verdict["outcome"],
            "sha256": each.sha256,
            "created_at": each.created_at.isoformat(),
        }
        for each in ports.registry.list(name)
    ]


def status(ports: Ports, name: str) -> Json:
    """Everything `dropforge status` shows of a pipeline."""
    pipeline = books.pipeline(ports.ledger, name)
    head = books.head(ports.ledger, pipeline.partition).value
    arrivals = [from_builtins(Arrival, row.value) for row in books.every(ports.ledger, pipeline.partition, "arrival/")]
    runs = train.records(ports, name)
    alias = ports.registry.alias(name, CHAMPION)
    return {
        "pipeline": name,
        "revision": pipeline.revision,
        "drop": pipeline.spec.dataset.drop,
        "files": {state.value: sum(each.state is state for each in arrivals) for state in ArrivalState},
        "quarantined": [
            {"id": each.id, "url": each.url, "reason": each.reason, "report": each.report}
            for each in arrivals
            if each.state is ArrivalState.QUARANTINED
        ],
        "batch": head["open"],
        "dataset": _version_line(ports, pipeline.partition, head["version"]),
        "live_run": head["run"],
        # What keeps a flow from going on, in one sentence; gone once it does.
        "trouble": head.get("trouble"),
        "runs": [run_line(each) for each in runs[:10]],
        "champion": alias.version if alias else None,
        "endpoint": endpoint(ports, pipeline.spec.deployment.endpoint or name),
        "questions": approvals.open_questions(ports, name),
        "busy": {
            lane: lanes.live_epoch(ports.ledger, pipeline.partition, lane) is not None
            for lane in (intake.LANE, train.LANE)
        },
    }


def _version_line(ports: Ports, partition: str, version: int) -> Json | None:
    if not version:
        return None
    found = books.dataset_version(ports.ledger, partition, version)
    return {
        "version": found.version,
        "files": found.files,
        "rows": found.rows,
        "total_rows": found.total_rows,
        "created_at": found.created_at.isoformat(),
    }


def run_line(found: RunRecord) -> Json:
    """A run on one line, as lists of runs show it."""
    return {
        "run": found.spec.run,
        "dataset_version": found.spec.dataset_version,
        "state": found.state.value,
        "reason": found.reason,
        "seconds": found.seconds,
        "verdict": found.verdict["outcome"] if found.verdict else None,
        "summary": found.verdict_summary,
        "decision": found.decision,
        "decision_reason": found.decision_reason,
        "model_version": found.model_version,
        "outcome": found.outcome.value if found.outcome else None,
        "planned_at": found.planned_at.isoformat(),
        "live_at": found.live_at.isoformat() if found.live_at else None,
    }


def endpoint(ports: Ports, name: str) -> Json | None:
    """What the endpoint should serve, and what its replicas say they do."""
    row = ports.ledger.get(books.endpoint_partition(name), "head")
    if row is None:
        return None
    return {
        "endpoint": name,
        "revision": row.value["revision"],
        "state": row.value["state"],
        "reason": row.value.get("reason"),
        "deployments": row.value["deployments"],
        "replicas": [to_builtins(each) for each in ports.serving.observe(name)],
    }


def versions(ports: Ports, name: str) -> list[DatasetVersion]:
    """The dataset versions of a pipeline, oldest first."""
    pipeline = books.pipeline(ports.ledger, name)
    rows = books.every(ports.ledger, pipeline.partition, "dataset/")
    return [from_builtins(DatasetVersion, row.value) for row in rows]


def why(ports: Ports, name: str, version: int | None) -> Json:
    """From a model version (default: the champion) back to everything behind it."""
    if version is None:
        alias = ports.registry.alias(name, CHAMPION)
        if alias is None:
            raise NotFound(f"pipeline {name!r} has no champion yet", pipeline=name)
        version = alias.version
    model = ports.registry.get(name, version)
    found = train.record(ports, name, model.lineage.run)
    dataset = books.dataset_version(ports.ledger, books.partition_of(name), model.lineage.dataset_version)
    chain = []
    for number in range(1, dataset.version + 1):
        part = books.dataset_version(ports.ledger, books.partition_of(name), number)
        chain.append({"version": number, "files": part.files, "rows": part.rows, "manifest": part.manifest})
    return {
        "model": to_builtins(model),
        "run": run_line(found),
        "champion_then": to_builtins(found.spec.champion),
        "dataset": to_builtins(dataset),
        "made_of": chain,
    }
