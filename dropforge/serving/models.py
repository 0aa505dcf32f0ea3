"""A model version from its file to a session that answers: fetched, verified, loaded, warmed up."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import onnxruntime

from dropforge.domain.endpoints import Deployment
from dropforge.domain.errors import BadInput, DropforgeError, NotFound, Unavailable
from dropforge.domain.names import checked_name
from dropforge.serving.rows import matrix_columns
from dropforge.serving.tensors import KINDS, Array, Feeds, Tensor


class ModelFailed(DropforgeError):
    """The model raised while it ran on inputs that fit its signature."""


class Model:
    """One loaded model version. Safe to run from several threads at once. Raises `BadInput` for a session whose inputs or
    outputs are not all tensors."""

    def __init__(self, deployment: Deployment, session: Any) -> None:
        self.deployment = deployment
        self.inputs = _tensors("input", session.get_inputs())
        self.outputs = _tensors("output", session.get_outputs())
        self.columns = matrix_columns(self.inputs, session.get_modelmeta().custom_metadata_map)
        self.load_seconds = 0.0
        # The longest that a small request took lately. It starts high: a new model has to show that it is fast.
        self.small_seconds = 0.01
        self.headers = {
            "dropforge-model": deployment.model,
            "dropforge-version": str(deployment.version),
            "dropforge-dataset-version": str(deployment.dataset_version),
        }
        self._session = session

    def run(self, outputs: Sequence[str], feeds: Feeds) -> list[Array]:
        """The outputs, in the order asked for. Raises `ModelFailed`."""
        try:
            return self._session.run(outputs, feeds)  # type: ignore[no-any-return]
        except Exception as error:
            raise ModelFailed(f"{self} failed: {_one_line(error)}") from error

    def took(self, seconds: float) -> None:
        """Remember how long a small request took; one that took long is remembered for a hundred that did not."""
        self.small_seconds = max(seconds, 0.95 * self.small_seconds)

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


def load(deployment: Deployment) -> Model:
    """The deployment's model, ready to run. Raises `NotFound` or `Unavailable` when its file cannot be read now, and
    `BadInput` for a file that can never be served."""
    began = time.perf_counter()
    checked_name(deployment.model, "model")
    path = fetch(deployment.uri)
    verified = _verified(path, deployment.sha256)
    try:
        # By its path, not as bytes: those would be copied while the interpreter's lock is held, half a second for a
        # large model, and no request is answered meanwhile.
        session = onnxruntime.InferenceSession(str(path), _options(), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BadInput(f"{path} ({verified.st_size} bytes) does not load: {_one_line(error)}") from error
    if _changed_since(path, verified):
        raise Unavailable(f"{path} was written while it was loaded; model files are immutable")
    model = Model(deployment, session)
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
        _run_twice(model, {tensor.name: _made_up(tensor) for tensor in model.inputs})
    except ModelFailed as error:
        return f"did not answer made-up rows: {error}"
    return "answered made-up rows"


def _run_twice(model: Model, feeds: Feeds) -> None:
    # The first run also allocates what later ones use again.
    for _ in range(2):
        model.run([tensor.name for tensor in model.outputs], feeds)


def fetch(uri: str) -> Path:
    """The file that holds what is at a URI. Raises `NotFound`, `Unavailable`, or `BadInput` for a scheme nobody fetches."""
    scheme = urlsplit(uri).scheme
    if scheme not in FETCHERS:
        raise BadInput(f"cannot fetch {uri!r}: wanted a URI that starts with one of {[f'{s}:' for s in FETCHERS]}")
    return FETCHERS[scheme](uri)


def _fetch_file(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise BadInput(
            f"cannot fetch {uri!r}: wanted a file on this machine (file:///path), found host {parts.netloc!r}"
        )
    path = Path(url2pathname(parts.path))
    # Of a path that no file can have (a zero byte in it), too, this is false.
    if not path.is_file():
        raise NotFound(f"no model file at {path}")
    return path


FETCHERS: Mapping[str, Callable[[str], Path]] = {"file": _fetch_file}


def _verified(path: Path, sha256: str) -> os.stat_result:
    """The status of the file with those bytes. Raises `BadInput` for other bytes."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Unavailable(f"cannot read the model file {path}: {error.strerror or error}") from error
    if found != sha256.lower():
        raise BadInput(f"{path} ({status.st_size} bytes): wanted sha256 {sha256}, found {found}")
    return status


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


def _made_up(tensor: Tensor) -> Array:
    shape = [dim if isinstance(dim, int) else 1 for dim in tensor.dims]
    return np.full(shape, "" if tensor.kind.dtype == object else 0, dtype=tensor.kind.dtype)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
