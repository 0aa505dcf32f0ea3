"""Tiny models for the tests of the inference server, made on the spot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx import TensorProto, helper

from dropforge.domain.endpoints import Deployment

Shape = Sequence[int | str | None]

ONNX_TYPES = {
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "BOOL": TensorProto.BOOL,
    "BYTES": TensorProto.STRING,
}


def model(
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[int, Shape | None]],
    outputs: Mapping[str, tuple[int, Shape | None]],
    constants: Sequence[Any] = (),
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes of an ONNX file."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *each) for name, each in inputs.items()],
        [helper.make_tensor_value_info(name, *each) for name, each in outputs.items()],
        list(constants),
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(proto, dict(metadata or {}))
    return bytes(proto.SerializeToString())


def scaled(factor: float, width: int = 3, features: Sequence[str] | None = None) -> bytes:
    """x [N, width] -> y = x * factor."""
    return model(
        [helper.make_node("Mul", ["x", "k"], ["y"])],
        {"x": (TensorProto.FLOAT, ["N", width])},
        {"y": (TensorProto.FLOAT, ["N", width])},
        [helper.make_tensor("k", TensorProto.FLOAT, [], [factor])],
        {"features": json.dumps(features)} if features is not None else None,
    )


def echo(datatype: str, shape: Shape | None = ("N", 2)) -> bytes:
    """x -> y = x, of one type."""
    kind = ONNX_TYPES[datatype]
    return model([helper.make_node("Identity", ["x"], ["y"])], {"x": (kind, shape)}, {"y": (kind, shape)})


def columns() -> bytes:
    """One input per column, each echoed: origin (string), distance (float), seats (int64), late (bool), all [N, 1] but
    `late`, which is [N]."""
    kinds: dict[str, tuple[int, Shape | None]] = {
        "origin": (TensorProto.STRING, ["N", 1]),
        "distance": (TensorProto.FLOAT, ["N", 1]),
        "seats": (TensorProto.INT64, ["N", 1]),
        "late": (TensorProto.BOOL, ["N"]),
    }
    return model(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds],
        kinds,
        {f"{name}_out": each for name, each in kinds.items()},
    )


def picky(rows: int = 1) -> bytes:
    """x [N] int64 -> y: fails for every x that is not below `rows`, as a model does that meets an unknown category."""
    return model(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        {"x": (TensorProto.INT64, ["N"])},
        {"y": (TensorProto.FLOAT, ["N"])},
        [helper.make_tensor("table", TensorProto.FLOAT, [rows], [float(i) for i in range(rows)])],
    )


def slow(factor: float) -> bytes:
    """n [1] int64 -> y [1, 1] = n * factor, by way of two products of n x n matrices: as slow as the request wants."""
    one = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0])
    return model(
        [
            helper.make_node("Concat", ["n", "n"], ["square"], axis=0),
            helper.make_node("Concat", ["n", "one"], ["column"], axis=0),
            helper.make_node("ConstantOfShape", ["square"], ["a"], value=one),
            helper.make_node("ConstantOfShape", ["column"], ["b"], value=one),
            helper.make_node("MatMul", ["a", "a"], ["aa"]),
            helper.make_node("MatMul", ["aa", "b"], ["c"]),
            helper.make_node("ReduceMax", ["c"], ["m"], keepdims=1),
            helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["m", "f"], ["d"]),
            helper.make_node("Mul", ["d", "k"], ["y"]),
        ],
        {"n": (TensorProto.INT64, [1])},
        {"y": (TensorProto.FLOAT, [1, 1])},
        [
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            helper.make_tensor("k", TensorProto.FLOAT, [], [factor]),
        ],
    )


def deployment(folder: Path, data: bytes, version: int = 1, traffic: int = 100, **changes: Any) -> Deployment:
    """The file written, and the deployment that names it."""
    sha256 = hashlib.sha256(data).hexdigest()
    path = folder / f"{sha256[:16]}.onnx"
    path.write_bytes(data)
    given = {"uri": path.as_uri(), "sha256": sha256, **changes}
    return Deployment(model="flights", version=version, dataset_version=40 + version, traffic=traffic, **given)
