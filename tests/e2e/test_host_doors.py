"""Every door of the host: who may come in, where routes lead, what is refused at the doorstep."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.hosting import APPS, HostHandle, eventually, running_host

EVENT = {
    "id": "e",
    "eventType": "T",
    "subject": "s",
    "data": {},
    "eventTime": "2026-11-22T12:00:00Z",
    "dataVersion": "1",
}
NOTIFICATION = {"aeg-event-type": "Notification"}
GRID = "/runtime/webhooks/EventGrid?functionName=on_event"
DURABLE = "/runtime/webhooks/durabletask"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostHandle]:
    app = tmp_path_factory.mktemp("app") / "doors"
    app.mkdir()
    for name in ("function_app.py", "host.json"):
        (app / name).write_bytes((APPS / "doors" / name).read_bytes())
    settings = {"Values": {"FROM_FILE": "1"}, "Host": {"CORS": "https://page.example", "CORSCredentials": True}}
    (app / "local.settings.json").write_text(json.dumps(settings))
    with running_host(app, tmp_path_factory.mktemp("state")) as host:
        yield host


# ------------------------------------------------------------------ keys
# method, path, body, headers, the keys that open it, the status behind it
DOORS: list[tuple[str, str, Any, dict[str, str], set[str], int]] = [
    ("GET", "/api/echo/x", None, {}, {"function", "master"}, 200),
    ("POST", "/api/only/1", "", {}, {"master"}, 200),
    ("GET", "/admin/host/status", None, {}, {"master"}, 200),
    ("GET", "/admin/functions", None, {}, {"master"}, 200),
    ("GET", "/admin/functions/echo", None, {}, {"master"}, 200),
    ("POST", "/admin/functions/square", {"input": "3"}, {}, {"master"}, 202),
    ("GET", "/admin/anything/else", None, {}, {"master"}, 404),
    ("POST", GRID, [EVENT], NOTIFICATION, {"eventgrid_extension", "master"}, 202),
    ("OPTIONS", GRID, None, {"WebHook-Request-Origin": "x"}, {"eventgrid_extension", "master"}, 200),
    ("POST", "/runtime/webhooks/EventGrid?functionName=nobody", [EVENT], {}, {"eventgrid_extension", "master"}, 404),
    ("GET", f"{DURABLE}/instances", None, {}, {"durabletask_extension", "master"}, 200),
    ("GET", f"{DURABLE}/instances/nobody", None, {}, {"durabletask_extension", "master"}, 404),
    ("POST", f"{DURABLE}/orchestrators/nobody", None, {}, {"durabletask_extension", "master"}, 400),
    ("POST", f"{DURABLE}/instances/nobody/terminate", None, {}, {"durabletask_extension", "master"}, 404),
    ("DELETE", f"{DURABLE}/instances/nobody", None, {}, {"durabletask_extension", "master"}, 404),
    ("GET", f"{DURABLE}/entities/counter/nobody", None, {}, {"durabletask_extension", "master"}, 404),
    ("GET", "/runtime/durabletask-rpc/guessed/instances/", None, {}, set(), 0),
    ("POST", "/runtime/durabletask-rpc/guessed/orchestrators/squares", {}, {}, set(), 0),
]


@pytest.mark.parametrize("place", ["header", "query"])
@pytest.mark.parametrize(("method", "path", "body", "headers", "opening", "status"), DOORS)
def test_only_the_right_keys_open_a_door(
    host: HostHandle,
    method: str,
    path: str,
    body: Any,
    headers: dict[str, str],
    opening: set[str],
    status: int,
    place: str,
) -> None:
    keys = {**host.keys, "none": "", "wrong": "wrong-" + host.keys["master"], "prefix": host.keys["master"][:-1]}
    for name, key in keys.items():
        if place == "header":
            answer = host.request(method, path, body, headers={**headers, **({"x-functions-key": key} if key else {})})
        else:
            mark = "&" if "?" in path else "?"
            answer = host.request(method, f"{path}{mark}code={key}" if key else path, body, headers=headers)
        assert answer.status == (status if name in opening else 401), name


def test_the_key_in_the_header_wins_over_the_one_in_the_query(host: HostHandle) -> None:
    key = host.keys["function"]
    assert host.request("GET", f"/api/echo/x?code={key}", headers={"x-functions-key": "wrong"}).status == 401
    assert host.request("GET", "/api/echo/x?code=wrong", headers={"x-functions-key": key}).status == 200
    assert host.request("GET", f"/api/echo/x?code={key}", headers={"x-functions-key": ""}).status == 200


def test_a_function_has_a_key_of_its_own_that_opens_no_other(host: HostHandle) -> None:
    keys = json.loads((host.state / "keys.json").read_text())["functions"]
    assert host.request("GET", "/api/echo/x", headers={"x-functions-key": keys["echo"]["default"]}).status == 200
    assert host.request("GET", "/api/echo/x", headers={"x-functions-key": keys["start"]["default"]}).status == 401


def test_a_door_without_a_lock_needs_no_key(host: HostHandle) -> None:
    assert host.request("GET", "/api/health").text == "ok"
    assert host.request("GET", "/api/health", headers={"x-functions-key": "wrong"}).status == 200


# ------------------------------------------------------------------ routes
@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/api/items/42", 200, {"function": "number", "id": "42"}),
        ("GET", "/api/items/4x2", 200, {"function": "name", "name": "4x2"}),
        ("GET", "/api/items/special", 200, {"function": "special"}),
        ("GET", "/API/ITEMS/special", 200, {"function": "special"}),
        ("OPTIONS", "/api/items/special", 200, {"function": "name", "name": "special"}),
        ("GET", "/api/items/a%20b%2Fc", 200, {"function": "name", "name": "a b%2Fc"}),
        ("GET", "/api/items/a%0Ab", 200, {"function": "name", "name": "a\nb"}),
        ("POST", "/api/items/42", 404, None),
        ("GET", "/api/only/1", 404, None),
        ("HEAD", "/api/health", 404, None),
        ("OPTIONS", "/api/health", 404, None),
        ("GET", "/api/items", 404, None),
        ("GET", "/api/items/1/2", 404, None),
        ("GET", "/items/42", 404, None),
        ("GET", "/apiitems/42", 404, None),
        ("GET", "/api", 404, None),
        ("GET", "/", 404, None),
        ("GET", "/api/../admin/functions", 404, None),
    ],
)
def test_the_route_table(host: HostHandle, method: str, path: str, status: int, body: Any) -> None:
    answer = host.request(method, path)
    assert answer.status == status
    if body is not None:
        assert answer.json() == body


def test_head_gets_the_headers_and_no_body(host: HostHandle) -> None:
    answer = host.request("HEAD", "/api/items/x")
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"", "application/json")


def test_a_request_arrives_whole(host: HostHandle) -> None:
    path = "/api/echo/a/b%20c?x=1&x=2&empty=&y=%C3%BC"
    told = host.request("PUT", path, b"12345", key="function", headers={"X-More": "m", "X-Twice": "a"}).json()
    assert told["method"] == "PUT"
    assert told["url"].startswith(f"{host.url}/api/echo/a/b%20c?")
    assert told["query"] == {"x": "1,2", "y": "ü"}
    assert told["route"] == {"path": "a/b c"}
    assert (told["headers"]["x-more"], told["body_bytes"]) == ("m", 5)


def test_a_response_leaves_whole(host: HostHandle) -> None:
    answer = host.request("GET", "/api/fail/404")
    assert (answer.status, answer.text, answer.headers["x-more"], answer.headers["set-cookie"]) == (
        404, "x", "1", "a=1; Path=/",
    )  # fmt: skip


# ------------------------------------------------------------------ failures
@pytest.mark.parametrize("how", ["raise", "none", "exit", "header", "999"])
def test_a_failure_tells_the_client_the_invocation_and_nothing_else(host: HostHandle, how: str) -> None:
    answer = host.request("GET", f"/api/fail/{how}")
    assert answer.status == 500
    told = answer.json()
    assert set(told) == {"error", "invocationId"}
    assert "recipe" not in answer.text
    assert "set-cookie" not in answer.headers
    assert host.request("GET", "/api/health").status == 200
    if how == "raise":
        failed = [line for line in host.logs() if line.get("invocation_id") == told["invocationId"]]
        assert any("the secret recipe" in line["message"] and "Traceback" in line["exception"] for line in failed)


# ------------------------------------------------------------------ sizes
@contextlib.contextmanager
def raw(host: HostHandle, head: str) -> Iterator[socket.socket]:
    place = urlsplit(host.url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        yield connection


@pytest.mark.parametrize(
    "path", ["/api/items/x", "/api/echo/x", "/admin/functions/square", GRID, f"{DURABLE}/orchestrators/squares"]
)
@pytest.mark.parametrize("expect", ["", "\nExpect: 100-continue"])
def test_a_body_that_claims_two_gigabytes_is_refused_before_it_is_sent(
    host: HostHandle, path: str, expect: str
) -> None:
    key = host.keys["master"]
    head = f"POST {path} HTTP/1.1\nHost: h\nContent-Length: 2147483648\nx-functions-key: {key}{expect}"
    with raw(host, head) as connection:
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_body_that_grows_past_the_limit_is_refused(host: HostHandle) -> None:
    head = f"POST /api/echo/x HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\nx-functions-key: {host.keys['function']}"
    piece = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    with raw(host, head) as connection:
        with contextlib.suppress(ConnectionError):
            for _ in range(110):
                connection.sendall(piece)
        assert b" 413 " in connection.recv(4096)
    assert host.request("GET", "/api/health").status == 200


def test_a_large_body_within_the_limit_arrives(host: HostHandle) -> None:
    assert host.request("POST", "/api/echo/x", b"x" * 20_000_000, key="function").json()["body_bytes"] == 20_000_000


def test_a_client_that_waits_for_a_hundred_gets_it(host: HostHandle) -> None:
    key = host.keys["function"]
    head = f"POST /api/echo/x HTTP/1.1\nHost: h\nContent-Length: 3\nExpect: 100-continue\nx-functions-key: {key}"
    with raw(host, head) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(b"abc")
        assert b'"body_bytes": 3' in connection.recv(65536)
    with raw(host, head.replace(key, "wrong")) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 401")


# ------------------------------------------------------------------ CORS
def test_a_page_of_a_listed_origin_may_call(host: HostHandle) -> None:
    page = {"Origin": "https://page.example"}
    preflight = host.request(
        "OPTIONS", "/api/echo/x",
        headers={**page, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "x-functions-key"},
    )  # fmt: skip
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == "https://page.example"
    assert preflight.headers["access-control-allow-methods"] == "PUT"
    assert preflight.headers["access-control-allow-headers"] == "x-functions-key"
    assert preflight.headers["access-control-allow-credentials"] == "true"
    for path, status in (("/api/health", 200), ("/api/echo/x", 401), ("/api/nothing", 404), ("/api/fail/raise", 500)):
        answer = host.request("GET", path, headers=page)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, "https://page.example")


def test_a_page_of_another_origin_may_not(host: HostHandle) -> None:
    page = {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
    assert "access-control-allow-origin" not in host.request("OPTIONS", "/api/health", headers=page).headers
    assert "access-control-allow-origin" not in host.request("GET", "/api/health", headers=page).headers


# ------------------------------------------------------------------ admin
def test_the_admin_api_tells_of_the_host_and_its_functions(host: HostHandle) -> None:
    status = host.request("GET", "/admin/host/status", key="master").json()
    assert status["state"] == "Running"
    assert ["on_command" in error and "Service Bus connection" in error for error in status["errors"]] == [True]
    functions = {each["name"]: each for each in host.request("GET", "/admin/functions", key="master").json()}
    assert {"echo", "on_event", "squares", "hourly"} <= set(functions)
    assert "on_command" not in functions
    assert functions["hourly"]["config"]["bindings"][0]["schedule"] == "0 0 * * * *"


def test_functions_without_http_can_be_called_by_hand(host: HostHandle) -> None:
    def by_hand(name: str, text: object) -> int:
        return host.request("POST", f"/admin/functions/{name}", {"input": text}, key="master").status

    assert by_hand("SQUARE", "12") == 202
    assert by_hand("hourly", "") == 202
    assert by_hand("on_event", json.dumps({**EVENT, "id": "by-hand"})) == 202
    eventually(lambda: [saw for saw in host.saw("square") if saw["number"] == 12])
    eventually(lambda: host.saw("hourly"))
    eventually(lambda: [saw for saw in host.saw("event") if saw["id"] == "by-hand"])
    assert by_hand("on_event", "no event") == 400
    assert by_hand("square", "{") == 400
    assert by_hand("echo", "") == 400
    assert by_hand("squares", "") == 400
    assert by_hand("nobody", "") == 404
    assert host.request("POST", "/admin/functions/hourly", "no json", key="master").status == 400


# ------------------------------------------------------------------ logs
def test_what_a_function_logs_carries_its_invocation(host: HostHandle) -> None:
    number = host.request("GET", "/api/log?words=hello").text
    lines = [line for line in host.logs() if line.get("invocation_id") == number]
    assert {"told to say hello", "from a thread"} <= {line["message"] for line in lines}
    assert all(line["function"] == "log" for line in lines)


def test_no_key_is_ever_logged(host: HostHandle) -> None:
    for name, key in host.keys.items():
        host.request("GET", f"/api/log?words={key}&code={key}", key=name)
        host.request("GET", f"/api/log%2F{key}?words=x&code={key}")
        host.request("GET", f"/api/fail/{key}")
    written = (host.state / "logs" / "host.jsonl").read_text()
    assert "told to say ***" in written
    assert not [name for name, key in host.keys.items() if key in written]
    # The terminal shows the keys once, in the lines that say where the host is ready.
    ready, _, rest = host.output().partition("all keys in")
    assert host.keys["master"] in ready
    assert not [name for name, key in host.keys.items() if key in rest]


def test_what_is_private_is_private(host: HostHandle) -> None:
    for name in ("keys.json", "connection.json", "host.lock"):
        assert (host.state / name).stat().st_mode & 0o777 == 0o600
