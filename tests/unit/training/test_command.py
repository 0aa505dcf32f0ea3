"""Running the user's command."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dropforge.training.command import Ended, run_command, shown


def run(script: str, tmp_path: Path, **environment: str) -> Ended:
    return run_command(["python", "-c", script], tmp_path, {**os.environ, **environment})


def test_python_is_the_python_that_runs_the_node(tmp_path: Path) -> None:
    run("import sys; open('which', 'w').write(sys.executable)", tmp_path)

    assert (tmp_path / "which").read_text() == sys.executable


def test_both_streams_go_through_and_errors_are_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended = run("import sys; print('said'); print('meant', file=sys.stderr); sys.exit(3)", tmp_path)

    out, err = capfd.readouterr()
    assert (out, err) == ("said\n", "meant\n")
    assert (ended.exit_code, ended.last_words, ended.how) == (3, "meant", "ended with exit code 3")


def test_of_a_traceback_the_error_is_quoted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended = run("import sys; print('noise', file=sys.stderr); raise ValueError('first line\\n  second line')", tmp_path)

    assert ended.last_words == "ValueError: first line | second line"


def test_endless_errors_are_cut_to_their_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended = run("import sys\nfor n in range(50_000): print('line', n, file=sys.stderr)\nsys.exit(1)", tmp_path)

    assert ended.last_words.endswith("line 49999")
    assert len(ended.last_words) <= 600


def test_a_kill_is_named(tmp_path: Path) -> None:
    ended = run("import os; os.kill(os.getpid(), 9)", tmp_path)

    assert ended.how == "was killed by SIGKILL (out of memory?)"


def test_a_kill_by_a_signal_without_a_name_is_told_by_its_number(tmp_path: Path) -> None:
    ended = run("import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 6)", tmp_path)

    assert ended.how == "was killed by signal 40"


def test_a_process_left_behind_does_not_hold_the_run(tmp_path: Path) -> None:
    script = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(8)'])"

    assert run(script, tmp_path).seconds < 6


def test_a_command_that_is_not_there_raises(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-such-program"):
        run_command(["no-such-program"], tmp_path, os.environ)


def test_a_command_is_shown_as_typed() -> None:
    assert shown(["python", "a b.py"]) == "python 'a b.py'"
