"""The Prometheus text."""

from __future__ import annotations

from dropforge.serving.metrics import Counts, family, histogram


def test_a_histogram_is_cumulative_and_ends_with_everything() -> None:
    counts = Counts()
    for seconds in (0.0005, 0.0006, 0.2, 60.0):
        counts.add(seconds, failed=False)
    lines = list(histogram("h", "text", [({"endpoint": "flights"}, counts)]))
    assert lines[:2] == ["# HELP h text", "# TYPE h histogram"]
    assert lines[2] == 'h_bucket{endpoint="flights",le="0.0005"} 1'
    assert lines[3] == 'h_bucket{endpoint="flights",le="0.001"} 2'
    assert lines[-4] == 'h_bucket{endpoint="flights",le="10.0"} 3'
    assert lines[-3] == 'h_bucket{endpoint="flights",le="+Inf"} 4'
    assert lines[-2] == f'h_sum{{endpoint="flights"}} {counts.seconds}'
    assert lines[-1] == 'h_count{endpoint="flights"} 4'


def test_labels_are_escaped() -> None:
    assert list(family("s", "gauge", "text", [({"a": 'x"\\\n'}, 1)]))[-1] == 's{a="x\\"\\\\\\n"} 1'


def test_a_metric_without_values_has_no_heading() -> None:
    assert list(family("m", "counter", "text", [])) == []
    assert list(histogram("h", "text", [])) == []
    assert list(family("m", "counter", "text", [({}, 1)])) == ["# HELP m text", "# TYPE m counter", "m 1"]
