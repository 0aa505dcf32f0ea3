"""Models on the GPU of this machine: the same answers as on the CPU, and how fast. `python -m tests.gpu.check`.

    python -m pip install 'onnxruntime-gpu[cuda,cudnn]==1.31.*'      in place of onnxruntime
    python -m tests.gpu.check                                        cuda; also tensorrt, where its libraries are
    python -m tests.gpu.check --provider cpu                         the same path without a GPU

Ends with 0 when everything holds, with 1 when something does not, with 3 when there is no GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from dropforge.domain.endpoints import Deployment
from dropforge.serving.devices import Bound, Graphs, run_of
from dropforge.serving.memory import free_device_bytes
from dropforge.serving.mixing import prove_batching
from dropforge.serving.models import Model, load, warm_up
from dropforge.serving.provider import Provider, smi, wanted
from dropforge.serving.tensors import Array, Feeds

NO_GPU = 3
WIDTH = 1024
# By the element type; of FP16 the sums of a thousand products.
TOLERANCES = {np.dtype(np.float32): 2e-3, np.dtype(np.float16): 5e-2}


def mlp(dtype: Any, layers: int = 4) -> bytes:
    """x [N, 1024] -> y, through square layers with ReLU."""
    random = np.random.default_rng(0)
    nodes, weights, name = [], [], "x"
    for layer in range(layers):
        weight = (random.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH) * 1.4).astype(dtype)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [name, f"w{layer}"], [f"m{layer}"]))
        name = "y" if layer == layers - 1 else f"r{layer}"
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [name]))
    kind = TensorProto.FLOAT16 if dtype == np.float16 else TensorProto.FLOAT
    shape = ["N", WIDTH]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
        weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


def loaded(folder: Path, data: bytes, name: str, provider: Provider) -> Model:
    sha256 = hashlib.sha256(data).hexdigest()
    path = folder / f"{name}.onnx"
    path.write_bytes(data)
    wanted_ = Deployment(name, 1, path.as_uri(), sha256, 1)
    if provider.device_type == "cpu":
        # The path to the device without one.
        model = load(wanted_)
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        model.run_by(run_of(session, provider, model.inputs, model.outputs, name), "CPUExecutionProvider")
    else:
        model = load(wanted_, provider=provider)
    warm_up(model, None)
    prove_batching(model, None)
    return model


def rate(run: Callable[[], object], seconds: float) -> float:
    """Microseconds of one run, the median of many."""
    took: list[float] = []
    until = time.perf_counter() + seconds
    while not took or time.perf_counter() < until:
        began = time.perf_counter()
        run()
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


def feeds(rows: int, dtype: Any) -> Feeds:
    return {"x": np.random.default_rng(rows).normal(size=(rows, WIDTH)).astype(dtype)}


def alike(found: Array, right: Array) -> bool:
    tolerance = TOLERANCES[right.dtype]
    return found.dtype == right.dtype and np.allclose(found, right, rtol=tolerance, atol=tolerance)


def compare(folder: Path, provider: Provider, dtype: Any, seconds: float) -> bool:
    """One model on the CPU, on the device, and on the device as a graph: answers and times."""
    data, name = mlp(dtype), f"mlp-{np.dtype(dtype).name}"
    right = load(Deployment(name, 1, _written(folder, data), hashlib.sha256(data).hexdigest(), 1))
    ways = {
        "bound": loaded(folder, data, name, provider),
        "graph": loaded(folder, data, name, replace(provider, graphs=frozenset({name}))),
    }
    assert isinstance(ways["bound"]._run, Bound)
    holds = True
    for rows in (1, 5, 32):
        given = feeds(rows, dtype)
        (expected,) = right.run(["y"], given)
        told = [f"cpu {rate(lambda: right.run(['y'], given), seconds):9.0f} us"]  # noqa: B023 - run at once
        for way, model in ways.items():
            (found,) = model.run(["y"], given)
            good = alike(found, expected)
            holds &= good
            took = rate(lambda: model.run(["y"], given), seconds)  # noqa: B023 - run at once
            told.append(f"{way} {took:9.0f} us{'' if good else ' WRONG'}")
        print(f"  {name} {rows:3} rows: {', '.join(told)}")
    graph = ways["graph"]._run
    captured = sorted(graph._captured) if isinstance(graph, Graphs) else "none"
    print(f"  {name}: provider in use {ways['bound'].provider}; graphs for rows {captured}")
    return holds


def swaps(folder: Path, provider: Provider, times: int = 20) -> bool:
    """Load the model again and again beside the one before it: the device's memory must not grow."""
    data, held = mlp(np.float32), None
    free: list[int] = []
    for _ in range(times):
        held = loaded(folder, data, "swapped", provider) if held is None else _swapped(folder, data, provider, held)
        free.append(free_device_bytes(provider.device) or 0)
    grown = (free[2] - free[-1]) / 2**20
    print(
        f"  {times} swaps: free memory {free[0] / 2**20:,.0f} .. {free[-1] / 2**20:,.0f} MiB; grown by {grown:,.0f} MiB"
    )
    return grown < 64


def _swapped(folder: Path, data: bytes, provider: Provider, old: Model) -> Model:
    new = loaded(folder, data, "swapped", provider)
    del old
    return new


def _written(folder: Path, data: bytes) -> str:
    path = folder / "right.onnx"
    path.write_bytes(data)
    return path.as_uri()


def check(name: str, seconds: float) -> int:
    provider = Provider("cuda", device_type="cpu") if name == "cpu" else wanted({"DROPFORGE_SERVE_PROVIDER": name})
    if provider.problem is not None:
        print(f"NO GPU: {provider.problem}")
        return NO_GPU
    device = "no GPU, the same path" if name == "cpu" else smi()
    print(f"{name} on {device}; onnxruntime {onnxruntime.__version__}")
    with tempfile.TemporaryDirectory(prefix="dropforge-gpu-") as place:
        folder = Path(place)
        holds = compare(folder, provider, np.float32, seconds) & compare(folder, provider, np.float16, seconds)
        if name != "cpu":
            holds &= swaps(folder, provider)
            holds &= swaps(folder, replace(provider, memory_bytes=256 * 2**20))
    print("  all of it holds" if holds else "  NOT all of it holds")
    return 0 if holds else 1


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description="Models on the GPU of this machine.")
    options.add_argument("--provider", choices=("cpu", "cuda", "tensorrt"), help="default: cuda, and tensorrt if there")
    options.add_argument("--seconds", type=float, default=1.0, help="for each figure")
    given = options.parse_args(arguments)
    if given.provider is not None:
        return check(given.provider, given.seconds)
    code = check("cuda", given.seconds)
    if code == 0 and "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        # Its libraries are not part of the wheel: without them it says so, and that is no failure.
        code = {NO_GPU: 0}.get(found := check("tensorrt", given.seconds), found)
    return code


if __name__ == "__main__":
    sys.exit(main())
