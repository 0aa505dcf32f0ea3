"""Databricks as a `Compute`, over the workspace on loopback and Azurite; its jobs run a small node of the tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dropforge.adapters.azure.artifacts import BlobArtifacts
from dropforge.adapters.azure.run_files import RunFiles
from dropforge.adapters.databricks.compute import DatabricksCompute
from dropforge.adapters.databricks.workspace import CHOSEN
from dropforge.domain.errors import RunFailed
from dropforge.domain.runs import ENDED, EvaluationPlan, RunSpec, RunStatus
from dropforge.settings import Databricks
from tests.azure.databricks import CONTAINERS, VOLUMES, Run, Workspace, databricks
from tests.azurite import Azurite
from tests.bundles import packed

WHEEL = "wheels/dropforge-0-py3-none-any.whl"
# The package that jobs install: the node it runs does what the first word of the run's command says, the rest is real.
PACKAGE = '''
import pkgutil, sys
__path__ = pkgutil.extend_path(__path__, __name__)
NODE = """
import json, pathlib, shutil, sys, time
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
spec, output = json.loads(pathlib.Path(words["--run"]).read_text()), pathlib.Path(words["--output"])
what, run = spec["command"][0], spec["run"]
def leave(state, code, reason=None):
    result = {"run": run, "state": state, "exit_code": code, "reason": reason, "seconds": 2.5, "command_seconds": 1.5,
              "metrics": {"mae": 1.5}, "environment": {"python": "3.13"}}
    (output / "result.json").write_text(json.dumps(result))
    sys.exit(code)
print("started " + run, flush=True)
assert pathlib.Path(words["--code"]).is_file() and pathlib.Path(words["--table"]).is_dir()
if what == "hang": time.sleep(600)
if what == "fail": sys.exit("no such column")
if what == "say": leave("failed", 12, "the model has no input")
if what == "long":
    # Three steps; each is kept, and machines that are lost cost the one that they were at.
    steps = output / "checkpoints" / "steps"
    steps.parent.mkdir(exist_ok=True)
    done = int(steps.read_text()) if steps.exists() else 0
    print(f"goes on after step {done}", flush=True)
    steps.write_text(str(done + 1))
    if done < 2: time.sleep(600)
(output / "model.onnx").write_bytes(b"an ONNX file")
(output / "evidence.json").write_text(json.dumps({"metric": "mae"}, separators=(",", ": ")))
shutil.rmtree(output / "checkpoints", ignore_errors=True)
leave("succeeded", 0)
"""
def run_node():
    from dropforge.training.wheel_task import main
    main(None, (sys.executable, "-c", NODE))
'''


@dataclass
class DatabricksBench:
    """A compute, a second one as another host would have it, and what they talk to."""

    workspace: Workspace
    settings: Databricks
    files: RunFiles
    artifacts: BlobArtifacts

    @property
    def compute(self) -> DatabricksCompute:
        """As each host has its own."""
        return DatabricksCompute(self.settings, self.files)

    def spec(self, what: str, run: str = "r1", **compute: object) -> RunSpec:
        sha256 = self.artifacts.put("code/flights.zip", packed({"train.py": b""}))
        return RunSpec(
            *(run, "flights", "flights", 1, "az://tables/flights", 0, "code/flights.zip", sha256, (what,)),
            label=None,
            event_time=None,
            features=(),
            evaluation=EvaluationPlan("mae", "day", 7),
            seed=0,
            timeout_seconds=60,
            compute={"target": "databricks", "timeout": "1m", **compute},
        )

    def ended(self, run: str = "r1") -> RunStatus:
        return self.until(lambda status: status.state in ENDED, run)

    def until(self, true: Callable[[RunStatus], bool], run: str = "r1") -> RunStatus:
        deadline = time.monotonic() + 30
        while not true(status := self.compute.status(run)):
            assert time.monotonic() < deadline, status
            time.sleep(0.05)
        return status

    def prints(self, text: str, run: str = "r1") -> None:
        """Wait until the run has printed that, as the log on the volume shows it."""
        deadline = time.monotonic() + 30
        while text not in self.compute.logs(run):
            assert time.monotonic() < deadline, self.compute.logs(run)
            time.sleep(0.05)

    def artifacts_of_log(self, run: str = "r1") -> bytes:
        """The log as the artifact that it becomes when the result is asked for."""
        with pytest.raises(RunFailed):
            self.compute.result(run)
        return self.artifacts.read(f"runs/{run}/log.txt")

    def only(self) -> Run:
        (run,) = self.workspace.runs
        return run


def wheel_of(package: str) -> bytes:
    """A wheel of that one module."""
    about = "Metadata-Version: 2.1\nName: dropforge\nVersion: 0\n"
    return packed({"dropforge/__init__.py": package.encode(), "dropforge-0.dist-info/METADATA": about.encode()})


@contextmanager
def databricks_bench(azurite: Azurite, folder: Path, wheel: bytes | None = None) -> Iterator[DatabricksBench]:
    with ExitStack() as stack:
        containers = {name: stack.enter_context(azurite.container(name)) for name in CONTAINERS}
        containers["artifacts"].upload_blob(WHEEL, wheel if wheel is not None else wheel_of(PACKAGE))
        containers["tables"].upload_blob("flights/_delta_log/_last_checkpoint", b"{}")
        workspace = stack.enter_context(databricks(azurite, folder))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in CHOSEN:
            patch.delenv(name, raising=False)
        patch.setenv("DATABRICKS_TOKEN", workspace.token)
        patch.setenv("REQUESTS_CA_BUNDLE", str(workspace.ca_file))
        artifacts = BlobArtifacts(azurite.connection_string)
        files = RunFiles(azurite.connection_string, artifacts)
        stack.callback(files.close)
        stack.callback(artifacts.close)
        yield DatabricksBench(
            workspace, Databricks(workspace.url, VOLUMES, f"{VOLUMES}/artifacts/{WHEEL}"), files, artifacts
        )
