"""The embedded host as a process of its own, for tests: started on a free port, stopped, killed, looked at."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tests.conftest import episodes_of

APPS = Path(__file__).parent / "apps"
PAYLOADS = Path(__file__).parent / "payloads"
COMMAND = (sys.executable, "-m", "dropforge.host")
PATIENCE_SECONDS = 30.0

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What the server answered."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class HostHandle:
    """One host process and its state folder."""

    process: subprocess.Popen[bytes]
    state: Path
    # What connection.json says; empty before the host is ready.
    connection: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return str(self.connection["url"])

    @property
    def keys(self) -> dict[str, str]:
        """function, master, and the system keys by name."""
        told = self.connection
        return {"function": told["function_key"], "master": told["master_key"], **told["system_keys"]}

    def request(
        self,
        method: str,
        path: str,
        body: bytes | str | object = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request on a connection of its own; a body that is neither text nor bytes is sent as JSON. `key` names
        one of `keys` and goes into the header."""
        sent = dict(headers or {})
        if key is not None:
            sent["x-functions-key"] = self.keys[key]
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
            sent.setdefault("Content-Type", "application/json")
        place = urlsplit(self.url)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=PATIENCE_SECONDS)
        with contextlib.closing(connection):
            connection.request(method, path.removeprefix(self.url), body=body, headers=sent)
            response = connection.getresponse()
            return Answer(response.status, response.read(), {k.lower(): v for k, v in response.getheaders()})

    def kill(self) -> None:
        """As a power cut: SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def logs(self) -> list[dict[str, Any]]:
        """The structured log of every host that ran on this state folder."""
        return read_lines(self.state / "logs" / "host.jsonl")

    def output(self) -> str:
        """What host processes on this folder wrote to stdout and stderr."""
        return (self.state / "output.txt").read_text(errors="replace")

    def saw(self, what: str) -> list[dict[str, Any]]:
        """What the functions of the app `doors` wrote down."""
        return [line for line in read_lines(self.state / "saw.jsonl") if line["what"] == what]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines in a file; none when there is no file. A line being written is left out."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def start_host(
    app: Path,
    state: Path,
    env: Mapping[str, str] | None = None,
    arguments: Sequence[str] = ("--port", "0"),
    command: Sequence[str] = COMMAND,
) -> HostHandle:
    """Start the process and return at once."""
    state.mkdir(parents=True, exist_ok=True)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("DROPFORGE_", "AzureWebJobs"))
    }
    episodes = episodes_of(app.name)
    recorded = ["--record", str(episodes)] if episodes and command is COMMAND else []
    with (state / "output.txt").open("ab") as output:
        process = subprocess.Popen(
            [*command, "--app", str(app), "--state", str(state), *recorded, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**environment, "HOURLY": "0 0 * * * *", **(env or {})},
        )
    return HostHandle(process, state)


def wait_ready(host: HostHandle) -> HostHandle:
    """Wait until this process has written connection.json. Fails with its output when it ends instead."""

    def ready() -> bool:
        if host.process.poll() is not None:
            raise AssertionError(f"the host ended with {host.process.returncode}:\n{host.output()}")
        with contextlib.suppress(FileNotFoundError, ValueError):
            told = json.loads((host.state / "connection.json").read_text())
            if told["pid"] == host.process.pid:
                host.connection = told
        return bool(host.connection)

    eventually(ready)
    return host


@contextlib.contextmanager
def running_host(
    app: Path, state: Path, env: Mapping[str, str] | None = None, arguments: Sequence[str] = ("--port", "0")
) -> Iterator[HostHandle]:
    """A host that is ready; it is killed at the end if the test has not ended it."""
    host = start_host(app, state, env, arguments)
    try:
        yield wait_ready(host)
    finally:
        if host.process.poll() is None:
            host.kill()


# ---------------------------------------------------------------------- Service Bus
class Bus:
    """The local Service Bus as a process of its own, on free ports that stay the same from one start to the next."""

    KEY = "the-key-of-the-tests"

    def __init__(self, config: Path, state: Path) -> None:
        self._config = config
        self._state = state
        with socket.create_server(("127.0.0.1", 0)) as amqp, socket.create_server(("127.0.0.1", 0)) as admin:
            self.port, self._admin_port = amqp.getsockname()[1], admin.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def connection(self) -> str:
        return (
            f"Endpoint=sb://127.0.0.1:{self.port};SharedAccessKeyName=RootManageSharedAccessKey;"
            f"SharedAccessKey={self.KEY};UseDevelopmentEmulator=true;"
        )

    def start(self, config: Path | None = None) -> None:
        """Start the process, and wait until it is healthy."""
        self._state.mkdir(parents=True, exist_ok=True)
        with (self._state / "output.txt").open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "dropforge.servicebus", "--config", str(config or self._config)),
                    *("--state", str(self._state), "--port", str(self.port), "--admin-port", str(self._admin_port)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "DROPFORGE_SERVICE_BUS_KEY": self.KEY},
            )
        eventually(self._is_healthy)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_SECONDS)

    def _is_healthy(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._state / "output.txt").read_text()
        connection = http.client.HTTPConnection("127.0.0.1", self._admin_port, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False


@contextlib.contextmanager
def running_bus(config: Path, state: Path) -> Iterator[Bus]:
    """A Service Bus that is ready; it is killed at the end."""
    bus = Bus(config, state)
    try:
        bus.start()
        yield bus
    finally:
        bus.kill()


def eventually(find: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """The first true thing that `find` returns; fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        found = find()
        if found:
            return found
        assert time.monotonic() < deadline, f"nothing after {seconds:g} s; last found: {found!r}"
        time.sleep(0.02)
