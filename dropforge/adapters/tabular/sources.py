"""A dropped file as columns and blocks of rows, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from dropforge.adapters.tabular.problems import Problems, Unreadable, listed, shown

# Wider than any table of ours is useful for, narrow enough for every check to stay quick.
MAX_COLUMNS = 10_000
MAX_NAME_CHARS = 255
# What a block of rows takes in the file; a single row cannot be longer.
BLOCK_BYTES = 8 * 1024**2

# What a file starts with when it is something else altogether.
_MAGIC = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook"),
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"PAR1", "Parquet"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
    (b"%PDF", "a PDF"),
    (b"SQLite format 3", "a SQLite database"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
)


@dataclass(frozen=True)
class Block:
    """Some rows of a file. `row` gives the 1-based data row of a position in the arrays."""

    values: dict[str, pa.Array]
    length: int
    row: Callable[[int], int]


class Source(Protocol):
    """One file. `columns` are its names in order with their natural kind (see `kinds`), None for a kind no table has."""

    columns: dict[str, str | None]
    # What a column that no table has is, for the message.
    strange: dict[str, str]

    def blocks(self, names: Collection[str], problems: Problems) -> Iterator[Block]:
        """The rows, from the first, each time it is called. Rows that cannot be read are left out and reported;
        `Unreadable` is raised, and the reason reported, where the file cannot be read any further."""


def look_at_start(path: Path, wanted: str, problems: Problems) -> None:
    """Raises `Unreadable` for an empty file and for one that is plainly something else."""
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise problems.stop("format", None, f"wanted a {wanted} file, found an empty file (0 bytes)")
    for magic, name in _MAGIC:
        if start.startswith(magic):
            hint = "save it as UTF-8" if "UTF-16" in name else f"drop it as plain {wanted}, or set dataset.format"
            raise problems.stop("format", None, f"wanted a {wanted} file, found {name}; {hint}")


def check_names(names: list[str], problems: Problems) -> None:
    """Raises `Unreadable` for column names that no table can have side by side."""
    if len(names) > MAX_COLUMNS:
        message = f"wanted at most {MAX_COLUMNS:,} columns, found {len(names):,}; is the file transposed?"
        raise problems.stop("columns", None, message)
    seen: dict[str, str] = {}
    stopped: Unreadable | None = None
    for name in names:
        first = seen.get(name.lower())
        seen.setdefault(name.lower(), name)
        if first is not None and name:
            twice = "twice" if first == name else f"beside {first!r}, and tables do not tell cases apart"
            message = f"column names must differ, found {shown(name)!r} {twice}; the columns are {listed(names)}"
            stopped = problems.stop("columns", name, message)
        if len(name) > MAX_NAME_CHARS or any(ord(char) < 32 for char in name):
            message = (
                f"a column name must be at most {MAX_NAME_CHARS} characters on one line, found {shown(name)!r}; "
                "is the first line really the header?"
            )
            stopped = problems.stop("columns", shown(name), message)
    if stopped:
        raise stopped
