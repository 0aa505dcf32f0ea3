"""What is predicted: classes or numbers, and by which metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dropforge.training.contract import ExitCode, NodeFailed
from dropforge.training.split import Split

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

CLASS_METRICS = ("log_loss", "brier", "error_rate", "auc")
NUMBER_METRICS = ("mae", "mse")
_MOST_CLASSES = 20


@dataclass(frozen=True)
class Classes:
    """A label with classes. Codes index `values`, which are sorted and hold every class of train and holdout."""

    values: tuple[int | str, ...]
    train: Ints
    holdout: Ints

    @property
    def trained(self) -> tuple[int | str, ...]:
        """The classes that occur in train, sorted."""
        return tuple(self.values[code] for code in np.unique(self.train))


@dataclass(frozen=True)
class Numbers:
    """A label that is a quantity."""

    train: Floats
    holdout: Floats


Target: TypeAlias = Classes | Numbers


def resolve_metric(metric: str, column: pa.ChunkedArray, label: str) -> str:
    """`auto` made definite by looking at the label: few distinct texts, whole numbers or truth values are classes."""
    if metric != "auto":
        return metric
    kind = column.type
    if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_string(kind)):
        return "mae"
    distinct = len(pc.unique(pc.drop_null(column)))
    if distinct <= _MOST_CLASSES:
        return "log_loss"
    if pa.types.is_string(kind):
        raise NodeFailed(
            ExitCode.DATA_UNUSABLE,
            f"label {label!r} is text with {distinct} distinct values: too many for `metric: auto` to take as classes "
            f"(at most {_MOST_CLASSES}); choose another label, or name the metric in pipeline.yaml",
        )
    return "mae"


def target_of(split: Split, label: str, metric: str) -> Target:
    """The labels of train and holdout, as the metric needs them. Raises `NodeFailed` when they cannot be that."""
    train, holdout = split.train.column(label), split.holdout.column(label)
    if metric in CLASS_METRICS:
        return _classes(train, holdout, label, metric)
    if metric not in NUMBER_METRICS:
        raise NodeFailed(
            ExitCode.SPEC_WRONG,
            f"evaluation.metric {metric!r} is none of {', '.join((*CLASS_METRICS, *NUMBER_METRICS))}",
        )
    kind = train.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise NodeFailed(ExitCode.DATA_UNUSABLE, f"label {label!r} is {kind}; metric {metric!r} needs numbers")
    return Numbers(_numbers(train), _numbers(holdout))


def _numbers(column: pa.ChunkedArray) -> Floats:
    values: Floats = column.cast(pa.float64(), safe=False).to_numpy()
    return values


def _classes(train: pa.ChunkedArray, holdout: pa.ChunkedArray, label: str, metric: str) -> Classes:
    kind = train.type
    if not (pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        train, holdout = _whole(train, label, metric), _whole(holdout, label, metric)
    if pa.types.is_boolean(kind):
        train, holdout = train.cast(pa.int64()), holdout.cast(pa.int64())
    values = sorted(pc.unique(pa.chunked_array([*train.chunks, *holdout.chunks])).to_pylist())
    index = pa.array(values, train.type)
    target = Classes(
        tuple(values),
        *(pc.index_in(part, value_set=index).to_numpy().astype(np.int64) for part in (train, holdout)),
    )
    if len(target.trained) < 2:
        raise NodeFailed(
            ExitCode.DATA_UNUSABLE,
            f"label {label!r} is {target.trained[0]!r} in all {len(target.train)} training rows; "
            f"two classes are needed to learn to tell them apart",
        )
    if metric == "auc" and len(values) > 2:
        raise NodeFailed(
            ExitCode.DATA_UNUSABLE, f"label {label!r} has {len(values)} classes; metric 'auc' compares exactly two"
        )
    return target


def _whole(column: pa.ChunkedArray, label: str, metric: str) -> pa.ChunkedArray:
    """Class numbers that a file wrote as 0.0 and 1.0."""
    try:
        return column.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise NodeFailed(
            ExitCode.DATA_UNUSABLE,
            f"label {label!r} is {column.type}; metric {metric!r} needs classes: text, whole numbers or true/false",
        ) from error


def class_columns(target: Classes, columns: int, declared: Sequence[Any] | None) -> Ints:
    """For each of the target's classes the column of a model's output that holds its probability; -1: none does.

    `declared` is what the model itself says (`classes` in its metadata). Otherwise labels 0..C-1 are column numbers,
    and other labels stand in sorted order. Raises `ValueError` when there are not as many classes as columns.
    """
    if declared is None:
        trained = target.trained
        direct = all(isinstance(value, int) and 0 <= value < columns for value in trained)
        declared = range(columns) if direct else trained
    if len(declared) != columns:
        raise ValueError(
            f"it gives {columns} probabilities a row for the classes {list(declared)}; "
            "name the classes as a JSON list in the metadata property 'classes' of the ONNX model"
        )
    place = {_key(value): index for index, value in enumerate(declared)}
    return np.array([place.get(_key(value), -1) for value in target.values], dtype=np.int64)


def _key(value: Any) -> str:
    """0, 0.0, false and "0" are the same class: a label's type may change between JSON, Arrow and Python."""
    if isinstance(value, bool | int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    text = str(value)
    return {"true": "1", "false": "0"}.get(text.lower(), text)
