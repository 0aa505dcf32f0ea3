"""Hundreds of kills: a run starts at most once, and always ends with nothing of it left alive."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dropforge.adapters.local import supervisor
from dropforge.adapters.local.artifacts import LocalArtifacts
from dropforge.adapters.local.compute import LocalCompute
from dropforge.domain.runs import RunState
from tests.e2e.local_runs import PRELUDE, ended, folder_of, marked, spec_for, submitter

ROUNDS = 200


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_submitters_and_supervisors_killed_at_random_moments(tmp_path: Path) -> None:
    chance = random.Random(2013)
    artifacts = LocalArtifacts(tmp_path / "artifacts")
    lines = "say('started'); time.sleep(0.1); leave()"
    command = (sys.executable, "-I", "-S", "-c", PRELUDE + lines)
    node = LocalCompute(tmp_path / "runs", artifacts, node_command=command)
    states = []
    for number in range(ROUNDS):
        spec = spec_for(artifacts, run=f"r{number}")
        process = submitter(tmp_path, lines, spec, "node.submit(from_json(RunSpec, spec))")
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        time.sleep(chance.random() * 0.12)
        process.kill()
        process.communicate(timeout=60)
        if chance.random() < 0.5:
            time.sleep(chance.random() * 0.1)
            _kill_supervisors(folder_of(node, spec.run))

        node.submit(spec)
        status = ended(node, spec.run)

        started = node.logs(spec.run).count("started")
        assert started == 1 if status.state is RunState.SUCCEEDED else started <= 1
        assert marked(folder_of(node, spec.run)) == []
        states.append(status.state)
    assert {RunState.SUCCEEDED, RunState.FAILED} == set(states)


def _kill_supervisors(folder: Path) -> None:
    for pid in supervisor._pids():
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\x00")
            if str(folder).encode() in words and supervisor.__file__.encode() in words:
                os.kill(pid, signal.SIGKILL)
