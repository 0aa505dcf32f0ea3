"""What an endpoint answers with, and the swap."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.domain.endpoints import Deployment, Desired
from dropforge.domain.errors import BadInput, DropforgeError, NotFound
from dropforge.serving.models import ModelFailed
from dropforge.serving.slots import KEPT_COUNTS, Lineup, Slot, line_up
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import deployment

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def desired(*deployments: Deployment, revision: int = 1) -> Desired:
    return Desired("flights", revision, deployments, NOW)


def lined_up(*deployments: Deployment, revision: int = 1) -> Lineup:
    return line_up(desired(*deployments, revision=revision), (), None)[0]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Deployment, Deployment]:
    return deployment(tmp_path, onnx_models.scaled(1), 1, 90), deployment(tmp_path, onnx_models.scaled(2), 2, 10)


def test_traffic_is_split_by_percent(two: tuple[Deployment, Deployment]) -> None:
    lineup = lined_up(*two)
    counts = Counter(lineup.choose(f"request {i}").deployment.version for i in range(5000))
    assert 350 < counts[2] < 650
    counts = Counter(lineup.choose(None).deployment.version for _ in range(5000))
    assert 350 < counts[2] < 650


@given(request_id=st.text(), before=st.integers(0, 100), after=st.integers(0, 100))
def test_more_traffic_for_a_deployment_takes_no_request_id_away_from_it(
    request_id: str, before: int, after: int
) -> None:
    def second(percent: int) -> bool:
        lineup = Lineup(
            desired(Deployment("m", 1, "", "", 1, 100 - percent), Deployment("m", 2, "", "", 1, percent)), ()
        )
        lineup.models = ("first", "second")  # type: ignore[assignment]
        return lineup.choose(request_id) == "second"  # type: ignore[comparison-overlap]

    assert second(min(before, after)) <= second(max(before, after))


def test_a_deployment_without_traffic_answers_those_who_name_it(tmp_path: Path) -> None:
    lineup = lined_up(deployment(tmp_path, onnx_models.scaled(1), 1), deployment(tmp_path, onnx_models.scaled(2), 2, 0))
    assert {lineup.choose(None).deployment.version for _ in range(300)} == {1}
    assert lineup.version("2").deployment.version == 2
    with pytest.raises(NotFound, match=r"version '3' is not loaded; choose from \['1', '2'\]"):
        lineup.version("3")


@pytest.mark.parametrize("percents", [(), (50, 40), (150, -50)])
def test_traffic_that_does_not_sum_to_100_is_refused(tmp_path: Path, percents: tuple[int, ...]) -> None:
    given = [deployment(tmp_path, onnx_models.scaled(i), i, percent) for i, percent in enumerate(percents)]
    with pytest.raises(BadInput, match="wants percents that sum to 100, found"):
        lined_up(*given)


def test_one_version_twice_is_refused(two: tuple[Deployment, Deployment]) -> None:
    with pytest.raises(BadInput, match="names a version twice"):
        lined_up(two[0], replace(two[1], version=1))


def test_what_is_loaded_is_used_again_when_only_the_traffic_moves(two: tuple[Deployment, Deployment]) -> None:
    first = lined_up(*two)
    Path(two[0].uri.removeprefix("file://")).unlink()
    moved = desired(replace(two[0], traffic=50), replace(two[1], traffic=50), revision=2)
    second, detail = line_up(moved, first.models, None)
    assert (second.models, detail) == (first.models, {})
    slot = Slot("flights", NOW)
    slot.swap(first, {})
    slot.swap(second, {})
    assert (slot.swaps, slot.state("r", NOW).revision) == (0, 2)


def test_a_deployment_that_does_not_load_takes_the_whole_revision_with_it(two: tuple[Deployment, Deployment]) -> None:
    with pytest.raises(DropforgeError):
        lined_up(two[0], replace(two[1], sha256="00"))


def test_a_changed_signature_is_told(tmp_path: Path) -> None:
    first = lined_up(deployment(tmp_path, onnx_models.scaled(1), 1))
    other = replace(desired(deployment(tmp_path, onnx_models.scaled(1, width=4), 2), revision=2), signature="any")
    _, detail = line_up(other, first.models, {"x": np.ones((1, 3), np.float32)})
    assert detail["signature"].startswith("inputs changed from ['x FP32[-1, 3]'] to ['x FP32[-1, 4]']; outputs changed")
    assert detail["warm_up_v2"] == "answered made-up rows"


def test_a_model_that_cannot_answer_what_the_one_before_it_did_is_not_lined_up(tmp_path: Path) -> None:
    current = lined_up(deployment(tmp_path, onnx_models.picky(5), 1))
    with pytest.raises(ModelFailed):
        line_up(
            desired(deployment(tmp_path, onnx_models.picky(4), 2), revision=2),
            current.models,
            {"x": np.array([4], np.int64)},
        )


def test_a_slot_reports_what_serves_and_what_is_wanted(two: tuple[Deployment, Deployment]) -> None:
    slot = Slot("flights", NOW)
    slot.wanted = desired(*two, revision=7)
    assert (slot.state("r", NOW).ready, slot.state("r", NOW).wanted_revision, slot.state("r", NOW).revision) == (
        False,
        7,
        0,
    )
    lineup = lined_up(*two, revision=7)
    assert slot.swap(lineup, {"a": "b"}) is None
    slot.count(lineup.models[0], [0.001])
    slot.count(lineup.models[1], [0.001], failed=True)
    state = slot.state("r", NOW)
    assert (state.ready, state.revision, state.versions, state.requests, state.failed) == (True, 7, (1, 2), 2, 1)
    assert state.detail == {"a": "b", "requests_v1": "1", "failed_v1": "0", "requests_v2": "1", "failed_v2": "1"}


def test_counts_of_versions_that_are_gone_do_not_pile_up(tmp_path: Path) -> None:
    slot = Slot("flights", NOW)
    data = onnx_models.scaled(1)
    for version in range(1, 40):
        lineup = lined_up(deployment(tmp_path, data, version), revision=version)
        slot.swap(lineup, {})
        slot.count(lineup.models[0], [0.001])
    assert (slot.requests, slot.swaps, len(slot.counts)) == (39, 38, KEPT_COUNTS + 1)
    assert ("flights", 39) in slot.counts


def test_nothing_piles_up_of_versions_that_nobody_asked(tmp_path: Path) -> None:
    slot = Slot("flights", NOW)
    data = onnx_models.scaled(1)
    asked = lined_up(deployment(tmp_path, data, 1))
    slot.swap(asked, {})
    slot.count(asked.models[0], [0.001])
    for version in range(2, 40):
        slot.swap(lined_up(deployment(tmp_path, data, version), revision=version), {})
    assert [version for _, version in slot.statistics] == [1, *range(40 - KEPT_COUNTS - 1, 40)]


def test_a_model_that_comes_back_was_not_idle_meanwhile_and_one_that_stays_was(
    two: tuple[Deployment, Deployment],
) -> None:
    slot = Slot("flights", NOW)
    first = lined_up(replace(two[0], traffic=100))
    slot.swap(first, {})
    statistics = first.models[0].statistics
    statistics.last_at = statistics.here_since = 1.0
    slot.swap(line_up(desired(*two, revision=2), first.models, None)[0], {})
    assert statistics.idle_since == 1.0
    slot.empty("it made room for others")
    before = time.perf_counter()
    slot.swap(lined_up(*two, revision=2), {})
    assert slot.here().models[0].statistics is statistics
    assert statistics.idle_since >= before
    # Nobody has asked it since.
    assert statistics.last_at == 1.0
