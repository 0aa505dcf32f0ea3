"""Commands through Service Bus on the whole platform: sent and answered with Azure's own SDK, events with a listener."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus import ServiceBusClient, ServiceBusMessage, ServiceBusSubQueue

from dropforge.domain.causes import hops_of
from tests.contract.web import Web, web
from tests.e2e.machine import Platform, eventually, throws
from tests.e2e.test_platform import pipeline

# azure-servicebus leaves a socket unclosed when a connection cannot be made, and the host is killed here.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def listener() -> Iterator[Web]:
    with web() as made:
        yield made


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, listener: Web) -> Iterator[Platform]:
    state = tmp_path_factory.mktemp("commands") / "state"
    with Platform(state, DROPFORGE_EVENTS_WEBHOOK=listener.url, DROPFORGE_EVENTS_WEBHOOK_KEY="k") as running:
        eventually(lambda: running.connection.get("service_bus"), 20, running.log)
        yield running


class Desk:
    """Sends commands of one session and collects what is answered."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.answers: dict[str, list[dict[str, Any]]] = {}

    def _client(self) -> ServiceBusClient:
        return ServiceBusClient.from_connection_string(self._platform.connection["service_bus"])

    def send(self, *messages: ServiceBusMessage) -> None:
        with self._client() as client, client.get_queue_sender("commands") as sender:
            for message in messages:
                sender.send_messages(message)

    def answered(self, *ids: str) -> dict[str, Any]:
        """The one answer to each of these commands; it may be told more than once, and then it is the same."""
        eventually(lambda: self._collect(set(ids)), 60, self._platform.log)
        assert all(told == self.answers[id_][0] for id_ in ids for told in self.answers[id_]), self.answers
        return {id_: self.answers[id_][0] for id_ in ids}

    def _collect(self, wanted: set[str]) -> bool:
        # Locked first: of those that are deleted when they are sent, what is under way to a receiver that closes is lost.
        with self._client() as client, client.get_queue_receiver("replies") as receiver:
            for message in receiver.receive_messages(1000, max_wait_time=1):
                told = json.loads(str(message)) | {"correlation": message.correlation_id}
                self.answers.setdefault(told["id"], []).append(told)
                receiver.complete_message(message)
        return wanted <= self.answers.keys()

    def dead_letters(self) -> list[tuple[str, str, str, int]]:
        """Id, reason, description and delivery count of every command that was put aside."""
        dead = ServiceBusSubQueue.DEAD_LETTER
        with self._client() as client, client.get_queue_receiver("commands", sub_queue=dead) as receiver:
            return [
                (
                    str(each.message_id),
                    str(each.dead_letter_reason),
                    str(each.dead_letter_error_description),
                    int(each.delivery_count or 0),
                )
                for each in receiver.peek_messages(100)
            ]


@pytest.fixture
def desk(platform: Platform) -> Desk:
    return Desk(platform)


def message(id_: str, body: object, session: str) -> ServiceBusMessage:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ServiceBusMessage(
        raw, message_id=id_, session_id=session, reply_to="replies", reply_to_session_id=None, correlation_id=f"c-{id_}"
    )


def command(id_: str, kind: str, name: str, **arguments: object) -> ServiceBusMessage:
    return message(id_, {"command": kind, "pipeline": name, "arguments": arguments, "by": "anna"}, name)


def test_commands_of_a_session_are_carried_out_in_order_and_answered(
    platform: Platform, desk: Desk, listener: Web, tmp_path: Path
) -> None:
    platform.client.apply("bus", pipeline(tmp_path, "bus"))
    for number, start in enumerate((0, 7)):
        platform.drop("bus/", throws(tmp_path, start, days=2 if number else 14))
        platform.settled("bus", number + 1)
    desk.send(
        command("pause-1", "pause", "bus", reason="a look"),
        command("promote-2", "promote", "bus", version=2),
        command("resume-1", "resume", "bus"),
    )
    told = desk.answered("pause-1", "promote-2", "resume-1")
    assert told["pause-1"]["result"]["paused"]["by"] == "service bus: anna"
    assert told["promote-2"]["result"]["version"] == 2
    assert {each["state"] for each in told.values()} == {"done"}
    assert told["promote-2"]["correlation"] == "c-promote-2"
    eventually(lambda: platform.status("bus")["champion"] == 2, 20, platform.log)
    desk.send(command("rollback-1", "rollback", "bus"))
    assert desk.answered("rollback-1")["rollback-1"]["result"]["version"] == 1
    eventually(lambda: platform.status("bus")["champion"] == 1, 20, platform.log)

    def rolled_back() -> list[dict[str, Any]]:
        return [event for event in heard(listener) if event["type"] == "dropforge.ModelRolledBack"]

    (event,) = eventually(rolled_back, 20, platform.log)
    assert (event["causationid"], event["correlationid"]) == ("rollback-1", "c-rollback-1")
    assert event["hops"] == hops_of(event["id"]) == 1
    assert (event["data"]["version"], event["data"]["rolled_back"]) == (1, 2)
    journal = (platform.state / "journal" / "events.jsonl").read_text().splitlines()
    assert event in [json.loads(line) for line in journal]


def heard(listener: Web) -> list[dict[str, Any]]:
    """Every event that was told, once: a sweep beside the step that flushes tells the same one again."""
    requests = list(listener.requests)
    assert all(request.headers["authorization"] == "Bearer k" for request in requests)
    events = [request.json() for request in requests]
    found = {event["id"]: event for event in events}
    assert all(event == found[event["id"]] for event in events)
    return [*found.values()]


BAD: dict[str, tuple[object, str]] = {
    "bad-1": (b"\xff not json", "the command is not JSON"),
    "bad-2": ({"command": "explode", "pipeline": "bus"}, '`command` is "explode"; choose one of train,'),
    "bad-3": ({"command": "promote", "pipeline": "bus"}, "`promote` needs `arguments.version`"),
    "bad-4": ({"command": "train", "pipeline": "bus", "hops": -1}, "`hops` is -1"),
}


def test_a_command_that_cannot_be_understood_is_dead_lettered_at_once_with_what_was_wrong(
    platform: Platform, desk: Desk
) -> None:
    desk.send(*(message(id_, body, "bad") for id_, (body, _) in BAD.items()))
    told = desk.answered(*BAD)
    put_aside = eventually(lambda: found if len(found := desk.dead_letters()) == len(BAD) else None, 20, platform.log)
    for id_, reason, description, deliveries in put_aside:
        said = BAD[id_][1]
        assert (told[id_]["state"], told[id_]["error"]["type"]) == ("rejected", "BadCommand")
        assert told[id_]["error"]["detail"].startswith(said)
        assert (reason, deliveries) in (("BadCommand", 0), ("BadCommand", 1))
        assert said in description


def test_what_is_understood_and_not_possible_is_an_answer_and_no_dead_letter(desk: Desk) -> None:
    desk.send(
        message("nobody-1", {"command": "train", "pipeline": "nobody"}, "x"),
        message("loop-1", {"command": "reconcile", "pipeline": "nobody", "causationId": "e.99"}, "y"),
    )
    told = desk.answered("nobody-1", "loop-1")
    assert {each["state"] for each in told.values()} == {"refused"}
    assert told["nobody-1"]["error"]["type"] == "NotFound"
    assert not {"nobody-1", "loop-1"} & {each[0] for each in desk.dead_letters()}


def test_a_kill_in_the_middle_leaves_every_command_with_one_answer(
    platform: Platform, desk: Desk, tmp_path: Path
) -> None:
    platform.client.apply("killed", pipeline(tmp_path, "killed"))
    ids = [f"k{number}" for number in range(30)]
    kinds = ("pause", "resume", "reconcile")
    desk.send(*(command(id_, kinds[number % 3], "killed") for number, id_ in enumerate(ids)))
    for _ in range(2):
        platform.kill()
        platform.start()
        platform.ready()
    told = desk.answered(*ids)
    assert {each["state"] for each in told.values()} == {"done"}
    assert platform.status("killed")["control"]["paused"] is None
