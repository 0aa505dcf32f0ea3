"""Arrivals in, one dataset version out: wait for quiet, cut one batch, check its files, write the version."""

from __future__ import annotations

from datetime import datetime

import azure.durable_functions as df

from orchestrators.calls import Flow, do, guarded, wait

bp = df.Blueprint()


def intake(context: df.DurableOrchestrationContext) -> Flow:
    """Input `{"pipeline", "epoch"}`. Lives as long as arrivals wait; at most one per pipeline."""
    asked = context.get_input()
    pipeline = asked["pipeline"]
    plan = yield do(context, "plan_intake", pipeline=pipeline)
    if plan["action"] == "wait":
        yield from wait(context, datetime.fromisoformat(plan["until"]), "full")
        context.continue_as_new(asked)
        return None
    version = None
    if plan["action"] == "work":
        version = yield from _version(context, pipeline)
    done = yield do(context, "leave_intake", pipeline=pipeline, epoch=asked["epoch"])
    if not done:
        context.continue_as_new(asked)
        return None
    return {"version": version}


def _version(context: df.DurableOrchestrationContext, pipeline: str) -> Flow:
    batch = yield do(context, "cut_batch", pipeline=pipeline)
    if batch is None:
        return None
    yield do(context, "check_batch", pipeline=pipeline, batch=batch)
    written = yield do(context, "write_version", pipeline=pipeline, batch=batch)
    if written["version"] is not None:
        yield do(context, "wake_training", pipeline=pipeline)
    return written["version"]


bp.orchestration_trigger(context_name="context")(guarded(intake))
