"""Alerts: written down once, answered once by each pipeline that has a rule for them, kept and shown either way.

partition `alerts`   alert/<id>          the alert, what each pipeline's rule does about it, and what came of that
                     recent/<time>-<id>  the same alerts, the newest first: the time counts down
                     open/<id>           there while something is left to be done about it
                     misfit/<time>-<id>  an event that is no alert, and why; the newest first

What a pipeline's rules say is decided when Fired is written down, in the same commit, and never again. Fired and Resolved
end in the same state in whichever order they come: what Fired asks for is done, but a pause that Resolved ends does not
begin any more once the alert is over.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from dropforge.domain.alerts import (
    Alert,
    AlertAction,
    AlertRecord,
    Condition,
    Response,
    ResponseState,
    Until,
    first_match,
    may_become,
    parse,
)
from dropforge.domain.causes import Cause, furthest
from dropforge.domain.errors import Conflict, NotFound, Refused
from dropforge.domain.events import DomainEvent
from dropforge.domain.names import id_of
from dropforge.ports import Delete, Insert, Json, Ports, Replace, Write
from dropforge.settings import Settings
from dropforge.steps import books, control, deploy, outbox, pipelines, tracing, train
from dropforge.steps.rehearsal import dry_run as dry_run
from dropforge.wire import from_builtins, to_builtins

MAX_MISFIT = 4000


# ------------------------------------------------------------------------------------------------ the doors' steps
def record(ports: Ports, body: object, cause: Cause, door: str, now: datetime) -> Json:
    """Write the alert down and say what is to be done about it: what `shown` says, `repeated`, and the flows to `start`.

    The same alert again, through whichever door, is not written again; the flows come back until they have done it.
    `cause` says how far the platform's own news is behind it. Raises `BadInput` for what is no alert.
    """
    alert = parse(body)
    cause = replace(cause, id=alert.alert_id, door="alert")
    while True:
        row = ports.ledger.get(books.ALERTS, _key(alert.id))
        before = from_builtins(AlertRecord, row.value) if row is not None else None
        after = _after(ports, before, alert, cause, door, now)
        if before == after:
            break
        if row is None:
            recent = Insert(f"recent/{_counting_down(now)}-{alert.id}", {"id": alert.id})
            writes: list[Write] = [Insert(_key(alert.id), to_builtins(after)), recent]
        else:
            writes = [Replace(row.key, to_builtins(after), row.etag)]
        try:
            ports.ledger.commit(books.ALERTS, [*writes, *_opening(before, after)])
        except Conflict:
            continue
        tracing.came_in(cause, now, rule=alert.rule)
        break
    start = carry_on(ports, alert.id)
    return {**shown(read(ports, alert.id)), "repeated": before == after, "start": start}


def _after(
    ports: Ports, before: AlertRecord | None, alert: Alert, cause: Cause, door: str, now: datetime
) -> AlertRecord:
    """What is known once this notification has been taken in."""
    known = before or AlertRecord(alert, now, door, cause, fired=False)
    known = replace(known, cause=furthest((known.cause, cause)) or cause)
    if alert.condition is Condition.RESOLVED and known.resolved_at is None:
        known = replace(known, resolved_at=alert.resolved_at or now)
    if alert.condition is Condition.FIRED and not known.fired:
        # Fired says more than the Resolved that may have come before it.
        known = replace(known, alert=alert, fired=True, responses=_planned(ports, alert))
    return known


def _planned(ports: Ports, alert: Alert) -> tuple[Response, ...]:
    found = []
    for pipeline in books.pipelines(ports.ledger):
        rules = books.alert_rules(pipeline.spec)
        place = first_match(rules, alert)
        if place is not None:
            rule = rules[place]
            found.append(Response(pipeline.name, place, rule.rule, rule.action, rule.until))
    return tuple(found)


def _opening(before: AlertRecord | None, after: AlertRecord) -> list[Write]:
    """The row that says that something is left to do comes and goes in the commit that makes it so."""
    was = before is not None and before.open
    key = f"open/{after.alert.id}"
    if after.open and not was:
        return [Insert(key, {})]
    return [Delete(key)] if was and not after.open else []


def keep_misfit(ports: Ports, event: str, source: str, body: object, reason: str, now: datetime) -> None:
    """Keep an event that is no alert, with the reason: no redelivery mends it, and a person may want to know. Once."""
    id_ = id_of(source, event)
    value: Json = {
        "id": id_,
        "event": event,
        "source": source,
        "reason": reason,
        "at": now.isoformat(),
        "body": json.dumps(body, default=str)[:MAX_MISFIT],
    }
    try:
        writes = [Insert(f"misfit-id/{id_}", {}), Insert(f"misfit/{_counting_down(now)}-{id_}", value)]
        ports.ledger.commit(books.ALERTS, writes)
    except Conflict:
        return


def sweep(ports: Ports) -> list[Json]:
    """The flows that should live for alerts that are not dealt with; one that lives already is started in vain."""
    rows = list(books.every(ports.ledger, books.ALERTS, "open/"))
    return [flow for row in rows for flow in carry_on(ports, row.key.partition("/")[2])]


def carry_on(ports: Ports, id_: str) -> list[Json]:
    """End what the alert's end ends, and name the flows that answer it or that have been waiting for its end."""
    found = read(ports, id_)
    flows: list[Json] = []
    for each in found.responses:
        if each.state is ResponseState.PLANNED:
            asked = {"alert": id_, "pipeline": each.pipeline}
            flows.append({"flow": "respond", "id": f"respond-{id_}-{each.pipeline}", "input": asked})
        elif found.ends(each):
            free = control.release(ports, each.pipeline, id_)
            _conclude(ports, id_, each.pipeline, ResponseState.ENDED, "the alert is resolved", found.resolved_at)
            flows += pipelines.waiting(ports, books.pipeline(ports.ledger, each.pipeline)) if free else []
    return flows


# ------------------------------------------------------------------------------------------------ the flow's steps
def plan_response(ports: Ports, id_: str, name: str, settings: Settings, now: datetime) -> Json:
    """What the pipeline is to do about the alert: `{"action"}`, `none` when that is done, refused or over.

    What must not be decided twice is decided here: which champion a rollback puts back.
    """
    found = read(ports, id_)
    response = _response(found, name)
    if response.state is not ResponseState.PLANNED:
        return {"action": "none"}
    if response.until is Until.RESOLVED and found.resolved_at is not None:
        _conclude(ports, id_, name, ResponseState.SKIPPED, "the alert was over before the pause began", now)
        return {"action": "none"}
    try:
        control.admit(ports, name, found.cause, now, settings.max_hops)
        if response.action is AlertAction.ROLLBACK and response.flow is None:
            flow = deploy.by_hand(ports, name, None, token=f"alert {id_}", cause=found.cause)
            rest = books.pipeline(ports.ledger, name).spec.budget.cool_down
            control.take_rollback(ports, name, id_, rest, now, deploy.taken_back_at(ports, name))
            _change(ports, id_, name, lambda each: replace(each, flow=each.flow or flow))
    except (Refused, NotFound) as error:
        _conclude(ports, id_, name, ResponseState.REFUSED, error.message, now)
        return {"action": "none"}
    return {"action": response.action.value}


def act_on_alert(ports: Ports, id_: str, name: str, now: datetime) -> Json:
    """Do what the rule says: `{"detail", "start": [flows]}`; `detail` None when it was done before, or is refused."""
    found = read(ports, id_)
    response = _response(found, name)
    if response.state is not ResponseState.PLANNED:
        return {"detail": None, "start": []}
    rule, alert = f"alert rule {found.alert.rule!r}", found.alert
    flows: list[Json] = []
    match response.action:
        case AlertAction.RETRAIN:
            try:
                asked = train.ask(ports, name, f"alert {id_}", found.cause, now)
            except Refused as error:
                _conclude(ports, id_, name, ResponseState.REFUSED, error.message, now)
                return {"detail": None, "start": []}
            flows = asked["start"]
            detail = "joined the run that is asked for already" if asked["state"] == "joined" else "asked for a run"
        case AlertAction.ROLLBACK:
            assert response.flow is not None
            # Before the alert is answered: from here on the sweep starts the flow again should it fail.
            deploy.publish_asked(ports, response.flow, now)
            flows = [response.flow]
            detail = f"puts version {response.flow['input']['version']} back"
        case AlertAction.PAUSE:
            until = (response.until or Until.RESUMED).value
            reason = alert.description or "it fired"
            control.pause_for_alert(ports, name, id_, rule, reason, until, now)
            detail = f"paused until {'the alert is resolved' if until == 'resolved' else 'a person resumes it'}"
        case AlertAction.NOTIFY:
            detail = "told as AlertReceived"
    return {"detail": detail, "start": flows}


def conclude_response(ports: Ports, id_: str, name: str, detail: str, now: datetime) -> list[Json]:
    """Write down that the pipeline has answered the alert; `notify` is told in the same commit.

    The flows to start come back when the alert is over by now: Resolved writes itself down before it looks for the pause,
    and the pause began before we look for Resolved.
    """
    _conclude(ports, id_, name, ResponseState.DONE, detail, now)
    outbox.flush(ports, books.ALERTS)
    found = read(ports, id_)
    return carry_on(ports, id_) if found.ends(_response(found, name)) else []


def _conclude(ports: Ports, id_: str, name: str, state: ResponseState, detail: str, at: datetime | None) -> None:
    def concluded(response: Response) -> Response:
        if not may_become(response.state, state):
            return response
        return replace(response, state=state, detail=detail, at=at)

    _change(ports, id_, name, concluded)


def _change(ports: Ports, id_: str, name: str, update: Callable[[Response], Response]) -> None:
    """Change one pipeline's response; with it goes what is told of it, and the row that says that something is left."""
    while True:
        row = ports.ledger.get(books.ALERTS, _key(id_))
        if row is None:
            raise NotFound(f"no alert {id_!r}", alert=id_)
        before = from_builtins(AlertRecord, row.value)
        responses = tuple(update(each) if each.pipeline == name else each for each in before.responses)
        after = replace(before, responses=responses)
        if after == before:
            return
        pairs = zip(before.responses, responses, strict=True)
        told = [outbox.entry(_event(before, new)) for old, new in pairs if _tells(old, new)]
        try:
            ports.ledger.commit(
                books.ALERTS, [Replace(row.key, to_builtins(after), row.etag), *_opening(before, after), *told]
            )
        except Conflict:
            continue
        return


def _tells(before: Response, after: Response) -> bool:
    done = after.state is ResponseState.DONE and before.state is not ResponseState.DONE
    return done and after.action is AlertAction.NOTIFY


def _event(found: AlertRecord, response: Response) -> DomainEvent:
    alert = found.alert
    return DomainEvent(
        id_of("AlertReceived", alert.id, response.pipeline),
        "AlertReceived",
        f"pipelines/{response.pipeline}/alerts/{alert.id}",
        response.at or found.received_at,
        {
            "pipeline": response.pipeline,
            "alert": alert.id,
            "alert_id": alert.alert_id,
            "rule": alert.rule,
            "severity": alert.severity,
            "signal": alert.signal.value,
            "description": alert.description,
            "targets": list(alert.targets),
            "dimensions": to_builtins(alert.dimensions),
            "fired_at": alert.fired_at.isoformat() if alert.fired_at else None,
        },
        cause=found.cause,
    )


# ------------------------------------------------------------------------------------------------ what there is
def read(ports: Ports, id_: str) -> AlertRecord:
    """Raises `NotFound`."""
    row = ports.ledger.get(books.ALERTS, _key(id_))
    if row is None:
        raise NotFound(f"no alert {id_!r}", alert=id_)
    return from_builtins(AlertRecord, row.value)


def page(ports: Ports, pipeline: str | None = None, limit: int = 50, after: str = "") -> tuple[list[Json], str | None]:
    """Alerts as `shown`, the newest first, and where the next page begins (None: nowhere). Those that no rule fits are
    among them, with no responses; of one `pipeline`, those that a rule of its fits: a page may then hold fewer."""
    rows, following = _page(ports, "recent/", limit, after)
    found = [shown(read(ports, row["id"])) for row in rows]
    if pipeline is not None:
        found = [each for each in found if any(one["pipeline"] == pipeline for one in each["responses"])]
    return found, following


def misfits(ports: Ports, limit: int = 50, after: str = "") -> tuple[list[Json], str | None]:
    """Events that were no alerts, the newest first, in pages."""
    return _page(ports, "misfit/", limit, after)


def _page(ports: Ports, prefix: str, limit: int, after: str) -> tuple[list[Json], str | None]:
    rows = ports.ledger.scan(books.ALERTS, prefix, prefix + after if after else "", limit=limit + 1)
    return [row.value for row in rows[:limit]], rows[limit - 1].key.removeprefix(prefix) if len(rows) > limit else None


def shown(found: AlertRecord) -> Json:
    """An alert as people see it."""
    alert = to_builtins(found.alert)
    state = "resolved" if found.resolved_at is not None else "fired"
    hidden = ("condition", "resolved_at")
    return {
        **{key: value for key, value in alert.items() if key not in hidden},
        "state": state,
        "resolved_at": found.resolved_at.isoformat() if found.resolved_at else None,
        "received_at": found.received_at.isoformat(),
        "door": found.door,
        "responses": [
            {
                "pipeline": each.pipeline,
                "rule": each.name,
                "action": each.action.value,
                "until": each.until.value if each.until else None,
                "state": each.state.value,
                "detail": each.detail,
                "at": each.at.isoformat() if each.at else None,
            }
            for each in found.responses
        ],
    }


def _response(found: AlertRecord, name: str) -> Response:
    for each in found.responses:
        if each.pipeline == name:
            return each
    raise NotFound(f"alert {found.alert.id!r} asks nothing of pipeline {name!r}", alert=found.alert.id, pipeline=name)


def _key(id_: str) -> str:
    return f"alert/{id_}"


_LATEST = datetime(5000, 1, 1, tzinfo=UTC)


def _counting_down(at: datetime) -> str:
    """A key that sorts the newest first."""
    return f"{(_LATEST - at) // timedelta(microseconds=1):018d}"
