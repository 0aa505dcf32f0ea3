"""Which columns of a file go into the table, and as what kind: the rules, the table so far, or a look at the values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from dropforge.adapters.tabular.csv_source import CsvSource
from dropforge.adapters.tabular.jsonl_source import JsonlSource
from dropforge.adapters.tabular.kinds import EMPTY, TEXT, infer_text, kind_of, natural_kind
from dropforge.adapters.tabular.parquet_source import ParquetSource
from dropforge.adapters.tabular.problems import Problems, Unreadable, listed
from dropforge.adapters.tabular.sources import Source
from dropforge.domain.datasets import Column
from dropforge.domain.errors import BadInput
from dropforge.ports import ColumnRule, TableRules

# The platform's own columns. Names that start like them are kept for it.
SOURCE = "_source"
ARRIVED_AT = "_arrived_at"
PLATFORM = (SOURCE, ARRIVED_AT)


@dataclass(frozen=True)
class Expected:
    """The rules, ready to look things up in."""

    rules: TableRules
    declared: dict[str, ColumnRule]
    # The table's columns so far, without the platform's: name -> kind.
    known: dict[str, str]

    @property
    def named(self) -> dict[str, None]:
        """Every column that the rules or the table know of."""
        roles = [name for name in (self.rules.label, self.rules.event_time) if name is not None]
        return dict.fromkeys([*self.declared, *self.known, *roles])


def expected(rules: TableRules) -> Expected:
    """Raises `BadInput` for a type name that does not exist."""
    known = {column.name: kind_of(column.type) for column in rules.known if column.name not in PLATFORM}
    return Expected(rules, {rule.name: rule for rule in rules.columns}, known)


def open_source(path: Path, rules: TableRules, problems: Problems) -> Source:
    """Raises `Unreadable`, the reason being among the problems, for a file that is too large or not of its format."""
    size = path.stat().st_size
    if size > rules.max_bytes:
        message = f"wanted at most {rules.max_bytes:,} bytes (dataset.max_bytes), found {size:,}; drop smaller files"
        raise problems.stop("max_bytes", None, message)
    if rules.format == "csv":
        return CsvSource(path, problems)
    if rules.format == "parquet":
        return ParquetSource(path, problems, rules.max_bytes)
    if rules.format == "jsonl":
        return JsonlSource(path, problems)
    raise BadInput(f"unknown file format {rules.format!r}; choose one of ['csv', 'jsonl', 'parquet']")


def lay_out(source: Source, wanted: Expected, problems: Problems) -> dict[str, str]:
    """The file's columns that go into the table, in order, each with its kind; what does not fit is reported.

    A column that has no value in the whole file, and no kind yet, is left out: a later file with values decides.
    """
    found = list(source.columns)
    _report_missing(found, wanted, problems)
    # Nothing named yet: the first file decides, and nothing in it is extra.
    extra = [name for name in found if (wanted.declared or wanted.known) and name not in wanted.named]
    policy = wanted.rules.extra_columns
    if policy == "refuse":
        for name in extra:
            message = (
                f"column {name!r} is not declared (dataset.extra_columns is refuse); declared: {listed(wanted.named)}"
            )
            problems.add("extra_columns", name, message)
    taken = [name for name in found if name not in extra or policy == "keep"]
    kinds: dict[str, str | None] = {}
    for name in taken:
        if not name or name.lower().startswith(PLATFORM):
            _report_name(name, found.index(name), problems)
        elif source.columns[name] is None:
            message = f"column {name!r} holds {source.strange[name]}; a table holds plain values only"
            problems.add("type", name, f"{message}: flatten it, or set dataset.extra_columns to drop")
        else:
            kinds[name] = _decided_kind(name, source.columns[name], wanted, problems)
    if _infer(source, kinds):
        _report_empty(kinds, found, wanted, problems)
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _report_missing(found: list[str], wanted: Expected, problems: Problems) -> None:
    rules = wanted.rules
    for role, name in (("label", rules.label), ("event_time", rules.event_time)):
        if name is not None and name not in found:
            problems.add(
                role,
                name,
                f"the {role} column {name!r} is missing; found: {listed(found)}; set dataset.{role} in pipeline.yaml",
            )
    for name in dict.fromkeys([*wanted.declared, *wanted.known]):
        if name not in found and name not in (rules.label, rules.event_time):
            problems.add("missing", name, f"column {name!r} is missing; found: {listed(found)}")


def _report_name(name: str, position: int, problems: Problems) -> None:
    if name:
        message = f"column {name!r}: names that start with {SOURCE} or {ARRIVED_AT} belong to the platform; rename it"
    else:
        message = (
            f"column {position + 1} has no name (a pandas index? write it with index=False); name it or leave it out"
        )
    problems.add("columns", name, message)


def _decided_kind(name: str, natural: str | None, wanted: Expected, problems: Problems) -> str | None:
    """The kind of one column as far as it can be told without its values; None: look at them."""
    rule = wanted.declared.get(name)
    declared = kind_of(rule.type) if rule is not None and rule.type is not None else None
    known = wanted.known.get(name)
    if known is not None and declared is not None and known != declared:
        message = f"column {name!r} is declared {declared}, and the table holds {known}"
        problems.add("type", name, f"{message}; a table's types do not change: start a dataset of another name")
    if known or declared:
        return known or declared
    if name == wanted.rules.event_time:
        return "date32" if natural == "date32" else "timestamp"
    return None if natural in (TEXT, EMPTY) else natural


def _infer(source: Source, kinds: dict[str, str | None]) -> bool:
    """Text columns without a kind get one by a look at all of their values. False when there is not a single row."""
    open_ = [name for name, kind in kinds.items() if kind is None and source.columns[name] == TEXT]
    rows = 0 if open_ else 1
    try:
        # What is broken in these rows is reported when they are read for good.
        for block in source.blocks(open_, Problems()) if open_ else ():
            rows += block.length
            for name in open_:
                kinds[name] = infer_text(kinds[name], block.values[name])
    except Unreadable:
        return False
    return rows > 0


def _report_empty(kinds: dict[str, str | None], found: list[str], wanted: Expected, problems: Problems) -> None:
    """Where a column without any value must not simply be left out."""
    if problems:
        return
    rules = wanted.rules
    last = [name for name in found if name != rules.event_time][-1:]
    for name, kind in kinds.items():
        if kind is not None:
            continue
        if rules.extra_columns == "refuse" and not wanted.declared:
            message = (
                f"column {name!r} has no value in this first file, so its type is unknown; declare it under columns"
            )
            problems.add("type", name, message)
        elif rules.label is None and not wanted.known and [name] == last:
            message = (
                f"the last column {name!r} is the label unless pipeline.yaml says otherwise, and it has no value; "
                "set dataset.label in pipeline.yaml"
            )
            problems.add("label", name, message)


def with_known(rules: TableRules, known: dict[str, str]) -> TableRules:
    """The same rules for a table that has these columns."""
    return replace(rules, known=tuple(Column(name, kind) for name, kind in known.items()))


def columns_of(schema: pa.Schema) -> tuple[Column, ...]:
    """The columns of a table that are the user's."""
    return tuple(
        Column(field.name, natural_kind(field.type) or str(field.type))
        for field in schema
        if field.name not in PLATFORM
    )
