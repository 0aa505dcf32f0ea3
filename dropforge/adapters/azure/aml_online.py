"""A managed online endpoint of Azure ML and its deployments, as JSON: one call of the service each.

The SDK's client underneath its operations is used: `begin_create_or_update` and its like leave a thread behind that polls, and
reading a deployment to write it back loses what is shorter than a second. Nothing here waits, or reads to write back, but for
the endpoint itself, whose traffic can only be changed by a PUT of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dropforge.adapters.azure import aml_client
from dropforge.domain.errors import DropforgeError, NotFound
from dropforge.domain.names import id_of
from dropforge.ports import Json

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

ENVIRONMENT = "dropforge-serving"
PORT = 8000
_ROUTES = {
    "liveness_route": {"path": "/v2/health/live", "port": PORT},
    "readiness_route": {"path": "/v2/health/ready", "port": PORT},
    # Every route below the host is passed on; this one is only where the portal and `scoring_uri` point to.
    "scoring_route": {"path": "/v2/models", "port": PORT},
}
# What of an endpoint is written; the rest of what is read is the service's own.
_WRITTEN = ("authMode", "description", "properties", "publicNetworkAccess")
# Whoever throttles us is asked again at the next look, not by a thread that sleeps.
_AT_ONCE = {"retry_total": 0}
_NO_POLLER = {**_AT_ONCE, "polling": False}
_LOG_LINES = 20
_LOG_CHARACTERS = 1000


class OnlineEndpoint:
    """The endpoint with that name in a workspace. Raises what `aml_client.mapped` makes of the service's errors."""

    def __init__(self, workspace: str, name: str) -> None:
        self.name = name
        self._workspace = workspace
        _, self._group, self._in = aml_client.parts(workspace)

    def read(self) -> Json | None:
        """The endpoint, or None."""
        try:
            with self._asking(f"endpoint {self.name!r}") as client:
                return dict(client.online_endpoints._online_operation.get(*self._place, **_AT_ONCE).as_dict())
        except NotFound:
            return None

    def create(self, auth_mode: str, public: bool, identity: str | None) -> None:
        """Make it, with no traffic. `identity`: resource id of the one that replicas have; None: the endpoint's own."""
        told: Json = {"type": "SystemAssigned"}
        if identity is not None:
            told = {"type": "UserAssigned", "userAssignedIdentities": {identity: {}}}
        modes = {"key": "Key", "aad_token": "AADToken"}
        access = "Enabled" if public else "Disabled"
        properties = {"authMode": modes[auth_mode], "publicNetworkAccess": access, "traffic": {}, "mirrorTraffic": {}}
        with self._asking("the workspace") as client:
            location = str(client.workspaces.get(self._in).location)
        self._put({"location": location, "identity": told, "tags": {}, "properties": properties})

    def change(self, found: Json, traffic: dict[str, int], mirror: dict[str, int], tags: dict[str, str]) -> None:
        """Write the endpoint as it was found, with other traffic and tags."""
        identity = {"type": found.get("identity", {}).get("type", "SystemAssigned")}
        if assigned := found.get("identity", {}).get("userAssignedIdentities"):
            identity["userAssignedIdentities"] = {each: {} for each in assigned}
        kept = {key: found["properties"][key] for key in _WRITTEN if found["properties"].get(key) is not None}
        properties = {**kept, "traffic": traffic, "mirrorTraffic": mirror}
        body = {"location": found["location"], "identity": identity, "tags": tags, "properties": properties}
        self._put({**body, **{key: found[key] for key in ("kind", "sku") if found.get(key)}})

    def deployments(self) -> dict[str, Json]:
        """Its deployments by name."""
        with self._asking(f"deployments of endpoint {self.name!r}") as client:
            listed = client.online_deployments._online_deployment.list(*self._place, **_AT_ONCE)
            return {str(each["name"]): each.as_dict() for each in listed}

    def deploy(
        self, name: str, location: str, image: str, instances: int, properties: Json, tags: dict[str, str]
    ) -> None:
        """Make the deployment, or make it anew from the same; equal calls are one deployment. `instances` counts only when
        it is not there yet."""
        body = {
            "location": location,
            "tags": tags,
            "sku": {"name": "Default", "capacity": instances},
            "properties": {**properties, "environmentId": self._environment(image)},
        }
        with self._asking(self._called(name)) as client:
            client.online_deployments._online_deployment.begin_create_or_update(*self._place, name, body, **_NO_POLLER)

    def scale(self, name: str, instances: int) -> None:
        """Give the deployment so many instances."""
        body = {"sku": {"name": "Default", "capacity": instances}}
        with self._asking(self._called(name)) as client:
            client.online_deployments._online_deployment.begin_update(*self._place, name, body, **_NO_POLLER)

    def delete(self, name: str) -> None:
        """Take the deployment away; no effect when there is none. The service refuses while it has traffic."""
        with self._asking(self._called(name)) as client:
            client.online_deployments._online_deployment.begin_delete(*self._place, name, **_NO_POLLER)

    def log(self, name: str) -> str:
        """The end of what the deployment's container printed; empty when that cannot be had."""
        try:
            with self._asking(f"log of {self._called(name)}") as client:
                body = {"tail": _LOG_LINES}
                told = client.online_deployments._online_deployment.get_logs(*self._place, name, body, **_AT_ONCE)
                return " ".join(str(told.content or "").split())[-_LOG_CHARACTERS:]
        except DropforgeError:
            return ""

    @property
    def _place(self) -> tuple[str, str, str]:
        return self._group, self._in, self.name

    def _called(self, deployment: str) -> str:
        return f"deployment {deployment!r} of endpoint {self.name!r}"

    def _put(self, body: Json) -> None:
        with self._asking(f"endpoint {self.name!r}") as client:
            client.online_endpoints._online_operation.begin_create_or_update(*self._place, body, **_NO_POLLER)

    def _environment(self, image: str) -> str:
        """The ARM id of the environment that runs the image. Its version is made of the image, so whoever comes second
        writes the same."""
        from azure.ai.ml.entities import Environment

        version = id_of(image)[:12]
        made = Environment(name=ENVIRONMENT, version=version, image=image, inference_config=_ROUTES)
        with self._asking(f"environment {ENVIRONMENT}:{version}") as client:
            return str(client.environments.create_or_update(made).id)

    @contextmanager
    def _asking(self, what: str) -> Iterator[MLClient]:
        with aml_client.asking(self._workspace, what):
            yield aml_client.ml_client(self._workspace)
