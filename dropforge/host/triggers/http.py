"""HTTP triggers: routes, methods, keys, and the request and response as the SDK knows them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from azure.functions import meta

from dropforge.host.app import AppFunction
from dropforge.host.invocation import Call, TraceContext
from dropforge.host.keys import AuthLevel
from dropforge.host.requests import expect_later, key_of, read_body, unauthorized
from dropforge.host.routes import RouteTemplate, compile_template, decode_path
from dropforge.host.triggers.service import Surroundings

_log = logging.getLogger(__name__)

# The server writes these itself.
_HOP_HEADERS = frozenset({"content-length", "transfer-encoding", "connection", "keep-alive"})


@dataclass(frozen=True)
class HttpRoute:
    """Where one function is found."""

    function: AppFunction
    template: RouteTemplate
    # Upper-case; empty: any.
    methods: frozenset[str]
    level: AuthLevel

    def takes(self, method: str) -> bool:
        return not self.methods or method in self.methods


class HttpTrigger:
    """Serves every HTTP function under the route prefix of host.json."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._prefix = around.host_json.route_prefix
        routes, self.problems = http_routes(around.functions)
        # The most specific template first; of two alike, the one declared first.
        self._routes = sorted(routes, key=lambda route: route.template.specificity)
        self._outstanding = 0
        limit = around.host_json.max_concurrent_requests
        self._running = asyncio.Semaphore(limit) if limit else None
        for first, second in _conflicts(self._routes):
            _log.warning(
                "functions %r and %r have the same route; %r answers", first.function.name, second.function.name,
                first.function.name,
            )  # fmt: skip

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        # Any character: a dot would leave out paths with a line break (`%0A`) in them.
        return [web.route("*", r"/{path:[\s\S]*}", self._handle, expect_handler=expect_later)]

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def by_hand(self, function: AppFunction, text: str) -> Call:
        raise ValueError(f"{function.name!r} is an HTTP function; call its route")

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        found = self._find(request)
        if found is None:
            return web.Response(status=404)
        route, parameters = found
        if not self._around.keys.opens(route.level, key_of(request), route.function.name):
            return unauthorized()
        limit = self._around.host_json.max_outstanding_requests
        if limit is not None and self._outstanding >= limit:
            return web.Response(status=429, headers={"Retry-After": "1"})
        async with self._slot():
            return await self._invoke(request, route.function, parameters)

    def _find(self, request: web.Request) -> tuple[HttpRoute, dict[str, str]] | None:
        path = decode_path(request.rel_url.raw_path)
        if self._prefix:
            if not f"{path}/".lower().startswith(f"{self._prefix}/".lower()):
                return None
            path = path[len(self._prefix) + 1 :]
        for route in self._routes:
            # Azure treats the method as part of the route: another method finds nothing (404), a HEAD too.
            if route.takes(request.method):
                parameters = route.template.match(path)
                if parameters is not None:
                    return route, parameters
        return None

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        self._outstanding += 1
        try:
            async with self._running or contextlib.nullcontext():
                yield
        finally:
            self._outstanding -= 1

    async def _invoke(
        self, request: web.Request, function: AppFunction, parameters: Mapping[str, str]
    ) -> web.StreamResponse:
        call = Call(
            datum=_request_datum(request, parameters, await read_body(request)),
            what=f"{request.method} {request.rel_url.raw_path}",
            trace=TraceContext(request.headers.get("traceparent", ""), request.headers.get("tracestate", "")),
        )
        try:
            return _response(await self._around.invocations.invoke(function, call))
        except Exception:  # noqa: BLE001 - logged where it was raised; the client learns the id and no more
            return failed(function, call)


def failed(function: AppFunction, call: Call) -> web.Response:
    """What a client sees of a function that raised."""
    return web.json_response(
        {"error": f"function {function.name!r} failed", "invocationId": call.invocation_id}, status=500
    )


def http_routes(functions: Sequence[AppFunction]) -> tuple[list[HttpRoute], list[str]]:
    """The routes of the HTTP functions among these, and why the others cannot have one."""
    routes, problems = [], []
    for function in functions:
        if function.trigger.type == "httpTrigger":
            try:
                routes.append(_route(function))
            except ValueError as error:
                problems.append(f"function {function.name!r} cannot run: {error}")
    return routes, problems


def _route(function: AppFunction) -> HttpRoute:
    properties = function.trigger.properties
    template = compile_template(str(properties.get("route") or function.name))
    level = AuthLevel(str(properties.get("authLevel") or "function").lower())
    return HttpRoute(function, template, frozenset(map(str.upper, properties.get("methods") or ())), level)


def _conflicts(routes: Sequence[HttpRoute]) -> list[tuple[HttpRoute, HttpRoute]]:
    found, seen = [], dict[tuple[str, str], HttpRoute]()
    for route in routes:
        for method in route.methods or {"*"}:
            first = seen.setdefault((route.template.template.strip("/").lower(), method), route)
            if first is not route and (first, route) not in found:
                found.append((first, route))
    return found


def _request_datum(request: web.Request, parameters: Mapping[str, str], body: bytes) -> meta.Datum:
    return meta.Datum(
        {
            "method": _text(request.method),
            "url": _text(str(request.url)),
            "headers": {name: _text(",".join(request.headers.getall(name))) for name in request.headers},
            "params": {name: _text(value) for name, value in parameters.items()},
            # Empty values do not reach a function in Azure; several of one name arrive with commas between.
            "query": {
                name: _text(",".join(request.query.getall(name))) for name in request.query if request.query[name]
            },
            "body": meta.Datum(body, "bytes"),
        },
        "http",
    )


def _text(value: str) -> meta.Datum:
    return meta.Datum(value, "string")


def _response(returned: meta.Datum | None) -> web.Response:
    if returned is None or returned.type != "http":
        return web.Response(text="" if returned is None else str(returned.value))
    value: Mapping[str, Any] = returned.value
    status = int(value["status_code"].value)
    if not 200 <= status <= 599:
        raise ValueError(f"a function answered with the status {status}; it must be from 200 to 599")
    response = web.Response(status=status, body=value["body"].value)
    response.headers.popall("Content-Type", None)
    for name, header in value["headers"].items():
        if name.lower() not in _HOP_HEADERS:
            response.headers[name] = _one_line(header.value)
    for cookie in value.get("cookies") or ():
        for morsel in cookie.values():
            response.headers.add("Set-Cookie", _one_line(morsel.OutputString()))
    return response


def _one_line(value: str) -> str:
    if "\r" in value or "\n" in value:
        raise ValueError("a function set a response header with a line break in it")
    return value
