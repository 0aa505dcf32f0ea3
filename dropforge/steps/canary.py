"""A candidate's way to all of the traffic, in stages: watched at each, moved on, or found wanting.

The head of an endpoint holds under `canary`, while one is on its way, the rules it goes by, the two deployments, the stage
it is at, and since when every replica serves that stage.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from dropforge.domain.canary import PATIENCE, Judgement, Rules, Standing, deployments, judge, tally
from dropforge.domain.endpoints import Deployment, ReplicaState
from dropforge.ports import Json, Ports
from dropforge.steps import books
from dropforge.steps.books import endpoint_partition
from dropforge.steps.desired import SUPERSEDED, tell_replicas
from dropforge.wire import from_builtins, to_builtins

# How often a stage is looked at, and how often at most and at least.
LOOKS = 20
SOONEST, LATEST = 1.0, 60.0


def first_stage(head: Json, rules: Rules | None) -> Json:
    """What is different about the head of a deployment that goes by rules. Nothing is where no other version answers, or
    the same one."""
    (candidate,), proven = head["deployments"], head["previous"]
    same = proven and all(proven[0][each] == candidate[each] for each in ("model", "version"))
    if rules is None or not proven or same:
        return {}
    way = {
        "rules": to_builtins(rules),
        "candidate": candidate,
        "champion": {**proven[0], "traffic": 100, "mirror": 0},
        "timeout": (
            datetime.fromisoformat(head["deadline"]) - datetime.fromisoformat(head["written_at"])
        ).total_seconds(),
    }
    return _at_stage(way, 0)


def _at_stage(way: Json, stage: int) -> Json:
    candidate, champion = (from_builtins(Deployment, way[each]) for each in ("candidate", "champion"))
    rules = from_builtins(Rules, way["rules"])
    return {
        "canary": {**way, "stage": stage, "since": None, "starts": {}} if stage < len(rules.stages) else None,
        "deployments": [to_builtins(each) for each in deployments(candidate, champion, rules, stage)],
    }


def told(head: Json, token: str) -> Json:
    """Whether the deployment has a stage to be watched at; nothing for one that never had any."""
    return {"canary": True} if head["token"] == token and head.get("canary") else {}


def observe_canary(ports: Ports, endpoint: str, revision: int, now: datetime) -> Json:
    """How the candidate stands at its stage: `baking` (look again after `seconds`), `passed`, `failed` or `superseded`,
    and why. The bake time begins with the first look."""
    head = books.change(
        ports.ledger,
        endpoint_partition(endpoint),
        "head",
        lambda value: _begun(value, revision, ports.serving.observe(endpoint), now),
    )
    way = head.get("canary")
    if head["revision"] != revision or not way:
        return {"state": "superseded", "reason": SUPERSEDED}
    rules, replicas = from_builtins(Rules, way["rules"]), ports.serving.observe(endpoint)
    if (again := _started_again(replicas, way)) is not None:
        reason = f"replica {again} was started again while version {way['candidate']['version']} was watched"
        return {"state": Standing.FAILED.value, "reason": reason}
    found = _standing(rules, replicas, head, now - datetime.fromisoformat(way["since"]))
    stage = f"at {rules.stages[way['stage']]} percent of the traffic, {found.reason}"
    pause = min(max(rules.bake.total_seconds() / LOOKS, SOONEST), LATEST)
    return {"state": found.standing.value, "reason": stage, "seconds": pause}


def _standing(rules: Rules, replicas: list[ReplicaState], head: Json, baked: timedelta) -> Judgement:
    revision, way = head["revision"], head["canary"]
    if not any(each.revision == revision for each in replicas):
        over = baked >= PATIENCE * rules.bake
        return Judgement(Standing.FAILED if over else Standing.BAKING, "no replica that serves it reports any more")
    champion, candidate = (tally(replicas, revision, way[each]["version"]) for each in ("champion", "candidate"))
    return judge(rules, champion, candidate, baked)


def _begun(value: Json, revision: int, replicas: list[ReplicaState], now: datetime) -> Json | None:
    way = value.get("canary")
    if value["revision"] != revision or not way or way["since"] is not None:
        return None
    starts = {each.replica: each.started_at.isoformat() for each in replicas if each.started_at is not None}
    return {**value, "canary": {**way, "since": now.isoformat(), "starts": starts}}


def _started_again(replicas: list[ReplicaState], way: Json) -> str | None:
    """A replica that is another process than when the stage began: what it counted is lost, and a model that ends the
    process looks like that."""
    return next(
        (
            each.replica
            for each in replicas
            if each.started_at is not None
            and (known := way["starts"].get(each.replica)) is not None
            and datetime.fromisoformat(known) != each.started_at
        ),
        None,
    )


def advance_deployment(ports: Ports, endpoint: str, revision: int, now: datetime) -> Json:
    """Publish the next stage as a new revision. Asked twice, it is the same stage; `superseded` when the endpoint has gone
    another way."""
    partition = endpoint_partition(endpoint)

    def on(value: Json) -> Json | None:
        way = value.get("canary")
        if value["revision"] != revision or not way:
            return None
        return {
            **value,
            **_at_stage(way, way["stage"] + 1),
            "revision": revision + 1,
            "advanced_from": revision,
            "written_at": now.isoformat(),
            "deadline": (now + timedelta(seconds=way["timeout"])).isoformat(),
        }

    books.change(ports.ledger, partition, "head", on)
    head = tell_replicas(ports, endpoint)
    if head.get("advanced_from") != revision or head["revision"] != revision + 1:
        return {"state": "superseded", "reason": SUPERSEDED}
    return {"state": "published", "reason": None, "revision": head["revision"], **told(head, head["token"])}
