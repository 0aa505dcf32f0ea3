"""The API's operations: one table, from which the routes are registered and the OpenAPI document is made."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import azure.durable_functions as df
import azure.functions as func

from dropforge.domain.errors import BadInput
from dropforge.domain.roles import Role
from dropforge.domain.traces import trace_told
from dropforge.settings import settings
from functions import access, answers
from functions.access import Caller
from functions.answers import Problem
from functions.bodies import Body
from functions.parameters import CAUSATION, CORRELATION, HOPS, KEY, OF_THE_HOST, PATH, Parameter

VERSION = "v1"
# With Entra, App Service has seen to who asks before the host is reached; without, the host asks for a key.
LEVEL = func.AuthLevel.ANONYMOUS if settings().http_auth == "entra" else func.AuthLevel.FUNCTION


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    # The function's name in the app, and the operation's in the document.
    name: str
    method: str
    # Below `/api/`, with `{parameters}`.
    path: str
    # None: anybody may.
    role: Role | None
    # The first line is the summary.
    description: str
    # Status -> what is answered: the name of a shape in `dropforge.steps.views` (or of the domain), or a media type.
    gives: Mapping[int, str]
    # Statuses of its own refusals, beside those that every operation may answer.
    refusals: tuple[int, ...] = ()
    query: tuple[Parameter, ...] = ()
    headers: tuple[Parameter, ...] = ()
    body: Body | None = None
    # Whether it starts work: it has a durable client, and a POST takes an `Idempotency-Key`.
    starts: bool = False

    @property
    def parameters(self) -> list[Parameter]:
        """Everything it takes in path, query and headers."""
        return [*(PATH[name] for name in re.findall(r"\{(\w+)\}", self.path)), *self.query, *self.headers]


@dataclass
class Call:
    """One request to an operation, checked."""

    operation: Operation
    request: func.HttpRequest
    caller: Caller
    # What the request says in path, query and headers, by name.
    values: dict[str, Any]
    body: Any = None
    _client: df.DurableOrchestrationClient | None = field(default=None, repr=False)

    @property
    def client(self) -> df.DurableOrchestrationClient:
        assert self._client is not None, f"{self.operation.name} starts no work"
        return self._client

    @property
    def correlation(self) -> str | None:
        """What the asker calls his piece of work; without a name for it, the trace that his request is part of."""
        return self.values["x-correlation-id"] or trace_told(self.request.headers.get("traceparent"))

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


Handler = Callable[[Call], Awaitable[func.HttpResponse]]
Door = Callable[..., Awaitable[func.HttpResponse]]

OPERATIONS: list[Operation] = []


def operation(
    bp: df.Blueprint,
    method: str,
    path: str,
    *,
    gives: str | Mapping[int, str],
    role: Role | None = Role.READER,
    refusals: tuple[int, ...] = (),
    query: tuple[Parameter, ...] = (),
    headers: tuple[Parameter, ...] = (),
    body: Body | None = None,
    starts: bool = False,
) -> Callable[[Handler], Handler]:
    """Make an operation of the handler: it goes into the table and, as a function, into the blueprint."""

    def declared(handler: Handler) -> Handler:
        wanted = Operation(
            name=handler.__name__,
            method=method,
            path=path,
            role=role,
            description=" ".join((handler.__doc__ or "").split()),
            gives={200: gives} if isinstance(gives, str) else gives,
            refusals=refusals,
            query=query,
            headers=headers + ((KEY, CORRELATION, CAUSATION, HOPS) if starts and method == "POST" else ()),
            body=body,
            starts=starts,
        )
        OPERATIONS.append(wanted)
        _register(bp, wanted, handler)
        return handler

    return declared


def _register(bp: df.Blueprint, wanted: Operation, handler: Handler) -> None:
    door = _starting_door(wanted, handler) if wanted.starts else _door(wanted, handler)
    # The SDK names a function after its code, and the worker looks at its signature.
    door.__name__ = door.__qualname__ = wanted.name
    door.__doc__ = wanted.description
    if wanted.starts:
        door = bp.durable_client_input(client_name="client")(door)
    # Whoever may GET may HEAD: the host leaves the body out.
    methods = [wanted.method, "HEAD"] if wanted.method == "GET" else [wanted.method]
    level = func.AuthLevel.ANONYMOUS if wanted.role is None else LEVEL
    bp.route(route=wanted.path, methods=methods, auth_level=level)(door)


def _door(wanted: Operation, handler: Handler) -> Door:
    async def door(req: func.HttpRequest) -> func.HttpResponse:
        return await answered(wanted, handler, req, None)

    return door


def _starting_door(wanted: Operation, handler: Handler) -> Door:
    async def door(req: func.HttpRequest, client: df.DurableOrchestrationClient) -> func.HttpResponse:
        return await answered(wanted, handler, req, client)

    return door


async def answered(
    wanted: Operation, handler: Handler, req: func.HttpRequest, client: df.DurableOrchestrationClient | None
) -> func.HttpResponse:
    """The handler's answer to a request that has been checked; whatever is raised becomes a problem."""
    try:
        caller = Caller(None)
        if wanted.role is not None:
            caller = access.caller_of(req.headers, req.params, settings())
            access.check(caller, wanted.role)
        values = _values(wanted, req)
        body = wanted.body.of(req) if wanted.body is not None else None
        return await handler(Call(wanted, req, caller, values, body, client))
    except Exception as error:  # noqa: BLE001  the last stop before the client: `problem` logs what is not ours
        return answers.problem(error)


def _values(wanted: Operation, req: func.HttpRequest) -> dict[str, Any]:
    known = {each.name for each in wanted.query}
    for name in req.params:
        if name not in known and name.lower() not in OF_THE_HOST:
            choices = f"choose from {', '.join(sorted(known))}" if known else "none is known here"
            raise BadInput(f"unknown query parameter {name[:100]!r}; {choices}", parameter=name[:100])
    given = {"path": req.route_params, "query": req.params, "header": req.headers}
    return {each.name: each.read(given[each.place].get(each.name)) for each in wanted.parameters}


def methods_of(path: str) -> list[str]:
    """The methods of the operations that have this path (below `/api/`); none when there is no such path."""
    return sorted({each.method for each in OPERATIONS if _pattern(each.path).fullmatch(path)})


def _pattern(path: str) -> re.Pattern[str]:
    pieces = re.split(r"\{\w+\}", path)
    return re.compile("[^/]+".join(map(re.escape, pieces)), re.IGNORECASE)


def nothing(req: func.HttpRequest) -> func.HttpResponse:
    """The answer to a request that no operation takes."""
    try:
        access.caller_of(req.headers, req.params, settings())
        path = req.route_params.get("path") or ""
        allowed = methods_of(path)
        if not allowed:
            raise Problem(404, "not-found", f"there is no /api/{path[:200]}; /api/openapi.json says what there is")
        shown = ", ".join(sorted({*allowed, *(["HEAD"] if "GET" in allowed else []), "OPTIONS"}))
        if req.method == "OPTIONS":
            return func.HttpResponse(status_code=204, headers={"Allow": shown})
        raise Problem(
            405, "method-not-allowed", f"/api/{path} has no method {req.method}; it has {shown}", {"Allow": shown}
        )
    except Exception as error:  # noqa: BLE001  the last stop before the client: `problem` logs what is not ours
        return answers.problem(error)
