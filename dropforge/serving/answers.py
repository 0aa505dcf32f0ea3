"""Answers to inference requests, as JSON and as the binary tensor extension has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from dropforge.serving.responses import BINARY, JSON, head_of
from dropforge.serving.results import Batch, Rows, Shapes
from dropforge.serving.tensors import Tensor, data_json, write_binary

if TYPE_CHECKING:
    from dropforge.serving.protocol import Ask

# Of answers of one kind; and what a writer remembers, some hundred bytes each.
KEPT_FORMS = 256
KEPT_FRAMES = 4096
_END = b"]}"


@dataclass(slots=True)
class Wanted:
    """The outputs of an answer, in their order, and which of them are sent as bytes. `is_alike`: all as bytes whose number
    their shape tells, or all in JSON."""

    outputs: tuple[Tensor, ...]
    binary: tuple[bool, ...]
    is_binary: bool = field(init=False)
    is_alike: bool = field(init=False)
    names: tuple[str, ...] = field(init=False)
    _forms: dict[Shapes, bytes] = field(init=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.is_binary = any(self.binary)
        self.is_alike = not self.is_binary or (
            all(self.binary) and all(tensor.kind.dtype.kind != "O" for tensor in self.outputs)
        )
        self.names = tuple(tensor.name for tensor in self.outputs)

    def form(self, shapes: Shapes) -> bytes:
        """The JSON of outputs of such shapes, but for their values, or their lengths in bytes."""
        form = self._forms.get(shapes)
        if form is None:
            if len(self._forms) >= KEPT_FORMS:
                self._forms.clear()
            form = self._forms[shapes] = b",".join(map(_form, self.outputs, shapes, self.binary))
        return form


class _Frame:
    """All of an answer of some shape but its values. Where those are bytes, `start` is what comes before them. In JSON it is
    how a body starts, `form` its outputs with room for their values, `size` its length without the outputs, and `heads` have
    what comes before the outputs, by that length with them."""

    __slots__ = ("form", "heads", "size", "start")

    def __init__(self, start: bytes, form: bytes = b"", size: int = 0) -> None:
        self.start = start
        self.form = form
        self.size = size
        self.heads: dict[int, bytes] = {}


class _Frames:
    """Of answers with some outputs: by the shapes of a batch, and then by the rows of the answer."""

    __slots__ = ("by_shapes", "wanted")

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.by_shapes: dict[tuple[bool, Shapes], dict[int, _Frame]] = {}


class Writer:
    """Writes the answers of one model version. `headers` go with each over HTTP."""

    def __init__(self, endpoint: str, version: str, headers: dict[str, str] | None = None) -> None:
        self._begin = b'{"model_name":%b,"model_version":%b,"outputs":[' % (
            msgspec.json.encode(endpoint),
            msgspec.json.encode(version),
        )
        self._json_head = head_of(200, JSON, headers or {}) + b"Content-Length: "
        self._binary_head = head_of(200, BINARY, headers or {}) + b"Content-Length: "
        # By the identity of what was wanted, which requests share; and how many pieces of answers they hold.
        self._frames: dict[int, _Frames] = {}
        self._kept = 0

    def response(self, ask: Ask, answer: Rows, more: bytes = b"") -> bytes:
        """The answer as a response of HTTP/1.1, with these lines in its head as well."""
        wanted, batch = ask.wanted, answer.batch
        if ask.id is None and not more and wanted.is_alike:
            frames = self._frames.get(id(wanted))
            if frames is None or frames.wanted is not wanted:
                frames = self._frames_of(wanted)
            if batch.frames is not frames:
                batch.frames, batch.by_rows = frames, self._by_rows(frames, batch)
            rows = answer.stop - answer.start
            frame: _Frame = batch.by_rows.get(rows) or self._frame(wanted, answer)
            if wanted.is_binary:
                return frame.start + answer.data()
            values = (
                batch.written(frame.form)[answer.start] if rows == 1 and batch.texts else frame.form % (*answer.json(),)
            )
            size = frame.size + len(values)
            return b"".join((frame.heads.get(size) or self._head(frame, size), values, _END))
        if not wanted.is_binary:
            body = self.json(ask, answer)
            return b"%b%d\r\n%b\r\n%b" % (self._json_head, len(body), more, body)
        body, header_bytes = self.binary(ask, answer)
        return self._binary_start(len(body), header_bytes, more) + body

    def json(self, ask: Ask, answer: Rows) -> bytes:
        """The answer as JSON."""
        return b"".join((self._begin, ask.wanted.form(answer.shapes) % (*answer.json(),), _end(ask)))

    def binary(self, ask: Ask, answer: Rows) -> tuple[bytes, int]:
        """The answer with its outputs, or those that were asked for so, as bytes behind the JSON; and where that ends."""
        wanted = ask.wanted
        said: list[bytes | int] = []
        data = []
        for array, as_bytes in zip(answer.arrays, wanted.binary, strict=True):
            if as_bytes:
                data.append(content := write_binary(array))
                said.append(len(content))
            else:
                said.append(data_json(array))
        header = b"".join((self._begin, wanted.form(answer.shapes) % (*said,), _end(ask)))
        return b"".join((header, *data)), len(header)

    # -------------------------------------------------------------------------------------------- what is remembered
    def _frames_of(self, wanted: Wanted) -> _Frames:
        self._keep_one_more()
        frames = self._frames[id(wanted)] = _Frames(wanted)
        return frames

    def _by_rows(self, frames: _Frames, batch: Batch) -> dict[int, _Frame]:
        if (batch.whole, batch.tails) not in frames.by_shapes:
            self._keep_one_more()
        return frames.by_shapes.setdefault((batch.whole, batch.tails), {})

    def _frame(self, wanted: Wanted, answer: Rows) -> _Frame:
        form, by_rows = wanted.form(answer.shapes), answer.batch.by_rows
        if wanted.is_binary:
            sizes = [array.nbytes for array in answer.arrays]
            header = b"".join((self._begin, form % (*sizes,), _END))
            frame = _Frame(self._binary_start(len(header) + sum(sizes), len(header), b"") + header)
        else:
            frame = _Frame(self._begin, form, len(self._begin) + len(_END))
        self._keep_one_more()
        by_rows[answer.stop - answer.start] = frame
        return frame

    def _head(self, frame: _Frame, size: int) -> bytes:
        self._keep_one_more()
        head = frame.heads[size] = b"%b%d\r\n\r\n%b" % (self._json_head, size, frame.start)
        return head

    def _keep_one_more(self) -> None:
        if self._kept >= KEPT_FRAMES:
            # All at once: which of them are still in use is found out in no time.
            self._frames.clear()
            self._kept = 0
        self._kept += 1

    def _binary_start(self, size: int, header_bytes: int, more: bytes) -> bytes:
        return b"%b%d\r\nInference-Header-Content-Length: %d\r\n%b\r\n" % (self._binary_head, size, header_bytes, more)


def _form(tensor: Tensor, shape: tuple[int, ...], as_bytes: bool) -> bytes:
    told = {"name": tensor.name, "datatype": tensor.kind.datatype, "shape": shape}
    # What comes into it is put there with `%`.
    head = msgspec.json.encode(told)[:-1].replace(b"%", b"%%")
    return head + (b',"parameters":{"binary_data_size":%d}}' if as_bytes else b',"data":%b}')


def _end(ask: Ask) -> bytes:
    return _END if ask.id is None else b'],"id":%b}' % msgspec.json.encode(ask.id)
