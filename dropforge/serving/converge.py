"""The replica's life beside its requests: watch what is desired, load it, swap it in, report."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import sys
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from dropforge.domain.endpoints import Desired
from dropforge.domain.errors import BadInput, DropforgeError
from dropforge.serving.slots import Lineup, Slot, line_up
from dropforge.serving.source import Source

log = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
# A file that is not there yet, a disk that hiccups, a sample that was odd: worth another look, not for ever.
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0)


class Converger:
    """Keeps `slots` at what the source wants. Everything but loading and file access happens on the event loop."""

    def __init__(self, source: Source, replica: str, poll_seconds: float) -> None:
        self.slots: dict[str, Slot] = {}
        self.replica = replica
        self._source = source
        self._poll_seconds = poll_seconds
        self._started_at = datetime.now(UTC)
        # Desired at the start and not loaded yet; None before the first look.
        self._first: set[str] | None = None
        self._wakes: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._reporting = asyncio.Lock()
        # One load at a time: the peak of memory is what serves plus one model.
        self._loader = ThreadPoolExecutor(1, "load")

    @property
    def ready(self) -> bool:
        """Whether every endpoint that was desired at the start has been loaded since, or is no longer desired."""
        return self._first is not None and not self._first

    async def run(self) -> None:
        """Watch and report until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._report_all())

    async def close(self) -> None:
        """End the loading and take the reports away: this replica is no more."""
        tasks = [*self._tasks.values(), *self._background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for slot in list(self.slots.values()):
            await self._forget(slot)
        self._loader.shutdown(wait=False, cancel_futures=True)

    async def _watch(self) -> None:
        while True:
            try:
                changes = await asyncio.to_thread(self._source.changes)
            except Exception as error:  # noqa: BLE001 - whatever the store does, the requests must go on
                log.warning("cannot look for desired states: %r; going on with what serves", error)
            else:
                if self._first is None:
                    self._first = {endpoint for endpoint, found in changes.items() if found is not None}
                for endpoint, found in changes.items():
                    self._take(endpoint, found)
            await asyncio.sleep(self._poll_seconds)

    def _take(self, endpoint: str, found: Desired | DropforgeError | None) -> None:
        if found is None:
            self._remove(endpoint)
            return
        slot = self.slots.get(endpoint)
        if slot is None:
            slot = self.slots[endpoint] = Slot(endpoint, self._started_at)
            self._wakes[endpoint] = asyncio.Event()
            self._tasks[endpoint] = asyncio.create_task(self._converge(slot, self._wakes[endpoint]))
        if isinstance(found, Desired) and found.endpoint != endpoint:
            found = BadInput(
                f"the desired state of {endpoint!r} is about {found.endpoint!r}; publish it under its own name"
            )
        if isinstance(found, DropforgeError):
            self._fail(slot, found)
            self._start(self._report(slot))
        elif slot.wanted is not None and found.revision < slot.wanted.revision:
            wanted = slot.wanted.revision
            self._fail(
                slot, BadInput(f"revision {found.revision} is older than {wanted}, seen before; publish a newer one")
            )
            self._start(self._report(slot))
        else:
            slot.wanted = found
            self._wakes[endpoint].set()

    def _remove(self, endpoint: str) -> None:
        slot = self.slots.pop(endpoint, None)
        if slot is None:
            return
        self._tasks.pop(endpoint).cancel()
        del self._wakes[endpoint]
        if self._first is not None:
            self._first.discard(endpoint)
        log.info("%s: no longer desired; unloaded", endpoint)
        self._start(self._forget(slot))
        if slot.lineup is not None:
            self._start(self._retire(slot.lineup))

    async def _converge(self, slot: Slot, wake: asyncio.Event) -> None:
        attempt = 0
        while True:
            # None: nothing left to try until the desired state changes.
            delay = RETRY_SECONDS[attempt - 1] if 0 < attempt <= len(RETRY_SECONDS) else None
            with suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), delay)
                attempt = 0
            wake.clear()
            try:
                await self._swap(slot)
                attempt = 0
            except Exception as error:  # noqa: BLE001 - also for want of memory the old one goes on serving
                self._fail(slot, error)
                attempt = 0 if isinstance(error, BadInput) else attempt + 1
            await self._report(slot)

    async def _swap(self, slot: Slot) -> None:
        wanted = slot.wanted
        if wanted is None:
            return
        current = slot.lineup
        if current is not None and current.revision == wanted.revision:
            if current.deployments != wanted.deployments:
                raise BadInput(
                    f"revision {wanted.revision} is served already with other deployments; publish them as a newer revision"
                )
            slot.error = None
            return
        loop = asyncio.get_running_loop()
        lineup, detail = await loop.run_in_executor(
            self._loader, line_up, wanted, current.models if current else (), slot.sample
        )
        old = slot.swap(lineup, detail)
        if self._first is not None:
            self._first.discard(slot.endpoint)
        log.info("%s: serving %s (revision %d)", slot.endpoint, ", ".join(map(str, lineup.models)), lineup.revision)
        if old is not None:
            self._start(self._retire(old))

    async def _retire(self, lineup: Lineup) -> None:
        while lineup.in_flight:  # noqa: ASYNC110 - an event would be set and read by every request for nothing
            await asyncio.sleep(0.01)
        await asyncio.to_thread(_free, lineup)

    def _fail(self, slot: Slot, error: Exception) -> None:
        slot.error = error.message if isinstance(error, DropforgeError) else repr(error)
        serving = f"still serving {slot.lineup.versions}" if slot.lineup else "nothing to serve"
        log.error("%s: %s: %s", slot.endpoint, serving, slot.error)

    async def _report_all(self) -> None:
        while True:
            for slot in list(self.slots.values()):
                await self._report(slot)
            await asyncio.sleep(REPORT_SECONDS)

    async def _report(self, slot: Slot) -> None:
        async with self._reporting:
            if self.slots.get(slot.endpoint) is not slot:
                return
            state = slot.state(self.replica, datetime.now(UTC))
            try:
                await asyncio.to_thread(self._source.report, state)
            except (OSError, DropforgeError) as error:
                log.warning("%s: cannot report: %s", slot.endpoint, error)

    async def _forget(self, slot: Slot) -> None:
        async with self._reporting:
            if self.slots.get(slot.endpoint, slot) is slot:
                try:
                    await asyncio.to_thread(self._source.forget, slot.endpoint)
                except (OSError, DropforgeError) as error:
                    log.warning("%s: cannot take the report away: %s", slot.endpoint, error)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _free(lineup: Lineup) -> None:
    """Let the models go on this thread, where nobody waits for the memory to be handed back."""
    lineup.models = ()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a libc without it (musl) has nothing to trim
            ctypes.CDLL(None).malloc_trim(0)
