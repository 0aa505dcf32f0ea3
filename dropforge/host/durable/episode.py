"""One episode of an orchestration, without I/O: history and messages in, new history and orders out.

The rules are those of DurableTask.Core and of the Durable extension's out-of-process shim: ids are one counter per
execution in the order of the actions; a retry takes an id for its pause and one for its next attempt; after the last
failure comes one more, immediate timer; an ended orchestrator is completed only when no task or timer is open.

The context offers replay schema V3 (`upperSchemaVersionNew` 2). Like the extension on Azure Storage it names the two
durations by which the SDK cuts timers of more than six days into slices; like the extension on other storage providers
it leaves them out where host.json names such a provider.

Differences from Azure, on purpose: what follows a `task_all` that failed early is started at once instead of after
its slowest sibling; a retry that nobody waits for any more is not made.
"""

import json
import uuid

import msgspec

from dropforge.host.durable import clock, messages
from dropforge.host.durable.actions import Action, ActionType, State, decode_state
from dropforge.host.durable.book import Book, Final, Open
from dropforge.host.durable.execution import ActivityOrder, ChildOrder, Execution, Operation, Outcome
from dropforge.host.durable.ids import id_problem, split_entity_id
from dropforge.host.durable.messages import EventType, Kind, Message, Parent, event_text
from dropforge.host.durable.notices import Code, Notice, size_notice
from dropforge.host.durable.protocol import Invoker
from dropforge.host.durable.settings import DurableSettings
from dropforge.host.durable.waits import Waits

OUT_OF_PROC = "\n\n$OutOfProcData$:"
CONTINUED = "ContinuedAsNew"


class _Stop(Exception):
    """The instance fails here and now, whatever is open."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def batch(book: Book, inbox: list[Message]) -> list[Message]:
    """How many messages the next episode takes.

    One, when a retry is open or the message is an external event: the SDK numbers retries and matches events one by
    one, and several at once give silently wrong results. Otherwise all completions up to the next event, so that
    gathering a thousand results does not replay a thousand histories.
    """
    if inbox[0].kind is Kind.EVENT or book.retries_open():
        return inbox[:1]
    for index, message in enumerate(inbox):
        if message.kind is Kind.EVENT:
            return inbox[:index]
    return list(inbox)


def run_episode(
    execution: Execution, inbox: list[Message], at: int, invoker: Invoker, settings: DurableSettings
) -> Outcome | None:
    """Delivers messages and changes `execution` accordingly; None when none of them was meant for it (any more).

    After an exception `execution` must be thrown away and read again from the store.
    """
    episode = Episode(execution, max(at, execution.book.at), invoker, settings)
    return episode.outcome if episode.run(inbox) else None


class Episode:
    """One episode in the making."""

    def __init__(self, execution: Execution, at: int, invoker: Invoker, settings: DurableSettings) -> None:
        self.execution = execution
        self.book = execution.book
        self.at = at
        self.invoker = invoker
        self.settings = settings
        self.outcome = Outcome()
        self._created: list[str] = []
        self.waits = Waits(execution.book, execution.instance_id)
        self._retry: list[tuple[Open, bool]] = []  # (what ended, whether it was the pause)
        self._continue_input: str | None = None
        self._begun = False

    def run(self, inbox: list[Message]) -> bool:
        taken = [message.text for message in inbox if self._receive(message)]
        if not taken:
            return False
        opened = [messages.orchestrator_started(self.at), *taken]
        self.book.at = self.at
        try:
            if self.book.final is None:
                self._decide(opened)
            self._settle()
        except _Stop as stop:
            self._fail_now(stop)
        closed = [*opened, *self._created, messages.orchestrator_completed(self.at)]
        self.outcome.notices.extend(self.waits.notices)
        self.outcome.events = ",".join(closed)
        self.execution.append(self.outcome.events)
        if self.outcome.carried is not None:
            self._start_over()
        return True

    # -- messages ---------------------------------------------------------------------------------------------------

    def _receive(self, message: Message) -> bool:
        """Takes a message in; False when it is a duplicate or meant for something that is over."""
        if message.execution and message.execution != self.execution.execution_id:
            return False
        match message.kind:
            case Kind.START:
                first, self._begun = not self.execution.history and not self._begun, True
                return first
            case Kind.EVENT:
                self._measure(f"event '{message.name}'", message.text)
                self.waits.hear(message)
                return True
            case Kind.REPLY:
                return self._close(self._caller(message.name), "entity")
        task = self.book.open.get(message.task_id)
        self._measure(f"the result of task {message.task_id}", message.text)
        if not self._close(message.task_id, message.kind.value):
            return False
        if task is not None and task.attempt and (message.failed or message.kind is Kind.TIMER):
            self._retry.append((task, message.kind is Kind.TIMER))
        return True

    def _close(self, task_id: int, kind: str) -> bool:
        task = self.book.open.get(task_id)
        if task is None or task.kind != kind:
            return False
        del self.book.open[task_id]
        return True

    def _caller(self, request: str) -> int:
        return next((number for number, task in self.book.open.items() if task.request == request), -1)

    # -- the user's code --------------------------------------------------------------------------------------------

    def _decide(self, opened: list[str]) -> None:
        slices = self.settings.slice_long_timers
        state = self._invoke(self.execution.context(opened, slice_long_timers=slices))
        if len(state.actions) > 1:
            raise _Stop(
                Code.NOT_JSON, "its SDK answers in replay schema V1; azure-functions-durable 1.1 or newer is needed"
            )
        top = [(action, list(action.leaves())) for action in (state.actions[0] if state.actions else [])]
        numbered = self._check([leaf for _, leaves in top for leaf in leaves if leaf.signature])
        for task, paused in self._retry:
            self._try_again(task, paused, numbered[task.action])
        ended = state.is_done or bool(state.error)
        startable = [leaf for _, leaves in top[: self.waits.startable(top, ended)] for leaf in leaves]
        self._start_new(startable)
        self._note_status(state)
        if ended and not self.book.blocked:
            self.book.final = self._final(state)
            self._note_gate()
        elif not self.book.open and not self.book.waiting:
            self._notice(
                Code.NOTHING_OPEN,
                "the orchestrator waits, but nothing is open that could wake it, so it waits for ever: it yielded "
                "None or a task that was finished before, or waits for an event that came under another spelling",
            )

    def _invoke(self, context: str) -> State:
        name = self.execution.name
        if name not in self.invoker.orchestrators:
            raise _Stop(Code.UNKNOWN_NAME, self._unknown("an orchestrator", name, self.invoker.orchestrators))
        try:
            text = self.invoker.orchestrate(name, context)
        except (Exception, SystemExit) as error:
            _, found, text = str(error).rpartition(OUT_OF_PROC)
            if not found:
                raise self._broken(error) from error
        try:
            return decode_state(text)
        except msgspec.MsgspecError as error:
            raise _Stop(
                Code.NOT_JSON,
                f"its state is not valid JSON ({error}); NaN, Infinity and unpaired surrogates in outputs, inputs or "
                "the custom status are not JSON",
            ) from error

    def _broken(self, error: BaseException) -> _Stop:
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, AttributeError) and ("_is_scheduled" in text or "'state'" in text):
            return _Stop(
                Code.NOT_A_TASK,
                f"it yielded something that is not a durable task ({error}); yield only what context.call_activity, "
                "create_timer, wait_for_external_event, task_all, ... return",
            )
        return _Stop(Code.NOT_A_TASK, f"the SDK could not run it: {text}")

    def _check(self, numbered: list[Action]) -> list[Action]:
        """Stops when the numbered actions are not those that the history records; cancels timers."""
        recorded = self.book.signatures
        if len(numbered) > self.settings.max_actions:
            raise _Stop(
                Code.TOO_LARGE,
                f"it scheduled more than {self.settings.max_actions} actions in one execution "
                "(maxOrchestrationActions); use sub-orchestrations or continue_as_new",
            )
        for place, signature in enumerate(recorded):
            if place >= len(numbered) or numbered[place].signature != signature:
                asked = numbered[place].signature if place < len(numbered) else ""
                raise _Stop(Code.NON_DETERMINISTIC, self._not_the_same(place, signature, asked))
            if numbered[place].is_canceled:
                self._cancel(self.book.ids[place])
        return numbered

    def _not_the_same(self, place: int, recorded: str, asked: str) -> str:
        def words(signature: str) -> str:
            kind, _, target = signature.partition(":")
            article = "an" if kind[0] in "aeiou" else "a"
            return f"{article} {kind}" + (f" '{target}'" if target else "")

        now = f"asks for {words(asked)} in its place" if asked else "does not ask for it (yet?)"
        return (
            f"Non-Deterministic workflow detected: a previous execution of this orchestration scheduled "
            f"{words(recorded)} with sequence ID {self.book.ids[place]}, but the current replay {now}. Was the "
            "orchestrator changed while this instance was running, or does it read the clock, random numbers or the "
            "environment?"
        )

    def _final(self, state: State) -> Final:
        name = self.execution.name
        if state.error:
            return Final("Failed", json.dumps(f"Orchestrator function '{name}' failed: {state.error}"))
        if self._continue_input is not None:
            return Final(CONTINUED, self._continue_input)
        output = bytes(state.output).decode() or None
        self._measure("the output", output)
        return Final("Completed", output)

    # -- orders -----------------------------------------------------------------------------------------------------

    def _start_new(self, leaves: list[Action]) -> None:
        known = len(self.book.signatures)
        for leaf in leaves:
            if leaf.action_type is ActionType.CONTINUE_AS_NEW:
                # The SDK encodes the input once; ExecutionStarted carries it twice encoded, as from a client.
                self._continue_input = json.dumps(leaf.input)
            elif leaf.signature:
                known -= 1
                if known < 0:
                    self._start(leaf)

    def _start(self, leaf: Action) -> None:
        book = self.book
        place, task_id = len(book.signatures), self._take_id()
        book.signatures.append(leaf.signature)
        book.ids.append(task_id)
        match leaf.action_type:
            case ActionType.CREATE_TIMER:
                self._set_timer(task_id, Open("timer", place, due=clock.from_text(leaf.fire_at)))
                if leaf.is_canceled:
                    self._cancel(task_id)
            case ActionType.CALL_ENTITY | ActionType.SIGNAL_ENTITY:
                self._send(leaf, task_id, place)
            case _:
                self._attempt(leaf, task_id, Open("", place, attempt=1 if leaf.retry_options else 0))

    def _take_id(self) -> int:
        task_id = self.book.next_id
        self.book.next_id += 1
        return task_id

    def _attempt(self, leaf: Action, task_id: int, task: Open) -> None:
        """Orders an activity, a durable HTTP call or a sub-orchestration, for the first or a later time."""
        if leaf.action_type in (ActionType.CALL_CHILD, ActionType.CALL_CHILD_WITH_RETRY):
            task.kind = "child"
            self._order_child(leaf, task_id)
        else:
            task.kind = "activity"
            self._order_activity(leaf, task_id)
        self.book.open[task_id] = task

    def _order_activity(self, leaf: Action, task_id: int) -> None:
        execution, name, input_json = self.execution, leaf.target, leaf.input
        if leaf.action_type is ActionType.CALL_HTTP:
            input_json = bytes(leaf.http_request).decode() or "null"
        elif name not in self.invoker.activities:
            raise _Stop(Code.UNKNOWN_NAME, self._unknown("an activity", name, self.invoker.activities))
        self._measure(f"the input of activity '{name}'", input_json)
        args = json.dumps(json.dumps([input_json])) if self.settings.store_inputs else "null"
        self._created.append(messages.task_scheduled(self.at, task_id, name, args))
        order = ActivityOrder(execution.instance_id, execution.execution_id, task_id, name, input_json)
        self.outcome.activities.append(order)

    def _order_child(self, leaf: Action, task_id: int) -> None:
        execution, name = self.execution, leaf.function_name
        if name not in self.invoker.orchestrators:
            raise _Stop(Code.UNKNOWN_NAME, self._unknown("an orchestrator", name, self.invoker.orchestrators))
        child_id = leaf.instance_id or f"{execution.execution_id}:{task_id}"
        if problem := id_problem(child_id):
            raise _Stop(Code.UNKNOWN_NAME, f"the sub-orchestration id {child_id!r} is not allowed: {problem}")
        child_input = json.dumps(leaf.input)
        self._measure(f"the input of sub-orchestration '{name}'", child_input)
        self._created.append(
            event_text(
                EventType.CHILD_CREATED, self.at, task_id, Name=name, Version="", InstanceId=child_id, Input=child_input
            )
        )
        parent = Parent(execution.instance_id, execution.execution_id, task_id)
        version = leaf.version or self.settings.default_version
        self.outcome.children.append(ChildOrder(parent, name, child_id, version, child_input))

    def _send(self, leaf: Action, task_id: int, place: int) -> None:
        """Calls or signals an entity. The request id follows from execution and task, so a replay makes the same."""
        execution, entity_id = self.execution, leaf.target
        known = self.invoker.entities
        if split_entity_id(entity_id)[0] not in {name.lower() for name in known}:
            raise _Stop(Code.UNKNOWN_NAME, self._unknown("an entity", entity_id, known))
        request_id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{execution.execution_id}:{task_id}"))
        request = {"op": leaf.operation, "id": request_id, "input": json.dumps(leaf.input)}
        if leaf.action_type is ActionType.SIGNAL_ENTITY:
            request["signal"] = True  # type: ignore[assignment]
        else:
            request |= {"parent": execution.instance_id, "parentExecution": execution.execution_id}
            self.book.open[task_id] = Open("entity", place, request=request_id)
        text = json.dumps(request)
        self._measure(f"the input of operation '{leaf.operation}'", text)
        self._created.append(
            event_text(EventType.EVENT_SENT, self.at, task_id, InstanceId=entity_id, Name="op", Input=text)
        )
        self.outcome.operations.append(Operation(entity_id, text))

    def _set_timer(self, task_id: int, timer: Open) -> None:
        self.book.open[task_id] = timer
        fire_at = clock.to_text(timer.due)
        self._created.append(event_text(EventType.TIMER_CREATED, self.at, task_id, FireAt=fire_at))
        self.outcome.timers.append((task_id, timer.due))

    def _cancel(self, task_id: int) -> None:
        timer = self.book.open.get(task_id)
        if timer is not None and timer.kind == "timer":
            del self.book.open[task_id]
            self.outcome.cancelled.append((task_id, timer.due))

    def _try_again(self, task: Open, paused: bool, leaf: Action) -> None:
        """Follows DurableTask.Core: failure, pause, attempt; after the last failure a pause of no length."""
        options = leaf.retry_options
        if options is None:
            return
        last = task.attempt >= options.max_number_of_attempts
        if not paused:
            wait = 0 if last else options.first_retry_interval_in_milliseconds * 1000
            self._set_timer(self._take_id(), Open("timer", task.action, task.attempt, due=self.at + wait))
        elif not last:
            self._attempt(leaf, self._take_id(), Open("", task.action, task.attempt + 1))

    # -- the end ----------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        final = self.book.final
        if final is None or self.book.gate_open():
            return
        if final.status == CONTINUED:
            self.outcome.carried = self._carry()
        else:
            self._finish(final)

    def _finish(self, final: Final) -> None:
        self.outcome.finished = final
        self._created.append(
            event_text(
                EventType.EXECUTION_COMPLETED,
                self.at,
                self.book.next_id,
                OrchestrationStatus=final.status,
                Result=final.output,
            )
        )

    def _carry(self) -> list[Message]:
        return [Message(Kind.EVENT, event.text, name=event.name) for event in self.book.buffered]

    def _start_over(self) -> None:
        """Continue as new: another execution of the same instance, ids from 0, no history."""
        execution, final = self.execution, self.book.final
        execution.execution_id = uuid.uuid4().hex
        execution.input = final.output if final else None
        execution.history = []
        execution.characters = 1_000
        execution.book = Book(at=self.at)
        start = messages.started(
            self.at,
            execution.name,
            execution.version,
            execution.input,
            execution.instance_id,
            execution.execution_id,
            execution.parent,
        )
        assert self.outcome.carried is not None
        self.outcome.carried.insert(0, start)

    def _fail_now(self, stop: _Stop) -> None:
        message = f"Orchestrator function '{self.execution.name}' failed: {stop}"
        self._notice(stop.code, message)
        outcome = self.outcome
        outcome.activities, outcome.timers, outcome.children, outcome.operations = [], [], [], []
        self._created.clear()
        self.book.open.clear()
        self.book.final = Final("Failed", json.dumps(message))
        outcome.abandoned = True
        self._finish(self.book.final)

    # -- what is said aloud -----------------------------------------------------------------------------------------

    def _note_status(self, state: State) -> None:
        status = bytes(state.custom_status).decode()
        if status:
            self.book.has_custom_status = True
            self.outcome.custom_status = status
            self._measure("the custom status", status)
        elif self.book.has_custom_status:
            self._notice(
                Code.STATUS_DROPPED,
                "the orchestrator set its custom status to something false ('', 0, [], {}, None); the SDK drops it "
                "and the old status stays: set a value that is true",
            )

    def _note_gate(self) -> None:
        for task_id, task in self.book.gate_open():
            if task.kind == "timer":
                self._notice(
                    Code.WAITS_FOR_TIMER,
                    f"the orchestrator has ended but its timer {task_id} is not cancelled: the instance stays Running "
                    f"until {clock.to_seconds_text(task.due)}; call .cancel() on a timer that lost a race",
                    str(task_id),
                )
            else:
                target = self.book.signatures[task.action].partition(":")[2]
                self._notice(
                    Code.WAITS_FOR_TASK,
                    f"the orchestrator has ended; the instance stays Running until '{target}' (task {task_id}) is done",
                    str(task_id),
                )

    def _unknown(self, what: str, name: str, known: frozenset[str]) -> str:
        return f"The function '{name}' doesn't exist or is not {what} of this app; choose one of {sorted(known)}"

    def _measure(self, what: str, text: str | None) -> None:
        if notice := size_notice(self.execution.instance_id, what, text):
            self.outcome.notices.append(notice)

    def _notice(self, code: Code, message: str, subject: str = "") -> None:
        self.outcome.notices.append(Notice(code, self.execution.instance_id, message, subject))
