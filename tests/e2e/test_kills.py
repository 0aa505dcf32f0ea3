"""SIGKILL at any moment: the end state is that of the undisturbed run."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dropforge.adapters.local.ledger import SqliteLedger
from dropforge.domain.errors import DropforgeError
from dropforge.steps import books
from tests.e2e.machine import COIN, Platform, eventually, sources_of, throws

VERSIONS = 4
FILES = 3


def play(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Drop four batches, one after the other, while the host is killed so many times; the end state."""
    state, counted = folder / "state", folder / "runs.txt"
    # The training script counts how often it really ran; it works in <state>/runs/<run>/code.
    pipeline = folder / "coin"
    pipeline.mkdir(parents=True)
    text = (COIN / "pipeline.yaml").read_text()
    text = text.replace(
        "command: python train.py", "command: python train.py\n  environment: {COIN_RUNS: ../../../../runs.txt}"
    )
    (pipeline / "pipeline.yaml").write_text(text)
    (pipeline / "train.py").write_text((COIN / "train.py").read_text())
    platform = Platform(state)
    with platform:
        platform.client.apply("coin", pipeline)
        killer = Killer(platform, kills, seed)
        killer.start()
        ledger = SqliteLedger(state / "ledger.db")
        try:
            for version in range(VERSIONS):
                for file in range(FILES):
                    # The boxes change their ways from version to version: a new model has something to learn.
                    bias = 0.4 if version % 2 else -0.4
                    platform.drop("coin/", throws(folder / "files", version * FILES + file, days=4, bias=bias))
                    time.sleep(0.02)
                eventually(lambda wanted=version + 1: _concluded(ledger, wanted), 240, platform.log)
                killer.version_done(version + 1)
        finally:
            killer.stop()
        assert killer.killed >= kills
        platform.ready()
        end = end_state(state, ledger, counted)
        answer = eventually(lambda: platform.answer("coin", [{"box": 3}]), 30, platform.log)
        end["answer"] = answer["model_version"]
        ledger.close()
        return end


def _concluded(ledger: SqliteLedger, version: int) -> bool:
    try:
        row = ledger.get("p.coin", "head")
    except DropforgeError:
        return False
    if row is None or row.value["version"] < version or row.value["run"] is not None:
        return False
    alive = [ledger.get("p.coin", f"lane/{lane}") for lane in ("intake", "train")]
    return (
        row.value["considered"] is not None
        and row.value["considered"][0] == version
        and not any(each is not None and each.value["alive"] for each in alive)
    )


class Killer(threading.Thread):
    """Kills the host at random moments and starts it again, its kills spread over the versions of the scenario."""

    def __init__(self, platform: Platform, kills: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.killed = 0
        self._platform, self._kills, self._chance = platform, kills, random.Random(seed)
        self._version = 0
        self._over = threading.Event()

    def run(self) -> None:
        while self.killed < self._kills and not self._over.is_set():
            # Some moments fall into the host's start, some into its work.
            time.sleep(self._chance.uniform(0.05, 3.5))
            self._platform.kill()
            self._platform.start()
            self.killed += 1

    def version_done(self, version: int) -> None:
        """Let no version pass in peace: wait until this version's share of the kills has happened."""
        eventually(lambda: self.killed >= self._kills * version // VERSIONS, 300, lambda: f"{self.killed} kills")

    def stop(self) -> None:
        self._over.set()
        self.join(30)


def end_state(state: Path, ledger: SqliteLedger, counted: Path) -> dict[str, Any]:
    """Everything that must not depend on how often the host died; nothing that says when."""
    head = ledger.get("p.coin", "head")
    assert head is not None
    manifests = []
    for version in range(1, head.value["version"] + 1):
        found = books.dataset_version(ledger, "p.coin", version)
        manifest = json.loads((state / "artifacts" / found.manifest).read_text())
        sources = [(each["url"], each["sha256"], each["rows"]) for each in manifest["sources"]]
        manifests.append((found.version, found.batch, found.files, found.rows, found.total_rows, sources))
    runs = [row.value for row in books.every(ledger, "p.coin", "run/")]
    sources = sources_of(state / "tables" / "coin")
    registered = [row.value for row in books.every(ledger, "m.coin", "version/")]
    champion = ledger.get("m.coin", "alias/champion")
    return {
        "manifests": manifests,
        "rows_per_source": sorted(Counter(sources).values()),
        "runs": sorted((each["spec"]["run"], each["state"], each["outcome"], each["model_version"]) for each in runs),
        "ran": sorted(counted.read_text().split()),
        "models": [(each["version"], each["sha256"], each["lineage"]["run"]) for each in registered],
        "champion": champion and champion.value["version"],
        "pending": [row.key for row in ledger.scan("p.coin", "pending/")],
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    end = play(tmp_path_factory.mktemp("undisturbed"), 0, 0)
    assert len(end["manifests"]) == VERSIONS
    assert len(end["ran"]) == len(set(end["ran"])) == VERSIONS
    assert end["champion"] == int(end["answer"])
    assert sum(outcome == "promoted" for _, _, outcome, _ in end["runs"]) >= 2
    return end


@pytest.mark.timeout(600)
def test_a_host_that_is_killed_again_and_again_ends_where_it_would_have(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    assert play(tmp_path, int(os.environ.get("KILLS", "8")), 1) == undisturbed


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_kills(tmp_path: Path, undisturbed: dict[str, Any], seed: int) -> None:
    assert play(tmp_path, 20, 100 + seed) == undisturbed
