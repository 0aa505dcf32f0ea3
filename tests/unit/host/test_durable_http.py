"""The management API by its status codes, and the SDK's own client against it."""

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import azure.functions as func
import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer
from azure.durable_functions import DurableOrchestrationClient, EntityId, OrchestrationRuntimeStatus
from azure.durable_functions.models.utils import http_utils

from dropforge.host.durable import links
from dropforge.host.durable.engine import DurableEngine
from dropforge.host.durable.http import CONTINUATION, durable_routes
from tests.unit.host.durable_world import SDK_WARNINGS, client_input, eventually, in_engine, run, until

pytestmark = [
    *SDK_WARNINGS,
    # The SDK's client asks aiohttp for something that newer versions of Python do by themselves.
    pytest.mark.filterwarnings("ignore:enable_cleanup_closed ignored:DeprecationWarning"),
]

KEY = "k-123"
_Client = TestClient[web.Request, web.Application]


def _served(tmp_path: Path, test: Callable[[_Client, DurableEngine], Awaitable[None]]) -> None:
    async def body(engine: DurableEngine) -> None:
        app = web.Application()
        app.add_routes(
            durable_routes(
                engine,
                authorize=lambda request: request.query.get("code") == KEY,
                query=links.required_query("LocalHub", KEY),
            )
        )
        app.add_routes(
            durable_routes(engine, base="/rpc/secret", authorize=lambda request: True, public_base=links.ROUTE)
        )
        async with TestClient(TestServer(app)) as client:
            await test(client, engine)

    in_engine(tmp_path, body)


async def _call(client: _Client, method: str, path: str, **options: Any) -> ClientResponse:
    mark = "&" if "?" in path else "?"
    return await client.request(method, f"{links.ROUTE}/{path}{mark}code={KEY}", **options)


async def _instances(engine: DurableEngine) -> None:
    await run(engine, "chain", {"n": 2}, "done")
    await run(engine, "failing", None, "failed")
    await engine.start_new("race", client_input({"seconds": 3600}), "live")
    await until(engine, "live", lambda status: status.runtime_status == "Running")
    await engine.signal_entity("Counter", "c", "add", '"5"')

    async def counted() -> bool:
        return await engine.entity_state("Counter", "c") is not None

    await eventually(counted)


JSON_BODY = {"data": "{}", "headers": {"Content-Type": "application/json"}}
CODES: list[tuple[str, str, dict[str, Any], int]] = [
    ("POST", "orchestrators/chain", {}, 202),
    ("POST", "orchestrators/chain/new", JSON_BODY, 202),
    ("POST", "orchestrators/chain/done", JSON_BODY, 202),
    ("POST", "orchestrators/chain/live", JSON_BODY, 409),
    ("POST", "orchestrators/nobody", JSON_BODY, 400),
    ("POST", "orchestrators/chain/%40x", JSON_BODY, 400),
    ("POST", "orchestrators/chain", {"data": "{"}, 400),
    ("GET", "instances/live", {}, 202),
    ("GET", "instances/done", {}, 200),
    ("GET", "instances/failed", {}, 200),
    ("GET", "instances/failed?returnInternalServerErrorOnFailure=true", {}, 500),
    ("GET", "instances/done?returnInternalServerErrorOnFailure=true", {}, 200),
    ("GET", "instances/nobody", {}, 404),
    ("GET", "instances", {}, 200),
    ("GET", "instances/", {}, 200),
    ("GET", "instances?runtimeStatus=Odd", {}, 400),
    ("GET", "instances?createdTimeFrom=yesterday", {}, 400),
    ("GET", "instances?top=-1", {}, 400),
    *(
        ("GET", path, {"headers": {CONTINUATION: token}}, 400)
        for path in ("instances", "entities")
        for token in ("odd", "9" * 20, "9" * 5_000)
    ),
    *(
        (
            "POST",
            f"{path}?op=add",
            {"data": data, "headers": {"Content-Type": f"application/json; charset={charset}"}},
            400,
        )
        for path in ("orchestrators/chain", "instances/live/raiseEvent/Approval", "entities/Counter/c")
        for data, charset in (
            (b"{}", "foo"),
            (b"{}", "base64"),
            (b"{}", "undefined"),
            (b"\xff", "utf-8"),
            (rb'"\ud800"', "unicode_escape"),
        )
    ),
    ("POST", "instances/live/raiseEvent/Approval", JSON_BODY, 202),
    ("POST", "instances/live/raiseEvent/Approval", {"data": "x", "headers": {"Content-Type": "text/plain"}}, 400),
    ("POST", "instances/live/raiseEvent/Approval", {**JSON_BODY, "data": "{"}, 400),
    ("POST", "instances/done/raiseEvent/Approval", JSON_BODY, 410),
    ("POST", "instances/nobody/raiseEvent/Approval", JSON_BODY, 404),
    *(
        ("POST", f"instances/{instance}/{verb}?reason=r", {}, code)
        for verb in ("terminate", "suspend", "resume")
        for instance, code in (("live", 202), ("done", 410), ("nobody", 404))
    ),
    ("POST", "instances/failed/rewind?reason=r", {}, 202),
    ("POST", "instances/done/rewind?reason=r", {}, 412),
    ("POST", "instances/live/rewind?reason=r", {}, 412),
    ("POST", "instances/nobody/rewind?reason=r", {}, 404),
    ("POST", "instances/done/restart", {}, 202),
    ("POST", "instances/done/restart?restartWithNewInstanceId=false", {}, 202),
    ("POST", "instances/live/restart?restartWithNewInstanceId=false", {}, 409),
    ("POST", "instances/nobody/restart", {}, 404),
    ("DELETE", "instances/done", {}, 200),
    ("DELETE", "instances/nobody", {}, 404),
    ("DELETE", "instances", {}, 400),
    ("DELETE", "instances?createdTimeFrom=2020-01-01T00:00:00Z", {}, 200),
    ("DELETE", "instances?createdTimeFrom=2020-01-01T00:00:00Z&runtimeStatus=completed", {}, 200),
    ("DELETE", "instances?createdTimeFrom=2020-01-01T00:00:00Z&runtimeStatus=Odd", {}, 400),
    ("DELETE", "instances?createdTimeFrom=2920-01-01T00:00:00Z", {}, 404),
    ("GET", "entities", {}, 200),
    ("GET", "entities/Counter", {}, 200),
    ("GET", "entities/counter/c", {}, 200),
    ("GET", "entities/counter/none", {}, 404),
    ("POST", "entities/Counter/c?op=add", {"json": "1"}, 202),
    ("POST", "entities/Nobody/c?op=add", {"json": "1"}, 404),
    ("DELETE", "entities/Counter/c", {}, 202),
    ("DELETE", "entities/Counter/none", {}, 404),
]


@pytest.mark.parametrize(("method", "path", "options", "code"), CODES, ids=[f"{c[0]} {c[1]} {c[3]}" for c in CODES])
def test_status_codes(tmp_path: Path, method: str, path: str, options: dict[str, Any], code: int) -> None:
    async def test(client: _Client, engine: DurableEngine) -> None:
        await _instances(engine)
        response = await _call(client, method, path, **options)
        assert response.status == code, await response.text()
        body = await response.json(content_type=None)  # JSON or nothing, as the SDK's client expects
        if code == 400 and "raiseEvent" not in path:
            assert body["ExceptionMessage"]

    _served(tmp_path, test)


def test_a_request_without_the_key_is_refused(tmp_path: Path) -> None:
    async def test(client: _Client, engine: DurableEngine) -> None:
        for path in ("instances", "entities", "instances/x"):
            assert (await client.get(f"{links.ROUTE}/{path}?code=wrong")).status == 401
        assert (await client.get("/rpc/guess/instances")).status == 404

    _served(tmp_path, test)


def test_a_start_answers_with_links_that_work(tmp_path: Path) -> None:
    async def test(client: _Client, engine: DurableEngine) -> None:
        response = await _call(client, "POST", "orchestrators/race/one", json={"seconds": 3600})
        body = await response.json()
        assert response.headers["Location"] == body["statusQueryGetUri"]
        assert response.headers["Retry-After"] == "10"
        assert sorted(body) == [
            "id",
            "purgeHistoryDeleteUri",
            "restartPostUri",
            "resumePostUri",
            "rewindPostUri",
            "sendEventPostUri",
            "statusQueryGetUri",
            "suspendPostUri",
            "terminatePostUri",
        ]
        for name in ("suspendPostUri", "resumePostUri"):
            assert (await client.session.post(body[name].replace("{text}", "why"))).status == 202
        status = await client.session.get(body["statusQueryGetUri"])
        assert (status.status, status.headers["Retry-After"]) == (202, "5")
        assert status.headers["Location"].startswith(body["statusQueryGetUri"].partition("?")[0])
        event = body["sendEventPostUri"].replace("{eventName}", "Approval")
        assert (await client.session.post(event, json={"by": "ann"})).status == 202
        await engine.wait("one")
        done = await (await client.session.get(body["statusQueryGetUri"])).json()
        assert done["output"] == {"by": "ann"}
        assert (done["name"], done["instanceId"], done["runtimeStatus"]) == ("race", "one", "Completed")
        assert done["input"] == {"seconds": 3600}
        assert len(done["createdTime"]) == len("2026-11-22T12:00:00Z")
        assert (await client.session.delete(body["purgeHistoryDeleteUri"])).status == 200

    _served(tmp_path, test)


def test_a_start_can_wait_for_the_output(tmp_path: Path) -> None:
    async def test(client: _Client, engine: DurableEngine) -> None:
        done = await _call(client, "POST", "orchestrators/chain?timeout=10&pollingInterval=1", json={"n": 2})
        assert (done.status, await done.json()) == (200, 256)
        late = await _call(client, "POST", "orchestrators/race?timeout=0.01", json={"seconds": 3600})
        assert late.status == 202

    _served(tmp_path, test)


def test_history_and_input_come_when_asked_for(tmp_path: Path) -> None:
    async def test(client: _Client, engine: DurableEngine) -> None:
        await run(engine, "chain", {"n": 2}, "one")
        plain = await (await _call(client, "GET", "instances/one?showInput=false")).json()
        assert plain["input"] is None
        assert "historyEvents" not in plain
        full = await (await _call(client, "GET", "instances/one?showHistory=true&showHistoryOutput=true")).json()
        kinds = [event["EventType"] for event in full["historyEvents"]]
        assert kinds == ["ExecutionStarted", "TaskCompleted", "TaskCompleted", "TaskCompleted", "ExecutionCompleted"]
        assert full["historyEvents"][1]["FunctionName"] == "square"
        assert full["historyEvents"][1]["Result"] == 4

    _served(tmp_path, test)


def test_a_long_list_comes_in_pages(tmp_path: Path) -> None:
    async def test(client: _Client, engine: DurableEngine) -> None:
        for number in range(5):
            await run(engine, "without_yield", number, f"i{number}")
        token, found = "", []
        for _ in range(3):
            page = await _call(client, "GET", "instances?top=2", headers={CONTINUATION: token} if token else {})
            found += [each["instanceId"] for each in await page.json()]
            token = page.headers.get(CONTINUATION, "")
        assert (found, token) == ([f"i{number}" for number in range(5)], "")

    _served(tmp_path, test)


# -- the SDK's client -------------------------------------------------------------------------------------------------
def _with_sdk(tmp_path: Path, test: Callable[[DurableOrchestrationClient, DurableEngine], Awaitable[None]]) -> None:
    async def body(client: _Client, engine: DurableEngine) -> None:
        binding = links.client_binding_json(
            str(client.make_url(links.ROUTE)), str(client.make_url("/rpc/secret")), "LocalHub", KEY
        )
        try:
            await test(DurableOrchestrationClient(binding), engine)
        finally:
            await http_utils._close_session()

    _served(tmp_path, body)


def test_the_sdk_client_starts_and_reads(tmp_path: Path) -> None:
    async def test(client: DurableOrchestrationClient, engine: DurableEngine) -> None:
        assert await client.start_new("chain", "one", {"n": 2}) == "one"
        await engine.wait("one")
        status = await client.get_status("one", show_history=True, show_input=True)
        assert (status.runtime_status, status.output) == (OrchestrationRuntimeStatus.Completed, 256)
        assert json.loads(status.input_) == {"n": 2}
        assert status.historyEvents[-1]["EventType"] == "ExecutionCompleted"
        assert status.created_time.tzinfo is not None
        assert not await client.get_status("nobody")

    _with_sdk(tmp_path, test)


def test_the_sdk_client_shows_what_was_refused(tmp_path: Path) -> None:
    async def test(client: DurableOrchestrationClient, engine: DurableEngine) -> None:
        await client.start_new("race", "one", {"seconds": 3600})
        with pytest.raises(Exception, match="already exists"):
            await client.start_new("race", "one", {"seconds": 3600})
        with pytest.raises(Exception, match="'nobody' is not an orchestrator"):
            await client.start_new("nobody")
        with pytest.raises(Exception, match="No instance with ID nobody found"):
            await client.raise_event("nobody", "Approval", 1)
        with pytest.raises(Exception, match="only a Failed instance"):
            await client.rewind("one", "why")

    _with_sdk(tmp_path, test)


def test_the_sdk_client_manages_an_instance(tmp_path: Path) -> None:
    async def test(client: DurableOrchestrationClient, engine: DurableEngine) -> None:
        await client.start_new("race", "one", {"seconds": 3600})
        await client.suspend("one", "a reason")
        assert (await client.get_status("one")).runtime_status is OrchestrationRuntimeStatus.Suspended
        await client.resume("one", "a reason")
        await client.raise_event("one", "Approval", {"by": "ann"})
        status = await engine.wait("one")
        assert status is not None
        assert json.loads(status.output or "") == {"by": "ann"}
        again = await client.restart("one")
        await client.terminate(again["id"], "enough")  # type: ignore[index] # the SDK returns the whole answer
        assert (await client.get_status(again["id"])).output == "enough"  # type: ignore[index]
        await engine.wait(await client.start_new("fan_out_flaky", "two", {"key": "sdk", "times": 1}))
        await client.rewind("two", "why")
        done = await engine.wait("two")
        assert done is not None
        assert done.runtime_status == "Completed"

    _with_sdk(tmp_path, test)


def test_the_sdk_client_lists_and_purges(tmp_path: Path) -> None:
    async def test(client: DurableOrchestrationClient, engine: DurableEngine) -> None:
        for name in ("a1", "a2", "b1"):
            await engine.wait(await client.start_new("chain", name, {"n": 1}))
        past = datetime.now(UTC) - timedelta(hours=1)
        assert len(await client.get_status_all()) == 3
        found = await client.get_status_by(past, None, [OrchestrationRuntimeStatus.Completed], "a")
        assert [each.instance_id for each in found] == ["a1", "a2"]
        assert (await client.purge_instance_history("a1")).instances_deleted == 1
        assert (await client.purge_instance_history("nobody")).instances_deleted == 0
        assert (await client.purge_instance_history_by(past)).instances_deleted == 2

    _with_sdk(tmp_path, test)


def test_the_sdk_client_talks_to_entities(tmp_path: Path) -> None:
    async def test(client: DurableOrchestrationClient, engine: DurableEngine) -> None:
        counter = EntityId("Counter", "c")
        assert not (await client.read_entity_state(counter)).entity_exists
        await client.signal_entity(counter, "add", 41)

        async def exists() -> bool:
            return bool((await client.read_entity_state(counter)).entity_exists)

        await eventually(exists)
        assert (await client.read_entity_state(counter)).entity_state == 41

    _with_sdk(tmp_path, test)


def test_the_sdk_client_waits_and_makes_check_status_responses(tmp_path: Path) -> None:
    async def test(client: DurableOrchestrationClient, engine: DurableEngine) -> None:
        request = func.HttpRequest("POST", "https://public.example:8443/api/start", body=b"")
        one = await client.start_new("chain", None, {"n": 2})
        done = await client.wait_for_completion_or_create_check_status_response(request, one, 5000, 50)
        assert (done.status_code, done.get_body()) == (200, b"256")
        response = client.create_check_status_response(request, one)
        body = json.loads(response.get_body())
        wanted = f"https://public.example:8443/runtime/webhooks/durabletask/instances/{one}?taskHub=LocalHub"
        assert body["statusQueryGetUri"].startswith(wanted)
        assert f"code={KEY}" in body["statusQueryGetUri"]

    _with_sdk(tmp_path, test)
