"""Azure ML as a `Compute`, over the control plane on loopback and Azurite; its jobs run a small node of the tests."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import ContainerClient

from dropforge.adapters.azure import identity
from dropforge.adapters.azure.aml_compute import AzureMLCompute
from dropforge.adapters.azure.aml_registry import MirroredRegistry
from dropforge.adapters.azure.places import ARTIFACTS, RUNS, TABLES
from dropforge.adapters.azure.run_files import RunFiles
from dropforge.adapters.memory.artifacts import MemoryArtifacts
from dropforge.domain.runs import ENDED, EvaluationPlan, RunSpec, RunStatus
from dropforge.ports import Artifacts, Registry
from dropforge.settings import AzureML
from tests.azure.control_plane import ControlPlane, control_plane, used
from tests.azurite import Azurite
from tests.bundles import packed

# azure-ai-ml's own, about the version of a library that it chose.
SDK_WARNINGS = [
    pytest.mark.filterwarnings("ignore:The `(context|ordered)` :DeprecationWarning"),
]
IMAGE = "registry.example/dropforge-train:1"
# Does what the first word of the run's command says, and leaves what the training node leaves.
NODE = """#!{python} -IS
import json, os, pathlib, signal, ssl, sys, time, urllib.request
words = dict(zip(sys.argv[2::2], sys.argv[3::2]))
spec, output = json.loads(pathlib.Path(words["--run"]).read_text()), pathlib.Path(words["--output"])
what, run = spec["command"][0], spec["run"]
def leave(state, code, reason=None):
    result = {{"run": run, "state": state, "exit_code": code, "reason": reason, "seconds": 2.5, "command_seconds": 1.5,
              "metrics": {{"mae": 1.5}}, "environment": {{"python": "3.13"}}}}
    (output / "result.json").write_text(json.dumps(result))
    sys.exit(code)
def told(*_):
    leave("cancelled", 143, "the run was told to end (SIGTERM)")
signal.signal(signal.SIGTERM, told)
print("started " + run, flush=True)
if what == "hang": time.sleep(600)
if what == "fail": leave("failed", 1, "no such column")
if what == "exit": sys.exit("a quota of eggs was preempted")
if what == "long":
    # Three steps; each is kept, and a node that is lost costs the one that it was at.
    steps = output / "checkpoints" / "steps"
    steps.parent.mkdir(exist_ok=True)
    done = int(steps.read_text()) if steps.exists() else 0
    print(f"goes on after step {{done}}", flush=True)
    steps.write_text(str(done + 1))
    if done < 2: time.sleep(600)
if what == "try":
    score = -abs(float(words["--parameter"].partition("=")[2]) - 0.5)
    metric = {{"run_id": os.environ["MLFLOW_RUN_ID"], "key": "dropforge_validation_score", "value": score, "timestamp": 1}}
    place = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/log-metric"
    header = {{"Authorization": "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"], "Content-Type": "application/json"}}
    trusted = ssl.create_default_context(cafile=os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"])
    asked = urllib.request.Request(place, json.dumps(metric).encode(), header, method="POST")
    urllib.request.urlopen(asked, context=trusted).close()
(output / "model.onnx").write_bytes(b"an ONNX file" if what != "try" else words["--parameter"].encode())
(output / "evidence.json").write_text('{{"metric": "mae"}}')
leave("succeeded", 0)
"""


class Clock:
    """The time it is, and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass
class AzureMLBench:
    """A compute, a second one as another host would have it, and what they talk to."""

    plane: ControlPlane
    compute: AzureMLCompute
    another: AzureMLCompute
    files: RunFiles
    artifacts: Artifacts
    clock: Clock
    tables: ContainerClient

    def upload(self, table: str, folder: Path) -> None:
        """Put a table where jobs read it."""
        for path in filter(Path.is_file, folder.rglob("*")):
            self.tables.upload_blob(f"{table}/{path.relative_to(folder)}", path.read_bytes())

    def spec(self, what: str, run: str = "r1", **compute: Any) -> RunSpec:
        sha256 = self.artifacts.put("code/flights.zip", packed({"train.py": b""}))
        return RunSpec(
            *(run, "flights", "flights", 1, f"az://{TABLES}/flights", 0, "code/flights.zip", sha256, (what,)),
            label=None,
            event_time=None,
            features=(),
            evaluation=EvaluationPlan("mae", "day", 7),
            seed=0,
            timeout_seconds=60,
            compute={"target": "azureml", "timeout": "1m", **compute},
        )

    def ended(self, run: str = "r1") -> RunStatus:
        return self.until(lambda status: status.state in ENDED, run)

    def until(self, true: Callable[[RunStatus], bool], run: str = "r1") -> RunStatus:
        deadline = time.monotonic() + 30
        while not true(status := self.compute.status(run)):
            assert time.monotonic() < deadline, status
            time.sleep(0.1)
        return status


class _Kept(MemoryArtifacts):
    """Artifacts of memory that lie in the container as well, where jobs read them."""

    def __init__(self, put: Callable[[str, bytes], object]) -> None:
        super().__init__()
        self._put = put

    def put(self, name: str, source: bytes | Path) -> str:
        sha256 = super().put(name, source)
        self._put(name, self.read(name))
        return sha256


@contextmanager
def azure_ml(azurite: Azurite, folder: Path, plane: ControlPlane | None = None) -> Iterator[AzureMLBench]:
    """A workspace with nothing in it, over empty containers."""
    if plane is None:
        with control_plane(azurite, image=image(folder)) as made, azure_ml(azurite, folder, made) as bench:
            yield bench
        return
    with (
        azurite.container(RUNS),
        azurite.container(ARTIFACTS) as artifacts,
        azurite.container(TABLES) as tables,
        used(plane),
    ):
        tables.upload_blob("flights/_delta_log/00000000000000000000.json", b"{}")
        store = _Kept(lambda name, content: artifacts.upload_blob(name, content, overwrite=True))
        files = RunFiles(azurite.connection_string, store)
        settings, clock = AzureML(plane.workspace, cluster="cpu-cluster", train_image=IMAGE), Clock()
        # Another control plane issued the tokens that it holds.
        identity.credential.cache_clear()
        try:
            compute, another = AzureMLCompute(settings, files, clock), AzureMLCompute(settings, files, clock)
            yield AzureMLBench(plane, compute, another, files, store, clock, tables)
        finally:
            identity.credential.cache_clear()
            plane.reset()
            files.close()


@contextmanager
def mirror_bench() -> Iterator[Callable[[Registry, Artifacts], MirroredRegistry]]:
    """Mirrors registries in a workspace with nothing in it."""
    with control_plane() as plane, used(plane):
        identity.credential.cache_clear()
        settings = AzureML(plane.workspace)
        yield lambda registry, artifacts: MirroredRegistry(registry, settings, artifacts)
        assert plane.invalid == []
        identity.credential.cache_clear()


def image(folder: Path) -> Path:
    """The programs of the training image."""
    programs = folder / "image"
    programs.mkdir(exist_ok=True)
    node = programs / "dropforge"
    node.write_text(NODE.format(python=sys.executable))
    node.chmod(0o755)
    return programs
