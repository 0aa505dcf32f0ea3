"""Rows of a table in JSON, fed to a model by the names of its columns, as the training node feeds it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from dropforge.domain.errors import BadInput
from dropforge.serving.tensors import Array, Feeds, Tensor

Row = dict[str, Any] | list[Any]

# What a column may hold, and how it reads in an error. The rules are those by which the training node feeds a table to a
# model, so that an answer here is the answer that was judged there: an empty cell is NaN or "", a whole number may feed
# a text input, true and false may feed a number.
_CELLS: Mapping[str, tuple[Any, str]] = {
    "f": (list[float | bool | None], "a number, true, false or null (NaN)"),
    "i": (list[int | float], "a whole number"),
    "u": (list[int | float], "a whole number"),
    "b": (list[bool], "true or false"),
    "O": (list[str | int | None], "a string, a whole number or null (an empty string)"),
}


def matrix_columns(inputs: Sequence[Tensor], metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """The names of the columns of a model's one matrix input, when its metadata property `features` (a JSON list) tells
    them; None for a model whose inputs are its columns, and for one that does not tell."""
    if len(inputs) != 1 or len(inputs[0].dims) != 2:
        return None
    try:
        names = json.loads(metadata.get("features", "null"))
    except ValueError:
        return None
    width = inputs[0].dims[1]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        return None
    return tuple(names) if width == len(names) or not isinstance(width, int) else None


def feeds_of_rows(inputs: Sequence[Tensor], columns: Sequence[str] | None, rows: Sequence[Row]) -> Feeds:
    """The arrays for the model's inputs. `columns`: those of its one matrix input, if they are known. Raises `BadInput`
    naming the row and the column."""
    if not rows:
        raise BadInput("`rows` is empty; send at least one row")
    if isinstance(rows[0], list):
        return _positional(inputs, rows)
    if columns is not None:
        cells = _checked(rows, columns)
        table = [_column(inputs[0], name, [row[name] for row in cells]) for name in columns]
        return {inputs[0].name: np.stack(table, axis=1)}
    if not all(_is_column(tensor) for tensor in inputs):
        raise BadInput(
            f"this model does not tell the names of its columns (it wants {[str(tensor) for tensor in inputs]}); "
            "send `inputs`, or, for one input of shape [-1, columns], each row as a list"
        )
    cells = _checked(rows, [tensor.name for tensor in inputs])
    return {
        tensor.name: _column(tensor, tensor.name, [row[tensor.name] for row in cells]).reshape(
            (-1,) if len(tensor.dims) == 1 else (-1, 1)
        )
        for tensor in inputs
    }


def cell_words(tensor: Tensor) -> str:
    """What a column may hold that feeds this input, as an error says it."""
    return _CELLS[tensor.kind.dtype.kind][1]


def difference(found: Iterable[str], wanted: Iterable[str]) -> str:
    """How the names found differ from the names wanted, each once."""
    counts = Counter(list(found))  # of a dict, Counter would take the values for counts
    known = set(wanted)
    parts = {
        "missing": sorted(known - counts.keys()),
        "unknown": sorted(counts.keys() - known),
        "more than once": sorted(name for name, times in counts.items() if times > 1),
    }
    return ", ".join(f"{what} {names}" for what, names in parts.items() if names)


def _is_column(tensor: Tensor) -> bool:
    return len(tensor.dims) < 2 or (
        len(tensor.dims) == 2 and (tensor.dims[1] == 1 or not isinstance(tensor.dims[1], int))
    )


def _checked(rows: Sequence[Row], columns: Sequence[str]) -> list[dict[str, Any]]:
    wanted = set(columns)
    checked: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise BadInput(f"row {number} wants an object with the columns {list(columns)}, found a list")
        if row.keys() != wanted:
            raise BadInput(f"row {number} wants the columns {list(columns)}: {difference(row, wanted)}")
        checked.append(row)
    return checked


def _positional(inputs: Sequence[Tensor], rows: Sequence[Row]) -> Feeds:
    if len(inputs) != 1 or len(inputs[0].dims) != 2:
        raise BadInput(
            f"a row of this model is an object with the columns {[each.name for each in inputs]}, found a list"
        )
    (tensor,) = inputs
    width = tensor.dims[1] if isinstance(tensor.dims[1], int) else len(rows[0])
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != width or not row:
            found = f"{len(row)} values" if isinstance(row, list) else "an object"
            raise BadInput(f"row {number} wants a list of {width or 'one or more'} values, found {found}")
    table = [_column(tensor, str(place), [row[place] for row in rows]) for place in range(width)]  # type: ignore[index]
    return {tensor.name: np.stack(table, axis=1)}


def _column(tensor: Tensor, name: str, cells: list[Any]) -> Array:
    kind, wanted = _CELLS[tensor.kind.dtype.kind]
    try:
        values: list[Any] = msgspec.convert(cells, kind)
    except msgspec.ValidationError as error:
        raise BadInput(_first_wrong(name, cells, kind, tensor, wanted)) from error
    if tensor.kind.dtype.kind in "iu":
        for number, value in enumerate(values):
            if isinstance(value, float) and not value.is_integer():
                raise BadInput(_wrong(number, name, value, tensor, wanted))
        values = [int(value) for value in values]
    elif tensor.kind.dtype.kind == "O":
        values = ["" if value is None else str(value) for value in values]
    return tensor.array(values)


def _first_wrong(name: str, cells: list[Any], kind: Any, tensor: Tensor, wanted: str) -> str:
    for number, cell in enumerate(cells):
        try:
            msgspec.convert([cell], kind)
        except msgspec.ValidationError:
            return _wrong(number, name, cell, tensor, wanted)
    raise AssertionError("every cell converts, and all of them together do not")


def _wrong(number: int, name: str, cell: Any, tensor: Tensor, wanted: str) -> str:
    found = msgspec.json.encode(cell).decode()[:80]
    return f"row {number}, column {name!r} wants {tensor.kind.datatype}: {wanted}; found {found}"
