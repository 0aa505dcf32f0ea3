"""Azure ML run events -> wake the waiting flow. The event is a hint: the flow looks for itself."""

from __future__ import annotations

import asyncio
import logging

import azure.durable_functions as df
import azure.functions as func

from dropforge import steps
from dropforge.wiring import ports

bp = df.Blueprint()


@bp.event_grid_trigger(arg_name="event")
@bp.durable_client_input(client_name="client")
async def on_run_event(event: func.EventGridEvent, client: df.DurableOrchestrationClient) -> None:
    flow = await asyncio.to_thread(steps.train.flow_waiting_for, ports(), event.event_type, event.get_json())
    if flow is None:
        return
    try:
        await client.raise_event(flow, "run_ended", True)
    except Exception as error:  # noqa: BLE001  the SDK raises a bare Exception; the flow's own timer is the backstop
        logging.info("run event %s woke nobody: %s", event.id, error)
