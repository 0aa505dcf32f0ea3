"""As many workers as there is work for: one while it is quiet, more while all of them are busy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Pool:
    """Runs between one and `limit` copies of a worker.

    A worker is *ready* while it waits for work. It says `took` when it gets some and `ready` when it waits again. When
    nobody has been ready for `patience_seconds`, others are started, twice as many each time; one that has waited in vain
    and is `spare` should return.
    """

    def __init__(self, worker: Callable[[], Awaitable[None]], limit: int, name: str, patience_seconds: float) -> None:
        self._worker = worker
        self._limit = limit
        self._name = name
        self._patience_seconds = patience_seconds
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready = 0
        self._growing: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def spare(self) -> bool:
        """Whether another worker is ready beside the one that asks."""
        return self._ready > 1

    @property
    def crowded(self) -> bool:
        """Whether no worker is ready and none can be added: whoever holds on to something keeps others waiting."""
        return self._ready == 0 and len(self._tasks) >= self._limit

    def start(self) -> None:
        """Begin with one worker."""
        self._add()

    def took(self) -> None:
        """The worker that calls has work now."""
        self._ready -= 1
        self._grow_if_needed()

    def ready(self) -> None:
        """The worker that calls waits for work."""
        self._ready += 1

    def close(self) -> None:
        """Start no further worker."""
        self._closed = True
        if self._growing is not None:
            self._growing.cancel()

    async def ended(self, seconds: float) -> bool:
        """Wait until all workers have returned, at most so long; whether they have. Those left over are cancelled."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=seconds)
        left = tuple(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        return not left

    def _grow_if_needed(self) -> None:
        if self._ready == 0 and len(self._tasks) < self._limit and self._growing is None and not self._closed:
            self._growing = asyncio.get_running_loop().call_later(self._patience_seconds, self._grow)

    def _grow(self) -> None:
        self._growing = None
        if self._closed or self._ready > 0:
            return
        for _ in range(min(len(self._tasks), self._limit - len(self._tasks))):
            self._add()

    def _add(self) -> None:
        # It counts as ready from its first moment, or the next one would be started before it has run.
        self._ready += 1
        task = asyncio.create_task(self._run(), name=self._name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        try:
            await self._worker()
        finally:
            self._ready -= 1
            # The last one that was ready may have gone while the others are busy.
            self._grow_if_needed()
