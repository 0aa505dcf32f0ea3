"""The command as people and scripts use it: what it shows, what it says as JSON, and with which code it ends."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.machine import COIN, Platform, eventually, throws
from tests.e2e.test_api import pipeline

DROPFORGE = [sys.executable, "-m", "dropforge.cli"]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with a pipeline `coin`, whose first model answers."""
    folder = tmp_path_factory.mktemp("cli")
    with Platform(folder / "state") as running:
        running.client.apply("coin", pipeline(folder, "coin"))
        running.drop("coin/", throws(folder / "files", 0, days=14))
        running.settled("coin", 1)
        yield running


def run(platform: Platform | None, folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DROPFORGE")}
    state = {"DROPFORGE_STATE": str(platform.state)} if platform is not None else {}
    return subprocess.run(
        [*DROPFORGE, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**clean, "COLUMNS": "200", **state, **environment},
        timeout=120,
    )


def told(platform: Platform, folder: Path, *words: str) -> Any:
    """What the command says as JSON; fails unless it ends with 0."""
    done = run(platform, folder, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ------------------------------------------------------------------------------------------------ looking
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["status"], ["coin", "champion"]),
        (["status", "coin"], ["1 file", "2,800 rows", "version 1", "1/1 replicas ready"]),
        (["runs", "coin"], ["coin-1-", "promoted", "better"]),
        (["models", "coin"], ["v1", "champion", "ago"]),
        (["why", "coin"], ["sha256", "throws-0000.csv", "event ", "because", "storage", "made of"]),
        (["logs", "coin"], []),
        (["alerts"], ["No alert yet"]),
        (["rules"], ["No alert rules"]),
        (["rules", "coin", "--dry-run", "--days", "3"], ["last 3 days", "coin", "run"]),
        (["reconcile", "coin"], ["1 file listed", "0 were missed"]),
        (["replay", "coin"], ["Nothing is in quarantine"]),
    ],
)
def test_what_there_is_is_shown_and_said_as_json(
    platform: Platform, tmp_path: Path, words: list[str], says: list[str]
) -> None:
    done = run(platform, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    for part in says:
        assert part in done.stdout
    told(platform, tmp_path, *words)


def test_a_watch_ends_when_nothing_is_left_to_do(platform: Platform, tmp_path: Path) -> None:
    assert told(platform, tmp_path, "status", "coin", "--watch")["champion"] == 1


def test_a_watch_is_drawn_in_a_terminal_and_ends_with_ctrl_c(platform: Platform, tmp_path: Path) -> None:
    # A file that waits for its batch: the watch would go on for ten minutes.
    folder = tmp_path / "watched"
    folder.mkdir()
    (folder / "pipeline.yaml").write_text((COIN / "pipeline.yaml").read_text().replace("name: coin", "name: watched"))
    (folder / "train.py").write_text((COIN / "train.py").read_text())
    platform.client.apply("watched", folder)
    platform.drop("watched/", throws(tmp_path / "files", 0))
    eventually(lambda: platform.status("watched")["files"]["pending"], 30, platform.log)
    process, screen = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.environ |= {"DROPFORGE_STATE": str(platform.state), "TERM": "xterm", "COLUMNS": "150"}
        os.execv(DROPFORGE[0], [*DROPFORGE, "status", "watched", "--watch"])
    seen = b""
    deadline = time.monotonic() + 30
    while b"1 pending" not in seen and time.monotonic() < deadline:
        if select.select([screen], [], [], 1)[0]:
            seen += os.read(screen, 65536)
    assert b"1 pending" in seen, seen
    os.write(screen, b"\x03")
    while select.select([screen], [], [], 10)[0]:
        try:
            if not os.read(screen, 65536):
                break
        except OSError:
            break
    _, status = os.waitpid(process, 0)
    os.close(screen)
    assert os.waitstatus_to_exitcode(status) == 130


# ------------------------------------------------------------------------------------------------ asking
def test_a_run_is_asked_for_and_awaited(platform: Platform, tmp_path: Path) -> None:
    found = told(platform, tmp_path, "train", "coin", "--wait")
    assert (found["state"], found["work"]["state"]) == ("done", "kept_champion")
    shown = run(platform, tmp_path, "evaluate", "coin", "1", "--wait")
    assert shown.returncode == 0, shown.stderr
    assert "evaluated" in shown.stdout


def test_a_model_is_promoted_and_the_one_before_put_back(platform: Platform, tmp_path: Path) -> None:
    if len(told(platform, tmp_path, "models", "coin")) < 2:
        told(platform, tmp_path, "train", "coin", "--wait")
    assert told(platform, tmp_path, "promote", "coin", "2", "--wait")["work"]["state"] == "live"
    assert platform.status("coin")["champion"] == 2
    assert told(platform, tmp_path, "rollback", "coin", "--wait")["work"]["state"] == "live"
    assert platform.status("coin")["champion"] == 1


def test_a_paused_pipeline_says_who_holds_it_and_how_it_goes_on(platform: Platform, tmp_path: Path) -> None:
    assert run(platform, tmp_path, "pause", "coin", "--reason", "wrong units", "--by", "ada").returncode == 0
    shown = run(platform, tmp_path, "status", "coin").stdout
    assert "paused by ada (with key approver)" in shown
    assert "wrong units -> dropforge resume coin" in shown
    refused = run(platform, tmp_path, "train", "coin")
    assert refused.returncode == 1
    assert "wrong units" in refused.stderr
    assert run(platform, tmp_path, "resume", "coin").returncode == 0
    assert "paused" not in run(platform, tmp_path, "status", "coin").stdout


def test_the_only_question_is_answered_without_naming_its_run(platform: Platform, tmp_path: Path) -> None:
    folder = pipeline(tmp_path, "asks")
    text = (folder / "pipeline.yaml").read_text()
    (folder / "pipeline.yaml").write_text(text.replace("gate: {", "gate: {first: ask, "))
    platform.client.apply("asks", folder)
    nothing = run(platform, tmp_path, "approve", "asks")
    assert nothing.returncode == 1
    assert "no run of asks asks anything" in nothing.stderr
    platform.drop("asks/", throws(tmp_path, 0, days=14))
    eventually(lambda: platform.status("asks")["questions"], 40, platform.log)
    assert "-> dropforge approve asks asks-1-" in run(platform, tmp_path, "status", "asks").stdout
    done = run(platform, tmp_path, "approve", "asks", "--reason", "fine", "--by", "ada")
    assert done.returncode == 0, done.stderr
    eventually(lambda: platform.status("asks")["champion"] == 1, 20, platform.log)
    shown = run(platform, tmp_path, "why", "asks").stdout
    assert "approve by ada (with key approver)" in shown
    assert "fine" in shown


# ------------------------------------------------------------------------------------------------ what goes wrong
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["status", "nope"], 1, ["no pipeline 'nope'", "hint: `dropforge status`"]),
        (["promote", "coin", "99"], 1, ["no version 99"]),
        (["promote", "coin", "x"], 2, ["integer"]),
        (["promote", "coin"], 2, ["version"]),
        (["nonsense"], 2, ["No such command"]),
        (["drop", "coin", "no-such-file.csv"], 1, ["no-such-file.csv is not a file"]),
        (["apply", "nowhere"], 1, ["no folder ./nowhere"]),
        (["rules", "coin", "--file", "x.yaml"], 1, ["--dry-run"]),
        (["cancel", "coin", "coin-9-abcdef"], 1, ["no run 'coin-9-abcdef'"]),
    ],
)
def test_an_error_is_one_sentence_with_a_hint_and_a_code(
    platform: Platform, tmp_path: Path, words: list[str], code: int, says: list[str]
) -> None:
    done = run(platform, tmp_path, *words)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    for part in says:
        assert part in done.stderr


def test_nobody_answers_is_3_and_not_allowed_is_4(platform: Platform, tmp_path: Path) -> None:
    url = platform.connection["url"]
    keys = platform.connection["host_keys"]
    gone = run(None, tmp_path, "status", DROPFORGE_URL="http://127.0.0.1:9")
    assert gone.returncode == 3
    assert "hint: `dropforge up`" in gone.stderr
    assert run(None, tmp_path, "status", DROPFORGE_STATE=str(tmp_path / "none")).returncode == 3
    wrong = run(None, tmp_path, "status", DROPFORGE_URL=url, DROPFORGE_KEY="wrong")
    assert (wrong.returncode, "DROPFORGE_KEY" in wrong.stderr) == (4, True)
    reader = run(None, tmp_path, "train", "coin", DROPFORGE_URL=url, DROPFORGE_KEY=keys["reader"])
    assert (reader.returncode, "role operator" in reader.stderr) == (4, True)
    operator = run(None, tmp_path, "promote", "coin", "1", DROPFORGE_URL=url, DROPFORGE_KEY=keys["operator"])
    assert (operator.returncode, "role approver" in operator.stderr) == (4, True)
    allowed = run(None, tmp_path, "status", DROPFORGE_URL=url, DROPFORGE_KEY=keys["reader"])
    assert allowed.returncode == 0


def test_who_reads_may_have_seen_enough(platform: Platform) -> None:
    line = f"{' '.join(DROPFORGE)} status coin --json | head -n 1"
    environment = {**os.environ, "DROPFORGE_STATE": str(platform.state)}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.stdout, "Traceback" in done.stderr) == ("{\n", False)


# ------------------------------------------------------------------------------------------------ the shell
def test_the_shell_completes_commands_and_pipelines(platform: Platform, tmp_path: Path) -> None:
    def completed(line: str) -> list[str]:
        asked = {"_DROPFORGE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("DROPFORGE")}
        program = "from dropforge.cli.commands import app; app(prog_name='dropforge')"
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**clean, **asked, "DROPFORGE_STATE": str(platform.state)},
            timeout=60,
        )
        return done.stdout.split()

    assert completed("dropforge ro") == ["rollback"]
    assert completed("dropforge status coi") == ["coin"]


def test_completion_installs_itself(tmp_path: Path) -> None:
    done = run(None, tmp_path, "--install-completion", "bash", HOME=str(tmp_path), SHELL="/bin/bash")
    assert done.returncode == 0, done.stderr
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert "COMPLETE" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()


def test_help_says_every_command_and_the_exit_codes(tmp_path: Path) -> None:
    shown = run(None, tmp_path, "--help").stdout
    commands = (
        "up", "init", "apply", "drop", "status", "runs", "models", "logs", "why", "report", "train", "evaluate", "cancel",
        "promote", "rollback", "approve", "reject", "replay", "reconcile", "pause", "resume", "alerts", "rules",
    )  # fmt: skip
    for command in commands:
        assert f" {command} " in shown
    assert "3 nobody answers" in shown
