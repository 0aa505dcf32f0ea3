"""Replies kept in a list, a second one with the same id dropped."""

from __future__ import annotations

from dropforge.domain.errors import NotFound, Unavailable
from dropforge.domain.events import Reply


class MemoryReplies:
    """`Replies` for tests. `queues`: the ones that exist; None: any."""

    def __init__(self, queues: frozenset[str] | None = None) -> None:
        self.queues = queues
        self.sent: list[Reply] = []
        # Nobody answers as long as this is set.
        self.down = False

    def send(self, reply: Reply) -> None:
        if self.down:
            raise Unavailable("Service Bus does not answer")
        if self.queues is not None and reply.queue not in self.queues:
            raise NotFound(f"no queue {reply.queue!r}", queue=reply.queue)
        if reply.id not in {each.id for each in self.sent}:
            self.sent.append(reply)
