"""How a session is run: as it is on the CPU; on a GPU with inputs and outputs bound to the device, or replayed as a graph.

Everything but the name of the device is the same on the CPU, where it is tested.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import onnxruntime

from dropforge.serving.provider import Provider
from dropforge.serving.tensors import Array, Feeds, Tensor

log = logging.getLogger(__name__)

Run: TypeAlias = Callable[[Sequence[str], Feeds], list[Array]]

# Rows that graphs are captured for. A request is filled up to the next of them; a larger one is run without a graph.
GRAPH_ROWS = (1, 2, 4, 8, 16, 32, 64)


def session_on(provider: Provider, path: Path, model: str, options: Any) -> tuple[Any, Provider]:
    """A session on that provider, and the provider as it could be used: a model of which a part has no place on the GPU is not
    captured as a graph. Raises what onnxruntime raises, also where it would quietly have gone on with the CPU."""
    if provider.on_gpu:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=provider.chosen(model), enable_fallback=False
        )
    except Exception as error:
        if model not in provider.graphs:
            raise
        log.warning("%s runs without CUDA graphs: %s", model, " ".join(str(error).split())[:300])
        return session_on(replace(provider, graphs=frozenset()), path, model, options)
    wanted = provider.chosen(model)[0]
    if provider.on_gpu and wanted[0] not in session.get_providers():
        raise RuntimeError(f"wanted {wanted[0]}, onnxruntime took {session.get_providers()}")
    return session, provider


def run_on_cpu(session: Any) -> Run:
    """What runs a session on the CPU. Not by way of its own `run`, which looks through all inputs again for what they cannot
    be here (missing, on another device): for a small model that is a sixth of its time."""
    inner = getattr(session, "_sess", None)
    if inner is None:
        return session.run  # type: ignore[no-any-return]
    return lambda outputs, feeds: inner.run(outputs, feeds, None)


def run_of(session: Any, provider: Provider, inputs: Sequence[Tensor], outputs: Sequence[Tensor], model: str) -> Run:
    """What runs the session, on the device that it was made for."""
    if provider.name == "cpu" or any(tensor.kind.dtype.kind == "O" for tensor in (*inputs, *outputs)):
        # Strings cannot be bound, and have no place on a GPU anyway.
        return run_on_cpu(session)
    bound = Bound(session, provider.device_type, provider.device)
    if model in provider.graphs and _has_fixed_rows(inputs) and _has_fixed_rows(outputs):
        return Graphs(session, bound, provider.device_type, provider.device, inputs, outputs)
    return bound


def in_use(session: Any) -> str:
    """The provider that runs most of the model's nodes: the one that was asked for may have got none of them."""
    nodes: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        nodes[part.ep_name] += len(part.get_nodes())
    return str(max(nodes, key=lambda name: nodes[name], default=session.get_providers()[0]))


class Bound:
    """Runs with inputs and outputs bound: what is computed on the device crosses to it and back once. Of several threads."""

    def __init__(self, session: Any, device_type: str, device: int) -> None:
        self._session = session
        self._place = (device_type, device)
        self._options = onnxruntime.RunOptions()
        # Of a session with graphs: not this time.
        self._options.add_run_config_entry("gpu_graph_id", "-1")

    def __call__(self, outputs: Sequence[str], feeds: Feeds) -> list[Array]:
        # A binding for each run costs microseconds, and lets several threads run at once.
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array if array.flags.c_contiguous else np.ascontiguousarray(array))
        for name in outputs:
            binding.bind_output(name, *self._place)
        self._session.run_with_iobinding(binding, self._options)
        return binding.copy_outputs_to_cpu()  # type: ignore[no-any-return]


class _Captured:
    """The buffers of one captured graph: what is in the inputs when it is replayed is what it computes."""

    def __init__(self, session: Any, place: tuple[str, int], number: int, inputs: Feeds, outputs: list[Array]) -> None:
        self.inputs = {name: _buffer(array, place) for name, array in inputs.items()}
        self.outputs = [_buffer(array, place) for array in outputs]
        self.binding = session.io_binding()
        for name, value in self.inputs.items():
            self.binding.bind_ortvalue_input(name, value)
        for tensor, value in zip(session.get_outputs(), self.outputs, strict=True):
            self.binding.bind_ortvalue_output(tensor.name, value)
        self.options = onnxruntime.RunOptions()
        self.options.add_run_config_entry("gpu_graph_id", str(number))


class Graphs:
    """Replays a graph that was captured for the number of rows, filled up with zeros to the next such number. Only for a
    model of which nothing varies but the rows, and whose rows do not change each other's answers."""

    def __init__(
        self,
        session: Any,
        bound: Bound,
        device_type: str,
        device: int,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
    ) -> None:
        self._session = session
        self._bound = bound
        self._place = (device_type, device)
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._captured: dict[int, _Captured] = {}
        # The buffers are one request's at a time.
        self._lock = Lock()

    def begin(self) -> None:
        """Capture every graph, now that rows are known to be each for itself; until then, and where that fails, every run is an
        ordinary one."""
        try:
            captured = {rows: self._capture(number, rows) for number, rows in enumerate(GRAPH_ROWS, 1)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the model runs without
            log.warning("no CUDA graphs: %s", " ".join(str(error).split())[:300])
            return
        self._captured = captured

    def __call__(self, outputs: Sequence[str], feeds: Feeds) -> list[Array]:
        rows = next(iter(feeds.values())).shape[0]
        wanted = next((each for each in self._captured if each >= rows > 0), None)
        if wanted is None:
            return self._bound(outputs, feeds)
        captured = self._captured[wanted]
        with self._lock:
            for name, array in feeds.items():
                captured.inputs[name].update_inplace(_filled(array, wanted))
            self._session.run_with_iobinding(captured.binding, captured.options)
            found = {
                tensor.name: np.array(value.numpy()[:rows])
                for tensor, value in zip(self._outputs, captured.outputs, strict=True)
                if tensor.name in outputs
            }
        return [found[name] for name in outputs]

    def _capture(self, number: int, rows: int) -> _Captured:
        inputs = {tensor.name: np.zeros(_shape(tensor, rows), tensor.kind.dtype) for tensor in self._inputs}
        outputs = [np.zeros(_shape(tensor, rows), tensor.kind.dtype) for tensor in self._outputs]
        captured = _Captured(self._session, self._place, number, inputs, outputs)
        # onnxruntime runs it as often as it must before it captures.
        self._session.run_with_iobinding(captured.binding, captured.options)
        return captured


def _buffer(array: Array, place: tuple[str, int]) -> Any:
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(array.shape), array.dtype.type, *place)
    value.update_inplace(array)
    return value


def _has_fixed_rows(tensors: Sequence[Tensor]) -> bool:
    """Whether the first dimension is the rows, and every other a size."""
    return all(
        tensor.dims and not isinstance(tensor.dims[0], int) and all(isinstance(dim, int) for dim in tensor.dims[1:])
        for tensor in tensors
    )


def _shape(tensor: Tensor, rows: int) -> list[int]:
    return [rows, *(dim for dim in tensor.dims[1:] if isinstance(dim, int))]


def _filled(array: Array, rows: int) -> Array:
    if array.shape[0] == rows:
        return array
    filled = np.zeros((rows, *array.shape[1:]), array.dtype)
    filled[: array.shape[0]] = array
    return filled
