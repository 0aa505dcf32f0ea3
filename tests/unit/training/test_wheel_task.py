"""The node inside a Databricks job: what it keeps on the volume, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from dropforge.training.wheel_task import main

PRELUDE = """
import json, os, pathlib, signal, sys, time
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
output = pathlib.Path(words["--output"])
kept = output / "checkpoints"
def leave(state="succeeded", code=0, reason=None):
    result = {"run": "r1", "state": state, "exit_code": code, "reason": reason, "seconds": 1, "command_seconds": 1}
    (output / "result.json").write_text(json.dumps(result))
    sys.exit(code)
"""


class Volume:
    """A run's folder on the volume, and the task that is run there."""

    def __init__(self, folder: Path, timeout_seconds: int = 60) -> None:
        self.output = folder / "output"
        self.run = folder / "run.json"
        self.run.write_text(json.dumps({"run": "r1", "timeout_seconds": timeout_seconds}))
        self.arguments = ["--run", str(self.run), "--code", "code.zip", "--output", str(self.output)]

    def node(self, lines: str) -> tuple[str, ...]:
        return (sys.executable, "-I", "-S", "-c", PRELUDE + textwrap.dedent(lines))

    def task(self, lines: str) -> None:
        main(self.arguments, self.node(lines))

    def start(self, lines: str) -> subprocess.Popen[str]:
        """The task as a process of its own, which can be interrupted."""
        code = f"from dropforge.training.wheel_task import main\nmain({self.arguments!r}, {self.node(lines)!r})"
        return subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.output / "result.json").read_bytes())
        return found

    def until(self, name: str, content: str) -> None:
        deadline = time.monotonic() + 20
        while not (self.output / name).exists() or content not in (self.output / name).read_text():
            assert time.monotonic() < deadline, sorted(self.output.rglob("*"))
            time.sleep(0.02)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path)


def test_what_the_node_leaves_lies_on_the_volume_and_what_it_prints_is_shown(
    volume: Volume, capsys: pytest.CaptureFixture[str]
) -> None:
    volume.task("""
        print("hello", words["--code"], flush=True)
        (output / "model.onnx").write_bytes(b"a model")
        leave()
    """)
    assert capsys.readouterr().out == "hello code.zip\n"
    assert sorted(os.listdir(volume.output)) == ["log.txt", "model.onnx", "result.json"]
    assert (volume.output / "log.txt").read_text() == "hello code.zip\n"


def test_the_node_writes_nothing_to_the_volume_itself(volume: Volume) -> None:
    volume.task("(output / 'place').write_text(str(output)); leave()")
    assert not (volume.output / "place").read_text().startswith(str(volume.output))


def test_the_nodes_own_log_goes_before_what_was_heard_of_it(volume: Volume) -> None:
    volume.task("print('heard'); (output / 'log.txt').write_text('kept'); leave()")
    assert (volume.output / "log.txt").read_text() == "kept"


def test_a_failure_is_raised_with_the_nodes_reason(volume: Volume) -> None:
    with pytest.raises(RuntimeError, match="exit code 12: no input"):
        volume.task("leave('failed', 12, 'no input')")
    assert volume.result()["reason"] == "no input"


@pytest.mark.parametrize(
    ("lines", "code", "said"),
    [
        ("sys.exit('no such column')", 1, "no such column"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "it printed nothing"),
    ],
)
def test_a_node_that_leaves_no_word_gets_one(volume: Volume, lines: str, code: int, said: str) -> None:
    with pytest.raises(RuntimeError):
        volume.task(lines)
    result = volume.result()
    assert (result["state"], result["exit_code"]) == ("failed", code) and said in result["reason"]


def test_what_an_earlier_attempt_left_goes_and_its_checkpoints_come(volume: Volume) -> None:
    (volume.output / "checkpoints" / "deep").mkdir(parents=True)
    (volume.output / "checkpoints" / "deep" / "step").write_text("7")
    for name in ("result.json", "model.onnx"):
        (volume.output / name).write_text("of an earlier attempt")
    with pytest.raises(RuntimeError):
        volume.task("""
            step = kept / "deep" / "step"
            step.write_text(str(int(step.read_text()) + 1))
            leave("failed", 1, "lost")
        """)
    assert (volume.output / "checkpoints" / "deep" / "step").read_text() == "8"
    assert not (volume.output / "model.onnx").exists()


def test_the_checkpoints_of_a_run_that_succeeded_go(volume: Volume) -> None:
    (volume.output / "checkpoints").mkdir(parents=True)
    (volume.output / "checkpoints" / "step").write_text("7")
    volume.task("import shutil; shutil.rmtree(kept); leave()")
    assert not (volume.output / "checkpoints").exists()


def test_checkpoints_and_log_are_kept_while_the_node_runs(volume: Volume) -> None:
    with volume.start("""
        kept.mkdir()
        (kept / "one").write_text("1")
        print("step 1", flush=True)
        time.sleep(1.8)
        (kept / "one").unlink()
        (kept / "two").write_text("2")
        time.sleep(600)
    """) as process:
        volume.until("log.txt", "step 1")
        volume.until("checkpoints/one", "1")
        volume.until("checkpoints/two", "2")
        assert not (volume.output / "checkpoints" / "one").exists()
        assert not (volume.output / "result.json").exists()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def test_a_task_that_is_interrupted_ends_the_node_and_keeps_what_it_saved(volume: Volume) -> None:
    with volume.start("""
        def told(*_):
            kept.mkdir()
            (kept / "last").write_text("saved")
            leave("cancelled", 143, "told to end")
        signal.signal(signal.SIGTERM, told)
        print(os.getpid(), flush=True)
        time.sleep(600)
    """) as process:
        volume.until("log.txt", "\n")
        pid = int((volume.output / "log.txt").read_text())
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in printed and process.returncode != 0
    assert (volume.output / "checkpoints" / "last").read_text() == "saved"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_node_that_takes_too_long_is_ended_with_all_it_started(tmp_path: Path) -> None:
    volume = Volume(tmp_path, timeout_seconds=1)
    with pytest.raises(RuntimeError, match="did not end within 1 seconds"):
        volume.task("""
            import subprocess
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            (output / "child").write_text(str(child.pid))
            time.sleep(600)
        """)
    result = volume.result()
    assert (result["state"], result["exit_code"]) == ("failed", 124)
    pid = int((volume.output / "child").read_text())
    status = Path(f"/proc/{pid}/stat")
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_volume_that_cannot_be_written_to_costs_no_run_while_it_runs(volume: Volume) -> None:
    with volume.start("print('step 1', flush=True); time.sleep(4); leave()") as process:
        volume.until("log.txt", "step 1")
        volume.output.rename(volume.output.with_name("away"))
        volume.output.write_text("no folder")
        time.sleep(2)
        volume.output.unlink()
        volume.output.with_name("away").rename(volume.output)
        process.communicate(timeout=20)
    assert process.returncode == 0 and volume.result()["state"] == "succeeded"
