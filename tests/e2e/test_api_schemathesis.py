"""The API does what its own document says, whatever it is asked: schemathesis with all checks, odd headers and methods."""

from __future__ import annotations

import http.client
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.e2e.machine import ROOT, Platform, throws
from tests.e2e.test_api import pipeline


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with a pipeline called as the document's examples call it, so that they find something."""
    folder = tmp_path_factory.mktemp("schemathesis")
    with Platform(folder / "state") as running:
        running.client.apply("flights", pipeline(folder, "flights"))
        running.drop("flights/", throws(folder / "files", 0, days=14))
        running.settled("flights", 1)
        yield running


def schemathesis(platform: Platform, folder: Path, *options: str, seconds: int) -> str:
    """What a run says; fails unless every check passed."""
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    command += ["--config-file", str(ROOT / "schemathesis.toml"), "run"]
    command += [f"{platform.connection['url']}/api/openapi.json", "--no-color", "--continue-on-failure", *options]
    command += ["-H", f"x-functions-key: {platform.connection['function_key']}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2000:]
    return done.stdout


def test_every_operation_keeps_to_the_document(platform: Platform, tmp_path: Path) -> None:
    told = schemathesis(platform, tmp_path, "--checks", "all", "-n", "2", "--seed", "1", seconds=150)
    assert "Operations:" in told
    assert platform.client.get("health") == {"status": "ok"}


@pytest.mark.soak
def test_every_operation_keeps_to_the_document_for_a_long_time(platform: Platform, tmp_path: Path) -> None:
    for seed in range(2):
        schemathesis(platform, tmp_path, "--checks", "all", "-n", "200", "--seed", str(seed), seconds=1500)


TEXT = st.text(st.characters(codec="latin-1", exclude_characters="\r\n\x00"), max_size=60)
PATHS = (
    "pipelines", "pipelines/flights", "pipelines/flights/status", "pipelines/flights/train", "pipelines/flights/runs",
    "pipelines/{}", "pipelines/{}/runs/{}", "commands", "commands/{}", "approvals", "endpoints/{}", "rules/dry-run", "{}",
)  # fmt: skip
NAMES = (
    "content-type", "idempotency-key", "if-match", "if-none-match", "x-dropforge-hops", "x-dropforge-causation-id",
    "x-correlation-id", "x-ms-client-principal", "x-ms-client-principal-name", "accept", "range", "expect-not", "host-not",
)  # fmt: skip


@settings(max_examples=150)
@given(
    method=st.sampled_from(("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "QUERY", "get")),
    path=st.sampled_from(PATHS),
    parts=st.lists(st.text(max_size=40), min_size=2, max_size=2),
    query=st.dictionaries(st.sampled_from(("limit", "token", "state", "pipeline", "days", "x")), st.text(max_size=20)),
    headers=st.dictionaries(st.sampled_from(NAMES), TEXT, max_size=4),
    body=st.one_of(st.none(), st.binary(max_size=100), st.just(b"{}"), st.just(b'{"version": 1}')),
)
def test_nothing_that_is_asked_is_the_servers_fault(
    platform: Platform,
    method: str,
    path: str,
    parts: list[str],
    query: dict[str, str],
    headers: dict[str, str],
    body: bytes | None,
) -> None:
    place = urlsplit(platform.connection["url"])
    asked = "/api/v1/" + path.format(*(quote(part, safe="", errors="surrogatepass") for part in parts))
    told = "&".join(f"{name}={quote(value, errors='surrogatepass')}" for name, value in query.items())
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    try:
        connection.request(
            method, f"{asked}?{told}", body, {**headers, "x-functions-key": platform.connection["function_key"]}
        )
        answer = connection.getresponse()
        said = answer.read()
    finally:
        connection.close()
    assert answer.status < 500, (answer.status, said)
    if answer.status >= 400 and method != "HEAD" and b"invalid" not in said.lower()[:60]:
        assert answer.headers["content-type"] == "application/problem+json", (answer.status, said)
