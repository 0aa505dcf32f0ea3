"""How a call ends decides what becomes of its messages; their locks are kept meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dropforge.host.invocation import Call, FunctionQuit
from dropforge.host.service_bus.delivery import Lease
from dropforge.host.service_bus.link import LockLost, Unreachable
from dropforge.host.service_bus.settings import BusSettings, Retries
from tests.unit.host.service_bus_world import LOST, Calls, FakeLink, World, deliveries, message, until

QUICK = BusSettings(retries=Retries(count=2, delay_seconds=0.001))


class Hopeless(ValueError):
    dead_letter_reason = "NotUnderstood"


def raising(error: BaseException) -> Callable[[Call], Awaitable[None]]:
    async def body(call: Call) -> None:
        raise error

    return body


def lasting(seconds: float) -> Callable[[Call], Awaitable[None]]:
    async def body(call: Call) -> None:
        await asyncio.sleep(seconds)

    return body


def run(world: World, calls: Calls, settings: BusSettings = QUICK, session: str | None = None, **about: Any) -> None:
    async def lived() -> None:
        link = FakeLink(world, session)
        made = deliveries(calls, settings, **about)
        await made.run(link, [[message("m")]], Lease(link, [message("m")]))

    asyncio.run(lived())


def quit_by(error: BaseException) -> FunctionQuit:
    quit_ = FunctionQuit("raised something")
    quit_.__cause__ = error
    return quit_


@pytest.mark.parametrize(
    ("error", "settled"),
    [
        (None, "completed"),
        (ValueError("no good"), "abandoned"),
        (Hopeless("nobody understands it"), "dead: NotUnderstood: nobody understands it"),
        (quit_by(Hopeless("x")), "dead: NotUnderstood: x"),
    ],
)
def test_a_message_is_settled_by_how_its_call_ends(error: BaseException | None, settled: str) -> None:
    world = World()
    run(world, Calls(raising(error) if error else None))
    assert world.settled == [("m", settled)]


def test_a_reason_that_is_no_text_dead_letters_nothing() -> None:
    error = ValueError("x")
    error.dead_letter_reason = 7  # type: ignore[attr-defined]
    world = World()
    run(world, Calls(raising(error)))
    assert world.settled == [("m", "abandoned")]


def test_reason_and_description_are_cut_to_what_service_bus_takes() -> None:
    error = Hopeless("d" * 5000)
    error.dead_letter_reason = "r" * 5000
    world = World()
    run(world, Calls(raising(error)))
    assert world.settled == [("m", f"dead: {'r' * 4096}: {'d' * 4096}")]


def test_a_batch_is_settled_as_a_whole_and_never_dead_lettered() -> None:
    async def lived(error: BaseException | None) -> list[tuple[str, str]]:
        world = World()
        calls = Calls(raising(error) if error else None)
        await deliveries(calls, many=True).run(FakeLink(world, None), [[message("a"), message("b")]], None)
        assert calls.made[0].what == "2 messages from q"
        return world.settled

    assert asyncio.run(lived(None)) == [("a", "completed"), ("b", "completed")]
    assert asyncio.run(lived(Hopeless("x"))) == [("a", "abandoned"), ("b", "abandoned")]


def test_without_auto_complete_a_success_is_not_settled_and_a_failure_is_given_back() -> None:
    world = World()
    run(world, Calls(), auto_complete=False)
    assert world.settled == []
    run(world, Calls(raising(ValueError())), BusSettings(auto_complete=False))
    assert world.settled == [("m", "abandoned")]


def test_the_trigger_decides_before_host_json_does() -> None:
    world = World()
    run(world, Calls(), BusSettings(auto_complete=False), auto_complete=True)
    assert world.settled == [("m", "completed")]


def test_later_deliveries_are_named_so() -> None:
    async def lived() -> str:
        return deliveries(Calls()).call_for([message("m", delivery=3)]).what

    assert asyncio.run(lived()) == "message m from q, delivery 3"


# ------------------------------------------------------------------ settling in bad weather
def test_settling_is_tried_again_while_service_bus_cannot_be_reached() -> None:
    world = World(settling_errors=[Unreachable("gone"), Unreachable("gone")])
    run(world, Calls())
    assert world.settled == [("m", "completed")]


def test_what_cannot_be_settled_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World(settling_errors=[Unreachable("gone")] * 3)
    run(world, Calls())
    assert world.settled == []
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.getMessage() == "message m from q could not be completed (gone): it comes again"


def test_a_lost_lock_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    world = World(settling_errors=[LOST])
    run(world, Calls())
    assert world.settled == []
    assert "could not be completed (the lock is gone)" in caplog.text


def test_a_broken_session_ends_and_its_other_messages_are_left_to_the_next_holder() -> None:
    world = World(settling_errors=[Unreachable("gone")])
    with pytest.raises(Unreachable):
        run(world, Calls(), session="s")
    assert world.settled == []


# ------------------------------------------------------------------ locks
def test_locks_are_renewed_at_half_their_time_while_the_function_runs() -> None:
    world = World(lock_seconds=0.1)
    run(world, Calls(lasting(0.3)))
    assert world.settled == [("m", "completed")]
    assert 3 <= world.renewed <= 7


def test_a_short_call_renews_nothing() -> None:
    world = World(lock_seconds=60)
    run(world, Calls())
    assert world.renewed == 0


def test_renewal_ends_after_the_longest_time(caplog: pytest.LogCaptureFixture) -> None:
    world = World(lock_seconds=0.1)
    run(world, Calls(lasting(0.4)), BusSettings(renewal_seconds=0.12))
    assert world.renewed <= 3
    assert caplog.text.count("is no longer renewed") == 1


def test_a_lock_that_is_lost_meanwhile_is_told_and_nothing_is_settled(caplog: pytest.LogCaptureFixture) -> None:
    world = World(lock_seconds=0.1, renewal=LOST)
    calls = Calls(lasting(0.2))
    run(world, calls)
    assert (world.settled, world.renewed, calls.running) == ([], 1, 0)
    assert "message m from q: its lock was lost after" in caplog.text
    assert "on_message was still running" in caplog.text


def test_a_session_that_is_lost_meanwhile_is_left() -> None:
    with pytest.raises(LockLost):
        run(World(lock_seconds=0.1, renewal=LOST), Calls(lasting(0.2)), session="s")


def test_a_renewal_that_finds_nobody_is_repeated_until_the_lock_has_run_out() -> None:
    async def lived() -> None:
        now = 0.0
        world = World(lock_seconds=10, renewal=Unreachable("gone"))
        lease = Lease(FakeLink(world, None), [message("m")], now=lambda: now)
        assert lease.due_in() == 5
        now = 5.0
        await lease.renew()
        assert lease.due_in() == 1
        world.lock_seconds = -1
        with pytest.raises(LockLost, match="ran out"):
            await lease.renew()

    asyncio.run(lived())


# ------------------------------------------------------------------ the end
def test_when_patience_is_over_running_calls_are_given_back(caplog: pytest.LogCaptureFixture) -> None:
    async def lived() -> World:
        world, calls = World(), Calls(lasting(30))
        made = deliveries(calls)
        running = asyncio.create_task(made.run(FakeLink(world, None), [[message("m")]], None))
        await until(lambda: calls.running)
        made.give_back()
        await running
        assert calls.running == 0
        return world

    assert asyncio.run(lived()).settled == [("m", "abandoned")]
    assert "given back, because the host stops" in caplog.text
