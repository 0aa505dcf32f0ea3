"""A world for the durable engine: the real SDK over an app, without the rest of the host."""

import asyncio
import contextlib
import inspect
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import azure.durable_functions as df
import pytest
from azure.functions import meta

from dropforge.host.durable.engine import DurableEngine
from dropforge.host.durable.queries import InstanceStatus
from dropforge.host.durable.settings import DurableSettings
from tests.conftest import episodes_of
from tests.e2e.apps.kitchen_sink import function_app

# What the SDK warns about in normal use: events that come before their wait, payloads without a declared type.
SDK_WARNINGS = [
    pytest.mark.filterwarnings("ignore:Potential duplicate Task completion"),
    pytest.mark.filterwarnings("ignore:azure.functions df_loads was called without expected_type"),
]
Flow = Callable[[df.DurableOrchestrationContext], Generator[Any, Any, Any]]
LOG = logging.getLogger("test.durable")


class SdkInvoker:
    """Runs the functions of an app through the converters and handles of azure-functions-durable."""

    def __init__(self, app: Any) -> None:
        kinds: dict[str, dict[str, tuple[Any, str]]] = {}
        for function in app.get_functions():
            trigger = function.get_trigger()
            renamed = trigger.get_dict_repr()
            name = next(
                (renamed[key] for key in ("orchestration", "activity", "entityName") if renamed.get(key)),
                function.get_function_name(),
            )
            kinds.setdefault(trigger.type, {})[name] = (function.get_user_function(), trigger.name)
        self._orchestrators = kinds.get("orchestrationTrigger", {})
        self._activities = kinds.get("activityTrigger", {})
        self._entities = {name.lower(): found for name, found in kinds.get("entityTrigger", {}).items()}
        self.orchestrators = frozenset(self._orchestrators)
        self.activities = frozenset(self._activities)
        self.entities = frozenset(kinds.get("entityTrigger", {}))
        self.episodes = 0

    def orchestrate(self, name: str, context_json: str) -> str:
        self.episodes += 1
        return str(self._orchestrators[name][0](context_json))

    def operate(self, name: str, context_json: str) -> str:
        return str(self._entities[name][0](context_json))

    async def act(self, name: str, input_json: str | None, *, instance_id: str, task_id: int) -> str | None:
        call, parameter = self._activities[name]
        converter = meta.get_binding_registry().get("activityTrigger")
        value = converter.decode(meta.Datum(input_json or "null", "json"), trigger_metadata=None)
        result = call(**{parameter: value})
        if inspect.isawaitable(result):
            result = await result
        return str(converter.encode(result, expected_type=None).value)


class Flows:
    """Orchestrators written inside a test, and three activities that say their name."""

    def __init__(self, **flows: Flow) -> None:
        self.flows = flows
        self.orchestrators = frozenset(flows)
        self.activities = frozenset({"a", "b", "renamed"})
        self.entities = frozenset({"Counter"})
        self.calls = 0
        self.ran: list[str] = []
        self.failing: set[str] = set()

    def orchestrate(self, name: str, context_json: str) -> str:
        self.calls += 1
        return str(df.Orchestrator.create(self.flows[name])(context_json))

    def operate(self, name: str, context_json: str) -> str:
        raise AssertionError("no entities here")

    async def act(self, name: str, input_json: str | None, *, instance_id: str, task_id: int) -> str | None:
        self.ran.append(name)
        if name in self.failing:
            raise RuntimeError(f"{name} fails")
        return json.dumps(f"{name}({input_json})")


_functions = SdkInvoker(function_app.app)  # an app can be indexed only once


def invoker() -> SdkInvoker:
    """The kitchen sink; counters reset."""
    _functions.episodes = 0
    function_app.FAILED.clear()
    function_app.CALLS.clear()
    return _functions


@contextlib.asynccontextmanager
async def engine_in(
    folder: Path, *, functions: Any = None, settings: DurableSettings | None = None, **more: Any
) -> AsyncIterator[DurableEngine]:
    if functions is None:
        more.setdefault("record", episodes_of("kitchen_sink"))
    engine = DurableEngine(folder / "engine.db", functions or invoker(), settings=settings, log=LOG, **more)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop(grace=1)


def in_engine(folder: Path, test: Callable[[DurableEngine], Awaitable[None]], **options: Any) -> None:
    """Runs a test inside a started engine, within seconds."""

    async def main() -> None:
        async with asyncio.timeout(30), engine_in(folder, **options) as engine:
            await test(engine)

    asyncio.run(main())


def client_input(value: Any) -> str:
    """As the SDK's client posts it: JSON of JSON."""
    return json.dumps(json.dumps(value))


async def run(engine: DurableEngine, name: str, value: Any = None, instance_id: str | None = None) -> InstanceStatus:
    """Starts an orchestration and waits for its end."""
    started = await engine.start_new(name, None if value is None else client_input(value), instance_id)
    status = await engine.wait(started)
    assert status is not None
    return status


async def output(engine: DurableEngine, name: str, value: Any = None, instance_id: str | None = None) -> Any:
    """The output of an orchestration that completes."""
    status = await run(engine, name, value, instance_id)
    assert status.runtime_status == "Completed", status
    return None if status.output is None else json.loads(status.output)


async def until(engine: DurableEngine, instance_id: str, test: Callable[[InstanceStatus], bool]) -> InstanceStatus:
    """Polls until the status passes the test."""
    while True:
        status = await engine.status(instance_id)
        if status is not None and test(status):
            return status
        await asyncio.sleep(0.005)


async def eventually(test: Callable[[], Awaitable[bool]]) -> None:
    """Polls until the test passes."""
    while True:
        if await test():
            return
        await asyncio.sleep(0.005)


def said(engine: DurableEngine, code: str) -> list[str]:
    return [notice.message for notice in engine.warnings if notice.code == code]
