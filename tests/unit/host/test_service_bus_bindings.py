"""Which entity and which connection a binding means, and what is said when one is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from dropforge.host.app import AppFunction
from dropforge.host.service_bus import bindings
from dropforge.host.service_bus.bindings import Connection, Entity, output_of, problem, secrets, trigger_of
from tests.unit.host.apps import loaded

LOCAL = "Endpoint=sb://h;SharedAccessKeyName=n;SharedAccessKey=sixteen-letters;"
SOURCE = """
app = func.FunctionApp()

@app.service_bus_queue_trigger(arg_name="message", queue_name="%QUEUE%", connection="BUS", is_sessions_enabled=True)
def on_queue(message: func.ServiceBusMessage): pass

@app.service_bus_topic_trigger(arg_name="message", topic_name="t", subscription_name="s", connection="BUS",
    cardinality="many", data_type=func.DataType.BINARY, auto_complete_messages=False)
@app.service_bus_queue_output(arg_name="out", queue_name="o", connection="BUS")
@app.service_bus_topic_output(arg_name="$return", topic_name="e", connection="BUS")
def on_topic(message, out): pass

@app.service_bus_topic_trigger(arg_name="message", topic_name="t", subscription_name="", connection="BUS")
def on_no_subscription(message): pass

@app.service_bus_queue_trigger(arg_name="message", queue_name="", connection="BUS")
def on_no_queue(message): pass
"""
LITERAL = """
app = func.FunctionApp()

@app.service_bus_queue_trigger(arg_name="message", queue_name="q", connection="Endpoint=sb://h;SharedAccessKey=secret")
def on_queue(message): pass
"""


def find(tmp_path: Path, name: str, source: str = SOURCE) -> AppFunction:
    with loaded(tmp_path / "app", source, {"QUEUE": "q"}) as app:
        found = app.find(name)
        assert found is not None
        return found


def test_a_queue_trigger_is_read(tmp_path: Path) -> None:
    found = trigger_of(find(tmp_path, "on_queue"), {"BUS": LOCAL})
    assert (found.entity, found.connection) == (Entity("q"), Connection("BUS", string=LOCAL))
    assert (found.sessions, found.many, found.binary, found.auto_complete) == (True, False, False, None)


def test_a_topic_trigger_and_its_outputs_are_read(tmp_path: Path) -> None:
    function = find(tmp_path, "on_topic")
    found = trigger_of(function, {"BUS": LOCAL})
    assert (str(found.entity), found.entity.is_topic) == ("t/s", True)
    assert (found.sessions, found.many, found.binary, found.auto_complete) == (False, True, True, False)
    places = {binding.name: output_of(binding, {"BUS": LOCAL})[1] for binding in function.sent}
    assert places == {"out": Entity("o"), "$return": Entity("e", is_topic=True)}


def test_the_prefixed_setting_comes_first_and_an_identity_needs_a_namespace_only(tmp_path: Path) -> None:
    function = find(tmp_path, "on_queue")
    assert trigger_of(function, {"BUS": LOCAL, "AzureWebJobsBUS": LOCAL}).connection.setting == "AzureWebJobsBUS"
    identity = {"BUS__fullyQualifiedNamespace": "sb://x.servicebus.windows.net/", "BUS__clientId": "1-2"}
    assert trigger_of(function, identity).connection == Connection(
        "BUS", namespace="x.servicebus.windows.net", client_id="1-2"
    )


@pytest.mark.parametrize(
    ("name", "environment", "words"),
    [
        ("on_queue", {}, ["'BUS' is not set", "BUS__fullyQualifiedNamespace"]),
        ("on_queue", {"BUS": ""}, ["'BUS' is not set"]),
        ("on_queue", {"BUS": "sixteen-letters"}, ["setting BUS is no Service Bus connection string"]),
        ("on_queue", {"BUS": f"{LOCAL}EntityPath=other"}, ["'other' only", "'q'"]),
        ("on_no_subscription", {"BUS": LOCAL}, ["topic 't' but no subscription"]),
        ("on_no_queue", {"BUS": LOCAL}, ["neither a queue nor a topic"]),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, name: str, environment: dict[str, str], words: list[str]) -> None:
    said = problem(find(tmp_path, name), environment)
    assert said is not None
    assert all(word in said for word in words), said
    assert "sixteen" not in said


def test_a_connection_string_in_the_code_is_refused_without_being_told(tmp_path: Path) -> None:
    said = problem(find(tmp_path, "on_queue", LITERAL), {})
    assert said is not None
    assert "whole connection string" in said
    assert "secret" not in said


def test_an_output_without_its_connection_is_a_problem_too(tmp_path: Path) -> None:
    assert problem(find(tmp_path, "on_topic"), {"BUS": LOCAL}) is None
    assert "'BUS' is not set" in str(problem(find(tmp_path, "on_topic"), {}))


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> object:
        return None if name == "azure.identity" else object()

    monkeypatch.setattr(bindings.importlib.util, "find_spec", find_spec)
    function = find(tmp_path, "on_queue")
    assert problem(function, {"BUS": LOCAL}) is None
    assert "pip install azure-identity" in str(problem(function, {"BUS__fullyQualifiedNamespace": "x"}))


def test_keys_are_found_to_be_hidden_and_never_shown() -> None:
    assert secrets({"BUS": LOCAL, "OTHER": "x"}) == ["sixteen-letters"]
    assert "sixteen" not in repr(Connection("BUS", string=LOCAL))
