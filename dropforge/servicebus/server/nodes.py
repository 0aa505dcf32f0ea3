"""Links to the nodes that answer requests: `$cbs`, and the `$management` of each entity."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dropforge.servicebus.amqp.performatives import Attach, Flow, Transfer
from dropforge.servicebus.errors import BrokerError, quota
from dropforge.servicebus.server.deliveries import Deliveries
from dropforge.servicebus.server.requests import Request, read_request

if TYPE_CHECKING:
    from dropforge.servicebus.server.channel import Channel

# Answers a request with the bytes of the reply.
Node = Callable[[Request], bytes]

# A request may carry a batch of messages to be scheduled.
MAX_REQUEST_BYTES: Final = 1_048_576
# Replies that wait for credit or for room. A client that asks this much without reading is cut off.
MAX_WAITING: Final = 256
MAX_WAITING_BYTES: Final = 16_777_216

_SETTLED: Final = 1


class Requests:
    """A client's requests on their way to a node."""

    def __init__(self, channel: Channel, attach: Attach, path: str, node: Node) -> None:
        self.attach = attach
        self._channel = channel
        self._path = path
        self._node = node
        self._deliveries = Deliveries(channel, attach, lambda: MAX_REQUEST_BYTES, self._take)
        self._asked: Request | None = None
        self.on_flow = self._deliveries.on_flow
        self.close = self._deliveries.close

    def opened(self) -> None:
        """Tell the client that the link stands, and let it ask."""
        self._channel.write_attached(self.attach, max_message_bytes=MAX_REQUEST_BYTES)
        self._deliveries.grant()

    def on_transfer(self, transfer: Transfer, payload: bytes) -> None:
        self._deliveries.on_transfer(transfer, payload)
        # The reply comes after the answer to the delivery.
        request, self._asked = self._asked, None
        if request is not None:
            self._reply(request.reply_to, self._node(request))

    def wake(self) -> None:
        """Nothing waits here for the client to have room."""

    def _take(self, raw: bytes, message_format: int) -> None:
        self._asked = read_request(raw)

    def _reply(self, reply_to: str, reply: bytes) -> None:
        found = None
        for link in self._channel.links.values():
            if isinstance(link, Replies) and link.path == self._path:
                found = link
                if link.reply_to == reply_to:
                    break
        if found is not None:
            found.send(reply)


class Replies:
    """A node's replies on their way to a client."""

    def __init__(self, channel: Channel, attach: Attach, path: str) -> None:
        self.attach = attach._replace(sender_settle_mode=_SETTLED)
        self.path = path
        self.reply_to = attach.target.address if attach.target is not None else ""
        self._channel = channel
        self._credit = 0
        self._delivery_count = 0
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0

    def opened(self) -> None:
        """Tell the client that the link stands."""
        self._channel.write_attached(self.attach, max_message_bytes=MAX_REQUEST_BYTES)

    def send(self, reply: bytes) -> None:
        """Send the reply as soon as the client has credit for it."""
        self._waiting.append(reply)
        self._waiting_bytes += len(reply)
        self.wake()
        if len(self._waiting) > MAX_WAITING or self._waiting_bytes > MAX_WAITING_BYTES:
            text = f"{len(self._waiting)} replies of {self._waiting_bytes} bytes wait for the client to read."
            self._channel.detach(self, quota(text))

    def on_flow(self, flow: Flow) -> None:
        ahead = (flow.delivery_count + flow.credit - self._delivery_count) & 0xFFFFFFFF
        self._credit = ahead if ahead < 0x80000000 else 0
        self.wake()
        if flow.drain:
            self._delivery_count = (self._delivery_count + self._credit) & 0xFFFFFFFF
            self._credit = 0
        if flow.drain or flow.echo:
            link = (self.attach.handle, self._delivery_count, self._credit)
            self._channel.write_flow(link, drain=flow.drain)

    def on_transfer(self, transfer: Transfer, payload: bytes) -> None:
        raise BrokerError("amqp:not-allowed", "A receiver cannot send on the link it receives from.", 400)

    def close(self) -> None:
        self._waiting.clear()

    def wake(self) -> None:
        """Send what waits, as far as the client has credit and room."""
        while self._waiting and self._credit > 0 and not self._channel.congested:
            reply = self._waiting.popleft()
            self._waiting_bytes -= len(reply)
            self._credit -= 1
            self._delivery_count = (self._delivery_count + 1) & 0xFFFFFFFF
            self._channel.send(self.attach.handle, None, reply, settled=True)
