"""The durable engine: orchestrations, activities, timers and entities of one app on one machine."""

import asyncio
import json
import logging
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dropforge.host.durable import clock as clocks
from dropforge.host.durable import control
from dropforge.host.durable.activities import ActivityRunner
from dropforge.host.durable.errors import BadPayload, BadQuery, EngineStopped, UnknownEntity
from dropforge.host.durable.execution import ActivityOrder
from dropforge.host.durable.ids import entity_id
from dropforge.host.durable.messages import Message
from dropforge.host.durable.notices import Notice, NoticeBoard
from dropforge.host.durable.protocol import Invoker
from dropforge.host.durable.queries import EntityRow, InstanceStatus, Queries, Query
from dropforge.host.durable.sdk_speed import speed_up_sdk
from dropforge.host.durable.settings import DurableSettings
from dropforge.host.durable.store import Store
from dropforge.host.durable.worker import Command, Committed, Worker

_FOREVER = 2**62  # microseconds


class DurableEngine:
    """Runs durable functions so that nothing is lost, whenever the process dies.

    Every method that changes something returns after the change is on disk. Activities run at least once, everything
    else takes effect exactly once. All methods are called from the event loop in which `start` was called.
    """

    def __init__(
        self,
        database: Path,
        invoker: Invoker,
        *,
        settings: DurableSettings | None = None,
        log: logging.Logger | None = None,
        record: Path | None = None,
        clock: Callable[[], int] = clocks.now_us,
    ) -> None:
        """`record` gets every episode as a JSON line; `clock` tells microseconds since 1970 (UTC)."""
        self.database = database
        self.settings = settings or DurableSettings()
        self.invoker = invoker
        self._log = log or logging.getLogger("dropforge.durable")
        self._record = record
        self._clock = clock
        self._board = NoticeBoard(self._log)
        self._worker: Worker | None = None
        self._open = False  # takes commands
        self._failure: str = "it was not started"
        self._ended: asyncio.Event = asyncio.Event()

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Opens the database and takes up what was left: activities run again, timers are armed, inboxes drained.

        Raises EngineStopped when another process has the database open.
        """
        if self._worker is not None:
            return
        speed_up_sdk()
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        store = await asyncio.to_thread(Store, self.database)
        self._queries = Queries(self.database)
        self._readers = ThreadPoolExecutor(1, "durable-read")
        self._runner = ActivityRunner(
            self.invoker,
            self.settings.max_concurrent_activities,
            log=self._log,
            clock=self._clock,
            report=self._report,
        )
        worker = Worker(
            store,
            self.invoker,
            self.settings,
            self._board,
            clock=self._clock,
            publish=self._publish,
            record=self._record,
        )
        self._worker, self._open = worker, True
        self._thread = threading.Thread(target=self._work, args=(worker,), name="durable-engine", daemon=True)
        self._thread.start()

    async def stop(self, grace: float = 5.0) -> None:
        """Takes no new commands, gives running activities `grace` seconds, commits and closes. Twice is fine."""
        if self._worker is None:
            return
        worker, self._open = self._worker, False
        if not self._ended.is_set():
            self._failure = "it was stopped"
        await self._runner.stop(grace)
        worker.commands.put(None)
        await self._ended.wait()
        self._thread.join()
        worker.store.close()
        self._queries.close()
        self._readers.shutdown()
        self._worker = None

    async def ended(self) -> None:
        """Returns when the engine's thread is over: after `stop`, or after an error it could not survive."""
        await self._ended.wait()

    @property
    def failure(self) -> str:
        """Why the engine is not running; empty while it is."""
        return "" if self._open and not self._ended.is_set() else self._failure

    def _work(self, worker: Worker) -> None:
        try:
            worker.run()
        except BaseException as error:  # noqa: BLE001 - nobody above would see it: this is the end of the thread
            self._failure = f"its thread ended with {type(error).__name__}: {error}"
            self._log.critical("the durable engine has stopped; restart the host", exc_info=True)
        finally:
            self._loop.call_soon_threadsafe(self._thread_over, worker)

    def _thread_over(self, worker: Worker) -> None:
        self._ended.set()
        for future in worker.unanswered():
            if not future.done():
                future.set_exception(EngineStopped(self._failure))

    # -- between the threads ----------------------------------------------------------------------------------------

    async def _do(self, run: Callable[[Worker], Any]) -> Any:
        if self._worker is None or not self._open or self._ended.is_set():
            raise EngineStopped(self._failure)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._worker.commands.put(Command(run, future))
        return await future

    def _publish(self, committed: Committed) -> None:
        self._loop.call_soon_threadsafe(self._committed, committed)

    def _committed(self, committed: Committed) -> None:
        if committed.dropped:
            self._runner.drop(committed.dropped)
        self._runner.submit(committed.orders)
        for future, result, error in committed.results:
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    def _report(self, order: ActivityOrder, message: Message) -> None:
        # Results of the last activities are taken in while the engine stops.
        if self._worker is not None:
            self._worker.commands.put(Command(lambda worker: worker.activity_done(order, message)))

    async def _read(self, question: Callable[[], Any]) -> Any:
        if self._worker is None:
            raise EngineStopped(self._failure)
        return await self._loop.run_in_executor(self._readers, question)

    # -- orchestrations ---------------------------------------------------------------------------------------------

    async def start_new(
        self, name: str, input_json: str | None = None, instance_id: str | None = None, version: str | None = None
    ) -> str:
        """Starts an orchestration and returns its id; without an id it gets a random one.

        Raises UnknownOrchestrator, BadInstanceId, BadPayload, and InstanceExists while an instance of that id is not
        finished (a finished one is replaced).
        """
        _check_json("the input", input_json)
        new_id = uuid.uuid4().hex if instance_id is None else instance_id
        of = self.settings.default_version if version is None else version
        await self._do(lambda worker: worker.create(name, input_json, new_id, of).id)
        return new_id

    async def raise_event(self, instance_id: str, name: str, input_json: str | None = None) -> None:
        """Raises InstanceNotFound, InstanceFinished, BadPayload."""
        _check_text("the event name", name)
        _check_json(f"event '{name}'", input_json)
        await self._do(lambda worker: control.raise_event(worker, instance_id, name, input_json))

    async def terminate(self, instance_id: str, reason: str = "") -> None:
        """Ends an instance at once. Raises InstanceNotFound, InstanceFinished."""
        _check_text("the reason", reason)
        await self._do(lambda worker: control.terminate(worker, instance_id, reason))

    async def suspend(self, instance_id: str, reason: str = "") -> None:
        """Holds an instance; what happens to it meanwhile is kept. Raises InstanceNotFound, InstanceFinished."""
        await self._do(lambda worker: control.suspend(worker, instance_id, reason))

    async def resume(self, instance_id: str, reason: str = "") -> None:
        """Lets a suspended instance go on. Raises InstanceNotFound, InstanceFinished."""
        await self._do(lambda worker: control.resume(worker, instance_id, reason))

    async def rewind(self, instance_id: str, reason: str = "") -> None:
        """Runs what failed again, keeping what succeeded. Raises InstanceNotFound, NotRewindable."""
        await self._do(lambda worker: control.rewind_instance(worker, instance_id, reason))

    async def restart(self, instance_id: str, with_new_id: bool = True) -> str:
        """Starts the same with the same input and returns the id. Raises InstanceNotFound, InstanceExists."""
        return str(await self._do(lambda worker: control.restart(worker, instance_id, with_new_id)))

    async def purge(self, instance_id: str) -> int:
        """Forgets a finished instance; returns how many were forgotten (0 or 1)."""
        return int(await self._do(lambda worker: control.purge(worker, instance_id)))

    async def purge_many(self, since: int, until: int | None = None, statuses: tuple[str, ...] = ()) -> int:
        """Forgets the finished instances created between two times (microseconds, inclusive); returns how many.

        Raises BadQuery for an unknown status.
        """
        end = _FOREVER if until is None else until
        return int(await self._do(lambda worker: control.purge_many(worker, since, end, list(statuses))))

    async def wait(self, instance_id: str) -> InstanceStatus | None:
        """The status of an instance once it is finished; None when there is none of that id."""

        def join(worker: Worker) -> "asyncio.Future[Any] | None":
            hot = worker.hot.get(instance_id)
            if hot is None or not hot.live:
                return None
            worker.waiters.setdefault(instance_id, []).append(finished)
            return finished

        finished: asyncio.Future[Any] = self._loop.create_future()
        try:
            if await self._do(join) is not None:
                await finished
        finally:
            finished.cancel()
        return await self.status(instance_id)

    async def status(
        self, instance_id: str, *, history: bool = False, history_output: bool = False
    ) -> InstanceStatus | None:
        """The instance as of the last commit; None when there is none of that id."""
        return await self._read(  # type: ignore[no-any-return]
            lambda: self._queries.status(instance_id, history=history, history_output=history_output)
        )

    async def statuses(self, query: Query) -> tuple[list[InstanceStatus], str]:
        """The matching instances, oldest first, and the token of the next page (empty at the end). Raises BadQuery."""
        return await self._read(lambda: self._queries.statuses(query))  # type: ignore[no-any-return]

    # -- entities ---------------------------------------------------------------------------------------------------

    async def signal_entity(self, name: str, key: str, operation: str, input_json: str | None = None) -> None:
        """Queues an operation; returns when it is stored, not when it has run. Raises UnknownEntity, BadPayload."""
        _check_json(f"the input of operation '{operation}'", input_json)
        if name.lower() not in {known.lower() for known in self.invoker.entities}:
            raise UnknownEntity(name, self.invoker.entities)
        if not key:
            raise BadQuery("an entity key must not be empty")
        _check_text("the entity key", key)
        _check_text("the operation", operation)
        request = {"op": operation, "id": str(uuid.uuid4()), "signal": True, "input": input_json}
        await self._do(lambda worker: worker.send(entity_id(name, key), json.dumps(request)))

    async def delete_entity(self, name: str, key: str) -> bool:
        """Forgets the state of an entity; False when it did not exist."""
        return bool(await self._do(lambda worker: control.delete_entity(worker, entity_id(name, key))))

    async def entity_state(self, name: str, key: str) -> EntityRow | None:
        """The entity as of the last commit; None when it does not exist."""
        return await self._read(lambda: self._queries.entity(entity_id(name, key)))  # type: ignore[no-any-return]

    async def entities(self, name: str = "", top: int | None = None, token: str = "") -> tuple[list[EntityRow], str]:
        """The entities, of one name or all, and the token of the next page (empty at the end)."""
        return await self._read(lambda: self._queries.entities(name, top, token))  # type: ignore[no-any-return]

    # -- words ------------------------------------------------------------------------------------------------------

    @property
    def warnings(self) -> list[Notice]:
        """What Azure would have done without a word, the last thousand of them."""
        return list(self._board)


def _check_json(what: str, text: str | None) -> None:
    if text is None:
        return
    _check_text(what, text)
    try:
        json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        raise BadPayload(what, f"{text[:60]!r} ({error})") from error


def _check_text(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadPayload(what, f"characters that no encoding has ({error.reason})") from error


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
