"""What the platform tells others: past facts, with an id made of what happened; and answers to who asked for one."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from dropforge.domain.causes import Cause


@dataclass(frozen=True)
class DomainEvent:
    """One fact. Telling it twice gives the same `id`, so a listener can drop the second one."""

    id: str
    type: str
    subject: str
    at: datetime
    data: dict[str, Any] = field(default_factory=dict)
    cause: Cause | None = None

    @property
    def hops(self) -> int:
        """How many hops what is done because of this event has behind it."""
        return self.cause.hops + 1 if self.cause is not None else 1

    @property
    def extensions(self) -> dict[str, str | int]:
        """The CloudEvents extension attributes that say why it happened, and how far it is from where that began."""
        found: dict[str, str | int] = {"hops": self.hops}
        if self.cause is not None:
            found["causationid"] = _line(self.cause.id)
            if self.cause.correlation:
                found["correlationid"] = _line(self.cause.correlation)
        return found


def cloud_event(event: DomainEvent, source: str) -> dict[str, Any]:
    """The event in the JSON format of CloudEvents 1.0; its time as it is, for the encoder to write."""
    return {
        "specversion": "1.0",
        "id": event.id,
        "source": source,
        "type": cloud_type(event),
        "subject": event.subject,
        "time": event.at,
        "datacontenttype": "application/json",
        **event.extensions,
        "data": event.data,
    }


def cloud_type(event: DomainEvent) -> str:
    return f"dropforge.{event.type}"


def _line(text: str) -> str:
    """Ids come from outside; CloudEvents allow no control characters in an attribute, and no empty one."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text) or "-"


@dataclass(frozen=True)
class Reply:
    """The answer to a command, for the queue that its sender named. Sending it twice sends the same `id`."""

    id: str
    queue: str
    at: datetime
    body: dict[str, Any]
    correlation_id: str | None = None
    session_id: str | None = None
