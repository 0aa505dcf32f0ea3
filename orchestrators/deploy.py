"""Model version in, endpoint serving it out: publish the desired state, watch the replicas, confirm or roll back.

Where the pipeline says so the traffic moves in steps, each a desired state of its own that is watched for a while.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import azure.durable_functions as df

from orchestrators.calls import Flow, do, guarded, wait

bp = df.Blueprint()


def deploy(context: df.DurableOrchestrationContext) -> Flow:
    """Input `{"pipeline", "version", "run"?, "cause"?, "rollback"?}`;
    result `{"state": live | rolled_back | refused | superseded, "reason"}`."""
    asked = context.get_input()
    pipeline, version = asked["pipeline"], asked["version"]
    published = yield do(
        context,
        "publish_deployment",
        pipeline=pipeline,
        version=version,
        run=asked.get("run"),
        token=context.instance_id,
        # What only somebody's asking has: a history from before they came along has none of them.
        **{key: asked[key] for key in ("cause", "rollback") if key in asked},
    )
    if published["state"] == "refused":
        return published
    stage, pause = published, float(published["poll_seconds"])
    while True:
        place = {"endpoint": published["endpoint"], "revision": stage["revision"]}
        seen = yield from _served(context, place, stage, pause)
        # Only where the traffic moves in steps.
        if seen["state"] == "ready" and stage.get("canary"):
            seen = yield from _baked(context, place)
        if seen["state"] != "passed":
            break
        stage = yield do(context, "advance_deployment", **place)
    if seen["state"] == "ready":
        result = yield do(context, "confirm_deployment", pipeline=pipeline, version=version, **place)
        return result
    if seen["state"] == "failed":
        result = yield do(context, "roll_back_deployment", reason=seen["reason"], **place)
        return result
    return seen


def _served(context: df.DurableOrchestrationContext, place: dict[str, Any], seen: dict[str, Any], pause: float) -> Flow:
    """Watch the replicas until they serve the revision, or will not."""
    while seen["state"] in ("published", "waiting"):
        seen = yield do(context, "observe_deployment", **place)
        if seen["state"] == "waiting":
            yield from wait(context, context.current_utc_datetime + timedelta(seconds=pause))
            pause = min(pause * 1.5, max(2.0, pause))
    return seen


def _baked(context: df.DurableOrchestrationContext, place: dict[str, Any]) -> Flow:
    """Watch the candidate at its step of the traffic until it may go on, or must go."""
    while True:
        seen = yield do(context, "observe_canary", **place)
        if seen["state"] != "baking":
            return seen
        yield from wait(context, context.current_utc_datetime + timedelta(seconds=seen["seconds"]))


bp.orchestration_trigger(context_name="context")(guarded(deploy))
