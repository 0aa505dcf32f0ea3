"""Work that goes on beside everything else."""

from __future__ import annotations

import asyncio
import logging

import pytest

from dropforge.host import tasks
from dropforge.host.tasks import Tasks, repeat


def test_a_look_that_fails_is_logged_and_not_the_last(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tasks, "_AFTER_FAILURE_SECONDS", 0.0)
    looks: list[int] = []

    async def look() -> float:
        looks.append(1)
        if len(looks) == 2:
            raise OSError("no space left")
        return 0.0

    async def work() -> None:
        running = Tasks()
        running.start(repeat(look))
        async with asyncio.timeout(5):
            while len(looks) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert len(running) == 1
        await running.cancel()
        assert len(running) == 0

    with caplog.at_level(logging.ERROR):
        asyncio.run(work())
    assert "no space left" in caplog.text


def test_tasks_get_some_time_to_end_by_themselves() -> None:
    async def work() -> None:
        running = Tasks()
        quick, slow = running.start(asyncio.sleep(0)), running.start(asyncio.sleep(60))
        await running.finish(0.05)
        assert (quick.cancelled(), slow.cancelled(), len(running)) == (False, True, 0)
        await running.finish(0.05)

    asyncio.run(work())
