"""The whole platform on one machine: the embedded host with our app, and the inference server beside it."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
from pathlib import Path

from dropforge.domain.errors import BadInput
from dropforge.host.host import HostOptions, run_host
from dropforge.host.sidecars import Sidecar

INFERENCE = "inference"
KEY_FILE = "inference.key"


def run(state: Path, port: int, app: Path | None, record: Path | None = None, *, as_json: bool = False) -> int:
    """Run until a signal; the exit code is the host's (see `run_host`)."""
    folder = _app_folder(app)
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Settings that the app reads when it is imported.
    os.environ.setdefault("DROPFORGE_ADAPTERS", "local")
    os.environ["DROPFORGE_STATE"] = str(state)
    os.environ.setdefault("DROPFORGE_RUN_POLL_SECONDS", "5")
    sidecars = (_inference(state, port),)
    return asyncio.run(run_host(HostOptions(folder, state, port, record=record, sidecars=sidecars, as_json=as_json)))


def inference_key(state: Path) -> str:
    """The key of the inference server on this state folder; made once, readable by its owner only."""
    path = state / KEY_FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_text().strip()
        if key:
            return key
        descriptor = os.open(path, os.O_WRONLY)  # a crash came between making the file and writing it
    with os.fdopen(descriptor, "w") as file:
        key = secrets.token_urlsafe(32)
        file.write(key)
    return key


def _inference(state: Path, port: int) -> Sidecar:
    chosen = _free_port(port + 1 if port else 0)
    return Sidecar(
        name=INFERENCE,
        argv=(
            sys.executable,
            "-m",
            "dropforge.serving",
            "--root",
            str(state / "serving"),
            "--port",
            str(chosen),
            "--replica",
            "local",
        ),
        env={"DROPFORGE_INFERENCE_KEY": inference_key(state)},
        ready_url=f"http://127.0.0.1:{chosen}/v2/health/live",
        url=f"http://127.0.0.1:{chosen}",
    )


def _free_port(wanted: int) -> int:
    """The wanted port, or any free one when somebody has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _app_folder(app: Path | None) -> Path:
    """The folder of function_app.py: the one named, this one, or the checkout this package lies in."""
    candidates = [app] if app is not None else [Path.cwd(), Path(__file__).parent.parent]
    for folder in candidates:
        if (folder / "function_app.py").is_file():
            return folder.absolute()
    raise BadInput(f"no function_app.py in {' or '.join(map(str, candidates))}; name its folder with --app")
