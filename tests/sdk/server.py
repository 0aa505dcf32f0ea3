"""The local Service Bus endpoint as a process of its own, for Microsoft's tests and for the benchmark."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.sdk.local import KEYS, Endpoint
from tests.sdk.sdist import ROOT

PATIENCE_SECONDS = 20.0


class Server:
    """One endpoint process on free ports with its state in `folder`."""

    def __init__(self, folder: Path, config: dict[str, Any], module: str = "dropforge.servicebus") -> None:
        self.folder = folder
        amqp, admin = free_ports(2)
        self.endpoint = Endpoint(f"localhost:{amqp}", f"localhost:{admin}")
        (folder / "config.json").write_text(json.dumps(config))
        command = [sys.executable, "-m", module, "--config", str(folder / "config.json")]
        command += ["--state", str(folder / "state"), "--port", str(amqp), "--admin-port", str(admin)]
        environment = {**os.environ, "DROPFORGE_SERVICE_BUS_KEY": " ".join(key.argument for key in KEYS)}
        with (folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        self._ready(admin)

    def _ready(self, admin: int) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while not healthy(admin):
            if self.process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise RuntimeError(f"the endpoint did not start: {self.log()[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")


@contextlib.contextmanager
def served(folder: Path, config: dict[str, Any], module: str = "dropforge.servicebus") -> Iterator[Server]:
    """An endpoint for the time of the block; `module` takes the endpoint's options."""
    server = Server(folder, config, module)
    try:
        yield server
    finally:
        server.stop()


def healthy(admin_port: int) -> bool:
    """Whether the health of the endpoint's admin port says so."""
    connection = http.client.HTTPConnection("localhost", admin_port, timeout=PATIENCE_SECONDS)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/health")
            return bool(json.loads(connection.getresponse().read())["status"] == "healthy")
        except OSError:
            return False


def free_ports(count: int) -> Sequence[int]:
    """Ports that nobody listens on right now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("localhost", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
