"""Service Bus triggers and outputs, with the real SDK on both sides of a real (local) Service Bus."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus import ServiceBusClient, ServiceBusMessage, ServiceBusSubQueue

from tests.e2e.hosting import APPS, Bus, HostHandle, eventually, running_bus, running_host
from tests.e2e.machine import Platform

APP = APPS / "buses"
CONFIG = APP / "servicebus.json"


class Client:
    """What the tests do on the bus themselves, with the sync SDK."""

    def __init__(self, connection: str) -> None:
        self._connection = connection

    def send(self, queue: str, *messages: ServiceBusMessage) -> None:
        with self._client() as client, client.get_queue_sender(queue) as sender:
            sender.send_messages(list(messages) if len(messages) > 1 else messages[0])

    def take(self, queue: str, count: int = 1, **about: Any) -> list[Any]:
        """So many messages, completed."""
        found: list[Any] = []
        with self._client() as client, client.get_queue_receiver(queue, **about) as receiver:
            while len(found) < count:
                received = receiver.receive_messages(count - len(found), max_wait_time=10)
                assert received, f"{len(found)} of {count} messages in {queue}"
                for message in received:
                    receiver.complete_message(message)
                found += received
        return found

    def dead(self, queue: str) -> Any:
        (message,) = self.take(queue, sub_queue=ServiceBusSubQueue.DEAD_LETTER)
        return message

    def is_empty(self, queue: str) -> bool:
        with self._client() as client, client.get_queue_receiver(queue) as receiver:
            return not receiver.peek_messages()

    @contextlib.contextmanager
    def _client(self) -> Iterator[ServiceBusClient]:
        with ServiceBusClient.from_connection_string(self._connection) as client:
            yield client


class Wire:
    """A way to the bus that can be cut."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._door = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self.port = self._door.getsockname()[1]

    def __enter__(self) -> Wire:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._door.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection there is; new ones work."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._door.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._ends += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError), source:
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


def order(**about: Any) -> ServiceBusMessage:
    return ServiceBusMessage(json.dumps(about), message_id=str(uuid.uuid4()))


def in_session(session: str, **about: Any) -> ServiceBusMessage:
    return ServiceBusMessage(json.dumps(about), session_id=session)


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    with running_bus(CONFIG, tmp_path_factory.mktemp("bus")) as bus:
        yield bus


@pytest.fixture(scope="module")
def host(bus: Bus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostHandle]:
    settings = {"BUS": bus.connection, "NOWHERE": "nowhere"}
    with running_host(APP, tmp_path_factory.mktemp("state"), settings) as host:
        yield host


@pytest.fixture
def client(bus: Bus) -> Client:
    return Client(bus.connection)


def logged(host: HostHandle, words: str) -> list[str]:
    return [line["message"] for line in host.logs() if words in line["message"]]


# ------------------------------------------------------------------ single messages
def test_a_function_gets_every_property_of_a_message(host: HostHandle, client: Client) -> None:
    client.send(
        "facts",
        ServiceBusMessage(
            '{"a": "é"}',
            message_id="facts-1",
            content_type="application/json",
            correlation_id="c",
            subject="train",
            reply_to="replies",
            reply_to_session_id="rs",
            to="somebody",
            session_id="s",
            partition_key="s",
            time_to_live=timedelta(minutes=5),
            application_properties={"text": "a", "number": 1, "flag": True},
        ),
    )
    (facts,) = eventually(lambda: host.saw("facts"))
    expected = {
        "body": '{"a": "é"}',
        "message_id": "facts-1",
        "delivery_count": 1,
        "content_type": "application/json",
        "correlation_id": "c",
        "subject": "train",
        "label": "train",
        "reply_to": "replies",
        "reply_to_session_id": "rs",
        "to": "somebody",
        "session_id": "s",
        "partition_key": "s",
        "time_to_live": "0:05:00",
        "state": 0,
        "dead_letter_source": None,
        "application_properties": {"text": "a", "number": 1, "flag": True},
        "user_properties": {"text": "a", "number": 1, "flag": True},
    }
    assert {name: facts[name] for name in expected} == expected
    assert facts["sequence_number"] == 1
    assert uuid.UUID(facts["lock_token"])
    assert facts["enqueued_time_utc"] < facts["locked_until"] < facts["expires_at_utc"]
    assert eventually(lambda: client.is_empty("facts"))


def test_a_binary_trigger_gets_the_bytes(host: HostHandle, client: Client) -> None:
    client.send("raw", ServiceBusMessage(b"\xff\x00\x01"))
    assert eventually(lambda: host.saw("raw"))[0]["body"] == "ff0001"


def test_a_message_that_fails_comes_again_until_the_queue_gives_it_up(host: HostHandle, client: Client) -> None:
    sent = order(fail=True)
    client.send("one", sent)
    dead = client.dead("one")
    assert (dead.message_id, dead.dead_letter_reason) == (sent.message_id, "MaxDeliveryCountExceeded")
    deliveries = [saw["delivery"] for saw in host.saw("one begins") if saw["id"] == sent.message_id]
    assert deliveries == [1, 2, 3]


def test_a_hopeless_message_is_dead_lettered_at_once_with_the_reason_of_the_exception(
    host: HostHandle, client: Client
) -> None:
    sent = order(hopeless="tarin")
    client.send("one", sent)
    dead = client.dead("one")
    assert (dead.message_id, dead.dead_letter_reason) == (sent.message_id, "NotUnderstood")
    assert dead.dead_letter_error_description == "nobody understands 'tarin'"
    assert len([saw for saw in host.saw("one begins") if saw["id"] == sent.message_id]) == 1


def test_slow_functions_run_beside_each_other_up_to_max_concurrent_calls(host: HostHandle, client: Client) -> None:
    client.send("one", *(order(crowd=True, seconds=0.3) for _ in range(24)))
    eventually(lambda: len([saw for saw in host.saw("one") if saw["order"].get("crowd")]) == 24)
    changes = [(saw["at"], 1) for saw in host.saw("one begins") if saw["order"].get("crowd")]
    changes += [(saw["at"], -1) for saw in host.saw("one") if saw["order"].get("crowd")]
    running = [sum(change for at, change in changes if at <= moment) for moment, _ in changes]
    # host.json: maxConcurrentCalls.
    assert 4 <= max(running) <= 8


def test_a_thousand_messages_are_each_done_once(host: HostHandle, client: Client) -> None:
    sent = [order(bulk=True) for _ in range(1000)]
    for begin in range(0, 1000, 250):
        client.send("one", *sent[begin : begin + 250])
    done = eventually(
        lambda: ids if len(ids := [s["id"] for s in host.saw("one") if s["order"].get("bulk")]) >= 1000 else []
    )
    assert sorted(done) == sorted(str(message.message_id) for message in sent)
    assert eventually(lambda: client.is_empty("one"))


def test_the_lock_is_renewed_while_a_function_runs(host: HostHandle, client: Client) -> None:
    # The lock of this queue lasts ten seconds.
    client.send("lasting", order(seconds=13))
    (saw,) = eventually(lambda: host.saw("lasting"))
    assert [begun["id"] for begun in host.saw("lasting begins")] == [saw["id"]]
    assert eventually(lambda: client.is_empty("lasting"))


# ------------------------------------------------------------------ sessions, batches, topics
def test_sessions_keep_their_order_also_when_a_message_fails_first(host: HostHandle, client: Client) -> None:
    names = [f"session-{letter}" for letter in "abc"]
    orders = [(name, number) for number in range(10) for name in names]
    client.send("sessions", *(in_session(name, number=number, fail_first=number == 4) for name, number in orders))
    eventually(lambda: len([saw for saw in host.saw("session") if saw["session"] in names]) == 30)
    for name in names:
        begun = [(s["number"], s["delivery"]) for s in host.saw("session begins") if s["session"] == name]
        assert begun == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (4, 2), *((number, 1) for number in range(5, 10))]


def test_several_sessions_are_served_at_once_and_their_locks_renewed(host: HostHandle, client: Client) -> None:
    # Seven seconds each, with locks of five: one after another they would take far longer than we wait.
    names = [f"slow-{letter}" for letter in "abcd"]
    client.send("sessions", *(in_session(name, number=0, seconds=7) for name in names))
    done = eventually(
        lambda: found if len(found := [s for s in host.saw("session") if s["session"] in names]) == 4 else []
    )
    begun = [saw for saw in host.saw("session begins") if saw["session"] in names]
    assert [saw["delivery"] for saw in begun] == [1] * 4
    assert max(saw["at"] for saw in done) - min(saw["at"] for saw in begun) < 20


def test_more_sessions_than_places_are_all_served(host: HostHandle, client: Client) -> None:
    # host.json: four at once, and a quiet one is kept for five seconds unless others may be waiting.
    names = [f"many-{number}" for number in range(12)]
    client.send("sessions", *(in_session(name, number=0) for name in names))
    eventually(lambda: len([saw for saw in host.saw("session") if saw["session"] in names]) == 12)


def test_a_hopeless_message_does_not_hold_up_its_session(host: HostHandle, client: Client) -> None:
    client.send("sessions", in_session("stuck", number=0, hopeless="x"), in_session("stuck", number=1))
    eventually(lambda: [saw for saw in host.saw("session") if saw["session"] == "stuck"])
    assert client.dead("sessions").dead_letter_reason == "NotUnderstood"


def test_a_batch_function_gets_many_messages_each_with_its_properties(host: HostHandle, client: Client) -> None:
    sent = [
        ServiceBusMessage(
            "{}",
            message_id=f"batch-{number}",
            correlation_id=f"c{number}" if number % 2 else None,
            application_properties={"number": number},
        )
        for number in range(50)
    ]
    client.send("batches", *sent)

    def found() -> list[dict[str, Any]]:
        each = [message for saw in host.saw("batch") for message in saw["messages"]]
        return [message for message in each if message["id"].startswith("batch-")]

    eventually(lambda: len(found()) == 50)
    assert len(host.saw("batch")) < 10
    for message in found():
        number = int(message["id"].removeprefix("batch-"))
        assert message["correlation"] == (f"c{number}" if number % 2 else None)
        assert message["properties"] == {"number": number}
    assert eventually(lambda: client.is_empty("batches"))


def test_a_batch_that_fails_comes_again_as_a_whole(host: HostHandle, client: Client) -> None:
    sent = [order(fail=True, once=True), order(), order()]
    client.send("batches", *sent)
    wanted = {message.message_id for message in sent}

    def deliveries() -> dict[str, list[int]]:
        each = [message for saw in host.saw("batch") for message in saw["messages"] if message["id"] in wanted]
        return {name: [m["delivery"] for m in each if m["id"] == name] for name in {m["id"] for m in each}}

    assert eventually(lambda: found if (found := deliveries()) and all(2 in d for d in found.values()) else {})
    assert eventually(lambda: client.is_empty("batches"))


def test_what_a_function_returns_goes_to_a_topic_and_its_subscriptions(host: HostHandle, client: Client) -> None:
    client.send("relay", ServiceBusMessage("hello"))
    (event,) = eventually(lambda: host.saw("event"))
    assert (event["body"], event["type"]) == ("relayed hello", "text/plain")
    assert uuid.UUID(event["properties"]["$AzureWebJobsParentId"])


# ------------------------------------------------------------------ outputs
@pytest.mark.parametrize(
    ("body", "how", "bodies", "content_type"),
    [
        ("text", "text", [b"text"], "text/plain"),
        ('["a", {"b": 1}]', "text", [b"a", b'{"b": 1}'], "text/plain"),
        ("bytes", "bytes", [b"bytes"], "application/octet-stream"),
    ],
)
def test_what_a_function_sets_has_been_sent_when_it_is_answered(
    host: HostHandle, client: Client, body: str, how: str, bodies: list[bytes], content_type: str
) -> None:
    assert host.request("POST", f"/api/put?as={how}", body).status == 200
    found = client.take("replies", len(bodies))
    assert [(b"".join(each.body), each.content_type) for each in found] == [(each, content_type) for each in bodies]


def test_an_output_that_cannot_be_sent_fails_the_invocation(host: HostHandle) -> None:
    assert host.request("POST", "/api/put?as=nowhere", "x").status == 500
    assert logged(host, "output 'other' could not be sent to nowhere: The messaging entity 'nowhere'")


# ------------------------------------------------------------------ what is told
def test_an_entity_that_does_not_exist_is_told_once(host: HostHandle) -> None:
    told = eventually(lambda: logged(host, "on_nothing on nowhere cannot be used"))
    assert len(told) == 1
    assert "could not be found" in told[0]


def test_a_connection_that_is_not_set_leaves_its_function_out_and_the_others_run(host: HostHandle) -> None:
    assert [line for line in logged(host, "function 'never' cannot run") if "'UNSET' is not set" in line]
    names = {each["name"] for each in host.request("GET", "/admin/functions", key="master").json()}
    assert "on_one" in names
    assert "never" not in names


def test_a_trigger_can_be_called_by_hand(host: HostHandle) -> None:
    body = {"input": json.dumps({"by": "hand"})}
    assert host.request("POST", "/admin/functions/on_one", body, key="master").status == 202
    assert eventually(lambda: [saw for saw in host.saw("one") if saw["order"] == {"by": "hand"}])


def test_keys_are_in_no_log(host: HostHandle) -> None:
    assert Bus.KEY not in (host.state / "logs" / "host.jsonl").read_text()
    assert Bus.KEY not in host.output()


def test_a_host_without_service_bus_functions_does_not_load_the_sdk() -> None:
    script = (
        "import sys, dropforge.host.host; sys.exit(any(name.startswith('azure.servicebus') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# ------------------------------------------------------------------ coming and going
def test_a_service_bus_that_goes_away_is_told_once_and_taken_up_again(tmp_path: Path) -> None:
    settings = {"BUS": "", "NOWHERE": "nowhere"}
    bus = Bus(CONFIG, tmp_path / "bus")
    settings["BUS"] = bus.connection
    client = Client(bus.connection)
    try:
        # The host is there first, as with `dropforge up`.
        with running_host(APP, tmp_path / "state", settings) as host:
            bus.start()
            client.send("one", order(number=1))
            client.send("sessions", in_session("s", number=1))
            eventually(lambda: host.saw("one") and host.saw("session"))
            # It may have been told once before the service was there.
            told = len(logged(host, "can be reached again"))
            assert len(logged(host, "cannot be reached")) == told
            bus.kill()
            eventually(lambda: len(logged(host, "Service Bus (BUS) cannot be reached")) > told)
            bus.start()
            client.send("one", order(number=2))
            client.send("sessions", in_session("s", number=2))
            # The first ones may come once more: who was killed did not hear that they were done.
            eventually(lambda: {each["order"]["number"] for each in host.saw("one")} == {1, 2})
            eventually(lambda: {each["number"] for each in host.saw("session")} == {1, 2})
            eventually(lambda: len(logged(host, "can be reached again")) > told)
            assert len(logged(host, "cannot be reached")) == told + 1
            assert len(logged(host, "can be reached again")) == told + 1
            assert not [line for line in host.logs() if "Traceback" in line.get("exception", "")]
            assert host.stop() == 0
    finally:
        bus.kill()


def test_a_message_outlives_the_connection_it_came_over(tmp_path: Path) -> None:
    with running_bus(CONFIG, tmp_path / "bus") as bus, Wire(bus.port) as wire:
        settings = {"BUS": bus.connection.replace(str(bus.port), str(wire.port)), "NOWHERE": "nowhere"}
        client = Client(bus.connection)
        with running_host(APP, tmp_path / "state", settings) as host:
            # One renews its lock of ten seconds over a new connection, the other one only completes over it.
            client.send("lasting", order(seconds=12))
            client.send("one", order(seconds=1))
            eventually(lambda: host.saw("lasting begins") and host.saw("one begins"))
            wire.cut()
            eventually(lambda: host.saw("lasting") and host.saw("one"))
            assert eventually(lambda: client.is_empty("lasting") and client.is_empty("one"))
            assert len(host.saw("lasting begins")) == len(host.saw("one begins")) == 1


def test_a_stop_waits_for_what_runs_and_then_gives_it_back(tmp_path: Path) -> None:
    with running_bus(CONFIG, tmp_path / "bus") as bus:
        settings, client = {"BUS": bus.connection, "NOWHERE": "nowhere"}, Client(bus.connection)
        with running_host(APP, tmp_path / "state", settings, ("--port", "0", "--grace", "3")) as host:
            client.send("lasting", order(seconds=2), order(seconds=60))
            eventually(lambda: len(host.saw("lasting begins")) == 2)
            assert host.stop() == 0
            # One finished within the grace; the other one is back at once, without waiting for its lock.
            assert len(host.saw("lasting")) == 1
        (left,) = client.take("lasting")
        # Of the SDK, which counts failed deliveries.
        assert left.delivery_count == 1


def test_a_message_survives_a_host_that_is_killed(tmp_path: Path) -> None:
    with running_bus(CONFIG, tmp_path / "bus") as bus:
        settings, client = {"BUS": bus.connection, "NOWHERE": "nowhere"}, Client(bus.connection)
        sent = order(seconds=3)
        with running_host(APP, tmp_path / "state", settings) as host:
            client.send("lasting", sent)
            client.send("sessions", in_session("s", number=0, seconds=3), in_session("s", number=1))
            eventually(lambda: host.saw("lasting begins") and host.saw("session begins"))
            host.kill()
        with running_host(APP, tmp_path / "state", settings) as host:
            eventually(lambda: host.saw("lasting") and len(host.saw("session")) == 2)
            begun = [(saw["id"], saw["delivery"]) for saw in host.saw("lasting begins")]
            assert begun == [(sent.message_id, 1), (sent.message_id, 2)]
            assert [saw["number"] for saw in host.saw("session")] == [0, 1]


# ------------------------------------------------------------------ dropforge up
def test_two_platforms_have_a_service_bus_each(tmp_path: Path) -> None:
    with Platform(tmp_path / "a") as first, Platform(tmp_path / "b") as second:
        connections = [platform.connection["service_bus"] for platform in (first, second)]
        assert connections[0] != connections[1]
        for number, connection in enumerate(connections):
            client = Client(connection)
            eventually(lambda number=number: (tmp_path / "ab"[number] / "servicebus").exists())
            client.send("replies", ServiceBusMessage(f"to {number}", message_id="m"))
        for number, connection in enumerate(connections):
            (found,) = Client(connection).take("replies")
            assert b"".join(found.body) == f"to {number}".encode()
        key = (tmp_path / "a" / "service-bus.key").read_text()
        assert key in connections[0]
        # The banner says it, the logs do not.
        assert key in first.log()
        assert key not in (tmp_path / "a" / "logs" / "host.jsonl").read_text()


def test_messages_survive_a_platform_that_is_killed(tmp_path: Path) -> None:
    with Platform(tmp_path) as platform:
        Client(platform.connection["service_bus"]).send("replies", ServiceBusMessage("kept", message_id="m"))
        key = (tmp_path / "service-bus.key").read_text()
        platform.kill()
        platform.start()
        platform.ready()
        assert (tmp_path / "service-bus.key").read_text() == key
        (found,) = Client(platform.connection["service_bus"]).take("replies")
        assert b"".join(found.body) == b"kept"


def test_a_service_bus_in_the_settings_is_used_instead(bus: Bus, tmp_path: Path) -> None:
    with Platform(tmp_path, SERVICE_BUS=bus.connection) as platform:
        assert platform.connection["service_bus"] is None
        assert "service-bus" not in platform.connection["sidecars"]
        assert not (tmp_path / "servicebus").exists()
