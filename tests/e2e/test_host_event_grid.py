"""The Event Grid webhook: the handshakes and the deliveries of the documentation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.hosting import APPS, PAYLOADS, Answer, HostHandle, running_host

EVENT = {
    "id": "e",
    "eventType": "T",
    "subject": "s",
    "data": {},
    "eventTime": "2026-11-22T12:00:00Z",
    "dataVersion": "1",
}
CLOUD = {"id": "c", "type": "T", "source": "s", "specversion": "1.0", "data": {"a": 1}, "time": "2026-11-22T12:00:00Z"}
SAMPLES = sorted(path.name for path in PAYLOADS.glob("*.json") if "subscription_validation" not in path.name)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostHandle]:
    with running_host(APPS / "doors", tmp_path_factory.mktemp("state")) as host:
        yield host


def post(
    host: HostHandle, body: Any, kind: str | None = "Notification", function: str = "on_event", path: str = "EventGrid"
) -> Answer:
    headers = {"aeg-event-type": kind} if kind else {}
    text = body if isinstance(body, (str, bytes)) else json.dumps(body)
    return host.request(
        "POST",
        f"/runtime/webhooks/{path}?functionName={function}&code={host.keys['eventgrid_extension']}",
        text,
        headers={**headers, "Content-Type": "application/json"},
    )


@pytest.mark.parametrize("sample", SAMPLES)
def test_an_official_sample_is_delivered_as_it_is(host: HostHandle, sample: str) -> None:
    text = (PAYLOADS / sample).read_text()
    found = json.loads(text)
    event = found[0] if isinstance(found, list) else found
    before = len(host.saw("event"))
    assert post(host, text).status == 202
    (saw,) = host.saw("event")[before:]
    assert (saw["id"], saw["data"]) == (event["id"], event["data"])
    assert saw["kind"] == ("CloudEvent" if "specversion" in event else "EventGridEvent")


def test_the_subscription_handshake_is_answered_with_200(host: HostHandle) -> None:
    request = (PAYLOADS / "eventgrid.subscription_validation.request.json").read_text()
    expected = json.loads((PAYLOADS / "eventgrid.subscription_validation.response.json").read_text())
    before = len(host.saw("event"))
    answer = post(host, request, kind="SubscriptionValidation")
    assert (answer.status, answer.json()) == (200, expected)
    assert len(host.saw("event")) == before


@pytest.mark.parametrize("body", ["[]", "{}", "[{}, {}]", '[{"data": []}]', '[{"data": {"validationCode": 1}}]', "no"])
def test_a_handshake_without_a_code_is_refused(host: HostHandle, body: str) -> None:
    assert post(host, body, kind="SubscriptionValidation").status == 400


def test_the_cloudevents_handshake_allows_the_origin(host: HostHandle) -> None:
    path = f"/runtime/webhooks/EventGrid?functionName=on_event&code={host.keys['eventgrid_extension']}"
    answer = host.request("OPTIONS", path, headers={"WebHook-Request-Origin": "eventgrid.azure.net"})
    assert (answer.status, answer.headers["webhook-allowed-origin"]) == (200, "eventgrid.azure.net")
    assert host.request("OPTIONS", path).status == 400


def test_each_event_of_a_batch_is_an_invocation_of_its_own(host: HostHandle) -> None:
    events = [{**EVENT, "id": f"batch-{number}"} for number in range(100)]
    assert post(host, events).status == 202
    assert len([saw for saw in host.saw("event") if saw["id"].startswith("batch-")]) == 100


def test_one_failed_event_fails_the_request_and_the_others_still_run(host: HostHandle) -> None:
    events = [{**EVENT, "id": "good-1"}, {**EVENT, "id": "bad", "data": {"refuse": True}}, {**EVENT, "id": "good-2"}]
    answer = post(host, events)
    assert answer.status == 500
    assert "refused as asked" in answer.text
    assert "Traceback" not in answer.text
    assert {"good-1", "bad", "good-2"} <= {saw["id"] for saw in host.saw("event")}


def test_cloudevents_come_alone_or_in_an_array_and_need_no_header(host: HostHandle) -> None:
    assert post(host, {**CLOUD, "id": "cloud-1"}).status == 202
    assert post(host, [{**CLOUD, "id": "cloud-2"}, {**CLOUD, "id": "cloud-3"}]).status == 202
    assert post(host, {**CLOUD, "id": "cloud-4"}, kind=None).status == 202
    assert {"cloud-1", "cloud-2", "cloud-3", "cloud-4"} <= {saw["id"] for saw in host.saw("event")}


@pytest.mark.parametrize("time", ["2026-11-22T12:00:00.958+02:00", "2026-11-22T12:00:00", "2026-11-22", None, ""])
def test_every_time_that_is_one_can_be_read(host: HostHandle, time: str | None) -> None:
    assert post(host, [{**EVENT, "id": f"at {time}", "eventTime": time}]).status == 202
    assert post(host, {**CLOUD, "id": f"cloud at {time}", "time": time}).status == 202
    assert {f"at {time}", f"cloud at {time}"} <= {saw["id"] for saw in host.saw("event")}


@pytest.mark.parametrize("time", ["yesterday", "2026-02-31T00:00:00Z", "2026-11-22T29:00:00Z", 7, ["x"], {}])
def test_an_event_at_no_time_is_refused_for_good(host: HostHandle, time: object) -> None:
    answer = post(host, [{**EVENT, "id": f"no {time}", "eventTime": time}])
    assert answer.status == 400
    assert "eventTime of an event must be a time" in answer.text
    assert f"no {time}" not in {saw["id"] for saw in host.saw("event")}


@pytest.mark.parametrize(
    ("kind", "function", "body", "status", "text"),
    [
        ("Notification", "nobody", [EVENT], 404, "cannot find function: 'nobody'"),
        ("Notification", "", [EVENT], 404, "cannot find function: ''"),
        ("Notification", "echo", [EVENT], 404, "cannot find function: 'echo'"),
        ("Unsubscribe", "on_event", [], 202, ""),
        ("Unsubscribe", "on_event", "", 202, ""),
        ("Something", "on_event", [EVENT], 400, "aeg-event-type"),
        (None, "on_event", [EVENT], 400, "aeg-event-type"),
        (None, "on_event", [], 400, "aeg-event-type"),
        ("Notification", "on_event", "[{]", 400, "not JSON"),
        ("Notification", "on_event", b"\xff", 400, "not JSON"),
        ("Notification", "on_event", "[" * 20_000, 400, "not JSON"),
        ("Notification", "on_event", "[1]", 400, "array of events"),
        ("Notification", "on_event", [], 202, ""),
    ],
)
def test_other_requests(host: HostHandle, kind: str | None, function: str, body: Any, status: int, text: str) -> None:
    answer = post(host, body, kind=kind, function=function)
    assert answer.status == status
    assert text in answer.text


def test_names_are_found_in_any_case(host: HostHandle) -> None:
    assert (
        post(host, [{**EVENT, "id": "case"}], kind="notification", function="ON_Event", path="eventgrid").status == 202
    )
    assert "case" in {saw["id"] for saw in host.saw("event")}
