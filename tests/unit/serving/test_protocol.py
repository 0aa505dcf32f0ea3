"""One inference request in, one answer out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from dropforge.domain.errors import BadInput
from dropforge.serving.answers import Writer
from dropforge.serving.batching import Job, run
from dropforge.serving.models import Model, ModelFailed, load
from dropforge.serving.protocol import Ask, read_request
from dropforge.serving.results import Rows
from dropforge.serving.statistics import Spent
from dropforge.serving.tensors import Array, Feeds, data_json, read_binary, write_binary
from tests.unit.serving import onnx_models
from tests.unit.serving.test_batching import NOBODY

ROW = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}


def ran(model: Model, body: bytes, header_bytes: int | None = None) -> tuple[Ask, Rows]:
    """The request in a body, and what the model says to it. Raises what the caller is told."""
    ask = model.codec.read(body, header_bytes)
    (answer,) = run([Job(model, ask, 0.0, NOBODY)], Spent(0.0))
    if isinstance(answer, Exception):
        raise answer
    return ask, answer


def writer(model: Model) -> Writer:
    return Writer("flights", str(model.deployment.version))


def answered(model: Model, request: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(writer(model).json(*ran(model, msgspec.json.encode(request))))
    return found


def asked(model: Model, feeds: Feeds) -> list[Array]:
    """The outputs for the feeds, by way of JSON."""
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.kind.datatype,
            "shape": list(feeds[tensor.name].shape),
            "data": msgspec.Raw(data_json(feeds[tensor.name])),
        }
        for tensor in model.inputs
    ]
    outputs = answered(model, {"inputs": inputs})["outputs"]
    return [
        np.array(each["data"], tensor.kind.dtype).reshape(each["shape"])
        for each, tensor in zip(outputs, model.outputs, strict=True)
    ]


def asked_in_bytes(model: Model, feeds: Feeds) -> list[Array]:
    """The outputs for the feeds, by way of the binary extension in both directions."""
    data = [write_binary(feeds[tensor.name]) for tensor in model.inputs]
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.kind.datatype,
            "shape": list(feeds[tensor.name].shape),
            "parameters": {"binary_data_size": len(content)},
        }
        for tensor, content in zip(model.inputs, data, strict=True)
    ]
    header = msgspec.json.encode({"inputs": inputs, "parameters": {"binary_data_output": True}})
    ask, arrays = ran(model, header + b"".join(data), len(header))
    body, ends = writer(model).binary(ask, arrays)
    at, found = ends, []
    for each, tensor in zip(json.loads(body[:ends])["outputs"], model.outputs, strict=True):
        content = body[at : at + each["parameters"]["binary_data_size"]]
        at += len(content)
        found.append(read_binary(tensor, each["shape"], memoryview(content)))
    assert at == len(body)
    return found


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


NUMBERS = b'{"inputs":[{"name":"x","shape":%b,"datatype":"FP32","data":%b}]%b}'


@pytest.mark.parametrize(
    ("shape", "data", "more", "message"),
    [
        (b"[1,3]", b"[1,2,1e300]", b"", "out of the range of FP32"),
        (b"[1,3]", b"[1,2,1e999]", b"", "Number out of range"),
        (b"[1,3]", b"[1,2,1" + b"0" * 5000 + b"]", b"", "."),
        (b"[1,3]", b"[1,2,NaN]", b"", "the body is not an inference request"),
        (b"[1,3]", b"[1,2,Infinity]", b"", "the body is not an inference request"),
        (b"[1,3]", b"[1,2,true]", b"", "got `bool`"),
        (b"[1,3]", b"[1,2,0x3]", b"", "the body is not an inference request"),
        (b"[1,3]", b"[1,2,+3]", b"", "the body is not an inference request"),
        (b"[1,3]", b"[1,2,03]", b"", "the body is not an inference request"),
        (b"[1,3]", b"[1,2,3,]", b"", "the body is not an inference request"),
        (b"[0,3]", b"[]", b"", "wants shape"),
        (b"[-1,3]", b"[1,2,3]", b"", "wants shape"),
        (b"[]", b"[1,2,3]", b"", "wants shape"),
        (b"[1,3,1]", b"[1,2,3]", b"", "wants shape"),
        (b"[4611686018427387904,3]", b"[1,2,3]", b"", "wants 13835058055282163712 values in `data`, found 3"),
        (b"[100000000000000000000,3]", b"[1,2,3]", b"", "wants 300000000000000000000 values"),
        (b"[1.0,3]", b"[1,2,3]", b"", "Expected `int`, got `float`"),
        (b"[true,3]", b"[1,2,3]", b"", "Expected `int`, got `bool`"),
        (b"null", b"[1,2,3]", b"", "got `null`"),
        (b"[1,3]", b"null", b"", "got `null`"),
        (b"[1,3]", b"{}", b"", "got `object`"),
        (b"[1,3]", b"[1,2,3]", b',"id":"\\ud800"', "the body is not an inference request"),
        (b"[1,3]", b"[1,2,3]", b',"id":"\xff"', "the body is not an inference request"),
        (b"[1,3]", b"[1,2,3]", b',"parameters":{"timeout":-1}', "must be a whole number of microseconds"),
        (b"[1,3]", b"[1,2,3]", b',"parameters":{"timeout":1.5}', "must be a whole number of microseconds"),
        (b"[1,3]", b"[1,2,3]", b',"parameters":{"timeout":"1"}', "must be a whole number of microseconds"),
        (b"[1,3]", b"[1,2,3]", b',"parameters":{"a":' + b"[" * 2000, "the body is not an inference request"),
    ],
)
def test_numbers_shapes_and_texts_that_no_json_or_tensor_has_are_refused(
    doubled: Model, shape: bytes, data: bytes, more: bytes, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        doubled.codec.read(NUMBERS % (shape, data, more))


@pytest.mark.parametrize("datatype", ["fp32", "FP32 ", "float", "FP64", "INT32", ""])
def test_a_datatype_is_written_as_the_protocol_writes_it(doubled: Model, datatype: str) -> None:
    with pytest.raises(BadInput, match="wants FP32, found"):
        answered(doubled, {"inputs": [ROW | {"datatype": datatype}]})


def test_json_after_a_byte_order_mark_is_none(doubled: Model) -> None:
    with pytest.raises(BadInput, match="the body is not an inference request"):
        doubled.codec.read(b"\xef\xbb\xbf" + msgspec.json.encode({"inputs": [ROW]}))


def test_of_a_key_that_is_there_twice_the_last_counts(doubled: Model) -> None:
    body = NUMBERS % (b"[1,3]", b'[1,2],"data":[1,2,3]', b"")
    assert doubled.codec.read(body).feeds["x"].tolist() == [[1, 2, 3]]


def test_a_null_among_numbers_is_a_nan_and_the_largest_number_is_one(doubled: Model) -> None:
    found = doubled.codec.read(NUMBERS % (b"[1,3]", b"[null,3.4028234663852886e38,1e-50]", b"")).feeds["x"]
    assert np.isnan(found[0, 0]) and found[0, 1:].tolist() == [np.finfo(np.float32).max, 0]


def test_a_timeout_is_in_microseconds_and_none_is_none(doubled: Model) -> None:
    def timeout(text: bytes) -> float | None:
        return doubled.codec.read(NUMBERS % (b"[1,3]", b"[1,2,3]", text)).timeout_seconds

    assert timeout(b',"parameters":{"timeout":1500}') == 0.0015
    assert timeout(b',"parameters":{"timeout":0}') is None
    assert timeout(b',"parameters":{}') is None
    for wrong in (b"-1", b"true", b"1.5", b"9223372036854775808", b"1" + b"0" * 400):
        with pytest.raises(BadInput, match="must be a whole number of microseconds"):
            timeout(b',"parameters":{"timeout":%b}' % wrong)


def test_a_bool_is_a_byte_that_is_0_or_1(tmp_path: Path) -> None:
    model = load(onnx_models.deployment(tmp_path, onnx_models.echo("BOOL")))
    header = {"name": "x", "shape": [1, 2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}
    body = msgspec.json.encode({"inputs": [header]})
    for _ in range(2):
        assert model.codec.read(body + b"\1\0", len(body)).feeds["x"].tolist() == [[True, False]]
        with pytest.raises(BadInput, match=r"of BOOL\[1, 2\] wants bytes that are 0 or 1"):
            model.codec.read(body + b"\1\2", len(body))


@pytest.mark.parametrize("blanks", [0, 300_000])
def test_a_body_that_is_no_unicode_or_too_deep_is_refused(tmp_path: Path, blanks: int) -> None:
    model = load(onnx_models.deployment(tmp_path, onnx_models.columns()))
    tensor = b'{"inputs":[{"name":"origin","shape":[1,1],"datatype":"BYTES","data":["\xff"]}'
    others = [
        b'{"name":"distance","shape":[1,1],"datatype":"FP32","data":[1]}',
        b'{"name":"seats","shape":[1,1],"datatype":"INT64","data":[1]}',
        b'{"name":"late","shape":[1],"datatype":"BOOL","data":[true]}',
    ]
    for body in (
        b",".join((tensor, *others)) + b"]}",
        b'{"rows":[{"origin":"\xff"}]}',
        b'{"rows":[{"origin":"E"}],"id":"\xff"}',
        b'{"rows":[' + b"[" * 150_000 + b"]" * 150_000 + b"]}",
    ):
        with pytest.raises(BadInput):
            model.codec.read(body + b" " * blanks)


def binary(size: object = 12, shape: object = (1, 3), data: bytes = b"\0" * 12, **more: Any) -> tuple[bytes, int]:
    tensor = {"name": "x", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": size}, **more}
    header = msgspec.json.encode({"inputs": [tensor]})
    return header + data, len(header)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (binary(11), "has 12 bytes; `binary_data_size` is 11"),
        (binary(-1), "must be a whole number of bytes"),
        (binary(True), "must be a whole number of bytes"),
        (binary("12"), "must be a whole number of bytes"),
        (binary(12, data=b"\0" * 11), "12 bytes follow the JSON of .*; found 11"),
        (binary(12, data=b"\0" * 13), "12 bytes follow the JSON of .*; found 13"),
        (binary(12 * 2**62, [2**62, 3]), "12 bytes follow|bytes follow the JSON"),
        (binary(0, [0, 3], b""), "wants shape"),
        ((b"{}", 3), "must be from 1 to that"),
        ((b"{}", 0), "must be from 1 to that"),
        ((b"{}", 2), "found neither"),
        (
            (msgspec.json.encode({"inputs": [ROW]}) + b"more", len(msgspec.json.encode({"inputs": [ROW]}))),
            "0 bytes follow",
        ),
    ],
)
def test_bytes_that_are_not_those_that_were_promised_are_refused(
    doubled: Model, asked: tuple[bytes, int], message: str
) -> None:
    for _ in range(2):
        with pytest.raises(BadInput, match=message):
            doubled.codec.read(*asked)


def test_the_same_header_is_read_anew_when_other_bytes_follow(doubled: Model) -> None:
    for values in ([1, 2, 3], [4, 5, 6]):
        ask = doubled.codec.read(*binary(data=np.array(values, np.float32).tobytes()))
        assert ask.feeds["x"].tolist() == [values]
    with pytest.raises(BadInput, match="found 8"):
        doubled.codec.read(*binary(data=b"\0" * 8))


def test_any_name_of_an_output_is_told(tmp_path: Path) -> None:
    name = '50% "of" %d é'
    kind: tuple[int, onnx_models.Shape] = (TensorProto.FLOAT, ["N", 3])
    identity = [helper.make_node("Identity", ["x"], [name])]
    model = load(onnx_models.deployment(tmp_path, onnx_models.model(identity, {"x": kind}, {name: kind})))
    for _ in range(2):
        (output,) = answered(model, {"inputs": [ROW]})["outputs"]
        assert (output["name"], output["data"]) == (name, [1, 2, 3])


@given(data=st.data(), rows=st.integers(1, 4))
def test_json_and_bytes_say_the_same(by_column: Model, data: st.DataObject, rows: int) -> None:
    def column(values: st.SearchStrategy[Any], dtype: Any, *shape: int) -> Array:
        found = data.draw(st.lists(values, min_size=rows, max_size=rows))
        return np.array(found, dtype).reshape(rows, *shape)

    feeds = {
        "origin": column(st.text(), object, 1),
        "distance": column(st.floats(width=32, allow_infinity=False), np.float32, 1),
        "seats": column(st.integers(-(2**63), 2**63 - 1), np.int64, 1),
        "late": column(st.booleans(), np.bool_),
    }
    for one, other in zip(asked(by_column, feeds), asked_in_bytes(by_column, feeds), strict=True):
        np.testing.assert_array_equal(one, other)
