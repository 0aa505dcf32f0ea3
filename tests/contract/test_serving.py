"""What every serving store promises."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from dropforge.domain.endpoints import Deployment, Desired, ReplicaState
from dropforge.domain.errors import BadName
from tests.contract.conftest import ServingBench
from tests.contract.samples import NOW


def wanted(revision: int, endpoint: str = "flights", model_version: int = 1) -> Desired:
    deployment = Deployment("flights", model_version, "file:///model.onnx", "ab" * 32, dataset_version=3)
    return Desired(endpoint, revision, (deployment,), NOW)


def state(replica: str, endpoint: str = "flights", revision: int = 1) -> ReplicaState:
    return ReplicaState(
        replica, endpoint, revision, revision, (1,), True, requests=10, failed=0, swaps=1, reported_at=NOW,
        started_at=NOW, detail={"url": "http://localhost:1"},
    )  # fmt: skip


def test_what_was_published_is_desired(serving: ServingBench) -> None:
    serving.serving.publish(wanted(1))
    assert serving.serving.desired("flights") == wanted(1)


def test_an_endpoint_nobody_published_is_none(serving: ServingBench) -> None:
    serving.serving.publish(wanted(1))
    assert serving.serving.desired("weather") is None
    assert serving.serving.observe("weather") == []


def test_a_newer_revision_takes_the_place_of_an_older_one(serving: ServingBench) -> None:
    serving.serving.publish(wanted(1))
    serving.serving.publish(wanted(2, model_version=2))
    assert serving.serving.desired("flights") == wanted(2, model_version=2)


def test_an_older_revision_has_no_effect(serving: ServingBench) -> None:
    serving.serving.publish(wanted(10))
    serving.serving.publish(wanted(9, model_version=2))
    assert serving.serving.desired("flights") == wanted(10)


def test_the_same_revision_again_has_no_effect(serving: ServingBench) -> None:
    serving.serving.publish(wanted(1))
    serving.serving.publish(wanted(1))
    serving.serving.publish(wanted(1, model_version=2))
    assert serving.serving.desired("flights") == wanted(1)


def test_endpoints_have_revisions_of_their_own(serving: ServingBench) -> None:
    serving.serving.publish(wanted(7))
    serving.serving.publish(wanted(1, "weather"))
    assert serving.serving.desired("flights") == wanted(7)
    assert serving.serving.desired("weather") == wanted(1, "weather")


def test_of_many_threads_the_newest_revision_wins(serving: ServingBench) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: serving.serving.publish(wanted((n * 7) % 31)), range(31)))
    assert serving.serving.desired("flights") == wanted(30)


def test_the_replicas_of_an_endpoint_are_observed_as_they_report(serving: ServingBench) -> None:
    serving.report(state("two"))
    serving.report(state("one", revision=4))
    serving.report(state("other", endpoint="weather"))
    serving.report(replace(state("two"), error="no such file", ready=False))
    assert serving.serving.observe("flights") == [
        state("one", revision=4),
        replace(state("two"), error="no such file", ready=False),
    ]


def test_one_replica_may_serve_many_endpoints(serving: ServingBench) -> None:
    serving.report(state("one"))
    serving.report(state("one", endpoint="weather", revision=2))
    assert serving.serving.observe("flights") == [state("one")]
    assert serving.serving.observe("weather") == [state("one", "weather", revision=2)]


def test_a_replica_that_stops_reporting_is_not_observed(serving: ServingBench) -> None:
    serving.report(state("stopped"))
    serving.clock.advance(9)
    serving.report(replace(state("alive"), reported_at=serving.clock()))
    assert [each.replica for each in serving.serving.observe("flights")] == ["alive", "stopped"]
    serving.clock.advance(2)
    assert [each.replica for each in serving.serving.observe("flights")] == ["alive"]


def test_a_replica_that_reports_again_is_observed_again(serving: ServingBench) -> None:
    serving.report(state("one"))
    serving.clock.advance(60)
    assert serving.serving.observe("flights") == []
    back = replace(state("one"), reported_at=serving.clock())
    serving.report(back)
    assert serving.serving.observe("flights") == [back]


@pytest.mark.parametrize("endpoint", ["", "..", "../other", "a/b", "UPPER", "a.json"])
def test_an_endpoint_without_a_proper_name_is_refused(serving: ServingBench, endpoint: str) -> None:
    for call in (
        lambda: serving.serving.publish(wanted(1, endpoint)),
        lambda: serving.serving.desired(endpoint),
        lambda: serving.serving.observe(endpoint),
    ):
        with pytest.raises(BadName):
            call()
