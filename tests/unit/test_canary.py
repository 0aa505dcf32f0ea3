"""When a candidate may answer more, and when it is taken back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.domain.canary import Rules, Standing, deployments, judge, quantile, tally
from dropforge.domain.endpoints import LATENCY_BOUNDS, Deployment, Mirrored, ReplicaState, VersionState
from dropforge.wire import from_builtins, from_json, to_builtins, to_json

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RULES = Rules((5, 25), timedelta(minutes=2), max_failed=0.01, max_latency_ratio=1.5, min_requests=100)
OVER, LONG_OVER, EARLY = timedelta(minutes=2), timedelta(minutes=6), timedelta(seconds=10)


def answered(version: int, requests: int, failed: int = 0, seconds: float = 0.004) -> VersionState:
    """So many requests, all as slow as that."""
    place = next(place for place, bound in enumerate(LATENCY_BOUNDS) if bound >= seconds)
    latency = tuple(requests if each == place else 0 for each in range(len(LATENCY_BOUNDS) + 1))
    return VersionState(version, 50, requests, failed, requests * seconds, latency)


CHAMPION = answered(1, 10_000)


def standing(candidate: VersionState, baked: timedelta = OVER, champion: VersionState = CHAMPION) -> Standing:
    return judge(RULES, champion, candidate, baked).standing


# ------------------------------------------------------------------------------------------------ stages
def test_the_traffic_moves_in_steps_and_the_candidate_comes_first() -> None:
    one, two = Deployment("m", 1, "", "", 1), Deployment("m", 2, "", "", 2)
    split = [[(each.version, each.traffic, each.mirror) for each in deployments(two, one, RULES, n)] for n in range(3)]
    assert split == [[(2, 5, 0), (1, 95, 0)], [(2, 25, 0), (1, 75, 0)], [(2, 100, 0)]]


def test_with_a_mirror_the_first_stage_is_one_of_copies_alone() -> None:
    one, two = Deployment("m", 1, "", "", 1), Deployment("m", 2, "", "", 2)
    rules = replace(RULES, mirror=10)
    split = [[(each.version, each.traffic, each.mirror) for each in deployments(two, one, rules, n)] for n in range(4)]
    assert split[0] == [(2, 0, 10), (1, 100, 0)]
    assert split[1] == [(2, 5, 10), (1, 95, 0)]
    assert split[3] == [(2, 100, 0)]


# ------------------------------------------------------------------------------------------------ judging
def test_a_candidate_as_good_as_the_champion_passes_once_the_bake_time_is_over() -> None:
    assert standing(answered(2, 500), EARLY) is Standing.BAKING
    assert standing(answered(2, 500)) is Standing.PASSED


def test_one_that_fails_for_certain_is_not_waited_for() -> None:
    found = judge(RULES, CHAMPION, answered(2, 20, failed=12), EARLY)
    assert found.standing is Standing.FAILED
    assert found.reason == (
        "version 2 failed 12 of 20 requests; version 1 failed 0 of 10000; at most 0.01 more of them is allowed"
    )


def test_a_single_failure_among_few_requests_ends_nothing_early() -> None:
    assert standing(answered(2, 10, failed=1), EARLY) is Standing.BAKING
    assert standing(answered(2, 3, failed=3), EARLY) is Standing.BAKING


def test_more_failures_than_allowed_fail_it_at_the_end() -> None:
    assert standing(answered(2, 1000, failed=9)) is Standing.PASSED
    assert standing(answered(2, 1000, failed=15)) is Standing.FAILED


def test_what_the_champion_fails_too_is_not_held_against_it() -> None:
    champion = answered(1, 10_000, failed=500)
    assert standing(answered(2, 1000, failed=55), champion=champion) is Standing.PASSED
    assert standing(answered(2, 1000, failed=100), champion=champion) is Standing.FAILED


def test_too_few_requests_are_waited_for_three_times_as_long_and_then_do() -> None:
    assert standing(answered(2, 30)) is Standing.BAKING
    found = judge(RULES, CHAMPION, answered(2, 30), LONG_OVER)
    assert found.standing is Standing.PASSED
    assert "fewer than the 100 wanted" in found.reason
    assert standing(VersionState(2, 5), LONG_OVER) is Standing.PASSED


def test_copies_count_as_requests() -> None:
    shadow = VersionState(2, 0, mirror=10, mirrored=Mirrored(run=300, failed=30, rows=270, flipped=27))
    assert standing(shadow, EARLY) is Standing.FAILED
    good = replace(shadow, mirrored=Mirrored(run=300, rows=300, flipped=27, disagreed=20, max_difference=0.25))
    found = judge(RULES, CHAMPION, good, OVER)
    assert found.standing is Standing.PASSED
    assert found.reason.endswith("it disagreed in 20 of 300 copies, 27 of 300 rows decided otherwise, by at most 0.25")


@pytest.mark.parametrize(("seconds", "wanted"), [(0.004, "passed"), (0.005, "passed"), (0.008, "failed")])
def test_a_slower_candidate_fails_when_that_is_certain(seconds: float, wanted: str) -> None:
    assert standing(answered(2, 500, seconds=seconds)).value == wanted


def test_too_few_answers_are_no_ground_to_call_it_slow() -> None:
    assert standing(answered(2, 99, seconds=8.0), LONG_OVER) is Standing.PASSED
    assert standing(answered(2, 500, seconds=8.0), champion=answered(1, 40)) is Standing.PASSED


def test_the_reason_of_a_slow_one_tells_both_latencies() -> None:
    found = judge(RULES, CHAMPION, answered(2, 500, seconds=0.02), OVER)
    assert "95 of 100 answers of version 2 took up to 19.8 ms, those of version 1 up to 3.96 ms" in found.reason


# ------------------------------------------------------------------------------------------------ numbers
@given(st.lists(st.floats(0.00011, 9.9), min_size=1, max_size=300), st.floats(0.01, 1.0))
def test_a_quantile_from_buckets_is_that_of_the_values_but_for_a_bucket(values: list[float], share: float) -> None:
    latency = [0] * (len(LATENCY_BOUNDS) + 1)
    for value in values:
        latency[next(place for place, bound in enumerate(LATENCY_BOUNDS) if bound >= value)] += 1
    found = quantile(tuple(latency), share)
    exact = sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
    assert found is not None and exact / 1.3 <= found <= exact * 1.3


def test_without_requests_there_is_no_quantile() -> None:
    assert quantile((), 0.5) is None
    assert quantile((0,) * 52, 0.5) is None
    assert quantile((0,) * 51 + (3,), 0.5) == 10.0


def replica(name: str, revision: int, *states: VersionState) -> ReplicaState:
    return ReplicaState(name, "m", revision, revision, (1, 2), True, 0, 0, 0, NOW, states=states)


def test_a_tally_adds_the_replicas_that_serve_the_revision() -> None:
    copies = replace(answered(2, 3), mirrored=Mirrored(2, 1, 4, 1, 2, 1, 0.5))
    more = replace(answered(2, 4, failed=1), mirrored=Mirrored(1, 0, 0, 1, 1, 0, 0.75))
    old = replica("c", 6, answered(2, 100))
    found = tally([replica("a", 7, CHAMPION, copies), replica("b", 7, more), old, replica("d", 7)], 7, 2)
    assert (found.requests, found.failed, sum(found.latency)) == (7, 1, 7)
    assert found.mirrored == Mirrored(3, 1, 4, 2, 3, 1, 0.75)


# ------------------------------------------------------------------------------------------------ on the wire
def test_states_and_rules_survive_json() -> None:
    state = replica("a", 1, CHAMPION, replace(answered(2, 3), mirrored=Mirrored(2, 1, 4, 1, 2, 1, 0.5)))
    assert from_json(ReplicaState, to_json(state)) == state
    assert from_builtins(Rules, to_builtins(RULES)) == RULES


def test_what_was_written_before_there_were_mirrors_is_read_still() -> None:
    old = {key: value for key, value in to_builtins(replica("a", 1)).items() if key not in ("states", "device")}
    assert from_builtins(ReplicaState, old) == replica("a", 1)
    deployment = {key: value for key, value in to_builtins(Deployment("m", 1, "", "", 1)).items() if key != "mirror"}
    assert from_builtins(Deployment, deployment) == Deployment("m", 1, "", "", 1)
