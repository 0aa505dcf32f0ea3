"""Do the rows of a model change each other's answers? Only where they do not, requests are run together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dropforge.serving.models import Model, ModelFailed, made_up
from dropforge.serving.tensors import Array, Feeds

# Rows that are compared, rows that are tried for that, and rows of the largest batch.
ROWS = 6
TRIES = 32
LARGE = 33


def prove_batching(model: Model, sample: Feeds | None) -> str:
    """Find out whether rows may be run together without changing each other's answers, and let them be if so; in words.

    A model may mix its rows (normalise over the batch, rank them): its declared shapes do not tell. So rows that differ in
    every input, and that are answered differently, are answered one by one, and in company that changes, in another order
    and in a larger batch; they must get the same each time. Rows that are all alike show nothing: then requests are not run
    together.
    """
    if not model.inputs or any(
        not tensor.dims or isinstance(tensor.dims[0], int) for tensor in (*model.inputs, *model.outputs)
    ):
        return "runs requests one by one: its first dimension is not the rows"
    names = [tensor.name for tensor in model.outputs]
    rows, alone = _answered_rows(model, names, sample)
    if not rows:
        return "runs requests one by one: made-up rows were not answered"
    alike = [name for name in rows[0] if not _differ([row[name] for row in rows])]
    if alike:
        return f"runs requests one by one: no two rows could be made that differ in {', '.join(alike)}"
    if not any(_differ([answer[place] for answer in alone]) for place in range(len(names))):
        return "runs requests one by one: all rows that were tried got the same answer"
    count = len(rows)
    orders = [list(range(count)), [*reversed(range(count)), 0], [0, count - 1], [each % count for each in range(LARGE)]]
    for order in orders:
        try:
            together = _split(model.try_run(names, _stacked([rows[each] for each in order])), len(order))
        except (ModelFailed, ValueError) as error:
            return f"runs requests one by one: rows that were answered alone were not together ({error})"
        for each, answer in zip(order, together, strict=True):
            if not all(_alike(one, another) for one, another in zip(alone[each], answer, strict=True)):
                return "runs requests one by one: rows change each other's answers"
    model.let_batch()
    return "runs requests together"


def _answered_rows(model: Model, names: list[str], sample: Feeds | None) -> tuple[list[Feeds], list[list[Array]]]:
    """Requests of one row that the model answers, as different as can be made, and its answers."""
    random = np.random.default_rng(0)
    seen = (
        sample if sample is not None and model.accepts(sample) else {each.name: made_up(each) for each in model.inputs}
    )
    rows: list[Feeds] = []
    alone: list[list[Array]] = []
    for number in range(TRIES):
        row = {
            # The first row is as it was seen. Of an input that takes few values only some may be changed at a time.
            name: array[:1] if number == 0 or random.random() < 0.25 else _varied(array, random)
            for name, array in seen.items()
        }
        try:
            answer = model.try_run(names, row)
        except ModelFailed:
            continue
        rows.append(row)
        alone.append(answer)
        if len(rows) >= ROWS and all(_differ([each[name] for each in rows]) for name in seen) and _any_differ(alone):
            break
    return rows, alone


def _varied(array: Array, random: np.random.Generator) -> Array:
    """A row like those of an array, with other values."""
    shape, kind = (1, *array.shape[1:]), array.dtype.kind
    if kind == "f":
        # Of any size: where a model decides, nobody knows.
        limit = 4 if array.dtype.itemsize > 2 else 2
        shaken = array[:1] * random.uniform(0.5, 2.0) + random.normal(size=shape) * 10 ** random.uniform(-1, limit)
        return np.asarray(shaken, array.dtype)
    if kind == "b":
        return random.integers(0, 2, shape).astype(array.dtype)
    # Small numbers and texts that were seen: others may be categories that the model does not know.
    few: list[Any] = ["", "a"] if kind == "O" else [0, 1, 2, 3]
    known = [*dict.fromkeys(array.ravel()[:100].tolist()), *few]
    picked = random.integers(0, len(known), shape)
    return np.array([known[each] for each in picked.ravel()], array.dtype).reshape(shape)


def _any_differ(answers: Sequence[list[Array]]) -> bool:
    return any(_differ([answer[place] for answer in answers]) for place in range(len(answers[0])))


def _differ(arrays: Sequence[Array]) -> bool:
    """Whether they are not all equal."""
    first = arrays[0]
    return not all(np.array_equal(each, first, equal_nan=first.dtype.kind == "f") for each in arrays)


def _stacked(rows: Sequence[Feeds]) -> Feeds:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _split(arrays: Sequence[Array], rows: int) -> list[list[Array]]:
    """The answers of each row. Raises `ValueError` when there are not so many."""
    if any(array.ndim == 0 or array.shape[0] != rows for array in arrays):
        raise ValueError(f"asked about {rows} rows, answers of shapes {[array.shape for array in arrays]}")
    return [[array[row : row + 1] for array in arrays] for row in range(rows)]


def _alike(one: Array, another: Array) -> bool:
    """Equal but for the last bits, which the order of a sum may change."""
    if one.shape != another.shape or one.dtype != another.dtype:
        return False
    if one.dtype.kind == "f":
        tolerance = 1e-2 if one.dtype.itemsize == 2 else 1e-4
        largest = np.abs(one[np.isfinite(one)]).max(initial=0.0)
        return bool(np.allclose(one, another, rtol=tolerance, atol=tolerance / 10 * largest, equal_nan=True))
    return bool(np.array_equal(one, another))
