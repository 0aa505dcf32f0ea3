"""What a client may do to an instance besides starting it; every function runs in the engine's thread."""

import json
import uuid

from dropforge.host.durable import messages, rewind
from dropforge.host.durable.book import Final
from dropforge.host.durable.errors import DurableError, InstanceFinished, InstanceNotFound, NotRewindable
from dropforge.host.durable.execution import ChildOrder
from dropforge.host.durable.messages import EventType, Kind, event_text
from dropforge.host.durable.notices import Code, Notice
from dropforge.host.durable.queries import known_statuses
from dropforge.host.durable.store import Hot
from dropforge.host.durable.worker import Worker

FINISHED = ("Completed", "Failed", "Terminated")


def raise_event(worker: Worker, instance_id: str, name: str, input_json: str | None) -> None:
    """Raises InstanceNotFound, InstanceFinished; an event that nobody waits for (yet) is kept."""
    try:
        hot = _live(worker, instance_id)
    except DurableError as refused:
        worker.board.post(
            Notice(Code.EVENT_UNHEARD, instance_id, f"event '{name}' reached nobody: {refused}", f"refused {name}")
        )
        raise
    worker.deliver(instance_id, messages.event_raised(worker.now(), name, input_json))
    worker.log.debug("event '%s' raised", name, extra=_extra(hot))


def terminate(worker: Worker, instance_id: str, reason: str) -> None:
    """Ends an instance at once. As on Azure, its activities and sub-orchestrations run on; it no longer hears them."""
    hot = _live(worker, instance_id)
    book = hot.execution.book
    children = [book.signatures[task.action].partition(":")[2] for task in book.open.values() if task.kind == "child"]
    if children:
        worker.board.post(
            Notice(
                Code.CHILDREN_LEFT,
                instance_id,
                f"terminated while its sub-orchestrations {sorted(children)} run: Durable Functions does not terminate "
                "them with it; terminate each by its own id",
            ),
            hot.execution.name,
        )
    _note(worker, hot, EventType.EXECUTION_TERMINATED, "Input", reason)
    worker.end(hot, Final("Terminated", json.dumps(reason)), clean=False)


def suspend(worker: Worker, instance_id: str, reason: str) -> None:
    """Keeps the instance from running; what happens to it meanwhile is kept. A second call does nothing."""
    hot = _live(worker, instance_id)
    if hot.status == "Suspended":
        return
    hot.status = "Suspended"
    hot.updated_at = worker.now()
    if hot.execution.history:
        _note(worker, hot, EventType.EXECUTION_SUSPENDED, "Reason", reason)
    worker.store.update(hot)
    worker.wake(hot)
    worker.log.info("%s suspended: %s", hot.execution.name, reason, extra=_extra(hot))


def resume(worker: Worker, instance_id: str, reason: str) -> None:
    """Lets a suspended instance run again; does nothing to one that is not suspended."""
    hot = _live(worker, instance_id)
    if hot.status != "Suspended":
        return
    hot.status = "Running" if hot.execution.history else "Pending"
    hot.updated_at = worker.now()
    if hot.execution.history:
        _note(worker, hot, EventType.EXECUTION_RESUMED, "Reason", reason)
    worker.store.update(hot)
    worker.wake(hot)
    worker.log.info("%s resumed: %s", hot.execution.name, reason, extra=_extra(hot))


def restart(worker: Worker, instance_id: str, with_new_id: bool) -> str:
    """Starts the same orchestrator with the same input; under the same id only when the instance is finished."""
    hot = _known(worker, instance_id)
    run = hot.execution
    new_id = uuid.uuid4().hex if with_new_id else instance_id
    return worker.create(run.name, run.input, new_id, run.version).id


def rewind_instance(worker: Worker, instance_id: str, reason: str) -> None:
    """Runs what failed again, in failed sub-orchestrations too; everything that succeeded is kept.

    Raises InstanceNotFound, and NotRewindable for an instance that is not Failed or whose code has changed.
    """
    hot = _known(worker, instance_id)
    if hot.status != "Failed":
        raise NotRewindable(instance_id, f"only a Failed instance can be, and it is {hot.status}")
    hot.execution.history = worker.store.history(hot.serial)
    try:
        rewound = rewind.rewind(hot.execution, worker.invoker, worker.settings)
    except rewind.ChangedCode as changed:
        raise NotRewindable(instance_id, str(changed)) from changed
    worker.store.drop_open(hot.serial, instance_id)
    worker.store.replace_history(hot.serial, rewound.execution.history)
    hot.execution = rewound.execution
    hot.execution.characters = sum(map(len, hot.execution.history)) + 1_000
    hot.status = "Running" if hot.execution.history else "Pending"
    hot.updated_at = worker.now()
    hot.inbox = [message for message in rewound.inbox if not (hot.start_implied and message.kind is Kind.START)]
    if hot.start_implied:
        hot.inbox.insert(0, hot.start_message())
    worker.store.update(hot)
    worker.hot.put(hot)
    worker.order(hot, rewound.activities, rewound.timers)
    for operation in rewound.operations:
        worker.send(operation.entity_id, operation.text)
    worker.wake(hot)
    worker.log.info("%s rewound: %s", hot.execution.name, reason, extra=_extra(hot))
    for child in rewound.children:
        _child_again(worker, child, reason)


def _child_again(worker: Worker, child: ChildOrder, reason: str) -> None:
    existing = worker.hot.get(child.instance_id)
    if existing is not None and existing.live:
        return
    if existing is not None and existing.status == "Failed" and existing.execution.parent == child.parent:
        try:
            rewind_instance(worker, child.instance_id, reason)
            return
        except NotRewindable as changed:
            worker.log.warning("%s; it is started anew", changed)
    worker.start_child(child)


def purge(worker: Worker, instance_id: str) -> int:
    """Forgets a finished instance; 0 when there is none, or when it is not finished."""
    hot = worker.hot.get(instance_id)
    if hot is None:
        return 0
    if hot.live:
        message = f"not purged, because it is {hot.status}; terminate it first"
        worker.board.post(Notice(Code.NOT_PURGED, instance_id, message), hot.execution.name)
        return 0
    worker.forget(hot)
    return 1


def purge_many(worker: Worker, since: int, until: int, statuses: list[str]) -> int:
    """Forgets the finished instances created between two times (microseconds, inclusive). Raises BadQuery."""
    wanted = [status for status in known_statuses(statuses) or FINISHED if status in FINISHED]
    found = worker.store.finished_between(since, until, wanted) if wanted else []
    for serial, instance_id in found:
        worker.store.delete(serial, instance_id)
        worker.hot.drop(instance_id)
    return len(found)


def delete_entity(worker: Worker, entity: str) -> bool:
    exists, _ = worker.store.entity(entity)
    worker.store.put_entity(entity, False, None, worker.now())
    return exists


def _known(worker: Worker, instance_id: str) -> Hot:
    hot = worker.hot.get(instance_id)
    if hot is None:
        raise InstanceNotFound(instance_id)
    return hot


def _live(worker: Worker, instance_id: str) -> Hot:
    hot = _known(worker, instance_id)
    if not hot.live:
        raise InstanceFinished(instance_id, hot.status)
    return hot


def _note(worker: Worker, hot: Hot, event_type: int, key: str, text: str) -> None:
    """An episode of its own in which the orchestrator's code does not run."""
    at = max(worker.now(), hot.execution.book.at)
    hot.execution.book.at = at
    events = (
        messages.orchestrator_started(at),
        event_text(event_type, at, -1, **{key: text}),
        messages.orchestrator_completed(at),
    )
    hot.execution.append(",".join(events))
    worker.store.add_episode(hot.serial, hot.execution.history[-1])


def _extra(hot: Hot) -> dict[str, str]:
    return {"instance_id": hot.id, "function": hot.execution.name}
