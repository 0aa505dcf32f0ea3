"""Columns of a table, fed to a model by the rules of `rows`: what a row here is answered is what it is answered there.

A whole block of rows is looked at at once; the rows that do not fit are told with the reason, and left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dropforge.adapters.tabular.kinds import convert
from dropforge.domain.errors import BadInput
from dropforge.serving.rows import cell_words
from dropforge.serving.tensors import Array, Feeds, Tensor

Mask: TypeAlias = npt.NDArray[np.bool_]


@dataclass
class Fed:
    """The arrays for the model's inputs, of the rows that fit only; which those are; and why each other does not."""

    feeds: Feeds
    fits: Mask
    reasons: dict[int, str] = field(default_factory=dict)


class Feeder:
    """Feeds one model. `columns`: those of its one matrix input, where it has one. Raises `BadInput` for a model that takes no
    columns of a table."""

    def __init__(self, inputs: Sequence[Tensor], columns: Sequence[str] | None) -> None:
        self._inputs = tuple(inputs)
        self._matrix = columns is not None
        if columns is not None:
            if len(inputs) != 1:
                raise BadInput(f"the model has {len(inputs)} inputs, which are its columns; leave --columns out")
            (matrix,) = inputs
            width = matrix.dims[1] if len(matrix.dims) == 2 else 0
            if isinstance(width, int) and width != len(columns):
                raise BadInput(f"the model wants {matrix}, found {len(columns)} columns: {list(columns)}")
            self._fed = tuple((name, matrix) for name in columns)
        elif all(_is_column(tensor) for tensor in inputs):
            self._fed = tuple((tensor.name, tensor) for tensor in inputs)
        else:
            raise BadInput(
                f"the model does not tell which columns it is fed with (it wants {[str(tensor) for tensor in inputs]}); name "
                "those of its matrix with --columns, or export it with one input of shape [N, 1] for each column"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that it wants."""
        return tuple(name for name, _ in self._fed)

    def feed(self, values: Mapping[str, pa.Array], length: int) -> Fed:
        fits: Mask = np.ones(length, np.bool_)
        reasons: dict[int, str] = {}
        read: list[Array] = []
        for name, tensor in self._fed:
            array, wrong = _column(tensor, values[name])
            for place in np.flatnonzero(wrong & fits).tolist():
                reasons[place] = _reason(name, tensor, values[name][place])
            fits &= ~wrong
            read.append(array)
        kept = read if fits.all() else [array[fits] for array in read]
        if self._matrix:
            return Fed({self._inputs[0].name: np.stack(kept, axis=1)}, fits, reasons)
        feeds = {
            tensor.name: array.reshape((-1,) if len(tensor.dims) == 1 else (-1, 1))
            for tensor, array in zip(self._inputs, kept, strict=True)
        }
        return Fed(feeds, fits, reasons)


def _is_column(tensor: Tensor) -> bool:
    dims = tensor.dims
    return bool(dims) and not isinstance(dims[0], int) and (len(dims) == 1 or (len(dims) == 2 and dims[1] in (1, None)))


def _column(tensor: Tensor, values: pa.Array) -> tuple[Array, Mask]:
    """The values as the input has them, and which of them it cannot have."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = tensor.kind.dtype.kind
    if kind == "O":
        return _texts(values)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        # As the tables read text where they hold a number.
        converted = convert(values, {"f": "double", "b": "bool"}.get(kind, "int64"), limit=None)
        found, wrong = _column(tensor, converted.values)
        wrong[list(converted.bad)] = True
        return found, wrong
    if kind == "f":
        return _floats(tensor, values)
    return _truths(values) if kind == "b" else _whole(tensor, values)


def _texts(values: pa.Array) -> tuple[Array, Mask]:
    types = pa.types
    kind = values.type
    if not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)):
        return np.full(len(values), "", object), values.is_valid().to_numpy(zero_copy_only=False)
    texts = pc.fill_null(values.cast(pa.string()), "")
    return texts.to_numpy(zero_copy_only=False).astype(object), np.zeros(len(values), np.bool_)


def _floats(tensor: Tensor, values: pa.Array) -> tuple[Array, Mask]:
    types = pa.types
    kind, dtype = values.type, tensor.kind.dtype
    if not (_is_number(kind) or types.is_boolean(kind) or types.is_decimal(kind) or types.is_null(kind)):
        return np.full(len(values), np.nan, dtype), values.is_valid().to_numpy(zero_copy_only=False)
    if not values.null_count and kind == pa.from_numpy_dtype(dtype):
        return values.to_numpy(), np.zeros(len(values), np.bool_)
    wide = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        found: Array = wide.astype(dtype)
    return found, np.isinf(found) & np.isfinite(wide)


def _whole(tensor: Tensor, values: pa.Array) -> tuple[Array, Mask]:
    dtype = tensor.kind.dtype
    limits = np.iinfo(dtype)
    nothing = values.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_integer(values.type):
        numbers = pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
        wrong = nothing | (numbers < limits.min) | (numbers > limits.max)
    elif pa.types.is_floating(values.type):
        # Of doubles that are whole, those within the limits: the largest of 64 bits are none.
        numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        with np.errstate(invalid="ignore"):
            within = (numbers >= float(limits.min)) & (numbers < float(limits.max) + 1)
        wrong = nothing | ~(within & (numbers == np.floor(numbers)))
    else:
        return np.zeros(len(values), dtype), np.ones(len(values), np.bool_)
    return np.where(wrong, 0, numbers).astype(dtype), wrong


def _truths(values: pa.Array) -> tuple[Array, Mask]:
    if not pa.types.is_boolean(values.type):
        return np.zeros(len(values), np.bool_), np.ones(len(values), np.bool_)
    return pc.fill_null(values, False).to_numpy(zero_copy_only=False), values.is_null().to_numpy(zero_copy_only=False)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _reason(name: str, tensor: Tensor, value: Any) -> str:
    return f"column {name!r} wants {tensor.kind.datatype}: {cell_words(tensor)}; found {shown(value.as_py())}"


def shown(value: object) -> str:
    """A cell as a reason shows it."""
    try:
        return msgspec.json.encode(value, enc_hook=str).decode()[:80]
    except (TypeError, ValueError):
        return repr(value)[:80]


# ------------------------------------------------------------------------------------------------ answers
def output_type(tensor: Tensor) -> pa.DataType:
    """How a table holds an output: one value a row, or a list of so many. Raises `BadInput` when it is not one line a row."""
    value = pa.string() if tensor.kind.dtype.kind == "O" else pa.from_numpy_dtype(tensor.kind.dtype)
    if not tensor.dims or isinstance(tensor.dims[0], int):
        raise BadInput(f"output {tensor} does not hold one line for each row; its first dimension must be free")
    rest = tensor.dims[1:]
    if rest in ((), (1,)):
        return value
    if not all(isinstance(dim, int) for dim in rest):
        return pa.list_(value)
    return pa.list_(value, int(np.prod([dim for dim in rest if isinstance(dim, int)])))


def output_column(tensor: Tensor, kind: pa.DataType, array: Array) -> pa.Array:
    """The output of some rows as that type; of more than two dimensions, flat in row-major order."""
    rows = array.shape[0]
    flat = array.reshape(-1)
    if tensor.kind.dtype.kind == "O":
        values = pa.array(
            [each if isinstance(each, str) else bytes(each).decode() for each in flat.tolist()], pa.string()
        )
    else:
        values = pa.array(np.ascontiguousarray(flat))
    if kind == values.type:
        return values
    width = flat.size // rows if rows else 0
    if isinstance(kind, pa.FixedSizeListType):
        return pa.FixedSizeListArray.from_arrays(values, type=kind)
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * width), values)
