"""A model version from its file to a session that answers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from dropforge.domain.errors import BadInput, BadName, NotFound, Unavailable
from dropforge.serving.models import ModelFailed, load, warm_up
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import deployment

GOOD = onnx_models.scaled(2)
ROWS = {"x": np.ones((1, 3), np.float32)}


def test_a_good_file_answers(tmp_path: Path) -> None:
    model = load(deployment(tmp_path, GOOD, version=3))
    assert model.run(["y"], ROWS)[0].tolist() == [[2, 2, 2]]
    assert model.headers == {
        "dropforge-model": "flights",
        "dropforge-version": "3",
        "dropforge-dataset-version": "43",
    }


def test_a_file_with_other_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=rf"\({len(GOOD)} bytes\): wanted sha256 00, found [0-9a-f]{{64}}"):
        load(deployment(tmp_path, GOOD, sha256="00"))


@pytest.mark.parametrize(
    "data",
    [b"", b"not a model", GOOD[:-20], onnx_models.model([helper.make_node("Nothing", ["x"], ["y"])], {}, {})],
    ids=["empty", "garbage", "truncated", "unknown operator"],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadInput, match=r"bytes\) does not load: "):
        load(deployment(tmp_path, data))


def test_weights_in_a_file_beside_the_model_are_refused_as_nothing_vouches_for_them(tmp_path: Path) -> None:
    proto = onnx.load_from_string(GOOD)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array(2, np.float32), "k"))
    onnx.save_model(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    with pytest.raises(BadInput, match="External data path does not exist"):
        load(deployment(tmp_path, proto.SerializeToString()))


def test_a_file_written_while_it_loads_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = deployment(tmp_path, GOOD)
    make = onnxruntime.InferenceSession

    def make_late(path: str, *options: object, **more: object) -> object:
        session = make(path, *options, **more)
        Path(path).write_bytes(GOOD)
        os.utime(path, ns=(1, 1))
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", make_late)
    with pytest.raises(Unavailable, match="was written while it was loaded"):
        load(one)


def test_outputs_that_are_no_tensors_are_refused_with_the_way_out(tmp_path: Path) -> None:
    proto = onnx.load_from_string(
        onnx_models.model([helper.make_node("SequenceConstruct", ["x"], ["y"])], {"x": (TensorProto.FLOAT, [1])}, {})
    )
    proto.graph.output.append(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None))
    with pytest.raises(BadInput, match=r"output 'y' is a seq\(tensor\(float\)\); .*zipmap"):
        load(deployment(tmp_path, proto.SerializeToString()))


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    missing = deployment(tmp_path, GOOD, uri=(tmp_path / "none.onnx").as_uri())
    with pytest.raises(NotFound, match="no model file at"):
        load(missing)
    for uri in (tmp_path.as_uri(), "file:///a%00b"):
        with pytest.raises(NotFound, match="no model file at"):
            load(replace(missing, uri=uri))


def test_a_file_that_cannot_be_read_may_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = deployment(tmp_path, GOOD)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Tests may run as root, whom no mode bits stop.
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(Unavailable, match=r"cannot read the model file .*: Permission denied"):
        load(one)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("https://store/model.onnx", r"cannot fetch 'https://.*: wanted a URI that starts with file:"),
        ("/models/model.onnx", "wanted a URI that starts with"),
        ("file://other/model.onnx", "found host 'other'"),
    ],
)
def test_a_uri_that_nobody_fetches_is_refused(tmp_path: Path, uri: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load(deployment(tmp_path, GOOD, uri=uri))


def test_a_uri_may_hold_spaces_and_percents(tmp_path: Path) -> None:
    folder = tmp_path / "a 100% good folder"
    folder.mkdir()
    assert load(deployment(folder, GOOD)).inputs[0].name == "x"


def test_a_model_name_that_is_no_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadName):
        load(replace(deployment(tmp_path, GOOD), model="a\r\nb"))


@pytest.mark.parametrize("datatype", onnx_models.ONNX_TYPES)
def test_every_type_is_warmed_up_with_made_up_rows(tmp_path: Path, datatype: str) -> None:
    model = load(deployment(tmp_path, onnx_models.echo(datatype)))
    assert warm_up(model, None) == "answered made-up rows"


def test_a_model_that_refuses_made_up_rows_is_served_and_told(tmp_path: Path) -> None:
    model = load(deployment(tmp_path, onnx_models.picky(rows=0)))
    assert warm_up(model, None).startswith("did not answer made-up rows: flights v1 failed: ")


def test_a_model_that_cannot_answer_the_last_request_fails(tmp_path: Path) -> None:
    sample = {"x": np.array([3], np.int64)}
    assert warm_up(load(deployment(tmp_path, onnx_models.picky(4))), sample) == "answered the last request"
    with pytest.raises(ModelFailed, match=r"flights v1 failed: .*indices element out of data bounds"):
        warm_up(load(deployment(tmp_path, onnx_models.picky(3))), sample)


def test_a_last_request_of_another_signature_is_not_asked(tmp_path: Path) -> None:
    model = load(deployment(tmp_path, GOOD))
    for other in ({"z": ROWS["x"]}, {"x": np.ones((1, 4), np.float32)}, {"x": np.ones((1, 3), np.float64)}):
        assert warm_up(model, other) == "answered made-up rows"
