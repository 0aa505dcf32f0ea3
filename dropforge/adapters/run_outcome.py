"""What a run left in its output folder, as its result: the same rules for every `Compute`."""

from __future__ import annotations

from pathlib import Path

from dropforge.domain.errors import BadInput, RunFailed
from dropforge.domain.runs import RunResult, RunSpec
from dropforge.ports import Artifacts
from dropforge.training.contract import EVIDENCE, GOLDEN, METRICS, MODEL, RESULT, SWEEP, NodeResult
from dropforge.wire import from_json


def collected(spec: RunSpec, output: Path, artifacts: Artifacts) -> RunResult:
    """The result of a run that ended well, with all that it left put among the artifacts; again: the same.

    `output`: the folder, on this machine. Raises `RunFailed` when a file is missing or says something else.
    """
    run = spec.run
    try:
        left = from_json(NodeResult, (output / RESULT).read_bytes())
        model = f"models/{spec.pipeline}/{run}/{MODEL}"
        evidence = f"runs/{run}/{EVIDENCE}"
        sha256 = artifacts.put(model, output / MODEL)
        artifacts.put(evidence, output / EVIDENCE)
        golden = f"models/{spec.pipeline}/{run}/{GOLDEN}" if (output / GOLDEN).exists() else None
        if golden is not None:
            artifacts.put(golden, output / GOLDEN)
        for name in (METRICS, SWEEP):
            if (output / name).exists():
                artifacts.put(f"runs/{run}/{name}", output / name)
    except FileNotFoundError as error:
        raise RunFailed(f"run {run} ended well but left no {Path(error.filename).name}", run=run) from error
    except BadInput as error:
        raise RunFailed(f"run {run} left files that say something else: {error.message}", run=run) from error
    if left.model_sha256 not in (None, sha256):
        message = f"run {run} judged a model with sha256 {left.model_sha256} and left one with {sha256}"
        raise RunFailed(message, run=run)
    return RunResult(run, model, sha256, evidence, left.metrics, left.environment, left.seconds, golden, left.features)
