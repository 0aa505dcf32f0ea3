"""The Durable HTTP API over an engine: for people and webhooks, and, under another base, for the SDK's client.

Status codes, headers and bodies are those of the Durable extension. Every body is JSON or empty, because the SDK's
client reads every answer as JSON.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from dropforge.host.durable import clock, links
from dropforge.host.durable.engine import DurableEngine
from dropforge.host.durable.errors import (
    BadInstanceId,
    BadPayload,
    BadQuery,
    DurableError,
    EngineStopped,
    InstanceExists,
    InstanceFinished,
    InstanceNotFound,
    NotRewindable,
    UnknownEntity,
    UnknownOrchestrator,
)
from dropforge.host.durable.ids import split_entity_id
from dropforge.host.durable.queries import EntityRow, Query

CONTINUATION = "x-ms-continuation-token"
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_BAD = "One or more of the arguments submitted is incorrect"
_CODES: dict[type[DurableError], int] = {
    UnknownOrchestrator: 400,
    BadInstanceId: 400,
    BadPayload: 400,
    BadQuery: 400,
    UnknownEntity: 404,
    InstanceNotFound: 404,
    InstanceExists: 409,
    InstanceFinished: 410,
    NotRewindable: 412,
    EngineStopped: 503,
}


def durable_routes(
    engine: DurableEngine,
    *,
    base: str = links.ROUTE,
    authorize: Callable[[web.Request], bool],
    query: str = "",
    public_base: str = "",
) -> list[web.RouteDef]:
    """The routes below `base`, to be added to an aiohttp application.

    `authorize` decides about each request (401 otherwise). `query` (hub and key) goes into the links of check-status
    responses; they point to `public_base` on the host the request came to, which is `base` unless given.
    """
    api = _Api(engine, (public_base or base).rstrip("/"), query)
    base = base.rstrip("/")

    def route(method: str, path: str, handler: _Handler) -> web.RouteDef:
        return web.route(method, base + path, _guarded(handler, authorize))

    instance = "/instances/{instance_id}"
    return [
        route("POST", "/orchestrators/{name}", api.start),
        route("POST", "/orchestrators/{name}/{instance_id}", api.start),
        *(route("GET", path, api.query) for path in ("/instances", "/instances/")),
        *(route("DELETE", path, api.purge_many) for path in ("/instances", "/instances/")),
        route("GET", instance, api.status),
        route("DELETE", instance, api.purge),
        route("POST", instance + "/raiseEvent/{event}", api.raise_event),
        route("POST", instance + "/restart", api.restart),
        route("POST", instance + "/{verb:terminate|suspend|resume|rewind}", api.control),
        *(route("GET", path, api.entities) for path in ("/entities", "/entities/", "/entities/{name}")),
        route("GET", "/entities/{name}/{key}", api.entity),
        route("POST", "/entities/{name}/{key}", api.signal),
        route("DELETE", "/entities/{name}/{key}", api.delete_entity),
    ]


def _guarded(handler: _Handler, authorize: Callable[[web.Request], bool]) -> _Handler:
    async def guarded(request: web.Request) -> web.StreamResponse:
        if not authorize(request):
            return web.json_response({"Message": "the system key is missing or wrong"}, status=401)
        try:
            return await handler(request)
        except DurableError as error:
            return _refusal(error)

    return guarded


def _refusal(error: DurableError) -> web.Response:
    status = _CODES[type(error)]
    if status == 400:
        body: Any = {"Message": _BAD, "ExceptionMessage": str(error), "ExceptionType": type(error).__name__}
    elif status == 412:
        body = str(error)  # the SDK's rewind shows a text and nothing else
    else:
        body = {"Message": str(error)}
    return web.json_response(body, status=status)


class _Api:
    def __init__(self, engine: DurableEngine, public_base: str, query: str) -> None:
        self._engine = engine
        self._public_base = public_base
        self._query = query

    # -- orchestrations ---------------------------------------------------------------------------------------------

    async def start(self, request: web.Request) -> web.Response:
        body = await _text(request)
        instance_id = await self._engine.start_new(
            request.match_info["name"], body, request.match_info.get("instance_id"), request.query.get("version")
        )
        if "timeout" in request.query:
            return await self._wait(request, instance_id, _number(request, "timeout", 0.0))
        return self._check_status(request, instance_id)

    async def _wait(self, request: web.Request, instance_id: str, seconds: float) -> web.Response:
        try:
            status = await asyncio.wait_for(self._engine.wait(instance_id), seconds)
        except TimeoutError:
            return self._check_status(request, instance_id)
        if status is None:
            raise InstanceNotFound(instance_id)
        if status.runtime_status == "Completed":
            return web.Response(text=status.output or "null", content_type="application/json")
        return web.json_response(status.to_json(), status=500 if status.runtime_status == "Failed" else 200)

    def _check_status(self, request: web.Request, instance_id: str) -> web.Response:
        body = links.management_urls(f"{request.url.origin()}{self._public_base}", instance_id, self._query)
        headers = {"Location": body["statusQueryGetUri"], "Retry-After": "10"}
        return web.json_response(body, status=202, headers=headers)

    async def status(self, request: web.Request) -> web.Response:
        instance_id = request.match_info["instance_id"]
        found = await self._engine.status(
            instance_id,
            history=_flag(request, "showHistory"),
            history_output=_flag(request, "showHistoryOutput"),
        )
        if found is None:
            raise InstanceNotFound(instance_id)
        body = found.to_json(show_input=_flag(request, "showInput", default=True))
        if not found.finished:
            return web.json_response(body, status=202, headers={"Location": str(request.url), "Retry-After": "5"})
        wants_error = _flag(request, "returnInternalServerErrorOnFailure")
        return web.json_response(body, status=500 if wants_error and found.runtime_status == "Failed" else 200)

    async def query(self, request: web.Request) -> web.Response:
        page, token = await self._engine.statuses(
            Query(
                since=_time(request, "createdTimeFrom"),
                until=_time(request, "createdTimeTo"),
                statuses=_statuses(request),
                prefix=request.query.get("instanceIdPrefix", ""),
                top=int(_number(request, "top", 0)) or None,
                token=request.headers.get(CONTINUATION, ""),
            )
        )
        show_input = _flag(request, "showInput", default=True)
        body = [each.to_json(show_input=show_input) for each in page]
        return web.json_response(body, headers={CONTINUATION: token} if token else {})

    async def raise_event(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            return web.json_response("Only application/json request content is supported", status=400)
        body = await _text(request)
        await self._engine.raise_event(request.match_info["instance_id"], request.match_info["event"], body)
        return web.Response(status=202)

    async def control(self, request: web.Request) -> web.Response:
        engine = self._engine
        verbs = {
            "terminate": engine.terminate,
            "suspend": engine.suspend,
            "resume": engine.resume,
            "rewind": engine.rewind,
        }
        await verbs[request.match_info["verb"]](request.match_info["instance_id"], request.query.get("reason", ""))
        return web.Response(status=202)

    async def restart(self, request: web.Request) -> web.Response:
        with_new_id = _flag(request, "restartWithNewInstanceId", default=True)
        return self._check_status(request, await self._engine.restart(request.match_info["instance_id"], with_new_id))

    async def purge(self, request: web.Request) -> web.Response:
        instance_id = request.match_info["instance_id"]
        if await self._engine.status(instance_id) is None:
            raise InstanceNotFound(instance_id)
        return web.json_response({"instancesDeleted": await self._engine.purge(instance_id)})

    async def purge_many(self, request: web.Request) -> web.Response:
        since = _time(request, "createdTimeFrom")
        if since is None:
            raise BadQuery("createdTimeFrom is needed to purge more than one instance")
        deleted = await self._engine.purge_many(since, _time(request, "createdTimeTo"), _statuses(request))
        return web.json_response({"instancesDeleted": deleted}, status=200 if deleted else 404)

    # -- entities ---------------------------------------------------------------------------------------------------

    async def entities(self, request: web.Request) -> web.Response:
        page, token = await self._engine.entities(
            request.match_info.get("name", ""),
            int(_number(request, "top", 0)) or None,
            request.headers.get(CONTINUATION, ""),
        )
        fetch = _flag(request, "fetchState")
        body = [_entity(row, fetch) for row in page]
        return web.json_response(body, headers={CONTINUATION: token} if token else {})

    async def entity(self, request: web.Request) -> web.Response:
        row = await self._engine.entity_state(request.match_info["name"], request.match_info["key"])
        if row is None:
            return web.json_response({"Message": "no entity of that name and key exists"}, status=404)
        return web.Response(text=row.state or "null", content_type="application/json")

    async def signal(self, request: web.Request) -> web.Response:
        text = await _text(request)
        if text is not None and request.content_type != "application/json":
            text = json.dumps(text)
        name, key = request.match_info["name"], request.match_info["key"]
        await self._engine.signal_entity(name, key, request.query.get("op", ""), text)
        return web.Response(status=202)

    async def delete_entity(self, request: web.Request) -> web.Response:
        existed = await self._engine.delete_entity(request.match_info["name"], request.match_info["key"])
        return web.Response(status=202 if existed else 404)


async def _text(request: web.Request) -> str | None:
    """The body, None for an empty one. Raises `BadPayload` for what is no text in the charset it names."""
    charset = request.charset or "utf-8"
    try:
        text = (await request.text()).strip()
    except LookupError as error:
        raise BadPayload("the request", f"the unknown charset {charset!r}") from error
    except UnicodeError as error:
        raise BadPayload("the request", f"bytes that are no text in {charset!r} ({error})") from error
    return text or None


def _entity(row: EntityRow, fetch_state: bool) -> dict[str, Any]:
    name, key = split_entity_id(row.entity_id)
    body: dict[str, Any] = {
        "entityId": {"name": name, "key": key},
        "lastOperationTime": clock.to_seconds_text(row.updated_at),
    }
    if fetch_state:
        body["state"] = json.loads(row.state or "null")
    return body


def _flag(request: web.Request, name: str, *, default: bool = False) -> bool:
    text = request.query.get(name)
    return default if text is None else text.lower() == "true"


def _number(request: web.Request, name: str, default: float) -> float:
    text = request.query.get(name, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e9:
        raise BadQuery(f"{name} must be a number of 0 or more; found {text!r}")
    return number


def _time(request: web.Request, name: str) -> int | None:
    text = request.query.get(name)
    try:
        return clock.from_text(text) if text else None
    except ValueError as error:
        raise BadQuery(f"{name}: {error}") from error


def _statuses(request: web.Request) -> tuple[str, ...]:
    return tuple(status.strip() for status in request.query.get("runtimeStatus", "").split(",") if status.strip())
