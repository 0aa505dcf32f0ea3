"""Whether callers may go on as they do when another model serves."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto, helper

from dropforge.serving.models import Model, load
from dropforge.serving.signature import incompatible
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import Shape, deployment

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def model(folder: Path, inputs: dict[str, tuple[int, Shape | None]], features: str | None = None) -> Model:
    """Each input echoed under `<name>_out`."""
    data = onnx_models.model(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in inputs],
        inputs,
        {f"{name}_out": each for name, each in inputs.items()},
        metadata={"features": features} if features else None,
    )
    return load(deployment(folder, data))


A = {"a": (FLOAT, ["N", 3])}


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (A, A, None),
        (A, {"a": (FLOAT, ["M", 3])}, None),
        (A, {"a": (FLOAT, ["N", "K"])}, None),
        ({"a": (FLOAT, [1, 3])}, A, None),
        (A, {"a": (FLOAT, ["N", 4])}, "input a FP32[-1, 3] became a FP32[-1, 4]"),
        ({"a": (FLOAT, ["N", "K"])}, A, "input a FP32[-1, -1] became a FP32[-1, 3]"),
        (A, {"a": (FLOAT, ["N", 3, 1])}, "input a FP32[-1, 3] became a FP32[-1, 3, 1]"),
        (A, {"a": (INT64, ["N", 3])}, "input a FP32[-1, 3] became a INT64[-1, 3]"),
        (A, {**A, "b": (FLOAT, ["N"])}, "input b FP32[-1] is new and required"),
        ({**A, "b": (FLOAT, ["N"])}, A, "input 'b' is gone; output 'b_out' is gone"),
    ],
)
def test_inputs_may_be_widened_and_nothing_else(
    tmp_path: Path, old: dict[str, tuple[int, Shape]], new: dict[str, tuple[int, Shape]], why: str | None
) -> None:
    found = incompatible(model(tmp_path, {**old}), model(tmp_path, {**new}))
    assert found == why if why is None else found is not None and found.startswith(why)


def test_a_class_more_is_no_other_question(tmp_path: Path) -> None:
    def of(classes: int) -> Model:
        data = onnx_models.model(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            {"x": (FLOAT, ["N", 1])},
            {"y": (FLOAT, ["N", classes])},
            [helper.make_tensor("w", FLOAT, [1, classes], [1.0] * classes)],
        )
        return load(deployment(tmp_path, data))

    assert incompatible(of(2), of(3)) is None


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('["u", "v", "w"]', '["u", "v", "w"]', None),
        (None, '["u", "v", "w"]', None),
        # Whoever sends a matrix would send the columns in the old order, and be answered.
        ('["u", "v", "w"]', '["v", "u", "w"]', "the columns were ['u', 'v', 'w'] and are ['v', 'u', 'w']"),
        ('["u", "v", "w"]', None, "the columns were ['u', 'v', 'w'] and are not told"),
    ],
)
def test_the_columns_of_a_matrix_keep_their_order(
    tmp_path: Path, old: str | None, new: str | None, why: str | None
) -> None:
    assert incompatible(model(tmp_path, {**A}, old), model(tmp_path, {**A}, new)) == why
