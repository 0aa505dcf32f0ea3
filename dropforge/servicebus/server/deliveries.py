"""What a client sends on a link: credit for it, deliveries put together from their transfers, and the answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dropforge.servicebus.amqp import answers
from dropforge.servicebus.amqp.decode import malformed
from dropforge.servicebus.amqp.performatives import Attach, Flow, Transfer
from dropforge.servicebus.errors import BrokerError, size_exceeded

if TYPE_CHECKING:
    from dropforge.servicebus.server.channel import Channel

# How many messages a client may send before it hears that there is more credit.
CREDIT: Final = 1000

# Takes the bytes of a whole delivery and its format code; raises `BrokerError` to refuse it.
Take = Callable[[bytes, int], None]


class Deliveries:
    """The receiving half of a link. A delivery is accepted when `take` returns."""

    def __init__(self, channel: Channel, attach: Attach, limit: Callable[[], int], take: Take) -> None:
        """`limit` gives how many bytes a delivery may have at the most."""
        self._channel = channel
        self._handle = attach.handle
        self._limit = limit
        self._take = take
        self._credit = CREDIT
        self._delivery_count = attach.initial_delivery_count
        self._partial: _Partial | None = None

    def grant(self) -> None:
        """Let the client send."""
        self._credit = CREDIT
        self._channel.write_flow((self._handle, self._delivery_count, CREDIT))

    def on_flow(self, flow: Flow) -> None:
        if flow.echo:
            self.grant()

    def on_transfer(self, transfer: Transfer, payload: bytes) -> None:
        if self._partial is None and not transfer.more and not transfer.aborted:
            if transfer.delivery_id is None:
                raise _nameless()
            self._finish(transfer.delivery_id, transfer.message_format, transfer.settled, payload)
            return
        if self._partial is None:
            self._partial = _Partial(transfer)
        partial = self._partial
        self._hold(partial, payload)
        if transfer.aborted:
            self.close()
        elif not transfer.more:
            self.close()
            whole = None if partial.size > self._limit() else b"".join(partial.parts)
            self._finish(partial.id, partial.format, transfer.settled or partial.settled, whole)

    def close(self) -> None:
        """Forget the delivery that is not whole."""
        if self._partial is not None:
            self._channel.connection.hold(-self._partial.held)
            self._partial = None

    def _hold(self, partial: _Partial, payload: bytes) -> None:
        """Keep a part of a delivery. Of one that is too large the bytes are counted and not kept."""
        partial.size += len(payload)
        if partial.size > self._limit():
            change = -partial.held
            partial.parts.clear()
        else:
            change = len(payload)
            partial.parts.append(payload)
        partial.held += change
        self._channel.connection.hold(change)

    def _finish(self, delivery_id: int, message_format: int, settled: bool, whole: bytes | None) -> None:
        self._credit -= 1
        self._delivery_count = (self._delivery_count + 1) & 0xFFFFFFFF
        state = answers.ACCEPTED_STATE
        try:
            if whole is None or len(whole) > self._limit():
                raise size_exceeded(self._limit())
            self._take(whole, message_format)
        except BrokerError as error:
            state = answers.rejected(error)
        if not settled:
            self._channel.write_disposition(delivery_id, state, receives=True)
        if self._credit < CREDIT // 2:
            self.grant()


class _Partial:
    """A delivery of which more is to come."""

    __slots__ = ("format", "held", "id", "parts", "settled", "size")

    def __init__(self, first: Transfer) -> None:
        if first.delivery_id is None:
            raise _nameless()
        self.id = first.delivery_id
        self.format = first.message_format
        self.settled = first.settled
        self.parts: list[bytes] = []
        self.size = 0
        self.held = 0


def _nameless() -> BrokerError:
    return malformed("expected a delivery-id in the first transfer of a delivery, found none")
