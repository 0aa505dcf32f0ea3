"""HTTP answers: JSON out, every refusal as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import asyncio
import http
import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import azure.functions as func
import msgspec

from dropforge.domain.errors import DropforgeError

T = TypeVar("T")

# Retries of who is told that something did not answer.
RETRY_AFTER_SECONDS = 5
_log = logging.getLogger(__name__)


class Problem(Exception):
    """A refusal that only HTTP knows, such as a method that a resource does not have."""

    def __init__(
        self, status: int, kind: str, detail: str, headers: Mapping[str, str] | None = None, **about: object
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.headers = dict(headers or {})
        self.about = about


# Python 3.13 took over these names.
_RENAMED = {413: "Content Too Large", 422: "Unprocessable Content"}


def answer(body: object, status: int = 200, headers: dict[str, str] | None = None) -> func.HttpResponse:
    """The body as JSON."""
    text = msgspec.json.encode(body, enc_hook=str)
    return func.HttpResponse(text, status_code=status, mimetype="application/json", headers=headers)


def problem(error: Exception) -> func.HttpResponse:
    """The error as RFC 9457 says it. What is not ours is logged, and told without a word of what it was."""
    if isinstance(error, Problem):
        return _written(error.status, error.kind, error.detail, error.about, error.headers)
    if isinstance(error, DropforgeError):
        headers = {}
        if error.http_status >= 500:
            _log.exception("the request failed: %s", error)
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if error.retryable else {}
        return _written(error.http_status, kind_of(type(error).__name__), error.message, error.about, headers)
    _log.exception("the request failed")
    return _written(500, "fault", "this request failed for a reason that is written in the app's log", {}, {})


def refused(error: Mapping[str, Any], **about: object) -> func.HttpResponse:
    """The problem that a step has told as JSON (`{"type", "status", "detail"}`)."""
    return _written(int(error["status"]), kind_of(str(error["type"])), str(error["detail"]), about, {})


def phrase(status: int) -> str:
    """What RFC 9110 calls a status, whichever names this Python has."""
    return _RENAMED.get(status) or http.HTTPStatus(status).phrase


def kind_of(name: str) -> str:
    """`NotFound` -> `not-found`: the last part of a problem's `type`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()


def _written(
    status: int, kind: str, detail: str, about: Mapping[str, object], headers: Mapping[str, str]
) -> func.HttpResponse:
    body: dict[str, object] = {
        "type": f"urn:dropforge:problem:{kind}",
        "title": phrase(status),
        "status": status,
        "detail": detail,
    }
    body |= {key: value for key, value in about.items() if key not in body}
    return func.HttpResponse(
        json.dumps(body, default=str),
        status_code=status,
        mimetype="application/problem+json",
        headers=dict(headers),
    )


async def ask(step: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """The result of a step, run where it may block."""
    return await asyncio.to_thread(step, *args, **kwargs)
