"""Azure Monitor alerts: the common alert schema read once into a value, and the rules that say what an alert does.

The schema: https://learn.microsoft.com/azure/azure-monitor/alerts/alerts-common-schema. The service keeps to it loosely:
keys come in several cases, thresholds as text, whole sections as null. What is needed to know the alert again is wanted
(`alertId`, `monitorCondition`); the rest is taken as far as it makes sense.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from dropforge.domain.causes import Cause
from dropforge.domain.errors import BadInput
from dropforge.domain.names import id_of

SCHEMA = "azureMonitorCommonAlertSchema"
SEVERITIES = ("Sev0", "Sev1", "Sev2", "Sev3", "Sev4")

# How much of an alert is kept: enough to read and to match, and a ledger row however much was sent.
MAX_TEXT = 300
MAX_DESCRIPTION = 1000
MAX_ID = 2000
MAX_ITEMS = 20

# What Azure's "Test action group" puts in place of an alert's own id, whatever is tested.
_TEST_IDS = frozenset({"12345678-1234-1234-1234-1234567890ab", "test_alert"})
_TEST_GROUP = "/resourcegroups/test-rg/"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Condition(Enum):
    FIRED = "Fired"
    RESOLVED = "Resolved"


class Signal(Enum):
    METRIC = "metric"
    LOG = "log"
    ACTIVITY_LOG = "activity_log"
    # Budgets and whatever comes next: kept and matched like any other.
    OTHER = "other"


_SIGNALS = {"metric": Signal.METRIC, "log": Signal.LOG, "activitylog": Signal.ACTIVITY_LOG}


@dataclass(frozen=True)
class Dimension:
    """One dimension by which the rule splits what it watches, and the value it fired for."""

    name: str
    value: str


@dataclass(frozen=True)
class Measured:
    """One condition of the rule and what was measured. A number that was not given, or is none, is None."""

    what: str
    operator: str
    threshold: float | None
    value: float | None


@dataclass(frozen=True)
class Alert:
    """One alert instance as one notification tells it. Times are aware UTC.

    `id` is made of `alert_id` alone, which Azure gives to an alert once: Fired and Resolved have it in common.
    """

    id: str
    alert_id: str
    condition: Condition
    # Name of the alert rule; empty where the service names none.
    rule: str
    severity: str | None
    signal: Signal
    service: str
    fired_at: datetime | None
    # Only when Resolved, and not from every service.
    resolved_at: datetime | None
    description: str
    targets: tuple[str, ...] = ()
    dimensions: tuple[Dimension, ...] = ()
    measured: tuple[Measured, ...] = ()
    # What the rule's author wrote beside it.
    properties: dict[str, str] = field(default_factory=dict)
    # Sent by "Test action group": handled as any other.
    test: bool = False


# ------------------------------------------------------------------------------------------------ rules
class AlertAction(Enum):
    RETRAIN = "retrain"
    ROLLBACK = "rollback"
    PAUSE = "pause"
    NOTIFY = "notify"


class Until(Enum):
    """What ends a pause that an alert began."""

    # The alert's own Resolved, or a person.
    RESOLVED = "resolved"
    # A person.
    RESUMED = "resumed"


@dataclass(frozen=True)
class Rule:
    """What a pipeline does about alerts of a name (a glob), of some severities (none: any), with these dimensions
    (values are globs). Case does not count: Azure itself does not keep it."""

    rule: str
    action: AlertAction
    severity: tuple[str, ...] = ()
    dimensions: Mapping[str, str] = field(default_factory=dict)
    until: Until | None = None

    def matches(self, alert: Alert) -> bool:
        """Whether the alert is one that this rule is about."""
        if not _like(alert.rule, self.rule) or (self.severity and alert.severity not in self.severity):
            return False
        return all(
            any(each.name.casefold() == name.casefold() and _like(each.value, wanted) for each in alert.dimensions)
            for name, wanted in self.dimensions.items()
        )


def first_match(rules: Sequence[Rule], alert: Alert) -> int | None:
    """The place of the rule that acts: the first that matches."""
    return next((index for index, rule in enumerate(rules) if rule.matches(alert)), None)


def _like(text: str, glob: str) -> bool:
    return fnmatchcase(text.casefold(), glob.casefold())


# ------------------------------------------------------------------------------------------------ what becomes of one
class ResponseState(Enum):
    PLANNED = "planned"
    DONE = "done"
    REFUSED = "refused"
    # The alert was over before its pause began.
    SKIPPED = "skipped"
    # A pause that its alert's Resolved (or a person, before it) has ended.
    ENDED = "ended"


_NEXT: Mapping[ResponseState, frozenset[ResponseState]] = {
    ResponseState.PLANNED: frozenset({ResponseState.DONE, ResponseState.REFUSED, ResponseState.SKIPPED}),
    ResponseState.DONE: frozenset({ResponseState.ENDED}),
    ResponseState.REFUSED: frozenset(),
    ResponseState.SKIPPED: frozenset(),
    ResponseState.ENDED: frozenset(),
}


def may_become(state: ResponseState, wanted: ResponseState) -> bool:
    """Whether a response in that state can still become this: a step that runs twice changes nothing."""
    return wanted in _NEXT[state]


@dataclass(frozen=True)
class Response:
    """What one pipeline's rule does about an alert, and what came of it. `rule` is its place in the pipeline.yaml, `name`
    the glob that fitted."""

    pipeline: str
    rule: int
    name: str
    action: AlertAction
    until: Until | None = None
    state: ResponseState = ResponseState.PLANNED
    # One sentence for a person, and when it was so.
    detail: str | None = None
    at: datetime | None = None
    # The flow that a rollback starts: which champion it puts back must not be decided twice.
    flow: dict[str, Any] | None = None


@dataclass(frozen=True)
class AlertRecord:
    """An alert as the ledger keeps it. `fired` says whether its Fired has come, `resolved_at` whether its Resolved has."""

    alert: Alert
    received_at: datetime
    door: str
    cause: Cause
    fired: bool
    resolved_at: datetime | None = None
    responses: tuple[Response, ...] = ()

    @property
    def open(self) -> bool:
        """Whether something is left to be done about it."""
        return any(each.state is ResponseState.PLANNED or self.ends(each) for each in self.responses)

    def ends(self, response: Response) -> bool:
        """Whether the alert is over and has a pause to end."""
        paused = response.action is AlertAction.PAUSE and response.state is ResponseState.DONE
        return paused and response.until is Until.RESOLVED and self.resolved_at is not None


# ------------------------------------------------------------------------------------------------ reading
def parse(body: object) -> Alert:
    """The alert in a notification of the common alert schema, whole or its `data` alone.

    Raises `BadInput` that says what was wanted and what was found.
    """
    whole = _fields(body)
    if whole is None:
        raise BadInput(f"the alert is {_kind(body)}; wanted an object in the common alert schema ({SCHEMA})")
    named = whole.get("schemaid", SCHEMA)
    if str(named).casefold() != SCHEMA.casefold():
        raise BadInput(
            f"schemaId is {str(named)[:100]!r}; wanted {SCHEMA!r}: turn the common alert schema on for this receiver "
            "of the action group"
        )
    inner = whole if "essentials" in whole else _fields(whole.get("data")) or {}
    essentials = _fields(inner.get("essentials"))
    if essentials is None:
        found = ", ".join(sorted(str(key)[:40] for key in list(whole)[:10])) or "nothing"
        raise BadInput(f"the alert has no data.essentials; wanted the common alert schema ({SCHEMA}), found {found}")
    context = _fields(inner.get("alertcontext")) or {}
    alert_id = _alert_id(essentials.get("alertid"))
    condition = _condition(essentials.get("monitorcondition"))
    rule, targets = _text(essentials.get("alertrule")), _texts(essentials.get("alerttargetids"))
    return Alert(
        # Resource ids are equal in any case.
        id=id_of("alert", alert_id.casefold()),
        alert_id=alert_id,
        condition=condition,
        rule=rule,
        severity=_severity(essentials.get("severity")),
        signal=_SIGNALS.get(_text(essentials.get("signaltype")).casefold().replace(" ", ""), Signal.OTHER),
        service=_text(essentials.get("monitoringservice")),
        fired_at=_time(essentials.get("fireddatetime")),
        resolved_at=_time(essentials.get("resolveddatetime")) if condition is Condition.RESOLVED else None,
        description=_text(essentials.get("description"), MAX_DESCRIPTION),
        targets=targets,
        dimensions=_dimensions(context),
        measured=_measured(context),
        properties=_pairs(inner.get("customproperties")) or _pairs(context.get("properties")),
        test=_is_test(alert_id, rule, targets),
    )


def schema() -> dict[str, Any]:
    """The JSON schema of what `parse` takes: what must be there, and no more."""
    essentials = {
        "type": "object",
        "properties": {
            "alertId": {"type": "string", "minLength": 1, "maxLength": MAX_ID},
            "monitorCondition": {"type": "string", "enum": [each.value for each in Condition]},
        },
        "required": ["alertId", "monitorCondition"],
    }
    return {
        "type": "object",
        "description": "An alert in the common alert schema of Azure Monitor.",
        "properties": {
            "schemaId": {"type": "string", "enum": [SCHEMA]},
            "data": {"type": "object", "properties": {"essentials": essentials}, "required": ["essentials"]},
        },
        "required": ["data"],
    }


def _alert_id(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID:
        found = "missing" if value is None else f"{_kind(value)} of {len(str(value))} characters"
        raise BadInput(
            f"data.essentials.alertId is {found}; wanted the alert's resource id, at most {MAX_ID} characters"
        )
    return _text(value, MAX_ID)


def _condition(value: object) -> Condition:
    for each in Condition:
        if isinstance(value, str) and value.strip().casefold() == each.value.casefold():
            return each
    found = "missing" if value is None else f"{str(value)[:100]!r}"
    raise BadInput(f"data.essentials.monitorCondition is {found}; wanted Fired or Resolved")


def _severity(value: object) -> str | None:
    found = re.fullmatch(r"(?:sev)?\s*([0-4])", _text(value).strip(), re.IGNORECASE)
    return f"Sev{found[1]}" if found else None


def _is_test(alert_id: str, rule: str, targets: Sequence[str]) -> bool:
    if alert_id.casefold().rpartition("/")[2] in _TEST_IDS:
        return True
    return rule.startswith("test-") and any(_TEST_GROUP in f"{each.casefold()}/" for each in targets)


def _conditions(context: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The conditions of a metric or a log alert: `condition.allOf`, and the older log alerts' context itself."""
    condition = _fields(context.get("condition")) or {}
    found = [fields for each in _items(condition.get("allof")) if (fields := _fields(each)) is not None]
    return found or ([dict(context)] if "threshold" in context or "dimensions" in context else [])


def _dimensions(context: Mapping[str, Any]) -> tuple[Dimension, ...]:
    """Those of every condition, each once; the labels of a Prometheus alert are dimensions too."""
    found: dict[Dimension, None] = {}
    for condition in _conditions(context):
        for each in _items(condition.get("dimensions")):
            fields = _fields(each) or {}
            if name := _text(fields.get("name")):
                found[Dimension(name, _text(fields.get("value")))] = None
    for name, value in _pairs(context.get("labels")).items():
        found[Dimension(name, value)] = None
    return tuple(found)[:MAX_ITEMS]


def _measured(context: Mapping[str, Any]) -> tuple[Measured, ...]:
    found = []
    for each in _conditions(context)[:MAX_ITEMS]:
        what = each.get("metricname") or each.get("metricmeasurecolumn") or each.get("searchquery")
        value = each.get("metricvalue", each.get("resultcount"))
        found.append(Measured(_text(what), _text(each.get("operator")), _number(each.get("threshold")), _number(value)))
    return tuple(found)


def _fields(value: object) -> dict[str, Any] | None:
    """An object with its keys in lower case, or None for anything else."""
    return {str(key).casefold(): each for key, each in value.items()} if isinstance(value, dict) else None


def _items(value: object) -> list[Any]:
    return value[:MAX_ITEMS] if isinstance(value, list) else []


def _texts(value: object) -> tuple[str, ...]:
    return tuple(text for each in _items(value) if (text := _text(each)))


def _pairs(value: object) -> dict[str, str]:
    """Names as they are written, and their values as text."""
    pairs = list(value.items())[:MAX_ITEMS] if isinstance(value, dict) else []
    return {_text(name): _text(each) for name, each in pairs if isinstance(each, str | int | float)}


def _text(value: object, most: int = MAX_TEXT) -> str:
    """Text or a number as text that any store takes; nothing for everything else."""
    if isinstance(value, bool):
        return str(value).lower()
    text = value if isinstance(value, str) else str(value) if isinstance(value, int | float) else ""
    # Half a surrogate pair is a string to JSON, but no text; what moves the cursor has no business in a log.
    return _CONTROL.sub(" ", text[:most].encode("utf-8", "replace").decode())


def _number(value: object) -> float | None:
    """Azure sends thresholds as text and values as numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _time(value: object) -> datetime | None:
    """An ISO 8601 time, with up to seven digits of fraction, in UTC unless it says otherwise; None when it is none."""
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value.strip())
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _kind(value: object) -> str:
    names = {
        type(None): "nothing",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), type(value).__name__)
