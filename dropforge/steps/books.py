"""How the ledger is laid out: which rows there are, and how each is read and changed.

partition `pipelines`     pipeline/<name>          spec text, code artifact, revision
partition `p.<name>`      head                     counters: last batch, open batch, last dataset version, live run, ...
                          arrival/<id>             one (url, etag)
                          pending/<time>-<id>      an arrival no finished batch holds yet
                          seen/<path>              the newest write known of a file name: see `arrivals` for these three
                          gone/<batch>/<arrival>   an accepted file that is no longer where it came from
                          held/<sha256>/<url id>   which accepted file brought these bytes under that name
                          batch/<n>                arrivals claimed together
                          dataset/<n>              a dataset version
                          run/<run>                a run: what was asked, what became of it
                          asked/<id>               a run that somebody asked for: which run it became
                          approval/<run>           a question put to a person
                          control                  whether people or the breaker hold it: see `control`
                          command/<id>             a command and its answer; todo/<id>: not carried out: see `commands`
                          outbox/<time>-<id>       what is still to be told (in every partition with facts); late/ and
                                                   untold/<place>/<time>-<id>: what could not be: see `outbox`
                          lane/<kind>              see `lanes`
partition `m.<model>`     see the registry adapter
partition `e.<endpoint>`  head                     the desired state, its revision, and what it was for
                          token/<id>               a deployment that was published, and as which revision
partition `storage`       counts, misfit/<slot>    storage events that brought no file: see `storage`
partition `alerts`        alert/<id>               an alert, what became of it: see `alerts`
partition `commands`      command/<id>             a command that names no pipeline there is
                          rejected/<id>            a message that was no command, and what was wrong with it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from dropforge.domain.alerts import Rule
from dropforge.domain.arrivals import Arrival
from dropforge.domain.canary import Rules as CanaryRules
from dropforge.domain.datasets import Batch, Column, DatasetVersion
from dropforge.domain.errors import Conflict, NotFound
from dropforge.domain.gate import Policy
from dropforge.domain.names import id_of
from dropforge.ports import Delete, Insert, Json, Ledger, Replace, Row, TableRules, Write
from dropforge.wire import from_builtins, to_builtins

if TYPE_CHECKING:
    from dropforge.spec.model import PipelineSpec

PIPELINES = "pipelines"
ALERTS = "alerts"
COMMANDS = "commands"
# Partitions with an outbox that belong to no pipeline.
OTHER_PARTITIONS = (ALERTS, COMMANDS)


@dataclass(frozen=True)
class Pipeline:
    """A pipeline as it was last applied."""

    name: str
    text: str
    code: str
    code_sha256: str
    # Made of everything that training depends on: another key, another run on the same dataset version.
    training_key: str
    revision: int
    applied_at: datetime
    spec: PipelineSpec

    @property
    def partition(self) -> str:
        return f"p.{self.name}"


def partition_of(pipeline: str) -> str:
    return f"p.{pipeline}"


def endpoint_partition(endpoint: str) -> str:
    return f"e.{endpoint}"


def endpoint_name(pipeline: Pipeline) -> str:
    """The endpoint that serves its champion."""
    return pipeline.spec.deployment.endpoint or pipeline.name


def endpoint_head(ledger: Ledger, endpoint: str) -> Row | None:
    """What the endpoint is to serve, and how far that is; None before anything was deployed to it."""
    return ledger.get(endpoint_partition(endpoint), "head")


def run_key(run: str) -> str:
    return f"run/{run}"


def token_key(token: str) -> str:
    """Of a deployment that was published, in its endpoint's partition."""
    return f"token/{id_of(token)}"


def pipeline(ledger: Ledger, name: str) -> Pipeline:
    """The pipeline of that name. Raises `NotFound` that lists the pipelines there are."""
    row = ledger.get(PIPELINES, f"pipeline/{name}")
    if row is None:
        known = [each.key.partition("/")[2] for each in ledger.scan(PIPELINES, "pipeline/", limit=20)]
        raise NotFound(
            f"no pipeline {name!r}; there {'are ' + ', '.join(known) if known else 'is none yet: `dropforge init` makes one'}",
            pipeline=name,
        )
    return _pipeline(row)


def pipelines(ledger: Ledger) -> list[Pipeline]:
    """Every pipeline, by name."""
    return [_pipeline(row) for row in every(ledger, PIPELINES, "pipeline/")]


def _pipeline(row: Row) -> Pipeline:
    value = row.value
    return Pipeline(
        name=value["name"],
        text=value["text"],
        code=value["code"],
        code_sha256=value["code_sha256"],
        training_key=value["training_key"],
        revision=value["revision"],
        applied_at=datetime.fromisoformat(value["applied_at"]),
        spec=parse_spec(value["text"]),
    )


@lru_cache(maxsize=256)
def parse_spec(text: str) -> PipelineSpec:
    """The spec a `pipeline.yaml` holds. Raises `BadSpec`."""
    # Not at the top: pydantic would be a third of the app's cold start, and a trigger's first answer may not need it.
    from dropforge.spec.load import parse

    return parse(text)


def rules(of: Pipeline, known: tuple[Column, ...]) -> TableRules:
    """What a file of this pipeline must be, given the columns its table has already."""
    from dropforge.spec.load import to_rules

    return to_rules(of.spec, known)


def policy(of: Pipeline) -> Policy:
    """What the pipeline's gate does with each verdict."""
    from dropforge.spec.load import to_policy

    return to_policy(of.spec)


def canary_rules(of: Pipeline) -> CanaryRules | None:
    """How the traffic of a promoted model grows; None: it gets all at once."""
    from dropforge.spec.load import to_canary_rules

    return to_canary_rules(of.spec)


def alert_rules(spec: PipelineSpec) -> tuple[Rule, ...]:
    """What a pipeline does about alerts."""
    from dropforge.spec.load import to_alert_rules

    return to_alert_rules(spec)


# ------------------------------------------------------------------------------------------------ head
EMPTY_HEAD: Json = {
    "batch": 0,  # number of the last batch cut
    "open": None,  # number of the batch being worked on
    "full": 0,  # number of the last batch that was said to be full before it was cut
    "version": 0,  # last dataset version
    "run": None,  # the live run
    "considered": None,  # the (dataset version, code) that was last trained on or decided against
    "asked": [],  # runs that somebody asked for and that have not started: see `train.ask`
    "trouble": None,  # what keeps a flow from going on
}


def head(ledger: Ledger, partition: str) -> Row:
    """The pipeline's counters; made on first use."""
    while True:
        row = ledger.get(partition, "head")
        if row is not None:
            return row
        try:
            ledger.commit(partition, [Insert("head", dict(EMPTY_HEAD))])
        except Conflict:
            continue


def note_trouble(ledger: Ledger, name: str, message: str | None) -> None:
    """Say on one line what keeps a flow from going on; None when nothing does any more."""
    if message is not None:
        # The SDK puts the host's exception as JSON behind the reason.
        message = " ".join(message.partition(" \n {")[0].split())[:1000]
    head(ledger, partition_of(name))
    change(
        ledger,
        partition_of(name),
        "head",
        lambda row: {**row, "trouble": message} if row.get("trouble") != message else None,
    )


def change(
    ledger: Ledger,
    partition: str,
    key: str,
    update: Callable[[Json], Json | None],
    also: Callable[[Json], Sequence[Write]] = lambda _: (),
) -> Json:
    """Read, change, compare-and-set, until it holds; `update` returns None to leave the row as it is.

    `also`: what goes into the same commit, given the new value; nothing does when the row is left as it is. Returns the
    row's value afterwards. Raises `NotFound` when there is no such row.
    """
    while True:
        row = ledger.get(partition, key)
        if row is None:
            raise NotFound(f"no row {key!r} in {partition!r}", key=key, partition=partition)
        value = update(row.value)
        if value is None or value == row.value:
            return row.value
        try:
            ledger.commit(partition, [Replace(key, value, row.etag), *also(value)])
        except Conflict:
            continue
        return value


def every(ledger: Ledger, partition: str, prefix: str) -> Iterator[Row]:
    """All rows under the prefix, a page at a time."""
    after = ""
    while page := ledger.scan(partition, prefix, after):
        yield from page
        after = page[-1].key


# ------------------------------------------------------------------------------------------------ arrivals
def pending_key(arrival: Arrival) -> str:
    return f"pending/{arrival.arrived_at.astimezone(UTC).isoformat(timespec='microseconds')}-{arrival.id}"


def arrival(ledger: Ledger, partition: str, id_: str) -> Arrival:
    """Raises `NotFound`."""
    row = ledger.get(partition, f"arrival/{id_}")
    if row is None:
        raise NotFound(f"no arrival {id_!r}", arrival=id_)
    return from_builtins(Arrival, row.value)


# ------------------------------------------------------------------------------------------------ batches, versions
def batch_key(number: int) -> str:
    return f"batch/{number:08d}"


def dataset_key(version: int) -> str:
    return f"dataset/{version:08d}"


def batch(ledger: Ledger, partition: str, number: int) -> Batch:
    """Raises `NotFound`."""
    row = ledger.get(partition, batch_key(number))
    if row is None:
        raise NotFound(f"no batch {number}", batch=number)
    return from_builtins(Batch, row.value)


def dataset_version(ledger: Ledger, partition: str, version: int) -> DatasetVersion:
    """Raises `NotFound`."""
    row = ledger.get(partition, dataset_key(version))
    if row is None:
        raise NotFound(f"no dataset version {version}", version=version)
    return from_builtins(DatasetVersion, row.value)


def finish_batch(ledger: Ledger, partition: str, finished: Batch) -> None:
    """Take the batch's arrivals off the pending list and close it. Safe to call again."""
    keys = finished.claimed
    for start in range(0, len(keys), 90):
        ledger.commit(partition, [Delete(key) for key in keys[start : start + 90]])
    value = to_builtins(finished)
    change(ledger, partition, batch_key(finished.number), lambda _: value)
    change(
        ledger,
        partition,
        "head",
        lambda row: {**row, "open": None} if row["open"] == finished.number else None,
    )
