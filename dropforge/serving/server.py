"""The HTTP side: routes of the Open Inference Protocol, keys, limits, errors as JSON."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version

import msgspec
from aiohttp import web

from dropforge.domain.errors import BadInput, DropforgeError
from dropforge.serving.converge import Converger
from dropforge.serving.models import Model, ModelFailed
from dropforge.serving.protocol import answer, read_request
from dropforge.serving.scrape import scrape
from dropforge.serving.slots import Lineup, Slot

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})
# A request this small to a model that was this fast for a while is answered on the event loop: handing it to a thread
# and back costs more than the run. Anything else goes to the pool, so that it cannot hold up the others.
INLINE_BYTES = 32 * 1024
INLINE_SECONDS = 0.002
ERROR_CHARACTERS = 2000


@dataclass(frozen=True)
class Limits:
    """What one replica takes on: bytes in a body, requests at once, seconds for a body to arrive."""

    body_bytes: int = 64 * 1024**2
    queue: int = 256
    body_seconds: float = 30.0


class Server:
    """Answers requests from the slots of a converger. `key` is None when everybody may ask."""

    def __init__(self, converger: Converger, key: str | None, limits: Limits) -> None:
        self._converger = converger
        self._key = key.encode() if key is not None else None
        self._limits = limits
        self._admitted = 0
        self._refused: dict[tuple[str, int], int] = {}
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, "infer")

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._edge], client_max_size=self._limits.body_bytes)
        app.add_routes(
            [
                web.get("/v2/health/live", self._live),
                web.get("/v2/health/ready", self._ready),
                web.get("/v2", self._about),
                web.get("/v2/", self._about),
                web.get("/metrics", self._metrics),
            ]
        )
        for path in ("/v2/models/{endpoint}", "/v2/models/{endpoint}/versions/{version}"):
            app.add_routes(
                [
                    web.get(path, self._model),
                    web.get(path + "/ready", self._model_ready),
                    web.post(path + "/infer", self._infer, expect_handler=self._expect),
                ]
            )
        return app

    def close(self) -> None:
        self._pool.shutdown()

    # -------------------------------------------------------------------------------------------- edge
    @web.middleware
    async def _edge(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if not self._allowed(request):
                raise web.HTTPUnauthorized(
                    text="wanted the endpoint's key in `Authorization: Bearer <key>` or `x-functions-key`; "
                    "found no key, or another one"
                )
            return await handler(request)
        except web.HTTPException as error:
            headers = {name: value for name, value in error.headers.items() if name in ("Allow", "Retry-After")}
            text = f"no such route: {request.method} {request.path}" if error.text == "404: Not Found" else error.text
            return self._error(request, error.status, text or error.reason, headers)
        except DropforgeError as error:
            return self._error(request, error.http_status, error.message, {})
        except ConnectionError:
            return self._error(request, 400, "the connection ended before the body did", {})
        except Exception:
            log.exception("%s %s", request.method, request.path)
            return self._error(request, 500, "internal error; the server's log tells more", {})

    async def _expect(self, request: web.Request) -> None:
        # `Expect: 100-continue`: a body that will be refused is not asked for.
        if self._allowed(request) and (request.content_length or 0) <= self._limits.body_bytes:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _error(self, request: web.Request, status: int, message: str, headers: dict[str, str]) -> web.Response:
        endpoint = request.match_info.get("endpoint", "")
        place = (endpoint if endpoint in self._converger.slots else "", status)
        self._refused[place] = self._refused.get(place, 0) + 1
        response = _json({"error": message[:ERROR_CHARACTERS]}, status, headers)
        if request.can_read_body and not request.content.is_eof():
            # What is left of the body is not worth reading: the connection ends with this answer.
            response.force_close()
        return response

    def _allowed(self, request: web.Request) -> bool:
        if self._key is None or request.path in OPEN_PATHS:
            return True
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-functions-key", "")
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._key)

    # -------------------------------------------------------------------------------------------- health and metadata
    async def _live(self, request: web.Request) -> web.Response:
        return _json({"live": True})

    async def _ready(self, request: web.Request) -> web.Response:
        if self._converger.ready:
            return _json({"live": True, "ready": True})
        return _json({"live": True, "ready": False}, 503)

    async def _about(self, request: web.Request) -> web.Response:
        return _json({"name": "dropforge", "version": version("dropforge"), "extensions": ["rows"]})

    async def _model(self, request: web.Request) -> web.Response:
        slot, lineup = self._find(request)
        model = (
            lineup.version(request.match_info["version"]) if "version" in request.match_info else lineup.choose(None)
        )
        deployment = model.deployment
        return _json(
            {
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
                },
            },
            headers=model.headers,
        )

    async def _model_ready(self, request: web.Request) -> web.Response:
        slot, lineup = self._find(request)
        if "version" in request.match_info:
            lineup.version(request.match_info["version"])
        return _json({"name": slot.endpoint, "ready": True})

    def _find(self, request: web.Request) -> tuple[Slot, Lineup]:
        name = request.match_info["endpoint"]
        slot = self._converger.slots.get(name)
        if slot is None:
            raise web.HTTPNotFound(text=f"unknown model {name[:80]!r}; choose from {sorted(self._converger.slots)}")
        if slot.lineup is None:
            why = slot.error or "it is being loaded"
            raise web.HTTPServiceUnavailable(text=f"model {name!r} is not ready: {why}", headers={"Retry-After": "1"})
        return slot, slot.lineup

    # -------------------------------------------------------------------------------------------- inference
    async def _infer(self, request: web.Request) -> web.Response:
        began = time.perf_counter()
        self._find(request)
        if self._admitted >= self._limits.queue:
            raise web.HTTPTooManyRequests(
                text=f"{self._admitted} requests wait already, the limit is {self._limits.queue}; try again",
                headers={"Retry-After": "1"},
            )
        self._admitted += 1
        try:
            return await self._answer(request, await self._body(request), began)
        finally:
            self._admitted -= 1

    async def _body(self, request: web.Request) -> bytes:
        limit = self._limits.body_bytes
        too_large = f"the body is larger than the limit of {limit} bytes; send fewer rows per request"
        if "Inference-Header-Content-Length" in request.headers:
            raise BadInput("binary tensor data is not understood here; send the tensors as JSON")
        if (request.content_length or 0) > limit:
            raise web.HTTPRequestEntityTooLarge(limit, request.content_length or 0, text=too_large)
        if request.content.is_eof():
            return await request.read()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                return await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise web.HTTPRequestEntityTooLarge(limit, limit + 1, text=too_large) from error
        except TimeoutError as error:
            raise web.HTTPRequestTimeout(
                text=f"the body did not arrive within {self._limits.body_seconds:g} seconds"
            ) from error

    async def _answer(self, request: web.Request, body: bytes, began: float) -> web.Response:
        # From here on the lineup is this request's, whatever is swapped in meanwhile.
        slot, lineup = self._find(request)
        small = len(body) <= INLINE_BYTES
        asked = request.match_info.get("version")
        lineup.in_flight += 1
        try:
            if small and lineup.slow < INLINE_SECONDS:
                model, answered = _work(slot, lineup, asked, body, small)
            else:
                loop = asyncio.get_running_loop()
                model, answered = await loop.run_in_executor(self._pool, _work, slot, lineup, asked, body, small)
        finally:
            lineup.in_flight -= 1
        slot.count(model, time.perf_counter() - began, isinstance(answered, ModelFailed))
        if isinstance(answered, ModelFailed):
            log.error("%s: %s", slot.endpoint, answered.message)
            return self._error(request, 500, answered.message, model.headers)
        return web.Response(body=answered, headers=model.headers, content_type="application/json")

    # -------------------------------------------------------------------------------------------- metrics
    async def _metrics(self, request: web.Request) -> web.Response:
        text = scrape(list(self._converger.slots.values()), self._refused)
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


def _work(
    slot: Slot, lineup: Lineup, version: str | None, body: bytes, small: bool
) -> tuple[Model, bytes | ModelFailed]:
    """Body in, body out, on whatever thread; also which model answered, or failed to."""
    began = time.perf_counter()
    request = read_request(body)
    model = lineup.choose(request.id) if version is None else lineup.version(version)
    try:
        answered, feeds = answer(model, slot.endpoint, request)
    except ModelFailed as error:
        return model, error
    if small:
        model.took(time.perf_counter() - began)
        slot.sample = feeds
    return model, answered


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode(value)
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")
