"""HTTP: apply a pipeline, see how it stands, promote, roll back, approve, replay, why."""

from __future__ import annotations

from datetime import UTC, datetime

import azure.durable_functions as df
import azure.functions as func

from dropforge import steps
from dropforge.domain.errors import BadInput, NotFound
from dropforge.wire import to_builtins
from dropforge.wiring import ports
from functions.answers import answer, ask, body_of, told
from functions.starting import start

bp = df.Blueprint()


def _now() -> datetime:
    return datetime.now(UTC)


@bp.route(route="health", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
@told
async def health(req: func.HttpRequest) -> func.HttpResponse:
    await ask(steps.reports.health, ports())
    return answer({"status": "ok"})


# ------------------------------------------------------------------------------------------------ pipelines
@bp.route(route="pipelines", methods=["GET"])
@told
async def list_pipelines(req: func.HttpRequest) -> func.HttpResponse:
    return answer({"pipelines": await ask(steps.reports.pipelines, ports())})


@bp.route(route="pipelines/{name}", methods=["PUT"])
@bp.durable_client_input(client_name="client")
@told
async def apply_pipeline(req: func.HttpRequest, client: df.DurableOrchestrationClient) -> func.HttpResponse:
    applied = await ask(steps.pipelines.apply, ports(), req.route_params["name"], req.get_body(), _now())
    for flow in applied["start"]:
        await start(client, flow)
    return answer({"pipeline": req.route_params["name"], "revision": applied["revision"]})


@bp.route(route="pipelines/{name}", methods=["GET"])
@told
async def get_pipeline(req: func.HttpRequest) -> func.HttpResponse:
    return answer(await ask(steps.reports.status, ports(), req.route_params["name"]))


# ------------------------------------------------------------------------------------------------ what it holds
@bp.route(route="pipelines/{name}/arrivals", methods=["GET"])
@told
async def list_arrivals(req: func.HttpRequest) -> func.HttpResponse:
    found = await ask(steps.reports.arrivals, ports(), req.route_params["name"], req.params.get("state"))
    return answer({"arrivals": found})


@bp.route(route="pipelines/{name}/arrivals/{arrival}/report", methods=["GET"])
@told
async def get_report(req: func.HttpRequest) -> func.HttpResponse:
    return answer(await ask(steps.reports.quarantine, ports(), req.route_params["name"], req.route_params["arrival"]))


@bp.route(route="pipelines/{name}/datasets", methods=["GET"])
@told
async def list_datasets(req: func.HttpRequest) -> func.HttpResponse:
    return answer({"datasets": to_builtins(await ask(steps.reports.versions, ports(), req.route_params["name"]))})


@bp.route(route="pipelines/{name}/datasets/{version:int}", methods=["GET"])
@told
async def get_dataset(req: func.HttpRequest) -> func.HttpResponse:
    version = int(req.route_params["version"])
    return answer(await ask(steps.reports.manifest, ports(), req.route_params["name"], version))


@bp.route(route="pipelines/{name}/runs", methods=["GET"])
@told
async def list_runs(req: func.HttpRequest) -> func.HttpResponse:
    return answer({"runs": await ask(steps.reports.runs, ports(), req.route_params["name"])})


@bp.route(route="pipelines/{name}/runs/{run}", methods=["GET"])
@told
async def get_run(req: func.HttpRequest) -> func.HttpResponse:
    found = await ask(steps.train.record, ports(), req.route_params["name"], req.route_params["run"])
    return answer(to_builtins(found))


@bp.route(route="pipelines/{name}/runs/{run}/logs", methods=["GET"])
@told
async def get_run_logs(req: func.HttpRequest) -> func.HttpResponse:
    text = await ask(steps.reports.run_logs, ports(), req.route_params["name"], req.route_params["run"])
    return func.HttpResponse(text, mimetype="text/plain")


@bp.route(route="pipelines/{name}/models", methods=["GET"])
@told
async def list_models(req: func.HttpRequest) -> func.HttpResponse:
    return answer({"models": await ask(steps.reports.models, ports(), req.route_params["name"])})


@bp.route(route="pipelines/{name}/why", methods=["GET"])
@told
async def get_why(req: func.HttpRequest) -> func.HttpResponse:
    version = req.params.get("version")
    if version is not None and not version.isdigit():
        raise BadInput(f"version {version!r} is not a number")
    return answer(await ask(steps.reports.why, ports(), req.route_params["name"], int(version) if version else None))


# ------------------------------------------------------------------------------------------------ what people do
@bp.route(route="pipelines/{name}/replay", methods=["POST"])
@bp.durable_client_input(client_name="client")
@told
async def replay(req: func.HttpRequest, client: df.DurableOrchestrationClient) -> func.HttpResponse:
    arrival = body_of(req).get("arrival")
    done = await ask(steps.intake.replay, ports(), req.route_params["name"], arrival, _now())
    await start(client, done["start"])
    return answer({"replayed": done["replayed"]}, 202)


@bp.route(route="pipelines/{name}/promote", methods=["POST"])
@bp.durable_client_input(client_name="client")
@told
async def promote(req: func.HttpRequest, client: df.DurableOrchestrationClient) -> func.HttpResponse:
    version = body_of(req).get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise BadInput(f"`version` is {version!r}; it must be the number of a model version")
    flow = await ask(steps.deploy.by_hand, ports(), req.route_params["name"], version)
    await start(client, flow)
    return answer({"version": flow["input"]["version"], "flow": flow["id"]}, 202)


@bp.route(route="pipelines/{name}/rollback", methods=["POST"])
@bp.durable_client_input(client_name="client")
@told
async def rollback(req: func.HttpRequest, client: df.DurableOrchestrationClient) -> func.HttpResponse:
    flow = await ask(steps.deploy.by_hand, ports(), req.route_params["name"], None)
    await start(client, flow)
    return answer({"version": flow["input"]["version"], "flow": flow["id"]}, 202)


@bp.route(route="pipelines/{name}/runs/{run}/cancel", methods=["POST"])
@told
async def cancel_run(req: func.HttpRequest) -> func.HttpResponse:
    await ask(steps.train.cancel_run, ports(), req.route_params["name"], req.route_params["run"])
    return answer({"run": req.route_params["run"]}, 202)


@bp.route(route="pipelines/{name}/runs/{run}/answer", methods=["POST"])
@bp.durable_client_input(client_name="client")
@told
async def answer_question(req: func.HttpRequest, client: df.DurableOrchestrationClient) -> func.HttpResponse:
    body = body_of(req)
    name, run = req.route_params["name"], req.route_params["run"]
    by = str(body.get("by") or "holder of the function key")
    wake = await ask(steps.approvals.answer, ports(), name, run, str(body.get("answer")), by, _now())
    try:
        await client.raise_event(wake["flow"], wake["event"], True)
    except Exception as error:
        # The flow is over: it read the answer (or the expiry) from the ledger already.
        raise NotFound(f"run {run!r} no longer waits for an answer", run=run) from error
    return answer({"run": run, "answer": body["answer"], "by": by}, 202)
