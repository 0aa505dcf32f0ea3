"""The check of `tests.gpu.check`: on the GPU where there is one, and on the CPU everywhere."""

from __future__ import annotations

import onnxruntime
import pytest

from tests.gpu.check import NO_GPU, main

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def test_the_check_itself_runs_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--provider", "cpu", "--seconds", "0"]) == 0
    assert "graphs for rows [1, 2, 4, 8, 16, 32, 64]" in capsys.readouterr().out


@pytest.mark.skipif(HAS_CUDA, reason="built with CUDA")
def test_without_a_gpu_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seconds", "0"]) == NO_GPU
    assert "NO GPU: DROPFORGE_SERVE_PROVIDER is cuda" in capsys.readouterr().out


@pytest.mark.skipif(
    not HAS_CUDA, reason="NO GPU: this onnxruntime is built without CUDA; nothing here was tried on a GPU"
)
def test_models_answer_on_the_gpu_as_on_the_cpu() -> None:
    assert main(["--seconds", "0.2"]) == 0
