"""Topics, subscriptions, forwarding, and making and changing entities."""

from __future__ import annotations

import pytest

from dropforge.servicebus.core.ports import Counts, Outcome
from dropforge.servicebus.errors import BrokerError
from dropforge.servicebus.message import READABLE
from dropforge.servicebus.settings import (
    CorrelationFilter,
    FalseFilter,
    QueueSettings,
    RuleSettings,
    SqlFilter,
    TopicSettings,
)
from tests.unit.servicebus.core_world import NOON, World, message, queue, subscription, topic

TRANSFER_DEAD = "$Transfer/$DeadLetterQueue"


def rule(name: str, sql: str, action: str | None = None) -> RuleSettings:
    return RuleSettings(name, SqlFilter(sql), action)


def test_every_subscription_whose_rules_let_it_in_gets_a_copy() -> None:
    red = subscription("red", rules=(rule("r", "color = 'red'"),))
    none = subscription("none", rules=(RuleSettings("f", FalseFilter()),))
    orders = subscription("orders", rules=(RuleSettings("c", CorrelationFilter((("Label", "order"),))),))
    world = World(topics=(topic("t", subscription("all"), red, none, orders),))
    world.send("T", message("1", app={"color": "red"}), message("2", subject="order"))
    bodies = {name: world.bodies(f"t/Subscriptions/{name}") for name in ("all", "red", "none", "orders")}
    assert bodies == {"all": ["1", "2"], "red": ["1"], "none": [], "orders": ["2"]}


def test_copies_are_settled_apart_and_numbered_by_their_subscription() -> None:
    world = World(topics=(topic("t", subscription("a"), subscription("b", rules=(rule("r", "n > 1"),))),))
    world.send("t", *(message(f"{n}", app={"n": n}) for n in range(4)))
    a, b = world.taker("t/subscriptions/a"), world.taker("t/subscriptions/b")
    assert [(each.sequence, each.enqueued_sequence) for each in b.got] == [(1, 3), (2, 4)]
    world.settle("t/subscriptions/a", a.tokens[2], Outcome.DEAD_LETTER, reason="only here")
    assert world.bodies("t/subscriptions/a/$DeadLetterQueue") == ["2"]
    assert world.queue("t/subscriptions/b").counts().active == 2


def test_rules_without_action_make_one_copy_and_each_with_an_action_one_more() -> None:
    rules = (
        rule("plain", "n = 1"),
        rule("also-plain", "n < 5"),
        rule("doubled", "n = 1", "SET n = n * 2; SET sys.Label = 'big'"),
        rule("cut", "n = 1", "REMOVE n"),
    )
    world = World(topics=(topic("t", subscription("s", rules=rules)),))
    world.send("t", message("m", app={"n": 1}))
    got = world.taker("t/subscriptions/s").got
    found = {(each.application_property("RuleName"), each.application_property("n"), each.subject) for each in got}
    assert found == {(None, 1, None), ("doubled", 2, "big"), ("cut", None, None)}


@pytest.mark.parametrize("kept", [True, False])
def test_a_filter_that_cannot_be_evaluated_dead_letters_if_wanted(kept: bool) -> None:
    failing = subscription("s", rules=(rule("r", "10 / n > 1"),), dead_letters_filter_errors=kept)
    world = World(topics=(topic("t", failing, subscription("other")),))
    world.send("t", message("m", app={"n": 0}), message("fine", app={"n": 2}))
    assert world.bodies("t/subscriptions/s") == ["fine"]
    dead = world.queue("t/subscriptions/s/$deadletterqueue").peek(0, 9)
    assert [each.application_property("DeadLetterReason") for each in dead] == ["FilterException"] * kept
    assert world.bodies("t/subscriptions/other") == ["m", "fine"]


def test_an_action_may_copy_every_system_property_of_a_message_now_or_later() -> None:
    copied = subscription("s", rules=(rule("r", "1 = 1", ";".join(f"SET {name}=sys.{name}" for name in READABLE)),))
    world = World(topics=(topic("t", subscription("before"), copied, subscription("after")),))
    world.send("t", message("now"), message("later", due_at=NOON + 10))
    world.pass_time(10)
    for name in ("before", "s", "after"):
        assert world.bodies(f"t/subscriptions/{name}") == ["now", "later"]
    states = [each.application_property("state") for each in world.queue("t/subscriptions/s").peek(0, 9)]
    assert (states, [type(state) for state in states]) == ([0, 0], [int, int])


def test_a_subscription_with_sessions_dead_letters_what_has_none() -> None:
    world = World(topics=(topic("t", subscription("s", requires_session=True)),))
    world.send("t", message("a", session_id="x"), message("b"))
    assert world.session_taker("t/subscriptions/s", None).bodies == ["a"]
    dead = world.queue("t/subscriptions/s/$deadletterqueue").peek(0, 9)[0]
    assert dead.application_property("DeadLetterReason") == "Session ID is null."


def test_the_topics_time_to_live_limits_the_subscriptions() -> None:
    world = World(topics=(topic("t", subscription("s", ttl_ms=5_000), ttl_ms=1_000),))
    world.send("t", message("a"), message("b", ttl_ms=10))
    assert [each.expires_at for each in world.queue("t/subscriptions/s").peek(0, 9)] == [NOON + 1_000, NOON + 10]


def test_a_topic_schedules_and_knows_repeated_messages() -> None:
    world = World(topics=(topic("t", subscription("s"), detects_duplicates=True),))
    world.send("t", message("a", message_id="1", due_at=NOON + 10), message("b", message_id="1"))
    assert world.topic("t").counts().scheduled == 1
    world.topic("t").cancel_scheduled([1])
    world.send("t", message("c", message_id="2", due_at=NOON + 10))
    world.pass_time(10)
    assert world.bodies("t/subscriptions/s") == ["c"]
    assert world.topic("t").counts().scheduled == 0


def test_a_topics_quota_counts_its_subscriptions() -> None:
    world = World(topics=(topic("t", subscription("a"), subscription("b"), max_size_megabytes=1),))
    with pytest.raises(BrokerError, match="resource-limit-exceeded"):
        for _ in range(9):
            world.send("t", message(b"x" * 130_000))
    assert world.queue("t/subscriptions/a").counts().active == 4
    world.broker.delete("t/subscriptions/a")
    assert world.topic("t").counts().size_bytes == world.queue("t/subscriptions/b").counts().size_bytes
    world.send("t", message(b"x" * 130_000))


@pytest.mark.parametrize("path", ["t/subscriptions/s", "t/subscriptions/s/$deadletterqueue"])
def test_nobody_sends_to_a_subscription(path: str) -> None:
    world = World(topics=(topic("t", subscription("s")),))
    with pytest.raises(BrokerError, match="Cannot create a message sender"):
        world.queue(path).send(message("a"))


# ------------------------------------------------------------------------------------------------------- forwarding


def test_a_forwarding_queue_passes_messages_on_and_has_no_receivers() -> None:
    world = World(queue("a", forward_to="B"), queue("b"))
    world.send("b", message("direct"))
    world.send("a", message("x"))
    assert world.queue("a").counts() == Counts()
    assert [(each.sequence, each.enqueued_sequence) for each in world.queue("b").peek(0, 9)] == [(1, 0), (2, 1)]
    with pytest.raises(BrokerError, match="forwards to"):
        world.taker("a")


def test_a_message_goes_through_four_forwards_and_not_five() -> None:
    chain = [queue(f"q{n}", forward_to=f"q{n + 1}") for n in range(1, 6)]
    world = World(*chain, queue("q6"))
    world.send("q2", message("four"))
    world.send("q1", message("five"))
    assert world.bodies("q6") == ["four"]
    stuck = world.queue(f"q5/{TRANSFER_DEAD}").peek(0, 9)
    assert [each.application_property("DeadLetterReason") for each in stuck] == ["MaxTransferHopCountExceeded"]
    assert world.queue("q5").counts().transfer_dead_letter == 1


def test_a_circle_of_forwards_ends() -> None:
    world = World(queue("a", forward_to="b"), queue("b", forward_to="a"))
    world.send("a", message("x"))
    assert [world.queue(name).counts().transfer_dead_letter for name in "ab"] == [1, 0]


def test_what_cannot_be_transferred_says_why_and_can_be_read() -> None:
    world = World(queue("a", forward_to="b"), queue("b"))
    world.broker.delete("b")
    world.send("a", message("x"))
    taker = world.taker(f"a/{TRANSFER_DEAD}")
    assert taker.got[0].application_property("DeadLetterReason") == "amqp:not-found"
    world.settle(f"a/{TRANSFER_DEAD}", taker.token)
    assert world.queue("a").counts() == Counts()


def test_a_subscription_forwards_and_the_target_needs_its_sessions() -> None:
    to_plain = subscription("plain", forward_to="q")
    to_sessions = subscription("sessions", forward_to="s")
    world = World(queue("q"), queue("s", requires_session=True), topics=(topic("t", to_plain, to_sessions),))
    world.send("t", message("a"))
    assert (world.bodies("q"), world.bodies("s")) == (["a"], [])
    assert world.bodies(f"t/subscriptions/sessions/{TRANSFER_DEAD}") == ["a"]


def test_forwarded_dead_letters_name_their_source() -> None:
    world = World(queue("a", forward_dead_letters_to="errors", max_delivery_count=1), queue("errors"))
    world.send("a", message("x"))
    world.settle("a", world.taker("a").token, Outcome.ABANDON)
    found = world.taker("errors").got[0]
    assert (found.dead_letter_source, found.delivery_count, found.enqueued_sequence) == ("a", 0, 1)
    assert found.application_property("DeadLetterReason") == "MaxDeliveryCountExceeded"
    assert world.queue("a").counts() == Counts()


def test_a_dead_letter_that_cannot_be_forwarded_stays_with_its_reason() -> None:
    world = World(queue("a", forward_dead_letters_to="errors"), queue("errors"))
    world.broker.delete("errors")
    world.send("a", message("x"))
    world.settle("a", world.taker("a").token, Outcome.DEAD_LETTER, reason="mine")
    dead = world.queue("a/$deadletterqueue").peek(0, 9)
    assert [each.application_property("DeadLetterReason") for each in dead] == ["mine"]
    assert dead[0].dead_letter_source is None


def test_dead_letters_that_expire_around_a_circle_come_to_rest() -> None:
    around = {"dead_letters_expired": True, "ttl_ms": 1}
    world = World(queue("a", forward_dead_letters_to="b", **around), queue("b", forward_dead_letters_to="a", **around))
    world.send("a", message("x"))
    world.pass_time(1_000)
    assert world.broker.next_due() is None
    assert [world.queue(name).counts() for name in "b"] == [Counts()]
    assert world.queue("a").counts().dead_letter == 1


def test_messages_from_before_are_forwarded_once_a_queue_forwards() -> None:
    world = World(queue("a"), queue("b"))
    world.send("a", message("1"), message("2"), message("later", due_at=NOON + 10))
    world.broker.update_queue(queue("a", forward_to="b"))
    assert world.bodies("b") == ["1", "2"]
    world.pass_time(10)
    assert world.bodies("b") == ["1", "2", "later"]


def test_what_was_locked_when_its_queue_was_made_to_forward_goes_on_when_its_lock_ends() -> None:
    world = World(queue("a", lock_ms=1_000), queue("b"))
    world.send("a", *(message(name) for name in ("abandoned", "released", "expired", "completed")))
    taker = world.taker("a", credit=4)
    world.broker.update_queue(queue("a", lock_ms=1_000, forward_to="b"))
    world.settle("a", taker.tokens[0], Outcome.ABANDON)
    world.settle("a", taker.tokens[1], Outcome.RELEASE)
    world.settle("a", taker.tokens[3], Outcome.COMPLETE)
    world.pass_time(1_000)
    assert world.bodies("b") == ["abandoned", "released", "expired"]
    assert {each.delivery_count for each in world.queue("b").peek(0, 9)} == {0}
    assert world.queue("a").counts() == Counts()


def test_a_dead_letter_does_not_go_where_its_queue_forwards() -> None:
    world = World(queue("a"), queue("b"))
    world.send("a", message("x"))
    world.settle("a", world.taker("a").token, Outcome.DEAD_LETTER)
    world.broker.update_queue(queue("a", forward_to="b"))
    world.settle("a/$DeadLetterQueue", world.taker("a/$DeadLetterQueue", 1).token, Outcome.ABANDON)
    assert (world.bodies("a/$DeadLetterQueue"), world.bodies("b")) == (["x"], [])


# ------------------------------------------------------------------------------------------------ making, changing


def test_entities_are_made_listed_changed_and_deleted() -> None:
    world = World(queue("q"))
    world.broker.create_topic(topic("t", subscription("s")))
    world.broker.create_subscription("T", subscription("more", lock_ms=5_000))
    world.broker.update_subscription("t", subscription("MORE", lock_ms=6_000))
    world.broker.update_topic(topic("t", metadata="note"))
    kinds = {each.name: type(each) for each in world.broker.entities()}
    assert kinds == {"q": QueueSettings, "t": TopicSettings}
    found = next(each for each in world.broker.entities() if isinstance(each, TopicSettings))
    assert (found.metadata, [each.lock_ms for each in found.subscriptions]) == ("note", [60_000, 6_000])
    world.broker.delete("t")
    with pytest.raises(BrokerError, match="could not be found"):
        world.broker.resolve("t/subscriptions/more")


def test_rules_are_added_replaced_and_deleted_with_effect() -> None:
    world = World(topics=(topic("t", subscription("s")),))
    world.broker.put_rule("t", "s", rule("red", "color = 'red'"))
    world.broker.delete_rule("t", "s", "$default")
    world.send("t", message("1", app={"color": "red"}), message("2", app={"color": "blue"}))
    world.broker.put_rule("T", "S", rule("RED", "color = 'blue'"))
    world.send("t", message("3", app={"color": "red"}), message("4", app={"color": "blue"}))
    assert world.bodies("t/subscriptions/s") == ["1", "4"]
    with pytest.raises(BrokerError, match="could not be found"):
        world.broker.delete_rule("t", "s", "$default")
    with pytest.raises(BrokerError, match="wrong SQL expression"):
        world.broker.put_rule("t", "s", rule("bad", "color ="))


def test_what_cannot_be_made_or_changed_is_refused() -> None:
    world = World(queue("q"), topics=(topic("t", subscription("s")),))
    refused = [
        (lambda: world.broker.create_queue(queue("Q")), "already exists"),
        (lambda: world.broker.create_topic(topic("q")), "already exists"),
        (lambda: world.broker.create_topic(topic("n", subscription("s", forward_to="nowhere"))), "could not be found"),
        (lambda: world.broker.create_subscription("t", subscription("S")), "already exists"),
        (lambda: world.broker.create_subscription("q", subscription("s")), "could not be found"),
        (lambda: world.broker.create_queue(queue("n", forward_to="nowhere")), "could not be found"),
        (lambda: world.broker.create_queue(queue("n", forward_to="t/subscriptions/s")), "choose a queue or topic"),
        (lambda: world.broker.update_queue(queue("q", forward_to="q")), "cannot forward to itself"),
        (lambda: world.broker.update_queue(queue("q", requires_session=True)), "RequiresSession cannot be changed"),
        (lambda: world.broker.update_queue(queue("q", detects_duplicates=True)), "cannot be changed"),
        (lambda: world.broker.update_queue(queue("t")), "could not be found"),
        (lambda: world.broker.update_topic(topic("t", detects_duplicates=True)), "cannot be changed"),
        (lambda: world.broker.update_subscription("t", subscription("s", requires_session=True)), "cannot be changed"),
        (lambda: world.broker.delete("q/$deadletterqueue"), "could not be found"),
    ]
    for change, words in refused:
        with pytest.raises(BrokerError, match=words):
            change()
    assert {each.name for each in world.broker.entities()} == {"q", "t"}
