"""Train on any table of numbers, texts and true/false: `train.parquet` in, `model.onnx` out.

A starting point to change. It compares a linear model with gradient boosting by cross-validation, keeps the better one,
and writes it with its preprocessing inside the ONNX graph: one input per column, so that a client sends plain values.

What it finds in its environment:
    DROPFORGE_TRAIN_DATA   the rows to learn from (Parquet); the held-out rows are not among them
    DROPFORGE_OUTPUT       the folder to write model.onnx to, and metrics.json ({name: number}) if you like
    DROPFORGE_LABEL, DROPFORGE_FEATURES (one line of CSV), DROPFORGE_EVENT_TIME, DROPFORGE_METRIC, DROPFORGE_SEED
    DROPFORGE_PARAMETERS   a JSON file with `training.parameters` of pipeline.yaml; each also as DROPFORGE_PARAM_<NAME>
"""

# ruff: noqa: T201 - what a training script prints is the log of its run

from __future__ import annotations

import csv
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

CLASS_METRICS = ("log_loss", "brier", "error_rate", "auc")
# A text value that is rarer than this says nothing about the rows to come; a column keeps at most so many values.
FEWEST_ROWS = 3
MOST_VALUES = 50
FOLDS = 4
# Enough to see which of the models fits; the winner learns from all rows.
MOST_ROWS_TO_COMPARE = 20_000
PARITY_ROWS = 2_000
MOST_DIFFERENCE = 1e-3


@dataclass(frozen=True)
class Task:
    """What is learned. Each feature is either a number (true/false included) or a text.

    Columns are called f0, f1, ... on the way, for skl2onnx does not keep a name like "price, in %"; `names` says what
    they are called outside.
    """

    rows: pd.DataFrame
    names: dict[str, str]
    label: np.ndarray[Any, Any]
    numbers: list[str]
    texts: dict[str, list[str]]
    classes: list[Any] | None
    seed: int


def read() -> Task:
    """Features as the model will be asked with them: an empty number is NaN, an empty text is "".

    Numbers are single precision, as in ONNX: trained on doubles, a tree could split between two values that are the
    same number to the server.
    """
    table = pq.read_table(os.environ["DROPFORGE_TRAIN_DATA"])
    label = os.environ["DROPFORGE_LABEL"]
    names = next(csv.reader([os.environ["DROPFORGE_FEATURES"]]))
    columns: dict[str, Any] = {}
    numbers, texts, left_out = [], {}, []
    for index, real_name in enumerate(names):
        name, column = f"f{index}", table.column(real_name)
        kind = column.type
        if pa.types.is_string(kind):
            values = column.fill_null("").to_pandas().astype(object)
            counts = values.value_counts()
            common = sorted(counts[counts >= FEWEST_ROWS].index[:MOST_VALUES])
            if len(common) > 1:
                texts[name], columns[name] = common, values
                continue
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            values = column.cast(pa.float64(), safe=False).to_numpy().astype(np.float32)
            if len(np.unique(values[~np.isnan(values)])) > 1:
                numbers.append(name)
                columns[name] = values
                continue
        left_out.append(f"{real_name!r} ({kind})")
    if left_out:
        print(f"not used, for they hold dates, one value only, or a text of its own in each row: {', '.join(left_out)}")
    if not columns:
        raise SystemExit(f"none of the columns {names} can be learned from")
    target = table.column(label).to_pandas().to_numpy()
    classes = None
    if os.environ["DROPFORGE_METRIC"] in CLASS_METRICS:
        target = target.astype(int) if target.dtype.kind in "bf" else target
        classes = sorted(set(target.tolist()))
    called = {f"f{index}": name for index, name in enumerate(names)}
    return Task(pd.DataFrame(columns), called, target, numbers, texts, classes, int(os.environ["DROPFORGE_SEED"]))


def linear(task: Task) -> Pipeline:
    numbers = Pipeline([("fill", SimpleImputer(strategy="median")), ("scale", StandardScaler())])
    texts = OneHotEncoder(categories=[*task.texts.values()], handle_unknown="ignore", dtype=np.float32)
    model = Ridge() if task.classes is None else LogisticRegression(max_iter=2_000)
    return _pipeline(task, numbers, texts, model)


def boosting(task: Task) -> Pipeline:
    texts = OrdinalEncoder(
        categories=[*task.texts.values()], handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.float32
    )
    # A leaf of a fiftieth of the rows: twenty, the default, is too coarse for a hundred rows.
    fine = {"min_samples_leaf": int(np.clip(len(task.rows) // 50, 3, 100)), "learning_rate": 0.06, "max_iter": 150}
    common = {**fine, "max_leaf_nodes": 15, "early_stopping": False, "random_state": task.seed}
    if task.classes is not None:
        # Every class has trees of its own; as many classes must not take as many times as long.
        common["max_iter"] = max(30, 300 // len(task.classes))
        return _pipeline(task, "passthrough", texts, HistGradientBoostingClassifier(**common))
    loss = "absolute_error" if os.environ["DROPFORGE_METRIC"] == "mae" else "squared_error"
    return _pipeline(task, "passthrough", texts, HistGradientBoostingRegressor(loss=loss, **common))


def _pipeline(task: Task, numbers: Any, texts: Any, model: Any) -> Pipeline:
    parts = [("numbers", numbers, task.numbers)] if task.numbers else []
    parts += [("texts", texts, [*task.texts])] if task.texts else []
    return Pipeline([("prepare", ColumnTransformer(parts)), ("model", model)])


def choose(task: Task) -> tuple[str, Pipeline]:
    """The better of the two by cross-validation, not fitted yet."""
    candidates = {"linear": linear(task), "boosting": boosting(task)}
    chosen = np.random.default_rng(task.seed).permutation(len(task.rows))[:MOST_ROWS_TO_COMPARE]
    rows, label = task.rows.iloc[chosen], task.label[chosen]
    folds: Any = KFold(FOLDS, shuffle=True, random_state=task.seed)
    scoring = "neg_mean_absolute_error" if os.environ["DROPFORGE_METRIC"] == "mae" else "neg_mean_squared_error"
    if task.classes is not None:
        if np.unique(label, return_counts=True)[1].min() < FOLDS or len(set(label)) < len(task.classes):
            print("the rarest class is too rare to compare models on: linear")
            return "linear", candidates["linear"]
        folds, scoring = StratifiedKFold(FOLDS, shuffle=True, random_state=task.seed), "neg_log_loss"
    if len(rows) < 2 * FOLDS:
        return "linear", candidates["linear"]
    scores = {
        name: float(cross_val_score(model, rows, label, cv=folds, scoring=scoring).mean())
        for name, model in candidates.items()
    }
    best = max(scores, key=lambda name: scores[name])
    print(f"{scoring} by {FOLDS}-fold cross-validation: {', '.join(f'{n} {s:.4f}' for n, s in scores.items())}")
    return best, candidates[best]


def to_onnx(model: Pipeline, task: Task) -> bytes:
    """The whole pipeline, one input per column; equal models give equal bytes."""
    inputs = [
        (name, (StringTensorType if name in task.texts else FloatTensorType)([None, 1])) for name in task.rows.columns
    ]
    options = {"zipmap": False} if task.classes is not None else None
    graph = convert_sklearn(model, name="model", initial_types=inputs, options=options)
    if task.classes is not None:
        graph.metadata_props.add(key="classes", value=json.dumps(task.classes))
    rename_inputs(graph, {name: task.names[name] for name in task.rows.columns})
    return bytes(graph.SerializeToString(deterministic=True))


def rename_inputs(model: Any, names: dict[str, str]) -> None:
    """Give the inputs their columns' names; anything inside the graph that is called so already gets another."""
    graph = model.graph
    inside = {name for node in graph.node for name in node.output} | {each.name for each in graph.initializer}
    called = names | {taken: f"{taken} (inside)" for taken in inside & set(names.values())}
    for each in (*graph.input, *graph.output, *graph.initializer):
        each.name = called.get(each.name, each.name)
    for node in graph.node:
        node.input[:] = [called.get(name, name) for name in node.input]
        node.output[:] = [called.get(name, name) for name in node.output]


def largest_difference(model: Pipeline, onnx: bytes, task: Task) -> float:
    """How far the ONNX answers are from scikit-learn's, at most; for numbers in units of the label's spread."""
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    sample = task.rows.sample(min(PARITY_ROWS, len(task.rows)), random_state=task.seed)
    feed = {
        task.names[name]: sample[[name]].to_numpy(object if name in task.texts else np.float32)
        for name in sample.columns
    }
    if task.classes is not None:
        found = session.run(None, feed)[1]
        return float(np.abs(found - model.predict_proba(sample)).max())
    (found,) = session.run(None, feed)
    spread = float(np.std(task.label)) or 1.0
    return float(np.abs(found.ravel() - model.predict(sample)).max()) / spread


def main() -> None:
    # A linear model that could still improve a little is good enough to be compared.
    warnings.simplefilter("ignore", ConvergenceWarning)
    task = read()
    what = "numbers" if task.classes is None else f"{len(task.classes)} classes"
    print(f"{len(task.rows):,} rows, {len(task.numbers)} numbers and {len(task.texts)} texts each, to tell {what}")
    winner, model = choose(task)
    model.fit(task.rows, task.label)
    onnx = to_onnx(model, task)
    difference = largest_difference(model, onnx, task)
    print(f"{winner} it is; ONNX and scikit-learn differ by at most {difference:.1e}")
    if difference > MOST_DIFFERENCE:
        raise SystemExit(f"the ONNX model answers differently: {difference:.4f}; at most {MOST_DIFFERENCE} is allowed")
    output = Path(os.environ["DROPFORGE_OUTPUT"])
    (output / "model.onnx").write_bytes(onnx)
    (output / "metrics.json").write_text(json.dumps({"parity_max_difference": difference}))


if __name__ == "__main__":
    main()
