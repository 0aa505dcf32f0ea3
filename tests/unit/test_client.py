"""How the client says who it is: a key, or a token of Entra; and to whom it says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from dropforge.client import Answered, Client, Connection, bundle, connect, drop_file
from dropforge.domain.errors import BadInput, Unavailable

AUDIENCE = "api://dropforge"
TOKEN = "a token of Entra"


class World(ThreadingHTTPServer):
    """An app, and beside it the endpoint where a managed identity gets tokens; `seen` is what they were asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Door)
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Door(BaseHTTPRequestHandler):
    server: World

    def do_GET(self) -> None:
        self.server.seen.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
        place = urlsplit(self.path)
        if place.path == "/api/v1/moved":
            self.send_response(302)
            self.send_header("location", f"{self.server.url}/elsewhere")
            self.end_headers()
            return
        told: dict[str, object] = {"pipelines": [], "next": None}
        if place.path == "/token":
            wanted = parse_qs(place.query)["resource"] == [AUDIENCE]
            told = {"access_token": TOKEN, "expires_on": "4102444800", "resource": AUDIENCE, "token_type": "Bearer"}
            assert wanted
        body = b"<html>" if place.path == "/api/v1/page" else json.dumps(told).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def world() -> Iterator[World]:
    with World() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_key_is_sent_where_there_is_one_and_no_header_where_there_is_none(world: World) -> None:
    Client(Connection(world.url, "k")).get("pipelines")
    Client(Connection(world.url, "")).get("pipelines")
    first, second = (headers for _, headers in world.seen)
    assert (first["x-functions-key"], "authorization" in first) == ("k", False)
    assert "x-functions-key" not in second


def test_a_token_is_asked_for_with_each_request(world: World) -> None:
    tokens = iter(("one", "two"))
    client = Client(Connection(world.url, "", token=lambda: next(tokens)))
    client.get("pipelines")
    client.get("pipelines")
    assert [headers["authorization"] for _, headers in world.seen] == ["Bearer one", "Bearer two"]


def test_nobody_is_followed_elsewhere_with_key_or_token(world: World) -> None:
    with pytest.raises(Answered, match=r"sends to 127\.0\.0\.1 to sign in") as refused:
        Client(Connection(world.url, "k", token=lambda: "t")).get("moved")
    assert refused.value.status == 302
    assert [path for path, _ in world.seen] == ["/api/v1/moved"]


def test_a_connection_does_not_show_its_key() -> None:
    assert "hidden" not in repr(Connection("https://app.example", "hidden", token=lambda: "hidden"))


def test_a_token_does_not_travel_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DROPFORGE_URL", "http://app.example")
    monkeypatch.setenv("DROPFORGE_AUDIENCE", AUDIENCE)
    with pytest.raises(BadInput, match="https alone"):
        connect()


@pytest.mark.parametrize(
    "url", ["app.example", "localhost:7071", "ftp://app.example", "http://[::1", "https://app:x/", "https://"]
)
def test_an_address_that_is_none_is_told_with_what_is_wanted(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DROPFORGE_URL", url)
    with pytest.raises(BadInput, match=r"DROPFORGE_URL is .*; it must be http"):
        connect()


@pytest.mark.parametrize("url", ["https://app.example/?code=hidden", "https://me:hidden@app.example"])
def test_an_address_with_a_secret_in_it_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("DROPFORGE_URL", url)
    with pytest.raises(BadInput) as refused:
        connect()
    assert "hidden" not in str(refused.value)


def test_a_key_is_taken_without_the_line_break_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DROPFORGE_URL", "https://app.example")
    monkeypatch.setenv("DROPFORGE_KEY", "k\r\n")
    assert connect().key == "k"


@pytest.mark.parametrize("key", ["hidden\nhidden", "hidden’"])
def test_a_key_that_is_none_is_told_and_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("DROPFORGE_URL", "https://app.example")
    monkeypatch.setenv("DROPFORGE_KEY", key)
    with pytest.raises(BadInput, match="DROPFORGE_KEY") as refused:
        connect()
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("text", ['{"url": "http', "[]", "{}"])
def test_a_connection_file_that_no_host_wrote_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    monkeypatch.delenv("DROPFORGE_URL", raising=False)
    (tmp_path / "connection.json").write_text(text)
    with pytest.raises(BadInput, match="is not what a host writes"):
        connect(tmp_path)


def test_on_a_file_no_host_is_running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DROPFORGE_URL", raising=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="no host is running on"):
        connect(tmp_path / "file")


def test_a_connection_file_that_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DROPFORGE_URL", raising=False)
    (tmp_path / "connection.json").mkdir()
    with pytest.raises(BadInput, match="cannot be read"):
        connect(tmp_path)


def test_a_name_with_any_signs_reaches_the_app_and_the_query_stays_one(world: World) -> None:
    client = Client(Connection(world.url, "k"))
    client.get("pipelines/my mödel#1/status")
    client.get("pipelines", token="a b")
    assert [path for path, _ in world.seen] == [
        "/api/v1/pipelines/my%20m%C3%B6del%231/status",
        "/api/v1/pipelines?token=a+b",
    ]


def test_an_answer_that_is_no_json_is_told(world: World) -> None:
    with pytest.raises(BadInput, match="is no JSON"):
        Client(Connection(world.url, "k")).get("page")


def test_a_name_as_long_as_names_can_be_is_dropped(tmp_path: Path) -> None:
    source = tmp_path / f"{'x' * 251}.csv"
    source.write_text("x,y\n")
    target, written = drop_file(tmp_path, "demo/", source)
    assert (target.read_text(), written, len(list(target.parent.iterdir()))) == ("x,y\n", True, 1)


def test_a_folder_with_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    for name in (b"pipeline.yaml", b"caf\xe9.csv"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("")
    with pytest.raises(BadInput, match=r"'caf\\udce9\.csv', a name that is not UTF-8"):
        bundle(tmp_path)


def cli(world: World, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("DROPFORGE", "AZURE", "IDENTITY"))}
    return subprocess.run(
        [sys.executable, "-m", "dropforge.cli", "status", "--json"],
        cwd=tmp_path,
        # Nobody is signed in here, whoever runs the tests.
        env={**clean, "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "DROPFORGE_URL": world.url, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_line_asks_as_the_identity_that_it_runs_as(world: World, tmp_path: Path) -> None:
    identity = {"IDENTITY_ENDPOINT": f"{world.url}/token", "IDENTITY_HEADER": "h", "DROPFORGE_AUDIENCE": AUDIENCE}
    done = cli(world, tmp_path, **identity)
    assert (done.returncode, json.loads(done.stdout)) == (0, [])
    path, headers = world.seen[-1]
    assert path.startswith("/api/v1/pipelines")
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert "x-functions-key" not in headers


def test_who_is_not_signed_in_is_told_so_and_the_app_is_not_asked(world: World, tmp_path: Path) -> None:
    # A token credential that is the only one asked, and has nothing to show: no wait for a metadata service.
    done = cli(world, tmp_path, DROPFORGE_AUDIENCE=AUDIENCE, AZURE_TOKEN_CREDENTIALS="EnvironmentCredential")
    assert done.returncode == 4, done.stderr
    assert f"nobody is signed in for {AUDIENCE}" in done.stderr
    assert world.seen == []
