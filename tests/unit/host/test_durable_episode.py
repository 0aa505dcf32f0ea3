"""The laws of an episode: order, grouping and repetition of what arrives do not change what comes out."""

import json
from collections.abc import Generator
from datetime import timedelta
from pathlib import Path
from typing import Any

import azure.durable_functions as df
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropforge.host.durable import messages
from dropforge.host.durable.messages import EventType, Parent
from dropforge.host.durable.notices import Code
from dropforge.host.durable.settings import DurableSettings
from tests.unit.host.durable_driver import AT, Driver
from tests.unit.host.durable_world import SDK_WARNINGS, Flows, invoker

pytestmark = SDK_WARNINGS

_EXPECTED = {
    "fan_out": ({"count": 6}, 55),
    "chain": ({"n": 3}, 6561),
    "entities": ({"key": "k"}, {"total": 42, "crash": "entity crash"}),
    "parallel_retries": (
        {"key": "p"},
        {
            "first": True,
            "after": "hello after",
            "everything": ["p-0", "p-1", "p-2", "hello p0", "hello p1", "hello p2"],
        },
    ),
}


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(_EXPECTED)),
    choices=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=40),
    cold=st.booleans(),
)
def test_any_order_and_grouping_of_deliveries_gives_the_same_output(
    name: str, choices: list[tuple[int, int]], cold: bool
) -> None:
    value, wanted = _EXPECTED[name]
    left = iter(choices)
    assert Driver(invoker(), name, value).run(lambda count: next(left, (0, 1)), cold=cold) == wanted


@settings(max_examples=25)
@given(repeats=st.lists(st.integers(0, 20), max_size=12), name=st.sampled_from(sorted(_EXPECTED)))
def test_a_message_that_comes_twice_counts_once(repeats: list[int], name: str) -> None:
    value, wanted = _EXPECTED[name]
    driver, seen = Driver(invoker(), name, value), []
    left = iter(repeats)

    def choose(count: int) -> tuple[int, int]:
        seen.extend(driver.pool)
        driver.inbox.extend(seen[place % len(seen)] for place in [next(left, None)] if place is not None)
        return 0, 1

    assert driver.run(choose) == wanted
    ids = [event_id for _, event_id, _ in driver.scheduled()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", sorted(_EXPECTED))
def test_a_finished_execution_replays_to_the_same_bookkeeping_from_every_prefix(name: str) -> None:
    value, _ = _EXPECTED[name]
    warm, cold = Driver(invoker(), name, value), Driver(invoker(), name, value)
    warm.run()
    invoker()
    cold.run(cold=True)
    assert warm.execution.history == cold.execution.history
    assert warm.execution.book == cold.execution.book


def test_gathering_many_results_takes_few_episodes_and_the_same_history_of_orders() -> None:
    functions = invoker()
    together, alone = Driver(functions, "fan_out", {"count": 50}), Driver(functions, "fan_out", {"count": 50})
    assert together.run(lambda count: (0, count)) == alone.run()
    assert together.scheduled()[:-1] == alone.scheduled()[:-1]
    assert (len(together.outcomes), len(alone.outcomes)) == (2, 51)


def test_ids_are_one_counter_over_tasks_timers_retries_and_entities() -> None:
    driver = Driver(invoker(), "retries", {"key": "ids", "times": 2})
    driver.run()
    kinds = [(kind, event_id) for kind, event_id, _ in driver.scheduled()]
    task, timer = EventType.TASK_SCHEDULED, EventType.TIMER_CREATED
    assert kinds[:-1] == [(task, 0), (timer, 1), (task, 2), (timer, 3), (task, 4)]


def test_an_orchestrator_that_changed_fails_with_what_was_recorded_and_what_it_asks_for_now() -> None:
    def before(context: df.DurableOrchestrationContext) -> Generator[Any, Any, Any]:
        yield context.call_activity("a", 1)
        yield context.call_activity("b", 1)

    def after(context: df.DurableOrchestrationContext) -> Generator[Any, Any, Any]:
        yield context.call_activity("renamed", 1)
        yield context.call_activity("b", 1)

    driver = Driver(Flows(flow=before), "flow", None)  # type: ignore[arg-type]
    driver.episodes()
    driver.functions = Flows(flow=after)  # type: ignore[assignment]
    driver.inbox.append(driver.pool.pop())
    driver.episodes()
    final = driver.outcomes[-1].finished
    assert final is not None
    assert final.status == "Failed"
    assert "Non-Deterministic workflow detected" in (final.output or "")
    assert "scheduled an activity 'a' with sequence ID 0" in (final.output or "")
    assert "asks for an activity 'renamed' in its place" in (final.output or "")


@pytest.mark.parametrize("shape", ["fewer", "timer"])
def test_an_orchestrator_that_asks_for_less_or_for_another_kind_fails(shape: str) -> None:
    def before(context: df.DurableOrchestrationContext) -> Generator[Any, Any, Any]:
        yield context.task_all([context.call_activity("a", 1), context.call_activity("b", 1)])

    def fewer(context: df.DurableOrchestrationContext) -> Generator[Any, Any, Any]:
        yield context.task_all([context.call_activity("a", 1)])

    def timer(context: df.DurableOrchestrationContext) -> Generator[Any, Any, Any]:
        yield context.task_all([context.create_timer(context.current_utc_datetime), context.call_activity("b", 1)])

    driver = Driver(Flows(flow=before), "flow", None)  # type: ignore[arg-type]
    driver.episodes()
    driver.functions = Flows(flow={"fewer": fewer, "timer": timer}[shape])  # type: ignore[assignment]
    driver.inbox.append(driver.pool.pop())
    driver.episodes()
    assert driver.outcomes[-1].notices[-1].code is Code.NON_DETERMINISTIC


def test_one_completion_per_episode_while_a_retry_is_open_and_one_event_at_a_time() -> None:
    def flow(context: df.DurableOrchestrationContext) -> Generator[Any, Any, Any]:
        yield context.task_all(
            [context.call_activity_with_retry("a", df.RetryOptions(5, 2), 1), context.call_activity("b", 1)]
        )

    driver = Driver(Flows(flow=flow), "flow", None)  # type: ignore[arg-type]
    driver.episodes()
    driver.inbox = [driver.pool.pop(), driver.pool.pop()]
    driver.episodes()
    assert len(driver.outcomes) == 3  # the start, and one for each completion


def test_the_sdk_gets_a_context_as_the_extension_sends_it() -> None:
    seen: list[dict[str, Any]] = []

    class Watching(Flows):
        def orchestrate(self, name: str, context_json: str) -> str:
            seen.append(json.loads(context_json))
            return super().orchestrate(name, context_json)

    def flow(context: df.DurableOrchestrationContext) -> Generator[Any, Any, Any]:
        yield context.call_activity("a", 1)

    driver = Driver(Watching(flow=flow), "flow", {"x": 1})  # type: ignore[arg-type]
    driver.execution.parent = Parent("father", "f" * 32, 3)
    driver.run()
    first, second = seen
    assert [event["EventType"] for event in first["history"]] == [12, 0]
    assert [event["EventType"] for event in second["history"]] == [12, 0, 4, 13, 12, 5]
    assert (first["isReplaying"], second["isReplaying"]) == (False, True)
    assert first["input"] == '{"x": 1}'
    assert first["parentInstanceId"] == "father"
    assert (first["upperSchemaVersion"], first["upperSchemaVersionNew"]) == (1, 2)
    assert first["history"][0]["Timestamp"] == "2027-01-15T08:00:01.0000000Z"
    assert first["history"][1]["Version"] == ""


def test_time_never_goes_back_within_an_instance() -> None:
    driver = Driver(invoker(), "clocks", None)
    driver.episodes()
    driver.at = AT - 3_600_000_000
    driver.inbox.append(driver.pool.pop())
    driver.episodes()
    assert driver.execution.book.at == AT + 1_000_000


def test_replayed_code_sees_the_same_uuids_and_times() -> None:
    once, again = Driver(invoker(), "clocks", None), Driver(invoker(), "clocks", None)
    assert once.run() == again.run(cold=True)


def test_too_many_actions_fail_the_instance() -> None:
    driver = Driver(invoker(), "fan_out", {"count": 6})
    driver.settings = DurableSettings(max_actions=5)
    driver.episodes()
    assert "more than 5 actions" in (driver.outcomes[-1].finished or messages.Message).output  # type: ignore[union-attr]


def test_a_message_of_another_execution_is_ignored() -> None:
    driver = Driver(invoker(), "chain", {"n": 2})
    driver.episodes()
    stale = messages.activity_completed(AT, "another execution", 0, "1")
    driver.inbox.append(stale)
    before = len(driver.outcomes)
    driver.episodes()
    assert len(driver.outcomes) == before
    assert driver.run() == 256


def test_a_fired_timer_does_not_complete_an_activity_of_the_same_number() -> None:
    driver = Driver(invoker(), "chain", {"n": 2})
    driver.episodes()
    driver.inbox.append(messages.timer_fired(AT, driver.execution.execution_id, 0, AT))
    driver.episodes()
    assert len(driver.outcomes) == 1


def test_a_long_timer_is_cut_into_slices_on_azure_storage_only() -> None:
    def flow(context: df.DurableOrchestrationContext) -> Generator[Any, Any, Any]:
        yield context.create_timer(context.current_utc_datetime + timedelta(days=10))
        return "woken"

    sliced = Driver(Flows(flow=flow), "flow", None)  # type: ignore[arg-type]
    whole = Driver(Flows(flow=flow), "flow", None)  # type: ignore[arg-type]
    whole.settings = DurableSettings(slice_long_timers=False)
    assert (sliced.run(), whole.run()) == ("woken", "woken")
    timers = [[e for e in driver.scheduled() if e[0] == EventType.TIMER_CREATED] for driver in (sliced, whole)]
    assert [len(found) for found in timers] == [3, 1]
    assert sliced.at - AT >= 10 * 86_400_000_000


def test_an_event_between_the_end_and_the_next_execution_is_carried_over() -> None:
    def flow(context: df.DurableOrchestrationContext) -> Generator[Any, Any, Any]:
        wait, slow = context.wait_for_external_event("E"), context.call_activity("a", 1)
        winner = yield context.task_any([wait, slow, context.call_activity("b", 1)])
        if winner is not wait and context.get_input() == 0:
            context.continue_as_new(1)
            return None
        return (yield context.wait_for_external_event("E")) if winner is not wait else wait.result

    driver = Driver(Flows(flow=flow), "flow", 0)  # type: ignore[arg-type]
    driver.episodes()
    driver.inbox.append(driver.pool.pop())  # b is done: continues as new, once a is done as well
    driver.episodes()
    driver.inbox += [messages.event_raised(AT, "E", '"kept"'), driver.pool.pop()]
    driver.episodes()
    carried = driver.outcomes[-1].carried
    assert carried is not None
    assert [message.kind for message in carried] == [messages.Kind.START, messages.Kind.EVENT]


def _golden() -> list[dict[str, Any]]:
    return list(json.loads(Path(__file__).with_name("durable_golden.json").read_text()))


@pytest.mark.parametrize("case", _golden(), ids=[case["orchestrator"] for case in _golden()])
def test_histories_are_written_as_before(case: dict[str, Any]) -> None:
    """Derived from the published rules of DurableTask.Core, checked by hand; not recorded on a .NET host.

    A change here means that instances in flight may not survive an upgrade of the engine.
    """
    driver = Driver(invoker(), case["orchestrator"], case["input"])
    driver.to_the_end()
    assert [json.loads(f"[{events}]") for events in driver.execution.history] == case["history"]
