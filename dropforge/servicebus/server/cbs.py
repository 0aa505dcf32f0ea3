"""`$cbs`: where a client puts the tokens that say what it may do."""

from __future__ import annotations

from collections.abc import Callable

from dropforge.servicebus.amqp.values import Int, Symbol
from dropforge.servicebus.errors import BrokerError, bad_field, not_supported
from dropforge.servicebus.server.requests import Request, write_reply

# Checks a token for an audience and remembers what it grants; raises `BrokerError` when it grants nothing.
PutToken = Callable[[str, str], None]


def answer(request: Request, put_token: PutToken) -> bytes:
    """The reply to a request on `$cbs`; the only operation clients use is `put-token`."""
    try:
        if request.operation != "put-token":
            raise not_supported(f"The operation '{request.operation}' on $cbs")
        audience = request.properties.get("name")
        token = request.body.decode("utf-8", "replace") if isinstance(request.body, bytes) else request.body
        if not isinstance(audience, str) or not isinstance(token, str):
            raise bad_field("expected the audience as the property 'name' and the token as the body, both strings")
        put_token(audience, token)
    except BrokerError as error:
        status = {"status-code": Int(error.status), "status-description": error.description}
        # The service sends a bare 404 for an entity it does not have.
        if error.status != 404:
            status["error-condition"] = Symbol(error.condition)
        return write_reply(request, status, {})
    return write_reply(request, {"status-code": Int(202), "status-description": "Accepted"}, {})
