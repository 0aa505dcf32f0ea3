"""Serving by a managed online endpoint of Azure ML whose replicas watch the desired states in a storage account.

A new model needs no word to Azure ML: the replicas swap it in. What a new image needs is in `aml_rollout.py`; every publish and
every observe takes at most its next step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from threading import Lock

from dropforge.adapters.azure import storage as storage_account
from dropforge.adapters.azure.aml_online import OnlineEndpoint
from dropforge.adapters.azure.aml_rollout import HELD, MIRROR, Look, Plan, Progress, Rollout, Stand
from dropforge.adapters.azure.serving import BlobServing
from dropforge.domain.endpoints import PROVISIONING, Desired, ReplicaState
from dropforge.domain.errors import BadInput, Conflict, DropforgeError, NotFound, Refused, Unavailable
from dropforge.ports import Json
from dropforge.settings import AzureML

log = logging.getLogger(__name__)

# Of what one process knows of Azure ML: a flow asks more often than provisioning, of minutes, gets on.
LOOK = timedelta(seconds=5)


def _rollout(settings: AzureML, storage: str, mirror: timedelta = MIRROR) -> tuple[OnlineEndpoint, Rollout]:
    if settings.endpoint is None:
        raise BadInput("DROPFORGE_AML_ENDPOINT must name the managed online endpoint")
    # A connection string holds a key, a URL may hold a SAS: replicas come with their identity.
    with closing(storage_account.service(storage)) as service:
        url = storage_account.endpoint(service)
    online = OnlineEndpoint(settings.workspace, settings.endpoint)
    return online, Rollout(online, Plan(settings, url), mirror)


class ManagedEndpointServing:
    """`Serving` over the blobs of `serving`, whose replicas run behind the managed endpoint that `settings` name."""

    def __init__(
        self,
        serving: BlobServing,
        settings: AzureML,
        storage: str,
        look: timedelta = LOOK,
        mirror: timedelta = MIRROR,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`look`: how long what Azure ML told is good for. Raises `BadInput` for settings that name no endpoint."""
        self._serving = serving
        self._online, self._rollout = _rollout(settings, storage, mirror)
        self._look = look.total_seconds()
        self._clock = clock
        self._lock = Lock()
        self._seen: dict[str, tuple[float, Progress]] = {}

    def close(self) -> None:
        """Close the connections to the storage account."""
        self._serving.close()

    def publish(self, desired: Desired) -> None:
        self._serving.publish(desired)
        # Whoever publishes tries what failed anew. What goes wrong is seen, and told, by the next look: the replicas know
        # already what to serve.
        progress = self._advanced(desired, [], again=True)
        if progress.stand is Stand.FAILED:
            log.warning("endpoint %s: %s", self._online.name, progress.why)

    def desired(self, endpoint: str) -> Desired | None:
        return self._serving.desired(endpoint)

    def observe(self, endpoint: str) -> list[ReplicaState]:
        states = self._serving.observe(endpoint)
        desired = self._serving.desired(endpoint)
        if desired is None:
            return states
        with self._lock:
            at, progress = self._seen.get(endpoint, (0.0, None))
        if progress is None or time.monotonic() - at >= self._look:
            progress = self._advanced(desired, states)
        if progress.stand is Stand.HELD:
            return states
        # A replica that runs elsewhere names no deployment. Those of an older one say nothing of the new one, whose image
        # may be what it takes to load the model.
        counted = [each for each in states if each.detail.get("deployment") in (None, progress.deployment)]
        return counted if progress.stand is Stand.SETTLED else [*counted, self._on_the_way(desired, progress)]

    def _advanced(self, desired: Desired, states: list[ReplicaState], again: bool = False) -> Progress:
        name = self._rollout.name
        try:
            progress = self._rollout.advance(states, desired.revision, self._clock(), again)
        except (Unavailable, Conflict) as error:
            # Throttled, no right to it yet, or another host is at it: looked at again, until the flow's time is up.
            progress = Progress(Stand.WAITING, error.message, name)
        except DropforgeError as error:
            progress = Progress(Stand.FAILED, error.message, name)
        with self._lock:
            self._seen[desired.endpoint] = (time.monotonic(), progress)
        return progress

    def _on_the_way(self, desired: Desired, progress: Progress) -> ReplicaState:
        """What the endpoint says for itself while it is not there yet."""
        failed = progress.stand is Stand.FAILED
        place = f"{self._online.name}/{progress.deployment}"
        return ReplicaState(
            # The name is what a flow shows of a replica that is late.
            replica=place if failed else f"{place} ({progress.why})",
            endpoint=desired.endpoint,
            revision=0,
            wanted_revision=desired.revision,
            versions=(),
            ready=False,
            requests=0,
            failed=0,
            swaps=0,
            reported_at=self._clock(),
            error=progress.why if failed else None,
            detail={"deployment": progress.deployment, **({} if failed else {PROVISIONING: progress.why})},
        )


class EndpointOperator:
    """What people and pipelines do to the endpoint by hand. Whatever moves traffic also holds the endpoint: flows go on
    swapping models, but no rollout moves traffic or deletes a deployment until `release`."""

    def __init__(self, settings: AzureML, storage: str) -> None:
        self._online, self._rollout = _rollout(settings, storage)

    def status(self) -> Look:
        """The endpoint and its deployments. Raises `NotFound`."""
        look = self._rollout.look()
        if look is None:
            raise NotFound(f"there is no endpoint {self._online.name!r}; the first deployment of a model makes it")
        return look

    def told(self) -> Json:
        """The status as JSON, for people and scripts."""
        look = self.status()
        deployments = [
            {
                "name": name,
                "state": each["properties"].get("provisioningState"),
                "instances": (each.get("sku") or {}).get("capacity"),
                "instance_type": each["properties"].get("instanceType"),
                "traffic": look.traffic.get(name, 0),
                "mirror": look.mirror.get(name, 0),
                "wanted": name == self._rollout.name,
            }
            for name, each in sorted(look.deployments.items())
        ]
        found = look.endpoint["properties"]
        return {
            "endpoint": self._online.name,
            "state": found.get("provisioningState"),
            "held": HELD in look.tags,
            "url": found.get("scoringUri"),
            "deployments": deployments,
        }

    def set_traffic(self, shares: dict[str, int]) -> None:
        """Percent per deployment; deployments that are left out get none."""
        look = self.status()
        self._check(look, shares)
        if sum(shares.values()) != 100 or min(shares.values()) < 0:
            raise BadInput(f"traffic wants percents that sum to 100, found {shares}")
        mirror = {name: share for name, share in look.mirror.items() if not shares.get(name)}
        self._change(look, {name: share for name, share in shares.items() if share}, mirror)

    def set_mirror(self, deployment: str, percent: int) -> None:
        """Copy that share of the requests to a deployment without traffic, whose answers are dropped; 0 ends it."""
        look = self.status()
        self._check(look, [deployment])
        if not 0 <= percent <= 50:
            raise BadInput(f"mirrored traffic wants a percent from 0 to 50, found {percent}")
        if look.traffic.get(deployment):
            raise Refused(f"deployment {deployment!r} has traffic of its own; requests are copied to one that has none")
        self._change(look, look.traffic, {deployment: percent} if percent else {})

    def scale(self, instances: int, deployment: str | None = None) -> None:
        """Give a deployment (None: the only one with traffic) so many instances. Holds nothing."""
        look = self.status()
        if deployment is None:
            if len(look.traffic) != 1:
                raise BadInput(f"{len(look.traffic)} deployments have traffic; name one of {sorted(look.deployments)}")
            deployment = next(iter(look.traffic))
        self._check(look, [deployment])
        if not 1 <= instances <= 100:
            raise BadInput(f"a deployment wants 1 to 100 instances, found {instances}")
        self._online.scale(deployment, instances)

    def roll_back(self) -> str:
        """All traffic to the deployment before the one that the settings want, while it is still there; its name."""
        look = self.status()
        earlier = [name for name in look.ours if name != self._rollout.name and _answers(look, name)]
        if len(earlier) != 1:
            found = f"there are {sorted(earlier)}" if earlier else "there is none"
            raise Refused(
                f"endpoint {self._online.name!r} goes back to the one deployment before {self._rollout.name}, and {found}; "
                "set DROPFORGE_SERVE_IMAGE to the image before and deploy again, or set traffic to the one you mean"
            )
        self._change(look, {earlier[0]: 100}, {})
        return earlier[0]

    def release(self) -> None:
        """Let rollouts go on: the next deployment of a model brings the endpoint to what the settings want."""
        look = self.status()
        tags = {key: value for key, value in look.tags.items() if key != HELD}
        if tags != look.tags:
            self._online.change(look.endpoint, look.traffic, look.mirror, tags)

    def _change(self, look: Look, traffic: dict[str, int], mirror: dict[str, int]) -> None:
        self._online.change(look.endpoint, traffic, mirror, {**look.tags, HELD: "true"})

    def _check(self, look: Look, names: dict[str, int] | list[str]) -> None:
        if unknown := sorted(set(names) - look.deployments.keys()):
            raise BadInput(
                f"endpoint {self._online.name!r} has no deployment {', '.join(unknown)}; "
                f"choose from {sorted(look.deployments)}"
            )


def _answers(look: Look, name: str) -> bool:
    return bool(look.deployments[name]["properties"].get("provisioningState") == "Succeeded")
