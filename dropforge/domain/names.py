"""Names and ids: what is allowed, and how an id is made of what was written."""

from __future__ import annotations

import hashlib
import re

from dropforge.domain.errors import BadName

# Safe in a URL path, a file name, a Durable instance id, a Table storage key and an Azure ML asset name alike.
NAME = re.compile(r"[a-z][a-z0-9-]{0,38}[a-z0-9]|[a-z]")


def checked_name(value: str, what: str) -> str:
    """The name itself, when it is one; otherwise `BadName` that says what a name looks like."""
    if not NAME.fullmatch(value):
        raise BadName(
            f"{what} {value!r} is not a name; use 1 to 40 lower-case letters, digits and hyphens, "
            "starting with a letter and not ending with a hyphen",
            name=value,
        )
    return value


def is_unicode(text: str) -> bool:
    """Whether it can be written at all: of a character in two halves, or a file name that is not UTF-8, there is only a part."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def id_of(*parts: str) -> str:
    """32 hex digits made of the parts; equal parts give an equal id, on every machine, for ever."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:32]
