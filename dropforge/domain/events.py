"""What the platform tells others: past facts, with an id made of what happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class DomainEvent:
    """One fact. Telling it twice gives the same `id`, so a listener can drop the second one."""

    id: str
    type: str
    subject: str
    at: datetime
    data: dict[str, Any] = field(default_factory=dict)
