"""Run events: an ended run is announced once, as Azure Machine Learning would."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dropforge.host.announcer import Announcer, Delivered, Event
from dropforge.host.run_events import RunEvents, run_event

NOW = datetime(2026, 11, 22, 12, 0, 0, 123456, UTC)


@pytest.mark.parametrize(
    ("exit_json", "kind", "status"),
    [
        ('{"run": "r", "state": "succeeded", "exit_code": 0}', "RunCompleted", "Completed"),
        ('{"run": "r", "state": "failed", "exit_code": 10}', "RunStatusChanged", "Failed"),
        ('{"run": "r", "state": "cancelled", "exit_code": null}', "RunStatusChanged", "Canceled"),
        ('{"state": []}', "RunStatusChanged", "Failed"),
        ("{}", "RunStatusChanged", "Failed"),
        ("not json", "RunStatusChanged", "Failed"),
        ("[]", "RunStatusChanged", "Failed"),
    ],
)
def test_how_a_run_ended(exit_json: str, kind: str, status: str) -> None:
    event = run_event("run-1", exit_json, NOW)
    assert event["eventType"] == f"Microsoft.MachineLearningServices.{kind}"
    assert event["data"]["runStatus"] == status


def test_the_event_has_the_fields_of_the_official_sample() -> None:
    event = run_event("run-1", '{"state": "succeeded"}', NOW)
    assert set(event) == {
        "topic", "subject", "eventType", "eventTime", "id", "data", "dataVersion", "metadataVersion",
    }  # fmt: skip
    assert {"experimentId", "experimentName", "runId", "runType", "runTags", "runProperties"} <= set(event["data"])
    assert event["data"]["runId"] == "run-1"
    assert event["subject"] == "experiments/local/runs/run-1"
    assert event["eventTime"] == "2026-11-22T12:00:00.1234560Z"
    assert event["id"] == run_event("run-1", "{}", datetime.now(UTC))["id"]


def test_each_ended_run_is_announced_once_also_across_restarts(tmp_path: Path) -> None:
    told: list[str] = []

    async def post(subscriber: str, event: Event, attempt: int) -> bool:
        told.append(event["data"]["runId"])
        return True

    def end(run: str) -> None:
        (tmp_path / "runs" / run).mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / run / "exit.json").write_text(json.dumps({"state": "succeeded"}))

    async def life() -> None:
        announcer = Announcer(["f"], Delivered(tmp_path / "db"), post)
        events = RunEvents(tmp_path / "runs", announcer)
        for _ in range(2):
            assert await events.look() == 0.1
            await asyncio.sleep(0.02)
        await announcer.close()

    asyncio.run(life())
    assert told == []
    (tmp_path / "runs" / "still-running").mkdir(parents=True)
    (tmp_path / "runs" / "a-file").write_text("no run")
    end("one")
    asyncio.run(life())
    end("two")
    asyncio.run(life())
    assert told == ["one", "two"]
