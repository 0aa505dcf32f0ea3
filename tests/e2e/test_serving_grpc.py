"""gRPC over real sockets: Triton's client, grpcio's own in all its colours, and bytes that are neither."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import psutil
import pytest
import tritonclient.grpc as triton
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from onnx import numpy_helper
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from dropforge.domain.endpoints import Deployment, Desired
from dropforge.domain.errors import BadInput
from dropforge.serving.grpc import frames
from dropforge.serving.models import load
from tests.e2e.test_serving import KEY, Replica, eventually, one_row
from tests.unit.serving import onnx_models
from tests.unit.serving.h2_wire import Reader, asks
from tests.unit.serving.onnx_models import deployment
from tests.unit.serving.test_grpc_http2 import CONNECTION_ERRORS

ADMIN_KEY = "open sesame"
HEADERS = {"authorization": f"Bearer {KEY}"}
AS_ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
METADATA = tuple(HEADERS.items())
ROW = np.array([[1, 2, 3]], np.float32)
SECONDS = 30
FUZZED = 1_500
SOAKED = 50_000


class Spoken(Replica):
    """A running server that also speaks gRPC."""

    def __init__(self, root: Path, *options: str) -> None:
        super().__init__(root, "--grpc-port", "0", *options)
        self.grpc = int(eventually(lambda: self.logged(r"listens on grpc://\S+:(\d+)")))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.grpc}"


Start = Callable[..., Spoken]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Spoken] = []

    def starter(*options: str) -> Spoken:
        started.append(Spoken(tmp_path / "serving", *options))
        return started[-1]

    yield starter
    for replica in started:
        if replica.process.poll() is None:
            replica.stop()


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoken]:
    """Serves `flights` v1 (x * 1) with all traffic and v2 (x * 2) with none, `table`, `plain`, which takes its time, and
    `wide`, whose answers are as large as what it is asked."""
    folder = tmp_path_factory.mktemp("grpc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DROPFORGE_ADMIN_KEY", ADMIN_KEY)
        running = Spoken(folder / "serving")
    first = deployment(folder, onnx_models.scaled(1), 1)
    running.publish(1, first, deployment(folder, onnx_models.scaled(2), 2, traffic=0))
    running.publish(1, deployment(folder, onnx_models.columns(), 1), endpoint="table")
    running.publish(1, deployment(folder, onnx_models.slow(1), 1), endpoint="plain")
    running.publish(1, deployment(folder, onnx_models.echo("UINT8", ["N"]), 1), endpoint="wide")
    for endpoint in ("flights", "table", "plain", "wide"):
        running.reached(1, endpoint)
    yield running
    assert running.stop() == 0


@pytest.fixture
def client(replica: Spoken) -> Iterator[Any]:
    with triton.InferenceServerClient(replica.address) as connected:
        yield connected


@pytest.fixture
def stub(replica: Spoken) -> Iterator[Any]:
    with grpc.insecure_channel(replica.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def given(name: str, array: Any, datatype: str) -> Any:
    tensor = triton.InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def typed(*values: float, endpoint: str = "flights") -> Any:
    request = service_pb2.ModelInferRequest(model_name=endpoint)
    request.inputs.add(name="x", datatype="FP32", shape=[1, len(values)]).contents.fp32_contents.extend(values)
    return request


# ---------------------------------------------------------------------------------------------------- Triton's client
def test_it_is_live_and_ready(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("flights", headers=HEADERS)
    assert client.is_model_ready("flights", "2", headers=HEADERS)
    assert not client.is_model_ready("flights", "7", headers=HEADERS)
    assert not client.is_model_ready("nothing", headers=HEADERS)


def test_it_tells_what_it_can(client: Any) -> None:
    about = client.get_server_metadata(headers=HEADERS)
    assert {"binary_tensor_data", "model_repository", "model_configuration", "statistics"} <= set(about.extensions)
    told = client.get_model_metadata("flights", headers=HEADERS)
    assert (told.name, list(told.versions)) == ("flights", ["1", "2"])
    (tensor,) = told.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("x", "FP32", [-1, 3])


def test_the_configuration_is_that_of_the_model(client: Any) -> None:
    told = client.get_model_config("flights", "2", headers=HEADERS, as_json=True)["config"]
    assert (told["name"], told["backend"], told["platform"]) == ("flights", "onnxruntime", "onnxruntime_onnx")
    assert told["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["3"]}]
    assert told["version_policy"] == {"specific": {"versions": ["1", "2"]}}
    with pytest.raises(InferenceServerException, match="version '7' is not loaded") as refused:
        client.get_model_config("flights", "7", headers=HEADERS)
    assert refused.value.status() == "StatusCode.NOT_FOUND"


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tensors_go_both_ways(client: Any, compression: str | None) -> None:
    outputs = [triton.InferRequestedOutput("y")]
    inputs = [given("x", ROW, "FP32")]
    for _ in range(3):
        answer = client.infer(
            "flights", inputs, "2", outputs, request_id="r1", headers=HEADERS, compression_algorithm=compression
        )
        assert answer.as_numpy("y").tolist() == [[2, 4, 6]]
        assert (answer.get_response().model_version, answer.get_response().id) == ("2", "r1")


def test_strings_go_both_ways(client: Any) -> None:
    inputs = [
        given("origin", np.array([["EWR"], ["Zürich"]], np.object_), "BYTES"),
        given("distance", np.array([[1.5], [2.5]], np.float32), "FP32"),
        given("seats", np.array([[100], [200]], np.int64), "INT64"),
        given("late", np.array([True, False]), "BOOL"),
    ]
    answer = client.infer("table", inputs, headers=HEADERS)
    texts = [each.decode() for each in answer.as_numpy("origin_out").ravel()]
    assert (texts, answer.as_numpy("late_out").tolist()) == (["EWR", "Zürich"], [True, False])


def test_large_tensors_go_both_ways(client: Any) -> None:
    array = np.random.default_rng(0).integers(0, 256, 30_000_000, dtype=np.uint8)
    for _ in range(2):
        answer = client.infer("wide", [given("x", array, "UINT8")], headers=HEADERS, client_timeout=SECONDS)
        np.testing.assert_array_equal(answer.as_numpy("y"), array)
    with pytest.raises(InferenceServerException, match="above the limit of 67108864 bytes") as refused:
        client.infer("wide", [given("x", np.zeros(70_000_000, np.uint8), "UINT8")], headers=HEADERS)
    assert refused.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert client.is_server_live()


def test_requests_at_once_are_answered_each(client: Any) -> None:
    found: dict[int, Any] = {}
    done = threading.Semaphore(0)

    def take(place: int, result: Any, error: Any) -> None:
        found[place] = error or result.as_numpy("y")[0, 0]
        done.release()

    for i in range(500):
        take_it = lambda result, error, i=i: take(i, result, error)  # noqa: E731
        client.async_infer("flights", [given("x", ROW * i, "FP32")], take_it, headers=HEADERS)
    for _ in range(500):
        assert done.acquire(timeout=SECONDS)
    assert found == {i: i for i in range(500)}


def test_statistics_count_requests_and_batches(client: Any) -> None:
    (before,) = client.get_inference_statistics("flights", "1", headers=HEADERS).model_stats
    for rows in (1, 1, 5):
        client.infer("flights", [given("x", np.repeat(ROW, rows, 0), "FP32")], "1", headers=HEADERS)
    (after,) = client.get_inference_statistics("flights", "1", headers=HEADERS).model_stats
    assert after.inference_count - before.inference_count == 7
    assert after.execution_count - before.execution_count == 3
    assert after.inference_stats.success.count - before.inference_stats.success.count == 3
    assert {each.batch_size for each in after.batch_stats} >= {1, 5}
    everything = client.get_inference_statistics(headers=HEADERS).model_stats
    assert {each.name for each in everything} == {"flights", "table", "plain", "wide"}


def test_models_are_unloaded_and_loaded_by_an_admin(client: Any) -> None:
    def states() -> set[tuple[str, str]]:
        found = client.get_model_repository_index(headers=AS_ADMIN).models
        return {(each.version, each.state) for each in found if each.name == "flights"}

    assert states() == {("1", "READY"), ("2", "READY")}
    client.unload_model("flights", headers=AS_ADMIN)
    assert states() == {("1", "UNAVAILABLE"), ("2", "UNAVAILABLE")}
    with pytest.raises(InferenceServerException, match="is not ready: it was unloaded") as refused:
        client.infer("flights", [given("x", ROW, "FP32")], headers=AS_ADMIN)
    assert refused.value.status() == "StatusCode.UNAVAILABLE"
    client.load_model("flights", headers=AS_ADMIN)
    assert states() == {("1", "READY"), ("2", "READY")}
    answer = client.infer("flights", [given("x", ROW, "FP32")], headers=AS_ADMIN)
    assert answer.as_numpy("y").tolist() == ROW.tolist()
    for more in ({"config": "{}"}, {"config": "{}", "files": {"file:1/model.onnx": b"onnx"}}):
        with pytest.raises(InferenceServerException, match="load takes no parameters here"):
            client.load_model("flights", headers=AS_ADMIN, **more)


def test_orders_and_questions_of_others_are_refused(client: Any) -> None:
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="wanted the admin key") as refused:
            change("flights", headers=HEADERS)
        assert refused.value.status() == "StatusCode.PERMISSION_DENIED"
    for headers in (None, {"authorization": "Bearer nope"}):
        with pytest.raises(InferenceServerException, match="wanted the endpoint's key") as refused:
            client.infer("flights", [given("x", ROW, "FP32")], headers=headers)
        assert refused.value.status() == "StatusCode.UNAUTHENTICATED"


def test_what_is_not_offered_is_unimplemented(client: Any) -> None:
    for ask in (client.get_trace_settings, client.get_log_settings, client.get_system_shared_memory_status):
        with pytest.raises(InferenceServerException, match="no such method") as refused:
            ask(headers=HEADERS)
        assert refused.value.status() == "StatusCode.UNIMPLEMENTED"


def test_a_client_that_does_not_wait_long_enough_is_told_so(client: Any) -> None:
    n = given("n", np.array([2000]), "INT64")
    with pytest.raises(InferenceServerException, match="Deadline") as late:
        client.infer("plain", [n], headers=HEADERS, client_timeout=0.05)
    assert late.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    small = given("n", np.array([3]), "INT64")
    assert client.infer("plain", [small], headers=HEADERS, client_timeout=SECONDS).as_numpy("y")[0, 0] == 3


def test_published_cases_get_their_published_answers(start: Start, tmp_path: Path) -> None:
    data = Path(onnx.__file__).parent / "backend" / "test" / "data"
    paths = sorted(path.parent for kind in ("simple", "pytorch-*") for path in data.glob(f"{kind}/*/model.onnx"))
    cases: dict[int, tuple[Path, Any]] = {}
    deployments: list[Deployment] = []
    for version, case in enumerate(paths, start=1):
        each = deployment(tmp_path, (case / "model.onnx").read_bytes(), version, traffic=0)
        try:
            cases[version] = case, load(each)
        except BadInput:
            continue
        deployments.append(each)
    running = start()
    all_ = (replace(deployments[0], traffic=100), *deployments[1:])
    running.serving.publish(Desired("onnx", 1, all_, datetime.now(UTC), signature="any"))
    running.reached(1, "onnx")
    served = 0
    with triton.InferenceServerClient(running.address) as client:
        for version, (case, model) in cases.items():
            arrays = [_tensor(case, f"input_{i}") for i in range(len(model.inputs))]
            if any(array.size == 0 for array in arrays):
                continue
            inputs = [given(t.name, each, t.kind.datatype) for t, each in zip(model.inputs, arrays, strict=True)]
            for _ in range(2):
                answer = client.infer("onnx", inputs, str(version), headers=HEADERS)
                for place, each in enumerate(model.outputs):
                    expected = _tensor(case, f"output_{place}")
                    found = answer.as_numpy(each.name)
                    if each.kind.datatype == "BYTES":
                        assert [text.decode() for text in found.ravel()] == expected.ravel().tolist(), case
                    else:
                        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5, err_msg=str(case))
            served += 1
    assert running.stop() == 0
    assert served > 90  # of 140; the rest want operators of opsets before 7, or a locale


def _tensor(case: Path, name: str) -> Any:
    return numpy_helper.to_array(onnx.load_tensor(str(case / "test_data_set_0" / f"{name}.pb")))


# ---------------------------------------------------------------------------------------------------- grpcio
def test_typed_values_are_answered_typed_and_the_answer_says_whose_it_is(stub: Any) -> None:
    answer, call = stub.ModelInfer.with_call(typed(1, 2, 3), metadata=METADATA)
    assert list(answer.outputs[0].contents.fp32_contents) == [1, 2, 3]
    told = dict(call.initial_metadata())
    assert (told["dropforge-model"], told["dropforge-version"]) == ("flights", "1")
    assert told["dropforge-dataset-version"] == "41"


def test_mistakes_are_told_in_words(stub: Any) -> None:
    for request, code, wrong in (
        (typed(1, 2), grpc.StatusCode.INVALID_ARGUMENT, r"wants shape \[-1, 3\]"),
        (typed(1, endpoint="zürich"), grpc.StatusCode.NOT_FOUND, "unknown model 'zürich'; choose from"),
    ):
        with pytest.raises(grpc.RpcError, match=wrong) as error:
            stub.ModelInfer(request, metadata=METADATA)
        assert error.value.code() is code


def test_clients_of_every_colour_share_a_server(replica: Spoken) -> None:
    async def many() -> list[Any]:
        async with grpc.aio.insecure_channel(replica.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            return await asyncio.gather(*(stub.ModelInfer(typed(i, 0, 0), metadata=METADATA) for i in range(300)))

    def ask(thread: int) -> list[float]:
        with grpc.insecure_channel(replica.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
            return [
                infer(typed(thread, i, 0), metadata=(*METADATA, ("x-n", str(i)))).outputs[0].contents.fp32_contents[1]
                for i in range(100)
            ]

    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(ask, thread) for thread in range(4)]
        answers = asyncio.run(many())
        assert [each.result() for each in asked] == [[float(i) for i in range(100)]] * 4
    assert [each.outputs[0].contents.fp32_contents[0] for each in answers] == [float(i) for i in range(300)]


def test_health_and_reflection_are_found_by_grpcs_own_clients(replica: Spoken) -> None:
    with grpc.insecure_channel(replica.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        for name in ("", "inference.GRPCInferenceService", "flights"):
            assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == serving
        watched = health.Watch(health_pb2.HealthCheckRequest(service="flights"))
        assert next(watched).status == serving
        watched.cancel()
    with grpc.insecure_channel(replica.address) as channel:
        told = grpc.intercept_channel(channel, _WithKey())
        database = ProtoReflectionDescriptorDatabase(told)
        assert "inference.GRPCInferenceService" in database.get_services()
        file = database.FindFileContainingSymbol("inference.ModelInferRequest")
        assert "ModelInferResponse" in [each.name for each in file.message_type]
        with pytest.raises(KeyError):
            database.FindFileByName("nope.proto")


class _WithKey(grpc.StreamStreamClientInterceptor):  # type: ignore[misc]
    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return continuation(details._replace(metadata=[*(details.metadata or ()), *METADATA]), requests)


def test_requests_of_both_protocols_are_counted_together(replica: Spoken, stub: Any) -> None:
    def counted() -> int:
        text = replica.ask("GET", "/metrics").body.decode()
        (line,) = re.findall(
            r'^dropforge_requests_total\{endpoint="flights".*version="1".*\} (\d+)', text, re.MULTILINE
        )
        return int(line)

    before = counted()
    stub.ModelInfer(typed(1, 2, 3), metadata=METADATA)
    replica.infer(one_row(1, 2, 3))
    assert counted() == before + 2


def test_at_its_end_the_server_answers_what_it_was_asked(start: Start, tmp_path: Path) -> None:
    replica = start()
    replica.publish(1, deployment(tmp_path, onnx_models.slow(1), 1))
    replica.reached(1)
    request = service_pb2.ModelInferRequest(model_name="flights")
    request.inputs.add(name="n", datatype="INT64", shape=[1]).contents.int64_contents.append(2500)
    with grpc.insecure_channel(replica.address) as channel:
        grpc.channel_ready_future(channel).result(SECONDS)
        asked = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(request, metadata=METADATA)
        time.sleep(0.2)
        assert replica.stop() == 0
        assert list(asked.result(SECONDS).outputs[0].contents.fp32_contents) == [2500]


def test_several_workers_and_tls_serve_grpc_too(start: Start, tmp_path: Path) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    (tmp_path / "chain.pem").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    (tmp_path / "key.pem").write_bytes(made.private_key_pem.bytes())
    replica = start(
        *("--workers", "2", "--tls-cert", str(tmp_path / "chain.pem"), "--tls-key", str(tmp_path / "key.pem"))
    )
    replica.publish(1, deployment(tmp_path, onnx_models.scaled(3), 1))
    eventually(lambda: len([each for each in replica.serving.observe("flights") if each.revision == 1]) == 2)
    trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    for _ in range(5):
        with grpc.secure_channel(replica.address, trusted, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(typed(1, 2, 3), metadata=METADATA)
            assert list(answer.outputs[0].contents.fp32_contents) == [3, 6, 9]
    assert replica.stop() == 0


# ---------------------------------------------------------------------------------------------------- swaps and floods
def test_swaps_under_load_fail_nobody_and_every_answer_is_its_versions(start: Start, tmp_path: Path) -> None:
    replica = start()
    replica.publish(1, deployment(tmp_path, onnx_models.scaled(1), 1))
    replica.reached(1)
    over, seen, wrong = threading.Event(), set[str](), list[str]()

    def ask() -> int:
        asked = 0
        with grpc.insecure_channel(replica.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
            while not over.is_set():
                futures = [infer.future(typed(1, i, 0), metadata=METADATA) for i in range(16)]
                for i, future in enumerate(futures):
                    answer, version = future.result(SECONDS), dict(future.initial_metadata())["dropforge-version"]
                    seen.add(version)
                    expected = [float(version), float(version) * i, 0]
                    if list(answer.outputs[0].contents.fp32_contents) != expected or answer.model_version != version:
                        wrong.append(f"{version}: {answer}")
                asked += len(futures)
        return asked

    with ThreadPoolExecutor(2) as threads:
        asking = [threads.submit(ask) for _ in range(2)]
        for revision in range(2, 32):
            replica.publish(revision, deployment(tmp_path, onnx_models.scaled(revision), revision))
            replica.reached(revision)
        over.set()
        assert sum(each.result() for each in asking) > 300
    assert wrong == []
    assert len(seen) > 20
    assert replica.stop() == 0


def _fuzzed(replica: Spoken, count: int, seed: int) -> None:
    """Ask so many times with bytes that were hurt, and see that whoever asks properly is still answered."""
    random_ = random.Random(seed)
    request = service_pb2.ModelInferRequest(model_name="flights", id="7")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    request.raw_input_contents.append(ROW.tobytes())
    content = request.SerializeToString()
    message = b"\0" + len(content).to_bytes(4, "big") + content
    key = {"authorization": f"Bearer {KEY}"}
    broken = [b"".join(sent) for sent, _ in CONNECTION_ERRORS.values()]
    process, before, answered = psutil.Process(replica.process.pid), 0, 0
    for number in range(count):
        if number == count // 5:
            before = process.memory_info().rss
        hurt = bytearray(message)
        for _ in range(random_.randrange(5)):
            hurt[random_.randrange(5, len(hurt))] = random_.randrange(256)
        if random_.random() < 0.1:
            hurt = hurt[: random_.randrange(len(hurt))]
        whole = bytearray(asks(1, bytes(hurt), **key) + asks(3, message, **key))
        kind = random_.random()
        if kind < 0.4:
            # The frames themselves.
            for _ in range(random_.randrange(1, 6)):
                whole[random_.randrange(len(whole))] = random_.randrange(256)
        elif kind < 0.5:
            whole = bytearray(random_.choice(broken)) + whole
        elif kind < 0.6:
            whole = bytearray(random_.randbytes(random_.randrange(200)))
        start = b"" if kind >= 0.99 else frames.PREFACE + frames.settings({})
        with socket.create_connection(("127.0.0.1", replica.grpc), timeout=SECONDS) as connection:
            connection.sendall(start + bytes(whole))
            connection.shutdown(socket.SHUT_WR)
            answered += _statuses(connection)
    assert answered > count / 3
    grown = process.memory_info().rss - before
    assert grown < 20 * 2**20, f"{grown} bytes more after {count} requests"
    assert not [line for line in replica.log if "Traceback" in line]


def _statuses(connection: socket.socket) -> int:
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        return 0
    reader = Reader()
    reader.feed(data)
    for answer in reader.answers.values():
        if answer.ended and answer.headers[":status"] == "200":
            # Neither the server's fault nor unknown to it.
            assert answer.status in (0, 3, 5, 8, 12, 16), answer
    return sum(
        answer.ended and answer.status == 0 for answer in reader.answers.values() if "grpc-status" in answer.headers
    )


def test_hurt_requests_hurt_nobody(replica: Spoken) -> None:
    _fuzzed(replica, FUZZED, 5)
    assert replica.infer(one_row(1, 2, 3)).status == 200


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_fifty_thousand_hurt_requests_hurt_nobody(replica: Spoken) -> None:
    _fuzzed(replica, SOAKED, 6)
    assert replica.infer(one_row(1, 2, 3)).status == 200


def test_slow_and_silent_clients_do_not_stop_others(replica: Spoken, stub: Any) -> None:
    held = []
    try:
        for number in range(300):
            connection = socket.create_connection(("127.0.0.1", replica.grpc))
            head = asks(1, b"", authorization=f"Bearer {KEY}")
            connection.sendall((frames.PREFACE + frames.settings({}) + head)[: 10 + number])
            held.append(connection)
        began = time.monotonic()
        for _ in range(50):
            stub.ModelInfer(typed(1, 2, 3), metadata=METADATA, timeout=SECONDS)
        assert time.monotonic() - began < 5
    finally:
        for connection in held:
            connection.close()
