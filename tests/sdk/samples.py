"""Runs the samples that come with azure-servicebus, each as a process of its own, against the local endpoint."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.sdk.local import ROOT_KEY, Endpoint, administration
from tests.sdk.sdist import ROOT, fetched

# Of the 58 samples, those below and some that need the cloud cannot run here.
WANTED = 33
AT_ONCE = 8
# The longest of them keeps a lock alive for a hundred seconds, five times over.
SAMPLE_SECONDS = 900

# Why a sample is not run: it needs what no local endpoint has, or it has no end.
LEFT_OUT: Mapping[str, str] = {
    "client_identity_authentication": "Microsoft Entra",
    "connection_to_custom_endpoint_address": "TLS to an endpoint address in Azure",
    "proxy": "an HTTP proxy and WebSockets",
    "receive_iterator_queue": "has no end: it waits for messages for ever",
    "failure_and_recovery": "has no end: it sends and receives for ever",
}


@dataclass(frozen=True)
class Sample:
    """How one sample ended."""

    name: str
    code: int
    seconds: float
    output: str


@dataclass(frozen=True)
class Ran:
    """How all ended."""

    samples: Sequence[Sample]
    left_out: Sequence[str]

    @property
    def failed(self) -> list[Sample]:
        return [each for each in self.samples if each.code]

    def report(self) -> str:
        lines = [f"FAILED sample {each.name} ({each.seconds:.0f} s)\n{each.output[-600:]}" for each in self.failed]
        told = f"{len(self.samples) - len(self.failed)} ran to the end, {len(self.failed)} failed"
        return "\n".join([*lines, f"{len(self.samples)} samples: {told}; left out: {', '.join(self.left_out)}"])


def run(endpoint: Endpoint, at_once: int = AT_ONCE, only: str = "") -> Ran:
    """Runs every sample that can run, several at once, each with entities of its own."""
    found = sorted((fetched() / "samples").glob("*_samples/*.py"))
    found = [each for each in found if only in each.name]
    left_out = [each for each in found if each.stem.removesuffix("_async") in LEFT_OUT]
    with ThreadPoolExecutor(at_once) as pool:
        ended = pool.map(lambda path: _run_one(endpoint, path), (each for each in found if each not in left_out))
        return Ran(tuple(ended), tuple(each.stem for each in left_out))


def _run_one(endpoint: Endpoint, path: Path) -> Sample:
    environment = {**os.environ, **endpoint.environment(), **_settings(endpoint, path), "PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    command = [sys.executable, "-m", "tests.sdk.one_sample", str(path)]
    try:
        done = subprocess.run(
            command,
            cwd=path.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SAMPLE_SECONDS,
            check=False,
        )
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        code, output = 124, error.stdout or b""
    return Sample(path.stem, code, time.monotonic() - started, output.decode(errors="replace"))


def _settings(endpoint: Endpoint, path: Path) -> dict[str, str]:
    """The variables that samples read, and the entities they name: made here, as a reader of the samples makes them."""
    own = f"{path.stem.replace('_', '-')[:30]}-{uuid.uuid4().hex[:8]}"
    with administration(endpoint) as client:
        client.create_queue(own)
        client.create_queue(f"{own}-sessions", requires_session=True)
        client.create_topic(f"{own}-topic")
        # One of them lists the sessions of its subscription; the others receive from theirs without sessions.
        client.create_subscription(f"{own}-topic", f"{own}-sub", requires_session="list_sessions" in path.stem)
    return {
        "SERVICEBUS_CONNECTION_STR": ROOT_KEY.connection_string(endpoint),
        "SERVICEBUS_FULLY_QUALIFIED_NAMESPACE": endpoint.amqp,
        "SERVICEBUS_QUEUE_NAME": own,
        "SERVICEBUS_SESSION_QUEUE_NAME": f"{own}-sessions",
        "SERVICEBUS_SESSION_ID": "session-1",
        "SERVICEBUS_TOPIC_NAME": f"{own}-topic",
        "SERVICEBUS_SUBSCRIPTION_NAME": f"{own}-sub",
        "SERVICEBUS_SAS_POLICY": ROOT_KEY.name,
        "SERVICEBUS_SAS_KEY": ROOT_KEY.value,
    }
