"""One inference request in, one answer out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from dropforge.domain.errors import BadInput
from dropforge.serving.models import Model, ModelFailed, load
from dropforge.serving.protocol import answer, read_request
from tests.unit.serving import onnx_models

ROW = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}


def answered(model: Model, request: object) -> dict[str, Any]:
    body, _ = answer(model, "flights", read_request(msgspec.json.encode(request)))
    found: dict[str, Any] = json.loads(body)
    return found


def asked(model: Model, feeds: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """The outputs for the feeds, by way of JSON."""
    inputs = [tensor.to_json(feeds[tensor.name]) for tensor in model.inputs]
    outputs = answered(model, {"inputs": inputs})["outputs"]
    return [
        np.array(each["data"], tensor.kind.dtype).reshape(each["shape"])
        for each, tensor in zip(outputs, model.outputs, strict=True)
    ]


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(onnx_models.deployment(tmp_path_factory.mktemp("m"), onnx_models.scaled(2), version=5))


@pytest.fixture(scope="module")
def by_column(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(onnx_models.deployment(tmp_path_factory.mktemp("m"), onnx_models.columns()))


def test_an_answer_names_its_version_and_echoes_the_id(doubled: Model) -> None:
    assert answered(doubled, {"id": "42", "inputs": [ROW], "parameters": {"a": 1}}) == {
        "model_name": "flights",
        "model_version": "5",
        "id": "42",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [2, 4, 6]}],
    }
    assert "id" not in answered(doubled, {"inputs": [ROW]})


def test_inputs_come_in_any_order_and_outputs_as_asked(by_column: Model) -> None:
    inputs = [
        {"name": "late", "shape": [1], "datatype": "BOOL", "data": [True]},
        {"name": "seats", "shape": [1, 1], "datatype": "INT64", "data": [[9]]},
        {"name": "origin", "shape": [1, 1], "datatype": "BYTES", "data": ["EWR"], "parameters": {}},
        {"name": "distance", "shape": [1, 1], "datatype": "FP32", "data": [1.5]},
    ]
    outputs = [{"name": "seats_out", "parameters": {}}, {"name": "origin_out"}]
    found = answered(by_column, {"inputs": inputs, "outputs": outputs})["outputs"]
    assert [(each["name"], each["data"]) for each in found] == [("seats_out", [9]), ("origin_out", ["EWR"])]


def test_rows_get_the_same_answer_as_the_tensors_they_become(doubled: Model) -> None:
    assert answered(doubled, {"rows": [[1, 2, 3]]}) == answered(doubled, {"inputs": [ROW]})


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ([], "the body is not an inference request .*got `array`"),
        ({}, "holds either `inputs` or `rows`, found neither"),
        ({"inputs": [ROW], "rows": [[1, 2, 3]]}, "found both"),
        ({"inputs": []}, r"the model wants the inputs \['x FP32\[-1, 3\]'\], each once; missing \['x'\]"),
        ({"inputs": [ROW, ROW]}, r"more than once \['x'\]"),
        ({"inputs": [ROW | {"name": "z"}]}, r"missing \['x'\], unknown \['z'\]"),
        ({"inputs": [ROW | {"datatype": "FP64"}]}, "input 'x' wants FP32, found 'FP64'"),
        ({"inputs": [ROW | {"shape": [3]}]}, r"wants shape \[-1, 3\] .*found \[3\]"),
        ({"inputs": [ROW | {"shape": [1, "3"]}]}, r"Expected `int`, got `str` - at `\$.inputs\[0\].shape\[1\]`"),
        ({"inputs": [ROW | {"data": [1, 2]}]}, "wants 3 values in `data`, found 2"),
        ({"inputs": [{"name": "x"}]}, r"missing required field `shape` - at `\$.inputs\[0\]`"),
        ({"inputs": [ROW], "outputs": [{"name": "z"}]}, r"unknown output 'z'; choose from \['y'\]"),
        ({"inputs": [ROW], "id": 42}, r"Expected `str \| null`, got `int` - at `\$.id`"),
        ({"inputs": [ROW], "parameters": []}, r"at `\$.parameters`"),
    ],
)
def test_a_wrong_request_is_refused_with_what_was_wanted_and_found(
    doubled: Model, request_: object, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        answered(doubled, request_)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"inputs": [}',
        b"\xff",
        b'{"rows": [["\xff"]]}',
        b'{"rows": ' + b"[" * 100_000,
        b'{"rows":[["\\ud800"]]}',
    ],
)
def test_a_body_that_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(BadInput, match="the body is not an inference request"):
        read_request(body)


def test_an_input_of_any_rank_does_not_take_endless_ones(tmp_path: Path) -> None:
    model = load(onnx_models.deployment(tmp_path, onnx_models.echo("FP32", None)))
    deep = {"name": "x", "shape": [1] * 5000, "datatype": "FP32", "data": [1]}
    with pytest.raises(BadInput, match="wants shape"):
        answered(model, {"inputs": [deep]})
    assert answered(model, {"inputs": [deep | {"shape": [1, 1, 1]}]})["outputs"][0]["shape"] == [1, 1, 1]


def test_a_model_that_fails_on_what_fits_it_is_not_the_callers_fault(tmp_path: Path) -> None:
    model = load(onnx_models.deployment(tmp_path, onnx_models.picky(2)))
    ask = {"name": "x", "shape": [1], "datatype": "INT64", "data": [2]}
    with pytest.raises(ModelFailed, match="flights v1 failed"):
        answered(model, {"inputs": [ask]})
