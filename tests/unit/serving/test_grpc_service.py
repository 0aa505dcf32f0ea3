"""Calls to the service on a loop with a converger and a store that does as it is told; the client's frames made by hand."""

from __future__ import annotations

import asyncio
import gzip
import struct
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dropforge.domain.endpoints import Desired
from dropforge.serving.converge import Converger
from dropforge.serving.grpc import frames
from dropforge.serving.grpc.messages import prefixed
from dropforge.serving.grpc.schema import read_schema
from dropforge.serving.grpc.service import Service
from dropforge.serving.http1 import Limits
from dropforge.serving.keys import Role, Verdict
from dropforge.serving.server import Server
from dropforge.serving.watch import Watch
from tests.unit.serving import onnx_models
from tests.unit.serving.h2_wire import PATH, Answer, Client, asks
from tests.unit.serving.onnx_models import deployment
from tests.unit.serving.test_grpc_infer import ROW, asked, values
from tests.unit.serving.test_server import Store, until

METHODS = {method.path: method for method in read_schema().methods}
OURS = "/inference.GRPCInferenceService/"


class Door(Client):
    """A client of a service, and what answers it."""

    def __init__(self, server: Server, store: Store, limits: Limits) -> None:
        super().__init__(Service(server, limits), limits)
        self.server = server
        self.store = store
        self._stream = -1

    async def call(self, path: str, message: Any = b"", **headers: str) -> Answer:
        """One call, and its whole answer."""
        self._stream += 2
        data = message if isinstance(message, bytes) else prefixed(message.SerializeToString())
        self.feed(asks(self._stream, data, path, **headers))
        return await self.answered(self._stream)

    async def answered(self, stream: int) -> Answer:
        await until(lambda: stream in self.answers and self.answers[stream].ended)
        return self.answers[stream]

    async def ask(self, what: str, /, *, more: dict[str, str] | None = None, **fields: Any) -> Any:
        """The answer's message."""
        method = METHODS[OURS + what]
        answer = await self.call(OURS + what, method.request(**fields), **(more or {}))
        assert answer.status == 0, answer
        return method.response.FromString(answer.data[5:])

    async def infer(self, message: Any = None, **headers: str) -> Answer:
        return await self.call(PATH, asked(ROW) if message is None else message, **headers)


@asynccontextmanager
async def door(
    folder: Path, data: bytes | None = None, *, limits: Limits | None = None, ready: bool = True, **options: Any
) -> AsyncIterator[Door]:
    """Serves model `m` v1, which doubles, unless it is another."""
    store, limits = Store(), limits or Limits()
    store.want("m", 1, deployment(folder, data or onnx_models.scaled(2), 1))
    converger = Converger(store, "r1", 0.005)
    server = Server(converger, options.pop("key", None), limits, **options)
    work = asyncio.create_task(converger.run())
    try:
        if ready:
            await until(lambda: server.ready)
        yield Door(server, store, limits)
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await converger.close()
        server.close()


def plays(scenario: Callable[[], Any]) -> None:
    asyncio.run(scenario())


def test_a_model_answers_and_tells_who_it_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as client:
            for _ in range(3):
                answer = await client.infer()
                assert answer.status == 0
                response = METHODS[PATH].response.FromString(answer.data[5:])
                np.testing.assert_array_equal(values(response)[0], [[2, 4, 6]])
                assert answer.headers["dropforge-model"] == "flights"
                assert answer.headers["dropforge-version"] == "1"
                assert answer.headers["dropforge-dataset-version"] == "41"

    plays(scenario)


def test_a_swap_reaches_those_who_ask_with_bytes_seen_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as client:
            assert (await client.infer()).headers["dropforge-version"] == "1"
            client.store.want("m", 2, deployment(tmp_path, onnx_models.scaled(3), 2))
            await until(lambda: client.server.find("m")[1].revision == 2)
            answer = await client.infer()
            response = METHODS[PATH].response.FromString(answer.data[5:])
            assert (answer.headers["dropforge-version"], response.model_version) == ("2", "2")
            np.testing.assert_array_equal(values(response)[0], [[3, 6, 9]])
            # The next one takes other requests: what was read of the old ones is not used for it.
            other = (deployment(tmp_path, onnx_models.echo("INT32", ["N", 3]), 3),)
            client.store.pending = {"m": Desired("m", 3, other, datetime.now(UTC), signature="any")}
            await until(lambda: client.server.find("m")[1].revision == 3)
            answer = await client.infer()
            assert (answer.status, answer.message) == (3, "input 'x' wants INT32, found 'FP32'")

    plays(scenario)


def test_calls_that_come_together_are_run_together(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as client:
            await client.infer()
            before = client.server._batcher.batches
            rows = [np.array([[i, i, i]], np.float32) for i in range(50)]
            requests = [prefixed(asked({"x": row}).SerializeToString()) for row in rows]
            client.feed(b"".join(asks(101 + 2 * i, data) for i, data in enumerate(requests)))
            answers = [await client.answered(101 + 2 * i) for i in range(50)]
            for row, answer in zip(rows, answers, strict=True):
                found = values(METHODS[PATH].response.FromString(answer.data[5:]))[0]
                np.testing.assert_array_equal(found, row * 2)
            assert client.server._batcher.batches - before < 10

    plays(scenario)


@pytest.mark.parametrize("size", [1, 100_000])
def test_large_messages_are_read_elsewhere_and_answered_alike(tmp_path: Path, size: int) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as client:
            array = np.arange(3 * size, dtype=np.float32).reshape(size, 3)
            for typed in (False, True, False):
                client._stream += 2
                data = prefixed(asked({"x": array}, typed=typed).SerializeToString())
                head = asks(client._stream, b"")[: -frames.HEAD_BYTES]
                pieces = [data[at : at + 16_384] for at in range(0, len(data), 16_384)]
                client.feed(head + b"".join(frames.frame(frames.DATA, 0, client._stream, each) for each in pieces))
                client.frame(frames.DATA, frames.END_STREAM, client._stream)
                answer = await client.answered(client._stream)
                found = values(METHODS[PATH].response.FromString(answer.data[5:]))[0]
                np.testing.assert_array_equal(found, array * 2)

    plays(scenario)


# ---------------------------------------------------------------------------------------------------- what goes wrong
def test_mistakes_have_the_codes_of_grpc(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as client:
            for message, code, wrong in (
                (asked(ROW, model_version="9"), 5, "version '9' is not loaded; choose from ['1']"),
                (asked({"x": np.ones((1, 2), np.float32)}), 3, "wants shape [-1, 3]"),
                (prefixed(b"\xff\xff"), 3, "no inference.ModelInferRequest"),
                (b"", 3, "wanted one message"),
                (b"\0\0\0\0\x05abc", 3, "found 8 bytes that begin 0000000005"),
                (b"\x01\0\0\0\0", 3, "`grpc-encoding` does not say how"),
            ):
                answer = await client.infer(message)
                assert answer.status == code
                assert wrong in answer.message
            answer = await client.call(OURS + "ModelMetadata", METHODS[OURS + "ModelMetadata"].request(name="zürich"))
            assert answer.status == 5
            assert "unknown model 'z%C3%BCrich'; choose from ['m']" in answer.message
            answer = await client.call("/inference.GRPCInferenceService/Nope")
            assert answer.status == 12
            assert client.goodbye is None

    plays(scenario)


def test_a_model_that_fails_is_an_internal_error_of_its_version(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path, onnx_models.picky(1)) as client:
            answer = await client.infer(asked({"x": np.array([7])}))
            assert answer.status == 13
            assert "flights v1 failed" in answer.message
            assert answer.headers["dropforge-version"] == "1"
            assert client.server.find("m")[0].failed == 1
            assert (await client.infer(asked({"x": np.array([0])}))).status == 0

    plays(scenario)


def test_what_is_not_ready_is_unavailable_with_a_hint(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path, b"no model", ready=False) as client:
            await until(lambda: "m" in client.server._converger.slots)
            answer = await client.infer()
            assert answer.status == 14
            assert answer.headers["grpc-retry-pushback-ms"] == "1000"
            assert not (await client.ask("ServerReady")).ready
            assert not (await client.ask("ModelReady", name="m")).ready
            assert (await client.ask("ServerLive")).live

    plays(scenario)


def test_a_full_queue_is_told_at_once_with_a_hint(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path, onnx_models.slow(1), queue=2) as client:
            slow = prefixed(asked({"n": np.array([300])}).SerializeToString())
            client.feed(b"".join(asks(stream, slow) for stream in range(1, 41, 2)))
            answers = [await client.answered(stream) for stream in range(1, 41, 2)]
            assert {answer.status for answer in answers} == {0, 8}
            refused = next(answer for answer in answers if answer.status == 8)
            assert refused.headers["grpc-retry-pushback-ms"] == "1000"
            assert refused.headers["retry-after"] == "1"

    plays(scenario)


def test_a_deadline_is_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path, onnx_models.slow(1)) as client:
            slow = prefixed(asked({"n": np.array([400])}).SerializeToString())
            client.feed(asks(1, slow) + asks(3, slow) + asks(5, slow, grpc_timeout="1n"))
            late = await client.answered(5)
            assert late.status == 4
            assert "timeout of 1e-09 seconds" in late.message
            assert (await client.answered(3)).status == 0
            # Of a call that nobody gets to, the client hears within a second.
            client.feed(asks(7, slow) + asks(9, slow, grpc_timeout="1u"))
            client.passes(2)
            assert (await client.answered(9)).status == 4
            assert (await client.answered(7)).status == 0
            client._stream = 9
            assert (await client.infer(asked({"n": np.array([2])}), grpc_timeout="10S")).status == 0
            for wrong in ("10", "S", "123456789S", "1s", "-1S", "1S "):
                assert (await client.infer(grpc_timeout=wrong)).status == 3

    plays(scenario)


def test_a_message_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path, limits=Limits(body_seconds=0.0)) as client:
            client.feed(asks(1, b"")[: -frames.HEAD_BYTES] + frames.frame(frames.DATA, 0, 1, b"\0\0\0\0\x0bab"))
            await asyncio.sleep(0.001)
            client.passes(2)
            assert client.answers[1].status == 4
            assert "did not arrive within 0 seconds" in client.answers[1].message
            assert client.resets() == {1: frames.NO_ERROR}

    plays(scenario)


def test_a_call_that_was_reset_is_not_run(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as client:
            await client.infer()
            served = client.server.find("m")[0].requests
            data = prefixed(asked(ROW).SerializeToString())
            client.feed(asks(11, data) + frames.rst_stream(11, frames.CANCEL) + asks(13, data))
            await client.answered(13)
            assert 11 not in client.answers
            slot, lineup = client.server.find("m")
            assert (slot.requests - served, lineup.in_flight) == (1, 0)

    plays(scenario)


def test_a_message_above_the_limit_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path, limits=Limits(body_bytes=2000)) as client:
            big = asked({"x": np.ones((1000, 3), np.float32)})
            answer = await client.infer(big)
            assert answer.status == 8
            assert "above the limit of 2000 bytes" in answer.message
            bomb = b"\x01" + len(gzip.compress(bytes(10**6))).to_bytes(4, "big") + gzip.compress(bytes(10**6))
            answer = await client.infer(bomb, grpc_encoding="gzip")
            assert answer.status == 8
            assert "holds more than the limit" in answer.message

    plays(scenario)


def test_of_a_message_that_asks_for_no_inference_little_is_taken(tmp_path: Path) -> None:
    async def scenario() -> None:
        check = "/grpc.health.v1.Health/Check"
        async with door(tmp_path, key="secret") as client:
            plain = METHODS[check].request(service="a" * 70_000).SerializeToString()
            client.feed(asks(1, b"", check)[: -frames.HEAD_BYTES])
            # By its length alone.
            client.frame(frames.DATA, 0, 1, b"\0" + len(plain).to_bytes(4, "big"))
            assert client.answers[1].status == 8
            assert "above the limit of 65536 bytes" in client.answers[1].message
            packed = gzip.compress(plain)
            client.feed(asks(3, b"\x01" + len(packed).to_bytes(4, "big") + packed, check, grpc_encoding="gzip"))
            assert client.answers[3].status == 8

    plays(scenario)


def test_compressed_messages_are_not_unpacked_where_others_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as client:
            packed = gzip.compress(asked({"x": np.zeros((10_000, 3), np.float32)}).SerializeToString())
            assert len(packed) < 1000
            held: list[int] = []
            hold = client.server._batcher.hold

            def heard(size: int, **how: bool) -> None:
                held.append(size)
                hold(size, **how)

            monkeypatch.setattr(client.server._batcher, "hold", heard)
            answer = await client.infer(b"\x01" + len(packed).to_bytes(4, "big") + packed, grpc_encoding="gzip")
            assert answer.status == 0
            # First as what came, then as what it is.
            assert held[0] < 1100 and held[1] > 120_000

    plays(scenario)


def test_compressed_messages_are_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as client:
            plain = asked(ROW).SerializeToString()
            for encoding, packed in (("gzip", gzip.compress(plain)), ("deflate", zlib.compress(plain))):
                data = b"\x01" + len(packed).to_bytes(4, "big") + packed
                for _ in range(2):
                    assert (await client.infer(data, grpc_encoding=encoding)).status == 0
                assert (await client.infer(grpc_encoding=encoding)).status == 0
                for wrong in (packed[:-3], b"\0" + packed):
                    answer = await client.infer(b"\x01" + len(wrong).to_bytes(4, "big") + wrong, grpc_encoding=encoding)
                    assert answer.status == 3
            answer = await client.infer(grpc_encoding="snappy")
            assert (answer.status, answer.headers["grpc-accept-encoding"]) == (12, "identity,gzip,deflate")

    plays(scenario)


def test_what_is_no_grpc_is_told_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as client:
            stream = 1
            plain = [(":method", "POST"), (":scheme", "http"), (":path", PATH), ("content-type", "application/json")]
            for headers, status in ((plain, "415"), ([(":method", "GET"), *plain[1:3]], "415")):
                block = frames.block(headers)
                client.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream, block)
                assert client.answers[stream].headers[":status"] == status
                stream += 2
            grpc = [*plain[:3], ("content-type", "application/grpc")]
            malformed = (
                grpc[1:],
                [*grpc[:2], *grpc[3:]],
                [*grpc, grpc[0]],
                [*grpc, (":authority", "x")],
                [(":nope", "x"), *grpc],
                [*grpc[:3], grpc[0], grpc[3]],
                [*grpc, ("Upper", "x")],
                [*grpc, ("connection", "close")],
                [*grpc, ("te", "gzip")],
            )
            for headers in malformed:
                block = frames.block(headers)
                client.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream, block)
                assert client.resets()[stream] == frames.PROTOCOL_ERROR, headers
                stream += 2
            assert client.goodbye is None

    plays(scenario)


# ---------------------------------------------------------------------------------------------------- who may
def test_a_key_is_wanted_of_those_who_ask(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path, key="k1", admin_key="k2") as client:
            for name in ("ServerLive", "ServerReady"):
                await client.ask(name)
            assert (
                await client.call("/grpc.health.v1.Health/Check", METHODS["/grpc.health.v1.Health/Check"].request())
            ).status == 0
            load = METHODS[OURS + "RepositoryModelLoad"].request(model_name="m")
            for headers, infer_code, load_code in (
                ({}, 16, 16),
                ({"authorization": "Bearer nope"}, 16, 16),
                ({"authorization": "Bearer k1"}, 0, 7),
                ({"x_functions_key": "k1"}, 0, 7),
                ({"authorization": "bearer k2"}, 0, 0),
            ):
                assert (await client.infer(**headers)).status == infer_code
                assert (await client.infer(**headers)).status == infer_code
                assert (await client.call(OURS + "RepositoryModelLoad", load, **headers)).status == load_code
            answer = await client.infer()
            assert "wanted the endpoint's key in `Authorization: Bearer" in answer.message
            # Who may not ask is not told what there is.
            assert (await client.call("/inference.GRPCInferenceService/Nope")).status == 16

    plays(scenario)


def test_headers_that_were_seen_before_end_with_their_token(tmp_path: Path) -> None:
    class Tokens:
        until = time.time() + 1000

        def verdict(self, token: str) -> Verdict:
            if self.until < time.time():
                return Verdict(Role.NOBODY, refusal=(401, "the token has ended"))
            return Verdict(Role.CALLER, self.until)

    async def scenario() -> None:
        tokens = Tokens()
        async with door(tmp_path, tokens=tokens) as client:
            token = {"authorization": "Bearer eyJh.eyJh.abc"}
            assert (await client.infer(**token)).status == 0
            tokens.until = 5.0
            assert (await client.infer(**token)).status == 0
            client.server.now = time.time() + 2000
            answer = await client.infer(**token)
            assert (answer.status, answer.message) == (16, "the token has ended")
            tokens.until = client.server.now + 1000
            assert (await client.infer(**token)).status == 0

    plays(scenario)


# ---------------------------------------------------------------------------------------------------- what is told
def test_metadata_is_what_it_is_over_http(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path, onnx_models.columns()) as client:
            server = await client.ask("ServerMetadata")
            assert (server.name, list(server.extensions)) == ("dropforge", client.server.metadata["extensions"])
            model = await client.ask("ModelMetadata", name="m")
            assert (model.name, list(model.versions), model.platform) == ("m", ["1"], "onnx_onnxv1")
            inputs = {each.name: (each.datatype, list(each.shape)) for each in model.inputs}
            assert inputs["origin"] == ("BYTES", [-1, 1])
            assert inputs["late"] == ("BOOL", [-1])
            assert (await client.ask("ModelReady", name="m", version="1")).ready
            assert not (await client.ask("ModelReady", name="m", version="2")).ready
            assert not (await client.ask("ModelReady", name="n")).ready

    plays(scenario)


def test_the_repository_is_that_of_http(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path, admin_key="k") as client:
            admin = {"authorization": "Bearer k"}
            await client.infer()
            (told,) = (await client.ask("RepositoryIndex")).models
            assert (told.name, told.version, told.state) == ("m", "1", "READY")
            config = (await client.ask("ModelConfig", name="m")).config
            assert (config.name, config.backend, list(config.version_policy.specific.versions)) == (
                "m",
                "onnxruntime",
                [1],
            )
            assert config.input[0].data_type == 11
            (stats,) = (await client.ask("ModelStatistics", name="m")).model_stats
            assert (stats.inference_count, stats.inference_stats.success.count) == (1, 1)
            assert stats.inference_stats.compute_infer.ns > 0
            await client.ask("RepositoryModelUnload", more=admin, model_name="m")
            (told,) = (await client.ask("RepositoryIndex")).models
            assert told.state == "UNAVAILABLE"
            assert not (await client.ask("RepositoryIndex", ready=True)).models
            assert (await client.infer()).status == 14
            await client.ask("RepositoryModelLoad", more=admin, model_name="m")
            assert (await client.infer()).status == 0
            load = METHODS[OURS + "RepositoryModelLoad"].request(model_name="nope")
            assert (await client.call(OURS + "RepositoryModelLoad", load, **admin)).status == 5
            load = METHODS[OURS + "RepositoryModelLoad"].request(model_name="m")
            load.parameters["file:1/model.onnx"].bytes_param = b"x"
            assert (await client.call(OURS + "RepositoryModelLoad", load, **admin)).status == 3

    plays(scenario)


def test_health_is_told_of_the_server_and_of_each_model(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as client:
            check = METHODS["/grpc.health.v1.Health/Check"]
            for service, status in (("", 0), ("inference.GRPCInferenceService", 0), ("m", 0), ("nope", 5)):
                answer = await client.call(check.path, check.request(service=service))
                assert answer.status == status
                assert status or check.response.FromString(answer.data[5:]).status == 1

    plays(scenario)


def test_who_watches_is_told_of_changes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as client:
            watch = METHODS["/grpc.health.v1.Health/Watch"]
            for stream, service in ((1, "m"), (3, "later")):
                client.feed(asks(stream, prefixed(watch.request(service=service).SerializeToString()), watch.path))
            seen = prefixed(watch.response(status=1).SerializeToString())
            unknown = prefixed(watch.response(status=3).SerializeToString())
            client.passes(2)
            assert (client.answers[1].data, client.answers[3].data) == (seen, unknown)
            client.store.want("later", 1, deployment(tmp_path, onnx_models.scaled(4), 1))
            await until(lambda: "later" in client.store.reports)
            client.passes(2)
            client.passes(2)
            assert (client.answers[1].data, client.answers[3].data) == (seen, unknown + seen)
            assert not client.answers[1].ended

    plays(scenario)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_tells_what_is_spoken(tmp_path: Path, version: str) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as client:
            method = METHODS[f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"]
            asked_ = [
                method.request(list_services="*"),
                method.request(file_containing_symbol="inference.ModelInferRequest"),
                method.request(file_by_filename="health.proto"),
                method.request(file_containing_symbol="nope.Nope"),
                method.request(all_extension_numbers_of_type="inference.ModelInferRequest"),
            ]
            data = b"".join(prefixed(each.SerializeToString()) for each in asked_)
            client.feed(asks(1, b"", method.path)[: -frames.HEAD_BYTES])
            for at in range(0, len(data), 7):
                client.frame(frames.DATA, 0, 1, data[at : at + 7])
            client.frame(frames.DATA, frames.END_STREAM, 1)
            answer, found = client.answers[1], []
            assert answer.status == 0
            rest = answer.data
            while rest:
                end = 5 + int.from_bytes(rest[1:5], "big")
                found.append(method.response.FromString(rest[5:end]))
                rest = rest[end:]
            assert [each.original_request for each in found] == asked_
            assert "inference.GRPCInferenceService" in [s.name for s in found[0].list_services_response.service]
            for place in (1, 2):
                assert found[place].file_descriptor_response.file_descriptor_proto[0]
            assert [each.error_response.error_code for each in found[3:]] == [5, 5]
            client.feed(asks(3, b"\0\0\xff\0\0", method.path) + asks(5, b"\0\0", method.path))
            assert (client.answers[3].status, client.answers[5].status) == (8, 3)

    plays(scenario)


def test_who_asks_for_reflection_on_and_on_and_takes_no_answer_is_cut_off(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as client:
            client.frame(frames.SETTINGS, 0, 0, struct.pack(">HI", frames.INITIAL_WINDOW_SIZE, 0))
            method = METHODS["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"]
            one = prefixed(method.request(file_by_filename="inference.proto").SerializeToString())
            client.feed(asks(1, b"", method.path)[: -frames.HEAD_BYTES])
            client.frame(frames.DATA, 0, 1, one * 7)
            assert client.resets() == {}
            client.frame(frames.DATA, 0, 1, one * 700)
            assert client.resets() == {1: frames.ENHANCE_YOUR_CALM}
            client.feed(asks(3, b"", OURS + "ServerLive"))
            assert client.answers[3].ended

    plays(scenario)


def test_a_request_id_is_told_back_where_requests_are_looked_at(tmp_path: Path) -> None:
    class Always:
        def parent(self, traceparent: str | None) -> str:
            return ""

    async def scenario() -> None:
        async with door(tmp_path, watch=Watch(None, Always())) as client:
            answer = await client.infer(asked(ROW, id="17"), x_request_id="abc")
            assert METHODS[PATH].response.FromString(answer.data[5:]).id == "17"
            assert answer.headers["x-request-id"] == "abc"
            wrong = await client.infer(asked(ROW, model_version="9"), x_request_id="abc")
            assert wrong.status == 5

    plays(scenario)


def test_equal_keys_get_equal_versions(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as client:
            both = [deployment(tmp_path, onnx_models.scaled(k), k, traffic=50) for k in (2, 3)]
            client.store.want("m", 2, *both)
            await until(lambda: client.server.find("m")[1].revision == 2)
            found: dict[tuple[str, int], set[str]] = {}
            for turn in range(40):
                for header in ("dropforge-sticky", "none"):
                    answer = await client.infer(**{header.replace("-", "_"): str(turn % 8)})
                    found.setdefault((header, turn % 8), set()).add(answer.headers["dropforge-version"])
                answer = await client.infer(asked(ROW, id=str(turn % 8)))
                found.setdefault(("id", turn % 8), set()).add(answer.headers["dropforge-version"])
            for header in ("dropforge-sticky", "id"):
                assert {len(found[header, key]) for key in range(8)} == {1}
            assert set.union(*(found["none", key] for key in range(8))) == {"2", "3"}

    plays(scenario)
