"""A promoted model on its way to all of the traffic, on the whole platform and under load."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.machine import COIN, Platform, eventually

CANARY = "deployment: {timeout: 60s, canary: {steps: [40], bake: 2s, min_requests: 50, mirror: 50}}"
# Boxes up to 8, all that was ever thrown into, as the training node sees them; of box 9 it knows nothing.
FORGETFUL = "table = np.stack([1 - share, share], axis=1)[:9]"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(tmp_path_factory.mktemp("platform") / "state") as running:
        yield running


def pipeline(folder: Path, **changes: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = (COIN / "pipeline.yaml").read_text().replace("max_files: 3", "max_files: 1")
    (folder / "pipeline.yaml").write_text(text.replace("deployment: {timeout: 60s}", CANARY))
    train = (COIN / "train.py").read_text()
    for old, new in changes.items():
        assert old in train
        train = train.replace(old, new)
    (folder / "train.py").write_text(train)
    return folder


def throws(folder: Path) -> Path:
    """Fourteen days of throws, none of them into box 9."""
    lines = ["box,thrown_at,heads"]
    for number in range(2800):
        box = number * 7 % 9
        heads = int((number * 31 % 100) < (85 if box % 2 else 15))
        lines.append(f"{box},2026-01-{1 + number // 200:02}T{number % 200 // 10:02}:{number % 10:02}:00+00:00,{heads}")
    path = folder / "throws.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


class Load:
    """Requests one after the other, each of which must be answered."""

    def __init__(self, platform: Platform) -> None:
        self.versions: Counter[str] = Counter()
        self.lost: list[Any] = []
        self.boxes = range(9)
        self._place = urlsplit(platform.connection["sidecars"]["inference"])
        self._key = (platform.state / "inference.key").read_text().strip()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._place.hostname or "", self._place.port, timeout=10)
        headers = {"authorization": f"Bearer {self._key}"}
        number = 0
        while not self._over.wait(0.002):
            number += 1
            body = json.dumps({"rows": [{"box": self.boxes[number % len(self.boxes)]}]})
            try:
                connection.request("POST", "/v2/models/coin/infer", body, headers)
                response = connection.getresponse()
                told = json.loads(response.read())
            except OSError as error:
                self.lost.append(error)
                continue
            if response.status == 200:
                self.versions[told["model_version"]] += 1
            else:
                self.lost.append((response.status, told))
        connection.close()


def test_a_candidate_that_raises_is_rolled_back_before_it_answers_anybody_and_a_good_one_gets_there(
    platform: Platform, tmp_path: Path
) -> None:
    platform.client.apply("coin", pipeline(tmp_path / "coin"))
    platform.drop("coin/", throws(tmp_path))
    assert platform.settled("coin", 1)["champion"] == 1
    # A model that is as good on every row that was ever seen, and fails on others.
    changes = {"table = np.stack([1 - share, share], axis=1)": FORGETFUL}
    platform.client.apply("coin", pipeline(tmp_path / "coin", **changes))
    second = eventually(lambda: model(platform, 2), 60, platform.log)
    with Load(platform) as load:
        eventually(lambda: load.versions["1"] > 50, 20, platform.log)
        platform.client.post("pipelines/coin/promote", version=second)
        eventually(lambda: deployed(platform) == [(2, 0), (1, 100)], 30, platform.log)
        # Not before: a request that the champion has just answered is what a candidate is tried with.
        load.boxes = range(10)
        endpoint = eventually(lambda: rolled_back(platform), 30, platform.log)
        assert "at 0 percent of the traffic, version 2 failed" in endpoint["reason"]
        assert deployed(platform) == [(1, 100)] and platform.status("coin")["champion"] == 1
        assert load.versions.keys() == {"1"} and load.lost == []
        # The first code again, as a version of its own.
        platform.client.apply("coin", pipeline(tmp_path / "coin", **{"print(f": "print(f'again', f"}))
        third = eventually(lambda: model(platform, 3), 60, platform.log)
        platform.client.post("pipelines/coin/promote", version=third)
        eventually(lambda: deployed(platform) == [(3, 40), (1, 60)], 30, platform.log)
        eventually(lambda: platform.status("coin")["champion"] == 3, 30, platform.log)
        before = load.versions["3"]
        eventually(lambda: load.versions["3"] > before + 20, 10, platform.log)
        assert load.lost == [] and load.versions.keys() == {"1", "3"}
    assert deployed(platform) == [(3, 100)]


def model(platform: Platform, version: int) -> int | None:
    """The version, once it is registered and its run is over."""
    told = platform.status("coin")
    known = [each["version"] for each in platform.client.get("pipelines/coin/models")["models"]]
    return version if version in known and told["live_run"] is None else None


def deployed(platform: Platform) -> list[tuple[int, int]]:
    """Versions and their traffic, as the endpoint's replica serves them."""
    (replica,) = platform.status("coin")["endpoint"]["replicas"]
    return [(each["version"], each["traffic"]) for each in replica["states"]]


def rolled_back(platform: Platform) -> dict[str, Any] | None:
    endpoint: dict[str, Any] = platform.status("coin")["endpoint"]
    serves = [each["revision"] for each in endpoint["replicas"]] == [endpoint["revision"]]
    return endpoint if endpoint["reason"] is not None and serves else None
