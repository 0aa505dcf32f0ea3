"""Golden requests: what the node leaves, the server asks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from onnx import helper

from dropforge.domain.endpoints import Deployment
from dropforge.domain.errors import BadInput
from dropforge.serving.golden import check_golden
from dropforge.serving.models import Model as Served
from dropforge.serving.models import load
from dropforge.training.golden import golden_requests
from dropforge.training.onnx_model import load_model
from tests.unit.training.bench import Onnx, constant, linear_model, model, threshold_model

TABLE = pa.table(
    {
        "x": pa.array([1.0, -1.0, None, *range(97)]),
        "n": pa.array([7, None, 3, *range(97)], pa.int64()),
        "shop": pa.array(["north", None, "south", *["east"] * 97]),
        "y": pa.array([0, 1] * 50),
    }
)
FEATURES = ["x", "n", "shop"]


def left(tmp_path: Path, made: Onnx, table: pa.Table = TABLE) -> bytes | None:
    path = made.save(tmp_path / "model.onnx")
    return golden_requests(load_model(path, table, "y", allowed=FEATURES, order=["x", "n"]), table)


def served(tmp_path: Path, made: Onnx) -> Served:
    path = made.save(tmp_path / "served.onnx")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return load(Deployment("demo", 1, path.as_uri(), sha256, 1))


def mixed() -> Onnx:
    """A text, a whole number and a number in; a number and a text out."""
    return model(
        [
            helper.make_node("Equal", ["shop", "wanted"], ["hit"]),
            helper.make_node("Cast", ["hit"], ["one"], to=1),
            helper.make_node("Cast", ["n"], ["number"], to=1),
            helper.make_node("Add", ["one", "number"], ["some"]),
            helper.make_node("Add", ["some", "x"], ["out"]),
        ],
        {"x": ("float", [None, 1]), "n": ("int64", [None, 1]), "shop": ("string", [None, 1])},
        {"out": [None, 1]},
        initializers=[constant("wanted", [["south"]])],
        opset=19,
    )


@pytest.mark.parametrize("made", [linear_model(2.0), threshold_model(0.2, 0.8), mixed()])
def test_the_server_gets_the_answers_that_the_node_got(tmp_path: Path, made: Onnx) -> None:
    content = left(tmp_path, made)
    assert content is not None
    assert len(json.loads(content)["requests"]) == 2
    assert check_golden(served(tmp_path, made), content).startswith("answered ")


def test_a_model_that_was_hurt_on_its_way_is_found_out(tmp_path: Path) -> None:
    content = left(tmp_path, linear_model(2.0))
    assert content is not None
    with pytest.raises(BadInput, match="answers golden request 0 otherwise"):
        check_golden(served(tmp_path, linear_model(2.1)), content)


def test_rows_come_from_all_over_the_table_and_only_those_that_can_be_asked(tmp_path: Path) -> None:
    content = left(tmp_path, mixed(), TABLE.slice(0, 8))
    assert content is not None
    (every, first) = json.loads(content)["requests"]
    values = {each["name"]: each["data"] for each in every["inputs"]}
    # The row whose whole number is empty is left out; an empty number is null, an empty text is empty.
    assert (values["n"], values["x"][:2]) == ([7, 3, 0, 1, 2, 3, 4], [1.0, None])
    assert values["shop"][:2] == ["north", "south"]
    assert [each["data"] for each in first["inputs"] if each["name"] == "n"] == [[7]]


@pytest.mark.parametrize(
    "column", [pa.array([None, None], pa.int64()), pa.array([], pa.int64())], ids=["nothing to ask", "no rows"]
)
def test_where_nothing_can_be_asked_nothing_is_left(tmp_path: Path, column: Any) -> None:
    rows = len(column)
    table = pa.table(
        {
            "x": pa.array([1.0] * rows, pa.float64()),
            "n": column,
            "shop": pa.array(["a"] * rows, pa.string()),
            "y": pa.array([0] * rows),
        }
    )
    assert left(tmp_path, mixed(), table) is None


def test_what_json_has_no_word_for_is_not_asked(tmp_path: Path) -> None:
    table = pa.table({"x": [np.inf, 1.0, -np.inf], "n": [1, 2, 3], "shop": ["a"] * 3, "y": [0] * 3})
    content = left(tmp_path, linear_model(2.0), table)
    assert content is not None
    assert json.loads(content)["requests"][0]["inputs"][0]["data"] == [1.0]
