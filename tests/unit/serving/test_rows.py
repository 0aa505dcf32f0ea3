"""Rows of a table, fed to a model by the names of its columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dropforge.domain.errors import BadInput
from dropforge.serving.models import Model, load
from dropforge.serving.rows import feeds_of_rows
from tests.unit.serving import onnx_models

ROW = {"origin": "EWR", "distance": 100.5, "seats": 3, "late": True}


@pytest.fixture(scope="module")
def by_column(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(onnx_models.deployment(tmp_path_factory.mktemp("m"), onnx_models.columns()))


def fed(model: Model, rows: list[Any]) -> dict[str, Any]:
    return {name: array.tolist() for name, array in feeds_of_rows(model.inputs, model.columns, rows).items()}


def test_columns_become_inputs_of_the_shape_each_wants(by_column: Model) -> None:
    assert fed(by_column, [ROW, ROW | {"origin": "JFK", "late": False}]) == {
        "origin": [["EWR"], ["JFK"]],
        "distance": [[100.5], [100.5]],
        "seats": [[3], [3]],
        "late": [True, False],
    }


def test_cells_are_read_as_the_training_node_reads_them(by_column: Model) -> None:
    cells = fed(by_column, [{"origin": None, "distance": True, "seats": 3.0, "late": False}, ROW | {"origin": 7}])
    assert (cells["origin"], cells["distance"], cells["seats"]) == ([[""], ["7"]], [[1.0], [100.5]], [[3], [3]])
    assert np.isnan(fed(by_column, [ROW | {"distance": None}])["distance"][0][0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distance": "far"}, r"row 1, column 'distance' wants FP32: a number.*; found \"far\""),
        ({"distance": [1]}, r"row 1, column 'distance' wants FP32: .*found \[1\]"),
        ({"distance": 1e39}, r"out of the range of FP32"),
        ({"seats": 1.5}, r"row 1, column 'seats' wants INT64: a whole number; found 1.5"),
        ({"seats": True}, r"row 1, column 'seats' wants INT64: a whole number; found true"),
        ({"seats": None}, r"row 1, column 'seats' wants INT64: a whole number; found null"),
        ({"seats": 2**70}, r"out of the range of INT64"),
        ({"late": 1}, r"row 1, column 'late' wants BOOL: true or false; found 1"),
        ({"origin": 1.5}, r"row 1, column 'origin' wants BYTES: a string.*; found 1.5"),
        ({"gate": 1}, r"row 1 wants the columns \['origin', .*unknown \['gate'\]"),
    ],
)
def test_a_wrong_cell_is_refused_with_its_row_and_column(
    by_column: Model, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        fed(by_column, [ROW, ROW | change])


def test_a_missing_column_is_named(by_column: Model) -> None:
    row = {name: cell for name, cell in ROW.items() if name != "seats"}
    with pytest.raises(BadInput, match=r"row 0 wants the columns .*: missing \['seats'\]"):
        fed(by_column, [row])


@pytest.mark.parametrize(("rows", "message"), [([], "empty"), ([ROW, [1]], "found a list"), ([[1, 2]], "is an object")])
def test_rows_of_the_wrong_form_are_refused(by_column: Model, rows: list[Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        fed(by_column, rows)


def test_a_matrix_takes_rows_as_lists(tmp_path: Path) -> None:
    model = load(onnx_models.deployment(tmp_path, onnx_models.scaled(2)))
    assert fed(model, [[1, 2, None], [4, 5, 6]])["x"][1] == [4, 5, 6]
    with pytest.raises(BadInput, match="row 1 wants a list of 3 values, found 2 values"):
        fed(model, [[1, 2, 3], [1, 2]])
    with pytest.raises(BadInput, match="row 1 wants a list of 3 values, found an object"):
        fed(model, [[1, 2, 3], {}])
    with pytest.raises(BadInput, match="does not tell the names of its columns"):
        fed(model, [{"a": 1}])


def test_a_matrix_that_tells_its_features_takes_rows_by_name_in_its_own_order(tmp_path: Path) -> None:
    model = load(onnx_models.deployment(tmp_path, onnx_models.scaled(2, features=["b", "a", "c"])))
    assert fed(model, [{"a": 1, "b": 2, "c": 3}]) == {"x": [[2, 1, 3]]}
    with pytest.raises(BadInput, match=r"wants the columns \['b', 'a', 'c'\]: missing \['c'\]"):
        fed(model, [{"a": 1, "b": 2}])


@pytest.mark.parametrize("features", [["a", "b"], ["a", "a", "b"], ["a", 1, "b"]])
def test_features_that_cannot_be_right_are_as_good_as_none(tmp_path: Path, features: list[Any]) -> None:
    assert load(onnx_models.deployment(tmp_path, onnx_models.scaled(2, features=features))).columns is None
