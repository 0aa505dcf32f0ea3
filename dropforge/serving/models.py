"""A model version from its file to a session that answers: fetched, verified, loaded, warmed up."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import onnxruntime

from dropforge.domain.endpoints import Deployment
from dropforge.domain.errors import BadInput, DropforgeError, NotFound, Refused, Unavailable
from dropforge.domain.names import checked_name
from dropforge.serving.devices import Graphs, Run, in_use, run_of, run_on_cpu, session_on
from dropforge.serving.priority import LONG
from dropforge.serving.protocol import Codec
from dropforge.serving.provider import CPU, Provider
from dropforge.serving.rows import matrix_columns
from dropforge.serving.statistics import Statistics
from dropforge.serving.tensors import KINDS, Array, Feeds, Tensor

# Files from here on are verified apart; starting a program costs 20 ms.
APART_BYTES = 64 * 1024**2
_APART = f"""
import hashlib, os, sys
os.nice(max(0, {LONG} - os.nice(0)))
with open(sys.argv[1], "rb") as file:
    print(hashlib.file_digest(file, "sha256").hexdigest())
"""


class ModelFailed(DropforgeError):
    """The model raised while it ran on inputs that fit its signature."""


class Model:
    """One loaded model version. Safe to run from several threads at once. Raises `BadInput` for a session whose inputs or
    outputs are not all tensors."""

    def __init__(self, deployment: Deployment, session: Any) -> None:
        self.deployment = deployment
        self.key = (deployment.model, deployment.version)
        self.inputs = _tensors("input", session.get_inputs())
        self.outputs = _tensors("output", session.get_outputs())
        self.columns = matrix_columns(self.inputs, session.get_modelmeta().custom_metadata_map)
        self.provider = str(session.get_providers()[0])
        self.load_seconds = 0.0
        self.file_bytes = 0
        # What it took, measured, and in words.
        self.memory_bytes = 0
        self.memory = "not measured"
        self.codec = Codec(self.inputs, self.outputs, self.columns)
        self.statistics = Statistics()
        # Whether requests may be run together: only once it is seen that this changes no answer.
        self.batches = False
        # Seconds that it took for so many rows, when it was tried.
        self.tried: dict[int, float] = {}
        # Only the number of rows differs from request to request; and all inputs are known to have as many.
        self.one_shape = all(isinstance(dim, int) for tensor in self.inputs for dim in tensor.dims[1:])
        rows = {tensor.dims[0] if tensor.dims else None for tensor in self.inputs}
        self.one_rows = len(self.inputs) == 1 or (len(rows) == 1 and rows != {None} and rows != {""})
        self.headers = {
            "dropforge-model": deployment.model,
            "dropforge-version": str(deployment.version),
            "dropforge-dataset-version": str(deployment.dataset_version),
        }
        # How it answers over gRPC, once it has.
        self.voice: Any = None
        self._run: Run = run_on_cpu(session)

    def run_by(self, run: Run, provider: str) -> None:
        """From now on by that means, and say that it is this provider."""
        self._run, self.provider = run, provider

    def let_batch(self) -> None:
        """Its rows do not change each other's answers: requests may be run together."""
        self.batches = True
        if isinstance(self._run, Graphs):
            self._run.begin()

    def run(self, outputs: Sequence[str], feeds: Feeds) -> list[Array]:
        """The outputs, in the order asked for. Raises `ModelFailed`."""
        try:
            return self._run(outputs, feeds)
        except Exception as error:
            raise ModelFailed(f"{self} failed: {_one_line(error)}") from error

    def try_run(self, outputs: Sequence[str], feeds: Feeds) -> list[Array]:
        """Run it before it serves, and remember how long that took. Raises `ModelFailed`."""
        clock = time.thread_time if self.runs_here else time.perf_counter
        began = clock()
        found = self.run(outputs, feeds)
        if self.inputs and (shape := feeds[self.inputs[0].name].shape):
            self.tried[shape[0]] = clock() - began
        return found

    @property
    def runs_here(self) -> bool:
        """Whether it is run by the thread that asks."""
        return self.provider == "CPUExecutionProvider"

    def shape_key(self, feeds: Feeds) -> object:
        """What feeds must have in common to be run together; nothing else has what fits no other."""
        if not self.one_rows and len({array.shape[:1] for array in feeds.values()}) > 1:
            return object()
        return None if self.one_shape else tuple([array.shape[1:] for array in feeds.values()])

    def accepts(self, feeds: Feeds) -> bool:
        """Whether the feeds fit the model's inputs."""
        if feeds.keys() != {tensor.name for tensor in self.inputs}:
            return False
        sizes: dict[str, int] = {}
        try:
            for tensor in self.inputs:
                tensor.check_shape(feeds[tensor.name].shape, sizes)
        except BadInput:
            return False
        return all(feeds[tensor.name].dtype == tensor.kind.dtype for tensor in self.inputs)

    def __str__(self) -> str:
        return f"{self.deployment.model} v{self.deployment.version}"


def load(
    deployment: Deployment,
    fetch: Callable[[Deployment], Path] = lambda deployment: fetch_file(deployment.uri),
    provider: Provider = CPU,
) -> Model:
    """The deployment's model, ready to run. Raises `NotFound` or `Unavailable` when its file cannot be read now,
    `BadInput` for a file that can never be served, and `Refused` where the provider that was asked for is missing."""
    began = time.perf_counter()
    checked_name(deployment.model, "model")
    if provider.problem is not None:
        raise Refused(provider.problem)
    path = fetch(deployment)
    verified = _verified(path, deployment.sha256)
    try:
        # By its path, not as bytes: those would be copied while the interpreter's lock is held, half a second for a
        # large model, and no request is answered meanwhile.
        session, chosen = session_on(provider, path, deployment.model, _options())
    except Exception as error:
        raise BadInput(f"{path} ({verified.st_size} bytes) does not load: {_one_line(error)}") from error
    if _changed_since(path, verified):
        raise Unavailable(f"{path} was written while it was loaded; model files are immutable")
    model = Model(deployment, session)
    if provider.on_gpu:
        model.run_by(run_of(session, chosen, model.inputs, model.outputs, deployment.model), in_use(session))
    model.file_bytes = verified.st_size
    model.load_seconds = time.perf_counter() - began
    return model


def warm_up(model: Model, sample: Feeds | None) -> str:
    """Run the model on made-up rows and on the last request seen; what happened, in words.

    Made-up values may be refused by a good model (an unknown category), so that is only told. A real request that the
    model before it answered is another matter: raises `ModelFailed` when this one cannot.
    """
    if sample is not None and model.accepts(sample):
        _run_twice(model, sample)
        return "answered the last request"
    try:
        _run_twice(model, {tensor.name: made_up(tensor) for tensor in model.inputs})
    except ModelFailed as error:
        return f"did not answer made-up rows: {error}"
    return "answered made-up rows"


def _run_twice(model: Model, feeds: Feeds) -> None:
    # The first run also allocates what later ones use again.
    for _ in range(2):
        model.try_run([tensor.name for tensor in model.outputs], feeds)


def fetch_file(uri: str) -> Path:
    """The file on this machine that a URI names. Raises `NotFound`, and `BadInput` for any other URI."""
    parts = urlsplit(uri)
    if parts.scheme != "file":
        raise BadInput(
            f"cannot fetch {uri!r}: wanted a URI that starts with file:; models in a storage account are served by a server "
            "that was started with it as its --root"
        )
    if parts.netloc not in ("", "localhost"):
        raise BadInput(
            f"cannot fetch {uri!r}: wanted a file on this machine (file:///path), found host {parts.netloc!r}"
        )
    path = Path(url2pathname(parts.path))
    # Of a path that no file can have (a zero byte in it), too, this is false.
    if not path.is_file():
        raise NotFound(f"no model file at {path}")
    return path


def _verified(path: Path, sha256: str) -> os.stat_result:
    """The status of the file with those bytes. Raises `BadInput` for other bytes."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            found = sha256_of(path, status.st_size) or hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Unavailable(f"cannot read the model file {path}: {error.strerror or error}") from error
    if found != sha256.lower():
        raise BadInput(f"{path} ({status.st_size} bytes): wanted sha256 {sha256}, found {found}")
    return status


def sha256_of(path: Path, size: int) -> str | None:
    """Of a large file, read and counted by a program of its own: here it would take the interpreter's lock two thousand
    times for 500 MB, and the file's pages with it. None for a small one, and where that cannot be had."""
    if size < APART_BYTES:
        return None
    command = [sys.executable, "-I", "-S", "-c", _APART, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode().strip() or None


def _changed_since(path: Path, before: os.stat_result) -> bool:
    now = path.stat()
    return (now.st_mtime_ns, now.st_ino, now.st_size) != (before.st_mtime_ns, before.st_ino, before.st_size)


def _options() -> Any:
    options = onnxruntime.SessionOptions()
    # Threads inside one run, and spinning while idle, cost other requests more than they give a small model.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights in a file beside the model are not covered by its sha256, so they are looked for where nothing can be.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    options.log_severity_level = 4
    return options


def _tensors(what: str, declared: Sequence[Any]) -> tuple[Tensor, ...]:
    for node in declared:
        if node.type not in KINDS:
            raise BadInput(
                f"{what} {node.name!r} is a {node.type}; only {sorted(KINDS)} can be served "
                "(a classifier from skl2onnx: convert it with options={'zipmap': False})"
            )
    return tuple(
        Tensor(node.name, KINDS[node.type], tuple(dim if isinstance(dim, int | str) else None for dim in node.shape))
        for node in declared
    )


def made_up(tensor: Tensor) -> Array:
    """One row of nothing."""
    shape = [dim if isinstance(dim, int) else 1 for dim in tensor.dims]
    return np.full(shape, "" if tensor.kind.dtype == object else 0, dtype=tensor.kind.dtype)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
