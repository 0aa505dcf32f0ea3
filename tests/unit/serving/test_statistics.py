"""Triton's statistics of batches."""

from __future__ import annotations

import pytest

from dropforge.serving.metrics import Counts
from dropforge.serving.statistics import Spent, Statistics


def spent(began: float, ran: float, ended: float, *runs: tuple[int, float]) -> Spent:
    made = Spent(began)
    made.ran, made.ended = ran, ended
    made.runs.extend(runs)
    return made


def test_a_batch_counts_for_each_of_its_requests_and_once_for_its_size() -> None:
    statistics, counts = Statistics(), Counts()
    # Three requests of eight rows: 2 ms of input, 5 of inference, 1 of output.
    statistics.add(3, 0.006, spent(10.0, 10.007, 10.008, (8, 0.005)))
    for _ in range(3):
        counts.add(0.01, False)
    told = statistics.told("flights", 2, counts)
    assert (told["name"], told["version"]) == ("flights", "2")
    assert (told["inference_count"], told["execution_count"]) == (8, 1)
    stats = {name: (each["count"], each["ns"]) for name, each in told["inference_stats"].items()}
    assert stats["success"] == (3, 30_000_000)
    assert stats["queue"] == (3, 6_000_000)
    assert stats["compute_input"] == (3, pytest.approx(6_000_000, abs=10))
    assert stats["compute_infer"] == (3, 15_000_000)
    assert stats["compute_output"] == (3, pytest.approx(3_000_000, abs=10))
    (size,) = told["batch_stats"]
    assert (size["batch_size"], size["compute_infer"]) == (8, {"count": 1, "ns": 5_000_000})
    assert size["compute_input"] == {"count": 1, "ns": pytest.approx(2_000_000, abs=10)}


def test_a_batch_of_several_shapes_is_several_executions() -> None:
    statistics = Statistics()
    statistics.add(3, 0.0, spent(0.0, 0.004, 0.004, (2, 0.001), (1, 0.001)))
    told = statistics.told("m", 1, None)
    assert (told["inference_count"], told["execution_count"]) == (3, 2)
    assert [each["batch_size"] for each in told["batch_stats"]] == [1, 2]
    assert {each["compute_input"]["ns"] for each in told["batch_stats"]} == {1_000_000}


def test_what_failed_is_told_apart_and_runs_nothing() -> None:
    statistics, counts = Statistics(), Counts()
    statistics.add(1, 0.1, spent(0.0, 0.1, 0.1))
    counts.add(0.2, True)
    told = statistics.told("m", 1, counts)
    assert (told["inference_stats"]["fail"], told["inference_stats"]["success"]["count"]) == (
        {"count": 1, "ns": 200_000_000},
        0,
    )
    assert (told["execution_count"], told["last_inference"], told["batch_stats"]) == (0, 0, [])


def test_however_many_sizes_callers_choose_few_are_kept() -> None:
    statistics = Statistics()
    for rows in range(1, 5000):
        statistics.add(1, 0.0, spent(0.0, 0.0, 0.0, (rows, 0.0)))
    assert len(statistics.sizes) < 270
    assert {512, 8192} <= statistics.sizes.keys()
