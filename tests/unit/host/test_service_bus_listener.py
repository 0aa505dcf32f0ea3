"""What waits on an entity: how many at once, in which order, and what it does when Service Bus is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dropforge.host.invocation import Call
from dropforge.host.service_bus import listener as listeners
from dropforge.host.service_bus.health import Health, Reach
from dropforge.host.service_bus.link import NoSession, Refused, Unreachable
from dropforge.host.service_bus.pool import Pool
from dropforge.host.service_bus.settings import BusSettings
from tests.unit.host.service_bus_world import LOST, Calls, World, listener, message, until

HEALTH = "dropforge.host.service_bus.health"


def lasting(seconds: float) -> Callable[[Call], Awaitable[None]]:
    async def body(call: Call) -> None:
        await asyncio.sleep(seconds)

    return body


def live(
    work: Callable[[World, Calls], Awaitable[None]],
    settings: BusSettings | None = None,
    body: Callable[[Call], Awaitable[None]] | None = None,
    world: World | None = None,
    **about: Any,
) -> World:
    """Run a listener while the work goes on."""

    async def lived() -> World:
        made, calls = world or World(), Calls(body)
        listening = listener(made, calls, settings, **about)
        listening.start()
        try:
            await work(made, calls)
        finally:
            await listening.close()
        assert made.links == []
        return made

    return asyncio.run(lived())


# ------------------------------------------------------------------ queues
def test_every_message_is_delivered_once() -> None:
    names = [f"m{number}" for number in range(200)]

    async def work(world: World, calls: Calls) -> None:
        world.put(*map(message, names))
        await until(lambda: len(world.settled) == 200)

    world = live(work)
    assert sorted(world.settled) == sorted((name, "completed") for name in names)


def test_slow_functions_run_beside_each_other_up_to_the_limit() -> None:
    async def work(world: World, calls: Calls) -> None:
        world.put(*(message(f"m{number}") for number in range(20)))
        await until(lambda: len(world.settled) == 20)
        assert calls.most == 5

    live(work, BusSettings(max_calls=5), lasting(0.05))


def test_quick_functions_need_one_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "_PATIENCE_SECONDS", 60.0)

    async def work(world: World, calls: Calls) -> None:
        for number in range(20):
            world.put(message(f"m{number}"))
            await until(lambda number=number: len(world.settled) == number + 1)
        assert world.opened == 1

    live(work)


def test_links_that_are_not_needed_any_more_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "_SPARE_SECONDS", 0.05)
    monkeypatch.setattr(listeners, "_WAIT_SECONDS", 0.05)

    async def work(world: World, calls: Calls) -> None:
        world.put(*(message(f"m{number}") for number in range(8)))
        await until(lambda: len(world.settled) == 8)
        assert len(world.links) > 1
        await until(lambda: len(world.links) == 1)
        world.put(message("last"))
        await until(lambda: world.outcomes("last"))

    live(work, BusSettings(max_calls=8), lasting(0.05))


def test_a_message_that_no_function_can_get_is_given_back_and_told(caplog: pytest.LogCaptureFixture) -> None:
    async def work(world: World, calls: Calls) -> None:
        world.put(message("odd", fault="its body is odd"), message("m"))
        await until(lambda: len(world.settled) == 2)
        assert [call.what for call in calls.made] == ["message m from q"]

    assert live(work).outcomes("odd") == ["abandoned"]
    assert "message odd fails: its body is odd" in caplog.text


# ------------------------------------------------------------------ batches
def test_a_batch_takes_what_is_there_up_to_the_limit() -> None:
    async def work(world: World, calls: Calls) -> None:
        world.put(*(message(f"m{number}") for number in range(7)))
        await until(lambda: len(world.settled) == 7)
        assert [call.what for call in calls.made] == [f"{size} messages from q" for size in (3, 3, 1)]
        assert calls.most == 1

    live(work, BusSettings(max_batch=3), many=True)


def test_a_smallest_batch_is_waited_for_but_not_for_ever() -> None:
    async def work(world: World, calls: Calls) -> None:
        world.put(message("a"))
        await asyncio.sleep(0.02)
        world.put(message("b"))
        await until(lambda: len(world.settled) == 2)
        world.put(message("c"))
        await until(lambda: len(world.settled) == 3)
        assert [call.what for call in calls.made] == ["2 messages from q", "1 messages from q"]

    live(work, BusSettings(min_batch=2, batch_wait_seconds=0.2), many=True)


# ------------------------------------------------------------------ sessions
def test_each_session_is_served_in_order_and_several_at_once() -> None:
    async def work(world: World, calls: Calls) -> None:
        for session in "abc":
            world.put(*(message(f"{session}{number}") for number in range(10)), session=session)
        await until(lambda: len(world.settled) == 30)
        assert calls.most == 3

    world = live(work, BusSettings(session_idle_seconds=5), lasting(0.005), sessions=True)
    for session in "abc":
        assert [name for name, _ in world.settled if name[0] == session] == [f"{session}{n}" for n in range(10)]


def test_no_more_sessions_than_allowed_are_held() -> None:
    async def work(world: World, calls: Calls) -> None:
        for session in "abcdef":
            world.put(*(message(f"{session}{number}") for number in range(3)), session=session)
        await until(lambda: len(world.settled) == 18)
        assert calls.most == 2

    live(work, BusSettings(max_sessions=2, session_idle_seconds=0.05), lasting(0.005), sessions=True)


def test_a_quiet_session_is_let_go_at_once_when_others_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "_CROWDED_SECONDS", 0.05)
    monkeypatch.setattr(listeners, "_TICK_SECONDS", 0.02)

    async def work(world: World, calls: Calls) -> None:
        for session in "abcd":
            world.put(message(session), session=session)
        await until(lambda: len(world.settled) == 4)

    # With the idle time alone this would take minutes.
    live(work, BusSettings(max_sessions=1, session_idle_seconds=60), sessions=True)


def test_a_session_keeps_its_link_while_there_is_room() -> None:
    async def work(world: World, calls: Calls) -> None:
        for number in range(5):
            world.put(message(f"m{number}"), session="a")
            await until(lambda number=number: len(world.settled) == number + 1)
        assert len([link for link in world.links if link.session == "a"]) == 1

    live(work, BusSettings(session_idle_seconds=60), sessions=True)


def test_several_calls_in_one_session_run_together_when_that_is_asked_for() -> None:
    async def work(world: World, calls: Calls) -> None:
        world.put(*(message(f"m{number}") for number in range(6)), session="a")
        await until(lambda: len(world.settled) == 6)
        assert calls.most == 3

    live(work, BusSettings(max_calls_per_session=3), lasting(0.02), sessions=True)


def test_the_lock_of_a_quiet_session_is_renewed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "_TICK_SECONDS", 0.02)

    async def work(world: World, calls: Calls) -> None:
        world.put(message("m"), session="a")
        await until(lambda: world.renewed >= 3)

    live(work, BusSettings(session_idle_seconds=60), world=World(lock_seconds=0.1), sessions=True)


def test_a_session_that_is_lost_is_taken_up_again() -> None:
    async def work(world: World, calls: Calls) -> None:
        world.put(message("m"), session="a")
        await until(lambda: calls.made)
        world.put(message("m", delivery=2), session="a")
        await until(lambda: world.outcomes("m"))

    world = live(work, world=World(settling_errors=[LOST]), sessions=True)
    assert world.outcomes("m") == ["completed"]
    assert world.opened >= 2


def test_no_session_with_messages_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    async def work(world: World, calls: Calls) -> None:
        await until(lambda: world.opened == 4)

    with caplog.at_level(logging.INFO):
        live(work, world=World(opening_errors=[NoSession("none")] * 3), sessions=True)
    assert [record.getMessage() for record in caplog.records] == ["on_message on q: receiving"]


# ------------------------------------------------------------------ trouble
def test_a_link_that_breaks_is_replaced() -> None:
    async def work(world: World, calls: Calls) -> None:
        world.put(message("before"))
        await until(lambda: world.settled)
        world.links[0].broken = Unreachable("gone")
        world.wake()
        await until(lambda: world.opened == 2)
        world.put(message("after"))
        await until(lambda: world.outcomes("after"))

    live(work)


def test_a_fault_of_the_host_is_told_and_does_not_end_the_trigger(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listeners, "_AFTER_FAULT_SECONDS", 0.01)

    async def work(world: World, calls: Calls) -> None:
        await until(lambda: world.links)
        world.links[0].broken = AttributeError("a bug")  # type: ignore[assignment]
        world.wake()
        await until(lambda: world.opened == 2)
        world.put(message("m"))
        await until(lambda: world.settled)

    live(work)
    assert "a worker failed" in caplog.text
    assert "AttributeError: a bug" in caplog.text


def test_a_service_that_is_away_is_asked_again_after_growing_pauses() -> None:
    pauses = [Health("e", Reach("bus")).failed(Unreachable("x"))]
    health = Health("e", Reach("bus"))
    pauses = [health.failed(Unreachable("x")) for _ in range(9)]
    assert 0.1 < pauses[0] < 0.3
    assert 20 < pauses[-1] < 40
    health.well()
    assert health.failed(Unreachable("x")) < 0.3


def test_a_connection_that_is_lost_is_told_once_for_all_who_listen(caplog: pytest.LogCaptureFixture) -> None:
    reach = Reach("Service Bus (BUS)")
    entities = [Health(name, reach) for name in ("a", "b")]
    with caplog.at_level(logging.INFO, HEALTH):
        for entity in entities:
            entity.well()
        for entity in entities * 3:
            entity.failed(Unreachable("it broke"))
        for entity in entities:
            entity.well()
    assert [record.getMessage() for record in caplog.records] == [
        "a: receiving",
        "b: receiving",
        "Service Bus (BUS) cannot be reached: it broke; trying again",
        "Service Bus (BUS) can be reached again",
    ]


def test_what_was_asked_before_a_failure_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    now = 10.0
    reach = Reach("bus", now=lambda: now)
    reach.well(asked_at=10.0)
    now = 12.0
    reach.failed(Unreachable("it broke"), asked_at=10.0)
    # An answer that was on its way; and a link of before, which makes no later answer old.
    reach.well(asked_at=11.0)
    now = 13.0
    reach.failed(Unreachable("it broke"), asked_at=10.0)
    with caplog.at_level(logging.INFO, HEALTH):
        reach.well(asked_at=12.5)
        # A link of before, which notices only now.
        reach.failed(Unreachable("it broke"), asked_at=11.0)
        now = 14.0
        reach.failed(Unreachable("once more"), asked_at=12.6)
    assert [record.getMessage() for record in caplog.records] == [
        "bus cannot be reached: it broke; trying again",
        "bus can be reached again",
        "bus cannot be reached: once more; trying again",
    ]


def test_a_service_that_is_still_starting_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    health = Health("e", Reach("bus", now=lambda: now))
    health.failed(Unreachable("refused"))
    assert caplog.text == ""
    now = 6.0
    health.failed(Unreachable("refused"))
    assert "bus cannot be reached" in caplog.text


def test_an_entity_that_does_not_exist_is_told_once_and_asked_for_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    health = Health("f on q", Reach("bus"))
    with caplog.at_level(logging.INFO, HEALTH):
        pauses = [health.failed(Refused(f"q is not there, at {number}")) for number in range(3)]
        health.well()
    assert all(20 < pause < 40 for pause in pauses)
    assert [record.getMessage() for record in caplog.records] == [
        "f on q cannot be used: q is not there, at 0 (tried again every 30 s)",
        "f on q: receiving",
    ]


# ------------------------------------------------------------------ stopping
def test_a_stop_lets_running_calls_finish_and_takes_nothing_new() -> None:
    async def lived() -> None:
        world, calls = World(), Calls(lasting(0.1))
        listening = listener(world, calls)
        listening.start()
        world.put(message("m"))
        await until(lambda: calls.running)
        listening.stop()
        world.put(message("late"))
        await until(lambda: world.settled)
        await listening.close()
        assert world.settled == [("m", "completed")]
        assert [each.id for each in world.waiting[None]] == ["late"]
        assert world.links == []

    asyncio.run(lived())


def test_a_close_gives_back_what_does_not_finish() -> None:
    async def lived() -> None:
        world, calls = World(), Calls(lasting(60))
        listening = listener(world, calls)
        listening.start()
        world.put(message("m"))
        await until(lambda: calls.running)
        listening.stop()
        await listening.close()
        assert world.settled == [("m", "abandoned")]
        assert world.links == []

    asyncio.run(lived())


# ------------------------------------------------------------------ the pool
def test_a_pool_grows_while_all_are_busy_and_shrinks_when_workers_return() -> None:
    async def lived() -> None:
        release, started = asyncio.Event(), 0
        pool: Pool

        async def worker() -> None:
            nonlocal started
            started += 1
            pool.took()
            await release.wait()
            pool.ready()

        pool = Pool(worker, limit=5, name="pool", patience_seconds=0.001)
        pool.start()
        await until(lambda: started == 5)
        assert pool.crowded
        await asyncio.sleep(0.02)
        assert started == 5
        pool.close()
        release.set()
        assert await pool.ended(5)
        assert len(pool) == 0

    asyncio.run(lived())


def test_workers_that_do_not_end_are_cancelled() -> None:
    async def lived() -> None:
        pool = Pool(lambda: asyncio.sleep(60), limit=1, name="pool", patience_seconds=0)
        pool.start()
        await asyncio.sleep(0)
        pool.close()
        assert not await pool.ended(0.01)
        assert len(pool) == 0

    asyncio.run(lived())
