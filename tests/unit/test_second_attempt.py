"""scripts/test.sh: which failures get a second attempt, and what comes of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "test.sh"
# In place of Python: says what it was asked for; each call ends as the next of $CODES says, the first one's failures
# are $FAILURES.
STUB = """#!/usr/bin/env bash
echo "pytest ${@:3}" >>"$CALLS"
count=$(wc -l <"$CALLS")
[ "$count" -eq 1 ] && printf '%s' "$FAILURES" >"$DROPFORGE_TEST_FAILED"
for last in "$@"; do :; done
case "$last" in @*) sed 's/^/again /' "${last#@}" >>"$CALLS.again";; esac
set -- $CODES
exit "${!count}"
"""


def run(folder: Path, codes: str, failures: str) -> tuple[int, list[str], str]:
    """The exit code, which tests were run again, and what was printed."""
    (folder / "scripts").mkdir()
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / "scripts" / "test.sh").write_bytes(SCRIPT.read_bytes())
    python = folder / ".venv" / "bin" / "python"
    python.write_text(STUB)
    python.chmod(0o755)
    calls = folder / "calls"
    environment = {**os.environ, "CODES": codes, "FAILURES": failures, "CALLS": str(calls), "TMPDIR": str(folder)}
    done = subprocess.run(
        ["bash", folder / "scripts" / "test.sh"], env=environment, capture_output=True, text=True, timeout=30
    )
    again = folder / "calls.again"
    return done.returncode, again.read_text().splitlines() if again.exists() else [], done.stdout + done.stderr


ONE = "tests/e2e/test_loop.py::test_it[a b]\n"


def test_nothing_is_run_again_where_nothing_failed(tmp_path: Path) -> None:
    assert run(tmp_path, "0 0", "") == (0, [], "")


def test_a_disturbed_test_is_run_again_alone_and_named(tmp_path: Path) -> None:
    code, again, said = run(tmp_path, "1 0 0", ONE)
    assert (code, again) == (0, [f"again {ONE.strip()}"])
    assert "PASSED ONLY ALONE" in said
    assert ONE in said


@pytest.mark.parametrize(
    ("codes", "failures", "ends", "again"),
    [
        ("1 1", ONE, 1, 1),
        ("1 0 1", ONE, 1, 1),
        ("1", ONE * 4, 1, 0),
        ("1", "", 1, 0),
        ("3", ONE, 3, 0),
        ("0 1", "", 1, 0),
    ],
    ids=["again", "replay", "many", "none", "pytest's trouble", "replay alone"],
)
def test_what_failed_stays_failed(tmp_path: Path, codes: str, failures: str, ends: int, again: int) -> None:
    code, called, said = run(tmp_path, codes, failures)
    assert (code, len(called)) == (ends, again)
    assert ("PASSED ONLY ALONE" in said) == (codes == "1 0 1")
