"""What the broker must not lose, in one SQLite file.

The core records what changed; `commit` makes all of it durable in one transaction. In write-ahead mode with
`synchronous = NORMAL` a commit survives the end of the process, kill -9 included; a power cut may take the last commits
with it, and never corrupts the file. Locks are not stored: after a restart every message can be received again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dropforge.servicebus.errors import ConfigError, StoreFailed
from dropforge.servicebus.message import Message, MessageState

# Tells our file from any other SQLite file: "DFSB".
APPLICATION_ID = 0x44465342
SCHEMA_VERSION = 1

# A message's key: its entity's number above, its sequence number below. So the messages of an entity lie together in
# the order in which they came, and one number is enough to find one.
SEQUENCE_BITS = 44
SEQUENCE_MASK = (1 << SEQUENCE_BITS) - 1

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE entities (
    number INTEGER PRIMARY KEY,
    path TEXT NOT NULL,
    kind TEXT NOT NULL,
    declared TEXT,
    settings TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (path, kind)
);
CREATE TABLE numbers (entity INTEGER PRIMARY KEY, next INTEGER NOT NULL);
CREATE TABLE messages (
    key INTEGER PRIMARY KEY,
    box INTEGER NOT NULL,
    state INTEGER NOT NULL,
    delivery_count INTEGER NOT NULL,
    enqueued_at INTEGER NOT NULL,
    enqueued_sequence INTEGER NOT NULL,
    expires_at INTEGER,
    due_at INTEGER,
    hops INTEGER NOT NULL,
    dead_letter_source TEXT,
    body BLOB NOT NULL
);
CREATE TABLE sessions (
    entity INTEGER NOT NULL,
    id TEXT NOT NULL,
    state BLOB NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (entity, id)
);
CREATE TABLE history (key INTEGER PRIMARY KEY, id TEXT NOT NULL, at INTEGER NOT NULL);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""

# Free pages that a file may have without being packed at the next start: 8 MB.
_SPARE_PAGES = 2_048

_PUT = "INSERT OR REPLACE INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class EntityRecord:
    """A queue, topic or subscription as stored. `declared` is what the configuration said about it last, None for one
    that the admin API made; `settings` is what holds. Both are JSON."""

    number: int
    path: str
    kind: str
    declared: str | None
    settings: str
    created_at: int
    updated_at: int

    def changed(self, settings: str, now: int) -> EntityRecord:
        return replace(self, settings=settings, updated_at=now)

    def declared_as(self, path: str, declared: str, now: int) -> EntityRecord:
        return replace(self, path=path, declared=declared, settings=declared, updated_at=now)


@dataclass(frozen=True, slots=True)
class StoredMessage:
    entity: int
    box: int
    hops: int
    message: Message


def key_of(entity: int, sequence: int) -> int:
    return entity << SEQUENCE_BITS | sequence


def sequence_of(key: int) -> int:
    return key & SEQUENCE_MASK


class Store:
    """Everything between two commits is kept in memory, by key, so that what is made and undone between them costs
    nothing, and order within a turn does not matter. With no path nothing is written at all."""

    def __init__(self, path: Path | None = None) -> None:
        """Open the file, or make it. Raises `ConfigError` for a file that is none of ours."""
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._failed = False
        self._messages: dict[int, tuple[int, Message, int] | None] = {}
        self._numbers: dict[int, int] = {}
        # Next numbers that need no row of their own, because the message with the one before is stored: writing them
        # would cost as much again as writing the message.
        self._implied: dict[int, int] = {}
        self._sessions: dict[tuple[int, str], tuple[bytes | None, int]] = {}
        self._remembered: dict[int, tuple[str, int]] = {}
        self._forgotten: dict[int, int] = {}
        self._entities: dict[int, EntityRecord | None] = {}
        if path is not None:
            self._connection = _opened(path)
            self._cursor = self._connection.cursor()

    # ----------------------------------------------------------------------------------------------- recording

    def put(self, entity: int, box: int, message: Message, hops: int) -> None:
        """The message as it will be when the turn is committed."""
        self._messages[entity << SEQUENCE_BITS | message.sequence] = (box, message, hops)

    def remove(self, entity: int, sequence: int) -> None:
        self._messages[entity << SEQUENCE_BITS | sequence] = None

    def reserve(self, entity: int, following: int) -> None:
        """All sequence numbers below `following` are given out."""
        self._numbers[entity] = following

    def put_session(self, entity: int, session_id: str, state: bytes | None, at: int) -> None:
        """A session's state; None when it has none any more."""
        self._sessions[entity, session_id] = (state, at)

    def remember(self, entity: int, sequence: int, identity: str, at: int) -> None:
        """A message id that came in under a sequence number, for duplicate detection."""
        self._remembered[key_of(entity, sequence)] = (identity, at)

    def forget(self, entity: int, through: int) -> None:
        """The ids that came in under sequence numbers up to this one need not be known any more."""
        self._forgotten[entity] = through

    def put_entity(self, record: EntityRecord) -> None:
        self._entities[record.number] = record

    def remove_entity(self, number: int) -> None:
        """Remove an entity and all that is in it."""
        self._entities[number] = None
        for key in [key for key in self._messages if key >> SEQUENCE_BITS == number]:
            del self._messages[key]
        for key in [key for key in self._remembered if key >> SEQUENCE_BITS == number]:
            del self._remembered[key]
        for owner in [owner for owner in self._sessions if owner[0] == number]:
            del self._sessions[owner]
        self._numbers.pop(number, None)
        self._implied.pop(number, None)
        self._forgotten.pop(number, None)

    def commit(self) -> None:
        """Make all that was recorded durable, or raise `StoreFailed`; then the process must end, for the memory is
        ahead of the file."""
        messages, numbers = self._messages, self._numbers
        if not (messages or numbers or self._sessions or self._remembered or self._forgotten or self._entities):
            return
        if self._connection is not None:
            try:
                self._cursor.execute("BEGIN IMMEDIATE")
                if self._entities:
                    self._write_entities()
                if numbers:
                    self._imply_numbers()
                if messages:
                    self._write_messages()
                if numbers:
                    self._cursor.executemany("INSERT OR REPLACE INTO numbers VALUES (?, ?)", numbers.items())
                if self._sessions or self._remembered or self._forgotten:
                    self._write_rest()
                self._cursor.execute("COMMIT")
            except sqlite3.Error as error:
                self._failed = True
                raise StoreFailed(
                    f"{self._path} could not be written: {error}; free disk space or choose another state folder, "
                    "then start again: nothing acknowledged is lost"
                ) from error
        messages.clear()
        numbers.clear()
        for recorded in (self._sessions, self._remembered, self._forgotten, self._entities):
            recorded.clear()

    def _imply_numbers(self) -> None:
        """Leave out the numbers that the messages of this commit tell."""
        for entity, following in list(self._numbers.items()):
            if self._messages.get(entity << SEQUENCE_BITS | following - 1) is not None:
                self._implied[entity] = self._numbers.pop(entity)
            else:
                self._implied.pop(entity, None)

    def _write_messages(self) -> None:
        rows = []
        gone = []
        implied = self._implied
        for key, found in self._messages.items():
            if found is None:
                gone.append((key,))
                entity = key >> SEQUENCE_BITS
                if implied.get(entity, 0) == (key & SEQUENCE_MASK) + 1:
                    self._numbers[entity] = implied.pop(entity)
                continue
            box, message, hops = found
            rows.append(
                (
                    key,
                    box,
                    message.state,
                    message.delivery_count,
                    message.enqueued_at,
                    message.enqueued_sequence,
                    message.expires_at,
                    message.due_at,
                    hops,
                    message.dead_letter_source,
                    message.stored(),
                )
            )
        if rows:
            self._cursor.executemany(_PUT, rows)
        if gone:
            self._cursor.executemany("DELETE FROM messages WHERE key = ?", gone)

    def _write_rest(self) -> None:
        states = [
            (entity, name, state, at) for (entity, name), (state, at) in self._sessions.items() if state is not None
        ]
        cleared = [owner for owner, (state, _) in self._sessions.items() if state is None]
        self._cursor.executemany("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?)", states)
        self._cursor.executemany("DELETE FROM sessions WHERE entity = ? AND id = ?", cleared)
        remembered = [(key, identity, at) for key, (identity, at) in self._remembered.items()]
        self._cursor.executemany("INSERT OR REPLACE INTO history VALUES (?, ?, ?)", remembered)
        ranges = [(key_of(entity, 0), key_of(entity, through)) for entity, through in self._forgotten.items()]
        self._cursor.executemany("DELETE FROM history WHERE key BETWEEN ? AND ?", ranges)

    def _write_entities(self) -> None:
        for number, record in self._entities.items():
            if record is not None:
                self._cursor.execute(
                    "INSERT INTO entities VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (number) DO UPDATE SET "
                    "path = excluded.path, declared = excluded.declared, settings = excluded.settings, "
                    "updated_at = excluded.updated_at",
                    (
                        record.number,
                        record.path,
                        record.kind,
                        record.declared,
                        record.settings,
                        record.created_at,
                        record.updated_at,
                    ),
                )
                continue
            keys = (key_of(number, 0), key_of(number, SEQUENCE_MASK))
            self._cursor.execute("DELETE FROM entities WHERE number = ?", (number,))
            self._cursor.execute("DELETE FROM numbers WHERE entity = ?", (number,))
            self._cursor.execute("DELETE FROM sessions WHERE entity = ?", (number,))
            self._cursor.execute("DELETE FROM messages WHERE key BETWEEN ? AND ?", keys)
            self._cursor.execute("DELETE FROM history WHERE key BETWEEN ? AND ?", keys)

    # ------------------------------------------------------------------------------------------------- reading

    def entities(self) -> list[EntityRecord]:
        return [EntityRecord(*row) for row in self._rows("SELECT * FROM entities ORDER BY number")]

    def numbers(self) -> dict[int, int]:
        """The next sequence number of each entity that gave one out."""
        found: dict[int, int] = dict(self._rows("SELECT entity, next FROM numbers"))
        for (entity,) in self._rows("SELECT number FROM entities"):
            keys = (key_of(entity, 0), key_of(entity, SEQUENCE_MASK))
            for (last,) in self._rows("SELECT max(key) FROM messages WHERE key BETWEEN ? AND ?", *keys):
                if last is not None and sequence_of(last) >= found.get(entity, 1):
                    found[entity] = self._implied[entity] = sequence_of(last) + 1
        return found

    def holds_anything(self, entity: int) -> bool:
        """Whether messages or session states of the entity are stored."""
        keys = (key_of(entity, 0), key_of(entity, SEQUENCE_MASK))
        return bool(
            list(self._rows("SELECT 1 FROM messages WHERE key BETWEEN ? AND ? LIMIT 1", *keys))
            or list(self._rows("SELECT 1 FROM sessions WHERE entity = ? LIMIT 1", entity))
        )

    def messages(self) -> Iterator[StoredMessage]:
        """All messages, those of one entity together and in order."""
        for row in self._rows("SELECT * FROM messages ORDER BY key"):
            key, box, state, count, enqueued_at, enqueued_sequence, expires_at, due_at, hops, source, body = row
            message = Message.parse(body)
            message.sequence = key & SEQUENCE_MASK
            message.state = _STATES[state]
            message.delivery_count = count
            message.enqueued_at = enqueued_at
            message.enqueued_sequence = enqueued_sequence
            message.expires_at = expires_at
            message.due_at = due_at
            message.dead_letter_source = source
            yield StoredMessage(key >> SEQUENCE_BITS, box, hops, message)

    def session_states(self) -> Iterator[tuple[int, str, bytes, int]]:
        """(entity, session id, state, when it was set)."""
        return self._rows("SELECT entity, id, state, updated_at FROM sessions")

    def history(self) -> Iterator[tuple[int, int, str, int]]:
        """(entity, sequence number, message id, when it came in), oldest first for each entity."""
        for key, identity, at in self._rows("SELECT key, id, at FROM history ORDER BY key"):
            yield key >> SEQUENCE_BITS, key & SEQUENCE_MASK, identity, at

    def close(self) -> None:
        """Commit, fold the log into the file, and let go of it. A second call does nothing, and after a commit that
        failed nothing more is written."""
        try:
            if not self._failed:
                self.commit()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of the file, and leave out what was not committed: after an error it may be half a change."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _rows(self, statement: str, *values: object) -> Iterator[tuple[Any, ...]]:
        if self._connection is None:
            return iter(())
        return self._connection.execute(statement, values)


_STATES = tuple(MessageState)


def _opened(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Messages are nobody else's to read; SQLite gives its log the same rights.
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=64)
    try:
        _prepare(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise ConfigError(
            f"{path} cannot be opened: {error}; restore it from a copy, or choose another folder"
        ) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    def pragma(name: str) -> Any:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]

    # The file belongs to this process. Said before anything else, a commit needs neither locks nor a shared index.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    fresh = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
    if not fresh and pragma("application_id") != APPLICATION_ID:
        raise ConfigError(f"{path} is another program's SQLite file; choose another state folder")
    if not fresh and pragma("user_version") != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has schema version {pragma('user_version')}, and this dropforge reads {SCHEMA_VERSION}; use the "
            "dropforge that wrote it, or another state folder"
        )
    if pragma("journal_mode = WAL") != "wal":
        raise ConfigError(f"{path} cannot have a write-ahead log; put the state folder on a local disk")
    connection.execute("PRAGMA synchronous = NORMAL")
    if fresh:
        connection.executescript(_SCHEMA)
    elif pragma("freelist_count") > max(_SPARE_PAGES, pragma("page_count") // 2):
        # Most of the file is what a crowd of messages left behind.
        connection.execute("VACUUM")
