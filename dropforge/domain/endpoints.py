"""Endpoints: the state wanted, and the state each replica reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

# In `ReplicaState.detail`: what is being made before this replica can be, which takes minutes and is no fault of a model's.
PROVISIONING = "provisioning"
_STEPS = (1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0)
# The upper bounds, in seconds, of what latencies are counted in: ten to a decade, so that a quantile is known to an
# eighth. One more counts what took longer.
LATENCY_BOUNDS = (*(round(step * 10.0**power, 6) for power in range(-4, 1) for step in _STEPS), 10.0)


@dataclass(frozen=True)
class Deployment:
    """One model version behind an endpoint. `traffic` is percent; the deployments of an endpoint sum to 100. `mirror` is
    the percent of the others' requests that this one is given copies of; what it makes of them nobody is answered with."""

    model: str
    version: int
    uri: str
    sha256: str
    dataset_version: int
    traffic: int = 100
    # URI of a few requests with the answers the model gave them where it was judged (`dropforge.training.golden`).
    golden: str | None = None
    mirror: int = 0


@dataclass(frozen=True)
class Desired:
    """What an endpoint should serve. A larger `revision` is newer; replicas converge on the largest they have seen."""

    endpoint: str
    revision: int
    deployments: tuple[Deployment, ...]
    written_at: datetime
    # The `traceparent` of whoever wants it, for the replicas' own spans.
    trace: str | None = None
    # `same`: a model that does not take the requests of the one that serves is refused. `any`: somebody wants it so.
    signature: str = "same"


@dataclass(frozen=True)
class Mirrored:
    """What became of the copies that a version was given. A pair is its answer and the live one to the same request."""

    # Copies that were run, and of those the ones it failed; copies that were not run, so as not to hold anything up.
    run: int = 0
    failed: int = 0
    dropped: int = 0
    # Pairs in which a label or a decision differs or, where there is neither, a number by more than a thousandth.
    disagreed: int = 0
    # Rows that were decided by both, and those decided otherwise.
    rows: int = 0
    flipped: int = 0
    max_difference: float = 0.0


@dataclass(frozen=True)
class VersionState:
    """What one version did on a replica since that replica serves the revision it reports. `latency` counts requests by
    `LATENCY_BOUNDS`."""

    version: int
    traffic: int
    requests: int = 0
    failed: int = 0
    seconds: float = 0.0
    latency: tuple[int, ...] = ()
    mirror: int = 0
    mirrored: Mirrored = Mirrored()


@dataclass(frozen=True)
class ReplicaState:
    """What one replica says it serves. `error` tells why it could not reach `wanted_revision`, while it goes on
    serving `revision`."""

    replica: str
    endpoint: str
    revision: int
    wanted_revision: int
    versions: tuple[int, ...]
    ready: bool
    requests: int
    failed: int
    swaps: int
    reported_at: datetime
    error: str | None = None
    started_at: datetime | None = None
    detail: dict[str, str] = field(default_factory=dict)
    # In the order of the deployments. Empty: of a replica that does not tell so much.
    states: tuple[VersionState, ...] = ()
    # What the models run on (`cpu`, `cuda`), and the bytes that the process holds.
    device: str = ""
    memory_bytes: int | None = None
