"""HTTP answers: JSON out, our errors as `application/problem+json`."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import azure.functions as func

from dropforge.domain.errors import BadInput, DropforgeError

T = TypeVar("T")


def answer(body: object, status: int = 200, headers: dict[str, str] | None = None) -> func.HttpResponse:
    """The body as JSON."""
    text = json.dumps(body, default=str, ensure_ascii=False)
    return func.HttpResponse(text, status_code=status, mimetype="application/json", headers=headers)


def problem(error: DropforgeError) -> func.HttpResponse:
    """The error as RFC 9457 says it."""
    body = {"type": "about:blank", "title": type(error).__name__, "status": error.http_status, "detail": error.message}
    body |= {key: value for key, value in error.about.items() if key not in body}
    return func.HttpResponse(
        json.dumps(body, default=str, ensure_ascii=False),
        status_code=error.http_status,
        mimetype="application/problem+json",
    )


def told(door: Callable[..., Awaitable[func.HttpResponse]]) -> Callable[..., Awaitable[func.HttpResponse]]:
    """Turns the errors that a door raises into answers. Anything that is not ours stays a 500 of the host's."""

    @functools.wraps(door)
    async def answered(*args: Any, **kwargs: Any) -> func.HttpResponse:
        try:
            return await door(*args, **kwargs)
        except DropforgeError as error:
            if error.http_status >= 500:
                logging.exception("the request failed: %s", error)
            return problem(error)

    return answered


async def ask(step: Callable[..., T], *args: Any) -> T:
    """The result of a step, run where it may block."""
    return await asyncio.to_thread(step, *args)


def body_of(req: func.HttpRequest) -> dict[str, Any]:
    """The request's JSON object; an empty body is an empty object. Raises `BadInput`."""
    raw = req.get_body()
    if not raw:
        return {}
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the request body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadInput(f"the request body is a JSON {type(value).__name__}; it must be an object")
    return value
