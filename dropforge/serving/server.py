"""What is answered: the routes of the Open Inference Protocol over HTTP, keys, errors as JSON."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import inf
from typing import Any, TypeVar

import msgspec

from dropforge.domain.errors import BadInput, DropforgeError
from dropforge.serving.admin import Admin
from dropforge.serving.batching import FEW_JOBS, GONE, Answer, Batcher, Job, Place, Sink, TooBusy
from dropforge.serving.callers import NOBODY, REQUEST_ID, Caller, caller_of
from dropforge.serving.converge import Converger
from dropforge.serving.heads import Head, Heads
from dropforge.serving.http1 import Limits, Owed
from dropforge.serving.keys import Keys, Role, Tokens, Verdict
from dropforge.serving.models import Model, ModelFailed
from dropforge.serving.polling import Polling
from dropforge.serving.protocol import Ask, read_id
from dropforge.serving.repository import EXTENSIONS, Repository
from dropforge.serving.responses import JSON, TEXT, bodiless, response, to_json
from dropforge.serving.results import Rows
from dropforge.serving.scoring import ENDPOINT_HEADER, as_rows, asked_endpoint
from dropforge.serving.scrape import Facts, scrape
from dropforge.serving.slots import Lineup, Slot
from dropforge.serving.watch import Seen, Watch

log = logging.getLogger(__name__)

T = TypeVar("T")

ERROR_CHARACTERS = 2000
# A body above this is read in a thread, if reading it would hold the loop up.
INLINE_BYTES = 64 * 1024
# With more requests than these no copies are made: they would wait for a copy.
BUSY = 256


@dataclass(slots=True)
class Route:
    """What a head asks for. `handler` is None where there is nothing of that name."""

    handler: Callable[[Head[Any], bytes, Callable[[], Owed]], bytes | None] | None
    methods: tuple[str, ...] = ("GET",)
    endpoint: str = ""
    version: str | None = None
    # Status and message for a caller who may not.
    refused: tuple[int, str] | None = None
    # Where the JSON of a binary request ends.
    header_bytes: int | None = None
    # What makes an inference request of another kind of body.
    convert: Callable[[bytes], bytes] | None = None
    # Who asks for an inference.
    caller: Caller = NOBODY
    # Until when the caller may, in seconds since 1970: a token ends.
    until: float = inf
    # Whether the body is read as it is, by whichever model answers.
    is_plain: bool = False


class About(msgspec.Struct, eq=False):
    """What the server remembers of a request while its model runs."""

    slot: Slot
    lineup: Lineup
    # Where somebody looks on.
    seen: Seen | None = None


class Server:
    """Answers requests from the slots of a converger. `key` is None when everybody may ask."""

    def __init__(
        self,
        converger: Converger,
        key: str | None,
        limits: Limits,
        *,
        queue: int = 2048,
        admin_key: str | None = None,
        tokens: Tokens | None = None,
        watch: Watch | None = None,
        alone: bool = True,
        busy_poll_seconds: float = 0.0,
    ) -> None:
        self.heads: Heads[Route] = Heads(self._route)
        self._converger = converger
        self.keys = Keys(key, admin_key, tokens)
        # The time, to the second, where it matters.
        self.now = 0.0
        self._clock: asyncio.TimerHandle | None = None
        if tokens is not None:
            self._tell_time()
        self._limits = limits
        self._watch = watch
        self._refused: dict[tuple[str, int], int] = {}
        self.pool = ThreadPoolExecutor(os.cpu_count() or 1, "infer")
        # One large body at a time: two would not be read faster, and hold up the others for longer.
        self._readers = ThreadPoolExecutor(1, "read")
        loop = asyncio.get_running_loop()
        self._batcher = Batcher(loop, self.pool, waiting=queue)
        self._batcher.rest = Polling(loop, busy_poll_seconds, lambda: not converger.changing).rest
        self.repository = Repository(converger, self._batcher.batch_rows, alone)
        self._admin = Admin(self.repository, self._failed)
        self.metadata = {"name": "dropforge", "version": version("dropforge"), "extensions": list(EXTENSIONS)}
        self._metadata = to_json(self.metadata)

    @property
    def ready(self) -> bool:
        return self._converger.ready

    def close(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
        self.pool.shutdown()
        self._readers.shutdown()

    # -------------------------------------------------------------------------------------------- routing
    def _tell_time(self) -> None:
        self.now = time.time()
        self._clock = asyncio.get_running_loop().call_later(1.0, self._tell_time)

    def _route(self, head: Head[Route]) -> Route:
        verdict = self.keys.verdict(head.header)
        route = self._found(head, verdict)
        # One comparison tells both who may not and whose time is over.
        route.until = verdict.until if route.refused is None else -inf
        if route.handler is not None and head.method in route.methods and self._fits(head):
            head.good_until = route.until
        handler = route.handler
        if handler is not None and head.method == "HEAD":
            route.handler = lambda *asked: bodiless(handler(*asked) or b"")
        return route

    def _found(self, head: Head[Route], verdict: Verdict) -> Route:
        parts = head.parts
        match parts:
            case ["v2", "health", "live"] | ["health", "live"] | []:
                return Route(self._live)
            case ["v2", "health", "ready"] | ["health", "ready"]:
                return Route(self._ready)
        refused = self.keys.refusal(verdict, Role.CALLER)
        match parts:
            case ["v2"]:
                return Route(self._server, refused=refused)
            case ["metrics"]:
                return Route(self._metrics, refused=refused)
            case ["v2", "models", "stats"]:
                return Route(self._all_statistics, refused=refused)
            case ["v2", "models", endpoint, *rest]:
                return self._model_route(head, endpoint, rest, refused)
            case ["score"]:
                return Route(self._score, ("POST",), "", None, refused, None, as_rows, caller_of(head.header))
            case ["score", endpoint]:
                return Route(self._score, ("POST",), endpoint, None, refused, None, as_rows, caller_of(head.header))
            case ["v2", "repository", "index"]:
                return Route(self._admin.index, ("POST",), refused=refused)
            case ["v2", "repository", "models", endpoint, "load" | "unload" as what]:
                handler = self._admin.load if what == "load" else self._admin.unload
                return Route(handler, ("POST",), endpoint, None, self.keys.refusal(verdict, Role.ADMIN))
        return Route(None, refused=refused)

    def _model_route(self, head: Head[Route], endpoint: str, rest: list[str], refused: tuple[int, str] | None) -> Route:
        version = None
        if rest[:1] == ["versions"] and len(rest) >= 2:
            version, rest = rest[1], rest[2:]
        match rest:
            case []:
                return Route(self._model, ("GET",), endpoint, version, refused)
            case ["ready"]:
                return Route(self._model_ready, ("GET",), endpoint, version, refused)
            case ["config"]:
                return Route(self._admin.config, ("GET",), endpoint, version, refused)
            case ["stats"]:
                return Route(self._admin.statistics, ("GET",), endpoint, version, refused)
            case ["infer"]:
                length = head.header("inference-header-content-length")
                # What is no number is refused when the body is there to be named with it.
                is_number = length is not None and length.isascii() and length.isdigit() and len(length) < 12
                header_bytes = None if length is None else int(length) if is_number else -1
                caller, is_plain = caller_of(head.header), version is None and header_bytes != -1
                return Route(
                    self._infer, ("POST",), endpoint, version, refused, header_bytes, None, caller, is_plain=is_plain
                )
        return Route(None, refused=refused)

    # -------------------------------------------------------------------------------------------- the connections' calls
    def refusal(self, head: Head[Route]) -> bytes | None:
        data = self._refusal(head)
        return bodiless(data) if data is not None and head.method == "HEAD" else data

    def _fits(self, head: Head[Route]) -> bool:
        return (head.body_bytes or 0) <= self._limits.body_bytes

    def _refusal(self, head: Head[Route]) -> bytes | None:
        route = head.route
        if route.until <= self.now and self.keys.change:
            # The head has been seen before, and what its token is worth may have changed since.
            route = head.route = self._route(head)
        if route.refused is not None:
            status, message = route.refused
            more = {401: {"www_authenticate": "Bearer"}, 503: {"retry_after": "1"}}.get(status, {})
            return self.error(status, message, **more)
        if route.handler is None:
            return self.error(404, f"no such route: {head.method} {head.path[:200]}")
        methods = (*route.methods, "HEAD") if "GET" in route.methods else route.methods
        if head.method in methods:
            if self._fits(head):
                return None
            limit = self._limits.body_bytes
            return self.error(413, f"the body is larger than the limit of {limit} bytes; send fewer rows per request")
        allow = {"allow": ", ".join((*methods, "OPTIONS"))}
        if head.method == "OPTIONS":
            return response(200, b"", headers={"Allow": allow["allow"]})
        return self.error(405, f"{head.method} is not for this route; use {' or '.join(route.methods)}", **allow)

    def answer(self, head: Head[Route], body: bytes, owe: Callable[[], Owed]) -> bytes | None:
        handler = head.route.handler
        assert handler is not None
        try:
            return handler(head, body, owe)
        except DropforgeError as error:
            data = self._failed(head.route.endpoint, error)
        except Exception:
            log.exception("%s %s", head.method, head.path)
            data = self.error(500, "internal error; the server's log tells more", head.route.endpoint)
        return bodiless(data) if head.method == "HEAD" else data

    def error(self, status: int, message: str, endpoint: str = "", **headers: str) -> bytes:
        self.count_refused(endpoint, status)
        named = {name.replace("_", "-").title(): value for name, value in headers.items()}
        return response(status, to_json({"error": message[:ERROR_CHARACTERS]}), JSON, named)

    def count_refused(self, endpoint: str, status: int) -> None:
        """One request was refused; the status is that of HTTP, whatever the caller speaks."""
        place = (endpoint if endpoint in self._converger.slots else "", status)
        self._refused[place] = self._refused.get(place, 0) + 1

    def _failed(self, endpoint: str, error: DropforgeError) -> bytes:
        retry = {"retry_after": "1"} if error.http_status in (429, 503) else {}
        return self.error(error.http_status, error.message, endpoint, **retry)

    # -------------------------------------------------------------------------------------------- health and metadata
    def _live(self, head: Head[Route], body: bytes, owe: Callable[[], Owed]) -> bytes:
        return response(200, to_json({"live": True}))

    def _ready(self, head: Head[Route], body: bytes, owe: Callable[[], Owed]) -> bytes:
        if self.ready:
            return response(200, to_json({"live": True, "ready": True}))
        problem = self._converger.provider.problem
        return response(503, to_json({"live": True, "ready": False, **({"error": problem} if problem else {})}))

    def _server(self, head: Head[Route], body: bytes, owe: Callable[[], Owed]) -> bytes:
        return response(200, self._metadata)

    def _model(self, head: Head[Route], body: bytes, owe: Callable[[], Owed]) -> bytes:
        model, told = self.model_metadata(head.route.endpoint, head.route.version)
        return response(200, to_json(told), JSON, model.headers)

    def model_metadata(self, endpoint: str, version: str | None) -> tuple[Model, dict[str, Any]]:
        """A model and what the protocol tells of it. Raises `NotFound` and `Unavailable`."""
        slot, lineup = self.find(endpoint)
        model = lineup.version(version) if version is not None else lineup.choose(None)
        deployment = model.deployment
        return model, {
            "name": slot.endpoint,
            "versions": lineup.versions,
            "platform": "onnx_onnxv1",
            "inputs": [{"name": t.name, "datatype": t.kind.datatype, "shape": t.shape} for t in model.inputs],
            "outputs": [{"name": t.name, "datatype": t.kind.datatype, "shape": t.shape} for t in model.outputs],
            "parameters": {
                "model": deployment.model,
                "version": deployment.version,
                "dataset_version": deployment.dataset_version,
                "sha256": deployment.sha256,
                "revision": lineup.revision,
                "provider": model.provider,
            },
        }

    def _all_statistics(self, head: Head[Route], body: bytes, owe: Callable[[], Owed]) -> bytes:
        if "stats" in self._converger.slots:
            # An endpoint of that name.
            model, told = self.model_metadata("stats", None)
            return response(200, to_json(told), JSON, model.headers)
        return self._admin.statistics(head, body, owe)

    def _model_ready(self, head: Head[Route], body: bytes, owe: Callable[[], Owed]) -> bytes:
        slot, lineup = self.find(head.route.endpoint)
        if head.route.version is not None:
            lineup.version(head.route.version)
        return response(200, to_json({"name": slot.endpoint, "ready": True}))

    def _metrics(self, head: Head[Route], body: bytes, owe: Callable[[], Owed]) -> bytes:
        request_log = self._watch.request_log if self._watch is not None else None
        facts = Facts(self._batcher.waiting, self._batcher.limit, self._refused, request_log)
        return response(200, scrape(list(self._converger.slots.values()), facts).encode(), TEXT)

    def find(self, endpoint: str) -> tuple[Slot, Lineup]:
        """What answers for an endpoint. Raises `NotFound` and `Unavailable`."""
        slot = self._converger.slots.get(endpoint)
        if slot is not None and slot.lineup is not None:
            return slot, slot.lineup
        slot = self._converger.find(endpoint)
        return slot, slot.here()

    # -------------------------------------------------------------------------------------------- inference
    def _score(self, head: Head[Route], body: bytes, owe: Callable[[], Owed]) -> bytes | None:
        named = asked_endpoint(head.route.endpoint, head.header(ENDPOINT_HEADER), body, self._converger.slots)
        return self._ask(replace(head.route, endpoint=named), body, owe)

    def _infer(self, head: Head[Route], body: bytes, owe: Callable[[], Owed]) -> bytes | None:
        return self._ask(head.route, body, owe)

    def _ask(self, route: Route, body: bytes, owe: Callable[[], Owed]) -> bytes | None:
        began = time.perf_counter()
        # From here on the lineup is this request's, whatever is swapped in meanwhile.
        slot, lineup = self.find(route.endpoint)
        # Fewer that wait are no reason to look for room before this one is read.
        if self._batcher.waiting >= FEW_JOBS:
            self.check_room(lineup)
        if len(body) > INLINE_BYTES and lineup.models[0].codec.takes_long(route.header_bytes):
            self._batcher.hold(len(body), is_only=not lineup.in_flight)
            self._read_elsewhere(slot, lineup, route, body, owe(), began)
            return None
        model = lineup.only
        if model is not None and route.is_plain:
            ask = model.codec.read(body, route.header_bytes)
        else:
            model, ask = _read(lineup, route, body)
        self.put(slot, lineup, model, ask, began, owe(), None, route.caller)
        return None

    def check_room(self, lineup: Lineup | None = None) -> None:
        """Raises `TooBusy` when no further request is taken on: by nobody, or not by the one model that would answer it."""
        batcher = self._batcher
        if lineup is not None and lineup.only is not None:
            batcher.check(lineup.queues[id(lineup.only)])
        elif batcher.full:
            raise TooBusy(f"{batcher.waiting} requests wait already; try again")

    def put(
        self,
        slot: Slot,
        lineup: Lineup,
        model: Model,
        ask: Ask,
        began: float,
        owed: Place,
        sink: Sink | None = None,
        caller: Caller = NOBODY,
    ) -> None:
        """Have a request answered, into its place, by what the sink writes (default: a response of HTTP/1.1)."""
        lineup.in_flight += 1
        about = lineup.about
        if self._watch is not None or about is None:
            seen = self._watch.begin(caller, ask) if self._watch is not None else None
            about = About(slot, lineup, seen)
            if seen is None:
                lineup.about = about
        job = Job(model, ask, began, sink or self, owed, about)
        self._batcher.put(lineup.queues[id(model)], job)

    async def read_elsewhere(self, size: int, read: Callable[..., T], *given: Any) -> T:
        """What `read` makes of a body of so many bytes, in a thread: it would hold the loop up. Raises `TooBusy`."""
        self._batcher.hold(size)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, read, *given)
        finally:
            self._batcher.release(size)

    def _read_elsewhere(self, slot: Slot, lineup: Lineup, route: Route, body: bytes, owed: Owed, began: float) -> None:
        """Read a large body, which is held, in a thread, then go on here."""
        lineup.in_flight += 1
        future = asyncio.get_running_loop().run_in_executor(self._readers, _read, lineup, route, body)

        def go_on(done: asyncio.Future[tuple[Model, Ask]]) -> None:
            lineup.in_flight -= 1
            self._batcher.release(len(body))
            try:
                model, ask = done.result()
            except Exception as error:  # noqa: BLE001 - whatever it was, this request is answered
                known = (
                    error
                    if isinstance(error, DropforgeError)
                    else DropforgeError(f"internal error: {type(error).__name__}")
                )
                owed.give(self._failed(slot.endpoint, known))
                owed.connection.flush()
            else:
                self.put(slot, lineup, model, ask, began, owed, caller=route.caller)

        future.add_done_callback(go_on)

    def write(self, jobs: Sequence[Job], answers: Sequence[Answer]) -> None:
        """Whole responses; on the thread that ran the model."""
        # All of one queue, and so of one lineup.
        response_of = jobs[0].about.lineup.writers[id(jobs[0].model)].response
        for job, answer in zip(jobs, answers, strict=True):
            seen: Seen | None = job.about.seen
            if isinstance(answer, DropforgeError):
                job.data = self._failure(job.model, answer, seen)
            elif seen is None or seen.request_id is None:
                job.data = response_of(job.ask, answer)
            else:
                job.data = response_of(job.ask, answer, b"X-Request-Id: %b\r\n" % seen.request_id.encode())

    def _failure(self, model: Model, error: DropforgeError, seen: Seen | None) -> bytes:
        headers = model.headers
        if seen is not None and seen.request_id is not None:
            headers = {**headers, REQUEST_ID: seen.request_id}
        if error.http_status in (429, 503):
            headers = {**headers, "Retry-After": "1"}
        return response(error.http_status, to_json({"error": error.message[:ERROR_CHARACTERS]}), JSON, headers)

    def done(self, jobs: Sequence[Job], answers: Sequence[Answer]) -> None:
        """What is counted, whatever the callers speak."""
        # All of one queue, and so of one slot, lineup and model.
        job, about = jobs[0], jobs[0].about
        slot, lineup = about.slot, about.lineup
        lineup.in_flight -= len(jobs)
        now, took = time.perf_counter(), list[float]()
        for job, answer in zip(jobs, answers, strict=True):
            if isinstance(answer, Rows):
                took.append(now - job.began)
                if job.ask.size <= INLINE_BYTES:
                    slot.sample = job.ask.feeds
            elif answer is not GONE:
                self._count_failure(slot, job, answer, now - job.began)
        if took:
            slot.count(job.model, took)
        if self._watch is not None:
            self._tell_watch(self._watch, jobs, answers, now)
        for lane in lineup.lanes:
            for job, answer in zip(jobs, answers, strict=True):
                if isinstance(answer, Rows):
                    lane.offer(job, answer, self._batcher.waiting > BUSY)

    def _count_failure(self, slot: Slot, job: Job, error: DropforgeError, seconds: float) -> None:
        place = (slot.endpoint, error.http_status)
        self._refused[place] = self._refused.get(place, 0) + 1
        if isinstance(error, ModelFailed):
            log.error("%s: %s", slot.endpoint, error.message)
            slot.count(job.model, [seconds], failed=True)

    def _tell_watch(self, watch: Watch, jobs: Sequence[Job], answers: Sequence[Answer], now: float) -> None:
        for job, answer in zip(jobs, answers, strict=True):
            about: About = job.about
            if about.seen is not None and answer is not GONE:
                watch.end(about.slot.endpoint, job, answer, about.seen, now - job.began)


def _read(lineup: Lineup, route: Route, body: bytes) -> tuple[Model, Ask]:
    """The request in a body, and the model that answers it."""
    model = lineup.only
    if route.convert is not None:
        body = route.convert(body)
    if route.header_bytes == -1:
        raise BadInput("`Inference-Header-Content-Length` must be a whole number of bytes")
    if route.version is not None:
        model = lineup.version(route.version)
    elif model is None:
        key = route.caller.sticky
        if key is None:
            key = read_id(body if route.header_bytes is None else body[: route.header_bytes])
        model = lineup.choose(key)
    return model, model.codec.read(body, route.header_bytes)
