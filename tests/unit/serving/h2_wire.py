"""A client of HTTP/2 made by hand: frames in, frames out, nothing decided for the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hpack import Decoder

from dropforge.serving.grpc import frames
from dropforge.serving.grpc.calls import App
from dropforge.serving.grpc.http2 import Connection
from dropforge.serving.http1 import Connections, Limits

PATH = "/inference.GRPCInferenceService/ModelInfer"


def named(path: str = PATH, **more: str) -> list[tuple[str, str]]:
    """The headers of a call."""
    plain = [(":method", "POST"), (":scheme", "http"), (":path", path), ("te", "trailers")]
    return [*plain, ("content-type", "application/grpc"), *((k.replace("_", "-"), v) for k, v in more.items())]


def asks(stream: int, message: bytes, path: str = PATH, **more: str) -> bytes:
    """HEADERS and DATA of one call."""
    block = frames.block(named(path, **more))
    head = frames.frame(frames.HEADERS, frames.END_HEADERS, stream, block)
    return head + frames.frame(frames.DATA, frames.END_STREAM, stream, message)


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """Of RST_STREAM and GOAWAY."""
        return int.from_bytes(self.payload[:4] if self.kind == frames.RST_STREAM else self.payload[4:8], "big")


def split(data: bytes) -> Iterator[Frame]:
    at = 0
    while at < len(data):
        word, flags, stream = frames.HEAD.unpack_from(data, at)
        end = at + frames.HEAD_BYTES + (word >> 8)
        assert end <= len(data), "half a frame was written"
        yield Frame(word & 255, flags, stream, data[at + frames.HEAD_BYTES : end])
        at = end


@dataclass
class Answer:
    """What came on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    ended: bool = False

    @property
    def status(self) -> int:
        return int(self.headers["grpc-status"])

    @property
    def message(self) -> str:
        return self.headers.get("grpc-message", "")


class Reader:
    """Puts the frames of a server together, and keeps its rules in mind."""

    def __init__(self) -> None:
        self.answers: dict[int, Answer] = {}
        self.others: list[Frame] = []
        self._decoder = Decoder()

    def feed(self, data: bytes) -> None:
        for each in split(data):
            if each.kind == frames.HEADERS:
                answer = self.answers.setdefault(each.stream, Answer())
                assert not answer.ended
                answer.headers |= dict(self._decoder.decode(each.payload))
            elif each.kind == frames.DATA:
                answer = self.answers[each.stream]
                answer.data += each.payload
            else:
                self.others.append(each)
                continue
            answer.ended = bool(each.flags & frames.END_STREAM)

    def of(self, kind: int) -> list[Frame]:
        return [each for each in self.others if each.kind == kind]


class Transport:
    """What a connection writes to."""

    def __init__(self) -> None:
        self.reader = Reader()
        self.closed = self.aborted = self.paused = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.reader.feed(data)

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Client:
    """One connection and both its ends, without a socket. `wide`: it takes any number of bytes; `among`: others."""

    def __init__(
        self,
        app: App | Callable[[], Connection],
        limits: Limits | None = None,
        *,
        wide: bool = True,
        among: Connections | None = None,
    ) -> None:
        self.clock = Clock()
        self.connections = among or Connections(limits or Limits(), clock=self.clock)
        self.transport = Transport()
        self.connection = Connection(app, self.connections)  # type: ignore[arg-type]
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]
        values = {frames.INITIAL_WINDOW_SIZE: frames.MAX_WINDOW} if wide else {}
        self.feed(frames.PREFACE + frames.settings(values))
        if wide:
            self.feed(frames.window_update(0, frames.MAX_WINDOW - frames.FIRST_WINDOW))

    def feed(self, data: bytes) -> None:
        if not self.transport.closed:
            self.connection.data_received(data)

    def frame(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        self.feed(frames.frame(kind, flags, stream, payload))

    @property
    def answers(self) -> dict[int, Answer]:
        return self.transport.reader.answers

    def of(self, kind: int) -> list[Frame]:
        return self.transport.reader.of(kind)

    @property
    def goodbye(self) -> Frame | None:
        return next(iter(self.of(frames.GOAWAY)), None)

    def resets(self) -> dict[int, int]:
        return {each.stream: each.code for each in self.of(frames.RST_STREAM)}

    def passes(self, seconds: float) -> None:
        self.clock.now += seconds
        self.connections.sweep()


class Echo:
    """An app that answers each call with what it was sent; `later` keeps the calls for the test to answer."""

    def __init__(self, *, later: bool = False, answer: bytes | None = None) -> None:
        self.heads: list[list[tuple[bytes, bytes]]] = []
        self.calls: list[Any] = []
        self.errors: list[Exception] = []
        self.looked = 0
        self._later = later
        self._answer = answer

    class Head:
        streaming = False
        message_bytes = 2**31

    def head(self, headers: list[tuple[bytes, bytes]]) -> Head:
        self.heads.append(headers)
        return self.Head()

    def refused(self, call: Any) -> bool:
        return False

    def answer(self, call: Any, data: bytes, ended: bool) -> None:
        self.calls.append((call, data))
        if not self._later:
            self.reply(call, data if self._answer is None else self._answer)

    def reply(self, call: Any, data: bytes) -> None:
        call.connection.answer(call, frames.STATUS_200, data, frames.block([("grpc-status", "0")]))

    def look(self, call: Any, now: float) -> None:
        self.looked += 1

    def fail(self, call: Any, error: Exception) -> None:
        self.errors.append(error)
        call.fail(frames.STATUS_200 + frames.block([("grpc-status", "8")]))
