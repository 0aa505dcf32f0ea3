"""Storm control: pauses and who ends them, the breaker, the hops, the budget."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge import settings as app_settings
from dropforge.domain.causes import Cause
from dropforge.domain.errors import BadInput, Conflict, NotFound, Refused
from dropforge.domain.limits import DAY, Held, Limits, Started, held
from dropforge.ports import Delete, Insert, Json, Ports, Write
from dropforge.steps import control
from tests.unit.flows.world import YAML, World

NOW = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
P = "p.demo"


@pytest.fixture
def ports(tmp_path: Path) -> Ports:
    return World(tmp_path, YAML + "budget: {max_failures: 2}\n").ports


def paused(ports: Ports) -> bool:
    return control.is_paused(ports.ledger, P)


def by_alert(ports: Ports, alert: str, until: str = "resolved") -> None:
    control.pause_for_alert(ports, "demo", alert, f"alert rule {alert!r}", "it fired", until, NOW)


# ------------------------------------------------------------------------------------------------ pauses
def test_a_pause_says_who_and_why_and_what_to_do(ports: Ports) -> None:
    control.pause(ports, "demo", "ada", "wrong units", NOW)
    with pytest.raises(Refused, match=r"paused by ada \(wrong units\); `resume` lets it go on"):
        control.check_free(ports, "demo")
    assert control.resume(ports, "demo")
    control.check_free(ports, "demo")
    assert not control.resume(ports, "demo")


def test_a_second_pause_of_a_person_leaves_the_first(ports: Ports) -> None:
    control.pause(ports, "demo", "ada", "wrong units", NOW)
    held = control.pause(ports, "demo", "bob", "holiday", NOW)
    assert (held["paused"]["by"], len(held["holds"])) == ("ada", 1)


def test_a_resolved_alert_ends_its_own_pause_and_no_other(ports: Ports) -> None:
    by_alert(ports, "a")
    by_alert(ports, "b")
    assert not control.release(ports, "demo", "a")
    assert paused(ports)
    assert control.release(ports, "demo", "b")
    assert not paused(ports)


def test_a_persons_pause_outlives_the_alerts(ports: Ports) -> None:
    by_alert(ports, "a")
    control.pause(ports, "demo", "ada", "wait", NOW)
    assert not control.release(ports, "demo", "a")
    assert control.read(ports.ledger, P)["paused"]["by"] == "ada"


def test_a_pause_until_resumed_is_ended_by_nobody_else(ports: Ports) -> None:
    by_alert(ports, "a", until="resumed")
    assert not control.release(ports, "demo", "a")
    assert control.resume(ports, "demo") and not paused(ports)


def test_an_alert_pauses_once_however_often_its_step_runs(ports: Ports) -> None:
    by_alert(ports, "a")
    control.resume(ports, "demo")
    by_alert(ports, "a")
    assert not paused(ports)


def test_alerts_that_are_never_resolved_do_not_fill_the_row(ports: Ports) -> None:
    for number in range(control.MOST_HOLDS + 20):
        by_alert(ports, str(number))
    assert len(control.read(ports.ledger, P)["holds"]) == control.MOST_HOLDS
    for number in range(control.MOST_HOLDS + 20):
        control.release(ports, "demo", str(number))
    # The ones that were folded together are for a person to end.
    assert paused(ports) and control.resume(ports, "demo")


@given(st.lists(st.tuples(st.sampled_from(["pause", "release"]), st.sampled_from("abc")), max_size=12))
def test_a_pipeline_is_held_as_long_as_one_alert_that_began_is_not_over(steps: list[tuple[str, str]]) -> None:
    ports = World(Path()).ports
    begun: set[str] = set()
    over: set[str] = set()
    for step, alert in steps:
        if step == "pause":
            by_alert(ports, alert)
            begun.add(alert)
        elif alert in begun:
            control.release(ports, "demo", alert)
            over.add(alert)
        assert paused(ports) is bool(begun - over)


def test_what_is_committed_with_a_pause_is_committed_when_it_changes_nothing(ports: Ports) -> None:
    def also(number: int) -> control.Also:
        def writes(_: Json) -> Sequence[Write]:
            return [Insert(f"with/{number}", {})]

        return writes

    control.pause(ports, "demo", "ada", "why", NOW, also(1))
    control.pause(ports, "demo", "ada", "why", NOW, also(2))
    control.resume(ports, "demo", also(3))
    assert len(ports.ledger.scan(P, "with/")) == 3
    with pytest.raises(Conflict):
        control.resume(ports, "demo", also(3))


def test_an_unknown_pipeline_is_not_found(ports: Ports) -> None:
    with pytest.raises(NotFound):
        control.pause(ports, "dmeo", "ada", "why", NOW)


def test_a_row_of_an_older_app_is_understood(ports: Ports) -> None:
    ports.ledger.commit(P, [Insert(control.KEY, {"paused": None})])
    by_alert(ports, "a")
    assert paused(ports) and control.release(ports, "demo", "a")
    ports.ledger.commit(P, [Delete(control.KEY)])
    assert control.trouble(ports.ledger, P) is None


# ------------------------------------------------------------------------------------------------ breaker
def count(ports: Ports, run: str, *, failed: bool) -> None:
    control.count_run(ports, "demo", run, failed, "ValueError: no\nsuch column" if failed else None, NOW)


def test_failures_in_a_row_open_the_breaker_and_it_says_what_to_do(ports: Ports) -> None:
    count(ports, "r1", failed=True)
    assert not control.is_broken(ports.ledger, P)
    count(ports, "r2", failed=True)
    assert control.is_broken(ports.ledger, P)
    trouble = control.trouble(ports.ledger, P) or ""
    assert "2 runs in a row" in trouble and "r2: ValueError: no such column" in trouble and "`resume` 'demo'" in trouble
    with pytest.raises(Refused, match="training is stopped"):
        control.check_free(ports, "demo")
    control.check_free(ports, "demo", trains=False)


def test_a_usable_model_between_two_failures_keeps_it_closed(ports: Ports) -> None:
    for run, failed in (("r1", True), ("r2", False), ("r3", True)):
        count(ports, run, failed=failed)
    assert not control.is_broken(ports.ledger, P)


def test_a_run_counts_once_however_often_its_step_runs(ports: Ports) -> None:
    for _ in range(3):
        count(ports, "r1", failed=True)
    assert not control.is_broken(ports.ledger, P)


def test_a_person_resets_it_and_the_count_starts_anew(ports: Ports) -> None:
    for run in ("r1", "r2"):
        count(ports, run, failed=True)
    assert control.resume(ports, "demo")
    count(ports, "r2", failed=True)
    count(ports, "r3", failed=True)
    assert not control.is_broken(ports.ledger, P)
    count(ports, "r4", failed=True)
    assert control.is_broken(ports.ledger, P)


# ------------------------------------------------------------------------------------------------ rollbacks
def test_a_storm_of_alerts_puts_one_champion_back(ports: Ports) -> None:
    for _ in range(2):
        control.take_rollback(ports, "demo", "a", None, NOW)
    with pytest.raises(Refused, match="may be about the model that is gone"):
        control.take_rollback(ports, "demo", "b", None, NOW + timedelta(minutes=14))
    with pytest.raises(Refused):
        control.take_rollback(ports, "demo", "b", timedelta(hours=2), NOW + timedelta(hours=1))
    control.take_rollback(ports, "demo", "b", None, NOW + timedelta(minutes=15))


# ------------------------------------------------------------------------------------------------ hops
def test_the_platforms_own_news_may_come_back_so_often_and_no_more(ports: Ports) -> None:
    control.check_hops(None)
    control.check_hops(Cause("e", "http", hops=5))
    with pytest.raises(Refused, match=r"6 hops from where it began \(http e\), and DROPFORGE_MAX_HOPS is 5"):
        control.check_hops(Cause("e", "http", hops=6))
    with pytest.raises(Refused, match="DROPFORGE_MAX_HOPS is 0"):
        control.admit(ports, "demo", Cause("e", "http", hops=1), NOW, 0)
    (noted,) = control.read(ports.ledger, P)["refused"]
    assert noted["what"] == "http e" and "Break that loop" in noted["reason"]


def test_what_is_refused_again_is_noted_once_and_only_the_newest_are_kept(ports: Ports) -> None:
    for number in range(2 * control.MOST_REFUSED):
        for _ in range(2):
            control.note_refusal(ports, "demo", Cause(str(number), "http"), "no", NOW)
    refused = control.read(ports.ledger, P)["refused"]
    assert [each["what"] for each in refused] == [f"http {number}" for number in range(19, 9, -1)]


@pytest.mark.parametrize("given", ["-1", "x", "", "101", "1" * 400, "٣"])
def test_a_limit_of_hops_that_is_none_is_refused_with_the_settings_name(given: str) -> None:
    with pytest.raises(BadInput, match="DROPFORGE_MAX_HOPS"):
        app_settings.read({"DROPFORGE_MAX_HOPS": given})
    assert app_settings.read({"DROPFORGE_MAX_HOPS": "0"}).max_hops == 0
    assert app_settings.read({}).max_hops == 5


# ------------------------------------------------------------------------------------------------ budget
LIMITS = Limits(runs_per_day=2, minutes_per_day=60, cool_down=timedelta(hours=1), max_failures=3)


def ago(hours: float, minutes: float = 1.0, *, trains: bool = True) -> Started:
    return Started(NOW - timedelta(hours=hours), minutes, trains)


@pytest.mark.parametrize(
    ("started", "found"),
    [
        ([], None),
        ([ago(2)], None),
        ([ago(0.5)], Held(NOW + timedelta(minutes=30), "cool_down")),
        ([ago(3), ago(2)], Held(NOW + timedelta(hours=21), "runs_per_day")),
        ([ago(25), ago(2)], None),
        ([ago(2, 60.0)], Held(NOW + timedelta(hours=22), "training_minutes_per_day")),
        ([ago(3, 60.0, trains=False)], Held(NOW + timedelta(hours=21), "training_minutes_per_day")),
        ([ago(0.1, trains=False), ago(0.2, trains=False)], None),
        # The one that holds longest counts.
        ([ago(3), ago(0.5)], Held(NOW + timedelta(hours=21), "runs_per_day")),
    ],
)
def test_a_training_waits_for_cool_down_runs_and_minutes(started: list[Started], found: Held | None) -> None:
    assert held(LIMITS, started, NOW, trains=True) == found


def test_a_run_that_only_measures_spends_minutes_and_nothing_else() -> None:
    assert held(LIMITS, [ago(0.1), ago(0.2)], NOW, trains=False) is None
    assert held(LIMITS, [ago(0.1, 60.0)], NOW, trains=False) == Held(
        NOW + timedelta(hours=23.9), "training_minutes_per_day"
    )


@given(st.lists(st.tuples(st.floats(0, 48), st.floats(0, 90), st.booleans()), max_size=8))
def test_whoever_waits_as_told_may_start_in_the_end(history: list[tuple[float, float, bool]]) -> None:
    started = [ago(hours, minutes, trains=trains) for hours, minutes, trains in history]
    now = NOW
    for _ in range(20):
        limit = held(LIMITS, started, now, trains=True)
        if limit is None:
            break
        assert now < limit.until <= now + DAY
        now = limit.until
    else:
        raise AssertionError("still held")
