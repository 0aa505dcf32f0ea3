"""Triton's own client over HTTP, as it comes from PyPI, against a server of its own process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.http as triton
from onnx import numpy_helper
from tritonclient.utils import InferenceServerException

from dropforge.domain.endpoints import Deployment
from dropforge.domain.errors import BadInput
from dropforge.serving.models import Model, load
from tests.e2e.test_serving import KEY, Replica, eventually
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import deployment

ADMIN_KEY = "open sesame"


def as_caller() -> dict[str, str]:
    """Headers, which the client writes to."""
    return {"Authorization": f"Bearer {KEY}"}


def as_admin() -> dict[str, str]:
    return {"Authorization": f"Bearer {ADMIN_KEY}"}


ROW = np.array([[1, 2, 3]], np.float32)


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """Serves `flights` v1 (x * 1) with all traffic and v2 (x * 2) with none, `table`, and `plain`, which has no batches."""
    folder = tmp_path_factory.mktemp("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DROPFORGE_ADMIN_KEY", ADMIN_KEY)
        running = Replica(folder / "serving")
    first = deployment(folder, onnx_models.scaled(1), 1)
    running.publish(1, first, deployment(folder, onnx_models.scaled(2), 2, traffic=0))
    running.publish(1, deployment(folder, onnx_models.columns(), 1), endpoint="table")
    running.publish(1, deployment(folder, onnx_models.slow(1), 1), endpoint="plain")
    for endpoint in ("flights", "table", "plain"):
        running.reached(1, endpoint)
    yield running
    assert running.stop() == 0


@pytest.fixture
def client(replica: Replica) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{replica.port}") as connected:
        yield connected


def given(name: str, array: Any, datatype: str, *, binary: bool) -> Any:
    tensor = triton.InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def test_it_is_live_and_ready(client: Any) -> None:
    assert client.is_server_live(headers=as_caller())
    assert client.is_server_ready(headers=as_caller())
    assert client.is_model_ready("flights", headers=as_caller())
    assert client.is_model_ready("flights", "2", headers=as_caller())
    assert not client.is_model_ready("flights", "7", headers=as_caller())
    assert not client.is_model_ready("nothing", headers=as_caller())


def test_it_tells_what_it_can(client: Any) -> None:
    about = client.get_server_metadata(headers=as_caller())
    wanted = {"binary_tensor_data", "model_repository", "model_configuration", "statistics"}
    assert wanted <= set(about["extensions"])
    told = client.get_model_metadata("flights", headers=as_caller())
    assert (told["name"], told["versions"]) == ("flights", ["1", "2"])
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]


def test_the_configuration_is_that_of_the_model(client: Any) -> None:
    told = client.get_model_config("flights", "2", headers=as_caller())
    assert (told["name"], told["backend"], told["platform"]) == ("flights", "onnxruntime", "onnxruntime_onnx")
    assert told["max_batch_size"] > 1
    # Triton's dimensions are those of a row, where rows are batched.
    assert told["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]
    assert told["version_policy"] == {"specific": {"versions": [1, 2]}}
    table = client.get_model_config("table", headers=as_caller())
    assert {each["data_type"] for each in table["input"]} == {"TYPE_STRING", "TYPE_FP32", "TYPE_INT64", "TYPE_BOOL"}
    plain = client.get_model_config("plain", headers=as_caller())
    assert (plain["max_batch_size"], plain["input"][0]["dims"]) == (0, [1])
    with pytest.raises(InferenceServerException, match="version '7' is not loaded"):
        client.get_model_config("flights", "7", headers=as_caller())


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_tensors_go_both_ways_in_json_and_in_bytes(client: Any, sent: bool, wanted: bool) -> None:
    outputs = [triton.InferRequestedOutput("y", binary_data=wanted)]
    inputs = [given("x", ROW, "FP32", binary=sent)]
    answer = client.infer("flights", inputs, "2", outputs, request_id="r1", headers=as_caller())
    assert answer.as_numpy("y").tolist() == [[2, 4, 6]]
    assert (answer.get_response()["model_version"], answer.get_response()["id"]) == ("2", "r1")


@pytest.mark.parametrize("binary", [True, False])
def test_strings_go_both_ways(client: Any, binary: bool) -> None:
    inputs = [
        given("origin", np.array([["EWR"], ["Zürich"]], np.object_), "BYTES", binary=binary),
        given("distance", np.array([[1.5], [2.5]], np.float32), "FP32", binary=binary),
        given("seats", np.array([[100], [200]], np.int64), "INT64", binary=binary),
        given("late", np.array([True, False]), "BOOL", binary=binary),
    ]
    outputs = [triton.InferRequestedOutput(f"{name}_out", binary_data=binary) for name in ("origin", "late")]
    answer = client.infer("table", inputs, outputs=outputs, headers=as_caller())
    texts = [each if isinstance(each, str) else each.decode() for each in answer.as_numpy("origin_out").ravel()]
    assert (texts, answer.as_numpy("late_out").tolist()) == (["EWR", "Zürich"], [True, False])


def test_requests_at_once_are_answered_each(replica: Replica) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{replica.port}", concurrency=8) as client:
        asked = [
            client.async_infer("flights", [given("x", ROW * i, "FP32", binary=True)], headers=as_caller())
            for i in range(100)
        ]
        assert [each.get_result().as_numpy("y")[0, 0] for each in asked] == [*range(100)]


def test_statistics_count_requests_and_batches(client: Any) -> None:
    before = client.get_inference_statistics("flights", "1", headers=as_caller())["model_stats"][0]
    for rows in (1, 1, 5):
        client.infer("flights", [given("x", np.repeat(ROW, rows, 0), "FP32", binary=True)], "1", headers=as_caller())
    (after,) = client.get_inference_statistics("flights", "1", headers=as_caller())["model_stats"]
    assert after["inference_count"] - before["inference_count"] == 7
    assert after["execution_count"] - before["execution_count"] == 3
    spent, spent_before = after["inference_stats"], before["inference_stats"]
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert spent[name]["count"] - spent_before[name]["count"] == 3, name
        assert spent[name]["ns"] > spent_before[name]["ns"], name
    assert spent["fail"] == {"count": 0, "ns": 0}
    assert {each["batch_size"] for each in after["batch_stats"]} >= {1, 5}
    now = datetime.now(UTC).timestamp() * 1000
    assert now - 60_000 < after["last_inference"] <= now
    everything = client.get_inference_statistics(headers=as_caller())["model_stats"]
    assert [(each["name"], each["version"]) for each in everything] == [
        ("flights", "1"),
        ("flights", "2"),
        ("plain", "1"),
        ("table", "1"),
    ]


def test_models_are_unloaded_and_loaded_by_an_admin(replica: Replica, client: Any) -> None:
    def states() -> set[tuple[str, str]]:
        found = client.get_model_repository_index(headers=as_admin())
        return {(each["version"], each["state"]) for each in found if each["name"] == "flights"}

    assert states() == {("1", "READY"), ("2", "READY")}
    client.unload_model("flights", headers=as_admin())
    assert states() == {("1", "UNAVAILABLE"), ("2", "UNAVAILABLE")}
    assert not client.is_model_ready("flights", headers=as_admin())
    with pytest.raises(InferenceServerException, match="is not ready: it was unloaded"):
        client.infer("flights", [given("x", ROW, "FP32", binary=True)], headers=as_admin())
    assert client.is_server_ready(headers=as_admin())
    ready = eventually(lambda: replica.ask("POST", "/v2/repository/index", {"ready": True}).json)
    assert {each["name"] for each in ready} == {"table", "plain"}
    client.load_model("flights", headers=as_admin())
    assert states() == {("1", "READY"), ("2", "READY")}
    client.load_model("flights", headers=as_admin())
    answer = client.infer("flights", [given("x", ROW, "FP32", binary=True)], headers=as_admin())
    assert answer.as_numpy("y").tolist() == ROW.tolist()


def test_orders_of_others_are_refused(client: Any) -> None:
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="wanted the admin key") as refused:
            change("flights", headers=as_caller())
        assert refused.value.status() == "403"
        with pytest.raises(InferenceServerException, match="wanted the endpoint's key") as refused:
            change("flights", headers={"Authorization": "Bearer guessed"})
        assert refused.value.status() == "401"
    assert client.is_model_ready("flights", headers=as_caller())


def test_no_file_and_no_configuration_comes_in_with_a_load(client: Any) -> None:
    for more in ({"config": "{}"}, {"config": "{}", "files": {"file:1/model.onnx": b"onnx"}}):
        with pytest.raises(InferenceServerException, match="load takes no parameters here"):
            client.load_model("flights", headers=as_admin(), **more)
    with pytest.raises(InferenceServerException, match="unknown model 'nothing'"):
        client.load_model("nothing", headers=as_admin())


def test_what_is_not_offered_is_a_404_in_json(client: Any) -> None:
    for ask in (client.get_trace_settings, client.get_log_settings, client.get_system_shared_memory_status):
        with pytest.raises(InferenceServerException, match="no such route") as refused:
            ask(headers=as_caller())
        assert refused.value.status() == "404"


@pytest.fixture
def cases(tmp_path: Path) -> Iterator[tuple[Replica, dict[int, tuple[Path, Model]]]]:
    """A server whose endpoint `onnx` has a version of each published case, and where those lie."""
    data = Path(onnx.__file__).parent / "backend" / "test" / "data"
    folders = sorted(path.parent for kind in ("simple", "pytorch-*") for path in data.glob(f"{kind}/*/model.onnx"))
    found: dict[int, tuple[Path, Model]] = {}
    deployments: list[Deployment] = []
    for version, folder in enumerate(folders, start=1):
        each = deployment(tmp_path, (folder / "model.onnx").read_bytes(), version, traffic=0 if deployments else 100)
        with suppress(BadInput):
            found[version] = folder, load(each)
            deployments.append(each)
    running = Replica(tmp_path / "serving")
    running.publish(1, *deployments, endpoint="onnx")
    running.reached(1, "onnx")
    yield running, found
    assert running.stop() == 0


@pytest.mark.parametrize("binary", [True, False])
def test_published_cases_get_their_published_answers(
    cases: tuple[Replica, dict[int, tuple[Path, Model]]], binary: bool
) -> None:
    running, found = cases
    served = 0
    with triton.InferenceServerClient(f"127.0.0.1:{running.port}") as client:
        for version, (folder, model) in found.items():
            arrays = [published(folder, f"input_{i}") for i in range(len(model.inputs))]
            if any(array.size == 0 for array in arrays):
                continue
            inputs = [
                # The client has no JSON for half precision.
                given(each.name, array, each.kind.datatype, binary=binary or array.dtype == np.float16)
                for each, array in zip(model.inputs, arrays, strict=True)
            ]
            outputs = [triton.InferRequestedOutput(each.name, binary_data=binary) for each in model.outputs]
            answer = client.infer("onnx", inputs, str(version), outputs, headers=as_caller())
            for place, each in enumerate(model.outputs):
                compare(folder, answer.as_numpy(each.name), published(folder, f"output_{place}"))
            served += 1
    assert served > 90  # of 140; the rest want operators of opsets before 7, or a locale


def published(case: Path, name: str) -> Any:
    return numpy_helper.to_array(onnx.load_tensor(str(case / "test_data_set_0" / f"{name}.pb")))


def compare(case: Path, found: Any, expected: Any) -> None:
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5, err_msg=str(case))
    else:
        texts = [each.decode() if isinstance(each, bytes) else each for each in found.ravel().tolist()]
        assert texts == expected.ravel().tolist(), case
        assert found.shape == expected.shape, case
