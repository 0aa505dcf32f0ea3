"""The two kinds of links to an entity: one takes the client's messages, one gives it the entity's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dropforge.servicebus.amqp.decode import decode, malformed
from dropforge.servicebus.amqp.performatives import Attach, Flow, Transfer
from dropforge.servicebus.amqp.sections import DATA, sections
from dropforge.servicebus.amqp.values import Symbol
from dropforge.servicebus.core.broker import Entity
from dropforge.servicebus.core.queue import Queue
from dropforge.servicebus.errors import BrokerError
from dropforge.servicebus.message import Message
from dropforge.servicebus.server.deliveries import Deliveries

if TYPE_CHECKING:
    from dropforge.servicebus.server.channel import Channel

# The format code of a transfer whose data sections are one message each. Nothing else tells a batch from a message:
# the envelope may carry properties of its own.
BATCH_FORMAT: Final = 0x80013700

_SETTLED: Final = 1
# .NET counts time in 100 ns since the year 1.
_TICKS_AT_1970: Final = 621_355_968_000_000_000


class Incoming:
    """A client's messages on their way to a queue or topic."""

    def __init__(self, channel: Channel, attach: Attach, entity: Entity) -> None:
        self.attach = attach
        self._channel = channel
        self._entity = entity
        self._deliveries = Deliveries(channel, attach, lambda: entity.max_message_bytes, self._take)
        self.on_flow = self._deliveries.on_flow
        self.on_transfer = self._deliveries.on_transfer
        self.close = self._deliveries.close

    def opened(self) -> None:
        """Tell the client that the link stands, and let it send."""
        limit = self._entity.max_message_bytes
        size = {Symbol("com.microsoft:max-message-batch-size"): limit}
        self._channel.write_attached(self.attach, max_message_bytes=limit, properties=size)
        self._deliveries.grant()

    def wake(self) -> None:
        """Nothing waits here for the client to have room."""

    def _take(self, raw: bytes, message_format: int) -> None:
        if message_format == BATCH_FORMAT:
            self._entity.send_all(messages_of(raw))
        else:
            self._entity.send(Message.parse(raw))


def messages_of(envelope: bytes) -> list[Message]:
    """The messages of a batch, each of them a data section. Raises `BrokerError` when one of them is none."""
    found = []
    for code, _, value_at, _ in sections(envelope):
        if code == DATA:
            inner = decode(envelope, value_at)[0]
            if not isinstance(inner, bytes):
                raise malformed("expected each data section of a batch as binary")
            found.append(Message.parse(inner))
    return found


class Outgoing:
    """A queue's messages on their way to a client. It is what the broker core calls a receiver."""

    def __init__(self, channel: Channel, attach: Attach, queue: Queue) -> None:
        self.attach = attach
        self.queue = queue
        self.deletes = attach.sender_settle_mode == _SETTLED
        self.session_id: str | None = None
        self._channel = channel
        self._credit = 0
        self._delivery_count = 0
        self._stands = False
        self._gone = False

    @property
    def credit(self) -> int:
        """How many messages the client takes now: none while it reads slower than they come."""
        return 0 if self._channel.congested else self._credit

    def opened(self) -> None:
        """Tell the client that the link stands."""
        self._stands = True
        self._channel.write_attached(self.attach, max_message_bytes=self.queue.max_message_bytes)

    # ------------------------------------------------------------------------------------------- from the core

    def deliver(self, message: Message) -> None:
        self._credit -= 1
        self._delivery_count = (self._delivery_count + 1) & 0xFFFFFFFF
        self._channel.send_message(self, message)

    def accepted(self, session_id: str, locked_until: int) -> None:
        self.session_id = session_id
        self._stands = True
        source = self.attach.source
        until = locked_until * 10_000 + _TICKS_AT_1970
        self._channel.write_attached(
            self.attach,
            max_message_bytes=self.queue.max_message_bytes,
            source=source.with_session(session_id) if source is not None else None,
            properties={Symbol("com.microsoft:locked-until-utc"): until},
        )

    def refused(self, error: BrokerError) -> None:
        self._gone = True
        if self._stands:
            self._channel.detach(self, error)
        else:
            self._channel.refuse(self.attach, error)

    # ----------------------------------------------------------------------------------------- from the client

    def on_flow(self, flow: Flow) -> None:
        ahead = (flow.delivery_count + flow.credit - self._delivery_count) & 0xFFFFFFFF
        # A flow that crossed our transfers may grant less than is under way already.
        self._credit = ahead if ahead < 0x80000000 else 0
        if flow.drain:
            self._channel.drain_after_pump(self)
        elif flow.echo:
            self._write_flow()
        self.wake()

    def on_transfer(self, transfer: Transfer, payload: bytes) -> None:
        raise BrokerError("amqp:not-allowed", "A receiver cannot send on the link it receives from.", 400)

    def wake(self) -> None:
        """Tell the core that there is room again."""
        if self._credit > 0 and self._stands and not self._gone:
            self.queue.credited(self)

    def drained(self) -> None:
        """The entity had nothing more for the credit: it is used up."""
        self._delivery_count = (self._delivery_count + self._credit) & 0xFFFFFFFF
        self._credit = 0
        self._write_flow(drain=True)

    def close(self) -> None:
        """The client is gone, or the link is detached: the core gives its messages and its session to others."""
        if not self._gone:
            self._gone = True
            self.queue.detach(self)

    def _write_flow(self, *, drain: bool = False) -> None:
        self._channel.write_flow((self.attach.handle, self._delivery_count, self._credit), drain=drain)
