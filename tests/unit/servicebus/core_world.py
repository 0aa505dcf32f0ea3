"""What the tests of the broker's core are made of: messages, a clock, receivers that keep what they get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dropforge.servicebus.amqp.encode import described, encode, list_of, map_of
from dropforge.servicebus.amqp.sections import APPLICATION_PROPERTIES, DATA, HEADER, MESSAGE_ANNOTATIONS, PROPERTIES
from dropforge.servicebus.amqp.values import Symbol, Timestamp, UInt
from dropforge.servicebus.core.broker import Broker, Entity
from dropforge.servicebus.core.ports import Outcome
from dropforge.servicebus.core.queue import Queue
from dropforge.servicebus.core.topic import Topic
from dropforge.servicebus.errors import BrokerError
from dropforge.servicebus.message import Message
from dropforge.servicebus.settings import Namespace, QueueSettings, SubscriptionSettings, TopicSettings
from dropforge.servicebus.store import Store

_PLACES = {
    "message_id": 0,
    "to": 2,
    "subject": 3,
    "reply_to": 4,
    "correlation_id": 5,
    "content_type": 6,
    "session_id": 10,
}
NOON = 1_800_000_000_000


def message(
    body: bytes | str = b"",
    *,
    ttl_ms: int | None = None,
    due_at: int | None = None,
    app: dict[str, Any] | None = None,
    **properties: Any,
) -> Message:
    raw = b""
    if ttl_ms is not None:
        raw += described(HEADER, list_of([encode(None), encode(None), encode(UInt(ttl_ms))]))
    if due_at is not None:
        raw += described(
            MESSAGE_ANNOTATIONS, map_of({Symbol("x-opt-scheduled-enqueue-time"): encode(Timestamp(due_at))})
        )
    fields = [encode(None)] * 13
    for name, value in properties.items():
        fields[_PLACES[name]] = encode(value)
    raw += described(PROPERTIES, list_of(fields))
    if app:
        raw += described(APPLICATION_PROPERTIES, map_of({name: encode(value) for name, value in app.items()}))
    return Message.parse(raw + described(DATA, encode(body if isinstance(body, bytes) else body.encode())))


def body_of(found: Message) -> str:
    raw = found.stored()
    at = raw.rindex(b"\x00\x53\x75") + 3
    start = at + (2 if raw[at] == 0xA0 else 5)
    return raw[start:].decode()


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> int:
        return self.now


class Taker:
    """A receiver that keeps what it is given."""

    def __init__(self, credit: int = 1_000, *, deletes: bool = False) -> None:
        self.credit = credit
        self.deletes = deletes
        self.session_id: str | None = None
        self.locked_until = 0
        self.got: list[Message] = []
        # The token under which each message came; a message forgets it when it is settled.
        self.tokens: list[bytes | None] = []
        self.error: BrokerError | None = None

    def deliver(self, message: Message) -> None:
        self.credit -= 1
        self.got.append(message)
        self.tokens.append(message.lock_token)

    def accepted(self, session_id: str, locked_until: int) -> None:
        self.session_id, self.locked_until = session_id, locked_until

    def refused(self, error: BrokerError) -> None:
        self.error = error

    @property
    def bodies(self) -> list[str]:
        return [body_of(each) for each in self.got]

    @property
    def token(self) -> bytes:
        """Of the last message."""
        found = self.tokens[-1]
        assert found is not None
        return found


class World:
    """A broker over a store that outlives it: in memory, or a file that `restart` opens again."""

    def __init__(
        self,
        *queues: QueueSettings,
        topics: tuple[TopicSettings, ...] = (),
        path: Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.namespace = Namespace("test", queues, topics)
        self.clock = clock or Clock()
        self.path = path
        self.store = Store(path)
        self.broker = Broker(self.namespace, self.store, self.clock)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.broker.close()

    def restart(self, namespace: Namespace | None = None) -> None:
        """As after kill -9: nothing that is not committed is there."""
        self.broker.abandon()
        self.namespace = namespace or self.namespace
        self.store = Store(self.path)
        self.broker = Broker(self.namespace, self.store, self.clock)

    def queue(self, path: str) -> Queue:
        found = self.broker.resolve(path)
        assert isinstance(found, Queue)
        return found

    def topic(self, path: str) -> Topic:
        found = self.broker.resolve(path)
        assert isinstance(found, Topic)
        return found

    def send(self, path: str, *messages: Message) -> list[int]:
        entity: Entity = self.broker.resolve(path)
        numbers = [entity.send(each) for each in messages]
        self.turn()
        return numbers

    def turn(self) -> None:
        self.broker.pump()
        self.broker.commit()

    def pass_time(self, milliseconds: int) -> None:
        """Let time pass, and everything happen at its own time."""
        end = self.clock.now + milliseconds
        while (due := self.broker.next_due()) is not None and due <= end:
            self.clock.now = max(self.clock.now, due)
            self.broker.run_due(self.clock.now)
            self.turn()
        self.clock.now = end

    def taker(self, path: str, credit: int = 1_000, *, deletes: bool = False) -> Taker:
        taker = Taker(credit, deletes=deletes)
        self.queue(path).attach(taker)
        self.turn()
        return taker

    def session_taker(self, path: str, session_id: str | None, credit: int = 1_000, timeout_ms: int = 5_000) -> Taker:
        taker = Taker(credit)
        self.queue(path).accept_session(taker, session_id, timeout_ms)
        self.turn()
        return taker

    def settle(self, path: str, token: bytes | None, outcome: Outcome = Outcome.COMPLETE, **more: Any) -> None:
        assert token is not None
        self.queue(path).settle(token, outcome, **more)
        self.turn()

    def bodies(self, path: str) -> list[str]:
        """What lies there, whatever its state."""
        return [body_of(each) for each in self.broker.resolve(path).peek(0, 1_000)]


def queue(name: str = "q", **settings: Any) -> QueueSettings:
    return QueueSettings(name=name, **{"ttl_ms": None, **settings})


def topic(name: str, *subscriptions: SubscriptionSettings, **settings: Any) -> TopicSettings:
    return TopicSettings(name=name, subscriptions=subscriptions, **{"ttl_ms": None, **settings})


def subscription(name: str, **settings: Any) -> SubscriptionSettings:
    return SubscriptionSettings(name=name, **{"ttl_ms": None, **settings})
