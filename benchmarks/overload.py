"""What becomes of requests when there are more than can be answered. Run: `python -m benchmarks.overload`.

A model that takes its time (dense layers, 30-2048-4096-2048-2) on a server of one core. What it can do is measured first, with
64 connections in a closed loop; then half of that is asked for, each request due at its time whatever became of those before
it; then three times as much as it can do, for a minute; then half of it again. The last line is one JSON object:

    capacity_per_second       answers at 64 connections, and
    full_p99_us               how long they take then
    steady_p99_us             of answers at half of that
    over_p99_us               of answers while three times as much is asked for, and in the two above:
    over_p99_of_full, _of_steady
    over_answered_of_capacity what was answered then, of what can be
    refused_share             of the requests then: told 429
    refused_p50_us, _p99_us   how long that took to be told
    recovered_ms              from the end of the minute until 95 of 100 answers of a tenth of a second were within the steady
                              p99 again
    failed                    requests with any other answer, or none
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks import serving_models
from benchmarks.load.replica import CLIENT, asked, started

CONNECTIONS = 512
MODEL = serving_models.Kind("wide", "x", (30,), lambda seed: serving_models.mlp(seed, (30, 2048, 4096, 2048, 2)))
CALM_SECONDS = 10.0
WINDOW_SECONDS = 0.1


def p99(took: list[float]) -> float:
    return sorted(took)[int(len(took) * 0.99)]


def measure(folder: Path, seconds: float) -> dict[str, float]:
    path, sha256 = serving_models.written(folder, MODEL)
    answer = base64.b64encode(serving_models.session(folder, MODEL)(MODEL.rows())[0].tobytes()).decode()
    request = base64.b64encode(serving_models.request(MODEL, "binary")).decode()
    with started(folder / "state") as replica:
        replica.publish("wide", 1, 1, path, sha256)
        replica.reached("wide", 1)
        # The first look shows the server how long batches of each size take.
        for _ in range(2):
            many = asked("closed", CLIENT, port=replica.port, request=request, connections=64, seconds=5, depth=1)
        capacity = many["answers"] / many["seconds"]
        phases = [[capacity / 2, CALM_SECONDS], [3 * capacity, seconds], [capacity / 2, CALM_SECONDS]]
        given = {"port": replica.port, "request": request, "connections": CONNECTIONS, "answers": [answer]}
        heard = asked("open", CLIENT, phases=phases, **given)
    first, second = CALM_SECONDS, CALM_SECONDS + seconds
    answers = [(due - heard["began"], took) for due, took in zip(heard["due"], heard["took_us"], strict=True)]
    steady = p99([took for at, took in answers if 1 < at < first])
    over = [took for at, took in answers if first <= at < second]
    told = len(heard["refused_us"])
    return {
        "capacity_per_second": capacity,
        "full_p99_us": many["p99_us"],
        "steady_p99_us": steady,
        "over_p99_us": p99(over),
        "over_p99_of_full": p99(over) / many["p99_us"],
        "over_p99_of_steady": p99(over) / steady,
        "over_answered_of_capacity": len(over) / seconds / capacity,
        "refused_share": told / (told + len(over)),
        "refused_p50_us": sorted(heard["refused_us"])[told // 2],
        "refused_p99_us": p99(heard["refused_us"]),
        "recovered_ms": 1000 * recovered(answers, second, steady),
        "failed": heard["failed"] + heard["wrong"],
    }


def recovered(answers: list[tuple[float, float]], since: float, steady: float) -> float:
    """Seconds until the answers of a tenth of a second are as soon as before: 95 of 100 within the p99 of then."""
    windows: dict[int, list[float]] = defaultdict(list)
    for at, took in answers:
        if at >= since:
            windows[int((at - since) / WINDOW_SECONDS)].append(took)
    for window, took in sorted(windows.items()):
        if sorted(took)[int(len(took) * 0.95)] <= steady:
            return window * WINDOW_SECONDS
    return math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of too many requests")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="overload-") as folder:
        figures = measure(Path(folder), options.seconds)
    for name, value in figures.items():
        print(f"{name:26} {value:14,.2f}")
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
