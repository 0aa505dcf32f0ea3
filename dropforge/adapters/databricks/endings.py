"""Why a Databricks run did not succeed: its words in ours, what to do, and whether other machines would help."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ending:
    """`reason` is one sentence for a person. `again`: it failed for want of its machines, not for what it did."""

    reason: str
    again: bool = False


# By what the message says, in this order: what is said of quota also speaks of launching, and an evicted driver is lost.
_SAID: tuple[tuple[str, str, str, bool], ...] = (
    (
        r"quota|core limit|limit.{0,40}cores",
        "the subscription has no quota for its cluster",
        "request more quota for that VM family (Azure portal, Quotas), or choose another training.compute.node_type",
        False,
    ),
    (
        r"spot|evict|pre-?empt",
        "its spot machine was taken away",
        "leave out training.compute.spot if it happens often, and keep checkpoints in DROPFORGE_CHECKPOINTS",
        True,
    ),
    (
        r"out ?of ?memory|\boom\b",
        "it ran out of memory",
        "choose a larger training.compute.node_type",
        False,
    ),
    (
        r"capacity|stockout|sku.{0,40}not available|not available.{0,60}(region|location)|overconstrained",
        "Azure has no such machines free in the region",
        "choose another training.compute.node_type if it goes on",
        True,
    ),
)
_COMPILED = tuple((re.compile(words, re.IGNORECASE), said, advice, again) for words, said, advice, again in _SAID)

# By Databricks' own code. Codes come with new releases; one that is not here is told as it is.
_VOLUMES = (
    "give the identity that the job runs as READ VOLUME on the volumes artifacts and tables, READ VOLUME and WRITE VOLUME on "
    "runs, and USE CATALOG and USE SCHEMA above them"
)
_CODES: dict[str, tuple[str, str, bool]] = {
    "CLOUD_FAILURE": ("its cluster could not be launched or kept: a fault of the cloud", "", True),
    "CLUSTER_ERROR": ("its cluster could not be launched or kept", "", True),
    "DRIVER_ERROR": (
        "its driver crashed or was lost",
        "choose a larger training.compute.node_type if it goes on",
        True,
    ),
    "INTERNAL_ERROR": ("an internal error of Databricks", "see status.azuredatabricks.net if it goes on", True),
    "CLUSTER_REQUEST_LIMIT_EXCEEDED": ("too many clusters were asked for at once", "", True),
    "STORAGE_ACCESS_ERROR": ("its storage could not be reached", _VOLUMES, True),
    "WORKSPACE_RUN_LIMIT_EXCEEDED": ("the workspace runs as much as it may", "", True),
    "MAX_SPARK_CONTEXTS_EXCEEDED": ("its cluster is full", "", True),
    "INVALID_CLUSTER_REQUEST": (
        "its cluster was refused",
        "correct training.compute.node_type, spark_version, policy and workers",
        False,
    ),
    "INVALID_RUN_CONFIGURATION": ("its configuration was refused", "correct training.compute", False),
    "LIBRARY_INSTALLATION_ERROR": (
        "its packages could not be installed",
        "check DROPFORGE_DATABRICKS_WHEEL, training.compute.packages, and that the cluster reaches a package index",
        False,
    ),
    "UNAUTHORIZED_ERROR": ("its identity may not use what it needs", _VOLUMES, False),
    "RESOURCE_NOT_FOUND": (
        "something it needs is not there",
        "check DROPFORGE_DATABRICKS_WHEEL and the volumes",
        False,
    ),
    "FEATURE_DISABLED": ("the workspace does not offer what it needs", "name a training.compute.node_type", False),
    "BUDGET_POLICY_LIMIT_EXCEEDED": ("the budget of the workspace is used up", "", False),
    "MAX_CONCURRENT_RUNS_EXCEEDED": ("the workspace runs as much as it may", "", True),
    "MAX_JOB_QUEUE_SIZE_EXCEEDED": ("the queue of the workspace is full", "", True),
    "RUN_EXECUTION_ERROR": ("the training node failed", "", False),
}
# What came before `termination_details`: the result of a run by its state alone.
_OLD_CODES = {"INTERNAL_ERROR": "INTERNAL_ERROR", "SKIPPED": "MAX_CONCURRENT_RUNS_EXCEEDED"}
_OLD_RESULTS = {
    "FAILED": "RUN_EXECUTION_ERROR",
    "TIMEDOUT": "CANCELED",
    "CANCELED": "USER_CANCELED",
    "MAXIMUM_CONCURRENT_RUNS_REACHED": "MAX_CONCURRENT_RUNS_EXCEEDED",
}
_TIMED_OUT = re.compile(r"timed? ?out|time ?limit|maximum run duration|exceeded.{0,40}duration", re.IGNORECASE)


@dataclass(frozen=True)
class Stand:
    """How a run stands, told by the older fields (`state`) and the newer ones (`status`) alike."""

    # `waiting`, `running` or `over`.
    phase: str
    succeeded: bool = False
    code: str = ""
    message: str = ""
    timed_out: bool = False
    cancelled: bool = False


_WAITING = frozenset({"QUEUED", "PENDING", "BLOCKED", "WAITING", "WAITING_FOR_RETRY"})


def stand(run: Mapping[str, Any]) -> Stand:
    """How the run of an answer of `jobs/runs/get` stands. An unknown state is one that goes on."""
    old: Mapping[str, Any] = run.get("state") or {}
    new: Mapping[str, Any] = run.get("status") or {}
    details: Mapping[str, Any] = new.get("termination_details") or {}
    life = str(new.get("state") or old.get("life_cycle_state") or "")
    result = str(old.get("result_state") or "")
    if life not in ("TERMINATED", "SKIPPED", "INTERNAL_ERROR"):
        return Stand("waiting" if life in _WAITING else "running")
    code = str(
        details.get("code") or _OLD_CODES.get(str(old.get("life_cycle_state"))) or _OLD_RESULTS.get(result) or ""
    )
    message = str(details.get("message") or old.get("state_message") or "")
    if code in ("SUCCESS", "SUCCESS_WITH_FAILURES") or (not code and result in ("SUCCESS", "SUCCESS_WITH_FAILURES")):
        return Stand("over", succeeded=True)
    timed_out = result == "TIMEDOUT" or (code == "CANCELED" and bool(_TIMED_OUT.search(message)))
    cancelled = not timed_out and (code in ("USER_CANCELED", "CANCELED") or result == "CANCELED")
    return Stand("over", False, code, message, timed_out, cancelled)


def ending(found: Stand) -> Ending:
    """What the end of a run that neither succeeded nor was cancelled means."""
    theirs = (
        ": ".join(filter(None, (found.code, " ".join(found.message.split())[:600]))) or "Databricks gives no reason"
    )
    # What the node's own command printed may speak of anything.
    if found.code != "RUN_EXECUTION_ERROR":
        for words, said, advice, again in _COMPILED:
            if words.search(found.message):
                return _told(said, theirs, advice, again)
    if found.code in _CODES:
        return _told(_CODES[found.code][0], theirs, *_CODES[found.code][1:])
    return Ending(f"the run failed on Databricks ({theirs})")


def _told(said: str, theirs: str, advice: str, again: bool) -> Ending:
    return Ending(f"{said} ({theirs})" + (f"; {advice}" if advice else ""), again)
