"""One call of a gRPC client, and what the connection and the service want of each other."""

from __future__ import annotations

import time
from typing import Any, Protocol

Headers = list[tuple[bytes, bytes]]

NOTHING = memoryview(b"")


class Head(Protocol):
    """What the app made of a call's headers. `streaming`: it is handed what comes as it comes, not all at the end;
    `message_bytes`: what comes otherwise is no longer than that."""

    streaming: bool
    message_bytes: int


class App(Protocol):
    """What answers calls. None of this raises."""

    def head(self, headers: Headers) -> Any:
        """A `Head`; asked for once for a header block, however often it is sent."""

    def refused(self, call: Call) -> bool:
        """Whether the head alone condemned the call; then it has been answered."""

    def answer(self, call: Call, data: bytes, ended: bool) -> None:
        """All that was sent on a call; for one that streams, what came now. The answer is given at once or later."""

    def look(self, call: Call, now: float) -> None:
        """Called once a second for every call that is not answered: it may be late, or watch something."""

    def fail(self, call: Call, error: Exception) -> None:
        """What the call sends cannot be taken; it must be answered."""


class Line(Protocol):
    """The connection of a call."""

    def answer(self, call: Call, headers: bytes, message: bytes, trailers: bytes | None) -> None:
        """All of an answer. Without trailers it is its headers alone, or, where some of it is out already, they end it."""

    def send(self, call: Call, headers: bytes, message: bytes) -> None:
        """One message of an answer that goes on, behind its headers if it is the first."""

    def reset(self, call: Call, code: int) -> None:
        """No answer: the client broke the rules on this stream."""

    def flush(self) -> None:
        """Send what was answered, once for many."""


class Call:
    """One request, and the place its answer goes to."""

    __slots__ = (
        "began",
        "connection",
        "ended",
        "failure",
        "gone",
        "head",
        "id",
        "pieces",
        "received",
        "rest",
        "room",
        "started",
        "state",
        "trailers",
        "window",
    )

    def __init__(self, connection: Line, number: int, head: Any, room: int, window: int) -> None:
        self.connection = connection
        self.id = number
        self.head = head
        self.began = time.perf_counter()
        # Answered, reset, or its connection lost: whatever is computed for it is for nobody.
        self.gone = False
        # The client has sent all it wants to.
        self.ended = False
        self.pieces: list[bytes] = []
        self.received = 0
        # Bytes that the client may still send, and that it still takes.
        self.room = room
        self.window = window
        # Of an answer under way: what the client has no room for yet, and the headers that end it.
        self.started = False
        self.rest = NOTHING
        self.trailers: bytes | None = None
        # The headers of an answer that failed, for `give`; of one that did not, before and after its message.
        self.failure: bytes | None = None
        self.state: Any = None

    def give(self, data: bytes) -> None:
        """The message of the answer, unless it failed."""
        if self.failure is not None:
            self.fail(self.failure)
        else:
            headers, trailers = self.state
            self.connection.answer(self, headers, data, trailers)

    def fail(self, headers: bytes) -> None:
        """An answer of headers alone, or those that end one."""
        self.connection.answer(self, headers, b"", None)
