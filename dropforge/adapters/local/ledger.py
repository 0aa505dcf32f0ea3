"""The ledger as one SQLite file."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, LifoQueue

from dropforge.adapters.ledger_rows import checked_key, checked_scan, checked_writes, conflict
from dropforge.adapters.local.atomic import locked, make_folders, sync_folder
from dropforge.domain.errors import DropforgeError, Unavailable
from dropforge.ports import Delete, Insert, Row, Write

# Tells our file from any other SQLite file: "DFLG".
APPLICATION_ID = 0x44464C47
SCHEMA_VERSION = 1
BUSY_SECONDS = 30.0

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE rows (
    partition TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    etag TEXT NOT NULL,
    PRIMARY KEY (partition, key)
) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""


class SqliteLedger:
    """`Ledger` over one SQLite file on a local disk, shared by the threads and processes of this machine.

    Each thread borrows a connection for one call. Open it in each process; do not carry it over a fork.
    """

    def __init__(self, path: Path) -> None:
        """Open the ledger, or make it. Raises `DropforgeError` for a file that is damaged, is no ledger, or was
        written by a dropforge of another schema version."""
        self._path = path
        self._lock_path = path.with_name(f"{path.name}.lock")
        self._idle: LifoQueue[sqlite3.Connection] = LifoQueue()
        make_folders(path.parent)
        try:
            with locked(self._lock_path), self._connection() as connection:
                _prepare(connection, path)
                sync_folder(path.parent)
        except BaseException:
            self.close()
            raise

    def get(self, partition: str, key: str) -> Row | None:
        checked_key(partition, "partition")
        checked_key(key, "key")
        with self._connection() as connection:
            found = connection.execute(
                "SELECT key, value, etag FROM rows WHERE partition = ? AND key = ?", (partition, key)
            ).fetchone()
        return _row(found) if found else None

    def scan(self, partition: str, prefix: str = "", after: str = "", limit: int = 1000) -> list[Row]:
        checked_scan(partition, prefix, after, limit)
        with self._connection() as connection:
            # "\x7f" sorts after every character a key may hold.
            found = connection.execute(
                "SELECT key, value, etag FROM rows "
                "WHERE partition = ? AND key >= ? AND key < ? AND key > ? ORDER BY key LIMIT ?",
                (partition, prefix, f"{prefix}\x7f", after, limit),
            ).fetchall()
        return [_row(values) for values in found]

    def count(self, partition: str, prefix: str, limit: int) -> int:
        checked_scan(partition, prefix, "", limit)
        with self._connection() as connection:
            found = connection.execute(
                "SELECT count(*) FROM (SELECT 1 FROM rows WHERE partition = ? AND key >= ? AND key < ? LIMIT ?)",
                (partition, prefix, f"{prefix}\x7f", limit),
            ).fetchone()
        return int(found[0])

    def commit(self, partition: str, writes: Sequence[Write]) -> None:
        checked = checked_writes(partition, writes)
        if not checked:
            return
        # The file lock queues writers in the kernel; SQLite's own waiting polls, and starves some for seconds.
        with locked(self._lock_path), self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                if not _inserted(connection, partition, checked):
                    for write, text in checked:
                        if not _apply(connection, partition, write, text):
                            raise conflict(partition, write)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the idle connections. A later call opens new ones."""
        while True:
            try:
                self._idle.get_nowait().close()
            except Empty:
                return

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            try:
                connection = self._idle.get_nowait()
            except Empty:
                connection = self._open()
            try:
                yield connection
            except sqlite3.Error:
                connection.close()
                raise
            except BaseException:
                self._idle.put(connection)
                raise
            self._idle.put(connection)
        except sqlite3.OperationalError as error:
            raise Unavailable(f"ledger {self._path} did not answer: {error}; check the disk, then try again") from error
        except sqlite3.DatabaseError as error:
            raise DropforgeError(f"ledger {self._path} cannot be read: {error}; restore it from a copy") from error

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=16
        )
        try:
            # FULL: in WAL mode only this makes a commit durable before it is acknowledged.
            connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
        return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    def pragma(name: str) -> object:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]

    if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0 and pragma("user_version") == 0:
        if pragma("journal_mode = WAL") != "wal":
            raise DropforgeError(f"ledger {path} needs a write-ahead log; put the state folder on a local disk")
        connection.executescript(_SCHEMA)
        return
    if pragma("application_id") != APPLICATION_ID:
        raise DropforgeError(f"{path} is not a ledger but another SQLite file; point the state folder elsewhere")
    version = pragma("user_version")
    if version != SCHEMA_VERSION:
        raise DropforgeError(
            f"ledger {path} has schema version {version}, this dropforge reads {SCHEMA_VERSION}; "
            "use the dropforge that wrote it, or another state folder"
        )


def _inserted(connection: sqlite3.Connection, partition: str, checked: Sequence[tuple[Write, str]]) -> bool:
    """Whether all of it was new rows, which are then written by one statement: each statement has to wait its turn among
    the threads of a busy process. False: nothing is written."""
    values: list[str] = []
    for write, text in checked:
        if not isinstance(write, Insert):
            return False
        values += (partition, write.key, text, secrets.token_hex(8))
    rows = ",".join(["(?, ?, ?, ?)"] * len(checked))
    try:
        connection.execute(f"INSERT INTO rows VALUES {rows}", values)  # noqa: S608 - only question marks
    except sqlite3.IntegrityError:
        return False
    return True


def _apply(connection: sqlite3.Connection, partition: str, write: Write, text: str) -> bool:
    """Whether the write found what it expects."""
    if isinstance(write, Insert):
        statement = "INSERT INTO rows VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
        values: tuple[str, ...] = (partition, write.key, text, secrets.token_hex(8))
    elif isinstance(write, Delete):
        if write.etag is None:
            connection.execute("DELETE FROM rows WHERE partition = ? AND key = ?", (partition, write.key))
            return True
        statement = "DELETE FROM rows WHERE partition = ? AND key = ? AND etag = ?"
        values = (partition, write.key, write.etag)
    else:
        statement = "UPDATE rows SET value = ?, etag = ? WHERE partition = ? AND key = ? AND etag = ?"
        values = (text, secrets.token_hex(8), partition, write.key, write.etag)
    return connection.execute(statement, values).rowcount == 1


def _row(values: tuple[str, str, str]) -> Row:
    key, text, etag = values
    return Row(key, json.loads(text), etag)
