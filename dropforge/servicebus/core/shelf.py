"""The messages of one queue by sequence number: in memory, counted, and in the store."""

from __future__ import annotations

from itertools import islice

from dropforge.servicebus.core.hub import Meter
from dropforge.servicebus.core.numbers import SortedNumbers
from dropforge.servicebus.core.ports import Box
from dropforge.servicebus.core.sessions import Sessions
from dropforge.servicebus.message import Message, MessageState
from dropforge.servicebus.store import Store


class Shelf:
    """Keeps memory and store saying the same. Bodies stay in memory; the meter's limit bounds them."""

    __slots__ = (
        "_box",
        "_by_state",
        "_entity",
        "_hops",
        "_meter",
        "_order",
        "_sessions",
        "_store",
        "messages",
        "size_bytes",
    )

    def __init__(self, store: Store, entity: int, box: Box, meter: Meter, sessions: Sessions | None = None) -> None:
        self._store = store
        self._entity = entity
        self._box = box
        self._meter = meter
        # Which messages of any state belong to which session.
        self._sessions = sessions
        self._order = SortedNumbers()
        self._by_state = [0, 0, 0]
        # How often a message was forwarded, for those that were.
        self._hops: dict[int, int] = {}
        self.messages: dict[int, Message] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self.messages)

    def restore(self, message: Message, hops: int = 0) -> None:
        """Take in a message that the store has."""
        sequence = message.sequence
        self.messages[sequence] = message
        self._order.add(sequence)
        self._by_state[message.state] += 1
        if hops:
            self._hops[sequence] = hops
        if self._sessions is not None:
            self._sessions.joined(message)
        self._weigh(message.size)

    def add(self, message: Message, hops: int = 0) -> None:
        self.restore(message, hops)
        self._store.put(self._entity, self._box, message, hops)

    def changed(self, message: Message, was: MessageState | None = None, grown: int = 0) -> None:
        """Note what changed in a message: its state (`was` is the one before), its size, anything that is stored."""
        if was is not None:
            self._by_state[was] -= 1
            self._by_state[message.state] += 1
        if grown:
            self._weigh(grown)
        self._store.put(self._entity, self._box, message, self._hops.get(message.sequence, 0))

    def remove(self, message: Message) -> int:
        """Take a message out, and say how often it was forwarded."""
        sequence = message.sequence
        del self.messages[sequence]
        self._order.remove(sequence)
        self._by_state[message.state] -= 1
        if self._sessions is not None:
            self._sessions.left(message)
        self._weigh(-message.size)
        self._store.remove(self._entity, sequence)
        return self._hops.pop(sequence, 0) if self._hops else 0

    def count(self, state: MessageState) -> int:
        return self._by_state[state]

    def peek(self, sequence: int, count: int, session_id: str | None = None) -> list[Message]:
        """Up to `count` messages from `sequence` on, of one session or of all."""
        if session_id is None:
            numbers = self._order.since(sequence)
        elif self._sessions is not None:
            numbers = self._sessions.numbers_of(session_id, sequence)
        else:
            numbers = (n for n in self._order.since(sequence) if self.messages[n].session_id == session_id)
        return [self.messages[number] for number in islice(numbers, count)]

    def clear(self) -> None:
        """Forget all messages; the store is told by who deletes the entity."""
        self._weigh(-self.size_bytes)
        self.messages.clear()
        self._order = SortedNumbers()
        self._by_state = [0, 0, 0]
        self._hops.clear()

    def _weigh(self, size: int) -> None:
        self.size_bytes += size
        self._meter.used += size
