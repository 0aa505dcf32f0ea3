"""`dropforge train-node`: a run on a machine with mounted folders, told to end, killed, and started again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dropforge import wire
from dropforge.domain.runs import RunState
from dropforge.domain.verdicts import Evidence
from tests.e2e.test_training_node import gone
from tests.unit.training.bench import TRAIN, days_table, prepare, run_node, spec, threshold_model, write_table
from tests.unit.training.mounts import Mounts, leftovers, mounts


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty days of forty rows; the label follows `x`."""
    return write_table(tmp_path_factory.mktemp("shops") / "table", days_table(20))


# ------------------------------------------------------------------------------------------------ what it leaves
def test_a_run_leaves_what_a_local_run_leaves_and_its_log(table: Path, tmp_path: Path) -> None:
    local = run_node(prepare(tmp_path / "local", spec(table), champion=threshold_model(0.6, 0.4)))
    mounted = mounts(tmp_path / "mounted", spec(table), champion=threshold_model(0.6, 0.4))

    code, printed = mounted.run()

    assert code == 0, printed
    assert sorted(os.listdir(mounted.output)) == [
        "evidence.json",
        "golden.json",
        "log.txt",
        "metrics.json",
        "model.onnx",
        "result.json",
    ]
    result = mounted.result
    assert (result.run, result.state, result.exit_code, result.reason) == ("r1", RunState.SUCCEEDED, 0, None)
    assert result.model_sha256 == local.result.model_sha256
    assert result.metrics == local.metrics == json.loads((mounted.output / "metrics.json").read_bytes())
    assert wire.from_json(Evidence, (mounted.output / "evidence.json").read_bytes()) == local.evidence
    assert (mounted.output / "log.txt").read_text() == printed
    assert "trained on 600 rows" in printed
    assert leftovers(mounted.folder) == []


def test_a_long_log_is_kept_without_its_middle(table: Path, tmp_path: Path) -> None:
    script = "import sys\nprint('the first line')\n"
    script += "for n in range(120): print('x' * 99_999)\nsys.exit('the last line')"
    mounted = mounts(tmp_path / "run", spec(table), script)

    mounted.run()

    log = (mounted.output / "log.txt").read_text()
    assert "the first line" in log and "bytes are cut out here" in log and "the last line" in log
    assert len(log) < 9 * 1024**2


def test_it_starts_without_what_the_other_commands_need() -> None:
    unwanted = ("typer", "rich", "azure", "pydantic", "numpy", "pyarrow")
    code = "import sys; sys.argv = ['dropforge', 'train-node', '--help']\nimport dropforge.cli\n"
    code += f"try: dropforge.cli.main()\nfinally: print([n for n in sys.modules if n.split('.')[0] in {unwanted}])"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.splitlines()[-1] == "[]"


# ------------------------------------------------------------------------------------------------ what is wrong
def broken(mounted: Mounts, what: str) -> Mounts:
    folder = mounted.folder
    if what == "no spec":
        (folder / "run.json").unlink()
    if what == "half a spec":
        (folder / "run.json").write_bytes((folder / "run.json").read_bytes()[:100])
    if what == "no code":
        (folder / "code.zip").unlink()
    if what == "other code":
        (folder / "code.zip").write_bytes(b"PK")
    if what == "no table":
        place = mounted.arguments.index("--table") + 1
        return replace(mounted, arguments=(*mounted.arguments[:place], "elsewhere", *mounted.arguments[place + 1 :]))
    if what == "no champion":
        (folder / "champion.onnx").unlink()
    if what == "another champion":
        threshold_model(0.1, 0.2).save(folder / "champion.onnx")
    if what == "champion not passed":
        return replace(mounted, arguments=tuple(w for w in mounted.arguments if "champion" not in w))
    return mounted


WRONG = {
    "no spec": "cannot read the run spec run.json: No such file",
    "half a spec": "no run spec in run.json",
    "no code": "cannot read the code code.zip: No such file",
    "other code": "the run spec wants ",
    "no table": "there is no table folder elsewhere",
    "no champion": "cannot read the champion ",
    "another champion": "the champion shops v3 is not the file at ",
    "champion not passed": "the run has a champion, shops v3; pass its file with --champion",
}


@pytest.mark.parametrize("what", WRONG)
def test_inputs_that_are_not_as_they_must_be_end_with_14_and_are_named(table: Path, tmp_path: Path, what: str) -> None:
    mounted = broken(mounts(tmp_path / "run", spec(table), champion=threshold_model(0.6, 0.4)), what)

    code, printed = mounted.run()

    assert code == mounted.result.exit_code == 14, printed
    assert mounted.result.state is RunState.FAILED
    assert WRONG[what] in (mounted.result.reason or "")
    assert WRONG[what] in (mounted.output / "log.txt").read_text()


def test_a_command_that_fails_ends_as_on_one_machine(table: Path, tmp_path: Path) -> None:
    mounted = mounts(tmp_path / "run", spec(table), "1 / 0")

    code, _ = mounted.run()

    assert code == mounted.result.exit_code == 10
    assert "ZeroDivisionError" in (mounted.result.reason or "")
    assert not (mounted.output / "model.onnx").exists()


def test_an_output_that_cannot_be_written_to_is_told_before_anything_is_trained(table: Path, tmp_path: Path) -> None:
    mounted = mounts(tmp_path / "run", spec(table))
    mounted.output.write_text("a file where the folder belongs")

    code, printed = mounted.run()

    assert code == 1
    assert "cannot write to the output folder" in printed
    assert "table version" not in printed


def test_a_full_disk_is_told_as_one(table: Path, tmp_path: Path) -> None:
    # Stood in for by a limit on the size of files, which ends a write in the same way.
    mounted = mounts(
        tmp_path / "run", spec(table), "import os; open(os.environ['DROPFORGE_OUTPUT'] + '/model.onnx', 'w')"
    )
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); sys.argv[0] = 'x'; "
    limit += "sys.argv.insert(1, 'train-node'); from dropforge.cli import main; main()"

    done = subprocess.run(
        [sys.executable, "-c", limit, *mounted.arguments],
        cwd=mounted.folder,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == mounted.result.exit_code == 1, done.stdout
    assert "the disk is full: " in (mounted.result.reason or "")


def test_a_node_that_is_killed_still_leaves_a_result(table: Path, tmp_path: Path) -> None:
    script = "import os, signal, time; os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)"
    mounted = mounts(tmp_path / "run", spec(table), script)

    code, _ = mounted.run()

    assert code == mounted.result.exit_code == 137
    assert mounted.result.reason == "the training node was killed by SIGKILL (out of memory?)"


def test_a_node_that_is_killed_by_a_signal_without_a_name_leaves_a_result_too(table: Path, tmp_path: Path) -> None:
    script = "import os, signal, time; os.kill(os.getppid(), signal.SIGRTMIN + 6); time.sleep(60)"
    mounted = mounts(tmp_path / "run", spec(table), script)

    assert mounted.run()[0] == 168
    assert (mounted.result.reason or "").startswith("the training node was killed by signal 40; its last words: ")


def test_an_earlier_result_does_not_pass_for_this_ones(table: Path, tmp_path: Path) -> None:
    mounted = mounts(tmp_path / "run", spec(table))
    assert mounted.run()[0] == 0
    (mounted.folder / "code.zip").write_bytes(b"other code")

    assert mounted.run()[0] == 14
    assert sorted(os.listdir(mounted.output)) == ["log.txt", "result.json"]


# ------------------------------------------------------------------------------------------------ told to end
STEPS = 40
# Gradient descent whose every step depends on the one before; a checkpoint every five steps and when told to end.
DESCENT = f"""
import json, os, signal, sys, time
import numpy as np
import pyarrow.parquet as pq
sys.path.insert(0, os.environ["BENCH"])
from tests.unit.training.bench import threshold_model
table = pq.read_table(os.environ["DROPFORGE_TRAIN_DATA"])
x, y = (table.column(name).to_numpy() for name in ("x", os.environ["DROPFORGE_LABEL"]))
kept = os.path.join(os.environ["DROPFORGE_CHECKPOINTS"], "state.npz")
low, high, first, told = 0.0, 0.0, 0, []
if os.path.exists(kept):
    found = np.load(kept)
    low, high, first = float(found["low"]), float(found["high"]), int(found["step"])
def save(step):
    np.savez(kept + ".part.npz", low=low, high=high, step=step)
    os.replace(kept + ".part.npz", kept)
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
for step in range(first, {STEPS}):
    with open(os.environ["STEPS_FILE"], "a") as file: file.write(f"{{step}}\\n")
    chosen = np.random.default_rng(step).permutation(len(x))[:50]
    p = 1 / (1 + np.exp(-np.where(x[chosen] > 0, high, low)))
    gradient = p - y[chosen]
    low -= 0.5 * float(gradient[x[chosen] <= 0].mean())
    high -= 0.5 * float(gradient[x[chosen] > 0].mean())
    time.sleep(0.02)
    if told:
        save(step + 1)
        sys.exit(3)
    if (step + 1) % 5 == 0:
        save(step + 1)
threshold_model(1 / (1 + np.exp(-low)), 1 / (1 + np.exp(-high))).save(os.environ["DROPFORGE_OUTPUT"] + "/model.onnx")
"""


def steps_of(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 20))])
def test_a_run_that_is_told_to_end_or_killed_again_and_again_makes_the_same_model(
    table: Path, tmp_path: Path, seed: int
) -> None:
    undisturbed = mounts(tmp_path / "undisturbed", spec(table), DESCENT)
    assert undisturbed.run({"STEPS_FILE": str(tmp_path / "whole")})[0] == 0
    disturbed, steps, rng = (
        mounts(tmp_path / "disturbed", spec(table), DESCENT),
        tmp_path / "steps",
        random.Random(seed),
    )

    ends: list[tuple[int, int]] = []
    for number in rng.sample([signal.SIGKILL, signal.SIGTERM, signal.SIGKILL], 3):
        process, seen = disturbed.start({"STEPS_FILE": str(steps)}), len(steps_of(steps))
        wanted = seen + rng.randint(1, 8)
        while process.poll() is None and len(steps_of(steps)) < wanted:
            time.sleep(0.005)
        end_as_a_machine_does(process, number)
        ends.append((number, len(steps_of(steps))))
        assert not (disturbed.output / "model.onnx").exists()
    code, printed = disturbed.run({"STEPS_FILE": str(steps)})

    assert code == 0, printed
    assert steps_of(tmp_path / "whole") == list(range(STEPS))
    assert disturbed.result.model_sha256 == undisturbed.result.model_sha256
    done = steps_of(steps)
    assert sorted(set(done)) == list(range(STEPS))
    for number, at in ends:
        # After SIGTERM nothing is done twice; after SIGKILL at most what came after the last checkpoint.
        repeated = done[at - 1] + 1 - done[at]
        assert repeated == 0 if number == signal.SIGTERM else 0 <= repeated <= 5
    assert not (disturbed.output / "checkpoints").exists()


def end_as_a_machine_does(process: subprocess.Popen[str], number: int) -> None:
    """SIGTERM goes to the first process. SIGKILL goes to all: the machine is taken away."""
    below = children_of(process.pid)
    for pid in [process.pid, *(below if number == signal.SIGKILL else [])]:
        os.kill(pid, number)
    process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else -9)
    assert all(gone(pid) for pid in below)


def children_of(root: int) -> list[int]:
    found, todo = [], [root]
    while todo:
        parent = todo.pop()
        try:
            below = [int(each) for each in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
        except FileNotFoundError:
            continue
        found += below
        todo += below
    return found


def test_a_run_that_is_told_to_end_says_so(table: Path, tmp_path: Path) -> None:
    mounted = mounts(tmp_path / "run", spec(table), "import time; print('up', flush=True); time.sleep(60)")
    with mounted.start() as process:
        assert process.stdout is not None
        assert any(line.startswith("up") for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)

    assert process.returncode == mounted.result.exit_code == 143
    assert (mounted.result.state, mounted.result.reason) == (RunState.CANCELLED, "the run was told to end (SIGTERM)")


def test_nothing_outlives_the_first_process(table: Path, tmp_path: Path) -> None:
    mounted = mounts(tmp_path / "run", spec(table), "import time; print('up', flush=True); time.sleep(60)")
    with mounted.start() as process:
        assert process.stdout is not None
        assert any(line.startswith("up") for line in process.stdout)
        below = children_of(process.pid)
        process.kill()
        process.communicate(timeout=30)

    assert len(below) == 2
    assert all(gone(pid) for pid in below)


# ------------------------------------------------------------------------------------------------ several processes
TOGETHER = """
import os, pathlib, time
place = pathlib.Path(os.environ["DROPFORGE_CHECKPOINTS"])
(place / f"rank-{os.environ['RANK']}").write_text(os.environ["DROPFORGE_OUTPUT"])
# Nobody goes on before all are there.
while len(list(place.glob("rank-*"))) < int(os.environ["WORLD_SIZE"]): time.sleep(0.01)
print("rank", os.environ["RANK"], "is there", flush=True)
"""


def test_of_several_processes_the_first_alone_reports(table: Path, tmp_path: Path) -> None:
    mounted = mounts(tmp_path / "run", spec(table), TOGETHER + TRAIN)
    started = [mounted.start({"RANK": str(rank), "WORLD_SIZE": "2"}) for rank in (1, 0)]
    told = [process.communicate(timeout=60)[0] for process in started]

    assert [process.returncode for process in started] == [0, 0], told
    assert mounted.result.state is RunState.SUCCEEDED
    assert "rank 1 is there" in told[0] and "log_loss" not in told[0]
    assert "rank 0 is there" in told[1] and "log_loss" in told[1]
    assert "rank 1 is there" not in (mounted.output / "log.txt").read_text()


@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")])
def test_another_process_ends_as_its_command_ends_and_writes_no_result(
    table: Path, tmp_path: Path, names: tuple[str, str]
) -> None:
    mounted = mounts(tmp_path / "run", spec(table), "raise SystemExit(7)")

    code, printed = mounted.run({names[0]: "1", names[1]: "2"})

    assert code == 7, printed
    assert os.listdir(mounted.output) == ["checkpoints"]
