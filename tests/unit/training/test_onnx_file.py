"""A model travels as one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from dropforge.training.onnx_file import ModelUnusable, self_contained
from tests.unit.training.bench import threshold_model


def with_weights_outside(folder: Path, location: str) -> Path:
    path = folder / "model.onnx"
    onnx.save_model(
        threshold_model(0.25, 0.75).proto,
        str(path),
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    if location != "model.onnx.data":
        moved = onnx.load(str(path), load_external_data=False)
        for tensor in moved.graph.initializer:
            next(entry for entry in tensor.external_data if entry.key == "location").value = location
        path.write_bytes(moved.SerializeToString())
    return path


def test_weights_beside_the_model_are_taken_into_it(tmp_path: Path) -> None:
    path = with_weights_outside(tmp_path, "model.onnx.data")

    self_contained(path)
    (tmp_path / "model.onnx.data").unlink()

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.array([[1.0]], np.float32)})
    assert found.tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights", "gone"])
def test_weights_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "output"
    folder.mkdir()
    (tmp_path / "weights").write_bytes(b"0" * 100)
    path = with_weights_outside(folder, location)

    with pytest.raises(ModelUnusable, match="not in a file beside the model"):
        self_contained(path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "output"
    folder.mkdir()
    (tmp_path / "weights").write_bytes(b"0" * 100)
    (folder / "link").symlink_to(tmp_path / "weights")

    with pytest.raises(ModelUnusable, match="not in a file beside the model"):
        self_contained(with_weights_outside(folder, "link"))


def test_a_whole_model_is_left_as_it_is(tmp_path: Path) -> None:
    path = threshold_model(0.25, 0.75).save(tmp_path / "model.onnx")
    before = path.read_bytes()

    self_contained(path)

    assert path.read_bytes() == before


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()

    with pytest.raises(ModelUnusable, match="empty"):
        self_contained(tmp_path / "model.onnx")
