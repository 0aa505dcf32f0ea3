"""What batches cost, per model version: Triton's statistics, counted once per batch and not per request.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
"""

from __future__ import annotations

import time
from typing import Any

from dropforge.serving.metrics import Counts

# Batches of more rows are counted with those of the next power of two: callers choose the sizes.
EXACT_ROWS = 256


class Spent:
    """Where the time of one batch went. `busy`: seconds that nothing else could be done on its thread. `runs`: rows and
    seconds of each run of the model that succeeded."""

    __slots__ = ("began", "busy", "ended", "ran", "runs")

    def __init__(self, began: float) -> None:
        self.began = self.ran = self.ended = began
        self.busy = 0.0
        self.runs: list[tuple[int, float]] = []


class Statistics:
    """Of one model version. Touched by the event loop only. Durations of requests are those of the batch they were in,
    as Triton counts them."""

    __slots__ = (
        "executions",
        "here_since",
        "infer",
        "input",
        "last_at",
        "output",
        "queue",
        "requests",
        "rows",
        "sizes",
    )

    def __init__(self) -> None:
        self.requests = self.rows = self.executions = 0
        self.queue = self.input = self.infer = self.output = 0.0
        # When it was asked last, and when it was loaded. By `time.perf_counter`.
        self.last_at = self.here_since = time.perf_counter()
        # By rows: times run, and the seconds of input, inference and output.
        self.sizes: dict[int, list[float]] = {}

    @property
    def idle_since(self) -> float:
        return max(self.last_at, self.here_since)

    def add(self, requests: int, waited: float, spent: Spent) -> None:
        """One batch was run. `waited`: seconds that its requests were in the queue, all together."""
        self.last_at = spent.ended
        runs = spent.runs
        if not runs:
            return
        infer = runs[0][1] if len(runs) == 1 else sum([seconds for _, seconds in runs])
        before, after = spent.ran - spent.began - infer, spent.ended - spent.ran
        self.requests += requests
        self.executions += len(runs)
        self.queue += waited
        self.input += requests * before
        self.infer += requests * infer
        self.output += requests * after
        for rows, seconds in runs:
            self.rows += rows
            size = rows if rows <= EXACT_ROWS else 1 << (rows - 1).bit_length()
            each = self.sizes.get(size)
            if each is None:
                each = self.sizes[size] = [0, 0.0, 0.0, 0.0]
            each[0] += 1
            each[1] += before / len(runs)
            each[2] += seconds
            each[3] += after / len(runs)

    def told(self, endpoint: str, version: int, counts: Counts | None) -> dict[str, Any]:
        """As Triton tells it. `counts`: the requests of that version."""
        counts = counts or Counts()
        good = counts.requests - counts.failed
        since = time.time() - time.perf_counter()
        return {
            "name": endpoint,
            "version": str(version),
            "last_inference": int((since + self.last_at) * 1000) if self.executions else 0,
            "inference_count": self.rows,
            "execution_count": self.executions,
            "inference_stats": {
                "success": _duration(good, counts.seconds - counts.failed_seconds),
                "fail": _duration(counts.failed, counts.failed_seconds),
                "queue": _duration(self.requests, self.queue),
                "compute_input": _duration(self.requests, self.input),
                "compute_infer": _duration(self.requests, self.infer),
                "compute_output": _duration(self.requests, self.output),
                "cache_hit": _duration(0, 0.0),
                "cache_miss": _duration(0, 0.0),
            },
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": _duration(int(times), before),
                    "compute_infer": _duration(int(times), infer),
                    "compute_output": _duration(int(times), after),
                }
                for size, (times, before, infer, after) in sorted(self.sizes.items())
            ],
        }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": max(0, round(seconds * 1e9))}
