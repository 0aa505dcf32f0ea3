"""The platform with the adapters of Azure, on one machine: the app in the embedded host, Azurite for the storage account, a
control plane that runs jobs as processes, and an inference server for each deployment of the managed endpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from ssl import create_default_context
from typing import Any

from azure.servicebus import ServiceBusClient, ServiceBusMessage

from dropforge.adapters.azure.places import ARTIFACTS, RUNS, SERVING, TABLES
from tests.azure.control_plane import ControlPlane, control_plane
from tests.azurite import ACCOUNT, Azurite, installed, running
from tests.e2e.machine import ROOT, Platform, eventually

ENDPOINT = "dropforge"
TRAIN_IMAGE, SERVE_IMAGE = "registry.example/dropforge-train:1", "registry.example/dropforge-serve:1"
CONTAINERS = ("drops", ARTIFACTS, TABLES, RUNS, SERVING)


class Cloud:
    """One storage account, one workspace, and the app over both."""

    def __init__(self, azurite: Azurite, plane: ControlPlane, folder: Path, **more: str) -> None:
        self.azurite = azurite
        self.plane = plane
        self.platform = Platform(
            folder / "state",
            **plane.environment(),
            DROPFORGE_ADAPTERS="azure",
            DROPFORGE_STORAGE=azurite.connection_string,
            DROPFORGE_AML_WORKSPACE=plane.workspace,
            DROPFORGE_AML_CLUSTER="gpu-cluster",
            DROPFORGE_TRAIN_IMAGE=TRAIN_IMAGE,
            DROPFORGE_AML_ENDPOINT=ENDPOINT,
            DROPFORGE_SERVE_IMAGE=SERVE_IMAGE,
            DROPFORGE_RUN_POLL_SECONDS="1",
            DROPFORGE_RECONCILE_SCHEDULE="*/5 * * * * *",
            **more,
        )
        self._folder = folder
        self._servers: dict[str, tuple[subprocess.Popen[bytes], str]] = {}
        self._delivered = 0
        self._over = threading.Event()
        self._nodes = threading.Thread(target=self._keep, daemon=True)

    def start(self) -> None:
        self.platform.start()
        self.platform.ready()
        eventually(lambda: self.platform.connection.get("service_bus"), 20, self.platform.log)
        self._nodes.start()

    def close(self) -> None:
        self._over.set()
        self._nodes.join(10)
        self.platform.stop()
        for server, _ in self._servers.values():
            server.kill()
            server.wait()

    # -------------------------------------------------------------------------------------------- what people do
    def drop(self, path: str, file: Path, *, told: bool = True) -> None:
        """Upload a file; and, unless the event gets lost, tell of it as Event Grid does, twice."""
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient.from_connection_string(self.azurite.connection_string) as service:
            done = service.get_blob_client("drops", path).upload_blob(file.read_bytes())
        event = {
            "specversion": "1.0",
            "id": str(uuid.uuid4()),
            "source": f"/subscriptions/0/resourceGroups/rg/providers/Microsoft.Storage/storageAccounts/{ACCOUNT}",
            "type": "Microsoft.Storage.BlobCreated",
            "subject": f"/blobServices/default/containers/drops/blobs/{path}",
            "time": "2026-11-01T12:00:00.0000000Z",
            "data": {
                "api": "PutBlob",
                "eTag": done["etag"],
                "contentLength": file.stat().st_size,
                "blobType": "BlockBlob",
                "url": f"https://{ACCOUNT}.blob.core.windows.net/drops/{path}",
                "sequencer": f"{time.time_ns():032x}",
            },
        }
        if told:
            self.tell(event, event)

    def tell(self, *events: dict[str, Any]) -> None:
        """Deliver to the queue of the app's events, as a subscription of Event Grid does."""
        with (
            ServiceBusClient.from_connection_string(self.platform.connection["service_bus"]) as client,
            client.get_queue_sender("events") as sender,
        ):
            for event in events:
                sender.send_messages(ServiceBusMessage(json.dumps(event), content_type="application/json"))

    def score(self, rows: list[dict[str, Any]], model: str) -> dict[str, Any]:
        """What the managed endpoint answers, through its own address and key."""
        key = self.plane.scoring_key(ENDPOINT)
        request = urllib.request.Request(
            f"{self.plane.url}/score/{ENDPOINT}/v2/models/{model}/infer",
            json.dumps({"rows": rows}).encode(),
            {"authorization": f"Bearer {key}", "content-type": "application/json"},
        )
        context = create_default_context(cafile=str(self.plane.ca_file))
        try:
            with urllib.request.urlopen(request, timeout=10, context=context) as answer:
                told: dict[str, Any] = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                containers = {name: text for name, text in self.logs().items() if name.startswith("containers/")}
                said = f"{error}: {error.read().decode()}"
            raise AssertionError(f"{said}\n{self.plane.endpoints[ENDPOINT]}\n{containers}") from None
        return told

    def logs(self) -> dict[str, str]:
        """All that the app, its flows, the jobs and the containers have logged, by file."""
        kept = [
            path for path in self._folder.rglob("*") if path.is_file() and path.suffix in (".log", ".txt", ".jsonl")
        ]
        return {path.relative_to(self._folder).as_posix(): path.read_text(errors="replace") for path in kept}

    # -------------------------------------------------------------------------------------------- what Azure does
    def _keep(self) -> None:
        """Machines for deployments, and run events on their way, until the end."""
        while not self._over.wait(0.1):
            for name, deployment in self.plane.deployments(ENDPOINT).items():
                if name not in self._servers:
                    self._serve(name, deployment)
            self._deliver()

    def _serve(self, name: str, deployment: dict[str, Any]) -> None:
        """The container of a deployment: the server, with the variables that the deployment gives it."""
        folder = self._folder / "containers" / name
        folder.mkdir(parents=True)
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("DROPFORGE", "Azure"))}
        given = deployment["properties"].get("environmentVariables", {})
        log = folder / "log.txt"
        with log.open("wb") as told:
            server = subprocess.Popen(
                [sys.executable, "-m", "dropforge.serving", "--port", "0", "--no-key", "--poll", "0.2"],
                cwd=ROOT,
                # The emulator is reached with a key, which a deployment is never given.
                env={**clean, **given, "DROPFORGE_STORAGE": self.azurite.connection_string, "TMPDIR": str(folder)},
                stdout=told,
                stderr=told,
            )
        url = eventually(lambda: _address(log), 30, log.read_text)
        self._servers[name] = (server, url)
        self.plane.serve(name, url, ENDPOINT)

    def _deliver(self) -> None:
        waiting = self.plane.events[self._delivered :]
        if waiting:
            self._delivered += len(waiting)
            self.tell(*waiting)


def _address(log: Path) -> str | None:
    for line in log.read_text(errors="replace").splitlines():
        _, found, url = line.partition(" listens on ")
        if found:
            return url.strip()
    return None


@contextmanager
def cloud(folder: Path, **more: str) -> Iterator[Cloud]:
    """An account and a workspace with nothing in them, and the app over them, with more settings."""
    with ExitStack() as stack:
        azurite = stack.enter_context(running(installed()))
        for name in CONTAINERS:
            stack.enter_context(azurite.container(name))
        made = Cloud(azurite, stack.enter_context(control_plane(azurite)), folder, **more)
        try:
            made.start()
            yield made
        finally:
            made.close()
