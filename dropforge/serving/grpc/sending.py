"""Answers on their way out of a connection: as frames, and no more of them than the client has room for."""

from __future__ import annotations

import time
from collections.abc import Callable

from dropforge.serving.grpc import frames
from dropforge.serving.grpc.calls import NOTHING, Call
from dropforge.serving.grpc.frames import DATA, END_HEADERS, END_STREAM, HEADERS, MAX_FRAME, MAX_WINDOW, Broken

# Larger frames than this bring nothing.
MOST_FRAME = 256 * 1024


class Patience:
    """Frames that cost something and bring nothing (pings, resets, settings, slivers of data) are paid for from this.
    Answers and time earn it back; who has none left floods."""

    START, MOST = 1_000, 10_000

    def __init__(self) -> None:
        self.left = self.START

    def spend(self) -> None:
        """Raises `Broken`."""
        self.left -= 1
        if self.left < 0:
            raise Broken(frames.ENHANCE_YOUR_CALM, "too many frames that ask for nothing")

    def earn(self, much: int) -> None:
        if self.left < self.MOST:
            self.left += much


class Sending:
    """What goes out on one connection. `finished` is told of a call whose answer is all out."""

    def __init__(self, finished: Callable[[Call], None], patience: Patience) -> None:
        self.out: list[bytes] = []
        # Bytes of answers that the client has no room for yet, and since when it takes none of them.
        self.unsent = 0
        self.progress = 0.0
        self.blocked: dict[int, Call] = {}
        # What the client takes: on all calls together, on a new one, in a frame.
        self.window = self.call_window = frames.FIRST_WINDOW
        self.frame_bytes = MAX_FRAME
        self._finished = finished
        self._patience = patience

    def answer(self, call: Call, headers: bytes, message: bytes, trailers: bytes | None) -> None:
        size = len(message)
        if trailers is None or call.started:
            if trailers is None:
                call.trailers = headers
            else:
                call.trailers = trailers
                self.send(call, headers, message)
            if not call.rest and not call.gone:
                self._finish(call)
            return
        if size <= self.window and size <= call.window and size <= self.frame_bytes:
            self.window -= size
            number = call.id.to_bytes(4, "big")
            # One HEADERS frame, one DATA frame, and the HEADERS that end the stream.
            parts = (
                len(headers).to_bytes(3, "big"),
                b"\x01\x04",
                number,
                headers,
                size.to_bytes(3, "big"),
                b"\0\0",
                number,
                message,
                len(trailers).to_bytes(3, "big"),
                b"\x01\x05",
                number,
                trailers,
            )
            self.out.append(b"".join(parts))
            self._finished(call)
            return
        call.trailers = trailers
        self.send(call, headers, message)

    def send(self, call: Call, headers: bytes, message: bytes) -> None:
        if not call.started:
            call.started = True
            self.out.append(frames.frame(HEADERS, END_HEADERS, call.id, headers))
        call.rest = memoryview(bytes(call.rest) + message if call.rest else message)
        self.unsent += len(message)
        if not self.blocked:
            self.progress = time.perf_counter()
        self.blocked[call.id] = call
        self.pump(call)

    def pump(self, call: Call) -> None:
        """As much of the call's answer as there is room for."""
        rest, at = call.rest, 0
        while at < len(rest):
            size = min(len(rest) - at, self.window, call.window, self.frame_bytes)
            if size <= 0:
                break
            self.out.append(frames.HEAD.pack(size << 8 | DATA, 0, call.id) + rest[at : at + size])
            self.window -= size
            call.window -= size
            at += size
            # A client tells of each that there is room again, for the call and for the connection.
            self._patience.earn(2)
        if at:
            self.progress = time.perf_counter()
            self.unsent -= at
            call.rest = rest[at:]
        if not call.rest:
            self.blocked.pop(call.id, None)
            if call.trailers is not None:
                self._finish(call)

    def forget(self, call: Call) -> None:
        """What is left of the call's answer is for nobody."""
        if self.blocked.pop(call.id, None) is not None:
            self.unsent -= len(call.rest)
            call.rest = NOTHING

    def grow(self, size: int) -> None:
        """The client takes so many more bytes. Raises `Broken`."""
        self.window += size
        if self.window > MAX_WINDOW:
            raise Broken(frames.FLOW_CONTROL_ERROR, "the connection's window is larger than 2^31-1")
        self._go_on()

    def resize(self, calls: list[Call], size: int) -> None:
        """The client takes so many bytes on each call (RFC 9113, 6.9.2). Raises `Broken`."""
        for call in calls:
            call.window += size - self.call_window
            if call.window > MAX_WINDOW:
                raise Broken(frames.FLOW_CONTROL_ERROR, "a window is larger than 2^31-1")
        self.call_window = size
        self._go_on()

    def _go_on(self) -> None:
        for call in list(self.blocked.values()):
            if self.window <= 0:
                break
            self.pump(call)

    def _finish(self, call: Call) -> None:
        assert call.trailers is not None
        self.out.append(frames.frame(HEADERS, END_HEADERS | END_STREAM, call.id, call.trailers))
        self._finished(call)
