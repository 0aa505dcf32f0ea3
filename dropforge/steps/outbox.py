"""The outbox: what is to be told is written in the same commit as the fact, and told only then.

A row `outbox/<time>-<id>` lies beside the fact, in its partition. Who commits it also flushes it; what a crash or an
unreachable listener leaves behind, the sweep flushes. So everything is told at least once, and nothing before it is so.
What can never be told (a reply queue that does not exist) is kept under `untold/` with the reason.
"""

from __future__ import annotations

import logging
from datetime import UTC

from dropforge.domain.errors import DropforgeError
from dropforge.domain.events import DomainEvent, Reply
from dropforge.ports import Delete, Insert, Ports, Row
from dropforge.steps import books
from dropforge.wire import from_builtins, to_builtins

PREFIX = "outbox/"
UNTOLD = "untold/"
PAGE = 49  # each row may become two writes, and a commit holds at most 100

log = logging.getLogger(__name__)


def entry(told: DomainEvent | Reply) -> Insert:
    """The write that puts it into the outbox; belongs into the commit of the fact itself."""
    kind = "reply" if isinstance(told, Reply) else "event"
    at = told.at.astimezone(UTC).isoformat(timespec="microseconds")
    return Insert(f"{PREFIX}{at}-{told.id}", {"kind": kind, "value": to_builtins(told)})


def flush(ports: Ports, partition: str) -> bool:
    """Tell what waits in this partition, oldest first; whether all of it could be told.

    A listener that does not answer is no failure of the step that flushes: the sweep tells it later.
    """
    while rows := ports.ledger.scan(partition, PREFIX, limit=PAGE):
        done: list[Delete | Insert] = []
        waiting = False
        for row in rows:
            try:
                done += _tell(ports, row)
            except DropforgeError as error:
                log.warning("%s of %s is told later: %s", row.key, partition, error)
                waiting = True
                break
        if done:
            ports.ledger.commit(partition, done)
        if waiting:
            return False
    return True


def _tell(ports: Ports, row: Row) -> list[Delete | Insert]:
    """The writes that take the row out of the outbox once it has been told. Raises what may go better next time."""
    try:
        if row.value["kind"] == "reply":
            ports.replies.send(from_builtins(Reply, row.value["value"]))
        else:
            ports.events.publish(from_builtins(DomainEvent, row.value["value"]))
    except DropforgeError as error:
        if error.retryable:
            raise
        log.error("%s can never be told and is kept under %s: %s", row.key, UNTOLD, error)
        kept = UNTOLD + row.key.removeprefix(PREFIX)
        return [Delete(row.key), Insert(kept, {**row.value, "reason": error.message})]
    return [Delete(row.key)]


def sweep(ports: Ports) -> None:
    """Tell everything that is still waiting to be told."""
    for pipeline in books.pipelines(ports.ledger):
        flush(ports, pipeline.partition)
        flush(ports, books.endpoint_partition(pipeline.spec.deployment.endpoint or pipeline.name))
    for partition in books.OTHER_PARTITIONS:
        flush(ports, partition)
