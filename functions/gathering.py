"""Gathering: what comes in while earlier work is being written down is written down together, in one go."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# So many at a time: none of them waits long for the others.
MOST = 200
PAUSE_SECONDS = 0.005


class Gathered(Generic[T]):
    """Calls `work` with everything that has come in since its last call began, one call at a time.

    What comes in alone is worked on at once. While more comes in than that, a call begins `pause` seconds after the one
    before at the earliest: what a call costs is then shared by more. Each caller returns when its own item is done and
    gets its own error; one that `work` raises is everybody's of that call.
    """

    def __init__(
        self, work: Callable[[list[T]], Awaitable[dict[int, Exception]]], pause: float = PAUSE_SECONDS
    ) -> None:
        self._work = work
        self._pause = pause
        self._waiting: deque[tuple[T, asyncio.Future[None]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def add(self, item: T) -> None:
        """Returns once the item's part of the work is done."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.append((item, done))
        if self._worker is None or self._worker.done() or self._worker.get_loop() is not loop:
            self._worker = loop.create_task(self._go_on())
        await done

    async def _go_on(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            begun = loop.time()
            batch = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
            try:
                failures = await self._work([item for item, _ in batch])
            except Exception as error:  # noqa: BLE001 - it is raised where the work was asked for
                failures = dict.fromkeys(range(len(batch)), error)
            for place, (_, done) in enumerate(batch):
                if done.cancelled():
                    continue
                if place in failures:
                    done.set_exception(failures[place])
                else:
                    done.set_result(None)
            if self._waiting and len(self._waiting) < MOST:
                await asyncio.sleep(begun + self._pause - loop.time())
