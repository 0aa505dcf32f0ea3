"""OpenTelemetry's SDK behind `dropforge.telemetry`: exporters for OTLP over HTTP, and for Application Insights.

Everything is called on one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags, set_span_in_context

from dropforge.telemetry import APPLICATION_INSIGHTS, OTLP, Line, Measure, Span, Told

if TYPE_CHECKING:
    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.metrics.export import MetricExporter

_SCOPE = "dropforge"
# Of the Functions host: whether Application Insights wants Entra, and as which identity.
_AUTHENTICATION = "APPLICATIONINSIGHTS_AUTHENTICATION_STRING"


class _Ids(IdGenerator):
    """Gives the ids that the next span has already."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class Exporter:
    """Hands what was told to the SDK, which sends it in batches."""

    def __init__(self, service: str) -> None:
        resource = Resource.create({"service.name": service, "service.version": _version()})
        self._ids = _Ids()
        # The processors of the SDK end with the process; so does this thread.
        self._traces = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        for spans in _span_exporters():
            self._traces.add_span_processor(BatchSpanProcessor(spans))
        self._tracer = self._traces.get_tracer(_SCOPE)
        readers = [PeriodicExportingMetricReader(each) for each in _metric_exporters()]
        self._metrics = MeterProvider(readers, resource, shutdown_on_exit=False)
        self._meter = self._metrics.get_meter(_SCOPE)
        self._puts: dict[str, Callable[[float, dict[str, Any]], None]] = {}
        self._logs, self._log_records = _log_provider(resource)

    def take(self, told: Told) -> None:
        match told:
            case Span():
                self._span(told)
            case Measure():
                self._measure(told)
            case Line():
                self._line(told)

    def close(self) -> None:
        """Send everything, and end."""
        for provider in (self._traces, self._metrics, self._logs):
            provider.shutdown()

    def _span(self, told: Span) -> None:
        self._ids.trace_id, self._ids.span_id = int(told.trace_id, 16), int(told.span_id, 16)
        above = _context(told.trace_id, told.parent_id) if told.parent_id is not None else None
        span = self._tracer.start_span(told.name, above, attributes=told.attributes, start_time=told.started_ns)
        if told.error is not None:
            span.set_status(Status(StatusCode.ERROR, told.error))
        span.end(told.ended_ns)

    def _measure(self, told: Measure) -> None:
        put = self._puts.get(told.name)
        if put is None:
            if told.kind == "sum":
                put = self._meter.create_counter(told.name, told.unit).add
            else:
                put = self._meter.create_histogram(told.name, told.unit).record
            self._puts[told.name] = put
        put(told.value, dict(told.attributes))

    def _line(self, told: Line) -> None:
        from opentelemetry._logs import SeverityNumber

        severity = SeverityNumber(min(24, max(1, told.level // 10 * 4 + 1)))
        where = _context(told.trace_id, told.span_id) if told.trace_id and told.span_id else None
        self._log_records.emit(
            timestamp=told.at_ns,
            context=where,
            severity_number=severity,
            severity_text=severity.name,
            body=told.message,
            attributes={"logger.name": told.logger},
        )


def _context(trace_id: str, span_id: str) -> Any:
    span = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(span))


def _version() -> str:
    try:
        return version("dropforge")
    except PackageNotFoundError:
        return "0"


def _insights() -> dict[str, Any] | None:
    """What the exporters of Application Insights are made with; None when it is not configured."""
    connection = os.environ.get(APPLICATION_INSIGHTS)
    if not connection:
        return None
    made: dict[str, Any] = {"connection_string": connection, "disable_offline_storage": True}
    if "Authorization=AAD" in os.environ.get(_AUTHENTICATION, ""):
        from azure.identity import DefaultAzureCredential

        named = dict(part.partition("=")[::2] for part in os.environ[_AUTHENTICATION].split(";"))
        made["credential"] = DefaultAzureCredential(managed_identity_client_id=named.get("ClientId"))
    return made


def _span_exporters() -> list[SpanExporter]:
    found: list[SpanExporter] = []
    if os.environ.get(OTLP):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        found.append(OTLPSpanExporter())
    if (insights := _insights()) is not None:
        from azure.monitor.opentelemetry.exporter import AzureMonitorTraceExporter

        found.append(AzureMonitorTraceExporter(**insights))
    return found


def _metric_exporters() -> list[MetricExporter]:
    found: list[MetricExporter] = []
    if os.environ.get(OTLP):
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        found.append(OTLPMetricExporter())
    if (insights := _insights()) is not None:
        from azure.monitor.opentelemetry.exporter import AzureMonitorMetricExporter

        found.append(AzureMonitorMetricExporter(**insights))
    return found


def _log_provider(resource: Resource) -> tuple[Any, Any]:
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    exporters: list[LogRecordExporter] = []
    if os.environ.get(OTLP):
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter

        exporters.append(OTLPLogExporter())
    # The Functions host sends what its worker logs to Application Insights itself.
    if "FUNCTIONS_WORKER_RUNTIME" not in os.environ and (insights := _insights()) is not None:
        from azure.monitor.opentelemetry.exporter import AzureMonitorLogExporter

        exporters.append(AzureMonitorLogExporter(**insights))
    provider = LoggerProvider(resource, shutdown_on_exit=False)
    for each in exporters:
        provider.add_log_record_processor(BatchLogRecordProcessor(each))
    return provider, provider.get_logger(_SCOPE)
