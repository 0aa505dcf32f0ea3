"""Who asks, and whether he may: function keys and App Service authentication (Entra), three roles, one place."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dropforge.domain.roles import Role, least
from dropforge.settings import Settings
from functions.answers import Problem

# App roles of the Entra application; see docs/api.md.
APP_ROLES = {f"Dropforge.{role.value.capitalize()}": role for role in Role}
MAX_HEADER = 64 * 1024
MAX_NAME = 200


@dataclass(frozen=True)
class Caller:
    """Who asks. `name`: who Entra says he is; None for the holder of a key, whose name nobody vouches for."""

    role: Role | None
    name: str | None = None

    def by(self, claimed: str | None = None) -> str:
        """Who is written down as having done it. What a holder of a key claims to be is marked as a claim."""
        if self.name is not None:
            return self.name
        role = self.role.value if self.role else "no role"
        return f"{claimed} (with key {role})" if claimed else f"holder of a key ({role})"


def caller_of(headers: Mapping[str, str], query: Mapping[str, str], chosen: Settings) -> Caller:
    """Who sends this request. Raises the problem 401 when that cannot be told.

    The host has checked the key already, unless `http_auth` is `entra`; then App Service has checked the token.
    """
    if chosen.app_service_auth:
        principal = headers.get("x-ms-client-principal")
        if principal:
            return _of_principal(principal, headers.get("x-ms-client-principal-name"))
    if chosen.http_auth == "entra":
        raise _unknown(
            "sign in with Entra"
            if chosen.app_service_auth
            else "DROPFORGE_HTTP_AUTH is entra, but App Service authentication is off: turn it on, or use key"
        )
    keys = list(_keys(headers, query))
    if not keys:
        raise _unknown("send a function key in the header x-functions-key")
    # Which of several keys the host has accepted is not known here, so the least of them counts.
    found = [_role_of(key, chosen) for key in keys]
    known = [role for role in found if role is not None]
    return Caller(least(known) if len(known) == len(found) else None)


def check(caller: Caller, wanted: Role) -> None:
    """Returns when the caller may do what is for that role. Raises the problem 403, which names the role."""
    if caller.role is not None and caller.role.covers(wanted):
        return
    has = f"the role {caller.role.value}" if caller.role else "no role"
    raise Problem(403, "forbidden", f"this needs the role {wanted.value}; {caller.name or 'this key'} has {has}")


def _keys(headers: Mapping[str, str], query: Mapping[str, str]) -> Iterator[str]:
    # Several headers of one name, or several parameters, arrive as one with commas between; no key has a comma in it.
    for given in (headers.get("x-functions-key"), query.get("code")):
        yield from filter(None, (part.strip() for part in (given or "").split(",")))


def _role_of(key: str, chosen: Settings) -> Role | None:
    digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
    listed = [role for prefix, role in chosen.key_roles if digest.startswith(prefix)]
    return least(listed) if listed else chosen.default_key_role


def _of_principal(header: str, name: str | None) -> Caller:
    """The caller that App Service describes: https://learn.microsoft.com/azure/app-service/configure-authentication-user-identities"""
    principal = _decoded(header)
    claims = [(str(each.get("typ")), str(each.get("val"))) for each in principal["claims"] if isinstance(each, dict)]
    role_types = {"roles", principal.get("role_typ")}
    roles = [APP_ROLES[value] for kind, value in claims if kind in role_types and value in APP_ROLES]
    best = max(roles, key=list(Role).index, default=None)
    # A program that signs in as itself has no name; its application's id is who it is.
    name_types = (principal.get("name_typ"), "preferred_username", "name", "appid", "azp")
    told = [value for wanted in name_types for kind, value in claims if kind == wanted]
    return Caller(best, ((name or "").strip() or next(iter(told), "somebody without a name"))[:MAX_NAME])


def _decoded(header: str) -> dict[str, Any]:
    try:
        if len(header) > MAX_HEADER:
            raise ValueError
        principal = json.loads(base64.b64decode(header, validate=True))
    except (ValueError, RecursionError):
        principal = None
    if not isinstance(principal, dict) or not isinstance(principal.get("claims"), list):
        raise _unknown("the header X-MS-CLIENT-PRINCIPAL is not what App Service writes")
    return principal


def _unknown(what_to_do: str) -> Problem:
    return Problem(401, "unauthorized", f"it cannot be told who asks: {what_to_do}", {"WWW-Authenticate": "Bearer"})
