"""A bare inference server to compare with: a protocol of asyncio, httptools, uvloop, and what one turn of the loop has read
is a batch. `python -m benchmarks.load.bare MODEL`.

It has one model, reads good requests only, checks, counts and swaps nothing: what is left is what any server in Python that
speaks this protocol pays. Prints its port.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httptools
import msgspec
import numpy as np
import onnxruntime
import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
BINARY = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\nInference-Header-Content-Length: %d\r\n\r\n%b%b"


class Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[float] | None = None


class Request(msgspec.Struct):
    inputs: list[Input]


class Model:
    """Runs what a turn of the loop has gathered."""

    def __init__(self, path: str, loop: asyncio.AbstractEventLoop) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]
        self._input = self._session.get_inputs()[0].name
        self._loop = loop
        self._waiting: list[tuple[Connection, np.ndarray[Any, Any], bool]] = []
        self.decode = msgspec.json.Decoder(Request).decode
        self.encode = msgspec.json.Encoder().encode

    def put(self, connection: Connection, rows: np.ndarray[Any, Any], binary: bool) -> None:
        if not self._waiting:
            self._loop.call_soon(self._run)
        self._waiting.append((connection, rows, binary))

    def _run(self) -> None:
        taken, self._waiting = self._waiting, []
        rows = np.concatenate([each[1] for each in taken]) if len(taken) > 1 else taken[0][1]
        outputs = self._session.run(self._names, {self._input: rows})
        out: dict[Connection, list[bytes]] = {}
        start = 0
        for connection, given, binary in taken:
            end = start + len(given)
            out.setdefault(connection, []).append(self._answer([each[start:end] for each in outputs], binary))
            start = end
        for connection, answers in out.items():
            connection.transport.write(b"".join(answers))

    def _answer(self, outputs: list[np.ndarray[Any, Any]], binary: bool) -> bytes:
        told: list[dict[str, Any]] = []
        data = []
        for name, array in zip(self._names, outputs, strict=True):
            one = {"name": name, "shape": array.shape, "datatype": "FP32" if array.dtype.kind == "f" else "INT64"}
            if binary:
                data.append(array.tobytes())
                told.append(one | {"parameters": {"binary_data_size": len(data[-1])}})
            else:
                told.append(one | {"data": array.ravel().tolist()})
        said = self.encode({"model_name": "m", "outputs": told})
        if not binary:
            return ANSWER % (len(said), said)
        rest = b"".join(data)
        return BINARY % (len(said) + len(rest), len(said), said, rest)


class Connection(asyncio.Protocol):
    """One client."""

    transport: asyncio.Transport

    def __init__(self, model: Model) -> None:
        self._model = model
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"inference-header-content-length":
            self._header_bytes = int(value)

    def on_body(self, data: bytes) -> None:
        self._body = self._body + data if self._body else data

    def on_message_complete(self) -> None:
        body, binary = self._body, self._header_bytes
        self._body, self._header_bytes = b"", 0
        given = self._model.decode(body[:binary] if binary else body).inputs[0]
        if binary:
            rows = np.frombuffer(body, np.float32, offset=binary).reshape(given.shape)
        else:
            rows = np.array(given.data, np.float32).reshape(given.shape)
        self._model.put(self, rows, bool(binary))


async def serve(path: str) -> None:
    loop = asyncio.get_running_loop()
    model = Model(path, loop)
    server = await loop.create_server(lambda: Connection(model), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
