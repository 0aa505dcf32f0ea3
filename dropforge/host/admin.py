"""The admin API: the state of the host, its functions, and calling one by hand. The master key opens it."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from aiohttp import web

from dropforge.host.app import App, AppFunction
from dropforge.host.invocation import Call, Invocations
from dropforge.host.keys import Keys
from dropforge.host.requests import expect_later, key_of, read_body, unauthorized
from dropforge.host.tasks import Tasks

_log = logging.getLogger(__name__)

# How a function of a trigger type is called by hand; raises `ValueError` with the reason why not.
ByHand = Callable[[AppFunction, str], Call]
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Admin:
    """`/admin/...`, as far as Azure documents it."""

    def __init__(
        self, app: App, invocations: Invocations, keys: Keys, by_hand: Mapping[str, ByHand], host_id: str, url: str
    ) -> None:
        self._app = app
        self._invocations = invocations
        self._keys = keys
        self._by_hand = by_hand
        self._host_id = host_id
        self._url = url
        self._started = time.monotonic()
        self._calls = Tasks()

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        return [
            web.get("/admin/host/status", self._guarded(self._status)),
            web.get("/admin/functions", self._guarded(self._functions)),
            web.get("/admin/functions/{name}", self._guarded(self._function)),
            web.post("/admin/functions/{name}", self._guarded(self._call), expect_handler=expect_later),
            # Nothing below /admin is for users, so a path that does not exist asks for the key too.
            web.route("*", "/admin/{rest:.*}", self._guarded(self._nothing), expect_handler=expect_later),
        ]

    def _guarded(self, handler: _Handler) -> _Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            if not self._keys.opens_admin(key_of(request)):
                return unauthorized()
            return await handler(request)

        return guarded

    async def _status(self, request: web.Request) -> web.Response:
        uptime_ms = int((time.monotonic() - self._started) * 1000)
        status: dict[str, Any] = {
            "id": self._host_id,
            "state": "Running",
            "version": _version(),
            "processUptime": uptime_ms,
            "errors": list(self._app.problems),
        }
        return web.json_response(status)

    async def _functions(self, request: web.Request) -> web.Response:
        return web.json_response([self._described(function) for function in self._app.functions])

    async def _function(self, request: web.Request) -> web.Response:
        function = self._app.find(request.match_info["name"])
        return web.Response(status=404) if function is None else web.json_response(self._described(function))

    async def _call(self, request: web.Request) -> web.Response:
        function = self._app.find(request.match_info["name"])
        if function is None:
            return web.Response(status=404)
        try:
            text = _input(await read_body(request))
            call = self._make_call(function, text)
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        _log.info("%s called by hand", function.name)
        self._calls.start(self._invoke(function, call))
        return web.Response(status=202)

    def _make_call(self, function: AppFunction, text: str) -> Call:
        by_hand = self._by_hand.get(function.trigger.type)
        if by_hand is None:
            raise ValueError(f"{function.name!r} has a {function.trigger.type}, which cannot be called by hand here")
        return by_hand(function, text)

    async def _invoke(self, function: AppFunction, call: Call) -> None:
        # What it raises is logged where it is raised; the caller had its 202 long ago.
        with contextlib.suppress(Exception):
            await self._invocations.invoke(function, call)

    async def _nothing(self, request: web.Request) -> web.Response:
        return web.Response(status=404)

    def _described(self, function: AppFunction) -> dict[str, Any]:
        bindings = [function.trigger, *function.inputs, *function.outputs]
        return {
            "name": function.name,
            "language": "python",
            "href": f"{self._url}/admin/functions/{function.name}",
            "isDisabled": False,
            "config": {"bindings": [dict(binding.properties) for binding in bindings]},
        }


def _version() -> str:
    try:
        return f"dropforge-{version('dropforge')}"
    except PackageNotFoundError:
        return "dropforge, from a folder that is not installed"


def _input(body: bytes) -> str:
    """The `input` of the body `{"input": "..."}`; an empty body is an empty input."""
    if not body.strip():
        return ""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from error
    text = found.get("input", "") if isinstance(found, dict) else None
    if isinstance(text, str):
        return text
    if isinstance(text, dict):
        # Azure wants the input as text; an object is what was meant.
        return json.dumps(text)
    raise ValueError('the body must be {"input": "..."}')
