"""Model version in, endpoint serving it out; or rolled back."""

from __future__ import annotations

from datetime import datetime, timedelta

from dropforge import telemetry
from dropforge.domain.causes import Cause
from dropforge.domain.endpoints import PROVISIONING, Deployment, ReplicaState
from dropforge.domain.errors import Conflict, Refused
from dropforge.domain.events import DomainEvent
from dropforge.domain.models import CHAMPION, ModelVersion, standing
from dropforge.domain.names import id_of
from dropforge.ports import Insert, Json, Ports, Replace, Row
from dropforge.settings import Settings
from dropforge.steps import books, canary, outbox, tracing, train
from dropforge.steps.books import Pipeline, endpoint_partition
from dropforge.steps.desired import SUPERSEDED, SWAP, tell_replicas
from dropforge.wire import from_builtins, to_builtins

# Azure ML takes 8 to 20 minutes for a deployment, most of it for its machines.
PROVISIONING_TIME = timedelta(minutes=45)
# A head goes from `converging` by `confirming` to `live`. In between the champion is named; nothing is taken back any more.
CONFIRMING = "confirming"


def publish_deployment(
    ports: Ports,
    name: str,
    version: int,
    run: str | None,
    token: str,
    settings: Settings,
    now: datetime,
    cause: Json | None = None,
    rollback: bool = False,
) -> Json:
    """Write the desired state that puts a model version behind the pipeline's endpoint, and tell the replicas.

    For a `run`, the champion must still be the one the run was judged against; when it is not, nothing is changed and
    `refused` says so. `token` names this deployment: it is published once, and the same token again, at any later time,
    is told what became of it. `cause` is why (a run brings its own); `rollback` whether it is to put an earlier one back.
    """
    told = _publish(ports, name, version, run, token, now, cause, rollback)
    return told if told["state"] == "refused" else {**told, "poll_seconds": settings.deploy_poll_seconds}


def publish_asked(ports: Ports, flow: Json, now: datetime) -> None:
    """Publish what a flow of `by_hand` is to deploy, ahead of the flow: from then on the sweep knows of it. Once."""
    asked = flow["input"]
    _publish(ports, asked["pipeline"], asked["version"], None, flow["id"], now, asked["cause"], asked["rollback"])


def _publish(
    ports: Ports,
    name: str,
    version: int,
    run: str | None,
    token: str,
    now: datetime,
    cause: Json | None,
    rollback: bool,
) -> Json:
    pipeline = books.pipeline(ports.ledger, name)
    judged = train.record(ports, name, run) if run is not None else None
    endpoint = books.endpoint_name(pipeline)
    partition = endpoint_partition(endpoint)
    model = ports.registry.get(name, version)
    serves = pipeline.spec.deployment.enabled
    why = to_builtins(judged.cause) if judged is not None and judged.cause is not None else cause
    while True:
        row = ports.ledger.get(partition, "head")
        if row is not None and row.value["state"] == CONFIRMING:
            # Its alias may have moved or not: whoever comes next finishes it, or alias and endpoint part for good.
            half = row.value
            confirm_deployment(
                ports, half["pipeline"], half["deployments"][0]["version"], endpoint, half["revision"], now
            )
            continue
        if ports.ledger.get(partition, books.token_key(token)) is not None:
            break
        alias = ports.registry.alias(name, CHAMPION)
        champion = alias.version if alias is not None else None
        against = judged.spec.champion.version if judged is not None and judged.spec.champion else None
        if judged is not None and champion not in (against, version):
            return {"state": "refused", "reason": f"version {champion} became champion meanwhile"}
        value = {
            **_next(row, _deployment(ports, model), pipeline, token, champion, now),
            "cause": why,
            # None: somebody asked for it, and the sweep starts its flow again; a run's is its training's to start.
            "run": run,
            "rollback": rollback,
            # Who promotes by hand may change what the endpoint takes; a run may not, its callers know nothing of it.
            "signature": "same" if judged is not None else "any",
        }
        if rollback:
            value["undone"] = _given_up(row.value) if row is not None else []
        else:
            value |= canary.first_stage(value, books.canary_rules(pipeline) if serves else None)
        try:
            ports.ledger.commit(
                partition,
                [
                    Insert("head", value) if row is None else Replace("head", value, row.etag),
                    Insert(books.token_key(token), {"revision": value["revision"]}),
                ],
            )
        except Conflict:
            continue
    head = tell_replicas(ports, endpoint)
    return {
        **_become(ports, partition, token, head, "published" if serves else "ready"),
        "endpoint": endpoint,
        **canary.told(head, token),
    }


def is_settled(ports: Ports, flow: Json, asked_at: datetime) -> bool:
    """Whether a flow of `by_hand` need not be started for its deployment to be published: it was, or somebody has had
    another one published since this one was asked for."""
    partition = endpoint_partition(books.endpoint_name(books.pipeline(ports.ledger, flow["input"]["pipeline"])))
    if ports.ledger.get(partition, books.token_key(flow["id"])) is not None:
        return True
    row = ports.ledger.get(partition, "head")
    if row is None or "run" not in row.value or row.value["run"] is not None:
        return False
    return datetime.fromisoformat(row.value["published_at"]) > asked_at


def sweep(ports: Ports) -> list[Json]:
    """The flows of deployments that somebody asked for and that are not over; one that lives is started again in vain."""
    found = []
    for pipeline in books.pipelines(ports.ledger):
        row = books.endpoint_head(ports.ledger, books.endpoint_name(pipeline))
        if row is None or row.value["pipeline"] != pipeline.name or row.value["state"] == "live":
            continue
        head = row.value
        if "run" in head and head["run"] is None:
            version = head["deployments"][0]["version"]
            found.append(_flow(pipeline.name, version, head["token"], head["cause"], head["rollback"]))
    return found


def _flow(name: str, version: int, id_: str, cause: Json | None, rollback: bool) -> Json:
    asked = {"pipeline": name, "version": version, "cause": cause, "rollback": rollback}
    return {"flow": "deploy", "id": id_, "input": asked}


def _become(ports: Ports, partition: str, token: str, head: Json, begun: str) -> Json:
    """What has become of the deployment: a flow that is run once more must not take it up where it was ended."""
    row = ports.ledger.get(partition, books.token_key(token))
    assert row is not None
    revision = row.value["revision"]
    if head["token"] == token:
        # A later revision than the first, when the traffic moves in steps.
        revision = head["revision"]
        return {"state": "live" if head["state"] == "live" else begun, "reason": None, "revision": revision}
    if head["token"] == _undone(token):
        return {"state": "rolled_back", "reason": head["reason"], "revision": revision}
    return {"state": "superseded", "reason": SUPERSEDED, "revision": revision}


def _undone(token: str) -> str:
    return f"{token}-rolled-back"


def _deployment(ports: Ports, model: ModelVersion) -> Deployment:
    return Deployment(
        model=model.model,
        version=model.version,
        uri=ports.artifacts.uri(model.artifact),
        sha256=model.sha256,
        dataset_version=model.lineage.dataset_version,
        golden=ports.artifacts.uri(model.lineage.golden) if model.lineage.golden is not None else None,
    )


def _next(
    row: Row | None, deployment: Deployment, pipeline: Pipeline, token: str, champion: int | None, now: datetime
) -> Json:
    before: Json = row.value if row is not None else {"revision": 0, "deployments": [], "state": "live"}
    # What answered for certain: of a deployment that never came up, what it was to replace.
    proven = before["deployments"] if before["state"] == "live" else before["previous"]
    return {
        "revision": before["revision"] + 1,
        "token": token,
        "pipeline": pipeline.name,
        "deployments": [to_builtins(deployment)],
        "previous": proven,
        "champion_before": champion,
        "state": "converging",
        "published_at": now.isoformat(),
        "written_at": now.isoformat(),
        "deadline": (now + pipeline.spec.deployment.timeout).isoformat(),
    }


def _given_up(before: Json) -> list[Json]:
    """What a rollback undoes: what answers or is on its way; of a rollback that is on its way, what that one undoes."""
    again = before["state"] != "live" and before.get("rollback")
    given_up: list[Json] = _undone_by(before) if again else before["deployments"]
    return given_up


def _undone_by(rollback: Json) -> list[Json]:
    """One from before it was written down undoes what it is to replace."""
    undone: list[Json] = rollback["undone"] if "undone" in rollback else rollback["previous"]
    return undone


def observe_deployment(ports: Ports, endpoint: str, revision: int, now: datetime) -> Json:
    """How far the replicas are with that revision: `ready`, `waiting`, `failed` or `superseded`, and why."""
    row = books.endpoint_head(ports.ledger, endpoint)
    if row is None or row.value["revision"] != revision:
        return {"state": "superseded", "reason": SUPERSEDED}
    replicas = ports.serving.observe(endpoint)
    failed = [each for each in replicas if each.wanted_revision == revision and each.error]
    if failed:
        return {"state": "failed", "reason": f"replica {failed[0].replica}: {failed[0].error}"}
    if replicas and all(each.revision == revision and each.ready for each in replicas):
        return {"state": "ready", "reason": None}
    if now >= _deadline(row.value, replicas):
        return {"state": "failed", "reason": _late(replicas, revision)}
    return {"state": "waiting", "reason": None}


def _deadline(head: Json, replicas: list[ReplicaState]) -> datetime:
    """Until when the replicas have to serve it: longer where a new image or a new endpoint is still being provisioned."""
    deadline = datetime.fromisoformat(head["deadline"])
    if any(PROVISIONING in each.detail for each in replicas):
        return max(deadline, datetime.fromisoformat(head["written_at"]) + PROVISIONING_TIME)
    return deadline


def _late(replicas: list[ReplicaState], revision: int) -> str:
    if not replicas:
        return "no replica of the inference server reported within deployment.timeout; is one running?"
    late = [each.replica for each in replicas if each.revision != revision or not each.ready]
    return f"replica {', '.join(late)} did not serve revision {revision} within deployment.timeout"


def confirm_deployment(ports: Ports, name: str, version: int, endpoint: str, revision: int, now: datetime) -> Json:
    """The replicas serve it: make it the champion. When another champion was named meanwhile, undo instead.

    Two partitions change, one after the other, and whoever publishes next finishes what was begun: so that neither a
    crash nor a deployment in between leaves a champion that does not serve.
    """
    partition = endpoint_partition(endpoint)
    while True:
        # Read before the head is seen to be ours: what moves the alias later is then a conflict, also when it moves back.
        alias = ports.registry.alias(name, CHAMPION)
        if ports.ledger.get(partition, "head") is None:
            return {"state": "superseded", "reason": SUPERSEDED}
        head = books.change(
            ports.ledger,
            partition,
            "head",
            lambda value: {**value, "state": CONFIRMING} if _is(value, revision, "converging") else None,
        )
        if head["revision"] != revision:
            return {"state": "superseded", "reason": SUPERSEDED}
        if head["state"] == "live":
            break
        if (alias.version if alias else None) not in (head["champion_before"], version):
            return roll_back_deployment(ports, endpoint, revision, "another champion was named meanwhile", now)
        try:
            ports.registry.set_alias(name, CHAMPION, version, alias, now)
        except Conflict:
            continue
        head = books.change(
            ports.ledger,
            partition,
            "head",
            lambda value: {**value, "state": "live"} if _is(value, revision, CONFIRMING) else None,
            lambda value: [outbox.entry(each) for each in _confirmed(value, endpoint, now)],
        )
        if head["revision"] != revision:
            return {"state": "superseded", "reason": SUPERSEDED}
        _tell_swap(endpoint, revision, head, now, None)
        break
    outbox.flush(ports, partition)
    return {"state": "live", "reason": None}


def _is(head: Json, revision: int, state: str) -> bool:
    return bool(head["revision"] == revision and head["state"] == state)


def _confirmed(head: Json, endpoint: str, now: datetime) -> list[DomainEvent]:
    """What is told once the deployment is live."""
    name, version, revision = head["pipeline"], head["deployments"][0]["version"], head["revision"]
    before, told = head["champion_before"], []
    # A rollback that only ends a candidate names no other champion.
    if not (head.get("rollback") and before == version):
        told.append(
            DomainEvent(
                id_of("ModelPromoted", endpoint, str(revision)),
                "ModelPromoted",
                f"models/{name}/versions/{version}",
                now,
                {"pipeline": name, "version": version, "endpoint": endpoint, "revision": revision, "before": before},
                cause=_cause(head),
            )
        )
    if head.get("rollback"):
        told.append(_rolled_back(endpoint, revision, head, _undone_by(head), "asked for", now))
    return told


def _tell_swap(endpoint: str, revision: int, head: Json, now: datetime, error: str | None) -> None:
    began, version = datetime.fromisoformat(head["written_at"]), _version(head["deployments"])
    telemetry.past(
        SWAP,
        tracing.of_endpoint(head),
        began,
        now,
        key=f"{endpoint}/{revision}",
        error=error,
        pipeline=head["pipeline"],
        endpoint=endpoint,
        version=version,
    )
    telemetry.count("dropforge.swaps", endpoint=endpoint, outcome="live" if error is None else "rolled_back")
    if error is None:
        telemetry.seconds("dropforge.swap.duration", (now - began).total_seconds(), endpoint=endpoint)


def roll_back_deployment(ports: Ports, endpoint: str, revision: int, reason: str, now: datetime) -> Json:
    """Put back what answered before, as a new revision. Nothing answered before: the endpoint is left empty."""

    def back(value: Json) -> Json | None:
        if value["revision"] != revision:
            return None
        _tell_swap(endpoint, revision, value, now, reason)
        return {
            **value,
            "revision": revision + 1,
            "token": _undone(value["token"]),
            "deployments": value["previous"],
            "signature": "any",
            "undone": value["deployments"],
            **({"canary": None} if "canary" in value else {}),
            "state": "live",
            "reason": reason,
            "written_at": now.isoformat(),
        }

    def told(value: Json) -> list[Insert]:
        return [outbox.entry(_rolled_back(endpoint, revision, value, value["undone"], reason, now))]

    books.change(ports.ledger, endpoint_partition(endpoint), "head", back, told)
    tell_replicas(ports, endpoint)
    outbox.flush(ports, endpoint_partition(endpoint))
    return {"state": "rolled_back", "reason": reason}


def _rolled_back(
    endpoint: str, revision: int, head: Json, undone: list[Json], reason: str, now: datetime
) -> DomainEvent:
    return DomainEvent(
        id_of("ModelRolledBack", endpoint, str(revision)),
        "ModelRolledBack",
        f"endpoints/{endpoint}",
        now,
        {
            "pipeline": head["pipeline"],
            "endpoint": endpoint,
            "revision": head["revision"],
            # What answers now, and what does no more; null: nothing.
            "version": _version(head["deployments"]),
            "rolled_back": _version(undone),
            "reason": reason,
        },
        cause=_cause(head),
    )


def _version(deployments: list[Json]) -> int | None:
    return deployments[0]["version"] if deployments else None


def _cause(head: Json) -> Cause | None:
    return from_builtins(Cause, head["cause"]) if head.get("cause") else None


def by_hand(ports: Ports, name: str, version: int | None, *, token: str, cause: Cause) -> Json:
    """The deployment flow that somebody asks for: of that version, or (None) of the champion before this one.

    While a candidate is on its way, going back means to the champion that it has not replaced yet. `token` names the
    request: the flow is made of it, and deploys once however often it is started.
    """
    pipeline = books.pipeline(ports.ledger, name)
    back = version is None
    if version is None:
        version = _way_back(ports, pipeline)
    ports.registry.get(name, version)
    return _flow(name, version, f"deploy-{name}-v{version}-{id_of(token)}", to_builtins(cause), back)


def _way_back(ports: Ports, pipeline: Pipeline) -> int:
    # In this order: of a candidate that becomes the champion in between, it is seen that it is.
    row = books.endpoint_head(ports.ledger, books.endpoint_name(pipeline))
    alias = ports.registry.alias(pipeline.name, CHAMPION)
    moves = [*alias.history, alias.version] if alias is not None else []
    if alias is not None and row is not None and row.value["pipeline"] == pipeline.name:
        head, on_its_way = row.value, _version(row.value["deployments"])
        if head["state"] == CONFIRMING and on_its_way is not None:
            # Champion for certain, and named any moment.
            moves.append(on_its_way)
        elif head["state"] == "converging" and not head.get("rollback") and on_its_way != alias.version:
            return alias.version
    champions = standing(moves)
    if len(champions) < 2:
        raise Refused(
            f"there is no earlier champion of {pipeline.name!r} to roll back to; `promote` takes any version",
            pipeline=pipeline.name,
        )
    return champions[-2]


def taken_back_at(ports: Ports, name: str) -> datetime | None:
    """When the platform itself took back the last deployment of the pipeline's endpoint; None if it did not."""
    row = books.endpoint_head(ports.ledger, books.endpoint_name(books.pipeline(ports.ledger, name)))
    if row is None or not row.value["token"].endswith(_undone("")):
        return None
    return datetime.fromisoformat(row.value["written_at"])
