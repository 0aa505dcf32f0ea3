"""What every `Compute` promises."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dropforge.adapters.local.artifacts import LocalArtifacts
from dropforge.adapters.local.compute import LocalCompute
from dropforge.adapters.memory.artifacts import MemoryArtifacts
from dropforge.adapters.memory.compute import MemoryCompute
from dropforge.domain.errors import Conflict, NotFound, Refused, RunFailed
from dropforge.domain.runs import ENDED, EvaluationPlan, RunSpec, RunState, RunStatus
from dropforge.ports import Artifacts, Compute
from tests.azure.aml_bench import SDK_WARNINGS, azure_ml
from tests.azure.databricks_bench import databricks_bench
from tests.azurite import Azurite
from tests.bundles import packed

pytestmark = SDK_WARNINGS
MODEL, EVIDENCE = b"an ONNX file", b'{"metric": "mae"}'
# The node does what the first word of the spec's command says.
NODE = """
import json, pathlib, sys, time
spec = json.loads(pathlib.Path(sys.argv[1]).read_text())
what, run, output = spec["run"]["command"][0], spec["run"]["run"], pathlib.Path(spec["output_dir"])
print("started " + run, flush=True)
if what == "hang": time.sleep(600)
if what == "fail": sys.exit("no such column")
(output / "model.onnx").write_bytes(b"an ONNX file")
(output / "evidence.json").write_text('{"metric": "mae"}')
(output / "result.json").write_text(json.dumps({"run": run, "state": "succeeded", "exit_code": 0, "reason": None,
    "seconds": 2.5, "command_seconds": 1.5, "metrics": {"mae": 1.5}, "environment": {"python": "3.13"}}))
"""


@dataclass
class ComputeBench:
    """A compute whose runs do what the first word of their command says, and the artifacts it knows."""

    compute: Compute
    artifacts: Artifacts
    # Where the table lies and what `training.compute` says, as far as the compute cares.
    table_uri: str = "file:///nowhere"
    asked: dict[str, Any] = field(default_factory=dict)

    def spec(self, what: str, run: str = "r1") -> RunSpec:
        code = packed({"train.py": b""})
        sha256 = self.artifacts.put("code/flights.zip", code)
        plan = EvaluationPlan("mae", "day", 7)
        return RunSpec(
            *(run, "flights", "flights", 1, self.table_uri, 0, "code/flights.zip", sha256, (what,)),
            label=None,
            event_time=None,
            features=(),
            evaluation=plan,
            seed=0,
            timeout_seconds=60,
            compute=self.asked,
        )

    def ended(self, run: str = "r1") -> RunStatus:
        return self.until(lambda: self.compute.status(run).state in ENDED, run)

    def until(self, true: Callable[[], bool], run: str = "r1") -> RunStatus:
        deadline = time.monotonic() + 60
        while not true():
            assert time.monotonic() < deadline, self.compute.status(run)
            time.sleep(0.02)
        return self.compute.status(run)


def _memory(folder: Path) -> ComputeBench:
    artifacts = MemoryArtifacts()

    def on_submit(spec: RunSpec) -> None:
        compute.begin(spec.run)
        compute.say(spec.run, f"started {spec.run}\n")
        if spec.command == ("fail",):
            compute.fail(spec.run, "exited with code 1: no such column")
        elif spec.command == ("succeed",):
            compute.succeed(spec.run, MODEL, EVIDENCE, {"mae": 1.5}, {"python": "3.13"}, 2.5)

    compute = MemoryCompute(artifacts, on_submit)
    return ComputeBench(compute, artifacts)


def _local(folder: Path) -> ComputeBench:
    artifacts = LocalArtifacts(folder / "artifacts")
    command = (sys.executable, "-I", "-S", "-c", NODE)
    return ComputeBench(LocalCompute(folder / "runs", artifacts, node_command=command, grace_seconds=1.0), artifacts)


@contextmanager
def _azureml(azurite: Azurite, folder: Path) -> Iterator[ComputeBench]:
    with azure_ml(azurite, folder) as made:
        yield ComputeBench(made.compute, made.artifacts, made.spec("succeed").table_uri, {"target": "azureml"})


@contextmanager
def _databricks(azurite: Azurite, folder: Path) -> Iterator[ComputeBench]:
    with databricks_bench(azurite, folder) as made:
        yield ComputeBench(made.compute, made.artifacts, made.spec("succeed").table_uri, {"target": "databricks"})


COMPUTES: dict[str, Callable[[Path], ComputeBench]] = {"memory": _memory, "local": _local}
# Beside their table: over the emulator, which is a process that the whole session shares.
AZURE_COMPUTES: dict[str, Callable[[Azurite, Path], AbstractContextManager[ComputeBench]]] = {
    "azureml": _azureml,
    "databricks": _databricks,
}


@pytest.fixture(params=[*COMPUTES, *AZURE_COMPUTES])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ComputeBench]:
    with ExitStack() as until_end:
        if request.param in AZURE_COMPUTES:
            storage = request.getfixturevalue("azurite")
            made = until_end.enter_context(AZURE_COMPUTES[request.param](storage, tmp_path))
        else:
            made = COMPUTES[request.param](tmp_path)
        yield made
        with suppress(NotFound):
            made.compute.cancel("r1")
            made.ended()


def test_a_submitted_run_goes_on_by_itself(bench: ComputeBench) -> None:
    before = datetime.now(UTC)
    bench.compute.submit(bench.spec("hang"))

    status = bench.until(lambda: bench.compute.status("r1").started_at is not None)
    assert (status.run, status.state, status.reason, status.ended_at) == ("r1", RunState.RUNNING, None, None)
    assert status.started_at is not None and before <= status.started_at <= datetime.now(UTC)
    bench.until(lambda: "started r1" in bench.compute.logs("r1"))
    with pytest.raises(Refused):
        bench.compute.result("r1")


def test_a_succeeded_run_leaves_its_model_and_evidence_among_the_artifacts(bench: ComputeBench) -> None:
    bench.compute.submit(bench.spec("succeed"))
    status = bench.ended()

    result = bench.compute.result("r1")
    assert (status.state, status.reason, status.exit_code) == (RunState.SUCCEEDED, None, 0)
    assert status.started_at is not None and status.ended_at is not None and status.started_at <= status.ended_at
    assert bench.artifacts.read(result.model) == MODEL and bench.artifacts.read(result.evidence) == EVIDENCE
    assert bench.artifacts.put(result.model, MODEL) == result.model_sha256
    assert (result.run, result.metrics, result.seconds) == ("r1", {"mae": 1.5}, 2.5)
    assert result.environment == {"python": "3.13"}
    assert bench.compute.result("r1") == result


def test_an_equal_run_id_never_starts_twice(bench: ComputeBench) -> None:
    spec = bench.spec("succeed")
    bench.compute.submit(spec)
    bench.compute.submit(spec)
    ended = bench.ended()
    bench.compute.submit(spec)

    assert bench.compute.status("r1") == ended
    assert bench.compute.logs("r1") == "started r1\n"


def test_runs_do_not_touch_each_other(bench: ComputeBench) -> None:
    bench.compute.submit(bench.spec("fail"))
    bench.compute.submit(bench.spec("succeed", "r2"))

    assert bench.ended("r1").state is RunState.FAILED and bench.ended("r2").state is RunState.SUCCEEDED
    assert bench.compute.logs("r2") == "started r2\n"


def test_a_failed_run_has_no_result_but_a_reason(bench: ComputeBench) -> None:
    bench.compute.submit(bench.spec("fail"))

    status = bench.ended()
    assert (status.state, status.exit_code) == (RunState.FAILED, 1)
    assert status.reason is not None and "no such column" in status.reason
    for _ in range(2):
        with pytest.raises(RunFailed, match="no such column"):
            bench.compute.result("r1")


def test_a_cancelled_run_ends_and_stays_ended(bench: ComputeBench) -> None:
    spec = bench.spec("hang")
    bench.compute.submit(spec)
    bench.compute.cancel("r1")
    bench.compute.cancel("r1")

    status = bench.ended()
    assert status.state is RunState.CANCELLED and status.reason
    with pytest.raises(RunFailed):
        bench.compute.result("r1")
    bench.compute.submit(spec)
    assert bench.compute.status("r1") == status


def test_cancelling_a_run_that_has_ended_has_no_effect(bench: ComputeBench) -> None:
    bench.compute.submit(bench.spec("succeed"))
    before = bench.ended()
    bench.compute.cancel("r1")

    assert bench.compute.status("r1") == before and bench.compute.result("r1").run == "r1"


def test_logs_give_the_end_of_what_was_printed(bench: ComputeBench) -> None:
    bench.compute.submit(bench.spec("succeed"))
    bench.ended()

    assert bench.compute.logs("r1", tail_bytes=3) == "r1\n"
    assert bench.compute.logs("r1", tail_bytes=0) == ""


def test_a_run_that_was_never_submitted_is_not_found(bench: ComputeBench) -> None:
    asks: tuple[Callable[[str], object], ...] = (
        *(bench.compute.status, bench.compute.result),
        *(bench.compute.cancel, bench.compute.logs),
    )
    for ask in asks:
        with pytest.raises(NotFound):
            ask("never")
    with pytest.raises(NotFound):
        bench.compute.status(replace(bench.spec("succeed"), run="r9").run)


def test_another_spec_under_the_same_run_id_is_refused(bench: ComputeBench) -> None:
    spec = bench.spec("succeed")
    bench.compute.submit(spec)
    with pytest.raises(Conflict, match="another spec"):
        bench.compute.submit(replace(spec, seed=1))
