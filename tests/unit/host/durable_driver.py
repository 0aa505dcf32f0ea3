"""Drives one execution without engine, threads or database, so that a test decides what arrives when."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

from dropforge.host.durable import book as books
from dropforge.host.durable import messages
from dropforge.host.durable.entities import run_batch
from dropforge.host.durable.episode import batch, run_episode
from dropforge.host.durable.execution import Execution, Outcome
from dropforge.host.durable.messages import Message
from dropforge.host.durable.settings import DurableSettings
from tests.unit.host.durable_world import SdkInvoker, client_input

AT = 1_800_000_000_000_000  # microseconds: some time in 2027


class Driver:
    """`pool` holds what will happen some time; `deliver` moves a part of it into the inbox and runs episodes."""

    def __init__(self, functions: SdkInvoker, name: str, value: Any, execution_id: str = "e" * 32) -> None:
        self.functions = functions
        self.settings = DurableSettings(max_concurrent_activities=1)
        self.execution = Execution("one", execution_id, name, "", client_input(value), None)
        self.pool: list[Message] = []
        self.inbox = [messages.started(AT, name, "", self.execution.input, "one", execution_id, None)]
        self.outcomes: list[Outcome] = []
        self.at = AT
        self._due: dict[int, int] = {}  # by message: time does not stand still until a timer fires
        self._entities: dict[str, tuple[bool, str | None]] = {}

    @property
    def finished(self) -> bool:
        return bool(self.outcomes) and self.outcomes[-1].finished is not None

    @property
    def output(self) -> Any:
        final = self.outcomes[-1].finished
        assert final is not None
        assert final.status == "Completed", final
        return None if final.output is None else json.loads(final.output)

    def run(self, choose: Callable[[int], tuple[int, int]] = lambda count: (0, 1), *, cold: bool = False) -> Any:
        """To the end, which must be a completion; returns the output."""
        self.to_the_end(choose, cold=cold)
        return self.output

    def to_the_end(
        self, choose: Callable[[int], tuple[int, int]] = lambda count: (0, 1), *, cold: bool = False
    ) -> None:
        """To any end. `choose(n)` says which of n pending messages comes next, and how many come together."""
        while not self.finished:
            self.episodes(cold=cold)
            if self.finished:
                break
            assert self.pool, "stuck: nothing is open"
            place, count = choose(len(self.pool))
            for _ in range(min(count, len(self.pool))):
                message = self.pool.pop(place % len(self.pool))
                self.at = max(self.at, self._due.get(id(message), 0))
                self.inbox.append(message)

    def episodes(self, *, cold: bool = False) -> None:
        while self.inbox and not self.finished:
            taken = batch(self.execution.book, self.inbox)
            if cold:
                self._reload()
            del self.inbox[: len(taken)]
            self.at += 1_000_000
            outcome = run_episode(self.execution, taken, self.at, self.functions, self.settings)
            if outcome is not None:
                self.outcomes.append(outcome)
                self.pool.extend(self._consequences(outcome))

    def _reload(self) -> None:
        """As after a restart: everything from its stored form."""
        old = self.execution
        self.execution = Execution(
            old.instance_id, old.execution_id, old.name, old.version, old.input, old.parent, list(old.history)
        )
        self.execution.book = books.decode(books.encode(old.book))

    def _consequences(self, outcome: Outcome) -> Iterator[Message]:
        execution_id = self.execution.execution_id
        for order in outcome.activities:
            try:
                result = asyncio.run(
                    self.functions.act(order.name, order.input, instance_id="one", task_id=order.task_id)
                )
            except Exception as error:  # noqa: BLE001 - as the engine does
                reason = f"Activity function '{order.name}' failed: {type(error).__name__}: {error}"
                yield messages.activity_failed(self.at, execution_id, order.task_id, reason, "{}")
            else:
                yield messages.activity_completed(self.at, execution_id, order.task_id, result)
        for task_id, due in outcome.timers:
            fired = messages.timer_fired(max(self.at, due), execution_id, task_id, due)
            self._due[id(fired)] = due
            yield fired
        for operation in outcome.operations:
            exists, state = self._entities.get(operation.entity_id, (False, None))
            queued = [Message(messages.Kind.OPERATION, operation.text)]
            done = run_batch(operation.entity_id, exists, state, queued, self.at, self.functions)
            self._entities[operation.entity_id] = (done.exists, done.state)
            yield from (reply for _, reply in done.replies)

    def scheduled(self) -> list[tuple[int, int, str]]:
        """(type, id, name) of everything that took an id."""
        events = [event for text in self.execution.history for event in json.loads(f"[{text}]")]
        return [(e["EventType"], e["EventId"], e.get("Name", "")) for e in events if e["EventId"] >= 0]
