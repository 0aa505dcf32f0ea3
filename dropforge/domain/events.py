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


@dataclass(frozen=True)
class Reply:
    """The answer to a command, for the queue that its sender named. Sending it twice sends the same `id`."""

    id: str
    queue: str
    at: datetime
    body: dict[str, Any]
    correlation_id: str | None = None
    session_id: str | None = None
