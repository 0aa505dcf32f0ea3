"""Which rows are held out."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropforge.domain.runs import EvaluationPlan
from dropforge.training.contract import ExitCode, NodeFailed
from dropforge.training.split import event_times, split
from dropforge.training.table import Roles
from tests.unit.training.bench import START, days_table

ROLES = Roles("y", "at", ("x",))
NAIVE = datetime.fromisoformat("2024-01-01T10:00:00")
PLAN = EvaluationPlan("log_loss", "day", 3)


def times(table: pa.Table) -> list[datetime]:
    found: list[datetime] = table.column("at").to_pylist()
    return found


def test_the_newest_blocks_are_held_out_and_named() -> None:
    parts = split(days_table(10), ROLES, PLAN, 0)

    assert parts.blocks == ("2024-01-08", "2024-01-09", "2024-01-10")
    assert len(parts.train) == 7 * 40
    assert np.bincount(parts.block_of).tolist() == [40, 40, 40]
    assert parts.holdout_from == "2024-01-08T00:00:00.000000Z"
    assert parts.note == ""


@given(
    st.lists(st.integers(0, 24 * 40), min_size=2, max_size=80),
    st.sampled_from(["hour", "day", "week", "month", "rows:7", "rows:1000"]),
    st.integers(1, 9),
)
@settings(max_examples=60)
def test_every_row_is_in_one_part_and_the_holdout_is_the_newer(hours: list[int], block: str, held: int) -> None:
    at = [START + timedelta(hours=hour) for hour in hours]
    table = pa.table({"at": pa.array(at, pa.timestamp("us", "UTC")), "x": range(len(at)), "y": [1] * len(at)})

    parts = split(table, ROLES, EvaluationPlan("mae", block, held), 0)

    seen = parts.train.column("x").to_pylist() + parts.holdout.column("x").to_pylist()
    assert sorted(seen) == list(range(len(at)))
    assert len(parts.train) and len(parts.holdout)
    assert max(times(parts.train)) <= min(times(parts.holdout))
    assert sorted(set(parts.block_of.tolist())) == list(range(len(parts.blocks)))
    assert len(set(parts.blocks)) == len(parts.blocks) <= held
    if not block.startswith("rows") and "rows" not in parts.note:
        assert max(times(parts.train)) < min(times(parts.holdout))


def test_a_short_history_holds_out_at_most_half_and_says_so() -> None:
    parts = split(days_table(4), ROLES, PLAN, 0)

    assert len(parts.blocks) == 2
    assert "only 4 blocks so far" in parts.note


def test_one_block_is_cut_by_rows_in_time_order() -> None:
    parts = split(days_table(1, 100), ROLES, PLAN, 0)

    assert parts.blocks == ("rows 70-79", "rows 80-89", "rows 90-99")
    assert len(parts.train) == 70
    assert "the newest in time order" in parts.note


def test_a_file_sorted_by_class_does_not_hold_out_one_class() -> None:
    table = pa.table(
        {
            "x": range(90),
            "y": [0] * 30 + [1] * 30 + [2] * 30,
            "_source": ["a"] * 90,
            "_arrived_at": pa.array([START] * 90, pa.timestamp("us", "UTC")),
        }
    )

    parts = split(table, replace(ROLES, event_time=None), PLAN, 0)

    assert set(parts.holdout.column("y").to_pylist()) == {0, 1, 2}
    assert "at random" in parts.note
    again = split(table, replace(ROLES, event_time=None), PLAN, 0)
    assert parts.holdout.equals(again.holdout)


def test_rows_blocks_are_full_and_counted_from_the_newest() -> None:
    parts = split(days_table(10, 10), ROLES, EvaluationPlan("mae", "rows:30", 1), 0)

    assert parts.blocks == ("rows 70-99",)
    assert len(parts.holdout) == 30


@pytest.mark.parametrize(
    ("rows", "trained"), [(60, 42), (61, 43), (119, 83), (120, 60), (179, 119), (180, 120), (181, 121)]
)
def test_rows_that_fill_no_block_are_no_block(rows: int, trained: int) -> None:
    parts = split(days_table(1, rows), ROLES, EvaluationPlan("mae", "rows:60", 3), 0)

    assert len(parts.train) == trained
    assert len(parts.train) >= len(parts.holdout)
    assert len(set(np.bincount(parts.block_of).tolist())) == 1


@pytest.mark.parametrize(
    ("block", "names"), [("hour", "2024-01-01T03"), ("week", "2024-W01"), ("month", "2024-01"), ("day", "2024-01-01")]
)
def test_blocks_are_called_after_their_time(block: str, names: str) -> None:
    at = [START - timedelta(days=40), START + timedelta(hours=3, minutes=59)]
    table = pa.table({"at": pa.array(at, pa.timestamp("us", "UTC")), "x": [1, 2], "y": [0, 1]})

    assert split(table, ROLES, EvaluationPlan("mae", block, 1), 0).blocks == (names,)


@pytest.mark.parametrize(
    ("day", "week"),
    [
        ("9999-12-31", "9999-W52"),
        ("10000-01-03", "10000-W01"),
        ("10400-12-31", "10400-W52"),
        ("0000-12-31", "0000-W52"),
    ],
)
def test_a_week_has_a_name_beyond_the_years_of_python(day: str, week: str) -> None:
    first = np.datetime64(day, "us").astype(np.int64)
    at = pa.array([first - 40 * 86_400_000_000, first], pa.int64()).cast(pa.timestamp("us", "UTC"))
    table = pa.table({"at": at, "x": [1, 2], "y": [0, 1]})

    assert split(table, ROLES, EvaluationPlan("mae", "week", 1), 0).blocks == (week,)


def test_a_week_begins_on_monday() -> None:
    sunday, monday = datetime(2024, 1, 7, 23, 59, tzinfo=UTC), datetime(2024, 1, 8, tzinfo=UTC)
    table = pa.table({"at": pa.array([sunday, monday], pa.timestamp("us", "UTC")), "x": [1, 2], "y": [0, 1]})

    parts = split(table, ROLES, EvaluationPlan("mae", "week", 1), 0)

    assert parts.blocks == ("2024-W02",)
    assert times(parts.holdout) == [monday]


def test_rows_without_a_label_take_no_part_and_are_counted() -> None:
    table = days_table(6)
    holes = pa.array([None if index % 4 == 0 else index % 2 for index in range(len(table))], pa.int64())
    parts = split(table.set_column(3, "y", holes), ROLES, PLAN, 0)

    assert parts.unlabelled_rows == 60
    assert len(parts.train) + len(parts.holdout) == 180


def test_no_labels_at_all_is_said_in_words() -> None:
    table = days_table(2).set_column(3, "y", pa.nulls(80, pa.int64()))

    with pytest.raises(NodeFailed, match="0 of 80 rows have a value in the label 'y'") as failed:
        split(table, ROLES, PLAN, 0)

    assert failed.value.exit_code is ExitCode.DATA_UNUSABLE


def test_a_row_without_event_time_counts_from_its_arrival() -> None:
    table = days_table(8)
    at = [None if index == 0 else value for index, value in enumerate(times(table))]
    arrived = [START + timedelta(days=30)] + [START] * (len(table) - 1)
    table = table.set_column(0, "at", pa.array(at, pa.timestamp("us", "UTC")))
    table = table.set_column(5, "_arrived_at", pa.array(arrived, pa.timestamp("us", "UTC")))

    assert split(table, ROLES, PLAN, 0).blocks[-1] == "2024-01-31"


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["2024-01-01T10:00:00Z", None]),
        pa.array(["2024-01-01 10:00:00", None]),
        pa.array(["2024-01-01T12:00:00+02:00", None]),
        pa.array([NAIVE, None], pa.timestamp("ms")),
        pa.array([datetime(2024, 1, 1, 10, tzinfo=UTC), None], pa.timestamp("ns", "Europe/Paris")),
    ],
)
def test_event_times_of_every_kind_are_utc(column: pa.Array) -> None:
    found = event_times(pa.chunked_array([column]), "at").to_pylist()

    assert found == [datetime(2024, 1, 1, 10, tzinfo=UTC), None]


@pytest.mark.parametrize(
    ("column", "code"), [(pa.array([1.5]), ExitCode.SPEC_WRONG), (pa.array(["soon"]), ExitCode.DATA_UNUSABLE)]
)
def test_what_is_no_time_is_refused(column: pa.Array, code: ExitCode) -> None:
    with pytest.raises(NodeFailed, match="'at'") as failed:
        event_times(pa.chunked_array([column]), "at")

    assert failed.value.exit_code is code
