"""The compute in memory keeps the promises of the port, and runs go as the test says."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from dropforge.adapters.memory.artifacts import MemoryArtifacts
from dropforge.adapters.memory.compute import MemoryCompute
from dropforge.domain.errors import BadInput, NotFound, Refused, RunFailed
from dropforge.domain.runs import EvaluationPlan, RunSpec, RunState, RunStatus

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def spec(run: str = "r1", seed: int = 1) -> RunSpec:
    return RunSpec(
        run=run,
        pipeline="flights",
        dataset="flights",
        dataset_version=1,
        table_uri="memory:///flights",
        table_version=0,
        code="code/flights.zip",
        code_sha256="ab" * 32,
        command=("python", "train.py"),
        label="late",
        event_time=None,
        features=(),
        evaluation=EvaluationPlan("log_loss", "day", 7),
        seed=seed,
        timeout_seconds=60,
    )


@pytest.fixture
def compute() -> MemoryCompute:
    return MemoryCompute(MemoryArtifacts(), clock=lambda: NOW)


def test_a_run_goes_from_submitted_to_running_to_succeeded(compute: MemoryCompute) -> None:
    compute.submit(spec())
    assert compute.status("r1") == RunStatus("r1", RunState.SUBMITTED)
    compute.begin("r1")
    assert compute.status("r1") == RunStatus("r1", RunState.RUNNING, started_at=NOW)
    compute.succeed("r1", b"model", b"{}")
    assert compute.status("r1") == RunStatus("r1", RunState.SUCCEEDED, None, NOW, NOW, 0)


def test_an_equal_run_id_never_starts_twice(compute: MemoryCompute) -> None:
    started: list[str] = []
    compute.on_submit = lambda asked: started.append(asked.run)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: compute.submit(spec(f"r{n % 2}")), range(16)))
    assert sorted(started) == ["r0", "r1"]
    assert len(compute.submitted) == 2


def test_submitting_a_run_that_has_ended_does_not_start_it_again(compute: MemoryCompute) -> None:
    compute.submit(spec())
    compute.fail("r1", "out of memory")
    compute.submit(spec())
    assert compute.status("r1").state is RunState.FAILED


def test_a_result_puts_model_and_evidence_among_the_artifacts_and_stays_the_same(compute: MemoryCompute) -> None:
    compute.submit(spec())
    compute.succeed("r1", b"model", b"evidence", {"log_loss": 0.5}, {"python": "3.11"}, seconds=2.5)
    result = compute.result("r1")
    assert compute.artifacts.read(result.model) == b"model"
    assert compute.artifacts.read(result.evidence) == b"evidence"
    assert result.model_sha256 == hashlib.sha256(b"model").hexdigest()
    assert (result.run, result.metrics, result.seconds) == ("r1", {"log_loss": 0.5}, 2.5)
    assert compute.result("r1") == result


def test_a_run_that_failed_has_no_result_but_a_reason(compute: MemoryCompute) -> None:
    compute.submit(spec())
    compute.fail("r1", "the node ran out of memory", exit_code=137)
    assert (compute.status("r1").exit_code, compute.status("r1").reason) == (137, "the node ran out of memory")
    for _ in range(2):
        with pytest.raises(RunFailed, match="the node ran out of memory"):
            compute.result("r1")


def test_the_result_of_a_run_that_goes_on_is_refused(compute: MemoryCompute) -> None:
    compute.submit(spec())
    with pytest.raises(Refused, match="submitted"):
        compute.result("r1")
    compute.begin("r1")
    with pytest.raises(Refused, match="running"):
        compute.result("r1")


def test_a_run_can_be_cancelled_and_stays_so(compute: MemoryCompute) -> None:
    compute.submit(spec())
    compute.begin("r1")
    compute.cancel("r1")
    compute.cancel("r1")
    compute.succeed("r1", b"model", b"{}")
    assert compute.status("r1").state is RunState.CANCELLED
    with pytest.raises(RunFailed, match="cancelled"):
        compute.result("r1")


def test_cancelling_a_run_that_has_ended_has_no_effect(compute: MemoryCompute) -> None:
    compute.submit(spec())
    compute.succeed("r1", b"model", b"{}")
    before = compute.status("r1")
    compute.cancel("r1")
    assert compute.status("r1") == before
    assert compute.result("r1").model


def test_a_run_that_was_never_submitted_is_not_found(compute: MemoryCompute) -> None:
    for call in (compute.status, compute.result, compute.cancel, compute.logs, compute.begin):
        with pytest.raises(NotFound, match="r9"):
            call("r9")


def test_logs_are_the_end_of_what_the_run_printed(compute: MemoryCompute) -> None:
    compute.submit(spec())
    assert compute.logs("r1") == ""
    compute.say("r1", "epoch 1\n")
    compute.say("r1", "épôch 2\n")
    assert compute.logs("r1") == "epoch 1\népôch 2\n"
    assert compute.logs("r1", tail_bytes=4) == "h 2\n"
    # Six bytes would begin in the middle of a letter.
    assert compute.logs("r1", tail_bytes=6) == "ch 2\n"
    assert compute.logs("r1", tail_bytes=0) == ""


def test_a_script_can_end_each_run_as_it_is_submitted(compute: MemoryCompute) -> None:
    compute.on_submit = lambda asked: compute.succeed(asked.run, asked.run.encode(), b"{}")
    compute.submit(spec("r1"))
    compute.submit(spec("r2"))
    assert compute.artifacts.read(compute.result("r2").model) == b"r2"


def test_a_run_begins_once(compute: MemoryCompute) -> None:
    compute.submit(spec())
    compute.begin("r1")
    with pytest.raises(BadInput, match="running"):
        compute.begin("r1")
