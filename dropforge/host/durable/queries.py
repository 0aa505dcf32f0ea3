"""Reading what the engine has committed, on a connection of its own, so that a look never holds up the work."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dropforge.host.durable import clock
from dropforge.host.durable.errors import BadQuery
from dropforge.host.durable.messages import EventType
from dropforge.host.durable.store import connect

STATUSES = ("Pending", "Running", "Suspended", "Completed", "Failed", "Terminated", "ContinuedAsNew", "Canceled")
_MAX_PAGE = 1_000
# More than SQLite can number.
_LONGEST_TOKEN = 18


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """An instance as the management API shows it; payloads as JSON text, times in microseconds."""

    instance_id: str
    name: str
    runtime_status: str
    input: str | None
    custom_status: str | None
    output: str | None
    created_at: int
    updated_at: int
    history: list[dict[str, Any]] | None = None

    @property
    def finished(self) -> bool:
        return self.runtime_status in ("Completed", "Failed", "Terminated")

    def to_json(self, *, show_input: bool = True) -> dict[str, Any]:
        body = {
            "name": self.name,
            "instanceId": self.instance_id,
            "runtimeStatus": self.runtime_status,
            "input": _value(self.input) if show_input else None,
            "customStatus": _value(self.custom_status),
            "output": _value(self.output),
            "createdTime": clock.to_seconds_text(self.created_at),
            "lastUpdatedTime": clock.to_seconds_text(self.updated_at),
        }
        if self.history is not None:
            body["historyEvents"] = self.history
        return body


@dataclass(frozen=True, slots=True)
class Query:
    """Which instances; times in microseconds, inclusive; an empty tuple of statuses means all."""

    since: int | None = None
    until: int | None = None
    statuses: tuple[str, ...] = ()
    prefix: str = ""
    top: int | None = None  # None: all of them
    token: str = ""


@dataclass(frozen=True, slots=True)
class EntityRow:
    entity_id: str
    state: str | None  # JSON text
    updated_at: int


class Queries:
    """A read-only view; safe to use from any thread, one question at a time."""

    def __init__(self, database: Path) -> None:
        self._lock = threading.Lock()
        self._db = connect(database, read_only=True)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _all(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def status(self, instance_id: str, *, history: bool = False, history_output: bool = False) -> InstanceStatus | None:
        rows = self._all(f"{_SELECT} WHERE id = ?", (instance_id,))
        if not rows:
            return None
        events = self._history(rows[0][0], history_output) if history else None
        return _status(rows[0], events)

    def _history(self, serial: int, outputs: bool) -> list[dict[str, Any]]:
        rows = self._all("SELECT events FROM episodes WHERE instance = ? ORDER BY seq", (serial,))
        return shown_history([event for (text,) in rows for event in json.loads(f"[{text}]")], outputs)

    def statuses(self, query: Query) -> tuple[list[InstanceStatus], str]:
        """The instances in the order in which they were created, and a token for the next page (or nothing)."""
        where, values = _conditions(query)
        limit = min(query.top, _MAX_PAGE) if query.top else None
        sql = f"{_SELECT} WHERE {where} ORDER BY serial" + (f" LIMIT {limit + 1}" if limit else "")
        rows = self._all(sql, values)
        more = limit is not None and len(rows) > limit
        page = rows[:limit] if limit else rows
        return [_status(row, None) for row in page], str(page[-1][0]) if more else ""

    def entity(self, entity_id: str) -> EntityRow | None:
        rows = self._all("SELECT id, state, updated_at FROM entities WHERE id = ?", (entity_id,))
        return EntityRow(*rows[0]) if rows else None

    def entities(self, name: str, top: int | None, token: str) -> tuple[list[EntityRow], str]:
        limit = min(top or _MAX_PAGE, _MAX_PAGE)
        prefix = f"@{name.lower()}@" if name else "@"
        rows = self._all(
            "SELECT serial, id, state, updated_at FROM entities WHERE serial > ? AND substr(id, 1, ?) = ?"
            " ORDER BY serial LIMIT ?",
            (_serial(token), len(prefix), prefix, limit + 1),
        )
        page = rows[:limit]
        return [EntityRow(*row[1:]) for row in page], str(page[-1][0]) if len(rows) > limit else ""


_SELECT = "SELECT serial, id, name, status, input, custom_status, output, created_at, updated_at FROM instances"


def _status(row: tuple[Any, ...], events: list[dict[str, Any]] | None) -> InstanceStatus:
    _, instance_id, name, status, input_, custom_status, output, created_at, updated_at = row
    return InstanceStatus(instance_id, name, status, input_, custom_status, output, created_at, updated_at, events)


def known_statuses(named: Sequence[str]) -> list[str]:
    """The statuses as they are written here, however those named are. Raises `BadQuery` for one that is none."""
    known = {status.lower(): status for status in STATUSES}
    for status in named:
        if status.lower() not in known:
            raise BadQuery(f"unknown runtime status {status!r}; choose from {list(STATUSES)}")
    return [known[status.lower()] for status in named]


def _conditions(query: Query) -> tuple[str, list[Any]]:
    statuses = known_statuses(query.statuses)
    parts, values = ["serial > ?"], [_serial(query.token)]  # type: tuple[list[str], list[Any]]
    if query.since is not None:
        parts.append("created_at >= ?")
        values.append(query.since)
    if query.until is not None:
        parts.append("created_at <= ?")
        values.append(query.until)
    if statuses:
        parts.append(f"status IN ({','.join('?' * len(statuses))})")
        values.extend(statuses)
    if query.prefix:
        parts.append("substr(id, 1, ?) = ?")
        values.extend((len(query.prefix), query.prefix))
    return " AND ".join(parts), values


def _serial(token: str) -> int:
    if token and not (token.isdecimal() and len(token) <= _LONGEST_TOKEN):
        raise BadQuery(f"not a continuation token of this API: {token[:100]!r}; pass back the header of the last page")
    return int(token or 0)


def _value(text: str | None) -> Any:
    return None if text is None else json.loads(text)


_NAMES = {
    EventType.EXECUTION_STARTED: "ExecutionStarted",
    EventType.EXECUTION_COMPLETED: "ExecutionCompleted",
    EventType.EXECUTION_TERMINATED: "ExecutionTerminated",
    EventType.TASK_COMPLETED: "TaskCompleted",
    EventType.TASK_FAILED: "TaskFailed",
    EventType.CHILD_COMPLETED: "SubOrchestrationInstanceCompleted",
    EventType.CHILD_FAILED: "SubOrchestrationInstanceFailed",
    EventType.TIMER_FIRED: "TimerFired",
    EventType.EVENT_SENT: "EventSent",
    EventType.EVENT_RAISED: "EventRaised",
    EventType.EXECUTION_SUSPENDED: "ExecutionSuspended",
    EventType.EXECUTION_RESUMED: "ExecutionResumed",
}
_SCHEDULED = (EventType.TASK_SCHEDULED, EventType.CHILD_CREATED, EventType.TIMER_CREATED)
_BRACKETS = (EventType.ORCHESTRATOR_STARTED, EventType.ORCHESTRATOR_COMPLETED)


def shown_history(events: list[dict[str, Any]], outputs: bool) -> list[dict[str, Any]]:
    """The history as the status API shows it: without brackets, each end joined with its beginning.

    A completion carries the name and the `ScheduledTime` of what it completes; results only when asked for.
    """
    begun = {event["EventId"]: event for event in events if event["EventType"] in _SCHEDULED}
    ended = {event.get("TaskScheduledId", event.get("TimerId")) for event in events}
    shown = []
    for event in events:
        kind = event["EventType"]
        if kind in _BRACKETS or (kind in _SCHEDULED and event["EventId"] in ended):
            continue
        line: dict[str, Any] = {"EventType": _NAMES.get(kind, _open_name(kind)), "Timestamp": event["Timestamp"]}
        start = begun.get(event.get("TaskScheduledId", event.get("TimerId")))
        if start is not None:
            line["ScheduledTime"] = start["Timestamp"]
            if "Name" in start:
                line["FunctionName"] = start["Name"]
        for source, target in _SHOWN.items():
            if event.get(source) is not None:
                line[target] = event[source]
        if outputs and event.get("Result") is not None:
            line["Result"] = _value(event["Result"])
        shown.append(line)
    return shown


_SHOWN = {
    "Name": "Name",
    "FireAt": "FireAt",
    "InstanceId": "InstanceId",
    "Reason": "Reason",
    "Details": "Details",
    "OrchestrationStatus": "OrchestrationStatus",
}


def _open_name(kind: int) -> str:
    return {
        EventType.TASK_SCHEDULED: "TaskScheduled",
        EventType.CHILD_CREATED: "SubOrchestrationInstanceCreated",
        EventType.TIMER_CREATED: "TimerCreated",
    }.get(kind, str(kind))
