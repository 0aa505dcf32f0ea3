"""Taking a failed execution back to before the failure, so that only what failed runs again.

The history before the failure stays as it is. Its bookkeeping is rebuilt by delivering the recorded messages again;
messages of the part that is cut off are put back into the inbox where the task they complete is still open then.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from dropforge.host.durable import clock
from dropforge.host.durable.book import Book
from dropforge.host.durable.episode import run_episode
from dropforge.host.durable.execution import ActivityOrder, ChildOrder, Execution, Operation, Outcome
from dropforge.host.durable.messages import EventType, Kind, Message
from dropforge.host.durable.protocol import Invoker
from dropforge.host.durable.settings import DurableSettings

_KINDS = {
    EventType.EXECUTION_STARTED: Kind.START,
    EventType.TASK_COMPLETED: Kind.ACTIVITY,
    EventType.TASK_FAILED: Kind.ACTIVITY,
    EventType.CHILD_COMPLETED: Kind.CHILD,
    EventType.CHILD_FAILED: Kind.CHILD,
    EventType.TIMER_FIRED: Kind.TIMER,
    EventType.EVENT_RAISED: Kind.EVENT,
}
_FAILURES = (EventType.TASK_FAILED, EventType.CHILD_FAILED)


@dataclass(slots=True)
class Rewound:
    """The execution as of before the failure, and what has to happen (again)."""

    execution: Execution
    inbox: list[Message]
    activities: list[ActivityOrder] = field(default_factory=list)
    timers: list[tuple[int, int]] = field(default_factory=list)
    children: list[ChildOrder] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)


class ChangedCode(Exception):  # the caller knows the instance and makes it an error of the API
    """The orchestrator asks for other things than the history records."""


def rewind(execution: Execution, invoker: Invoker, settings: DurableSettings) -> Rewound:
    """Raises ChangedCode when the part of the history that stays does not fit the code any more."""
    episodes: list[list[dict[str, Any]]] = [json.loads(f"[{events}]") for events in execution.history]
    cut = _cut(execution, episodes, invoker, settings)
    fresh = _blank(execution)
    orders = Outcome()
    for number, events in enumerate(episodes[:cut]):
        done = _replay(fresh, events, invoker, settings)
        if done is None:
            fresh.append(execution.history[number])
            continue
        if _scheduled(json.loads(f"[{done.events}]")) != _scheduled(events):
            raise ChangedCode(f"episode {number} of its history does not fit the orchestrator any more")
        orders.activities += done.activities
        orders.children += done.children
        orders.operations += done.operations
    fresh.history = execution.history[:cut]
    inbox = [
        message
        for events in episodes[cut:]
        for message in _messages(events, fresh.book)
        if not message.failed and _wanted(message, fresh.book)
    ]
    return _open_again(Rewound(fresh, inbox), orders)


def _cut(
    execution: Execution, episodes: list[list[dict[str, Any]]], invoker: Invoker, settings: DurableSettings
) -> int:
    """The first episode to undo: where the code failed, or, when no task failed there, where the last task did."""
    trial, failed_at = _blank(execution), len(episodes) - 1
    for number, events in enumerate(episodes):
        _replay(trial, events, invoker, settings)
        if trial.book.final is not None:
            failed_at = number
            break
    with_failures = [n for n, events in enumerate(episodes) if any(e["EventType"] in _FAILURES for e in events)]
    if any(number >= failed_at for number in with_failures) or not with_failures:
        return failed_at
    return with_failures[-1]


def _blank(execution: Execution) -> Execution:
    return Execution(
        execution.instance_id,
        execution.execution_id,
        execution.name,
        execution.version,
        execution.input,
        execution.parent,
    )


def _replay(
    execution: Execution, events: list[dict[str, Any]], invoker: Invoker, settings: DurableSettings
) -> Outcome | None:
    at = clock.from_text(events[0]["Timestamp"])
    inbox = _messages(events, execution.book)
    return run_episode(execution, inbox, at, invoker, settings) if inbox else None


def _messages(events: list[dict[str, Any]], book: Book) -> list[Message]:
    requests = {task.request for task in book.open.values() if task.request}
    found = []
    for event in events:
        kind = _KINDS.get(event["EventType"])
        if kind is None:
            continue
        name = event.get("Name", "") if kind is Kind.EVENT else ""
        if name in requests:
            kind = Kind.REPLY
        task_id = event.get("TaskScheduledId", event.get("TimerId", -1))
        failed = event["EventType"] in _FAILURES
        found.append(Message(kind, json.dumps(event), task_id, name, failed=failed))
    return found


def _wanted(message: Message, book: Book) -> bool:
    if message.kind in (Kind.START, Kind.EVENT, Kind.REPLY):
        return True
    task = book.open.get(message.task_id)
    return task is not None and task.kind == message.kind.value


def _scheduled(events: list[dict[str, Any]]) -> list[tuple[int, int, str]]:
    return [(event["EventType"], event["EventId"], event.get("Name", "")) for event in events if event["EventId"] >= 0]


def _open_again(rewound: Rewound, orders: Outcome) -> Rewound:
    """Orders again what is open and will not be completed by a message that is already there."""
    answered = {message.task_id for message in rewound.inbox if message.task_id >= 0}
    replied = {message.name for message in rewound.inbox if message.kind is Kind.REPLY}
    book = rewound.execution.book
    open_now = {task_id: task for task_id, task in book.open.items() if task_id not in answered}
    rewound.activities = [order for order in orders.activities if order.task_id in open_now]
    rewound.children = [order for order in orders.children if order.parent.task_id in open_now]
    rewound.timers = [(task_id, task.due) for task_id, task in open_now.items() if task.kind == "timer"]
    unanswered = {task.request for task in open_now.values() if task.request} - replied
    rewound.operations = [each for each in orders.operations if json.loads(each.text)["id"] in unanswered]
    return rewound
