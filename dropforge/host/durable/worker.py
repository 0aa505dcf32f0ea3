"""The engine's thread: takes commands, fires timers, runs episodes, commits, and only then lets the results out.

One turn is one transaction. A crash before its commit undoes the whole turn, a crash after it is continued from the
store: activities that were ordered run (again), everything else has happened exactly once.
"""

import asyncio
import json
import logging
import queue
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from dropforge.host.durable import messages
from dropforge.host.durable.book import Final
from dropforge.host.durable.entities import run_batch
from dropforge.host.durable.episode import batch, run_episode
from dropforge.host.durable.errors import BadInstanceId, DurableError, InstanceExists, UnknownOrchestrator
from dropforge.host.durable.execution import ActivityOrder, ChildOrder, Execution, Outcome
from dropforge.host.durable.hot import HotCache
from dropforge.host.durable.ids import id_problem
from dropforge.host.durable.messages import Kind, Message, Parent
from dropforge.host.durable.notices import Code, Notice, NoticeBoard
from dropforge.host.durable.protocol import Invoker
from dropforge.host.durable.settings import DurableSettings
from dropforge.host.durable.store import Hot, Store

_COMMANDS_PER_TURN = 1_000
_TIMERS_PER_TURN = 1_000
_EPISODES_PER_TURN = 500
_TURN_SECONDS = 0.025  # then commit: what is finished must not wait long for its disk write
_SLOW_SECONDS = 1.0


class Command(NamedTuple):
    """Something to do in the engine's thread; `future` lives in the event loop and learns of it after the commit."""

    run: Callable[["Worker"], Any]
    future: "asyncio.Future[Any] | None" = None


@dataclass(slots=True)
class Committed:
    """What may leave the engine now that it is stored."""

    orders: list[ActivityOrder] = field(default_factory=list)
    dropped: set[str] = field(default_factory=set)  # executions that are over: their waiting activities need not run
    results: list[tuple["asyncio.Future[Any]", Any, Exception | None]] = field(default_factory=list)


class Worker:
    """Everything below runs in one thread; only `commands` is touched from outside."""

    def __init__(
        self,
        store: Store,
        invoker: Invoker,
        settings: DurableSettings,
        board: NoticeBoard,
        *,
        clock: Callable[[], int],
        publish: Callable[[Committed], None],
        record: Path | None = None,
    ) -> None:
        self.commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self.store = store
        self.settings = settings
        self.log = board.log
        self.board = board
        self.invoker: Invoker = _Recording(invoker, record) if record else invoker
        self.hot = HotCache(store, settings)
        self.waiters: dict[str, list[asyncio.Future[Any]]] = {}
        self.current: list[Command] = []  # of the turn that is not committed yet
        self._clock = clock
        self._publish = publish
        self._now = 0
        self._ready: dict[str, None] = {}  # instances and entities with something to do, in order
        self._touched: dict[str, None] = {}  # instances whose inbox may hold messages that are not stored
        self._operations: dict[str, list[Message]] = {}  # of this turn
        self._next_due: int | None = None
        self._out = Committed()

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until a None arrives. An error here leaves the store as of the last commit."""
        try:
            self.recover()
            while True:
                commands, last = self._drain()
                self.turn(commands)
                if last:
                    return
        finally:
            self.store.rollback()
            if isinstance(self.invoker, _Recording):
                self.invoker.close()

    def unanswered(self) -> list["asyncio.Future[Any]"]:
        """Who still waits for an answer; for the event loop, once the thread is over."""
        commands = list(self.current)
        while not self.commands.empty():
            command = self.commands.get()
            if command is not None:
                commands.append(command)
        futures = [command.future for command in commands if command.future is not None]
        futures += [future for waiting in self.waiters.values() for future in waiting]
        return futures + [future for future, _, _ in self._out.results]

    def recover(self) -> None:
        """Takes up what the last process left: activities run again, timers are armed, inboxes are drained."""
        self._next_due = self.store.next_due()
        orders = self.store.activities()
        self._ready = dict.fromkeys(self.store.targets())
        if orders or self._ready:
            self.log.info("took up %d activities and %d inboxes from before", len(orders), len(self._ready))
        self._publish(Committed(orders=orders))

    def _drain(self) -> tuple[list[Command], bool]:
        taken: list[Command] = []
        try:
            first = self.commands.get(timeout=self._idle_seconds()) if not self._ready else self.commands.get_nowait()
            while first is not None:
                taken.append(first)
                if len(taken) >= _COMMANDS_PER_TURN:
                    return taken, False
                first = self.commands.get_nowait()
        except queue.Empty:
            return taken, False
        return taken, True

    def _idle_seconds(self) -> float | None:
        # Not longer than a second at a time: the clock may be set, or may be one that a test moves.
        return None if self._next_due is None else min(max(self._next_due - self.now(), 0) / 1e6, 1.0)

    def now(self) -> int:
        """Never goes back while the process runs."""
        self._now = max(self._now, self._clock())
        return self._now

    def turn(self, commands: list[Command]) -> None:
        """Does everything there is to do, up to a bound, and commits it as one."""
        self.current = commands
        for command in commands:
            self._obey(command)
        self._fire_timers()
        end = time.monotonic() + _TURN_SECONDS
        for _ in range(_EPISODES_PER_TURN):
            if not self._ready or time.monotonic() > end:
                break
            target = next(iter(self._ready))
            del self._ready[target]
            if target.startswith("@"):
                self._run_entity(target)
            else:
                self._run_instance(target)
        self._keep_inboxes()
        self.store.commit()
        out, self._out = self._out, Committed()
        if out.orders or out.results or out.dropped:
            self._publish(out)
        self.current = []
        self.hot.trim()

    def _obey(self, command: Command) -> None:
        try:
            result, error = command.run(self), None
        except DurableError as refused:
            result, error = None, refused
        if command.future is not None:
            self._out.results.append((command.future, result, error))

    def _fire_timers(self) -> None:
        if self._next_due is None or self._next_due > self.now():
            return
        for due, serial, task_id, instance_id in self.store.due_timers(self.now(), _TIMERS_PER_TURN):
            self.store.remove_timers(serial, [(task_id, due)])
            hot = self.hot.get(instance_id)
            if hot is not None:
                fired = messages.timer_fired(self.now(), hot.execution.execution_id, task_id, due)
                self.deliver(instance_id, fired)
        self._next_due = self.store.next_due()

    def _keep_inboxes(self) -> None:
        """Stores the messages that no episode of this turn has taken."""
        for instance_id in self._touched:
            hot = self.hot.get(instance_id)
            for message in hot.inbox if hot else ():
                if not message.seq and not (message.kind is Kind.START and hot and hot.start_implied):
                    self.store.add_message(instance_id, message)
                    if hot and message.kind is Kind.ACTIVITY:
                        self.store.remove_activities(hot.serial, [message.task_id])
        self._touched.clear()
        for entity_id, waiting in self._operations.items():
            for message in waiting:
                self.store.add_message(entity_id, message)
        self._operations.clear()

    # -- deliveries -------------------------------------------------------------------------------------------------

    def deliver(self, instance_id: str, message: Message) -> bool:
        """Puts a message into an inbox; False when there is no live instance to take it."""
        hot = self.hot.get(instance_id)
        if hot is None or not hot.live:
            return False
        if message.execution and message.execution != hot.execution.execution_id:
            return False  # for an earlier instance of that id, or from before it continued as new
        hot.inbox.append(message)
        self.wake(hot)
        return True

    def wake(self, hot: Hot) -> None:
        self._touched[hot.id] = None
        if hot.inbox and hot.status != "Suspended":
            self._ready[hot.id] = None

    def send(self, entity_id: str, text: str) -> None:
        """Queues an operation on an entity."""
        self._operations.setdefault(entity_id, []).append(Message(Kind.OPERATION, text))
        self._ready[entity_id] = None

    def activity_done(self, order: ActivityOrder, message: Message) -> None:
        if not self.deliver(order.instance_id, message):
            self.log.debug("result of '%s' dropped: instance %s is over", order.name, order.instance_id)

    # -- instances --------------------------------------------------------------------------------------------------

    def create(
        self, name: str, input_json: str | None, instance_id: str, version: str, parent: Parent | None = None
    ) -> Hot:
        """A new instance, in the same transaction as the check that none of that id is alive."""
        if name not in self.invoker.orchestrators:
            raise UnknownOrchestrator(name, self.invoker.orchestrators)
        if problem := id_problem(instance_id):
            raise BadInstanceId(instance_id, problem)
        existing = self.hot.get(instance_id)
        if existing is not None:
            if existing.live and not self.settings.replace_any_state:
                raise InstanceExists(instance_id, existing.status)
            self.forget(existing)
        at = self.now()
        execution = Execution(instance_id, uuid.uuid4().hex, name, version, input_json, parent)
        execution.book.at = at
        hot = self.store.insert(execution, at)
        self.hot.put(hot)
        self.wake(hot)
        self._tell(logging.INFO, hot, "started")
        return hot

    def forget(self, hot: Hot) -> None:
        """Removes an instance with everything that belongs to it."""
        self._out.dropped.add(hot.execution.execution_id)
        self.store.delete(hot.serial, hot.id)
        self.hot.drop(hot.id)
        self._ready.pop(hot.id, None)
        self._touched.pop(hot.id, None)
        self._answer_waiters(hot.id)

    def _answer_waiters(self, instance_id: str) -> None:
        self._out.results.extend((future, None, None) for future in self.waiters.pop(instance_id, ()))

    def _run_instance(self, instance_id: str) -> None:
        hot = self.hot.get(instance_id)
        if hot is None or not hot.live or hot.status == "Suspended" or not hot.inbox:
            return
        taken = batch(hot.execution.book, hot.inbox)
        started = time.monotonic()
        try:
            outcome = run_episode(hot.execution, taken, self.now(), self.invoker, self.settings)
        except Exception:
            self.log.exception("the engine could not run an episode", extra=_extra(hot))
            self._give_up(instance_id, taken)
            return
        del hot.inbox[: len(taken)]
        self._account_for(hot, taken)
        if outcome is not None:
            self._apply(hot, outcome)
        if time.monotonic() - started > _SLOW_SECONDS:
            self._notice(
                hot,
                Code.SLOW_EPISODE,
                f"one episode of '{hot.execution.name}' took {time.monotonic() - started:.1f} s; an orchestrator only "
                "decides: move work into an activity, and shorten its history with continue_as_new",
            )
        if hot.live:
            self.hot.put(hot)
            if hot.inbox:
                self.wake(hot)

    def _account_for(self, hot: Hot, taken: list[Message]) -> None:
        self.store.remove_messages(taken)
        done = [message.task_id for message in taken if message.kind is Kind.ACTIVITY and not message.seq]
        if done:
            self.store.remove_activities(hot.serial, done)

    def _apply(self, hot: Hot, outcome: Outcome) -> None:
        serial = hot.serial
        hot.updated_at = hot.execution.book.at
        hot.custom_status = outcome.custom_status or hot.custom_status
        for notice in outcome.notices:
            self.board.post(notice, hot.execution.name)
        if outcome.finished is not None:
            self._finish(hot, outcome.finished, outcome)
            return
        hot.status = "Running"
        if outcome.carried is None:
            self.store.add_episode(serial, outcome.events)
        else:
            self._continue(hot, outcome.carried)
        self.order(hot, outcome.activities, outcome.timers)
        if outcome.cancelled:
            self.store.remove_timers(serial, outcome.cancelled)
        for operation in outcome.operations:
            self.send(operation.entity_id, operation.text)
        self.store.update(hot)
        for child in outcome.children:
            self.start_child(child)

    def order(self, hot: Hot, activities: list[ActivityOrder], timers: list[tuple[int, int]]) -> None:
        """Stores activities, to run after the commit, and arms timers (task id, due)."""
        if activities:
            self.store.add_activities(hot.serial, activities)
            self._out.orders.extend(activities)
        if timers:
            self.store.add_timers(hot.serial, timers)
            first = min(due for _, due in timers)
            self._next_due = first if self._next_due is None else min(self._next_due, first)

    def _continue(self, hot: Hot, carried: list[Message]) -> None:
        """The new execution begins with its start and the events nobody has waited for, then what came meanwhile."""
        self.store.start_over(hot)
        self.store.remove_messages(hot.inbox)
        rest = [message for message in hot.inbox if not message.execution]
        for message in rest:
            message.seq = 0
        hot.inbox = carried + rest
        self.wake(hot)
        self._tell(logging.INFO, hot, "continues as new")

    def start_child(self, child: ChildOrder) -> None:
        try:
            self.create(child.name, child.input, child.instance_id, child.version, child.parent)
        except DurableError as refused:
            failed = messages.child_failed(self.now(), child.parent, f"Sub-orchestration '{child.name}': {refused}")
            self.deliver(child.parent.instance_id, failed)

    def _finish(self, hot: Hot, final: Final, outcome: Outcome) -> None:
        # Timers that were cancelled and signals that were sent in the last episode count; with nothing open, no task
        # was ordered in it.
        if outcome.cancelled:
            self.store.remove_timers(hot.serial, outcome.cancelled)
        for operation in outcome.operations:
            self.send(operation.entity_id, operation.text)
        self.store.add_episode(hot.serial, outcome.events)
        self.end(hot, final, clean=not outcome.abandoned)

    def end(self, hot: Hot, final: Final, *, clean: bool) -> None:
        """Marks an instance as finished and tells whoever waits for it."""
        hot.status = final.status
        hot.updated_at = self.now()
        unheard = [message.name for message in hot.inbox if message.kind is Kind.EVENT]
        unheard += [event.name for event in hot.execution.book.buffered]
        if unheard:
            self._notice(hot, Code.EVENT_UNHEARD, f"finished without having heard the events {sorted(set(unheard))}")
        if not clean or any(message.seq for message in hot.inbox):
            self.store.drop_open(hot.serial, hot.id)
        self._out.dropped.add(hot.execution.execution_id)
        hot.inbox.clear()
        self.store.update(hot, final.output)
        failed = final.status != "Completed"
        self._tell(logging.ERROR if failed else logging.INFO, hot, final.status.lower(), final.output if failed else "")
        if hot.execution.parent is not None:
            self._tell_parent(hot, hot.execution.parent, final)
        self.hot.drop(hot.id)
        self._answer_waiters(hot.id)

    def _tell_parent(self, hot: Hot, parent: Parent, final: Final) -> None:
        if final.status == "Completed":
            message = messages.child_completed(self.now(), parent, final.output)
        else:
            reason = json.loads(final.output) if final.output else f"Sub-orchestration '{hot.id}' {final.status}"
            message = messages.child_failed(self.now(), parent, str(reason))
        self.deliver(parent.instance_id, message)

    def _give_up(self, instance_id: str, taken: list[Message]) -> None:
        """An error of the engine itself: the instance fails, the others go on."""
        self.hot.drop(instance_id)
        self.store.remove_messages(taken)
        hot = self.hot.get(instance_id)
        if hot is not None and hot.live:
            text = f"Orchestrator function '{hot.execution.name}' failed: internal error of the host, see its log"
            self.end(hot, Final("Failed", json.dumps(text)), clean=False)

    # -- entities ---------------------------------------------------------------------------------------------------

    def _run_entity(self, entity_id: str) -> None:
        """One batch. State and answers are in the same transaction; operations run in the order of arrival."""
        limit = self.settings.max_entity_batch
        waiting = self.store.inbox(entity_id, limit)
        fresh = self._operations.pop(entity_id, [])
        room = limit - len(waiting)
        taken, rest = waiting + fresh[:room], fresh[room:]
        if rest:
            self._operations[entity_id] = rest
        if rest or len(waiting) == limit:
            self._ready[entity_id] = None
        if not taken:
            return
        exists, state = self.store.entity(entity_id)
        outcome = run_batch(entity_id, exists, state, taken, self.now(), self.invoker)
        self.store.remove_messages(taken)
        if exists or outcome.exists:
            self.store.put_entity(entity_id, outcome.exists, outcome.state, self.now())
        for instance_id, reply in outcome.replies:
            self.deliver(instance_id, reply)
        for notice in outcome.notices:
            self.board.post(notice, entity_id)

    # -- words ------------------------------------------------------------------------------------------------------

    def _notice(self, hot: Hot, code: Code, message: str) -> None:
        self.board.post(Notice(code, hot.id, message), hot.execution.name)

    def _tell(self, level: int, hot: Hot, what: str, more: str | None = "") -> None:
        if self.log.isEnabledFor(level):
            detail = f": {more}" if more else ""
            self.log.log(level, "%s %s%s", hot.execution.name, what, detail, extra=_extra(hot))


def _extra(hot: Hot) -> dict[str, str]:
    return {"instance_id": hot.id, "function": hot.execution.name}


class _Recording:
    """An invoker that writes every episode and every entity batch to a file, one JSON object per line."""

    def __init__(self, invoker: Invoker, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._invoker = invoker
        self._file: TextIO = path.open("a", encoding="utf-8")
        self.orchestrators = invoker.orchestrators
        self.activities = invoker.activities
        self.entities = invoker.entities
        self.act = invoker.act

    def orchestrate(self, name: str, context_json: str) -> str:
        return self._recorded("orchestrator", self._invoker.orchestrate, name, context_json)

    def operate(self, name: str, context_json: str) -> str:
        return self._recorded("entity", self._invoker.operate, name, context_json)

    def _recorded(self, kind: str, call: Callable[[str, str], str], name: str, context: str) -> str:
        line = {"kind": kind, "name": name, "context": context}
        try:
            line["state"] = call(name, context)
        except BaseException as error:
            line["error"] = str(error)
            raise
        finally:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        return line["state"]

    def close(self) -> None:
        self._file.close()
