"""The routes of Triton's clients beside inference: repository, configuration, statistics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from dropforge.domain.errors import BadInput, DropforgeError
from dropforge.serving.heads import Head
from dropforge.serving.http1 import Owed
from dropforge.serving.repository import Repository
from dropforge.serving.responses import response, to_json

log = logging.getLogger(__name__)

Owe = Callable[[], Owed]


class _Index(msgspec.Struct):
    ready: bool = False


class _Change(msgspec.Struct):
    parameters: dict[str, Any] | None = None


class Admin:
    """`failed` makes the answer to what went wrong with an endpoint."""

    def __init__(self, repository: Repository, failed: Callable[[str, DropforgeError], bytes]) -> None:
        self._repository = repository
        self._failed = failed
        self._tasks: set[asyncio.Task[None]] = set()

    def index(self, head: Head[Any], body: bytes, owe: Owe) -> bytes:
        return response(200, to_json(self._repository.index(_read(_Index, body).ready)))

    def load(self, head: Head[Any], body: bytes, owe: Owe) -> None:
        endpoint = head.route.endpoint
        self._later(endpoint, self._repository.load(endpoint, _read(_Change, body).parameters), owe)

    def unload(self, head: Head[Any], body: bytes, owe: Owe) -> None:
        endpoint = head.route.endpoint
        self._later(endpoint, self._repository.unload(endpoint, _read(_Change, body).parameters), owe)

    def config(self, head: Head[Any], body: bytes, owe: Owe) -> bytes:
        route = head.route
        return response(200, to_json(self._repository.config(route.endpoint, route.version)))

    def statistics(self, head: Head[Any], body: bytes, owe: Owe) -> bytes:
        route = head.route
        return response(200, to_json(self._repository.statistics(route.endpoint or None, route.version)))

    def _later(self, endpoint: str, work: Coroutine[Any, Any, None], owe: Owe) -> None:
        owed = owe()

        async def answer() -> None:
            try:
                await work
            except DropforgeError as error:
                data = self._failed(endpoint, error)
            except Exception as error:
                log.exception("%s", endpoint)
                data = self._failed(endpoint, DropforgeError(f"internal error: {type(error).__name__}: {error}"))
            else:
                data = response(200, b"{}")
            owed.give(data)
            owed.connection.flush()

        task = asyncio.get_running_loop().create_task(answer())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _read(kind: type[Any], body: bytes) -> Any:
    if not body.strip():
        return kind()
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"the body is not the JSON that this route takes: {error}") from error
