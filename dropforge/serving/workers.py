"""Several servers on one port: a process per core, or per GPU, and one above them that starts again what has died.

The kernel shares the port's connections out (SO_REUSEPORT). A worker begins to listen once it serves what is desired, so one
that comes back is asked nothing that it cannot answer yet. Each is a replica of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dropforge.domain.errors import BadInput

log = logging.getLogger(__name__)

# A worker that lived no longer is started again after a pause that doubles each time.
SHORT_LIFE_SECONDS = 10.0
PAUSES_SECONDS = (0.1, 5.0)
# Beyond what the workers give their own requests.
PATIENCE_SECONDS = 40.0
# The exit code of a server that cannot start. In a worker's first life: its settings are wrong, and it never can.
CANNOT_START = 2

_GROUP = Path("/sys/fs/cgroup")
# Of a quota that says no period.
_PERIOD_US = 100_000


def devices(text: str) -> tuple[str, ...]:
    """The numbers of the GPUs named. Raises `BadInput`."""
    found = tuple(each.strip() for each in text.split(",")) if text else ()
    if not all(each.isascii() and each.isdigit() for each in found):
        raise BadInput(f"--device is {text[:80]!r}; it must be the numbers of GPUs, with commas between: 0,1")
    return found


def quota(group: Path = _GROUP) -> float | None:
    """How many cores' time the control group of this process may use, where it has such a limit, as containers may have.

    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files, and before it
    https://docs.kernel.org/scheduler/sched-bwc.html
    """
    with suppress(OSError, ValueError):
        limit, period = (group / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / max(1, int(period))
    with suppress(OSError, ValueError):
        old = group / "cpu"
        microseconds = int((old / "cpu.cfs_quota_us").read_text())
        of = old / "cpu.cfs_period_us"
        return microseconds / (int(of.read_text()) if of.exists() else _PERIOD_US) if microseconds > 0 else None
    return None


def cores(group: Path = _GROUP) -> int:
    """That this process may use, by its affinity and by the limit of its container, rounded."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    limit = quota(group)
    return allowed if limit is None else max(1, min(allowed, int(limit + 0.5)))


def wanted(asked: int, gpus: Sequence[str], *, on_gpu: bool) -> int:
    """How many workers there are to be. `asked` is 0 for one on each core, or on each GPU where models run on those."""
    return max(asked or (1 if on_gpu else cores()), len(gpus))


def reserve(host: str, port: int) -> socket.socket:
    """Hold a port (0: any free one) that workers are going to share, without listening on it."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    held = socket.socket(family, kind, protocol)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        held.bind(address)
    except OSError:
        held.close()
        raise
    return held


@dataclass
class Supervisor:
    """Runs `count` workers: `command`, and what makes each of them one, until it is told to stop."""

    command: Sequence[str]
    count: int
    replica: str
    devices: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    _processes: dict[int, asyncio.subprocess.Process] = field(default_factory=dict)
    _code: int = 0

    async def run(self) -> int:
        """The exit code: 0 after a clean end, 2 when a worker cannot start for the first time."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
            loop.add_signal_handler(signal.SIGHUP, self._tell, signal.SIGHUP)
        workers = [asyncio.create_task(self._keep(number, stop)) for number in range(self.count)]
        await stop.wait()
        log.info("ending: %d workers finish what is in flight", len(self._processes))
        self._tell(signal.SIGTERM)
        _, late = await asyncio.wait(workers, timeout=PATIENCE_SECONDS)
        if late:
            self._tell(signal.SIGKILL)
            await asyncio.wait(workers)
        return self._code

    def _tell(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep(self, number: int, stop: asyncio.Event) -> None:
        pause, longest = PAUSES_SECONDS
        has_lived = False
        while not stop.is_set():
            began = time.monotonic()
            code: int | None = None
            try:
                code = await self._life(number, stop)
                what = f"ended ({code})"
            except OSError as error:
                # It may be possible later.
                what = f"cannot be started, perhaps there are too many processes or too little memory: {error}"
            if stop.is_set():
                return
            if code == CANNOT_START and not has_lived:
                self._code = code
                stop.set()
                return
            # What was wrong in a later life may be right again: a certificate and its key are replaced one after the other.
            has_lived = has_lived or code is not None
            pause = PAUSES_SECONDS[0] if time.monotonic() - began > SHORT_LIFE_SECONDS else min(2 * pause, longest)
            killed = "; killed, perhaps for want of memory: each holds all models, have fewer" if code == -9 else ""
            log.error("worker %s-%d %s; it is started again%s", self.replica, number, what, killed)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)

    async def _life(self, number: int, stop: asyncio.Event) -> int:
        more = ["--workers", "1", "--share-port", "--replica", f"{self.replica}-{number}"]
        more += ["--die-with-parent", str(os.getpid())]
        if self.devices:
            more += ["--device", self.devices[number % len(self.devices)]]
        process = await asyncio.create_subprocess_exec(*self.command, *more, env=dict(self.environment))
        self._processes[number] = process
        if stop.is_set():
            # The others were told while this one was being started.
            process.terminate()
        try:
            return await process.wait()
        finally:
            del self._processes[number]
