"""What functions set or return becomes messages, before the invocation counts as succeeded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from azure.functions import meta
from hypothesis import given
from hypothesis import strategies as st

from dropforge.host.app import App
from dropforge.host.invocation import Call, Invocations
from dropforge.host.service_bus.bindings import Connection, Entity
from dropforge.host.service_bus.link import Unreachable
from dropforge.host.service_bus.outputs import Outputs, SendFailed, bodies_of
from dropforge.host.threads import FunctionThreads
from tests.unit.host.apps import loaded

SETTINGS = {"BUS": "Endpoint=sb://h;SharedAccessKeyName=n;SharedAccessKey=k;"}
SOURCE = """
app = func.FunctionApp()

@app.event_grid_trigger(arg_name="event")
@app.service_bus_queue_output(arg_name="out", queue_name="q", connection="BUS")
@app.service_bus_topic_output(arg_name="$return", topic_name="t", connection="BUS")
def both(event: str, out: func.Out[str]) -> str:
    out.set("first")
    return "second"

@app.event_grid_trigger(arg_name="event")
@app.service_bus_queue_output(arg_name="$return", queue_name="q", connection="BUS")
def returns_none(event: str):
    return None

@app.event_grid_trigger(arg_name="event")
@app.service_bus_queue_output(arg_name="out", queue_name="q", connection="BUS")
def sets_nothing(event: str, out: func.Out[str]) -> None:
    pass
"""


class Bus:
    """Remembers what was sent."""

    def __init__(self, error: Exception | None = None) -> None:
        self.sent: list[tuple[str, list[bytes], str, dict[str, str]]] = []
        self.opened = 0
        self._error = error

    def sender(self, connection: Connection, entity: Entity) -> Outlet:
        self.opened += 1
        return Outlet(self, entity)

    def take(self, entity: Entity, bodies: Sequence[bytes], content_type: str, properties: dict[str, str]) -> None:
        if self._error:
            raise self._error
        self.sent.append((str(entity), list(bodies), content_type, properties))

    async def close(self) -> None:
        pass


class Outlet:
    def __init__(self, bus: Bus, entity: Entity) -> None:
        self._bus = bus
        self._entity = entity

    async def send(self, bodies: Sequence[bytes], content_type: str, properties: dict[str, str]) -> None:
        self._bus.take(self._entity, bodies, content_type, properties)


def call(app: App, bus: Bus, name: str, times: int = 1) -> None:
    async def lived() -> None:
        threads = FunctionThreads(2)
        try:
            invocations = Invocations(app.functions, threads)
            invocations.serve_output("serviceBus", Outputs(bus, SETTINGS).send)
            function = app.find(name)
            assert function is not None
            for _ in range(times):
                await invocations.invoke(function, Call(meta.Datum("{}", "json"), "event", invocation_id="inv"))
        finally:
            threads.shutdown()

    asyncio.run(lived())


def test_out_and_return_are_sent_with_the_invocation_they_come_from(tmp_path: Path) -> None:
    bus = Bus()
    with loaded(tmp_path / "app", SOURCE) as app:
        call(app, bus, "both", times=2)
    parent = {"$AzureWebJobsParentId": "inv"}
    once = [("q", [b"first"], "text/plain", parent), ("t", [b"second"], "text/plain", parent)]
    assert bus.sent == once * 2
    # Senders stay open.
    assert bus.opened == 2


def test_nothing_set_sends_nothing_and_nothing_returned_fails(tmp_path: Path) -> None:
    bus = Bus()
    with loaded(tmp_path / "app", SOURCE) as app:
        call(app, bus, "sets_nothing")
        with pytest.raises(TypeError, match='"serviceBus" for Python type "NoneType"'):
            call(app, bus, "returns_none")
    assert bus.sent == []


@pytest.mark.parametrize("error", [Unreachable("nobody answers"), ValueError("the message is too large")])
def test_what_cannot_be_sent_fails_the_invocation(tmp_path: Path, error: Exception) -> None:
    with (
        loaded(tmp_path / "app", SOURCE) as app,
        pytest.raises(SendFailed, match="output 'out' could not be sent to q: ") as raised,
    ):
        call(app, Bus(error), "both")
    assert str(error) in str(raised.value)


@pytest.mark.parametrize(
    ("value", "bodies", "content_type"),
    [
        ("text", [b"text"], "text/plain"),
        (b"[1]", [b"[1]"], "application/octet-stream"),
        ("", [b""], "text/plain"),
        ('{"a": [1]}', [b'{"a": [1]}'], "text/plain"),
        ('["a", {"b": "\u00e9"}, 1, null]', [b"a", '{"b": "é"}'.encode(), b"1", b"null"], "text/plain"),
        ("[]", [], "text/plain"),
        ("[not json]", [b"[not json]"], "text/plain"),
        ("[" * 20_000 + "]" * 20_000, [b"[" * 20_000 + b"]" * 20_000], "text/plain"),
    ],
)
def test_text_that_is_a_json_array_becomes_a_message_for_each_item(
    value: str | bytes, bodies: list[bytes], content_type: str
) -> None:
    assert bodies_of(value) == (bodies, content_type)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])).filter(lambda text: not text.strip().startswith("[")))
def test_any_other_text_is_one_message(text: str) -> None:
    assert bodies_of(text)[0] == [text.encode()]
