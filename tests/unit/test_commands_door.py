"""The Service Bus door: what a message becomes, what is done with it, and how it ends."""

from __future__ import annotations

import asyncio
import inspect
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import azure.functions as func
import pytest
from azure.functions.servicebus import ServiceBusMessage

from dropforge.domain.errors import BadCommand, Reused, Unavailable
from dropforge.steps import books, commands
from functions import commands as door
from tests.unit.flows.world import World


class Client:
    """As much of the durable client as the door uses, on a world's little host."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.error: str | None = None

    async def start_new(self, flow: str, id_: str, value: Any) -> None:
        self._world.start({"flow": flow, "id": id_, "input": value})

    async def raise_event(self, id_: str, name: str, value: Any) -> None:
        if self.error is not None:
            raise Exception(self.error)
        self._world.raise_event(id_, name)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    monkeypatch.setattr(door, "ports", lambda: made.ports)
    monkeypatch.setattr(door, "settings", lambda: made.settings)
    return made


def message(body: object, **more: Any) -> func.ServiceBusMessage:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    told: dict[str, Any] = {
        "message_id": "m1",
        "reply_to": "answers",
        "reply_to_session_id": "anna",
        "correlation_id": None,
        "application_properties": {},
        "user_properties": {},
        "sequence_number": 7,
        "enqueued_time_utc": datetime(2026, 1, 5, tzinfo=UTC),
    }
    return ServiceBusMessage(body=raw, **(told | more))


def deliver(world: World, given: func.ServiceBusMessage, client: Client | None = None) -> None:
    # The decorators leave a builder, and around the function one that makes the client.
    function = inspect.unwrap(door.on_command._function.get_user_function())
    asyncio.run(function(given, client or Client(world)))


ROLLBACK = {"command": "rollback", "pipeline": "demo"}


def test_a_command_is_carried_out_and_answered(world: World) -> None:
    for name in "ab":
        world.drop(f"demo/{name}.csv")
        world.run()
    deliver(world, message(ROLLBACK, correlation_id="t-1"))
    world.run()
    assert world.champion() == 1
    (reply,) = world.replies.sent
    assert (reply.queue, reply.session_id, reply.correlation_id) == ("answers", "anna", "t-1")
    # The deployment is published: the sweep that sees it has nothing left to start.
    assert commands.sweep(world.ports, world.settings, datetime.now(UTC) + timedelta(minutes=1)) == []
    assert list(books.every(world.ports.ledger, "p.demo", "todo/")) == []


def test_the_bodys_correlation_id_goes_before_the_messages(world: World) -> None:
    deliver(world, message(ROLLBACK | {"correlationId": "mine"}, correlation_id="t-1"))
    assert world.replies.sent[0].correlation_id == "mine"


def test_a_message_without_an_id_is_known_by_its_place_in_the_queue(world: World) -> None:
    deliver(world, message(ROLLBACK, message_id=""))
    deliver(world, message(ROLLBACK, message_id=""))
    deliver(world, message(ROLLBACK, message_id="", sequence_number=8))
    assert len(world.replies.sent) == 2


@pytest.mark.parametrize(
    "properties", [{"causationId": "ab12.99"}, {"hops": 99}, {"hops": "99"}, {"hops": 1, "causationId": "ab12.99"}]
)
def test_hops_come_in_application_properties_too(world: World, properties: dict[str, Any]) -> None:
    deliver(world, message(ROLLBACK, application_properties=properties))
    assert "99 hops" in world.replies.sent[0].body["error"]["detail"]


@pytest.mark.parametrize("properties", [{"causationId": 3}, {"causationId": None}, {"other": b"x"}, None])
def test_other_properties_say_nothing(world: World, properties: dict[str, Any] | None) -> None:
    deliver(world, message(ROLLBACK, application_properties=properties))
    assert "no earlier champion" in world.replies.sent[0].body["error"]["detail"]


@pytest.mark.parametrize(
    ("body", "properties"), [(b"no json", {}), ({"command": "fly"}, {}), (ROLLBACK, {"hops": "many"})]
)
def test_a_bad_command_is_written_down_answered_and_raised(
    world: World, body: object, properties: dict[str, Any]
) -> None:
    for _ in range(3):
        with pytest.raises(BadCommand) as found:
            deliver(world, message(body, application_properties=properties))
    assert found.value.dead_letter_reason == "BadCommand"
    (reply,) = world.replies.sent
    assert (reply.body["state"], reply.body["error"]["detail"]) == ("rejected", found.value.message)
    assert len(list(books.every(world.ports.ledger, books.COMMANDS, "rejected/"))) == 1


def test_an_id_used_for_another_command_is_a_bad_command(world: World) -> None:
    deliver(world, message(ROLLBACK))
    with pytest.raises(Reused):
        deliver(world, message({"command": "pause", "pipeline": "demo"}))
    assert [reply.body["state"] for reply in world.replies.sent] == ["refused", "rejected"]


def test_a_reply_that_cannot_be_sent_does_not_fail_the_command(world: World) -> None:
    world.replies.down = True
    deliver(world, message(ROLLBACK))
    world.replies.down = False
    deliver(world, message(ROLLBACK))
    assert len(world.replies.sent) == 1


def test_a_ledger_that_does_not_answer_is_raised_for_the_message_to_come_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise Unavailable("the ledger does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(world.ports.ledger, "commit", away)
        with pytest.raises(Unavailable):
            deliver(world, message(ROLLBACK))
    deliver(world, message(ROLLBACK))
    assert len(world.replies.sent) == 1


WOKEN = {
    "id": "m1",
    "pipeline": "demo",
    "state": "done",
    "start": [],
    "raise": [{"flow": "train-demo-1", "event": "answer-x"}],
}


@pytest.mark.parametrize(
    "error",
    [
        "Instance with ID train-demo-1 is gone: either completed or failed",
        "No instance with ID train-demo-1 found.",
    ],
)
def test_a_flow_that_is_over_needs_no_waking(world: World, error: str) -> None:
    client = Client(world)
    client.error = error
    asyncio.run(door.carry_out(client, WOKEN))


def test_a_flow_that_cannot_be_woken_just_now_is_woken_later(world: World) -> None:
    client = Client(world)
    client.error = "Webhook returned unrecognized status code 503"
    with pytest.raises(Exception, match="503"):
        asyncio.run(door.carry_out(client, WOKEN))


def test_a_message_that_came_while_the_flow_could_not_be_started_is_finished_when_it_comes_again(world: World) -> None:
    for name in "ab":
        world.drop(f"demo/{name}.csv")
        world.run()

    class Dead(Client):
        async def start_new(self, flow: str, id_: str, value: Any) -> None:
            raise ConnectionError("the host is going down")

    with pytest.raises(ConnectionError):
        deliver(world, message(ROLLBACK), Dead(world))
    assert commands.record(world.ports, "demo", "m1")["outcome"]["state"] == "done"
    deliver(world, message(ROLLBACK))
    world.run()
    assert world.champion() == 1
    assert len(world.replies.sent) == 1
