"""What the broker answers when it refuses: an AMQP condition, a sentence and the status of a management reply.

BrokerError        an answer to one client; the broker goes on
StoreFailed        what was done can no longer be made durable; the process ends
ConfigError        the configuration, or what the state folder holds, cannot be used
StateBusy          another process works on the state folder
"""

from __future__ import annotations


class BrokerError(Exception):
    """A refusal in the service's own words. `condition` is the AMQP symbol, `status` the HTTP-like code that
    `$management`, `$cbs` and the admin port answer with."""

    def __init__(self, condition: str, description: str, status: int) -> None:
        super().__init__(description)
        self.condition = condition
        self.description = description
        self.status = status

    def __str__(self) -> str:
        return f"{self.description} ({self.condition})"


class StoreFailed(Exception):
    """The store could not write. Nothing of the turn that failed was acknowledged; the process must end."""


class ConfigError(ValueError):
    """The configuration cannot be used: says where, what was found and what was wanted."""


class StateBusy(Exception):
    """Another process has the state folder; says which."""


def not_found(path: str) -> BrokerError:
    return BrokerError("amqp:not-found", f"The messaging entity '{path}' could not be found.", 404)


def already_exists(path: str) -> BrokerError:
    return BrokerError(
        "com.microsoft:entity-already-exists", f"The messaging entity '{path}' already exists in this namespace.", 409
    )


def lock_lost() -> BrokerError:
    return BrokerError(
        "com.microsoft:message-lock-lost",
        "The lock supplied is invalid. Either the lock expired, or the message has already been removed from the "
        "queue, or was received by a different receiver instance.",
        410,
    )


def session_lock_lost(session_id: str) -> BrokerError:
    return BrokerError(
        "com.microsoft:session-lock-lost",
        f"The session lock has expired on the MessageSession '{session_id}'. Accept a new MessageSession.",
        410,
    )


def session_cannot_be_locked(session_id: str) -> BrokerError:
    return BrokerError(
        "com.microsoft:session-cannot-be-locked",
        f"The requested session '{session_id}' cannot be accepted. It may be locked by another receiver.",
        410,
    )


def not_allowed(text: str) -> BrokerError:
    return BrokerError("amqp:not-allowed", text, 400)


def timeout() -> BrokerError:
    return BrokerError("com.microsoft:timeout", "The operation did not complete within the allotted timeout.", 408)


def not_supported(what: str) -> BrokerError:
    return BrokerError("amqp:not-implemented", f"{what} is not supported.", 501)


def message_not_found(sequence: int) -> BrokerError:
    return BrokerError(
        "com.microsoft:message-not-found",
        "Failed to lock one or more specified messages. The message with sequence number "
        f"{sequence} does not exist or is not in the state asked for.",
        404,
    )


def size_exceeded(limit: int) -> BrokerError:
    return BrokerError(
        "amqp:link:message-size-exceeded", f"The message is larger than the {limit} bytes this entity allows.", 413
    )


def unauthorized(text: str) -> BrokerError:
    return BrokerError("amqp:unauthorized-access", text, 401)


def bad_field(text: str) -> BrokerError:
    return BrokerError("amqp:invalid-field", text, 400)


def busy(text: str) -> BrokerError:
    return BrokerError("com.microsoft:server-busy", text, 503)


def quota(text: str) -> BrokerError:
    return BrokerError("amqp:resource-limit-exceeded", text, 403)


def disabled(path: str) -> BrokerError:
    return BrokerError(
        "com.microsoft:entity-disabled",
        f"The messaging entity '{path}' is disabled for this operation. Enable it, then try again.",
        400,
    )
