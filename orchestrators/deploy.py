"""Model version in, endpoint serving it out: publish the desired state, watch the replicas, confirm or roll back."""

from __future__ import annotations

from datetime import timedelta

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
    seen, pause = published, float(published["poll_seconds"])
    place = {"endpoint": published["endpoint"], "revision": published["revision"]}
    while seen["state"] in ("published", "waiting"):
        seen = yield do(context, "observe_deployment", **place)
        if seen["state"] == "waiting":
            yield from wait(context, context.current_utc_datetime + timedelta(seconds=pause))
            pause = min(pause * 1.5, max(2.0, pause))
    if seen["state"] == "ready":
        result = yield do(context, "confirm_deployment", pipeline=pipeline, version=version, **place)
        return result
    if seen["state"] == "failed":
        result = yield do(context, "roll_back_deployment", reason=seen["reason"], **place)
        return result
    return seen


bp.orchestration_trigger(context_name="context")(guarded(deploy))
