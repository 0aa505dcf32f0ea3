"""Why a job in Azure ML did not succeed: its words in ours, what to do, and whether another node would help."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dropforge.adapters.azure.aml_client import QUOTA_HELP


@dataclass(frozen=True)
class Ending:
    """`reason` is one sentence for a person. `again`: it failed for want of its node, not for what it did."""

    reason: str
    again: bool = False


# In this order: what is said of quota also speaks of allocation, and what is said of images also of authorization.
_KNOWN: tuple[tuple[str, str, str, bool], ...] = (
    (
        r"pre-?empt|evicted|spot (vm|node|instance)",
        "its low-priority node was taken away",
        "use a dedicated cluster if it happens often, and keep checkpoints in DROPFORGE_CHECKPOINTS",
        True,
    ),
    (r"quota|core limit", "there is no quota for its nodes", QUOTA_HELP, False),
    (
        r"pull(ing)? .{0,40}image|image.?pull|manifest unknown|docker.?pull|image .{0,80}not found",
        "its image cannot be pulled",
        "check compute.image or DROPFORGE_TRAIN_IMAGE, and give the identity of the cluster the role AcrPull on the registry",
        False,
    ),
    (
        r"image.?build|build(ing)? .{0,40}environment",
        "its environment cannot be built",
        "look at the build log in the studio, or name a ready image in compute.image",
        False,
    ),
    (
        r"StreamAccess|DataAccess|AuthorizationPermissionMismatch|AuthorizationFailure|mount.{0,80}(denied|403|unauthor)"
        r"|(permission|access).{0,40}(datastore|storage)|datastore.{0,80}(denied|403|unauthor)",
        "its identity may not use the datastores",
        "give DROPFORGE_AML_JOB_CLIENT_ID (or the identity of the cluster) the role Storage Blob Data Reader on containers "
        "artifacts and tables, and Storage Blob Data Contributor on runs",
        False,
    ),
    (
        r"node.{0,60}(lost|unusable|unreachable|unhealthy|failure|not respond)|NodeLost|heart ?beat|agent was lost",
        "the node it ran on was lost",
        "",
        True,
    ),
    (
        r"out ?of ?memory|\bOOM|exit(ed)?( with)?( status)?( code)? 137|\bSIGKILL",
        "it ran out of memory",
        "choose a larger compute.instance_type or cluster, or a larger shm_size for data loaders",
        False,
    ),
    (r"no space left|disk.{0,20}full", "the disk of its node was full", "choose a VM with a larger disk", False),
    (
        r"time ?limit|time.?out|exceeded.{0,40}(time|duration)|longer than its limit",
        "it ran longer than training.compute.timeout",
        "raise it, or train less",
        False,
    ),
    (
        r"allocat|provision|resize|capacity|failed to start.{0,40}node|bootstrap",
        "no node could be had for it",
        "choose another VM size or region if it goes on",
        True,
    ),
)
_COMPILED = tuple((re.compile(words, re.IGNORECASE), said, advice, again) for words, said, advice, again in _KNOWN)
_EXITED = re.compile(r"exited with status code|non-?zero exit", re.IGNORECASE)
# From here on it is what the user's own command printed, which may speak of anything.
_PRINTED = re.compile(r"please check log file|\bError: ", re.IGNORECASE)


def ending(job: str, code: str, message: str) -> Ending:
    """What Azure ML's error code and message mean."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = " ".join(lines)[:600]
    theirs = ": ".join(filter(None, (code, text))) or "Azure ML gives no reason"
    searched = _PRINTED.split(text)[0] if _EXITED.search(text) else text
    for words, said, advice, again in _COMPILED:
        if words.search(code) or words.search(searched):
            return Ending(f"job {job} failed: {said} ({theirs})" + (f"; {advice}" if advice else ""), again)
    return Ending(f"job {job} failed: {theirs}")
