"""Dataset version in, verdict and model version out: plan a run, await it, judge it, and deploy what the gate lets by."""

from __future__ import annotations

from datetime import datetime, timedelta

import azure.durable_functions as df

from orchestrators.calls import Flow, do, guarded, wait

bp = df.Blueprint()

# Looks at a run before the flow's history is dropped and it goes on as new.
LOOKS = 100
LOOK_AGAIN = timedelta(seconds=5)


def train(context: df.DurableOrchestrationContext) -> Flow:
    """Input `{"pipeline", "epoch"}`. Lives as long as a dataset version waits to be trained on; one per pipeline."""
    asked = context.get_input()
    pipeline = asked["pipeline"]
    plan = yield do(context, "plan_run", pipeline=pipeline)
    if plan["action"] == "wait":
        yield from wait(context, datetime.fromisoformat(plan["until"]), "changed")
        context.continue_as_new(asked)
        return None
    if plan["action"] == "run":
        yield do(context, "submit_run", pipeline=pipeline, run=plan["run"])
        ended = yield from _end(context, pipeline, plan)
        if not ended:
            context.continue_as_new(asked)
            return None
        outcome = yield from _outcome(context, pipeline, plan["run"])
        yield do(context, "conclude_run", pipeline=pipeline, run=plan["run"], outcome=outcome)
    done = yield do(context, "leave_training", pipeline=pipeline, epoch=asked["epoch"])
    if not done:
        context.continue_as_new(asked)
    return plan.get("run")


def _end(context: df.DurableOrchestrationContext, pipeline: str, plan: dict[str, object]) -> Flow:
    """Whether the run has ended: its event wakes the flow, a look decides, a timer catches the event that never came."""
    heard = False
    poll = timedelta(seconds=float(str(plan["poll_seconds"])))
    for _ in range(LOOKS):
        ended = yield do(context, "check_run", pipeline=pipeline, run=plan["run"])
        if ended:
            return True
        heard = yield from wait(context, context.current_utc_datetime + poll, None if heard else "run_ended")
    return False


def _outcome(context: df.DurableOrchestrationContext, pipeline: str, run: str) -> Flow:
    """What becomes of the run's model: the gate's word, a person's where it asks for one, and the deployment's."""
    judged = yield do(context, "judge_run", pipeline=pipeline, run=run)
    action = judged["action"]
    if action == "ask":
        action = yield from _answer(context, pipeline, run)
    if action == "none":
        return "no_model"
    if action == "reject":
        return "rejected"
    if action == "evaluated":
        return "evaluated"
    if action != "promote":
        return "kept_champion"
    deployed = yield context.call_sub_orchestrator(
        "deploy",
        {"pipeline": pipeline, "version": judged["model_version"], "run": run},
        instance_id=f"deploy-{run}",
    )
    return "promoted" if deployed["state"] == "live" else "rolled_back"


def _answer(context: df.DurableOrchestrationContext, pipeline: str, run: str) -> Flow:
    asked = yield do(context, "ask_person", pipeline=pipeline, run=run, flow=context.instance_id)
    expires_at = datetime.fromisoformat(asked["expires_at"])
    yield from wait(context, expires_at, f"answer-{run}")
    answer = yield do(context, "read_answer", pipeline=pipeline, run=run)
    while answer is None:
        # Somebody woke the flow and gave no answer, or this host's clock is behind the one that set the time.
        yield from wait(context, max(expires_at, context.current_utc_datetime + LOOK_AGAIN))
        answer = yield do(context, "read_answer", pipeline=pipeline, run=run)
    return "promote" if answer == "approve" else "reject"


bp.orchestration_trigger(context_name="context")(guarded(train))
