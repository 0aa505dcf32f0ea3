"""Who holds a pipeline: paused by a person (or by an alert's rule), or stopped by its breaker.

A pipeline that is held still takes files and events down; nothing is cut, trained or promoted by itself until it goes on.
A batch or a run that is under way is finished.
"""

from __future__ import annotations

from datetime import datetime

from dropforge.domain.errors import Conflict
from dropforge.ports import Insert, Json, Ledger, Ports
from dropforge.steps import books

KEY = "control"
EMPTY: Json = {"paused": None}


def read(ledger: Ledger, partition: str) -> Json:
    """What holds the pipeline."""
    row = ledger.get(partition, KEY)
    return row.value if row is not None else dict(EMPTY)


def is_paused(ledger: Ledger, partition: str) -> bool:
    return read(ledger, partition)["paused"] is not None


def pause(ports: Ports, name: str, by: str, reason: str, now: datetime) -> Json:
    """Hold the pipeline. Paused already: the first pause stands. Returns what holds it."""
    pipeline = books.pipeline(ports.ledger, name)
    _ensure(ports.ledger, pipeline.partition)
    held = {"by": by, "reason": reason, "at": now.isoformat()}
    return books.change(
        ports.ledger,
        pipeline.partition,
        KEY,
        lambda value: {**value, "paused": held} if value["paused"] is None else None,
    )


def resume(ports: Ports, name: str) -> bool:
    """Let the pipeline go on; whether it was held. What has been waiting is started by `pipelines.resume`."""
    pipeline = books.pipeline(ports.ledger, name)
    was = is_paused(ports.ledger, pipeline.partition)
    if was:
        books.change(
            ports.ledger,
            pipeline.partition,
            KEY,
            lambda value: {**value, "paused": None} if value["paused"] is not None else None,
        )
    return was


def _ensure(ledger: Ledger, partition: str) -> None:
    if ledger.get(partition, KEY) is None:
        try:
            ledger.commit(partition, [Insert(KEY, dict(EMPTY))])
        except Conflict:
            return
