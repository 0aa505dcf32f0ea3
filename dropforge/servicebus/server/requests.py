"""Requests to a node of the broker, and the replies: messages whose application properties name the operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from dropforge.servicebus.amqp.decode import decode, malformed, split_list
from dropforge.servicebus.amqp.encode import described, encode, list_of
from dropforge.servicebus.amqp.sections import APPLICATION_PROPERTIES, PROPERTIES, VALUE, sections
from dropforge.servicebus.errors import bad_field


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks. `id` is its message-id as encoded: the reply's correlation-id must have the same type."""

    id: bytes
    reply_to: str
    properties: Mapping[Any, Any]
    body: Any

    @property
    def operation(self) -> str:
        return str(self.properties.get("operation", ""))

    def fields(self) -> Fields:
        """The body as the named fields of an operation."""
        if not isinstance(self.body, dict):
            raise bad_field("expected the body of the request as a map")
        return Fields(self.body)


@dataclass(frozen=True, slots=True)
class Fields:
    """The body of a request, read by name and type. Every reader raises `BrokerError` for what is not of its type."""

    values: Mapping[Any, Any]

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.values.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong(name, "a number", value)
        return int(value)

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise _wrong(name, "a string", value)
        return value

    def required_text(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise _wrong(name, "a string", value)
        return value

    def binary(self, name: str) -> bytes | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bytes):
            raise _wrong(name, "binary", value)
        return value

    def integers(self, name: str) -> list[int]:
        return [int(value) for value in self._all(name, int, "an array of numbers")]

    def lock_tokens(self) -> list[bytes]:
        tokens = self._all("lock-tokens", UUID, "an array of uuids")
        return [token.bytes_le for token in tokens]

    def maps(self, name: str) -> list[Fields]:
        return [Fields(value) for value in self._all(name, dict, "a list of maps")]

    def _all(self, name: str, kind: type, wanted: str) -> list[Any]:
        values = self.values.get(name)
        if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            raise _wrong(name, wanted, values)
        return values


def _wrong(name: str, wanted: str, value: Any) -> Exception:
    return bad_field(f"expected '{name}' as {wanted}, found {'nothing' if value is None else type(value).__name__}")


def read_request(raw: bytes) -> Request:
    """The request that the message is. Raises `BrokerError` for a message that can be none."""
    identity: bytes = b"\x40"
    reply_to: Any = None
    properties: Any = {}
    body: Any = None
    for code, _, value_at, _ in sections(raw):
        if code == PROPERTIES:
            parts = split_list(raw, value_at)
            identity = parts[0] if parts else identity
            reply_to = decode(parts[4])[0] if len(parts) > 4 else None
        elif code == APPLICATION_PROPERTIES:
            properties = decode(raw, value_at)[0]
        elif code == VALUE:
            body = decode(raw, value_at)[0]
    decode(identity)
    if not isinstance(properties, dict):
        raise malformed("expected the application properties of a request as a map")
    return Request(bytes(identity), reply_to if isinstance(reply_to, str) else "", properties, body)


def write_reply(to: Request, properties: Mapping[str, Any], body: Any) -> bytes:
    """The message that answers the request."""
    return (
        described(PROPERTIES, list_of([*[b"\x40"] * 5, to.id]))
        + described(APPLICATION_PROPERTIES, encode(dict(properties)))
        + described(VALUE, encode(body))
    )
