"""Logs: marked with the invocation, cut by level, and never showing a secret."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.host.logs import Logs, Redactor, Scope, in_scope, open_logs, thread_local

SECRET = "kW9-aSecretKey_4711=="


class Opened:
    def __init__(self, folder: Path, levels: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.screen = io.StringIO()
        self.logs: Logs = open_logs(folder, levels or {}, self.screen)
        self.logs.redactor.hide([SECRET])

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "host.jsonl").read_text().splitlines()]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(tmp_path)
    yield opened
    opened.logs.close()


def test_a_record_carries_the_invocation_and_the_instance(opened: Opened) -> None:
    with in_scope(Scope("square", "inv-1", lambda: "flow-1")):
        logging.getLogger("user").info("hello %s", "you")
    (line,) = opened.lines()
    assert line["timestamp"].endswith("+00:00")
    del line["timestamp"]
    assert line == {
        "level": "Information",
        "category": "Function.square.User",
        "message": "hello you",
        "function": "square",
        "invocation_id": "inv-1",
        "instance_id": "flow-1",
    }
    assert "square" in opened.screen.getvalue()


def test_the_instance_is_looked_up_only_when_something_is_logged(opened: Opened) -> None:
    asked: list[int] = []

    def find() -> str:
        asked.append(1)
        return "flow-1"

    with in_scope(Scope("f", "inv-1", find)):
        logging.debug("below the level")
    assert asked == []
    with in_scope(Scope("f", "inv-2", find)):
        logging.info("one")
        logging.info("two")
    assert asked == [1]


def test_a_thread_that_takes_the_invocation_id_on_is_marked_too(opened: Opened) -> None:
    def work() -> None:
        thread_local.invocation_id = "inv-7"
        logging.info("from a thread of the user")

    with in_scope(Scope("f", "inv-7")):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert opened.lines()[0]["invocation_id"] == "inv-7"


def test_levels_go_by_category(tmp_path: Path) -> None:
    opened = Opened(
        tmp_path, {"default": "Warning", "Function": "Information", "Function.f.User": "Debug", "Host": "None"}
    )
    try:
        logging.getLogger("azure").info("left out")
        logging.getLogger("azure").warning("azure warns")
        logging.getLogger("dropforge.host.x").error("left out: Host is None")
        with in_scope(Scope("f", "1")):
            logging.debug("user debug in f")
            logging.getLogger("dropforge.host.x").debug("left out: the host's own word on f")
        with in_scope(Scope("g", "2")):
            logging.debug("left out")
            logging.info("user info in g")
    finally:
        opened.logs.close()
    assert [line["message"] for line in opened.lines()] == ["azure warns", "user debug in f", "user info in g"]


def test_the_terminal_shows_where_a_failed_function_failed_and_the_file_shows_all(opened: Opened) -> None:
    try:
        raise ValueError("bad")
    except ValueError as error:
        logging.getLogger("dropforge.host.invocation").error("GET /x failed", exc_info=error, extra={"brief": True})
    assert "GET /x failed (test_logs.py:" in opened.screen.getvalue()
    assert "Traceback" not in opened.screen.getvalue()
    assert "Traceback" in opened.lines()[0]["exception"]


def test_control_characters_do_not_reach_the_terminal(opened: Opened) -> None:
    logging.info("file \x1b[31m\x07.csv")
    assert "\x1b" not in opened.screen.getvalue()
    assert opened.lines()[0]["message"] == "file \x1b[31m\x07.csv"


def test_closing_leaves_the_root_logger_as_it_was(tmp_path: Path) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    Opened(tmp_path).logs.close()
    assert (root.level, root.handlers) == before


# ------------------------------------------------------------------ secrets
@pytest.mark.parametrize(
    "text",
    [
        f"GET /api/x?code={SECRET}",
        f"key {SECRET} and again {SECRET}",
        f"/x?code={quote(SECRET, safe='')}&a=1",
        f"{{'x-functions-key': '{SECRET}'}}",
    ],
)
def test_our_keys_are_never_logged(opened: Opened, text: str) -> None:
    logging.info("%s", text)
    try:
        raise RuntimeError(text)
    except RuntimeError:
        logging.exception("failed")
    written = (opened.folder / "host.jsonl").read_text() + opened.screen.getvalue()
    assert SECRET not in written
    assert quote(SECRET, safe="") not in written
    assert "***" in written


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("GET /x?code=abc&y=1", "GET /x?code=***&y=1"),
        ("GET /x?y=1&sig=a%2Fb", "GET /x?y=1&sig=***"),
        ("code=0123456789abcdef0123", "code=***"),
        ("exit code=1", "exit code=1"),
        ("x-functions-key: abc", "x-functions-key: ***"),
        ("AccountName=a;AccountKey=a+b==;X=1", "AccountName=a;AccountKey=***;X=1"),
        ("SharedAccessKeyName=n;SharedAccessKey=k=", "SharedAccessKeyName=n;SharedAccessKey=***"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, cleaned: str) -> None:
    assert Redactor().clean(text) == cleaned


@given(st.text(), st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=8), st.text())
def test_a_known_secret_never_survives(before: str, secret: str, after: str) -> None:
    cleaned = Redactor([secret]).clean(f"{before}{secret}{after}")
    assert secret not in cleaned or secret in before or secret in after
