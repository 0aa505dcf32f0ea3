"""The local Event Grid topic: the real publisher client reaches the app's doors through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import HttpResponseError
from azure.core.messaging import CloudEvent
from azure.eventgrid import EventGridEvent, EventGridPublisherClient

from tests.e2e.machine import COIN, Platform, eventually, throws
from tests.e2e.test_events import event


def publisher(platform: Platform, key: str | None = None) -> EventGridPublisherClient:
    told = platform.connection
    credential = AzureKeyCredential(key or told["system_keys"]["eventgrid_extension"])
    return EventGridPublisherClient(told["event_grid_topic"], credential, retry_total=0)


def test_a_published_storage_event_becomes_one_arrival_in_either_schema(tmp_path: Path) -> None:
    quiet = {
        "DROPFORGE_STORAGE_EVENTS_TO": "",
        "DROPFORGE_SWEEP_SCHEDULE": "0 0 0 1 1 *",
        "DROPFORGE_RECONCILE_SCHEDULE": "0 0 0 1 1 *",
    }
    with Platform(tmp_path / "state", **quiet) as platform:
        platform.client.apply("coin", COIN)
        platform.drop("coin/", throws(tmp_path / "files", 0))
        root = platform.state / "drops"
        (file,) = (root / "coin").iterdir()
        told: dict[str, Any] = event(root, file)
        with pytest.raises(HttpResponseError) as refused, publisher(platform, "wrong") as client:
            client.send(EventGridEvent(told["subject"], told["eventType"], told["data"], "1"))
        assert refused.value.status_code == 401
        assert platform.status("coin")["files"]["pending"] == 0
        with publisher(platform) as client:
            client.send([EventGridEvent(told["subject"], told["eventType"], told["data"], "1")] * 3)
            client.send(
                CloudEvent(
                    source=told["topic"], type=told["eventType"], data=told["data"], subject=told["subject"], id="again"
                )
            )
        eventually(lambda: platform.status("coin")["files"]["pending"] == 1, 20, platform.log)
