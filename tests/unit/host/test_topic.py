"""The local topic, spoken to by the real publisher client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import HttpResponseError
from azure.core.messaging import CloudEvent
from azure.eventgrid import EventGridEvent, EventGridPublisherClient

from dropforge.host.keys import EVENT_GRID_KEY, Keys
from dropforge.host.topic import PATH, Topic, events_of

EVENT = (
    b'{"id": "1", "subject": "s", "eventType": "Mine", "eventTime": "t", "data": 1, "dataVersion": "DATA",'
    b' "metadataVersion": "META"}'
)
KEYS = Keys(master="m", system={EVENT_GRID_KEY: "secret"})


class Subscribers:
    """Takes every event, except while it is `down`."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.down = False

    async def post(self, name: str, event: dict[str, Any], attempt: int) -> bool:
        self.heard.append((name, event))
        return not self.down


def publish(events: Any, *, key: str = "secret", down: bool = False) -> tuple[Subscribers, Topic]:
    """Publish with the SDK's own client to a topic on a real socket."""
    subscribers = Subscribers()
    subscribers.down = down
    topic = Topic({"Microsoft.Storage.": ("on_blob_event",), "Mine": ("a", "b")}, KEYS, subscribers.post)

    async def run() -> None:
        app = web.Application()
        app.add_routes(topic.routes())
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            port = runner.addresses[0][1]
            await asyncio.to_thread(send, f"http://127.0.0.1:{port}{PATH}")
        finally:
            await runner.cleanup()

    def send(endpoint: str) -> None:
        with EventGridPublisherClient(endpoint, AzureKeyCredential(key), retry_total=0) as client:
            client.send(events)

    asyncio.run(run())
    return subscribers, topic


def test_events_of_both_schemas_reach_the_functions_that_subscribe() -> None:
    event = EventGridEvent("/blobs/x", "Microsoft.Storage.BlobCreated", {"url": "u"}, "1")
    subscribers, _ = publish([event])
    assert [(name, each["data"]) for name, each in subscribers.heard] == [("on_blob_event", {"url": "u"})]
    subscribers, _ = publish([CloudEvent(source="s", type="Mine.Is", data={"n": n}) for n in range(2)])
    assert sorted((name, each["data"]["n"]) for name, each in subscribers.heard) == [
        ("a", 0), ("a", 1), ("b", 0), ("b", 1)
    ]  # fmt: skip


def test_a_type_that_nobody_subscribes_to_is_taken_and_counted() -> None:
    subscribers, topic = publish(CloudEvent(source="s", type="Unknown", data=1))
    assert subscribers.heard == []
    assert topic.unheard == {"Unknown": 1}


def test_a_wrong_key_is_refused() -> None:
    with pytest.raises(HttpResponseError) as refused:
        publish(CloudEvent(source="s", type="Mine", data=1), key="wrong")
    assert refused.value.status_code == 401


def test_a_subscriber_that_does_not_take_an_event_makes_the_publisher_try_again() -> None:
    with pytest.raises(HttpResponseError) as refused:
        publish(CloudEvent(source="s", type="Mine", data=1), down=True)
    assert refused.value.status_code == 503


def test_more_than_a_megabyte_is_refused() -> None:
    with pytest.raises(HttpResponseError) as refused:
        publish(CloudEvent(source="s", type="Mine", data="x" * 1_100_000))
    assert refused.value.status_code == 413


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "not JSON"),
        (b"[1]", "event 1 is a JSON int"),
        (b'[{"id": "1"}]', "event 1 lacks subject, eventType"),
        (b'{"specversion": "1.0", "id": "1"}', "event 1 lacks source, type"),
        (EVENT.replace(b"DATA", rb"1\n2"), r"event 1 has the dataVersion '1\\n2'; wanted .* a header can carry"),
        (EVENT.replace(b"META", rb"\r"), "event 1 has the metadataVersion"),
        (EVENT.replace(b"META", rb"\ud800"), "event 1 has the metadataVersion"),
    ],
)
def test_what_is_no_event_is_refused_with_what_it_lacks(body: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        events_of(body)
