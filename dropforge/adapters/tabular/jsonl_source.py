"""JSON Lines: one object of plain values per line, UTF-8."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from dropforge.adapters.tabular.kinds import EMPTY
from dropforge.adapters.tabular.problems import Problems
from dropforge.adapters.tabular.sources import BLOCK_BYTES, MAX_COLUMNS, Block, check_names, look_at_start

BLOCK_ROWS = 20_000
MAX_BAD_LINES = 10_000

# The Python types of a column's values in a block -> its Arrow type. None is in every set.
_TYPES: dict[frozenset[type], pa.DataType] = {
    frozenset(): pa.null(),
    frozenset({bool}): pa.bool_(),
    frozenset({int}): pa.int64(),
    frozenset({float}): pa.float64(),
    frozenset({int, float}): pa.float64(),
    frozenset({str}): pa.string(),
}
_KINDS = {pa.null(): EMPTY, pa.bool_(): "bool", pa.int64(): "int64", pa.float64(): "double", pa.string(): "string"}
_INT64 = range(-(2**63), 2**63)
_EXACT_IN_DOUBLE = range(-(2**53), 2**53 + 1)


class JsonlSource:
    """A column is any key of any line; the kind of a column is what fits all of its values, or text."""

    def __init__(self, path: Path, problems: Problems) -> None:
        look_at_start(path, "JSON Lines", problems)
        self._path = path
        self.columns: dict[str, str | None] = {}
        self.strange: dict[str, str] = {}
        # Columns with whole numbers that no double holds.
        self._long: set[str] = set()
        scratch = Problems()
        for records, _ in self._records(scratch, problems):
            for name in dict.fromkeys(key for record in records for key in record):
                self._widen(name, [record.get(name) for record in records])
            if len(self.columns) > MAX_COLUMNS:
                break
        check_names(list(self.columns), problems)

    def _widen(self, name: str, values: list[Any]) -> None:
        types = {type(value) for value in values} - {type(None)}
        nested = types & {dict, list}
        if nested:
            self.strange[name] = " and ".join("objects" if kind is dict else "arrays" for kind in nested)
        if int in types and _is_beyond(_EXACT_IN_DOUBLE, values):
            self._long.add(name)
        found = None if name in self.strange else _KINDS[_arrow_type(types, values)]
        before = self.columns.get(name, EMPTY)
        if before is None or found is None:
            self.columns[name] = None
        elif EMPTY in (before, found) or before == found:
            self.columns[name] = before if found == EMPTY else found
        else:
            exact = {before, found} == {"int64", "double"} and name not in self._long
            self.columns[name] = "double" if exact else "string"

    def blocks(self, names: Collection[str], problems: Problems) -> Iterator[Block]:
        wanted = [name for name in self.columns if name in names]
        for records, rows in self._records(problems, problems):
            values = {name: _array([record.get(name) for record in records]) for name in wanted}
            yield Block(values, len(records), rows.__getitem__)

    def _records(self, problems: Problems, fatal: Problems) -> Iterator[tuple[list[dict[str, Any]], array[int]]]:
        """Objects with their data row numbers, a block at a time. Empty lines are not rows."""
        records: list[dict[str, Any]] = []
        rows = array("q")
        row = size = bad = 0
        with self._path.open("rb") as file:
            while line := file.readline(BLOCK_BYTES + 1):
                if len(line) > BLOCK_BYTES:
                    message = f"row {row + 1} is longer than {BLOCK_BYTES // 1024**2} MB; is it one object per line?"
                    raise fatal.stop("row_length", None, message, rows=[row + 1])
                line = line.removeprefix(b"\xef\xbb\xbf") if not row else line
                if not line.strip():
                    continue
                row += 1
                record = _parsed(line, row, problems)
                if record is None:
                    bad += 1
                    if bad >= MAX_BAD_LINES:
                        raise fatal.stop("json", None, "too many lines that are not JSON objects; reading stopped")
                    continue
                records.append(record)
                rows.append(row)
                size += len(line)
                if len(records) >= BLOCK_ROWS or size >= BLOCK_BYTES:
                    yield records, rows
                    records, rows, size = [], array("q"), 0
        if records:
            yield records, rows


def _parsed(line: bytes, row: int, problems: Problems) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(line)
        if isinstance(value, dict):
            return value
        found = (
            "an array (is the whole file one JSON array?)"
            if isinstance(value, list)
            else f"a plain {type(value).__name__}"
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        found = str(error)
        if row == 1 and line.strip() == b"[":
            found += "; the file looks like one JSON array"
    message = f"wanted one JSON object per line, found in row {row}: {found}"
    problems.add("json", None, message, rows=[row], values=[line.decode(errors="replace").strip()])
    return None


def _arrow_type(types: set[type], values: list[Any]) -> pa.DataType:
    """Mixed values, and whole numbers of more than 64 bits, are text as they stand in the file; beside fractions, those that
    a double would round are too."""
    kind = _TYPES.get(frozenset(types - {type(None)}), pa.string())
    if int in types and _is_beyond(_EXACT_IN_DOUBLE if float in types else _INT64, values):
        return pa.string()
    return kind


def _is_beyond(limits: range, values: list[Any]) -> bool:
    return any(type(value) is int and value not in limits for value in values)


def _array(values: list[Any]) -> pa.Array:
    kind = _arrow_type({type(value) for value in values}, values)
    if kind == pa.string():
        values = [value if value is None or isinstance(value, str) else _text(value) for value in values]
    elif kind == pa.float64():
        values = [value if value is None else float(value) for value in values]
    return pa.array(values, kind)


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()
