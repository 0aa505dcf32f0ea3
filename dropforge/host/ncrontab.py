"""Timer schedules: six-field NCRONTAB expressions and fixed intervals, and when they next fire."""

from __future__ import annotations

import calendar
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Protocol

_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)
# The calendar repeats after 400 years; leap days that fall on a given weekday return within 40.
_SEARCH_YEARS = 41
# No `datetime` is later than the year 9999.
_MOST_DAYS = 1_000_000

_MONTHS = {name.lower(): number for number, name in enumerate(calendar.month_name) if name}
_DAYS = dict(zip(("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"), range(7), strict=True))


class BadSchedule(ValueError):
    """A schedule that is neither NCRONTAB nor an interval; the message says what is wrong with it."""


class Schedule(Protocol):
    """When a timer fires. Times are aware UTC."""

    def next_after(self, moment: datetime) -> datetime:
        """The first occurrence later than the moment."""

    def shortest_gap(self) -> timedelta:
        """How close two occurrences can come, at least."""


@dataclass(frozen=True)
class Interval:
    """Every so often, counted from the moment asked about."""

    every: timedelta

    def next_after(self, moment: datetime) -> datetime:
        return moment + self.every

    def shortest_gap(self) -> timedelta:
        return self.every


@dataclass(frozen=True)
class Cron:
    """`{second} {minute} {hour} {day} {month} {day-of-week}`, read on the wall clock of `zone`.

    A day must fit both day fields, as in NCrontab (Unix cron asks for either). Where the clock is put forward, an
    occurrence that falls into the missing hour fires right after it. Where it is put back, a schedule that names
    hours fires in the first of the two equal hours only; one for every hour fires in both.
    """

    seconds: frozenset[int]
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    zone: tzinfo = UTC

    def next_after(self, moment: datetime) -> datetime:
        moment = moment.astimezone(UTC).replace(microsecond=0)
        while True:
            change = _next_change(moment, moment + _DAY, self.zone)
            wall = _wall(moment, self.zone)
            found = moment + (self._next_wall(wall) - wall)
            if change is not None and found >= change:
                found = self._after_change(change)
            if found - (change or moment) <= _DAY:
                return found
            # Far away the clock may change in between: look again from nearby. No wall-clock time before `found` fits.
            moment = found - _DAY / 2

    def _after_change(self, change: datetime) -> datetime:
        """The first occurrence at or after the moment at which the clock was put forward or back."""
        skipped_from, shown = _wall(change - _SECOND, self.zone) + _SECOND, _wall(change, self.zone)
        forward = shown > skipped_from
        if forward and self._next_wall(skipped_from - _SECOND) < shown:
            return change
        resume = shown if forward or self._every_hour() else skipped_from
        return change + (self._next_wall(resume - _SECOND) - shown)

    def _every_hour(self) -> bool:
        return len(self.hours) == 24

    def _next_wall(self, wall: datetime) -> datetime:
        """The first fitting wall-clock time later than this one; both without a zone."""
        start = wall.replace(microsecond=0) + _SECOND
        first = self._next_time(start.time())
        if first is not None and self._fits_day(start.date()):
            return datetime.combine(start.date(), first)
        day = self._next_day(start.date())
        return datetime.combine(day, time(min(self.hours), min(self.minutes), min(self.seconds)))

    def _next_time(self, start: time) -> time | None:
        """The first fitting time of day, `start` or later."""
        for hour in sorted(hour for hour in self.hours if hour >= start.hour):
            first_minute = start.minute if hour == start.hour else 0
            for minute in sorted(minute for minute in self.minutes if minute >= first_minute):
                first_second = start.second if (hour, minute) == (start.hour, start.minute) else 0
                fitting = [second for second in self.seconds if second >= first_second]
                if fitting:
                    return time(hour, minute, min(fitting))
        return None

    def _next_day(self, day: date) -> date:
        """The first fitting day after this one."""
        month = day.replace(day=1)
        for _ in range(_SEARCH_YEARS * 12):
            if month.month in self.months:
                length = calendar.monthrange(month.year, month.month)[1]
                for number in sorted(self.days):
                    if (
                        number <= length
                        and month.replace(day=number) > day
                        and self._fits_day(month.replace(day=number))
                    ):
                        return month.replace(day=number)
            month = (month + timedelta(days=32)).replace(day=1)
        # Ruled out when the schedule was parsed.
        raise BadSchedule(f"no day fits days {sorted(self.days)} in months {sorted(self.months)}")

    def _fits_day(self, day: date) -> bool:
        return day.day in self.days and day.month in self.months and day.isoweekday() % 7 in self.weekdays

    def shortest_gap(self) -> timedelta:
        if len(self.seconds) > 1:
            ordered = sorted(self.seconds)
            pairs = zip(ordered, [*ordered[1:], ordered[0] + 60], strict=True)
            return timedelta(seconds=min(later - earlier for earlier, later in pairs))
        return timedelta(minutes=1)


def parse_schedule(text: str, zone: tzinfo = UTC) -> Schedule:
    """A schedule from its text: six NCRONTAB fields, five (seconds 0), or `hh:mm:ss`. Raises `BadSchedule`."""
    text = text.strip()
    if re.fullmatch(r"(\d+\.)?\d{1,2}:\d{2}(:\d{2})?", text):
        return _parse_interval(text)
    fields = text.split()
    if len(fields) == 5:
        fields = ["0", *fields]
    if len(fields) != 6:
        raise BadSchedule(
            f"schedule {text!r} has {len(fields)} fields; write six, "
            "'{second} {minute} {hour} {day} {month} {day-of-week}', or an interval 'hh:mm:ss'"
        )
    limits: Sequence[tuple[str, int, int, Mapping[str, int]]] = (
        ("second", 0, 59, {}),
        ("minute", 0, 59, {}),
        ("hour", 0, 23, {}),
        ("day", 1, 31, {}),
        ("month", 1, 12, _MONTHS),
        ("day-of-week", 0, 6, _DAYS),
    )
    second, minute, hour, day, month, weekday = (
        _parse_field(field, text, *limit) for field, limit in zip(fields, limits, strict=True)
    )
    cron = Cron(second, minute, hour, day, month, weekday, zone)
    if not any(day <= _longest(month) for day in cron.days for month in cron.months):
        raise BadSchedule(f"schedule {text!r} never fires: no such day in these months")
    return cron


def _longest(month: int) -> int:
    return calendar.monthrange(2000, month)[1]


def _parse_interval(text: str) -> Interval:
    days, _, clock = text.rpartition(".")
    hours, minutes, seconds = (int(part) for part in [*clock.split(":"), "0"][:3])
    if hours > 23 or minutes > 59 or seconds > 59:
        raise BadSchedule(
            f"interval {text!r} is no time span; write 'd.hh:mm:ss' with hours up to 23, e.g. '1.00:00:00'"
        )
    # By its length first: Python turns no text of more than 4,300 digits into a number.
    days = days.lstrip("0")
    if len(days) > len(str(_MOST_DAYS)) or int(days or 0) > _MOST_DAYS:
        raise BadSchedule(f"interval {text[:100]!r} is too long; write {_MOST_DAYS:,} days at most")
    every = timedelta(days=int(days or 0), hours=hours, minutes=minutes, seconds=seconds)
    if not every:
        raise BadSchedule(f"interval {text!r} is zero")
    return Interval(every)


def _parse_field(field: str, schedule: str, name: str, low: int, high: int, names: Mapping[str, int]) -> frozenset[int]:
    values: set[int] = set()
    for part in field.split(","):
        span, slash, step_text = part.partition("/")
        step = int(step_text) if step_text.isascii() and step_text.isdigit() else 0
        if slash and step < 1:
            raise BadSchedule(
                f"the {name} field of schedule {schedule!r} has the step {step_text!r}; write a number from 1"
            )
        first, last = _span(span, schedule, name, low, high, names, open_end=bool(slash))
        values.update(range(first, last + 1, step or 1))
    return frozenset(values)


def _span(
    span: str, schedule: str, name: str, low: int, high: int, names: Mapping[str, int], open_end: bool
) -> tuple[int, int]:
    if span == "*":
        return low, high
    first_text, dash, last_text = span.partition("-")
    first = _value(first_text, schedule, name, low, high, names)
    if not dash:
        return first, high if open_end else first
    last = _value(last_text, schedule, name, low, high, names)
    if last < first:
        # NCrontab swaps the two without a word, so that FRI-MON means Monday to Friday there.
        raise BadSchedule(
            f"the {name} field of schedule {schedule!r} has the range {span!r}, whose end is before its start"
        )
    return first, last


def _value(text: str, schedule: str, name: str, low: int, high: int, names: Mapping[str, int]) -> int:
    value = names.get(text.lower())
    if value is None and len(text) == 3:
        value = next((number for full, number in names.items() if full.startswith(text.lower())), None)
    if value is None and text.isascii() and text.isdigit():
        value = int(text)
    if value is None or not low <= value <= high:
        choices = f"{low} to {high}" + (" or a name such as " + next(iter(names))[:3].upper() if names else "")
        raise BadSchedule(f"the {name} field of schedule {schedule!r} has {text!r}; write {choices}")
    return value


def _offset(moment: datetime, zone: tzinfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta(0)


def _wall(moment: datetime, zone: tzinfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _next_change(start: datetime, end: datetime, zone: tzinfo) -> datetime | None:
    """The first whole second after `start`, up to `end`, at which the clock shows another offset."""
    if zone is UTC:
        return None
    low, high = start.replace(microsecond=0), end.replace(microsecond=0)
    if _offset(low, zone) == _offset(high, zone):
        return None
    while high - low > _SECOND:
        middle = low + timedelta(seconds=int((high - low).total_seconds()) // 2)
        if _offset(middle, zone) == _offset(low, zone):
            low = middle
        else:
            high = middle
    return high
