"""What the core and its surroundings say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Protocol

from dropforge.servicebus.errors import BrokerError
from dropforge.servicebus.message import Message


class Outcome(Enum):
    """How a receiver settles a message it holds."""

    COMPLETE = "complete"
    ABANDON = "abandon"
    RELEASE = "release"
    DEFER = "defer"
    DEAD_LETTER = "dead-letter"


class Box(IntEnum):
    """Which of the three queues under one path a message lies in. The numbers are stored."""

    MAIN = 0
    DEAD_LETTER = 1
    TRANSFER_DEAD_LETTER = 2


class Kind(Enum):
    QUEUE = "queue"
    TOPIC = "topic"
    SUBSCRIPTION = "subscription"


@dataclass(frozen=True, slots=True)
class Counts:
    """Messages by state, and the bytes of those in the entity itself. Locked messages are active."""

    active: int = 0
    deferred: int = 0
    scheduled: int = 0
    dead_letter: int = 0
    transfer_dead_letter: int = 0
    size_bytes: int = 0

    @property
    def total(self) -> int:
        return self.active + self.deferred + self.scheduled + self.dead_letter + self.transfer_dead_letter


class Receiver(Protocol):
    """A link that takes messages. The core calls it from inside a turn of the loop; it must not call back."""

    @property
    def credit(self) -> int:
        """How many more messages it takes now; 0 while its connection is congested."""

    @property
    def deletes(self) -> bool:
        """Receive-and-delete: what is delivered is gone."""

    @property
    def session_id(self) -> str | None:
        """The session it was granted, from `accepted` on."""

    def deliver(self, message: Message) -> None:
        """Take the message and one off `credit`. `lock_token` is set unless the receiver deletes."""

    def accepted(self, session_id: str, locked_until: int) -> None:
        """The session is its own until then; deliveries follow."""

    def refused(self, error: BrokerError) -> None:
        """Nothing more will come: the session was not granted, or lost, or the entity was deleted."""
