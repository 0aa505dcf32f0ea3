"""Traffic, copies, logs and traces of a server in a process of its own."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper

from dropforge.domain.endpoints import VersionState
from tests.collector import collector
from tests.e2e.test_serving import KEY, Replica, eventually, one_row
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import deployment
from tests.unit.serving.test_traffic import ASTRAY

T = TypeVar("T")

SPAN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Replica]]:
    started: list[Replica] = []

    def starter(*options: str) -> Replica:
        started.append(Replica(tmp_path / "serving", *options))
        return started[-1]

    yield starter
    for replica in started:
        if replica.process.poll() is None:
            replica.process.kill()
            replica.wait()


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    left = iter(values)
    while some := list(islice(left, size)):
        yield some


class Pipe:
    """One connection on which many requests are under way at once."""

    def __init__(self, replica: Replica) -> None:
        self._socket = socket.create_connection(("127.0.0.1", replica.port))
        self._rest = b""

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, bodies: list[bytes], headers: list[str] | None = None) -> list[bytes]:
        """The head and body of each answer."""
        heads = headers or [""] * len(bodies)
        self._socket.sendall(
            b"".join(
                (
                    f"POST /v2/models/flights/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n{head}"
                    f"Content-Length: {len(body)}\r\n\r\n"
                ).encode()
                + body
                for body, head in zip(bodies, heads, strict=True)
            )
        )
        return [self._answer() for _ in bodies]

    def _answer(self) -> bytes:
        while (end := self._rest.find(b"\r\n\r\n")) < 0:
            self._rest += self._socket.recv(1 << 16)
        length = int(re.search(rb"Content-Length: (\d+)", self._rest[:end])[1])  # type: ignore[index]
        while len(self._rest) < end + 4 + length:
            self._rest += self._socket.recv(1 << 16)
        answer, self._rest = self._rest[: end + 4 + length], self._rest[end + 4 + length :]
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        return answer


def version_in(answer: bytes) -> str:
    return re.search(rb"dropforge-version: (\d+)", answer)[1].decode()  # type: ignore[index]


def told(replica: Replica, version: int, wanted: Callable[[VersionState], bool]) -> VersionState:
    """What is reported of a version, once it is as wanted."""

    def look() -> VersionState | None:
        found = replica.state()
        states = found.states if found is not None else ()
        return next((each for each in states if each.version == version and wanted(each)), None)

    return eventually(look)


def quick(factor: float) -> bytes:
    """n [1] int64 -> y [1, 1] = n * factor, as `onnx_models.slow`, at once."""
    return onnx_models.model(
        [
            helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["f", "k"], ["y"]),
        ],
        {"n": (TensorProto.INT64, [1])},
        {"y": (TensorProto.FLOAT, [1, 1])},
        [helper.make_tensor("k", TensorProto.FLOAT, [1, 1], [factor])],
    )


# ------------------------------------------------------------------------------------------------ the split
@pytest.mark.parametrize("number", [4_000, pytest.param(100_000, marks=pytest.mark.soak)])
def test_the_split_is_what_was_asked_and_sticky_keys_never_flip(
    start: Callable[..., Replica], tmp_path: Path, number: int
) -> None:
    replica = start()
    candidate, champion = (
        deployment(tmp_path, onnx_models.scaled(2), 2, 20),
        deployment(tmp_path, onnx_models.scaled(1), 1, 80),
    )
    replica.publish(1, candidate, champion)
    replica.reached(1)
    body = json.dumps(one_row(1, 2, 3)).encode()
    with Pipe(replica) as pipe:
        answers = [answer for some in batched(range(number), 64) for answer in pipe.ask([body] * len(some))]
        split = Counter(map(version_in, answers))
        assert abs(split["2"] / number - 0.2) < 0.005
        # Every answer is the one of the version that it names.
        for answer in answers:
            factor = int(version_in(answer))
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["outputs"][0]["data"] == [
                factor,
                2 * factor,
                3 * factor,
            ]
        owner: dict[str, str] = {}
        for some in batched(range(number), 64):
            keys = [f"user-{n % 500}" for n in some]
            found = pipe.ask([body] * len(some), [f"dropforge-sticky: {key}\r\n" for key in keys])
            for key, answer in zip(keys, found, strict=True):
                assert owner.setdefault(key, version_in(answer)) == version_in(answer)
        replica.publish(2, replace(candidate, traffic=50), replace(champion, traffic=50))
        replica.reached(2)
        for known in batched(owner, 64):
            found = pipe.ask([body] * len(known), [f"dropforge-sticky: {key}\r\n" for key in known])
            for key, answer in zip(known, found, strict=True):
                assert version_in(answer) == "2" or owner[key] == "1"
    assert replica.stop() == 0


# ------------------------------------------------------------------------------------------------ the mirror
def test_a_candidate_that_hangs_changes_nothing_not_even_the_end(start: Callable[..., Replica], tmp_path: Path) -> None:
    replica = start()
    # What the champion answers at once takes the candidate a minute.
    slow = replace(deployment(tmp_path, onnx_models.slow(2), 2, 0), mirror=100)
    replica.publish(1, slow, deployment(tmp_path, quick(1), 1))
    replica.reached(1)
    body = json.dumps({"inputs": [{"name": "n", "shape": [1], "datatype": "INT64", "data": [9000]}]}).encode()
    took = []
    with Pipe(replica) as pipe:
        for _ in range(400):
            began = time.perf_counter()
            (answer,) = pipe.ask([body])
            took.append(time.perf_counter() - began)
            assert b'"data":[9000.0]' in answer
    assert sorted(took)[200] < 0.05
    text = replica.ask("GET", "/metrics").body.decode()
    dropped = re.search(r'dropforge_mirror_dropped_total\{.*reason="slow"\} (\d+)', text)
    assert dropped is not None and int(dropped[1]) >= 400 - 256 - 1
    found = told(replica, 1, lambda state: state.requests == 400)
    assert found.failed == 0
    began = time.monotonic()
    assert replica.stop() == 0
    assert time.monotonic() - began < 10


def test_copies_of_requests_are_compared_and_reported(start: Callable[..., Replica], tmp_path: Path) -> None:
    replica = start()
    candidate = replace(deployment(tmp_path, onnx_models.scaled(1.5), 2, 0), mirror=25)
    replica.publish(1, candidate, deployment(tmp_path, onnx_models.scaled(1), 1))
    replica.reached(1)
    body = json.dumps(one_row(1, 2, 4)).encode()
    with Pipe(replica) as pipe:
        for _ in range(10):
            pipe.ask([body] * 20)
            time.sleep(0.01)
    copies = told(replica, 2, lambda state: state.mirrored.run + state.mirrored.dropped >= 50 - ASTRAY).mirrored
    assert abs(copies.run + copies.dropped - 50) <= ASTRAY and copies.failed == 0
    assert (copies.disagreed, copies.max_difference) == (copies.run, 2.0)
    assert replica.stop() == 0


# ------------------------------------------------------------------------------------------------ logs and traces
def test_requests_are_logged_told_and_traced(
    start: Callable[..., Replica], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = tmp_path / "access.log"
    with collector() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        # As a container is told.
        monkeypatch.setenv("DROPFORGE_SERVE_LOG_REQUESTS", "other=0, flights=1")
        replica = start("--log-seconds", "0.2", "--access-log", str(lines))
        replica.publish(1, deployment(tmp_path, onnx_models.scaled(2), 3))
        replica.reached(1)
        body = json.dumps(one_row(1, 2, 3)).encode()
        with Pipe(replica) as pipe:
            for flag in ("01", "00"):
                pipe.ask([body] * 3, [f"x-request-id: r{n}-{flag}\r\ntraceparent: {SPAN}{flag}\r\n" for n in range(3)])
            (answer,) = pipe.ask([body])
            given = re.search(rb"X-Request-Id: (\S+)", answer)
            assert given is not None
        assert replica.stop() == 0
        # What is left is written at the end.
        spans = eventually(lambda: [span for span in found.spans if span.name == "infer flights"])
    rows = [
        row for path in (tmp_path / "serving" / "logs").rglob("*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    ids = [f"r{n}-{flag}" for flag in ("01", "00") for n in range(3)]
    assert sorted(row["request_id"] for row in rows) == sorted([*ids, given[1].decode()])
    assert all((row["version"], row["dataset_version"]) == (3, 43) for row in rows)
    assert all((row["inputs"], row["outputs"]) == ({"x": [1, 2, 3]}, {"y": [2, 4, 6]}) for row in rows)
    accessed = [json.loads(line) for line in lines.read_text().splitlines()]
    infer = [each for each in accessed if each["path"].endswith("/infer")]
    assert [each["request_id"] for each in infer] == [*ids, given[1].decode()]
    assert {(each["status"], each["version"]) for each in infer} == {(200, "3")}
    # Only those whose caller keeps his own.
    assert len(spans) == 3
    for span in spans:
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (SPAN[3:35], SPAN[36:52])
        named: dict[str, Any] = {each.key: each.value for each in span.attributes}
        assert named["dropforge.version"].int_value == 3
        assert named["dropforge.request_id"].string_value in ids
        assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 10**10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--log-requests", "2"), "--log-requests wants a share from 0 to 1, or <endpoint>=<share>, found '2'"),
        (("--access-log", "/no/such/folder"), "cannot write the access log to /no/such/folder"),
    ],
)
def test_a_log_that_cannot_be_kept_is_told_at_the_start(tmp_path: Path, options: tuple[str, str], said: str) -> None:
    command = [sys.executable, "-m", "dropforge.serving", "--root", str(tmp_path), "--port", "0", "--no-key", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr
