"""examples/digits under the training node: one process, two that share each batch, told to end and started again."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.csv as pacsv
import pytest

from dropforge.domain.runs import EvaluationPlan, RunSpec, RunState
from dropforge.serving.rows import feeds_of_rows, matrix_columns
from dropforge.serving.tensors import KINDS, Tensor
from dropforge.spec.load import parse, to_sweep_plan
from tests.torch_python import torch_python
from tests.unit.training.bench import spec, write_table
from tests.unit.training.mounts import Mounts, mounts

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
HOLDOUT_DAYS = 6
# The network as train.py has it, with the weights that the ONNX file holds, on the rows that judged it.
IN_TORCH = """
import sys
import numpy as np, onnx, torch
from onnx import numpy_helper
sys.path.insert(0, sys.argv[1])
import train
model = onnx.load(sys.argv[2])
weights = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in model.graph.initializer}
weights = {name.removeprefix("network."): value for name, value in weights.items() if name.startswith("network.")}
network = train.Network(len(weights["first.bias"]))
network.load_state_dict(weights)
with torch.no_grad():
    np.save(sys.argv[4], train.Answering(network)(torch.from_numpy(np.load(sys.argv[3]))).numpy())
"""


@pytest.fixture(scope="module")
def feed() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DIGITS))
        import feed  # type: ignore[import-not-found, unused-ignore]

        yield feed
        sys.modules.pop("feed", None)


@pytest.fixture(scope="module")
def table(feed: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All thirty days."""
    folder = tmp_path_factory.mktemp("digits")
    files = [feed.write_day(day, folder / "drops") for day in feed.days()]
    return write_table(folder / "table", pa.concat_tables([pacsv.read_csv(path) for path in files]))


def asked(table: Path) -> RunSpec:
    """What the pipeline's own file asks for, with fewer epochs."""
    pipeline = parse((DIGITS / "pipeline.yaml").read_text())
    judged = pipeline.evaluation
    return replace(
        spec(table),
        pipeline=pipeline.name,
        label=pipeline.dataset.label,
        event_time=pipeline.dataset.event_time,
        features=pipeline.training.features,
        # `python` there is the Python that runs the node.
        command=(torch_python(), *pipeline.training.command[1:]),
        evaluation=EvaluationPlan(judged.metric, judged.block, judged.holdout_blocks, judged.slices),
        seed=pipeline.training.seed,
        parameters={**pipeline.training.parameters, "epochs": 6},
        environment=dict(pipeline.training.environment),
    )


@pytest.fixture(scope="module")
def one(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Mounts:
    """A run of one process."""
    run = mounts(tmp_path_factory.mktemp("one") / "run", asked(table), (DIGITS / "train.py").read_text())
    code, printed = run.run()
    assert code == 0, printed
    return run


@pytest.fixture(scope="module")
def held_out(feed: Any) -> np.ndarray[Any, Any]:
    rows = [row for day in feed.days(30 - HOLDOUT_DAYS) for row in feed.requests_for(day)]
    return np.array([list(row.values()) for row in rows], dtype=np.float32)


def answers(model: Path, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found: np.ndarray[Any, Any] = session.run(None, {"pixels": rows})[0]
    return found


def test_the_model_knows_hands_that_it_never_saw(one: Mounts) -> None:
    result = one.result

    assert result.state is RunState.SUCCEEDED
    assert result.metrics["error_rate"] < 0.12
    assert result.metrics["log_loss"] < 0.2 * result.metrics["baseline_log_loss"]
    assert result.metrics["train_accuracy"] > 0.97
    assert result.metrics["processes"] == 1
    assert not (one.output / "checkpoints").exists()


def test_onnxruntime_answers_as_torch_does_on_the_held_out_rows(
    one: Mounts, held_out: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", held_out)
    paths = [str(one.output / "model.onnx"), str(tmp_path / "rows.npy"), str(tmp_path / "torch.npy")]

    subprocess.run([torch_python(), "-c", IN_TORCH, str(DIGITS), *paths], check=True, timeout=60)

    assert len(held_out) == 357
    assert np.abs(np.load(tmp_path / "torch.npy") - answers(one.output / "model.onnx", held_out)).max() < 1e-5


def test_the_server_takes_rows_with_the_names_of_the_pixels(one: Mounts, feed: Any) -> None:
    metadata = {each.key: each.value for each in onnx.load(one.output / "model.onnx").metadata_props}
    inputs = [Tensor("pixels", KINDS["tensor(float)"], ("rows", 64))]

    columns = matrix_columns(inputs, metadata)

    assert columns == tuple(feed.PIXELS)
    fed = feeds_of_rows(inputs, columns, feed.requests_for(29))["pixels"]
    right = answers(one.output / "model.onnx", fed).argmax(1) == feed.answers_for(29)
    assert right.mean() > 0.8


def test_two_processes_that_are_told_to_end_go_on_to_the_model_that_one_makes(
    one: Mounts, table: Path, held_out: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    run = mounts(tmp_path / "two", asked(table), (DIGITS / "train.py").read_text())

    started = [run.start(rank_of_two(rank, port)) for port in [free_port()] for rank in (0, 1)]
    assert started[0].stdout is not None
    assert any(line.startswith("epoch 2/6") for line in started[0].stdout)
    for process in started:
        process.send_signal(signal.SIGTERM)
    told = [process.communicate(timeout=60)[0] for process in started]
    assert [process.returncode for process in started] == [143, 143], told
    assert (run.output / "checkpoints" / "last.pt").exists()
    assert run.result.state is RunState.CANCELLED

    started = [run.start(rank_of_two(rank, port)) for port in [free_port()] for rank in (0, 1)]
    told = [process.communicate(timeout=60)[0] for process in started]

    assert [process.returncode for process in started] == [0, 0], told
    assert "going on after epoch" in told[0]
    assert "epoch 1/6" not in told[0]
    assert run.result.metrics["processes"] == 2
    models = [answers(each.output / "model.onnx", held_out) for each in (one, run)]
    assert np.abs(models[0] - models[1]).max() < 1e-3


def rank_of_two(rank: int, port: int) -> dict[str, str]:
    """What Azure ML and torchrun set."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", **where}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_both_pipelines_ask_for_the_same_but_for_the_sweep() -> None:
    plain, swept = (parse((DIGITS / name).read_text()) for name in ("pipeline.yaml", "pipeline.sweep.yaml"))
    plan = to_sweep_plan(swept)

    assert plan is not None and to_sweep_plan(plain) is None
    assert plain.training.parameters.keys() == swept.training.parameters.keys() | plan.space.keys()
    same = swept.training.model_copy(update={"sweep": None, "parameters": plain.training.parameters})
    assert swept.model_copy(update={"training": same}) == plain


def test_the_network_and_the_pixels_are_those_of_the_pipeline(feed: Any, tmp_path: Path) -> None:
    first = (feed.write_day(0, tmp_path)).read_text()

    assert first.splitlines()[0].split(",") == ["scanned_on", *feed.PIXELS, "digit"]
    assert len(first.splitlines()) == feed.A_DAY + 1
    assert first == feed.write_day(0, tmp_path).read_text()
    assert json.loads(json.dumps(feed.requests_for(0)))[0].keys() == set(feed.PIXELS)
