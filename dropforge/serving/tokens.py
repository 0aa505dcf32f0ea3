"""Entra tokens: a signed JWT of one tenant, for this audience, that carries a role or comes from an app that has one.

What a token may do is decided once and remembered, for no longer than it is valid and no longer than `KEPT_SECONDS`, so that
a signing key that the tenant withdraws opens nothing for long. The tenant's keys are fetched beside the requests, again when
they are old, and at once (but not too often) for a token that names a key nobody knows. No token is ever logged.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import re
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import jwt

from dropforge.domain.errors import BadInput
from dropforge.serving.keys import Role, Verdict

log = logging.getLogger(__name__)

ROLES = {"Dropforge.Infer": Role.CALLER, "Dropforge.Admin": Role.ADMIN}
PUBLIC_CLOUD = "https://login.microsoftonline.com"
# Clocks of two machines differ by less.
LEEWAY_SECONDS = 60
KEPT_SECONDS = 300.0
KEPT_TOKENS = 4096
MAX_TOKEN = 16 * 1024
# The tenant's keys: fetched anew when they are so old, and no oftener than this however many unknown keys are named.
KEYS_SECONDS = 3600.0
BETWEEN_FETCHES_SECONDS = 10.0
FETCH_TIMEOUT_SECONDS = 5.0
_MAX_JWKS = 1024**2

# Times are looked at here, by the clock that a verdict's end is told by as well.
_CHECKED: Any = {"require": ["exp", "nbf", "aud", "iss"], "verify_exp": False, "verify_nbf": False, "verify_iat": False}
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Tenant:
    """Whose tokens count. `apps`: client ids of apps that need no role in their token."""

    id: str
    audiences: tuple[str, ...]
    apps: Mapping[str, Role] = field(default_factory=dict)
    authority: str = PUBLIC_CLOUD

    @property
    def keys_url(self) -> str:
        return f"{self.authority}/{self.id}/discovery/v2.0/keys"

    @property
    def issuers(self) -> tuple[str, ...]:
        """Of tokens of version 2 and of version 1."""
        return f"{self.authority}/{self.id}/v2.0", f"https://sts.windows.net/{self.id}/"


def tenant_of(tenant: str, audience: str, apps: str = "", authority: str = "") -> Tenant:
    """The tenant that the settings name. `audience`: one or more, and `apps`: `<client id>=infer|admin`, with commas between.
    Raises `BadInput` that says what a setting must be."""
    if not _GUID.fullmatch(tenant.lower()):
        raise BadInput(
            f"--entra-tenant is {tenant[:80]!r}; it must be the tenant's id (a GUID), not its name or `common`"
        )
    audiences = tuple(filter(None, (each.strip() for each in audience.split(","))))
    if not audiences:
        raise BadInput(
            "--entra-tenant wants an --entra-audience: the application's id URI or client id that tokens are for"
        )
    authority = (authority or PUBLIC_CLOUD).rstrip("/")
    parts = urlsplit(authority)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")):
        raise BadInput(f"--entra-authority is {authority[:200]!r}; it must start with https://")
    return Tenant(tenant.lower(), audiences, _apps(apps), authority)


def _apps(text: str) -> dict[str, Role]:
    found: dict[str, Role] = {}
    for entry in filter(None, (each.strip() for each in text.split(","))):
        app, _, role = entry.partition("=")
        known = {"": Role.CALLER, "infer": Role.CALLER, "admin": Role.ADMIN}
        if not _GUID.fullmatch(app.lower()) or role not in known:
            raise BadInput(
                f"--entra-apps has {entry[:120]!r}; wanted <client id>, <client id>=infer or <client id>=admin"
            )
        found[app.lower()] = known[role]
    return found


class EntraTokens:
    """Reads tokens; see `keys.Tokens`. On one event loop; only `fetch` runs on another thread."""

    def __init__(
        self,
        tenant: Tenant,
        clock: Callable[[], float] = time.time,
        fetch: Callable[[str], bytes] | None = None,
    ) -> None:
        self._tenant = tenant
        self._clock = clock
        self._fetch = fetch or _fetched
        self._keys: dict[str, Any] = {}
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")
        self._problem: str | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._verdicts: dict[bytes, Verdict] = {}

    def verdict(self, token: str) -> Verdict:
        """What the token lets its bearer do. For one that names a signing key nobody knows the tenant is asked, and its bearer
        to try again."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        known = self._verdicts.get(digest)
        now = self._clock()
        if known is not None and now < known.until:
            return known
        found = self._read(token, now)
        if found.until > now:
            if len(self._verdicts) >= KEPT_TOKENS:
                self._verdicts.clear()
            self._verdicts[digest] = found
        return found

    async def refresh(self) -> None:
        """Fetch the tenant's keys; whoever asks while that goes on waits for the same answer."""
        await asyncio.shield(self._fetching or self._start())

    def _start(self) -> asyncio.Task[None]:
        self._tried_at = self._clock()
        self._fetching = task = asyncio.get_running_loop().create_task(self._take())
        return task

    async def keep(self) -> None:
        """Have the keys at hand and never old, until cancelled."""
        while True:
            await asyncio.sleep(BETWEEN_FETCHES_SECONDS)
            if self._clock() - self._fetched_at >= KEYS_SECONDS:
                await self.refresh()

    async def _take(self) -> None:
        url = self._tenant.keys_url
        try:
            keys = _keys(await asyncio.to_thread(self._fetch, url))
        except Exception as error:  # noqa: BLE001 - whatever it is, the keys that are known go on
            self._problem = (
                f"cannot fetch the tenant's signing keys from {url}: {str(error)[:200] or type(error).__name__}"
            )
            log.error("%s", self._problem)
            return
        finally:
            self._fetching = None
        if keys.keys() != self._keys.keys():
            log.info("tenant %s signs with the keys %s", self._tenant.id, sorted(keys))
            # A verdict that a withdrawn key gave is one too many.
            self._verdicts.clear()
        self._keys, self._fetched_at, self._problem = keys, self._clock(), None

    def _read(self, token: str, now: float) -> Verdict:
        if len(token) > MAX_TOKEN:
            return _refused(401, f"the token is longer than {MAX_TOKEN} characters")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            return _refused(401, "the token is no JWT")
        # Chosen here, never by the token: `none`, or a public key taken for a shared secret, would open everything.
        if header.get("alg") != "RS256":
            return _refused(401, f"the token is signed with {str(header.get('alg'))[:20]!r}; wanted RS256")
        key = self._keys.get(str(header.get("kid")))
        if key is None:
            return self._of_an_unknown_key(now)
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=["RS256"],
                audience=list(self._tenant.audiences),
                issuer=list(self._tenant.issuers),
                options=_CHECKED,
            )
            return self._judged(claims, now)
        except jwt.InvalidTokenError as error:
            return _refused(401, f"the token does not count here: {_reason(error, self._tenant)}")

    def _of_an_unknown_key(self, now: float) -> Verdict:
        if self._fetching is None and now - self._tried_at >= BETWEEN_FETCHES_SECONDS:
            self._start()
        if self._fetching is not None:
            return _refused(
                503, "the token names a signing key that is not known here yet; the tenant is asked, try again"
            )
        if not self._keys:
            return _refused(503, self._problem or "the tenant's signing keys are not known yet; try again")
        return _refused(401, "the token is signed with a key that is none of the tenant's")

    def _judged(self, claims: Mapping[str, Any], now: float) -> Verdict:
        begins, ends = _seconds(claims, "nbf"), _seconds(claims, "exp")
        if now >= ends + LEEWAY_SECONDS:
            return _refused(401, "the token has expired; ask for a new one")
        if now < begins - LEEWAY_SECONDS:
            return _refused(401, "the token is not valid yet")
        if str(claims.get("tid", self._tenant.id)).lower() != self._tenant.id:
            return _refused(401, "the token is another tenant's")
        given = claims.get("roles")
        roles = [ROLES[each] for each in given if each in ROLES] if isinstance(given, list) else []
        app = str(claims.get("azp") or claims.get("appid") or "").lower()
        role = max([*roles, self._tenant.apps.get(app, Role.NOBODY)])
        until = min(ends + LEEWAY_SECONDS, now + KEPT_SECONDS)
        if role is Role.NOBODY:
            wanted = (
                "the token is good, and neither has the role Dropforge.Infer or Dropforge.Admin nor is its app allowed"
            )
            return Verdict(role, until, (403, wanted))
        return Verdict(role, until)


def _refused(status: int, message: str) -> Verdict:
    # Not remembered: it costs the one who sends it a signature check, and may be true a second later.
    return Verdict(Role.NOBODY, float("-inf"), (status, message))


def _seconds(claims: Mapping[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise jwt.InvalidTokenError(f"its {name} is no time")
    return float(value)


def _reason(error: Exception, tenant: Tenant) -> str:
    if isinstance(error, jwt.InvalidAudienceError):
        return f"it is for another audience; wanted {' or '.join(tenant.audiences)}"
    if isinstance(error, jwt.InvalidIssuerError):
        return f"another issuer gave it; wanted {tenant.issuers[0]}"
    if isinstance(error, jwt.InvalidSignatureError):
        return "its signature is wrong"
    return str(error)[:200]


def _keys(document: bytes) -> dict[str, Any]:
    """The signing keys of a JWKS by their ids; what is no RSA key for signatures is passed over."""
    found: dict[str, Any] = {}
    for each in json.loads(document)["keys"]:
        if each.get("kty") == "RSA" and each.get("use", "sig") == "sig" and isinstance(each.get("kid"), str):
            found[each["kid"]] = jwt.PyJWK(each, "RS256").key
    if not found:
        raise ValueError("the document holds no RSA key")
    return found


class _Unmoved(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        """Keys come from the place that was named, or not at all."""


def _fetched(url: str) -> bytes:
    opener = urllib.request.build_opener(_Unmoved)
    with opener.open(url, timeout=FETCH_TIMEOUT_SECONDS) as answer:
        document: bytes = answer.read(_MAX_JWKS + 1)
    if len(document) > _MAX_JWKS:
        raise ValueError("the document is larger than 1 MiB")
    return document
