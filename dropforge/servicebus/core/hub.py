"""What the entities of one broker share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dropforge.servicebus.core.timers import Timers
from dropforge.servicebus.settings import QueueSettings, TopicSettings
from dropforge.servicebus.store import Store

if TYPE_CHECKING:
    from dropforge.servicebus.core.queue import Queue
    from dropforge.servicebus.core.topic import Topic


class Hub:
    """The clock, the timers, the store, who is to be pumped, and how to find an entity by its path."""

    __slots__ = ("changed", "find", "now", "store", "timers")

    def __init__(self, store: Store, now: Callable[[], int], find: Callable[[str], Queue | Topic | None]) -> None:
        self.store = store
        self.now = now
        self.find = find
        self.timers = Timers()
        # In the order in which they changed.
        self.changed: dict[Queue, None] = {}


class Numbers:
    """The sequence numbers of one entity: without gaps, never used twice."""

    __slots__ = ("_entity", "_next", "_store")

    def __init__(self, store: Store, entity: int, following: int = 1) -> None:
        self._store = store
        self._entity = entity
        self._next = following

    def take(self) -> int:
        number = self._next
        self._next = number + 1
        self._store.reserve(self._entity, number + 1)
        return number


class Meter:
    """The bytes that count towards one entity's quota, its dead letters and subscriptions included."""

    __slots__ = ("limit", "max_message_bytes", "used")

    def __init__(self, settings: QueueSettings | TopicSettings) -> None:
        self.used = 0
        self.apply(settings)

    def apply(self, settings: QueueSettings | TopicSettings) -> None:
        self.limit = settings.max_size_megabytes * 1024 * 1024
        self.max_message_bytes = settings.max_message_kilobytes * 1024
