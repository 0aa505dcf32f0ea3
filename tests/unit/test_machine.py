"""Starting the platform of one machine: what it refuses before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from dropforge.domain.errors import BadInput
from dropforge.machine import run

APP = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `run` sets goes away again."""
    for name in ("DROPFORGE_ADAPTERS", "DROPFORGE_STATE", "DROPFORGE_RUN_POLL_SECONDS"):
        monkeypatch.setenv(name, "local")


def test_a_state_folder_that_is_a_file_is_refused_with_words(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text("no folder")
    with pytest.raises(BadInput, match=f"cannot start on the state folder {state}: .*choose another with --state"):
        run(state, 0, APP)


def test_a_key_that_is_a_folder_is_refused_with_words(tmp_path: Path) -> None:
    (tmp_path / "inference.key").mkdir()
    with pytest.raises(BadInput, match=r"Is a directory: .*inference\.key'; wanted a folder that this user may write"):
        run(tmp_path, 0, APP)
