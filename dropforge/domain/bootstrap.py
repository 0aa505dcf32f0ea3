"""The paired block bootstrap: how far the mean difference of a few blocks may be from the truth.

Blocks are resampled whole, because rows within a block (a day, a week) resemble each other. With few blocks a plain
percentile interval is too narrow; Hesterberg's expanded percentile interval takes percentiles further out, as far as
Student's t is wider than the normal (Hesterberg, "What Teachers Should Know about the Bootstrap", 2014, section 5.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from random import Random
from statistics import NormalDist

_NORMAL = NormalDist()
# A percentile is read off the resamples only where at least this many lie beyond it; further out the tail is drawn
# on as a normal one. Needed when many slices share one error rate: their percentiles lie beyond the last resample.
_TAIL_RESAMPLES = 10
# `blocks_needed` is for settling the question four times in five.
_POWER = 0.8
_MOST_BLOCKS = 1_000_000


@dataclass(frozen=True)
class Interval:
    """Bounds of a mean; `low <= high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Differences:
    """The paired differences of some blocks, each weighing as much as it has rows."""

    values: tuple[float, ...]
    rows: tuple[int, ...]

    @property
    def mean(self) -> float:
        """The row-weighted mean."""
        return sum(map(_times, self.values, self.rows)) / sum(self.rows)

    @property
    def worth(self) -> float:
        """How many blocks of equal size would tell as much (Kish's effective sample size)."""
        total = sum(self.rows)
        return total * total / sum(rows * rows for rows in self.rows)

    @property
    def spread(self) -> float:
        """The standard deviation of one block's difference, as far as so few blocks can show it."""
        mean, total, worth = self.mean, sum(self.rows), self.worth
        # Scaled by the largest before squaring, so that tiny differences do not vanish.
        deviations = [rows / total * (value - mean) for value, rows in zip(self.values, self.rows, strict=True)]
        largest = max(map(abs, deviations))
        if largest == 0 or worth <= 1:
            return 0.0
        error = largest * math.sqrt(sum((deviation / largest) ** 2 for deviation in deviations))
        return error * math.sqrt(worth / (worth - 1)) * math.sqrt(len(self.values))


def _times(value: float, rows: int) -> float:
    return value * rows


def fewest_blocks(confidence: float) -> int:
    """The fewest blocks that can tell anything at this confidence.

    Two equal models agree on the sign in all of `n` blocks with a chance of 2^-n each way; fewer blocks than this
    would call that a difference more often than the confidence allows.
    """
    return max(3, math.ceil(math.log2(2 / (1 - confidence)) - 1e-9))


def intervals(many: Sequence[Differences], confidence: float, resamples: int, seed: int) -> list[Interval]:
    """The expanded percentile interval of each mean. Equal input and seed give equal bounds; negated differences give
    negated bounds. Every member needs at least 2 blocks that weigh as at least 2 (`worth`)."""
    found: dict[int, Interval] = {}
    by_length: dict[int, list[int]] = {}
    for index, differences in enumerate(many):
        by_length.setdefault(len(differences.values), []).append(index)
    for length, members in by_length.items():
        means = _resampled_means([many[index] for index in members], length, resamples, seed)
        for index, resampled in zip(members, means, strict=True):
            found[index] = _expanded(many[index], resampled, confidence)
    return [found[index] for index in range(len(many))]


def _resampled_means(many: list[Differences], length: int, resamples: int, seed: int) -> list[list[float]]:
    """For each member the sorted means of its resamples. All members share the picks: one pass of the generator, and
    a `itemgetter` collects the picked blocks of each at C speed."""
    random = Random(f"{seed}/{length}").random  # noqa: S311 - a repeatable draw, not a secret
    weighted = [
        (tuple(map(_times, member.values, member.rows)), tuple(map(float, member.rows)), [0.0] * resamples)
        for member in many
    ]
    for turn in range(resamples):
        pick = itemgetter(*[int(random() * length) for _ in range(length)])
        for products, rows, means in weighted:
            means[turn] = sum(pick(products)) / sum(pick(rows))
    for _, _, means in weighted:
        means.sort()
    return [means for _, _, means in weighted]


def _expanded(differences: Differences, means: list[float], confidence: float) -> Interval:
    mean, worth = differences.mean, differences.worth
    # How many standard errors out the bound lies: Student's t instead of the normal, and the factor by which the
    # bootstrap's standard error (a divisor of n, not n - 1) is too small.
    reach = t_quantile(1 - (1 - confidence) / 2, worth - 1) * math.sqrt(worth / (worth - 1))
    tail = max(_NORMAL.cdf(-reach), _TAIL_RESAMPLES / len(means))
    beyond = max(1.0, reach / -_NORMAL.inv_cdf(tail))
    low, high = _percentiles(means, tail)
    return Interval(min(mean, mean - (mean - low) * beyond), max(mean, mean + (high - mean) * beyond))


def _percentiles(ordered: list[float], tail: float) -> tuple[float, float]:
    """The values that cut off `tail` at either end; computed alike at both, so that negated input mirrors exactly."""
    place = tail * (len(ordered) - 1)
    index = int(place)
    part = place - index
    low = ordered[index] + (ordered[index + 1] - ordered[index]) * part
    high = ordered[-1 - index] - (ordered[-1 - index] - ordered[-2 - index]) * part
    return low, high


def blocks_needed(spread: float, distance: float, confidence: float) -> int | None:
    """How many blocks with this spread settle, four times in five, that the mean is this far from the bound it is
    held against. None when no million of blocks would. Guenther's approximation of the one-sample t test."""
    if distance <= 0:
        return None
    sure = _NORMAL.inv_cdf(1 - (1 - confidence) / 2)
    ratio = (sure + _NORMAL.inv_cdf(_POWER)) * spread / distance
    if ratio * ratio > _MOST_BLOCKS:
        return None
    return max(fewest_blocks(confidence), math.ceil(ratio * ratio + sure * sure / 2))


@lru_cache(maxsize=1024)
def t_quantile(probability: float, freedom: float) -> float:
    """The quantile of Student's t with that many degrees of freedom (any positive number), for 0.5 <= p < 1."""
    if not (0.5 <= probability < 1 and freedom > 0):
        raise ValueError(f"wanted 0.5 <= probability < 1 and freedom > 0; found {probability} and {freedom}")
    if probability == 0.5:
        return 0.0
    upper_tail = 1 - probability
    high = 1.0
    while _t_tail(high, freedom) > upper_tail:
        high *= 2
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if _t_tail(middle, freedom) > upper_tail:
            low = middle
        else:
            high = middle
        if high - low <= 1e-13 * high:
            break
    return (low + high) / 2


def _t_tail(value: float, freedom: float) -> float:
    """The chance that Student's t exceeds a value that is not negative."""
    square = value * value
    return 0.5 * _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + square), square / (freedom + square))


def _incomplete_beta(a: float, b: float, x: float, complement: float) -> float:
    """The regularized incomplete beta function I_x(a, b) (DLMF 8.17); `complement` is 1 - x, without its rounding."""
    if x <= 0:
        return 0.0
    if complement <= 0:
        return 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(complement))
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a
    return 1 - front * _beta_fraction(b, a, complement) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of DLMF 8.17.22, by the modified Lentz method."""
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    fraction = d
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + term * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + term / c
            c = c if abs(c) > tiny else tiny
            fraction *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return fraction
