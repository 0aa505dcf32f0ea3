"""One training run on this machine: dataset version in; model, metrics and evidence out. Or, for a run with a challenger,
nothing is trained: that model is measured as a new one would be."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import logging
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dropforge import wire
from dropforge.domain.errors import BadInput
from dropforge.domain.runs import ChampionRef, RunSpec, RunState
from dropforge.domain.verdicts import LOWER_IS_BETTER, Evidence
from dropforge.training import evidence, facts, golden, labels
from dropforge.training.command import Cancelled, cancel_on_signals, shown
from dropforge.training.contract import (
    CHECKPOINTS,
    EVIDENCE,
    GOLDEN,
    METRICS,
    MODEL,
    RESULT,
    SWEEP,
    VALIDATION_SCORE,
    ExitCode,
    NodeFailed,
    NodeResult,
    NodeSpec,
)
from dropforge.training.disk import put, why
from dropforge.training.evidence import Answers
from dropforge.training.fit import TRAIN_DATA, Fit, Fitting
from dropforge.training.labels import Target
from dropforge.training.onnx_file import ModelUnusable
from dropforge.training.onnx_model import load_model, numbers, probabilities
from dropforge.training.split import Split, split
from dropforge.training.sweep import Sweep, Tried, Validation
from dropforge.training.table import PLATFORM, Roles, read_table, roles_of
from dropforge.training.tracking import Tracking, tracking_uri

LOG = logging.getLogger("dropforge")

_PR_SET_PDEATHSIG = 1


def main(spec_path: Path, started: float, parent: int | None = None) -> int:
    """Run the spec and write `result.json`, whatever happens; returns the exit code. `started`: `time.monotonic()` at
    the first instruction of the process. `parent`: the process that must be the parent; the run ends with it."""
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
        if parent is not None:
            _end_with(parent)
        code = node.run()
        state = RunState.FAILED if code else state
    except NodeFailed as error:
        state, code, reason = RunState.FAILED, int(error.exit_code), error.message
    except Cancelled as cancelled:
        state, code, reason = RunState.CANCELLED, int(ExitCode.CANCELLED), f"the run was told to end ({cancelled})"
    except Exception as error:
        LOG.exception("the training node failed")
        said = why(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        state, code, reason = RunState.FAILED, 1, f"the training node itself failed: {said}"
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
        features=node.features,
    )
    put(Path(spec.output_dir) / RESULT, wire.to_json(result))
    LOG.info("%s in %.2f s, %.2f s of them the command", state.value, result.seconds, result.command_seconds)
    return code


class Node:
    """The steps of one run, and what they leave for its result."""

    def __init__(self, spec: NodeSpec) -> None:
        self.spec: RunSpec = spec.run
        self.champion_model, self.challenger_model = spec.champion_model, spec.challenger_model
        self.code, self.work, self.output = Path(spec.code_dir), Path(spec.work_dir), Path(spec.output_dir)
        self.checkpoints = Path(spec.checkpoints_dir or self.work / CHECKPOINTS)
        self.rank, self.trial, self.grace_seconds = spec.rank, spec.trial, spec.grace_seconds
        self.parameters: dict[str, Any] = dict(self.spec.parameters)
        self.command_seconds = 0.0
        self.model_sha256: str | None = None
        self.metrics: dict[str, float] = {}
        self.environment: dict[str, Any] = {}
        self.features: tuple[str, ...] = ()

    def run(self) -> int:
        """Everything between the spec and the result. Returns 0, or, as another process than the first one, how the
        command ended. Raises `NodeFailed`."""
        self._prepare()
        uri = tracking_uri(self.spec, os.environ)
        tracking = Tracking(uri if self.rank == 0 else None)
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
            self.features = roles.features
            fitting = Fitting(self.spec, self.code, roles, metric, uri, self.grace_seconds)
            exit_code = self._sweep(fitting, parts.train) if self.spec.sweep is not None else 0
            exit_code = exit_code or self._train(fitting, parts.train)
            if self.rank:
                return exit_code
        else:
            shutil.copyfile(str(self.challenger_model), self.output / MODEL)
        self._score(parts, roles, metric, target)
        tracking.log(self.spec, self.parameters, self.metrics, self._tags(metric), self.output)
        return 0

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
        for name in (MODEL, METRICS, EVIDENCE, GOLDEN, RESULT, SWEEP):
            (self.output / name).unlink(missing_ok=True)
        self.environment = facts.environment(self.spec.code_sha256)

    def _sweep(self, fitting: Fitting, train: pa.Table) -> int:
        """Find the parameters to train with. As another process than the first one: how the command ended."""
        plan = self.spec.sweep
        assert plan is not None
        if self.rank and self.trial is None:
            raise NodeFailed(
                ExitCode.SPEC_WRONG, "a sweep has one process for each trial; several processes want one trial each"
            )
        roles = fitting.roles
        parts = split(train, roles, self.spec.evaluation, self.spec.seed)
        target = labels.target_of(parts, roles.label, fitting.metric)
        validation = Validation(
            parts, target, lambda model: _answers(model, parts, roles, target, allowed=roles.features)
        )
        sweep = Sweep(self.spec, plan, fitting, validation, self.work / "sweep", self.checkpoints, self.trial)
        if self.rank:
            self.parameters |= self.trial or {}
            ended = sweep.follow()
            return 0 if ended is None else _as_a_shell(ended.exit_code)
        tried = sweep.run()
        best = next(trial for trial in tried.trials if trial.number == tried.best)
        assert best.score is not None
        self.parameters |= best.parameters
        self.command_seconds += sum(trial.seconds for trial in tried.trials)
        self.metrics[VALIDATION_SCORE] = best.score
        self.environment["parameters"] = self.parameters
        self.environment["sweep"] = _told(tried)
        put(self.output / SWEEP, wire.to_json(tried))
        LOG.info("the best of %d trials is trial %d: %s", len(tried.trials), best.number, best.parameters)
        return 0

    def _train(self, fitting: Fitting, train: pa.Table) -> int:
        """Run the command on all training rows."""
        swept = self.spec.sweep is not None
        fit = Fit(
            data=fitting.write_rows(train, self.work / TRAIN_DATA),
            work=self.work,
            output=self.output,
            checkpoints=self.checkpoints / "best" if swept else self.checkpoints,
            parameters=self.parameters,
            environment=_next_port(os.environ) if swept else {},
        )
        LOG.info("running %s", shown(self.spec.command))
        ended = fitting.run(fit)
        self.command_seconds += ended.seconds
        if self.rank:
            return _as_a_shell(ended.exit_code)
        fitting.check(ended, self.output)
        return 0

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
        put(self.output / EVIDENCE, wire.to_json(found))
        ours = evidence.summary_metrics(challenger, target)
        theirs = evidence.summary_metrics(champion, target)
        if metric in theirs:
            ours[f"{found.against}_{metric}"] = theirs[metric]
        ours |= self.metrics
        self.metrics = {**self._metrics_of_script(ours), **ours}
        put(self.output / METRICS, wire.to_json(self.metrics))
        self.model_sha256 = _sha256(self.output / MODEL)
        if self.spec.challenger is None:
            self._leave_golden(parts, roles)
        LOG.info(
            "%s %.5f, %s %.5f; scored in %.2f s",
            *(metric, ours.get(metric, math.nan), found.against, theirs.get(metric, math.nan)),
            time.monotonic() - began,
        )

    def _leave_golden(self, parts: Split, roles: Roles) -> None:
        model = load_model(
            self.output / MODEL, parts.holdout, roles.label, allowed=roles.features, order=roles.features
        )
        golden.leave(model, parts.holdout, self.output / GOLDEN)

    def _challenger(self, parts: Split, roles: Roles, target: Target) -> Answers:
        given = self.spec.challenger
        name = "the new model" if given is None else f"{given.model} v{given.version}"
        path = self.output / MODEL
        try:
            answers = (
                _answers(path, parts, roles, target, allowed=roles.features)
                if given is None
                else _answers_of(given, path, parts, roles, target)
            )
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
            answers = _answers_of(champion, Path(self.champion_model or ""), parts, roles, target)
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


def _end_with(parent: int) -> None:
    """SIGTERM to ourselves when the parent ends, however it does; at once when it has ended already."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _told(tried: Tried) -> dict[str, Any]:
    """The sweep, for the model's lineage; all of it is in `sweep.json`."""
    failed = sum(trial.score is None for trial in tried.trials)
    scores = {"best": tried.best, "score": max(each.score for each in tried.trials if each.score is not None)}
    return {"sampler": tried.sampler, "trials": len(tried.trials), "failed": failed, **scores}


def _next_port(environment: Mapping[str, str]) -> dict[str, str]:
    """Several processes find each other at MASTER_PORT. Those of the fit before may still hold it."""
    port = environment.get("MASTER_PORT", "")
    return {"MASTER_PORT": str(int(port) + 1)} if port.isdigit() else {}


def _as_a_shell(exit_code: int) -> int:
    """128 + signal for a command that was killed."""
    return exit_code if exit_code >= 0 else 128 - exit_code


def _check_given(what: str, model: ChampionRef | None, path: str | None) -> None:
    """Whether a model that the run measures is the file that the node was given for it."""
    if model is not None and (not Path(path or "").is_file() or _sha256(Path(path or "")) != model.sha256):
        raise NodeFailed(ExitCode.SPEC_WRONG, f"the {what} {model.model} v{model.version} is not the file at {path}")


def _answers_of(known: ChampionRef, path: Path, parts: Split, roles: Roles, target: Target) -> Answers:
    """Of a model that was trained before, perhaps with other columns, or in another order, than are asked for now."""
    every = tuple(name for name in parts.holdout.column_names if name != roles.label and name not in PLATFORM)
    return _answers(path, parts, roles, target, allowed=every, order=known.features)


def _answers(
    path: Path, parts: Split, roles: Roles, target: Target, *, allowed: tuple[str, ...], order: tuple[str, ...] = ()
) -> Answers:
    model = load_model(path, parts.holdout, roles.label, allowed=allowed, order=order or roles.features)
    if isinstance(target, labels.Numbers):
        return Answers(numbers=numbers(model, parts.holdout))
    return Answers(*probabilities(model, parts.holdout, target))


def _row(table: pa.Table, row: int, columns: tuple[str, ...]) -> str:
    values = {name: _value(table.column(name).slice(row, 1)) for name in columns}
    text = json.dumps(values, default=str)
    return text if len(text) <= 300 else text[:300] + "..."


def _value(column: pa.ChunkedArray) -> Any:
    try:
        return column[0].as_py()
    except (OverflowError, ValueError):
        # A time beyond Python's years, or finer than its microseconds.
        return str(column.to_numpy()[0])


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
