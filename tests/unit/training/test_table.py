"""Reading a dataset version, and telling its columns apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from dropforge.training.contract import ExitCode, NodeFailed
from dropforge.training.table import local_path, read_table, roles_of
from tests.unit.training.bench import days_table, spec, write_table


def test_a_version_stays_what_it_was(tmp_path: Path) -> None:
    path = write_table(tmp_path / "table", days_table(2))
    write_table(path, days_table(3))

    assert len(read_table(path.as_uri(), 0)) == 80
    assert len(read_table(str(path), 1)) == 200


def test_a_column_of_a_later_file_is_empty_in_the_rows_before(tmp_path: Path) -> None:
    path = write_table(tmp_path / "table", days_table(1))
    more = days_table(1).append_column("weather", pa.array(["wet"] * 40))
    write_table(path, more)

    weather = read_table(str(path), 1).column("weather").to_pylist()

    assert sorted(weather, key=str) == [None] * 40 + ["wet"] * 40


def test_a_path_with_odd_characters_is_read(tmp_path: Path) -> None:
    path = write_table(tmp_path / "100 % of it" / "täble", days_table(1))

    assert len(read_table(path.as_uri(), 0)) == 40


def test_types_are_plain(tmp_path: Path) -> None:
    table = pa.table(
        {
            "price": pa.array(["1.25"]).cast(pa.decimal128(9, 2)),
            "shop": pa.array(["north"], pa.large_string()),
            "n": pa.array([1], pa.int32()),
        }
    )
    path = write_table(tmp_path / "table", table)

    assert read_table(str(path), 0).schema.types == [pa.float64(), pa.string(), pa.int32()]


@pytest.mark.parametrize("version", [7, 1])
def test_a_missing_version_is_named(tmp_path: Path, version: int) -> None:
    path = write_table(tmp_path / "table", days_table(1))

    with pytest.raises(NodeFailed, match=f"no version {version} of a table at") as failed:
        read_table(path.as_uri(), version)

    assert failed.value.exit_code is ExitCode.SPEC_WRONG


def test_a_missing_table_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(NodeFailed, match="no version 0 of a table"):
        read_table(str(tmp_path / "nothing"), 0)

    assert not (tmp_path / "nothing").exists()


def test_a_cloud_uri_is_refused() -> None:
    with pytest.raises(NodeFailed, match="mount it"):
        local_path("abfss://data@account.dfs.core.windows.net/table")


def test_by_default_the_last_column_of_the_first_file_is_the_label() -> None:
    table = days_table(1).append_column("later", pa.nulls(40, pa.int64()))
    roles = roles_of(spec(Path("/t"), label=None, features=()), table)

    assert roles.label == "y"
    assert roles.features == ("x", "shop", "later")


def test_the_event_time_is_never_the_label_by_default() -> None:
    table = days_table(1).select(["x", "y", "at", "_source", "_arrived_at"])

    assert roles_of(spec(Path("/t"), label=None, features=()), table).label == "y"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "z"}, "label: no column 'z'"),
        ({"event_time": "when"}, "event_time: no column 'when'"),
        ({"features": ("x", "X")}, "features: no column 'X'"),
        ({"features": ("x", "y")}, "'y' is the label"),
        ({"slices": ("store",)}, "slices: no column 'store'.*'shop'"),
    ],
)
def test_a_column_that_is_not_there_is_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(NodeFailed, match=words) as failed:
        roles_of(spec(Path("/t"), **change), days_table(1))

    assert failed.value.exit_code is ExitCode.SPEC_WRONG


def test_a_label_alone_is_nothing_to_learn_from() -> None:
    run = replace(spec(Path("/t")), features=())

    with pytest.raises(NodeFailed, match="no column to learn from"):
        roles_of(run, days_table(1).select(["at", "y"]))
