"""What a replica of the inference server may be called: the rule that all serving stores share."""

from __future__ import annotations

import re

from dropforge.domain.errors import BadName

REPLICA = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def checked_replica(replica: str) -> str:
    """The name itself, when it is one; otherwise `BadName` that says what a name looks like."""
    if not REPLICA.fullmatch(replica):
        raise BadName(
            f"replica {replica!r} is not a name; use 1 to 128 letters, digits, dots, hyphens and underscores, "
            "starting with a letter or digit",
            name=replica,
        )
    return replica
