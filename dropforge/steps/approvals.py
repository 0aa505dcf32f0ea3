"""Questions put to a person: asked once, answered once, with a default when nobody answers in time."""

from __future__ import annotations

from datetime import datetime

from dropforge.domain.errors import BadInput, Conflict, NotFound, Refused
from dropforge.domain.events import DomainEvent
from dropforge.domain.names import id_of
from dropforge.ports import Delete, Insert, Json, Ports
from dropforge.steps import books, outbox, train

ANSWERS = ("approve", "reject")
NOBODY = "nobody: the question expired"


def _key(run: str) -> str:
    return f"approval/{run}"


def _open_key(run: str) -> str:
    """The row that stands beside a question for as long as it is open: so that open ones are found among many."""
    return f"asking/{run}"


def ask(ports: Ports, pipeline: str, run: str, flow: str, now: datetime) -> Json:
    """Put the question; asked again, it is the question asked before. Returns when it expires."""
    found = train.record(ports, pipeline, run)
    gate = books.pipeline(ports.ledger, pipeline).spec.gate
    question: Json = {
        "run": run,
        "pipeline": pipeline,
        "question": f"Promote version {found.model_version} of {pipeline}? {found.verdict_summary}",
        "allowed": list(ANSWERS),
        "approvers": list(gate.approvers),
        "asked_at": now.isoformat(),
        "expires_at": (now + gate.ask_timeout).isoformat(),
        "default": gate.ask_default,
        # The flow that waits; an answer wakes it.
        "flow": flow,
        "answer": None,
        "by": None,
        "reason": None,
        "answered_at": None,
    }
    partition = books.partition_of(pipeline)
    event = DomainEvent(
        id_of("ApprovalRequested", run),
        "ApprovalRequested",
        f"pipelines/{pipeline}/runs/{run}",
        now,
        shown(question),
        cause=found.cause,
    )
    try:
        ports.ledger.commit(partition, [Insert(_key(run), question), Insert(_open_key(run), {}), outbox.entry(event)])
    except Conflict:
        question = _row(ports, pipeline, run)
    outbox.flush(ports, partition)
    return {"expires_at": question["expires_at"]}


def answer(
    ports: Ports, pipeline: str, run: str, given: str, by: str, now: datetime, reason: str | None = None
) -> Json:
    """Write the first answer down; the same answer again changes nothing, another one is `Refused`.

    So is an answer after the question has expired: its default has been taken then. Returns the event that wakes the
    waiting flow.
    """
    if given not in ANSWERS:
        raise BadInput(f"answer {given!r} is not one of {', '.join(ANSWERS)}", run=run)
    found = _expired(ports, pipeline, run, now)
    if found["answer"] is None:
        _check_may_answer(found, by)
        found = _decide(ports, found, given, by, reason, now)
    if found["answer"] != given or found["by"] == NOBODY:
        raise Refused(f"run {run} was answered with {found['answer']!r} by {found['by']}", run=run)
    return {"flow": found["flow"], "event": f"answer-{run}"}


def read_answer(ports: Ports, pipeline: str, run: str, now: datetime) -> str | None:
    """The answer; when the question has expired unanswered, its default by nobody; None while it waits."""
    try:
        given = _expired(ports, pipeline, run, now)["answer"]
    except NotFound:
        return None
    return str(given) if given is not None else None


def question(ports: Ports, pipeline: str, run: str) -> Json:
    """One question, open or not. Raises `NotFound`."""
    return shown(_row(ports, pipeline, run))


def open_questions(ports: Ports, pipeline: str) -> list[Json]:
    """Questions that wait for an answer."""
    partition = books.partition_of(pipeline)
    runs = [row.key.partition("/")[2] for row in books.every(ports.ledger, partition, "asking/")]
    return [shown(_row(ports, pipeline, run)) for run in runs]


def shown(value: Json) -> Json:
    """A question as people see it: without the flow that waits for it."""
    state = "open" if value["answer"] is None else "expired" if value["by"] == NOBODY else "answered"
    return {**{key: each for key, each in value.items() if key != "flow"}, "state": state}


def _row(ports: Ports, pipeline: str, run: str) -> Json:
    row = ports.ledger.get(books.partition_of(pipeline), _key(run))
    if row is None:
        raise NotFound(f"run {run!r} of {pipeline!r} asks nothing", run=run, pipeline=pipeline)
    return row.value


def _expired(ports: Ports, pipeline: str, run: str, now: datetime) -> Json:
    """The question, with its default written down as the answer once it has expired. Raises `NotFound`."""
    found = _row(ports, pipeline, run)
    if found["answer"] is None and now >= datetime.fromisoformat(found["expires_at"]):
        return _decide(ports, found, found["default"], NOBODY, None, now)
    return found


def _decide(ports: Ports, found: Json, given: str, by: str, reason: str | None, now: datetime) -> Json:
    """Write the answer down, unless there is one; the question as it is then."""

    def write(value: Json) -> Json | None:
        if value["answer"] is not None:
            return None
        return {**value, "answer": given, "by": by, "reason": reason, "answered_at": now.isoformat()}

    run = found["run"]
    partition = books.partition_of(found["pipeline"])
    return books.change(ports.ledger, partition, _key(run), write, lambda _: [Delete(_open_key(run))])


def _check_may_answer(found: Json, by: str) -> None:
    """A pipeline that names its approvers takes nobody else's answer. `by` may say more behind the name, in brackets."""
    approvers = found["approvers"]
    if approvers and by.partition(" (")[0] not in approvers:
        raise Refused(
            f"run {found['run']} may be answered by {', '.join(approvers)} (gate.approvers); you are {by}",
            run=found["run"],
        )
