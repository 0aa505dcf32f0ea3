"""Requests that nobody would send, thousands of them, and clients that hold on for ever: the server goes on as before."""

from __future__ import annotations

import json
import os
import random
import resource
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.test_serving import KEY, Replica, one_row
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import deployment
from tests.unit.serving.wire import Said, read_answers

SEED = 20_251
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """Serves `flights` (numbers) and `table` (one input per column); both answer whatever fits them."""
    folder = tmp_path_factory.mktemp("serving")
    running = Replica(folder / "serving", "--max-body-bytes", "200000")
    running.publish(1, deployment(folder, onnx_models.scaled(2), 1))
    running.publish(1, deployment(folder, onnx_models.columns(), 1), endpoint="table")
    running.reached(1)
    running.reached(1, "table")
    yield running
    assert running.stop() == 0
    assert "Traceback" not in "".join(running.log)


class Fuzzer:
    """Requests that are nearly right, from a seed."""

    TOKENS = (
        *(b"\r\n", b"\r", b"\n", b"\x00", b"\xff\xfe", b" ", b":", b"/", b"%2F", b"%", b"\xc3\xa9", b"\t", b"chunked"),
        *(b"{", b"}", b"[", b"]", b'"', b",", b"null", b"NaN", b"1e999", b"-1", b"9" * 30, b"\\ud800", b'"data":['),
        *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"HTTP/1.0"),
    )

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def request(self) -> bytes:
        """One or a few, whole or not."""
        data = b"".join(self._one() for _ in range(self.random.choice((1, 1, 1, 2, 5))))
        for _ in range(self.random.choice((0, 1, 1, 2, 8))):
            data = self._changed(data)
        return data

    def pieces(self, data: bytes) -> list[bytes]:
        """The same, cut here and there."""
        cuts = sorted(self.random.randrange(len(data) + 1) for _ in range(self.random.choice((0, 0, 1, 3))))
        return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if end > start]

    def _one(self) -> bytes:
        body, headers = self._body()
        path = self.random.choice(
            (
                *("/v2/models/flights/infer",) * 4,
                *("/v2/models/table/infer", "/v2/models/flights/versions/1/infer", "/score/flights", "/score"),
                *(
                    "/v2/models/none/infer",
                    "/v2/models/flights",
                    "/v2",
                    "/metrics",
                    "/v2/health/ready",
                    "/",
                    "/v2/models/",
                ),
            )
        )
        method = self.random.choice(("POST", "POST", "POST", "GET", "HEAD", "PUT", "OPTIONS"))
        lines = [f"{method} {path} HTTP/1.{self.random.choice('1110')}", "Host: x", *headers]
        if self.random.random() < 0.9:
            lines.append(f"Authorization: Bearer {KEY}")
        if self.random.random() < 0.3:
            lines.append("Transfer-Encoding: chunked")
            body = self._in_chunks(body)
        else:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def _body(self) -> tuple[bytes, list[str]]:
        rows = self.random.choice((1, 1, 2, 50))
        x = {"name": "x", "shape": [rows, 3], "datatype": "FP32"}
        row = {"origin": "EWR", "distance": 1.5, "seats": 3, "late": True}
        kind = self.random.choice(("json", "json", "nested", "binary", "binary", "rows", "table", "odd"))
        if kind == "binary":
            header = json.dumps({"inputs": [x | {"parameters": {"binary_data_size": rows * 12}}]}).encode()
            return header + bytes(rows * 12), [f"Inference-Header-Content-Length: {len(header)}"]
        values: Any = [self.random.uniform(-9, 9) for _ in range(rows * 3)]
        asked: Any = {
            "json": {"inputs": [x | {"data": values}]},
            "nested": {"inputs": [x | {"data": [values[place : place + 3] for place in range(0, rows * 3, 3)]}]},
            "rows": {"rows": [[1, 2, 3]] * rows},
            "table": {"rows": [row] * rows},
            "odd": self.random.choice(
                ([], {}, None, 5, "a", {"inputs": []}, {"rows": []}, {"inputs": [x], "rows": []})
            ),
        }[kind]
        if isinstance(asked, dict) and self.random.random() < 0.3:
            asked |= self.random.choice(
                ({"id": "a"}, {"id": 5}, {"outputs": [{"name": "y"}]}, {"parameters": {"binary_data_output": True}})
            )
        return json.dumps(asked).encode(), []

    def _in_chunks(self, body: bytes) -> bytes:
        parts = [body[at : at + 40] for at in range(0, len(body), 40)]
        return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

    def _changed(self, data: bytes) -> bytes:
        at = self.random.randrange(len(data) + 1)
        end = min(len(data), at + self.random.choice((0, 1, 1, 4, 50)))
        what = self.random.randrange(6)
        if what == 0:
            return data[:at] + self.random.choice(self.TOKENS) + data[at:]
        if what == 1:
            return data[:at] + self.random.choice(self.TOKENS) + data[end:]
        if what == 2:
            return data[:at] + data[end:]
        if what == 3:
            return data[:end] + data[at:end] * self.random.choice((1, 3, 100)) + data[end:]
        if what == 4:
            return data[:at]
        return data[:at] + bytes([self.random.randrange(256)]) + data[at + 1 :]


def exchanged(port: int, pieces: list[bytes], *, leave: bool = False) -> list[Said]:
    """What the server says until it closes, which it does soon: the client sends no more. One who leaves hears nothing."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        heard = b""
        # It may have refused, and closed, before all was sent.
        with suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
            if leave:
                return []
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(1 << 16):
                heard += data
    heard = heard.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    try:
        return read_answers(heard)
    except (AssertionError, ValueError, IndexError):
        # Of an answer to HEAD the length is that of the body it would have had.
        assert b"HEAD" in b"".join(pieces), (pieces, heard)
        return []


class Neighbour:
    """A client that asks for what fits all the while, and how long it waited."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.took: list[float] = []
        self.wrong: list[object] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            answer = self.replica.infer(one_row(1, 2, 3))
            self.took.append(time.monotonic() - began)
            if answer.status != 200 or answer.json["outputs"][0]["data"] != [2, 4, 6]:
                self.wrong.append(answer)
            self._stop.wait(0.02)

    def __enter__(self) -> Neighbour:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def resident_bytes(replica: Replica) -> int:
    return int(Path(f"/proc/{replica.process.pid}/statm").read_text().split()[1]) * PAGE


def slope(values: list[int]) -> float:
    """Bytes for each step, by least squares."""
    return float(np.polyfit(np.arange(len(values)), values, 1)[0])


def fuzz(replica: Replica, count: int, seed: int) -> tuple[dict[int, int], list[int]]:
    """Answers by status, and the resident memory after each hundredth of the requests."""
    fuzzer = Fuzzer(seed)
    statuses: dict[int, int] = {}
    memory: list[int] = []
    for number in range(count):
        data = fuzzer.request()
        leave = fuzzer.random.random() < 0.05
        for answer in exchanged(replica.port, fuzzer.pieces(data), leave=leave):
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
            # Another version of HTTP is refused with a 505; nothing else is the server's fault.
            assert answer.status < 500 or answer.status == 505, (data, answer)
        if number % (count // 100) == 0:
            memory.append(resident_bytes(replica))
    return statuses, memory


def test_thousands_of_odd_requests_are_answered_and_nothing_grows(replica: Replica) -> None:
    with Neighbour(replica) as neighbour:
        statuses, memory = fuzz(replica, 2000, SEED)
    assert statuses[200] > 200 and statuses[400] > 200, statuses
    assert neighbour.wrong == []
    assert sorted(neighbour.took)[int(len(neighbour.took) * 0.99)] < 1.0
    # What heads and headers are remembered fills up at first.
    assert memory[-1] - memory[50] < 16 * MIB


@pytest.mark.soak
def test_fifty_thousand_odd_requests_are_answered_and_memory_is_flat(replica: Replica) -> None:
    with Neighbour(replica) as neighbour:
        _, memory = fuzz(replica, 50_000, SEED + 1)
    assert neighbour.wrong == []
    assert slope(memory[50:]) * 50 < 8 * MIB
    assert memory[-1] - memory[50] < 16 * MIB


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip(f"2,000 connections want 4,096 open files; the system allows {hard} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_two_thousand_clients_that_never_come_to_an_end_stop_nobody(replica: Replica, many_files: None) -> None:
    head = b"POST /v2/models/flights/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n"
    halves = (
        head,
        head + b"Content-Length: 100\r\n\r\n{",
        head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"",
        b"G",
    )
    slow = [socket.create_connection(("127.0.0.1", replica.port), 30) for _ in range(2000)]
    try:
        for number, connection in enumerate(slow):
            connection.sendall(halves[number % len(halves)])
        with Neighbour(replica) as neighbour:
            for _ in range(3):
                for connection in slow:
                    connection.send(b"a")
                time.sleep(0.2)
        assert len(neighbour.took) > 10
        assert neighbour.wrong == []
        assert sorted(neighbour.took)[len(neighbour.took) // 2] < 0.5
    finally:
        for connection in slow:
            connection.close()


@pytest.mark.soak
def test_clients_that_never_come_to_an_end_are_told_that_they_took_too_long(replica: Replica) -> None:
    head = b"POST /v2/models/flights/infer HTTP/1.1\r\nHost: x\r\n"
    slow = [socket.create_connection(("127.0.0.1", replica.port), 30) for _ in range(200)]
    poller, heard = select.poll(), dict[int, bytes]()
    try:
        for connection in slow:
            connection.sendall(head)
            poller.register(connection, select.POLLIN)
        until = time.monotonic() + 20
        while len(heard) < len(slow) and time.monotonic() < until:
            for number, _ in poller.poll(100):
                heard[number] = heard.get(number, b"") + next(c for c in slow if c.fileno() == number).recv(4096)
                poller.unregister(number)
            for connection in slow:
                if connection.fileno() not in heard:
                    with suppress(ConnectionError):
                        connection.send(b"a")
            time.sleep(0.5)
        assert len(heard) == len(slow)
        assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in heard.values())
    finally:
        for connection in slow:
            connection.close()


def test_ten_thousand_idle_connections_cost_little_memory(tmp_path: Path) -> None:
    # Half of them here are clients, in this process; a few thousand show as much as ten do.
    count = 3000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 1000:
        pytest.skip(f"{count} connections want {count + 1000} open files; the system allows {hard} (ulimit -Hn)")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 1000), hard))
    running = Replica(tmp_path / "serving")
    request = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    idle: list[socket.socket] = []
    try:
        before = resident_bytes(running)
        for _ in range(count):
            idle.append(socket.create_connection(("127.0.0.1", running.port), 30))
            idle[-1].sendall(request)
            assert idle[-1].recv(4096).startswith(b"HTTP/1.1 200 ")
        assert (resident_bytes(running) - before) / count < 8192
    finally:
        for connection in idle:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert running.stop() == 0
