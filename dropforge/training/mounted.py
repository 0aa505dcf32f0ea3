"""`dropforge train-node`: a run on a machine that has its inputs and its output as mounted folders.

Light and steady beside the node: it starts that in a process of its own, keeps what is printed, passes SIGTERM on, and
leaves a result also when the node is killed. Everything is made on the machine's own disk and copied to the output when
it is whole, `result.json` last, so that a reader of the folder never sees half a file.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dropforge.bundle import unpack
from dropforge.domain.errors import BadInput
from dropforge.domain.runs import ChampionRef, RunSpec, RunState
from dropforge.training.command import signal_name
from dropforge.training.contract import (
    CHECKPOINTS,
    EVIDENCE,
    GOLDEN,
    LOG,
    METRICS,
    MODEL,
    RESULT,
    SWEEP,
    ExitCode,
    NodeFailed,
    NodeResult,
    NodeSpec,
)
from dropforge.training.disk import FULL, part_of, put, why
from dropforge.training.ranks import rank_of
from dropforge.training.typed import typed_parameters
from dropforge.wire import from_json, to_json

# As for any fault of the node or of the machine.
_MACHINE = 1
# A reclaimed spot machine is gone about 30 seconds after SIGTERM; the rest is for writing the result.
_GRACE_SECONDS = 20.0
# Of a longer log the beginning and the end are kept.
_LOG_EDGE_BYTES = 4 * 1024**2
_LAST_LINES = 5


def main(arguments: Sequence[str], started: float) -> int:
    """Run the spec with these paths; returns the exit code (`ExitCode`). `started`: `time.monotonic()` at the start."""
    given = _parser().parse_args(arguments)
    said, rank = _Printed(), rank_of(os.environ)
    # The platform's temporary folder: mounted folders are slow, and show files that are still being written.
    try:
        work = Path(tempfile.mkdtemp(prefix="dropforge-"))
    except OSError as error:
        said.line(f"no place to work in: {error}")
        return _MACHINE
    try:
        return _first(given, said, work, started) if rank == 0 else _other(given, said, work, rank)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="dropforge train-node", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--run", type=Path, required=True, help="the run spec, a JSON file")
    options.add_argument("--code", type=Path, required=True, help="the pipeline's folder as a zip")
    options.add_argument("--table", type=Path, required=True, help="the folder of the Delta table")
    options.add_argument("--champion", type=Path, help="the champion's model.onnx, if the spec names one")
    options.add_argument("--challenger", type=Path, help="the model.onnx that is only measured, if the spec names one")
    options.add_argument("--output", type=Path, required=True, help="the folder that gets model, evidence and result")
    options.add_argument("--trial", help="the parameters of a sweep's trial, as a JSON object")
    options.add_argument(
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one parameter of a sweep's trial; may be given several times",
    )
    return options


# ------------------------------------------------------------------------------------------------ the two kinds
def _first(given: argparse.Namespace, said: _Printed, work: Path, started: float) -> int:
    """The process that reports."""
    output: Path = given.output
    run = ""
    try:
        _clear(output)
    except OSError as error:
        said.line(f"cannot write to the output folder {output}: {why(error)}; the run's identity must be allowed to")
        return _MACHINE
    try:
        spec = _read_spec(given.run)
        run = spec.run
        result = _run(_prepared(given, spec, work, rank=0), said, work, started)
    except NodeFailed as error:
        result = _failed(run, int(error.exit_code), error.message, started)
        said.line(error.message)
    except Exception as error:  # noqa: BLE001 -- whatever it is, whoever waits for the run must be told
        reason = why(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        result = _failed(run, _MACHINE, f"the run could not be made: {reason}", started)
        said.line(result.reason or "")
    try:
        return _leave(work / "output", output, result, said)
    except OSError as error:
        said.line(f"cannot write to the output folder {output}: {why(error)}")
        reason = f"the run ended as {result.state.value}, but its files could not be written: {why(error)}"
        with contextlib.suppress(OSError):
            put(output / RESULT, to_json(_failed(run, _MACHINE, reason, started)))
        return _MACHINE


def _other(given: argparse.Namespace, said: _Printed, work: Path, rank: int) -> int:
    """One of the other processes of the run: runs the command on the same data, and ends as the command ends."""
    try:
        node = _prepared(given, _read_spec(given.run), work, rank)
        ended = _Child(node, work / "spec.json").run(said)
    except NodeFailed as error:
        said.line(f"rank {rank}: {error.message}")
        return int(error.exit_code)
    except OSError as error:
        said.line(f"rank {rank}: {why(error)}")
        return _MACHINE
    return ended if ended >= 0 else 128 - ended


# ------------------------------------------------------------------------------------------------ preparing
def _clear(output: Path) -> None:
    """A folder that can be written to, without what an earlier try left; the result goes first."""
    output.mkdir(parents=True, exist_ok=True)
    for name in (RESULT, LOG, EVIDENCE, GOLDEN, METRICS, SWEEP, MODEL):
        (output / name).unlink(missing_ok=True)
        part_of(output / name).unlink(missing_ok=True)
    # Better now than after hours of training.
    probe = output / ".probe"
    probe.write_bytes(b"can be written")
    probe.unlink()


def _read_spec(path: Path) -> RunSpec:
    try:
        return from_json(RunSpec, path.read_bytes())
    except OSError as error:
        raise NodeFailed(ExitCode.SPEC_WRONG, f"cannot read the run spec {path}: {why(error)}") from error
    except BadInput as error:
        raise NodeFailed(ExitCode.SPEC_WRONG, f"no run spec in {path}: {error.message}") from error


def _prepared(given: argparse.Namespace, spec: RunSpec, work: Path, rank: int) -> NodeSpec:
    """The run with its files where they lie on this machine. Raises `NodeFailed` for those that are not as they must be."""
    trial = typed_parameters(given.trial, given.parameter, spec)
    if not given.table.is_dir():
        raise NodeFailed(ExitCode.SPEC_WRONG, f"there is no table folder {given.table}; was it mounted?")
    champion = _given(spec.champion, given.champion, "champion")
    challenger = _given(spec.challenger, given.challenger, "challenger")
    _unpack(given.code, spec.code_sha256, work / "code")
    for name in ("output", "work"):
        (work / name).mkdir()
    checkpoints = given.output / CHECKPOINTS
    checkpoints.mkdir(parents=True, exist_ok=True)
    return NodeSpec(
        run=replace(spec, table_uri=str(given.table.absolute())),
        code_dir=str(work / "code"),
        champion_model=champion,
        output_dir=str(work / "output"),
        work_dir=str(work / "work"),
        challenger_model=challenger,
        checkpoints_dir=str(checkpoints.absolute()),
        rank=rank,
        trial=trial,
        grace_seconds=_GRACE_SECONDS,
    )


def _given(model: ChampionRef | None, path: Path | None, what: str) -> str | None:
    if model is None:
        return None
    if path is None:
        raise NodeFailed(
            ExitCode.SPEC_WRONG, f"the run has a {what}, {model.model} v{model.version}; pass its file with --{what}"
        )
    _hash(path, f"the {what}")
    return str(path.absolute())


def _hash(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise NodeFailed(ExitCode.SPEC_WRONG, f"cannot read {what} {path}: {why(error)}") from error


def _unpack(code: Path, sha256: str, folder: Path) -> None:
    found = _hash(code, "the code")
    if found != sha256:
        raise NodeFailed(ExitCode.SPEC_WRONG, f"the code {code} has sha256 {found}, the run spec wants {sha256}")
    try:
        unpack(code, folder)
    except BadInput as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL:
            raise error.__cause__ from None
        raise NodeFailed(ExitCode.SPEC_WRONG, error.message) from error


# ------------------------------------------------------------------------------------------------ running
def _run(node: NodeSpec, said: _Printed, work: Path, started: float) -> NodeResult:
    child = _Child(node, work / "spec.json")
    code = child.run(said)
    try:
        result = from_json(NodeResult, (work / "output" / RESULT).read_bytes())
    except (OSError, BadInput):
        result = None
    if child.told is not None and (result is None or result.state is not RunState.SUCCEEDED):
        reason = f"the run was told to end ({child.told})"
        return replace(_failed(node.run.run, int(ExitCode.CANCELLED), reason, started), state=RunState.CANCELLED)
    if result is not None:
        return result
    # It was killed, or could not even write that.
    how = f"ended with exit code {code}" if code >= 0 else f"was killed by {signal_name(-code)}"
    cause = " (out of memory?)" if code == -signal.SIGKILL else f"; its last words: {said.last_words()}"
    return _failed(node.run.run, code if code > 0 else 128 - code, f"the training node {how}{cause}", started)


class _Child:
    """The node in a process group of its own."""

    def __init__(self, node: NodeSpec, path: Path) -> None:
        path.write_bytes(to_json(node))
        self._environment = {**os.environ, **node.run.environment}
        self._command = [sys.executable, "-P", "-m", "dropforge.training", str(path), str(os.getpid())]
        self._directory = node.code_dir
        self._process: subprocess.Popen[bytes] | None = None
        # The signal that told us to end, if one did.
        self.told: str | None = None

    def run(self, said: _Printed) -> int:
        """Its exit code; negative: the signal that killed it. On return nothing of it is alive."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        process = self._process = subprocess.Popen(
            self._command,
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            bufsize=0,
        )
        if self.told is not None:
            process.terminate()
        copier = threading.Thread(target=_copy, args=(process, said), daemon=True)
        copier.start()
        code = process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        # Who has left the group may still hold the pipe.
        copier.join(timeout=5.0)
        return code

    def _pass_on(self, number: int, _frame: object) -> None:
        """SIGTERM once, to the node alone: it tells the command, and gives it time to save what it has."""
        if self.told is None:
            self.told = signal.Signals(number).name
            if self._process is not None:
                self._process.terminate()


def _copy(process: subprocess.Popen[bytes], said: _Printed) -> None:
    assert process.stdout is not None
    with process.stdout as source, contextlib.suppress(OSError):
        while piece := os.read(source.fileno(), 65_536):
            said.write(piece)


class _Printed:
    """What is printed: to our own output at once, and kept, but for the middle of too much."""

    def __init__(self) -> None:
        self._head, self._tail, self._cut = bytearray(), bytearray(), 0

    def line(self, text: str) -> None:
        self.write(f"dropforge: {text}\n".encode())

    def write(self, piece: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(sys.stdout.fileno(), piece)
        room = max(0, _LOG_EDGE_BYTES - len(self._head))
        self._head += piece[:room]
        self._tail += piece[room:]
        self._cut += max(0, len(self._tail) - _LOG_EDGE_BYTES)
        del self._tail[:-_LOG_EDGE_BYTES]

    def kept(self) -> bytes:
        note = f"\n... {self._cut:,} bytes are cut out here ...\n".encode() if self._cut else b""
        return bytes(self._head) + note + bytes(self._tail)

    def last_words(self) -> str:
        lines = [line.strip() for line in self.kept()[-4096:].decode(errors="replace").splitlines() if line.strip()]
        return " | ".join(lines[-_LAST_LINES:]) or "it printed nothing"


# ------------------------------------------------------------------------------------------------ leaving
def _leave(made: Path, output: Path, result: NodeResult, said: _Printed) -> int:
    """Copy what was made, and the result as the last; from then on the run has ended."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    for name in (MODEL, EVIDENCE, GOLDEN, METRICS, SWEEP):
        if (made / name).is_file():
            put(output / name, made / name)
    put(output / LOG, said.kept())
    put(output / RESULT, to_json(result))
    if result.state is RunState.SUCCEEDED:
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    return result.exit_code


def _failed(run: str, code: int, reason: str, started: float) -> NodeResult:
    seconds = round(time.monotonic() - started, 3)
    return NodeResult(
        run=run, state=RunState.FAILED, exit_code=code, reason=reason, seconds=seconds, command_seconds=0.0
    )
