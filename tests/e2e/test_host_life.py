"""The life of a host process: started once per folder, stopped gently or not, killed, started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.e2e.hosting import APPS, PATIENCE_SECONDS, HostHandle, eventually, running_host, start_host

DOORS = APPS / "doors"


def ended(host: HostHandle) -> tuple[int, str]:
    """Exit code and output of a host that does not get ready."""
    return host.process.wait(PATIENCE_SECONDS), host.output()


# ------------------------------------------------------------------ starting
def test_a_second_host_on_the_same_folder_says_who_has_it(tmp_path: Path) -> None:
    with running_host(DOORS, tmp_path) as host:
        code, output = ended(start_host(DOORS, tmp_path))
        assert code == 3
        assert f"process {host.process.pid} at {host.url}" in output
        assert host.request("GET", "/api/health").status == 200
        assert json.loads((tmp_path / "connection.json").read_text())["pid"] == host.process.pid


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, output = ended(start_host(DOORS, tmp_path, arguments=("--port", str(port))))
    assert code == 4
    assert f"port {port} on 127.0.0.1 is in use" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("file", "folder"),
    [("logs", ""), ("drops", ""), ("storage_events.db", ""), ("", "keys.json"), ("", "timers.json")],
)
def test_a_state_folder_that_cannot_be_used_is_told_of_in_one_line(tmp_path: Path, file: str, folder: str) -> None:
    state = tmp_path / "state"
    if folder:
        (state / folder).mkdir(parents=True)
    else:
        (state / file).parent.mkdir(exist_ok=True)
        (state / file).write_text("no folder, and no database" * 100)
    code, output = ended(start_host(DOORS, state))
    assert code == 1
    assert str(state / (file or folder)) in output
    assert "repair it, or" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"function_app.py": "import no_such_thing"}, ["No module named 'no_such_thing'", 'function_app.py", line 1']),
        ({}, ["no function_app.py"]),
        ({"function_app.py": "", "host.json": "{"}, ["host.json, line 1, column 2"]),
        ({"function_app.py": "", "local.settings.json": '{"IsEncrypted": true}'}, ["func settings decrypt"]),
        (
            {"function_app.py": "import azure.functions as f\na = f.FunctionApp()", "host.json": '{"version": "2.0", '
             '"extensions": {"durableTask": {"maxConcurrentActivityFunctions": 0}}}'},
            ["maxConcurrentActivityFunctions"],
        ),
    ],
)  # fmt: skip
def test_an_app_that_cannot_run_ends_with_a_clear_word(tmp_path: Path, files: dict[str, str], words: list[str]) -> None:
    (tmp_path / "app").mkdir()
    for name, text in files.items():
        (tmp_path / "app" / name).write_text(text)
    code, output = ended(start_host(tmp_path / "app", tmp_path / "state"))
    assert code == 2
    assert all(word in output for word in words), output
    assert "dropforge/host" not in output
    assert not (tmp_path / "state" / "connection.json").exists()


def test_what_is_not_served_is_told_and_the_rest_runs(tmp_path: Path) -> None:
    with running_host(DOORS, tmp_path) as host:
        told = [line["message"] for line in host.logs() if line["level"] == "Error"]
        assert [line for line in told if "'on_command'" in line and "connection 'BUS' is not set" in line]
        assert host.request("GET", "/api/health").status == 200


def test_the_banner_says_where_it_answers_and_with_which_keys(tmp_path: Path) -> None:
    with running_host(DOORS, tmp_path) as host:
        banner = eventually(lambda: host.output() if "all keys in" in host.output() else "")
        assert f"is ready at {host.url}" in banner
        assert f"{host.url}/api/echo/{{*path}}" in banner
        assert host.keys["function"] in banner
        assert host.keys["master"] in banner
        assert "\033[" not in banner


# ------------------------------------------------------------------ stopping
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_running_functions_finish_and_leaves_no_connection(tmp_path: Path, number: signal.Signals) -> None:
    with running_host(DOORS, tmp_path) as host:
        answers: list[int] = []
        client = threading.Thread(target=lambda: answers.append(host.request("GET", "/api/slow?seconds=1").status))
        client.start()
        eventually(lambda: host.saw("slow begins"))
        host.process.send_signal(number)
        eventually(lambda: "stopping" in host.output())
        assert host.request("GET", "/api/health").status == 503
        assert host.process.wait(PATIENCE_SECONDS) == 0
        client.join(PATIENCE_SECONDS)
        assert answers == [200]
        assert host.saw("slow ends")
        assert not (tmp_path / "connection.json").exists()


def test_a_function_that_takes_longer_than_the_grace_does_not_keep_the_host(tmp_path: Path) -> None:
    with running_host(DOORS, tmp_path, arguments=("--port", "0", "--grace", "0.3")) as host:
        client = threading.Thread(target=lambda: _quietly(host, "/api/slow?seconds=60"))
        client.start()
        eventually(lambda: host.saw("slow begins"))
        started = time.monotonic()
        assert host.stop() == 0
        assert time.monotonic() - started < 10
        client.join(PATIENCE_SECONDS)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with running_host(DOORS, tmp_path, arguments=("--port", "0", "--grace", "600")) as host:
        client = threading.Thread(target=lambda: _quietly(host, "/api/slow?seconds=60"))
        client.start()
        eventually(lambda: host.saw("slow begins"))
        host.process.send_signal(signal.SIGINT)
        eventually(lambda: "SIGINT: stopping" in host.output())
        assert host.stop(signal.SIGINT) == 128 + signal.SIGINT
        client.join(PATIENCE_SECONDS)


def _quietly(host: HostHandle, path: str) -> None:
    with contextlib.suppress(OSError):
        host.request("GET", path)


# ------------------------------------------------------------------ starting again
def test_keys_and_address_survive_a_kill_and_the_flows_go_on(tmp_path: Path) -> None:
    def status(host: HostHandle) -> dict[str, object]:
        key = host.keys["durabletask_extension"]
        found: dict[str, object] = host.request("GET", f"/runtime/webhooks/durabletask/instances/f?code={key}").json()
        return found

    with running_host(DOORS, tmp_path) as host:
        first = host.connection
        port = host.url.rpartition(":")[2]
        assert host.request("POST", "/api/start/squares?id=f", {"count": 25}, key="function").status == 202
        eventually(lambda: len(host.saw("square")) > 3)
        host.kill()
    assert (tmp_path / "connection.json").exists()
    for _ in range(2):
        with running_host(DOORS, tmp_path, arguments=("--port", port)) as host:
            assert {**host.connection, "pid": 0} == {**first, "pid": 0}
            so_far = len(host.saw("square"))
            eventually(lambda so_far=so_far: len(host.saw("square")) > so_far + 3)
            host.kill()
    with running_host(DOORS, tmp_path, arguments=("--port", port)) as host:
        eventually(lambda: status(host)["runtimeStatus"] == "Completed")
        assert status(host)["output"] == sum(number * number for number in range(25))
        assert host.stop() == 0


def test_an_activity_may_start_a_flow_also_while_the_host_starts(tmp_path: Path) -> None:
    with running_host(DOORS, tmp_path) as host:
        host.request("POST", "/api/start/parent?id=p", {"child": "c"}, key="function")
        key = host.keys["durabletask_extension"]
        path = f"/runtime/webhooks/durabletask/instances/c?code={key}"
        eventually(lambda: host.request("GET", path).status == 200)


def test_an_existing_live_id_is_a_conflict_for_the_sdk(tmp_path: Path) -> None:
    with running_host(DOORS, tmp_path) as host:
        assert host.request("POST", "/api/start/squares?id=f", {"count": 60}, key="function").status == 202
        assert host.request("POST", "/api/start/squares?id=f", {"count": 1}, key="function").status == 500
        assert [line for line in host.logs() if "already exists" in line["message"] and line.get("function") == "start"]


def test_episodes_are_recorded_where_asked(tmp_path: Path) -> None:
    record = tmp_path / "episodes.jsonl"
    with running_host(DOORS, tmp_path / "state", arguments=("--port", "0", "--record", str(record))) as host:
        host.request("POST", "/api/start/squares?id=f", {"count": 1}, key="function")
        eventually(lambda: record.exists() and len(record.read_text().splitlines()) >= 2)


def test_the_settings_of_the_app_reach_it(tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (app / "function_app.py").write_text(
        "import os, json, azure.functions as func\n"
        "app = func.FunctionApp(http_auth_level='ANONYMOUS')\n"
        "@app.route(route='environment')\n"
        "def environment(req: func.HttpRequest) -> func.HttpResponse:\n"
        "    return func.HttpResponse(json.dumps({**os.environ, 'cwd': os.getcwd()}))\n"
    )
    (app / "local.settings.json").write_text(json.dumps({"Values": {"A": "file", "B": "file"}}))
    (app / "host.json").write_text(
        json.dumps({"version": "2.0", "extensions": {"http": {"routePrefix": ""}}, "oops": 1})
    )
    with running_host(app, tmp_path / "state", {"A": "outside"}) as host:
        found = host.request("GET", "/environment").json()
        assert (found["A"], found["B"], found["cwd"]) == ("outside", "file", str(app))
        assert found["DROPFORGE_STATE"] == str(tmp_path / "state")
        assert [
            line for line in host.logs() if line["message"].endswith("without effect on this host: host.json: oops")
        ]
        assert os.getcwd() != str(app)


def test_host_json_is_honoured_and_settings_override_it(tmp_path: Path) -> None:
    override = "AzureFunctionsJobHost__"
    environment = {
        f"{override}extensions__http__maxOutstandingRequests": "1",
        f"{override}extensions__http__customHeaders__X-Frame-Options": "DENY",
        f"{override}functionTimeout": "00:00:01",
        f"{override}logging__logLevel__Function.health": "Error",
        f"{override}functions": '["health", "slow", "every_second"]',
    }
    with running_host(DOORS, tmp_path, environment) as host:
        answers: list[int] = []
        client = threading.Thread(target=lambda: answers.append(host.request("GET", "/api/slow?seconds=2").status))
        client.start()
        eventually(lambda: host.saw("slow begins"))
        assert host.request("GET", "/api/health").status == 429
        client.join(PATIENCE_SECONDS)
        assert answers == [500]
        answer = host.request("GET", "/api/health")
        assert (answer.status, answer.headers["x-frame-options"]) == (200, "DENY")
        assert host.request("GET", "/api/items/1").status == 404
        assert [line for line in host.logs() if "functionTimeout of 1 s" in line["message"]]
        assert not [line for line in host.logs() if line.get("function") == "health"]
