"""Replays recorded episodes through `azure-functions-runtime`, the library that Azure's Python 3.13 worker loads.

    python3.13 replay_runtime.py APP_FOLDER RECORDING...

Prints one JSON object: how many episodes gave the same result, and the first that did not. Runs in an environment of its
own (requirements/runtime.txt); neither our host nor our engine is on the path.
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
import sys
import types
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

warnings.simplefilter("ignore")

FOLDER = os.path.abspath(sys.argv[1])
sys.path.insert(0, FOLDER)
os.chdir(FOLDER)

import azure_functions_runtime as runtime  # noqa: E402
from azure_functions_runtime import native_invocation  # noqa: E402
from azure_functions_runtime.bindings.datumdef import Datum  # noqa: E402


class Message(types.SimpleNamespace):
    """Stands for any protobuf class the runtime wants to fill: keeps what it is given."""


def message(name: str, **members: Any) -> type[Message]:
    return type(name, (Message,), members)


NAMES = (
    "RpcFunctionMetadata WorkerInitResponse FunctionMetadataResponse FunctionLoadResponse InvocationResponse "
    "RpcException WorkerMetadata RpcRetryOptions ParameterBinding TypedData RpcHttp"
)
PROTOS = types.SimpleNamespace(
    **{name: message(name) for name in NAMES.split()},
    StatusResult=message("StatusResult", Failure=0, Success=1),
    BindingInfo=message(
        "BindingInfo", **{"in": 0, "out": 1, "inout": 2, "undefined": 0, "string": 1, "binary": 2, "stream": 3}
    ),
)


async def load() -> dict[str, str]:
    """Durable name, lower-cased -> function id, as the worker indexes the app."""
    runtime.start_threadpool_executor()
    request = types.SimpleNamespace(capabilities={}, function_app_directory=FOLDER)
    asked = types.SimpleNamespace(
        request=types.SimpleNamespace(worker_init_request=request), properties={"host": "127.0.0.1", "protos": PROTOS}
    )
    started = await runtime.worker_init_request(asked)
    if started.result.status != 1:
        raise SystemExit(f"the runtime does not load the app: {started.result.exception.message}")
    indexed = await runtime.functions_metadata_request(asked)
    ids = {}
    for function in indexed.function_metadata_results:
        for binding in map(json.loads, function.raw_bindings):
            if binding["type"] in ("orchestrationTrigger", "entityTrigger"):
                # The decorators may give a flow or an entity another name than its function's.
                name = (
                    binding.get("orchestration")
                    or binding.get("entityName")
                    or binding.get("entity_name")
                    or function.name
                )
                ids[name.lower()] = function.function_id
    return ids


async def replay(ids: dict[str, str], episode: dict[str, Any]) -> tuple[object, object]:
    """What was recorded, and what the runtime gives."""
    context = episode["context"]
    text = context if isinstance(context, str) else json.dumps(context)
    good, returned, _, error, _ = await native_invocation.invocation_request_native(
        uuid.uuid4().hex, ids[episode["name"].lower()], [("context", Datum(text, "string"))], {}
    )
    if not good:
        return episode.get("error"), message_of(str(error))
    value = returned[0] if isinstance(returned, tuple) else returned
    state = episode.get("state")
    return (json.loads(state) if isinstance(state, str) else state), json.loads(value.value)


def message_of(error: str) -> str:
    """The message of an exception, which the runtime passes on as its repr."""
    inside = error[error.index("(") + 1 : error.rindex(")")]
    return str(ast.literal_eval(inside))


def same(recorded: Any, given: Any) -> bool:
    if isinstance(recorded, dict) and isinstance(given, dict) and "results" in recorded:
        # An entity's answer says when each operation ran and how long it took.
        for state in (recorded, given):
            for result in state["results"]:
                result["duration"] = result["startTime"] = 0
    return bool(recorded == given)


def episodes(paths: list[str]) -> Iterator[dict[str, Any]]:
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):  # else the host was killed while it wrote this one
                    yield json.loads(line)


async def main() -> None:
    ids = await load()
    equal, different, first = 0, 0, None
    for episode in episodes(sys.argv[2:]):
        recorded, given = await replay(ids, episode)
        if same(recorded, given):
            equal += 1
        else:
            different += 1
            first = first or {"name": episode["name"], "recorded": recorded, "given": given}
    print(json.dumps({"equal": equal, "different": different, "first": first}))


asyncio.run(main())
os._exit(0)
