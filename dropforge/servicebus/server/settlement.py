"""What a client's disposition means for the message that it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dropforge.servicebus.amqp import answers
from dropforge.servicebus.amqp.encode import described, encode
from dropforge.servicebus.amqp.performatives import (
    ACCEPTED,
    MODIFIED,
    RECEIVED,
    REJECTED,
    RELEASED,
    Disposition,
    code_of,
)
from dropforge.servicebus.amqp.values import Described, Raw
from dropforge.servicebus.core.ports import Outcome
from dropforge.servicebus.errors import BrokerError, bad_field

if TYPE_CHECKING:
    from dropforge.servicebus.server.links import Outgoing

REASON: Final = "DeadLetterReason"
DESCRIPTION: Final = "DeadLetterErrorDescription"

# A rejection that carries an error is a failure to the client, even where it asked for a dead letter; without one it
# is the echo that confirms it.
_DEAD_LETTERED: Final = described(REJECTED, b"\x45")
_RELEASED: Final = described(RELEASED, b"\x45")


def decides(disposition: Disposition) -> bool:
    """Whether the disposition says what becomes of the messages."""
    if disposition.state is None:
        return disposition.settled
    return code_of(disposition.state.descriptor) != RECEIVED


def settle(link: Outgoing, token: bytes, state: Described | None) -> bytes:
    """Settle the message as the state asks, and give the state to answer with: the same one, or the refusal."""
    try:
        # A client that settles without a state gives the message back.
        code = RELEASED if state is None else code_of(state.descriptor)
        fields = state.value if state is not None and isinstance(state.value, list) else []
        if code == ACCEPTED:
            link.queue.settle(token, Outcome.COMPLETE, session_id=link.session_id)
            return answers.ACCEPTED_STATE
        if code == RELEASED:
            link.queue.settle(token, Outcome.RELEASE, session_id=link.session_id)
            return _RELEASED
        if code == MODIFIED:
            return _modify(link, token, fields)
        if code == REJECTED:
            return _dead_letter(link, token, fields)
        raise bad_field(f"expected an outcome of AMQP as the delivery's state, found {code}")
    except BrokerError as error:
        return answers.rejected(error)


def _modify(link: Outgoing, token: bytes, fields: list[Any]) -> bytes:
    failed, undeliverable, changes = (*fields, None, None, None)[:3]
    outcome = Outcome.DEFER if undeliverable is True else Outcome.ABANDON
    properties = changed_properties(changes)
    link.queue.settle(token, outcome, properties=properties, session_id=link.session_id)
    return answers.modified(failed=failed is True, undeliverable=undeliverable is True)


def _dead_letter(link: Outgoing, token: bytes, fields: list[Any]) -> bytes:
    error = fields[0].value if fields and isinstance(fields[0], Described) else None
    _, description, info = (*error, None, None, None)[:3] if isinstance(error, list) else (None, None, None)
    info = dict(info) if isinstance(info, dict) else {}
    reason = info.pop(REASON, None)
    description = info.pop(DESCRIPTION, description)
    link.queue.settle(
        token,
        Outcome.DEAD_LETTER,
        reason=reason if isinstance(reason, str) else None,
        description=description if isinstance(description, str) else None,
        properties=changed_properties(info),
        session_id=link.session_id,
    )
    return _DEAD_LETTERED


def changed_properties(changes: Any) -> dict[str, Raw] | None:
    """The application properties that a client changes as it settles, encoded; None when there are none."""
    if not changes or not isinstance(changes, dict):
        return None
    return {str(name): Raw(encode(value)) for name, value in changes.items()}
