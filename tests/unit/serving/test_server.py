"""The server and its converger on one event loop, with a store of desired states that misbehaves on demand."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dropforge.domain.endpoints import Deployment, Desired, ReplicaState
from dropforge.domain.errors import DropforgeError, Unavailable
from dropforge.serving import server as server_module
from dropforge.serving.access_log import AccessLog
from dropforge.serving.batching import Batcher
from dropforge.serving.converge import Converger
from dropforge.serving.http1 import Connection, Connections, Limits
from dropforge.serving.models import fetch_file
from dropforge.serving.provider import CPU, Provider
from dropforge.serving.server import Server
from dropforge.serving.watch import Watch
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import deployment


@dataclass
class Client:
    """A session of one client with the server on its port."""

    session: aiohttp.ClientSession
    port: int

    def post(self, path: str, **more: Any) -> Any:
        return self.session.post(f"http://127.0.0.1:{self.port}{path}", **more)

    def get(self, path: str, **more: Any) -> Any:
        return self.session.get(f"http://127.0.0.1:{self.port}{path}", **more)


URL = "/v2/models/flights/infer"
REQUEST = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
HEAD = b"POST /v2/models/flights/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"


class Store:
    """A `Source` in memory."""

    poll_seconds = report_seconds = 1.0

    def __init__(self) -> None:
        self.pending: dict[str, Desired | DropforgeError | None] = {}
        self.reports: dict[str, ReplicaState] = {}
        self.files: dict[str, bytes] = {}
        self.down = False
        self.fetches_fail = 0

    def want(self, endpoint: str, revision: int, *deployments: Deployment) -> None:
        self.pending = {endpoint: Desired(endpoint, revision, deployments, datetime.now(UTC))}

    def changes(self) -> dict[str, Desired | DropforgeError | None]:
        if self.down:
            raise PermissionError("no such luck")
        changes, self.pending = self.pending, {}
        return changes

    def report(self, state: ReplicaState) -> None:
        if self.down:
            raise Unavailable("the disk is full")
        self.reports[state.endpoint] = state

    def forget(self, endpoint: str) -> None:
        self.reports.pop(endpoint, None)

    def keep(self, name: str, data: bytes) -> None:
        if self.down:
            raise Unavailable("the disk is full")
        self.files[name] = data

    def fetch(self, deployment: Deployment, keep: Collection[str]) -> Path:
        if self.fetches_fail:
            self.fetches_fail -= 1
            raise Unavailable("nobody answers")
        return fetch_file(deployment.uri)

    def read(self, uri: str, limit_bytes: int) -> bytes:
        raise AssertionError("no deployment of these tests names golden requests")


@asynccontextmanager
async def serving(
    store: Store,
    limits: Limits | None = None,
    provider: Provider = CPU,
    queue: int = 2048,
    watch: Watch | None = None,
    access_log: AccessLog | None = None,
) -> AsyncIterator[Client]:
    limits = limits or Limits()
    converger = Converger(store, "r1", 0.005, provider)
    server, connections = Server(converger, None, limits, queue=queue, watch=watch), Connections(limits)
    app = server if access_log is None else access_log.of(server)
    listening = await asyncio.get_running_loop().create_server(lambda: Connection(app, connections), "127.0.0.1", 0)
    work = [asyncio.create_task(converger.run()), asyncio.create_task(_sweep(connections))]
    try:
        async with aiohttp.ClientSession() as session:
            yield Client(session, listening.sockets[0].getsockname()[1])
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        listening.close()
        connections.end()
        await converger.close()
        server.close()


async def _sweep(connections: Connections) -> None:
    while True:
        await asyncio.sleep(0.02)
        connections.sweep()


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not what():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.005)


def told(store: Store, message: str) -> bool:
    return message in (store.reports["flights"].error or "")


async def version_of(client: Client) -> str:
    async with client.post(URL, json=REQUEST) as response:
        body = await response.json()
        assert response.status == 200, body
        return str(body["model_version"])


def test_a_store_that_does_not_answer_stops_no_request_and_is_asked_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store()
        store.want("flights", 1, deployment(tmp_path, onnx_models.scaled(1), 1))
        async with serving(store) as client:
            await until(lambda: "flights" in store.reports)
            store.down = True
            store.want("flights", 2, deployment(tmp_path, onnx_models.scaled(2), 2))
            await asyncio.sleep(0.05)
            assert await version_of(client) == "1"
            store.down = False
            await until(lambda: store.reports["flights"].revision == 2)
            assert await version_of(client) == "2"
        assert store.reports == {}

    asyncio.run(scenario())


def test_until_the_store_was_looked_at_once_a_replica_is_not_ready(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store()
        store.down = True
        async with serving(store) as client:
            async with client.get("/v2/health/ready") as response:
                assert response.status == 503
            store.down = False
            async with asyncio.timeout(30):
                while (await client.get("/v2/health/ready")).status != 200:  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(0.005)

    asyncio.run(scenario())


def test_an_older_revision_and_another_of_the_same_number_change_nothing_and_are_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store()
        store.want("flights", 5, deployment(tmp_path, onnx_models.scaled(1), 1))
        async with serving(store) as client:
            await until(lambda: "flights" in store.reports and store.reports["flights"].ready)
            for revision, message in ((4, "revision 4 is older than 5"), (5, "is served already with other")):
                store.want("flights", revision, deployment(tmp_path, onnx_models.scaled(2), 2))
                await until(partial(told, store, message))
                assert await version_of(client) == "1"
            store.want("flights", 5, deployment(tmp_path, onnx_models.scaled(1), 1))
            await until(lambda: store.reports["flights"].error is None)

    asyncio.run(scenario())


def test_a_desired_state_under_another_name_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store()
        wanted = Desired("weather", 1, (deployment(tmp_path, onnx_models.scaled(1)),), datetime.now(UTC))
        store.pending = {"flights": wanted}
        async with serving(store):
            await until(lambda: "flights" in store.reports and store.reports["flights"].error)
            assert "the desired state of 'flights' is about 'weather'" in (store.reports["flights"].error or "")

    asyncio.run(scenario())


def test_an_error_nobody_thought_of_keeps_the_old_version_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No bytes on a disk make a load run out of memory when a test wants it to.
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    async def scenario() -> None:
        store = Store()
        store.want("flights", 1, deployment(tmp_path, onnx_models.scaled(1), 1))
        async with serving(store) as client:
            await until(lambda: "flights" in store.reports and store.reports["flights"].ready)
            with monkeypatch.context() as patch:
                patch.setattr("dropforge.serving.converge.load", no_memory)
                store.want("flights", 2, deployment(tmp_path, onnx_models.scaled(2), 2))
                await until(lambda: "no room" in (store.reports["flights"].error or ""))
            assert await version_of(client) == "1"
            await until(lambda: store.reports["flights"].revision == 2)

    asyncio.run(scenario())


def test_an_endpoint_taken_away_while_it_loads_is_not_served(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store()
        async with serving(store) as client:
            store.want("flights", 1, deployment(tmp_path, onnx_models.scaled(1), 1))
            await until(lambda: not store.pending)
            store.pending = {"flights": None}
            await until(lambda: not store.pending)
            await asyncio.sleep(0.2)
            async with client.post(URL, json=REQUEST) as response:
                assert response.status == 404
            assert store.reports == {}

    asyncio.run(scenario())


def test_what_a_head_asks_for_is_answered_without_a_body_also_where_it_fails(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store()
        store.want("flights", 1, deployment(tmp_path, onnx_models.scaled(1), 1))
        async with serving(store) as client:
            await until(lambda: "flights" in store.reports)
            reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
            for path in ("/v2/models/nope/ready", "/v2/models/flights/versions/9", "/v2/models/nope/config", "/nope"):
                writer.write(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 404 ") and b"Content-Length: 0\r\n" not in head
            writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            writer.close()
            await writer.wait_closed()

    asyncio.run(scenario())


def test_large_bodies_that_wait_to_be_read_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, goes_on = server_module._read, threading.Event()

    def patient(*given: Any) -> Any:
        goes_on.wait(30)
        return read(*given)

    monkeypatch.setattr(server_module, "_read", patient)
    monkeypatch.setattr(server_module, "Batcher", partial(Batcher, waiting_bytes=250_000))
    body = json.dumps(REQUEST).encode() + b" " * 100_000

    async def scenario() -> None:
        store = Store()
        store.want("flights", 1, deployment(tmp_path, onnx_models.scaled(1), 1))
        async with serving(store) as client:
            await until(lambda: "flights" in store.reports)
            asked = [asyncio.ensure_future(client.post(URL, data=body)) for _ in range(3)]
            (refused,), taken = await asyncio.wait(asked, timeout=30, return_when=asyncio.FIRST_COMPLETED)
            assert refused.result().status == 429
            assert "wait already" in (await refused.result().json())["error"]
            goes_on.set()
            assert [(await each).status for each in taken] == [200, 200]
            async with client.post(URL, data=body) as answer:
                assert answer.status == 200

    asyncio.run(scenario())


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store()
        store.want("flights", 1, deployment(tmp_path, onnx_models.scaled(1), 1))
        async with serving(store, Limits(body_seconds=0.1), queue=1) as client:
            await until(lambda: "flights" in store.reports)
            reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
            writer.write(HEAD + b'{"inp')
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408 ")
            assert "did not arrive within 0.1 seconds" in json.loads(await reader.readuntil(b"}"))["error"]
            writer.close()
            await writer.wait_closed()
            assert await version_of(client) == "1"

    asyncio.run(scenario())


def test_a_caller_who_leaves_in_the_middle_of_a_body_leaves_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        store = Store()
        store.want("flights", 1, deployment(tmp_path, onnx_models.scaled(1), 1))
        async with serving(store, queue=1) as client:
            await until(lambda: "flights" in store.reports)
            for _ in range(3):
                _, writer = await asyncio.open_connection("127.0.0.1", client.port)
                writer.write(HEAD + b'{"inp')
                await writer.drain()
                writer.close()
                await writer.wait_closed()
            # The queue holds one: each of them must have left it.
            async with asyncio.timeout(30):
                while (await client.post(URL, json=REQUEST)).status != 200:  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(0.01)

    asyncio.run(scenario())
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_replica_that_starts_does_not_wait_for_an_endpoint_that_was_left_empty() -> None:
    async def scenario() -> None:
        store = Store()
        store.want("flights", 3)
        async with serving(store) as client:
            await until(lambda: "flights" in store.reports)
            assert (await client.get("/v2/health/ready")).status == 200

    asyncio.run(scenario())


def test_a_store_that_does_not_answer_is_asked_for_a_model_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dropforge.serving.converge.RETRY_SECONDS", (0.001,))
    monkeypatch.setattr("dropforge.serving.converge.OUTAGE_SECONDS", 0.01)

    async def scenario() -> None:
        store = Store()
        store.fetches_fail = 20
        store.want("flights", 1, deployment(tmp_path, onnx_models.scaled(1), 1))
        async with serving(store):
            await until(lambda: "flights" in store.reports and store.reports["flights"].ready)
        assert store.fetches_fail == 0

    asyncio.run(scenario())
