"""Duplicate detection: which message ids came in within the window."""

from __future__ import annotations

from collections import deque
from typing import Any

from dropforge.servicebus.core.hub import Hub


class History:
    """Ids by arrival, oldest first, in memory and in the store; one timer forgets them as the window passes."""

    __slots__ = ("_arrivals", "_entity", "_hub", "_known", "window_ms")

    def __init__(self, hub: Hub, entity: int, window_ms: int) -> None:
        self._hub = hub
        self._entity = entity
        self._arrivals: deque[tuple[int, str, int]] = deque()
        self._known: dict[str, int] = {}
        self.window_ms = window_ms

    def __len__(self) -> int:
        return len(self._known)

    def find(self, message_id: Any, now: int) -> int | None:
        """The sequence number that the id came in under; None when it is new or its time has passed."""
        self._forget(now)
        return self._known.get(_text(message_id))

    def add(self, message_id: Any, sequence: int, now: int) -> None:
        identity = _text(message_id)
        self.restore(identity, sequence, now)
        self._hub.store.remember(self._entity, sequence, identity, now)

    def restore(self, identity: str, sequence: int, at: int) -> None:
        """Take in what the store has, oldest first."""
        self._known[identity] = sequence
        self._arrivals.append((at, identity, sequence))
        if len(self._arrivals) == 1:
            self._hub.timers.set(self, at + self.window_ms, self._on_passed)

    def close(self) -> None:
        self._hub.timers.cancel(self)

    def _on_passed(self, _: object) -> None:
        self._forget(self._hub.now())
        if self._arrivals:
            self._hub.timers.set(self, self._arrivals[0][0] + self.window_ms, self._on_passed)

    def _forget(self, now: int) -> None:
        arrivals, oldest = self._arrivals, now - self.window_ms
        last = 0
        while arrivals and arrivals[0][0] <= oldest:
            _, identity, last = arrivals.popleft()
            # Under a shorter clock an id may have come in twice; the later one counts.
            if self._known.get(identity) == last:
                del self._known[identity]
        if last:
            self._hub.store.forget(self._entity, last)


def _text(message_id: Any) -> str:
    return message_id if isinstance(message_id, str) else str(message_id)
