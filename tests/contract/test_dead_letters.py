"""`scripts/dead_letters.py` on the local Service Bus, with the queues of servicebus.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from azure.servicebus import ServiceBusClient, ServiceBusMessage, ServiceBusSubQueue

from scripts import dead_letters
from tests.e2e.hosting import Bus, running_bus

SERVICEBUS = Path(__file__).parents[2] / "servicebus.json"
# Of each kind one for a test: what one leaves is not another's.
EVENTS = [f"events-{number}" for number in range(5)]


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    folder = tmp_path_factory.mktemp("bus")
    queues = json.loads(SERVICEBUS.read_text())["UserConfig"]["Namespaces"][0]["Queues"]
    kinds = {queue["Name"]: queue["Properties"] for queue in queues}
    # As after its window of ten minutes, for which no test waits.
    commands = {**kinds["commands"], "RequiresDuplicateDetection": False}
    made = [{"Name": "commands", "Properties": commands}]
    made += [{"Name": name, "Properties": kinds["events"]} for name in EVENTS]
    config = folder / "config.json"
    config.write_text(json.dumps({"UserConfig": {"Namespaces": [{"Name": "n", "Queues": made}]}}))
    with running_bus(config, folder / "state") as running:
        yield running


@pytest.fixture
def client(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceBusClient]:
    monkeypatch.setenv("SERVICE_BUS", bus.connection)
    with ServiceBusClient.from_connection_string(bus.connection) as client:
        yield client


def bury(client: ServiceBusClient, queue: str, *ids: str) -> None:
    """Messages that were refused."""
    session = "flights" if queue == "commands" else None
    with client.get_queue_sender(queue) as sender:
        for id_ in ids:
            told = {"hops": 2}
            sender.send_messages(
                ServiceBusMessage(f"about {id_}", message_id=id_, session_id=session, application_properties=told)
            )
    take(client, queue, len(ids), dead=True)


def take(
    client: ServiceBusClient, queue: str, count: int, dead: bool = False
) -> list[tuple[str, str, dict[bytes, int]]]:
    where = {"session_id": "flights"} if queue == "commands" else {}
    found: list[tuple[str, str, dict[bytes, int]]] = []
    with client.get_queue_receiver(queue, **where) as receiver:
        while len(found) < count:
            for each in receiver.receive_messages(count, max_wait_time=3):
                found.append((str(each.message_id), str(each), dict(each.application_properties or {})))
                if dead:
                    receiver.dead_letter_message(each, reason="TooHard", error_description="not today")
                else:
                    receiver.complete_message(each)
    return found


def numbers(client: ServiceBusClient, queue: str) -> dict[str, int]:
    with client.get_queue_receiver(queue, sub_queue=ServiceBusSubQueue.DEAD_LETTER) as dead:
        return {str(each.message_id): each.sequence_number or 0 for each in dead_letters.letters(dead)}


def test_dead_letters_are_shown_and_stay(client: ServiceBusClient, capsys: pytest.CaptureFixture[str]) -> None:
    bury(client, EVENTS[0], "shown")
    for _ in range(2):
        assert dead_letters.main(["show", EVENTS[0]]) == 0
        said = capsys.readouterr().out
        assert "id shown" in said and "not today" in said and "about shown" in said


def test_chosen_events_are_sent_again_whole_and_the_others_stay(client: ServiceBusClient) -> None:
    bury(client, EVENTS[1], "first", "second", "third")
    number = numbers(client, EVENTS[1])["second"]
    assert dead_letters.main(["again", EVENTS[1], str(number)]) == 0
    ((id_, body, properties),) = take(client, EVENTS[1], 1)
    # The queue would have dropped it with the id that it had.
    assert (id_ == "second", body, properties) == (False, "about second", {b"hops": 2})
    assert set(numbers(client, EVENTS[1])) == {"first", "third"}


def test_what_fails_again_is_sent_once(client: ServiceBusClient) -> None:
    bury(client, EVENTS[2], "hopeless")
    assert dead_letters.main(["again", EVENTS[2], "all"]) == 0
    take(client, EVENTS[2], 1, dead=True)
    assert len(numbers(client, EVENTS[2])) == 1


def test_dropped_letters_are_gone(client: ServiceBusClient) -> None:
    bury(client, EVENTS[3], "one", "two")
    assert dead_letters.main(["drop", EVENTS[3], "all"]) == 0
    assert numbers(client, EVENTS[3]) == {}


def test_letters_that_somebody_else_holds_are_left_to_him(
    client: ServiceBusClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dead_letters, "WAIT_SECONDS", 0.5)
    bury(client, EVENTS[4], "held", "free")
    number = numbers(client, EVENTS[4])
    with client.get_queue_receiver(EVENTS[4], sub_queue=ServiceBusSubQueue.DEAD_LETTER) as other:
        (held,) = other.receive_messages(1, max_wait_time=3)
        assert dead_letters.main(["drop", EVENTS[4], "all"]) == 1
        assert held.message_id == "held"
    said = capsys.readouterr()
    assert said.out == f"dropped: {number['free']}\n"
    assert f"not reached: {number['held']}; " in said.err


def test_a_queue_that_is_not_there_is_told_of_in_one_line(
    client: ServiceBusClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dead_letters.main(["show", "nosuch"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("dead_letters: the queue 'nosuch' cannot be asked: ")
    assert "name a queue of the namespace" in said
    assert said.count("\n") == 1


def test_a_command_goes_back_as_it_was_once_the_queue_takes_its_id_again(
    client: ServiceBusClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bury(client, "commands", "promote-3")
    assert dead_letters.main(["again", "commands", "all"]) == 1
    assert "as a repetition; try again at" in capsys.readouterr().err
    assert set(numbers(client, "commands")) == {"promote-3"}

    monkeypatch.setattr(dead_letters, "WINDOW", timedelta(0))
    assert dead_letters.main(["again", "commands", "all"]) == 0
    # From its session.
    assert take(client, "commands", 1) == [("promote-3", "about promote-3", {b"hops": 2})]
