"""Timers: the sweep that wakes what a crash left asleep, and the reconcile that finds what events missed."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import azure.durable_functions as df
import azure.functions as func

from dropforge import steps
from dropforge.settings import settings
from dropforge.wiring import ports
from functions.commands import carry_out
from functions.starting import start

bp = df.Blueprint()


@bp.timer_trigger(arg_name="timer", schedule=settings().sweep_schedule, run_on_startup=False, use_monitor=True)
@bp.durable_client_input(client_name="client")
async def sweep(timer: func.TimerRequest, client: df.DurableOrchestrationClient) -> None:
    now = datetime.now(UTC)
    for flow in await asyncio.to_thread(steps.intake.sweep, ports()):
        await start(client, flow)
    for flow in await asyncio.to_thread(steps.train.sweep, ports()):
        await start(client, flow)
    for flow in await asyncio.to_thread(steps.deploy.sweep, ports()):
        await start(client, flow)
    for flow in await asyncio.to_thread(steps.alerts.sweep, ports()):
        await start(client, flow)
    for told in await asyncio.to_thread(steps.commands.sweep, ports(), settings(), now):
        await carry_out(client, told)
    await asyncio.to_thread(steps.outbox.sweep, ports())


@bp.timer_trigger(arg_name="timer", schedule=settings().reconcile_schedule, run_on_startup=False, use_monitor=True)
@bp.durable_client_input(client_name="client")
async def reconcile(timer: func.TimerRequest, client: df.DurableOrchestrationClient) -> None:
    told = await asyncio.to_thread(steps.intake.reconcile, ports(), None, settings().drop_container, datetime.now(UTC))
    for flow in told["start"]:
        await start(client, flow)
