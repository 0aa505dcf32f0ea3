"""Both models on the same held-out rows: block by block, slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dropforge.domain.verdicts import LOWER_IS_BETTER, BlockScore
from dropforge.training.labels import Classes, Floats, Ints, Numbers, Target
from dropforge.training.metrics import CLASS_LOSSES, NUMBER_LOSSES, auc
from dropforge.training.split import Split

# A slice with fewer rows in the holdout says nothing; a column with more values than this is no slice.
_FEWEST_SLICE_ROWS = 20
_MOST_SLICES = 50


@dataclass(frozen=True)
class Answers:
    """What one model answered on the holdout. `probabilities` [rows, C] with `columns` saying where each class of the
    target stands, or `numbers` [rows]."""

    probabilities: Floats | None = None
    columns: Ints | None = None
    numbers: Floats | None = None

    @property
    def unusable_rows(self) -> Ints:
        """The rows that have no answer."""
        values = self.numbers.reshape(-1, 1) if self.numbers is not None else self.probabilities
        assert values is not None
        return np.flatnonzero(~np.isfinite(values).all(axis=1))


def baseline(target: Target, metric: str) -> Answers:
    """The constant that fits the metric best on train: class frequencies, the median or the mean."""
    if isinstance(target, Numbers):
        best = np.median(target.train) if metric == "mae" else np.mean(target.train)
        return Answers(numbers=np.full(len(target.holdout), best))
    frequencies = np.bincount(target.train, minlength=len(target.values)) / len(target.train)
    return Answers(np.tile(frequencies, (len(target.holdout), 1)), np.arange(len(target.values)))


def filled(answers: Answers, constant: Answers, target: Target) -> Answers:
    """The answers, with the constant baseline's where there is none: that is what no answer is worth."""
    rows = answers.unusable_rows
    if answers.numbers is not None and constant.numbers is not None:
        numbers = answers.numbers.copy()
        numbers[rows] = constant.numbers[rows]
        return Answers(numbers=numbers)
    assert answers.probabilities is not None
    assert answers.columns is not None
    assert constant.probabilities is not None
    probabilities = answers.probabilities.copy()
    probabilities[rows] = 0.0
    for code, column in enumerate(answers.columns):
        if column >= 0:
            probabilities[rows, column] = constant.probabilities[rows, code]
    return Answers(probabilities, answers.columns)


# Gives the metric over the rows that an index picks; None where it is not defined.
Measure: TypeAlias = Callable[[Ints], float | None]


def measure(metric: str, answers: Answers, target: Target) -> Measure:
    """How to take the metric over any set of holdout rows."""
    if metric == "auc":
        assert isinstance(target, Classes)
        scores, positive = _positive_scores(answers), (target.holdout == len(target.values) - 1).astype(np.int64)
        return lambda rows: auc(scores[rows], positive[rows])
    losses = row_losses(metric, answers, target)
    return lambda rows: float(losses[rows].mean())


def row_losses(metric: str, answers: Answers, target: Target) -> Floats:
    """The loss of each holdout row, for the metrics that are a mean over rows."""
    if isinstance(target, Numbers):
        assert answers.numbers is not None
        return NUMBER_LOSSES[metric](answers.numbers, target.holdout)
    assert answers.probabilities is not None
    assert answers.columns is not None
    losses = CLASS_LOSSES[metric](answers.probabilities, answers.columns[target.holdout])
    # With two classes the square of one of them, as usual. The label's classes, not a model's: one that was trained before
    # a class was new has fewer, and is measured by the same scale.
    return losses / 2.0 if metric == "brier" and len(target.values) == 2 else losses


def _positive_scores(answers: Answers) -> Floats:
    """The probability of the second of two classes: true, 1, or the later one in the alphabet."""
    assert answers.probabilities is not None
    assert answers.columns is not None
    column = int(answers.columns[-1])
    return answers.probabilities[:, column] if column >= 0 else np.zeros(len(answers.probabilities))


def block_scores(
    split: Split, slices: Sequence[str], metric: str, target: Target, champion: Answers, challenger: Answers
) -> tuple[tuple[BlockScore, ...], str]:
    """All rows first, then every slice; each in time order. Also a note on what was left out."""
    everything = np.arange(len(split.holdout))
    old, new = measure(metric, champion, target), measure(metric, challenger, target)
    scores = list(_by_block(split, None, everything, old, new))
    notes = []
    if len(scores) < len(split.blocks):
        notes.append(f"{metric} is not defined in {len(split.blocks) - len(scores)} of {len(split.blocks)} blocks")
    for column in slices:
        values, left_out = _slices(split.holdout.column(column))
        for value, rows in values:
            scores.extend(_by_block(split, f"{column}={value}", rows, old, new))
        if left_out:
            notes.append(f"{left_out} values of {column} are no slices (too few rows, or too many values)")
    return tuple(scores), "; ".join(notes)


def _by_block(split: Split, name: str | None, rows: Ints, old: Measure, new: Measure) -> Iterator[BlockScore]:
    order = rows[np.argsort(split.block_of[rows], kind="stable")]
    found, starts = np.unique(split.block_of[order], return_index=True)
    for block, part in zip(found, np.split(order, starts[1:]), strict=True):
        before, after = old(part), new(part)
        if before is not None and after is not None:
            yield BlockScore(split.blocks[block], name, len(part), before, after)


def _slices(column: pa.ChunkedArray) -> tuple[list[tuple[str, Ints]], int]:
    """The rows of each value with enough of them, and how many values were left out."""
    text = pc.fill_null(column.cast(pa.string()), "(empty)").combine_chunks().dictionary_encode()
    codes, names = text.indices.to_numpy(), text.dictionary.to_pylist()
    counts = np.bincount(codes, minlength=len(names))
    largest = [code for code in np.argsort(-counts, kind="stable")[:_MOST_SLICES] if counts[code] >= _FEWEST_SLICE_ROWS]
    kept = sorted((names[code], np.flatnonzero(codes == code)) for code in largest)
    return kept, len(names) - len(kept)


def summary_metrics(answers: Answers, target: Target) -> dict[str, float]:
    """Every metric that fits the label, over all holdout rows."""
    rows = np.arange(len(target.holdout))
    names = [*NUMBER_LOSSES] if isinstance(target, Numbers) else [*CLASS_LOSSES]
    if isinstance(target, Classes) and len(target.values) == 2:
        names.append("auc")
    values = {name: measure(name, answers, target)(rows) for name in names if name in LOWER_IS_BETTER}
    return {name: value for name, value in values.items() if value is not None}
