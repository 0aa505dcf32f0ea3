"""Child processes that live and die with the host, such as the inference server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from dropforge.host import sidecar_exec

_log = logging.getLogger(__name__)

_BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# A process that lived so long had started well: the next restart is quick again.
_LIVED_WELL_SECONDS = 30.0
_READY_POLL_SECONDS = 0.05
_END_POLL_SECONDS = 0.2
_LOG_BYTES = 20 * 1024 * 1024


@dataclass(frozen=True)
class Sidecar:
    """A process to keep running. `env` is added to the host's own environment; `ready_url` answers 2xx once it is up.
    `url` is where clients find it; the host passes it on in `connection.json`.

    The process gets SIGTERM when the host stops and SIGKILL after the grace, or at once when the host is killed.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ready_url: str | None = None
    url: str | None = None
    # Whether triggers have use for it: they start once it is ready, or after a while without it.
    needed: bool = False


class Sidecars:
    """Starts the processes, starts them again when they die, and ends them."""

    def __init__(
        self,
        sidecars: Iterable[Sidecar],
        logs: Path,
        grace_seconds: float = 5.0,
        backoff_seconds: tuple[float, ...] = _BACKOFF_SECONDS,
    ) -> None:
        self._sidecars = tuple(sidecars)
        self._logs = logs
        self._grace_seconds = grace_seconds
        self._backoff_seconds = backoff_seconds
        self._stopping = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        self._ready = {sidecar.name: asyncio.Event() for sidecar in self._sidecars}
        self._pids: dict[str, int] = {}

    def start(self) -> None:
        """Start all of them, in the thread that lives as long as the host: the kernel watches that thread."""
        self._keepers = [asyncio.create_task(self._keep(sidecar), name=sidecar.name) for sidecar in self._sidecars]

    async def ready(self, name: str) -> None:
        """Wait until the process has answered its `ready_url` (or, without one, has started)."""
        await self._ready[name].wait()

    async def wait_for_needed(self, seconds: float) -> None:
        """Wait until those that triggers need are ready, so many seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for sidecar in self._sidecars:
                    if sidecar.needed:
                        await self.ready(sidecar.name)

    def pid(self, name: str) -> int | None:
        return self._pids.get(name)

    async def stop(self) -> None:
        """SIGTERM to all, SIGKILL to those that are still there after the grace. Returns when all have ended."""
        self._stopping.set()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    async def _keep(self, sidecar: Sidecar) -> None:
        attempt = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            ended = await self._run_once(sidecar)
            if self._stopping.is_set():
                return
            attempt = 0 if time.monotonic() - started > _LIVED_WELL_SECONDS else attempt
            pause = self._backoff_seconds[min(attempt, len(self._backoff_seconds) - 1)]
            attempt += 1
            _log.warning("%s %s; started again in %g s (see %s)", sidecar.name, ended, pause, self._log_path(sidecar))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def _run_once(self, sidecar: Sidecar) -> str:
        """Run the process to its end; returns in words how it ended."""
        try:
            process = self._spawn(sidecar)
        except OSError as error:
            return f"cannot be started ({error})"
        self._pids[sidecar.name] = process.pid
        _log.info("%s started (process %d)", sidecar.name, process.pid)
        watch = asyncio.create_task(self._watch_ready(sidecar))
        ended = asyncio.create_task(_end_of(process))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._end(process, ended)
        finally:
            for task in (watch, stopping):
                task.cancel()
            if process.returncode is None:
                _signal(process, signal.SIGKILL)
            self._pids.pop(sidecar.name, None)
            self._ready[sidecar.name].clear()
        code = await ended
        return f"died of signal {-code}" if code < 0 else f"ended with exit code {code}"

    def _spawn(self, sidecar: Sidecar) -> subprocess.Popen[bytes]:
        log = self._log_path(sidecar)
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        # Isolated and without site: the wrapper needs two modules and is gone in milliseconds.
        wrapper = (sys.executable, "-I", "-S", sidecar_exec.__file__, str(os.getpid()))
        with log.open("ab") as output:
            return subprocess.Popen(
                (*wrapper, *sidecar.argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **sidecar.env},
                # Ctrl-C in the terminal is for the host, which then ends its sidecars itself.
                start_new_session=True,
            )

    async def _end(self, process: subprocess.Popen[bytes], ended: asyncio.Task[int]) -> None:
        _signal(process, signal.SIGTERM)
        done, _ = await asyncio.wait({ended}, timeout=self._grace_seconds)
        if not done:
            _signal(process, signal.SIGKILL)
            await ended

    async def _watch_ready(self, sidecar: Sidecar) -> None:
        if sidecar.ready_url is not None:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
                while not await _answers(session, sidecar.ready_url):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(_READY_POLL_SECONDS)
            _log.info("%s is ready at %s", sidecar.name, sidecar.ready_url)
        self._ready[sidecar.name].set()

    def _log_path(self, sidecar: Sidecar) -> Path:
        return self._logs / f"{sidecar.name}.log"


async def _end_of(process: subprocess.Popen[bytes]) -> int:
    """Wait for the process to end; its exit code. Takes no thread, as asyncio does for each process before Python 3.12:
    when that cannot be started, the process runs on with nobody to end it."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # another system, an old kernel, no descriptor left
        while process.poll() is None:  # noqa: ASYNC110 - another process
            await asyncio.sleep(_END_POLL_SECONDS)
        return process.wait()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return process.wait()


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return 200 <= response.status < 300
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # To the whole group: a server may have workers of its own.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
