"""Two hundred events for fifty files, duplicated, reordered and dropped, through the real webhook."""

from __future__ import annotations

import json
import os
import random
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dropforge.adapters.local.finished import etag_of
from dropforge.adapters.local.ledger import SqliteLedger
from dropforge.steps import books
from tests.e2e.machine import COIN, Platform, eventually, sources_of, throws

FILES, EVENTS, NEVER_TOLD = 50, 200, 5


def event(root: Path, path: Path) -> dict[str, Any]:
    """A BlobCreated event for a file, in Event Grid's schema."""
    stat = path.stat()
    name = path.relative_to(root).as_posix()
    return {
        "topic": "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/local",
        "subject": f"/blobServices/default/containers/drops/blobs/{name}",
        "eventType": "Microsoft.Storage.BlobCreated",
        "id": os.urandom(8).hex(),
        "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.0000000Z"),
        "dataVersion": "",
        "metadataVersion": "1",
        "data": {
            "api": "PutBlob",
            "eTag": etag_of(stat),
            "contentType": "text/csv",
            "contentLength": stat.st_size,
            "blobType": "BlockBlob",
            "url": f"https://local.blob.localhost/drops/{name}",
            "sequencer": "0" * 32,
        },
    }


def test_every_file_is_in_exactly_one_version(tmp_path: Path) -> None:
    state = tmp_path / "state"
    pipeline = tmp_path / "coin"
    pipeline.mkdir()
    # The tests' own sender announces the files; the host's watcher is off.
    text = (COIN / "pipeline.yaml").read_text()
    text = text.replace("quiet_period: 10m", "quiet_period: 1s").replace("max_files: 3", "max_files: 20")
    # What is trained does not matter here: no version has enough rows.
    text = text.replace("command: python train.py", "command: python train.py\n  min_rows: 1000000")
    (pipeline / "pipeline.yaml").write_text(text)
    (pipeline / "train.py").write_text("raise SystemExit(1)")
    chance = random.Random(7)
    with Platform(state, DROPFORGE_STORAGE_EVENTS_TO="", DROPFORGE_SWEEP_SCHEDULE="*/5 * * * * *") as platform:
        platform.client.apply("coin", pipeline)
        for number in range(FILES):
            platform.drop("coin/", throws(tmp_path / "files", number, rows=10 + number))
        drops = sorted((state / "drops" / "coin").iterdir())
        told = [event(state / "drops", path) for path in drops[:-NEVER_TOLD]]
        events = told + [chance.choice(told) for _ in range(EVENTS - len(told))]
        chance.shuffle(events)
        key = platform.connection["system_keys"]["eventgrid_extension"]
        url = f"{platform.connection['url']}/runtime/webhooks/EventGrid?functionName=on_blob_event&code={key}"

        def send(batch: list[dict[str, Any]]) -> int:
            headers = {"content-type": "application/json", "aeg-event-type": "Notification"}
            request = urllib.request.Request(url, json.dumps(batch).encode(), headers)
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)

        batches = [events[start : start + 8] for start in range(0, len(events), 8)]
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(send, batches)) == {202}
        eventually(lambda: platform.status("coin")["files"]["accepted"] == FILES, 60, platform.log)
        eventually(lambda: not any(platform.status("coin")["busy"].values()), 30, platform.log)
        sources = sources_of(state / "tables" / "coin")
    ledger = SqliteLedger(state / "ledger.db")
    arrivals = [row.value for row in books.every(ledger, "p.coin", "arrival/")]
    assert Counter(each["url"] for each in arrivals).most_common(1)[0][1] == 1
    assert len(arrivals) == FILES
    accepted = [id_ for row in books.every(ledger, "p.coin", "batch/") for id_ in row.value["accepted"]]
    ledger.close()
    assert sorted(accepted) == sorted(each["id"] for each in arrivals)
    assert sorted(Counter(sources).values()) == [10 + number for number in range(FILES)]


def test_trouble_with_storage_is_shown_and_healed_by_the_sweep(tmp_path: Path) -> None:
    with Platform(tmp_path / "state") as platform:
        pipeline = tmp_path / "coin"
        pipeline.mkdir()
        text = (COIN / "pipeline.yaml").read_text().replace("max_files: 3", "max_files: 1")
        (pipeline / "pipeline.yaml").write_text(text)
        (pipeline / "train.py").write_text((COIN / "train.py").read_text())
        platform.client.apply("coin", pipeline)
        # Where the table should be lies a file.
        in_the_way = platform.state / "tables"
        in_the_way.write_text("not a folder")
        platform.drop("coin/", throws(tmp_path / "files", 0, days=12))
        trouble = eventually(lambda: platform.status("coin")["trouble"], 60, platform.log)
        assert trouble.startswith("intake: Activity function 'write_version' failed: Unavailable: ")
        assert "$type" not in trouble
        assert platform.client.get("health") == {"status": "ok"}
        in_the_way.unlink()
        told = platform.settled("coin", 1, 60)
        assert told["champion"] == 1
        eventually(lambda: platform.status("coin")["trouble"] is None, 20, platform.log)
