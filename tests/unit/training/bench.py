"""Small tables, small ONNX models and run folders for the tests of the training node."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake
from onnx import TensorProto, helper, numpy_helper

from dropforge import wire
from dropforge.domain.runs import ChampionRef, EvaluationPlan, RunSpec
from dropforge.domain.verdicts import Evidence
from dropforge.training.contract import NodeResult, NodeSpec

START = datetime(2024, 1, 1, tzinfo=UTC)
TYPES = {"float": TensorProto.FLOAT, "int64": TensorProto.INT64, "string": TensorProto.STRING, "bool": TensorProto.BOOL}

# A trainer with nothing but pyarrow and onnx: how often the label is 1 where x is above zero, and where it is not.
TRAIN = """
import os, sys
import pyarrow.parquet as pq
sys.path.insert(0, os.environ["BENCH"])
from tests.unit.training.bench import threshold_model
table = pq.read_table(os.environ["DROPFORGE_TRAIN_DATA"])
x, y = (table.column(name).to_numpy() for name in ("x", os.environ["DROPFORGE_LABEL"]))
rate = lambda rows: float((y[rows].sum() + 1) / (rows.sum() + 2))
threshold_model(rate(x <= 0), rate(x > 0)).save(os.environ["DROPFORGE_OUTPUT"] + "/model.onnx")
print("trained on", len(table), "rows")
"""


@dataclass(frozen=True)
class Onnx:
    """A model in memory."""

    proto: Any

    def save(self, path: str | Path) -> Path:
        Path(path).write_bytes(self.proto.SerializeToString())
        return Path(path)


def model(
    nodes: list[Any], inputs: dict[str, tuple[str, list[Any]]], outputs: dict[str, list[Any]], **named: Any
) -> Onnx:
    """An ONNX model from nodes; inputs are {name: (type, shape)}, outputs float {name: shape}."""
    graph = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info(name, TYPES[kind], shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        initializer=named.get("initializers", []),
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", named.get("opset", 17))], ir_version=9)
    for key, value in named.get("metadata", {}).items():
        helper.set_model_props(proto, {key: value})
    return Onnx(proto)


def constant(name: str, values: Any) -> Any:
    array = np.array(values)
    return numpy_helper.from_array(array.astype(object if array.dtype.kind == "U" else np.float32), name)


def threshold_model(below: float, above: float, *, name: str = "x") -> Onnx:
    """P(1) is `above` where the column is greater than zero, else `below`; NaN where it is NaN."""
    nodes = [
        helper.make_node("Greater", [name, "zero"], ["high"]),
        helper.make_node("Where", ["high", "above", "below"], ["rate"]),
        helper.make_node("Mul", [name, "zero"], ["nothing"]),
        helper.make_node("Add", ["rate", "nothing"], ["one"]),
        helper.make_node("Sub", ["unit", "one"], ["none"]),
        helper.make_node("Concat", ["none", "one"], ["probabilities"], axis=1),
    ]
    numbers = {"zero": 0.0, "above": above, "below": below, "unit": 1.0}
    return model(
        nodes,
        {name: ("float", [None, 1])},
        {"probabilities": [None, 2]},
        initializers=[constant(key, [[value]]) for key, value in numbers.items()],
    )


def of_first_column(made: Onnx, width: int) -> Onnx:
    """The model of one column, now of a matrix with so many, the first of which it looks at."""
    graph = made.proto.graph
    graph.node.insert(0, helper.make_node("MatMul", ["X", "first"], [graph.input[0].name]))
    graph.initializer.append(constant("first", [[1.0]] + [[0.0]] * (width - 1)))
    graph.input[0].CopyFrom(helper.make_tensor_value_info("X", TYPES["float"], [None, width]))
    return made


def linear_model(slope: float, *, name: str = "x") -> Onnx:
    """A regression: slope times the column."""
    return model(
        [helper.make_node("Mul", [name, "slope"], ["variable"])],
        {name: ("float", [None, 1])},
        {"variable": [None, 1]},
        initializers=[constant("slope", [[slope]])],
    )


def days_table(days: int, rows_a_day: int = 40, *, seed: int = 0, odds: tuple[float, float] = (0.2, 0.8)) -> pa.Table:
    """A day is a file: `at`, `x`, `shop` and a label `y` that is 1 more often where x is above zero."""
    rng = np.random.default_rng(seed)
    rows = days * rows_a_day
    x = rng.normal(size=rows)
    day = np.arange(rows) // rows_a_day
    minute = np.arange(rows) % rows_a_day
    at = [START + timedelta(days=int(d), minutes=int(m)) for d, m in zip(day, minute, strict=True)]
    return pa.table(
        {
            "at": pa.array(at, pa.timestamp("us", "UTC")),
            "x": x,
            "shop": [["north", "south"][index % 2] for index in range(rows)],
            "y": (rng.random(rows) < np.where(x > 0, odds[1], odds[0])).astype(np.int64),
            "_source": [f"{d:032x}" for d in day],
            "_arrived_at": pa.array([START + timedelta(days=int(d) + 1) for d in day], pa.timestamp("us", "UTC")),
        }
    )


def spec(table: Path, **named: Any) -> RunSpec:
    """A run on the newest version of a table made by `days_table`."""
    plan = EvaluationPlan(
        metric=named.pop("metric", "log_loss"),
        block=named.pop("block", "day"),
        holdout_blocks=named.pop("holdout_blocks", 5),
        slices=named.pop("slices", ()),
    )
    base = RunSpec(
        run="r1",
        pipeline="shops",
        dataset="shops",
        dataset_version=1,
        table_uri=table.as_uri() if table.is_absolute() else str(table),
        table_version=0,
        code="code",
        code_sha256="c0de",
        command=("python", "train.py"),
        label="y",
        event_time="at",
        features=("x",),
        evaluation=plan,
        seed=0,
        timeout_seconds=60,
    )
    return replace(base, **named)


@dataclass(frozen=True)
class Run:
    """What a run of the node left behind."""

    folder: Path
    exit_code: int
    printed: str

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def result(self) -> NodeResult:
        return wire.from_json(NodeResult, (self.output / "result.json").read_bytes())

    @property
    def evidence(self) -> Evidence:
        return wire.from_json(Evidence, (self.output / "evidence.json").read_bytes())

    @property
    def metrics(self) -> dict[str, float]:
        found: dict[str, float] = json.loads((self.output / "metrics.json").read_text())
        return found


def prepare(
    folder: Path,
    run: RunSpec,
    script: str = TRAIN,
    champion: Onnx | None = None,
    champion_features: tuple[str, ...] = (),
) -> Path:
    """A run folder; returns the path of its spec."""
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "train.py").write_text(script)
    champion_model = None
    if champion is not None:
        (folder / "champion").mkdir()
        path = champion.save(folder / "champion" / "model.onnx")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        run = replace(run, champion=ChampionRef("shops", 3, "models/shops/3", sha256, champion_features))
        champion_model = str(path)
    node = NodeSpec(run, str(folder / "code"), champion_model, str(folder / "output"), str(folder / "work"))
    (folder / "spec.json").write_bytes(wire.to_json(node))
    return folder / "spec.json"


def environment() -> dict[str, str]:
    return {**os.environ, "BENCH": str(Path(__file__).parents[3])}


def start(spec_path: Path) -> subprocess.Popen[str]:
    """The node as compute starts it: a process group of its own, in the code folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "dropforge.training", str(spec_path)],
        cwd=spec_path.parent / "code" if (spec_path.parent / "code").is_dir() else spec_path.parent,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def run_node(spec_path: Path, timeout: float = 120) -> Run:
    with start(spec_path) as process:
        printed, _ = process.communicate(timeout=timeout)
    return Run(spec_path.parent, process.returncode, printed)


def write_table(path: Path, table: pa.Table) -> Path:
    """The next version of the Delta table at that path."""
    write_deltalake(str(path), table, mode="append", schema_mode="merge")
    return path
