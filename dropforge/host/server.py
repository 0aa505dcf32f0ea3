"""The HTTP server: one listener for functions, webhooks and the admin API."""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import socket
import uuid
from collections.abc import Iterable, Mapping

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from dropforge.host.errors import PortInUse
from dropforge.host.local_settings import Cors
from dropforge.host.requests import MAX_BODY_BYTES, ask_for_body

_log = logging.getLogger(__name__)

_BACKLOG = 512


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that holds the port; whoever connects waits until the server answers. Port 0 takes a free one.

    Raises `PortInUse`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A port of a host that was just killed is free again, although its connections linger.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} on {host} is in use by another program; stop it, or choose another port"
            ) from error
        raise PortInUse(f"cannot listen on {host}, port {port}: {error.strerror}") from error
    except OverflowError as error:
        listener.close()
        raise PortInUse(f"cannot listen on {host}, port {port}: {error}; choose another port") from error
    return listener


class Server:
    """Listens on one socket. While it drains, only paths that running work needs are answered."""

    def __init__(
        self,
        listener: socket.socket,
        routes: Iterable[web.AbstractRouteDef],
        cors: Cors = Cors(),  # noqa: B008 - frozen
        headers: Mapping[str, str] | None = None,
        open_while_draining: str | None = None,
    ) -> None:
        self._listener = listener
        self._draining = False
        self._open_while_draining = open_while_draining
        application = web.Application(
            client_max_size=MAX_BODY_BYTES,
            middlewares=[_failures, self._drain, _not_too_large, _cross_origin(cors), _more_headers(headers or {})],
        )
        application.add_routes([_expecting(route) for route in routes])
        # What a function still does after its client has gone must not be cut off.
        self._runner = web.AppRunner(
            application, access_log=None, handler_cancellation=False, handle_signals=False, shutdown_timeout=0.5
        )

    async def start(self) -> None:
        """Answer from now on."""
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener, backlog=_BACKLOG).start()

    def drain(self) -> None:
        """Refuse new work from outside (503) from now on."""
        self._draining = True

    async def stop(self) -> None:
        """Stop listening and close every connection."""
        await self._runner.cleanup()
        self._listener.close()

    @property
    def _drain(self) -> Middleware:
        @web.middleware
        async def drain(request: web.Request, handler: Handler) -> web.StreamResponse:
            if self._draining and not self._needed(request):
                response = web.Response(status=503, text="the host is stopping\n", headers={"Retry-After": "5"})
                response.force_close()
                return response
            return await handler(request)

        return drain

    def _needed(self, request: web.Request) -> bool:
        return self._open_while_draining is not None and request.path.startswith(self._open_while_draining)


def _expecting(route: web.AbstractRouteDef) -> web.AbstractRouteDef:
    """The route with an answer to `Expect: 100-continue`, unless it has one of its own."""
    if not isinstance(route, web.RouteDef) or "expect_handler" in route.kwargs:
        return route
    return web.route(route.method, route.path, route.handler, expect_handler=_expect, **route.kwargs)


async def _expect(request: web.Request) -> None:
    """Ask for the body, unless it will be refused."""
    if (request.content_length or 0) <= MAX_BODY_BYTES:
        await ask_for_body(request)


@web.middleware
async def _failures(request: web.Request, handler: Handler) -> web.StreamResponse:
    """No traceback leaves the server, and no key enters a log line by way of a path."""
    try:
        return await handler(request)
    except web.HTTPException as refusal:
        if refusal.status == 413:
            refusal.force_close()
        raise
    except asyncio.CancelledError:
        raise
    except ConnectionResetError:
        # The client has gone; nobody reads the answer.
        return web.Response(status=499)
    except Exception as error:  # noqa: BLE001 - the last stop before the client
        number = str(uuid.uuid4())
        _log.error("%s %s failed (%s)", request.method, request.rel_url.raw_path, number, exc_info=error)
        return web.json_response({"error": "the host failed; its log says why", "id": number}, status=500)


@web.middleware
async def _not_too_large(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A body that is announced as too large is refused before any of it is read."""
    if (request.content_length or 0) > MAX_BODY_BYTES:
        response = web.Response(status=413, text=f"a body may have {MAX_BODY_BYTES} bytes at most\n")
        response.force_close()
        return response
    return await handler(request)


def _cross_origin(cors: Cors) -> Middleware:
    """CORS as the Core Tools do it: a preflight is answered before any function sees it."""

    @web.middleware
    async def cross_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
        allowed = cors.allowed_origin(request.headers.get("Origin"))
        if allowed is None:
            return await handler(request)
        preflight = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        try:
            response = web.Response(status=204) if preflight else await handler(request)
        except web.HTTPException as refusal:
            _allow(refusal, allowed, cors)
            raise
        if preflight:
            response.headers["Access-Control-Allow-Methods"] = request.headers["Access-Control-Request-Method"]
            if (wanted := request.headers.get("Access-Control-Request-Headers")) is not None:
                response.headers["Access-Control-Allow-Headers"] = wanted
        _allow(response, allowed, cors)
        return response

    return cross_origin


def _allow(response: web.StreamResponse, origin: str, cors: Cors) -> None:
    response.headers.setdefault("Access-Control-Allow-Origin", origin)
    if origin != "*":
        response.headers.add("Vary", "Origin")
    if cors.credentials:
        response.headers["Access-Control-Allow-Credentials"] = "true"


def _more_headers(headers: Mapping[str, str]) -> Middleware:
    """`extensions.http.customHeaders` of host.json."""
    for name, value in headers.items():
        if not isinstance(value, str) or re.search(r"[\r\n]", f"{name}{value}"):
            _log.warning("host.json: customHeaders.%s must be a string of one line; it is left out", name)
    usable = {n: v for n, v in headers.items() if isinstance(v, str) and not re.search(r"[\r\n]", f"{n}{v}")}

    @web.middleware
    async def more_headers(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if not response.prepared:
            for name, value in usable.items():
                response.headers.setdefault(name, value)
        return response

    return more_headers
