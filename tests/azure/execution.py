"""One attempt of a job: its data mounted, its command run as processes of this machine, as its nodes would."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.azure.mounts import DataError, Mounts, Output, literal

_EXPRESSION = re.compile(r"\$\{\{\s*(inputs|outputs|search_space)\.([A-Za-z0-9_.-]+)\s*\}\}")
# What bash takes as one word and as it is: bare, and in double quotes.
_PLAIN = re.compile(r"[A-Za-z0-9_./:=@%+,-]+")
_PLAIN_IN_QUOTES = re.compile(r"[^\"$`\\!]*")
_SYNC_SECONDS = 0.3


@dataclass
class Attempt:
    """Processes, their logs, and the folders that are kept in storage."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: dict[str, Path] = field(default_factory=dict)
    outputs: list[Output] = field(default_factory=list)
    _synced_at: float = 0.0

    def poll(self) -> int | None:
        """The exit status once all have ended, or one has failed; None while they run."""
        codes = [process.poll() for process in self.processes]
        if failed := [code for code in codes if code]:
            return failed[0]
        return None if None in codes else 0

    def keep_outputs(self) -> None:
        """Now and then, what was closed."""
        if time.monotonic() - self._synced_at >= _SYNC_SECONDS:
            self._synced_at = time.monotonic()
            for output in self.outputs:
                output.push(closed_only=True)

    def store_outputs(self) -> None:
        for output in self.outputs:
            output.push(closed_only=False)

    def terminate(self, grace_seconds: float) -> None:
        """SIGTERM, then SIGKILL, to all that the command started."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while time.monotonic() < deadline and any(process.poll() is None for process in self.processes):
            time.sleep(0.01)
        self.kill()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def _signal(self, number: int) -> None:
        for process in self.processes:
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                continue


@dataclass(frozen=True)
class Order:
    """What an attempt is to do: the properties of a command job, with its trial's values where it is one of a sweep."""

    name: str
    properties: dict[str, Any]
    # Variables that Azure ML sets.
    environment: dict[str, str]
    values: dict[str, Any] = field(default_factory=dict)


def start(order: Order, mounts: Mounts, image: Path, folder: Path) -> Attempt:
    """Mounts and starts. Raises `DataError` when an input is not there."""
    attempt = Attempt(folder)
    # By expression: the variable that Azure ML puts in its place.
    variables: dict[tuple[str, str], str] = {}
    environment: dict[str, str] = {}
    for name, given in (order.properties.get("inputs") or {}).items():
        if literal(given):
            variables["inputs", name] = f"AZUREML_PARAMETER_{name}"
            environment[variables["inputs", name]] = str(given["value"])
        else:
            variables["inputs", name] = f"AZURE_ML_INPUT_{name}"
            found = mounts.fetch(given["uri"], given["jobInputType"], folder / f"INPUT_{name}")
            environment[variables["inputs", name]] = str(found)
    for name, given in (order.properties.get("outputs") or {}).items():
        output = _output(name, given, mounts, folder)
        attempt.outputs.append(output)
        variables["outputs", name] = f"AZURE_ML_OUTPUT_{name}"
        environment[variables["outputs", name]] = str(output.folder)
    for name, value in order.values.items():
        variables["search_space", name] = f"AZUREML_SWEEP_{name}"
        environment[variables["search_space", name]] = str(value)
    command = resolved(order.properties["command"], variables, environment)
    for variable, text in (order.properties.get("environmentVariables") or {}).items():
        if _EXPRESSION.search(text):
            raise DataError(
                "UserError", f"The variable {variable} holds an expression: it would arrive as it is written."
            )
        environment[variable] = text
    _run(attempt, order, command, {**environment, **order.environment}, image)
    return attempt


def resolved(command: str, variables: dict[tuple[str, str], str], environment: dict[str, str]) -> str:
    """The command with a variable in the place of each expression, as Azure ML resolves `search_space` (and shows inputs).

    Where putting in a variable and putting in its text are not the same to bash, this refuses: what is accepted works
    whichever way the service has chosen. Raises `DataError`.
    """
    for found in _EXPRESSION.finditer(command):
        key = (found[1], found[2])
        if key not in variables:
            raise DataError("UserError", f"The command names {found[0]}, which the job does not have.")
        quote = _open_quote(command[: found.start()])
        value = environment[variables[key]]
        if quote == "'":
            raise DataError("UserError", f"{found[0]} stands in single quotes, where bash puts in no variable.")
        if not (_PLAIN if quote is None else _PLAIN_IN_QUOTES).fullmatch(value):
            raise DataError(
                "UserError", f"{found[0]} is {value!r}, which bash would take apart; quote it or pass it otherwise."
            )
    return _EXPRESSION.sub(lambda found: "${" + variables[found[1], found[2]] + "}", command)


def _open_quote(text: str) -> str | None:
    """The quote that is still open at the end."""
    quote: str | None = None
    skip = False
    for character in text:
        if skip:
            skip = False
        elif character == "\\" and quote != "'":
            skip = True
        elif character == quote:
            quote = None
        elif quote is None and character in "'\"":
            quote = character
    return quote


def _output(name: str, given: dict[str, Any], mounts: Mounts, folder: Path) -> Output:
    place = mounts.place(given["uri"])
    local = folder / f"OUTPUT_{name}"
    local.mkdir(parents=True)
    output = Output(mounts.container(place.container), place.path, local)
    if given.get("mode", "ReadWriteMount") == "ReadWriteMount":
        output.pull()
    return output


def _run(attempt: Attempt, order: Order, command: str, environment: dict[str, str], image: Path) -> None:
    nodes = int((order.properties.get("resources") or {}).get("instanceCount") or 1)
    distribution = order.properties.get("distribution") or {}
    kind = distribution.get("distributionType")
    if kind not in (None, "PyTorch", "Mpi"):
        raise DataError("UserError", f"This control plane starts the processes of PyTorch and Mpi, not of {kind}.")
    each = int(distribution.get("processCountPerInstance") or 1)
    count = nodes * each if kind else 1
    port = str(_free_port())
    work = attempt.folder / "wd"
    logs = attempt.folder / "user_logs"
    for made in (work, logs, attempt.folder / "tmp", attempt.folder / "home"):
        made.mkdir(parents=True, exist_ok=True)
    base = {
        # Nothing of this process's environment: a container has its own.
        "PATH": f"{image}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(attempt.folder / "home"),
        "TMPDIR": str(attempt.folder / "tmp"),
        "LANG": "C.UTF-8",
        "AZUREML_NODE_COUNT": str(nodes),
        **environment,
    }
    for rank in range(count):
        name = f"user_logs/std_log_process_{rank:02d}.txt" if kind else "user_logs/std_log.txt"
        attempt.logs[name] = attempt.folder / name
        own = {**base, **(_ranks(kind, rank, count, each, port) if kind else {})}
        with attempt.logs[name].open("ab") as told:
            process = subprocess.Popen(
                ["/bin/bash", "-c", command],
                cwd=work,
                env=own,
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        attempt.processes.append(process)


def _ranks(kind: str, rank: int, count: int, each: int, port: str) -> dict[str, str]:
    """Who a process is among the others: by torch's variables, or by those of Open MPI."""
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    local, node = rank % each, rank // each
    if kind == "Mpi":
        mine = {"RANK": rank, "SIZE": count, "LOCAL_RANK": local, "LOCAL_SIZE": each, "NODE_RANK": local}
        return master | {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in mine.items()}
    mine = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": each, "NODE_RANK": node}
    return master | {name: str(value) for name, value in mine.items()}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
