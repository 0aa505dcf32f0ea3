"""Score a dataset version, or files, with a model version: the registry and the tables say what is meant."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dropforge.domain.datasets import DatasetVersion
from dropforge.domain.endpoints import Deployment
from dropforge.domain.errors import NotFound
from dropforge.domain.models import CHAMPION, ModelVersion
from dropforge.ports import Ports
from dropforge.steps import books

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """A model version (None: the champion) and, unless files are scored, a dataset version (None: the newest)."""

    model: str
    version: int | None = None
    dataset: str | None = None
    dataset_version: int | None = None


def score(ports: Ports, asked: Asked, engine: Callable[[Deployment, DatasetVersion | None], T]) -> T:
    """Have the engine score with the model's file at hand; what it makes of it. Again: it goes on with what is missing.
    Raises `NotFound` for a model or dataset version that is none, and what the engine raises."""
    version = _model_version(ports, asked.model, asked.version)
    dataset = _dataset_version(ports, asked.dataset, asked.dataset_version) if asked.dataset is not None else None
    with tempfile.TemporaryDirectory(prefix="dropforge-score-") as folder:
        file = Path(folder) / "model.onnx"
        ports.artifacts.fetch(version.artifact, file)
        lineage = version.lineage
        deployment = Deployment(version.model, version.version, file.as_uri(), version.sha256, lineage.dataset_version)
        return engine(deployment, dataset)


def _model_version(ports: Ports, model: str, version: int | None) -> ModelVersion:
    if version is not None:
        return ports.registry.get(model, version)
    champion = ports.registry.alias(model, CHAMPION)
    if champion is None:
        raise NotFound(f"model {model!r} has no champion; name a version: {model}@1", model=model)
    return ports.registry.get(model, champion.version)


def _dataset_version(ports: Ports, dataset: str, version: int | None) -> DatasetVersion:
    pipeline = books.pipeline(ports.ledger, dataset)
    newest = int(books.head(ports.ledger, pipeline.partition).value["version"])
    if newest < 1:
        raise NotFound(f"{dataset} has no dataset version yet", pipeline=dataset)
    return books.dataset_version(ports.ledger, pipeline.partition, newest if version is None else version)
