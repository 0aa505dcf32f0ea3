"""One look at a dropped file: does it fit the rules and the table? Broken rules are reported, never raised."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from dropforge.adapters.tabular.kinds import ARROW, convert
from dropforge.adapters.tabular.layout import expected, lay_out, open_source
from dropforge.adapters.tabular.problems import Problems, Unreadable
from dropforge.adapters.tabular.rules import Cells, Check, checks_of, where
from dropforge.adapters.tabular.sources import Source
from dropforge.domain.datasets import Column
from dropforge.ports import FileCheck, TableRules

# A column with more misfits than this is not looked at any further: its counts are "at least".
MAX_MISFITS = 10_000

# Of what Python, and ISO 8601 without an agreement, has a name for.
_FIRST = pa.scalar(datetime.min.replace(tzinfo=UTC), ARROW["timestamp"])
_LAST = pa.scalar(datetime.max.replace(tzinfo=UTC), ARROW["timestamp"])

_SPOKEN = {
    "string": "text",
    "int64": "a whole number",
    "double": "a number",
    "bool": "true or false",
    "timestamp": "a time such as 2013-01-31T09:30:00Z",
    "date32": "a date such as 2013-01-31",
}


def check_file(path: Path, rules: TableRules) -> FileCheck:
    """What the file holds and which rules it breaks. Raises nothing for any content; `BadInput` for rules that no file
    can be checked by, and what the operating system raises for a file that cannot be opened.

    Times without a zone are UTC. `unique` holds within the file. A null label is fine: labels may come later.
    """
    problems = Problems()
    wanted = expected(rules)
    look = _Look(rules, problems)
    try:
        source = open_source(path, rules, problems)
        look.kinds = lay_out(source, wanted, problems)
        look.read(source)
        if look.rows < rules.min_rows:
            message = f"wanted at least {rules.min_rows:,} data rows (dataset.min_rows), found {look.rows:,}"
            header_only = rules.format == "csv" and not look.rows and not problems
            problems.add("min_rows", None, f"{message}: nothing but a header" if header_only else message)
    except Unreadable:
        pass
    columns = tuple(Column(name, kind) for name, kind in look.kinds.items())
    return FileCheck(look.rows, columns, problems.all(), _iso(look.earliest), _iso(look.latest))


@dataclass
class _Look:
    """One pass over the rows."""

    rules: TableRules
    problems: Problems
    kinds: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    earliest: datetime | None = None
    latest: datetime | None = None
    misfits: dict[str, int] = field(default_factory=dict)

    def read(self, source: Source) -> None:
        checks = self._checks()
        for block in source.blocks(self.kinds, self.problems):
            self.rows += block.length
            for name, kind in self.kinds.items():
                if self.misfits.get(name, 0) < MAX_MISFITS:
                    raw = block.values[name]
                    converted = convert(raw, kind)
                    cells = Cells(name, block, raw, converted.values, converted.bad)
                    self._report_misfits(cells, kind)
                    for check in checks[name]:
                        check(cells)

    def _checks(self) -> dict[str, list[Check]]:
        declared = {rule.name: rule for rule in self.rules.columns}
        checks: dict[str, list[Check]] = {
            name: checks_of(declared[name], kind, self.problems) if name in declared else []
            for name, kind in self.kinds.items()
        }
        if self.rules.event_time in checks:
            checks[self.rules.event_time].append(self._event_times)
        return checks

    def _report_misfits(self, cells: Cells, kind: str) -> None:
        if not cells.bad:
            return
        self.misfits[cells.name] = self.misfits.get(cells.name, 0) + len(cells.bad)
        rule = "event_time" if cells.name == self.rules.event_time else "type"
        declared = any(each.name == cells.name and each.type for each in self.rules.columns)
        known = any(column.name == cells.name for column in self.rules.known)
        origin = " as declared" if declared else " as in the table" if known else ""
        cells.report(self.problems, rule, f"wanted {_SPOKEN[kind]} ({kind}{origin})", list(cells.bad))

    def _event_times(self, cells: Cells) -> None:
        if missing := cells.missing():
            cells.report(self.problems, "event_time", "wanted a time in every row (event_time)", missing)
        times = convert(cells.values, "timestamp")
        if times.bad:
            cells.report(self.problems, "event_time", f"wanted {_SPOKEN['timestamp']} (event_time)", list(times.bad))
        if outside := where(pc.or_(pc.less(times.values, _FIRST), pc.greater(times.values, _LAST))):
            cells.report(self.problems, "event_time", "wanted a time in the years 1 to 9999 (event_time)", outside)
            return
        ends = pc.min_max(times.values)
        low, high = ends["min"].as_py(), ends["max"].as_py()
        if low is not None:
            self.earliest = low if self.earliest is None else min(self.earliest, low)
            self.latest = high if self.latest is None else max(self.latest, high)


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).isoformat()
