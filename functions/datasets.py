"""Storage events -> arrivals in the ledger, `intake` started."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import azure.durable_functions as df
import azure.functions as func

from dropforge import steps
from dropforge.settings import settings
from dropforge.wiring import ports
from functions.gathering import Gathered
from functions.starting import Starter

bp = df.Blueprint()


@bp.event_grid_trigger(arg_name="event")
@bp.durable_client_input(client_name="client")
async def on_blob_event(event: func.EventGridEvent, client: df.DurableOrchestrationClient) -> None:
    await _events.add((_told(event), client))


async def _heed(told: list[tuple[dict[str, Any], df.DurableOrchestrationClient]]) -> dict[int, Exception]:
    """Write down what the events say, and start what follows; which of them must come again, and why."""
    bodies = [body for body, _ in told]
    heeded = await asyncio.to_thread(steps.storage.heed, ports(), bodies, settings().drop_container, datetime.now(UTC))
    for flow in heeded.start:
        await _starter.start(told[-1][1], flow)
    return dict(heeded.failures)


def _told(event: func.EventGridEvent | func.CloudEvent) -> dict[str, Any]:
    """The envelope as it came. The SDK makes one of two objects of it, whatever the parameter says it wants."""
    if isinstance(event, func.CloudEvent):
        return {
            **event.extension_attrs,
            "specversion": event.specversion,
            "id": event.id,
            "type": event.type,
            "subject": event.subject,
            "data": event.get_json(),
        }
    return {"id": event.id, "eventType": event.event_type, "subject": event.subject, "data": event.get_json()}


_events = Gathered(_heed)
_starter = Starter()
