"""The user's command: started, streamed through, ended with the node."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# What is kept of standard error, to be quoted when the command fails.
_TAIL_BYTES = 65_536
_QUOTED_LINES = 4
_TRACEBACK = "Traceback (most recent call last):"
_QUOTED_CHARACTERS = 600
# From SIGTERM to SIGKILL when the node itself is told to end.
GRACE_SECONDS = 5.0


class Cancelled(BaseException):
    """The node was told to end. Not an `Exception`: nothing may take it for a failure of its own."""


def cancel_on_signals() -> None:
    """SIGTERM and SIGINT raise `Cancelled` in the main thread, once; later ones are ignored while the node ends."""

    def cancel(number: int, _frame: object) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise Cancelled(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, cancel)


def signal_name(number: int) -> str:
    """What people call the signal; most of those for real time have a number only."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@dataclass(frozen=True)
class Ended:
    """How the command ended: its exit code (negative: the signal that killed it) and its last words."""

    exit_code: int
    seconds: float
    last_words: str

    @property
    def how(self) -> str:
        if self.exit_code >= 0:
            return f"ended with exit code {self.exit_code}"
        name = signal_name(-self.exit_code)
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def run_command(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], grace_seconds: float = GRACE_SECONDS
) -> Ended:
    """Run to its end. Raises `OSError` when it cannot be started. On `Cancelled` it is ended before that goes on."""
    running = Running(command, cwd, environment)
    try:
        return running.wait()
    except Cancelled:
        end([running], grace_seconds)
        raise


class Running:
    """The command, in the node's own process group, so that whoever ends the group ends both.

    Standard output goes straight to ours; standard error too, and its end is kept. `python` is the Python that runs
    the node. Raises `OSError` when it cannot be started.
    """

    def __init__(self, command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> None:
        words = [sys.executable if command[0] == "python" else command[0], *command[1:]]
        self._started = time.monotonic()
        self.process = subprocess.Popen(
            words, cwd=cwd, env=dict(environment), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=0
        )
        self._tail = bytearray()
        self._copier = threading.Thread(target=_copy_errors, args=(self.process, self._tail), daemon=True)
        self._copier.start()

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self) -> Ended:
        """Until it has ended."""
        exit_code = self.process.wait()
        # A process the command left behind may hold the pipe open; the command's own words are long through by then.
        self._copier.join(timeout=2.0)
        return Ended(exit_code, time.monotonic() - self._started, _last_words(bytes(self._tail)))


def end(commands: Sequence[Running], grace_seconds: float) -> None:
    """SIGTERM to the commands, and to all they started where the group is ours; SIGKILL to what is left after the grace
    time, in which they can save what they have."""
    with contextlib.suppress(ProcessLookupError):
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpgrp(), signal.SIGTERM)
        else:
            for command in commands:
                command.process.terminate()
    deadline = time.monotonic() + grace_seconds
    for command in commands:
        try:
            command.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            command.process.kill()
            command.process.wait()


def _copy_errors(process: subprocess.Popen[bytes], tail: bytearray) -> None:
    assert process.stderr is not None
    with process.stderr as source, contextlib.suppress(OSError):
        while piece := os.read(source.fileno(), 65_536):
            os.write(sys.stderr.fileno(), piece)
            tail += piece
            del tail[:-_TAIL_BYTES]


def _last_words(errors: bytes) -> str:
    """The last lines; of a Python traceback what follows the calls, which says what went wrong."""
    text = errors.decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    if _TRACEBACK in lines:
        after = lines[len(lines) - lines[::-1].index(_TRACEBACK) :]
        said = next((index for index, line in enumerate(after) if not line[0].isspace()), len(after))
        if said < len(after):
            return _joined(after[said : said + _QUOTED_LINES])[:_QUOTED_CHARACTERS]
    return _joined(lines[-_QUOTED_LINES:])[-_QUOTED_CHARACTERS:]


def _joined(lines: Sequence[str]) -> str:
    return " | ".join(line.strip() for line in lines)


def shown(command: Sequence[str]) -> str:
    """The command as a person would type it."""
    return shlex.join(command)
