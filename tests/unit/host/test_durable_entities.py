"""Entities: one operation after another per key, state and answers in one transaction."""

import asyncio
import json
from pathlib import Path

import pytest

from dropforge.host.durable.engine import DurableEngine
from dropforge.host.durable.entities import run_batch
from dropforge.host.durable.errors import BadQuery, UnknownEntity
from dropforge.host.durable.messages import Kind, Message
from dropforge.host.durable.settings import DurableSettings
from dropforge.host.durable.store import Store
from tests.unit.host.durable_world import SDK_WARNINGS, in_engine, invoker, output, said

pytestmark = SDK_WARNINGS


async def _state(engine: DurableEngine, key: str, wanted: str | None) -> None:
    while True:
        row = await engine.entity_state("Counter", key)
        if (row.state if row else None) == wanted:
            return
        await asyncio.sleep(0.005)


def test_signals_from_everywhere_add_up(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        signals = (engine.signal_entity("counter", "c", "add", json.dumps("1")) for _ in range(100))
        await asyncio.gather(*signals, *(output(engine, "entities", {"key": "c"}) for _ in range(3)))
        await _state(engine, "c", str(100 + 3 * 42))

    in_engine(tmp_path, test)


def test_more_signals_than_fit_in_a_batch_are_taken_once_each(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await asyncio.gather(*(engine.signal_entity("counter", "c", "add", '"1"') for _ in range(25)))
        await _state(engine, "c", "25")
        await asyncio.sleep(0.05)
        await _state(engine, "c", "25")

    in_engine(tmp_path, test, settings=DurableSettings(max_entity_batch=2))


def test_operations_left_by_a_process_that_died_are_taken_once_each(tmp_path: Path) -> None:
    store = Store(tmp_path / "engine.db")
    for number in range(5):
        request = {"op": "add", "id": str(number), "input": '"1"', "signal": True}
        store.add_message("@counter@c", Message(Kind.OPERATION, json.dumps(request)))
    store.commit()
    store.close()

    async def test(engine: DurableEngine) -> None:
        await engine.signal_entity("Counter", "c", "add", '"10"')
        await _state(engine, "c", "15")

    in_engine(tmp_path, test)
    in_engine(tmp_path, _still_fifteen)


async def _still_fifteen(engine: DurableEngine) -> None:
    await asyncio.sleep(0.05)
    await _state(engine, "c", "15")


def test_an_entity_is_deleted_by_itself_or_by_a_client(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        for key in ("a", "b"):
            await engine.signal_entity("Counter", key, "add", '"5"')
            await _state(engine, key, "5")
        await engine.signal_entity("Counter", "a", "delete")
        await _state(engine, "a", None)
        assert await engine.delete_entity("COUNTER", "b")
        assert not await engine.delete_entity("COUNTER", "b")
        assert (await engine.entities())[0] == []

    in_engine(tmp_path, test)


def test_keys_are_case_sensitive_and_names_are_not(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await engine.signal_entity("COUNTER", "k", "add", '"1"')
        await engine.signal_entity("counter", "K", "add", '"2"')
        await _state(engine, "k", "1")
        await _state(engine, "K", "2")
        rows, token = await engine.entities("Counter", top=1)
        more, _ = await engine.entities("Counter", token=token)
        assert [row.entity_id for row in rows + more] == ["@counter@k", "@counter@K"]

    in_engine(tmp_path, test)


def test_a_failed_signal_is_said_aloud_and_changes_nothing(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        await engine.signal_entity("Counter", "c", "add", '"3"')
        await engine.signal_entity("Counter", "c", "crash")
        await engine.signal_entity("Counter", "c", "add", '"4"')
        await _state(engine, "c", "7")
        assert (
            "operation 'crash' of entity 'Counter' (c) failed and nobody waits for it"
            in said(engine, "entity-failed")[0]
        )

    in_engine(tmp_path, test)


def test_unknown_entities_and_empty_keys_are_refused(tmp_path: Path) -> None:
    async def test(engine: DurableEngine) -> None:
        with pytest.raises(UnknownEntity, match=r"choose one of \['Counter'\]"):
            await engine.signal_entity("Nobody", "c", "add")
        with pytest.raises(BadQuery):
            await engine.signal_entity("Counter", "", "add")

    in_engine(tmp_path, test)


def test_when_a_whole_batch_fails_the_state_stays_and_every_caller_gets_the_failure() -> None:
    class Broken:
        orchestrators = activities = frozenset[str]()
        entities = frozenset({"Counter"})

        def operate(self, name: str, context_json: str) -> str:
            raise MemoryError("no room")

    calls = [
        Message(Kind.OPERATION, json.dumps({"op": "add", "id": str(n), "parent": f"p{n}", "parentExecution": "e"}))
        for n in range(2)
    ]
    outcome = run_batch("@counter@c", True, "1", calls, 0, Broken())  # type: ignore[arg-type]
    assert (outcome.exists, outcome.state) == (True, "1")
    assert [target for target, _ in outcome.replies] == ["p0", "p1"]
    assert all("exceptionType" in reply.text and "MemoryError" in reply.text for _, reply in outcome.replies)


def test_the_sdk_gets_a_batch_as_the_extension_sends_it() -> None:
    seen: list[dict[str, object]] = []
    real = invoker()

    class Watching:
        orchestrators, activities, entities = real.orchestrators, real.activities, real.entities

        def operate(self, name: str, context_json: str) -> str:
            seen.append(json.loads(context_json))
            return real.operate(name, context_json)

    calls = [Message(Kind.OPERATION, json.dumps({"op": "add", "id": "1", "input": '"41"', "signal": True}))]
    outcome = run_batch("@counter@c1", True, "1", calls, 0, Watching())  # type: ignore[arg-type]
    assert seen == [
        {
            "self": {"name": "Counter", "key": "c1"},
            "exists": True,
            "state": "1",
            "batch": [{"name": "add", "input": '"41"', "isSignal": True}],
        }
    ]
    assert outcome.state == "42"
