"""Getting a managed online endpoint to the deployment that is wanted, a step at a time.

What a deployment is made of is in its name, so a new image is a new deployment beside the one that answers, and hosts that meet
do the same thing. A rollout has no state but what Azure ML and the replicas tell: each look takes at most the next step of this
list, and waits for nothing.

    endpoint missing                   -> make it
    deployment missing                 -> make it
    provisioned, its replicas serve    -> copy a share of the requests to it, where that is wanted
    copied for long enough             -> all traffic to it
    all traffic seen on it             -> end the copies to others, delete the others made here
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from dropforge.adapters.azure.aml_online import OnlineEndpoint
from dropforge.domain.endpoints import ReplicaState
from dropforge.domain.errors import BadInput, Conflict
from dropforge.domain.names import id_of
from dropforge.ports import Json
from dropforge.settings import AzureML
from dropforge.wire import to_json

MIRROR = timedelta(minutes=5)
# Set by who moves traffic by hand: no rollout goes on until it is taken away.
HELD = "dropforge-held"
_MIRRORED_AT = "dropforge-mirrored-at"
# On the deployments made here; no other is ever deleted.
_OURS = {"dropforge": "serving"}
_BUSY = frozenset({"Creating", "Updating", "Scaling", "Deleting"})
_PROBE = {"initialDelay": "PT10S", "period": "PT10S", "timeout": "PT5S", "successThreshold": 1}


class Stand(Enum):
    WAITING = "waiting"
    SETTLED = "settled"
    HELD = "held"
    FAILED = "failed"


@dataclass(frozen=True)
class Progress:
    """Where a rollout stands, why, and the deployment it is about."""

    stand: Stand
    why: str
    deployment: str


@dataclass(frozen=True)
class Look:
    """The endpoint and its deployments as Azure ML tells them now."""

    endpoint: Json
    deployments: dict[str, Json]

    @property
    def traffic(self) -> dict[str, int]:
        return _shares(self.endpoint, "traffic")

    @property
    def mirror(self) -> dict[str, int]:
        return _shares(self.endpoint, "mirrorTraffic")

    @property
    def tags(self) -> dict[str, str]:
        return dict(self.endpoint.get("tags") or {})

    @property
    def ours(self) -> list[str]:
        """The deployments that were made here."""
        return [name for name, each in self.deployments.items() if _OURS.items() <= (each.get("tags") or {}).items()]


@dataclass(frozen=True)
class Plan:
    """What the settings want behind the endpoint."""

    settings: AzureML
    # The URL of the storage account, with nothing secret in it.
    storage: str

    @property
    def name(self) -> str:
        """Of the deployment, made of all that must be equal; the number of instances may differ."""
        made_of = {"image": self.settings.serve_image, "properties": self._properties({})}
        return f"s{id_of(to_json(made_of).decode())[:8]}"

    @property
    def properties(self) -> Json:
        """The deployment as Azure ML takes it, but for its environment."""
        return self._properties({"DROPFORGE_DEPLOYMENT": self.name})

    @property
    def image(self) -> str:
        if self.settings.serve_image is None:
            raise BadInput(
                "DROPFORGE_SERVE_IMAGE must name the image of the inference server (<registry>.azurecr.io/<name>@sha256:...) "
                "for a managed endpoint to be given a deployment"
            )
        return self.settings.serve_image

    def _properties(self, more: dict[str, str]) -> Json:
        told = {
            "DROPFORGE_STORAGE": self.storage,
            "DROPFORGE_SERVE_NO_KEY": "true",
            "DROPFORGE_SERVE_WORKERS": str(self.settings.serve_workers),
            **more,
        }
        if self.settings.serve_client_id is not None:
            told["AZURE_CLIENT_ID"] = self.settings.serve_client_id
            if self.settings.insights is not None:
                told["APPLICATIONINSIGHTS_CONNECTION_STRING"] = self.settings.insights
                told["APPLICATIONINSIGHTS_AUTHENTICATION_STRING"] = (
                    f"ClientId={self.settings.serve_client_id};Authorization=AAD"
                )
        if self.settings.serve_log_requests is not None:
            told["DROPFORGE_SERVE_LOG_REQUESTS"] = self.settings.serve_log_requests
        return {
            "endpointComputeType": "Managed",
            "instanceType": self.settings.serve_instance_type,
            "environmentVariables": told,
            # Azure ML's own limit is one request at a time; the server queues as many as this itself.
            "requestSettings": {"requestTimeout": "PT60S", "maxConcurrentRequestsPerInstance": 256},
            "livenessProbe": {**_PROBE, "failureThreshold": 30},
            # Until the models are loaded: a large one takes minutes to come.
            "readinessProbe": {**_PROBE, "failureThreshold": 60},
            "scaleSettings": {"scaleType": "Default"},
            "appInsightsEnabled": True,
        }


class Rollout:
    """Of one plan on one endpoint. Raises what `OnlineEndpoint` raises."""

    def __init__(self, online: OnlineEndpoint, plan: Plan, mirror: timedelta = MIRROR) -> None:
        self._online = online
        self._plan = plan
        self._mirror = mirror
        self.name = plan.name

    def look(self) -> Look | None:
        """What is there; None: no endpoint."""
        endpoint = self._online.read()
        return Look(endpoint, self._online.deployments()) if endpoint is not None else None

    def advance(self, replicas: Sequence[ReplicaState], revision: int, now: datetime, again: bool = False) -> Progress:
        """Look, take the next step if there is one, and tell. `replicas` and `revision` are of the endpoint that is being
        deployed; `again`: what failed is tried anew."""
        look = self.look()
        settings = self._plan.settings
        if look is None:
            self._online.create(settings.endpoint_auth, settings.endpoint_public, settings.serve_identity)
            return self._waiting("the endpoint is being made")
        if HELD in look.tags:
            return self._told(Stand.HELD, "traffic was set by hand")
        state = _state(look.endpoint)
        if state in _BUSY:
            return self._waiting(f"the endpoint is {state.lower()}")
        if state != "Succeeded":
            return self._endpoint_failed(look, again)
        mine = look.deployments.get(self.name)
        if mine is None:
            self._deploy(look)
            return self._waiting("the deployment is being made")
        state = _state(mine)
        if state in _BUSY:
            return self._waiting(f"the deployment is {state.lower()}")
        if state != "Succeeded":
            return self._deployment_failed(look, state, again)
        if look.traffic == {self.name: 100}:
            return self._clean(look)
        own = [each for each in replicas if each.detail.get("deployment") == self.name]
        if not own or any(each.revision != revision or not each.ready for each in own):
            return self._waiting(f"its replicas ({len(own)} report) do not all serve revision {revision} yet")
        return self._move(look, own, now)

    def _endpoint_failed(self, look: Look, again: bool) -> Progress:
        if not again:
            return self._told(
                Stand.FAILED, f"the endpoint is in state {_state(look.endpoint)}; deploy again to try again"
            )
        self._online.change(look.endpoint, look.traffic, look.mirror, look.tags)
        return self._waiting("the endpoint is written again")

    def _deployment_failed(self, look: Look, state: str, again: bool) -> Progress:
        if not again:
            said = self._online.log(self.name)
            return self._told(
                Stand.FAILED,
                f"deployment {self.name} (image {self._plan.image}) is in state {state}; its log ends: {said or 'nothing'}",
            )
        if look.traffic.get(self.name) or look.mirror.get(self.name):
            self._deploy(look)
        else:
            self._online.delete(self.name)
        return self._waiting("the deployment that failed is made anew")

    def _deploy(self, look: Look) -> None:
        plan = self._plan
        location, instances = str(look.endpoint["location"]), plan.settings.serve_instances
        self._online.deploy(self.name, location, plan.image, instances, plan.properties, _OURS)

    def _move(self, look: Look, own: Sequence[ReplicaState], now: datetime) -> Progress:
        share = self._plan.settings.serve_mirror_percent
        # A deployment has requests of its own or copies, never both.
        if share and look.traffic and not look.traffic.get(self.name):
            since = look.tags.get(_MIRRORED_AT)
            if since is None or not look.mirror.get(self.name):
                tags = {**look.tags, _MIRRORED_AT: now.isoformat()}
                self._online.change(look.endpoint, look.traffic, {self.name: share}, tags)
                return self._waiting(f"{share} percent of the requests begin to be copied to it")
            if failed := sum(each.failed for each in own):
                return self._told(Stand.FAILED, f"deployment {self.name} failed {failed} of the requests copied to it")
            if now - datetime.fromisoformat(since) < self._mirror:
                return self._waiting(f"{share} percent of the requests are copied to it since {since}")
        self._online.change(look.endpoint, {self.name: 100}, {}, _uncopied(look.tags))
        return self._waiting("all traffic is being moved to it")

    def _clean(self, look: Look) -> Progress:
        # Of an image that was taken back before it answered: what is given copies cannot be deleted.
        if copied := [name for name in look.mirror if name in look.ours]:
            self._online.change(look.endpoint, look.traffic, {}, _uncopied(look.tags))
            return self._waiting(f"requests are no longer copied to deployment {copied[0]}")
        for name in look.ours:
            if name == self.name or _state(look.deployments[name]) == "Deleting":
                continue
            try:
                self._online.delete(name)
            except (Conflict, BadInput) as error:
                # Busy, or what was read of the traffic is not yet true everywhere.
                return self._waiting(error.message)
            return self._waiting(f"deployment {name}, which answered before, is being deleted")
        return self._told(Stand.SETTLED, "all traffic is on it")

    def _waiting(self, why: str) -> Progress:
        return self._told(Stand.WAITING, why)

    def _told(self, stand: Stand, why: str) -> Progress:
        return Progress(stand, why, self.name)


def _uncopied(tags: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if key != _MIRRORED_AT}


def _state(resource: Json) -> str:
    return str(resource["properties"].get("provisioningState") or "Succeeded")


def _shares(endpoint: Json, which: str) -> dict[str, int]:
    return {name: int(share) for name, share in (endpoint["properties"].get(which) or {}).items() if share}
