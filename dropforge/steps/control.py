"""Storm control, for every door: who holds a pipeline, how far its own news may come back to it, when it must stop.

A pipeline that is held still takes files and events down; nothing is cut, trained or promoted by itself until it goes on.
A batch or a run that is under way is finished. One row per pipeline, `control`:

    holds        people's and alerts' pauses; the pipeline goes on when the last one is gone
    paused       the oldest of them, or None
    held_for     the alerts that have held it, the newest last: none holds it twice
    breaker      why nothing is trained any more, after too many failures in a row; None while it is closed
    failures     training runs in a row without a usable model; `counted`: the last run that was counted
    rolled_back  when an alert last put an earlier champion back, and which
    refused      the newest of what was refused because it came round too often
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TypeAlias

from dropforge.domain.causes import Cause
from dropforge.domain.errors import Conflict, Refused
from dropforge.ports import Insert, Json, Ledger, Ports, Replace, Write
from dropforge.settings import settings
from dropforge.steps import books

KEY = "control"
EMPTY: Json = {
    "paused": None,
    "holds": [],
    "held_for": [],
    "breaker": None,
    "failures": 0,
    "counted": None,
    "rolled_back": None,
    "refused": [],
}
# What goes into the same commit, given the row's new value: always, also when the row stays as it is.
Also: TypeAlias = Callable[[Json], Sequence[Write]]
MOST_HOLDS = 100
MOST_REFUSED = 10
# The alerts about a bad model go on for as long as their windows look back; each of them putting one more champion back
# would end at the first model ever.
ROLLBACK_REST = timedelta(minutes=15)


def read(ledger: Ledger, partition: str) -> Json:
    """What holds the pipeline."""
    row = ledger.get(partition, KEY)
    return EMPTY | row.value if row is not None else dict(EMPTY)


def is_paused(ledger: Ledger, partition: str) -> bool:
    return read(ledger, partition)["paused"] is not None


def trouble(ledger: Ledger, partition: str) -> str | None:
    """What keeps the pipeline from going on and what to do about it, in one sentence; None when nothing does."""
    return _trouble(partition.removeprefix("p."), read(ledger, partition))


def _trouble(name: str, held: Json) -> str | None:
    if held["breaker"] is not None:
        return str(held["breaker"]["reason"])
    if held["paused"] is not None:
        first = held["paused"]
        end = "its alert is resolved or `resume`" if first.get("until") == "resolved" else "`resume`"
        return f"pipeline {name!r} was paused by {first['by']} ({first['reason']}); {end} lets it go on"
    return None


def check_free(ports: Ports, name: str, *, trains: bool = True) -> None:
    """Raises `Refused` that says who holds the pipeline and what to do; the breaker holds only what `trains`."""
    held = read(ports.ledger, books.partition_of(name))
    reason = _trouble(name, held if trains else {**held, "breaker": None})
    if reason is not None:
        raise Refused(reason, pipeline=name)


# ------------------------------------------------------------------------------------------------ pauses
def pause(ports: Ports, name: str, by: str, reason: str, now: datetime, also: Also | None = None) -> Json:
    """Hold the pipeline for a person, until one lets it go on. A person's pause that stands already stands. Returns what
    holds it. With `also`, raises `Conflict` as `change` does."""
    hold = {"by": by, "reason": reason, "at": now.isoformat(), "alert": None, "until": "resumed"}

    def held(value: Json) -> Json | None:
        if any(each["alert"] is None for each in value["holds"]):
            return None
        holds = [*value["holds"], hold]
        return {**value, "holds": holds, "paused": holds[0]}

    return change(ports, name, held, also)


def pause_for_alert(ports: Ports, name: str, alert: str, by: str, reason: str, until: str, now: datetime) -> Json:
    """Hold the pipeline for an alert (by its id), `until` it is `resolved` or a person has `resumed` it. Once: also when
    a person has let the pipeline go on since."""
    hold = {"by": by, "reason": reason, "at": now.isoformat(), "alert": alert, "until": until}

    def held(value: Json) -> Json | None:
        if alert in value["held_for"]:
            return None
        holds = [*value["holds"], hold]
        if len(holds) > MOST_HOLDS:
            # Alerts that are never resolved must not fill the row: the last ones hold it together, for a person to end.
            holds = [*holds[: MOST_HOLDS - 1], {**hold, "until": "resumed"}]
        return {**value, "holds": holds, "paused": holds[0], "held_for": [*value["held_for"], alert][-MOST_HOLDS:]}

    return change(ports, name, held)


def release(ports: Ports, name: str, alert: str) -> bool:
    """End the pause that this alert began, if it is one that the alert's end ends; whether the pipeline is free now."""

    def freed(value: Json) -> Json | None:
        left = [each for each in value["holds"] if each["alert"] != alert or each["until"] != "resolved"]
        return {**value, "holds": left, "paused": left[0] if left else None}

    return change(ports, name, freed)["paused"] is None


def resume(ports: Ports, name: str, also: Also | None = None) -> bool:
    """Let the pipeline go on: every pause ends and the breaker is reset; whether anything held it. What has been waiting
    is started by `pipelines.resume`. With `also`, raises `Conflict` as `change` does."""
    held: list[bool] = []

    def free(value: Json) -> Json:
        held.append(value["paused"] is not None or value["breaker"] is not None)
        return {**value, "holds": [], "paused": None, "breaker": None, "failures": 0}

    change(ports, name, free, also)
    return held[-1]


# ------------------------------------------------------------------------------------------------ breaker
def count_run(ports: Ports, name: str, run: str, failed: bool, reason: str | None, now: datetime) -> None:
    """Count how a training run ended, once: too many failures in a row open the breaker, a usable model starts anew."""
    most = books.pipeline(ports.ledger, name).spec.budget.max_failures

    def counted(value: Json) -> Json | None:
        if value["counted"] == run:
            return None
        failures = value["failures"] + 1 if failed else 0
        breaker = value["breaker"]
        if failures >= most and breaker is None:
            said = (
                f"training is stopped: {failures} {'runs' if failures > 1 else 'run'} in a row left no usable model, "
                f"the last one, {run}: {_short(reason or 'no reason given')}; mend it, then `resume` {name!r}"
            )
            breaker = {"at": now.isoformat(), "failures": failures, "run": run, "reason": said}
        return {**value, "failures": failures, "counted": run, "breaker": breaker}

    change(ports, name, counted)


def is_broken(ledger: Ledger, partition: str) -> bool:
    """Whether the breaker holds training."""
    return read(ledger, partition)["breaker"] is not None


def take_rollback(
    ports: Ports, name: str, alert: str, rest: timedelta | None, now: datetime, taken_back_at: datetime | None = None
) -> None:
    """Note that an alert puts the champion before this one back; the same alert again changes nothing.

    Raises `Refused` when another one did within the rest, or the platform itself took a deployment back (`taken_back_at`):
    this one may still be about the model that is gone.
    """
    least = max(rest or ROLLBACK_REST, ROLLBACK_REST)

    def taken(value: Json) -> Json | None:
        last = value["rolled_back"]
        if last is not None and last["alert"] == alert:
            return None
        if last is not None and now < (free := datetime.fromisoformat(last["at"]) + least):
            raise Refused(
                f"an alert rolled {name!r} back at {last['at']}, and the next may at {free.isoformat()}: it may be about "
                "the model that is gone. A person may at any time: `rollback`",
                pipeline=name,
            )
        if taken_back_at is not None and now < (free := taken_back_at + ROLLBACK_REST):
            raise Refused(
                f"the platform took the last deployment of {name!r} back at {taken_back_at.isoformat()}, and an alert may "
                f"roll back at {free.isoformat()}: it may be about the model that is gone. A person may at any time: "
                "`rollback`",
                pipeline=name,
            )
        return {**value, "rolled_back": {"at": now.isoformat(), "alert": alert}}

    change(ports, name, taken)


# ------------------------------------------------------------------------------------------------ loops
def check_hops(cause: Cause | None, most: int | None = None) -> None:
    """Raises `Refused` for what comes from the platform's own news more than `most` times over (the setting
    DROPFORGE_MAX_HOPS unless told otherwise)."""
    limit = settings().max_hops if most is None else most
    if cause is not None and cause.hops > limit:
        raise Refused(
            f"this was asked {cause.hops} hops from where it began ({cause.door} {_short(cause.id)}), and DROPFORGE_MAX_HOPS "
            f"is {limit}: something acts on the platform's events and makes the platform tell new ones. Break that loop",
            hops=cause.hops,
        )


def admit(ports: Ports, name: str, cause: Cause | None, now: datetime, most: int | None = None) -> None:
    """`check_hops`, with what it refuses noted where `dropforge status` shows it."""
    try:
        check_hops(cause, most)
    except Refused as error:
        note_refusal(ports, name, cause, error.message, now)
        raise


def note_refusal(ports: Ports, name: str, cause: Cause | None, reason: str, now: datetime) -> None:
    """Note what was refused, the newest first; the same thing again is not noted again."""
    what = f"{cause.door} {cause.id}" if cause is not None else ""
    noted = {"at": now.isoformat(), "what": _short(what), "reason": reason}

    def put(value: Json) -> Json | None:
        if any(each["what"] == noted["what"] and each["reason"] == reason for each in value["refused"]):
            return None
        return {**value, "refused": [noted, *value["refused"]][:MOST_REFUSED]}

    change(ports, name, put)


# ------------------------------------------------------------------------------------------------ the row
def change(ports: Ports, name: str, update: Callable[[Json], Json | None], also: Also | None = None) -> Json:
    """Change the pipeline's row; `update` gets every key. Returns the row. Raises `NotFound` for an unknown pipeline.

    With `also` it is tried once, and `Conflict` raised when the row or one of those others was changed meanwhile: only
    the caller knows whether they may be written again.
    """
    partition = books.pipeline(ports.ledger, name).partition
    if ports.ledger.get(partition, KEY) is None:
        with suppress(Conflict):
            ports.ledger.commit(partition, [Insert(KEY, dict(EMPTY))])
    if also is None:
        return books.change(ports.ledger, partition, KEY, lambda value: update(EMPTY | value))
    row = ports.ledger.get(partition, KEY)
    assert row is not None
    before = EMPTY | row.value
    value = update(before) or before
    ports.ledger.commit(partition, [Replace(KEY, value, row.etag), *also(value)])
    return value


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:300]}…"
