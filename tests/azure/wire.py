"""One call to the control plane and one answer, and the errors in the shape that Azure gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Call:
    method: str
    # As sent.
    path: str
    query: dict[str, str]
    # Names in lower case.
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Raises `Refused` where it is not JSON."""
        try:
            return json.loads(self.body) if self.body else None
        except ValueError:
            raise Refused(
                400, "InvalidRequestContent", "The request content was invalid and could not be deserialized."
            ) from None


@dataclass(frozen=True)
class Answer:
    status: int
    # JSON, or bytes as they are; None: no body.
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json; charset=utf-8"
    # What was done stays done, but nobody is told: the connection ends without an answer.
    lost: bool = False

    def payload(self) -> bytes:
        if self.body is None:
            return b""
        return self.body if isinstance(self.body, bytes) else json.dumps(without_nulls(self.body)).encode()


class Refused(Exception):
    """An error of the service: its status, and the code and message of `{"error": {...}}`."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.answer = Answer(status, {"error": {"code": code, "message": message}}, headers or {})


def without_nulls(value: Any) -> Any:
    """The service leaves absent what has no value; SDKs fail on a null that they once sent themselves."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
