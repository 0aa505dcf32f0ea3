"""Sessions: one holder at a time, order, state, expiry, waiting for the next one."""

from __future__ import annotations

import pytest

from dropforge.servicebus.core.ports import Counts, Outcome
from dropforge.servicebus.core.sessions import LINGER_MS
from dropforge.servicebus.errors import BrokerError
from tests.unit.servicebus.core_world import NOON, Taker, World, body_of, message, queue


def sessions(**settings: object) -> World:
    return World(queue("s", requires_session=True, **settings))


def test_a_session_gives_its_messages_in_order_and_no_others() -> None:
    world = sessions()
    world.send("s", *(message(f"{name}{n}", session_id=name) for n in range(3) for name in "ab"))
    taker = world.session_taker("s", "b")
    assert (taker.session_id, taker.locked_until) == ("b", NOON + 60_000)
    assert taker.bodies == ["b0", "b1", "b2"]
    assert {each.locked_until for each in taker.got} == {NOON + 60_000}


def test_a_message_without_session_id_is_refused() -> None:
    world = sessions()
    with pytest.raises(BrokerError, match="SessionId was not set"):
        world.send("s", message("a"))


def test_a_session_is_one_receivers_at_a_time() -> None:
    world = sessions()
    world.send("s", message("a", session_id="x"))
    first, second = world.session_taker("s", "x"), world.session_taker("s", "x")
    assert second.error is not None
    assert second.error.condition == "com.microsoft:session-cannot-be-locked"
    assert (first.bodies, second.bodies) == (["a"], [])


def test_a_closed_receiver_frees_its_session_uncounted() -> None:
    world = sessions()
    world.send("s", message("a", session_id="x"), message("b", session_id="x"))
    first = world.session_taker("s", "x")
    world.queue("s").detach(first)
    second = world.session_taker("s", "x")
    assert second.bodies == ["a", "b"]
    assert [each.delivery_count for each in second.got] == [0, 0]
    with pytest.raises(BrokerError, match="message-lock-lost"):
        world.settle("s", first.tokens[0], session_id="x")


def test_a_session_lock_that_runs_out_counts_and_tells_its_holder_later() -> None:
    world = sessions(lock_ms=1_000)
    world.send("s", message("a", session_id="x"))
    first = world.session_taker("s", "x")
    world.pass_time(1_000)
    assert first.error is None
    with pytest.raises(BrokerError, match="session-lock-lost"):
        world.settle("s", first.token, session_id="x")
    second = world.session_taker("s", "x")
    assert second.got[0].delivery_count == 1
    world.send("s", message("b", session_id="x"))
    assert (first.bodies, second.bodies) == (["a"], ["a", "b"])
    world.pass_time(LINGER_MS)
    assert first.error is not None and first.error.condition == "com.microsoft:session-lock-lost"


def test_a_renewed_session_holds_with_its_messages() -> None:
    world = sessions(lock_ms=1_000)
    world.send("s", message("a", session_id="x"))
    taker = world.session_taker("s", "x")
    world.pass_time(900)
    assert world.queue("s").renew_session("x") == NOON + 1_900
    world.pass_time(900)
    assert taker.got[0].locked_until == NOON + 1_900
    world.settle("s", taker.token, session_id="x")
    assert world.queue("s").counts() == Counts()


def test_the_next_session_is_the_one_free_for_longest() -> None:
    world = sessions(max_delivery_count=100)
    world.send("s", *(message(name, session_id=name) for name in ("a", "b", "c")))
    given = []
    for _ in range(6):
        taker = world.session_taker("s", None)
        given.append(taker.session_id)
        world.settle("s", taker.token, Outcome.ABANDON, session_id=taker.session_id)
        world.queue("s").detach(taker)
    assert given == ["a", "b", "c", "a", "b", "c"]


def test_who_waits_for_a_session_gets_the_next_one_that_has_messages() -> None:
    world = sessions()
    first, second = world.session_taker("s", None), world.session_taker("s", None)
    assert first.session_id is None
    world.send("s", message("a", session_id="x"))
    assert (first.session_id, first.bodies, second.session_id) == ("x", ["a"], None)
    world.send("s", message("b", session_id="x"), message("c", session_id="y"))
    assert (first.bodies, second.session_id, second.bodies) == (["a", "b"], "y", ["c"])


def test_who_waits_too_long_hears_of_it() -> None:
    world = sessions()
    taker = world.session_taker("s", None, timeout_ms=500)
    world.pass_time(499)
    assert taker.error is None
    world.pass_time(1)
    assert taker.error is not None and taker.error.condition == "com.microsoft:timeout"
    world.send("s", message("a", session_id="x"))
    assert taker.bodies == []


def test_who_stops_waiting_is_given_nothing() -> None:
    world = sessions()
    taker = world.session_taker("s", None)
    world.queue("s").detach(taker)
    world.send("s", message("a", session_id="x"))
    assert taker.session_id is None
    assert world.session_taker("s", None).bodies == ["a"]


def test_a_freed_session_goes_to_who_waits() -> None:
    world = sessions()
    world.send("s", message("a", session_id="x"), message("b", session_id="x"))
    first, second = world.session_taker("s", "x"), world.session_taker("s", None)
    world.queue("s").detach(first)
    world.turn()
    assert (second.session_id, second.bodies) == ("x", ["a", "b"])


def test_credit_bounds_a_session_too() -> None:
    world = sessions()
    world.send("s", *(message(f"{n}", session_id="x") for n in range(4)))
    taker = world.session_taker("s", "x", credit=2)
    assert taker.bodies == ["0", "1"]
    taker.credit = 1
    world.queue("s").credited(taker)
    world.turn()
    assert taker.bodies == ["0", "1", "2"]


def test_state_outlives_messages_and_needs_the_lock() -> None:
    world = sessions()
    world.session_taker("s", "x")
    world.queue("s").set_session_state("x", b"half way")
    assert world.queue("s").session_state("x") == b"half way"
    with pytest.raises(BrokerError, match="session-lock-lost"):
        world.queue("s").session_state("y")
    with pytest.raises(BrokerError, match="size-exceeded"):
        world.queue("s").set_session_state("x", b"x" * 300_000)


def test_sessions_are_listed_with_messages_or_state_and_by_when_that_was_set() -> None:
    world = sessions()
    world.send("s", message(session_id="b"), message(session_id="a"))
    for name in ("old", "new"):
        world.session_taker("s", name)
        world.queue("s").set_session_state(name, b"1")
        world.pass_time(100)
    world.session_taker("s", "empty")
    found = world.queue("s")
    assert found.sessions(None, 0, 10) == ["a", "b", "new", "old"]
    assert found.sessions(None, 1, 2) == ["b", "new"]
    assert found.sessions(NOON + 50, 0, 10) == ["new"]


def test_an_empty_session_is_forgotten() -> None:
    world = sessions()
    for n in range(50):
        world.send("s", message(session_id=f"{n}"))
        taker = world.session_taker("s", f"{n}")
        world.settle("s", taker.token, session_id=f"{n}")
        world.queue("s").detach(taker)
    assert world.queue("s")._sessions._all == {}  # type: ignore[union-attr]
    assert world.broker.next_due() is None


def test_deferred_messages_belong_to_their_session() -> None:
    world = sessions()
    world.send("s", message("a", session_id="x"), message("b", session_id="y"))
    taker = world.session_taker("s", "x")
    world.settle("s", taker.token, Outcome.DEFER, session_id="x")
    found = world.queue("s")
    with pytest.raises(BrokerError, match="session-lock-lost"):
        found.receive_deferred([1], session_id="y", receiver=taker, delete=False)
    other = world.session_taker("s", "y")
    with pytest.raises(BrokerError, match="message-not-found"):
        found.receive_deferred([1], session_id="y", receiver=other, delete=False)
    assert [body_of(each) for each in found.receive_deferred([1], session_id="x", receiver=taker, delete=True)] == ["a"]


def test_who_lost_a_session_can_do_nothing_in_it_while_another_has_it() -> None:
    world = sessions(lock_ms=1_000)
    world.send("s", message("a", session_id="x"))
    first = world.session_taker("s", "x")
    world.pass_time(1_000)
    second = world.session_taker("s", "x")
    world.settle("s", second.token, Outcome.DEFER, session_id="x")
    found = world.queue("s")
    found.set_session_state("x", b"second's", second)
    for attempt in (
        lambda: found.renew_session("x", first),
        lambda: found.session_state("x", first),
        lambda: found.set_session_state("x", b"first's", first),
        lambda: found.receive_deferred([1], session_id="x", receiver=first, delete=True),
    ):
        with pytest.raises(BrokerError, match="session-lock-lost"):
            attempt()
    assert found.session_state("x", second) == b"second's"
    assert found.renew_session("x", second) == NOON + 2_000
    assert len(found.receive_deferred([1], session_id="x", receiver=second, delete=True)) == 1


def test_peeking_into_a_session_shows_all_of_it_and_nothing_else() -> None:
    world = sessions()
    world.send("s", *(message(f"{n}", session_id="xy"[n % 2]) for n in range(6)))
    world.send("s", message("later", session_id="x", due_at=NOON + 10))
    world.session_taker("s", "x", credit=1)
    assert [body_of(each) for each in world.queue("s").peek(2, 10, "x")] == ["2", "4", "later"]
    assert world.queue("s").peek(0, 10, "none") == []


def test_the_dead_letters_of_sessions_have_none() -> None:
    world = sessions(max_delivery_count=1)
    world.send("s", message("a", session_id="x"))
    taker = world.session_taker("s", "x")
    world.settle("s", taker.token, Outcome.ABANDON, session_id="x")
    reader = world.taker("s/$DeadLetterQueue")
    assert (reader.bodies, reader.got[0].session_id) == (["a"], "x")


def test_a_dead_letter_that_comes_back_into_the_session_it_leaves_is_received_there() -> None:
    settings = {"requires_session": True, "lock_ms": 1_000, "max_delivery_count": 1}
    world = World(queue("s", forward_dead_letters_to="back", **settings), queue("back", forward_to="s"))
    world.send("s", message("a", session_id="x"))
    world.session_taker("s", "x")
    world.pass_time(1_000)
    again = world.session_taker("s", None)
    assert (again.session_id, again.bodies) == ("x", ["a"])
    world.settle("s", again.token, session_id="x")
    world.queue("s").detach(again)
    assert world.queue("s")._sessions._all == {}  # type: ignore[union-attr]


@pytest.mark.parametrize("settled", [Outcome.COMPLETE, Outcome.DEAD_LETTER])
def test_who_asks_in_the_wrong_way_is_refused(settled: Outcome) -> None:
    world = World(queue("s", requires_session=True), queue("q"))
    with pytest.raises(BrokerError, match="requires sessions"):
        world.queue("s").attach(Taker())
    with pytest.raises(BrokerError, match="does not require sessions"):
        world.queue("q").accept_session(Taker(), None, 10)
    with pytest.raises(BrokerError, match="RequiresSession is not set"):
        world.queue("q").session_state("x")
    with pytest.raises(BrokerError, match="session-lock-lost"):
        world.settle("s", b"x" * 16, settled, session_id="x")


def test_a_deleted_queue_sends_holders_and_waiters_away() -> None:
    world = sessions(lock_ms=1_000)
    world.session_taker("s", "x")
    lost = world.session_taker("s", "lost")
    world.pass_time(500)
    world.queue("s").renew_session("x")
    world.pass_time(600)
    takers = [lost, world.session_taker("s", "y"), world.session_taker("s", None)]
    world.broker.delete("s")
    assert [each.error.condition for each in takers if each.error] == ["amqp:not-found"] * 3
    assert world.broker.next_due() is None
