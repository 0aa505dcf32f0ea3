"""Which version lies under the one that an alias points to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dropforge.domain.models import standing


def test_who_goes_back_takes_off_what_came_after() -> None:
    assert standing((1, 2, 3)) == [1, 2, 3]
    assert standing((1, 2, 3, 2)) == [1, 2]
    assert standing((1, 2, 3, 2, 4)) == [1, 2, 4]


def test_what_was_taken_off_and_is_promoted_again_lies_on_top() -> None:
    assert standing((1, 2, 3, 2, 3)) == [1, 2, 3]


@given(st.lists(st.integers(1, 6)))
def test_no_version_lies_there_twice_and_the_last_move_is_on_top(moves: list[int]) -> None:
    found = standing(moves)
    assert len(set(found)) == len(found)
    assert found[-1:] == moves[-1:]


@given(st.lists(st.integers(1, 6), min_size=1))
def test_going_back_ends(moves: list[int]) -> None:
    depth = len(standing(moves))
    for left in range(depth - 1, 0, -1):
        moves = [*moves, standing(moves)[-2]]
        assert len(standing(moves)) == left
