"""Which models may answer requests together, and which only seem to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from dropforge.serving.mixing import prove_batching
from dropforge.serving.models import load
from dropforge.serving.tensors import Feeds
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import ONNX_TYPES, deployment, echo, model, picky, scaled

TOGETHER = "runs requests together"
MIXES = "runs requests one by one: rows change each other's answers"
ALL_ALIKE = "runs requests one by one: all rows that were tried got the same answer"

ZERO = helper.make_tensor("zero", TensorProto.INT64, [], [0])
AXES = helper.make_tensor("axes", TensorProto.INT64, [1], [0])


def of(kind: str, *nodes: Any, constants: tuple[Any, ...] = (), shape: tuple[str | int, ...] = ("N", 2)) -> bytes:
    """x -> y through nodes, of one type and shape."""
    tensor = (ONNX_TYPES[kind], shape)
    return model(nodes, {"x": tensor}, {"y": tensor}, constants)


MIXING = {
    "softmax over the batch": of("FP32", helper.make_node("Softmax", ["x"], ["y"], axis=0)),
    "less the mean of the batch": of(
        "FP32",
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ),
    "a little of the mean of the batch": of(
        "FP32",
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Mul", ["m", "k"], ["km"]),
        helper.make_node("Add", ["x", "km"], ["y"]),
        constants=(helper.make_tensor("k", TensorProto.FLOAT, [], [0.001]),),
    ),
    "tiny numbers": of(
        "FP32",
        helper.make_node("Softmax", ["x"], ["s"], axis=0),
        helper.make_node("Mul", ["s", "k"], ["y"]),
        constants=(helper.make_tensor("k", TensorProto.FLOAT, [], [1e-9]),),
    ),
    "sums so far": of("FP32", helper.make_node("CumSum", ["x", "zero"], ["y"]), constants=(ZERO,)),
    "sums of whole numbers so far": of("INT64", helper.make_node("CumSum", ["x", "zero"], ["y"]), constants=(ZERO,)),
    "sorted": of(
        "FP32",
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axes"], ["k"]),
        helper.make_node("TopK", ["x", "k"], ["y", "i"], axis=0),
        constants=(ZERO, AXES),
    ),
    "the first row for all": of(
        "BOOL",
        helper.make_node("Gather", ["x", "axes"], ["f"], axis=0),
        helper.make_node("Or", ["x", "f"], ["y"]),
        constants=(AXES,),
    ),
    "the first text for all": of(
        "BYTES",
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["x", "axes"], ["f"], axis=0),
        helper.make_node("Expand", ["f", "s"], ["y"]),
        constants=(AXES,),
    ),
}


@pytest.mark.parametrize("what", MIXING)
def test_a_model_that_mixes_rows_answers_them_one_by_one(tmp_path: Path, what: str) -> None:
    loaded = load(deployment(tmp_path, MIXING[what]))
    # One row alone may always get the same: that shows nothing either.
    assert prove_batching(loaded, None) in (MIXES, ALL_ALIKE)
    assert not loaded.batches


def mlp() -> bytes:
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.normal(size=size).astype(np.float32), name)
        for name, size in (("w", (5, 64)), ("b", (64,)), ("v", (64, 3)), ("c", (3,)))
    ]
    return model(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "v", "c"], ["o"]),
            helper.make_node("Softmax", ["o"], ["y"], axis=1),
        ],
        {"x": (TensorProto.FLOAT, ["N", 5])},
        {"y": (TensorProto.FLOAT, ["N", 3])},
        weights,
    )


def trees() -> bytes:
    from skl2onnx import to_onnx
    from sklearn.ensemble import GradientBoostingClassifier

    random = np.random.default_rng(0)
    # Features as large as distances and as small as shares.
    x = (random.normal(size=(300, 4)) * [1, 0.01, 1000, 50]).astype(np.float32)
    y = (x[:, 2] > 300) ^ (x[:, 0] > 0)
    fitted = GradientBoostingClassifier(n_estimators=5, random_state=0).fit(x, y)
    return bytes(to_onnx(fitted, x[:1], options={"zipmap": False}, target_opset=17).SerializeToString())


@pytest.mark.parametrize("datatype", ONNX_TYPES)
def test_a_model_of_any_type_that_keeps_rows_apart_answers_them_together(tmp_path: Path, datatype: str) -> None:
    loaded = load(deployment(tmp_path, echo(datatype)))
    assert prove_batching(loaded, None) == TOGETHER
    assert loaded.batches


@pytest.mark.parametrize("make", [mlp, trees, onnx_models.columns])
def test_real_models_answer_together(tmp_path: Path, make: Any) -> None:
    assert prove_batching(load(deployment(tmp_path, make())), None) == TOGETHER


def test_a_model_of_few_known_categories_answers_together(tmp_path: Path) -> None:
    assert prove_batching(load(deployment(tmp_path, picky(2))), None) == TOGETHER
    sample: Feeds = {"x": np.array([7, 9], np.int64)}
    assert prove_batching(load(deployment(tmp_path, picky(10))), sample) == TOGETHER


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (picky(0), "made-up rows were not answered"),
        (picky(1), "no two rows could be made that differ in x"),
        (scaled(0.0), "all rows that were tried got the same answer"),
        (of("FP32", helper.make_node("Identity", ["x"], ["y"]), shape=(1, 2)), "its first dimension is not the rows"),
        (onnx_models.slow(1), "its first dimension is not the rows"),
    ],
)
def test_what_shows_nothing_is_no_proof(tmp_path: Path, data: bytes, reason: str) -> None:
    loaded = load(deployment(tmp_path, data))
    assert prove_batching(loaded, None) == f"runs requests one by one: {reason}"
    assert not loaded.batches


def test_a_model_that_gives_fewer_rows_than_it_took_is_found_out(tmp_path: Path) -> None:
    distinct = model(
        [helper.make_node("Unique", ["x"], ["y"])],
        {"x": (TensorProto.INT64, ["N"])},
        {"y": (TensorProto.INT64, ["M"])},
    )
    found = prove_batching(load(deployment(tmp_path, distinct)), None)
    assert "rows that were answered alone were not together (asked about 6 rows, answers of shapes" in found
