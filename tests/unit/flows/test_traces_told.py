"""Every trace that the loop tells has a root, whichever way its data came in."""

from __future__ import annotations

from pathlib import Path

import pytest

from dropforge import telemetry
from tests.unit.flows.world import World


class Kept(telemetry.Teller):
    """Keeps what it is told; nothing is sent."""

    def tell(self, told: telemetry.Told) -> None:
        self.queue.append(told)


@pytest.mark.parametrize("door", ["storage", "reconcile"])
def test_all_spans_of_a_drop_lie_under_its_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str) -> None:
    kept = Kept("test")
    monkeypatch.setattr(telemetry, "_teller", kept)
    world = World(tmp_path)
    # A file whose event never came, or came late, is found by the listing.
    world.drop("demo/a.csv", announce=1 if door == "storage" else 0)
    if door == "reconcile":
        world.reconcile()
    world.run()
    spans = [told for told in kept.queue if isinstance(told, telemetry.Span)]
    (root,) = {(span.name, span.span_id) for span in spans if span.parent_id is None}
    assert root[0].startswith(f"{door} ")
    others = [span for span in spans if span.parent_id is not None]
    assert {"write dataset version", "submit run"} <= {span.name for span in others}
    assert {span.parent_id for span in others} == {root[1]}
    assert len({span.trace_id for span in spans}) == 1
