"""The path that inputs and outputs take to a GPU, walked on the CPU: binding works there as well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from dropforge.domain.errors import BadInput
from dropforge.serving.devices import Bound, Graphs, in_use, run_of
from dropforge.serving.mixing import prove_batching
from dropforge.serving.models import Model, ModelFailed, load
from dropforge.serving.provider import CPU, Provider, wanted
from dropforge.serving.tensors import Array
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import deployment

# A GPU in everything but what runs it.
BESIDE = Provider("cuda", device_type="cpu")
WITH_GRAPHS = replace(BESIDE, graphs=frozenset({"flights"}))


def bound(folder: Path, data: bytes, provider: Provider = BESIDE) -> Model:
    """A model loaded on the CPU, run as on a GPU."""
    model = load(deployment(folder, data))
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    model.run_by(run_of(session, provider, model.inputs, model.outputs, "flights"), "CPUExecutionProvider")
    return model


def rows(number: int, dtype: Any = np.float32) -> Array:
    return np.arange(number * 3, dtype=dtype).reshape(number, 3)


def test_bound_runs_answer_as_plain_ones_do(tmp_path: Path) -> None:
    model = bound(tmp_path, onnx_models.scaled(2))
    assert isinstance(model._run, Bound)
    for number in (1, 5, 700):
        (found,) = model.run(["y"], {"x": rows(number)})
        np.testing.assert_array_equal(found, rows(number) * 2)


@pytest.mark.parametrize("datatype", ["FP16", "FP64", "INT8", "UINT64", "BOOL"])
def test_every_number_type_can_be_bound(tmp_path: Path, datatype: str) -> None:
    model = bound(tmp_path, onnx_models.echo(datatype))
    (tensor,) = model.inputs
    given = np.array([[0, 1], [1, 1]]).astype(tensor.kind.dtype)
    (found,) = model.run(["y"], {"x": given})
    assert found.dtype == given.dtype
    np.testing.assert_array_equal(found, given)


def test_an_array_that_does_not_lie_in_one_piece_is_bound_as_one(tmp_path: Path) -> None:
    (found,) = bound(tmp_path, onnx_models.scaled(2)).run(["y"], {"x": rows(6)[::2]})
    np.testing.assert_array_equal(found, rows(6)[::2] * 2)


def test_models_of_strings_are_run_as_they_are(tmp_path: Path) -> None:
    model = bound(tmp_path, onnx_models.echo("BYTES"))
    (found,) = model.run(["y"], {"x": np.array([["a", "b"]], object)})
    assert found.tolist() == [["a", "b"]]


def test_a_model_that_fails_on_the_device_is_the_model_s_failure(tmp_path: Path) -> None:
    with pytest.raises(ModelFailed):
        bound(tmp_path, onnx_models.picky(3)).run(["y"], {"x": np.array([3])})


def graphs_of(model: Model) -> Graphs:
    assert isinstance(model._run, Graphs)
    return model._run


def test_requests_are_filled_up_to_the_size_of_a_graph_and_cut_again(tmp_path: Path) -> None:
    model = bound(tmp_path, onnx_models.scaled(2), WITH_GRAPHS)
    assert prove_batching(model, None) == "runs requests together"
    before: list[tuple[Array, Array]] = []
    for number in (1, 3, 64, 65, 3, 2, 4):
        (found,) = model.run(["y"], {"x": rows(number) + number})
        before.append((found, (rows(number) + number) * 2))
    # Looked at last: an answer must not change when its graph's buffers are used again.
    for found, right in before:
        np.testing.assert_array_equal(found, right)
    assert sorted(graphs_of(model)._captured) == [1, 2, 4, 8, 16, 32, 64]


def test_no_graph_is_used_before_rows_are_known_to_be_apart(tmp_path: Path) -> None:
    model = bound(tmp_path, onnx_models.scaled(2), WITH_GRAPHS)
    model.run(["y"], {"x": rows(3)})
    assert not graphs_of(model)._captured


def test_a_model_that_cannot_be_captured_runs_without_graphs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # It has no answer to anything, so none to the zeros that a graph is captured with.
    model = bound(tmp_path, onnx_models.picky(0), WITH_GRAPHS)
    model.let_batch()
    assert "no CUDA graphs" in caplog.text and not graphs_of(model)._captured
    with pytest.raises(ModelFailed):
        model.run(["y"], {"x": np.array([0])})


def test_only_the_models_named_get_graphs_and_only_where_nothing_but_the_rows_varies(tmp_path: Path) -> None:
    assert isinstance(bound(tmp_path, onnx_models.scaled(2), BESIDE)._run, Bound)
    assert isinstance(bound(tmp_path, onnx_models.echo("FP32", ("N", "M")), WITH_GRAPHS)._run, Bound)
    assert isinstance(bound(tmp_path, onnx_models.echo("FP32", (2, 3)), WITH_GRAPHS)._run, Bound)


def test_threads_do_not_see_each_other_s_rows_in_a_graph(tmp_path: Path) -> None:
    model = bound(tmp_path, onnx_models.scaled(2), WITH_GRAPHS)
    model.let_batch()
    wrong: list[Array] = []

    def ask(value: float) -> None:
        for number in range(200):
            given = np.full((1 + number % 8, 3), value, np.float32)
            (found,) = model.run(["y"], {"x": given})
            if not (found == value * 2).all():
                wrong.append(found)

    threads = [Thread(target=ask, args=(value,)) for value in (1.0, 2.0, 3.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_outputs_may_be_chosen_and_ordered_in_a_graph(tmp_path: Path) -> None:
    floats = (TensorProto.FLOAT, ["N", 3])
    data = onnx_models.model(
        [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["x"], ["b"])],
        {"x": floats},
        {"a": floats, "b": floats},
    )
    model = bound(tmp_path, data, WITH_GRAPHS)
    model.let_batch()
    b, a = model.run(["b", "a"], {"x": rows(2)})
    np.testing.assert_array_equal(a, -b)
    assert len(model.run(["b"], {"x": rows(2)})) == 1


def test_the_provider_in_use_is_the_one_that_runs_the_nodes() -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(onnx_models.scaled(2), options, providers=["CPUExecutionProvider"])
    assert in_use(session) == "CPUExecutionProvider"


def test_sessions_are_made_so_that_two_fit_on_the_gpu() -> None:
    provider = Provider("cuda", device=1, memory_bytes=2**30, graphs=frozenset({"digits"}))
    (name, options), last = provider.chosen("flights")
    assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options == {
        "device_id": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": str(2**30),
    }
    assert provider.chosen("digits")[0][1]["enable_cuda_graph"] == "1"


def test_tensorrt_leaves_to_cuda_what_it_cannot_run_and_cuda_to_the_cpu() -> None:
    names = [each if isinstance(each, str) else each[0] for each in Provider("tensorrt").chosen("flights")]
    assert names == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert Provider("cpu").chosen("flights") == ["CPUExecutionProvider"] == CPU.chosen()


def test_the_environment_names_device_memory_and_graphs() -> None:
    environment = {
        "DROPFORGE_SERVE_PROVIDER": "cuda",
        "DROPFORGE_SERVE_DEVICE": "1",
        "DROPFORGE_SERVE_GPU_MEM_MB": "4096",
        "DROPFORGE_SERVE_CUDA_GRAPHS": "digits, flights",
    }
    found = wanted(environment)
    assert (found.device, found.memory_bytes, found.graphs) == (1, 4096 * 2**20, {"digits", "flights"})
    with pytest.raises(BadInput, match="DROPFORGE_SERVE_DEVICE is 'first'"):
        wanted(environment | {"DROPFORGE_SERVE_DEVICE": "first"})
