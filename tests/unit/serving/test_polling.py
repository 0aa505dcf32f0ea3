"""Looking for the next request before sleeping: while it pays, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from dropforge.serving import polling
from dropforge.serving.polling import MOST_SKIPPED, SECONDS, Polling, default_seconds


class Loop:
    """Calls back when told to."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], Any]] = []

    def call_soon(self, call: Callable[[], Any]) -> None:
        self.calls.append(call)

    def turn(self) -> bool:
        """One turn; whether there will be another at once."""
        calls, self.calls = self.calls, []
        for call in calls:
            call()
        return bool(self.calls)


class Rig:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0002) -> None:
        self.now, self.may = 100.0, True
        monkeypatch.setattr(polling.time, "perf_counter", lambda: self.now)
        self.loop = Loop()
        self.polling = Polling(self.loop, seconds, lambda: self.may)  # type: ignore[arg-type]

    def missed(self) -> bool:
        """An answer that is followed by nothing; whether it was looked for more."""
        self.polling.rest()
        looked = bool(self.loop.calls)
        self.now += 0.0003
        assert not self.loop.turn()
        return looked


def test_it_looks_for_so_long_after_each_answer_and_then_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    for _ in range(50):
        # Each comes while the last look is under way.
        rig.polling.rest()
        rig.now += 0.00015
        assert rig.loop.turn()
        assert len(rig.loop.calls) == 1
    rig.now += 0.0001
    assert not rig.loop.turn()


def test_looks_that_find_nothing_become_rare_and_one_that_finds_something_is_worth_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch)
    looks = [rig.missed() for _ in range(1000)]
    gaps = [place for place, looked in enumerate(looks) if looked]
    assert [b - a - 1 for a, b in pairwise(gaps)][:6] == [1, 3, 7, 15, 31, 31]
    assert sum(looks) < 1000 / MOST_SKIPPED + 6
    while not rig.loop.calls:
        rig.polling.rest()
    rig.polling.rest()
    rig.now += 0.0003
    assert not rig.loop.turn()
    assert [rig.missed() for _ in range(3)] == [False, True, False]


def test_it_does_not_look_while_something_else_wants_the_processor_nor_without_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch)
    rig.may = False
    assert not rig.missed()
    rig.may = True
    rig.polling.rest()
    assert rig.loop.turn()
    rig.may = False
    assert not rig.loop.turn()
    assert not Rig(monkeypatch, seconds=0.0).missed()


def test_a_loop_that_looks_answers_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        turns, loop = 0, asyncio.get_running_loop()
        look = Polling(loop, 0.01, lambda: True)
        look.rest()

        def turn() -> None:
            nonlocal turns
            turns += 1
            if look._looks:
                loop.call_soon(turn)

        loop.call_soon(turn)
        await asyncio.sleep(0.05)
        assert not look._looks and turns > 1

    asyncio.run(scenario())


def test_the_default_leaves_the_processor_to_who_else_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(polling, "quota", lambda: None)
    assert default_seconds(shares_port=False) == SECONDS
    assert default_seconds(shares_port=True) == 0.0
    monkeypatch.setattr(polling, "quota", lambda: 1.5)
    assert default_seconds(shares_port=False) == 0.0
    monkeypatch.setattr(polling, "quota", lambda: None)
    monkeypatch.setattr(polling.os, "cpu_count", lambda: 1)
    assert default_seconds(shares_port=False) == 0.0
