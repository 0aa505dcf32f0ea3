"""Both models on the same rows, block by block and slice by slice."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from dropforge.training import evidence
from dropforge.training.evidence import Answers
from dropforge.training.labels import Classes, Numbers
from dropforge.training.split import Split


def classes(holdout: list[int], train: list[int] | None = None) -> Classes:
    return Classes((0, 1), np.array(train or [0, 0, 0, 1]), np.array(holdout))


def answers(chances: list[float]) -> Answers:
    p = np.array(chances)
    return Answers(np.stack([1 - p, p], axis=1), np.array([0, 1]))


def holdout(blocks: list[int], shops: list[str | None]) -> Split:
    table = pa.table({"shop": pa.array(shops, pa.string())})
    names = tuple(f"day {block}" for block in sorted(set(blocks)))
    return Split(table.slice(0, 0), table, names, np.array(blocks), 0, "", "", "")


def test_scores_are_the_means_of_each_block() -> None:
    parts = holdout([0, 0, 1], ["n", "n", "n"])
    target = classes([1, 0, 1])

    scores, note = evidence.block_scores(parts, (), "brier", target, answers([0.5, 0.5, 0.5]), answers([1.0, 0.5, 0.9]))

    assert [(s.block, s.slice, s.rows, s.champion) for s in scores] == [
        ("day 0", None, 2, 0.25),
        ("day 1", None, 1, 0.25),
    ]
    assert [s.challenger for s in scores] == pytest.approx([0.125, 0.01])
    assert note == ""


@pytest.mark.parametrize("values", [(0, 1), (0, 1, 2)])
def test_brier_measures_models_of_two_and_of_three_classes_alike(values: tuple[int, ...]) -> None:
    target = Classes(values, np.array([0, 1]), np.array([0, 1]))
    known = np.arange(len(values))
    two = Answers(np.array([[0.8, 0.2], [0.8, 0.2]]), np.where(known < 2, known, -1))
    three = Answers(np.array([[0.8, 0.2, 0.0], [0.8, 0.2, 0.0]]), known)

    losses = evidence.row_losses("brier", two, target)

    assert losses == pytest.approx(evidence.row_losses("brier", three, target))
    assert losses == pytest.approx([0.04, 0.64] if len(values) == 2 else [0.08, 1.28])


def test_slices_with_enough_rows_are_scored_and_the_others_counted() -> None:
    shops: list[str | None] = (["north"] * 25 + ["south"] * 25 + [None] * 25 + ["rare"] * 3) * 2
    blocks = [0] * 78 + [1] * 78
    target = classes([0, 1] * 78)
    same = answers([0.3] * 156)

    scores, note = evidence.block_scores(holdout(blocks, shops), ("shop",), "log_loss", target, same, same)

    assert [(s.slice, s.block, s.rows) for s in scores if s.slice] == [
        (f"shop={shop}", block, 25) for shop in ("(empty)", "north", "south") for block in ("day 0", "day 1")
    ]
    assert "1 values of shop are no slices" in note


def test_slice_rows_add_up_to_all_rows_whatever_their_order() -> None:
    rng = np.random.default_rng(0)
    blocks = np.sort(rng.integers(0, 4, 400))
    shops = [["a", "b", "c"][n] for n in rng.integers(0, 3, 400)]
    target = Numbers(np.ones(3), rng.normal(size=400))
    old, new = (Answers(numbers=rng.normal(size=400)) for _ in range(2))

    scores, _ = evidence.block_scores(holdout(blocks.tolist(), shops), ("shop",), "mae", target, old, new)

    for block in {score.block for score in scores}:
        whole = next(s for s in scores if s.block == block and s.slice is None)
        parts = [s for s in scores if s.block == block and s.slice is not None]
        assert sum(s.rows for s in parts) == whole.rows
        assert sum(s.rows * s.challenger for s in parts) / whole.rows == pytest.approx(whole.challenger)


def test_a_block_where_auc_means_nothing_is_left_out() -> None:
    parts = holdout([0, 0, 1, 1], ["n"] * 4)

    scores, note = evidence.block_scores(
        parts, (), "auc", classes([0, 1, 1, 1]), answers([0.5] * 4), answers([0.1, 0.9, 0.5, 0.5])
    )

    assert [(s.block, s.champion, s.challenger) for s in scores] == [("day 0", 0.5, 1.0)]
    assert note == "auc is not defined in 1 of 2 blocks"


@pytest.mark.parametrize(("metric", "constant"), [("mae", 2.0), ("mse", 4.0)])
def test_the_baseline_of_numbers_fits_the_metric(metric: str, constant: float) -> None:
    target = Numbers(np.array([1.0, 2.0, 9.0]), np.zeros(2))
    found = evidence.baseline(target, metric)

    assert found.numbers is not None
    assert found.numbers.tolist() == [constant] * 2


def test_the_baseline_of_classes_is_their_share_in_train() -> None:
    found = evidence.baseline(classes([1, 0]), "log_loss")

    assert found.probabilities is not None
    assert found.probabilities.tolist() == [[0.75, 0.25]] * 2


def test_rows_without_an_answer_get_the_baseline_by_class_not_by_place() -> None:
    target = classes([1, 0])
    turned = Answers(np.array([[np.nan, np.nan], [0.9, 0.1]]), np.array([1, 0]))

    found = evidence.filled(turned, evidence.baseline(target, "log_loss"), target)

    assert turned.unusable_rows.tolist() == [0]
    assert found.probabilities is not None
    assert found.probabilities.tolist() == [[0.25, 0.75], [0.9, 0.1]]
    assert found.unusable_rows.tolist() == []


def test_a_summary_holds_every_metric_that_fits() -> None:
    target = classes([1, 0, 1])

    found = evidence.summary_metrics(answers([0.9, 0.2, 0.4]), target)

    assert set(found) == {"log_loss", "brier", "error_rate", "auc"}
    assert found["auc"] == 1.0
    assert found["error_rate"] == pytest.approx(1 / 3)
    assert set(evidence.summary_metrics(Answers(numbers=np.ones(1)), Numbers(np.ones(1), np.ones(1)))) == {"mae", "mse"}
