"""How things are shown: tables and facts for people, one JSON value for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

T = TypeVar("T")

out = Console()
err = Console(stderr=True)


def show(value: T, as_json: bool, shown: Callable[[T], RenderableType | None]) -> None:
    """The value as JSON, or as `shown` says it."""
    if as_json:
        sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
        return
    text = shown(value)
    if text is not None:
        # Names and reasons are others' words: brackets in them are no markup.
        out.print(text, markup=False, emoji=False)


def table(*columns: str) -> Table:
    """A table without lines; columns named `#...` are numbers."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(
            column.removeprefix("#"), overflow="fold", justify="right" if column.startswith("#") else "left"
        )
    return made


def row(to: Table, *cells: object) -> None:
    """A row of plain text: what others wrote is shown as it is, brackets and all."""
    to.add_row(*(cell if isinstance(cell, Text) else Text("-" if cell is None else str(cell)) for cell in cells))


def facts(*lines: tuple[str, object]) -> Table:
    """Names in bold, and what they are."""
    made = Table(box=None, show_header=False, pad_edge=False)
    for name, fact in lines:
        row(made, Text(name, style="bold"), fact)
    return made


def ago(when: str | None) -> str:
    """How long ago that was."""
    if when is None:
        return "-"
    return _span((datetime.now(UTC) - datetime.fromisoformat(when)).total_seconds()) + " ago"


def until(when: str) -> str:
    """How long it is until then."""
    seconds = (datetime.fromisoformat(when) - datetime.now(UTC)).total_seconds()
    return f"for another {_span(seconds)}" if seconds > 0 else "no longer"


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def count(number: int, what: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


STYLES = {
    "promoted": "green",
    "live": "green",
    "succeeded": "green",
    "better": "green",
    "running": "cyan",
    "failed": "red",
    "no_model": "red",
    "rolled_back": "red",
    "refused": "red",
    "worse": "red",
    "waiting_for_answer": "yellow",
    "rejected": "yellow",
    "cancelled": "yellow",
}


def state(word: str | None) -> Text:
    """A state in its colour."""
    return Text((word or "-").replace("_", " "), style=STYLES.get(word or "", ""))
