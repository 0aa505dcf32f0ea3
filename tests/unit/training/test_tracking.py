"""Where a run is written down, and that nothing secret is said about it."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from dropforge.training.tracking import Tracking, tracking_uri, without_secrets
from tests.unit.training.bench import spec

RUN = replace(spec(Path("/table")), parameters={"depth": 3, "words": "x" * 400})
TOKEN = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJtZSJ9.c2VjcmV0"


def written(
    tracking: Tracking, output: Path, caplog: pytest.LogCaptureFixture, more: dict[str, float] | None = None
) -> str:
    """What is logged while the run is written down."""
    metrics = {**(more or {}), "mae": 0.5, "dropforge_validation_score": -0.5}
    output.mkdir(exist_ok=True)
    for name in ("model.onnx", "evidence.json", "metrics.json", "sweep.json"):
        (output / name).write_bytes(b"{}")
    with caplog.at_level(logging.DEBUG):
        tracking.prepare()
        tracking.log(RUN, RUN.parameters, metrics, {"dropforge.run": "r1"}, output)
    return caplog.text


@pytest.mark.parametrize(
    ("own", "around", "chosen"),
    [
        (None, {}, None),
        ("file:///own", {}, "file:///own"),
        (None, {"MLFLOW_TRACKING_URI": "azureml://ws"}, "azureml://ws"),
        ("file:///own", {"MLFLOW_TRACKING_URI": "azureml://ws"}, "file:///own"),
        # A service that has made a run for it is told about that run.
        ("file:///own", {"MLFLOW_TRACKING_URI": "azureml://ws", "MLFLOW_RUN_ID": "r1"}, "azureml://ws"),
    ],
)
def test_the_run_that_is_there_already_comes_first(own: str | None, around: dict[str, str], chosen: str | None) -> None:
    assert tracking_uri(replace(RUN, tracking_uri=own), around) == chosen


def test_a_run_that_a_service_made_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "store").as_uri()
    client = mlflow.MlflowClient(store)
    made = client.create_run(client.create_experiment("service"))
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)

    written(Tracking(store), tmp_path / "output", caplog)

    (run,) = client.search_runs([made.info.experiment_id])
    assert run.info.run_id == made.info.run_id
    assert run.data.metrics == {"mae": 0.5, "dropforge_validation_score": -0.5}
    assert run.data.params == {"depth": "3", "seed": "0", "words": "x" * 250}
    assert run.data.tags["dropforge.run"] == "r1"
    names = {each.path for each in client.list_artifacts(made.info.run_id)}
    assert names == {"model.onnx", "evidence.json", "metrics.json", "sweep.json"}
    assert [each.name for each in client.search_experiments()] == ["service", "Default"]


def test_what_one_part_refuses_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "store").as_uri()
    client = mlflow.MlflowClient(store)
    made = client.create_run(client.create_experiment("service"))
    client.log_param(made.info.run_id, "depth", "another value, of the run before the restart")
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)

    said = written(Tracking(store), tmp_path / "output", caplog)

    assert "failed: MlflowException" in said
    assert client.get_run(made.info.run_id).data.metrics["dropforge_validation_score"] == -0.5
    assert len(client.list_artifacts(made.info.run_id)) == 4


@pytest.mark.parametrize("name", ["acc@1", "F1 (macro)", "", "x" * 300])
def test_a_metric_whose_name_mlflow_does_not_take_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    store = (tmp_path / "store").as_uri()

    said = written(Tracking(store), tmp_path / "output", caplog, {name: 0.9})

    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert run.data.metrics == {"mae": 0.5, "dropforge_validation_score": -0.5}
    assert said.count("failed: MlflowException") == 1


def test_no_token_and_no_password_is_logged_when_nobody_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)

    said = written(Tracking("http://somebody:hunter2@127.0.0.1:9/"), tmp_path / "output", caplog)

    assert "tracking at http://***@127.0.0.1:9/ failed" in said
    assert "hunter2" not in said
    assert TOKEN not in said
    assert os.environ["MLFLOW_TRACKING_TOKEN"] == TOKEN


def test_what_looks_like_a_secret_is_taken_out() -> None:
    text = f"PUT https://x/y?sv=1&sig=abc%3D&se=2 with Authorization: Bearer {TOKEN} and token=abc, {TOKEN}"

    shown = without_secrets(text, {"MLFLOW_TRACKING_TOKEN": TOKEN})

    assert "sig=***&se=2" in shown
    assert TOKEN not in shown
    assert "token=***" in shown
