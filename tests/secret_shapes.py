"""What looks like a secret in a text: keys, tokens and connection strings in the shapes that their makers give them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass


def _value(at_least: int) -> str:
    """A value: no placeholder (`<key>`, `{key}`, `$KEY`, `...`), and no pattern."""
    return r"(?P<value>(?![<{$%\[(.…*?:'\"])[^\s;\"'`<>{}$&,)\]]{" + f"{at_least}," + "})"


KINDS = {
    "account key": re.compile(r"(?P<value>(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{86}==)"),
    "connection string": re.compile(r"(?:Account|SharedAccess)Key=" + _value(6)),
    "shared access signature": re.compile(r"[?&; ]sig=" + _value(12)),
    # Azure's keys that can be told: Functions, Event Grid, Service Bus, storage, search, API Management.
    "azure key": re.compile(r"(?P<value>[A-Za-z0-9_+/-]{20,}(?:AzFu|AZEG|\+ASb|\+ASt|AzSe|APIM|ACDb|AIoT)[A-Za-z0-9_+/-]{5}[AQgw]==?)"),
    "function key in a url": re.compile(r"[?&]code=" + _value(20)),
    "entra client secret": re.compile(r"(?P<value>(?<![\w~.-])[\w~.]{3}\dQ~[\w~.-]{31,34})"),
    "private key": re.compile(r"(?P<value>-----BEGIN [A-Z ]*PRIVATE KEY-----\s*[A-Za-z0-9+/=]{16})"),
    "json web token": re.compile(r"(?P<value>eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,})"),
    "databricks token": re.compile(r"(?P<value>\bdapi[0-9a-f]{32}\b)"),
    "token of a code host or registry": re.compile(
        r"(?P<value>\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{40,}|npm_[A-Za-z0-9]{36}|pypi-AgE\w{20,}|AKIA[0-9A-Z]{16})\b)"
    ),
    "assigned secret": re.compile(
        r"(?i)(?:password|passwd|client_?secret|api_?key|access_?key|account_?key|shared_?key|auth_?token|access_?token|bearer_?token)"
        r"[\"']?\s*[:=]\s*[\"'](?P<value>(?![<{$%])[^\s\"'{}$<>]{8,})[\"']"
    ),
    "bearer token": re.compile(r"(?i)\bbearer (?P<value>[\w~+/-]{3,}[.\w~+/-]{20,}=*)"),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One place that looks like a secret. `value` is what would have to be kept secret."""

    kind: str
    line: int
    value: str

    def __str__(self) -> str:
        # Never the whole of it: what a test says ends in logs.
        return f"line {self.line}: {self.kind} {self.value[:6]}…"


def findings(text: str) -> Iterator[Finding]:
    """Everything in the text that looks like a secret."""
    for kind, pattern in KINDS.items():
        for found in pattern.finditer(text):
            yield Finding(kind, text.count("\n", 0, found.start()) + 1, found["value"])


@dataclass(frozen=True)
class Allowed:
    """What looks like a secret and is none: all of it, or enough of its beginning (`…`) to know it by.

    `path`: the file, or the folder with all below it (`/`).
    """

    path: str
    value: str
    reason: str

    def covers(self, path: str, found: Finding) -> bool:
        there = path.startswith(self.path) if self.path.endswith("/") else path == self.path
        known = found.value.startswith(self.value[:-1]) if self.value.endswith("…") else found.value == self.value
        return there and known


_MADE_UP = "made up for these tests; it opens nothing"
ALLOWED = (
    Allowed(
        "docs/service-bus.md", "SAS_KEY_VALUE", "what Microsoft's Service Bus emulator takes as its key, for everybody"
    ),
    Allowed(
        "dropforge/adapters/azure/storage.py", "Eby8vdM0…", "the key of the emulator's account, published by Microsoft"
    ),
    Allowed("tests/", "c2VjcmV0", "the word `secret` in base64"),
    Allowed("tests/", "hidden", _MADE_UP),
    Allowed("tests/unit/host/test_service_bus_bindings.py", "sixteen-letters", _MADE_UP),
    Allowed("tests/unit/host/test_service_bus_bindings.py", "secret", _MADE_UP),
    Allowed(
        "tests/unit/training/test_tracking.py",
        "eyJhbGciOiJub25lIn0…",
        "a token whose header says that nobody signed it",
    ),
)


def unexplained(path: str, text: str) -> list[Finding]:
    """Findings in the file of that path that the list above does not explain."""
    return [each for each in findings(text) if not any(allowed.covers(path, each) for allowed in ALLOWED)]
