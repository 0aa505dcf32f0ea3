"""Events in memory: for tests and rehearsals, which look at what was published."""

from __future__ import annotations

from dropforge.domain.events import DomainEvent


class MemoryEvents:
    """`Events` kept in the order in which they were published, second tellings included."""

    def __init__(self) -> None:
        self.published: list[DomainEvent] = []

    def publish(self, event: DomainEvent) -> None:
        self.published.append(event)

    def of(self, kind: str) -> list[DomainEvent]:
        """The events of one type, each once."""
        return list({event.id: event for event in self.published if event.type == kind}.values())
