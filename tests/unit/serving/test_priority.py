"""Work beside the requests gives way to them, as far as it can afford."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dropforge.serving import priority
from dropforge.serving.priority import (
    BEHIND,
    BUSY,
    CROWDED,
    IDLE,
    LONG,
    QUIET,
    WINDOW_SECONDS,
    Aside,
    Neighbours,
    Times,
    main_thread_times,
    others_seconds,
    times,
)


def given_way() -> tuple[int, int]:
    thread = threading.get_native_id()
    return os.sched_getscheduler(thread), os.getpriority(os.PRIO_PROCESS, thread)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux only")
def test_each_piece_of_work_gives_way_as_far_as_it_was_told_and_nobody_else_does() -> None:
    async def several() -> list[tuple[int, int]]:
        aside = Aside()
        return [await aside.run(lambda wanted=wanted: wanted, given_way) for wanted in (LONG, BEHIND, None)]  # type: ignore[misc]

    async def idle() -> int:
        return (await Aside().run(lambda: IDLE, given_way))[0]

    before = given_way()
    assert asyncio.run(several()) == [(os.SCHED_OTHER, LONG), (os.SCHED_OTHER, BEHIND), before]
    assert asyncio.run(idle()) == os.SCHED_IDLE
    assert given_way() == before


def test_how_far_work_gives_way_is_decided_when_it_begins_and_told_while_it_goes_on() -> None:
    async def seen() -> list[int | None]:
        aside = Aside()
        inside = await aside.run(lambda: LONG, lambda: aside.niceness)
        await asyncio.sleep(0)
        return [inside, aside.niceness]

    assert asyncio.run(seen()) == [LONG, None]


def test_one_piece_at_a_time_even_when_nobody_waits_for_it_any_more() -> None:
    going, go_on, seen = threading.Event(), threading.Event(), list[str]()

    def first() -> None:
        going.set()
        assert go_on.wait(10)
        seen.append("first")

    async def both() -> None:
        aside = Aside()
        given_up = asyncio.create_task(aside.run(lambda: None, first))
        await asyncio.to_thread(going.wait, 10)
        given_up.cancel()
        second = asyncio.create_task(aside.run(lambda: None, lambda: seen.append("second")))
        await asyncio.wait([second], timeout=0.1)
        assert not second.done()
        go_on.set()
        await second

    asyncio.run(both())
    assert seen == ["first", "second"]


def test_what_goes_wrong_is_raised_and_the_next_piece_is_done() -> None:
    async def both() -> int:
        aside = Aside()
        with pytest.raises(ZeroDivisionError):
            await aside.run(lambda: None, lambda: 1 // 0)
        return await aside.run(lambda: None, lambda: 3)

    assert asyncio.run(both()) == 3


def test_what_goes_wrong_keeps_nothing_in_memory() -> None:
    class Weights:
        pass

    gone: list[bool] = []

    def fails() -> None:
        weights = Weights()
        weakref.finalize(weights, gone.append, True)
        raise ValueError

    async def one() -> None:
        with pytest.raises(ValueError):
            await Aside().run(lambda: None, fails)
        # Its thread may be about to put it down.
        async with asyncio.timeout(5):
            while not gone:  # noqa: ASYNC110 - what is waited for tells nobody
                await asyncio.sleep(0)

    gc.disable()
    try:
        asyncio.run(one())
    finally:
        gc.enable()


def test_work_that_cannot_begin_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoThreads(ThreadPoolExecutor):
        def submit(self, *_: object) -> Future[Any]:  # type: ignore[override]
            raise RuntimeError("can't start new thread")

    async def several() -> int:
        aside = Aside()
        with pytest.raises(ZeroDivisionError):
            await aside.run(lambda: 1 // 0, lambda: 1)
        with monkeypatch.context() as patch:
            patch.setattr(priority, "ThreadPoolExecutor", NoThreads)
            with pytest.raises(RuntimeError):
                await aside.run(lambda: LONG, lambda: 2)
        assert aside.niceness is None
        async with asyncio.timeout(5):
            return await aside.run(lambda: None, lambda: 3)

    assert asyncio.run(several()) == 3


@pytest.mark.parametrize("niceness", [IDLE, BEHIND])
def test_the_loop_pauses_for_work_that_would_never_get_a_full_core(
    monkeypatch: pytest.MonkeyPatch, niceness: int
) -> None:
    paused: list[bool] = []
    enough = threading.Event()
    monkeypatch.setattr(priority, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(priority, "BETWEEN_SECONDS", 0.01)
    monkeypatch.setattr(priority, "pause", lambda: [paused.append(True), len(paused) == 3 and enough.set()])

    async def scenario() -> None:
        # Its own share is enough for what gives way less.
        assert await Aside().run(lambda: niceness, lambda: enough.wait(10 if niceness == IDLE else 0.2)) == bool(paused)
        before = len(paused)
        await asyncio.sleep(0.05)
        assert len(paused) == before

    asyncio.run(scenario())
    assert bool(paused) == (niceness == IDLE)


class Core:
    """What is told of a core, look by look; the shares of the time."""

    def __init__(self) -> None:
        self.neighbours = Neighbours()
        self.now, self.told = 100.0, Times(5.0, 1.0, 7.0)

    def goes_on(self, seconds: float, ran: float, waited: float, others: float | None = 0.5) -> int:
        self.now += seconds
        told = self.told
        told = Times(told.ran + ran * seconds, told.waited + waited * seconds, told.others)
        self.told = told._replace(others=None if others is None else (told.others or 0) + others * seconds)
        self.neighbours.look(self.now, lambda: self.told)
        return self.neighbours.niceness


def test_work_gives_way_altogether_where_requests_need_the_core_and_nobody_else_does() -> None:
    core = Core()
    # Of one look nothing follows.
    assert core.goes_on(1, 1, 0) == BEHIND
    assert core.goes_on(1, BUSY * 1.1, CROWDED * 0.9) == IDLE
    assert core.goes_on(1, BUSY * 0.9, CROWDED * 0.9) == BEHIND
    assert core.goes_on(1, BUSY * 1.1, CROWDED * 0.9) == IDLE
    assert core.goes_on(1, BUSY * 1.1, CROWDED * 1.1) == BEHIND


def test_work_gives_way_altogether_where_others_leave_the_cores_free() -> None:
    core = Core()
    core.goes_on(1, 0, 0)
    assert core.goes_on(1, 0, 0, QUIET * 0.9) == IDLE
    assert core.goes_on(1, 0, 0, QUIET * 1.1) == BEHIND
    assert core.goes_on(1, 0, 0, QUIET * 0.9) == IDLE
    assert core.goes_on(1, 0, CROWDED * 1.1, QUIET * 0.9) == BEHIND
    assert core.goes_on(1, 0, 0, None) == BEHIND
    assert core.goes_on(1, 0, 0, 0) == BEHIND, "there was nothing to compare with"
    assert core.goes_on(1, 0, 0, 0) == IDLE


def test_a_moment_says_nothing_and_moments_add_up() -> None:
    core = Core()
    core.goes_on(1, 1, 0)
    for _ in range(4):
        assert core.goes_on(WINDOW_SECONDS / 5, BUSY * 1.1, 0) == BEHIND
    assert core.goes_on(WINDOW_SECONDS / 4, BUSY * 1.1, 0) == IDLE


def test_what_was_before_a_time_that_does_not_count_does_not_count() -> None:
    core = Core()
    core.goes_on(1, 1, 0)
    core.neighbours.skip()
    assert core.goes_on(1, 1, 0) == BEHIND
    assert core.goes_on(1, 1, 0) == IDLE


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells")
def test_what_others_had_of_the_cores_is_what_the_kernel_says(tmp_path: Path) -> None:
    one, *_ = cores = sorted(os.sched_getaffinity(0))
    told = tmp_path / "stat"
    tick = os.sysconf("SC_CLK_TCK")
    lines = [f"cpu{each} {100 * tick} {20 * tick} {3 * tick} 9999999 77 88 99 0 0 0" for each in cores]
    told.write_text("\n".join(["cpu  1 1 1", *lines, f"cpu{max(cores) + 1} 1000000000 0 0 0", "intr 5 1"]) + "\n")
    ours = time.process_time() / len(cores)
    found = others_seconds(told)
    assert found is not None
    assert 123 - ours - 1 < found <= 123 - ours
    told.write_text(f"cpu{one} x\n")
    assert others_seconds(told) is others_seconds(tmp_path / "nothing") is None
    told.write_text("cpu  1 1 1\n")
    assert others_seconds(told) is None
    now = times()
    assert now.others is not None


def test_what_the_main_thread_had_is_what_the_kernel_says(tmp_path: Path) -> None:
    told = tmp_path / "schedstat"
    told.write_text("1500000000 2500000000 17\n")
    assert main_thread_times(told) == (1.5, 2.5)
    told.write_text("")
    assert main_thread_times(told) == main_thread_times(tmp_path / "nothing") == (0.0, 0.0)
    assert all(each >= 0 for each in main_thread_times())
