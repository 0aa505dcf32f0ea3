"""Azure Monitor alerts, from an action group's webhook or through Event Grid -> the flows that answer them."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime
from typing import Any

import azure.durable_functions as df
import azure.functions as func

from dropforge import steps
from dropforge.domain import alerts
from dropforge.domain.causes import follow
from dropforge.domain.errors import BadInput
from dropforge.domain.roles import Role
from dropforge.wiring import ports
from functions.answers import answer, ask
from functions.bodies import JSON, Body
from functions.operations import Call, operation
from functions.starting import start

bp = df.Blueprint()

# Azure Monitor sends at most 256 KB; what it is forwarded in may add to that.
MAX_ALERT_BYTES = 512 * 1024


def _read(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the alert is not JSON: {error}") from None


_EXAMPLE = {
    "schemaId": alerts.SCHEMA,
    "data": {
        "essentials": {
            "alertId": "/subscriptions/s/providers/Microsoft.AlertsManagement/alerts/b9569717-bc32-442f-add5-83a997729330",
            "alertRule": "flights-errors",
            "severity": "Sev1",
            "signalType": "Metric",
            "monitorCondition": "Fired",
            "firedDateTime": "2026-11-22T13:58:24.3713213Z",
        },
        "alertContext": {"condition": {"allOf": [{"dimensions": [{"name": "endpoint", "value": "flights"}]}]}},
    },
}


@operation(
    bp,
    "POST",
    "v1/alerts",
    role=Role.OPERATOR,
    gives={202: "object"},
    refusals=(413, 415),
    body=Body((JSON,), alerts.schema, MAX_ALERT_BYTES, _read, required=True, example=_EXAMPLE),
    starts=True,
)
async def post_alert(call: Call) -> func.HttpResponse:
    """Take in an alert, as an action group's webhook sends it; the same alert again starts nothing more."""
    cause = follow(
        "",
        "alert",
        correlation=call.correlation,
        causation=call["x-dropforge-causation-id"],
        hops=call["x-dropforge-hops"],
    )
    told = await ask(steps.alerts.record, ports(), call.body, cause, "http", datetime.now(UTC))
    for flow in told.pop("start"):
        await start(call.client, flow)
    headers = {"Location": f"/api/v1/alerts/{told['id']}"}
    if told["repeated"]:
        headers["Idempotency-Replayed"] = "true"
    return answer(told, 202, headers)


@bp.event_grid_trigger(arg_name="event")
@bp.durable_client_input(client_name="client")
async def on_alert_event(event: func.EventGridEvent, client: df.DurableOrchestrationClient) -> None:
    now = datetime.now(UTC)
    try:
        cause = follow("", "alert", causation=_said(event, "causationid"), hops=_said(event, "hops"))
        told = await asyncio.to_thread(steps.alerts.record, ports(), event.get_json(), cause, "event grid", now)
    except BadInput as error:
        # No redelivery mends it: it is taken, kept and shown.
        logging.error("event %s is no alert and is kept as a misfit: %s", event.id, error)
        source = event.source if isinstance(event, func.CloudEvent) else event.topic
        await asyncio.to_thread(
            steps.alerts.keep_misfit, ports(), str(event.id), str(source), event.get_json(), error.message, now
        )
        return
    for flow in told["start"]:
        await start(client, flow)


def _said(event: func.EventGridEvent | func.CloudEvent, name: str) -> Any:
    """An extension attribute; the Event Grid schema has none. The SDK makes one of two objects of an event, whatever the
    parameter says it wants."""
    return event.extension_attrs.get(name) if isinstance(event, func.CloudEvent) else None
