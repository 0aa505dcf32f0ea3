"""What is scored: the files of a folder or a pattern, or those of one version of a table, cut into pieces that are read alone."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from dropforge.adapters.tabular.layout import open_source
from dropforge.adapters.tabular.parquet_source import ParquetSource
from dropforge.adapters.tabular.problems import Problems, Unreadable, may_pass
from dropforge.adapters.tabular.sources import Block
from dropforge.domain.errors import BadInput, NotFound, Unavailable
from dropforge.ports import TableRules

Format = Literal["csv", "parquet", "jsonl"]

FORMATS: dict[str, Format] = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
# Of what is dropped, sizes are limited; of what is scored, nothing is held that could be too large.
_NO_LIMIT = 2**62
_BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class InputFile:
    """One file. `name` is how results name it; `mark` its content: sha256, or the name of a file that never changes."""

    path: str
    name: str
    format: Format
    mark: str


@dataclass(frozen=True)
class Piece:
    """A part of a file that is read without the rest: of Parquet some row groups, of anything else the whole. `number` is its
    place among all; `first_row` how many rows lie before it."""

    number: int
    file: InputFile
    groups: tuple[int, ...] | None = None
    first_row: int = 0


@dataclass(frozen=True)
class Inputs:
    """All of it. `version`: of the table, if it is one; `columns`: the table's, of which a file may lack some."""

    files: tuple[InputFile, ...]
    version: int | None = None
    columns: dict[str, str] | None = None


def find(where: str, version: int | None = None) -> Inputs:
    """The files that a path means: a table's folder, any other folder (its files and those below), one file, or a pattern.
    Raises `NotFound` and `BadInput`."""
    path = Path(_local(where))
    if (path / "_delta_log").is_dir():
        return _table(path, version)
    if version is not None:
        raise BadInput(f"{where} is no table, so it has no version {version}")
    if path.is_dir():
        found = sorted(each for each in path.rglob("*") if each.is_file() and each.suffix.lower() in FORMATS)
        root = path
    elif path.is_file():
        found, root = [path], path.parent
    else:
        found = sorted(Path(each) for each in glob.glob(str(path), recursive=True) if Path(each).is_file())  # noqa: PTH207
        root = _root(path)
    if not found:
        raise NotFound(f"{where}: no table and no file ({', '.join(FORMATS)})")
    return Inputs(tuple(_file(each, each.relative_to(root).as_posix()) for each in found))


def _local(where: str) -> str:
    parts = urlsplit(where)
    if parts.scheme == "file":
        return unquote(parts.path)
    if "://" in where:
        raise BadInput(f"{where} lies in a store; what is scored is read from this machine: mount it, or copy it here")
    return where


def _root(pattern: Path) -> Path:
    """The folder above the first part that is a pattern."""
    fixed = Path(pattern.anchor)
    for part in pattern.parts[1 if pattern.anchor else 0 : -1]:
        if any(sign in part for sign in "*?["):
            break
        fixed /= part
    return fixed


def _file(path: Path, name: str) -> InputFile:
    format_ = FORMATS.get(path.suffix.lower())
    if format_ is None:
        raise BadInput(f"{path} is none of {', '.join(FORMATS)}")
    with path.open("rb") as reader:
        return InputFile(str(path.absolute()), name, format_, hashlib.file_digest(reader, "sha256").hexdigest())


def _table(folder: Path, version: int | None) -> Inputs:
    """The Parquet files are read one by one, by their paths, as on the training node (see `training.table`)."""
    try:
        table = DeltaTable(str(folder), version=version)
        names = sorted(pa.table(table.get_add_actions(flatten=True)).column("path").to_pylist())
        schema = pa.schema(table.schema().to_arrow())
    except (DeltaError, OSError) as error:
        raise NotFound(f"no version {version} of a table in {folder}: {error}") from error
    features = table.protocol().reader_features or []
    if table.metadata().partition_columns or "deletionVectors" in features or "columnMapping" in features:
        raise BadInput(
            f"the table in {folder} is partitioned or uses {features}; a dataset is a plain append-only table"
        )
    # Files of a table never change under their names.
    files = tuple(InputFile(str((folder / unquote(name)).absolute()), name, "parquet", name) for name in names)
    return Inputs(files, table.version(), {field.name: str(field.type) for field in schema})


def pieces(inputs: Inputs, rows: int) -> list[Piece]:
    """The inputs in pieces of about so many rows, where a file can be cut. Raises `Unavailable`."""
    found: list[Piece] = []
    for file in inputs.files:
        if file.format != "parquet":
            found.append(Piece(len(found), file))
            continue
        for groups, first in _groups(file, rows):
            found.append(Piece(len(found), file, groups, first))
    return found


def _groups(file: InputFile, rows: int) -> Iterator[tuple[tuple[int, ...] | None, int]]:
    try:
        with _errors(file, Problems()):
            metadata = pq.ParquetFile(file.path).metadata
    except Unreadable:
        # Told when it is read.
        yield None, 0
        return
    start, first, held = 0, 0, 0
    for index in range(metadata.num_row_groups):
        held += metadata.row_group(index).num_rows
        if held >= rows or index == metadata.num_row_groups - 1:
            yield tuple(range(start, index + 1)), first
            first, held, start = first + held, 0, index + 1
    if not metadata.num_row_groups:
        yield None, 0


@contextmanager
def _errors(file: InputFile, problems: Problems) -> Iterator[None]:
    """What may pass ends the scoring, and is no word on the file: that would be kept for ever."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, MemoryError, Unreadable) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:300]
        if may_pass(error.__cause__ if isinstance(error, Unreadable) else error):
            message = f"{file.name} cannot be read now: {reason}; score into the same folder again to go on"
            raise Unavailable(message, file=file.name) from error
        if isinstance(error, Unreadable):
            raise
        raise problems.stop("format", None, f"the file cannot be read any further: {reason}") from error


class Opened:
    """A piece, open. Raises `Unreadable` for a file that is not of its format, `Unavailable` for what may pass; `names` are
    the columns that it has."""

    def __init__(self, piece: Piece, problems: Problems) -> None:
        self._piece = piece
        rules = TableRules(piece.file.format, max_bytes=_NO_LIMIT)
        with _errors(piece.file, problems):
            self._source = open_source(Path(piece.file.path), rules, problems)
        self.names = tuple(self._source.columns)
        # Of a column that no table has (a list), None.
        self.kinds = dict(self._source.columns)

    def arrow_type(self, name: str) -> pa.DataType | None:
        """A column's type where the file tells it."""
        if not isinstance(self._source, ParquetSource):
            return None
        with _errors(self._piece.file, Problems()):
            return pq.read_schema(self._piece.file.path).field(name).type

    def blocks(self, names: Collection[str], problems: Problems) -> Iterator[Block]:
        """The rows, with the numbers they have in the file, counted from 1."""
        with _errors(self._piece.file, problems):
            if self._piece.groups is None:
                yield from self._source.blocks(names, problems)
            else:
                yield from self._rows_of(self._piece.groups, [name for name in self.names if name in names])

    def _rows_of(self, groups: tuple[int, ...], wanted: list[str]) -> Iterator[Block]:
        start = self._piece.first_row
        with pq.ParquetFile(self._piece.file.path, pre_buffer=False) as file:
            for batch in file.iter_batches(_BLOCK_ROWS, list(groups), wanted, use_threads=False):
                batch.validate(full=True)
                values = dict(zip(batch.schema.names, batch.columns, strict=True))
                yield Block(values, batch.num_rows, _after(start))
                start += batch.num_rows


def _after(start: int) -> Callable[[int], int]:
    return lambda index: start + 1 + index
