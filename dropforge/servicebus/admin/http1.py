"""A small HTTP/1.1 server for small requests: bounded in size, time and number, answered on the event loop.

Not aiohttp, which the host has: the endpoint is a process of the standard library alone that starts in a tenth of a second,
and what the admin port needs of HTTP fits in this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote

log = logging.getLogger(__name__)

XML = "application/xml; charset=utf-8"
# What the stream hands out at most at once: a head that has no end in it is refused, not collected.
HEAD_BYTES = 16 * 1024
MAX_HEADERS = 64
MAX_FIELDS = 32


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `path` is decoded and without outer slashes; header names are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """One answer."""

    status: int
    body: bytes = b""
    content_type: str = XML
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may ask for, and how many there may be."""

    body_bytes: int = 256 * 1024
    idle_seconds: float = 60.0
    # From the first byte of a request to its last one, and for the client to take the answer.
    request_seconds: float = 10.0
    connections: int = 128


class HttpError(Exception):
    """The request cannot be read; the connection ends with this answer."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class HttpServer:
    """Hands every request to `answer`, which must not block and must not raise."""

    def __init__(
        self,
        answer: Callable[[Request], Response],
        refuse: Callable[[int, str], Response],
        limits: Limits | None = None,
    ) -> None:
        self._answer = answer
        self._refuse = refuse
        self._limits = limits or Limits()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listens; the port that was bound (port 0: any)."""
        self._server = await asyncio.start_server(self._connected, host, port, limit=HEAD_BYTES)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Closes the listener and every connection. The second call does nothing."""
        if self._server is None:
            return
        self._server.close()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) > self._limits.connections:
                await self._write(writer, self._refuse(503, "too many connections; close one"), close=True)
                return
            while await self._one(reader, writer):
                pass
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            # The server stops. Whoever awaits this task is its `gather`; asyncio's own callback on it wants no exception.
            pass
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Reads and answers one request. Whether the connection goes on."""
        try:
            async with asyncio.timeout(self._limits.idle_seconds):
                first = await reader.read(1)
            if not first:
                return False
            async with asyncio.timeout(self._limits.request_seconds):
                request, last = await self._read(first, reader, writer)
        except HttpError as error:
            await self._write(writer, self._refuse(error.status, error.detail), close=True)
            return False
        response = self._answer(request)
        await self._write(writer, response, close=last, body=request.method != "HEAD")
        return not last

    async def _read(
        self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[Request, bool]:
        """The request, and whether it is the connection's last."""
        try:
            head = first + await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            detail = f"the head of the request is longer than {HEAD_BYTES} bytes"
            raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail) from None
        method, target, version, headers = _parse_head(head)
        length = _body_length(headers, self._limits.body_bytes)
        if length and headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(length) if length else b""
        connection = headers.get("connection", "").lower()
        last = "close" in connection or (version == "HTTP/1.0" and "keep-alive" not in connection)
        path, _, asked = target.partition("?")
        try:
            query = dict(parse_qsl(asked, keep_blank_values=True, max_num_fields=MAX_FIELDS))
        except ValueError:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"more than {MAX_FIELDS} fields in the query") from None
        return Request(method, unquote(path, errors="replace").strip("/"), query, headers, body), last

    async def _write(self, writer: asyncio.StreamWriter, response: Response, *, close: bool, body: bool = True) -> None:
        reason = HTTPStatus(response.status).phrase
        lines = [f"HTTP/1.1 {response.status} {reason}", f"Content-Length: {len(response.body)}"]
        if response.body:
            lines.append(f"Content-Type: {response.content_type}")
        lines += [f"{name}: {value}" for name, value in response.headers.items()]
        lines.append(f"Connection: {'close' if close else 'keep-alive'}")
        writer.write("\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + (response.body if body else b""))
        async with asyncio.timeout(self._limits.request_seconds):
            await writer.drain()


def _parse_head(head: bytes) -> tuple[str, str, str, dict[str, str]]:
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    words = first.split(" ")
    good = len(words) == 3 and words[0].isalpha() and words[1].startswith("/")
    if not good or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise HttpError(HTTPStatus.BAD_REQUEST, "the first line is no HTTP/1.1 request line")
    if len(lines) > MAX_HEADERS:
        raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {MAX_HEADERS} headers")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        # A repeated length is how one request is made to look like two.
        if not colon or not name or name != name.strip() or (name == "content-length" and name in headers):
            raise HttpError(HTTPStatus.BAD_REQUEST, "a header that cannot be read")
        headers[name] = value.strip()
    return words[0].upper(), words[1], words[2], headers


def _body_length(headers: Mapping[str, str], most: int) -> int:
    if "transfer-encoding" in headers:
        raise HttpError(HTTPStatus.LENGTH_REQUIRED, "send the body with a Content-Length, not in chunks")
    told = headers.get("content-length", "0")
    if not (told.isascii() and told.isdigit()):
        raise HttpError(HTTPStatus.BAD_REQUEST, f"Content-Length {told[:20]!r} is no number of bytes")
    if len(told) > 12 or int(told) > most:
        raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body of more than {most} bytes")
    return int(told)
