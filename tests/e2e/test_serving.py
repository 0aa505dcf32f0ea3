"""The inference server as a process of its own, asked over real sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from dropforge.adapters.local.serving import LocalServing
from dropforge.domain.endpoints import Deployment, Desired, ReplicaState
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import deployment

T = TypeVar("T")

KEY = "correct horse"
WITH_KEY = {"Authorization": f"Bearer {KEY}"}
WAIT_SECONDS = 40


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def eventually(what: Callable[[], T | None]) -> T:
    """What it returns, once that is something."""
    until = time.monotonic() + WAIT_SECONDS
    while not (found := what()):
        assert time.monotonic() < until, f"still {found!r} after {WAIT_SECONDS} seconds"
        time.sleep(0.02)
    return found


class Replica:
    """One running server, and the state folder it shares with the port."""

    def __init__(self, root: Path, *options: str, key: str | None = KEY) -> None:
        self.root = root
        self.serving = LocalServing(root)
        self.log: list[str] = []
        environment = {name: value for name, value in os.environ.items() if name != "DROPFORGE_INFERENCE_KEY"}
        if key is not None:
            environment["DROPFORGE_INFERENCE_KEY"] = key
        command = [sys.executable, "-m", "dropforge.serving", "--root", str(root), "--replica", "r1", "--poll", "0.02"]
        self.process = subprocess.Popen(
            [*command, "--port", "0", *options], stderr=subprocess.PIPE, env=environment, text=True
        )
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()
        self.port = int(eventually(lambda: self.logged(r"listens on https?://\S+:(\d+)")))

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            self.log.extend(lines)

    def logged(self, pattern: str) -> str | None:
        found = re.search(pattern, "".join(self.log))
        return found[1] if found else None

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        try:
            return self.process.wait(WAIT_SECONDS)
        finally:
            self.process.kill()
            self._reader.join()

    def publish(self, revision: int, *deployments: Deployment, endpoint: str = "flights") -> None:
        self.serving.publish(Desired(endpoint, revision, deployments, datetime.now(UTC)))

    def state(self, endpoint: str = "flights") -> ReplicaState | None:
        return next(iter(self.serving.observe(endpoint)), None)

    def reports(self, wanted: Callable[[ReplicaState], bool], endpoint: str = "flights") -> ReplicaState:
        """The first report that is as wanted."""
        return eventually(lambda: next(filter(wanted, self.serving.observe(endpoint)), None))

    def reached(self, revision: int, endpoint: str = "flights") -> ReplicaState:
        return self.reports(lambda state: state.revision == revision, endpoint)

    def failed_at(self, revision: int) -> ReplicaState:
        return self.reports(lambda state: state.wanted_revision == revision and state.error is not None)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, data, WITH_KEY if headers is None else headers)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def infer(self, request: Any, endpoint: str = "flights", version: int | None = None) -> Answer:
        place = f"{endpoint}/versions/{version}" if version is not None else endpoint
        return self.ask("POST", f"/v2/models/{place}/infer", request)


def one_row(*values: float) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [1, len(values)], "datatype": "FP32", "data": values}]}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Replica]]:
    started: list[Replica] = []

    def starter(*options: str, key: str | None = KEY) -> Replica:
        started.append(Replica(tmp_path / "serving", *options, key=key))
        return started[-1]

    yield starter
    for replica in started:
        if replica.process.poll() is None:
            replica.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """Serves `flights` v1 (x * 1) with all traffic and v2 (x * 2) with none, and `table` v1 (one input per column)."""
    folder = tmp_path_factory.mktemp("serving")
    running = Replica(folder / "serving", "--max-body-bytes", "100000")
    running.publish(
        3, deployment(folder, onnx_models.scaled(1), 1), deployment(folder, onnx_models.scaled(2), 2, traffic=0)
    )
    running.publish(1, deployment(folder, onnx_models.columns(), 1), endpoint="table")
    running.reached(3)
    running.reached(1, "table")
    yield running
    assert running.stop() == 0


# ---------------------------------------------------------------------------------------------------- the protocol
# The JSON objects of the Open Inference Protocol, as its REST specification words them.
class ServerMetadata(msgspec.Struct):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class OutputTensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[float | int | bool | str]


class InferenceResponse(msgspec.Struct):
    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str | None = None


class ModelReady(msgspec.Struct):
    name: str
    ready: bool


class ServerLive(msgspec.Struct):
    live: bool


class ErrorResponse(msgspec.Struct, forbid_unknown_fields=True):
    error: str


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v2", ServerMetadata),
        ("/v2/", ServerMetadata),
        ("/v2/health/live", ServerLive),
        ("/v2/health/ready", ServerLive),
        ("/v2/models/flights", ModelMetadata),
        ("/v2/models/flights/versions/2", ModelMetadata),
        ("/v2/models/flights/ready", ModelReady),
        ("/v2/models/flights/versions/2/ready", ModelReady),
    ],
)
def test_metadata_has_the_shape_of_the_protocol(replica: Replica, path: str, shape: type) -> None:
    answer = replica.ask("GET", path)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert msgspec.json.decode(answer.body, type=shape)


def test_model_metadata_tells_the_tensors_and_where_the_version_comes_from(replica: Replica) -> None:
    found = replica.ask("GET", "/v2/models/flights/versions/2").json
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert found["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}]
    assert (found["versions"], found["parameters"]["dataset_version"]) == (["1", "2"], 42)


@pytest.mark.parametrize(("version", "expected"), [(None, 1), (1, 1), (2, 2)])
def test_an_answer_names_its_version_in_the_body_and_in_headers(
    replica: Replica, version: int | None, expected: int
) -> None:
    answer = replica.infer({**one_row(1, 2, 3), "id": "a1"}, version=version)
    found = msgspec.json.decode(answer.body, type=InferenceResponse)
    assert (answer.status, found.model_name, found.model_version, found.id) == (200, "flights", str(expected), "a1")
    assert found.outputs == [OutputTensor("y", [1, 3], "FP32", [expected, 2 * expected, 3 * expected])]
    named = {name: value for name, value in answer.headers.items() if name.startswith("dropforge-")}
    assert named == {
        "dropforge-model": "flights",
        "dropforge-version": str(expected),
        "dropforge-dataset-version": str(40 + expected),
    }


def test_rows_of_a_table_are_answered(replica: Replica) -> None:
    rows = [
        {"origin": "EWR", "distance": 1.5, "seats": 3, "late": True},
        {"origin": None, "distance": None, "seats": 4, "late": False},
    ]
    outputs = {each["name"]: each["data"] for each in replica.infer({"rows": rows}, "table").json["outputs"]}
    assert outputs == {
        "origin_out": ["EWR", ""],
        "distance_out": [1.5, None],
        "seats_out": [3, 4],
        "late_out": [True, False],
    }


X = one_row(1, 2, 3)["inputs"][0]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "flights/infer", b"", 400, "the body is not an inference request"),
        ("POST", "flights/infer", b"{]", 400, "the body is not an inference request"),
        ("POST", "flights/infer", b"\xff\xfe", 400, "the body is not an inference request"),
        ("POST", "flights/infer", b'{"inputs":' + b"[" * 50_000, 400, "the body is not an inference request"),
        ("POST", "flights/infer", {"instances": []}, 400, "either `inputs` or `rows`, found neither"),
        ("POST", "flights/infer", {"inputs": [X | {"name": "z"}]}, 400, "missing ['x'], unknown ['z']"),
        ("POST", "flights/infer", {"inputs": [X | {"datatype": "INT64"}]}, 400, "input 'x' wants FP32, found 'INT64'"),
        ("POST", "flights/infer", {"inputs": [X | {"datatype": "x" * 9999}]}, 400, "input 'x' wants FP32, found 'xxx"),
        ("POST", "flights/infer", {"inputs": [X | {"shape": [3, 1]}]}, 400, "wants shape [-1, 3]"),
        (
            "POST",
            "flights/infer",
            {"inputs": [X | {"shape": [10**30, 3]}]},
            400,
            "wants 3000000000000000000000000000000",
        ),
        ("POST", "flights/infer", {"inputs": [X | {"data": [1]}]}, 400, "wants 3 values in `data`, found 1"),
        ("POST", "flights/infer", {"inputs": [X | {"data": ["a", 2, 3]}]}, 400, "Expected `float | null`, got `str`"),
        (
            "POST",
            "flights/infer",
            {"inputs": [X], "outputs": [{"name": "q"}]},
            400,
            "unknown output 'q'; choose from ['y']",
        ),
        ("POST", "flights/infer", {"rows": [{"a": 1}]}, 400, "does not tell the names of its columns"),
        ("POST", "table/infer", {"rows": [{"origin": "EWR"}]}, 400, "missing ['distance', 'late', 'seats']"),
        ("POST", "none/infer", {"inputs": [X]}, 404, "unknown model 'none'; choose from ['flights', 'table']"),
        ("POST", "flights/versions/9/infer", {"inputs": [X]}, 404, "version '9' is not loaded; choose from ['1', '2']"),
        ("GET", "none", None, 404, "unknown model 'none'"),
        ("GET", "none/ready", None, 404, "unknown model 'none'"),
        ("GET", "flights/versions/9/ready", None, 404, "version '9' is not loaded"),
        ("GET", "flights/nothing", None, 404, "no such route: GET /v2/models/flights/nothing"),
        ("GET", "flights/infer", None, 405, "GET is not for this route; use POST"),
    ],
)
def test_a_wrong_request_is_told_what_was_wanted_and_found(
    replica: Replica, method: str, path: str, body: Any, status: int, message: str
) -> None:
    answer = replica.ask(method, f"/v2/models/{path}", body)
    assert answer.status == status
    error = msgspec.json.decode(answer.body, type=ErrorResponse).error
    assert message in error
    assert len(error) < 2500
    assert replica.infer(one_row(1, 2, 3)).status == 200


def test_tensors_may_come_as_bytes_behind_the_json(replica: Replica) -> None:
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}
    header = json.dumps({"inputs": [tensor]}).encode()
    headers = WITH_KEY | {"Inference-Header-Content-Length": str(len(header))}
    body = header + struct.pack("<3f", 1, 2, 3)
    answer = replica.ask("POST", "/v2/models/flights/infer", body, headers)
    assert (answer.status, answer.json) == (200, replica.infer(one_row(1, 2, 3)).json)
    short = replica.ask("POST", "/v2/models/flights/infer", body[:-1], headers)
    assert (short.status, "12 bytes follow" in short.json["error"]) == (400, True)


def test_tensors_come_and_go_as_bytes(replica: Replica) -> None:
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = WITH_KEY | {"Inference-Header-Content-Length": str(len(header))}
    values = np.array([1, 2, 3], np.float32).tobytes()
    answer = replica.ask("POST", "/v2/models/flights/versions/2/infer", header + values, headers)
    told, data = np.split(
        np.frombuffer(answer.body, np.uint8), [int(answer.headers["inference-header-content-length"])]
    )
    (output,) = json.loads(told.tobytes())["outputs"]
    assert (output["name"], output["parameters"]) == ("y", {"binary_data_size": 12})
    assert np.frombuffer(data.tobytes(), np.float32).tolist() == [2, 4, 6]


def exchange(port: int, sent: bytes) -> bytes:
    """What comes back until the server closes or has answered."""
    with socket.create_connection(("127.0.0.1", port), WAIT_SECONDS) as connection:
        connection.sendall(sent)
        connection.settimeout(WAIT_SECONDS)
        return connection.recv(65536)


POST = b"POST /v2/models/flights/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer correct horse\r\n"


def test_a_body_above_the_limit_is_refused_before_it_is_sent(replica: Replica) -> None:
    answer = exchange(replica.port, POST + b"Content-Length: 100001\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"larger than the limit of 100000 bytes" in answer


def test_a_body_that_only_grows_above_the_limit_is_refused_too(replica: Replica) -> None:
    chunk = b"186a0\r\n" + b" " * 100_000 + b"\r\n"
    answer = exchange(replica.port, POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"1\r\n \r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_who_asks_first_is_asked_for_the_body_only_if_it_will_be_read(replica: Replica) -> None:
    expect = b"Expect: 100-continue\r\nContent-Length: "
    assert exchange(replica.port, POST + expect + b"100\r\n\r\n").startswith(b"HTTP/1.1 100 ")
    assert exchange(replica.port, POST + expect + b"100001\r\n\r\n").startswith(b"HTTP/1.1 413 ")
    assert exchange(replica.port, POST.replace(KEY.encode(), b"no") + expect + b"9\r\n\r\n").startswith(
        b"HTTP/1.1 401 "
    )


def test_a_body_of_exactly_the_limit_is_read(replica: Replica) -> None:
    body = json.dumps(one_row(1, 2, 3)).encode()
    assert replica.ask("POST", "/v2/models/flights/infer", body + b" " * (100_000 - len(body))).status == 200


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        (WITH_KEY, True),
        ({"authorization": f"bearer {KEY}"}, True),
        ({"x-functions-key": KEY}, True),
        ({}, False),
        ({"Authorization": f"Bearer {KEY}x"}, False),
        ({"Authorization": f"Basic {KEY}"}, False),
        ({"Authorization": KEY}, False),
        ({"x-functions-key": ""}, False),
        ({"x-functions-key": "k\u00e9y"}, False),
    ],
)
def test_every_route_but_health_wants_the_key(replica: Replica, headers: dict[str, str], allowed: bool) -> None:
    for path in ("/v2", "/metrics", "/v2/models/flights", "/v2/models/flights/ready", "/v2/models/none", "/nothing"):
        assert (replica.ask("GET", path, headers=headers).status != 401) == allowed, path
    posted = replica.ask("POST", "/v2/models/flights/infer", one_row(1, 2, 3), headers)
    assert posted.status == (200 if allowed else 401)
    assert replica.ask("GET", "/v2/health/live", headers=headers).status == 200
    assert replica.ask("GET", "/v2/health/ready", headers=headers).status == 200


def test_metrics_count_what_was_answered(replica: Replica) -> None:
    def number(line: str) -> float:
        text = replica.ask("GET", "/metrics").body.decode()
        found = re.search(re.escape(line) + r" (\S+)", text)
        return float(found[1]) if found else 0.0

    answered = 'dropforge_requests_total{endpoint="flights",model="flights",version="2"}'
    timed = 'dropforge_request_seconds_bucket{endpoint="flights",model="flights",version="2",le="+Inf"}'
    refused = 'dropforge_refused_total{endpoint="flights",status="400"}'
    before = [number(line) for line in (answered, timed, refused)]
    for _ in range(3):
        replica.infer(one_row(1, 2, 3), version=2)
    replica.infer({}, version=2)
    assert [number(line) for line in (answered, timed, refused)] == [before[0] + 3, before[1] + 3, before[2] + 1]
    loaded = 'dropforge_loaded_version{endpoint="flights",model="flights",version="2",dataset_version="42"}'
    assert (number(loaded), number('dropforge_revision{endpoint="flights"}')) == (0, 3)


# ---------------------------------------------------------------------------------------------------- the swap
async def ask_all_the_time(
    session: aiohttp.ClientSession, url: str, stop: asyncio.Event, seen: list[tuple[int, float]], problems: list[str]
) -> None:
    n = 0
    while not stop.is_set():
        n += 1
        began = time.perf_counter()
        async with session.post(url, json=one_row(n, 0, 1)) as response:
            body = await response.json()
            if response.status != 200:
                problems.append(f"{response.status}: {body}")
                continue
            version = int(body["model_version"])
            if body["outputs"][0]["data"] != [n * version, 0, version]:
                problems.append(f"v{version} answered {body} for {n}")
            if response.headers["dropforge-version"] != str(version):
                problems.append(f"header {response.headers['dropforge-version']}, body {version}")
            seen.append((version, time.perf_counter() - began))


async def swap_under_load(replica: Replica, folder: Path, swaps: int) -> tuple[list[tuple[int, float]], list[str]]:
    seen: list[tuple[int, float]] = []
    problems: list[str] = []
    stop = asyncio.Event()
    url = f"http://127.0.0.1:{replica.port}/v2/models/flights/infer"
    async with aiohttp.ClientSession(headers=WITH_KEY) as session:
        load = [asyncio.create_task(ask_all_the_time(session, url, stop, seen, problems)) for _ in range(8)]
        async with asyncio.timeout(WAIT_SECONDS):
            while len(seen) < 50:  # noqa: ASYNC110 - the load does not tell how far it is
                await asyncio.sleep(0.01)
        for version in range(2, swaps + 2):
            replica.publish(version, deployment(folder, onnx_models.scaled(version), version))
            await asyncio.to_thread(replica.reached, version)
            async with session.post(url, json=one_row(1, 1, 1)) as response:
                # What is reported is what answers: nobody gets the version before it from here on.
                assert (await response.json())["model_version"] == str(version)
        stop.set()
        await asyncio.gather(*load)
    return seen, problems


def test_fifty_swaps_under_constant_load_lose_no_request_and_mix_no_answer(
    start: Callable[..., Replica], tmp_path: Path
) -> None:
    replica = start()
    replica.publish(1, deployment(tmp_path, onnx_models.scaled(1), 1))
    replica.reached(1)
    seen, problems = asyncio.run(swap_under_load(replica, tmp_path, 50))
    assert problems == []
    assert {version for version, _ in seen} == set(range(1, 52))
    milliseconds = np.percentile([seconds * 1000 for _, seconds in seen], [50, 99, 100])
    print(f"{len(seen)} requests over 50 swaps: p50, p99, worst {milliseconds.round(1)} ms")
    state = replica.reports(lambda state: state.requests == len(seen) + 50)
    assert (state.failed, state.swaps, state.ready, state.error) == (0, 50, True, None)


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_swaps(start: Callable[..., Replica], tmp_path: Path) -> None:
    def heavy(version: int) -> bytes:
        weights = np.full(2_000_000, version, np.float32)
        return onnx_models.model(
            [helper.make_node("Gather", ["w", "x"], ["y"])],
            {"x": (TensorProto.INT64, ["N"])},
            {"y": (TensorProto.FLOAT, ["N"])},
            [helper.make_tensor("w", TensorProto.FLOAT, [weights.size], weights.tobytes(), raw=True)],
        )

    replica = start()
    files = [deployment(tmp_path, heavy(i)) for i in range(2)]
    sizes = []
    for revision in range(1, 31):
        replica.publish(revision, replace(files[revision % 2], version=revision))
        replica.reached(revision)
        sizes.append(resident_mb(replica.process.pid))
    # Each model weighs 8 MB; thirty of them, leaked, would be 240.
    assert max(sizes[-5:]) - max(sizes[:5]) < 40, sizes


def test_a_request_in_flight_finishes_on_the_version_it_began_with(
    start: Callable[..., Replica], tmp_path: Path
) -> None:
    replica = start()
    replica.publish(1, deployment(tmp_path, onnx_models.slow(1), 1))
    replica.reached(1)
    long, short = ({"inputs": [{"name": "n", "shape": [1], "datatype": "INT64", "data": [n]}]} for n in (5000, 10))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(replica.infer, long)
        time.sleep(0.3)
        replica.publish(2, deployment(tmp_path, onnx_models.slow(2), 2))
        replica.reached(2)
        assert replica.infer(short).json["model_version"] == "2"
        assert not waiting.done(), "the long request must outlast the swap for this test to say anything"
        old = waiting.result().json
    assert (old["model_version"], old["outputs"][0]["data"]) == ("1", [5000.0])


# ---------------------------------------------------------------------------------------------------- what can go wrong
def test_a_bad_file_changes_nothing_but_the_report(start: Callable[..., Replica], tmp_path: Path) -> None:
    replica = start()
    good = onnx_models.scaled(1)
    replica.publish(1, deployment(tmp_path, good, 1))
    replica.reached(1)
    bad = {
        "no model file at": deployment(tmp_path, good, 2, uri=(tmp_path / "none.onnx").as_uri()),
        "wanted sha256": deployment(tmp_path, good, 2, sha256="0" * 64),
        "does not load": deployment(tmp_path, good[:-30], 2),
        "only ['tensor(": deployment(tmp_path, sequence_output(), 2),
        "wanted a URI that starts with": deployment(tmp_path, good, 2, uri="https://store/model.onnx"),
        "sum to 100": deployment(tmp_path, good, 2, traffic=50),
    }
    for revision, (message, wrong) in enumerate(bad.items(), start=2):
        replica.publish(revision, wrong)
        state = replica.failed_at(revision)
        assert message in str(state.error)
        assert (state.revision, state.versions, state.ready, state.swaps) == (1, (1,), True, 0)
        assert replica.infer(one_row(1, 2, 3)).json["model_version"] == "1"
    replica.publish(20, deployment(tmp_path, onnx_models.scaled(3), 3))
    state = replica.reached(20)
    assert (state.error, state.versions, state.swaps) == (None, (3,), 1)


def sequence_output() -> bytes:
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("SequenceConstruct", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
            [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    return bytes(proto.SerializeToString())


def test_a_desired_state_that_cannot_be_read_changes_nothing_but_the_report(
    start: Callable[..., Replica], tmp_path: Path
) -> None:
    replica = start()
    replica.publish(1, deployment(tmp_path, onnx_models.scaled(1), 1))
    replica.reached(1)
    (replica.root / "desired" / "flights.json").write_text('{"endpoint": ')
    state = replica.reports(lambda state: state.error is not None)
    assert "cannot be read" in str(state.error)
    assert replica.infer(one_row(1, 2, 3)).status == 200


def test_a_file_that_comes_late_is_found(start: Callable[..., Replica], tmp_path: Path) -> None:
    replica = start()
    late = deployment(tmp_path, onnx_models.scaled(1), 1)
    path = tmp_path / late.uri.rsplit("/", 1)[1]
    data = path.read_bytes()
    path.unlink()
    replica.publish(1, late)
    assert "no model file" in str(replica.failed_at(1).error)
    answer = replica.infer(one_row(1, 2, 3))
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert "is not ready: no model file" in answer.json["error"]
    path.write_bytes(data)
    assert replica.reached(1).error is None


def test_a_killed_replica_comes_back_to_what_is_desired_now(start: Callable[..., Replica], tmp_path: Path) -> None:
    first = start()
    first.publish(1, deployment(tmp_path, onnx_models.scaled(1), 1))
    first.reached(1)
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    first.publish(2, deployment(tmp_path, onnx_models.scaled(2), 2))
    second = start()
    eventually(lambda: second.ask("GET", "/v2/health/ready").status == 200)
    assert second.infer(one_row(1, 2, 3)).json["model_version"] == "2"
    assert second.reached(2).requests <= 1


def test_a_replica_is_ready_when_what_was_desired_at_its_start_is_loaded(
    start: Callable[..., Replica], tmp_path: Path
) -> None:
    serving = LocalServing(tmp_path / "serving")
    missing = deployment(tmp_path, onnx_models.scaled(1), 1, uri=(tmp_path / "none.onnx").as_uri())
    serving.publish(Desired("flights", 1, (missing,), datetime.now(UTC)))
    replica = start()
    replica.failed_at(1)
    assert replica.ask("GET", "/v2/health/live").status == 200
    assert replica.ask("GET", "/v2/health/ready").status == 503
    assert replica.ask("GET", "/v2/models/flights/ready").status == 503
    replica.publish(2, deployment(tmp_path, onnx_models.scaled(2), 2))
    replica.reached(2)
    assert replica.ask("GET", "/v2/health/ready").status == 200


def test_a_replica_with_no_endpoint_at_all_is_ready(start: Callable[..., Replica]) -> None:
    replica = start(key=None, *["--no-key"])  # noqa: B026
    eventually(lambda: replica.ask("GET", "/v2/health/ready", headers={}).status == 200)
    assert replica.ask("GET", "/v2", headers={}).status == 200


def test_an_endpoint_that_is_no_longer_desired_is_unloaded(start: Callable[..., Replica], tmp_path: Path) -> None:
    replica = start()
    replica.publish(5, deployment(tmp_path, onnx_models.scaled(1), 1))
    replica.reached(5)
    (replica.root / "desired" / "flights.json").unlink()
    eventually(lambda: replica.infer(one_row(1, 2, 3)).status == 404)
    eventually(lambda: replica.state() is None)
    replica.publish(1, deployment(tmp_path, onnx_models.scaled(2), 2))
    assert replica.reached(1).versions == (2,)


def test_more_requests_at_once_than_the_queue_holds_are_sent_away(
    start: Callable[..., Replica], tmp_path: Path
) -> None:
    replica = start("--max-queue", "2")
    replica.publish(1, deployment(tmp_path, onnx_models.slow(1), 1))
    replica.reached(1)
    request = {"inputs": [{"name": "n", "shape": [1], "datatype": "INT64", "data": [2000]}]}
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(replica.infer, [request] * 6))
    assert {answer.status for answer in answers} == {200, 429}
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.headers["retry-after"] == "1"
    assert "2 requests to flights v1 wait already" in refused.json["error"]
    assert replica.infer(request).status == 200


def test_a_model_that_fails_is_counted_against_its_version(start: Callable[..., Replica], tmp_path: Path) -> None:
    replica = start()
    replica.publish(1, deployment(tmp_path, onnx_models.picky(2), 1))
    replica.reached(1)
    for value, status in ((0, 200), (5, 500)):
        answer = replica.infer({"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [value]}]})
        assert (answer.status, answer.headers["dropforge-version"]) == (status, "1")
    replica.infer({})
    state = replica.reports(lambda state: state.requests == 2)
    assert (state.failed, state.detail["requests_v1"], state.detail["failed_v1"]) == (1, "2", "1")


# ---------------------------------------------------------------------------------------------------- start and end
def test_sigterm_lets_what_is_in_flight_finish(start: Callable[..., Replica], tmp_path: Path) -> None:
    replica = start()
    replica.publish(1, deployment(tmp_path, onnx_models.slow(1), 1))
    replica.reached(1)
    with ThreadPoolExecutor(1) as pool:
        request = {"inputs": [{"name": "n", "shape": [1], "datatype": "INT64", "data": [3000]}]}
        waiting = pool.submit(replica.infer, request)
        time.sleep(0.3)
        assert not waiting.done()
        assert replica.stop() == 0
        assert waiting.result().json["outputs"][0]["data"] == [3000.0]
    assert replica.state() is None
    assert "Traceback" not in "".join(replica.log)


def test_without_a_key_it_does_not_start(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DROPFORGE_INFERENCE_KEY"}
    done = subprocess.run(
        [sys.executable, "-m", "dropforge.serving", "--root", str(tmp_path), "--port", "0"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == 2
    assert "no key: wanted one in the variable DROPFORGE_INFERENCE_KEY" in done.stderr


def test_a_port_that_is_taken_is_told(replica: Replica, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dropforge.serving", "--root", str(tmp_path), "--port", str(replica.port), "--no-key"],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{replica.port}: Address already in use" in done.stderr


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                f"""
                import subprocess, sys, time
                child = subprocess.Popen([sys.executable, "-m", "dropforge.serving", "--root", {str(tmp_path)!r},
                                          "--port", "0", "--no-key", "--die-with-parent"], stderr=sys.stdout)
                print(child.pid, flush=True)
                time.sleep(1000)
                """
            ),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent, parent.stdout as lines:
        child = int(lines.readline())
        while "listens on" not in (line := lines.readline()):
            assert line, "it ended without listening"
        parent.kill()
        # The pipe ends when the last process that holds it does.
        assert "is gone" in lines.read()
    eventually(lambda: not alive(child))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_it_loads_what_it_needs_and_no_more() -> None:
    code = "import sys, dropforge.serving.__main__; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert {"onnxruntime", "uvloop", "httptools", "numpy"} <= loaded
    unwanted = {
        "aiohttp",
        "google.protobuf",
        "jwt",
        "azure",
        "azure.functions",
        "dropforge.steps",
        "dropforge.host",
        "pandas",
        "pyarrow",
        "deltalake",
        "onnx",
    }
    assert not unwanted & loaded
