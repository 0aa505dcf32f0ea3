"""Run events: a training run whose process has ended is announced as Azure Machine Learning would.

A run that ended well is told as `RunCompleted`. One that did not is told as `RunStatusChanged` with the status
`Failed` or `Canceled`. Azure does not promise an event for those, so a flow needs a timer of its own as well.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dropforge.host.announcer import Announcer, Event

_log = logging.getLogger(__name__)

_TOPIC = (
    "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/local"
    "/providers/Microsoft.MachineLearningServices/workspaces/local"
)
_EXIT_FILE = "exit.json"
_INTERVAL_SECONDS = 0.1
_MARK = "ended"


class RunEvents:
    """Watches `<runs>/<run id>/exit.json`, which the local compute writes, whole, when a run's process has ended."""

    def __init__(self, runs: Path, announcer: Announcer, interval_seconds: float = _INTERVAL_SECONDS) -> None:
        self._runs = runs
        self._announcer = announcer
        self._interval_seconds = interval_seconds
        self._ended: set[str] = set()

    async def look(self) -> float:
        """Announce the runs that have ended since the last look; returns how many seconds to wait before the next."""
        try:
            with os.scandir(self._runs) as entries:
                open_runs = [entry.name for entry in entries if entry.name not in self._ended]
        except FileNotFoundError:
            return self._interval_seconds
        for run in open_runs:
            try:
                text = (self._runs / run / _EXIT_FILE).read_text(encoding="utf-8", errors="replace")
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                _log.warning("the end of run %r cannot be read: %s", run, error)
                continue
            self._ended.add(run)
            if not self._announcer.is_delivered(run, _MARK):
                self._announcer.offer(run, _MARK, run_event(run, text, datetime.now(UTC)))
        return self._interval_seconds


def run_event(run: str, exit_json: str, now: datetime) -> Event:
    """The event of an ended run, in the Event Grid schema; the same run has the same event id."""
    status = _status(exit_json)
    kind = "RunCompleted" if status == "Completed" else "RunStatusChanged"
    data: dict[str, Any] = {
        "experimentId": "local",
        "experimentName": "local",
        "runId": run,
        "runType": None,
        "runTags": {},
        "runProperties": {},
        "runStatus": status,
    }
    return {
        "topic": _TOPIC,
        "subject": f"experiments/local/runs/{run}",
        "eventType": f"Microsoft.MachineLearningServices.{kind}",
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%f0Z"),
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{_TOPIC}\n{run}")),
        "data": data,
        "dataVersion": "",
        "metadataVersion": "1",
    }


def _status(exit_json: str) -> str:
    """How the run ended, in the words of Azure ML; a file that does not say is a failure."""
    try:
        found = json.loads(exit_json)
    except ValueError:
        return "Failed"
    state = found.get("state") if isinstance(found, dict) else None
    return {"succeeded": "Completed", "cancelled": "Canceled"}.get(str(state), "Failed")
