"""What an endpoint answers with: a slot holds a lineup of loaded models, and a swap is one assignment to it."""

from __future__ import annotations

import random
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import accumulate

from dropforge.domain.endpoints import Deployment, Desired, ReplicaState
from dropforge.domain.errors import BadInput, NotFound
from dropforge.serving.metrics import Counts
from dropforge.serving.models import Model, load, warm_up
from dropforge.serving.tensors import Feeds

# Versions whose counts are kept after they stopped answering, so that the last scrape of a rolled-back one is not lost.
KEPT_COUNTS = 16


class Lineup:
    """The loaded deployments of one revision of an endpoint."""

    def __init__(self, desired: Desired, models: tuple[Model, ...]) -> None:
        self.revision = desired.revision
        self.deployments = desired.deployments
        self.models = models
        # Requests that hold one of the models; only the event loop counts.
        self.in_flight = 0

    def choose(self, request_id: str | None) -> Model:
        """The model that answers; equal request ids get the same one while the traffic stays as it is."""
        if len(self.models) == 1:
            return self.models[0]
        # S311: which of two model versions answers is no secret.
        point = zlib.crc32(request_id.encode()) % 100 if request_id is not None else random.randrange(100)  # noqa: S311
        ends = accumulate(deployment.traffic for deployment in self.deployments)
        return next(model for model, end in zip(self.models, ends, strict=True) if point < end)

    def version(self, version: str) -> Model:
        """The model of that version, whatever its traffic. Raises `NotFound`."""
        for model in self.models:
            if str(model.deployment.version) == version:
                return model
        raise NotFound(f"version {version[:40]!r} is not loaded; choose from {self.versions}")

    @property
    def versions(self) -> list[str]:
        return [str(model.deployment.version) for model in self.models]

    @property
    def slow(self) -> float:
        """The longest that a small request to any of the models took lately, in seconds."""
        return max(model.small_seconds for model in self.models)


@dataclass
class Slot:
    """One endpoint on this replica. Touched by the event loop only, except that any thread may leave a `sample`."""

    endpoint: str
    started_at: datetime
    wanted: Desired | None = None
    lineup: Lineup | None = None
    error: str | None = None
    detail: dict[str, str] = field(default_factory=dict)
    swaps: int = 0
    # A small request that was answered lately: the next model is warmed up with it.
    sample: Feeds | None = None
    counts: OrderedDict[tuple[str, int], Counts] = field(default_factory=OrderedDict)
    requests: int = 0
    failed: int = 0

    def swap(self, lineup: Lineup, detail: dict[str, str]) -> Lineup | None:
        """From the next request on, `lineup` answers. Returns the one before it, which may still have requests in flight."""
        old, self.lineup = self.lineup, lineup
        self.error, self.detail = None, detail
        if old is not None and old.models != lineup.models:
            self.swaps += 1
        return old

    def count(self, model: Model, seconds: float, failed: bool) -> None:
        """One request was answered, or failed by the model's fault."""
        self.requests += 1
        self.failed += failed
        key = (model.deployment.model, model.deployment.version)
        counts = self.counts.get(key)
        if counts is None:
            counts = self.counts[key] = Counts()
            loaded = {(m.deployment.model, m.deployment.version) for m in self.lineup.models} if self.lineup else set()
            for old in [each for each in self.counts if each not in loaded | {key}][:-KEPT_COUNTS]:
                del self.counts[old]
        counts.add(seconds, failed)

    def state(self, replica: str, now: datetime) -> ReplicaState:
        """What the replica reports of this endpoint."""
        loaded = self.lineup.models if self.lineup else ()
        revision = self.lineup.revision if self.lineup else 0
        counted = {
            f"{what}_v{version}": str(number)
            for (_, version), counts in self.counts.items()
            for what, number in (("requests", counts.requests), ("failed", counts.failed))
            if version in {model.deployment.version for model in loaded}
        }
        return ReplicaState(
            replica=replica,
            endpoint=self.endpoint,
            revision=revision,
            wanted_revision=self.wanted.revision if self.wanted else revision,
            versions=tuple(model.deployment.version for model in loaded),
            ready=bool(loaded),
            requests=self.requests,
            failed=self.failed,
            swaps=self.swaps,
            reported_at=now,
            error=self.error,
            started_at=self.started_at,
            detail={**self.detail, **counted},
        )


def line_up(desired: Desired, current: tuple[Model, ...], sample: Feeds | None) -> tuple[Lineup, dict[str, str]]:
    """Every deployment loaded and warm, or none: raises what `load` and `warm_up` raise. What `current` holds already is
    used again. Also returns what is worth telling about it."""
    deployments = desired.deployments
    percents = [deployment.traffic for deployment in deployments]
    if sum(percents) != 100 or min(percents, default=0) < 0:
        raise BadInput(f"traffic of revision {desired.revision} wants percents that sum to 100, found {percents}")
    if len({deployment.version for deployment in deployments}) != len(deployments):
        raise BadInput(f"revision {desired.revision} names a version twice: {[d.version for d in deployments]}")
    held = {_identity(model.deployment): model for model in current}
    models: list[Model] = []
    detail: dict[str, str] = {}
    for deployment in deployments:
        model = held.get(_identity(deployment))
        if model is None:
            model = load(deployment)
            detail[f"warm_up_v{deployment.version}"] = warm_up(model, sample)
            detail[f"load_seconds_v{deployment.version}"] = f"{model.load_seconds:.3f}"
        models.append(model)
    if current and (changed := _signature_change(current[0], models[0])):
        detail["signature"] = changed
    return Lineup(desired, tuple(models)), detail


def _identity(deployment: Deployment) -> Deployment:
    return replace(deployment, traffic=0, uri="")


def _signature_change(old: Model, new: Model) -> str | None:
    parts = [
        f"{what} changed from {[str(each) for each in before]} to {[str(each) for each in after]}"
        for what, before, after in (("inputs", old.inputs, new.inputs), ("outputs", old.outputs, new.outputs))
        if before != after
    ]
    return "; ".join(parts) or None
