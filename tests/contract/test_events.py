"""What every place that events go to promises."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropforge.domain.events import DomainEvent
from tests.contract.conftest import EventBench
from tests.contract.samples import NOW


def event(number: int, data: dict[str, Any] | None = None) -> DomainEvent:
    return DomainEvent(
        f"id-{number}", "ModelPromoted", "models/flights/versions/1", NOW + timedelta(microseconds=number), data or {}
    )


def heard(events: EventBench) -> list[DomainEvent]:
    return [DomainEvent(*each) for each in events.heard()]


def test_a_listener_hears_what_was_published_in_order(events: EventBench) -> None:
    told = [event(1, {"version": 3, "deep": {"ü": [None, 1.5]}}), event(2)]
    for each in told:
        events.events.publish(each)
    assert heard(events) == told


def test_an_event_told_twice_has_one_id(events: EventBench) -> None:
    events.events.publish(event(1))
    events.events.publish(event(1))
    assert {each.id for each in heard(events)} == {"id-1"}


def test_events_of_many_threads_all_arrive_whole(events: EventBench) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: events.events.publish(event(n, {"pad": "x" * 5_000})), range(60)))
    assert sorted(heard(events), key=lambda each: each.at) == [event(n, {"pad": "x" * 5_000}) for n in range(60)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.dictionaries(st.sampled_from("abc\n"), JSON, max_size=3))
def test_any_data_arrives_as_it_was(events: EventBench, data: dict[str, Any]) -> None:
    events.events.publish(event(1, data))
    assert heard(events)[-1] == event(1, data)


def test_the_time_of_an_event_is_the_one_it_was_told_with(events: EventBench) -> None:
    told = event(123_456)
    events.events.publish(told)
    (found,) = heard(events)
    assert (found.at, found.at.utcoffset()) == (told.at, timedelta(0))
