"""Delivery: at least once, to each subscriber, across restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from dropforge.host.announcer import Announcer, Delivered, Event


class Subscribers:
    """Take what they are sent, or refuse as often as told."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.taken: list[tuple[str, str]] = []
        self.attempts: list[int] = []

    async def post(self, subscriber: str, event: Event, attempt: int) -> bool:
        self.attempts.append(attempt)
        await asyncio.sleep(0)
        if self.refusals:
            self.refusals -= 1
            return False
        self.taken.append((subscriber, event["id"]))
        return True


def event(name: str) -> Event:
    return {"id": name, "eventType": "Test", "subject": name}


async def settled(announcer: Announcer) -> None:
    async with asyncio.timeout(5):
        while announcer._pursuits:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_every_subscriber_gets_an_event_once(tmp_path: Path) -> None:
    async def work() -> None:
        subscribers = Subscribers()
        announcer = Announcer(["a", "b"], Delivered(tmp_path / "db"), subscribers.post)
        announcer.offer("k", "1", event("e1"))
        announcer.offer("k", "1", event("e1"))
        await settled(announcer)
        announcer.offer("k", "1", event("e1"))
        await settled(announcer)
        assert sorted(subscribers.taken) == [("a", "e1"), ("b", "e1")]
        assert announcer.is_delivered("k", "1")
        assert not announcer.is_delivered("k", "2")
        await announcer.close()

    run(work())


def test_what_was_delivered_is_not_delivered_again_after_a_restart(tmp_path: Path) -> None:
    async def work() -> None:
        first = Subscribers()
        announcer = Announcer(["a"], Delivered(tmp_path / "db"), first.post)
        announcer.offer("k", "1", event("e1"))
        await settled(announcer)
        await announcer.close()

        second = Subscribers()
        announcer = Announcer(["a", "new"], Delivered(tmp_path / "db"), second.post)
        assert announcer.known() == {"k"}
        announcer.offer("k", "1", event("e1"))
        announcer.offer("k2", "1", event("e2"))
        await settled(announcer)
        assert sorted(second.taken) == [("a", "e2"), ("new", "e1"), ("new", "e2")]
        await announcer.close()

    run(work())


def test_a_refused_event_is_tried_again_until_it_is_taken(tmp_path: Path) -> None:
    async def work() -> None:
        subscribers = Subscribers(refusals=3)
        announcer = Announcer(["a"], Delivered(tmp_path / "db"), subscribers.post, retry_seconds=(0.0, 0.01))
        announcer.offer("k", "1", event("e1"))
        await settled(announcer)
        assert subscribers.taken == [("a", "e1")]
        assert subscribers.attempts == [0, 1, 2, 3]
        await announcer.close()

    run(work())


def test_a_delivery_that_breaks_is_made_again(tmp_path: Path) -> None:
    async def work() -> None:
        subscribers = Subscribers()
        broken = [OSError("no space left")]

        async def post(subscriber: str, told: Event, attempt: int) -> bool:
            if broken:
                raise broken.pop()
            return await subscribers.post(subscriber, told, attempt)

        announcer = Announcer(["a"], Delivered(tmp_path / "db"), post, retry_seconds=(0.0,))
        announcer.offer("k", "1", event("e1"))
        await settled(announcer)
        assert subscribers.taken == [("a", "e1")]
        await announcer.close()

    run(work())


def test_what_was_not_taken_before_a_stop_is_not_forgotten(tmp_path: Path) -> None:
    async def work() -> None:
        announcer = Announcer(["a"], Delivered(tmp_path / "db"), Subscribers(refusals=99).post, retry_seconds=(60,))
        announcer.offer("k", "1", event("e1"))
        await asyncio.sleep(0.02)
        await announcer.close()
        delivered = Delivered(tmp_path / "db")
        assert delivered.mark("a", "k") is None
        delivered.close()

    run(work())


def test_a_newer_mark_replaces_one_that_waits_and_goes_out_at_once(tmp_path: Path) -> None:
    async def work() -> None:
        subscribers = Subscribers(refusals=1)
        announcer = Announcer(["a"], Delivered(tmp_path / "db"), subscribers.post, retry_seconds=(60,))
        announcer.offer("k", "1", event("e1"))
        await asyncio.sleep(0.02)
        announcer.offer("k", "2", event("e2"))
        await settled(announcer)
        assert subscribers.taken == [("a", "e2")]
        await announcer.close()

    run(work())


def test_a_mark_that_changes_during_a_delivery_is_delivered_after_it(tmp_path: Path) -> None:
    async def work() -> None:
        taken: list[str] = []
        gate = asyncio.Event()

        async def slow(subscriber: str, told: Event, attempt: int) -> bool:
            await gate.wait()
            taken.append(told["id"])
            return True

        announcer = Announcer(["a"], Delivered(tmp_path / "db"), slow)
        announcer.offer("k", "1", event("e1"))
        await asyncio.sleep(0.01)
        announcer.offer("k", None, event("gone"))
        gate.set()
        await settled(announcer)
        assert taken == ["e1", "gone"]
        assert announcer.known() == set()
        await announcer.close()

    run(work())


def test_only_those_who_heard_of_a_key_hear_that_it_is_gone(tmp_path: Path) -> None:
    async def work() -> None:
        subscribers = Subscribers()
        delivered = Delivered(tmp_path / "db")
        delivered.remember("a", "k", "1")
        announcer = Announcer(["a", "b"], delivered, subscribers.post)
        announcer.offer("k", None, event("gone"))
        await settled(announcer)
        assert subscribers.taken == [("a", "gone")]
        await announcer.close()

    run(work())


def test_closing_waits_for_the_answer_that_is_on_its_way(tmp_path: Path) -> None:
    async def work() -> None:
        async def slow(subscriber: str, told: Event, attempt: int) -> bool:
            await asyncio.sleep(0.1)
            return True

        announcer = Announcer(["a"], Delivered(tmp_path / "db"), slow)
        announcer.offer("k", "1", event("e1"))
        await asyncio.sleep(0.02)
        await announcer.close()
        delivered = Delivered(tmp_path / "db")
        assert delivered.mark("a", "k") == "1"
        delivered.close()

    run(work())


def test_many_events_go_out_a_few_at_a_time(tmp_path: Path) -> None:
    async def work() -> None:
        busy, most = 0, 0

        async def count(subscriber: str, told: Event, attempt: int) -> bool:
            nonlocal busy, most
            busy += 1
            most = max(most, busy)
            await asyncio.sleep(0.001)
            busy -= 1
            return True

        announcer = Announcer(["a"], Delivered(tmp_path / "db"), count)
        for number in range(100):
            announcer.offer(str(number), "1", event(str(number)))
        await settled(announcer)
        assert 1 < most <= 8
        assert len(announcer.known()) == 100
        await announcer.close()

    run(work())
