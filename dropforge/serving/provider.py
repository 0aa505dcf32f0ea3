"""What runs the models: the CPU, or a GPU (CUDA, TensorRT) where it was asked for and is really there."""

from __future__ import annotations

import io
import subprocess
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import onnxruntime

from dropforge.domain.errors import BadInput

SETTING = "DROPFORGE_SERVE_PROVIDER"
DEVICE = "DROPFORGE_SERVE_DEVICE"
MEMORY = "DROPFORGE_SERVE_GPU_MEM_MB"
GRAPHS = "DROPFORGE_SERVE_CUDA_GRAPHS"
ENGINES = "DROPFORGE_SERVE_TENSORRT_CACHE"
_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_WANTED = {"cuda": _CUDA, "tensorrt": _TENSORRT}
# y = -x, an ONNX file: a provider that is compiled in is not yet one that finds its driver and libraries.
PROBE = bytes.fromhex(
    "08093a320a0b0a017812017922034e65671201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a001011"
)


@dataclass(frozen=True)
class Provider:
    """`name` as `DROPFORGE_SERVE_PROVIDER` has it. `problem`: why it cannot be used, and what to do about it."""

    name: str
    problem: str | None = None
    # The GPU's number, and the most of its memory that a session's arena may take; None: what is there.
    device: int = 0
    memory_bytes: int | None = None
    # Names of the models whose runs are captured as CUDA graphs.
    graphs: frozenset[str] = frozenset()
    # Where TensorRT keeps the engines it builds, which takes minutes; None: built at each load.
    engines: str | None = None
    # What tensors are bound to.
    device_type: str = "cuda"

    @property
    def on_gpu(self) -> bool:
        return self.name != "cpu"

    def chosen(self, model: str = "") -> list[Any]:
        """What a session of that model is made with. The CPU runs what the GPU has no kernel for."""
        if not self.on_gpu:
            return [_CPU]
        # While models are swapped the GPU holds both; an arena that doubles as it grows would not leave the room.
        cuda: dict[str, str] = {"device_id": str(self.device), "arena_extend_strategy": "kSameAsRequested"}
        if self.memory_bytes is not None:
            cuda["gpu_mem_limit"] = str(self.memory_bytes)
        if model in self.graphs:
            cuda["enable_cuda_graph"] = "1"
        if self.name == "cuda":
            return [(_CUDA, cuda), _CPU]
        tensorrt = {"device_id": str(self.device), "trt_fp16_enable": "0"}
        if self.memory_bytes is not None:
            tensorrt["trt_max_workspace_size"] = str(self.memory_bytes)
        if model in self.graphs:
            tensorrt["trt_cuda_graph_enable"] = "1"
        if self.engines is not None:
            tensorrt |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": self.engines}
        return [(_TENSORRT, tensorrt), (_CUDA, {k: v for k, v in cuda.items() if k != "enable_cuda_graph"}), _CPU]


CPU = Provider("cpu")


def wanted(environment: Mapping[str, str]) -> Provider:
    """The provider that the environment asks for, tried; the images name the CUDA they were built with (`cuda13`). Raises
    `BadInput` that names the setting."""
    name = environment.get(SETTING) or "cpu"
    name = "cuda" if name in ("cuda12", "cuda13") else name
    if name not in ("cpu", *_WANTED):
        raise BadInput(f"setting {SETTING} is {name!r}; choose cpu, cuda or tensorrt")
    if name == "cpu":
        return CPU
    device = _number(environment, DEVICE, "the number of a GPU") or 0
    megabytes = _number(environment, MEMORY, "a whole number of megabytes")
    graphs = frozenset(filter(None, (each.strip() for each in environment.get(GRAPHS, "").split(","))))
    memory = megabytes * 2**20 if megabytes else None
    return Provider(name, _problem(name, device), device, memory, graphs, environment.get(ENGINES) or None)


def _number(environment: Mapping[str, str], name: str, what: str) -> int | None:
    text = environment.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise BadInput(f"setting {name} is {text[:80]!r}; it must be {what}")
    return int(text)


def _problem(name: str, device: int) -> str | None:
    """Why that provider cannot be used here, or None."""
    have, provider = f"onnxruntime {onnxruntime.__version__}", _WANTED[name]
    if provider not in onnxruntime.get_available_providers():
        return (
            f"{SETTING} is {name}, and {have} here is built without it; install onnxruntime-gpu[cuda,cudnn] in its place "
            "(the image: build it with ACCELERATOR=cuda13 or cuda12)"
        )
    said = io.StringIO()
    try:
        with redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The libraries that came as wheels.
            onnxruntime.preload_dlls()
            chosen = [(provider, {"device_id": str(device)})]
            used = onnxruntime.InferenceSession(PROBE, providers=chosen).get_providers()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is why there is no GPU
        used = []
        said.write(f" {error}")
    if provider in used:
        return None
    found = " ".join(said.getvalue().split())[:500]
    tensorrt = ", the libraries of TensorRT 10 (the wheel tensorrt)" if name == "tensorrt" else ""
    return (
        f"{SETTING} is {name}, and {have} for CUDA {getattr(onnxruntime, 'cuda_version', '') or '?'} finds no GPU {device} it "
        "can use; wanted an NVIDIA driver of 580 or newer for CUDA 13 (525 for CUDA 12), the GPU given to the container, and "
        f"the wheels of onnxruntime-gpu[cuda,cudnn]{tensorrt}; found {found or 'no library that fails to load'}; "
        f"nvidia-smi: {smi()}"
    )


def smi() -> str:
    """The GPUs and their driver, as nvidia-smi names them, or why it does not."""
    try:
        done = _asked("name,driver_version,memory.total")
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return " ".join((done.stdout + done.stderr).split())[:300] or f"exit code {done.returncode}"


def gpus_here() -> tuple[str, ...]:
    """The numbers of all GPUs that this process sees; none where nobody tells."""
    try:
        found = _asked("index").stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(found) if all(each.isdigit() for each in found) else ()


def _asked(what: str) -> subprocess.CompletedProcess[str]:
    query = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)


def told(provider: Provider) -> str:
    """What runs the models, in words for the log."""
    with_gpu = f"; nvidia-smi: {smi()}" if provider.on_gpu else ""
    place = f"{provider.name} {provider.device}" if provider.on_gpu else provider.name
    return f"models run on {place} (onnxruntime {onnxruntime.__version__}{with_gpu})"
