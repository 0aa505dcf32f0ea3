"""Inference requests of the Open Inference Protocol: JSON, its binary tensor extension, and rows of a table.

https://github.com/kserve/open-inference-protocol, and for binary data
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from dropforge.domain.errors import BadInput
from dropforge.serving import large
from dropforge.serving.answers import Wanted
from dropforge.serving.rows import difference, feeds_of_rows
from dropforge.serving.tensors import Array, Feeds, Tensor, read_binary

# Headers of binary requests above this are not remembered.
KEPT_HEADER_BYTES = 2048
KEPT_HEADERS = 512
# Rows that are converted in one go: less, and what each column costs is paid too often.
ROWS_BYTES = 512 * 1024
# Numbers above this many are converted by numpy, which is faster then.
PACKED = 1024


class InputTensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = msgspec.Raw(b"")
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


class _FloatInput(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[float | None]
    parameters: dict[str, Any] | None = None


class _FloatRequest(msgspec.Struct):
    """What nearly every request to a model of numbers is; read in one go. Whatever it does not fit is read as any other."""

    inputs: list[_FloatInput]
    rows: None = None
    id: str | None = None
    outputs: list[OutputWanted] | None = None
    parameters: dict[str, Any] | None = None


class _Identified(msgspec.Struct):
    id: str | None = None


class _LargeRequest(msgspec.Struct):
    """One whose rows are read later."""

    id: str | None = None
    inputs: list[InputTensor] | None = None
    rows: msgspec.Raw = msgspec.Raw(b"null")
    outputs: list[OutputWanted] | None = None
    parameters: dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(InferenceRequest)
_large_decoder = msgspec.json.Decoder(_LargeRequest)
_rows_decoder = msgspec.json.Decoder(list[dict[str, Any] | list[Any]])
_ROW = re.compile(r"\brow (\d+)")
_id_decoder = msgspec.json.Decoder(_Identified)
_float_decoder = msgspec.json.Decoder(_FloatRequest)


class Ask(msgspec.Struct, eq=False):
    """One request, ready to run. `rows`: the size of the first dimension; `timeout_seconds`: what the caller waits."""

    feeds: Feeds
    rows: int
    wanted: Wanted
    id: str | None = None
    timeout_seconds: float | None = None
    # Bytes of the request.
    size: int = 0


@dataclass(frozen=True, slots=True)
class _Binary:
    """A binary request's header as it was understood: where each input lies behind it."""

    # name, type, shape, offset
    inputs: tuple[tuple[str, np.dtype[Any], tuple[int, ...], int], ...]
    size: int
    rows: int
    wanted: Wanted
    id: str | None
    timeout_seconds: float | None


class Codec:
    """Reads requests for one model, and writes its answers. Not for several threads at once, but for `Ask`s of its own."""

    def __init__(
        self, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], columns: tuple[str, ...] | None
    ) -> None:
        self._inputs = inputs
        self._outputs = outputs
        self._columns = columns
        self._by_name = {tensor.name: tensor for tensor in inputs}
        self._known_outputs = {tensor.name: tensor for tensor in outputs}
        self._all = Wanted(outputs, (False,) * len(outputs))
        self._all_binary = Wanted(outputs, (True,) * len(outputs))
        self._has_texts = any(tensor.kind.dtype.kind == "O" for tensor in inputs)
        self._is_float = all(tensor.kind.dtype.kind == "f" for tensor in inputs)
        # Of the one input of a model that has one, of which all but the number of rows is fixed.
        first = inputs[0] if len(inputs) == 1 else None
        self._simple = first if first is not None and _only_rows_vary(first) else None
        self._row = list(first.dims[1:]) if first is not None else []
        self._headers: dict[bytes, _Binary] = {}

    # -------------------------------------------------------------------------------------------- reading
    def takes_long(self, header_bytes: int | None) -> bool:
        """Whether reading a large body is work: JSON and texts are, numbers as bytes are not."""
        return header_bytes is None or header_bytes > KEPT_HEADER_BYTES or self._has_texts

    def read(self, body: bytes, header_bytes: int | None = None) -> Ask:
        """The request in a body; `header_bytes`: where its JSON ends, when tensors follow as bytes. Raises `BadInput`
        that names the place, what was wanted and what was found."""
        if header_bytes is not None:
            return self._read_binary(body, header_bytes)
        if len(body) > large.LARGE_BYTES:
            return self._read_large(body)
        if self._is_float:
            try:
                return self._read_floats(_float_decoder.decode(body), len(body))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadInput):
                # Read again by the general rules, which say what is wrong, or that nothing is.
                pass
        request = read_request(body)
        if request.rows is not None:
            feeds = feeds_of_rows(self._inputs, self._columns, request.rows)
            rows = len(request.rows)
        else:
            feeds = self._feeds(request.inputs or [])
            rows = self._rows(feeds)
        wanted = self._wanted(request.outputs, request.parameters)
        return Ask(feeds, rows, wanted, request.id, _timeout(request.parameters), size=len(body))

    def _read_large(self, body: bytes) -> Ask:
        """The same, in pieces, for a thread: others have their turn between them."""
        aside = large.rows_aside(body)
        if aside is not None:
            rest, mark, rows = aside
            try:
                request = _large_request(rest)
                if bytes(request.rows) == mark:
                    return self._asked(request, self._feeds_in_pieces(rows), len(body))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                # Another list follows the rows, or something is wrong, which is told below.
                pass
        try:
            rest, numbers = large.numbers_aside(body)
            request = _large_request(rest)
            if request.inputs is None:
                feeds = self._feeds_in_pieces(memoryview(request.rows))
            else:
                for tensor in request.inputs:
                    given = bytes(memoryview(tensor.data)[:80])
                    if (data := numbers.get(given)) is not None:
                        tensor.data = msgspec.Raw(data)
                feeds = self._feeds(request.inputs)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _no_request(error) from error
        return self._asked(request, feeds, len(body))

    def _asked(self, request: _LargeRequest, feeds: Feeds, size: int) -> Ask:
        wanted = self._wanted(request.outputs, request.parameters)
        return Ask(feeds, self._rows(feeds), wanted, request.id, _timeout(request.parameters), size)

    def _feeds_in_pieces(self, rows: memoryview) -> Feeds:
        found: list[Feeds] = []
        count = 0
        ends = large.lists(1) if large.holds_lists(rows) else large.OBJECTS
        first: list[Any] = []
        for each in large.pieces(_rows_decoder, rows, ends, ROWS_BYTES):
            # With the very first row again: what all rows have in common, those of later pieces have too.
            try:
                feeds = feeds_of_rows(self._inputs, self._columns, first + each)
            except BadInput as error:
                raise _further_down(error, count - len(first)) from error
            found.append({name: array[len(first) :] for name, array in feeds.items()})
            count += len(each)
            first = first or each[:1]
        return {name: np.concatenate([feeds[name] for feeds in found]) for name in found[0]}

    def ask(
        self,
        request: InferenceRequest,
        values: Callable[[Tensor, Sequence[int]], memoryview | Sequence[Any]],
        *,
        binary: bool,
    ) -> Ask:
        """The request whose values come beside it: `values` has those of an input, as bytes or one by one. Raises
        `BadInput`."""
        given = self._given(request.inputs or [])
        feeds: Feeds = {}
        sizes: dict[str, int] = {}
        for tensor in self._inputs:
            shape = given[tensor.name].shape
            tensor.check_shape(shape, sizes)
            found = values(tensor, shape)
            if isinstance(found, memoryview):
                feeds[tensor.name] = read_binary(tensor, shape, found)
            else:
                feeds[tensor.name] = tensor.shaped(found, shape)
        wanted = self._wanted(request.outputs, {"binary_data_output": binary})
        return Ask(feeds, self._rows(feeds), wanted, request.id, _timeout(request.parameters))

    def _read_floats(self, request: _FloatRequest, size: int) -> Ask:
        simple, inputs = self._simple, request.inputs
        feeds: Feeds
        if simple is not None and len(inputs) == 1:
            given = inputs[0]
            shape = given.shape
            if given.name != simple.name or given.datatype != simple.kind.datatype:
                raise BadInput("")
            if not shape or shape[0] <= 0 or shape[1:] != self._row:
                raise BadInput("")
            feeds = {simple.name: _floats(simple, given.data, shape)}
            rows = shape[0]
        else:
            given_by_name = {tensor.name: tensor for tensor in request.inputs}
            if given_by_name.keys() != self._by_name.keys() or len(given_by_name) != len(request.inputs):
                raise BadInput("")
            feeds, sizes = {}, dict[str, int]()
            for tensor in self._inputs:
                found = given_by_name[tensor.name]
                if found.datatype != tensor.kind.datatype:
                    raise BadInput("")
                tensor.check_shape(found.shape, sizes)
                feeds[tensor.name] = _floats(tensor, found.data, found.shape)
            rows = self._rows(feeds)
        outputs, parameters = request.outputs, request.parameters
        if outputs is None and parameters is None:
            return Ask(feeds, rows, self._all, request.id, None, size)
        return Ask(feeds, rows, self._wanted(outputs, parameters), request.id, _timeout(parameters), size)

    def _read_binary(self, body: bytes, header_bytes: int) -> Ask:
        if not 0 < header_bytes <= len(body):
            raise BadInput(
                f"`Inference-Header-Content-Length` is {header_bytes}; the body holds {len(body)} bytes, so it must be from 1 "
                "to that"
            )
        header = body[:header_bytes]
        plan = self._headers.get(header)
        if plan is None:
            request = read_request(header)
            if all("binary_data_size" not in (each.parameters or {}) for each in request.inputs or ()):
                if len(body) != header_bytes:
                    raise _wrong_length(header_bytes, 0, len(body))
                return self.read(header)
            plan = self._planned(request, body, header_bytes)
            if plan is None:
                return self._mixed(request, body, header_bytes)
            if len(header) <= KEPT_HEADER_BYTES:
                if len(self._headers) >= KEPT_HEADERS:
                    self._headers.clear()
                self._headers[header] = plan
        if len(body) != header_bytes + plan.size:
            raise _wrong_length(header_bytes, plan.size, len(body))
        feeds: Feeds = {}
        for name, dtype, shape, offset in plan.inputs:
            feeds[name] = np.ndarray(shape, dtype, body, header_bytes + offset)
        return Ask(feeds, plan.rows, plan.wanted, plan.id, plan.timeout_seconds, len(body))

    def _planned(self, request: InferenceRequest, body: bytes, header_bytes: int) -> _Binary | None:
        """Where everything lies; None for a request whose inputs must be read one by one (strings, BOOL, or some in JSON)."""
        given = self._given(request.inputs or [])
        sizes: dict[str, int] = {}
        places, offset = {}, 0
        for found in request.inputs or []:
            size = _binary_size(found)
            if size is None or not self._by_name[found.name].kind.any_bytes:
                return None
            places[found.name] = (offset, size)
            offset += size
        planned = []
        for tensor in self._inputs:
            shape = given[tensor.name].shape
            tensor.check_shape(shape, sizes)
            place, size = places[tensor.name]
            tensor.check_size(shape, size)
            planned.append((tensor.name, tensor.kind.dtype, tuple(shape), place))
        first = planned[0][2] if planned else ()
        wanted = self._wanted(request.outputs, request.parameters, binary=True)
        return _Binary(
            tuple(planned), offset, first[0] if first else 1, wanted, request.id, _timeout(request.parameters)
        )

    def _mixed(self, request: InferenceRequest, body: bytes, header_bytes: int) -> Ask:
        given = self._given(request.inputs or [])
        offset, feeds, sizes = header_bytes, dict[str, Array](), dict[str, int]()
        view = memoryview(body)
        pieces: dict[str, memoryview] = {}
        for found in request.inputs or []:
            size = _binary_size(found)
            if size is not None:
                pieces[found.name] = view[offset : offset + size]
                offset += size
        if offset != len(body):
            raise _wrong_length(header_bytes, offset - header_bytes, len(body))
        for tensor in self._inputs:
            found = given[tensor.name]
            tensor.check_shape(found.shape, sizes)
            if tensor.name in pieces:
                feeds[tensor.name] = read_binary(tensor, found.shape, pieces[tensor.name])
            else:
                feeds[tensor.name] = tensor.from_json(found.shape, found.data)
        wanted = self._wanted(request.outputs, request.parameters, binary=True)
        return Ask(feeds, self._rows(feeds), wanted, request.id, _timeout(request.parameters), len(body))

    def _feeds(self, inputs: Sequence[InputTensor]) -> Feeds:
        given = self._given(inputs)
        feeds: Feeds = {}
        sizes: dict[str, int] = {}
        for tensor in self._inputs:
            found = given[tensor.name]
            if "binary_data_size" in (found.parameters or {}):
                raise BadInput(
                    f"input {tensor.name!r} says that its data follows as bytes; say where the JSON ends in the header "
                    "`Inference-Header-Content-Length`, or send `data`"
                )
            tensor.check_shape(found.shape, sizes)
            feeds[tensor.name] = tensor.from_json(found.shape, found.data)
        return feeds

    def _given(self, inputs: Sequence[InputTensor]) -> dict[str, InputTensor]:
        given = {tensor.name: tensor for tensor in inputs}
        if given.keys() != self._by_name.keys() or len(given) != len(inputs):
            names = [tensor.name for tensor in inputs]
            raise BadInput(
                f"the model wants the inputs {[str(tensor) for tensor in self._inputs]}, each once; "
                f"{difference(names, self._by_name.keys())}"
            )
        for tensor in self._inputs:
            found = given[tensor.name]
            if found.datatype != tensor.kind.datatype:
                raise BadInput(f"input {tensor.name!r} wants {tensor.kind.datatype}, found {found.datatype[:40]!r}")
        return given

    def _rows(self, feeds: Feeds) -> int:
        shape = feeds[self._inputs[0].name].shape if self._inputs else ()
        return shape[0] if shape else 1

    def _wanted(
        self, outputs: Sequence[OutputWanted] | None, parameters: dict[str, Any] | None, *, binary: bool = False
    ) -> Wanted:
        by_default = bool(parameters) and parameters.get("binary_data_output") is True  # type: ignore[union-attr]
        if not outputs:
            return self._all_binary if by_default else self._all
        known = self._known_outputs
        for output in outputs:
            if output.name not in known:
                raise BadInput(f"unknown output {output.name[:80]!r}; choose from {sorted(known)}")
        asked = {output.name: bool((output.parameters or {}).get("binary_data", by_default)) for output in outputs}
        return Wanted(tuple(known[name] for name in asked), tuple(asked.values()))


def read_request(body: bytes) -> InferenceRequest:
    """The request in a body. Raises `BadInput` naming the place in the JSON."""
    try:
        request = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _no_request(error) from error
    _check_one_kind(request.inputs is not None, request.rows is not None)
    return request


def _no_request(error: Exception) -> BadInput:
    return BadInput(f"the body is not an inference request (JSON with `inputs` or `rows`): {error}")


def _further_down(error: BadInput, rows: int) -> BadInput:
    """The error of a row, counted from so many rows before."""
    return BadInput(_ROW.sub(lambda row: f"row {int(row[1]) + rows}", error.message, count=1))


def _large_request(rest: bytes) -> _LargeRequest:
    request = _large_decoder.decode(rest)
    _check_one_kind(request.inputs is not None, bytes(memoryview(request.rows)[:4]) != b"null")
    return request


def _check_one_kind(has_inputs: bool, has_rows: bool) -> None:
    if has_inputs == has_rows:
        found = "both" if has_inputs else "neither"
        raise BadInput(f"an inference request holds either `inputs` or `rows`, found {found}")


def read_id(body: bytes) -> str | None:
    """The id of a request, or None. What is wrong with it is told by whoever reads all of it."""
    try:
        return _id_decoder.decode(body).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _floats(tensor: Tensor, values: list[float | None], shape: list[int]) -> Array:
    """The array of a flat list. Raises `BadInput` as `Tensor.shaped` does."""
    size = len(values)
    if size <= PACKED and size == math.prod(shape):
        try:
            data = _packer(tensor.kind.dtype.char, size)(*values)
        except (struct.error, OverflowError):
            # A null; or a value out of range, which is told below.
            pass
        else:
            return np.ndarray(shape, tensor.kind.dtype, data)
    return tensor.shaped(values, shape)


@lru_cache(256)
def _packer(code: str, size: int) -> Callable[..., bytes]:
    """Makes bytes of so many numbers. Half as slow as `numpy.array`, and looks at the range of each."""
    return struct.Struct(f"<{size}{code}").pack


def _timeout(parameters: dict[str, Any] | None) -> float | None:
    """`timeout`: microseconds, as Triton has it."""
    given = parameters.get("timeout") if parameters else None
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < 2**63:
        raise BadInput(f"parameter `timeout` is {given!r}; it must be a whole number of microseconds")
    return given / 1e6 if given else None


def _binary_size(tensor: InputTensor) -> int | None:
    size = (tensor.parameters or {}).get("binary_data_size")
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise BadInput(
            f"input {tensor.name[:80]!r}: `binary_data_size` is {size!r}; it must be a whole number of bytes"
        )
    return size


def _wrong_length(header_bytes: int, wanted: int, found: int) -> BadInput:
    return BadInput(
        f"the inputs say that {wanted} bytes follow the JSON of {header_bytes} bytes; found {found - header_bytes}"
    )


def _only_rows_vary(tensor: Tensor) -> bool:
    return (
        len(tensor.dims) > 0
        and not isinstance(tensor.dims[0], int)
        and all(isinstance(d, int) for d in tensor.dims[1:])
    )
