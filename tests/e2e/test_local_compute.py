"""Local training runs, with real processes: what they survive, and what does not survive them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dropforge.adapters.local import supervisor
from dropforge.adapters.local.artifacts import LocalArtifacts
from dropforge.adapters.local.compute import LocalCompute
from dropforge.domain.errors import BadInput, Conflict, NotFound, Refused, RunFailed
from dropforge.domain.runs import ChampionRef, RunSpec, RunState
from tests.e2e.local_runs import PRELUDE, ended, folder_of, marked, spec_for, submitter, until

MODEL = b"an ONNX file"

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]


@pytest.fixture
def artifacts(tmp_path: Path) -> LocalArtifacts:
    return LocalArtifacts(tmp_path / "artifacts")


@pytest.fixture
def spec(artifacts: LocalArtifacts) -> RunSpec:
    return spec_for(artifacts)


@pytest.fixture
def compute(tmp_path: Path, artifacts: LocalArtifacts) -> Iterator[Callable[..., LocalCompute]]:
    """Makes computes whose node runs the given Python lines; ends whatever they leave."""
    root = tmp_path / "runs"

    def make(lines: str, **options: Any) -> LocalCompute:
        script = PRELUDE + textwrap.dedent(lines)
        options = {"grace_seconds": 1.0, **options}
        return LocalCompute(root, artifacts, node_command=(sys.executable, "-I", "-S", "-c", script), **options)

    yield make
    for folder in root.glob("*"):
        for pid in marked(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


# ------------------------------------------------------------------------------------------------ how runs go
def test_a_run_succeeds_and_its_files_become_artifacts(
    compute: Callable[..., LocalCompute], artifacts: LocalArtifacts, spec: RunSpec
) -> None:
    node = compute("say('training'); assert pathlib.Path('train.py').exists(); leave()")
    node.submit(spec)

    status = ended(node, spec.run)
    result = node.result(spec.run)

    assert (status.state, status.reason, status.exit_code) == (RunState.SUCCEEDED, None, 0)
    assert status.started_at is not None and status.ended_at is not None and status.started_at <= status.ended_at
    assert result == node.result(spec.run)
    assert result.model == "models/flights/flights-7-ab12/model.onnx"
    assert artifacts.read(result.model) == MODEL and result.model_sha256 == hashlib.sha256(MODEL).hexdigest()
    assert json.loads(artifacts.read(result.evidence)) == {"metric": "mae"}
    assert artifacts.read("runs/flights-7-ab12/log.txt") == b"training\n" == node.logs(spec.run).encode()
    assert result.metrics == {"mae": 1.5} and result.seconds == 0.5


def test_a_command_that_fails_says_so_with_its_last_words(
    compute: Callable[..., LocalCompute], artifacts: LocalArtifacts, spec: RunSpec
) -> None:
    node = compute("say('reading'); sys.exit('no such column: late')")
    node.submit(spec)

    status = ended(node, spec.run)

    assert (status.state, status.exit_code) == (RunState.FAILED, 1)
    assert status.reason == "exited with code 1: reading | no such column: late"
    with pytest.raises(RunFailed, match="no such column"):
        node.result(spec.run)
    assert b"no such column" in artifacts.read("runs/flights-7-ab12/log.txt")


def test_the_reason_in_the_result_file_is_preferred(compute: Callable[..., LocalCompute], spec: RunSpec) -> None:
    node = compute("leave('failed', 'the model cannot be loaded', 12); sys.exit(12)")
    node.submit(spec)

    status = ended(node, spec.run)

    assert (status.state, status.reason, status.exit_code) == (RunState.FAILED, "the model cannot be loaded", 12)


def test_a_killed_command_is_taken_for_out_of_memory(compute: Callable[..., LocalCompute], spec: RunSpec) -> None:
    node = compute("os.kill(os.getpid(), signal.SIGKILL)")
    node.submit(spec)

    assert ended(node, spec.run).reason == "killed by signal 9 (out of memory?)"


def test_a_command_that_ends_without_a_result_has_failed(compute: Callable[..., LocalCompute], spec: RunSpec) -> None:
    node = compute("pass")
    node.submit(spec)

    assert ended(node, spec.run).reason == "exited with code 0 without output/result.json"


def test_a_command_that_does_not_exist_is_a_failed_run(
    tmp_path: Path, artifacts: LocalArtifacts, spec: RunSpec
) -> None:
    node = LocalCompute(tmp_path / "runs", artifacts, node_command=("no-such-command",))
    node.submit(spec)

    assert "no-such-command cannot be started" in str(ended(node, spec.run).reason)


def test_a_model_other_than_the_judged_one_is_refused(compute: Callable[..., LocalCompute], spec: RunSpec) -> None:
    node = compute("""
        leave()
        result = json.loads((output / "result.json").read_text())
        (output / "result.json").write_text(json.dumps({**result, "model_sha256": "0" * 64}))
    """)
    node.submit(spec)
    ended(node, spec.run)

    with pytest.raises(RunFailed, match="judged a model with sha256 000"):
        node.result(spec.run)


def test_logs_are_read_while_the_run_goes_on(compute: Callable[..., LocalCompute], spec: RunSpec) -> None:
    node = compute("say('epoch 1'); say('é' * 100, ); time.sleep(600)")
    node.submit(spec)

    until(lambda: "é" in node.logs(spec.run))
    assert node.status(spec.run).state is RunState.RUNNING
    assert node.logs(spec.run).startswith("epoch 1\n")
    assert node.logs(spec.run, tail_bytes=4) == "é\n"
    with pytest.raises(Refused, match="is running"):
        node.result(spec.run)


def test_a_log_without_end_is_cut(compute: Callable[..., LocalCompute], spec: RunSpec) -> None:
    node = compute(
        "say('the first line')\nfor i in range(40): say('x' * 50_000); time.sleep(0.03)\nsay('the last line'); leave()",
        log_limit_bytes=400_000,
    )
    node.submit(spec)
    ended(node, spec.run)

    log = node.logs(spec.run, 10_000_000)
    assert len(log) < 1_500_000
    assert log.startswith("the first line") and log.rstrip().endswith("the last line")
    assert "cut here: the log was larger than 400,000 bytes" in log


def test_a_node_sees_neither_keys_nor_settings_of_the_host(
    compute: Callable[..., LocalCompute], spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AzureWebJobsStorage", "DROPFORGE_API_KEY", "AWS_SECRET_ACCESS_KEY", "SOME_TOKEN"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///tracking")
    node = compute("say(json.dumps(dict(os.environ))); leave()")
    node.submit(replace(spec, environment={"OMP_NUM_THREADS": "1"}))
    ended(node, spec.run)

    seen = json.loads(node.logs(spec.run))
    assert "secret" not in seen.values()
    assert seen["PATH"] == os.environ["PATH"] and seen["MLFLOW_TRACKING_URI"] == "file:///tracking"
    assert seen["OMP_NUM_THREADS"] == "1"
    assert {name for name in seen if name.startswith("DROPFORGE_")} == {"DROPFORGE_RUN_FOLDER"}


def test_training_gives_way_to_serving(compute: Callable[..., LocalCompute], spec: RunSpec) -> None:
    node = compute("say(str(os.nice(0)) + ' ' + open('/proc/self/oom_score_adj').read()); leave()")
    node.submit(spec)
    ended(node, spec.run)

    niceness, oom = node.logs(spec.run).split()
    assert int(niceness) == min(19, os.nice(0) + 10) and int(oom) >= 500


def test_the_champion_lies_beside_the_code(
    compute: Callable[..., LocalCompute], artifacts: LocalArtifacts, spec: RunSpec
) -> None:
    sha256 = artifacts.put("models/flights/old/model.onnx", b"the champion")
    champion = ChampionRef("flights", 1, "models/flights/old/model.onnx", sha256)
    node = compute("say(pathlib.Path(json.loads(pathlib.Path(sys.argv[1]).read_text())['champion_model']).read_text())")
    node.submit(replace(spec, champion=champion))
    ended(node, spec.run)

    assert node.logs(spec.run) == "the champion\n"


# ------------------------------------------------------------------------------------------------ once, ever
def test_another_spec_under_an_equal_id_is_refused(compute: Callable[..., LocalCompute], spec: RunSpec) -> None:
    node = compute("leave()")
    node.submit(spec)

    with pytest.raises(Conflict, match="another spec"):
        node.submit(replace(spec, seed=1))


def test_two_submitters_at_once_start_one_run(
    tmp_path: Path, compute: Callable[..., LocalCompute], spec: RunSpec
) -> None:
    lines = "say('started'); time.sleep(0.5); leave()"
    ending = "node.submit(from_json(RunSpec, spec)); print(node.status(from_json(RunSpec, spec).run).state.value)"
    several = [submitter(tmp_path, lines, spec, ending) for _ in range(4)]
    for process in several:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    states = [process.communicate(timeout=60)[0].strip() for process in several]

    node = compute(lines)
    assert ended(node, spec.run).state is RunState.SUCCEEDED
    assert set(states) <= {"running", "succeeded"} and len(states) == 4
    assert node.logs(spec.run) == "started\n"


def test_a_run_outlives_its_submitter_and_is_adopted(
    tmp_path: Path, compute: Callable[..., LocalCompute], spec: RunSpec
) -> None:
    lines = "mark('child'); until = run / 'go'\nwhile not until.exists(): time.sleep(0.02)\nleave()"
    ending = "node.submit(from_json(RunSpec, spec)); os.kill(os.getpid(), 9)"
    process = submitter(tmp_path, lines, spec, ending)
    process.communicate("go\n", timeout=60)
    assert process.returncode == -signal.SIGKILL

    node = compute(lines)
    assert node.status(spec.run).state is RunState.RUNNING
    node.submit(spec)
    (folder_of(node, spec.run) / "go").touch()

    assert ended(node, spec.run).state is RunState.SUCCEEDED


STEPS = ["unpack", "_fetch", "whole_file", "sync_folder", "subprocess.run", "after"]


@pytest.mark.parametrize("step", STEPS)
def test_a_submitter_killed_at_any_step_is_made_good_by_the_next(
    tmp_path: Path, compute: Callable[..., LocalCompute], spec: RunSpec, step: str
) -> None:
    lines = "say('started'); leave()"
    ending = f"""
from dropforge.adapters.local import compute as module
def die(*a, **k): os.kill(os.getpid(), 9)
if {step!r} == "_fetch": module.LocalCompute._fetch = die
elif {step!r} == "subprocess.run": module.subprocess.run = die
elif {step!r} == "whole_file":
    real, calls = module.whole_file, []
    def second(*a, **k):
        calls.append(1)
        return die() if len(calls) == 2 else real(*a, **k)
    module.whole_file = second
elif {step!r} != "after": setattr(module, {step!r}, die)
node.submit(from_json(RunSpec, spec))
die()
"""
    process = submitter(tmp_path, lines, spec, ending)
    process.communicate("go\n", timeout=60)
    assert process.returncode == -signal.SIGKILL

    node = compute(lines)
    node.submit(spec)

    assert ended(node, spec.run).state is RunState.SUCCEEDED
    assert node.logs(spec.run) == "started\n"


def test_a_run_id_cannot_leave_the_folder(compute: Callable[..., LocalCompute], spec: RunSpec) -> None:
    with pytest.raises(BadInput, match="not a run id"):
        compute("leave()").submit(replace(spec, run="../elsewhere"))


# ------------------------------------------------------------------------------------------------ how runs end
STUBBORN = f"""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
same_group = subprocess.Popen({SLEEP!r})
own_session = subprocess.Popen({SLEEP!r}, start_new_session=True)
deep = subprocess.Popen([sys.executable, "-I", "-S", "-c",
    "import subprocess, os; subprocess.Popen({SLEEP!r}, start_new_session=True); os._exit(0)"])
deep.wait()
say("up")
while True: time.sleep(1)
"""


def test_a_run_out_of_time_ends_with_all_its_processes(compute: Callable[..., LocalCompute], spec: RunSpec) -> None:
    node = compute(STUBBORN, grace_seconds=0.5)
    node.submit(replace(spec, timeout_seconds=3))
    until(lambda: "up" in node.logs(spec.run))
    assert len(marked(folder_of(node, spec.run))) == 4

    status = ended(node, spec.run)

    assert status.state is RunState.FAILED
    assert status.reason == "ran longer than 3 s (training.compute.timeout)"
    assert marked(folder_of(node, spec.run)) == []


def test_a_cancelled_run_ends_with_all_its_processes(compute: Callable[..., LocalCompute], spec: RunSpec) -> None:
    node = compute(STUBBORN, grace_seconds=0.2)
    node.submit(spec)
    until(lambda: "up" in node.logs(spec.run))

    node.cancel(spec.run)

    assert ended(node, spec.run).state is RunState.CANCELLED
    assert marked(folder_of(node, spec.run)) == []
    node.cancel(spec.run)
    node.submit(spec)
    assert node.status(spec.run).state is RunState.CANCELLED


def test_a_cancelled_command_may_tidy_up(compute: Callable[..., LocalCompute], spec: RunSpec) -> None:
    node = compute(
        """
        def tidy(*_):
            say("tidied up")
            sys.exit(3)
        signal.signal(signal.SIGTERM, tidy)
        say("up")
        while True: time.sleep(0.1)
    """,
        grace_seconds=30.0,
    )
    node.submit(spec)
    until(lambda: "up" in node.logs(spec.run))

    node.cancel(spec.run)

    status = ended(node, spec.run)
    assert (status.state, status.exit_code) == (RunState.CANCELLED, 3)
    assert "tidied up" in node.logs(spec.run)


def test_a_run_is_cancelled_before_its_supervisor_came_up(
    tmp_path: Path, compute: Callable[..., LocalCompute], spec: RunSpec
) -> None:
    process = submitter(
        tmp_path,
        "say('started')",
        spec,
        "from dropforge.adapters.local import compute as m\n"
        "m.subprocess.run = lambda *a, **k: os.kill(os.getpid(), 9)\nnode.submit(from_json(RunSpec, spec))",
    )
    process.communicate("go\n", timeout=60)
    node = compute("say('started')")
    assert node.status(spec.run).state is RunState.SUBMITTED

    node.cancel(spec.run)
    node.submit(spec)

    assert node.status(spec.run).state is RunState.CANCELLED
    assert node.logs(spec.run) == ""


def test_what_a_finished_command_leaves_behind_is_ended(compute: Callable[..., LocalCompute], spec: RunSpec) -> None:
    node = compute(f"subprocess.Popen({SLEEP!r}, start_new_session=True); leave()")
    node.submit(spec)

    assert ended(node, spec.run).state is RunState.SUCCEEDED
    assert marked(folder_of(node, spec.run)) == []


def test_a_vanished_supervisor_is_a_failed_run_without_leftovers(
    compute: Callable[..., LocalCompute], spec: RunSpec
) -> None:
    node = compute(f"subprocess.Popen({SLEEP!r}, start_new_session=True); say('up'); time.sleep(600)")
    node.submit(spec)
    until(lambda: "up" in node.logs(spec.run))
    folder = folder_of(node, spec.run)
    os.kill(json.loads((folder / "supervisor.json").read_text())["pid"], signal.SIGKILL)

    status = ended(node, spec.run)

    assert status.state is RunState.FAILED and str(status.reason).startswith("the training process vanished")
    assert status.started_at is not None
    until(lambda: marked(folder) == [], 10)
    node.submit(spec)
    assert node.status(spec.run) == status and node.logs(spec.run) == "up\n"


def test_a_supervisor_that_died_before_it_began_is_replaced(
    compute: Callable[..., LocalCompute], spec: RunSpec
) -> None:
    node = compute("say('started'); leave()")
    folder = folder_of(node, spec.run)
    folder.mkdir(parents=True)
    lock = supervisor.take_lock(folder, 0)
    assert lock is not None
    dying = threading.Timer(0.3, os.close, [lock])
    dying.start()

    node.submit(spec)

    assert ended(node, spec.run).state is RunState.SUCCEEDED and node.logs(spec.run) == "started\n"
    dying.join()


def test_a_second_supervisor_leaves_at_once(compute: Callable[..., LocalCompute], spec: RunSpec) -> None:
    node = compute("say('started'); time.sleep(600)")
    node.submit(spec)
    until(lambda: "started" in node.logs(spec.run))
    command = [sys.executable, "-I", "-S", supervisor.__file__, str(folder_of(node, spec.run))]

    assert subprocess.run(command, timeout=60, check=False).returncode == supervisor.LOCK_TAKEN
    assert node.logs(spec.run) == "started\n"


# ------------------------------------------------------------------------------------------------ the user's code
def test_code_other_than_the_spec_says_is_refused(compute: Callable[..., LocalCompute], spec: RunSpec) -> None:
    node = compute("leave()")
    with pytest.raises(BadInput, match="the run spec wants"):
        node.submit(replace(spec, code_sha256="0" * 64))
    with pytest.raises(BadInput, match="cannot start"):
        node.submit(replace(spec, code="code/gone.zip"))
    with pytest.raises(NotFound):
        node.status(spec.run)
