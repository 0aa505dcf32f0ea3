"""Counts per model version, and how Prometheus wants to read them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from dropforge.domain.endpoints import LATENCY_BOUNDS

# Of the bounds that are counted, those that Prometheus is told.
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TOLD = tuple(LATENCY_BOUNDS.index(bound) for bound in BUCKETS)


class Counts:
    """Requests one model version answered (`requests`, of which `failed`), and how long they took."""

    def __init__(self) -> None:
        self.requests = 0
        self.failed = 0
        self.seconds = 0.0
        self.failed_seconds = 0.0
        self.buckets = [0] * (len(LATENCY_BOUNDS) + 1)

    def add(self, seconds: float, failed: bool) -> None:
        self.add_all((seconds,), failed)

    def add_all(self, took: Sequence[float], failed: bool) -> None:
        """Requests that took so many seconds each."""
        seconds = sum(took)
        self.requests += len(took)
        self.seconds += seconds
        if failed:
            self.failed += len(took)
            self.failed_seconds += seconds
        buckets = self.buckets
        for each in took:
            buckets[bisect_left(LATENCY_BOUNDS, each)] += 1

    def copy(self) -> Counts:
        """What is counted by now."""
        made = Counts()
        made.requests, made.failed, made.seconds = self.requests, self.failed, self.seconds
        made.failed_seconds, made.buckets = self.failed_seconds, [*self.buckets]
        return made


def family(name: str, kind: str, text: str, values: Iterable[tuple[dict[str, str], float]]) -> Iterator[str]:
    """A metric with its heading, one line for each set of labels; nothing at all when it has no values."""
    lines = [_sample(name, value, labels) for labels, value in values]
    if lines:
        yield from (f"# HELP {name} {text}", f"# TYPE {name} {kind}", *lines)


def histogram(name: str, text: str, counted: Sequence[tuple[dict[str, str], Counts]]) -> Iterator[str]:
    """A histogram with its heading: cumulative buckets, sum and count for each set of labels."""
    if counted:
        yield from (f"# HELP {name} {text}", f"# TYPE {name} histogram")
    for labels, counts in counted:
        reached = [*accumulate(counts.buckets)]
        totals = (*(reached[place] for place in _TOLD), reached[-1])
        for bound, total in zip((*map(str, BUCKETS), "+Inf"), totals, strict=True):
            yield _sample(f"{name}_bucket", total, {**labels, "le": bound})
        yield _sample(f"{name}_sum", counts.seconds, labels)
        yield _sample(f"{name}_count", counts.requests, labels)


def _sample(name: str, value: float, labels: dict[str, str]) -> str:
    text = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
    return f"{name}{{{text}}} {value}" if text else f"{name} {value}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
