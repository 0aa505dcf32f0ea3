"""A client that says exactly the frames a test gives it, wired to a connection without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from dropforge.servicebus.amqp import frames
from dropforge.servicebus.amqp.decode import decode
from dropforge.servicebus.amqp.encode import described, encode
from dropforge.servicebus.amqp.performatives import SASL_INIT, performative
from dropforge.servicebus.amqp.sections import sections
from dropforge.servicebus.amqp.values import Described, Symbol, UByte, UInt, ULong
from dropforge.servicebus.config import parse
from dropforge.servicebus.core.broker import Broker
from dropforge.servicebus.message import Message
from dropforge.servicebus.sas import AccessKey
from dropforge.servicebus.server.connection import Connection
from dropforge.servicebus.server.listener import Listener
from dropforge.servicebus.store import Store

CONFIG = """{"UserConfig": {"Namespaces": [{"Name": "sbemulatorns",
 "Queues": [{"Name": "q", "Properties": {"LockDuration": "PT30S", "MaxDeliveryCount": 3}},
            {"Name": "other"},
            {"Name": "s", "Properties": {"RequiresSession": true, "LockDuration": "PT30S"}}],
 "Topics": [{"Name": "t", "Subscriptions": [{"Name": "all"}]}]}]}}"""


class Clock:
    """A time that only tests move, in milliseconds."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.ms


@dataclass(frozen=True)
class Said:
    """One frame of the broker."""

    channel: int
    code: int
    fields: list[Any]
    payload: bytes

    def __getitem__(self, place: int) -> Any:
        return self.fields[place]


class FakeTransport(asyncio.Transport):
    """Keeps what is written. While `stuck`, the client does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False
        self.aborted = False
        self.reading = True
        self.high: int | None = None

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class World:
    """A broker in memory with a listener that is turned by hand."""

    def __init__(
        self, keys: dict[str, AccessKey] | None = None, *, config: str = CONFIG, store: Store | None = None
    ) -> None:
        self.clock = Clock()
        self.broker = Broker(parse(config), store or Store(None), self.clock)
        self.listener = Listener(self.broker, keys, clock=self.clock)

    def client(self, *, opened: bool = True, max_frame: int | None = None) -> Client:
        client = Client(self)
        if opened:
            client.say(frames.AMQP_HEADER, at_once=True)
            client.frame(0x10, ["test", None, None if max_frame is None else UInt(max_frame)])
            client.frame(0x11, [None, UInt(0), UInt(5_000), UInt(5_000)], channel=1)
            client.heard()
        return client

    def later(self, ms: int) -> None:
        """Let time pass, and the broker do what is due."""
        self.clock.ms += ms
        self.broker.run_due(self.clock.ms)
        self.listener.turn()


class Client:
    """One connection. Every `frame` is a turn of the listener; `heard` gives what it answered since."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.transport = FakeTransport()
        self.connection = Connection(world.listener)
        self.connection.connection_made(self.transport)
        self._reader = frames.FrameReader(1 << 20)
        self._delivery = 0

    def say(self, data: bytes, *, at_once: bool = True) -> None:
        self.connection.data_received(data)
        if at_once:
            self.world.listener.turn()

    def frame(
        self, code: int, fields: list[Any], *, channel: int = 0, payload: bytes = b"", at_once: bool = True
    ) -> None:
        self.say(frames.frame(channel, described(code, encode(fields)) + payload), at_once=at_once)

    def sasl(self, mechanism: str, response: bytes) -> None:
        body = described(SASL_INIT, encode([Symbol(mechanism), response]))
        self.say(frames.SASL_HEADER + frames.frame(0, body, frames.SASL))

    def heard(self, code: int | None = None) -> list[Said]:
        """The frames written since the last time; those of one performative when it is given."""
        written, self.transport.written = self.transport.written, b""
        said = []
        for kind, channel, body in self._reader.feed(written):
            if kind == frames.HEADER:
                said.append(Said(0, -1, [body], b""))
            elif body:
                found, at = performative(body)
                fields, end = decode(body, at)
                said.append(Said(channel, found, fields, body[end:]))
        return [each for each in said if code is None or each.code == code]

    def attach(
        self,
        address: str,
        *,
        handle: int = 0,
        receives: bool = False,
        name: str | None = None,
        filters: dict[Any, Any] | None = None,
        properties: dict[Any, Any] | None = None,
        settled: bool = False,
        reply_to: str | None = None,
    ) -> list[Said]:
        source = Described(ULong(0x28), [address, None, None, None, None, None, None, filters])
        target = Described(ULong(0x29), [reply_to or address])
        modes = [UByte(1 if settled else 0), UByte(0 if settled else 1)]
        fields = [name or f"link-{handle}", UInt(handle), receives, *modes, source, target]
        self.frame(0x12, [*fields, None, None, None if receives else UInt(0), None, None, None, properties], channel=1)
        return self.heard()

    def flow(
        self, handle: int, credit: int, *, delivery_count: int = 0, drain: bool = False, echo: bool = False
    ) -> None:
        link = [UInt(handle), UInt(delivery_count), UInt(credit), None, drain, echo]
        self.frame(0x13, [UInt(0), UInt(5_000), UInt(0), UInt(5_000), *link], channel=1)

    def transfer(
        self, payload: bytes, *, handle: int = 0, message_format: int = 0, more: bool = False, at_once: bool = True
    ) -> int:
        """Send a message, or with `more` its first part; gives the delivery id."""
        delivery = self._delivery
        fields = [UInt(handle), UInt(delivery), str(delivery).encode(), UInt(message_format), False, more]
        self.frame(0x14, fields, channel=1, payload=payload, at_once=at_once)
        if not more:
            self._delivery += 1
        return delivery

    def dispose(self, first: int, state: Any, *, last: int | None = None, settled: bool = False) -> list[Said]:
        fields = [True, UInt(first), None if last is None else UInt(last), settled, state]
        self.frame(0x15, fields, channel=1)
        return self.heard()

    def ask(
        self, address: str, operation: str, body: Any, *, handle: int = 10, **properties: Any
    ) -> tuple[dict[str, Any], Any]:
        """One request on a node, links and all; gives the properties and the body of the reply."""
        self.attach(address, handle=handle)
        self.attach(address, handle=handle + 1, receives=True, settled=True)
        self.flow(handle + 1, 10)
        self.heard()
        identity = uuid4()
        request = described(0x73, encode([identity, None, None, None, address]))
        request += described(0x74, encode({"operation": operation, **properties})) + described(0x77, encode(body))
        self.transfer(request, handle=handle)
        replies = self.heard(0x14)
        for ended in (handle, handle + 1):
            self.frame(0x16, [UInt(ended), True], channel=1)
        self.heard()
        raw = b"".join(reply.payload for reply in replies)
        found = {code: decode(raw, value_at)[0] for code, _, value_at, _ in sections(raw)}
        assert found[0x73][5] == identity
        return found[0x74], found[0x77]


def message(text: str = "body", **properties: Any) -> bytes:
    """An encoded message; `message_id` and `session_id` go into the properties, all else beside them."""
    fields: list[Any] = [None] * 11
    fields[0] = properties.pop("message_id", None)
    fields[10] = properties.pop("session_id", None)
    own = described(0x74, encode(properties)) if properties else b""
    return described(0x73, encode(fields)) + own + described(0x75, encode(text.encode()))


def body_of(said: Said) -> str:
    raw = next(value_at for code, _, value_at, _ in sections(said.payload) if code == 0x75)
    return str(decode(said.payload, raw)[0], "utf-8")


def delivered(said: Said) -> Message:
    return Message.parse(said.payload)


def in_a_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run the test inside an event loop, which the connections ask for the time."""

    def run() -> None:
        asyncio.run(_awaited())

    async def _awaited() -> None:
        await test()

    run.__name__ = getattr(test, "__name__", "test")
    return run
