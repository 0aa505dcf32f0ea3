"""What comes in together is written down together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from functions.gathering import MOST, Gathered
from functions.starting import Starter


class Work:
    """Takes a while, and notes what it was given."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.free = asyncio.Event()
        self.free.set()
        self.at_once = 0

    async def __call__(self, items: list[int]) -> dict[int, Exception]:
        self.calls.append(items)
        self.at_once += 1
        assert self.at_once == 1
        await self.free.wait()
        self.at_once -= 1
        if -1 in items:
            raise OSError("all of it")
        return {place: ValueError(str(item)) for place, item in enumerate(items) if item % 7 == 6}


def test_what_comes_alone_is_worked_on_at_once() -> None:
    async def scenario() -> None:
        work = Work()
        await Gathered(work).add(1)
        assert work.calls == [[1]]

    asyncio.run(scenario())


def test_what_comes_while_work_is_under_way_is_worked_on_together() -> None:
    async def scenario() -> None:
        work = Work()
        gathered = Gathered(work)
        work.free.clear()
        tasks = [asyncio.create_task(gathered.add(1))]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(gathered.add(number)) for number in (2, 3, 4)]
        await asyncio.sleep(0)
        work.free.set()
        await asyncio.gather(*tasks)
        assert work.calls == [[1], [2, 3, 4]]

    asyncio.run(scenario())


def test_each_gets_its_own_error_and_the_error_of_the_whole() -> None:
    async def scenario() -> None:
        gathered = Gathered(Work())
        results = await asyncio.gather(*(gathered.add(number) for number in range(10)), return_exceptions=True)
        assert [type(result) for result in results] == [type(None)] * 6 + [ValueError] + [type(None)] * 3
        results = await asyncio.gather(*(gathered.add(number) for number in (1, -1)), return_exceptions=True)
        assert [type(result) for result in results] == [OSError, OSError]
        await gathered.add(1)

    asyncio.run(scenario())


def test_so_many_at_a_time_and_no_more() -> None:
    async def scenario() -> None:
        work = Work()
        gathered = Gathered(work)
        await asyncio.gather(*(gathered.add(0) for _ in range(MOST + 5)))
        assert [len(call) for call in work.calls] == [MOST, 5]

    asyncio.run(scenario())


def test_one_that_no_longer_waits_holds_up_nobody() -> None:
    async def scenario() -> None:
        work = Work()
        gathered = Gathered(work)
        work.free.clear()
        gone = asyncio.create_task(gathered.add(1))
        stays = asyncio.create_task(gathered.add(2))
        await asyncio.sleep(0)
        gone.cancel()
        work.free.set()
        await stays
        with pytest.raises(asyncio.CancelledError):
            await gone

    asyncio.run(scenario())


def test_another_event_loop_gets_a_worker_of_its_own() -> None:
    work: list[int] = []

    async def note(items: list[int]) -> dict[int, Exception]:
        work.extend(items)
        return {}

    gathered = Gathered(note)
    for number in (1, 2):
        asyncio.run(gathered.add(number))
    assert work == [1, 2]


# ------------------------------------------------------------------------------------------------ starting
class Client:
    """As much of the durable client as starting uses."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.raised: list[str] = []
        self.broken = False

    async def start_new(self, flow: str, id_: str, value: Any) -> None:
        if self.broken:
            raise OSError("nobody answers")
        self.started.append(id_)
        if self.started.count(id_) > 1:
            raise Exception(f"instance {id_} already exists")  # what the SDK raises

    async def raise_event(self, id_: str, name: str, value: Any) -> None:
        self.raised.append(f"{id_} {name}")


def flow(id_: str, signal: str | None = None) -> dict[str, Any]:
    return {"flow": "intake", "id": id_, "input": {}, "signal": signal}


def test_a_flow_started_moments_ago_is_not_started_again() -> None:
    now = [0.0]
    client, starter = Client(), Starter(30, lambda: now[0])
    for moment in (0, 10, 29):
        now[0] = moment
        asyncio.run(starter.start(client, flow("a")))
    asyncio.run(starter.start(client, flow("b")))
    assert client.started == ["a", "b"]
    now[0] = 31
    asyncio.run(starter.start(client, flow("a")))
    assert client.started == ["a", "b", "a"]


def test_a_signal_is_always_passed_on() -> None:
    client, starter = Client(), Starter()
    for _ in range(2):
        asyncio.run(starter.start(client, flow("a", "full")))
    assert client.raised == ["a full"]
    asyncio.run(starter.start(client, flow("a")))
    assert client.started == ["a", "a"]


def test_a_start_that_failed_is_tried_by_the_next() -> None:
    client, starter = Client(), Starter()
    client.broken = True
    with pytest.raises(OSError, match="nobody answers"):
        asyncio.run(starter.start(client, flow("a")))
    client.broken = False
    asyncio.run(starter.start(client, flow("a")))
    assert client.started == ["a"]


def test_what_was_started_long_ago_is_forgotten() -> None:
    now = [0.0]
    client, starter = Client(), Starter(30, lambda: now[0])
    for number in range(100):
        now[0] = number
        asyncio.run(starter.start(client, flow(str(number))))
    assert len(starter._started) <= 31
