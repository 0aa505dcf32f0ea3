"""Questions put to a person: asked once, answered once, with a default when nobody answers."""

from __future__ import annotations

from datetime import datetime

from dropforge.domain.errors import BadInput, Conflict, NotFound, Refused
from dropforge.domain.events import DomainEvent
from dropforge.domain.names import id_of
from dropforge.ports import Insert, Json, Ports
from dropforge.steps import books, outbox, train

ANSWERS = ("approve", "reject")


def _key(run: str) -> str:
    return f"approval/{run}"


def ask(ports: Ports, pipeline: str, run: str, flow: str, now: datetime) -> Json:
    """Put the question; asked again, it is the question asked before. Returns when it expires."""
    found = train.record(ports, pipeline, run)
    timeout = books.pipeline(ports.ledger, pipeline).spec.gate.ask_timeout
    question: Json = {
        "run": run,
        "question": f"Promote version {found.model_version} of {pipeline}? {found.verdict_summary}",
        "allowed": list(ANSWERS),
        "asked_at": now.isoformat(),
        "expires_at": (now + timeout).isoformat(),
        # The flow that waits; an answer wakes it.
        "flow": flow,
        "answer": None,
        "by": None,
        "answered_at": None,
    }
    partition = books.partition_of(pipeline)
    event = DomainEvent(
        id_of("ApprovalRequested", run),
        "ApprovalRequested",
        f"pipelines/{pipeline}/runs/{run}",
        now,
        question,
        cause=found.cause,
    )
    try:
        ports.ledger.commit(partition, [Insert(_key(run), question), outbox.entry(event)])
    except Conflict:
        row = ports.ledger.get(partition, _key(run))
        assert row is not None
        question = row.value
    outbox.flush(ports, partition)
    return {"expires_at": question["expires_at"]}


def answer(ports: Ports, pipeline: str, run: str, given: str, by: str, now: datetime) -> Json:
    """Write the first answer down; the same answer again changes nothing, another one is `Refused`.

    Returns the event that wakes the waiting flow.
    """
    if given not in ANSWERS:
        raise BadInput(f"answer {given!r} is not one of {', '.join(ANSWERS)}", run=run)

    def write(value: Json) -> Json | None:
        if value["answer"] == given:
            return None
        if value["answer"] is not None:
            raise Refused(f"run {run} was answered with {value['answer']!r} by {value['by']}", run=run)
        return {**value, "answer": given, "by": by, "answered_at": now.isoformat()}

    try:
        value = books.change(ports.ledger, books.partition_of(pipeline), _key(run), write)
    except NotFound:
        raise NotFound(f"run {run!r} of {pipeline!r} asks nothing", run=run, pipeline=pipeline) from None
    return {"flow": value["flow"], "event": f"answer-{run}"}


def read_answer(ports: Ports, pipeline: str, run: str, now: datetime) -> str | None:
    """The answer; when the question has expired unanswered, `reject` by nobody; None while it waits."""
    row = ports.ledger.get(books.partition_of(pipeline), _key(run))
    if row is None:
        return None
    if row.value["answer"] is None and now >= datetime.fromisoformat(row.value["expires_at"]):
        answer(ports, pipeline, run, "reject", "nobody: the question expired", now)
        return "reject"
    given = row.value["answer"]
    return str(given) if given is not None else None


def open_questions(ports: Ports, pipeline: str) -> list[Json]:
    """Questions that wait for an answer."""
    rows = books.every(ports.ledger, books.partition_of(pipeline), "approval/")
    return [row.value for row in rows if row.value["answer"] is None]
