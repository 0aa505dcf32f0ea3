"""Activity triggers, one per step: decode, call the step with the world, encode."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

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
def plan_intake(value: dict[str, Any]) -> dict[str, Any]:
    return steps.intake.plan_intake(ports(), value["pipeline"], _now())


@bp.activity_trigger(input_name="value")
def cut_batch(value: dict[str, Any]) -> int | None:
    return steps.intake.cut_batch(ports(), value["pipeline"], _now())


@bp.activity_trigger(input_name="value")
def check_batch(value: dict[str, Any]) -> dict[str, Any]:
    return steps.intake.check_batch(ports(), value["pipeline"], value["batch"])


@bp.activity_trigger(input_name="value")
def write_version(value: dict[str, Any]) -> dict[str, Any]:
    return steps.intake.write_version(ports(), value["pipeline"], value["batch"], _now())


@bp.activity_trigger(input_name="value")
def leave_intake(value: dict[str, Any]) -> bool:
    return steps.intake.leave_intake(ports(), value["pipeline"], value["epoch"])


@bp.activity_trigger(input_name="value")
def note_trouble(value: dict[str, Any]) -> None:
    steps.books.note_trouble(ports().ledger, value["pipeline"], value["message"])


# ------------------------------------------------------------------------------------------------ train
@bp.activity_trigger(input_name="value")
@bp.durable_client_input(client_name="client")
async def wake_training(value: dict[str, Any], client: df.DurableOrchestrationClient) -> bool:
    return await start(client, await asyncio.to_thread(steps.train.wake_training, ports(), value["pipeline"]))


@bp.activity_trigger(input_name="value")
def plan_run(value: dict[str, Any]) -> dict[str, Any]:
    return steps.train.plan_run(ports(), value["pipeline"], settings(), _now())


@bp.activity_trigger(input_name="value")
def submit_run(value: dict[str, Any]) -> None:
    steps.train.submit_run(ports(), value["pipeline"], value["run"])


@bp.activity_trigger(input_name="value")
def check_run(value: dict[str, Any]) -> bool:
    return steps.train.check_run(ports(), value["pipeline"], value["run"], _now())


@bp.activity_trigger(input_name="value")
def judge_run(value: dict[str, Any]) -> dict[str, Any]:
    return steps.train.judge_run(ports(), value["pipeline"], value["run"], _now())


@bp.activity_trigger(input_name="value")
def conclude_run(value: dict[str, Any]) -> None:
    steps.train.conclude_run(ports(), value["pipeline"], value["run"], value["outcome"], _now())


@bp.activity_trigger(input_name="value")
def leave_training(value: dict[str, Any]) -> bool:
    return steps.train.leave_training(ports(), value["pipeline"], value["epoch"])


@bp.activity_trigger(input_name="value")
def ask_person(value: dict[str, Any]) -> dict[str, Any]:
    return steps.approvals.ask(ports(), value["pipeline"], value["run"], value["flow"], _now())


@bp.activity_trigger(input_name="value")
def read_answer(value: dict[str, Any]) -> str | None:
    return steps.approvals.read_answer(ports(), value["pipeline"], value["run"], _now())


# ------------------------------------------------------------------------------------------------ deploy
@bp.activity_trigger(input_name="value")
def publish_deployment(value: dict[str, Any]) -> dict[str, Any]:
    return steps.deploy.publish_deployment(
        ports(), value["pipeline"], value["version"], value["run"], value["token"], settings(), _now()
    )


@bp.activity_trigger(input_name="value")
def observe_deployment(value: dict[str, Any]) -> dict[str, Any]:
    return steps.deploy.observe_deployment(ports(), value["endpoint"], value["revision"], _now())


@bp.activity_trigger(input_name="value")
def confirm_deployment(value: dict[str, Any]) -> dict[str, Any]:
    return steps.deploy.confirm_deployment(
        ports(), value["pipeline"], value["version"], value["endpoint"], value["revision"], _now()
    )


@bp.activity_trigger(input_name="value")
def roll_back_deployment(value: dict[str, Any]) -> dict[str, Any]:
    return steps.deploy.roll_back_deployment(ports(), value["endpoint"], value["revision"], value["reason"], _now())
