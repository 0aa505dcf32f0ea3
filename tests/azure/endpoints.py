"""Managed online endpoints and their deployments."""

from __future__ import annotations

import copy
import secrets
from typing import Any

from tests.azure.faults import Faults
from tests.azure.places import WORKSPACE
from tests.azure.resources import Store, merged, method_not_allowed, page
from tests.azure.wire import Answer, Call, Refused, without_nulls


class Endpoints:
    def __init__(self, store: Store, faults: Faults) -> None:
        self._store = store
        self._faults = faults
        self._keys: dict[str, dict[str, str]] = {}
        # By endpoint: the traffic before its last change, and how often it is still told.
        self._stale: dict[str, tuple[dict[str, int], int]] = {}

    def endpoint(self, call: Call, name: str | None) -> Answer:
        where = f"{WORKSPACE}/onlineEndpoints"
        if name is None:
            return page(self._store.under(where), call, self._store.base)
        match call.method:
            case "GET":
                return Answer(200, self._as_read(self._store.need(f"{where}/{name}")))
            case "PUT":
                return self._put(name, without_nulls(call.json()))
            case "PATCH":
                # Of the published operation `OnlineEndpoints_Update`: traffic is not among it.
                _only(call.json(), {"identity", "tags"})
                old = self._store.need(f"{where}/{name}")
                return self._change(merged(old, call.json()), name, status=202)
            case "DELETE":
                return self._delete(name)
        raise method_not_allowed(call)

    def list_keys(self, name: str) -> Answer:
        endpoint = self._store.need(f"{WORKSPACE}/onlineEndpoints/{name}")
        if endpoint["properties"].get("authMode") != "Key":
            raise Refused(400, "UserError", f"Endpoint {name} does not use keys.")
        return Answer(200, self.keys(name))

    def keys(self, name: str) -> dict[str, str]:
        fresh = {"primaryKey": secrets.token_hex(16), "secondaryKey": secrets.token_hex(16)}
        return self._keys.setdefault(name.lower(), fresh)

    def token(self, name: str) -> Answer:
        self._store.need(f"{WORKSPACE}/onlineEndpoints/{name}")
        life = {"expiryTimeUtc": 4102444800, "refreshAfterTimeUtc": 4102441200, "tokenType": "Bearer"}
        return Answer(200, {"accessToken": self.keys(name)["primaryKey"], **life})

    def _put(self, name: str, body: dict[str, Any]) -> Answer:
        identity = f"{WORKSPACE}/onlineEndpoints/{name}"
        old = self._store.get(identity)
        self._not_busy(identity)
        if "location" not in body:
            raise Refused(400, "LocationRequired", "The location property is required for this definition.")
        given = body["properties"]
        if old and given.get("authMode") != old["properties"].get("authMode"):
            raise Refused(400, "UserError", "The authMode of an endpoint cannot be changed.")
        self._check_traffic(name, given.get("traffic", {}), given.get("mirrorTraffic", {}))
        return self._change(body, name, status=200 if old else 201)

    def _change(self, body: dict[str, Any], name: str, *, status: int) -> Answer:
        identity = f"{WORKSPACE}/onlineEndpoints/{name}"
        old = self._store.get(identity)
        before = dict(old["properties"].get("traffic", {})) if old else {}
        made = self._store.put(identity, body, "onlineEndpoints")
        made["properties"].setdefault("traffic", {})
        made["properties"].setdefault("mirrorTraffic", {})
        made["properties"].setdefault("publicNetworkAccess", "Enabled")
        score = f"{self._store.base}/score/{name}"
        made["properties"].update(scoringUri=score, swaggerUri=f"{score}/swagger.json")
        if old and before != made["properties"]["traffic"] and self._faults.stale_reads:
            self._stale[name.lower()] = (before, self._faults.stale_reads)
        return self._store.start(made, status, "Updating" if old else "Creating", lambda: self._succeeded(identity))

    def _as_read(self, endpoint: dict[str, Any]) -> dict[str, Any]:
        key = endpoint["name"].lower()
        traffic, times = self._stale.get(key, ({}, 0))
        if not times:
            return endpoint
        self._stale[key] = (traffic, times - 1)
        told = copy.deepcopy(endpoint)
        told["properties"]["traffic"] = traffic
        return told

    def _check_traffic(self, name: str, traffic: dict[str, int], mirror: dict[str, int]) -> None:
        there = {one["name"] for one in self._store.under(f"{WORKSPACE}/onlineEndpoints/{name}/deployments")}
        if unknown := sorted((set(traffic) | set(mirror)) - there):
            raise Refused(400, "UserError", f"Traffic is given to deployments that do not exist: {unknown}.")
        if any(not 0 <= share <= 100 for share in traffic.values()) or sum(traffic.values()) not in (0, 100):
            raise Refused(400, "UserError", f"Traffic must sum to 100 or to 0, not to {sum(traffic.values())}.")
        if mirror and (len(mirror) > 1 or not 0 <= sum(mirror.values()) <= 50):
            raise Refused(400, "UserError", "Mirror traffic goes to one deployment, and is at most 50 percent.")
        if both := sorted(key for key in mirror if mirror[key] and traffic.get(key)):
            raise Refused(400, "UserError", f"A deployment takes live or mirrored traffic, not both: {both}.")

    def _delete(self, name: str) -> Answer:
        identity = f"{WORKSPACE}/onlineEndpoints/{name}"
        found = self._store.get(identity)
        if found is None:
            return Answer(204)

        def gone() -> None:
            start = identity.lower()
            for key in [key for key in self._store.resources if key == start or key.startswith(start + "/")]:
                del self._store.resources[key]

        return self._store.start(found, 202, "Deleting", gone)

    def deployment(self, call: Call, endpoint: str, name: str | None) -> Answer:
        where = f"{WORKSPACE}/onlineEndpoints/{endpoint}/deployments"
        self._store.need(f"{WORKSPACE}/onlineEndpoints/{endpoint}")
        if name is None:
            return page(self._store.under(where), call, self._store.base)
        identity = f"{where}/{name}"
        match call.method:
            case "GET":
                return Answer(200, self._store.need(identity))
            case "PUT":
                return self._deploy(identity, without_nulls(call.json()), merge=False)
            case "PATCH":
                # Of the published operation `OnlineDeployments_Update`.
                _only(call.json(), {"sku", "tags"})
                return self._deploy(identity, merged(self._store.need(identity), call.json()), merge=True)
            case "DELETE":
                return self._undeploy(endpoint, name, identity)
        raise method_not_allowed(call)

    def _deploy(self, identity: str, body: dict[str, Any], *, merge: bool) -> Answer:
        old = self._store.get(identity)
        self._not_busy(identity)
        given = body["properties"]
        for reference in (given.get("environmentId"), given.get("model")):
            if reference and reference.startswith("/subscriptions/"):
                self._store.need(reference)
        made = self._store.put(identity, body, "onlineEndpoints/deployments")
        # Read by the SDK without asking whether they are there.
        made["properties"].setdefault("scaleSettings", {"scaleType": "Default"})
        made.setdefault("sku", {"name": "Default", "capacity": 1})
        finish = lambda: self._deployed(identity)  # noqa: E731  a closure over this identity
        return self._store.start(made, 202 if merge else 200 if old else 201, "Updating" if old else "Creating", finish)

    def _deployed(self, identity: str) -> dict[str, str] | None:
        said = self._faults.failing_deployments.get(identity.rsplit("/", 1)[1])
        if said is None:
            self._succeeded(identity)
            return None
        if found := self._store.resources.get(identity.lower()):
            found["properties"]["provisioningState"] = "Failed"
        return {"code": "UserContainerError", "message": said}

    def _undeploy(self, endpoint: str, name: str, identity: str) -> Answer:
        found = self._store.get(identity)
        if found is None:
            return Answer(204)
        given = self._store.need(f"{WORKSPACE}/onlineEndpoints/{endpoint}")["properties"]
        if given["traffic"].get(name) or given["mirrorTraffic"].get(name):
            raise Refused(
                400, "UserError", f"Cannot delete deployment {name} as it has traffic. Set its traffic to 0 first."
            )
        self._not_busy(identity)

        def gone() -> None:
            self._store.resources.pop(identity.lower(), None)
            given["traffic"].pop(name, None)
            given["mirrorTraffic"].pop(name, None)

        return self._store.start(found, 202, "Deleting", gone)

    def _succeeded(self, identity: str) -> None:
        if found := self._store.resources.get(identity.lower()):
            found["properties"]["provisioningState"] = "Succeeded"

    def _not_busy(self, identity: str) -> None:
        if self._store.busy(identity):
            raise Refused(409, "Conflict", f"There is an operation in progress on {identity}. Wait for it to end.")


def _only(body: dict[str, Any], allowed: set[str]) -> None:
    if refused := sorted(set(body) - allowed):
        raise Refused(400, "InvalidRequestContent", f"PATCH takes {sorted(allowed)}, not {refused}.")
