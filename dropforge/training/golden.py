"""Golden requests: a few held-out rows with what the model answered them here, for the server to ask again before it serves.

    {"requests": [{"inputs": [...], "outputs": [...]}, ...]}

Tensors as the Open Inference Protocol writes them in JSON. `dropforge.serving.golden` reads them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dropforge.training.onnx_model import Model

ROWS = 8
MAX_BYTES = 1024**2
_DATATYPES = {
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(bool)": "BOOL",
    "tensor(string)": "BYTES",
}
_FLOATS = ("tensor(float16)", "tensor(float)", "tensor(double)")

Array = npt.NDArray[Any]


def golden_requests(model: Model, table: pa.Table) -> bytes | None:
    """Rows from all over the table and the model's answers: all of them in one request, and the first alone. Only what it
    answers in numbers: a label that wins by a hair may be another one elsewhere. None when there is nothing to tell."""
    picked = np.unique(np.linspace(0, max(len(table) - 1, 0), min(ROWS, len(table)), dtype=np.int64))
    table = table.take(picked)
    feed, unanswerable = model.feed(table)
    good = np.flatnonzero(~unanswerable & _told(feed, len(table)))
    outputs = [(one.name, _DATATYPES[one.type]) for one in model.session.get_outputs() if one.type in _FLOATS]
    if not len(good) or not outputs:
        return None
    kinds = {one.name: _DATATYPES[one.type] for one in model.session.get_inputs()}
    requests = []
    for rows in (good, good[:1]):
        inputs = {name: array[rows] for name, array in feed.items()}
        answers = model.session.run([name for name, _ in outputs], inputs)
        if any(np.isinf(answer).any() for answer in answers):
            return None
        requests.append(
            {
                "inputs": [_tensor(name, kinds[name], array) for name, array in inputs.items()],
                "outputs": [_tensor(*output, answer) for output, answer in zip(outputs, answers, strict=True)],
            }
        )
    content = json.dumps({"requests": requests}, separators=(",", ":"), allow_nan=False).encode()
    return content if len(content) <= MAX_BYTES else None


def leave(model: Model, table: pa.Table, path: Path) -> None:
    """Write them, where there are any."""
    content = golden_requests(model, table)
    if content is not None:
        path.write_bytes(content)


def _told(feed: dict[str, Array], rows: int) -> npt.NDArray[np.bool_]:
    """The rows that JSON has words for: it has none for an infinity."""
    told = np.ones(rows, dtype=np.bool_)
    for array in feed.values():
        if array.dtype.kind == "f":
            told &= ~np.isinf(array).any(axis=tuple(range(1, array.ndim)))
    return told


def _tensor(name: str, datatype: str, array: Array) -> dict[str, Any]:
    values = array.ravel().tolist()
    if array.dtype.kind == "f":
        values = [None if math.isnan(value) else value for value in values]
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": values}
