"""Timer schedules: the law of `next_after`, checked against a brute-force reading of the fields."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.host.ncrontab import BadSchedule, Cron, Interval, parse_schedule

BERLIN = ZoneInfo("Europe/Berlin")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")  # half an hour of summer time
SECOND = timedelta(seconds=1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def fits(cron: Cron, wall: datetime) -> bool:
    return (
        wall.second in cron.seconds
        and wall.minute in cron.minutes
        and wall.hour in cron.hours
        and wall.day in cron.days
        and wall.month in cron.months
        and wall.isoweekday() % 7 in cron.weekdays
    )


def fires(cron: Cron, moment: datetime, zone: tzinfo) -> bool:
    """The law, read second by second: what the class docstring of Cron says."""
    wall = moment.astimezone(zone)
    if fits(cron, wall) and (wall.fold == 0 or len(cron.hours) == 24):
        return True
    before = (moment - SECOND).astimezone(zone).replace(tzinfo=None) + SECOND
    shown = wall.replace(tzinfo=None)
    skipped = int((shown - before).total_seconds())
    return any(fits(cron, before + timedelta(seconds=ahead)) for ahead in range(skipped))


def brute_force(cron: Cron, moment: datetime, zone: tzinfo, horizon: timedelta) -> datetime | None:
    candidate = moment.replace(microsecond=0) + SECOND
    while candidate <= moment + horizon:
        if fires(cron, candidate, zone):
            return candidate
        candidate += SECOND
    return None


@st.composite
def crons(draw: st.DrawFn, zone: tzinfo = UTC) -> Cron:
    def some(low: int, high: int) -> st.SearchStrategy[frozenset[int]]:
        every = st.just(frozenset(range(low, high + 1)))
        return every | st.frozensets(st.integers(low, high), min_size=1, max_size=4)

    return Cron(
        draw(st.frozensets(st.integers(0, 59), min_size=1, max_size=2)),
        draw(some(0, 59)),
        draw(some(0, 23)),
        draw(some(1, 31).filter(lambda days: min(days) <= 28)),
        draw(some(1, 12)),
        draw(some(0, 6)),
        zone,
    )


MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2032, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC))  # noqa: DTZ001


@given(crons(), MOMENTS)
def test_the_next_occurrence_is_later_fits_and_nothing_fits_in_between(cron: Cron, moment: datetime) -> None:
    found = cron.next_after(moment)

    assert found > moment
    assert fits(cron, found)
    horizon = timedelta(minutes=40)
    assert brute_force(cron, moment, UTC, horizon) == (found if found - moment <= horizon else None)
    assert brute_force(cron, found - horizon if found - horizon > moment else moment, UTC, horizon) == found


# The hours around clock changes of both zones, spring and autumn.
CHANGES = [at("2025-03-30T01:00"), at("2025-10-26T01:00"), at("2025-04-05T15:00"), at("2025-10-04T15:30")]


@given(st.sampled_from(CHANGES), st.integers(-5400, 5400), crons(BERLIN), st.sampled_from([BERLIN, LORD_HOWE]))
def test_the_law_holds_where_the_clock_changes(change: datetime, offset: int, cron: Cron, zone: ZoneInfo) -> None:
    # Days and months are left open, so that most schedules fire near the change.
    every = Cron(cron.seconds, cron.minutes, cron.hours, frozenset(range(1, 32)), frozenset(range(1, 13)),
                 frozenset(range(7)), zone)  # fmt: skip
    moment = change + timedelta(seconds=offset)
    horizon = timedelta(hours=2)

    found = every.next_after(moment)

    assert found > moment
    assert brute_force(every, moment, zone, horizon) == (found if found - moment <= horizon else None)


def test_a_daily_run_in_the_missing_hour_fires_right_after_it() -> None:
    daily = parse_schedule("0 30 2 * * *", BERLIN)
    assert daily.next_after(at("2025-03-29T12:00")) == at("2025-03-30T01:00")
    assert daily.next_after(at("2025-03-30T01:00")) == at("2025-03-31T00:30")


def test_a_daily_run_in_the_repeated_hour_fires_once() -> None:
    daily = parse_schedule("0 30 2 * * *", BERLIN)
    assert daily.next_after(at("2025-10-25T12:00")) == at("2025-10-26T00:30")
    assert daily.next_after(at("2025-10-26T00:30")) == at("2025-10-27T01:30")


def test_every_quarter_of_an_hour_goes_on_through_the_repeated_hour() -> None:
    quarters = parse_schedule("0 */15 * * * *", BERLIN)
    moment, fired = at("2025-10-25T23:59"), []
    for _ in range(12):
        moment = quarters.next_after(moment)
        fired.append(moment)
    assert fired == [at("2025-10-26T00:00") + timedelta(minutes=15 * n) for n in range(12)]


@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        ("0 */5 * * * *", "2026-11-22T12:00:00", "2026-11-22T12:05:00"),
        ("*/5 * * * *", "2026-11-22T12:00:00", "2026-11-22T12:05:00"),
        ("30 0 9-17 * * MON-FRI", "2026-11-20T17:00:30", "2026-11-23T09:00:30"),
        ("0 0 0 1 JAN *", "2026-11-22T12:00:00", "2027-01-01T00:00:00"),
        ("0 0 0 29 2 *", "2026-11-22T12:00:00", "2028-02-29T00:00:00"),
        ("0 0 0 29 February Sunday", "2026-11-22T12:00:00", "2032-02-29T00:00:00"),
        ("0 0 12 13 * FRI", "2026-03-14T00:00:00", "2026-11-13T12:00:00"),
        ("10/20 0 0 * * *", "2026-11-22T00:00:10", "2026-11-22T00:00:30"),
        ("0 1,2,50-58/4 * * * *", "2026-11-22T12:02:00", "2026-11-22T12:50:00"),
        ("59 59 23 31 12 *", "2026-12-31T23:59:58", "2026-12-31T23:59:59"),
        ("59 59 23 31 12 *", "2026-12-31T23:59:59", "2027-12-31T23:59:59"),
    ],
)
def test_schedules_as_documented(schedule: str, after: str, expected: str) -> None:
    assert parse_schedule(schedule).next_after(at(after)) == at(expected)


def test_a_time_span_is_an_interval() -> None:
    assert parse_schedule("00:01:30") == Interval(timedelta(seconds=90))
    assert parse_schedule("01000000.00:00:00").next_after(at("2026-01-01")).year == 4763
    assert parse_schedule("1.02:00:00").next_after(at("2026-01-01")) == at("2026-01-02T02:00:00")


@pytest.mark.parametrize(
    ("schedule", "word"),
    [
        ("", "six"),
        ("* * * *", "4 fields"),
        ("* * * * * * *", "7 fields"),
        ("60 * * * * *", "0 to 59"),
        ("* * 24 * * *", "0 to 23"),
        ("* * * 0 * *", "1 to 31"),
        ("* * * * 13 *", "1 to 12"),
        ("* * * * * 7", "0 to 6"),
        ("* * * * * MIN", "MIN"),
        ("*/0 * * * * *", "step"),
        ("*/x * * * * *", "step"),
        ("1, * * * * *", "second"),
        ("-1 * * * * *", "second"),
        ("² * * * * *", "second"),
        ("* * * * * FRI-MON", "before its start"),
        ("0 0 0 31 2,4 *", "never fires"),
        ("24:00:00", "hours up to 23"),
        ("00:00:00", "zero"),
        ("3000000.00:00:00", "1,000,000 days"),
        ("9999999999.00:00:00", "1,000,000 days"),
        ("9" * 5_000 + ".00:00:00", "1,000,000 days"),
        ("? * * * * *", "'?'"),
    ],
)
def test_what_is_no_schedule_is_refused_with_the_reason(schedule: str, word: str) -> None:
    with pytest.raises(BadSchedule, match=word.replace("?", r"\?")):
        parse_schedule(schedule)


@pytest.mark.parametrize(
    ("schedule", "gap"),
    [("*/10 * * * * *", 10), ("0,59 * * * * *", 1), ("0 * * * * *", 60), ("5 0 0 * * *", 60), ("00:00:07", 7)],
)
def test_the_shortest_gap_tells_whether_a_timer_is_worth_remembering(schedule: str, gap: int) -> None:
    assert parse_schedule(schedule).shortest_gap() == timedelta(seconds=gap)
