"""Calling functions: values in and out, failures, time limits, and what the log says."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.functions import meta

from dropforge.host.app import App
from dropforge.host.invocation import Call, FunctionQuit, FunctionTimedOut, Invocations
from dropforge.host.logs import current_scope
from dropforge.host.threads import FunctionThreads
from tests.unit.host.apps import loaded

# Advice of the SDK for hosts that decode activity inputs: given once per process.
pytestmark = pytest.mark.filterwarnings("ignore:azure.functions (df_loads|Durable JSON codec):DeprecationWarning")

SOURCE = """
import threading, time
app = df.DFApp()
seen = {}

@app.event_grid_trigger(arg_name="event")
def decoded(event: func.EventGridEvent):
    seen["event"] = event

@app.event_grid_trigger(arg_name="event")
def raw(event: str):
    seen["raw"] = event

@app.event_grid_trigger(arg_name="event")
async def with_context(event: func.EventGridEvent, context: func.Context):
    seen["context"] = context
    seen["thread"] = threading.current_thread().name

@app.event_grid_trigger(arg_name="event")
def in_thread(event: func.EventGridEvent):
    seen["thread"] = threading.current_thread().name
    logging.info("from the function")

@app.event_grid_trigger(arg_name="event")
def fails(event: func.EventGridEvent):
    raise ValueError("no good")

@app.event_grid_trigger(arg_name="event")
def exits(event: func.EventGridEvent):
    raise SystemExit(3)

@app.event_grid_trigger(arg_name="event")
async def exits_async(event: func.EventGridEvent):
    raise SystemExit(3)

@app.event_grid_trigger(arg_name="event")
def stops_iteration(event: func.EventGridEvent):
    next(iter(()))

@app.event_grid_trigger(arg_name="event")
async def cancels(event: func.EventGridEvent):
    raise asyncio.CancelledError

class Panic(BaseException):
    "What Rust libraries raise is no Exception."

@app.event_grid_trigger(arg_name="event")
def panics(event: func.EventGridEvent):
    raise Panic("index out of bounds")

@app.event_grid_trigger(arg_name="event")
async def panics_async(event: func.EventGridEvent):
    raise Panic("index out of bounds")

@app.event_grid_trigger(arg_name="event")
async def times_out_itself(event: func.EventGridEvent):
    raise TimeoutError("my own")

@app.event_grid_trigger(arg_name="event")
def returns_something(event: func.EventGridEvent):
    return "x"

@app.event_grid_trigger(arg_name="event")
async def slow_async(event: func.EventGridEvent):
    try:
        await asyncio.sleep(30)
    finally:
        seen["cancelled"] = True

@app.event_grid_trigger(arg_name="event")
def slow(event: func.EventGridEvent):
    time.sleep(0.3)

@app.event_grid_trigger(arg_name="event")
@app.queue_output(arg_name="out", queue_name="q", connection="c")
def puts_out(event: func.EventGridEvent, out: func.Out[str]):
    out.set("message")

@app.activity_trigger(input_name="n")
def square(n: int) -> int:
    return n * n

@app.activity_trigger(input_name="n")
def returns_none(n):
    return None

@app.activity_trigger(input_name="n")
def returns_a_set(n):
    return {1}

@app.activity_trigger(input_name="n")
@app.durable_client_input(client_name="client")
async def with_client(n, client: df.DurableOrchestrationClient):
    return client.task_hub_name if hasattr(client, "task_hub_name") else type(client).__name__

@app.activity_trigger(input_name="n")
async def fails_later(n):
    raise ConnectionError("the client no longer answers")

@app.orchestration_trigger(context_name="context")
def flow(context: df.DurableOrchestrationContext):
    logging.info("in the flow")
    result = yield context.call_activity("square", 3)
    return result

@app.entity_trigger(context_name="context")
def Counter(context: df.DurableEntityContext):
    logging.info("in the entity")
    context.set_state(context.get_state(lambda: 0) + context.get_input())
    context.set_result(context.get_state(lambda: 0))

@app.orchestration_trigger(context_name="context")
def panicking_flow(context: df.DurableOrchestrationContext):
    raise Panic("index out of bounds")
    yield

@app.orchestration_trigger(context_name="context")
def cancelled_flow(context: df.DurableOrchestrationContext):
    raise asyncio.CancelledError
    yield

@app.route(route="nothing")
def nothing(req: func.HttpRequest):
    return None

@app.route(route="text")
def text(req: func.HttpRequest):
    return "plain"
"""

EVENT = {"id": "e1", "eventType": "T", "subject": "s", "data": {"a": 1}, "eventTime": "2017-06-26T18:41:00.9584103Z"}


class World:
    def __init__(self, app: App, timeout: timedelta | None = None, **more: Any) -> None:
        self.app = app
        self.threads = FunctionThreads(4)
        self.invocations = Invocations(app.functions, self.threads, timeout, **more)

    @property
    def seen(self) -> dict[str, Any]:
        function = self.app.find("decoded")
        assert function is not None
        found: dict[str, Any] = function.call.__globals__["seen"]
        return found

    async def call(self, name: str, call: Call | None = None) -> meta.Datum | None:
        function = self.app.find(name)
        assert function is not None
        return await self.invocations.invoke(function, call or Call(meta.Datum(json.dumps(EVENT), "json"), "event"))


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with loaded(tmp_path, SOURCE) as app:
        yield app


def run(app: App, work: Callable[[World], Awaitable[Any]], **world: Any) -> Any:
    async def lived() -> Any:
        made = World(app, **world)
        try:
            return await work(made)
        finally:
            made.threads.shutdown()

    return asyncio.run(lived())


def test_the_sdk_decodes_what_the_function_gets(app: App) -> None:
    async def work(world: World) -> None:
        await world.call("decoded")
        await world.call("raw")
        assert world.seen["event"].get_json() == {"a": 1}
        assert world.seen["event"].event_time.year == 2017
        assert json.loads(world.seen["raw"]) == EVENT

    run(app, work)


def test_the_context_says_which_invocation_it_is(app: App) -> None:
    async def work(world: World) -> None:
        call = Call(meta.Datum(json.dumps(EVENT), "json"), "event")
        await world.call("with_context", call)
        context = world.seen["context"]
        assert context.invocation_id == call.invocation_id
        assert (context.function_name, context.function_directory) == ("with_context", str(world.app.folder))
        assert context.retry_context.retry_count == 0
        assert context.trace_context.trace_parent == ""

    run(app, work)


def test_plain_functions_run_in_threads_and_keep_their_scope(app: App, caplog: pytest.LogCaptureFixture) -> None:
    scopes: list[Any] = []

    class Catch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            scopes.append((record.getMessage(), current_scope()))

    async def work(world: World) -> None:
        handler = Catch()
        logging.getLogger().addHandler(handler)
        try:
            with caplog.at_level(logging.INFO):
                await world.call("in_thread", Call(meta.Datum(json.dumps(EVENT), "json"), "event", invocation_id="inv"))
        finally:
            logging.getLogger().removeHandler(handler)
        assert world.seen["thread"].startswith("function-")
        await world.call("with_context")
        assert not world.seen["thread"].startswith("function-")

    run(app, work)
    (scope,) = [scope for message, scope in scopes if message == "from the function"]
    assert (scope.function, scope.invocation_id) == ("in_thread", "inv")


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("fails", ValueError, "no good"),
        ("exits", FunctionQuit, "SystemExit"),
        ("exits_async", FunctionQuit, "SystemExit"),
        ("stops_iteration", FunctionQuit, "StopIteration"),
        ("cancels", FunctionQuit, "CancelledError"),
        ("panics", FunctionQuit, "Panic: index out of bounds"),
        ("panics_async", FunctionQuit, "Panic: index out of bounds"),
        ("times_out_itself", TimeoutError, "my own"),
        ("returns_something", RuntimeError, r"without a \$return binding"),
        ("puts_out", NotImplementedError, "queue outputs are not served by this host yet"),
    ],
)
def test_what_a_function_raises_is_a_failure_and_never_the_end_of_the_host(
    app: App, name: str, error: type[Exception], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(world: World) -> None:
        with pytest.raises(error, match=text):
            await world.call(name)

    with caplog.at_level(logging.ERROR):
        run(app, work)
    assert "event failed" in caplog.text


@pytest.mark.parametrize("name", ["slow_async", "slow"])
def test_the_function_timeout_ends_the_call(app: App, name: str) -> None:
    async def work(world: World) -> None:
        with pytest.raises(FunctionTimedOut, match="functionTimeout"):
            await world.call(name)
        if name == "slow_async":
            assert world.seen["cancelled"]

    run(app, work, timeout=timedelta(seconds=0.05))


def test_an_output_goes_to_its_sink(app: App) -> None:
    sent: list[tuple[str, str, Any]] = []

    async def sink(function: Any, binding: Any, datum: meta.Datum) -> None:
        sent.append((function.name, binding.name, datum.value))

    async def work(world: World) -> None:
        await world.call("puts_out")

    run(app, work, outputs={"queue": sink})
    assert sent == [("puts_out", "out", "message")]


def test_an_http_function_may_return_text_but_not_nothing(app: App) -> None:
    request = {"method": "GET", "url": "http://h/"}
    datum = meta.Datum(
        {name: meta.Datum(value, "string") for name, value in request.items()}
        | {"headers": {}, "params": {}, "query": {}, "body": meta.Datum(b"", "bytes")},
        "http",
    )

    async def work(world: World) -> None:
        returned = await world.call("text", Call(datum, "GET /text"))
        assert returned is not None
        assert (returned.type, returned.value) == ("string", "plain")
        with pytest.raises(TypeError, match='unsupported type "http" for Python type "NoneType"'):
            await world.call("nothing", Call(datum, "GET /nothing"))

    run(app, work)


# ------------------------------------------------------------------ the durable engine's side
def test_the_engine_finds_durable_functions_by_their_durable_names(app: App) -> None:
    async def work(world: World) -> None:
        assert world.invocations.orchestrators == {"flow", "panicking_flow", "cancelled_flow"}
        assert {"square", "with_client"} <= world.invocations.activities
        assert world.invocations.entities == {"counter"}

    run(app, work)


def test_an_activity_takes_and_gives_json(app: App) -> None:
    async def work(world: World) -> None:
        act = world.invocations.act
        assert await act("square", "7", instance_id="i", task_id=0) == "49"
        assert await act("returns_none", None, instance_id="i", task_id=0) == "null"
        with pytest.raises(ValueError, match="json serializable"):
            await act("returns_a_set", "1", instance_id="i", task_id=0)

    run(app, work)


def test_an_activity_may_have_a_durable_client(app: App) -> None:
    binding = json.dumps(
        {
            "taskHubName": "Hub",
            "creationUrls": {"createNewInstancePostUri": "http://h/orchestrators/{functionName}[/{instanceId}]"},
            "managementUrls": {"id": "INSTANCEID"},
            "rpcBaseUrl": "http://h/rpc/",
        }
    )

    async def work(world: World) -> None:
        result = await world.invocations.act("with_client", "1", instance_id="i", task_id=0)
        assert json.loads(str(result)) in ("Hub", "DurableOrchestrationClient")

    run(app, work, inputs={"durableClient": lambda _: meta.Datum(binding, "string")})


def test_an_activity_that_fails_while_the_host_stops_counts_as_interrupted(app: App) -> None:
    async def work(world: World) -> None:
        with pytest.raises(ConnectionError):
            await world.invocations.act("fails_later", "1", instance_id="i", task_id=0)
        world.invocations.stop()
        with pytest.raises(asyncio.CancelledError):
            await world.invocations.act("fails_later", "1", instance_id="i", task_id=0)

    run(app, work)


def first_episode(name: str) -> str:
    started = {
        "EventType": 0, "EventId": -1, "IsPlayed": False, "Timestamp": "2026-11-22T12:12:17.0472590Z", "Name": name,
        "Version": "", "Input": None,
    }  # fmt: skip
    begun = {"EventType": 12, "EventId": -1, "IsPlayed": False, "Timestamp": "2026-11-22T12:12:17.0473100Z"}
    context = {
        "history": [begun, started], "input": None, "instanceId": "flow-1", "isReplaying": False,
        "parentInstanceId": None, "upperSchemaVersion": 1, "upperSchemaVersionNew": 2,
    }  # fmt: skip
    return json.dumps(context)


@pytest.mark.parametrize(("name", "text"), [("panicking_flow", "Panic: index"), ("cancelled_flow", "CancelledError")])
def test_an_orchestrator_that_raises_what_is_no_exception_fails_alone(app: App, name: str, text: str) -> None:
    async def work(world: World) -> None:
        with pytest.raises(FunctionQuit, match=text):
            world.invocations.orchestrate(name, first_episode(name))

    run(app, work)


def test_an_orchestrator_and_an_entity_replay_their_json(app: App, caplog: pytest.LogCaptureFixture) -> None:
    batch = {
        "self": {"name": "counter", "key": "c1"}, "exists": True, "state": "1",
        "batch": [{"name": "add", "input": '"41"', "isSignal": False}],
    }  # fmt: skip

    async def work(world: World) -> None:
        state = json.loads(world.invocations.orchestrate("flow", first_episode("flow")))
        assert state["actions"] == [[{"actionType": 0, "functionName": "square", "input": "3"}]]
        out = json.loads(world.invocations.operate("counter", json.dumps(batch)))
        assert out["entityState"] == "42"

    with caplog.at_level(logging.INFO):
        run(app, work)
    assert "in the flow" in caplog.text


# ------------------------------------------------------------------ stopping
def test_finished_waits_for_what_runs_up_to_the_grace(app: App) -> None:
    async def work(world: World) -> None:
        running = asyncio.create_task(world.call("slow"))
        await asyncio.sleep(0.05)
        assert await world.invocations.finished(0.01) == 1
        assert await world.invocations.finished(5) == 0
        await running

    run(app, work)
