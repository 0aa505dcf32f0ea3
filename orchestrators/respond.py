"""Alert in, the action of a pipeline's rule out: what it says is decided once, done, and written down."""

from __future__ import annotations

import azure.durable_functions as df

from orchestrators.calls import Flow, do, guarded

bp = df.Blueprint()


def respond(context: df.DurableOrchestrationContext) -> Flow:
    """Input `{"alert", "pipeline"}`; result: what was done, or None when there was nothing (more) to do."""
    asked = context.get_input()
    place = {"alert": asked["alert"], "pipeline": asked["pipeline"]}
    plan = yield do(context, "plan_response", **place)
    if plan["action"] == "none":
        return None
    done = yield do(context, "act_on_alert", **place)
    if done is None:
        return None
    yield do(context, "conclude_response", detail=done, **place)
    return done


bp.orchestration_trigger(context_name="context")(guarded(respond))
