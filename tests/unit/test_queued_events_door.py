"""The door for events that Event Grid puts into a queue: the same work as by its own door, and what is done with nonsense."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import azure.functions as func
import pytest
from azure.functions.servicebus import ServiceBusMessage

from dropforge.domain.errors import BadEvent, Unavailable
from dropforge.steps import books
from functions import datasets, runs
from functions import queued_events as door
from functions.starting import Starter
from tests.e2e.hosting import PAYLOADS
from tests.unit.flows.world import World
from tests.unit.test_commands_door import Client

CREATED = ["eventgrid.blob_created.putblocklist.json", "cloudevents.blob_created.putblocklist.json"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    for module in (door, datasets, runs):
        monkeypatch.setattr(module, "ports", lambda: made.ports)
    monkeypatch.setattr(datasets, "settings", lambda: made.settings)
    # It remembers what this process has started, and each test is a process of its own.
    monkeypatch.setattr(datasets, "_starter", Starter())
    return made


def deliver(world: World, body: object, message_id: str = "m1") -> None:
    given: dict[str, Any] = {
        "body": body if isinstance(body, bytes) else json.dumps(body).encode(),
        "message_id": message_id,
        "application_properties": {"aeg-event-type": "Notification", "aeg-delivery-count": 0},
        "user_properties": {},
        "sequence_number": 7,
        "enqueued_time_utc": datetime(2026, 1, 5, tzinfo=UTC),
    }
    message: func.ServiceBusMessage = ServiceBusMessage(**given)
    function = inspect.unwrap(door.on_queued_event._function.get_user_function())
    asyncio.run(function(message, Client(world)))


def sample(name: str, **changes: Any) -> dict[str, Any]:
    """An event as Microsoft's page prints it, with other data."""
    found: dict[str, Any] = json.loads((PAYLOADS / name).read_text())[0]
    return {**found, "data": {**found["data"], **changes}}


def arrivals(world: World) -> int:
    return len(list(books.every(world.ports.ledger, "p.demo", "arrival/")))


def put_blob(world: World, path: str) -> dict[str, Any]:
    """What Storage says of a file that lies there, untold so far."""
    drop = world.drops.write(path, b"x,y\n1,0\n2,1\n")
    return {"url": drop.url, "eTag": drop.etag, "contentLength": drop.size_bytes}


@pytest.mark.parametrize("name", CREATED)
def test_a_blob_event_from_the_queue_is_an_arrival_that_starts_its_intake(world: World, name: str) -> None:
    about = put_blob(world, "demo/a.csv")
    deliver(world, sample(name, **about))
    assert arrivals(world) == 1
    assert world.started == ["intake-demo-1"]


def test_an_event_in_both_schemas_twice_and_in_an_array_is_one_arrival(world: World) -> None:
    about = put_blob(world, "demo/a.csv")
    for name in CREATED:
        for body in (sample(name, **about), [sample(name, **about)] * 2):
            deliver(world, body)
    assert arrivals(world) == 1


@pytest.mark.parametrize("envelope", ["eventgrid", "cloudevents"])
@pytest.mark.parametrize("beside", [True, False])
def test_a_run_event_from_the_queue_wakes_the_flow_that_waits(world: World, envelope: str, beside: bool) -> None:
    world.trainer = None
    world.drop("demo/a.csv")
    world.run()
    told = sample(f"{envelope}.aml.run_status_changed.json", runId=world.head()["run"])
    del told["data"]["runStatus"]
    (told if beside else told["data"])["runStatus"] = "failed"
    heard: list[tuple[str, str]] = []

    class Ear(Client):
        async def raise_event(self, id_: str, name: str, value: Any) -> None:
            heard.append((id_, name))

    asyncio.run(runs.wake(told, Ear(world)))
    deliver(world, told)
    assert heard == [("train-demo-1", "run_ended")]


def test_a_run_that_nobody_waits_for_is_no_failure(world: World) -> None:
    for path in sorted(PAYLOADS.glob("*.aml.*.json")):
        deliver(world, json.loads(path.read_text()))
    assert list(books.every(world.ports.ledger, books.COMMANDS, "rejected/")) == []


@pytest.mark.parametrize("told", [{"eventType": "Contoso.Made", "id": "1"}, {"specversion": "1.0", "type": "x"}])
def test_a_type_that_nobody_has_use_for_is_ignored_with_a_line(
    world: World, caplog: pytest.LogCaptureFixture, told: dict[str, Any]
) -> None:
    with caplog.at_level(logging.INFO):
        deliver(world, told)
    assert "is ignored: nobody here has use for it" in caplog.text


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (3, "an event is an object, found int"),
        ([{"eventType": "Contoso.Made"}, None], "an event is an object, found NoneType"),
        ({"id": "1"}, "needs 'eventType' as text"),
        ({"specversion": "1.0", "eventType": "x"}, "needs 'type' as text"),
        ({"eventType": "Microsoft.MachineLearningServices.RunCompleted", "data": []}, "has no data object, found list"),
    ],
)
def test_nonsense_is_written_down_once_and_raised_for_the_dead_letters(world: World, body: object, said: str) -> None:
    for _ in range(2):
        with pytest.raises(BadEvent, match=said) as found:
            deliver(world, body)
    assert found.value.dead_letter_reason == "BadEvent"
    (kept,) = books.every(world.ports.ledger, books.COMMANDS, "rejected/")
    assert (kept.value["by"], kept.value["error"]["type"]) == ("event grid", "BadEvent")


@pytest.mark.parametrize("bad", [None, {"id": "1"}, {"eventType": "Microsoft.MachineLearningServices.RunCompleted"}])
def test_nonsense_in_an_array_keeps_nothing_back_that_is_behind_it(world: World, bad: object) -> None:
    about = put_blob(world, "demo/a.csv")
    with pytest.raises(BadEvent):
        deliver(world, [bad, sample(CREATED[0], **about), bad])
    assert arrivals(world) == 1


def test_a_storage_event_without_its_data_is_kept_with_the_other_misfits(world: World) -> None:
    deliver(world, sample(CREATED[0], url=7))
    assert len(list(books.every(world.ports.ledger, "storage", "misfit/"))) == 1


def test_a_ledger_that_does_not_answer_is_raised_for_the_message_to_come_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise Unavailable("the ledger does not answer")

    about = put_blob(world, "demo/a.csv")
    with monkeypatch.context() as patched:
        patched.setattr(world.ports.ledger, "commit", away)
        with pytest.raises(Unavailable):
            deliver(world, sample(CREATED[0], **about))
    deliver(world, sample(CREATED[0], **about))
    assert arrivals(world) == 1
