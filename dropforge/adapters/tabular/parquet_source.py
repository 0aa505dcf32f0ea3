"""Parquet files; what the footer claims is checked before a single page is read."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dropforge.adapters.tabular.kinds import natural_kind
from dropforge.adapters.tabular.problems import Problems, may_pass
from dropforge.adapters.tabular.sources import Block, check_names, look_at_start

BATCH_ROWS = 65_536
# Batches get shorter as rows get wider, so that a block stays at some megabytes.
BATCH_VALUES = 1_000_000
_BUFFER_BYTES = 1024**2
_MAX_FOOTER_BYTES = 64 * 1024**2
_MAGIC = b"PAR1"


class ParquetSource:
    """Columns have the types of the file."""

    def __init__(self, path: Path, problems: Problems, max_bytes: int) -> None:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
        if start != _MAGIC:
            look_at_start(path, "Parquet", problems)
            raise problems.stop("format", None, f"wanted a Parquet file, found one that starts with {start!r}")
        self._path = path
        with _errors(problems), pq.ParquetFile(str(path), **_options()) as file:
            metadata = file.metadata
            _check_claims(metadata, max_bytes, problems)
            schema = file.schema_arrow
        check_names(schema.names, problems)
        self._rows: int = metadata.num_rows
        self.columns = {field.name: natural_kind(field.type) for field in schema}
        self.strange = {field.name: str(field.type) for field in schema if self.columns[field.name] is None}

    def blocks(self, names: Collection[str], problems: Problems) -> Iterator[Block]:
        wanted = [name for name in self.columns if name in names]
        size = max(1, min(BATCH_ROWS, BATCH_VALUES // max(1, len(wanted))))
        start = 0
        with _errors(problems), pq.ParquetFile(str(self._path), **_options()) as file:
            for batch in file.iter_batches(batch_size=size, columns=wanted, use_threads=False):
                # What the file says of its strings is not believed.
                batch.validate(full=True)
                values = dict(zip(batch.schema.names, map(_plain_text, batch.columns), strict=True))
                yield Block(values, batch.num_rows, (start + 1).__add__)
                start += batch.num_rows
        if start != self._rows:
            message = f"wanted the {self._rows} rows that the footer claims, found {start}; drop the file again"
            raise problems.stop("format", None, message)


def _plain_text(values: pa.Array) -> pa.Array:
    """Arrow can pick no values out of a view of text."""
    return values.cast(pa.string()) if pa.types.is_string_view(values.type) else values


def _options() -> dict[str, Any]:
    # Pages are read as they are needed, not whole column chunks at once.
    return {"pre_buffer": False, "buffer_size": _BUFFER_BYTES, "thrift_string_size_limit": _MAX_FOOTER_BYTES}


def _check_claims(metadata: Any, max_bytes: int, problems: Problems) -> None:
    claimed = sum(max(0, metadata.row_group(index).total_byte_size) for index in range(metadata.num_row_groups))
    if claimed > max_bytes:
        message = (
            f"wanted at most {max_bytes:,} bytes of data (dataset.max_bytes), found a file that claims {claimed:,}"
        )
        raise problems.stop("max_bytes", None, message)
    # A run of equal values takes next to nothing in a file, and a byte each, at least, once it is read.
    cells = metadata.num_rows * metadata.num_columns
    if cells > max_bytes:
        message = f"wanted at most {max_bytes:,} bytes of data (dataset.max_bytes), found {cells:,} values in the file"
        raise problems.stop("max_bytes", None, message)


@contextmanager
def _errors(problems: Problems) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        # Memory may also run out by what a damaged file claims: of a dropped file that is a problem.
        if isinstance(error, OSError) and may_pass(error):
            raise
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        message = f"wanted a whole Parquet file, found one that cannot be read: {first_line}"
        raise problems.stop("format", None, message) from error
