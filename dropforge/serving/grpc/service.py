"""What is answered over gRPC: the Open Inference Protocol with Triton's additions, health, reflection; errors as codes.

The same slots, batches and keys as over HTTP, on the same loop: a request is an `Ask` here as there.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]

from dropforge.domain.errors import BadInput, DropforgeError, NotFound, Unavailable
from dropforge.serving.batching import Answer, Job, Late
from dropforge.serving.callers import NOBODY, REQUEST_ID, Caller, caller_of
from dropforge.serving.grpc import frames, infer, messages
from dropforge.serving.grpc.calls import Call, Headers
from dropforge.serving.grpc.http2 import Connection
from dropforge.serving.grpc.messages import ENCODINGS, PREFIX_BYTES, prefixed
from dropforge.serving.grpc.schema import Message, Method, Schema, read_schema
from dropforge.serving.grpc.status import CODES, ONLY, TRAILERS, failed
from dropforge.serving.http1 import Connections, Limits
from dropforge.serving.keys import Role
from dropforge.serving.models import Model
from dropforge.serving.protocol import Ask
from dropforge.serving.server import INLINE_BYTES, About, Server
from dropforge.serving.slots import Lineup, Slot

log = logging.getLogger(__name__)

# Of a message to any method but the one that infers.
SMALL_BYTES = 64 * 1024
TIMEOUT = re.compile(r"[0-9]{1,8}[HMSmun]")
UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}

INFERENCE = "inference.GRPCInferenceService"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


Handler = Callable[[Call, bytes, bool], None]


@dataclass(slots=True)
class Head:
    """What the headers of a call ask for."""

    headers: dict[str, str]
    handler: Handler
    path: str = ""
    streaming: bool = False
    message_bytes: int = SMALL_BYTES
    method: Method | None = None
    timeout_seconds: float | None = None
    encoding: str = "identity"
    caller: Caller = NOBODY
    # Why there is no answer: the status that HTTP has for it, and the message.
    refusal: tuple[int, str] | None = None
    is_grpc: bool = True
    # They are none of HTTP/2.
    malformed: bool = False
    # Until when the caller may, in seconds since 1970: a token ends. Before all time, where there is anything to refuse.
    until: float = -inf


@dataclass(slots=True)
class _Voice:
    """How one model version answers: its headers, and its messages."""

    headers: bytes
    answers: infer.Answers


@dataclass(slots=True)
class _Stream:
    """Of a call that streams: bytes of a message that is not whole yet; what a watcher was told last."""

    data: bytes = b""
    watched: str | None = None
    told: int | None = None


class Service:
    """Answers the calls of all connections. On the event loop only."""

    def __init__(self, server: Server, limits: Limits, schema: Schema | None = None) -> None:
        self._server = server
        self._limits = limits
        self._schema = schema or read_schema()
        self._plans = infer.Plans()
        self._tasks: set[asyncio.Task[None]] = set()
        self._routes: dict[str, tuple[Method, Handler, Role]] = {}
        plain = {
            "ServerLive": (self._live, Role.NOBODY),
            "ServerReady": (self._ready, Role.NOBODY),
            "ModelReady": (self._model_ready, Role.CALLER),
            "ServerMetadata": (self._metadata, Role.CALLER),
            "ModelMetadata": (self._model_metadata, Role.CALLER),
            "ModelConfig": (self._config, Role.CALLER),
            "ModelStatistics": (self._statistics, Role.CALLER),
            "RepositoryIndex": (self._index, Role.CALLER),
            "Check": (self._check, Role.NOBODY),
        }
        special = {
            "ModelInfer": (self._infer, Role.CALLER),
            "RepositoryModelLoad": (self._load, Role.ADMIN),
            "RepositoryModelUnload": (self._unload, Role.ADMIN),
            "ServerReflectionInfo": (self._reflect, Role.CALLER),
            "Watch": (self._watch, Role.NOBODY),
        }
        for method in self._schema.methods:
            if method.name in plain:
                handler, role = plain[method.name]
                self._routes[method.path] = (method, self._plain(method, handler), role)
            else:
                self._routes[method.path] = (method, *special[method.name])
        self._request = self._message_of("ModelInfer", "request")
        self._response = self._message_of("ModelInfer", "response")

    def _message_of(self, name: str, which: str) -> Message:
        return next(getattr(method, which) for method in self._schema.methods if method.name == name)

    # -------------------------------------------------------------------------------------------- headers
    def head(self, headers: Headers) -> Head:
        head, pseudo = Head({}, self._nothing), dict[str, str]()
        for raw_name, raw_value in headers:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            if name.startswith(":"):
                if head.headers or name in pseudo or name not in (":method", ":path", ":scheme", ":authority"):
                    head.malformed = True
                pseudo[name] = value
            elif not name or name != name.lower() or name in ("connection", "transfer-encoding", "upgrade"):
                head.malformed = True
            else:
                head.headers[name] = f"{head.headers[name]},{value}" if name in head.headers else value
        if not {":method", ":path", ":scheme"} <= pseudo.keys() or head.headers.get("te", "trailers") != "trailers":
            head.malformed = True
        elif pseudo[":method"] != "POST" or not head.headers.get("content-type", "").startswith("application/grpc"):
            head.is_grpc = False
            head.refusal = (415, "this port speaks gRPC: wanted POST and `content-type: application/grpc`")
        elif not head.malformed:
            head.path = pseudo[":path"]
            self._route(head)
        return head

    def _route(self, head: Head) -> None:
        """Find out who asks for what, and whether he may."""
        head.refusal, head.until = None, -inf
        verdict = self._server.keys.verdict(head.headers.get)
        route = self._routes.get(head.path)
        # Who may not ask is not told what there is.
        refused = self._server.keys.refusal(verdict, route[2] if route is not None else Role.CALLER)
        timeout = head.headers.get("grpc-timeout")
        head.encoding = head.headers.get("grpc-encoding", "identity")
        if refused is not None:
            head.refusal = refused
        elif route is None:
            head.refusal = (415, f"no such method: {head.path[:200]}; reflection tells those there are")
        elif head.encoding not in ENCODINGS:
            head.refusal = (
                415,
                f"messages compressed as {head.encoding[:40]!r} are not read; use gzip, deflate or none",
            )
        elif timeout is not None and not TIMEOUT.fullmatch(timeout):
            wrong = f"`grpc-timeout` is {timeout[:40]!r}; wanted up to 8 digits and one of H, M, S, m, u, n"
            head.refusal = (400, wrong)
        else:
            head.method, head.handler, _ = route
            head.streaming = head.method.name == "ServerReflectionInfo"
            if head.method.name == "ModelInfer":
                head.message_bytes = self._limits.body_bytes
            head.timeout_seconds = int(timeout[:-1]) * UNITS[timeout[-1]] if timeout is not None else None
            head.caller = caller_of(head.headers.get)
            head.until = verdict.until

    def refused(self, call: Call) -> bool:
        head: Head = call.head
        if head.until > self._server.now:
            return False
        if head.malformed:
            call.connection.reset(call, frames.PROTOCOL_ERROR)
            return True
        if head.path and self._server.keys.change:
            # The headers have been seen before, and what their token is worth may have changed since.
            self._route(head)
        if head.refusal is None:
            return False
        status, message = head.refusal
        self._server.count_refused("", status)
        accepted = {"grpc-accept-encoding": ",".join(ENCODINGS)} if head.encoding not in ENCODINGS else None
        call.fail((ONLY if head.is_grpc else frames.status(status)) + failed(status, message, accepted))
        return True

    # -------------------------------------------------------------------------------------------- the connections' calls
    def answer(self, call: Call, data: bytes, ended: bool) -> None:
        try:
            call.head.handler(call, data, ended)
        except Exception as error:  # noqa: BLE001 - one call's misfortune is not the others'
            self.fail(call, error)

    def look(self, call: Call, now: float) -> None:
        head: Head = call.head
        waited = now - call.began
        if head.timeout_seconds is not None and waited > head.timeout_seconds:
            self.fail(call, Late(f"not answered within the call's timeout of {head.timeout_seconds:g} seconds"))
        elif not call.ended and not head.streaming and waited > self._limits.body_seconds:
            self.fail(call, Late(f"the message did not arrive within {self._limits.body_seconds:g} seconds"))
        elif isinstance(call.state, _Stream) and call.state.watched is not None:
            self._tell(call, call.state)

    def fail(self, call: Call, error: Exception) -> None:
        if not isinstance(error, DropforgeError):
            log.error("%s", call.head.method, exc_info=error)
            error = DropforgeError("internal error; the server's log tells more")
        self._server.count_refused(call.state if isinstance(call.state, str) else "", error.http_status)
        failure = failed(error.http_status, error.message)
        call.fail(failure if call.started else ONLY + failure)

    def _message(self, call: Call, data: bytes, kind: Message) -> Message:
        """The one message of a call. Raises `BadInput` and `TooLarge`."""
        return messages.whole(data, call.head.encoding, kind, call.head.message_bytes)

    def _plain(self, method: Method, handler: Callable[[Message, Message], dict[str, str] | None]) -> Handler:
        """A method with one message in and one out, both at hand."""

        def answered(call: Call, data: bytes, ended: bool) -> None:
            response = method.response()
            named = handler(self._message(call, data, method.request), response)
            self._reply(call, response, named)

        return answered

    def _reply(self, call: Call, response: Message, named: dict[str, str] | None = None) -> None:
        headers = ONLY + frames.block(named.items()) if named else ONLY
        call.connection.answer(call, headers, prefixed(response.SerializeToString()), TRAILERS)

    def _start(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        """Go on with a call while others are answered."""

        async def guarded() -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001 - as in `answer`
                self.fail(call, error)
            call.connection.flush()

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _nothing(self, call: Call, data: bytes, ended: bool) -> None:
        raise AssertionError("a refused call is not answered twice")

    # -------------------------------------------------------------------------------------------- inference
    def _infer(self, call: Call, data: bytes, ended: bool) -> None:
        server = self._server
        plan = self._plans.find(data)
        if plan is not None:
            slot, lineup = server.find(plan.endpoint)
            model = lineup.only if plan.version is None else lineup.version(plan.version)
            if model is None:
                model = lineup.choose(call.head.caller.sticky)
            if model.codec is plan.codec:
                server.check_room(lineup)
                self._put(call, slot, lineup, model, plan.ask(data), len(data))
                return
        server.check_room()
        # Nobody knows how long a compressed one is.
        if len(data) > INLINE_BYTES or data[:1] == b"\1":
            self._start(call, self._infer_large(call, data))
            return
        request = self._message(call, data, self._request)
        call.state = request.model_name
        slot, lineup, model = self._chosen(call, request)
        ask = infer.read(request, model)
        self._plans.keep(data, request, model, ask)
        self._put(call, slot, lineup, model, ask, len(data))

    async def _infer_large(self, call: Call, data: bytes) -> None:
        elsewhere = self._server.read_elsewhere
        request, size = await elsewhere(len(data), self._measured, call, data)
        call.state = request.model_name
        slot, lineup, model = self._chosen(call, request)
        lineup.in_flight += 1
        try:
            ask = await elsewhere(size, infer.read, request, model)
            self._plans.keep(data, request, model, ask)
        finally:
            lineup.in_flight -= 1
        self._put(call, slot, lineup, model, ask, size)

    def _measured(self, call: Call, data: bytes) -> tuple[Message, int]:
        """The message, and how long it is when it is not compressed."""
        request = self._message(call, data, self._request)
        return request, request.ByteSize() if data[0] else len(data)

    def _chosen(self, call: Call, request: Message) -> tuple[Slot, Lineup, Model]:
        slot, lineup = self._server.find(request.model_name)
        if request.model_version:
            return slot, lineup, lineup.version(request.model_version)
        if lineup.only is not None:
            return slot, lineup, lineup.only
        sticky = call.head.caller.sticky
        return slot, lineup, lineup.choose(sticky if sticky is not None else request.id or None)

    def _put(self, call: Call, slot: Slot, lineup: Lineup, model: Model, ask: Ask, size: int) -> None:
        head: Head = call.head
        timeout, ask.size = head.timeout_seconds, size
        if timeout is not None and (ask.timeout_seconds is None or timeout < ask.timeout_seconds):
            ask.timeout_seconds = timeout
        self._server.put(slot, lineup, model, ask, call.began, call, self, head.caller)

    def write(self, jobs: Sequence[Job], answers: Sequence[Answer]) -> None:
        """Messages; on the thread that ran the model."""
        for job, answer in zip(jobs, answers, strict=True):
            job.data = self._written(job, answer)

    def done(self, jobs: Sequence[Job], answers: Sequence[Answer]) -> None:
        self._server.done(jobs, answers)

    def _written(self, job: Job, answer: Answer) -> bytes:
        call: Any = job.owed
        about: About = job.about
        more = b""
        if about.seen is not None and about.seen.request_id is not None:
            more = frames.block([(REQUEST_ID, about.seen.request_id)])
        if isinstance(answer, DropforgeError):
            call.failure = ONLY + failed(answer.http_status, answer.message, job.model.headers) + more
            return b""
        voice: _Voice | None = job.model.voice
        if voice is None:
            voice = job.model.voice = self._voice(about.slot.endpoint, job.model)
        call.state = (voice.headers + more, TRAILERS)
        return voice.answers.write(job.ask, answer)

    def _voice(self, endpoint: str, model: Model) -> _Voice:
        headers = ONLY + frames.block(model.headers.items())
        return _Voice(headers, infer.Answers(endpoint, str(model.deployment.version), self._response))

    # -------------------------------------------------------------------------------------------- health and metadata
    def _live(self, request: Message, response: Message) -> None:
        response.live = True

    def _ready(self, request: Message, response: Message) -> None:
        response.ready = self._server.ready

    def _model_ready(self, request: Message, response: Message) -> None:
        try:
            _, lineup = self._server.find(request.name)
            if request.version:
                lineup.version(request.version)
        except (NotFound, Unavailable):
            return
        response.ready = True

    def _metadata(self, request: Message, response: Message) -> None:
        ParseDict(self._server.metadata, response, ignore_unknown_fields=True)

    def _model_metadata(self, request: Message, response: Message) -> dict[str, str]:
        model, told = self._server.model_metadata(request.name, request.version or None)
        ParseDict(told, response, ignore_unknown_fields=True)
        return model.headers

    def _config(self, request: Message, response: Message) -> None:
        config = self._server.repository.config(request.name, request.version or None)
        ParseDict(config, response.config, ignore_unknown_fields=True)

    def _statistics(self, request: Message, response: Message) -> None:
        told = self._server.repository.statistics(request.name or None, request.version or None)
        ParseDict(told, response, ignore_unknown_fields=True)

    # -------------------------------------------------------------------------------------------- the repository
    def _index(self, request: Message, response: Message) -> None:
        for each in self._server.repository.index(request.ready):
            response.models.add(**{name: str(each.get(name, "")) for name in ("name", "version", "state", "reason")})

    def _load(self, call: Call, data: bytes, ended: bool) -> None:
        self._change(call, data, self._server.repository.load)

    def _unload(self, call: Call, data: bytes, ended: bool) -> None:
        self._change(call, data, self._server.repository.unload)

    def _change(self, call: Call, data: bytes, what: Callable[..., Coroutine[Any, Any, None]]) -> None:
        method = call.head.method
        request = self._message(call, data, method.request)

        async def change() -> None:
            await what(request.model_name, infer.parameters(request.parameters))
            self._reply(call, method.response())

        self._start(call, change())

    # -------------------------------------------------------------------------------------------- health checks
    def _check(self, request: Message, response: Message) -> None:
        status = self._status(request.service)
        if status == SERVICE_UNKNOWN:
            raise NotFound(
                f"unknown service {request.service[:80]!r}; choose from {self._schema.services} and the models"
            )
        response.status = status

    def _status(self, service: str) -> int:
        """Of the server as a whole, or of one endpoint by its name."""
        if service == "" or service in self._schema.services:
            return SERVING if self._server.ready else NOT_SERVING
        try:
            self._server.find(service)
        except NotFound:
            return SERVICE_UNKNOWN
        except Unavailable:
            return NOT_SERVING
        return SERVING

    def _watch(self, call: Call, data: bytes, ended: bool) -> None:
        stream = call.state = _Stream()
        stream.watched = self._message(call, data, call.head.method.request).service
        self._tell(call, stream)

    def _tell(self, call: Call, stream: _Stream) -> None:
        assert stream.watched is not None
        status = self._status(stream.watched)
        if status != stream.told:
            stream.told = status
            call.connection.send(call, ONLY, prefixed(call.head.method.response(status=status).SerializeToString()))

    # -------------------------------------------------------------------------------------------- reflection
    def _reflect(self, call: Call, data: bytes, ended: bool) -> None:
        stream = call.state = call.state or _Stream()
        stream.data += data
        method: Method = call.head.method
        while len(stream.data) >= PREFIX_BYTES:
            end = PREFIX_BYTES + int.from_bytes(stream.data[1:PREFIX_BYTES], "big")
            if len(call.rest) > SMALL_BYTES:
                # Asks on and on, and takes no answers.
                call.connection.reset(call, frames.ENHANCE_YOUR_CALM)
                return
            if end > SMALL_BYTES:
                raise messages.too_large(end, SMALL_BYTES)
            if len(stream.data) < end:
                break
            request = messages.parsed(stream.data[:end], call.head.encoding, method.request, SMALL_BYTES)
            stream.data = stream.data[end:]
            call.connection.send(call, ONLY, prefixed(self._described(request, method.response()).SerializeToString()))
        if ended:
            if stream.data:
                raise BadInput("the last request to reflection is not whole")
            call.fail(TRAILERS if call.started else ONLY + TRAILERS)

    def _described(self, request: Message, response: Message) -> Message:
        response.original_request.CopyFrom(request)
        asked = request.WhichOneof("message_request")
        files, file_of = self._schema.files, self._schema.file_of
        wanted = getattr(request, asked) if asked else ""
        file = wanted if asked == "file_by_filename" else file_of.get(str(wanted))
        if asked == "list_services":
            for name in self._schema.services:
                response.list_services_response.service.add(name=name)
        elif asked in ("file_by_filename", "file_containing_symbol") and file in files:
            response.file_descriptor_response.file_descriptor_proto.append(files[file])
        else:
            response.error_response.error_code = CODES[404]
            response.error_response.error_message = f"nothing is declared under {str(wanted)[:200]!r}"
        return response


def speaker(server: Server, connections: Connections) -> Callable[[], Connection]:
    """What makes the object for each new connection of a port."""
    service = Service(server, connections.limits)
    return lambda: Connection(service, connections)
