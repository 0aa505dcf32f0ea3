"""What the rules would have done: recorded alerts, data and commands played through a pipeline's rules and limits.

Nothing is changed, and nothing is asked of anybody: every answer comes from the ledger. What a run would have come to is
not known; one that was recorded for the same data ends as it did then, any other leaves a model and takes as long as runs
of this pipeline take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from dropforge.domain.alerts import AlertAction, AlertRecord, Rule, Until, first_match
from dropforge.domain.causes import Cause
from dropforge.domain.datasets import DatasetVersion
from dropforge.domain.errors import BadInput, Refused
from dropforge.domain.limits import Limits, Started, held
from dropforge.domain.runs import RunOutcome, RunRecord, RunState
from dropforge.ports import Json, Ports
from dropforge.steps import books, control, train
from dropforge.wire import from_builtins

if TYPE_CHECKING:
    from dropforge.spec.model import PipelineSpec

MAX_DAYS = 366
# Lines of the log that come back; the counts are of everything.
MAX_LOG = 500


def dry_run(ports: Ports, pipeline: str | None, days: int, now: datetime, spec: str | None = None) -> Json:
    """What the rules of one pipeline (None: of each) would have done in the last so many days: `{"days", "from", "to",
    "pipelines": [...]}`, each with `events`, `rules`, `runs`, `held_by` and `log`.

    `spec`: the text of a pipeline.yaml to try instead of what is applied. Raises `BadInput` (and `BadSpec`), `NotFound`.
    """
    if not 1 <= days <= MAX_DAYS:
        raise BadInput(f"days is {days}; it must be a whole number from 1 to {MAX_DAYS}")
    tried = books.parse_spec(spec) if spec is not None else None
    if tried is not None and pipeline not in (None, tried.name):
        raise BadInput(f"the pipeline.yaml is of pipeline {tried.name!r}, asked about {pipeline!r}; make the two equal")
    if tried is not None:
        chosen = [(tried.name, tried)]
    elif pipeline is not None:
        chosen = [(pipeline, books.pipeline(ports.ledger, pipeline).spec)]
    else:
        chosen = [(each.name, each.spec) for each in books.pipelines(ports.ledger)]
    since = now - timedelta(days=days)
    alerts = _alerts(ports, since)
    told = [_Rehearsal.of(ports, each, since, now).played(ports, name, alerts, since) for name, each in chosen]
    return {"days": days, "from": since.isoformat(), "to": now.isoformat(), "pipelines": told}


def _alerts(ports: Ports, since: datetime) -> list[AlertRecord]:
    """The alerts of those days, oldest first."""
    found = []
    for row in books.every(ports.ledger, books.ALERTS, "recent/"):
        kept = ports.ledger.get(books.ALERTS, f"alert/{row.value['id']}")
        if kept is None:
            continue
        each = from_builtins(AlertRecord, kept.value)
        if each.received_at < since:
            break
        found.append(each)
    return found[::-1]


@dataclass(frozen=True)
class _Event:
    """Something that was recorded and that makes the pipeline act."""

    at: datetime
    kind: str
    id: str
    what: object = None
    cause: Cause | None = None


@dataclass
class _Rehearsal:
    """One pipeline's state as it would have been, from event to event."""

    rules: tuple[Rule, ...]
    limits: Limits
    min_rows: int
    now: datetime
    recorded: dict[int, RunRecord]
    minutes: float
    started: list[Started]
    failures: int = 0
    broken: bool = False
    holds: dict[str, Until] = field(default_factory=dict)
    rolled_back_at: datetime | None = None
    rows: int = 0
    version: int = 0
    # A training that waits for the budget: when it may start, and why it was asked for.
    waiting: tuple[datetime, _Event] | None = None
    busy_until: datetime | None = None
    runs: int = 0
    held_by: Counter[str] = field(default_factory=Counter)
    acted: Counter[tuple[int, str]] = field(default_factory=Counter)
    log: list[Json] = field(default_factory=list)
    unmatched: int = 0

    @classmethod
    def of(cls, ports: Ports, spec: PipelineSpec, since: datetime, now: datetime) -> _Rehearsal:
        """The state in which the days begin."""
        known = train.records(ports, spec.name)
        runs = [each for each in known if each.spec.challenger is None]
        lasted = [train.started(each).minutes for each in runs if train.started(each).minutes > 0]
        budget = spec.budget
        return cls(
            rules=books.alert_rules(spec),
            limits=Limits(budget.runs_per_day, budget.training_minutes_per_day, budget.cool_down, budget.max_failures),
            min_rows=spec.training.min_rows,
            now=now,
            recorded={each.spec.dataset_version: each for each in reversed(runs)},
            minutes=sum(lasted) / len(lasted) if lasted else 0.0,
            started=[train.started(each) for each in known if since - timedelta(days=367) < each.planned_at <= since],
        )

    def played(self, ports: Ports, name: str, alerts: list[AlertRecord], since: datetime) -> Json:
        """Every event in its order, and what came of it all."""
        partition = books.partition_of(name)
        for version in _versions(ports, partition):
            if version.created_at <= since:
                self.version, self.rows = version.version, version.total_rows
        events = sorted([*_of_alerts(alerts), *_of_data(ports, partition, since)], key=lambda each: each.at)
        for event in events:
            self._catch_up(event.at)
            self._take(event)
        self._catch_up(self.now)
        drops = sum(
            1
            for row in books.every(ports.ledger, partition, "arrival/")
            if datetime.fromisoformat(row.value["arrived_at"]) > since
        )
        kinds = Counter(each.kind for each in events)
        return {
            "pipeline": name,
            "events": {
                "alerts": kinds["alert"],
                "unmatched_alerts": self.unmatched,
                "drops": drops,
                "dataset_versions": kinds["data"],
                "commands": kinds["command"],
            },
            "rules": [self._rule(place, rule) for place, rule in enumerate(self.rules)],
            "runs": self.runs,
            "held_by": dict(sorted(self.held_by.items())),
            "broken": self.broken,
            "log": self.log[-MAX_LOG:],
        }

    def _rule(self, place: int, rule: Rule) -> Json:
        counts = {result: count for (number, result), count in sorted(self.acted.items()) if number == place}
        return {"rule": rule.rule, "action": rule.action.value, "matched": sum(counts.values()), **counts}

    # -------------------------------------------------------------------------------------------- one event
    def _take(self, event: _Event) -> None:
        match event.what:
            case AlertRecord() as alert:
                self._alert(event, alert)
            case DatasetVersion() as version:
                self.version, self.rows = version.version, version.total_rows
                self._note(event, "train", *(self._came_round(event) or self._train(event)))
            case str() as command:
                self._command(event, command)
            case None:
                self._end_pause(event)

    def _alert(self, event: _Event, found: AlertRecord) -> None:
        place = first_match(self.rules, found.alert)
        if place is None:
            self.unmatched += 1
            self._note(event, None, "no rule", found.alert.rule)
            return
        rule = self.rules[place]
        result, detail = self._respond(event, rule)
        self.acted[place, result] += 1
        self._note(event, rule.action.value, result, detail, rule.rule)

    def _respond(self, event: _Event, rule: Rule) -> tuple[str, str]:
        if (refused := self._came_round(event)) is not None:
            return refused
        match rule.action:
            case AlertAction.RETRAIN:
                return self._train(event, asked=True)
            case AlertAction.PAUSE:
                self.holds[event.id] = rule.until or Until.RESUMED
                return "acted", f"paused until {(rule.until or Until.RESUMED).value}"
            case AlertAction.ROLLBACK:
                return self._roll_back(event)
            case AlertAction.NOTIFY:
                return "acted", "told as AlertReceived"

    def _came_round(self, event: _Event) -> tuple[str, str] | None:
        try:
            control.check_hops(event.cause)
        except Refused as error:
            self.held_by["hops"] += 1
            return "refused", error.message
        return None

    def _roll_back(self, event: _Event) -> tuple[str, str]:
        rest = max(self.limits.cool_down or control.ROLLBACK_REST, control.ROLLBACK_REST)
        if self.rolled_back_at is not None and event.at < self.rolled_back_at + rest:
            self.held_by["rollback_rest"] += 1
            return "refused", f"an alert rolled it back at {self.rolled_back_at.isoformat()}"
        self.rolled_back_at = event.at
        return "acted", "would put the champion before back, if there was one"

    def _command(self, event: _Event, command: str) -> None:
        if command == "train":
            self._note(event, "train", *self._train(event, asked=True))
        elif command == "pause":
            self.holds[""] = Until.RESUMED
            self._note(event, "pause", "acted", "paused by a person")
        elif command == "resume":
            self.holds.clear()
            self.broken, self.failures = False, 0
            self._go_on(event.at)
            self._note(event, "resume", "acted", "goes on; the breaker is reset")

    def _end_pause(self, event: _Event) -> None:
        if self.holds.get(event.id) is Until.RESOLVED:
            del self.holds[event.id]
            self._go_on(event.at)
            self._note(event, "resume", "acted", "the alert is resolved")

    def _go_on(self, at: datetime) -> None:
        """What waits while the pipeline is held does not start before it is free."""
        if self.waiting is not None:
            self.waiting = (max(self.waiting[0], at), self.waiting[1])

    # -------------------------------------------------------------------------------------------- training
    def _train(self, event: _Event, *, asked: bool = False) -> tuple[str, str]:
        """What becomes of a wish to train: `acted`, `joined`, `delayed` by the budget, or `refused`. What is new is not
        refused while the pipeline is held: it waits."""
        if not self.version or self.rows < self.min_rows:
            return "refused", "there is not enough data"
        if self.holds or self.broken:
            by = "pause" if self.holds else "breaker"
            self.held_by[by] += 1
            if asked:
                return "refused", f"held by {by}"
            self.waiting = self.waiting or (event.at, event)
            return "delayed", f"held by {by}"
        if self.waiting is not None:
            return "joined", f"waits until {self.waiting[0].isoformat()} with the one before"
        if self.busy_until is not None and event.at < self.busy_until:
            self.waiting = (self.busy_until, event)
            return "delayed", f"until {self.busy_until.isoformat()}, when the run before is over"
        limit = held(self.limits, self.started, event.at, trains=True)
        if limit is not None:
            self.held_by[limit.by] += 1
            self.waiting = (limit.until, event)
            return "delayed", f"by budget.{limit.by} until {limit.until.isoformat()}"
        return "acted", self._start(event.at)

    def _start(self, at: datetime) -> str:
        known = self.recorded.get(self.version)
        minutes = train.started(known).minutes if known is not None else self.minutes
        self.started.append(Started(at, minutes, True))
        self.busy_until = at + timedelta(minutes=minutes)
        self.runs += 1
        if known is None or known.state is not RunState.CANCELLED:
            failed = known is not None and known.outcome is RunOutcome.NO_MODEL
            self.failures = self.failures + 1 if failed else 0
            if self.failures >= self.limits.max_failures and not self.broken:
                self.broken = True
                return f"trains on version {self.version}, fails as it did, and opens the breaker"
        return f"trains on version {self.version}"

    def _catch_up(self, until: datetime) -> None:
        """Start what waited, as soon as it may."""
        while self.waiting is not None and self.waiting[0] <= until and not self.holds and not self.broken:
            at, event = self.waiting
            limit = held(self.limits, self.started, at, trains=True)
            if limit is not None:
                self.waiting = (limit.until, event)
                continue
            self.waiting = None
            self._note(_Event(at, event.kind, event.id), "train", "acted", self._start(at))

    def _note(self, event: _Event, action: str | None, result: str, detail: str, rule: str | None = None) -> None:
        self.log.append(
            {
                "at": event.at.isoformat(),
                "event": event.kind,
                "id": event.id,
                "rule": rule,
                "action": action,
                "result": result,
                "detail": detail,
            }
        )


# ------------------------------------------------------------------------------------------------ what was recorded
def _of_alerts(alerts: list[AlertRecord]) -> Iterator[_Event]:
    for each in alerts:
        if each.fired:
            yield _Event(each.received_at, "alert", each.alert.id, each, each.cause)
        if each.resolved_at is not None:
            yield _Event(max(each.resolved_at, each.received_at), "resolved", each.alert.id)


def _of_data(ports: Ports, partition: str, since: datetime) -> Iterator[_Event]:
    for version in _versions(ports, partition):
        if version.created_at > since:
            yield _Event(version.created_at, "data", f"version {version.version}", version, version.cause)
    for row in books.every(ports.ledger, partition, "command/"):
        at = datetime.fromisoformat(row.value["asked_at"])
        done = row.value["outcome"] is not None and row.value["outcome"]["state"] == "done"
        if at > since and done:
            yield _Event(at, "command", row.value["id"], row.value["command"])


def _versions(ports: Ports, partition: str) -> Iterator[DatasetVersion]:
    for row in books.every(ports.ledger, partition, "dataset/"):
        yield from_builtins(DatasetVersion, row.value)
