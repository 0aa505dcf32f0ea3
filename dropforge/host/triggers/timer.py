"""Timer triggers: one loop per function, and a memory of what was due while the host was down."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from aiohttp import web
from azure.functions import meta

from dropforge.host.app import AppFunction
from dropforge.host.files import write_private
from dropforge.host.invocation import Call, RetryContext
from dropforge.host.ncrontab import Cron, Schedule, parse_schedule
from dropforge.host.triggers.service import Surroundings

_log = logging.getLogger(__name__)

# A wait is cut into pieces, so that a clock that is set, or a laptop that sleeps, delays a timer by one piece at most.
_LONGEST_WAIT_SECONDS = 15.0
_LATE = timedelta(seconds=5)
# As in Azure: what fires more often is not remembered.
_SHORTEST_MONITORED = timedelta(minutes=1)


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Timer:
    """One timer function with its schedule."""

    function: AppFunction
    schedule: Schedule
    run_on_startup: bool
    monitored: bool
    retries: Retries | None


@dataclass(frozen=True)
class Retries:
    """The function's `@app.retry`: how often, and how long to wait before attempt `n` (from 1)."""

    # Azure writes -1 for no limit.
    limit: int
    shortest: timedelta
    longest: timedelta
    grows: bool

    def wait(self, attempt: int) -> float:
        if not self.grows:
            return self.shortest.total_seconds()
        # Some jitter, so that what failed together does not come back together.
        grown = self.shortest.total_seconds() * 2.0 ** min(attempt - 1, 30) * random.uniform(0.8, 1.2)  # noqa: S311
        return min(max(grown, self.shortest.total_seconds()), self.longest.total_seconds())


@dataclass(frozen=True)
class TimerStatus:
    """When a timer last ran and when it is due next; kept across restarts."""

    due: datetime
    last: datetime | None = None


class TimerTrigger:
    """Calls timer functions when they are due; never one of them twice at once."""

    def __init__(self, around: Surroundings, now: Callable[[], datetime] = utc_now) -> None:
        self._around = around
        self._now = now
        self._memory = TimerMemory(around.state / "timers.json")
        self._stopping = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self.problems: list[str] = []
        self._timers: list[Timer] = []
        for function in around.functions:
            try:
                self._timers.append(_timer(function, _zone(around.environment)))
            except ValueError as error:
                self.problems.append(f"function {function.name!r} cannot run: {error}")

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        return ()

    async def start(self) -> None:
        self._loops = [asyncio.create_task(self._serve(timer), name=timer.function.name) for timer in self._timers]

    async def stop(self) -> None:
        self._stopping.set()

    async def close(self) -> None:
        pass

    def by_hand(self, function: AppFunction, text: str) -> Call:
        timer = next((timer for timer in self._timers if timer.function is function), None)
        if timer is None:
            raise ValueError(f"{function.name!r} has a schedule that cannot be read")
        return self._call(timer, TimerStatus(timer.schedule.next_after(self._now())), past_due=False)

    async def _serve(self, timer: Timer) -> None:
        name = timer.function.name
        now = self._now()
        status = self._memory.get(name) if timer.monitored else None
        missed = status is not None and status.due <= now
        due = timer.schedule.next_after(now)
        # A schedule that was edited to come sooner counts from now on.
        status = TimerStatus(due) if status is None else TimerStatus(min(status.due, due), status.last)
        if timer.monitored:
            self._memory.put(name, status)
        if missed or timer.run_on_startup:
            status = await self._fire(timer, status, past_due=missed)
        while await self._wait_until(status.due):
            status = await self._fire(timer, status, past_due=self._now() - status.due > _LATE)

    async def _wait_until(self, due: datetime) -> bool:
        """True when the time has come, False when the host stops first."""
        while (left := (due - self._now()).total_seconds()) > 0 and not self._stopping.is_set():
            await self._pause(min(left, _LONGEST_WAIT_SECONDS))
        return not self._stopping.is_set()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    async def _fire(self, timer: Timer, status: TimerStatus, past_due: bool) -> TimerStatus:
        fired = self._now()
        await self._invoke(timer, status, past_due)
        # Counted from the end of the run: what fell due meanwhile is left out, as in Azure. A run at startup comes
        # before its time, which then stays.
        ended = self._now()
        following = TimerStatus(
            timer.schedule.next_after(max(ended, status.due) if fired >= status.due else ended), fired
        )
        if timer.monitored:
            self._memory.put(timer.function.name, following)
        return following

    async def _invoke(self, timer: Timer, status: TimerStatus, past_due: bool) -> None:
        attempt, error = 0, None
        limit = timer.retries.limit if timer.retries else 0
        while True:
            try:
                await self._around.invocations.invoke(
                    timer.function, self._call(timer, status, past_due, RetryContext(attempt, limit, error))
                )
                return
            except Exception as raised:  # noqa: BLE001 - logged where it was raised; the timer goes on
                error = raised
            attempt += 1
            if timer.retries is None or 0 <= limit < attempt:
                return
            await self._pause(timer.retries.wait(attempt))
            if self._stopping.is_set():
                return

    def _call(self, timer: Timer, status: TimerStatus, past_due: bool, retry: RetryContext | None = None) -> Call:
        last = (status.last or datetime.min.replace(tzinfo=UTC)).isoformat()
        schedule_status = {"Last": last, "LastUpdated": last, "Next": status.due.isoformat()}
        payload = {
            "Schedule": {"AdjustForDST": isinstance(timer.schedule, Cron)},
            "ScheduleStatus": schedule_status if timer.monitored else {},
            "IsPastDue": past_due,
        }
        what = "timer (past due)" if past_due else "timer"
        return Call(datum=meta.Datum(json.dumps(payload), "json"), what=what, retry=retry or RetryContext())


class TimerMemory:
    """The status of every monitored timer, in one small file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = self._read()

    def get(self, name: str) -> TimerStatus | None:
        return self._rows.get(name)

    def put(self, name: str, status: TimerStatus) -> None:
        """Remember; a crash right after does not lose it. On a full disk it is not remembered, and logged."""
        self._rows[name] = status
        rows = {
            name: {"due": row.due.isoformat(), "last": row.last.isoformat() if row.last else None}
            for name, row in self._rows.items()
        }
        try:
            write_private(self._path, json.dumps(rows, indent=2) + "\n")
        except OSError as error:
            _log.error("%s cannot be written (%s); timers go on without it", self._path, error)

    def _read(self) -> dict[str, TimerStatus]:
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))
            return {
                name: TimerStatus(
                    datetime.fromisoformat(row["due"]), datetime.fromisoformat(row["last"]) if row["last"] else None
                )
                for name, row in rows.items()
            }
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("%s cannot be read (%s); timers start as if for the first time", self._path, error)
            return {}


def _timer(function: AppFunction, zone: tzinfo) -> Timer:
    properties = function.trigger.properties
    schedule = parse_schedule(str(properties.get("schedule") or ""), zone)
    monitor = properties.get("useMonitor")
    return Timer(
        function,
        schedule,
        run_on_startup=_truth(properties.get("runOnStartup")),
        monitored=(monitor is None or _truth(monitor)) and schedule.shortest_gap() >= _SHORTEST_MONITORED,
        retries=_retries(function.retry) if function.retry else None,
    )


def _truth(value: object) -> bool:
    return value is True or str(value).lower() == "true"


def _zone(environment: Mapping[str, str]) -> tzinfo:
    name = environment.get("WEBSITE_TIME_ZONE") or "UTC"
    if name.upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"WEBSITE_TIME_ZONE is {name!r}; write an IANA name such as 'Europe/Berlin'") from error


def _retries(policy: Mapping[str, Any]) -> Retries:
    grows = policy.get("strategy") == "exponential_backoff"
    shortest = _span(policy, "minimum_interval" if grows else "delay_interval")
    longest = _span(policy, "maximum_interval") if grows else shortest
    return Retries(int(policy.get("max_retry_count") or 0), shortest, max(longest, shortest), grows)


def _span(policy: Mapping[str, Any], name: str) -> timedelta:
    text = str(policy.get(name) or "00:00:00")
    found = re.fullmatch(r"(\d{1,2}):(\d{2}):(\d{2})", text)
    if found is None:
        raise ValueError(f"its retry policy has {name} {text!r}; write 'hh:mm:ss'")
    hours, minutes, seconds = map(int, found.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)
