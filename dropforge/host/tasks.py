"""Tasks that nobody awaits: kept alive, and ended with their owner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

_log = logging.getLogger(__name__)

_AFTER_FAILURE_SECONDS = 5.0


async def repeat(look: Callable[[], Awaitable[float]]) -> None:
    """Look, wait as many seconds as it says, and look again, until cancelled; a look that fails is logged."""
    while True:
        try:
            pause = await look()
        except Exception:  # noqa: BLE001 - logged, and tried again
            _log.exception("a look failed; the next one is in %g s", _AFTER_FAILURE_SECONDS)
            pause = _AFTER_FAILURE_SECONDS
        await asyncio.sleep(pause)


class Tasks:
    """A bag of running tasks; one that ends takes itself out."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run it beside everything else."""
        # The event loop itself keeps weak references only.
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def __len__(self) -> int:
        return len(self._running)

    async def finish(self, seconds: float) -> None:
        """Wait until all of them have ended; those that have not after so long are cancelled."""
        if self._running:
            await asyncio.wait(tuple(self._running), timeout=seconds)
        await self.cancel()

    async def cancel(self) -> None:
        """End all of them, and wait until they have ended."""
        running = tuple(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
