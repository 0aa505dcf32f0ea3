"""A server as a process of its own, held to one core, and what it costs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dropforge.adapters.local.serving import LocalServing
from dropforge.domain.endpoints import Deployment, Desired

TICK = os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0))
# The server's, and that of who asks it. On a machine with one core there is nothing to measure.
SERVER, CLIENT = {CORES[0]}, {CORES[-1]}


class Replica:
    """The process, its state folder and its port."""

    def __init__(self, root: Path, process: subprocess.Popen[str], port: int, log: Path) -> None:
        self.pid = process.pid
        self.port = port
        self._root, self._log = root, log
        self.serving = LocalServing(root)

    def publish(self, endpoint: str, revision: int, version: int, path: Path, sha256: str) -> float:
        """When it was there to be seen, in seconds since 1970."""
        one = Deployment(endpoint, version, path.as_uri(), sha256, version, traffic=100)
        self.serving.publish(Desired(endpoint, revision, (one,), datetime.now(UTC)))
        return (self._root / "desired" / f"{endpoint}.json").stat().st_ctime

    def served_at(self, endpoint: str) -> dict[int, float]:
        """When each revision began to answer, by the server's log, in seconds since 1970."""
        told = re.finditer(
            rf"(?m)^(\S+ \S+),(\d+) INFO {endpoint}: serving .* \(revision (\d+)\)$", self._log.read_text()
        )
        return {
            int(n): datetime.fromisoformat(at).timestamp() + int(ms) / 1000 for at, ms, n in (m.groups() for m in told)
        }

    def reached(self, endpoint: str, revision: int, seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while True:
            found = self.serving.observe(endpoint)
            if any(each.revision == revision for each in found):
                return
            if time.monotonic() > until or any(each.error for each in found):
                raise AssertionError(f"{endpoint} did not reach revision {revision}: {found}")
            time.sleep(0.01)

    @property
    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)

    @property
    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def rest(pid: int, seconds: float = 30) -> None:
    """Wait until the process has nothing to do: what it works off for those who have gone takes others' time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        before = cpu_seconds(pid)
        time.sleep(0.1)
        if cpu_seconds(pid) - before < 0.03:
            return


@contextmanager
def started(root: Path, *options: str, cores: set[int] = SERVER) -> Iterator[Replica]:
    """A server on its cores, without a key."""
    log = root.parent / f"{root.name}.log"
    command = [sys.executable, "-m", "dropforge.serving", "--root", str(root), "--port", "0", "--replica", "r1"]
    with log.open("w") as written:
        process = subprocess.Popen(
            [*command, "--no-key", "--die-with-parent", "--poll", "0.02", *options], stderr=written, text=True
        )
    os.sched_setaffinity(process.pid, cores)
    try:
        until = time.monotonic() + 60
        while not (found := re.search(r"listens on http://\S+:(\d+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(log.read_text())
            time.sleep(0.02)
        yield Replica(root, process, int(found[1]), log)
    finally:
        process.terminate()
        process.wait(60)


def asked(module: str, cores: set[int], **given: Any) -> dict[str, Any]:
    """What a module of this folder says to a JSON object, as a process on its cores."""
    # However little the process that asks has of its core.
    held = ["chrt", "--other", "0", "taskset", "-c", ",".join(map(str, cores))]
    command = [*held, sys.executable, "-m", f"benchmarks.load.{module}"]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
