"""When a replica looks for what is desired."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dropforge.serving.converge import until_look

# From the first file to the next century; a look of every hundredth of a second to one a minute.
NOW = st.floats(0, 4e9)
POLL = st.floats(0.01, 60)


@given(NOW, POLL)
def test_a_look_is_never_at_once_and_never_much_later_than_one_interval(now: float, poll: float) -> None:
    assert poll / 10 < until_look(now, poll) <= 1.1 * poll + 1e-6


@given(NOW, POLL, st.floats(0, 0.8))
def test_replicas_that_looked_in_one_interval_look_next_at_the_same_time(now: float, poll: float, apart: float) -> None:
    first = now - now % poll
    one, other = first + 0.05 * poll, first + 0.05 * poll + apart * poll
    assert abs(one + until_look(one, poll) - other - until_look(other, poll)) < 1e-5
