"""A connection without a socket: what the loop would call is called by the test, what would be sent is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from dropforge.serving.heads import Head, Heads
from dropforge.serving.http1 import Connection, Connections, Limits, Owed
from dropforge.serving.responses import response


@dataclass(frozen=True)
class Said:
    """One answer as a client reads it."""

    status: int
    headers: dict[str, str]
    body: bytes


def read_answers(data: bytes) -> list[Said]:
    """All answers in a stream of them; whatever is left over fails."""
    found: list[Said] = []
    while data:
        head, end, rest = data.partition(b"\r\n\r\n")
        assert end, data
        line, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
        size = int(headers.get("content-length", "0"))
        assert len(rest) >= size, data
        found.append(Said(int(line.split(" ")[1]), headers, rest[:size]))
        data = rest[size:]
    return found


class Wire(asyncio.Transport):
    """The transport. While `stuck`, the client reads nothing."""

    HIGH_WATER = 64 * 1024

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.unsent = 0
        self.stuck = self.closed = self.aborted = self.ended = False
        self.reading = True
        self.protocol: Connection

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.closed or self.aborted or self.ended:
            return
        self.sent += data
        if self.stuck:
            before, self.unsent = self.unsent, self.unsent + len(data)
            if before <= self.HIGH_WATER < self.unsent:
                self.protocol.pause_writing()

    def unstick(self) -> None:
        self.stuck, full, self.unsent = False, self.unsent > self.HIGH_WATER, 0
        if full:
            self.protocol.resume_writing()
        if self.closed:
            self._lose()

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True
        if not self.unsent:
            self._lose()

    def abort(self) -> None:
        self.aborted = self.closed = True
        self._lose()

    def _lose(self) -> None:
        if not self.protocol.closed:
            self.protocol.connection_lost(None)


@dataclass
class Echo:
    """Answers `/now` at once, `/later` when told, with what was asked; nothing else is there."""

    body_bytes: int = 100_000
    heads: Heads[None] = field(init=False)
    now: float = 0.0
    asked: list[bytes] = field(default_factory=list)
    later: list[tuple[Owed, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.heads = Heads(self._route)

    def _route(self, head: Head[None]) -> None:
        # Of some it is known from their heads on that nothing condemns them.
        if head.parts[:1] == ["now"] and (head.body_bytes or 0) <= self.body_bytes:
            head.good_until = 1.0

    def refusal(self, head: Head[None]) -> bytes | None:
        if head.parts[:1] not in (["now"], ["later"]):
            return self.error(404, "no such route")
        if (head.body_bytes or 0) > self.body_bytes:
            return self.error(413, "too large")
        return None

    def answer(self, head: Head[None], body: bytes, owe: Callable[[], Owed]) -> bytes | None:
        said = response(200, b"%b %b %b" % (head.method.encode(), "/".join(head.parts).encode(), body))
        self.asked.append(said)
        if head.parts[0] == "now":
            return said
        self.later.append((owe(), said))
        return None

    def error(self, status: int, message: str) -> bytes:
        return response(status, message.encode())

    def give_all(self) -> None:
        """The answers that are owed, the last one first."""
        while self.later:
            place, said = self.later.pop()
            place.give(said)
            place.connection.flush()


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class Dialogue:
    """One connection to an `Echo`, from the client's side."""

    def __init__(self, limits: Limits | None = None, app: Echo | None = None, among: Connections | None = None) -> None:
        self.app = app or Echo()
        self.clock = Clock()
        self.all = among or Connections(limits or Limits(body_bytes=self.app.body_bytes), self.clock)
        self.wire = Wire()
        self.connection = self.wire.protocol = Connection(self.app, self.all)
        self.connection.connection_made(self.wire)

    def send(self, *pieces: bytes) -> Dialogue:
        for piece in pieces:
            if not self.connection.closed:
                self.connection.data_received(piece)
        return self

    def end(self) -> Dialogue:
        """The client sends no more, as the loop tells it."""
        if not self.connection.eof_received():
            self.wire.close()
        return self

    def wait(self, seconds: float) -> Dialogue:
        """Time passes, and is looked at once a second."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.now += 1.0
            self.all.sweep()
        return self

    @property
    def answers(self) -> list[Said]:
        return read_answers(bytes(self.wire.sent))

    @property
    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers]

    @property
    def is_open(self) -> bool:
        return not (self.wire.closed or self.wire.ended)


def get(path: str = "/now", *headers: str, version: str = "1.1") -> bytes:
    return post(path, None, *headers, version=version, method="GET")


def post(path: str, body: bytes | None, *headers: str, version: str = "1.1", method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: x", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + (body or b"")


def chunked(path: str, *chunks: bytes, extension: str = "") -> bytes:
    head = post(path, None, "Transfer-Encoding: chunked")
    parts = [b"%x%b\r\n%b\r\n" % (len(chunk), extension.encode(), chunk) for chunk in chunks]
    return b"".join((head, *parts, b"0\r\n\r\n"))
