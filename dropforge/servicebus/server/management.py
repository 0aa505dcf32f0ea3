"""The `$management` node of an entity: everything a client does with messages beside sending and settling them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from dropforge.servicebus.amqp.values import Array, Int, Symbol, Timestamp
from dropforge.servicebus.core.broker import Entity
from dropforge.servicebus.core.ports import Outcome
from dropforge.servicebus.core.queue import Queue
from dropforge.servicebus.core.topic import Topic
from dropforge.servicebus.errors import BrokerError, bad_field, not_allowed, not_supported, session_lock_lost
from dropforge.servicebus.message import NEVER, Message
from dropforge.servicebus.sas import LISTEN, SEND
from dropforge.servicebus.server.requests import Fields, Request, write_reply
from dropforge.servicebus.server.settlement import changed_properties

if TYPE_CHECKING:
    from dropforge.servicebus.server.connection import Connection
    from dropforge.servicebus.server.links import Outgoing

_log = logging.getLogger(__name__)

# A page of peeked messages ends here, or after the first message; the client asks on from the last one.
PAGE_BYTES: Final = 1_048_576
PAGE_MESSAGES: Final = 1_000

_LOCK: Final = 1
_PREFIX: Final = "com.microsoft:"

# An operation gives the body of its reply, None for "no content".
_Operation = Callable[["Call"], "dict[str, Any] | None"]


class Call:
    """One operation on one entity."""

    __slots__ = ("connection", "entity", "fields", "link_name", "path")

    def __init__(self, connection: Connection, path: str, request: Request) -> None:
        self.connection = connection
        self.path = path
        self.entity: Entity = connection.broker.resolve(path)
        self.fields: Fields = request.fields()
        self.link_name = request.properties.get("associated-link-name")

    @property
    def queue(self) -> Queue:
        """The entity, as one that has messages to give. Raises `BrokerError` for a topic."""
        if isinstance(self.entity, Topic):
            raise not_allowed(f"'{self.path}' is a topic; ask one of its subscriptions.")
        return self.entity

    def receiver(self, session_id: str | None) -> Outgoing | None:
        """The receiver that asks, None when the request names none. Raises `session_lock_lost` when the request is about
        a session and the link that it names is gone: the session went with it."""
        found = self.connection.receiver(self.link_name)
        if found is None and self.link_name is not None and session_id is not None:
            raise session_lock_lost(session_id)
        return found


def answer(request: Request, path: str, connection: Connection) -> bytes:
    """The reply to a request on the `$management` of the entity at `path`."""
    try:
        name = request.operation
        right, operation = _OPERATIONS.get(name.removeprefix(_PREFIX), (None, None))
        if right is None or operation is None:
            raise not_supported(f"The operation '{name}'")
        connection.authorize(path, right)
        body = operation(Call(connection, path, request))
    except BrokerError as error:
        refusal = {
            "statusCode": Int(error.status),
            "statusDescription": error.description,
            "errorCondition": Symbol(error.condition),
        }
        return write_reply(request, refusal, {})
    if body is None:
        return write_reply(request, {"statusCode": Int(204), "statusDescription": "No Content"}, {})
    return write_reply(request, {"statusCode": Int(200), "statusDescription": "OK"}, body)


def _renew_lock(call: Call) -> dict[str, Any]:
    return {"expirations": Array(Timestamp, call.queue.renew(call.fields.lock_tokens()))}


def _renew_session_lock(call: Call) -> dict[str, Any]:
    session_id = call.fields.required_text("session-id")
    return {"expiration": Timestamp(call.queue.renew_session(session_id, call.receiver(session_id)))}


def _peek(call: Call) -> dict[str, Any] | None:
    fields = call.fields
    count = max(0, min(fields.integer("message-count", 1), PAGE_MESSAGES))
    first = fields.integer("from-sequence-number", 1)
    page: list[dict[str, Any]] = []
    size = 0
    for message in call.entity.peek(first, count, fields.text("session-id")):
        encoded = message.encode(peek=True)
        size += len(encoded)
        if page and size > PAGE_BYTES:
            break
        page.append({"message": encoded})
    return {"messages": page} if page else None


def _schedule(call: Call) -> dict[str, Any]:
    messages = []
    for entry in call.fields.maps("messages"):
        raw = entry.binary("message")
        if raw is None:
            raise bad_field("expected each message to schedule as binary, found nothing")
        messages.append(Message.parse(raw))
    return {"sequence-numbers": Array(int, call.entity.send_all(messages))}


def _cancel_scheduled(call: Call) -> dict[str, Any]:
    call.entity.cancel_scheduled(call.fields.integers("sequence-numbers"))
    return {}


def _receive_deferred(call: Call) -> dict[str, Any]:
    session_id = call.fields.text("session-id")
    messages = call.queue.receive_deferred(
        call.fields.integers("sequence-numbers"),
        session_id=session_id,
        receiver=call.receiver(session_id),
        delete=call.fields.integer("receiver-settle-mode", _LOCK) != _LOCK,
    )
    found = []
    for message in messages:
        entry: dict[str, Any] = {"message": message.encode()}
        if message.lock_token is not None:
            entry["lock-token"] = UUID(bytes_le=message.lock_token)
        found.append(entry)
    return {"messages": found}


# The service's own spelling.
_OUTCOMES: Final = {
    "completed": Outcome.COMPLETE,
    "abandoned": Outcome.ABANDON,
    "defered": Outcome.DEFER,
    "suspended": Outcome.DEAD_LETTER,
}


def _update_disposition(call: Call) -> dict[str, Any]:
    fields = call.fields
    status = fields.required_text("disposition-status")
    outcome = _OUTCOMES.get(status)
    if outcome is None:
        raise bad_field(f"unknown disposition-status '{status}'; choose one of {sorted(_OUTCOMES)}")
    for token in fields.lock_tokens():
        call.queue.settle(
            token,
            outcome,
            reason=fields.text("deadletter-reason"),
            description=fields.text("deadletter-description"),
            properties=changed_properties(fields.get("properties-to-modify")),
            session_id=fields.text("session-id"),
        )
    return {}


def _get_session_state(call: Call) -> dict[str, Any]:
    session_id = call.fields.required_text("session-id")
    return {"session-state": call.queue.session_state(session_id, call.receiver(session_id))}


def _set_session_state(call: Call) -> dict[str, Any]:
    session_id = call.fields.required_text("session-id")
    call.queue.set_session_state(session_id, call.fields.binary("session-state"), call.receiver(session_id))
    return {}


def _message_sessions(call: Call) -> dict[str, Any] | None:
    fields = call.fields
    updated_after = fields.integer("last-updated-time", NEVER)
    skip = max(0, fields.integer("skip", 0))
    top = max(0, min(fields.integer("top", 100), PAGE_MESSAGES))
    # The last moment of the calendar, which clients round, asks for all sessions that hold messages.
    found = call.queue.sessions(None if updated_after > NEVER - 1000 else updated_after, skip, top)
    return {"skip": Int(skip + len(found)), "sessions-ids": found} if found else None


_OPERATIONS: Final[dict[str, tuple[str, _Operation]]] = {
    "renew-lock": (LISTEN, _renew_lock),
    "renew-session-lock": (LISTEN, _renew_session_lock),
    "peek-message": (LISTEN, _peek),
    "schedule-message": (SEND, _schedule),
    "cancel-scheduled-message": (SEND, _cancel_scheduled),
    "receive-by-sequence-number": (LISTEN, _receive_deferred),
    "update-disposition": (LISTEN, _update_disposition),
    "get-session-state": (LISTEN, _get_session_state),
    "set-session-state": (LISTEN, _set_session_state),
    "get-message-sessions": (LISTEN, _message_sessions),
}
