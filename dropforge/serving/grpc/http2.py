"""HTTP/2 on sockets, as much of it as gRPC needs: whole messages in, answers out, no more of anything than is bounded.

One object per connection, called by the event loop. A request of one HEADERS and one DATA frame, as nearly all are, costs
two look-ups: a header block that was read before is found by its bytes for as long as the client's table is what it was.
What a client breaks on one stream ends that stream; what leaves the two with different ideas of the connection, and floods,
end the connection, and GOAWAY says why.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from typing import Any

from hpack import Decoder
from hpack.exceptions import HPACKError

from dropforge.domain.errors import Unavailable
from dropforge.serving.grpc import frames
from dropforge.serving.grpc.calls import App, Call
from dropforge.serving.grpc.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEAD_BYTES,
    HEADERS,
    MAX_FRAME,
    MAX_WINDOW,
    PADDED,
    WITH_PRIORITY,
    Broken,
)
from dropforge.serving.grpc.messages import too_large
from dropforge.serving.grpc.sending import MOST_FRAME, Patience, Sending
from dropforge.serving.heads import HeadRefused
from dropforge.serving.http1 import Connections

MAX_CALLS = 1024
MAX_HEADER_BYTES = 32 * 1024
MAX_HEADER_FRAMES = 32
# What a client may send before it hears of room for more: on one call, and on all of a connection.
CALL_WINDOW = 1024**2
CONNECTION_WINDOW = 16 * 1024**2
# Of header blocks that are remembered, as they were read.
KEPT_BYTES = 128 * 1024
# Less data than this in a frame that is not the last is a sliver.
SLIVER_BYTES = 256
EARNED_BY_ANSWER, EARNED_BY_SECOND = 8, 100


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, app: App, connections: Connections) -> None:
        self.closed = False
        self.deadline = 0.0
        self._app = app
        self._all = connections
        self._transport: asyncio.Transport
        self._calls: dict[int, Call] = {}
        self._last = 0
        # Bytes of a frame that is not whole yet.
        self._start = b""
        # Its preface and its settings are there; nothing that comes is read any more.
        self._greeted = False
        self._ready = False
        self._over = False
        self._decoder = Decoder(MAX_HEADER_BYTES)
        self._known: dict[bytes, Any] = {}
        self._known_bytes = 0
        # A header block in several frames: its stream, its flags, and its pieces so far.
        self._block: tuple[int, int, list[bytes]] | None = None
        self._room = CONNECTION_WINDOW
        # Bytes of requests that are not whole, of all calls.
        self._held = 0
        self._patience = Patience()
        self._sending = Sending(self._finished, self._patience)
        self._full = False
        self._backlog = b""
        self._control: dict[int, Callable[[int, int, bytes], None]] = {
            frames.PRIORITY: self._on_priority,
            frames.RST_STREAM: self._on_reset,
            frames.SETTINGS: self._on_settings,
            frames.PUSH_PROMISE: self._on_push,
            frames.PING: self._on_ping,
            frames.GOAWAY: self._on_goaway,
            frames.WINDOW_UPDATE: self._on_window,
            CONTINUATION: self._on_continuation,
        }

    # -------------------------------------------------------------------------------------------- the loop's calls
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        self._all.open.add(self)
        self.deadline = self._all.clock() + self._all.limits.head_seconds
        values = {
            frames.MAX_CONCURRENT_STREAMS: MAX_CALLS,
            frames.INITIAL_WINDOW_SIZE: CALL_WINDOW,
            frames.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
        }
        window = frames.window_update(0, CONNECTION_WINDOW - frames.FIRST_WINDOW)
        self._sending.out.append(frames.settings(values) + window)
        if len(self._all.open) > self._all.limits.connections or self._all.ending:
            self._break(Broken(frames.NO_ERROR, "too many connections; try again"))
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = self._over = True
        self._all.open.discard(self)
        for call in list(self._calls.values()):
            self._forget(call)
        self._sending.out.clear()
        self._start = self._backlog = b""

    def pause_writing(self) -> None:
        self._full = True
        self._sending.progress = time.perf_counter()
        # Who does not read his answers asks no more questions.
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        if not self.closed:
            self._transport.resume_reading()
            backlog, self._backlog = self._backlog, b""
            if backlog:
                self.data_received(backlog)

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        if self._full:
            # uvloop may still hand over what it had read when it was told to pause.
            self._backlog += data
            return
        if self._start:
            data = self._start + data
        try:
            self._start = self._read(data)
        except Broken as error:
            self._break(error)
        self.flush()

    def flush(self) -> None:
        """Send what there is to send."""
        out = self._sending.out
        if out and not self.closed:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        out.clear()
        if (self._over or self._all.ending) and not self._calls and not self.closed:
            self._over = True
            self._transport.close()

    # -------------------------------------------------------------------------------------------- reading
    def _read(self, data: bytes) -> bytes:
        """Take the frames in these bytes; what is left of them is the start of another."""
        at, size = 0, len(data)
        if not self._greeted:
            if data[:24] != frames.PREFACE[:size]:
                raise Broken(frames.PROTOCOL_ERROR, "this port speaks HTTP/2 (gRPC), and the client does not")
            if size < 24:
                return data
            self._greeted, at = True, 24
        unpack, calls = frames.HEAD.unpack_from, self._calls
        while size - at >= HEAD_BYTES:
            word, flags, stream = unpack(data, at)
            start = at + HEAD_BYTES
            kind, stop = word & 255, start + (word >> 8)
            if stop - start > MAX_FRAME:
                raise Broken(frames.FRAME_SIZE_ERROR, f"a frame is larger than {MAX_FRAME} bytes")
            if stop > size:
                break
            at, stream = stop, stream & MAX_WINDOW
            if self._block is not None and (kind != CONTINUATION or stream != self._block[0]):
                raise Broken(frames.PROTOCOL_ERROR, "another frame between those of a header block")
            if kind == DATA:
                call = calls.get(stream)
                if flags == END_STREAM and call is not None and not call.pieces and not call.ended:
                    # One message in one frame. Its bytes are nobody's to hold.
                    self._take_room(call, stop - start)
                    call.ended = True
                    self._app.answer(call, data[start:stop], True)
                else:
                    self._on_data(call, stream, flags, data[start:stop])
            elif kind == HEADERS and self._ready:
                if flags & (END_HEADERS | PADDED | WITH_PRIORITY) == END_HEADERS:
                    self._begin(stream, flags, data[start:stop])
                else:
                    self._on_headers(stream, flags, data[start:stop])
            else:
                self._on_control(kind, flags, stream, data[start:stop])
            if self._over:
                return b""
        return data[at:]

    def _on_headers(self, stream: int, flags: int, payload: bytes) -> None:
        payload = frames.unpadded(flags, payload)
        if flags & WITH_PRIORITY:
            _size(len(payload) >= 5, "a priority has 5 bytes")
            payload = payload[5:]
        if flags & END_HEADERS:
            self._begin(stream, flags, payload)
        else:
            self._block = (stream, flags, [payload])

    def _on_continuation(self, stream: int, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise Broken(frames.PROTOCOL_ERROR, "CONTINUATION of nothing")
        _, first, pieces = self._block
        pieces.append(payload)
        if len(pieces) > MAX_HEADER_FRAMES or sum(map(len, pieces)) > MAX_HEADER_BYTES:
            raise Broken(frames.ENHANCE_YOUR_CALM, f"the headers of a call are longer than {MAX_HEADER_BYTES} bytes")
        if flags & END_HEADERS:
            self._block = None
            self._begin(stream, first, b"".join(pieces))

    def _begin(self, stream: int, flags: int, block: bytes) -> None:
        """A call by its headers, or the end of one by its trailers."""
        head = self._known.get(block)
        if head is None:
            head = self._decoded(block)
        if stream <= self._last or not stream & 1:
            self._end_by_headers(stream, flags)
            return
        self._last = stream
        if self._all.ending:
            # It is above the number that GOAWAY named: the client knows that it may ask elsewhere.
            return
        if len(self._calls) >= MAX_CALLS or self._sending.unsent > self._all.limits.body_bytes:
            self._patience.spend()
            self._sending.out.append(frames.rst_stream(stream, frames.REFUSED_STREAM))
            return
        if not self._calls:
            self.deadline = self._all.clock() + 1.0
        call = self._calls[stream] = Call(self, stream, head, CALL_WINDOW, self._sending.call_window)
        call.ended = bool(flags & END_STREAM)
        if not self._app.refused(call) and call.ended:
            self._app.answer(call, b"", True)

    def _decoded(self, block: bytes) -> Any:
        table = self._decoder.header_table
        entries = table.dynamic_entries
        size, newest = len(entries), entries[0] if entries else None
        try:
            headers = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except HPACKError as error:
            raise Broken(frames.COMPRESSION_ERROR, f"a header block cannot be read: {error}") from error
        head = self._app.head(headers)
        entries = table.dynamic_entries
        if len(entries) != size or (entries and entries[0] is not newest):
            # What is meant by the blocks read so far has changed.
            self._known.clear()
            self._known_bytes = 0
        # One that begins by changing the size of the table has to do so each time.
        elif block and block[0] & 0xE0 != 0x20:
            size = len(block) + sum(len(name) + len(value) + 64 for name, value in headers)
            if self._known_bytes + size > KEPT_BYTES:
                self._known.clear()
                self._known_bytes = 0
            self._known[block] = head
            self._known_bytes += size
        return head

    def _end_by_headers(self, stream: int, flags: int) -> None:
        if not stream & 1:
            raise Broken(frames.PROTOCOL_ERROR, f"a client opens streams of odd numbers, found {stream}")
        call = self._calls.get(stream)
        if call is None or call.ended:
            raise Broken(frames.STREAM_CLOSED, f"headers on stream {stream}, which is closed")
        if flags & END_STREAM:
            self._end(call, b"")
        else:
            self.reset(call, frames.PROTOCOL_ERROR)

    def _on_data(self, call: Call | None, stream: int, flags: int, payload: bytes) -> None:
        _rule(0 < stream <= self._last, f"data on stream {stream}, which is not open")
        size = len(payload)
        self._take_room(call, size)
        if call is None or call.ended:
            # Of a call that was answered or reset while this was under way, or of a client that knows no better.
            self._patience.spend()
            if call is not None:
                self.reset(call, frames.STREAM_CLOSED)
            return
        payload = frames.unpadded(flags, payload)
        if flags & END_STREAM:
            self._end(call, payload)
            return
        if size < SLIVER_BYTES:
            self._patience.spend()
        if call.head.streaming:
            self._app.answer(call, payload, False)
        else:
            self._keep(call, payload)
        if call.room < CALL_WINDOW // 2 and not call.gone:
            self._sending.out.append(frames.window_update(stream, CALL_WINDOW - call.room))
            call.room = CALL_WINDOW

    def _keep(self, call: Call, payload: bytes) -> None:
        """Hold a piece of a message until the rest is there."""
        call.pieces.append(payload)
        call.received += len(payload)
        self._held += len(payload)
        try:
            self._all.arriving.add(len(payload), call.received)
        except HeadRefused as error:
            self._app.fail(call, Unavailable(error.message))
            return
        limit, wanted = self._limit(call), call.received
        if wanted >= 5:
            # The message says how long it is, before it is there.
            if len(call.pieces[0]) < 5:
                call.pieces = [b"".join(call.pieces)]
            wanted = max(wanted, int.from_bytes(call.pieces[0][1:5], "big") + 5)
        if wanted > limit + 5:
            self._app.fail(call, too_large(wanted - 5, limit))
        elif self._held > 2 * self._all.limits.body_bytes:
            self._app.fail(call, Unavailable("too many large messages are arriving on this connection; try again"))

    def _end(self, call: Call, payload: bytes) -> None:
        """The client has sent all it wants to."""
        call.ended = True
        if call.pieces:
            payload = b"".join((*call.pieces, payload))
            self._let_go(call)
        if len(payload) > self._limit(call) + 5:
            self._app.fail(call, too_large(len(payload) - 5, self._limit(call)))
        else:
            self._app.answer(call, payload, True)

    def _limit(self, call: Call) -> int:
        limit: int = min(self._all.limits.body_bytes, call.head.message_bytes)
        return limit

    def _let_go(self, call: Call) -> None:
        """The pieces of its message are held no more."""
        if call.pieces:
            self._held -= call.received
            self._all.arriving.remove(call.received)
            call.pieces = []

    def _take_room(self, call: Call | None, size: int) -> None:
        """Account for data, and tell of room again where half of it is used up: no client can send beyond it. How much of
        a message is held has limits of its own."""
        self._room -= size
        if self._room < CONNECTION_WINDOW // 2:
            self._sending.out.append(frames.window_update(0, CONNECTION_WINDOW - self._room))
            self._room = CONNECTION_WINDOW
        if call is not None:
            call.room -= size

    # -------------------------------------------------------------------------------------------- control
    def _on_control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        _rule(self._ready or kind == frames.SETTINGS, "the first frame of a client is SETTINGS")
        self._patience.spend()
        # Of types that nobody knows yet nothing is asked (RFC 9113, 4.1).
        handler = self._control.get(kind)
        if handler is not None:
            handler(stream, flags, payload)

    def _on_priority(self, stream: int, flags: int, payload: bytes) -> None:
        _rule(stream > 0, "PRIORITY is about a stream")
        _size(len(payload) == 5, "a priority has 5 bytes")

    def _on_reset(self, stream: int, flags: int, payload: bytes) -> None:
        _rule(0 < stream <= self._last, f"RST_STREAM of stream {stream}, which is not open")
        _size(len(payload) == 4, "RST_STREAM has 4 bytes")
        call = self._calls.get(stream)
        if call is not None:
            self._forget(call)

    def _on_settings(self, stream: int, flags: int, payload: bytes) -> None:
        _rule(stream == 0, "SETTINGS are about the connection")
        _size(not payload if flags & ACK else len(payload) % 6 == 0, "a setting has 6 bytes")
        if flags & ACK:
            return
        window = None
        for name, value in struct.iter_unpack(">HI", payload):
            self._patience.spend()
            if name == frames.INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW:
                    raise Broken(frames.FLOW_CONTROL_ERROR, "a window is larger than 2^31-1")
                window = value
            elif name == frames.MAX_FRAME_SIZE:
                _rule(MAX_FRAME <= value < 2**24, "MAX_FRAME_SIZE is from 2^14 to 2^24-1")
                self._sending.frame_bytes = min(value, MOST_FRAME)
            elif name == frames.ENABLE_PUSH:
                _rule(value < 2, "ENABLE_PUSH is 0 or 1")
        if window is not None:
            # Once, however often it is set in this frame: all calls are looked at.
            self._sending.resize(list(self._calls.values()), window)
        self._ready = True
        self._sending.out.append(frames.frame(frames.SETTINGS, ACK, 0))

    def _on_push(self, stream: int, flags: int, payload: bytes) -> None:
        raise Broken(frames.PROTOCOL_ERROR, "a client pushes nothing")

    def _on_ping(self, stream: int, flags: int, payload: bytes) -> None:
        _rule(stream == 0, "PING is about the connection")
        _size(len(payload) == 8, "PING has 8 bytes")
        if not flags & ACK:
            self._sending.out.append(frames.frame(frames.PING, ACK, 0, payload))

    def _on_goaway(self, stream: int, flags: int, payload: bytes) -> None:
        # It opens no more calls; it closes the connection when those that are open have been answered.
        _rule(stream == 0, "GOAWAY is about the connection")

    def _on_window(self, stream: int, flags: int, payload: bytes) -> None:
        _size(len(payload) == 4, "WINDOW_UPDATE has 4 bytes")
        _rule(stream <= self._last, f"WINDOW_UPDATE of stream {stream}, which is not open")
        size = int.from_bytes(payload, "big") & MAX_WINDOW
        if stream == 0:
            _rule(size > 0, "the connection's window grows by 0")
            self._sending.grow(size)
            return
        call = self._calls.get(stream)
        if call is None:
            return
        call.window += size
        if size == 0 or call.window > MAX_WINDOW:
            self.reset(call, frames.PROTOCOL_ERROR if size == 0 else frames.FLOW_CONTROL_ERROR)
        elif stream in self._sending.blocked:
            self._sending.pump(call)

    # -------------------------------------------------------------------------------------------- calls
    def answer(self, call: Call, headers: bytes, message: bytes, trailers: bytes | None) -> None:
        if not call.gone:
            self._sending.answer(call, headers, message, trailers)

    def send(self, call: Call, headers: bytes, message: bytes) -> None:
        if not call.gone:
            self._sending.send(call, headers, message)

    def reset(self, call: Call, code: int) -> None:
        self._sending.out.append(frames.rst_stream(call.id, code))
        self._forget(call)

    def _finished(self, call: Call) -> None:
        if not call.ended:
            # The rest of the request is of no use any more.
            self._sending.out.append(frames.rst_stream(call.id, frames.NO_ERROR))
        self._patience.earn(EARNED_BY_ANSWER)
        self._forget(call)

    def _forget(self, call: Call) -> None:
        call.gone = True
        if self._calls.pop(call.id, None) is None:
            return
        self._let_go(call)
        self._sending.forget(call)
        if not self._calls:
            self.deadline = self._all.clock() + self._all.limits.idle_seconds

    def _break(self, error: Broken) -> None:
        """The connection ends, and so do its calls."""
        for call in list(self._calls.values()):
            self._forget(call)
        self._sending.out.append(frames.goaway(self._last, error.code, error.message))
        self._over = True
        self._start, self._block = b"", None
        self.deadline = self._all.clock() + 1.0

    # -------------------------------------------------------------------------------------------- time
    def late(self) -> None:
        """A second has passed with calls open, or what was waited for did not come in time."""
        now, limits = time.perf_counter(), self._all.limits
        waits = self._full or bool(self._sending.blocked)
        if self._over or (waits and now - self._sending.progress > limits.body_seconds):
            # A reader that slow holds on to answers that others could have the memory of.
            self._transport.abort()
            return
        if not self._calls and not waits:
            self._break(Broken(frames.NO_ERROR, "nothing was asked for a long time"))
        self._patience.earn(EARNED_BY_SECOND)
        for call in list(self._calls.values()):
            self._app.look(call, now)
        self.flush()
        self.deadline = self._all.clock() + 1.0

    def end(self) -> None:
        """No further calls; those that are open are answered."""
        if not self._over:
            self._sending.out.append(frames.goaway(self._last, frames.NO_ERROR, "the server is ending"))
            self.flush()

    def abort(self) -> None:
        self._transport.abort()


def _rule(kept: bool, message: str) -> None:
    if not kept:
        raise Broken(frames.PROTOCOL_ERROR, message)


def _size(right: bool, message: str) -> None:
    if not right:
        raise Broken(frames.FRAME_SIZE_ERROR, message)
