"""Sweep jobs: trials drawn from the search space, run as command jobs `<sweep>_<n>`, the best one named."""

from __future__ import annotations

import copy
import itertools
import math
import random
import time
from typing import Any

from tests.azure.jobs import Job, Jobs, seconds
from tests.azure.places import WORKSPACE

_TICK = 0.02


def run_sweep(jobs: Jobs, job: Job) -> None:
    """From NotStarted to its end. Bayesian sampling draws as random does, and no trial is ended early."""
    given = job.properties
    limits = given.get("limits") or {}
    together = int(limits.get("maxConcurrentTrials") or 100)
    deadline = time.monotonic() + seconds(limits["timeout"]) if limits.get("timeout") else None
    waiting = list(enumerate(drawn(given, job.name)))
    jobs.moved(job, "Running")
    trials: list[Job] = []
    while waiting or any(not trial.ended for trial in trials):
        if job.forgotten:
            for trial in trials:
                jobs.forget(trial)
            return
        late = deadline is not None and time.monotonic() >= deadline
        if job.cancelled.is_set() or late:
            waiting.clear()
            for trial in trials:
                trial.cancelled.set()
        elif waiting and sum(not trial.ended for trial in trials) < together:
            number, values = waiting.pop(0)
            trials.append(_trial(jobs, job, number, values))
            continue
        time.sleep(_TICK)
    _conclude(jobs, job, trials)


def _trial(jobs: Jobs, sweep: Job, number: int, values: dict[str, Any]) -> Job:
    given = copy.deepcopy(sweep.properties)
    body = {
        "jobType": "Command",
        "displayName": f"{given.get('displayName') or sweep.name}_{number}",
        **{key: given[key] for key in ("computeId", "experimentName", "identity", "inputs", "tags") if key in given},
        **given["trial"],
        # As it was asked: `${{name}}` is the trial's own.
        "outputs": {name: dict(value) for name, value in sweep.asked_outputs.items()},
    }
    if timeout := (given.get("limits") or {}).get("trialTimeout"):
        body["limits"] = {"jobLimitsType": "Command", "timeout": timeout}
    name = f"{sweep.name}_{number}"
    resource = {"id": f"{WORKSPACE}/jobs/{name}", "name": name, "properties": body}
    trial = Job(name, resource, jobs.machine.folder / name, parent=sweep.name, values=values)
    sweep.children.append(name)
    jobs.add(trial)
    return trial


def _conclude(jobs: Jobs, sweep: Job, trials: list[Job]) -> None:
    given = sweep.resource["properties"]
    objective = given["objective"]
    scores: dict[str, float] = {}
    for trial in trials:
        if logged := trial.metrics.get(objective["primaryMetric"]):
            scores[trial.name] = logged[-1]["value"]
            given["properties"][f"score_{trial.name}"] = str(scores[trial.name])
    ended_well = [trial.name for trial in trials if trial.status == "Completed" and trial.name in scores]
    if ended_well:
        sign = -1 if objective["goal"].lower() == "minimize" else 1
        best = max(ended_well, key=lambda name: sign * scores[name])
        # Under the name that the SDK reads when it downloads a sweep's outputs: those of the best trial.
        given["properties"] |= {"best_child_run_id": best, "best_metric_status": "Succeeded"}
    if sweep.cancelled.is_set():
        jobs.moved(sweep, "Canceled")
    elif trials and all(trial.status == "Failed" for trial in trials):
        jobs.failed(
            sweep, "UserError", "User errors were found in at least one of the child runs; no trial was completed."
        )
    else:
        jobs.moved(sweep, "Completed")


def drawn(given: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The values of each trial."""
    space = given["searchSpace"]
    most = int((given.get("limits") or {}).get("maxTotalTrials") or 20)
    sampling = given["samplingAlgorithm"]
    if sampling["samplingAlgorithmType"] == "Grid":
        if unlike := sorted(key for key, (kind, _) in space.items() if kind != "choice"):
            raise ValueError(f"grid sampling takes choices only, not {unlike}")
        rows = itertools.product(*(values[0] for _, values in space.values()))
        return [dict(zip(space, row, strict=True)) for row in itertools.islice(rows, most)]
    chance = random.Random(f"{sampling.get('seed')} {name}")
    return [{key: _draw(chance, kind, values) for key, (kind, values) in space.items()} for _ in range(most)]


def _draw(chance: random.Random, kind: str, values: list[Any]) -> Any:
    """Of the expressions of Azure ML: the bounds of `loguniform` are exponents."""
    match kind, values:
        case "choice", [options]:
            return chance.choice(options)
        case "randint", [upper]:
            return chance.randrange(int(upper))
        case "uniform", [low, high]:
            return chance.uniform(low, high)
        case "loguniform", [low, high]:
            return math.exp(chance.uniform(low, high))
        case "quniform", [low, high, q]:
            return round(chance.uniform(low, high) / q) * q
        case "qloguniform", [low, high, q]:
            return round(math.exp(chance.uniform(low, high)) / q) * q
        case "normal", [mean, deviation]:
            return chance.gauss(mean, deviation)
        case "lognormal", [mean, deviation]:
            return math.exp(chance.gauss(mean, deviation))
    raise ValueError(f"no search expression {kind} of {values}")
