"""Service Bus outputs: what functions set or return is sent before their invocation counts as succeeded.

The rules are those of the real host: text becomes a message of type `text/plain`, bytes one of
`application/octet-stream` (`StringToMessageConverter.cs`, `ByteArrayToMessageConverter.cs` of the extension), text that
is a JSON array becomes one message for each item (`FunctionBinding.ReadAsEnumerable` of the host), and each message
names the invocation it comes from (`ServiceBusCausalityHelper.cs`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from azure.functions import meta

from dropforge.host.app import AppFunction, Binding
from dropforge.host.logs import current_scope
from dropforge.host.service_bus.bindings import Connection, Entity, output_of
from dropforge.host.service_bus.link import LinkError

_PARENT = "$AzureWebJobsParentId"


class SendFailed(Exception):
    """The output was not sent, or only a part of it."""


class Sender(Protocol):
    """Sends to one entity."""

    async def send(self, bodies: Sequence[bytes], content_type: str, properties: dict[str, str]) -> None:
        """Each body as a message; returns when Service Bus has stored them. Raises `LinkError` or `ValueError`."""


class Senders(Protocol):
    """Where senders come from."""

    def sender(self, connection: Connection, entity: Entity) -> Sender:
        """A new one; it connects when it first sends."""

    async def close(self) -> None:
        """Close all of them; never raises."""


class Outputs:
    """The sink of all `serviceBus` outputs; its senders stay open."""

    def __init__(self, senders: Senders, environment: Mapping[str, str]) -> None:
        self._source = senders
        self._environment = environment
        self._senders: dict[tuple[Connection, Entity], Sender] = {}

    async def send(self, function: AppFunction, binding: Binding, datum: meta.Datum) -> None:
        """Send one output value. Raises `SendFailed`; the invocation has failed then."""
        place = output_of(binding, self._environment)
        if place not in self._senders:
            self._senders[place] = self._source.sender(*place)
        bodies, content_type = bodies_of(datum.value)
        if not bodies:
            return
        scope = current_scope()
        properties = {_PARENT: scope.invocation_id} if scope else {}
        try:
            await self._senders[place].send(bodies, content_type, properties)
        except (LinkError, ValueError) as error:
            raise SendFailed(f"output {binding.name!r} could not be sent to {place[1]}: {error}") from error

    async def close(self) -> None:
        """Let go of every connection."""
        await self._source.close()


def bodies_of(value: Any) -> tuple[list[bytes], str]:
    """The messages that one value makes, and their content type."""
    if isinstance(value, bytes):
        return [value], "application/octet-stream"
    text = str(value)
    return [item.encode() for item in _items(text)], "text/plain"


def _items(text: str) -> list[str]:
    if not (text.strip().startswith("[") and text.strip().endswith("]")):
        return [text]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return [text]
    return [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in found]
