"""What reaches an instance: completions, fired timers, external events; and the history events they become."""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from dropforge.host.durable import clock


class EventType:
    """Numbers of the history events (DurableTask.Core `EventType`)."""

    EXECUTION_STARTED = 0
    EXECUTION_COMPLETED = 1
    EXECUTION_TERMINATED = 3
    TASK_SCHEDULED = 4
    TASK_COMPLETED = 5
    TASK_FAILED = 6
    CHILD_CREATED = 7
    CHILD_COMPLETED = 8
    CHILD_FAILED = 9
    TIMER_CREATED = 10
    TIMER_FIRED = 11
    ORCHESTRATOR_STARTED = 12
    ORCHESTRATOR_COMPLETED = 13
    EVENT_SENT = 14
    EVENT_RAISED = 15
    EXECUTION_SUSPENDED = 19
    EXECUTION_RESUMED = 20


class Kind(StrEnum):
    """What a message is; a message of one kind cannot complete a task of another."""

    START = "start"
    ACTIVITY = "activity"
    CHILD = "child"
    TIMER = "timer"
    EVENT = "event"
    REPLY = "reply"
    OPERATION = "operation"


@dataclass(slots=True)
class Message:
    """One thing that happened, waiting in the inbox of an instance (or of an entity: OPERATION).

    `text` is the JSON of the history event, written once and copied verbatim from then on (for an operation: the
    request message). `execution` names the execution it is for; empty means whichever runs (external events).
    `seq` is the row in the store, 0 while it has none.
    """

    kind: Kind
    text: str
    task_id: int = -1
    name: str = ""
    execution: str = ""
    failed: bool = False
    seq: int = 0


class Parent(NamedTuple):
    """The orchestration that waits for this one."""

    instance_id: str
    execution_id: str
    task_id: int


quote = json.dumps


def event_text(event_type: int, at: int, event_id: int = -1, **fields: Any) -> str:
    """One history event as JSON. Slow enough to matter only off the hot path; see the special cases below."""
    event = {"EventType": event_type, "EventId": event_id, "IsPlayed": False, "Timestamp": clock.to_text(at)}
    return json.dumps({**event, **fields})


def _head(event_type: int, at: int, event_id: int = -1) -> str:
    return f'{{"EventType":{event_type},"EventId":{event_id},"IsPlayed":false,"Timestamp":"{clock.to_text(at)}"'


def orchestrator_started(at: int) -> str:
    return _head(EventType.ORCHESTRATOR_STARTED, at) + "}"


def orchestrator_completed(at: int) -> str:
    return _head(EventType.ORCHESTRATOR_COMPLETED, at) + "}"


def task_scheduled(at: int, task_id: int, name: str, args: str) -> str:
    """`args` is JSON: `null`, or the JSON of the array of arguments as a string."""
    head = _head(EventType.TASK_SCHEDULED, at, task_id)
    return f'{head},"Name":{quote(name)},"Version":"","Input":{args}}}'


def started(
    at: int, name: str, version: str, input_json: str | None, instance_id: str, execution_id: str, parent: Parent | None
) -> Message:
    parent_json = None
    if parent is not None:
        parent_json = {
            "OrchestrationInstance": {"InstanceId": parent.instance_id, "ExecutionId": parent.execution_id},
            "TaskScheduleId": parent.task_id,
        }
    text = event_text(
        EventType.EXECUTION_STARTED,
        at,
        Name=name,
        Version=version,
        Input=input_json,
        OrchestrationInstance={"InstanceId": instance_id, "ExecutionId": execution_id},
        ParentInstance=parent_json,
        Tags=None,
    )
    return Message(Kind.START, text, execution=execution_id)


def activity_completed(at: int, execution_id: str, task_id: int, result: str | None) -> Message:
    head = _head(EventType.TASK_COMPLETED, at)
    text = f'{head},"TaskScheduledId":{task_id},"Result":{quote(result)}}}'
    return Message(Kind.ACTIVITY, text, task_id, execution=execution_id)


def activity_failed(at: int, execution_id: str, task_id: int, reason: str, details: str) -> Message:
    text = event_text(EventType.TASK_FAILED, at, TaskScheduledId=task_id, Reason=reason, Details=details)
    return Message(Kind.ACTIVITY, text, task_id, execution=execution_id, failed=True)


def child_completed(at: int, parent: Parent, result: str | None) -> Message:
    text = event_text(EventType.CHILD_COMPLETED, at, TaskScheduledId=parent.task_id, Result=result)
    return Message(Kind.CHILD, text, parent.task_id, execution=parent.execution_id)


def child_failed(at: int, parent: Parent, reason: str) -> Message:
    text = event_text(
        EventType.CHILD_FAILED, at, TaskScheduledId=parent.task_id, Reason=reason, Details=exception_details(reason)
    )
    return Message(Kind.CHILD, text, parent.task_id, execution=parent.execution_id, failed=True)


def timer_fired(at: int, execution_id: str, task_id: int, fire_at: int) -> Message:
    head = _head(EventType.TIMER_FIRED, at)
    text = f'{head},"TimerId":{task_id},"FireAt":"{clock.to_text(fire_at)}"}}'
    return Message(Kind.TIMER, text, task_id, execution=execution_id)


def event_raised(at: int, name: str, input_json: str | None) -> Message:
    return Message(Kind.EVENT, event_text(EventType.EVENT_RAISED, at, Name=name, Input=input_json), name=name)


def entity_reply(at: int, execution_id: str, request_id: str, result: str, is_error: bool) -> Message:
    reply = {"result": result, **({"exceptionType": "System.Exception"} if is_error else {})}
    text = event_text(EventType.EVENT_RAISED, at, Name=request_id, Input=json.dumps(reply))
    return Message(Kind.REPLY, text, name=request_id, execution=execution_id)


def exception_details(message: str) -> str:
    """The JSON of a .NET exception, which is what the Durable extension puts beside the reason of a failure."""
    return json.dumps({"$type": "System.Exception, System.Private.CoreLib", "Message": message})
