"""Calling the user's functions: inputs decoded, outputs encoded, everything logged under one invocation id."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from azure.functions import meta

from dropforge.host.app import AppFunction, Binding
from dropforge.host.logs import Scope, in_scope, thread_local
from dropforge.host.threads import FunctionThreads

_log = logging.getLogger(__name__)

# What an input binding other than the trigger gives a function, and where an output binding sends what it is given.
# One entry per binding type that this host serves.
InputSource = Callable[[Binding], meta.Datum]
OutputSink = Callable[[AppFunction, Binding, meta.Datum], Awaitable[None]]


class FunctionTimedOut(Exception):
    """The function ran longer than `functionTimeout` in host.json allows."""


class FunctionQuit(Exception):
    """The function raised what must not leave it: SystemExit, StopIteration, CancelledError, ..."""


@dataclass(frozen=True)
class TraceContext:
    """W3C trace context of the call, as in the Python worker."""

    trace_parent: str = ""
    trace_state: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def Traceparent(self) -> str:  # noqa: N802 - the name that the SDK had first
        return self.trace_parent

    @property
    def Tracestate(self) -> str:  # noqa: N802
        return self.trace_state

    @property
    def Attributes(self) -> Mapping[str, str]:  # noqa: N802
        return self.attributes


@dataclass(frozen=True)
class RetryContext:
    """Which attempt this is; only triggers with a retry policy make a second one."""

    retry_count: int = 0
    max_retry_count: int = 0
    exception: BaseException | None = None


@dataclass(frozen=True)
class Context:
    """What a function gets that declares a `context` parameter; has the attributes of `func.Context`."""

    invocation_id: str
    function_name: str
    function_directory: str
    trace_context: TraceContext
    retry_context: RetryContext
    thread_local_storage: Any = thread_local


class Out:
    """An output parameter: keeps what the function sets."""

    def __init__(self) -> None:
        self._value: Any = None

    def set(self, val: Any) -> None:
        self._value = val

    def get(self) -> Any:
        return self._value


@dataclass(frozen=True)
class Call:
    """One call of one function: the trigger's payload and what is known about it."""

    datum: meta.Datum
    # What happened, for the log: "GET /api/ping", "timer", "event Microsoft.Storage.BlobCreated ...".
    what: str
    metadata: Mapping[str, meta.Datum] = field(default_factory=dict)
    invocation_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    instance_id: str | None = None
    trace: TraceContext = TraceContext()
    retry: RetryContext = RetryContext()


class Invocations:
    """Runs the functions of one app; this is what triggers and the durable engine call."""

    def __init__(
        self,
        functions: Iterable[AppFunction],
        threads: FunctionThreads,
        timeout: timedelta | None = None,
        inputs: Mapping[str, InputSource] | None = None,
        outputs: Mapping[str, OutputSink] | None = None,
    ) -> None:
        self._threads = threads
        self._timeout = timeout.total_seconds() if timeout else None
        self._inputs = dict(inputs or {})
        self._outputs = dict(outputs or {})
        self._stopping = False
        self._running = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        by_type: dict[str, dict[str, AppFunction]] = {}
        for function in functions:
            by_type.setdefault(function.trigger.type, {})[function.durable_name] = function
        self._orchestrators = by_type.get("orchestrationTrigger", {})
        self._activities = by_type.get("activityTrigger", {})
        self._entities = {name.lower(): f for name, f in by_type.get("entityTrigger", {}).items()}

    def stop(self) -> None:
        """From now on, an activity that fails is taken as interrupted."""
        self._stopping = True

    def serve_input(self, binding_type: str, source: InputSource) -> None:
        """From now on, inputs of this type come from the source."""
        self._inputs[binding_type] = source

    def serve_output(self, binding_type: str, sink: OutputSink) -> None:
        """From now on, outputs of this type go to the sink."""
        self._outputs[binding_type] = sink

    # ------------------------------------------------------------------ triggers
    async def invoke(self, function: AppFunction, call: Call) -> meta.Datum | None:
        """Run the function once and return what it returned, encoded; its outputs have been sent then.

        Raises what the function raised (as `FunctionQuit` where that would end the host), `FunctionTimedOut`, or
        `TypeError` for a value that cannot be encoded. Whatever is raised has been logged.
        """
        self._running += 1
        self._quiet.clear()
        try:
            return await self._logged(function, call)
        finally:
            self._running -= 1
            if not self._running:
                self._quiet.set()

    async def finished(self, grace: float) -> int:
        """Wait until no trigger's function runs any more, at most so many seconds; returns how many still do.

        Activities do not count: the durable engine looks after those.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._quiet.wait()
        return self._running

    async def _logged(self, function: AppFunction, call: Call) -> meta.Datum | None:
        started = time.perf_counter()
        with in_scope(Scope(function.name, call.invocation_id, lambda: call.instance_id)):
            try:
                returned = await self._run(function, call)
            except Exception as error:
                _log_failure(call, started, error, logging.ERROR)
                raise
            _log.info("%s%s, %s", call.what, _status(returned), _took(started), extra={"routine": _is_routine(call)})
            return returned

    async def _run(self, function: AppFunction, call: Call) -> meta.Datum | None:
        arguments = self._arguments(function, call)
        outs = {binding.name: Out() for binding in function.outputs}
        body = _call_async if function.is_async else self._call_in_thread
        try:
            async with asyncio.timeout(self._timeout) as limit:
                result = await body(function, {**arguments, **outs}, call.invocation_id)
        except TimeoutError as error:
            if not limit.expired():
                raise
            still = "" if function.is_async else "; its thread goes on until it returns"
            raise FunctionTimedOut(f"stopped after the functionTimeout of {self._timeout:g} s{still}") from error
        returned = encode_return(function, result)
        for binding in function.outputs:
            if (value := outs[binding.name].get()) is not None:
                await self._send(function, binding, encode(binding.type, value))
        if function.return_output is not None and returned is not None:
            await self._send(function, function.return_output, returned)
        return returned

    def _arguments(self, function: AppFunction, call: Call) -> dict[str, Any]:
        trigger = function.trigger
        arguments = {trigger.name: _decode(trigger, call.datum, call.metadata, function.raw_parameters)}
        for binding in function.inputs:
            arguments[binding.name] = _decode(binding, self._inputs[binding.type](binding), {}, function.raw_parameters)
        if function.wants_context:
            arguments["context"] = Context(
                call.invocation_id, function.name, str(function.folder), call.trace, call.retry
            )
        return arguments

    async def _call_in_thread(self, function: AppFunction, arguments: Mapping[str, Any], invocation_id: str) -> Any:
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, context.run, _call_plainly, function, arguments, invocation_id)

    async def _send(self, function: AppFunction, binding: Binding, datum: meta.Datum) -> None:
        sink = self._outputs.get(binding.type)
        if sink is None:
            raise NotImplementedError(
                f"output {binding.name!r}: {binding.type} outputs are not served by this host yet"
            )
        await sink(function, binding, datum)

    # ------------------------------------------------------------------ the durable engine's invoker
    @property
    def orchestrators(self) -> frozenset[str]:
        return frozenset(self._orchestrators)

    @property
    def activities(self) -> frozenset[str]:
        return frozenset(self._activities)

    @property
    def entities(self) -> frozenset[str]:
        return frozenset(self._entities)

    def orchestrate(self, name: str, context_json: str) -> str:
        """One episode of an orchestrator, in the caller's thread."""
        return self._replay(self._orchestrators[name], context_json, lambda: _orchestration_of(context_json))

    def operate(self, name: str, context_json: str) -> str:
        """One batch of operations on an entity, in the caller's thread."""
        return self._replay(self._entities[name.lower()], context_json, lambda: _entity_of(context_json))

    async def act(self, name: str, input_json: str | None, *, instance_id: str, task_id: int) -> str | None:
        """Run an activity; its result as JSON text."""
        call = Call(
            datum=meta.Datum("null" if input_json is None else input_json, "json"),
            what=f"activity {task_id} of {instance_id}",
            instance_id=instance_id,
        )
        started = time.perf_counter()
        with in_scope(Scope(name, call.invocation_id, lambda: instance_id)):
            try:
                returned = await self._run(self._activities[name], call)
            except Exception as error:
                # The flow decides what a failure means, so it is no error yet.
                _log_failure(call, started, error, logging.WARNING)
                # While the host stops, the stop itself may be the reason (the durable client no longer answers, say).
                # An activity that is cancelled has no result, so it runs again after the next start.
                if self._stopping:
                    raise asyncio.CancelledError from None
                raise
            _log.info("%s, %s", call.what, _took(started))
        return None if returned is None else str(returned.value)

    def _replay(self, function: AppFunction, context_json: str, find_instance: Callable[[], str | None]) -> str:
        with in_scope(Scope(function.name, str(uuid.uuid4()), find_instance)):
            trigger = function.trigger
            argument = _decode(trigger, meta.Datum(context_json, "string"), {}, function.raw_parameters)
            try:
                return str(encode(trigger.type, function.call(**{trigger.name: argument})).value)
            except Exception:
                raise
            except BaseException as error:
                raise FunctionQuit(f"raised {_in_words(error)}") from error


# ---------------------------------------------------------------------- values in and out
def encode_return(function: AppFunction, result: Any) -> meta.Datum | None:
    """What the function returned, encoded; None when it has nothing to return."""
    if function.returns is None:
        if result is not None:
            raise RuntimeError(f"function {function.name!r} without a $return binding returned a non-None value")
        return None
    return encode(function.returns, result)


def encode(binding_type: str, value: Any) -> meta.Datum:
    """A value as the SDK's converter for the binding writes it. Raises `TypeError` for one that it cannot write."""
    converter = meta.get_binding_registry().get(binding_type)
    try:
        if converter is not None:
            return converter.encode(value, expected_type=None)
        return _encode_generic(value)
    except NotImplementedError as error:
        raise TypeError(
            f'unable to encode outgoing TypedData: unsupported type "{binding_type}" for '
            f'Python type "{type(value).__name__}"'
        ) from error


def _encode_generic(value: Any) -> meta.Datum:
    if isinstance(value, str):
        return meta.Datum(value, "string")
    if isinstance(value, (bytes, bytearray)):
        return meta.Datum(bytes(value), "bytes")
    return meta.Datum(json.dumps(value), "json")


def _decode(binding: Binding, datum: meta.Datum, metadata: Mapping[str, meta.Datum], raw: frozenset[str]) -> Any:
    converter = meta.get_binding_registry().get(binding.type)
    if converter is None or binding.name in raw:
        return datum.value
    return converter.decode(datum, trigger_metadata=metadata)


# ---------------------------------------------------------------------- the call itself
async def _call_async(function: AppFunction, arguments: Mapping[str, Any], invocation_id: str) -> Any:
    task = asyncio.current_task()
    try:
        return await function.call(**arguments)
    except BaseException as error:
        cancelled = isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling()
        if cancelled or _may_leave(error):
            raise
        raise FunctionQuit(f"raised {_in_words(error)}") from error


def _call_plainly(function: AppFunction, arguments: Mapping[str, Any], invocation_id: str) -> Any:
    thread_local.invocation_id = invocation_id
    try:
        return function.call(**arguments)
    except BaseException as error:
        if _may_leave(error):
            raise
        raise FunctionQuit(f"raised {_in_words(error)}") from error
    finally:
        thread_local.invocation_id = None


def _may_leave(error: BaseException) -> bool:
    """Whether who awaits the call can take it for a failure. Of what is no `Exception` (the panics of Rust libraries are
    none) some end the event loop, and the others would end the flow's or the timer's task in silence; a future cannot
    carry StopIteration."""
    return isinstance(error, Exception) and not isinstance(error, StopIteration)


# ---------------------------------------------------------------------- the log
def _log_failure(call: Call, started: float, error: Exception, level: int) -> None:
    what, extra = _in_words(error), {"brief": True}
    _log.log(level, "%s failed, %s: %s", call.what, _took(started), what, exc_info=_origin(error), extra=extra)


def _origin(error: BaseException) -> BaseException:
    """The error as the function raised it."""
    return error.__cause__ if isinstance(error, FunctionQuit) and error.__cause__ else error


def _is_routine(call: Call) -> bool:
    """A request that only looked: somebody watching asks four times a second."""
    return call.what.startswith(("GET ", "HEAD "))


def _status(returned: meta.Datum | None) -> str:
    if returned is None or returned.type not in ("http", "string"):
        return ""
    # A function that returns text answers 200.
    return f" -> {returned.value['status_code'].value if returned.type == 'http' else 200}"


def _took(started: float) -> str:
    milliseconds = (time.perf_counter() - started) * 1000
    return f"{milliseconds:.0f} ms" if milliseconds < 10_000 else f"{milliseconds / 1000:.1f} s"


def _in_words(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _orchestration_of(context_json: str) -> str | None:
    found = json.loads(context_json).get("instanceId")
    return None if found is None else str(found)


def _entity_of(context_json: str) -> str | None:
    found = json.loads(context_json).get("self") or {}
    return f"@{str(found.get('name', '')).lower()}@{found.get('key')}"
