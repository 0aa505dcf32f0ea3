"""Verdicts: is the challenger better, worse, or can nobody tell? A paired block bootstrap over time-ordered blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from dropforge.domain.bootstrap import Differences, Interval, blocks_needed, fewest_blocks, intervals
from dropforge.domain.errors import BadInput

# Every metric a pipeline may name, and whether less of it is better.
LOWER_IS_BETTER: dict[str, bool] = {
    "log_loss": True,
    "brier": True,
    "error_rate": True,
    "auc": False,
    "mae": True,
    "mse": True,
}
# A slice with fewer rows than this is shown, not judged, and costs the others no certainty.
MIN_SLICE_ROWS = 50
# Scores closer than this, relative to their size, are equal: what is left is rounding, which has a sign but no meaning.
_SAME = 1e-9
# Beyond this a score is no measurement, and sums of its products with rows could overflow.
_LARGEST = 1e100


class Outcome(Enum):
    BETTER = "better"
    WORSE = "worse"
    CANNOT_TELL = "cannot_tell"


@dataclass(frozen=True)
class BlockScore:
    """The mean of the metric over the same rows of one block, for both models.

    `slice` is None for all rows of the block, or `column=value` for the rows with that value. `rows` is at least 1:
    a block without rows, or where the metric is not defined (the AUC of one class), is left out.
    """

    block: str
    slice: str | None
    rows: int
    champion: float
    challenger: float


@dataclass(frozen=True)
class Evidence:
    """What a training node measured on the held-out blocks: enough to judge again without model or data.

    `against` says what stood in the champion's place: the champion, or a constant baseline when there was none.
    `holdout_from` and `holdout_to` are the first and the last held-out event time, ISO 8601 UTC.
    """

    metric: str
    lower_is_better: bool
    against: Literal["champion", "baseline"]
    champion_version: int | None
    # In any order; the names tell which belong together.
    blocks: tuple[BlockScore, ...]
    train_rows: int
    holdout_rows: int
    unlabelled_rows: int
    holdout_from: str | None
    holdout_to: str | None
    note: str = ""


@dataclass(frozen=True)
class SliceVerdict:
    """The verdict for the rows of one slice. The interval is wide enough to hold for all slices at once.

    Numbers mean what they mean in `Verdict`.
    """

    slice: str
    outcome: Outcome
    effect: float
    low: float | None
    high: float | None
    blocks: int
    rows: int
    champion_score: float
    challenger_score: float
    blocks_needed: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """Better, worse or cannot tell, with the numbers that made it so.

    `effect` is in units of the metric and positive when the challenger is better, whichever way the metric runs.
    `low` and `high` bound it with that `confidence`; None when there are too few blocks for an interval.
    `effect` and the scores are None only when there is no block at all.
    `blocks_needed`: how many blocks like these would settle a *cannot tell*; None when none would, or nobody knows.
    """

    outcome: Outcome
    effect: float | None
    low: float | None
    high: float | None
    confidence: float
    blocks: int
    rows: int
    champion_score: float | None
    challenger_score: float | None
    metric: str
    against: Literal["champion", "baseline"]
    champion_version: int | None = None
    blocks_needed: int | None = None
    slices: tuple[SliceVerdict, ...] = ()
    note: str = ""

    @property
    def slices_worse(self) -> tuple[str, ...]:
        """The slices whose own verdict is *worse*."""
        return tuple(one.slice for one in self.slices if one.outcome is Outcome.WORSE)


def judge(
    evidence: Evidence, *, confidence: float, min_improvement: float = 0.0, resamples: int = 4000, seed: int
) -> Verdict:
    """The verdict on this evidence; equal arguments give an equal verdict, on every machine.

    *Better*: the whole interval lies above `min_improvement` (units of the metric, not negative). *Worse*: the whole
    interval lies below zero. *Cannot tell*: everything else, also a sure improvement that is smaller than asked for.
    A slice is held against zero on both sides, at a confidence that makes all slices hold together (Bonferroni).
    Raises `BadInput` for evidence that is not a measurement, naming the block.
    """
    _check_arguments(confidence, min_improvement, resamples)
    _check(evidence)
    whole, parts = _series(evidence)
    if whole is None:
        reading, parts = _Reading(Outcome.CANNOT_TELL, note="no block could be judged"), []
    else:
        (reading,) = _readings([whole], confidence, min_improvement, resamples, seed)
    worth_judging = sum(part.total >= MIN_SLICE_ROWS and part.blocks >= fewest_blocks(confidence) for part in parts)
    together = 1 - (1 - confidence) / max(1, worth_judging)
    return Verdict(
        outcome=reading.outcome,
        effect=whole.differences.mean if whole else None,
        low=reading.low,
        high=reading.high,
        confidence=confidence,
        blocks=whole.blocks if whole else 0,
        rows=whole.total if whole else 0,
        champion_score=whole.champion if whole else None,
        challenger_score=whole.challenger if whole else None,
        metric=evidence.metric,
        against=evidence.against,
        champion_version=evidence.champion_version,
        blocks_needed=reading.blocks_needed,
        slices=tuple(
            _slice_verdict(part, reading)
            for part, reading in zip(
                parts, _readings(parts, together, 0.0, resamples, seed, MIN_SLICE_ROWS), strict=True
            )
        ),
        note=reading.note,
    )


@dataclass(frozen=True)
class _Series:
    """The blocks of one slice (or of all rows), as paired differences: positive where the challenger is better."""

    slice: str | None
    differences: Differences
    champion: float
    challenger: float

    @property
    def blocks(self) -> int:
        return len(self.differences.values)

    @property
    def total(self) -> int:
        return sum(self.differences.rows)


@dataclass(frozen=True)
class _Reading:
    outcome: Outcome
    low: float | None = None
    high: float | None = None
    blocks_needed: int | None = None
    note: str = ""


def _check_arguments(confidence: float, min_improvement: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise BadInput(f"confidence must lie between 0 and 1; found {confidence}")
    if not 0 <= min_improvement < math.inf:
        raise BadInput(f"min_improvement must be zero or more, in units of the metric; found {min_improvement}")
    if resamples < 100:
        raise BadInput(f"at least 100 resamples are needed; found {resamples}")


def _check(evidence: Evidence) -> None:
    if LOWER_IS_BETTER.get(evidence.metric, evidence.lower_is_better) != evidence.lower_is_better:
        raise BadInput(f"evidence on {evidence.metric} says lower_is_better={evidence.lower_is_better}; it is not so")
    seen = set()
    for score in evidence.blocks:
        place = f"block {score.block!r}" + (f" of slice {score.slice!r}" if score.slice is not None else "")
        for model, value in (("champion", score.champion), ("challenger", score.challenger)):
            if math.isnan(value) or abs(value) > _LARGEST:
                raise BadInput(f"{place}: {evidence.metric} of the {model} is {value}; wanted a finite number")
        if score.rows < 1:
            raise BadInput(f"{place} has {score.rows} rows; wanted at least 1 (leave an empty block out)")
        if (score.slice, score.block) in seen:
            raise BadInput(f"{place} is there twice; wanted one score for each block")
        seen.add((score.slice, score.block))


def _series(evidence: Evidence) -> tuple[_Series | None, list[_Series]]:
    """All rows, and every slice in order of its name."""
    sign = 1.0 if evidence.lower_is_better else -1.0
    groups: dict[str | None, list[BlockScore]] = {}
    # Sorted, so that the order of the evidence has no influence on which resample picks which block.
    for score in sorted(evidence.blocks, key=lambda score: (score.slice or "", score.block)):
        groups.setdefault(score.slice, []).append(score)
    everything = groups.pop(None, None)
    parts = [_one_series(name, scores, sign) for name, scores in groups.items()]
    return (_one_series(None, everything, sign) if everything else None), parts


def _one_series(name: str | None, scores: list[BlockScore], sign: float) -> _Series:
    total = sum(score.rows for score in scores)
    return _Series(
        name,
        Differences(tuple(sign * _difference(score) for score in scores), tuple(score.rows for score in scores)),
        champion=sum(score.champion * score.rows for score in scores) / total,
        challenger=sum(score.challenger * score.rows for score in scores) / total,
    )


def _difference(score: BlockScore) -> float:
    return 0.0 if math.isclose(score.champion, score.challenger, rel_tol=_SAME) else score.champion - score.challenger


def _readings(
    many: list[_Series], confidence: float, min_improvement: float, resamples: int, seed: int, min_rows: int = 1
) -> list[_Reading]:
    shortages = [_shortage(one, confidence, min_rows) for one in many]
    enough = [one.differences for one, shortage in zip(many, shortages, strict=True) if not shortage]
    bounds = iter(intervals(enough, confidence, resamples, seed))
    return [
        _too_little(one, shortage, confidence, min_improvement)
        if shortage
        else _read(one, next(bounds), confidence, min_improvement)
        for one, shortage in zip(many, shortages, strict=True)
    ]


def _shortage(one: _Series, confidence: float, min_rows: int) -> str:
    """Why this cannot be judged; empty when it can."""
    fewest = fewest_blocks(confidence)
    if one.blocks < fewest:
        return f"at least {fewest} blocks are needed at confidence {confidence:.4g}"
    if one.total < min_rows:
        return f"at least {min_rows} rows are needed"
    if one.differences.worth < 2:
        return f"almost all of the {one.total} rows are in one of the {one.blocks} blocks"
    return ""


def _too_little(one: _Series, shortage: str, confidence: float, min_improvement: float) -> _Reading:
    needed = max(fewest_blocks(confidence), _blocks_needed(one, confidence, min_improvement) or 0)
    return _Reading(Outcome.CANNOT_TELL, blocks_needed=needed if needed > one.blocks else None, note=shortage)


def _read(one: _Series, bounds: Interval, confidence: float, min_improvement: float) -> _Reading:
    if bounds.low > min_improvement:
        return _Reading(Outcome.BETTER, bounds.low, bounds.high)
    if bounds.high < 0:
        return _Reading(Outcome.WORSE, bounds.low, bounds.high)
    note = ""
    if not any(one.differences.values):
        note = "both models score the same in every block"
    elif bounds.high <= min_improvement:
        note = f"any improvement is smaller than the {min_improvement:g} asked for"
    needed = _blocks_needed(one, confidence, min_improvement)
    return _Reading(Outcome.CANNOT_TELL, bounds.low, bounds.high, needed and max(needed, one.blocks + 1), note)


def _blocks_needed(one: _Series, confidence: float, min_improvement: float) -> int | None:
    mean = one.differences.mean
    return blocks_needed(one.differences.spread, mean - min_improvement if mean > 0 else -mean, confidence)


def _slice_verdict(part: _Series, reading: _Reading) -> SliceVerdict:
    return SliceVerdict(
        slice=part.slice or "",
        outcome=reading.outcome,
        effect=part.differences.mean,
        low=reading.low,
        high=reading.high,
        blocks=part.blocks,
        rows=part.total,
        champion_score=part.champion,
        challenger_score=part.challenger,
        blocks_needed=reading.blocks_needed,
        note=reading.note,
    )


def _places(verdict: Verdict) -> int:
    """Decimals that show two digits of the largest number that decides, and never a bound that decides as zero."""
    effect, low, high = verdict.effect or 0.0, verdict.low or 0.0, verdict.high or 0.0
    largest = max(abs(effect), abs(low), abs(high))
    nearest = low if low > 0 else -high if high < 0 else largest
    if not largest:
        return 4
    return min(12, max(0, 1 - math.floor(math.log10(largest)), -math.floor(math.log10(nearest))))


def summary(verdict: Verdict) -> str:
    """The verdict on one line, for a person."""
    head = verdict.outcome.value.replace("_", " ")
    if verdict.effect is None or verdict.champion_score is None or verdict.challenger_score is None:
        return f"{head}: {verdict.note}"
    places = _places(verdict)
    change = ""
    if verdict.champion_score:
        relative = (verdict.challenger_score - verdict.champion_score) / abs(verdict.champion_score)
        change = f" ({100 * relative:+.1f} %)"
    said = [f"{verdict.metric} {verdict.champion_score:.{places}f} -> {verdict.challenger_score:.{places}f}{change}"]
    if verdict.against == "baseline":
        said[0] += " against a constant baseline"
    if verdict.low is not None and verdict.high is not None:
        interval = f"[{verdict.low:+.{places}f}, {verdict.high:+.{places}f}]"
        said.append(f"{100 * verdict.confidence:g} % interval {interval}")
    said.append(f"{verdict.blocks} block" + "s" * (verdict.blocks != 1))
    if verdict.slices_worse:
        said.append("worse in " + ", ".join(verdict.slices_worse[:3]) + (", ..." if verdict.slices_worse[3:] else ""))
    if verdict.note:
        said.append(verdict.note)
    if verdict.blocks_needed is not None:
        said.append(f"about {verdict.blocks_needed} blocks would tell")
    return f"{head}: " + ", ".join(said)
