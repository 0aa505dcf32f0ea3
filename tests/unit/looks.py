"""A look at content as a dropped file, for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dropforge.adapters.tabular.checks import check_file
from dropforge.ports import FileCheck, Problem, TableRules

Format = Literal["csv", "parquet", "jsonl"]
Look = Callable[..., FileCheck]


def checked(path: Path, content: str | bytes | pa.Table, kind: Format = "csv", **rules: Any) -> FileCheck:
    """What a check of the content finds; rules are given by name."""
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return check_file(path, TableRules(kind, **rules))


def only(check: FileCheck) -> Problem:
    """The one problem there is."""
    assert len(check.problems) == 1, check.problems
    return check.problems[0]


def types(check: FileCheck) -> dict[str, str]:
    """Type by column."""
    return {column.name: column.type for column in check.columns}
