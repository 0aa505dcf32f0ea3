"""Who answers: percents that hold exactly, keys that stay."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.domain.endpoints import Deployment
from dropforge.serving.callers import NOBODY, Caller, caller_of
from dropforge.serving.traffic import Split, Turns

# So many requests a count of turns may differ from the share that was asked for, whenever it is looked at.
ASTRAY = 4


def split(*traffic: tuple[int, int]) -> tuple[Split, list[int]]:
    """Of (version, percent) each, and the versions by place."""
    return Split([Deployment("m", version, "", "", 1, percent) for version, percent in traffic]), [
        v for v, _ in traffic
    ]


@pytest.mark.parametrize("percents", [(95, 5), (50, 50), (99, 1), (70, 20, 10), (34, 33, 33)])
def test_without_keys_the_split_is_exact_after_a_thousand_requests(percents: tuple[int, ...]) -> None:
    one, _ = split(*enumerate(percents))
    counts = Counter(one.next() for _ in range(1000))
    for place, percent in enumerate(percents):
        assert abs(counts[place] - 10 * percent) <= ASTRAY


def test_whoever_asks_every_seventh_time_finds_the_same_split() -> None:
    one, _ = split((1, 90), (2, 10))
    places = [one.next() for _ in range(70_000)]
    for start in range(7):
        assert abs(Counter(places[start::7])[1] - 1000) < 10


@pytest.mark.parametrize("percents", [(95, 5), (50, 50), (70, 20, 10)])
def test_with_keys_the_split_is_within_half_a_percent_of_what_was_asked(percents: tuple[int, ...]) -> None:
    one, _ = split(*enumerate(percents))
    for kind in ("request {}", "user-{:08x}", "{}"):
        counts = Counter(one.of(kind.format(n)) for n in range(100_000))
        for place, percent in enumerate(percents):
            assert abs(counts[place] / 1000 - percent) < 0.5


def test_the_same_key_is_answered_alike_in_every_process() -> None:
    # Written down: another replica, or the next release, must not send people elsewhere.
    one, versions = split((1, 50), (2, 50))
    assert [versions[one.of(f"user {n}")] for n in range(12)] == [1, 2, 1, 1, 1, 1, 2, 1, 2, 1, 1, 1]


PERCENTS = st.lists(st.integers(1, 20), min_size=2, max_size=4)


@given(st.text(), PERCENTS, st.data())
def test_traffic_in_favour_of_a_version_takes_no_key_from_it(
    key: str, percents: list[int], data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(percents) - 1))
    before, _ = split(*enumerate(percents))
    more, _ = split(*[(n, each + 10 * (n == place)) for n, each in enumerate(percents)])
    # Who changes goes there.
    assert more.of(key) in (before.of(key), place)


@given(st.text(), st.permutations([(1, 60), (2, 30), (3, 10)]))
def test_the_order_of_the_deployments_means_nothing(key: str, order: list[tuple[int, int]]) -> None:
    one, versions = split((1, 60), (2, 30), (3, 10))
    other, others = split(*order)
    assert versions[one.of(key)] == others[other.of(key)]


def test_a_version_without_traffic_gets_no_key_and_no_turn() -> None:
    one, _ = split((1, 0), (2, 100), (3, 0))
    assert one.only == 1
    assert {one.next() for _ in range(100)} | {one.of(str(n)) for n in range(100)} == {1}
    assert split((1, 50), (2, 50))[0].only is None


def test_a_key_may_hold_anything() -> None:
    one, _ = split((1, 50), (2, 50))
    for key in ("", "\ud800", "é" * 10_000):
        assert one.of(key) == one.of(key)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.25, 0.5, 1.0])
def test_turns_are_the_share_that_was_asked_for(share: float) -> None:
    # Wherever they begin, and after however many: that the others of these tests may rely on.
    for _ in range(20):
        turns, yes = Turns(share), 0
        for asked in range(1, 5_000):
            yes += turns.mine()
            assert abs(yes - asked * share) <= ASTRAY


# ------------------------------------------------------------------------------------------------ callers
def asked(**headers: str) -> Caller:
    return caller_of({name.replace("_", "-"): value for name, value in headers.items()}.get)


def test_a_callers_key_is_its_own_header_before_the_requests_id() -> None:
    assert asked(dropforge_sticky="ada", x_request_id="7").sticky == "ada"
    assert asked(x_request_id="7").sticky == "7"
    assert asked() is NOBODY


def test_an_id_that_cannot_stand_in_a_header_or_a_log_is_not_repeated() -> None:
    assert asked(x_request_id="abc-1/2 x").request_id == "abc-1/2 x"
    for odd in ("", " x", "x\ty", "é", "x" * 201):
        assert asked(x_request_id=odd).request_id is None
