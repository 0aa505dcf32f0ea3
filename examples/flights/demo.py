"""The flights scenario: weeks of daily files drop in, a client scores without pause, and only proven models go live.

    python -m examples.flights.demo [--weeks 14] [--state .demo]

Starts the platform of one machine on a fresh state folder, plays the weeks, prints a table of what happened and writes
`demo-summary.json`. Exit code 0: every week ended in a verdict and no request failed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from dropforge.client import Client, drop_file
from examples.machine import ROOT, start_platform, stop_platform

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))  # the pipeline's folder stands alone: its modules import each other by bare name

import feed  # noqa: E402

PIPELINE = "flights"
WEEK_TIMEOUT = 180.0
# Between two requests of the scoring client: it shares two cores with training and the platform.
PAUSE = 0.004
# Piped into a file, lines are as long as they need to be.
out = Console() if sys.stdout.isatty() else Console(width=140)


@dataclass
class Answers:
    """What the scoring client saw."""

    requests: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    # Model version -> when it answered first.
    first: dict[int, datetime] = field(default_factory=dict)
    last: int | None = None
    swaps: int = 0


class ScoringClient(threading.Thread):
    """Asks the endpoint about one flight after another, on one connection, from the first model on until the end."""

    def __init__(self, url: str, key: str, rows: list[dict[str, Any]]) -> None:
        super().__init__(daemon=True)
        self.seen = Answers()
        self._address = urlsplit(url)
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self._bodies = [json.dumps({"rows": [row]}).encode() for row in rows]
        self._over = threading.Event()
        self._connection: http.client.HTTPConnection | None = None

    def stop(self) -> Answers:
        self._over.set()
        self.join(10)
        return self.seen

    def run(self) -> None:
        number = 0
        while not self._over.is_set():
            self._ask(self._bodies[number % len(self._bodies)])
            number += 1
            time.sleep(PAUSE)

    def _ask(self, body: bytes) -> None:
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(
                    self._address.hostname or "", self._address.port, timeout=10
                )
            self._connection.request("POST", f"/v2/models/{PIPELINE}/infer", body, self._headers)
            response = self._connection.getresponse()
            content = response.read()
        except OSError as error:
            self._connection = None
            self._failed(f"{type(error).__name__}: {error}")
            return
        if response.status != 200:
            self._failed(f"HTTP {response.status} {content[:200]!r}")
            return
        self.seen.requests += 1
        version = int(json.loads(content)["model_version"])
        if version != self.seen.last:
            self.seen.swaps += self.seen.last is not None
            self.seen.last = version
            self.seen.first.setdefault(version, datetime.now(UTC))

    def _failed(self, what: str) -> None:
        self.seen.requests += 1
        self.seen.failed += 1
        if len(self.seen.failures) < 10:
            self.seen.failures.append(what)


# ------------------------------------------------------------------------------------------------ a week
def drop_week(state: Path, prefix: str, monday: date, number_of_days: int) -> datetime:
    """Drop the files of a week, one a day; returns when the last one lay there."""
    with tempfile.TemporaryDirectory() as folder:
        files = [feed.write_day(day, Path(folder)) for day in feed.days(monday, number_of_days)]
        for file in files:
            drop_file(state, prefix, file)
    return datetime.now(UTC)


def await_week(client: Client, version: int) -> dict[str, Any]:
    """The record of the run on that dataset version, once it has been concluded; says what happens meanwhile."""
    deadline = time.monotonic() + WEEK_TIMEOUT
    shown = ""
    with out.status("waiting for the files to be taken in") as spinner:
        while time.monotonic() < deadline:
            told = client.get(f"pipelines/{PIPELINE}/status")
            run = next((each for each in told["runs"] if each["dataset_version"] == version), None)
            if run is not None and run["outcome"] is not None and told["live_run"] != run["run"]:
                found: dict[str, Any] = client.get(f"pipelines/{PIPELINE}/runs/{run['run']}")
                return found
            doing = _doing(told, run, version)
            if doing != shown:
                spinner.update(doing)
                shown = doing
            time.sleep(0.1)
    raise SystemExit(f"dataset version {version} came to no verdict within {WEEK_TIMEOUT:.0f} s: {shown}")


def _doing(told: dict[str, Any], run: dict[str, Any] | None, version: int) -> str:
    if told["trouble"]:
        return f"trouble: {told['trouble']}"
    if run is None:
        return f"dataset version {version} is being made ({told['files']['pending']} files wait)"
    if run["decision"] is None:
        return f"run {run['run']}: {run['state']}"
    return f"run {run['run']}: {run['summary']}; {run['decision']}"


def week_line(monday: date, number_of_days: int, run: dict[str, Any], dataset: dict[str, Any]) -> dict[str, Any]:
    """A week as `demo-summary.json` tells it."""
    verdict = run["verdict"]
    return {
        "week": f"{monday:%Y-%m-%d}..{monday + timedelta(days=number_of_days - 1):%Y-%m-%d}",
        "files": dataset["files"],
        "rows": dataset["rows"],
        "dataset_version": dataset["version"],
        "verdict": verdict["outcome"] if verdict else None,
        "interval": [verdict["low"], verdict["high"]] if verdict else None,
        "summary": run["verdict_summary"] or run["reason"],
        "outcome": run["outcome"],
        "model_version": run["model_version"] if run["outcome"] == "promoted" else None,
        "training_seconds": run["seconds"],
        "live_seconds": None,
    }


def note_first_answer(line: dict[str, Any], run: dict[str, Any], scoring: ScoringClient) -> None:
    """Seconds from the moment the batch was due to the new model's first answer, beyond the training process's own."""
    version = line["model_version"]
    if version is None:
        return
    deadline = time.monotonic() + 10
    while version not in scoring.seen.first and time.monotonic() < deadline:
        time.sleep(0.01)
    if version in scoring.seen.first:
        elapsed = scoring.seen.first[version] - datetime.fromisoformat(run["due_at"])
        line["live_seconds"] = round(elapsed.total_seconds() - run["seconds"], 3)


# ------------------------------------------------------------------------------------------------ the whole
def play(client: Client, state: Path, weeks: int) -> tuple[list[dict[str, Any]], Answers]:
    prefix = client.get(f"pipelines/{PIPELINE}")["drop"]
    scoring = ScoringClient(*_inference(state), feed.requests_for(date(2013, 4, 15)))
    lines: list[dict[str, Any]] = []
    try:
        for number in range(weeks):
            monday = feed.FIRST_DAY + timedelta(days=7 * number)
            drop_week(state, prefix, monday, 7)
            run = await_week(client, number + 1)
            dataset = client.get(f"pipelines/{PIPELINE}/datasets/{number + 1}")["dataset"]
            line = week_line(monday, 7, run, dataset)
            if line["model_version"] is not None and not scoring.is_alive():
                scoring.start()
            note_first_answer(line, run, scoring)
            lines.append(line)
            out.print(_said(number + 1, line), highlight=False)
    finally:
        seen = scoring.stop() if scoring.is_alive() else scoring.seen
    return lines, seen


def _inference(state: Path) -> tuple[str, str]:
    told = json.loads((state / "connection.json").read_text())
    return told["sidecars"]["inference"], (state / "inference.key").read_text().strip()


def _said(number: int, line: dict[str, Any]) -> str:
    verdict = (line["verdict"] or "no verdict").replace("_", " ")
    said = (
        f"week {number:2}  {line['rows']:5,} flights -> dataset v{line['dataset_version']:<2}  "
        f"trained in {line['training_seconds'] or 0:4.1f} s  {verdict:11}  {_interval(line):19}  "
    )
    if line["model_version"] is None:
        refused = "not promoted" if line["outcome"] == "kept_champion" else str(line["outcome"]).replace("_", " ")
        return said + f"[yellow]{refused}[/]"
    wait = f" after {line['live_seconds']:.2f} s" if number > 1 and line["live_seconds"] is not None else ""
    return said + f"[green]v{line['model_version']} is live{wait}[/]"


def _interval(line: dict[str, Any]) -> str:
    low, high = line["interval"] or (None, None)
    return f"{low:+.4f} .. {high:+.4f}" if low is not None and high is not None else "too few days yet"


def _days(week: str) -> str:
    first, last = (date.fromisoformat(day) for day in week.split(".."))
    return f"{first:%d %b} - {last:%d %b}"


def report(lines: list[dict[str, Any]], seen: Answers) -> dict[str, Any]:
    """Print the table and return the summary."""
    table = Table(title="What happened", box=None, header_style="bold")
    for column in ("week", "files", "rows", "dataset", "verdict", "interval", "live model", "s to live*"):
        table.add_column(column, justify="right" if column in ("files", "rows", "s to live*") else "left")
    live: int | None = None
    for line in lines:
        live = line["model_version"] or live
        table.add_row(
            _days(line["week"]),
            str(line["files"]),
            f"{line['rows']:,}",
            f"v{line['dataset_version']}",
            (line["verdict"] or "none").replace("_", " "),
            _interval(line),
            f"v{live}" if live else "-",
            f"{line['live_seconds']:.2f}" if line["live_seconds"] is not None else "kept",
        )
    out.print(table)
    # The first model takes an empty place: what is counted are changes under the client's eyes.
    refusals = sum(line["verdict"] is not None and line["model_version"] is None for line in lines)
    waits = [line["live_seconds"] for line in lines[1:] if line["live_seconds"] is not None]
    summary = {
        "swaps": seen.swaps,
        "refusals": refusals,
        "requests": seen.requests,
        "failed_requests": seen.failed,
        "overhead_seconds_median": round(statistics.median(waits), 3) if waits else None,
        "weeks": lines,
    }
    out.print(
        f"\n{summary['requests']:,} requests, {summary['failed_requests']} failed, {summary['swaps']} swaps, "
        f"{refusals} refusals; median {summary['overhead_seconds_median']} s to live*",
        highlight=False,
    )
    out.print(
        "* from the moment the week's files were complete to the new model's first answer, beyond the training "
        "process's own time",
        style="dim",
    )
    for failure in seen.failures:
        out.print(f"[red]failed request:[/] {failure}")
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weeks", type=int, default=14, help="weeks of 2013 to play (default 14, at most 52)")
    parser.add_argument("--state", type=Path, default=ROOT / ".demo", help="state folder; emptied first")
    parser.add_argument("--summary", type=Path, default=ROOT / "demo-summary.json")
    asked = parser.parse_args()
    begun = time.monotonic()
    out.print("Starting the platform on this machine: host, ledger, inference server ...")
    process, client = start_platform(asked.state.absolute())
    try:
        client.apply(PIPELINE, FOLDER)
        out.print(f"It answers at {client.connection.url}. {asked.weeks} weeks of flights drop in now, one file a day.")
        lines, seen = play(client, asked.state.absolute(), min(asked.weeks, 52))
    finally:
        stop_platform(process)
    summary = report(lines, seen)
    asked.summary.write_text(json.dumps(summary, indent=2) + "\n")
    out.print(f"{time.monotonic() - begun:.0f} s in all; the figures are in {asked.summary.name}", highlight=False)
    return 1 if summary["failed_requests"] or len(lines) < asked.weeks else 0


if __name__ == "__main__":
    sys.exit(main())
