"""The core and its store against the simplest broker that could be: no message lost, none held by two, order kept."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dropforge.servicebus.core.ports import Outcome
from dropforge.servicebus.errors import BrokerError
from dropforge.servicebus.message import Message
from tests.unit.servicebus.core_world import Taker, World, body_of, message, queue

LOCK_MS, TTL_MS, MAX_DELIVERIES, WINDOW_MS = 1_000, 1_500, 3, 800
SESSIONS = ("x", "y", "z")


@dataclass
class Known:
    """What the model knows of one message."""

    body: str
    session: str | None
    sequence: int
    state: str  # waiting, locked, deferred, deferred and locked, scheduled, dead
    expires_at: int | None = None
    due_at: int | None = None
    ttl_ms: int | None = None
    count: int = 0
    token: bytes | None = None
    locked_until: int = 0


@dataclass
class Model:
    """One queue, searched from end to end for everything."""

    known: dict[str, Known] = field(default_factory=dict)
    following: int = 1
    # Which session each taker has, and until when.
    holders: dict[str, tuple[int, int]] = field(default_factory=dict)
    # When an id came in, for duplicate detection.
    ids: dict[str, int] = field(default_factory=dict)

    def number(self) -> int:
        self.following += 1
        return self.following - 1

    def ended(self, found: Known, counted: bool, at: int) -> None:
        """A lock ended at a time and the message stays."""
        found.token = None
        if counted:
            found.count += 1
            if found.count >= MAX_DELIVERIES:
                found.state = "dead"
                return
        if found.state == "deferred and locked":
            found.state = "deferred"
        elif found.expires_at is not None and found.expires_at <= at:
            found.state = "dead"
        else:
            found.state = "waiting"

    def pass_time(self, now: int) -> None:
        for session, (_, until) in list(self.holders.items()):
            if until <= now:
                self.free(session, counted=True, at=until)
        for found in self.known.values():
            if found.token is not None and found.session is None and found.locked_until <= now:
                self.ended(found, counted=True, at=found.locked_until)
        due = [found for found in self.known.values() if found.state == "scheduled" and (found.due_at or 0) <= now]
        for found in sorted(due, key=lambda each: (each.due_at, each.sequence)):
            found.sequence, found.state = self.number(), "waiting"
            if found.ttl_ms is not None:
                found.expires_at = (found.due_at or 0) + found.ttl_ms
        for found in self.known.values():
            if found.state == "waiting" and found.expires_at is not None and found.expires_at <= now:
                found.state = "dead"

    def free(self, session: str, *, counted: bool, at: int) -> None:
        del self.holders[session]
        for found in self.known.values():
            if found.session == session and found.token is not None:
                self.ended(found, counted, at)

    def restart(self) -> None:
        """Locks are not stored: what was locked waits again, uncounted."""
        self.holders.clear()
        for found in self.known.values():
            if found.token is not None:
                found.token = None
                found.state = "deferred" if found.state == "deferred and locked" else "waiting"


class Broker(RuleBasedStateMachine):
    """Steps against both, each of them one committed turn unless it says otherwise."""

    sessions = False

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        settings_ = queue(
            lock_ms=LOCK_MS,
            max_delivery_count=MAX_DELIVERIES,
            dead_letters_expired=True,
            detects_duplicates=True,
            duplicate_window_ms=WINDOW_MS,
            requires_session=self.sessions,
        )
        self.world = World(settings_, path=Path(self.folder.name) / "store.db")
        self.model = Model()
        self.takers: dict[int, Taker] = {}
        self.made = 0
        # Every number ever given out, by the message that has it.
        self.numbers: dict[int, str] = {}

    def teardown(self) -> None:
        self.world.broker.close()
        self.folder.cleanup()

    def _all(self, state: str) -> list[Known]:
        return [found for found in self.model.known.values() if found.state == state]

    def _held(self) -> list[Known]:
        return [found for found in self.model.known.values() if found.token is not None]

    # ----------------------------------------------------------------------------------------------------- sending

    def _message(self, session: int, ttl: bool, delay_ms: int) -> tuple[Message, Known]:
        self.made += 1
        name = SESSIONS[session % len(SESSIONS)] if self.sessions else None
        now = self.world.clock.now
        due = now + delay_ms if delay_ms else None
        found = Known(f"m{self.made}", name, 0, "scheduled" if delay_ms else "waiting", due_at=due)
        found.ttl_ms = TTL_MS if ttl else None
        if ttl and not delay_ms:
            found.expires_at = now + TTL_MS
        sent = message(found.body, session_id=name, ttl_ms=found.ttl_ms, due_at=due, message_id=found.body)
        return sent, found

    @rule(
        session=st.integers(0, 2),
        ttl=st.booleans(),
        delay_ms=st.sampled_from((0, 0, 0, 300, 700)),
        count=st.integers(1, 3),
    )
    def send(self, session: int, ttl: bool, delay_ms: int, count: int) -> None:
        for _ in range(count):
            sent, found = self._message(session, ttl, delay_ms)
            found.sequence = self.model.number()
            assert self.world.send("q", sent) == [found.sequence]
            self.model.known[found.body] = found
            self.model.ids[found.body] = self.world.clock.now

    @precondition(lambda self: self.model.ids)
    @rule(which=st.integers(0, 50))
    def send_again(self, which: int) -> None:
        body = list(self.model.ids)[-1 - which % min(3, len(self.model.ids))]
        fresh = self.world.clock.now - self.model.ids[body] < WINDOW_MS
        found = Known(f"again {self.made}", "x" if self.sessions else None, 0, "waiting")
        self.made += 1
        numbers = self.world.send("q", message(found.body, message_id=body, session_id=found.session))
        if not fresh:
            found.sequence = self.model.number()
            assert numbers == [found.sequence]
            self.model.known[found.body] = found
            self.model.ids[body] = self.world.clock.now

    @precondition(lambda self: self._all("scheduled"))
    @rule(which=st.integers(0, 50))
    def cancel(self, which: int) -> None:
        scheduled = self._all("scheduled")
        found = scheduled[which % len(scheduled)]
        self.world.queue("q").cancel_scheduled([found.sequence])
        self.world.turn()
        del self.model.known[found.body]

    # --------------------------------------------------------------------------------------------------- receiving

    @precondition(lambda self: not self.sessions)
    @rule(who=st.integers(0, 2), count=st.integers(1, 3), then=st.sampled_from((None, *Outcome)))
    def receive(self, who: int, count: int, then: Outcome | None) -> None:
        taker = self.takers.get(who)
        if taker is None:
            taker = self.takers[who] = Taker(0)
            self.world.queue("q").attach(taker)
        self._take(taker, count, None, then)

    @precondition(lambda self: self.sessions)
    @rule(
        who=st.integers(0, 2),
        session=st.sampled_from((None, *SESSIONS)),
        count=st.integers(1, 3),
        then=st.sampled_from((None, *Outcome)),
    )
    def receive_session(self, who: int, session: str | None, count: int, then: Outcome | None) -> None:
        taker = self.takers.get(who)
        if taker is None or self.model.holders.get(taker.session_id or "", (None, 0))[0] != who:
            taker = self._accept(who, session)
        if taker is not None:
            self._take(taker, count, taker.session_id, then)

    def _accept(self, who: int, session: str | None) -> Taker | None:
        taker = Taker(0)
        self.world.queue("q").accept_session(taker, session, 1)
        now = self.world.clock.now
        free = {found.session for found in self.model.known.values() if found.state == "waiting"} - set(
            self.model.holders
        )
        if session in self.model.holders or (session is None and not free):
            self.world.queue("q").detach(taker)
            assert taker.session_id is None
            return None
        assert taker.session_id == session if session is not None else taker.session_id in free
        assert taker.session_id is not None
        self.model.holders[taker.session_id] = (who, now + LOCK_MS)
        self.takers[who] = taker
        return taker

    def _take(self, taker: Taker, count: int, session: str | None, then: Outcome | None) -> None:
        """Exactly the first messages that wait are given, in order, and nobody else holds them."""
        waiting = [each for each in self.model.known.values() if each.state == "waiting" and each.session == session]
        wanted = sorted(waiting, key=lambda each: each.sequence)[:count]
        before, taker.credit = len(taker.got), count
        self.world.queue("q").credited(taker)
        self.world.turn()
        taker.credit = 0
        assert taker.bodies[before:] == [each.body for each in wanted]
        for found, got, token in zip(wanted, taker.got[before:], taker.tokens[before:], strict=True):
            assert (got.sequence, got.delivery_count, got.lock_token) == (found.sequence, found.count, token)
            found.state, found.token, found.locked_until = "locked", token, got.locked_until
            until = self.world.clock.now + LOCK_MS if session is None else self.model.holders[session][1]
            assert got.locked_until == until
        if then is not None and wanted:
            self._settle(wanted[0], then)

    @precondition(lambda self: self._all("deferred"))
    @rule(which=st.integers(0, 50))
    def receive_deferred(self, which: int) -> None:
        deferred = self._all("deferred")
        found = deferred[which % len(deferred)]
        q = self.world.queue("q")
        if found.session is not None and found.session not in self.model.holders:
            with pytest.raises(BrokerError):
                q.receive_deferred([found.sequence], session_id=found.session, receiver=None, delete=False)
            return
        (got,) = q.receive_deferred([found.sequence], session_id=found.session, receiver=None, delete=False)
        self.world.turn()
        assert body_of(got) == found.body
        found.state, found.token, found.locked_until = "deferred and locked", got.lock_token, got.locked_until

    # ---------------------------------------------------------------------------------------------------- settling

    @precondition(lambda self: self._held())
    @rule(which=st.integers(0, 50), outcome=st.sampled_from(Outcome))
    def settle(self, which: int, outcome: Outcome) -> None:
        held = self._held()
        self._settle(held[which % len(held)], outcome)

    def _settle(self, found: Known, outcome: Outcome) -> None:
        self.world.settle("q", found.token, outcome, session_id=found.session)
        if outcome is Outcome.COMPLETE:
            del self.model.known[found.body]
        elif outcome is Outcome.DEFER:
            found.state, found.token = "deferred", None
        elif outcome is Outcome.DEAD_LETTER:
            found.state, found.token = "dead", None
        else:
            self.model.ended(found, outcome is Outcome.ABANDON, self.world.clock.now)

    @precondition(lambda self: self.takers)
    @rule(which=st.integers(0, 50))
    def settle_what_is_lost(self, which: int) -> None:
        held = {each.token for each in self.model.known.values()}
        lost = [token for taker in self.takers.values() for token in taker.tokens if token not in held]
        if lost:
            with pytest.raises(BrokerError, match="lock-lost"):
                self.world.queue("q").settle(lost[which % len(lost)] or b"", Outcome.COMPLETE)

    @precondition(lambda self: self._held() or self.model.holders)
    @rule(which=st.integers(0, 50))
    def renew(self, which: int) -> None:
        until = self.world.clock.now + LOCK_MS
        if self.sessions and self.model.holders:
            session = sorted(self.model.holders)[which % len(self.model.holders)]
            assert self.world.queue("q").renew_session(session) == until
            self.model.holders[session] = (self.model.holders[session][0], until)
            return
        held = self._held()
        if held:
            found = held[which % len(held)]
            assert self.world.queue("q").renew([found.token or b""]) == [until]
            found.locked_until = until

    @precondition(lambda self: self.takers)
    @rule(who=st.integers(0, 2))
    def detach(self, who: int) -> None:
        taker = self.takers.pop(who, None)
        if taker is not None:
            self.world.queue("q").detach(taker)
            self.world.turn()
            mine = [name for name, (owner, _) in self.model.holders.items() if owner == who]
            if taker.session_id in mine:
                self.model.free(taker.session_id or "", counted=False, at=self.world.clock.now)

    # ------------------------------------------------------------------------------------------- time and its end

    @rule(milliseconds=st.sampled_from((1, 150, 400, 999, 2_000)))
    def pass_time(self, milliseconds: int) -> None:
        self.world.pass_time(milliseconds)
        self.model.pass_time(self.world.clock.now)

    # Drawn to be rare: after a restart nothing is held, and little is left to go wrong.
    @rule(dice=st.sampled_from("......+-"))
    def die(self, dice: str) -> None:
        if dice == ".":
            return
        if dice == "+":
            sent, _ = self._message(0, ttl=False, delay_ms=0)
            self.world.queue("q").send(sent)
        self.world.restart()
        self.takers.clear()
        self.model.restart()
        self.model.pass_time(self.world.clock.now)
        self.world.pass_time(0)

    # -------------------------------------------------------------------------------------------------- always true

    @invariant()
    def everything_is_where_it_should_be(self) -> None:
        found = {body_of(each): each for each in self.world.queue("q").peek(0, 10_000)}
        alive = {each.body: each for each in self.model.known.values() if each.state != "dead"}
        assert set(found) == set(alive)
        states = {"scheduled": 2, "deferred": 1, "deferred and locked": 1}
        for body, known in alive.items():
            got = found[body]
            wanted = (known.sequence, states.get(known.state, 0), known.count, known.token)
            assert (got.sequence, int(got.state), got.delivery_count, got.lock_token) == wanted, body
        dead = {body_of(each) for each in self.world.queue("q/$DeadLetterQueue").peek(0, 10_000)}
        assert dead == {each.body for each in self.model.known.values() if each.state == "dead"}
        counts = self.world.queue("q").counts()
        assert counts.total == len(self.model.known)
        assert counts.active == sum(each.state in ("waiting", "locked") for each in self.model.known.values())

    @invariant()
    def no_number_is_given_twice(self) -> None:
        for each in self.world.queue("q").peek(0, 10_000):
            assert self.numbers.setdefault(each.sequence, body_of(each)) == body_of(each)


class SessionBroker(Broker):
    sessions = True


TestQueue = Broker.TestCase
TestQueue.settings = settings(stateful_step_count=50)
TestSessions = SessionBroker.TestCase
TestSessions.settings = settings(stateful_step_count=50)
