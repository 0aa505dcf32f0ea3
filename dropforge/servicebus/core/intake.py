"""What queues and topics do alike with a message that comes in: check, number, recognise, or keep for later."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from dropforge.servicebus.core.history import History
from dropforge.servicebus.core.hub import Hub, Meter, Numbers
from dropforge.servicebus.core.shelf import Shelf
from dropforge.servicebus.errors import disabled, message_not_found, not_allowed, quota, size_exceeded
from dropforge.servicebus.message import Message, MessageState
from dropforge.servicebus.settings import QueueSettings, TopicSettings
from dropforge.servicebus.store import key_of, sequence_of


class Intake:
    """`admit(message, hops)` is called for each message that is to be there now, numbered, with the time it came."""

    def __init__(
        self,
        hub: Hub,
        path: str,
        entity: int,
        settings: QueueSettings | TopicSettings,
        shelf: Shelf,
        numbers: Numbers,
        meter: Meter,
        admit: Callable[[Message, int], None],
    ) -> None:
        self._hub = hub
        self._path = path
        self._entity = entity
        self._shelf = shelf
        self._numbers = numbers
        self._meter = meter
        self._admit = admit
        self._requires_session = isinstance(settings, QueueSettings) and settings.requires_session
        self.history = History(hub, entity, settings.duplicate_window_ms) if settings.detects_duplicates else None
        self.apply(settings)

    def apply(self, settings: QueueSettings | TopicSettings) -> None:
        """Go by new settings from now on."""
        self._status = settings.status
        self._meter.apply(settings)
        if self.history is not None:
            self.history.window_ms = settings.duplicate_window_ms

    def check(self, messages: Sequence[Message]) -> None:
        """Raises `BrokerError` when the messages, all together, cannot come in."""
        if not self._status.sends:
            raise disabled(self._path)
        total = 0
        for message in messages:
            size = message.size
            total += size
            if size > self._meter.max_message_bytes:
                raise size_exceeded(self._meter.max_message_bytes)
            if self._requires_session and message.session_id is None:
                raise not_allowed(
                    "The SessionId was not set on a message, and it cannot be sent to the entity. Entities that have "
                    "session support enabled can only receive messages that have the SessionId set to a valid value."
                )
        if self._meter.used + total > self._meter.limit:
            raise quota(
                f"The maximum entity size has been reached or exceeded for '{self._path}'. Size of entity in bytes: "
                f"{self._meter.used}, Max entity size in bytes: {self._meter.limit}. Receive messages from it, from "
                "its dead-letter queues and subscriptions, or raise MaxSizeInMegabytes."
            )

    def take(self, message: Message, scheduled_at: int | None = None, hops: int = 0) -> int:
        """Let a checked message in; its sequence number, or that of the one it repeats."""
        now = self._hub.now()
        if message.message_id is None:
            # Clients in other languages than Python rely on there being one.
            message.set_property("MessageId", os.urandom(16).hex())
        if self.history is not None:
            known = self.history.find(message.message_id, now)
            if known is not None:
                return known
        message.sequence = sequence = self._numbers.take()
        if self.history is not None:
            self.history.add(message.message_id, sequence, now)
        due = message.scheduled_at if scheduled_at is None else scheduled_at
        message.enqueued_at = now
        if due is not None and due > now:
            message.state, message.due_at = MessageState.SCHEDULED, due
            self._shelf.add(message, hops)
            self.wait(message)
        else:
            self._admit(message, hops)
        return sequence

    def wait(self, message: Message) -> None:
        """Admit a scheduled message when it is due."""
        assert message.due_at is not None, "a scheduled message without its time"
        self._hub.timers.set(key_of(self._entity, message.sequence), message.due_at, self._on_due)

    def cancel(self, sequences: Sequence[int]) -> None:
        """Forget scheduled messages: all of them, or none and `message_not_found` is raised."""
        found = dict.fromkeys(sequences)
        for sequence in found:
            message = self._shelf.messages.get(sequence)
            if message is None or message.state is not MessageState.SCHEDULED:
                raise message_not_found(sequence)
        for sequence in found:
            self._hub.timers.cancel(key_of(self._entity, sequence))
            self._shelf.remove(self._shelf.messages[sequence])

    def close(self) -> None:
        for sequence in self._shelf.messages:
            self._hub.timers.cancel(key_of(self._entity, sequence))
        if self.history is not None:
            self.history.close()

    def _on_due(self, key: Any) -> None:
        message = self._shelf.messages[sequence_of(key)]
        hops = self._shelf.remove(message)
        # As if it had been sent now, number included: until then the number was only good for cancelling it.
        message.state, message.due_at = MessageState.ACTIVE, None
        message.sequence = self._numbers.take()
        message.enqueued_at = self._hub.now()
        self._admit(message, hops)
