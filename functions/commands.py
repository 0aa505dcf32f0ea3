"""Service Bus commands -> the step that does what they ask, and the flows it names."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

import azure.durable_functions as df
import azure.functions as func

from dropforge import steps
from dropforge.domain.causes import follow
from dropforge.domain.commands import Command
from dropforge.domain.errors import BadCommand, BadInput
from dropforge.domain.traces import trace_told
from dropforge.settings import settings
from dropforge.wiring import ports
from functions.starting import OVER, start

bp = df.Blueprint()

# What the SDK says when an event is raised to an instance that was never there (404).
UNKNOWN = "No instance with ID"


@bp.service_bus_queue_trigger(
    arg_name="message", queue_name="commands", connection="SERVICE_BUS", is_sessions_enabled=True
)
@bp.durable_client_input(client_name="client")
async def on_command(message: func.ServiceBusMessage, client: df.DurableOrchestrationClient) -> None:
    raw, now = message.get_body(), datetime.now(UTC)
    try:
        told = await asyncio.to_thread(_accept, message, raw, now)
    except BadCommand as error:
        logging.error("command %s is rejected: %s", identity(message), error)
        await asyncio.to_thread(
            steps.commands.reject, ports(), id_=identity(message), raw=raw, error=error, now=now, **_asker(message)
        )
        raise
    await carry_out(client, told)


async def carry_out(client: df.DurableOrchestrationClient, told: dict[str, Any]) -> None:
    """Start the flows and raise the events that a command asked for, and tell who waits for it. May be repeated."""
    for flow in told["start"]:
        await start(client, flow)
    for wake in told["raise"]:
        try:
            await client.raise_event(wake["flow"], wake["event"], True)
        except Exception as error:
            if OVER not in str(error) and UNKNOWN not in str(error):
                raise
            # The flow is over: it read what it would have been woken for from the ledger.
            logging.info("command %s woke nobody: %s", told["id"], error)
    await asyncio.to_thread(steps.commands.carried, ports(), told)


def _accept(message: func.ServiceBusMessage, raw: bytes, now: datetime) -> dict[str, Any]:
    return steps.commands.accept(ports(), settings(), _command(message, raw), now)


def _command(message: func.ServiceBusMessage, raw: bytes) -> Command:
    properties = message.application_properties or {}
    try:
        cause = follow(
            identity(message),
            "command",
            correlation=message.correlation_id or trace_told(properties.get("Diagnostic-Id")),
            causation=properties.get("causationId"),
            hops=properties.get("hops"),
        )
    except BadInput as error:
        raise BadCommand(f"application property {error.message}") from None
    return steps.commands.parse(
        steps.commands.read(raw),
        id=identity(message),
        by="service bus",
        cause=cause,
        reply_to=message.reply_to or None,
        reply_session=message.reply_to_session_id or None,
    )


def identity(message: func.ServiceBusMessage) -> str:
    """The sender's id of the message; of a sender who gave none, where and when the service put it."""
    return message.message_id or f"{message.sequence_number}@{message.enqueued_time_utc}"


def _asker(message: func.ServiceBusMessage) -> dict[str, Any]:
    return {
        "by": "service bus",
        "correlation": message.correlation_id or None,
        "reply_to": message.reply_to or None,
        "reply_session": message.reply_to_session_id or None,
    }
