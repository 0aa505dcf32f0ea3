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
from functions import envelopes
from functions.gathering import Gathered
from functions.starting import Starter

bp = df.Blueprint()


@bp.event_grid_trigger(arg_name="event")
@bp.durable_client_input(client_name="client")
async def on_blob_event(event: func.EventGridEvent, client: df.DurableOrchestrationClient) -> None:
    await take(envelopes.told(event), client)


async def take(told: dict[str, Any], client: df.DurableOrchestrationClient) -> None:
    """Returns once what the event says is written down, and what follows is started."""
    await _events.add((told, client))


async def _heed(told: list[tuple[dict[str, Any], df.DurableOrchestrationClient]]) -> dict[int, Exception]:
    """Write down what the events say, and start what follows; which of them must come again, and why."""
    bodies = [body for body, _ in told]
    heeded = await asyncio.to_thread(steps.storage.heed, ports(), bodies, settings().drop_container, datetime.now(UTC))
    for flow in heeded.start:
        await _starter.start(told[-1][1], flow)
    return dict(heeded.failures)


_events = Gathered(_heed)
_starter = Starter()
