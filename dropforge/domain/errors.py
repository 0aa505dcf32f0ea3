"""Every error the core raises.

    DropforgeError
      BadInput            the caller sent something that can never work; fix it and send it again
        BadName           a name that is not allowed where names are allowed
        BadSpec           a pipeline.yaml that does not say what it must
        BadFile           a dropped file that fails its checks
        BadCommand        a command that cannot be understood
          Reused          a command's id, or a request's key, that was used for something else before
        BadEvent          a message that tells of an event and makes no sense
      NotFound            no such thing
      Conflict            somebody else changed it first; read again and decide again
      Refused             allowed to ask, not allowed now (paused, over budget, not approved)
      RunFailed           a training run ended without a usable model
      Unavailable         the world did not answer; trying again may help

The edge maps them to HTTP status codes (`http_status`) or to a retry (`retryable`); the core knows neither.
"""

from __future__ import annotations

from typing import ClassVar


class DropforgeError(Exception):
    """Root of the tree; keeps the ids it is about as attributes."""

    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **about: object) -> None:
        super().__init__(message)
        self.message = message
        self.about = about


class BadInput(DropforgeError):
    http_status = 400


class BadName(BadInput):
    pass


class BadSpec(BadInput):
    pass


class BadFile(BadInput):
    pass


class BadCommand(BadInput):
    # Read by the embedded host, which dead-letters the message at once; see docs/decisions/0005.
    dead_letter_reason: ClassVar[str] = "BadCommand"


class Reused(BadCommand):
    http_status = 409


class BadEvent(BadInput):
    dead_letter_reason: ClassVar[str] = "BadEvent"


class NotFound(DropforgeError):
    http_status = 404


class Conflict(DropforgeError):
    http_status = 409
    retryable = True


class Refused(DropforgeError):
    http_status = 409


class RunFailed(DropforgeError):
    http_status = 422


class Unavailable(DropforgeError):
    http_status = 503
    retryable = True
