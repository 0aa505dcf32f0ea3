"""HTTP, reading: every GET of the API, and the two documents that anybody may read."""

from __future__ import annotations

from datetime import UTC, datetime

import azure.durable_functions as df
import azure.functions as func

from dropforge import steps
from dropforge.wiring import ports
from functions import bodies, operations, parameters
from functions.answers import answer, ask
from functions.operations import Call, operation
from functions.paging import page
from functions.tags import tagged

bp = df.Blueprint()

PAGED = (parameters.LIMIT, parameters.TOKEN)


# ------------------------------------------------------------------------------------------------ for anybody
@operation(bp, "GET", "health", role=None, gives="Health")
async def health(call: Call) -> func.HttpResponse:
    """Whether the app answers, and its ledger does."""
    await ask(steps.reports.health, ports())
    return answer({"status": "ok"})


@operation(bp, "GET", "openapi.json", role=None, gives="object", headers=(parameters.IF_NONE_MATCH,))
async def get_openapi(call: Call) -> func.HttpResponse:
    """This document: what the API offers, in OpenAPI 3.1."""
    # Made when it is asked for: it needs every shape there is.
    from functions import openapi

    return tagged(call, await ask(openapi.document), openapi.etag())


# ------------------------------------------------------------------------------------------------ pipelines
@operation(bp, "GET", "v1/pipelines", gives="Pipelines", query=PAGED)
async def list_pipelines(call: Call) -> func.HttpResponse:
    """The pipelines, by name."""
    return await page("pipelines", call, steps.reports.pipelines)


@operation(bp, "GET", "v1/pipelines/{name}", gives="PipelineDefinition", headers=(parameters.IF_NONE_MATCH,))
async def get_pipeline(call: Call) -> func.HttpResponse:
    """A pipeline as it was last applied. Its revision is the ETag."""
    found = await ask(steps.reports.definition, ports(), call["name"])
    return tagged(call, found, str(found["revision"]))


@operation(bp, "GET", "v1/pipelines/{name}/status", gives="Status")
async def get_status(call: Call) -> func.HttpResponse:
    """How a pipeline stands: files, dataset version, run, verdict, questions, what answers, who holds it."""
    return answer(await ask(steps.reports.status, ports(), call["name"]))


@operation(bp, "GET", "v1/pipelines/{name}/why", gives="Why", query=(parameters.VERSION,))
async def get_why(call: Call) -> func.HttpResponse:
    """From a model version back to the events, files, code, run, verdict and answer behind it."""
    return answer(await ask(steps.reports.why, ports(), call["name"], call["version"]))


# ------------------------------------------------------------------------------------------------ data
@operation(bp, "GET", "v1/pipelines/{name}/arrivals", gives="Arrivals", query=(parameters.ARRIVAL_STATE, *PAGED))
async def list_arrivals(call: Call) -> func.HttpResponse:
    """The files that arrived, in the order of their ids."""
    return await page("arrivals", call, steps.reports.arrivals, call["name"], call["state"])


@operation(bp, "GET", "v1/pipelines/{name}/arrivals/{arrival}/report", gives="QuarantineReport")
async def get_report(call: Call) -> func.HttpResponse:
    """Why a file is in quarantine: every broken rule, with rows and values."""
    return answer(await ask(steps.reports.quarantine, ports(), call["name"], call["arrival"]))


@operation(bp, "GET", "v1/pipelines/{name}/datasets", gives="Datasets", query=PAGED)
async def list_datasets(call: Call) -> func.HttpResponse:
    """The dataset versions, newest first."""
    return await page("datasets", call, steps.reports.datasets, call["name"])


@operation(bp, "GET", "v1/pipelines/{name}/datasets/{version}", gives="Dataset")
async def get_dataset(call: Call) -> func.HttpResponse:
    """A dataset version, and the manifest of the files that made it."""
    return answer(await ask(steps.reports.manifest, ports(), call["name"], call["version"]))


# ------------------------------------------------------------------------------------------------ runs and models
@operation(bp, "GET", "v1/pipelines/{name}/runs", gives="Runs", query=PAGED)
async def list_runs(call: Call) -> func.HttpResponse:
    """The runs: those on the newest dataset version first."""
    return await page("runs", call, steps.reports.runs, call["name"])


@operation(bp, "GET", "v1/pipelines/{name}/runs/{run}", gives="RunRecord")
async def get_run(call: Call) -> func.HttpResponse:
    """A run: what was asked, how it went, what was decided and why."""
    return answer(await ask(steps.train.record, ports(), call["name"], call["run"]))


@operation(bp, "GET", "v1/pipelines/{name}/runs/{run}/logs", gives="text/plain", query=(parameters.TAIL,))
async def get_run_logs(call: Call) -> func.HttpResponse:
    """The end of what a run printed."""
    text = await ask(steps.reports.run_logs, ports(), call["name"], call["run"], call["tail"])
    # What a run printed is nobody's page.
    return func.HttpResponse(text, mimetype="text/plain", headers={"X-Content-Type-Options": "nosniff"})


@operation(bp, "GET", "v1/pipelines/{name}/models", gives="Models", query=PAGED)
async def list_models(call: Call) -> func.HttpResponse:
    """The model versions, newest first."""
    return await page("models", call, steps.reports.models, call["name"])


@operation(bp, "GET", "v1/pipelines/{name}/models/{version}", gives="ModelVersion")
async def get_model(call: Call) -> func.HttpResponse:
    """A model version with its lineage."""
    return answer(await ask(steps.reports.model, ports(), call["name"], call["version"]))


@operation(bp, "GET", "v1/pipelines/{name}/aliases", gives="Aliases")
async def list_aliases(call: Call) -> func.HttpResponse:
    """The movable names on the model's versions, and where they pointed before."""
    return answer({"aliases": await ask(steps.reports.aliases, ports(), call["name"])})


# ------------------------------------------------------------------------------------------------ endpoints
@operation(bp, "GET", "v1/endpoints", gives="Endpoints", query=PAGED)
async def list_endpoints(call: Call) -> func.HttpResponse:
    """The endpoints: deployments with their traffic, and what each replica says it serves."""
    return await page("endpoints", call, steps.reports.endpoints)


@operation(bp, "GET", "v1/endpoints/{endpoint}", gives="Endpoint")
async def get_endpoint(call: Call) -> func.HttpResponse:
    """An endpoint: its deployments with their traffic, and what each replica says it serves."""
    return answer(await ask(steps.reports.endpoint, ports(), call["endpoint"]))


# ------------------------------------------------------------------------------------------------ people and commands
@operation(bp, "GET", "v1/approvals", gives="Questions", query=PAGED)
async def list_all_approvals(call: Call) -> func.HttpResponse:
    """The open questions of all pipelines."""
    return await page("approvals", call, steps.reports.questions, None, "open")


@operation(bp, "GET", "v1/pipelines/{name}/approvals", gives="Questions", query=(parameters.QUESTION_STATE, *PAGED))
async def list_approvals(call: Call) -> func.HttpResponse:
    """The questions that a pipeline's runs put to people."""
    return await page("approvals", call, steps.reports.questions, call["name"], call["state"])


@operation(bp, "GET", "v1/pipelines/{name}/approvals/{run}", gives="Question")
async def get_approval(call: Call) -> func.HttpResponse:
    """A question: what is asked, who may answer, until when, and the answer once there is one."""
    return answer(await ask(steps.approvals.question, ports(), call["name"], call["run"]))


@operation(bp, "GET", "v1/commands/{command}", gives="CommandView", query=(parameters.OF_PIPELINE,))
async def get_command(call: Call) -> func.HttpResponse:
    """A command, what came of it, and how the run or the deployment that it set going stands now."""
    return answer(await ask(steps.reports.command, ports(), call["command"], call["pipeline"]))


# ------------------------------------------------------------------------------------------------ alerts and rules
@operation(bp, "GET", "v1/alerts", gives="Alerts", query=(parameters.OF_PIPELINE, *PAGED))
async def list_alerts(call: Call) -> func.HttpResponse:
    """The alerts that came in, newest first, and what became of them."""
    return await page("alerts", call, steps.alerts.page, call["pipeline"])


@operation(bp, "GET", "v1/alerts/{alert}", gives="object")
async def get_alert(call: Call) -> func.HttpResponse:
    """An alert, and what became of it in each pipeline with a rule for it."""
    return answer(steps.alerts.shown(await ask(steps.alerts.read, ports(), call["alert"])))


@operation(bp, "GET", "v1/misfits", gives="Misfits", query=PAGED)
async def list_misfits(call: Call) -> func.HttpResponse:
    """What came in as an alert and is none, newest first."""
    return await page("misfits", call, steps.alerts.misfits)


@operation(bp, "GET", "v1/storage-events", gives="StorageEvents")
async def get_storage_events(call: Call) -> func.HttpResponse:
    """How many storage events brought no file, by kind, and the newest of those that make no sense."""
    return answer(await ask(steps.storage.report, ports()))


@operation(bp, "GET", "v1/rules/dry-run", gives="DryRun", query=(parameters.OF_PIPELINE, parameters.DAYS))
async def dry_run_rules(call: Call) -> func.HttpResponse:
    """What the rules would have done with what was recorded in the last days. Nothing is changed."""
    return answer(await ask(steps.rehearsal.dry_run, ports(), call["pipeline"], call["days"], datetime.now(UTC)))


@operation(
    bp,
    "POST",
    "v1/rules/dry-run",
    gives="DryRun",
    refusals=(413, 415),
    query=(parameters.OF_PIPELINE, parameters.DAYS),
    body=bodies.pipeline_yaml(),
)
async def dry_run_yaml(call: Call) -> func.HttpResponse:
    """What the rules of this pipeline.yaml would have done, before it is applied. Nothing is changed."""
    pipeline, days = call["pipeline"], call["days"]
    return answer(await ask(steps.rehearsal.dry_run, ports(), pipeline, days, datetime.now(UTC), call.body))


# ------------------------------------------------------------------------------------------------ what there is not
@bp.route(route="{*path}", auth_level=operations.LEVEL)
async def nothing_here(req: func.HttpRequest) -> func.HttpResponse:
    """Whatever no operation takes: 404, or 405 with the methods there are."""
    return operations.nothing(req)
