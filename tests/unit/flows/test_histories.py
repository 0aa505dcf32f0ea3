"""Episodes recorded from flows that ran: today's code still decides as it did, so instances in flight survive a deploy.

A recording is one instance's life, an episode a line (`dropforge up --record`). When a flow must change what it asks for,
it becomes a new flow, or the recording is replaced and the changelog tells people to drain.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import azure.durable_functions as df
import pytest

from orchestrators import deploy, intake, respond, train

HISTORIES = Path(__file__).parent.parent.parent / "histories"
FLOWS = {
    "deploy": deploy.guarded(deploy.deploy),
    # In steps: `deployment.canary`.
    "deploy-canary": deploy.guarded(deploy.deploy),
    "intake": intake.guarded(intake.intake),
    "respond": respond.guarded(respond.respond),
    "train": train.guarded(train.train),
}


def episodes(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HISTORIES / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_recorded_episodes_still_replay(name: str) -> None:
    replay = df.Orchestrator.create(FLOWS[name])
    recorded = episodes(name)
    for episode in recorded:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the SDK's own, of events that came twice
            state = replay(episode["context"])
        assert json.loads(state) == json.loads(episode["state"])
    assert json.loads(recorded[-1]["state"])["isDone"]
