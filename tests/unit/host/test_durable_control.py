"""What a client may do to instances, and what it is refused."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import azure.durable_functions as df
import pytest

from dropforge.host.durable.engine import DurableEngine
from dropforge.host.durable.errors import (
    BadInstanceId,
    BadPayload,
    BadQuery,
    InstanceExists,
    InstanceFinished,
    InstanceNotFound,
    NotRewindable,
    UnknownOrchestrator,
)
from dropforge.host.durable.ids import id_problem
from dropforge.host.durable.queries import Query
from dropforge.host.durable.settings import DurableSettings
from tests.e2e.apps.kitchen_sink import function_app
from tests.unit.host.durable_world import SDK_WARNINGS, Flows, client_input, in_engine, output, run, said, until

pytestmark = SDK_WARNINGS


async def _waiting(engine: DurableEngine, instance_id: str = "one") -> None:
    await engine.start_new("race", client_input({"seconds": 3600}), instance_id)
    await until(engine, instance_id, lambda status: status.runtime_status == "Running")


# -- ids --------------------------------------------------------------------------------------------------------------
def test_of_fifty_starts_with_one_id_one_wins(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        starts = (engine.start_new("race", client_input({"seconds": 3600}), "one") for _ in range(50))
        results = await asyncio.gather(*starts, return_exceptions=True)
        assert [result for result in results if isinstance(result, str)] == ["one"]
        assert sum(isinstance(result, InstanceExists) for result in results) == 49

    in_engine(tmp_path, test)


@pytest.mark.parametrize("state", ["Pending", "Running", "Suspended"])
def test_a_second_start_with_a_live_id_is_refused(tmp_path: Path, state: str) -> None:
    async def test(engine: DurableEngine) -> None:
        await _waiting(engine)
        if state == "Suspended":
            await engine.suspend("one", "")
        with pytest.raises(InstanceExists, match="already exists"):
            await engine.start_new("chain", None, "one")

    in_engine(tmp_path, test)


def test_a_finished_instance_is_replaced_by_a_start_with_its_id(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await run(engine, "failing", None, "one")
        assert await output(engine, "chain", {"n": 2}, "one") == 256
        assert len((await engine.statuses(Query()))[0]) == 1

    in_engine(tmp_path, test)


def test_a_live_instance_is_replaced_when_the_settings_say_so(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await _waiting(engine)
        assert await output(engine, "chain", {"n": 2}, "one") == 256

    in_engine(tmp_path, test, settings=DurableSettings(replace_any_state=True))


@pytest.mark.parametrize("bad", ["", "@x", "a/b", "a\\b", "a#b", "a?b", "a\nb", "x" * 257])
def test_ids_that_azure_refuses_are_refused(tmp_path: Path, bad: str) -> None:
    async def test(engine: DurableEngine) -> None:
        with pytest.raises(BadInstanceId):
            await engine.start_new("chain", None, bad)

    in_engine(tmp_path, test)


@pytest.mark.parametrize("good", ["a", "x" * 256, "a:b@c", "späť", "a b"])
def test_ids_that_azure_takes_are_taken(good: str) -> None:
    assert id_problem(good) == ""


def test_an_unknown_orchestrator_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        with pytest.raises(UnknownOrchestrator, match=r"'nobody' is not an orchestrator of this app; choose one of \["):
            await engine.start_new("nobody")

    in_engine(tmp_path, test)


@pytest.mark.parametrize("text", ["{", "NaN", '{"a": Infinity}', "'x'"])
def test_an_input_that_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    async def test(engine: DurableEngine) -> None:
        with pytest.raises(BadPayload, match="the input must be JSON"):
            await engine.start_new("chain", text)

    in_engine(tmp_path, test)


# -- terminate, suspend, resume ---------------------------------------------------------------------------------------
def test_terminate_ends_an_instance_at_once_with_its_reason(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await _waiting(engine)
        await engine.terminate("one", "no longer needed")
        status = await engine.wait("one")
        assert status is not None
        assert (status.runtime_status, status.output) == ("Terminated", '"no longer needed"')

    in_engine(tmp_path, test)


def test_terminate_leaves_sub_orchestrations_running_and_says_so(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await engine.start_new("parent_of", client_input({"name": "waiting_child", "id": "kid"}), "one")
        await until(engine, "kid", lambda status: status.runtime_status == "Running")
        await engine.terminate("one", "")
        kid = await engine.status("kid")
        assert kid is not None
        assert kid.runtime_status == "Running"
        assert "['waiting_child']" in said(engine, "children-left")[0]

    in_engine(tmp_path, test)


def test_a_parent_learns_that_its_sub_orchestration_was_terminated(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await engine.start_new("parent_of", client_input({"name": "waiting_child", "id": "kid"}), "one")
        await until(engine, "kid", lambda status: status.runtime_status == "Running")
        await engine.terminate("kid", "enough")
        status = await engine.wait("one")
        assert status is not None
        assert status.runtime_status == "Failed"
        assert "enough" in (status.output or "")

    in_engine(tmp_path, test)


def test_a_sub_orchestration_with_a_live_id_fails_the_call(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await _waiting(engine, "kid")
        status = await run(engine, "parent_of", {"name": "waiting_child", "id": "kid"})
        assert "already exists" in (status.output or "")

    in_engine(tmp_path, test)


def test_a_suspended_instance_hears_everything_when_it_is_resumed(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await _waiting(engine)
        await engine.suspend("one", "hold")
        await engine.suspend("one", "hold again")
        await engine.raise_event("one", "Approval", '{"by":"ann"}')
        await asyncio.sleep(0.05)
        status = await engine.status("one")
        assert status is not None
        assert status.runtime_status == "Suspended"
        await engine.resume("one", "go")
        done = await engine.wait("one")
        assert done is not None
        assert json.loads(done.output or "") == {"by": "ann"}
        history = (await engine.status("one", history=True)).history or []  # type: ignore[union-attr]
        assert [event["EventType"] for event in history].count("ExecutionSuspended") == 1

    in_engine(tmp_path, test)


_Verb = Callable[[DurableEngine, str], Awaitable[object]]
VERBS: dict[str, _Verb] = {
    "terminate": lambda engine, one: engine.terminate(one, ""),
    "suspend": lambda engine, one: engine.suspend(one, ""),
    "resume": lambda engine, one: engine.resume(one, ""),
    "raise_event": lambda engine, one: engine.raise_event(one, "E", "1"),
    "rewind": lambda engine, one: engine.rewind(one, ""),
    "restart": lambda engine, one: engine.restart(one),
}


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_nothing_can_be_done_to_an_unknown_instance(tmp_path: Path, verb: str) -> None:
    async def test(engine: DurableEngine) -> None:
        with pytest.raises(InstanceNotFound):
            await VERBS[verb](engine, "nobody")

    in_engine(tmp_path, test)


@pytest.mark.parametrize("verb", ["terminate", "suspend", "resume", "raise_event"])
def test_a_finished_instance_is_gone(tmp_path: Path, verb: str) -> None:
    async def test(engine: DurableEngine) -> None:
        await run(engine, "chain", {"n": 1}, "one")
        with pytest.raises(InstanceFinished):
            await VERBS[verb](engine, "one")

    in_engine(tmp_path, test)


# -- rewind -----------------------------------------------------------------------------------------------------------
def test_rewind_runs_the_failed_activity_again_and_nothing_else(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        assert (await run(engine, "fan_out_flaky", {"key": "w", "times": 1}, "one")).runtime_status == "Failed"
        function_app.CALLS.clear()
        await engine.rewind("one", "try again")
        status = await engine.wait("one")
        assert status is not None
        assert json.loads(status.output or "") == ["hello a", "w", "hello b", "hello last"]
        assert function_app.CALLS == [("flaky", "w"), ("hello", "last")]

    in_engine(tmp_path, test)


def test_rewind_may_fail_again_and_be_repeated(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await run(engine, "fan_out_flaky", {"key": "w", "times": 3}, "one")
        for wanted in ("Failed", "Failed", "Completed"):
            await engine.rewind("one", "try again")
            status = await engine.wait("one")
            assert status is not None
            assert status.runtime_status == wanted

    in_engine(tmp_path, test)


def test_rewind_gives_an_exhausted_retry_another_attempt(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await run(engine, "retries", {"key": "w", "times": 3, "attempts": 3}, "one")
        await engine.rewind("one", "try again")
        status = await engine.wait("one")
        assert status is not None
        assert status.output == '{"result": "w"}'

    in_engine(tmp_path, test)


def test_rewind_reaches_down_to_the_sub_orchestration_that_failed(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        value = {"name": "failing_child", "id": "kid", "input": {"key": "w", "times": 1}}
        await run(engine, "parent_of", value, "one")
        await engine.rewind("one", "try again")
        status = await engine.wait("one")
        assert status is not None
        assert (status.runtime_status, status.output) == ("Completed", '"child is fine"')
        assert function_app.CALLS == [("flaky", "w"), ("flaky", "w")]

    in_engine(tmp_path, test)


def test_rewind_of_a_failure_in_the_first_episode_starts_from_the_beginning(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        assert (await run(engine, "calls_nobody", None, "one")).runtime_status == "Failed"
        await engine.rewind("one", "try again")
        status = await engine.wait("one")
        assert status is not None
        assert "no_such_activity" in (status.output or "")

    in_engine(tmp_path, test)


def _compensating(context: df.DurableOrchestrationContext) -> Generator[Any, Any, Any]:
    first = yield context.call_activity("a", 1)
    try:
        second = yield context.call_activity("b", 2)
    except Exception:
        yield context.call_activity("renamed", "undo")
        raise
    third = yield context.call_activity("a", 3)
    return [first, second, third]


def test_rewind_goes_back_to_before_a_failure_that_was_compensated(tmp_path: Path) -> None:
    functions = Flows(flow=_compensating)
    functions.failing.add("b")

    async def test(engine: DurableEngine) -> None:
        assert (await run(engine, "flow", None, "one")).runtime_status == "Failed"
        functions.failing.clear()
        functions.ran.clear()
        await engine.rewind("one")
        status = await engine.wait("one")
        assert status is not None
        assert json.loads(status.output or "") == ["a(1)", "b(2)", "a(3)"]
        assert functions.ran == ["b", "a"]

    in_engine(tmp_path, test, functions=functions)


def test_rewind_after_a_repaired_bug_goes_on_with_the_repaired_code(tmp_path: Path) -> None:
    def broken(context: df.DurableOrchestrationContext) -> Generator[Any, Any, Any]:
        yield context.call_activity("a", 1)
        raise ValueError("a bug")

    def repaired(context: df.DurableOrchestrationContext) -> Generator[Any, Any, Any]:
        first = yield context.call_activity("a", 1)
        second = yield context.call_activity("b", 2)
        return [first, second]

    functions = Flows(flow=broken)

    async def test(engine: DurableEngine) -> None:
        assert "a bug" in ((await run(engine, "flow", None, "one")).output or "")
        functions.flows["flow"] = repaired
        await engine.rewind("one")
        status = await engine.wait("one")
        assert status is not None
        assert json.loads(status.output or "") == ["a(1)", "b(2)"]
        assert functions.ran == ["a", "b"]

    in_engine(tmp_path, test, functions=functions)


def test_rewind_refuses_code_that_does_not_fit_the_history(tmp_path: Path) -> None:
    def other(context: df.DurableOrchestrationContext) -> Generator[Any, Any, Any]:
        yield context.call_activity("renamed", 1)

    functions = Flows(flow=_compensating)
    functions.failing.add("b")

    async def test(engine: DurableEngine) -> None:
        await run(engine, "flow", None, "one")
        functions.flows["flow"] = other
        with pytest.raises(NotRewindable, match="does not fit the orchestrator any more"):
            await engine.rewind("one")

    in_engine(tmp_path, test, functions=functions)


def test_only_a_failed_instance_can_be_rewound(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await run(engine, "chain", {"n": 1}, "one")
        with pytest.raises(NotRewindable, match="it is Completed"):
            await engine.rewind("one", "")

    in_engine(tmp_path, test)


# -- restart, purge, queries ------------------------------------------------------------------------------------------
def test_restart_runs_the_same_input_under_a_new_id(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await run(engine, "chain", {"n": 2}, "one")
        status = await engine.wait(await engine.restart("one"))
        assert status is not None
        assert (status.instance_id != "one", status.output) == (True, "256")

    in_engine(tmp_path, test)


def test_restart_under_the_same_id_needs_a_finished_instance(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await run(engine, "chain", {"n": 2}, "one")
        assert await engine.restart("one", with_new_id=False) == "one"
        await engine.wait("one")
        await _waiting(engine, "two")
        with pytest.raises(InstanceExists):
            await engine.restart("two", with_new_id=False)

    in_engine(tmp_path, test)


def test_purge_forgets_finished_instances_only(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await run(engine, "chain", {"n": 2}, "done")
        await _waiting(engine, "live")
        assert [await engine.purge(one) for one in ("done", "live", "nobody")] == [1, 0, 0]
        assert [await engine.status(one) is None for one in ("done", "live")] == [True, False]
        assert said(engine, "not-purged")

    in_engine(tmp_path, test)


def test_purge_many_takes_a_time_and_states(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await run(engine, "chain", {"n": 2}, "done")
        await run(engine, "failing", None, "failed")
        await _waiting(engine, "live")
        assert await engine.purge_many(2**60) == 0
        with pytest.raises(BadQuery, match="unknown runtime status 'Odd'; choose from"):
            await engine.purge_many(0, statuses=("Failed", "Odd"))
        assert await engine.purge_many(0, statuses=("failed", "RUNNING")) == 1
        assert await engine.purge_many(0) == 1
        assert [each.instance_id for each in (await engine.statuses(Query()))[0]] == ["live"]

    in_engine(tmp_path, test)


def test_queries_filter_and_page(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        for number in range(5):
            await run(engine, "without_yield", number, f"a{number}")
        await run(engine, "failing", None, "b")
        found, token = await engine.statuses(Query(prefix="a", top=2))
        rest, end = await engine.statuses(Query(prefix="a", top=10, token=token))
        assert [each.instance_id for each in found + rest] == ["a0", "a1", "a2", "a3", "a4"]
        assert (bool(token), end) == (True, "")
        failed, _ = await engine.statuses(Query(statuses=("failed",)))
        assert [each.instance_id for each in failed] == ["b"]
        assert (await engine.statuses(Query(since=failed[0].created_at, until=failed[0].created_at)))[0] == failed
        for bad in (Query(statuses=("Odd",)), Query(token="x")):
            with pytest.raises(BadQuery):
                await engine.statuses(bad)

    in_engine(tmp_path, test)
