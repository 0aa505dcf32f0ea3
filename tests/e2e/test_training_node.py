"""`python -m dropforge.training` as compute runs it: a process, its files, its exit code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dropforge.domain.runs import RunState
from dropforge.domain.verdicts import Outcome, judge
from tests.unit.training.bench import (
    Onnx,
    Run,
    days_table,
    linear_model,
    of_first_column,
    prepare,
    run_node,
    spec,
    start,
    threshold_model,
    write_table,
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty days of forty rows; the label follows `x`."""
    return write_table(tmp_path_factory.mktemp("shops") / "table", days_table(20))


def saved(made: Onnx, tmp_path: Path) -> str:
    """A script that leaves this model."""
    path = made.save(tmp_path / "ready.onnx")
    return f"import os, shutil; shutil.copy({str(path)!r}, os.environ['DROPFORGE_OUTPUT'] + '/model.onnx')"


def test_a_run_leaves_model_metrics_evidence_and_result(table: Path, tmp_path: Path) -> None:
    run = run_node(prepare(tmp_path / "run", spec(table, slices=("shop",))))

    assert run.exit_code == 0, run.printed
    assert "trained on 600 rows" in run.printed
    evidence, result = run.evidence, run.result
    assert (evidence.against, evidence.champion_version) == ("baseline", None)
    assert (evidence.train_rows, evidence.holdout_rows, evidence.unlabelled_rows) == (600, 200, 0)
    assert {score.slice for score in evidence.blocks} == {None, "shop=north", "shop=south"}
    assert judge(evidence, confidence=0.9, seed=0).outcome is Outcome.BETTER
    assert result.state is RunState.SUCCEEDED
    assert result.reason is None
    assert result.seconds > result.command_seconds > 0
    assert result.environment["code_sha256"] == "c0de"
    assert result.metrics == run.metrics
    assert run.metrics["log_loss"] < run.metrics["baseline_log_loss"]
    assert sorted(path.name for path in run.output.iterdir()) == [
        "evidence.json",
        "golden.json",
        "metrics.json",
        "model.onnx",
        "result.json",
    ]


def test_equal_runs_make_equal_models_and_equal_evidence(table: Path, tmp_path: Path) -> None:
    first, second = (run_node(prepare(tmp_path / name, spec(table))) for name in ("one", "two"))

    assert first.result.model_sha256 == second.result.model_sha256
    assert first.evidence == second.evidence


def test_the_script_sees_its_promised_world_and_never_the_holdout(table: Path, tmp_path: Path) -> None:
    script = """
import json, os, sys
import pyarrow.parquet as pq
t = pq.read_table(os.environ["DROPFORGE_TRAIN_DATA"])
seen = {k: v for k, v in os.environ.items() if k.startswith(("DROPFORGE", "PYTHONHASHSEED", "COLOUR"))}
seen |= {"cwd": os.getcwd(), "columns": t.column_names, "newest": str(max(t.column("at").to_pylist()))}
seen["parameters"] = json.load(open(os.environ["DROPFORGE_PARAMETERS"]))
json.dump(seen, open("seen.json", "w"))
"""
    run = spec(
        table,
        seed=11,
        features=("x", "shop"),
        parameters={"max-iter": 5, "name": "a b", "deep": True},
        environment={"COLOUR": "blue"},
    )
    done = run_node(prepare(tmp_path / "run", run, script))

    seen = json.loads((tmp_path / "run" / "code" / "seen.json").read_text())
    assert done.exit_code == 11
    assert seen["columns"] == ["x", "shop", "y", "at"]
    assert seen["newest"].startswith("2024-01-15")
    assert seen["cwd"] == str(tmp_path / "run" / "code")
    assert seen["parameters"] == {"max-iter": 5, "name": "a b", "deep": True}
    assert {key: seen[key] for key in seen if key.startswith("DROPFORGE_PARAM_")} == {
        "DROPFORGE_PARAM_MAX_ITER": "5",
        "DROPFORGE_PARAM_NAME": "a b",
        "DROPFORGE_PARAM_DEEP": "true",
    }
    expected = {
        "DROPFORGE_LABEL": "y",
        "DROPFORGE_EVENT_TIME": "at",
        "DROPFORGE_FEATURES": "x,shop",
        "DROPFORGE_METRIC": "log_loss",
        "DROPFORGE_SEED": "11",
        "PYTHONHASHSEED": "11",
        "DROPFORGE_RUN": "r1",
        "DROPFORGE_PIPELINE": "shops",
        "DROPFORGE_DATASET_VERSION": "1",
        "COLOUR": "blue",
    }
    assert {key: seen[key] for key in expected} == expected


def test_a_better_challenger_is_told_from_a_bad_champion(table: Path, tmp_path: Path) -> None:
    champion = threshold_model(0.6, 0.4)
    run = run_node(prepare(tmp_path / "run", spec(table), champion=champion))

    assert (run.evidence.against, run.evidence.champion_version) == ("champion", 3)
    assert run.metrics["champion_log_loss"] > run.metrics["log_loss"]
    assert judge(run.evidence, confidence=0.9, seed=0).outcome is Outcome.BETTER


def test_both_models_answer_the_same_rows(table: Path, tmp_path: Path) -> None:
    made = threshold_model(0.3, 0.6)
    run = run_node(prepare(tmp_path / "run", spec(table), saved(made, tmp_path), champion=made))

    assert all(score.champion == score.challenger for score in run.evidence.blocks)


def test_scores_are_what_they_are_by_hand(table: Path, tmp_path: Path) -> None:
    run = run_node(prepare(tmp_path / "run", spec(table, metric="error_rate")))

    data = days_table(20).slice(600)
    session = onnxruntime.InferenceSession(str(run.output / "model.onnx"), providers=["CPUExecutionProvider"])
    x = data.column("x").to_numpy().astype(np.float32).reshape(-1, 1)
    guessed = session.run(None, {"x": x})[0].argmax(axis=1)
    wrong = (guessed != data.column("y").to_numpy()).reshape(5, 40).mean(axis=1)
    assert [score.challenger for score in run.evidence.blocks] == pytest.approx(wrong.tolist())


def test_a_champion_whose_column_is_gone_gives_way_to_the_baseline(table: Path, tmp_path: Path) -> None:
    run = run_node(prepare(tmp_path / "run", spec(table), champion=threshold_model(0.2, 0.8, name="gone")))

    assert run.exit_code == 0
    assert run.evidence.against == "baseline"
    assert "champion v3 cannot answer any more: its inputs ['gone'] match no column" in run.evidence.note


def test_a_champion_is_fed_with_the_columns_that_it_was_trained_with(tmp_path: Path) -> None:
    data = days_table(20)
    table = write_table(tmp_path / "table", data.add_column(2, "n", pa.array([-1.0] * len(data))))
    champion = of_first_column(threshold_model(0.2, 0.8), 2)
    same = saved(threshold_model(0.2, 0.8), tmp_path)

    for known, features in ((("x", "n"), ("n", "x")), (("x", "n"), ("x",)), ((), ("x", "n"))):
        folder = tmp_path / f"run-{features}"
        run = run_node(prepare(folder, spec(table, features=features), same, champion, known))

        assert (run.evidence.against, run.evidence.note) == ("champion", ""), run.printed
        assert all(score.champion == score.challenger for score in run.evidence.blocks)
        assert run.result.features == features


def test_a_champion_without_an_answer_for_a_row_gets_the_baselines(tmp_path: Path) -> None:
    data = days_table(12)
    x = [None if index == 470 else value for index, value in enumerate(data.column("x").to_pylist())]
    table = write_table(tmp_path / "table", data.set_column(1, "x", pa.array(x)))
    never_nan = Onnx(threshold_model(0.2, 0.8).proto)
    never_nan.proto.graph.node[2].input[0] = "zero"

    run = run_node(
        prepare(tmp_path / "run", spec(table), saved(never_nan, tmp_path), champion=threshold_model(0.2, 0.8))
    )

    assert run.exit_code == 0, run.printed
    assert run.evidence.against == "champion"
    assert "champion v3 has no answer for 1 of 200 rows" in run.evidence.note


def test_a_row_without_an_answer_is_shown_whatever_its_times(tmp_path: Path) -> None:
    data = days_table(12)
    x = [None if index == 470 else value for index, value in enumerate(data.column("x").to_pylist())]
    late = pa.array([253_402_300_800_000_000] * len(data), pa.int64()).cast(pa.timestamp("us"))
    table = write_table(tmp_path / "table", data.set_column(1, "x", pa.array(x)).add_column(2, "late", late))

    run = run_node(prepare(tmp_path / "run", spec(table, features=("x", "late"))))

    assert run.exit_code == 12, run.printed
    wanted = '1 of 200 held-out rows, the first of them {"x": null, "late": "10000-01-01T00:00:00.000000"}'
    assert wanted in (run.result.reason or "")


FAILURES = {
    "a crash after the model was written": (
        "raise SystemExit(print('no luck', file=__import__('sys').stderr) or 4)",
        10,
        "`python train.py` ended with exit code 4; its last words: no luck",
    ),
    "an exception": ("1 / 0", 10, "its last words: ZeroDivisionError: division by zero"),
    "no model": ("", 11, "left no model.onnx in the folder that DROPFORGE_OUTPUT names; found nothing"),
    "no onnx": (
        "import os; open(os.environ['DROPFORGE_OUTPUT'] + '/model.onnx', 'w').write('pickle')",
        12,
        "the new model cannot be used: onnxruntime cannot load it",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_command_that_fails_is_told_by_code_and_reason(table: Path, tmp_path: Path, name: str) -> None:
    script, code, reason = FAILURES[name]
    before = saved(threshold_model(0.2, 0.8), tmp_path) + "\n" if name.startswith("a crash") else ""

    run = run_node(prepare(tmp_path / "run", spec(table), before + script))

    assert run.exit_code == run.result.exit_code == code
    assert run.result.state is RunState.FAILED
    assert reason in (run.result.reason or "")
    assert run.result.model_sha256 is None
    assert not (run.output / "evidence.json").exists()


def test_what_an_earlier_try_left_does_not_pass_for_this_one(table: Path, tmp_path: Path) -> None:
    path = prepare(tmp_path / "run", spec(table))
    assert run_node(path).exit_code == 0
    (tmp_path / "run" / "code" / "train.py").write_text("print('forgot to write it')")

    assert run_node(path).exit_code == 11


UNUSABLE = {
    "an input that is no column": (threshold_model(0.2, 0.8, name="X"), r"inputs ['X'] match no column"),
    "a column that is no feature": (threshold_model(0.2, 0.8, name="x2"), r"it may be fed from ['x']"),
    "the label as input": (threshold_model(0.2, 0.8, name="y"), "wants the label 'y'"),
    "raw scores": (linear_model(5.0), "holds no probabilities"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_model_ends_with_12_and_the_reason(table: Path, tmp_path: Path, name: str) -> None:
    made, reason = UNUSABLE[name]
    run = run_node(prepare(tmp_path / "run", spec(table), saved(made, tmp_path)))

    assert run.exit_code == 12
    assert reason in (run.result.reason or "")


def test_a_model_that_answers_nan_is_unusable_and_the_rows_are_counted(tmp_path: Path) -> None:
    data = days_table(12)
    x = [None if index in (440, 470) else value for index, value in enumerate(data.column("x").to_pylist())]
    table = write_table(tmp_path / "table", data.set_column(1, "x", pa.array(x)))

    run = run_node(prepare(tmp_path / "run", spec(table), saved(threshold_model(0.2, 0.8), tmp_path)))

    assert run.exit_code == 12
    assert 'no finite answer for 2 of 200 held-out rows, the first of them {"x": null}' in (run.result.reason or "")


def test_one_class_in_train_is_data_that_cannot_be_learned_from(tmp_path: Path) -> None:
    data = days_table(12)
    table = write_table(tmp_path / "table", data.set_column(3, "y", pa.array([1] * len(data))))

    run = run_node(prepare(tmp_path / "run", spec(table)))

    assert run.exit_code == 13
    assert "'y' is 1 in all 280 training rows" in (run.result.reason or "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"table_version": 9}, "no version 9 of a table"),
        ({"label": "z"}, "no column 'z'"),
        ({"command": ()}, "training.command is empty"),
        ({"metric": "accuracy"}, "'accuracy' is none of log_loss"),
        ({"block": "decade"}, "'decade' is none of hour"),
    ],
)
def test_a_wrong_spec_ends_with_14_and_says_what_is_wrong(
    table: Path, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    run = run_node(prepare(tmp_path / "run", spec(table, **change)))

    assert run.exit_code == 14
    assert reason in (run.result.reason or "")


def test_a_champion_that_is_another_file_is_refused(table: Path, tmp_path: Path) -> None:
    path = prepare(tmp_path / "run", spec(table), champion=threshold_model(0.2, 0.8))
    threshold_model(0.1, 0.9).save(tmp_path / "run" / "champion" / "model.onnx")

    run = run_node(path)

    assert run.exit_code == 14
    assert "the champion shops v3 is not the file" in (run.result.reason or "")


def test_a_spec_that_is_no_spec_ends_with_14(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"run": 1}')

    run = run_node(tmp_path / "spec.json")

    assert run.exit_code == 14
    assert "no usable run spec" in run.printed


def test_a_regression_is_judged_against_the_median(tmp_path: Path) -> None:
    data = days_table(12)
    doubled = data.column("x").to_numpy() * 2
    table = write_table(tmp_path / "table", data.set_column(3, "y", pa.array(doubled)))

    run = run_node(prepare(tmp_path / "run", spec(table, metric="auto"), saved(linear_model(2.0), tmp_path)))

    assert run.evidence.metric == "mae"
    assert run.metrics["mae"] == pytest.approx(0.0, abs=1e-6)
    assert run.metrics["baseline_mae"] > 1


def test_the_scripts_own_metrics_are_kept_and_never_mistaken(table: Path, tmp_path: Path) -> None:
    script = (
        saved(threshold_model(0.2, 0.8), tmp_path)
        + "\nopen(os.environ['DROPFORGE_OUTPUT'] + '/metrics.json', 'w').write("
        + '\'{"log_loss": 0.0, "epochs": 7, "note": "x", "bad": NaN}\')'
    )
    run = run_node(prepare(tmp_path / "run", spec(table), script))

    assert run.metrics["script_log_loss"] == 0.0
    assert run.metrics["log_loss"] > 0.3
    assert run.metrics["epochs"] == 7
    assert "note" not in run.metrics
    assert "bad" not in run.metrics
    assert "metrics.json is not {name: finite number}" in run.printed


def test_terminating_the_node_terminates_what_it_started(table: Path, tmp_path: Path) -> None:
    script = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
open("pids", "w").write(f"{__import__('os').getpid()} {child.pid}")
print("ready", flush=True)
time.sleep(120)
"""
    with start(prepare(tmp_path / "run", spec(table), script)) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ready"):
                break
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        process.wait(30)
    run = Run(tmp_path / "run", process.returncode, "")

    assert time.monotonic() - began < 20
    assert run.exit_code == 143
    assert run.result.state is RunState.CANCELLED
    assert run.result.reason == "the run was told to end (SIGTERM)"
    for pid in (tmp_path / "run" / "code" / "pids").read_text().split():
        assert gone(int(pid))


def gone(pid: int) -> bool:
    """Dead, or dying: a process whose parent has not looked at it yet."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_output_is_passed_on_while_the_script_runs(table: Path, tmp_path: Path) -> None:
    script = "import time, sys\nprint('early')\nprint('early error', file=sys.stderr)\ntime.sleep(60)"
    with start(prepare(tmp_path / "run", spec(table), script)) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line.strip())
            if {"early", "early error"} <= set(seen):
                break
        still_running = process.poll() is None
        process.terminate()
        process.wait(30)

    assert {"early", "early error"} <= set(seen)
    assert still_running


def test_train_data_holds_what_the_features_name_even_the_arrival(table: Path, tmp_path: Path) -> None:
    script = "import os, shutil; shutil.copy(os.environ['DROPFORGE_TRAIN_DATA'], 'seen.parquet')"
    run_node(prepare(tmp_path / "run", spec(table, features=("x", "_arrived_at")), script))

    assert pq.read_schema(tmp_path / "run" / "code" / "seen.parquet").names == ["x", "_arrived_at", "y", "at"]


def test_a_run_is_written_down_where_tracking_is_named(table: Path, tmp_path: Path) -> None:
    store = tmp_path / "mlruns"
    run = replace(spec(table, parameters={"depth": 3}), tracking_uri=store.as_uri())

    done = run_node(prepare(tmp_path / "run", run))

    assert done.exit_code == 0, done.printed
    (metric,) = store.glob("*/*/metrics/log_loss")
    assert float(metric.read_text().split()[1]) == pytest.approx(done.metrics["log_loss"])
    folder = metric.parents[1]
    assert (folder / "params" / "depth").read_text() == "3"
    assert (folder / "tags" / "dropforge.run").read_text() == "r1"
    assert {path.name for path in (folder / "artifacts").iterdir()} == {"model.onnx", "evidence.json", "metrics.json"}


def test_tracking_that_fails_costs_a_warning_only(table: Path, tmp_path: Path) -> None:
    run = replace(spec(table), tracking_uri="http://127.0.0.1:9/nobody")

    done = run_node(prepare(tmp_path / "run", run))

    assert done.exit_code == 0
    assert "tracking at http://127.0.0.1:9/nobody failed" in done.printed


def test_nothing_of_a_cloud_and_no_framework_is_loaded() -> None:
    unwanted = ("azure", "pandas", "mlflow", "onnx", "sklearn", "torch")
    code = f"import sys, dropforge.training.node; print([n for n in sys.modules if n.split('.')[0] in {unwanted}])"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
