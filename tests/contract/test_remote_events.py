"""Events to a webhook and to an Event Grid topic: what listeners are sent, and what becomes of their answers."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dropforge.adapters.event_grid import EventGridTopic
from dropforge.adapters.patience import Patience
from dropforge.adapters.webhook import Webhook
from dropforge.domain.causes import Cause
from dropforge.domain.errors import BadInput, NotFound, Refused, Unavailable
from dropforge.domain.events import DomainEvent
from dropforge.ports import Events
from dropforge.settings import read
from dropforge.wiring import build
from tests.contract.web import Web, web

EVENT = DomainEvent(
    "ab12.3",
    "ModelPromoted",
    "models/flights/versions/3",
    datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC),
    {"version": 3},
    Cause("m1", "command", "ticket-ü", 2),
)
SENT = {
    "specversion": "1.0",
    "id": "ab12.3",
    "source": "/dropforge/app",
    "type": "dropforge.ModelPromoted",
    "subject": "models/flights/versions/3",
    "time": "2026-11-22T12:00:00.123456Z",
    "datacontenttype": "application/json",
    "hops": 3,
    "causationid": "m1",
    "correlationid": "ticket-ü",
    "data": {"version": 3},
}


@pytest.fixture
def listener() -> Iterator[Web]:
    with web() as made:
        yield made


@pytest.fixture
def topic(listener: Web) -> Iterator[EventGridTopic]:
    with closing(EventGridTopic(f"{listener.url}/api/events", "secret", "/dropforge/app")) as made:
        yield made


@pytest.fixture(params=["webhook", "topic"])
def place(request: pytest.FixtureRequest, listener: Web) -> Events:
    if request.param == "webhook":
        return Webhook(f"{listener.url}/hook?code=hidden", "secret", "/dropforge/app")
    made: Events = request.getfixturevalue("topic")
    return made


# ------------------------------------------------------------------------------------------------ what is sent
def test_a_webhook_is_sent_one_structured_cloud_event(listener: Web) -> None:
    Webhook(f"{listener.url}/hook?a=1", "secret", "/dropforge/app").publish(EVENT)
    (request,) = listener.requests
    assert (request.method, request.path) == ("POST", "/hook?a=1")
    assert request.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert request.headers["authorization"] == "Bearer secret"
    assert request.json() == SENT


def test_a_webhook_without_a_key_is_sent_none(listener: Web) -> None:
    Webhook(listener.url).publish(EVENT)
    assert "authorization" not in listener.requests[0].headers


def test_a_topic_is_sent_a_batch_of_one_with_its_key(listener: Web, topic: EventGridTopic) -> None:
    topic.publish(EVENT)
    (request,) = listener.requests
    assert request.path.startswith("/api/events?api-version=")
    assert request.headers["content-type"].startswith("application/cloudevents-batch+json")
    assert request.headers["aeg-sas-key"] == "secret"
    (event,) = request.json()
    assert event == SENT


@pytest.mark.parametrize("cause", [None, Cause("x" * 300, "http"), Cause("a\r\nb", "storage", "\x00")])
def test_what_a_listener_gets_keeps_the_rules_of_cloud_events(
    place: Events, listener: Web, cause: Cause | None
) -> None:
    place.publish(DomainEvent("id.1", "RunFinished", "s", EVENT.at, {}, cause))
    sent = listener.requests[0].json()
    event: dict[str, Any] = sent[0] if isinstance(sent, list) else sent
    assert set(event) >= {"specversion", "id", "source", "type"}
    for name, value in event.items():
        assert re.fullmatch("[a-z0-9]{1,20}", name)
        if name != "data":
            assert value != ""
            assert isinstance(value, int) or not re.search("[\x00-\x1f\x7f-\x9f]", value)
    assert -(2**31) <= event["hops"] < 2**31
    assert datetime.fromisoformat(event["time"]) == EVENT.at


# ------------------------------------------------------------------------------------------------ what is answered
@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_success_of_a_webhook_will_do(listener: Web, status: int) -> None:
    listener.answers.append((status, {}, b""))
    Webhook(listener.url).publish(EVENT)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_listener_that_is_busy_or_broken_is_asked_again_later(place: Events, listener: Web, status: int) -> None:
    listener.answers.append((status, {"Retry-After": "600"}, b"busy"))
    with pytest.raises(Unavailable, match=str(status)):
        place.publish(EVENT)
    assert len(listener.requests) == 1


@pytest.mark.parametrize("status", [400, 413])
def test_what_is_refused_for_good_says_so_with_the_answer(place: Events, listener: Web, status: int) -> None:
    listener.answers.append((status, {}, b"no such colour"))
    with pytest.raises(Refused, match=rf"{status} to event ab12\.3"):
        place.publish(EVENT)


@pytest.mark.parametrize("status", [301, 302, 307, 308, 401, 403, 404, 410, 415, 422])
def test_a_webhook_that_says_anything_else_means_it(listener: Web, status: int) -> None:
    listener.answers.append((status, {"Location": f"{listener.url}/elsewhere"}, b""))
    with pytest.raises(Refused, match=str(status)):
        Webhook(listener.url, "secret").publish(EVENT)
    assert len(listener.requests) == 1


@pytest.mark.parametrize("status", [307, 401, 403, 404])
def test_a_topic_that_is_set_up_wrongly_keeps_its_events_waiting(
    topic: EventGridTopic, listener: Web, status: int
) -> None:
    listener.answers.append((status, {"Location": f"{listener.url}/elsewhere"}, b"{}"))
    with pytest.raises(Unavailable, match="answered"):
        topic.publish(EVENT)
    assert len(listener.requests) == 1


def test_no_error_shows_a_secret(place: Events, listener: Web) -> None:
    listener.answers.append((500, {}, b""))
    with pytest.raises(Unavailable) as found:
        place.publish(EVENT)
    assert "secret" not in found.value.message
    assert "hidden" not in found.value.message


@pytest.mark.parametrize(
    "make",
    [
        lambda url: Webhook(f"{url}/hook"),
        lambda url: EventGridTopic(f"{url}/api/events", "key"),
    ],
)
def test_nobody_there_is_unavailable_and_not_asked_again_at_once(make: Callable[[str], Events]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        place = make(f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(Unavailable, match="does not answer"):
            place.publish(EVENT)
        with pytest.raises(Unavailable, match="asked again in"):
            place.publish(EVENT)
        if isinstance(place, EventGridTopic):
            place.close()


@pytest.mark.parametrize(
    "url", ["", "ftp://x/", "file:///etc/passwd", "http://", "/hook", "http://[::1", "http://ä.de"]
)
def test_a_webhook_address_that_is_none_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(BadInput, match="DROPFORGE_EVENTS_WEBHOOK"):
        Webhook(url)


def test_data_that_is_no_json_is_refused(place: Events, listener: Web) -> None:
    with pytest.raises(BadInput, match="id-1"):
        place.publish(DomainEvent("id-1", "A", "x", EVENT.at, {"x": object()}))
    assert listener.requests == []


# ------------------------------------------------------------------------------------------------ patience
class Ticking:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_place_that_does_not_answer_is_left_alone_longer_and_longer() -> None:
    clock = Ticking()
    patience = Patience(4.0, clock)
    for rest in (1.0, 2.0, 4.0, 4.0):
        with pytest.raises(Unavailable, match=r"^away$"), patience.asking():
            raise Unavailable("away")
        clock.now += rest - 0.01
        with pytest.raises(Unavailable, match="away; it is asked again"), patience.asking():
            raise AssertionError("it was asked")
        clock.now += 0.02


@pytest.mark.parametrize("answer", [None, NotFound("no such queue")])
def test_an_answer_of_any_kind_ends_that(answer: Exception | None) -> None:
    clock = Ticking()
    patience = Patience(30.0, clock)
    for _ in range(3):
        with pytest.raises(Unavailable), patience.asking():
            raise Unavailable("away")
        clock.now += 30
    try:
        with patience.asking():
            if answer is not None:
                raise answer
    except NotFound:
        pass
    with pytest.raises(Unavailable), patience.asking():
        raise Unavailable("away")
    clock.now += 1.01
    with patience.asking():
        pass


# ------------------------------------------------------------------------------------------------ settings
def test_the_settings_say_where_events_go_and_show_no_key(tmp_path: Path) -> None:
    chosen = read(
        {
            "DROPFORGE_STATE": str(tmp_path),
            "WEBSITE_SITE_NAME": "my-app",
            "DROPFORGE_EVENTS_WEBHOOK": "http://127.0.0.1:9/hook?code=hidden",
            "DROPFORGE_EVENTS_WEBHOOK_KEY": "hidden",
            "DROPFORGE_EVENTS_TOPIC_ENDPOINT": "https://topic.example.net/api/events",
            "DROPFORGE_EVENTS_TOPIC_KEY": "hidden",
            "SERVICE_BUS": "Endpoint=sb://x;SharedAccessKeyName=a;SharedAccessKey=hidden",
        }
    )
    assert chosen.events_source == "/dropforge/my-app"
    assert "hidden" not in repr(chosen)
    assert set(build(chosen).events) == {"journal", "webhook", "topic"}


@pytest.mark.parametrize("prefix", ["", "AzureWebJobs"])
def test_service_bus_is_found_under_both_names_that_azure_knows(prefix: str) -> None:
    chosen = read({f"{prefix}SERVICE_BUS__fullyQualifiedNamespace": "n.servicebus.windows.net"})
    assert (chosen.service_bus, chosen.service_bus_namespace) == (None, "n.servicebus.windows.net")
    assert read({f"{prefix}SERVICE_BUS": "x"}).service_bus == "x"
