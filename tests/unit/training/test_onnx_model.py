"""Feeding a model from columns, and refusing one that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from onnx import helper

from dropforge.training.labels import Classes
from dropforge.training.onnx_file import ModelUnusable
from dropforge.training.onnx_model import Model, load_model, numbers, probabilities
from tests.unit.training.bench import Onnx, constant, linear_model, model, threshold_model

TABLE = pa.table(
    {
        "x": pa.array([1.0, -1.0, None]),
        "n": pa.array([7, None, 3], pa.int64()),
        "flag": pa.array([True, False, None]),
        "shop": pa.array(["north", None, "south"]),
        "zip": pa.array([7010, 10115, None], pa.int64()),
        "at": pa.array([0, 1, 2], pa.timestamp("us", "UTC")),
        "odd name, 100 %": pa.array([1.0, 2.0, 3.0]),
        "y": pa.array([0, 1, 1]),
    }
)
TARGET = Classes((0, 1), np.array([0, 1]), np.array([0, 1, 1]))
FEATURES = [name for name in TABLE.column_names if name != "y"]


def loaded(tmp_path: Path, made: Onnx, table: pa.Table = TABLE, order: list[str] | None = None) -> Model:
    path = made.save(tmp_path / "model.onnx")
    return load_model(path, table, "y", allowed=FEATURES, order=order or FEATURES)


def as_number(node: str, name: str, kind: str, shape: list[Any]) -> Onnx:
    """The column as a float, so that a test sees what was fed."""
    rows = helper.make_node("Cast", [name], ["out"], to=1)
    if kind == "string":
        rows = helper.make_node("Cast", ["hit"], ["out"], to=1)
        return model(
            [helper.make_node("Equal", [name, "wanted"], ["hit"]), rows],
            {name: (kind, shape)},
            {"out": shape},
            initializers=[constant("wanted", [node])],
            opset=19,
        )
    return model([rows], {name: (kind, shape)}, {"out": shape})


@pytest.mark.parametrize("shape", [[None, 1], [None], ["N", 1]])
def test_numbers_are_fed_with_nan_where_empty(tmp_path: Path, shape: list[Any]) -> None:
    found = numbers(loaded(tmp_path, as_number("", "x", "float", shape)), TABLE)

    assert found[:2].tolist() == [1, -1]
    assert np.isnan(found[2])


def test_true_and_false_are_fed_to_a_float_input(tmp_path: Path) -> None:
    found = numbers(loaded(tmp_path, as_number("", "flag", "float", [None, 1])), TABLE)

    assert found[:2].tolist() == [1, 0]
    assert np.isnan(found[2])


@pytest.mark.parametrize(("name", "kind", "value"), [("n", "int64", [7.0, 3.0]), ("flag", "bool", [1.0, 0.0])])
def test_an_empty_whole_number_or_truth_value_is_a_row_without_an_answer(
    tmp_path: Path, name: str, kind: str, value: list[float]
) -> None:
    found = numbers(loaded(tmp_path, as_number("", name, kind, [None, 1])), TABLE)

    assert found[np.isfinite(found)].tolist() == value
    assert np.isnan(found).sum() == 1


@pytest.mark.parametrize(
    ("name", "text", "hits"), [("shop", "north", [1, 0, 0]), ("shop", "", [0, 1, 0]), ("zip", "7010", [1, 0, 0])]
)
def test_texts_are_fed_as_they_are_and_empty_ones_as_empty(
    tmp_path: Path, name: str, text: str, hits: list[int]
) -> None:
    assert numbers(loaded(tmp_path, as_number(text, name, "string", [None, 1])), TABLE).tolist() == hits


def test_a_column_name_may_be_anything(tmp_path: Path) -> None:
    assert numbers(loaded(tmp_path, linear_model(2.0, name="odd name, 100 %")), TABLE).tolist() == [2, 4, 6]


def matrix(width: int | str | None, metadata: dict[str, str] | None = None) -> Onnx:
    return model(
        [helper.make_node("MatMul", ["X", "w"], ["out"])],
        {"X": ("float", [None, width])},
        {"out": [None, 1]},
        initializers=[constant("w", [[1.0], [100.0]])],
        metadata=metadata or {},
    )


@pytest.mark.parametrize("width", [2, "F", None])
def test_one_matrix_is_fed_with_the_features_in_order(tmp_path: Path, width: int | str | None) -> None:
    table = TABLE.slice(0, 2)
    made = loaded(tmp_path, matrix(width), table, ["odd name, 100 %", "x"])

    assert numbers(made, table).tolist() == [101, -98]


def test_a_matrix_may_say_itself_which_columns_it_wants(tmp_path: Path) -> None:
    table = TABLE.slice(0, 2)
    made = loaded(tmp_path, matrix(2, {"features": '["x", "zip"]'}), table)

    assert numbers(made, table).tolist() == [701001, 1011499]


def test_a_matrix_of_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match="'X' wants 2 columns; there are 3 features"):
        loaded(tmp_path, matrix(2), order=["x", "n", "flag"])


def identity(**named: Any) -> Onnx:
    return model(
        [helper.make_node("Identity", ["x"], ["out"])], {"x": ("float", [None, 1])}, {"out": [None, 1]}, **named
    )


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (linear_model(1.0, name="z"), r"inputs \['z'\] match no column; it may be fed from \['x', 'n'"),
        (linear_model(1.0, name="y"), "wants the label 'y'"),
        (linear_model(1.0, name="shop"), "'shop' is tensor.float. and column 'shop' is string"),
        (as_number("a", "x", "string", [None, 1]), "'x' is tensor.string. and column 'x' is double"),
        (as_number("a", "at", "string", [None, 1]), "column 'at' is timestamp"),
        (as_number("", "x", "float", [5, 1]), "exactly 5 rows at a time"),
        (as_number("", "x", "float", [None, 2, 1]), "wanted .N, 1. or .N. for one column"),
        (identity(metadata={"classes": "no, yes"}), "'classes' is 'no, yes'; wanted a JSON list"),
    ],
)
def test_a_model_that_cannot_be_fed_is_refused_with_the_reason(tmp_path: Path, made: Onnx, words: str) -> None:
    with pytest.raises(ModelUnusable, match=words):
        loaded(tmp_path, made)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("not a model")

    with pytest.raises(ModelUnusable, match="onnxruntime cannot load it"):
        load_model(path, TABLE, "y", allowed=FEATURES, order=FEATURES)


def test_a_model_without_a_float_output_is_refused(tmp_path: Path) -> None:
    made = identity()
    made.proto.graph.node[0].op_type = "IsNaN"
    made.proto.graph.output[0].type.tensor_type.elem_type = 9

    with pytest.raises(ModelUnusable, match="no float output"):
        loaded(tmp_path, made)


def test_probabilities_and_classes_come_out(tmp_path: Path) -> None:
    found, columns = probabilities(loaded(tmp_path, threshold_model(0.25, 0.75)), TABLE.slice(0, 2), TARGET)

    assert found.tolist() == [[0.25, 0.75], [0.75, 0.25]]
    assert columns.tolist() == [0, 1]


def test_rows_without_a_finite_answer_are_nan(tmp_path: Path) -> None:
    found, _ = probabilities(loaded(tmp_path, threshold_model(0.25, 0.75)), TABLE, TARGET)

    assert np.flatnonzero(np.isnan(found).any(axis=1)).tolist() == [2]


@pytest.mark.parametrize("answer", [np.inf, -np.inf, np.nan])
def test_an_answer_that_is_not_finite_is_none(tmp_path: Path, answer: float) -> None:
    table = pa.table({"x": [0.2, answer]})
    found, _ = probabilities(loaded(tmp_path, identity(), table), table, TARGET)

    assert np.isnan(found).tolist() == [[False, False], [True, True]]


def test_one_number_a_row_is_the_chance_of_the_second_class(tmp_path: Path) -> None:
    table = pa.table({"x": [0.2, 0.9]})
    found, _ = probabilities(loaded(tmp_path, identity(), table), table, TARGET)

    assert found == pytest.approx(np.array([[0.8, 0.2], [0.1, 0.9]]))


def test_raw_scores_are_no_probabilities(tmp_path: Path) -> None:
    table = pa.table({"x": [0.5, 3.0]})

    with pytest.raises(ModelUnusable, match="holds no probabilities in 1 of 2 rows"):
        probabilities(loaded(tmp_path, identity(), table), table, TARGET)


def test_a_model_that_mixes_the_rows_of_a_batch_is_refused(tmp_path: Path) -> None:
    made = model(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["out"]),
        ],
        {"x": ("float", [None, 1])},
        {"out": [None, 1]},
    )

    with pytest.raises(ModelUnusable, match="a row's answer must not depend on the other rows"):
        numbers(loaded(tmp_path, made), TABLE.slice(0, 2))


def test_a_model_with_one_answer_for_all_rows_is_refused(tmp_path: Path) -> None:
    made = model(
        [helper.make_node("ReduceMean", ["x"], ["out"], axes=[0], keepdims=1)],
        {"x": ("float", [None, 1])},
        {"out": [None, 1]},
    )

    with pytest.raises(ModelUnusable, match=r"shape \(1, 1\) for 3 rows"):
        numbers(loaded(tmp_path, made), TABLE)


def test_many_rows_are_answered_in_their_order(tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(40_000, dtype=np.float64)})

    assert numbers(loaded(tmp_path, linear_model(2.0), table), table).tolist() == (np.arange(40_000) * 2.0).tolist()
