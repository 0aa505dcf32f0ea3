"""Loads a packaged Function App with `azure-functions-runtime`, as Azure's Python 3.13 worker does, and asks it for something.

    python3.13 -I -S packaged_runtime.py APP_FOLDER RUNTIME_FOLDER PATH...

Each PATH is a GET of the function whose route it is. Prints one JSON object. Nothing but the standard library and the
package is on the path; RUNTIME_FOLDER, which stands for the worker, comes after both and may give its own modules only.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import types
import uuid
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

APP, RUNTIME = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
# The worker's order: the package's dependencies, the worker's own, the app's folder last.
sys.path += [os.path.join(APP, ".python_packages/lib/site-packages"), RUNTIME, APP]
sys.dont_write_bytecode = True
warnings.simplefilter("ignore")
os.chdir(APP)

import azure_functions_runtime as runtime  # noqa: E402


class Message(types.SimpleNamespace):
    """Stands for any protobuf class: keeps what it is given; of a choice, what it is given first."""

    def WhichOneof(self, _: str) -> str | None:  # noqa: N802
        return next(iter(vars(self)), None)


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


def envelope(**request: Any) -> Message:
    return Message(request=Message(**request), properties={"host": "127.0.0.1", "protos": PROTOS})


async def index() -> list[Any]:
    """The functions, as the worker finds them."""
    asked = envelope(worker_init_request=Message(capabilities={}, function_app_directory=APP))
    started = await runtime.worker_init_request(asked)
    if started.result.status != 1:
        raise SystemExit(f"the runtime does not load the package: {started.result.exception.message}")
    found: list[Any] = (await runtime.functions_metadata_request(asked)).function_metadata_results
    return found


def routes(functions: list[Any]) -> dict[str, tuple[str, str]]:
    """Route -> function id and the name of its trigger's parameter, of what answers a GET."""
    found = {}
    for function in functions:
        for binding in map(json.loads, function.raw_bindings):
            if binding["type"] == "httpTrigger" and "GET" in binding.get("methods", ["GET"]):
                found[binding["route"]] = (function.function_id, binding["name"])
    return found


async def get(known: dict[str, tuple[str, str]], path: str) -> dict[str, Any]:
    place, parameter = known[urlsplit(path).path.removeprefix("/api/")]
    http = Message(
        method="GET",
        url=f"https://app.example{path}",
        headers={"x-functions-key": "any: the host has checked it"},
        params={},
        query={},
        body=Message(),
    )
    request = Message(
        invocation_id=uuid.uuid4().hex,
        function_id=place,
        input_data=[Message(data=Message(http=http), name=parameter)],
        trigger_metadata={},
        trace_context=Message(trace_parent="", trace_state="", attributes={}),
        retry_context=Message(retry_count=0, max_retry_count=0, exception=None),
    )
    start = time.perf_counter()
    done = await runtime.invocation_request(envelope(invocation_request=request))
    if done.result.status != 1:
        raise SystemExit(f"GET {path} failed: {done.result.exception.message}")
    answer = done.return_value.http
    body = answer.body.bytes
    return {
        "status": int(answer.status_code),
        "body": body.decode() if isinstance(body, bytes) else body,
        "seconds": time.perf_counter() - start,
        "modules": sorted(sys.modules),
    }


def strangers() -> list[str]:
    """Modules that came neither from the package, the interpreter nor the runtime."""
    allowed = (APP, os.path.join(RUNTIME, "azure_functions_runtime"), os.path.dirname(os.__file__))
    files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items() if name != "__main__"}
    return sorted(name for name, file in files.items() if file and not file.startswith(allowed))


async def main() -> None:
    runtime.start_threadpool_executor()
    start = time.perf_counter()
    functions = await index()
    seconds = time.perf_counter() - start
    after_index = sorted(sys.modules)
    known = routes(functions)
    answers = {path: await get(known, path) for path in sys.argv[3:]}
    told = {
        "functions": [function.name for function in functions],
        "index_seconds": seconds,
        "modules": after_index,
        "answers": answers,
        "strangers": strangers(),
    }
    print(json.dumps(told))


assert Path(APP, "host.json").is_file()
asyncio.run(main())
sys.stdout.flush()
os._exit(0)
