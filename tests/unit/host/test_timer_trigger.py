"""Timer triggers: fired when due, once at a time, and late rather than never."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dropforge.host.app import App
from dropforge.host.host_json import HostJson
from dropforge.host.invocation import Invocations
from dropforge.host.keys import Keys
from dropforge.host.threads import FunctionThreads
from dropforge.host.triggers.service import Surroundings
from dropforge.host.triggers.timer import TimerMemory, TimerStatus, TimerTrigger
from tests.unit.host.apps import loaded

SOURCE = """
app = func.FunctionApp()
seen = []
gate = None

@app.timer_trigger(arg_name="timer", schedule="{schedule}", use_monitor={monitor}, run_on_startup={startup})
{retry}
async def tick(timer: func.TimerRequest, context: func.Context):
    seen.append({{"past_due": timer.past_due, "status": timer.schedule_status, "schedule": timer.schedule,
                 "attempt": context.retry_context.retry_count}})
    if gate is not None:
        await gate.wait()
    if len(seen) <= {failures}:
        raise ValueError("not yet")
"""
START = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


class Clock:
    """Time that stands until it is moved, or runs as fast as asked."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


class Timers:
    """The service over one app, with its own clock."""

    def __init__(self, app: App, state: Path, clock: Clock, environment: Mapping[str, str] | None = None) -> None:
        self.threads = FunctionThreads(2)
        invocations = Invocations(app.functions, self.threads)
        around = Surroundings(app.functions, invocations, Keys("m"), HostJson(), state, environment or {})
        self.trigger = TimerTrigger(around, clock)
        self.globals: dict[str, Any] = app.functions[0].call.__globals__

    @property
    def seen(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.globals["seen"]
        return found

    async def __aenter__(self) -> Timers:
        await self.trigger.start()
        await asyncio.sleep(0.02)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.trigger.stop()
        await asyncio.gather(*self.trigger._loops)
        self.threads.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path


def app_with(
    folder: Path,
    schedule: str = "0 0 * * * *",
    monitor: bool = True,
    startup: bool = False,
    retry: str = "",
    failures: int = 0,
) -> contextlib.AbstractContextManager[App]:
    source = SOURCE.format(schedule=schedule, monitor=monitor, startup=startup, retry=retry, failures=failures)
    return loaded(folder / "app", source)


def remembered(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "state" / "timers.json").read_text())
    return found["tick"]  # type: ignore[no-any-return]


def test_a_first_start_fires_nothing_and_remembers_what_is_due(folder: Path) -> None:
    async def work(app: App) -> None:
        async with Timers(app, folder / "state", Clock()) as timers:
            assert timers.seen == []

    with app_with(folder) as app:
        asyncio.run(work(app))
    assert remembered(folder) == {"due": "2026-11-22T13:00:00+00:00", "last": None}


def test_what_was_missed_while_the_host_was_down_fires_once_as_past_due(folder: Path) -> None:
    last = START - timedelta(hours=9)
    TimerMemory(folder / "state" / "timers.json").put("tick", TimerStatus(START - timedelta(hours=8), last))

    async def work(app: App) -> None:
        async with Timers(app, folder / "state", Clock()) as timers:
            (call,) = timers.seen
            assert call["past_due"] is True
            assert call["status"]["Last"] == last.isoformat()
            assert call["schedule"] == {"AdjustForDST": True}

    with app_with(folder) as app:
        asyncio.run(work(app))
    assert remembered(folder) == {"due": "2026-11-22T13:00:00+00:00", "last": START.isoformat()}


def test_without_a_monitor_nothing_is_remembered(folder: Path) -> None:
    TimerMemory(folder / "state" / "timers.json").put("tick", TimerStatus(START - timedelta(hours=8)))

    async def work(app: App) -> None:
        async with Timers(app, folder / "state", Clock()) as timers:
            assert timers.seen == []

    with app_with(folder, monitor=False) as app:
        asyncio.run(work(app))


def test_timers_that_fire_more_than_once_a_minute_are_not_remembered(folder: Path) -> None:
    async def work(app: App) -> None:
        async with Timers(app, folder / "state", Clock()):
            pass

    with app_with(folder, schedule="*/10 * * * * *") as app:
        asyncio.run(work(app))
    assert not (folder / "state" / "timers.json").exists()


def test_run_on_startup_fires_at_once_and_is_not_past_due(folder: Path) -> None:
    async def work(app: App) -> None:
        async with Timers(app, folder / "state", Clock()) as timers:
            assert [call["past_due"] for call in timers.seen] == [False]

    with app_with(folder, startup=True) as app:
        asyncio.run(work(app))


def test_a_timer_fires_when_its_time_comes_and_plans_the_next(folder: Path) -> None:
    clock = Clock(datetime(2026, 11, 22, 12, 59, 59, 950000, UTC))

    async def work(app: App) -> None:
        async with Timers(app, folder / "state", clock) as timers:
            assert timers.seen == []
            clock.now = START + timedelta(hours=1)
            await asyncio.sleep(0.15)
            assert [call["past_due"] for call in timers.seen] == [False]

    with app_with(folder) as app:
        asyncio.run(work(app))
    assert remembered(folder)["due"] == "2026-11-22T14:00:00+00:00"


def test_a_run_that_outlasts_its_interval_is_not_overlapped_and_not_made_up_for(folder: Path) -> None:
    clock = Clock(datetime(2026, 11, 22, 12, 59, 59, 950000, UTC))

    async def work(app: App) -> None:
        async with Timers(app, folder / "state", clock) as timers:
            gate = timers.globals["gate"] = asyncio.Event()
            clock.now = START + timedelta(hours=1)
            await asyncio.sleep(0.1)
            clock.now = START + timedelta(hours=5, minutes=1)
            await asyncio.sleep(0.05)
            assert len(timers.seen) == 1
            gate.set()
            await asyncio.sleep(0.02)
            assert len(timers.seen) == 1

    with app_with(folder) as app:
        asyncio.run(work(app))
    assert remembered(folder)["due"] == "2026-11-22T18:00:00+00:00"


def test_the_retry_policy_is_kept(folder: Path) -> None:
    async def work(app: App) -> None:
        async with Timers(app, folder / "state", Clock()) as timers:
            await asyncio.sleep(0.05)
            assert [call["attempt"] for call in timers.seen] == [0, 1, 2]

    retry = '@app.retry(strategy="fixed_delay", max_retry_count="5", delay_interval="00:00:00")'
    with app_with(folder, startup=True, retry=retry, failures=2) as app:
        asyncio.run(work(app))


def test_a_retry_policy_gives_up_after_its_last_attempt(folder: Path) -> None:
    async def work(app: App) -> None:
        async with Timers(app, folder / "state", Clock()) as timers:
            await asyncio.sleep(0.05)
            assert [call["attempt"] for call in timers.seen] == [0, 1]

    retry = '@app.retry(strategy="fixed_delay", max_retry_count="1", delay_interval="00:00:00")'
    with app_with(folder, startup=True, retry=retry, failures=9) as app:
        asyncio.run(work(app))


def test_a_timer_that_failed_is_due_again_as_planned(folder: Path) -> None:
    async def work(app: App) -> None:
        async with Timers(app, folder / "state", Clock()) as timers:
            assert len(timers.seen) == 1

    with app_with(folder, startup=True, failures=1) as app:
        asyncio.run(work(app))
    assert remembered(folder)["due"] == "2026-11-22T13:00:00+00:00"


def test_the_time_zone_setting_is_honoured(folder: Path) -> None:
    async def work(app: App) -> None:
        async with Timers(app, folder / "state", Clock(), {"WEBSITE_TIME_ZONE": "Europe/Berlin"}):
            pass

    with app_with(folder, schedule="0 0 9 * * *") as app:
        asyncio.run(work(app))
    assert remembered(folder)["due"] == "2026-11-23T08:00:00+00:00"


@pytest.mark.parametrize(
    ("schedule", "environment", "word"),
    [("every day", {}, "six"), ("0 0 * * * *", {"WEBSITE_TIME_ZONE": "Eastern Standard Time"}, "IANA")],
)
def test_a_timer_that_cannot_run_is_told_of(
    folder: Path, schedule: str, environment: dict[str, str], word: str
) -> None:
    async def work(app: App) -> None:
        async with Timers(app, folder / "state", Clock(), environment) as timers:
            (problem,) = timers.trigger.problems
            assert "'tick' cannot run" in problem
            assert word in problem

    with app_with(folder, schedule=schedule) as app:
        asyncio.run(work(app))


def test_a_broken_memory_is_no_reason_not_to_start(folder: Path) -> None:
    (folder / "state" / "timers.json").write_text("{")

    async def work(app: App) -> None:
        async with Timers(app, folder / "state", Clock()):
            pass

    with app_with(folder) as app:
        asyncio.run(work(app))
    assert remembered(folder)["last"] is None
