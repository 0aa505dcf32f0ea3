"""The replica's life beside its requests: watch what is desired, load it, swap it in, report."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from dropforge import telemetry
from dropforge.domain.endpoints import Deployment, Desired, ReplicaState
from dropforge.domain.errors import BadInput, DropforgeError, NotFound, Unavailable
from dropforge.serving import golden
from dropforge.serving.memory import MIB, Budget, resident_bytes
from dropforge.serving.models import APART_BYTES, Model, load
from dropforge.serving.priority import IDLE, LONG, Aside, Neighbours, times
from dropforge.serving.provider import CPU, Provider
from dropforge.serving.slots import Lineup, Slot, identity, line_up
from dropforge.serving.source import Source

log = logging.getLogger(__name__)

T = TypeVar("T")

# A file that is not there yet, a disk that hiccups, a sample that was odd: worth another look, not for ever.
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0)
# A store that does not answer will one day, and nobody publishes anything anew for that.
OUTAGE_SECONDS = 15.0
# A model that nobody asked anything for so long may make room for another.
IDLE_SECONDS = 60.0
KEEP_PREVIOUS_SECONDS = 120.0
# Between reports while several versions share the requests, if the source's are further apart.
WATCHED_SECONDS = 2.0


class Converger:
    """Keeps `slots` at what the source wants. Everything but loading and file access happens on the event loop."""

    def __init__(
        self,
        source: Source,
        replica: str,
        poll_seconds: float,
        provider: Provider = CPU,
        budget: Budget | None = None,
        *,
        keep_previous_seconds: float = KEEP_PREVIOUS_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self.slots: dict[str, Slot] = {}
        self.replica = replica
        self.provider = provider
        self._source = source
        self._poll_seconds = poll_seconds
        self._started_at = datetime.now(UTC)
        # Desired at the start and not loaded yet; None before the first look.
        self._first: set[str] | None = None
        # Endpoints that are on their way to what is desired.
        self.changing = 0
        self._wakes: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._reporting = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._budget = budget or Budget(None, provider)
        self._keep_previous_seconds = keep_previous_seconds
        self._idle_seconds = idle_seconds
        # One load at a time: the peak of memory is what serves plus one model.
        self._aside = Aside()
        # From the look for room until what found it is loaded.
        self._loading = asyncio.Lock()
        self._neighbours = Neighbours()

    @property
    def ready(self) -> bool:
        """Whether every endpoint that was desired at the start has been loaded since, or is no longer desired; never
        without the provider that was asked for."""
        return self._first is not None and not self._first and self.provider.problem is None

    @property
    def caught_up(self) -> bool:
        """Whether each endpoint that was desired at the start serves, or has failed to."""
        return self._first is not None and all(
            slot.error is not None for name, slot in self.slots.items() if name in self._first
        )

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
            for lane in slot.lineup.lanes if slot.lineup is not None else ():
                lane.close()

    def find(self, endpoint: str) -> Slot:
        """The endpoint's slot. Raises `NotFound`."""
        slot = self.slots.get(endpoint)
        if slot is None:
            raise NotFound(f"unknown model {endpoint[:80]!r}; choose from {sorted(self.slots)}")
        return slot

    async def load(self, endpoint: str) -> None:
        """Look for what is desired now, and have all of it in memory, whatever was unloaded. Raises `NotFound`, and what
        keeps it from being loaded."""
        await self._look()
        slot = self.find(endpoint)
        slot.held = None
        if slot.rested is None:
            slot.absent = None
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        slot.waiting.append(done)
        self._wakes[endpoint].set()
        try:
            await done
        finally:
            # It holds what went wrong, whose traceback holds this frame.
            del done

    async def unload(self, endpoint: str) -> None:
        """Take the endpoint's models out of memory, until `load` or a newer revision. Raises `NotFound`."""
        slot = self.find(endpoint)
        slot.held = slot.wanted.revision if slot.wanted is not None else 0
        if self._first is not None:
            self._first.discard(endpoint)
        old = slot.empty("it was unloaded; load it again, or publish a newer revision")
        log.info("%s: unloaded by hand", endpoint)
        self._drop_previous(slot)
        if old is not None:
            self._start(self._retire(old))
        self._start(self._report(slot))

    async def _watch(self) -> None:
        while True:
            try:
                await self._look()
            except Exception as error:  # noqa: BLE001 - whatever the store does, the requests must go on
                log.warning("cannot look for desired states: %r; going on with what serves", error)
            now = time.monotonic()
            for slot in self.slots.values():
                if slot.previous and slot.previous_until < now:
                    self._drop_previous(slot)
            await asyncio.sleep(until_look(time.time(), self._poll_seconds))

    async def _look(self) -> None:
        async with self._looking:
            changes = await asyncio.to_thread(self._look_around)
        if self._first is None:
            self._first = {endpoint for endpoint, found in changes.items() if _is_to_load(found)}
        for endpoint, found in changes.items():
            self._take(endpoint, found)

    def _look_around(self) -> dict[str, Desired | DropforgeError | None]:
        """Who wants the cores, and what changed. Not on the loop: on a large machine the first alone takes a millisecond."""
        if self._aside.niceness in (None, IDLE):
            self._neighbours.look(time.monotonic(), times)
        else:
            self._neighbours.skip()
        return self._source.changes()

    def _take(self, endpoint: str, found: Desired | DropforgeError | None) -> None:
        if found is None:
            self._remove(endpoint)
            return
        slot = self.slots.get(endpoint)
        if slot is None:
            slot = self.slots[endpoint] = Slot(endpoint, self._started_at)
            wake = self._wakes[endpoint] = asyncio.Event()
            loop = asyncio.get_running_loop()
            slot.wake = lambda: _call(loop, wake.set)
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
        self._drop_previous(slot)
        _tell(slot.waiting, NotFound(f"model {endpoint!r} is no longer desired"))
        if slot.lineup is not None:
            self._start(self._retire(slot.lineup))

    async def _converge(self, slot: Slot, wake: asyncio.Event) -> None:
        attempt = 0
        # None: nothing left to try until the desired state changes.
        delay: float | None = None
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), delay)
                attempt = 0
            wake.clear()
            waiting, slot.waiting = slot.waiting, []
            self.changing += 1
            try:
                # Who has nothing to load waits for nobody who loads.
                if self._missing(slot) is not None:
                    async with self._loading:
                        await self._swap(slot)
                attempt, delay = 0, None
                _tell(waiting, None)
            except Exception as error:  # noqa: BLE001 - also for want of memory the old one goes on serving
                self._fail(slot, error)
                attempt, delay = attempt + 1, _pause(attempt, error)
                _tell(waiting, error)
            finally:
                self.changing -= 1
                # For those who are told already this is nothing.
                _tell(waiting, NotFound(f"model {slot.endpoint!r} is no longer desired"))
                # They hold what went wrong, whose traceback holds this frame and others that hold the model.
                del waiting
            # What was asked during the swap comes before what is told of it.
            await asyncio.sleep(0)
            await self._report(slot)

    def _missing(self, slot: Slot) -> Desired | None:
        """What is desired and does not serve yet; what does has no error. Raises `BadInput`."""
        wanted = slot.wanted
        if wanted is None or slot.held == wanted.revision:
            return None
        current = slot.lineup
        if current is not None and current.revision == wanted.revision:
            if current.desired.deployments != wanted.deployments:
                raise BadInput(
                    f"revision {wanted.revision} is served already with other deployments; publish them as a newer revision"
                )
            if not current.resting:
                slot.error = None
                return None
        return wanted

    async def _swap(self, slot: Slot) -> None:
        # Much may have changed while others loaded.
        wanted, current = self._missing(slot), slot.lineup
        if wanted is None:
            return
        began = time.time_ns()
        # Of what served before, only what is wanted again outlasts the load.
        self._drop_previous(slot, [identity(each) for each in wanted.deployments])
        serving = current.models if current else ()
        held = [identity(each.deployment) for each in (*serving, *slot.previous)]
        if not await self._make_room(slot, [each for each in wanted.deployments if identity(each) not in held]):
            self._rest_first(slot, wanted)
            return
        loading = partial(self._load, keep=self._kept())
        given = (wanted, serving, slot.sample, loading, slot.previous, self._golden)
        lineup, detail = await self._run_aside(slot, partial(line_up, *given))
        if slot.held is not None and wanted.revision <= slot.held:
            # It was unloaded while it was loaded, or while one older than what was desired by then was.
            self._start(self._retire(lineup))
            return
        old = slot.swap(lineup, detail)
        if self._first is not None:
            self._first.discard(slot.endpoint)
        log.info("%s: serving %s (revision %d)", slot.endpoint, ", ".join(map(str, lineup.models)), lineup.revision)
        telemetry.below(
            "load and swap", wanted.trace, began, key=self.replica, replica=self.replica, endpoint=slot.endpoint
        )
        self._drop_previous(slot)
        if old is not None:
            self._keep_previous(slot, old)
            self._start(self._retire(old))

    def _niceness(self, slot: Slot) -> int | None:
        """How far a load gives way. On a GPU not at all: its libraries start threads of their own, which would inherit it."""
        if self.provider.name != "cpu":
            return None
        # The next version of a model is about as large as the one that answers. What computes for seconds wants a share even of
        # a core that requests fill, or it never ends.
        models = slot.lineup.models if slot.lineup is not None else ()
        is_long = max((model.file_bytes for model in models), default=0) >= APART_BYTES
        return LONG if is_long else self._neighbours.niceness

    async def _run_aside(self, slot: Slot, work: Callable[[], T]) -> T:
        return await self._aside.run(lambda: self._niceness(slot), work)

    def _load(self, deployment: Deployment, keep: frozenset[str]) -> Model:
        before = self._budget.before()
        model = load(deployment, fetch=partial(self._source.fetch, keep=keep), provider=self.provider)
        self._budget.loaded(model, model.file_bytes, before)
        return model

    def _golden(self, deployment: Deployment) -> bytes | None:
        return None if deployment.golden is None else self._source.read(deployment.golden, golden.MAX_BYTES)

    # -------------------------------------------------------------------------------------------- a way back
    def _keep_previous(self, slot: Slot, old: Lineup) -> None:
        """Keep what answered until now for a while: to name it again is to swap without loading."""
        gone = [model for model in old.models if slot.lineup is None or model not in slot.lineup.models]
        room = self._budget.limit_bytes
        if gone and self._keep_previous_seconds and (room is None or self._budget.used_bytes() <= room):
            slot.previous = tuple(gone)
            slot.previous_until = time.monotonic() + self._keep_previous_seconds

    def _drop_previous(self, slot: Slot, but: Collection[Deployment] = ()) -> None:
        """Let go what is kept, but for the deployments named."""
        gone = [model for model in slot.previous if identity(model.deployment) not in but]
        if gone:
            slot.previous = tuple(model for model in slot.previous if identity(model.deployment) in but)
            self._start(self._let_go(gone.clear))

    # -------------------------------------------------------------------------------------------- room
    async def _make_room(self, slot: Slot, missing: Sequence[Deployment]) -> bool:
        """Unload what nobody asks for until the deployments fit; False at the start, when they would but for others. Raises
        `Unavailable`, before anything is loaded."""
        if not self._budget.is_bounded or not missing or self.provider.problem is not None:
            return True
        wanted = await self._run_aside(slot, partial(self._wanted_bytes, missing, self._kept()))
        while True:
            room = await self._run_aside(slot, self._budget.room_bytes)
            if room is None or wanted <= room:
                return True
            gone = self._rest_one(slot)
            fits_alone = wanted <= room + self._budget.used_bytes()
            if gone is None and fits_alone and slot.endpoint in (self._first or ()):
                return False
            if gone is None:
                what = ", ".join(f"{each.model} v{each.version}" for each in missing)
                raise Unavailable(
                    f"no room for {what}: wants about {wanted // MIB} MiB, there are {max(0, room) // MIB} MiB left beside "
                    f"{self._budget.used_bytes() // MIB} MiB of models that are in use; raise --memory-budget, or unload "
                    "another endpoint"
                )
            await gone

    def _wanted_bytes(self, missing: Sequence[Deployment], keep: frozenset[str]) -> int:
        paths = [(each, self._source.fetch(each, keep)) for each in missing]
        return sum(self._budget.wanted_bytes(each, path.stat().st_size) for each, path in paths)

    def _rest_first(self, slot: Slot, wanted: Desired) -> None:
        """At the start there is no room for it beside others: it is loaded as soon as somebody asks for it."""
        slot.empty("there was no room for it at the start; it is being loaded")
        slot.rested = Lineup(wanted, ())
        if self._first is not None:
            self._first.discard(slot.endpoint)
        log.info("%s: no room for it beside the others; it is loaded when it is asked for", slot.endpoint)

    def _rest_one(self, busy: Slot) -> Coroutine[Any, Any, None] | None:
        """Unload what is missed least: what is kept for a way back, then the models nobody asked lately, those without
        traffic before those with. What ends once its memory is free, or None when there is no such model."""
        others = [slot for slot in self.slots.values() if slot is not busy]
        kept = [slot for slot in others if slot.previous]
        if kept:
            slot = min(kept, key=lambda each: each.previous_until)
            gone, slot.previous = [*slot.previous], ()
            return self._let_go(gone.clear)
        before = time.perf_counter() - self._idle_seconds
        idle = [
            (bool(deployment.traffic), model.statistics.idle_since, slot, model)
            for slot in others
            if slot.lineup is not None and not slot.lineup.in_flight
            for deployment, model in zip(slot.lineup.deployments, slot.lineup.models, strict=True)
            if not deployment.mirror
        ]
        in_use = {each[2].endpoint for each in idle if each[0] and each[1] >= before}
        idle = [each for each in idle if each[1] < before and not (each[0] and each[2].endpoint in in_use)]
        if not idle:
            return None
        has_traffic, _, slot, model = min(idle, key=lambda each: each[:2])
        lineup = slot.lineup
        assert lineup is not None
        log.info("%s: %s makes room for %s", slot.endpoint, model, busy.endpoint)
        if has_traffic:
            slot.empty("it made room for others; it is being loaded again")
            slot.rested = Lineup(lineup.desired, (), lineup.resting)
        else:
            rest = (*lineup.resting, lineup.deployments[lineup.models.index(model)])
            slot.lineup = Lineup(lineup.desired, tuple(each for each in lineup.models if each is not model), rest)
            slot.lineup.wake = slot.wake
        return self._retire(lineup)

    def _kept(self) -> frozenset[str]:
        """The sha256 of all that serves here or is to serve."""
        serving = [model.deployment for slot in self.slots.values() if slot.lineup for model in slot.lineup.models]
        wanted = [each for slot in self.slots.values() if slot.wanted for each in slot.wanted.deployments]
        return frozenset(deployment.sha256 for deployment in (*serving, *wanted))

    async def _retire(self, lineup: Lineup) -> None:
        while lineup.in_flight:  # noqa: ASYNC110 - an event would be set and read by every request for nothing
            await asyncio.sleep(0.01)
        await self._let_go(lineup.clear)

    async def _let_go(self, clear: Callable[[], None]) -> None:
        await asyncio.to_thread(self._budget.let_go, clear)

    def _fail(self, slot: Slot, error: Exception) -> None:
        slot.error = error.message if isinstance(error, DropforgeError) else repr(error)
        serving = f"still serving {slot.lineup.versions}" if slot.lineup else "nothing to serve"
        log.error("%s: %s: %s", slot.endpoint, serving, slot.error)

    async def _report_all(self) -> None:
        usual = self._source.report_seconds
        while True:
            now = time.monotonic()
            for slot in list(self.slots.values()):
                # Who decides about a candidate wants to know soon how it does.
                watched = slot.lineup is not None and len(slot.lineup.deployments) > 1 and slot.told_of != slot.requests
                if now - slot.reported_at >= (min(usual, WATCHED_SECONDS) if watched else usual):
                    await self._report(slot)
            await asyncio.sleep(min(usual, WATCHED_SECONDS / 2))

    async def _report(self, slot: Slot) -> None:
        async with self._reporting:
            if self.slots.get(slot.endpoint) is not slot:
                return
            slot.reported_at, slot.told_of = time.monotonic(), slot.requests
            state = slot.state(self.replica, datetime.now(UTC), self.provider.name, resident_bytes() or None)
            writing = asyncio.create_task(self._write(state))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                # The thread goes on: who takes the report away has to come after it.
                await asyncio.wait([writing])
                raise

    async def _write(self, state: ReplicaState) -> None:
        try:
            await asyncio.to_thread(self._source.report, state)
        except (OSError, DropforgeError) as error:
            log.warning("%s: cannot report: %s", state.endpoint, error)

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


def _is_to_load(found: Desired | DropforgeError | None) -> bool:
    """Whether a replica that starts waits for it: not for an endpoint that was rolled back to nothing."""
    return bool(found.deployments) if isinstance(found, Desired) else found is not None


def until_look(now: float, poll_seconds: float) -> float:
    """Seconds until the next multiple of the interval since 1970: replicas whose clocks agree look at the same time, so that
    one does not answer with the next version for an interval before another has heard of it."""
    left = poll_seconds - now % poll_seconds
    # A timer may ring a little early; that was this look then, not the one before it.
    return left if left > poll_seconds / 10 else left + poll_seconds


def _pause(attempt: int, error: Exception) -> float | None:
    """Seconds until a swap that failed is tried again; None: not until something else is desired."""
    if isinstance(error, BadInput):
        return None
    if attempt < len(RETRY_SECONDS):
        return RETRY_SECONDS[attempt]
    return OUTAGE_SECONDS if isinstance(error, Unavailable) else None


def _tell(waiting: Sequence[asyncio.Future[None]], error: Exception | None) -> None:
    for each in waiting:
        if each.done():
            continue
        if error is None:
            each.set_result(None)
        else:
            each.set_exception(error)


def _call(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    loop.call_soon_threadsafe(what)
