"""Runs that somebody asked for: put in line once for each request, and joined by who asks for the same meanwhile.

The line is short and stands in the pipeline's head (`asked`), so that taking the next run out of it, naming it the live
one and writing it down are one commit. A row `asked/<id>` per request remembers which run it became.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

from dropforge.domain.causes import Cause, furthest
from dropforge.domain.errors import Conflict, Refused
from dropforge.domain.names import id_of
from dropforge.ports import Insert, Json, Ports, Replace, Row, Write
from dropforge.steps import books, control
from dropforge.steps.books import Pipeline
from dropforge.wire import from_builtins, to_builtins

TRAIN, EVALUATE = "train", "evaluate"
# Requests that wait in one pipeline's line; of one kind and version there is never more than one.
MOST = 20


def put(
    ports: Ports, pipeline: Pipeline, kind: str, version: int | None, token: str, cause: Cause, now: datetime
) -> tuple[str, Json]:
    """The request that this token made, put in line the first time: its id, and `{"run", "joined"}`.

    `run` is None until it has started. Raises `Refused` when the pipeline is held, has nothing to run on, or the cause
    came round too often; `NotFound` for a model version there is none of.
    """
    key = f"asked/{id_of(kind, token)}"
    while (row := ports.ledger.get(pipeline.partition, key)) is None:
        control.admit(ports, pipeline.name, cause, now)
        control.check_free(ports, pipeline.name, trains=kind == TRAIN)
        head = books.head(ports.ledger, pipeline.partition)
        measured = _measurable(ports, pipeline, version) if kind == EVALUATE else None
        _check_data(ports, pipeline, head.value, kind)
        with suppress(Conflict):
            ports.ledger.commit(pipeline.partition, _line_up(head, key, kind, measured, cause, now))
    request = key.partition("/")[2]
    return request, {"run": run_of(ports, pipeline.name, request), "joined": row.value["joined"] is not None}


def run_of(ports: Ports, name: str, request: str) -> str | None:
    """The run that a request became, its own or that of the one it joined; None until it has started."""
    partition = books.partition_of(name)
    row = ports.ledger.get(partition, f"asked/{request}")
    if row is not None and row.value["joined"] is not None:
        row = ports.ledger.get(partition, row.value["joined"])
    run: str | None = row.value["run"] if row is not None else None
    return run


def _line_up(head: Row, key: str, kind: str, version: int | None, cause: Cause, now: datetime) -> list[Write]:
    """The commit that puts a request in line, or has it join the one that waits for the same. It names the head in either
    case: had the other started meanwhile, there would be nothing to join."""
    line = list(head.value.get("asked", []))
    value: Json = {"kind": kind, "version": version, "asked_at": now.isoformat(), "joined": None, "run": None}
    place = next((n for n, each in enumerate(line) if (each["kind"], each["version"]) == (kind, version)), None)
    if place is not None:
        first = line[place]
        reason = furthest((from_builtins(Cause, first["cause"]), cause))
        line[place] = {**first, "joined": first["joined"] + 1, "cause": to_builtins(reason)}
        value["joined"] = first["key"]
    elif len(line) >= MOST:
        raise Refused(f"{len(line)} runs that were asked for wait already; ask again when they have started")
    else:
        line.append({"key": key, "kind": kind, "version": version, "cause": to_builtins(cause), "joined": 0})
    return [Replace("head", {**head.value, "asked": line}, head.etag), Insert(key, value)]


def _measurable(ports: Ports, pipeline: Pipeline, version: int | None) -> int:
    if version is not None:
        return ports.registry.get(pipeline.name, version).version
    newest = ports.registry.list(pipeline.name, 1)
    if not newest:
        raise Refused(f"pipeline {pipeline.name!r} has no model yet: nothing to evaluate", pipeline=pipeline.name)
    return newest[0].version


def _check_data(ports: Ports, pipeline: Pipeline, head: Json, kind: str) -> None:
    spec = pipeline.spec
    if not head["version"]:
        raise Refused(
            f"pipeline {pipeline.name!r} has no dataset version yet; drop a file into {spec.dataset.drop}",
            pipeline=pipeline.name,
        )
    rows = books.dataset_version(ports.ledger, pipeline.partition, int(head["version"])).total_rows
    if kind == TRAIN and rows < spec.training.min_rows:
        raise Refused(
            f"pipeline {pipeline.name!r} has {rows} rows, and training.min_rows is {spec.training.min_rows}; drop more",
            pipeline=pipeline.name,
        )
