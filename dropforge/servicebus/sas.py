"""Shared access keys and the signatures made with them. No I/O; the time is an argument."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, unquote_plus

from dropforge.servicebus.errors import unauthorized

SEND: Final = "Send"
LISTEN: Final = "Listen"
MANAGE: Final = "Manage"
ALL: Final = frozenset({SEND, LISTEN, MANAGE})

_SCHEME_AND_HOST = re.compile(r"^[a-z][a-z0-9+.-]*://[^/]*", re.IGNORECASE)
_SIGNATURE = "SharedAccessSignature "


@dataclass(frozen=True, slots=True)
class AccessKey:
    """A key and what may be done with it. The right to manage includes the others."""

    value: str
    rights: frozenset[str] = ALL

    def __post_init__(self) -> None:
        if MANAGE in self.rights:
            object.__setattr__(self, "rights", ALL)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a valid token allows: these rights on the entities below `resource` (lower case, "" for all of them)."""

    resource: str
    rights: frozenset[str]
    expires_s: float

    def allows(self, path: str, right: str, now_s: float) -> bool:
        return right in self.rights and now_s < self.expires_s and within(path.lower(), self.resource)


def parse_key(text: str) -> tuple[str, AccessKey]:
    """`NAME:KEY` or `NAME:KEY:Send,Listen` as (name, key); without rights it has all three. Raises `ValueError`."""
    name, _, rest = text.partition(":")
    value, _, listed = rest.partition(":")
    rights = frozenset(part.strip().capitalize() for part in listed.split(",") if part.strip()) or ALL
    if not name or not value or not rights <= ALL:
        raise ValueError(f"expected a key as NAME:KEY or NAME:KEY:{','.join(sorted(ALL))}, found {text!r}")
    return name, AccessKey(value, rights)


def entity_path(uri: str) -> str:
    """The path of an entity out of its address, with or without scheme and host, in the case it came."""
    return _SCHEME_AND_HOST.sub("", uri).strip("/")


def within(path: str, resource: str) -> bool:
    """Whether the path is the resource or lies below it; both lower case."""
    return not resource or path == resource or path.startswith(resource + "/")


def check_token(token: str, keys: Mapping[str, AccessKey], now_s: float) -> Grant:
    """What the shared access signature allows. Raises `BrokerError` (401) for one that is malformed, expired, signed
    with another key, or no shared access signature at all."""
    if not token.startswith(_SIGNATURE):
        raise unauthorized(f"expected a token that starts with '{_SIGNATURE}'; other kinds are not checked here.")
    fields = dict(part.split("=", 1) for part in token[len(_SIGNATURE) :].split("&") if "=" in part)
    missing = [name for name in ("sr", "se", "sig", "skn") if name not in fields]
    if missing:
        raise unauthorized(f"MalformedToken: the shared access signature lacks {', '.join(missing)}.")
    key = keys.get(unquote_plus(fields["skn"]))
    signed = f"{fields['sr']}\n{fields['se']}".encode()
    expected = hmac.new((key.value if key else "").encode(), signed, hashlib.sha256).digest()
    try:
        given = base64.b64decode(unquote(fields["sig"]), validate=True)
        expires_s = int(fields["se"])
    except ValueError as error:
        raise unauthorized("MalformedToken: the signature or the expiry cannot be read.") from error
    if key is None or not hmac.compare_digest(expected, given):
        raise unauthorized("InvalidSignature: The token has an invalid signature.")
    if expires_s <= now_s:
        raise unauthorized("ExpiredToken: The token is expired.")
    return Grant(entity_path(unquote_plus(fields["sr"])).lower(), key.rights, expires_s)
