"""Model versions: one immutable ONNX file each, with its lineage; aliases move between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

CHAMPION = "champion"


@dataclass(frozen=True)
class Lineage:
    """Everything that made a model version; enough to make it again."""

    pipeline: str
    run: str
    dataset: str
    dataset_version: int
    manifest: str
    manifest_sha256: str
    code: str
    code_sha256: str
    environment: dict[str, Any]
    parameters: dict[str, Any]
    seed: int
    metrics: dict[str, float]
    verdict: dict[str, Any]
    evidence: str
    # Requests with the model's answers to them where it was judged; None for one from before there were any.
    golden: str | None = None
    # The columns that it was trained with, in order; empty for one from before they were kept.
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelVersion:
    """One version of a model. Versions count from 1; a run registers at most one."""

    model: str
    version: int
    artifact: str
    sha256: str
    size_bytes: int
    created_at: datetime
    lineage: Lineage


@dataclass(frozen=True)
class Alias:
    """A movable name on a model version. `etag` is what a compare-and-set must show."""

    name: str
    version: int
    etag: str
    history: tuple[int, ...] = field(default=())


def standing(moves: Iterable[int]) -> list[int]:
    """The versions that an alias lies on after these moves, the one it points to last: a move to a version that lies there
    already takes off what came after it, so that who goes back twice goes back two, and never to what was taken off."""
    found: list[int] = []
    for version in moves:
        if version in found:
            del found[found.index(version) :]
        found.append(version)
    return found
