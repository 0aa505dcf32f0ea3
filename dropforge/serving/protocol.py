"""One inference request: Open Inference Protocol JSON (or rows) in, a model's answer as JSON out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from dropforge.domain.errors import BadInput
from dropforge.serving.models import Model
from dropforge.serving.rows import difference, feeds_of_rows
from dropforge.serving.tensors import Feeds, Tensor


class InputTensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw
    parameters: dict[str, Any] | None = None


class OutputWanted(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class InferenceRequest(msgspec.Struct):
    """`inputs` is the protocol's; `rows` is ours: one object per row (or one list, for a model with a single matrix)."""

    id: str | None = None
    inputs: list[InputTensor] | None = None
    rows: list[dict[str, Any] | list[Any]] | None = None
    outputs: list[OutputWanted] | None = None
    parameters: dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(InferenceRequest)


def read_request(body: bytes) -> InferenceRequest:
    """The request in a body. Raises `BadInput` naming the place in the JSON."""
    try:
        request = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"the body is not an inference request (JSON with `inputs` or `rows`): {error}") from error
    if (request.inputs is None) == (request.rows is None):
        found = "neither" if request.inputs is None else "both"
        raise BadInput(f"an inference request holds either `inputs` or `rows`, found {found}")
    return request


def answer(model: Model, endpoint: str, request: InferenceRequest) -> tuple[bytes, Feeds]:
    """Run the model on the request; what it says, encoded, and what it was fed. Raises `BadInput` for what the caller
    can mend and `ModelFailed` for what only another model version can."""
    wanted = _wanted_outputs(model, request.outputs)
    if request.rows is not None:
        feeds = feeds_of_rows(model.inputs, model.columns, request.rows)
    else:
        feeds = _from_inputs(model, request.inputs or [])
    arrays = model.run([tensor.name for tensor in wanted], feeds)
    body = {
        "model_name": endpoint,
        "model_version": str(model.deployment.version),
        "outputs": [tensor.to_json(array) for tensor, array in zip(wanted, arrays, strict=True)],
    }
    if request.id is not None:
        body["id"] = request.id
    return msgspec.json.encode(body), feeds


def _wanted_outputs(model: Model, outputs: Sequence[OutputWanted] | None) -> Sequence[Tensor]:
    if not outputs:
        return model.outputs
    known = {tensor.name: tensor for tensor in model.outputs}
    for output in outputs:
        if output.name not in known:
            raise BadInput(f"unknown output {output.name!r}; choose from {sorted(known)}")
    return [known[name] for name in dict.fromkeys(output.name for output in outputs)]


def _from_inputs(model: Model, inputs: Sequence[InputTensor]) -> Feeds:
    given = {tensor.name: tensor for tensor in inputs}
    wanted = {tensor.name for tensor in model.inputs}
    if given.keys() != wanted or len(given) != len(inputs):
        names = [tensor.name for tensor in inputs]
        raise BadInput(
            f"the model wants the inputs {[str(tensor) for tensor in model.inputs]}, each once; {difference(names, wanted)}"
        )
    feeds: Feeds = {}
    sizes: dict[str, int] = {}
    for tensor in model.inputs:
        found = given[tensor.name]
        if found.datatype != tensor.kind.datatype:
            raise BadInput(f"input {tensor.name!r} wants {tensor.kind.datatype}, found {found.datatype[:40]!r}")
        tensor.check_shape(found.shape, sizes)
        feeds[tensor.name] = tensor.from_json(found.shape, found.data)
    return feeds
