"""The whole platform on one machine: the embedded host with our app, the inference server and Service Bus beside it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import sys
from pathlib import Path

from dropforge.domain.errors import BadInput
from dropforge.host.errors import HostError, StateUnusable
from dropforge.host.host import HostOptions, run_host
from dropforge.host.local_settings import read_local_settings
from dropforge.host.sidecars import Sidecar

INFERENCE = "inference"
KEY_FILE = "inference.key"
SERVICE_BUS = "service-bus"
SERVICE_BUS_KEY_FILE = "service-bus.key"
# The connection that the app's Service Bus bindings name.
SERVICE_BUS_SETTING = "SERVICE_BUS"
# Queues, topics and subscriptions of the local Service Bus, beside function_app.py, as Microsoft's emulator reads them.
ENTITIES_FILE = "servicebus.json"
# As the emulator.
_SERVICE_BUS_PORT, _SERVICE_BUS_ADMIN_PORT = 5672, 5300
_KEY_NAME = "RootManageSharedAccessKey"


def run(state: Path, port: int, app: Path | None, record: Path | None = None, *, as_json: bool = False) -> int:
    """Run until a signal; the exit code is the host's (see `run_host`). Raises `BadInput`."""
    folder = _app_folder(app)
    # Settings that the app reads when it is imported.
    os.environ.setdefault("DROPFORGE_ADAPTERS", "local")
    os.environ["DROPFORGE_STATE"] = str(state)
    os.environ.setdefault("DROPFORGE_RUN_POLL_SECONDS", "5")
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        sidecars, service_bus = [_inference(state, port)], None
        if (folder / ENTITIES_FILE).is_file() and not _has_service_bus(folder):
            sidecar, service_bus = _service_bus(folder, state, port)
            sidecars.append(sidecar)
            os.environ[SERVICE_BUS_SETTING] = service_bus
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(str(StateUnusable(state, error))) from error
    options = HostOptions(
        folder, state, port, record=record, sidecars=tuple(sidecars), service_bus=service_bus, as_json=as_json
    )
    return asyncio.run(run_host(options))


def inference_key(state: Path) -> str:
    """The key of the inference server on this state folder; made once, readable by its owner only."""
    return _key(state / KEY_FILE)


def _key(path: Path) -> str:
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


def _has_service_bus(folder: Path) -> bool:
    """Whether the settings name a Service Bus already, in one of the spellings that Azure knows."""
    settings = dict(os.environ)
    # A file that cannot be read is the host's to tell of.
    with contextlib.suppress(HostError):
        settings = {**read_local_settings(folder / "local.settings.json").values, **settings}
    names = (SERVICE_BUS_SETTING, f"AzureWebJobs{SERVICE_BUS_SETTING}")
    return any(settings.get(name) or settings.get(f"{name}__fullyQualifiedNamespace") for name in names)


def _service_bus(folder: Path, state: Path, port: int) -> tuple[Sidecar, str]:
    """The local Service Bus, and its connection string."""
    key = _key(state / SERVICE_BUS_KEY_FILE)
    # Who asks for any free port gets free ports here too: tests start many platforms in the same moment.
    amqp = _free_port(_SERVICE_BUS_PORT if port else 0)
    admin = _free_port(_SERVICE_BUS_ADMIN_PORT if port else 0)
    sidecar = Sidecar(
        name=SERVICE_BUS,
        argv=(
            sys.executable,
            "-m",
            "dropforge.servicebus",
            "--config",
            str(folder / ENTITIES_FILE),
            "--state",
            str(state / "servicebus"),
            "--port",
            str(amqp),
            "--admin-port",
            str(admin),
        ),
        env={"DROPFORGE_SERVICE_BUS_KEY": key},
        ready_url=f"http://127.0.0.1:{admin}/health",
        url=f"sb://127.0.0.1:{amqp}",
        needed=True,
    )
    connection = (
        f"Endpoint=sb://127.0.0.1:{amqp};SharedAccessKeyName={_KEY_NAME};SharedAccessKey={key};"
        "UseDevelopmentEmulator=true;"
    )
    return sidecar, connection


def _free_port(wanted: int) -> int:
    """The wanted port, or any free one when somebody has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except (OSError, OverflowError):  # taken, or the one after the last
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _app_folder(app: Path | None) -> Path:
    """The folder of function_app.py: the one named, this one, or the checkout this package lies in."""
    candidates = [app] if app is not None else [Path.cwd(), Path(__file__).parent.parent]
    for folder in candidates:
        if (folder / "function_app.py").is_file():
            return folder.absolute()
    raise BadInput(f"no function_app.py in {' or '.join(map(str, candidates))}; name its folder with --app")
