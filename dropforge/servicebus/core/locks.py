"""Who holds which message: one token per delivery, each with its own time, or with that of its session."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from dropforge.servicebus.core.hub import Hub
from dropforge.servicebus.core.sessions import Sessions
from dropforge.servicebus.errors import lock_lost
from dropforge.servicebus.message import Message


class Locks:
    """`expired(message)` is called for a message whose lock's time has passed; it is to end the lock."""

    __slots__ = ("_by_token", "_expired", "_hub", "_sessions", "lock_ms")

    def __init__(self, hub: Hub, sessions: Sessions | None, lock_ms: int, expired: Callable[[Message], None]) -> None:
        self.lock_ms = lock_ms
        self._hub = hub
        self._sessions = sessions
        self._expired = expired
        self._by_token: dict[bytes, Message] = {}

    def __len__(self) -> int:
        return len(self._by_token)

    def lock(self, message: Message) -> None:
        message.lock_token = token = os.urandom(16)
        self._by_token[token] = message
        if self._sessions is not None:
            message.locked_until = self._sessions.locked(token, message)
        else:
            message.locked_until = until = self._hub.now() + self.lock_ms
            self._hub.timers.set(token, until, self._on_expired)

    def unlock(self, message: Message) -> None:
        token = message.lock_token
        assert token is not None, "a message that is not locked"
        del self._by_token[token]
        message.lock_token, message.locked_until = None, 0
        if self._sessions is not None:
            self._sessions.unlocked(token, message)
        else:
            self._hub.timers.cancel(token)

    def held(self, token: bytes, session_id: str | None = None) -> Message:
        """The message of a lock that holds. Raises `lock_lost`, or `session_lock_lost` where it was the session's."""
        message = self._by_token.get(token)
        if self._sessions is not None:
            owner = session_id if message is None else message.session_id
            if owner is not None:
                self._sessions.held(owner)
        if message is None:
            raise lock_lost()
        if message.locked_until <= self._hub.now():
            self._expired(message)
            raise lock_lost()
        return message

    def renew(self, tokens: Sequence[bytes]) -> list[int]:
        """Until when each lock holds now: all of them, or `lock_lost` is raised. Those of a session are renewed with
        it, and not here."""
        messages = [self.held(token) for token in tokens]
        if self._sessions is None:
            until = self._hub.now() + self.lock_ms
            for token, message in zip(tokens, messages, strict=True):
                message.locked_until = until
                self._hub.timers.set(token, until, self._on_expired)
        return [message.locked_until for message in messages]

    def clear(self) -> None:
        for token in self._by_token:
            self._hub.timers.cancel(token)
        self._by_token.clear()

    def _on_expired(self, token: Any) -> None:
        self._expired(self._by_token[token])
