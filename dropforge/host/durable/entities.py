"""One batch of operations on one entity, without I/O."""

import json
from dataclasses import dataclass, field

import msgspec

from dropforge.host.durable import messages
from dropforge.host.durable.ids import split_entity_id
from dropforge.host.durable.messages import Message
from dropforge.host.durable.notices import Code, Notice, size_notice
from dropforge.host.durable.protocol import Invoker


class Request(msgspec.Struct, rename="camel", omit_defaults=True):
    """The request message inside an EventSent event. `input` is JSON text of JSON text."""

    op: str
    id: str
    input: str | None = None
    signal: bool = False
    parent: str = ""
    parent_execution: str = ""


class _Result(msgspec.Struct, rename="camel"):
    is_error: bool
    result: str | None = None


class _State(msgspec.Struct, rename="camel"):
    entity_exists: bool
    entity_state: str | None
    results: list[_Result]


_request = msgspec.json.Decoder(Request)
_state = msgspec.json.Decoder(_State)


@dataclass(slots=True)
class BatchOutcome:
    """What a batch leads to: the new state, and who gets which answer. All of it is stored in one transaction."""

    exists: bool
    state: str | None
    replies: list[tuple[str, Message]] = field(default_factory=list)  # (instance, answer)
    notices: list[Notice] = field(default_factory=list)


def run_batch(
    entity_id: str, exists: bool, state: str | None, operations: list[Message], at: int, invoker: Invoker
) -> BatchOutcome:
    """Applies operations in order. When the whole batch fails the state stays and every caller gets the failure."""
    requests = [_request.decode(operation.text) for operation in operations]
    name, key = split_entity_id(entity_id)
    shown = next((known for known in invoker.entities if known.lower() == name), name)
    context = json.dumps(
        {
            "self": {"name": shown, "key": key},
            "exists": exists,
            "state": state,
            "batch": [{"name": call.op, "input": call.input, "isSignal": call.signal} for call in requests],
        }
    )
    outcome = BatchOutcome(exists, state)
    try:
        answer = _state.decode(invoker.operate(name, context))
        if len(answer.results) != len(requests):
            raise ValueError(f"{len(requests)} results were wanted; found {len(answer.results)}")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's code raises is the entity's failure
        problem = f"Entity '{shown}' failed on the whole batch: {type(error).__name__}: {error}"
        outcome.notices.append(Notice(Code.ENTITY_FAILED, entity_id, problem, requests[0].id))
        results = [_Result(True, json.dumps(problem)) for _ in requests]
    else:
        outcome.exists, outcome.state = answer.entity_exists, answer.entity_state
        results = answer.results
        if notice := size_notice(entity_id, "the entity state", answer.entity_state):
            outcome.notices.append(notice)
    for call, result in zip(requests, results, strict=True):
        text = result.result if result.result is not None else "null"
        if call.parent:
            reply = messages.entity_reply(at, call.parent_execution, call.id, text, result.is_error)
            outcome.replies.append((call.parent, reply))
        elif result.is_error:
            lost = f"operation '{call.op}' of entity '{shown}' ({key}) failed and nobody waits for it: {text}"
            outcome.notices.append(Notice(Code.ENTITY_FAILED, entity_id, lost, call.id))
    return outcome
