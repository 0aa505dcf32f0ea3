"""The store: what was committed is there after a restart, and nothing else; and the files it refuses."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dropforge.servicebus.core.ports import Counts, Outcome
from dropforge.servicebus.errors import ConfigError, StoreFailed
from dropforge.servicebus.message import MAX_TTL_MS, NEVER
from dropforge.servicebus.settings import Namespace, QueueSettings, RuleSettings, SqlFilter, TopicSettings
from dropforge.servicebus.store import Store
from tests.unit.servicebus.core_world import NOON, World, message, queue, subscription, topic

FULL = "t/Subscriptions/s"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "store.db"


@pytest.fixture
def world(path: Path) -> Iterator[World]:
    queues = (queue(max_delivery_count=5, detects_duplicates=True), queue("s", requires_session=True))
    with World(*queues, topics=(topic("t", subscription("s")),), path=path) as made:
        yield made


def test_every_state_of_a_message_comes_back(world: World) -> None:
    world.send("q", *(message(f"{n}", message_id=f"{n}", ttl_ms=9_000, app={"n": n}) for n in range(5)))
    world.send("q", message("later", due_at=NOON + 500))
    taker = world.taker("q")
    for token, outcome in zip(taker.tokens, (Outcome.COMPLETE, Outcome.DEFER, Outcome.DEAD_LETTER), strict=False):
        world.settle("q", token, outcome, reason="why", properties={"by": "me"})
    taker.credit = 0
    world.settle("q", taker.tokens[3], Outcome.ABANDON)
    before = [(each.encode(peek=True)) for each in (*world.queue("q").peek(0, 9), *_dead(world).peek(0, 9))]
    world.restart()
    assert world.queue("q").counts().total == 5
    assert [(each.encode(peek=True)) for each in (*world.queue("q").peek(0, 9), *_dead(world).peek(0, 9))] == before
    assert world.taker("q").bodies == ["3", "4"]
    world.pass_time(500)
    assert world.send("q", message("next")) == [8]


def test_the_longest_times_that_a_message_may_have_are_stored(world: World) -> None:
    world.send("q", message("a", ttl_ms=MAX_TTL_MS), message("b", due_at=NEVER))
    world.restart()
    found = world.queue("q").peek(0, 9)
    assert [(each.expires_at, each.due_at) for each in found] == [(NOON + MAX_TTL_MS, None), (None, NEVER)]


def _dead(world: World):  # type: ignore[no-untyped-def]
    return world.queue("q/$DeadLetterQueue")


def test_what_was_not_committed_is_not_there(world: World) -> None:
    world.send("q", message("kept"))
    taker = world.taker("q")
    world.queue("q").send(message("lost"))
    world.queue("q").settle(taker.tokens[0] or b"", Outcome.COMPLETE)
    world.restart()
    assert world.bodies("q") == ["kept"]
    assert world.send("q", message("next")) == [2]


def test_numbers_go_on_where_they_were_though_nothing_is_left(world: World) -> None:
    world.send("q", message("a"), message("b"))
    taker = world.taker("q")
    for token in taker.tokens:
        world.settle("q", token)
    world.restart()
    assert world.send("q", message("c")) == [3]


def test_a_number_is_not_used_again_after_its_message_left_in_a_later_life(world: World) -> None:
    world.send("q", message("a"))
    world.restart()
    world.settle("q", world.taker("q").token)
    world.restart()
    assert world.send("q", message("b")) == [2]


def test_numbers_of_forwarded_messages_are_not_used_again(path: Path) -> None:
    with World(queue(), queue("other"), path=path) as world:
        world.send("q", message("a"))
        taker = world.taker("q")
        world.broker.update_queue(queue(forward_to="other"))
        world.send("q", message("b"))
        world.settle("q", taker.token)
        world.broker.update_queue(queue())
        world.turn()
        world.restart()
        assert world.send("q", message("c")) == [3]


def test_the_history_of_duplicates_outlives_a_restart_and_ends_in_time(world: World) -> None:
    world.send("q", message("a", message_id="1"))
    world.pass_time(10_000)
    world.send("q", message("b", message_id="2"))
    world.restart()
    world.send("q", message("again", message_id="1"), message("again", message_id="2"))
    world.pass_time(10_000)
    world.send("q", message("c", message_id="1"))
    world.restart()
    world.send("q", message("again", message_id="1"), message("again", message_id="2"))
    assert world.bodies("q") == ["a", "b", "c"]
    world.restart()
    world.pass_time(60_000)
    assert list(world.store.history()) == []


def test_session_state_comes_back_without_its_lock(world: World) -> None:
    world.send("s", message("a", session_id="x"))
    world.session_taker("s", "x")
    world.queue("s").set_session_state("x", b"\x00state")
    world.session_taker("s", "gone")
    world.queue("s").set_session_state("gone", b"1")
    world.queue("s").set_session_state("gone", None)
    world.turn()
    world.restart()
    taker = world.session_taker("s", "x")
    assert (taker.bodies, world.queue("s").session_state("x")) == (["a"], b"\x00state")
    assert world.queue("s").sessions(None, 0, 9) == ["x"]


def test_what_fell_due_while_nobody_ran_happens_at_the_start(world: World) -> None:
    world.send("q", message("expired", ttl_ms=100), message("due", due_at=NOON + 100), message("stays"))
    world.clock.now += 60_000
    world.restart()
    world.pass_time(0)
    assert world.bodies("q") == ["stays", "due"]


def test_a_topics_copies_and_its_scheduled_messages_come_back(world: World) -> None:
    world.send("t", message("a"), message("later", due_at=NOON + 100))
    world.restart()
    assert world.bodies(FULL) == ["a"]
    world.pass_time(100)
    assert [(each.sequence, each.enqueued_sequence) for each in world.queue(FULL).peek(0, 9)] == [(1, 1), (2, 3)]


def test_forwarded_messages_keep_their_count_of_hops(path: Path) -> None:
    chain = [queue("a", forward_to="b"), queue("b")]
    with World(*chain, *(queue(f"c{n}", forward_to=f"c{n + 1}") for n in range(3)), queue("c3"), path=path) as world:
        world.send("a", message("x"))
        world.restart()
        world.broker.update_queue(queue("b", forward_to="c0"))
        # One hop before the restart, and three of the four after it.
        assert world.bodies("c2/$Transfer/$DeadLetterQueue") == ["x"]


def test_entities_of_the_admin_api_come_back_with_their_contents(world: World) -> None:
    rules = (RuleSettings("r", SqlFilter("a = @x", (("@x", 1),)), "SET b = 2"),)
    world.broker.create_queue(queue("made", lock_ms=7_000, kept=(("AutoDeleteOnIdle", "PT5M"),)))
    world.broker.create_topic(topic("made-too", subscription("s", rules=rules, forward_to="made")))
    world.broker.create_queue(queue("deleted"))
    world.turn()
    world.broker.delete("deleted")
    world.send("made", message("a"))
    before = world.broker.entities()
    world.restart()
    assert {each.name: each for each in world.broker.entities()} == {each.name: each for each in before}
    assert world.bodies("made") == ["a"]


def test_a_changed_declaration_wins_and_an_unchanged_one_leaves_what_was_changed(world: World) -> None:
    world.broker.update_queue(queue(max_delivery_count=9, detects_duplicates=True))
    world.broker.put_rule("t", "s", RuleSettings("more", SqlFilter("1=1")))
    world.turn()
    world.restart()
    assert _queue(world, "q").max_delivery_count == 9
    assert len(_topic(world).subscriptions[0].rules) == 2
    declared = (queue(max_delivery_count=4, detects_duplicates=True), *world.namespace.queues[1:])
    world.restart(Namespace("test", declared, (topic("t", subscription("s", lock_ms=5_000)),)))
    assert _queue(world, "q").max_delivery_count == 4
    assert (len(_topic(world).subscriptions[0].rules), _topic(world).subscriptions[0].lock_ms) == (1, 5_000)


def _queue(world: World, name: str) -> QueueSettings:
    return next(each for each in world.broker.entities() if isinstance(each, QueueSettings) and each.name == name)


def _topic(world: World) -> TopicSettings:
    return next(each for each in world.broker.entities() if isinstance(each, TopicSettings))


def test_a_queue_that_is_declared_no_more_keeps_its_messages_out_of_reach(world: World) -> None:
    world.send("q", message("a", message_id="1"))
    world.session_taker("s", "x")
    world.queue("s").set_session_state("x", b"1")
    world.send("t", message("b"))
    declared = world.namespace
    world.restart(Namespace("test", (queue("other"),)))
    assert set(world.broker.dormant) == {"q", "s", FULL}
    assert [each.name for each in world.broker.entities()] == ["other"]
    world.restart(declared)
    assert (world.broker.dormant, world.bodies("q"), world.bodies(FULL)) == ((), ["a"], ["b"])


def test_an_empty_queue_that_is_declared_no_more_is_gone(world: World) -> None:
    world.send("q", message("a", message_id="1"))
    world.settle("q", world.taker("q").token)
    declared = world.namespace
    world.restart(Namespace("test"))
    assert world.broker.dormant == ()
    world.restart(declared)
    assert world.send("q", message("b", message_id="1")) == [1]


def test_messages_without_session_are_dead_letters_once_sessions_are_required(world: World) -> None:
    world.send("q", message("with", session_id="x"), message("without"))
    world.restart(Namespace("test", (queue(requires_session=True),)))
    assert world.session_taker("q", None).bodies == ["with"]
    assert world.bodies("q/$DeadLetterQueue") == ["without"]
    world.restart()
    assert world.queue("q").counts() == Counts(active=1, dead_letter=1, size_bytes=world.queue("q").counts().size_bytes)


def test_a_declaration_with_a_wrong_rule_is_refused_by_name(path: Path) -> None:
    wrong = subscription("s", rules=(RuleSettings("r", SqlFilter("a =")),))
    with pytest.raises(ConfigError, match="t/Subscriptions/s: wrong SQL expression"):
        World(topics=(topic("t", wrong),))


def test_a_failed_commit_says_so_and_writes_nothing_more(world: World) -> None:
    connection = world.store._connection
    assert connection is not None
    connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StoreFailed, match="could not be written"):
        world.send("q", *(message(os.urandom(4_000)) for _ in range(100)))
    with pytest.raises(StoreFailed):
        world.broker.commit()
    world.broker.close()
    world.broker.close()


def test_only_the_owner_may_read_the_file(world: World, path: Path) -> None:
    world.send("q", message("a"))
    for file in path.parent.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file


def test_a_strange_file_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="cannot be opened"):
        Store(path)
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE t (a)")
    other.close()
    with pytest.raises(ConfigError, match="another program's"):
        Store(path)


def test_a_file_of_another_version_is_refused(world: World, path: Path) -> None:
    connection = world.store._connection
    assert connection is not None
    connection.execute("PRAGMA user_version = 99")
    world.broker.close()
    with pytest.raises(ConfigError, match="schema version 99"):
        Store(path)


def test_the_file_does_not_keep_the_size_of_a_crowd_that_left(path: Path) -> None:
    with World(queue(), path=path) as world:
        world.queue("q").send_all([message(os.urandom(1_000)) for _ in range(12_000)])
        world.turn()
        taker = world.taker("q", 20_000, deletes=True)
        assert len(taker.got) == 12_000
    assert path.stat().st_size > 10_000_000
    with World(queue(), path=path):
        pass
    assert path.stat().st_size < 1_000_000


def test_settings_are_stored_as_the_file_has_them(world: World) -> None:
    found = {record.path: json.loads(record.settings) for record in world.store.entities()}
    assert found["q"]["Properties"]["MaxDeliveryCount"] == 5
    assert set(found) == {"q", "s", "t", FULL}


def test_ten_thousand_messages_are_back_within_seconds(path: Path) -> None:
    with World(queue(), queue("s", requires_session=True), path=path) as world:
        world.queue("q").send_all([message(f"{n}", message_id=f"{n}") for n in range(5_000)])
        world.queue("s").send_all([message(f"{n}", session_id=f"{n % 1_000}") for n in range(5_000)])
        world.turn()
        started = time.monotonic()
        world.restart()
        assert time.monotonic() - started < 5
        assert [world.queue(name).counts().active for name in "qs"] == [5_000, 5_000]
