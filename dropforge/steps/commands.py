"""Commands, whichever door they came through: understood once, decided once, carried out until it is done.

A command is one row, `command/<id>`, in its pipeline's partition (in `commands` when it names no pipeline there is):

    1. plan      the row, with everything that must not be decided twice (which files `replay` means)
    2. effect    safe to repeat, because it is made of the plan and the command's id
    3. outcome   in one commit with the answer to who asked; from here on it is what a repetition is told
    4. carrying  flows started and woken by the door, under ids made of the command's

Where the effect is a row beside it, or only begins with the flow, the first three are one commit.

A crash between any two of them is mended by whoever comes next: the message's redelivery, the asker's repetition, or the
sweep, which finds what is not carried out by its row `todo/<id>`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from dropforge.domain.arrivals import ArrivalState
from dropforge.domain.causes import Cause
from dropforge.domain.commands import MAX_TEXT, Command, Kind, shown
from dropforge.domain.commands import parse as parse
from dropforge.domain.commands import read as read
from dropforge.domain.errors import Conflict, DropforgeError, NotFound, Reused
from dropforge.domain.events import Reply
from dropforge.domain.names import id_of
from dropforge.ports import Delete, Insert, Json, Ports, Replace, Row, Write
from dropforge.settings import Settings
from dropforge.steps import approvals, books, control, deploy, intake, outbox, pipelines, reconcile, tracing, train
from dropforge.wire import from_builtins, to_builtins

# What one `replay` puts back at most: the plan and the answer name every file.
MAX_REPLAYED = 2000
# How long the door that took a command in is left to carry it out before the sweep does.
GRACE = timedelta(seconds=30)
# The etag of a row that is yet to be written.
NEW = ""

log = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------------ taking in
def reject(
    ports: Ports,
    *,
    id_: str,
    raw: bytes,
    by: str,
    error: DropforgeError,
    now: datetime,
    correlation: str | None = None,
    reply_to: str | None = None,
    reply_session: str | None = None,
) -> None:
    """Write down a command that cannot be understood, and answer it; the same message again is not written again."""
    key = id_of(id_, raw.hex())
    value: Json = {
        "id": id_,
        "by": by,
        "asked_at": now.isoformat(),
        "body": raw[:MAX_TEXT].decode(errors="replace"),
        "error": _problem(error),
    }
    writes: list[Write] = [Insert(f"rejected/{key}", value)]
    if reply_to is not None:
        body: Json = {"id": id_, "command": None, "pipeline": None, "state": "rejected", "result": None}
        body["error"] = value["error"]
        told = Reply(id_of("rejected", key), reply_to, now, body, correlation or id_, reply_session)
        writes.append(outbox.entry(told))
    try:
        ports.ledger.commit(books.COMMANDS, writes)
    except Conflict:
        log.info("command %s is rejected again: %s", id_, error)
    outbox.flush(ports, books.COMMANDS)


# ------------------------------------------------------------------------------------------------ carrying out
def accept(ports: Ports, settings: Settings, command: Command, now: datetime) -> Json:
    """Do what the command asks, once: `{"id", "command", "pipeline", "state": "done" | "refused", "result", "error",
    "start": [flows], "raise": [{"flow", "event"}], "repeated"}`.

    The caller starts the flows, raises the events and then calls `carried`. The same command again is told the same,
    and `repeated`; with flows to start only if nobody has said yet that they were. Raises `Reused` when the id was
    another command's, and what may go better next time (`Unavailable`, `Conflict`).
    """
    partition = _partition(ports, command)
    key = _key(command.id)
    repeated = True
    while True:
        row = ports.ledger.get(partition, key)
        if row is None:
            _plan(ports, settings, partition, command, now)
        else:
            _check_same(row.value, command)
            if row.value["outcome"] is not None:
                return {**row.value["outcome"], **_to_carry(ports, partition, row.value), "repeated": repeated}
            _settle(_Work(ports, settings, partition, row, command, now))
        repeated = False


def carried(ports: Ports, told: Json) -> None:
    """What the command asked for has been started and woken: say so, and tell who waits for it.

    Not of a deployment: until it is published, nothing else says that it is wanted, should its flow fail. The sweep looks.
    """
    if (told["start"] or told["raise"]) and not any(_deploys(flow) for flow in told["start"]):
        ports.ledger.commit(books.partition_of(told["pipeline"]), [Delete(_todo(told["id"]))])
    outbox.flush(ports, books.partition_of(told["pipeline"]))
    if told["state"] == "refused":
        outbox.flush(ports, books.COMMANDS)


def record(ports: Ports, pipeline: str, id_: str) -> Json:
    """A command as the ledger keeps it. Raises `NotFound`."""
    for partition in (books.partition_of(pipeline), books.COMMANDS):
        row = ports.ledger.get(partition, _key(id_))
        if row is not None and row.value["pipeline"] == pipeline:
            return row.value
    raise NotFound(f"pipeline {pipeline!r} was never given a command {id_!r}", command=id_, pipeline=pipeline)


def sweep(ports: Ports, settings: Settings, now: datetime) -> list[Json]:
    """Carry on with what a crash left lying: commands with flows to start and events to raise, as `accept` says them."""
    found = []
    for pipeline in books.pipelines(ports.ledger):
        for todo in books.every(ports.ledger, pipeline.partition, "todo/"):
            row = ports.ledger.get(pipeline.partition, "command/" + todo.key.removeprefix("todo/"))
            if row is None or datetime.fromisoformat(row.value["asked_at"]) > now - GRACE:
                continue
            try:
                told = accept(ports, settings, _command(row.value), now)
            except DropforgeError as error:
                log.warning("command %s of %s is carried out later: %s", row.value["id"], pipeline.name, error)
                continue
            if told["start"] or told["raise"] or not told["repeated"]:
                found.append(told)
    return found


def _partition(ports: Ports, command: Command) -> str:
    """Where the command's row is, or belongs."""
    partition = books.partition_of(command.pipeline)
    if ports.ledger.get(partition, _key(command.id)) is not None:
        return partition
    known = ports.ledger.get(books.PIPELINES, f"pipeline/{command.pipeline}") is not None
    # Refused before its pipeline came to be: it stays refused.
    refused = ports.ledger.get(books.COMMANDS, _key(command.id))
    if not known or (refused is not None and refused.value["pipeline"] == command.pipeline):
        return books.COMMANDS
    return partition


def _key(id_: str) -> str:
    return f"command/{id_of(id_)}"


def _todo(id_: str) -> str:
    return f"todo/{id_of(id_)}"


def _plan(ports: Ports, settings: Settings, partition: str, command: Command, now: datetime) -> None:
    """Write the command down, with what is decided once; or refused, when that says so already."""
    tracing.came_in(command.cause, now, command=command.kind.value, pipeline=command.pipeline)
    value: Json = {
        "id": command.id,
        "command": command.kind.value,
        "pipeline": command.pipeline,
        "arguments": command.arguments,
        "by": command.by,
        "cause": to_builtins(command.cause),
        "reply_to": command.reply_to,
        "reply_session": command.reply_session,
        "asked_at": now.isoformat(),
        "plan": {},
        "outcome": None,
        "start": [],
        "raise": [],
        "waiting": False,
    }
    work = _Work(ports, settings, partition, Row(_key(command.id), value, NEW), command, now)
    try:
        books.pipeline(ports.ledger, command.pipeline)
        control.admit(ports, command.pipeline, command.cause, now, settings.max_hops)
        if command.kind in _PLANS:
            value["plan"] = _PLANS[command.kind](ports, command)
    except DropforgeError as error:
        if error.retryable:
            raise
        work.finish(error)
        return
    if command.kind in _AT_ONCE:
        _settle(work)
        return
    try:
        ports.ledger.commit(partition, [Insert(work.row.key, value), Insert(_todo(command.id), {})])
    except Conflict:
        log.info("command %s of %s is being planned elsewhere", command.id, command.pipeline)


def _settle(work: _Work) -> None:
    """Have the effect, and write down what came of it."""
    done: Done | DropforgeError | None
    try:
        done = _EFFECTS[work.command.kind](work)
    except DropforgeError as error:
        if error.retryable:
            raise
        done = error
    if done is not None:
        work.finish(done)


def _check_same(value: Json, command: Command) -> None:
    asked = (command.kind.value, command.pipeline, command.arguments)
    if (value["command"], value["pipeline"], value["arguments"]) != asked:
        raise Reused(
            f"id {command.id!r} was used at {value['asked_at']} for `{value['command']}` of {value['pipeline']!r} with "
            f"{shown(value['arguments'])}; give every command an id of its own",
            id=command.id,
        )


def _to_carry(ports: Ports, partition: str, value: Json) -> Json:
    """The flows to start and the events to raise, unless somebody has said that they were.

    What waits in the pipeline is looked up now and not when the command was decided: a flow of then may be over, and
    another alive in its place.
    """
    if ports.ledger.get(partition, _todo(value["id"])) is None:
        return {"start": [], "raise": []}
    asked_at = datetime.fromisoformat(value["asked_at"])
    start = [flow for flow in value["start"] if not (_deploys(flow) and deploy.is_settled(ports, flow, asked_at))]
    if value["waiting"]:
        start += pipelines.waiting(ports, books.pipeline(ports.ledger, value["pipeline"]))
    if not start and not value["raise"]:
        ports.ledger.commit(partition, [Delete(_todo(value["id"]))])
    return {"start": start, "raise": value["raise"]}


def _deploys(flow: Json) -> bool:
    return bool(flow["flow"] == "deploy")


def _command(value: Json) -> Command:
    return Command(
        id=value["id"],
        kind=Kind(value["command"]),
        pipeline=value["pipeline"],
        arguments=value["arguments"],
        by=value["by"],
        cause=from_builtins(Cause, value["cause"]),
        reply_to=value["reply_to"],
        reply_session=value["reply_session"],
    )


def _outcome(command: Command, done: Done | DropforgeError) -> Json:
    refused = isinstance(done, DropforgeError)
    return {
        "id": command.id,
        "command": command.kind.value,
        "pipeline": command.pipeline,
        "state": "refused" if refused else "done",
        "result": None if isinstance(done, DropforgeError) else done.result,
        "error": _problem(done) if isinstance(done, DropforgeError) else None,
    }


def _problem(error: DropforgeError) -> Json:
    return {"type": type(error).__name__, "status": error.http_status, "detail": error.message}


def _reply(command: Command, outcome: Json, now: datetime) -> list[Insert]:
    """The answer, for who asked for one; made of the command's id, so that it is one however often it is sent."""
    if command.reply_to is None:
        return []
    id_ = id_of("reply", command.pipeline, command.id)
    correlation = command.cause.correlation or command.id
    return [outbox.entry(Reply(id_, command.reply_to, now, outcome, correlation, command.reply_session))]


# ------------------------------------------------------------------------------------------------ what each one does
@dataclass(frozen=True)
class Done:
    """What came of a command, and what its door has to do about it."""

    result: Json
    # Flows whose steps do nothing when they are run once more, at any later time.
    start: list[Json] = field(default_factory=list)
    wake: list[Json] = field(default_factory=list)
    # Whether the flows for what waits in the pipeline are to be started.
    waiting: bool = False


@dataclass(frozen=True)
class _Work:
    """A command that is not settled; planned, or with a row that is yet to be written (its etag is `NEW`)."""

    ports: Ports
    settings: Settings
    partition: str
    row: Row
    command: Command
    now: datetime

    @property
    def plan(self) -> Json:
        plan: Json = self.row.value["plan"]
        return plan

    def writes(self, done: Done | DropforgeError) -> list[Write]:
        """What belongs into the commit that settles the command."""
        value = {**self.row.value, "outcome": _outcome(self.command, done)}
        todo = False
        if isinstance(done, Done):
            value |= {"start": done.start, "raise": done.wake, "waiting": done.waiting}
            todo = bool(done.start or done.wake or done.waiting)
        reply = _reply(self.command, value["outcome"], self.now)
        if self.row.etag == NEW:
            return [Insert(self.row.key, value), *reply, *([Insert(_todo(self.command.id), {})] if todo else [])]
        return [
            Replace(self.row.key, value, self.row.etag),
            *reply,
            *([] if todo else [Delete(_todo(self.command.id))]),
        ]

    def finish(self, done: Done | DropforgeError) -> None:
        """Settle the command, unless somebody else has."""
        try:
            self.ports.ledger.commit(self.partition, self.writes(done))
        except Conflict:
            log.info("command %s of %s was settled elsewhere", self.command.id, self.command.pipeline)


def _plan_deployment(ports: Ports, command: Command) -> Json:
    version = command.arguments.get("version")
    return deploy.by_hand(ports, command.pipeline, version, token=command.id, cause=command.cause)


def _plan_replay(ports: Ports, command: Command) -> Json:
    """Which files, and how often each was put back before: so that a repetition leaves alone what came back again."""
    one = command.arguments.get("arrival")
    ids = [str(one)] if one is not None else intake.quarantined(ports, command.pipeline)
    partition = books.partition_of(command.pipeline)
    chosen = [books.arrival(ports.ledger, partition, each) for each in ids[:MAX_REPLAYED]]
    files = {each.id: each.replays for each in chosen if each.state is ArrivalState.QUARANTINED}
    return {"files": files, "left": len(ids) - len(chosen)}


def _train(work: _Work) -> Done:
    command = work.command
    asked = train.ask(work.ports, command.pipeline, token=command.id, cause=command.cause, now=work.now)
    return Done({key: value for key, value in asked.items() if key != "start"}, waiting=True)


def _evaluate(work: _Work) -> Done:
    command = work.command
    version = command.arguments.get("version")
    asked = train.ask_evaluation(
        work.ports, command.pipeline, version, token=command.id, cause=command.cause, now=work.now
    )
    return Done({key: value for key, value in asked.items() if key != "start"}, waiting=True)


def _deploy(work: _Work) -> Done:
    flow = work.plan
    return Done({"version": flow["input"]["version"], "flow": flow["id"]}, start=[flow])


def _answer(work: _Work) -> Done:
    run, given, command = work.command.arguments["run"], work.command.kind.value, work.command
    reason = command.arguments.get("reason")
    wake = approvals.answer(work.ports, command.pipeline, run, given, command.by, work.now, reason)
    return Done({"run": run, "answer": given}, wake=[wake])


def _cancel(work: _Work) -> Done:
    run = work.command.arguments["run"]
    train.cancel_run(work.ports, work.command.pipeline, run)
    return Done({"run": run})


def _replay(work: _Work) -> Done:
    files = work.plan["files"]
    for id_, replays in files.items():
        intake.put_back(work.ports, work.partition, id_, replays, work.now)
    return Done({"replayed": list(files), "left": work.plan["left"]}, waiting=bool(files))


def _reconcile(work: _Work) -> Done:
    found = reconcile.reconcile(work.ports, work.command.pipeline, work.settings.drop_container, work.now)
    return Done({key: value for key, value in found.items() if key != "start"}, waiting=True)


def _pause(work: _Work) -> None:
    command = work.command
    reason = command.arguments.get("reason", "asked to")

    def settled(held: Json) -> Sequence[Write]:
        return work.writes(Done({"paused": held["paused"]}))

    _together(work, lambda: control.pause(work.ports, command.pipeline, command.by, reason, work.now, settled))


def _resume(work: _Work) -> None:
    def settled(_: Json) -> Sequence[Write]:
        return work.writes(Done({"paused": None}, waiting=True))

    _together(work, lambda: control.resume(work.ports, work.command.pipeline, settled))


def _together(work: _Work, effect: Callable[[], object]) -> None:
    """For an effect that another command undoes: it and the outcome are one commit, or repeating it would undo that."""
    try:
        effect()
    except Conflict:
        log.info("command %s of %s was settled elsewhere", work.command.id, work.command.pipeline)


_PLANS: Mapping[Kind, Callable[[Ports, Command], Json]] = {
    Kind.PROMOTE: _plan_deployment,
    Kind.ROLLBACK: _plan_deployment,
    Kind.REPLAY: _plan_replay,
}
# What needs no plan in the ledger first: its only effect is in the commit of its outcome, or comes after it.
_AT_ONCE = frozenset({Kind.PROMOTE, Kind.ROLLBACK, Kind.PAUSE, Kind.RESUME})
# What has the effect: given a second time, by another host or after a crash, it changes nothing more. None: settled.
_EFFECTS: Mapping[Kind, Callable[[_Work], Done | None]] = {
    Kind.TRAIN: _train,
    Kind.EVALUATE: _evaluate,
    Kind.PROMOTE: _deploy,
    Kind.ROLLBACK: _deploy,
    Kind.APPROVE: _answer,
    Kind.REJECT: _answer,
    Kind.CANCEL: _cancel,
    Kind.REPLAY: _replay,
    Kind.RECONCILE: _reconcile,
    Kind.PAUSE: _pause,
    Kind.RESUME: _resume,
}
