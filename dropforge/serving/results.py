"""What a model gave for requests that were run together, and each request's share of it.

Shares are not cut out before somebody looks at them: an answer is written from the bytes, or the values, of the whole batch.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import msgspec
import numpy as np

from dropforge.serving.tensors import PIECE, Array, data_json

Shapes: TypeAlias = "tuple[tuple[int, ...], ...]"

_encoder = msgspec.json.Encoder()


class Batch:
    """The outputs of one run. `whole`: they belong to one request, whatever their shapes; otherwise each has a line for every
    row of all requests. `tails`: their shapes, without the rows if there are some."""

    __slots__ = ("_lines", "_texts", "_written", "arrays", "by_rows", "frames", "tails", "whole")

    def __init__(self, arrays: list[Array], *, whole: bool = False) -> None:
        self.arrays = arrays
        self.whole = whole
        self.tails: Shapes = tuple([array.shape if whole else array.shape[1:] for array in arrays])
        # What a writer remembers from one answer for the next: for which answers, and of those by their rows.
        self.frames: object = None
        self.by_rows: dict[int, Any] = {}
        self._lines: tuple[bytes, int] | None = None
        self._texts: list[list[bytes]] | None = None
        self._written: tuple[bytes, list[bytes]] = (b"", [])

    def of_all(self) -> Rows:
        """The share of the one request."""
        return Rows(self, 0, 1)

    @property
    def lines(self) -> tuple[bytes, int]:
        """For each row its bytes of all outputs, and how many those are. Not where there are strings."""
        if self._lines is None:
            if len(self.arrays) == 1 or self.whole:
                data = b"".join([array.tobytes() for array in self.arrays])
            else:
                flat = [np.ascontiguousarray(each).view(np.uint8) for each in self._flat()]
                data = np.concatenate(flat, axis=1).tobytes()
            self._lines = data, len(data) // (1 if self.whole else len(self.arrays[0]))
        return self._lines

    @property
    def texts(self) -> list[list[bytes]]:
        """For each output and row the values in JSON, flat; nothing when they are too many to be taken in one go."""
        if self._texts is None:
            few = all(array.size <= PIECE for array in self.arrays)
            # JSON has no line ends within values.
            lines = [_encoder.encode_lines(each.tolist()) for each in self._flat()] if few else []
            self._texts = [each[:-1].split(b"\n") for each in lines]
        return self._texts

    def written(self, form: bytes) -> list[bytes]:
        """For each row the texts of all outputs, put into this form."""
        if self._written[0] != form:
            self._written = form, [form % row for row in zip(*self.texts, strict=True)]
        return self._written[1]

    def _flat(self) -> list[Array]:
        pairs = zip(self.arrays, self.tails, strict=True)
        return [array.reshape(1 if self.whole else len(array), math.prod(tail)) for array, tail in pairs]


class Rows(msgspec.Struct, eq=False):
    """One request's share of a batch: its rows from `start` to before `stop`."""

    batch: Batch
    start: int
    stop: int

    @property
    def arrays(self) -> list[Array]:
        """The outputs, in the order asked for."""
        arrays = self.batch.arrays
        return arrays if self.batch.whole else [array[self.start : self.stop] for array in arrays]

    @property
    def shapes(self) -> Shapes:
        batch = self.batch
        return batch.tails if batch.whole else tuple([(self.stop - self.start, *tail) for tail in batch.tails])

    def data(self) -> bytes:
        """The outputs one behind the other, as the protocols write bytes; not of strings."""
        start = self.start
        if self.stop - start == 1:
            lines, width = self.batch.lines
            return lines[start * width : (start + 1) * width]
        return b"".join(self.parts())

    def parts(self) -> list[bytes]:
        """The same, output by output."""
        return [array.tobytes() for array in self.arrays]

    def json(self) -> list[bytes]:
        """The outputs as the protocol writes them in JSON."""
        start = self.start
        if self.stop - start == 1 and (texts := self.batch.texts):
            return [text[start] for text in texts]
        return [data_json(array) for array in self.arrays]
