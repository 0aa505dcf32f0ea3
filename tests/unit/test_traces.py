"""Ids of traces follow from what is known, alike on every host."""

from __future__ import annotations

from dropforge.domain.causes import Cause
from dropforge.domain.traces import ROOT, Trace, span_told, trace_of, trace_told

CAUSE = Cause("message-1", "command")
CALLERS = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_everything_that_one_cause_set_going_is_one_trace() -> None:
    assert trace_of(CAUSE, "flights", 1) == trace_of(CAUSE, "flights", 2)
    assert trace_of(CAUSE, "flights", 1) != trace_of(Cause("message-2", "command"), "flights", 1)


def test_a_correlation_id_joins_what_came_through_several_doors() -> None:
    first, second = Cause("a", "command", "campaign 7"), Cause("b", "http", "campaign 7")
    assert trace_of(first, "flights", 1) == trace_of(second, "weather", 9)


def test_a_callers_trace_is_gone_on_with() -> None:
    told = trace_told(f"00-{CALLERS}-00f067aa0ba902b7-01")
    assert told == CALLERS
    assert trace_of(Cause("x", "http", told), "flights", 1).id == CALLERS


def test_what_no_event_told_of_is_traced_by_the_dataset_version_it_became() -> None:
    assert trace_of(None, "flights", 3) == trace_of(None, "flights", 3) != trace_of(None, "flights", 4)


def test_a_span_told_twice_is_the_same_span() -> None:
    trace = trace_of(CAUSE, "flights", 1)
    assert trace.span("submit run", "r1") == trace.span("submit run", "r1")
    assert len({trace.span("submit run", "r1"), trace.span("submit run", "r2"), trace.span("judge run", "r1")}) == 3


def test_a_traceparent_that_is_none_is_no_trace() -> None:
    zeros = f"00-{'0' * 32}-00f067aa0ba902b7-01"
    for wrong in (None, "", "00-abc-def-01", zeros, f"00-{CALLERS.upper()}-00f067aa0ba902b7-01", 7):
        assert trace_told(wrong) is None


def test_a_parent_leads_back_to_its_trace_and_span() -> None:
    trace = Trace(CALLERS)
    assert span_told(trace.parent(ROOT)) == (trace, trace.span(ROOT))
