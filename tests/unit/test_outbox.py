"""The outbox: everything is told everywhere, in order, at least once; nothing and nobody holds up anybody else."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropforge.adapters.memory.events import MemoryEvents
from dropforge.adapters.memory.ledger import MemoryLedger
from dropforge.adapters.memory.replies import MemoryReplies
from dropforge.domain.causes import Cause
from dropforge.domain.errors import BadInput, DropforgeError, Refused, Unavailable
from dropforge.domain.events import DomainEvent, Reply, cloud_event
from dropforge.ports import Ports
from dropforge.steps import approvals, books, outbox
from tests.unit.flows.world import YAML, World

NOW = datetime(2026, 1, 5, tzinfo=UTC)
HERE = "p.demo"


class Listener(MemoryEvents):
    """A place that can be away, refuse certain events, or fail just after it has heard."""

    def __init__(self) -> None:
        super().__init__()
        self.error: DropforgeError | None = None
        self.refuses: set[str] = set()
        self.deaf = False

    def publish(self, event: DomainEvent) -> None:
        if self.error is not None:
            raise self.error
        if event.type in self.refuses:
            raise Refused(f"no {event.type} here")
        super().publish(event)

    def types(self) -> list[str]:
        return [event.type for event in self.published]


class Place:
    """An outbox with two listeners and a reply queue."""

    def __init__(self) -> None:
        self.ledger = MemoryLedger()
        self.journal, self.webhook, self.replies = Listener(), Listener(), MemoryReplies()
        unused: Any = dict.fromkeys(field.name for field in fields(Ports))
        self.ports = Ports(
            **unused
            | {
                "ledger": self.ledger,
                "events": {"journal": self.journal, "webhook": self.webhook},
                "replies": self.replies,
            }
        )
        self._told = 0

    def happens(self, *names: str) -> None:
        for name in names:
            self._told += 1
            at = NOW + timedelta(seconds=self._told)
            entry = outbox.entry(DomainEvent(f"id-{name}", name, "x", at, cause=Cause("m1", "command", "t-1", 2)))
            self.ledger.commit(HERE, [entry])

    def answers(self, *ids: str) -> None:
        for id_ in ids:
            self._told += 1
            self.ledger.commit(HERE, [outbox.entry(Reply(id_, "answers", NOW + timedelta(seconds=self._told), {}))])

    def rows(self, prefix: str = "") -> list[str]:
        return [row.key for row in books.every(self.ledger, HERE, prefix)]


@pytest.fixture
def place() -> Place:
    return Place()


AWAY = Unavailable("nobody there")


def test_what_happened_is_told_everywhere_in_order(place: Place) -> None:
    place.happens("A", "B", "C")
    assert outbox.flush(place.ports, HERE)
    assert place.journal.types() == place.webhook.types() == ["A", "B", "C"]
    assert place.rows() == []


def test_an_event_is_told_under_an_id_that_says_its_hops(place: Place) -> None:
    place.happens("A")
    outbox.flush(place.ports, HERE)
    (told,) = place.journal.published
    assert (told.id, told.hops) == ("id-A.3", 3)
    assert cloud_event(told, "/here") == {
        "specversion": "1.0",
        "id": "id-A.3",
        "source": "/here",
        "type": "dropforge.A",
        "subject": "x",
        "time": NOW + timedelta(seconds=1),
        "datacontenttype": "application/json",
        "hops": 3,
        "causationid": "m1",
        "correlationid": "t-1",
        "data": {},
    }


def test_an_id_from_outside_makes_no_attribute_that_cloud_events_forbids() -> None:
    event = DomainEvent("id", "A", "x", NOW, cause=Cause("a\nb\x00", "http", "\x85"))
    assert event.extensions == {"hops": 1, "causationid": "a\ufffdb\ufffd", "correlationid": "\ufffd"}


def test_a_place_that_does_not_answer_keeps_nothing_from_the_others(place: Place) -> None:
    place.webhook.error = AWAY
    place.happens("A", "B")
    place.answers("r1")
    assert not outbox.flush(place.ports, HERE)
    place.happens("C")
    assert not outbox.flush(place.ports, HERE)
    assert place.journal.types() == ["A", "B", "C"]
    assert [reply.id for reply in place.replies.sent] == ["r1"]
    assert len(place.rows("late/webhook/")) == len(place.rows()) == 3


def test_who_answers_again_is_told_what_he_missed_in_order_and_once(place: Place) -> None:
    place.webhook.error = AWAY
    place.happens("A", "B")
    outbox.flush(place.ports, HERE)
    place.webhook.error = None
    place.happens("C")
    assert outbox.flush(place.ports, HERE)
    assert place.webhook.types() == place.journal.types() == ["A", "B", "C"]
    assert place.rows() == []


def test_a_step_waits_for_one_page_of_what_was_missed_and_the_sweep_for_more(place: Place) -> None:
    names = [f"E{number:03d}" for number in range(120)]
    place.webhook.error = AWAY
    place.happens(*names)
    outbox.flush(place.ports, HERE)
    place.webhook.error = None
    place.happens("Z")
    assert not outbox.flush(place.ports, HERE)
    assert place.webhook.types() == names[:50]
    assert outbox.flush(place.ports, HERE, pages=10)
    assert place.webhook.types() == [*names, "Z"]


def test_a_reply_queue_that_is_away_does_not_hold_up_events(place: Place) -> None:
    place.replies.down = True
    place.answers("r1")
    place.happens("A")
    assert not outbox.flush(place.ports, HERE)
    assert place.journal.types() == ["A"]
    place.replies.down = False
    assert outbox.flush(place.ports, HERE)
    assert [reply.id for reply in place.replies.sent] == ["r1"]


def test_what_can_never_be_told_is_kept_with_the_reason_for_that_place_alone(place: Place) -> None:
    place.webhook.refuses = {"A"}
    place.happens("A", "B")
    assert outbox.flush(place.ports, HERE)
    assert place.journal.types() == ["A", "B"]
    assert place.webhook.types() == ["B"]
    (row,) = books.every(place.ledger, HERE, "untold/webhook/")
    assert row.value["reason"] == "no A here"
    assert len(place.rows()) == 1


def test_a_late_event_that_is_refused_is_kept_too(place: Place) -> None:
    place.webhook.error = AWAY
    place.happens("A", "B")
    outbox.flush(place.ports, HERE)
    place.webhook.error, place.webhook.refuses = None, {"A"}
    assert outbox.flush(place.ports, HERE)
    assert place.webhook.types() == ["B"]
    assert len(place.rows("untold/webhook/")) == len(place.rows()) == 1


def test_a_reply_for_a_queue_there_is_none_of_is_kept_with_the_reason(place: Place) -> None:
    place.replies.queues = frozenset({"others"})
    place.answers("r1")
    assert outbox.flush(place.ports, HERE)
    (row,) = books.every(place.ledger, HERE, "untold/replies/")
    assert "no queue 'answers'" in row.value["reason"]


def test_a_row_that_makes_no_sense_holds_up_nobody(place: Place) -> None:
    entry = outbox.entry(Reply("r0", "answers", NOW, {}))
    place.ledger.commit(HERE, [replace(entry, value={"kind": "reply", "value": {"id": 3}})])
    place.answers("r1")
    assert outbox.flush(place.ports, HERE)
    assert [reply.id for reply in place.replies.sent] == ["r1"]
    assert len(place.rows("untold/")) == 1


def test_another_hosts_flush_at_the_same_moment_loses_nothing(place: Place) -> None:
    class Meddler(Listener):
        busy = True

        def publish(self, event: DomainEvent) -> None:
            if self.busy:
                self.busy = False
                outbox.flush(ports, HERE)
                raise AWAY
            super().publish(event)

    meddler = Meddler()
    ports = replace(place.ports, events={"journal": place.journal, "webhook": meddler})
    place.happens("A", "B")
    outbox.flush(ports, HERE)
    assert outbox.flush(ports, HERE)
    for listener in (place.journal, meddler):
        assert {event.type for event in listener.published} == {"A", "B"}
    assert place.rows() == []


@settings(max_examples=60)
@given(
    steps=st.lists(
        st.sampled_from(
            ["happens", "answers", "flush", "webhook away", "webhook back", "replies away", "replies back"]
        ),
        max_size=25,
    )
)
def test_whoever_comes_and_goes_everything_is_told_once_and_in_order(steps: list[str]) -> None:
    place = Place()
    events: list[str] = []
    replies: list[str] = []
    for number, step in enumerate(steps):
        match step:
            case "happens":
                events.append(f"E{number}")
                place.happens(events[-1])
            case "answers":
                replies.append(f"r{number}")
                place.answers(replies[-1])
            case "flush":
                outbox.flush(place.ports, HERE)
            case "webhook away" | "webhook back":
                place.webhook.error = AWAY if step == "webhook away" else None
            case _:
                place.replies.down = step == "replies away"
    place.webhook.error, place.replies.down = None, False
    assert outbox.flush(place.ports, HERE)
    assert place.journal.types() == place.webhook.types() == events
    assert [reply.id for reply in place.replies.sent] == replies
    assert place.rows() == []


# ------------------------------------------------------------------------------------------------ what is told
def _documented() -> dict[str, set[str]]:
    text = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
    rows = re.findall(r"^\| `dropforge\.(\w+)` \| `[^`]+` \| `(\{[^`]+\})`", text, re.MULTILINE)
    return {kind: set(json.loads(data)) for kind, data in rows}


def test_every_event_is_documented_with_the_data_it_has(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + "gate: {first: ask}\n")
    world.drop("demo/bad.csv", "")
    world.drop("demo/a.csv")
    world.run(timedelta(minutes=10))
    wake = _answered(world)
    world.raise_event(wake["flow"], wake["event"])
    world.run(timedelta(minutes=10))
    world.replica = lambda desired: world.report(desired, desired.revision - 1, "out of memory")
    world.drop("demo/b.csv")
    world.run(timedelta(minutes=10))
    told = {event.type: set(event.data) for event in world.events.published}
    assert told.pop("ModelRegistered") == told["RunFinished"]
    assert told.items() <= _documented().items()
    assert len(told) == 6


def _answered(world: World) -> dict[str, str]:
    return approvals.answer(world.ports, "demo", world.runs()[0].spec.run, "approve", "anna", world.now)


def test_data_that_is_no_json_is_found_when_the_fact_is_committed() -> None:
    with pytest.raises((BadInput, TypeError)):
        MemoryLedger().commit(HERE, [outbox.entry(DomainEvent("id", "A", "x", NOW, {"x": object()}))])
