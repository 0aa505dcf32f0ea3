"""The dataset version as one Arrow table, and which of its columns are what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from dropforge.domain.runs import RunSpec
from dropforge.training.contract import ExitCode, NodeFailed

SOURCE = "_source"
ARRIVED_AT = "_arrived_at"
PLATFORM = (SOURCE, ARRIVED_AT)


def read_table(uri: str, version: int) -> pa.Table:
    """All rows of that version, in one fixed order, with plain column types. Raises `NodeFailed`.

    The Parquet files are read one by one: a pyarrow dataset made by deltalake aborts the process at exit now and then
    (deltalake 1.6 with pyarrow 26, one exit in four).
    """
    folder = local_path(uri)
    try:
        table = DeltaTable(str(folder), version=version)
        files = sorted(pa.table(table.get_add_actions(flatten=True)).column("path").to_pylist())
        schema = pa.schema(table.schema().to_arrow())
    except (DeltaError, OSError) as error:
        raise NodeFailed(ExitCode.SPEC_WRONG, f"no version {version} of a table at {uri}: {error}") from error
    features = table.protocol().reader_features or []
    if table.metadata().partition_columns or "deletionVectors" in features or "columnMapping" in features:
        raise NodeFailed(
            ExitCode.SPEC_WRONG,
            f"the table at {uri} is partitioned or uses {features}; a dataset is a plain append-only table",
        )
    parts = [_fitted(pq.ParquetFile(folder / unquote(name)).read(), schema) for name in files]
    return _plain(pa.concat_tables(parts) if parts else schema.empty_table())


def local_path(uri: str) -> Path:
    """The folder that a `file:` URI or a plain path names. A node sees mounted paths only, never a cloud URI."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if "://" in uri:
        raise NodeFailed(
            ExitCode.SPEC_WRONG, f"table {uri!r} is not a path on this machine; mount it and pass the path"
        )
    return Path(uri)


def _fitted(part: pa.Table, schema: pa.Schema) -> pa.Table:
    """A file written before a column was added has nulls there."""
    columns = [
        part.column(field.name).cast(field.type) if field.name in part.column_names else pa.nulls(len(part), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _plain(table: pa.Table) -> pa.Table:
    for index, field in enumerate(table.schema):
        plain = _plain_type(field.type)
        if plain != field.type:
            table = table.set_column(index, field.name, table.column(index).cast(plain))
    return table


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_decimal(kind):
        return pa.float64()
    return kind


@dataclass(frozen=True)
class Roles:
    """Which column is what. `event_time` None: rows are ordered by when they arrived."""

    label: str
    event_time: str | None
    features: tuple[str, ...]


def roles_of(spec: RunSpec, table: pa.Table) -> Roles:
    """What the run spec says, with its defaults filled in. Raises `NodeFailed` for a column the table does not have."""
    names = [name for name in table.column_names if name not in PLATFORM]
    label = spec.label or _last_of_first_file(table, spec.event_time)
    features = spec.features or tuple(name for name in names if name not in (label, spec.event_time))
    asked = [("label", label), ("event_time", spec.event_time)]
    asked += [("features", name) for name in features] + [("slices", name) for name in spec.evaluation.slices]
    for key, name in asked:
        if name is not None and name not in table.column_names:
            raise NodeFailed(ExitCode.SPEC_WRONG, f"{key}: no column {name!r} in the dataset; it has {names}")
    if label in features:
        raise NodeFailed(ExitCode.SPEC_WRONG, f"features: {label!r} is the label; a model must not see it")
    if not features:
        raise NodeFailed(ExitCode.SPEC_WRONG, f"the dataset has no column to learn from; it has {names}")
    return Roles(label, spec.event_time, features)


def _last_of_first_file(table: pa.Table, event_time: str | None) -> str:
    """The platform's columns follow those of the first file; columns of later files come after them."""
    names: list[str] = table.column_names
    first = names[: names.index(SOURCE)] if SOURCE in names[1:] else names
    candidates = [name for name in first if name != event_time and name not in PLATFORM]
    if not candidates:
        raise NodeFailed(ExitCode.SPEC_WRONG, f"no column can be the label; the dataset has {names}")
    return candidates[-1]
