"""How an artifact may be called: the same in every store."""

from __future__ import annotations

import re

from dropforge.domain.errors import BadName

# Safe as a blob name, a file name and in a URL as it stands. A leading dot is kept for files in the making.
_SEGMENT = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]{0,199}")
MAX_LENGTH = 1000


def checked_artifact(name: str) -> str:
    """The name itself, when it is one; otherwise `BadName` that says what a name looks like."""
    if len(name) > MAX_LENGTH or not all(_SEGMENT.fullmatch(segment) for segment in name.split("/")):
        raise BadName(
            f"artifact {name!r} is not a name; use at most {MAX_LENGTH} characters, and between the slashes "
            "1 to 200 letters, digits and ._=- that do not start with a dot",
            name=name,
        )
    return name
