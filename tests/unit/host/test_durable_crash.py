"""A process that dies anywhere leaves a database from which the next one finishes the work, with the same result."""

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from dropforge.host.durable.engine import DurableEngine
from dropforge.host.durable.errors import EngineStopped, InstanceFinished
from dropforge.host.durable.queries import InstanceStatus
from dropforge.host.durable.settings import DurableSettings
from dropforge.host.durable.store import Store
from tests.e2e.apps.kitchen_sink import function_app
from tests.unit.host.durable_world import LOG, SDK_WARNINGS, client_input, engine_in, eventually, invoker, output, until

pytestmark = [*SDK_WARNINGS, pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")]

WANTED = {
    "hello": "hello tokyo",
    "retry": "k",
    "fan": [0, 1, 4, 9],
    "approval": 1,
    "sub": {"child": 49, "parent": "all"},
    "entity": 42,
    "caught": True,
}


class PowerCut(BaseException):
    """Stands for kill -9: nothing after it happens."""


def _cut_power(engine: DurableEngine, commits: int, *, before: bool) -> None:
    """Lets the engine commit so many times and kills it at the next commit, just before or just after."""
    assert engine._worker is not None
    store, left = engine._worker.store, commits
    commit = store.commit

    def dying() -> None:
        nonlocal left
        if not store._db.in_transaction:
            return
        left -= 1
        if left < 0 and before:
            raise PowerCut
        commit()
        if left <= 0 and not before:
            raise PowerCut

    store.commit = dying  # type: ignore[method-assign]


async def _push(engine: DurableEngine) -> InstanceStatus | None:
    """What a client does that does not know how far it got: start, approve, wait."""
    status = await engine.status("all", history=True)
    if status is None:
        await engine.start_new("everything", client_input({"key": "k"}), "all")
    elif status.finished:
        return status
    history = (status and status.history) or []
    if not any(event["EventType"] == "EventRaised" and event["Name"] == "Approval" for event in history):
        with contextlib.suppress(InstanceFinished):
            await engine.raise_event("all", "Approval", "1")
    return await engine.wait("all")


@pytest.mark.parametrize(("commits", "before"), [(1, False), (2, False), (3, False), (1, True), (2, True), (5, True)])
def test_a_crash_at_every_commit_ends_in_the_same_state(tmp_path: Path, commits: int, before: bool) -> None:
    functions = invoker()
    deaths = 0

    async def live_once() -> InstanceStatus | None:
        nonlocal deaths
        engine = DurableEngine(tmp_path / "engine.db", functions, log=LOG)
        await engine.start()
        _cut_power(engine, commits, before=before)
        try:
            async with asyncio.timeout(10):
                return await _push(engine)
        except EngineStopped:
            deaths += 1
            return None
        finally:
            await engine.stop(grace=0)

    LOG.disabled = True
    try:
        status = None
        while status is None and deaths < 200:
            status = asyncio.run(live_once())
    finally:
        LOG.disabled = False
    assert status is not None
    assert (status.runtime_status, json.loads(status.output or "null")) == ("Completed", WANTED)
    assert deaths >= (3 if commits < 3 else 1)
    _nothing_is_left(tmp_path / "engine.db")


def _nothing_is_left(database: Path) -> None:
    connection = sqlite3.connect(database)
    for table in ("activities", "timers", "inbox"):
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
    # Signalled once and called once, however often the process died: entity operations take effect exactly once.
    assert connection.execute("SELECT id, state FROM entities").fetchall() == [("@counter@k", "42")]
    connection.close()


def test_an_activity_that_was_running_runs_again_after_a_crash(tmp_path: Path) -> None:
    async def main() -> None:
        functions = invoker()
        async with asyncio.timeout(20):
            async with engine_in(tmp_path, functions=functions) as engine:
                value = {"name": "slow", "input": {"name": "x", "seconds": 0.3}}
                await engine.start_new("calls", client_input(value), "one")
                await until(engine, "one", lambda status: status.runtime_status == "Running")
                assert engine._worker is not None
                await engine._runner.stop(0)
            async with engine_in(tmp_path, functions=functions) as engine:
                status = await engine.wait("one")
                assert status is not None
                assert status.output == '"x"'

    asyncio.run(main())


def test_a_timer_that_came_due_while_the_process_was_down_fires_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        functions, now = invoker(), 1_800_000_000_000_000
        async with engine_in(tmp_path, functions=functions, clock=lambda: now) as engine:
            await engine.start_new("timer", client_input({"milliseconds": 3_600_000}), "one")
            await until(engine, "one", lambda status: status.runtime_status == "Running")
        now += 7_200_000_000
        async with asyncio.timeout(10), engine_in(tmp_path, functions=functions, clock=lambda: now) as engine:
            status = await engine.wait("one")
            assert status is not None
            assert status.output == "7200.0"

    asyncio.run(main())


def test_messages_of_a_suspended_instance_survive_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        functions = invoker()
        async with engine_in(tmp_path, functions=functions) as engine:
            await engine.start_new("two_events", None, "one")
            await engine.suspend("one", "wait")
            await engine.raise_event("one", "First", "1")
            await engine.raise_event("one", "Second", "2")
        async with asyncio.timeout(10), engine_in(tmp_path, functions=functions) as engine:
            status = await engine.status("one")
            assert status is not None
            assert status.runtime_status == "Suspended"
            await engine.resume("one", "go")
            done = await engine.wait("one")
            assert done is not None
            assert json.loads(done.output or "") == [1, 2]

    asyncio.run(main())


def test_a_result_that_came_while_suspended_is_not_worked_for_again_after_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        functions = invoker()
        async with engine_in(tmp_path, functions=functions) as engine:
            value = {"name": "slow", "input": {"name": "x", "seconds": 0.1}}
            await engine.start_new("calls", client_input(value), "one")
            await until(engine, "one", lambda status: status.runtime_status == "Running")
            await engine.suspend("one", "hold")
            await asyncio.sleep(0.3)
        async with asyncio.timeout(10), engine_in(tmp_path, functions=functions) as engine:
            await engine.resume("one", "go")
            status = await engine.wait("one")
            assert status is not None
            assert status.output == '"x"'
        assert function_app.CALLS == [("slow", "x")]

    asyncio.run(main())


async def _is(value: bool) -> bool:
    return value


def test_instances_that_do_not_fit_in_memory_are_read_again(tmp_path: Path) -> None:
    async def main() -> None:
        settings = DurableSettings(hot_executions=2, hot_characters=5_000)
        async with asyncio.timeout(30), engine_in(tmp_path, settings=settings) as engine:
            for number in range(6):
                await engine.start_new("race", client_input({"seconds": 3600}), f"waits-{number}")
                await until(engine, f"waits-{number}", lambda status: status.runtime_status == "Running")
            await engine.status("waits-0")
            assert engine._worker is not None
            await eventually(lambda: _is(len(engine._worker.hot) <= 2))  # type: ignore[union-attr]
            for number in range(6):
                await engine.raise_event(f"waits-{number}", "Approval", str(number))
                status = await engine.wait(f"waits-{number}")
                assert status is not None
                assert status.output == str(number)
            names = [("chain", {"n": n}) for n in range(12)] + [
                ("parallel_retries", {"key": f"m{n}"}) for n in range(4)
            ]
            results: list[Any] = await asyncio.gather(*(output(engine, name, value) for name, value in names))
        assert results[2] == 256
        assert all(result["after"] == "hello after" for result in results[12:])

    asyncio.run(main())


def test_a_second_engine_on_the_same_file_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with engine_in(tmp_path):
            with pytest.raises(EngineStopped, match="in use by another process"):
                await DurableEngine(tmp_path / "engine.db", invoker()).start()

    asyncio.run(main())


def test_a_database_of_another_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "engine.db").close()
    connection = sqlite3.connect(tmp_path / "engine.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(EngineStopped, match="has schema 99 and this version reads 1"):
        Store(tmp_path / "engine.db")


def test_calls_to_an_engine_that_died_say_why(tmp_path: Path) -> None:
    async def main() -> None:
        LOG.disabled = True
        try:
            async with asyncio.timeout(10), engine_in(tmp_path) as engine:
                _cut_power(engine, 0, before=True)
                with pytest.raises(EngineStopped, match="PowerCut"):
                    await engine.start_new("chain", client_input({"n": 1}))
                await engine.ended()
                with pytest.raises(EngineStopped, match="PowerCut"):
                    await engine.start_new("chain", client_input({"n": 1}))
        finally:
            LOG.disabled = False

    asyncio.run(main())


def test_a_stopped_engine_refuses_calls_and_stops_twice(tmp_path: Path) -> None:
    async def main() -> None:
        async with engine_in(tmp_path) as engine:
            await engine.stop()
            with pytest.raises(EngineStopped, match="it was stopped"):
                await engine.start_new("chain")

    asyncio.run(main())


def test_a_late_result_of_a_replaced_instance_does_not_touch_the_new_one(tmp_path: Path) -> None:
    async def main() -> None:
        functions = invoker()
        slow = {"name": "slow", "input": {"name": "old", "seconds": 0.1}}
        async with asyncio.timeout(20), engine_in(tmp_path, functions=functions) as engine:
            await engine.start_new("calls", client_input(slow), "one")
            await until(engine, "one", lambda status: status.runtime_status == "Running")
            await engine.terminate("one", "")
            slow["input"] = {"name": "new", "seconds": 0.3}
            await engine.start_new("calls", client_input(slow), "one")
            await asyncio.sleep(0.2)  # the old result is in, the new activity runs
            connection = sqlite3.connect(tmp_path / "engine.db")
            assert connection.execute("SELECT count(*) FROM activities").fetchone() == (1,)
            connection.close()
            status = await engine.wait("one")
            assert status is not None
            assert status.output == '"new"'

    asyncio.run(main())
