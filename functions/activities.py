"""Activity triggers, one per step: decode, call the step with the world, encode.

Annotations are bare types: Azure's worker refuses to load an activity with `dict[str, Any]` in its signature.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import azure.durable_functions as df

from dropforge import steps
from dropforge.settings import settings
from dropforge.wiring import ports
from functions.starting import start

bp = df.Blueprint()


def _now() -> datetime:
    return datetime.now(UTC)


# ------------------------------------------------------------------------------------------------ intake
@bp.activity_trigger(input_name="value")
def plan_intake(value: dict) -> dict:
    return steps.intake.plan_intake(ports(), value["pipeline"], _now())


@bp.activity_trigger(input_name="value")
def cut_batch(value: dict) -> int | None:
    return steps.intake.cut_batch(ports(), value["pipeline"], _now())


@bp.activity_trigger(input_name="value")
def check_batch(value: dict) -> dict:
    return steps.intake.check_batch(ports(), value["pipeline"], value["batch"], _now())


@bp.activity_trigger(input_name="value")
def write_version(value: dict) -> dict:
    return steps.intake.write_version(ports(), value["pipeline"], value["batch"], _now())


@bp.activity_trigger(input_name="value")
def leave_intake(value: dict) -> bool:
    return steps.intake.leave_intake(ports(), value["pipeline"], value["epoch"])


@bp.activity_trigger(input_name="value")
def note_trouble(value: dict) -> None:
    steps.books.note_trouble(ports().ledger, value["pipeline"], value["message"])


# ------------------------------------------------------------------------------------------------ train
@bp.activity_trigger(input_name="value")
@bp.durable_client_input(client_name="client")
async def wake_training(value: dict, client: df.DurableOrchestrationClient) -> bool:
    return await start(client, await asyncio.to_thread(steps.train.wake_training, ports(), value["pipeline"]))


@bp.activity_trigger(input_name="value")
def plan_run(value: dict) -> dict:
    return steps.train.plan_run(ports(), value["pipeline"], settings(), _now())


@bp.activity_trigger(input_name="value")
def submit_run(value: dict) -> None:
    steps.train.submit_run(ports(), value["pipeline"], value["run"])


@bp.activity_trigger(input_name="value")
def check_run(value: dict) -> bool:
    return steps.train.check_run(ports(), value["pipeline"], value["run"], _now())


@bp.activity_trigger(input_name="value")
def judge_run(value: dict) -> dict:
    return steps.train.judge_run(ports(), value["pipeline"], value["run"], _now())


@bp.activity_trigger(input_name="value")
def conclude_run(value: dict) -> None:
    steps.train.conclude_run(ports(), value["pipeline"], value["run"], value["outcome"], _now())


@bp.activity_trigger(input_name="value")
def leave_training(value: dict) -> bool:
    return steps.train.leave_training(ports(), value["pipeline"], value["epoch"])


@bp.activity_trigger(input_name="value")
def ask_person(value: dict) -> dict:
    return steps.approvals.ask(ports(), value["pipeline"], value["run"], value["flow"], _now())


@bp.activity_trigger(input_name="value")
def read_answer(value: dict) -> str | None:
    return steps.approvals.read_answer(ports(), value["pipeline"], value["run"], _now())


# ------------------------------------------------------------------------------------------------ deploy
@bp.activity_trigger(input_name="value")
def publish_deployment(value: dict) -> dict:
    return steps.deploy.publish_deployment(
        ports(),
        value["pipeline"],
        value["version"],
        value["run"],
        value["token"],
        settings(),
        _now(),
        cause=value.get("cause"),
        rollback=value.get("rollback", False),
    )


@bp.activity_trigger(input_name="value")
def observe_deployment(value: dict) -> dict:
    return steps.deploy.observe_deployment(ports(), value["endpoint"], value["revision"], _now())


@bp.activity_trigger(input_name="value")
def observe_canary(value: dict) -> dict:
    return steps.canary.observe_canary(ports(), value["endpoint"], value["revision"], _now())


@bp.activity_trigger(input_name="value")
def advance_deployment(value: dict) -> dict:
    return steps.canary.advance_deployment(ports(), value["endpoint"], value["revision"], _now())


@bp.activity_trigger(input_name="value")
def confirm_deployment(value: dict) -> dict:
    return steps.deploy.confirm_deployment(
        ports(), value["pipeline"], value["version"], value["endpoint"], value["revision"], _now()
    )


@bp.activity_trigger(input_name="value")
def roll_back_deployment(value: dict) -> dict:
    return steps.deploy.roll_back_deployment(ports(), value["endpoint"], value["revision"], value["reason"], _now())


# ------------------------------------------------------------------------------------------------ respond
@bp.activity_trigger(input_name="value")
def plan_response(value: dict) -> dict:
    return steps.alerts.plan_response(ports(), value["alert"], value["pipeline"], settings(), _now())


@bp.activity_trigger(input_name="value")
@bp.durable_client_input(client_name="client")
async def act_on_alert(value: dict, client: df.DurableOrchestrationClient) -> str | None:
    done = await asyncio.to_thread(steps.alerts.act_on_alert, ports(), value["alert"], value["pipeline"], _now())
    for flow in done["start"]:
        await start(client, flow)
    detail: str | None = done["detail"]
    return detail


@bp.activity_trigger(input_name="value")
@bp.durable_client_input(client_name="client")
async def conclude_response(value: dict, client: df.DurableOrchestrationClient) -> None:
    for flow in await asyncio.to_thread(
        steps.alerts.conclude_response, ports(), value["alert"], value["pipeline"], value["detail"], _now()
    ):
        await start(client, flow)
