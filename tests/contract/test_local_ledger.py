"""What the SQLite ledger promises beyond every ledger: kills, processes, files that are none."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from dropforge.adapters.local.ledger import SqliteLedger
from dropforge.adapters.memory.ledger import MemoryLedger
from dropforge.domain.errors import Conflict, DropforgeError, Unavailable
from dropforge.ports import Delete, Insert, Ledger, Replace, Write
from tests.contract.writers import finished, killed, start


def test_rows_outlive_the_process(tmp_path: Path) -> None:
    with closing(SqliteLedger(tmp_path / "state" / "ledger.db")) as ledger:
        ledger.commit("p", [Insert("a", {"n": 1})])
        row = ledger.get("p", "a")
    with closing(SqliteLedger(tmp_path / "state" / "ledger.db")) as ledger:
        assert ledger.get("p", "a") == row


def test_a_closed_ledger_can_be_used_again(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    ledger.close()
    with closing(ledger):
        ledger.commit("p", [Insert("a", {})])
    ledger.close()


def test_a_kill_loses_no_acknowledged_commit_and_leaves_none_half_done(tmp_path: Path) -> None:
    acknowledged: list[int] = []
    for round_number, after in enumerate((1, 25, 60)):
        acknowledged += killed("pairs", tmp_path, after, 1000 * round_number)
        with closing(SqliteLedger(tmp_path / "ledger.db")) as ledger:
            sides = {
                side: [row.value["n"] for row in ledger.scan("p", f"{side}/", limit=100_000)] for side in ("a", "b")
            }
        assert sides["a"] == sides["b"]
        assert set(acknowledged) <= set(sides["a"])
        # At most one commit a kill was done but not yet told.
        assert len(sides["a"]) <= len(acknowledged) + round_number + 1


def test_processes_that_count_lose_no_count(tmp_path: Path) -> None:
    finished([start("increments", tmp_path, 100) for _ in range(3)])
    with closing(SqliteLedger(tmp_path / "ledger.db")) as ledger:
        row = ledger.get("p", "counter")
    assert row is not None
    assert row.value == {"n": 300}


def test_an_etag_is_good_in_every_process(tmp_path: Path) -> None:
    with closing(SqliteLedger(tmp_path / "ledger.db")) as one, closing(SqliteLedger(tmp_path / "ledger.db")) as two:
        one.commit("p", [Insert("a", {"n": 1})])
        row = two.get("p", "a")
        assert row is not None
        two.commit("p", [Replace("a", {"n": 2}, row.etag)])
        with pytest.raises(Conflict):
            one.commit("p", [Delete("a", row.etag)])


def test_a_commit_is_synced_before_it_is_acknowledged(tmp_path: Path) -> None:
    with closing(SqliteLedger(tmp_path / "ledger.db")) as ledger, ledger._connection() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_file_that_is_no_database_is_said_to_be_damaged_and_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is not a database" * 500)
    with pytest.raises(DropforgeError, match=r"ledger\.db cannot be read") as caught:
        SqliteLedger(path)
    assert not caught.value.retryable
    assert path.read_bytes() == b"this is not a database" * 500


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    before = path.read_bytes()
    with pytest.raises(DropforgeError, match="is not a ledger"):
        SqliteLedger(path)
    assert path.read_bytes() == before


def test_a_ledger_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    SqliteLedger(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(DropforgeError, match="schema version 99, this dropforge reads 1"):
        SqliteLedger(path)


def test_a_ledger_that_cannot_be_reached_is_unavailable(tmp_path: Path) -> None:
    with closing(SqliteLedger(tmp_path / "ledger.db")) as ledger:
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
            connection.execute("ALTER TABLE rows RENAME TO gone")
        with pytest.raises(Unavailable, match="did not answer"):
            ledger.get("p", "a")
        with pytest.raises(Unavailable, match="did not answer"):
            ledger.commit("p", [Insert("a", {})])


class Twins(RuleBasedStateMachine):
    """The SQLite ledger and the one in memory answer every commit and every scan alike."""

    keys = st.sampled_from(["a", "a/1", "a/10", "a/2", "b"])
    partitions = st.sampled_from(["p", "q"])

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.memory = MemoryLedger()
        self.local = SqliteLedger(path)
        self.number = 0

    @rule(
        partition=partitions,
        kinds=st.dictionaries(keys, st.sampled_from(["insert", "replace", "stale", "delete", "delete-if"]), max_size=4),
    )
    def commit(self, partition: str, kinds: dict[str, str]) -> None:
        self.number += 1
        outcomes = []
        for ledger in (self.memory, self.local):
            try:
                ledger.commit(partition, [self._write(ledger, partition, kind, key) for key, kind in kinds.items()])
                outcomes.append("done")
            except Conflict as conflict:
                outcomes.append(conflict.message.split(" no longer has etag")[0])
        assert outcomes[0] == outcomes[1]

    @rule(
        partition=partitions, prefix=st.sampled_from(["", "a", "a/", "a/1", "c"]), after=keys, limit=st.integers(1, 3)
    )
    def scan(self, partition: str, prefix: str, after: str, limit: int) -> None:
        found = [
            [(row.key, row.value) for row in ledger.scan(partition, prefix, after, limit)]
            for ledger in (self.memory, self.local)
        ]
        assert found[0] == found[1]

    @invariant()
    def they_hold_the_same(self) -> None:
        for partition in ("p", "q"):
            found = [[(row.key, row.value) for row in ledger.scan(partition)] for ledger in (self.memory, self.local)]
            assert found[0] == found[1]

    def teardown(self) -> None:
        self.local.close()

    def _write(self, ledger: Ledger, partition: str, kind: str, key: str) -> Write:
        row = ledger.get(partition, key)
        etag = row.etag if row else "none"
        if kind == "insert":
            return Insert(key, {"n": self.number})
        if kind in ("replace", "stale"):
            return Replace(key, {"n": self.number}, "stale" if kind == "stale" else etag)
        return Delete(key, etag if kind == "delete-if" else None)


def test_memory_and_sqlite_answer_alike(tmp_path: Path) -> None:
    numbers = count()
    run_state_machine_as_test(
        lambda: Twins(tmp_path / f"{next(numbers)}.db"),  # type: ignore[arg-type]  # a factory will do
        settings=settings(max_examples=20, stateful_step_count=15),
    )
