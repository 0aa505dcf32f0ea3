"""Golden requests: a few rows with the answers that the model gave where it was judged, asked again before it serves."""

from __future__ import annotations

import msgspec
import numpy as np

from dropforge.domain.errors import BadInput
from dropforge.serving.models import Model, ModelFailed
from dropforge.serving.protocol import InputTensor
from dropforge.serving.tensors import Array

# A file of a few rows; more is something else.
MAX_BYTES = 4 * 1024**2


class _Request(msgspec.Struct):
    inputs: msgspec.Raw
    outputs: list[InputTensor]


class _Golden(msgspec.Struct):
    requests: list[_Request]
    relative: float = 1e-3
    absolute: float = 1e-4


def check_golden(model: Model, content: bytes) -> str:
    """Ask the model all of them; what was seen, in words. Raises `BadInput` when it answers otherwise, and for a file that
    is none."""
    try:
        golden = msgspec.json.decode(content, type=_Golden)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"the golden requests of {model} cannot be read: {error}") from error
    rows = 0
    for number, request in enumerate(golden.requests):
        try:
            ask = model.codec.read(msgspec.json.encode({"inputs": request.inputs}))
        except BadInput as error:
            raise BadInput(f"golden request {number} is none for {model}: {error.message}") from error
        known = {tensor.name: tensor for tensor in model.outputs}
        names = [each.name for each in request.outputs]
        if not names or not known.keys() >= set(names):
            raise BadInput(f"golden request {number} tells the outputs {names}; {model} has {sorted(known)}")
        try:
            answers = model.run(names, ask.feeds)
        except ModelFailed as error:
            raise BadInput(f"golden request {number} was answered where the model was judged; here {error}") from error
        for wanted, found in zip(request.outputs, answers, strict=True):
            expected = known[wanted.name].from_json(wanted.shape, wanted.data)
            if (wrong := _difference(expected, found, golden)) is not None:
                raise BadInput(f"{model} answers golden request {number} otherwise: output {wanted.name!r} {wrong}")
        rows += ask.rows
    return f"answered {rows} golden rows as where it was judged"


def _difference(expected: Array, found: Array, golden: _Golden) -> str | None:
    if expected.shape != found.shape:
        return f"has shape {list(found.shape)}, wanted {list(expected.shape)}"
    if expected.dtype.kind != "f":
        same = expected == found
    else:
        # Half precision has three digits.
        scale = 10.0 if expected.dtype.itemsize == 2 else 1.0
        same = np.isclose(found, expected, golden.relative * scale, golden.absolute * scale, equal_nan=True)
    if bool(np.all(same)):
        return None
    place = tuple(int(each) for each in np.argwhere(~np.asarray(same, bool))[0])
    return f"is {found[place]} at {list(place)}, wanted {expected[place]}"
