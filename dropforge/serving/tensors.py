"""Tensors at the edge: JSON values to arrays and back, checked against what the model declares."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import chain
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from dropforge.domain.errors import BadInput
from dropforge.serving import large

Array: TypeAlias = npt.NDArray[Any]
Feeds: TypeAlias = dict[str, Array]

# Values converted in one go. A conversion holds the interpreter's lock, and with it every other request.
PIECE = 16_384
# Of an input whose rank the model leaves open.
MAX_RANK = 16


@dataclass(frozen=True)
class Kind:
    """One element type: its name in the Open Inference Protocol, in numpy, and what JSON must hold for it."""

    datatype: str
    dtype: np.dtype[Any]
    python: Any

    @property
    def any_bytes(self) -> bool:
        """Whether any bytes, of the right number, are values of it."""
        return self.dtype.kind not in "Ob"


# By the names onnxruntime gives them. A JSON null is a NaN: JSON has no other word for it, and a missing value is an
# everyday thing in a table.
KINDS = {
    "tensor(float16)": Kind("FP16", np.dtype(np.float16), float | None),
    "tensor(float)": Kind("FP32", np.dtype(np.float32), float | None),
    "tensor(double)": Kind("FP64", np.dtype(np.float64), float | None),
    "tensor(int8)": Kind("INT8", np.dtype(np.int8), int),
    "tensor(int16)": Kind("INT16", np.dtype(np.int16), int),
    "tensor(int32)": Kind("INT32", np.dtype(np.int32), int),
    "tensor(int64)": Kind("INT64", np.dtype(np.int64), int),
    "tensor(uint8)": Kind("UINT8", np.dtype(np.uint8), int),
    "tensor(uint16)": Kind("UINT16", np.dtype(np.uint16), int),
    "tensor(uint32)": Kind("UINT32", np.dtype(np.uint32), int),
    "tensor(uint64)": Kind("UINT64", np.dtype(np.uint64), int),
    "tensor(bool)": Kind("BOOL", np.dtype(np.bool_), bool),
    "tensor(string)": Kind("BYTES", np.dtype(np.object_), str),
}


@dataclass(frozen=True)
class Tensor:
    """One input or output as the model declares it. A dimension is a size, a name, or None; the last two vary."""

    name: str
    kind: Kind
    dims: tuple[int | str | None, ...]

    @property
    def shape(self) -> list[int]:
        """As the protocol writes it: -1 where it varies."""
        return [dim if isinstance(dim, int) else -1 for dim in self.dims]

    def __str__(self) -> str:
        return f"{self.name} {self.kind.datatype}{self.shape}"

    def check_shape(self, shape: Sequence[int], sizes: dict[str, int]) -> None:
        """Raises `BadInput` unless an array of that shape fits; `sizes` remembers what named dimensions were."""
        # onnxruntime reports no dimensions both for a scalar and for an input of any rank.
        dims = self.dims or (None,) * min(len(shape), MAX_RANK)
        if len(shape) != len(dims) or not all(
            have == want if isinstance(want, int) else have > 0 for have, want in zip(shape, dims, strict=True)
        ):
            raise BadInput(f"input {self.name!r} wants shape {self.shape} (-1: any size above 0), found {list(shape)}")
        for have, want in zip(shape, dims, strict=True):
            if isinstance(want, str) and want and sizes.setdefault(want, have) != have:
                raise BadInput(
                    f"input {self.name!r} has size {have} where other inputs have {sizes[want]} "
                    f"(dimension {want!r}); all inputs of a request hold the same number of rows"
                )

    def from_json(self, shape: Sequence[int], data: msgspec.Raw | memoryview) -> Array:
        """The array that a JSON list holds: flat in row-major order, or nested as the shape says. Raises `BadInput`."""
        view = memoryview(data)
        depth = len(shape) if shape and large.holds_lists(view) else 1
        try:
            if len(view) > large.LARGE_BYTES:
                return self._in_pieces(shape, view, depth)
            values = _decoder(self.kind, depth).decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadInput(
                f"input {self.name!r} of shape {list(shape)} wants {self._wanted} in `data`: {error}"
            ) from error
        if depth > 1:
            if len(values) != shape[0]:
                raise BadInput(
                    f"input {self.name!r}: `data` holds {len(values)} lists, shape {list(shape)} wants {shape[0]}"
                )
            for size in shape[1:]:
                values = self._flattened(values, size, shape)
        return self.shaped(values, shape)

    def _in_pieces(self, shape: Sequence[int], data: memoryview, depth: int) -> Array:
        dims = list(shape)
        # What holds one list is no list of many.
        while depth > 1 and dims[0] == 1:
            data, dims, depth = large.inside(data), dims[1:], depth - 1
        ends = large.lists(depth - 1) if depth > 1 else large.TEXTS if self.kind.python is str else large.NUMBERS
        arrays: list[Array] = []
        for values in large.pieces(_decoder(self.kind, depth), data, ends):
            for size in dims[1:] if depth > 1 else ():
                values = self._flattened(values, size, shape)
            arrays.append(self.array(values))
        found = sum([len(array) for array in arrays])
        if found != math.prod(shape):
            raise self._other_number(found, shape)
        return np.concatenate(arrays).reshape(shape)

    def shaped(self, values: Sequence[Any], shape: Sequence[int]) -> Array:
        """An array of a flat list of values of the right JSON type. Raises `BadInput` as `array` does, and for another
        number of them."""
        if len(values) != math.prod(shape):
            raise self._other_number(len(values), shape)
        return self.array(values).reshape(shape)

    def _other_number(self, found: int, shape: Sequence[int]) -> BadInput:
        return BadInput(
            f"input {self.name!r}: shape {list(shape)} wants {math.prod(shape)} values in `data`, found {found}"
        )

    def check_size(self, shape: Sequence[int], size: int) -> None:
        """Raises `BadInput` unless so many bytes are an array of that shape; not for strings."""
        wanted = math.prod(shape) * self.kind.dtype.itemsize
        if size != wanted:
            raise BadInput(
                f"input {self.name!r} of {self.kind.datatype}{list(shape)} has {wanted} bytes; `binary_data_size` is {size}"
            )

    def array(self, values: Sequence[Any]) -> Array:
        """A flat array of values that are already of the right JSON type. Raises `BadInput` when one is out of range."""
        try:
            with np.errstate(over="raise"):
                if len(values) <= PIECE:
                    return np.array(values, dtype=self.kind.dtype)
                return np.concatenate([np.array(piece, dtype=self.kind.dtype) for piece in _pieces(values)])
        except (OverflowError, FloatingPointError) as error:
            raise BadInput(
                f"input {self.name!r}: a value is out of the range of {self.kind.datatype}: {error}"
            ) from error

    @property
    def _wanted(self) -> str:
        kind = {int: "whole numbers", bool: "true or false", str: "strings"}.get(
            self.kind.python, "numbers or null (NaN)"
        )
        return f"{self.kind.datatype} ({kind})"

    def _flattened(self, values: list[list[Any]], size: int, shape: Sequence[int]) -> list[Any]:
        for inner in values:
            if len(inner) != size:
                raise BadInput(
                    f"input {self.name!r}: a list in `data` holds {len(inner)}, shape {list(shape)} wants {size} there"
                )
        return list(chain.from_iterable(values))


def _pieces(values: Sequence[Any]) -> Iterator[Any]:
    return (values[start : start + PIECE] for start in range(0, len(values), PIECE))


def data_json(array: Array) -> bytes:
    """The values as the protocol writes them: flat, row-major. NaN and infinities become null."""
    flat = array.ravel()
    return msgspec.json.encode(flat.tolist()) if flat.size <= PIECE else _written(flat)


def _written(flat: Array) -> bytes:
    pieces = []
    for piece in _pieces(flat):  # type: ignore[arg-type]
        pieces.append(msgspec.json.encode(piece.tolist())[1:-1])
        time.sleep(large.PAUSE_SECONDS)
    return b"[" + b",".join(pieces) + b"]"


def read_binary(tensor: Tensor, shape: Sequence[int], data: memoryview) -> Array:
    """An array of its bytes, little-endian and row-major; strings each behind their length (4 bytes). Raises `BadInput`."""
    count = math.prod(shape)
    if tensor.kind.dtype.kind != "O":
        tensor.check_size(shape, len(data))
        if tensor.kind.dtype.kind == "b" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
            # In memory it would be neither true nor false.
            raise BadInput(f"input {tensor.name!r} of BOOL{list(shape)} wants bytes that are 0 or 1, found others")
        return np.frombuffer(data, tensor.kind.dtype, count).reshape(shape)
    texts: list[str] = []
    at, end = 0, len(data)
    while at < end:
        if len(texts) >= count or end - at < 4:
            break
        size = int.from_bytes(data[at : at + 4], "little")
        if size > end - at - 4:
            break
        try:
            texts.append(str(data[at + 4 : at + 4 + size], "utf-8"))
        except UnicodeDecodeError as error:
            raise BadInput(f"input {tensor.name!r}: string {len(texts)} is no UTF-8: {error}") from error
        at += 4 + size
    if at != end or len(texts) != count:
        raise BadInput(
            f"input {tensor.name!r} of shape {list(shape)} wants {count} strings, each behind its length in 4 bytes; found "
            f"{len(texts)} in {end} bytes"
        )
    return np.array(texts, dtype=object).reshape(shape)


def write_binary(array: Array) -> bytes:
    """The reverse of `read_binary`."""
    if array.dtype.kind == "O":
        texts = [each.encode() if isinstance(each, str) else bytes(each) for each in array.ravel().tolist()]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return array.tobytes()


def _list_of(kind: Kind, depth: int) -> Any:
    return reduce(lambda inner, _: list[inner], range(depth), kind.python)  # type: ignore[valid-type]


@cache
def _decoder(kind: Kind, depth: int) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(_list_of(kind, depth))
