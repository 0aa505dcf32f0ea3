"""What the listeners need from Service Bus: receivers that are used by one task each, and the four ways they fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class LinkError(Exception):
    """Something between the host and Service Bus; the text is for people.

    LinkError
      LockLost      the message or its session is no longer ours; somebody else will get it
      NoSession     no session had messages while we waited
      Refused       the entity does not exist, or the credential does not open it: only people can help
      Unreachable   nobody answers, or the connection broke
    """


class LockLost(LinkError):
    pass


class NoSession(LinkError):
    pass


class Refused(LinkError):
    pass


class Unreachable(LinkError):
    pass


@dataclass(frozen=True)
class Received:
    """One locked message, in the words of the extension's trigger metadata."""

    body: bytes
    # Name -> text, number or None: `MessageId`, `DeliveryCount`, ...
    metadata: Mapping[str, Any]
    # What the sender attached, as JSON values.
    properties: Mapping[str, Any] = field(default_factory=dict)
    # The SDK's own object, for settling.
    handle: Any = None
    # Why no function can get it; empty for most messages.
    fault: str = ""

    @property
    def id(self) -> str:
        return str(self.metadata.get("MessageId") or f"number {self.metadata.get('SequenceNumber')}")

    @property
    def delivery(self) -> int:
        return int(self.metadata.get("DeliveryCount") or 1)


class Link(Protocol):
    """One receiver with a connection of its own. Calls come one after another, never two at once; each may raise a
    `LinkError`."""

    @property
    def session(self) -> str | None:
        """The session that the link holds; None on entities without sessions."""

    async def receive(self, count: int, wait_seconds: float) -> Sequence[Received]:
        """Up to so many messages, as soon as there is one; none when the time is over. May be cancelled."""

    def lock_seconds(self, messages: Sequence[Received]) -> float:
        """How long the locks of the messages (or of the session) still hold."""

    async def renew(self, messages: Sequence[Received]) -> None:
        """Hold the locks of the messages, or of the session, for another period."""

    async def complete(self, message: Received) -> None:
        """Done: the message is gone. Returns when Service Bus has confirmed it."""

    async def abandon(self, message: Received) -> None:
        """Give the message back; it comes again at once, with a delivery count one higher."""

    async def dead_letter(self, message: Received, reason: str, description: str) -> None:
        """Put the message aside for good."""

    async def close(self) -> None:
        """Let go of everything; never raises."""


class Dialler(Protocol):
    """Opens links to one entity."""

    async def open(self) -> Link:
        """A link that is ready to receive. With sessions: waits for a session that has messages, and raises
        `NoSession` when there is none in a minute. Other `LinkError`s: it cannot be had now. May be cancelled."""
