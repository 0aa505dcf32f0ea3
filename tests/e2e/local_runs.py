"""Local training runs with fake nodes, and the processes around them, for tests."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dropforge.adapters.local import supervisor
from dropforge.adapters.local.artifacts import LocalArtifacts
from dropforge.adapters.local.compute import LocalCompute
from dropforge.domain.runs import ENDED, EvaluationPlan, RunSpec, RunStatus
from dropforge.wire import to_json
from tests.bundles import packed

# What a node command does in these tests; each finds `output` and `say` defined.
PRELUDE = """
import json, os, pathlib, signal, subprocess, sys, time
run = pathlib.Path(sys.argv[1]).parent
output = run / "output"
def say(text): print(text, flush=True)
def mark(name): (run / name).write_text(str(os.getpid()))
def leave(state="succeeded", reason=None, code=0, model=b"an ONNX file"):
    (output / "model.onnx").write_bytes(model)
    (output / "evidence.json").write_text('{"metric": "mae"}')
    (output / "metrics.json").write_text('{"mae": 1.5}')
    result = {"run": run.name, "state": state, "exit_code": code, "reason": reason, "seconds": 0.5,
              "command_seconds": 0.25, "metrics": {"mae": 1.5}, "environment": {"python": "3"}}
    (output / "result.json").write_text(json.dumps(result))
"""

SUBMIT = """
import os, pathlib, sys
from dropforge.adapters.local.artifacts import LocalArtifacts
from dropforge.adapters.local.compute import LocalCompute
from dropforge.domain.runs import RunSpec
from dropforge.wire import from_json
root, script, spec = sys.argv[1:4]
artifacts = LocalArtifacts(pathlib.Path(root) / "artifacts")
node = LocalCompute(pathlib.Path(root) / "runs", artifacts, node_command=(sys.executable, "-I", "-S", "-c", script))
print("ready", flush=True)
sys.stdin.readline()
"""


def submitter(tmp_path: Path, lines: str, spec: RunSpec, ending: str) -> subprocess.Popen[str]:
    """Another process, about to submit; it goes on when it is sent a line."""
    script = PRELUDE + textwrap.dedent(lines)
    command = [sys.executable, "-c", SUBMIT + ending, str(tmp_path), script, to_json(spec).decode()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def spec_for(artifacts: LocalArtifacts, **changes: Any) -> RunSpec:
    code = packed({"train.py": b"print('hello')\n", "pipeline.yaml": b"name: flights\n"})
    artifacts.put("code/flights.zip", code)
    spec = RunSpec(
        run="flights-7-ab12",
        pipeline="flights",
        dataset="flights",
        dataset_version=7,
        table_uri="file:///nowhere",
        table_version=6,
        code="code/flights.zip",
        code_sha256=hashlib.sha256(code).hexdigest(),
        command=("python", "train.py"),
        label="late",
        event_time=None,
        features=(),
        evaluation=EvaluationPlan("mae", "day", 7),
        seed=0,
        timeout_seconds=60,
    )
    return replace(spec, **changes)


def marked(folder: Path) -> list[int]:
    """Every living process of a run, however it detached itself."""
    return [pid for pid in supervisor._pids() if supervisor._marked(pid, folder)]


def ended(compute: LocalCompute, run: str, within: float = 60) -> RunStatus:
    until(lambda: compute.status(run).state in ENDED, within)
    return compute.status(run)


def until(true: Callable[[], object], within: float = 60) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, f"waited {within} s in vain"
        time.sleep(0.02)


def folder_of(compute: LocalCompute, run: str) -> Path:
    return compute._folder(run)
