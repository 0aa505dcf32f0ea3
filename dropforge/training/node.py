"""One training run on this machine: dataset version in; model, metrics and evidence out. Or, for a run with a challenger,
nothing is trained: that model is measured as a new one would be."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import math
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dropforge import wire
from dropforge.domain.errors import BadInput
from dropforge.domain.runs import ChampionRef, RunSpec, RunState
from dropforge.domain.verdicts import LOWER_IS_BETTER, Evidence
from dropforge.training import evidence, facts, labels
from dropforge.training.command import Cancelled, Ended, cancel_on_signals, run_command, shown
from dropforge.training.contract import EVIDENCE, METRICS, MODEL, RESULT, ExitCode, NodeFailed, NodeResult, NodeSpec
from dropforge.training.evidence import Answers
from dropforge.training.labels import Target
from dropforge.training.onnx_file import ModelUnusable
from dropforge.training.onnx_model import load_model, numbers, probabilities
from dropforge.training.split import Split, split
from dropforge.training.table import PLATFORM, Roles, read_table, roles_of
from dropforge.training.tracking import Tracking

LOG = logging.getLogger("dropforge")

TRAIN_DATA = "train.parquet"
PARAMETERS = "parameters.json"


def main(spec_path: Path, started: float) -> int:
    """Run the spec and write `result.json`, whatever happens; returns the exit code. `started`: `time.monotonic()` at
    the first instruction of the process."""
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(name)s: %(message)s", force=True)
    LOG.setLevel(logging.INFO)
    try:
        spec = wire.from_json(NodeSpec, spec_path.read_bytes())
    except (OSError, BadInput) as error:
        LOG.error("no usable run spec at %s: %s", spec_path, error)
        return ExitCode.SPEC_WRONG
    node = Node(spec)
    state, code, reason = RunState.SUCCEEDED, int(ExitCode.FINE), None
    try:
        cancel_on_signals()
        node.run()
    except NodeFailed as error:
        state, code, reason = RunState.FAILED, int(error.exit_code), error.message
    except Cancelled as cancelled:
        state, code, reason = RunState.CANCELLED, int(ExitCode.CANCELLED), f"the run was told to end ({cancelled})"
    except Exception as error:
        LOG.exception("the training node failed")
        state, code, reason = RunState.FAILED, 1, f"the training node itself failed: {type(error).__name__}: {error}"
    if reason:
        LOG.error("%s", reason)
    result = NodeResult(
        run=spec.run.run,
        state=state,
        exit_code=code,
        reason=reason,
        seconds=round(time.monotonic() - started, 3),
        command_seconds=round(node.command_seconds, 3),
        model_sha256=node.model_sha256 if state is RunState.SUCCEEDED else None,
        metrics=node.metrics,
        environment=node.environment,
    )
    _write(Path(spec.output_dir) / RESULT, wire.to_json(result))
    LOG.info("%s in %.2f s, %.2f s of them the command", state.value, result.seconds, result.command_seconds)
    return code


class Node:
    """The steps of one run, and what they leave for its result."""

    def __init__(self, spec: NodeSpec) -> None:
        self.spec: RunSpec = spec.run
        self.champion_model, self.challenger_model = spec.champion_model, spec.challenger_model
        self.code, self.work, self.output = Path(spec.code_dir), Path(spec.work_dir), Path(spec.output_dir)
        self.command_seconds = 0.0
        self.model_sha256: str | None = None
        self.metrics: dict[str, float] = {}
        self.environment: dict[str, Any] = {}

    def run(self) -> None:
        """Everything between the spec and the result. Raises `NodeFailed`."""
        self._prepare()
        tracking = Tracking(self.spec.tracking_uri)
        table = read_table(self.spec.table_uri, self.spec.table_version)
        roles = roles_of(self.spec, table)
        parts = split(table, roles, self.spec.evaluation, self.spec.seed)
        metric = labels.resolve_metric(self.spec.evaluation.metric, table.column(roles.label), roles.label)
        target = labels.target_of(parts, roles.label, metric)
        LOG.info(
            "table version %d: %d rows to train on, %d held out (%s to %s), %d without a label%s",
            *(self.spec.table_version, len(parts.train), len(parts.holdout), parts.blocks[0], parts.blocks[-1]),
            *(parts.unlabelled_rows, f"; {parts.note}" if parts.note else ""),
        )
        tracking.prepare()
        if self.spec.challenger is None:
            self._train(parts.train, roles, metric)
        else:
            shutil.copyfile(str(self.challenger_model), self.output / MODEL)
        self._score(parts, roles, metric, target)
        tracking.log(self.spec, self.metrics, self._tags(metric), self.output)

    def _prepare(self) -> None:
        """Empty places to write to: what an earlier try left must not pass for this one's."""
        if not self.spec.command:
            raise NodeFailed(ExitCode.SPEC_WRONG, "training.command is empty; wanted for instance `python train.py`")
        if not self.code.is_dir():
            raise NodeFailed(ExitCode.SPEC_WRONG, f"there is no code folder {self.code}")
        _check_given("champion", self.spec.champion, self.champion_model)
        _check_given("challenger", self.spec.challenger, self.challenger_model)
        for folder in (self.work, self.output):
            folder.mkdir(parents=True, exist_ok=True)
        for name in (MODEL, METRICS, EVIDENCE, RESULT):
            (self.output / name).unlink(missing_ok=True)
        self.environment = facts.environment(self.spec.code_sha256)

    def _train(self, train: pa.Table, roles: Roles, metric: str) -> None:
        columns = [*roles.features, roles.label]
        if roles.event_time is not None and roles.event_time not in columns:
            columns.append(roles.event_time)
        data, parameters = self.work / TRAIN_DATA, self.work / PARAMETERS
        pq.write_table(train.select(columns), data)
        parameters.write_text(json.dumps(self.spec.parameters, sort_keys=True))
        variables = {
            **os.environ,
            # What the script prints appears when it prints it.
            "PYTHONUNBUFFERED": "1",
            **variables_of(self.spec, roles, metric),
            "DROPFORGE_TRAIN_DATA": str(data.resolve()),
            "DROPFORGE_OUTPUT": str(self.output.resolve()),
            "DROPFORGE_PARAMETERS": str(parameters.resolve()),
            **self.spec.environment,
        }
        LOG.info("running %s", shown(self.spec.command))
        try:
            ended = run_command(self.spec.command, self.code, variables)
        except OSError as error:
            raise NodeFailed(
                ExitCode.COMMAND_FAILED, f"the command `{shown(self.spec.command)}` could not be started: {error}"
            ) from error
        self.command_seconds = ended.seconds
        self._check_ended(ended)

    def _check_ended(self, ended: Ended) -> None:
        command = shown(self.spec.command)
        if ended.exit_code:
            words = f"; its last words: {ended.last_words}" if ended.last_words else "; it wrote nothing to stderr"
            raise NodeFailed(ExitCode.COMMAND_FAILED, f"the command `{command}` {ended.how}{words}")
        if not (self.output / MODEL).is_file():
            found = sorted(path.name for path in self.output.iterdir()) or "nothing"
            raise NodeFailed(
                ExitCode.NO_MODEL,
                f"the command `{command}` left no {MODEL} in the folder that DROPFORGE_OUTPUT names; found {found}",
            )

    def _score(self, parts: Split, roles: Roles, metric: str, target: Target) -> None:
        began = time.monotonic()
        challenger = self._challenger(parts, roles, target)
        constant = evidence.baseline(target, metric)
        champion, version, why_not = self._champion(parts, roles, target, constant)
        blocks, left_out = evidence.block_scores(
            parts, self.spec.evaluation.slices, metric, target, champion, challenger
        )
        found = Evidence(
            metric=metric,
            lower_is_better=LOWER_IS_BETTER[metric],
            against="baseline" if version is None else "champion",
            champion_version=version,
            blocks=blocks,
            train_rows=len(parts.train),
            holdout_rows=len(parts.holdout),
            unlabelled_rows=parts.unlabelled_rows,
            holdout_from=parts.holdout_from,
            holdout_to=parts.holdout_to,
            note="; ".join(note for note in (parts.note, why_not, left_out) if note),
        )
        _write(self.output / EVIDENCE, wire.to_json(found))
        ours = evidence.summary_metrics(challenger, target)
        theirs = evidence.summary_metrics(champion, target)
        if metric in theirs:
            ours[f"{found.against}_{metric}"] = theirs[metric]
        self.metrics = {**self._metrics_of_script(ours), **ours}
        _write(self.output / METRICS, wire.to_json(self.metrics))
        self.model_sha256 = _sha256(self.output / MODEL)
        LOG.info(
            "%s %.5f, %s %.5f; scored in %.2f s",
            *(metric, ours.get(metric, math.nan), found.against, theirs.get(metric, math.nan)),
            time.monotonic() - began,
        )

    def _challenger(self, parts: Split, roles: Roles, target: Target) -> Answers:
        given = self.spec.challenger
        name = "the new model" if given is None else f"{given.model} v{given.version}"
        # One that was trained before may have seen other columns than are asked for now.
        allowed = roles.features if given is None else _columns(parts, roles)
        try:
            answers = _answers(self.output / MODEL, parts, roles, target, allowed=allowed)
        except ModelUnusable as error:
            raise NodeFailed(ExitCode.MODEL_UNUSABLE, f"{name} cannot be used: {error}") from error
        rows = answers.unusable_rows
        if len(rows):
            raise NodeFailed(
                ExitCode.MODEL_UNUSABLE,
                f"{name} cannot be used: it has no finite answer for {len(rows)} of {len(parts.holdout)} "
                f"held-out rows, the first of them {_row(parts.holdout, int(rows[0]), roles.features)}",
            )
        return answers

    def _champion(
        self, parts: Split, roles: Roles, target: Target, constant: Answers
    ) -> tuple[Answers, int | None, str]:
        """Its answers and version. A champion that cannot be asked any more (a column is gone) stands in nobody's way:
        the challenger is held against the baseline, and the evidence says so."""
        champion = self.spec.champion
        if champion is None:
            return constant, None, ""
        try:
            answers = _answers(Path(self.champion_model or ""), parts, roles, target, allowed=_columns(parts, roles))
        except ModelUnusable as error:
            note = f"champion v{champion.version} cannot answer any more: {error}"
            LOG.warning("%s", note)
            return constant, None, note
        missing = len(answers.unusable_rows)
        if not missing:
            return answers, champion.version, ""
        note = f"champion v{champion.version} has no answer for {missing} of {len(parts.holdout)} rows; "
        return evidence.filled(answers, constant, target), champion.version, note + "the baseline answered there"

    def _metrics_of_script(self, ours: dict[str, float]) -> dict[str, float]:
        """What the script measured itself; a name that is ours gets `script_` before it."""
        path = self.output / METRICS
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_bytes())
        except ValueError as error:
            LOG.warning("%s is no JSON and is left out: %s", METRICS, error)
            return {}
        pairs = found.items() if isinstance(found, dict) else []
        good = {name: float(value) for name, value in pairs if _is_finite(value)}
        if not isinstance(found, dict) or len(good) < len(found):
            LOG.warning("%s is not {name: finite number}; only %s are kept", METRICS, sorted(good))
        return {(f"script_{name}" if name in ours else name): value for name, value in good.items()}

    def _tags(self, metric: str) -> dict[str, str]:
        champion = self.spec.champion
        return {
            "dropforge.run": self.spec.run,
            "dropforge.pipeline": self.spec.pipeline,
            "dropforge.dataset": self.spec.dataset,
            "dropforge.dataset_version": str(self.spec.dataset_version),
            "dropforge.code_sha256": self.spec.code_sha256,
            "dropforge.packages_sha256": str(self.environment.get("packages_sha256")),
            "dropforge.model_sha256": str(self.model_sha256),
            "dropforge.metric": metric,
            "dropforge.champion_version": "" if champion is None else str(champion.version),
            "dropforge.measured_version": "" if self.spec.challenger is None else str(self.spec.challenger.version),
        }


def variables_of(spec: RunSpec, roles: Roles, metric: str) -> dict[str, str]:
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
    if spec.tracking_uri is not None:
        variables["MLFLOW_TRACKING_URI"] = spec.tracking_uri
    for name, value in spec.parameters.items():
        key = "DROPFORGE_PARAM_" + re.sub(r"\W", "_", name, flags=re.ASCII).upper()
        variables[key] = value if isinstance(value, str) else json.dumps(value)
    return variables


def _check_given(what: str, model: ChampionRef | None, path: str | None) -> None:
    """Whether a model that the run measures is the file that the node was given for it."""
    if model is not None and (not Path(path or "").is_file() or _sha256(Path(path or "")) != model.sha256):
        raise NodeFailed(ExitCode.SPEC_WRONG, f"the {what} {model.model} v{model.version} is not the file at {path}")


def _columns(parts: Split, roles: Roles) -> tuple[str, ...]:
    """Every column that a model can have been trained on."""
    return tuple(name for name in parts.holdout.column_names if name != roles.label and name not in PLATFORM)


def _comma_separated(names: tuple[str, ...]) -> str:
    """One line of CSV: a name that holds a comma stands in quotes."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()


def _answers(path: Path, parts: Split, roles: Roles, target: Target, *, allowed: tuple[str, ...]) -> Answers:
    model = load_model(path, parts.holdout, roles.label, allowed=allowed, order=roles.features)
    if isinstance(target, labels.Numbers):
        return Answers(numbers=numbers(model, parts.holdout))
    return Answers(*probabilities(model, parts.holdout, target))


def _row(table: pa.Table, row: int, columns: tuple[str, ...]) -> str:
    values = table.select(list(columns)).slice(row, 1).to_pylist()[0]
    text = json.dumps(values, default=str)
    return text if len(text) <= 300 else text[:300] + "..."


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)
