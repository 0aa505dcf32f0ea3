"""What one inference request costs in the server's own code: requests are handed to its connections without sockets.

    python -m benchmarks.serving_path [--profile]

64 connections each hold one request a turn, as the loop would hand them over after one look at the sockets; the answers are
thrown away. Counted is processor time, and of many rounds the least, so that a busy machine disturbs little; the model's own
share is what `run` takes for the same batch. The models are those of `benchmarks.serving`. The last line is one JSON object:
microseconds for each request by model and encoding, with the model's share and without it.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import pstats
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import uvloop

from benchmarks import serving_models
from dropforge.adapters.local.serving import LocalServing
from dropforge.domain.endpoints import Deployment, Desired
from dropforge.serving import batching
from dropforge.serving.converge import Converger
from dropforge.serving.http1 import Connection, Connections, Limits
from dropforge.serving.server import Server
from dropforge.serving.source import Folder

CONNECTIONS = 64
ROUNDS = 200
TURNS = 4


class Wire(asyncio.Transport):
    """A transport that forgets what it is to send, but for the last answer."""

    last = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.last = bytes(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        raise AssertionError("a request was not answered in its turn")


async def cost(server: Server, wires: list[Wire], connections: list[Connection], request: bytes) -> float:
    """Microseconds of processor time for each request."""
    began = time.process_time()
    for _ in range(TURNS):
        for connection in connections:
            connection.data_received(request)
        await asyncio.sleep(0)
    spent = time.process_time() - began
    return spent / TURNS / len(connections) * 1e6


def share(run: serving_models.Run, rows: np.ndarray) -> float:
    """Microseconds of the model for each request of such a batch."""
    batch = np.concatenate([rows] * CONNECTIONS)
    began = time.process_time()
    for _ in range(TURNS):
        run(batch)
    return (time.process_time() - began) / TURNS / CONNECTIONS * 1e6


async def measure(folder: Path, profile: bool) -> dict[str, float]:
    now = datetime.now(UTC)
    # However busy the machine is, batches are run on the loop.
    batching.INLINE_SECONDS = 1.0
    source = Folder(folder / "root", "r1")
    (folder / "root" / "desired").mkdir(parents=True)
    kinds = [kind for kind in serving_models.KINDS if kind.name in ("gbt", "mlp")]
    for kind in kinds:
        path, sha256 = serving_models.written(folder, kind)
        one = Deployment(kind.name, 1, path.as_uri(), sha256, 1, traffic=100)
        LocalServing(folder / "root").publish(Desired(kind.name, 1, (one,), now))
    converger = Converger(source, "r1", 0.05)
    watching = asyncio.create_task(converger.run())
    while not converger.ready:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.05)
    limits = Limits()
    server, among = Server(converger, "k", limits), Connections(limits)
    figures: dict[str, float] = {}
    gc.freeze()
    for kind in kinds:
        for encoding in ("json", "binary"):
            request = serving_models.request(kind, encoding)
            wires = [Wire() for _ in range(CONNECTIONS)]
            connections = [Connection(server, among) for _ in wires]
            for connection, wire in zip(connections, wires, strict=True):
                connection.connection_made(wire)
            for _ in range(5):
                await cost(server, wires, connections, request)
                await asyncio.sleep(0.3)
            assert wires[-1].last.startswith(b"HTTP/1.1 200 OK"), wires[-1].last
            if profile:
                with cProfile.Profile() as profiler:
                    await cost(server, wires, connections, request)
                print(kind.name, encoding)
                pstats.Stats(profiler).sort_stats("tottime").print_stats(22)
            whole, model = [], []
            run = serving_models.session(folder, kind)
            for _ in range(ROUNDS):
                whole.append(await cost(server, wires, connections, request))
                model.append(share(run, kind.rows()))
            name = f"{kind.name}_{encoding}"
            figures[f"{name}_us"] = round(min(whole), 2)
            figures[f"{name}_own_us"] = round(min(whole) - min(model), 2)
            print(f"{name:12} {figures[f'{name}_us']:7.2f} us, without the model {figures[f'{name}_own_us']:7.2f} us")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await converger.close()
    server.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serving-path-") as folder:
        print(json.dumps(uvloop.run(measure(Path(folder), options.profile))))


if __name__ == "__main__":
    main()
