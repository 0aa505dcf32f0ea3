"""The metrics against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropforge.training import metrics

P = np.array([[0.75, 0.25], [0.25, 0.75], [1.0, 0.0]])


def test_log_loss_is_clipped_and_finite() -> None:
    losses = metrics.log_loss(P, np.array([0, 1, 1]))

    assert losses[:2] == pytest.approx([-np.log(0.75)] * 2)
    assert losses[2] == pytest.approx(-np.log(1e-7))


def test_a_certain_and_right_answer_costs_nothing() -> None:
    assert metrics.log_loss(P, np.array([0, 0, 0]))[2] == 0.0


def test_a_class_the_model_does_not_know_costs_most() -> None:
    assert metrics.log_loss(P, np.array([-1, -1, -1])) == pytest.approx([-np.log(1e-7)] * 3)
    assert metrics.error_rate(P, np.array([-1, -1, -1])).tolist() == [1, 1, 1]


def test_brier_sums_over_all_classes() -> None:
    assert metrics.brier(P, np.array([0, 0, 1])) == pytest.approx([0.125, 1.125, 2.0])
    assert metrics.brier(np.array([[0.5, 0.3, 0.2]]), np.array([1])) == pytest.approx([0.25 + 0.49 + 0.04])


def test_error_rate_takes_the_most_probable() -> None:
    assert metrics.error_rate(P, np.array([0, 0, 0])).tolist() == [0, 1, 0]


def test_errors_of_numbers() -> None:
    predicted, y = np.array([1.0, 4.0]), np.array([2.0, 1.0])

    assert metrics.mae(predicted, y).tolist() == [1, 3]
    assert metrics.mse(predicted, y).tolist() == [1, 9]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=30))
@settings(max_examples=60)
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[int, int]]) -> None:
    scores = np.array([score for score, _ in rows], dtype=np.float64)
    positive = np.array([truth for _, truth in rows], dtype=np.int64)
    ahead, behind = scores[positive == 1], scores[positive == 0]
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in ahead for b in behind]

    found = metrics.auc(scores, positive)

    assert found == (pytest.approx(np.mean(pairs)) if pairs else None)
