"""The durable engine in a process of its own, killed with SIGKILL again and again."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

COUNT = 12
ROOT = Path(__file__).parents[2]


def _start(database: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.e2e.durable_process", str(database), str(COUNT)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _kill_until_done(database: Path, kills: int, seed: int) -> dict[str, object]:
    chance = random.Random(seed)
    for _ in range(kills):
        with _start(database) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            time.sleep(chance.uniform(0.0, 0.25))
            process.kill()
    with _start(database) as process:
        output, _ = process.communicate(timeout=60)
    return dict(json.loads(output.splitlines()[-1]))


def _check(found: dict[str, object]) -> None:
    for number, result in enumerate(found["results"]):  # type: ignore[arg-type]
        status, _, output = result.partition(" ")
        assert status == "Completed"
        assert json.loads(output) == {
            "hello": "hello tokyo",
            "retry": f"k{number}",
            "fan": [0, 1, 4, 9],
            "approval": number,
            "sub": {"child": 49, "parent": f"flow-{number}"},
            "entity": 42,
            "caught": True,
        }
    # One signal of 1 and one call of 41 each: exactly once, however often the process was killed.
    assert found["entities"] == {f"@counter@k{number}": "42" for number in range(COUNT)}


def test_killed_processes_lose_and_double_nothing(tmp_path: Path) -> None:
    _check(_kill_until_done(tmp_path / "engine.db", kills=5, seed=1))


@pytest.mark.soak
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("seed", range(2, 12))
def test_hundreds_of_kills_lose_and_double_nothing(tmp_path: Path, seed: int) -> None:
    _check(_kill_until_done(tmp_path / "engine.db", kills=30, seed=seed))
