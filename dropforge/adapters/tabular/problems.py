"""Broken rules, gathered while a file is read: one `Problem` per rule and column, however many rows break it."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, field

from dropforge.domain.errors import BadFile
from dropforge.ports import Problem

MAX_PROBLEMS = 50
MAX_SAMPLES = 20
MAX_VALUE_CHARS = 80

# What the operating system says of the places that a damaged file names; Arrow's own errors have no number.
_OF_CONTENT = (errno.EINVAL, errno.EOVERFLOW, errno.EFBIG)


class Unreadable(BadFile):
    """The file cannot be read any further; what is wrong is among the problems already."""


@dataclass
class _Found:
    message: str
    count: int = 0
    rows: list[int] = field(default_factory=list)
    values: list[str] = field(default_factory=list)


def may_pass(error: BaseException | None) -> bool:
    """Whether the machine is to blame for it and not the file: read again, the file may be fine."""
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in _OF_CONTENT
    return isinstance(error, MemoryError)


class Problems:
    """What is wrong with one file. At most fifty problems, each with at most twenty rows and values."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str | None], _Found] = {}
        self._left_out: set[tuple[str, str | None]] = set()

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(
        self,
        rule: str,
        column: str | None,
        message: str,
        *,
        count: int = 1,
        rows: Iterable[int] = (),
        values: Iterable[object] = (),
    ) -> None:
        """Add to what is known of that rule and column; the first message stays."""
        found = self._found.get((rule, column))
        if found is None:
            if len(self._found) >= MAX_PROBLEMS - 1:
                self._left_out.add((rule, column))
                return
            found = self._found[rule, column] = _Found(message)
        found.count += count
        found.rows.extend(list(rows)[: MAX_SAMPLES - len(found.rows)])
        found.values.extend(shown(value) for value in list(values)[: MAX_SAMPLES - len(found.values)])

    def stop(self, rule: str, column: str | None, message: str, rows: Iterable[int] = ()) -> Unreadable:
        """Add a problem after which nothing can be read, and hand back the exception to raise."""
        self.add(rule, column, message, rows=rows)
        return Unreadable(message)

    def all(self) -> tuple[Problem, ...]:
        """The problems in the order they were found."""
        problems = [
            Problem(rule, column, found.message, found.count, tuple(found.rows), tuple(found.values))
            for (rule, column), found in self._found.items()
        ]
        if self._left_out:
            more = len(self._left_out)
            message = (
                f"{more} more problems are not listed; put the first {len(problems)} right and drop the file again"
            )
            problems.append(Problem("more", None, message, more))
        return tuple(problems)


def shown(value: object) -> str:
    """A value as a message shows it: one line, cut when long."""
    text = value if isinstance(value, str) else str(value)
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 1] + "…"


def listed(names: Iterable[str], most: int = 30) -> str:
    """Column names as a message lists them: quoted, so that a stray blank shows."""
    names = list(names)
    text = ", ".join(repr(shown(name)) for name in names[:most])
    return f"{text} and {len(names) - most} more" if len(names) > most else text or "nothing"
