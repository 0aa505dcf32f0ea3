"""The models as a repository, in the words of Triton's clients: what is there, load, unload, configuration, statistics.

What is served is decided by the desired state. Loading brings the models of an endpoint into memory that are desired and are
not there; unloading takes them out until they are loaded again or something else is desired. No file comes in this way.
Every answer is the JSON of Triton's HTTP interface, whose fields are those of its protobuf messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dropforge.domain.endpoints import Deployment
from dropforge.domain.errors import BadInput, Refused
from dropforge.serving.converge import Converger
from dropforge.serving.models import Model
from dropforge.serving.slots import Slot
from dropforge.serving.tensors import Tensor

EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "statistics",
    "parameters",
    "rows",
)

Json = dict[str, Any]


class Repository:
    """On the event loop only. `alone`: no other process answers on this one's port."""

    def __init__(self, converger: Converger, batch_rows: int, alone: bool = True) -> None:
        self._converger = converger
        self._alone = alone
        self._batch_rows = batch_rows

    def index(self, ready: bool = False) -> list[Json]:
        """Every version that is desired; with `ready`, only those that answer."""
        found = [each for slot in self._sorted() for each in _indexed(slot)]
        return [each for each in found if each["state"] == "READY" or not ready]

    async def load(self, endpoint: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Look for what is desired, and have all of it in memory; again: nothing happens. Raises `NotFound`, `BadInput` for
        parameters, and what keeps a model from being loaded."""
        if parameters:
            raise BadInput(
                f"load takes no parameters here, found {sorted(parameters)[:10]}; the desired state says what is loaded, and "
                "a model's file comes from nowhere else"
            )
        self._check_alone()
        await self._converger.load(endpoint)

    async def unload(self, endpoint: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Free the endpoint's models once their requests are answered; again: nothing happens. Raises `NotFound`."""
        unknown = sorted((parameters or {}).keys() - {"unload_dependents"})
        if unknown:
            raise BadInput(f"unload takes the parameter `unload_dependents`, found {unknown[:10]}")
        self._check_alone()
        await self._converger.unload(endpoint)

    def _check_alone(self) -> None:
        if not self._alone:
            raise Refused(
                "several processes answer on this port, and an order would reach one of them; change what is desired, or "
                "start the server without --workers"
            )

    def config(self, endpoint: str, version: str | None = None) -> Json:
        """Triton's `ModelConfig`, of the version named or of the one that answers most. Raises `NotFound` and `Unavailable`."""
        lineup = self._converger.find(endpoint).here()
        model = lineup.version(version) if version is not None else lineup.main
        batched = self._batch_rows if model.batches else 0
        return {
            "name": endpoint,
            "platform": "onnxruntime_onnx",
            "backend": "onnxruntime",
            "version_policy": {"specific": {"versions": [int(each) for each in lineup.versions]}},
            "max_batch_size": batched,
            "input": [_config(each, batched) for each in model.inputs],
            "output": [_config(each, batched) for each in model.outputs],
            "instance_group": [
                {"name": endpoint, "kind": "KIND_GPU" if "CUDA" in model.provider else "KIND_CPU", "count": 1}
            ],
            "default_model_filename": "model.onnx",
            "parameters": {name: {"string_value": value} for name, value in _parameters(model).items()},
            **({"dynamic_batching": {"max_queue_delay_microseconds": 0}} if batched else {}),
        }

    def statistics(self, endpoint: str | None = None, version: str | None = None) -> Json:
        """Of one endpoint, or of all; since the start, also of versions that were unloaded meanwhile and came back. Raises
        `NotFound` and `Unavailable`."""
        slots = self._sorted() if not endpoint else [self._converger.find(endpoint)]
        told: list[Json] = []
        for slot in slots:
            if slot.lineup is None and endpoint:
                slot.here()
            models = slot.lineup.models if slot.lineup else ()
            if version is not None and endpoint and slot.lineup is not None:
                models = (slot.lineup.version(version),)
            for model in models:
                deployment = model.deployment
                counts = slot.counts.get((deployment.model, deployment.version))
                told.append(model.statistics.told(slot.endpoint, deployment.version, counts))
        return {"model_stats": told}

    def _sorted(self) -> list[Slot]:
        return [self._converger.slots[name] for name in sorted(self._converger.slots)]


def _indexed(slot: Slot) -> list[Json]:
    wanted = slot.wanted.deployments if slot.wanted else ()
    loaded = slot.lineup.versions if slot.lineup else []
    named = {str(each.version): _state(slot, each, loaded) for each in wanted}
    # What still answers while something else is desired.
    named |= dict.fromkeys(loaded, ("READY", ""))
    if not named:
        return [{"name": slot.endpoint, "version": "", "state": "UNAVAILABLE", "reason": slot.error or ""}]
    return [
        {"name": slot.endpoint, "version": version, "state": state, "reason": reason}
        for version, (state, reason) in named.items()
    ]


def _state(slot: Slot, deployment: Deployment, loaded: list[str]) -> tuple[str, str]:
    if str(deployment.version) in loaded:
        return "READY", ""
    if slot.absent is not None:
        return "UNAVAILABLE", slot.absent
    if slot.error is not None:
        return "UNAVAILABLE", slot.error
    if slot.lineup is not None and slot.lineup.is_resting(str(deployment.version)):
        return "UNAVAILABLE", "unloaded to make room; loaded again when it is asked for"
    return "LOADING", ""


def _config(tensor: Tensor, batched: int) -> Json:
    kind = "STRING" if tensor.kind.datatype == "BYTES" else tensor.kind.datatype
    return {"name": tensor.name, "data_type": f"TYPE_{kind}", "dims": tensor.shape[1:] if batched else tensor.shape}


def _parameters(model: Model) -> dict[str, str]:
    deployment = model.deployment
    return {
        "model": deployment.model,
        "version": str(deployment.version),
        "dataset_version": str(deployment.dataset_version),
        "sha256": deployment.sha256,
        "provider": model.provider,
    }
