"""What the model may know of a flight, two hours before it is due to leave: one definition for training and scoring.

The daily file (`feed.py`) and a client that asks the endpoint both make their rows here, so they cannot differ.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pandas as pd

NEW_YORK = ZoneInfo("America/New_York")
# The model is asked two hours before departure: the weather after that is not known yet.
KNOWN_BEFORE = pd.Timedelta(hours=2)
# Weather stations miss hours. An older observation than this says nothing about now, and the row says so (empty).
OLDEST_WEATHER = pd.Timedelta(hours=6)

WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
# What the model sees, in this order. `flight_id` and `scheduled_at` name the row; they are no features.
FEATURES = [
    "origin",
    "dest",
    "carrier",
    "distance",
    "weekday",
    "departure_minute",
    "arrival_minute",
    "departures_that_hour",
    *WEATHER,
    "precip_3h",
    "pressure_change_3h",
]
ROW = ["flight_id", "scheduled_at", *FEATURES]


def feature_rows(flights: pd.DataFrame, weather: pd.DataFrame) -> pd.DataFrame:
    """One row a flight, in the order of `flights`, with the columns of `ROW`.

    `flights` holds whole days of the schedule: year, month, day, sched_dep_time, sched_arr_time (HHMM, local),
    carrier, flight, origin, dest, distance. `weather` comes from `observations`. Nothing else is looked at, so nothing
    that is only known after the flight can get in.
    """
    schedule = flights.reset_index(drop=True)
    scheduled_at = departure_times(schedule)
    rows = pd.DataFrame(
        {
            "flight_id": flight_ids(schedule),
            "scheduled_at": scheduled_at.dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "origin": schedule["origin"],
            "dest": schedule["dest"],
            "carrier": schedule["carrier"],
            "distance": schedule["distance"],
            "weekday": scheduled_at.dt.tz_convert(NEW_YORK).dt.day_of_week,
            "departure_minute": minute_of_day(schedule["sched_dep_time"]),
            "arrival_minute": minute_of_day(schedule["sched_arr_time"]),
            "departures_that_hour": _departures_that_hour(schedule),
        }
    )
    seen = _weather_as_of(scheduled_at - KNOWN_BEFORE, schedule["origin"], weather)
    return pd.concat([rows, seen], axis=1)[ROW]


def departure_times(schedule: pd.DataFrame) -> pd.Series:
    """The scheduled departure in UTC. The schedule is in New York time: an hour that the clock shows twice is taken as
    the first of the two, and one that it skips as summer time (PEP 495, fold 0)."""
    local = schedule[["year", "month", "day", "sched_dep_time"]].drop_duplicates()
    known = {
        (year, month, day, clock): datetime(year, month, day, clock // 100, clock % 100, tzinfo=NEW_YORK).astimezone(
            UTC
        )
        for year, month, day, clock in local.itertuples(index=False)
    }
    keys = zip(schedule["year"], schedule["month"], schedule["day"], schedule["sched_dep_time"], strict=True)
    return pd.Series([known[key] for key in keys], index=schedule.index, dtype="datetime64[us, UTC]")


def flight_ids(schedule: pd.DataFrame) -> pd.Series:
    """`2013-01-01-UA1545-EWR`: local date of departure, flight number and origin. A number may fly from two airports."""
    date = pd.to_datetime(schedule[["year", "month", "day"]]).dt.strftime("%Y-%m-%d")
    return date + "-" + schedule["carrier"] + schedule["flight"].astype(str) + "-" + schedule["origin"]


def minute_of_day(clock: pd.Series) -> pd.Series:
    """515 on the schedule is 05:15, the 315th minute."""
    return clock // 100 * 60 + clock % 100


def _departures_that_hour(schedule: pd.DataFrame) -> pd.Series:
    """How many flights the schedule lets leave from the same airport in the same hour."""
    hour = schedule["sched_dep_time"] // 100
    keys = [schedule["year"], schedule["month"], schedule["day"], schedule["origin"], hour]
    return schedule.groupby(keys)["sched_dep_time"].transform("size")


def _weather_as_of(known_at: pd.Series, origin: pd.Series, weather: pd.DataFrame) -> pd.DataFrame:
    """The last observation at the airport at that moment or before it."""
    asked = pd.DataFrame({"known_at": known_at, "origin": origin, "row": range(len(origin))}).sort_values("known_at")
    found = pd.merge_asof(
        asked,
        weather,
        left_on="known_at",
        right_on="observed_at",
        by="origin",
        direction="backward",
        tolerance=OLDEST_WEATHER,
    )
    return found.sort_values("row")[[*WEATHER, "precip_3h", "pressure_change_3h"]].reset_index(drop=True)


def observations(weather: pd.DataFrame) -> pd.DataFrame:
    """Hourly weather by UTC time, with what it did in the three hours before.

    In November the clock shows 01:00 twice, so the local columns hold three pairs of equal keys; `time_hour` is UTC and
    tells them apart. Should one hour be there twice all the same, the first in the file counts.
    """
    hourly = weather.assign(observed_at=pd.to_datetime(weather["time_hour"], utc=True).astype("datetime64[us, UTC]"))
    hourly = hourly.drop_duplicates(["origin", "observed_at"], keep="first").sort_values(["origin", "observed_at"])
    window = hourly.set_index("observed_at").groupby("origin")["precip"].rolling(timedelta(hours=3)).sum()
    hourly["precip_3h"] = window.to_numpy()
    before = hourly[["origin", "observed_at", "pressure"]].assign(
        observed_at=hourly["observed_at"] + timedelta(hours=3)
    )
    hourly = hourly.merge(before, on=["origin", "observed_at"], how="left", suffixes=("", "_before"))
    hourly["pressure_change_3h"] = (hourly["pressure"] - hourly["pressure_before"]).round(2)
    # Unit conversions left digits that no instrument has.
    hourly = hourly.round({"wind_speed": 1, "wind_gust": 1, "precip_3h": 2})
    return hourly[["origin", "observed_at", *WEATHER, "precip_3h", "pressure_change_3h"]].sort_values("observed_at")
