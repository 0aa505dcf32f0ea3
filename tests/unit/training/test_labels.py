"""Classes or numbers, and which output column belongs to which class."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from dropforge.training.contract import ExitCode, NodeFailed
from dropforge.training.labels import Classes, Numbers, class_columns, resolve_metric, target_of
from dropforge.training.split import Split


def parts(train: pa.Array, holdout: pa.Array) -> Split:
    return Split(
        pa.table({"y": train}), pa.table({"y": holdout}), ("b",), np.zeros(len(holdout), np.int64), 0, "", "", ""
    )


def classes(train: list[object], holdout: list[object], metric: str = "log_loss") -> Classes:
    target = target_of(parts(pa.array(train), pa.array(holdout)), "y", metric)
    assert isinstance(target, Classes)
    return target


@pytest.mark.parametrize(
    ("values", "metric"),
    [
        ([True, False, None], "log_loss"),
        ([0, 1, None], "log_loss"),
        (["a", "b"], "log_loss"),
        (list(range(20)), "log_loss"),
        (list(range(21)), "mae"),
        ([0.0, 1.0], "mae"),
    ],
)
def test_auto_looks_at_the_label(values: list[object], metric: str) -> None:
    assert resolve_metric("auto", pa.chunked_array([pa.array(values)]), "y") == metric


def test_many_texts_are_no_classes_for_auto() -> None:
    with pytest.raises(NodeFailed, match="text with 21 distinct values") as failed:
        resolve_metric("auto", pa.chunked_array([pa.array([f"v{n}" for n in range(21)])]), "y")

    assert failed.value.exit_code is ExitCode.DATA_UNUSABLE


def test_classes_are_sorted_and_a_new_one_in_the_holdout_has_a_code() -> None:
    target = classes(["cat", "ant", "cat"], ["bee", "cat"])

    assert target.values == ("ant", "bee", "cat")
    assert target.trained == ("ant", "cat")
    assert target.train.tolist() == [2, 0, 2]
    assert target.holdout.tolist() == [1, 2]


def test_truth_values_and_whole_floats_are_classes_0_and_1() -> None:
    assert classes([True, False], [True]).values == (0, 1)
    assert classes([1.0, 0.0], [1.0]).values == (0, 1)


@pytest.mark.parametrize(
    ("train", "holdout", "metric", "words"),
    [
        ([1, 1, 1], [0], "log_loss", "'y' is 1 in all 3 training rows"),
        ([0.5, 1.0], [1.0], "brier", "needs classes"),
        (["a", "b", "c"], ["a"], "auc", "3 classes; metric 'auc' compares exactly two"),
        (["a", "b"], ["a"], "mae", "needs numbers"),
    ],
)
def test_labels_that_do_not_fit_the_metric_are_refused(
    train: list[object], holdout: list[object], metric: str, words: str
) -> None:
    with pytest.raises(NodeFailed, match=words) as failed:
        target_of(parts(pa.array(train), pa.array(holdout)), "y", metric)

    assert failed.value.exit_code is ExitCode.DATA_UNUSABLE


def test_numbers_are_numbers() -> None:
    target = target_of(parts(pa.array([1, 2]), pa.array([2.5])), "y", "mse")

    assert isinstance(target, Numbers)
    assert target.train.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("train", "columns", "declared", "found"),
    [
        ([0, 1, 1], 2, None, [0, 1]),
        ([0, 2], 3, None, [0, 2]),
        ([True, False], 2, None, [0, 1]),
        ([3, 7], 2, None, [0, 1]),
        (["no", "yes"], 2, None, [0, 1]),
        (["no", "yes"], 3, ["yes", "no", "maybe"], [1, 0]),
        ([True, False], 2, ["True", "False"], [1, 0]),
        ([0, 1], 2, [1.0, 0.0], [1, 0]),
        (["a", "b"], 2, ["a", "c"], [0, -1]),
    ],
)
def test_columns_of_the_output_are_matched_to_classes(
    train: list[object], columns: int, declared: list[object] | None, found: list[int]
) -> None:
    assert class_columns(classes(train, train[:1]), columns, declared).tolist() == found


def test_too_few_columns_are_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"gives 2 probabilities a row for the classes \['a', 'b', 'c'\].*'classes'"):
        class_columns(classes(["a", "b", "c"], ["a"]), 2, None)
