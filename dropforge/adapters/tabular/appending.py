"""Checked files as one stream of rows in the shape of the table, with the platform's two columns added."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from dropforge.adapters.tabular.kinds import ARROW, convert
from dropforge.adapters.tabular.layout import ARRIVED_AT, SOURCE, expected, lay_out, open_source, with_known
from dropforge.adapters.tabular.problems import Problems, Unreadable
from dropforge.domain.errors import BadFile
from dropforge.ports import TableFile, TableRules


@dataclass(frozen=True)
class Plan:
    """What to append: `columns` is the table as it will be (name -> kind), `taken` what each file brings."""

    files: tuple[TableFile, ...]
    rules: TableRules
    columns: dict[str, str]
    taken: tuple[dict[str, str], ...]

    @property
    def schema(self) -> pa.Schema:
        """The user's columns, then the platform's."""
        fields = [pa.field(name, ARROW[kind]) for name, kind in self.columns.items()]
        return pa.schema([*fields, pa.field(SOURCE, ARROW["string"]), pa.field(ARRIVED_AT, ARROW["timestamp"])])


def plan(files: Sequence[TableFile], rules: TableRules, known: dict[str, str]) -> Plan:
    """Raises `BadFile` (with `source=`) for a file that does not fit the table and the files before it."""
    columns = dict(known)
    taken = []
    for file in files:
        problems = Problems()
        try:
            so_far = with_known(rules, columns)
            kinds = lay_out(open_source(file.path, so_far, problems), expected(so_far), problems)
        except Unreadable:
            kinds = {}
        _raise_if_any(problems, file)
        columns.update({name: kind for name, kind in kinds.items() if name not in columns})
        taken.append(kinds)
    return Plan(tuple(files), rules, columns, tuple(taken))


def batches(planned: Plan) -> Iterator[pa.RecordBatch]:
    """The rows, some megabytes at a time. Raises `BadFile` (with `source=`) at the first row that does not fit."""
    schema = planned.schema
    for file, taken in zip(planned.files, planned.taken, strict=True):
        problems = Problems()
        try:
            for block in open_source(file.path, planned.rules, problems).blocks(taken, problems):
                arrays = []
                for name, kind in planned.columns.items():
                    if name in taken:
                        converted = convert(block.values[name], kind)
                        if converted.bad:
                            row = block.row(converted.bad[0])
                            problems.add("type", name, f"column {name!r}: row {row} is not {kind}", rows=[row])
                        arrays.append(converted.values)
                    else:
                        arrays.append(pa.nulls(block.length, ARROW[kind]))
                _raise_if_any(problems, file)
                arrived_at = pa.scalar(file.arrived_at, ARROW["timestamp"])
                arrays.append(pa.repeat(pa.scalar(file.source, ARROW["string"]), block.length))
                arrays.append(pa.repeat(arrived_at, block.length))
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        except Unreadable:
            pass
        _raise_if_any(problems, file)


def _raise_if_any(problems: Problems, file: TableFile) -> None:
    if problems:
        first = problems.all()[0]
        raise BadFile(f"file {file.source} does not fit the table: {first.message}", source=file.source)
