"""Every episode that the tests before this one recorded gives the same result through `azure-functions-runtime`.

Its name puts it last. Nobody here wrote that library; it is what Azure's own worker loads from Python 3.13 on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import EPISODES
from tests.e2e.machine import ROOT

OTHERS = Path(__file__).parent / "apps"
APPS = {"dropforge": ROOT, "doors": OTHERS / "doors", "kitchen_sink": OTHERS / "kitchen_sink"}


def runtime_python() -> str:
    """An interpreter that has the runtime: this one from 3.13 on, or the one that `make setup` made beside it."""
    if sys.version_info >= (3, 13):
        return sys.executable
    beside = ROOT / ".venv-runtime" / "bin" / "python"
    if not beside.exists():
        reason = "no Python 3.13 was found by `make setup`; azure-functions-runtime needs one"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return str(beside)


@pytest.mark.parametrize("app", sorted(APPS))
def test_recorded_episodes_give_the_same_result_in_azures_own_runtime(app: str, tmp_path: Path) -> None:
    recordings = sorted(Path(os.environ[EPISODES]).glob(f"{app}--*.jsonl"))
    if not recordings:
        pytest.skip("no test before this one recorded an episode of this app")
    done = subprocess.run(
        [runtime_python(), str(Path(__file__).parent / "replay_runtime.py"), str(APPS[app]), *map(str, recordings)],
        capture_output=True,
        text=True,
        timeout=170,
        # What the host sets for an app it runs.
        env={**os.environ, "DROPFORGE_STATE": str(tmp_path), "HOURLY": "0 0 * * * *"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["different"] == 0, json.dumps(told["first"], indent=1)[:5000]
    assert told["equal"] > 0
