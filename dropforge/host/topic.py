"""A local Event Grid topic: what `azure-eventgrid` publishes here is delivered to the functions that subscribe to it.

Answers as a custom topic of Event Grid does (https://learn.microsoft.com/azure/event-grid/post-to-custom-topic): 200 for
what was taken, 400 for what is no event, 401 for a wrong key, 413 for more than 1 MB. The real topic stores and retries;
this one delivers before it answers, and answers 503 when a subscriber did not take an event, so that the publisher sends
it again: at least once, either way.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiohttp import web

from dropforge.host.keys import EVENT_GRID_KEY, Keys
from dropforge.host.requests import expect_later, read_body

_log = logging.getLogger(__name__)

PATH = "/runtime/topic/api/events"
_MAX_BODY_BYTES = 1024 * 1024
_PARALLEL = 8
_EVENT_GRID_FIELDS = ("id", "subject", "eventType", "eventTime", "data", "dataVersion")
# Event Grid tells a subscriber these in headers, too.
_HEADER_FIELDS = ("dataVersion", "metadataVersion")
_CLOUD_EVENT_FIELDS = ("specversion", "id", "source", "type")

# (subscriber, event, attempt) -> taken?
Post = Callable[[str, dict[str, Any], int], Awaitable[bool]]


class Topic:
    """Routes events to functions by the beginning of their type. `subscribers`: beginning -> function names."""

    def __init__(self, subscribers: Mapping[str, Sequence[str]], keys: Keys, post: Post) -> None:
        self._subscribers = subscribers
        self._keys = keys
        self._post = post
        self._slots = asyncio.Semaphore(_PARALLEL)
        # Types that nobody subscribes to, and how many of each came.
        self.unheard: Counter[str] = Counter()

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        return [web.post(PATH, self._publish, expect_handler=expect_later)]

    async def _publish(self, request: web.Request) -> web.Response:
        if not self._keys.opens_webhook(EVENT_GRID_KEY, request.headers.get("aeg-sas-key")):
            return _error(401, "Unauthorized", "the header aeg-sas-key is missing or wrong", close=True)
        if (request.content_length or 0) > _MAX_BODY_BYTES:
            return _error(413, "RequestEntityTooLarge", "a request may hold 1 MB at most", close=True)
        body = await read_body(request)
        if len(body) > _MAX_BODY_BYTES:
            return _error(413, "RequestEntityTooLarge", "a request may hold 1 MB at most")
        try:
            events = events_of(body)
        except ValueError as error:
            return _error(400, "BadRequest", str(error))
        taken = await asyncio.gather(*(self._deliver(event) for event in events))
        if not all(taken):
            return _error(503, "ServiceUnavailable", "a subscriber did not take an event; publish it again")
        return web.Response(status=200)

    async def _deliver(self, event: dict[str, Any]) -> bool:
        kind = str(event.get("eventType") or event.get("type"))
        heard = [name for begin, names in self._subscribers.items() if kind.startswith(begin) for name in names]
        if not heard:
            if kind not in self.unheard:
                _log.info("no function subscribes to events of type %s", kind)
            if kind in self.unheard or len(self.unheard) < 1000:
                self.unheard[kind] += 1
            return True
        async with self._slots:
            return all([await self._post(name, event, 0) for name in heard])


def events_of(body: bytes) -> list[dict[str, Any]]:
    """The events of a request, in either schema. Raises `ValueError` that says which event lacks what."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from error
    events = found if isinstance(found, list) else [found]
    for number, event in enumerate(events, 1):
        if not isinstance(event, dict):
            raise ValueError(f"event {number} is a JSON {type(event).__name__}; it must be an object")
        wanted = _CLOUD_EVENT_FIELDS if "specversion" in event else _EVENT_GRID_FIELDS
        missing = [name for name in wanted if name not in event]
        if missing:
            raise ValueError(f"event {number} lacks {', '.join(missing)}")
        for name in _HEADER_FIELDS:
            version = str(event.get(name, ""))
            if not version.isprintable():
                raise ValueError(f"event {number} has the {name} {version!r}; wanted one that a header can carry")
    return events


def _error(status: int, code: str, message: str, *, close: bool = False) -> web.Response:
    response = web.json_response({"error": {"code": code, "message": message}}, status=status)
    if close:
        response.force_close()
    return response
