"""What is told reaches a collector; without one, nothing is imported and nothing kept."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import ModuleType

import pytest

from dropforge import telemetry
from dropforge.telemetry import Measure, Teller, Told, configured
from tests.collector import collector

TELL = """
import logging, os, sys, time
from datetime import UTC, datetime
from dropforge import telemetry
from dropforge.domain.traces import trace_of
from dropforge.domain.causes import Cause

telemetry.start("test")
trace = trace_of(Cause("event-1", "storage"), "flights", 1)
telemetry.root("storage event-1", trace, datetime.now(UTC))
before = time.perf_counter()
try:
    with telemetry.span("submit run", trace, "r1", run="r1", nothing=None):
        logging.getLogger("dropforge.steps").warning("on its way")
        raise ValueError("no such column")
except ValueError:
    pass
telemetry.below("load and swap", trace.parent("swap model", "e/1"), time.time_ns())
telemetry.count("dropforge.runs", outcome="promoted")
telemetry.count("dropforge.runs", outcome="promoted")
telemetry.seconds("dropforge.run.duration", 2.5)
print("sdk" if "opentelemetry.sdk" in sys.modules else "no sdk", time.perf_counter() - before < 0.4)
# Long before the SDK is there: what is told in the last moments counts as well.
telemetry.close()
"""


def _told(**environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "APPLICATIONINSIGHTS"))}
    done = subprocess.run(
        [sys.executable, "-c", TELL], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


def test_without_a_place_to_send_to_nothing_is_imported() -> None:
    # The line goes where logging puts it, and nothing else comes of it.
    assert "no sdk" in _told()


def test_the_work_waits_neither_for_the_sdk_nor_for_the_collector() -> None:
    # Nobody listens there, and the process ends all the same.
    assert "True" in _told(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_EXPORTER_OTLP_TIMEOUT="1")


def test_spans_numbers_and_lines_reach_a_collector_under_one_trace() -> None:
    with collector() as found:
        _told(OTEL_EXPORTER_OTLP_ENDPOINT=found.url)
        spans = {span.name: span for span in found.spans}
        door, work, swap = spans["storage event-1"], spans["submit run"], spans["load and swap"]
        assert {span.trace_id for span in spans.values()} == {door.trace_id}
        assert (door.parent_span_id, work.parent_span_id) == (b"", door.span_id)
        assert swap.parent_span_id not in (b"", door.span_id)
        assert work.status.message == "ValueError: no such column"
        assert {each.key: each.value.string_value for each in work.attributes} == {"dropforge.run": "r1"}
        (line,) = found.lines
        assert (line.body.string_value, line.span_id) == ("on its way", work.span_id)
        (runs,) = found.metrics["dropforge.runs"].sum.data_points
        assert runs.as_int == 2
        assert found.metrics["dropforge.run.duration"].histogram.data_points[0].sum == 2.5


def test_telemetry_is_on_where_a_place_is_named_and_not_switched_off() -> None:
    assert configured({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"})
    assert configured({"APPLICATIONINSIGHTS_CONNECTION_STRING": "InstrumentationKey=…"})
    assert not configured({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"})
    assert not configured({})


def test_an_end_waits_for_an_sdk_that_is_still_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Told] = []

    class Exporter:
        def __init__(self, service: str) -> None:
            time.sleep(0.3)

        def take(self, told: Told) -> None:
            taken.append(told)

        def close(self) -> None:
            pass

    slow = ModuleType("dropforge.adapters.telemetry")
    slow.Exporter = Exporter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, slow.__name__, slow)
    monkeypatch.setattr(telemetry, "LAST_SECONDS", 0.1)
    teller = Teller("test")
    told = Measure("sum", "dropforge.runs", "1", 1, {})
    teller.tell(told)
    teller.close()
    assert taken == [told]
