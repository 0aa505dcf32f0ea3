"""ModelInfer's messages: a request's tensors to an `Ask`, arrays to an answer's bytes.

Clients send the same message again and again, but for the values. What was read of one is remembered with the bytes in front
of its values, and the next one that begins so is read by comparing them; a protobuf library reads the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dropforge.domain.errors import BadInput
from dropforge.serving.answers import Wanted
from dropforge.serving.grpc.messages import PREFIX_BYTES, prefixed
from dropforge.serving.grpc.schema import Message
from dropforge.serving.models import Model
from dropforge.serving.protocol import Ask, Codec, InferenceRequest, InputTensor, OutputWanted
from dropforge.serving.results import Rows
from dropforge.serving.tensors import Array, Tensor, write_binary

KEPT_PLANS = 512
KEPT_PLAN_BYTES = 2048
KEPT_SHAPES = 512

# The field of `InferTensorContents` for each datatype; FP16 has none.
FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_RAW_INPUT, _OUTPUT, _RAW_OUTPUT = 0x3A, 0x2A, 0x32


@dataclass(frozen=True, slots=True)
class Plan:
    """A request as it was understood: by the model's codec, for as long as that model answers."""

    endpoint: str
    version: str | None
    codec: Codec
    # The bytes in front of the first input's values, of each further one, and where those begin.
    start: bytes
    marks: tuple[tuple[int, bytes], ...]
    # name, type, number, shape, offset
    inputs: tuple[tuple[str, Any, int, tuple[int, ...], int], ...]
    rows: int
    wanted: Wanted
    timeout_seconds: float | None

    def fits(self, data: bytes) -> bool:
        """Whether the message, of the length of the one that was understood, differs from it in values alone."""
        return data.startswith(self.start) and all(data.startswith(mark, at) for at, mark in self.marks)

    def ask(self, data: bytes) -> Ask:
        feeds: dict[str, Array] = {
            name: np.frombuffer(data, kind, number, offset).reshape(shape)
            for name, kind, number, shape, offset in self.inputs
        }
        return Ask(feeds, self.rows, self.wanted, None, self.timeout_seconds)


class Plans:
    """What was understood lately, by the length of the message."""

    def __init__(self) -> None:
        self._by_size: dict[int, Plan] = {}

    def find(self, data: bytes) -> Plan | None:
        plan = self._by_size.get(len(data))
        return plan if plan is not None and plan.fits(data) else None

    def keep(self, data: bytes, request: Message, model: Model, ask: Ask) -> None:
        """Remember a request whose tensors are all bytes and lie at its end, as nearly all do."""
        plan = _planned(data, request, model, ask)
        if plan is not None:
            if len(self._by_size) >= KEPT_PLANS:
                self._by_size.clear()
            self._by_size[len(data)] = plan


def read(request: Message, model: Model) -> Ask:
    """The request as the model takes it. Raises `BadInput` that names the tensor, what was wanted and what was found."""
    raws = request.raw_input_contents
    given = [InputTensor(each.name, list(each.shape), each.datatype) for each in request.inputs]
    if raws and len(raws) != len(given):
        raise BadInput(
            f"`raw_input_contents` holds one entry per input, in their order; found {len(raws)} for {len(given)} inputs"
        )
    outputs = [OutputWanted(each.name) for each in request.outputs]
    said = parameters(request.parameters) if request.parameters else None
    described = InferenceRequest(id=request.id or None, inputs=given, outputs=outputs or None, parameters=said)
    places = {tensor.name: place for place, tensor in enumerate(given)}

    def values(tensor: Tensor, shape: Sequence[int]) -> memoryview | Sequence[Any]:
        place = places[tensor.name]
        wanted = math.prod(shape)
        if raws:
            if request.inputs[place].HasField("contents"):
                raise BadInput(f"input {tensor.name!r} has `contents` and `raw_input_contents`; send one of them")
            if tensor.kind.dtype.kind != "O" and len(raws[place]) != wanted * tensor.kind.dtype.itemsize:
                raise BadInput(
                    f"input {tensor.name!r} of {tensor.kind.datatype}{list(shape)} has "
                    f"{wanted * tensor.kind.dtype.itemsize} bytes; its entry in `raw_input_contents` has {len(raws[place])}"
                )
            return memoryview(raws[place])
        return _contents(tensor, shape, request.inputs[place].contents)

    # An answer is given as it was asked for: as bytes, unless all that came was typed.
    return model.codec.ask(described, values, binary=bool(raws))


def _contents(tensor: Tensor, shape: Sequence[int], contents: Message) -> Sequence[Any]:
    field = FIELDS.get(tensor.kind.datatype)
    if field is None:
        raise BadInput(
            f"input {tensor.name!r}: {tensor.kind.datatype} is sent in `raw_input_contents`; `contents` has no field for it"
        )
    values = list(getattr(contents, field))
    if len(values) != math.prod(shape):
        raise BadInput(
            f"input {tensor.name!r}: {tensor.kind.datatype}{list(shape)} wants {math.prod(shape)} values in "
            f"`contents.{field}` (or bytes in `raw_input_contents`), found {len(values)}"
        )
    if tensor.kind.dtype.kind == "O":
        try:
            return [value.decode() for value in values]
        except UnicodeDecodeError as error:
            raise BadInput(f"input {tensor.name!r}: a string is no UTF-8: {error}") from error
    return values


def _parameter(value: Message) -> Any:
    chosen = value.WhichOneof("parameter_choice")
    return getattr(value, chosen) if chosen is not None else None


def parameters(given: Mapping[str, Message]) -> dict[str, Any]:
    return {name: _parameter(value) for name, value in given.items()}


def _planned(data: bytes, request: Message, model: Model, ask: Ask) -> Plan | None:
    raws = request.raw_input_contents
    # An id is another one each time.
    if not raws or request.id or not all(tensor.kind.any_bytes for tensor in model.inputs):
        return None
    # Where the values lie, if they are the last that the message holds.
    places, at = [], len(data)
    for raw in reversed(raws):
        at -= len(raw)
        mark = _key(_RAW_INPUT, len(raw))
        places.append((at, mark))
        at -= len(mark)
    places.reverse()
    if at > KEPT_PLAN_BYTES or at < PREFIX_BYTES or data[0]:
        return None
    described = type(request)()
    described.CopyFrom(request)
    del described.raw_input_contents[:]
    # Fields may come in any order, and strings may hold what looks like one.
    try:
        if type(request).FromString(data[PREFIX_BYTES:at]) != described:
            return None
    except Exception:  # noqa: BLE001 - protobuf says in many ways that bytes are no message
        return None
    offsets = {each.name: offset for each, (offset, _) in zip(request.inputs, places, strict=True)}
    _, first_mark = places[0]
    return Plan(
        endpoint=request.model_name,
        version=request.model_version or None,
        codec=model.codec,
        start=data[:at] + first_mark,
        marks=tuple((offset - len(mark), mark) for offset, mark in places[1:]),
        inputs=tuple((name, array.dtype, array.size, array.shape, offsets[name]) for name, array in ask.feeds.items()),
        rows=ask.rows,
        wanted=ask.wanted,
        timeout_seconds=ask.timeout_seconds,
    )


class Answers:
    """Writes the answers of one model version, each as a message behind its prefix."""

    def __init__(self, endpoint: str, version: str, response: Callable[[], Message]) -> None:
        name, number = endpoint.encode(), version.encode()
        self._begin = _key(0x0A, len(name)) + name + _key(0x12, len(number)) + number
        self._response = response
        # The bytes in front of each output's values, by the outputs and their shapes; none where strings are among them.
        self._starts: dict[object, tuple[bytes, ...]] = {}

    def write(self, ask: Ask, answer: Rows) -> bytes:
        wanted, batch = ask.wanted, answer.batch
        if not wanted.is_binary and all(tensor.kind.datatype in FIELDS for tensor in wanted.outputs):
            return prefixed(self._typed(ask, answer.arrays))
        if ask.id is None:
            # All but the values is the same for answers of one shape.
            key = (wanted.names, batch.whole, batch.tails, answer.stop - answer.start)
            starts = self._starts.get(key)
            if starts is None:
                if len(self._starts) >= KEPT_SHAPES:
                    self._starts.clear()
                starts = self._starts[key] = self._start(wanted.outputs, answer.arrays)
            if len(starts) == 1:
                return starts[0] + answer.data()
            if starts:
                return b"".join([part for pair in zip(starts, answer.parts(), strict=True) for part in pair])
        return prefixed(b"".join((self._begin, *self._parts(ask, answer.arrays))))

    def _start(self, tensors: Sequence[Tensor], arrays: Sequence[Array]) -> tuple[bytes, ...]:
        if any(array.dtype.kind == "O" for array in arrays):
            return ()
        described = [_output(tensor, array.shape) for tensor, array in zip(tensors, arrays, strict=True)]
        marks = [_key(_RAW_OUTPUT, array.nbytes) for array in arrays]
        head = self._begin + b"".join(described)
        size = len(head) + sum(map(len, marks)) + sum(array.nbytes for array in arrays)
        return (b"\0" + size.to_bytes(4, "big") + head + marks[0], *marks[1:])

    def _parts(self, ask: Ask, arrays: Sequence[Array]) -> list[bytes]:
        parts = []
        if ask.id is not None:
            name = ask.id.encode()
            parts += [_key(0x1A, len(name)), name]
        parts += [_output(tensor, array.shape) for tensor, array in zip(ask.wanted.outputs, arrays, strict=True)]
        for array in arrays:
            data = write_binary(array)
            parts += [_key(_RAW_OUTPUT, len(data)), data]
        return parts

    def _typed(self, ask: Ask, arrays: Sequence[Array]) -> bytes:
        answer = self._response()
        answer.MergeFromString(self._begin)
        if ask.id is not None:
            answer.id = ask.id
        for tensor, array in zip(ask.wanted.outputs, arrays, strict=True):
            output = answer.outputs.add(name=tensor.name, datatype=tensor.kind.datatype, shape=array.shape)
            values = array.ravel().tolist()
            if array.dtype.kind == "O":
                values = [each.encode() if isinstance(each, str) else bytes(each) for each in values]
            getattr(output.contents, FIELDS[tensor.kind.datatype]).extend(values)
        return answer.SerializeToString()  # type: ignore[no-any-return]


def _output(tensor: Tensor, shape: Sequence[int]) -> bytes:
    name, kind = tensor.name.encode(), tensor.kind.datatype.encode()
    sizes = b"".join(map(_varint, shape))
    inner = [_key(0x0A, len(name)), name, _key(0x12, len(kind)), kind]
    if sizes:
        inner += [_key(0x1A, len(sizes)), sizes]
    body = b"".join(inner)
    return _key(_OUTPUT, len(body)) + body


def _key(tag: int, size: int) -> bytes:
    return bytes((tag,)) + _varint(size)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
