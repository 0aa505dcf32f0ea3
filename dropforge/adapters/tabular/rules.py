"""The rules a column's values must keep, one small check each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from dropforge.adapters.tabular.kinds import NUMBERS, convert
from dropforge.adapters.tabular.problems import MAX_SAMPLES, Problems, listed
from dropforge.adapters.tabular.sources import Block
from dropforge.ports import ColumnRule

# `unique` keeps every value of its column in memory (some 100 bytes each); beyond this many it gives up.
MAX_UNIQUE = 20_000_000


@dataclass(frozen=True)
class Cells:
    """One column in one block: as it stands in the file, and as its kind. Positions in `bad` did not convert."""

    name: str
    block: Block
    raw: pa.Array
    values: pa.Array
    bad: tuple[int, ...] = ()

    def report(self, problems: Problems, rule: str, message: str, positions: list[int]) -> None:
        """Add these cells to a problem; the message is given what was found first."""
        some = positions[:MAX_SAMPLES]
        samples = _for_people(self.raw.take(pa.array(some, pa.int64())))
        found = "nothing" if samples[0] is None else repr(samples[0]) if isinstance(samples[0], str) else samples[0]
        problems.add(
            rule,
            self.name,
            f"column {self.name!r}: {message}, found {found}",
            count=len(positions),
            rows=[self.block.row(position) for position in some],
            values=["" if sample is None else sample for sample in samples],
        )

    def missing(self) -> list[int]:
        """Where there is no value; one that did not convert is another matter."""
        return sorted(set(where(pc.is_null(self.values))) - set(self.bad)) if self.values.null_count else []


def _for_people(values: pa.Array) -> list[Any]:
    """Times and dates as text, in UTC: Python has none beyond the year 9999, and not every zone that a file names."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_timestamp(values.type) and values.type.tz is not None:
        values = values.view(pa.timestamp(values.type.unit, "UTC"))
    found: list[Any] = (values.cast(pa.string()) if pa.types.is_temporal(values.type) else values).to_pylist()
    return found


Check: TypeAlias = Callable[[Cells], None]


def where(mask: pa.Array) -> list[int]:
    """Positions of the true values."""
    positions: list[int] = pc.indices_nonzero(pc.fill_null(mask, False)).to_pylist()
    return positions


def checks_of(rule: ColumnRule, kind: str, problems: Problems) -> list[Check]:
    """One check per thing the rule asks for. A rule that a column of that kind cannot be held to is a problem itself."""
    checks: list[Check] = []
    if not rule.nullable:
        checks.append(_not_null(problems))
    if rule.min is not None or rule.max is not None:
        if kind in NUMBERS:
            checks += [
                _bound(limit, low, problems)
                for limit, low in ((rule.min, True), (rule.max, False))
                if limit is not None
            ]
        else:
            message = f"column {rule.name!r}: min and max need numbers, found {kind}; declare its type or drop the rule"
            problems.add("min" if rule.min is not None else "max", rule.name, message)
    if rule.allowed is not None:
        checks += _allowed(rule.name, rule.allowed, kind, problems)
    if rule.pattern is not None:
        checks += _pattern(rule.name, rule.pattern, problems)
    if rule.unique:
        checks.append(_unique(rule.name, problems))
    return checks


def _not_null(problems: Problems) -> Check:
    def check(cells: Cells) -> None:
        if missing := cells.missing():
            cells.report(problems, "nullable", "wanted a value in every row", missing)

    return check


def _bound(limit: float, low: bool, problems: Problems) -> Check:
    rule, words, outside = ("min", "at least", pc.less) if low else ("max", "at most", pc.greater)

    def check(cells: Cells) -> None:
        if bad := where(outside(cells.values.cast(pa.float64(), safe=False), float(limit))):
            cells.report(problems, rule, f"wanted {words} {limit:g}", bad)

    return check


def _allowed(name: str, allowed: tuple[Any, ...], kind: str, problems: Problems) -> list[Check]:
    wanted = convert(pa.array([str(value) for value in allowed if value is not None], pa.string()), kind)
    if wanted.bad:
        message = f"column {name!r}: the allowed values {listed(map(str, allowed))} are not all {kind}"
        problems.add("allowed", name, message)
        return []

    def check(cells: Cells) -> None:
        values = cells.values
        if bad := where(pc.and_(pc.invert(pc.is_in(values, value_set=wanted.values)), pc.is_valid(values))):
            cells.report(problems, "allowed", f"wanted one of {listed(map(str, allowed))}", bad)

    return [check]


def _pattern(name: str, pattern: str, problems: Problems) -> list[Check]:
    whole = rf"\A(?:{pattern})\z"
    try:
        pc.match_substring_regex(pa.array([""]), whole)
        matches: Callable[[pa.Array], pa.Array] = lambda text: pc.match_substring_regex(text, whole)  # noqa: E731
    except pa.ArrowInvalid:
        # What RE2 does not know (look-around, back references), Python does, only slower.
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            problems.add(
                "pattern", name, f"column {name!r}: the pattern {pattern!r} is not a regular expression: {error}"
            )
            return []

        def matches(text: pa.Array) -> pa.Array:
            return pa.array([None if each is None else bool(compiled.fullmatch(each)) for each in text.to_pylist()])

    def check(cells: Cells) -> None:
        if bad := where(pc.invert(matches(cells.values.cast(pa.string())))):
            cells.report(problems, "pattern", f"wanted text like {pattern!r} as a whole", bad)

    return [check]


def _unique(name: str, problems: Problems) -> Check:
    seen: set[Any] = set()

    def check(cells: Cells) -> None:
        if len(seen) > MAX_UNIQUE:
            problems.add(
                "unique", name, f"column {name!r}: more than {MAX_UNIQUE:,} values cannot be held to be unique"
            )
            return
        bad = []
        # As the file has it: integers and their row, without making a time or a date object of each.
        values = cells.values
        if pa.types.is_temporal(values.type):
            values = values.view(pa.int32() if pa.types.is_date32(values.type) else pa.int64())
        for position, value in enumerate(values.to_pylist()):
            if value is not None and value in seen:
                bad.append(position)
            elif value is not None:
                seen.add(value)
        if bad:
            cells.report(problems, "unique", "wanted every value once", bad)

    return check
