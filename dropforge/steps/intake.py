"""Arrivals in, one dataset version out."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from dropforge import telemetry
from dropforge.domain.arrivals import Arrival, ArrivalState
from dropforge.domain.causes import furthest
from dropforge.domain.datasets import Batch, BatchState, Column, DatasetVersion, Manifest, Source
from dropforge.domain.errors import BadFile, Conflict, NotFound, Refused
from dropforge.domain.events import DomainEvent
from dropforge.domain.names import id_of
from dropforge.ports import Delete, FileCheck, Insert, Json, Ports, Problem, Replace, Row, TableFile, TableState, Write
from dropforge.steps import arrivals, books, control, lanes, outbox, tracing
from dropforge.steps import reconcile as reconciling
from dropforge.steps.arrivals import Decision
from dropforge.steps.books import Pipeline
from dropforge.wire import from_builtins, to_builtins, to_json

# Said here too, because this is where whoever wakes, replays and reconciles looks for it.
LANE = arrivals.LANE
wake = arrivals.wake
reconcile = reconciling.reconcile

# Files that are looked at before what became of them is written down, in one commit.
AT_ONCE = 20


# ------------------------------------------------------------------------------------------------ the flow's steps
def plan_intake(ports: Ports, name: str, now: datetime) -> Json:
    """What the intake flow should do next: `work` on a batch, `wait` until a time, or nothing (`done`)."""
    pipeline = books.pipeline(ports.ledger, name)
    if books.head(ports.ledger, pipeline.partition).value["open"] is not None:
        return {"action": "work"}
    if control.is_paused(ports.ledger, pipeline.partition):
        return {"action": "done"}
    due = _due(ports, pipeline)
    if due is None:
        return {"action": "done"}
    if due[0] <= now:
        return {"action": "work"}
    return {"action": "wait", "until": due[0].isoformat()}


def _due(ports: Ports, pipeline: Pipeline) -> tuple[datetime, list[Row], datetime] | None:
    """When the waiting arrivals become a batch, their pending rows, and when the newest came; None when none waits."""
    batching = pipeline.spec.batching
    rows = ports.ledger.scan(pipeline.partition, "pending/", limit=batching.max_files)
    if not rows:
        return None
    times = [datetime.fromisoformat(row.value["arrived_at"]) for row in rows]
    full = len(rows) >= batching.max_files
    due = times[-1] if full else min(times[-1] + batching.quiet_period, times[0] + batching.max_wait)
    return due, rows, times[-1]


def cut_batch(ports: Ports, name: str, now: datetime) -> int | None:
    """Claim the waiting arrivals as one batch and return its number; a batch still open is returned instead.

    None when nothing waits any more.
    """
    pipeline = books.pipeline(ports.ledger, name)
    while True:
        head = books.head(ports.ledger, pipeline.partition)
        if head.value["open"] is not None:
            return int(head.value["open"])
        due = _due(ports, pipeline)
        if due is None:
            return None
        number = int(head.value["batch"]) + 1
        batch = Batch(
            number,
            arrivals=tuple(dict.fromkeys(row.value["id"] for row in due[1])),
            due_at=due[0],
            cut_at=now,
            newest_at=due[2],
            claimed=tuple(row.key for row in due[1]),
        )
        try:
            ports.ledger.commit(
                pipeline.partition,
                [
                    Replace("head", {**head.value, "batch": number, "open": number}, head.etag),
                    Insert(books.batch_key(number), to_builtins(batch)),
                ],
            )
        except Conflict:
            continue
        return number


def check_batch(ports: Ports, name: str, number: int, now: datetime) -> Json:
    """Check each file of the batch against the pipeline's rules: accepted, quarantined whole, superseded, or unchanged.

    Called again, it goes on with the files it has not decided yet. A file's verdict does not depend on that: files are
    looked at in path order, and each must fit the table and the files accepted before it.
    """
    pipeline = books.pipeline(ports.ledger, name)
    partition = pipeline.partition
    batch = books.batch(ports.ledger, partition, number)
    files = sorted((books.arrival(ports.ledger, partition, id_) for id_ in batch.arrivals), key=lambda a: a.url)
    if batch.state is BatchState.CUT:
        files = _decided(ports, pipeline, number, files, now)
        mine = tuple(each.id for each in files if each.state is ArrivalState.ACCEPTED and each.batch == number)
        value: Any = to_builtins(replace(batch, state=BatchState.CHECKED, accepted=mine))
        books.change(
            ports.ledger,
            partition,
            books.batch_key(number),
            lambda row: value if row["state"] == BatchState.CUT.value else None,
        )
    counts = {state.value: sum(each.state is state for each in files) for state in ArrivalState}
    return {"batch": number, **counts}


def _decided(ports: Ports, pipeline: Pipeline, number: int, files: list[Arrival], now: datetime) -> list[Arrival]:
    """The arrivals, each of them looked at, as the ledger has them then: another host may have been faster, and the file
    may have been given up meanwhile."""
    known = _known_columns(ports, pipeline.partition)
    unsaved = list[Decision]()
    with tempfile.TemporaryDirectory(prefix="dropforge-check-") as folder:
        for arrival in files:
            if arrival.state is ArrivalState.PENDING:
                decision = _looked_at(
                    ports, pipeline, replace(arrival, batch=number), known, Path(folder) / "drop", now
                )
                unsaved.append(decision)
                arrival = decision.arrival
            if arrival.state is ArrivalState.ACCEPTED:
                known = _merged(known, arrival.columns)
            if len(unsaved) >= AT_ONCE:
                _save(ports, pipeline, unsaved)
    _save(ports, pipeline, unsaved)
    return [books.arrival(ports.ledger, pipeline.partition, each.id) for each in files]


def _save(ports: Ports, pipeline: Pipeline, decided: list[Decision]) -> None:
    """Write down what became of the arrivals, and tell of it. What a crash forgets is looked at again."""
    arrivals.decide(ports, pipeline, decided)
    if any(each.told for each in decided):
        outbox.flush(ports, pipeline.partition)
    decided.clear()


def _looked_at(
    ports: Ports, pipeline: Pipeline, arrival: Arrival, known: tuple[Column, ...], path: Path, now: datetime
) -> Decision:
    """What one look at the file decides. `path`: where the file may lie meanwhile."""
    try:
        _fetch(ports, arrival, path)
    except (NotFound, Conflict) as error:
        superseded = replace(arrival, state=ArrivalState.SUPERSEDED, reason=error.message)
        return Decision(superseded, gone_at=now if isinstance(error, NotFound) else None)
    checked = _checked(ports, pipeline, arrival, known, path)
    return Decision(checked, tuple(_news(pipeline, checked)))


def _known_columns(ports: Ports, partition: str) -> tuple[Column, ...]:
    version = int(books.head(ports.ledger, partition).value["version"])
    return books.dataset_version(ports.ledger, partition, version).columns if version else ()


def _merged(known: tuple[Column, ...], more: tuple[Column, ...]) -> tuple[Column, ...]:
    names = {each.name for each in known}
    return known + tuple(each for each in more if each.name not in names)


def _checked(ports: Ports, pipeline: Pipeline, arrival: Arrival, known: tuple[Column, ...], path: Path) -> Arrival:
    """The arrival as one look at its file leaves it; a quarantined file is kept with a report beside it."""
    arrival = replace(arrival, sha256=_sha256(path), size_bytes=path.stat().st_size)
    holder = arrivals.held(ports, pipeline.partition, arrival)
    if holder is not None:
        return _unchanged(ports, pipeline.partition, arrival, holder)
    check = ports.tables.check(path, books.rules(pipeline, known))
    if check.problems:
        return _quarantined(ports, pipeline, arrival, path, check)
    return replace(
        arrival,
        state=ArrivalState.ACCEPTED,
        rows=check.rows,
        columns=check.columns,
        event_time_min=check.event_time_min,
        event_time_max=check.event_time_max,
    )


def _unchanged(ports: Ports, partition: str, arrival: Arrival, holder: Arrival) -> Arrival:
    """The arrival of bytes that the table holds already: nothing is appended, and it is said where they are."""
    assert holder.batch is not None
    version = books.batch(ports.ledger, partition, holder.batch).version
    how = "as this name brought them before" if holder.url == arrival.url else f"from {holder.url}, which was renamed"
    reason = f"these bytes are in dataset version {version} already, {how}"
    return replace(arrival, state=ArrivalState.UNCHANGED, reason=reason)


def _fetch(ports: Ports, arrival: Arrival, path: Path) -> None:
    """The bytes of that write: from the drop, or from where a quarantined file was kept."""
    if arrival.kept is not None:
        ports.artifacts.fetch(arrival.kept, path)
    else:
        ports.drops.fetch(arrival.url, arrival.etag, path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _quarantined(ports: Ports, pipeline: Pipeline, arrival: Arrival, path: Path, check: FileCheck) -> Arrival:
    folder = f"quarantine/{pipeline.name}/{arrival.id}"
    kept = f"{folder}/file"
    ports.artifacts.put(kept, path)
    report = f"{folder}/report-{pipeline.revision}-{arrival.replays}.json"
    first = check.problems[0]
    reason = first.message + (f" (and {len(check.problems) - 1} more problems)" if len(check.problems) > 1 else "")
    body = {
        "pipeline": pipeline.name,
        "pipeline_revision": pipeline.revision,
        "url": arrival.url,
        "etag": arrival.etag,
        "sha256": arrival.sha256,
        "rows": check.rows,
        "problems": [to_builtins(problem) for problem in check.problems],
    }
    ports.artifacts.put(report, to_json(body))
    return replace(arrival, state=ArrivalState.QUARANTINED, reason=reason, report=report, kept=kept, rows=check.rows)


def write_version(ports: Ports, name: str, number: int, now: datetime) -> Json:
    """Append the batch's accepted files to the table, each exactly once, write the manifest and close the batch.

    Returns `{"version": n}`, or `{"version": None}` when no file was accepted. Safe to call again at any point.
    """
    pipeline = books.pipeline(ports.ledger, name)
    partition = pipeline.partition
    while True:
        batch = books.batch(ports.ledger, partition, number)
        if batch.state not in (BatchState.VERSIONED, BatchState.EMPTY):
            began = time.time_ns()
            table = ports.tables.find(name, number)
            if table is None:
                try:
                    batch, table = _appended(ports, pipeline, batch)
                except Conflict:
                    if books.batch(ports.ledger, partition, number) == batch:
                        raise  # not for what somebody else did: a second look finds no other
                    continue
            try:
                batch = _record_version(ports, partition, batch, table, now, began)
            except Conflict:
                continue  # somebody else works on the same batch; what they wrote is what counts
        books.finish_batch(ports.ledger, partition, batch)
        outbox.flush(ports, partition)
        return {"version": batch.version}


def _record_version(
    ports: Ports, partition: str, batch: Batch, table: TableState | None, now: datetime, began_ns: int
) -> Batch:
    """Manifest first, then one commit: dataset version, head and batch. No table state: nothing was accepted. Raises
    `Conflict` when somebody else has changed the batch, or the head meanwhile."""
    head = books.head(ports.ledger, partition)
    row = _row_of(ports, partition, batch)
    if table is None:
        empty = replace(batch, state=BatchState.EMPTY)
        ports.ledger.commit(partition, [Replace(row.key, to_builtins(empty), row.etag)])
        return empty
    name, parent = partition.removeprefix("p."), int(head.value["version"])
    files = {id_: books.arrival(ports.ledger, partition, id_) for id_ in batch.arrivals}
    accepted = [files[id_] for id_ in batch.accepted]
    manifest = Manifest(name, parent + 1, batch.number, parent or None, tuple(map(_source, accepted)))
    artifact = f"datasets/{name}/{parent + 1:08d}/manifest.json"
    version = DatasetVersion(
        dataset=name,
        version=parent + 1,
        batch=batch.number,
        table_uri=table.uri,
        table_version=table.version,
        manifest=artifact,
        manifest_sha256=_manifest_put(ports, partition, head, artifact, manifest),
        files=len(accepted),
        rows=sum(each.rows or 0 for each in accepted),
        total_rows=table.rows,
        columns=table.columns,
        created_at=now,
        quarantined=sum(each.state is ArrivalState.QUARANTINED for each in files.values()),
        cause=furthest(each.cause for each in accepted),
    )
    versioned = replace(batch, state=BatchState.VERSIONED, version=version.version)
    ports.ledger.commit(
        partition,
        [
            Insert(books.dataset_key(version.version), to_builtins(version)),
            Replace("head", {**head.value, "version": version.version}, head.etag),
            Replace(row.key, to_builtins(versioned), row.etag),
            outbox.entry(_versioned(version)),
        ],
    )
    tracing.found(version)
    telemetry.done(
        "write dataset version",
        tracing.of_version(version),
        began_ns,
        key=str(version.version),
        pipeline=name,
        version=version.version,
        files=version.files,
        rows=version.rows,
    )
    telemetry.count("dropforge.files.quarantined", version.quarantined, pipeline=name)
    return versioned


def _row_of(ports: Ports, partition: str, batch: Batch) -> Row:
    """The batch's row. Raises `Conflict` when it no longer says what was worked from: whoever read it and then fetched
    files for minutes may find that another host has closed the batch."""
    row = ports.ledger.get(partition, books.batch_key(batch.number))
    if row is None or from_builtins(Batch, row.value) != batch:
        raise Conflict(f"batch {batch.number} has been changed by another host; read it again", batch=batch.number)
    return row


def _manifest_put(ports: Ports, partition: str, head: Row, artifact: str, manifest: Manifest) -> str:
    """The sha256 of the manifest, once it is kept. Raises `Conflict` when the dataset has gone on meanwhile, and `Refused`
    when it has not: then no second look finds anything else."""
    try:
        return ports.artifacts.put(artifact, to_json(manifest))
    except Conflict as error:
        if books.head(ports.ledger, partition).etag != head.etag:
            raise
        raise Refused(
            f"dataset version {manifest.version} of {manifest.dataset!r} was written before, of other files: the ledger is "
            "older than the artifacts beside it, as after a restore. Give it a store of its own; see docs/operate.md",
            artifact=artifact,
        ) from error


def _news(pipeline: Pipeline, arrival: Arrival) -> list[Insert]:
    """What is told of a file that has been looked at: that it is in quarantine, if it is."""
    if arrival.state is not ArrivalState.QUARANTINED:
        return []
    event = DomainEvent(
        id=id_of("FileQuarantined", arrival.id, str(arrival.report)),
        type="FileQuarantined",
        subject=f"pipelines/{pipeline.name}/arrivals/{arrival.id}",
        at=arrival.arrived_at,
        data={
            "pipeline": pipeline.name,
            "arrival": arrival.id,
            "url": arrival.url,
            "reason": arrival.reason,
            "report": arrival.report,
        },
        cause=arrival.cause,
    )
    return [outbox.entry(event)]


def _appended(ports: Ports, pipeline: Pipeline, batch: Batch) -> tuple[Batch, TableState | None]:
    """`_append`, with a file that turns out not to fit the table after all put into quarantine, and the rest appended."""
    while True:
        try:
            return _append(ports, pipeline, batch)
        except BadFile as error:
            source = str(error.about.get("source", ""))
            if source not in batch.accepted:
                raise
            arrival = books.arrival(ports.ledger, pipeline.partition, source)
            with tempfile.TemporaryDirectory(prefix="dropforge-check-") as folder:
                path = Path(folder) / "drop"
                _fetch(ports, arrival, path)
                check = FileCheck(arrival.rows or 0, arrival.columns, (Problem("fit", None, error.message),))
                arrival = _quarantined(ports, pipeline, arrival, path, check)
            quarantined = Decision(arrival, tuple(_news(pipeline, arrival)))
            batch = _without(ports, pipeline.partition, batch, [quarantined])
            outbox.flush(ports, pipeline.partition)


def _without(ports: Ports, partition: str, batch: Batch, out: Sequence[Decision]) -> Batch:
    """The batch without those files, in one commit with what has become of them, before anything is appended: what the
    ledger says is accepted is what the table will hold. Raises `Conflict` when somebody else has changed the batch."""
    ids = {each.arrival.id for each in out}
    rest = replace(batch, accepted=tuple(id_ for id_ in batch.accepted if id_ not in ids))
    while True:
        row = _row_of(ports, partition, batch)
        writes: list[Write] = [Replace(row.key, to_builtins(rest), row.etag)]
        for each in out:
            known = ports.ledger.get(partition, f"arrival/{each.arrival.id}")
            if known is not None and known.value["state"] == ArrivalState.ACCEPTED.value:
                # It never got into the table, so nothing that is in there is gone.
                value = to_builtins(replace(each.arrival, gone_at=None))
                writes += [Replace(known.key, value, known.etag), Delete(arrivals.gone_key(each.arrival)), *each.told]
        try:
            ports.ledger.commit(partition, writes)
        except Conflict:
            continue
        return rest


def _append(ports: Ports, pipeline: Pipeline, batch: Batch) -> tuple[Batch, TableState | None]:
    """Put the accepted files into the table. A file that was written over since its check is taken out first, in the
    ledger, so that what the ledger says was accepted is what the table holds."""
    partition = pipeline.partition
    rules = books.rules(pipeline, _known_columns(ports, partition))
    with tempfile.TemporaryDirectory(prefix="dropforge-append-") as folder:
        files, gone = [], list[Decision]()
        for index, id_ in enumerate(batch.accepted):
            arrival = books.arrival(ports.ledger, partition, id_)
            path = Path(folder) / f"{index:06d}"
            try:
                _fetch(ports, arrival, path)
                if _sha256(path) != arrival.sha256:
                    raise Conflict(f"{arrival.url} changed after it was checked, under an equal etag")
            except (NotFound, Conflict) as error:
                gone.append(Decision(replace(arrival, state=ArrivalState.SUPERSEDED, reason=error.message)))
                continue
            files.append(TableFile(path, arrival.id, arrival.arrived_at))
        if gone and (table := ports.tables.find(pipeline.name, batch.number)) is not None:
            return batch, table  # another host had appended it before it went
        for start in range(0, len(gone), AT_ONCE):
            batch = _without(ports, partition, batch, gone[start : start + AT_ONCE])
        if not files:
            return batch, None
        _row_of(ports, partition, batch)
        return batch, ports.tables.append(pipeline.name, batch.number, files, rules)


def _source(arrival: Arrival) -> Source:
    return Source(
        arrival=arrival.id,
        url=arrival.url,
        etag=arrival.etag,
        sha256=arrival.sha256 or "",
        size_bytes=arrival.size_bytes,
        rows=arrival.rows or 0,
        arrived_at=arrival.arrived_at,
        event_time_min=arrival.event_time_min,
        event_time_max=arrival.event_time_max,
    )


def _versioned(version: DatasetVersion) -> DomainEvent:
    return DomainEvent(
        id=id_of("DatasetVersioned", version.dataset, str(version.version)),
        type="DatasetVersioned",
        subject=f"datasets/{version.dataset}/versions/{version.version}",
        at=version.created_at,
        data={
            # A pipeline has one dataset, of its own name.
            "pipeline": version.dataset,
            "version": version.version,
            "files": version.files,
            "quarantined": version.quarantined,
            "rows": version.rows,
            "total_rows": version.total_rows,
            "manifest": version.manifest,
        },
        cause=version.cause,
    )


def leave_intake(ports: Ports, name: str, epoch: int) -> bool:
    """Whether the intake flow may end; see `lanes.leave`."""
    books.note_trouble(ports.ledger, name, None)
    partition = books.partition_of(name)

    def more() -> bool:
        if books.head(ports.ledger, partition).value["open"] is not None:
            return True
        waiting = bool(ports.ledger.scan(partition, "pending/", limit=1))
        return waiting and not control.is_paused(ports.ledger, partition)

    return lanes.leave(ports.ledger, partition, LANE, epoch, more)


# ------------------------------------------------------------------------------------------------ replay, sweep
def replay(ports: Ports, name: str, arrival: str | None, now: datetime) -> Json:
    """Put quarantined files back in line: one, or all. They are checked again by the rules as they are now."""
    pipeline = books.pipeline(ports.ledger, name)
    chosen = [arrival] if arrival else quarantined(ports, name)
    files = {id_: books.arrival(ports.ledger, pipeline.partition, id_).replays for id_ in chosen}
    done = [id_ for id_, replays in files.items() if put_back(ports, pipeline.partition, id_, replays, now)]
    return {"replayed": done, "start": wake(ports, pipeline) if done else None}


def put_back(ports: Ports, partition: str, id_: str, replays: int, now: datetime) -> bool:
    """Put a quarantined file back in line that has been put back `replays` times before; whether it was. Once only: had
    it been put back and come to quarantine again since, it has been put back more often."""
    while True:
        row = ports.ledger.get(partition, f"arrival/{id_}")
        if row is None:
            raise NotFound(f"no arrival {id_!r}", arrival=id_)
        known = from_builtins(Arrival, row.value)
        if known.state is not ArrivalState.QUARANTINED or known.replays != replays:
            return False
        again = replace(known, state=ArrivalState.PENDING, batch=None, reason=None, arrived_at=now, replays=replays + 1)
        try:
            ports.ledger.commit(
                partition,
                [
                    Replace(row.key, to_builtins(again), row.etag),
                    Insert(books.pending_key(again), {"id": id_, "arrived_at": now.isoformat()}),
                ],
            )
        except Conflict:
            continue
        return True


def quarantined(ports: Ports, name: str) -> list[str]:
    """Ids of the files in quarantine."""
    rows = books.every(ports.ledger, books.partition_of(name), "arrival/")
    return [row.value["id"] for row in rows if row.value["state"] == ArrivalState.QUARANTINED.value]


def sweep(ports: Ports) -> list[Json]:
    """The flows that should live and may not: a crash can come between the writing down and the start.

    A flow that lives already is started again in vain: "already there" is success.
    """
    flows = []
    for pipeline in books.pipelines(ports.ledger):
        waits = ports.ledger.scan(pipeline.partition, "pending/", limit=1)
        if waits or lanes.live_epoch(ports.ledger, pipeline.partition, LANE) is not None:
            flows.append(wake(ports, pipeline, again=True))
    return [flow for flow in flows if flow is not None]
