"""The user's command on some rows with some parameters: what it sees, where it writes, and what it must leave."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dropforge.domain.runs import RunSpec
from dropforge.training.command import Cancelled, Ended, Running, end, shown
from dropforge.training.contract import MODEL, ExitCode, NodeFailed
from dropforge.training.table import Roles

TRAIN_DATA = "train.parquet"
PARAMETERS = "parameters.json"


@dataclass(frozen=True)
class Fit:
    """One start of the command."""

    # `train.parquet`, written by `write_rows`.
    data: Path
    # Of this start alone, for what the platform hands over.
    work: Path
    output: Path
    # What is there survives a restart of the run.
    checkpoints: Path
    parameters: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fitting:
    """What all starts of one run have in common."""

    spec: RunSpec
    code: Path
    roles: Roles
    metric: str
    tracking_uri: str | None
    grace_seconds: float

    def write_rows(self, rows: pa.Table, path: Path) -> Path:
        """The rows as the command sees them: features, label and event time."""
        columns = [*self.roles.features, self.roles.label]
        if self.roles.event_time is not None and self.roles.event_time not in columns:
            columns.append(self.roles.event_time)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows.select(columns), path)
        return path

    def start(self, fit: Fit) -> Running:
        """Raises `NodeFailed` when there is no such command."""
        for folder in (fit.work, fit.output, fit.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
        parameters = fit.work / PARAMETERS
        parameters.write_text(json.dumps(fit.parameters, sort_keys=True))
        variables = {
            **os.environ,
            # What the script prints appears when it prints it.
            "PYTHONUNBUFFERED": "1",
            **variables_of(self.spec, fit.parameters, self.roles, self.metric),
            **({"MLFLOW_TRACKING_URI": self.tracking_uri} if self.tracking_uri is not None else {}),
            "DROPFORGE_TRAIN_DATA": str(fit.data.resolve()),
            "DROPFORGE_OUTPUT": str(fit.output.resolve()),
            "DROPFORGE_PARAMETERS": str(parameters.resolve()),
            "DROPFORGE_CHECKPOINTS": str(fit.checkpoints.absolute()),
            **self.spec.environment,
            **fit.environment,
        }
        try:
            return Running(self.spec.command, self.code, variables)
        except OSError as error:
            raise NodeFailed(
                ExitCode.COMMAND_FAILED, f"the command `{shown(self.spec.command)}` could not be started: {error}"
            ) from error

    def run(self, fit: Fit) -> Ended:
        """To its end, or to the node's."""
        running = self.start(fit)
        try:
            return running.wait()
        except Cancelled:
            end([running], self.grace_seconds)
            raise

    def check(self, ended: Ended, output: Path) -> None:
        """Raises `NodeFailed` unless it ended well and left a model."""
        command = shown(self.spec.command)
        if ended.exit_code:
            words = f"; its last words: {ended.last_words}" if ended.last_words else "; it wrote nothing to stderr"
            raise NodeFailed(ExitCode.COMMAND_FAILED, f"the command `{command}` {ended.how}{words}")
        if not (output / MODEL).is_file():
            found = sorted(path.name for path in output.iterdir()) or "nothing"
            raise NodeFailed(
                ExitCode.NO_MODEL,
                f"the command `{command}` left no {MODEL} in the folder that DROPFORGE_OUTPUT names; found {found}",
            )


def variables_of(spec: RunSpec, parameters: dict[str, Any], roles: Roles, metric: str) -> dict[str, str]:
    """What the user's command finds in its environment, but for the paths."""
    variables = {
        "DROPFORGE_RUN": spec.run,
        "DROPFORGE_PIPELINE": spec.pipeline,
        "DROPFORGE_DATASET_VERSION": str(spec.dataset_version),
        "DROPFORGE_LABEL": roles.label,
        "DROPFORGE_EVENT_TIME": roles.event_time or "",
        "DROPFORGE_FEATURES": _comma_separated(roles.features),
        "DROPFORGE_METRIC": metric,
        "DROPFORGE_SEED": str(spec.seed),
        "PYTHONHASHSEED": str(spec.seed % 2**32),
    }
    for name, value in parameters.items():
        key = "DROPFORGE_PARAM_" + re.sub(r"\W", "_", name, flags=re.ASCII).upper()
        variables[key] = value if isinstance(value, str) else json.dumps(value)
    return variables


def _comma_separated(names: tuple[str, ...]) -> str:
    """One line of CSV: a name that holds a comma stands in quotes."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()
