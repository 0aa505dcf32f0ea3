"""HTTP/1.1 on sockets: whole requests in, whole answers out, in their order; slow, large and broken senders held off.

One object per connection, called by the event loop. A request whose bytes came in one piece, as nearly all do, is handed
on without being copied twice. Nothing is set aside for a body before its bytes are there. Whatever a client does, it costs
others no more than one turn of the loop with a bounded number of requests.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from dropforge.serving.bodies import Arriving, Chunks, Sized
from dropforge.serving.heads import CLOSES, MAX_HEAD_BYTES, SILENT, Head, HeadRefused, Heads

# Answers that a pipelining client may be owed before its next requests are left in the socket.
MAX_OWED = 128
# Requests of one client that are read in one turn of the loop.
TURN_REQUESTS = 128
# How long what a client still sends is thrown away, so that it gets to read why; and how long it may take no byte of its
# answers.
LINGER_SECONDS = 2.0
STUCK_SECONDS = 10.0
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Owed(msgspec.Struct, eq=False):
    """A place in the line of answers of a connection, for an answer that comes later. `line`: what the answer says of the
    connection."""

    connection: Connection
    line: bytes
    data: bytes | None = None

    @property
    def gone(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.connection.closed

    def give(self, data: bytes) -> None:
        """The answer, whole. The caller flushes the connection, once for many answers."""
        self.data = data if not self.line else _saying(self.line, data)


def _saying(line: bytes, data: bytes) -> bytes:
    """The answer with one header more."""
    status, end, rest = data.partition(b"\r\n")
    return b"".join((status, end, line, rest))


class App(Protocol):
    """What answers requests. `now`: the time that the heads' `good_until` is compared with."""

    heads: Heads[Any]

    @property
    def now(self) -> float: ...

    def refusal(self, head: Head[Any]) -> bytes | None:
        """The answer to a request that its head alone condemns (unknown route, no key, a body above the limit)."""

    def answer(self, head: Head[Any], body: bytes, owe: Callable[[], Owed]) -> bytes | None:
        """The answer to a whole request; or None, after `owe` was called for the place that it will be given to."""

    def error(self, status: int, message: str) -> bytes:
        """An answer to what is no request."""


@dataclass
class Limits:
    """Bytes in a body, and in all that are arriving; seconds for a head and for a body to arrive; seconds an idle
    connection is kept; connections."""

    body_bytes: int = 64 * 1024**2
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 120.0
    connections: int = 10_000
    arriving_bytes: int = 1024**3


class Client(Protocol):
    """A connection, as far as its time is concerned."""

    deadline: float

    def late(self) -> None:
        """The deadline has passed."""

    def end(self) -> None:
        """No further requests."""

    def abort(self) -> None:
        """The connection is over."""


@dataclass
class Connections:
    """All of them, of every protocol, looked through once a second for those that are late."""

    limits: Limits
    clock: Callable[[], float] = time.monotonic
    open: set[Client] = field(default_factory=set)
    ending: bool = False
    arriving: Arriving = field(init=False)
    # When a connection that falls idle now is closed; as of the last sweep, which is exact enough and costs no request
    # a look at the clock.
    idle_until: float = 0.0

    def __post_init__(self) -> None:
        self.idle_until = self.clock() + self.limits.idle_seconds
        self.arriving = Arriving(self.limits.arriving_bytes)

    def sweep(self) -> None:
        now = self.clock()
        self.idle_until = now + self.limits.idle_seconds
        for connection in [each for each in self.open if each.deadline < now]:
            connection.late()

    def end(self) -> None:
        """No further requests: those that wait for nothing are closed, the others after their answers."""
        self.ending = True
        for connection in list(self.open):
            connection.end()


class Connection(asyncio.Protocol):
    """One client."""

    __slots__ = (
        "_all",
        "_app",
        "_body",
        "_eof",
        "_full",
        "_head",
        "_held",
        "_kept",
        "_line",
        "_linger",
        "_over",
        "_owed",
        "_searched",
        "_transport",
        "_turning",
        "_unsent",
        "closed",
        "deadline",
    )

    def __init__(self, app: App, connections: Connections) -> None:
        self.closed = False
        self.deadline = 0.0
        self._app = app
        self._all = connections
        self._transport: asyncio.Transport
        # Bytes that are not read yet: of a head that is not whole (searched for its end so far), or held back.
        self._kept = b""
        self._searched = 0
        # The request whose body is arriving.
        self._head: Head[Any] | None = None
        self._body: Sized | Chunks | None = None
        self._owed: deque[Owed] | None = None
        # What the answer to the current request says of the connection.
        self._line = SILENT
        # After an answer that ends the connection nothing that comes is read.
        self._over = self._linger = False
        self._eof = False
        # Not reading, because the client does not read, or has had its turn, or is owed much.
        self._held = self._full = self._turning = False
        self._unsent = 0

    # -------------------------------------------------------------------------------------------- the loop's calls
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        self._all.open.add(self)
        self.deadline = self._all.clock() + self._all.limits.head_seconds
        if len(self._all.open) > self._all.limits.connections or self._all.ending:
            self._transport.write(_saying(CLOSES, self._app.error(503, "too many connections; try again")))
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._all.open.discard(self)
        self._drop()
        self._owed = None

    def pause_writing(self) -> None:
        self._full = True
        self._hold()

    def resume_writing(self) -> None:
        self._full = False
        if self._held:
            self._go_on()

    def data_received(self, data: bytes) -> None:
        if not self._over:
            self._received(data)

    def eof_received(self) -> bool:
        # Who has sent everything may still wait for his answers.
        self._eof = True
        waits = bool(self._owed) if self._over else self._held or self._ended()
        # TLS knows no half of a connection.
        return waits and self._transport.can_write_eof()

    # -------------------------------------------------------------------------------------------- reading
    def _received(self, data: bytes) -> None:
        if self._kept:
            data = self._kept + data
        if self._held:
            # The loop may still hand over what it had read when it was told to pause.
            self._kept = data
            return
        out: list[bytes] = []
        try:
            self._read(data, out)
        except HeadRefused as error:
            self._refuse(self._app.error(error.status, error.message), out)
        if out:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        if self._over:
            self._end_if_done()

    def _read(self, data: bytes, out: list[bytes]) -> None:
        """Take requests out of the bytes until they are used up; answers that are there at once go to `out`."""
        app, at, size, turns = self._app, 0, len(data), 0
        known = app.heads.known
        self._kept = b""
        while at < size:
            if self._body is not None:
                at = self._body.feed(data, at, self._all.arriving)
                if not self._body.whole:
                    if at < size:
                        self._turn_over(data[at:])
                    return
                self._answer_body(out)
            else:
                if data[at] == 13:
                    # Empty lines before a request are read over (RFC 9112, 2.2).
                    while data.startswith(b"\r\n", at):
                        at += 2
                    if at == size:
                        return
                end = data.find(b"\r\n\r\n", at + self._searched)
                if end < 0:
                    self._incomplete(data[at:] if at else data)
                    return
                self._searched = 0
                if end - at > MAX_HEAD_BYTES:
                    raise _head_too_long()
                end += 4
                raw = data[at:end]
                head = known.get(raw)
                if head is None:
                    head = app.heads.read(raw)
                at = end
                if head.good_until <= app.now and (refusal := app.refusal(head)) is not None:
                    self._line = head.connection
                    if head.body_bytes != 0:
                        # What is left of the body is not worth reading: the connection ends with this answer.
                        self._refuse(refusal, out)
                    else:
                        self.deadline = self._all.idle_until
                        self._say(refusal, out)
                        self._over = not head.keep_alive
                        if self._owed and len(self._owed) >= MAX_OWED:
                            self._hold()
                else:
                    wanted = head.body_bytes
                    if wanted is not None and size - at >= wanted:
                        body = data[at : at + wanted] if wanted else b""
                        at += wanted
                        self._answer(head, body, out)
                    else:
                        self._await_body(head, out, asked=at == size)
                        continue
            turns += 1
            if self._over:
                self._linger = self._linger or at < size
                return
            if turns == TURN_REQUESTS or self._held:
                if at < size:
                    self._turn_over(data[at:])
                return

    def _incomplete(self, data: bytes) -> None:
        """Keep what there is of a head."""
        if len(data) > MAX_HEAD_BYTES:
            raise _head_too_long()
        # A request line that is none is not waited for to end.
        if len(data) > 16 and not data.lstrip(b"\r\n")[:1].isalpha():
            raise HeadRefused(400, "the head of the request is no HTTP/1.1")
        if not self._searched:
            # From the first byte on: who sends a byte now and then gets no more time than others.
            self.deadline = self._all.clock() + self._all.limits.head_seconds
        self._searched = max(len(data) - 3, 1)
        self._kept = data

    def _await_body(self, head: Head[Any], out: list[bytes], *, asked: bool) -> None:
        limit = self._all.limits.body_bytes
        self._head = head
        self._body = Chunks(limit) if head.body_bytes is None else Sized(head.body_bytes)
        self.deadline = self._all.clock() + self._all.limits.body_seconds
        # Not while others are owed: their answers come first.
        if head.expects and asked and not self._owed:
            out.append(CONTINUE)

    def _answer_body(self, out: list[bytes]) -> None:
        head, body = self._head, self._body
        assert head is not None and body is not None
        self._head = self._body = None
        self._all.arriving.remove(len(body.data))
        self._answer(head, bytes(body.data), out)

    def _answer(self, head: Head[Any], body: bytes, out: list[bytes]) -> None:
        connections = self._all
        self.deadline = connections.idle_until
        self._line = head.connection if not connections.ending else CLOSES
        data = self._app.answer(head, body, self._owe)
        if data is not None:
            self._say(data, out)
        if self._line is CLOSES:
            self._over = True
        if self._owed and len(self._owed) >= MAX_OWED:
            self._hold()

    def _turn_over(self, data: bytes) -> None:
        """It is the turn of others: go on with these bytes in the next turn of the loop, or when there is room."""
        self._kept = data
        if not self._held:
            self._turning = True
            self._hold()
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turning = False
        if self._held:
            self._go_on()

    # -------------------------------------------------------------------------------------------- answering
    def _owe(self) -> Owed:
        place = Owed(self, self._line)
        owed = self._owed
        if owed is None:
            owed = self._owed = deque()
        owed.append(place)
        return place

    def _say(self, data: bytes, out: list[bytes]) -> None:
        if self._owed:
            # After those that are still to come.
            self._owe().give(data)
        else:
            out.append(data if not self._line else _saying(self._line, data))

    def flush(self) -> None:
        """Send the answers whose turn it is."""
        owed = self._owed
        if self.closed or not owed:
            return
        data = owed[0].data
        if data is None:
            return
        owed.popleft()
        if owed:
            out = [data]
            while owed and (data := owed[0].data) is not None:
                out.append(data)
                owed.popleft()
            data = b"".join(out)
        self._transport.write(data)
        if not owed:
            # A queue that has been needed is a large one.
            self._owed = None
            if self._over or self._all.ending:
                self._over = True
                self._end_if_done()
                return
            self._wait_anew()
        if self._held:
            self._go_on()

    def _wait_anew(self) -> None:
        """It is the client's turn now."""
        limits = self._all.limits
        if self._body is not None:
            self.deadline = self._all.clock() + limits.body_seconds
        elif self._searched:
            self.deadline = self._all.clock() + limits.head_seconds
        else:
            self.deadline = self._all.idle_until

    # -------------------------------------------------------------------------------------------- ends
    def _refuse(self, data: bytes, out: list[bytes]) -> None:
        """An answer that ends the connection, whatever the client still sends."""
        self._line = CLOSES
        self._say(data, out)
        self._over = True
        self._drop()
        # There may be more to come, and a socket that is closed over unread bytes takes the answer with it.
        self._linger = True

    def _drop(self) -> None:
        """Forget what has been read of a request."""
        if self._body is not None:
            self._all.arriving.remove(len(self._body.data))
        self._kept, self._searched, self._head, self._body = b"", 0, None, None

    def _end_if_done(self) -> None:
        if self._owed:
            return
        if self._linger and not self._eof and self._transport.can_write_eof():
            self._transport.write_eof()
            self.deadline = self._all.clock() + LINGER_SECONDS
            self._resume()
        else:
            self._close()

    def _close(self) -> None:
        self._over = True
        self._drop()
        self._transport.close()
        self.deadline = self._all.clock() + STUCK_SECONDS

    def _ended(self) -> bool:
        """The client has sent all it will. Whether the connection is still needed."""
        out: list[bytes] = []
        if self._body is not None or self._kept:
            what = "the body" if self._body is not None else "the head"
            self._refuse(self._app.error(400, f"the client stopped sending in the middle of {what} of a request"), out)
            for data in out:
                self._transport.write(data)
        self._over = True
        return bool(self._owed)

    def late(self) -> None:
        """What was waited for did not come in time."""
        unsent = self._transport.get_write_buffer_size()
        if unsent and (unsent != self._unsent):
            # A slow reader, but a reader.
            self._unsent = unsent
            self.deadline = self._all.clock() + STUCK_SECONDS
        elif unsent or (self._over and not self._owed):
            self.abort()
        elif self._owed:
            # It is our turn, not the client's.
            self.deadline = self._all.idle_until
        elif self._body is not None:
            self._too_slow(f"the body did not arrive within {self._all.limits.body_seconds:g} seconds")
        elif self._kept:
            self._too_slow(f"the head of the request did not arrive within {self._all.limits.head_seconds:g} seconds")
        else:
            self._close()

    def _too_slow(self, message: str) -> None:
        self._transport.write(_saying(CLOSES, self._app.error(408, message)))
        self._close()

    def end(self) -> None:
        # What is whole already is answered; what is not is not waited for, but for the rest of a body.
        if not self._owed and self._body is None and not (self._held and self._kept):
            self._close()

    def abort(self) -> None:
        self._transport.abort()

    # -------------------------------------------------------------------------------------------- holding back
    def _hold(self) -> None:
        if not self._held and not self.closed:
            self._held = True
            self._transport.pause_reading()

    def _go_on(self) -> None:
        """Read again, unless there is still a reason not to."""
        if self._full or self._turning or self.closed or (self._owed and len(self._owed) >= MAX_OWED // 2):
            return
        self._resume()
        if self._kept:
            data, self._kept = self._kept, b""
            self.data_received(data)
        if self._eof and not (self._held or self._over or self._ended()):
            self._close()

    def _resume(self) -> None:
        if self._held:
            self._held = False
            self._transport.resume_reading()


def _head_too_long() -> HeadRefused:
    return HeadRefused(431, f"the head of the request is longer than {MAX_HEAD_BYTES} bytes")
