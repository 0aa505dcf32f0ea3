"""The models that the inference server is measured with, their requests, and ONNX Runtime alone. Measures nothing itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Run: TypeAlias = Callable[[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class Kind:
    """One of the models: what it takes, and how its file is made."""

    name: str
    input: str
    row: tuple[int, ...]
    make: Callable[[int], bytes]

    def rows(self, count: int = 1, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=(count, *self.row)).astype(np.float32)


def gbt(seed: int) -> bytes:
    """Gradient boosting as scikit-learn has it: 50 trees of depth 3 over 30 features."""
    from skl2onnx import to_onnx
    from sklearn.datasets import make_classification
    from sklearn.ensemble import GradientBoostingClassifier

    x, y = make_classification(2000, 30, random_state=seed)
    x = x.astype(np.float32)
    model = GradientBoostingClassifier(n_estimators=50, max_depth=3, random_state=0).fit(x, y)
    return bytes(to_onnx(model, x[:1], options={"zipmap": False}, target_opset=17).SerializeToString())


def mlp(seed: int, dims: tuple[int, ...] = (30, 512, 1024, 512, 2)) -> bytes:
    """Dense layers with random weights."""
    random = np.random.default_rng(seed)
    nodes: list[Any] = []
    weights: list[Any] = []
    at = "x"
    for layer, (wide, narrow) in enumerate(pairwise(dims)):
        weights += [
            _weights(f"w{layer}", random.normal(size=(wide, narrow)) / np.sqrt(wide)),
            _weights(f"b{layer}", random.normal(size=narrow)),
        ]
        last = layer == len(dims) - 2
        nodes.append(helper.make_node("Gemm", [at, f"w{layer}", f"b{layer}"], ["y" if last else f"h{layer}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"h{layer}"], [f"r{layer}"]))
        at = f"r{layer}"
    return _file(nodes, (None, dims[0]), (None, dims[-1]), weights)


def resnet18(seed: int) -> bytes:
    """ResNet-18 in its shape (224 x 224, 1,000 classes); random weights, normalisation folded into the convolutions."""
    net = _Net(np.random.default_rng(seed))
    at = net.conv("x", 3, 64, 7, 2)
    at = net.add("MaxPool", [at], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    wide = 64
    for narrow in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if block == 0 and narrow > 64 else 1
            kept = at if wide == narrow else net.conv(at, wide, narrow, 1, stride, relu=False)
            inner = net.conv(net.conv(at, wide, narrow, 3, stride), narrow, narrow, 3, 1, relu=False)
            at = net.add("Relu", [net.add("Add", [inner, kept])])
            wide = narrow
    at = net.add("Flatten", [net.add("GlobalAveragePool", [at])])
    net.weights += [_weights("w", net.random.normal(size=(512, 1000)) / 22), _weights("b", np.zeros(1000))]
    net.nodes.append(helper.make_node("Gemm", [at, "w", "b"], ["y"]))
    return _file(net.nodes, (None, 3, 224, 224), (None, 1000), net.weights)


class _Net:
    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(self, what: str, inputs: list[str], **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(what, inputs, [name], **attributes))
        return name

    def conv(self, at: str, wide: int, narrow: int, size: int, stride: int, relu: bool = True) -> str:
        place, pad = len(self.nodes), size // 2
        scale = np.sqrt(2 / (wide * size * size))
        self.weights += [
            _weights(f"w{place}", self.random.normal(size=(narrow, wide, size, size)) * scale),
            _weights(f"b{place}", np.zeros(narrow)),
        ]
        options = {"kernel_shape": [size, size], "strides": [stride, stride], "pads": [pad] * 4}
        at = self.add("Conv", [at, f"w{place}", f"b{place}"], **options)
        return self.add("Relu", [at]) if relu else at


def _weights(name: str, values: np.ndarray) -> Any:
    return numpy_helper.from_array(values.astype(np.float32), name)


def _file(nodes: list[Any], taken: tuple[int | None, ...], given: tuple[int | None, ...], weights: list[Any]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, taken)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, given)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


KINDS = (
    Kind("gbt", "X", (30,), gbt),
    Kind("mlp", "x", (30,), mlp),
    Kind("resnet18", "x", (3, 224, 224), resnet18),
)


def written(folder: Path, kind: Kind, seed: int = 0) -> tuple[Path, str]:
    """The model's file in a folder, and its sha256; made at the first call."""
    path = folder / f"{kind.name}-{seed}.onnx"
    if not path.exists():
        path.write_bytes(kind.make(seed))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def session(folder: Path, kind: Kind, seed: int = 0) -> Run:
    """ONNX Runtime alone, with one thread as in the server."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path, _ = written(folder, kind, seed)
    loaded = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in loaded.get_outputs()]
    return lambda rows: loaded.run(names, {kind.input: rows})


def request(kind: Kind, encoding: str, rows: np.ndarray | None = None, endpoint: str = "", key: str = "k") -> bytes:
    """A whole request of HTTP/1.1 for `json` or `binary` tensors in both directions."""
    values = kind.rows() if rows is None else rows
    tensor = {"name": kind.input, "shape": list(values.shape), "datatype": "FP32"}
    if encoding == "json":
        body = json.dumps({"inputs": [tensor | {"data": [float(each) for each in values.ravel()]}]}).encode()
        more = ""
    else:
        given = {"inputs": [tensor | {"parameters": {"binary_data_size": values.nbytes}}]}
        header = json.dumps(given | {"parameters": {"binary_data_output": True}}).encode()
        body, more = header + values.tobytes(), f"Inference-Header-Content-Length: {len(header)}\r\n"
    head = (
        f"POST /v2/models/{endpoint or kind.name}/infer HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
