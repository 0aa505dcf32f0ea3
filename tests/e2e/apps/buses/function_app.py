"""An app with every kind of Service Bus trigger and output; each function writes down what it saw."""

import asyncio
import json
import os
import threading
import time
from pathlib import Path

import azure.functions as func

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)
STATE = Path(os.environ["DROPFORGE_STATE"])
_lock = threading.Lock()


class Hopeless(ValueError):
    """No delivery will ever succeed."""

    dead_letter_reason = "NotUnderstood"


def saw(what: str, **about: object) -> None:
    with _lock, (STATE / "saw.jsonl").open("a") as file:
        file.write(json.dumps({"what": what, "at": time.time(), **about}, default=str) + "\n")


def obey(order: dict) -> None:
    """Fail as the message asks for."""
    if order.get("fail"):
        raise RuntimeError("failed as asked")
    if order.get("hopeless"):
        raise Hopeless(f"nobody understands {order['hopeless']!r}")


# ------------------------------------------------------------------ triggers
@app.service_bus_queue_trigger(arg_name="message", queue_name="one", connection="BUS")
def on_one(message: func.ServiceBusMessage) -> None:
    order = json.loads(message.get_body())
    saw("one begins", id=message.message_id, delivery=message.delivery_count, order=order)
    time.sleep(order.get("seconds", 0))
    obey(order)
    saw("one", id=message.message_id, order=order)


@app.service_bus_queue_trigger(arg_name="message", queue_name="facts", connection="BUS")
async def on_facts(message: func.ServiceBusMessage) -> None:
    names = [name for name, kind in vars(func.ServiceBusMessage).items() if isinstance(kind, property)]
    names = names or [name for name in dir(message) if isinstance(getattr(type(message), name, None), property)]
    facts = {name: getattr(message, name) for name in names if name != "force_persistence"}
    saw("facts", body=message.get_body().decode(), **facts)


@app.service_bus_queue_trigger(arg_name="message", queue_name="raw", connection="BUS", data_type=func.DataType.BINARY)
async def on_raw(message: func.ServiceBusMessage) -> None:
    saw("raw", body=message.get_body().hex())


@app.service_bus_queue_trigger(arg_name="message", queue_name="lasting", connection="BUS")
async def on_lasting(message: func.ServiceBusMessage) -> None:
    saw("lasting begins", id=message.message_id, delivery=message.delivery_count)
    await asyncio.sleep(json.loads(message.get_body())["seconds"])
    saw("lasting", id=message.message_id)


@app.service_bus_queue_trigger(arg_name="message", queue_name="sessions", connection="BUS", is_sessions_enabled=True)
async def on_session(message: func.ServiceBusMessage) -> None:
    order = json.loads(message.get_body())
    saw("session begins", session=message.session_id, delivery=message.delivery_count, number=order["number"])
    await asyncio.sleep(order.get("seconds", 0))
    if order.get("fail_first") and message.delivery_count == 1:
        raise RuntimeError("failed as asked")
    obey(order)
    saw("session", session=message.session_id, number=order["number"])


@app.service_bus_queue_trigger(
    arg_name="messages", queue_name="batches", connection="BUS", cardinality=func.Cardinality.MANY
)
def on_batch(messages: list[func.ServiceBusMessage]) -> None:
    orders = [json.loads(message.get_body()) for message in messages]
    found = [
        {
            "id": message.message_id,
            "correlation": message.correlation_id,
            "delivery": message.delivery_count,
            "properties": message.application_properties,
        }
        for message in messages
    ]
    saw("batch", messages=found)
    for order in orders:
        if not order.get("once") or messages[0].delivery_count == 1:
            obey(order)


@app.service_bus_topic_trigger(arg_name="message", topic_name="events", subscription_name="all", connection="BUS")
async def on_event(message: func.ServiceBusMessage) -> None:
    saw("event", body=message.get_body().decode(), type=message.content_type, properties=message.application_properties)


@app.service_bus_queue_trigger(arg_name="message", queue_name="%NOWHERE%", connection="BUS")
def on_nothing(message: func.ServiceBusMessage) -> None:
    saw("nothing", body=message.get_body().decode())


@app.service_bus_queue_trigger(arg_name="message", queue_name="one", connection="UNSET")
def never(message: func.ServiceBusMessage) -> None:
    saw("never")


# ------------------------------------------------------------------ outputs
@app.service_bus_queue_trigger(arg_name="message", queue_name="relay", connection="BUS")
@app.service_bus_topic_output(arg_name="$return", topic_name="events", connection="BUS")
def relay(message: func.ServiceBusMessage) -> str:
    return "relayed " + message.get_body().decode()


@app.route(route="put", methods=["POST"])
@app.service_bus_queue_output(arg_name="out", queue_name="replies", connection="BUS")
@app.service_bus_queue_output(arg_name="other", queue_name="%NOWHERE%", connection="BUS")
def put(req: func.HttpRequest, out: func.Out[str], other: func.Out[bytes]) -> func.HttpResponse:
    if req.params.get("as") == "bytes":
        out.set(req.get_body())
    elif req.params.get("as") == "nowhere":
        other.set(req.get_body())
    else:
        out.set(req.get_body().decode())
    return func.HttpResponse("put")


@app.route(route="health", methods=["GET"])
def health(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse("ok")
