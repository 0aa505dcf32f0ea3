"""Endpoints: the state wanted, and the state each replica reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True)
class Deployment:
    """One model version behind an endpoint. `traffic` is percent; the deployments of an endpoint sum to 100."""

    model: str
    version: int
    uri: str
    sha256: str
    dataset_version: int
    traffic: int = 100


@dataclass(frozen=True)
class Desired:
    """What an endpoint should serve. A larger `revision` is newer; replicas converge on the largest they have seen."""

    endpoint: str
    revision: int
    deployments: tuple[Deployment, ...]
    written_at: datetime


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
