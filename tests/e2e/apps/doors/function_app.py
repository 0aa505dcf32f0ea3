"""An app with one function for every door of the host; each writes down what it saw."""

import asyncio
import json
import logging
import os
import threading
import time
from pathlib import Path

import azure.durable_functions as df
import azure.functions as func

app = df.DFApp(http_auth_level=func.AuthLevel.FUNCTION)
STATE = Path(os.environ["DROPFORGE_STATE"])
_lock = threading.Lock()


def saw(what: str, **about: object) -> None:
    with _lock, (STATE / "saw.jsonl").open("a") as file:
        file.write(json.dumps({"what": what, "pid": os.getpid(), **about}) + "\n")


def answer(**about: object) -> func.HttpResponse:
    return func.HttpResponse(json.dumps(about), mimetype="application/json")


# ------------------------------------------------------------------ HTTP
@app.route(route="health", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
def health(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse("ok")


@app.route(route="echo/{*path}")
def echo(req: func.HttpRequest, context: func.Context) -> func.HttpResponse:
    return answer(
        method=req.method,
        url=req.url,
        query=dict(req.params),
        route=dict(req.route_params),
        headers=dict(req.headers),
        body_bytes=len(req.get_body()),
        invocation_id=context.invocation_id,
    )


@app.route(route="only/{id}", methods=["POST"], auth_level=func.AuthLevel.ADMIN)
def only_post(req: func.HttpRequest) -> func.HttpResponse:
    return answer(id=req.route_params["id"])


@app.route(route="items/{id:int}", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
def item_by_number(req: func.HttpRequest) -> func.HttpResponse:
    return answer(function="number", **req.route_params)


@app.route(route="items/{name}", methods=["GET", "HEAD", "OPTIONS"], auth_level=func.AuthLevel.ANONYMOUS)
def item_by_name(req: func.HttpRequest) -> func.HttpResponse:
    return answer(function="name", **req.route_params)


@app.route(route="items/special", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
def item_special(req: func.HttpRequest) -> func.HttpResponse:
    return answer(function="special")


@app.route(route="fail/{how}", auth_level=func.AuthLevel.ANONYMOUS)
async def fail(req: func.HttpRequest) -> func.HttpResponse:
    how = req.route_params["how"]
    if how == "raise":
        raise ValueError("the secret recipe")
    if how == "none":
        return None  # type: ignore[return-value]
    if how == "exit":
        raise SystemExit(3)
    if how == "header":
        return func.HttpResponse("x", headers={"X-Bad": "a\r\nSet-Cookie: b"})
    return func.HttpResponse("x", status_code=int(how), headers={"X-More": "1", "Set-Cookie": "a=1; Path=/"})


@app.route(route="slow", auth_level=func.AuthLevel.ANONYMOUS)
def slow(req: func.HttpRequest) -> func.HttpResponse:
    saw("slow begins")
    time.sleep(float(req.params["seconds"]))
    saw("slow ends")
    return func.HttpResponse("done")


@app.route(route="log", auth_level=func.AuthLevel.ANONYMOUS)
async def log(req: func.HttpRequest, context: func.Context) -> func.HttpResponse:
    logging.info("told to say %s", req.params["words"])
    await asyncio.to_thread(logging.warning, "from a thread")
    return func.HttpResponse(context.invocation_id)


# ------------------------------------------------------------------ events
@app.event_grid_trigger(arg_name="event")
def on_event(event: func.EventGridEvent) -> None:
    saw("event", id=event.id, kind=type(event).__name__, data=event.get_json())
    if isinstance(event.get_json(), dict) and event.get_json().get("refuse"):
        raise ValueError("refused as asked")


@app.event_grid_trigger(arg_name="event")
def on_blob_event(event: func.EventGridEvent) -> None:
    refusals = STATE / "refuse-blobs"
    saw(
        "blob",
        id=event.id,
        type=event.event_type,
        refused=refusals.exists(),
        subject=event.subject,
        data=event.get_json(),
    )
    if refusals.exists():
        raise ValueError("refused as asked")


@app.event_grid_trigger(arg_name="event")
def on_run_event(event: func.EventGridEvent) -> None:
    saw("run", id=event.id, type=event.event_type, data=event.get_json())


# ------------------------------------------------------------------ timers
@app.timer_trigger(arg_name="timer", schedule="%HOURLY%", use_monitor=True)
def hourly(timer: func.TimerRequest) -> None:
    saw("hourly", past_due=timer.past_due)


@app.timer_trigger(arg_name="timer", schedule="* * * * * *")
def every_second(timer: func.TimerRequest) -> None:
    saw("second", past_due=timer.past_due, at=time.time())


# ------------------------------------------------------------------ durable
@app.route(route="start/{name}", methods=["POST"])
@app.durable_client_input(client_name="client")
async def start(
    req: func.HttpRequest, client: df.DurableOrchestrationClient, context: func.Context
) -> func.HttpResponse:
    instance = await client.start_new(req.route_params["name"], req.params.get("id"), req.get_json())
    return client.create_check_status_response(req, instance)


@app.activity_trigger(input_name="number")
def square(number: int) -> int:
    saw("square", number=number)
    time.sleep(0.05)
    return number * number


@app.activity_trigger(input_name="child")
@app.durable_client_input(client_name="client")
async def start_another(child: str, client: df.DurableOrchestrationClient) -> str:
    return await client.start_new("squares", child, {"count": 1})


@app.orchestration_trigger(context_name="context")
def squares(context: df.DurableOrchestrationContext):
    total = 0
    for number in range(context.get_input()["count"]):
        total += yield context.call_activity("square", number)
    return total


@app.orchestration_trigger(context_name="context")
def parent(context: df.DurableOrchestrationContext):
    return (yield context.call_activity("start_another", context.get_input()["child"]))


# ------------------------------------------------------------------ not served here: its connection is not set
@app.service_bus_queue_trigger(arg_name="message", queue_name="commands", connection="BUS")
def on_command(message: func.ServiceBusMessage) -> None:
    saw("command")
