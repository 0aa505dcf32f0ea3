"""What callers notice of swaps. Run: `python -m benchmarks.swap`.

4,000 requests a second to dense layers (30-512-1024-512-2), each due at its time whatever became of those before it, while
the model is swapped each second for one that answers otherwise; in turns with half as long without swaps. Every answer must
be that of the version it names. Then one model of 500 MB is swapped beside it, under the same requests. The server has one
core, whoever asks it another. The last line is one JSON object:

    failed, wrong                  of all requests; an answer is wrong that its version does not give
    swaps, answers
    p99_with_us, p99_without_us    99th percentiles of the seconds with swaps and without; the medians of the turns
    p99_ratio                      the median of the turns
    swap_ms                        from a swap that is asked for to the first answers of the new model, the median
    resident_slope_bytes           of the process for each swap from the 100th on, by least squares, and
    resident_slope_low, _high      its interval of 95 % confidence, which allows for readings that hang together
    resident_low_mb, _high_mb      the least and the most of these readings
    large_worst_ms, large_failed   of the requests while the large model is swapped
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import serving_models
from benchmarks.load.replica import CLIENT, Replica, asked, started

RATE = 4000
CONNECTIONS = 64
# With swaps, and without.
TURN_SECONDS = {True: 20.0, False: 10.0}
# From the beginning of a swap to that of the next, which begins later when the one before it takes longer.
EVERY_SECONDS = 1.0
# In which the large model is swapped; on a slow machine that takes a while beside the requests.
LARGE_SECONDS = 90.0
Floats = npt.NDArray[np.float64]
MLP = next(kind for kind in serving_models.KINDS if kind.name == "mlp")


class Caller:
    """The requests of some seconds, in a process of its own."""

    def __init__(self, replica: Replica, answers: list[bytes], seconds: float) -> None:
        request = base64.b64encode(serving_models.request(MLP, "binary")).decode()
        tails = [base64.b64encode(each).decode() for each in answers]
        given = {"port": replica.port, "request": request, "phases": [[RATE, seconds]], "answers": tails}
        self.found: dict[str, Any] = {}
        self._thread = threading.Thread(
            target=lambda: self.found.update(asked("open", CLIENT, connections=CONNECTIONS, **given))
        )
        self._thread.start()

    @property
    def calls(self) -> bool:
        return self._thread.is_alive()

    def heard(self) -> dict[str, Any]:
        self._thread.join()
        return self.found


def swap(replica: Replica, endpoint: str, revision: int, files: list[tuple[Path, str]]) -> float:
    """Have the next version of the model answer, and wait for that; when it was asked for."""
    asked_at = replica.publish(endpoint, revision, revision, *files[revision % len(files)])
    replica.reached(endpoint, revision)
    return asked_at


def p99(took: list[float]) -> float:
    return sorted(took)[int(len(took) * 0.99)]


def slope(values: Sequence[int]) -> tuple[float, float]:
    """By least squares, and half the width of its interval of 95 % confidence.

    A reading is nearly that before it, and large pages make steps of 2 MiB of it, so the error is that of Newey and West
    (Econometrica 55, 703, 1987), which does not take readings that hang together over a tenth of the series for independent.
    That error is itself so uncertain that 1.96 of it cover the truth in 88 of 100 series at best, and in 73 where a reading is
    0.98 of that before it. How many do is found from series without a slope that hang together as much as this one.
    """
    if len(values) < 30:
        return 0.0, math.inf
    found, error, left = _fitted(np.array([values], float))
    drawn = _without_slope(_kept_of_last(left[0]), len(values))
    slopes, errors, _ = _fitted(drawn)
    return float(found[0]), float(np.quantile(np.abs(slopes) / errors, 0.95) * error[0])


def _fitted(series: Floats) -> tuple[Floats, Floats, Floats]:
    """Of each row the slope, its error, and what the line leaves."""
    count = series.shape[1]
    x = np.arange(count) - (count - 1) / 2
    centred = series - series.mean(axis=1, keepdims=True)
    found = centred @ x / (x @ x)
    left = centred - found[:, None] * x
    parts = left * x
    lags = count // 10
    variance = (parts * parts).sum(axis=1)
    for lag in range(1, lags + 1):
        variance += 2 * (1 - lag / (lags + 1)) * (parts[:, :-lag] * parts[:, lag:]).sum(axis=1)
    # Of readings that are all the same it is nothing, and a rounding error may make it less.
    return found, np.sqrt(np.maximum(variance, 1e-30)) / (x @ x), left


def _kept_of_last(left: Floats) -> float:
    """How much of a reading's distance from the line is that of the reading before it. A line that is fitted to `n` readings
    hides some: about (2 + 6 r) / n, found from series of `_without_slope` of 200 and 900 readings and r up to 0.95."""
    whole = float(left @ left)
    kept = float(left[:-1] @ left[1:]) / whole if whole else 0.0
    return min(0.99, max(0.0, kept + (2 + 6 * kept) / len(left)))


def _without_slope(kept: float, count: int, series: int = 1000) -> Floats:
    """Series that keep so much of their last reading's distance, from a seed."""
    drawn = np.random.default_rng(1).normal(size=(series, count))
    # The first is as far away as any other.
    drawn[:, 0] /= math.sqrt(1 - kept * kept)
    for place in range(1, count):
        drawn[:, place] += kept * drawn[:, place - 1]
    return drawn


def measure(folder: Path, swaps: int, large: bool) -> dict[str, float]:
    files = [serving_models.written(folder, MLP, seed) for seed in (0, 1)]
    runs = [serving_models.session(folder, MLP, seed) for seed in (0, 1)]
    answers = [run(MLP.rows())[0].tobytes() for run in runs]
    with started(folder / "state") as replica:
        # Who has models swapped, and watches, is to keep neither the server nor its callers waiting.
        os.sched_setaffinity(0, CLIENT)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        swap(replica, "mlp", 1, files)
        Caller(replica, answers, 3).heard()
        figures = turns(replica, answers, files, swaps)
        if large:
            figures |= beside(replica, answers, folder)
    return figures


def turns(replica: Replica, answers: list[bytes], files: list[tuple[Path, str]], swaps: int) -> dict[str, float]:
    asked_at: dict[int, float] = {}
    resident: list[int] = []
    pairs: list[tuple[float, float]] = []
    failed = wrong = answered = 0
    revision = 1
    while len(asked_at) < swaps:
        heard = []
        for swapping, seconds in TURN_SECONDS.items():
            caller = Caller(replica, answers, seconds)
            while caller.calls:
                due = time.monotonic() + EVERY_SECONDS
                if swapping and len(asked_at) < swaps:
                    revision += 1
                    asked_at[revision] = swap(replica, "mlp", revision, files)
                    resident.append(replica.resident_bytes)
                while caller.calls and time.monotonic() < due:
                    time.sleep(0.02)
            heard.append(caller.heard())
        for each in heard:
            failed += each["failed"] + len(each["refused_us"])
            wrong, answered = wrong + each["wrong"], answered + len(each["took_us"])
        pairs.append((p99(heard[0]["took_us"]), p99(heard[1]["took_us"])))
        print(f"{len(asked_at):5} swaps, p99 {pairs[-1][0]:.0f} us with and {pairs[-1][1]:.0f} us without", flush=True)
    served_at = replica.served_at("mlp")
    settled = resident[min(100, len(resident) // 2) :]
    found, half = slope(settled)
    return {
        "swaps": len(asked_at),
        "answers": answered,
        "failed": failed,
        "wrong": wrong,
        "p99_with_us": statistics.median(a for a, _ in pairs),
        "p99_without_us": statistics.median(b for _, b in pairs),
        "p99_ratio": statistics.median(a / b for a, b in pairs),
        "swap_ms": statistics.median(served_at[each] - at for each, at in asked_at.items()) * 1000,
        "resident_slope_bytes": found,
        "resident_slope_low": found - half,
        "resident_slope_high": found + half,
        "resident_low_mb": min(settled) / 1e6,
        "resident_high_mb": max(settled) / 1e6,
    }


def beside(replica: Replica, answers: list[bytes], folder: Path) -> dict[str, float]:
    """One swap of a large model that nobody asks, under the same requests."""
    wide = serving_models.Kind("large", "x", (30,), lambda seed: serving_models.mlp(seed, (30, 11_200, 11_200, 2)))
    files = [serving_models.written(folder, wide, seed) for seed in (0, 1)]
    swap(replica, "large", 1, files)
    caller = Caller(replica, answers, LARGE_SECONDS)
    time.sleep(5)
    began = swap(replica, "large", 2, files)
    spent = replica.served_at("large")[2] - began
    assert spent + 3 < LARGE_SECONDS - 5, f"the swap took {spent:.0f} s, which is longer than there were requests"
    heard = caller.heard()
    during = [t for at, t in zip(heard["due"], heard["took_us"], strict=True) if began <= at <= began + spent + 3]
    return {
        "large_bytes": files[0][0].stat().st_size,
        "large_swap_seconds": spent,
        "large_worst_ms": max(during) / 1000,
        "large_p99_ms": p99(during) / 1000,
        "large_failed": heard["failed"] + heard["wrong"] + len(heard["refused_us"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--no-large", action="store_true", help="without the model of 500 MB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swap-") as folder:
        figures = measure(Path(folder), options.swaps, not options.no_large)
    for name, value in figures.items():
        print(f"{name:24} {value:14,.2f}")
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
