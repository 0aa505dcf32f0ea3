"""What every door of the server does with a request: the key it brings, the body it may have."""

from __future__ import annotations

from aiohttp import web

# Azure's own limit for a request.
MAX_BODY_BYTES = 100 * 1024 * 1024


def key_of(request: web.Request) -> str | None:
    """The key that a request brings: in the header, or else in the query. An empty one is none."""
    return request.headers.get("x-functions-key") or request.query.get("code") or None


def unauthorized() -> web.Response:
    """The answer to a missing or wrong key. It closes the connection, so that a body need not be read first."""
    response = web.Response(status=401)
    response.force_close()
    return response


async def expect_later(request: web.Request) -> None:
    """Leaves `Expect: 100-continue` unanswered until `read_body`: a refused client then never sends its body."""


async def read_body(request: web.Request) -> bytes:
    """The whole body. Raises `web.HTTPRequestEntityTooLarge` as soon as it passes the limit."""
    await ask_for_body(request)
    return await request.read()


async def ask_for_body(request: web.Request) -> None:
    """Answer `Expect: 100-continue`, if the client waits for that."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
