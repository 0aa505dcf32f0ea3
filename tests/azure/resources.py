"""What ARM keeps: resources by their ids, long-running operations, and the workspace's versioned assets."""

from __future__ import annotations

import copy
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import RLock
from typing import Any

from dropforge.adapters.azure.places import DATASTORES
from tests.azure.places import LOCATION, PROVIDER, SUBSCRIPTION, WORKSPACE, now
from tests.azure.run_events import RunEvents
from tests.azure.wire import Answer, Call, Refused, without_nulls

# What may change after an asset's version was registered.
_MUTABLE = frozenset({"description", "tags", "properties", "isArchived", "stage", "autoDeleteSetting"})
# The containers that come with every workspace, and their datastores.
OWN_CONTAINERS = {"artifacts-of-ws": "workspaceartifactstore", "blobs-of-ws": "workspaceblobstore"}
# Of the path of every operation that puts something, in the API's specification.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,254}")
_VERSION = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")
ASSETS = frozenset({"data", "environments", "models", "codes", "components"})


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """As PATCH does it: objects into each other, null takes away."""
    result = copy.deepcopy(old)
    for key, value in new.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


@dataclass
class Operation:
    """A long-running operation: done when its time has come, whoever looks."""

    resource: str
    done_at: float
    finish: Callable[[], dict[str, str] | None]
    # Of the operation's own error body, when it failed.
    error: dict[str, str] | None = None
    done: bool = False


class Store:
    """Resources by id; ARM's ids ignore case. One lock guards all that the control plane knows."""

    def __init__(self, *, operation_seconds: float, retry_after: str) -> None:
        self.lock = RLock()
        self.base = ""
        self.resources: dict[str, dict[str, Any]] = {}
        self._operations: dict[str, Operation] = {}
        # How long an operation takes.
        self.seconds = operation_seconds
        self._retry_after = retry_after
        # How the service tells of an operation: `Azure-AsyncOperation` and `Location`, or `Location` alone.
        self.asynchronous = True

    def get(self, identity: str) -> dict[str, Any] | None:
        with self.lock:
            self.settle()
            return self.resources.get(identity.lower())

    def need(self, identity: str) -> dict[str, Any]:
        found = self.get(identity)
        if found is None:
            raise not_found(identity)
        return found

    def put(self, identity: str, body: dict[str, Any], kind: str) -> dict[str, Any]:
        """The resource as the service shows it from now on."""
        old = self.resources.get(identity.lower())
        made: dict[str, Any] = copy.deepcopy(without_nulls(body))
        by = {"createdAt": now(), "createdBy": "test", "createdByType": "Application"}
        if old is not None:
            by = old["systemData"]
        changed = {"lastModifiedAt": now(), "lastModifiedBy": "test", "lastModifiedByType": "Application"}
        made.update(
            id=identity,
            name=identity.rsplit("/", 1)[1],
            type=f"{PROVIDER}/workspaces/{kind}",
            systemData={**by, **changed},
        )
        made.setdefault("properties", {})
        self.resources[identity.lower()] = made
        return made

    def under(self, collection: str) -> list[dict[str, Any]]:
        """The resources right below, oldest first."""
        start = collection.lower() + "/"
        with self.lock:
            self.settle()
            found = [(key[len(start) :], one) for key, one in self.resources.items() if key.startswith(start)]
        return [one for name, one in found if "/" not in name]

    def start(
        self, resource: dict[str, Any], status: int, state: str, finish: Callable[[], dict[str, str] | None]
    ) -> Answer:
        """Answers a call whose work goes on; `finish` ends it and says its error, if any."""
        name = secrets.token_hex(16)
        resource["properties"]["provisioningState"] = state
        operation = Operation(resource["id"], time.monotonic() + self.seconds, finish)
        self._operations[name] = operation
        place = f"{self.base}/subscriptions/{SUBSCRIPTION}/providers/{PROVIDER}/locations/{LOCATION}"
        # The SDK reads this one as an integer, and where it is 0 waits for as long as it thinks right.
        headers = {"Retry-After": "1", "x-ms-async-operation-timeout": "PT2H30M"}
        if self.asynchronous:
            headers["Azure-AsyncOperation"] = f"{place}/mfeOperationsStatus/{name}?api-version=2022-02-01-preview"
        if status == 202 or not self.asynchronous:
            headers["Location"] = f"{place}/mfeOperationResults/{name}?api-version=2022-02-01-preview"
        return Answer(status, None if status == 202 else copy.deepcopy(resource), headers)

    def busy(self, identity: str) -> bool:
        self.settle()
        return any(not one.done and one.resource.lower() == identity.lower() for one in self._operations.values())

    def clear(self) -> None:
        self.resources.clear()
        self._operations.clear()

    def settle(self) -> None:
        """Ends what is due."""
        for operation in list(self._operations.values()):
            if not operation.done and operation.done_at <= time.monotonic():
                operation.done = True
                operation.error = operation.finish()

    def operation(self, call: Call) -> Answer:
        """GET of an operation's status or of its result."""
        self.settle()
        kind, name = call.path.rstrip("/").split("/")[-2:]
        operation = self._operations.get(name)
        if operation is None:
            raise not_found(call.path)
        again = {"Retry-After": self._retry_after}
        if kind.lower() == "mfeoperationsstatus":
            if not operation.done:
                return Answer(200, {"status": "InProgress", "percentComplete": 50}, again)
            if operation.error is None:
                return Answer(200, {"status": "Succeeded", "percentComplete": 100})
            return Answer(200, {"status": "Failed", "error": operation.error})
        if not operation.done:
            return Answer(
                202, None, {**again, "Location": f"{self.base}{call.path}?api-version={call.query['api-version']}"}
            )
        if operation.error is not None:
            raise Refused(400, operation.error["code"], operation.error["message"])
        found = self.resources.get(operation.resource.lower())
        return Answer(200, found) if found else Answer(204)


def not_found(identity: str) -> Refused:
    kind, name = (["", *identity.split("/")])[-2:]
    return Refused(404, "NotFound", f"Not found {kind} {name}: the resource {identity} does not exist.")


def no_place(path: str) -> Refused:
    """What ARM says of a path that is not in the workspace: what of it is missing."""
    found = re.match(
        r"/subscriptions/([^/]+)(?:/resourcegroups/([^/]+)(?:/providers/([^/]+/[^/]+)/([^/]+))?)?", path, re.I
    )
    subscription, group, kind, name = found.groups() if found else (None, None, None, None)
    if subscription is None:
        return Refused(404, "NotFound", f"No route to {path}.")
    if subscription != SUBSCRIPTION:
        return Refused(404, "SubscriptionNotFound", f"The subscription '{subscription}' could not be found.")
    if group is not None and group.lower() != "rg":
        return Refused(404, "ResourceGroupNotFound", f"Resource group '{group}' could not be found.")
    message = f"The Resource '{kind}/{name}' under resource group '{group}' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix"
    return Refused(404, "ResourceNotFound", message)


def forbidden(call: Call) -> Refused:
    action = {"GET": "read", "DELETE": "delete"}.get(call.method, "write")
    return Refused(
        403,
        "AuthorizationFailed",
        "The client '00000000-0000-0000-0000-00000000000b' with object id '00000000-0000-0000-0000-00000000000b' does not have "
        f"authorization to perform action '{PROVIDER}/workspaces/{action}' over scope '{call.path}' or the scope is invalid. "
        "If access was recently granted, please refresh your credentials.",
    )


def page(found: list[dict[str, Any]], call: Call, base: str) -> Answer:
    """A page of a listing, and where the next is."""
    size = int(call.query.get("$top", "100"))
    skip = int(call.query.get("$skip", "0"))
    told: dict[str, Any] = {"value": found[skip : skip + size]}
    if skip + size < len(found):
        others = "&".join(f"{name}={value}" for name, value in call.query.items() if name != "$skip")
        told["nextLink"] = f"{base}{call.path}?{others}&$skip={skip + size}"
    return Answer(200, told)


class Assets:
    """Environments, data, models, codes and components: containers of versions that do not change."""

    def __init__(self, store: Store, events: RunEvents) -> None:
        self._store = store
        self._events = events

    def container(self, call: Call, collection: str, name: str | None) -> Answer:
        """`{collection}`, or `{collection}/{name}`."""
        where = f"{WORKSPACE}/{collection}"
        if name is None:
            return page(_listed(self._store.under(where), call), call, self._store.base)
        if call.method == "GET":
            return Answer(200, self._store.need(f"{where}/{name}"))
        if call.method in ("PUT", "PATCH"):
            old = self._store.get(f"{where}/{name}")
            made = self._store.put(f"{where}/{name}", merged(old or {}, call.json()), collection)
            return Answer(200 if old else 201, made)
        raise method_not_allowed(call)

    def version(self, call: Call, collection: str, name: str, version: str | None) -> Answer:
        where = f"{WORKSPACE}/{collection}/{name}/versions"
        if version is None:
            return self._versions(call, where)
        match call.method:
            case "GET":
                return Answer(200, self._store.need(f"{where}/{version}"))
            case "PUT":
                return self._put(call.json(), collection, name, version)
            case "DELETE":
                return Answer(200 if self._store.resources.pop(f"{where}/{version}".lower(), None) else 204)
        raise method_not_allowed(call)

    def _versions(self, call: Call, where: str) -> Answer:
        found = _listed(self._store.under(where), call)
        order = call.query.get("$orderBy", call.query.get("$orderby", "")).lower()
        if "createdtime" in order:
            found = sorted(found, key=lambda one: one["systemData"]["createdAt"], reverse="desc" in order)
        return page(found, call, self._store.base)

    def _put(self, body: dict[str, Any], collection: str, name: str, version: str) -> Answer:
        identity = f"{WORKSPACE}/{collection}/{name}/versions/{version}"
        old = self._store.get(identity)
        given = without_nulls(body).get("properties", {})
        if old is not None:
            before = old["properties"]
            for key in sorted(set(given) - _MUTABLE):
                if given[key] != before.get(key, given[key]):
                    raise Refused(
                        409,
                        "Conflict",
                        f"{collection} {name}:{version} already exists; its immutable property {key} cannot be changed.",
                    )
        made = self._store.put(identity, body, f"{collection}/versions")
        made["properties"].setdefault("isArchived", False)
        made["properties"]["provisioningState"] = "Succeeded"
        if collection == "models":
            # The SDK looks into it without asking whether it is there.
            made["properties"].setdefault("flavors", {})
            made["properties"].setdefault("stage", "None")
        self._count(collection, name)
        if collection == "models" and old is None:
            self._events.registered(name, version, made["properties"])
        return Answer(200 if old else 201, made)

    def _count(self, collection: str, name: str) -> None:
        where = f"{WORKSPACE}/{collection}/{name}"
        versions = self._store.under(f"{where}/versions")
        numbers = [int(one["name"]) for one in versions if one["name"].isdigit()]
        container = self._store.get(where) or self._store.put(where, {"properties": {"isArchived": False}}, collection)
        container["properties"].update(latestVersion=versions[-1]["name"], nextVersion=str(max(numbers, default=0) + 1))


def _listed(found: list[dict[str, Any]], call: Call) -> list[dict[str, Any]]:
    """By `listViewType`: what is archived is not shown unless asked for."""
    view = call.query.get("listViewType", "ActiveOnly")
    if view == "All":
        return found
    return [one for one in found if bool(one["properties"].get("isArchived")) == (view == "ArchivedOnly")]


def check_names(call: Call, segments: list[str]) -> None:
    """Raises `Refused` where the path of a PUT names what cannot be called so; versions are freer."""
    if call.method != "PUT":
        return
    for kind, name in zip(segments[::2], segments[1::2], strict=False):
        if not (_VERSION if kind == "versions" else _NAME).fullmatch(name):
            raise Refused(400, "UserError", f"{name!r} is not a name of {kind}: letters, digits, '-' and '_'.")


def method_not_allowed(call: Call) -> Refused:
    return Refused(405, "MethodNotAllowed", f"The http method {call.method} is not supported for this resource type.")


def patterned(path: str) -> re.Match[str] | None:
    """A path in the workspace, and what follows the workspace."""
    return re.fullmatch(re.escape(WORKSPACE) + r"(?:/(?P<rest>.+?))?/?", path, re.IGNORECASE)


def workspace(base: str, account: str) -> dict[str, Any]:
    identity = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/rg/providers"
    return {
        "id": WORKSPACE,
        "name": "ws",
        "type": f"{PROVIDER}/workspaces",
        "location": LOCATION,
        "tags": {},
        "sku": {"name": "Basic", "tier": "Basic"},
        "identity": {
            "type": "SystemAssigned",
            "principalId": "00000000-0000-0000-0000-00000000000c",
            "tenantId": "00000000-0000-0000-0000-00000000000a",
        },
        "properties": {
            "friendlyName": "ws",
            "workspaceId": "00000000-0000-0000-0000-000000000001",
            "discoveryUrl": f"{base}/discovery",
            "storageAccount": f"{identity}/Microsoft.Storage/storageAccounts/{account}",
            "mlFlowTrackingUri": f"azureml://{base.removeprefix('https://')}/mlflow/v1.0{WORKSPACE}",
            "publicNetworkAccess": "Enabled",
            "provisioningState": "Succeeded",
        },
    }


def datastores(store: Store, account: str) -> None:
    """The datastores of the platform, as its infrastructure makes them: reached as the identity of whoever asks."""
    for container, name in {**DATASTORES, **OWN_CONTAINERS}.items():
        store.put(
            f"{WORKSPACE}/datastores/{name}",
            {
                "properties": {
                    "datastoreType": "AzureBlob",
                    "accountName": account,
                    "containerName": container,
                    "endpoint": "core.windows.net",
                    "protocol": "https",
                    "isDefault": False,
                    "serviceDataAccessAuthIdentity": "None",
                    "credentials": {"credentialsType": "None"},
                }
            },
            "datastores",
        )
