"""How much a pipeline may train: the day's budget and the cool-down, decided from what was started before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Limits:
    """The `budget` of a pipeline.yaml. A day is any 24 hours."""

    runs_per_day: int
    minutes_per_day: int
    cool_down: timedelta | None
    max_failures: int


@dataclass(frozen=True)
class Started:
    """A run that was started: when, the minutes it took (so far as is known), and whether it trains or only measures."""

    at: datetime
    minutes: float
    trains: bool


@dataclass(frozen=True)
class Held:
    """Until when no run may start, and which key of the budget says so."""

    until: datetime
    by: str


def held(limits: Limits, started: Sequence[Started], now: datetime, *, trains: bool) -> Held | None:
    """What keeps a run from starting now, and until when; None when nothing does. A run that only measures spends minutes
    and nothing else. At `until` it is to be asked again."""
    today = [each for each in started if each.at > now - DAY]
    trainings = [each for each in today if each.trains]
    found = []
    if trains and limits.cool_down is not None:
        last = max((each.at for each in started if each.trains), default=None)
        if last is not None and now < last + limits.cool_down:
            found.append(Held(last + limits.cool_down, "cool_down"))
    if trains and len(trainings) >= limits.runs_per_day:
        found.append(Held(min(each.at for each in trainings) + DAY, "runs_per_day"))
    if today and sum(each.minutes for each in today) >= limits.minutes_per_day:
        found.append(Held(min(each.at for each in today) + DAY, "training_minutes_per_day"))
    return max(found, key=lambda each: each.until, default=None)
