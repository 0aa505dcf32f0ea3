"""A Durable Functions app with one orchestrator per feature; ordinary user code, written against the SDK only."""

import asyncio
import datetime
import json
import sys

import azure.durable_functions as df
import azure.functions as func

app = df.DFApp(http_auth_level=func.AuthLevel.ANONYMOUS)
FAILED: dict[str, int] = {}  # how often `flaky` has failed, by key
CALLS: list[tuple[str, object]] = []  # activities in the order in which they ran


# ---------------------------------------------------------------------------------------------------------- activities
@app.activity_trigger(input_name="name")
def hello(name: str) -> str:
    CALLS.append(("hello", name))
    return f"hello {name}"


@app.activity_trigger(input_name="n")
def square(n: int) -> int:
    CALLS.append(("square", n))
    return n * n


@app.activity_trigger(input_name="wanted")
async def slow(wanted: dict) -> str:
    CALLS.append(("slow", wanted["name"]))
    await asyncio.sleep(wanted["seconds"])
    return wanted["name"]


@app.activity_trigger(input_name="wanted")
def flaky(wanted: dict) -> str:
    """Fails the first `times` times for a key."""
    CALLS.append(("flaky", wanted["key"]))
    FAILED[wanted["key"]] = FAILED.get(wanted["key"], 0) + 1
    if FAILED[wanted["key"]] <= wanted["times"]:
        raise RuntimeError(f"failure {FAILED[wanted['key']]} of {wanted['key']}")
    return wanted["key"]


@app.activity_trigger(input_name="x")
def fails(x: object) -> None:
    CALLS.append(("fails", x))
    raise ValueError(f"bad value {x!r}")


@app.activity_trigger(input_name="x")
def quits(x: object) -> None:
    sys.exit(f"asked to go: {x}")


@app.activity_trigger(input_name="x", activity="renamed_activity")
def python_name(x: object) -> list:
    return ["renamed", x]


# ------------------------------------------------------------------------------------------------------- orchestrators
@app.orchestration_trigger(context_name="context")
def chain(context: df.DurableOrchestrationContext):
    """Three activities, one after another."""
    value = (context.get_input() or {}).get("n", 2)
    for _ in range(3):
        value = yield context.call_activity("square", value % 1000)
    return value


@app.orchestration_trigger(context_name="context")
def fan_out(context: df.DurableOrchestrationContext):
    count = context.get_input()["count"]
    results = yield context.task_all([context.call_activity(square, n) for n in range(count)])
    return sum(results)


@app.orchestration_trigger(context_name="context")
def retries(context: df.DurableOrchestrationContext):
    wanted = context.get_input()
    options = df.RetryOptions(1, wanted.get("attempts", 3))
    result = yield context.call_activity_with_retry("flaky", options, {"key": wanted["key"], "times": wanted["times"]})
    return {"result": result}


@app.orchestration_trigger(context_name="context")
def parallel_retries(context: df.DurableOrchestrationContext):
    """Retries, plain activities and what follows them, all numbered by one counter."""
    wanted = context.get_input()
    options = df.RetryOptions(1, 5)
    tasks = [
        context.call_activity_with_retry("flaky", options, {"key": f"{wanted['key']}-{n}", "times": n})
        for n in range(3)
    ]
    tasks += [context.call_activity("hello", f"p{n}") for n in range(3)]
    first = yield context.task_any(tasks)
    after = yield context.call_activity("hello", "after")
    everything = yield context.task_all(tasks)
    return {"first": first.result is not None, "after": after, "everything": everything}


@app.orchestration_trigger(context_name="context")
def catches(context: df.DurableOrchestrationContext):
    try:
        yield context.call_activity("fails", 1)
    except Exception as error:  # noqa: BLE001 - the SDK raises plain Exception for a failed task
        return {"caught": str(error)}


@app.orchestration_trigger(context_name="context")
def failing(context: df.DurableOrchestrationContext):
    yield context.call_activity("hello", "before")
    yield context.call_activity("fails", "zzz")


@app.orchestration_trigger(context_name="context")
def fan_out_flaky(context: df.DurableOrchestrationContext):
    """Without retry: one of three fails until it has failed often enough."""
    wanted = context.get_input()
    results = yield context.task_all(
        [
            context.call_activity("hello", "a"),
            context.call_activity("flaky", {"key": wanted["key"], "times": wanted["times"]}),
            context.call_activity("hello", "b"),
        ]
    )
    last = yield context.call_activity("hello", "last")
    return [*results, last]


@app.orchestration_trigger(context_name="context")
def timer(context: df.DurableOrchestrationContext):
    started = context.current_utc_datetime
    yield context.create_timer(started + datetime.timedelta(milliseconds=context.get_input()["milliseconds"]))
    return (context.current_utc_datetime - started).total_seconds()


@app.orchestration_trigger(context_name="context")
def race(context: df.DurableOrchestrationContext):
    """An approval, or a deadline; the loser is cancelled only when asked to."""
    wanted = context.get_input()
    deadline = context.create_timer(context.current_utc_datetime + datetime.timedelta(seconds=wanted["seconds"]))
    approval = context.wait_for_external_event("Approval")
    winner = yield context.task_any([approval, deadline])
    if winner is deadline:
        return "too late"
    if wanted.get("cancel", True):
        deadline.cancel()
    return json.loads(approval.result) if isinstance(approval.result, str) else approval.result


@app.orchestration_trigger(context_name="context")
def two_events(context: df.DurableOrchestrationContext):
    first = yield context.wait_for_external_event("First")
    second = yield context.wait_for_external_event("Second")
    return [first, second]


@app.orchestration_trigger(context_name="context")
def same_event_twice(context: df.DurableOrchestrationContext):
    yield context.create_timer(context.current_utc_datetime + datetime.timedelta(milliseconds=50))
    first = yield context.wait_for_external_event("Tick")
    second = yield context.wait_for_external_event("Tick")
    done = yield context.call_activity("hello", "ticked")
    return [first, second, done]


@app.orchestration_trigger(context_name="context")
def child(context: df.DurableOrchestrationContext):
    value = yield context.call_activity(square, context.get_input()["n"])
    return {"child": value, "parent": context.parent_instance_id}


@app.orchestration_trigger(context_name="context")
def waiting_child(context: df.DurableOrchestrationContext):
    answer = yield context.wait_for_external_event("Go")
    return answer


@app.orchestration_trigger(context_name="context")
def failing_child(context: df.DurableOrchestrationContext):
    yield context.call_activity("flaky", context.get_input())
    return "child is fine"


@app.orchestration_trigger(context_name="context")
def parents(context: df.DurableOrchestrationContext):
    named = yield context.call_sub_orchestrator("child", {"n": 3}, f"{context.instance_id}-child")
    unnamed = yield context.call_sub_orchestrator(child, {"n": 4})
    return [named["child"], unnamed["child"], named["parent"] == context.instance_id]


@app.orchestration_trigger(context_name="context")
def parent_of(context: df.DurableOrchestrationContext):
    wanted = context.get_input()
    result = yield context.call_sub_orchestrator(wanted["name"], wanted.get("input"), wanted.get("id"))
    return result


@app.orchestration_trigger(context_name="context")
def parent_retries(context: df.DurableOrchestrationContext):
    result = yield context.call_sub_orchestrator_with_retry("failing_child", df.RetryOptions(1, 3), context.get_input())
    return result


@app.orchestration_trigger(context_name="context")
def entities(context: df.DurableOrchestrationContext):
    counter = df.EntityId("Counter", context.get_input()["key"])
    context.signal_entity(counter, "add", 1)
    total = yield context.call_entity(counter, "add", 41)
    try:
        yield context.call_entity(counter, "crash")
    except Exception as error:  # noqa: BLE001 - the SDK raises plain Exception for a failed task
        return {"total": total, "crash": str(error)}


@app.orchestration_trigger(context_name="context")
def eternal(context: df.DurableOrchestrationContext):
    state = context.get_input()
    yield context.call_activity("square", state["n"])
    if state["n"] < state["until"]:
        context.continue_as_new({**state, "n": state["n"] + 1})
        return
    return {"stopped_at": state["n"]}


@app.orchestration_trigger(context_name="context")
def collector(context: df.DurableOrchestrationContext):
    """Adds up events one by one, each in an execution of its own."""
    state = context.get_input()
    number = yield context.wait_for_external_event("Number")
    total = state["total"] + (json.loads(number) if isinstance(number, str) else number)
    if state["left"] > 1:
        context.continue_as_new({"left": state["left"] - 1, "total": total})
        return
    return total


@app.orchestration_trigger(context_name="context")
def statuses(context: df.DurableOrchestrationContext):
    context.set_custom_status({"phase": "one"})
    yield context.call_activity("hello", "x")
    context.set_custom_status("")
    yield context.call_activity("hello", "y")
    return context.instance_id


@app.orchestration_trigger(context_name="context")
def clocks(context: df.DurableOrchestrationContext):
    """What must not change on replay."""
    seen = [context.new_uuid(), context.current_utc_datetime.isoformat()]
    yield context.call_activity("hello", "a")
    seen += [context.new_uuid(), context.current_utc_datetime.isoformat()]
    yield context.call_activity("hello", "b")
    return seen


@app.orchestration_trigger(context_name="context")
def yields_number(context: df.DurableOrchestrationContext):
    yield 5


@app.orchestration_trigger(context_name="context")
def yields_none(context: df.DurableOrchestrationContext):
    yield None


@app.orchestration_trigger(context_name="context")
def returns_nan(context: df.DurableOrchestrationContext):
    yield context.call_activity("hello", "x")
    return float("nan")


@app.orchestration_trigger(context_name="context")
def calls_nobody(context: df.DurableOrchestrationContext):
    yield context.call_activity("no_such_activity", 1)


@app.orchestration_trigger(context_name="context")
def calls(context: df.DurableOrchestrationContext):
    wanted = context.get_input()
    result = yield context.call_activity(wanted["name"], wanted.get("input"))
    return result


@app.orchestration_trigger(context_name="context")
def without_yield(context: df.DurableOrchestrationContext):
    return {"input": context.get_input()}


@app.orchestration_trigger(context_name="context")
def calls_http(context: df.DurableOrchestrationContext):
    response = yield context.call_http("POST", context.get_input()["url"], {"question": 1})
    return {"status": response["statusCode"], "content": json.loads(response["content"])}


@app.orchestration_trigger(context_name="context", orchestration="renamed_orchestrator")
def another_python_name(context: df.DurableOrchestrationContext):
    result = yield context.call_activity("renamed_activity", context.get_input())
    return result


@app.orchestration_trigger(context_name="context")
def everything(context: df.DurableOrchestrationContext):
    """All of it in one history; what the crash tests run."""
    key = context.get_input()["key"]
    out = {"hello": (yield context.call_activity("hello", "tokyo"))}
    context.set_custom_status("started")
    options = df.RetryOptions(1, 200)  # every process that dies forgets how often `flaky` has failed
    out["retry"] = yield context.call_activity_with_retry("flaky", options, {"key": key, "times": 2})
    out["fan"] = yield context.task_all([context.call_activity(square, n) for n in range(4)])
    yield context.create_timer(context.current_utc_datetime + datetime.timedelta(milliseconds=5))
    deadline = context.create_timer(context.current_utc_datetime + datetime.timedelta(hours=1))
    approval = context.wait_for_external_event("Approval")
    winner = yield context.task_any([approval, deadline])
    if winner is approval:
        deadline.cancel()
    out["approval"] = approval.result
    out["sub"] = yield context.call_sub_orchestrator("child", {"n": 7})
    counter = df.EntityId("Counter", key)
    context.signal_entity(counter, "add", 1)
    out["entity"] = yield context.call_entity(counter, "add", 41)
    try:
        yield context.call_activity("fails", 1)
    except Exception as error:  # noqa: BLE001 - the SDK raises plain Exception for a failed task
        out["caught"] = "bad value 1" in str(error)
    context.set_custom_status({"phase": "done"})
    return out


# ------------------------------------------------------------------------------------------------------------ entities
@app.entity_trigger(context_name="context")
def Counter(context: df.DurableEntityContext):  # noqa: N802 - an entity is named like a class
    total = context.get_state(lambda: 0)
    match context.operation_name:
        case "add":
            total += context.get_input()
        case "crash":
            raise RuntimeError("entity crash")
        case "delete":
            context.destruct_on_exit()
            return
    context.set_state(total)
    context.set_result(total)


# ------------------------------------------------------------------------------------------------------- HTTP starters
@app.route(route="start/{name}", methods=["POST"])
@app.durable_client_input(client_name="client")
async def start(req: func.HttpRequest, client: df.DurableOrchestrationClient) -> func.HttpResponse:
    body = req.get_json() if req.get_body() else None
    instance_id = await client.start_new(req.route_params["name"], req.params.get("id"), body)
    return client.create_check_status_response(req, instance_id)


@app.route(route="ping", methods=["GET"])
def ping(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse(json.dumps(dict(req.params)), mimetype="application/json")
