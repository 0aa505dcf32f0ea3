"""Event Grid's events from the Service Bus queue `events` -> the same work as when Event Grid calls a function itself.

A queue needs no key and no function that is there before the subscription; it keeps what could not be done, to be replayed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import azure.durable_functions as df
import azure.functions as func

from dropforge import steps
from dropforge.domain.errors import BadEvent
from dropforge.wiring import ports
from functions import datasets, envelopes, runs
from functions.commands import identity

bp = df.Blueprint()

# The beginning of an event's type -> who has use for it.
_TAKERS: dict[str, Callable[[dict[str, Any], df.DurableOrchestrationClient], Awaitable[None]]] = {
    "Microsoft.Storage.": datasets.take,
    "Microsoft.MachineLearningServices.": runs.wake,
}


@bp.service_bus_queue_trigger(arg_name="message", queue_name="events", connection="SERVICE_BUS")
@bp.durable_client_input(client_name="client")
async def on_queued_event(message: func.ServiceBusMessage, client: df.DurableOrchestrationClient) -> None:
    raw = message.get_body()
    try:
        await _take_all(envelopes.read(raw), client)
    except BadEvent as error:
        id_ = identity(message)
        logging.error("event message %s is rejected: %s", id_, error)
        now = datetime.now(UTC)
        await asyncio.to_thread(steps.commands.reject, ports(), id_=id_, raw=raw, by="event grid", error=error, now=now)
        raise


async def _take_all(events: list[Any], client: df.DurableOrchestrationClient) -> None:
    """Raises the first `BadEvent` once the others are taken: what makes no sense keeps nothing back that does."""
    first: BadEvent | None = None
    for told in events:
        try:
            await _take(told, client)
        except BadEvent as error:
            first = first or error
    if first is not None:
        raise first


async def _take(told: dict[str, Any], client: df.DurableOrchestrationClient) -> None:
    kind = envelopes.kind_of(told)
    for begin, take in _TAKERS.items():
        if kind.startswith(begin):
            await take(told, client)
            return
    logging.info("event %s of type %.200s is ignored: nobody here has use for it", told.get("id"), kind)
