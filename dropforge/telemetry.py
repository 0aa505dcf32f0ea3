"""What the platform tells OpenTelemetry: spans, counts and log lines, when a place to send them is configured.

When none is, nothing is kept and nothing imported. When one is, telling costs a place in a queue: a thread of its own
imports the SDK, which takes longer than a trigger's first answer should, and sends what has gathered. The queue is
bounded; what does not fit is dropped and counted. The variables are OpenTelemetry's own and Application Insights':
`OTEL_EXPORTER_OTLP_ENDPOINT`, `APPLICATIONINSIGHTS_CONNECTION_STRING`.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from threading import Event, Lock, Thread
from typing import Any, TypeAlias

from dropforge.domain.traces import ROOT, Trace, span_told

OTLP = "OTEL_EXPORTER_OTLP_ENDPOINT"
APPLICATION_INSIGHTS = "APPLICATIONINSIGHTS_CONNECTION_STRING"
QUEUE = 10_000
SEND_SECONDS = 2.0
# What a process that ends waits for the SDK, if that is still being imported, and then for the rest to be sent.
IMPORT_SECONDS = 15.0
LAST_SECONDS = 3.0

Value: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True)
class Span:
    """One piece of work that is over. Times are nanoseconds since 1970."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    started_ns: int
    ended_ns: int
    error: str | None
    attributes: Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class Measure:
    """A number to add (`sum`) or to put among others (`histogram`)."""

    kind: str
    name: str
    unit: str
    value: float
    attributes: Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class Line:
    """A log line, with the span it was written in."""

    at_ns: int
    level: int
    logger: str
    message: str
    trace_id: str | None
    span_id: str | None


Told: TypeAlias = Span | Measure | Line
# The trace and the span that this code runs in.
_inside: ContextVar[tuple[str, str] | None] = ContextVar("dropforge_span", default=None)


@dataclass
class Teller:
    """The queue, and the thread that empties it."""

    service: str
    queue: deque[Told] = field(default_factory=deque)
    dropped: int = 0
    # The SDK is there, or cannot be had.
    imported: Event = field(default_factory=Event)
    _wake: Event = field(default_factory=Event)
    _ending: bool = False
    _thread: Thread | None = None
    _lock: Lock = field(default_factory=Lock)

    def tell(self, told: Told) -> None:
        if len(self.queue) >= QUEUE:
            self.dropped += 1
            return
        self.queue.append(told)
        if self._thread is None:
            self._start()

    def close(self) -> None:
        """Send what is left, for a while."""
        self._ending = True
        self._wake.set()
        if self._thread is not None:
            self.imported.wait(IMPORT_SECONDS)
            self._thread.join(LAST_SECONDS)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = Thread(target=self._run, name="telemetry", daemon=True)
                self._thread.start()
                atexit.register(self.close)

    def _run(self) -> None:
        try:
            from dropforge.adapters.telemetry import Exporter

            exporter = Exporter(self.service)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with telemetry, the work goes on
            self._disable(error)
            return
        finally:
            self.imported.set()
        while not self._ending:
            self._wake.wait(SEND_SECONDS)
            self._send(exporter)
        self._send(exporter)
        exporter.close()

    def _send(self, exporter: Any) -> None:
        while self.queue:
            exporter.take(self.queue.popleft())
        if self.dropped:
            dropped, self.dropped = self.dropped, 0
            exporter.take(Measure("sum", "dropforge.telemetry.dropped", "1", dropped, {}))

    def _disable(self, error: Exception) -> None:
        global _teller
        _teller = None
        self.queue.clear()
        log = logging.getLogger(__name__)
        if isinstance(error, ModuleNotFoundError):
            log.warning("no telemetry: %s; install the extra dropforge[telemetry]", error)
        else:
            log.warning("no telemetry: %r; correct %s or %s", error, OTLP, APPLICATION_INSIGHTS)


_teller: Teller | None = None


def configured(environment: Mapping[str, str]) -> bool:
    """Whether there is a place to send to."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return bool(environment.get(OTLP) or environment.get(APPLICATION_INSIGHTS))


def start(service: str) -> None:
    """Tell from now on, as that service, if a place is configured. Once per process, by its main program."""
    global _teller
    if _teller is None and configured(os.environ):
        _teller = Teller(os.environ.get("OTEL_SERVICE_NAME") or service)
        # The Functions host sends what its worker logs to Application Insights itself.
        if os.environ.get(OTLP) or "FUNCTIONS_WORKER_RUNTIME" not in os.environ:
            logging.getLogger("dropforge").addHandler(_Handler(logging.INFO))


@contextmanager
def span(name: str, trace: Trace, key: str = "", **attributes: Value) -> Iterator[None]:
    """The work inside, as a span under the trace's root. An error that leaves it is told and goes on."""
    if _teller is None:
        yield
        return
    began, span_id, error = time.time_ns(), trace.span(name, key), None
    token = _inside.set((trace.id, span_id))
    try:
        yield
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
        raise
    finally:
        _inside.reset(token)
        _tell_span(name, trace, key, began, time.time_ns(), error, attributes)


def done(name: str, trace: Trace, began_ns: int, *, key: str = "", **attributes: Value) -> None:
    """Work that began at `began_ns` and is over now: for what is a span only when it went well."""
    if _teller is not None:
        _tell_span(name, trace, key, began_ns, time.time_ns(), None, attributes)


def below(name: str, traceparent: str | None, began_ns: int, *, key: str = "", **attributes: Value) -> None:
    """Work that is over now, for whoever gave this `traceparent`; nothing when none was given."""
    if _teller is not None and (told := span_told(traceparent)) is not None:
        trace, parent = told
        _teller.tell(
            Span(name, trace.id, trace.span(name, key), parent, began_ns, time.time_ns(), None, _said(attributes))
        )


def served(name: str, traceparent: str | None, began_ns: int, *, error: str | None = None, **attributes: Value) -> None:
    """A request that is over now, for whoever gave this `traceparent`; without one, as a trace of its own."""
    if _teller is not None:
        told = span_told(traceparent)
        trace, parent = told if told is not None else (Trace(os.urandom(16).hex()), None)
        ended, span_id = max(began_ns, time.time_ns()), os.urandom(8).hex()
        _teller.tell(Span(name, trace.id, span_id, parent, began_ns, ended, error, _said(attributes)))


def past(
    name: str,
    trace: Trace,
    started_at: datetime,
    ended_at: datetime,
    *,
    key: str = "",
    error: str | None = None,
    **attributes: Value,
) -> None:
    """Work that was done elsewhere, as a span under the trace's root."""
    if _teller is not None:
        _tell_span(name, trace, key, _ns(started_at), _ns(ended_at), error, attributes)


def root(name: str, trace: Trace, at: datetime, **attributes: Value) -> None:
    """What came in through a door: the span that all others of the trace lie under."""
    if _teller is not None:
        _tell_span(name, trace, "", _ns(at), _ns(at), None, attributes, root=True)


def count(name: str, value: int = 1, **attributes: Value) -> None:
    """Add to a counter, such as `dropforge.runs`."""
    if _teller is not None and value:
        _teller.tell(Measure("sum", name, "1", value, _said(attributes)))


def seconds(name: str, value: float, **attributes: Value) -> None:
    """Put a duration among others."""
    if _teller is not None:
        _teller.tell(Measure("histogram", name, "s", value, _said(attributes)))


def _tell_span(
    name: str,
    trace: Trace,
    key: str,
    began: int,
    ended: int,
    error: str | None,
    attributes: Mapping[str, Value],
    *,
    root: bool = False,
) -> None:
    if _teller is not None:
        door = trace.span(ROOT)
        span_id, parent = (door, None) if root else (trace.span(name, key), door)
        _teller.tell(Span(name, trace.id, span_id, parent, began, max(began, ended), error, _said(attributes)))


def _said(attributes: Mapping[str, Value]) -> dict[str, str | int | float | bool]:
    return {f"dropforge.{name}": value for name, value in attributes.items() if value is not None}


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000


class _Handler(logging.Handler):
    """The platform's own log lines, beside wherever else they go."""

    def emit(self, record: logging.LogRecord) -> None:
        if _teller is None or record.name.startswith("dropforge.telemetry"):
            return
        inside = _inside.get()
        message = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            message += f" ({type(record.exc_info[1]).__name__}: {record.exc_info[1]})"
        trace_id, span_id = inside or (None, None)
        _teller.tell(Line(int(record.created * 1e9), record.levelno, record.name, message, trace_id, span_id))


def close() -> None:
    """Send what is left, for a while; a process that ends in good order does so by itself."""
    if _teller is not None:
        _teller.close()
