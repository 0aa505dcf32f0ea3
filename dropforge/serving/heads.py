"""The head of an HTTP/1.1 request: request line and headers, read strictly, and remembered.

Clients send the same head again and again. A head that was read before is found by its bytes, which costs a twentieth of
reading it; what is remembered is bounded, and holds nothing that depends on time.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar
from urllib.parse import unquote

import httptools

MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
# Heads above this are rare and unlike each other (tokens, traces): they are read each time.
KEPT_HEAD_BYTES = 4096
KEPT_HEADS = 2048

# What an answer says of the connection: nothing, where both sides take the same for granted.
SILENT = b""
CLOSES = b"Connection: close\r\n"
STAYS = b"Connection: keep-alive\r\n"

# Of these a second one is a way to be understood differently by two readers.
_ONCE = frozenset((b"content-length", b"transfer-encoding", b"host", b"authorization"))

R = TypeVar("R")


class HeadRefused(Exception):
    """A head that no request can begin with: the status and the reason to answer with, before the connection ends."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Head(Generic[R]):
    """One request's head. `parts`: the path between its slashes, decoded, so that an encoded slash parts nothing.
    `connection`: the header that an answer must have for both sides to agree whether the connection goes on. `route` is
    what the server made of it, once. `body_bytes` is the length of the body that follows; None when it comes in chunks.
    `good_until`: as long as the server's `now` is before that, nothing in the head condemns the request."""

    __slots__ = (
        "body_bytes",
        "connection",
        "expects",
        "good_until",
        "headers",
        "keep_alive",
        "method",
        "parts",
        "path",
        "query",
        "route",
    )

    def __init__(self, method: str, target: bytes, headers: dict[bytes, bytes], old: bool) -> None:
        self.method = method
        self.path, _, self.query = target.decode("ascii", "replace").partition("?")
        parts = self.path.rstrip("/").split("/")[1:]
        self.parts = [unquote(part, errors="replace") for part in parts] if "%" in self.path else parts
        self.headers = headers
        options = {each.strip() for each in headers.get(b"connection", b"").lower().split(b",")}
        self.keep_alive = b"close" not in options and (not old or b"keep-alive" in options)
        self.connection = CLOSES if not self.keep_alive else STAYS if old else SILENT
        self.expects = not old and headers.get(b"expect", b"").lower() == b"100-continue"
        self.body_bytes = _body_bytes(headers, old)
        self.good_until = -inf
        self.route: R

    def header(self, name: str) -> str | None:
        """A header's value, by its name in lower case."""
        value = self.headers.get(name.encode())
        return None if value is None else value.decode("latin-1")


class Heads(Generic[R]):
    """Reads heads; `route` is asked once for each that is new. `known`: those that were read before, by their bytes."""

    def __init__(self, route: Callable[[Head[R]], R]) -> None:
        self._route = route
        self.known: dict[bytes, Head[R]] = {}

    def read(self, raw: bytes) -> Head[R]:
        """The head in these bytes, its last empty line included. Raises `HeadRefused`."""
        head: Head[R] | None = self.known.get(raw)
        if head is not None:
            return head
        head = _read(raw)
        head.route = self._route(head)
        if len(raw) <= KEPT_HEAD_BYTES:
            if len(self.known) >= KEPT_HEADS:
                # All at once: which of them are still in use is found out in no time.
                self.known.clear()
            self.known[raw] = head
        return head


class _Collector:
    """What the parser tells."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.count = 0
        self.done = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.count += 1
        if self.count > MAX_HEADERS:
            raise HeadRefused(431, f"more than {MAX_HEADERS} headers; send fewer")
        name, value = name.lower(), value.strip(b" \t")
        if name in self.headers:
            if name in _ONCE:
                raise HeadRefused(400, f"header {name.decode('latin-1')!r} is there twice; send it once")
            value = self.headers[name] + b", " + value
        self.headers[name] = value

    def on_headers_complete(self) -> None:
        self.done = True


def _read(raw: bytes) -> Head[R]:
    line = raw.lstrip(b"\r\n").partition(b"\r\n")[0]
    if not line.endswith((b" HTTP/1.1", b" HTTP/1.0")):
        found = line.rpartition(b" ")[2][:20]
        if found.startswith(b"HTTP/"):
            raise HeadRefused(505, f"{found.decode('latin-1')} is not spoken here; use HTTP/1.1")
        raise HeadRefused(400, "the head of the request is no HTTP/1.1: wanted `METHOD /path HTTP/1.1` and headers")
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        # An offer to speak something else, which need not be taken (RFC 9110, 7.8); a tunnel is no offer.
        if parser.get_method() == b"CONNECT":
            raise HeadRefused(405, "this server is no proxy") from None
    except httptools.HttpParserCallbackError as error:
        if isinstance(error.__context__, HeadRefused):
            raise error.__context__ from None
        raise HeadRefused(400, "the head of the request cannot be read") from error
    except httptools.HttpParserError as error:
        raise HeadRefused(400, f"the head of the request is no HTTP/1.1: {error}") from None
    if not collector.done:
        raise HeadRefused(400, "the head of the request is no HTTP/1.1: wanted `METHOD /path HTTP/1.1` and headers")
    old, method = line.endswith(b"0"), parser.get_method().decode()
    if not old and b"host" not in collector.headers:
        raise HeadRefused(400, "the header `Host` is missing, which HTTP/1.1 wants")
    return Head(method, _origin(method, collector.target), collector.headers, old)


def _origin(method: str, target: bytes) -> bytes:
    """The path of a target, which may name the server as well (RFC 9112, 3.2.2)."""
    scheme, found, rest = target.partition(b"://")
    if found and scheme.lower() in (b"http", b"https"):
        target = b"/" + rest.partition(b"/")[2]
    if not target.startswith(b"/") and (method, target) != ("OPTIONS", b"*"):
        raise HeadRefused(400, f"the target {target[:80].decode('latin-1')!r} is no path; it must start with /")
    return target


def _body_bytes(headers: dict[bytes, bytes], old: bool) -> int | None:
    coding, length = headers.get(b"transfer-encoding"), headers.get(b"content-length")
    if coding is not None:
        if coding.strip().lower() != b"chunked" or length is not None or old:
            # Two readers may choose differently, which is how requests are smuggled (RFC 9112, 6.1 and 6.3).
            raise HeadRefused(
                400,
                "a body has either `Content-Length` or, from HTTP/1.1 on, `Transfer-Encoding: chunked`, and no other coding",
            )
        return None
    if length is None:
        return 0
    if not length.isdigit() or len(length) > 18:
        raise HeadRefused(400, "`Content-Length` must be a whole number of bytes")
    return int(length)
