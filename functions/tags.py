"""ETags (RFC 9110): an answer that has not changed is not sent again, and nobody overwrites what he has not seen."""

from __future__ import annotations

import re
from collections.abc import Callable

import azure.functions as func

from functions.answers import Problem, answer
from functions.operations import Call


def tagged(call: Call, body: object, tag: str) -> func.HttpResponse:
    """The body with its ETag; 304 without a body when the asker has it."""
    headers = {"ETag": f'"{tag}"', "Cache-Control": "no-cache"}
    if _names(call["If-None-Match"], tag):
        return func.HttpResponse(status_code=304, headers=headers)
    return answer(body, headers=headers)


def precondition(if_match: str | None, if_none_match: str | None) -> Callable[[str | None], None]:
    """A check of the tag that is there (None: nothing is); it raises the problem 412."""

    def check(tag: str | None) -> None:
        found = f'its ETag is "{tag}"' if tag is not None else "there is none"
        if if_match is not None and not _names(if_match, tag, strong=True):
            raise Problem(412, "precondition-failed", f"If-Match wants {if_match}, and {found}; read it again")
        if _names(if_none_match, tag):
            raise Problem(412, "precondition-failed", f"If-None-Match excludes {if_none_match}, and {found}")

    return check


def _names(header: str | None, tag: str | None, *, strong: bool = False) -> bool:
    """Whether the header names the tag. `strong`: a weak tag (`W/"..."`) names nothing, as If-Match has it."""
    if header is None or tag is None:
        return False
    if header.strip() == "*":
        return True
    # People leave the quotes out; a tag of ours is the same without them.
    named = (re.fullmatch(r'\s*(W/)?"?([^"]*?)"?\s*', each) for each in header.split(","))
    return any(found is not None and found[2] == tag and not (found[1] and strong) for found in named)
