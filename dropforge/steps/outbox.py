"""The outbox: what is to be told is written in the same commit as the fact, and told only then.

A row `outbox/<time>-<id>` lies beside the fact, in its partition. Who commits it also flushes it; what a crash leaves
behind, the sweep flushes. So everything is told at least once, and nothing before it is so.

There may be several places to tell an event, and replies go to yet another. A place that does not answer gets a line of
its own, `late/<place>/<time>-<id>`, in which what it has missed waits in order, while the others are told at once. What
can never be told there (a reply queue that does not exist) is kept under `untold/<place>/` with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC
from typing import TypeAlias

from dropforge.domain.causes import told_id
from dropforge.domain.errors import Conflict, DropforgeError
from dropforge.domain.events import DomainEvent, Reply
from dropforge.ports import Delete, Insert, Json, Ports, Row
from dropforge.steps import books
from dropforge.wire import from_builtins, to_builtins

PREFIX = "outbox/"
LATE = "late/"
UNTOLD = "untold/"
# Where replies go, among the names of the places where events go.
REPLIES = "replies"
MAX_WRITES = 100
# How much of what a place has missed it is told by one sweep.
SWEPT_PAGES = 200

_Tell: TypeAlias = Callable[[Json], None]

log = logging.getLogger(__name__)


def entry(told: DomainEvent | Reply) -> Insert:
    """The write that puts it into the outbox; belongs into the commit of the fact itself."""
    at = told.at.astimezone(UTC).isoformat(timespec="microseconds")
    key = f"{PREFIX}{at}-{told.id}"
    if isinstance(told, Reply):
        return Insert(key, {"kind": "reply", "value": to_builtins(told)})
    return Insert(key, {"kind": "event", "value": to_builtins(replace(told, id=told_id(told.id, told.hops)))})


def flush(ports: Ports, partition: str, pages: int = 1) -> bool:
    """Tell what waits in this partition, oldest first; whether all of it could be told.

    A listener that does not answer is no failure of the step that flushes: the sweep tells it later. One that answers
    again is told at most `pages` pages of what it has missed, so that the step does not wait for all of it.
    """
    places = _places(ports)
    page = MAX_WRITES // (len(places) + 1)  # a row becomes one write of its own and at most one for each place
    behind = {place for place, tell in places.items() if not _catch_up(ports, partition, place, tell, pages)}
    while rows := ports.ledger.scan(partition, PREFIX, limit=page):
        writes: list[Delete | Insert] = []
        for row in rows:
            writes.append(Delete(row.key))
            for place in (REPLIES,) if row.value["kind"] == "reply" else ports.events:
                writes += _told(ports, partition, row, place, places[place], behind)
        _commit(ports, partition, writes)
    return not behind


def sweep(ports: Ports) -> None:
    """Tell everything that is still waiting to be told."""
    for pipeline in books.pipelines(ports.ledger):
        flush(ports, pipeline.partition, SWEPT_PAGES)
        endpoint = books.endpoint_name(pipeline)
        flush(ports, books.endpoint_partition(endpoint), SWEPT_PAGES)
    for partition in books.OTHER_PARTITIONS:
        flush(ports, partition, SWEPT_PAGES)


def _places(ports: Ports) -> dict[str, _Tell]:
    def event(place: str) -> _Tell:
        return lambda value: ports.events[place].publish(from_builtins(DomainEvent, value))

    def reply(value: Json) -> None:
        ports.replies.send(from_builtins(Reply, value))

    return {**{place: event(place) for place in ports.events}, REPLIES: reply}


def _catch_up(ports: Ports, partition: str, place: str, tell: _Tell, pages: int) -> bool:
    """Tell a place what it has missed, in order; whether that is all it has missed."""
    line = f"{LATE}{place}/"
    while rows := ports.ledger.scan(partition, line, limit=MAX_WRITES // 2):
        if pages == 0:
            return False
        pages -= 1
        behind: set[str] = set()
        writes: list[Delete | Insert] = []
        for row in rows:
            kept = _told(ports, partition, row, place, tell, behind)
            if behind:
                break
            writes += [Delete(row.key), *kept]
        if writes:
            _commit(ports, partition, writes)
        if behind:
            return False
    return True


def _told(ports: Ports, partition: str, row: Row, place: str, tell: _Tell, behind: set[str]) -> list[Insert]:
    """Tell a place one thing, unless it is `behind`; the row to keep for it when it could not be told."""
    name = row.key.rpartition("/")[2]
    if place not in behind:
        try:
            tell(row.value["value"])
            return []
        except DropforgeError as error:
            if not error.retryable:
                log.error("%s can never be told to %s and is kept under %s: %s", name, place, UNTOLD, error)
                return _new(ports, partition, f"{UNTOLD}{place}/{name}", {**row.value, "reason": error.message})
            log.warning("%s of %s is told to %s later: %s", name, partition, place, error)
            behind.add(place)
    return _new(ports, partition, f"{LATE}{place}/{name}", row.value)


def _new(ports: Ports, partition: str, key: str, value: Json) -> list[Insert]:
    return [] if ports.ledger.get(partition, key) is not None else [Insert(key, value)]


def _commit(ports: Ports, partition: str, writes: list[Delete | Insert]) -> None:
    try:
        ports.ledger.commit(partition, writes)
    except Conflict:
        log.info("the outbox of %s is flushed elsewhere at the same time", partition)
