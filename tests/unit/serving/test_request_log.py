"""Requests and answers as Parquet files, beside the requests and never in their way."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dropforge.domain.errors import BadInput, Unavailable
from dropforge.serving import request_log
from dropforge.serving.access_log import AccessLog, open_access_log
from dropforge.serving.batching import Job
from dropforge.serving.models import Model, ModelFailed, load
from dropforge.serving.request_log import RequestLog
from dropforge.serving.results import Batch, Rows
from dropforge.serving.watch import Sampler, Watch, open_watch, sampler
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import deployment
from tests.unit.serving.test_batching import NOBODY
from tests.unit.serving.test_server import REQUEST, URL, Store, serving, until

AT = 1_769_842_800 * 10**9  # 2026-01-31T07:00:00Z


class Files(dict[str, bytes]):
    """A store of files that can be down."""

    down = False

    def put(self, name: str, data: bytes) -> None:
        if self.down:
            raise Unavailable("no answer")
        assert name not in self
        self[name] = data

    def rows(self) -> list[dict[str, Any]]:
        return [row for data in self.values() for row in pq.read_table(io.BytesIO(data)).to_pylist()]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "LOOK_SECONDS", 0.01)


def kept(files: Files, share: float = 1.0, file_seconds: float = 60.0) -> RequestLog:
    return RequestLog(files.put, "r1", {"*": share}, file_seconds=file_seconds)


def ask(model: Model, body: Any) -> tuple[Job, Any]:
    """A request, and the model's answer to it."""
    found = model.codec.read(json.dumps(body).encode())
    job = Job(model, found, 0.0, NOBODY)
    try:
        return job, Batch(model.run(found.wanted.names, found.feeds), whole=True).of_all()
    except ModelFailed as error:
        return job, error


def wait(what: Any) -> None:
    until = time.monotonic() + 20
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


# ------------------------------------------------------------------------------------------------ files
def test_each_row_that_was_asked_about_is_one_row_with_what_is_needed_to_find_its_label(tmp_path: Path) -> None:
    model = load(deployment(tmp_path, onnx_models.columns(), 3))
    rows = [
        {"origin": "EWR", "distance": 719.5, "seats": 3, "late": True},
        {"origin": "é", "distance": None, "seats": 4, "late": False},
    ]
    files = Files()
    log = kept(files)
    log.take("table", *ask(model, {"rows": rows}), "abc", AT, 0.25)
    log.close()
    (name,) = files
    assert name.startswith("logs/table/date=2026-01-31/hour=07/r1-") and name.endswith(".parquet")
    first, second = files.rows()
    assert {key: value for key, value in first.items() if key not in ("inputs", "outputs", "at")} == {
        "request_id": "abc",
        "row": 0,
        "endpoint": "table",
        "model": "flights",
        "version": 3,
        "dataset_version": 43,
        "seconds": 0.25,
        "failed": False,
    }
    assert first["at"].isoformat() == "2026-01-31T07:00:00+00:00"
    assert first["inputs"] == {"origin": "EWR", "distance": 719.5, "seats": 3, "late": True}
    assert first["outputs"] == {f"{name}_out": value for name, value in first["inputs"].items()}
    assert (second["request_id"], second["row"], second["inputs"]["origin"]) == ("abc", 1, "é")
    assert np.isnan(second["inputs"]["distance"])


def test_matrices_are_lists_and_a_failure_or_an_output_not_asked_for_is_null(tmp_path: Path) -> None:
    model = load(deployment(tmp_path, onnx_models.scaled(2), 1))
    picky = load(deployment(tmp_path, onnx_models.picky(5), 2))
    files = Files()
    log = kept(files)
    log.take("flights", *ask(model, {"rows": [[1, 2, 3], [4, 5, 6]]}), "a", AT, 0.1)
    log.take("flights", *ask(model, {"rows": [[7, 8, 9]]}), "b", AT, 0.1)
    log.take(
        "picky", *ask(picky, {"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [9]}]}), "c", AT, 0.1
    )
    log.close()
    assert len(files) == 2
    rows = {(row["request_id"], row["row"]): row for row in files.rows()}
    assert rows["a", 1]["inputs"] == {"x": [4, 5, 6]} and rows["a", 1]["outputs"] == {"y": [8, 10, 12]}
    assert rows["b", 0]["outputs"] == {"y": [14, 16, 18]}
    assert (rows["c", 0]["failed"], rows["c", 0]["inputs"], rows["c", 0]["outputs"]) == (True, {"x": 9}, {"y": None})


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "INT8", "UINT64", "BOOL", "BYTES"])
def test_every_type_has_its_place(tmp_path: Path, datatype: str) -> None:
    model = load(deployment(tmp_path, onnx_models.echo(datatype, ("N", "M")), 1))
    value: Any = {"BOOL": True, "BYTES": "é"}.get(datatype, 1)
    files = Files()
    log = kept(files)
    for width in (2, 3):
        tensor = {"name": "x", "shape": [1, width], "datatype": datatype, "data": [value] * width}
        log.take("e", *ask(model, {"inputs": [tensor]}), str(width), AT, 0.1)
    log.close()
    assert [row["inputs"]["x"] for row in files.rows()] == [[value] * 2, [value] * 3]


def test_hours_and_versions_have_files_of_their_own(tmp_path: Path) -> None:
    one, two = (load(deployment(tmp_path, onnx_models.scaled(n), n)) for n in (1, 2))
    files = Files()
    log = kept(files)
    for model, hours in ((one, 0), (one, 1), (two, 1), (one, 1)):
        log.take("flights", *ask(model, {"rows": [[1, 2, 3]]}), "a", AT + hours * 3600 * 10**9, 0.1)
    log.close()
    assert sorted(name.split("/")[3] for name in files) == ["hour=07", "hour=08", "hour=08"]
    assert (log.rows, log.files, log.dropped) == (4, 3, {})


def test_a_share_of_the_requests_is_kept_by_endpoint(tmp_path: Path) -> None:
    model = load(deployment(tmp_path, onnx_models.scaled(2), 1))
    files = Files()
    log = RequestLog(files.put, "r1", {"*": 0.1, "flights": 0.5, "none": 0.0})
    one = ask(model, {"rows": [[1, 2, 3]]})
    for endpoint in ("flights", "other", "none"):
        for _ in range(1000):
            log.take(endpoint, *one, "a", AT, 0.1)
    log.close()
    counts = [sum(row["endpoint"] == endpoint for row in files.rows()) for endpoint in ("flights", "other", "none")]
    assert abs(counts[0] - 500) <= 2 and abs(counts[1] - 100) <= 2 and counts[2] == 0


def test_a_file_is_written_when_its_first_row_is_old_enough(tmp_path: Path) -> None:
    model = load(deployment(tmp_path, onnx_models.scaled(2), 1))
    files = Files()
    log = kept(files, file_seconds=0.05)
    log.take("flights", *ask(model, {"rows": [[1, 2, 3]]}), "a", AT, 0.1)
    wait(lambda: files)
    log.take("flights", *ask(model, {"rows": [[1, 2, 3]]}), "b", AT, 0.1)
    wait(lambda: len(files) == 2)
    log.close()


# ------------------------------------------------------------------------------------------------ bounds
def test_what_does_not_fit_is_dropped_and_counted_and_nothing_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_log, "WAITING", 10)
    model = load(deployment(tmp_path, onnx_models.scaled(2), 1))
    files, let = Files(), threading.Event()

    def slow(name: str, data: bytes) -> None:
        assert let.wait(20)
        files.put(name, data)

    log = RequestLog(slow, "r1", {"*": 1.0}, file_seconds=0.05)
    one = ask(model, {"rows": [[1, 2, 3], [1, 2, 3]]})
    for _ in range(25):
        log.take("flights", *one, "a", AT, 0.1)
    assert log.dropped == {"full": 30}
    let.set()
    wait(lambda: log.rows == 20)
    log.take("flights", *one, "a", AT, 0.1)
    log.close()
    assert (log.rows, log.dropped) == (22, {"full": 30})


def test_what_waits_is_bounded_by_the_bytes_of_requests_outputs_and_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_log, "WAITING_BYTES", 10**6)
    monkeypatch.setattr(request_log, "LOOK_SECONDS", 60.0)
    model = load(deployment(tmp_path, onnx_models.scaled(2), 1))
    small, answer = ask(model, {"rows": [[1, 2, 3]]})
    large, _ = ask(model, {"rows": [[1, 2, 3]]})
    large.ask.size = 300_000
    numbers, text = np.zeros((1, 75_000), np.float32), np.array([["x" * 300_000]], object)
    many = np.full((1, 5_000), "", object)
    for job, arrays in ((large, answer.arrays), (small, [numbers]), (small, [text]), (small, [many])):
        log = kept(Files())
        for _ in range(5):
            log.take("flights", job, Batch(arrays, whole=True).of_all(), "a", AT, 0.1)
        assert log.dropped == {"full": 2}
        log.close()


def test_a_file_is_written_before_there_is_no_room_for_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "WAITING_BYTES", 10**6)
    model = load(deployment(tmp_path, onnx_models.scaled(2), 1))
    job, answer = ask(model, {"rows": [[1, 2, 3]]})
    job.ask.size = 300_000
    files = Files()
    log = kept(files)
    for number in range(1, 4):
        for _ in range(2):
            log.take("flights", job, answer, "a", AT, 0.1)
        wait(lambda number=number: log.files == number)
    assert log.dropped == {}
    log.close()


def test_a_request_that_is_kept_does_not_keep_the_answers_of_its_batch(tmp_path: Path) -> None:
    model = load(deployment(tmp_path, onnx_models.scaled(2), 1))
    job, _ = ask(model, {"rows": [[1, 2, 3]]})
    batch = Batch([np.ones((1000, 3), np.float32)])
    held = weakref.ref(batch.arrays[0])
    files = Files()
    log = kept(files)
    log.take("flights", job, Rows(batch, 7, 8), "a", AT, 0.1)
    del batch
    assert held() is None
    log.close()
    assert [row["outputs"]["y"] for row in files.rows()] == [[1, 1, 1]]


def test_a_store_that_is_down_is_offered_the_files_again_and_then_they_are_let_go(tmp_path: Path) -> None:
    model = load(deployment(tmp_path, onnx_models.scaled(2), 1))
    files = Files()
    files.down = True
    log = kept(files, file_seconds=0.02)
    one = ask(model, {"rows": [[1, 2, 3]]})
    for sent in range(1, request_log.KEPT_FILES + 3):
        log.take("flights", *one, "a", AT, 0.1)
        wait(lambda sent=sent: log._over == sent)
    assert log.dropped == {"store": 2}
    files.down = False
    log.close()
    assert (log.files, len(files)) == (request_log.KEPT_FILES, request_log.KEPT_FILES)


def test_one_odd_answer_does_not_end_the_log(tmp_path: Path) -> None:
    model = load(deployment(tmp_path, onnx_models.scaled(2), 1))
    files = Files()
    log = kept(files, file_seconds=0.02)
    job, answer = ask(model, {"rows": [[1, 2, 3], [4, 5, 6]]})
    log.take("flights", job, Batch([np.zeros((3, 3), np.float32)], whole=True).of_all(), "odd", AT, 0.1)
    wait(lambda: log.dropped == {"unfit": 2})
    log.take("flights", job, answer, "good", AT, 0.1)
    log.close()
    assert [row["request_id"] for row in files.rows()] == ["good", "good"]


# ------------------------------------------------------------------------------------------------ through the server
def test_a_request_gets_an_id_and_is_found_under_it(tmp_path: Path) -> None:
    files = Files()

    async def scenario() -> None:
        store = Store()
        store.want("flights", 1, deployment(tmp_path, onnx_models.scaled(1), 1))
        watch = Watch(kept(files), None)
        async with serving(store, watch=watch) as client:
            await until(lambda: "flights" in store.reports)
            ids = []
            for given in ({}, {}, {"x-request-id": "mine/7"}, {"x-request-id": "é" * 3}):
                async with client.post(URL, json=REQUEST, headers=given) as response:
                    assert response.status == 200
                    ids.append(response.headers["x-request-id"])
            async with client.post(URL, json={**REQUEST, "id": "in the body"}) as response:
                ids.append(response.headers["x-request-id"])
                assert (await response.json())["id"] == "in the body"
            async with client.post(URL, json={**REQUEST, "id": "two\r\nlines: 1"}) as response:
                ids.append(response.headers["x-request-id"])
                assert "lines" not in response.headers
            async with client.get("/metrics") as response:
                assert 'dropforge_log_dropped_total{reason="full"} 0' in await response.text()
        watch.close()
        assert ids[2] == "mine/7" and ids[4] == "in the body"
        assert len(set(ids)) == 6
        assert [row["request_id"] for row in files.rows()] == ids

    asyncio.run(scenario())


def test_without_a_log_no_id_is_made(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store()
        store.want("flights", 1, deployment(tmp_path, onnx_models.scaled(1), 1))
        async with serving(store) as client:
            await until(lambda: "flights" in store.reports)
            async with client.post(URL, json=REQUEST, headers={"x-request-id": "7"}) as response:
                assert "x-request-id" not in response.headers

    asyncio.run(scenario())


# ------------------------------------------------------------------------------------------------ the access log
def test_every_answer_over_http_is_one_line_of_json(tmp_path: Path) -> None:
    place = tmp_path / "access.log"

    async def scenario() -> None:
        store = Store()
        store.want("flights", 1, deployment(tmp_path, onnx_models.scaled(1), 1))
        log = open_access_log(str(place))
        async with serving(store, access_log=log) as client:
            await until(lambda: "flights" in store.reports)
            async with client.post(URL, json=REQUEST, headers={"x-request-id": "7"}) as response:
                sent = len(await response.read())
            await client.get("/v2/health/live")
            await client.get("/nothing?key=secret")
            await client.post(URL, data=b"{")
            reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
            writer.write(b"nonsense\r\n\r\n")
            await reader.read()
            writer.close()
        log.close()
        infer, live, missing, bad, broken = (json.loads(line) for line in place.read_text().splitlines())
        assert (infer["method"], infer["path"], infer["status"]) == ("POST", URL, 200)
        assert (infer["model"], infer["version"], infer["dataset_version"]) == ("flights", "1", "41")
        assert infer["request_id"] == "7" and infer["sent_bytes"] > sent and 0 < infer["seconds"] < 5
        assert infer["received_bytes"] == len(json.dumps(REQUEST))
        assert (live["path"], live["status"]) == ("/v2/health/live", 200)
        assert (missing["path"], missing["status"]) == ("/nothing", 404)
        assert (bad["status"], broken["status"], broken["path"]) == (400, 400, None)

    asyncio.run(scenario())


def test_an_access_log_that_cannot_be_written_ends_no_request(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot write the access log to"):
        open_access_log(str(tmp_path / "no" / "such" / "folder"))
    with Path("/dev/full").open("wb", buffering=0) as full:
        log = AccessLog(full)
        log.add({"status": 200})
        log.flush()
        assert log._lines == []


# ------------------------------------------------------------------------------------------------ traces
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"


def test_a_span_follows_the_callers_decision() -> None:
    never = Sampler(0.0)
    assert never.parent(PARENT + "01") == PARENT + "01"
    assert never.parent(PARENT + "00") is None
    assert never.parent(None) is None and never.parent("nonsense") is None
    always = Sampler(1.0)
    assert always.parent(None) == "" and always.parent(PARENT + "00") is None


def test_the_sampler_is_what_opentelemetrys_variables_say() -> None:
    place = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    assert sampler({}) is None and open_watch({}, print, "r1", 60, {}) is None
    found = sampler({**place, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"})
    assert found is not None and abs(sum(found.parent(None) == "" for _ in range(1000)) - 100) <= 2
    plain = sampler(place)
    assert plain is not None and plain.parent(None) is None
    with pytest.raises(BadInput, match="OTEL_TRACES_SAMPLER_ARG is 'many'"):
        sampler({**place, "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "many"})
