"""The inference server as a process of its own, serving from a storage account that comes and goes."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from azure.storage.blob import ContainerClient

from dropforge.adapters.azure.serving import BlobServing
from dropforge.domain.blobs import BlobRef
from dropforge.domain.endpoints import Deployment, Desired, ReplicaState
from tests.azurite import ACCOUNT, Azurite, azurite
from tests.unit.serving import onnx_models

__all__ = ["azurite"]

T = TypeVar("T")
WAIT_SECONDS = 30


def eventually(what: Callable[[], T | None]) -> T:
    """What it returns, once that is something."""
    until = time.monotonic() + WAIT_SECONDS
    while not (found := what()):
        assert time.monotonic() < until, f"still {found!r} after {WAIT_SECONDS} seconds"
        time.sleep(0.05)
    return found


class Line:
    """A line to a server, which can be cut and mended."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._cut = True
        while self._ends:
            end = self._ends.pop()
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._cut = False

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                if self._cut:
                    here.close()
                    continue
                there = socket.create_connection(("127.0.0.1", self._to))
                self._ends += [here, there]
                for one, other in ((here, there), (there, here)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with one, suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        with suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)


class Store:
    """The account: what the app publishes and puts there, and a line to it for the replica."""

    def __init__(self, azurite: Azurite, artifacts: ContainerClient) -> None:
        self.azurite = azurite
        self.artifacts = artifacts
        self.port = BlobServing(azurite.connection_string)
        self.line = Line(int(azurite.url.rpartition(":")[2]))

    @property
    def connection_string(self) -> str:
        return self.azurite.connection_string.replace(self.azurite.url, f"http://127.0.0.1:{self.line.port}")

    def publish(self, revision: int, data: bytes, sha256: str | None = None) -> None:
        name = f"models/flights/v{revision}/model.onnx"
        self.artifacts.upload_blob(name, data)
        uri = BlobRef(ACCOUNT, "artifacts", name).url
        one = Deployment("flights", revision, uri, sha256 or hashlib.sha256(data).hexdigest(), dataset_version=revision)
        self.port.publish(Desired("flights", revision, (one,), datetime.now(UTC)))

    def reports(self, wanted: Callable[[ReplicaState], bool]) -> ReplicaState:
        return eventually(lambda: next(filter(wanted, self.port.observe("flights")), None))

    def reached(self, revision: int) -> ReplicaState:
        return self.reports(lambda state: state.revision == revision and state.ready)


class Replica:
    """One running server, told by its environment as a container is."""

    def __init__(self, store: Store, cache: Path) -> None:
        told = {
            "DROPFORGE_STORAGE": store.connection_string,
            "DROPFORGE_SERVE_CACHE": str(cache),
            "DROPFORGE_SERVE_NO_KEY": "true",
            "DROPFORGE_DEPLOYMENT": "s12345678",
        }
        command = [sys.executable, "-m", "dropforge.serving", "--port", "0", "--replica", "r1", "--poll", "0.05"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, **told}, text=True)
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        self.port = int(eventually(lambda: self.logged(r"listens on http://\S+:(\d+)")))

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            self.log.extend(lines)

    def logged(self, pattern: str) -> str | None:
        found = re.search(pattern, "".join(self.log))
        return found[1] if found else None

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS)
        with closing(connection):
            connection.request(method, path, json.dumps(body) if body is not None else None)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def answers(self) -> tuple[str, list[float]]:
        status, body = self.ask("POST", "/v2/models/flights/infer", {"rows": [[1, 2, 3]]})
        assert status == 200, body
        return body["model_version"], body["outputs"][0]["data"]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        try:
            return self.process.wait(WAIT_SECONDS)
        finally:
            self.process.kill()
            self._reader.join()


@pytest.fixture
def store(azurite: Azurite) -> Iterator[Store]:
    with azurite.container("serving"), azurite.container("artifacts") as artifacts:
        made = Store(azurite, artifacts)
        try:
            yield made
        finally:
            made.line.close()
            made.port.close()


@pytest.fixture
def replica(store: Store, tmp_path: Path) -> Iterator[Replica]:
    """A server that found version 1 published when it started."""
    store.publish(1, onnx_models.scaled(1))
    made = Replica(store, tmp_path)
    try:
        store.reached(1)
        yield made
    finally:
        if made.process.poll() is None:
            made.stop()
        print("".join(made.log))  # shown when the test fails


def test_it_serves_what_is_published_swaps_under_requests_and_takes_its_reports_away(
    store: Store, replica: Replica
) -> None:
    state = store.reached(1)
    assert (state.replica, state.versions, state.detail["deployment"]) == ("r1", (1,), "s12345678")
    seen: list[tuple[str, list[float]]] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            seen.append(replica.answers())

    load = threading.Thread(target=ask)
    load.start()
    for revision in (2, 3):
        store.publish(revision, onnx_models.scaled(revision))
        store.reached(revision)
        assert replica.answers() == (str(revision), [revision, 2 * revision, 3 * revision])
    done.set()
    load.join()
    versions = [int(version) for version, _ in seen]
    assert versions == sorted(versions) and set(versions) == {1, 2, 3}
    assert all(data == [version, 2 * version, 3 * version] for (_, data), version in zip(seen, versions, strict=True))
    assert store.reports(lambda state: state.swaps == 2).failed == 0
    assert replica.stop() == 0
    assert store.port.observe("flights") == []


def test_it_goes_on_serving_while_the_account_is_gone_and_catches_up_when_it_is_back(
    store: Store, replica: Replica
) -> None:
    store.line.cut()
    eventually(lambda: replica.logged("(cannot look for desired states)"))
    store.publish(2, onnx_models.scaled(2))
    assert replica.answers() == ("1", [1, 2, 3])
    assert replica.ask("GET", "/v2/health/ready") == (200, {"live": True, "ready": True})
    store.line.mend()
    store.reached(2)
    assert replica.answers() == ("2", [2, 4, 6])


def test_a_model_that_is_cut_short_or_another_one_leaves_the_one_before(store: Store, replica: Replica) -> None:
    for revision, data, sha256 in (
        (2, onnx_models.scaled(2)[:-20], hashlib.sha256(onnx_models.scaled(2)).hexdigest()),
        (3, onnx_models.scaled(3), "ab" * 32),
    ):
        store.publish(revision, data, sha256)
        state = store.reports(lambda state: state.wanted_revision == revision and state.error is not None)  # noqa: B023
        assert state.revision == 1 and "wanted sha256" in (state.error or "")
        assert replica.answers() == ("1", [1, 2, 3])


def test_a_killed_replica_is_back_with_what_it_fetched_before(store: Store, replica: Replica, tmp_path: Path) -> None:
    replica.stop(signal.SIGKILL)
    store.artifacts.delete_blob("models/flights/v1/model.onnx")
    again = Replica(store, tmp_path)
    try:
        eventually(lambda: again.ask("GET", "/v2/health/ready")[0] == 200)
        assert again.answers() == ("1", [1, 2, 3])
    finally:
        again.stop()


# ---------------------------------------------------------------------------------------------- what is loaded
_RUN = """
import os, signal, sys, threading
from dropforge.serving.__main__ import main
def end():
    os.kill(os.getpid(), signal.SIGTERM)
threading.Timer(1.0, end).start()
assert main(sys.argv[1:]) == 0
print(*sys.modules)
"""


def modules(*options: str, **told: str) -> set[str]:
    """What a server has loaded that ran for a while."""
    command = [sys.executable, "-c", _RUN, "--port", "0", "--no-key", "--replica", "r1", *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **told}, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_a_server_of_a_folder_loads_no_azure_at_all(tmp_path: Path) -> None:
    loaded = modules("--root", str(tmp_path))
    assert "dropforge.serving.source" in loaded
    assert [name for name in loaded if name.partition(".")[0] == "azure"] == []


def test_a_server_of_a_storage_account_loads_its_client_and_no_other_sdk(store: Store, tmp_path: Path) -> None:
    loaded = modules(DROPFORGE_STORAGE=store.connection_string, DROPFORGE_SERVE_CACHE=str(tmp_path))
    assert {"azure.storage.blob", "dropforge.adapters.azure.serving"} <= loaded
    unwanted = {"azure.functions", "azure.durable_functions", "azure.ai", "azure.data", "azure.servicebus"}
    unwanted |= {"dropforge.steps", "dropforge.host", "deltalake", "pyarrow", "pandas", "onnx"}
    assert unwanted & loaded == set()
