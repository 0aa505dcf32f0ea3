"""`Tables` on Delta Lake: a folder per table, on this machine or in a store that has put-if-absent."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from dropforge.domain.errors import BadInput, Conflict, NotFound, Unavailable
from dropforge.ports import FileCheck, TableFile, TableRules, TableState

if TYPE_CHECKING:
    from deltalake import DeltaTable, Transaction

    from dropforge.adapters.tabular.appending import Plan

# pyarrow and deltalake take a quarter of a second to import, and most processes never touch a table: every function
# that needs them imports them, and so does everything in `adapters.tabular`.

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# In the commit, beside Delta's own `txn` action: which batch made the version.
_BATCH_KEY = "dropforge.batch"
_CONFIGURATION = {
    # Every version can be read for ever: models name the version they learned from.
    "delta.enableExpiredLogCleanup": "false",
    "delta.appendOnly": "true",
}
# Newest commits looked at first when a batch is looked for; nearly always it is among them, and each is a file to read.
_RECENT = 16
# Colours and arrows.
_DRAWN = re.compile("\x1b\\[[0-9;]*m|↳")
# Commits lost to others in a row before giving up.
_ATTEMPTS = 10


class DeltaTables:
    """Tables under a root: a path, `file:///…`, `abfss://…`, `az://…`; `storage_options` as delta-rs takes them, or what
    makes them: it is asked each time a table is opened.

    A batch is one commit, which carries the batch number as a Delta transaction of the platform. Commits are never
    merged with what others committed meanwhile: the one who finds the version taken looks again, and finds the batch
    there or appends to the newer version.
    """

    def __init__(
        self, root_uri: str, storage_options: dict[str, str] | Callable[[], dict[str, str]] | None = None
    ) -> None:
        local = "://" not in root_uri
        self._root = Path(root_uri).absolute().as_uri() if local else root_uri.rstrip("/")
        self._told = storage_options

    def check(self, path: Path, rules: TableRules) -> FileCheck:
        """See `tabular.checks.check_file`."""
        from dropforge.adapters.tabular.checks import check_file

        return check_file(path, rules)

    def append(self, table: str, batch: int, files: Sequence[TableFile], rules: TableRules) -> TableState:
        """As the port says. Raises `BadFile` with `source=` for a file that does not fit after all; nothing is appended
        then. `Conflict` for a batch that is not there although a later one is."""
        from deltalake import Transaction

        from dropforge.adapters.tabular.appending import plan

        uri = self._uri(table)
        app = f"dropforge/{table}"
        if batch < 0 or not files:
            raise BadInput(f"wanted a batch number from 0 and at least one file, found {batch} and {len(files)} files")
        for _ in range(_ATTEMPTS):
            handle = self._open(uri)
            if handle is not None:
                with _translated(uri):
                    newest = handle.transaction_version(app)
                if newest is not None and newest >= batch:
                    return self._made_by(handle, uri, table, batch, newest)
            planned = plan(files, rules, self._known(handle))
            version = 0 if handle is None else handle.version() + 1
            if self._commit(uri, handle, version, planned, Transaction(app, batch)):
                return self._durable_state(uri, version)
        raise Unavailable(
            f"table {table}: {_ATTEMPTS} commits in a row were overtaken by others; try again", table=table
        )

    def find(self, table: str, batch: int) -> TableState | None:
        """As the port says; read from the log alone."""
        uri = self._uri(table)
        handle = self._open(uri)
        if handle is None:
            return None
        with _translated(uri):
            newest = handle.transaction_version(f"dropforge/{table}")
        if newest is None or newest < batch:
            return None
        try:
            return self._made_by(handle, uri, table, batch, newest)
        except Conflict:
            return None

    def read_version(self, table: str, version: int) -> TableState:
        """As the port says; read from the log alone."""
        uri = self._uri(table)
        handle = self._open(uri)
        if handle is None or not 0 <= version <= handle.version():
            newest = "no table" if handle is None else f"versions 0 to {handle.version()}"
            raise NotFound(f"table {table} has no version {version}; found {newest}", table=table, version=version)
        return self._state(uri, version)

    def _options(self) -> dict[str, str] | None:
        return self._told() if callable(self._told) else self._told

    def _uri(self, table: str) -> str:
        if not all(_SEGMENT.fullmatch(segment) for segment in table.split("/")):
            raise BadInput(
                f"table {table!r} is not a table name; use letters, digits, '-', '_', '.' and '/'", table=table
            )
        return f"{self._root}/{table}"

    def _open(self, uri: str, version: int | None = None) -> DeltaTable | None:
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        with _translated(uri):
            try:
                return DeltaTable(uri, version=version, storage_options=self._options())
            except TableNotFoundError:
                return None

    def _known(self, handle: DeltaTable | None) -> dict[str, str]:
        import pyarrow as pa

        from dropforge.adapters.tabular.layout import columns_of

        if handle is None:
            return {}
        return {column.name: column.type for column in columns_of(pa.schema(handle.schema().to_arrow()))}

    def _commit(
        self, uri: str, handle: DeltaTable | None, version: int, planned: Plan, transaction: Transaction
    ) -> bool:
        """Whether these rows became that version, the one after the handle's; False when it is there by now anyway."""
        import pyarrow as pa
        from deltalake import CommitProperties, write_deltalake
        from deltalake.exceptions import DeltaError

        from dropforge.adapters.tabular.appending import batches

        failures: list[Exception] = []

        def rows() -> Iterator[pa.RecordBatch]:
            # deltalake would hand back our own errors as text.
            try:
                yield from batches(planned)
            except Exception as error:
                failures.append(error)
                raise

        properties = CommitProperties(
            custom_metadata={_BATCH_KEY: transaction.version},
            # A commit that is retried is checked against a newer version only by Delta's rules, which allow a second
            # creation of the table together with its rows. Without retries, version N is made by one commit.
            max_commit_retries=0,
            app_transactions=[transaction],
        )
        reader = pa.RecordBatchReader.from_batches(planned.schema, rows())
        try:
            if handle is None:
                write_deltalake(
                    uri,
                    reader,
                    mode="error",
                    configuration=_CONFIGURATION,
                    storage_options=self._options(),
                    commit_properties=properties,
                )
            else:
                write_deltalake(handle, reader, mode="append", schema_mode="merge", commit_properties=properties)
        except (DeltaError, OSError) as error:
            if failures:
                raise failures[0] from None
            newer = self._open(uri)
            if newer is not None and newer.version() >= version:
                return False
            raise Unavailable(f"table at {uri}: nothing was appended: {_line(error)}", table=uri) from error
        finally:
            reader.close()
        return True

    def _made_by(self, handle: DeltaTable, uri: str, table: str, batch: int, newest: int) -> TableState:
        for limit in (_RECENT, None):
            with _translated(uri):
                commits = handle.history(limit)
            for commit in commits:
                if commit.get(_BATCH_KEY) == batch:
                    return self._durable_state(uri, int(commit["version"]))
        raise Conflict(
            f"table {table}: batch {batch} cannot be appended after batch {newest}; batch numbers only grow",
            table=table,
            batch=batch,
        )

    def _durable_state(self, uri: str, version: int) -> TableState:
        """The state, once a power cut cannot take it back any more: delta-rs leaves local files to the page cache."""
        if uri.startswith("file://"):
            folder = Path(unquote(urlsplit(uri).path))
            log = folder / "_delta_log" / f"{version:020}.json"
            actions = [json.loads(line) for line in log.read_text().splitlines()]
            paths = [folder / unquote(action["add"]["path"]) for action in actions if "add" in action]
            for path in (*paths, log, folder, log.parent, *((folder.parent,) if version == 0 else ())):
                _fsync(path)
        return self._state(uri, version)

    def _state(self, uri: str, version: int) -> TableState:
        import pyarrow as pa

        from dropforge.adapters.tabular.layout import columns_of

        handle = self._open(uri, version)
        if handle is None:
            raise NotFound(f"no table at {uri}")
        with _translated(uri):
            rows = sum(pa.table(handle.get_add_actions()).column("num_records").to_pylist())
            return TableState(uri, version, rows, columns_of(pa.schema(handle.schema().to_arrow())))


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    from deltalake.exceptions import DeltaError

    try:
        yield
    except (DeltaError, OSError) as error:
        raise Unavailable(f"table at {uri} cannot be read: {_line(error)}", table=uri) from error


def _line(error: Exception) -> str:
    """What delta-rs draws in colours over many lines, as one; and what to do where a role is missing."""
    text = " ".join(_DRAWN.sub(" ", str(error)).split())[:500]
    role = "; give the identity that asks the role Storage Blob Data Contributor there" if " 403 " in text else ""
    return text + role


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
