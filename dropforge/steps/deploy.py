"""Model version in, endpoint serving it out; or rolled back."""

from __future__ import annotations

from datetime import datetime, timedelta

from dropforge import telemetry
from dropforge.domain.causes import Cause
from dropforge.domain.endpoints import PROVISIONING, Deployment, ReplicaState
from dropforge.domain.errors import Conflict, Refused
from dropforge.domain.events import DomainEvent
from dropforge.domain.models import CHAMPION, ModelVersion
from dropforge.domain.names import id_of
from dropforge.ports import Insert, Json, Ports, Replace, Row
from dropforge.settings import Settings
from dropforge.steps import books, canary, outbox, tracing, train
from dropforge.steps.books import Pipeline, endpoint_partition
from dropforge.steps.desired import SUPERSEDED, SWAP, tell_replicas
from dropforge.wire import from_builtins, to_builtins

# Azure ML takes 8 to 20 minutes for a deployment, most of it for its machines.
PROVISIONING_TIME = timedelta(minutes=45)


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
    pipeline = books.pipeline(ports.ledger, name)
    judged = train.record(ports, name, run) if run is not None else None
    endpoint = pipeline.spec.deployment.endpoint or name
    partition = endpoint_partition(endpoint)
    model = ports.registry.get(name, version)
    serves = pipeline.spec.deployment.enabled
    why = to_builtins(judged.cause) if judged is not None and judged.cause is not None else cause
    while True:
        row = ports.ledger.get(partition, "head")
        if ports.ledger.get(partition, _token_key(token)) is not None:
            break
        alias = ports.registry.alias(name, CHAMPION)
        champion = alias.version if alias is not None else None
        against = judged.spec.champion.version if judged is not None and judged.spec.champion else None
        if judged is not None and champion not in (against, version):
            return {"state": "refused", "reason": f"version {champion} became champion meanwhile"}
        value = {
            **_next(row, _deployment(ports, model), pipeline, token, champion, now),
            "cause": why,
            "rollback": rollback,
            # Who promotes by hand may change what the endpoint takes; a run may not, its callers know nothing of it.
            "signature": "same" if judged is not None else "any",
        }
        if not rollback:
            value |= canary.first_stage(value, books.canary_rules(pipeline) if serves else None)
        try:
            ports.ledger.commit(
                partition,
                [
                    Insert("head", value) if row is None else Replace("head", value, row.etag),
                    Insert(_token_key(token), {"revision": value["revision"]}),
                ],
            )
        except Conflict:
            continue
    head = tell_replicas(ports, endpoint)
    return {
        **_become(ports, partition, token, head, "published" if serves else "ready"),
        "endpoint": endpoint,
        "poll_seconds": settings.deploy_poll_seconds,
        **canary.told(head, token),
    }


def _token_key(token: str) -> str:
    return f"token/{id_of(token)}"


def _become(ports: Ports, partition: str, token: str, head: Json, begun: str) -> Json:
    """What has become of the deployment: a flow that is run once more must not take it up where it was ended."""
    row = ports.ledger.get(partition, _token_key(token))
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
        "written_at": now.isoformat(),
        "deadline": (now + pipeline.spec.deployment.timeout).isoformat(),
    }


def observe_deployment(ports: Ports, endpoint: str, revision: int, now: datetime) -> Json:
    """How far the replicas are with that revision: `ready`, `waiting`, `failed` or `superseded`, and why."""
    row = ports.ledger.get(endpoint_partition(endpoint), "head")
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
    """The replicas serve it: make it the champion. When another champion was named meanwhile, undo instead."""
    alias = ports.registry.alias(name, CHAMPION)
    row = ports.ledger.get(endpoint_partition(endpoint), "head")
    if row is None or row.value["revision"] != revision:
        return {"state": "superseded", "reason": SUPERSEDED}
    if (alias.version if alias else None) not in (row.value["champion_before"], version):
        return roll_back_deployment(ports, endpoint, revision, "another champion was named meanwhile", now)
    try:
        ports.registry.set_alias(name, CHAMPION, version, alias, now)
    except Conflict:
        return roll_back_deployment(ports, endpoint, revision, "another champion was named meanwhile", now)
    promoted = DomainEvent(
        id_of("ModelPromoted", endpoint, str(revision)),
        "ModelPromoted",
        f"models/{name}/versions/{version}",
        now,
        {
            "pipeline": name,
            "version": version,
            "endpoint": endpoint,
            "revision": revision,
            "before": row.value["champion_before"],
        },
        cause=_cause(row.value),
    )
    told = [promoted]
    if row.value.get("rollback"):
        told.append(_rolled_back(endpoint, revision, row.value, row.value["previous"], "asked for", now))
    books.change(
        ports.ledger,
        endpoint_partition(endpoint),
        "head",
        lambda value: {**value, "state": "live"} if value["revision"] == revision else None,
        lambda _: [outbox.entry(each) for each in told],
    )
    outbox.flush(ports, endpoint_partition(endpoint))
    _tell_swap(endpoint, revision, row.value, now, None)
    return {"state": "live", "reason": None}


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

    `token` names the request: the flow is made of it, and deploys once however often it is started.
    """
    books.pipeline(ports.ledger, name)
    back = version is None
    if version is None:
        alias = ports.registry.alias(name, CHAMPION)
        earlier = [each for each in (alias.history if alias else ()) if alias and each != alias.version]
        if not earlier:
            raise Refused(f"there is no earlier champion of {name!r} to roll back to", pipeline=name)
        version = earlier[-1]
    ports.registry.get(name, version)
    return {
        "flow": "deploy",
        "id": f"deploy-{name}-v{version}-{id_of(token)}",
        "input": {"pipeline": name, "version": version, "cause": to_builtins(cause), "rollback": back},
    }
