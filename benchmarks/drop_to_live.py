"""Drop to live: what the platform adds to the time that training takes, on the flights of the demo.

    python -m benchmarks.drop_to_live [--weeks 8]

The raw limit is the training process's own time: a loop without any overhead would be live when it ends. Reported is the
time from the moment a week's files were complete to the new model's first answer, beyond that; and where it goes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from examples.flights import demo


def seconds_between(record: dict[str, Any], first: str, last: str) -> float:
    """Seconds from one time of a run's record to another."""
    return (datetime.fromisoformat(record[last]) - datetime.fromisoformat(record[first])).total_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weeks", type=int, default=8)
    weeks = parser.parse_args().weeks
    with tempfile.TemporaryDirectory(prefix="dropforge-bench-") as folder:
        state = Path(folder) / "state"
        process, client = demo.start_platform(state)
        try:
            client.apply(demo.PIPELINE, demo.FOLDER)
            lines, seen = demo.play(client, state, weeks)
            lived = [line for line in lines[1:] if line["live_seconds"] is not None]
            runs = list(client.each(f"pipelines/{demo.PIPELINE}/runs", "runs"))
            records = [client.get(f"pipelines/{demo.PIPELINE}/runs/{run['run']}") for run in runs]
        finally:
            demo.stop_platform(process)
    training = statistics.median(line["training_seconds"] for line in lines)
    overhead = statistics.median(line["live_seconds"] for line in lived)
    figures = {
        "overhead_seconds_median": round(overhead, 3),
        "training_seconds_median": round(training, 3),
        "overhead_of_training": round(overhead / training, 3),
        # Files complete -> run handed to the compute: check, append, manifest, plan.
        "due_to_planned_median": round(
            statistics.median(seconds_between(each, "due_at", "planned_at") for each in records), 3
        ),
        # The training process ended -> verdict, registration, swap, alias.
        "ended_to_live_median": round(
            statistics.median(seconds_between(each, "ended_at", "live_at") for each in records if each["live_at"]), 3
        ),
        "promotions": len(lived),
        "requests": seen.requests,
        "failed_requests": seen.failed,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
