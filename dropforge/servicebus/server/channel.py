"""One AMQP session: the links of a client on one channel of its connection, and the windows around them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from os import urandom
from typing import TYPE_CHECKING, Any, Final, Protocol

from dropforge.servicebus.amqp import answers
from dropforge.servicebus.amqp.encode import NULL
from dropforge.servicebus.amqp.performatives import (
    COORDINATOR,
    Attach,
    Begin,
    Detach,
    Disposition,
    Flow,
    Transfer,
)
from dropforge.servicebus.core.topic import Topic
from dropforge.servicebus.errors import BrokerError, bad_field, not_allowed, not_supported, quota
from dropforge.servicebus.message import Message
from dropforge.servicebus.sas import LISTEN, SEND, entity_path
from dropforge.servicebus.server.links import Incoming, Outgoing
from dropforge.servicebus.server.nodes import Replies, Requests
from dropforge.servicebus.server.settlement import decides, settle

if TYPE_CHECKING:
    from dropforge.servicebus.server.connection import Connection

# What is told to the client. Its transfers are bounded by the credit of each link, so the window is as wide as it gets.
WINDOW: Final = 0x7FFFFFFF
HANDLE_MAX: Final = 1023

_SESSION_FILTER: Final = "com.microsoft:session-filter"
_SESSION_TIMEOUT: Final = "com.microsoft:timeout"
_SESSION_TIMEOUT_MS: Final = 60_000


class Link(Protocol):
    """What the channel knows of each of its links."""

    @property
    def attach(self) -> Attach: ...

    @property
    def on_flow(self) -> Callable[[Flow], None]: ...

    @property
    def on_transfer(self) -> Callable[[Transfer, bytes], None]: ...

    @property
    def close(self) -> Callable[[], None]: ...

    def wake(self) -> None: ...


class Channel:
    """Links by the handle that the client gave them, and the deliveries that it has not settled yet."""

    def __init__(self, connection: Connection, number: int, begin: Begin) -> None:
        self.connection = connection
        self.number = number
        self.links: dict[int, Link] = {}
        # Handles of links that ended on our side; the client's own detach is still to come.
        self._ending: set[int] = set()
        self._unsettled: dict[int, tuple[Outgoing, bytes]] = {}
        self._next_delivery = 0
        self._next_incoming = begin.next_outgoing_id
        self._next_outgoing = 0
        self._room = begin.incoming_window
        # Frames that the client's window has no room for yet: the rest of one message at the most, as no link of a
        # congested channel shows credit.
        self._held: deque[bytes] = deque()
        connection.write(number, answers.begun(number, WINDOW, HANDLE_MAX))

    @property
    def congested(self) -> bool:
        return self._room <= 0 or bool(self._held) or self.connection.congested

    # ------------------------------------------------------------------------------------------------ frames in

    def on_attach(self, attach: Attach) -> None:
        if attach.handle > HANDLE_MAX or not self.connection.may_attach():
            raise quota(f"A session has at most {HANDLE_MAX + 1} links, and a connection has a limit too.")
        if attach.handle in self.links or attach.handle in self._ending:
            raise BrokerError("amqp:session:handle-in-use", f"The handle {attach.handle} is in use.", 400)
        try:
            self._open(attach)
        except BrokerError as error:
            self.links.pop(attach.handle, None)
            self.refuse(attach, error)

    def on_flow(self, flow: Flow) -> None:
        was_congested = self.congested
        self._room = _distance(flow.next_incoming_id + flow.incoming_window, self._next_outgoing)
        self._release_held()
        if flow.handle is None:
            if flow.echo:
                self.write_flow()
        else:
            link = self._link(flow.handle)
            if link is not None:
                link.on_flow(flow)
        if was_congested:
            self.wake()

    def on_transfer(self, transfer: Transfer, payload: bytes) -> None:
        self._next_incoming = (self._next_incoming + 1) & 0xFFFFFFFF
        link = self._link(transfer.handle)
        if link is not None:
            link.on_transfer(transfer, payload)

    def on_disposition(self, disposition: Disposition) -> None:
        # As a sender the client settles what we have answered already; as a receiver it may only say how far it is.
        if not disposition.receives or not decides(disposition):
            return
        unsettled = self._unsettled
        if disposition.last - disposition.first < len(unsettled):
            ids = [i for i in range(disposition.first, disposition.last + 1) if i in unsettled]
        else:
            ids = [i for i in unsettled if disposition.first <= i <= disposition.last]
        for delivery_id in ids:
            link, token = unsettled.pop(delivery_id)
            state = settle(link, token, disposition.state)
            if not disposition.settled:
                self.write_disposition(delivery_id, state, receives=False)

    def on_detach(self, detach: Detach) -> None:
        # A detach is sent twice by some clients, and after we have detached ourselves.
        self._ending.discard(detach.handle)
        link = self.links.pop(detach.handle, None)
        if link is not None:
            self._forget(link)
            self.connection.write(self.number, answers.detached(detach.handle, None, closed=detach.closed))

    def close(self) -> None:
        """The client ended the session, or is gone."""
        links, self.links = self.links, {}
        self._unsettled.clear()
        self._held.clear()
        for link in links.values():
            link.close()

    # ------------------------------------------------------------------------------------------------ attaching

    def _open(self, attach: Attach) -> None:
        term = attach.source if attach.receives else attach.target
        if term is None:
            raise bad_field(f"expected the link '{attach.name}' to name its entity, found a null address")
        if term.code == COORDINATOR:
            raise not_supported("A transaction")
        path = entity_path(term.address)
        if path.lower() == "$cbs" or path.lower().endswith("/$management"):
            self._open_node(attach, path)
        elif attach.receives:
            self._open_receiver(attach, path, term.filters)
        else:
            self.connection.authorize(path, SEND)
            entity = self.connection.broker.resolve(path)
            if not entity.can_send:
                raise not_allowed(f"'{path}' cannot be sent to; send to its queue or topic.")
            incoming = Incoming(self, attach, entity)
            self.links[attach.handle] = incoming
            incoming.opened()

    def _open_node(self, attach: Attach, path: str) -> None:
        if attach.receives:
            replies = Replies(self, attach, path)
            self.links[attach.handle] = replies
            replies.opened()
        else:
            requests = Requests(self, attach, path, self.connection.node(path))
            self.links[attach.handle] = requests
            requests.opened()

    def _open_receiver(self, attach: Attach, path: str, filters: Mapping[Any, Any]) -> None:
        self.connection.authorize(path, LISTEN)
        entity = self.connection.broker.resolve(path)
        if isinstance(entity, Topic):
            raise not_allowed(f"'{path}' is a topic; receive from one of its subscriptions.")
        outgoing = Outgoing(self, attach, entity)
        self.links[attach.handle] = outgoing
        if _SESSION_FILTER in filters:
            wanted = filters[_SESSION_FILTER]
            wanted = getattr(wanted, "value", wanted)
            if wanted is not None and not isinstance(wanted, str):
                raise bad_field(f"expected the session filter as a string or null, found {type(wanted).__name__}")
            patience = attach.properties.get(_SESSION_TIMEOUT)
            timeout_ms = max(0, int(patience)) if isinstance(patience, int) else _SESSION_TIMEOUT_MS
            entity.accept_session(outgoing, wanted, timeout_ms)
            return
        entity.check_receiver(session=False)
        outgoing.opened()
        entity.attach(outgoing)

    def refuse(self, attach: Attach, error: BrokerError) -> None:
        """Answer the attach with a link that has no ends, and detach it."""
        body = answers.attached(
            attach.name,
            attach.handle,
            receives=not attach.receives,
            settle_modes=(attach.sender_settle_mode, attach.receiver_settle_mode),
            source=NULL,
            target=NULL,
            max_message_bytes=None,
            properties={},
        )
        self.connection.write(self.number, body)
        self._end(attach.handle, error)

    def detach(self, link: Link, error: BrokerError) -> None:
        """End a link that stands, from our side."""
        self._forget(link)
        self._end(link.attach.handle, error)

    def _end(self, handle: int, error: BrokerError) -> None:
        self.links.pop(handle, None)
        self._ending.add(handle)
        self.connection.write(self.number, answers.detached(handle, error))

    def _forget(self, link: Link) -> None:
        # What a detached link holds can no longer be settled on it: a disposition that comes late is not answered, and
        # the client repeats it through $management. The locks live on until they expire.
        if self._unsettled:
            self._unsettled = {key: held for key, held in self._unsettled.items() if held[0] is not link}
        link.close()

    def _link(self, handle: int) -> Link | None:
        link = self.links.get(handle)
        if link is None and handle not in self._ending:
            raise BrokerError("amqp:session:unattached-handle", f"No link is attached with the handle {handle}.", 400)
        return link

    # ----------------------------------------------------------------------------------------------- frames out

    def write_attached(
        self,
        attach: Attach,
        *,
        max_message_bytes: int | None,
        source: bytes | None = None,
        properties: Mapping[Any, Any] | None = None,
    ) -> None:
        """The answer to an attach: both ends as the client gave them, and the source as it was granted."""
        own = attach.source.raw if attach.source is not None else NULL
        body = answers.attached(
            attach.name,
            attach.handle,
            receives=not attach.receives,
            settle_modes=(attach.sender_settle_mode, attach.receiver_settle_mode),
            source=own if source is None else source,
            target=attach.target.raw if attach.target is not None else NULL,
            max_message_bytes=max_message_bytes,
            properties=properties or {},
        )
        self.connection.write(self.number, body)

    def write_flow(self, link: tuple[int, int, int] | None = None, *, drain: bool = False) -> None:
        body = answers.flow(self._next_incoming, self._next_outgoing, WINDOW, link, drain=drain)
        self.connection.write(self.number, body)

    def write_disposition(self, delivery_id: int, state: bytes, *, receives: bool) -> None:
        self.connection.write_frame(
            answers.disposition(self.number, receives=receives, delivery_id=delivery_id, state=state)
        )

    def send_message(self, link: Outgoing, message: Message) -> None:
        """Transfer a message on the link; until the client settles it, it is held under its lock token."""
        token = message.lock_token
        delivery_id = self.send(link.attach.handle, token, message.encode(), settled=link.deletes)
        if token is not None and not link.deletes:
            self._unsettled[delivery_id] = (link, token)

    def send(self, handle: int, tag: bytes | None, payload: bytes, *, settled: bool) -> int:
        """Transfer bytes on the link; gives the id of the delivery."""
        delivery_id = self._next_delivery
        self._next_delivery = (delivery_id + 1) & 0xFFFFFFFF
        frames = answers.transfer(
            self.number,
            handle,
            delivery_id,
            tag or urandom(16),
            settled=settled,
            payload=payload,
            room=self.connection.payload_room,
        )
        self._held.extend(frames)
        self._release_held()
        return delivery_id

    def drain_after_pump(self, link: Outgoing) -> None:
        """Have the link say that its credit is used up, once the core had its chance to use it."""
        self.connection.after_pump(link.drained)

    def wake(self) -> None:
        """Tell every link that there is room again."""
        for link in list(self.links.values()):
            if self.congested:
                break
            link.wake()

    def _release_held(self) -> None:
        held = self._held
        while held and self._room > 0:
            self._room -= 1
            self._next_outgoing = (self._next_outgoing + 1) & 0xFFFFFFFF
            self.connection.write_frame(held.popleft())


def _distance(later: int, earlier: int) -> int:
    """How far one transfer-id is ahead of another. They count to 2**32 and start again."""
    ahead = (later - earlier) & 0xFFFFFFFF
    return ahead if ahead < 0x80000000 else 0
