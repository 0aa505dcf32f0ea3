"""The objects of the Open Inference Protocol over REST, as its OpenAPI file declares them (version 2.0 of `Data Plane`):
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/open_inference_rest.yaml

DROPFORGE_OPEN_INFERENCE_REST may name that file, which is then held against the server in place of what stands here. Also the
routes around it: scoring, and what HEAD and OPTIONS are told.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.e2e.test_serving import WITH_KEY, Replica
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import deployment


def record(required: str, optional: str = "", **of: Any) -> dict[str, Any]:
    """An object whose members are texts, but for those in `of`."""
    names = [*required.split(), *optional.split()]
    return {
        "type": "object",
        "required": required.split(),
        "properties": {name: of.get(name, {"type": "string"}) for name in names},
    }


def many(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_SHAPE, _ANY = many({"type": "integer"}), {"type": "object"}
_TENSOR = {"shape": _SHAPE, "parameters": _ANY, "data": ref("tensor_data")}
SCHEMAS: dict[str, Any] = {
    "metadata_server_response": record("name version extensions", extensions=many({"type": "string"})),
    "metadata_server_error_response": record("error"),
    "metadata_tensor": record("name datatype shape", shape=_SHAPE),
    "metadata_model_response": record(
        "name platform",
        "versions inputs outputs",
        versions=many({"type": "string"}),
        inputs=many(ref("metadata_tensor")),
        outputs=many(ref("metadata_tensor")),
    ),
    "tensor_data": many({"anyOf": [ref("tensor_data"), *({"type": kind} for kind in ("number", "string", "boolean"))]}),
    "request_input": record("name shape datatype data", "parameters", **_TENSOR),
    "request_output": record("name", "parameters", parameters=_ANY),
    "inference_request": record(
        "inputs",
        "id parameters outputs",
        parameters=_ANY,
        inputs=many(ref("request_input")),
        outputs=many(ref("request_output")),
    ),
    "response_output": record("name shape datatype data", "parameters", **_TENSOR),
    "inference_response": record(
        "model_name outputs", "model_version id parameters", parameters=_ANY, outputs=many(ref("response_output"))
    ),
    "inference_error_response": record("error"),
}


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    named = os.environ.get("DROPFORGE_OPEN_INFERENCE_REST")
    if named is None:
        return SCHEMAS
    declared: dict[str, Any] = yaml.safe_load(Path(named).read_text())["components"]["schemas"]
    assert declared.keys() >= SCHEMAS.keys()
    return declared


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """Serves `flights` v1 (x * 1) with all traffic and v2 (x * 2) with none, and `table` v1 (one input per column)."""
    folder = tmp_path_factory.mktemp("open")
    running = Replica(folder / "serving")
    running.publish(
        1, deployment(folder, onnx_models.scaled(1), 1), deployment(folder, onnx_models.scaled(2), 2, traffic=0)
    )
    running.publish(1, deployment(folder, onnx_models.columns(), 1), endpoint="table")
    running.reached(1)
    running.reached(1, "table")
    yield running
    assert running.stop() == 0


def check(schemas: dict[str, Any], name: str, found: Any) -> Any:
    validator = jsonschema.Draft4Validator({**ref(name), "components": {"schemas": schemas}})
    assert [error.message for error in validator.iter_errors(found)] == []
    return found


FLIGHTS = {
    "id": "42",
    "parameters": {"priority": 1},
    "inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [[1, 2, 3], [4, 5, 6]]}],
    "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
}
TABLE = {
    "inputs": [
        {"name": "late", "shape": [1], "datatype": "BOOL", "data": [True]},
        {"name": "origin", "shape": [1, 1], "datatype": "BYTES", "data": ["EWR"]},
        {"name": "seats", "shape": [1, 1], "datatype": "INT64", "data": [3]},
        {"name": "distance", "shape": [1, 1], "datatype": "FP32", "data": [0.5]},
    ]
}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v2/", "metadata_server_response"),
        ("/v2/models/flights/versions/2", "metadata_model_response"),
        ("/v2/models/table/versions/1", "metadata_model_response"),
    ],
)
def test_metadata_is_as_declared(replica: Replica, schemas: dict[str, Any], path: str, name: str) -> None:
    answer = replica.ask("GET", path)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    check(schemas, name, answer.json)


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/v2/models/flights/versions/1/ready"])
def test_health_is_a_status(replica: Replica, path: str) -> None:
    assert replica.ask("GET", path).status == 200


@pytest.mark.parametrize(("endpoint", "request_"), [("flights", FLIGHTS), ("table", TABLE)])
def test_what_is_declared_as_a_request_is_answered_as_declared(
    replica: Replica, schemas: dict[str, Any], endpoint: str, request_: dict[str, Any]
) -> None:
    check(schemas, "inference_request", request_)
    answer = replica.ask("POST", f"/v2/models/{endpoint}/versions/1/infer", request_)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    told = check(schemas, "inference_response", answer.json)
    assert (told["model_name"], told.get("id")) == (endpoint, request_.get("id"))


@pytest.mark.parametrize("place", ["inputs", "inputs/0/name", "inputs/0/shape", "inputs/0/datatype", "inputs/0/data"])
def test_what_is_no_request_as_declared_gets_an_error_as_declared(
    replica: Replica, schemas: dict[str, Any], place: str
) -> None:
    request = json.loads(json.dumps(FLIGHTS))
    *path, last = place.split("/")
    inner: Any = request
    for step in path:
        inner = inner[int(step) if step.isdigit() else step]
    del inner[last]
    with pytest.raises(AssertionError):
        check(schemas, "inference_request", request)
    answer = replica.ask("POST", "/v2/models/flights/versions/1/infer", request)
    assert answer.status == 400
    assert check(schemas, "inference_error_response", answer.json)["error"]


# ---------------------------------------------------------------------------------------------------- scoring
ROW = {"origin": "EWR", "distance": 1.5, "seats": 3, "late": True}


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        ("/score/table", {}, {"rows": [ROW]}),
        ("/score/table", {}, TABLE),
        ("/score", {"dropforge-endpoint": "table"}, {"rows": [ROW]}),
        ("/score", {}, {"model_name": "table", "rows": [ROW]}),
        ("/score/table", {}, {"input_data": {"columns": [*ROW], "index": [0], "data": [[*ROW.values()]]}}),
        ("/score/table", {}, {"input_data": [ROW]}),
    ],
)
def test_scoring_answers_as_infer_does(
    replica: Replica, path: str, headers: dict[str, str], body: dict[str, Any]
) -> None:
    answer = replica.ask("POST", path, body, {**WITH_KEY, **headers})
    assert (answer.status, answer.json["model_name"]) == (200, "table"), answer.json
    outputs = {each["name"]: each["data"] for each in answer.json["outputs"]}
    assert (outputs["origin_out"], outputs["seats_out"], outputs["late_out"]) == (["EWR"], [3], [True])


def test_scoring_a_large_table_is_read_apart(replica: Replica) -> None:
    body = {"input_data": {"columns": [*ROW], "data": [[*ROW.values()]] * 5000}}
    answer = replica.ask("POST", "/score/table", body)
    assert (answer.status, answer.json["outputs"][0]["shape"]) == (200, [5000, 1])
    body["input_data"]["data"][4000] = ["EWR"]
    answer = replica.ask("POST", "/score/table", body)
    assert (answer.status, answer.json["error"]) == (400, "row 4000 of `data` holds 1 values, `columns` names 4")


def test_scoring_must_know_whom_it_asks(replica: Replica) -> None:
    answer = replica.ask("POST", "/score", {"rows": [ROW]})
    assert answer.status == 400
    assert "several endpoints are served here; name one of ['flights', 'table']" in answer.json["error"]
    assert replica.ask("POST", "/score/nothing", {"rows": [ROW]}).status == 404
    assert replica.ask("POST", "/score/table", {"rows": [ROW]}, {}).status == 401


@pytest.mark.parametrize("path", ["/", "/health/live", "/health/ready"])
def test_probes_need_no_key(replica: Replica, path: str) -> None:
    assert replica.ask("GET", path, headers={}).status == 200


# ---------------------------------------------------------------------------------------------------- other methods
@pytest.mark.parametrize(
    "path", ["/v2", "/v2/models/flights", "/v2/models/flights/config", "/metrics", "/v2/health/live"]
)
def test_head_is_get_without_the_body(replica: Replica, path: str) -> None:
    got, told = replica.ask("GET", path), replica.ask("HEAD", path)
    assert (told.status, told.body) == (200, b"")
    assert told.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":
        assert int(told.headers["content-length"]) == len(got.body)


@pytest.mark.parametrize(("path", "status"), [("/v2/models/nothing", 404), ("/nothing", 404), ("/score", 405)])
def test_head_of_an_error_has_no_body(replica: Replica, path: str, status: int) -> None:
    answer = replica.ask("HEAD", path)
    assert (answer.status, answer.body) == (status, b"")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v2/models/flights", "GET, HEAD, OPTIONS"),
        ("/v2/models/flights/infer", "POST, OPTIONS"),
        ("/v2/repository/index", "POST, OPTIONS"),
    ],
)
def test_options_tells_the_methods(replica: Replica, path: str, allowed: str) -> None:
    answer = replica.ask("OPTIONS", path)
    assert (answer.status, answer.headers["allow"], answer.body) == (200, allowed, b"")
    answer = replica.ask("DELETE", path)
    assert (answer.status, answer.headers["allow"]) == (405, allowed)


def test_without_an_admin_key_nobody_gives_orders(replica: Replica) -> None:
    for order in ("load", "unload"):
        answer = replica.ask("POST", f"/v2/repository/models/flights/{order}", {})
        assert answer.status == 403
        assert "started without an admin key" in answer.json["error"]
