"""Starting a flow that may live already, or may be ending just now."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from functions.starting import start

FLOW = {"flow": "intake", "id": "intake-demo-1", "input": {}, "signal": "full"}


class Client:
    """As much of the SDK's client as `start` uses: answers each call with the next of what the test lists."""

    def __init__(self, *answers: str | None) -> None:
        self._answers = list(answers)
        self.calls: list[str] = []

    async def start_new(self, flow: str, id_: str, value: Any) -> None:
        self._answer("start")

    async def raise_event(self, id_: str, name: str, value: Any) -> None:
        self._answer("raise")

    def _answer(self, call: str) -> None:
        self.calls.append(call)
        answer = self._answers.pop(0)
        if answer is not None:
            raise Exception(answer)


ALIVE = "An Orchestration instance with the status Running already exists."
OVER = "Instance with ID intake-demo-1 is gone: either completed or failed"


@pytest.mark.parametrize(
    ("answers", "calls"),
    [
        ((None,), ["start"]),
        ((ALIVE, None), ["start", "raise"]),
        ((ALIVE, OVER, None), ["start", "raise", "start"]),
        ((ALIVE, OVER, ALIVE, None), ["start", "raise", "start", "raise"]),
    ],
)
def test_the_flow_lives_and_has_heard_whatever_it_did_meanwhile(
    answers: tuple[str | None, ...], calls: list[str]
) -> None:
    client = Client(*answers)
    assert asyncio.run(start(client, FLOW))
    assert client.calls == calls


def test_a_flow_that_lives_needs_no_signal_when_none_is_asked_for() -> None:
    client = Client(ALIVE)
    assert asyncio.run(start(client, {**FLOW, "signal": None}))
    assert client.calls == ["start"]


def test_any_other_refusal_is_the_callers() -> None:
    with pytest.raises(Exception, match="no such function"):
        asyncio.run(start(Client("no such function"), FLOW))
    with pytest.raises(Exception, match="out of disk"):
        asyncio.run(start(Client(ALIVE, "out of disk"), FLOW))


def test_nothing_to_start_is_said_so() -> None:
    assert not asyncio.run(start(Client(), None))
