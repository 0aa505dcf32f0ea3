"""`Compute` as processes of this machine: a folder and a supervisor per run, which outlive whoever submitted it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from dropforge.adapters.local import supervisor
from dropforge.adapters.local.atomic import locked, make_folders, sync_folder, whole_file
from dropforge.adapters.run_outcome import collected
from dropforge.bundle import unpack
from dropforge.domain.errors import BadInput, Conflict, NotFound, Refused, RunFailed, Unavailable
from dropforge.domain.runs import ENDED, ChampionRef, RunResult, RunSpec, RunState, RunStatus
from dropforge.ports import Artifacts
from dropforge.training.contract import CHECKPOINTS, MODEL, NodeSpec
from dropforge.wire import from_json, to_json

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# What a run sees of the host's environment; the host's keys and settings are not for the user's code.
_PASSED = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "VIRTUAL_ENV",
        "LD_LIBRARY_PATH",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "XDG_CACHE_HOME",
        "HF_HOME",
        "TORCH_HOME",
    }
)
_PASSED_PREFIXES = ("LC_", "PYTHON", "OMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "CUDA_", "NVIDIA_", "CONDA_", "MLFLOW_")
_START_SECONDS = 60.0
_START_ATTEMPTS = 5
# With every core of a two-core machine taken by training, a request of 45 ms CPU took 182 ms at the same niceness, 82 ms
# when training ran at 5 and 48 ms at 10. Training gives up nothing while nobody asks.
NICENESS = 10


class LocalCompute:
    """Runs under `<root>/<run>/`, see `supervisor` for the files. Every state is read from there, so whichever process
    asks, today's or one started after a crash, sees the same.

    `node_command` is what runs, followed by the path of `spec.json`; the training node unless told otherwise.
    `grace_seconds` pass between asking a run to end and ending it.
    """

    def __init__(
        self,
        root: Path,
        artifacts: Artifacts,
        *,
        python: str = sys.executable,
        node_command: Sequence[str] | None = None,
        grace_seconds: float = 10.0,
        log_limit_bytes: int = 50 * 1024**2,
        niceness: int = NICENESS,
    ) -> None:
        # Resolved: the name of the folder is also the mark that a run's processes are found by.
        self._root = root.resolve()
        self._artifacts = artifacts
        self._python = python
        # -P: the folder the command runs in is the user's, and must not lend its modules to the node.
        self._node_command = tuple(node_command or (python, "-P", "-m", "dropforge.training"))
        self._grace_seconds = grace_seconds
        self._log_limit_bytes = log_limit_bytes
        self._niceness = niceness

    # -------------------------------------------------------------------------------------------- the port
    def submit(self, spec: RunSpec) -> None:
        """As the port says. Raises `Conflict` for another spec under an equal run id, `BadInput` for code or a
        champion that can never be run, and for a run that is meant for somewhere else."""
        target = spec.compute.get("target", "local")
        if target != "local":
            raise BadInput(
                f"training.compute.target is {target}, and this machine trains by itself alone; set local, or run the "
                "platform with DROPFORGE_ADAPTERS=azure",
                run=spec.run,
                target=target,
            )
        folder = self._folder(spec.run)
        make_folders(folder)
        with locked(folder / "submit.lock"):
            if (folder / supervisor.SPEC).exists():
                self._check_equal(folder, spec)
            else:
                self._prepare(folder, spec)
            self._start(folder)

    def status(self, run: str) -> RunStatus:
        """As the port says. A run whose supervisor is gone has failed; what it left behind is ended."""
        folder = self._known(run)
        while True:
            alive = _alive(folder)
            # In this order: the end is written before the supervisor goes.
            if (ended := _read(folder / supervisor.EXIT)) is not None:
                return _status(run, ended)
            started = _read(folder / supervisor.SUPERVISOR)
            if alive:
                return RunStatus(run, RunState.RUNNING, started_at=_time((started or {}).get("started_at")))
            if started is None:
                return RunStatus(run, RunState.SUBMITTED)
            _bury(folder)

    def result(self, run: str) -> RunResult:
        """As the port says; the log becomes an artifact too, however the run ended. `Refused` while it runs."""
        folder = self._known(run)
        status = self.status(run)
        if status.state not in ENDED:
            raise Refused(f"run {run} is {status.state.value}; ask for its result once it has ended", run=run)
        with suppress(FileNotFoundError, Conflict):
            self._artifacts.put(f"runs/{run}/log.txt", folder / supervisor.LOG)
        if status.state is not RunState.SUCCEEDED:
            raise RunFailed(status.reason or f"run {run} {status.state.value}", run=run)
        return self._collected(folder, run)

    def cancel(self, run: str) -> None:
        """As the port says; returns at once, and the run ends within the grace time. Raises `NotFound`."""
        folder = self._known(run)
        if (folder / supervisor.EXIT).exists():
            return
        # The supervisor looks for this file; the signal only wakes it. Whoever submits later finds it too.
        (folder / supervisor.CANCEL).touch()
        if _alive(folder):
            _wake(folder)
            return
        lock = supervisor.take_lock(folder, 0.0)
        if lock is None:
            _wake(folder)
            return
        try:
            if (folder / supervisor.EXIT).exists():
                return
            if (folder / supervisor.SUPERVISOR).exists():
                supervisor.bury(folder)
                return
            ended = {"state": "cancelled", "reason": "cancelled before it started", "ended_at": supervisor.now()}
            supervisor.write_json(folder / supervisor.EXIT, {"run": run, **ended})
        finally:
            os.close(lock)

    def logs(self, run: str, tail_bytes: int = 65536) -> str:
        """As the port says; nothing yet: an empty text. Raises `NotFound`."""
        log = self._known(run) / supervisor.LOG
        try:
            with log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - tail_bytes))
                return file.read(tail_bytes).decode(errors="replace" if size <= tail_bytes else "ignore")
        except FileNotFoundError:
            return ""

    # -------------------------------------------------------------------------------------------- submitting
    def _folder(self, run: str) -> Path:
        if not _RUN.fullmatch(run):
            raise BadInput(f"run {run!r} is not a run id; use up to 128 letters, digits, '.', '_' and '-'", run=run)
        return self._root / run

    def _known(self, run: str) -> Path:
        folder = self._folder(run)
        if not (folder / supervisor.SPEC).exists():
            raise NotFound(f"no run {run!r} was submitted here", run=run)
        return folder

    def _check_equal(self, folder: Path, spec: RunSpec) -> None:
        asked = from_json(NodeSpec, (folder / supervisor.SPEC).read_bytes()).run
        if to_json(asked) != to_json(spec):
            message = f"run {spec.run} was submitted with another spec; give the new one another run id"
            raise Conflict(message, run=spec.run)

    def _prepare(self, folder: Path, spec: RunSpec) -> None:
        """Everything the node finds there; `spec.json` last, so that a half-prepared folder is prepared again."""
        code, output, work = folder / "code", folder / "output", folder / "work"
        for left in (code, output, work):
            shutil.rmtree(left, ignore_errors=True)
        bundle = folder / "code.zip"
        self._fetch(spec.code, spec.code_sha256, bundle)
        unpack(bundle, code)
        bundle.unlink()
        champion = self._given(spec.champion, folder / "champion")
        challenger = self._given(spec.challenger, folder / "challenger")
        for made in (output, work, folder / CHECKPOINTS):
            made.mkdir(exist_ok=True)
        command = {
            "command": [*self._node_command, str(folder / supervisor.SPEC)],
            "directory": str(code),
            "environment": spec.environment,
            "timeout_seconds": spec.timeout_seconds,
            "grace_seconds": self._grace_seconds,
            "log_limit_bytes": self._log_limit_bytes,
            "niceness": self._niceness,
        }
        node = NodeSpec(spec, str(code), champion, str(output), str(work), challenger, str(folder / CHECKPOINTS))
        for name, content in ((supervisor.COMMAND, json.dumps(command).encode()), (supervisor.SPEC, to_json(node))):
            with whole_file(folder / name) as file:
                file.write(content)
        sync_folder(folder)

    def _given(self, model: ChampionRef | None, folder: Path) -> str | None:
        """Where the node finds a model that the run measures; None when there is none to measure."""
        if model is None:
            return None
        folder.mkdir(exist_ok=True)
        self._fetch(model.artifact, model.sha256, folder / MODEL)
        return str(folder / MODEL)

    def _fetch(self, artifact: str, sha256: str, to: Path) -> None:
        try:
            found = self._artifacts.fetch(artifact, to)
        except NotFound as error:
            raise BadInput(f"the run cannot start: {error.message}", artifact=artifact) from error
        if found != sha256:
            raise BadInput(f"artifact {artifact!r} has sha256 {found}, the run spec wants {sha256}", artifact=artifact)

    def _start(self, folder: Path) -> None:
        """Bring up the supervisor, unless it is or was there. However many are started, one gets the lock, once.

        On return it has written that it is there: should it die from now on, the run has failed.
        """
        for _ in range(_START_ATTEMPTS):
            if _has_begun(folder):
                return
            self._spawn(folder)
        if not _has_begun(folder):
            message = f"run {folder.name}: its supervisor was killed {_START_ATTEMPTS} times in a row while starting"
            raise Unavailable(message, run=folder.name)

    def _spawn(self, folder: Path) -> None:
        with (folder / supervisor.LOG).open("ab") as log:
            try:
                # It forks and leaves the run to the fork, so there is nothing to wait for or to reap later.
                ended = subprocess.run(
                    [self._python, "-I", "-S", supervisor.__file__, str(folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=folder,
                    env=passed_on(os.environ),
                    start_new_session=True,
                    timeout=_START_SECONDS,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise Unavailable(
                    f"run {folder.name}: its supervisor did not start: {error}", run=folder.name
                ) from error
        if ended.returncode not in (0, supervisor.LOCK_TAKEN):
            message = (
                f"run {folder.name}: its supervisor ended with code {ended.returncode}; see {folder / supervisor.LOG}"
            )
            raise Unavailable(message, run=folder.name)

    # -------------------------------------------------------------------------------------------- collecting
    def _collected(self, folder: Path, run: str) -> RunResult:
        try:
            node = from_json(NodeSpec, (folder / supervisor.SPEC).read_bytes())
        except BadInput as error:
            raise RunFailed(f"run {run} left files that say something else: {error.message}", run=run) from error
        return collected(node.run, folder / "output", self._artifacts)


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """What of the host's environment a run may see."""
    return {name: value for name, value in environment.items() if name in _PASSED or name.startswith(_PASSED_PREFIXES)}


def _has_begun(folder: Path) -> bool:
    """Whether a supervisor has written that it is there, once the one that is starting, if any, has come so far."""
    deadline = time.monotonic() + _START_SECONDS
    while not (folder / supervisor.SUPERVISOR).exists() and not (folder / supervisor.EXIT).exists():
        # One that was killed before it wrote anything has started nothing: another one may.
        if not _alive(folder) or time.monotonic() > deadline:
            return (folder / supervisor.SUPERVISOR).exists() or (folder / supervisor.EXIT).exists()
        time.sleep(0.005)
    return True


def _alive(folder: Path) -> bool:
    """Whether a supervisor holds its lock."""
    try:
        handle = os.open(folder / supervisor.LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who look do not take each other for the supervisor.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _wake(folder: Path) -> None:
    known = _read(folder / supervisor.SUPERVISOR)
    if known is not None and supervisor.start_time(known["pid"]) == known["since"]:
        with suppress(ProcessLookupError):
            os.kill(known["pid"], signal.SIGTERM)


def _bury(folder: Path) -> None:
    lock = supervisor.take_lock(folder, 0.5)
    if lock is None:
        return
    try:
        if not (folder / supervisor.EXIT).exists():
            supervisor.bury(folder)
    finally:
        os.close(lock)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return value


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _status(run: str, ended: dict[str, Any]) -> RunStatus:
    return RunStatus(
        run,
        RunState(ended["state"]),
        reason=ended.get("reason"),
        started_at=_time(ended.get("started_at")),
        ended_at=_time(ended.get("ended_at")),
        exit_code=ended.get("exit_code"),
    )
