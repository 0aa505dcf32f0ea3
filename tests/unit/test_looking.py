"""What `dropforge why` says of files, and what `dropforge logs -f` says is new."""

from __future__ import annotations

from io import StringIO
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dropforge.cli import looking
from dropforge.cli.looking import _after, _why

FILE = {"url": "file:///drops/a%20b.csv", "rows": 3, "sha256": "0" * 64}
CAUSE = {"door": "storage", "id": "e-1", "correlation": None, "hops": 0}


def said(event: str | None, causes: list[dict[str, Any]]) -> str:
    told = {
        "model": {
            "model": "coin",
            "version": 1,
            "sha256": "1" * 64,
            "lineage": {"seed": 7, "code": "c", "code_sha256": "2" * 64},
        },
        "run": {"run": "coin-1-0", "seconds": 1.5, "summary": "better", "decision_reason": "promoted"},
        "dataset": {"version": 1, "total_rows": 3, "manifest": "m", "manifest_sha256": "3" * 64},
        "approval": None,
        "made_of": [{"version": 1, "files": 1, "rows": 3}],
        "files": [FILE | {"event": event}],
        "causes": causes,
    }
    page = StringIO()
    Console(file=page, width=200).print(_why(told))
    return page.getvalue()


def test_a_file_is_told_with_its_event_and_what_came_of_it() -> None:
    page = said("e-1", [{"what": "dataset version 1", "cause": CAUSE}])
    assert "a b.csv, 3 rows, sha256 000000000000, event e-1" in page
    assert "dataset version 1: storage e-1" in page


def test_a_file_that_was_found_before_its_event_says_so() -> None:
    page = said(None, [])
    assert "sha256 000000000000, found before an event told of it" in page
    assert "because   storage: files that were found before an event told of them" in page


# ------------------------------------------------------------------------------------------------ logs
class Printing:
    """An app with a run that prints, piece by piece; of its log it gives the end, as the computes do."""

    def __init__(self, *pieces: bytes) -> None:
        self.looks = [b"".join(pieces[:number]) for number in range(1, len(pieces) + 1)]
        self.look = -1

    def get(self, path: str) -> dict[str, str]:
        self.look += 1
        return {"state": "running" if self.look < len(self.looks) - 1 else "succeeded"}

    def request(self, method: str, path: str) -> bytes:
        log = self.looks[self.look]
        cut = len(log) > looking._TAIL
        return log[-looking._TAIL :].decode(errors="ignore" if cut else "replace").encode()


def followed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *pieces: bytes) -> str:
    monkeypatch.setattr(looking, "client", lambda _: Printing(*pieces))
    monkeypatch.setattr("time.sleep", lambda _: None)
    looking.logs("coin", "coin-1", follow=True, state=None, as_json=False)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "pieces",
    [
        (b"tick\n", b"tick\ntick\n", b"", b"tick\n"),
        (b"caf\xc3", b"\xa9 \xe2\x82", b"\xac\n"),
        (b"epoch\n" * 12_000, b"more\n", b"epoch\n" * 3, b"more\nmore\n"),
        ("".join(f"Größe {n}\n" for n in range(9_000)).encode(), "Größe\nÄ".encode()[:-1], "Ä\n".encode()[1:]),
        (b"a latin \xe9\n" * 7_000, b"more\n"),
    ],
)
def test_a_log_that_is_followed_is_shown_once_and_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pieces: tuple[bytes, ...]
) -> None:
    first = pieces[0][-looking._TAIL :]
    wanted = (first + b"".join(pieces[1:])).decode(errors="ignore")
    assert followed(monkeypatch, capsys, *pieces) == wanted


@given(st.lists(st.text("ab\n"), min_size=1, max_size=5))
def test_what_is_new_in_a_log_that_is_short_is_what_was_added(pieces: list[str]) -> None:
    looks = ["".join(pieces[:number]) for number in range(len(pieces) + 1)]
    assert [_after(before, text) for before, text in pairwise(looks)] == pieces


def test_the_log_of_another_attempt_is_shown_from_its_beginning() -> None:
    assert _after("started\nepoch 1\n", "started\n") == "started\n"
