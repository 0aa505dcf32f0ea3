"""Traffic, copies and what a replica tells of them, through the server and its converger."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dropforge.domain.endpoints import LATENCY_BOUNDS, VersionState
from dropforge.serving.models import Model
from dropforge.serving.tensors import Array
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import deployment
from tests.unit.serving.test_server import REQUEST, URL, Client, Store, serving, until, version_of
from tests.unit.serving.test_traffic import ASTRAY


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


async def answered_by(client: Client, request: dict[str, Any] | None = None, **headers: str) -> str:
    async with client.post(URL, json=request or REQUEST, headers=headers) as response:
        assert response.status == 200, await response.text()
        return str(response.headers["dropforge-version"])


async def served(store: Store, revision: int) -> None:
    await until(lambda: "flights" in store.reports and store.reports["flights"].revision == revision)


def two(tmp_path: Path, traffic: int, mirror: int = 0, other: bytes | None = None) -> Any:
    """The candidate (v2) with that traffic, and the champion (v1) with the rest."""
    candidate = deployment(tmp_path, other or onnx_models.scaled(2), 2, traffic)
    return (
        type(candidate)(**{**vars(candidate), "mirror": mirror}),
        deployment(tmp_path, onnx_models.scaled(1), 1, 100 - traffic),
    )


def test_requests_without_a_key_are_split_exactly(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store()
        store.want("flights", 1, *two(tmp_path, 20))
        async with serving(store) as client:
            await served(store, 1)
            counts = Counter([await version_of(client) for _ in range(200)])
            assert abs(counts["2"] - 40) <= ASTRAY

    run(scenario)


@pytest.mark.parametrize("headers", [("dropforge-sticky",), ("x-request-id",), ()])
def test_equal_keys_keep_their_version_while_the_candidate_gains(tmp_path: Path, headers: tuple[str, ...]) -> None:
    async def scenario() -> None:
        store = Store()
        store.want("flights", 1, *two(tmp_path, 30))
        async with serving(store) as client:

            async def ask(key: str) -> str:
                request = REQUEST if headers else {**REQUEST, "id": key}
                return await answered_by(client, request, **dict.fromkeys(headers, key))

            await served(store, 1)
            before = {key: await ask(key) for key in map("user {}".format, range(60))}
            assert before == {key: await ask(key) for key in before}
            assert set(before.values()) == {"1", "2"}
            store.want("flights", 2, *two(tmp_path, 60))
            await served(store, 2)
            after = {key: await ask(key) for key in before}
            assert all(after[key] == "2" for key, version in before.items() if version == "2")
            assert Counter(after.values())["2"] > Counter(before.values())["2"]

    run(scenario)


def test_the_callers_own_key_counts_before_the_requests_id(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store()
        store.want("flights", 1, *two(tmp_path, 50))
        async with serving(store) as client:
            await served(store, 1)
            answers = {
                await answered_by(client, {**REQUEST, "id": str(n)}, **{"dropforge-sticky": "ada"}) for n in range(20)
            }
            assert len(answers) == 1

    run(scenario)


def test_a_request_that_is_none_is_told_so_also_where_its_id_would_decide(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store()
        store.want("flights", 1, *two(tmp_path, 50))
        async with serving(store) as client:
            await served(store, 1)
            for body, said in ((b"{", "truncated"), (b'{"id": 3, "inputs": []}', "$.id"), (b"[]", "object")):
                async with client.post(URL, data=body) as response:
                    assert response.status == 400
                    assert said in (await response.json())["error"]

    run(scenario)


# ------------------------------------------------------------------------------------------------ the mirror
def state_of(store: Store, version: int) -> VersionState:
    return next(each for each in store.reports["flights"].states if each.version == version)


def test_copies_run_on_the_candidate_and_the_report_tells_how_they_compare(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store()
        store.report_seconds = 0.05
        store.want("flights", 1, *two(tmp_path, 0, mirror=50))
        async with serving(store) as client:
            await served(store, 1)
            assert {await version_of(client) for _ in range(40)} == {"1"}
            # The last report may be from before the last requests.
            await until(lambda: state_of(store, 1).requests == 40)
            # Nor does a report wait for a copy that is being counted.
            await until(lambda: abs(state_of(store, 2).mirrored.disagreed - 20) <= ASTRAY)
            await until(lambda: state_of(store, 2).mirrored.disagreed == state_of(store, 2).mirrored.run)
            told = state_of(store, 2)
            assert (told.requests, told.traffic, told.mirror) == (0, 0, 50)
            assert told.mirrored.max_difference == 3.0

    run(scenario)


def test_a_candidate_that_hangs_or_crashes_changes_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No file makes onnxruntime hang when a test wants it to.
    answer = Model.run

    def moody(self: Model, outputs: Any, feeds: dict[str, Array]) -> list[Array]:
        if self.deployment.version == 2 and np.any(feeds["x"] == 7):
            raise MemoryError("no room")
        if self.deployment.version == 2 and np.any(feeds["x"] == 8):
            time.sleep(1.0)
        return answer(self, outputs, feeds)

    async def scenario() -> None:
        store = Store()
        store.report_seconds = 0.05
        store.want("flights", 1, *two(tmp_path, 0, mirror=100))
        async with serving(store) as client:
            await served(store, 1)
            monkeypatch.setattr(Model, "run", moody)
            began = time.perf_counter()
            for value in (7, 8, 8, 1, 7, 1):
                request = {"inputs": [{**REQUEST["inputs"][0], "data": [value] * 3}]}
                async with client.post(URL, json=request) as response:
                    assert (await response.json())["outputs"][0]["data"] == [value] * 3
            assert time.perf_counter() - began < 0.9
            await until(lambda: state_of(store, 2).mirrored.run == 6)
            assert state_of(store, 2).mirrored.failed == 2
            assert (state_of(store, 1).failed, store.reports["flights"].failed) == (0, 0)

    run(scenario)


def test_no_copy_of_what_the_live_version_failed_is_made(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store()
        store.report_seconds = 0.05
        champion = deployment(tmp_path, onnx_models.picky(5), 1)
        candidate = deployment(tmp_path, onnx_models.picky(6), 2, 0)
        store.want("flights", 1, type(candidate)(**{**vars(candidate), "mirror": 100}), champion)
        async with serving(store) as client:
            await served(store, 1)
            for value, status in ((4, 200), (5, 500), (4, 200)):
                request = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [value]}]}
                async with client.post(URL, json=request) as response:
                    assert response.status == status
            await until(lambda: state_of(store, 2).mirrored.run == 2)
            await until(lambda: (state_of(store, 1).requests, state_of(store, 1).failed) == (3, 1))

    run(scenario)


def test_more_copies_than_a_hundred_percent_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store()
        store.want("flights", 1, *two(tmp_path, 0, mirror=101))
        async with serving(store):
            await until(lambda: "flights" in store.reports and store.reports["flights"].error)
            assert "mirror of revision 1 wants percents, found [101, 0]" in (store.reports["flights"].error or "")

    run(scenario)


# ------------------------------------------------------------------------------------------------ reports
def test_a_report_counts_from_when_its_revision_began_to_serve(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store()
        store.report_seconds = 0.05
        store.want("flights", 1, deployment(tmp_path, onnx_models.scaled(1), 1))
        async with serving(store) as client:
            await served(store, 1)
            for _ in range(5):
                await version_of(client)
            await until(lambda: state_of(store, 1).requests == 5)
            told = state_of(store, 1)
            assert sum(told.latency) == 5 and len(told.latency) == len(LATENCY_BOUNDS) + 1
            assert 0 < told.seconds < 5
            store.want("flights", 2, *two(tmp_path, 50))
            await served(store, 2)
            assert (state_of(store, 1).requests, state_of(store, 1).traffic) == (0, 50)
            for _ in range(8):
                await version_of(client)
            await until(lambda: state_of(store, 1).requests + state_of(store, 2).requests == 8)
            report = store.reports["flights"]
            assert (report.requests, report.device) == (13, "cpu")
            assert report.memory_bytes is None or report.memory_bytes > 10_000_000

    run(scenario)


def test_while_two_versions_share_the_requests_reports_come_more_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dropforge.serving.converge.WATCHED_SECONDS", 0.05)

    async def scenario() -> None:
        store = Store()
        store.report_seconds = 100.0
        store.want("flights", 1, *two(tmp_path, 50))
        async with serving(store) as client:
            await served(store, 1)
            await version_of(client)
            await until(lambda: store.reports["flights"].requests == 1)

    run(scenario)


# ------------------------------------------------------------------------------------------------ metrics
def test_the_metrics_are_what_prometheus_reads(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Store()
        store.report_seconds = 0.05
        store.want("flights", 1, *two(tmp_path, 20, mirror=100))
        async with serving(store) as client:
            await served(store, 1)
            answers = Counter([await version_of(client) for _ in range(50)])
            async with client.post(URL, data=b"{") as response:
                assert response.status == 400
            await until(lambda: state_of(store, 2).mirrored.run == answers["1"])
            async with client.get("/metrics") as response:
                assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
                text = await response.text()
        families = {each.name: each for each in text_string_to_metric_families(text)}
        assert all(each.documentation and each.type != "unknown" for each in families.values())
        assert len(families) == text.count("# TYPE") == text.count("# HELP")
        values = {
            (sample.name, *sample.labels.values()): sample.value
            for each in families.values()
            for sample in each.samples
        }
        first, second = answers["1"], answers["2"]
        assert values["dropforge_requests_total", "flights", "flights", "1"] == first
        assert values["dropforge_requests_total", "flights", "flights", "2"] == second
        assert values["dropforge_request_seconds_count", "flights", "flights", "1"] == first
        assert values["dropforge_request_seconds_bucket", "flights", "flights", "1", "+Inf"] == first
        assert values["dropforge_refused_total", "flights", "400"] == 1
        assert values["dropforge_mirror_copies_total", "flights", "flights", "2"] == first
        assert values["dropforge_mirror_disagreements_total", "flights", "flights", "2"] == first
        assert values["dropforge_mirror_max_difference", "flights", "flights", "2"] == 3
        assert values["dropforge_batches_total", "flights", "flights", "1", "1"] == first
        assert values["dropforge_loaded_version", "flights", "flights", "2", "42"] == 20
        # Triton's counters do not end in `_total`; the parser has them do so.
        assert values["nv_inference_request_success_total", "flights", "1"] == first
        assert values["nv_inference_request_failure_total", "flights", "", "OTHER"] == 1
        assert values["nv_inference_count_total", "flights", "2"] == second
        assert values["nv_inference_pending_request_count", "flights", "1"] == 0
        assert values["dropforge_in_flight", "flights"] == 0
        assert values["dropforge_waiting_limit",] == 2048

    run(scenario)
