"""When a candidate that answers a part of the requests may answer more, and when it is taken back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum
from itertools import accumulate

from dropforge.domain.endpoints import LATENCY_BOUNDS, Deployment, Mirrored, ReplicaState, VersionState

# With too few requests to judge by, a step may take so many times its bake time.
PATIENCE = 3
# Fewer requests than these end no step early, however many of them failed.
FEWEST = 10
# How sure an early end must be, in standard deviations: it is looked at again and again. And how sure a slower one.
EARLY, SURE = 3.0, 2.0
# The quantile of the latencies that is compared.
QUANTILE = 0.95


@dataclass(frozen=True)
class Rules:
    """`steps`: the percents of the traffic that a candidate is given one after the other, before it gets all. `mirror`:
    the percent of the champion's requests that it is given copies of, at first with no traffic at all."""

    steps: tuple[int, ...]
    bake: timedelta
    max_failed: float
    max_latency_ratio: float
    min_requests: int
    mirror: int = 0

    @property
    def stages(self) -> tuple[int, ...]:
        """The candidate's percent of the traffic at each stage that is watched."""
        return (0, *self.steps) if self.mirror else self.steps


class Standing(Enum):
    BAKING = "baking"
    PASSED = "passed"
    FAILED = "failed"


@dataclass(frozen=True)
class Judgement:
    """`reason` tells what was compared, in words."""

    standing: Standing
    reason: str


def deployments(candidate: Deployment, champion: Deployment, rules: Rules, stage: int) -> tuple[Deployment, ...]:
    """What is deployed at a stage, the candidate first; after the last of them, it alone."""
    if stage >= len(rules.stages):
        return (replace(candidate, traffic=100, mirror=0),)
    traffic = rules.stages[stage]
    return (
        replace(candidate, traffic=traffic, mirror=rules.mirror),
        replace(champion, traffic=100 - traffic, mirror=0),
    )


def tally(states: Iterable[ReplicaState], revision: int, version: int) -> VersionState:
    """What a version did in all on the replicas that serve that revision."""
    total = VersionState(version, 0)
    for state in states:
        for each in state.states if state.revision == revision else ():
            if each.version == version:
                total = _sum(total, each)
    return total


def judge(rules: Rules, champion: VersionState, candidate: VersionState, baked: timedelta) -> Judgement:
    """How the candidate stands after so long a time at its stage.

    It fails early when it fails more than `max_failed` of what it is asked beyond what the champion fails, for certain.
    Once the bake time is over it passes unless it failed more than that, or its 95th percentile is for certain more than
    `max_latency_ratio` times the champion's. With fewer than `min_requests` it is watched up to three times as long, and
    then passes if what little there was does not speak against it. Copies count as requests, but not for the latency:
    they are run when there is time.
    """
    asked, failed = candidate.requests + candidate.mirrored.run, candidate.failed + candidate.mirrored.failed
    usual = champion.failed / champion.requests if champion.requests else 0.0
    counts = f"version {candidate.version} failed {failed} of {asked} requests"
    compared = f"{counts}; version {champion.version} failed {champion.failed} of {champion.requests}"
    if asked >= FEWEST and _at_least(failed, asked, EARLY) > rules.max_failed + usual:
        return Judgement(Standing.FAILED, f"{compared}; at most {rules.max_failed:g} more of them is allowed")
    enough = asked >= rules.min_requests
    if baked < rules.bake or (not enough and baked < PATIENCE * rules.bake):
        return Judgement(Standing.BAKING, counts)
    if enough and failed / asked > rules.max_failed + usual:
        return Judgement(Standing.FAILED, f"{compared}; at most {rules.max_failed:g} more of them is allowed")
    slower = _slower(champion, candidate, rules)
    if slower is not None:
        return Judgement(Standing.FAILED, slower)
    few = "" if enough else f", fewer than the {rules.min_requests} wanted, after {PATIENCE} times the bake time"
    return Judgement(Standing.PASSED, f"{counts}{few}{_disagreement(candidate.mirrored)}")


def quantile(latency: tuple[int, ...], share: float) -> float | None:
    """The seconds that this share of the requests took at most, as the buckets tell it; None without any."""
    total = sum(latency)
    if not total:
        return None
    wanted, edges = share * total, (0.0, *LATENCY_BOUNDS, LATENCY_BOUNDS[-1])
    for place, reached in enumerate(accumulate(latency)):
        if reached >= wanted and latency[place]:
            inside = (wanted - (reached - latency[place])) / latency[place]
            return edges[place] + (edges[place + 1] - edges[place]) * max(inside, 0.0)
    return edges[-1]


def _slower(champion: VersionState, candidate: VersionState, rules: Rules) -> str | None:
    """In words, when the candidate is for certain slower than allowed."""
    least = min(champion.requests, candidate.requests)
    if least < rules.min_requests:
        return None
    low = quantile(candidate.latency, QUANTILE - SURE * _spread(QUANTILE, candidate.requests))
    high = quantile(champion.latency, min(1.0, QUANTILE + SURE * _spread(QUANTILE, champion.requests)))
    if low is None or high is None or low <= rules.max_latency_ratio * high:
        return None
    slow, usual = quantile(candidate.latency, QUANTILE) or low, quantile(champion.latency, QUANTILE) or high
    return (
        f"95 of 100 answers of version {candidate.version} took up to {slow * 1000:.3g} ms, those of version "
        f"{champion.version} up to {usual * 1000:.3g} ms; at most {rules.max_latency_ratio:g} times as long is allowed"
    )


def _spread(share: float, number: int) -> float:
    return math.sqrt(share * (1 - share) / number)


def _at_least(hits: int, number: int, sure: float) -> float:
    """The lower end of Wilson's interval: the share that so many hits speak for at least."""
    share, square = hits / number, sure * sure / number
    middle = share + square / 2
    return (middle - sure * math.sqrt(share * (1 - share) / number + square / (4 * number))) / (1 + square)


def _disagreement(mirrored: Mirrored) -> str:
    """What the copies tell: information, not a reason."""
    pairs = mirrored.run - mirrored.failed
    if not pairs:
        return ""
    flipped = f", {mirrored.flipped} of {mirrored.rows} rows decided otherwise" if mirrored.rows else ""
    return (
        f"; it disagreed in {mirrored.disagreed} of {pairs} copies{flipped}, by at most {mirrored.max_difference:.3g}"
    )


def _sum(one: VersionState, other: VersionState) -> VersionState:
    a, b = one.mirrored, other.mirrored
    mirrored = Mirrored(
        a.run + b.run,
        a.failed + b.failed,
        a.dropped + b.dropped,
        a.disagreed + b.disagreed,
        a.rows + b.rows,
        a.flipped + b.flipped,
        max(a.max_difference, b.max_difference),
    )
    long, short = sorted((one.latency, other.latency), key=len, reverse=True)
    return VersionState(
        one.version,
        other.traffic,
        one.requests + other.requests,
        one.failed + other.failed,
        one.seconds + other.seconds,
        tuple(each + (short[place] if place < len(short) else 0) for place, each in enumerate(long)),
        other.mirror,
        mirrored,
    )
