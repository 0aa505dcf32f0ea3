"""What an endpoint answers with: a slot holds a lineup of loaded models, and a swap is one assignment to it."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from dropforge.domain.endpoints import Deployment, Desired, Mirrored, ReplicaState, VersionState
from dropforge.domain.errors import BadInput, NotFound, Unavailable
from dropforge.serving.answers import Writer
from dropforge.serving.batching import Queue
from dropforge.serving.golden import check_golden
from dropforge.serving.metrics import Counts
from dropforge.serving.mirror import Lane, MirrorCounts
from dropforge.serving.mixing import prove_batching
from dropforge.serving.models import Model, load, warm_up
from dropforge.serving.signature import differences, incompatible
from dropforge.serving.statistics import Statistics
from dropforge.serving.tensors import Feeds
from dropforge.serving.traffic import Split

# Versions whose counts are kept after they stopped answering, so that the last scrape of a rolled-back one is not lost.
KEPT_COUNTS = 16


class Lineup:
    """The loaded deployments of one revision of an endpoint; `resting`: those without traffic that are not in memory."""

    def __init__(self, desired: Desired, models: tuple[Model, ...], resting: tuple[Deployment, ...] = ()) -> None:
        self.desired = desired
        self.revision = desired.revision
        self.resting = resting
        self.deployments = tuple(each for each in desired.deployments if each not in resting)
        self.models = models
        # Has what rests loaded again; from any thread.
        self.wake: Callable[[], None] = _nobody
        self._split = Split(self.deployments)
        # The one that answers whoever names no version, where there is but one.
        self.only = models[self._split.only] if models and self._split.only is not None else None
        self.queues = {id(model): Queue(model) for model in models}
        self.writers = {
            id(model): Writer(desired.endpoint, str(model.deployment.version), model.headers) for model in models
        }
        self.lanes = tuple(
            Lane(model, deployment.mirror)
            for model, deployment in zip(models, self.deployments, strict=False)
            if deployment.mirror
        )
        # Requests that hold one of the models; only the event loop counts.
        self.in_flight = 0
        # What the server remembers of a request that nobody looks on at.
        self.about: Any = None

    def choose(self, key: str | None) -> Model:
        """The model that answers; equal keys get the same one, until traffic is taken from it."""
        return self.models[self._split.next() if key is None else self._split.of(key)]

    def version(self, version: str) -> Model:
        """The model of that version, whatever its traffic. Raises `NotFound`."""
        for model in self.models:
            if str(model.deployment.version) == version:
                return model
        if self.is_resting(version):
            self.wake()
            raise Unavailable(f"version {version!r} made room for others; it is being loaded again")
        raise NotFound(f"version {version[:40]!r} is not loaded; choose from {self.versions}")

    def is_resting(self, version: str) -> bool:
        return any(str(each.version) == version for each in self.resting)

    @property
    def main(self) -> Model:
        """The model with most of the traffic."""
        pairs = zip(self.deployments, self.models, strict=True)
        return max(pairs, key=lambda pair: pair[0].traffic)[1]

    @property
    def versions(self) -> list[str]:
        return [str(model.deployment.version) for model in self.models]

    def clear(self) -> None:
        """Let the models go, on the thread that calls."""
        for lane in self.lanes:
            lane.close()
        self.models, self.only, self.lanes, self.about = (), None, (), None
        self.queues.clear()
        self.writers.clear()


def _nobody() -> None:
    pass


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
    # Of those, what had been counted before the revision that answers did.
    before: dict[tuple[str, int], Counts] = field(default_factory=dict)
    # What became of the copies that a version was given.
    mirrored: dict[tuple[str, int], MirrorCounts] = field(default_factory=dict)
    requests: int = 0
    failed: int = 0
    # When it was reported last (`time.monotonic`), and the requests there were.
    reported_at: float = 0.0
    told_of: int = 0
    statistics: dict[tuple[str, int], Statistics] = field(default_factory=dict)
    # What answered before the last swap and is kept for a way back, until then (`time.monotonic`).
    previous: tuple[Model, ...] = ()
    previous_until: float = 0.0
    # Why nothing is in memory although something is desired.
    absent: str | None = None
    # The revision that was unloaded by hand.
    held: int | None = None
    # What was unloaded to make room: asking for it has it loaded again.
    rested: Lineup | None = None
    wake: Callable[[], None] = _nobody
    # Told once the next attempt to reach the desired state has ended.
    waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def here(self) -> Lineup:
        """What answers. Raises `Unavailable` when nothing is in memory; what only made room is on its way then."""
        if self.lineup is None:
            if self.rested is not None:
                self.wake()
            why = self.absent or self.error or "it is being loaded"
            raise Unavailable(f"model {self.endpoint!r} is not ready: {why}")
        return self.lineup

    def swap(self, lineup: Lineup, detail: dict[str, str]) -> Lineup | None:
        """From the next request on, `lineup` answers. Returns the one before it, which may still have requests in flight."""
        old, self.lineup = self.lineup, lineup
        self.error, self.detail = None, detail
        self.absent = self.held = self.rested = None
        lineup.wake = self.wake
        for model in lineup.models:
            key = (model.deployment.model, model.deployment.version)
            model.statistics = self.statistics.setdefault(key, model.statistics)
            if old is None or model not in old.models:
                # Who comes back was not there to be asked, and is not the next to make room.
                model.statistics.here_since = time.perf_counter()
        for lane in lineup.lanes:
            lane.total = self.mirrored.setdefault(_key(lane.model.deployment), lane.total)
        loaded = {model.key for model in lineup.models}
        for told in (self.mirrored, self.statistics):
            for key in [each for each in told if each not in self.counts and each not in loaded][:-KEPT_COUNTS]:
                del told[key]
        if old is None or old.revision != lineup.revision:
            self.before = {key: counts.copy() for key, counts in self.counts.items()}
        if old is not None and old.models != lineup.models:
            self.swaps += 1
        return old

    def empty(self, why: str) -> Lineup | None:
        """Nothing answers from here on. Returns what did."""
        old, self.lineup, self.absent, self.rested = self.lineup, None, why, None
        return old

    def count(self, model: Model, took: Sequence[float], *, failed: bool = False) -> None:
        """Requests were answered, or failed by the model's fault, after so many seconds each."""
        self.requests += len(took)
        self.failed += failed * len(took)
        key = model.key
        counts = self.counts.get(key)
        if counts is None:
            counts = self.counts[key] = Counts()
            loaded = {(m.deployment.model, m.deployment.version) for m in self.lineup.models} if self.lineup else set()
            for old in [each for each in self.counts if each not in loaded | {key}][:-KEPT_COUNTS]:
                del self.counts[old]
                self.statistics.pop(old, None)
                self.mirrored.pop(old, None)
                self.before.pop(old, None)
        counts.add_all(took, failed)

    def state(self, replica: str, now: datetime, device: str = "", memory_bytes: int | None = None) -> ReplicaState:
        """What the replica reports of this endpoint."""
        answering = self.lineup or self.rested
        loaded = answering.deployments if answering else ()
        revision = answering.revision if answering else 0
        versions = {each.version for each in loaded}
        counted = {
            f"{what}_v{version}": str(number)
            for (_, version), counts in self.counts.items()
            if version in versions
            for what, number in (("requests", counts.requests), ("failed", counts.failed))
        }
        if self.lineup is None and self.absent is not None:
            counted["not_loaded"] = self.absent
        return ReplicaState(
            replica=replica,
            endpoint=self.endpoint,
            revision=revision,
            wanted_revision=self.wanted.revision if self.wanted else revision,
            versions=tuple(each.version for each in loaded),
            ready=bool(loaded),
            requests=self.requests,
            failed=self.failed,
            swaps=self.swaps,
            reported_at=now,
            error=self.error,
            started_at=self.started_at,
            detail={**self.detail, **counted},
            states=tuple(self._version_state(each) for each in loaded),
            device=device,
            memory_bytes=memory_bytes,
        )

    def _version_state(self, deployment: Deployment) -> VersionState:
        key = _key(deployment)
        now, before = self.counts.get(key, _NOTHING), self.before.get(key, _NOTHING)
        lanes = self.lineup.lanes if self.lineup is not None else ()
        lane = next((each for each in lanes if _key(each.model.deployment) == key), None)
        return VersionState(
            deployment.version,
            deployment.traffic,
            now.requests - before.requests,
            now.failed - before.failed,
            round(now.seconds - before.seconds, 6),
            tuple(a - b for a, b in zip(now.buckets, before.buckets, strict=True)),
            deployment.mirror,
            lane.since.told() if lane is not None else Mirrored(),
        )


_NOTHING = Counts()


def _key(deployment: Deployment) -> tuple[str, int]:
    return deployment.model, deployment.version


def line_up(
    desired: Desired,
    current: tuple[Model, ...],
    sample: Feeds | None,
    load: Callable[[Deployment], Model] = load,
    previous: tuple[Model, ...] = (),
    golden: Callable[[Deployment], bytes | None] = lambda _: None,
) -> tuple[Lineup, dict[str, str]]:
    """Every deployment loaded, tried and warm, or none: raises what `load`, `check_golden` and `warm_up` raise, and `BadInput`
    for a signature that is not the one of `current`, which serves. What `current` and `previous` hold is used again. Also
    returns what is worth telling about it."""
    deployments = desired.deployments
    percents = [deployment.traffic for deployment in deployments]
    if sum(percents) != 100 or min(percents, default=0) < 0:
        raise BadInput(f"traffic of revision {desired.revision} wants percents that sum to 100, found {percents}")
    if any(not 0 <= deployment.mirror <= 100 for deployment in deployments):
        raise BadInput(f"mirror of revision {desired.revision} wants percents, found {[d.mirror for d in deployments]}")
    if len({deployment.version for deployment in deployments}) != len(deployments):
        raise BadInput(f"revision {desired.revision} names a version twice: {[d.version for d in deployments]}")
    held = {identity(model.deployment): model for model in (*previous, *current)}
    models: list[Model] = []
    detail: dict[str, str] = {}
    for deployment in deployments:
        model = held.get(identity(deployment))
        if model is None:
            model = load(deployment)
            if desired.signature != "any":
                _check_signature(current, model)
            if (content := golden(deployment)) is not None:
                detail[f"golden_v{deployment.version}"] = check_golden(model, content)
            detail[f"warm_up_v{deployment.version}"] = warm_up(model, sample)
            detail[f"batching_v{deployment.version}"] = prove_batching(model, sample)
            detail[f"load_seconds_v{deployment.version}"] = f"{model.load_seconds:.3f}"
            detail[f"memory_v{deployment.version}"] = model.memory
        elif model not in current:
            detail[f"kept_v{deployment.version}"] = "was still in memory"
        models.append(model)
    if current and (changed := differences(current[0], models[0])):
        detail["signature"] = changed
    return Lineup(desired, tuple(models)), detail


def identity(deployment: Deployment) -> Deployment:
    """What two deployments have in common that are served by one loaded model."""
    return replace(deployment, traffic=0, mirror=0, uri="", golden=None)


def _check_signature(current: tuple[Model, ...], model: Model) -> None:
    for old in current:
        if wrong := incompatible(old, model):
            raise BadInput(
                f"{model} does not take the requests of {old}, which serves: {wrong}. Promote it by hand "
                "(`dropforge promote`) to change what the endpoint takes"
            )
