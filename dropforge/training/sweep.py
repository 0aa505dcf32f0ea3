"""A sweep: trials of the user's command with different parameters, compared on the newest part of the training rows.

The holdout plays no part in it. The best parameters are then fitted once more on all training rows, by the caller: a model
that never saw the newest of them would be held against a champion that knows about as much.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dropforge import wire
from dropforge.domain.errors import BadInput
from dropforge.domain.runs import RunSpec, SweepPlan
from dropforge.domain.verdicts import LOWER_IS_BETTER
from dropforge.training import search
from dropforge.training.command import Cancelled, Ended, Running, end
from dropforge.training.contract import MODEL, SWEEP, ExitCode, NodeFailed
from dropforge.training.disk import put
from dropforge.training.evidence import Answers, measure
from dropforge.training.fit import Fit, Fitting
from dropforge.training.labels import Target
from dropforge.training.onnx_file import ModelUnusable
from dropforge.training.search import Trial
from dropforge.training.split import Split

LOG = logging.getLogger("dropforge.sweep")

_LOOK_SECONDS = 0.05
# A signal to all processes of a run reaches the command before it reaches us, now and then.
_OWN_END_SECONDS = 0.5


@dataclass(frozen=True)
class Tried:
    """`sweep.json`: every trial so far, in order. `best`: the number of the best one; None while there is none."""

    run: str
    metric: str
    sampler: str
    # Of the rows that compared the trials: how many, and from when to when.
    rows: int
    validated_from: str
    validated_to: str
    trials: tuple[Trial, ...] = ()
    best: int | None = None
    # Of what was asked: what another spec left in the same place is not taken up.
    asked_sha256: str = ""


@dataclass(frozen=True)
class Validation:
    """The newest part of the training rows, and how a model's answers to them are got."""

    parts: Split
    target: Target
    # Raises `ModelUnusable`.
    answers: Callable[[Path], Answers]


@dataclass(frozen=True)
class Sweep:
    """The trials of one run. `given`: the parameters of the only one there is, when somebody else proposes them."""

    spec: RunSpec
    plan: SweepPlan
    fitting: Fitting
    validation: Validation
    work: Path
    # Survives a restart of the run: what was tried is not tried again.
    checkpoints: Path
    given: dict[str, Any] | None = None

    def run(self) -> Tried:
        """Make the trials that are not made yet. Raises `NodeFailed` when not one of them went well."""
        done = {trial.number: trial for trial in self.journal().trials}
        count, parallel = (1, 1) if self.given is not None else (search.count(self.plan), self.plan.parallel)
        running: dict[int, tuple[Running, Fit]] = {}
        data = self.fitting.write_rows(self.validation.parts.train, self.work / "data" / "train.parquet")
        LOG.info(
            "sweep of %d trials (%s), compared on %d rows, %s to %s%s",
            *(count, self.plan.sampler, len(self.validation.parts.holdout)),
            *(self.validation.parts.holdout_from, self.validation.parts.holdout_to),
            f"; {len(done)} of them are done already" if done else "",
        )
        try:
            while len(done) < count:
                self._start(range(count), parallel, done, running, data)
                for number in [each for each, (command, _) in running.items() if command.ended]:
                    command, fit = running[number]
                    done[number] = self._tried(number, fit, command.wait())
                    del running[number]
                    self._note(done)
                if running:
                    time.sleep(_LOOK_SECONDS)
        except Cancelled:
            end([command for command, _ in running.values()], self.fitting.grace_seconds)
            raise
        tried = self._note(done)
        if tried.best is None:
            first = tried.trials[0].reason
            raise NodeFailed(
                ExitCode.COMMAND_FAILED, f"no trial of the sweep went well ({count} were made); the first: {first}"
            )
        return tried

    def follow(self) -> Ended | None:
        """As another process of the given trial: run the command along, unless the trial was made before."""
        if self.journal().trials:
            return None
        data = self.fitting.write_rows(self.validation.parts.train, self.work / "data" / "train.parquet")
        return self.fitting.run(self._fit(0, self.given or {}, data))

    def journal(self) -> Tried:
        """What was tried before the run was started again."""
        parts = self.validation.parts
        fresh = Tried(
            run=self.spec.run,
            metric=self.fitting.metric,
            sampler=self.plan.sampler,
            rows=len(parts.holdout),
            validated_from=parts.holdout_from,
            validated_to=parts.holdout_to,
            asked_sha256=hashlib.sha256(
                wire.to_json([replace(self.spec, table_uri=""), wire.to_builtins(self.given)])
            ).hexdigest(),
        )
        try:
            found = wire.from_json(Tried, (self.checkpoints / SWEEP).read_bytes())
        except (FileNotFoundError, BadInput):
            return fresh
        return found if found.asked_sha256 == fresh.asked_sha256 else fresh

    def _note(self, done: dict[int, Trial]) -> Tried:
        trials = tuple(done[number] for number in sorted(done))
        scored = [(trial.score, -trial.number) for trial in trials if trial.score is not None]
        tried = replace(self.journal(), trials=trials, best=-max(scored)[1] if scored else None)
        put(self.checkpoints / SWEEP, wire.to_json(tried))
        return tried

    def _start(
        self,
        numbers: range,
        parallel: int,
        done: dict[int, Trial],
        running: dict[int, tuple[Running, Fit]],
        data: Path,
    ) -> None:
        """Start what may be started. Trial n is proposed in the light of those up to n - parallel, and of no others: so
        it does not matter which of two that run at once is the faster."""
        for number in numbers:
            if number in done or number in running:
                continue
            known = range(max(0, number - parallel + 1))
            if len(running) >= parallel or any(each not in done for each in known):
                return
            before = [done[each] for each in known]
            parameters = self.given or search.propose(self.plan, self.spec.seed, number, before)
            fit = self._fit(number, parameters, data)
            LOG.info("trial %d: %s", number, parameters)
            try:
                running[number] = self.fitting.start(fit), fit
            except NodeFailed as error:
                done[number] = Trial(number, parameters, None, 0.0, error.message)

    def _fit(self, number: int, parameters: dict[str, Any], data: Path) -> Fit:
        folder = self.work / f"trial-{number}"
        everything = {**self.spec.parameters, **parameters}
        return Fit(data, folder, folder / "output", self.checkpoints / f"trial-{number}", everything)

    def _tried(self, number: int, fit: Fit, ended: Ended) -> Trial:
        if ended.exit_code < 0:
            time.sleep(_OWN_END_SECONDS)
        own = {name: fit.parameters[name] for name in self.plan.space}
        seconds = round(ended.seconds, 3)
        try:
            self.fitting.check(ended, fit.output)
            score = self._score(fit.output / MODEL)
        except NodeFailed as error:
            trial = Trial(number, own, None, seconds, error.message)
        except ModelUnusable as error:
            trial = Trial(number, own, None, seconds, f"the model cannot be used: {error}")
        else:
            trial = Trial(number, own, score, seconds)
        LOG.info("trial %d: %s", number, f"score {trial.score:.5f}" if trial.score is not None else trial.reason)
        for left in (fit.work, fit.checkpoints):
            shutil.rmtree(left, ignore_errors=True)
        return trial

    def _score(self, model: Path) -> float:
        """The metric on the validation rows, turned so that more is better."""
        parts, metric = self.validation.parts, self.fitting.metric
        answers = self.validation.answers(model)
        if len(answers.unusable_rows):
            raise ModelUnusable(
                f"it has no finite answer for {len(answers.unusable_rows)} of {len(parts.holdout)} rows"
            )
        value = measure(metric, answers, self.validation.target)(np.arange(len(parts.holdout)))
        if value is None:
            raise ModelUnusable(f"{metric} is not defined on the validation rows, which are all of one class")
        return -value if LOWER_IS_BETTER[metric] else value
