"""Experiment tracking: the run written down in MLflow, where one is named. A run never fails because of it."""

from __future__ import annotations

import importlib
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dropforge.domain.runs import RunSpec
from dropforge.training.contract import EVIDENCE, METRICS, MODEL, SWEEP

LOG = logging.getLogger(__name__)

# A tracking server that does not answer must not hold the run for the minutes that MLflow would try.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_MOST_SECONDS = 120.0
# Azure ML takes no longer values.
_LONGEST_PARAMETER = 250
_CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")


def tracking_uri(spec: RunSpec, environment: Mapping[str, str]) -> str | None:
    """Where the run is written down. A service that has made a run for it already, as Azure ML has, comes first."""
    around = environment.get("MLFLOW_TRACKING_URI") or None
    if around is not None and environment.get("MLFLOW_RUN_ID"):
        return around
    return spec.tracking_uri or around


class Tracking:
    """Import MLflow while the user's command runs (it takes a second), log when the run is scored."""

    def __init__(self, uri: str | None) -> None:
        self._uri = uri
        self._mlflow: Any = None
        self._loading: threading.Thread | None = None

    def prepare(self) -> None:
        """Begin to load MLflow in the background; no effect without a tracking URI."""
        if self._uri is None:
            return
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        if "://" not in self._uri or self._uri.startswith("file:"):
            # MLflow keeps its file store in maintenance mode and wants to be told that it is wanted.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._loading = threading.Thread(target=self._guarded, args=(self._load,), daemon=True)
        self._loading.start()

    def log(
        self,
        spec: RunSpec,
        parameters: dict[str, Any],
        metrics: dict[str, float],
        tags: dict[str, str],
        output: Path,
    ) -> None:
        """Parameters, metrics, tags and files of the run. Warns when it cannot, and gives up after two minutes."""
        if self._loading is None:
            return
        self._loading.join()
        if self._mlflow is None:
            return
        writing = threading.Thread(
            target=self._guarded, args=(lambda: self._write(spec, parameters, metrics, tags, output),), daemon=True
        )
        writing.start()
        writing.join(_MOST_SECONDS)
        if writing.is_alive():
            LOG.warning("tracking at %s did not finish in %.0f seconds; going on", self._shown(), _MOST_SECONDS)

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - tracking is a courtesy; no fault of it may cost the run
            said = f"{type(error).__name__}: {error}"
            LOG.warning("tracking at %s failed: %s", self._shown(), without_secrets(said, os.environ))

    def _shown(self) -> str:
        return without_secrets(self._uri or "", os.environ)

    def _load(self) -> None:
        self._mlflow = importlib.import_module("mlflow")

    def _write(
        self,
        spec: RunSpec,
        parameters: dict[str, Any],
        metrics: dict[str, float],
        tags: dict[str, str],
        output: Path,
    ) -> None:
        mlflow = self._mlflow
        mlflow.set_tracking_uri(self._uri)
        # Azure ML has made the run already; one of our own would be a second one beside it.
        given = os.environ.get("MLFLOW_RUN_ID") or None
        if given is None:
            mlflow.set_experiment(spec.pipeline)
        with mlflow.start_run(run_id=given, run_name=None if given else spec.run):
            # Each for itself, the metrics first: a sweep on Azure ML compares its trials by one of them.
            self._write_metrics(metrics)
            self._guarded(lambda: mlflow.log_params(_short({**parameters, "seed": spec.seed})))
            self._guarded(lambda: mlflow.set_tags(tags))
            # Files, never `log_model`: Azure ML does not offer the interface that it needs.
            for name in (MODEL, EVIDENCE, METRICS, SWEEP):
                if (output / name).is_file():
                    self._guarded(lambda name=name: mlflow.log_artifact(str(output / name)))  # type: ignore[misc]

    def _write_metrics(self, metrics: dict[str, float]) -> None:
        """All at once, or else each for itself: MLflow takes none of them beside a name of the script's that it refuses."""
        try:
            self._mlflow.log_metrics(metrics)
        except Exception:  # noqa: BLE001 - what is wrong is said of the metric that it is about
            for name, value in metrics.items():
                self._guarded(lambda name=name, value=value: self._mlflow.log_metric(name, value))  # type: ignore[misc]


def _short(parameters: dict[str, Any]) -> dict[str, str]:
    return {name: str(value)[:_LONGEST_PARAMETER] for name, value in parameters.items()}


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """The text without passwords in addresses, signatures, bearer tokens and what the environment holds for MLflow."""
    for name in _CREDENTIALS:
        if value := environment.get(name):
            text = text.replace(value, "***")
    text = re.sub(r"(?<=://)[^/@\s]+@", "***@", text)
    text = re.sub(r"(?i)\b(sig|token|access_token|password)=[^&\s]+", r"\1=***", text)
    return re.sub(r"(?i)\b(bearer\s+)[\w.~+/=-]+", r"\1***", text)
