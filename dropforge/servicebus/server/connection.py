"""One client's connection: its protocol headers, SASL, channels and rights, and what waits to be written to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from dropforge.servicebus.amqp import answers, frames
from dropforge.servicebus.amqp import performatives as asked
from dropforge.servicebus.amqp.performatives import performative
from dropforge.servicebus.core.broker import Broker
from dropforge.servicebus.errors import BrokerError, not_allowed, quota, unauthorized
from dropforge.servicebus.sas import AccessKey, Grant, check_token, entity_path
from dropforge.servicebus.server import cbs, management
from dropforge.servicebus.server.channel import Channel
from dropforge.servicebus.server.links import Outgoing
from dropforge.servicebus.server.nodes import Node
from dropforge.servicebus.server.requests import Request

_log = logging.getLogger(__name__)

MAX_FRAME: Final = 65_536
CHANNEL_MAX: Final = 4_999
MAX_LINKS: Final = 5_000
# What a client may have under way in messages that are not whole.
MAX_PARTIAL_BYTES: Final = 16_777_216
# A client that is silent for twice this long is gone.
IDLE_MS: Final = 240_000
# More than this waiting to be written, and the client gets no messages and is not read from until it has read.
HIGH_WATER: Final = 1_048_576

# What a socket has is read into here and copied out at once, for all connections. Without it asyncio maps and unmaps a
# quarter of a megabyte for every read, a tenth of the work that a small message makes.
_ARRIVING: Final = memoryview(bytearray(262_144))

# Bytes of a transfer frame that are not payload, at the most.
_TRANSFER_OVERHEAD: Final = 80
_SMALLEST_FRAME: Final = 512

# The mechanisms of the service. All but PLAIN are anonymous: the client proves who it is at `$cbs`. .NET's client
# insists on MSSBCBS.
_MECHANISMS: Final = ("MSSBCBS", "ANONYMOUS", "PLAIN", "EXTERNAL")
_SASL_OK, _SASL_REFUSED = 0, 1


class Owner(Protocol):
    """What a connection needs of its listener."""

    broker: Broker
    keys: dict[str, AccessKey] | None

    def now_s(self) -> float: ...

    def joined(self, connection: Connection) -> None: ...

    def left(self, connection: Connection) -> None: ...

    def wrote(self, connection: Connection) -> None:
        """The connection has something to write at the end of the turn."""

    def turn_soon(self) -> None: ...

    def after_pump(self, call: Callable[[], None]) -> None: ...


class Connection(asyncio.BufferedProtocol):
    """Frames in, calls of the core, frames out. What is written leaves at the end of the turn, after the commit."""

    def __init__(self, owner: Owner) -> None:
        self.broker = owner.broker
        # True while the client reads slower than it is written to.
        self.congested = False
        # How much of a message one frame to the client can carry.
        self.payload_room = _SMALLEST_FRAME - _TRANSFER_OVERHEAD
        self.since = self.heard_at = 0.0
        # Whether the client has shown that it may be here; one that has not is closed after a while.
        self.trusted = False
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._reader = frames.FrameReader(MAX_FRAME)
        self._channels: dict[int, Channel] = {}
        self._grants: dict[str, Grant] = {}
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._partial_bytes = 0
        self._paused = False
        self._opened = False
        self.closing = False
        self._keepalive: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------------------------------ transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER)
        self.since = self.heard_at = asyncio.get_running_loop().time()
        self._owner.joined(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self._drop_channels()
        if self._keepalive is not None:
            self._keepalive.cancel()
        self._owner.left(self)
        self._owner.turn_soon()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _ARRIVING

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(_ARRIVING[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Take in what the client sent; the turn that follows answers."""
        self.heard_at = asyncio.get_running_loop().time()
        if self.closing:
            return
        try:
            for kind, channel, body in self._reader.feed(data):
                if not self._take(kind, channel, body):
                    break
        except BrokerError as error:
            self.close(error)
        except Exception:  # noqa: BLE001 - a client may send what nobody thought of; the others must not notice
            _log.exception("a frame could not be handled; the connection is closed")
            self.close(BrokerError("amqp:internal-error", "The broker could not handle a frame.", 500))
        self._owner.turn_soon()

    def pause_writing(self) -> None:
        self._paused = self.congested = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        if self._transport is not None:
            self._transport.resume_reading()
        self._relieved()

    def flush(self) -> None:
        """Write what has gathered. Only the end of a turn calls this, when it is committed."""
        out, self._out = self._out, []
        self._out_bytes = 0
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if out:
            transport.write(out[0] if len(out) == 1 else b"".join(out))
        if self.closing:
            transport.close()
        elif self.congested and not self._paused:
            self._relieved()

    def abort(self) -> None:
        """Cut the connection, with nothing of what has gathered written."""
        self._out.clear()
        if self._transport is not None:
            self._transport.abort()

    def _relieved(self) -> None:
        self.congested = False
        for channel in self._channels.values():
            channel.wake()
        self._owner.turn_soon()

    # ------------------------------------------------------------------------------------------------- frames in

    def _take(self, kind: int, channel: int, body: bytes) -> bool:
        """Act on a frame; gives whether there is a next one to look for."""
        if kind == frames.AMQP:
            # An empty frame only says that the client lives.
            if body:
                self._on_frame(channel, body)
        elif kind == frames.HEADER:
            self._on_header(body)
        else:
            self._on_sasl(kind, body)
        return not self.closing

    def _on_header(self, header: bytes) -> None:
        if header == frames.SASL_HEADER and not self._opened:
            self.write_frame(frames.SASL_HEADER)
            self.write_frame(frames.frame(0, answers.sasl_mechanisms(_MECHANISMS), frames.SASL))
        elif header == frames.AMQP_HEADER and not self._opened:
            self.write_frame(frames.AMQP_HEADER)
        else:
            # AMQP asks to answer a protocol that is not spoken with the one that is, and to close.
            self.write_frame(frames.SASL_HEADER)
            self._shut()

    def _on_sasl(self, kind: int, body: bytes) -> None:
        code, at = performative(body)
        if kind != frames.SASL or code != asked.SASL_INIT or self._opened:
            raise frames.framing_error(f"expected an AMQP frame or a SASL init, found a frame of type {kind}")
        mechanism, response = asked.read_sasl_init(body, at)
        outcome = _SASL_OK if mechanism in _MECHANISMS and self._may_enter(mechanism, response) else _SASL_REFUSED
        self.write_frame(frames.frame(0, answers.sasl_outcome(outcome), frames.SASL))
        if outcome != _SASL_OK:
            self._shut()

    def _may_enter(self, mechanism: str, response: bytes) -> bool:
        keys = self._owner.keys
        if mechanism != "PLAIN" or keys is None:
            return True
        _, name, password, *_ = [*response.decode("utf-8", "replace").split("\0"), "", "", ""]
        key = keys.get(name)
        if key is None or key.value != password:
            return False
        self._grants[""] = Grant("", key.rights, float("inf"))
        self.trusted = True
        return True

    def _on_frame(self, number: int, body: bytes) -> None:
        code, at = performative(body)
        if code == asked.TRANSFER or code == asked.DISPOSITION or code == asked.FLOW:
            channel = self._channels.get(number)
            if channel is not None:
                self._on_link_frame(channel, code, body, at)
            return
        handler = _HANDLERS.get(code)
        if handler is None:
            raise frames.framing_error(f"expected a performative of AMQP, found 0x{code:02x}")
        if not self._opened and code != asked.OPEN:
            raise not_allowed("expected the connection to be opened first.")
        handler(self, number, body, at)

    def _on_link_frame(self, channel: Channel, code: int, body: bytes, at: int) -> None:
        try:
            if code == asked.TRANSFER:
                transfer, start = asked.read_transfer(body, at)
                channel.on_transfer(transfer, body[start:])
            elif code == asked.DISPOSITION:
                channel.on_disposition(asked.read_disposition(body, at))
            else:
                channel.on_flow(asked.read_flow(body, at))
        except BrokerError as error:
            self._end_channel(channel, error)

    def _on_open(self, number: int, body: bytes, at: int) -> None:
        if self._opened:
            raise not_allowed("The connection is open already.")
        opening = asked.read_open(body, at)
        self._opened = True
        self.trusted = self.trusted or self._owner.keys is None
        self.payload_room = max(_SMALLEST_FRAME, min(opening.max_frame, MAX_FRAME)) - _TRANSFER_OVERHEAD
        self.write(0, answers.opened("dropforge", MAX_FRAME, CHANNEL_MAX, IDLE_MS))
        if opening.idle_ms:
            self._keep_alive(max(opening.idle_ms / 2000, 0.1))

    def _on_begin(self, number: int, body: bytes, at: int) -> None:
        if number > CHANNEL_MAX or number in self._channels:
            raise not_allowed(f"The channel {number} is in use, or above {CHANNEL_MAX}.")
        self._channels[number] = Channel(self, number, asked.read_begin(body, at))

    def _on_attach(self, number: int, body: bytes, at: int) -> None:
        channel = self._channels.get(number)
        if channel is not None:
            try:
                channel.on_attach(asked.read_attach(body, at))
            except BrokerError as error:
                self._end_channel(channel, error)

    def _on_detach(self, number: int, body: bytes, at: int) -> None:
        # Some clients detach after the end of the session.
        channel = self._channels.get(number)
        if channel is not None:
            channel.on_detach(asked.read_detach(body, at))

    def _on_end(self, number: int, body: bytes, at: int) -> None:
        channel = self._channels.pop(number, None)
        if channel is not None:
            channel.close()
            self.write(number, answers.ended(None))

    def _on_close(self, number: int, body: bytes, at: int) -> None:
        self.close(None)

    def _end_channel(self, channel: Channel, error: BrokerError) -> None:
        _log.info("a session of a client is ended: %s", error)
        self._channels.pop(channel.number, None)
        channel.close()
        self.write(channel.number, answers.ended(error))

    # ------------------------------------------------------------------------------------------------ frames out

    def write(self, channel: int, body: bytes) -> None:
        """Have a performative written at the end of the turn."""
        self.write_frame(frames.frame(channel, body))

    def write_frame(self, frame: bytes) -> None:
        """Have the bytes of a whole frame written at the end of the turn."""
        if not self._out:
            self._owner.wrote(self)
        self._out.append(frame)
        self._out_bytes += len(frame)
        if self._out_bytes > HIGH_WATER:
            self.congested = True

    def close(self, error: BrokerError | None) -> None:
        """Say goodbye, with the reason if there is one, and close the connection at the end of the turn."""
        if self.closing:
            return
        if error is not None:
            _log.info("the connection of a client is closed: %s", error)
        self.write(0, answers.closed(error))
        self._shut()

    def _shut(self) -> None:
        self.closing = True
        self._drop_channels()

    def _drop_channels(self) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.close()

    def after_pump(self, call: Callable[[], None]) -> None:
        self._owner.after_pump(call)

    def _keep_alive(self, every_s: float) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if not self._paused:
            transport.write(frames.EMPTY_FRAME)
        self._keepalive = asyncio.get_running_loop().call_later(every_s, self._keep_alive, every_s)

    # ---------------------------------------------------------------------------------------- links and rights

    def may_attach(self) -> bool:
        """Whether the connection may have one more link."""
        return sum(len(channel.links) for channel in self._channels.values()) < MAX_LINKS

    def hold(self, size: int) -> None:
        """Count bytes of messages that are not whole, or with a negative size no longer. Raises `BrokerError` when
        they are too many."""
        self._partial_bytes += size
        if self._partial_bytes > MAX_PARTIAL_BYTES:
            raise quota(f"{MAX_PARTIAL_BYTES} bytes of messages that are not whole are under way.")

    def receiver(self, name: object) -> Outgoing | None:
        """The receiving link that the client gave this name."""
        for channel in self._channels.values():
            for link in channel.links.values():
                if isinstance(link, Outgoing) and link.attach.name == name:
                    return link
        return None

    def node(self, path: str) -> Node:
        """What answers the requests to the node. Raises `BrokerError` when the client may not ask it, or the entity
        does not exist."""
        if path.lower() == "$cbs":
            return partial(cbs.answer, put_token=self._put_token)
        entity = path[: -len("/$management")]
        if self._owner.keys is not None:
            now_s = self._owner.now_s()
            if not any(grant.allows(entity, right, now_s) for grant in self._grants.values() for right in grant.rights):
                raise unauthorized(f"Unauthorized access. A claim is required to manage '{entity}'.")
        self.broker.resolve(entity)
        return partial(_manage, path=entity, connection=self)

    def authorize(self, path: str, right: str) -> None:
        """Raises `BrokerError` unless a token that the client put allows it."""
        if self._owner.keys is None:
            return
        now_s = self._owner.now_s()
        if not any(grant.allows(path, right, now_s) for grant in self._grants.values()):
            raise unauthorized(f"Unauthorized access. '{right}' claim(s) are required to perform this operation.")

    def _put_token(self, audience: str, token: str) -> None:
        path = entity_path(audience)
        entity = path.removesuffix("/$management")
        keys = self._owner.keys
        if keys is not None:
            now_s = self._owner.now_s()
            grant = check_token(token, keys, now_s)
            # The right that was granted is used for the audience alone, and a new token replaces the one before.
            narrowed = Grant(entity.lower(), grant.rights, grant.expires_s)
            if not any(grant.allows(entity, right, now_s) for right in grant.rights):
                raise unauthorized(f"The token is for '{grant.resource}', not for '{entity}'.")
            if len(self._grants) >= MAX_LINKS and narrowed.resource not in self._grants:
                raise not_allowed(f"A connection holds at most {MAX_LINKS} tokens.")
            self._grants[narrowed.resource] = narrowed
        self.trusted = True
        # The service looks the entity up here, before any link is attached.
        if entity:
            self.broker.resolve(entity)


def _manage(request: Request, path: str, connection: Connection) -> bytes:
    return management.answer(request, path, connection)


_HANDLERS: Final[dict[int, Callable[[Connection, int, bytes, int], None]]] = {
    asked.OPEN: Connection._on_open,
    asked.BEGIN: Connection._on_begin,
    asked.ATTACH: Connection._on_attach,
    asked.DETACH: Connection._on_detach,
    asked.END: Connection._on_end,
    asked.CLOSE: Connection._on_close,
}
