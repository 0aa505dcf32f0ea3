"""The admin port: the management API over HTTP, and `/health` as Microsoft's emulator has it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from dropforge.servicebus.admin import atom
from dropforge.servicebus.admin.api import Api
from dropforge.servicebus.admin.http1 import HttpServer, Limits, Request, Response
from dropforge.servicebus.admin.places import place_of
from dropforge.servicebus.errors import BrokerError, unauthorized
from dropforge.servicebus.sas import MANAGE, AccessKey, check_token

if TYPE_CHECKING:
    from dropforge.servicebus.core.broker import Broker

log = logging.getLogger(__name__)

# https://github.com/Azure/azure-service-bus-emulator-installer, HealthCheckApiSchema.md
HEALTHY = json.dumps({"status": "healthy", "message": "Service is healthy."}).encode()
UNHEALTHY = json.dumps({"status": "unhealthy", "message": "The store cannot be written; look at the log."}).encode()


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


class AdminServer:
    """Serves a broker's entities to `ServiceBusAdministrationClient`.

    `keys` are the shared access keys by name; None lets everybody in. `commit` makes what was done durable and tells the
    connected clients, and raises when it cannot: the request is then not answered.
    """

    def __init__(
        self,
        broker: Broker,
        keys: Mapping[str, AccessKey] | None,
        commit: Callable[[], None],
        *,
        clock: Callable[[], int] = wall_ms,
        limits: Limits | None = None,
    ) -> None:
        self._keys = keys
        self._commit = commit
        self._clock = clock
        self._api = Api(broker, clock)
        self._failed = False
        self._http = HttpServer(self.answer, _error, limits)

    async def start(self, host: str = "127.0.0.1", port: int = 5300) -> int:
        """Listens, and gives the port; 0 picks a free one. Raises `OSError` when the port is taken."""
        return await self._http.start(host, port)

    async def stop(self) -> None:
        """Hangs up on everybody. A second call does nothing."""
        await self._http.stop()

    def answer(self, request: Request) -> Response:
        """The answer to one request; whatever it says was done is durable."""
        try:
            if request.path.lower() == "health":
                return self._health(request)
            self._allow(request)
            return self._answer(request)
        except BrokerError as error:
            return _error(error.status, error.description)
        except Exception:
            log.exception("%s %s", request.method, request.path)
            return _error(500, "SubCode=50000. Internal error; the log of the endpoint tells more.")

    def _answer(self, request: Request) -> Response:
        place = place_of(request.path)
        if request.method in ("GET", "HEAD"):
            return self._api.get(place, request)
        if request.method == "PUT":
            return self._durable(self._api.put(place, request))
        if request.method == "DELETE":
            return self._durable(self._api.delete(place))
        response = _error(405, f"SubCode=40500. The method {request.method} is not allowed here.")
        return Response(405, response.body, headers={"Allow": "GET, HEAD, PUT, DELETE"})

    def _durable(self, response: Response) -> Response:
        try:
            self._commit()
        except Exception:
            self._failed = True
            raise
        return response

    def _allow(self, request: Request) -> None:
        if self._keys is None:
            return
        token = request.headers.get("authorization")
        if token is None:
            raise unauthorized("MissingToken: The request has no Authorization header.")
        now_s = self._clock() / 1000
        if not check_token(token, self._keys, now_s).allows(request.path, MANAGE, now_s):
            raise unauthorized(f"Manage claims are required on '/{request.path}'; the token does not have them.")

    def _health(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return Response(405, headers={"Allow": "GET, HEAD"})
        if self._failed:
            return Response(503, UNHEALTHY, "application/json")
        return Response(200, HEALTHY, "application/json")


def _error(status: int, detail: str) -> Response:
    return Response(status, atom.error(status, detail).encode())
