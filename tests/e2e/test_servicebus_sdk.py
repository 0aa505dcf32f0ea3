"""The unmodified azure-servicebus SDK, sync and aio, against the local endpoint as a process of its own.

Opening a link costs the SDK half a second and closing it up to another, whatever the server does. So all scenarios run
at the same time, each on queues of its own, and every test looks at the outcome of one.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus import (
    NEXT_AVAILABLE_SESSION,
    AutoLockRenewer,
    ServiceBusClient,
    ServiceBusMessageState,
    ServiceBusReceivedMessage,
    ServiceBusReceiveMode,
    ServiceBusReceiver,
    ServiceBusSubQueue,
)
from azure.servicebus import ServiceBusMessage as Message
from azure.servicebus.aio import ServiceBusClient as AsyncClient
from azure.servicebus.aio import ServiceBusReceiver as AsyncReceiver
from azure.servicebus.exceptions import (
    MessageLockLostError,
    MessageNotFoundError,
    MessageSizeExceededError,
    OperationTimeoutError,
    ServiceBusAuthenticationError,
    ServiceBusError,
    SessionCannotBeLockedError,
    SessionLockLostError,
)

KEY = "c29tZSBrZXk="

# Seconds: how long a scenario waits for what must come, and looks for what must not.
SOON = 15.0
A_LOOK = 0.5
BRIEF_LOCK = 2.0

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"MaxDeliveryCount": 3, "DeadLetteringOnMessageExpiration": True},
    "brief": {"LockDuration": f"PT{BRIEF_LOCK:.0f}S"},
    "sessions": {"RequiresSession": True},
    "brief-sessions": {"RequiresSession": True, "LockDuration": f"PT{BRIEF_LOCK:.0f}S"},
    "once": {"RequiresDuplicateDetection": True, "DuplicateDetectionHistoryTimeWindow": "PT20S"},
}
RULES: dict[str, dict[str, Any] | None] = {
    "all": None,
    "red": {"FilterType": "Sql", "SqlFilter": {"SqlExpression": "color = 'red' AND qty > 3"}},
    "blue": {"FilterType": "Correlation", "CorrelationFilter": {"Label": "x", "Properties": {"color": "blue"}}},
}


class Place:
    """One scenario's client and its own queues, one of each kind."""

    def __init__(self, port: int, scenario: str) -> None:
        self.scenario = scenario
        self.port = port
        self.client = ServiceBusClient.from_connection_string(self.connection_string(), retry_total=0)

    def connection_string(self, key: str = KEY) -> str:
        return (
            f"Endpoint=sb://localhost:{self.port};SharedAccessKeyName=RootManageSharedAccessKey;"
            f"SharedAccessKey={key};UseDevelopmentEmulator=true;"
        )

    def queue(self, kind: str = "plain") -> str:
        return f"{self.scenario}-{kind}"

    def send(self, *messages: Message, kind: str = "plain") -> None:
        with self.client.get_queue_sender(self.queue(kind), keep_alive=0) as sender:
            sender.send_messages(list(messages))

    def receiver(self, kind: str = "plain", **options: Any) -> ServiceBusReceiver:
        return self.client.get_queue_receiver(self.queue(kind), keep_alive=0, **options)

    def dead_letters(self) -> ServiceBusReceiver:
        return self.receiver(sub_queue=ServiceBusSubQueue.DEAD_LETTER)

    @asynccontextmanager
    async def aio(self) -> AsyncIterator[AsyncClient]:
        async with AsyncClient.from_connection_string(self.connection_string(), retry_total=0) as client:
            yield client


def _one(receiver: ServiceBusReceiver) -> ServiceBusReceivedMessage:
    (message,) = receiver.receive_messages(1, SOON)
    return message


def _none(receiver: ServiceBusReceiver) -> None:
    assert receiver.receive_messages(1, A_LOOK) == []


def _take(receiver: ServiceBusReceiver, count: int) -> list[str]:
    """That many messages, completed; their bodies."""
    bodies: list[str] = []
    while len(bodies) < count:
        messages = receiver.receive_messages(count - len(bodies), SOON)
        assert messages, f"only {bodies} came"
        for message in messages:
            bodies.append(str(message))
            receiver.complete_message(message)
    return bodies


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


# --------------------------------------------------------------------------------------------------------- one queue


def a_message_arrives_with_all_its_properties(place: Place) -> None:
    properties = {"i": 1, "s": "x", "f": 1.5, "b": True, "u": uuid.UUID(int=5), "t": _now().replace(microsecond=0)}
    sent = Message(
        "one",
        message_id="a",
        subject="subj",
        correlation_id="cid",
        content_type="application/json",
        reply_to="rt",
        to="to",
        time_to_live=dt.timedelta(minutes=5),
        partition_key="pk",
        application_properties=properties,
    )
    place.send(sent)
    with place.receiver() as receiver:
        got = _one(receiver)
        assert (str(got), got.message_id, got.subject, got.correlation_id) == ("one", "a", "subj", "cid")
        assert (got.content_type, got.reply_to, got.to, got.partition_key) == ("application/json", "rt", "to", "pk")
        assert got.time_to_live == dt.timedelta(minutes=5)
        received = {bytes(name).decode(): value for name, value in got.application_properties.items()}
        assert received.pop("t") == properties.pop("t").timestamp() * 1000
        assert received.pop("s") == b"x"
        assert received == {name: value for name, value in properties.items() if name != "s"}
        assert (got.delivery_count, got.state) == (0, ServiceBusMessageState.ACTIVE)
        assert abs(got.enqueued_time_utc - _now()) < dt.timedelta(seconds=60)
        assert got.locked_until_utc > got.enqueued_time_utc
        assert got.lock_token is not None
        receiver.complete_message(got)
        _none(receiver)


def lists_and_batches_keep_their_order(place: Place) -> None:
    with place.client.get_queue_sender(place.queue(), keep_alive=0) as sender:
        sender.send_messages([Message(f"l{i}") for i in range(10)])
        batch = sender.create_message_batch()
        assert batch.max_size_in_bytes == 262_144
        for i in range(50):
            batch.add_message(Message(f"b{i}", message_id=f"id{i}"))
        sender.send_messages(batch)
    with place.receiver() as receiver:
        assert _take(receiver, 60) == [f"l{i}" for i in range(10)] + [f"b{i}" for i in range(50)]


def an_abandoned_message_comes_again_until_it_is_dead(place: Place) -> None:
    place.send(Message("md"))
    with place.receiver() as receiver:
        for count in range(3):
            message = _one(receiver)
            assert message.delivery_count == count
            receiver.abandon_message(message)
        _none(receiver)
    with place.dead_letters() as letters:
        letter = _one(letters)
        assert letter.dead_letter_reason == "MaxDeliveryCountExceeded"
        letters.complete_message(letter)


def a_dead_letter_says_why(place: Place) -> None:
    place.send(Message("dl", application_properties={"k": "v"}))
    with place.receiver() as receiver:
        receiver.dead_letter_message(_one(receiver), reason="why", error_description="because")
    with place.dead_letters() as letters:
        letter = _one(letters)
        assert (letter.dead_letter_reason, letter.dead_letter_error_description) == ("why", "because")
        assert letter.application_properties[b"k"] == b"v"
        letters.complete_message(letter)


def scheduled_messages_come_when_due_and_can_be_cancelled(place: Place) -> None:
    with place.client.get_queue_sender(place.queue(), keep_alive=0) as sender, place.receiver() as receiver:
        due = _now() + dt.timedelta(seconds=3)
        numbers = sender.schedule_messages([Message("s1"), Message("s2")], due)
        sender.cancel_scheduled_messages(numbers[1])
        sender.send_messages(Message("s3", scheduled_enqueue_time_utc=due))
        peeked = receiver.peek_messages(5)
        assert {str(message) for message in peeked} == {"s1", "s3"}
        assert {message.state for message in peeked} == {ServiceBusMessageState.SCHEDULED}
        assert sorted(_take(receiver, 2)) == ["s1", "s3"]
        assert _now() >= due
        with pytest.raises(MessageNotFoundError):
            sender.cancel_scheduled_messages(numbers[1])


def a_deferred_message_is_received_by_its_number(place: Place) -> None:
    place.send(Message("df"))
    with place.receiver() as receiver:
        message = _one(receiver)
        number = message.sequence_number
        receiver.defer_message(message)
        _none(receiver)
        assert receiver.peek_messages(1, sequence_number=number)[0].state is ServiceBusMessageState.DEFERRED
        (deferred,) = receiver.receive_deferred_messages(number)
        assert str(deferred) == "df"
        receiver.renew_message_lock(deferred)
        receiver.complete_message(deferred)
        with pytest.raises(MessageNotFoundError):
            receiver.receive_deferred_messages(number)


def a_renewed_lock_holds_and_one_that_is_not_is_lost(place: Place) -> None:
    place.send(Message("rn"), kind="brief")
    with place.receiver("brief") as receiver:
        message = _one(receiver)
        before = message.locked_until_utc
        time.sleep(BRIEF_LOCK * 0.6)
        assert receiver.renew_message_lock(message) > before
        time.sleep(BRIEF_LOCK + 0.5)
        # The SDK looks at the clock itself; this is to hear it from the broker.
        message._expiry = _now() + dt.timedelta(seconds=60)
        with pytest.raises(MessageLockLostError):
            receiver.complete_message(message)
        again = _one(receiver)
        assert again.delivery_count == 1
        receiver.complete_message(again)


def the_auto_lock_renewer_keeps_a_lock(place: Place) -> None:
    place.send(Message("ar"), kind="brief")
    with AutoLockRenewer() as renewer, place.receiver("brief", auto_lock_renewer=renewer) as receiver:
        message = _one(receiver)
        time.sleep(2.5 * BRIEF_LOCK)
        receiver.complete_message(message)
        _none(receiver)


def receive_and_delete_takes_messages_for_good(place: Place) -> None:
    place.send(Message("x"), Message("y"))
    with place.receiver(receive_mode=ServiceBusReceiveMode.RECEIVE_AND_DELETE) as receiver:
        got: list[str] = []
        while len(got) < 2:
            got += [str(message) for message in receiver.receive_messages(2, SOON)]
        assert got == ["x", "y"]
        assert receiver.peek_messages(1) == []


def an_expired_message_is_dead_lettered(place: Place) -> None:
    place.send(Message("t", time_to_live=dt.timedelta(seconds=1)))
    time.sleep(1.5)
    with place.receiver() as receiver:
        _none(receiver)
    with place.dead_letters() as letters:
        assert _one(letters).dead_letter_reason == "TTLExpiredException"


def a_repeated_message_id_is_one_message(place: Place) -> None:
    for _ in range(2):
        place.send(Message("d", message_id="same"), kind="once")
    with place.receiver("once") as receiver:
        assert _take(receiver, 1) == ["d"]
        _none(receiver)


def a_large_message_passes_and_a_larger_one_is_refused(place: Place) -> None:
    place.send(Message(b"z" * 200_000))
    with place.receiver() as receiver:
        message = _one(receiver)
        assert len(b"".join(message.body)) == 200_000
        receiver.complete_message(message)
    with pytest.raises(MessageSizeExceededError):
        place.send(Message(b"z" * 300_000))


def peeking_pages_through_the_queue(place: Place) -> None:
    place.send(*[Message(str(i)) for i in range(5)])
    with place.receiver() as receiver:
        assert [str(message) for message in receiver.peek_messages(3)] == ["0", "1", "2"]
        assert [str(message) for message in receiver.peek_messages(5)] == ["3", "4"]
        assert receiver.peek_messages(5) == []


def a_closed_receiver_gives_back_what_it_only_prefetched(place: Place) -> None:
    place.send(*[Message(str(i)) for i in range(5)], kind="brief")
    with place.receiver("brief", prefetch_count=5) as receiver:
        assert str(_one(receiver)) == "0"
    with place.receiver("brief") as receiver:
        got = [_one(receiver) for _ in range(4)]
        assert [(str(message), message.delivery_count) for message in got] == [(str(i), 0) for i in range(1, 5)]
        for message in got:
            receiver.complete_message(message)
        last = _one(receiver)
        assert (str(last), last.delivery_count) == ("0", 1)


def messages_are_settled_by_another_receiver(place: Place) -> None:
    place.send(Message("1"), Message("2"), Message("3"))
    with place.receiver() as first, place.receiver() as second:
        one, two, three = (_one(first) for _ in range(3))
        # The link that locked them is gone: the SDK goes through $management.
        first.close()
        second.complete_message(one)
        second.abandon_message(two)
        second.dead_letter_message(three, reason="z")
        assert _take(second, 1) == ["2"]
    with place.dead_letters() as letters:
        assert _one(letters).dead_letter_reason == "z"


# ------------------------------------------------------------------------------------------------- topics, sessions


def subscriptions_get_what_their_rules_let_through(place: Place) -> None:
    messages = [
        Message("1", application_properties={"color": "red", "qty": 5}),
        Message("2", application_properties={"color": "red", "qty": 1}),
        Message("3", subject="x", application_properties={"color": "blue"}),
    ]
    with place.client.get_topic_sender(f"{place.scenario}-topic", keep_alive=0) as sender:
        sender.send_messages(messages)
    for subscription, expected in (("red", ["1"]), ("blue", ["3"]), ("all", ["1", "2"])):
        with _subscription(place, subscription) as receiver:
            assert _take(receiver, len(expected)) == expected
            if subscription == "all":
                receiver.dead_letter_message(_one(receiver), reason="r")
            _none(receiver)
    with _subscription(place, "all", sub_queue=ServiceBusSubQueue.DEAD_LETTER) as letters:
        assert _one(letters).dead_letter_reason == "r"


def _subscription(place: Place, name: str, **options: Any) -> ServiceBusReceiver:
    return place.client.get_subscription_receiver(f"{place.scenario}-topic", name, keep_alive=0, **options)


def a_session_is_one_receiver_s_with_its_messages_and_its_state(place: Place) -> None:
    place.send(*[Message(f"A{i}", session_id="A") for i in range(3)], Message("B0", session_id="B"), kind="sessions")
    with place.receiver("sessions", session_id="A") as receiver:
        session = receiver.session
        assert session.session_id == "A"
        with pytest.raises(SessionCannotBeLockedError), place.receiver("sessions", session_id="A"):
            pass
        assert _take(receiver, 3) == ["A0", "A1", "A2"]
        assert session.get_state() is None
        session.set_state(b"st")
        assert bytes(session.get_state()) == b"st"
        before = session.locked_until_utc
        time.sleep(0.1)
        assert session.renew_lock() > before
    with place.receiver("sessions", session_id=NEXT_AVAILABLE_SESSION, max_wait_time=SOON) as receiver:
        assert receiver.session.session_id == "B"
        assert _take(receiver, 1) == ["B0"]
    with (
        pytest.raises(OperationTimeoutError),
        place.receiver("sessions", session_id=NEXT_AVAILABLE_SESSION, max_wait_time=1),
    ):
        pass


def sessions_are_required_where_they_are(place: Place) -> None:
    with pytest.raises(ServiceBusError, match="SessionId"):
        place.send(Message("no session"), kind="sessions")
    with pytest.raises(ServiceBusError, match="sessions"), place.receiver("sessions") as receiver:
        receiver.receive_messages(1, A_LOOK)


def a_session_not_renewed_is_lost(place: Place) -> None:
    place.send(Message("e", session_id="E"), kind="brief-sessions")
    with place.receiver("brief-sessions", session_id="E") as receiver:
        message = _one(receiver)
        time.sleep(BRIEF_LOCK + 0.5)
        with pytest.raises(SessionLockLostError):
            receiver.complete_message(message)
    with place.receiver("brief-sessions", session_id="E") as receiver:
        again = _one(receiver)
        assert again.delivery_count == 1
        receiver.complete_message(again)


def sessions_with_messages_are_listed(place: Place) -> None:
    place.send(Message("x", session_id="L1"), Message("x", session_id="L2"), kind="sessions")
    assert sorted(place.client.list_queue_sessions(place.queue("sessions"))) == ["L1", "L2"]


# -------------------------------------------------------------------------------------------------- who may come in


def an_entity_that_does_not_exist_is_refused_as_the_service_does(place: Place) -> None:
    for link in (
        place.client.get_queue_sender("nope"),
        place.client.get_queue_receiver("nope"),
        place.client.get_subscription_receiver(f"{place.scenario}-topic", "nope"),
    ):
        with pytest.raises(ServiceBusAuthenticationError), link:
            pass


def a_wrong_key_opens_nothing(place: Place) -> None:
    with (
        ServiceBusClient.from_connection_string(place.connection_string("d3Jvbmc="), retry_total=0) as client,
        pytest.raises(ServiceBusAuthenticationError),
        client.get_queue_sender(place.queue()),
    ):
        pass


# --------------------------------------------------------------------------------------------------------------- aio


async def _take_async(receiver: AsyncReceiver, count: int) -> list[str]:
    bodies: list[str] = []
    while len(bodies) < count:
        messages = await receiver.receive_messages(count - len(bodies), SOON)
        assert messages, f"only {bodies} came"
        for message in messages:
            bodies.append(str(message))
            await receiver.complete_message(message)
    return bodies


async def _one_async(receiver: AsyncReceiver) -> ServiceBusReceivedMessage:
    (message,) = await receiver.receive_messages(1, SOON)
    return message


async def aio_sends_batches_and_completes(place: Place) -> None:
    async with place.aio() as client:
        async with client.get_queue_sender(place.queue()) as sender:
            await sender.send_messages(Message("one"))
            await sender.send_messages([Message(f"l{i}") for i in range(10)])
        async with client.get_queue_receiver(place.queue()) as receiver:
            assert await _take_async(receiver, 11) == ["one", *[f"l{i}" for i in range(10)]]


async def aio_abandons_and_dead_letters(place: Place) -> None:
    async with place.aio() as client:
        async with client.get_queue_sender(place.queue()) as sender:
            await sender.send_messages(Message("x"))
        async with client.get_queue_receiver(place.queue()) as receiver:
            await receiver.abandon_message(await _one_async(receiver))
            message = await _one_async(receiver)
            assert message.delivery_count == 1
            await receiver.dead_letter_message(message, reason="w", error_description="d")
        async with client.get_queue_receiver(place.queue(), sub_queue=ServiceBusSubQueue.DEAD_LETTER) as letters:
            letter = await _one_async(letters)
            assert (letter.dead_letter_reason, letter.dead_letter_error_description) == ("w", "d")


async def aio_schedules_renews_and_defers(place: Place) -> None:
    async with (
        place.aio() as client,
        client.get_queue_sender(place.queue()) as sender,
        client.get_queue_receiver(place.queue()) as receiver,
    ):
        assert len(await sender.schedule_messages(Message("s"), _now() + dt.timedelta(seconds=1))) == 1
        message = await _one_async(receiver)
        before = message.locked_until_utc
        await asyncio.sleep(0.1)
        assert await receiver.renew_message_lock(message) > before
        await receiver.defer_message(message)
        (deferred,) = await receiver.receive_deferred_messages(message.sequence_number)
        await receiver.complete_message(deferred)


async def aio_takes_the_next_session(place: Place) -> None:
    queue = place.queue("sessions")
    async with place.aio() as client:
        async with client.get_queue_sender(queue) as sender:
            await sender.send_messages([Message("1", session_id="S"), Message("2", session_id="S")])
        async with client.get_queue_receiver(queue, session_id=NEXT_AVAILABLE_SESSION, max_wait_time=SOON) as receiver:
            assert receiver.session.session_id == "S"
            await receiver.session.set_state("q")
            assert bytes(await receiver.session.get_state()) == b"q"
            await receiver.session.renew_lock()
            assert await _take_async(receiver, 2) == ["1", "2"]


async def aio_filters_by_subscription(place: Place) -> None:
    topic = f"{place.scenario}-topic"
    async with place.aio() as client:
        async with client.get_topic_sender(topic) as sender:
            await sender.send_messages(Message("1", application_properties={"color": "red", "qty": 9}))
        for subscription in ("all", "red"):
            async with client.get_subscription_receiver(topic, subscription) as receiver:
                assert await _take_async(receiver, 1) == ["1"]


async def aio_receivers_compete_and_lose_nothing(place: Place) -> None:
    seen: list[str] = []

    async def work(client: AsyncClient) -> None:
        async with client.get_queue_receiver(place.queue(), prefetch_count=5, max_wait_time=2) as receiver:
            async for message in receiver:
                seen.append(str(message))
                await receiver.complete_message(message)

    async with place.aio() as client:
        async with client.get_queue_sender(place.queue()) as sender:
            await sender.send_messages([Message(str(i)) for i in range(200)])
        await asyncio.gather(*[work(client) for _ in range(8)])
    assert sorted(seen, key=int) == [str(i) for i in range(200)]


# ----------------------------------------------------------------------------------------------------------- running

SCENARIOS: list[Callable[[Place], Any]] = [
    a_message_arrives_with_all_its_properties,
    lists_and_batches_keep_their_order,
    an_abandoned_message_comes_again_until_it_is_dead,
    a_dead_letter_says_why,
    scheduled_messages_come_when_due_and_can_be_cancelled,
    a_deferred_message_is_received_by_its_number,
    a_renewed_lock_holds_and_one_that_is_not_is_lost,
    the_auto_lock_renewer_keeps_a_lock,
    receive_and_delete_takes_messages_for_good,
    an_expired_message_is_dead_lettered,
    a_repeated_message_id_is_one_message,
    a_large_message_passes_and_a_larger_one_is_refused,
    peeking_pages_through_the_queue,
    a_closed_receiver_gives_back_what_it_only_prefetched,
    messages_are_settled_by_another_receiver,
    subscriptions_get_what_their_rules_let_through,
    a_session_is_one_receiver_s_with_its_messages_and_its_state,
    sessions_are_required_where_they_are,
    a_session_not_renewed_is_lost,
    sessions_with_messages_are_listed,
    an_entity_that_does_not_exist_is_refused_as_the_service_does,
    a_wrong_key_opens_nothing,
    aio_sends_batches_and_completes,
    aio_abandons_and_dead_letters,
    aio_schedules_renews_and_defers,
    aio_takes_the_next_session,
    aio_filters_by_subscription,
    aio_receivers_compete_and_lose_nothing,
]


def _name(scenario: Callable[[Place], Any]) -> str:
    return scenario.__name__


def _entity_name(scenario: Callable[[Place], Any]) -> str:
    # Names of entities are short; the scenarios' places in the list are enough to tell them apart.
    return f"scenario{SCENARIOS.index(scenario)}"


def _config() -> str:
    names = [_entity_name(scenario) for scenario in SCENARIOS]
    queues = [{"Name": f"{name}-{kind}", "Properties": given} for name in names for kind, given in KINDS.items()]
    subscriptions = [
        {"Name": name, **({"Rules": [{"Name": "r", "Properties": rule}]} if rule else {})}
        for name, rule in RULES.items()
    ]
    topics = [{"Name": f"{name}-topic", "Subscriptions": subscriptions} for name in names]
    return json.dumps({"UserConfig": {"Namespaces": [{"Name": "sbemulatorns", "Queues": queues, "Topics": topics}]}})


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder: Path = tmp_path_factory.mktemp("servicebus")
    (folder / "config.json").write_text(_config())
    ports = ["--port", "0", "--admin-port", "0", "--keys-env", "SERVICE_BUS_KEY"]
    command = [sys.executable, "-m", "dropforge.servicebus", "--config", str(folder / "config.json")]
    process = subprocess.Popen(
        [*command, "--state", str(folder), *ports],
        stdout=subprocess.PIPE,
        env={**os.environ, "SERVICE_BUS_KEY": KEY},
    )
    try:
        assert process.stdout is not None
        yield int(json.loads(process.stdout.readline())["port"])
    finally:
        process.terminate()
        assert process.wait(10) == 0
        process.stdout.close()


@pytest.fixture(scope="module")
def outcomes(port: int) -> Iterator[dict[str, Future[None]]]:
    def run(scenario: Callable[[Place], Any]) -> None:
        place = Place(port, _entity_name(scenario))
        with place.client:
            if asyncio.iscoroutinefunction(scenario):
                asyncio.run(scenario(place))
            else:
                scenario(place)

    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        yield {_name(scenario): pool.submit(run, scenario) for scenario in SCENARIOS}


@pytest.mark.parametrize("scenario", [_name(scenario) for scenario in SCENARIOS])
def test_with_the_sdk(outcomes: dict[str, Future[None]], scenario: str) -> None:
    outcomes[scenario].result(60)
