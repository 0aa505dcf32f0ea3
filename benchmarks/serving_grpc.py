"""gRPC: requests a second of ModelInfer, and how many of raw onnxruntime's runs that is.

    python -m benchmarks.serving_grpc [--seconds 4] [--rounds 3]

The server has the first core for itself, the generator the last. It writes frames made by hand and knows no gRPC library:
grpcio's own client takes ten times what the server takes for a call. Every answer is counted by the HEADERS that end it,
and the last of each connection is compared with the model's. Raw onnxruntime runs on the server's core, one row at a time,
in turn with the requests, so that all see the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import uvloop

from benchmarks import serving_models
from dropforge.adapters.local.serving import LocalServing
from dropforge.domain.endpoints import Deployment, Desired
from dropforge.serving.grpc import frames
from dropforge.serving.grpc.messages import prefixed
from dropforge.serving.grpc.schema import read_schema

SERVER_CORE, CLIENT_CORE = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
# Connections, and calls at once on each.
SHAPES = ((64, 1), (8, 8), (1, 64), (1, 1))
KINDS = [kind for kind in serving_models.KINDS if kind.name in ("gbt", "mlp")]


def raw(run: serving_models.Run, rows: np.ndarray, seconds: float) -> float:
    """Runs a second, on the server's core."""
    os.sched_setaffinity(0, {SERVER_CORE})
    try:
        count, began = 0, time.perf_counter()
        while time.perf_counter() < began + seconds:
            for _ in range(100):
                run(rows)
            count += 100
        return count / (time.perf_counter() - began)
    finally:
        os.sched_setaffinity(0, {CLIENT_CORE})


class Asker(asyncio.Protocol):
    """One connection with so many calls at once, each followed by another."""

    def __init__(self, message: bytes, calls: int, done: list[int], times: list[float]) -> None:
        names = [(":method", "POST"), (":scheme", "http"), (":path", "/inference.GRPCInferenceService/ModelInfer")]
        names += [(":authority", "x"), ("te", "trailers"), ("content-type", "application/grpc")]
        block = frames.block(names)
        self._head = frames.HEAD.pack(len(block) << 8 | frames.HEADERS, frames.END_HEADERS, 0)[:5]
        self._data = frames.HEAD.pack(len(message) << 8 | frames.DATA, frames.END_STREAM, 0)[:5]
        self._block, self._message, self._calls = block, message, calls
        self._next, self._start, self._done, self._times = 1, b"", done, times
        self._sent: dict[int, float] = {}
        self.answer = b""

    def _ask(self) -> bytes:
        number = self._next.to_bytes(4, "big")
        self._sent[self._next] = time.perf_counter()
        self._next += 2
        return b"".join((self._head, number, self._block, self._data, number, self._message))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        wide = frames.settings({frames.INITIAL_WINDOW_SIZE: frames.MAX_WINDOW})
        start = frames.PREFACE + wide + frames.window_update(0, frames.MAX_WINDOW - frames.FIRST_WINDOW)
        transport.write(start + b"".join(self._ask() for _ in range(self._calls)))  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        data = self._start + data
        at, size, unpack, out, now = 0, len(data), frames.HEAD.unpack_from, [], time.perf_counter()
        while size - at >= 9:
            word, flags, stream = unpack(data, at)
            stop = at + 9 + (word >> 8)
            if stop > size:
                break
            kind = word & 255
            if kind == frames.HEADERS and flags & frames.END_STREAM:
                if b"grpc-status\x010" not in data[at:stop]:
                    raise RuntimeError(f"a call failed: {data[at:stop]!r}")
                self._times.append(now - self._sent.pop(stream))
                out.append(self._ask())
            elif kind == frames.DATA:
                self.answer = data[at + 9 : stop]
            at = stop
        self._start = data[at:]
        self._done[0] += len(out)
        if out:
            self._transport.write(b"".join(out))  # type: ignore[attr-defined]


async def ask(
    port: int, message: bytes, connections: int, calls: int, seconds: float
) -> tuple[float, float, float, bytes]:
    """Answers a second, the median and the 99th percentile of their seconds, and one of them."""
    done, times, loop = [0], list[float](), asyncio.get_running_loop()
    askers = [Asker(message, calls, done, times) for _ in range(connections)]
    for asker in askers:
        await loop.create_connection(lambda asker=asker: asker, "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.sleep(0.5)
    times.clear()
    count, began = done[0], time.perf_counter()
    await asyncio.sleep(seconds)
    rate = (done[0] - count) / (time.perf_counter() - began)
    ordered = sorted(times)
    answer = askers[0].answer
    for asker in askers:
        asker._transport.abort()  # type: ignore[attr-defined]
    return rate, ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)], done[0], answer


@contextmanager
def server(folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """A server on its core, and its port."""
    command = [sys.executable, "-m", "dropforge.serving", "--root", str(folder / "serving"), "--port", "0", "--no-key"]
    process = subprocess.Popen(
        ["taskset", "-c", str(SERVER_CORE), *command, "--workers", "1", "--grpc-port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    port, serving = 0, 0
    for line in process.stderr:
        serving += ": serving" in line
        if found := re.search(r"grpc://\S+:(\d+)", line):
            port = int(found[1])
        if port and serving == len(KINDS):
            break
    try:
        yield port, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=float, default=4.0)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    os.sched_setaffinity(0, {CLIENT_CORE})
    figures: dict[str, dict[str, list[float]]] = {kind.name: {} for kind in KINDS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in KINDS:
            path, sha256 = serving_models.written(folder, kind)
            wanted = Desired(kind.name, 1, (Deployment(kind.name, 1, path.as_uri(), sha256, 1),), datetime.now(UTC))
            LocalServing(folder / "serving").publish(wanted)
        with server(folder) as (port, process):
            for _ in range(given.rounds):
                for kind in KINDS:
                    round_(folder, kind, port, process, given.seconds, figures[kind.name])
    for model, figure in figures.items():
        told = {name: round(statistics.median(values), 3) for name, values in figure.items()}
        ratios = {f"{name} of raw": round(told[name] / told["raw"], 3) for name in told if name.endswith("answers")}
        print(json.dumps({"model": model, **told, **ratios}, indent=1))


def round_(
    folder: Path,
    kind: serving_models.Kind,
    port: int,
    process: psutil.Process,
    seconds: float,
    figure: dict[str, list[float]],
) -> None:
    infer = next(method for method in read_schema().methods if method.name == "ModelInfer")
    run, row = serving_models.session(folder, kind), kind.rows()
    request = infer.request(model_name=kind.name, raw_input_contents=[row.tobytes()])
    request.inputs.add(name=kind.input, datatype="FP32", shape=row.shape)
    message, expected = prefixed(request.SerializeToString()), run(row)
    figure.setdefault("raw", []).append(raw(run, row, seconds / 2))
    for connections, calls in SHAPES:
        before = sum(process.cpu_times()[:2])
        rate, median, late, count, answer = uvloop.run(ask(port, message, connections, calls, seconds))
        spent = sum(process.cpu_times()[:2]) - before
        found = infer.response.FromString(answer[5:]).raw_output_contents
        for data, array in zip(found, expected, strict=True):
            np.testing.assert_allclose(np.frombuffer(data, array.dtype), array.ravel(), rtol=1e-4)
        key = f"{connections} x {calls}"
        figure.setdefault(f"{key} answers", []).append(rate)
        figure.setdefault(f"{key} p50 us", []).append(median * 1e6)
        figure.setdefault(f"{key} p99 us", []).append(late * 1e6)
        figure.setdefault(f"{key} server us each", []).append(spent / count * 1e6)


if __name__ == "__main__":
    main()
