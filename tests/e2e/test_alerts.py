"""Alerts through both doors of the running platform: an action group's webhook, and Event Grid in both envelopes."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dropforge.client import Answered
from tests.e2e.machine import COIN, Platform, eventually, throws
from tests.unit.alert_bodies import activity, log_v1, log_v2, metric, notification, sample

RULES = """
alerts:
  - {rule: "alarm-retrain", severity: [Sev0, Sev1], dimensions: {endpoint: alarm}, action: retrain}
  - {rule: "alarm-rollback", action: rollback}
  - {rule: "alarm-pause", action: pause, until: resolved}
  - {rule: "alarm-*", action: notify}
  - {rule: "test-*", action: notify}
"""
SPEC = {"specversion": "1.0", "source": "/monitor", "type": "Custom.AlertForwarded"}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with one pipeline that has two models, the second of them promoted by hand."""
    folder = tmp_path_factory.mktemp("alerts")
    with Platform(folder / "state", DROPFORGE_MAX_HOPS="2") as running:
        pipeline = folder / "alarm"
        pipeline.mkdir()
        text = (COIN / "pipeline.yaml").read_text().replace("name: coin", "name: alarm")
        (pipeline / "pipeline.yaml").write_text(text.replace("max_files: 3", "max_files: 1") + RULES)
        (pipeline / "train.py").write_text((COIN / "train.py").read_text())
        running.client.apply("alarm", pipeline)
        for number in range(2):
            running.drop("alarm/", throws(folder / "files", number * 7, days=2 if number else 14))
            running.settled("alarm", number + 1)
        running.client.post("pipelines/alarm/promote", version=2)
        eventually(lambda: running.status("alarm")["champion"] == 2, 30, running.log)
        yield running


def send(platform: Platform, path: str, body: object, **headers: str) -> tuple[int, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = {"content-type": "application/json; charset=utf-8"}
    request = urllib.request.Request(platform.connection["url"] + path, raw, kind | headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"null")


def webhook(platform: Platform, body: object, **headers: str) -> tuple[int, Any]:
    """As an action group calls: the key stands in the URL."""
    return send(platform, f"/api/v1/alerts?code={platform.connection['function_key']}", body, **headers)


def event_grid(platform: Platform, *events: object) -> int:
    key = platform.connection["system_keys"]["eventgrid_extension"]
    path = f"/runtime/webhooks/EventGrid?functionName=on_alert_event&code={key}"
    url = platform.connection["url"] + path
    headers = {"content-type": "application/json", "aeg-event-type": "Notification"}
    with urllib.request.urlopen(
        urllib.request.Request(url, json.dumps(events).encode(), headers), timeout=30
    ) as answer:
        return int(answer.status)


def in_event_grid(body: object) -> dict[str, Any]:
    return {
        "id": os.urandom(8).hex(),
        "topic": "/subscriptions/s/topics/alerts",
        "subject": "alert",
        "eventType": "Custom.AlertForwarded",
        "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.0000000Z"),
        "dataVersion": "1",
        "data": body,
    }


def in_cloud_event(body: object, **extensions: object) -> dict[str, Any]:
    return {**SPEC, "id": os.urandom(8).hex(), "time": datetime.now(UTC).isoformat(), "data": body, **extensions}


def alert(name: str, condition: str = "Fired", **more: Any) -> dict[str, Any]:
    """An alert of the rule `alarm-<action>`, under an id made of the name."""
    rule = f"alarm-{name.split('/')[0]}"
    return notification(condition, name, alertRule=rule, context=metric({"endpoint": "alarm"}), **more)


def found(platform: Platform, name: str) -> dict[str, Any]:
    """The alert as the list shows it."""
    listed = platform.client.each("alerts", "alerts", limit=200)
    return next(each for each in listed if each["alert_id"].endswith(f"/{name}"))


def response(platform: Platform, name: str, *, wanted: str = "done") -> dict[str, Any]:
    """What the pipeline did about it, once it has."""

    def look() -> dict[str, Any] | None:
        (one,) = found(platform, name)["responses"]
        return one if one["state"] == wanted else None

    return eventually(look, 30, lambda: f"{found(platform, name)}\n{platform.log()[-3000:]}")


# ------------------------------------------------------------------------------------------------ the main job
def test_retrain_comes_through_every_door_and_trains_once(platform: Platform) -> None:
    before = len(platform.status("alarm")["runs"])
    body = alert("retrain/1")
    status, told = webhook(platform, body)
    assert (status, told["repeated"], told["state"]) == (202, False, "fired")
    assert "start" not in told
    assert platform.client.get(f"alerts/{told['id']}")["alert_id"] == body["data"]["essentials"]["alertId"]
    with pytest.raises(Answered, match="no alert"):
        platform.client.get(f"alerts/{'0' * 32}")
    assert webhook(platform, body)[1]["repeated"]
    assert event_grid(platform, in_event_grid(body), in_cloud_event(body), in_event_grid(body["data"])) == 202
    assert response(platform, "retrain/1")["detail"] == "asked for a run"
    eventually(
        lambda: len(platform.status("alarm")["runs"]) == before + 1 and platform.status("alarm")["live_run"] is None,
        60,
        platform.log,
    )
    # Resolved starts nothing, whichever door it comes through.
    assert webhook(platform, alert("retrain/1", "Resolved"))[1]["state"] == "resolved"
    event_grid(platform, in_event_grid(alert("retrain/1", "Resolved")))
    run = platform.client.get(f"pipelines/alarm/runs/{platform.status('alarm')['runs'][0]['run']}")
    assert run["cause"]["door"] == "alert" and run["cause"]["id"] == body["data"]["essentials"]["alertId"]
    assert len(platform.status("alarm")["runs"]) == before + 1


def test_pause_holds_until_its_alert_is_resolved(platform: Platform) -> None:
    assert event_grid(platform, in_event_grid(alert("pause/1"))) == 202
    eventually(lambda: platform.status("alarm")["control"]["paused"], 30, platform.log)
    assert "alert rule 'alarm-pause'" in platform.status("alarm")["trouble"]
    status, _ = send(
        platform,
        f"/api/v1/pipelines/alarm/train?code={platform.connection['function_key']}",
        {},
    )
    assert status == 409
    webhook(platform, alert("pause/1", "Resolved"))
    eventually(lambda: not platform.status("alarm")["control"]["paused"], 30, platform.log)
    assert response(platform, "pause/1", wanted="ended")


def test_rollback_puts_the_champion_before_back(platform: Platform) -> None:
    assert platform.status("alarm")["champion"] == 2
    webhook(platform, alert("rollback/1"))
    eventually(lambda: platform.status("alarm")["champion"] == 1, 30, platform.log)
    webhook(platform, alert("rollback/2"))
    assert "no earlier champion" in response(platform, "rollback/2", wanted="refused")["detail"]
    assert platform.status("alarm")["champion"] == 1


def test_the_official_test_notification_is_taken_as_any_alert(platform: Platform) -> None:
    status, told = webhook(platform, sample("common_alert.metric.fired.test_action"))
    assert (status, told["test"]) == (202, True)
    assert response(platform, "12345678-1234-1234-1234-1234567890ab")["action"] == "notify"


@pytest.mark.parametrize(
    ("name", "context", "essentials"),
    [
        ("other/log-v2", log_v2({"endpoint": "alarm"}), {"signalType": "Log", "monitoringService": "Log Alerts V2"}),
        ("other/log-v1", log_v1("Log Analytics", {"Computer": "c"}), {"signalType": "Log"}),
        (
            "other/health",
            activity(2, title="Outage"),
            {"signalType": "ActivityLog", "monitoringService": "ServiceHealth"},
        ),
    ],
)
def test_an_alert_that_no_rule_fits_is_kept_and_shown(
    platform: Platform, name: str, context: dict[str, Any], essentials: dict[str, Any]
) -> None:
    body = notification(id_=name, context=context, alertRule="somebody-elses", **essentials)
    assert webhook(platform, body)[0] == 202
    assert found(platform, name)["responses"] == []


# ------------------------------------------------------------------------------------------------ what goes wrong
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "the alert is a list; wanted an object in the common alert schema"),
        (b'{"schemaId": "Microsoft.Insights/activityLogs"}', "turn the common alert schema on for this receiver"),
        (b'{"data": {"essentials": {"alertId": "x"}}}', "monitorCondition is missing; wanted Fired or Resolved"),
    ],
)
def test_a_body_that_is_no_alert_is_refused_with_what_was_wanted(platform: Platform, body: bytes, says: str) -> None:
    status, told = webhook(platform, body)
    assert status == 400
    assert says in told["detail"]


def test_a_body_that_is_too_large_is_refused(platform: Platform) -> None:
    assert webhook(platform, b" " * (600 * 1024))[0] == 413


def test_an_event_that_is_no_alert_is_taken_and_what_is_one_beside_it_too(platform: Platform) -> None:
    events = [in_event_grid({"x": 1}), in_cloud_event(alert("notify/1")), in_cloud_event(None), in_cloud_event("text")]
    assert event_grid(platform, *events) == 202
    assert response(platform, "notify/1")["detail"] == "told as AlertReceived"


def test_an_alert_that_came_round_too_often_is_refused_and_seen_in_the_status(platform: Platform) -> None:
    webhook(platform, alert("notify/2"), **{"x-dropforge-hops": "3"})
    event_grid(platform, in_cloud_event(alert("notify/3"), causationid="0" * 32 + ".4"))
    for name in ("notify/2", "notify/3"):
        assert "DROPFORGE_MAX_HOPS is 2" in response(platform, name, wanted="refused")["detail"]
    noted = platform.status("alarm")["control"]["refused"]
    assert len([each for each in noted if "notify/" in each["what"]]) == 2


@pytest.mark.parametrize("key", ["", "?code=wrong"])
def test_the_door_stays_shut_without_its_key(platform: Platform, key: str) -> None:
    before = len(list(platform.client.each("alerts", "alerts", limit=200)))
    assert send(platform, f"/api/v1/alerts{key}", alert("retrain/9"))[0] == 401
    assert len(list(platform.client.each("alerts", "alerts", limit=200))) == before


def test_the_rehearsal_sees_what_was_recorded(platform: Platform) -> None:
    told = platform.client.get("rules/dry-run", pipeline="alarm", days=1)
    (one,) = told["pipelines"]
    assert one["events"]["alerts"] >= 5 and one["events"]["unmatched_alerts"] >= 3
    assert [each["action"] for each in one["rules"]] == ["retrain", "rollback", "pause", "notify", "notify"]
    assert [each["matched"] for each in one["rules"]][:3] == [1, 2, 1]


# ------------------------------------------------------------------------------------------------ kills
def test_alerts_that_come_while_the_host_is_killed_are_answered_once(tmp_path: Path) -> None:
    with Platform(tmp_path / "state") as running:
        pipeline = tmp_path / "alarm"
        pipeline.mkdir()
        text = (COIN / "pipeline.yaml").read_text().replace("name: coin", "name: alarm")
        (pipeline / "pipeline.yaml").write_text(text + RULES)
        (pipeline / "train.py").write_text("raise SystemExit(1)")
        running.client.apply("alarm", pipeline)
        names = [f"notify/{number}" for number in range(30)]
        for number, name in enumerate(names):
            assert webhook(running, alert(name))[0] == 202
            if number % 10 == 5:
                running.kill()
                running.start()
                running.ready()
        for name in names:
            assert webhook(running, alert(name))[1]["repeated"]
            response(running, name)
        # Told at least once, each under one id.
        lines = [
            json.loads(line) for line in (tmp_path / "state" / "journal" / "events.jsonl").read_text().splitlines()
        ]
        told = {line["id"] for line in lines if line["type"].endswith("AlertReceived")}
        assert len(told) == len(names)
