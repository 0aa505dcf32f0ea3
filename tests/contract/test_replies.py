"""What every place that answers go to promises; and Azure's SDK on the local Service Bus in particular."""

from __future__ import annotations

import gc
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus import ServiceBusClient

from dropforge.adapters.memory.replies import MemoryReplies
from dropforge.adapters.service_bus import ServiceBusReplies
from dropforge.domain.errors import NotFound, Refused, Unavailable
from dropforge.domain.events import Reply
from dropforge.ports import Replies
from tests.contract.samples import NOW
from tests.e2e.hosting import Bus, running_bus

# azure-servicebus leaves a socket unclosed when a connection cannot be made.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PLAIN = [f"answers-{number}" for number in range(5)]
SESSIONS = "answers-with-sessions"
BODY = {"state": "done", "result": {"ü": [None, 1.5]}, "error": None}


@dataclass
class ReplyBench:
    """Where replies go, and what was heard on a queue: id, correlation, session and body of each."""

    replies: Replies
    heard: Callable[[str], list[tuple[str, str | None, str | None, Any]]]


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    folder = tmp_path_factory.mktemp("bus")
    unique: dict[str, Any] = {"RequiresDuplicateDetection": True}
    queues = [{"Name": name, "Properties": unique} for name in PLAIN]
    queues.append({"Name": SESSIONS, "Properties": unique | {"RequiresSession": True}})
    config = folder / "config.json"
    config.write_text(json.dumps({"UserConfig": {"Namespaces": [{"Name": "n", "Queues": queues}]}}))
    with running_bus(config, folder / "state") as running:
        yield running


def _memory() -> ReplyBench:
    replies = MemoryReplies(frozenset({*PLAIN, SESSIONS}))

    def heard(queue: str) -> list[tuple[str, str | None, str | None, Any]]:
        found = [each for each in replies.sent if each.queue == queue]
        return [(each.id, each.correlation_id, each.session_id, each.body) for each in found]

    return ReplyBench(replies, heard)


def heard_on(bus: Bus, queue: str) -> list[tuple[str, str | None, str | None, Any]]:
    """Takes everything off the queue."""
    where: dict[str, Any] = {"session_id": "anna"} if queue == SESSIONS else {}
    with (
        ServiceBusClient.from_connection_string(bus.connection) as client,
        client.get_queue_receiver(queue, receive_mode="receiveanddelete", **where) as receiver,
    ):
        found = []
        while page := receiver.receive_messages(100, max_wait_time=0.5):
            found += [
                (str(each.message_id), each.correlation_id, each.session_id, json.loads(str(each))) for each in page
            ]
        return found


@pytest.fixture(params=["memory", "service_bus"])
def answers(request: pytest.FixtureRequest) -> Iterator[ReplyBench]:
    if request.param == "memory":
        yield _memory()
        return
    bus: Bus = request.getfixturevalue("bus")
    with closing(ServiceBusReplies(bus.connection)) as replies:
        yield ReplyBench(replies, lambda queue: heard_on(bus, queue))


def reply(id_: str, queue: str = PLAIN[0], session: str | None = None) -> Reply:
    return Reply(id_, queue, NOW, BODY, "ticket-4711", session)


# ------------------------------------------------------------------------------------------------ the promise
def test_an_answer_arrives_as_it_was_sent(answers: ReplyBench) -> None:
    answers.replies.send(reply("whole"))
    assert answers.heard(PLAIN[0]) == [("whole", "ticket-4711", None, BODY)]


def test_answers_arrive_in_order_and_a_second_one_is_dropped(answers: ReplyBench) -> None:
    for id_ in ("one", "two", "one", "three"):
        answers.replies.send(reply(id_, PLAIN[1]))
    assert [each[0] for each in answers.heard(PLAIN[1])] == ["one", "two", "three"]


def test_an_answer_goes_into_the_session_that_asked(answers: ReplyBench) -> None:
    answers.replies.send(reply("in-session", SESSIONS, "anna"))
    assert answers.heard(SESSIONS) == [("in-session", "ticket-4711", "anna", BODY)]


def test_a_queue_that_does_not_exist_is_not_found_and_others_go_on(answers: ReplyBench) -> None:
    for _ in range(2):
        with pytest.raises(NotFound, match="no queue 'nowhere'"):
            answers.replies.send(reply("lost", "nowhere"))
    answers.replies.send(reply("found", PLAIN[2]))
    assert [each[0] for each in answers.heard(PLAIN[2])] == ["found"]


def test_answers_of_many_threads_all_arrive(answers: ReplyBench) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: answers.replies.send(reply(f"r{number}", PLAIN[3])), range(60)))
    assert sorted(each[0] for each in answers.heard(PLAIN[3])) == sorted(f"r{number}" for number in range(60))


# ------------------------------------------------------------------------------------------------ Azure's SDK
def test_more_queues_than_connections_are_all_answered(bus: Bus) -> None:
    with closing(ServiceBusReplies(bus.connection, max_senders=1)) as replies:
        for queue in (PLAIN[0], PLAIN[4], PLAIN[0]):
            replies.send(reply(f"all-{queue}", queue))
    assert [each[0] for each in heard_on(bus, PLAIN[4])] == [f"all-{PLAIN[4]}"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (reply("no-session", SESSIONS), "will not take|cannot take"),
        (reply("x" * 200), "cannot take|will not take"),
        (Reply("huge", PLAIN[0], NOW, {"x": "y" * 300_000}), "cannot take|will not take"),
    ],
)
def test_what_service_bus_will_never_take_is_refused(bus: Bus, bad: Reply, said: str) -> None:
    with closing(ServiceBusReplies(bus.connection)) as replies:
        with pytest.raises(Refused, match=said):
            replies.send(bad)
        replies.send(reply("after-it", PLAIN[4]))


def test_nobody_there_is_unavailable_and_not_asked_again_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        connection = f"Endpoint=sb://{place};SharedAccessKeyName=a;SharedAccessKey=b;UseDevelopmentEmulator=true;"
        with closing(ServiceBusReplies(connection)) as replies:
            with pytest.raises(Unavailable, match="does not take the reply"):
                replies.send(reply("r1"))
            with pytest.raises(Unavailable, match="asked again in"):
                replies.send(reply("r1"))


def test_a_wrong_key_is_unavailable_until_it_is_mended(bus: Bus) -> None:
    with (
        closing(ServiceBusReplies(bus.connection.replace(bus.KEY, "another"))) as replies,
        pytest.raises(Unavailable) as found,
    ):
        replies.send(reply("r1"))
    assert "another" not in found.value.message


def test_a_service_bus_that_comes_back_is_answered_on(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"UserConfig": {"Namespaces": [{"Name": "n", "Queues": [{"Name": "answers-0"}]}]}}))
    with running_bus(config, tmp_path / "state") as bus, closing(ServiceBusReplies(bus.connection)) as replies:
        replies.send(reply("before"))
        bus.kill()
        with pytest.raises(Unavailable):
            replies.send(reply("after"))
        gc.collect()  # the socket that the SDK left, while nobody minds
        bus.start()
        replies._patience._answered()  # rather than to wait for it
        replies.send(reply("after"))
        assert [each[0] for each in heard_on(bus, PLAIN[0])] == ["before", "after"]


@pytest.mark.parametrize("connection", ["nonsense", "Endpoint=sb://x", "SharedAccessKey=hidden"])
def test_a_setting_that_is_no_connection_string_is_said_so_without_showing_it(connection: str) -> None:
    with pytest.raises(Unavailable, match="SERVICE_BUS is not a Service Bus connection string") as found:
        ServiceBusReplies(connection).send(reply("r1"))
    assert "hidden" not in str(found.value)


def test_without_a_service_bus_the_setting_is_named_and_the_sdk_not_loaded() -> None:
    with pytest.raises(Refused, match="set SERVICE_BUS"):
        ServiceBusReplies().send(reply("r1"))


def test_making_the_adapter_loads_nothing() -> None:
    code = "import sys, dropforge.adapters.service_bus as s; s.ServiceBusReplies('x'); "
    code += "sys.exit(any(name.startswith('azure') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
