"""The engine's database: one SQLite file, written by the engine's thread only, one transaction per turn.

    instances   one row per orchestration, with the bookkeeping of its current execution
    episodes    the history of the current execution, one row per episode
    inbox       messages that no episode has taken yet, for orchestrations and entities alike
    activities  scheduled and not finished: what a restart runs again
    timers      armed and not fired
    entities    state of the entities that exist

The start of an instance is not in the inbox: a Pending instance without history implies it.
"""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from dropforge.host.durable import book as books
from dropforge.host.durable import messages
from dropforge.host.durable.errors import EngineStopped
from dropforge.host.durable.execution import ActivityOrder, Execution
from dropforge.host.durable.messages import Kind, Message, Parent

_parent = msgspec.json.Decoder(Parent)

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE instances (
    serial INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, version TEXT NOT NULL,
    status TEXT NOT NULL, execution TEXT NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    parent TEXT, custom_status TEXT, book BLOB NOT NULL, input TEXT, output TEXT);
CREATE INDEX instances_created ON instances (created_at);
CREATE TABLE episodes (seq INTEGER PRIMARY KEY, instance INTEGER NOT NULL, events TEXT NOT NULL);
CREATE INDEX episodes_instance ON episodes (instance);
CREATE TABLE inbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, target TEXT NOT NULL, kind TEXT NOT NULL, task_id INTEGER NOT NULL,
    name TEXT NOT NULL, execution TEXT NOT NULL, failed INTEGER NOT NULL, text TEXT NOT NULL);
CREATE INDEX inbox_target ON inbox (target);
CREATE TABLE activities (
    instance INTEGER NOT NULL, task_id INTEGER NOT NULL, execution TEXT NOT NULL, name TEXT NOT NULL, input TEXT,
    PRIMARY KEY (instance, task_id)) WITHOUT ROWID;
CREATE TABLE timers (
    due INTEGER NOT NULL, instance INTEGER NOT NULL, task_id INTEGER NOT NULL,
    PRIMARY KEY (due, instance, task_id)) WITHOUT ROWID;
CREATE INDEX timers_instance ON timers (instance);
CREATE TABLE entities (
    serial INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, state TEXT, updated_at INTEGER NOT NULL);
"""

LIVE = ("Pending", "Running", "Suspended")


@dataclass(slots=True)
class Hot:
    """An instance in memory: its row, its execution and its inbox."""

    serial: int
    status: str
    created_at: int
    updated_at: int
    custom_status: str | None
    execution: Execution
    inbox: list[Message] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.execution.instance_id

    @property
    def live(self) -> bool:
        return self.status in LIVE

    @property
    def start_implied(self) -> bool:
        return self.status == "Pending" and not self.execution.history

    def start_message(self) -> Message:
        run = self.execution
        return messages.started(
            self.created_at, run.name, run.version, run.input, run.instance_id, run.execution_id, run.parent
        )


def connect(database: Path, *, read_only: bool = False) -> sqlite3.Connection:
    uri = f"{database.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, cached_statements=256)
    connection.execute("PRAGMA busy_timeout = 10000")
    return connection


class Store:
    """The only writer of the database. A second store on the same file is refused."""

    def __init__(self, database: Path) -> None:
        database.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(database)
        try:
            self._db = connect(database)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._migrate(database)
        except BaseException:
            self.close()
            raise

    def _migrate(self, database: Path) -> None:
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif found != SCHEMA_VERSION:
            raise EngineStopped(
                f"{database} has schema {found} and this version reads {SCHEMA_VERSION}; "
                "finish its instances with the version that wrote it, or start with another file"
            )

    def close(self) -> None:
        """Closes without committing what is open. A second call does nothing."""
        for connection in (getattr(self, "_db", None), self._lock):
            if connection is not None:
                connection.close()

    # -- transactions -----------------------------------------------------------------------------------------------

    def _write(self, sql: str, values: tuple[Any, ...]) -> sqlite3.Cursor:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")
        return self._db.execute(sql, values)

    def _write_many(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(sql, rows)

    def commit(self) -> None:
        if self._db.in_transaction:
            self._db.execute("COMMIT")

    def rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    # -- instances --------------------------------------------------------------------------------------------------

    def insert(self, execution: Execution, at: int) -> Hot:
        parent = msgspec.json.encode(execution.parent).decode() if execution.parent else None
        cursor = self._write(
            "INSERT INTO instances (id, name, version, status, execution, created_at, updated_at, parent, book, input)"
            " VALUES (?, ?, ?, 'Pending', ?, ?, ?, ?, ?, ?)",
            (
                execution.instance_id,
                execution.name,
                execution.version,
                execution.execution_id,
                at,
                at,
                parent,
                books.encode(execution.book),
                execution.input,
            ),
        )
        assert cursor.lastrowid is not None
        hot = Hot(cursor.lastrowid, "Pending", at, at, None, execution)
        hot.inbox.append(hot.start_message())
        return hot

    def update(self, hot: Hot, output: str | None = None) -> None:
        execution = hot.execution
        self._write(
            "UPDATE instances SET status = ?, execution = ?, updated_at = ?, custom_status = ?, book = ?, output = ?"
            " WHERE serial = ?",
            (
                hot.status,
                execution.execution_id,
                hot.updated_at,
                hot.custom_status,
                books.encode(execution.book),
                output,
                hot.serial,
            ),
        )

    def start_over(self, hot: Hot) -> None:
        """Continue as new: the history goes, the input is another."""
        self._write("DELETE FROM episodes WHERE instance = ?", (hot.serial,))
        self._write("UPDATE instances SET input = ? WHERE serial = ?", (hot.execution.input, hot.serial))

    def load(self, instance_id: str) -> Hot | None:
        """The instance with its inbox; the history only where it may still be needed."""
        row = self._db.execute(
            "SELECT serial, name, version, status, execution, created_at, updated_at, parent, custom_status, book,"
            " input FROM instances WHERE id = ?",
            (instance_id,),
        ).fetchone()
        if row is None:
            return None
        serial, name, version, status, execution_id, created_at, updated_at, parent, custom_status, book, input_ = row
        execution = Execution(
            instance_id,
            execution_id,
            name,
            version,
            input_,
            _parent.decode(parent) if parent else None,
            book=books.decode(book),
        )
        for events in self.history(serial) if status in LIVE else ():
            execution.append(events)
        hot = Hot(serial, status, created_at, updated_at, custom_status, execution)
        if hot.live:
            hot.inbox = self.inbox(instance_id)
            hot.inbox.sort(key=lambda message: message.kind is not Kind.START)
            if hot.start_implied and not (hot.inbox and hot.inbox[0].kind is Kind.START):
                hot.inbox.insert(0, hot.start_message())
        return hot

    def history(self, serial: int) -> list[str]:
        rows = self._db.execute("SELECT events FROM episodes WHERE instance = ? ORDER BY seq", (serial,))
        return [events for (events,) in rows]

    def add_episode(self, serial: int, events: str) -> None:
        self._write("INSERT INTO episodes (instance, events) VALUES (?, ?)", (serial, events))

    def replace_history(self, serial: int, history: list[str]) -> None:
        self._write("DELETE FROM episodes WHERE instance = ?", (serial,))
        for events in history:
            self.add_episode(serial, events)

    def delete(self, serial: int, instance_id: str) -> None:
        self.drop_open(serial, instance_id)
        self._write("DELETE FROM episodes WHERE instance = ?", (serial,))
        self._write("DELETE FROM instances WHERE serial = ?", (serial,))

    def drop_open(self, serial: int, instance_id: str) -> None:
        """Forgets everything that could still happen to the instance."""
        self._write("DELETE FROM activities WHERE instance = ?", (serial,))
        self._write("DELETE FROM timers WHERE instance = ?", (serial,))
        self._write("DELETE FROM inbox WHERE target = ?", (instance_id,))

    # -- messages ---------------------------------------------------------------------------------------------------

    def inbox(self, target: str, limit: int = -1) -> list[Message]:
        rows = self._db.execute(
            "SELECT kind, text, task_id, name, execution, failed, seq FROM inbox WHERE target = ? ORDER BY seq LIMIT ?",
            (target, limit),
        )
        return [
            Message(Kind(kind), text, task_id, name, execution, bool(failed), seq)
            for kind, text, task_id, name, execution, failed, seq in rows
        ]

    def add_message(self, target: str, message: Message) -> None:
        cursor = self._write(
            "INSERT INTO inbox (target, kind, task_id, name, execution, failed, text) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (target, message.kind, message.task_id, message.name, message.execution, message.failed, message.text),
        )
        assert cursor.lastrowid is not None
        message.seq = cursor.lastrowid

    def remove_messages(self, taken: Iterable[Message]) -> None:
        rows = [(message.seq,) for message in taken if message.seq]
        if rows:
            self._write_many("DELETE FROM inbox WHERE seq = ?", rows)

    def targets(self) -> list[str]:
        """Who has something to do after a restart."""
        rows = self._db.execute(
            "SELECT target FROM inbox UNION SELECT id FROM instances WHERE status = 'Pending' ORDER BY 1"
        )
        return [target for (target,) in rows]

    # -- activities and timers --------------------------------------------------------------------------------------

    def add_activities(self, serial: int, orders: list[ActivityOrder]) -> None:
        self._write_many(
            "INSERT OR REPLACE INTO activities (instance, task_id, execution, name, input) VALUES (?, ?, ?, ?, ?)",
            [(serial, order.task_id, order.execution_id, order.name, order.input) for order in orders],
        )

    def remove_activities(self, serial: int, task_ids: list[int]) -> None:
        rows = [(serial, task_id) for task_id in task_ids]
        self._write_many("DELETE FROM activities WHERE instance = ? AND task_id = ?", rows)

    def activities(self) -> list[ActivityOrder]:
        rows = self._db.execute(
            "SELECT i.id, a.execution, a.task_id, a.name, a.input"
            " FROM activities a JOIN instances i ON i.serial = a.instance ORDER BY a.instance, a.task_id"
        )
        return [ActivityOrder(*row) for row in rows]

    def add_timers(self, serial: int, timers: list[tuple[int, int]]) -> None:
        rows = [(due, serial, task_id) for task_id, due in timers]
        self._write_many("INSERT OR REPLACE INTO timers (due, instance, task_id) VALUES (?, ?, ?)", rows)

    def remove_timers(self, serial: int, timers: list[tuple[int, int]]) -> None:
        rows = [(due, serial, task_id) for task_id, due in timers]
        self._write_many("DELETE FROM timers WHERE due = ? AND instance = ? AND task_id = ?", rows)

    def due_timers(self, now: int, limit: int) -> list[tuple[int, int, int, str]]:
        """(due, serial, task id, instance id) of timers to fire, the earliest first."""
        return self._db.execute(
            "SELECT t.due, t.instance, t.task_id, i.id FROM timers t JOIN instances i ON i.serial = t.instance"
            " WHERE t.due <= ? ORDER BY t.due LIMIT ?",
            (now, limit),
        ).fetchall()

    def next_due(self) -> int | None:
        (due,) = self._db.execute("SELECT min(due) FROM timers").fetchone()
        return due  # type: ignore[no-any-return]

    # -- entities ---------------------------------------------------------------------------------------------------

    def entity(self, entity_id: str) -> tuple[bool, str | None]:
        """(exists, state)."""
        row = self._db.execute("SELECT state FROM entities WHERE id = ?", (entity_id,)).fetchone()
        return (False, None) if row is None else (True, row[0])

    def put_entity(self, entity_id: str, exists: bool, state: str | None, at: int) -> None:
        if exists:
            self._write(
                "INSERT INTO entities (id, state, updated_at) VALUES (?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET state = excluded.state, updated_at = excluded.updated_at",
                (entity_id, state, at),
            )
        else:
            self._write("DELETE FROM entities WHERE id = ?", (entity_id,))

    # -- purge ------------------------------------------------------------------------------------------------------

    def finished_between(self, since: int, until: int, statuses: list[str]) -> list[tuple[int, str]]:
        marks = ",".join("?" * len(statuses))
        return self._db.execute(
            "SELECT serial, id FROM instances WHERE created_at >= ? AND created_at <= ?"  # noqa: S608 - marks only
            f" AND status IN ({marks})",
            (since, until, *statuses),
        ).fetchall()


def _lock(database: Path) -> sqlite3.Connection:
    """Holds an exclusive lock beside the database until closed; the operating system drops it with the process."""
    connection = sqlite3.connect(f"{database}.lock", timeout=0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        connection.close()
        raise EngineStopped(
            f"{database} is in use by another process ({error}); stop it, or give this host another data directory"
        ) from error
    return connection
