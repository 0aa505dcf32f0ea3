"""Who may ask for what: a key for inference, another one for what changes the server, and tokens where a tenant gives them."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from math import inf
from typing import Protocol

Header = Callable[[str], str | None]

_NO_ORDERS = "this server takes no orders: it was started without an admin key (--admin-key-env)"
_ADMIN_KEY = "wanted the admin key in `Authorization: Bearer <key>` or `x-functions-key`; found another one, or none"
_KEY = "wanted the endpoint's key in `Authorization: Bearer <key>` or `x-functions-key`; found no key, or another one"
_NEITHER = (
    "wanted a token with the role Dropforge.Infer, or the endpoint's key, in `Authorization: Bearer`; found neither"
)
_NEITHER_FOR_ADMIN = (
    "wanted a token with the role Dropforge.Admin, or the admin key; the caller may only ask for answers"
)


class Role(IntEnum):
    """Each may do what those below it may."""

    NOBODY = 0
    CALLER = 1
    ADMIN = 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a caller may do, until when (seconds since 1970), and, for one who may do nothing, why: status and message."""

    role: Role
    until: float = inf
    refusal: tuple[int, str] | None = None


class Tokens(Protocol):
    """Reads the tokens of somebody who gives them."""

    def verdict(self, token: str) -> Verdict:
        """What the token lets its bearer do. At once, whatever the token."""


class Keys:
    """`admin` is None when no key changes anything. `inference` is None when everybody may ask, or, where there are
    `tokens`, only those who have one."""

    def __init__(self, inference: str | None, admin: str | None = None, tokens: Tokens | None = None) -> None:
        self._inference = inference.encode() if inference is not None else None
        self._admin = admin.encode() if admin is not None else None
        self._tokens = tokens

    @property
    def change(self) -> bool:
        """Whether what a caller may do changes with time."""
        return self._tokens is not None

    def verdict(self, header: Header) -> Verdict:
        """Of the caller who sends these headers, asked for by their names in lower case."""
        scheme, _, token = (header("authorization") or "").partition(" ")
        is_bearer = scheme.lower() == "bearer"
        given = token.strip() if is_bearer else header("x-functions-key") or ""
        if self._tokens is not None and is_bearer and given.startswith("eyJ") and given.count(".") == 2:
            return self._tokens.verdict(given)
        said = given.encode("utf-8", "surrogateescape")
        # Each compared in any case, so that the time taken tells nothing.
        is_admin = self._admin is not None and hmac.compare_digest(said, self._admin)
        is_caller = self._tokens is None if self._inference is None else hmac.compare_digest(said, self._inference)
        return Verdict(Role.ADMIN if is_admin else Role.CALLER if is_caller else Role.NOBODY)

    def refusal(self, verdict: Verdict, wanted: Role) -> tuple[int, str] | None:
        """Why that caller may not; status and message, or None when he may."""
        if verdict.role >= wanted:
            return None
        if verdict.refusal is not None:
            return verdict.refusal
        if wanted is Role.ADMIN and self._admin is None and self._tokens is None:
            return 403, _NO_ORDERS
        if wanted is Role.ADMIN and verdict.role is Role.CALLER:
            return 403, _ADMIN_KEY if self._tokens is None else _NEITHER_FOR_ADMIN
        return 401, _KEY if self._tokens is None else _NEITHER
