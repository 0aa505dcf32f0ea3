"""Queues: locks, settlement, expiry, scheduling, duplicates, dead letters, quotas."""

from __future__ import annotations

import pytest

from dropforge.servicebus.core.ports import Counts, Outcome
from dropforge.servicebus.errors import BrokerError
from dropforge.servicebus.message import MessageState
from dropforge.servicebus.settings import Status
from tests.unit.servicebus.core_world import NOON, Taker, World, body_of, message, queue

ABANDON, RELEASE, DEFER, DEAD_LETTER = Outcome.ABANDON, Outcome.RELEASE, Outcome.DEFER, Outcome.DEAD_LETTER
DEAD = "q/$DeadLetterQueue"


def why(found: object) -> tuple[object, object]:
    return (
        found.application_property("DeadLetterReason"),  # type: ignore[attr-defined]
        found.application_property("DeadLetterErrorDescription"),  # type: ignore[attr-defined]
    )


def test_messages_are_given_out_in_the_order_they_came_and_numbered_without_gaps() -> None:
    world = World(queue())
    assert world.send("q", *(message(f"{n}") for n in range(5))) == [1, 2, 3, 4, 5]
    taker = world.taker("q")
    assert taker.bodies == ["0", "1", "2", "3", "4"]
    assert [each.sequence for each in taker.got] == [1, 2, 3, 4, 5]
    assert all(each.enqueued_at == NOON and each.locked_until == NOON + 60_000 for each in taker.got)


def test_a_completed_message_is_gone_and_its_lock_with_it() -> None:
    world = World(queue())
    world.send("q", message("a"))
    taker = world.taker("q")
    world.settle("q", taker.token)
    assert world.queue("q").counts() == Counts()
    with pytest.raises(BrokerError, match="message-lock-lost"):
        world.settle("q", taker.token)


def test_a_message_is_locked_for_one_receiver_at_a_time() -> None:
    world = World(queue())
    world.send("q", message("a"))
    first, second = world.taker("q"), world.taker("q")
    assert (first.bodies, second.bodies) == (["a"], [])
    world.pass_time(59_999)
    assert second.bodies == []
    world.pass_time(1)
    assert first.bodies + second.bodies == ["a", "a"]


def test_receivers_with_credit_are_served_in_turn() -> None:
    world = World(queue())
    takers = [world.taker("q", credit) for credit in (2, 0, 10)]
    world.send("q", *(message(f"{n}") for n in range(6)))
    assert [len(each.got) for each in takers] == [2, 0, 4]
    assert takers[0].bodies == ["0", "2"]
    takers[1].credit = 1
    world.queue("q").credited(takers[1])
    world.send("q", message("6"), message("7"))
    assert takers[1].bodies == ["6"]


def test_a_renewed_lock_holds_longer_and_a_lost_one_cannot_be_renewed() -> None:
    world = World(queue(lock_ms=1_000))
    world.send("q", message("a"), message("b"))
    taker = world.taker("q", 2)
    kept, lost = taker.tokens
    assert kept is not None and lost is not None
    world.pass_time(900)
    assert world.queue("q").renew([kept]) == [NOON + 1_900]
    world.pass_time(900)
    assert world.queue("q").renew([kept]) == [NOON + 2_800]
    with pytest.raises(BrokerError, match="message-lock-lost"):
        world.queue("q").renew([lost])
    world.settle("q", kept)
    assert world.bodies("q") == ["b"]


def test_an_abandoned_message_comes_back_first_with_its_count() -> None:
    world = World(queue(max_delivery_count=5))
    world.send("q", message("a"), message("b"))
    taker = world.taker("q", 1)
    taker.credit = 1
    world.settle("q", taker.token, ABANDON, properties={"seen": True})
    assert taker.bodies == ["a", "a"]
    assert taker.got[1].delivery_count == 1
    assert taker.got[1].application_property("seen") is True


def test_a_released_message_comes_back_uncounted() -> None:
    world = World(queue(max_delivery_count=1))
    world.send("q", message("a"))
    taker = world.taker("q")
    world.settle("q", taker.token, RELEASE)
    assert taker.bodies == ["a", "a"]
    assert taker.got[1].delivery_count == 0


@pytest.mark.parametrize("how", ["abandon", "lock expiry"])
def test_after_the_maximum_of_deliveries_a_message_is_a_dead_letter_with_the_services_words(how: str) -> None:
    world = World(queue(max_delivery_count=3))
    world.send("q", message("a"))
    taker = world.taker("q")
    for _ in range(3):
        if how == "abandon":
            world.settle("q", taker.token, ABANDON)
        else:
            world.pass_time(60_000)
    assert len(taker.got) == 3
    assert world.queue("q").counts().dead_letter == 1
    dead = world.taker(DEAD).got[0]
    assert (dead.sequence, dead.delivery_count, dead.dead_letter_source) == (1, 3, None)
    assert why(dead) == ("MaxDeliveryCountExceeded", "Message could not be consumed after 3 delivery attempts.")


def test_a_dead_letter_keeps_its_number_and_is_settled_where_it_lies() -> None:
    world = World(queue())
    world.send("q", message("a"), message("b"))
    taker = world.taker("q")
    world.settle("q", taker.tokens[1], DEAD_LETTER, reason="bad", description="really")
    reader = world.taker(DEAD)
    assert (reader.bodies, reader.got[0].sequence, why(reader.got[0])) == (["b"], 2, ("bad", "really"))
    for _ in range(20):
        world.settle(DEAD, reader.token, ABANDON)
    assert reader.bodies == ["b"] * 21
    world.settle(DEAD, reader.token, DEAD_LETTER, reason="still bad")
    assert why(reader.got[-1]) == ("still bad", "really")
    world.settle(DEAD, reader.token)
    assert world.queue("q").counts() == Counts(active=1, size_bytes=taker.got[0].size)


def test_a_deferred_message_waits_to_be_asked_for_by_number() -> None:
    world = World(queue())
    world.send("q", message("a"), message("b", ttl_ms=1_000))
    taker = world.taker("q")
    world.settle("q", taker.tokens[1], DEFER)
    # Deferred messages do not expire: https://learn.microsoft.com/azure/service-bus-messaging/message-expiration
    world.pass_time(5_000)
    assert world.queue("q").counts().deferred == 1
    got = world.queue("q").receive_deferred([2], session_id=None, receiver=taker, delete=False)
    assert [(body_of(each), each.state) for each in got] == [("b", MessageState.DEFERRED)]
    with pytest.raises(BrokerError, match="message-not-found"):
        world.queue("q").receive_deferred([2], session_id=None, receiver=taker, delete=False)
    world.settle("q", got[0].lock_token, ABANDON)
    assert (world.queue("q").counts().deferred, len(taker.got)) == (1, 2)
    assert len(world.queue("q").receive_deferred([2], session_id=None, receiver=None, delete=True)) == 1
    assert world.queue("q").counts().deferred == 0


def test_asking_for_several_deferred_messages_gives_all_or_none() -> None:
    world = World(queue())
    world.send("q", message("a"), message("b"))
    taker = world.taker("q")
    world.settle("q", taker.tokens[0], DEFER)
    with pytest.raises(BrokerError, match="sequence number 2"):
        world.queue("q").receive_deferred([1, 2], session_id=None, receiver=taker, delete=True)
    assert world.queue("q").counts().deferred == 1


def test_receive_and_delete_leaves_nothing() -> None:
    world = World(queue())
    world.send("q", message("a"), message("b"))
    taker = world.taker("q", 1, deletes=True)
    assert (taker.bodies, taker.tokens) == (["a"], [None])
    assert world.bodies("q") == ["b"]


def test_the_shorter_time_to_live_counts_and_is_shown() -> None:
    world = World(queue(ttl_ms=2_000, dead_letters_expired=True))
    world.send("q", message("own", ttl_ms=1_000), message("none"), message("longer", ttl_ms=9_000))
    assert [each.ttl_ms for each in world.queue("q").peek(0, 9)] == [1_000, 2_000, 2_000]
    world.pass_time(1_000)
    assert world.bodies(DEAD) == ["own"]
    world.pass_time(1_000)
    assert world.bodies("q") == []
    dead = world.queue(DEAD).peek(0, 9)
    assert {why(each) for each in dead} == {("TTLExpiredException", "The message expired and was dead lettered.")}


def test_an_expired_message_is_dropped_where_nobody_wants_it() -> None:
    world = World(queue(ttl_ms=1_000))
    world.send("q", message("a"))
    world.pass_time(1_000)
    assert world.queue("q").counts() == Counts()


def test_a_lock_outlives_the_message_it_holds() -> None:
    world = World(queue(ttl_ms=1_000, lock_ms=5_000))
    world.send("q", message("done"), message("not done"))
    taker = world.taker("q")
    world.pass_time(3_000)
    world.settle("q", taker.tokens[0])
    world.settle("q", taker.tokens[1], ABANDON)
    assert len(taker.got) == 2
    assert world.queue("q").counts() == Counts()


def test_a_scheduled_message_comes_at_its_time_with_a_new_number() -> None:
    world = World(queue())
    taker = world.taker("q")
    assert world.send("q", message("later", due_at=NOON + 500), message("now")) == [1, 2]
    assert (taker.bodies, world.queue("q").counts().scheduled) == (["now"], 1)
    assert [each.state for each in world.queue("q").peek(0, 1)] == [MessageState.SCHEDULED]
    world.pass_time(500)
    assert taker.bodies == ["now", "later"]
    assert (taker.got[1].sequence, taker.got[1].enqueued_at, taker.got[1].state) == (3, NOON + 500, 0)


def test_a_time_that_has_passed_schedules_nothing() -> None:
    world = World(queue())
    world.send("q", message("a", due_at=NOON))
    assert world.taker("q").bodies == ["a"]


def test_scheduled_messages_are_cancelled_all_or_none() -> None:
    world = World(queue())
    world.send("q", message("a", due_at=NOON + 1), message("b", due_at=NOON + 1), message("active"))
    with pytest.raises(BrokerError, match="sequence number 3"):
        world.queue("q").cancel_scheduled([1, 3])
    world.queue("q").cancel_scheduled([1])
    world.pass_time(10)
    assert world.taker("q").bodies == ["active", "b"]


def test_a_repeated_message_is_accepted_and_dropped_within_the_window() -> None:
    world = World(queue(detects_duplicates=True, duplicate_window_ms=1_000))
    assert world.send(
        "q", message("a", message_id="1"), message("b", message_id="1"), message("c", message_id="2")
    ) == [
        1,
        1,
        2,
    ]
    taker = world.taker("q")
    world.settle("q", taker.tokens[0])
    world.pass_time(999)
    world.send("q", message("d", message_id="1"))
    assert taker.bodies == ["a", "c"]
    world.pass_time(1)
    world.send("q", message("e", message_id="1"))
    assert taker.bodies == ["a", "c", "e"]


def test_a_scheduled_message_counts_as_a_duplicate() -> None:
    world = World(queue(detects_duplicates=True))
    world.send("q", message("a", message_id="1", due_at=NOON + 10), message("b", message_id="1"))
    assert world.bodies("q") == ["a"]


def test_the_history_of_duplicates_is_forgotten_without_anybody_sending() -> None:
    world = World(queue(detects_duplicates=True, duplicate_window_ms=1_000))
    world.send("q", *(message(message_id=f"{n}") for n in range(100)))
    history = world.queue("q").intake.history  # type: ignore[union-attr]
    assert history is not None and len(history) == 100
    world.pass_time(1_000)
    assert len(history) == 0
    assert world.broker.next_due() is None


def test_a_message_without_id_gets_one() -> None:
    world = World(queue())
    world.send("q", message("a"), message("b"))
    first, second = (each.message_id for each in world.queue("q").peek(0, 2))
    assert isinstance(first, str) and len(first) == 32 and first != second


def test_peeking_pages_by_number_and_locks_nothing() -> None:
    world = World(queue())
    world.send("q", *(message(f"{n}") for n in range(5)))
    taker = world.taker("q", 2)
    world.settle("q", taker.tokens[0])
    assert [body_of(each) for each in world.queue("q").peek(0, 2)] == ["1", "2"]
    assert [body_of(each) for each in world.queue("q").peek(4, 10)] == ["3", "4"]
    assert world.queue("q").peek(6, 10) == []


def test_a_full_queue_takes_no_more_until_something_left_it() -> None:
    world = World(queue(max_size_megabytes=1))
    with pytest.raises(BrokerError, match="resource-limit-exceeded"):
        for _ in range(9):
            world.send("q", message(b"x" * 130_000))
    assert world.queue("q").counts().active == 8
    taker = world.taker("q", 1)
    world.settle("q", taker.token, DEAD_LETTER)
    with pytest.raises(BrokerError, match="resource-limit-exceeded"):
        world.send("q", message(b"x" * 130_000))
    reader = world.taker(DEAD)
    world.settle(DEAD, reader.token)
    world.send("q", message(b"x" * 130_000))


def test_a_batch_comes_in_whole_or_not_at_all() -> None:
    world = World(queue(max_message_kilobytes=1))
    with pytest.raises(BrokerError, match="message-size-exceeded"):
        world.queue("q").send_all([message("ok"), message(b"x" * 2_000)])
    assert world.queue("q").counts() == Counts()
    assert world.queue("q").send_all([message("a"), message("b")]) == [1, 2]


def test_a_disabled_direction_is_refused_and_the_other_works() -> None:
    world = World(queue("in", status=Status.RECEIVE_DISABLED), queue("out", status=Status.SEND_DISABLED))
    world.send("in", message("a"))
    with pytest.raises(BrokerError, match="entity-disabled"):
        world.taker("in")
    with pytest.raises(BrokerError, match="entity-disabled"):
        world.send("out", message("a"))
    world.taker("out")


def test_nothing_is_delivered_while_receiving_is_disabled() -> None:
    world = World(queue())
    taker = world.taker("q")
    world.broker.update_queue(queue(status=Status.RECEIVE_DISABLED))
    world.send("q", message("a"))
    assert taker.bodies == []
    world.broker.update_queue(queue())
    world.turn()
    assert taker.bodies == ["a"]


@pytest.mark.parametrize("address", ["Q", "amqps://localhost:5672/q", "sb://host/q/", "amqp://host/q"])
def test_an_entity_is_found_by_any_spelling_of_its_address(address: str) -> None:
    world = World(queue())
    assert world.broker.resolve(address) is world.queue("q")


@pytest.mark.parametrize("address", ["", "x", "q/x", "q/Subscriptions/x", "$DeadLetterQueue", "x/$DeadLetterQueue"])
def test_an_unknown_address_is_not_found(address: str) -> None:
    with pytest.raises(BrokerError, match="could not be found"):
        World(queue()).broker.resolve(address)


def test_dead_letter_queues_are_found_and_take_no_senders() -> None:
    world = World(queue())
    for path in ("Q/$deadletterqueue", "q/$Transfer/$DeadLetterQueue"):
        found = world.queue(path)
        assert (found.can_receive, found.can_send, found.requires_session) == (True, False, False)
        with pytest.raises(BrokerError, match="Cannot create a message sender"):
            found.send(message("a"))


def test_a_detached_receiver_gets_nothing_more_and_its_locks_run_on() -> None:
    world = World(queue())
    taker = world.taker("q")
    world.send("q", message("a"))
    world.queue("q").detach(taker)
    world.queue("q").detach(taker)
    world.send("q", message("b"))
    assert taker.bodies == ["a"]
    world.settle("q", taker.token)
    assert world.bodies("q") == ["b"]


def test_a_deleted_queue_sends_its_receivers_away_and_takes_nothing() -> None:
    world = World(queue(detects_duplicates=True))
    found, taker = world.queue("q"), world.taker("q", 1)
    world.send("q", message("a", ttl_ms=1_000), message("b", due_at=NOON + 10), message("c"))
    world.broker.delete("Q")
    assert taker.error is not None and taker.error.condition == "amqp:not-found"
    assert world.broker.next_due() is None
    assert world.broker.entities() == []
    for use in (lambda: found.send(message("d")), lambda: found.attach(Taker())):
        with pytest.raises(BrokerError, match="could not be found"):
            use()
    with pytest.raises(BrokerError, match="message-lock-lost"):
        found.settle(taker.token, Outcome.COMPLETE)
    world.broker.create_queue(queue())
    assert world.send("q", message("again")) == [1]
