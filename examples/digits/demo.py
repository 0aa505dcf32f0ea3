"""The digits scenario: four weeks of daily files drop in, and a network in PyTorch learns from them.

    make digits                                  (or, with a Python that has PyTorch: python -m examples.digits.demo)

Starts the platform of one machine on a fresh state folder. After every week the endpoint is asked for the digits of the
next one, whose writers no training has seen.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from rich.console import Console

from dropforge.client import Client, drop_file
from examples.machine import ROOT, start_platform, stop_platform

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))  # the pipeline's folder stands alone: its modules import each other by bare name

import feed  # noqa: E402

PIPELINE = "digits"
WEEKS, A_WEEK = 4, 7
WEEK_TIMEOUT = 300.0
out = Console() if sys.stdout.isatty() else Console(width=140)


def drop_week(state: Path, prefix: str, week: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for day in feed.days(week * A_WEEK, A_WEEK):
            drop_file(state, prefix, feed.write_day(day, Path(folder)))


def await_run(client: Client, version: int) -> dict[str, Any]:
    """The run on that dataset version, once it has been concluded."""
    deadline = time.monotonic() + WEEK_TIMEOUT
    while time.monotonic() < deadline:
        told = client.get(f"pipelines/{PIPELINE}/status")
        if told["trouble"]:
            raise SystemExit(f"trouble: {told['trouble']}")
        run = next((each for each in told["runs"] if each["dataset_version"] == version), None)
        if run is not None and run["outcome"] is not None and told["live_run"] != run["run"]:
            found: dict[str, Any] = client.get(f"pipelines/{PIPELINE}/runs/{run['run']}")
            return found
        time.sleep(0.2)
    raise SystemExit(f"dataset version {version} came to no verdict within {WEEK_TIMEOUT:.0f} s")


def share_right(state: Path, week: int) -> float | None:
    """How many of that week's digits the endpoint knows; None while nothing answers."""
    told = json.loads((state / "connection.json").read_text())
    key = (state / "inference.key").read_text().strip()
    days = list(feed.days(week * A_WEEK, A_WEEK))
    rows = [row for day in days for row in feed.requests_for(day)]
    request = urllib.request.Request(
        f"{told['sidecars']['inference']}/v2/models/{PIPELINE}/infer",
        json.dumps({"rows": rows}).encode(),
        {"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            output = json.loads(response.read())["outputs"][0]
    except urllib.error.HTTPError:
        return None
    width = output["shape"][1]
    guessed = [
        max(range(width), key=output["data"][start : start + width].__getitem__)
        for start in range(0, len(output["data"]), width)
    ]
    right = [answer for day in days for answer in feed.answers_for(day)]
    return sum(one == other for one, other in zip(guessed, right, strict=True)) / len(right)


def said(week: int, run: dict[str, Any], share: float | None) -> str:
    verdict = (run["verdict"] or {}).get("outcome", "no verdict").replace("_", " ")
    line = f"week {week + 1}  trained in {run['seconds'] or 0:5.1f} s  {verdict:11}  "
    line += (
        f"[green]v{run['model_version']} is live[/]" if run["outcome"] == "promoted" else f"[yellow]{run['outcome']}[/]"
    )
    return line + (f"  knows {share:.1%} of next week's digits" if share is not None else "  nothing answers yet")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=ROOT / ".demo" / "digits", help="state folder; emptied first")
    asked = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        raise SystemExit(f"{sys.executable} has no PyTorch; `make digits` makes a Python that has it")
    state = asked.state.absolute()
    out.print("Starting the platform on this machine: host, ledger, inference server ...")
    process, client = start_platform(state)
    promoted = 0
    try:
        client.apply(PIPELINE, FOLDER)
        prefix = client.get(f"pipelines/{PIPELINE}")["drop"]
        out.print(f"It answers at {client.connection.url}. {WEEKS} weeks of digits drop in now, one file a day.")
        for week in range(WEEKS):
            drop_week(state, prefix, week)
            run = await_run(client, week + 1)
            promoted += run["outcome"] == "promoted"
            out.print(said(week, run, share_right(state, week + 1)), highlight=False)
    finally:
        stop_platform(process)
    return 0 if promoted else 1


if __name__ == "__main__":
    sys.exit(main())
