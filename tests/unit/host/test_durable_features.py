"""Every feature of the Durable SDK, through the real SDK and a real database."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from dropforge.host.durable.engine import DurableEngine
from dropforge.host.durable.settings import DurableSettings
from tests.e2e.apps.kitchen_sink import function_app
from tests.unit.host.durable_world import SDK_WARNINGS, client_input, in_engine, invoker, output, run, said, until

pytestmark = SDK_WARNINGS

OUTPUTS = [
    ("chain", {"n": 2}, 256),
    ("fan_out", {"count": 60}, sum(n * n for n in range(60))),
    ("retries", {"key": "r", "times": 2}, {"result": "r"}),
    (
        "parallel_retries",
        {"key": "p"},
        {
            "first": True,
            "after": "hello after",
            "everything": ["p-0", "p-1", "p-2", "hello p0", "hello p1", "hello p2"],
        },
    ),
    ("race", {"seconds": 0.02}, "too late"),
    ("parents", None, [9, 16, True]),
    ("parent_retries", {"key": "c", "times": 2}, "child is fine"),
    ("parent_of", {"name": "chain", "input": {"n": 3}}, 6561),
    ("entities", {"key": "e"}, {"total": 42, "crash": "entity crash"}),
    ("eternal", {"n": 0, "until": 5}, {"stopped_at": 5}),
    ("without_yield", {"a": 1}, {"input": {"a": 1}}),
    ("renamed_orchestrator", 7, ["renamed", 7]),
]


@pytest.mark.parametrize(("name", "value", "wanted"), OUTPUTS, ids=[f"{case[0]}-{n}" for n, case in enumerate(OUTPUTS)])
def test_an_orchestrator_gives_its_output(tmp_path: Path, name: str, value: Any, wanted: Any) -> None:
    async def test(engine: DurableEngine) -> None:
        assert await output(engine, name, value) == wanted

    in_engine(tmp_path, test)


FAILURES = [
    ("failing", None, "Activity function 'fails' failed: ValueError: bad value 'zzz'"),
    ("retries", {"key": "x", "times": 99}, "RuntimeError: failure 3 of x"),
    ("parent_of", {"name": "failing"}, "Orchestrator function 'failing' failed"),
    ("parent_of", {"name": "nobody"}, "'nobody' doesn't exist or is not an orchestrator of this app; choose one of"),
    ("parent_of", {"name": "chain", "id": "a/b"}, "must not contain"),
    ("yields_number", None, "yielded something that is not a durable task"),
    ("returns_nan", None, "not valid JSON"),
    ("calls_nobody", None, "'no_such_activity' doesn't exist or is not an activity of this app; choose one of"),
    ("calls", {"name": "quits", "input": 1}, "SystemExit: asked to go: 1"),
]


@pytest.mark.parametrize(("name", "value", "words"), FAILURES, ids=[f"{c[0]}-{n}" for n, c in enumerate(FAILURES)])
def test_a_failure_names_its_cause(tmp_path: Path, name: str, value: Any, words: str) -> None:
    async def test(engine: DurableEngine) -> None:
        status = await run(engine, name, value)
        assert status.runtime_status == "Failed"
        assert words in json.loads(status.output or '""')

    in_engine(tmp_path, test)


def test_a_caught_failure_carries_reason_and_details(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        caught = (await output(engine, "catches"))["caught"]
        reason, details = caught.split(" \n ")
        assert reason == "Activity function 'fails' failed: ValueError: bad value 1"
        assert json.loads(details)["Message"] == "ValueError: bad value 1"

    in_engine(tmp_path, test)


def test_a_retry_runs_as_often_as_it_may_and_no_more(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await run(engine, "retries", {"key": "x", "times": 99, "attempts": 4}, "r")
        assert function_app.CALLS == [("flaky", "x")] * 4
        status = await engine.status("r", history=True)
        assert status is not None
        timers = [event for event in status.history or [] if event["EventType"] == "TimerFired"]
        assert len(timers) == 4  # three pauses, and the one without length after the last failure

    in_engine(tmp_path, test)


def test_a_timer_fires_when_due_and_not_before(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        assert 0.15 <= await output(engine, "timer", {"milliseconds": 150}) < 10

    in_engine(tmp_path, test)


def test_an_event_wins_a_race_and_the_cancelled_timer_is_forgotten(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        started = await engine.start_new("race", client_input({"seconds": 3600}))
        await engine.raise_event(started, "Approval", json.dumps(json.dumps({"by": "ann"})))
        status = await engine.wait(started)
        assert status is not None
        assert json.loads(status.output or "") == {"by": "ann"}
        assert engine.warnings == []

    in_engine(tmp_path, test)


def test_an_uncancelled_timer_keeps_a_finished_orchestrator_running_and_says_so(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        started = await engine.start_new("race", client_input({"seconds": 0.4, "cancel": False}))
        await engine.raise_event(started, "Approval", '{"by":"bob"}')
        await until(engine, started, lambda status: bool(said(engine, "waits-for-timer")))
        status = await engine.status(started)
        assert status is not None
        assert status.runtime_status == "Running"
        done = await engine.wait(started)
        assert done is not None
        assert json.loads(done.output or "") == {"by": "bob"}
        assert done.updated_at - done.created_at >= 400_000

    in_engine(tmp_path, test)


def test_events_that_come_before_their_wait_are_kept(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        started = await engine.start_new("two_events")
        await engine.raise_event(started, "Second", "2")
        await engine.raise_event(started, "First", "1")
        status = await engine.wait(started)
        assert status is not None
        assert json.loads(status.output or "") == [1, 2]

    in_engine(tmp_path, test)


def test_one_early_event_for_two_waits_leaves_the_instance_running_with_a_warning(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        started = await engine.start_new("same_event_twice")
        await engine.raise_event(started, "Tick", "1")
        await until(engine, started, lambda status: bool(said(engine, "event-reused")))
        assert function_app.CALLS == []  # the activity behind the second wait is not started
        await engine.raise_event(started, "Tick", "2")
        status = await engine.wait(started)
        assert status is not None
        assert status.runtime_status == "Completed"

    in_engine(tmp_path, test)


def test_an_event_in_another_case_is_warned_about(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        started = await engine.start_new("race", client_input({"seconds": 3600}))
        await until(engine, started, lambda status: status.runtime_status == "Running")
        await engine.raise_event(started, "approval", "1")
        await until(engine, started, lambda status: bool(said(engine, "event-name-case")))
        assert "'approval' was raised but the orchestrator waits for 'Approval'" in said(engine, "event-name-case")[0]

    in_engine(tmp_path, test)


def test_continue_as_new_keeps_events_that_came_in_between(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        started = await engine.start_new("collector", client_input({"left": 4, "total": 0}))
        await until(engine, started, lambda status: status.runtime_status == "Running")
        await engine.suspend(started, "so that all of them are there when the first is heard")
        for number in (1, 2, 3, 4):
            await engine.raise_event(started, "Number", str(number))
        await engine.resume(started, "")
        status = await engine.wait(started)
        assert status is not None
        assert status.output == "10"

    in_engine(tmp_path, test)


def test_an_eternal_orchestration_does_not_grow_the_database(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        assert await output(engine, "eternal", {"n": 0, "until": 60}, "forever") == {"stopped_at": 60}
        status = await engine.status("forever", history=True)
        assert status is not None
        assert len(status.history or []) == 3  # of the last execution only: started, one activity, completed

    in_engine(tmp_path, test)


def test_a_dropped_custom_status_is_warned_about_and_the_old_one_stays(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        status = await run(engine, "statuses")
        assert json.loads(status.custom_status or "") == {"phase": "one"}
        assert len(said(engine, "status-dropped")) == 1

    in_engine(tmp_path, test)


def test_an_orchestrator_that_waits_for_nothing_is_warned_about(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        started = await engine.start_new("yields_none")
        await until(engine, started, lambda status: bool(said(engine, "nothing-open")))

    in_engine(tmp_path, test)


def test_a_large_payload_is_warned_about(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await output(engine, "calls", {"name": "hello", "input": "x" * 2_000_000})
        assert any("refuses more than 1,048,576" in message for message in said(engine, "too-large"))

    in_engine(tmp_path, test)


def test_an_event_for_nobody_is_refused_and_warned_about(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        with pytest.raises(Exception, match="No instance with id 'nobody' found"):
            await engine.raise_event("nobody", "Approval", "1")
        assert said(engine, "event-unheard")

    in_engine(tmp_path, test)


def test_a_durable_http_call_polls_until_the_answer_is_there(tmp_path: Path) -> None:
    polls = 0

    async def ask(request: web.Request) -> web.Response:
        assert await request.json() == {"question": 1}
        return web.Response(status=202, headers={"Location": "/answer", "Retry-After": "0"})

    async def answer(request: web.Request) -> web.Response:
        nonlocal polls
        polls += 1
        if polls < 3:
            return web.Response(status=202, headers={"Location": "/answer", "Retry-After": "0"})
        return web.json_response({"answer": 42})

    async def test(engine: DurableEngine) -> None:
        server = web.Application()
        server.add_routes([web.post("/ask", ask), web.get("/answer", answer)])
        async with TestServer(server) as running:
            found = await output(engine, "calls_http", {"url": str(running.make_url("/ask"))})
        assert found == {"status": 200, "content": {"answer": 42}}
        assert polls == 3

    in_engine(tmp_path, test)


def test_at_most_the_configured_number_of_activities_run_at_once(tmp_path: Path) -> None:
    running, most = 0, 0

    class Counting:
        def __init__(self) -> None:
            self.real = invoker()
            self.orchestrators, self.activities = self.real.orchestrators, self.real.activities
            self.entities = self.real.entities
            self.orchestrate, self.operate = self.real.orchestrate, self.real.operate

        async def act(self, name: str, input_json: str | None, *, instance_id: str, task_id: int) -> str | None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.002)
            running -= 1
            return await self.real.act(name, input_json, instance_id=instance_id, task_id=task_id)

    async def test(engine: DurableEngine) -> None:
        await output(engine, "fan_out", {"count": 40})
        assert most == 3

    in_engine(tmp_path, test, functions=Counting(), settings=DurableSettings(max_concurrent_activities=3))


def test_every_episode_is_recorded_when_asked_for(tmp_path: Path) -> None:
    record = tmp_path / "episodes.jsonl"

    async def test(engine: DurableEngine) -> None:
        await output(engine, "entities", {"key": "rec"})
        await run(engine, "failing")

    in_engine(tmp_path, test, record=record)
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert {(line["kind"], line["name"]) for line in lines} == {
        ("orchestrator", "entities"),
        ("orchestrator", "failing"),
        ("entity", "counter"),
    }
    assert all(json.loads(line["context"]) for line in lines)
    assert next(line for line in lines if "error" in line)["error"].count("$OutOfProcData$") == 1
