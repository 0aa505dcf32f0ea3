"""Event Grid triggers: the webhook that Event Grid (and our own event sources) deliver to."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from azure.functions import meta

from dropforge.host.app import AppFunction
from dropforge.host.invocation import Call
from dropforge.host.keys import EVENT_GRID_KEY
from dropforge.host.requests import expect_later, key_of, read_body, unauthorized
from dropforge.host.triggers.service import Surroundings

_log = logging.getLogger(__name__)

PATH = "/runtime/webhooks/EventGrid"
# Event Grid puts up to 5,000 events into one request; so many of them run at once.
_PARALLEL = 64


class EventGridTrigger:
    """Answers the webhook as the Event Grid extension of Azure Functions does."""

    def __init__(self, around: Surroundings) -> None:
        self.problems: Sequence[str] = ()
        self._around = around
        # Azure finds functions in any case.
        self._functions = {function.name.lower(): function for function in around.functions}
        self._slots = asyncio.Semaphore(_PARALLEL)

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        # ASP.NET Core matches paths in any case, so `/runtime/webhooks/eventgrid` is the same door.
        path = "/{runtime:(?i:runtime/webhooks/eventgrid)}"
        return [
            web.post(path, self._post, expect_handler=expect_later),
            web.options(path, self._options, expect_handler=expect_later),
        ]

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def by_hand(self, function: AppFunction, text: str) -> Call:
        try:
            event = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the input of {function.name!r} must be one event as JSON text: {error}") from error
        if not isinstance(event, dict):
            raise ValueError(f"the input of {function.name!r} must be one event, found {type(event).__name__}")
        return _call(_timely(event))

    def _admits(self, request: web.Request) -> bool:
        return self._around.keys.opens_webhook(EVENT_GRID_KEY, key_of(request))

    async def _options(self, request: web.Request) -> web.Response:
        """The handshake of CloudEvents 1.0 webhooks."""
        if not self._admits(request):
            return unauthorized()
        origin = request.headers.get("WebHook-Request-Origin")
        if origin is None:
            return web.Response(status=400, text="the header WebHook-Request-Origin is missing\n")
        if self._function(request) is None:
            return self._not_found(request)
        return web.Response(headers={"WebHook-Allowed-Origin": origin, "WebHook-Allowed-Rate": "*"})

    async def _post(self, request: web.Request) -> web.Response:
        if not self._admits(request):
            return unauthorized()
        function = self._function(request)
        if function is None:
            return self._not_found(request)
        kind = request.headers.get("aeg-event-type", "").lower()
        if kind == "unsubscribe":
            _log.info("Event Grid unsubscribed from %r", function.name)
            return web.Response(status=202)
        try:
            events = _events(await read_body(request))
            if kind == "subscriptionvalidation":
                return _validated(events, function, request.headers.get("aeg-subscription-name"))
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")
        # A CloudEvents subscription may leave the header out: its envelope says what it is.
        if kind == "notification" or (not kind and events and all("specversion" in event for event in events)):
            return await self._deliver(function, events)
        return web.Response(
            status=400, text="the header aeg-event-type must be Notification or SubscriptionValidation\n"
        )

    def _function(self, request: web.Request) -> AppFunction | None:
        return self._functions.get(_function_name(request).lower())

    def _not_found(self, request: web.Request) -> web.Response:
        return web.Response(status=404, text=f"cannot find function: '{_function_name(request)}'")

    async def _deliver(self, function: AppFunction, events: list[dict[str, Any]]) -> web.Response:
        """Each event is an invocation of its own; one that fails makes Event Grid send all of them again."""
        results = await asyncio.gather(*(self._invoke(function, event) for event in events), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            return web.Response(
                status=500, text=f"Exception while executing function: {function.name}: {failures[0]}\n"
            )
        return web.Response(status=202)

    async def _invoke(self, function: AppFunction, event: dict[str, Any]) -> None:
        async with self._slots:
            await self._around.invocations.invoke(function, _call(event))


def _function_name(request: web.Request) -> str:
    # Azure reads query names in any case.
    return next((value for name, value in request.query.items() if name.lower() == "functionname"), "")


def _events(body: bytes) -> list[dict[str, Any]]:
    """The events of a request: an array in the Event Grid schema, one object or an array in CloudEvents."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from error
    events = found if isinstance(found, list) else [found]
    if not all(isinstance(event, dict) for event in events):
        raise ValueError("the body must be an event or an array of events")
    return [_timely(event) for event in events]


def _timely(event: dict[str, Any]) -> dict[str, Any]:
    """The event with its time as the SDK can read it. Raises `ValueError` for a time that is none: the service itself
    lets no such event in, and a function that cannot be called would have it delivered again for a day."""
    key = "time" if "specversion" in event else "eventTime"
    told = event.get(key)
    if told is None or told == "":
        return event
    try:
        moment = datetime.fromisoformat(told)
        # The SDK tries one form after the other: this is the first that it knows, and no function sees the text.
        return {**event, key: (moment if moment.tzinfo is None else moment.astimezone(UTC)).isoformat()}
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{key} of an event must be a time like 2026-01-31T12:00:00.1234567Z, found {told!r:.80}"
        ) from None


def _validated(events: list[dict[str, Any]], function: AppFunction, subscription: str | None) -> web.Response:
    data = events[0].get("data") if len(events) == 1 else None
    code = data.get("validationCode") if isinstance(data, dict) else None
    if not isinstance(code, str):
        raise ValueError("a SubscriptionValidation request must hold one event with data.validationCode")
    _log.info("Event Grid subscribed %r (subscription %s)", function.name, subscription or "without a name")
    # 200 and nothing else: Event Grid refuses a 202 here.
    return web.json_response({"validationResponse": code})


def _call(event: dict[str, Any]) -> Call:
    kind = event.get("eventType") or event.get("type") or "without a type"
    return Call(datum=meta.Datum(json.dumps(event), "json"), what=f"event {kind} {event.get('subject') or ''}".rstrip())
