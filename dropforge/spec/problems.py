"""What is wrong with a pipeline.yaml, told so that it can be put right: key, line, what was found, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

# Where a value stands: keys and list indexes from the top.
Path: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing to put right. `line` counts from 1; `key` is empty when the file as a whole is meant."""

    line: int
    key: str
    message: str

    def text(self, where: str) -> str:
        return f"{where}:{self.line}: {self.key + ': ' if self.key else ''}{self.message}"


def dotted(path: Path) -> str:
    """A path as people write it: `dataset.columns[2].type`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def guess(found: object, choices: Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean 'x'?` when one of the choices looks like what was found, else nothing."""
    # A slip of the pen is short; comparing long texts with many others takes seconds.
    near = [choice for choice in choices if abs(len(choice) - len(str(found))) <= 5][:200]
    close = difflib.get_close_matches(str(found), near, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


def listed(choices: Sequence[str], most: int = 12) -> str:
    """The choices in a row, the first dozen of a long list."""
    return ", ".join(choices[:most]) + (f", ... ({len(choices)} in all)" if len(choices) > most else "")
