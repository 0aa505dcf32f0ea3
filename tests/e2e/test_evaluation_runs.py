"""Runs that train nothing: a model version is measured against the champion, by the node and on the running platform."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dropforge.adapters.local.artifacts import LocalArtifacts
from dropforge.adapters.local.compute import LocalCompute
from dropforge.domain.errors import BadInput, RunFailed
from dropforge.domain.runs import ChampionRef, RunResult, RunSpec, RunState
from dropforge.domain.verdicts import Evidence, Outcome, judge
from dropforge.wire import from_json
from tests.bundles import packed
from tests.e2e.local_runs import ended
from tests.e2e.machine import COIN, Platform, eventually, throws
from tests.unit.training.bench import Onnx, days_table, spec, threshold_model, write_table

# What must not run.
TRAIN = b"raise SystemExit('the command was run')"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty days of forty rows; the label follows `x`."""
    return write_table(tmp_path_factory.mktemp("shops") / "table", days_table(20))


class Bench:
    """A compute with real nodes, and models put among its artifacts."""

    def __init__(self, folder: Path, table: Path) -> None:
        self.folder = folder
        self.artifacts = LocalArtifacts(folder / "artifacts")
        self.compute = LocalCompute(folder / "runs", self.artifacts)
        code = packed({"train.py": TRAIN})
        self.spec = replace(
            spec(table),
            code="code/shops.zip",
            code_sha256=self.artifacts.put("code/shops.zip", code),
            command=("python", "train.py"),
        )

    def model(self, version: int, made: Onnx) -> ChampionRef:
        path = made.save(self.folder / f"{version}.onnx")
        name = f"models/shops/{version}/model.onnx"
        return ChampionRef("shops", version, name, self.artifacts.put(name, path))

    def result(self, run: RunSpec) -> RunResult:
        self.compute.submit(run)
        status = ended(self.compute, run.run)
        assert status.state is RunState.SUCCEEDED, (status, self.compute.logs(run.run))
        return self.compute.result(run.run)

    def evidence(self, result: RunResult) -> Evidence:
        return from_json(Evidence, self.artifacts.read(result.evidence))


@pytest.fixture
def bench(tmp_path: Path, table: Path) -> Bench:
    return Bench(tmp_path, table)


# ------------------------------------------------------------------------------------------------ the node
def test_a_model_is_measured_against_the_champion_and_the_command_is_not_run(bench: Bench) -> None:
    good, bad = bench.model(1, threshold_model(0.2, 0.8)), bench.model(2, threshold_model(0.6, 0.4))
    result = bench.result(replace(bench.spec, challenger=good, champion=bad))
    evidence = bench.evidence(result)
    assert (evidence.against, evidence.champion_version) == ("champion", 2)
    assert judge(evidence, confidence=0.9, seed=0).outcome is Outcome.BETTER
    # What was measured is the very file.
    assert result.model_sha256 == good.sha256
    assert "the command was run" not in bench.compute.logs("r1")


def test_the_verdict_turns_round_when_the_two_are_exchanged(bench: Bench) -> None:
    good, bad = bench.model(1, threshold_model(0.2, 0.8)), bench.model(2, threshold_model(0.6, 0.4))
    result = bench.result(replace(bench.spec, challenger=bad, champion=good))
    assert judge(bench.evidence(result), confidence=0.9, seed=0).outcome is Outcome.WORSE


def test_without_a_champion_it_is_measured_against_the_baseline(bench: Bench) -> None:
    result = bench.result(replace(bench.spec, challenger=bench.model(1, threshold_model(0.2, 0.8))))
    assert bench.evidence(result).against == "baseline"
    assert result.metrics["log_loss"] < result.metrics["baseline_log_loss"]


def test_a_model_may_see_columns_that_are_no_features_any_more(bench: Bench) -> None:
    challenger = bench.model(1, threshold_model(0.2, 0.8))
    result = bench.result(replace(bench.spec, challenger=challenger, features=("shop",)))
    assert bench.evidence(result).holdout_rows == 200


def test_a_model_whose_column_is_gone_fails_with_its_name(bench: Bench) -> None:
    run = replace(bench.spec, challenger=bench.model(4, threshold_model(0.2, 0.8, name="gone")))
    bench.compute.submit(run)
    status = ended(bench.compute, "r1")
    assert (status.state, status.exit_code) == (RunState.FAILED, 12)
    with pytest.raises(RunFailed, match=r"shops v4 cannot be used: its inputs \['gone'\] match no column"):
        bench.compute.result("r1")


def test_a_model_that_is_not_the_one_that_was_registered_is_not_measured(bench: Bench) -> None:
    challenger = replace(bench.model(1, threshold_model(0.2, 0.8)), sha256="ab" * 32)
    with pytest.raises(BadInput, match="the run spec wants"):
        bench.compute.submit(replace(bench.spec, challenger=challenger))


# ------------------------------------------------------------------------------------------------ the platform
def test_an_evaluation_is_asked_for_measured_and_shown_and_changes_nothing(tmp_path: Path) -> None:
    with Platform(tmp_path / "state") as platform:
        pipeline = tmp_path / "coin"
        pipeline.mkdir()
        text = (COIN / "pipeline.yaml").read_text().replace("max_files: 3", "max_files: 1")
        (pipeline / "pipeline.yaml").write_text(text)
        (pipeline / "train.py").write_text((COIN / "train.py").read_text())
        platform.client.apply("coin", pipeline)
        for number in range(2):
            platform.drop("coin/", throws(tmp_path / "files", number * 7, days=2 if number else 14))
            platform.settled("coin", number + 1)
        told = platform.client.post("pipelines/coin/evaluate", "evaluate-1", version=2)
        again = platform.client.post("pipelines/coin/evaluate", "evaluate-1", version=2)
        assert told["result"]["request"] == again["result"]["request"]

        def over() -> bool:
            status = platform.status("coin")
            return len(status["runs"]) == 3 and status["live_run"] is None

        eventually(over, 60, platform.log)
        run = platform.status("coin")["runs"][0]
        assert (run["outcome"], run["model_version"], run["verdict"]) == ("evaluated", 2, "cannot_tell")
        whole = platform.client.get(f"pipelines/coin/runs/{run['run']}")
        assert whole["spec"]["challenger"]["version"] == 2 and whole["spec"]["champion"]["version"] == 1
        assert whole["cause"]["id"] == "evaluate-1"
        assert platform.status("coin")["champion"] == 1
        assert len(platform.client.get("pipelines/coin/models")["models"]) == 2
