"""The training node inside a Databricks job: `dropforge train-node` in a process of its own, its output kept on a volume.

The job calls this in the Python of a notebook. There an exit status is a failure, 0 as well; signals and standard output
belong to the notebook. And a volume takes whole files alone: no appending, no writing in the middle. So the node writes to
the machine's own disk, and what is finished is copied to the volume: checkpoints and the log while it runs, `result.json`
last of all.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from dropforge.domain.runs import RunState
from dropforge.training.contract import CHECKPOINTS, LOG, RESULT, ExitCode, NodeResult
from dropforge.wire import to_json

NODE = (sys.executable, "-P", "-m", "dropforge.cli", "train-node")
# From SIGTERM to SIGKILL: the node saves what it has and writes its result.
_GRACE_SECONDS = 25.0
# Between two looks at what is to be copied; the first ones come quickly, for whoever watches.
_FIRST_LOOK_SECONDS, _MOST_SECONDS = 0.5, 30.0
# Of a long log, the end is kept.
_LOG_BYTES = 4 * 1024**2
# A file that was written to this lately is perhaps not finished.
_QUIET_SECONDS = 1.0
# What a shell says of a command that took too long.
_TIMED_OUT = 124


def main(arguments: Sequence[str] | None = None, node: Sequence[str] = NODE) -> None:
    """Run the node with these arguments of `train-node` (those of the task unless given). Raises `RuntimeError` with the
    node's reason when the run did not succeed."""
    started = time.monotonic()
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    known, rest = parser.parse_known_args(given)
    spec = json.loads(known.run.read_bytes())
    with tempfile.TemporaryDirectory(prefix="dropforge-run-") as name:
        output = _Mirror(Path(name), known.output)
        output.pull()
        child = _Child([*node, "--run", str(known.run), *rest, "--output", name])
        try:
            late = _watch(child, output, started + float(spec["timeout_seconds"]))
        except BaseException:
            # The notebook was told to end: the job is cancelled, or its machine is taken away.
            child.end()
            with contextlib.suppress(OSError):
                output.leave(child.printed())
            raise
        code = _TIMED_OUT if late else child.code()
        reason = f"it did not end within {spec['timeout_seconds']} seconds (training.compute.timeout)" if late else None
        if late or (code != 0 and not (Path(name) / RESULT).exists()):
            reason = reason or f"exited with code {code}: {child.last_words()}"
            failed = NodeResult(
                run=spec["run"],
                state=RunState.FAILED,
                exit_code=code,
                reason=reason,
                seconds=round(time.monotonic() - started, 3),
                command_seconds=0.0,
            )
            (Path(name) / RESULT).write_bytes(to_json(failed))
        output.leave(child.printed())
        if code != ExitCode.FINE:
            raise RuntimeError(f"the training node ended with exit code {code}: {reason or _reason(Path(name))}")


def _watch(child: _Child, output: _Mirror, deadline: float) -> bool:
    """Until the node has ended; whether it took too long."""
    pause = _FIRST_LOOK_SECONDS
    while not child.wait(min(pause, max(0.0, deadline - time.monotonic()))):
        if time.monotonic() >= deadline:
            child.end()
            return True
        output.push(child.printed())
        pause = min(pause * 1.5, _MOST_SECONDS)
    return False


def _reason(folder: Path) -> str:
    try:
        return str(json.loads((folder / RESULT).read_bytes())["reason"])
    except (OSError, ValueError, KeyError):
        return "it gave no reason"


class _Child:
    """The node, in a process group of its own, what it prints passed on to the notebook."""

    def __init__(self, command: Sequence[str]) -> None:
        # The job's packages may lie where only this Python looks.
        path = os.pathsep.join(dict.fromkeys(filter(None, sys.path)))
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        self._tail = bytearray()
        self._copier = threading.Thread(target=self._copy, daemon=True)
        self._copier.start()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within these seconds; then nothing of it is alive."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._signal(signal.SIGKILL)
        # Who has left the group may still hold the pipe.
        self._copier.join(timeout=5.0)
        return True

    def end(self) -> None:
        """SIGTERM, and SIGKILL after the grace time."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        if not self.wait(_GRACE_SECONDS):
            self._signal(signal.SIGKILL)
            self.wait(_GRACE_SECONDS)

    def code(self) -> int:
        """As a shell reports it."""
        code = self._process.returncode
        return code if code >= 0 else 128 - code

    def printed(self) -> bytes:
        return bytes(self._tail)

    def last_words(self) -> str:
        lines = [line.strip() for line in self.printed()[-4096:].decode(errors="replace").splitlines() if line.strip()]
        return " | ".join(lines[-4:])[-600:] or "it printed nothing"

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _copy(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        assert self._process.stdout is not None
        with self._process.stdout as source, contextlib.suppress(OSError, ValueError):
            while piece := os.read(source.fileno(), 65_536):
                self._tail += piece
                del self._tail[:-_LOG_BYTES]
                # Not to the descriptor: what the job shows is what its Python prints.
                sys.stdout.write(decoder.decode(piece))
                sys.stdout.flush()


class _Mirror:
    """A folder on this machine, and the one on the volume that gets what is finished in it."""

    def __init__(self, local: Path, kept: Path) -> None:
        self._local = local
        self._kept = kept
        self._copied: dict[str, tuple[int, int]] = {}
        self._log = b""

    def pull(self) -> None:
        """Start where an earlier attempt was lost: its checkpoints come, the rest of what it left goes."""
        self._kept.mkdir(parents=True, exist_ok=True)
        # The result first: without it, the rest means nothing.
        for name in (RESULT, *(each.name for each in self._kept.iterdir() if each.is_file())):
            (self._kept / name).unlink(missing_ok=True)
        if (self._kept / CHECKPOINTS).is_dir():
            shutil.copytree(self._kept / CHECKPOINTS, self._local / CHECKPOINTS)
        self._copied = {name: _version(self._local / name) for name in self._checkpoints()}

    def push(self, log: bytes) -> None:
        """Copy the log and the checkpoints that are finished. A volume that does not answer costs no run: the next look
        tries again."""
        try:
            self._push_log(log)
            self._push_checkpoints(_QUIET_SECONDS)
        except OSError as error:
            print(f"dropforge: cannot write to {self._kept} just now: {error}", flush=True)  # noqa: T201

    def leave(self, log: bytes) -> None:
        """Copy what the node left, its result as the last."""
        self._push_checkpoints(0.0)
        for path in sorted(self._local.iterdir()):
            if path.is_file() and path.name != RESULT:
                self._put(path.name)
        if not (self._local / LOG).exists():
            self._push_log(log)
        if (self._local / RESULT).exists():
            self._put(RESULT)
        if not (self._local / CHECKPOINTS).exists():
            shutil.rmtree(self._kept / CHECKPOINTS, ignore_errors=True)

    def _push_log(self, log: bytes) -> None:
        if log != self._log:
            self._written(LOG, log)
            self._log = log

    def _push_checkpoints(self, quiet_seconds: float) -> None:
        found = self._checkpoints()
        for name in found:
            with contextlib.suppress(FileNotFoundError):
                version = _version(self._local / name)
                if self._copied.get(name) == version or time.time() - version[0] / 1e9 < quiet_seconds:
                    continue
                self._put(name)
                # One that was written to meanwhile is copied again.
                if _version(self._local / name) == version:
                    self._copied[name] = version
        for name in set(self._copied) - set(found):
            (self._kept / name).unlink(missing_ok=True)
            del self._copied[name]

    def _checkpoints(self) -> list[str]:
        folder = self._local / CHECKPOINTS
        return sorted(path.relative_to(self._local).as_posix() for path in folder.rglob("*") if path.is_file())

    def _put(self, name: str) -> None:
        part = self._part(name)
        shutil.copyfile(self._local / name, part)
        part.replace(self._kept / name)

    def _written(self, name: str, content: bytes) -> None:
        part = self._part(name)
        part.write_bytes(content)
        part.replace(self._kept / name)

    def _part(self, name: str) -> Path:
        target = self._kept / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.with_name(f".{target.name}.part")


def _version(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size
