"""What `dropforge why` says of files."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from dropforge.cli.looking import _why

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
