"""Which parameters a sweep tries next. Equal seeds and equal scores so far give equal proposals, on any machine."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dropforge.domain.runs import SweepPlan
from dropforge.training.contract import ExitCode, NodeFailed


@dataclass(frozen=True)
class Trial:
    """One set of parameters that was tried. `score` is higher for a better one; None, with the `reason`, when there is
    none."""

    number: int
    parameters: dict[str, Any]
    score: float | None
    seconds: float
    reason: str | None = None


def count(plan: SweepPlan) -> int:
    """How many trials there will be: a grid has no more than it has points."""
    return min(plan.trials, len(_grid(plan))) if plan.sampler == "grid" else plan.trials


def propose(plan: SweepPlan, seed: int, number: int, before: Sequence[Trial]) -> dict[str, Any]:
    """The parameters of that trial, in the light of those before. Raises `NodeFailed` when Optuna is not there."""
    if plan.sampler == "grid":
        return dict(zip(plan.space, _grid(plan)[number], strict=True))
    optuna = _optuna()
    # A sampler of its own for each proposal: whoever goes on after a crash proposes the same.
    own = int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4])
    samplers = optuna.samplers
    sampler = samplers.TPESampler(seed=own) if plan.sampler == "bayesian" else samplers.RandomSampler(seed=own)
    distributions = {name: _distribution(optuna, axis) for name, axis in plan.space.items()}
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials([_finished(optuna, trial, distributions) for trial in before])
    found: dict[str, Any] = study.ask(distributions).params
    return {name: found[name] for name in plan.space}


def _grid(plan: SweepPlan) -> list[tuple[Any, ...]]:
    """Every combination, the last parameter changing fastest."""
    return list(itertools.islice(itertools.product(*(axis["choice"] for axis in plan.space.values())), plan.trials))


def _finished(optuna: Any, trial: Trial, distributions: Mapping[str, Any]) -> Any:
    states = optuna.trial.TrialState
    return optuna.trial.create_trial(
        params=trial.parameters,
        distributions=dict(distributions),
        value=trial.score,
        state=states.FAIL if trial.score is None else states.COMPLETE,
    )


def _distribution(optuna: Any, axis: Mapping[str, Any]) -> Any:
    if "choice" in axis:
        return optuna.distributions.CategoricalDistribution(tuple(axis["choice"]))
    log = bool(axis.get("log"))
    if axis.get("int"):
        return optuna.distributions.IntDistribution(int(axis["min"]), int(axis["max"]), log=log)
    return optuna.distributions.FloatDistribution(float(axis["min"]), float(axis["max"]), log=log)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise NodeFailed(
            ExitCode.SPEC_WRONG,
            f"training.sweep needs Optuna, and it cannot be imported ({error}); install dropforge[sweep], or use "
            "sampler: grid",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
