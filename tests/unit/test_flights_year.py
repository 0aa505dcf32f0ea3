"""The flights example: every flight of 2013 comes out once, with what was known two hours before and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "flights"
NEW_YORK = ZoneInfo("America/New_York")
LEAKS = {"dep_delay", "dep_time", "arr_delay", "arr_time", "air_time"}


@pytest.fixture(scope="module")
def feed() -> Iterator[Any]:
    """The example's modules, which lie beside each other and are no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        import feed  # type: ignore[import-not-found, unused-ignore]

        yield feed
        for name in ("feed", "features"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def raw(feed: Any) -> pd.DataFrame:
    flights = pd.read_csv(feed._data("flights.csv.zip"))
    day = pd.to_datetime(flights[["year", "month", "day"]]).dt.strftime("%Y-%m-%d")
    ids = day + "-" + flights["carrier"] + flights["flight"].astype(str) + "-" + flights["origin"]
    return flights.assign(flight_id=ids)


@pytest.fixture(scope="module")
def weather(feed: Any) -> pd.DataFrame:
    return pd.read_csv(feed._data("weather.csv"), parse_dates=["time_hour"])


@pytest.fixture(scope="module")
def year(feed: Any) -> pd.DataFrame:
    return pd.concat([feed.day_rows(day) for day in feed.days()], ignore_index=True)


def test_every_flight_comes_out_exactly_once(year: pd.DataFrame, raw: pd.DataFrame) -> None:
    assert len(year) == 336_776
    assert year["flight_id"].is_unique
    assert set(year["flight_id"]) == set(raw["flight_id"])


def test_labels_are_late_arrivals_and_cancellations_and_diverted_flights_have_none(
    year: pd.DataFrame, raw: pd.DataFrame
) -> None:
    both = raw.merge(year[["flight_id", "late"]], on="flight_id")
    cancelled, diverted = both["dep_time"].isna(), both["dep_time"].notna() & both["arr_delay"].isna()

    assert (both[cancelled]["late"] == 1).all()
    assert both[diverted]["late"].isna().all()
    assert diverted.sum() == 1_175
    landed = both[~cancelled & ~diverted]
    assert (landed["late"] == (landed["arr_delay"] > 15)).all()


def test_departures_are_in_utc_by_the_clock_of_new_york(year: pd.DataFrame, raw: pd.DataFrame) -> None:
    both = raw.merge(year[["flight_id", "scheduled_at"]], on="flight_id")
    utc = pd.to_datetime(both["scheduled_at"])

    assert (utc.dt.floor("h") == pd.to_datetime(both["time_hour"])).all()
    assert (utc.dt.minute == both["sched_dep_time"] % 100).all()


def test_nothing_known_only_after_the_flight_is_in_a_row(feed: Any, year: pd.DataFrame) -> None:
    import features  # type: ignore[import-not-found, unused-ignore]

    assert LEAKS.isdisjoint(year.columns)
    assert list(year.columns) == [*features.ROW, "late"]
    assert LEAKS.isdisjoint(feed._SCHEDULE)


def test_the_outcome_of_a_flight_changes_nothing_but_its_label(feed: Any, raw: pd.DataFrame) -> None:
    import features

    day = raw[(raw["month"] == 7) & (raw["day"] == 10)]
    spoilt = day.assign(**dict.fromkeys(LEAKS, 9999.0))

    rows = [features.feature_rows(flights, feed._weather()) for flights in (day, spoilt)]

    pd.testing.assert_frame_equal(rows[0], rows[1])


def test_weather_is_what_was_observed_two_hours_before_or_the_last_before_that(
    year: pd.DataFrame, weather: pd.DataFrame
) -> None:
    hours = {origin: rows.set_index("time_hour") for origin, rows in weather.groupby("origin")}
    for row in year.sample(400, random_state=1).itertuples():
        known_at = pd.Timestamp(row.scheduled_at) - pd.Timedelta(hours=2)
        seen = hours[row.origin].loc[known_at - pd.Timedelta(hours=6) : known_at]
        if seen.empty:
            assert pd.isna(row.temp) and pd.isna(row.visib)
        else:
            last = seen.iloc[-1]
            assert row.temp == last["temp"] or (pd.isna(row.temp) and pd.isna(last["temp"]))
            assert row.visib == last["visib"]


def test_later_weather_changes_no_row(feed: Any, raw: pd.DataFrame, weather: pd.DataFrame) -> None:
    import features

    flights = raw[(raw["month"] == 3) & (raw["day"] == 8) & (raw["sched_dep_time"] == 1200)]
    noon = datetime(2013, 3, 8, 12, tzinfo=NEW_YORK).astimezone(UTC)
    stormy = weather.assign(temp=weather["temp"].where(weather["time_hour"] <= noon - timedelta(hours=2), -50.0))

    calm, storm = (
        features.feature_rows(flights, features.observations(table.assign(time_hour=table["time_hour"].astype(str))))
        for table in (weather, stormy)
    )

    assert len(flights) > 0
    pd.testing.assert_frame_equal(calm, storm)


def test_old_weather_counts_as_none(feed: Any, raw: pd.DataFrame, weather: pd.DataFrame) -> None:
    import features

    flights = raw[(raw["month"] == 3) & (raw["day"] == 8) & (raw["sched_dep_time"] == 1200)]
    known = weather[weather["time_hour"] <= pd.Timestamp("2013-03-08T08:00Z")]

    rows = features.feature_rows(flights, features.observations(known))

    assert rows["temp"].isna().all()


def test_the_doubled_hour_of_november_is_two_hours(year: pd.DataFrame, weather: pd.DataFrame) -> None:
    doubled = weather[weather.duplicated(["origin", "year", "month", "day", "hour"], keep=False)]
    assert len(doubled) == 6
    assert not doubled.duplicated(["origin", "time_hour"]).any()

    early = year[year["flight_id"].str.startswith("2013-11-03")].sort_values("scheduled_at").iloc[0]
    # Five o'clock standard time; two hours before, the clock had been put back.
    assert early["scheduled_at"] >= "2013-11-03T10:00:00Z"


def test_one_observation_twice_counts_once(feed: Any, weather: pd.DataFrame) -> None:
    import features

    again = pd.concat([weather, weather.assign(temp=0.0)], ignore_index=True)

    pd.testing.assert_frame_equal(
        features.observations(again).reset_index(drop=True), features.observations(weather).reset_index(drop=True)
    )


@pytest.mark.parametrize(
    ("day", "clock", "utc"),
    [
        ((2013, 3, 9), 600, "2013-03-09 11:00"),
        ((2013, 3, 10), 600, "2013-03-10 10:00"),
        ((2013, 3, 10), 230, "2013-03-10 07:30"),
        ((2013, 11, 3), 130, "2013-11-03 05:30"),
        ((2013, 11, 3), 600, "2013-11-03 11:00"),
    ],
)
def test_the_clock_changes_are_followed(feed: Any, day: tuple[int, int, int], clock: int, utc: str) -> None:
    import features

    schedule = pd.DataFrame([[*day, clock]], columns=["year", "month", "day", "sched_dep_time"])

    assert features.departure_times(schedule).iloc[0] == pd.Timestamp(utc, tz="UTC")


def test_a_file_is_written_whole_and_the_same_each_time(feed: Any, tmp_path: Path) -> None:
    day = date(2013, 2, 8)

    first = feed.write_day(day, tmp_path / "a").read_bytes()
    second = feed.write_day(day, tmp_path / "b")

    assert second.name == "flights-2013-02-08.csv"
    assert second.read_bytes() == first
    assert [path.name for path in (tmp_path / "b").iterdir()] == [second.name]
    written = pd.read_csv(second)
    assert len(written) == len(feed.day_rows(day))
    assert set(written["late"].dropna()) == {0, 1}


def test_a_client_asks_with_the_very_row_that_is_trained_on(feed: Any) -> None:
    day = date(2013, 5, 5)
    import features

    asked, trained = feed.requests_for(day), feed.day_rows(day)

    assert len(asked) == len(trained) == len(feed.ids_for(day))
    for row, (_, known) in zip(asked, trained.iterrows(), strict=True):
        assert list(row) == features.FEATURES
        assert all((value is None and pd.isna(known[name])) or value == known[name] for name, value in row.items())


def test_days_end_with_the_year(feed: Any) -> None:
    assert list(feed.days(date(2013, 12, 30), 5)) == [date(2013, 12, 30), date(2013, 12, 31)]
    assert len(list(feed.days())) == 365
