"""`Tables` in this process's memory: the same files, rules and types, no storage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from dropforge.domain.errors import BadInput, Conflict, NotFound
from dropforge.ports import FileCheck, TableFile, TableRules, TableState

if TYPE_CHECKING:
    import pyarrow as pa


class MemoryTables:
    """Tables that end with the process. `rows(table, version)` shows what is in them."""

    def __init__(self) -> None:
        self._lock = Lock()
        # table -> its versions, each (batch, all rows).
        self._versions: dict[str, list[tuple[int, pa.Table]]] = {}

    def check(self, path: Path, rules: TableRules) -> FileCheck:
        """See `tabular.checks.check_file`."""
        from dropforge.adapters.tabular.checks import check_file

        return check_file(path, rules)

    def append(self, table: str, batch: int, files: Sequence[TableFile], rules: TableRules) -> TableState:
        """As the port says; raises `BadFile` and `Conflict` as `DeltaTables` does."""
        import pyarrow as pa

        from dropforge.adapters.tabular.appending import batches, plan
        from dropforge.adapters.tabular.layout import columns_of

        if batch < 0 or not files:
            raise BadInput(f"wanted a batch number from 0 and at least one file, found {batch} and {len(files)} files")
        with self._lock:
            versions = self._versions.get(table, [])
            for version, (made_by, _) in enumerate(versions):
                if made_by == batch:
                    return self._state(table, version)
            if versions and versions[-1][0] > batch:
                message = f"table {table}: batch {batch} cannot be appended after batch {versions[-1][0]}"
                raise Conflict(f"{message}; batch numbers only grow", table=table, batch=batch)
            known = {each.name: each.type for each in columns_of(versions[-1][1].schema)} if versions else {}
            planned = plan(files, rules, known)
            added = pa.Table.from_batches(batches(planned), planned.schema)
            before = [versions[-1][1]] if versions else []
            whole = pa.concat_tables([*before, added], promote_options="default")
            self._versions[table] = [*versions, (batch, whole)]
            return self._state(table, len(versions))

    def find(self, table: str, batch: int) -> TableState | None:
        """As the port says."""
        for version, (made_by, _) in enumerate(self._versions.get(table, [])):
            if made_by == batch:
                return self._state(table, version)
        return None

    def read_version(self, table: str, version: int) -> TableState:
        """As the port says."""
        if not 0 <= version < len(self._versions.get(table, [])):
            raise NotFound(f"table {table} has no version {version}", table=table, version=version)
        return self._state(table, version)

    def rows(self, table: str, version: int) -> pa.Table:
        """All rows of a version."""
        return self._versions[table][version][1]

    def _state(self, table: str, version: int) -> TableState:
        from dropforge.adapters.tabular.layout import columns_of

        whole = self._versions[table][version][1]
        return TableState(f"memory://{table}", version, whole.num_rows, columns_of(whole.schema))
