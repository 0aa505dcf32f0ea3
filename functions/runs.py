"""Azure ML run events -> wake the waiting flow. The event is a hint: the flow looks for itself."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import azure.durable_functions as df
import azure.functions as func

from dropforge import steps
from dropforge.domain.errors import BadEvent
from dropforge.wiring import ports
from functions import envelopes

bp = df.Blueprint()


@bp.event_grid_trigger(arg_name="event")
@bp.durable_client_input(client_name="client")
async def on_run_event(event: func.EventGridEvent, client: df.DurableOrchestrationClient) -> None:
    try:
        await wake(envelopes.told(event), client)
    except BadEvent as error:
        # Telling it again, which Event Grid would do for a day, cannot mend it.
        logging.warning("run event %s makes no sense: %s", event.id, error)


async def wake(told: dict[str, Any], client: df.DurableOrchestrationClient) -> None:
    """Wake the flow that waits for the run, if one does. Raises `BadEvent` when the event does not say which run it is."""
    # Microsoft's page prints the status in the data for one schema and beside it for the other.
    data = {key: told[key] for key in ("runStatus",) if key in told} | envelopes.data_of(told)
    flow = await asyncio.to_thread(steps.train.flow_waiting_for, ports(), envelopes.kind_of(told), data)
    if flow is None:
        return
    try:
        await client.raise_event(flow, "run_ended", True)
    except Exception as error:  # noqa: BLE001  the SDK raises a bare Exception; the flow's own timer is the backstop
        logging.info("run event %s woke nobody: %s", told.get("id"), error)
