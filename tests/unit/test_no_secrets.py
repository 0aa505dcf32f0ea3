"""No key, token or connection string lies in the repository. What is packaged is looked at in tests/e2e/test_package.py."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.secret_shapes import ALLOWED, Finding, findings, unexplained

ROOT = Path(__file__).parent.parent.parent
# Files that hold secrets whatever is in them.
NEVER = re.compile(
    r"(?:^|/)(?:local\.settings\.json|\.env(?:\.[\w-]+)?|id_(?:rsa|ed25519)|[^/]*\.(?:pem|pfx|p12|key|publishsettings))$"
)


@cache
def tracked() -> dict[str, str]:
    """Every tracked text file by its path."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = {}
    for name in filter(None, listed.split("\0")):
        # A file may be gone from the working tree; a link leads to one that is looked at itself.
        if (ROOT / name).is_file():
            found[name] = (ROOT / name).read_text(encoding="utf-8", errors="replace")
    return found


@cache
def found() -> list[tuple[str, Finding]]:
    """What looks like a secret, and in which file."""
    return [(name, each) for name, text in tracked().items() for each in findings(text)]


def test_no_tracked_file_holds_a_secret() -> None:
    left = [f"{name} {each}" for name, each in found() if not any(allowed.covers(name, each) for allowed in ALLOWED)]
    assert left == []


def test_no_file_is_tracked_that_is_made_to_hold_secrets() -> None:
    assert [name for name in tracked() if NEVER.search(name)] == []


def test_every_exception_is_still_needed() -> None:
    assert [allowed for allowed in ALLOWED if not any(allowed.covers(*place) for place in found())] == []


def _bytes(number: int) -> bytes:
    return hashlib.shake_256(b"planted").digest(number)


_KEY = base64.b64encode(_bytes(64)).decode()
_WORD = base64.urlsafe_b64encode(_bytes(60)).decode()


@pytest.mark.parametrize(
    ("kind", "planted"),
    [
        ("account key", f'key = "{_KEY}"'),
        ("connection string", "DefaultEndpointsProtocol=https;AccountName=a;Account" + f"Key={_KEY};EndpointSuffix=x"),
        ("connection string", "Endpoint=sb://a.servicebus.windows.net/;SharedAccess" + f"Key={_KEY[:43]}="),
        ("shared access signature", "https://a.blob.core.windows.net/c?sv=2026-01-01&s" + f"ig={_WORD[:44]}%3D"),
        ("function key in a url", "https://a.azurewebsites.net/api/x?co" + f"de={_WORD[:54]}=="),
        ("azure key", f"{_WORD[:44]}Az" + f"Fu{_WORD[:5]}Q=="),
        ("entra client secret", f"abc8Q~{_WORD[:34]}"),
        ("private key", "-----BEGIN RSA PRIVATE" + f" KEY-----\n{_KEY}"),
        ("json web token", "ey" + f"J{_WORD[:20]}.ey" + f"J{_WORD[:40]}.{_WORD[:43]}"),
        ("databricks token", "da" + f"pi{_bytes(16).hex()}"),
        ("token of a code host or registry", "gh" + f"p_{_bytes(18).hex()}"),
        ("assigned secret", "pass" + "word: 'correct-horse-battery'"),
        ("bearer token", "Authorization: Bear" + f"er {_WORD}"),
    ],
)  # fmt: skip
def test_a_planted_secret_is_found(kind: str, planted: str) -> None:
    told = unexplained("docs/anywhere.md", f"one line\nanother: {planted}\n")
    assert (kind, 2) in {(each.kind, each.line) for each in told}
    assert all(_KEY not in str(each) and _WORD not in str(each) for each in told)


@pytest.mark.parametrize("placeholder", ["<key>", "{key}", "$KEY", "${{ secrets.KEY }}", "...", "…", "%(key)s"])
def test_a_placeholder_is_no_secret(placeholder: str) -> None:
    assert list(findings("AccountName=a;Account" + f"Key={placeholder};x\nhttps://a/b?s" + f"ig={placeholder}")) == []
