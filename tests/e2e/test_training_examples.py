"""The scripts we ship, run through the training node: the flights example and the scaffold of `dropforge init`."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pytest
import yaml
from sklearn import datasets

from dropforge import wire
from dropforge.domain.runs import ChampionRef, EvaluationPlan, RunSpec
from dropforge.spec.load import parse, to_rules
from dropforge.training.contract import NodeSpec
from tests.unit.training.bench import START, Run, run_node, spec, write_table

ROOT = Path(__file__).parents[2]
FLIGHTS = ROOT / "examples" / "flights"
SCAFFOLD = ROOT / "dropforge" / "scaffold"
ARROW = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "timestamp": pa.timestamp("us", "UTC")}


def prepare_copy(folder: Path, source: Path, run: RunSpec, champion: Run | None = None) -> Path:
    """A run folder with a copy of the source as its code, and perhaps an earlier run's model as the champion."""
    shutil.copytree(source, folder / "code", ignore=shutil.ignore_patterns("__pycache__", "__init__.py"))
    model = None if champion is None else champion.output / "model.onnx"
    if model is not None:
        sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
        run = replace(run, champion=ChampionRef(run.pipeline, 1, "models/1", sha256))
    node = NodeSpec(run, str(folder / "code"), model and str(model), str(folder / "output"), str(folder / "work"))
    (folder / "spec.json").write_bytes(wire.to_json(node))
    return folder / "spec.json"


# ------------------------------------------------------------------------------------------------ flights
@pytest.fixture(scope="module")
def feed() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FLIGHTS))
        import feed  # type: ignore[import-not-found, unused-ignore]

        yield feed
        for name in ("feed", "features"):
            sys.modules.pop(name, None)


def flights_run(table: Path, version: int) -> RunSpec:
    """The run that the pipeline's own file asks for."""
    asked = parse((FLIGHTS / "pipeline.yaml").read_text())
    judged = asked.evaluation
    return replace(
        spec(table),
        pipeline=asked.name,
        table_version=version,
        command=tuple(asked.training.command),
        label=asked.dataset.label,
        event_time=asked.dataset.event_time,
        features=asked.training.features,
        evaluation=EvaluationPlan(judged.metric, judged.block, 5, judged.slices),
        seed=asked.training.seed,
        parameters={**asked.training.parameters, "max_iter": 40},
        environment=dict(asked.training.environment),
    )


@pytest.fixture(scope="module")
def flights_table(feed: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten days, and four more in the second version."""
    folder = tmp_path_factory.mktemp("flights")
    rules = to_rules(parse((FLIGHTS / "pipeline.yaml").read_text()), ())
    types = {rule.name: ARROW[rule.type] for rule in rules.columns if rule.type}
    options = pacsv.ConvertOptions(column_types=types)
    for start, count in ((date(2013, 1, 1), 10), (date(2013, 1, 11), 4)):
        files = [feed.write_day(day, folder / "drops") for day in feed.days(start, count)]
        tables = []
        for path in files:
            read = pacsv.read_csv(path, convert_options=options)
            assert read.column_names == [rule.name for rule in rules.columns]
            arrived = pa.array([START] * len(read), pa.timestamp("us", "UTC"))
            tables.append(
                read.append_column("_source", pa.array([path.name] * len(read))).append_column("_arrived_at", arrived)
            )
        write_table(folder / "table", pa.concat_tables(tables))
    return folder / "table"


def test_flights_train_and_the_next_model_is_judged_against_the_first(
    feed: Any, flights_table: Path, tmp_path: Path
) -> None:
    first = run_node(prepare_copy(tmp_path / "first", FLIGHTS, flights_run(flights_table, 0)))
    second = run_node(prepare_copy(tmp_path / "second", FLIGHTS, flights_run(flights_table, 1), champion=first))

    assert (first.exit_code, second.exit_code) == (0, 0), first.printed + second.printed
    assert (first.evidence.against, second.evidence.against) == ("baseline", "champion")
    # Late evening in New York is the next day in UTC: fourteen files are fifteen blocks.
    assert [score.block for score in second.evidence.blocks if score.slice is None][-1] == "2013-01-15"
    assert {score.slice for score in second.evidence.blocks} == {None, "origin=EWR", "origin=JFK", "origin=LGA"}
    assert second.evidence.train_rows > first.evidence.train_rows
    assert second.evidence.unlabelled_rows == sum(
        int(feed.day_rows(day)["late"].isna().sum()) for day in feed.days(count=14)
    )
    assert second.metrics["parity_max_difference"] < 1e-3
    assert second.metrics["auc"] > 0.55

    session = onnxruntime.InferenceSession(str(second.output / "model.onnx"), providers=["CPUExecutionProvider"])
    asked = feed.requests_for(date(2013, 1, 20))[:50]
    texts = ("origin", "dest", "carrier")
    answers = session.run(
        ["probabilities"],
        {
            name: np.array([[row[name]] for row in asked], dtype=object if name in texts else np.float32)
            for name in asked[0]
        },
    )[0]
    assert answers.shape == (50, 2)
    assert np.isfinite(answers).all()


def test_equal_flights_make_equal_bytes(flights_table: Path, tmp_path: Path) -> None:
    run = flights_run(flights_table, 0)
    runs = [run_node(prepare_copy(tmp_path / name, FLIGHTS, run)) for name in ("one", "two")]

    assert runs[0].result.model_sha256 is not None
    assert runs[0].result.model_sha256 == runs[1].result.model_sha256


# ------------------------------------------------------------------------------------------------ scaffold
def dropped(folder: Path, columns: dict[str, Any]) -> Path:
    """The columns written as a CSV file and read back, as one arrival."""
    folder.mkdir()
    pacsv.write_csv(pa.table(columns), folder / "data.csv")
    read = pacsv.read_csv(folder / "data.csv", convert_options=pacsv.ConvertOptions(strings_can_be_null=True))
    arrived = pa.array([START] * len(read), pa.timestamp("us", "UTC"))
    source = pa.array(["a"] * len(read))
    return write_table(folder / "table", read.append_column("_source", source).append_column("_arrived_at", arrived))


def holes(values: Any, share: float = 0.1, seed: int = 0) -> pa.Array:
    """The values, some of them missing."""
    missing = np.random.default_rng(seed).random(len(values)) < share
    return pa.array(values, mask=missing)


def scaffold_run(table: Path) -> RunSpec:
    asked = parse((SCAFFOLD / "pipeline.yaml").read_text().replace("{name}", "iris"))
    judged = asked.evaluation
    return replace(
        spec(table),
        command=tuple(asked.training.command),
        label=asked.dataset.label,
        event_time=asked.dataset.event_time,
        features=asked.training.features,
        evaluation=EvaluationPlan(judged.metric, judged.block, judged.holdout_blocks, judged.slices),
        environment=dict(asked.training.environment),
    )


def trained(table: Path, tmp_path: Path) -> Run:
    run = run_node(prepare_copy(tmp_path / "run", SCAFFOLD, scaffold_run(table)))
    assert run.exit_code == 0, run.printed
    return run


def test_the_scaffold_learns_iris_by_name_from_odd_columns(tmp_path: Path) -> None:
    iris = datasets.load_iris()
    names = ["sepal length (cm), mean", "sepal width %", 'petal "length"', "petal/width "]
    columns: dict[str, Any] = {name: holes(iris.data[:, i], seed=i) for i, name in enumerate(names)}
    columns["species"] = [str(iris.target_names[kind]) for kind in iris.target]

    run = trained(dropped(tmp_path / "iris", columns), tmp_path)

    assert run.evidence.metric == "log_loss"
    assert run.metrics["error_rate"] < 0.2
    assert run.metrics["log_loss"] < run.metrics["baseline_log_loss"] / 2
    session = onnxruntime.InferenceSession(str(run.output / "model.onnx"), providers=["CPUExecutionProvider"])
    assert {one.name for one in session.get_inputs()} == set(names)


def test_the_scaffold_learns_numbers(tmp_path: Path) -> None:
    data = datasets.load_diabetes()
    columns: dict[str, Any] = {f"{name} x": data.data[:, i] for i, name in enumerate(data.feature_names)}
    columns["progress after a year"] = data.target

    run = trained(dropped(tmp_path / "diabetes", columns), tmp_path)

    assert run.evidence.metric == "mae"
    assert run.metrics["mae"] < 0.85 * run.metrics["baseline_mae"]


def test_the_scaffold_learns_from_texts_truth_values_and_gaps(tmp_path: Path) -> None:
    data = datasets.load_breast_cancer()
    size = np.where(data.data[:, 3] > np.median(data.data[:, 3]), "large", "small")
    columns: dict[str, Any] = {
        "id": [f"case {n}" for n in range(len(size))],
        "seen on": ["2024-01-01"] * len(size),
        "size": holes(size.astype(object)),
        "rough?": holes((data.data[:, 1] > 18).astype(bool), seed=1),
        "always": ["yes"] * len(size),
        "100 % smooth": holes(data.data[:, 4], seed=2),
        # What skl2onnx calls its own output.
        "probabilities": holes(data.data[:, 7], seed=3),
        "malign": data.target == 0,
    }

    run = trained(dropped(tmp_path / "cancer", columns), tmp_path)

    assert "'id' (string), 'seen on' (date32[day]), 'always' (string)" in run.printed
    assert run.metrics["auc"] > 0.9
    session = onnxruntime.InferenceSession(str(run.output / "model.onnx"), providers=["CPUExecutionProvider"])
    assert {one.name: one.type for one in session.get_inputs()} == {
        "size": "tensor(string)",
        "rough?": "tensor(float)",
        "100 % smooth": "tensor(float)",
        "probabilities": "tensor(float)",
    }


def test_the_scaffold_works_with_fifty_rows_and_a_rare_class(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=50)
    kind = np.where(x > 0, "high", "low").astype(object)
    kind[:2] = "odd"
    run = trained(
        dropped(tmp_path / "few", {"x": x, "colour": rng.choice(["red", "blue"], 50), "kind": kind}), tmp_path
    )

    assert run.metrics["log_loss"] < run.metrics["baseline_log_loss"]


def test_the_scaffold_is_a_valid_pipeline_of_that_name() -> None:
    text = (SCAFFOLD / "pipeline.yaml").read_text()
    asked = parse(text.replace("{name}", "my-shop"))

    assert (asked.name, asked.dataset.drop, asked.deployment.endpoint) == ("my-shop", "my-shop/", "my-shop")
    assert yaml.safe_load(text.replace("{name}", "my-shop"))["training"]["command"] == "python train.py"
    # `dropforge init` puts the name in wherever it reads {name}; a script must not have it by chance.
    assert "{name}" not in (SCAFFOLD / "train.py").read_text()


def test_the_rows_of_the_feed_keep_the_rules_of_the_pipeline(feed: Any, flights_table: Path) -> None:
    asked = parse((FLIGHTS / "pipeline.yaml").read_text())
    rows = pa.Table.from_pandas(feed.day_rows(date(2013, 7, 10)), preserve_index=False)
    for column in asked.dataset.columns:
        values = rows.column(column.name)
        assert column.nullable or values.null_count == 0
        for bound, holds in ((column.min, pc.greater_equal), (column.max, pc.less_equal)):
            assert bound is None or pc.all(holds(values, bound)).as_py()
        assert column.allowed is None or set(values.drop_null().to_pylist()) <= set(column.allowed)
        assert not column.unique or len(pc.unique(values)) == len(values)
    assert set(asked.training.features) == set(feed.FEATURES)
