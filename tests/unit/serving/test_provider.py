"""The GPU that was asked for, on a machine that has none."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from dropforge.domain.errors import BadInput, Refused
from dropforge.serving.models import load
from dropforge.serving.provider import CPU, PROBE, Provider, told, wanted
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import deployment
from tests.unit.serving.test_server import Store, serving, until

MISSING = Provider("cuda", "no GPU here")


def test_models_run_on_the_cpu_unless_something_else_is_asked_for(tmp_path: Path) -> None:
    assert wanted({}) == wanted({"DROPFORGE_SERVE_PROVIDER": "cpu"}) == CPU
    assert load(deployment(tmp_path, onnx_models.scaled(2))).provider == "CPUExecutionProvider"
    assert told(CPU) == f"models run on cpu (onnxruntime {onnxruntime.__version__})"


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(BadInput, match="DROPFORGE_SERVE_PROVIDER is 'tpu'; choose cpu, cuda or tensorrt"):
        wanted({"DROPFORGE_SERVE_PROVIDER": "tpu"})


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="built with CUDA")
def test_a_wheel_without_cuda_says_which_to_install() -> None:
    problem = wanted({"DROPFORGE_SERVE_PROVIDER": "cuda"}).problem
    assert problem is not None and "install onnxruntime-gpu[cuda,cudnn]" in problem and "ACCELERATOR=cuda13" in problem


def test_the_probe_is_a_model_that_runs() -> None:
    onnx.checker.check_model(onnx.load_from_string(PROBE))
    session = onnxruntime.InferenceSession(PROBE, providers=CPU.chosen())
    assert session.run(["y"], {"x": np.array([2], np.float32)})[0].tolist() == [-2]


def test_nothing_is_loaded_in_place_of_the_gpu(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no GPU here"):
        load(deployment(tmp_path, onnx_models.scaled(2)), provider=MISSING)


def test_a_server_without_its_gpu_is_live_and_not_ready_and_says_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store()
        store.want("flights", 1, deployment(tmp_path, onnx_models.scaled(1), 1))
        async with serving(store, provider=MISSING) as client:
            await until(lambda: "flights" in store.reports and store.reports["flights"].error == "no GPU here")
            assert not store.reports["flights"].ready
            ready = await client.get("/v2/health/ready")
            assert ready.status == 503
            assert await ready.json() == {"live": True, "ready": False, "error": "no GPU here"}
            assert (await client.get("/v2/health/live")).status == 200

    asyncio.run(scenario())


def test_a_server_that_wants_nothing_served_is_not_ready_without_its_gpu_either() -> None:
    async def scenario() -> None:
        async with serving(Store(), provider=MISSING) as client:
            await asyncio.sleep(0.05)
            assert (await client.get("/v2/health/ready")).status == 503

    asyncio.run(scenario())
