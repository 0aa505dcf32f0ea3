"""The loop of the flights example through the adapters of Azure; undisturbed, and with everything going wrong."""

from __future__ import annotations

import importlib.util
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.azure_machine import ENDPOINT, Cloud, cloud
from tests.e2e.machine import ROOT
from tests.secret_shapes import findings

FLIGHTS = ROOT / "examples" / "flights"


def _feed() -> Any:
    """The example's feed, under a name of its own: other examples have one, too, and each imports by bare name."""
    spec = importlib.util.spec_from_file_location("flights_feed", FLIGHTS / "feed.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(FLIGHTS))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FLIGHTS))
    return module


feed = _feed()

# The first ends with the champion kept (there is none), the second with a promotion.
WEEKS = 2
# What the loop writes in Azure ML; each is met by a failure.
WRITTEN = {
    ("PUT", kind)
    for kind in ("environments/versions", "jobs", "models/versions", "onlineEndpoints", "onlineEndpoints/deployments")
}
# The SDKs', about libraries that they chose, and a socket that azure-servicebus leaves when a connection cannot be made.
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def flights(folder: Path) -> Path:
    """The example's folder with the one line changed that takes it to Azure ML, and batches that are cut when a week is
    complete, and only then: what they are does not depend on when a lost event is made up for."""
    target = folder / "flights"
    target.mkdir()
    for file in FLIGHTS.glob("*.py"):
        (target / file.name).write_bytes(file.read_bytes())
    text = (FLIGHTS / "pipeline.yaml").read_text()
    for old, new in (
        ("compute: {target: local, timeout: 10m}", "compute: {target: azureml, timeout: 10m}"),
        (
            "batching: {quiet_period: 2s, max_wait: 30s, max_files: 7}",
            "batching: {quiet_period: 1h, max_wait: 2h, max_files: 7}",
        ),
    ):
        assert old in text
        text = text.replace(old, new)
    (target / "pipeline.yaml").write_text(text)
    return target


def play(running: Cloud, folder: Path, *, lost: date | None = None) -> dict[str, Any]:
    """Some weeks of flights, and what came of them. `lost`: the day whose event never comes."""
    running.platform.client.apply("flights", flights(folder))
    for week in range(WEEKS):
        for day in feed.days(feed.FIRST_DAY + timedelta(days=7 * week), 7):
            file = feed.write_day(day, folder / "files")
            running.drop(f"flights/{file.name}", file, told=day != lost)
        running.platform.settled("flights", week + 1, seconds=150)
    status = running.platform.status("flights")
    models = running.plane.models["flights"]
    endpoint = running.plane.endpoints[ENDPOINT]["properties"]
    answer = running.score(feed.requests_for(feed.FIRST_DAY + timedelta(days=7 * WEEKS))[:5], "flights")
    return {
        "outcomes": [(run["dataset_version"], run["outcome"], run["verdict"]) for run in status["runs"]],
        "champion": status["champion"],
        "models": sorted(models),
        "alias": {number: model["properties"]["tags"].get("alias.champion") for number, model in models.items()},
        # Their names are made of what they are deployed with, the emulator's port among it.
        "traffic": sorted(endpoint["traffic"].values()),
        "deployments": len(running.plane.deployments(ENDPOINT)),
        "version": answer["model_version"],
        "answer": [output["data"] for output in answer["outputs"]],
    }


def test_the_loop_ends_the_same_however_azure_fails(tmp_path: Path) -> None:
    for name in ("calm", "rough"):
        (tmp_path / name).mkdir()
    with cloud(tmp_path / "calm") as running:
        calm = play(running, tmp_path / "calm")
        assert running.plane.invalid == []
        first = next(name for name in running.plane.jobs if name.startswith("flights-1-"))
    assert "promoted" in [outcome for _, outcome, _ in calm["outcomes"]]
    assert calm["models"] == [str(number + 1) for number in range(WEEKS)]
    assert calm["version"] == str(calm["champion"])
    assert calm["traffic"] == [100]

    with cloud(tmp_path / "rough", AzureFunctionsJobHost__logging__logLevel__default="Debug") as running:
        running.plane.faults.fail(0.2, seed=4, each_kind=True)
        running.plane.faults.preempt(first, after=0.5)
        rough = play(running, tmp_path / "rough", lost=feed.FIRST_DAY + timedelta(days=2))
        assert running.plane.invalid == []
        assert running.plane.faults.met >= WRITTEN
        assert running.plane.jobs[first].attempts == 2
        logs, ours = running.logs(), (running.plane.identity.header, running.plane.scoring_key(ENDPOINT))
        # What `dropforge up` shows whoever starts it on a machine: the address of the local Service Bus.
        shown = running.platform.connection["service_bus"]
    assert rough == calm
    # However much is logged, and whatever went wrong.
    assert sum(text.count("Debug") for text in logs.values()) > 100
    told = [(name, found) for name, text in logs.items() for found in findings(text.replace(shown, ""))]
    assert [f"{name}, {found}" for name, found in told if found.value.strip("*")] == []
    assert [name for name, text in logs.items() if any(each in text for each in ours)] == []
