"""From the POST of a storage event to the 202 that says it is durable, at a steady rate. Run: `python -m benchmarks.blob_events`.

Each event is a request of its own for a new blob, sent when its time has come whether or not those before it are answered;
its time begins when it was due. The platform runs as `dropforge up` does. It takes files in meanwhile, or not:

    door     nothing is taken in: the batch is not due (what the door itself costs)
    intake   the blobs are there, and every five hundred of them are cut, checked and written into the table (what
             the door costs while the same process does its work; beyond what two cores can do, intake falls behind)
    raw      the same host with a function that does nothing: the limit

The last line is one JSON object; times in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dropforge.adapters.local.finished import etag_of
from dropforge.adapters.local.ledger import SqliteLedger
from dropforge.client import Client, connect
from dropforge.domain.errors import Unavailable
from dropforge.steps import books

ROOT = Path(__file__).parent.parent
CONNECTIONS = 64
NEVER = "0 0 0 1 1 *"
EMPTY_APP = """
import azure.functions as func

app = func.FunctionApp()


@app.event_grid_trigger(arg_name="event")
async def on_blob_event(event: func.EventGridEvent) -> None:
    pass
"""
PIPELINE = """
name: {name}
dataset:
  format: csv
  label: y
batching: {{quiet_period: 10m, max_wait: 1h, max_files: {max_files}}}
training:
  command: python train.py
  min_rows: 1000000
evaluation: {{metric: log_loss}}
"""


@dataclass(frozen=True)
class Door:
    """A running host's webhook."""

    host: str
    port: int
    path: str
    pid: int


@dataclass(frozen=True)
class Figures:
    """Milliseconds from the moment an event was due to its answer."""

    p50: float
    p99: float
    worst: float
    # What an event costs the host's processor, everything it does meanwhile included.
    cpu: float
    failed: int


# ------------------------------------------------------------------------------------------------ events
def event(name: str, etag: str, size: int) -> bytes:
    """The body of one delivery."""
    told = {
        "topic": "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/local",
        "subject": f"/blobServices/default/containers/drops/blobs/{name}",
        "eventType": "Microsoft.Storage.BlobCreated",
        "id": str(uuid.uuid4()),
        "eventTime": "2026-01-31T12:00:00.1234567Z",
        "dataVersion": "",
        "metadataVersion": "1",
        "data": {
            "api": "PutBlob",
            "clientRequestId": str(uuid.uuid4()),
            "requestId": str(uuid.uuid4()),
            "eTag": etag,
            "contentType": "text/csv",
            "contentLength": size,
            "blobType": "BlockBlob",
            "url": f"https://local.blob.localhost/drops/{name}",
            "sequencer": f"{time.time_ns():032x}",
            "storageDiagnostics": {"batchId": str(uuid.uuid4())},
        },
    }
    return json.dumps([told]).encode()


def invented(pipeline: str, count: int) -> list[bytes]:
    """Events of blobs that nobody will look at."""
    mark = uuid.uuid4().hex[:8]
    return [event(f"{pipeline}/{mark}-{number:06}.csv", f"0x{number:X}", 20) for number in range(count)]


def written(root: Path, pipeline: str, count: int) -> list[bytes]:
    """Events of small files that lie there."""
    folder = root / pipeline
    folder.mkdir(parents=True, exist_ok=True)
    told = []
    for number in range(count):
        path = folder / f"{number:06}.csv"
        path.write_text(f"x,y\n{number},0\n{number},1\n")
        stat = path.stat()
        told.append(event(f"{pipeline}/{path.name}", etag_of(stat), stat.st_size))
    return told


# ------------------------------------------------------------------------------------------------ load
async def measure(door: Door, bodies: list[bytes], rate: float) -> Figures:
    """Send the bodies at that rate."""
    queue: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()
    times: list[float] = []
    failed = 0

    async def send() -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection(door.host, door.port)
        while (item := await queue.get()) is not None:
            due, body = item
            head = f"POST {door.path} HTTP/1.1\r\nHost: {door.host}\r\naeg-event-type: Notification\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = answer.partition(b"content-length:")[2].partition(b"\r\n")[0].strip()
            await reader.readexactly(int(length or b"0"))
            times.append(time.perf_counter() - due)
            failed += b" 202 " not in answer.partition(b"\r\n")[0]
        writer.close()

    senders = [asyncio.create_task(send()) for _ in range(CONNECTIONS)]
    spent = cpu_seconds(door.pid)
    begun = time.perf_counter() + 0.1
    for number, body in enumerate(bodies):
        due = begun + number / rate
        if (pause := due - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        queue.put_nowait((due, body))
    for _ in senders:
        queue.put_nowait(None)
    await asyncio.gather(*senders)
    cuts = statistics.quantiles(times, n=100)
    cpu = round(1000 * (cpu_seconds(door.pid) - spent) / len(bodies), 2)
    return Figures(*(round(1000 * value, 1) for value in (cuts[49], cuts[98], max(times))), cpu, failed)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ------------------------------------------------------------------------------------------------ hosts
@contextmanager
def running(state: Path, command: list[str]) -> Iterator[None]:
    """The host as a process of its own."""
    state.mkdir(parents=True)
    mine = ("DROPFORGE", "Azure", "MLFLOW")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(mine)}
    # The benchmark tells of the files; nothing else looks for them.
    environment |= {"DROPFORGE_STORAGE_EVENTS_TO": "", "DROPFORGE_SWEEP_SCHEDULE": NEVER}
    with (state / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--state", str(state), "--port", "0"], env=environment, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        while not (state / "connection.json").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the host did not start:\n{(state / 'up.log').read_text()[-2000:]}")
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def door_of(state: Path) -> Door:
    told = json.loads((state / "connection.json").read_text())
    url = urlsplit(told["url"])
    path = f"/runtime/webhooks/EventGrid?functionName=on_blob_event&code={told['system_keys']['eventgrid_extension']}"
    return Door(url.hostname or "", url.port or 0, path, told["pid"])


def apply(state: Path, folder: Path, name: str, max_files: int) -> Client:
    """A pipeline that takes files from its own folder, and trains nothing."""
    client = Client(connect(state))
    for _ in range(600):
        try:
            client.get("health")
            break
        except Unavailable:
            time.sleep(0.05)
    (folder / name).mkdir()
    (folder / name / "pipeline.yaml").write_text(PIPELINE.format(name=name, max_files=max_files))
    (folder / name / "train.py").write_text("")
    client.apply(name, folder / name)
    return client


def recorded(state: Path, name: str) -> int:
    ledger = SqliteLedger(state / "ledger.db")
    try:
        return sum(1 for _ in books.every(ledger, books.partition_of(name), "arrival/"))
    finally:
        ledger.close()


def versions(state: Path, name: str) -> int:
    ledger = SqliteLedger(state / "ledger.db")
    try:
        return int(books.head(ledger, books.partition_of(name)).value["version"])
    finally:
        ledger.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=500, help="events per second")
    parser.add_argument("--seconds", type=float, default=20)
    asked = parser.parse_args()
    count = int(asked.rate * asked.seconds)
    with tempfile.TemporaryDirectory(prefix="dropforge-bench-") as text:
        folder = Path(text)
        (folder / "empty").mkdir()
        (folder / "empty" / "function_app.py").write_text(EMPTY_APP)
        (folder / "empty" / "host.json").write_text('{"version": "2.0"}')
        bare, state = folder / "bare", folder / "state"
        up = [sys.executable, "-m", "dropforge.cli", "up", "--app", str(ROOT)]
        found: dict[str, Figures] = {}

        def go(kind: str, at: Path, bodies: list[bytes]) -> None:
            found[kind] = asyncio.run(measure(door_of(at), bodies, asked.rate))
            print(f"{kind:<8}{found[kind]}", flush=True)

        with running(bare, [sys.executable, "-m", "dropforge.host", "--app", str(folder / "empty")]):
            asyncio.run(measure(door_of(bare), invented("warm", 500), asked.rate))
            go("raw", bare, invented("raw", count))
        with running(state, up):
            # Held, so that nothing is taken in: what is measured is the door.
            apply(state, folder, "door", 1000).post("pipelines/door/pause", reason="benchmark")
            asyncio.run(measure(door_of(state), invented("door", 500), asked.rate))
            go("door", state, invented("door", count))
            assert recorded(state, "door") == count + 500, "an event that was answered is not in the ledger"
            apply(state, folder, "intake", 500)
            bodies = written(state / "drops", "intake", count + 500)
            # The first batch loads what checks and writes tables.
            asyncio.run(measure(door_of(state), bodies[:500], asked.rate))
            while not versions(state, "intake"):
                time.sleep(0.1)
            go("intake", state, bodies[500:])
            assert recorded(state, "intake") == count + 500, "an event that was answered is not in the ledger"
    figures: dict[str, Any] = {
        f"{kind}_{key}_ms": getattr(each, key) for kind, each in found.items() for key in ("p50", "p99", "cpu")
    }
    figures |= {
        "failed": sum(each.failed for each in found.values()),
        "p99_of_raw": round(found["door"].p99 / found["raw"].p99, 2),
        "events_per_second": asked.rate,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
