"""SIGKILL a replica while it swaps: it comes back with what is desired, and the replicas agree again."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_serving import Replica, eventually, one_row
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import deployment

POLL_SECONDS = 0.02
# A swap of a small model on a machine that does a dozen other things.
SWAP_SECONDS = 3.0


class Pair:
    """Two replicas of one state folder; which revision is desired, and when it was published."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.replicas = {name: self._start(name) for name in ("r1", "r2")}
        self.revision = 0
        self.published_at = 0.0

    def _start(self, name: str) -> Replica:
        return Replica(self.folder / "serving", "--replica", name, "--poll", str(POLL_SECONDS))

    def publish(self) -> None:
        """Revision n serves version n, which multiplies by n."""
        self.revision += 1
        model = deployment(self.folder, onnx_models.scaled(float(self.revision)), self.revision)
        self.replicas["r1"].publish(self.revision, model)
        self.published_at = time.monotonic()

    def kill(self, name: str) -> None:
        assert self.replicas[name].stop(signal.SIGKILL) == -signal.SIGKILL
        self.replicas[name] = self._start(name)

    def answers(self, name: str) -> int | None:
        """The version that answers, and gives that version's answer; None while none does."""
        answer = self.replicas[name].infer(one_row(1, 1, 1))
        if answer.status != 200:
            assert answer.status in (404, 503), answer
            return None
        version = int(answer.headers["dropforge-version"])
        assert answer.json["outputs"][0]["data"] == [version] * 3
        return version

    def settled(self) -> bool:
        """Whether both answer with what is desired."""
        return all(self.answers(name) == self.revision for name in self.replicas)

    def stop(self) -> None:
        assert [replica.stop() for replica in self.replicas.values()] == [0, 0]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    running = Pair(tmp_path)
    yield running
    for replica in running.replicas.values():
        if replica.process.poll() is None:
            replica.stop(signal.SIGKILL)


def kills(pair: Pair, count: int, seed: int) -> None:
    chance = random.Random(seed)
    pair.publish()
    eventually(pair.settled)
    for _ in range(count):
        pair.publish()
        # Before it looks, while it loads, as it swaps, after it has reported.
        time.sleep(chance.uniform(0, 0.12))
        pair.kill(chance.choice(("r1", "r2")))
        eventually(pair.settled)
        eventually(lambda: reported(pair) == {"r1": pair.revision, "r2": pair.revision})
    pair.stop()


def reported(pair: Pair) -> dict[str, int]:
    return {state.replica: state.revision for state in pair.replicas["r1"].serving.observe("flights")}


def test_a_replica_that_is_killed_while_it_swaps_comes_back_with_what_is_desired(pair: Pair) -> None:
    kills(pair, 10, seed=1)


@pytest.mark.soak
def test_after_a_hundred_kills_both_replicas_have_what_is_desired(pair: Pair) -> None:
    kills(pair, 100, seed=2)


def test_two_replicas_agree_within_a_look_and_a_swap(pair: Pair) -> None:
    pair.publish()
    eventually(pair.settled)
    apart: list[float] = []
    for _ in range(10):
        pair.publish()
        first = 0.0
        until = time.monotonic() + 30
        while True:
            found = [pair.answers(name) for name in pair.replicas]
            now = time.monotonic()
            # None ever goes back, and none answers with what was never desired.
            assert all(version in (pair.revision - 1, pair.revision) for version in found), found
            if pair.revision in found and not first:
                first = now
            if found == [pair.revision] * 2:
                break
            assert now < until
        apart.append(now - first)
    assert max(apart) < POLL_SECONDS + SWAP_SECONDS
    # As a rule it is a look of one that the other has had.
    assert sorted(apart)[len(apart) // 2] < 10 * POLL_SECONDS
    pair.stop()
