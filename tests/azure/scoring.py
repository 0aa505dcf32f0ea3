"""What endpoints answer: calls go on to the servers that tests put behind the deployments, by the traffic of the endpoint."""

from __future__ import annotations

import http.client
from threading import Lock
from urllib.parse import urlsplit

from tests.azure.endpoints import Endpoints
from tests.azure.places import WORKSPACE
from tests.azure.resources import Store
from tests.azure.wire import Answer, Call, Refused

_DEPLOYMENT = "azureml-model-deployment"
_ONWARD = ("content-type", "accept", "x-request-id", "traceparent", _DEPLOYMENT)


class Scoring:
    def __init__(self, store: Store, endpoints: Endpoints) -> None:
        self._store = store
        self._endpoints = endpoints
        self._lock = Lock()
        self._servers: dict[tuple[str | None, str], str] = {}
        self._credit: dict[tuple[str, str], float] = {}
        # By endpoint and deployment: how many calls were copied to it.
        self.mirrored: dict[tuple[str, str], int] = {}

    def clear(self) -> None:
        self._servers.clear()
        self._credit.clear()
        self.mirrored.clear()

    def serve(self, deployment: str, url: str, endpoint: str | None) -> None:
        self._servers[endpoint, deployment] = url

    def answer(self, call: Call) -> Answer:
        """`/score/{endpoint}[/{path}]`: with the endpoint's key, to the deployment of the header, or by traffic."""
        _, _, name, *rest = call.path.split("/", 3)
        with self._store.lock:
            endpoint = self._store.need(f"{WORKSPACE}/onlineEndpoints/{name}")
            if call.headers.get("authorization", "").removeprefix("Bearer ") not in self._endpoints.keys(name).values():
                raise Refused(401, "Unauthorized", "The key is missing or wrong.")
            chosen = call.headers.get(_DEPLOYMENT) or self._by_traffic(name, endpoint["properties"]["traffic"])
            if chosen is None:
                raise Refused(404, "NoTraffic", f"No deployment of endpoint {name} has traffic.")
            found = self._store.get(f"{WORKSPACE}/onlineEndpoints/{name}/deployments/{chosen}")
            if found is None or found["properties"]["provisioningState"] != "Succeeded":
                raise Refused(404, "NotFound", f"The specified deployment {chosen} could not be found.")
            server = self._servers.get((name, chosen)) or self._servers.get((None, chosen))
            if server is None:
                raise Refused(502, "BadGateway", f"No server is behind deployment {chosen}: see ControlPlane.serve.")
            route = self._route(found["properties"].get("environmentId"))
            mirror = {key: share for key, share in endpoint["properties"].get("mirrorTraffic", {}).items() if share}
        path = f"/{rest[0]}" if rest and rest[0] else route
        answer = _forward(server, path, call)
        for other, share in mirror.items():
            behind = self._servers.get((name, other)) or self._servers.get((None, other))
            if behind and self._due(name, other, share):
                _forward(behind, path, call)
        return Answer(answer.status, answer.body, {**answer.headers, _DEPLOYMENT: chosen}, answer.content_type)

    def _by_traffic(self, endpoint: str, traffic: dict[str, int]) -> str | None:
        """Whoever is owed most: of each hundred calls each gets its share, whatever the order."""
        shares = {name: share for name, share in traffic.items() if share}
        if not shares:
            return None
        with self._lock:
            for name, share in shares.items():
                self._credit[endpoint, name] = self._credit.get((endpoint, name), 0.0) + share
            chosen = max(shares, key=lambda name: self._credit[endpoint, name])
            self._credit[endpoint, chosen] -= 100
        return chosen

    def _due(self, endpoint: str, name: str, share: int) -> bool:
        key = (endpoint, f"mirror {name}")
        with self._lock:
            self._credit[key] = self._credit.get(key, 0.0) + share
            due = self._credit[key] >= 100
            if due:
                self._credit[key] -= 100
                self.mirrored[endpoint, name] = self.mirrored.get((endpoint, name), 0) + 1
        return due

    def _route(self, environment: str | None) -> str:
        """Of the scoring route that the container's environment names."""
        found = self._store.get(environment) if environment else None
        config = (found["properties"].get("inferenceConfig") or {}) if found else {}
        return str((config.get("scoringRoute") or {}).get("path") or "/score")


def _forward(server: str, path: str, call: Call) -> Answer:
    address = urlsplit(server)
    connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=30)
    try:
        headers = {name: value for name, value in call.headers.items() if name in _ONWARD}
        connection.request(call.method, address.path.rstrip("/") + path, call.body or None, headers)
        answer = connection.getresponse()
        said = {"x-request-id": answer.getheader("x-request-id") or ""}
        return Answer(answer.status, answer.read(), said, answer.getheader("Content-Type") or "application/json")
    except OSError as error:
        return Answer(
            502,
            {"error": {"code": "BadGateway", "message": f"the server behind the deployment does not answer: {error}"}},
        )
    finally:
        connection.close()
