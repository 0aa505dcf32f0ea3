"""Messages in sessions: one receiver at a time has a session, and gets its messages in order."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from dropforge.servicebus.core.hub import Hub
from dropforge.servicebus.core.numbers import SortedNumbers
from dropforge.servicebus.core.ports import Receiver
from dropforge.servicebus.errors import (
    BrokerError,
    session_cannot_be_locked,
    session_lock_lost,
    timeout,
)
from dropforge.servicebus.message import Message

# How long a receiver whose session lock ran out keeps its link: what it still asks for is answered with the error
# that says so, where a link detached at once would look like a broken connection.
LINGER_MS = 2_000


class Session:
    """One session: its messages, those of them that wait, those that are locked, and who has it."""

    __slots__ = ("id", "locked", "locked_until", "messages", "receiver", "state", "state_at", "waiting")

    def __init__(self, session_id: str) -> None:
        self.id = session_id
        self.messages = SortedNumbers()
        self.waiting = SortedNumbers()
        self.locked: dict[bytes, Message] = {}
        self.receiver: Receiver | None = None
        self.locked_until = 0
        self.state: bytes | None = None
        self.state_at = 0


class Sessions:
    """All sessions of one queue by id, the free ones that have something to give, and the receivers that wait for one.

    Free sessions are given out in the order in which they became free, so that a session whose messages keep failing
    does not hold the others up."""

    def __init__(
        self,
        hub: Hub,
        hand_over: Callable[[int, Receiver], None],
        give_back: Callable[[Message, bool], None],
        changed: Callable[[], None],
        lock_ms: int,
    ) -> None:
        self.lock_ms = lock_ms
        self._hub = hub
        self._hand_over = hand_over
        self._give_back = give_back
        self._changed = changed
        self._all: dict[str, Session] = {}
        self._free: OrderedDict[str, Session] = OrderedDict()
        self._waiting: OrderedDict[Receiver, None] = OrderedDict()
        self._by_receiver: dict[Receiver, Session] = {}
        # Receivers whose session ran out, until they are told.
        self._lost: dict[Receiver, str] = {}
        self._hungry: dict[Session, None] = {}

    # ------------------------------------------------------------------------------------------------ messages

    def joined(self, message: Message) -> None:
        """A message of some state is in the queue now."""
        self._session(_id_of(message)).messages.add(message.sequence)

    def left(self, message: Message) -> None:
        session = self._all[_id_of(message)]
        session.messages.remove(message.sequence)
        self._drop_if_empty(session)

    def ready(self, message: Message) -> bool:
        """A message waits; whether its session's receiver may take it at once."""
        session = self._all[_id_of(message)]
        session.waiting.add(message.sequence)
        if session.receiver is not None:
            self._hungry[session] = None
            return True
        self._offer(session)
        return False

    def gone(self, message: Message) -> None:
        """A message that waited does not any more."""
        session = self._all[_id_of(message)]
        session.waiting.remove(message.sequence)
        if not session.waiting:
            self._free.pop(session.id, None)

    def locked(self, token: bytes, message: Message) -> int:
        """A message was handed to the receiver of its session; until when it is its own."""
        session = self._all[_id_of(message)]
        session.locked[token] = message
        return session.locked_until

    def unlocked(self, token: bytes, message: Message) -> None:
        self._all[_id_of(message)].locked.pop(token, None)

    def numbers_of(self, session_id: str, start: int) -> Iterator[int]:
        """The sequence numbers of one session from `start` on."""
        session = self._all.get(session_id)
        return session.messages.since(start) if session else iter(())

    def pump(self) -> None:
        """Give out what waits in the sessions whose receivers have credit."""
        hungry, self._hungry = self._hungry, {}
        for session in hungry:
            receiver, waiting = session.receiver, session.waiting
            while receiver is not None and waiting and receiver.credit > 0:
                self._hand_over(waiting.pop_first(), receiver)
                receiver = session.receiver

    # ----------------------------------------------------------------------------------------------- receivers

    def accept(self, receiver: Receiver, session_id: str | None, timeout_ms: int) -> None:
        """Grant a session, now or when one is free within the time; None asks for any that has messages."""
        self._expire_overdue(session_id)
        if session_id is not None:
            session = self._session(session_id)
            if session.receiver is not None:
                receiver.refused(session_cannot_be_locked(session_id))
            else:
                self._grant(session, receiver)
            return
        if self._free:
            _, session = self._free.popitem(last=False)
            self._grant(session, receiver)
            return
        self._waiting[receiver] = None
        self._hub.timers.set((receiver, "accept"), self._hub.now() + timeout_ms, self._on_accept_timeout)

    def detach(self, receiver: Receiver) -> None:
        """The receiver is gone: its session is free, and its messages count no failed delivery."""
        if receiver in self._waiting:
            del self._waiting[receiver]
            self._hub.timers.cancel((receiver, "accept"))
        if self._lost.pop(receiver, None) is not None:
            self._hub.timers.cancel((receiver, "lost"))
        session = self._by_receiver.get(receiver)
        if session is not None:
            self._release(session, counted=False)

    def credited(self, receiver: Receiver) -> bool:
        session = self._by_receiver.get(receiver)
        if session is None or not session.waiting:
            return False
        self._hungry[session] = None
        return True

    def held(self, session_id: str | None, receiver: Receiver | None = None) -> Session:
        """The session, which somebody has, and no other than the receiver if one is given. Raises
        `session_lock_lost`."""
        session = self._all.get(session_id) if session_id is not None else None
        if session is None or session.receiver is None:
            raise session_lock_lost(str(session_id))
        if session.locked_until <= self._hub.now():
            self._on_lock_expired(session)
            raise session_lock_lost(session.id)
        if receiver is not None and session.receiver is not receiver:
            raise session_lock_lost(session.id)
        return session

    def renew(self, session_id: str, receiver: Receiver | None) -> int:
        """Until when the lock holds now, and with it those of the session's messages."""
        session = self.held(session_id, receiver)
        session.locked_until = until = self._hub.now() + self.lock_ms
        for message in session.locked.values():
            message.locked_until = until
        self._hub.timers.set(session, until, self._on_lock_expired)
        return until

    # --------------------------------------------------------------------------------------------------- state

    def restore_state(self, session_id: str, state: bytes, at: int) -> None:
        session = self._session(session_id)
        session.state, session.state_at = state, at

    def set_state(self, session_id: str, state: bytes | None, receiver: Receiver | None) -> int:
        """Set the state of a held session; how many bytes more it takes than before."""
        session = self.held(session_id, receiver)
        grown = len(state or b"") - len(session.state or b"")
        session.state, session.state_at = state, self._hub.now()
        return grown

    def ids(self, updated_after: int | None) -> list[str]:
        """Sessions with messages or a state; or those whose state was set after a time."""
        if updated_after is not None:
            return sorted(s.id for s in self._all.values() if s.state is not None and s.state_at > updated_after)
        return sorted(s.id for s in self._all.values() if s.state is not None or s.waiting or s.locked)

    @property
    def state_bytes(self) -> int:
        return sum(len(session.state or b"") for session in self._all.values())

    def close(self, error: BrokerError) -> None:
        """Send all receivers away, and forget every session."""
        receivers = [*self._waiting, *self._by_receiver, *self._lost]
        for receiver in receivers:
            self._hub.timers.cancel((receiver, "accept"))
            self._hub.timers.cancel((receiver, "lost"))
        for session in self._by_receiver.values():
            self._hub.timers.cancel(session)
        for held in (self._all, self._free, self._waiting, self._by_receiver, self._lost, self._hungry):
            held.clear()
        for receiver in receivers:
            receiver.refused(error)

    # ------------------------------------------------------------------------------------------------- private

    def _session(self, session_id: str) -> Session:
        session = self._all.get(session_id)
        if session is None:
            session = self._all[session_id] = Session(session_id)
        return session

    def _drop_if_empty(self, session: Session) -> None:
        if session.receiver is not None or session.messages or session.state is not None:
            return
        # While it was released, a dead letter that was forwarded back may have begun the session anew.
        if self._all.get(session.id) is session:
            del self._all[session.id]

    def _offer(self, session: Session) -> None:
        """The session is nobody's and has something to give."""
        if self._waiting:
            receiver, _ = self._waiting.popitem(last=False)
            self._hub.timers.cancel((receiver, "accept"))
            self._free.pop(session.id, None)
            self._grant(session, receiver)
        else:
            self._free.setdefault(session.id, session)

    def _grant(self, session: Session, receiver: Receiver) -> None:
        self._free.pop(session.id, None)
        session.receiver = receiver
        session.locked_until = until = self._hub.now() + self.lock_ms
        self._by_receiver[receiver] = session
        self._hub.timers.set(session, until, self._on_lock_expired)
        receiver.accepted(session.id, until)
        if session.waiting:
            self._hungry[session] = None
            self._changed()

    def _release(self, session: Session, *, counted: bool) -> None:
        assert session.receiver is not None
        del self._by_receiver[session.receiver]
        self._hub.timers.cancel(session)
        self._hungry.pop(session, None)
        session.receiver, session.locked_until = None, 0
        for message in list(session.locked.values()):
            self._give_back(message, counted)
        # Giving back the first message may have granted the session to the next receiver already.
        if session.receiver is None:
            if session.waiting:
                self._offer(session)
            self._drop_if_empty(session)

    def _expire_overdue(self, session_id: str | None) -> None:
        """A lock whose time has passed counts as free, whether or not its timer came yet."""
        session = self._all.get(session_id) if session_id is not None else None
        if session is not None and session.receiver is not None and session.locked_until <= self._hub.now():
            self._on_lock_expired(session)

    def _on_lock_expired(self, session: Any) -> None:
        receiver = session.receiver
        self._release(session, counted=True)
        self._lost[receiver] = session.id
        self._hub.timers.set((receiver, "lost"), self._hub.now() + LINGER_MS, self._on_linger_over)

    def _on_linger_over(self, key: Any) -> None:
        receiver = key[0]
        receiver.refused(session_lock_lost(self._lost.pop(receiver)))

    def _on_accept_timeout(self, key: Any) -> None:
        receiver = key[0]
        del self._waiting[receiver]
        receiver.refused(timeout())


def _id_of(message: Message) -> str:
    assert message.session_id is not None, "a message without session in an entity that requires one"
    return message.session_id
