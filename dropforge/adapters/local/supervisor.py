"""Runs one training command to its end and writes down how it ended: `python -I -S supervisor.py <run folder>`.

Standard library only, and run by path, so that it starts in a blink and outlives whoever started it. It holds
`supervisor.lock` for its lifetime; `exit.json` is the very last thing it writes, with no process of the run left.
Linux only: it finds the run's processes in /proc, and is the parent that orphans among them come back to.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Files of a run folder that compute and supervisor share.
COMMAND = "command.json"
SPEC = "spec.json"
LOG = "log.txt"
LOCK = "supervisor.lock"
SUPERVISOR = "supervisor.json"
CANCEL = "cancel"
EXIT = "exit.json"
RESULT = "output/result.json"
# In the environment of every process of the run: how they are found when the supervisor itself was killed.
MARK = "DROPFORGE_RUN_FOLDER"

VANISHED = "the training process vanished: its supervisor was killed, or the machine restarted"
LOCK_TAKEN = 3
# A look at the lock by others takes a moment.
_LOCK_PATIENCE_SECONDS = 2.0
_TICK_SECONDS = 0.5
# Processes that stay after the command itself has ended get this long to leave by themselves.
_LEFTOVER_GRACE_SECONDS = 2.0
# A process in uninterruptible sleep does not die at once; the run is called ended without it after this long.
_KILL_PATIENCE_SECONDS = 30.0
_LOG_EDGE_BYTES = 1024**2
_LAST_LINES = 5
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(folder: Path) -> int:
    """Supervise the run, once ever: in a fork, so that the caller sees this process end as soon as that is sure."""
    lock = take_lock(folder, _LOCK_PATIENCE_SECONDS)
    if lock is None:
        return LOCK_TAKEN
    if (folder / EXIT).exists():
        return 0
    if (folder / SUPERVISOR).exists():
        bury(folder)
        return 0
    # The starter waits for this process, and need not wait for the run. The lock goes with the open file, to the fork.
    if os.fork():
        os._exit(0)
    started_at = now()
    try:
        ended = _supervise(folder, started_at)
    except Exception as error:  # noqa: BLE001 -- whatever it is, the run must not stay "running" for ever
        ended = _ended("failed", None, f"the supervisor failed: {type(error).__name__}: {error}", started_at)
        _end_all(os.getpid(), 0)
    write_json(folder / EXIT, {"run": folder.name, **ended})
    return 0


def _supervise(folder: Path, started_at: str) -> dict[str, Any]:
    command = json.loads((folder / COMMAND).read_bytes())
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # Waited for, not handled: nothing is interrupted in the middle. HUP and INT come from a closed terminal.
    wanted = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    write_json(folder / SUPERVISOR, {"pid": os.getpid(), "since": start_time(os.getpid()), "started_at": started_at})
    if (folder / CANCEL).exists():
        return _ended("cancelled", None, "cancelled before it started", started_at)
    child = _start(folder, command)
    write_json(
        folder / SUPERVISOR,
        {
            "pid": os.getpid(),
            "since": start_time(os.getpid()),
            "child": child,
            "child_since": start_time(child),
            "started_at": started_at,
        },
    )
    timeout = float(command["timeout_seconds"])
    deadline = time.monotonic() + timeout
    status: int | None = None
    stopped: str | None = None
    while status is None and stopped is None:
        left = deadline - time.monotonic()
        caught = signal.sigtimedwait(wanted, max(0.0, min(_TICK_SECONDS, left)))
        status = _reap(child)
        _cap_log(folder / LOG, int(command["log_limit_bytes"]))
        if (folder / CANCEL).exists():
            stopped = "cancelled"
        elif caught is not None and caught.si_signo == signal.SIGTERM:
            stopped = "told"
        elif left <= 0:
            stopped = "timeout"
    grace = _LEFTOVER_GRACE_SECONDS if status is not None else float(command["grace_seconds"])
    late_status, stubborn = _end_all(os.getpid(), grace, child)
    _cap_log(folder / LOG, int(command["log_limit_bytes"]))
    ended = _judged(folder, status, late_status, stopped, timeout, started_at)
    if stubborn:
        ended["reason"] = f"{ended['reason'] or 'it succeeded'}; processes {stubborn} did not die"
    if ended["state"] == "succeeded":
        for name in ("work", "checkpoints"):
            shutil.rmtree(folder / name, ignore_errors=True)
    return ended


def _start(folder: Path, command: dict[str, Any]) -> int:
    """Fork and run the command in a process group of its own; its words go straight to the log."""
    arguments = [str(each) for each in command["command"]]
    environment = {**os.environ, **command["environment"], MARK: str(folder)}
    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # The command itself does not outlive the supervisor, even when that is killed.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.nice(int(command["niceness"]))
        # When memory runs out, training goes before serving does.
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("500")
        log = os.open(folder / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for descriptor, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, target)
        os.chdir(command["directory"])
        os.execvpe(arguments[0], arguments, environment)  # noqa: S606 -- the user's command, as a list
    except BaseException as error:  # noqa: BLE001 -- a forked copy must never return into the caller
        os.write(2, f"{arguments[0]} cannot be started: {error}\n".encode())
    os._exit(127)


def _judged(
    folder: Path, status: int | None, late_status: int | None, stopped: str | None, timeout: float, started_at: str
) -> dict[str, Any]:
    """How the run ended, in one sentence for a person."""
    exit_code = None if (final := status if status is not None else late_status) is None else exit_code_of(final)
    if status is None and stopped == "timeout":
        reason = f"ran longer than {timeout:g} s (training.compute.timeout)"
        return _ended("failed", exit_code, reason, started_at)
    if status is None and stopped == "told":
        reason = "stopped together with its supervisor (did the machine shut down?)"
        return _ended("failed", exit_code, reason, started_at)
    if status is None:
        return _ended("cancelled", exit_code, "cancelled", started_at)
    try:
        result = json.loads((folder / RESULT).read_bytes())
    except (OSError, ValueError):
        result = {}
    said = result.get("reason") if isinstance(result, dict) else None
    if exit_code == 0 and isinstance(result, dict) and result.get("state") == "succeeded":
        return _ended("succeeded", 0, None, started_at)
    if said:
        return _ended("failed", exit_code, str(said), started_at)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        why = " (out of memory?)" if number == signal.SIGKILL else f" ({signal.strsignal(number)})"
        return _ended("failed", exit_code, f"killed by signal {number}{why}", started_at)
    if exit_code == 0:
        return _ended("failed", 0, f"exited with code 0 without {RESULT}", started_at)
    return _ended("failed", exit_code, f"exited with code {exit_code}: {_last_words(folder / LOG)}", started_at)


def _ended(state: str, exit_code: int | None, reason: str | None, started_at: str | None) -> dict[str, Any]:
    return {"state": state, "exit_code": exit_code, "reason": reason, "started_at": started_at, "ended_at": now()}


def exit_code_of(status: int) -> int:
    """As a shell reports it: 128 + signal for a killed process."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _last_words(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return " | ".join(lines[-_LAST_LINES:]) or "it printed nothing"


# ------------------------------------------------------------------------------------------------ processes
def _reap(child: int) -> int | None:
    """Collect everything that has ended; the wait status of the command itself, once it is among them."""
    found = None
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == child:
                found = status
    return found


def _end_all(root: int, grace: float, child: int = 0) -> tuple[int | None, list[int]]:
    """End every descendant, asking first. Orphans are re-parented to a subreaper, so none gets away by a fork, a
    session or a group of its own. Returns the command's wait status when it ended here, and whom nothing could end."""
    status = _reap(child)
    _send(descendants(root), signal.SIGTERM)
    deadline = time.monotonic() + grace
    killing_ends = deadline + _KILL_PATIENCE_SECONDS
    while alive := descendants(root):
        if time.monotonic() > killing_ends:
            return status, alive
        if time.monotonic() > deadline:
            _send(alive, signal.SIGKILL)
        time.sleep(0.02)
        status = found if (found := _reap(child)) is not None else status
    # It may have died between the look for it and the look for the living, who do not include it then.
    return (status if (found := _reap(child)) is None else found), []


def _send(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def descendants(root: int) -> list[int]:
    """Everything below a process, the dead that nobody has collected left out."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        if (fields := _stat(pid)) is not None and fields[0] not in ("Z", "X"):
            children.setdefault(int(fields[1]), []).append(pid)
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 -- no paths needed
    except OSError:
        return []


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the state on; the name before it may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def start_time(pid: int) -> str | None:
    """When a process started, in ticks of this boot: with it, a pid names one process only."""
    fields = _stat(pid)
    return None if fields is None else f"{_boot_id()}/{fields[19]}"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _prctl(option: int, value: int) -> None:
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


# ------------------------------------------------------------------------------------------------ files
def take_lock(folder: Path, patience: float) -> int | None:
    """The open, locked file; None while another process holds it. Let go by closing it, or by ending."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except OSError:
            if time.monotonic() >= deadline:
                os.close(handle)
                return None
        time.sleep(0.01)


def bury(folder: Path) -> None:
    """Write the end of a run whose supervisor is gone, and end what it left behind. The lock must be held."""
    for _ in range(100):
        left = [pid for pid in _pids() if _marked(pid, folder)]
        if not left:
            break
        _send(left, signal.SIGKILL)
        time.sleep(0.02)
    try:
        started_at = json.loads((folder / SUPERVISOR).read_bytes()).get("started_at")
    except (OSError, ValueError):
        started_at = None
    write_json(folder / EXIT, {"run": folder.name, **_ended("failed", None, VANISHED, started_at)})


def _marked(pid: int, folder: Path) -> bool:
    fields = _stat(pid)
    if pid == os.getpid() or fields is None or fields[0] in ("Z", "X"):
        return False
    try:
        return f"{MARK}={folder}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\x00")
    except OSError:
        return False


def _cap_log(path: Path, limit: int) -> None:
    """Keep the first and the last megabyte of a log that has grown too large. The writers append, so they go on."""
    try:
        if path.stat().st_size <= limit:
            return
        edge = min(_LOG_EDGE_BYTES, limit // 4)
        with path.open("r+b") as file:
            head = file.read(edge)
            file.seek(-edge, os.SEEK_END)
            tail = file.read()
            file.truncate(0)
        with path.open("ab") as file:
            file.write(head + f"\n... cut here: the log was larger than {limit:,} bytes ...\n".encode() + tail)
    except OSError:
        return


def write_json(path: Path, value: dict[str, Any]) -> None:
    """The whole file or none of it, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def now() -> str:
    """The time in ISO 8601, UTC."""
    return datetime.now(UTC).isoformat()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
