"""Tables that others write to as well: what our commits ask of their readers, and what theirs leave of our promises.

Commits of Spark are made by hand, as Delta Lake's protocol and Databricks' own logs show them.
"""

from __future__ import annotations

import json
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

from dropforge.adapters.delta import DeltaTables
from dropforge.domain.errors import BadFile, Conflict, Unavailable
from dropforge.ports import TableFile, TableRules, TableState

ARRIVED = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
CSV = TableRules("csv")
# What Spark writes beside each commit.
INFO = {
    "timestamp": 1_795_000_000_000,
    "userName": "ada@example.com",
    "operation": "WRITE",
    "operationParameters": {"mode": "Append", "partitionBy": "[]"},
    "notebook": {"notebookId": "1"},
    "clusterId": "1122-100000-abcdefgh",
    "isolationLevel": "WriteSerializable",
    "isBlindAppend": True,
    "engineInfo": "Databricks-Runtime/16.4.x-scala2.12",
    "txnId": "8a0e7d4a-3a3f-4d3c-9e0a-0b9d3b1c2d3e",
}


class Bench:
    """One table, our adapter over it, and what others do to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.tables = DeltaTables(str(folder / "tables"))
        self.table = folder / "tables" / "flights"
        self.log = self.table / "_delta_log"

    def append(self, batch: int, rows: int = 2, header: str = "x,y") -> TableState:
        path = self._folder / f"{batch}.csv"
        cells = ",".join("1" for _ in header.split(","))
        path.write_text(header + "\n" + f"{cells}\n" * rows)
        return self.tables.append("flights", batch, [TableFile(path, f"s{batch}", ARRIVED)], CSV)

    def actions(self, version: int) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.log / f"{version:020}.json").read_text().splitlines()]

    def commit(self, *actions: dict[str, Any]) -> int:
        """The next version, as Spark writes it."""
        version = DeltaTable(str(self.table)).version() + 1
        lines = [json.dumps({"commitInfo": INFO}), *(json.dumps(each) for each in actions)]
        (self.log / f"{version:020}.json").write_text("\n".join(lines) + "\n")
        return version

    def part(self, rows: int, **columns: pa.Array) -> dict[str, Any]:
        """A data file as Spark names it, and the action that adds it."""
        name = f"part-00000-{uuid.uuid4()}.c000.snappy.parquet"
        data = {"x": pa.array([7] * rows, pa.int64()), "y": pa.array([8] * rows, pa.int64()), **columns}
        pq.write_table(pa.table(data), self.table / name)
        size = (self.table / name).stat().st_size
        stats = json.dumps({"numRecords": rows, "minValues": {"x": 7}, "maxValues": {"x": 7}, "nullCount": {"x": 0}})
        added = {"path": name, "partitionValues": {}, "size": size, "modificationTime": 1_795_000_000_000}
        return {"add": {**added, "dataChange": True, "stats": stats, "tags": {"INSERTION_TIME": "1795000000000000"}}}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# ------------------------------------------------------------------------------------------------ what we ask of readers
def test_every_delta_reader_there_is_can_read_what_we_write(bench: Bench) -> None:
    kinds = {
        "naive": pa.array([0], pa.timestamp("us")),
        "fine": pa.array([0], pa.timestamp("ns", "UTC")),
        "day": pa.array([0], pa.date32()),
        "small": pa.array([1], pa.int8()),
        "unsigned": pa.array([1], pa.uint32()),
        "half": pa.array([1.5], pa.float32()),
        "yes": pa.array([True]),
        "word": pa.array(["a"]).dictionary_encode(),
    }
    path = bench.table.parent.parent / "kinds.parquet"
    pq.write_table(pa.table(kinds), path)
    for batch in range(3):
        bench.tables.append("flights", batch, [TableFile(path, f"s{batch}", ARRIVED)], TableRules("parquet"))
    (protocol,) = [each["protocol"] for version in range(3) for each in bench.actions(version) if "protocol" in each]
    # The first that there was for reading, and the one that knows append-only tables for writing; no feature by name.
    assert protocol == {"minReaderVersion": 1, "minWriterVersion": 2}
    (metadata,) = [each["metaData"] for each in bench.actions(0) if "metaData" in each]
    assert metadata["configuration"] == {"delta.appendOnly": "true", "delta.enableExpiredLogCleanup": "false"}
    assert metadata["partitionColumns"] == [] and metadata["format"]["provider"] == "parquet"
    fields = {each["name"]: each["type"] for each in json.loads(metadata["schemaString"])["fields"]}
    # Spark's `timestamp_ntz` would be a feature that older readers refuse.
    assert (fields["naive"], fields["fine"], fields["day"]) == ("timestamp", "timestamp", "date")
    for version in range(3):
        (info,) = [each["commitInfo"] for each in bench.actions(version) if "commitInfo" in each]
        (txn,) = [each["txn"] for each in bench.actions(version) if "txn" in each]
        assert info["dropforge.batch"] == version
        assert (txn["appId"], txn["version"]) == ("dropforge/flights", version)


def test_others_cannot_delete_rows(bench: Bench) -> None:
    bench.append(0)
    with pytest.raises(Exception, match="append"):
        DeltaTable(str(bench.table)).delete("x = 1")


# ------------------------------------------------------------------------------------------------ what others write
def test_rows_that_spark_appends_between_two_batches_stay_and_change_neither(bench: Bench) -> None:
    first = bench.append(1)
    spark = bench.commit(
        {"txn": {"appId": "5c6f3a1e-streaming-query", "version": 41, "lastUpdated": 1_795_000_000_000}}, bench.part(5)
    )
    assert bench.tables.find("flights", 2) is None
    second = bench.append(2)
    assert (first.rows, spark, second.version, second.rows) == (2, 1, 2, 9)
    assert bench.append(1) == first == bench.tables.find("flights", 1)
    assert bench.append(2) == second == bench.tables.find("flights", 2)
    assert bench.tables.read_version("flights", spark).rows == 7
    with pytest.raises(Conflict, match="batch 0 cannot be appended after batch 2"):
        bench.append(0)


def test_a_batch_number_in_somebody_elses_transaction_is_not_ours(bench: Bench) -> None:
    bench.append(1)
    bench.commit({"txn": {"appId": "dropforge/other", "version": 9}}, bench.part(1))
    write_deltalake(
        str(bench.table),
        pa.table({"x": [1], "y": [1]}),
        mode="append",
        schema_mode="merge",
        commit_properties=CommitProperties(
            custom_metadata={"dropforge.batch": "2"}, app_transactions=[Transaction("somebody", 2)]
        ),
    )
    assert bench.tables.find("flights", 2) is None
    assert bench.append(2).rows == 2 + 1 + 1 + 2


def test_files_that_spark_put_together_hold_the_same_rows(bench: Bench) -> None:
    first = bench.append(1)
    second = bench.append(2)
    paths = [each["add"]["path"] for version in range(2) for each in bench.actions(version) if "add" in each]
    whole = bench.part(4)
    whole["add"]["dataChange"] = False
    removed = [
        {"remove": {"path": path, "deletionTimestamp": 1_795_000_000_000, "dataChange": False}} for path in paths
    ]
    bench.commit(whole, *removed)
    assert bench.append(1) == first and bench.append(2) == second
    assert bench.append(3).rows == 6


def test_a_column_that_spark_added_is_one_that_files_must_have_from_then_on(bench: Bench) -> None:
    bench.append(1)
    (metadata,) = [each for each in bench.actions(0) if "metaData" in each]
    schema = json.loads(metadata["metaData"]["schemaString"])
    schema["fields"].append({"name": "z", "type": "long", "nullable": True, "metadata": {}})
    metadata["metaData"]["schemaString"] = json.dumps(schema)
    bench.commit(metadata, bench.part(1, z=pa.array([9], pa.int64())))
    with pytest.raises(BadFile, match="column 'z' is missing"):
        bench.append(2)
    later = bench.append(2, header="x,y,z")
    assert [column.name for column in later.columns] == ["x", "y", "z"]
    assert later.rows == 5


@pytest.mark.parametrize("named", ["classic", "by uuid"])
def test_a_checkpoint_of_another_writer_changes_nothing(bench: Bench, named: str) -> None:
    first = bench.append(1)
    bench.commit({"txn": {"appId": "a-stream", "version": 1}}, bench.part(5))
    DeltaTable(str(bench.table)).create_checkpoint()
    (checkpoint,) = bench.log.glob("*.checkpoint.parquet")
    if named == "by uuid":
        # As readers of version 2 name them; others find their way by the commits.
        checkpoint.rename(checkpoint.with_name(f"{1:020}.checkpoint.{uuid.uuid4()}.parquet"))
        (bench.log / "_last_checkpoint").unlink()
    second = bench.append(2)
    assert (second.version, second.rows) == (2, 9)
    assert bench.append(1) == first == bench.tables.find("flights", 1)
    assert bench.append(2) == second


def test_a_batch_is_known_when_the_commits_before_the_checkpoint_are_gone(bench: Bench) -> None:
    """Our tables keep their log; one who sets that aside loses old versions, and never gets rows twice."""
    bench.append(1)
    bench.append(2)
    DeltaTable(str(bench.table)).create_checkpoint()
    bench.append(3)
    for version in (0, 1):
        (bench.log / f"{version:020}.json").unlink()
    assert bench.append(3).rows == 6
    with pytest.raises(Conflict):
        bench.append(2)
    assert bench.append(4).rows == 8


def test_a_table_whose_protocol_was_raised_beyond_ours_is_told_and_gets_nothing(bench: Bench) -> None:
    bench.append(1)
    raised = {"minReaderVersion": 3, "minWriterVersion": 7}
    features = {"readerFeatures": ["aFeatureOfNextYear"], "writerFeatures": ["aFeatureOfNextYear", "appendOnly"]}
    bench.commit({"protocol": {**raised, **features}})
    before = sorted(path.name for path in bench.table.rglob("*"))
    with pytest.raises(Unavailable, match="aFeatureOfNextYear"):
        bench.append(2)
    assert sorted(path.name for path in bench.log.iterdir()) == [name for name in before if name.endswith(".json")]


def test_a_table_that_was_copied_elsewhere_by_spark_is_read_as_it_is(bench: Bench, tmp_path: Path) -> None:
    state = bench.append(1)
    shutil.copytree(bench.table, tmp_path / "tables" / "copy")
    assert bench.tables.read_version("copy", 0).rows == state.rows
