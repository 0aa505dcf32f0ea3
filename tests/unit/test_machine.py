"""Starting the platform of one machine: what it refuses before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dropforge.cli.commands import app
from dropforge.domain.errors import BadInput
from dropforge.host.errors import PortInUse
from dropforge.host.server import open_socket
from dropforge.machine import _inference, run

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


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_a_port_that_cannot_be_is_refused_as_used_wrongly(tmp_path: Path, port: str) -> None:
    told = CliRunner().invoke(app, ["up", "--state", str(tmp_path / "state"), "--port", port])
    assert told.exit_code == 2
    assert "--port" in told.output
    assert not (tmp_path / "state").exists()


def test_beside_the_last_port_the_inference_server_takes_a_free_one(tmp_path: Path) -> None:
    sidecar = _inference(tmp_path, 65535)
    assert 0 < int(str(sidecar.url).rpartition(":")[2]) <= 65535


def test_a_host_without_the_command_line_refuses_such_a_port_too() -> None:
    with pytest.raises(PortInUse, match=r"cannot listen on 127.0.0.1, port 99999: .*0-65535"):
        open_socket("127.0.0.1", 99999)
