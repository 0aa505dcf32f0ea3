"""An ONNX model on the node: loaded, fed from table columns by name, its answers checked before they count."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pyarrow as pa
import pyarrow.compute as pc

from dropforge.training.labels import Classes, Floats, Ints, class_columns
from dropforge.training.onnx_file import ModelUnusable, self_contained

_FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
_INTS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_TEXT, _BOOL = "tensor(string)", "tensor(bool)"
# Rows in one call: bounds the memory that a wide model needs for its intermediate results.
_ROWS_AT_ONCE = 16_384
# Single precision, summed over the classes; also how far one row alone may differ from the same row in a batch.
_TOLERANCE = 1e-3

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Input:
    """How one input of the model is fed: from one column, or (`columns` of several) as a matrix of them."""

    name: str
    type: str
    rank: int
    columns: tuple[str, ...]
    matrix: bool = False


@dataclass(frozen=True)
class Model:
    """A loaded model and the way its inputs are fed."""

    session: Any
    inputs: tuple[_Input, ...]
    output: str
    classes: tuple[Any, ...] | None

    def answers(self, table: pa.Table) -> Floats:
        """What it answers for every row, in float64: [rows] or [rows, columns]. Rows that it cannot be asked about,
        because a whole-number or true/false input is empty, are NaN. Raises `ModelUnusable`."""
        parts = [
            self._answer(table.slice(start, _ROWS_AT_ONCE)) for start in range(0, max(len(table), 1), _ROWS_AT_ONCE)
        ]
        answers: Floats = np.concatenate(parts)
        if len(table) > 1:
            self._check_one_row_alone(table, answers)
        return answers

    def feed(self, table: pa.Table) -> tuple[dict[str, Array], npt.NDArray[np.bool_]]:
        """What it is fed for the table, and the rows that it cannot be asked about."""
        feed: dict[str, Array] = {}
        unanswerable = np.zeros(len(table), dtype=np.bool_)
        for one in self.inputs:
            feed[one.name], missing = _fed(one, table)
            unanswerable |= missing
        return feed, unanswerable

    def _answer(self, table: pa.Table) -> Floats:
        feed, unanswerable = self.feed(table)
        try:
            (raw,) = self.session.run([self.output], feed)
        except Exception as error:
            raise ModelUnusable(f"it fails on the held-out rows: {_first_line(error)}") from error
        answer = np.asarray(raw, dtype=np.float64)
        if answer.ndim == 0 or len(answer) != len(table) or answer.ndim > 2:
            raise ModelUnusable(
                f"output {self.output!r} has shape {answer.shape} for {len(table)} rows; wanted one line a row"
            )
        answer[unanswerable] = np.nan
        return answer

    def _check_one_row_alone(self, table: pa.Table, answers: Floats) -> None:
        """The server batches as requests come; a model that mixes the rows of a batch would answer at random there."""
        alone = self._answer(table.slice(0, 1))
        if not np.allclose(alone[0], answers[0], rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
            raise ModelUnusable(
                f"it answers {alone[0].tolist()} for the first row alone and {answers[0].tolist()} for the same row in "
                f"a batch of {len(answers)}; a row's answer must not depend on the other rows"
            )


def load_model(path: Path, table: pa.Table, label: str, *, allowed: Sequence[str], order: Sequence[str]) -> Model:
    """Load, and check against the columns it is fed from. Raises `ModelUnusable` with what is wrong.

    `allowed`: columns of the table that may be fed to it. `order`: the columns of a model with one matrix input.
    """
    self_contained(path)
    options = onnxruntime.SessionOptions()
    # Errors reach us as exceptions; warnings about the graph would only fill the user's log.
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelUnusable(f"onnxruntime cannot load it: {_first_line(error)}") from error
    metadata = session.get_modelmeta().custom_metadata_map
    inputs = _matrix_input(session, allowed, _listed(metadata, "features") or order) or _column_inputs(
        session, allowed, label
    )
    _check_columns(inputs, table)
    return Model(session, inputs, _output(session), _listed(metadata, "classes"))


def probabilities(model: Model, table: pa.Table, target: Classes) -> tuple[Floats, Ints]:
    """[rows, C], and the column of each class of the target (-1: the model does not know it). Rows without a usable
    answer are NaN. Raises `ModelUnusable` when the answers are no probabilities."""
    answers = model.answers(table)
    if answers.ndim == 1 or answers.shape[1] == 1:
        positive = answers.reshape(-1)
        answers = np.stack([1.0 - positive, positive], axis=1)
    usable = np.isfinite(answers).all(axis=1)
    finite = answers[usable]
    sums = finite.sum(axis=1)
    outside = (finite < -_TOLERANCE).any(axis=1) | (finite > 1 + _TOLERANCE).any(axis=1)
    wrong = int((outside | (np.abs(sums - 1) > _TOLERANCE)).sum())
    if wrong:
        raise ModelUnusable(
            f"output {model.output!r} holds no probabilities in {wrong} of {len(answers)} rows (the first row is "
            f"{finite[0].tolist()}); wanted numbers from 0 to 1 that sum to 1, one for each class"
        )
    try:
        columns = class_columns(target, answers.shape[1], model.classes)
    except ValueError as error:
        raise ModelUnusable(str(error)) from error
    clipped = np.clip(answers, 0.0, 1.0)
    # An infinity would have become a certainty.
    clipped[~usable] = np.nan
    return clipped, columns


def numbers(model: Model, table: pa.Table) -> Floats:
    """[rows]; rows without a usable answer are NaN. Raises `ModelUnusable`."""
    answers = model.answers(table)
    if answers.ndim == 2 and answers.shape[1] != 1:
        raise ModelUnusable(f"output {model.output!r} has {answers.shape[1]} numbers a row; a regression gives one")
    flat = answers.reshape(-1)
    return np.where(np.isfinite(flat), flat, np.nan)


def _listed(metadata: dict[str, str], key: str) -> tuple[Any, ...] | None:
    """A JSON list in the model's metadata, or None."""
    if key not in metadata:
        return None
    try:
        value = json.loads(metadata[key])
    except ValueError:
        value = None
    if not isinstance(value, list):
        raise ModelUnusable(f"its metadata property {key!r} is {metadata[key]!r}; wanted a JSON list")
    return tuple(value)


def _matrix_input(session: Any, allowed: Sequence[str], order: Sequence[str]) -> tuple[_Input, ...] | None:
    """One single float input [N, F], fed with the feature columns in order; None when inputs are fed by name."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _FLOATS or len(inputs[0].shape) != 2:
        return None
    only, width = inputs[0], inputs[0].shape[1]
    # One column is always fed by name: guessing could feed a champion a column it never saw.
    if width == 1 or (not isinstance(width, int) and only.name in allowed):
        return None
    gone = [name for name in order if name not in allowed]
    if gone:
        raise ModelUnusable(f"it wants columns {gone}; it may be fed from {list(allowed)}")
    if isinstance(width, int) and width != len(order):
        raise ModelUnusable(
            f"input {only.name!r} wants {width} columns; there are {len(order)} features: {list(order)}"
        )
    _check_batch(only)
    return (_Input(only.name, only.type, 2, tuple(order), matrix=True),)


def _column_inputs(session: Any, allowed: Sequence[str], label: str) -> tuple[_Input, ...]:
    inputs = session.get_inputs()
    names = [one.name for one in inputs]
    if label in names:
        raise ModelUnusable(f"it wants the label {label!r} as an input; nobody knows it when the model is asked")
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise ModelUnusable(f"its inputs {unknown} match no column; it may be fed from {list(allowed)}")
    for one in inputs:
        if one.type not in _FLOATS and one.type not in _INTS and one.type not in (_TEXT, _BOOL):
            raise ModelUnusable(f"input {one.name!r} is {one.type}; wanted a float, int64, bool or string tensor")
        _check_batch(one)
        if len(one.shape) > 2 or (len(one.shape) == 2 and isinstance(one.shape[1], int) and one.shape[1] != 1):
            raise ModelUnusable(f"input {one.name!r} has shape {one.shape}; wanted [N, 1] or [N] for one column")
    return tuple(_Input(one.name, one.type, len(one.shape) or 2, (one.name,)) for one in inputs)


def _check_batch(one: Any) -> None:
    if one.shape and isinstance(one.shape[0], int) and one.shape[0] > 0:
        raise ModelUnusable(
            f"input {one.name!r} takes exactly {one.shape[0]} rows at a time; export it with a free first dimension"
        )


def _check_columns(inputs: tuple[_Input, ...], table: pa.Table) -> None:
    for one in inputs:
        for name in one.columns:
            kind = table.schema.field(name).type
            if not _feeds(kind, one.type):
                raise ModelUnusable(f"input {one.name!r} is {one.type} and column {name!r} is {kind}")


def _feeds(kind: pa.DataType, wanted: str) -> bool:
    """Only where there is one way to write the value: 7 as text is "7", but 0.1, true or a date could be several."""
    if pa.types.is_null(kind):
        return True
    if wanted == _TEXT:
        return bool(pa.types.is_string(kind) or pa.types.is_integer(kind))
    if wanted == _BOOL:
        return bool(pa.types.is_boolean(kind))
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _fed(one: _Input, table: pa.Table) -> tuple[Array, npt.NDArray[np.bool_]]:
    """The array for the input, and which rows it cannot say anything about."""
    if one.matrix:
        columns = [_column(table.column(name), one.type)[0] for name in one.columns]
        return np.stack(columns, axis=1), np.zeros(len(table), dtype=np.bool_)
    values, missing = _column(table.column(one.columns[0]), one.type)
    return (values.reshape(-1, 1) if one.rank == 2 else values), missing


def _column(column: pa.ChunkedArray, wanted: str) -> tuple[Array, npt.NDArray[np.bool_]]:
    nothing = np.zeros(len(column), dtype=np.bool_)
    if wanted == _TEXT:
        return pc.fill_null(column.cast(pa.string()), "").to_numpy().astype(object), nothing
    if wanted in _FLOATS:
        return column.cast(pa.float64(), safe=False).to_numpy().astype(_FLOATS[wanted]), nothing
    if wanted == _BOOL:
        filled = pc.fill_null(column.cast(pa.bool_()), False).to_numpy()
        return filled.astype(np.bool_), column.is_null().to_numpy()
    if pa.types.is_floating(column.type):
        numbers = column.to_numpy()
        whole = np.isfinite(numbers) & (numbers == np.floor(numbers))
        return np.where(whole, numbers, 0).astype(_INTS[wanted]), ~whole
    filled = pc.fill_null(column.cast(pa.int64()), 0).to_numpy()
    return filled.astype(_INTS[wanted]), column.is_null().to_numpy()


def _output(session: Any) -> str:
    """The float output that holds the answer: the one called probabilities, else the first."""
    outputs = session.get_outputs()
    floats = [one.name for one in outputs if one.type in _FLOATS]
    if not floats:
        found = {one.name: one.type for one in outputs}
        hint = "; convert with zipmap off" if any("map" in kind for kind in found.values()) else ""
        raise ModelUnusable(f"it has no float output, only {found}{hint}")
    named = [name for name in floats if "prob" in name.lower()]
    return str((named or floats)[0])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
