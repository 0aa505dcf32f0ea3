"""Event Grid's events through the Service Bus queue `events` on the whole platform, sent with Azure's own SDK."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus import ServiceBusClient, ServiceBusMessage, ServiceBusSubQueue

from dropforge.adapters.local.drops import LocalDrops
from dropforge.adapters.local.ledger import SqliteLedger
from dropforge.domain.blobs import BlobRef
from dropforge.host.storage_events import ACCOUNT, CONTAINER
from dropforge.steps import books
from tests.e2e.hosting import PAYLOADS
from tests.e2e.machine import Platform, eventually, throws
from tests.e2e.test_platform import pipeline

# azure-servicebus leaves a socket unclosed when a connection cannot be made.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

NEVER = "0 0 0 1 1 *"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The platform, which nobody but the queue tells of files and runs."""
    silent = {"DROPFORGE_STORAGE_EVENTS_TO": ",", "DROPFORGE_RUN_EVENTS_TO": ",", "DROPFORGE_RUN_POLL_SECONDS": "3600"}
    state = tmp_path_factory.mktemp("queued") / "state"
    with Platform(state, **silent, DROPFORGE_RECONCILE_SCHEDULE=NEVER) as running:
        eventually(lambda: running.connection.get("service_bus"), 20, running.log)
        yield running


def send(platform: Platform, *bodies: object) -> None:
    """As Event Grid does: one event in a message, under an id that is the event's only by chance."""
    with (
        ServiceBusClient.from_connection_string(platform.connection["service_bus"]) as client,
        client.get_queue_sender("events") as sender,
    ):
        for body in bodies:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers: dict[str | bytes, Any] = {"aeg-event-type": "Notification", "aeg-subscription-name": "DROPFORGE"}
            sender.send_messages(ServiceBusMessage(raw, message_id=str(uuid.uuid4()), application_properties=headers))


def dead_letters(platform: Platform) -> list[tuple[str | None, str | None]]:
    with (
        ServiceBusClient.from_connection_string(platform.connection["service_bus"]) as client,
        client.get_queue_receiver("events", sub_queue=ServiceBusSubQueue.DEAD_LETTER) as receiver,
    ):
        return [(each.dead_letter_reason, each.dead_letter_error_description) for each in receiver.peek_messages(100)]


def sample(name: str, **data: Any) -> dict[str, Any]:
    """An event as Microsoft's page prints it, about something else."""
    found: dict[str, Any] = json.loads((PAYLOADS / name).read_text())[0]
    return {**found, "data": {**found["data"], **data}}


def test_files_and_runs_that_only_the_queue_tells_of_become_a_model_once(platform: Platform, tmp_path: Path) -> None:
    platform.client.apply("queued", pipeline(tmp_path, "queued"))
    path = throws(tmp_path, 0, days=14)
    platform.drop("queued/", path)
    url = BlobRef(ACCOUNT, CONTAINER, f"queued/{path.name}").url
    etag = LocalDrops(platform.state / "drops").look(url)
    assert etag is not None
    about = {"url": url, "eTag": etag.etag, "contentLength": etag.size_bytes}
    grid = sample("eventgrid.blob_created.putblocklist.json", sequencer="0" * 31 + "2", **about)
    cloud = sample("cloudevents.blob_created.putblocklist.json", sequencer="0" * 31 + "2", **about)
    older = sample("eventgrid.blob_deleted.json", url=url, sequencer="0" * 31 + "1")
    send(platform, older, grid, cloud, grid, older, cloud)

    def waiting_run() -> str | None:
        run = platform.status("queued")["live_run"]
        return str(run) if run and (platform.state / "runs" / run / "exit.json").exists() else None

    run = eventually(waiting_run, 60, platform.log)
    ended = sample("eventgrid.aml.run_completed.json", runId=run)
    send(platform, ended, sample("cloudevents.aml.run_status_changed.json", runId=run, runStatus="Completed"), ended)
    told = platform.settled("queued", 1)
    assert (told["champion"], told["files"]["accepted"], len(told["runs"])) == (1, 1, 1)
    ledger = SqliteLedger(platform.state / "ledger.db")
    found = [row.value["state"] for row in books.every(ledger, "p.queued", "arrival/")]
    ledger.close()
    assert found == ["accepted"]


def test_nonsense_is_put_aside_with_its_reason_and_the_samples_of_others_are_not(platform: Platform) -> None:
    others = [json.loads(path.read_text()) for path in sorted(PAYLOADS.glob("*.aml.*.json"))]
    send(platform, b"\xff no json", *others, {"eventType": "Contoso.Made", "id": "1"}, {"id": "2"})
    put_aside = eventually(lambda: found if len(found := dead_letters(platform)) == 2 else None, 20, platform.log)
    assert [reason for reason, _ in put_aside] == ["BadEvent"] * 2
    assert "is not JSON" in str(put_aside[0][1]) and "needs 'eventType' as text" in str(put_aside[1][1])
    ledger = SqliteLedger(platform.state / "ledger.db")
    kept = [row.value["error"]["type"] for row in books.every(ledger, books.COMMANDS, "rejected/")]
    ledger.close()
    assert kept == ["BadEvent"] * 2
