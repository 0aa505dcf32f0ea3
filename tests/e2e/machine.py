"""The whole platform as a process of its own, for tests: `dropforge up` on a state folder, killed and started at will."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import deltalake
import pyarrow.parquet as pq

from dropforge.client import Client, connect, drop_file
from dropforge.domain.errors import Unavailable
from tests.conftest import episodes_of

ROOT = Path(__file__).parent.parent.parent
COIN = Path(__file__).parent / "pipelines" / "coin"

T = TypeVar("T")


class Platform:
    """`dropforge up` as a child process. `environment` is added to a clean one."""

    def __init__(self, state: Path, **environment: str) -> None:
        self.state = state
        self._record = episodes_of("dropforge")
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        state.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Platform:
        self.start()
        self.ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        clean = {
            key: value for key, value in os.environ.items() if not key.startswith(("DROPFORGE", "Azure", "MLFLOW"))
        }
        command = [sys.executable, "-m", "dropforge.cli", "up", "--state", str(self.state), "--port", "0"]
        command += ["--record", str(self._record)]
        (self.state / "connection.json").unlink(missing_ok=True)
        with (self.state / "up.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=clean | {"DROPFORGE_SWEEP_SCHEDULE": "*/2 * * * * *"} | self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def ready(self, seconds: float = 60) -> None:
        eventually(lambda: self._healthy(), seconds, lambda: self.log()[-3000:])

    def _healthy(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the platform ended with {self._process.returncode}: {self.log()[-3000:]}")
        try:
            self.client.get("health")
        except Unavailable:
            return False
        return True

    @property
    def client(self) -> Client:
        return Client(connect(self.state))

    @property
    def connection(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.state / "connection.json").read_text())
        return told

    def kill(self) -> None:
        """SIGKILL, as the power cut does it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                raise AssertionError(f"the platform did not stop within 30 s: {self.log()[-3000:]}") from None
        return self._process.returncode

    def log(self) -> str:
        path = self.state / "up.log"
        return path.read_text(errors="replace") if path.exists() else ""

    # -------------------------------------------------------------------------------------------- what people do
    def drop(self, prefix: str, file: Path) -> None:
        drop_file(self.state, prefix, file)

    def status(self, name: str) -> dict[str, Any]:
        told: dict[str, Any] = self.client.get(f"pipelines/{name}/status")
        return told

    def settled(self, name: str, version: int, seconds: float = 60) -> dict[str, Any]:
        """The status once the run on that dataset version has been concluded."""

        def concluded() -> dict[str, Any] | None:
            told = self.status(name)
            run = next((each for each in told["runs"] if each["dataset_version"] == version), None)
            done = run is not None and run["outcome"] is not None and told["live_run"] is None
            return told if done else None

        return eventually(concluded, seconds, lambda: json.dumps(self.status(name), indent=1) + self.log()[-3000:])

    def score(self, name: str, rows: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        """Status and body of the endpoint's answer."""
        url = f"{self.connection['sidecars']['inference']}/v2/models/{name}/infer"
        key = (self.state / "inference.key").read_text().strip()
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        request = urllib.request.Request(url, json.dumps({"rows": rows}).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"{}")

    def answer(self, name: str, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The endpoint's answer; None while the inference server starts."""
        try:
            status, told = self.score(name, rows)
        except urllib.error.URLError:
            return None
        return told if status == 200 else None


def eventually(look: Callable[[], T | None], seconds: float, why: Callable[[], str]) -> T:
    """What `look` finds, once it finds something that is true. What takes long is looked at less often: a look costs the
    machine a part of what is waited for."""
    began = now = time.monotonic()
    while now < began + seconds:
        found = look()
        if found:
            return found
        time.sleep(min(0.05 + 0.1 * (now - began), 0.5))
        now = time.monotonic()
    raise AssertionError(f"nothing within {seconds:g} s: {why()}")


def throws(folder: Path, number: int, *, days: int = 1, rows: int = 200, bias: float = 0.35) -> Path:
    """A file with the throws of some days. The boxes' shares of heads differ, so that a model can beat the constant."""
    chance = random.Random(number)
    begin = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number * days)
    lines = ["box,thrown_at,heads"]
    for day in range(days):
        for row in range(rows):
            box = chance.randrange(10)
            heads = int(chance.random() < 0.5 + bias * (1 if box % 2 else -1))
            lines.append(f"{box},{(begin + timedelta(days=day, minutes=row)).isoformat()},{heads}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"throws-{number:04}.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def sources_of(table: Path) -> list[str]:
    """The arrival of every row of a Delta table. Its files are read one by one: a whole-table read through deltalake and
    pyarrow leaves threads behind that can abort the interpreter when it ends."""
    found: list[str] = []
    for path in deltalake.DeltaTable(str(table)).file_uris():
        found += pq.read_table(path, columns=["_source"])["_source"].to_pylist()
    return found
