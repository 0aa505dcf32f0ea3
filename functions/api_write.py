"""HTTP, writing: a pipeline's folder is put, everything else is a command."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import azure.durable_functions as df
import azure.functions as func

from dropforge import steps
from dropforge.domain.causes import Cause, follow
from dropforge.domain.commands import Kind
from dropforge.domain.errors import BadInput
from dropforge.domain.roles import Role
from dropforge.settings import settings
from dropforge.wiring import ports
from functions import access, bodies, parameters
from functions.answers import answer, ask, refused
from functions.commands import carry_out
from functions.operations import Call, operation
from functions.starting import start
from functions.tags import precondition

bp = df.Blueprint()

# What changes what answers needs more than operating does, where the gate did not decide it. Putting an earlier champion
# back is for whoever is on duty.
ROLES = dict.fromkeys(Kind, Role.OPERATOR) | {
    Kind.PROMOTE: Role.APPROVER,
    Kind.APPROVE: Role.APPROVER,
    Kind.REJECT: Role.APPROVER,
}
# Done when they are answered; the others set work going.
AT_ONCE = (Kind.PAUSE, Kind.RESUME)


# ------------------------------------------------------------------------------------------------ pipelines
@operation(
    bp,
    "PUT",
    "v1/pipelines/{name}",
    role=Role.OPERATOR,
    gives={200: "Applied", 201: "Applied"},
    refusals=(412, 413, 415),
    headers=(parameters.IF_MATCH, parameters.IF_NONE_MATCH),
    body=bodies.bundle(),
    starts=True,
)
async def apply_pipeline(call: Call) -> func.HttpResponse:
    """Make the pipeline what its folder (a zip) says. The same folder again changes nothing."""
    name = call["name"]
    check = precondition(call["If-Match"], call["If-None-Match"])
    now = datetime.now(UTC)
    applied = await ask(
        steps.pipelines.apply,
        ports(),
        name,
        call.body,
        now,
        lambda found: check(None if found is None else str(found)),
        settings().targets,
    )
    for flow in applied["start"]:
        await start(call.client, flow)
    headers = {"ETag": f'"{applied["revision"]}"', "Location": f"/api/v1/pipelines/{name}"}
    return answer({"pipeline": name, "revision": applied["revision"]}, 201 if applied["made"] else 200, headers)


# ------------------------------------------------------------------------------------------------ commands
def _command(path: str, kind: Kind) -> Any:
    """What the operations of one kind of command have in common."""
    return operation(
        bp,
        "POST",
        path,
        role=ROLES[kind],
        gives={200 if kind in AT_ONCE else 202: "Accepted"},
        refusals=(409, 413, 415),
        body=bodies.asker() if "{run}" in path else bodies.arguments(kind),
        starts=True,
    )


@operation(
    bp,
    "POST",
    "v1/commands",
    role=Role.OPERATOR,
    gives={200: "Accepted", 202: "Accepted"},
    refusals=(409, 413, 415),
    body=bodies.any_command(),
    starts=True,
)
async def post_command(call: Call) -> func.HttpResponse:
    """Give a command, as the queue `commands` takes it. Promotions and answers need the role approver."""
    return await _accepted(call, dict(call.body))


@_command("v1/pipelines/{name}/train", Kind.TRAIN)
async def train_pipeline(call: Call) -> func.HttpResponse:
    """Train on the newest dataset version, also when it has been trained on before."""
    return await _asked(call, Kind.TRAIN)


@_command("v1/pipelines/{name}/evaluate", Kind.EVALUATE)
async def evaluate_model(call: Call) -> func.HttpResponse:
    """Compare a model version with the champion on the newest dataset version; nothing is promoted."""
    return await _asked(call, Kind.EVALUATE)


@_command("v1/pipelines/{name}/promote", Kind.PROMOTE)
async def promote_model(call: Call) -> func.HttpResponse:
    """Put a model version behind the pipeline's endpoint and make it the champion."""
    return await _asked(call, Kind.PROMOTE)


@_command("v1/pipelines/{name}/rollback", Kind.ROLLBACK)
async def roll_back_model(call: Call) -> func.HttpResponse:
    """Put the champion before this one back."""
    return await _asked(call, Kind.ROLLBACK)


@_command("v1/pipelines/{name}/replay", Kind.REPLAY)
async def replay_arrivals(call: Call) -> func.HttpResponse:
    """Check quarantined files again, by the rules as they are now."""
    return await _asked(call, Kind.REPLAY)


@_command("v1/pipelines/{name}/reconcile", Kind.RECONCILE)
async def reconcile_pipeline(call: Call) -> func.HttpResponse:
    """Compare the drop folder with the ledger, and take in what events missed."""
    return await _asked(call, Kind.RECONCILE)


@_command("v1/pipelines/{name}/pause", Kind.PAUSE)
async def pause_pipeline(call: Call) -> func.HttpResponse:
    """Hold the pipeline: files and events are taken down, nothing is cut, trained or promoted by itself."""
    return await _asked(call, Kind.PAUSE)


@_command("v1/pipelines/{name}/resume", Kind.RESUME)
async def resume_pipeline(call: Call) -> func.HttpResponse:
    """Let a paused pipeline go on with what has been waiting."""
    return await _asked(call, Kind.RESUME)


@_command("v1/pipelines/{name}/runs/{run}/cancel", Kind.CANCEL)
async def cancel_run(call: Call) -> func.HttpResponse:
    """End a run; the pipeline goes on without its model."""
    return await _asked(call, Kind.CANCEL, run=call["run"])


@operation(
    bp,
    "POST",
    "v1/pipelines/{name}/approvals/{run}",
    role=Role.APPROVER,
    gives={202: "Accepted"},
    refusals=(409, 413, 415),
    body=bodies.given_answer(),
    starts=True,
)
async def answer_approval(call: Call) -> func.HttpResponse:
    """Answer the question that a run asks before its model is promoted. The first answer counts."""
    given = call.body.pop("answer", None)
    if given not in steps.approvals.ANSWERS:
        raise BadInput(f"`answer` is {given!r}; it must be one of {', '.join(steps.approvals.ANSWERS)}")
    return await _asked(call, Kind(given), run=call["run"])


async def _asked(call: Call, kind: Kind, **arguments: str) -> func.HttpResponse:
    """Give the command that an operation of its own stands for."""
    given = dict(call.body)
    by = {"by": given.pop("by")} if "by" in given else {}
    # What stands in the path cannot be said in the body as well.
    doubled = given.keys() & arguments.keys()
    if doubled:
        raise BadInput(f"`{min(doubled)}` stands in the path; leave it out of the body")
    return await _accepted(
        call, {"command": kind.value, "pipeline": call["name"], "arguments": given | arguments, **by}
    )


async def _accepted(call: Call, body: dict[str, Any]) -> func.HttpResponse:
    """Give the command that the body is, and say what came of it."""
    key = (call["Idempotency-Key"] or str(uuid.uuid4())).strip('"')
    command = steps.commands.parse(body, id=key, by="", cause=_cause(call, key))
    access.check(call.caller, ROLES[command.kind])
    command = replace(command, by=call.caller.by(body.get("by")))
    # A slip in the name is told at once, and leaves the key free for the request that was meant.
    await ask(steps.books.pipeline, ports().ledger, command.pipeline)
    done = await ask(steps.commands.accept, ports(), settings(), command, datetime.now(UTC))
    await carry_out(call.client, done)
    again = {"Idempotency-Replayed": "true"} if done["repeated"] else {}
    if done["state"] == "refused":
        problem = refused(done["error"], command=done["id"], pipeline=done["pipeline"])
        problem.headers.update(again)
        return problem
    place = f"/api/v1/commands/{quote(done['id'], safe='')}?pipeline={done['pipeline']}"
    shown = {key: done[key] for key in ("id", "command", "pipeline", "state", "result", "repeated")}
    return answer(shown, 200 if command.kind in AT_ONCE else 202, {"Location": place, **again})


def _cause(call: Call, key: str) -> Cause:
    return follow(
        key,
        "http",
        correlation=call.correlation,
        causation=call["x-dropforge-causation-id"],
        hops=call["x-dropforge-hops"],
    )
