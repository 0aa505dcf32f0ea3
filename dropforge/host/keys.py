"""Access keys: made once, kept in the state folder, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from dropforge.host.errors import SettingsError
from dropforge.host.files import write_private

EVENT_GRID_KEY = "eventgrid_extension"
DURABLE_KEY = "durabletask_extension"
# Host keys that are always there, and the role that each gives in an app that tells keys apart.
HOST_KEYS = {"default": "approver", "operator": "operator", "reader": "reader"}
# The setting by which such an app knows them; it holds hashes, so that no key stands in an environment.
ROLES_SETTING = "DROPFORGE_KEY_ROLES"


class AuthLevel(Enum):
    ANONYMOUS = "anonymous"
    FUNCTION = "function"
    ADMIN = "admin"


@dataclass(frozen=True)
class Keys:
    """All keys of one state folder. Function names are kept lower-case: Azure treats them so."""

    master: str
    host: Mapping[str, str] = field(default_factory=dict)
    system: Mapping[str, str] = field(default_factory=dict)
    functions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def opens(self, level: AuthLevel, given: str | None, function: str) -> bool:
        """Whether the key given opens a function of that level."""
        if level is AuthLevel.ANONYMOUS:
            return True
        accepted = [self.master]
        if level is AuthLevel.FUNCTION:
            accepted += [*self.host.values(), *self.functions.get(function.lower(), {}).values()]
        return _one_of(given, accepted)

    def opens_webhook(self, name: str, given: str | None) -> bool:
        """Whether the key given opens the webhook of that system key (`eventgrid_extension`, ...)."""
        system = self.system.get(name)
        return _one_of(given, [self.master, system] if system else [self.master])

    def opens_admin(self, given: str | None) -> bool:
        return _one_of(given, [self.master])

    def roles(self, before: str = "") -> str:
        """The value of `DROPFORGE_KEY_ROLES` that gives these keys their roles, beside what it said `before`."""
        known = {self.master: HOST_KEYS["default"]} | {self.host[name]: role for name, role in HOST_KEYS.items()}
        entries = [f"{hashlib.sha256(key.encode()).hexdigest()}={role}" for key, role in known.items()]
        return ",".join(dict.fromkeys([*filter(None, before.split(",")), *entries]))

    def all(self) -> Iterator[str]:
        """Every key there is: what a log must never show."""
        yield self.master
        yield from self.host.values()
        yield from self.system.values()
        for named in self.functions.values():
            yield from named.values()


def load_keys(path: Path, functions: Iterable[str] = ()) -> Keys:
    """The keys in the file; those that are missing are made and written, those that are there stay.

    Raises `SettingsError` for a file that does not hold keys.
    """
    found = _read(path)
    wanted: dict[str, Any] = {
        "master": found.get("master") or _new_key(),
        "host": {**{name: _new_key() for name in HOST_KEYS}, **found.get("host", {})},
        "system": {EVENT_GRID_KEY: _new_key(), DURABLE_KEY: _new_key(), **found.get("system", {})},
        "functions": {name.lower(): named for name, named in found.get("functions", {}).items()},
    }
    for name in functions:
        wanted["functions"].setdefault(name.lower(), {"default": _new_key()})
    if wanted != found:
        write_private(path, json.dumps(wanted, indent=2) + "\n")
    path.chmod(0o600)
    return Keys(**wanted)


def _new_key() -> str:
    # 256 bits in the alphabet of URLs: a key looks the same in a header, in a query and in a log line.
    return secrets.token_urlsafe(32)


def _one_of(given: str | None, accepted: list[str]) -> bool:
    if not given:
        return False
    # A header need not be UTF-8; aiohttp gives such bytes as surrogates.
    raw = given.encode("utf-8", "surrogateescape")
    # Every key is compared, so the time taken does not tell which one came close.
    return sum(hmac.compare_digest(raw, key.encode()) for key in accepted) > 0


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise SettingsError(f"{path} does not hold JSON ({error}); repair it, or delete it to get new keys") from error
    if not _are_keys(found):
        raise SettingsError(
            f"{path} does not hold keys as this host writes them; repair it, or delete it to get new keys"
        )
    return dict(found)


def _are_keys(found: object) -> bool:
    def named(value: object) -> bool:
        return isinstance(value, dict) and all(isinstance(key, str) and key for key in value.values())

    return (
        isinstance(found, dict)
        and isinstance(found.get("master", ""), str)
        and named(found.get("host", {}))
        and named(found.get("system", {}))
        and isinstance(found.get("functions", {}), dict)
        and all(named(value) for value in found.get("functions", {}).values())
    )
