"""What Event Grid delivers, as one shape: the JSON object of the event, in either of its two schemas."""

from __future__ import annotations

import json
from typing import Any

import azure.functions as func

from dropforge.domain.errors import BadEvent


def told(event: func.EventGridEvent | func.CloudEvent) -> dict[str, Any]:
    """The envelope as it came. The SDK makes one of two objects of it, whatever the parameter says it wants."""
    if isinstance(event, func.CloudEvent):
        return {
            **event.extension_attrs,
            "specversion": event.specversion,
            "id": event.id,
            "type": event.type,
            "subject": event.subject,
            "data": event.get_json(),
        }
    return {"id": event.id, "eventType": event.event_type, "subject": event.subject, "data": event.get_json()}


def read(raw: bytes) -> list[Any]:
    """What should be events in the body of a message. Event Grid puts one into each; an array is taken as well.

    Raises `BadEvent` for what is not JSON.
    """
    try:
        body = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise BadEvent(f"the event is not JSON: {error}") from None
    return body if isinstance(body, list) else [body]


def kind_of(told: Any) -> str:
    """The event's type. Raises `BadEvent` for an envelope of neither schema."""
    if not isinstance(told, dict):
        raise BadEvent(f"an event is an object, found {type(told).__name__}")
    key = "type" if "specversion" in told else "eventType"
    kind = told.get(key)
    if not isinstance(kind, str) or not kind:
        raise BadEvent(
            f"an event needs {key!r} as text (CloudEvents 1.0 have 'specversion' and 'type', the Event Grid schema "
            f"'eventType'), found {type(kind).__name__}"
        )
    return kind


def data_of(told: dict[str, Any]) -> dict[str, Any]:
    """The event's data. Raises `BadEvent` when it has none."""
    data = told.get("data")
    if not isinstance(data, dict):
        raise BadEvent(f"{kind_of(told)} {told.get('id')!r} has no data object, found {type(data).__name__}")
    return data
