"""What waits on one entity and hands over what arrives: single messages, sessions one after another, or batches."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from dropforge.host.service_bus.bindings import BusTrigger
from dropforge.host.service_bus.delivery import Deliveries, Lease
from dropforge.host.service_bus.health import Health, Reach
from dropforge.host.service_bus.link import Dialler, Link, LinkError, LockLost, NoSession, Received
from dropforge.host.service_bus.pool import Pool
from dropforge.host.service_bus.settings import BusSettings
from dropforge.host.tasks import Tasks

_log = logging.getLogger(__name__)

T = TypeVar("T")

_WAIT_SECONDS = 60.0
# Workers that are busy for less than this need no help.
_PATIENCE_SECONDS = 0.02
# A worker that has received nothing for so long, while another waits as well, is not needed.
_SPARE_SECONDS = 30.0
# A session that is held is looked at so often: for its lock, and for others that wait for the place.
_TICK_SECONDS = 1.0
# As soon as other sessions may be waiting, one that is quiet is let go after this.
_CROWDED_SECONDS = 0.25
# Silence for so long while a session is waited for means that Service Bus is there and has none.
_SILENCE_SECONDS = 2.0
_CANCEL_AGAIN_SECONDS = 1.0
_AFTER_FAULT_SECONDS = 5.0
_CLOSE_SECONDS = 6.0


class Listener:
    """Serves one trigger until it is stopped. Everything on one link is done by one task."""

    def __init__(
        self, trigger: BusTrigger, dialler: Dialler, deliveries: Deliveries, settings: BusSettings, reach: Reach
    ) -> None:
        self._trigger = trigger
        self._dialler = dialler
        self._deliveries = deliveries
        self._settings = settings
        self._health = Health(f"{trigger.function.name} on {trigger.entity}", reach)
        self._stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closing = Tasks()
        several = settings.max_sessions if trigger.sessions else settings.max_calls
        self._pool = Pool(
            self._work,
            # As in Azure: one batch at a time, of one session at a time.
            limit=1 if trigger.many else several,
            name=f"service bus {trigger.function.name}",
            # A session should be taken as soon as it has messages: somebody always waits for the next one.
            patience_seconds=0.0 if trigger.sessions else _PATIENCE_SECONDS,
        )

    def start(self) -> None:
        self._pool.start()

    def stop(self) -> None:
        """Receive nothing more. Functions that run go on, and their messages are settled when they end."""
        if not self._stopped.done():
            self._stopped.set_result(None)
        self._pool.close()

    async def close(self) -> None:
        """Give back what is still locked, and let go of every connection."""
        self.stop()
        self._deliveries.give_back()
        ended = await self._pool.ended(_CLOSE_SECONDS)
        await self._closing.finish(_CLOSE_SECONDS)
        if not ended:
            _log.warning("%s: messages are left locked; they come again when their locks end", self._trigger.entity)

    # ------------------------------------------------------------------ one worker
    async def _work(self) -> None:
        pause = 0.0
        while not self._stopped.done():
            if pause:
                await asyncio.wait({self._stopped}, timeout=pause)
            pause, asked_at = 0.0, time.monotonic()
            try:
                link = await self._open(asked_at)
            except NoSession:
                self._health.well(asked_at)
            except LinkError as error:
                pause = self._health.failed(error, asked_at)
            else:
                if link is not None:
                    pause = await self._use(link, asked_at)
                    if self._trigger.sessions and not pause:
                        # Where one session was, there may be more.
                        continue
            # Others wait for work as well; while Service Bus cannot be reached, one is enough to ask for it.
            if self._pool.spare:
                return

    async def _open(self, asked_at: float) -> Link | None:
        """A link that can receive, asked for now; None when the host stops first."""
        opening = asyncio.create_task(self._dialler.open())
        # Waiting for a session has no first answer.
        silence = _SILENCE_SECONDS if self._trigger.sessions else None
        await _either(opening, self._stopped, timeout=silence)
        if not opening.done() and not self._stopped.done():
            self._health.well(asked_at)
            await _either(opening, self._stopped)
        if not opening.done():
            opened_after_all = await _ended(opening)
            if opened_after_all is not None:
                await opened_after_all.close()
            return None
        link = opening.result()
        self._health.well(asked_at)
        return link

    async def _use(self, link: Link, asked_at: float) -> float:
        """Receive until the link, which was asked for then, is of no more use; returns how long to wait before the next one is
        opened."""
        try:
            await (self._serve_session(link) if self._trigger.sessions else self._serve(link))
        except LockLost as error:
            # Whoever was harmed by it has been told of where it happened.
            _log.debug("%s: %s", self._trigger.entity, error)
        except LinkError as error:
            return self._health.failed(error, asked_at)
        except Exception:  # noqa: BLE001 - a fault of the host must not end the trigger
            _log.exception("%s: a worker failed; it begins again in %g s", self._trigger.entity, _AFTER_FAULT_SECONDS)
            return _AFTER_FAULT_SECONDS
        finally:
            # It takes the SDK a second; the session is free, and the worker can go on, in a moment.
            self._closing.start(link.close())
        return 0.0

    async def _serve(self, link: Link) -> None:
        """Messages of a queue or subscription, for as long as the link lives and the worker is needed."""
        quiet_since = time.monotonic()
        while not self._stopped.done():
            messages = await self._receive(link, _SPARE_SECONDS if self._pool.spare else _WAIT_SECONDS)
            if messages:
                self._pool.took()
                try:
                    await self._deliver(link, messages)
                finally:
                    self._pool.ready()
                quiet_since = time.monotonic()
            elif self._pool.spare and time.monotonic() - quiet_since >= _SPARE_SECONDS:
                return

    async def _serve_session(self, link: Link) -> None:
        """The messages of one session in their order, until it has been quiet for long enough."""
        self._pool.took()
        try:
            lease = Lease(link, ())
            quiet_since = time.monotonic()
            while not self._stopped.done():
                idle = self._settings.session_idle_seconds
                if self._pool.crowded:
                    idle = min(idle, _CROWDED_SECONDS)
                messages = await self._receive(link, min(_TICK_SECONDS, idle))
                if messages:
                    await self._deliver(link, messages, lease)
                    quiet_since = time.monotonic()
                elif time.monotonic() - quiet_since >= idle:
                    return
                if lease.due_in() == 0:
                    await lease.renew()
        finally:
            self._pool.ready()

    async def _receive(self, link: Link, wait_seconds: float) -> Sequence[Received]:
        """What the next calls are made of; nothing when the wait is over or the host stops."""
        if not self._trigger.many:
            count = self._settings.max_calls_per_session if self._trigger.sessions else 1
            return await self._unless_stopped(link.receive(count, wait_seconds)) or ()
        found = list(await self._unless_stopped(link.receive(self._settings.max_batch, wait_seconds)) or ())
        deadline = time.monotonic() + self._settings.batch_wait_seconds
        while 0 < len(found) < self._settings.min_batch and (left := deadline - time.monotonic()) > 0:
            more = await self._unless_stopped(link.receive(self._settings.max_batch - len(found), left))
            if not more:
                break
            found += more
        return found

    async def _deliver(self, link: Link, messages: Sequence[Received], lease: Lease | None = None) -> None:
        if self._stopped.done():
            # Received in the very moment of the stop.
            await self._deliveries.refuse(link, messages)
            return
        faulty = [message for message in messages if message.fault]
        for message in faulty:
            _log.error("%s: message %s fails: %s", self._trigger.entity, message.id, message.fault)
        if faulty:
            await self._deliveries.refuse(link, faulty)
        good = [message for message in messages if not message.fault]
        if not good:
            return
        if self._trigger.many:
            # The locks of batches are not renewed, as in Azure.
            await self._deliveries.run(link, [good], None)
        else:
            await self._deliveries.run(link, [[message] for message in good], lease or Lease(link, good))

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What the work gives; None when the host stops before it does."""
        working = asyncio.create_task(work)
        await _either(working, self._stopped)
        return working.result() if working.done() else await _ended(working)


async def _either(work: asyncio.Future[Any], other: asyncio.Future[Any], timeout: float | None = None) -> None:  # noqa: ASYNC109
    await asyncio.wait({work, other}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


async def _ended(task: asyncio.Task[T]) -> T | None:
    """Cancel the task and wait until it has ended; what it gave after all, or None."""
    while not task.done():
        task.cancel()
        # The SDK may lose the first one: `asyncio.wait_for` of Python 3.11 does when its work ends at the same time.
        await asyncio.wait({task}, timeout=_CANCEL_AGAIN_SECONDS)
    return None if task.cancelled() or task.exception() else task.result()
