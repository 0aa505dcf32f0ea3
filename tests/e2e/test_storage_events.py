"""Files in a real Blob service (Azurite), written with Microsoft's client, on their way into a dataset version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import ContainerClient

from dropforge.adapters.local.ledger import SqliteLedger
from dropforge.steps import arrivals, books
from tests.azurite import ACCOUNT, Azurite, azurite
from tests.e2e.hosting import PAYLOADS
from tests.e2e.machine import COIN, Platform, eventually, sources_of, throws

__all__ = ["azurite"]


def apply_coin(platform: Platform, folder: Path, max_files: int = 1) -> None:
    """A pipeline whose every file is a dataset version, and which trains nothing."""
    pipeline = folder / "coin"
    pipeline.mkdir()
    text = (COIN / "pipeline.yaml").read_text().replace("max_files: 3", f"max_files: {max_files}")
    text = text.replace("command: python train.py", "command: python train.py\n  min_rows: 1000000")
    (pipeline / "pipeline.yaml").write_text(text)
    (pipeline / "train.py").write_text("raise SystemExit(1)")
    platform.client.apply("coin", pipeline)


@pytest.fixture
def container(azurite: Azurite) -> Iterator[ContainerClient]:
    with azurite.container("drops") as client:
        yield client


@pytest.fixture
def platform(tmp_path: Path, azurite: Azurite, container: ContainerClient) -> Iterator[Platform]:
    """The platform, with its drops in the emulator; nothing tells it of files but the test and reconcile."""
    never = "0 0 0 1 1 *"
    environment = {"DROPFORGE_DROPS": "azure", "DROPFORGE_STORAGE": azurite.connection_string}
    with Platform(tmp_path / "state", **environment, DROPFORGE_RECONCILE_SCHEDULE=never) as platform:
        apply_coin(platform, tmp_path)
        yield platform


def tell(platform: Platform, body: object) -> int:
    key = platform.connection["system_keys"]["eventgrid_extension"]
    url = f"{platform.connection['url']}/runtime/webhooks/EventGrid?functionName=on_blob_event&code={key}"
    headers = {"content-type": "application/json", "aeg-event-type": "Notification"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=30) as answer:
        return int(answer.status)


def sample(name: str, **data: Any) -> dict[str, Any]:
    """An event as Microsoft's page prints it, about another blob."""
    found: dict[str, Any] = json.loads((PAYLOADS / name).read_text())[0]
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.1234567Z")
    key = "time" if "specversion" in found else "eventTime"
    return {**found, "id": str(uuid.uuid4()), key: when, "data": {**found["data"], **data}}


def files(platform: Platform, state: str) -> int:
    counted: int = platform.status("coin")["files"][state]
    return counted


@pytest.mark.parametrize("envelope", ["eventgrid", "cloudevents"])
def test_an_uploaded_blob_becomes_a_dataset_version(
    platform: Platform, container: ContainerClient, tmp_path: Path, envelope: str
) -> None:
    path = throws(tmp_path / "files", 0, rows=20)
    with path.open("rb") as reader:
        done = container.upload_blob("coin/day 1.csv", reader)
    told = sample(
        f"{envelope}.blob_created.putblocklist.json",
        url=done.url,
        eTag=done.get_blob_properties().etag,
        contentLength=path.stat().st_size,
    )
    assert tell(platform, [told, told]) == 202
    assert tell(platform, told if envelope == "cloudevents" else [told]) == 202
    eventually(lambda: files(platform, "accepted") == 1, 60, platform.log)
    eventually(lambda: not any(platform.status("coin")["busy"].values()), 60, platform.log)
    assert sources_of(platform.state / "tables" / "coin") != []
    ledger = SqliteLedger(platform.state / "ledger.db")
    found = [row.value for row in books.every(ledger, "p.coin", "arrival/")]
    ledger.close()
    # Its name does not depend on the emulator's port.
    assert [each["url"] for each in found] == [f"https://{ACCOUNT}.blob.localhost/drops/coin/day%201.csv"]


def test_the_samples_of_other_accounts_and_nonsense_are_answered_and_bring_nothing(platform: Platform) -> None:
    for name in [*sorted(path.name for path in PAYLOADS.glob("*blob*.json")), "eventgrid.directory_renamed.adls.json"]:
        assert tell(platform, json.loads((PAYLOADS / name).read_text())) == 202
    assert tell(platform, [sample("eventgrid.blob_deleted.json", url="http://169.254.169.254/x")]) == 202
    assert tell(platform, [{"id": "1", "eventType": "Contoso.Made", "data": None}] * 500) == 202
    assert sum(platform.status("coin")["files"].values()) == 0
    ledger = SqliteLedger(platform.state / "ledger.db")
    counts = ledger.get("storage", "counts")
    ledger.close()
    assert counts is not None
    assert (counts.value["unknown"], counts.value["misfit"], counts.value["unfinished"]) == (500, 1, 2)


def test_reconcile_finds_what_no_event_told_and_what_is_gone(
    tmp_path: Path, azurite: Azurite, container: ContainerClient
) -> None:
    environment = {"DROPFORGE_DROPS": "azure", "DROPFORGE_STORAGE": azurite.connection_string}
    with Platform(tmp_path / "state", **environment) as platform:
        apply_coin(platform, tmp_path)
        file = throws(tmp_path / "files", 0, rows=20)
        command = [sys.executable, "-m", "dropforge.cli", "drop", "coin", str(file), "--state", str(platform.state)]
        subprocess.run(command, env={**os.environ, **environment}, cwd=tmp_path / "files", check=True, timeout=60)
        eventually(lambda: files(platform, "accepted") == 1, 60, platform.log)
        eventually(lambda: platform.status("coin")["dataset"], 60, platform.log)
        container.delete_blob(f"coin/{file.name}")
        ledger = SqliteLedger(platform.state / "ledger.db")
        gone = eventually(lambda: list(arrivals.gone_of(ledger, "p.coin", 1)), 60, platform.log)
        ledger.close()
        assert [each["why"] for each in gone] == ["deleted"]
        assert platform.status("coin")["dataset"]["files"] == 1


def test_a_file_moved_and_taken_away_in_the_local_folder(tmp_path: Path) -> None:
    with Platform(tmp_path / "state") as platform:
        apply_coin(platform, tmp_path)
        platform.drop("coin/", throws(tmp_path / "files", 0, rows=20))
        eventually(lambda: platform.status("coin")["dataset"], 60, platform.log)
        folder = platform.state / "drops" / "coin"
        (dropped,) = folder.iterdir()
        dropped.rename(folder / "moved.csv")
        eventually(lambda: files(platform, "unchanged") == 1, 60, platform.log)
        (folder / "moved.csv").unlink()
        ledger = SqliteLedger(platform.state / "ledger.db")
        gone = eventually(lambda: list(arrivals.gone_of(ledger, "p.coin", 1)), 60, platform.log)
        ledger.close()
        assert [each["url"].rpartition("/")[2] for each in gone] == [dropped.name]
        eventually(lambda: not any(platform.status("coin")["busy"].values()), 60, platform.log)
        assert len(sources_of(platform.state / "tables" / "coin")) == 20


def test_an_array_of_five_thousand_is_taken_down_within_event_grids_patience(tmp_path: Path) -> None:
    with Platform(
        tmp_path / "state", DROPFORGE_STORAGE_EVENTS_TO="", DROPFORGE_SWEEP_SCHEDULE="0 0 0 1 1 *"
    ) as platform:
        apply_coin(platform, tmp_path, max_files=1000)
        platform.client.post("pipelines/coin/pause", reason="what is tested is the door")
        events = [
            sample(
                "eventgrid.blob_created.putblocklist.json",
                url=f"https://local.dfs.core.windows.net/drops/coin/{number:04}.csv",
                eTag=f'"0x{number:X}"',
            )
            for number in range(5000)
        ]
        begun = time.monotonic()
        assert tell(platform, events) == 202
        assert time.monotonic() - begun < 25
        assert files(platform, "pending") == 5000


def test_the_platform_does_not_start_without_the_account_it_should_read(tmp_path: Path) -> None:
    platform = Platform(tmp_path / "state", DROPFORGE_DROPS="azure")
    platform.start()
    with pytest.raises(AssertionError, match="DROPFORGE_STORAGE must name the storage account"):
        platform.ready()
    assert platform.stop() == 2
