"""Loading an app: what is indexed, what is left out and why, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from dropforge.host.app import Direction
from dropforge.host.errors import AppError
from tests.unit.host.apps import loaded


def test_triggers_bindings_and_settings_are_indexed(tmp_path: Path) -> None:
    source = """
    app = df.DFApp(http_auth_level=func.AuthLevel.FUNCTION)

    @app.route(route="start/{name}", methods=["POST"])
    @app.durable_client_input(client_name="client")
    async def start(req: func.HttpRequest, client, context: func.Context):
        pass

    @app.service_bus_queue_trigger(arg_name="msg", queue_name="%QUEUE%-%KIND%", connection="SB")
    @app.service_bus_queue_output(arg_name="out", queue_name="replies", connection="SB")
    def on_message(msg: func.ServiceBusMessage, out: func.Out[str]):
        pass

    @app.activity_trigger(input_name="n", activity="other_name")
    def square(n: int) -> int:
        return n * n

    @app.event_grid_trigger(arg_name="event")
    def on_event(event: str):
        pass
    """
    with loaded(tmp_path, source, {"QUEUE": "commands", "KIND": "test"}) as app:
        assert app.problems == ()
        start, on_message, square, on_event = app.functions
    assert (start.trigger.type, start.trigger.properties["route"]) == ("httpTrigger", "start/{name}")
    assert (start.trigger.properties["authLevel"], start.trigger.properties["methods"]) == ("function", ["POST"])
    assert [binding.type for binding in start.inputs] == ["durableClient"]
    assert (start.is_async, start.wants_context, start.returns, start.outputs) == (True, True, "http", ())
    assert on_message.trigger.properties["queueName"] == "commands-test"
    assert [(out.name, out.direction) for out in on_message.outputs] == [("out", Direction.OUT)]
    assert on_message.returns is None
    assert (square.name, square.durable_name, square.returns) == ("square", "other_name", "activityTrigger")
    assert on_event.raw_parameters == {"event"}


def test_functions_are_found_in_any_case(tmp_path: Path) -> None:
    source = """
    app = func.FunctionApp()

    @app.function_name("OnTick")
    @app.timer_trigger(arg_name="t", schedule="0 * * * * *")
    def tick(t: func.TimerRequest):
        pass
    """
    with loaded(tmp_path, source) as app:
        found = app.find("ontick")
        assert found is not None
        assert found.name == "OnTick"
        assert app.find("tick") is None


def test_one_bad_function_leaves_the_others_running(tmp_path: Path) -> None:
    source = """
    app = func.FunctionApp()

    @app.timer_trigger(arg_name="t", schedule="%NOT_SET%")
    def no_setting(t: func.TimerRequest):
        pass

    @app.timer_trigger(arg_name="t", schedule="0 * * * * *")
    def extra(t: func.TimerRequest, more):
        pass

    @app.timer_trigger(arg_name="t", schedule="0 * * * * *")
    def missing():
        pass

    @app.timer_trigger(arg_name="t", schedule="0 * * * * *")
    def off(t: func.TimerRequest):
        pass

    @app.timer_trigger(arg_name="t", schedule="0 * * * * *")
    def good(t: func.TimerRequest):
        pass
    """
    with loaded(tmp_path, source, {"AzureWebJobs.off.Disabled": "true"}) as app:
        assert [function.name for function in app.functions] == ["good"]
        problems = "\n".join(app.problems)
    assert "'%NOT_SET%' does not resolve to a value; set NOT_SET" in problems
    assert "parameters ['more'] belong to no trigger" in problems
    assert "bindings ['t'] are no parameters" in problems
    assert "disabled by the setting" in problems


def test_host_json_may_choose_the_functions(tmp_path: Path) -> None:
    source = """
    app = func.FunctionApp()

    @app.route(route="a")
    def Wanted(req: func.HttpRequest):
        pass

    @app.route(route="b")
    def other(req: func.HttpRequest):
        pass
    """
    with loaded(tmp_path, source, only=frozenset({"wanted"})) as app:
        assert [function.name for function in app.functions] == ["Wanted"]


def test_the_modules_beside_the_app_are_its_own(tmp_path: Path) -> None:
    """A checkout that is installed as editable has a package `functions` too; the app's wins."""
    (tmp_path / "functions_of_this_test").mkdir()
    (tmp_path / "functions_of_this_test" / "__init__.py").write_text("WORD = 'mine'")
    with loaded(tmp_path, "from functions_of_this_test import WORD\napp = func.FunctionApp()\nassert WORD == 'mine'"):
        pass


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_module", ["ModuleNotFoundError", "No module named 'no_such_module'", "line 6"]),
        ("def broken(:\n    pass", ["SyntaxError", "function_app.py", "line 6"]),
        ("raise SystemExit(3)", ["SystemExit", "cannot be imported"]),
        ("from helper import x", ["ZeroDivisionError", "helper.py", "line 1, in <module>"]),
        ("x = 1", ["one FunctionApp", "found none"]),
        ("a = func.FunctionApp()\nb = func.FunctionApp()", ["found 2"]),
        (
            "app = func.FunctionApp()\n@app.route(route='a')\ndef f(req): pass\n@app.route(route='b')\ndef f(req): pass",
            ["cannot be indexed", "f"],
        ),
    ],
)
def test_an_app_that_cannot_be_loaded_is_refused_with_the_users_part_of_the_traceback(
    tmp_path: Path, source: str, words: list[str]
) -> None:
    (tmp_path / "helper.py").write_text("x = 1 / 0")
    with pytest.raises(AppError) as refused, loaded(tmp_path, source):
        pass
    message = str(refused.value)
    assert all(word in message for word in words), message
    assert "importlib" not in message
    assert "dropforge/host" not in message


def test_two_names_for_one_app_are_one_app(tmp_path: Path) -> None:
    with loaded(tmp_path, "app = func.FunctionApp()\nsame = app") as app:
        assert app.functions == ()


def test_a_folder_without_an_app_is_refused(tmp_path: Path) -> None:
    from dropforge.host.app import load_app

    with pytest.raises(AppError, match=r"no function_app\.py"):
        load_app(tmp_path, {})
