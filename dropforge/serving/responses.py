"""HTTP answers as bytes."""

from __future__ import annotations

import msgspec

JSON = "application/json"
BINARY = "application/octet-stream"
TEXT = "text/plain; version=0.0.4; charset=utf-8"

_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}


def to_json(value: object) -> bytes:
    return msgspec.json.encode(value)


def response(status: int, body: bytes, content_type: str = JSON, headers: dict[str, str] | None = None) -> bytes:
    """A whole answer."""
    return b"%bContent-Length: %d\r\n\r\n%b" % (head_of(status, content_type, headers or {}), len(body), body)


def head_of(status: int, content_type: str, headers: dict[str, str]) -> bytes:
    """An answer's head, but for the length of its body and the empty line at its end."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}", f"Content-Type: {content_type}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1", "replace")


def bodiless(data: bytes) -> bytes:
    """The answer to a HEAD: what a GET is answered with, without its body."""
    return data[: data.find(b"\r\n\r\n") + 4]
