"""ModelInfer's messages read and written: raw and typed, every datatype, remembered or not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dropforge.domain.errors import BadInput
from dropforge.serving.batching import Job, run
from dropforge.serving.grpc.infer import FIELDS, Answers, Plans, read
from dropforge.serving.grpc.messages import prefixed
from dropforge.serving.grpc.schema import read_schema
from dropforge.serving.models import Model, load
from dropforge.serving.protocol import Ask
from dropforge.serving.results import Rows
from dropforge.serving.statistics import Spent
from dropforge.serving.tensors import Array, Feeds, write_binary
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import deployment
from tests.unit.serving.test_batching import NOBODY
from tests.unit.serving.test_published_cases import _compare, _published_cases, _tensors

INFER = next(method for method in read_schema().methods if method.name == "ModelInfer")


def asked(feeds: Feeds, *, typed: bool = False, **more: Any) -> Any:
    """The message that asks about the feeds, as bytes or as values."""
    request = INFER.request(model_name="m", **more)
    for name, array in feeds.items():
        datatype = next(k for k, v in NUMPY.items() if v == array.dtype)
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if typed:
            values = array.ravel().tolist()
            values = [each.encode() for each in values] if datatype == "BYTES" else values
            getattr(tensor.contents, FIELDS[datatype]).extend(values)
        else:
            request.raw_input_contents.append(write_binary(array))
    return request


NUMPY = {
    "BOOL": np.dtype(np.bool_),
    "BYTES": np.dtype(object),
    **{f"FP{size}": np.dtype(f"float{size}") for size in (16, 32, 64)},
    **{f"{kind.upper()}{size}": np.dtype(f"{kind}{size}") for kind in ("int", "uint") for size in (8, 16, 32, 64)},
}
VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "BYTES": ["EWR", "zürich \0"],
    "FP16": [1.5, float("nan")],
    "FP32": [1.5, float("inf")],
    "FP64": [1e300, -0.0],
}


def sample(datatype: str) -> Array:
    kind = NUMPY[datatype]
    if datatype in VALUES:
        return np.array([VALUES[datatype]], kind)
    return np.array([[np.iinfo(kind).min, np.iinfo(kind).max]], kind)


def answered(model: Model, ask: Ask) -> tuple[Any, list[Array]]:
    """The answer's message, and its arrays."""
    (answer,) = run([Job(model, ask, 0.0, NOBODY)], Spent(0.0))
    if isinstance(answer, Exception):
        raise answer
    data = Answers("m", "5", INFER.response).write(ask, answer)
    assert data[:5] == b"\0" + (len(data) - 5).to_bytes(4, "big")
    return INFER.response.FromString(data[5:]), answer.arrays


def values(response: Any) -> list[Array]:
    """The arrays that a message holds, in either form."""
    found = []
    for place, output in enumerate(response.outputs):
        kind = NUMPY[output.datatype]
        if response.raw_output_contents:
            assert not output.HasField("contents")
            raw = response.raw_output_contents[place]
            flat = _strings(raw) if output.datatype == "BYTES" else np.frombuffer(raw, kind)
        else:
            given = list(getattr(output.contents, FIELDS[output.datatype]))
            flat = np.array([each.decode() for each in given] if output.datatype == "BYTES" else given, kind)
        found.append(flat.reshape(output.shape))
    return found


def _strings(raw: bytes) -> Array:
    texts, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        texts.append(raw[at + 4 : end].decode())
        at = end
    return np.array(texts, object)


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(deployment(tmp_path_factory.mktemp("m"), onnx_models.scaled(2), version=5))


@pytest.fixture(scope="module")
def by_column(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(deployment(tmp_path_factory.mktemp("m"), onnx_models.columns()))


ROW = {"x": np.array([[1, 2, 3]], np.float32)}
TABLE: Feeds = {
    "late": np.array([True, False]),
    "origin": np.array([["EWR"], [""]], object),
    "seats": np.array([[7], [-1]], np.int64),
    "distance": np.array([[1.5], [2.5]], np.float32),
}


# FP16 has no field of its own.
@pytest.mark.parametrize(
    ("datatype", "typed"), [*((d, False) for d in sorted(NUMPY)), *((d, True) for d in sorted(FIELDS))]
)
def test_every_datatype_comes_back_as_it_was_sent(datatype: str, typed: bool, tmp_path: Path) -> None:
    model = load(deployment(tmp_path, onnx_models.echo(datatype)))
    array = sample(datatype)
    response, _ = answered(model, read(asked({"x": array}, typed=typed), model))
    assert response.outputs[0].datatype == datatype
    assert bool(response.raw_output_contents) != typed
    np.testing.assert_array_equal(values(response)[0], array)


def test_an_answer_names_model_version_and_id(doubled: Model) -> None:
    for more in ({}, {"id": "42"}, {"id": "ü" * 100}):
        response, _ = answered(doubled, read(asked(ROW, **more), doubled))
        assert (response.model_name, response.model_version, response.id) == ("m", "5", more.get("id", ""))
        assert [list(each.shape) for each in response.outputs] == [[1, 3]]
        np.testing.assert_array_equal(values(response)[0], [[2, 4, 6]])


def test_inputs_come_in_any_order_and_outputs_as_asked(by_column: Model) -> None:
    for typed in (False, True):
        request = asked(TABLE, typed=typed)
        request.outputs.add(name="seats_out")
        request.outputs.add(name="origin_out")
        response, _ = answered(by_column, read(request, by_column))
        assert [each.name for each in response.outputs] == ["seats_out", "origin_out"]
        assert values(response)[0].tolist() == [[7], [-1]]
        assert values(response)[1].tolist() == [["EWR"], [""]]


def test_several_outputs_are_each_what_they_are(by_column: Model) -> None:
    answers = Answers("m", "5", INFER.response)
    for rows in (2, 1, 2):
        for more in ({}, {"id": "7"}):
            feeds = {name: array[:rows] for name, array in TABLE.items()}
            request = asked(feeds, **more)
            for name in ("late_out", "distance_out", "seats_out"):
                request.outputs.add(name=name)
            ask = read(request, by_column)
            (answer,) = run([Job(by_column, ask, 0.0, NOBODY)], Spent(0.0))
            assert isinstance(answer, Rows)
            response = INFER.response.FromString(answers.write(ask, answer)[5:])
            assert [each.name for each in response.outputs] == ["late_out", "distance_out", "seats_out"]
            for name, found in zip(("late", "distance", "seats"), values(response), strict=True):
                np.testing.assert_array_equal(found, feeds[name])


def test_published_cases_get_their_published_answers(tmp_path: Path) -> None:
    served = 0
    for case in _published_cases():
        try:
            model = load(deployment(tmp_path, (case / "model.onnx").read_bytes()))
        except BadInput:
            continue
        inputs = _tensors(case, "input", len(model.inputs))
        if any(array.size == 0 for array in inputs):
            continue
        feeds = dict(zip([each.name for each in model.inputs], inputs, strict=True))
        for typed in (False, True):
            if typed and any(tensor.kind.datatype not in FIELDS for tensor in (*model.inputs, *model.outputs)):
                continue
            response, _ = answered(model, read(asked(feeds, typed=typed), model))
            _compare(case, values(response), _tensors(case, "output", len(model.outputs)))
        served += 1
    assert served > 90


# ---------------------------------------------------------------------------------------------------- mistakes
def _changed(change: Any, *, typed: bool = False) -> Any:
    request = asked(ROW, typed=typed)
    change(request)
    return request


@pytest.mark.parametrize(
    ("request_", "wrong"),
    [
        (_changed(lambda r: r.inputs.pop()), "holds one entry per input, in their order; found 1 for 0 inputs"),
        (_changed(lambda r: r.raw_input_contents.append(b"")), "found 2 for 1 inputs"),
        (_changed(lambda r: r.raw_input_contents.__setitem__(0, b"1234")), "has 12 bytes; its entry"),
        (_changed(lambda r: setattr(r.inputs[0], "name", "z")), "missing ['x'], unknown ['z']"),
        (_changed(lambda r: setattr(r.inputs[0], "datatype", "FP64")), "wants FP32, found 'FP64'"),
        (_changed(lambda r: r.inputs[0].shape.__setitem__(0, 2)), "FP32[2, 3] has 24 bytes"),
        (_changed(lambda r: r.inputs[0].shape.__setitem__(0, -1)), "wants shape [-1, 3]"),
        (_changed(lambda r: r.inputs[0].shape.__setitem__(0, 2**62)), "bytes; its entry"),
        (_changed(lambda r: r.outputs.add(name="nope")), "unknown output 'nope'"),
        (_changed(lambda r: r.inputs[0].contents.fp32_contents.append(1)), "send one of them"),
        (
            _changed(lambda r: r.inputs[0].contents.fp32_contents.append(1), typed=True),
            "wants 3 values in `contents.fp32",
        ),
        (
            _changed(lambda r: r.inputs[0].ClearField("contents"), typed=True),
            "(or bytes in `raw_input_contents`), found 0",
        ),
        (_changed(lambda r: setattr(r.parameters["timeout"], "string_param", "5")), "parameter `timeout` is '5'"),
    ],
)
def test_a_mistake_is_told_with_what_was_wanted_and_found(doubled: Model, request_: Any, wrong: str) -> None:
    with pytest.raises(BadInput) as error:
        read(request_, doubled)
    assert wrong in error.value.message


def test_values_out_of_range_and_strings_that_are_none_are_refused(tmp_path: Path) -> None:
    for datatype, field, value in (("INT8", "int_contents", 300), ("UINT16", "uint_contents", 70_000)):
        model = load(deployment(tmp_path, onnx_models.echo(datatype, ["N"])))
        request = INFER.request(model_name="m")
        tensor = request.inputs.add(name="x", datatype=datatype, shape=[1])
        getattr(tensor.contents, field).append(value)
        with pytest.raises(BadInput, match="out of the range"):
            read(request, model)
    model = load(deployment(tmp_path, onnx_models.echo("BYTES", ["N"])))
    request = INFER.request(model_name="m")
    request.inputs.add(name="x", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"\xff")
    with pytest.raises(BadInput, match="no UTF-8"):
        read(request, model)
    del request.inputs[0].contents.bytes_contents[:]
    request.inputs[0].ClearField("contents")
    request.raw_input_contents.append(b"\xff\xff\xff\x7fabc")
    with pytest.raises(BadInput, match="wants 1 strings"):
        read(request, model)


# ---------------------------------------------------------------------------------------------------- remembered
def test_what_is_remembered_is_read_as_it_was_the_first_time(doubled: Model, by_column: Model) -> None:
    plans = Plans()
    first = prefixed(asked(ROW).SerializeToString())
    assert plans.find(first) is None
    plans.keep(first, asked(ROW), doubled, read(asked(ROW), doubled))
    other = asked({"x": np.array([[4, 5, 6]], np.float32)})
    plan = plans.find(prefixed(other.SerializeToString()))
    assert plan is not None
    assert plan.codec is doubled.codec
    ask, expected = plan.ask(prefixed(other.SerializeToString())), read(other, doubled)
    np.testing.assert_array_equal(ask.feeds["x"], expected.feeds["x"])
    assert (ask.rows, ask.wanted, ask.timeout_seconds) == (1, expected.wanted, None)


def test_only_what_differs_in_values_alone_is_taken_for_the_same(tmp_path: Path) -> None:
    nodes = [onnx_models.helper.make_node("Add", ["a", "b"], ["y"])]
    kind = (onnx_models.TensorProto.FLOAT, ["N", 2])
    model = load(deployment(tmp_path, onnx_models.model(nodes, {"a": kind, "b": kind}, {"y": kind})))
    feeds = {"b": np.array([[1, 2]], np.float32), "a": np.array([[3, 4]], np.float32)}
    plans, request = Plans(), asked(feeds)
    data = prefixed(request.SerializeToString())
    plans.keep(data, request, model, read(request, model))
    plan = plans.find(data)
    assert plan is not None
    assert {name: array.tolist() for name, array in plan.ask(data).feeds.items()} == {"a": [[3, 4]], "b": [[1, 2]]}
    values_at = {at for start in (len(data) - 8, len(data) - 18) for at in range(start, start + 8)}
    for at in range(len(data)):
        changed = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
        assert (plans.find(changed) is not None) == (at in values_at)


def test_a_message_in_another_order_is_read_by_the_library(doubled: Model) -> None:
    request = asked(ROW)
    raw = INFER.request(raw_input_contents=request.raw_input_contents).SerializeToString()
    del request.raw_input_contents[:]
    described = request.SerializeToString()
    for content in (raw + described, described[:3] + raw + described[3:]):
        plans, data = Plans(), prefixed(content)
        whole = INFER.request.FromString(content)
        plans.keep(data, whole, doubled, read(whole, doubled))
        assert plans.find(data) is None


def test_random_messages_are_read_alike_with_and_without_memory(by_column: Model, doubled: Model) -> None:
    random_, plans, found = random.Random(3), Plans(), 0
    for _ in range(500):
        rows = random_.choice((1, 2, 3))
        request = asked({"x": np.array([[random_.random()] * 3] * rows, np.float32)})
        if random_.random() < 0.3:
            request.parameters["timeout"].int64_param = random_.choice((0, 5, 1_000_000))
        if random_.random() < 0.3:
            request.outputs.add(name="y")
        data = prefixed(request.SerializeToString())
        expected, plan = read(request, doubled), plans.find(data)
        if plan is None:
            plans.keep(data, request, doubled, expected)
            continue
        found += 1
        ask = plan.ask(data)
        np.testing.assert_array_equal(ask.feeds["x"], expected.feeds["x"])
        assert (ask.rows, ask.wanted, ask.timeout_seconds) == (expected.rows, expected.wanted, expected.timeout_seconds)
    assert found > 300
