"""What every `Tables` promises, and what Delta Lake adds: one commit per batch, also between processes and kills."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from azure.storage.blob import BlobServiceClient
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from dropforge.adapters.azure.tables import delta_tables
from dropforge.adapters.delta import DeltaTables
from dropforge.adapters.memory.tables import MemoryTables
from dropforge.domain.datasets import Column
from dropforge.domain.errors import BadFile, BadInput, Conflict, NotFound
from dropforge.ports import ColumnRule, TableFile, TableRules, Tables, TableState
from tests.azurite import ACCOUNT, KEY, Azurite
from tests.contract.conftest import AZURITE, fresh

ARRIVED = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
RULES = TableRules("csv")


@dataclass
class TableBench:
    """A table store, the same store as another process has it, and all rows of a version of `flights`."""

    tables: Tables
    again: Tables
    rows: Callable[[TableState], pa.Table]
    folder: Path
    # How another process makes the store, and the texts of the commits of `flights`.
    made: str = ""
    log: Callable[[], list[str]] = list

    def file(self, content: str | bytes | pa.Table, source: str = "a1", arrived_at: datetime = ARRIVED) -> TableFile:
        path = self.folder / f"{source}.drop"
        if isinstance(content, pa.Table):
            pq.write_table(content, path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return TableFile(path, source, arrived_at)

    def append(self, batch: int, *contents: str, rules: TableRules = RULES) -> TableState:
        files = [self.file(content, f"b{batch}f{index}") for index, content in enumerate(contents)]
        return self.tables.append("flights", batch, files, rules)


def _memory(folder: Path) -> TableBench:
    tables = MemoryTables()
    return TableBench(tables, tables, lambda state: tables.rows("flights", state.version), folder)


def _delta(folder: Path) -> TableBench:
    root = folder / "with a space"
    made = f"DeltaTables({str(root)!r})"

    def log() -> list[str]:
        return [file.read_text() for file in sorted((root / "flights" / "_delta_log").glob("*.json"))]

    return TableBench(DeltaTables(str(root)), DeltaTables(root.as_uri()), delta_rows, folder, made, log)


def _azure(azurite: Azurite, folder: Path) -> TableBench:
    storage, container = azurite.connection_string, fresh("tables")
    made = f"delta_tables({storage!r}, {container!r})"
    first, again = delta_tables(storage, container), delta_tables(storage, container)
    options = {
        "account_name": ACCOUNT,
        "account_key": KEY,
        "endpoint": f"{azurite.url}/{ACCOUNT}",
        "allow_http": "true",
    }
    client = BlobServiceClient.from_connection_string(storage).get_container_client(container)

    def read(name: str) -> io.BytesIO:
        return io.BytesIO(client.download_blob(f"flights/{name}").readall())

    def log() -> list[str]:
        names = [
            name for name in client.list_blob_names(name_starts_with="flights/_delta_log/") if name.endswith(".json")
        ]
        return [client.download_blob(name).readall().decode() for name in names]

    return TableBench(first, again, lambda state: delta_rows(state, options, read), folder, made, log)


def delta_rows(
    state: TableState, options: dict[str, str] | None = None, read: Callable[[str], io.BytesIO] | None = None
) -> pa.Table:
    """What a reader that knows nothing of us finds."""
    table = DeltaTable(state.uri, version=state.version, storage_options=options)
    schema = pa.schema(table.schema().to_arrow())
    folder = Path(table.table_uri.removeprefix("file://").replace("%20", " "))
    parts = [
        pq.read_table(folder / name if read is None else read(name))
        for name in pa.table(table.get_add_actions()).column("path").to_pylist()
    ]
    return pa.concat_tables([schema.empty_table(), *parts], promote_options="permissive").select(schema.names)


TABLES: dict[str, Callable[[Path], TableBench]] = {"memory": _memory, "delta": _delta}


def bench_of(name: str, request: pytest.FixtureRequest) -> TableBench:
    folder = request.getfixturevalue("tmp_path")
    return TABLES[name](folder) if name != AZURITE else _azure(request.getfixturevalue(AZURITE), folder)


@pytest.fixture(params=[*TABLES, AZURITE])
def bench(request: pytest.FixtureRequest) -> TableBench:
    return bench_of(request.param, request)


@pytest.fixture
def delta(tmp_path: Path) -> TableBench:
    return _delta(tmp_path)


@pytest.fixture(params=["delta", AZURITE])
def stored(request: pytest.FixtureRequest) -> TableBench:
    """Tables that several processes share."""
    return bench_of(request.param, request)


# ------------------------------------------------------------------------------------------------ appending
def test_a_batch_becomes_a_version_with_the_platforms_columns(bench: TableBench) -> None:
    east = datetime(2026, 3, 1, 12, 30, tzinfo=timezone(timedelta(hours=2)))
    files = [bench.file("origin,late\nEWR,1\nJFK,\n", "a1"), bench.file("origin,late\nLGA,0\n", "a2", east)]

    state = bench.tables.append("flights", 1, files, RULES)

    assert state.rows == 3 and state.columns == (Column("origin", "string"), Column("late", "int64"))
    rows = bench.rows(state)
    assert rows.column_names == ["origin", "late", "_source", "_arrived_at"]
    assert rows.schema.field("_arrived_at").type == pa.timestamp("us", tz="UTC")
    assert sorted(rows.to_pylist(), key=lambda row: row["origin"]) == [
        {"origin": "EWR", "late": 1, "_source": "a1", "_arrived_at": ARRIVED},
        {"origin": "JFK", "late": None, "_source": "a1", "_arrived_at": ARRIVED},
        {"origin": "LGA", "late": 0, "_source": "a2", "_arrived_at": ARRIVED - timedelta(hours=2)},
    ]


def test_versions_grow_and_old_ones_stay(bench: TableBench) -> None:
    first = bench.append(1, "a\n1\n")
    second = bench.append(3, "a\n2\n", "a\n3\n4\n")

    assert first.version < second.version and (first.rows, second.rows) == (1, 4)
    assert bench.again.read_version("flights", first.version) == first
    assert bench.again.read_version("flights", second.version) == second
    assert bench.rows(first).column("a").to_pylist() == [1]


def test_a_batch_that_is_there_is_not_appended_again(bench: TableBench) -> None:
    first = bench.append(1, "a\n1\n")
    second = bench.append(2, "a\n2\n")

    assert bench.append(1, "a\n1\n") == first
    assert bench.again.append("flights", 2, [bench.file("a\n99\n")], RULES) == second
    assert bench.append(3, "a\n3\n").rows == 3


def test_a_batch_that_was_left_out_cannot_come_later(bench: TableBench) -> None:
    bench.append(1, "a\n1\n")
    bench.append(3, "a\n3\n")

    with pytest.raises(Conflict, match="batch 2 cannot be appended after batch 3"):
        bench.append(2, "a\n2\n")


def test_an_old_batch_is_found_however_many_came_after_it(bench: TableBench) -> None:
    states = [bench.append(batch, f"a\n{batch}\n") for batch in range(18)]

    assert bench.append(0, "a\n0\n") == states[0]
    assert bench.append(9, "a\n9\n") == states[9]


def test_tables_do_not_share_batches(bench: TableBench) -> None:
    bench.append(1, "a\n1\n")
    other = bench.tables.append("weather", 1, [bench.file("b\nx\n")], RULES)

    assert other.rows == 1 and other.columns == (Column("b", "string"),)


def test_a_version_that_was_never_made_is_not_found(bench: TableBench) -> None:
    with pytest.raises(NotFound):
        bench.tables.read_version("flights", 0)
    state = bench.append(1, "a\n1\n")
    for version in (state.version + 1, -1):
        with pytest.raises(NotFound, match="no version"):
            bench.tables.read_version("flights", version)


def test_a_batch_of_nothing_is_refused(bench: TableBench) -> None:
    with pytest.raises(BadInput, match="at least one file"):
        bench.tables.append("flights", 1, [], RULES)


# ------------------------------------------------------------------------------------------------ types
def test_the_first_file_decides_and_declared_types_come_first(bench: TableBench) -> None:
    rules = TableRules("csv", columns=(ColumnRule("d", "float"), ColumnRule("s", "string")), event_time="at")
    state = bench.append(1, "at,d,s,n\n2013-01-01 05:00,1,02134,7\n", rules=rules)

    assert {column.name: column.type for column in state.columns} == {
        "at": "timestamp",
        "d": "double",
        "s": "string",
        "n": "int64",
    }
    assert bench.rows(state).to_pylist()[0]["at"] == datetime(2013, 1, 1, 5, tzinfo=UTC)


def test_later_files_are_cast_when_nothing_is_lost(bench: TableBench) -> None:
    bench.append(1, "x,y\n1.5,1\n")
    file = bench.file(pa.table({"x": pa.array([2], pa.int32()), "y": pa.array([3.0])}), "p")
    state = bench.tables.append("flights", 2, [file], TableRules("parquet"))

    assert sorted(bench.rows(state).column("x").to_pylist()) == [1.5, 2.0]
    assert sorted(bench.rows(state).column("y").to_pylist()) == [1, 3]


@pytest.mark.parametrize("value", ["1.5", "x", "99999999999999999999"])
def test_a_value_that_does_not_fit_the_table_stops_the_whole_batch(bench: TableBench, value: str) -> None:
    before = bench.append(1, "x,y\n1,1\n")

    with pytest.raises(BadFile, match=r"b2f1.*row 2 is not int64") as caught:
        bench.append(2, "x,y\n2,2\n", f"x,y\n3,3\n{value},4\n")

    assert caught.value.about["source"] == "b2f1"
    after = bench.append(2, "x,y\n2,2\n")
    assert after.rows == 2 and after.version == before.version + 1


def test_a_missing_column_stops_the_batch(bench: TableBench) -> None:
    bench.append(1, "x,y\n1,1\n")
    with pytest.raises(BadFile, match="column 'y' is missing; found: 'x', 'z'"):
        bench.append(2, "x,z\n1,1\n")


def test_extra_columns_are_kept_dropped_or_refused(bench: TableBench) -> None:
    bench.append(1, "x\n1\n")
    with pytest.raises(BadFile, match="'z' is not declared"):
        bench.append(2, "x,z\n1,1\n", rules=TableRules("csv", extra_columns="refuse"))
    dropped = bench.append(2, "x,z\n2,1\n", rules=TableRules("csv", extra_columns="drop"))
    kept = bench.append(3, "x,z\n3,new\n")

    assert dropped.columns == (Column("x", "int64"),)
    assert kept.columns == (Column("x", "int64"), Column("z", "string"))
    assert kept.columns[: len(dropped.columns)] == dropped.columns
    values = {row["x"]: row["z"] for row in bench.rows(kept).to_pylist()}
    assert values == {1: None, 2: None, 3: "new"}


def test_files_of_one_batch_may_bring_columns(bench: TableBench) -> None:
    state = bench.append(1, "x\n1\n", "x,z\n2,b\n")

    assert {row["x"]: row["z"] for row in bench.rows(state).to_pylist()} == {1: None, 2: "b"}


def test_a_column_without_values_waits_for_a_file_that_has_some(bench: TableBench) -> None:
    first = bench.append(1, "x,z,y\n1,,2\n")
    second = bench.append(2, "x,z,y\n1,2013-01-01,2\n")

    assert [column.name for column in first.columns] == ["x", "y"]
    assert Column("z", "date32") in second.columns


def test_a_file_of_no_rows_can_be_a_batch(bench: TableBench) -> None:
    bench.append(1, "x\n1\n")
    assert bench.append(2, "x\n", rules=TableRules("csv", min_rows=0)).rows == 1


def test_what_check_says_of_columns_is_what_append_makes(bench: TableBench) -> None:
    content = (
        "at,s,i,f,b,d,z\n2013-01-01 05:00,a,1,1.5,true,2013-01-01,\n2013-01-02T05:00:00Z,b,2,2,false,2013-01-02,\n"
    )
    file = bench.file(content)
    rules = TableRules("csv", event_time="at", label="i")

    check = bench.tables.check(file.path, rules)
    state = bench.tables.append("flights", 1, [file], rules)

    assert check.problems == () and check.columns == state.columns and check.rows == state.rows
    again = bench.tables.check(file.path, TableRules("csv", known=state.columns))
    assert again.problems == () and again.columns == state.columns


@settings(max_examples=15)
@given(
    batches=st.lists(
        st.lists(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=1), min_size=1, max_size=3),
        min_size=1,
        max_size=3,
    ),
    repeats=st.integers(1, 2),
)
def test_every_row_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[list[int | None]]], repeats: int
) -> None:
    for make in TABLES.values():
        bench = make(tmp_path_factory.mktemp("tables"))
        rules = TableRules("csv", columns=(ColumnRule("x", "int"),), min_rows=0)
        for number, files in enumerate(batches):
            contents = ["k,x\n" + "".join(f"0,{'' if x is None else x}\n" for x in values) for values in files]
            for _ in range(repeats):
                state = bench.append(number, *contents, rules=rules)
        wanted = [x for files in batches for values in files for x in values]
        found = bench.rows(state).column("x").to_pylist()
        assert state.rows == len(wanted)
        assert sorted(map(str, found)) == sorted(map(str, wanted))


# ------------------------------------------------------------------------------------------------ Delta Lake
CHILD = """
import os, sys, time
from datetime import UTC, datetime
from pathlib import Path
from dropforge.adapters.azure.tables import delta_tables
from dropforge.adapters.delta import DeltaTables
from dropforge.adapters.tabular import appending
from dropforge.ports import TableFile, TableRules
made, path, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
tables, file = eval(made), TableFile(Path(path), f"by {os.getpid()}", datetime.now(UTC))
import deltalake, pyarrow.csv
print("ready", flush=True)
sys.stdin.readline()
"""
APPEND = "state = tables.append('flights', batch, [file], TableRules('csv')); print(state.version, state.rows)"


def child(bench: TableBench, content: str, batch: int, ending: str = APPEND) -> subprocess.Popen[str]:
    path = bench.folder / "child.csv"
    path.write_text(content)
    command = [sys.executable, "-c", CHILD + ending, bench.made, str(path), str(batch)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(*processes: subprocess.Popen[str]) -> None:
    """Let them go on, all at once, when all of them are ready."""
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def log_of(bench: TableBench) -> list[list[dict[str, Any]]]:
    """The actions of each version."""
    return [[json.loads(line) for line in text.splitlines()] for text in bench.log()]


def test_processes_that_append_the_first_batch_at_once_make_one_commit(stored: TableBench) -> None:
    content = "x,y\n" + "1,1\n" * 2000
    several = [child(stored, content, 0) for _ in range(3)]
    go(*several)
    said = [process.communicate(timeout=60)[0].strip() for process in several]

    assert said == ["0 2000"] * 3
    assert [sum("txn" in action for action in commit) for commit in log_of(stored)] == [1]


def test_threads_that_append_the_same_batch_at_once_make_one_commit(stored: TableBench) -> None:
    for batch in (1, 2):
        file, made = stored.file(f"x\n{batch}\n"), list[TableState]()
        threads = [
            threading.Thread(
                target=lambda f=file, m=made, b=batch: m.append(stored.tables.append("flights", b, [f], RULES))
            )
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(made) == 6 and set(made) == {stored.again.read_version("flights", batch - 1)}
        assert made[0].rows == batch


STALE = """
real = appending.batches
def late(planned):
    print("planned", flush=True)
    sys.stdin.readline()
    yield from real(planned)
appending.batches = late
"""


@pytest.mark.parametrize("first", [0, 1])
def test_a_writer_that_was_overtaken_finds_the_batch_there(stored: TableBench, first: int) -> None:
    for batch in range(first):
        stored.append(batch, "x\n0\n")
    slow = child(stored, "x\n1\n", first, STALE + APPEND)
    go(slow)
    assert slow.stdout is not None and slow.stdout.readline() == "planned\n"
    overtaking = stored.append(first, "x\n1\n")

    said = slow.communicate("go\n", timeout=60)[0]

    assert said.strip() == f"{overtaking.version} {overtaking.rows}"
    assert stored.append(first, "x\n1\n") == overtaking and len(log_of(stored)) == first + 1


def test_a_writer_overtaken_by_another_batch_appends_after_it(stored: TableBench) -> None:
    stored.append(0, "x\n0\n")
    slow = child(stored, "x\n5\n", 5, STALE + APPEND)
    go(slow)
    assert slow.stdout is not None and slow.stdout.readline() == "planned\n"
    stored.append(4, "x\n4\n")

    said = slow.communicate("go\ngo\n", timeout=60)[0]

    assert said.splitlines()[-1] == "2 3"
    assert sorted(stored.rows(stored.again.read_version("flights", 2)).column("x").to_pylist()) == [0, 4, 5]


KILLED = """
real = appending.batches
def dying(planned):
    for index, batch in enumerate(real(planned)):
        if index == 3:
            print("half way", flush=True)
            time.sleep(600)
        yield batch
appending.batches = dying
"""


@pytest.mark.parametrize("first", [0, 1])
def test_a_kill_in_the_middle_leaves_no_row(delta: TableBench, first: int) -> None:
    for batch in range(first):
        delta.append(batch, "x,y\n0,0\n")
    content = "x,y\n" + "12345678,7654321\n" * 300_000
    process = child(delta, content, first, KILLED + APPEND)
    go(process)
    assert process.stdout is not None and process.stdout.readline() == "half way\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)

    if first:
        assert delta.again.read_version("flights", 0).rows == 1
    with pytest.raises(NotFound):
        delta.again.read_version("flights", first)
    state = delta.tables.append("flights", first, [TableFile(delta.folder / "child.csv", "again", ARRIVED)], RULES)
    assert state.rows == 300_000 + first == delta_rows(state).num_rows


def test_kills_at_any_moment_lose_and_double_nothing(delta: TableBench) -> None:
    content = "x,y\n" + "1,2\n" * 1000
    for batch, delay in enumerate((0.0, 0.01, 0.02, 0.04, 0.08)):
        process = child(delta, content, batch)
        go(process)
        time.sleep(delay)
        process.kill()
        process.communicate(timeout=60)
        state = delta.append(batch, content)
        assert state.rows == 1000 * (batch + 1)
    assert delta_rows(state).num_rows == 5000


def test_rows_are_counted_from_the_log_alone(delta: TableBench) -> None:
    state = delta.append(1, "x\n1\n2\n")
    for data in (delta.folder / "with a space" / "flights").glob("*.parquet"):
        data.unlink()

    assert delta.again.read_version("flights", state.version) == state


def test_versions_are_kept_for_ever_and_rows_are_never_removed(delta: TableBench) -> None:
    state = delta.append(1, "x\n1\n")

    assert DeltaTable(state.uri).metadata().configuration == {
        "delta.enableExpiredLogCleanup": "false",
        "delta.appendOnly": "true",
    }


@pytest.mark.parametrize("table", ["../flights", "", "a//b", "/etc", "a b"])
def test_a_table_name_cannot_leave_the_root(delta: TableBench, table: str) -> None:
    with pytest.raises(BadInput, match="not a table name"):
        delta.tables.append(table, 1, [delta.file("x\n1\n")], RULES)


def test_the_adapter_is_cheap_to_import() -> None:
    code = "import sys, dropforge.adapters.delta, dropforge.adapters.memory.tables; print('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
