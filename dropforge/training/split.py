"""Rows in time order, cut into blocks; the newest blocks are held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dropforge.domain.runs import EvaluationPlan
from dropforge.training.contract import ExitCode, NodeFailed
from dropforge.training.table import ARRIVED_AT, SOURCE, Roles

Ints = npt.NDArray[np.int64]

# In microseconds.
_HOUR = 3_600_000_000
_DAY = 24 * _HOUR
# 1970-01-01 was a Thursday; ISO weeks start on Monday.
_DAYS_TO_MONDAY = 3
_HOLDOUT_SHARE = 0.3
# After these, weeks and years begin on the same days again.
_YEARS_OF_CYCLE, _WEEKS_OF_CYCLE = 400, 20_871


@dataclass(frozen=True)
class Split:
    """Train and holdout, both in time order. `block_of` gives for each holdout row its index in `blocks`."""

    train: pa.Table
    holdout: pa.Table
    blocks: tuple[str, ...]
    block_of: Ints
    unlabelled_rows: int
    holdout_from: str
    holdout_to: str
    note: str


def split(table: pa.Table, roles: Roles, plan: EvaluationPlan, seed: int) -> Split:
    """Hold out the newest blocks. Rows without a label take no part. Raises `NodeFailed` when no row is left to learn
    from or to judge on."""
    labelled = table.filter(has_label(table.column(roles.label)))
    unlabelled = len(table) - len(labelled)
    if len(labelled) < 2:
        raise NodeFailed(
            ExitCode.DATA_UNUSABLE,
            f"{len(labelled)} of {len(table)} rows have a value in the label {roles.label!r}; at least 2 are needed",
        )
    times, order = _time_order(labelled, roles.event_time)
    blocks = _blocks_of_unit(times, plan)
    one_block = blocks.keys[0] == blocks.keys[-1]
    if one_block or plan.block.startswith("rows:"):
        order = _ties_at_random(times, order, seed)
    blocks = _one_block(len(times), plan, bool(times[0] == times[-1])) if one_block else blocks
    keys = blocks.keys
    cut = int(np.searchsorted(keys, blocks.first_held))
    held_keys, block_of = np.unique(keys[cut:], return_inverse=True)
    ordered = labelled.take(pa.array(order))
    return Split(
        train=ordered.slice(0, cut),
        holdout=ordered.slice(cut),
        blocks=tuple(blocks.name(int(key)) for key in held_keys),
        block_of=block_of.astype(np.int64),
        unlabelled_rows=unlabelled,
        holdout_from=_iso(times[cut:].min()),
        holdout_to=_iso(times[cut:].max()),
        note=blocks.note,
    )


def has_label(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which rows have a label: not null, not NaN or infinite, not empty text."""
    if pa.types.is_floating(column.type):
        return pc.fill_null(pc.is_finite(column), False)
    if pa.types.is_string(column.type):
        return pc.fill_null(pc.not_equal(column, ""), False)
    return pc.is_valid(column)


def event_times(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """The column as UTC timestamps in microseconds. Times without a zone are taken as UTC. Raises `NodeFailed`."""
    utc = pa.timestamp("us", tz="UTC")
    kind = column.type
    try:
        if pa.types.is_timestamp(kind) and kind.tz is None:
            return column.cast(pa.timestamp("us"), safe=False).cast(utc)
        if pa.types.is_timestamp(kind):
            return column.cast(utc, safe=False)
        if pa.types.is_date(kind) or pa.types.is_null(kind):
            return column.cast(pa.timestamp("us")).cast(utc)
        if pa.types.is_string(kind):
            return _parsed(column, utc)
    except pa.ArrowInvalid as error:
        raise NodeFailed(ExitCode.DATA_UNUSABLE, f"event_time: column {name!r} holds no times: {error}") from error
    raise NodeFailed(
        ExitCode.SPEC_WRONG, f"event_time: column {name!r} is {kind}; wanted a timestamp, a date or ISO 8601 text"
    )


def _parsed(column: pa.ChunkedArray, utc: pa.DataType) -> pa.ChunkedArray:
    try:
        return column.cast(utc)
    except pa.ArrowInvalid:
        # Arrow wants every text with a zone, or none.
        return column.cast(pa.timestamp("us")).cast(utc)


def _time_order(table: pa.Table, event_time: str | None) -> tuple[Ints, Ints]:
    """Times in ascending order (microseconds since 1970), and the row each belongs to. Rows of equal time keep the
    order of their file; a row without an event time counts from when it arrived."""
    arrived = event_times(table.column(ARRIVED_AT), ARRIVED_AT) if ARRIVED_AT in table.column_names else None
    if event_time is None:
        if arrived is None:
            raise NodeFailed(ExitCode.SPEC_WRONG, f"no event_time is named and the table has no {ARRIVED_AT!r} column")
        time = arrived
    else:
        time = event_times(table.column(event_time), event_time)
        time = time if arrived is None else pc.coalesce(time, arrived)
    source = table.column(SOURCE) if SOURCE in table.column_names else pa.nulls(len(table), pa.string())
    # A row without any time is the oldest.
    keys = pa.table({"time": pc.fill_null(time.cast(pa.int64()), 0), "source": source})
    order = pc.sort_indices(keys, sort_keys=[("time", "ascending"), ("source", "ascending")])
    return keys.column("time").take(order).to_numpy(), order.to_numpy().astype(np.int64)


def _ties_at_random(times: Ints, order: Ints, seed: int) -> Ints:
    """Rows of equal time have no order: a file sorted by class must not put one class in the holdout alone."""
    shuffle = np.random.default_rng(seed).permutation(len(order))
    return order[shuffle[np.argsort(times[shuffle], kind="stable")]]


@dataclass(frozen=True)
class _Blocks:
    """The block of each row as a key that never falls, from which key on blocks are held out, and what they are called."""

    keys: Ints
    first_held: int
    name: Callable[[int], str]
    note: str = ""


def _blocks_of_unit(times: Ints, plan: EvaluationPlan) -> _Blocks:
    keys, name = _keys(times, plan.block)
    unique = np.unique(keys)
    wanted, note = plan.holdout_blocks, ""
    if len(unique) < 2 * wanted:
        wanted = max(1, len(unique) // 2)
        note = f"only {len(unique)} blocks so far: the newest {wanted} are held out instead of {plan.holdout_blocks}"
    return _Blocks(keys, int(unique[-wanted]), name, note)


def _keys(times: Ints, block: str) -> tuple[Ints, Callable[[int], str]]:
    if block.startswith("rows:"):
        size = int(block.removeprefix("rows:"))
        # Counted from the newest row, so that every held-out block is full. The rows left over belong to the oldest one: as
        # a block of their own they would be all there is to train on, however few.
        oldest = len(times) % size
        keys = (np.arange(len(times), dtype=np.int64) - oldest) // size
        return np.maximum(keys, 0), _row_names(oldest, size)
    if block == "month":
        months = times.astype("datetime64[us]").astype("datetime64[M]").astype(np.int64)
        return months, lambda key: str(np.datetime64(key, "M"))
    if block == "week":
        return (times // _DAY + _DAYS_TO_MONDAY) // 7, _week_name
    if block == "day":
        return times // _DAY, lambda key: str(np.datetime64(key, "D"))
    if block == "hour":
        return times // _HOUR, lambda key: str(np.datetime64(key, "h"))
    raise NodeFailed(ExitCode.SPEC_WRONG, f"evaluation.block {block!r} is none of hour, day, week, month, rows:<count>")


def _row_names(first: int, size: int) -> Callable[[int], str]:
    return lambda key: f"rows {max(0, first + key * size)}-{first + (key + 1) * size - 1}"


def _week_name(key: int) -> str:
    # Python's dates end with the year 9999, those of a table do not.
    cycles, week = divmod(key, _WEEKS_OF_CYCLE)
    year, number, _ = np.datetime64(week * 7 - _DAYS_TO_MONDAY, "D").item().isocalendar()
    return f"{year + cycles * _YEARS_OF_CYCLE:04}-W{number:02}"


def _one_block(rows: int, plan: EvaluationPlan, one_time: bool) -> _Blocks:
    """All rows lie in one block: hold out the newest three tenths, cut into blocks of equally many rows."""
    held = max(1, round(rows * _HOLDOUT_SHARE))
    count = min(plan.holdout_blocks, held)
    size = held // count
    first = rows - size * count
    keys = (np.arange(rows, dtype=np.int64) - first) // size
    how = "picked at random, for all rows have the same time" if one_time else "the newest in time order"
    note = f"all rows lie in one block ({plan.block}): {size * count} of {rows} are held out, {how}, {size} to a block"
    return _Blocks(keys, 0, _row_names(first, size), note)


def _iso(microseconds: np.int64) -> str:
    return f"{np.datetime64(int(microseconds), 'us')}Z"
