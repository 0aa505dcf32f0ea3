"""One queue, or the queue behind a subscription, or one of their dead-letter queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dropforge.servicebus.core.competing import Competing
from dropforge.servicebus.core.forwarding import forward
from dropforge.servicebus.core.hub import Hub, Meter, Numbers
from dropforge.servicebus.core.intake import Intake
from dropforge.servicebus.core.locks import Locks
from dropforge.servicebus.core.ports import Box, Counts, Kind, Outcome, Receiver
from dropforge.servicebus.core.sessions import Sessions
from dropforge.servicebus.core.shelf import Shelf
from dropforge.servicebus.errors import (
    disabled,
    message_not_found,
    not_allowed,
    not_found,
    size_exceeded,
)
from dropforge.servicebus.message import MAX_TTL_MS, Message, MessageState
from dropforge.servicebus.settings import QueueSettings, SubscriptionSettings
from dropforge.servicebus.store import key_of, sequence_of

# The service's own words, for clients that compare them.
# https://learn.microsoft.com/azure/service-bus-messaging/service-bus-dead-letter-queues
EXPIRED = ("TTLExpiredException", "The message expired and was dead lettered.")
NO_SESSION = (
    "Session ID is null.",
    "Session enabled entity doesn't allow a message whose session identifier is null.",
)

_SUFFIX = {Box.MAIN: "", Box.DEAD_LETTER: "/$DeadLetterQueue", Box.TRANSFER_DEAD_LETTER: "/$Transfer/$DeadLetterQueue"}


class Queue:
    """Messages wait here, are locked, and leave. Everything done to it is recorded in the store, and durable once the
    broker commits."""

    can_receive = True

    def __init__(
        self,
        hub: Hub,
        path: str,
        number: int,
        settings: QueueSettings | SubscriptionSettings,
        meter: Meter,
        numbers: Numbers,
        box: Box = Box.MAIN,
    ) -> None:
        self.path = path + _SUFFIX[box]
        self.number = number
        self.settings = settings
        self.box = box
        self.kind = Kind.QUEUE if isinstance(settings, QueueSettings) else Kind.SUBSCRIPTION
        self.requires_session = box is Box.MAIN and settings.requires_session
        self._hub = hub
        self._meter = meter
        self._numbers = numbers
        self._gone = False
        self._competing = Competing(self._hand_over)
        self._sessions: Sessions | None = None
        if self.requires_session:
            self._sessions = Sessions(hub, self._hand_over, self._give_back, self._note_change, settings.lock_ms)
        self._locks = Locks(hub, self._sessions, settings.lock_ms, self._on_lock_expired)
        self._shelf = Shelf(hub.store, number, box, meter, self._sessions)
        self.intake: Intake | None = None
        if isinstance(settings, QueueSettings) and box is Box.MAIN:
            self.intake = Intake(hub, path, number, settings, self._shelf, numbers, meter, self._admit)
        self.dead_letters: Queue | None = None
        self.transfer_dead_letters: Queue | None = None
        if box is Box.MAIN:
            self.dead_letters = Queue(hub, path, number, settings, meter, numbers, Box.DEAD_LETTER)
            self.transfer_dead_letters = Queue(hub, path, number, settings, meter, numbers, Box.TRANSFER_DEAD_LETTER)

    @property
    def can_send(self) -> bool:
        return self.intake is not None

    @property
    def max_message_bytes(self) -> int:
        return self._meter.max_message_bytes

    # ------------------------------------------------------------------------------------------------- sending

    def send(self, message: Message, *, scheduled_at: int | None = None) -> int:
        """Let a message in, now or at a time; its sequence number. A repeated message is dropped, and the number of
        the first one returned. Raises `BrokerError`."""
        self._entrance().check((message,))
        return self._entrance().take(message, scheduled_at)

    def send_all(self, messages: Sequence[Message]) -> list[int]:
        """Let all of the messages in, or none when one of them cannot."""
        intake = self._entrance()
        intake.check(messages)
        return [intake.take(message) for message in messages]

    def transfer(self, message: Message, hops: int) -> None:
        """Let in what another entity forwards. Raises `BrokerError`, and the message is unchanged then."""
        intake = self._entrance()
        intake.check((message,))
        message.enqueued_sequence = message.enqueued_sequence or message.sequence
        message.delivery_count, message.expires_at = 0, None
        intake.take(message, hops=hops)

    def put(self, message: Message, hops: int, ttl_cap: int | None) -> None:
        """Let in the copy of a topic's message."""
        message.sequence = self._numbers.take()
        if self.requires_session and message.session_id is None:
            self._dead_letter(message, *NO_SESSION, hops)
        else:
            self._admit(message, hops, ttl_cap)

    def put_dead(self, message: Message, reason: str, description: str) -> None:
        """Dead-letter the copy of a topic's message that could not come in."""
        message.sequence = self._numbers.take()
        self._dead_letter(message, reason, description, 0)

    def cancel_scheduled(self, sequences: Sequence[int]) -> None:
        """Forget scheduled messages, all or none. Raises `message_not_found`."""
        self._entrance().cancel(sequences)

    def _entrance(self) -> Intake:
        if self._gone:
            raise not_found(self.path)
        if self.intake is None:
            what = "subscription" if self.box is Box.MAIN else "dead-letter queue"
            raise not_allowed(f"Cannot create a message sender for a {what}: '{self.path}'.")
        return self.intake

    def _admit(self, message: Message, hops: int, ttl_cap: int | None = None) -> None:
        """A numbered message with its time of arrival is here now."""
        if self.settings.forward_to is not None:
            self._forward(message, self.settings.forward_to, hops)
            return
        self._limit_life(message, ttl_cap)
        self._shelf.add(message, hops)
        self._watch(message)
        self._wait(message)

    def _limit_life(self, message: Message, ttl_cap: int | None) -> None:
        """The shortest of what the sender, the topic and this entity say; receivers see what holds."""
        ttl = message.ttl_ms
        for cap in (ttl_cap, self.settings.ttl_ms):
            if cap is not None and (ttl is None or cap < ttl):
                ttl = cap
        if ttl is None:
            message.expires_at = None
            return
        message.expires_at = message.enqueued_at + ttl
        if ttl != message.ttl_ms and ttl <= MAX_TTL_MS:
            message.set_ttl(ttl)

    def _watch(self, message: Message) -> None:
        if message.expires_at is not None:
            self._hub.timers.set(key_of(self.number, message.sequence), message.expires_at, self._on_expired)

    def _wait(self, message: Message) -> None:
        """The message may be given to a receiver."""
        dispatch = self._sessions or self._competing
        if dispatch.ready(message):
            self._note_change()

    def _note_change(self) -> None:
        self._hub.changed[self] = None

    # ------------------------------------------------------------------------------------------------ receiving

    def check_receiver(self, *, session: bool) -> None:
        """Raises `BrokerError` when a receiver, with or without session, cannot be here."""
        if self._gone:
            raise not_found(self.path)
        if self.box is Box.MAIN and self.settings.forward_to is not None:
            raise not_allowed(
                f"Cannot create a message receiver on '{self.path}': it forwards to '{self.settings.forward_to}'."
            )
        if not self.settings.status.receives:
            raise disabled(self.path)
        if self.requires_session and not session:
            raise not_allowed(
                "It is not possible for an entity that requires sessions to create a non-sessionful message receiver."
            )
        if session and not self.requires_session:
            raise not_allowed(
                "A sessionful message receiver cannot be created on an entity that does not require sessions. Ensure "
                "RequiresSession is set to true when creating a queue or subscription to enable sessionful behavior."
            )

    def attach(self, receiver: Receiver) -> None:
        """Let a receiver compete for the messages. Raises `BrokerError`."""
        self.check_receiver(session=False)
        self._competing.attach(receiver)
        self._note_change()

    def accept_session(self, receiver: Receiver, session_id: str | None, timeout_ms: int) -> None:
        """Grant the receiver a session, or the next one with messages: it hears `accepted`, or `refused` when the
        session is another's or none came in time. Raises `BrokerError` where there can be no session at all."""
        self.check_receiver(session=True)
        assert self._sessions is not None
        self._sessions.accept(receiver, session_id, timeout_ms)

    def credited(self, receiver: Receiver) -> None:
        """The receiver has credit again."""
        if (self._sessions or self._competing).credited(receiver):
            self._note_change()

    def detach(self, receiver: Receiver) -> None:
        """The receiver is gone. Its session is free at once; messages it locked otherwise stay locked, as in the
        service, until they are settled another way or their time passes. Unknown receivers are ignored."""
        (self._sessions or self._competing).detach(receiver)

    def pump(self) -> None:
        """Give out messages while somebody takes them."""
        if self.settings.status.receives:
            (self._sessions or self._competing).pump()

    def peek(self, from_sequence: int, count: int, session_id: str | None = None) -> list[Message]:
        """Messages of any state in order, none of them locked by it."""
        return self._shelf.peek(from_sequence, count, session_id)

    def receive_deferred(
        self, sequences: Sequence[int], *, session_id: str | None, receiver: Receiver | None, delete: bool
    ) -> list[Message]:
        """Deferred messages by number, locked or gone: all of them, or `message_not_found` is raised. Raises
        `session_lock_lost` when nobody, or another than the receiver, has their session."""
        if self._sessions is not None:
            self._sessions.held(session_id, receiver)
        found: dict[int, Message] = {}
        for sequence in sequences:
            message = self._shelf.messages.get(sequence)
            if (
                message is None
                or message.state is not MessageState.DEFERRED
                or message.lock_token is not None
                or (self._sessions is not None and message.session_id != session_id)
            ):
                raise message_not_found(sequence)
            found[sequence] = message
        for message in found.values():
            if delete:
                self._take_out(message)
            else:
                self._locks.lock(message)
        return list(found.values())

    def _hand_over(self, sequence: int, receiver: Receiver) -> None:
        message = self._shelf.messages[sequence]
        if message.expires_at is not None and message.expires_at <= self._hub.now():
            self._expire(message)
            return
        if receiver.deletes:
            self._take_out(message)
        else:
            self._locks.lock(message)
        receiver.deliver(message)

    # ------------------------------------------------------------------------------------------------- settling

    def settle(
        self,
        token: bytes,
        outcome: Outcome,
        *,
        reason: str | None = None,
        description: str | None = None,
        properties: Mapping[str, Any] | None = None,
        session_id: str | None = None,
    ) -> None:
        """End a lock the way its holder says. Raises `lock_lost` or `session_lock_lost`."""
        message = self._locks.held(token, session_id)
        if properties:
            self._modify(message, properties)
        if outcome is Outcome.COMPLETE:
            self._locks.unlock(message)
            self._take_out(message)
        elif outcome is Outcome.ABANDON or outcome is Outcome.RELEASE:
            self._give_back(message, outcome is Outcome.ABANDON, bool(properties))
        elif outcome is Outcome.DEFER:
            self._locks.unlock(message)
            was, message.state = message.state, MessageState.DEFERRED
            # A deferred message does not expire.
            self._hub.timers.cancel(key_of(self.number, message.sequence))
            self._shelf.changed(message, was)
        else:
            self._locks.unlock(message)
            hops = self._take_out(message)
            self._dead_letter(message, reason, description, hops)

    def renew(self, tokens: Sequence[bytes]) -> list[int]:
        """Until when each lock holds now. Raises `lock_lost` when one of them does not hold any more."""
        return self._locks.renew(tokens)

    def _give_back(self, message: Message, counted: bool, modified: bool = False) -> None:
        """A lock ends and the message stays; `counted` when that was a failed delivery."""
        self._locks.unlock(message)
        if counted:
            message.delivery_count += 1
            if self.box is Box.MAIN and message.delivery_count >= self.settings.max_delivery_count:
                hops = self._take_out(message)
                text = f"Message could not be consumed after {self.settings.max_delivery_count} delivery attempts."
                self._dead_letter(message, "MaxDeliveryCountExceeded", text, hops)
                return
        if counted or modified:
            self._shelf.changed(message)
        if message.state is MessageState.DEFERRED:
            return
        if message.expires_at is not None and message.expires_at <= self._hub.now():
            self._expire(message)
        elif self.box is Box.MAIN and self.settings.forward_to is not None:
            # It was locked when the queue was made to forward; no receiver can come for it any more.
            hops = self._take_out(message)
            self._forward(message, self.settings.forward_to, hops)
        else:
            self._wait(message)

    def _modify(self, message: Message, properties: Mapping[str, Any]) -> None:
        before = message.size
        for name, value in properties.items():
            message.set_application_property(name, value)
        self._shelf.changed(message, grown=message.size - before)

    def _on_lock_expired(self, message: Message) -> None:
        self._give_back(message, counted=True)

    # -------------------------------------------------------------------------------------- leaving another way

    def _take_out(self, message: Message) -> int:
        """Out of this queue; it must neither wait nor be locked. How often it was forwarded."""
        if message.expires_at is not None:
            self._hub.timers.cancel(key_of(self.number, message.sequence))
        return self._shelf.remove(message)

    def _on_expired(self, key: Any) -> None:
        message = self._shelf.messages[sequence_of(key)]
        # A lock outlives the message; what its holder does not complete expires when the lock ends.
        if message.lock_token is None and message.state is MessageState.ACTIVE:
            (self._sessions or self._competing).gone(message)
            self._expire(message)

    def _expire(self, message: Message) -> None:
        hops = self._take_out(message)
        if self.settings.dead_letters_expired:
            self._dead_letter(message, *EXPIRED, hops)

    def _dead_letter(self, message: Message, reason: str | None, description: str | None, hops: int) -> None:
        """A message that is in no queue any more goes where the dead letters go; one of theirs stays with them."""
        _explain(message, reason, description)
        message.state, message.expires_at = MessageState.ACTIVE, None
        target = self.settings.forward_dead_letters_to
        if self.dead_letters is None:
            self._keep(message, hops)
        elif target is None or not self._forward_dead(message, target, hops):
            self.dead_letters._keep(message, hops)

    def _keep(self, message: Message, hops: int) -> None:
        self._shelf.add(message, hops)
        self._wait(message)

    def _forward(self, message: Message, target: str, hops: int) -> None:
        """On to another entity, or among the messages that could not be transferred."""
        refused = forward(self._hub, message, target, hops)
        if refused is None:
            return
        assert self.transfer_dead_letters is not None
        _explain(message, *refused)
        message.expires_at = None
        self.transfer_dead_letters._keep(message, hops)

    def _forward_dead(self, message: Message, target: str, hops: int) -> bool:
        """Whether a dead letter went on to where dead letters are forwarded. One that could not stays here, with its
        own reason: that says more than why it could not be forwarded."""
        before, message.dead_letter_source = message.dead_letter_source, self.path
        if forward(self._hub, message, target, hops) is None:
            return True
        message.dead_letter_source = before
        return False

    # ------------------------------------------------------------------------------------------------- sessions

    # Who asks may say by which receiver it has the session; when another has it by now, `session_lock_lost` is raised.

    def renew_session(self, session_id: str, receiver: Receiver | None = None) -> int:
        """Until when the session's lock holds now, and those of its messages. Raises `session_lock_lost`."""
        return self._sessionful().renew(session_id, receiver)

    def session_state(self, session_id: str, receiver: Receiver | None = None) -> bytes | None:
        """What was set for a session that somebody has. Raises `session_lock_lost`."""
        return self._sessionful().held(session_id, receiver).state

    def set_session_state(self, session_id: str, state: bytes | None, receiver: Receiver | None = None) -> None:
        """Set or, with None, clear the state of a session that somebody has. Raises `session_lock_lost`."""
        if state is not None and len(state) > self.max_message_bytes:
            raise size_exceeded(self.max_message_bytes)
        sessions = self._sessionful()
        self._meter.used += sessions.set_state(session_id, state, receiver)
        self._hub.store.put_session(self.number, session_id, state, self._hub.now())

    def sessions(self, updated_after: int | None, skip: int, top: int) -> list[str]:
        """Ids of sessions with messages or a state, in order; or of those whose state was set after a time."""
        return self._sessionful().ids(updated_after)[skip : skip + top]

    def _sessionful(self) -> Sessions:
        if self._sessions is None:
            raise not_allowed(f"'{self.path}' has no sessions: RequiresSession is not set on it.")
        return self._sessions

    # ------------------------------------------------------------------------------------------ life of a queue

    def counts(self) -> Counts:
        """Of this queue and the dead letters beside it."""
        dead, transfer = self.dead_letters, self.transfer_dead_letters
        shelves = [queue._shelf for queue in (self, dead, transfer) if queue is not None]
        return Counts(
            active=self._shelf.count(MessageState.ACTIVE),
            deferred=self._shelf.count(MessageState.DEFERRED),
            scheduled=self._shelf.count(MessageState.SCHEDULED),
            dead_letter=len(dead._shelf) if dead else 0,
            transfer_dead_letter=len(transfer._shelf) if transfer else 0,
            size_bytes=sum(shelf.size_bytes for shelf in shelves),
        )

    def restore(self, message: Message, box: Box, hops: int) -> None:
        """Take in what the store has, in the order of sequence numbers."""
        if box is not Box.MAIN:
            assert self.dead_letters is not None and self.transfer_dead_letters is not None
            queue = self.dead_letters if box is Box.DEAD_LETTER else self.transfer_dead_letters
            queue._shelf.restore(message, hops)
            queue._wait(message)
            return
        if self.requires_session and message.session_id is None:
            # It came in before the entity was declared to require sessions.
            self._hub.store.remove(self.number, message.sequence)
            self._dead_letter(message, *NO_SESSION, hops)
            return
        self._shelf.restore(message, hops)
        if message.state is MessageState.SCHEDULED:
            assert self.intake is not None
            self.intake.wait(message)
        elif message.state is MessageState.ACTIVE:
            self._watch(message)
            self._wait(message)

    def restore_session(self, session_id: str, state: bytes, at: int) -> None:
        if self._sessions is not None:
            self._sessions.restore_state(session_id, state, at)
            self._meter.used += len(state)

    def apply(self, settings: QueueSettings | SubscriptionSettings) -> None:
        """Go by new settings from now on; locks and times to live that run keep their time."""
        for queue in (self, self.dead_letters, self.transfer_dead_letters):
            if queue is not None:
                queue.settings = settings
                queue._locks.lock_ms = settings.lock_ms
        if self.intake is not None and isinstance(settings, QueueSettings):
            self.intake.apply(settings)
        if self._sessions is not None:
            self._sessions.lock_ms = settings.lock_ms
        self.forward_waiting()
        self._note_change()

    def forward_waiting(self) -> None:
        """Forward what came in before the queue was made to forward."""
        if self.settings.forward_to is None:
            return
        for sequence in self._competing.take_all():
            message = self._shelf.messages[sequence]
            hops = self._take_out(message)
            self._forward(message, self.settings.forward_to, hops)

    def close(self) -> None:
        """The entity is deleted: its links are told so, and nothing of it is left."""
        self._gone = True
        timers = self._hub.timers
        for sequence in self._shelf.messages:
            timers.cancel(key_of(self.number, sequence))
        self._locks.clear()
        self._shelf.clear()
        self._hub.changed.pop(self, None)
        if self.intake is not None:
            self.intake.close()
        if self._sessions is not None:
            self._meter.used -= self._sessions.state_bytes
        (self._sessions or self._competing).close(not_found(self.path))
        for queue in (self.dead_letters, self.transfer_dead_letters):
            if queue is not None:
                queue.close()


def _explain(message: Message, reason: str | None, description: str | None) -> None:
    if reason is not None:
        message.set_application_property("DeadLetterReason", reason)
    if description is not None:
        message.set_application_property("DeadLetterErrorDescription", description)
