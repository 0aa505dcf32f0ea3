"""A sweep, as a run on one machine makes it and as one trial of a service's: the same split, the same evidence."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dropforge import wire
from dropforge.adapters.local.artifacts import LocalArtifacts
from dropforge.adapters.local.compute import LocalCompute
from dropforge.domain.runs import ENDED, RunSpec, SweepPlan
from dropforge.domain.verdicts import Evidence
from dropforge.training.sweep import Tried
from tests.bundles import packed
from tests.e2e.test_train_node import end_as_a_machine_does
from tests.unit.training.bench import Run, days_table, prepare, run_node, spec, threshold_model, write_table
from tests.unit.training.mounts import mounts

# What makes a model here is quick: it writes `high` into a model that is there. Every start keeps what it was given.
# The best one answers 0.8 where x is above zero.
MARK = 0.6180339
TRAIN = """
import json, os, shutil, struct, sys, time
asked = json.load(open(os.environ["DROPFORGE_PARAMETERS"]))
with open(os.environ["STARTS"], "a") as file: file.write(json.dumps(asked) + "\\n")
shutil.copy(os.environ["DROPFORGE_TRAIN_DATA"], f"{os.environ['STARTS']}-{os.getpid()}-{time.time_ns()}.parquet")
if asked["high"] == float(os.environ.get("BAD", "nan")): sys.exit("this one never works")
model = open(os.environ["MODEL"], "rb").read().replace(struct.pack("<f", MARK), struct.pack("<f", asked["high"]))
open(os.environ["DROPFORGE_OUTPUT"] + "/model.onnx", "wb").write(model)
""".replace("MARK", str(MARK))
GRID = SweepPlan(trials=9, parallel=2, sampler="grid", space={"high": {"choice": [0.3, 0.8, 0.55, 0.95]}})


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty days of forty rows; the label follows `x`."""
    return write_table(tmp_path_factory.mktemp("shops") / "table", days_table(20))


def swept(table: Path, tmp_path: Path, plan: SweepPlan = GRID, **environment: str) -> RunSpec:
    model = threshold_model(0.2, MARK).save(tmp_path / "ready.onnx")
    variables = {"STARTS": str(tmp_path / "starts"), "MODEL": str(model), **environment}
    return spec(table, parameters={"low": 0.2}, sweep=plan, environment=variables)


def starts(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "starts").read_text().splitlines()]


def rows_of_starts(tmp_path: Path) -> list[int]:
    return sorted(pq.read_metadata(path).num_rows for path in tmp_path.glob("starts-*.parquet"))


@dataclass(frozen=True)
class Swept:
    """A sweep on one machine, the spec it was asked for, and where its starts left their traces."""

    run: Run
    spec: RunSpec
    folder: Path


@pytest.fixture(scope="module")
def local(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("local")
    asked = swept(table, folder)
    return Swept(run_node(prepare(folder / "run", asked, TRAIN)), asked, folder)


def tried(folder: Path) -> Tried:
    return wire.from_json(Tried, (folder / "sweep.json").read_bytes())


def test_trials_are_compared_on_the_newest_training_rows_and_the_best_is_fitted_on_all(local: Swept) -> None:
    run = local.run

    assert run.exit_code == 0, run.printed
    # Fifteen days to train on, of which the newest five compare.
    assert rows_of_starts(local.folder) == [400, 400, 400, 400, 600]
    assert starts(local.folder)[-1] == {"low": 0.2, "high": 0.8}
    found = tried(run.output)
    assert [trial.parameters["high"] for trial in found.trials] == [0.3, 0.8, 0.55, 0.95]
    assert (found.best, found.metric, found.rows) == (1, "log_loss", 200)
    assert (found.validated_from[:10], found.validated_to[:10]) == ("2024-01-11", "2024-01-15")
    score = max(trial.score for trial in found.trials if trial.score is not None)
    assert run.result.metrics["dropforge_validation_score"] == found.trials[1].score == score
    assert run.result.environment["parameters"] == {"low": 0.2, "high": 0.8}
    told = {"sampler": "grid", "trials": 4, "failed": 0, "best": 1, "score": score}
    assert run.result.environment["sweep"] == told


def test_the_evidence_is_that_of_a_run_that_was_told_the_parameters(local: Swept, tmp_path: Path) -> None:
    told = replace(local.spec, parameters={"low": 0.2, "high": 0.8}, sweep=None)

    plain = run_node(prepare(tmp_path / "plain", told, TRAIN))

    assert local.run.evidence == plain.evidence
    assert local.run.result.model_sha256 == plain.result.model_sha256


def test_the_holdout_has_no_say(local: Swept, tmp_path: Path) -> None:
    data = days_table(20)
    upside_down = [1 - y if index >= 600 else y for index, y in enumerate(data.column("y").to_pylist())]
    other = write_table(tmp_path / "other", data.set_column(3, "y", [upside_down]))

    run = run_node(prepare(tmp_path / "run", swept(other, tmp_path), TRAIN))

    assert [(each.parameters, each.score) for each in tried(run.output).trials] == [
        (each.parameters, each.score) for each in tried(local.run.output).trials
    ]
    assert run.evidence != local.run.evidence


def test_a_trial_that_fails_is_written_down_and_the_sweep_goes_on(table: Path, tmp_path: Path) -> None:
    run = run_node(prepare(tmp_path / "run", swept(table, tmp_path, BAD="0.55"), TRAIN))

    assert run.exit_code == 0, run.printed
    failed = tried(run.output).trials[2]
    assert failed.score is None
    assert (failed.reason or "").endswith("ended with exit code 1; its last words: this one never works")
    assert run.result.environment["sweep"]["failed"] == 1


def test_a_sweep_without_a_good_trial_fails_with_the_first_reason(table: Path, tmp_path: Path) -> None:
    plan = replace(GRID, space={"high": {"choice": [7.0, 8.0]}})
    run = run_node(prepare(tmp_path / "run", swept(table, tmp_path, plan), TRAIN))

    assert run.exit_code == 10
    assert "no trial of the sweep went well (2 were made); the first: the model cannot be used: " in (
        run.result.reason or ""
    )


def test_a_bayesian_sweep_comes_near_the_best(table: Path, tmp_path: Path) -> None:
    axis = {"min": 0.05, "max": 0.95, "log": False, "int": False}
    plan = SweepPlan(trials=14, parallel=2, sampler="bayesian", space={"high": axis})

    run = run_node(prepare(tmp_path / "run", swept(table, tmp_path, plan), TRAIN))

    assert run.exit_code == 0, run.printed
    assert run.result.environment["parameters"]["high"] == pytest.approx(0.8, abs=0.1)


# ------------------------------------------------------------------------------------------------ a killed sweep
def test_a_sweep_that_is_killed_goes_on_where_it_was(table: Path, tmp_path: Path) -> None:
    plan = SweepPlan(4, 2, "random", {"high": {"min": 0.05, "max": 0.95, "log": False, "int": False}})
    script = TRAIN + "\nimport time; time.sleep(0.2)\n"
    undisturbed = mounts(tmp_path / "whole", swept(table, tmp_path, plan), script)
    assert undisturbed.run()[0] == 0
    made = len(starts(tmp_path))
    disturbed = mounts(tmp_path / "disturbed", swept(table, tmp_path, plan), script)

    for number, after in ((signal.SIGKILL, 2), (signal.SIGTERM, 3)):
        process = disturbed.start()
        journal = disturbed.output / "checkpoints" / "sweep.json"
        while not journal.exists() or len(json.loads(journal.read_bytes())["trials"]) < after:
            assert process.poll() is None
            time.sleep(0.01)
        end_as_a_machine_does(process, number)
    code, printed = disturbed.run()

    assert code == 0, printed
    # A fourth may end between the third and the signal.
    assert re.search("[34] of them are done already", printed), printed
    one, other = tried(undisturbed.output), tried(disturbed.output)
    assert [(each.parameters, each.score) for each in one.trials] == [
        (each.parameters, each.score) for each in other.trials
    ]
    assert disturbed.result.model_sha256 == undisturbed.result.model_sha256
    # Two may have been under way at each of the ends.
    assert len(starts(tmp_path)) - made <= made + 4


def test_what_another_sweep_left_there_is_not_taken_up(table: Path, tmp_path: Path) -> None:
    mounted = mounts(tmp_path / "run", swept(table, tmp_path), TRAIN)
    checkpoints = mounted.output / "checkpoints"
    checkpoints.mkdir(parents=True)
    left = Tried("r1", "log_loss", "grid", 200, "", "", best=0, asked_sha256="another")
    (checkpoints / "sweep.json").write_bytes(wire.to_json(left))

    assert mounted.run()[0] == 0
    assert len(tried(mounted.output).trials) == 4


# ------------------------------------------------------------------------------------------------ a service's trial
def test_a_trial_of_a_service_says_its_score_and_leaves_the_whole_evidence(
    table: Path, local: Swept, tmp_path: Path
) -> None:
    store = tmp_path / "mlruns"
    run = replace(swept(table, tmp_path), tracking_uri=store.as_uri())
    mounted = mounts(tmp_path / "trial", run, TRAIN).with_words("--parameter", "high=0.55")

    code, printed = mounted.run()

    assert code == 0, printed
    score = tried(local.run.output).trials[2].score
    assert mounted.result.metrics["dropforge_validation_score"] == score
    (metric,) = store.glob("*/*/metrics/dropforge_validation_score")
    assert float(metric.read_text().split()[1]) == score
    assert (metric.parents[1] / "params" / "high").read_text() == "0.55"
    told = replace(run, parameters={"low": 0.2, "high": 0.55}, sweep=None, tracking_uri=None)
    plain = run_node(prepare(tmp_path / "plain", told, TRAIN))
    assert wire.from_json(Evidence, (mounted.output / "evidence.json").read_bytes()) == plain.evidence
    assert len(tried(mounted.output).trials) == 1


def test_a_trial_of_several_processes_fits_twice_in_each(table: Path, tmp_path: Path) -> None:
    # Processes that train together wait for each other, as these do.
    meet = f"""
rank, port = int(os.environ['RANK']), os.environ['MASTER_PORT']
print('rank', rank, 'at', port, flush=True)
open(f"{tmp_path}/met-{{port}}-{{rank}}", "w").close()
while not os.path.exists(f"{tmp_path}/met-{{port}}-{{1 - rank}}"): time.sleep(0.01)
"""
    script = TRAIN + meet
    mounted = mounts(tmp_path / "run", swept(table, tmp_path), script)
    trial = mounted.with_words("--trial", '{"high": 0.8}')
    together = {"WORLD_SIZE": "2", "MASTER_PORT": "6100"}

    begun = [trial.start({**together, "RANK": str(rank)}) for rank in (1, 0)]
    printed = [process.communicate(timeout=60)[0] for process in begun]

    assert [process.returncode for process in begun] == [0, 0], printed
    assert rows_of_starts(tmp_path) == [400, 400, 600, 600]
    for rank, text in zip((1, 0), printed, strict=True):
        # The second fit finds a port that the first cannot still hold.
        assert text.index(f"rank {rank} at 6100") < text.index(f"rank {rank} at 6101")


# ------------------------------------------------------------------------------------------------ one machine
def test_a_local_run_keeps_what_was_tried_among_the_artifacts(table: Path, tmp_path: Path) -> None:
    artifacts = LocalArtifacts(tmp_path / "artifacts")
    code = packed({"train.py": TRAIN.encode()})
    artifacts.put("code.zip", code)
    run = replace(
        swept(table, tmp_path),
        code="code.zip",
        code_sha256=hashlib.sha256(code).hexdigest(),
        compute={"target": "local"},
    )
    compute = LocalCompute(tmp_path / "runs", artifacts)

    compute.submit(run)
    while compute.status("r1").state not in ENDED:
        time.sleep(0.05)

    result = compute.result("r1")
    assert result.environment["parameters"] == {"low": 0.2, "high": 0.8}
    assert len(wire.from_json(Tried, artifacts.read("runs/r1/sweep.json")).trials) == 4
    assert not (tmp_path / "runs" / "r1" / "checkpoints").exists()
