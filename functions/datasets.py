"""Blob created -> arrival in the ledger, `intake` started."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

import azure.durable_functions as df
import azure.functions as func

from dropforge import steps
from dropforge.domain.errors import BadInput
from dropforge.settings import settings
from dropforge.wiring import ports
from functions.starting import start

bp = df.Blueprint()


@bp.event_grid_trigger(arg_name="event")
@bp.durable_client_input(client_name="client")
async def on_blob_event(event: func.EventGridEvent, client: df.DurableOrchestrationClient) -> None:
    told = {"eventType": event.event_type, "data": event.get_json()}
    try:
        flow = await asyncio.to_thread(
            steps.intake.record_blob_event, ports(), told, settings().drop_container, datetime.now(UTC)
        )
    except BadInput as error:
        # Redelivery cannot mend an event that makes no sense; the sweep finds the file if there is one.
        logging.error("storage event %s makes no sense and is dropped: %s", event.id, error)
        return
    await start(client, flow)
