"""Counts per model version, and how Prometheus wants to read them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Counts:
    """Requests one model version answered (`requests`, of which `failed`), and how long they took."""

    def __init__(self) -> None:
        self.requests = 0
        self.failed = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(BUCKETS) + 1)

    def add(self, seconds: float, failed: bool) -> None:
        self.requests += 1
        self.failed += failed
        self.seconds += seconds
        self.buckets[bisect_left(BUCKETS, seconds)] += 1


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
        bounds = (*map(str, BUCKETS), "+Inf")
        for bound, total in zip(bounds, accumulate(counts.buckets), strict=True):
            yield _sample(f"{name}_bucket", total, {**labels, "le": bound})
        yield _sample(f"{name}_sum", counts.seconds, labels)
        yield _sample(f"{name}_count", counts.requests, labels)


def _sample(name: str, value: float, labels: dict[str, str]) -> str:
    text = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
    return f"{name}{{{text}}} {value}" if text else f"{name} {value}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
