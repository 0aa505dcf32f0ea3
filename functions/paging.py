"""Pages of a list: an opaque token says where the next one begins, and of which list."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import azure.functions as func

from dropforge.domain.names import id_of
from dropforge.wiring import ports
from functions.answers import Problem, answer, ask
from functions.operations import Call

if TYPE_CHECKING:
    from dropforge.ports import Ports
    from dropforge.steps.reports import Page

_AFTER = re.compile(r"[!-~]{1,400}")


async def page(name: str, call: Call, list_: Callable[..., Page], *args: Any) -> func.HttpResponse:
    """`{"<name>": [...], "next": token or null}`: what `list_(ports, *args, limit=, after=)` finds.

    Raises the problem 404 for a token that is none, or another list's.
    """
    listing = id_of(call.operation.name, *(str(each) for each in args))[:12]
    after = _read(call["token"], listing)
    found, following = await ask(_listed, list_, ports(), args, call["limit"], after)
    return answer({name: found, "next": _token(listing, following) if following is not None else None})


def _listed(list_: Callable[..., Page], world: Ports, args: tuple[Any, ...], limit: int, after: str) -> Page:
    return list_(world, *args, limit=limit, after=after)


def _token(listing: str, after: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([listing, after]).encode()).decode().rstrip("=")


def _read(token: str | None, listing: str) -> str:
    if token is None:
        return ""
    try:
        found = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list) and len(found) == 2 and found[0] == listing and _AFTER.fullmatch(str(found[1])):
        return str(found[1])
    raise Problem(404, "not-found", "token names no page of this list; begin again without it", parameter="token")
