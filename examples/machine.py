"""The platform on this machine, for the length of a demonstration."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from dropforge.client import Client, connect
from dropforge.domain.errors import Unavailable

ROOT = Path(__file__).parent.parent


def start_platform(state: Path) -> tuple[subprocess.Popen[bytes], Client]:
    """`dropforge up` on a fresh state folder and a free port, once it answers."""
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    with (state / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dropforge.cli", "up", "--state", str(state), "--port", "0", "--app", str(ROOT)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    for _ in range(300):
        if process.poll() is not None:
            raise SystemExit(f"the platform did not start:\n{(state / 'up.log').read_text()[-2000:]}")
        try:
            client = Client(connect(state))
            client.get("health")
        except Unavailable:
            time.sleep(0.1)
        else:
            return process, client
    raise SystemExit(f"the platform did not answer within 30 s; see {state / 'up.log'}")


def stop_platform(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
